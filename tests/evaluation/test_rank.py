"""Ranks and lists against a plain sort of every row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.data.histories import Histories
from rediffuse.data.split import Task
from rediffuse.errors import ConfigError, DataError, TrainingError
from rediffuse.evaluation import NOT_RANKED, POLICIES, rank_task
from rediffuse.evaluation.rank import ranks_up_to, true_ranks
from rediffuse.topk import exact_top_k


def make_task(histories, truth, num_items, users=None):
    """A task from lists of item numbers."""
    histories, truth = Histories.from_lists(histories), Histories.from_lists(truth)
    users = np.arange(len(truth)) if users is None else np.asarray(users)
    inside = histories.items[(histories.items >= 0) & (histories.items < num_items)]
    return Task("test", users, histories, truth, np.bincount(inside, minlength=num_items))


def from_matrix(scores):
    return lambda histories, start: scores[start : start + len(histories)]


def sorted_rows(scores, histories, truth, k, policy):
    """The expected result: sort the catalogue of each user twice, for the list and for the ranks."""
    lists, ranks = [], []
    for row, seen, true in zip(scores.tolist(), histories, truth, strict=True):
        open_items = [i for i in range(len(row)) if row[i] > -np.inf and not (policy == "unseen" and i in set(seen))]
        best = sorted(open_items, key=lambda i: (-row[i], i))[:k]
        lists.append(best + [-1] * (k - len(best)))
        against = sorted(open_items, key=lambda i: (-row[i], i in set(true), i))
        ranks += [against.index(i) + 1 if i in against else NOT_RANKED for i in sorted(set(true))]
    return np.array(lists).reshape(-1, k), np.array(ranks)


def check(scores, histories, truth, k, **options):
    ranking = rank_task(
        from_matrix(scores),
        make_task(histories, truth, scores.shape[1]),
        num_items=scores.shape[1],
        k=k,
        **options,
    )
    for policy in POLICIES:
        lists, ranks = sorted_rows(scores, histories, truth, k, policy)
        np.testing.assert_array_equal(ranking.items[policy], lists)
        np.testing.assert_array_equal(ranking.ranks[policy], ranks)
        expected = np.where(lists >= 0, np.take_along_axis(scores.numpy(), np.maximum(lists, 0), 1), -np.inf)
        np.testing.assert_array_equal(ranking.scores[policy], expected)
    return ranking


def random_rows(rng, users, num_items, least, most):
    return [rng.integers(0, num_items, rng.integers(least, most + 1)).tolist() for _ in range(users)]


@pytest.mark.parametrize("levels", [2, 30, 10**6], ids=["two scores", "many ties", "few ties"])
@pytest.mark.parametrize("most_true", [1, 12])
@pytest.mark.parametrize(("num_items", "k"), [(1500, 7), (1505, 20), (64, 20), (5, 5)])
def test_against_sorting(num_items, k, most_true, levels):
    rng = np.random.default_rng(num_items + levels)
    scores = torch.from_numpy(rng.integers(0, levels, (23, num_items)).astype(np.float32))
    # Repeats in both, and true items that are in the history.
    histories = random_rows(rng, 23, num_items, 0, min(2 * num_items, 400))
    truth = random_rows(rng, 23, num_items, 1, most_true)
    truth[3] += truth[3]
    truth[4] += histories[4][:2]
    check(scores, histories, truth, k, user_block=7)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_against_sorting_anything(data):
    num_items = data.draw(st.integers(1, 9))
    users = data.draw(st.integers(1, 4))
    item = st.integers(0, num_items - 1)
    value = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, np.inf])
    row = st.lists(value, min_size=num_items, max_size=num_items)
    scores = torch.tensor(data.draw(st.lists(row, min_size=users, max_size=users)), dtype=torch.float32)
    histories = data.draw(st.lists(st.lists(item, max_size=9), min_size=users, max_size=users))
    truth = data.draw(st.lists(st.lists(item, min_size=1, max_size=9), min_size=users, max_size=users))
    check(scores, histories, truth, data.draw(st.integers(1, 12)), user_block=data.draw(st.integers(1, 4)))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_takes_the_lowest_columns_of_ties_across_blocks(k):
    rng = np.random.default_rng(k)
    for levels in (1, 2, 5, 1000):
        # Few values above the many: the k-th value is tied within blocks, across blocks and with the tail.
        scores = rng.integers(0, levels, (50, 1 + 32 * 40 + 17)).astype(np.float32)
        scores[rng.random(scores.shape) < 0.95] = 0
        order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :k]
        values, columns = exact_top_k(torch.from_numpy(scores), k)
        np.testing.assert_array_equal(columns.numpy(), order)
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(scores, order, 1))


def test_ties_count_against_the_model():
    # All scores equal: a single true item is last, several are last together, in the order of their numbers.
    scores = torch.zeros(2, 10)
    ranking = rank_task(from_matrix(scores), make_task([[0, 1], [2]], [[4], [9, 0]], 10), num_items=10, k=3)
    assert ranking.ranks["all"].tolist() == [10, 9, 10]
    assert ranking.ranks["unseen"].tolist() == [8, 8, 9]
    assert ranking.items["all"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert ranking.items["unseen"].tolist() == [[2, 3, 4], [0, 1, 3]]


def test_a_seen_true_item_is_unreachable_only_if_seen_items_are_filtered():
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    ranking = rank_task(from_matrix(scores), make_task([[0]], [[0, 1]], 3), num_items=3, k=3)
    assert ranking.truth.items.tolist() == [0, 1]
    assert ranking.ranks["all"].tolist() == [1, 2]
    assert ranking.ranks["unseen"].tolist() == [NOT_RANKED, 1]


def test_one_item_catalogue_and_k_beyond_it():
    ranking = check(torch.tensor([[0.5], [0.5]]), [[0], []], [[0], [0]], 4)
    assert ranking.items["unseen"].tolist() == [[-1, -1, -1, -1], [0, -1, -1, -1]]
    assert ranking.scores["unseen"][0].tolist() == [-np.inf] * 4


def test_the_result_does_not_depend_on_the_block():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 300, (101, 2000)).astype(np.float32))
    task = make_task(random_rows(rng, 101, 2000, 0, 50), random_rows(rng, 101, 2000, 1, 5), 2000)
    whole = rank_task(from_matrix(scores), task, num_items=2000, k=10)
    for block in (1, 10, 100, 101, 500):
        part = rank_task(from_matrix(scores), task, num_items=2000, k=10, user_block=block)
        for policy in POLICIES:
            np.testing.assert_array_equal(part.ranks[policy], whole.ranks[policy])
            np.testing.assert_array_equal(part.items[policy], whole.items[policy])
            np.testing.assert_array_equal(part.scores[policy], whole.scores[policy])


def test_blocks_cover_each_user_once_in_order_and_stay_small():
    asked = []

    def score(histories, start):
        asked.append((start, [histories.row(i).tolist() for i in range(len(histories))]))
        return torch.zeros(len(histories), 30)

    histories = [[i] * (i % 3) for i in range(10)]
    rank_task(score, make_task(histories, [[0]] * 10, 30), num_items=30, user_block=4)
    assert [start for start, _ in asked] == [0, 4, 8]
    assert [row for _, rows in asked for row in rows] == histories


def test_chosen_blocks_hold_few_scores():
    largest = 0

    def score(histories, start):
        nonlocal largest
        largest = max(largest, len(histories))
        return torch.zeros(len(histories), 40_000)

    rank_task(score, make_task([[]] * 300, [[0]] * 300, 40_000), num_items=40_000, k=5)
    assert 1 < largest <= 100


def test_the_scores_of_the_model_are_not_changed():
    scores = torch.randn(3, 100)
    before = scores.clone()
    rank_task(from_matrix(scores), make_task([[1, 2, 1], [5], []], [[3], [4], [5]], 100), num_items=100)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_scores_of_other_types(dtype):
    scores = torch.arange(12).remainder(5).to(dtype).repeat(2, 1)
    check_scores = scores.float()
    ranking = rank_task(from_matrix(scores), make_task([[4], []], [[3], [9]], 12), num_items=12, k=4)
    lists, ranks = sorted_rows(check_scores, [[4], []], [[3], [9]], 4, "unseen")
    assert ranking.items["unseen"].tolist() == lists.tolist()
    assert ranking.ranks["unseen"].tolist() == ranks.tolist()


def test_one_row_for_all_users_and_scores_that_need_gradients():
    row = torch.nn.Parameter(torch.arange(6.0))
    ranking = rank_task(
        lambda histories, start: row.expand(len(histories), 6),
        make_task([[5], []], [[4], [4]], 6),
        num_items=6,
        k=2,
    )
    assert ranking.items["unseen"].tolist() == [[4, 3], [5, 4]]
    assert row.tolist() == [0, 1, 2, 3, 4, 5]


def test_scores_from_inference_mode():
    @torch.inference_mode()
    def score(histories, start):
        return torch.arange(6.0).repeat(len(histories), 1)

    ranking = rank_task(score, make_task([[5]], [[4]], 6), num_items=6, k=1)
    assert ranking.items["unseen"].tolist() == [[4]]


@pytest.mark.parametrize("place", [0, 77, 99])
def test_nan_is_an_error_that_names_the_users(place):
    scores = torch.zeros(10, 100)
    scores[6, place] = scores[7, place] = torch.nan
    task = make_task([[]] * 10, [[0]] * 10, 100, users=range(100, 110))
    with pytest.raises(TrainingError, match=r"2 items as NaN for 2 of the users 5\.\.9 .*first: user number 106"):
        rank_task(from_matrix(scores), task, num_items=100, user_block=5)


@pytest.mark.parametrize(
    ("histories", "truth", "what"),
    [([[0], [9]], [[0], [0]], "history.*first is 9 in row 1"), ([[0]], [[-1]], "true.*first is -1 in row 0")],
)
def test_items_outside_the_catalogue_are_refused(histories, truth, what):
    with pytest.raises(DataError, match=what):
        rank_task(from_matrix(torch.zeros(2, 9)), make_task(histories, truth, 9), num_items=9)


def test_options_are_checked():
    task = make_task([[0]], [[0]], 9)
    for options in ({"k": 0}, {"user_block": 0}, {"num_items": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is 0"):
            rank_task(from_matrix(torch.zeros(1, 9)), task, **{"num_items": 9, **options})
    with pytest.raises(ValueError, match=r"\(1, 8\), expected \(1, 9\)"):
        rank_task(from_matrix(torch.zeros(1, 8)), task, num_items=9)


def test_a_task_without_users():
    ranking = rank_task(from_matrix(torch.zeros(0, 9)), make_task([], [], 9), num_items=9, k=3)
    assert ranking.items["all"].shape == (0, 3)


def test_any_object_with_the_attributes_of_a_task_works():
    task = SimpleNamespace(**vars(make_task([[0]], [[1]], 2)))
    assert rank_task(from_matrix(torch.zeros(1, 2)), task, num_items=2).ranks["all"].tolist() == [2]


def test_ranks_are_exact_beyond_the_integers_of_single_precision():
    """All items but one are tied; a sum of ones in single precision stops at 2**24."""
    items = 2**24 + 2
    scores = torch.ones(1, items)
    scores[0, 5] = 0.0
    truth = Histories.from_lists([[items - 1]])
    assert true_ranks(scores, truth, torch.empty_like(scores)).tolist() == [items - 1]


@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_ranks_up_to_k_are_the_ranks(k):
    rng = np.random.default_rng(k)
    for items in (12, 400):
        scores = torch.from_numpy(rng.random((30, items)).astype(np.float32).round(2))  # with ties
        scores[torch.from_numpy(rng.random((30, items)) < 0.1)] = -torch.inf
        rows = [np.unique(rng.integers(0, items, rng.integers(1, 6))).tolist() for _ in range(30)]
        truth = Histories.from_lists(rows)
        expected = true_ranks(scores, truth, torch.empty_like(scores))
        expected = np.where(expected > k, NOT_RANKED, expected)
        np.testing.assert_array_equal(ranks_up_to(k, scores, truth), expected)
