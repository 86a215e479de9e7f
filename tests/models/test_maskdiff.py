"""maskdiff: what is masked, the weights 1/r, and what is BERT4Rec."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.fitting import training_data, two_histories

from rediffuse.data.histories import Histories
from rediffuse.models.baselines.bert4rec import BERT4Rec
from rediffuse.models.maskdiff import MaskDiff

ITEMS = 12
SMALL = {"embedding_size": 8, "blocks": 1, "heads": 2, "max_length": 6, "precision": "fp32"}


def build(kind: type[BERT4Rec] = MaskDiff, **options) -> BERT4Rec:
    torch.manual_seed(0)
    return kind(kind.Config.build(None, SMALL | options), ITEMS).eval()


def test_the_number_of_masked_items_is_uniform_and_so_is_which():
    model, real, draws = build(), torch.tensor([[True] * 5 + [False], [True] * 2 + [False] * 4]), 1500
    torch.manual_seed(1)
    masked = torch.stack([model.choose_masked(real) for _ in range(draws)])
    assert not masked[:, ~real].any()
    for row, length in enumerate((5, 2)):
        counts = torch.bincount(masked[:, row].sum(1), minlength=length + 1)[1:] / draws
        torch.testing.assert_close(counts, torch.full((length,), 1 / length), atol=0.05, rtol=0)
        share = masked[:, row, :length].float().mean(0)
        torch.testing.assert_close(share, torch.full((length,), (length + 1) / 2 / length), atol=0.05, rtol=0)


def test_the_shares_of_a_batch_are_spread_evenly():
    counts = build().choose_masked(torch.ones(50, 50, dtype=torch.bool)).sum(1).sort().values
    assert (counts - torch.arange(1, 51)).abs().max() <= 1


def test_the_loss_is_a_mean_over_all_items_in_expectation():
    """Each item has an error of its own, whatever is masked; that of the history is weighted by 1/r."""
    model, draws = build(mask_last=0.0), 600
    errors = torch.tensor([[3.0, 1.0, 8.0, 2.0], [5.0, 7.0, 0.0, 0.0]])
    torch.manual_seed(2)
    total = 0.0
    for _ in range(draws):
        masked = model.training_batch(two_histories(ITEMS))
        weights = model.encode(masked).weights
        assert weights is not None
        share = torch.bincount(masked.rows, minlength=2) / torch.tensor([4, 2])
        torch.testing.assert_close(weights, len(masked.rows) / 6 / share[masked.rows])
        total += (weights * errors[masked.rows, masked.positions]).mean().item()
    assert total / draws == pytest.approx(errors.sum().item() / 6, rel=0.08)


def test_items_that_may_not_be_targets_do_not_count():
    model = build(mask_last=0.0)
    short = dataclasses.replace(two_histories(ITEMS), untrained=torch.tensor([2, 1]))
    for seed in range(20):
        torch.manual_seed(seed)
        masked = model.training_batch(short)
        places = list(zip(masked.rows.tolist(), masked.positions.tolist(), strict=True))
        assert set(places) <= {(0, 2), (0, 3), (1, 1)}
        weights = model.encode(masked).weights
        assert weights is not None
        counts = [sum(row == of for of, _ in places) for row, _ in places]
        expected = [len(places) / 3 * (2 if row == 0 else 1) / n for (row, _), n in zip(places, counts, strict=True)]
        torch.testing.assert_close(weights, torch.tensor(expected))


def test_the_ablation_is_bert4rec():
    plain, ablation = build(BERT4Rec), build(diffusion=False)
    ablation.load_state_dict(plain.state_dict())
    data = training_data(Histories.from_lists([[1, 2, 3, 4], [5, 6]] * 8), ITEMS)
    losses = []
    for model in (plain, ablation):
        torch.manual_seed(3)
        losses.append(model.loss(model.batches(data, np.random.default_rng(0)).get(0)).item())
    assert losses[0] == losses[1]
    rows = Histories.from_lists([[7, 1, 3]])
    torch.testing.assert_close(plain.score(rows), ablation.score(rows))
