"""Find items by their titles."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import polars as pl

from rediffuse.errors import ConfigError
from rediffuse.recommender.bars import BarSplitter
from rediffuse.recommender.id_map import cast_id


class Titles:
    """Finds items by id or title. Case is ignored, and an id wins over an equal title.

    Args:
        items: row i describes item number i: item_id, train_count and, if items have titles, title.

    Attributes:
        ids_in_text, names_in_text: split text at bars into ids, and into ids or titles.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self._ids = items["item_id"]
        self._known_ids = set(self._ids.to_list())
        self._ids_by_title: dict[str, list[Any]] = {}  # by titles in casefolded form
        self._spelling: dict[str, str] = {}  # casefolded title -> title
        if "title" in items.columns:
            for item, title in items.select("item_id", "title").drop_nulls().iter_rows():
                folded = title.strip().casefold()
                self._ids_by_title.setdefault(folded, []).append(item)
                self._spelling.setdefault(folded, title.strip())
        texts = self._ids.cast(pl.String)
        self.ids_in_text = BarSplitter(texts.filter(texts.str.contains("|", literal=True)), self._is_id)
        names = [*texts.filter(texts.str.contains("|", literal=True)), *self._ids_by_title]
        self.names_in_text = BarSplitter(names, self._is_name)
        texts = items["title"] if "title" in items.columns else self._ids.cast(pl.String)
        self._by_popularity = items["train_count"].arg_sort(descending=True)
        self._texts = texts.gather(self._by_popularity).fill_null("").str.to_lowercase()

    def _is_id(self, name: str) -> bool:
        return cast_id(name, self._ids.dtype) in self._known_ids

    def _is_name(self, name: str) -> bool:
        return self._is_id(name) or name.casefold() in self._ids_by_title

    def find(self, names: Iterable[str]) -> list[Any]:
        """Item ids of ids or titles.

        Raises:
            ConfigError: a name is neither an id nor a title (the error names the closest titles), or several items
                have that title.
        """
        found = []
        for name in map(str.strip, names):
            item = cast_id(name, self._ids.dtype)
            matches = [item] if item in self._known_ids else self._ids_by_title.get(name.casefold(), [])
            if not matches:
                raise ConfigError(f"No item has the id or title {name!r}.", self._suggestion(name.casefold()))
            if len(matches) > 1:
                ids = ", ".join(map(str, matches))
                raise ConfigError(f"{len(matches)} items have the title {name!r}.", f"Use one of their ids: {ids}.")
            found.append(matches[0])
        return found

    def search(self, text: str, limit: int) -> list[int]:
        """Numbers of up to ``limit`` items whose title (or id, if items have no titles) contains ``text``.

        Those that begin with it come first; within both groups, those with the most training interactions.
        """
        wanted = text.strip().lower()
        contains = self._texts.str.contains(wanted, literal=True)
        begins = self._texts.str.starts_with(wanted)
        places = pl.concat([(contains & begins).arg_true(), (contains & ~begins).arg_true()])
        return self._by_popularity.gather(places.head(limit)).to_list()

    def _suggestion(self, name: str) -> str:
        """How to fix an unknown, casefolded name."""
        if not self._spelling:
            return f"This run knows no titles; give item ids such as {self._ids[0]}."
        # By edit distance, "Fargo" is not close to "Fargo (1996)", which contains it.
        near = [title for title in self._spelling if len(name) > 2 and name in title]
        near = (near or difflib.get_close_matches(name, self._spelling, n=3))[:3]
        if not near:
            return f"Give an id or a whole title, for example {next(iter(self._spelling.values()))!r}."
        return f"Did you mean {' or '.join(repr(self._spelling[title]) for title in near)}?"
