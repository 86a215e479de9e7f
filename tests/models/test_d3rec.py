"""D3Rec: the preference, its temperature, the guidance by hand, and that it is DiffRec without its condition."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch
from starlette.testclient import TestClient
from tests.fitting import steps, training_data
from tests.test_cli import succeeds

import rediffuse as rd
from rediffuse.data.features import sets_of
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.models.d3rec import D3Rec, tempered
from rediffuse.models.diffrec import DiffRec
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.runs.run_folder import read_run
from rediffuse.serving.app import create_app
from rediffuse.testing import synthetic_interactions

ITEMS = 30
SMALL = {"hidden_sizes": (8, 24), "batch_size": 32, "precision": "fp32", "time_size": 6}
# Two items share "b", and the last has no category.
GENRES = ["a", "a|b", "b|c", *(f"{'abcd'[i % 4]}" for i in range(3, ITEMS - 1)), None]


def with_genres(data, genres=GENRES):
    table = pl.DataFrame({"item_id": np.arange(len(genres)), "genres": genres})
    return dataclasses.replace(data, item_table=table)


def some_rows(users: int = 40, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    return Histories.from_lists([rng.integers(ITEMS, size=rng.integers(1, 12)).tolist() for _ in range(users)])


def built(kind=D3Rec, epochs: int = 0, **options):
    torch.manual_seed(0)
    model = kind(kind.Config.build(None, SMALL | options), ITEMS).eval()
    data = with_genres(training_data(some_rows(), ITEMS))
    model.fit(data)
    torch.manual_seed(1)  # `fit` draws the weights of the condition
    if epochs:
        steps(model, data, epochs, 0.005)
    model.prepare()
    return model


def scores(model, rows: Histories, **sampling) -> torch.Tensor:
    return model.score(rows, sampling=Sampling(**sampling))


def preferences_by_hand(rows: Histories) -> list[dict[str, float]]:
    found = []
    for user in range(len(rows)):
        shares: dict[str, float] = {}
        for item in set(rows.row(user).tolist()):
            own = (GENRES[item] or "").split("|") if GENRES[item] else []
            for genre in own:
                shares[genre] = shares.get(genre, 0.0) + 1 / len(own)
        total = sum(shares.values())
        found.append({genre: value / total for genre, value in shares.items()})
    return found


# --- the preference and its temperature ---------------------------------------------------------------------


def test_the_preference_is_the_share_of_each_category():
    model, rows = built(), Histories.from_lists([[1], [0, 2, 2, ITEMS - 1], [ITEMS - 1], [*range(ITEMS)]])
    # The commonest category comes first; the order of the others does not matter here.
    sets = sets_of(pl.Series(GENRES)).toarray()
    names = ["a", "b", "c", "d"]  # in the order of their first appearance
    order = np.argsort(-sets.sum(0), kind="stable")
    batch = model.batches(training_data(rows, ITEMS), np.random.default_rng(0)).get(0)
    users = model.batches(training_data(rows, ITEMS), np.random.default_rng(0)).users(0)
    found = model.preference(batch)
    for row, user in enumerate(users.tolist()):
        expected = preferences_by_hand(rows)[user]
        assert found[row].tolist() == pytest.approx([expected.get(names[i], 0.0) for i in order])
    assert found[users.tolist().index(2)].tolist() == [0, 0, 0, 0]  # no item with a category


def test_the_temperature_is_a_power_that_is_normalised():
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert tempered(p, 1.0) is p
    for tau in (0.5, 2.0, 7.0):
        powers = (p[0].double() + 1e-7) ** (1 / tau)
        torch.testing.assert_close(tempered(p, tau)[0].double(), powers / powers.sum(), atol=1e-6, rtol=0)
        assert tempered(p, tau)[1].tolist() == [0, 0, 0, 0]
    assert tempered(p, float("inf"))[0].tolist() == [0.25] * 4
    for tiny in (1e-3, 1e-320):
        assert tempered(p, tiny)[0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert tempered(p, 0.5)[0, 0] > 0.5 > tempered(p, 2.0)[0, 0]


# --- guidance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"prediction": "eps"}, {"normalize": True}, {"diffusion": False}])
@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.0, 2.0])
def test_guidance_is_the_weighted_sum_of_two_networks_at_every_step(scale, options):
    """The reverse chain by hand, over whole rows; the model runs it in hidden space where it can."""
    model, rows = built(epochs=5, **options), some_rows(seed=3)
    x = torch.from_numpy(model.rows(rows).toarray())
    share = torch.zeros(ITEMS, model.categories.value.shape[1])
    share[:] = model.categories.value
    p = x @ share
    p = p / p.sum(1, keepdim=True).clamp_min(1e-12)
    q = (p + 1e-7) ** (1 / 3.0)
    q = q / q.sum(1, keepdim=True) * (p.sum(1, keepdim=True) > 0)
    net, schedule = model.denoiser, model.schedule

    def network(x, t, condition):
        x = torch.nn.functional.normalize(x, dim=-1) if model.config.normalize else x
        z = x @ net.first + condition @ model.condition.value * share.shape[1] ** 0.5
        return net.last(net.inner(z, torch.full((len(x),), t)))

    with torch.no_grad():
        for t in reversed(range(net.steps)):
            output = (1 + scale) * network(x, t, q) - scale * network(x, t, torch.zeros_like(q))
            if model.config.prediction == "eps":
                abar = schedule.alphas_cumprod[t].item()
                output = (x - (1 - abar) ** 0.5 * output) / abar**0.5
            if model.config.diffusion:
                x = schedule.posterior_mean_coef1[t].item() * output + schedule.posterior_mean_coef2[t].item() * x
            else:
                x = output
    found = scores(model, rows, temperature=3.0, guidance_scale=scale)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_the_options_of_a_request_replace_those_of_the_configuration():
    rows, guided = some_rows(seed=3), built(epochs=3, temperature=4.0, guidance_scale=0.7)
    plain = built(epochs=3)
    for name, value in guided.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name  # both act at inference alone
    assert torch.equal(scores(guided, rows), scores(plain, rows, temperature=4.0, guidance_scale=0.7))
    assert torch.equal(scores(guided, rows, temperature=1.0, guidance_scale=0.0), scores(plain, rows))
    assert not torch.allclose(scores(guided, rows), scores(plain, rows))
    assert not torch.allclose(scores(plain, rows, temperature=4.0), scores(plain, rows))


# --- without the condition it is DiffRec --------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"diffusion": False}, {"prediction": "eps"}])
def test_without_its_condition_it_is_diffrec(options):
    rows, diffrec = some_rows(seed=3), built(DiffRec, epochs=5, **options)
    unconditional = built(epochs=5, condition_dropout=1.0, **options)
    for name, value in diffrec.state_dict().items():
        assert torch.equal(value, unconditional.state_dict()[name]), name
    assert torch.equal(scores(diffrec, rows), scores(unconditional, rows))
    assert not unconditional.has_guidance
    conditional = built(epochs=5, **options)
    assert conditional.has_guidance
    assert not torch.equal(conditional.denoiser.first, diffrec.denoiser.first)
    conditional.load_state_dict(conditional.state_dict() | diffrec.state_dict())
    assert torch.equal(scores(conditional, rows, guidance_scale=-1.0), scores(diffrec, rows))
    assert not torch.allclose(scores(conditional, rows), scores(diffrec, rows))


def test_rows_without_a_category_are_scored_as_without_a_condition():
    model, rows = built(epochs=5), Histories.from_lists([[ITEMS - 1], [0]])
    free = scores(model, rows, guidance_scale=-1.0)
    for tau in (1.0, 9.0):
        found = scores(model, rows, temperature=tau, guidance_scale=1.0)
        torch.testing.assert_close(found[0], free[0])
        assert not torch.allclose(found[1], free[1])


def test_a_share_of_the_rows_is_trained_without_its_condition():
    model = built(condition_dropout=0.3)
    rows = Histories.from_lists([[0]] * 2000)
    shifts = model.training_shift(model.batches(training_data(rows, ITEMS), np.random.default_rng(0)).get(0))
    assert len(shifts) == 32  # one batch
    model = built(condition_dropout=0.3, batch_size=2000)
    batch = model.batches(training_data(rows, ITEMS), np.random.default_rng(0)).get(0)
    assert (model.training_shift(batch) == 0).all(1).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert (built(condition_dropout=0.0).training_shift(batch) != 0).all(1).all()


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return synthetic_interactions(categories=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of users who take six of ten items from one genre, and the others from all four."""
    rng, rows = np.random.default_rng(0), []
    for user in range(150):
        for _ in range(14):
            genre = user % 4 if rng.random() < 0.6 else int(rng.integers(4))
            rows.append((f"u{user}", 15 * genre + int(rng.integers(15))))
    table = pl.DataFrame(rows, schema=["user", "item"], orient="row").unique(maintain_order=True)
    items = pl.DataFrame({"item": range(60), "genres": [f"genre {i // 15}" for i in range(60)]})
    data = rd.read_interactions(table, user="user", item="item", items=items)
    options = SMALL | {"epochs": 40, "patience": 40, "learning_rate": 0.01, "weight_decay": 0.0}
    return rd.train("d3rec", rd.split.ratio(data), tmp_path_factory.mktemp("runs") / "run", config=options)


