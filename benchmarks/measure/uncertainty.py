"""Measure whether an uncertainty says which lists are right: draws of the sampler, seed ensembles, dropout, and scores.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.measure.uncertainty
    python -m benchmarks.measure.uncertainty_figure

Trains DiffuRec and DiffRec with several seeds, and DiffuRec's ablation (no diffusion) with one, unless the runs are
there. The lists are those of seed 0: one draw, ten items, seen ones filtered. A source of uncertainty makes further
draws: the sampler with other noise; the models of the other seeds; passes with dropout on. From its draws follow three
confidences in a list: agreement, the mean over its items of the share of draws with the item in their ten; first item,
the share of draws that rank the list's first item first; and deviation, minus the mean standard deviation of the scores
of its items, which `recommend --samples` reports. The floors need one pass: what the model's own scores state of the
list and of its first item, as a softmax or as parts of their sum; and the length of the history, shorter or longer as
validation says.

Each confidence is judged by the one item that followed: area under the ROC curve of hits; area under the
risk-coverage curve (AURC), with risk 1 - NDCG@10; expected calibration error of those that state a probability, before
and after an isotonic recalibration that is fitted on the validation subset. Intervals are over users, by bootstrap.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from benchmarks.tables import compare
from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Task
from rediffuse.evaluation.confidence import area_under_risk_coverage as aurc
from rediffuse.evaluation.confidence import calibration_error, mean_of_the_surest, reliability
from rediffuse.evaluation.rank import block_of_users, cells
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_run
from rediffuse.seeds import derive, seed_torch
from rediffuse.topk import exact_top_k

K = 10
METRIC = f"ndcg@{K}/unseen"
ROUNDS, COVERAGES = 1000, 20
SCORE, SHORTER, LONGER = "score, list", "shorter history", "longer history"


@dataclass(frozen=True)
class Measure:
    """How a model is measured.

    Attributes:
        ensemble: train it with several seeds.
        epochs: at most; the same for all models of a comparison, where training does not stop early before.
        options: those that scoring alone reads. DiffRec draws nothing by default.
    """

    ensemble: bool
    epochs: int
    options: dict[str, Any]


MODELS = {
    "diffurec": Measure(True, 20, {}),
    "diffurec-ablation": Measure(False, 20, {}),
    "diffrec": Measure(True, 1000, {"noising_steps": 5, "sampling_noise": True}),
}
Values = NDArray[np.float64]
Scorer = Callable[[Histories, NDArray[np.int64]], Tensor]


# --- draws -----------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What is known of the lists of one model for n users.

    Attributes:
        hits: (n, K) whether each item of the list is the true one.
        confidences: (n,) each, higher is surer.
        shares: (n, K) each, by the names of those confidences that state probabilities: what they state of each item.
        means: (n,) each, NDCG of the lists by the mean scores of a source.
    """

    hits: NDArray[np.bool_]
    confidences: dict[str, Values]
    shares: dict[str, Values]
    means: dict[str, Values]

    @property
    def hit(self) -> Values:
        return self.hits.any(1).astype(np.float64)

    @property
    def ndcg(self) -> Values:
        return ndcg(self.hits)


def ndcg(hits: NDArray[np.bool_]) -> Values:
    """(n,) NDCG of lists (n, K) for one true item each."""
    return np.sum(hits / np.log2(np.arange(2, hits.shape[1] + 2)), axis=1)


def sampled(model: Model, sampling: Sampling, histories: Histories, users: NDArray[np.int64]) -> Tensor:
    return model.score(histories, users=users, sampling=sampling).clone()


def with_dropout(model: Model, number: int, histories: Histories, users: NDArray[np.int64]) -> Tensor:
    """Scores of a pass with dropout as in training (Gal & Ghahramani, ICML 2016), and the noise of the plain lists."""
    seed_torch(0, "dropout", number, int(users[0]))
    model.train()
    try:
        return sampled(model, Sampling(), histories, users)
    finally:
        model.eval()


def sources_of(models: list[Model], draws: int) -> dict[str, list[Scorer]]:
    """The draws of each source of uncertainty of the first model."""
    model = models[0]
    seeds = [derive(0, "sample", draw) for draw in range(1, draws + 1)]
    found: dict[str, list[Scorer]] = {}
    if model.stochastic:
        found[f"{draws} samples"] = [partial(sampled, model, Sampling(seed)) for seed in seeds]
        if (most := model.max_sampling_steps) and model.network_passes(Sampling()) < most:
            name = f"{draws} samples of {most} steps"
            found[name] = [partial(sampled, model, Sampling(seed, sampling_steps=most)) for seed in seeds]
    passes: list[Scorer] = [partial(with_dropout, model, number) for number in range(draws)]
    found[f"{draws} dropout passes"] = passes
    if others := models[1:]:
        found[f"{len(others)} dropout passes"] = passes[: len(others)]
        found[f"{len(others)} other seeds"] = [partial(sampled, other, Sampling()) for other in others]
    return found


