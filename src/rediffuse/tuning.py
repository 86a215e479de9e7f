"""Hyper-parameter search on validation data.

Optuna proposes options and stops hopeless trials; the one training loop trains. What is added here makes a study fair
and hard to lose: the default is tried first, time is a budget over all sessions, a killed study goes on as if it had
been left alone, and no trial can reach the test part.

```
study/
  study.json            what the study is, what it spent, where it stands
  study.journal         Optuna's log of all trials, JSON lines
  best.yaml             options for `rediffuse train --config`
  trials.parquet        one row per trial
  trials/0007/          metrics.jsonl of a trial
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
import yaml

from rediffuse import processes
from rediffuse.config import ModelConfig, Range
from rediffuse.data.files import atomic_write_parquet, atomic_write_text, writing
from rediffuse.data.split import Split, TrainingView
from rediffuse.errors import ConfigError, DataError, MissingExtraError, RediffuseWarning, RunError, TrainingError
from rediffuse.evaluation.metrics import parse_metric
from rediffuse.models import model_class, names
from rediffuse.models.base import Model
from rediffuse.training.lock import held, is_free
from rediffuse.training.seeds import derive
from rediffuse.training.train import make_trainer, refuse_another

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

FORMAT = 1
# Trials that run to their end before any is stopped for being below the median of the others.
TRIALS_BEFORE_PRUNING = 5
# The share of the epochs that every trial gets: small learning rates start slowly.
WARM_UP = 0.1


@dataclass(frozen=True)
class Study:
    """What a search found, on validation data alone.

    Attributes:
        path: the study's folder.
        model: name of the model.
        metric: the validation metric that was maximised.
        best_config: the options of the best trial that differ from the model's default.
        best_value: its metric.
        default_rank: place of the default among all trials, 1 is best; None if it reached no validation.
        trials: one row per trial: number, state, default (whether it is), value, epochs, minutes, and every
            option that was searched. States: complete; pruned (below the median of the others); failed (its training
            raised an error); interrupted (by the end of the time or of the process); repeated (interrupted, and
            run again as a later trial).
        minutes: spent on all trials, over all sessions.
    """

    path: Path
    model: str
    metric: str
    best_config: dict[str, Any]
    best_value: float
    default_rank: int | None
    trials: pl.DataFrame
    minutes: float

    @property
    def ranking(self) -> pl.DataFrame:
        """The trials with a value, best first; those that were run again count once."""
        return _ranking(self.trials)


def tune(
    model: str,
    split: Split,
    out: str | Path,
    *,
    trials: int = 30,
    max_minutes: float | None = None,
    config: dict[str, Any] | None = None,
    preset: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Study:
    """Search a model's options for the best value of its validation metric. On a folder with a study it goes on.

    The model as it is (``preset`` and ``config``) is the first trial. All trials train with the same seed.

    Args:
        model: a registered name, see `rediffuse.models.names`.
        split: its training and validation parts are used; no trial can reach the test part.
        out: the study's folder.
        trials: finished ones (complete, pruned or failed) at which to stop, earlier sessions included.
        max_minutes: of wall time over all trials, earlier sessions included; the trial that runs then is stopped.
        config: options that are fixed and not searched.
        preset: named options to start from; they are searched.
        seed: of the search and of every training.
        progress: draw a progress bar and print a line per trial on stderr.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: unknown model, preset, option or metric; nothing to search; ``trials`` or ``max_minutes`` not
            positive.
        DataError: the split has no validation part.
        RunError: ``out`` holds something else, or another study, or one that another process works on.
        StorageError: ``out`` cannot be written.
        TrainingError: no trial reached a validation.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune") from None
    if trials < 1 or (max_minutes is not None and not max_minutes > 0):
        raise ConfigError(f"There is nothing to do in {trials} trials and {max_minutes} minutes.", "Ask for more.")
    processes.join()
    if processes.count() > 1:
        raise ConfigError("A study runs in one process.", "Start it without accelerate launch or torchrun.")
    kind, folder = model_class(model), Path(out)
    default = kind.Config.build(preset, config)
    parse_metric(default.metric.removesuffix("/unseen"))
    searched = {option: domain for option, domain in kind.Config.search.items() if option not in (config or {})}
    if not searched:
        if kind.Config.search:
            raise ConfigError(f"All options of {model} that could be searched are fixed.", "Leave one of them free.")
        others = [name for name in names() if model_class(name).Config.search]
        raise ConfigError(f"{model} has no options to search.", f"Models that have: {', '.join(others)}.")
    view = split.training_view()
    if not len(view.valid.users):
        raise DataError("This split has no validation part, and a search needs one.", "Choose another split.")
    identity = {
        "model": model,
        "config": default.model_dump(mode="json"),
        "search": {option: _described(domain) for option, domain in searched.items()},
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint},
    }
    identity = json.loads(json.dumps(identity))
    _check(folder, identity)  # refused before anything is written
    with _quiet(), held(folder, "tuning"):
        _claim(folder, identity)
        study = optuna.create_study(
            study_name=model,
            storage=_journal(folder / "study.journal"),
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING, math.ceil(WARM_UP * default.epochs)),
            load_if_exists=True,
        )
        # From here on nothing holds the split.
        search = _Search(kind, default, searched, view, split.dataset.user_ids, folder, seed, study, progress)
        search.recover()
        found = search.write(trials, max_minutes)
        while search.finished() < trials and (left := (max_minutes or math.inf) - search.minutes()) > 0:
            search.run_one(left)
            found = search.write(trials, max_minutes)
    if found is None:
        errors = [text for trial in study.trials if (text := trial.user_attrs.get("error"))]
        remedy = f"The last error was: {errors[-1]}" if errors else "Give it more minutes."
        raise TrainingError(f"No trial of {folder} reached a validation.", remedy)
    if found.default_rank == 1 and len(found.ranking) > 1:
        warnings.warn(
            f"The default was never beaten in {len(found.ranking)} trials; best.yaml is the default.",
            RediffuseWarning,
            stacklevel=2,
        )
    return found


