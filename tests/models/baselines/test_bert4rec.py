"""BERT4Rec's masking, and what the network sees of it."""

from __future__ import annotations

import pytest
import torch
from tests.fitting import two_histories

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.models.baselines.bert4rec import BERT4Rec

ITEMS = 12


def build(**options) -> BERT4Rec:
    torch.manual_seed(0)
    small = {"embedding_size": 8, "blocks": 1, "heads": 2, "max_length": 6, "precision": "fp32"}
    return BERT4Rec(BERT4Rec.Config.build(None, small | options), ITEMS).eval()


@pytest.mark.parametrize("last", [0.0, 0.5, 1.0])
def test_targets_are_the_masked_items_of_whole_histories(last):
    model, whole = build(mask_last=last, mask_share=0.5), torch.tensor([[1, 2, 3, 4], [5, 6, ITEMS, ITEMS]])
    counts = torch.zeros_like(whole)
    for seed in range(200):
        torch.manual_seed(seed)
        masked = model.training_batch(two_histories(ITEMS))
        assert masked.lengths.tolist() == [4, 2]
        assert torch.equal(masked.targets, whole[masked.rows, masked.positions])
        filled = masked.items.index_put((masked.rows, masked.positions), masked.targets)
        assert torch.equal(filled, whole)
        assert set(masked.rows.tolist()) == {0, 1}
        assert torch.equal(masked.interactions, torch.tensor([0, 4])[masked.rows] + masked.positions)
        counts[masked.rows, masked.positions] += 1
    assert not counts[1, 2:].any()
    if last == 1.0:
        assert counts.tolist() == [[0, 0, 0, 200], [0, 200, 0, 0]]
    else:
        assert (counts[0] > 30).all()


def test_a_masked_item_is_hidden_and_both_sides_are_seen():
    model = build()
    rows, places = torch.tensor([0]), torch.tensor([1])

    def at_the_mask(items: list[int]) -> torch.Tensor:
        row = torch.tensor([items])
        hidden = SequenceBatch(row.clone(), torch.tensor([4]), rows, places, row[0, 1:2], places)
        hidden.items[0, 1] = ITEMS
        return model.encode(hidden).vectors

    base = at_the_mask([1, 2, 3, 4])
    torch.testing.assert_close(at_the_mask([1, 9, 3, 4]), base)
    assert not torch.allclose(at_the_mask([1, 2, 3, 9]), base)
    assert not torch.allclose(at_the_mask([9, 2, 3, 4]), base)


def test_all_items_of_a_history_may_carry_the_repeat_bias_but_not_the_mask():
    model = build()
    torch.manual_seed(3)
    masked = model.training_batch(two_histories(ITEMS))
    rows, items, _ = model.repeat_bias(masked)
    for target, row in enumerate(masked.rows.tolist()):
        seen = {int(i) for i in masked.items[row] if i < ITEMS}
        assert {int(i) for i in items[rows == target]} == seen
