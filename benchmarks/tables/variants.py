"""What `compare.py` trains: models with options, by name.

The names are in run folders and in stored results, so they do not change. ``twin`` is an ablation: no diffusion.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.tables import augmented
from rediffuse.models.baselines.sasrec import SASRecConfig
from rediffuse.models.diffkg import DiffKGConfig
from rediffuse.models.diffnet import DiffNetConfig
from rediffuse.models.diffnetpp import DiffNetPPConfig
from rediffuse.models.diffrec import DiffRecConfig, TDiffRecConfig
from rediffuse.models.preferdiff import DREAMREC


@dataclass(frozen=True)
class Variant:
    """A model to compare.

    Attributes:
        model: its name.
        options: what differs from its default options.
        phases: the variants whose runs its phases are taken from.
        on: the data set of `augmented.py` that it is trained on; "" for the data as they are.
        label: its name in tables; "" for one made of the model and the options.
        refit_of: the variant that this one trains again, on the training and validation subsets; "" for none.
        preset: of the model; then its own epochs, early stopping and validation metric hold. "" for the defaults, with
            those of the table.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, str] = field(default_factory=dict)
    on: str = ""
    label: str = ""
    refit_of: str = ""
    preset: str = ""


NO_DIFFUSION = {"diffusion": False}

# Trained unless others are named.
TEN_MODELS = {
    "popularity": Variant("popularity"),
    "itemknn": Variant("itemknn"),
    "ease": Variant("ease"),
    "diffurec": Variant("diffurec"),
    "twin": Variant("diffurec", NO_DIFFUSION),
    "sasrec": Variant("sasrec"),
    "gru4rec": Variant("gru4rec"),
    "bert4rec": Variant("bert4rec"),
    "lightgcn": Variant("lightgcn"),
    "bprmf": Variant("bprmf"),
}

# In closed form, in seconds: what every trained model has to beat. `floors.py` trains them.
_FLOORS = {
    "popularity": Variant("popularity"),
    "recentpop": Variant("recentpop"),
    "itemknn": Variant("itemknn"),
    "ease": Variant("ease"),
    "ease-recent": Variant("ease", {"input_weighting": "half_life_events", "half_life": 5.0}),
    "ease-200": Variant("ease", {"neighbours": 200}),
    "ease-200-recent": Variant("ease", {"neighbours": 200, "input_weighting": "half_life_events", "half_life": 5.0}),
    "slist": Variant("slist"),
    "one_hop": Variant("heat", {"filter": "one_hop"}),
    "heat": Variant("heat"),
    "transition": Variant("transition"),
    "transition-one-hop": Variant("transition", NO_DIFFUSION),
    "theat": Variant("theat"),
}
# Each twice: fitted to the training interactions alone, as models trained by gradient are, and to those of validation
# too (``-refit``).
FLOORS = {
    name + suffix: Variant(floor.model, floor.options | {"refit": bool(suffix)})
    for name, floor in _FLOORS.items()
    for suffix in ("", "-refit")
}

_ALONE = {"prior": "none"}
_SEQUENCES = {
    "heatrec": Variant("heatrec", _ALONE),
    "heatrec-ablation": Variant("heatrec", _ALONE | NO_DIFFUSION, label="gru4rec = heatrec (no diffusion)"),
    "heatrec-uniform": Variant("heatrec", _ALONE | {"noise_graph": "uniform"}),
    "diffurec": TEN_MODELS["diffurec"],
    "diffurec-ablation": TEN_MODELS["twin"],
    "sasrec": TEN_MODELS["sasrec"],
    "esasrec": Variant("sasrec", SASRecConfig.presets["esasrec"], label="esasrec"),
    "bert4rec": TEN_MODELS["bert4rec"],
    "maskdiff": Variant("maskdiff"),
    "maskdiff-ablation": Variant("maskdiff", NO_DIFFUSION),
    "preferdiff": Variant("preferdiff"),
    "preferdiff-ablation": Variant("preferdiff", NO_DIFFUSION),
    "dreamrec": Variant("preferdiff", DREAMREC, label="dreamrec"),
    "dreamrec-ablation": Variant("preferdiff", DREAMREC | NO_DIFFUSION, label="dreamrec (no diffusion)"),
}
_COLLABORATIVE = {name: TEN_MODELS[name] for name in ("lightgcn", "bprmf")}

