"""Measure one epoch of DiffKG at three sizes: the time of its stages, and how time and memory grow.

    REDIFFUSE_DATA=... python -m benchmarks.measure.diffkg_scale --data lastfm-kgat-partial

Each size is a share of the items, with the interactions and triples that concern them, and runs in a process of its
own. The epoch is complete: every entity passes through the denoiser, then the graph is pruned, then every training
interaction passes through the recommender.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

import rediffuse as rd
from benchmarks.common import measured_alone, out_option, write_result
from rediffuse.data.dataset import KnowledgeGraph
from rediffuse.data.histories import Histories
from rediffuse.memory import PeakMemory, keep_freed_memory
from rediffuse.models.base import TrainingData
from rediffuse.models.diffkg import DiffKG, DiffKGConfig
from rediffuse.models.diffkg_denoiser import EntityBatch
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.training.precision import autocast, resolve_precision

SHARES = (0.25, 0.5, 1.0)


def sample_of(data: TrainingData, share: float) -> TrainingData:
    """Reduce training data to a random share of its items and the triples that concern them."""
    kg = data.kg
    assert kg is not None
    kept = np.random.default_rng(0).random(data.num_items) < share
    number = np.cumsum(kept) - 1
    interactions = data.train.where(kept[data.train.items])
    train = Histories(interactions.offsets, number[interactions.items].astype(np.int32))
    links = kg.item_entity[kept[kg.item_entity[:, 0]]]
    concerned = np.isin(kg.head, links[:, 1]) | np.isin(kg.tail, links[:, 1])
    entities = np.unique(np.concatenate((kg.head[concerned], kg.tail[concerned], links[:, 1])))

    def renumbered(x: np.ndarray) -> np.ndarray:
        return np.searchsorted(entities, x).astype(np.int32)

    smaller = KnowledgeGraph(
        renumbered(kg.head[concerned]),
        kg.relation[concerned],
        renumbered(kg.tail[concerned]),
        kg.entity_ids.gather(entities),
        kg.relation_ids,
        np.stack((number[links[:, 0]], renumbered(links[:, 1])), axis=1).astype(np.int32),
    )
    counts = np.bincount(train.items, minlength=int(kept.sum()))
    return TrainingData(train, data.num_users, int(kept.sum()), counts, kg=smaller)


def measure(name: str, share: float) -> dict[str, object]:
    """Time the stages of an epoch, and measure the peak of memory from before the model is made."""
    memory = PeakMemory()
    dataset = public_dataset(name)
    split = rd.split.given(dataset) if dataset.given else rd.split.ratio(dataset)
    view = split.training_view()
    whole = TrainingData(view.train, view.num_users, view.num_items, view.valid.popularity, kg=view.kg)
    data = whole if share == 1 else sample_of(whole, share)
    torch.manual_seed(0)
    model = DiffKG(DiffKGConfig(), data.num_items, data.num_users)
    model.fit(data)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    device = torch.device("cpu")
    precision = resolve_precision("auto", device)
    seconds = dict.fromkeys(("denoiser", "pruning", "recommender"), 0.0)
    batches = model.batches(data, np.random.default_rng(0))
    for index in range(len(batches)):
        batch = batches.get(index)
        stage = "denoiser" if isinstance(batch, EntityBatch) else "recommender"
        if stage == "recommender" and not model.rebuilt:
            began = time.perf_counter()
            model.rebuild()
            seconds["pruning"] = time.perf_counter() - began
        began = time.perf_counter()
        with autocast(precision, device):
            loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds[stage] += time.perf_counter() - began
    return {
        "share": share,
        "nodes": model.edges.num_nodes,
        "edges": len(model.edges),
        "interactions": len(data.train.items),
        "kept": round(float(model.kept.value.float().mean()), 4),
        **{stage: round(spent, 1) for stage, spent in seconds.items()},
        "epoch": round(sum(seconds.values()), 1),
        "peak_memory_mib": memory.mib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="lastfm-kgat-partial")
    parser.add_argument("--share", type=float, help="measure this one only, in this process")
    out_option(parser, "diffkg_scale.json")
    arguments = parser.parse_args()
    if arguments.share:
        with keep_freed_memory():
            print(json.dumps(measure(arguments.data, arguments.share)))
        return
    rows = []
    for share in SHARES:
        rows.append(measured_alone("--data", arguments.data, "--share", str(share)))
        print(rows[-1], flush=True)
    precision = resolve_precision("auto", torch.device("cpu"))
    write_result(arguments.out, {"data": arguments.data, "rows": rows}, precision=precision, device="cpu")


if __name__ == "__main__":
    main()
