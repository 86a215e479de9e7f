"""Damage to any file of a run or a dataset gives an error that names the file, or does not change the result."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest

import rediffuse as rd
from rediffuse.data.loading import load_dataset
from rediffuse.errors import DataError, RediffuseError, RunError
from rediffuse.runs.run_folder import read_manifest
from rediffuse.serving.hosted import RunSnapshot


def flip(at):
    """Damage that changes one bit at this share of the file."""

    def damage(path):
        content = bytearray(path.read_bytes())
        if content:
            content[int(at * (len(content) - 1))] ^= 1 if at != 0.5 else 0x80
        path.write_bytes(content)

    return damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


DAMAGES = {
    **{f"byte at {at}": flip(at) for at in (0.0, 0.02, 0.3, 0.5, 0.9, 1.0)},
    **{"truncated": truncate, "empty": empty, "missing": lambda path: path.unlink()},
}
every_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def damaged_copies(folder, target, damage, only=lambda path: True):
    """Yield copies of a folder in which one file is damaged, with the path of the original of that file."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        # A lock has no content.
        if path.is_file() and not path.name.startswith(".lock") and only(path):
            copy = target / str(number) / folder.name
            shutil.copytree(folder, copy)
            damage(copy / path.relative_to(folder))
            yield copy, path


def outcome(work, path, expected):
    """ "right" or "refused"; fails unless a damaged file gives the expected result or an error that names it."""
    try:
        found = work()
    except RediffuseError as error:
        message = str(error)
    else:
        assert found == expected, f"{path.name}: a wrong result"
        return "right"
    assert path.name in message, f"{path.name}: {message}"
    return "refused"


@every_damage
def test_a_damaged_run_is_refused_or_recommends_the_same(run, tmp_path, damage):
    def recommend(folder):
        return RunSnapshot(folder, "index", "cpu").recommender.recommend(users=["u1", "u2"], k=5).to_dicts()

    expected = recommend(run)
    outcomes = {}
    for folder, path in damaged_copies(run, tmp_path, damage):
        name = path.relative_to(run).as_posix()
        outcomes[name] = outcome(lambda folder=folder: recommend(folder), path, expected)
    unread = {"checkpoints/best.safetensors", "checkpoints/identity.safetensors", "checkpoints/last.safetensors"}
    assert {name for name, found in outcomes.items() if found == "right"} == unread
    listed = {*read_manifest(run)["files"], "manifest.json"}
    assert {name for name, found in outcomes.items() if found == "refused"} == listed
    assert {"metrics.jsonl", "test.json", "per_user_test.parquet", "index.faiss", "README.md"} <= listed


@pytest.mark.parametrize("damage", [flip(0.5), empty], ids=["byte", "empty"])
def test_a_damaged_run_is_not_evaluated_to_other_metrics(run, data, tmp_path, damage):
    expected = json.loads((run / "test.json").read_text())["metrics"]
    for folder, path in damaged_copies(run, tmp_path, damage, lambda path: path.name != "index.faiss"):
        outcome(lambda folder=folder: rd.evaluate(folder, data)["metrics"], path, expected)


def test_damaged_artifacts_are_refused(split, tmp_path):
    options = {"embedding_size": 8, "epochs": 1, "batch_size": 256}
    run = rd.train("diffkg", split, tmp_path / "run", config=options).path
    for folder, _ in damaged_copies(run, tmp_path, flip(0.5), lambda path: path.name == "knowledge.parquet"):
        with pytest.raises(RunError, match=r"knowledge\.parquet"):
            rd.Recommender.load(folder)