def measure(model: Model, sources: dict[str, list[Scorer]], task: Task) -> Measured:
    """Make the lists of a model and all draws, one block of users at a time."""
    blocks: list[Measured] = []
    size = block_of_users(model.num_items)
    for start in range(0, len(task.users), size):
        some = task.take(np.arange(start, min(start + size, len(task.users))))
        blocks.append(measure_block(model, sources, some))

    def joined(parts: list[dict[str, Values]]) -> dict[str, Values]:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return Measured(
        np.concatenate([block.hits for block in blocks]),
        *(joined([getattr(block, name) for block in blocks]) for name in ("confidences", "shares", "means")),
    )


@torch.inference_mode()
def measure_block(model: Model, sources: dict[str, list[Scorer]], task: Task) -> Measured:
    true = torch.from_numpy(task.truth.items.astype(np.int64))[:, None]
    if len(true) != len(task.users):
        raise SystemExit("This benchmark needs one true item per user, as in leave-one-out.")
    seen = cells(task.seen or task.histories, torch.device("cpu"))

    def unseen(scorer: Scorer) -> Tensor:
        return scorer(task.histories, task.users).index_put(seen, torch.tensor(-torch.inf))

    plain = unseen(partial(sampled, model, Sampling()))
    items = exact_top_k(plain, K)[1]
    logits = model.scores_are_logits
    stated = (plain.softmax(1) if logits else normalize(plain.clamp(min=0), p=1, dim=1)).gather(1, items)
    confidences = {SCORE: stated.sum(1), "score, first item": stated[:, 0]}
    confidences["score, margin of the first"] = stated[:, 0] - stated[:, 1]
    shares, means = {SCORE: stated}, {"one draw": items == true}
    for name, scorers in sources.items():
        total, in_list, first, of_list = plain.clone(), torch.zeros_like(stated), torch.zeros(len(items)), []
        for scorer in scorers:
            drawn = unseen(scorer)
            theirs = exact_top_k(drawn, K)[1]
            in_list += (items[:, :, None] == theirs[:, None]).any(2)
            first += items[:, 0] == theirs[:, 0]
            of_list.append(drawn.gather(1, items))
            total += drawn
        shares[f"{name}, agreement"] = in_list / len(scorers)
        confidences[f"{name}, agreement"] = shares[f"{name}, agreement"].mean(1)
        confidences[f"{name}, first item"] = first / len(scorers)
        confidences[f"{name}, deviation"] = -torch.stack(of_list).std(0).mean(1)
        means[name] = exact_top_k(total, K)[1] == true
    confidences[LONGER] = torch.from_numpy(task.histories.lengths)
    return Measured(
        hits=(items == true).numpy(),
        confidences={name: each.double().numpy() for name, each in confidences.items()},
        shares={name: each.double().numpy() for name, each in shares.items()},
        means={name: ndcg(each.numpy()) for name, each in means.items()},
    )


# --- result ----------------------------------------------------------------------------------------------------


def summary(valid: Measured, test: Measured) -> list[dict[str, Any]]:
    """What each confidence is worth on the test subset."""
    risk, rng = 1 - test.ndcg, np.random.default_rng(0)
    longer, shorter = (aurc(sign * valid.confidences[LONGER], 1 - valid.ndcg) for sign in (1, -1))
    if shorter < longer:
        for subset in (valid, test):
            subset.confidences[SHORTER] = -subset.confidences.pop(LONGER)
    history = SHORTER if shorter < longer else LONGER
    drawn = [np.arange(len(risk)), *rng.integers(len(risk), size=(ROUNDS, len(risk)))]
    # Of all users, and then of each draw of users.
    areas = {
        name: np.asarray([aurc(values[of], risk[of]) for of in drawn]) for name, values in test.confidences.items()
    }
    best = aurc(-risk, risk)
    rows = []
    for name, values in test.confidences.items():
        area, probability = areas[name][0], recalibrated(valid.confidences[name], valid.hit, values)
        curve, kept = mean_of_the_surest(values, test.ndcg), np.linspace(1 / COVERAGES, 1, COVERAGES)
        row: dict[str, Any] = {
            "confidence": name,
            "auroc": float(roc_auc_score(test.hit, values)),
            "aurc": interval(areas[name]),
            "aurc_less_history": interval(areas[name] - areas[history]),
            "aurc_less_score": interval(areas[name] - areas[SCORE]),
            "of_the_oracle": (risk.mean() - area) / (risk.mean() - best),
            "coverage": kept.tolist(),
            "ndcg_of_the_surest": curve[np.ceil(kept * len(curve)).astype(int) - 1].tolist(),
            "ece_recalibrated": calibration_error(probability, test.hit),
            "ece_if_calibrated": calibration_error(probability, rng.random(len(risk)) < probability),
            "recalibrated": reliability(probability, test.hit),
        }
        if name in test.shares:
            items = test.shares[name].ravel(), test.hits.ravel().astype(np.float64)
            row |= {"ece": calibration_error(values, test.hit), "reliability": reliability(values, test.hit)}
            row |= {"item_ece": calibration_error(*items), "item_reliability": reliability(*items)}
        rows.append(row)
    return rows


