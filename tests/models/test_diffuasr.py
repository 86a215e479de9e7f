"""DiffuASR and `rd.augment`: rounding, guidance, training, and what synthetic interactions may depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.fitting import steps, training_data

import rediffuse as rd
from rediffuse.batching.continuations import Continuations
from rediffuse.data.histories import Histories
from rediffuse.data.split import Split
from rediffuse.diffusion import ddim, space_timesteps
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError
from rediffuse.models.diffuasr import DiffuASR, round_to_items
from rediffuse.testing import synthetic_interactions

ITEMS = 20
SMALL = {
    **{"n": 3, "channels": 8, "epochs": 2, "generator_epochs": 2, "batch_size": 64, "precision": "fp32"},
    "classifier": {"embedding_size": 16, "epochs": 2, "blocks": 1, "batch_size": 64},
    "backbone_options": {"embedding_size": 16},
}


def build(**options) -> DiffuASR:
    torch.manual_seed(0)
    return DiffuASR(DiffuASR.Config.build(None, SMALL | options), ITEMS, 30).eval()


def ring(users: int = 40, length: int = 8, seed: int = 0) -> Histories:
    starts = np.random.default_rng(seed).integers(ITEMS, size=users)
    return Histories.from_lists([[(int(s) + step) % ITEMS for step in range(length)] for s in starts])


def trained(phases=("classifier", "generator"), epochs=(40, 60), **options) -> DiffuASR:
    """A model on the ring, trained without the loop."""
    model, data = build(**options), training_data(ring(200), ITEMS)
    model.fit(data)
    for phase, count in zip(phases, epochs, strict=False):
        model.begin_phase(phase, data)
        steps(model, data, count, learning_rate=0.01 if phase == "classifier" else 0.003)
    return model


@pytest.fixture(scope="module")
def guided() -> DiffuASR:
    return trained(guidance="cg", classifier=SMALL["classifier"] | {"temperature": 0.2})


# --- rounding ---------------------------------------------------------------------------------------------------


def test_an_items_own_vector_is_rounded_to_it():
    table = torch.randn(ITEMS, 16)
    x = table[torch.tensor([[3, 7], [7, 1]])] * torch.tensor([0.1, 50.0])[:, None]  # of any length
    nothing = torch.zeros(2, ITEMS, dtype=torch.bool)
    assert round_to_items(x, table, nothing).tolist() == [[3, 7], [7, 1]]


def test_rounding_is_the_nearest_by_cosine_that_is_allowed():
    torch.manual_seed(0)
    table, x = torch.randn(ITEMS, 8), torch.randn(6, 5, 8)
    forbidden = torch.rand(6, ITEMS) < 0.5
    for repeats in (True, False):
        found = round_to_items(x, table, forbidden, forbid_repeats=not repeats)
        for row in range(6):
            had: set[int] = set()
            for place in range(5):
                cosine = F.cosine_similarity(table, x[row, place][None], dim=1)
                excluded = set(torch.nonzero(forbidden[row]).flatten().tolist()) | (set() if repeats else had)
                best = max((i for i in range(ITEMS) if i not in excluded), key=lambda i: cosine[i].item())
                assert found[row, place] == best
                had.add(best)


def test_where_no_item_is_allowed_any_is_taken():
    found = round_to_items(torch.randn(1, 4, 8), torch.randn(3, 8), torch.ones(1, 3, dtype=torch.bool))
    assert set(found[0].tolist()) <= {0, 1, 2}
    assert len(set(round_to_items(torch.randn(1, 3, 8), torch.randn(3, 8), torch.zeros(1, 3) > 0)[0].tolist())) == 3


def test_a_temperature_draws_by_the_softmax_of_cosines():
    torch.manual_seed(0)
    table, x = torch.randn(4, 8), torch.randn(1, 1, 8).expand(4000, 1, 8)
    noise = RowNoise(torch.arange(4000), 0)
    found = round_to_items(x, table, torch.zeros(4000, 4) > 0, temperature=0.3, noise=noise)
    chances = torch.softmax(F.cosine_similarity(table, x[0]) / 0.3, dim=0)
    shares = torch.bincount(found[:, 0], minlength=4) / 4000
    assert (shares - chances).abs().max() < 0.04


# --- guidance ---------------------------------------------------------------------------------------------------


def sampled(model: DiffuASR, **options) -> torch.Tensor:
    before = model.config
    model.config = before.model_copy(update=options)
    rows = ring(16, 4, seed=3)
    flat, offsets = torch.from_numpy(rows.items.astype(np.int64)), torch.from_numpy(rows.offsets[:-1])
    items = flat.view(16, 4)
    with torch.no_grad():
        noise = RowNoise(row_keys(items, torch.full((16,), 4)), 0)
        found = model.sample(model.conditions(flat, offsets), items[:, 0], noise)
    model.config = before
    return found


@pytest.mark.parametrize("guidance", ["cf", "cg"])
def test_guidance_of_scale_zero_is_no_guidance(guided, guidance):
    assert torch.equal(sampled(guided, guidance=guidance, guidance_scale=0.0), sampled(guided, guidance="none"))
    assert not torch.allclose(sampled(guided, guidance=guidance, guidance_scale=2.0), sampled(guided, guidance="none"))


def test_classifier_free_guidance_is_the_published_combination(guided):
    """(1 + s) e_c - s e_u in every step (Ho & Salimans 2022, eq. 6)."""
    rows = ring(16, 4, seed=3)
    flat = torch.from_numpy(rows.items.astype(np.int64))
    condition = guided.conditions(flat, torch.from_numpy(rows.offsets[:-1]))
    noise = RowNoise(row_keys(flat.view(16, 4), torch.full((16,), 4)), 0)

    def combined(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        empty = guided.no_condition.expand(16, -1)
        return 2.5 * guided.generator(x, t, condition) - 1.5 * guided.generator(x, t, empty)

    with torch.no_grad():
        kept = space_timesteps(guided.config.diffusion_steps, "ddim5")
        expected = ddim(combined, noise(torch.empty(16, 3, 16)), guided.schedule, kept, prediction="eps")
    torch.testing.assert_close(sampled(guided, guidance="cf", guidance_scale=1.5), expected, atol=1e-4, rtol=1e-4)


def after_a_step(model: DiffuASR, scale: float, released: bool) -> torch.Tensor:
    """The classifier's loss after one DDIM step 200 -> 0 from points near real ones, guided or not."""
    rows = ring(400, 6, seed=9)
    items = torch.from_numpy(rows.items.astype(np.int64)).view(400, 6)
    x_0, first = model.vectors(items[:, :3]), items[:, 3]
    condition = model.conditions(items[:, 3:].reshape(-1), torch.arange(0, 1200, 3))
    torch.manual_seed(1)
    abar = model.schedule.alphas_cumprod[[200, 0]].float()
    x = abar[0].sqrt() * x_0 + (1 - abar[0]).sqrt() * torch.randn_like(x_0)
    t = torch.full((400,), 200)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(point, first).sum(), point)
    eps = model.generator(x, t, condition)
    if released:
        eps = eps + scale * (1 - model.schedule.alphas_cumprod[0]).sqrt().float() * gradient
    else:
        eps = eps - scale * (1 - abar[0]).sqrt() * gradient
    x_0_hat = (x - (1 - abar[0]).sqrt() * eps) / abar[0].sqrt()
    moved = abar[1].sqrt() * x_0_hat + (1 - abar[1]).sqrt() * eps
    return -model.log_prob(moved, first)


