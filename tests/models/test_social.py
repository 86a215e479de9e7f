"""DiffNet, DiffNet++ and friends' popularity: the specification's vectors W and Y, and what must never change."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from tests.fitting import steps, training_data
from tests.synthetic import walks

import rediffuse as rd
from rediffuse.data.dataset import SocialGraph
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError, RunError
from rediffuse.models import model_class
from rediffuse.models.base import TrainingData
from rediffuse.models.diffnet import DiffNet
from rediffuse.models.diffnetpp import DiffNetPP
from rediffuse.nn import standardised

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
    """On the specification's example unless other data are given; embeddings are P and Q there."""
    torch.manual_seed(0)
    spec = data is None
    data = data_of(ROWS, 3, LINKS) if data is None else data
    config = KINDS[name].Config.build(preset, ({"embedding_size": 2} if spec else {}) | options)
    model = KINDS[name](config, data.num_items, data.num_users)
    model.fit(data)
    if spec:
        with torch.no_grad():
            model.user_embedding.weight.copy_(P)
            model.item_embedding.weight.copy_(Q)
    return model


def close(found: torch.Tensor, expected) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


# --- DiffNet ---------------------------------------------------------------------------------------------------


def test_w1_released_form():
    model = build("diffnet", preset="released", embedding_size=2)
    users, items = model.vectors()
    close(users, [[1.5, 2], [1, 2.5], [2, 0.5], [1, -0.5]])
    close(users @ items.T, [[1.5, 2, -0.5], [1, 2.5, -1.5], [2, 0.5, 1.5], [1, -0.5, 1.5]])


def test_w1_other_sums():
    close(build("diffnet", combine="last").vectors()[0], [[1.5, 1], [0, 2], [2, -0.5], [1, -0.5]])
    close(build("diffnet", combine="all").vectors()[0], [[2.5, 2], [1, 3.5], [3, 1.5], [3, -0.5]])


def test_no_hops_is_a_vector_and_the_mean_of_the_items():
    close(build("diffnet", hops=0).vectors()[0], [[1.5, 0.5], [0, 2], [2, 0], [3, -0.5]])
    liked = build("diffnet", data_of(ROWS, 3, []), combine="hops", hops=2)
    torch.testing.assert_close(liked.vectors()[0], liked.interest @ liked.item_embedding.weight)


def test_directed_links():
    """Person 0 links to 1; nobody takes in person 0."""
    model = build("diffnet", data_of(ROWS, 3, [(0, 1)]), directed=True, hops=1, combine="last", embedding_size=2)
    assert model.resolve_users(P, torch.zeros(3, 2)).tolist() == [P[1].tolist(), [0, 0], [0, 0], [0, 0]]
    # Who did nothing and links to someone has half a trained vector; who is linked to has nothing.
    for links, remembered in (([(0, 1)], True), ([(1, 0)], True), ([(2, 0)], False)):
        rows = Histories.from_lists([[], [0, 1], []])
        model = build("diffnet", data_of(rows, 3, links), directed=True, hops=1)
        assert model.has_user_state(np.array([0])).tolist() == [remembered]


def test_w3_standardised():
    close(standardised(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 0.2), [[-0.213809, -0.106904], [0, 0.320713]])
    assert not standardised(torch.full((3, 2), 7.0), 0.2).any()


def test_constant_vectors_stay_constant():
    model = build("diffnet", data_of(ROWS, 3, [(0, 1), (1, 2), (2, 3)]), hops=1, combine="last", embedding_size=2)
    with torch.no_grad():
        model.user_embedding.weight.fill_(0.7)
        model.item_embedding.weight.zero_()
    torch.testing.assert_close(model.vectors()[0], torch.full((4, 2), 0.7))


def test_someone_without_friends_has_no_gradient_in_the_released_form():
    model = build("diffnet", preset="released", embedding_size=2)
    model.vectors()[0].square().sum().backward()
    assert not model.user_embedding.weight.grad[3].any()
    assert model.user_embedding.weight.grad[:3].any(dim=1).all()