def recalibrated(valid: Values, came_true: Values, test: Values) -> Values:
    """Probabilities of ``test``, by an increasing function that is fitted to what came true of ``valid``."""
    return IsotonicRegression(out_of_bounds="clip").fit(valid, came_true).predict(test)


def interval(values: Values) -> list[float]:
    """The first value, of all users, and the ends of the 95 % interval of the others, of draws of users."""
    return [float(values[0]), *np.quantile(values[1:], (0.025, 0.975)).tolist()]


def table(found: dict[str, Any]) -> str:
    """The confidences of a model as Markdown; AURC and NDCG in per cent."""

    def difference(row: dict[str, Any], other: str) -> str:
        value, low, high = (100 * each for each in row[other])
        return f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if value else ""

    lines = [
        "| Confidence | AUROC | AURC | − history | − score | Quarter | ECE |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["confidences"]:
        cells = [row["confidence"], f"{row['auroc']:.2f}", f"{100 * row['aurc'][0]:.1f}"]
        cells += [difference(row, "aurc_less_history"), difference(row, "aurc_less_score")]
        cells += [f"{100 * row['ndcg_of_the_surest'][COVERAGES // 4 - 1]:.1f}"]
        cells += [f"{row['ece']:.2f}" if "ece" in row else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--split", default="leave-one-out")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=4, help="models of an ensemble, at least 3")
    parser.add_argument("--draws", type=int, default=10, help="samples, and passes with dropout")
    parser.add_argument("--runs", type=Path, default=Path("runs/uncertainty"))
    parser.add_argument("--out", type=Path, help="result file; default: results/uncertainty-DATA.json")
    arguments = parser.parse_args()
    split = rd.split.by_name(arguments.split, public_dataset(arguments.data))
    folder = arguments.runs / f"{arguments.data}-{split.name}"
    found: dict[str, Any] = {}
    for name in arguments.models:
        how = MODELS[name]
        seeds = range(arguments.seeds if how.ensemble else 1)
        for seed in seeds:
            compare.train(name, split, folder, seed, 60, how.epochs, METRIC)
        runs = [read_run(folder / f"{name}-{seed}") for seed in seeds]
        for run in runs:
            run.model.config = run.model.config.model_copy(update=how.options)
        models = [run.model for run in runs]
        sources = sources_of(models, arguments.draws)
        valid, test = (measure(models[0], sources, split.task(subset).with_history()) for subset in ("valid", "test"))
        risk = 1 - test.ndcg
        found[name] = {
            "options_of_scoring": how.options,
            "best_epochs": [run.config["training"]["best_epoch"] for run in runs],
            "minutes": [run.config["training"]["minutes"] for run in runs],
            "training_precision": runs[0].config["training"]["precision"],
            "sampling_steps": models[0].network_passes(Sampling()),
            "users": len(risk),
            f"hr@{K}": float(test.hit.mean()),
            f"ndcg@{K}": {source: float(values.mean()) for source, values in test.means.items()},
            "aurc_random": float(risk.mean()),
            "aurc_oracle": aurc(-risk, risk),
            "confidences": summary(valid, test),
        }
        print(f"\n{name}: {json.dumps({key: found[name][key] for key in found[name] if key != 'confidences'})}")
        print(f"\n{table(found[name])}", flush=True)
    content = {"data": arguments.data, "split": split.name, "params": split.params, "seen": "filtered"}
    out = arguments.out or RESULTS / f"uncertainty-{arguments.data}.json"
    write_result(out, content | {"models": found}, precision="fp32", device="cpu")


if __name__ == "__main__":
    main()
