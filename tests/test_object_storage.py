"""Tables, datasets, runs and lists in a bucket of moto's S3 server: equal to local ones, and never seen half."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import polars as pl
import pytest
import typer

import rediffuse as rd
from rediffuse.addresses import AddressPath
from rediffuse.cli.app import ADDRESSES, app
from rediffuse.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    RediffuseError,
    RediffuseWarning,
    RunError,
    StorageError,
)
from rediffuse.objects import store as object_store
from rediffuse.objects.cache import cache_folder
from rediffuse.readers import tables
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.testing import synthetic_interactions
from rediffuse.training import uploads as checkpoint_uploads
from tests.s3 import bucket, names, server, store  # noqa: F401 (fixtures)
from tests.test_addresses import PATHS, arguments

pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")


@pytest.fixture(scope="module")
def data() -> rd.Dataset:
    return synthetic_interactions(60, 40, 8)


@pytest.fixture(scope="module")
def table(data) -> pl.DataFrame:
    histories = data.interactions
    users, items = data.user_ids.gather(histories.owners), data.item_ids.gather(histories.items)
    return pl.DataFrame({"user_id": users, "item_id": items, "time": histories.times})


def lose_cache() -> None:
    shutil.rmtree(cache_folder(), ignore_errors=True)


def stops_after(monkeypatch, n: int) -> None:
    """Make the store fail after ``n`` uploads."""
    real, done = object_store.put, []

    def put(path: Path, address: str) -> None:
        if len(done) == n:
            raise StorageError("The network is gone.", "Start again.")
        done.append(address)
        real(path, address)

    monkeypatch.setattr(object_store, "put", put)


def uploads(monkeypatch) -> list[str]:
    """The addresses that are uploaded from now on."""
    real, done = object_store.put, []
    monkeypatch.setattr(object_store, "put", lambda path, address: (done.append(address), real(path, address)))
    return done


def fetches(monkeypatch) -> list[str]:
    """The addresses that are fetched from now on."""
    real, done = object_store.get, []

    def get(address: str, *others) -> None:
        done.append(address)
        real(address, *others)

    monkeypatch.setattr(object_store, "get", get)
    return done


# --- tables ------------------------------------------------------------------------------------------------


def write(frame: pl.DataFrame, address: str) -> None:
    with store().open(address, "wb") as file:
        frame.write_csv(file) if address.endswith(".csv") else frame.write_parquet(file)


def test_parquet_is_read_in_pieces_where_it_is(bucket, table, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tables, "PIECE", 100)
    (tmp_path / "t").mkdir()
    for number, part in enumerate((table[:150], table[150:])):
        write(part, f"{bucket}/t/part-{number}.parquet")
        part.write_parquet(tmp_path / "t" / f"part-{number}.parquet")
    write(table, f"{bucket}/t/_temporary/part-9.parquet")
    wanted = rd.read_interactions(tmp_path / "t", time="time").fingerprint
    fetched = fetches(monkeypatch)
    for source in (f"{bucket}/t", f"{bucket}/t/", Path(f"{bucket}/t"), f"{bucket}/t/*.parquet"):
        assert rd.read_interactions(source, time="time").fingerprint == wanted
    both = [f"{bucket}/t/part-0.parquet", tmp_path / "t" / "part-1.parquet"]
    assert rd.read_interactions(both, time="time").fingerprint == wanted
    assert not fetched
    assert not cache_folder().exists()


def test_folders_named_column_value_are_columns(bucket, table):  # noqa: F811
    for day in (1, 2):
        write(table, f"{bucket}/t/day={day}/rows.parquet")
    assert rd.read_interactions(f"{bucket}/t", time="day").interactions.times.min() == 1


def test_text_is_copied_once_and_that_is_said(bucket, table, tmp_path, monkeypatch):  # noqa: F811
    table.write_csv(tmp_path / "t.csv")
    write(table, f"{bucket}/t.csv")
    fetched = fetches(monkeypatch)
    with pytest.warns(RediffuseWarning, match=r"t\.csv \(0\.0 MiB\) was copied as a whole into "):
        found = rd.read_interactions(f"{bucket}/t.csv", time="time")
    assert found.fingerprint == rd.read_interactions(tmp_path / "t.csv", time="time").fingerprint
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rd.read_interactions(f"{bucket}/t.csv", time="time")
    assert not [each for each in said if "copied" in str(each.message)]
    assert fetched == [f"{bucket}/t.csv"]
    write(table[:200], f"{bucket}/t.csv")
    assert rd.read_interactions(f"{bucket}/t.csv", time="time").num_interactions == 200


def test_tables_and_datasets_of_the_hub_are_copied(data, table, tmp_path, monkeypatch):
    """With a file system in memory in the place of the hub's."""
    from fsspec.implementations.memory import MemoryFileSystem

    system = MemoryFileSystem()
    monkeypatch.setattr(object_store, "_open", lambda address: (system, "/" + address.partition("://")[2]))
    monkeypatch.setenv("REDIFFUSE_CACHE", str(tmp_path / "cache"))
    with system.open("/datasets/ann/shop/t.parquet", "wb") as file:
        table.write_parquet(file)
    table.write_parquet(tmp_path / "t.parquet")
    wanted = rd.read_interactions(tmp_path / "t.parquet", time="time").fingerprint
    with pytest.warns(RediffuseWarning, match="was copied as a whole"):
        assert rd.read_interactions("hf://datasets/ann/shop", time="time").fingerprint == wanted
    for path in data.save(tmp_path / "data").iterdir():
        system.pipe_file(f"/datasets/ann/data/{path.name}", path.read_bytes())
    assert rd.load_dataset("hf://datasets/ann/data").fingerprint == data.fingerprint
    system.rm("/datasets", recursive=True)


