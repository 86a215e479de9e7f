"""The dataset: interactions as numbered arrays, ids, tables, a social graph and a knowledge graph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.features import feature_vectors
from rediffuse.data.histories import BLOCK, Histories
from rediffuse.data.item_features import Feature, content_of, parse_features
from rediffuse.display import Displayed
from rediffuse.errors import ConfigError, DataError
from rediffuse.objects.folders import output

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, eq=False)
class SocialGraph:
    """Directed links between users, without self links and repeats.

    Attributes:
        source, target: (links,) int32 user numbers.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Triples about entities, and which items are which entities.

    Attributes:
        head, relation, tail: (triples,) int32 numbers of entities and relations.
        entity_ids, relation_ids: position = number.
        item_entity: (pairs, 2) int32 item number, entity number; not every item has one.
    """

    head: NDArray[np.int32]
    relation: NDArray[np.int32]
    tail: NDArray[np.int32]
    entity_ids: pl.Series
    relation_ids: pl.Series
    item_entity: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.head)

    @property
    def num_entities(self) -> int:
        return len(self.entity_ids)

    @property
    def num_relations(self) -> int:
        return len(self.relation_ids)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Displayed):
    """Interactions in numbers, and everything that is known about users and items.

    Make one with `rediffuse.read_interactions`, `rediffuse.read_atomic` or `rediffuse.load_dataset`.

    Attributes:
        interactions: one row of interactions per user.
        user_ids, item_ids: Int64 or String; position = number. Users known only from the social graph come
            last.
        has_timestamps: False: ``interactions.times`` is an order column or None.
        items: row i describes item i; the first column is ``item_id``.
        title: the column of `items` that holds a readable name.
        users: row u describes user u; the first column is ``user_id``.
        item_features, user_features: the columns of `items` and `users` that models may learn from as content, see
            `with_features`.
        social, kg: graphs, if there are any.
        given: scheme -> (interactions,) int8 subset of each interaction: 0 train, 1 valid, 2 test, -1 unused.
        report: what reading the data counted and dropped; ``report["notes"]`` says it in sentences.
    """

    interactions: Histories
    user_ids: pl.Series
    item_ids: pl.Series
    has_timestamps: bool = False
    items: pl.DataFrame | None = None
    title: str | None = None
    users: pl.DataFrame | None = None
    social: SocialGraph | None = None
    kg: KnowledgeGraph | None = None
    given: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    item_features: tuple[Feature, ...] = ()
    user_features: tuple[Feature, ...] = ()

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        return len(self.interactions.items)

    @property
    def num_targets(self) -> int:
        """How many interactions may be truth in validation and test; all, unless target events were named."""
        target = self.interactions.target
        return self.num_interactions if target is None else int(target.sum())

    @cached_property
    def interactions_fingerprint(self) -> str:
        """sha256 over ids and interactions alone, and which of these are targets."""
        rows = self.interactions
        arrays: tuple[Any, ...] = (rows.offsets, rows.items, rows.times, rows.ratings)
        if rows.synthetic is not None:
            arrays += (rows.synthetic,)
        if rows.target is not None:
            arrays += ("target", rows.target)
        return _digest("interactions", self.has_timestamps, self.user_ids, self.item_ids, *arrays)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that a model can learn from in numbers: ids, interactions and both graphs.

        It does not cover item and user tables or given splits: correcting a title does not make a new dataset, models
        with and without features are comparable, and a split has its own fingerprint.
        """
        parts: list[Any] = [self.interactions_fingerprint]
        if self.social is not None:
            parts += ["social", self.social.source, self.social.target]
        if self.kg is not None:
            kg = self.kg
            parts += ["kg", kg.head, kg.relation, kg.tail, kg.entity_ids, kg.relation_ids, kg.item_entity]
        return _digest(*parts)

    @cached_property
    def features_fingerprint(self) -> str:
        """sha256 over the declared item and user features: what they are, and the content of their columns."""
        sides = ((self.item_features, self.items), (self.user_features, self.users))
        found = [content_of(table, features) for features, table in sides if features and table is not None]
        return _digest(*(part for parts in found for part in parts))

    @cached_property
    def tables_fingerprint(self) -> str:
        """sha256 over what models read from the item and user tables: vectors and sets, in numbers.

        Raises:
            DataError: as `rediffuse.data.features.feature_vectors`.
        """
        found = [feature_vectors(table) for table in (self.items, self.users)]
        return _digest(*(b"" if vectors is None else vectors for vectors in found))

    def with_features(
        self, items: str | Sequence[str] | None = None, users: str | Sequence[str] | None = None
    ) -> Dataset:
        """The same with other features: columns of the item and user tables that models may learn from.

        Args:
            items: columns of the item table, each with its kind (category, number, text or vector) or without:
                ``"brand,price,title:text,image:vector"``, or a list of such parts. A kind that is not given is guessed,
                and the report says how. None: item features stay as they are; an empty list: none.
            users: the same for the user table.

        Raises:
            ConfigError: there is no such table; a column is unknown, repeated or the id; a kind is unknown.
            DataError: a column is empty, or does not hold what its kind says.

        Warns:
            RediffuseWarning: text was guessed to be a category, and most of its values occur once.
        """
        changed: dict[str, Any] = {}
        sides: tuple[tuple[Literal["item", "user"], Any, pl.DataFrame | None], ...]
        sides = (("item", items, self.items), ("user", users, self.users))
        notes = list(self.report.get("notes", []))
        for what, spec, table in sides:
            if spec is None:
                continue
            if table is None:
                raise ConfigError(
                    f"{what}_features={spec!r} was given without a table of {what}s.", f"Pass {what}s=... as well."
                )
            # What was noted of an earlier declaration is void.
            notes = [sentence for sentence in notes if not sentence.startswith(f"{what}_features: ")]
            changed[f"{what}_features"] = parse_features(spec, table, what, notes.append)
        return replace(self, **changed, report={**self.report, "notes": notes}) if changed else self

    def without_synthetic(self) -> Dataset:
        """The same without synthetic interactions."""
        synthetic = self.interactions.synthetic
        if synthetic is None:
            return self
        given = {scheme: subset[~synthetic] for scheme, subset in self.given.items()}
        augmentation = self.report.get("augmentation", {})
        report = {name: value for name, value in self.report.items() if name != "augmentation"}
        report["notes"] = [note for note in report.get("notes", []) if note != augmentation.get("note")]
        return replace(self, interactions=self.interactions.without_synthetic(), given=given, report=report)

    @cached_property
    def fingerprint_without_synthetic(self) -> str:
        """`fingerprint` of the dataset without synthetic interactions."""
        return self.fingerprint if self.interactions.synthetic is None else self.without_synthetic().fingerprint

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the dataset as arrays, Parquet and a manifest; an earlier dataset at ``folder`` is replaced at the end.

        Raises:
            DataError: ``folder`` holds something other than a dataset, or cannot be written.
            ConfigError: ``folder`` is not a path.
        """
        from rediffuse.data.store import files_of, write_dataset

        place = output("folder", folder)
        place.start(replaces=files_of, kind=DataError)
        metadata = {
            "counts": {"users": self.num_users, "items": self.num_items, "interactions": self.num_interactions},
            "fingerprint": self.fingerprint,
            "interactions_fingerprint": self.interactions_fingerprint,
            "has_timestamps": self.has_timestamps,
            "title": self.title,
            "item_table": self.items is not None,
            "user_table": self.users is not None,
            "item_features": [[feature.column, feature.kind] for feature in self.item_features],
            "user_features": [[feature.column, feature.kind] for feature in self.user_features],
            "schemes": list(self.given),
            "report": self.report,
        }
        write_dataset(place.folder, self._frames(), self._arrays(), metadata)
        place.publish()
        return place.path

    def _display(self) -> tuple[str, dict[str, Any]]:
        pairs = max(1, self.num_users * self.num_items)
        kept = [name for name in ("times", "ratings", "synthetic") if getattr(self.interactions, name) is not None]
        if not self.has_timestamps:
            kept = ["order" if name == "times" else name for name in kept]
        return "Dataset", {
            "users": self.num_users,
            "items": self.num_items,
            "interactions": f"{self.num_interactions:,} ({self.num_interactions / pairs:.2%} of all pairs)",
            "with": ", ".join(kept) or None,
            "target interactions": None if self.interactions.target is None else f"{self.num_targets:,}",
            "item table": _columns(self.items),
            "user table": _columns(self.users),
            "item features": ", ".join(map(str, self.item_features)) or None,
            "user features": ", ".join(map(str, self.user_features)) or None,
            "social graph": None if self.social is None else f"{len(self.social):,} links",
            "knowledge graph": None if self.kg is None else f"{len(self.kg):,} triples",
            "given splits": ", ".join(sorted(self.given)) or None,
        }

    def _frames(self) -> dict[str, pl.DataFrame]:
        import polars as pl

        frames = {
            "users.parquet": self.users if self.users is not None else self.user_ids.to_frame("user_id"),
            "items.parquet": self.items if self.items is not None else self.item_ids.to_frame("item_id"),
        }
        if self.social is not None:
            frames["social.parquet"] = pl.DataFrame({"source": self.social.source, "target": self.social.target})
        if self.kg is not None:
            kg = self.kg
            frames["kg.parquet"] = pl.DataFrame({"head": kg.head, "relation": kg.relation, "tail": kg.tail})
            frames["entities.parquet"] = kg.entity_ids.to_frame("entity_id")
            frames["relations.parquet"] = kg.relation_ids.to_frame("relation_id")
            frames["item_entity.parquet"] = pl.DataFrame({"item": kg.item_entity[:, 0], "entity": kg.item_entity[:, 1]})
        return frames

    def _arrays(self) -> dict[str, NDArray[Any]]:
        from rediffuse.data.store import HISTORY_ARRAYS, array_file, scheme_array

        arrays = {name: getattr(self.interactions, name) for name in HISTORY_ARRAYS}
        arrays |= {scheme_array(i): subset for i, subset in enumerate(self.given.values())}
        return {array_file(name): array for name, array in arrays.items() if array is not None}


def _columns(table: pl.DataFrame | None) -> str | None:
    return None if table is None else ", ".join(table.columns)


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif hasattr(part, "to_numpy"):  # a series of ids: lengths and bytes, so that no two lists run together
            _digest_ids(digest, part)
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _digest_ids(digest: Any, ids: pl.Series) -> None:
    if ids.dtype.is_integer():
        digest.update(b"int64")
        digest.update(ids.to_numpy().astype("<i8").tobytes())
    else:
        digest.update(b"str")
        digest.update(ids.str.len_bytes().to_numpy().astype("<i8").tobytes())
        for start in range(0, len(ids), BLOCK):
            digest.update("".join(ids[start : start + BLOCK].to_list()).encode())
