"""Well-known sets: prepared ones load with the counts of their README; publishers' files are checked."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import re
import socketserver
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rediffuse.data import split
from rediffuse.data.loading import load_dataset
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers import public_datasets
from rediffuse.testing import synthetic_interactions

PREPARED = (
    "amazon-beauty amazon-toys book-crossing-kg diffnet-yelp diffrec-ml1m-clean filmtrust lastfm-hetrec "
    "lastfm-kgat-partial ml-100k ml-1m pdrec-douban-book recdiff-ciao steam-games"
)


def stated(folder: Path) -> dict[str, Any]:
    """The table under "Counts" of a README."""
    text = (folder / "README.md").read_text().partition("## Counts")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", text, flags=re.MULTILINE))
    return {name: ast.literal_eval(value) for name, value in rows.items() if name != "what" and value != "value"}


@pytest.mark.real_data
@pytest.mark.parametrize("name", PREPARED.split())
def test_prepared_sets_load_with_the_counts_of_their_readme(data_root: Path, name: str) -> None:
    counts, data = stated(data_root / name), public_datasets.public_dataset(name, root=data_root)
    report = data.report
    assert data.num_users - report.get("users_without_interactions", 0) == counts["users"]
    assert data.num_items == counts["items"]
    assert data.num_interactions == counts["interactions"]
    assert data.num_interactions - report["repeated_interactions"] == counts["unique_pairs"]
    assert data.has_timestamps == counts["timestamps"]
    assert (data.title is not None) == counts["titles"]
    if "links" in counts:
        assert data.social is not None
        assert len(data.social) + report["social_self_links"] + report["social_repeated"] == counts["links"]
        assert len(np.union1d(data.social.source, data.social.target)) == counts["users_in_links"]
    if "triples" in counts:
        assert data.kg is not None
        assert len(data.kg) + report["kg_self_links"] + report["kg_repeated"] == counts["triples"]
        assert data.kg.num_relations == counts["relations"]
        assert data.kg.num_entities == counts["entities_incl_items"]
        assert report["kg_linked_items"] + report["kg_items_linked_nowhere"] == counts["linked_items"]
    sizes = {}
    for scheme, subset in data.given.items():
        prefix = "" if scheme == "given" else f"{scheme}/"
        found = {name: int((subset == i).sum()) for i, name in enumerate(("train", "valid", "test"))}
        sizes |= {prefix + name: size for name, size in found.items() if size}
    assert sizes == counts.get("splits", {})
    assert split.default(data).sizes()["test"] > 0


@pytest.mark.real_data
def test_beauty_has_the_split_of_diffurec(data_root: Path) -> None:
    """Its leave-one-out split is ours, although many interactions of a user share a day."""
    data = public_datasets.public_dataset("amazon-beauty", root=data_root)
    assert (split.given(data).subset == split.leave_one_out(data).subset).all()


@pytest.mark.real_data
def test_order_of_prepared_rows_is_kept(data_root: Path) -> None:
    data = public_datasets.public_dataset("ml-1m", root=data_root)
    assert not data.has_timestamps
    rows = pl.read_parquet(data_root / "ml-1m" / "interactions.parquet").filter(pl.col("user_id") == 1)
    assert data.item_ids.gather(data.interactions.row(0)).to_list() == rows.sort("position")["item_id"].to_list()


# --- fetching -----------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    frame = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5], "weight": [0, 2, 3], "position": [1, 0, 0]})
    frame.write_parquet(tmp_path / "sets" / "mine" / "interactions.parquet")
    return tmp_path / "sets"


def test_prepared_sets_are_found_and_saved(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIFFUSE_DATA", str(prepared))
    assert public_datasets.public_dataset_names() == ["lastfm-hetrec", "mine", "ml-100k", "ml-1m"]
    data = public_datasets.public_dataset("mine", out=tmp_path / "out")
    assert load_dataset(tmp_path / "out").fingerprint == data.fingerprint
    assert data.interactions.ratings is not None
    assert data.interactions.ratings.tolist() == [2, 0, 3]
    with pytest.raises(ConfigError, match="Did you mean 'ml-100k'"):
        public_datasets.public_dataset("ml100k")


def test_data_root_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIFFUSE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere does not exist"):
        public_datasets.public_dataset_names()


def test_what_was_tried_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIFFUSE_DATA", raising=False)

    def unreachable(*_: Any) -> bytes:
        raise public_datasets._UnreachableError("no route")

    monkeypatch.setattr(public_datasets, "_download", unreachable)
    monkeypatch.setattr(public_datasets, "_pip_download", unreachable)
    with pytest.raises(DataError, match=r"(?s)ml-100k\.zip: no route; pip download recbole.*REDIFFUSE_DATA"):
        public_datasets.public_dataset("ml-100k")
    with pytest.raises(DataError, match=r"ml-1m\.zip: no route\."):
        public_datasets.public_dataset("ml-1m")


def test_a_changed_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIFFUSE_DATA", raising=False)
    with pytest.raises(ConfigError, match="REDIFFUSE_DATA names"):
        public_datasets.public_dataset("amazon-beauty")
    monkeypatch.setattr(public_datasets, "_download", lambda url: b"something else")
    with pytest.raises(DataError, match=r"ml-1m\.zip is not the file it should be: its sha256 is"):
        public_datasets.public_dataset("ml-1m")


ANSWERS = {
    "whole": [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"],
    "broken off": [b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b"half"],
    "broken chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf"],
    "no HTTP": [b"SSH-2.0 hello\r\n\r\n"],
    "nothing": [],
    "endless": [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 1000] * 1000],
    "missing": [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"],
    "a circle": [b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"],
    "drips": [b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", *[b"x"] * 400],
    "drips headers": [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 90],
}


@pytest.fixture
def site() -> Iterator[Callable[[str], str]]:
    """site(kind): the address of a server on this machine that gives one of ANSWERS."""
    stop = threading.Event()
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(kind: str) -> str:
        class Answer(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(65536)
                with contextlib.suppress(OSError):
                    for piece in ANSWERS[kind]:
                        self.request.sendall(piece)
                        if "drips" in kind and stop.wait(0.1):
                            return

        socketserver.ThreadingTCPServer.daemon_threads = True
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/set.zip"

    yield start
    stop.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("broken off", "broken off after 4 of 500 bytes"),
        ("broken chunks", "IncompleteRead"),
        ("no HTTP", "SSH"),
        ("nothing", "closed"),
        ("endless", "more than 100,000 bytes"),
        ("missing", "Not Found"),
        ("a circle", "redirect"),
        ("drips", "not complete after 0.5 seconds|the time is over"),
        ("drips headers", "not complete after 0.5 seconds"),
    ],
)
def test_a_download_that_does_not_end_well_is_given_up(
    site: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setattr(public_datasets, "DEADLINE", 0.5 if "drips" in kind else 60.0)
    monkeypatch.setattr(public_datasets, "MOST_BYTES", 100_000)
    assert public_datasets._download(site("whole")) == b"whole"
    start = time.monotonic()
    with pytest.raises(public_datasets._UnreachableError, match=said):
        public_datasets._download(site(kind))
    assert time.monotonic() - start < 10


def test_the_next_source_is_tried(site: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = dataclasses.replace(public_datasets._archives()["ml-100k"], url=site("broken off"))
    monkeypatch.setattr(public_datasets, "_archives", lambda: {"ml-100k": archive})
    other = synthetic_interactions()
    monkeypatch.setattr(public_datasets, "_from_recbole_wheel", lambda: other)
    monkeypatch.delenv("REDIFFUSE_DATA", raising=False)
    assert public_datasets.public_dataset("ml-100k") is other
    assert "recbole" in other.report["source"]


def test_a_failing_download_says_why() -> None:
    with pytest.raises(public_datasets._UnreachableError):
        public_datasets._download("http://127.0.0.1:9/nothing.zip")


def test_a_failing_pip_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    with pytest.raises(public_datasets._UnreachableError, match="ERROR: No matching distribution"):
        public_datasets._pip_download(tmp_path)


def archive(monkeypatch: pytest.MonkeyPatch, name: str, interactions: int, members: dict[str, str]) -> None:
    """Let ``name`` download a zip file with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for member, text in members.items():
            new.writestr(member, text.encode("utf-8" if name.startswith("lastfm") else "latin-1"))
    content = buffer.getvalue()
    known = public_datasets._archives()[name]
    changed = public_datasets.Archive(known.url, hashlib.sha256(content).hexdigest(), known.build, interactions)
    monkeypatch.delenv("REDIFFUSE_DATA", raising=False)
    monkeypatch.setattr(public_datasets, "_archives", lambda: {name: changed})
    monkeypatch.setattr(public_datasets, "_download", lambda url: content)


