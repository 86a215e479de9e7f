"""The model card says what is true of the run, and its options and front matter can be read back."""

from __future__ import annotations

import re

import polars as pl
import pytest
import yaml
from huggingface_hub import ModelCard

import rediffuse as rd
from rediffuse import models
from rediffuse.config import read_settings
from rediffuse.runs.card import model_card, with_section, with_test, without_front_matter
from rediffuse.runs.environment import environment
from rediffuse.runs.run_folder import read_run

SMALL = {"embedding_size": 8, "epochs": 2, "batch_size": 64, "max_length": 8}


def events(days: range = range(10)) -> pl.DataFrame:
    rows = [
        (f"u{user}", f"i{(user * 3 + day * (1 + user % 2)) % 25}", 86_400 * day + 60 * user)
        for user in range(30)
        for day in days
        if (user + day) % 4
    ]
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def dataset(days: range = range(10)):
    return rd.read_interactions(events(days), user="user", item="item", time="time")


@pytest.fixture(scope="module")
def split():
    return rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ease(split, folder):
    return rd.train("ease", split, folder / "ease", config={"refit": True})


@pytest.fixture(scope="module")
def theat(split, folder):
    return rd.train("theat", split, folder / "theat", config={"refit": True})


@pytest.fixture(scope="module")
def gru4rec(split, folder):
    return rd.train("gru4rec", split, folder / "gru4rec", config=SMALL | {"learning_rate": 1 / 3})


def card_of(run) -> str:
    return (run.path / "README.md").read_text(encoding="utf-8")


def described(kind, options, **changes):
    """A run_config as far as a card reads it, for models that are not trained here."""
    counts = {"interactions": 3, "users": 2, "items": 2, "synthetic": 0}
    return {
        "model": kind.name,
        "preset": None,
        "config": options.model_dump(mode="json"),
        "distribution": {"name": "rediffuse"},
        "seed": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "split": {"name": "ratio", "params": {"train": 0.8}, "leak": None},
        "data": {
            **{"users": 4, "items": 5, "interactions": 7},
            "subsets": dict.fromkeys(("train", "valid", "before_test", "test"), counts),
        },
        "resolved": {},
        "training": {"refitted": False, "minutes": 1, "parameters": 0, "precision": "fp32", "best_epoch": 0},
        "validation": None,
        **changes,
    }


def options_in(card: str, path) -> dict:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    path.write_text(block, encoding="utf-8")
    return read_settings(path)


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.names(installed=False))
@pytest.mark.parametrize("preset", ["default", "paper", "released"])
def test_the_options_of_a_card_are_a_config_file(name, preset, tmp_path):
    kind = models.model_class(name)
    options = kind.Config.build(preset)
    read = options_in(model_card(kind, described(kind, options), environment()), tmp_path / "options.yaml")
    assert kind.Config.build(None, read) == options


def test_unusual_values_survive_the_card(gru4rec, tmp_path):
    read = options_in(card_of(gru4rec), tmp_path / "options.yaml")
    assert read["learning_rate"] == 1 / 3  # all its digits
    assert models.GRU4Rec.Config.build(None, read) == read_run(gru4rec.path).model.config
    theat = models.TemporalHeat.Config.build(None, {"epochs": 7, "metric": "hr@10/unseen"})
    card = model_card(models.TemporalHeat, described(models.TemporalHeat, theat), environment())
    assert models.TemporalHeat.Config.build(None, options_in(card, tmp_path / "b.yaml")) == theat


def test_a_card_leaves_out_options_without_effect(ease):
    assert "batch_size" not in card_of(ease)
    assert "refit: true" in card_of(ease)


# --- what it says ------------------------------------------------------------------------------------------


def test_every_model_says_what_it_is():
    kinds = [models.model_class(name) for name in (*models.names(installed=False), "blend")]
    summaries = [kind.summary() for kind in kinds]
    assert len(set(summaries)) == len(kinds)
    assert all(text.endswith(".") and 30 < len(text) < 160 and "\n" not in text for text in summaries)
    assert "next item" not in models.EASE.summary() + models.DiffRec.summary()  # they read the history as a set

    class Derived(models.EASE):
        pass

    assert Derived.summary() == ""  # what it changes is unknown


def test_the_ablation_and_the_prior_are_named():
    for name, options, text in (
        ("diffurec", {"diffusion": False}, "This run is the ablation (no diffusion)."),
        ("sasrec", {"prior": "head"}, "(`prior=head`)"),
    ):
        kind = models.model_class(name)
        for built, said in ((kind.Config.build(None, options), True), (kind.Config.build(), False)):
            assert (text in model_card(kind, described(kind, built), environment())) is said


def numbers(pattern: str, card: str) -> list[int]:
    found = re.search(pattern, card)
    assert found, (pattern, card)
    return [int(text.replace(",", "")) for text in found.groups()]


LEARNED = r"on ([\d,]+) interactions of ([\d,]+) users with ([\d,]+) items"


