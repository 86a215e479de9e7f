"""heat, transition and theat: scores against dense formulas, choices, explanations."""

from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest
import scipy.linalg
import torch
from tests.graphs.test_item_graph import transitions_by_loops

import rediffuse as rd
from rediffuse.batching.recency import DAY
from rediffuse.data.histories import Histories
from rediffuse.errors import RediffuseWarning
from rediffuse.models.base import TrainingData
from rediffuse.models.heat import Heat, HeatConfig
from rediffuse.models.theat import TemporalHeat, TemporalHeatConfig
from rediffuse.models.transition import Transition, TransitionConfig
from rediffuse.readers.interactions import read_interactions
from rediffuse.testing import synthetic_interactions

ITEMS, USERS = 12, 40
RNG = np.random.default_rng(7)
ROWS = [RNG.integers(0, ITEMS - 1, RNG.integers(0, 9)).tolist() for _ in range(USERS)]  # the last item is never seen
QUERIES = [[3], [1, 2, 1, 5], [0, 1, 2, 3, 4, 4], [ITEMS - 1]]


def data() -> TrainingData:
    rows = Histories.from_lists(ROWS)
    times = np.random.default_rng(1).integers(0, 100 * int(DAY), len(rows.items))
    times = np.concatenate([np.sort(part) for part in np.split(times, rows.offsets[1:-1])])
    histories = Histories(rows.offsets, rows.items, times)
    popularity = np.bincount(rows.items, minlength=ITEMS)
    return TrainingData(histories, USERS, ITEMS, popularity, has_timestamps=True)


def fitted(kind, config):
    model = kind(config, ITEMS, USERS)
    model.fit(data())
    model.eval()
    model.prepare()
    return model


def binary(rows):
    matrix = np.zeros((len(rows), ITEMS))
    for row, items in enumerate(rows):
        matrix[row, items] = 1
    return matrix


def powers(degrees, exponent):
    degrees = np.asarray(degrees, dtype=np.float64)
    return np.where(degrees > 0, np.maximum(degrees, 1e-12) ** exponent, 0)


def scores(model, rows=QUERIES):
    return model.score(Histories.from_lists(rows)).double().numpy()


def recent_popularity(half_life):
    histories = data().train
    ages = (histories.times.max() - histories.times) / DAY
    return np.bincount(histories.items, weights=0.5 ** (ages / half_life), minlength=ITEMS)


def test_theat_is_its_formula():
    options = {"half_life": 3.0, "transition_weight": 0.7, "item_exponent": 0.4}
    options |= {"prior_half_life": 20.0, "prior_exponent": 0.6, "user_exponent": 0.8, "seen_weight": 1.0}
    model = fitted(TemporalHeat, TemporalHeatConfig(**options))
    r = binary(ROWS)
    degrees = r.sum(0)
    shared = r.T @ np.diag(powers(r.sum(1), -0.8)) @ r
    following = transitions_by_loops(ROWS, 3, 0.5, 0.0)
    recent = recent_popularity(20.0)
    factor = (recent / recent.max()) ** 0.6 + 0.02
    expected = []
    for row in QUERIES:
        w = np.zeros(ITEMS)
        for since, item in enumerate(reversed(row)):
            w[item] += 0.5 ** (since / 3)
        heat = (w * powers(degrees, -0.5)) @ shared * powers(degrees, -0.4)
        after = powers(degrees, -0.5)[row[-1]] * following[row[-1]] * powers(degrees, -0.5)
        popularity = np.bincount(data().train.items, minlength=ITEMS)
        expected.append((heat + 0.7 * after) * factor + 1e-6 * popularity)
    np.testing.assert_allclose(scores(model), expected, rtol=1e-5)
    np.testing.assert_allclose(scores(model, [[]])[0], recent, rtol=1e-5)


