"""Batch inference on Ray: the folder is that of one process, whatever is killed."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import polars as pl
import pytest
from tests.engines.deadly import Deadly
from tests.recommender.test_batch import KNOWN, SIZE, contents, read, same_lists, small_run

import rediffuse as rd
from rediffuse.engines.ray import cluster
from rediffuse.engines.ray import recommend as recommend_on_ray
from rediffuse.engines.ray.batch import _Writer
from rediffuse.errors import DataError, MissingExtraError, RediffuseWarning, RunError
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.testing import synthetic_interactions

ROOT = Path(__file__).parents[2]
USERS = [*KNOWN, "stranger"]
HISTORIES = [["i1", "i2", f"i{n % 40}"] for n in range(49)] + [["i3", "no such item"], []]
REQUEST = {"k": 4, "seed": 3, "samples": 2, "exclude": ["i4"], "filter_seen": False, "rows_per_part": SIZE}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def recommender(run):
    return rd.Recommender.load(run)


def user_file(path: Path) -> Path:
    """A user file, with histories if its name says so."""
    frame = pl.DataFrame({"user_id": USERS})
    if path.stem == "histories":
        frame = frame.with_columns(history=pl.Series(HISTORIES))
    if path.suffix == ".csv":
        frame.with_columns(pl.col("history").list.join("|")).write_csv(path)
    else:
        frame.write_parquet(path)
    return path


# --- without a cluster -----------------------------------------------------------------------------------------------


def here(run: Path, order=list):
    """An engine that hands the work to an actor's code in this process, pickled, in an order of its own."""

    def engine(work, wanted):
        writer = _Writer(str(run), pickle.loads(pickle.dumps(work)))
        for part in order(sorted(wanted)):
            writer.write(part)
            yield part

    return engine


def jumping(parts: list[int]) -> list[int]:
    """Forwards, with gaps; then back, as after the death of an actor."""
    return parts[::2] + parts[1::2]


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
@pytest.mark.parametrize("order", [sorted, jumping, reversed])
@pytest.mark.parametrize("name", ["users.parquet", "histories.parquet", "histories.csv"])
def test_an_actor_writes_parts_in_any_order_to_the_same_bytes(run, recommender, tmp_path, name, order):
    users = user_file(tmp_path / name)
    recommend_to_folder(recommender, users, tmp_path / "alone", **REQUEST)
    result = recommend_to_folder(recommender, users, tmp_path / "out", engine=here(run, order), **REQUEST)
    assert (result.written, result.skipped, result.missing, result.finished_here) == (7, 0, 0, True)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_rules_and_filters_travel_with_the_work(tmp_path):
    """Limits, slates and filters are objects of this process; an actor gets them pickled."""
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(40)], "kind": [f"k{n % 5}" for n in range(40)]})
    rows = [(f"u{u}", f"i{(3 * u + n) % 40}", n) for u in range(40) for n in range(8)]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")
    split = rd.split.leave_one_out(rd.read_interactions(frame, items=items))
    path = rd.train("itemknn", split, tmp_path / "run").path
    pl.DataFrame({"user_id": [f"u{n}" for n in range(30)]}).write_parquet(tmp_path / "users.parquet")
    loaded = rd.Recommender.load(path)
    rules = {"max_per": {"kind": 2}, "diversity": 0.5, "diversity_by": "kind", "slate": "calibrated"}
    rules |= {"filter": "kind != 'k1'", "rows_per_part": SIZE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RediffuseWarning)
        recommend_to_folder(loaded, tmp_path / "users.parquet", tmp_path / "alone", **rules)
        recommend_to_folder(loaded, tmp_path / "users.parquet", tmp_path / "out", engine=here(path), **rules)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    found = read(tmp_path / "out").join(items, on="item_id")
    assert found.group_by("user_id", "kind").len()["len"].max() <= 2
    assert "k1" not in found["kind"]


def test_an_actor_that_finds_another_run_or_another_user_file_refuses(run, recommender, tmp_path):
    other = rd.train("popularity", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "other").path
    path = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": KNOWN}).write_parquet(path)
    with pytest.raises(RunError, match="loaded different runs"):
        recommend_to_folder(recommender, path, tmp_path / "a", engine=here(other))

    def engine(work, wanted):
        pl.DataFrame({"user_id": KNOWN[::-1]}).write_parquet(path)
        yield from here(run)(work, wanted)

    with pytest.raises(DataError, match=r"users\.parquet differs between processes"):
        recommend_to_folder(recommender, path, tmp_path / "b", engine=engine)


def test_without_ray_the_extra_is_named(run, tmp_path, monkeypatch):
    pl.DataFrame({"user_id": KNOWN}).write_parquet(tmp_path / "users.parquet")
    for name in ("ray", "ray.data", "ray.train"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"rediffuse\[ray\]"):
        recommend_on_ray(run, tmp_path / "users.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_paths_are_absolute_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cluster.everywhere("runs/a") == str(tmp_path / "runs/a")
    assert cluster.everywhere(Path("users/*.csv")) == str(tmp_path / "users/*.csv")
    assert cluster.everywhere("hf://user/name") == "hf://user/name"


def test_importing_the_package_imports_no_ray():
    code = "import rediffuse, rediffuse.cli, sys; sys.exit('ray' in sys.modules or 'rediffuse.engines' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- on a cluster of this machine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray():
    """A cluster with two CPUs."""
    pytest.importorskip("ray.data", reason="Ray is not installed")
    cluster.require_ray()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "workers"), [("users.parquet", 1), ("histories.csv", 2), ("histories.parquet", 3)])
