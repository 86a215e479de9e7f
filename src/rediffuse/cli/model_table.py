"""What `rediffuse models` says of each built-in model: its kind, what data it needs, and one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rediffuse.models.base import Model


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        kind: "diffusion", "neural" or "closed form", or "diffusion, closed form".
        needs: what a dataset must have beside interactions: "timestamps", "social graph", "knowledge graph",
            "item categories", "item features".
        line: what the model does.
    """

    kind: str
    needs: tuple[str, ...]
    line: str


_ENTRIES = {
    "bert4rec": Entry("neural", (), "Bidirectional transformer over histories with masked items."),
    "blend": Entry("made of runs", (), "Weighted sum of finished runs; made by `rediffuse blend`."),
    "bprmf": Entry("neural", (), "Matrix factorisation with the BPR loss."),
    "colddiff": Entry("diffusion", ("item features",), "Draws the vectors of new items from their content."),
    "d3rec": Entry("diffusion", ("item categories",), "DiffRec that a temperature steers to more categories."),
    "diffkg": Entry("diffusion", ("knowledge graph",), "Denoised knowledge graph beside the interaction graph."),
    "diffnet": Entry("diffusion", ("social graph",), "Influence that spreads along social links."),
    "diffnetpp": Entry("diffusion", ("social graph",), "Influence and interest that spread along both graphs."),
    "diffrec": Entry("diffusion", (), "Denoises each user's whole row of items."),
    "diffuasr": Entry("diffusion", (), "Generates items before short histories, then trains a sequence model."),
    "diffurec": Entry("diffusion", (), "Denoises the next item's vector, given the history."),
    "ease": Entry("closed form", (), "Item-item ridge regression."),
    "flowcf": Entry("diffusion", (), "Flow from popularity to each user's row of items."),
    "friends": Entry("closed form", ("social graph",), "Number of friends with the item."),
    "giffcf": Entry("diffusion", (), "Blurs each user's row over the item graph, and sharpens it."),
    "gru4rec": Entry("neural", (), "Recurrent network over histories."),
    "heat": Entry("diffusion, closed form", (), "Heat that spreads over the item graph."),
    "heatrec": Entry("diffusion", (), "Recurrent network over histories that spread like heat, and a graph prior."),
    "itemknn": Entry("closed form", (), "Cosine similarity of items."),
    "ldiffrec": Entry("diffusion", (), "DiffRec in the space of clusters of items."),
    "lightgcn": Entry("neural", (), "Linear graph convolution of users and items."),
    "maskdiff": Entry("diffusion", (), "Fills in histories of which a random share is masked."),
    "pdrec": Entry("diffusion", (), "Sequence model with weights and positives from a TI-DiffRec."),
    "popularity": Entry("closed form", (), "Number of training interactions."),
    "preferdiff": Entry("diffusion", (), "Generates the next item's vector from noise; DreamRec with a preference."),
    "recentpop": Entry("closed form", ("timestamps",), "Number of recent interactions."),
    "s3rec": Entry("neural", (), "SASRec after a self-supervised phase, with item columns if there are any."),
    "sasrec": Entry("neural", (), "Causal transformer over histories."),
    "slist": Entry("closed form", (), "Linear map from the past of a history to its future."),
    "tdiffrec": Entry("diffusion", (), "DiffRec with more weight for recent interactions."),
    "theat": Entry("diffusion, closed form", (), "Heat over two item graphs that forget, and recent popularity."),
    "transition": Entry("diffusion, closed form", (), "Random walk over what followed what."),
}


def entry(kind: type[Model]) -> Entry:
    """The row of a model; of another package's, what its class says."""
    if kind.name in _ENTRIES:
        return _ENTRIES[kind.name]
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    return Entry("neural" if kind.trained_by_gradient else "closed form", (), summary)
