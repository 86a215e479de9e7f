"""PreferDiff and DreamRec: the loss, the centroids and the guided chain, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data

from rediffuse.data.histories import Histories
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError
from rediffuse.models.preferdiff import PreferDiff, PreferDiffConfig

ITEMS = 10
# Two targets in a batch, so the centroid of the others is the other one.
ROWS = Histories.from_lists([[1, 2], [4, 7]])
SMALL = {"embedding_size": 6, "blocks": 1, "heads": 2, "max_length": 4, "dropout": 0.0, "precision": "fp32"}
STEPS = {"diffusion_steps": 30, "sampling_steps": 3}


def build(preset: str | None = None, **options) -> PreferDiff:
    torch.manual_seed(0)
    return PreferDiff(PreferDiffConfig.build(preset, SMALL | STEPS | options), ITEMS).eval()


def signals() -> np.ndarray:
    """abar of the linear schedule, whose betas are scaled to 1,000 steps."""
    return np.cumprod(1 - np.linspace(1e-4 * 1000 / 30, 0.02 * 1000 / 30, 30))


def recorded(model: PreferDiff) -> list[tuple[np.ndarray, ...]]:
    """Inputs and outputs of the network, as it is called."""
    calls, network = [], model.estimate

    def estimate(x_t, h, t):
        found = network(x_t, h, t)
        calls.append(tuple(x.detach().numpy() for x in (x_t, h, t, found)))
        return found

    model.estimate = estimate
    return calls


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("preset", [None, "dreamrec"])
def test_the_loss_is_that_of_the_paper(preset, normalize):
    own = {"preference_weight": 0.3, "preference_scale": 2.0} if preset is None else {}
    model = build(preset, normalize=normalize, history_dropout=0.0, guidance=0.0, **own)
    batch, calls = model.batches(training_data(ROWS, ITEMS), np.random.default_rng(0)).get(0), recorded(model)
    loss = model.loss(batch).item()
    targets = model.item_embedding.weight.detach().numpy()[batch.targets]
    targets = unit(targets) * 6**0.5 if normalize else targets
    errors = []
    for (x_t, _, t, found), x_0 in zip(calls, (targets, targets[::-1]), strict=preset is None):
        noise = (x_t - signals()[t, None] ** 0.5 * x_0) / (1 - signals()[t, None]) ** 0.5
        assert np.abs(noise).max() < 5
        cosines = (unit(x_0) * unit(found)).sum(1)
        errors.append((1 - cosines) ** 2 if preset is None else np.square(x_0 - found).mean(1))
    if preset is None:
        wanted, other = errors
        assert (calls[0][2] == calls[1][2]).all()  # both are noised to the same step
        expected = 0.3 * wanted + 0.7 * np.log1p(np.exp(2.0 * (wanted - other)))
    else:
        (expected,) = errors
    assert loss == pytest.approx(expected.mean(), rel=1e-4)


def test_a_centroid_is_of_other_targets_alone():
    one_hot, model = torch.eye(5), build(negatives=3)
    shares = torch.stack([model.centroids(one_hot) for _ in range(500)])
    torch.testing.assert_close(shares.sum(2), torch.ones(500, 5))
    assert not shares[:, torch.arange(5), torch.arange(5)].any()
    assert set((3 * shares).round(decimals=4).unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
    torch.testing.assert_close(shares.mean(0), (1 - one_hot) / 4, atol=0.05, rtol=0)


def test_now_and_then_the_history_is_dropped():
    model = build(history_dropout=0.3)
    calls, rows = recorded(model), Histories.from_lists([[n % ITEMS, (n + 1) % ITEMS] for n in range(400)])
    model.loss(model.batches(training_data(rows, ITEMS), np.random.default_rng(0)).get(0))
    (_, h, _, _), (_, of_others, _, _) = calls
    assert (h == of_others).all()
    assert (h == model.no_history.detach().numpy()).all(1).mean() == pytest.approx(0.3, abs=0.08)


def test_the_chain_is_guided_ddim_from_noise():
    model = build(guidance=1.5)
    rows = Histories.from_lists([[3, 5], [2]])
    items, lengths = torch.tensor([[3, 5], [2, ITEMS]]), torch.tensor([2, 1])
    with torch.no_grad():
        h = model.encoder.last(model.tokens(items), lengths)
        x = RowNoise(row_keys(items, lengths), 9)(h).numpy()
        table, abar = model.item_embedding.weight[:ITEMS].numpy(), signals()
        for t, before in ((29, 14), (14, 0), (0, None)):
            times = torch.full((2,), t)
            with_h, without = (
                model.estimate(torch.from_numpy(x), of, times).numpy() for of in (h, model.no_history.expand(2, -1))
            )
            x_0 = unit(2.5 * with_h - 1.5 * without) * 6**0.5
            if before is None:
                break
            noise = (x - abar[t] ** 0.5 * x_0) / (1 - abar[t]) ** 0.5
            x = (abar[before] ** 0.5 * x_0 + (1 - abar[before]) ** 0.5 * noise).astype(np.float32)
        found = model.score(rows, seed=9)
    # Ranked by the cosine, in which the lengths of items do not count.
    np.testing.assert_allclose(found, unit(x_0) @ unit(table).T / 0.07, rtol=1e-3, atol=1e-3)


def test_the_history_is_read_at_the_scale_of_the_states():
    one, other = build(embedding_std=0.02), build(embedding_std=3.0)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.item_embedding.weight.mul_(50)
    items, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    before, after = (model.encoder.last(model.tokens(items), lengths) for model in (one, other))
    torch.testing.assert_close(before, after)
    assert one.tokens(items).square().mean().item() == pytest.approx(1.0, abs=0.1)


def test_the_ablation_draws_nothing_and_sees_no_target():
    model = build(diffusion=False)
    assert not model.stochastic
    assert model.max_sampling_steps is None
    rows = Histories.from_lists([[3, 5]])
    assert torch.equal(model.score(rows, seed=1), model.score(rows, seed=2))
    calls = recorded(model)
    model.loss(model.batches(training_data(ROWS, ITEMS), np.random.default_rng(0)).get(0))
    assert not any(x_t.any() or t.any() for x_t, _, t, _ in calls)


def test_guidance_needs_a_network_that_was_trained_without_histories():
    with pytest.raises(ConfigError, match="guidance=2 needs history_dropout above 0"):
        build(history_dropout=0.0)
    with pytest.raises(ConfigError, match="sampling_steps=31 is more than diffusion_steps=30"):
        build(sampling_steps=31)


def test_the_default_preference_leaves_popular_items_on_top():
    """Nothing but popularity tells what comes next. The centroid of many targets would point to popular items."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 41)
    rows = Histories.from_lists(rng.choice(40, (200, 5), p=shares / shares.sum()).tolist())
    data, ranks = training_data(rows, 40), []
    for negatives in (None, 64):
        torch.manual_seed(0)
        options = {"embedding_size": 16, "diffusion": False} | ({} if negatives is None else {"negatives": negatives})
        model = PreferDiff(PreferDiffConfig.build(None, SMALL | options), 40)
        model.fit(data)
        steps(model, data, 30, 0.02)
        with torch.no_grad():
            scores = model.score(Histories.from_lists([[30]]))[0]
        ranks.append(scores.argsort(descending=True).argsort()[:4].float().mean().item())
    assert ranks[0] < 8 < 20 < ranks[1]