def test_one_guided_step_makes_the_wanted_item_more_likely(guided):
    """By more than four standard errors; the released sign makes it less likely."""
    cases = ((0.0, False), (1.0, False), (100.0, True))
    plain, right, wrong = (after_a_step(guided, scale, released).detach() for scale, released in cases)
    for change, sign in ((right - plain, -1), (wrong - plain, 1)):
        assert sign * change.mean() > 4 * change.std() / len(change) ** 0.5


def test_the_sampler_has_that_sign_and_the_released_one_if_asked(guided):
    """The first own item's log probability after guided samples, against that after unguided ones."""
    rows = ring(16, 4, seed=3)
    first = torch.from_numpy(rows.items.astype(np.int64)).view(16, 4)[:, 0]

    def log_prob(**options) -> float:
        with torch.no_grad():
            return guided.log_prob(sampled(guided, **options), first).mean().item()

    plain = log_prob(guidance="none")
    assert log_prob(guidance="cg", guidance_scale=1.0) > plain
    assert log_prob(guidance="cg", guidance_scale=300.0, fidelity="released") < plain


def test_presets_have_the_names_of_all_models():
    presets = DiffuASR.Config.presets
    assert set(presets) == {"paper", "released"}
    released = DiffuASR.Config.build("released")
    assert (released.fidelity, released.guidance, released.channels) == ("released", "cg", 8)
    assert DiffuASR.Config.build(None, presets["paper"]).fidelity == "corrected"


