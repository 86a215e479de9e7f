"""BPR-MF and LightGCN: their formulas, users in training, and new users."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.bprmf import BPRMF
from rediffuse.models.baselines.lightgcn import LightGCN
from rediffuse.testing import synthetic_interactions

ROWS = Histories.from_lists([[0, 1, 2], [2, 3], [], [0, 0, 4]])
KINDS = {"bprmf": BPRMF, "lightgcn": LightGCN}


def build(name: str, **options):
    torch.manual_seed(0)
    model = KINDS[name](KINDS[name].Config.build(None, {"embedding_size": 3} | options), 6, len(ROWS))
    model.fit(TrainingData(ROWS, len(ROWS), 6, np.bincount(ROWS.items, minlength=6)))
    return model


def test_bprmf_is_an_inner_product_and_a_bias():
    model = build("bprmf")
    with torch.no_grad():
        model.item_bias.copy_(torch.arange(6.0))
    found = model.score(ROWS, users=np.arange(4))
    expected = model.user_embedding.weight[1] @ model.item_embedding.weight.T + torch.arange(6.0)
    torch.testing.assert_close(found[1], expected)
    assert torch.equal(found[2], model.popularity)  # no interaction in training and no history


def test_lightgcn_follows_the_paper():
    model = build("lightgcn", layers=2)
    model.prepare()
    neighbours = [{0, 1, 2}, {2, 3}, set(), {0, 4}]
    users_of = [{u for u in range(4) if i in neighbours[u]} for i in range(6)]
    user, item = [model.user_embedding.weight.detach()], [model.item_embedding.weight.detach()]
    for _ in range(2):
        user_next, item_next = torch.zeros(4, 3), torch.zeros(6, 3)
        for u in range(4):
            for i in neighbours[u]:
                norm = (len(neighbours[u]) * len(users_of[i])) ** 0.5
                user_next[u] += item[-1][i] / norm
                item_next[i] += user[-1][u] / norm
        user.append(user_next)
        item.append(item_next)
    torch.testing.assert_close(model.user_vectors, sum(user) / 3)
    torch.testing.assert_close(model.item_vectors, sum(item) / 3)
    torch.testing.assert_close(model.vectors()[0], model.user_vectors)

    # A new user with items 2 and 4 gets what the items send at each step.
    sent = sum(item[k][i] / (2 * len(users_of[i])) ** 0.5 for k in range(2) for i in (2, 4)) / 3
    torch.testing.assert_close(model.fold_in(Histories.from_lists([[4, 2, 2]]))[0], sent)


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_bpr_with_a_penalty(name):
    model = build(name, reg=0.5, negatives=3)
    batch = model.batches(TrainingData(ROWS, 4, 6, np.zeros(6, np.int64)), np.random.default_rng(0)).get(0)
    users, items = model.vectors()
    assert batch.negatives.shape == (len(batch.users), 3)
    own, table = users[batch.users], model.item_embedding.weight
    margin = torch.stack([(own * (items[batch.positives] - items[drawn])).sum(1) for drawn in batch.negatives.T])
    squares = (
        model.user_embedding.weight[batch.users].square().sum()
        + table[batch.positives].square().sum()
        + table[batch.negatives].square().sum() / 3
    )
    expected = torch.log1p(torch.exp(-margin)).mean() + 0.5 * squares / (2 * len(batch.users))
    torch.testing.assert_close(model.loss(batch), expected)


@pytest.mark.parametrize("name", KINDS)
def test_users_have_vectors_and_new_users_get_them_from_their_history(name, tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions(users=200, items=30))
    options = {"epochs": 30, "learning_rate": 0.02, "batch_size": 256, "reg": 1e-4}
    run = rd.train(name, split, tmp_path / "run", config=options)
    model = rd.Recommender.load(run.path).model
    view = split.training_view()
    users = np.flatnonzero(view.train.lengths)
    learned = model.score(view.train.take(users), users=users)
    folded_in = model.score(view.train.take(users))
    assert not torch.equal(learned, folded_in)

    def own_items_on_top(scores: torch.Tensor) -> float:
        shares = [
            np.isin(row[: len(set(own))], own).mean()
            for row, own in zip(scores.argsort(1, descending=True).numpy(), map(view.train.row, users), strict=True)
        ]
        return float(np.mean(shares))

    by_chance = np.mean([len(set(view.train.row(u))) / 30 for u in users])
    assert own_items_on_top(learned) > 2 * by_chance
    assert own_items_on_top(folded_in) > 2 * by_chance