def own_genre(recommender, lists) -> float:
    """Share of the lists that is of the genre that the user prefers."""
    table = recommender.item_table.select("item_id", pl.col("genres").str.tail(1).cast(pl.Int64))
    joined = lists.join(table, on="item_id")
    return (joined["genres"] == joined["user_id"].str.tail(-1).cast(pl.Int64) % 4).mean()


@pytest.mark.filterwarnings("ignore:The split of this run held out")
def test_a_run_keeps_the_categories_and_the_temperature_steers_them(run, tmp_path):
    recommender = rd.Recommender.load(run)
    model, items = recommender.model, recommender.items["item_id"]
    assert torch.equal(model.categories.value.sum(1), torch.ones(60))
    users, known = recommender.user_ids.to_list(), read_run(run.path).histories
    plain = recommender.recommend(users=users, k=4)
    sharp, flat = (recommender.recommend(users=users, k=4, temperature=t, guidance_scale=1.0) for t in (0.3, 50.0))
    shares = [own_genre(recommender, lists) for lists in (sharp, plain, flat)]
    assert shares[0] >= shares[1] > shares[2] + 0.2
    # Fold-in: an unknown user with the history of a known one gets the same list.
    history = items.gather(known.row(0)).to_list()
    folded = recommender.recommend(histories=[history], k=4, temperature=50.0, guidance_scale=1.0)
    assert folded["item_id"].to_list() == flat.filter(pl.col("user_id") == users[0])["item_id"].to_list()
    # Batch inference, which notices another temperature.
    pl.DataFrame({"user_id": users}).write_parquet(tmp_path / "users.parquet")
    ask = {"k": 4, "guidance_scale": 1.0, "rows_per_part": 20}
    recommend_to_folder(recommender, tmp_path / "users.parquet", tmp_path / "out", temperature=50.0, **ask)
    found = pl.read_parquet(sorted((tmp_path / "out").glob("part-*.parquet")))
    assert found["item_id"].to_list() == flat["item_id"].to_list()
    with pytest.raises(ConfigError, match=r"temperature was 50\.0, is 2\.0"):
        recommend_to_folder(recommender, tmp_path / "users.parquet", tmp_path / "out", temperature=2.0, **ask)
    with pytest.warns(RediffuseWarning, match="unknown"):
        assert len(recommender.recommend(users=["no such user"], k=3, temperature=2.0)) == 3


