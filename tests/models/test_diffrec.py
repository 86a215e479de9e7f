"""DiffRec, T-DiffRec and L-DiffRec: weights of interactions, the loss, exact inference, whether they learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse
from tests.fitting import steps, training_data

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.models.diffrec import DiffRec, TDiffRec
from rediffuse.models.ldiffrec import LDiffRec, cluster_items, singular_item_vectors, split_width
from rediffuse.models.sampling import Sampling
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.testing import synthetic_interactions

ITEMS = 40
SMALL = {"hidden_sizes": (8, 24), "batch_size": 32, "precision": "fp32", "time_size": 6}


def build(kind=DiffRec, items: int = ITEMS, preset: str | None = None, **options) -> DiffRec:
    torch.manual_seed(0)
    own = SMALL | ({"latent_size": 12} if kind is LDiffRec else {}) if preset is None else {}
    return kind(kind.Config.build(preset, own | options), items).eval()


def some_rows(users: int = 30, items: int = ITEMS, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    return Histories.from_lists([rng.integers(items, size=rng.integers(1, 12)).tolist() for _ in range(users)])


def train(model, rows: Histories, epochs: int, learning_rate: float = 0.005) -> None:
    data = training_data(rows, model.num_items)
    model.fit(data)
    steps(model, data, epochs, learning_rate)
    model.prepare()


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fidelity", "expected"), [("corrected", 0.9), ("released", 0.2)])
def test_the_weight_of_an_only_interaction(fidelity, expected):
    model = build(TDiffRec, fidelity=fidelity, weight_min=0.2, weight_max=0.9)
    rows = model.rows(Histories.from_lists([[5], [1, 2]])).toarray()
    assert rows[0, 5] == pytest.approx(expected)
    assert rows[1, [1, 2]] == pytest.approx([0.2, 0.9])


def test_a_repeated_item_has_its_latest_weight():
    model = build(TDiffRec, weighting="order", weight_min=0.1)
    found = model.rows(Histories.from_lists([[3, 5, 3, 7]])).toarray()[0]
    assert found[[3, 5, 7]] == pytest.approx([0.7, 0.4, 1.0])
    assert np.count_nonzero(found) == 3


@pytest.mark.parametrize("kind", [DiffRec, TDiffRec, LDiffRec])
def test_weights_with_a_half_life(kind):
    model = build(kind, weighting="half_life_events", half_life=2.0, weight_max=0.8)
    assert not model.reads_times
    found = model.rows(Histories.from_lists([[3, 5, 7]])).toarray()[0]
    assert found[[3, 5, 7]] == pytest.approx([0.4, 0.8 * 2**-0.5, 0.8])
    by_days = build(kind, weighting="half_life_days")
    assert by_days.reads_times
    with pytest.raises(DataError, match="weighting=half_life_days needs the times"):
        by_days.check(training_data(some_rows(), ITEMS))


# --- the loss ------------------------------------------------------------------------------------------------


def test_errors_are_weighted_by_differences_of_the_signal_to_noise_ratio():
    """The weights of the variational bound: SNR_{t-1} - SNR_t with SNR = abar / (1 - abar), and 1 at t = 0."""
    model = build(TDiffRec, items=4, preset="paper:toys")
    x_0, nothing = torch.tensor([[1.0, 0, 0, 1]]), torch.zeros(1, 4)
    # 1 - abar_t is linear from noise_scale * noise_min = 5e-6 in ten steps to 5e-5; then the first beta is set to 1e-5.
    abar_0 = 1 - 1e-5
    abar_1 = abar_0 * (1 - 1e-5) / (1 - 5e-6)
    weight = abar_0 / (1 - abar_0) - abar_1 / (1 - abar_1)
    assert weight == pytest.approx(33333.2222, rel=1e-6)
    found = model.weighted_errors(x_0, nothing, nothing, torch.tensor([1]), nothing)
    assert found.item() == pytest.approx(0.5 * weight, rel=1e-6)  # the mean squared error of zeros is 2 / 4
    assert model.weighted_errors(x_0, nothing, nothing, torch.tensor([0]), nothing).item() == pytest.approx(0.5)


def test_the_error_of_a_network_that_predicts_noise_is_that_of_the_row_at_the_first_step():
    model = build(items=4, prediction="eps", diffusion_steps=3)
    x_0, noise, t = torch.tensor([[1.0, 0, 0, 1]] * 3), torch.randn(3, 4), torch.arange(3)
    signal, loud = model.schedule.sqrt_alphas_cumprod, model.schedule.sqrt_one_minus_alphas_cumprod
    x_t = (signal[t, None] * x_0 + loud[t, None] * noise).float()
    output = torch.randn(3, 4)
    found = model.weighted_errors(x_0, x_t, noise, t, output)
    x_0_hat = (x_t[0] - loud[0] * output[0]) / signal[0]
    assert found[0].item() == pytest.approx(((x_0[0] - x_0_hat) ** 2).mean().item() / 2, rel=1e-5)
    abar, before, beta = (
        model.schedule.alphas_cumprod[2],
        model.schedule.alphas_cumprod[1],
        model.schedule.betas[2],
    )
    weight = (1 - abar) / ((1 - before) ** 2 * (1 - beta))
    assert found[2].item() == pytest.approx((weight * ((noise[2] - output[2]) ** 2).mean()).item(), rel=1e-5)


def test_the_sampler_is_updated_with_weighted_losses_and_its_importance_is_undone():
    model = build(diffusion_steps=3, noise_scale=0.5).train()
    rows = some_rows(200)
    for epoch in range(6):
        batches = model.batches(training_data(rows, ITEMS), np.random.default_rng(epoch))
        for index in range(len(batches)):
            model.loss(batches.get(index))
    assert (model.timesteps.counts == 10).all()
    # SNR weights of later steps are far above 1, so they have the larger losses and are drawn more often.
    chances = model.timesteps.probabilities()
    assert chances[1] > 10 * chances[0]
    t, importance = model.timesteps.sample(1000)
    torch.testing.assert_close(importance.double(), 1 / (3 * chances[t]), rtol=1e-5, atol=0)


def test_the_loss_is_unbiased_over_timesteps_and_without_weights_a_plain_error():
    model = build(diffusion_steps=2, snr_weighting=False, timestep_sampler="uniform", noise_scale=1e-3, dropout=0.0)
    batch = model.batches(training_data(some_rows(8), ITEMS), np.random.default_rng(0)).get(0)
    torch.manual_seed(0)
    losses = [model.loss(batch).item() for _ in range(200)]
    x_0 = batch.dense(ITEMS)
    at = [(x_0 - model.denoiser(x_0, torch.full((len(batch),), t))).square().mean().item() for t in (0, 1)]
    assert np.mean(losses) == pytest.approx(np.mean(at), rel=0.01)


# --- inference -----------------------------------------------------------------------------------------------

FAMILY = (DiffRec, TDiffRec, LDiffRec)
DATA_SETS = [(kind, preset) for kind in FAMILY for preset in kind.Config.presets if ":" in preset]


def test_presets_have_the_names_of_all_models_and_of_the_papers_data_sets():
    papers = {"diffrec": "amazon-book yelp ml-1m", "tdiffrec": "amazon-book yelp toys douban-book"}
    papers["ldiffrec"] = papers["diffrec"]
    for kind in FAMILY:
        expected = {"paper", "released", *(f"paper:{name}" for name in papers[kind.name].split())}
        assert set(kind.Config.presets) == expected
        assert {name for name in expected if kind.Config.build(name).fidelity == "released"} == {"released"}


@pytest.mark.parametrize(("kind", "preset"), DATA_SETS, ids=[f"{kind.name}-{preset}" for kind, preset in DATA_SETS])
def test_hidden_space_is_exact_in_the_configurations_of_data_sets(kind, preset):
    model, rows = build(kind, 300, preset), some_rows(20, 300)
    model.fit(training_data(rows, 300))
    model.prepare()
    assert model.in_hidden_space
    fast = model.score_known(rows, np.full(20, -1), Sampling())
    if kind is LDiffRec:
        x = torch.from_numpy(model.rows(rows).toarray())
        weight = model.encoder * model.within_clusters()
        mean = torch.tanh(x @ weight + model.encoder_bias)[:, : model.config.latent_size]
        plain = model.decoder(model.plain_chain(mean))
    else:
        plain = model.plain_chain(torch.from_numpy(model.rows(rows).toarray()))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"normalize": True}, {"prediction": "eps"}])
@pytest.mark.parametrize("kind", [DiffRec, LDiffRec])
def test_other_networks_run_the_plain_chain(kind, options):
    model, rows = build(kind, **options), some_rows()
    model.fit(training_data(rows, ITEMS))
    model.prepare()
    assert not model.in_hidden_space
    model.reverse = None  # must not be called
    found = model.score_known(rows, np.full(len(rows), -1), Sampling())
    if kind is DiffRec:  # by hand, a step at a time
        x = torch.from_numpy(model.rows(rows).toarray())
        for t in reversed(range(model.config.diffusion_steps)):
            output = model.denoiser(x, torch.full((len(x),), t))
            signal, loud = (
                getattr(model.schedule, f"sqrt_{name}")[t].item()
                for name in ("alphas_cumprod", "one_minus_alphas_cumprod")
            )
            x_0 = output if "normalize" in options else (x - loud * output) / signal
            c1, c2 = model.schedule.posterior_mean_coef1[t].item(), model.schedule.posterior_mean_coef2[t].item()
            x = c1 * x_0 + c2 * x
        torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(found).all()


def test_changed_weights_are_used_after_prepare():
    model, rows = build(), some_rows()
    model.prepare()
    before = model.score_known(rows, np.full(len(rows), -1), Sampling())
    with torch.no_grad():
        model.denoiser.first.mul_(1.5)
    model.prepare()
    after = model.score_known(rows, np.full(len(rows), -1), Sampling())
    assert not torch.allclose(before, after)
    plain = model.plain_chain(torch.from_numpy(model.rows(rows).toarray()))
    torch.testing.assert_close(after, plain, atol=1e-5, rtol=0)


def test_the_ablation_is_one_pass_without_noise():
    model, rows = build(diffusion=False), some_rows()
    model.prepare()
    x = torch.from_numpy(model.rows(rows).toarray())
    expected = model.denoiser(x, torch.zeros(len(x), dtype=torch.int64))
    torch.testing.assert_close(model.score_known(rows, np.full(len(rows), -1), Sampling()), expected, atol=1e-5, rtol=0)
    batch = model.batches(training_data(rows, ITEMS), np.random.default_rng(0)).get(0)
    dense = batch.dense(ITEMS)
    zero = torch.zeros(len(batch), dtype=torch.int64)
    assert model.loss(batch).item() == pytest.approx((dense - model.denoiser(dense, zero)).square().mean().item())
    assert model.timesteps.steps == 1


def test_item_numbers_do_not_matter():
    """Items under other numbers, with weights permuted likewise, have the same scores."""
    model, rows = build(), some_rows()
    model.prepare()
    scores = model.score_known(rows, np.full(len(rows), -1), Sampling())
    order = np.random.default_rng(0).permutation(ITEMS)
    moved = dataclasses.replace(rows, items=np.argsort(order)[rows.items].astype(np.int32))
    with torch.no_grad():
        for tensor in (model.denoiser.first, model.denoiser.last.weight, model.denoiser.last.bias):
            tensor.copy_(tensor[torch.from_numpy(order)].clone())
    model.prepare()
    again = model.score_known(moved, np.full(len(rows), -1), Sampling())
    torch.testing.assert_close(again, scores[:, torch.from_numpy(order)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [DiffRec, TDiffRec, LDiffRec])
@pytest.mark.parametrize("diffusion", [True, False])
def test_it_learns_two_circles_of_items(kind, diffusion):
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(ITEMS // 2)[:8] + ITEMS // 2 * (user % 2)).tolist() for user in range(120)]
    dropout = {"input_dropout": 0.5} if kind is LDiffRec else {}
    model = build(kind, diffusion=diffusion, **dropout)
    train(model, Histories.from_lists(rows), 60)
    scores = model.score(Histories.from_lists([[0, 1, 2], [ITEMS - 1, ITEMS - 2, ITEMS - 3]])).clone()
    scores[0, [0, 1, 2]] = scores[1, [-1, -2, -3]] = -torch.inf
    best = scores.topk(10, dim=1).indices
    assert (best[0] < ITEMS // 2).float().mean() >= 0.9
    assert (best[1] >= ITEMS // 2).float().mean() >= 0.9


def test_items_unseen_in_training_and_users_with_one_interaction():
    model, rows = build(), Histories.from_lists([[1], [2, 3], [4, 4, 4], []])
    train(model, rows, 3)
    scores = model.score(Histories.from_lists([[30], [1], [1, 30], []]))
    assert torch.isfinite(scores).all()
    assert torch.equal(scores[3], model.popularity)


# --- times in the run folder ---------------------------------------------------------------------------------


def test_a_run_stores_the_times_of_known_users(tmp_path):
    data = synthetic_interactions()
    interactions = data.interactions
    uneven = (interactions.times - 1_000_000) ** 2  # without the square, weights by time are those by order
    interactions = dataclasses.replace(interactions, times=uneven)
    split = rd.split.leave_one_out(dataclasses.replace(data, interactions=interactions))
    options = {"epochs": 3, "hidden_sizes": [16], "weighting": "interval", "validate_every": 1}
    run = rd.train("tdiffrec", split, tmp_path / "run", config=options, seed=1)
    recommender = rd.Recommender.load(run.path)
    known = split.task("test")
    known = dataclasses.replace(known, histories=split.dataset.interactions.take(known.users))  # all of them
    users = split.dataset.user_ids.gather(known.users).to_list()
    found = recommender.recommend(users=users, k=5)
    scores = recommender.model.score(known.histories).clone()
    scores[known.histories.owners, known.histories.items.astype(np.int64)] = -torch.inf
    best = scores.topk(5, dim=1).indices.numpy().ravel()
    assert found["item_id"].to_list() == split.dataset.item_ids.gather(best).to_list()
    without = dataclasses.replace(known.histories, times=None)
    assert not torch.allclose(recommender.model.score(without), recommender.model.score(known.histories))
    # A history that is given with the request has an order and no times.
    rows = [split.dataset.item_ids.gather(known.histories.row(i)).to_list() for i in range(len(users))]
    by_order = recommender.model.score(without).clone()
    by_order[known.histories.owners, known.histories.items.astype(np.int64)] = -torch.inf
    listed = recommender.recommend(histories=rows, k=5)["item_id"].to_list()
    assert listed == split.dataset.item_ids.gather(by_order.topk(5, dim=1).indices.numpy().ravel()).to_list()


def test_times_do_not_change_the_answers_of_models_that_do_not_read_them(tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions())
    run = rd.train("diffrec", split, tmp_path / "run", config={"epochs": 1, "hidden_sizes": [8]})
    assert pl.read_parquet(run.path / "users.parquet").columns == ["user_id", "history", "times", "held_out"]
    recommender = rd.Recommender.load(run.path)
    assert recommender.resolve_users([split.dataset.user_ids[0]], None)[2].times is None


# --- L-DiffRec -----------------------------------------------------------------------------------------------


def test_latent_dimensions_are_divided_in_proportion_to_clusters():
    assert split_width(np.array([1000, 1810]), 300) == [106, 194]  # 300 * 1000 / 2810 = 106.8, rounded down; the rest
    assert split_width(np.array([1, 1, 998]), 10) == [1, 1, 8]
    assert split_width(np.array([998, 1, 1]), 3) == [1, 1, 1]


def test_clusters_are_those_of_the_data_and_never_empty():
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(20)[:8] + 20 * (user % 2)).tolist() for user in range(100)]
    labels = cluster_items(singular_item_vectors(Histories.from_lists(rows), 40), 2)
    assert len(set(labels[:20])) == len(set(labels[20:])) == 1
    assert labels[0] != labels[-1]
    few = cluster_items(singular_item_vectors(Histories.from_lists([[0, 1], [0, 1]]), 5), 4)
    assert set(few) == {0, 1, 2, 3}


def test_items_are_clustered_by_vectors_of_ones_own():
    rng = np.random.default_rng(0)
    own = rng.integers(2, size=ITEMS)
    vectors = [[10.0 * side + noise, noise] for side, noise in zip(own, rng.normal(size=ITEMS), strict=True)]
    table = pl.DataFrame({"item_id": range(ITEMS), "vector": vectors})
    rows = some_rows(60)
    data = dataclasses.replace(training_data(rows, ITEMS), item_table=table)
    model = build(LDiffRec, cluster_by="features")
    model.check(data)
    model.fit(data)
    found = model.item_cluster.numpy()
    assert (found == found[0]).tolist() == (own == own[0]).tolist()
    by_interactions = build(LDiffRec)
    by_interactions.fit(data)
    assert not torch.equal(by_interactions.item_cluster, model.item_cluster)
    assert LDiffRec.reads_tables_with(model.config)
    assert not LDiffRec.reads_tables_with(by_interactions.config)


def test_vectors_to_cluster_by_must_exist():
    model = build(LDiffRec, cluster_by="features")
    with pytest.raises(DataError, match="clusters the vectors of the item table, and it has none"):
        model.check(training_data(some_rows(), ITEMS))
    table = pl.DataFrame({"item_id": range(ITEMS), "vector": [[1.0, 2.0]] * (ITEMS - 3) + [None] * 3})
    with pytest.warns(RediffuseWarning, match="3 of 40 items have no vector"):
        model.check(dataclasses.replace(training_data(some_rows(), ITEMS), item_table=table))


def test_encoders_stay_within_their_clusters():
    model, rows = build(LDiffRec, clusters=3), some_rows(60)
    train(model, rows, 3)
    inside = model.within_clusters()
    assert inside.float().mean() < 0.9
    x = torch.zeros(2, ITEMS)
    x[1, 0] = 1
    batch = model.rows(Histories.from_lists([[0]]))
    assert isinstance(batch, sparse.csr_array)
    plain = torch.tanh(x @ (model.encoder * inside) + model.encoder_bias)
    moved = (plain[1] - plain[0]).abs() > 1e-9
    assert (~moved | inside[0]).all()
    assert moved.any()


@pytest.mark.parametrize("fidelity", ["corrected", "released"])
def test_what_the_decoder_is_trained_to_give(fidelity, monkeypatch):
    """Released: the row after its dropout. If dropout leaves nothing, nothing is to be reconstructed."""
    monkeypatch.setattr("rediffuse.models.ldiffrec.dropout", lambda values, *_: torch.zeros_like(values))
    model, data = build(LDiffRec, fidelity=fidelity, diffusion=False), training_data(some_rows(8), ITEMS)
    model.fit(data)
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    torch.manual_seed(0)
    found = model.loss(batch).item()  # the weight of the divergence is 0 in the first step
    torch.manual_seed(0)
    mean, log_variance = model.encode(batch, torch.zeros_like(batch.values))
    z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
    clean = -(torch.log_softmax(model.decoder(z), dim=1) * batch.dense(ITEMS)).sum() / len(batch)
    assert found == pytest.approx({"corrected": clean.item(), "released": 0.0}[fidelity], rel=1e-5)


def test_the_denoiser_has_its_own_learning_rate():
    model = build(LDiffRec, diffusion_rate=0.2)
    rest, denoiser = model.parameter_groups()
    assert denoiser["learning_rate_factor"] == 0.2
    assert sum(map(len, (rest["params"], denoiser["params"]))) == len(list(model.parameters()))


def test_too_many_clusters_are_refused():
    with pytest.raises(ConfigError, match="lower clusters"):
        build(LDiffRec, clusters=13)


# --- real data -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real_data
def test_diffrec_reaches_the_published_range(tmp_path):
    """Other papers report a Recall@20 of .1763 on the test subset of this split."""
    data = public_dataset("diffrec-ml1m-clean")
    run = rd.train("diffrec", rd.split.given(data), tmp_path / "run", preset="paper:ml-1m")
    result = rd.evaluate(run.path, data, protocol="paper:diffrec")
    assert result["metrics"]["unseen"]["recall@20"] > 0.170