# --- training ---------------------------------------------------------------------------------------------------


def test_cuts_are_successive_items_and_what_followed():
    rows = Histories.from_lists([[0, 1, 2, 3, 4, 5], [6, 7], [8, 9, 10], [11, 12, 13, 14]])
    for anywhere in (True, False):
        seen = set()
        for seed in range(30):
            made = Continuations(
                rows, length=2, max_length=3, batch_size=2, anywhere=anywhere, rng=np.random.default_rng(seed)
            )
            assert sorted(user for index in range(len(made)) for user in made.users(index)) == [0, 2, 3]
            for index in range(len(made)):
                batch = made.get(index)
                ends = [*batch.offsets[1:].tolist(), len(batch.items)]
                for target, start, end in zip(batch.targets.tolist(), batch.offsets.tolist(), ends, strict=True):
                    following = batch.items[start:end].tolist()
                    assert 1 <= len(following) <= 3
                    assert target == [following[0] - 2, following[0] - 1]
                    seen.add(target[0])
        assert seen == ({0, 1, 2, 3, 8, 11, 12} if anywhere else {0, 8, 11})
    whole = Continuations(rows, length=2, max_length=3, batch_size=9, anywhere=True, rng=np.random.default_rng(0))
    assert sum(whole.get(0, rank, 2).rank_weight for rank in range(2)) == 2.0


@pytest.mark.slow
def test_it_learns_what_comes_before():
    """On a ring, the three items before a history are known: those before its first."""
    options = {"channels": 32, "multipliers": [1], "generator_batch": 32, "sampling_steps": 20}
    model = trained(epochs=(30, 40), guidance="none", **options)
    rows = ring(60, 4, seed=5)
    generated = model.generate(rows)
    expected = (rows.items[rows.offsets[:-1]][:, None] + np.array([-3, -2, -1])) % ITEMS
    right = [len(set(g) & set(e)) for g, e in zip(generated, expected, strict=True)]
    assert np.mean(right) > 0.85  # of three; by chance 0.56
    assert not any(set(generated[i]) & set(rows.row(i)) for i in range(len(rows)))


def test_each_phase_trains_its_own_model():
    model, data = build(), training_data(ring(30), ITEMS)
    model.fit(data)
    for phase in ("classifier", "generator", "backbone"):
        model.begin_phase(phase, data)
        expected = {id(p) for p in getattr(model, phase).parameters()}
        expected |= {id(model.no_condition)} if phase == "generator" else set()
        assert {id(p) for p in model.parameters() if p.requires_grad} == expected


# --- generation -------------------------------------------------------------------------------------------------


def test_what_is_generated_for_a_row_depends_on_that_row_only():
    model = build(sampling_temperature=0.1)
    rows = Histories.from_lists([[1, 2, 3], [4], [5] * 80, [], [6, 7]])
    together = model.generate(rows, seed=4)
    assert (together[3] == -1).all()
    assert (together[[0, 1, 2, 4]] >= 0).all()
    for row in (0, 1, 2, 4):
        assert (model.generate(rows.take(np.array([row])), seed=4)[0] == together[row]).all()
    assert (model.generate(rows, seed=5) != together).any()


