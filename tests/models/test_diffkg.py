"""DiffKG: small cases by hand, the denoiser in hidden space against dense rows, pruning, and runs.

The small case is the graph `SMALL`: items 0 and 1 are entities 0 and 1, entities 2 and 3 are others, and the triples
are (0, r0, 2), (1, r0, 2) and (1, r1, 3). Relations 2 and 3 are r0 and r1 from tail to head. User 0 has items 0 and 1,
user 1 has item 1. The weights W of the attention are the identity over half the identity, so that
[E_h || E_t] W = E_h + E_t / 2.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from tests.data.test_knowledge import SMALL, kg
from tests.fitting import steps, training_data
from torch.nn import functional as F

import rediffuse as rd
from rediffuse.batching.rows import row_batch
from rediffuse.data.histories import Histories
from rediffuse.data.knowledge import knowledge_edges
from rediffuse.diffusion import ancestral, noise_schedule, q_sample, snr_weights
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.graphs import Graph
from rediffuse.models import diffkg_denoiser
from rediffuse.models.base import TrainingData
from rediffuse.models.diffkg import DiffKG
from rediffuse.models.diffkg_denoiser import (
    Noised,
    best_of_all_pairs,
    collaborative_convolution,
    denoise_graph,
    denoising_loss,
    edge_scores,
    noised_hidden,
    reverse_chain,
    squared_errors,
)
from rediffuse.models.relation_attention import RelationAttention, View
from rediffuse.nn import RowDenoiser
from rediffuse.testing import synthetic_interactions

ROWS = Histories.from_lists([[0, 1], [1]])
ENTITIES = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 2]])
RELATIONS = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])
SCHEDULE = noise_schedule("linear_var", 5, noise_scale=0.1, noise_min=1e-4, noise_max=0.02, first_beta=1e-4)


def close(found: torch.Tensor, expected, atol: float = 2e-6) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=atol)


def build(data: TrainingData | None = None, preset: str | None = None, **options) -> DiffKG:
    """A model of the small case, with its weights, unless other data are given."""
    torch.manual_seed(0)
    small = data is None
    data = dataclasses.replace(training_data(ROWS, 2), kg=SMALL) if data is None else data
    options = {"embedding_size": 2, "hidden_size": 4} | options if small else options
    model = DiffKG(DiffKG.Config.build(preset, options), data.num_items, data.num_users)
    model.check(data)
    model.fit(data)
    if small:
        with torch.no_grad():
            model.entity_embedding.set(ENTITIES)
            model.relation_embedding.set(RELATIONS)
            model.encoder.weight.copy_(torch.cat((torch.eye(2), torch.eye(2) / 2)))
            model.user_embedding.weight.copy_(torch.eye(2))
    return model.eval()


def ring(**replaced) -> TrainingData:
    """60 users, 40 items, and their sections of the ring as entities."""
    dataset = synthetic_interactions(knowledge=True)
    data = training_data(dataset.interactions, dataset.num_items)
    return dataclasses.replace(data, kg=dataset.kg, **replaced)


# --- attention and propagation ---------------------------------------------------------------------------------


def test_attention_by_hand():
    """Logits (E_h + E_t / 2) . E_r of the six edges:

        0 -r0-> 2   (1.5, 0.5) . (1, 0) = 1.5     2 -r2-> 0   (1.5, 1) . (1, 1) = 2.5
        1 -r0-> 2   (0.5, 1.5) . (1, 0) = 0.5     2 -r2-> 1   (1, 1.5) . (1, 1) = 2.5
        1 -r1-> 3   (0, 2) . (0, 1) = 2           3 -r3-> 1   (0, 2.5) . (1, -1) = -2.5, leaky: -0.5

    Heads 0 and 3 have one edge, 1 has softmax(0.5, 2) = (0.182426, 0.817574), and 2 has halves.
    """
    model = build()
    close(model.encoder.attention(ENTITIES, RELATIONS, model.full), [1, 0.182426, 0.817574, 0.5, 0.5, 1])


def test_hops_add_up_by_hand():
    """The first hop adds 0.5 E_h to the direction of E_h + sum alpha E_t, with alpha of `test_attention_by_hand`:

    0: (1, 0) + (1, 1)                                = (2, 1)
    1: (0, 1) + 0.182426 (1, 1) + 0.817574 (0, 2)     = (0.182426, 2.817574)
    2: (1, 1) + 0.5 (1, 0) + 0.5 (0, 1)               = (1.5, 1.5)
    3: (0, 2) + (0, 1)                                = (0, 3)

    The second hop does the same from the directions of the first.
    """
    model = build()
    received = torch.tensor([[2, 1], [0.182426, 2.817574], [1.5, 1.5], [0, 3]])
    first = received / received.norm(dim=1, keepdim=True)
    alpha = model.encoder.attention(first, RELATIONS, model.full)
    (to_2, from_1_to_2, from_1_to_3, to_0, to_1, from_3) = alpha[:, None]
    received = first + torch.stack(
        (
            to_2 * first[2],
            from_1_to_2 * first[2] + from_1_to_3 * first[3],
            to_0 * first[0] + to_1 * first[1],
            from_3 * first[1],
        )
    )
    second = received / received.norm(dim=1, keepdim=True)
    for hops, residual, expected in (
        (1, 0.5, 0.5 * ENTITIES + first),
        (2, 0.0, second),
        (2, 0.5, 0.5 * (0.5 * ENTITIES + first) + second),
    ):
        encoder = RelationAttention(2, hops, residual, dropout=0.3).eval()
        encoder.weight.data = model.encoder.weight.data
        torch.testing.assert_close(encoder(ENTITIES, RELATIONS, model.full), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [1, 9], ids=["products on edges", "products on nodes"])
def test_attention_is_the_softmax_over_edges_of_their_ends(size):
    edges = knowledge_edges(synthetic_interactions(knowledge=True).kg, 40)
    assert (edges.num_nodes * edges.num_relations > size * len(edges)) == (size == 1)
    graph, relation = view = View(Graph(edges.matrix()), torch.from_numpy(edges.relation))
    generator = torch.Generator().manual_seed(0)
    entities = torch.randn(edges.num_nodes, size, generator=generator, dtype=torch.float64, requires_grad=True)
    relations = torch.randn(edges.num_relations, size, generator=generator, dtype=torch.float64, requires_grad=True)
    encoder = RelationAttention(size, 1, 0.5, 0.0).double()
    both = torch.cat((entities[graph.owners], entities[graph.columns]), dim=1)
    logits = F.leaky_relu(((both @ encoder.weight) * relations[relation]).sum(1), 0.2)
    expected = graph.block().softmax(logits)
    torch.testing.assert_close(encoder.attention(entities, relations, view), expected)
    totals = torch.zeros(edges.num_nodes, dtype=torch.float64).index_add(0, graph.owners, expected.detach())
    torch.testing.assert_close(totals[graph.degrees > 0], torch.ones(int((graph.degrees > 0).sum())).double())


def test_attention_gradients_by_finite_differences():
    edges = knowledge_edges(SMALL, 2)
    view = View(Graph(edges.matrix()), torch.from_numpy(edges.relation))
    encoder = RelationAttention(2, 2, 0.5, 0.0).double()
    inputs = [x.double().requires_grad_() for x in (ENTITIES + 0.1, RELATIONS)]
    assert torch.autograd.gradcheck(lambda e, r: encoder(e, r, view), inputs, atol=1e-6)


def test_propagation_by_hand():
    """(I + A + A^2) from the users' embeddings and what one hop of attention makes of the items.

    With self-loops, user 0 has degree 3, user 1 and item 0 have 2, and item 1 has 3; A divides each edge by the root of
    the product of its ends' degrees.
    """
    model = build()
    start = torch.tensor([[1, 0], [0, 1], [1.394427, 0.447214], [0.064610, 1.497911]])
    edges = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 1]])
    degrees = torch.tensor([3.0, 2, 2, 3])
    adjacency = edges / (degrees[:, None] * degrees).sqrt()
    expected = start + adjacency @ start + adjacency @ adjacency @ start
    found = torch.stack(model.propagate_view(model.original)).sum(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_folding_in_equals_propagation_to_a_new_node():
    """A node with these edges and a self-loop, whose own vector is zero; other nodes do not change."""
    data = ring()
    model = build(data, layers=3)
    model.prepare()
    history = [3, 7, 9]
    states = [torch.zeros(64)]
    layers = [layer[model.num_users :] for layer in model.propagate_view(model.views()[0])]
    for layer in layers[:-1]:
        sent = sum(layer[i] / (4 * model.degrees[i]) ** 0.5 for i in history)
        states.append(states[-1] / 4 + sent)
    torch.testing.assert_close(model.fold_in(Histories.from_lists([[7, 3, 9, 3]]))[0], torch.stack(states).sum(0))


# --- losses ----------------------------------------------------------------------------------------------------


def test_the_loss_written_out():
    data = ring()
    model = build(data, contrast=0.3, temperature=0.5, pruning="random", rebuild_k=1, reg=0.2).eval()
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    model.rebuilt = True
    assert 0 < model.kept.value.float().mean() < 1
    main, other = (torch.stack(model.propagate_view(view)).sum(0) for view in (model.pruned, model.original))
    users, items = main[:60], main[60:]
    margin = (users[batch.users] * items[batch.positives]).sum(1)[:, None]
    margin = margin - torch.einsum("nd,nkd->nk", users[batch.users], items[batch.negatives])
    expected = -F.logsigmoid(margin).mean() + 0.2 * model.penalty(batch)
    for anchors, nodes, of_batch in ((other[:60], users, batch.users), (other[60:], items, batch.positives)):
        once = of_batch.unique()
        cosine = F.normalize(anchors[once]) @ F.normalize(nodes).T / 0.5
        expected = expected + 0.3 * F.cross_entropy(cosine, once)
    torch.testing.assert_close(model.loss(batch), expected)


# --- the denoiser ----------------------------------------------------------------------------------------------


def denoiser(width: int, hidden: int = 6, dtype: torch.dtype = torch.float64, **options) -> RowDenoiser:
    torch.manual_seed(1)
    return RowDenoiser(width, (hidden,), 10, 5, **options).to(dtype).eval()


def rows_of(data: TrainingData, dtype: torch.dtype):
    assert data.kg is not None
    matrix = knowledge_edges(data.kg, data.num_items).matrix()
    batch = row_batch(matrix)
    return dataclasses.replace(batch, values=batch.values.to(dtype)), torch.from_numpy(matrix.toarray()).to(dtype)


def test_the_noise_schedule_by_hand():
    """1 - abar rises evenly from 0.1 * 1e-4 to 0.1 * 0.02, and beta_t = 1 - abar_t / abar_(t-1).

    As in the released code the first beta is 1e-4 instead, and abar is then the product of all 1 - beta. The weight of
    a step is by how much the signal-to-noise ratio abar / (1 - abar) falls; the first is 1.
    """
    found = build().schedule
    left = 1 - np.linspace(1e-5, 2e-3, 5)
    betas = np.concatenate(([1e-4], 1 - left[1:] / left[:-1]))
    abar = np.cumprod(1 - betas)
    np.testing.assert_allclose(found.betas.numpy(), betas, rtol=1e-9)
    np.testing.assert_allclose(snr_weights(found, "x0").numpy(), [1, *-np.diff(abar / (1 - abar))], rtol=1e-9)


def test_the_collaborative_convolution_by_hand():
    """R' E_u is (1, 0) + (0, 0) for item 0 and (1, 0) + (0, 1) for item 1. The first row of f gives

    0.1 (1, 0) + 0.2 (1, 1) = (0.3, 0.2), and its distance to E_0 = (1, 0) is (0.7^2 + 0.2^2) / 2 = 0.265.
    """
    f = torch.tensor([[0.1, 0.2, 0.7, 0], [0, 0.1, 0.6, 0.4], [0.8, 0.6, 0.1, 0], [0.1, 0.9, 0, 0.1]])
    network = denoiser(4, 4, torch.float32)
    with torch.no_grad():
        network.last.weight.copy_(f.T)
        network.last.bias.zero_()
        item_sums = torch.tensor([[1.0, 0], [1, 1]])
        found = collaborative_convolution(network, torch.eye(4), item_sums)
        close(found, [[0.3, 0.2], [0.1, 0.1], [1.4, 0.6], [1, 0.9]])
        close((found - ENTITIES).square().mean(1), [0.265, 0.41, 0.16, 1.105])
        network.last.bias.fill_(0.3)
        found = collaborative_convolution(network, torch.eye(4), item_sums)
        torch.testing.assert_close(found, (f + 0.3)[:, :2] @ item_sums)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_reverse_chain_in_hidden_space_is_the_plain_one(normalize, dtype, tolerance):
    rows, dense = rows_of(ring(), dtype)
    network = denoiser(dense.shape[1], 12, dtype, normalize=normalize)
    with torch.no_grad():
        network.last.weight.mul_(3)  # so that the chain moves
        plain = ancestral(lambda x, t: network(x, t), dense, SCHEDULE, prediction="x0", variance=None)
        found = network.last(reverse_chain(network, SCHEDULE, rows))
    torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize("steps_of_noise", [1, 3, 5])
@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_the_reverse_chain_from_noised_rows_is_the_plain_one(normalize, steps_of_noise):
    schedule = noise_schedule("linear_var", 5, noise_scale=20.0, noise_min=0.01, noise_max=0.03, beta_fixed=False)
    rows, dense = rows_of(ring(), torch.float64)
    network = denoiser(dense.shape[1], 12, torch.float64, normalize=normalize)
    network.last.weight.mul_(3)
    eps = torch.randn_like(dense)
    abar = schedule.alphas_cumprod[steps_of_noise - 1].item()
    start = abar**0.5 * dense + (1 - abar) ** 0.5 * eps
    plain = ancestral(network, start, schedule, prediction="x0", variance=None)
    found = network.last(reverse_chain(network, schedule, rows, Noised(abar, eps)))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)
    clean = network.last(reverse_chain(network, schedule, rows))
    assert (found - clean).abs().max() > 1e-3


def test_a_graph_is_denoised_from_noised_rows_by_its_seed(monkeypatch):
    model = build(ring(), noising_steps=4, noise_scale=20.0)
    graph = model.denoiser, model.schedule, model.edges
    first, again, other = (denoise_graph(*graph, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, denoise_graph(*graph))
    drawn = []
    monkeypatch.setattr(diffkg_denoiser, "PAIRS", 7 * model.edges.num_nodes)  # in several blocks
    monkeypatch.setattr(
        diffkg_denoiser, "reverse_chain", lambda *args: drawn.append(args[-1]) or torch.zeros(len(args[2]), 1)
    )
    denoise_graph(*graph, 4, 1)
    eps = torch.cat([noised.eps for noised in drawn])
    assert eps.shape == (model.edges.num_nodes,) * 2
    assert len(drawn) > 1
    assert eps.std().item() == pytest.approx(1, abs=5 / eps.numel() ** 0.5)
    assert drawn[0].abar == pytest.approx(model.schedule.alphas_cumprod[3].item())
    monkeypatch.undo()
    model.rebuild_seed = 1
    kept = []
    for _ in range(2):
        model.rebuild()
        kept.append(model.kept.value.clone())
    assert torch.equal(*kept)
    with pytest.raises(ConfigError, match="noising_steps=6 is more than diffusion_steps=5"):
        DiffKG.Config.build(None, {"noising_steps": 6})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_loss_by_gram_matrices_is_the_plain_one(dtype, tolerance):
    """Values and gradients."""
    rows, dense = rows_of(ring(), dtype)
    network = denoiser(dense.shape[1], 12, dtype)
    g = torch.randn(len(dense), 12, dtype=dtype, requires_grad=True)
    parameters = [g, network.last.weight, network.last.bias]
    plain = (dense - network.last(g)).square().mean(1)
    found = squared_errors(network, g, rows)
    torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)
    weights = torch.rand(len(dense), dtype=dtype)
    for left, right in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((plain * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=10 * tolerance)


def test_noise_in_hidden_space_has_the_distribution_of_noised_rows():
    rows, dense = rows_of(ring(), torch.float64)
    network = denoiser(dense.shape[1], 4)
    t = torch.full((len(dense),), 4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        torch.manual_seed(0)
        hidden = torch.stack([noised_hidden(network, SCHEDULE, rows, t) for _ in range(3000)])
        draws = [torch.randn(dense.shape, generator=generator, dtype=torch.float64) for _ in range(3000)]
        plain = torch.stack([q_sample(SCHEDULE, dense, t, noise) @ network.first for noise in draws])
    error = (hidden.var(0) / 3000 + plain.var(0) / 3000).sqrt()
    assert ((hidden.mean(0) - plain.mean(0)).abs() < 5 * error).all()
    one, other = (torch.cov((x - x.mean(0)).reshape(-1, 4).T) for x in (hidden, plain))
    torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(one.diagonal().mean()))


@pytest.mark.parametrize("hidden", [8, 64, 512])
def test_noise_can_be_drawn_with_many_hidden_units(hidden):
    """With fewer entities than hidden units, W'W is singular."""
    rows, dense = rows_of(ring(), torch.float32)
    network = denoiser(dense.shape[1], hidden, torch.float32)
    with torch.no_grad():
        network.first.add_(torch.randn(dense.shape[1], 1) @ torch.randn(1, hidden))
    found = noised_hidden(network, SCHEDULE, rows, torch.zeros(len(dense), dtype=torch.int64))
    assert torch.isfinite(found).all()