@every_damage
def test_training_from_damaged_files_is_refused_or_gives_the_same_weights(run, longer, train, tmp_path, damage):
    names = ("metrics.jsonl", "manifest.json", "best.safetensors", "identity.safetensors", "last.safetensors")

    def resume(folder):
        try:
            train(folder, epochs=3, resume=True)
        except RunError as error:
            if "holds no training to resume" in str(error):
                raise RunError("identity.safetensors is missing") from None
            raise
        return (folder / "model.safetensors").read_bytes()

    expected = (longer / "model.safetensors").read_bytes()
    for folder, path in damaged_copies(run, tmp_path, damage, lambda path: path.name in names):
        found = outcome(lambda folder=folder: resume(folder), path, expected)
        lines = (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
        if found == "right":
            rd.Recommender.load(folder)
            missing = path.name == "metrics.jsonl" and DAMAGES["missing"] is damage
            assert [json.loads(line)["epoch"] for line in lines] == ([3] if missing else [1, 2, 3])
        else:
            assert path.name in {"metrics.jsonl", "best.safetensors", "identity.safetensors", "last.safetensors"}


def test_training_continues_without_a_damaged_log_that_was_removed(run, longer, train, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    flip(0.3)(log)
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged[\s\S]*remove it"):
        train(tmp_path / "run", epochs=3, resume=True)
    log.unlink()
    train(tmp_path / "run", epochs=3, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()


@every_damage
def test_a_damaged_dataset_is_refused(data, tmp_path, damage):
    intact = data.save(tmp_path / "intact")
    assert {"social.parquet", "kg.parquet", "manifest.json"} <= {path.name for path in intact.iterdir()}
    for folder, path in damaged_copies(intact, tmp_path / "copies", damage):
        with pytest.raises(DataError, match=path.name):
            load_dataset(folder)


def change_manifest(change, path):
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(change(manifest)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format": 9}, "format 9; this version reads format 1"),
        (lambda m: m | {"format": "two"}, "format two"),
        (lambda m: m | {"format": 0}, "format 0"),
        (lambda m: {k: v for k, v in m.items() if k != "format"}, "damaged"),
        (lambda m: m | {"files": []}, "damaged"),
        (lambda m: m | {"files": {}}, "checksum differs"),
        (lambda m: m | {"more": 1}, "checksum differs"),
        (lambda m: [], "damaged"),
        (lambda m: 1, "damaged"),
    ],
)
def test_run_manifests_of_other_versions_are_refused(run, tmp_path, change, message):
    shutil.copytree(run, tmp_path / "run")
    change_manifest(change, tmp_path / "run" / "manifest.json")
    with pytest.raises(RunError, match=rf"manifest\.json .*{message}"):
        rd.Recommender.load(tmp_path / "run")


@pytest.mark.parametrize("change", [lambda m: m | {"format": 9}, lambda m: {"format": 9, "objects": []}])
def test_training_of_a_run_of_another_version_is_not_resumed(run, train, tmp_path, change):
    folder = shutil.copytree(run, tmp_path / "run")
    change_manifest(change, folder / "manifest.json")
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(RunError, match="format 9; this version reads format 1"):
        train(folder, epochs=3, resume=True)
    assert (folder / "manifest.json").read_bytes() == before
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"version": 10**6}, "format version 1000000"),
        (lambda m: m | {"version": "two"}, "format version two"),
        (lambda m: {k: v for k, v in m.items() if k != "version"}, "format version None"),
        (lambda m: {k: v for k, v in m.items() if k != "format"}, "not the manifest of a dataset"),
        (lambda m: [], "not the manifest of a dataset"),
    ],
)
def test_dataset_manifests_of_other_versions_are_refused(data, tmp_path, change, message):
    folder = data.save(tmp_path / "d")
    change_manifest(change, folder / "manifest.json")
    with pytest.raises(DataError, match=rf"manifest\.json .*{message}"):
        load_dataset(folder)


def test_manifests_of_earlier_versions_need_no_checksum(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    change_manifest(lambda m: {k: v for k, v in m.items() if k != "sha256"}, tmp_path / "run" / "manifest.json")
    assert isinstance(rd.Recommender.load(tmp_path / "run").recommend(users=["u1"]), pl.DataFrame)