def test_a_table_that_changes_while_it_is_read_is_refused(bucket, table):  # noqa: F811
    write(table, f"{bucket}/t.parquet")
    opened = tables.read_table(f"{bucket}/t.parquet", "interactions")
    opened.refuse_changed()
    write(table[:100], f"{bucket}/t.parquet")
    with pytest.raises(DataError, match=r"s3://.*/t\.parquet was changed while it was read"):
        opened.collect(["user_id"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/ratings.parquet", r"/ratings.parquet does not exist[\s\S]*Did you mean 'rating.parquet'"),
        ("/no*.parquet", r"No object matches s3://"),
        ("/numbered", r"folder of numbered tables[\s\S]*from a local folder"),
        ("/empty", r"holds no Parquet, CSV or TSV files"),
        ("-none/t.parquet", r"-none/t.parquet .*bucket does not exist[\s\S]*buckets are not created"),
    ],
)
def test_missing_tables_are_named(bucket, table, source, says):  # noqa: F811
    write(table, f"{bucket}/rating.parquet")
    store().pipe_file(f"{bucket}/empty/notes.md", b"x")
    for name in ("users.parquet", "interactions/part=0/rows.parquet"):
        store().pipe_file(f"{bucket}/numbered/{name}", b"x")
    with pytest.raises(DataError, match=says):
        rd.read_interactions(bucket + source)


# --- datasets ----------------------------------------------------------------------------------------------


def test_a_dataset_is_fetched_once_and_verified(bucket, data, monkeypatch):  # noqa: F811
    place = data.save(f"{bucket}/data")
    assert isinstance(place, AddressPath)
    assert str(place) == f"{bucket}/data"
    fetched = fetches(monkeypatch)
    assert rd.load_dataset(place).fingerprint == data.fingerprint
    assert not fetched  # the copy that was uploaded is there still
    lose_cache()
    assert rd.load_dataset(f"{bucket}/data").fingerprint == data.fingerprint
    assert len(fetched) == len(names(f"{bucket}/data")) - 1
    fetched.clear()
    assert rd.load_dataset(Path(f"{bucket}/data")).fingerprint == data.fingerprint
    assert not fetched


def test_a_damaged_or_missing_object_is_refused_by_name(bucket, data):  # noqa: F811
    data.save(f"{bucket}/data")
    lose_cache()
    name = f"{bucket}/data/interactions.items.npy"
    content = store().cat_file(name)
    store().pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"s3://.*/data/interactions\.items\.npy is damaged"):
        rd.load_dataset(f"{bucket}/data")
    store().rm_file(name)
    with pytest.raises(DataError, match=r"s3://.*/data/interactions\.items\.npy is missing"):
        rd.load_dataset(f"{bucket}/data")
    store().pipe_file(name, content)
    assert rd.load_dataset(f"{bucket}/data").fingerprint == data.fingerprint


