"""`evaluate_lists`: the forms that lists may have, and every edge case."""

import json
import subprocess
import sys

import narwhals.stable.v1 as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest

from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.evaluation import evaluate_lists

LISTS = pl.DataFrame(
    {"user_id": ["a", "a", "a", "b", "b"], "item_id": [1, 2, 3, 3, 1], "score": [0.1, 0.9, 0.5, 0.2, 0.3]}
)
TRUTH = pl.DataFrame({"user_id": ["a", "b", "b"], "item_id": [3, 3, 4]})  # at rank 2 and 2; 4 is in no list
METRICS = ["hr@1", "hr@2", "recall@2", "mrr@10"]
EXPECTED = {"hr@1": 0.0, "hr@2": 1.0, "recall@2": 0.75, "mrr@10": 0.5}


def ranked(frame):
    return frame.with_columns(rank=pl.col("score").rank("ordinal", descending=True).over("user_id")).drop("score")


@pytest.mark.parametrize(
    "form",
    [
        lambda f: f,
        lambda f: f.lazy(),
        lambda f: f.to_pandas(),
        lambda f: f.to_arrow(),
        lambda f: f.with_columns(pl.col("user_id").cast(pl.Categorical), pl.col("item_id").cast(pl.Int32)),
        lambda f: f.with_columns(extra=pl.lit([1])).reverse(),
    ],
    ids=["polars", "lazy", "pandas", "arrow", "other types", "shuffled with more columns"],
)
@pytest.mark.parametrize("lists", [LISTS, ranked(LISTS)], ids=["score", "rank"])
def test_any_table(form, lists):
    result = evaluate_lists(form(lists), form(TRUTH), METRICS)
    assert dict(result) == EXPECTED
    assert result.counts == {
        "users": 2,
        "users_without_list": 0,
        "users_without_truth": 0,
        "lists_shorter_than_k": 2,
        "duplicate_items": 0,
        "duplicate_truth": 0,
        "nan_scores": 0,
    }


@pytest.mark.parametrize("listed", [list, tuple, np.array, pl.Series, pd.Series])
def test_a_dictionary(listed):
    lists = {"a": listed([2, 3, 1]), "b": listed([1, 3])}
    assert dict(evaluate_lists(lists, {"a": {3}, "b": listed([3, 4])}, METRICS)) == EXPECTED
    assert dict(evaluate_lists(lists, TRUTH, METRICS)) == EXPECTED


def test_pandas_without_pyarrow(monkeypatch):
    def to_polars(self):
        raise ModuleNotFoundError("pyarrow")

    monkeypatch.setattr(nw.DataFrame, "to_polars", to_polars)
    assert dict(evaluate_lists(LISTS.to_pandas(), TRUTH.to_pandas(), METRICS)) == EXPECTED


def test_rank_wins_over_score_and_only_its_order_matters():
    lists = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [5, 6, 7], "rank": [30, 0, 10], "score": [9.0, 8.0, np.nan]})
    result = evaluate_lists(lists, {1: [7]}, ["mrr@5"])
    assert result["mrr@5"] == 0.5
    assert result.counts["nan_scores"] == 0


def test_per_user_values_in_the_order_of_the_truth():
    result = evaluate_lists({"b": [1], "a": [2, 1]}, {"z": [1], "a": [1], "b": [1]}, ["mrr@5"])
    assert result.per_user.to_dict(as_series=False) == {"user_id": ["z", "a", "b"], "mrr@5": [0.0, 0.5, 1.0]}


def test_users_without_list_are_zero_and_users_without_truth_left_out():
    result = evaluate_lists({1: [5], 2: [], 4: [5], 5: [5, 6]}, {1: [5], 2: [5], 3: [5]}, ["hr@1"])
    assert result["hr@1"] == pytest.approx(1 / 3)
    assert result.counts["users"] == 3
    assert result.counts["users_without_list"] == 2
    assert result.counts["users_without_truth"] == 2


def test_repeats_are_dropped_and_the_list_closes_up():
    result = evaluate_lists({1: [5, 5, 5, 6]}, {1: [6, 6]}, ["mrr@10", "recall@2"])
    assert dict(result) == {"mrr@10": 0.5, "recall@2": 1.0}
    assert result.counts["duplicate_items"] == 2
    assert result.counts["duplicate_truth"] == 1
    # The best place of a repeated item counts, whatever the order of the rows.
    lists = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [6, 5, 6], "score": [0.0, 1.0, 2.0]})
    assert evaluate_lists(lists, {1: [6]}, ["mrr@10"])["mrr@10"] == 1.0


@pytest.mark.parametrize("missing", [np.nan, None])
def test_nan_scores_come_last(missing):
    lists = pl.DataFrame({"user_id": [1, 1, 1, 1], "item_id": [5, 6, 7, 8], "score": [missing, -np.inf, 2.0, missing]})
    assert evaluate_lists(lists, {1: [6]}, ["mrr@10"])["mrr@10"] == 1 / 2
    result = evaluate_lists(lists, {1: [5]}, ["mrr@10"])
    assert result["mrr@10"] == 1 / 4
    assert result.counts["nan_scores"] == 2


@pytest.mark.parametrize("column", ["score", "rank"])
@pytest.mark.parametrize("flip", [False, True])
def test_ties_count_against_the_model(column, flip):
    lists = pl.DataFrame({"user_id": [1] * 4, "item_id": [5, 6, 7, 8], column: [0.0, -0.0, 0.0, 0.0]})
    lists = lists.reverse() if flip else lists
    assert evaluate_lists(lists, {1: [6]}, ["mrr@10"])["mrr@10"] == 1 / 4
    assert evaluate_lists(lists, {1: [5, 8]}, ["mrr@10"])["mrr@10"] == 1 / 3


