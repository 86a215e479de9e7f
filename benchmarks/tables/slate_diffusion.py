"""An experiment: a small diffusion over the concatenated item vectors of a whole list, beside MMR and its ablation.

    OMP_NUM_THREADS=1 python -m benchmarks.tables.slate_diffusion

Takes the GRU4Rec run of `slates.py` (trains it unless it is there). A network learns to denoise the vectors of the next
ten items of a training history, concatenated, given the run's vector of what came before. For a test user it draws ten
vectors together. A list is chosen from the items that the run ranks first, as in re-ranking: the j-th item gains the
cosine with the j-th vector, with the weight ``strength`` against its relevance. The ablation (no diffusion) is the same
network trained to give the ten vectors at once, without noise; MMR by item vectors needs no training. Vectors that are
noise alone are the floor. There is one setting, which was not searched; the whole curve is measured on the test subset.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import rediffuse as rd
from benchmarks.common import out_option, write_result
from benchmarks.tables.slates import METRICS, PLAIN, STRENGTHS, K, Point, summary, table, trained
from rediffuse.data.features import item_features
from rediffuse.data.histories import Histories
from rediffuse.diffusion.process import q_sample
from rediffuse.diffusion.respace import space_timesteps
from rediffuse.diffusion.schedule import NoiseSchedule, noise_schedule
from rediffuse.diffusion.solvers import ddim
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.evaluation.reranked import rerank
from rediffuse.evaluation.task_evaluation import TaskResult, evaluate_ranking
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.nn.time_embedding import sinusoidal_embedding
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.reranking import MarginalRelevance, Reranking, VectorSimilarity, pool_size

STEPS, SAMPLING_STEPS, TIME_SIZE = 100, 20, 64
WINDOWS, BATCH = 20_000, 256
DRAWS = 1


class SlateNetwork(nn.Module):
    """x_t (B, K d), t (B,) and the condition (B, d) -> x0_hat (B, K d)."""

    def __init__(self, width: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width + condition + TIME_SIZE, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.layers(torch.cat((x, condition, sinusoidal_embedding(t, TIME_SIZE)), dim=-1))


class DrawnLists:
    """A slate: the j-th item gains the cosine with the j-th vector of its user.

    Args:
        vectors: (users, K, d), of the users in the order in which lists are begun, again and again.
        items: (num_items, d) of length one.
    """

    def __init__(self, vectors: Tensor, items: Tensor) -> None:
        self.vectors, self.items, self.begun = F.normalize(vectors, dim=-1).numpy(), items.numpy(), 0

    def begin(self, items: NDArray[np.integer], k: int, history: NDArray[np.integer]) -> _Slots:
        own = self.vectors[self.begun % len(self.vectors)]
        self.begun += 1
        return _Slots(own @ self.items[items].T)


class _Slots:
    def __init__(self, cosines: NDArray[np.float32]) -> None:
        self.cosines, self.slot = cosines.astype(np.float64), 0

    def gain(self) -> NDArray[np.float64]:
        return self.cosines[self.slot]

    def add(self, position: int) -> None:
        self.slot += 1


@torch.inference_mode()
def queries(model: Model, histories: Histories) -> Tensor:
    """(n, d) the vectors of histories, of users whom the model does not know."""
    parts = np.array_split(np.arange(len(histories)), -(-len(histories) // 1000))
    return torch.cat(
        [model.query_vectors(histories.take(rows), np.full(len(rows), -1), Sampling()) for rows in parts]
    ).float()


def windows(train: Histories, rng: np.random.Generator) -> tuple[Histories, Tensor]:
    """Beginnings of training histories, and the K items (n, K) that follow each."""
    places = [(user, at) for user, length in enumerate(train.lengths.tolist()) for at in range(1, length - K + 1)]
    chosen = [places[n] for n in rng.permutation(len(places))[:WINDOWS].tolist()]
    rows = [train.row(user).tolist() for user in range(len(train))]
    before = Histories.from_lists([rows[user][:at] for user, at in chosen])
    return before, torch.tensor([rows[user][at : at + K] for user, at in chosen])


def fitted(
    slates: Tensor, conditions: Tensor, schedule: NoiseSchedule | None, hidden: int, updates: int, seed: int
) -> SlateNetwork:
    """The network, trained on slates (n, K d); without a schedule it gets no noise to remove: the ablation."""
    torch.manual_seed(seed)
    network = SlateNetwork(slates.shape[1], conditions.shape[1], hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.randint(len(slates), (BATCH,))
        x0, t = slates[rows], torch.zeros(BATCH, dtype=torch.int64)
        x = torch.zeros_like(x0)
        if schedule is not None:
            t = torch.randint(schedule.steps, (BATCH,))
            x = q_sample(schedule, x0, t, torch.randn_like(x0))
        loss = F.mse_loss(network(x, t, conditions[rows]), x0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return network.eval()


def noise_of(draw: int, rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(draw))


@torch.inference_mode()
def drawn_by(
    network: SlateNetwork, schedule: NoiseSchedule | None, conditions: Tensor, width: int, draw: int
) -> Tensor:
    """(B, width) one draw for each condition (B, d); without a schedule, all draws are the same."""
    if schedule is None:
        return network(torch.zeros(len(conditions), width), torch.zeros(len(conditions)).long(), conditions)
    kept = space_timesteps(STEPS, SAMPLING_STEPS)
    return ddim(lambda x, t: network(x, t, conditions), noise_of(draw, len(conditions), width), schedule, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--runs", type=Path, default=Path("runs/slates"))
    out_option(parser, "slate-diffusion-ml-100k.json")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.leave_one_out(data)
    task, view = split.task("test"), split.training_view()
    model, fact = trained("gru4rec", split, arguments.runs / f"{arguments.data}-gru4rec-0", 0)
    vectors = model.index_vectors()
    assert vectors is not None
    vectors = vectors.detach().float()
    items = F.normalize(vectors, dim=1)
    before, following = windows(view.train, np.random.default_rng(0))
    conditions, wanted = queries(model, before), queries(model, task.histories)
    scale, level = conditions.square().mean().sqrt(), vectors.square().mean().sqrt()
    conditions, wanted = conditions / scale, wanted / scale
    slates = (vectors / level)[following].flatten(1)
    schedule = noise_schedule("cosine", STEPS)

    how = {"num_items": model.num_items, "metrics": METRICS, "features": item_features(data.items)}
    plain = evaluate_task(model_scores(model, task), task, k_list=pool_size(K), **how)

    def curve(method: str, slate: Any) -> list[tuple[Point, TaskResult]]:
        return [
            (
                {"method": method, "strength": strength},
                evaluate_ranking(rerank(plain.ranking, Reranking((), slate, strength), K, task.histories), task, **how),
            )
            for strength in STRENGTHS
        ]

    shape = (len(wanted), K, vectors.shape[1])
    seeds: list[list[tuple[Point, TaskResult]]] = [[({"method": PLAIN}, plain)] for _ in range(DRAWS)]
    mmr = curve("MMR by item vectors", MarginalRelevance(VectorSimilarity(items.numpy())))
    minutes = {}
    for name, process in (("diffusion of the list", schedule), ("ablation (no diffusion)", None)):
        began = time.perf_counter()
        network = fitted(slates, conditions, process, arguments.hidden, arguments.updates, seed=0)
        minutes[name] = (time.perf_counter() - began) / 60
        print(f"{name}: trained", flush=True)
        for draw, points in enumerate(seeds):
            drawn = drawn_by(network, process, wanted, slates.shape[1], draw)
            points += curve(name, DrawnLists(drawn.reshape(shape), items))
    for draw, points in enumerate(seeds):
        points += curve("noise alone", DrawnLists(noise_of(draw, len(wanted), slates.shape[1]).reshape(shape), items))
    points = summary([[*own, *mmr] for own in seeds])
    print(json.dumps(fact | minutes) + "\n\n" + table(points))
    content = {"data": arguments.data, "split": split.name, "params": split.params, "run": fact, "draws": DRAWS}
    content |= {"hidden": arguments.hidden, "updates": arguments.updates, "windows": len(following)}
    content |= {"steps": STEPS, "sampling_steps": SAMPLING_STEPS, "minutes": minutes, "seeds": [0]}
    content |= {"seen": "filtered", "users": len(task.users), "test": points}
    write_result(arguments.out, content, precision="fp32")


if __name__ == "__main__":
    main()