# --- DiffNet++ -------------------------------------------------------------------------------------------------


def released() -> DiffNetPP:
    """The specification's weights: theta(row, col) = .1 (row + 1) - .2 col, fixed gates, the same in both layers."""
    model = build("diffnetpp", preset="released", embedding_size=2)
    gates = {
        "interest": [0.1, 0.2, -0.1, 0.3],
        "social": [0.3, -0.2, 0.1, 0.1],
        "own": [0.5, -0.5],
        "item_users": [0.2, 0.4],
    }
    with torch.no_grad():
        for layer in model.layers:
            for attention in (layer.of_friends, layer.of_items, layer.of_fans):
                known = attention.graph
                attention.theta.set(0.1 * (known.owners + 1) - 0.2 * known.columns)
                attention.scale.fill_(1.0)
            for name, weights in gates.items():
                gate = getattr(layer, name)
                gate.first.weight.copy_(torch.tensor([weights]))
                gate.second.weight.fill_(1.0)
    return model


def test_y1_attention():
    model = released()
    layer = model.layers[0]
    weights = {
        name: attention(attention.graph.block(), P, Q)
        for name, attention in (("S", layer.of_friends), ("R", layer.of_items), ("T", layer.of_fans))
    }
    close(weights["S"], [1.0, 0.541006, 0.458994, 1.0])
    close(weights["R"], [0.520582, 0.479418, 1.0, 1.0, 0.542648, 0.457352])
    close(weights["T"], [0.557675, 0.442325, 0.521049, 0.478951, 0.519391, 0.480609])


def test_y2_layers():
    model = released()
    first, second = model.layers
    friends, interest, item_users = model.friends.block(), model.interest.block(), model.item_users.block()
    users = first.resolve_users(P, P, Q, friends, interest)
    items = first.items(Q, P, item_users)
    close(users, [[0.635335, 0.364665], [0.180230, 0.902495], [0.762667, 0.474666], [1.228510, -0.104509]])
    close(items, [[1.209304, 0], [0.286383, 0.713617], [1.217279, -0.313097]])
    social, liked = (
        friends.gather(P, first.of_friends(friends, P, P)),
        interest.gather(Q, first.of_items(interest, P, Q)),
    )
    gates = first.gates(P, social, liked, friends, interest)
    close(gates[:, 1], [0.519938, 0.639540, 0.525334, 0.457019])
    close(gates.sum(1), [1.0] * 4)
    close(
        second.resolve_users(users, users, items, friends, interest),
        [[0.568396, 0.480150], [0.310122, 0.751780], [0.740500, 0.373208], [0.912076, -0.087414]],
    )
    close(second.items(items, users, item_users), [[1.067516, 0.071504], [0.358203, 0.663522], [1.115097, -0.087494]])


def test_y3_scores():
    users, items = released().vectors()
    assert users.shape == (4, 6)
    expected = [
        [2.409418, 0.964371, 2.251011],
        [0.602769, 2.305560, -0.783138],
        [2.739478, 2.070025, 1.572838],
        [4.453046, 0.545951, 4.552862],
    ]
    torch.testing.assert_close(users @ items.T, torch.tensor(expected), rtol=0, atol=5e-6)


def test_released_gates_without_weights():
    model = released()
    layer = model.layers[0]
    with torch.no_grad():
        for name in ("social", "interest", "own", "item_users"):
            getattr(layer, name).first.weight.zero_()
    friends, interest, item_users = model.friends.block(), model.interest.block(), model.item_users.block()
    gates = layer.gates(P, P, P, friends, interest)
    close(gates[:, 1], [1.7 / 3] * 4)
    pooled = item_users.gather(P, layer.of_fans(item_users, Q, P))
    torch.testing.assert_close(layer.items(Q, P, item_users), (Q + pooled) / 2)


