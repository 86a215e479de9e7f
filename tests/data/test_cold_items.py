"""The split `cold-items`: whole items are held out. And what splits say about items that are new in the test."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse.data.new_items import never_trained
from rediffuse.data.split import TEST, TRAIN, VALID
from rediffuse.errors import ConfigError, DataError
from rediffuse.evaluation import protocols
from rediffuse.testing import synthetic_interactions


@pytest.fixture(scope="module")
def data():
    return synthetic_interactions()


def items_of(split, subset):
    return set(split.dataset.interactions.items[split.subset == subset].tolist())


@pytest.mark.parametrize(
    ("fraction", "valid", "test"), [(0.05, 1, 1), (0.1, 2, 2), (0.12, 2, 3), (0.5, 10, 10), (0.97, 19, 20)]
)
def test_whole_items_are_held_out_half_of_them_for_the_test(data, fraction, valid, test):
    assert len(np.unique(data.interactions.items)) == 40
    split = rd.split.cold_items(data, fraction, seed=1)
    held_out = [items_of(split, subset) for subset in (TRAIN, VALID, TEST)]
    assert [len(items) for items in held_out] == [40 - valid - test, valid, test]
    assert len(set.union(*held_out)) == 40
    assert split.note.startswith(f"{valid + test} of 40 items are held out: {valid} for validation and {test} for")


def test_the_draw_depends_on_the_seed_alone(data):
    split = rd.split.cold_items(data, seed=3)
    assert split.fingerprint == rd.split.by_name("cold_items", data, **split.params).fingerprint
    assert split.params == {"fraction": 0.1, "seed": 3}
    drawn = {frozenset(items_of(rd.split.cold_items(data, seed=seed), TEST)) for seed in range(5)}
    assert len(drawn) > 1


def test_only_items_with_an_interaction_are_drawn():
    ids = [f"i{n}" for n in range(100)]
    frame = pl.DataFrame({"user_id": [0, 0, 1, 1, 2, 2], "item_id": ["i1", "i2", "i1", "i3", "i2", "i4"]})
    data = rd.read_interactions(frame, items=pl.DataFrame({"item_id": ids}))
    split = rd.split.cold_items(data, 0.5)
    assert {len(items_of(split, subset)) for subset in (VALID, TEST)} == {1}


def test_histories_are_training_interactions_and_held_out_items_are_filtered(data):
    split = rd.split.cold_items(data, 0.3, seed=2)
    interactions = data.interactions
    for name, subset, filtered in (("valid", VALID, {TRAIN}), ("test", TEST, {TRAIN, VALID})):
        task = split.task(name)
        expected = [user for user in range(data.num_users) if (of_user(split, user)[1] == subset).any()]
        assert task.users.tolist() == expected
        seen = task.histories if task.seen is None else task.seen
        for row, user in enumerate(expected):
            items, subsets = of_user(split, user)
            assert task.histories.row(row).tolist() == items[subsets == TRAIN].tolist()
            assert task.truth.row(row).tolist() == items[subsets == subset].tolist()
            assert seen.row(row).tolist() == items[np.isin(subsets, list(filtered))].tolist()
        assert (task.popularity[task.truth.items] == 0).all()
    assert split.training_view().train.items.tolist() == interactions.items[split.subset == TRAIN].tolist()


def of_user(split, user):
    own = slice(*split.dataset.interactions.offsets[user : user + 2])
    return split.dataset.interactions.items[own], split.subset[own]


def test_what_leaks_is_measured(data):
    split = rd.split.cold_items(data, 0.3)
    times = data.interactions.times
    later = np.mean([(times[split.subset == TRAIN] > time).mean() for time in times[split.subset == TEST]])
    assert f"(on average {later:.0%} of the training interactions are later" in split.leak
    without = dataclasses.replace(data, has_timestamps=False)
    assert "on average" not in rd.split.cold_items(without, 0.3).leak


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_is_between_0_and_1(data, fraction):
    with pytest.raises(ConfigError, match="fraction"):
        rd.split.cold_items(data, fraction)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.03, 1), (0.99, 40)])
def test_a_share_of_too_few_or_of_all_items_is_refused(data, fraction, held_out):
    with pytest.raises(DataError, match=f"of 40 items holds {held_out} out"):
        rd.split.cold_items(data, fraction)


def test_a_seed_below_0_is_refused(data):
    with pytest.raises(ConfigError, match="seed"):
        rd.split.cold_items(data, seed=-1)


def test_synthetic_interactions_train_and_change_no_draw(data):
    split = rd.split.cold_items(data, 0.3)
    longer = rd.augment(split, "random-seq", n=2, only_shorter_than=5)
    again = rd.split.cold_items(longer, 0.3)
    assert again.fingerprint == split.fingerprint
    synthetic = longer.interactions.synthetic
    assert synthetic.any()
    assert (again.subset[synthetic] == TRAIN).all()
    task = again.task("test")
    assert task.seen.synthetic is None or not task.seen.synthetic.any()
    assert task.seen.items.tolist() == split.task("test").seen.items.tolist()


def test_every_protocol_shows_training_interactions_alone(data, tmp_path):
    split = rd.split.cold_items(data, 0.3)
    run = rd.train("popularity", split, tmp_path / "run")
    task = split.task("test")
    for protocol in (None, "sampled-5"):
        facts = rd.evaluate(run, data, protocol=protocol)
        assert facts["protocol"]["validation_is_input"] is False
        name = f"per_user_test{'-sampled-5' if protocol else ''}.parquet"
        assert pl.read_parquet(run.path / name)["history_length"].to_list() == task.histories.lengths.tolist()
    assert facts["counts"]["truth_never_trained_share"] == 1
    assert protocols.protocol("sampled-5").on(rd.split.ratio(data)).validation_is_input is True


def test_a_refit_learns_from_the_held_out_items(data, tmp_path):
    run = rd.train("popularity", rd.split.cold_items(data, 0.3), tmp_path / "run")
    live = rd.refit(run, data, tmp_path / "live")
    counts = pl.read_parquet(live.path / "items.parquet")["train_count"]
    assert counts.to_list() == np.bincount(data.interactions.items, minlength=data.num_items).tolist()
    kept = rd.refit(run, data, tmp_path / "kept", keep_test=True)
    tested = items_of(rd.split.cold_items(data, 0.3), TEST)
    counts = pl.read_parquet(kept.path / "items.parquet")["train_count"].to_numpy()
    assert set(np.flatnonzero(counts == 0).tolist()) == tested


# --- new items in any split --------------------------------------------------------------------------------


def test_a_split_says_how_many_true_items_are_new():
    frame = pl.DataFrame(
        {
            "user_id": [0, 1, 0, 1, 2, 0, 1, 2, 0, 2],
            "item_id": [0, 0, 1, 1, 0, 2, 3, 3, 4, 1],
            "time": [n * 86_400 for n in range(10)],
        }
    )
    split = rd.split.global_time(rd.read_interactions(frame, time="time"), quantile=0.55, valid_quantile=0.7)
    trained = set(split.dataset.interactions.items[split.subset == TRAIN].tolist())
    true = split.dataset.interactions.items[split.subset == TEST].tolist()
    new = [item for item in true if item not in trained]
    assert 0 < len(new) < len(true)
    assert never_trained(split, "test") == (len(new), len(true), len(set(new)))
    assert f"New items: {len(new)} of {len(true)} interactions to predict in the test subset" in split.note
    assert f"are with {len(set(new))} items that have no training interaction" in split.note
    assert f"test {len(new)} of {len(true)} interactions to predict" in repr(split)


def test_a_split_without_new_items_says_nothing(data):
    split = rd.split.ratio(data)
    assert never_trained(split, "test")[0] == 0
    assert "New items" not in (split.note or "")
    assert "new items" not in repr(split)