def test_ml_1m_from_its_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {
        "ml-1m/ratings.dat": "1::20::5::978300760\n1::10::3::978300700\n2::10::4::978300000\n",
        "ml-1m/movies.dat": '10::Amélie: the "film" (2001)::Comedy|Romance\n20::B (1995)::Drama\n',
        "ml-1m/users.dat": "1::F::1::10::48067\n2::M::56::16::00070\n",
    }
    archive(monkeypatch, "ml-1m", 3, members)
    data = public_datasets.public_dataset("ml-1m")
    assert data.items is not None
    assert data.items["title"].to_list() == ['Amélie: the "film" (2001)', "B (1995)"]
    assert data.users is not None
    assert data.users["zip"].to_list() == ["48067", "00070"]
    assert data.interactions.row(0).tolist() == [0, 1]
    assert data.report["source"].endswith("ml-1m.zip")
    archive(monkeypatch, "ml-1m", 4, members)
    with pytest.raises(DataError, match="gave 3 interactions, not 4"):
        public_datasets.public_dataset("ml-1m")
    del members["ml-1m/users.dat"]
    archive(monkeypatch, "ml-1m", 3, members)
    with pytest.raises(DataError, match=r"holds no users\.dat"):
        public_datasets.public_dataset("ml-1m")


def test_lastfm_from_its_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {
        "artists.dat": 'id\tname\turl\tpictureURL\n51\tDuran "x\thttp://a\thttp://b\n52\tSigur Rós\thttp://c\t\n',
        "user_artists.dat": "userID\tartistID\tweight\n2\t51\t13883\n2\t52\t11690\n3\t51\t5\n",
        "user_friends.dat": "userID\tfriendID\n2\t3\n3\t2\n",
        "readme.txt": "",
    }
    archive(monkeypatch, "lastfm-hetrec", 3, members)
    data = public_datasets.public_dataset("lastfm-hetrec")
    assert data.items is not None
    assert data.items["title"].to_list() == ['Duran "x', "Sigur Rós"]
    assert data.social is not None
    assert len(data.social) == 2
    assert not data.has_timestamps