def test_a_rank_with_no_entity_of_the_last_batch_adds_no_loss():
    data = ring()
    model = build(data, denoiser_batch=67).train()
    batches = model.batches(data, np.random.default_rng(0))
    loss = model.loss(batches.get(1, 1, 2))
    assert loss.item() == 0.0
    loss.backward()
    assert not model.denoiser.first.grad.any()


def test_the_whole_loss_is_that_of_dense_rows_on_average():
    """Noise in hidden space and on whole rows give the same loss over many draws, within their standard errors."""
    data = ring()
    rows, dense = rows_of(data, torch.float64)
    network = denoiser(dense.shape[1], 4, dropout=0.0)
    entities, item_sums = torch.randn(len(dense), 3).double(), torch.randn(40, 3).double()
    means = []
    with torch.no_grad():
        for whole in (False, True):
            torch.manual_seed(5)
            found = torch.stack(
                [denoising_loss(network, SCHEDULE, rows, entities, item_sums, 0.5, dense=whole) for _ in range(400)]
            )
            means.append((found.mean(), found.std() / 20))
    (one, first), (other, second) = means
    assert abs(one - other) < 4 * (first**2 + second**2) ** 0.5
    assert first < 0.1 * one


def test_each_phase_trains_its_own_weights_only():
    data = ring()
    model = build(data, denoiser_batch=16)
    batches = model.batches(data, np.random.default_rng(0))
    model.loss(batches.get(0)).backward()
    assert model.entity_embedding.value.grad is None
    assert model.user_embedding.weight.grad is None
    assert model.denoiser.first.grad.any()
    model.zero_grad(set_to_none=True)
    model.loss(batches.get(len(batches) - 1)).backward()
    assert model.entity_embedding.value.grad.any()
    assert model.denoiser.first.grad is None


