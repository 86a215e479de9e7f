"""Every accuracy metric against ir-measures: pytrec_eval, and the MS MARCO code for RR@k."""

import ir_measures
import numpy as np
import pytest
from ir_measures.providers import registry

from rediffuse.errors import ConfigError
from rediffuse.evaluation.metrics import (
    ACCURACY,
    DEFAULT_METRICS,
    LIST_METRICS,
    NOT_RANKED,
    Metric,
    accuracy_values,
    flat_name,
    parse_metric,
    parse_metrics,
)

KS = (1, 3, 5, 10, 20)
ORACLE = {
    "hr": (ir_measures.Success, "pytrec_eval"),
    "ndcg": (ir_measures.nDCG, "pytrec_eval"),
    "recall": (ir_measures.R, "pytrec_eval"),
    "precision": (ir_measures.P, "pytrec_eval"),
    "map": (ir_measures.AP, "pytrec_eval"),
    "mrr": (ir_measures.RR, "msmarco"),
}


def random_case(seed: int, most: int):
    """Lists of 0..30 of 60 items; 1..most true items, of which some are in no list."""
    rng = np.random.default_rng(seed)
    lists = {user: rng.permutation(60)[: rng.integers(0, 31)].tolist() for user in range(40)}
    truth = {user: rng.choice(60, rng.integers(1, most + 1), replace=False).tolist() for user in lists}
    return lists, truth


def from_ranks(lists, truth, metrics):
    ranks = [[lists[u].index(i) + 1 if i in lists[u] else NOT_RANKED for i in truth[u]] for u in truth]
    offsets = np.cumsum([0, *map(len, ranks)])
    return accuracy_values(metrics, offsets, np.concatenate(ranks), np.diff(offsets))


@pytest.mark.parametrize("most", [1, 40], ids=["one true item", "many true items"])
@pytest.mark.parametrize("kind", ORACLE)
def test_equal_to_ir_measures(kind, most):
    measure, provider = ORACLE[kind]
    nonzero = 0
    for seed in range(8):
        lists, truth = random_case(seed, most)
        ours = from_ranks(lists, truth, [Metric(kind, k) for k in KS])
        qrels = [ir_measures.Qrel(str(u), str(i), 1) for u, items in truth.items() for i in items]
        run = [
            ir_measures.ScoredDoc(str(u), str(i), 100.0 - place)
            for u, items in lists.items()
            for place, i in enumerate(items)
        ]
        for k in KS:
            # A user without a list may be missing there.
            expected = dict.fromkeys(truth, 0.0)
            for found in registry[provider].iter_calc([measure @ k], qrels, run):
                expected[int(found.query_id)] = found.value
            np.testing.assert_allclose(ours[f"{kind}@{k}"], list(expected.values()), rtol=0, atol=1e-12)
            nonzero += sum(value > 0 for value in expected.values())
    assert nonzero > 100


def test_by_hand():
    # Three true items, found at ranks 2 and 5; the third is nowhere.
    values = accuracy_values(
        parse_metrics(["hr@1", "hr@5", "ndcg@5", "recall@5", "precision@5", "map@5", "mrr@5", "map@2"]),
        np.array([0, 3]),
        np.array([5, NOT_RANKED, 2]),
        np.array([3]),
    )
    dcg = 1 / np.log2(3) + 1 / np.log2(6)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    expected = [0, 1, dcg / ideal, 2 / 3, 2 / 5, (1 / 2 + 2 / 5) / 3, 1 / 2, 1 / 6]
    np.testing.assert_allclose([v[0] for v in values.values()], expected, rtol=1e-15)


def test_capped_recall_by_hand():
    """ir-measures has no such metric, so the values are computed by hand: hits / min(true items, K)."""
    for offsets, ranks, true, expected in (
        ([0, 3], [1, 2, 9], [3], 1.0),
        ([0, 2], [2, 5], [2], 0.5),
        ([0, 1], [1], [5], 0.5),
    ):
        found = accuracy_values([Metric("capped_recall", 2)], np.array(offsets), np.array(ranks), np.array(true))
        assert found["capped_recall@2"].tolist() == [expected]
    # Two true items at ranks 2 and 5, K = 3: half of them found; NDCG = (1 / log2(3)) / (1 + 1 / log2(3)).
    values = accuracy_values(
        [Metric("capped_recall", 3), Metric("ndcg", 3)], np.array([0, 2]), np.array([2, 5]), np.array([2])
    )
    assert values["capped_recall@3"][0] == 0.5
    assert values["ndcg@3"][0] == pytest.approx(0.386853, abs=1e-6)


def test_true_items_that_are_not_ranked_may_be_left_out():
    metrics = parse_metrics([f"{kind}@5" for kind in ACCURACY])
    with_sentinel = accuracy_values(
        metrics, np.array([0, 2, 3]), np.array([NOT_RANKED, 3, NOT_RANKED]), np.array([2, 1])
    )
    without = accuracy_values(metrics, np.array([0, 1, 1]), np.array([3]), np.array([2, 1]))
    for name, values in with_sentinel.items():
        np.testing.assert_array_equal(values, without[name])
        assert values[0] > 0
        assert values[1] == 0


def test_no_hits_at_all():
    metrics = parse_metrics([f"{kind}@5" for kind in ACCURACY])
    for values in accuracy_values(metrics, np.array([0, 0]), np.array([], dtype=np.int64), np.array([1])).values():
        assert values.tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ndgc@10", "Did you mean 'ndcg'"),
        ("ndcg", "ndcg@10"),
        ("ndcg@", "cut-off"),
        ("ndcg@0", "cut-off"),
        ("ndcg@-3", "cut-off"),
        ("ndcg@ten", "cut-off"),
        ("ndcg@²", "cut-off"),
        ("", "Unknown metric ''"),
        ("coverage@10", "evaluate_task"),
    ],
)
def test_bad_names_are_refused(name, says):
    with pytest.raises(ConfigError) as error:
        parse_metric(name)
    assert says in str(error.value)


def test_names():
    assert parse_metric(" NDCG@10 ") == Metric("ndcg", 10)
    assert str(parse_metric("coverage@5", LIST_METRICS)) == "coverage@5"
    assert parse_metrics(["hr@5", "HR@5", "hr@10"]) == (Metric("hr", 5), Metric("hr", 10))
    assert parse_metrics("hr@5") == (Metric("hr", 5),)
    assert len(parse_metrics(DEFAULT_METRICS, (*ACCURACY, *LIST_METRICS))) == len(DEFAULT_METRICS) == 26
    assert (flat_name("hr@5", "all"), flat_name("hr@5", "unseen")) == ("hr@5", "hr@5/unseen")
    with pytest.raises(ConfigError, match="No metric"):
        parse_metrics([])
