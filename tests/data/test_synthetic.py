"""Synthetic interactions: where they are put, and what they must not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import rediffuse as rd
from rediffuse.batching.sequences import SequenceBatches
from rediffuse.data.histories import Histories
from rediffuse.data.loading import load_dataset
from rediffuse.data.synthetic import augmentation, prepend, with_synthetic
from rediffuse.errors import DataError
from rediffuse.evaluation.protocols import protocol
from rediffuse.models.baselines.bert4rec import BERT4Rec
from rediffuse.models.baselines.s3rec import S3Rec
from rediffuse.testing import synthetic_interactions

OWN = dataclasses.replace(
    Histories.from_lists([[1, 2, 3], [4], [], [5, 6]]),
    times=np.array([10, 20, 30, 7, 1, 2]),
    ratings=np.ones(6, dtype=np.float32),
)
SYNTHETIC = np.array([[7, 8], [-1, 9], [7, 7], [-1, -1]])


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def augmented(split):
    data = split.dataset
    synthetic = np.random.default_rng(0).integers(0, data.num_items, (data.num_users, 3))
    synthetic[::4] = -1
    return with_synthetic(split, synthetic, "made-up", {"seed": 0})


def test_they_precede_a_users_own_interactions():
    found = prepend(OWN, SYNTHETIC)
    assert [found.row(user).tolist() for user in range(4)] == [[7, 8, 1, 2, 3], [9, 4], [], [5, 6]]
    assert found.synthetic.tolist() == [True, True, False, False, False, True, False, False, False]
    assert found.times.tolist() == [10, 10, 10, 20, 30, 7, 7, 1, 2]
    assert np.isnan(found.ratings[found.synthetic]).all()
    own = found.without_synthetic()
    assert own.synthetic is None
    assert (own.items == OWN.items).all()
    assert (own.offsets == OWN.offsets).all()
    assert (own.times == OWN.times).all()
    again = prepend(found, np.full((4, 1), 0))  # replaced
    assert [again.row(user).tolist() for user in range(4)] == [[0, 1, 2, 3], [0, 4], [], [0, 5, 6]]


def test_rows_are_taken_with_their_marks():
    found = prepend(OWN, SYNTHETIC)
    assert found.take(np.array([1, 0])).synthetic.tolist() == [True, False, True, True, False, False, False]
    assert found.tail(2).synthetic.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("make", ["leave_one_out", "global_time", "ratio"])
def test_splits_are_those_of_own_interactions(make, split):
    made = getattr(rd.split, make)(split.dataset)
    data = with_synthetic(made, np.zeros((split.dataset.num_users, 2), dtype=np.int64), "made-up", {})
    again = getattr(rd.split, make)(data)
    own = ~data.interactions.synthetic
    assert (again.subset[own] == made.subset).all()
    assert (again.subset[~own] == 0).all()
    assert again.fingerprint == made.fingerprint
    for name in ("valid", "test"):
        before, after = made.task(name), again.task(name)
        assert (before.users == after.users).all()
        assert (before.truth.items == after.truth.items).all()
        assert (before.popularity == after.popularity).all()
        assert (after.seen.items == before.histories.items).all()
        assert (after.histories.without_synthetic().items == before.histories.items).all()


def test_another_split_is_refused(augmented):
    with pytest.raises(DataError, match="augmented for the split leave-one-out, and global-time"):
        rd.split.global_time(augmented)


def test_they_and_their_record_are_saved(augmented, split, tmp_path):
    augmented.save(tmp_path / "data")
    again = load_dataset(tmp_path / "data")
    assert (again.interactions.synthetic == augmented.interactions.synthetic).all()
    assert again.fingerprint == augmented.fingerprint != split.dataset.fingerprint
    assert again.fingerprint_without_synthetic == split.dataset.fingerprint
    assert augmentation(again)["name"] == "made-up"
    assert augmentation(split.dataset) is None
    assert any("made-up" in note for note in again.report["notes"])


def batches(rows: Histories, **options) -> SequenceBatches:
    return SequenceBatches(rows, max_length=50, batch_size=8, pad=50, rng=np.random.default_rng(0), **options)


@pytest.mark.parametrize("every_position", [True, False])
def test_they_are_inputs_and_no_targets(every_position):
    rows = prepend(OWN, SYNTHETIC)
    made = batches(rows, every_position=every_position)
    found = [made.get(i) for i in range(len(made))]
    # Nor is the first own interaction after them, from which they were generated.
    assert sorted(torch.cat([b.targets for b in found]).tolist()) == [2, 3, 6]
    for batch in found:
        for row, position, target in zip(batch.rows, batch.positions, batch.targets, strict=True):
            if target == 3:
                assert batch.items[row, : position + 1].tolist() == [7, 8, 1, 2]
                assert batch.synthetic[row] == 2
    assert sum(made.get(0, rank, 2).rank_weight for rank in range(2)) == pytest.approx(2)
    everything = batches(rows, every_position=every_position, synthetic_targets=True)
    assert sorted(torch.cat([everything.get(i).targets for i in range(len(everything))]).tolist()) == [1, 2, 3, 4, 6, 8]


def test_bert4rec_does_not_mask_them():
    small = {"embedding_size": 8, "blocks": 1, "heads": 2, "mask_share": 0.9, "mask_last": 0.0}
    model = BERT4Rec(BERT4Rec.Config.build(None, small), 50)
    made = batches(prepend(OWN, SYNTHETIC), every_position=True)
    targets: set[int] = set()
    for seed in range(20):
        torch.manual_seed(seed)
        for index in range(len(made)):
            masked = model.training_batch(made.get(index))
            targets |= set(masked.targets.tolist())
            assert not (masked.items[:, :2] == 50)[masked.synthetic == 2].any()
    assert targets == {2, 3, 5, 6}


def test_every_window_of_a_history_has_its_number_of_synthetic_interactions():
    rows = prepend(Histories.from_lists([list(range(10, 20))]), np.array([[1, 2, 3]]))
    made = SequenceBatches(
        rows, max_length=5, batch_size=100, pad=50, every_position=True, rng=np.random.default_rng(0)
    )
    batch = made.get(0)
    for items, synthetic, length, learned in zip(
        batch.items, batch.synthetic, batch.lengths, batch.learnable(6), strict=True
    ):
        assert synthetic == (items[:length] < 10).sum()
        # No synthetic item is learned, nor is the first own item, 10, even where a window begins with it.
        assert learned[:length].tolist() == (items[:length] > 10).tolist()


def test_s3rec_does_not_mask_them():
    small = {"embedding_size": 8, "blocks": 1, "heads": 2, "mask_share": 0.9, "max_length": 4}
    model = S3Rec(S3Rec.Config.build(None, small), 50)
    made = SequenceBatches(
        prepend(OWN, SYNTHETIC), max_length=4, batch_size=8, pad=50, every_position=True, rng=np.random.default_rng(0)
    )
    targets: set[int] = set()
    model.read_masked = lambda items, masked, lengths: (  # pyright: ignore[reportAttributeAccessIssue]
        targets.update(items[masked].tolist()) or torch.zeros(*items.shape, 8)
    )
    model.config = model.config.model_copy(update={"sp_weight": 0.0})
    for seed in range(20):
        torch.manual_seed(seed)
        for index in range(len(made)):
            model.self_supervision(made.get(index))
    assert targets == {2, 3, 6}


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "bert4rec", "diffurec", "ease", "diffrec", "popularity"])
def test_models_train_and_recommend_and_only_own_items_are_filtered(model, augmented, split, tmp_path):
    options = {"epochs": 1, "embedding_size": 16, "hidden_sizes": [8], "heads": 2}
    known = rd.models.model_class(model).Config.model_fields
    config = {name: value for name, value in options.items() if name in known}
    run = rd.train(model, rd.split.leave_one_out(augmented), tmp_path / "run", config=config)
    recommender = rd.Recommender.load(run.path)
    users = augmented.user_ids.to_list()[:20]
    lists = recommender.recommend(users=users, k=40)
    own = split.dataset.interactions  # those that were held out too
    for number, user in enumerate(users):
        mine = set(lists.filter(lists["user_id"] == user)["item_id"])
        had = set(augmented.item_ids.gather(own.row(number)).to_list())
        assert mine == set(augmented.item_ids.to_list()) - had
    result = rd.evaluate(run.path, augmented)
    assert result["counts"]["users"] == len(split.task("test").users)
    if model in ("ease", "diffrec", "popularity"):  # they read own interactions only
        plain = rd.train(model, split, tmp_path / "plain", config=config)
        assert rd.evaluate(plain.path, split.dataset)["metrics"] == result["metrics"]


def test_runs_on_augmented_and_plain_data_are_compared(augmented, split, tmp_path):
    config = {"epochs": 1, "embedding_size": 16}
    for name, data in (("plain", split.dataset), ("augmented", augmented)):
        run = rd.train("gru4rec", rd.split.leave_one_out(data), tmp_path / name, config=config)
        rd.evaluate(run.path, data)
    found = rd.compare([tmp_path / "plain", tmp_path / "augmented"])
    assert set(found.summary["variant"]) == {"gru4rec", "gru4rec (on made-up)"}


def test_protocols_filter_own_items(augmented):
    made = rd.split.leave_one_out(augmented)
    task = protocol("leave-one-out").task(made)
    assert task.seen.synthetic is None
    assert task.histories.synthetic.any()
