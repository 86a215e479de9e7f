"""The training loop of every model; read it from top to bottom.

Accelerate handles devices, processes and trackers. The loop adds exact resuming, selection by one named validation
metric, and errors that say what to try.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from rediffuse import distributed
from rediffuse.data.histories import Histories
from rediffuse.data.split import TrainingView
from rediffuse.errors import RediffuseWarning, RunError, TrainingError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.evaluation.selection import SubsetValidation
from rediffuse.files import atomic_write_bytes, writing
from rediffuse.memory import keep_freed_memory
from rediffuse.models.base import Model, TrainingData
from rediffuse.runs.run_folder import LOG
from rediffuse.runs.tensors import load_tensors, load_weights, save_tensors
from rediffuse.seeds import derive, seed_torch
from rediffuse.training.checkpoint import load_training, restore_optimizer, save_training
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.precision import autocast, resolve_precision
from rediffuse.training.progress import Progress

# Within a long epoch, a checkpoint is written at this interval.
CHECKPOINT_SECONDS = 300.0
VALIDATION_METRICS = ("hr@10", "ndcg@10", "recall@20", "mrr@10")


@dataclass
class State:
    """The progress of training, saved in every checkpoint. Everything else follows from it and the seed."""

    phase: int = 0
    epoch: int = 0  # epochs completed in this phase
    step: int = 0  # steps completed in this epoch
    loss_sum: float = 0.0  # over these steps
    best: float | None = None  # best value of the selection metric in this phase
    best_epoch: int = 0
    stale: int = 0  # validations since the best one
    seconds: float = 0.0  # training time over all sessions
    precision: str = ""
    log_bytes: int | None = None  # size of metrics.jsonl at the checkpoint
    log_sha256: str = ""  # checksum of these bytes
    done: bool = False  # whether all phases are finished; never true in a checkpoint


class Trainer:
    """Trains one model in one run folder.

    Args:
        model: new, with seeded weights.
        view: the training and validation subsets; the test subset cannot be reached from it.
        folder: the run folder; checkpoints and metrics.jsonl are written there.
        seed: seed of the run.
        user_ids: names users in errors.
        max_minutes: limit of the wall time over all sessions.
        tracker: a tracker of Accelerate, for example "tensorboard".
        show_progress: draw a progress bar on stderr.
        on_validation: called with (epoch, value of the selection metric) after each validation of the last phase, once
            the epoch is logged and saved. An exception that it raises ends training and is passed on by `run`.
        steps: phase -> optimiser steps, which replace its number of epochs; whole epochs are trained, at least one.
    """

    def __init__(
        self,
        model: Model,
        view: TrainingView,
        folder: Path,
        *,
        seed: int,
        user_ids: pl.Series,
        max_minutes: float | None = None,
        tracker: str | None = None,
        show_progress: bool = False,
        on_validation: Callable[[int, float], None] | None = None,
        steps: dict[str, int] | None = None,
    ) -> None:
        # A phase, a batch or an option can leave weights without a gradient. Buffers are functions of the weights, the
        # data and values that all ranks share, so they agree without a broadcast at every step.
        ddp_options = DistributedDataParallelKwargs(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        self.accelerator = Accelerator(
            cpu=distributed.cpu_only(), log_with=tracker, project_dir=str(folder), kwargs_handlers=[ddp_options]
        )
        self.model, self.view, self.folder, self.seed = model, view, folder, seed
        self.phases = model.phases if model.trained_by_gradient else ()
        self.config = model.config
        self.user_ids = user_ids
        self.max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.last_path = folder / "checkpoints" / "last.safetensors"  # the last checkpoint
        self.best_path = folder / "checkpoints" / "best.safetensors"  # the weights with the best validation metric
        self.log_file = folder / LOG
        self.progress = Progress(show_progress and self.accelerator.is_main_process)
        train = view.train if model.reads_synthetic else view.train.without_synthetic()
        self.data = TrainingData(
            train,
            view.num_users,
            view.num_items,
            view.valid.popularity,
            view.item_table,
            view.user_table,
            view.social,
            view.kg,
            seed,
            view.has_timestamps,
        )
        model.check(self.data)
        self.state = State(precision=resolve_precision(self.config.precision, self.accelerator.device))
        self.optimizer_state: dict[int, dict[str, torch.Tensor]] = {}
        self.tracked = tracker is not None
        self.on_validation = on_validation
        self.steps = steps or {}

    def take_phase(self, phase: str, trained: Model) -> None:
        """Skip a phase: copy the weights of ``trained`` into the model's component of that name."""
        getattr(self.model, phase).load_state_dict(trained.state_dict())
        self.phases = tuple(other for other in self.phases if other != phase)

    # --- phases, epochs and steps --------------------------------------------------------------------------

    def run(self, resume: bool) -> State:
        """Train until the epochs, the patience or the time run out; the model then has the best weights.

        Raises:
            TrainingError: the loss is not finite, or there is nothing to train on.
            RunError: with ``resume``, the checkpoint is damaged or does not fit the model.
            StorageError: the folder cannot be written.
        """
        with torch.random.fork_rng(), keep_freed_memory(), self.progress, self._tracking():
            self.model.to(self.accelerator.device)
            seed_torch(self.seed, "fit")
            self.model.fit(self.data)
            if resume:
                self._restore()
            self.started = time.monotonic() - self.state.seconds
            for index in range(self.state.phase, len(self.phases)):
                if not self._train_phase(index, self.phases[index]):
                    break
            else:
                self.state.done = True
            self._load_best()
            self.state.seconds = time.monotonic() - self.started
        return self.state

    @contextlib.contextmanager
    def _tracking(self) -> Iterator[None]:
        if self.tracked:
            self.accelerator.init_trackers("rediffuse", config=_flat(self.config.model_dump()))
        try:
            yield
        finally:
            # Not Accelerator.end_training, which also destroys the process group.
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _train_phase(self, index: int, phase: str) -> bool:
        """Train all epochs of a phase; False if the time ran out."""
        state = self.state
        if state.phase != index:
            self._load_best()
            self.state = state = State(phase=index, seconds=state.seconds, precision=state.precision)
            # This phase replaces the best weights of the previous one, which a resumed run must not need any more.
            self._save(None)
        self.model.begin_phase(phase, self.data)
        self.config = self.model.training_options(phase)
        optimizer = Optimizer(self.model.parameter_groups(), self.config.learning_rate, self.config.weight_decay)
        if self.optimizer_state:
            restore_optimizer(optimizer, self.optimizer_state)
            self.optimizer_state = {}
        with warnings.catch_warnings():
            # torch 2.13 renames the option to forward_sync_buffers, which Accelerate does not support yet.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            network, stepper = self.accelerator.prepare(self.model, optimizer)
        last_saved = time.monotonic()
        epochs = self._epochs(phase)
        self.progress.start(phase, epochs)
        while state.epoch < epochs and state.stale < self.config.patience:
            rng = np.random.default_rng(derive(self.seed, phase, state.epoch, "order"))
            batches = self.model.batches(self.data, rng)
            if not len(batches):
                raise TrainingError(
                    "There is nothing to train on.",
                    "Every training history has fewer than two interactions: use more data, or another split.",
                )
            rate = self.config.learning_rate
            if self.config.learning_rate_decay_every:
                rate *= 0.1 ** (state.epoch // self.config.learning_rate_decay_every)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("learning_rate_factor", 1.0)
            self.model.train()
            epoch_start = time.monotonic()
            while state.step < len(batches):
                state.loss_sum += self._step(network, stepper, batches, phase)
                state.step += 1
                self.progress.step(state.epoch, state.step, len(batches), state.loss_sum / state.step, state.best)
                if self._out_of_time():
                    self._save(optimizer)
                    return False
                if time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                    self._save(optimizer)
                    last_saved = time.monotonic()
            record: dict[str, Any] = {
                "phase": phase,
                "epoch": state.epoch + 1,
                "steps": state.step,
                "loss": state.loss_sum / state.step,
                "learning_rate": rate,
                "seconds": time.monotonic() - epoch_start,
            }
            state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
            validates = state.epoch % self.config.validate_every == 0 or state.epoch == epochs
            if validates and self.model.chosen_by_ranking(phase):
                record["validation"] = self._validate_and_select()
            self._log(record)
            self._save(optimizer)
            last_saved = time.monotonic()
            is_last_phase = index == len(self.phases) - 1
            if self.on_validation is not None and is_last_phase and (metrics := record.get("validation")):
                self.on_validation(state.epoch, metrics[self.config.metric])
            if self._out_of_time():
                return False
        return True

    def _epochs(self, phase: str) -> int:
        """How many epochs of a phase to train at most."""
        if phase not in self.steps:
            return self.config.epochs
        rng = np.random.default_rng(derive(self.seed, phase, 0, "order"))
        return max(1, round(self.steps[phase] / max(len(self.model.batches(self.data, rng)), 1)))

    def _step(self, network: Any, stepper: Any, batches: Any, phase: str) -> float:
        """One optimiser step; returns its loss."""
        state, accelerator = self.state, self.accelerator
        seed_torch(self.seed, phase, state.epoch, state.step, accelerator.process_index)
        batch = batches.get(state.step, accelerator.process_index, accelerator.num_processes)
        with autocast(state.precision, accelerator.device):
            loss = network(batch.to(accelerator.device))
        value = distributed.all_reduce_mean(float(loss.detach()))
        if not math.isfinite(value):
            users = self.user_ids.gather(batches.users(state.step)[:5]).to_list()
            raise TrainingError(
                f"The loss is {value} at step {state.step + 1} of epoch {state.epoch + 1}, in a batch with users "
                f"{', '.join(map(str, users))}, ...",
                "Try a lower learning_rate, clip_norm=1.0, or precision=fp32. The last checkpoint is kept.",
            )
        accelerator.backward(loss)
        if self.config.clip_norm is not None:
            accelerator.clip_grad_norm_(network.parameters(), self.config.clip_norm)
        stepper.step()
        stepper.zero_grad()
        return value

    def _out_of_time(self) -> bool:
        self.state.seconds = time.monotonic() - self.started
        return self.max_seconds < math.inf and distributed.any_rank(self.state.seconds > self.max_seconds)

    # --- selection -----------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Metrics on the validation subset, with seen items kept and with seen items filtered ("/unseen")."""
        self.model.eval()
        self.model.prepare()
        metrics = dict.fromkeys((*VALIDATION_METRICS, self.config.metric.removesuffix("/unseen")))
        result = evaluate_task(
            model_scores(self.model, self.view.valid, self.seed),
            self.view.valid,
            num_items=self.view.num_items,
            metrics=list(metrics),
            shared=True,
        )
        values = {name: float(value) for name, value in result.metrics["all"].items()}
        return values | {f"{name}/unseen": float(value) for name, value in result.metrics["unseen"].items()}

    def _validate_and_select(self) -> dict[str, float] | None:
        """Validate, and save the weights if they are the best of this phase; None without a validation subset."""
        if not len(self.view.valid.users):
            return None
        state, metrics = self.state, self.validate()
        value = metrics[self.config.metric]
        if state.best is None or value > state.best:
            state.best, state.best_epoch, state.stale = value, state.epoch, 0
            # Written before the checkpoint: after a kill between the two, the epoch is repeated and written again.
            if self.accelerator.is_main_process:
                save_tensors(self.best_path, self.model.state_dict(), {"epoch": state.epoch})
        else:
            state.stale += 1
        return metrics

    def _load_best(self) -> None:
        """Load the best weights of this phase, if it was validated, and prepare the model for scoring."""
        self.accelerator.wait_for_everyone()  # until the main process has written the file
        if self.state.best is not None:
            load_weights(self.best_path, self.model, load_tensors(self.best_path)[0])
        self.accelerator.wait_for_everyone()  # until all processes have read it
        self.model.eval()
        self.model.prepare()

    def calibrate(self) -> dict[str, Any]:
        """Let the model choose settings on validation data; returns its choices (see `Model.calibrate`)."""
        if not len(self.view.valid.users):
            if type(self.model).calibrate is not Model.calibrate:
                warnings.warn(
                    f"This split has no validation subset, so {self.model.name} keeps its usual settings. With one, it "
                    "would choose.",
                    RediffuseWarning,
                    stacklevel=3,
                )
            return {}
        task, metric = self.view.valid, self.config.metric
        return self.model.calibrate(
            SubsetValidation(task, metric, self.view.num_items, lambda: self.validate()[metric])
        )

    def refit(self, histories: Histories) -> None:
        """Learn again what `Model.refits` names, with the options that were chosen on validation data.

        Args:
            histories: the training and validation interactions, one row per user.
        """
        if not self.model.reads_synthetic:
            histories = histories.without_synthetic()
        own = histories.without_synthetic()
        popularity = np.bincount(own.items, minlength=self.view.num_items)
        self.data = replace(self.data, train=histories, popularity=popularity)
        seed_torch(self.seed, "fit")
        self.model.refit(self.data)
        self.model.eval()
        self.model.prepare()

    # --- checkpoints and the log ---------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.state.seconds = time.monotonic() - self.started
        if self.accelerator.is_main_process:
            log = self.log_file.read_bytes() if self.log_file.exists() else b""
            self.state.log_bytes, self.state.log_sha256 = len(log), hashlib.sha256(log).hexdigest()
            save_training(self.last_path, self.model, optimizer, vars(self.state))

    def _restore(self) -> None:
        if not self.last_path.exists():  # killed before the first checkpoint: start again
            if self.accelerator.is_main_process:
                self.log_file.unlink(missing_ok=True)
            return
        self.optimizer_state, progress = load_training(self.last_path, self.model)
        try:
            self.state = State(**progress)
        except TypeError:
            problem = f"{self.last_path} was written by another version of Rediffuse."
            raise RunError(problem, "Resume with the version that wrote it.") from None
        if self.state.best is not None:
            load_tensors(self.best_path)  # reports damage now, not after the last epoch
        if self.accelerator.is_main_process and self.log_file.exists() and self.state.log_bytes is not None:
            # Lines after the checkpoint are dropped: their epochs are repeated.
            log = self.log_file.read_bytes()[: self.state.log_bytes]
            if hashlib.sha256(log).hexdigest() != self.state.log_sha256:
                raise RunError(
                    f"{self.log_file} is damaged: its checksum is not the one in the last checkpoint.",
                    "Restore it from a copy; or remove it, to continue without the record of earlier epochs.",
                )
            atomic_write_bytes(self.log_file, log)

    def _log(self, record: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        with writing(self.log_file), self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.tracked:
            values = {"loss": record["loss"], **(record.get("validation") or {})}
            self.accelerator.log(values, step=record["epoch"])


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Options in the types that trackers accept."""
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in config.items()
    }
