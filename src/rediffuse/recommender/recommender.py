"""Recommendations out of a run folder, in the caller's own ids, without the training data."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.graphs.paths import strongest_paths
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.id_map import IdMap, flat, labels, listed, whole
from rediffuse.recommender.index import read_index
from rediffuse.recommender.item_map import ItemMap, item_map
from rediffuse.recommender.ranker import RankedItems, Ranker, RankingQuery
from rediffuse.recommender.titles import Titles
from rediffuse.runs.run_folder import RunContents, read_run
from rediffuse.topk import exact_top_k

Retrieval = Literal["exact", "index"]
# The files of a run that its answers depend on; others, such as test results, come and go.
ANSWERS = ("config.json", "items.parquet", "users.parquet", "model.safetensors", "index.json", "index.faiss")


@dataclass(frozen=True)
class Step:
    """A step of denoising: its timestep, what it starts from (d,) if that is known, and the x0_hat at the end (d,)."""

    t: int
    state: Tensor | None
    x0_hat: Tensor


class Recommender:
    """Answers from a trained model. Make one with `Recommender.load`; it holds no state between requests.

    Attributes:
        config: content of the run's config.json.
        items: row i describes item number i: item_id, train_count, and title where there is one.
        model: in evaluation mode.
        ranker: the same without ids.
        fingerprint: sha256 over the checksums of the files that answers depend on.
        knowledge: edges of the knowledge graph that the model learned from, or None.
        titles: finds items by name.
        item_vectors: (num_items, d), see `rediffuse.models.base.Model.index_vectors`, or None.
    """

    def __init__(self, run: RunContents, retrieval: Retrieval = "exact") -> None:
        self.config: dict[str, Any] = run.config
        self.items: pl.DataFrame = run.items
        self.model: Model = run.model
        knowledge = run.path / "knowledge.parquet"
        self.knowledge = pl.read_parquet(knowledge) if knowledge.exists() else None
        self.titles = Titles(run.items)
        with torch.no_grad():
            vectors = self.model.index_vectors()
        self.item_vectors = None if vectors is None else vectors.detach()
        table = None if self.item_vectors is None else self.item_vectors.numpy()
        index = read_index(run.path, table) if retrieval == "index" else None
        self.ranker = Ranker(self.model, self.item_vectors, index)
        self.user_ids, self._histories = run.user_ids, run.histories
        self._items, self._users = IdMap(run.items["item_id"]), IdMap(run.user_ids)
        read = [name for name in ANSWERS if index is not None or not name.startswith("index.")]
        told = "".join(f"{name} {run.digests.get(name)}\n" for name in read)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    @classmethod
    def load(cls, run: str | Path, retrieval: Retrieval = "exact") -> Recommender:
        """Load a run folder; the data it was trained on is not needed.

        Args:
            run: the folder.
            retrieval: ``exact`` scores all items; ``index`` those that the run's index finds
                (`rediffuse.recommender.index`). Requests that an index cannot answer, such as those with seen items
                kept or with candidates, are answered exactly all the same.

        Raises:
            RunError: the folder is no finished run, a file in it is missing or damaged, or it has no index.
        """
        return cls(read_run(run), retrieval)

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
        candidates: Iterable[Any] | None = None,
        sampling_steps: int | None = None,
        noise: float = 1.0,
    ) -> pl.DataFrame:
        """The k items each person is most likely to want next.

        Ids may be text or integers of any kind: "50" finds 50 where the data's ids are integers, and the reverse.

        Args:
            users: ids of people. Alone: the model answers from what it has_user_state of them; people it does not know
                get popular items. With ``histories``: labels for the answer, one per history.
            histories: item ids, oldest first, one list per person; also people never seen in training.
            k: items per person; fewer where fewer are left.
            exclude: ids of items that nobody is to get.
            seed: of a stochastic model's noise. A person's list depends on the history and the seed alone.
            samples: draws that a stochastic model averages; more than one adds the column ``uncertainty``, the
                standard deviation of the score over draws (0 for a model without noise).
            filter_seen: leave out items of the person's history.
            batch_size: people scored at once; changes memory and time, not lists.
            candidates: ids of the only items that anybody is to get.
            sampling_steps: of denoising, at most those of training; None: as many as were calibrated on validation data.
            noise: what the noise of a stochastic model is multiplied by.

        Returns:
            A frame: user_id, item_id, rank (from 1), score, and uncertainty. People are in the order asked, best items
            first. Without ``users``, user_id is the place of the history, from 0. It is of the data's type, or text if
            a user cannot be of that type.

        Raises:
            ConfigError: neither users nor histories, no lists of ids, numbers out of range, or lengths that differ,
                or sampling_steps or noise that mean nothing to the model.

        Warns:
            RediffuseWarning: unknown users, unknown items, empty histories; with counts.
        """
        k, samples = whole("k", k), whole("samples", samples)
        batch_size = whole("batch_size", batch_size)
        sampling = self.sampling(seed, sampling_steps, noise)
        names, who, rows, counts = self.resolve_users(users, histories)
        ask, unknown = self.build_query(k, exclude, candidates, filter_seen)
        for message in remarks(counts | unknown):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        return self.lists(names, who, rows, ask, sampling, samples, batch_size)

    def sampling(self, seed: Any = 0, sampling_steps: Any = None, noise: float = 1.0) -> Sampling:
        """How answers are drawn, checked against what the model can do.

        Raises:
            ConfigError: no whole numbers, more steps than the model has, or options that mean nothing to it.
        """
        seed = whole("seed", seed, least=None)
        most = self.model.max_sampling_steps
        if sampling_steps is not None:
            sampling_steps = whole("sampling_steps", sampling_steps)
            if most is None:
                raise ConfigError(
                    f"{self.config['model']} has no sampling steps to choose in this run.", "Leave out sampling_steps."
                )
            if sampling_steps > most:
                raise ConfigError(
                    f"sampling_steps is {sampling_steps}; this run was trained with {most}.", f"Give 1 to {most}."
                )
        if not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
            raise ConfigError(f"noise is {noise!r}.", "Give a number of at least 0; 1 is what the model is made for.")
        if noise != 1 and not self.model.stochastic:
            raise ConfigError(f"{self.config['model']} draws no noise in this run.", "Leave out noise.")
        return Sampling(seed, sampling_steps, float(noise))

    def is_known_user(self, user: Any) -> bool:
        """Whether a person of that id was there in training."""
        return bool(self._users.find([user])[0] >= 0)

    # --- people in -----------------------------------------------------------------------------------------

    def resolve_users(
        self, users: Any, histories: Any
    ) -> tuple[pl.Series, NDArray[np.int64], Histories, dict[str, int]]:
        """Labels (n,) of the people asked about, their numbers (n,) or -1, histories (n rows), what was unknown."""
        if users is None and histories is None:
            raise ConfigError("Neither users nor histories were given.", "Pass users=[...] or histories=[[...], ...].")
        asked = users if users is None or isinstance(users, pl.Series) else listed("users", users)
        counts = {"unknown_users": 0, "unknown_items": 0}
        if histories is None:
            assert asked is not None
            who = self._users.find(asked)
            counts["unknown_users"] = int((who < 0).sum())
            # One row past the last user is empty, and stands for everyone unknown.
            offsets = np.append(self._histories.offsets, self._histories.offsets[-1])
            remembered = replace(self._histories, offsets=offsets)
            known = remembered.take(np.where(who < 0, len(self._histories), who))
        else:
            lengths, items = flat(histories)
            if asked is not None and len(asked) != len(lengths):
                raise ConfigError(f"{len(asked)} users and {len(lengths)} histories.", "Give one user id per history.")
            numbers = self.item_index(items)
            offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
            known = Histories(offsets, numbers.astype(np.int32)).where(numbers >= 0)
            counts["unknown_items"] = int((numbers < 0).sum())
            who = np.full(len(lengths), -1)  # what the model has_user_state of people is not about these histories
        if not self.model.reads_synthetic:
            known = known.without_synthetic()
        counts["users"] = len(known)
        without = (known.lengths == 0) & ~self.model.has_user_state(who)
        counts["empty_histories"] = int(without.sum()) - counts["unknown_users"]
        if asked is None:
            return pl.Series("user_id", range(len(known)), dtype=pl.Int64), who, known, counts
        return labels(asked, self.user_ids.dtype), who, known, counts

    def build_query(
        self, k: int, exclude: Iterable[Any] | None, candidates: Iterable[Any] | None, filter_seen: bool
    ) -> tuple[RankingQuery, dict[str, int]]:
        """What was asked for in item numbers, and how many of the ids are unknown: arguments as of `recommend`."""
        excluded = self.item_index([] if exclude is None else listed("exclude", exclude))
        among = None if candidates is None else self.item_index(listed("candidates", candidates))
        counts = {"unknown_excluded": int((excluded < 0).sum())}
        counts["unknown_candidates"] = 0 if among is None else int((among < 0).sum())
        return RankingQuery(
            k, excluded[excluded >= 0], None if among is None else among[among >= 0], filter_seen
        ), counts

    def item_index(self, items: pl.Series | Iterable[Any]) -> NDArray[np.int64]:
        """Item numbers, -1 for unknown ids."""
        return self._items.find(items)

    # --- looking inside ------------------------------------------------------------------------------------

    def similar(self, items: Iterable[Any], k: int = 10) -> pl.DataFrame:
        """The k items nearest to each of ``items``, by the cosine of the model's item vectors.

        Returns:
            A frame: item_id, similar_id, rank (from 1), cosine. Items that are not in the catalogue have no row.

        Raises:
            ConfigError: the model has no vectors of items.

        Warns:
            RediffuseWarning: unknown items.
        """
        asked = self.item_index(listed("items", items))
        for message in remarks({"unknown_asked": int((asked < 0).sum())}):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        asked = asked[asked >= 0]
        cosines, near = self.nearest(asked, whole("k", k))
        owners = np.repeat(np.arange(len(asked)), near.shape[1])
        ids = self.items["item_id"]
        return pl.DataFrame(
            {
                "item_id": ids.gather(asked[owners]),
                "similar_id": ids.gather(near.ravel()),
                "rank": np.tile(np.arange(1, near.shape[1] + 1, dtype=np.int32), len(asked)),
                "cosine": cosines.ravel(),
            }
        )

    def nearest(self, items: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and numbers (n, k) of the items nearest to ``items`` (n,), but themselves; errors as `similar`."""
        cosines = self.directions[torch.from_numpy(items)] @ self.directions.T
        cosines[torch.arange(len(items)), torch.from_numpy(items)] = -torch.inf
        values, near = exact_top_k(cosines, min(k, len(self.items) - 1)) if len(items) else (cosines, cosines.long())
        return values[:, :k].numpy(), near[:, :k].numpy()

    @functools.cached_property
    def directions(self) -> Tensor:
        """(num_items, d): the item vectors, of length one."""
        if self.item_vectors is None:
            raise ConfigError(
                f"{self.config['model']} has no vectors of items: it ranks in another way.",
                "Take a model that learns them, such as diffurec, sasrec or lightgcn.",
            )
        return F.normalize(self.item_vectors, dim=1)

    @functools.cached_property
    def map(self) -> ItemMap:
        """The items in two dimensions; raises as `similar`."""
        return item_map(self.directions)

    @torch.inference_mode()
    def denoising_trajectory(self, rows: Histories, who: NDArray[np.int64], sampling: Sampling) -> list[Step]:
        """What the model goes through to answer one person; empty for models and people without denoising."""
        steps: list[Step] = []
        if self.item_vectors is None or not len(rows.without_synthetic().items):
            return steps

        def on_step(t: int, state: Tensor | None, x0_hat: Tensor) -> None:
            steps.append(Step(t, None if state is None else state[0].clone(), x0_hat[0].clone()))

        self.model.query_vectors(rows, who, replace(sampling, on_step=on_step))
        return steps

    def best(self, query: Tensor, k: int) -> list[tuple[int, float]]:
        """Numbers and scores of the k items that ``query`` (d,) ranks first."""
        assert self.item_vectors is not None
        scores, items = exact_top_k((query @ self.item_vectors.T)[None], min(k, len(self.items)))
        return list(zip(items[0].tolist(), scores[0].tolist(), strict=True))

    def denoise(
        self,
        *,
        user: Any = None,
        history: Iterable[Any] | None = None,
        k: int = 10,
        seed: int = 0,
        sampling_steps: int | None = None,
        noise: float = 1.0,
    ) -> pl.DataFrame:
        """What a diffusion model would recommend after each step of denoising, from noise on.

        Args:
            user: a known person's id; or
            history: item ids, oldest first.
            k, seed, sampling_steps, noise: as for `recommend`. Seen items are kept.

        Returns:
            A frame: step (from 0), t (the timestep), rank (from 1), item_id, score: the k items that the network's
            x0_hat at that step ranks first. The last step's are those of `recommend`, but for what a model says of items
            already in the history.

        Raises:
            ConfigError: the model does not denoise; neither or both of user and history were given.

        Warns:
            RediffuseWarning: as `recommend`.
        """
        if (user is None) == (history is None):
            raise ConfigError("Say for whom, in one way.", "Pass user=... or history=[...].")
        _, who, rows, counts = self.resolve_users(
            [user] if history is None else None, None if history is None else [history]
        )
        for message in remarks(counts, answer="there is nothing to denoise for them"):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        walked = self.denoising_trajectory(rows, who, self.sampling(seed, sampling_steps, noise))
        if not walked and len(rows.items):
            raise ConfigError(f"{self.config['model']} does not denoise in this run.", "Take a run of diffurec.")
        ids, parts = self.items["item_id"], []
        for number, step in enumerate(walked):
            items, scores = zip(*self.best(step.x0_hat, k), strict=True)
            part = {"item_id": ids.gather(list(items)), "score": scores}
            parts.append(pl.DataFrame(part).with_columns(step=number, t=step.t).with_row_index("rank", offset=1))
        kinds = {"step": pl.Int32, "t": pl.Int32, "rank": pl.Int32, "item_id": ids.dtype, "score": pl.Float32}
        empty = pl.DataFrame(schema=kinds)
        return pl.concat(
            [empty, *(part.select(pl.col(name).cast(kind) for name, kind in kinds.items()) for part in parts)]
        )

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
        if not self.has_paths:
            raise ConfigError(
                f"{self.config['model']} learned from no knowledge graph, so it has no paths.", "Take a run of diffkg."
            )
        if (user is None) == (history is None):
            raise ConfigError("Say for whom, in one way.", "Pass user=... or history=[...].")
        _, _, rows, counts = self.resolve_users(
            [user] if history is None else None, None if history is None else [history]
        )
        asked = self.item_index(listed("items", items))
        for message in remarks(counts, answer="there are no paths for them"):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        ids = self.items["item_id"]
        touched = ids.gather(np.unique(rows.without_synthetic().items))
        return self.paths(ids.gather(asked[asked >= 0]), touched, whole("paths", paths))

    @property
    def has_paths(self) -> bool:
        """Whether the run learned from a knowledge graph, so that `explain` has an answer."""
        return self.knowledge is not None

    def paths(self, items: pl.Series, touched: pl.Series, most: int) -> pl.DataFrame:
        """As `explain`, by ids of the run's own type: from items ``touched`` to each of ``items``."""
        assert self.knowledge is not None
        return strongest_paths(self.knowledge, items, touched, most)

    def find_items(self, names: Iterable[str]) -> list[Any]:
        """Item ids from ids or titles (letter case does not matter); an id goes before an equal title.

        Raises:
            ConfigError: a name is neither, with the closest titles; or several items have that title.
        """
        return self.titles.find(names)

    # --- lists out -----------------------------------------------------------------------------------------

    def lists(
        self,
        names: pl.Series,
        who: NDArray[np.int64],
        rows: Histories,
        ask: RankingQuery,
        sampling: Sampling,
        samples: int = 1,
        batch_size: int = 512,
    ) -> pl.DataFrame:
        """What `recommend` returns, of people and an ask in numbers (see `people` and `ask`)."""
        answers: list[RankedItems] = []
        for start in range(0, len(rows), batch_size):
            part = np.arange(start, min(start + batch_size, len(rows)))
            answers += self.ranker.rank(rows.take(part), who[part], [ask] * len(part), sampling, samples)
        return self._frame(names, answers, uncertain=samples > 1)

    def titled(self, lists: pl.DataFrame) -> pl.DataFrame:
        """``lists`` with the column title, where items have titles."""
        if "title" not in self.items.columns:
            return lists
        return lists.join(self.items.select("item_id", "title"), on="item_id", how="left", maintain_order="left")

    def _frame(self, names: pl.Series, answers: Sequence[RankedItems], uncertain: bool) -> pl.DataFrame:
        """The answers of people called ``names``, as one table; its columns are settled also where there is no row."""
        lengths = [len(answer.items) for answer in answers]

        def joined(parts: list[Any], kind: Any) -> NDArray[Any]:
            return np.concatenate([np.empty(0, kind), *parts]).astype(kind)

        columns = {
            "user_id": names.gather(np.repeat(np.arange(len(answers)), lengths)),
            "item_id": self.items["item_id"].gather(joined([answer.items for answer in answers], np.int64)),
            "rank": joined([np.arange(1, length + 1) for length in lengths], np.int32),
            "score": joined([answer.scores for answer in answers], np.float32),
        }
        if uncertain:
            columns["uncertainty"] = joined([answer.uncertainty for answer in answers], np.float32)
        return pl.DataFrame(columns)


def remarks(counts: dict[str, int], answer: str = "they get popular items") -> list[str]:
    """What a caller should know, one sentence each; ``answer``: what people without a history get."""
    found = []
    if counts.get("unknown_users"):
        found.append(
            f"{counts['unknown_users']} of {counts['users']} users are unknown; {answer}. Pass their histories."
        )
    if counts.get("unknown_items"):
        found.append(f"{counts['unknown_items']} items in the histories are not in the catalogue; they are skipped.")
    if counts.get("empty_histories"):
        found.append(f"{counts['empty_histories']} of {counts['users']} histories are empty; {answer}.")
    lists = {"unknown_excluded": "items to exclude", "unknown_candidates": "candidates", "unknown_asked": "items"}
    for kind, what in lists.items():
        if counts.get(kind):
            found.append(f"{counts[kind]} {what} are not in the catalogue.")
    return found
