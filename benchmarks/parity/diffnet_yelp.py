"""Train DiffNet and DiffNet++ on Yelp without features: the released program, and ours, judged by its evaluation.

    git clone https://github.com/PeiJieSun/diffnet
    REDIFFUSE_DATA=... python -m benchmarks.parity.diffnet_yelp --released diffnet --train released --epochs 100
    REDIFFUSE_DATA=... python -m benchmarks.parity.diffnet_yelp --released diffnet --train diffnet --epochs 100

Each run appends one line to the result file: HR@10 and NDCG@10 on test and validation users, epoch by epoch, and with
the best weights what the sampled items, their draws and ties change. The lines of the released program build its graph
and compute HR and NDCG; they run on an imitation of TensorFlow (`tensorflow1.py`). Batches and draws are made by numpy
as there, without loops over samples. Features are removed as its authors advise (issue 5).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

import rediffuse as rd
from benchmarks.common import append_result, out_option
from benchmarks.parity.diffnet import FOLDERS
from benchmarks.parity.released import load
from benchmarks.parity.tensorflow1 import imitation
from rediffuse.batching.negatives import draw_negatives
from rediffuse.evaluation import evaluate_task
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.seeds import seed_torch

Pairs = NDArray[np.int64]
Vectors = tuple[Tensor, Tensor]  # of users and of items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, required=True, help="folder with the released programs")
    parser.add_argument("--train", default="released", help="released (DiffNet's program), diffnet or diffnetpp (ours)")
    parser.add_argument("--preset", default="released", help="of our models")
    parser.add_argument("--set", nargs="*", default=[], help="options of our models")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    parser.add_argument("--minutes", type=float, default=60, help="limit of a training")
    parser.add_argument("--seed", type=int, default=0)
    out_option(parser, "diffnet_yelp.jsonl")
    arguments = parser.parse_args()
    program = Program(arguments.released.resolve() / FOLDERS["diffnet"], arguments.seed)
    curve = Curve(program, arguments.every)
    started = time.monotonic()
    if arguments.train == "released":
        train_released(program, arguments, curve)
    else:
        train_ours(arguments, curve)
    minutes = round((time.monotonic() - started) / 60, 1)
    content = {"train": arguments.train, "seed": arguments.seed, "minutes": minutes} | curve.summary()
    append_result(arguments.out, content, precision="fp32", device="cpu")


class Program:
    """The released program of DiffNet: its options, data and evaluation."""

    def __init__(self, folder: Path, seed: int) -> None:
        sys.path[:0] = [str(folder), str(folder / "class")]
        options = ConfigParser()
        options.read(folder / "conf" / "yelp_diffnet.ini")
        kinds = {"int": int, "float": float, "string": str}
        words = (value.split() for value in options["Configure"].values())
        self.conf = SimpleNamespace(
            **{name: kinds[kind](value) for name, (kind, value) in zip(options["Configure"], words, strict=True)}
        )
        files = folder / "data" / "yelp"
        self.conf.links_filename = str(files / "yelp.links")
        self.train_file = str(files / "yelp.train.rating")
        self.pairs = {
            part: np.loadtxt(files / f"yelp.{part}.rating", dtype=np.int64, usecols=(0, 1))
            for part in ("train", "val", "test")
        }
        self.keys = {part: distinct(pairs @ (self.conf.num_items, 1)) for part, pairs in self.pairs.items()}
        self.evaluate = load("Evaluate").Evaluate(self.conf)
        self.split = rd.split.given(public_dataset("diffnet-yelp"))
        # Their numbers of our users and items.
        self.users, self.items = (
            ids.to_numpy().copy() for ids in (self.split.dataset.user_ids, self.split.dataset.item_ids)
        )
        self.drawn = {part: self.draw(part, seed) for part in ("val", "test")}

    def draw(self, part: str, seed: int, items: Pairs | None = None) -> Pairs:
        """(users, 1000) items for each user with true items, drawn with repetition from all but the true ones; with
        ``items``, others are replaced by these."""
        users = np.unique(self.pairs[part][:, 0])
        shape = (len(users), self.conf.num_evaluate)
        drawn = draw_negatives(
            users.repeat(shape[1]), self.keys[part], self.conf.num_items, np.random.default_rng(seed)
        )
        if items is not None:
            known = np.isin(drawn, items)
            drawn[~known] = np.random.default_rng(seed + 1).choice(items, (~known).sum())
        return drawn.reshape(shape)

    def scored(self, vectors: Vectors, part: str, drawn: Pairs) -> tuple[Pairs, NDArray[Any], NDArray[Any]]:
        """The row in ``drawn`` of each true item, and the probabilities (n, 1) of true items and (users, 1000) of
        others."""
        pairs = self.pairs[part]
        owners, row = np.unique(pairs[:, 0], return_inverse=True)
        true = np.empty((len(pairs), 1), dtype=np.float32)
        others = np.empty(drawn.shape, dtype=np.float32)
        for start in range(0, len(owners), 512):
            rows = slice(start, start + 512)
            scores = torch.sigmoid(vectors[0][owners[rows]] @ vectors[1].T).numpy()
            others[rows] = np.take_along_axis(scores, drawn[rows], axis=1)
            mine = np.flatnonzero((row >= start) & (row < start + 512))
            true[mine, 0] = scores[row[mine] - start, pairs[mine, 1]]
        return row, true, others

    def rates(self, vectors: Vectors, part: str, drawn: Pairs) -> tuple[float, float]:
        """HR@10 and NDCG@10 by the released code."""
        row, true, others = self.scored(vectors, part, drawn)
        places: dict[int, list[int]] = {}
        for place, number in enumerate(row.tolist()):
            places.setdefault(number, []).append(place)
        ordered = dict(enumerate(others))
        found = self.evaluate.evaluateRankingPerformance(places, true, ordered, self.conf.topk, self.conf.num_procs)
        return round(float(found[0]), 4), round(float(found[1]), 4)

    def whole_catalogue(self, vectors: Vectors) -> dict[str, dict[str, float]]:
        """HR@10 and NDCG@10 among all items, with seen items kept and filtered."""
        users, items = vectors[0][self.users], vectors[1][self.items]
        task = self.split.task("test")
        found = evaluate_task(
            lambda histories, start: users[task.users[start : start + len(histories)]] @ items.T,
            task,
            num_items=len(items),
            metrics=("hr@10", "ndcg@10"),
        )
        return {policy: {name: round(value, 4) for name, value in row.items()} for policy, row in found.metrics.items()}

    def tied(self, vectors: Vectors) -> float:
        """The share of true test items whose probability another candidate has too; the released sort orders these by
        chance."""
        row, true, others = self.scored(vectors, "test", self.drawn["test"])
        return round(float((others[row] == true).any(axis=1).mean()), 5)


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct numbers, ascending; `np.unique` takes seconds for a million."""
    ascending = np.sort(numbers)
    return ascending[np.append(True, ascending[1:] != ascending[:-1])]