def test_the_folder_is_that_of_one_process(ray, run, recommender, tmp_path, name, workers):
    """Also with as many actors as CPUs, and with more."""
    users = user_file(tmp_path / name)
    with pytest.warns(RediffuseWarning) as alone:
        recommend_to_folder(recommender, users, tmp_path / "alone", **REQUEST)
    with pytest.warns(RediffuseWarning) as on_ray:
        result = recommend_on_ray(run, users, tmp_path / "out", workers=workers, **REQUEST)
    assert (result.parts, result.written, result.missing, result.finished_here) == (7, 7, 0, True)
    said = [
        [str(one.message) for one in caught if one.category is RediffuseWarning and "held out" not in str(one.message)]
        for caught in (on_ray, alone)
    ]
    assert said[0] == said[1]
    assert len(said[0]) == (1 if "users" in users.name else 2)
    assert read(tmp_path / "out")["user_id"].unique(maintain_order=True).to_list() == list(dict.fromkeys(USERS))
    same_lists(read(tmp_path / "out"), read(tmp_path / "alone"))
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out", "alone")]
    assert manifests[0]["users"] == manifests[1]["users"] == len(USERS)
    # Either engine leaves a folder that the other has finished alone.
    assert recommend_to_folder(recommender, users, tmp_path / "out", **REQUEST).written == 0


@pytest.fixture
def deadly(tmp_path) -> tuple[Path, Path, Path]:
    """A run of a model from outside, a user file, and a file of what happens to processes that score the users."""
    fate, users = tmp_path / "fate", tmp_path / "users.parquet"
    pl.DataFrame({"user_id": USERS}).write_parquet(users)
    split = rd.split.leave_one_out(synthetic_interactions())
    return rd.train(Deadly, split, tmp_path / "run", config={"fate": str(fate)}).path, users, fate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_a_killed_actor_is_started_again(ray, deadly, tmp_path):
    path, users, fate = deadly
    fate.write_text("once")
    result = recommend_on_ray(path, users, tmp_path / "out", workers=2, rows_per_part=SIZE)
    assert not fate.exists()
    assert (result.written, result.missing, result.finished_here) == (7, 0, True)
    recommend_to_folder(rd.Recommender.load(path), users, tmp_path / "alone", rows_per_part=SIZE)
    same_lists(read(tmp_path / "out"), read(tmp_path / "alone"))


@pytest.mark.slow
def test_actors_that_always_die_end_with_an_error(ray, deadly, tmp_path, monkeypatch):
    path, users, fate = deadly
    fate.write_text("always")
    monkeypatch.setattr("rediffuse.engines.ray.batch._RESTARTS", 1)
    with pytest.raises(RunError, match=r"^Actors died too often") as caught:
        recommend_on_ray(path, users, tmp_path / "out", workers=1, rows_per_part=SIZE)
    assert caught.value.remedy
    assert len(str(caught.value).splitlines()) < 4


@pytest.mark.slow
def test_an_error_of_an_actor_arrives_as_it_was_raised(ray, deadly, tmp_path):
    path, users, fate = deadly
    shutil.copytree(path, trained := tmp_path / "copy")
    fate.write_text("error")
    with pytest.raises(DataError, match=r"^The file has changed") as caught:
        recommend_on_ray(path, users, tmp_path / "out", workers=1, rows_per_part=SIZE)
    assert type(caught.value) is DataError
    assert caught.value.remedy == "Start again."
    shutil.rmtree(path)
    loaded = rd.Recommender.load(trained)
    with pytest.raises(RunError, match=r"run") as caught:  # as an actor starts
        recommend_on_ray(path, users, tmp_path / "new", workers=1, recommender=loaded, rows_per_part=SIZE)
    assert type(caught.value) is RunError
    assert "Ray" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
@pytest.mark.parametrize("again", ["ray", "one process"])
def test_a_killed_command_is_finished_by_either_engine(request, run, recommender, tmp_path, again):
    """The cluster of the killed process ends with it."""
    pytest.importorskip("ray.data", reason="Ray is not installed")
    path, out = tmp_path / "users.parquet", tmp_path / "out"
    pl.DataFrame({"user_id": USERS}).write_parquet(path)
    code = f"""
import os, signal
from rediffuse.engines import ray
def die(done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
ray.recommend({str(run)!r}, {str(path)!r}, {str(out)!r}, workers=1, on_progress=die, **{REQUEST!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    complete = list((out / "done").glob("*.json"))
    assert 3 <= len(complete) < 7
    assert not (out / "manifest.json").exists()
    if again == "ray":
        request.getfixturevalue("ray")
        result = recommend_on_ray(run, path, out, workers=2, **REQUEST)
    else:
        result = recommend_to_folder(recommender, path, out, **REQUEST)
    assert result.skipped >= len(complete)
    assert result.finished_here
    recommend_to_folder(recommender, path, tmp_path / "alone", **REQUEST)
    same_lists(read(out), read(tmp_path / "alone"))
