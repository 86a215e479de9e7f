"""The search of a study: proposes options, trains with them, and records the validation metric."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
import yaml

from rediffuse.config import ModelConfig, Range, selected_value
from rediffuse.data.split import TrainingView
from rediffuse.errors import ConfigError, RediffuseWarning, TrainingError
from rediffuse.files import atomic_write_parquet, atomic_write_text
from rediffuse.memory import LESS_MEMORY, out_of_memory
from rediffuse.models.base import Model
from rediffuse.seeds import derive
from rediffuse.training.callbacks import Callbacks, TrainingEvent
from rediffuse.training.train import make_trainer
from rediffuse.tuning.study import Study, rank_trials, read_study
from rediffuse.tuning.workers import Alone, trial_folder

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Search:
    """Proposes and runs trials. It holds only the training view, from which the test subset cannot be reached.

    Attributes:
        kind: class of the model.
        default: its options before the search.
        searched: the domain of each searched option.
        view: the training and validation subsets.
        user_ids: names users in errors.
        folder: folder of the study.
        seed: seed of the search and of every training.
        study: Optuna's study.
        progress: draw a progress bar and print a line per trial on stderr.
        workers: who else runs trials of this study.
    """

    kind: type[Model]
    default: ModelConfig
    searched: dict[str, Range | tuple[Any, ...]]
    view: TrainingView
    user_ids: pl.Series
    folder: Path
    seed: int
    study: optuna.Study
    progress: bool
    workers: Alone

    # --- running -------------------------------------------------------------------------------------------

    def run(self, trials: int, max_minutes: float | None) -> Study | None:
        """Run trials until ``trials`` are finished, or the time is spent; returns the result as `save` does."""
        waiting = False
        while True:
            with contextlib.ExitStack() as running:
                with self.workers.turn():
                    self.recover()
                    # Before the result is saved: trials that others finish meanwhile are not in it.
                    finished, remaining = self.finished(), (max_minutes or math.inf) - self.minutes()
                    result = self.save(trials, max_minutes)
                    if finished >= trials or remaining <= 0:
                        return result
                    if (trial := self.claim(trials)) is not None:
                        running.enter_context(self.workers.running(trial))
                if trial is not None:
                    self.run_trial(trial, remaining)
            if trial is None:
                if self.progress and not waiting:
                    print("Other workers run all trials that are left; waiting for them.", file=sys.stderr)
                self.workers.wait()
            waiting = trial is None

    def recover(self) -> None:
        """Queue interrupted trials again; in a new study, queue the default."""
        import optuna
        from optuna.trial import TrialState

        for trial in self.workers.lost(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
            # Another worker may notice at the same moment.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            shutil.rmtree(trial_folder(self.folder, trial.number) / "checkpoints", ignore_errors=True)
        trials = self.trials()
        # What is queued already is read from the journal, so a kill within this method does no harm.
        repeated = {trial.user_attrs.get("repeats") for trial in trials}
        default_params = {option: getattr(self.default, option) for option in self.searched}
        if not trials:
            self.study.enqueue_trial(default_params, user_attrs={"default": True})
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.number not in repeated:
                is_default = "default" in trial.user_attrs
                self.study.enqueue_trial(
                    default_params if is_default else self._known_params(trial),
                    user_attrs={"repeats": trial.number} | ({"default": True} if is_default else {}),
                )

    def _known_params(self, trial: FrozenTrial) -> dict[str, Any]:
        """The options to repeat a trial with; none if it was killed before all of them were in the journal.

        Then the sampler proposes them again, all of them: it is seeded as before. With some of them given it would
        draw the others from another place of its stream.
        """
        known = trial.system_attrs.get("fixed_params", {}) | trial.params
        return known if known.keys() >= self.searched.keys() else {}

    def claim(self, trials: int) -> optuna.Trial | None:
        """The next trial, with its options; None while others run all that are left.

        No claim makes more than ``trials`` of them, or one trial twice, even where workers do not take turns: of the
        claims, those with the lowest numbers hold, and all workers see the same numbers.
        """
        import optuna
        from optuna.trial import TrialState

        states = [trial.state for trial in self.trials()]
        if self.finished() + states.count(TrialState.RUNNING) >= trials:
            return None
        trial = self.study.ask()
        all_trials = {other.number: other for other in self.study.get_trials(deepcopy=False)}
        earlier = [other for number, other in all_trials.items() if number < trial.number]
        queued = _queued_as(all_trials[trial.number])
        if sum(other.state != TrialState.FAIL for other in earlier) >= trials or (
            queued and queued in map(_queued_as, earlier)
        ):
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        # A sampler per trial, seeded by its place among the proposals: interruptions do not change what it proposes,
        # and workers do not propose the same.
        first = trial.number
        while "repeats" in all_trials[first].user_attrs:
            first = all_trials[first].user_attrs["repeats"]
        place = sum(number < first and "repeats" not in other.user_attrs for number, other in all_trials.items())
        self.study.sampler = optuna.samplers.TPESampler(
            seed=derive(self.seed, "tune", place) % 2**32,
            constant_liar=self.workers.several,  # keep away from what other workers are trying
        )
        for option, domain in self.searched.items():
            _suggest(trial, option, distribution(option, domain, getattr(self.default, option)))
        return trial

    def run_trial(self, trial: optuna.Trial, max_minutes: float) -> None:
        """Run a trial that was claimed, for at most ``max_minutes``."""
        import optuna
        from optuna.trial import TrialState

        folder, start = trial_folder(self.folder, trial.number), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

        class Prune:
            def on_validation(self, event: TrainingEvent) -> None:
                if event.phase == trainer.phases[-1]:
                    trial.report(selected_value(event.metrics, event.metric), event.epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned

        value = None
        try:
            trainer = make_trainer(
                self.kind,
                self.options(trial.params),
                self.view,
                folder,
                seed=self.seed,
                user_ids=self.user_ids,
                max_minutes=max_minutes,
                show_progress=self.progress,
                callbacks=Callbacks([Prune()]),
            )
            with out_of_memory("The trial", LESS_MEMORY):
                result = trainer.run(resume=False)
            if not result.done:
                state = TrialState.FAIL  # the time ran out; `recover` queues it again
            else:
                state, value = TrialState.COMPLETE, result.best
                if value is None:  # a model in closed form is not validated by the loop
                    trainer.model.resolve(trainer.calibrate())
                    value = selected_value(trainer.validate(), self.default.metric)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except (TrainingError, ConfigError, torch.OutOfMemoryError) as error:
            # Options that fail are a result: to the sampler they are the worst ones, and the study continues.
            state = TrialState.PRUNED
            trial.set_user_attr("error", str(error))
        except optuna.exceptions.UpdateFinishedTrialError:
            return self._taken(trial)
        finally:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        try:
            trial.set_user_attr("minutes", (time.monotonic() - start) / 60)
            finished = self.study.tell(trial, value, state)
        except optuna.exceptions.UpdateFinishedTrialError:
            return self._taken(trial)
        if self.progress:
            shown = "-" if (best := _value(finished)) is None else f"{best:.4f}"
            print(f"Trial {trial.number}: {_state(finished, set())}, {self.default.metric} {shown}", file=sys.stderr)

    def options(self, params: dict[str, Any]) -> ModelConfig:
        """The options of a trial: the default, with the trial's values of the searched options."""
        return self.kind.Config.build(None, self.default.model_dump() | params)

    def _taken(self, trial: optuna.Trial) -> None:
        warnings.warn(
            f"This process was silent for so long that other workers took it for dead: trial {trial.number} is run "
            "again, and its result here does not count.",
            RediffuseWarning,
            stacklevel=3,
        )

    # --- the state of the study ----------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials but claims that did not hold."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "surplus" not in trial.user_attrs]

    def finished(self) -> int:
        """Number of complete, pruned and failed trials."""
        from optuna.trial import TrialState

        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def minutes(self) -> float:
        """Wall time of all trials, including killed ones."""
        return sum(self._minutes(trial) for trial in self.study.get_trials(deepcopy=False))

    def _minutes(self, trial: FrozenTrial) -> float:
        if "minutes" in trial.user_attrs or trial.datetime_start is None:
            return trial.user_attrs.get("minutes", 0.0)
        # The trial was killed: the epochs in its log tell how long it took. Clocks do not: they may be set meanwhile.
        log = trial_folder(self.folder, trial.number) / "metrics.jsonl"
        lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
        return sum(float(json.loads(line)["seconds"]) for line in lines) / 60

    def table(self) -> pl.DataFrame:
        """One row per trial, as in `Study.trials`."""
        trials = [trial for trial in self.trials() if trial.state.is_finished()]
        repeated = {trial.user_attrs.get("repeats") for trial in trials}
        columns: dict[str, list[Any]] = {
            "number": [trial.number for trial in trials],
            "state": [_state(trial, repeated) for trial in trials],
            "default": ["default" in trial.user_attrs for trial in trials],
            "value": [_value(trial) for trial in trials],
            "epochs": [trial.last_step or 0 for trial in trials],
            "minutes": [self._minutes(trial) for trial in trials],
        }
        dtypes = {"state": pl.String, "default": pl.Boolean, "value": pl.Float64, "minutes": pl.Float64}
        columns |= {option: [trial.params.get(option) for trial in trials] for option in self.searched}
        return pl.DataFrame(
            [pl.Series(name, values, dtype=dtypes.get(name), strict=False) for name, values in columns.items()]
        )

    def save(self, trials: int, max_minutes: float | None) -> Study | None:
        """Write best.yaml, trials.parquet and study.json; returns the result so far, None before the first validation.

        Args:
            trials, max_minutes: the limits of this session, recorded in study.json.

        Raises:
            StorageError: a file cannot be written.
        """
        table = self.table()
        ranking = rank_trials(table)
        result = best = None
        if len(ranking):
            best = ranking.row(0, named=True)
            default_values = ranking.filter("default")["value"]
            options = self.options({option: best[option] for option in self.searched}).model_dump(mode="json")
            model_defaults = self.kind.Config.build().model_dump(mode="json")
            result = Study(
                path=self.folder,
                model=self.kind.name,
                metric=self.default.metric,
                best_config={option: value for option, value in options.items() if value != model_defaults[option]},
                best_value=best["value"],
                default_rank=1 + int((ranking["value"] > default_values.max()).sum()) if len(default_values) else None,
                trials=table,
                minutes=self.minutes(),
            )
            header = (
                f"# {result.model}: {result.metric} {result.best_value:.4f} on validation, trial {best['number']}\n"
            )
            atomic_write_text(self.folder / "best.yaml", header + yaml.safe_dump(result.best_config, sort_keys=False))
        atomic_write_parquet(self.folder / "trials.parquet", table)
        content = read_study(self.folder) | {
            "limits": {"trials": trials, "max_minutes": max_minutes},
            "minutes": self.minutes(),
            "states": dict(table.group_by("state").len().sort("state").iter_rows()),
            "best": best and {"trial": best["number"], "value": best["value"]},
            "default_rank": result and result.default_rank,
        }
        atomic_write_text(self.folder / "study.json", json.dumps(content, indent=2) + "\n")
        return result


