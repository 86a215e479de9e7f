"""Options of ``recommend`` that say which items may be recommended, and how many of a kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rediffuse.readers.text_files import TextOptions
    from rediffuse.recommender import Recommender


def parse_max_per(options: list[str] | None) -> dict[str, int] | None:
    """Column -> number, of options such as ``category=2``.

    Raises:
        ConfigError: an option has another form, or names a column again.
    """
    from rediffuse.errors import ConfigError

    found: dict[str, int] = {}
    for option in options or []:
        column, _, number = option.rpartition("=")
        if not column or not number.strip().isdecimal():
            raise ConfigError(f"--max-per is {option!r}.", "Give a column and a number, for example category=2.")
        if column.strip() in found:
            raise ConfigError(f"--max-per names column {column.strip()!r} twice.", "Give it once.")
        found[column.strip()] = int(number)
    return found or None


def find_names(recommender: Recommender, options: list[str]) -> list[Any]:
    """Item ids of ids or titles, as options give them: "a|b|c", possibly in several options.

    Raises:
        ConfigError: as `Recommender.find_items`.
    """
    return recommender.find_items(name for option in options for name in recommender.split_names(option))


def chosen_items(
    recommender: Recommender,
    exclude: list[str] | None,
    exclude_file: Path | None,
    candidates: Path | None,
    text: TextOptions,
) -> dict[str, Any]:
    """The arguments ``exclude`` and ``candidates`` of `Recommender.recommend`.

    Args:
        recommender: of the run.
        exclude: ids or titles, as `find_names` reads them.
        exclude_file, candidates: files of item ids.
        text: how these are read, if they are text.

    Raises:
        DataError: a file cannot be read, or the run knows none of the candidates.
    """
    from rediffuse.errors import DataError
    from rediffuse.recommender.item_files import read_item_ids

    def read(path: Path | None) -> list[Any] | None:
        if path is None:
            return None
        ids = read_item_ids(path, lambda name: bool(recommender.item_index([name])[0] >= 0), text).to_list()
        # What is not to be recommended may be newer than the run.
        if ids and path is candidates and not (recommender.item_index(ids) >= 0).any():
            raise DataError(
                f"The run knows none of the items of {path}, for example {ids[0]!r}.",
                f"Use the ids of the data that the run was trained on, such as {recommender.items['item_id'][0]!r}.",
            )
        return ids

    excluded = [*find_names(recommender, exclude or []), *(read(exclude_file) or [])]
    return {"exclude": excluded or None, "candidates": read(candidates)}