class Curve:
    """Evaluations during a training."""

    def __init__(self, program: Program, every: int) -> None:
        self.program, self.every, self.rows = program, every, []
        self.best: Vectors | None = None

    def add(self, epoch: int, vectors: Vectors, **facts: Any) -> None:
        users, items = (x.detach().clone() for x in vectors)
        row = {"epoch": epoch} | facts
        for part, drawn in self.program.drawn.items():
            hr, ndcg = self.program.rates((users, items), part, drawn)
            row |= {f"{part}_hr": hr, f"{part}_ndcg": ndcg}
        if row["test_hr"] > max((other["test_hr"] for other in self.rows), default=0):
            self.best = users, items
        self.rows.append(row)
        print(row, flush=True)

    def summary(self) -> dict[str, Any]:
        """The curve, its best epochs, and what the protocol changes at the best one on test."""
        assert self.best is not None, "No epoch was evaluated: set --every at most --epochs"
        program = self.program
        draws = [program.rates(self.best, "test", program.draw("test", seed)) for seed in range(100, 105)]
        known = np.unique(np.concatenate([pairs[:, 1] for pairs in program.pairs.values()]))
        return {
            "best_on_test": max(self.rows, key=lambda row: row["test_hr"]),
            "best_on_validation": max(self.rows, key=lambda row: row["val_ndcg"]),
            "other_draws": draws,
            "whole_catalogue": program.whole_catalogue(self.best),
            "tied": program.tied(self.best),
            "items_with_interactions": program.rates(self.best, "test", program.draw("test", 100, known)),
            "curve": self.rows,
        }


