"""Building the index of a run: tuned to a recall, measured, and described in the model card."""

from __future__ import annotations

import datetime
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rediffuse import devices
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.models.placement import place
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.index import METADATA_FILE, VECTORS_FILE, ItemIndex, Kind, load_faiss
from rediffuse.recommender.index_recall import exact_thresholds, median_milliseconds, recall_of
from rediffuse.runs.card import THIS_RUN, with_section
from rediffuse.runs.environment import processor
from rediffuse.runs.lock import PATIENCE, folder_lock
from rediffuse.runs.run_folder import (
    RunContents,
    add_files,
    forget_files,
    publish_changes,
    read_manifest,
    read_run,
    run_path,
)
from rediffuse.seeds import derive
from rediffuse.topk import exact_top_k

MAX_QUERIES = 1000
TIMED_QUERIES = 100


def build_index(
    run: str | Path,
    kind: Kind = "ivf",
    k: int = 100,
    recall: float = 0.95,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Build the index of a run, or build it again; write index.faiss, index.json and a section of the model card.

    The effort of a search (`rediffuse.recommender.index.ItemIndex.effort`) is the lowest that finds ``recall`` of the
    exact best ``k`` items for one half of a sample of users. The reported recall is measured on the other half. If no
    effort suffices, the highest is kept, and the result, the model card and a warning say so.

    Args:
        run: a run folder.
        kind: ``hnsw`` or ``ivf``, see `rediffuse.recommender.index`.
        k: items per list.
        recall: share of the exact best items that the index must find, in (0, 1].
        device: where the model computes the vectors and the exact lists, as for `Recommender.load`. The index itself is
            built, searched and timed on the CPU.

    Returns:
        The content of index.json: kind, effort, k, recall and wanted_recall, reached (whether an effort sufficed),
        queries (users measured), ms_per_query and exact_ms_per_query (medians, one user at a time), build_seconds,
        items, size, bytes, weights (sha256), faiss, processor, date.

    Raises:
        ConfigError: the model does not rank by inner products, an option is out of range, there are too few users to
            measure with, or torch finds no such device.
        RunError: the folder is not a run, or another process is writing in it.
        StorageError: the folder cannot be written.
        MissingExtraError: faiss is not installed.

    Warns:
        RediffuseWarning: no effort reached the recall.
    """
    faiss = load_faiss()
    if kind not in ("hnsw", "ivf"):
        raise ConfigError(f"kind is {kind!r}.", "Give hnsw or ivf.")
    if k < 1:
        raise ConfigError(f"k is {k}.", "Give at least 1.")
    if not 0 < recall <= 1:
        raise ConfigError(f"recall is {recall}.", "Give a share of more than 0 and at most 1, for example 0.95.")
    devices.resolve(device)
    given = run
    run = run_path("run", run, writes=True)
    try:
        contents = read_run(run)
    except RunError:
        # Perhaps only the old index is damaged: leave it out and try again. `read_manifest` fails if this is not a run.
        read_manifest(run)
        with folder_lock(run, "building an index", PATIENCE):
            forget_files(run, (METADATA_FILE, VECTORS_FILE))
        contents = read_run(run)
    place(contents.model, device)
    vectors, queries = _vectors(contents)
    k = min(k, len(vectors))
    thresholds = exact_thresholds(vectors, queries, k).cpu()
    vectors, queries = vectors.cpu(), queries.cpu()
    tuned_on, measured_on = slice(0, len(queries) // 2), slice(len(queries) // 2, None)

    start = time.perf_counter()
    index = ItemIndex.build(vectors.numpy(), kind)
    seconds = time.perf_counter() - start

    def measure(half: slice) -> float:
        return recall_of(index, vectors, queries[half], thresholds[half], k)

    reached = False
    for effort in index.efforts:
        index.effort = effort
        reached = measure(tuned_on) >= recall
        if reached:
            break
    timed = queries[measured_on][:TIMED_QUERIES]
    content = index.to_bytes()
    report = {
        "kind": kind,
        "effort": index.effort,
        "k": k,
        "recall": round(measure(measured_on), 4),
        "wanted_recall": recall,
        "reached": reached,
        "queries": len(queries[measured_on]),
        "ms_per_query": median_milliseconds(lambda query: index.search(query.numpy(), k), timed),
        "exact_ms_per_query": median_milliseconds(lambda query: exact_top_k(query @ vectors.T, k), timed),
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
            f"No effort finds {recall:.1%} of the best {k} items; the highest is kept, at {report['recall']:.1%}.",
            RediffuseWarning,
            stacklevel=2,
        )
    card = contents.path / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    files = {
        METADATA_FILE: (json.dumps(report, indent=2) + "\n").encode(),
        VECTORS_FILE: content,
        "README.md": with_section(text, "Index", index_section(report)).encode(),
    }
    add_files(contents.path, files, made_of=contents.weights)
    publish_changes(given, contents.path)
    return report


def index_section(report: dict[str, Any]) -> list[str]:
    """What the model card says about the index."""
    missed = "" if report["reached"] else f" No effort reached the wanted {report['wanted_recall']}."
    return [
        f"- {report['kind']} over {report['items']:,} items, {report['bytes'] / 2**20:,.1f} MiB, "
        f"effort {report['effort']}. Built on {report['date']} with faiss {report['faiss']}.",
        f"- It finds {report['recall']:.4f} of the exact best {report['k']}, measured on {report['queries']:,} "
        f"users; the effort was chosen on other users.{missed}",
        f"- {report['ms_per_query']} ms per user; exact search: {report['exact_ms_per_query']} ms. Both are medians, "
        f"one user at a time, without the model, on {report['processor']}.",
        f'- Use it: `rd.Recommender.load("{THIS_RUN}", retrieval="index")`.',
    ]


@torch.inference_mode()
def _vectors(contents: RunContents) -> tuple[Tensor, Tensor]:
    """Item vectors (items, d), and vectors (n, d) of up to MAX_QUERIES users with a history or a state in the model."""
    model, name = contents.model, contents.config["model"]
    vectors = model.index_vectors()
    if vectors is None:
        raise ConfigError(
            f"{name} cannot use an index in this run: its scores are not inner products of a user vector with item "
            "vectors.",
            "Use retrieval='exact', or a model that ranks by inner products, such as diffurec, sasrec or lightgcn.",
        )
    if not model.ranks_by_vectors:
        raise ConfigError(
            f"{name} cannot use an index in this run: a prior is added to the inner products of its vectors.",
            "Use retrieval='exact', or train with prior=none.",
        )
    rows = contents.histories if model.reads_synthetic else contents.histories.without_synthetic()
    users = np.arange(len(rows), dtype=np.int64)
    users = users[(rows.lengths > 0) | model.has_user_state(users)]
    if len(users) < 2:
        problem = f"{contents.path} has {len(users)} users to measure the index with; 2 are needed."
        raise ConfigError(problem, "Train on more users.")
    rng = np.random.default_rng(derive(contents.config["seed"], "index"))
    users = rng.choice(users, min(MAX_QUERIES, len(users)), replace=False)
    queries = [
        model.query_vectors(rows.take(batch), batch, Sampling()) for batch in np.array_split(users, 8) if len(batch)
    ]
    return vectors.float().contiguous(), torch.cat(queries).float()
