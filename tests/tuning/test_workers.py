"""Several workers share a study: each trial is run once, N in all, and a killed worker's trial by another one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import polars as pl
import pytest
import yaml
from tests.dying import start
from tests.joint_tuning import work

import rediffuse as rd
from rediffuse import cli
from rediffuse.errors import ConfigError, RunError, StorageError
from rediffuse.models import model_class
from rediffuse.runs.lock import folder_lock
from rediffuse.testing import synthetic_interactions
from rediffuse.tuning import search, workers
from rediffuse.tuning.database import parse_address
from rediffuse.tuning.study import open_journal

FIXED = {"embedding_size": 8, "batch_size": 64, "epochs": 2, "blocks": 1, "precision": "fp32"}
SEARCHED = ["learning_rate", "weight_decay", "temperature", "dropout"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The default was never beaten"),
    pytest.mark.filterwarnings("ignore:The default options reached"),
]


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(params=["folder", pytest.param("database", marks=pytest.mark.slow)])
def sharing(request, tmp_path):
    """The options with which workers share a study."""
    return {"worker": True} if request.param == "folder" else {"storage": f"sqlite:///{tmp_path}/trials.db"}


def table(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "trials.parquet")


def test_two_workers_run_every_trial_once(split, tmp_path):
    processes = [
        start({}, work, "sasrec", split, tmp_path / "study", together=2, trials=4, config=FIXED, seed=5, worker=True)
        for _ in range(2)
    ]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    trials = table(tmp_path / "study")
    assert trials["state"].to_list() == ["complete"] * 4
    assert trials["default"].to_list() == [True] + [False] * 3
    assert trials.select(SEARCHED).n_unique() == 4, "two trials have the same options"
    ran = [path.read_text().split() for path in sorted((tmp_path / "study" / "trials").glob("*/processes"))]
    assert [len(processes) for processes in ran] == [1] * 4
    assert {one for processes in ran for one in processes} == {str(process.pid) for process in processes}
    best = trials.sort("value", descending=True).row(0, named=True)
    options = yaml.safe_load((tmp_path / "study" / "best.yaml").read_text())
    default = model_class("sasrec").Config()
    assert {option: options.get(option, getattr(default, option)) for option in SEARCHED} == {
        option: best[option] for option in SEARCHED
    }
    content = json.loads((tmp_path / "study" / "study.json").read_text())
    assert content["states"] == {"complete": 4}
    assert not list((tmp_path / "study").rglob("*.safetensors"))


def test_the_trial_of_a_killed_worker_is_run_again_by_another(split, tmp_path, sharing):
    """One worker dies in the middle of its first trial, while the other one works."""
    options = {"together": 2, "trials": 3, "config": FIXED, "seed": 5, **sharing}
    dying = start({"epoch": 1}, work, "sasrec", split, tmp_path / "study", **options)
    living = start({}, work, "sasrec", split, tmp_path / "study", **options)
    dying.join()
    living.join()
    assert (dying.exitcode, living.exitcode) == (-signal.SIGKILL, 0)
    trials = table(tmp_path / "study")
    assert sorted(trials["state"]) == ["complete"] * 3 + ["repeated"]
    killed = trials.row(by_predicate=pl.col("state") == "repeated", named=True)
    again = trials.filter(*(pl.col(option) == killed[option] for option in SEARCHED), pl.col("state") == "complete")
    assert len(again) == 1
    assert again["default"].item() == killed["default"]
    assert trials.filter(pl.col("state") == "complete").select(SEARCHED).n_unique() == 3
    processes = (tmp_path / "study" / "trials" / f"{again['number'].item():04d}" / "processes").read_text().split()
    assert processes == [str(living.pid)]
    assert not list((tmp_path / "study").rglob("*.safetensors"))


@pytest.mark.slow
def test_workers_without_a_common_folder_share_a_database(split, tmp_path):
    """They take no turns, so only the rule of the lowest numbers keeps them from running too many trials."""
    storage = f"sqlite:///{tmp_path}/trials.db"
    folders = [tmp_path / machine / "study" for machine in "abc"]
    processes = [
        start({}, work, "sasrec", split, folder, trials=4, config=FIXED, storage=storage) for folder in folders
    ]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    tables = [table(folder) for folder in folders]
    assert tables[0]["state"].to_list() == ["complete"] * 4
    assert tables[0]["default"].sum() == 1
    assert tables[1].equals(tables[0])
    assert tables[2].equals(tables[0])
    ran = [path.parent.name for folder in folders for path in folder.glob("trials/*/processes")]
    assert sorted(ran) == [f"{number:04d}" for number in tables[0]["number"]]


def test_the_result_has_all_trials_that_made_the_study_finished(split, tmp_path, monkeypatch):
    """Another worker finishes the last trial while this one saves the result."""
    import optuna

    storage = f"sqlite:///{tmp_path}/trials.db"
    rd.tune("sasrec", split, tmp_path / "study", trials=2, config=FIXED, storage=storage)
    save, other = search.Search.save, []

    def slow(self, *limits):
        result = save(self, *limits)
        if not other:
            study = optuna.load_study(study_name="study", storage=storage)
            other.append(study.ask({name: study.trials[0].distributions[name] for name in SEARCHED}))
            study.tell(other[0], 0.5)
        return result

    monkeypatch.setattr(search.Search, "save", slow)
    study = rd.tune("sasrec", split, tmp_path / "study", trials=3, config=FIXED, storage=storage)
    assert study.trials["state"].to_list() == ["complete"] * 3
    assert study.best_value == 0.5


@pytest.fixture
def claims(tmp_path):
    """A search whose trials are in memory."""
    import optuna

    kind = model_class("sasrec")
    study = optuna.create_study(direction="maximize")
    default = kind.Config.build(None, FIXED)
    searched = {option: kind.Config.search[option] for option in SEARCHED}
    one = workers.OnDatabase(tmp_path, parse_address("sqlite:///unused.db"))
    return search.Search(kind, default, searched, None, None, tmp_path, 0, study, False, one)  # type: ignore[arg-type]


def test_a_claim_of_more_trials_than_wanted_does_not_hold(claims, monkeypatch):
    """Another worker asks between this one's look at the trials and its own claim."""
    ask = claims.study.ask
    monkeypatch.setattr(claims.study, "ask", lambda: (ask(), ask())[1])
    assert claims.claim(2).number == 1
    claims.study.tell(0, 0.5)
    claims.study.tell(1, 0.5)
    assert claims.claim(3) is None
    assert [trial.state.name for trial in claims.study.trials] == ["COMPLETE", "COMPLETE", "RUNNING", "FAIL"]
    assert len(claims.table()) == 2, "a claim that did not hold is no trial"