def test_link_attention_stays_within_its_bounds_and_constants_are_means():
    model = build("diffnetpp", preset="released", embedding_size=2)
    attention = model.layers[0].of_items
    part = model.interest.block()
    attention.theta.set(torch.linspace(-50, 50, len(model.interest)))
    weights = attention(part, P, Q)
    assert (weights[:2].max() / weights[:2].min()) < 5.575
    attention.theta.set(torch.full((len(model.interest),), 0.3))
    torch.testing.assert_close(attention(part, P, Q), model.interest.values)


def test_the_papers_layer_by_hand():
    model = build("diffnetpp", hops=1, attention="mean")
    layer = model.layers[0]
    users, items = model.vectors()
    social = torch.tensor([[0, 1.0], [1, 0.5], [0, 1], [0, 0]])
    liked = torch.tensor([[0.5, 0.5], [0, 1], [1, -1], [1.5, -0.5]])
    liked[3] = (Q[0] + Q[2]) / 2
    for person in range(4):
        to_friends = layer.social(torch.cat((P[person], social[person]))[None])
        to_items = layer.interest(torch.cat((P[person], liked[person]))[None])
        share = torch.sigmoid(to_friends - to_items)
        if person == 3:  # no friends: nothing of the weight is lost on them
            share = 0.0
        new = P[person] + share * social[person] + (1 - share) * liked[person]
        torch.testing.assert_close(users[person], torch.cat((P[person], new)))
    item_users = torch.stack(((P[0] + P[3]) / 2, (P[0] + P[1]) / 2, (P[2] + P[3]) / 2))
    torch.testing.assert_close(items, torch.cat((Q, Q + item_users), dim=1))


# --- both ------------------------------------------------------------------------------------------------------

FORMS = [
    ("diffnet", {}),
    ("diffnet", {"combine": "hops", "hops": 3, "loss": "bce"}),
    ("diffnet", {"combine": "last"}),
    ("diffnetpp", {}),
    ("diffnetpp", {"fidelity": "released", "attention": "link", "loss": "squared"}),
    ("diffnetpp", {"fidelity": "released", "attention": "mean", "hops": 1, "fusion": "add"}),
    ("diffnetpp", {"fidelity": "released", "hops": 0}),
    ("diffnetpp", {"attention": "mean", "hops": 3}),
]


