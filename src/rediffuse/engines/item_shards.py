"""An item table whose rows are divided among the processes: TorchRec's row-wise sharding and fused row-wise Adagrad.

A step exchanges only the rows that it reads. Each process asks for its distinct items, gets their vectors, and in the
backward pass sends their gradients to where the rows are. There they are summed over all processes, and each row is
updated once. The update is that of `rediffuse.training.optimizer`.
"""

# pyright: reportMissingImports=false
# CI has no TorchRec: its packages are made for one version of torch.
from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv

from rediffuse import distributed
from rediffuse.engines.shard_files import load_shards, save_shards
from rediffuse.training.optimizer import ADAGRAD_RATE, EPSILON

# It warns of how TorchRec uses torch.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
# Numbers that are drawn at once when the table is initialised. A multiple of 16: torch then draws what it would draw
# for the whole table.
_DRAWN = 1 << 22


class ShardedItemTable(nn.Module):
    """The part of an item table in this process, with the methods of `rediffuse.nn.item_table.ItemTable` that sequence
    models call. `fetch` is collective.

    Its weights are no parameters of the module: the optimiser, DDP and checkpoints of the model leave them alone.

    Args:
        rows: items, and the padding item, the last.
        size: width of a vector, a multiple of 4.
        sparse: as of `ItemTable`; not used.
        device: where the part is held.
        weight_decay: decoupled; it reaches the rows with a gradient.

    Attributes:
        held: the rows of this process.
        shard: (len(held), d) their vectors.
        row_squares: (len(held),) their sums of squared gradients.
    """

    def __init__(self, rows: int, size: int, *, sparse: bool, device: torch.device, weight_decay: float) -> None:
        super().__init__()
        # `nearby` holds few rows, so their gradient is not sparse, and the table is not in the optimiser.
        self.sparse, self.content = False, None
        self.rows, self.size, self.device = rows, size, device
        group: Any = dist.new_group()  # of its own, so that its messages cannot mix with those of DDP
        table = EmbeddingConfig(name="table", embedding_dim=size, num_embeddings=rows, feature_names=["item"])
        whole = EmbeddingCollection(tables=[table], device=torch.device("meta"))
        adagrad = {
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "eps": EPSILON,
            "weight_decay": weight_decay,
            "weight_decay_mode": WeightDecayMode.DECOUPLE,
        }
        sharder = EmbeddingCollectionSharder(fused_params=adagrad)
        processes = dist.get_world_size()
        plan = construct_module_sharding_plan(
            whole,
            {"table": row_wise(compute_kernel=EmbeddingComputeKernel.FUSED.value)},
            sharder,  # pyright: ignore[reportArgumentType]
            world_size=processes,
            local_size=get_local_size(processes),
            device_type=device.type,
        )
        with torch.random.fork_rng():  # TorchRec draws weights of its own
            sharded = sharder.shard(whole, plan, ShardingEnv.from_process_group(group), device)  # pyright: ignore
        self._lookup = (sharded,)  # in a tuple, so that it is no submodule
        self._mesh = DeviceMesh.from_group(group, device.type)
        self._group = group
        self.shard: Tensor = sharded.state_dict()["embeddings.table.weight"].local_tensor()
        moments = sharded.fused_optimizer.state_dict()["state"]["embeddings.table.weight"]
        self.row_squares: Tensor = moments["table.momentum1"].local_tensor()
        first = dist.get_rank() * -(-rows // processes)
        self.held = range(first, first + len(self.shard))
        self.initialise(1.0)  # as nn.Embedding does, so that the numbers that follow are those of one process

    def initialise(self, std: float) -> None:
        """Draw the whole table, as `ItemTable` does, piece by piece; keep the rows of this process."""
        first, last = self.held.start * self.size, self.held.stop * self.size
        numbers, flat = self.rows * self.size, self.shard.detach().view(-1)
        # The last piece is not short: torch draws fewer than 16 numbers in another way.
        starts = range(0, max(numbers - 15, 1), _DRAWN)
        for start, stop in zip(starts, [*starts[1:], numbers], strict=True):
            drawn = torch.empty(stop - start).normal_(0.0, std)
            low, high = max(start, first), min(stop, last)
            if low < high:
                flat[low - first : high - first] = drawn[low - start : high - start].to(self.device)

    # --- what a step reads ---------------------------------------------------------------------------------

    def fetch(self, *items: Tensor) -> None:
        """Get the vectors of items from all processes, and of the padding item. Collective."""
        padding = torch.tensor([self.rows - 1], device=self.device)
        self.fetched = torch.unique(torch.cat([padding, *(some.flatten() for some in items)]))
        lengths = torch.ones(len(self.fetched), dtype=torch.int32, device=self.device)
        features = KeyedJaggedTensor(keys=["item"], values=self.fetched, lengths=lengths)
        self.vectors: Tensor = self._lookup[0](features)["item"].values()

    def forward(self, items: Tensor) -> Tensor:
        return F.embedding(self._places(items), self.vectors)

    def nearby(self, *items: Tensor) -> tuple[Tensor, ...]:
        return self.vectors, *map(self._places, items)

    def _places(self, items: Tensor) -> Tensor:
        """(...) the rows of ``vectors`` of items (...)."""
        places = torch.searchsorted(self.fetched, items)
        if not torch.equal(self.fetched[places.clamp(max=len(self.fetched) - 1)], items):
            raise RuntimeError("The model reads items that it has not fetched.")  # a fault of the model's program
        return places

    def mean_square(self, count: int, space: Callable[[Tensor], Tensor]) -> float:
        """As of `ItemTable`. Collective."""
        own = space(self.shard[: max(count - self.held.start, 0)].float()).square().sum(dtype=torch.float64)
        return float(distributed.all_gather(own).sum()) / (count * self.size)

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next backward pass, which is the step of this table."""
        optimizer: Any = self._lookup[0].fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * ADAGRAD_RATE
        optimizer.step()  # only hands the rate over

    # --- files ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the table and its sums, see `save_shards`. Collective."""
        save_shards(folder, self._state(), self._group)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, see `load_shards`. Collective."""
        load_shards(folder, self._state(), self._group)

    def _state(self) -> dict[str, DTensor]:
        def whole(part: Tensor, *shape: int) -> DTensor:
            stride = torch.empty(shape, device="meta").stride()
            size = torch.Size(shape)
            return DTensor.from_local(part, self._mesh, [Shard(0)], run_check=False, shape=size, stride=stride)

        return {
            "weight": whole(self.shard.detach(), self.rows, self.size),
            "row_squares": whole(self.row_squares.detach(), self.rows),
        }
