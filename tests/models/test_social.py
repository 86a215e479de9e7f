"""DiffNet, DiffNet++ and friends' popularity: small cases by hand, and properties of both models.

In the small case users 0 and 1 are friends, and 1 and 2. Users 0 to 3 have the items {0, 1}, {1}, {2} and {0, 2}. P and
Q are the embeddings of users and items.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from tests.fitting import steps, training_data
from torch.nn import functional as F

import rediffuse as rd
from rediffuse.data.dataset import SocialGraph
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError, RunError
from rediffuse.models import model_class
from rediffuse.models.base import TrainingData
from rediffuse.models.diffnet import DiffNet
from rediffuse.models.diffnetpp import DiffNetPP
from rediffuse.nn import standardised
from rediffuse.testing import synthetic_interactions

ROWS = Histories.from_lists([[0, 1], [1], [2], [0, 2]])
LINKS = [(0, 1), (1, 2), (2, 1)]
P = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]])
Q = torch.tensor([[1.0, 0], [0, 1], [1, -1]])
KINDS = {"diffnet": DiffNet, "diffnetpp": DiffNetPP}


def graph(links: list[tuple[int, int]]) -> SocialGraph:
    ends = np.array(links, dtype=np.int32).reshape(-1, 2)
    return SocialGraph(ends[:, 0], ends[:, 1])


def data_of(rows: Histories, items: int, links: list[tuple[int, int]], **tables) -> TrainingData:
    return dataclasses.replace(training_data(rows, items), social=graph(links), **tables)


def build(name: str, data: TrainingData | None = None, preset: str | None = None, **options):
    """A model of the small case, with P and Q, unless other data are given."""
    torch.manual_seed(0)
    small = data is None
    data = data_of(ROWS, 3, LINKS) if data is None else data
    config = KINDS[name].Config.build(preset, ({"embedding_size": 2} if small else {}) | options)
    model = KINDS[name](config, data.num_items, data.num_users)
    model.fit(data)
    if small:
        with torch.no_grad():
            model.user_embedding.weight.copy_(P)
            model.item_embedding.weight.copy_(Q)
    return model


def close(found: torch.Tensor, expected) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


# --- DiffNet ---------------------------------------------------------------------------------------------------


def test_sum_of_hops_by_hand():
    """As released, u = h^1 + h^2 + R q:

    h^1 = (0, 1)   (1, 0.5)   (0, 1)   (0, 0)      the means over friends of P
    h^2 = (1, 0.5) (0, 1)     (1, 0.5) (0, 0)      the means over friends of h^1
    R q = (0.5, 0.5) (0, 1)   (1, -1)  (1, -0.5)   the means over items of Q
    """
    model = build("diffnet", preset="released", embedding_size=2)
    users, items = model.vectors()
    close(users, [[1.5, 2], [1, 2.5], [2, 0.5], [1, -0.5]])
    close(users @ items.T, [[1.5, 2, -0.5], [1, 2.5, -1.5], [2, 0.5, 1.5], [1, -0.5, 1.5]])


def test_other_sums_by_hand():
    """h^2 + R q, and h^0 + h^1 + h^2 + R q, of the same small case."""
    close(build("diffnet", combine="last").vectors()[0], [[1.5, 1], [0, 2], [2, -0.5], [1, -0.5]])
    close(build("diffnet", combine="all").vectors()[0], [[2.5, 2], [1, 3.5], [3, 1.5], [3, -0.5]])


def test_without_hops_a_user_is_their_embedding_and_the_mean_of_their_items():
    close(build("diffnet", hops=0).vectors()[0], [[1.5, 0.5], [0, 2], [2, 0], [3, -0.5]])
    alone = build("diffnet", data_of(ROWS, 3, []), combine="hops", hops=2)
    torch.testing.assert_close(alone.vectors()[0], alone.interest @ alone.item_embedding.weight)


@pytest.mark.parametrize("combine", ["all", "hops", "last"])
@pytest.mark.parametrize("layer", ["relu", "sigmoid", "tanh"])
@torch.no_grad()
def test_the_papers_layers_by_hand(layer, combine):
    """h^k = s(W^k [mean over friends || own]), beside loops over users."""
    model = build("diffnet", layer=layer, combine=combine, hops=2)
    friends = {0: [1], 1: [0, 2], 2: [1], 3: []}
    s = {
        "relu": lambda x: x.clamp(min=0),
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "tanh": lambda x: 2 / (1 + (-2 * x).exp()) - 1,
    }[layer]
    states = [P]
    for number in range(2):
        weight, rows = model.layers[number].weight, []
        for user in range(4):
            pool = sum((states[-1][friend] for friend in friends[user]), torch.zeros(2)) / max(len(friends[user]), 1)
            rows.append(s(weight @ torch.cat((pool, states[-1][user]))))
        states.append(torch.stack(rows))
    liked = torch.stack([(Q[0] + Q[1]) / 2, Q[1], Q[2], (Q[0] + Q[2]) / 2])
    summed = {"all": states, "hops": states[1:], "last": states[2:]}[combine]
    users, items = model.vectors()
    torch.testing.assert_close(users, sum(summed) + liked, rtol=1e-5, atol=1e-6)
    assert torch.equal(items, Q)


def test_the_papers_layers_are_learned():
    data = ring()
    model = build("diffnet", data, layer="relu")
    before = [layer.weight.detach().clone() for layer in model.layers]
    losses = steps(model, data, 20, 0.01)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) * 0.8
    assert all(not torch.equal(layer.weight, weight) for layer, weight in zip(model.layers, before, strict=True))


def test_a_friends_own_vector_reaches_a_user_through_every_layer():
    """With layers a user reads their own last vector too, so even h^1 of a user with friends depends on themselves."""
    rows = Histories.from_lists([[0, 1], []])
    model = build("diffnet", data_of(rows, 3, [(0, 1)]), layer="tanh", combine="last", hops=1)
    assert model.has_user_state(np.array([0, 1])).tolist() == [True, True]


def test_directed_links():
    """User 0 links to user 1, so user 0 receives from user 1 and no user receives from user 0."""
    model = build("diffnet", data_of(ROWS, 3, [(0, 1)]), directed=True, hops=1, combine="last", embedding_size=2)
    assert model.diffused_users(P, torch.zeros(3, 2)).tolist() == [P[1].tolist(), [0, 0], [0, 0], [0, 0]]
    # User 0 has no interactions. A link to user 1, who has, makes half of their vector from a trained embedding; a link
    # from user 1 trains their own embedding. User 2 has no interactions either.
    for links, known in (([(0, 1)], True), ([(1, 0)], True), ([(2, 0)], False)):
        rows = Histories.from_lists([[], [0, 1], []])
        model = build("diffnet", data_of(rows, 3, links), directed=True, hops=1)
        assert model.has_user_state(np.array([0])).tolist() == [known]


def test_standardised_by_hand():
    """The mean is 3 and the standard deviation sqrt((4 + 1 + 0 + 9) / 4) = 1.870829, so 1 becomes
    0.2 (1 - 3) / 1.870829 = -0.213809."""
    close(standardised(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 0.2), [[-0.213809, -0.106904], [0, 0.320713]])
    assert not standardised(torch.full((3, 2), 7.0), 0.2).any()


def test_paper_yelp_is_the_released_program_chosen_by_what_it_reports():
    """A true item below n of the 37,377 others is expected below n / 37.377 of 1,000 sampled ones."""
    released, yelp = (DiffNet.Config.build(preset).model_dump() for preset in ("released", "paper:yelp"))
    assert yelp == released | {"metric": "recall@373"}
    others = np.random.default_rng(0).random((4000, 1000))
    hits = [((others < (rank - 1) / 37_377).sum(axis=1) < 10).mean() for rank in (200, 373, 600)]
    assert hits[0] > 0.9 > 0.6 > hits[1] > 0.4 > 0.1 > hits[2]


def test_as_released_the_embedding_of_a_user_without_friends_is_not_trained():
    model = build("diffnet", preset="released", embedding_size=2)
    model.vectors()[0].square().sum().backward()
    assert not model.user_embedding.weight.grad[3].any()
    assert model.user_embedding.weight.grad[:3].any(dim=1).all()


# --- DiffNet++ -------------------------------------------------------------------------------------------------

# theta = 0.1 (row + 1) - 0.2 column of every edge, and these weights of the gates' first layers, in both layers.
GATES = {
    "interest_gate": [0.1, 0.2, -0.1, 0.3],
    "social_gate": [0.3, -0.2, 0.1, 0.1],
    "item_gate": [0.5, -0.5],
    "item_users_gate": [0.2, 0.4],
}


def released() -> DiffNetPP:
    model = build("diffnetpp", preset="released", embedding_size=2)
    with torch.no_grad():
        for layer in model.layers:
            for attention in (layer.friend_attention, layer.interest_attention, layer.item_attention):
                graph = attention.graph
                attention.theta.set(0.1 * (graph.owners + 1) - 0.2 * graph.columns)
                attention.scale.fill_(1.0)
            for name, weights in GATES.items():
                gate = getattr(layer, name)
                gate.first.weight.copy_(torch.tensor([weights]))
                gate.second.weight.fill_(1.0)
    return model


def dense_attention(edges: list[list[int]]) -> torch.Tensor:
    """(rows, columns) softmax over each row's edges of exp(sigmoid(theta)); rows without an edge are zero."""
    binary = torch.tensor(edges, dtype=torch.float32)
    rows, columns = torch.arange(binary.shape[0])[:, None], torch.arange(binary.shape[1])
    weights = binary * torch.exp(torch.exp(torch.sigmoid(0.1 * (rows + 1) - 0.2 * columns)))
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