@pytest.mark.real_data
def test_ml_100k_is_the_same_from_every_source(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher's files are written again from the prepared set, in the publisher's form."""
    folder = data_root / "ml-100k"
    rows = pl.read_parquet(folder / "interactions.parquet").cast({"rating": pl.Int32})
    items, users = pl.read_parquet(folder / "items.parquet"), pl.read_parquet(folder / "users.parquet")
    splits = pl.read_parquet(folder / "splits.parquet").join(rows, on=["user_id", "item_id"])
    flags = [
        pl.col("genres").str.split("|").list.contains(g).cast(pl.Int8).fill_null(0).alias(g)
        for g in public_datasets._GENRES
    ]
    films = items.select("item_id", "title", "release_date", pl.lit("").alias("video"), "imdb_url", *flags)

    def text(frame: pl.DataFrame, separator: str) -> str:
        return frame.write_csv(include_header=False, separator=separator, quote_style="never")

    members = {
        "ml-100k/u.data": text(rows.sample(fraction=1, shuffle=True, seed=0), "\t"),
        "ml-100k/u.item": text(films, "|"),
        "ml-100k/u.user": text(users, "|"),
    }
    for scheme, subset in splits.select("scheme", "split").unique().rows():
        fold = splits.filter((pl.col("scheme") == scheme) & (pl.col("split") == subset))
        end = "base" if subset == "train" else "test"
        members[f"ml-100k/{scheme}.{end}"] = text(fold.select(rows.columns), "\t")
    archive(monkeypatch, "ml-100k", 100_000, members)
    published, prepared = (
        public_datasets.public_dataset("ml-100k"),
        public_datasets.public_dataset("ml-100k", root=data_root),
    )
    assert published.interactions_fingerprint == prepared.interactions_fingerprint
    assert published.items is not None
    assert prepared.items is not None
    assert published.items.fill_null("").equals(prepared.items)
    assert sorted(published.given) == sorted(prepared.given)
    assert all((published.given[s] == prepared.given[s]).all() for s in prepared.given)


@pytest.mark.real_data
def test_ml_100k_from_the_recbole_wheel(data_root: Path) -> None:
    try:
        data = public_datasets._from_recbole_wheel()
    except public_datasets._UnreachableError as error:
        pytest.skip(f"pip cannot download the wheel: {error}")
    prepared = public_datasets.public_dataset("ml-100k", root=data_root)
    assert data.interactions_fingerprint == prepared.interactions_fingerprint
    assert data.items is not None
    assert prepared.items is not None
    assert data.items["title"].equals(prepared.items["title"])
    assert data.kg is None, "its links point to the wrong films"


def test_the_package_is_light_to_import() -> None:
    code = "import sys, rediffuse.data; sys.exit(any(m in sys.modules for m in ('polars', 'torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