def larger() -> TrainingData:
    """60 people, 40 items, and features of both."""
    rng = np.random.default_rng(3)
    dataset = walks(friends=3)
    features = pl.DataFrame({"vector": rng.normal(size=(40, 5)).tolist()})
    people = pl.DataFrame({"vector": rng.normal(size=(61, 4)).tolist()})
    data = training_data(dataset.interactions, 40)
    return dataclasses.replace(data, social=dataset.social, item_table=features, user_table=people)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_relabelling_permutes_and_links_count_once(name, options):
    data = larger()
    rng = np.random.default_rng(0)
    of_user, of_item = rng.permutation(61), rng.permutation(40)  # new number -> old number
    new_user, new_item = np.argsort(of_user), np.argsort(of_item)
    relabelled = TrainingData(
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
    # Numbers of edges are drawn in the order of edges, so all weigh alike here.
    options = options | ({"attention": "mean"} if options.get("attention") == "link" else {})
    model, other = build(name, data, **options), build(name, relabelled, **options)
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
def test_a_batch_has_the_vectors_and_gradients_of_the_whole(name, options):
    data = larger()
    model = build(name, data, negatives=3, reg=0.0, batch_size=50, **options)
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    parameters = [p for p in model.parameters() if p.numel()]
    found = torch.autograd.grad(model.loss(batch), parameters, allow_unused=True, materialize_grads=True)
    users, items = model.vectors()
    mine = users[batch.users]
    positive = (mine * items[batch.positives]).sum(1)
    negative = torch.einsum("nd,nkd->nk", mine, items[batch.negatives])
    expected = model.pair_loss(positive, negative)
    torch.testing.assert_close(model.loss(batch), expected)
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    for left, right in zip(found, gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_someone_new_gets_what_someone_without_friends_would(name, options):
    """A person of the graph without links, whose own embedding is the mean of all."""
    options = options | ({"attention": "mean"} if options.get("attention") == "link" else {})
    rows = Histories.from_lists([[0, 1], [1, 3], [2], [0, 2]])
    features = pl.DataFrame({"vector": np.random.default_rng(0).normal(size=(4, 5)).tolist()})
    for tables in ({}, {"item_table": features}):
        data = data_of(rows, 4, [(0, 1), (1, 2)], **tables)
        model = build(name, data, embedding_size=3, **options)
        with torch.no_grad():  # person 3 is not in their mean
            for weights in model.fusions.parameters():
                weights.normal_(generator=torch.Generator().manual_seed(1))
            model.user_embedding.weight[3] = model.user_embedding.weight[:3].mean(0)
            model.trained[3] = False
            model.prepare()
            found = model.fold_in(Histories.from_lists([[2, 0, 2]]))
        torch.testing.assert_close(found[0], model.user_vectors.value[3])


def test_features_take_part_and_can_be_left_out():
    data = larger()
    for name in KINDS:
        for fusion in ("add", "learned"):
            model = build(name, data, fusion=fusion)
            model.vectors()[0].sum().backward()
            assert model.projections["user"].weight.value.grad.any()
            assert (model.fusions["user"].weight.grad is not None) == (fusion == "learned")
        without = build(name, data, features=False)
        without.vectors()[0].sum().backward()
        assert without.projections["user"].weight.value.grad is None
    # They begin as a sum.
    torch.manual_seed(1)
    added, learned = (build("diffnet", data, fusion=fusion) for fusion in ("add", "learned"))
    torch.testing.assert_close(added.vectors()[0], learned.vectors()[0])


def test_features_of_one_side_alone():
    data = dataclasses.replace(larger(), user_table=None)
    for name, options in FORMS:
        users, items = build(name, data, **options).vectors()
        assert users.shape[1] == items.shape[1]


@pytest.mark.parametrize("name", KINDS)
def test_the_released_form_learns(name):
    data = larger()
    model = build(name, data, preset="released", embedding_size=16, batch_size=64)
    losses = steps(model, data, 40, learning_rate=0.02)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.parametrize("name", [*KINDS, "friends"])
def test_links_to_oneself_are_none(name):
    data = data_of(ROWS, 3, [(0, 0), (2, 2)])
    with pytest.raises(DataError, match="the data have none"):
        model_class(name)(model_class(name).Config(), 3, 4).check(data)


@pytest.mark.parametrize("name", [*KINDS, "friends"])
def test_links_are_needed(name, tmp_path):
    split = rd.split.leave_one_out(walks())
    with pytest.raises(DataError, match="the data have none"):
        rd.train(name, split, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if name != "friends":
        rd.train(name, split, tmp_path / "run", config={"hops": 0, "epochs": 1})


@pytest.mark.parametrize("name", [*KINDS, "friends"])
def test_friends_answer_for_someone_without_events(name, tmp_path):
    """u_alone did nothing and has u0 for a friend."""
    data = walks(users=300, friends=8)
    options = {} if name == "friends" else {"epochs": 40, "batch_size": 256, "reg": 1e-3, "embedding_size": 32}
    run = rd.train(name, rd.split.leave_one_out(data), tmp_path / "run", config=options)
    recommender = rd.Recommender.load(run.path)
    friend = data.interactions.row(0)
    found = recommender.recommend(users=["u_alone"], k=10)
    popular = recommender.model.popularity
    assert found["item_id"].to_list() != [recommender.items["item_id"][int(i)] for i in popular.argsort()[-10:].flip(0)]
    scores = recommender.model.score(Histories.from_lists([[]]), users=np.array([300]))[0]
    of_friend = np.isin(np.arange(40), friend)
    places = scores.argsort(descending=True).argsort().numpy()
    assert places[of_friend].mean() < 0.6 * places[~of_friend].mean()


def test_who_is_remembered():
    """A chain of people of whom the first alone has events; two hops train three, and less than half of the fourth."""
    rows = Histories.from_lists([[0, 1], [], [], [], [], []])
    model = build("diffnet", data_of(rows, 3, [(0, 1), (1, 2), (2, 3), (3, 4)]), hops=2)
    assert model.has_user_state(np.array([0, 1, 2, 3, 4, 5, -1])).tolist() == [True] * 3 + [False] * 4
    model.prepare()
    scores = model.score(Histories.from_lists([[], [], []]), users=np.array([1, 4, -1]))
    assert not torch.equal(scores[0], model.popularity)
    assert torch.equal(scores[1], model.popularity)
    assert torch.equal(scores[2], model.popularity)


@pytest.mark.parametrize(
    ("options", "remembered"),
    [
        ({"combine": "all", "hops": 1}, True),
        ({"combine": "hops", "hops": 1}, False),  # u of the second is made of P of the first, which nothing trained
        ({"combine": "hops", "hops": 2}, True),
        ({"combine": "last", "hops": 1}, False),
        ({"combine": "last", "hops": 2}, False),
    ],
)
def test_a_vector_that_nothing_trained_is_not_remembered(options, remembered):
    """Two friends, of whom the first alone has events."""
    rows = Histories.from_lists([[0, 1], []])
    model = build("diffnet", data_of(rows, 3, [(0, 1)]), **options)
    assert model.has_user_state(np.array([0, 1])).tolist() == [True, remembered]


def test_other_features_are_another_run(tmp_path):
    data = walks(friends=3)
    tables = [pl.DataFrame({"item": data.item_ids, "vector": [[float(i * s), 1.0] for i in range(40)]}) for s in (1, 2)]
    one, two = (dataclasses.replace(data, items=table, title=None) for table in tables)
    options = {"epochs": 1, "embedding_size": 8}
    for name, dataset in (("one", one), ("two", two)):
        rd.train("diffnet", rd.split.leave_one_out(dataset), tmp_path / name, config=options)
        rd.evaluate(tmp_path / name, dataset)
    with pytest.raises(RunError, match="another tables"):
        rd.train("diffnet", rd.split.leave_one_out(two), tmp_path / "one", config=options, resume=True)
    with pytest.raises(RunError, match="item and user tables"):
        rd.compare([tmp_path / "one", tmp_path / "two"])
    # Who reads no tables may stand beside either.
    rd.train("popularity", rd.split.leave_one_out(data), tmp_path / "popular")
    rd.evaluate(tmp_path / "popular", data)
    assert len(rd.compare([tmp_path / "popular", tmp_path / "two"]).summary)


def test_friends_popularity_by_hand():
    data = data_of(Histories.from_lists([[0], [1, 2], [1], [3], []]), 4, [(0, 1), (2, 0), (4, 3), (0, 1)])
    model = model_class("friends")(model_class("friends").Config(), 4, 5)
    model.fit(data)
    scores = model.score(data.train, users=np.arange(5))
    # Item 1 of person 0's two friends, item 2 of one; the other two by popularity (1, 2, 1, 1).
    torch.testing.assert_close(scores[0], torch.tensor([1 / 3, 2 + 2 / 3, 1 + 1 / 3, 1 / 3]))
    torch.testing.assert_close(scores[4], torch.tensor([1 / 3, 2 / 3, 1 / 3, 1 + 1 / 3]))
    other = model_class("friends")(model_class("friends").Config(), 4, 5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(data.train, users=np.arange(5)), scores)