@dataclass(frozen=True)
class _Search:
    """Proposes and runs trials. It has the training view, and from there no way leads to the test part."""

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
            option: _distribution(option, domain, getattr(self.default, option))
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
        ranking = _ranking(table)
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
        facts = _read(self.folder) | {
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


def _ranking(table: pl.DataFrame) -> pl.DataFrame:
    """The trials with a value, best first; of equals the earlier."""
    counted = table.filter(pl.col("value").is_not_null() & (pl.col("state") != "repeated"))
    return counted.sort("value", descending=True, maintain_order=True)


def _distribution(option: str, domain: Range | tuple[Any, ...], default: Any) -> BaseDistribution:
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


def _described(domain: Range | tuple[Any, ...]) -> Any:
    return dataclasses.asdict(domain) if isinstance(domain, Range) else list(domain)


def _check(folder: Path, identity: dict[str, Any]) -> None:
    """Raises:
    RunError: the folder holds another study, or something else.
    """
    if (folder / "study.json").exists():
        remedy = "Use the options it began with (trials and minutes may change), or choose another folder."
        refuse_another(folder, _read(folder), identity, remedy)
    elif not is_free(folder):
        raise RunError(f"{folder} is not empty and holds no study.", "Choose another folder.")


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Begin a study in a folder that is held, unless it is there already.

    Raises:
        RunError: as `_check`, for what another process may have done meanwhile.
    """
    _check(folder, identity)
    if not (folder / "study.json").exists():
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = {"format": FORMAT, "created": created, **identity}
        atomic_write_text(folder / "study.json", json.dumps(facts, indent=2) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "study.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Restore it from a copy, or choose another folder.") from None
    if version != FORMAT:
        raise RunError(f"{path} has format {version}; this version reads {FORMAT}.", "Use the version that wrote it.")
    return facts


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """The journal of a study whose folder is held, mended if the last process died while it wrote.

    Raises:
        RunError: it is damaged elsewhere than at its end.
        StorageError: it cannot be written; now, or when it is used.
    """
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writing(path):
                super().append_logs(logs)

    with writing(path):
        with path.open("ab") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        # Locks of a process that is no more.
        for stale in path.parent.glob(f"{path.name}.*"):
            stale.unlink()
    try:
        return JournalStorage(Backend(str(path), lock_obj=JournalFileOpenLock(str(path))))
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}).", "Restore it, or choose another folder.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log, and without its warnings that the journal and others are experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)
