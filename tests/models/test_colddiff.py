"""ColdDiff on data where the category of an item decides who takes it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import torch
from tests.fitting import steps
from torch.nn import functional as F

import rediffuse as rd
from rediffuse.batching.items import ItemBatch, ItemBatches
from rediffuse.data.histories import Histories
from rediffuse.data.item_features import Feature
from rediffuse.diffusion.noise import RowNoise, mix
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.features import FeatureEncoder
from rediffuse.models.base import TrainingData
from rediffuse.models.colddiff import EVIDENCE, ColdDiff, ColdDiffConfig
from rediffuse.models.sampling import Sampling
from rediffuse.runs.run_folder import read_run

GROUPS, EACH, USERS = 4, 12, 80  # the last item of a group is new: it occurs as the last item of one user alone
BACKBONE = {"embedding_size": 16, "epochs": 12, "batch_size": 64, "learning_rate": 0.01, "dropout": 0.0}
SMALL = {
    "epochs": 60,
    "batch_size": 16,
    "hidden_size": 32,
    "precision": "fp32",
    "validate_every": 20,
    "guidance_scale": 0.0,
    "backbone_options": BACKBONE,
}
KIND = [Feature("kind", "category")]
pytestmark = pytest.mark.filterwarnings("ignore:The split of this run held out")


def item_id(group: int, number: int) -> str:
    return f"{'abcd'[group]}{number:02}"


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions and items; a user takes items of one group."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        group = user % GROUPS
        taken = [item_id(group, number) for number in rng.permutation(EACH - 1)[:8]]
        taken += [item_id(group, EACH - 1)] if user < GROUPS else []
        rows += [(f"u{user}", item, time) for time, item in enumerate(taken)]
    ids = [item_id(group, number) for group, number in itertools.product(range(GROUPS), range(EACH))]
    items = pl.DataFrame({"item": ids, "category": [f"group {item[0]}" for item in ids]})
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"), items


@pytest.fixture(scope="module")
def data():
    interactions, items = tables()
    return rd.read_interactions(
        interactions, user="user", item="item", order="time", items=items, item_features="category:category"
    )


@pytest.fixture(scope="module")
def split(data):
    return rd.split.leave_one_out(data)


@pytest.fixture(scope="module")
def backbone(split, tmp_path_factory):
    options = BACKBONE | {"item_features": False, "precision": "fp32"}
    with pytest.warns(RediffuseWarning, match="does not read the declared features"):
        return rd.train("gru4rec", split, tmp_path_factory.mktemp("backbone") / "run", config=options, seed=1)


def trained(split, backbone, folder, **changed):
    options = {key: value for key, value in (SMALL | changed).items() if key != "backbone_options"}
    return rd.train("colddiff", split, folder, config=options, phases_from={"backbone": backbone}, seed=1)


@pytest.fixture(scope="module")
def run(split, backbone, tmp_path_factory):
    return trained(split, backbone, tmp_path_factory.mktemp("colddiff") / "run")


@pytest.fixture(scope="module")
def model(run) -> ColdDiff:
    found = read_run(run.path).model
    assert isinstance(found, ColdDiff)
    return found


def new_items(split) -> np.ndarray:
    return np.flatnonzero(split.training_view().valid.popularity == 0)


def groups_of(split) -> np.ndarray:
    return np.array(["abcd".index(item[0]) for item in split.dataset.item_ids])


def nearest_groups(vectors: torch.Tensor, split, known: torch.Tensor) -> np.ndarray:
    """The group whose mean vector, over items with interactions, has the largest cosine with each of ``vectors``."""
    groups = groups_of(split)
    learned = split.training_view().valid.popularity > 0
    means = torch.stack([known[learned & (groups == group)].mean(0) for group in range(GROUPS)])
    return (F.normalize(vectors, dim=1) @ F.normalize(means, dim=1).T).argmax(1).numpy()


# --- what is drawn -----------------------------------------------------------------------------------------


def test_a_new_item_is_nearest_to_its_group(model, split):
    new = new_items(split)
    assert len(new) == GROUPS
    vectors = model.index_vectors().detach()
    np.testing.assert_array_equal(nearest_groups(vectors[new], split, vectors), groups_of(split)[new])


@pytest.mark.parametrize("kind", ["bprmf", "lightgcn"])
def test_of_factor_models_too(kind, split, tmp_path):
    options = {"embedding_size": 16, "epochs": 20, "batch_size": 128, "learning_rate": 0.05}
    changed = {"backbone": kind, "backbone_options": options, "diffusion": kind == "bprmf"}
    run = rd.train("colddiff", split, tmp_path / "run", config=SMALL | changed, seed=2)
    model, new = read_run(run.path).model, new_items(split)
    vectors = model.index_vectors().detach()
    np.testing.assert_array_equal(nearest_groups(vectors[new], split, vectors), groups_of(split)[new])


def test_regression_is_deterministic(split, backbone, tmp_path):
    run = trained(split, backbone, tmp_path / "run", diffusion=False)
    model, new = read_run(run.path).model, torch.from_numpy(new_items(split))
    assert model.draw(new).shape == (GROUPS, 1, 16)
    before = model.generate(new)
    model.seed.fill_(99)  # nothing is drawn
    assert torch.equal(model.generate(new), before)
    assert run.config["noise"] == []
    vectors = model.index_vectors().detach()
    np.testing.assert_array_equal(nearest_groups(vectors[new], split, vectors), groups_of(split)[new])


def test_draws_are_averaged_and_seeded(model, split):
    items = torch.from_numpy(new_items(split))
    draws, drawn = model.draw(items), model.generate(items)
    assert draws.shape == (GROUPS, model.config.draws, 16)
    torch.testing.assert_close(drawn, draws.mean(1))
    assert (draws.std(1) > 1e-4).all()  # they differ
    assert torch.equal(model.generate(items), drawn)
    torch.testing.assert_close(model.generate(items[1:2]), drawn[1:2])  # alone as in a batch
    seed = model.seed.clone()
    try:
        model.seed.fill_(7)
        assert not torch.allclose(model.generate(items), drawn)
    finally:
        model.seed.copy_(seed)


def test_the_vectors_of_the_run_are_those_of_the_generator(model, split):
    new = torch.from_numpy(new_items(split))
    drawn = F.normalize(model.generate(new), dim=1)
    torch.testing.assert_close(F.normalize(model.index_vectors()[new], dim=1), drawn)


def with_options(model: ColdDiff, **options) -> ColdDiff:
    """The same weights with other options of sampling."""
    other = ColdDiff(model.config.model_copy(update=options), model.num_items, model.num_users)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_guidance(model):
    items, others = torch.tensor([0, 1]), torch.tensor([0, 1])
    by_content = model.generate(items)
    assert model.config.guidance_scale == 0
    assert torch.equal(with_options(model, guidance_scale=0.0).generate(items), by_content)
    assert not torch.allclose(with_options(model, guidance_scale=1.0).generate(items), by_content)
    # With the scale -1, only the network without content is left.
    without = with_options(model, guidance_scale=-1.0)
    drawn = without.generate(others)
    without.content.sparse_weight.data.normal_()
    torch.testing.assert_close(without.generate(others), drawn)


def test_one_step_is_the_estimate_at_the_last_timestep(model):
    one = with_options(model, solver="one_step", draws=1)
    items = torch.tensor([3])
    known, condition = one.conditions(items)
    assert known.all()
    start = RowNoise(mix(items), 1)(torch.empty(1, 16))  # the run has seed 1
    estimate = one.denoiser(start, torch.tensor([99]), condition)
    torch.testing.assert_close(one.generate(items), one.centre + one.scale * estimate)


# --- training ----------------------------------------------------------------------------------------------


def small_data(seed: int = 0) -> TrainingData:
    """Training interactions of two groups of items, with content; item 5 has no interaction, item 2 no content."""
    rows = Histories.from_lists([[0, 1, 2], [1, 0, 2], [3, 4], [4, 3, 4], [0, 2]])
    table = pl.DataFrame({"item_id": range(6), "kind": ["x", "x", None, "y", "y", "y"]})
    content = FeatureEncoder.fit(table, KIND).encode(table)
    return TrainingData(rows, 5, 6, np.bincount(rows.items, minlength=6), seed=seed, content=content)


def begun(diffusion: bool = True, **options) -> tuple[ColdDiff, TrainingData]:
    torch.manual_seed(0)
    plain = {"hidden_size": 8, "dropout": 0.0, "condition_dropout": 0.0, "guidance_scale": 0.0}
    backbone = {"backbone_options": {"embedding_size": 4}}
    config = ColdDiffConfig.build(None, {"diffusion": diffusion} | plain | backbone | options)
    data = small_data()
    model = ColdDiff(config, 6, 5)
    model.fit(data)
    model.begin_phase("generator", data)
    return model, data


def test_the_loss_of_regression_is_a_weighted_mean():
    model, data = begun(diffusion=False)
    steps(model, data, 3, 0.1)
    items = torch.tensor([0, 2, 4])
    found = model.loss(ItemBatch(items)).item()
    vectors = model.backbone.index_vectors().detach().numpy()
    counts = data.popularity
    learned = np.flatnonzero(counts)  # a tenth of five items is none: all of them train
    centre = vectors[learned].mean(0)
    scale = np.sqrt(((vectors[learned] - centre) ** 2).mean())
    weights = counts / (counts + EVIDENCE)
    weights /= weights[learned].mean()
    total = 0.0
    for item in items.tolist():
        c = model.no_content if item == 2 else model.content(torch.tensor([item]))[0]
        with torch.no_grad():
            estimate = model.denoiser(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), c[None])[0].numpy()
        total += weights[item] * ((estimate - (vectors[item] - centre) / scale) ** 2).mean()
    assert found == pytest.approx(total / 3, rel=1e-5)


def test_regression_learns_the_weighted_mean_of_items_with_the_same_content():
    model, data = begun(diffusion=False)
    steps(model, data, 300, 0.01)
    weights, targets = model.weights[:, None], model.targets
    found = (model.generate(torch.arange(6)) - model.centre) / model.scale
    for same in ([0, 1], [3, 4], [2]):
        mean = (weights[same] * targets[same]).sum(0) / weights[same].sum()
        torch.testing.assert_close(found[same], mean.expand(len(same), -1), atol=0.02, rtol=0)
    torch.testing.assert_close(found[5], found[3])  # it has no interaction, and the content of 3 and 4


def test_draws_are_vectors_of_items_with_the_same_content():
    """Two items share their content, so the draws of a third are near the one or the other, not between them."""
    model, data = begun(draws=200, sampling_steps=25)
    steps(model, data, 800, 0.01)
    found = (model.draw(torch.tensor([5]))[0] - model.centre) / model.scale
    left, right = model.targets[3], model.targets[4]
    place = (found - left) @ (right - left) / (right - left).square().sum()  # 0 at the one, 1 at the other
    assert (place.round().clamp(0, 1) - place).abs().median() < 0.25  # 0.25 if spread evenly between them
    share = place.round().clamp(0, 1).mean().item()
    assert abs(share - float(model.weights[4] / (model.weights[3] + model.weights[4]))) < 0.25


def test_a_phase_begins_again_as_it_began():
    """After a break, `begin_phase` derives the same from weights in which new items were placed meanwhile."""
    counts = np.r_[np.arange(1, 30), 0]
    table = pl.DataFrame({"item_id": range(30), "kind": [f"k{i % 3}" for i in range(30)]})
    content = FeatureEncoder.fit(table, KIND).encode(table)
    data = dataclasses.replace(small_data(), num_items=30, popularity=counts, content=content)
    model = ColdDiff(ColdDiffConfig.build(None, {"backbone_options": {"embedding_size": 4}}), 30, 5)
    model.fit(data)
    model.begin_phase("generator", data)
    before = model.hidden, model.learned, model.targets.clone(), model.centre.clone(), model.scale.clone()
    assert len(model.hidden) == 2
    assert 29 not in model.hidden
    assert sorted([*model.hidden.tolist(), *model.learned]) == list(range(29))
    model.eval()
    placed = model.index_vectors()[29].clone()
    model.prepare()
    assert not torch.allclose(model.index_vectors()[29], placed)
    assert torch.equal(model.index_vectors()[model.hidden], model.drawn)
    model.begin_phase("generator", data)
    after = model.hidden, model.learned, model.targets, model.centre, model.scale
    assert torch.equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    torch.testing.assert_close(before[2][:29], after[2][:29])
    torch.testing.assert_close(before[3:], after[3:])


def test_hidden_items_have_their_own_vectors_after_training(run, model, backbone, split):
    """The backbone of the run is the one that it was taken from, but for the new items."""
    own, found = read_run(backbone.path).model.index_vectors(), model.index_vectors()
    learned = split.training_view().valid.popularity > 0
    assert torch.equal(own[learned], found[learned])
    assert not torch.isclose(own[~learned], found[~learned]).all(1).any()
    assert run.config["resolved"]["hidden_items"]["items"] == int(0.1 * learned.sum())
    assert run.config["resolved"]["hidden_items"]["cosine"] > 0.5
    assert list(run.config["phases_from"]) == ["backbone"]
    (noise,) = run.config["noise"]
    assert noise["rms"] == pytest.approx(1, abs=0.01)
    assert noise["snr"][0] > 1 > noise["snr"][2]


def test_batches_hold_every_item_once():
    batches = ItemBatches(np.arange(3, 13), batch_size=4, rng=np.random.default_rng(0))
    assert len(batches) == 3
    assert sorted(torch.cat([batches.get(i).items for i in range(3)]).tolist()) == list(range(3, 13))
    parts = [batches.get(2, rank, 4) for rank in range(4)]  # two items for four processes
    assert [part.rank_weight for part in parts] == [2.0, 2.0, 0.0, 0.0]


# --- new items ---------------------------------------------------------------------------------------------


def test_added_items_are_ranked_by_their_group(run, model, split):
    before = rd.Recommender.load(run.path)
    added = pl.DataFrame({"item_id": ["new b", "new d"], "category": ["group b", "group d"]})
    after = before.with_items(added)
    assert len(after.items) == len(before.items) + 2
    history = [[item_id(1, number) for number in range(4)], [item_id(3, number) for number in range(4)]]
    scores = after.recommend(histories=history, k=100)
    place = {
        (row, item): rank
        for row, item, rank in zip(scores["user_id"], scores["item_id"], scores["rank"], strict=True)
        if item.startswith("new")
    }
    first, second = scores["user_id"].unique(maintain_order=True)
    assert place[first, "new b"] < 10 < place[first, "new d"]
    assert place[second, "new d"] < 10 < place[second, "new b"]
    assert torch.equal(after.model.index_vectors()[: model.num_items], model.index_vectors())
    again = before.with_items(added)
    assert torch.equal(after.model.index_vectors(), again.model.index_vectors())


# --- refusals ----------------------------------------------------------------------------------------------


def test_data_without_features_are_refused(data, tmp_path):
    plain = data.with_features([])
    with pytest.raises(DataError, match=r"(?s)colddiff draws .* item features.*--item-features"):
        rd.train("colddiff", rd.split.leave_one_out(plain), tmp_path / "run", config=SMALL)
    assert not (tmp_path / "run").exists()


def test_new_items_without_any_value_are_counted(data, split):
    model, view = ColdDiff(ColdDiffConfig(), data.num_items), split.training_view()
    table = data.items.with_columns(
        category=pl.when(pl.col("item_id").str.ends_with(str(EACH - 1))).then(None).otherwise(pl.col("category"))
    )
    content = FeatureEncoder.fit(table, data.item_features).encode(table)
    known = dataclasses.replace(
        small_data(), num_items=data.num_items, popularity=view.valid.popularity, content=content
    )
    with pytest.warns(RediffuseWarning, match="4 of 4 items without an interaction in training have no value"):
        model.check(known)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": "gru4re"}, r"(?s)'gru4re' is not a backbone.*'gru4rec'"),
        ({"backbone": "ease"}, "'ease' is not a backbone"),
        ({"backbone_options": {"prior": "head"}}, "a prior belongs to the whole model"),
        ({"backbone_options": {"layer": 1}}, "Unknown option 'layer'"),
        ({"sampling_steps": 200}, "sampling_steps=200 is more than diffusion_steps=100"),
        ({"guidance_scale": 1.0, "condition_dropout": 0.0}, "guidance_scale needs a condition_dropout above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        ColdDiffConfig.build(None, options)


def test_a_backbone_with_content_is_refused(split, tmp_path):
    run = rd.train("gru4rec", split, tmp_path / "features", config=BACKBONE | {"epochs": 1})
    with pytest.raises(ConfigError, match=r"(?s)made of content already.*item_features=false"):
        trained(split, run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_hidden_and_new_items_are_ranked_among_themselves_while_the_generator_is_trained():
    model, _ = begun()
    model.hidden = torch.tensor([1])  # five items are too few for a tenth
    model.eval()
    model.prepare()
    rows = Histories.from_lists([[0, 3], [4]])
    scores = model.score(rows)
    expected = model.query_vectors(rows, np.array([-1, -1]), Sampling()) @ model.index_vectors().T
    torch.testing.assert_close(scores[:, [1, 5]], expected[:, [1, 5]])
    assert (scores[:, [0, 2, 3, 4]] < scores[:, [1, 5]].amin(1, keepdim=True)).all()
    model.show_hidden()
    torch.testing.assert_close(model.score(rows), model.backbone.score(rows))
