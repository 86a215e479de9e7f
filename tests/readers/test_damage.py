"""Damage that the fuzzer found to end otherwise than in an error of ours."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from rediffuse.errors import DataError
from rediffuse.readers import tables
from rediffuse.readers.interactions import read_interactions

ROWS = b"user_id,item_id,rating\nu1,a,3\nu2,b,4\n"


def refusal(source: object, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        read_interactions(source, **options)  # pyright: ignore[reportArgumentType]
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("damage", ["cut in the middle", "another checksum", "no stream at all"])
def test_gzip(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(ROWS)
    path = tmp_path / "ratings.csv.gz"
    cut = {"cut in the middle": whole[:-12], "another checksum": whole[:-8] + b"1234" + whole[-4:]}
    path.write_bytes(cut.get(damage, whole[:10] + b"\xff" * 40))
    assert "ratings.csv.gz is a damaged gzip file" in refusal(path)


@pytest.mark.parametrize(
    ("encoding", "content", "says"),
    [
        ("base64", ROWS, "There is no encoding 'base64'"),
        ("a\0b", ROWS, "There is no encoding"),
        ("utf-16", b"\n" + ROWS, "is not UTF-16"),
        ("punycode", ROWS, "is not PUNYCODE"),
        ("utf-7", b"user_id,item_id\n+2AA-x,1\nb,2\n", "is not UTF-7"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, content: bytes, says: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_bytes(content)
    assert says in refusal(path, encoding=encoding)


def test_spaces_of_other_scripts_alone(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("\u00a0\u2028\u3000\n", encoding="utf-8")
    assert "nothing but spaces" in refusal(path)


def test_a_bad_value_after_a_very_long_field(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_bytes(ROWS.replace(b"u1", b"x" * 300_000) + b"u3,,5\n")
    assert f"{path}, line 4: column 'item_id'" in refusal(path)


def test_ratings_beyond_32_bits_are_not_infinite() -> None:
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "rating": [3.0, 1e300]})
    assert "row 2: column 'rating' (rating) is 1e+300, more than 32 bits hold" in refusal(frame, rating="rating")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "cannot be opened" in refusal(tmp_path / ("n" * 300))


@pytest.mark.parametrize("when", ["collect_schema", "collect"])
def test_a_panic_of_polars_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Some damaged Parquet makes polars panic, which is no Exception. Which files do depends on its version."""
    path = tmp_path / "ratings.parquet"
    pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2]}).write_parquet(path)

    def panic(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")

    assert not issubclass(pl.exceptions.PanicException, Exception)
    monkeypatch.setattr(tables.pl.LazyFrame, when, panic)
    assert "ratings.parquet cannot be read" in refusal(path)