# One option of DiffuRec or SASRec changed.
ONE_OPTION = {
    "diffurec-norepeat": Variant("diffurec", {"repeat_bias": False}),
    "twin-norepeat": Variant("diffurec", {"repeat_bias": False} | NO_DIFFUSION),
    "sasrec-sampled": Variant("sasrec", {"loss": "sampled_softmax"}),
    "sasrec-bce": Variant("sasrec", {"loss": "bce"}),
    "sasrec-gbce": Variant("sasrec", {"loss": "gbce"}),
}

DIFFREC = {
    "diffrec": Variant("diffrec"),
    "diffrec-twin": Variant("diffrec", NO_DIFFUSION),
    "tdiffrec": Variant("tdiffrec"),
    "tdiffrec-twin": Variant("tdiffrec", NO_DIFFUSION),
    "ldiffrec": Variant("ldiffrec"),
    "ldiffrec-twin": Variant("ldiffrec", NO_DIFFUSION),
}

# Other diffusion on rows.
ROWS = {
    "flowcf": Variant("flowcf"),
    "flowcf-twin": Variant("flowcf", NO_DIFFUSION),
    "giffcf": Variant("giffcf"),
    "giffcf-twin": Variant("giffcf", NO_DIFFUSION),
}

# What docs/reproductions.md trains beside the defaults: the options of the papers.
_ML_1M = TDiffRecConfig.presets["paper"] | {
    name: DiffRecConfig.presets["paper:ml-1m"][name]
    for name in ("learning_rate", "hidden_sizes", "diffusion_steps", "noise_scale", "noise_min", "noise_max")
}
PAPERS = {
    "diffurec-paper": Variant("diffurec", preset="paper"),
    "diffrec-paper": Variant("diffrec", preset="paper:ml-1m"),
    # Nothing of its own was released for this data set.
    "tdiffrec-paper": Variant("tdiffrec", _ML_1M, preset="paper", label="tdiffrec (paper:ml-1m of diffrec)"),
    "ldiffrec-paper": Variant("ldiffrec", preset="paper:ml-1m"),
    "diffnet-paper": Variant("diffnet", preset="paper:yelp"),
    "pdrec-paper": Variant("pdrec", preset="paper:douban-book"),
    "pdrec-paper-plain": Variant(
        "pdrec", {"hbr": False, "dpa": False, "nns": False}, preset="paper:douban-book", label="gru4rec of PDRec"
    ),
    "diffkg-paper": Variant("diffkg", preset="paper:last-fm"),
}

# With friends, without, and as released.
SOCIAL = {
    "friends": Variant("friends"),
    "diffnet": Variant("diffnet"),
    "diffnet-alone": Variant("diffnet", {"hops": 0}),
    "diffnet-reference": Variant("diffnet", DiffNetConfig.presets["released"]),
    "diffnetpp": Variant("diffnetpp", {"hops": 2}),
    "diffnetpp-one": Variant("diffnetpp"),
    "diffnetpp-mean": Variant("diffnetpp", {"attention": "mean"}),
    "bprmf-tuned": Variant("bprmf", {"reg": 0.03}),  # the best of a few on Yelp's validation subset
    "lightgcn-tuned": Variant("lightgcn", {"reg": 0.03}),
    "diffnetpp-reference": Variant("diffnetpp", DiffNetPPConfig.presets["released"]),
}