def test_k_beyond_the_list_and_unknown_items():
    result = evaluate_lists({1: [5, 6]}, {1: [6, 99]}, ["recall@1000", "precision@1000"])
    assert dict(result) == {"recall@1000": 0.5, "precision@1000": 1 / 1000}
    assert result.counts["lists_shorter_than_k"] == 1


@pytest.mark.parametrize(
    "empty",
    [
        {},
        {1: []},
        LISTS.clear(),
        LISTS.clear().to_pandas(),
        pd.DataFrame({"user_id": [], "item_id": [], "score": []}),
        pl.DataFrame({"user_id": [], "item_id": [], "rank": []}),
    ],
)
def test_no_lists_at_all(empty):
    result = evaluate_lists(empty, {1: [6]}, ["hr@1"])
    assert result["hr@1"] == 0
    assert result.counts["users_without_list"] == 1


def test_no_user_in_common_is_a_warning():
    with pytest.warns(RediffuseWarning, match=r"None of the 1 users .* first is 'x'.* is 'X'"):
        assert evaluate_lists({"x": [1]}, {"X": [1]})["hr@10"] == 0


@pytest.mark.parametrize(
    ("lists", "truth", "says"),
    [
        ({1: ["5"]}, {1: [5]}, "strings (for example '5') in the recommendations and integers (for"),
        ({"1": [5]}, {1: [5]}, "user_id holds strings"),
        ({1: [5]}, {1: []}, "The truth has no rows"),
        ({1: [5]}, {}, "The truth has no rows"),
        ({1: {5}}, {1: [5]}, "a set, which has no order"),
        ({1: "5"}, {1: [5]}, "Give a list of item ids"),
        ({1: 5}, {1: [5]}, "Give a list of item ids"),
        ({1: [5, "6"]}, {1: [5]}, "several types"),
        ({1: [5, None]}, {1: [5]}, "1 missing values, the first in row 1"),
        ([[1, 2]], {1: [5]}, "recommendations is a list"),
        (LISTS.drop("item_id"), TRUTH, "no column item_id; they have user_id, score"),
        (LISTS.drop("score"), TRUTH, "neither a column rank nor a column score"),
        (LISTS.with_columns(score=pl.lit("high")), TRUTH, "score of the recommendations is of type String"),
        (ranked(LISTS).with_columns(rank=pl.lit(None, pl.Int64)), TRUTH, "5 ranks of the recommendations"),
        (LISTS, TRUTH.with_columns(pl.col("item_id").cast(pl.Float64)), "item_id of the truth is of type"),
        (LISTS, TRUTH.with_columns(item_id=pl.lit(2**63, pl.UInt64)), "2**63"),
        (LISTS, TRUTH.with_columns(user_id=pl.lit(None, pl.String)), "user_id of the truth has 3 missing"),
        (LISTS.to_pandas().assign(item_id=[1, "2", 3, 4, 5]), TRUTH, "recommendations cannot be read"),
    ],
)  # fmt: skip
def test_refusals(lists, truth, says):
    with pytest.raises(DataError) as error:
        evaluate_lists(lists, truth)
    assert says in str(error.value)
    assert error.value.remedy


def test_unknown_metric():
    with pytest.raises(ConfigError, match="Did you mean 'ndcg'"):
        evaluate_lists({1: [5]}, {1: [5]}, ["ndgc@10"])


def test_result_as_text_and_json():
    result = evaluate_lists({1: [6, 5]}, {1: [5]}, ["hr@10", "mrr@10"])
    assert repr(result) == "EvaluationResult, 1 users\n  hr@10   1.0000\n  mrr@10  0.5000"
    assert "mrr@10" in str(result)
    assert "users_without_list" in str(result)
    assert json.loads(json.dumps(result.to_dict())) == {
        "metrics": {"hr@10": 1.0, "mrr@10": 0.5},
        "counts": result.counts,
    }
    with pytest.raises(KeyError):
        result["ndcg@10"]


def test_evaluating_lists_does_not_need_torch():
    code = "import sys, rediffuse.evaluation as e; e.evaluate_lists({1: [5]}, {1: [5]}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("ranks", [[1, -1], [-1.0, -2.0], [1.5, 2.0], [0.9, 0.1], [1.0, float("inf")]])
def test_ranks_that_are_no_ranks_are_refused(ranks: list[float]) -> None:
    lists = pl.DataFrame({"user_id": [1, 1], "item_id": [10, 11], "rank": ranks})
    with pytest.raises(DataError, match=r"(?s)negative or not whole, for example .* of user 1.*call the column score"):
        evaluate_lists(lists, {1: [10]})
    for whole in ([0, 1], [1.0, 2.0]):
        assert evaluate_lists(lists.with_columns(rank=pl.Series(whole)), {1: [10]}, ["hr@1"])["hr@1"] == 1


def test_frames_with_repeated_or_numbered_columns_are_refused() -> None:
    twice = pd.DataFrame([[1, 10, 11]], columns=["user_id", "item_id", "item_id"])
    numbered = pd.DataFrame([[1, 10]])
    for lists, truth in ((twice, {1: [10]}), ({1: [10]}, twice), (numbered, {1: [10]}), ({1: [10]}, numbered)):
        with pytest.raises(DataError):
            evaluate_lists(lists, truth)