def test_an_interrupted_upload_is_never_seen_and_goes_on(bucket, data, monkeypatch):  # noqa: F811
    with monkeypatch.context() as broken:
        stops_after(broken, 3)
        with pytest.raises(StorageError, match="network is gone"):
            data.save(f"{bucket}/data")
    before = names(f"{bucket}/data")
    assert len(before) == 3
    assert "manifest.json" not in before
    with pytest.raises(DataError, match=r"s3://.*/data holds no dataset: s3://.*/data/manifest\.json is missing"):
        rd.load_dataset(f"{bucket}/data")
    done = uploads(monkeypatch)
    data.save(f"{bucket}/data")
    assert not {f"{bucket}/data/{name}" for name in before}.intersection(done)
    assert done[-1] == f"{bucket}/data/manifest.json"
    lose_cache()
    assert rd.load_dataset(f"{bucket}/data").fingerprint == data.fingerprint


def test_a_dataset_is_replaced_without_a_mix(bucket, data, monkeypatch):  # noqa: F811
    described = data.with_features(None, None)
    described.save(f"{bucket}/data")
    lose_cache()  # another machine replaces it
    other = synthetic_interactions(50, 30, 7)
    with monkeypatch.context() as broken:
        stops_after(broken, 2)
        with pytest.raises(StorageError):
            other.save(f"{bucket}/data")
    assert "manifest.json" not in names(f"{bucket}/data")
    other.save(f"{bucket}/data")
    lose_cache()
    assert rd.load_dataset(f"{bucket}/data").fingerprint == other.fingerprint


def test_other_objects_are_left_alone(bucket, data):  # noqa: F811
    store().pipe_file(f"{bucket}/mine/users.parquet", b"x")
    with pytest.raises(DataError, match=r"s3://.*/mine is not empty: it holds users\.parquet"):
        data.save(f"{bucket}/mine")
    with pytest.raises(RunError, match=r"s3://.*/mine is not empty"):
        rd.train("popularity", data, f"{bucket}/mine")
    assert store().cat_file(f"{bucket}/mine/users.parquet") == b"x"


# --- errors ------------------------------------------------------------------------------------------------


def test_errors_of_the_store_say_what_to_do(bucket, data, monkeypatch):  # noqa: F811
    with pytest.raises(StorageError, match=r"(?s)s3://no-such-bucket/x cannot be.*Check the bucket"):
        data.save("s3://no-such-bucket/x")
    with pytest.raises(ConfigError, match="names no bucket"):
        data.save("s3://")
    with pytest.raises(ConfigError, match=r"(?s)nothing is written to the hub.*rediffuse push"):
        data.save("hf://datasets/ann/shop")
    with monkeypatch.context() as without:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            without.delenv(name)
        without.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        without.setenv("AWS_CONFIG_FILE", "/nowhere")
        fresh(without)
        with pytest.raises(DataError, match=r"(?s)there are no credentials for S3.*AWS_ACCESS_KEY_ID"):
            rd.load_dataset(f"{bucket}/data")
    with monkeypatch.context() as denied:
        denied.setattr(object_store, "_open", raises(PermissionError("Access Denied")))
        with pytest.raises(DataError, match=r"(?s)may not be read: Access Denied.*Check the credentials"):
            rd.load_dataset(f"{bucket}/data")
        denied.setattr(object_store, "_open", raises(TimeoutError("timed out")))
        with pytest.raises(RunError, match=r"(?s)cannot be read: timed out.*Check the network"):
            rd.Recommender.load(f"{bucket}/run")
        denied.setattr(object_store, "_open", raises(ImportError("Install s3fs")))
        with pytest.raises(MissingExtraError, match=r"rediffuse\[cloud\]"):
            rd.load_dataset(f"{bucket}/data")


def raises(error: Exception):
    def function(*arguments):
        raise error

    return function


def fresh(monkeypatch) -> None:
    """Let fsspec make a client from the environment, rather than take one that it has."""
    import fsspec.core

    real = fsspec.core.url_to_fs
    monkeypatch.setattr(
        "fsspec.core.url_to_fs", lambda *given, **options: real(*given, skip_instance_cache=True, **options)
    )


# --- runs and lists ----------------------------------------------------------------------------------------

CONFIG = {"epochs": 3, "embedding_size": 8, "validate_every": 1}


def lists(run: object, users: list) -> pl.DataFrame:
    return rd.Recommender.load(run).recommend(users=users, k=5)


