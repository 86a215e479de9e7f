"""The index of a run: built, tuned to a recall, measured, and written down in the run's card."""

from __future__ import annotations

import datetime
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.index import FACTS_FILE, VECTORS_FILE, ItemIndex, Kind, load_faiss
from rediffuse.recommender.index_recall import exact_thresholds, median_milliseconds, recall_of
from rediffuse.runs.environment import processor
from rediffuse.runs.lock import PATIENCE, folder_lock
from rediffuse.runs.run_folder import RunContents, add_files, forget_files, read_manifest, read_run
from rediffuse.seeds import derive
from rediffuse.topk import exact_top_k

MAX_QUERIES = 1000
TIMED_QUERIES = 100


def build_index(run: str | Path, kind: Kind = "ivf", k: int = 100, recall: float = 0.95) -> dict[str, Any]:
    """Build the index of a run, or build it again, and write index.faiss, index.json and the card's section on it.

    The effort of a search is the least that finds ``recall`` of the exact best ``k`` items for half of the people
    drawn; the recall that is reported was measured on the other half. Where no effort suffices, the highest is kept,
    and the report, the card and a warning say so.

    Args:
        run: a run folder.
        kind: ``hnsw`` or ``ivf``, see `rediffuse.recommender.index`.
        k: items per list.
        recall: share of them that the index is to find, in (0, 1].

    Returns:
        The content of index.json: kind, effort, k, recall and wanted_recall, reached (whether the people chosen by
        found enough), queries (people measured), ms_per_query and exact_ms_per_query (medians, one person at a time),
        build_seconds, items, size, bytes, weights (sha256), faiss, processor, date.

    Raises:
        ConfigError: the model does not rank by inner products, options out of range, or nobody to measure with.
        RunError: the folder is no run, or another process works in it.
        StorageError: the folder cannot be written.
        MissingExtraError: faiss is not installed.

    Warns:
        RediffuseWarning: the recall was not reached.
    """
    faiss = load_faiss()
    if kind not in ("hnsw", "ivf"):
        raise ConfigError(f"kind is {kind!r}.", "Give hnsw or ivf.")
    if k < 1:
        raise ConfigError(f"k is {k}.", "Give at least 1.")
    if not 0 < recall <= 1:
        raise ConfigError(f"recall is {recall}.", "Give a share of more than 0 and at most 1, for example 0.95.")
    run = Path(run)
    try:
        contents = read_run(run)
    except RunError:
        # It may be the old index that is damaged; anything else fails again, what is no run before it is touched.
        read_manifest(run)
        with folder_lock(run, "building an index", PATIENCE):
            forget_files(run, (FACTS_FILE, VECTORS_FILE))
        contents = read_run(run)
    vectors, queries = _vectors(contents)
    k = min(k, len(vectors))
    thresholds = exact_thresholds(vectors, queries, k)
    choosing, reporting = slice(0, len(queries) // 2), slice(len(queries) // 2, None)

    start = time.perf_counter()
    index = ItemIndex.build(vectors.numpy(), kind)
    seconds = time.perf_counter() - start

    def measured(part: slice) -> float:
        return recall_of(index, vectors, queries[part], thresholds[part], k)

    reached = False
    for effort in index.efforts:
        index.effort = effort
        reached = measured(choosing) >= recall
        if reached:
            break
    asked = queries[reporting][:TIMED_QUERIES]
    content = index.to_bytes()
    facts = {
        "kind": kind,
        "effort": index.effort,
        "k": k,
        "recall": round(measured(reporting), 4),
        "wanted_recall": recall,
        "reached": reached,
        "queries": len(queries[reporting]),
        "ms_per_query": median_milliseconds(lambda query: index.search(query.numpy(), k), asked),
        "exact_ms_per_query": median_milliseconds(lambda query: exact_top_k(query @ vectors.T, k), asked),
        "build_seconds": round(seconds, 1),
        "items": len(vectors),
        "size": vectors.shape[1],
        "bytes": len(content),
        "weights": contents.weights,
        "faiss": faiss.__version__,
        "processor": processor(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if not reached:
        warnings.warn(
            f"No effort finds {recall:.1%} of the best {k} items; the highest is kept and finds {facts['recall']:.1%}.",
            RediffuseWarning,
            stacklevel=2,
        )
    card = contents.path / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    files = {
        FACTS_FILE: (json.dumps(facts, indent=2) + "\n").encode(),
        VECTORS_FILE: content,
        "README.md": with_section(text, facts).encode(),
    }
    add_files(contents.path, files, made_of=contents.weights)
    return facts


def with_section(card: str, facts: dict[str, Any]) -> str:
    """The model card with the section on the index, in place of an older one."""
    others = re.sub(r"\n*^## Index\n.*?(?=^## |\Z)", "\n\n", card, flags=re.MULTILINE | re.DOTALL).strip()
    missed = "" if facts["reached"] else f" Asked for was {facts['wanted_recall']}, which no effort reached."
    lines = [
        "## Index",
        "",
        f"- {facts['kind']} over {facts['items']:,} items, {facts['bytes'] / 2**20:,.1f} MiB, "
        f"effort {facts['effort']}. Built on {facts['date']} with faiss {facts['faiss']}.",
        f"- It finds {facts['recall']:.4f} of the exact best {facts['k']}, measured on {facts['queries']:,} people; "
        f"the effort was chosen by others.{missed}",
        f"- {facts['ms_per_query']} ms per person; exact search: {facts['exact_ms_per_query']} ms. Both are medians, "
        f"one person at a time, without the model, on {facts['processor']}.",
        '- Use it: `rd.Recommender.load("this folder", retrieval="index")`.',
    ]
    return f"{others}\n\n" + "\n".join(lines) + "\n"


@torch.inference_mode()
def _vectors(contents: RunContents) -> tuple[Tensor, Tensor]:
    """Item vectors (items, d), and (n, d) those of up to MAX_QUERIES people with an answer of their own."""
    model, name = contents.model, contents.config["model"]
    vectors = model.index_vectors()
    if vectors is None:
        raise ConfigError(
            f"{name} cannot use an index in this run: its scores are no inner products of a person's vector with item "
            "vectors.",
            "Answer exactly, or take a model that ranks by inner products, such as diffurec, sasrec or lightgcn.",
        )
    rows = contents.histories if model.reads_synthetic else contents.histories.without_synthetic()
    people = np.arange(len(rows), dtype=np.int64)
    people = people[(rows.lengths > 0) | model.has_user_state(people)]
    if len(people) < 2:
        raise ConfigError(f"{contents.path} knows {len(people)} people to measure the index with.", "Train on more.")
    rng = np.random.default_rng(derive(contents.config["seed"], "index"))
    people = rng.choice(people, min(MAX_QUERIES, len(people)), replace=False)
    queries = [
        model.query_vectors(rows.take(part), part, Sampling()) for part in np.array_split(people, 8) if len(part)
    ]
    return vectors.float().contiguous(), torch.cat(queries).float()
