"""Run by `test_timesteps`: one of two processes that feed a loss-aware sampler."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from rediffuse.diffusion import timestep_sampler

STEPS, HISTORY = 5, 3
# Per update, the number of losses of rank 0 and of rank 1.
SIZES = [(7, 2), (0, 6), (5, 0), (0, 0), (1, 9), (12, 12)]


def batches(rank):
    generator = torch.Generator().manual_seed(100 + rank)
    return [
        (
            torch.randint(STEPS, (sizes[rank],), generator=generator),
            torch.rand(sizes[rank], generator=generator),
        )
        for sizes in SIZES
    ]


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    sampler = timestep_sampler("lossaware", STEPS, history_per_term=HISTORY)
    states = []  # after every update, because later losses replace those of earlier mistakes
    for t, losses in batches(rank):
        sampler.update(t, losses)
        states.append({name: value.clone() for name, value in sampler.state_dict().items()})
    torch.save(states, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