def test_from_a_table_to_lists_all_in_a_bucket(bucket, table, tmp_path, capsys):  # noqa: F811
    """The same commands on a bucket and on local folders give the same."""
    from rediffuse.cli import main

    users = pl.DataFrame({"user_id": table["user_id"].unique(maintain_order=True)})
    for place in (bucket, str(tmp_path)):
        for name, frame in (("t.parquet", table), ("users.parquet", users)):
            write(frame, f"{place}/{name}") if place == bucket else frame.write_parquet(f"{place}/{name}")
        for line in (
            f"prepare {place}/t.parquet -o {place}/data --time time",
            f"train itemknn {place}/data -o {place}/run",
            f"evaluate {place}/run {place}/data",
            f"recommend {place}/run --users {place}/users.parquet -o {place}/lists --rows-per-part 25 -k 5",
            f"recommend {place}/run --users {place}/users.parquet -o {place}/few.csv -k 2",
        ):
            with pytest.MonkeyPatch.context() as arguments:
                arguments.setattr("sys.argv", ["rediffuse", *line.split(), "--json"])
                with pytest.raises(SystemExit) as ended:
                    main()
            out = capsys.readouterr()
            assert not ended.value.code, out
    assert str(tmp_path) not in str(sorted(tmp_path.glob("s3:*")))
    assert rd.load_dataset(f"{bucket}/data").fingerprint == rd.load_dataset(tmp_path / "data").fingerprint
    lose_cache()
    known = users["user_id"].to_list()
    assert lists(f"{bucket}/run", known).equals(lists(tmp_path / "run", known))
    tested = [json.loads(content)["metrics"] for content in (
        store().cat_file(f"{bucket}/run/test.json"), (tmp_path / "run/test.json").read_bytes())]  # fmt: skip
    assert tested[0] == tested[1]
    assert names(f"{bucket}/lists") == sorted(
        path.relative_to(tmp_path / "lists").as_posix() for path in (tmp_path / "lists").rglob("*") if path.is_file()
    )
    for name in names(f"{bucket}/lists"):
        if name.endswith(".parquet"):
            with store().open(f"{bucket}/lists/{name}") as file:
                assert pl.read_parquet(file).equals(pl.read_parquet(tmp_path / "lists" / name))
    assert store().cat_file(f"{bucket}/few.csv") == (tmp_path / "few.csv").read_bytes()


def test_part_files_go_on_on_another_machine(bucket, data, tmp_path, monkeypatch):  # noqa: F811
    recommender = rd.Recommender.load(rd.train("popularity", data, tmp_path / "run"))
    pl.DataFrame({"user_id": data.user_ids}).write_parquet(tmp_path / "users.parquet")

    def work():
        return recommend_to_folder(recommender, tmp_path / "users.parquet", f"{bucket}/lists", k=3, rows_per_part=20)

    with monkeypatch.context() as broken:
        stops_after(broken, 4)
        with pytest.raises(StorageError):
            work()
    assert "manifest.json" not in names(f"{bucket}/lists")
    lose_cache()
    found = work()
    assert (found.skipped, found.written, found.missing) == (1, 2, 0)
    assert str(found.folder) == f"{bucket}/lists"
    again = work()
    assert (again.skipped, again.written) == (3, 0)


@pytest.fixture
def uploads_at_once(monkeypatch) -> None:
    """Training uploads every checkpoint, however short an epoch is."""
    monkeypatch.setattr(checkpoint_uploads, "SECONDS", 0.0)


class Stop(Exception):
    pass


