"""Every file of a run and of a dataset, damaged: an error that names it, or the right answer all the same."""

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
    def harm(path):
        content = bytearray(path.read_bytes())
        if content:
            content[int(at * (len(content) - 1))] ^= 1 if at != 0.5 else 0x80
        path.write_bytes(content)

    return harm


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


HARMS = {
    **{f"byte at {at}": flip(at) for at in (0.0, 0.02, 0.3, 0.5, 0.9, 1.0)},
    **{"truncated": truncate, "empty": empty, "missing": lambda path: path.unlink()},
}
harms = pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)


def damaged(folder, place, harm, only=lambda path: True):
    """Copies of a folder, each with one file harmed; and that file."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        # A lock holds nothing.
        if path.is_file() and not path.name.startswith(".lock") and only(path):
            copy = place / str(number) / folder.name
            shutil.copytree(folder, copy)
            harm(copy / path.relative_to(folder))
            yield copy, path


def settled(answer, path, expected):
    """What came of a damaged file; fails unless it is an error that names it or the expected answer."""
    try:
        found = answer()
    except RediffuseError as error:
        said = str(error)
    else:
        assert found == expected, f"{path.name}: a wrong answer"
        return "right"
    assert path.name in said, f"{path.name}: {said}"
    return "refused"


@harms
def test_a_damaged_run_is_refused_or_answers_the_same(run, tmp_path, harm):
    def answer(folder):
        return RunSnapshot(folder, "index").recommender.recommend(users=["u1", "u2"], k=5).to_dicts()

    expected = answer(run)
    outcomes = {path.relative_to(run).as_posix(): settled(lambda folder=folder: answer(folder), path, expected)
                for folder, path in damaged(run, tmp_path, harm)}  # fmt: skip
    unread = {"checkpoints/best.safetensors", "checkpoints/identity.safetensors", "checkpoints/last.safetensors"}
    assert {name for name, outcome in outcomes.items() if outcome == "right"} == unread
    listed = {*read_manifest(run)["files"], "manifest.json"}
    assert {name for name, outcome in outcomes.items() if outcome == "refused"} == listed
    assert {"metrics.jsonl", "test.json", "per_user_test.parquet", "index.faiss", "README.md"} <= listed


@pytest.mark.parametrize("harm", [flip(0.5), empty], ids=["byte", "empty"])
def test_a_damaged_run_is_not_evaluated_to_other_figures(run, data, tmp_path, harm):
    expected = json.loads((run / "test.json").read_text())["metrics"]
    for folder, path in damaged(run, tmp_path, harm, lambda path: path.name != "index.faiss"):
        settled(lambda folder=folder: rd.evaluate(folder, data)["metrics"], path, expected)


def test_tables_of_a_model_are_looked_at_too(split, tmp_path):
    options = {"embedding_size": 8, "epochs": 1, "batch_size": 256}
    made = rd.train("diffkg", split, tmp_path / "run", config=options).path
    for folder, _ in damaged(made, tmp_path, flip(0.5), lambda path: path.name == "knowledge.parquet"):
        with pytest.raises(RunError, match=r"knowledge\.parquet"):
            rd.Recommender.load(folder)


@harms
def test_training_goes_on_from_what_is_whole_or_not_at_all(run, longer, train, tmp_path, harm):
    names = ("metrics.jsonl", "manifest.json", "best.safetensors", "identity.safetensors", "last.safetensors")

    def answer(folder):
        try:
            train(folder, epochs=3, resume=True)
        except RunError as error:
            if "holds no training to resume" in str(error):
                raise RunError("identity.safetensors is missing") from None
            raise
        return (folder / "model.safetensors").read_bytes()

    expected = (longer / "model.safetensors").read_bytes()
    for folder, path in damaged(run, tmp_path, harm, lambda path: path.name in names):
        outcome = settled(lambda folder=folder: answer(folder), path, expected)
        lines = (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
        if outcome == "right":
            rd.Recommender.load(folder)
            gone = path.name == "metrics.jsonl" and HARMS["missing"] is harm
            assert [json.loads(line)["epoch"] for line in lines] == ([3] if gone else [1, 2, 3])
        else:
            assert path.name in {"metrics.jsonl", "best.safetensors", "identity.safetensors", "last.safetensors"}


def test_a_log_may_be_given_up(run, longer, train, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    flip(0.3)(log)
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged[\s\S]*remove it"):
        train(tmp_path / "run", epochs=3, resume=True)
    log.unlink()
    train(tmp_path / "run", epochs=3, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()


@harms
def test_a_damaged_dataset_is_refused(data, tmp_path, harm):
    whole = data.save(tmp_path / "whole")
    assert {"social.parquet", "kg.parquet", "manifest.json"} <= {path.name for path in whole.iterdir()}
    for folder, path in damaged(whole, tmp_path / "copies", harm):
        with pytest.raises(DataError, match=path.name):
            load_dataset(folder)


def manifest_with(change, path):
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(change(manifest)))


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_manifests_of_runs_of_other_versions(run, train, tmp_path, change, said):
    shutil.copytree(run, tmp_path / "run")
    manifest_with(change, tmp_path / "run" / "manifest.json")
    with pytest.raises(RunError, match=rf"manifest\.json .*{said}"):
        rd.Recommender.load(tmp_path / "run")


@pytest.mark.parametrize("change", [lambda m: m | {"format": 9}, lambda m: {"format": 9, "objects": []}])
def test_a_run_of_another_version_is_not_trained_further(run, train, tmp_path, change):
    folder = shutil.copytree(run, tmp_path / "run")
    manifest_with(change, folder / "manifest.json")
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(RunError, match="format 9; this version reads format 1"):
        train(folder, epochs=3, resume=True)
    assert (folder / "manifest.json").read_bytes() == before
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"version": 10**6}, "format version 1000000"),
        (lambda m: m | {"version": "two"}, "format version two"),
        (lambda m: {k: v for k, v in m.items() if k != "version"}, "format version None"),
        (lambda m: {k: v for k, v in m.items() if k != "format"}, "not the manifest of a dataset"),
        (lambda m: [], "not the manifest of a dataset"),
    ],
)
def test_manifests_of_datasets_of_other_versions(data, tmp_path, change, said):
    folder = data.save(tmp_path / "d")
    manifest_with(change, folder / "manifest.json")
    with pytest.raises(DataError, match=rf"manifest\.json .*{said}"):
        load_dataset(folder)


def test_manifests_without_a_checksum_are_of_earlier_versions(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    manifest_with(lambda m: {k: v for k, v in m.items() if k != "sha256"}, tmp_path / "run" / "manifest.json")
    assert isinstance(rd.Recommender.load(tmp_path / "run").recommend(users=["u1"]), pl.DataFrame)