def test_what_two_workers_queued_is_run_once(claims):
    """Both saw an empty study, and later both saw that a trial was lost."""
    for _ in range(2):
        claims.study.enqueue_trial({}, user_attrs={"default": True})
    assert claims.claim(5).number == 0
    assert claims.claim(5) is None
    claims.study.tell(0, state=__import__("optuna").trial.TrialState.FAIL)
    for _ in range(2):
        claims.study.enqueue_trial({}, user_attrs={"repeats": 0, "default": True})
    assert claims.claim(5).number == 2
    assert claims.claim(5) is None
    fresh = claims.claim(5)
    assert (fresh.number, "repeats" in fresh.user_attrs) == (4, False)


def test_a_worker_on_a_database_is_lost_only_after_silence(claims, monkeypatch):
    """What counts is whether the number has changed, by the clock of the one who looks."""
    clock = [1000.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock[0])
    trial = claims.study.ask()

    def lost() -> bool:
        return bool(claims.workers.lost(claims.study.get_trials(deepcopy=False)))

    assert not lost()
    clock[0] += workers.GRACE + 1
    assert lost(), "it never counted"
    for beat in range(1, 4):
        trial.set_user_attr("beat", beat)
        clock[0] += workers.GRACE + 1
        assert not lost()
    clock[0] += workers.GRACE - 1
    assert not lost()
    clock[0] += 2
    assert lost()


def test_a_result_that_came_too_late_is_dropped(split, tmp_path, monkeypatch):
    """Others took the process for dead while it trained."""
    from optuna.trial import TrialState

    validate, silent = search.make_trainer, []

    def slow(*args, **kwargs):
        if not silent:
            silent.append(1)
            study = silent_study()
            study.tell(0, state=TrialState.FAIL)
        return validate(*args, **kwargs)

    def silent_study():
        import optuna

        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/trials.db")
        return optuna.load_study(study_name="study", storage=storage)

    monkeypatch.setattr(search, "make_trainer", slow)
    with pytest.warns(rd.errors.RediffuseWarning, match="trial 0 is run again"):
        study = rd.tune(
            "sasrec", split, tmp_path / "study", trials=2, config=FIXED, storage=f"sqlite:///{tmp_path}/trials.db"
        )
    assert study.trials["state"].to_list() == ["repeated", "complete", "complete"]
    assert study.trials["value"][0] is None


def test_one_process_does_not_touch_the_trials_of_workers(split, tmp_path):
    rd.tune("sasrec", split, tmp_path, trials=1, config=FIXED, worker=True)
    import optuna

    optuna.load_study(study_name="sasrec", storage=open_journal(tmp_path / "study.journal")).ask()
    with (
        folder_lock(workers.trial_folder(tmp_path, 1), "training"),
        pytest.raises(RunError, match=r"Workers are running trials of .*: 1\.\n.*--worker"),
    ):
        rd.tune("sasrec", split, tmp_path, trials=2, config=FIXED)
    study = rd.tune("sasrec", split, tmp_path, trials=2, config=FIXED)
    assert study.trials["state"].to_list() == ["complete", "repeated", "complete"]


