"""Runs on the Hugging Face hub, whose place a folder or a server on this machine takes."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import polars as pl
import pytest
from tests.contracts.test_models import small

import rediffuse as rd
from rediffuse import models
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.runs import hub
from rediffuse.runs.run_folder import add_files, read_run
from rediffuse.testing import train_small

HOLDERS = {"bprmf", "lightgcn", "diffkg", "diffnet", "diffnetpp", "friends", "giffcf", "heat", "diffuasr"}
HISTORIES = [[0, 1, 2], [5], []]
pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")


def events():
    rows = [(f"customer-{user}@shop", (user * 3 + day) % 30, day) for user in range(60) for day in range(8)]
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def shop():
    return rd.read_interactions(events(), user="user", item="item", time="time")


class FakeHub:
    """The hub as a folder of this machine: what `push` and `download` call of the client."""

    def __init__(self, root: Path) -> None:
        self.root, self.private, self.messages = root, {}, []

    def folder(self, repo, revision=None):
        return self.root / repo / (revision or "main")

    def create_repo(self, repo, private=None, exist_ok=False):
        assert exist_ok
        self.private.setdefault(repo, bool(private))
        self.folder(repo).mkdir(parents=True, exist_ok=True)

    def repo_info(self, repo):
        return SimpleNamespace(private=self.private[repo])

    def create_branch(self, repo, branch, exist_ok=False):
        assert exist_ok
        self.folder(repo, branch).mkdir(exist_ok=True)

    def list_repo_files(self, repo, revision=None):
        return [path.name for path in self.folder(repo, revision).iterdir()]

    def create_commit(self, repo, operations, commit_message, revision=None):
        self.messages.append(commit_message)
        for operation in operations:
            path = self.folder(repo, revision) / operation.path_in_repo
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                path.unlink()
            elif isinstance(operation.path_or_fileobj, bytes):
                path.write_bytes(operation.path_or_fileobj)
            else:
                shutil.copyfile(operation.path_or_fileobj, path)
        commit = f"{len(self.messages):040x}"
        shutil.copytree(self.folder(repo, revision), self.folder(repo, commit))
        return SimpleNamespace(oid=commit)

    def snapshot_download(self, repo, revision=None):
        return str(self.folder(repo, revision))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    made = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gru4rec")
    return train_small("gru4rec", folder, {"epochs": 1, "embedding_size": 8}, data=shop()).run


def lists(run, **query):
    return rd.Recommender.load(run).recommend(histories=HISTORIES, k=5, **query)


def test_a_pushed_run_answers_as_the_run(run, fake):
    address = rd.push(run, "ann/shop")
    assert address.startswith("hf://ann/shop@")
    for place in ("hf://ann/shop", address, Path("hf://ann/shop")):
        assert lists(place).equals(lists(run))
    assert fake.messages == ["gru4rec run of Rediffuse"]


def test_no_user_is_published_by_default(run, fake, tmp_path):
    rd.evaluate(run, shop())
    add_files(run.path, {"extra.parquet": b"anything"})
    with pytest.warns(RediffuseWarning, match="of 60 users and extra.parquet, lists_test.parquet, per_user_"):
        rd.push(run, "ann/shop")
    folder = fake.folder("ann/shop")
    published = {path.name for path in folder.iterdir()}
    assert published == {
        *("config.json", "environment.json", "items.parquet", "model.safetensors", "README.md"),
        *("metrics.jsonl", "test.json", "users.parquet", "manifest.json"),
    } | ({"item_table.parquet"} & published)
    assert pl.read_parquet(folder / "users.parquet").height == 0
    assert not any(b"customer-" in path.read_bytes() for path in folder.iterdir())
    with pytest.raises(ConfigError, match="holds no users"):
        rd.Recommender.load("hf://ann/shop").recommend(users=read_run(run.path).user_ids[:2].to_list())
    card = (folder / "README.md").read_text()
    assert 'load("hf://ann/shop")' in card
    assert "This copy holds no users" in card


def test_new_items_can_be_added_to_a_copy_without_users(fake, tmp_path):
    kinds = ["shoes", "hats", "socks"]
    items = pl.DataFrame({"item_id": range(30), "kind": kinds * 10})
    data = rd.read_interactions(events(), user="user", item="item", time="time", items=items, item_features="kind")
    run = rd.train("theat", rd.split.none(data), tmp_path / "theat")
    new = pl.DataFrame({"item_id": [100, 101], "kind": ["hats", "socks"]})
    rd.push(run, "ann/described")
    assert {"item_features.json", "item_features.safetensors"} <= {
        path.name for path in fake.folder("ann/described").iterdir()
    }
    found = [
        rd.Recommender.load(place).with_items(new).recommend(histories=[[1, 4]], k=32)
        for place in (run, "hf://ann/described")
    ]
    assert found[0].equals(found[1])
    assert found[0]["new"].sum() == 2


def test_histories_are_published_on_request(run, fake):
    with pytest.warns(RediffuseWarning, match=r"The ids and histories of \d+ users are published"):
        rd.push(run, "ann/shop", with_histories=True, private=True, message="The first")
    users = read_run(run.path).user_ids[:3].to_list()
    one, other = (rd.Recommender.load(place).recommend(users=users) for place in (run, "hf://ann/shop"))
    assert one.equals(other)
    assert fake.messages == ["The first"]
    assert fake.private == {"ann/shop": True}


def test_checkpoints_and_what_the_manifest_does_not_list_stay_here(run, fake):
    (run.path / "notes.txt").write_text("mine")
    (run.path / "checkpoints").mkdir(exist_ok=True)
    rd.push(run, "ann/shop", with_histories=True)
    listed = json.loads((run.path / "manifest.json").read_text())["files"]
    assert {path.name for path in fake.folder("ann/shop").iterdir()} == {*listed, "manifest.json"}


def test_a_second_push_replaces_the_first(run, fake):
    rd.push(run, "ann/shop", with_histories=True)
    (fake.folder("ann/shop") / ".gitattributes").write_text("*.safetensors filter=lfs")
    rd.push(run, "ann/shop")
    names = {path.name for path in fake.folder("ann/shop").iterdir()}
    assert ".gitattributes" in names
    assert not any(name.startswith("lists_test") for name in names)


def test_a_branch(run, fake):
    rd.push(run, "ann/shop", revision="next")
    assert lists("hf://ann/shop@next").equals(lists(run))
    with pytest.raises(RunError):
        lists("hf://ann/shop")  # main is empty


@pytest.fixture(scope="module", params=[*models.names(installed=False), "gru4rec-head"])
def trained(request, tmp_path_factory):
    return small(request.param, tmp_path_factory.mktemp(request.param))


def test_weights_that_hold_users_are_published_only_with_histories(trained, fake):
    contents = read_run(trained.run.path)
    counts = {len(contents.user_ids), len(contents.user_ids) + 1, len(contents.histories.items)}
    counts.add(trained.split.task("test").histories.offsets[-1])
    sizes = {size for tensor in contents.model.state_dict().values() for size in tensor.shape}
    if contents.model.name in HOLDERS:
        with pytest.raises(ConfigError, match="hold the vectors or interactions"):
            rd.push(trained.run, "ann/shop")
        assert not (fake.root / "ann").exists()
        return
    assert not sizes & counts
    rd.push(trained.run, "ann/shop")
    assert lists("hf://ann/shop").equals(lists(trained.run))


def test_a_class_from_elsewhere_must_say_that_it_holds_no_users(tmp_path, fake):
    class Silent(models.Popularity):
        name = "silent"

    class Clear(models.Popularity):
        name, holds_users = "clear", False

    silent, clear = (train_small(kind, tmp_path / kind.name).run for kind in (Silent, Clear))
    with pytest.raises(ConfigError, match="hold the vectors"):
        rd.push(silent, "ann/shop")
    rd.push(clear, "ann/shop")


# --- refusals ----------------------------------------------------------------------------------------------


def test_what_cannot_be_pushed_is_refused(run, fake, monkeypatch):
    for repo in ("shop", "a/b/c", "", "ann/../x"):
        with pytest.raises(ConfigError, match="user/name"):
            rd.push(run, repo)
    fake.create_repo("ann/public", exist_ok=True)
    with pytest.raises(ConfigError, match="exists and is public"):
        rd.push(run, "ann/public", private=True)
    assert not list(fake.folder("ann/public").iterdir())
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="no login") as error:
        rd.push(run, "ann/shop")
    assert "hf auth login" in str(error.value)


def test_a_run_that_changes_meanwhile_is_an_error(run, fake, monkeypatch):
    committed = fake.create_commit

    def create_commit(*arguments, **more):
        add_files(run.path, {"late.parquet": b"late"})
        return committed(*arguments, **more)

    monkeypatch.setattr(fake, "create_commit", create_commit)
    with pytest.raises(RunError, match="written to while it was uploaded"):
        rd.push(run, "ann/shop")


def test_a_damaged_copy_is_found(run, fake):
    rd.push(run, "ann/shop")
    path = fake.folder("ann/shop") / "items.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RunError, match="damaged"):
        lists("hf://ann/shop")


def test_results_are_not_written_into_the_cache(run, fake):
    rd.push(run, "ann/shop", with_histories=True)
    with pytest.raises(ConfigError, match="on the hub"):
        rd.evaluate("hf://ann/shop", shop())


@pytest.mark.parametrize("address", ["hf://shop", "hf://a/b/c", "hf://a/b@", "hf:/"])
def test_addresses_are_checked(address):
    with pytest.raises(ConfigError, match="hf://user/name"):
        rd.Recommender.load(address)
    assert hub.is_address(address)
    assert not hub.is_address("runs/hf")


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that answers as the hub does for a repository or revision that it does not have, or refuses."""

    def do_GET(self):
        name = self.path.split("/")[4] if len(self.path.split("/")) > 4 else ""
        status, code = {"revisionless": (404, "RevisionNotFound"), "gated": (403, "GatedRepo")}.get(
            name, (404, "RepoNotFound")
        )
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Request-Id", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{made.server_address[1]}"
        client = huggingface_hub.snapshot_download
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda *a, **k: client(*a, **k, endpoint=address, cache_dir=tmp_path)
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield address
        made.shutdown()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://ann/nothing", "has no model ann/nothing, or it is private"),
        ("hf://ann/revisionless@v9", "has no revision 'v9'"),
        ("hf://ann/gated", "consent of its owner"),
    ],
)
def test_what_the_hub_does_not_have_is_said(server, address, message):
    with pytest.raises(RunError, match=message) as error:
        rd.Recommender.load(address)
    assert error.value.remedy


def test_no_connection_and_no_copy(monkeypatch, tmp_path):
    client = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **k: client(*a, **k, endpoint="http://127.0.0.1:9", cache_dir=tmp_path),
    )
    with pytest.raises(RunError, match="cannot be reached"):
        rd.Recommender.load("hf://ann/shop")


def test_the_command(run, fake, capsys, monkeypatch):
    from rediffuse.cli import main

    monkeypatch.setattr("sys.argv", ["rediffuse", "push", str(run.path), "ann/shop", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["address"].startswith("hf://ann/shop@")
    monkeypatch.setattr("sys.argv", ["rediffuse", "recommend", "hf://ann/shop", "--history", "1|2", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert len(json.loads(capsys.readouterr().out)["recommendations"]) == 10