def _value(trial: FrozenTrial) -> float | None:
    """The best validation metric of a trial, in whichever state it ended."""
    if trial.state.name == "COMPLETE":
        return trial.value
    return max(trial.intermediate_values.values(), default=None)


def _state(trial: FrozenTrial, repeated: set[int | None]) -> str:
    """The state of a trial, as in `Study.trials`; ``repeated`` are the numbers of trials that were run again."""
    if trial.state.name == "FAIL":
        return "repeated" if trial.number in repeated else "interrupted"
    return "failed" if "error" in trial.user_attrs else trial.state.name.lower()


def _queued_as(trial: FrozenTrial) -> tuple[bool, int | None] | None:
    """What a trial was queued for: the default, a repetition, or both; None: it was not queued."""
    attributes = trial.user_attrs
    queued = ("default" in attributes, attributes.get("repeats"))
    return None if queued == (False, None) else queued


def _suggest(trial: optuna.Trial, option: str, values: BaseDistribution) -> None:
    """Let the sampler choose an option of a trial."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, CategoricalDistribution):
        trial.suggest_categorical(option, values.choices)
    elif isinstance(values, IntDistribution):
        trial.suggest_int(option, values.low, values.high, log=values.log)
    elif isinstance(values, FloatDistribution):
        trial.suggest_float(option, values.low, values.high, log=values.log)


def distribution(option: str, domain: Range | tuple[Any, ...], default: Any) -> BaseDistribution:
    """The distribution that Optuna samples from: the domain, widened if necessary to contain the default.

    Raises:
        ConfigError: the default cannot be in such a range.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, tuple):
        return CategoricalDistribution(domain if default in domain else (*domain, default))
    if default is None or (domain.log and default <= 0):
        raise ConfigError(
            f"{option}={default} cannot be in a range such as {domain}.",
            f"Set it (--set {option}=...) so that it is not searched, or start from another preset.",
        )
    low, high = min(domain.low, default), max(domain.high, default)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(int(low), int(high), log=domain.log)
    return FloatDistribution(low, high, log=domain.log)


def describe_domain(domain: Range | tuple[Any, ...]) -> Any:
    """The domain as a JSON-able value."""
    return dataclasses.asdict(domain) if isinstance(domain, Range) else list(domain)