@pytest.mark.filterwarnings("ignore:The split of this run held out")
def test_the_service_and_the_command_line_take_both_options(run):
    ask = {"temperature": 50.0, "guidance_scale": 1.0}
    wanted = rd.Recommender.load(run).recommend(users=["u1", "u2"], k=4, **ask)
    with TestClient(create_app([run.path])) as client:
        answer = client.post("/v1/recommend", json={"users": ["u1", "u2"], "k": 4, **ask}).json()
        found = [int(item["item_id"]) for user in answer["results"] for item in user["items"]]
        assert found == wanted["item_id"].to_list()
        assert client.get("/v1/models").json()["models"][0]["has_guidance"]
        for option, value in {"temperature": 0, "guidance_scale": -2}.items():
            assert client.post("/v1/recommend", json={"users": ["u1"], option: value}).status_code == 422
    options = ["--user", "u1", "--user", "u2", "-k", "4", "--temperature", "50", "--guidance-scale", "1", "--json"]
    listed = json.loads(succeeds("recommend", run.path, *options))
    assert [row["item_id"] for row in listed["recommendations"]] == wanted["item_id"].to_list()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"guidance_scale": -1.5}, "guidance_scale is -1.5"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
    ],
)
def test_options_out_of_range_are_refused(run, options, says):
    with pytest.raises(ConfigError, match=says):
        rd.Recommender.load(run).recommend(users=["u1"], **options)