def test_only_before_short_histories_if_asked():
    model = build(only_shorter_than=3)
    generated = model.generate(Histories.from_lists([[1, 2, 3], [4], [5, 6]]))
    assert (generated[0] == -1).all()
    assert (generated[1:] >= 0).all()


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.mark.parametrize("method", ["diffuasr", "asrep", "random", "random-seq"])
def test_synthetic_interactions_do_not_depend_on_validation_and_test_items(split, tmp_path, method):
    """Other items in the last two interactions of every user; training interactions select generators' weights."""
    data, subset = split.dataset, split.subset
    items = data.interactions.items.copy()
    items[subset != 0] = (items[subset != 0] + 11) % data.num_items
    other = dataclasses.replace(data, interactions=dataclasses.replace(data.interactions, items=items))
    quick = {"epochs": 6, "learning_rate": 0.01, "embedding_size": 16, "blocks": 1}
    config = {"diffuasr": {"classifier": quick, "generator_epochs": 2, "channels": 8}, "asrep": quick}.get(method)
    found = []
    for name, one in (("a", split), ("b", Split(other, split.name, {}, subset))):
        run = tmp_path / name if config else None
        augmented = rd.augment(one, method, n=3, run=run, config=config, seed=2).interactions
        found.append(augmented.items[augmented.synthetic])
        assert (augmented.without_synthetic().items == one.dataset.interactions.items).all()
    assert (found[0] == found[1]).all()
    assert len(found[0]) == 3 * data.num_users


def test_users_without_a_training_interaction_get_no_synthetic_ones():
    """Under a split by time some users are new."""
    data = synthetic_interactions()
    split = rd.split.global_time(data, quantile=0.1)
    new = split.training_view().train.lengths == 0
    assert new.any()
    for method in ("random", "random-seq"):
        made = rd.augment(split, method, n=3)
        assert (np.diff(made.interactions.offsets)[new] == data.interactions.lengths[new]).all()
        again = rd.augment(rd.split.global_time(made, quantile=0.1), "random", n=2)  # in place of the earlier ones
        assert len([note for note in again.report["notes"] if "synthetic interactions" in note]) == 1


def test_asrep_stops_when_no_item_is_left(tmp_path):
    data = synthetic_interactions(users=30, items=5)
    config = {"epochs": 1, "embedding_size": 8, "blocks": 1}
    split = rd.split.leave_one_out(data)
    made = rd.augment(split, "asrep", n=4, run=tmp_path / "run", config=config).interactions
    for user in range(30):
        row, synthetic = made.row(user), made.take(np.array([user])).synthetic
        own = split.training_view().train.row(user)
        assert len(set(row[synthetic])) == synthetic.sum() == min(4, 5 - len(set(own)))
        assert not set(row[synthetic]) & set(own)


def test_a_generator_is_used_again_with_its_own_seed_only(split, tmp_path):
    config = {"epochs": 1, "embedding_size": 8, "blocks": 1}
    rd.augment(split, "asrep", n=2, run=tmp_path / "run", config=config)
    with pytest.raises(RunError, match="another seed: was 0, is 1"):
        rd.augment(split, "asrep", n=2, run=tmp_path / "run", seed=1)


def test_a_time_limit_that_ends_a_generators_training_is_reported(split, tmp_path):
    classifier = SMALL["classifier"] | {"epochs": 1}
    config = {"classifier": classifier, "generator_epochs": 100_000, "channels": 8}
    with pytest.warns(RediffuseWarning, match="ended by its time limit"):
        rd.augment(split, "diffuasr", n=2, run=tmp_path / "run", config=config, max_minutes=0.05)
    with pytest.raises(TrainingError, match="with more minutes"):
        rd.augment(split, "diffuasr", n=2, run=tmp_path / "other", config=config, max_minutes=1e-6)


def test_a_run_is_not_resumed_on_other_data(split, tmp_path):
    options = {"config": {"epochs": 1, "embedding_size": 8, "blocks": 1}}
    rd.train("sasrec", split, tmp_path / "run", **options)
    longer = rd.split.leave_one_out(rd.augment(split, "random", n=2))
    with pytest.raises(RunError, match="another augmentation"):
        rd.train("sasrec", longer, tmp_path / "run", resume=True, **options)


