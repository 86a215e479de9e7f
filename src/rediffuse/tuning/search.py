"""The search of a study: proposes options, trains them, and records what they reach on validation data."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
import yaml

from rediffuse.config import ModelConfig, Range
from rediffuse.data.split import TrainingView
from rediffuse.errors import ConfigError, TrainingError
from rediffuse.files import atomic_write_parquet, atomic_write_text
from rediffuse.models.base import Model
from rediffuse.seeds import derive
from rediffuse.training.train import make_trainer
from rediffuse.tuning.study import Study, ranking_of, read_study

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Search:
    """Proposes and runs trials. It has the training view, and from there no way leads to the test subset."""

    kind: type[Model]
    default: ModelConfig
    searched: dict[str, Range | tuple[Any, ...]]
    view: TrainingView
    user_ids: pl.Series
    folder: Path
    seed: int
    study: optuna.Study
    progress: bool

    # --- running -------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Put interrupted trials in the queue again; in a new study, the default."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            shutil.rmtree(self._place(trial.number) / "checkpoints", ignore_errors=True)
        every = self.study.get_trials(deepcopy=False)
        # Everything is read from the journal, so that dying in here as well does no harm.
        again = {trial.user_attrs.get("repeats") for trial in every}
        start = {option: getattr(self.default, option) for option in self.searched}
        if not every:
            self.study.enqueue_trial(start, user_attrs={"default": True})
        for trial in every:
            if trial.state == TrialState.FAIL and trial.number not in again:
                is_default = "default" in trial.user_attrs
                # A trial can die before all its options are in the journal; those of the default are known.
                self.study.enqueue_trial(
                    start if is_default else trial.params,
                    user_attrs={"repeats": trial.number} | ({"default": True} if is_default else {}),
                )

    def run_one(self, minutes: float) -> None:
        """Run the next trial for at most so long."""
        import optuna
        from optuna.trial import TrialState

        # A sampler per trial, seeded by its place: a study that was interrupted proposes what it would have anyway.
        self.study.sampler = optuna.samplers.TPESampler(seed=derive(self.seed, "tune", self.finished()) % 2**32)
        distributions = {
            option: distribution(option, domain, getattr(self.default, option))
            for option, domain in self.searched.items()
        }
        trial = self.study.ask(distributions)
        place, began = self._place(trial.number), time.monotonic()
        place.mkdir(parents=True, exist_ok=True)

        def on_validation(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        value = None
        try:
            trainer = make_trainer(
                self.kind,
                self.options(trial.params),
                self.view,
                place,
                seed=self.seed,
                user_ids=self.user_ids,
                max_minutes=minutes,
                show_progress=self.progress,
                on_validation=on_validation,
            )
            reached = trainer.run(resume=False)
            if not reached.done:
                state = TrialState.FAIL  # out of time; `recover` runs it again
            else:
                state, value = TrialState.COMPLETE, reached.best
                if value is None:  # closed form: what the loop did was to fit it
                    trainer.model.resolve(trainer.calibrate())
                    value = trainer.validate()[self.default.metric]
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except (TrainingError, ConfigError, torch.OutOfMemoryError) as error:
            # Options that do not work are a finding: the sampler takes them for the worst, and the study goes on.
            state = TrialState.PRUNED
            trial.set_user_attr("error", str(error))
        finally:
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        trial.set_user_attr("minutes", (time.monotonic() - began) / 60)
        told = self.study.tell(trial, value, state)
        if self.progress:
            shown = "-" if (reached_value := _value(told)) is None else f"{reached_value:.4f}"
            print(f"Trial {trial.number}: {_state(told, set())}, {self.default.metric} {shown}", file=sys.stderr)

    def options(self, params: dict[str, Any]) -> ModelConfig:
        """The default with other values of what is searched."""
        return self.kind.Config.build(None, self.default.model_dump() | params)

    def _place(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    # --- the state of the study ----------------------------------------------------------------------------

    def finished(self) -> int:
        """Number of complete, pruned and failed trials."""
        from optuna.trial import TrialState

        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def minutes(self) -> float:
        """Wall time of all trials, also of those that were killed."""
        return sum(self._minutes(trial) for trial in self.study.get_trials(deepcopy=False))

    def _minutes(self, trial: FrozenTrial) -> float:
        if "minutes" in trial.user_attrs or trial.datetime_start is None:
            return trial.user_attrs.get("minutes", 0.0)
        # It was killed; the last thing it wrote is its last sign of life.
        signs = [file.stat().st_mtime for file in self._place(trial.number).glob("metrics.jsonl")]
        return max(0.0, max(signs, default=0.0) - trial.datetime_start.timestamp()) / 60

    def table(self) -> pl.DataFrame:
        """One row per trial, as in `Study.trials`."""
        begun = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        repeated = {trial.user_attrs.get("repeats") for trial in begun}
        columns: dict[str, list[Any]] = {
            "number": [trial.number for trial in begun],
            "state": [_state(trial, repeated) for trial in begun],
            "default": ["default" in trial.user_attrs for trial in begun],
            "value": [_value(trial) for trial in begun],
            "epochs": [trial.last_step or 0 for trial in begun],
            "minutes": [self._minutes(trial) for trial in begun],
        }
        fixed = {"state": pl.String, "default": pl.Boolean, "value": pl.Float64, "minutes": pl.Float64}
        columns |= {option: [trial.params.get(option) for trial in begun] for option in self.searched}
        return pl.DataFrame(
            [pl.Series(name, values, dtype=fixed.get(name), strict=False) for name, values in columns.items()]
        )

    def write(self, trials: int, max_minutes: float | None) -> Study | None:
        """Write down where the study stands; None before the first validation."""
        table = self.table()
        ranking = ranking_of(table)
        found = best = None
        if len(ranking):
            best = ranking.row(0, named=True)
            defaults = ranking.filter("default")["value"]
            options = self.options({option: best[option] for option in self.searched}).model_dump(mode="json")
            usual = self.kind.Config.build().model_dump(mode="json")
            found = Study(
                path=self.folder,
                model=self.kind.name,
                metric=self.default.metric,
                best_config={option: value for option, value in options.items() if value != usual[option]},
                best_value=best["value"],
                default_rank=1 + int((ranking["value"] > defaults.max()).sum()) if len(defaults) else None,
                trials=table,
                minutes=self.minutes(),
            )
            said = f"# {self.kind.name}: {found.metric} {found.best_value:.4f} on validation, trial {best['number']}\n"
            atomic_write_text(self.folder / "best.yaml", said + yaml.safe_dump(found.best_config, sort_keys=False))
        atomic_write_parquet(self.folder / "trials.parquet", table)
        facts = read_study(self.folder) | {
            "asked": {"trials": trials, "max_minutes": max_minutes},
            "minutes": self.minutes(),
            "states": dict(table.group_by("state").len().sort("state").iter_rows()),
            "best": best and {"trial": best["number"], "value": best["value"]},
            "default_rank": found and found.default_rank,
        }
        atomic_write_text(self.folder / "study.json", json.dumps(facts, indent=2) + "\n")
        return found


def _value(trial: FrozenTrial) -> float | None:
    """The best validation of a trial, however it ended."""
    if trial.state.name == "COMPLETE":
        return trial.value
    return max(trial.intermediate_values.values(), default=None)


def _state(trial: FrozenTrial, repeated: set[int | None]) -> str:
    if trial.state.name == "FAIL":
        return "repeated" if trial.number in repeated else "interrupted"
    return "failed" if "error" in trial.user_attrs else trial.state.name.lower()


def distribution(option: str, domain: Range | tuple[Any, ...], default: Any) -> BaseDistribution:
    """What Optuna draws from: the domain, widened where needed to hold the default.

    Raises:
        ConfigError: the default cannot lie in such a range.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, tuple):
        return CategoricalDistribution(domain if default in domain else (*domain, default))
    if default is None or (domain.log and default <= 0):
        raise ConfigError(
            f"{option}={default} does not lie in any range like {domain}.",
            f"Fix it (--set {option}=...), or change it.",
        )
    low, high = min(domain.low, default), max(domain.high, default)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(int(low), int(high), log=domain.log)
    return FloatDistribution(low, high, log=domain.log)


def describe_domain(domain: Range | tuple[Any, ...]) -> Any:
    return dataclasses.asdict(domain) if isinstance(domain, Range) else list(domain)