@pytest.mark.parametrize("diffusion", [True, False])
def test_transition_is_its_formula(diffusion):
    options = {"window": 4, "decay": 0.7, "back": 0.2, "row_exponent": 0.8, "input_decay": 0.6, "second_hop": 0.9}
    model = fitted(Transition, TransitionConfig(**options, diffusion=diffusion, seen_weight=1.0))
    a = transitions_by_loops(ROWS, 4, 0.7, 0.2)
    s = powers(a.sum(1), -0.8)[:, None] * a * powers(a.sum(0), -0.2)
    expected = []
    for row in QUERIES:
        x = np.zeros(ITEMS)
        for since, item in enumerate(reversed(row)):
            x[item] += 0.6**since
        expected.append(x @ s + (0.9 * x @ s @ s if diffusion else 0))
    np.testing.assert_allclose(scores(model), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("neighbours", [None, ITEMS])
def test_heat_is_the_matrix_exponential_between_degrees(neighbours):
    config = HeatConfig(time=1.5, degree_exponent=0.3, seen_weight=1.0, neighbours=neighbours)
    model = fitted(Heat, config)
    r = binary(ROWS)
    r_hat = powers(r.sum(1), -0.5)[:, None] * r * powers(r.sum(0), -0.5)
    expm = scipy.linalg.expm(-1.5 * (np.eye(ITEMS) - r_hat.T @ r_hat))
    before, after = powers(r.sum(0), -0.3), powers(r.sum(0), 0.3)
    np.testing.assert_allclose(scores(model), (binary(QUERIES) * before) @ expm * after, atol=1e-6)
    ablation = fitted(Heat, config.model_copy(update={"diffusion": False}))
    np.testing.assert_allclose(scores(ablation), (binary(QUERIES) * before) @ r_hat.T @ r_hat * after, atol=1e-6)


def test_other_exponents_are_scaled_to_eigenvalues_up_to_one():
    config = HeatConfig(user_exponent=0.2, item_exponent=0.7, time=1.0, degree_exponent=0.0)
    for neighbours in (None, ITEMS):
        model = fitted(Heat, config.model_copy(update={"neighbours": neighbours}))
        hop = model.hop(model.settings)
        s = hop(np.eye(ITEMS, dtype=np.float32))
        assert np.linalg.eigvalsh((s + s.T) / 2).max() == pytest.approx(1, abs=1e-4)


def test_turbo_raises_each_element_to_a_power():
    config = HeatConfig(filter="turbo", element_power=0.7, turbo_order=2, degree_exponent=0.0, seen_weight=1.0)
    r = binary(ROWS)
    r_hat = powers(r.sum(1), -0.5)[:, None] * r * powers(r.sum(0), -0.5)
    p = (r_hat.T @ r_hat) ** 0.7
    np.testing.assert_allclose(scores(fitted(Heat, config)), binary(QUERIES) @ (2 * p - p @ p), atol=1e-5)


FAMILY = [
    (Heat, HeatConfig(filter=name, rank=4, low_pass_weight=0.3))
    for name in ("one_hop", "heat", "ppr", "gfcf", "bspm", "chebyshev", "turbo")
]
FAMILY += [(Transition, TransitionConfig()), (TemporalHeat, TemporalHeatConfig())]
FAMILY += [(TemporalHeat, TemporalHeatConfig(seen_weight=0.0))]


@pytest.mark.parametrize(("kind", "config"), FAMILY, ids=lambda value: getattr(value, "filter", None))
def test_contributions_add_up_to_the_scores(kind, config):
    model = fitted(kind, config)
    items = np.arange(ITEMS)
    for row in [*QUERIES, []]:
        history = Histories.from_lists([row])
        found = model.contributions(history, np.array([-1]), items)
        assert {part.source for part in found} <= {-1, *row}
        total = sum(part.values for part in found) if found else np.zeros(ITEMS)
        np.testing.assert_allclose(total, model.score(history)[0].double().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), FAMILY[:-1], ids=lambda value: getattr(value, "filter", None))
def test_a_choice_among_many_settings_scores_as_each_alone(kind, config):
    """`all_scores` shares products between settings; it must not mix them."""
    model = fitted(kind, config)
    tried = []
    for stage in model.open_stages():
        combinations = itertools.product(*stage.values())
        tried += [model.settings | dict(zip(stage, values, strict=True)) for values in combinations]
    if kind is TemporalHeat:
        model.derive(data())
    rows = Histories.from_lists(QUERIES)
    together = [one.copy() for one in model.all_scores(rows, tried)]
    assert len({one.tobytes() for one in together}) > 1
    for settings, found in zip(tried, together, strict=True):
        alone = next(iter(model.all_scores(rows, [settings])))
        np.testing.assert_array_equal(found, alone)
        plain = model.combined(rows, model.terms(model.inputs(rows, settings), settings), settings)
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-7)


