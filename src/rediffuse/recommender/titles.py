"""Items by their readable names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import polars as pl

from rediffuse.errors import ConfigError
from rediffuse.recommender.id_map import own_id


class Titles:
    """Finds items by id or title; letter case does not matter, and an id goes before an equal title.

    Args:
        items: row i describes item number i: item_id, train_count, and title where there is one.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self.ids = items["item_id"]
        self.known = set(self.ids.to_list())
        self.by_title: dict[str, list[Any]] = {}
        self.spelled: dict[str, str] = {}
        if "title" in items.columns:
            for item, title in items.select("item_id", "title").drop_nulls().iter_rows():
                folded = title.strip().casefold()
                self.by_title.setdefault(folded, []).append(item)
                self.spelled.setdefault(folded, title.strip())
        shown = items["title"] if "title" in items.columns else self.ids.cast(pl.String)
        most = items["train_count"].arg_sort(descending=True)
        self.order = most
        self.folded = shown.gather(most).fill_null("").str.to_lowercase()

    def find(self, names: Iterable[str]) -> list[Any]:
        """Item ids from ids or titles.

        Raises:
            ConfigError: a name is neither, with the closest titles; or several items have that title.
        """
        found = []
        for name in map(str.strip, names):
            item = own_id(name, self.ids.dtype)
            candidates = [item] if item in self.known else self.by_title.get(name.casefold(), [])
            if not candidates:
                raise ConfigError(f"No item has the id or title {name!r}.", self._closest(name.casefold()))
            if len(candidates) > 1:
                ids = ", ".join(map(str, candidates))
                raise ConfigError(f"{len(candidates)} items are called {name!r}.", f"Use one of their ids: {ids}.")
            found.append(candidates[0])
        return found

    def search(self, text: str, most: int) -> list[int]:
        """Numbers of up to ``most`` items whose title, or id where there are no titles, contains ``text``: those that
        begin with it first, then by training events."""
        wanted = text.strip().lower()
        inside = self.folded.str.contains(wanted, literal=True)
        begins = self.folded.str.starts_with(wanted)
        first = (inside & begins).arg_true()
        return self.order.gather(pl.concat([first, (inside & ~begins).arg_true()]).head(most)).to_list()

    def _closest(self, name: str) -> str:
        """A remedy for an unknown name, folded."""
        if not self.spelled:
            return f"This run knows no titles; give item ids such as {self.ids[0]}."
        # "Fargo" is not close to "Fargo (1996)" by edit distance, but is part of it.
        near = [title for title in self.spelled if len(name) > 2 and name in title]
        near = (near or difflib.get_close_matches(name, self.spelled, n=3))[:3]
        if not near:
            return f"Give an id or a whole title, for example {next(iter(self.spelled.values()))!r}."
        return f"Did you mean {' or '.join(repr(self.spelled[title]) for title in near)}?"