class StopsAt:
    """A machine that is taken away after some epochs."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation(self, event) -> None:
        if event.epoch == self.epoch:
            raise Stop


@pytest.mark.usefixtures("uploads_at_once")
@pytest.mark.parametrize("machine", ["the same", "another"])
def test_a_training_goes_on_from_its_last_upload(bucket, data, tmp_path, machine):  # noqa: F811
    wanted = rd.train("gru4rec", data, tmp_path / "run", config=CONFIG)
    with pytest.raises(Stop):
        rd.train("gru4rec", data, f"{bucket}/run", config=CONFIG, callbacks=[StopsAt(2)])
    assert "checkpoints/last.safetensors" in names(f"{bucket}/run")
    with pytest.raises(RunError, match=r"is not a run folder: it has no manifest\.json"):
        rd.Recommender.load(f"{bucket}/run")
    with pytest.raises(RunError, match=r"(?s)s3://.*/run is not empty.*--resume"):
        rd.train("gru4rec", data, f"{bucket}/run", config=CONFIG)
    if machine == "another":
        lose_cache()
    run = rd.train("gru4rec", data, f"{bucket}/run", config=CONFIG, resume=True)
    assert str(run.path) == f"{bucket}/run"
    assert run.validation == wanted.validation
    lose_cache()
    users = data.user_ids.to_list()
    assert lists(run, users).equals(lists(wanted, users))


@pytest.mark.usefixtures("uploads_at_once")
def test_a_machine_that_was_overtaken_fetches_the_newer_checkpoint(bucket, data, tmp_path, monkeypatch):  # noqa: F811
    place = f"{bucket}/run"
    with pytest.raises(Stop):
        rd.train("gru4rec", data, place, config=CONFIG, callbacks=[StopsAt(1)])
    with monkeypatch.context() as other:
        other.setenv("REDIFFUSE_CACHE", str(tmp_path / "other"))
        with pytest.raises(Stop):
            rd.train("gru4rec", data, place, config=CONFIG, callbacks=[StopsAt(2)], resume=True)
    seen = []

    class Sees:
        def on_validation(self, event) -> None:
            seen.append(event.epoch)

    rd.train("gru4rec", data, place, config=CONFIG, resume=True, callbacks=[Sees()])
    assert seen == [3]


def test_there_must_be_something_to_resume(bucket, data):  # noqa: F811
    with pytest.raises(RunError, match=r"s3://.*/run holds no training to resume"):
        rd.train("gru4rec", data, f"{bucket}/run", config=CONFIG, resume=True)


def test_a_finished_run_is_uploaded_after_an_interruption(bucket, data, monkeypatch):  # noqa: F811
    with monkeypatch.context() as broken:
        stops_after(broken, 2)
        with pytest.raises(StorageError):
            rd.train("popularity", data, f"{bucket}/run")
    assert "manifest.json" not in names(f"{bucket}/run")
    run = rd.train("popularity", data, f"{bucket}/run", resume=True)
    lose_cache()
    assert len(lists(run, data.user_ids[:2].to_list()))


def test_runs_are_derived_evaluated_and_compared_in_a_bucket(bucket, data, tmp_path):  # noqa: F811
    split = rd.split.leave_one_out(data)
    theat = rd.train("popularity", split, f"{bucket}/a")
    ease = rd.train("itemknn", split, f"{bucket}/b")
    for run in (theat, ease):
        rd.evaluate(run, data)
    assert "test.json" in names(f"{bucket}/a")
    lose_cache()
    found = rd.compare([theat, ease], out=f"{bucket}/report")
    assert {"report.html", "report.json"} <= set(names(f"{bucket}/report"))
    assert len(found.summary)
    rd.compare([theat, ease], out=f"{bucket}/report")  # a report is replaced
    live = rd.refit(ease, data, out=f"{bucket}/live")
    lose_cache()
    local = rd.refit(ease, data, out=tmp_path / "live")
    users = data.user_ids[:5].to_list()
    assert lists(live, users).equals(lists(local, users))
    with pytest.raises(RunError, match=r"s3://.*/live is not empty"):
        rd.refit(ease, data, out=f"{bucket}/live")


@pytest.mark.parametrize(("words", "param"), PATHS)
def test_every_path_of_every_command_in_a_bucket_is_used_or_refused(words, param, bucket, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is there, so every command fails: with an error of ours, and without a local folder s3:."""
    monkeypatch.chdir(tmp_path)
    line = arguments(words, param, f"{bucket}/x")
    if words == ("data",):
        line.insert(1, "unheard-of")
    with pytest.raises(RediffuseError) as raised:
        typer.main.get_command(app)(line, standalone_mode=False)
    assert raised.value.remedy
    assert not (tmp_path / "s3:").exists()
    if param.name not in ADDRESSES:
        assert f"is {bucket}/x, on S3 and stores like it, and only a local path" in raised.value.problem


def test_an_interrupted_evaluation_leaves_a_run_that_works(bucket, data, monkeypatch):  # noqa: F811
    run = rd.train("popularity", rd.split.leave_one_out(data), f"{bucket}/run")
    with monkeypatch.context() as broken:
        stops_after(broken, 2)
        with pytest.raises(StorageError):
            rd.evaluate(run, data)
    lose_cache()
    assert len(lists(run, data.user_ids[:2].to_list()))
    rd.evaluate(run, data)
    lose_cache()
    listed = json.loads(store().cat_file(f"{bucket}/run/manifest.json"))["files"]
    assert {"test.json", "README.md"} <= set(listed)
    assert len(lists(run, data.user_ids[:2].to_list()))


def test_what_cannot_be_in_a_bucket_is_refused(bucket, data):  # noqa: F811
    with pytest.raises(ConfigError, match=r"out is s3://.*only a local path"):
        rd.tune("popularity", data, out=f"{bucket}/study")
    with pytest.raises(ConfigError, match=r"path is s3://.*only a local path"):
        rd.read_atomic(f"{bucket}/ml.inter")
    assert not names(bucket)