def test_random_methods_take_any_items_or_own_ones(split):
    own, data = split.training_view().train, split.dataset
    anything = rd.augment(split, "random", n=5, seed=1)
    from_own = rd.augment(split, "random-seq", n=5, seed=1, only_shorter_than=6)
    for user in range(data.num_users):
        rows = []
        for made in (anything, from_own):
            row = made.interactions.take(np.array([user]))
            rows.append(row.items[row.synthetic])
        assert len(rows[0]) == 5
        assert len(rows[1]) == (5 if own.lengths[user] < 6 else 0)
        assert set(rows[1]) <= set(own.row(user))
    assert anything.report["augmentation"]["name"] == "random"
    with pytest.raises(ConfigError, match="trains no model"):
        rd.augment(split, "random", run="x")


def test_asrep_extends_histories_along_the_ring_backwards(tmp_path):
    data = synthetic_interactions(users=150, items=30)
    split = rd.split.leave_one_out(data)
    made = rd.augment(split, "asrep", n=2, run=tmp_path / "run", config={"epochs": 30, "embedding_size": 32}, seed=1)
    place = np.array([int(i[1:]) for i in data.item_ids.to_list()])
    rows = made.interactions
    steps = []
    for user in range(data.num_users):
        row = place[rows.row(user)[:3]]
        steps += [(row[1] - row[0]) % 30, (row[2] - row[1]) % 30]
    assert np.mean(np.array(steps) == 1) > 0.25  # by chance 0.03
    again = rd.augment(split, "asrep", n=2, run=tmp_path / "run", seed=1)  # the finished run is used
    assert (again.interactions.items == rows.items).all()
    with pytest.raises(RunError, match="embedding_size was 32, is 64"):
        rd.augment(split, "asrep", n=2, run=tmp_path / "run", config={"embedding_size": 64}, seed=1)
    with pytest.raises(RunError, match="a run of sasrec, not of diffuasr"):
        rd.augment(split, "diffuasr", n=2, run=tmp_path / "run")


def test_the_whole_model_trains_and_recommends_with_synthetic_interactions(split, tmp_path):
    run = rd.train("diffuasr", split, tmp_path / "run", config=SMALL, seed=1)
    model = rd.Recommender.load(run.path).model
    assert (model.synthetic.numpy() == model.generate(split.training_view().train, seed=1)).all()
    # The model reads known users' histories with their synthetic interactions, and those of others as they are.
    task = split.task("test")
    with_it, without = model.score(task.histories, users=task.users), model.score(task.histories)
    assert not torch.allclose(with_it, without)


def test_bad_options_are_refused_by_name(split, tmp_path):
    for options, said in (
        ({"n": 500}, "of the catalogue"),
        ({"classifier": {"embedding_size": 20}}, "embedding_size of 16"),
        ({"backbone": "ease"}, "not a backbone"),
        ({"backbone_options": {"epochs": 3}}, "option of diffuasr"),
        ({"sampling_steps": 2000}, "no whole stride"),
        ({"sampling_steps": 600}, "no whole stride"),
        ({"multipliers": (1, 0)}, "at least 1"),
        (
            {"guidance": "cg", "classifier": SMALL["classifier"] | {"max_length": 2}},
            "do not fit the classifier's window",
        ),
        ({"classifier": {"blocs": 1}}, "blocks"),
    ):
        with pytest.raises(ConfigError, match=said):
            rd.train("diffuasr", split, tmp_path / "run", config=SMALL | options)
    with pytest.raises(TrainingError, match="Lower n"):
        rd.train("diffuasr", split, tmp_path / "long", config=SMALL | {"n": 30})
    with pytest.raises(ConfigError, match="random-seq"):
        rd.augment(split, "random-sec")
    with pytest.raises(ConfigError, match="Give n of at least 1"):
        rd.augment(split, "random", n=0)
    with pytest.raises(ConfigError, match="Give a seed of at least 0"):
        rd.augment(split, "random", seed=-1)
    with pytest.raises(ConfigError, match="'n' cannot be set"):
        rd.augment(split, "diffuasr", run=tmp_path / "none", config={"n": 3})
    with pytest.raises(ConfigError, match="folder"):
        rd.augment(split, "diffuasr")