def test_without_the_convolution_users_do_not_affect_the_denoiser():
    data = ring()
    losses = []
    for scale in (1.0, 5.0):
        model = build(data, collaborative=0.0)
        with torch.no_grad():
            model.user_embedding.weight.mul_(scale)
        torch.manual_seed(2)
        losses.append(model.loss(model.batches(data, np.random.default_rng(0)).get(0)).item())
    assert losses[0] == losses[1]


def test_the_denoiser_learns_the_adjacency():
    data = ring()
    model = build(data, collaborative=0.0, denoiser_batch=32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for epoch in range(60):
        batches = model.batches(data, np.random.default_rng(epoch))
        for index in range(-(-int((model.full.graph.degrees > 0).sum()) // 32)):
            model.loss(batches.get(index)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        rows = model.denoiser.last(denoise_graph(model.denoiser, model.schedule, model.edges))
    edges = torch.from_numpy(model.edges.matrix().toarray() > 0)
    assert rows[edges].mean() > 10 * rows[~edges].abs().mean()


# --- pruning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruning", "fidelity"), [("diffusion", "corrected"), ("diffusion", "released"), ("random", "corrected")]
)
def test_edges_are_kept_in_both_directions_and_the_same_in_the_same_epoch(pruning, fidelity):
    data = ring()
    model = build(data, pruning=pruning, fidelity=fidelity, rebuild_k=1)
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    kept = model.kept.value.numpy()
    assert (kept == kept[model.reverse]).all()
    assert 0 < kept.sum() < len(kept)
    once = kept.copy()
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    assert (model.kept.value.numpy() == once).all()


def test_edges_are_scored_by_the_denoised_rows(monkeypatch):
    model = build(ring())
    edges, count = model.edges, model.edges.num_nodes
    with torch.no_grad():
        g = denoise_graph(model.denoiser, model.schedule, edges)
        rows = model.denoiser.last(g).numpy()
    scores = rows[edges.head, edges.tail]
    np.testing.assert_allclose(edge_scores(model.denoiser, g, model.full.graph), scores, rtol=1e-4, atol=1e-5)
    # As released: by their rank among all columns of the row.
    rank = (rows[edges.head] > scores[:, None]).sum(1)
    for pairs in (10 * count, 10**6):  # in several blocks, and in one
        monkeypatch.setattr(diffkg_denoiser, "PAIRS", pairs)
        assert (best_of_all_pairs(model.denoiser, g, edges, 12) == (rank < 12)).all()
    assert 0 < (rank < 12).sum() < len(rank)


def test_fidelity_selects_the_candidates_of_the_pruning():
    model, released = build(ring()), build(ring(), fidelity="released")
    per_head = np.bincount(model.edges.head[model.selected_edges(np.random.default_rng(0))])
    assert (per_head == 1)[model.full.graph.degrees.numpy() > 0].all()
    # Of an untrained denoiser, the best column of most rows is no edge.
    kept = released.selected_edges(np.random.default_rng(0))
    assert np.bincount(released.edges.head[kept], minlength=released.edges.num_nodes).mean() < 0.5


def test_keep_rate_drops_each_direction_on_its_own():
    data = ring()
    model = build(data, pruning="random", rebuild_k=100, keep_rate=0.5)
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    kept = model.kept.value.numpy()
    assert 0.3 < kept.mean() < 0.7
    assert (kept != kept[model.reverse]).any()


def test_views():
    model = build()
    model.pruned = model.view_of(np.arange(6) < 1)
    assert model.views() == (model.pruned, model.original)
    other = build(main_view="original")
    assert other.views() == (other.original, other.pruned)
    released = build(fidelity="released")
    released.pruned = released.view_of(np.arange(6) < 1)
    assert released.train().views() == (released.original, released.original)
    assert released.eval().views() == (released.pruned, released.original)


def test_the_original_view_can_be_capped_and_is_drawn_once():
    one, again, other = (build(ring(seed=seed), most_edges=1) for seed in (1, 1, 2))
    assert int(one.original.graph.degrees.max()) == 1
    assert torch.equal(one.original.graph.columns, again.original.graph.columns)
    assert not torch.equal(one.original.graph.columns, other.original.graph.columns)


# --- runs ------------------------------------------------------------------------------------------------------

TINY = {"embedding_size": 16, "epochs": 3, "batch_size": 64, "denoiser_batch": 32, "hidden_size": 8, "rebuild_k": 1}


@pytest.mark.parametrize("preset", [None, "released"])
def test_it_learns(preset):
    data = ring()
    model = build(data, preset, **{**TINY, "contrast": 0.0, "reg": 0.0})
    losses = steps(model, data, 30, learning_rate=0.01)
    per_epoch = np.array(losses).reshape(30, -1)
    recommender = per_epoch[:, -len(data.train.items) // 64 :]  # the last steps of each epoch, rounded up
    assert recommender[-1].mean() < 0.5 * recommender[0].mean()
    model.prepare()


def test_data_without_a_graph_of_the_items_are_refused(tmp_path):
    with pytest.raises(DataError, match="learns from a knowledge graph, and the data have none"):
        rd.train("diffkg", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    unlinked = dataclasses.replace(training_data(ROWS, 2), kg=kg([(0, 0, 1)], [], 2, 1))
    with pytest.raises(DataError, match="No item is linked to an entity"):
        build(unlinked)


def test_items_without_entities_and_relations_seen_once_train():
    rows = Histories.from_lists([[0, 1], [1, 2], [2, 0], [3]])
    data = dataclasses.replace(training_data(rows, 4), kg=kg([(0, 0, 2), (1, 1, 2)], [(0, 0), (2, 1)], 3, 3))
    model = build(data, **TINY)
    steps(model, data, 3, learning_rate=0.01)
    model.prepare()
    assert torch.isfinite(model.score(rows, users=np.arange(4))).all()


@pytest.mark.filterwarnings("ignore:Training ended before the first validation")
def test_a_run_killed_in_either_phase_resumes_to_the_same_weights(tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions(knowledge=True))
    whole = rd.train("diffkg", split, tmp_path / "whole", config=TINY)
    expected = rd.Recommender.load(whole.path).model.state_dict()
    from rediffuse.training.loop import Trainer

    for stop in (1, 4):  # in the first epoch, in the denoiser's phase and in the recommender's
        folder, steps_taken = tmp_path / f"stopped{stop}", 0

        def out_of_time(self, stop=stop):
            nonlocal steps_taken
            steps_taken += 1
            return steps_taken == stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_out_of_time", out_of_time)
            rd.train("diffkg", split, folder, config=TINY)
        resumed = rd.train("diffkg", split, folder, config=TINY, resume=True)
        found = rd.Recommender.load(resumed.path).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_paths_of_a_run(tmp_path):
    data = synthetic_interactions(knowledge=True)
    run = rd.train("diffkg", rd.split.leave_one_out(data), tmp_path / "run", config=TINY)
    recommender = rd.Recommender.load(run.path)
    table = pl.read_parquet(run.path / "knowledge.parquet")
    assert table.group_by("item_id").agg(pl.col("weight").sum())["weight"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert set(table["relation"]) == {"of 5", "of 2"}
    assert 0 < table["kept"].mean() < 1
    with pytest.warns(RediffuseWarning, match="1 items are not in the catalogue"):
        paths = recommender.explain(["i1", "i7", "i39", "no such item"], history=["i0", "i5"])
    assert paths["item_id"].unique(maintain_order=True).to_list() == ["i1", "i7"]
    assert paths.filter(item_id="i1")["entity"].to_list() in (["part 5.0", "part 2.0"], ["part 2.0", "part 5.0"])
    assert (paths["history_item"].to_list()[-1], paths["entity"].to_list()[-1]) == ("i5", "part 5.1")
    assert recommender.explain(["i1"], user="u1").columns == paths.columns
    with pytest.warns(RediffuseWarning, match="1 of 1 users are unknown; there are no paths"):
        assert not len(recommender.explain(["i1"], user="unknown"))
    with pytest.raises(ConfigError, match="Give either a user or a history"):
        recommender.explain(["i1"])
    popular = rd.train("popularity", rd.split.leave_one_out(data), tmp_path / "popular")
    with pytest.raises(ConfigError, match="no knowledge graph"):
        rd.Recommender.load(popular.path).explain(["i1"], user="u1")