def train_released(program: Program, arguments: argparse.Namespace, curve: Curve) -> None:
    """Train the released graph without features, with its batches: users in a fixed order, with all their items."""
    seed_torch(arguments.seed, "released")
    rng = np.random.default_rng(arguments.seed)
    fed = torch.zeros(1, 1, dtype=torch.int64)
    made, _ = imitation(fed for _ in range(3))
    sys.modules["tensorflow"] = made
    vars(made).update(SparseTensor=both_ways, sparse_tensor_dense_matmul=Times.apply)
    theirs = load("diffnet").diffnet(program.conf)
    del sys.modules["tensorflow"]  # torch's optimisers ask for it
    data = load("DataModule").DataModule(program.conf, program.train_file)
    data.readData()
    data.arrangePositiveData()
    theirs.inputSupply(data.prepareModelSupplement(theirs))
    theirs.convertDistribution = lambda x: x.new_zeros(len(x), 1)  # no features
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "none.npy"
        np.save(path, np.zeros((1, 1)))
        program.conf.user_review_vector_matrix = program.conf.item_review_vector_matrix = str(path)
        theirs.initializeNodes()
    optimizer = torch.optim.Adam([theirs.user_embedding, theirs.item_embedding], program.conf.learning_rate)
    end = time.monotonic() + 60 * arguments.minutes
    for epoch in range(1, arguments.epochs + 1):
        losses = []
        for users, items, labels in released_batches(program, rng):
            theirs.user_input, theirs.item_input, theirs.labels_input = users, items, labels
            theirs.constructTrainGraph()
            optimizer.zero_grad()
            theirs.loss.backward()
            optimizer.step()
            losses.append(float(theirs.loss.detach()))
        if epoch % curve.every == 0:
            curve.add(epoch, (theirs.final_user_embedding, theirs.final_item_embedding), loss=float(np.mean(losses)))
        if time.monotonic() > end:
            break


def both_ways(indices: Any, values: Any, dense_shape: Any) -> tuple[Tensor, Tensor]:
    """A sparse matrix and its transpose."""
    matrix = sparse.csr_array((values, indices.T), tuple(dense_shape))
    with warnings.catch_warnings():  # torch warns that its CSR support is in beta
        warnings.simplefilter("ignore", UserWarning)
        first, second = (
            torch.sparse_csr_tensor(
                torch.as_tensor(x.indptr), torch.as_tensor(x.indices), torch.as_tensor(x.data), x.shape
            )
            for x in (matrix, matrix.T.tocsr())
        )
    return first, second


class Times(torch.autograd.Function):
    """A constant sparse matrix times a matrix; the imitation's operation takes ten times as long."""

    @staticmethod
    def forward(ctx: Any, matrices: tuple[Tensor, Tensor], x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.transpose = matrices[1]
        return matrices[0] @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, ctx.transpose @ grad


def released_batches(program: Program, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(n, 1) users, items and labels of each batch of an epoch; a user's negatives are a set."""
    pairs, conf = program.pairs["train"], program.conf
    owners = pairs[:, 0].repeat(conf.num_negatives)
    drawn = draw_negatives(owners, program.keys["train"], conf.num_items, rng)
    negatives = np.stack(np.divmod(distinct(owners * conf.num_items + drawn), conf.num_items), axis=1)
    samples = np.concatenate((pairs, negatives))
    labels = (np.arange(len(samples)) < len(pairs)).astype(np.float32)
    order = samples[:, 0].argsort(kind="stable")
    samples, labels = samples[order], labels[order]
    users = distinct(pairs[:, 0])
    starts = np.searchsorted(samples[:, 0], users[:: conf.training_batch_size])
    for first, last in zip(starts, [*starts[1:], len(samples)], strict=True):
        batch = torch.from_numpy(samples[first:last])
        yield batch[:, :1], batch[:, 1:], torch.from_numpy(labels[first:last, None])


def train_ours(arguments: argparse.Namespace, curve: Curve) -> None:
    """Train our model on the same split, and place its vectors in the released numbering."""
    program = curve.program

    class Evaluate:
        def on_validation(self, event: Any) -> None:
            with torch.no_grad():
                own_users, own_items = event.model.vectors()
            # One more column makes the score of the 964 items without any interaction, which we lack, the lowest.
            all_users = torch.cat((own_users, torch.ones(len(own_users), 1)), dim=1)
            all_items = torch.zeros(program.conf.num_items, all_users.shape[1])
            all_items[:, -1] = -1e4
            all_items[program.items] = torch.cat((own_items, torch.zeros(len(own_items), 1)), dim=1)
            order = program.users.argsort()
            curve.add(event.epoch, (all_users[order], all_items), loss=event.loss, validation=event.metrics)

    options = {"epochs": arguments.epochs, "validate_every": curve.every, "patience": 10**6, "precision": "fp32"}
    options |= rd.config.parse_settings(arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        rd.train(
            arguments.train,
            program.split,
            Path(folder) / "run",
            preset=arguments.preset,
            config=options,
            seed=arguments.seed,
            callbacks=[Evaluate()],
            max_minutes=arguments.minutes,
        )


if __name__ == "__main__":
    main()