FRIENDS = dense_attention([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
INTEREST = dense_attention([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
ITEM_USERS = dense_attention([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]])


def raised(name: str, offset: float, *vectors: torch.Tensor) -> torch.Tensor:
    """(n, 1) exp(leaky(tanh(w . x))) + offset, x being the vectors side by side."""
    return F.leaky_relu(torch.tanh(torch.cat(vectors, 1) @ torch.tensor(GATES[name])), 0.2).exp()[:, None] + offset


def released_layer(users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer of the released program, on dense matrices."""
    social, liked = FRIENDS @ users, INTEREST @ items
    to_social, to_liked = raised("social_gate", 0.3, users, social), raised("interest_gate", 0.7, users, liked)
    received = (to_social * social + to_liked * liked) / (to_social + to_liked)
    of_item = ITEM_USERS @ users
    to_old, to_received = raised("item_gate", 1.0, items), raised("item_users_gate", 1.0, of_item)
    return (users + received) / 2, (to_old * items + to_received * of_item) / (to_old + to_received)


def test_released_attention_by_hand():
    """User 1 has friends 0 and 2 with theta 0.2 and -0.2, so exp(sigmoid(theta)) = 1.732966 and 1.568573, of which the
    softmax is (0.541006, 0.458994)."""
    layer = released().layers[0]
    close(layer.friend_attention(layer.friend_attention.graph.block(), P, P), [1, 0.541006, 0.458994, 1])
    for attention, dense in (
        (layer.friend_attention, FRIENDS),
        (layer.interest_attention, INTEREST),
        (layer.item_attention, ITEM_USERS),
    ):
        torch.testing.assert_close(attention(attention.graph.block(), P, P), dense[dense > 0])


def test_released_layers_by_dense_matrices():
    model = released()
    users, items = P, Q
    for layer in model.layers:
        interest, item_users = model.interest.block(), model.item_users.block()
        new_users = layer.update_users(users, users, items, model.friends.block(), interest)
        new_items = layer.update_items(items, users, item_users)
        users, items = released_layer(users, items)
        torch.testing.assert_close(new_users, users)
        torch.testing.assert_close(new_items, items)


def test_released_gates_of_a_user_by_hand():
    """For user 3, without friends: s = 0 and n = 0.542648 (1, 0) + 0.457352 (1, -1) = (1, -0.457352).

    Gate of items: tanh(0.1 * 2 - 0.1 * 1 - 0.3 * 0.457352) = tanh(-0.037206) = -0.037189, leaky: -0.007438,
    exp + 0.7 = 1.692590. Gate of friends: tanh(0.3 * 2) = 0.537050, exp + 0.3 = 2.010951. The items' share is
    1.692590 / 3.703541 = 0.457019: the rest of the weight is lost on friends that the user does not have.
    """
    model = released()
    friends, interest = model.friends.block(), model.interest.block()
    gates = model.layers[0].user_gates(P, FRIENDS @ P, INTEREST @ Q, friends, interest)
    assert gates[3, 1].item() == pytest.approx(0.457019, abs=1e-6)
    close(gates.sum(1), [1.0] * 4)


def test_released_scores_leave_out_u0():
    """u^1, u^2 and the embedding side by side; without features, u^0 is the embedding."""
    users, items = released().vectors()
    first = released_layer(P, Q)
    second = released_layer(*first)
    torch.testing.assert_close(users, torch.cat((first[0], P, second[0]), 1))
    torch.testing.assert_close(items, torch.cat((first[1], Q, second[1]), 1))


def test_released_scores_replace_u0_by_embedding_and_features():
    data = data_of(ROWS, 3, LINKS, item_table=pl.DataFrame({"vector": [[1.0, 2.0], [3.0, 6.0], [0.0, 1.0]]}))
    model = build("diffnetpp", data, preset="released", embedding_size=2, hops=1)
    embedding, projected = model.embedding_and_features("item")
    states = model.layer_outputs()
    users, items = model.vectors()
    torch.testing.assert_close(items, torch.cat((embedding, projected, states[1][1]), 1))
    of_users = model.user_embedding.weight
    torch.testing.assert_close(users, torch.cat((of_users, torch.zeros(4, 2), states[0][1]), 1))


def test_link_attention_is_bounded_and_equal_for_equal_numbers():
    model = build("diffnetpp", preset="released", embedding_size=2)
    attention = model.layers[0].interest_attention
    block = model.interest.block()
    attention.theta.set(torch.linspace(-50, 50, len(model.interest)))
    weights = attention(block, P, Q)
    assert (weights[:2].max() / weights[:2].min()) < 5.575
    attention.theta.set(torch.full((len(model.interest),), 0.3))
    torch.testing.assert_close(attention(block, P, Q), model.interest.values)


def test_the_corrected_layer_by_hand():
    model = build("diffnetpp", hops=1, attention="mean")
    layer = model.layers[0]
    users, items = model.vectors()
    social = torch.tensor([[0, 1.0], [1, 0.5], [0, 1], [0, 0]])
    liked = torch.tensor([[0.5, 0.5], [0, 1], [1, -1], [1, -0.5]])
    for user in range(4):
        to_friends = layer.social_gate(torch.cat((P[user], social[user]))[None])
        to_items = layer.interest_gate(torch.cat((P[user], liked[user]))[None])
        share = torch.sigmoid(to_friends - to_items)
        if user == 3:  # has no friends, so all of the weight is on the items
            share = 0.0
        new = P[user] + share * social[user] + (1 - share) * liked[user]
        torch.testing.assert_close(users[user], torch.cat((P[user], new)))
    item_users = torch.stack(((P[0] + P[3]) / 2, (P[0] + P[1]) / 2, (P[2] + P[3]) / 2))
    torch.testing.assert_close(items, torch.cat((Q, Q + item_users), dim=1))


# --- both ------------------------------------------------------------------------------------------------------

FORMS = [
    ("diffnet", {}),
    ("diffnet", {"combine": "hops", "hops": 3, "loss": "bce"}),
    ("diffnet", {"combine": "last"}),
    ("diffnet", {"layer": "relu"}),
    ("diffnet", {"layer": "tanh", "combine": "last", "hops": 3, "init": 1.0}),
    ("diffnet", {"layer": "sigmoid", "combine": "hops", "hops": 1}),
    ("diffnet", {"layer": "tanh", "hops": 0}),
    ("diffnetpp", {}),
    ("diffnetpp", {"fidelity": "released", "attention": "link", "loss": "squared"}),
    ("diffnetpp", {"fidelity": "released", "attention": "mean", "hops": 1, "fusion": "add"}),
    ("diffnetpp", {"fidelity": "released", "hops": 0}),
    ("diffnetpp", {"attention": "mean", "hops": 3}),
]


def ring(user_values: int = 4) -> TrainingData:
    """60 users, 40 items, and features of both: of items 5 values."""
    rng = np.random.default_rng(3)
    dataset = synthetic_interactions(friends=3)
    features = pl.DataFrame({"vector": rng.normal(size=(40, 5)).tolist()})
    user_features = pl.DataFrame({"vector": rng.normal(size=(61, user_values)).tolist()})
    data = training_data(dataset.interactions, 40)
    return dataclasses.replace(data, social=dataset.social, item_table=features, user_table=user_features)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_renumbering_permutes_the_vectors_and_a_link_given_twice_counts_once(name, options):
    data = ring()
    rng = np.random.default_rng(0)
    of_user, of_item = rng.permutation(61), rng.permutation(40)  # old number of each new number
    new_user, new_item = np.argsort(of_user), np.argsort(of_item)
    renumbered = TrainingData(
        Histories.from_lists([new_item[data.train.row(user)] for user in of_user]),
        61,
        40,
        data.popularity[of_item],
        data.item_table[of_item.tolist()],
        data.user_table[of_user.tolist()],
        SocialGraph(
            new_user[np.concatenate((data.social.target, data.social.source))].astype(np.int32),  # both ways
            new_user[np.concatenate((data.social.source, data.social.target))].astype(np.int32),
        ),
    )
    # The trained numbers of edges are drawn in the order of edges, so give all edges equal weights.
    options = options | ({"attention": "mean"} if options.get("attention") == "link" else {})
    model, other = build(name, data, **options), build(name, renumbered, **options)
    state = model.state_dict()
    for key, order in (("user_embedding.weight", of_user), ("item_embedding.weight", of_item), ("trained", of_user)):
        state[key] = state[key][torch.from_numpy(order)]
    state["popularity"] = state["popularity"][torch.from_numpy(of_item)]
    other.load_state_dict(state)
    users, items = model.vectors()
    new_users, new_items = other.vectors()
    torch.testing.assert_close(new_users, users[torch.from_numpy(of_user)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new_items, items[torch.from_numpy(of_item)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_a_batch_has_the_loss_and_gradients_of_the_whole_tables(name, options):
    data = ring()
    model = build(name, data, negatives=3, reg=0.0, batch_size=50, **options)
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    parameters = [p for p in model.parameters() if p.numel()]
    found = torch.autograd.grad(model.loss(batch), parameters, allow_unused=True, materialize_grads=True)
    users, items = model.vectors()
    user_vectors = users[batch.users]
    positive = (user_vectors * items[batch.positives]).sum(1)
    negative = torch.einsum("nd,nkd->nk", user_vectors, items[batch.negatives])
    expected = model.pair_loss(positive, negative)
    torch.testing.assert_close(model.loss(batch), expected)
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    for left, right in zip(found, gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_folding_in_equals_a_user_without_friends(name, options):
    """A user without links, whose embedding is the mean over all others."""
    options = options | ({"attention": "mean"} if options.get("attention") == "link" else {})
    rows = Histories.from_lists([[0, 1], [1, 3], [2], [0, 2]])
    features = pl.DataFrame({"vector": np.random.default_rng(0).normal(size=(4, 5)).tolist()})
    for tables in ({}, {"item_table": features}):
        data = data_of(rows, 4, [(0, 1), (1, 2)], **tables)
        model = build(name, data, embedding_size=3, **options)
        with torch.no_grad():  # user 3 is not part of the mean
            for weights in model.fusions.parameters():
                weights.normal_(generator=torch.Generator().manual_seed(1))
            model.user_embedding.weight[3] = model.user_embedding.weight[:3].mean(0)
            model.trained[3] = False
            model.prepare()
            found = model.fold_in(Histories.from_lists([[2, 0, 2]]))
        torch.testing.assert_close(found[0], model.user_vectors.value[3])


def test_features_are_used_unless_switched_off():
    data = ring()
    for name in KINDS:
        for fusion in ("add", "learned"):
            model = build(name, data, fusion=fusion)
            model.vectors()[0].sum().backward()
            assert model.projections["user"].weight.value.grad.any()
            assert (model.fusions["user"].weight.grad is not None) == (fusion == "learned")
        without = build(name, data, features=False)
        without.vectors()[0].sum().backward()
        assert without.projections["user"].weight.value.grad is None
    # Learned fusion starts as a sum.
    torch.manual_seed(1)
    added, learned = (build("diffnet", data, fusion=fusion) for fusion in ("add", "learned"))
    torch.testing.assert_close(added.vectors()[0], learned.vectors()[0])


@pytest.mark.parametrize("name", KINDS)
def test_one_projection_for_users_and_items(name):
    data = ring(user_values=5)
    model = build(name, data, embedding_size=8, shared_projection=True, fusion="add")
    weight = model.projection("item").weight.value
    assert weight is model.projection("user").weight.value
    assert len([1 for key in model.state_dict() if key.startswith("projections") and key.endswith("bias")]) == 1
    scale = model.config.feature_scale
    for side, table, embedding in (
        ("user", data.user_table, model.user_embedding),
        ("item", data.item_table, model.item_embedding),
    ):
        features = standardised(torch.tensor(table["vector"].to_list(), dtype=torch.float32), scale)
        expected = standardised(torch.sigmoid(features @ weight), scale)  # the bias starts at zero
        torch.testing.assert_close(model.fused(side), embedding.weight + expected)
    before = weight.detach().clone()
    steps(model, data, 2, 0.01)
    assert not torch.equal(model.projection("user").weight.value, before)


@pytest.mark.parametrize("name", KINDS)
def test_one_projection_needs_features_of_one_width(name):
    data, config = ring(), KINDS[name].Config.build(None, {"shared_projection": True})
    with pytest.raises(DataError, match="whose features have 4 and 5 values"):
        KINDS[name](config, 40, 61).check(data)
    for side in ("user_table", "item_table"):
        one = dataclasses.replace(data, **{side: None})
        model = build(name, one, shared_projection=True)
        model.check(one)
        assert model.vectors()[0].isfinite().all()


def test_features_of_one_side_keep_the_widths_equal():
    data = dataclasses.replace(ring(), user_table=None)
    for name, options in FORMS:
        users, items = build(name, data, **options).vectors()
        assert users.shape[1] == items.shape[1]


@pytest.mark.parametrize("name", KINDS)
def test_the_released_preset_learns(name):
    data = ring(user_values=5)
    model = build(name, data, preset="released", embedding_size=16, batch_size=64)
    losses = steps(model, data, 40, learning_rate=0.02)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.parametrize("name", [*KINDS, "friends"])
def test_self_links_are_no_links(name):
    data = data_of(ROWS, 3, [(0, 0), (2, 2)])
    with pytest.raises(DataError, match="the data have none"):
        model_class(name)(model_class(name).Config(), 3, 4).check(data)


@pytest.mark.parametrize("name", [*KINDS, "friends"])
def test_data_without_links_are_refused(name, tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions())
    with pytest.raises(DataError, match=r"links between \w+, and the data have none"):
        rd.train(name, split, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if name != "friends":
        rd.train(name, split, tmp_path / "run", config={"hops": 0, "epochs": 1})


@pytest.mark.parametrize("name", [*KINDS, "friends"])
def test_a_user_without_interactions_gets_recommendations_from_friends(name, tmp_path):
    """u_alone has no interactions, and one friend, u0."""
    data = synthetic_interactions(users=300, friends=8)
    options = {} if name == "friends" else {"epochs": 40, "batch_size": 256, "reg": 1e-3, "embedding_size": 32}
    run = rd.train(name, rd.split.leave_one_out(data), tmp_path / "run", config=options)
    recommender = rd.Recommender.load(run.path)
    friend = data.interactions.row(0)
    found = recommender.recommend(users=["u_alone"], k=10)
    popular = recommender.model.popularity
    assert found["item_id"].to_list() != [recommender.items["item_id"][int(i)] for i in popular.argsort()[-10:].flip(0)]
    scores = recommender.model.score(Histories.from_lists([[]]), users=np.array([300]))[0]
    of_friend = np.isin(np.arange(40), friend)
    ranks = scores.argsort(descending=True).argsort().numpy()
    assert ranks[of_friend].mean() < 0.6 * ranks[~of_friend].mean()


def test_users_within_the_hops_of_a_user_with_interactions_have_a_state():
    """A chain of users, of whom only the first has interactions.

    Two hops train the vectors of the first three, and less than half of the fourth user's.
    """
    rows = Histories.from_lists([[0, 1], [], [], [], [], []])
    model = build("diffnet", data_of(rows, 3, [(0, 1), (1, 2), (2, 3), (3, 4)]), hops=2)
    assert model.has_user_state(np.array([0, 1, 2, 3, 4, 5, -1])).tolist() == [True] * 3 + [False] * 4
    model.prepare()
    scores = model.score(Histories.from_lists([[], [], []]), users=np.array([1, 4, -1]))
    assert not torch.equal(scores[0], model.popularity)
    assert torch.equal(scores[1], model.popularity)
    assert torch.equal(scores[2], model.popularity)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"combine": "all", "hops": 1}, True),
        (
            {"combine": "hops", "hops": 1},
            False,
        ),  # made of the first user's embedding, which is not trained
        ({"combine": "hops", "hops": 2}, True),
        ({"combine": "last", "hops": 1}, False),
        ({"combine": "last", "hops": 2}, False),
    ],
)
def test_a_user_with_an_untrained_vector_has_no_state(options, known):
    """Two friends, of whom only the first has interactions."""
    rows = Histories.from_lists([[0, 1], []])
    model = build("diffnet", data_of(rows, 3, [(0, 1)]), **options)
    assert model.has_user_state(np.array([0, 1])).tolist() == [True, known]


def test_runs_on_other_features_can_be_neither_resumed_nor_compared(tmp_path):
    data = synthetic_interactions(friends=3)
    tables = [
        pl.DataFrame({"item_id": data.item_ids, "vector": [[float(i * s), 1.0] for i in range(40)]}) for s in (1, 2)
    ]
    one, two = (dataclasses.replace(data, items=table, title=None) for table in tables)
    options = {"epochs": 1, "embedding_size": 8}
    for name, dataset in (("one", one), ("two", two)):
        rd.train("diffnet", rd.split.leave_one_out(dataset), tmp_path / name, config=options)
        rd.evaluate(tmp_path / name, dataset)
    with pytest.raises(RunError, match="another tables"):
        rd.train("diffnet", rd.split.leave_one_out(two), tmp_path / "one", config=options, resume=True)
    with pytest.raises(RunError, match="item and user tables"):
        rd.compare([tmp_path / "one", tmp_path / "two"])
    # A model that reads no tables can be compared with either.
    rd.train("popularity", rd.split.leave_one_out(data), tmp_path / "popular")
    rd.evaluate(tmp_path / "popular", data)
    assert len(rd.compare([tmp_path / "popular", tmp_path / "two"]).summary)


def test_friends_popularity_by_hand():
    data = data_of(Histories.from_lists([[0], [1, 2], [1], [3], []]), 4, [(0, 1), (2, 0), (4, 3), (0, 1)])
    model = model_class("friends")(model_class("friends").Config(), 4, 5)
    model.fit(data)
    scores = model.score(data.train, users=np.arange(5))
    # Both friends of user 0 have item 1 and one has item 2; popularity (1, 2, 1, 1) / 3 breaks ties.
    torch.testing.assert_close(scores[0], torch.tensor([1 / 3, 2 + 2 / 3, 1 + 1 / 3, 1 / 3]))
    torch.testing.assert_close(scores[4], torch.tensor([1 / 3, 2 / 3, 1 / 3, 1 + 1 / 3]))
    other = model_class("friends")(model_class("friends").Config(), 4, 5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(data.train, users=np.arange(5)), scores)