def test_a_worker_does_not_join_a_study_of_one_process(split, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "TURN", 0.1)
    rd.tune("sasrec", split, tmp_path, trials=1, config=FIXED)
    with folder_lock(tmp_path, "tuning"), pytest.raises(RunError, match="has been tuning there since"):
        rd.tune("sasrec", split, tmp_path, trials=2, config=FIXED, worker=True)


def test_one_worker_makes_the_trials_of_one_process(split, tmp_path):
    """A study may change from one process to workers and back."""
    alone = rd.tune("sasrec", split, tmp_path / "alone", trials=4, config=FIXED, seed=5)
    rd.tune("sasrec", split, tmp_path / "shared", trials=2, config=FIXED, seed=5, worker=True)
    shared = rd.tune("sasrec", split, tmp_path / "shared", trials=4, config=FIXED, seed=5)
    assert shared.trials.drop("minutes").equals(alone.trials.drop("minutes"))


def test_a_study_of_another_identity_is_refused(split, tmp_path):
    database = {"storage": f"sqlite:///{tmp_path}/trials.db"}
    rd.tune("sasrec", split, tmp_path / "one" / "study", trials=1, config=FIXED, **database)
    with pytest.raises(RunError, match=r"Study study of sqlite:.* was started with another seed: was 0, is 1"):
        rd.tune("sasrec", split, tmp_path / "two" / "study", trials=1, config=FIXED, seed=1, **database)
    with pytest.raises(RunError, match=r"study was started with another seed: was 0, is 1"):
        rd.tune("sasrec", split, tmp_path / "one" / "study", trials=1, config=FIXED, seed=1, **database)
    with pytest.raises(RunError, match=r"are in a database\.\n.*--storage"):
        rd.tune("sasrec", split, tmp_path / "one" / "study", trials=1, config=FIXED, worker=True)
    rd.tune("sasrec", split, tmp_path / "three", trials=1, config=FIXED, worker=True)
    with pytest.raises(RunError, match=r"are in its journal\.\n.*Leave out"):
        rd.tune("sasrec", split, tmp_path / "three", trials=1, config=FIXED, **database)


def test_a_file_system_that_cannot_lock_is_refused(split, tmp_path, monkeypatch):
    from rediffuse.runs import lock

    for module in (lock, workers):
        monkeypatch.setattr(module, "can_lock", lambda folder: False)
    with pytest.warns(rd.errors.RediffuseWarning, match="cannot lock"), pytest.raises(ConfigError, match="--storage"):
        rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED, worker=True)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+nodriver://ann:s3cret@db.example:5432/studies", "postgresql+nodriver://db.example:5432/studies"),
        ("mysql+nodriver://db.example/studies?password=s3cret", "mysql+nodriver://db.example/studies"),
    ],
)
def test_the_password_is_not_repeated(split, tmp_path, url, shown):
    address = parse_address(url)
    assert str(address) == shown
    assert "s3cret" not in repr(address)
    assert "s3cret" not in address.without_password(f'connection to "{url}" failed for s3cret')
    with pytest.raises(ConfigError) as caught:
        rd.tune("sasrec", split, tmp_path / "study", trials=1, config=FIXED, storage=url)
    assert shown in str(caught.value)
    assert "s3cret" not in str(caught.value)
    for wrong in ("ann:s3cret@db.example", "postgresql://ann:s3cret@db:port/x", "postgresql://ann:s3/s3cret@x@db/y"):
        with pytest.raises(ConfigError) as caught:
            parse_address(wrong)
        assert "s3cret" not in str(caught.value)
    written = b"".join(path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.is_file())
    assert b"s3cret" not in written
    assert b"db.example" not in written


def test_a_database_out_of_reach_is_named(split, tmp_path):
    with pytest.raises(StorageError, match=r"database sqlite:.*missing/x\.db cannot be used: .*unable to open"):
        rd.tune(
            "sasrec", split, tmp_path / "study", trials=1, config=FIXED, storage=f"sqlite:///{tmp_path}/missing/x.db"
        )


def test_the_command_takes_the_address_from_the_environment(tmp_path, monkeypatch, capsys):
    synthetic_interactions().save(tmp_path / "data")
    monkeypatch.setenv("REDIFFUSE_STORAGE", f"sqlite:///{tmp_path}/trials.db")
    arguments = ["tune", "sasrec", str(tmp_path / "data"), "-o", str(tmp_path / "study"), "--trials", "1", "--json"]
    arguments += ["--set", "embedding_size=8", "--set", "blocks=1", "--epochs", "1", "--split", "leave-one-out"]
    monkeypatch.setattr("sys.argv", ["rediffuse", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["states"] == {"complete": 1}
    assert (tmp_path / "trials.db").exists()
    assert not (tmp_path / "study" / "study.journal").exists()
    files = b"".join(path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.is_file())
    for text in (printed.out, printed.err, files.decode(errors="replace")):
        assert "trials.db" not in text
