"""Training with an item table that is divided among processes: `train`, for catalogues beyond one memory.

The loop is that of `rediffuse.training.loop`. The item table is a `rediffuse.engines.item_shards.ShardedItemTable`; all
other weights are copied to every process, as usual. The finished run is an ordinary run.
"""

from __future__ import annotations

import functools
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from rediffuse import distributed, training
from rediffuse.batching.sequences import pad_right
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import Split, TrainingView
from rediffuse.data.subsets import Task
from rediffuse.errors import ConfigError, MissingExtraError
from rediffuse.evaluation.rank import Score
from rediffuse.evaluation.shards import rank_task_over_shards
from rediffuse.evaluation.task_evaluation import TaskResult, evaluate_ranking
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import SequenceConfig, SequenceModel
from rediffuse.models.sizes import check_size
from rediffuse.nn.item_table import ItemTable, item_tables_from
from rediffuse.runs.run_folder import Run
from rediffuse.seeds import seed_torch
from rediffuse.training import loop
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.train import trainers_from

MODELS = ("sasrec", "gru4rec", "heatrec", "diffurec")
LOSSES = ("sampled_softmax", "in_batch", "uniform_softmax", "bce", "gbce")
# Rows of the item table that are scored together.
SCORED_ROWS = 1 << 16


def train(
    model: str | type[Model], data: Split | Dataset | str | Path, out: str | Path | None = None, **options: Any
) -> Run:
    """Train a model whose item table is divided among the processes of a launch, and write its run folder.

    Call it in every process of ``torchrun --nproc-per-node N script.py``. But for rounding, the run is that of
    `rediffuse.train` with the same arguments.

    Args:
        model, data, out, options: those of `rediffuse.train`.

    Raises:
        ConfigError: beyond those of `rediffuse.train`: there is one process only; or the model or an option needs the
            whole table in every process.
        MissingExtraError: TorchRec is not installed (extra ``cluster``).
        RunError, StorageError, TrainingError, DataError: as `rediffuse.train`.
    """
    if isinstance(out, str) and "://" in out:
        raise ConfigError(
            f"A sharded item table is saved in a folder that all processes share, and out is {out}.",
            "Name a folder, and upload the finished run.",
        )
    with trainers_from(make_trainer):
        return training.train(model, data, out, **options)


def make_trainer(
    kind: type[Model], options: SequenceConfig, view: TrainingView, folder: Path, *, seed: int, **others: Any
) -> Trainer:
    """As `rediffuse.training.train.make_trainer`, with this process's part of the item table.

    Raises:
        ConfigError, MissingExtraError: as `train`.
    """
    processes = distributed.world_size()
    _check(kind, options, view, processes)
    for package in ("torchrec", "fbgemm_gpu"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "cluster")
    try:
        from rediffuse.engines.item_shards import ShardedItemTable
    except (ImportError, OSError, AttributeError) as error:
        raise ConfigError(
            f"TorchRec is installed and cannot be loaded: {error}.",
            "Install the versions of torch, TorchRec and fbgemm-gpu that belong together: docs/install.md.",
        ) from error
    check_size(kind, options, view.num_items, view.num_users, processes)
    device: Any = PartialState().device
    make = functools.partial(ShardedItemTable, device=device, weight_decay=options.weight_decay)
    with torch.random.fork_rng(), item_tables_from(make):
        seed_torch(seed, "weights")
        network = kind(options, view.num_items, view.num_users)
    return Trainer(network, view, folder, seed=seed, **others)


