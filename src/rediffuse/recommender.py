"""Recommendations out of a run folder, in the caller's own ids, without the training data."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.evaluation.topk import exact_top_k
from rediffuse.graphs.paths import strongest_paths
from rediffuse.models.base import Model
from rediffuse.training.run_folder import RunContents, read_run
from rediffuse.training.seeds import derive


class Recommender:
    """Answers from a trained model. Make one with `Recommender.load`; it holds no state between requests.

    Attributes:
        config: content of the run's config.json.
        items: row i describes item number i: item_id, train_count, and title where there is one.
        model: in evaluation mode.
    """

    def __init__(self, run: RunContents) -> None:
        self.config: dict[str, Any] = run.config
        self.items: pl.DataFrame = run.items
        self.model: Model = run.model
        self._folder = run.path
        self._user_ids, self._histories = run.user_ids, run.histories
        self._item_numbers = {item: number for number, item in enumerate(run.items["item_id"].to_list())}
        self._user_numbers = {user: number for number, user in enumerate(run.user_ids.to_list())}

    @classmethod
    def load(cls, run: str | Path) -> Recommender:
        """Load a run folder; the data it was trained on is not needed.

        Raises:
            RunError: the folder is no finished run, or a file in it is missing or damaged.
        """
        return cls(read_run(run))

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | None = None,
        k: int = 10,
        exclude: Iterable[Any] | None = None,
        seed: int = 0,
        samples: int = 1,
        filter_seen: bool = True,
        batch_size: int = 512,
    ) -> pl.DataFrame:
        """The k items each person is most likely to want next.

        Ids may be text or integers of any kind: "50" finds 50 where the data's ids are integers, and the reverse.

        Args:
            users: ids of people. Alone: the model answers from what it remembers of them; people it does not know
                get popular items. With ``histories``: labels for the answer, one per history.
            histories: item ids, oldest first, one list per person; also people never seen in training.
            k: items per person; fewer where fewer are left.
            exclude: ids of items that nobody is to get.
            seed: of a stochastic model's noise. A person's list depends on the history and the seed alone.
            samples: draws that a stochastic model averages; more than one adds the column ``uncertainty``, the
                standard deviation of the score over draws (0 for a model without noise).
            filter_seen: leave out items of the person's history.
            batch_size: people scored at once; changes memory and time, not lists.

        Returns:
            A frame: user_id, item_id, rank (from 1), score, and uncertainty. People are in the order asked, best items
            first. Without ``users``, user_id is the place of the history, from 0. It is of the data's type, or text if
            a user cannot be of that type.

        Raises:
            ConfigError: neither users nor histories, no lists of ids, numbers out of range, or lengths that differ.

        Warns:
            RediffuseWarning: unknown users, unknown items, empty histories; with counts.
        """
        return self.recommend_counted(users, histories, k, exclude, seed, samples, filter_seen, batch_size)[0]

    def recommend_counted(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | None = None,
        k: int = 10,
        exclude: Iterable[Any] | None = None,
        seed: int = 0,
        samples: int = 1,
        filter_seen: bool = True,
        batch_size: int = 512,
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        """As `recommend`; also what the warnings counted: people, unknown_users, empty_histories, unknown_items and
        unknown_excluded."""
        k, samples = _whole("k", k), _whole("samples", samples)
        batch_size, seed = _whole("batch_size", batch_size), _whole("seed", seed, least=None)
        labels, who, rows, counts = self._people(users, histories)
        banned = self._numbers(_listed("exclude", exclude)) if exclude is not None else np.empty(0, np.int64)
        counts["unknown_excluded"] = int((banned < 0).sum())
        for message in _remarks(counts):
            warnings.warn(message, RediffuseWarning, stacklevel=3)
        # The empty frame settles the columns where nobody was asked about.
        lists = [self._no_lists(uncertain=samples > 1)]
        for start in range(0, len(rows), batch_size):
            part = np.arange(start, min(start + batch_size, len(rows)))
            block = rows.take(part)
            lists.append(self._lists(block, who[part], k, banned[banned >= 0], seed, samples, filter_seen, start))
        frame = pl.concat(lists)
        return frame.with_columns(labels.gather(frame["user_id"]).alias("user_id")), counts

    # --- people in -----------------------------------------------------------------------------------------

    def _people(self, users: Any, histories: Any) -> tuple[pl.Series, NDArray[np.int64], Histories, dict[str, int]]:
        """Labels (n,) of the people asked about, their numbers (n,) or -1, histories (n rows), what was unknown."""
        if users is None and histories is None:
            raise ConfigError("Neither users nor histories were given.", "Pass users=[...] or histories=[[...], ...].")
        asked = None if users is None else _listed("users", users)
        counts = {"unknown_users": 0, "unknown_items": 0}
        if histories is None:
            assert asked is not None
            places = [self._user_numbers.get(_own_id(user, self._user_ids.dtype), -1) for user in asked]
            who = np.asarray(places, dtype=np.int64)
            counts["unknown_users"] = int((who < 0).sum())
            # One row past the last user is empty, and stands for everyone unknown.
            offsets = np.append(self._histories.offsets, self._histories.offsets[-1])
            remembered = dataclasses.replace(self._histories, offsets=offsets)
            known = remembered.take(np.where(who < 0, len(self._histories), who))
        else:
            rows = [_listed("a history", history) for history in _listed("histories", histories)]
            if asked is not None and len(asked) != len(rows):
                raise ConfigError(f"{len(asked)} users and {len(rows)} histories.", "Give one user id per history.")
            numbers = self._numbers(item for row in rows for item in row)
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            known = Histories(offsets, numbers.astype(np.int32)).where(numbers >= 0)
            counts["unknown_items"] = int((numbers < 0).sum())
            who = np.full(len(rows), -1)  # what the model remembers of people is not about these histories
        counts["people"] = len(known)
        without = (known.lengths == 0) & ~self.model.remembers(who)
        counts["empty_histories"] = int(without.sum()) - counts["unknown_users"]
        if asked is None:
            return pl.Series("user_id", range(len(known)), dtype=pl.Int64), who, known, counts
        return _labels(asked, self._user_ids.dtype), who, known, counts

    def _numbers(self, items: Iterable[Any]) -> NDArray[np.int64]:
        """Item numbers, -1 for unknown ids."""
        kind = self.items["item_id"].dtype
        return np.asarray([self._item_numbers.get(_own_id(item, kind), -1) for item in items], dtype=np.int64)

    def explain(
        self, items: Iterable[Any], *, user: Any = None, history: Iterable[Any] | None = None, paths: int = 3
    ) -> pl.DataFrame:
        """The strongest knowledge paths from what someone touched to ``items``, of a model that learned from a graph.

        Args:
            items: ids, for example those recommended.
            user: a known person's id; or
            history: item ids.
            paths: per item, at most.

        Returns:
            A frame, see `rediffuse.graphs.paths.strongest_paths`; weights are those of the model's attention, and edges
            that are not ``kept`` are those that it pruned.

        Raises:
            ConfigError: the model learned from no knowledge graph; neither or both of user and history were given.

        Warns:
            RediffuseWarning: an unknown user, unknown items in the history, an empty history.
        """
        file = self._folder / "knowledge.parquet"
        if not file.exists():
            raise ConfigError(
                f"{self.config['model']} learned from no knowledge graph, so it has no paths.", "Take a run of diffkg."
            )
        if (user is None) == (history is None):
            raise ConfigError("Say for whom, in one way.", "Pass user=... or history=[...].")
        _, _, rows, counts = self._people([user] if history is None else None, None if history is None else [history])
        asked = self._numbers(_listed("items", items))
        for message in _remarks(counts | {"unknown_excluded": 0}, answer="there are no paths for them"):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        ids = self.items["item_id"]
        touched = ids.gather(np.unique(rows.items))
        return strongest_paths(pl.read_parquet(file), ids.gather(asked[asked >= 0]), touched, _whole("paths", paths))

    def find_items(self, names: Iterable[str]) -> list[Any]:
        """Item ids from ids or titles (letter case does not matter); an id goes before an equal title.

        Raises:
            ConfigError: a name is neither, with the closest titles; or several items have that title.
        """
        titles: dict[str, list[Any]] = {}
        spelled: dict[str, str] = {}
        if "title" in self.items.columns:
            for item, title in self.items.select("item_id", "title").drop_nulls().iter_rows():
                titles.setdefault(title.strip().casefold(), []).append(item)
                spelled.setdefault(title.strip().casefold(), title.strip())
        found = []
        for name in map(str.strip, names):
            item = _own_id(name, self.items["item_id"].dtype)
            candidates = [item] if item in self._item_numbers else titles.get(name.casefold(), [])
            if not candidates:
                raise ConfigError(f"No item has the id or title {name!r}.", self._closest(name.casefold(), spelled))
            if len(candidates) > 1:
                ids = ", ".join(map(str, candidates))
                raise ConfigError(f"{len(candidates)} items are called {name!r}.", f"Use one of their ids: {ids}.")
            found.append(candidates[0])
        return found

    def _closest(self, name: str, spelled: dict[str, str]) -> str:
        """A remedy for an unknown name, out of folded title -> title."""
        if not spelled:
            return f"This run knows no titles; give item ids such as {self.items['item_id'][0]}."
        # "Fargo" is not close to "Fargo (1996)" by edit distance, but is part of it.
        near = [title for title in spelled if len(name) > 2 and name in title]
        near = (near or difflib.get_close_matches(name, spelled, n=3))[:3]
        if not near:
            return f"Give an id or a whole title, for example {next(iter(spelled.values()))!r}."
        return f"Did you mean {' or '.join(repr(spelled[title]) for title in near)}?"

    # --- lists out -----------------------------------------------------------------------------------------

    def _no_lists(self, uncertain: bool) -> pl.DataFrame:
        kinds = {"user_id": pl.Int64(), "item_id": self.items["item_id"].dtype}
        kinds |= {"rank": pl.Int32(), "score": pl.Float32()} | ({"uncertainty": pl.Float32()} if uncertain else {})
        return pl.DataFrame(schema=kinds)

    @torch.inference_mode()
    def _lists(
        self,
        rows: Histories,
        who: NDArray[np.int64],
        k: int,
        banned: NDArray[np.int64],
        seed: int,
        samples: int,
        filter_seen: bool,
        start: int,
    ) -> pl.DataFrame:
        """Lists for one block of people, whose numbers in the request begin at ``start``."""
        draws = samples if self.model.stochastic else 1
        mean = self.model.score(rows, users=who, seed=seed).clone()
        squares = torch.zeros_like(mean) if samples > 1 else None
        for draw in range(1, draws):  # Welford's running mean and sum of squared differences
            scores = self.model.score(rows, users=who, seed=derive(seed, "sample", draw))
            difference = scores - mean
            mean += difference / (draw + 1)
            assert squares is not None
            squares += difference * (scores - mean)
        mean[:, torch.from_numpy(banned)] = -torch.inf
        if filter_seen:
            rows = rows.own()
            mean[torch.from_numpy(rows.owners), torch.from_numpy(rows.items.astype(np.int64))] = -torch.inf
        scores, items = exact_top_k(mean, min(k, mean.shape[1]))
        person, place = torch.nonzero(torch.isfinite(scores), as_tuple=True)
        chosen = items[person, place]
        columns = {
            "user_id": (person + start).numpy(),
            "item_id": self.items["item_id"].gather(chosen.numpy()),
            "rank": (place + 1).to(torch.int32).numpy(),
            "score": scores[person, place].numpy(),
        }
        if squares is not None:
            columns["uncertainty"] = (squares[person, chosen] / max(draws - 1, 1)).sqrt().numpy()
        return pl.DataFrame(columns)


def _own_id(value: Any, kind: pl.DataType) -> int | str | None:
    """An id as the run's ids are, or None if it cannot be one of them.

    "50" finds 50 where ids are integers, as does 50.0, which pandas makes of it beside a missing value; 50 finds "50"
    where ids are text. But "050" is not 50, and neither is True 1.
    """
    if isinstance(value, str):
        if kind == pl.String:
            return value
        return int(value) if re.fullmatch(r"-?(0|[1-9][0-9]*)", value, re.ASCII) else None
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (that is what is tried)
    except TypeError:
        return None
    return str(number) if kind == pl.String else number


def _labels(asked: list[Any], kind: pl.DataType) -> pl.Series:
    """The people's ids in the data's type; all as text if one of them, unknown then, cannot be of that type."""
    own = [_own_id(user, kind) for user in asked]
    if None not in own and not any(isinstance(user, int) and abs(user) >= 2**63 for user in own):
        return pl.Series("user_id", own, dtype=kind)
    return pl.Series("user_id", [None if user is None else str(user) for user in asked], dtype=pl.String)


def _listed(what: str, value: Any) -> list[Any]:
    """The list that was meant to be given. Text and tables can be iterated over as well, but not to any good."""
    wrong = isinstance(value, str | bytes | Mapping) or hasattr(value, "columns")
    if wrong or not isinstance(value, Iterable):
        raise ConfigError(
            f"{what[0].upper()}{what[1:]} is {value!r:.60}, not a list.",
            'Pass lists, also for one person: users=["id"], histories=[["item", "item"]], exclude=["item"].',
        )
    return list(value)


def _whole(name: str, value: Any, least: int | None = 1) -> int:
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (that is what is tried)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}.", f"Give {name} as a whole number.") from None
    if least is not None and number < least:
        raise ConfigError(f"{name} is {value}.", f"Give {name} of at least {least}.")
    return number


def _remarks(counts: dict[str, int], answer: str = "they get popular items") -> list[str]:
    """What a caller should know, one sentence each; ``answer``: what people without a history get."""
    remarks = []
    if counts["unknown_users"]:
        remarks.append(
            f"{counts['unknown_users']} of {counts['people']} users are unknown; {answer}. Pass their histories."
        )
    if counts["unknown_items"]:
        remarks.append(f"{counts['unknown_items']} items in the histories are not in the catalogue; they are skipped.")
    if counts["empty_histories"]:
        remarks.append(f"{counts['empty_histories']} of {counts['people']} histories are empty; {answer}.")
    if counts["unknown_excluded"]:
        remarks.append(f"{counts['unknown_excluded']} items to exclude are not in the catalogue.")
    return remarks