def test_models_without_guidance_refuse_its_options(data, tmp_path):
    split = rd.split.leave_one_out(data)
    others = {"popularity": {}, "diffrec": {"epochs": 1}, "d3rec": {"epochs": 1, "condition_dropout": 1.0}}
    for name, config in others.items():
        recommender = rd.Recommender.load(rd.train(name, split, tmp_path / name, config=config))
        for option in ("temperature", "guidance_scale"):
            with pytest.raises(ConfigError, match=rf"No condition guides {name} in this run\.\s+Leave out {option}"):
                recommender.recommend(users=["u1"], **{option: 1.0})


def test_weights_of_other_categories_are_refused():
    model = built()
    state = model.state_dict()
    state["condition.value"] = state["condition.value"][:2]
    with pytest.raises(RuntimeError, match=r"condition.value has the shape \(2, 24\), and there are 4 categories"):
        model.load_state_dict(state)


# --- columns of categories ----------------------------------------------------------------------------------


def train_on(data, folder, **config):
    options = SMALL | {"epochs": 1} | config
    return rd.train("d3rec", rd.split.leave_one_out(data), folder, config=options)


def test_a_column_that_is_missing_is_named_with_those_that_exist(data, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)no column 'genre'.*Did you mean 'genres'\? Known: genres, title"):
        train_on(data, tmp_path / "run", category_column="genre")
    with pytest.raises(DataError, match=r"(?s)d3rec reads the categories.*--items"):
        train_on(dataclasses.replace(data, items=None, title=None), tmp_path / "run")
    empty = dataclasses.replace(data, items=data.items.with_columns(kind=pl.lit(None, dtype=pl.String)))
    with pytest.raises(DataError, match="'kind' of the item table holds no value"):
        train_on(empty, tmp_path / "run", category_column="kind")
    assert not (tmp_path / "run").exists()


def test_what_no_category_holds_is_counted(data, tmp_path):
    kinds = pl.Series("kind", [None, *(f"k{i % 3}" for i in range(1, data.num_items))])
    some = dataclasses.replace(data, items=data.items.with_columns(kinds))
    with pytest.warns(RediffuseWarning, match="Column 'kind'.*: 1 of 40 items have no category"):
        run = train_on(some, tmp_path / "run", category_column="kind")
    weights = read_run(run.path).model.categories.value
    assert weights.shape == (40, 3)
    assert json.loads((run.path / "config.json").read_text())["config"]["category_column"] == "kind"


def test_only_the_commonest_values_are_categories(monkeypatch, data, tmp_path):
    monkeypatch.setattr("rediffuse.models.d3rec.MOST_VALUES", 2)
    with pytest.warns(RediffuseWarning, match="6 values, of which the 2 most common are categories; 21 of 40 items"):
        run = train_on(data, tmp_path / "run")
    assert read_run(run.path).model.categories.value.shape == (40, 2)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["a|b", "b; c", "", None], [{"a", "b"}, {"b", "c"}, set(), set()]),
        ([["a", "b"], ["b", "b"], [], None], [{"a", "b"}, {"b"}, set(), set()]),
        ([3, 1, 3, None], [{"3"}, {"1"}, {"3"}, set()]),
        ([0.5, float("nan"), 0.5, None], [{"0.5"}, set(), {"0.5"}, set()]),
        ([True, False, True, None], [{"true"}, {"false"}, {"true"}, set()]),
        (pl.Series(["x|y", "z", "z", None], dtype=pl.Categorical), [{"x|y"}, {"z"}, {"z"}, set()]),
        (pl.Series([[1, 2], [2, 3], [4, 4], None], dtype=pl.Array(pl.Int64, 2)), [{1, 2}, {2, 3}, {4}, set()]),
    ],
)
def test_columns_of_sets(column, expected):
    found = sets_of(pl.Series(column)).toarray()
    values = list(dict.fromkeys(value for row in expected for value in sorted(row)))
    assert found.tolist() == [[float(value in row) for value in values] for row in expected]