def test_hops_lead_from_the_history_to_the_scores():
    model = fitted(Transition, TransitionConfig(second_hop=1.0))
    history = Histories.from_lists([[1, 2]])
    labels, masses = zip(*model.hops(history, np.array([-1])), strict=True)
    assert labels == ("history", "hop 1", "hop 2", "scores")
    assert set(np.flatnonzero(masses[0])) == {1, 2}
    assert torch.equal(masses[3], model.score(history)[0])


# --- choices ---------------------------------------------------------------------------------------------------


class Settled:
    """A validation subset that prefers one setting."""

    def __init__(self, model, wanted, gain):
        self.model, self.wanted, self.gain = model, wanted, gain
        self.metrics, self.owners = [], np.arange(400)

    def compare(self, score, metric=None):
        self.metrics.append(metric)
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 1, 400)
        tried = self.tried
        return [noise + self.gain * all(one[k] == v for k, v in self.wanted.items() if k in one) for one in tried]


@pytest.mark.parametrize(("gain", "chosen"), [(1.0, 0.35), (0.0, 0.6)])
def test_a_choice_needs_to_be_better_than_the_start(gain, chosen, monkeypatch):
    model = fitted(Transition, TransitionConfig(row_exponent=0.9, diffusion=False, seen_weight=1.0))
    validation = Settled(model, {"input_decay": 0.35}, gain)
    plain = model._choose

    def choose(stage, validate, metric):
        values = itertools.product(*stage.values())
        validation.tried = [model.settings | dict(zip(stage, value, strict=True)) for value in values]
        return plain(stage, validate, metric)

    monkeypatch.setattr(model, "_choose", choose)
    resolved = model.calibrate(validation)
    assert resolved["settings"] == {"input_decay": chosen}
    assert [record["input_decay"] for record in resolved["curve"] if record["chosen"]] == [chosen]
    assert json.loads(json.dumps(resolved)) == resolved
    again = Transition(model.config, ITEMS, USERS)
    again.resolve(resolved)
    assert again.settings["input_decay"] == chosen


def test_training_chooses_refits_and_says_so(tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions())
    run = rd.train("transition", split, tmp_path / "run")
    resolved = run.config["resolved"]
    assert set(resolved["settings"]) == {"row_exponent", "input_decay", "second_hop", "seen_weight"}
    assert run.config["training"]["refitted"]
    assert resolved["curve"][0]["ndcg@10/unseen"] > 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Refitted with the validation interactions" in card
    assert "| row_exponent | input_decay |" in card
    alone = rd.train("transition", split, tmp_path / "train-only", config={"refit": False})
    assert alone.validation == run.validation  # measured before the refit
    rows = split.before_test()
    model = Transition(TransitionConfig(**resolved["settings"]), len(split.dataset.item_ids), len(rows))
    popularity = np.bincount(rows.items, minlength=model.num_items)
    model.fit(TrainingData(rows, len(rows), model.num_items, popularity))
    loaded = rd.Recommender.load(run.path).model
    assert torch.equal(loaded.score(rows), model.score(rows))


def test_theat_without_times_uses_the_popularity_of_all_times_and_says_so(tmp_path):
    table = {"user_id": [u for u in range(30) for _ in range(4)], "item_id": [i % 13 for i in range(120)]}
    split = rd.split.leave_one_out(read_interactions(pl.DataFrame(table)))
    with pytest.warns(RediffuseWarning, match="theat finds no times"):
        run = rd.train("theat", split, tmp_path / "run")
    model = rd.Recommender.load(run.path).model
    popularity = np.bincount(split.before_test().items, minlength=13)
    np.testing.assert_array_equal(model.score(Histories.from_lists([[]]))[0].numpy(), popularity)
    tried = {record.get("prior_half_life", 30.0) for record in run.config["resolved"]["curve"]}
    assert tried == {30.0}
    assert model.fallback_name == "popularity"
