"""Recommendations out of a run folder, in the caller's own ids, without the training data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RediffuseWarning, did_you_mean
from rediffuse.evaluation.topk import exact_top_k
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
        histories: Sequence[Iterable[Any]] | None = None,
        k: int = 10,
        *,
        exclude: Iterable[Any] | None = None,
        seed: int = 0,
        samples: int = 1,
        filter_seen: bool = True,
        batch_size: int = 256,
    ) -> pl.DataFrame:
        """The k items each person is most likely to want next.

        Args:
            users: ids of people. Alone: the model answers from what it remembers of them; people it does not know
                get popular items. With ``histories``: labels for the answer, one per history.
            histories: item ids, oldest first, one list per person; also people never seen in training.
            k: items per person; fewer where fewer are left.
            exclude: ids of items that nobody is to get.
            seed: of a stochastic model's noise. A person's list depends on the history and the seed alone.
            samples: draws that a stochastic model averages; more than one adds the column ``uncertainty``, the
                standard deviation of the score over draws.
            filter_seen: leave out items of the person's history.
            batch_size: people scored at once; changes memory and time, not lists.

        Returns:
            A frame: user_id, item_id, rank (from 1), score, and uncertainty. Without ``users``, user_id is the place of
            the history, from 0.

        Raises:
            ConfigError: neither users nor histories, numbers out of range, or lengths that differ.

        Warns:
            RediffuseWarning: unknown users, unknown items, empty histories; with counts.
        """
        for name, value in (("k", k), ("samples", samples), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}.", f"Give {name} of at least 1.")
        labels, rows = self._people(users, histories)
        excluded = self._numbers(exclude or [], "exclude")
        parts = []
        for start in range(0, len(rows), batch_size):
            block = rows.take(np.arange(start, min(start + batch_size, len(rows))))
            parts.append(self._answer(block, k, excluded, seed, samples, filter_seen, start))
        if not parts:
            parts = [self._answer(rows, k, excluded, seed, samples, filter_seen, 0)]
        frame = pl.concat(parts)
        return frame.with_columns(labels.gather(frame["user_id"]).alias("user_id"))

    # --- people in -----------------------------------------------------------------------------------------

    def _people(self, users: Any, histories: Any) -> tuple[pl.Series, Histories]:
        if users is None and histories is None:
            raise ConfigError("Neither users nor histories were given.", "Pass users=[...] or histories=[[...], ...].")
        if isinstance(users, str | bytes) or isinstance(histories, str | bytes):
            raise ConfigError("users and histories are lists.", 'For one person: users=["id"] or histories=[["item"]].')
        if histories is not None:
            rows = [list(history) for history in histories]
            labels = pl.Series(range(len(rows)), dtype=pl.Int64) if users is None else pl.Series(list(users))
            if len(labels) != len(rows):
                raise ConfigError(f"{len(labels)} users and {len(rows)} histories.", "Give one user id per history.")
            numbers = self._numbers([item for row in rows for item in row], "histories", keep_gaps=True)
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            known = Histories(offsets, numbers.astype(np.int32)).where(numbers >= 0)
        else:
            asked = list(users or [])
            labels = pl.Series(asked) if asked else pl.Series([], dtype=self._user_ids.dtype)
            places = [self._user_numbers.get(_like(user, self._user_ids.dtype), -1) for user in asked]
            number = np.asarray(places, dtype=np.int64)
            unknown = int((number < 0).sum())
            if unknown:
                _warn(f"{unknown} of {len(asked)} users are unknown; they get popular items. Pass their histories.")
            # One row past the last user is empty, and stands for everyone unknown.
            offsets = np.append(self._histories.offsets, self._histories.offsets[-1])
            known = Histories(offsets, self._histories.items).take(np.where(number < 0, len(self._histories), number))
            if not unknown and (known.lengths == 0).any():
                _warn(f"{int((known.lengths == 0).sum())} users have no history; they get popular items.")
        if histories is not None and (known.lengths == 0).any():
            _warn(f"{int((known.lengths == 0).sum())} of {len(known)} histories are empty; they get popular items.")
        return labels, known

    def _numbers(self, items: Iterable[Any], where: str, keep_gaps: bool = False) -> NDArray[np.int64]:
        """Item numbers, -1 (or nothing) for unknown ids, which are counted in a warning."""
        kind = self.items["item_id"].dtype
        numbers = np.asarray([self._item_numbers.get(_like(item, kind), -1) for item in items], dtype=np.int64)
        unknown = int((numbers < 0).sum())
        if unknown:
            _warn(f"{unknown} of {len(numbers)} items in {where} are not in the catalogue; they are skipped.")
        return numbers if keep_gaps else numbers[numbers >= 0]

    def find_items(self, names: Iterable[str]) -> list[Any]:
        """Item ids from ids or titles (letter case does not matter).

        Raises:
            ConfigError: a name is neither, with the closest titles; or several items have that title.
        """
        titles: dict[str, list[Any]] = {}
        if "title" in self.items.columns:
            for item, title in self.items.select("item_id", "title").iter_rows():
                titles.setdefault(str(title).casefold(), []).append(item)
        found = []
        for name in names:
            item = _like(name.strip(), self.items["item_id"].dtype)
            candidates = [item] if item in self._item_numbers else titles.get(name.strip().casefold(), [])
            if not candidates:
                near = did_you_mean(name.strip().casefold(), titles).split(" Known")[0]
                raise ConfigError(f"No item has the id or title {name.strip()!r}.", near if "mean" in near else None)
            if len(candidates) > 1:
                raise ConfigError(f"{len(candidates)} items are called {name!r}.", f"Use an id: {candidates}.")
            found.append(candidates[0])
        return found

    # --- lists out -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _answer(
        self,
        rows: Histories,
        k: int,
        excluded: NDArray[np.int64],
        seed: int,
        samples: int,
        filter_seen: bool,
        start: int,
    ) -> pl.DataFrame:
        """Lists for one block of people, whose numbers in the request begin at ``start``."""
        draws = samples if self.model.stochastic else 1
        mean = self.model.score(rows, seed=seed).clone()
        spread = torch.zeros_like(mean) if samples > 1 else None
        for draw in range(1, draws):  # Welford's running mean and variance
            scores = self.model.score(rows, seed=derive(seed, "sample", draw))
            difference = scores - mean
            mean += difference / (draw + 1)
            spread += difference * (scores - mean)  # type: ignore[operator]
        mean[:, torch.from_numpy(excluded)] = -torch.inf
        if filter_seen:
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
        if spread is not None:
            columns["uncertainty"] = (spread[person, chosen] / max(draws - 1, 1)).sqrt().numpy()
        return pl.DataFrame(columns)


def _like(value: Any, kind: pl.DataType) -> Any:
    """An id as the run's ids are: "50" finds 50 where ids are integers, and 50 finds "50" where they are text."""
    if kind == pl.String:
        return value if isinstance(value, str) else str(value)
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _warn(message: str) -> None:
    warnings.warn(message, RediffuseWarning, stacklevel=4)
