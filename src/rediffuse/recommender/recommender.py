"""Recommendations from a run folder, in the caller's own ids, without the training data."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rediffuse import devices, forks
from rediffuse.arguments import described, require_flag, require_integer, require_number, wrong_type
from rediffuse.data.histories import Histories
from rediffuse.display import Displayed
from rediffuse.errors import ConfigError, RediffuseWarning, did_you_mean
from rediffuse.frames import Frame, as_kind, kind_of
from rediffuse.models.base import Model
from rediffuse.models.placement import place
from rediffuse.models.sampling import Sampling
from rediffuse.recommender import explanations
from rediffuse.recommender.id_map import IdMap, columns_of_users, flatten_histories, require_list, user_labels
from rediffuse.recommender.index import read_index
from rediffuse.recommender.inspector import Inspector
from rediffuse.recommender.item_filters import ItemFilters
from rediffuse.recommender.ranker import RankedItems, Ranker, RankingQuery
from rediffuse.recommender.remarks import held_out_remark, remarks
from rediffuse.recommender.titles import Titles
from rediffuse.reranking import ItemColumns, Reranking, RerankingOptions, SlateName, reranking_of
from rediffuse.runs.run_folder import Run, RunContents, read_run, run_path

Retrieval = Literal["exact", "index"]
# Scores held at once, a gigabyte: of a large catalogue, fewer users than asked for are scored together.
MAX_SCORES = 1 << 28
# The files of a run that recommendations depend on. Others, such as test results, may be added later.
FINGERPRINTED = ("config.json", "items.parquet", "users.parquet", "model.safetensors", "item_table.parquet")
FINGERPRINTED += ("index.json", "index.faiss")


class Recommender(Displayed):
    """Recommends with a trained model. Create it with `Recommender.load`; it keeps no state between calls.

    Attributes:
        config: content of the run's config.json.
        items: row i describes item number i: item_id, train_count and, if items have titles, title.
        item_table: row i describes item number i, with the columns of the dataset's item table; None without one.
        user_ids: ids of the users in training, by user number, then of those with fresh histories alone.
        model: in evaluation mode, on ``device``.
        device: where it computes.
        ranker: ranks in item numbers, without ids.
        inspector: similar items, item map and denoising trajectories, in item numbers.
        held_out_remark: a sentence about the interactions that the split held out; None if it held out none.
        fingerprint: sha256 over the checksums of the files that recommendations depend on.
        knowledge: edges of the knowledge graph that the model learned from, or None.
        titles: finds items by title.
        filters: finds items by the columns of the item table.
        new_items: numbers of the items without an interaction in training, ascending; None where there are none, or the
            model cannot rank them.
        item_vectors: (num_items, d), see `rediffuse.models.base.Model.index_vectors`, or None.
    """

    def __init__(self, run: RunContents, retrieval: Retrieval = "exact", device: str | torch.device = "cpu") -> None:
        if not isinstance(run, RunContents):
            raise wrong_type("run", run, "the content of a run", "Create it with Recommender.load(run).")
        if retrieval not in get_args(Retrieval):
            raise ConfigError(f"There is no retrieval {retrieval!r}.", did_you_mean(retrieval, get_args(Retrieval)))
        forks.enter()
        self.items: pl.DataFrame = run.items
        self.item_table: pl.DataFrame | None = run.item_table
        self.model: Model = run.model
        self.device = place(self.model, device)
        self.knowledge = run.knowledge
        self.titles = Titles(run.items)
        self.filters, self._columns = ItemFilters(run.item_table), ItemColumns(run.item_table)
        with torch.no_grad():
            vectors = self.model.index_vectors()
        self.item_vectors = None if vectors is None else vectors.detach()
        table = None if self.item_vectors is None else self.item_vectors.cpu().numpy()
        index = read_index(run.path, table) if retrieval == "index" else None
        self.ranker = Ranker(self.model, self.item_vectors, index)
        self.inspector = Inspector(self.model, self.item_vectors)
        self._items = IdMap(run.items["item_id"])
        unseen = np.flatnonzero(run.items["train_count"].to_numpy() == 0)
        self.new_items = unseen if len(unseen) and self.model.scores_new_items else None
        self._use_histories(run)
        names = [name for name in FINGERPRINTED if index is not None or not name.startswith("index.")]
        checksums = "".join(f"{name} {run.digests.get(name)}\n" for name in names)
        self.fingerprint = hashlib.sha256(checksums.encode()).hexdigest()

    def _use_histories(self, run: RunContents) -> None:
        """Recommend from the histories of these contents of the run."""
        self._run, self.config = run, run.config
        self.user_ids, self._users = run.user_ids, IdMap(run.user_ids)
        # Times that the model does not read would only keep its requests apart from those without times.
        self._histories = run.histories if self.model.reads_times else replace(run.histories, times=None)
        # Fresh histories are newer than the training: no split held them out.
        fresh = "histories_updated_from" in run.config and run.config["split"]["name"] == "none"
        # A run without its users has no interactions.
        held_out = None if fresh or not len(run.histories.items) else run.held_out
        updated = "histories_updated_from" in run.config
        self.held_out_remark = None if held_out is None else held_out_remark(held_out, updated=updated)
        self._remark_due = self.held_out_remark is not None

    @classmethod
    def load(
        cls, run: str | Path | Run, retrieval: Retrieval = "exact", device: str | torch.device = "cpu"
    ) -> Recommender:
        """Load a run folder; the training data is not needed.

        Args:
            run: the folder, what `rediffuse.train` returned, or a run on the Hugging Face hub: "hf://user/name",
                "hf://user/name@revision".
            retrieval: ``exact`` scores all items, ``index`` only those that the run's index finds
                (`rediffuse.recommender.index`). Queries that an index does not support, such as those that keep seen
                items or give candidates, are still answered exactly.
            device: where the model computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``, which is the
                accelerator that torch finds, otherwise the CPU. Lists are the same but for rounding: items whose scores
                differ by less may change places. Models that diffuse over the item graph (theat, heat, transition), and
                priors, compute with SciPy and stay on the CPU.

        Raises:
            RunError: the folder is not a finished run, a file in it is missing or damaged, or it has no index.
            ConfigError: ``run`` is neither a path nor a run, or torch finds no such device.

        Warns:
            RediffuseWarning: the model computes on the CPU although another device is named.
        """
        forks.enter()
        devices.resolve(device)  # refuses it before a large run is read
        return cls(read_run(run_path("run", run)), retrieval, device)

    def with_histories(
        self,
        interactions: Any,
        *,
        user: str = "user_id",
        item: str = "item_id",
        time: str | None = None,
        time_format: str | None = None,
    ) -> Recommender:
        """A recommender with the same model, and with newer interactions in the histories of its users.

        New users become known users. Nothing is trained: models that have learned a vector per user rank their known
        users as before, without the new items of their histories. The order is by time; if the run has no times, new
        interactions come last. An interaction of the same user with the same item at the same time counts once.

        Args:
            interactions: a dataframe, a `rediffuse.Dataset`, or the path of a table or a dataset.
            user, item, time: columns of a dataframe or a table. None: a column ``timestamp`` is the time, if there is
                one.
            time_format: form of times in text, as for `rediffuse.read_interactions`.

        Raises:
            DataError: the table cannot be read, its ids or times do not fit those of the run, or the model knows none
                of its items.

        Warns:
            RediffuseWarning: items that the model does not know, and repeated interactions, with their counts.
        """
        forks.enter()
        from rediffuse.recommender.fresh_histories import fresh_histories  # imports the readers

        found = fresh_histories(self._run, interactions, user=user, item=item, time=time, time_format=time_format)
        for message in found.remarks():
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        other = copy.copy(self)
        other._use_histories(found.contents)
        digest = hashlib.sha256(self.fingerprint.encode())
        for part in ("offsets", "items", "times"):
            digest.update(b"" if (array := getattr(found.contents.histories, part)) is None else array.tobytes())
        digest.update("\n".join(map(str, other.user_ids)).encode())
        other.fingerprint = digest.hexdigest()
        return other

    def with_items(self, items: Any, *, item: str = "item_id") -> Recommender:
        """A recommender that ranks further items too, by their content alone; nothing is trained.

        Args:
            items: the new items: a dataframe or the path of a table, with the columns that the item features of the
                run were declared on. Missing values and categories that training did not have are normal.
            item: its column of ids.

        Returns:
            A recommender with the new items behind the others. The scores of the others do not change. It ranks
            exactly, without an index.

        Raises:
            ConfigError: the model has learned nothing from the features of items.
            DataError: the table cannot be read, lacks ids or a feature, or has no new item.

        Warns:
            RediffuseWarning: rows about items that the run has, and missing or unknown features, with their counts.
        """
        forks.enter()
        from rediffuse.recommender.new_items import with_new_items  # imports the readers

        found = with_new_items(self._run, items, item=item)
        for message in found.remarks():
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        other = Recommender(found.contents, device=self.device)
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update("\n".join(map(str, other.items["item_id"])).encode())
        digest.update(b"" if other.item_vectors is None else other.item_vectors.cpu().numpy().tobytes())
        other.fingerprint = digest.hexdigest()
        return other

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
        explain: bool = False,
        filter: Any = None,
        max_per: Mapping[str, int] | None = None,
        diversity: float | None = None,
        diversity_by: str | None = None,
        slate: SlateName | None = None,
        new_items: float = 0.0,
        temperature: float | None = None,
        guidance_scale: float | None = None,
    ) -> Frame:
        """Recommend to each user the k items that the model ranks first.

        Ids may be text or integers: "50" finds 50 if the ids of the data are integers, and the reverse.

        Args:
            users: user ids, as a list or a column of polars, pandas or pyarrow. Alone, they stand for the histories
                that the run holds; unknown users get popular items. With ``histories``, they are only labels, one per
                history. Or a frame with a column user_id and, optionally, a column history.
            histories: item ids, oldest first, one list per user, in a list or a column; the users need not have been
                in training.
            k: items per user; fewer if fewer are left.
            exclude: ids of items that are recommended to no user.
            seed: seed of the noise of a stochastic model. A user's list depends on the history and the seed alone.
            samples: number of draws that a stochastic model averages. More than one adds the column ``uncertainty``,
                the standard deviation of the score over draws (0 for a model without noise). It says how far noise
                moves the score, not how likely the item is (docs/uncertainty.md).
            filter_seen: leave out the items of the user's history.
            batch_size: users scored at once; it changes memory and time, not lists.
            candidates: ids of the only items that may be recommended.
            sampling_steps: denoising steps, at most those of training; None: as many as were calibrated on validation
                data.
            noise: factor on the noise of a stochastic model.
            explain: add the column ``because``: for each recommendation, the rows of `explain` with ``top=5`` as a list
                of structs.
            filter: recommend only items that fulfil a condition on the item table: text such as
                ``"category == 'shoes' and price < 50"``, a mapping, or an expression of polars or narwhals; see
                `rediffuse.recommender.item_filters`.
            max_per: column of the item table -> the most items of one value in a list: ``{"category": 2}``. In a column
                of lists every value counts; missing values are not limited.
            diversity: 0 to 1, the weight of the whole list against the relevance of its items; see
                `rediffuse.reranking`. With this or ``max_per``, lists are made of the max(10 k, 100) items that the
                model ranks first, and their scores need not descend.
            diversity_by: column of the item table whose values say how items resemble each other: one value per item, a
                list, or text separated by ``|`` or ``;``. None: the model's item vectors do.
            slate: how the whole list is judged. ``mmr``, or None: an item loses what it resembles the items before it;
                ``dpp``: by the determinant of all similarities; ``calibrated``: by how far the shares of the values of
                ``diversity_by`` are from those in the user's history.
            new_items: 0 to 1, the least share of each list that is items without an interaction in training, if so many
                are left. They take the places of the last others.
            temperature: of the category preference that guides the model `d3rec`. Above 1, the preference is flatter
                and lists get more categories; below 1, they keep to the user's own. None: as trained.
            guidance_scale: weight of that guidance, from -1 (none); at 0 the preference is read and not exaggerated.
                None: as trained.

        Returns:
            A frame: user_id, item_id, rank (from 1), score, uncertainty, title if items have titles, ``new`` (whether
            the item has no interaction in training) if the model ranks such items by their features, and because. It is
            of the library of ``users`` or ``histories`` if these are columns or frames of pandas or pyarrow, else of
            polars. Users are in the order given, with their best items first. Without ``users``, user_id is the
            position of the history, from 0. The ids are of the data's type; all user ids are text if one of them cannot
            be of that type.

        Raises:
            ConfigError: neither users nor histories are given, or their lengths differ; users are given alone, and the
                run holds none; ids are not in lists; a number is out of range; the model has no use for
                sampling_steps, noise, temperature or guidance_scale; its scores cannot be explained; it
                has no item vectors for ``diversity``; ``slate`` or ``diversity_by`` are given without ``diversity``; or
                the item table is missing or does not fit ``filter``, ``max_per`` or ``diversity_by``.

        Warns:
            RediffuseWarning: unknown users, unknown items or empty histories, and histories that lists cannot be
                calibrated to, with their counts; lists that a filter or a limit leaves shorter than k; once, that the
                model has not learned from interactions that its split held out, which the histories of known users
                have.
        """
        k, samples = require_integer("k", k), require_integer("samples", samples)
        batch_size = require_integer("batch_size", batch_size)
        sampling = self.sampling(seed, sampling_steps, noise, temperature, guidance_scale)
        labels, user_numbers, rows, counts = self.resolve_users(users, histories)
        reranking = self.reranking(max_per, diversity, diversity_by, slate)
        query, unknown = self.build_query(k, exclude, candidates, filter_seen, filter, reranking, new_items)
        counts["uncalibrated"] = 0 if reranking is None else reranking.uncalibrated(rows)
        if histories is None and self.held_out_remark is not None and self._remark_due:
            warnings.warn(self.held_out_remark, RediffuseWarning, stacklevel=2)
            self._remark_due = False  # said once
        for message in remarks(counts | unknown):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        explain = require_flag("explain", explain)
        found = self.lists(labels, user_numbers, rows, query, sampling, samples, batch_size, explain)
        short = len(rows) - int((found["rank"] == k).sum())
        if short and (filter is not None or max_per) and "filter_left" not in unknown:
            warnings.warn(
                f"{short:,} of {len(rows):,} users get fewer than k = {k} items: no more are left for them.",
                RediffuseWarning,
                stacklevel=2,
            )
        return as_kind(found, kind_of(users, histories))

    def sampling(
        self,
        seed: Any = 0,
        sampling_steps: Any = None,
        noise: float = 1.0,
        temperature: Any = None,
        guidance_scale: Any = None,
    ) -> Sampling:
        """The sampling options, checked against the model.

        Raises:
            ConfigError: an option is not a number, is out of range, or the model has no use for it.
        """
        seed = require_integer("seed", seed, minimum=None)
        maximum = self.model.max_sampling_steps
        if sampling_steps is not None:
            sampling_steps = require_integer("sampling_steps", sampling_steps)
            if maximum is None:
                raise ConfigError(
                    f"{self.config['model']} has no sampling steps to choose in this run.", "Leave out sampling_steps."
                )
            if sampling_steps > maximum:
                raise ConfigError(
                    f"sampling_steps is {sampling_steps}; this run was trained with {maximum}.", f"Give 1 to {maximum}."
                )
        if not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
            raise ConfigError(f"noise is {noise!r}.", "Give a number of at least 0; the model was trained for 1.")
        if noise != 1 and not self.model.stochastic:
            raise ConfigError(f"{self.config['model']} draws no noise in this run.", "Leave out noise.")
        guidance: dict[str, float] = {}
        for name, value in (("temperature", temperature), ("guidance_scale", guidance_scale)):
            if value is None:
                continue
            guidance[name] = require_number(name, value)
            if not self.model.has_guidance:
                raise ConfigError(f"No condition guides {self.config['model']} in this run.", f"Leave out {name}.")
        if guidance.get("temperature", 1) <= 0:
            raise ConfigError(f"temperature is {described(temperature)}.", "Give a number above 0; 1 changes nothing.")
        if not -1 <= guidance.get("guidance_scale", 0) < float("inf"):
            raise ConfigError(
                f"guidance_scale is {described(guidance_scale)}.", "Give a number from -1, which is no guidance."
            )
        return Sampling(
            seed,
            sampling_steps,
            float(noise),
            temperature=guidance.get("temperature"),
            guidance_scale=guidance.get("guidance_scale"),
        )

    def is_known_user(self, user: Any) -> bool:
        """Whether the run holds a history of a user of this id."""
        return bool(self._users.find([user])[0] >= 0)

    def require_users(self) -> None:
        """Refuse to look up users in a run that was exported or published without them.

        Raises:
            ConfigError: the run holds no users.
        """
        if not len(self.user_ids) and self.config["data"]["users"]:
            raise ConfigError(
                "This run holds no users, so it does not know their histories.",
                "Give their histories: histories= in Python and HTTP, --history or a column history in a user file.",
            )

    # --- from ids to numbers -------------------------------------------------------------------------------

    def resolve_users(
        self, users: Any, histories: Any
    ) -> tuple[pl.Series, NDArray[np.int64], Histories, dict[str, int]]:
        """Turn users and histories, as given to `recommend`, into numbers.

        Returns:
            Labels (n,) for the column user_id; user numbers (n,), -1 for users who were not in training and where
            histories are given; histories (n rows) of item numbers; and counts for `remarks`.
        """
        forks.enter()
        if users is None and histories is None:
            raise ConfigError("Neither users nor histories were given.", "Pass users=[...] or histories=[[...], ...].")
        users, histories = columns_of_users(users, histories)
        ids = users if users is None or isinstance(users, pl.Series) else require_list("users", users)
        counts = {"unknown_users": 0, "unknown_items": 0}
        if histories is None:
            assert ids is not None
            self.require_users()
            user_numbers = self._users.find(ids)
            counts["unknown_users"] = int((user_numbers < 0).sum())
            # One empty row after the last user stands for all unknown users.
            offsets = np.append(self._histories.offsets, self._histories.offsets[-1])
            padded = replace(self._histories, offsets=offsets)
            rows = padded.take(np.where(user_numbers < 0, len(self._histories), user_numbers))
            # The model knows nothing of users who came later.
            user_numbers = np.where(user_numbers < self.model.num_users, user_numbers, -1)
        else:
            lengths, items = flatten_histories(histories)
            if ids is not None and len(ids) != len(lengths):
                raise ConfigError(f"{len(ids)} users and {len(lengths)} histories.", "Give one user id per history.")
            numbers = self.item_index(items)
            offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
            rows = Histories(offsets, numbers.astype(np.int32)).where(numbers >= 0)
            counts["unknown_items"] = int((numbers < 0).sum())
            user_numbers = np.full(len(lengths), -1)  # the model's state of a user belongs to another history
        if not self.model.reads_synthetic:
            rows = rows.without_synthetic()
        counts["users"] = len(rows)
        without = (rows.lengths == 0) & ~self.model.has_user_state(user_numbers)
        counts["empty_histories"] = int(without.sum()) - counts["unknown_users"]
        if ids is None:
            return pl.Series("user_id", range(len(rows)), dtype=pl.Int64), user_numbers, rows, counts
        return user_labels(ids, self.user_ids.dtype), user_numbers, rows, counts

    def build_query(
        self,
        k: int,
        exclude: Iterable[Any] | None,
        candidates: Iterable[Any] | None,
        filter_seen: bool,
        filter: Any = None,
        reranking: Reranking | None = None,
        new_items: float = 0.0,
    ) -> tuple[RankingQuery, dict[str, int]]:
        """The query in item numbers, and counts of unknown ids and of filtered items for `remarks`.

        Arguments are those of `recommend`, with what `reranking` made of those of lists as a whole.

        Raises:
            ConfigError: as `recommend`.
        """
        share = require_number("new_items", new_items)
        if not 0 <= share <= 1:
            raise ConfigError(f"new_items is {share:g}.", "Give a share of each list, from 0 to 1.")
        if share and self.new_items is None:
            raise ConfigError(
                "This run ranks no new items: its model learned nothing from features of items, or all items had "
                "interactions.",
                "Leave out new_items, or add items (rediffuse add-items) to a run that learned from item features.",
            )
        excluded = self.item_index([] if exclude is None else require_list("exclude", exclude))
        allowed = None if candidates is None else self.item_index(require_list("candidates", candidates))
        counts = {"unknown_excluded": int((excluded < 0).sum())}
        counts["unknown_candidates"] = 0 if allowed is None else int((allowed < 0).sum())
        allowed = None if allowed is None else np.unique(allowed[allowed >= 0])
        if filter is not None:
            fulfil = self.filters.allowed(filter)
            allowed = np.flatnonzero(fulfil) if allowed is None else allowed[fulfil[allowed]]
            if len(allowed) < k:
                counts |= {"filter_left": len(allowed), "filter_of": len(fulfil), "filter_k": k}
        filter_seen = require_flag("filter_seen", filter_seen)
        least_new = math.ceil(share * k)
        new = self.new_items if least_new else None
        return RankingQuery(k, excluded[excluded >= 0], allowed, filter_seen, reranking, new, least_new), counts

    def reranking(self, max_per: Any, diversity: Any, diversity_by: Any = None, slate: Any = None) -> Reranking | None:
        """How lists are made of what the model ranks first; arguments as for `recommend`.

        Raises:
            ConfigError: as `recommend`.
        """
        options = RerankingOptions(max_per, diversity, diversity_by, slate)
        return reranking_of(options, self._columns, lambda: self.inspector.directions.cpu().numpy())

    def item_index(self, items: pl.Series | Iterable[Any]) -> NDArray[np.int64]:
        """Item numbers, -1 for unknown ids."""
        forks.enter()
        return self._items.find(items)

    # --- from numbers to frames ----------------------------------------------------------------------------

    def lists(
        self,
        labels: pl.Series,
        user_numbers: NDArray[np.int64],
        rows: Histories,
        query: RankingQuery,
        sampling: Sampling,
        samples: int = 1,
        batch_size: int = 512,
        explain: bool = False,
    ) -> pl.DataFrame:
        """What `recommend` returns, as a polars frame.

        Args:
            labels, user_numbers, rows: n users, from `resolve_users`.
            query: the same for all users, from `build_query`.
            sampling: from `sampling`.
            samples, batch_size, explain: as for `recommend`.

        Raises:
            ConfigError: the scores of the model cannot be explained.
        """
        if explain:
            self.require_explained_scores()
        batch_size = min(batch_size, max(MAX_SCORES // len(self.items), 1))
        ranked: list[RankedItems] = []
        reasons: list[pl.Series] = []
        for start in range(0, max(len(rows), 1), batch_size):  # also if there are no users, for the type of the column
            batch = np.arange(start, min(start + batch_size, len(rows)))
            some = rows.take(batch), user_numbers[batch]
            found = self.ranker.rank(*some, [query] * len(batch), sampling, samples)
            ranked += found
            if explain:
                reasons.append(explanations.because(self.model, *some, found, self.items))
        frame = self._frame(labels, ranked, uncertain=samples > 1)
        return frame.with_columns(because=pl.concat(reasons)) if explain else frame

    def marks_of(self, items: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """The column new of these item numbers, if the model ranks new items."""
        return (
            {"new": np.isin(items, [] if self.new_items is None else self.new_items)}
            if self.model.scores_new_items
            else {}
        )

    def _titles_of(self, items: NDArray[np.int64]) -> dict[str, pl.Series]:
        """The column title of these item numbers, if items have titles."""
        return {"title": self.items["title"].gather(items)} if "title" in self.items.columns else {}

    def _display(self) -> tuple[str, dict[str, Any]]:
        return f"Recommender {self.config['model']}", {
            "users": len(self.user_ids),
            "items": len(self.items),
            "titles": "title" in self.items.columns,
            "trained": f"{self.config.get('created')}, split {self.config['split']['name']}",
            "stochastic": self.model.stochastic,
            "has guidance": self.model.has_guidance,
            "sampling steps": self.model.max_sampling_steps and f"up to {self.model.max_sampling_steps}",
            "device": devices.description(self.device),
            "retrieval": "exact" if self.ranker.index is None else "index",
            "similar items": self.inspector.has_similar,
            "explains scores": self.model.explains_scores,
        }

    def _frame(self, labels: pl.Series, ranked: Sequence[RankedItems], uncertain: bool) -> pl.DataFrame:
        """The lists of all users as one frame; its columns have the same types if there is no row."""
        lengths = [len(user.items) for user in ranked]

        def joined(arrays: list[Any], dtype: Any) -> NDArray[Any]:
            return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype)

        items = joined([user.items for user in ranked], np.int64)
        columns = {
            "user_id": labels.gather(np.repeat(np.arange(len(ranked)), lengths)),
            "item_id": self.items["item_id"].gather(items),
            "rank": joined([np.arange(1, length + 1) for length in lengths], np.int32),
            "score": joined([user.scores for user in ranked], np.float32),
        }
        if uncertain:
            columns["uncertainty"] = joined([user.uncertainty for user in ranked], np.float32)
        return pl.DataFrame(columns | self._titles_of(items) | self.marks_of(items))

    # --- similar items, denoising trajectories, explanations -----------------------------------------------

    def similar(self, items: Iterable[Any], k: int = 10) -> Frame:
        """The k items most similar to each of ``items``.

        Models with an item-item matrix (itemknn, ease, slist, heat, transition, theat) rank by the weights in the row
        of the item, from large to small, where they are positive. Others rank by the cosine of their item vectors.

        Returns:
            A frame: item_id, similar_id, rank (from 1), ``weight`` or ``cosine``, and the title of the similar item if
            items have titles. It is of the library of ``items``, as in `recommend`. Items that are not in the catalogue
            have no row.

        Raises:
            ConfigError: the model has neither an item-item matrix nor item vectors.

        Warns:
            RediffuseWarning: unknown items.
        """
        numbers = self.item_index(require_list("items", items))
        for message in remarks({"unknown_asked": int((numbers < 0).sum())}):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        numbers = numbers[numbers >= 0]
        found = self.inspector.similar(numbers, require_integer("k", k))
        lengths = [len(near) for _, near in found]
        near = np.concatenate([np.empty(0, np.int64), *(near for _, near in found)])
        ids = self.items["item_id"]
        columns = {
            "item_id": ids.gather(np.repeat(numbers, lengths)),
            "similar_id": ids.gather(near),
            "rank": np.concatenate([np.empty(0, np.int32), *(np.arange(1, n + 1, dtype=np.int32) for n in lengths)]),
            self.inspector.measure: np.concatenate([np.empty(0, np.float32), *(values for values, _ in found)]),
        }
        return as_kind(pl.DataFrame(columns | self._titles_of(near)), kind_of(items))

    def denoise(
        self,
        *,
        user: Any = None,
        history: Iterable[Any] | None = None,
        k: int = 10,
        seed: int = 0,
        sampling_steps: int | None = None,
        noise: float = 1.0,
    ) -> Frame:
        """What a diffusion model would recommend after each step of its denoising trajectory.

        Args:
            user: id of a known user; or
            history: item ids, oldest first.
            k, seed, sampling_steps, noise: as for `recommend`. Seen items are kept.

        Returns:
            A frame: step (from 0), t (the timestep), rank (from 1), item_id, score: the k items that the x0_hat of the
            step ranks first. The items of the last step are those of `recommend`, except that a model may score items
            of the history differently there. The frame is of the library of ``history``, as in `recommend`.

        Raises:
            ConfigError: the model does not denoise, or not exactly one of user and history is given.

        Warns:
            RediffuseWarning: as `recommend`.
        """
        user_numbers, rows = self._resolve_one_user(user, history, "there is nothing to denoise for them")
        steps = self.inspector.denoising_trajectory(rows, user_numbers, self.sampling(seed, sampling_steps, noise))
        if not steps and len(rows.items):
            raise ConfigError(f"{self.config['model']} does not denoise in this run.", "Use a run of diffurec.")
        ids, frames = self.items["item_id"], []
        for number, step in enumerate(steps):
            items, scores = zip(*self.inspector.best(step.x0_hat, k), strict=True)
            columns = {"item_id": ids.gather(list(items)), "score": scores}
            frames.append(pl.DataFrame(columns).with_columns(step=number, t=step.t).with_row_index("rank", offset=1))
        dtypes = {"step": pl.Int32, "t": pl.Int32, "rank": pl.Int32, "item_id": ids.dtype, "score": pl.Float32}
        empty = pl.DataFrame(schema=dtypes)
        found = pl.concat(
            [empty, *(frame.select(pl.col(name).cast(dtype) for name, dtype in dtypes.items()) for frame in frames)]
        )
        return as_kind(found, kind_of(history))

    def spread(self, *, user: Any = None, history: Iterable[Any] | None = None, k: int = 10) -> Frame:
        """How a model that diffuses mass over the item graph gets from a history to its scores, hop by hop.

        Args:
            user: id of a known user; or
            history: item ids, oldest first.
            k: items per step. Seen items are kept.

        Returns:
            A frame: step (from 0), hop (its name, from "history" to "scores"), rank (from 1), item_id, mass, and title
            if items have titles: the k items with the most mass after each hop, without those that have none. It is of
            the library of ``history``, as in `recommend`.

        Raises:
            ConfigError: the model diffuses no mass, or not exactly one of user and history is given.

        Warns:
            RediffuseWarning: as `recommend`.
        """
        user_numbers, rows = self._resolve_one_user(user, history, "there is no mass to spread for them")
        steps = self.inspector.spread(rows, user_numbers)
        best = [self.inspector.most_mass(mass, require_integer("k", k)) for _, mass in steps]
        items, frame = explanations.spread_frame([hop for hop, _ in steps], best, self.items)
        return as_kind(frame.with_columns(**self._titles_of(items)), kind_of(history))

    def explain(
        self, items: Iterable[Any], *, user: Any = None, history: Iterable[Any] | None = None, top: int | None = None
    ) -> Frame:
        """Why a model recommends ``items``: what adds up to their scores, or paths through its knowledge graph.

        Args:
            items: ids, for example of recommended items.
            user: id of a known user; or
            history: item ids, oldest first.
            top: the most sources per item, where a source is an item of the history or a prior; the contributions of
                all others become one row with the part "other". Default: all sources. For a knowledge graph: the most
                paths per item. Default: 3.

        Returns:
            Of a model that diffuses mass (its scores are sums), a frame with one row per contribution: item_id,
            history_item (null: it comes from no interaction), part (the hop or prior), contribution, share
            (contribution / score), and title and history_title if items have titles. The contributions to an item add
            up to its score, with and without ``top``. Items are in the order given, with their largest contributions
            first and "other" last; an item whose score is 0 may have no row.

            Of a model that learned from a knowledge graph, the strongest paths from the history to each item; see
            `rediffuse.graphs.paths.strongest_paths`. The weights are those of the model's attention; edges that are not
            ``kept`` were pruned by the model.

            The frame is of the library of ``items`` or ``history``, as in `recommend`.

        Raises:
            ConfigError: the model has neither, or not exactly one of user and history is given.

        Warns:
            RediffuseWarning: an unknown user, unknown items or an empty history.
        """
        limit = None if top is None else require_integer("top", top)
        if not self.has_paths:
            self.require_explained_scores()
        scored = self.model.explains_scores
        user_numbers, rows = self._resolve_one_user(
            user, history, "they get popular items" if scored else "there are no paths for them"
        )
        numbers = self.item_index(require_list("items", items))
        for message in remarks({"unknown_asked": int((numbers < 0).sum())}):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
        numbers = np.asarray(list(dict.fromkeys(numbers[numbers >= 0].tolist())), dtype=np.int64)
        ids = self.items["item_id"]
        if not scored:
            history_items = ids.gather(np.unique(rows.without_synthetic().items))
            found = self.paths(ids.gather(numbers), history_items, limit or explanations.PATHS)
            return as_kind(found, kind_of(items, history))
        found = explanations.contributions(self.model, rows, user_numbers, [numbers], limit)
        return as_kind(explanations.explained_frame(found, numbers, self.items), kind_of(items, history))

    def require_explained_scores(self) -> None:
        """Refuse a model whose scores are no sums over the history.

        Raises:
            ConfigError: says what the model has instead.
        """
        if self.model.explains_scores:
            return
        if self.has_paths:
            raise ConfigError(
                f"The scores of {self.config['model']} are no sums; it explains items by paths, one list at a time.",
                "Use Recommender.explain, or recommend --explain with one --user or --history.",
            )
        raise ConfigError(
            f"{self.config['model']} cannot explain: its scores are no sums, and it learned from no knowledge graph.",
            "Use a run of heat, transition or theat, or of diffkg for paths of a knowledge graph.",
        )

    def _resolve_one_user(
        self, user: Any, history: Iterable[Any] | None, answer: str
    ) -> tuple[NDArray[np.int64], Histories]:
        """The user number (1,) and the history (one row) of a user, with the warnings of `remarks`.

        Raises:
            ConfigError: not exactly one of user and history is given.
        """
        if (user is None) == (history is None):
            raise ConfigError("Give either a user or a history.", "Pass user=... or history=[...].")
        _, user_numbers, rows, counts = self.resolve_users(
            [user] if history is None else None, None if history is None else [history]
        )
        for message in remarks(counts, answer=answer):
            warnings.warn(message, RediffuseWarning, stacklevel=3)
        return user_numbers, rows

    @property
    def has_paths(self) -> bool:
        """Whether the model learned from a knowledge graph, so that `explain` can give paths."""
        return self.knowledge is not None

    def paths(self, items: pl.Series, history: pl.Series, limit: int) -> pl.DataFrame:
        """Up to ``limit`` paths from ``history`` to each of ``items``, as in `explain`; ids have the run's type."""
        from rediffuse.graphs.paths import strongest_paths  # imports scipy, which other answers do not need

        assert self.knowledge is not None
        return strongest_paths(self.knowledge, items, history, limit)

    def find_items(self, names: Iterable[str]) -> list[Any]:
        """Item ids of ids or titles. Case is ignored, and an id wins over an equal title.

        Raises:
            ConfigError: a name is neither an id nor a title (the error names the closest titles), or several items
                have that title.
        """
        return self.titles.find(names)

    def split_names(self, text: str) -> list[str]:
        """Ids or titles of text such as "a|b|c". A known id or title that contains bars is not split."""
        return self.titles.names_in_text.split(text)