def test_the_counts_are_those_of_training(split, gru4rec, ease):
    flat, owners = split.dataset.interactions.items, split.dataset.interactions.owners
    subset = split.subset
    for run, learned in ((gru4rec, subset == 0), (ease, (subset == 0) | (subset == 1))):
        card = card_of(run)
        expected = [int(learned.sum()), len(set(owners[learned])), len(set(flat[learned]))]
        assert numbers(LEARNED, card) == expected
        assert expected[0] < split.dataset.num_interactions
        test = [int((subset == 2).sum()), len(set(owners[subset == 2]))]
        assert numbers(r"([\d,]+) interactions of ([\d,]+) users for the test", card) == test
    valid = [int((subset == 1).sum()), len(set(owners[subset == 1]))]
    assert numbers(r"([\d,]+) interactions of ([\d,]+) users for validation", card_of(gru4rec)) == valid
    assert "for validation" not in card_of(ease).split("```")[0]  # it learned from them


def test_synthetic_interactions_are_counted_apart(split, folder):
    longer = rd.augment(split, "random", n=2)
    same = rd.split.global_time(longer, quantile=0.8, valid_quantile=0.8)
    run = rd.train("gru4rec", same, folder / "longer", config=SMALL | {"epochs": 1})
    own = int((split.subset == 0).sum())
    found = numbers(r"on ([\d,]+) interactions and ([\d,]+) synthetic ones", card_of(run))
    assert found[0] == own
    assert found[1] == longer.interactions.synthetic.sum()


def test_numbers_are_rounded(theat, gru4rec):
    for run in (theat, gru4rec):
        prose = without_front_matter(card_of(run)).split("## Options")[0]
        assert not re.findall(r"\d\.\d{5,}", prose)
    assert "{" not in without_front_matter(card_of(theat)).split("## Options")[0]  # no Python dict


def test_a_refit_says_what_it_learned_from(gru4rec, folder):
    live = rd.refit(gru4rec, dataset(), folder / "live")
    card = card_of(live)
    data = dataset()
    assert numbers(LEARNED, card) == [data.num_interactions, data.num_users, data.num_items]
    assert f"Chosen as {gru4rec.path} (split global-time)" in card
    assert "Split: none; it has learned from all interactions." in card
    for wrong in ("Nothing was selected", "Leaks:", "for the test", "## Validation"):
        assert wrong not in card


def test_an_update_says_what_it_was_made_of(theat, folder):
    later = dataset(range(10, 12))
    card = card_of(rd.update(theat, later, folder / "updated"))
    both = pl.concat([events(), events(range(10, 12))])
    assert numbers(LEARNED, card) == [len(both), both["user"].n_unique(), both["item"].n_unique()]
    assert f"Made from {theat.path} by adding {later.num_interactions:,} new interactions." in card
    for wrong in ("Nothing was selected", "Leaks:", "Split:", "## Validation"):
        assert wrong not in card


def test_a_blend_names_its_parts(gru4rec, ease, folder):
    run = rd.blend([gru4rec, ease], dataset(), folder / "blend")
    card = card_of(run)
    assert models.Blend.summary() in card
    for part, weight in zip((gru4rec, ease), run.config["resolved"]["settings"]["weights"], strict=True):
        assert f"{part.config['model']} ({part.path}, weight {weight:.4g})" in card
    assert "```yaml" not in card  # there are no options to train it with
    assert "The weights of its parts were chosen by ndcg@10/unseen" in card


# --- the hub -----------------------------------------------------------------------------------------------


def test_the_hub_reads_the_front_matter(gru4rec):
    card = ModelCard(card_of(gru4rec))
    assert card.data.library_name == "rediffuse"
    assert "gru4rec" in card.data.tags
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["ndcg@10 (seen items kept)"] == round(gru4rec.validation["ndcg@10"], 4)
    assert results["ndcg@10 (seen items filtered)"] == round(gru4rec.validation["ndcg@10/unseen"], 4)
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert card.text.strip().startswith("# gru4rec")


def test_a_card_without_metrics_has_front_matter_too():
    kind = models.Popularity
    card = ModelCard(model_card(kind, described(kind, kind.Config.build()), environment()))
    assert card.data.to_dict() == {
        "library_name": "rediffuse",
        "tags": ["recommendation", "recommender-system", "popularity"],
    }


def test_an_evaluation_adds_its_metrics_to_the_card(theat):
    before = without_front_matter(card_of(theat))
    result = rd.evaluate(theat, dataset())
    card = card_of(theat)
    assert without_front_matter(card).startswith(before.strip())
    table = card.split("## Test")[1]
    for policy_column, policy in ((1, "all"), (2, "unseen")):
        row = re.search(r"^\| ndcg@10 \|.*$", table, flags=re.MULTILINE).group().split("|")[1:-1]
        assert float(row[policy_column]) == pytest.approx(result["metrics"][policy]["ndcg@10"], rel=1e-3)
    read = ModelCard(card).data
    assert {found.dataset_split for found in read.eval_results} == {"test"}
    read_run(theat.path)  # verifies: the manifest lists the new card
    rd.evaluate(theat, dataset())
    assert card_of(theat).count("## Test") == 1


def test_another_protocol_leaves_the_card(theat):
    before = card_of(theat)
    rd.evaluate(theat, dataset(), protocol="sampled-10")
    assert card_of(theat) == before


def test_sections_keep_the_front_matter(theat):
    card = with_section(card_of(theat), "Index", ["- one"])
    config = read_run(theat.path).config
    result = rd.evaluate(theat, dataset())
    card = with_test(card, config, result)
    assert ModelCard(card).data.library_name == "rediffuse"
    assert [card.count(f"\n## {name}\n") for name in ("Index", "Test", "Options")] == [1, 1, 1]
    assert yaml.safe_load(card.split("---\n")[1])["metrics"]
