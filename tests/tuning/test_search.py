"""Tuning: the default comes first, studies continue after interruptions, the test subset is out of reach."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.dying import dies

import rediffuse as rd
from rediffuse import tuning
from rediffuse.config import Range, read_settings
from rediffuse.data.split import Split, TrainingView
from rediffuse.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    RediffuseWarning,
    RunError,
    StorageError,
    TrainingError,
)
from rediffuse.models import model_class, names
from rediffuse.runs.lock import folder_lock
from rediffuse.testing import synthetic_interactions
from rediffuse.training.loop import Trainer
from rediffuse.tuning import search, workers
from rediffuse.tuning import study as study_module

FIXED = {"embedding_size": 8, "batch_size": 64, "epochs": 2, "blocks": 1, "precision": "fp32"}
SEARCHED = ["learning_rate", "weight_decay", "temperature", "dropout"]

pytestmark = pytest.mark.filterwarnings("ignore:The default was never beaten")


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def uninterrupted(split, tmp_path_factory):
    """A study of four trials without an interruption; tests do not change it."""
    return rd.tune("sasrec", split, tmp_path_factory.mktemp("tune") / "uninterrupted", trials=4, config=FIXED, seed=5)


def finished_trials(study: tuning.Study) -> list[tuple]:
    """State, value and options of the finished trials, in order."""
    finished = study.trials.filter(~pl.col("state").is_in(["interrupted", "repeated"]))
    return finished.select("state", "default", "value", *SEARCHED).rows()


def test_the_default_is_the_first_trial_and_others_differ(uninterrupted):
    first = uninterrupted.trials.row(0, named=True)
    default = model_class("sasrec").Config()
    assert {option: first[option] for option in SEARCHED} == {o: getattr(default, o) for o in SEARCHED}
    assert uninterrupted.trials["default"].to_list() == [True, False, False, False]
    assert uninterrupted.trials["learning_rate"].n_unique() == 4
    assert set(uninterrupted.trials.columns) == {"number", "state", "default", "value", "epochs", "minutes", *SEARCHED}


def test_the_files_agree_with_the_result(uninterrupted):
    assert pl.read_parquet(uninterrupted.path / "trials.parquet").equals(uninterrupted.trials)
    content = json.loads((uninterrupted.path / "study.json").read_text())
    best = uninterrupted.trials.sort("value", descending=True).row(0, named=True)
    assert content["best"] == {"trial": best["number"], "value": uninterrupted.best_value}
    assert content["states"] == {"complete": 4}
    assert content["limits"] == {"trials": 4, "max_minutes": None}
    assert uninterrupted.best_value == best["value"]
    assert uninterrupted.default_rank == 1 + (uninterrupted.trials["value"] > uninterrupted.trials["value"][0]).sum()
    for trial in range(4):
        lines = (uninterrupted.path / "trials" / f"{trial:04d}" / "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(line)["validation"]["ndcg@10"] for line in lines) == uninterrupted.trials["value"][trial]
    assert not list(uninterrupted.path.rglob("*.safetensors"))
    # Nothing is pickled: every line of the journal is JSON.
    assert all(json.loads(line) for line in (uninterrupted.path / "study.journal").read_text().splitlines())


def test_the_best_config_trains_to_the_best_value(uninterrupted, split, tmp_path):
    config = read_settings(uninterrupted.path / "best.yaml")
    assert config == uninterrupted.best_config
    run = rd.train("sasrec", split, tmp_path / "run", config=config, seed=5)
    assert run.validation["ndcg@10"] == uninterrupted.best_value


def test_the_seed_determines_the_trials_in_any_number_of_sessions(uninterrupted, split, tmp_path):
    for trials in (1, 3, 4, 4):
        again = rd.tune("sasrec", split, tmp_path / "again", trials=trials, config=FIXED, seed=5)
        assert len(again.trials) == trials
    assert finished_trials(again) == finished_trials(uninterrupted)
    other = rd.tune("sasrec", split, tmp_path / "other", trials=2, config=FIXED, seed=6)
    assert finished_trials(other)[1] != finished_trials(uninterrupted)[1]


@pytest.mark.parametrize(
    ("place", "count"),
    [
        *(("epoch", 5), ("journal", 0), ("journal", 5), ("lock", 25), ("rename", 8)),
        *(("journal", 13), ("journal", 23)),  # when some options of a trial are written
    ],
)
def test_a_killed_study_continues_to_the_same_result(uninterrupted, split, tmp_path, place, count):
    dies(place, count, rd.tune, "sasrec", split, tmp_path / "study", trials=4, config=FIXED, seed=5)
    start = time.monotonic()
    study = rd.tune("sasrec", split, tmp_path / "study", trials=4, config=FIXED, seed=5)
    assert time.monotonic() - start < 25, "waited for the lock of a killed process"
    assert finished_trials(study) == finished_trials(uninterrupted)
    assert study.best_config == uninterrupted.best_config
    assert study.default_rank == uninterrupted.default_rank
    assert "interrupted" not in study.trials["state"].to_list()
    assert not list(study.path.rglob("*.safetensors"))


def test_an_incomplete_line_of_the_journal_is_dropped(uninterrupted, split, tmp_path):
    rd.tune("sasrec", split, tmp_path / "study", trials=2, config=FIXED, seed=5)
    with (tmp_path / "study" / "study.journal").open("a") as file:
        file.write('{"op_code":4,"worker')
    study = rd.tune("sasrec", split, tmp_path / "study", trials=4, config=FIXED, seed=5)
    assert finished_trials(study) == finished_trials(uninterrupted)


def test_damaged_files_are_refused_by_name(split, tmp_path):
    rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED)
    journal = tmp_path / "study" / "study.journal"
    journal.write_text("{}\n" + journal.read_text())
    with pytest.raises(RunError, match=r"study\.journal is damaged"):
        rd.tune("sasrec", split, tmp_path / "study", trials=2, config=FIXED)
    (tmp_path / "study" / "study.json").write_text("{")
    with pytest.raises(RunError, match=r"study\.json is damaged"):
        rd.tune("sasrec", split, tmp_path / "study", trials=2, config=FIXED)


def test_the_time_limit_covers_all_sessions(split, tmp_path, monkeypatch):
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda *args: (time.sleep(0.1), step(*args))[1])
    config = FIXED | {"epochs": 1000, "patience": 1000}
    study = rd.tune("sasrec", split, tmp_path / "study", trials=3, max_minutes=2 / 60, config=config)
    assert study.trials["state"].to_list() == ["interrupted"]
    # An interrupted trial counts with the value that it reached.
    assert study.best_value == study.trials["value"][0]
    assert 2 <= 60 * study.minutes < 6
    spent = study.minutes
    study = rd.tune("sasrec", split, tmp_path / "study", trials=3, max_minutes=2 / 60, config=config)
    assert (len(study.trials), study.minutes) == (1, spent)
    study = rd.tune("sasrec", split, tmp_path / "study", trials=3, max_minutes=spent + 1.5 / 60, config=config)
    assert study.trials["state"].to_list() == ["repeated", "interrupted"]
    assert study.trials["default"].to_list() == [True, True]
    assert json.loads((study.path / "study.json").read_text())["minutes"] == study.minutes > spent


def test_a_step_of_the_clock_does_not_count(uninterrupted, split, tmp_path):
    """The time of a killed trial is that of its epochs, whatever the clocks said when it began and ended."""
    dies("epoch", 3, rd.tune, "sasrec", split, tmp_path / "study", trials=4, config=FIXED, seed=5)
    for log in (tmp_path / "study").rglob("metrics.jsonl"):
        os.utime(log, (4e9, 4e9))  # in the year 2096
    study = rd.tune("sasrec", split, tmp_path / "study", trials=4, max_minutes=10, config=FIXED, seed=5)
    assert "repeated" in study.trials["state"].to_list()
    assert 0 < study.minutes < 5
    assert finished_trials(study) == finished_trials(uninterrupted)


def test_a_time_limit_before_the_first_validation_is_an_error(split, tmp_path):
    with pytest.raises(TrainingError, match="more minutes"):
        rd.tune("sasrec", split, tmp_path / "study", max_minutes=1e-9, config=FIXED)


def test_another_study_is_refused_and_not_changed(uninterrupted, split):
    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in uninterrupted.path.rglob("*"))

    before = state()
    other = rd.split.ratio(synthetic_interactions())
    for match, call in {
        "another model": lambda: rd.tune("diffurec", split, uninterrupted.path, config=FIXED, seed=5),
        "another split: .*name was 'leave-one-out', is 'ratio'": lambda: rd.tune(
            "sasrec", other, uninterrupted.path, config=FIXED, seed=5
        ),
        "embedding_size was 8, is 16": lambda: rd.tune(
            "sasrec", split, uninterrupted.path, config=FIXED | {"embedding_size": 16}, seed=5
        ),
        "another seed": lambda: rd.tune("sasrec", split, uninterrupted.path, config=FIXED, seed=6),
    }.items():
        with pytest.raises(RunError, match=match):
            call()
    assert state() == before


def test_a_folder_with_other_files_or_in_use_is_refused(split, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds no study"):
        rd.tune("sasrec", split, tmp_path, config=FIXED)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED)
    with (
        folder_lock(tmp_path / "study", "tuning"),
        pytest.raises(RunError, match=r"is in use: process .* has been tuning there since"),
    ):
        rd.tune("sasrec", split, tmp_path / "study", trials=2, config=FIXED)


def test_a_study_that_another_process_starts_meanwhile_is_not_changed(split, tmp_path, monkeypatch):
    """The other process writes study.json between the first check of the folder and the lock."""
    original = workers.folder_lock

    @contextlib.contextmanager
    def lock_after_another(folder, activity):
        with original(folder, activity):
            (folder / "study.json").write_text(json.dumps({"format": study_module.FORMAT, "model": "diffurec"}))
            yield

    monkeypatch.setattr(workers, "folder_lock", lock_after_another)
    with pytest.raises(RunError, match="another model"):
        rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["model"] == "diffurec"


def test_a_missing_file_of_a_trial_is_not_reported_as_the_journal(split, tmp_path, monkeypatch):
    def fail(self, *args):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "vectors.npy")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(FileNotFoundError, match=r"vectors\.npy"):
        rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED)


def test_a_journal_that_cannot_be_written_is_named(split, tmp_path, monkeypatch):
    def full(self, logs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("optuna.storages.journal.JournalFileBackend.append_logs", full)
    with pytest.raises(StorageError, match=r"study\.journal cannot be written: No space"):
        rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED)


def test_bad_trials_are_pruned(split, tmp_path, monkeypatch):
    """The metric improves with every epoch; from the seventh trial on, it starts far below the others."""
    trainers = []
    init, validate = Trainer.__init__, Trainer.validate

    def counted(self, *args, **kwargs):
        trainers.append(self)
        init(self, *args, **kwargs)

    def staged(self):
        value = self.state.epoch / 100 + (0.5 if len(trainers) <= 6 else 0.0)
        return validate(self) | {"ndcg@10": value}

    monkeypatch.setattr(Trainer, "__init__", counted)
    monkeypatch.setattr(Trainer, "validate", staged)
    study = rd.tune("sasrec", split, tmp_path / "study", trials=8, config=FIXED | {"epochs": 15})
    assert study.trials["state"].to_list() == ["complete"] * 6 + ["pruned"] * 2
    # No trial is pruned in the first tenth of the epochs.
    assert study.trials["epochs"].to_list() == [15] * 6 + [2] * 2
    assert study.trials["value"].to_list() == [0.65] * 6 + [0.02] * 2
    assert not list(study.path.rglob("*.safetensors"))


def test_an_exception_of_on_validation_ends_training_and_restores_the_random_state(split, tmp_path):
    import torch

    from rediffuse.training.callbacks import Callbacks
    from rediffuse.training.train import make_trainer

    class Stop(Exception):
        pass

    calls = []

    class StopAtTwo:
        def on_validation(self, event):
            calls.append((event.epoch, event.metrics[event.metric]))
            if event.epoch == 2:
                raise Stop

    kind = model_class("sasrec")
    config = kind.Config.build(None, FIXED | {"epochs": 5})
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    user_ids = split.dataset.user_ids
    callbacks = Callbacks([StopAtTwo()])
    trainer = make_trainer(
        kind, config, split.training_view(), tmp_path, seed=0, user_ids=user_ids, callbacks=callbacks
    )
    with pytest.raises(Stop):
        trainer.run(resume=False)
    assert torch.equal(torch.rand(3), expected)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert calls == [(line["epoch"], line["validation"]["ndcg@10"]) for line in lines]
    assert len(calls) == 2
    assert not trainer.state.done


def test_options_that_fail_do_not_end_the_study(split, tmp_path, monkeypatch):
    step = Trainer._step

    def fail_once(self, *args):
        if self.folder.name == "0001":
            raise TrainingError("The loss is nan.")
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", fail_once)
    study = rd.tune("sasrec", split, tmp_path / "study", trials=3, config=FIXED)
    assert study.trials["state"].to_list() == ["complete", "failed", "complete"]
    assert study.trials["value"].is_null().to_list() == [False, True, False]

    def fail(*args):
        raise TrainingError("The loss is nan.")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(TrainingError, match=r"No trial[\s\S]*The loss is nan"):
        rd.tune("sasrec", split, tmp_path / "bad", trials=2, config=FIXED)


def test_trials_cannot_reach_the_test_subset(monkeypatch, tmp_path):
    """The training view is taken once, and nothing that a trial holds leads to the split or to test interactions."""

    class GuardedSplit(Split):
        def task(self, name):
            assert name == "valid", "the test subset was read"
            return super().task(name)

    split = rd.split.leave_one_out(synthetic_interactions())
    split = GuardedSplit(split.dataset, split.name, split.params, split.subset, split.leak)
    views, reached = [], []
    training_view = Split.training_view
    monkeypatch.setattr(Split, "training_view", lambda self: (views.append(1), training_view(self))[1])
    run_trial = search.Search.run_trial

    def inspect_and_run(self, trial, max_minutes):
        reached.extend(_reachable(self))
        run_trial(self, trial, max_minutes)

    monkeypatch.setattr(search.Search, "run_trial", inspect_and_run)
    rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED)
    assert views == [1]
    assert any(isinstance(one, TrainingView) for one in reached), "_reachable does not find what a trial holds"
    interactions = split.dataset.interactions
    forbidden = [split, split.dataset, split.subset, interactions, interactions.items]
    assert not [type(one) for one in reached if any(one is other for other in forbidden)]
    arrays = [one for one in reached if isinstance(one, np.ndarray)]
    assert not [array for array in arrays if np.shares_memory(array, interactions.items)]
    assert not [array for array in arrays if len(array) == len(interactions.items)]


def _reachable(start: object) -> list[object]:
    """All objects that an object refers to, directly or not, except through modules and classes."""
    found, waiting = {id(start): start}, [start]
    while waiting:
        for referent in gc.get_referents(waiting.pop()):
            if id(referent) not in found and not isinstance(referent, type | type(os)):
                if isinstance(referent, dict) and "__builtins__" in referent:
                    continue  # the globals of a function
                found[id(referent)] = referent
                waiting.append(referent)
    return list(found.values())


CLOSED_FORM = [
    name for name in names() if not model_class(name).trained_by_gradient and model_class(name).Config.search
]


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_closed_form_models_are_fitted_and_validated_once(split, tmp_path, name):
    study = rd.tune(name, split, tmp_path / "study", trials=3)
    assert study.trials["state"].to_list() == ["complete"] * 3
    run = rd.train(name, split, tmp_path / "run", config=study.best_config)
    assert run.validation["ndcg@10"] == study.best_value


def test_a_default_that_no_trial_beats_is_reported(split, tmp_path, monkeypatch):
    validate = Trainer.validate
    monkeypatch.setattr(
        Trainer, "validate", lambda self: validate(self) | {"ndcg@10": 0.9 if self.folder.name == "0000" else 0.1}
    )
    with pytest.warns(RediffuseWarning, match="default was never beaten in 2 trials"):
        study = rd.tune("sasrec", split, tmp_path / "study", trials=2, config=FIXED)
    assert study.default_rank == 1
    assert study.best_config == {k: v for k, v in FIXED.items() if v != getattr(model_class("sasrec").Config(), k)}


def test_bad_arguments_are_refused_with_a_remedy(split, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"popularity has no options to search[\s\S]*sasrec"):
        rd.tune("popularity", split, tmp_path / "x")
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        rd.tune("sasrec", split, tmp_path / "x", config={"epoch": 1})
    with pytest.raises(ConfigError, match="ncdg"):
        rd.tune("sasrec", split, tmp_path / "x", config={"metric": "ncdg@10"})
    with pytest.raises(ConfigError, match="trials is 0"):
        rd.tune("sasrec", split, tmp_path / "x", trials=0)
    everything = {
        option: getattr(model_class("sasrec").Config(), option) for option in model_class("sasrec").Config.search
    }
    with pytest.raises(ConfigError, match="are fixed"):
        rd.tune("sasrec", split, tmp_path / "x", config=everything)
    with pytest.raises(DataError, match="no validation subset"):
        rd.tune("sasrec", rd.split.ratio(synthetic_interactions(), train=0.8, valid=0.0), tmp_path / "x")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"rediffuse\[tune\]"):
        rd.tune("sasrec", split, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", names())
def test_every_search_space_holds_the_default_and_every_preset(name):
    config = model_class(name).Config
    for option, domain in config.search.items():
        assert option in config.model_fields
        assert option not in ("number", "state", "default", "value", "minutes", "epochs"), "a column of trials.parquet"
        for preset in (None, *config.presets):
            value = getattr(config.build(preset), option)
            distribution = search.distribution(option, domain, value)
            assert distribution._contains(distribution.to_internal_repr(value))
        if isinstance(domain, Range):
            assert domain.low < domain.high
            for end in (domain.low, domain.high):
                config.build(None, {option: end})
        else:
            assert len(set(domain)) == len(domain) > 1
            for choice in domain:
                # The journal and best.yaml return such values unchanged.
                assert choice is None or isinstance(choice, int | float | str | bool)
                config.build(None, {option: choice})


def searched_rows() -> list[str]:
    """The rows of the table in docs/tuning.md."""
    rows = []
    for name in names():
        for option, domain in model_class(name).Config.search.items():
            if isinstance(domain, Range):
                shown = f"{domain.low:g} to {domain.high:g}" + (", log" if domain.log else "")
            else:
                shown = ", ".join("null" if choice is None else str(choice).lower() for choice in domain)
            rows.append(f"| {name} | `{option}` | {shown} |")
    return rows


def test_the_page_lists_the_searched_options():
    page = (Path(__file__).parents[2] / "docs/tuning.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \w+ \| `\w+` \| .* \|$", page, flags=re.MULTILINE) == searched_rows()


def test_the_command(tmp_path, monkeypatch, capsys):
    from rediffuse import cli

    synthetic_interactions().save(tmp_path / "data")
    arguments = ["tune", "sasrec", str(tmp_path / "data"), "-o", str(tmp_path / "study"), "--trials", "2"]
    arguments += ["--set", "embedding_size=8", "--set", "blocks=1", "--epochs", "1", "--metric", "hr@10/unseen"]
    arguments += ["--split", "leave-one-out", "--minutes", "5"]
    monkeypatch.setattr(sys, "argv", ["rediffuse", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    out = capsys.readouterr().out
    assert re.search(r"The default is number [12] of 2", out)
    assert "of 5 minutes; trials: 2 complete" in out
    command = re.search(r"Next: rediffuse (train .*)", out).group(1).split()
    monkeypatch.setattr(sys, "argv", ["rediffuse", *arguments, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    content = json.loads(capsys.readouterr().out)
    assert content["metric"] == "hr@10/unseen"
    assert content["states"] == {"complete": 2}
    monkeypatch.setattr(sys, "argv", ["rediffuse", *command, "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["validation"]["hr@10/unseen"] == content["best_value"]