# A knowledge graph, pruned by diffusion, at random, or not at all.
KNOWLEDGE = {
    **{f"diffkg-{pruning}": Variant("diffkg", {"pruning": pruning}) for pruning in ("diffusion", "random", "none")},
    "diffkg-plain": Variant("diffkg", {"pruning": "none", "contrast": 0.0}),
    "diffkg-reference": Variant("diffkg", DiffKGConfig.presets["released"]),
}

# The backbones of augmentation, all of one size.
SMALL = {"embedding_size": 64, "dropout": 0.2, "learning_rate": 2e-3, "validate_every": 2}
BACKBONES = {
    "sasrec": SMALL | {"epochs": 6},
    "bert4rec": SMALL | {"epochs": 8},
    "s3rec": SMALL | {"epochs": 6, "pretrain_epochs": 2},
    "gru4rec": SMALL | {"epochs": 4},
}


def pdrec() -> dict[str, Variant]:
    """TI-DiffRec alone; then PDRec's signals, none, each and all, on two backbones with two losses."""
    diffusion = TDiffRecConfig.presets["paper:douban-book"] | {"learning_rate": 5e-4, "validate_every": 2}
    found = {"tidiffrec": Variant("tdiffrec", diffusion)}
    for backbone, rate in (("gru4rec", 3e-3), ("sasrec", 1e-3)):
        for loss, signals in (("bce", ["hbr", "dpa", "nns"]), ("softmax", ["hbr", "dpa"])):
            shared = {
                **{"batch_size": 4096, "validate_every": 4, "backbone": backbone, "learning_rate": rate, "loss": loss},
                "diffusion": diffusion,
                "backbone_options": {"embedding_size": 64, "dropout": 0.2, "temperature": 0.1},
            }
            for name, on in {"plain": [], "all": signals, **{signal: [signal] for signal in signals}}.items():
                options = shared | {signal: signal in on for signal in ("hbr", "dpa", "nns")}
                phases = {"diffusion": "tidiffrec"} if on else {}
                found[f"{backbone}-{loss}-{name}"] = Variant("pdrec", options, phases)
    return found


def augmentation() -> dict[str, Variant]:
    """Each backbone on the data as they are, and on the data sets with synthetic interactions."""
    return {
        f"{backbone}-on-{on or 'own'}": Variant(
            backbone, options, on=on, label=f"{backbone} on {on or 'own'} histories"
        )
        for backbone, options in BACKBONES.items()
        for on in ("", *augmented.METHODS)
    }


# The networks of `table.py`, by kind of data.
NETWORKS: dict[str, dict[str, Variant]] = {
    "sequences": _SEQUENCES | _COLLABORATIVE,
    "rows": DIFFREC | ROWS | _COLLABORATIVE,
    "friends": SOCIAL | _COLLABORATIVE,
    "knowledge": KNOWLEDGE | _COLLABORATIVE,
    "knowledge and friends": KNOWLEDGE | SOCIAL | _COLLABORATIVE,
}


def with_prior(name: str) -> str:
    """The name of a network with the prior."""
    return f"{name}-prior"


def refitted(name: str) -> str:
    """The name of a network that learned from the validation interactions too."""
    return f"{name}-refit"


PRIORS = {
    with_prior(name): Variant(
        network.model,
        network.options | {"prior": "head"},
        phases={"fit": name},
        label=f"{network.label}, with prior" if network.label else "",
    )
    for networks in NETWORKS.values()
    for name, network in networks.items()
}

# With the prior, and trained again on training and validation together, which takes as long as the first training.
REFITTED = {
    refitted(name): replace(PRIORS[name], phases={}, refit_of=name)
    for name in map(with_prior, ("heatrec", "heatrec-ablation", "diffurec", "diffurec-ablation", "sasrec"))
}

VARIANTS = FLOORS | TEN_MODELS | ONE_OPTION | DIFFREC | ROWS | SOCIAL | KNOWLEDGE | pdrec() | augmentation()
VARIANTS |= _SEQUENCES | PAPERS | PRIORS | REFITTED
