"""The training loop of every model; read it from top to bottom.

Accelerate handles devices and processes. The loop adds exact resuming, selection by one named validation metric, and
errors that say what to try.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from rediffuse import devices, distributed
from rediffuse.config import WITH_HISTORY, selected_value
from rediffuse.data.histories import Histories
from rediffuse.data.split import TrainingView
from rediffuse.data.subsets import Task
from rediffuse.errors import ConfigError, RunError, TrainingError
from rediffuse.evaluation import TaskResult, evaluate_task, model_scores
from rediffuse.evaluation.selection import SubsetValidation
from rediffuse.files import atomic_write_bytes, writing
from rediffuse.memory import keep_freed_memory
from rediffuse.models.base import Batches, Model, TrainingData
from rediffuse.models.placement import move
from rediffuse.runs.run_folder import LOG
from rediffuse.runs.tensors import load_tensors, load_weights, save_tensors
from rediffuse.runs.tracking import Tracking
from rediffuse.seeds import derive, seed_torch
from rediffuse.training.averaging import Averaging
from rediffuse.training.callbacks import Callbacks, TrainingEvent
from rediffuse.training.checkpoint import Checkpoint, load_training, restore_optimizer, save_training
from rediffuse.training.content import encoded_items, encoded_users
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.precision import autocast, resolve_precision
from rediffuse.training.progress import Pace, Progress, left_in_words, logger, short
from rediffuse.training.row_gradients import exchange_rows, exclude_tables
from rediffuse.training.schedule import Schedule

# Within a long epoch, a checkpoint is written at this interval.
CHECKPOINT_SECONDS = 300.0
VALIDATION_METRICS = ("hr@10", "ndcg@10", "recall@20", "mrr@10")


@dataclass
class State:
    """The progress of training, saved in every checkpoint. Everything else follows from it and the seed."""

    phase: int = 0
    epoch: int = 0  # epochs completed in this phase
    step: int = 0  # batches completed in this epoch
    loss_sum: float = 0.0  # over these steps
    best: float | None = None  # best value of the selection metric, or of minus the loss, in this phase
    best_epoch: int = 0
    stale: int = 0  # validations since the best one
    seconds: float = 0.0  # training time over all sessions
    precision: str = ""
    epochs_before: int = 0  # epochs of the earlier phases, for trackers
    learning_rate: float = 0.0  # of the last step
    schedule: dict[str, Any] | None = None  # of the learning rate
    log_bytes: int | None = None  # size of metrics.jsonl at the checkpoint
    log_sha256: str = ""  # checksum of these bytes
    done: bool = False  # whether all phases are finished; never true in a checkpoint


class Interrupted(KeyboardInterrupt):
    """Ctrl+C during training: the checkpoint is saved. The message says how to continue."""


class Trainer:
    """Trains one model in one run folder.

    Args:
        model: new, with seeded weights.
        view: the training and validation subsets; the test subset cannot be reached from it.
        folder: the run folder; checkpoints and metrics.jsonl are written there.
        seed: seed of the run.
        user_ids: names users in errors.
        max_minutes: limit of the wall time over all sessions.
        show_progress: draw a progress bar, in a terminal or a notebook.
        callbacks: called as `Callbacks` says, once it is logged and saved. An exception that one raises
            ends training and is passed on by `run`.
        steps: phase -> optimiser steps, which replace its number of epochs; whole epochs are trained, at least one.

    Attributes:
        item_table: how the processes hold the item table; None: each has a copy.
    """

    item_table: ClassVar[str | None] = None

    def __init__(
        self,
        model: Model,
        view: TrainingView,
        folder: Path,
        *,
        seed: int,
        user_ids: pl.Series,
        max_minutes: float | None = None,
        show_progress: bool = False,
        callbacks: Callbacks | None = None,
        steps: dict[str, int] | None = None,
        device: str | torch.device = devices.AUTO,
    ) -> None:
        # A phase, a batch or an option can leave weights without a gradient. Buffers are functions of the weights, the
        # data and values that all ranks share, so they agree without a broadcast at every step.
        ddp_options = DistributedDataParallelKwargs(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        self.accelerator = Accelerator(
            device_placement=False, cpu=distributed.cpu_only(), kwargs_handlers=[ddp_options]
        )
        several = distributed.world_size() > 1
        if several and device != devices.AUTO:
            raise ConfigError(
                f"device is {device}, and several processes train: each has the device of its rank.",
                "Leave it out; to train on CPUs, hide the accelerators (CUDA_VISIBLE_DEVICES=).",
            )
        self.device = self.accelerator.device if several else devices.resolve(device)
        self.model, self.view, self.folder, self.seed = model, view, folder, seed
        self.phases: tuple[str, ...] = model.phases if model.trained_by_gradient else ()
        self.config = model.config
        self.user_ids = user_ids
        self.max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.last_path = folder / "checkpoints" / "last.safetensors"  # the last checkpoint
        self.best_path = folder / "checkpoints" / "best.safetensors"  # the weights with the best validation metric
        self.log_file = folder / LOG
        self.progress = Progress(show_progress and self.accelerator.is_main_process)
        train = view.train if model.reads_synthetic else view.train.without_synthetic()
        self.encoder, content = encoded_items(model, view, seed)
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
            content,
            encoded_users(model, view, seed),
        )
        model.check(self.data)
        self.state = State(precision=resolve_precision(self.config.precision, self.device))
        self.checkpoint: Checkpoint | None = None  # to restore what its phase makes
        self.schedule: Schedule | None = None
        self.averaging: Averaging | None = None
        self.tracking: Tracking | None = None  # of the main process, if there is one
        self.callbacks = callbacks or Callbacks([])
        self.steps = steps or {}
        self.interrupted = False
        self.tables: list[torch.Tensor] = []  # whose sparse gradients the processes exchange themselves
        self.trained_network: Model | None = None

    def take_phase(self, phase: str, trained: Model) -> None:
        """Skip a phase: copy the weights of ``trained`` into the model's component of that name."""
        getattr(self.model, phase).load_state_dict(trained.state_dict())
        self.phases = tuple(other for other in self.phases if other != phase)

    def take_network(self, trained: Model) -> None:
        """Skip all training: `run` copies the weights of ``trained``, a model of the same class, but for its prior."""
        self.trained_network = trained
        self.phases = ()

    # --- phases, epochs and steps --------------------------------------------------------------------------

    def run(self, resume: bool) -> State:
        """Train until the epochs, the patience or the time run out; the model then has the best weights.

        Raises:
            TrainingError: the loss is not finite, or there is nothing to train on.
            RunError: with ``resume``, the checkpoint is damaged or does not fit the model.
            StorageError: the folder cannot be written.
            Interrupted: Ctrl+C; the checkpoint is saved.
        """
        with torch.random.fork_rng(), keep_freed_memory(), self.progress:
            move(self.model, self.device)
            seed_torch(self.seed, "fit")
            self.model.fit(self.data)
            if self.trained_network is not None:
                weights = self.trained_network.state_dict()
                network = {name: tensor for name, tensor in weights.items() if not name.startswith("prior.")}
                self.model.load_state_dict(network, strict=False)
            if resume:
                self._restore()
            self.started = time.monotonic() - self.state.seconds
            with self._catch_interrupts():
                for index in range(self.state.phase, len(self.phases)):
                    if not self._train_phase(index, self.phases[index]):
                        break
                else:
                    self.state.done = True
            self._load_best()
            self.state.seconds = time.monotonic() - self.started
            if self.phases:
                self._call("on_end", None, stopped=self.stopped())
        return self.state

    def _train_phase(self, index: int, phase: str) -> bool:
        """Train all epochs of a phase; False if the time ran out."""
        state = self.state
        if state.phase != index:
            self._load_best()
            before = state.epochs_before + state.epoch
            self.state = state = State(
                phase=index, seconds=state.seconds, precision=state.precision, epochs_before=before
            )
            self.schedule = self.averaging = None
            # This phase replaces the best weights of the previous one, which a resumed run must not need any more.
            self._save(None)
        optimizer, schedule, network, stepper = self.begin_phase(phase)
        last_saved = time.monotonic()
        self.progress.start(phase, self.epochs)
        self.pace = Pace(self.epochs, state.epoch, self.config.patience * self.config.validate_every, last_saved)
        while state.epoch < self.epochs and state.stale < self.config.patience:
            batches = self.batches(phase, state.epoch)
            self.model.train()
            epoch_start = time.monotonic()
            while state.step < len(batches):
                state.learning_rate = schedule.rate
                loss = self._step(network, stepper, batches, phase)
                state.loss_sum += loss
                state.step += 1
                done = state.epoch + state.step / len(batches)
                self.progress.step(done, state.loss_sum / state.step, self._selection()[1], self._left(done))
                if not self._ends_group(state.step - 1, len(batches)):
                    continue  # a checkpoint would lose the gradients so far
                self._update(network, stepper)
                if self.callbacks.has("on_step"):
                    self._call("on_step", optimizer, loss=loss)
                if self._out_of_time():
                    self._save(optimizer)
                    return self._stops(False)
                if self._checkpoint_is_due(last_saved) or self.interrupted:
                    self._save(optimizer)
                    last_saved = time.monotonic()
                    self._raise_if_interrupted()
            record: dict[str, Any] = {
                "phase": phase,
                "epoch": state.epoch + 1,
                "steps": state.step,
                "loss": state.loss_sum / state.step,
                "learning_rate": state.learning_rate,
                "seconds": time.monotonic() - epoch_start,
            }
            state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
            validates = state.epoch % self.config.validate_every == 0 or state.epoch == self.epochs
            if validates and self.model.chosen_by_ranking(phase):
                record["validation"] = self._validate_and_select()
            elif validates and self.model.chosen_by_loss(phase):
                self._keep_if_best(-record["loss"])
            self._log(record)
            self._save(optimizer)
            last_saved = time.monotonic()
            if validates:
                self._report(record, last_saved - epoch_start)
            if metrics := record.get("validation"):
                self._call("on_validation", None, loss=record["loss"], metrics=metrics)
            self._raise_if_interrupted()
            if self._out_of_time():
                return self._stops(False)
        return self._stops(True)

    def begin_phase(self, phase: str) -> tuple[Optimizer, Schedule, Any, Any]:
        """Prepare a phase, or the rest of it after a checkpoint.

        Returns:
            The optimiser, its learning rates, and the network and the optimiser as Accelerate wraps them.
        """
        self.model.begin_phase(phase, self.data)
        self.config = config = self.model.training_options(phase)
        groups = self.model.parameter_groups()
        optimizer = Optimizer(groups, config.learning_rate, config.weight_decay, config.adam_beta2)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("learning_rate_factor", 1.0)
        self.epochs = self._epochs(phase)
        self.averaging = Averaging(self.model, config.ema) if config.ema is not None else None
        saved, self.checkpoint = self.checkpoint, None
        if saved is not None and saved.optimizer:
            restore_optimizer(optimizer, saved.optimizer)
        self.schedule = schedule = Schedule(optimizer, config, self._steps_per_epoch(phase), self.epochs)
        if saved is not None and self.state.schedule is not None:
            schedule.restore(self.state.schedule)
        if saved is not None and saved.average and self.averaging is not None:
            self.averaging.restore(saved.average)
        self.tables = exclude_tables(self.model, groups)
        with warnings.catch_warnings():
            # torch 2.13 renames the option to forward_sync_buffers, which Accelerate does not support yet.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return optimizer, schedule, *self.accelerator.prepare(self.model, optimizer)

    def batches(self, phase: str, epoch: int) -> Batches:
        """The batches of an epoch.

        Raises:
            TrainingError: there are none.
        """
        rng = np.random.default_rng(derive(self.seed, phase, epoch, "order"))
        batches = self.model.batches(self.data, rng)
        if not len(batches):
            raise TrainingError(
                "There is nothing to train on.",
                "Every training history has fewer than two interactions: use more data, or another split.",
            )
        return batches

    def _epochs(self, phase: str) -> int:
        """How many epochs of a phase to train at most."""
        if phase not in self.steps:
            return self.config.epochs
        return max(1, round(self.steps[phase] / len(self.batches(phase, 0))))

    def _steps_per_epoch(self, phase: str) -> int:
        """Optimiser steps of an epoch, where the learning rate depends on it."""
        config = self.config
        if config.learning_rate_schedule == "constant" and not config.warmup and not config.learning_rate_decay_every:
            return 1
        return -(-len(self.batches(phase, 0)) // self.config.accumulate)

    def _ends_group(self, index: int, batches: int) -> bool:
        """Whether the optimiser steps after this batch; the last batches of an epoch may be a smaller group."""
        return (index + 1) % self.config.accumulate == 0 or index + 1 == batches

    def _step(self, network: Any, stepper: Any, batches: Any, phase: str) -> float:
        """The gradients of one batch, added to those of its group; returns its loss."""
        state, accelerator = self.state, self.accelerator
        seed_torch(self.seed, phase, state.epoch, state.step, accelerator.process_index)
        batch = batches.get(state.step, accelerator.process_index, accelerator.num_processes)
        every = self.config.accumulate
        size = min(every, len(batches) - state.step // every * every)  # of the group
        ends = self._ends_group(state.step, len(batches))
        # Processes exchange gradients once per group.
        with contextlib.nullcontext() if ends else accelerator.no_sync(network):
            with autocast(state.precision, self.device):
                loss = network(batch.to(self.device))
            value = distributed.all_reduce_mean(float(loss.detach()))
            if not math.isfinite(value):
                users = self.user_ids.gather(batches.users(state.step)[:5]).to_list()
                raise TrainingError(
                    f"The loss is {value} at step {state.step + 1} of epoch {state.epoch + 1}, in a batch with users "
                    f"{', '.join(map(str, users))}, ...",
                    "Try a lower learning_rate, clip_norm=1.0, or precision=fp32. The last checkpoint is kept.",
                )
            accelerator.backward(loss if size == 1 else loss / size)
        return value

    def _update(self, network: Any, stepper: Any) -> None:
        """One step of the optimiser, of the learning rate and of the average."""
        exchange_rows(self.tables)
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(network.parameters(), self.config.clip_norm)
        stepper.step()
        stepper.zero_grad()
        if self.schedule is not None:
            self.schedule.step()
        if self.averaging is not None:
            self.averaging.update()

    def try_step(self, network: Any, stepper: Any, batches: Batches, phase: str, index: int) -> None:
        """Train with one batch, to measure what it takes; nothing is written."""
        self.state.step = index
        self._step(network, stepper, batches, phase)
        self._update(network, stepper)

    def _out_of_time(self) -> bool:
        self.state.seconds = time.monotonic() - self.started
        return self.max_seconds < math.inf and distributed.any_rank(self.state.seconds > self.max_seconds)

    def _checkpoint_is_due(self, last_saved: float) -> bool:
        return time.monotonic() - last_saved > CHECKPOINT_SECONDS

    # --- what it says --------------------------------------------------------------------------------------

    def _call(self, method: str, optimizer: Optimizer | None, **facts: Any) -> None:
        """Call the callbacks; with ``optimizer``, an exception comes after a checkpoint."""
        state = self.state
        metric, best = self._selection()
        event = TrainingEvent(
            phase=self.phases[state.phase],
            epoch=state.epoch + (state.step > 0),
            step=state.step,
            metric=metric,
            best=best,
            best_epoch=state.best_epoch,
            learning_rate=state.learning_rate,
            model=self.model,
            folder=self.folder,
            **facts,
        )
        try:
            self.callbacks(method, event)
        except Exception:
            if optimizer is not None:
                self._save(optimizer)
            raise

    def _left(self, done: float) -> str:
        """The time left in this phase, as text."""
        state = self.state
        waited = -math.inf if state.best is None else done - state.best_epoch  # without a best, patience ends nothing
        return left_in_words(self.pace.left(done, waited, self.max_seconds - (time.monotonic() - self.started)))

    def _report(self, record: dict[str, Any], seconds: float) -> None:
        """Log a line about an epoch."""
        if not self.accelerator.is_main_process:
            return
        state, metric, metrics = self.state, self.config.metric, record.get("validation")
        parts = [f"epoch {state.epoch}/{self.epochs}", f"loss {record['loss']:.4f}"]
        if len(self.phases) > 1:
            parts[0] = f"{record['phase']}: {parts[0]}"
        if metrics:
            parts += [f"{metric} {selected_value(metrics, metric):.4f}"]
            if WITH_HISTORY + metric in metrics:
                parts[-1] += f" ({metrics[metric]:.4f} with the users without a history)"
            parts += [f"best {state.best:.4f} (epoch {state.best_epoch})"]
        parts.append(f"{short(seconds)}/epoch" if self.config.validate_every == 1 else f"last epoch {short(seconds)}")
        if state.epoch < self.epochs and state.stale < self.config.patience:
            parts.append(self._left(state.epoch))
        logger.info("  ".join(filter(None, parts)), extra={"on_bar": True})

    def _stops(self, finished: bool) -> bool:
        """Log why the phase stopped; returns whether it is finished."""
        if self.accelerator.is_main_process and (why := self.stopped()):
            logger.info(why)
        return finished

    def stopped(self) -> str | None:
        """One sentence on why training stopped; None for a model that is not trained in epochs."""
        if not self.phases:
            return None
        state, config = self.state, self.config
        metric, value = self._selection()
        best = "" if value is None else f"; best at epoch {state.best_epoch} ({metric} {value:.4f})"
        of = f" of {self.phases[state.phase]}" if len(self.phases) > 1 else ""
        if state.stale >= config.patience:
            why = f"no improvement for {state.stale} validations{of}{best}"
        elif state.epoch >= self.epochs:
            why = f"all {self.epochs} epochs{of} are done{best}"
        else:
            why = f"the time limit of {short(self.max_seconds)} was reached in epoch {state.epoch + 1}{of}{best}"
        return f"Training stopped: {why}."

    # --- interrupts ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _catch_interrupts(self) -> Iterator[None]:
        """Within the context, the first Ctrl+C is only noted: the loop then saves a checkpoint and ends.

        Not in several processes, which would have to agree on the step, nor where the caller handles the signal.
        """
        usual = signal.default_int_handler
        if (
            threading.current_thread() is not threading.main_thread()  # only the main thread may set handlers
            or signal.getsignal(signal.SIGINT) is not usual
            or distributed.world_size() > 1
        ):
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, usual)
            os.write(2, b"\nInterrupted: this step ends and a checkpoint is saved. Again Ctrl+C stops at once.\n")

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def _raise_if_interrupted(self) -> None:
        if self.interrupted:
            state = self.state
            where = f"in epoch {state.epoch + 1}" if state.step else f"after epoch {state.epoch}"
            raise Interrupted(
                f"Training was interrupted {where}. The checkpoint is saved: continue with resume=True (on the command "
                "line, --resume)."
            )

    # --- selection -----------------------------------------------------------------------------------------

    def validate(self, task: Task | None = None) -> dict[str, float]:
        """Metrics on the validation subset, or on ``task``, with seen items kept and with seen items filtered
        ("/unseen"). Where some users have no history, also over the others, under names that begin with
        `rediffuse.config.WITH_HISTORY`."""
        task = task or self.view.valid
        self.model.eval()
        self.model.prepare()
        metrics = dict.fromkeys((*VALIDATION_METRICS, self.config.metric.removesuffix("/unseen")))
        result = self._evaluate(task, list(metrics))
        values = _flat(result.metrics)
        if result.with_history and result.counts["cold_users"]:
            values |= {WITH_HISTORY + name: value for name, value in _flat(result.with_history).items()}
        return values

    def _evaluate(self, task: Task, metrics: list[str]) -> TaskResult:
        scores = model_scores(self.model, task, self.seed)
        return evaluate_task(scores, task, num_items=self.view.num_items, metrics=metrics, shared=True)

    def _validate_and_select(self) -> dict[str, float] | None:
        """Validate, and save the weights if they are the best of this phase; None without a validation subset.

        With an average of the weights, it is validated and saved in their place.
        """
        if not len(self.view.valid.users):
            return None
        with self.averaging.applied() if self.averaging is not None else contextlib.nullcontext():
            return self._select(self.validate())

    def _select(self, metrics: dict[str, float]) -> dict[str, float]:
        self._keep_if_best(selected_value(metrics, self.config.metric))
        return metrics

    def _keep_if_best(self, value: float) -> None:
        """Save the weights if the value, the higher the better, is the best of this phase."""
        state = self.state
        if state.best is None or value > state.best:
            state.best, state.best_epoch, state.stale = value, state.epoch, 0
            # Written before the checkpoint: after a kill between the two, the epoch is repeated and written again.
            self._save_best()
        else:
            state.stale += 1

    def _selection(self) -> tuple[str, float | None]:
        """What selects the weights of this phase, and its best value; None: none yet."""
        best = self.state.best
        if self.model.chosen_by_loss(self.phases[self.state.phase]):
            return "loss", None if best is None else -best
        return self.config.metric, best

    def _save_best(self) -> None:
        if self.accelerator.is_main_process:
            save_tensors(self.best_path, self.model.state_dict(), {"epoch": self.state.epoch})

    def _load_best(self) -> None:
        """Load the best weights of this phase, or the average of the last if none was validated; then prepare the model
        for scoring."""
        self.accelerator.wait_for_everyone()  # until the main process has written the file
        if self.state.best is not None:
            load_weights(self.best_path, self.model, load_tensors(self.best_path)[0])
        elif self.averaging is not None:
            self.averaging.apply()
        self.accelerator.wait_for_everyone()  # until all processes have read it
        self.model.eval()
        self.model.prepare()

    def calibrate(self) -> dict[str, Any]:
        """Let the model choose settings on validation data; returns its choices (see `Model.calibrate`)."""
        task, metric = self.view.valid.with_history(), self.config.metric
        if not len(task.users):
            return {}
        return self.model.calibrate(
            SubsetValidation(task, metric, self.view.num_items, lambda: selected_value(self.validate(), metric))
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

    def finish(self) -> None:
        """Called in all processes before the main process writes the files of the finished run."""

    # --- checkpoints and the log ---------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.state.seconds = time.monotonic() - self.started
        if self.accelerator.is_main_process:
            log = self.log_file.read_bytes() if self.log_file.exists() else b""
            self.state.log_bytes, self.state.log_sha256 = len(log), hashlib.sha256(log).hexdigest()
            self.state.schedule = None if self.schedule is None else self.schedule.state()
            average = None if self.averaging is None else self.averaging.state()
            save_training(self.last_path, self.model, optimizer, vars(self.state), average)

    def _restore(self) -> None:
        if not self.last_path.exists():  # killed before the first checkpoint: start again
            if self.accelerator.is_main_process:
                self.log_file.unlink(missing_ok=True)
            return
        self.checkpoint = load_training(self.last_path, self.model)
        try:
            self.state = State(**self.checkpoint.progress)
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
        if self.tracking is not None:
            prefix = f"{record['phase']}/" if len(self.phases) > 1 else ""
            values = {prefix + name: record[name] for name in ("loss", "learning_rate", "seconds")}
            metrics = record.get("validation") or {}
            values |= {f"{prefix}validation/{name}": value for name, value in metrics.items()}
            self.tracking.log(values, step=self.state.epochs_before + record["epoch"])


def _flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metrics of both policies under their flat names."""
    kept = {name: float(value) for name, value in metrics["all"].items()}
    return kept | {f"{name}/unseen": float(value) for name, value in metrics["unseen"].items()}
