"""Fresh histories: what a run knows of its users afterwards, and what stays as it was."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse.errors import DataError, RediffuseWarning, RunError
from rediffuse.recommender.fresh_histories import update_histories
from rediffuse.runs.run_folder import read_run

DAY = 86_400
OPTIONS = {"epochs": 1, "embedding_size": 8, "batch_size": 32}


def events(days=6, users=12, items=20):
    rows = [(f"u{u}", f"i{(u * 3 + day * 2) % items}", DAY * day + u) for u in range(users) for day in range(days)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def dataset(frame, time="timestamp", **tables):
    return rd.read_interactions(frame, time=time, **tables)


def links():
    return pl.DataFrame({"source": [f"u{n}" for n in range(11)], "target": [f"u{n + 1}" for n in range(11)]})


def fresh():
    """u0 has two newer interactions, the later one first; "new" is a new user; two items are unknown."""
    rows = [
        ("u0", "i19", 100 * DAY + 5),
        ("u0", "i17", 100 * DAY),
        ("new", "i3", 101 * DAY),
        ("new", "i4", 102 * DAY),
        ("new", "i4", 102 * DAY),  # the same again
        ("u1", "x1", 100 * DAY),
        ("u1", "x2", 100 * DAY),
        ("u2", "x1", 100 * DAY),
        ("other", "x1", 100 * DAY),  # a new user of unknown items alone
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return pl.concat([frame, events().filter((pl.col("user_id") == "u3") & (pl.col("timestamp") < 2 * DAY))])  # known


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return rd.train("sasrec", rd.split.none(dataset(events())), tmp_path_factory.mktemp("runs") / "a", config=OPTIONS)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def history(recommender, user):
    rows = recommender.resolve_users([user], None)[2]
    return recommender.items["item_id"].gather(rows.items).to_list()


def test_histories_grow_in_order_of_time(run):
    recommender = rd.Recommender.load(run)
    before = {user: history(recommender, user) for user in ("u0", "u1", "u3")}
    with pytest.warns(RediffuseWarning) as caught:
        now = recommender.with_histories(fresh())
    said = [str(one.message) for one in caught]
    assert said == [
        "4 interactions with 2 items that the model does not know were left out: 'x1', 'x2'. "
        "Refit it to recommend them.",
        "3 interactions are in the histories already, and count once.",
    ]
    assert history(now, "u0") == [*before["u0"], "i17", "i19"]
    assert history(now, "new") == ["i3", "i4"]
    assert {user: history(now, user) for user in ("u1", "u3")} == {user: before[user] for user in ("u1", "u3")}
    assert now.is_known_user("new")
    assert not now.is_known_user("other")
    assert not recommender.is_known_user("new")  # the old one is as it was
    assert history(recommender, "u0") == before["u0"]
    assert now.fingerprint != recommender.fingerprint
    assert now.config["data"]["histories_end"] == "1970-04-13T00:00:00+00:00"


def test_lists_are_those_of_the_histories(run, quiet):
    now = rd.Recommender.load(run).with_histories(fresh())
    known = now.recommend(users=["u0", "new", "u5"], k=5)
    given = now.recommend(histories=[history(now, user) for user in ("u0", "new", "u5")], k=5)
    assert known["item_id"].to_list() == given["item_id"].to_list()
    assert not {"i17", "i19"} & set(known.filter(pl.col("user_id") == "u0")["item_id"])


def test_interactions_between_older_ones_are_put_in_between(run, quiet):
    recommender = rd.Recommender.load(run)
    early = pl.DataFrame({"user_id": ["u4"], "item_id": ["i9"], "timestamp": [2 * DAY + 5]})
    before = history(recommender, "u4")
    assert history(recommender.with_histories(early), "u4") == [*before[:3], "i9", *before[3:]]


@pytest.mark.parametrize("model", ["bprmf", "lightgcn", "diffnet", "friends", "ease", "theat", "diffrec"])
def test_new_users_of_models_with_user_state(model, tmp_path, quiet):
    """They are ranked as users with a history, or, of `friends`, without: never by the state of another user."""
    options = OPTIONS if model in ("bprmf", "lightgcn", "diffnet") else {"epochs": 1} if model == "diffrec" else {}
    made = rd.train(model, rd.split.none(dataset(events(), social=links())), tmp_path / "a", config=options)
    recommender = rd.Recommender.load(made)
    for now in (
        recommender.with_histories(fresh()),
        rd.Recommender.load(update_histories(made, fresh(), tmp_path / "b")[0]),
    ):
        found = now.recommend(users=["new", "u0", "u11"], k=6)
        if not now.model.reads_times:
            given = recommender.recommend(histories=[["i3", "i4"]], k=6)["item_id"].to_list()
            assert found.filter(pl.col("user_id") == "new")["item_id"].to_list() == given
        assert not {"i3", "i4"} & set(found.filter(pl.col("user_id") == "new")["item_id"])
        assert not {"i17", "i19"} & set(found.filter(pl.col("user_id") == "u0")["item_id"])
        u11 = found.filter(pl.col("user_id") == "u11")["item_id"].to_list()
        assert u11 == recommender.recommend(users=["u11"], k=6)["item_id"].to_list()


def test_the_new_run(run, tmp_path):
    made, found = update_histories(run, fresh(), tmp_path / "b")
    old, new = read_run(run.path), read_run(made.path)
    assert (found.added, found.repeated, found.dropped, found.new_users) == (4, 3, 4, 1)
    assert new.weights == old.weights
    assert new.config["histories_updated_from"] == {
        "run": str(run.path),
        "weights": old.weights,
        "interactions": 4,
        "new_users": 1,
        "unknown_items": 2,
    }
    assert new.config["data"]["users"] == old.config["data"]["users"] == new.model.num_users == 12
    assert new.user_ids.to_list() == [*old.user_ids.to_list(), "new"]
    # What the model learned from is what it was.
    assert new.before_test.items.tolist() == old.histories.items.tolist()
    assert new.held_out is not None
    assert new.held_out.sum() == 4
    assert "Histories end at 1970-04-13" in (made.path / "README.md").read_text()
    assert (made.path / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was held out, and nothing is said
        recommended = rd.Recommender.load(made).recommend(users=["u0", "new"], k=4)
    with pytest.warns(RediffuseWarning):
        in_memory = rd.Recommender.load(run).with_histories(fresh())
    assert recommended.equals(in_memory.recommend(users=["u0", "new"], k=4))
    # The same table again adds nothing.
    again, repeated = update_histories(made, fresh(), tmp_path / "c")
    assert (repeated.added, repeated.new_users) == (0, 0)
    assert read_run(again.path).histories.items.tolist() == new.histories.items.tolist()


def test_a_run_with_a_split_is_evaluated_as_before(tmp_path):
    data = dataset(events())
    made = rd.train("bprmf", rd.split.leave_one_out(data), tmp_path / "a", config=OPTIONS)
    updated, _ = update_histories(made, fresh(), tmp_path / "b")
    assert read_run(updated.path).before_test.items.tolist() == read_run(made.path).before_test.items.tolist()
    assert rd.evaluate(updated, data)["metrics"] == rd.evaluate(made, data)["metrics"]
    with pytest.warns(RediffuseWarning, match="the model has not learned from 16"):  # one of 12 users, and 4 fresh
        rd.Recommender.load(updated).recommend(users=["u1"])


@pytest.mark.parametrize("model", ["theat", "ease", "transition"])
def test_update_learns_from_fresh_histories_too(model, tmp_path, quiet):
    known = fresh().filter(~pl.col("item_id").str.starts_with("x")).unique(maintain_order=True)
    later = pl.DataFrame({"user_id": ["u7", "new"], "item_id": ["i1", "i9"], "timestamp": [110 * DAY] * 2})
    made = rd.train(model, rd.split.none(dataset(events())), tmp_path / "a")
    updated, _ = update_histories(made, known, tmp_path / "b")
    by_steps = rd.update(updated, dataset(later), tmp_path / "c")
    at_once = rd.update(made, dataset(pl.concat([known, later])), tmp_path / "d")
    one, other = (read_run(run.path) for run in (by_steps, at_once))
    assert "histories_updated_from" not in one.config
    assert one.held_out is None
    for user in ("u0", "u7", "new"):
        lists = [rd.Recommender.load(run).recommend(users=[user], k=8) for run in (by_steps, at_once)]
        assert lists[0]["item_id"].to_list() == lists[1]["item_id"].to_list()
        np.testing.assert_allclose(lists[0]["score"], lists[1]["score"], rtol=1e-4)
    assert sorted(one.user_ids) == sorted(other.user_ids)


def test_tables_folders_and_other_columns(run, tmp_path, quiet):
    wanted = rd.Recommender.load(run).with_histories(fresh())
    fresh().write_csv(tmp_path / "a.csv")
    fresh().rename({"user_id": "who", "item_id": "what", "timestamp": "at"}).write_parquet(tmp_path / "b.parquet")
    dataset(fresh()).save(tmp_path / "c")
    for source, columns in (
        (tmp_path / "a.csv", {}),
        (tmp_path / "b.parquet", {"user": "who", "item": "what", "time": "at"}),
        (tmp_path / "c", {}),
        (fresh().to_pandas(), {}),
    ):
        now = rd.Recommender.load(run).with_histories(source, **columns)
        assert {user: history(now, user) for user in ("u0", "u3", "new")} == {
            user: history(wanted, user) for user in ("u0", "u3", "new")
        }


def test_without_times_interactions_are_appended(tmp_path, quiet):
    frame = events().drop("timestamp")
    made = rd.train("popularity", rd.split.none(rd.read_interactions(frame)), tmp_path / "a")
    recommender = rd.Recommender.load(made)
    now = recommender.with_histories(pl.DataFrame({"user_id": ["u1", "u1"], "item_id": ["i5", "i2"]}))
    assert history(now, "u1") == [*history(recommender, "u1"), "i5", "i2"]
    assert now.config["data"]["histories_end"] is None


def test_synthetic_interactions_stay_first(tmp_path, quiet):
    split = rd.split.none(dataset(events()))
    made = rd.train("sasrec", rd.split.none(rd.augment(split, "random", n=2)), tmp_path / "a", config=OPTIONS)
    updated, _ = update_histories(made, fresh(), tmp_path / "b")
    old, new = read_run(made.path).histories, read_run(updated.path).histories
    assert old.synthetic is not None
    assert new.synthetic is not None
    assert new.synthetic.sum() == old.synthetic.sum() > 0
    for user in range(len(old)):
        rows = slice(new.offsets[user], new.offsets[user + 1])
        assert (np.diff(new.synthetic[rows].astype(int)) <= 0).all()


def test_integer_ids(tmp_path, quiet):
    numbers = {
        "user_id": pl.col("user_id").str.slice(1).cast(pl.Int64),
        "item_id": pl.col("item_id").str.slice(1).cast(pl.Int64),
    }
    made = rd.train("popularity", rd.split.none(dataset(events().with_columns(**numbers))), tmp_path / "a")
    recommender = rd.Recommender.load(made)
    text = pl.DataFrame({"user_id": ["1", "77"], "item_id": ["5", "5"], "timestamp": [99 * DAY] * 2})
    now = recommender.with_histories(text)
    assert history(now, 1) == [*history(recommender, 1), 5]
    assert history(now, 77) == [5]
    with pytest.raises(DataError, match=r"integers, and the new interactions have user 'ann'"):
        recommender.with_histories(text.with_columns(user_id=pl.lit("ann")))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (fresh().drop("timestamp"), "have times, and the new ones have none"),
        (fresh().filter(pl.col("item_id").str.starts_with("x")), "knows none of the 2 items"),
        (fresh().rename({"item_id": "sku"}), "no column 'item_id'"),
    ],
)
def test_what_does_not_fit_is_refused(run, frame, said):
    with pytest.raises(DataError, match=said):
        rd.Recommender.load(run).with_histories(frame)


def test_an_order_column_is_no_time(tmp_path):
    ordered = rd.read_interactions(events().rename({"timestamp": "step"}), order="step")
    made = rd.train("popularity", rd.split.none(ordered), tmp_path / "a")
    recommender = rd.Recommender.load(made)
    with pytest.raises(DataError, match="order column that is no time"):
        recommender.with_histories(fresh())
    later = rd.read_interactions(
        pl.DataFrame({"user_id": ["u0", "u1"], "item_id": ["i1", "i2"], "step": [9 * DAY, 9 * DAY]}), order="step"
    )
    assert history(recommender.with_histories(later), "u0") == [*history(recommender, "u0"), "i1"]


def test_a_folder_that_is_not_empty_is_refused(run):
    with pytest.raises(RunError, match="not empty"):
        update_histories(run, fresh(), run.path)


def test_tables_of_the_model_and_the_index_are_kept(tmp_path, quiet):
    data = rd.testing.synthetic_interactions(knowledge=True)
    options = {"epochs": 1, "embedding_size": 8}
    made = rd.train("diffkg", rd.split.none(data), tmp_path / "a", config=options)
    newer = pl.DataFrame({"user_id": ["fresh"], "item_id": [data.item_ids[0]], "timestamp": [2 * 10**9]})
    updated, _ = update_histories(made, newer, tmp_path / "b")
    assert read_run(updated.path).digests["knowledge.parquet"] == read_run(made.path).digests["knowledge.parquet"]
    assert rd.Recommender.load(updated).has_paths


def test_the_index_is_kept(tmp_path, quiet):
    pytest.importorskip("faiss")
    from rediffuse.recommender.index_building import build_index

    made = rd.train("sasrec", rd.split.none(dataset(events(items=60))), tmp_path / "a", config=OPTIONS)
    build_index(made.path, kind="ivf", k=3)
    updated, _ = update_histories(made, fresh(), tmp_path / "b")
    indexed = rd.Recommender.load(updated, retrieval="index")
    assert indexed.recommend(users=["new"], k=3).equals(rd.Recommender.load(updated).recommend(users=["new"], k=3))


def test_the_form_of_times(run, quiet):
    frame = pl.DataFrame({"user_id": ["u1", "u1"], "item_id": ["i5", "i2"], "at": ["01/03/2024", "02/01/2024"]})
    now = rd.Recommender.load(run).with_histories(frame, time="at", time_format="%d/%m/%Y")
    assert history(now, "u1")[-2:] == ["i2", "i5"]
    assert now.config["data"]["histories_end"] == "2024-03-01T00:00:00+00:00"


def test_what_was_guessed_about_a_table_is_said(tmp_path, run):
    path = tmp_path / "new.csv"
    path.write_text("user_id,item_id,timestamp\nu0,\"['i3', 'i4']\",9000\n")
    _, found = update_histories(run, path, tmp_path / "b")
    notes = found.notes
    assert any("holds lists of items" in note for note in notes)
    assert any("were read as seconds since 1970" in note for note in notes)
    assert not any("earlier than" in note for note in notes)


def test_times_before_those_of_the_run_are_said(tmp_path, run):
    late = rd.train(
        "popularity",
        rd.split.none(dataset(events().with_columns(pl.col("timestamp") + 400 * DAY))),
        tmp_path / "a",
    )
    frame = pl.DataFrame({"user_id": ["u0"], "item_id": ["i3"], "timestamp": [19_000]})  # days
    _, found = update_histories(late, frame, tmp_path / "b")
    assert "All new interactions are earlier than all of the run. Check what their times count." in found.notes


def test_options_that_only_prepare_has_are_named_as_such(tmp_path, run):
    path = tmp_path / "new.csv"
    path.write_text("user_id,item_id,timestamp\nNULL,i3,9000\n")
    with pytest.raises(DataError, match=r"--missing-ids drop.*That is an option of rediffuse prepare"):
        update_histories(run, path, tmp_path / "b")
    path.write_text("user_id,item_id,timestamp\nu0,i3,13.05.2024\n")
    with pytest.raises(DataError, match=r"--time-format") as error:
        update_histories(run, path, tmp_path / "b")
    assert "rediffuse prepare" not in str(error.value)
