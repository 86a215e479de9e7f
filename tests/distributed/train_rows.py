"""Trains tables with sparse gradients in all processes of a launch: ``train_rows.py FOLDER``.

Two tables and a dense layer, step by step, beside the same steps in one process; then SASRec by `rd.train`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.distributed.train_all import ROWS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rediffuse as rd
from rediffuse import distributed
from rediffuse.losses import Draws
from rediffuse.testing import synthetic_interactions
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.row_gradients import exchange_rows, exclude_tables

ITEMS, WIDTH, STEPS = 500, 8, 6
SASREC = {**ROWS, "embedding_size": 16, "batch_size": 59, "epochs": 2, "blocks": 1, "precision": "fp32", "dropout": 0.0}
CASES = {"plain": {}, "accumulated": {"accumulate": 3}, "averaged": {"ema": 0.9}}


class Two(nn.Module):
    """A table that every row of a batch reads, one that few read, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5 + distributed.rank())  # they differ until process 0 has sent its own
        self.often, self.rarely = (nn.Embedding(ITEMS, WIDTH, sparse=True) for _ in range(2))
        self.linear = nn.Linear(WIDTH, 3)
        self.tied = nn.Embedding(ITEMS, WIDTH, sparse=True)
        self.tied.weight = self.often.weight

    def groups(self) -> list[dict[str, Any]]:
        tables = [self.often.weight, self.rarely.weight]
        return [{"params": list(self.linear.parameters())}, {"params": tables, "rowwise": True}]

    def forward(self, rows: Tensor, few: Tensor) -> Tensor:
        found = self.often(rows)
        if len(few):
            found = torch.cat((found, self.rarely(few)))
        return (self.linear(found) - 1).square().sum() / 32


def steps(accumulate: int) -> dict[str, Any]:
    """The largest differences to one process, and the bytes that were sent in a step."""
    model, alone = Two(), Two()
    tables = exclude_tables(model, model.groups())
    alone.load_state_dict(model.state_dict())
    optimizers = [Optimizer(each.groups(), 0.01, 0.1) for each in (model, alone)]
    network = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    alone.linear.load_state_dict(model.linear.state_dict())  # DDP has sent these
    sent = {"dense": 0, "rows": 0}
    gather = dist.all_gather

    def counted_gather(received: list[Tensor], own: Tensor, **options: Any) -> Any:
        sent["rows"] += own.nbytes
        return gather(received, own, **options)

    def counted_reduce(state, bucket):
        sent["dense"] += bucket.buffer().nbytes
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

    network.register_comm_hook(None, counted_reduce)
    dist.all_gather = counted_gather
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for step in range(STEPS):
        for part in range(accumulate):
            rows = torch.randint(ITEMS, (41,), generator=generator)
            few = torch.randint(
                ITEMS, (step % 2 * 3,), generator=generator
            )  # none of them, or one process has one more
            alone(rows, few).div(accumulate).backward()
            mine = slice(distributed.rank(), None, 2)
            ends = part == accumulate - 1
            network.require_backward_grad_sync = ends
            network(rows[mine], few[mine]).mul(2 / accumulate).backward()
        exchange_rows(tables)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            worst = max(worst, float((one - other).detach().abs().max()))
    dist.all_gather = gather
    return {"worst": worst, "sent": {name: count / STEPS for name, count in sent.items()}, "rank": states(model)}


def states(model: nn.Module) -> bool:
    """Whether the weights are the same to the bit in all processes."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    other = flat.clone()
    distributed.broadcast(other)
    return not distributed.any_rank(not torch.equal(flat, other))


def main(out: Path) -> None:
    distributed.init()
    if distributed.world_size() > 1:
        found = {f"{accumulate}": steps(accumulate) for accumulate in (1, 3)}
        if distributed.rank() == 0:
            (out / "steps.json").write_text(json.dumps(found))
    Draws.draw = lambda self, count: torch.arange(count) % len(self.sums)
    split = rd.split.leave_one_out(synthetic_interactions())
    for name, options in CASES.items():
        rd.train("sasrec", split, out / name, config=SASREC | options, seed=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
