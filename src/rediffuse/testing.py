"""Contract tests for models: what every model of Rediffuse keeps, to run on a model of your own.

```python
from rediffuse.testing import check_model

check_model(MyModel)
```

pytest is not needed. With it, parametrize a test over `CONTRACTS`: each is a function of what `train_small` returns.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Never

import numpy as np
import polars as pl
import torch

from rediffuse.config import ModelConfig, Range
from rediffuse.data import split as splits
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import Split
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.models.external import class_path
from rediffuse.models.sampling import Sampling
from rediffuse.readers.interactions import read_interactions
from rediffuse.recommender import Recommender
from rediffuse.runs.run_folder import Run, read_log
from rediffuse.training import train

# Options that make training quick; those that a model does not have are left out.
SMALL = {"embedding_size": 16, "batch_size": 64, "epochs": 3, "patience": 2}
SEED = 5


class NotApplicable(Exception):
    """A contract does not apply to the model; the message says why."""


@dataclass
class TrainedModel:
    """A small run of a model, for contracts to examine.

    Attributes:
        kind: the class.
        split: what it was trained on.
        run: the run.
        folder: contracts train further runs in it.
    """

    kind: type[Model]
    split: Split
    run: Run
    folder: Path

    @cached_property
    def recommender(self) -> Recommender:
        return Recommender.load(self.run.path)

    @property
    def users(self) -> list[Any]:
        return self.split.dataset.user_ids.to_list()

    @property
    def items(self) -> list[Any]:
        return self.split.dataset.item_ids.to_list()

    def train_again(self, name: str, seed: int) -> Run:
        """Train with the same options and this seed."""
        return train(self.kind, self.split, self.folder / name, config=self.run.config["config"], seed=seed)


def check_model(
    model: str | type[Model], config: dict[str, Any] | None = None, data: Dataset | Split | None = None
) -> None:
    """Train a model on small data and check the contracts that every model keeps (`CONTRACTS`).

    Args:
        model: a class, the import path of one (``"my_package.module:MyModel"``), or a name.
        config: options on top of `SMALL`. Choose them so that a training takes a second.
        data: a dataset, which is split by leave-one-out, or a split; None: `synthetic_interactions` with friends, a
            knowledge graph and categories. It needs at least 8 items and 3 users.

    Raises:
        AssertionError: the model breaks contracts; names them all, and says what was found.
        ConfigError: the class lacks what a model needs, or an option is unknown.
    """
    broken: list[tuple[str, Exception]] = []
    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        trained = train_small(model, Path(folder), config, data)
        for contract in CONTRACTS:
            try:
                contract(trained)
            except NotApplicable:
                continue
            except Exception as error:
                broken.append((contract.__name__.replace("_", " "), error))
    if broken:
        lines = [f"{class_path(trained.kind)} breaks {len(broken)} of {len(CONTRACTS)} contracts:"]
        for name, error in broken:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            lines.append(f"- {name}: {kind}{error}")
        raise AssertionError("\n".join(lines)) from broken[0][1]


def train_small(
    model: str | type[Model],
    folder: Path,
    config: dict[str, Any] | None = None,
    data: Dataset | Split | None = None,
) -> TrainedModel:
    """Train a model for the contracts; arguments as for `check_model`. The run is written into ``folder``."""
    kind = model_class(model)
    if data is None:
        data = synthetic_interactions(friends=3, knowledge=True, categories=True)
        data = data.with_features("genres") if kind.needs_content else data
    split = data if isinstance(data, Split) else splits.leave_one_out(data)
    if split.dataset.num_items < 8 or split.dataset.num_users < 3:
        raise ConfigError("The contracts need data of at least 8 items and 3 users.", "Give other data, or none.")
    options = {name: value for name, value in SMALL.items() if name in kind.Config.model_fields} | (config or {})
    return TrainedModel(kind, split, train(kind, split, folder / "run", config=options, seed=SEED), folder)


# --- the contracts -----------------------------------------------------------------------------------------


def a_loaded_run_gives_the_same_lists(trained: TrainedModel) -> None:
    first, second = (Recommender.load(trained.run.path) for _ in range(2))
    with torch.inference_mode():
        rows = Histories.from_lists([[0], [1, 2, 3]])
        before, after = (each.model.score(rows, seed=1) for each in (first, second))
    _require(torch.equal(before, after), "two loads of one run give different scores")
    first, second = (each.recommend(users=trained.users, k=10, seed=3) for each in (first, second))
    _require(first.equals(second), "two loads of one run give different lists")


def batch_size_does_not_change_lists(trained: TrainedModel) -> None:
    users = trained.users
    large = trained.recommender.recommend(users=users, k=10, seed=1)
    small = trained.recommender.recommend(users=users, k=10, seed=1, batch_size=7)
    _same_lists(large.drop("score"), small.drop("score"), "batches of 7 users")
    one = users[min(11, len(users) - 1)]
    alone = trained.recommender.recommend(users=[one], k=10, seed=1)
    _same_lists(large.filter(large["user_id"] == one).drop("score"), alone.drop("score"), "a user alone")


def unknown_users_and_items_are_answered(trained: TrainedModel) -> None:
    recommender, items = trained.recommender, trained.items
    with _expect_warning("an unknown user"):
        lists = recommender.recommend(users=[_unknown(trained.users), trained.users[0]], k=5)
    _require(
        lists["user_id"].value_counts()["count"].to_list() == [5, 5], "an unknown user gets another number of items"
    )
    with _expect_warning("an unknown item"):
        lists = recommender.recommend(histories=[[items[1], _unknown(items), items[2]]], k=5)
    expected = recommender.recommend(histories=[[items[1], items[2]]], k=5)
    _same_lists(expected.drop("score"), lists.drop("score"), "an unknown item in the history")


def seen_items_are_filtered_unless_asked_for(trained: TrainedModel) -> None:
    recommender, items = trained.recommender, trained.items
    history = items[1:4]
    found = recommender.recommend(histories=[history], k=len(items) - 3)["item_id"].to_list()
    _require(not set(history) & set(found), "items of the history are recommended")
    found = recommender.recommend(histories=[history], k=len(items), filter_seen=False)["item_id"].to_list()
    _require(sorted(found) == sorted(items), "not every item is in the whole list, once")


def scores_are_finite_for_any_history(trained: TrainedModel) -> None:
    count = len(trained.items)
    rows = Histories.from_lists([[], [0], [3] * 200, list(range(count))])
    scores = trained.recommender.model.score(rows, seed=0)
    _require(scores.shape == (4, count), f"scores of 4 users and {count} items have the shape {tuple(scores.shape)}")
    _require(scores.dtype == torch.float32, f"scores are {scores.dtype}, not torch.float32")
    histories = ("an empty one", "one item", "one item 200 times", "every item")
    for name, finite in zip(histories, scores.isfinite().all(dim=1).tolist(), strict=True):
        _require(finite, f"scores of a history ({name}) are not finite")


def vectors_rank_as_the_model_does(trained: TrainedModel) -> None:
    """What an index searches, and what `Recommender` scores with, are the scores of the model itself."""
    model = trained.recommender.model
    with torch.inference_mode():
        items = model.index_vectors()
        if items is None or not model.ranks_by_vectors:
            raise NotApplicable("It does not rank by item vectors.")
        rows, users = Histories.from_lists([[0], [3] * 70, [5, 6, 7, 5]]), np.array([-1, 2, -1])
        queries = model.query_vectors(rows, users, Sampling(seed=4))
        scores = model.score(rows, users=users, seed=4)
        by_vectors = model.scores_by_vectors(queries, items, rows)
        torch.testing.assert_close(by_vectors, scores, atol=1e-5, rtol=1e-5, msg=_differ("scores_by_vectors"))
        for row, history in enumerate(([0], [3], [5, 6, 7])):
            unseen = np.setdiff1d(np.arange(len(items)), history)
            products = (queries @ items.T)[row, unseen]
            message = _differ("inner products of query_vectors and index_vectors, of unseen items,")
            torch.testing.assert_close(products, scores[row, unseen], atol=1e-5, rtol=1e-5, msg=message)


def candidates_are_ranked_as_in_the_whole_list(trained: TrainedModel) -> None:
    among = trained.items[::3]
    request = {"users": trained.users[:2], "k": len(trained.items), "seed": 2}
    every = trained.recommender.recommend(**request)
    found = trained.recommender.recommend(**request, candidates=among)
    _same_lists(every.filter(every["item_id"].is_in(among)).drop("rank"), found.drop("rank"), "candidates")


def a_bad_configuration_is_refused(trained: TrainedModel) -> None:
    for config, expected in (({"learning_rat": 1}, "Unknown option 'learning_rat'"), ({"epochs": -1}, "epochs")):
        try:
            train(trained.kind, trained.split, trained.folder / "refused", config=config)
        except ConfigError as error:
            _require(
                expected in str(error), f"config={config} is refused, but the error does not say {expected}: {error}"
            )
        else:
            _fail(f"config={config} is not refused")
    _require(not (trained.folder / "refused").exists(), "a refused configuration leaves a folder behind")


def presets_and_search_are_valid(trained: TrainedModel) -> None:
    config = trained.kind.Config
    for preset in config.presets:
        _build(config, preset, {}, f"preset {preset!r}")
    for option, domain in config.search.items():
        _require(option in config.model_fields, f"`search` has {option!r}, which is not an option")
        for value in (domain.low, domain.high) if isinstance(domain, Range) else domain:
            _build(config, None, {option: value}, f"{option}={value!r} of `search`")


def the_same_seed_gives_the_same_run(trained: TrainedModel) -> None:
    first, again = trained.run, trained.train_again("again", SEED)
    weights, others = ((run.path / "model.safetensors").read_bytes() for run in (first, again))
    _require(weights == others, "the weights differ")
    _require(again.validation == first.validation, f"validation differs: {first.validation}, {again.validation}")
    _require(_losses(again) == _losses(first), "the losses differ")
    left, right = (Recommender.load(run.path).recommend(users=trained.users, k=10, seed=2) for run in (first, again))
    _require(left.equals(right), "the lists differ")


def another_seed_gives_another_run(trained: TrainedModel) -> None:
    if not trained.run.config["training"]["best_epoch"]:
        raise NotApplicable("It is solved in closed form: nothing is drawn.")
    other = trained.train_again("other", SEED + 1)
    _require(_losses(other) != _losses(trained.run), "two seeds give the same losses: something else seeds the weights")


def another_sampling_seed_gives_other_scores(trained: TrainedModel) -> None:
    model = trained.recommender.model
    if not model.stochastic:
        raise NotApplicable("It draws no noise to recommend.")
    first, second = (model.score(Histories.from_lists([[0, 1, 2]]), seed=seed) for seed in (0, 1))
    _require(not torch.equal(first, second), "the model says that it is stochastic, and two seeds give the same scores")


CONTRACTS: tuple[Callable[[TrainedModel], None], ...] = (
    a_loaded_run_gives_the_same_lists,
    batch_size_does_not_change_lists,
    unknown_users_and_items_are_answered,
    seen_items_are_filtered_unless_asked_for,
    scores_are_finite_for_any_history,
    vectors_rank_as_the_model_does,
    candidates_are_ranked_as_in_the_whole_list,
    a_bad_configuration_is_refused,
    presets_and_search_are_valid,
    the_same_seed_gives_the_same_run,
    another_seed_gives_another_run,
    another_sampling_seed_gives_other_scores,
)


# --- what contracts share ----------------------------------------------------------------------------------


def _require(condition: bool, message: str) -> None:
    """Like ``assert``, but not removed by ``python -O``."""
    if not condition:
        _fail(message)


def _fail(message: str) -> Never:
    raise AssertionError(message)


def _same_lists(expected: pl.DataFrame, found: pl.DataFrame, case: str) -> None:
    if not expected.equals(found):
        _fail(f"{case}: the lists differ. Expected {expected.rows()[:3]} ..., found {found.rows()[:3]} ...")


def _build(config: type[ModelConfig], preset: str | None, options: dict[str, Any], case: str) -> None:
    try:
        config.build(preset, options)
    except ConfigError as error:
        _fail(f"{case} is refused: {error}")


def _differ(what: str) -> Callable[[str], str]:
    return lambda message: f"{what} are not the scores of the model. {message}"


def _losses(run: Run) -> list[float]:
    return [line["loss"] for line in read_log(run.path)]


def _unknown(ids: list[Any]) -> Any:
    return max(ids) + 1 if isinstance(ids[0], int) else "no such id"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RediffuseWarning)
        yield


@contextlib.contextmanager
def _expect_warning(case: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    _require(any(issubclass(each.category, RediffuseWarning) for each in found), f"{case} causes no warning")


# --- data --------------------------------------------------------------------------------------------------


def synthetic_interactions(
    users: int = 60,
    items: int = 40,
    length: int = 12,
    seed: int = 0,
    text_ids: bool = True,
    friends: int = 0,
    knowledge: bool = False,
    categories: bool = False,
) -> Dataset:
    """A small made-up dataset with something to learn: the next item on a ring usually follows.

    Each user starts at a random item of the ring and goes on to the next one, or, one time in five, to a random one.

    Args:
        users: how many.
        items: how many.
        length: interactions of a user, at most; at least 4.
        seed: seed of what is drawn.
        text_ids: ids are "u0" and "i0"; otherwise integers.
        friends: link each user to this many who started nearby, and one more user, who has no interactions, to the
            first.
        knowledge: add a knowledge graph: items that are near on the ring share entities.
        categories: add the column ``genres`` to the item table: items that are near on the ring share one, and some
            have a second one.

    Returns:
        A dataset with timestamps and titles.
    """

    def user_id(number: int) -> str | int:
        return f"u{number}" if text_ids else int(number)

    rng = np.random.default_rng(seed)
    rows = []
    starts = []
    for user in range(users):
        at = int(rng.integers(items))
        starts.append(at)
        for step in range(int(rng.integers(4, length + 1))):
            rows.append((user_id(user), f"i{at}" if text_ids else at, 1_000_000 + 977 * step + user))
            at = (at + 1) % items if rng.random() < 0.8 else int(rng.integers(items))
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    ids = table["item"].unique().sort()
    titles = pl.DataFrame({"item": ids, "title": [f"Film {i}" for i in ids]})
    if categories:
        place = [int(str(i).removeprefix("i")) for i in ids]
        genres = [f"genre {i // 8}" + ("|long" if i % 3 == 0 else "") for i in place]
        titles = titles.with_columns(genres=pl.Series(genres))
    social = None
    if friends:
        order = np.argsort(starts, kind="stable")
        pairs = [(order[i], order[(i + n) % users]) for i in range(users) for n in range(1, friends + 1)]
        links = [
            *((user_id(one), user_id(other)) for one, other in pairs),
            ("u_alone" if text_ids else users, user_id(0)),
        ]
        social = pl.DataFrame(links, schema=["source", "target"], orient="row")
    columns: dict[str, Any] = {"user": "user", "item": "item", "time": "time"}
    if knowledge:
        triples = [(f"e{i}", f"of {size}", f"part {size}.{i // size}") for i in range(items) for size in (5, 2)]
        links = pl.DataFrame({"item": ids, "entity": [f"e{str(i).removeprefix('i')}" for i in ids]})
        kg = pl.DataFrame(triples, schema=["head", "relation", "tail"], orient="row")
        columns |= {"kg": kg, "item_entity": links}
    return read_interactions(table, **columns, items=titles, title="title", social=social)


__all__ = ["CONTRACTS", "NotApplicable", "TrainedModel", "check_model", "synthetic_interactions", "train_small"]