def _check(kind: type[Model], options: SequenceConfig, view: TrainingView, processes: int) -> None:
    """Refuse what needs the whole item table in one process.

    Raises:
        ConfigError: names it, and what to use in its place.
    """
    if kind.name not in MODELS:
        raise ConfigError(
            f"The item table of {kind.name} cannot be sharded.",
            f"Take one of {', '.join(MODELS)}; or train {kind.name} with rediffuse.train, which copies the table to "
            "every process.",
        )
    if options.loss not in LOSSES:
        raise ConfigError(
            f"loss={options.loss} reads the whole item table, which no process has when it is sharded.",
            f"Set loss to one of {', '.join(LOSSES)}; sampled_softmax is the cheapest.",
        )
    wanted = {"item_optimizer": "rowwise_adagrad", "prior": "none", "ema": None, "accumulate": 1}
    if view.item_features:
        wanted["item_features"] = False
    for name, value in wanted.items():
        if (given := getattr(options, name)) != value:
            raise ConfigError(
                f"A sharded item table does not go with {name}={_text(given)}.", f"Set {name}={_text(value)}."
            )
    if options.embedding_size % 4:
        raise ConfigError(
            f"embedding_size={options.embedding_size} is no multiple of 4, which TorchRec needs.",
            f"Set embedding_size={-(-options.embedding_size // 4) * 4}.",
        )
    if processes == 1:
        raise ConfigError(
            "A sharded item table needs several processes, and there is one.",
            "Start them with torchrun --nproc-per-node N; or train with rediffuse.train.",
        )
    if (processes - 1) * -(-(view.num_items + 1) // processes) >= view.num_items:
        raise ConfigError(
            f"{view.num_items} items cannot be divided among {processes} processes.", "Start fewer processes."
        )


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower()


class Trainer(loop.Trainer):
    """The loop, with what differs where the item table is sharded: evaluation, checkpoints and the finished run."""

    item_table: ClassVar[str | None] = "sharded"
    model: SequenceModel

    @property
    def table(self) -> Any:
        """The `ShardedItemTable` of the model."""
        return self.model.item_embedding

    def take_phase(self, phase: str, trained: Model) -> None:
        self.take_network(trained)

    def take_network(self, trained: Model) -> None:
        raise ConfigError("A sharded item table does not go with phases_from.", "Leave it out.")

    def _step(self, network: Any, stepper: Any, batches: Any, phase: str) -> float:
        assert self.schedule is not None
        self.table.set_rate(self.schedule.rate)
        return super()._step(network, stepper, batches, phase)

    def _call(self, method: str, optimizer: Optimizer | None, **facts: Any) -> None:
        super()._call(method, None, **facts)  # where a callback fails in one process, that one cannot save alone

    # --- evaluation ----------------------------------------------------------------------------------------

    def _evaluate(self, task: Task, metrics: list[str]) -> TaskResult:
        num_items, held = self.view.num_items, self.table.held
        items = range(held.start, min(held.stop, num_items))  # without the padding item
        ranking = rank_task_over_shards(self._scores(task, items), task, num_items=num_items, items=items)
        return evaluate_ranking(ranking, task, num_items=num_items, metrics=metrics)

    @torch.no_grad()
    def _scores(self, task: Task, items: range) -> Score:
        """Scores of this process's ``items``, see `rediffuse.models.base.Model.score`.

        The processes share the passes through the network. No repeat bias and no prior is added: the losses that read
        some items do not train the one, and `_check` refuses the other.
        """
        model, rank, processes = self.model, distributed.rank(), distributed.world_size()
        own_rows, device = self.table.shard[: len(items)], self.table.device

        def score(histories: Histories, start: int) -> Tensor:
            known = np.flatnonzero(histories.lengths > 0)
            mine = np.array_split(np.arange(len(known)), processes)[rank]
            own = histories.take(known[mine])
            queries = torch.zeros(len(known), own_rows.shape[1], device=device)
            self.table.fetch(pad_right(own, model.config.max_length, model.pad)[0].to(device))
            if len(mine):
                queries[mine] = model.query_vectors(own, task.users[start + known[mine]], Sampling(self.seed))
            queries = distributed.all_gather(queries).sum(0)  # zeros but in one of them
            scores = model.fallback[items.start : items.stop].repeat(len(histories), 1)
            for first in range(0, len(items), SCORED_ROWS):  # so that there is no second copy of the rows
                rows = slice(first, first + SCORED_ROWS)
                scores[known, rows] = queries @ model.metric_space(own_rows[rows]).T
            return scores

        return score

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _checkpoint_is_due(self, last_saved: float) -> bool:
        return distributed.any_rank(super()._checkpoint_is_due(last_saved))  # all of them write it

    def _last_table(self) -> Path:
        return self.last_path.with_name(f"table-epoch{self.state.epoch}-step{self.state.step}")

    def _best_table(self) -> Path:
        return self.best_path.with_name(f"best-table-epoch{self.state.best_epoch}")

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        # The file of the other weights comes last: until it is replaced, it belongs to the table before.
        self.table.save(self._last_table())
        super()._save(optimizer)
        self._remove_others("table-*", self._last_table())

    def _save_best(self) -> None:
        self.table.save(self._best_table())
        super()._save_best()
        self._remove_others("best-table-*", self._best_table())

    def _remove_others(self, pattern: str, kept: Path) -> None:
        if self.accelerator.is_main_process:
            for folder in kept.parent.glob(pattern):
                if folder != kept:
                    shutil.rmtree(folder, ignore_errors=True)

    def _restore(self) -> None:
        super()._restore()
        if self.checkpoint is not None:
            self.table.load(self._last_table())

    def _load_best(self) -> None:
        if self.state.best is not None:
            self.table.load(self._best_table())
        super()._load_best()

    # --- the finished run ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Give the model a plain item table, which the main process maps from a file and the others do not have."""
        from rediffuse.engines.shard_files import joined

        table, path = self.table, self.last_path.with_name("whole-table.bin")
        saved = self._best_table() if self.state.best is not None else self._last_table()
        with torch.device("meta"):
            plain = ItemTable(table.rows, table.size)

        def gather() -> None:
            plain.weight = nn.Parameter(joined(saved, "weight", path), requires_grad=False)

        distributed.main_process_first(gather)
        self.model.item_embedding = plain
