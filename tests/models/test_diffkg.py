"""DiffKG: the specification's vectors V, exactness of what never makes a row, and what must never change."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from tests.data.test_knowledge import SMALL, kg
from tests.fitting import steps, training_data
from tests.synthetic import walks
from torch.nn import functional as F

import rediffuse as rd
from rediffuse.batching.rows import row_batch
from rediffuse.data.histories import Histories
from rediffuse.data.knowledge import knowledge_edges
from rediffuse.diffusion import ancestral, noise_schedule, q_sample, snr_weights
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.graphs import Graph
from rediffuse.losses import bpr, softmax_cross_entropy
from rediffuse.models.base import TrainingData
from rediffuse.models.diffkg import DiffKG
from rediffuse.models.knowledge import (
    RelationAttention,
    collaborative,
    denoising_loss,
    noised,
    reverse_rows,
    squared_errors,
)
from rediffuse.nn import RowDenoiser

ROWS = Histories.from_lists([[0, 1], [1]])
ENTITIES = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 2]])
RELATIONS = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])


def schedule():
    return noise_schedule("linear_var", 5, noise_scale=0.1, noise_min=1e-4, noise_max=0.02, first_beta=1e-4)


def close(found: torch.Tensor, expected, atol: float = 2e-6) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=atol)


def build(data: TrainingData | None = None, preset: str | None = None, **options) -> DiffKG:
    """On the specification's example unless other data are given; embeddings are those of V4 and V5 there."""
    torch.manual_seed(0)
    spec = data is None
    data = dataclasses.replace(training_data(ROWS, 2), kg=SMALL) if data is None else data
    options = {"embedding_size": 2, "hidden_size": 4} | options if spec else options
    model = DiffKG(DiffKG.Config.build(preset, options), data.num_items, data.num_users)
    model.check(data)
    model.fit(data)
    if spec:
        with torch.no_grad():
            model.entity_embedding.set(ENTITIES)
            model.relation_embedding.set(RELATIONS)
            model.encoder.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0.5, 0], [0, 0.5]]))
            model.user_embedding.weight.copy_(torch.eye(2))
    return model.eval()


def larger(**replaced) -> TrainingData:
    dataset = walks(knowledge=True)
    data = training_data(dataset.interactions, dataset.num_items)
    return dataclasses.replace(data, kg=dataset.kg, **replaced)


# --- attention and propagation ---------------------------------------------------------------------------------


def test_v4_attention():
    model = build()
    alpha = model.encoder.attention(ENTITIES, RELATIONS, model.full, model.relation)
    close(alpha, [1, 0.182426, 0.817574, 0.5, 0.5, 1])
    for hops, share, expected in (
        (1, 0.5, [[1.394427, 0.447214], [0.064610, 1.497911], [1.207107, 1.207107], [0, 2]]),
        (2, 0.0, [[0.811242, 0.584710], [0.125783, 0.992058], [0.652815, 0.757518], [0.032322, 0.999478]]),
        (2, 0.5, [[1.508456, 0.808317], [0.158089, 1.741013], [1.256368, 1.361071], [0.032322, 1.999478]]),
    ):
        encoder = RelationAttention(2, hops, share, drop=0.3).eval()
        encoder.weight.data = model.encoder.weight.data
        close(encoder(ENTITIES, RELATIONS, model.full, model.relation), expected)


@pytest.mark.parametrize("size", [1, 9], ids=["products on edges", "products on nodes"])
def test_attention_is_that_of_edges_by_their_ends(size):
    edges = knowledge_edges(walks(knowledge=True).kg, 40)
    assert (edges.num_nodes * edges.num_relations > size * len(edges)) == (size == 1)
    graph, relation = Graph(edges.matrix()), torch.from_numpy(edges.relation)
    generator = torch.Generator().manual_seed(0)
    entities = torch.randn(edges.num_nodes, size, generator=generator, dtype=torch.float64, requires_grad=True)
    relations = torch.randn(edges.num_relations, size, generator=generator, dtype=torch.float64, requires_grad=True)
    encoder = RelationAttention(size, 1, 0.5, 0.0).double()
    both = torch.cat((entities[graph.owners], entities[graph.columns]), dim=1)
    logits = F.leaky_relu(((both @ encoder.weight) * relations[relation]).sum(1), 0.2)
    expected = graph.block().softmax(logits)
    torch.testing.assert_close(encoder.attention(entities, relations, graph, relation), expected)
    totals = torch.zeros(edges.num_nodes, dtype=torch.float64).index_add(0, graph.owners, expected.detach())
    torch.testing.assert_close(totals[graph.degrees > 0], torch.ones(int((graph.degrees > 0).sum())).double())


def test_attention_gradients_by_finite_differences():
    edges = knowledge_edges(SMALL, 2)
    graph, relation = Graph(edges.matrix()), torch.from_numpy(edges.relation)
    encoder = RelationAttention(2, 2, 0.5, 0.0).double()
    inputs = [x.double().requires_grad_() for x in (ENTITIES + 0.1, RELATIONS)]
    assert torch.autograd.gradcheck(lambda e, r: encoder(e, r, graph, relation), inputs, atol=1e-6)


def test_v5_propagation():
    model = build()
    users, items = torch.stack(model.propagated(model.original)).sum(0).split((2, 2))
    close(users, [[2.801783, 1.302975], [0.184441, 3.037786]])
    close(items, [[3.429900, 1.060999], [0.856586, 3.389048]])
    close(users @ items.T, [[10.992290, 6.815813], [3.855701, 10.453191]], atol=1e-5)


def test_someone_new_gets_what_propagation_would_give():
    """A node with these edges and one to itself, whose own vector is zero; other nodes do not notice."""
    data = larger()
    model = build(data, layers=3)
    model.prepare()
    history = [3, 7, 9]
    states = [torch.zeros(64)]
    layers = [layer[model.num_users :] for layer in model.propagated(model.views()[0])]
    for layer in layers[:-1]:
        sent = sum(layer[i] / (4 * model.degrees[i]) ** 0.5 for i in history)
        states.append(states[-1] / 4 + sent)
    torch.testing.assert_close(model.fold_in(Histories.from_lists([[7, 3, 9, 3]]))[0], torch.stack(states).sum(0))


# --- losses ----------------------------------------------------------------------------------------------------


def test_v7_contrast_and_bpr():
    a, b = torch.tensor([[1.0, 0], [0, 1], [3, 4]]), torch.tensor([[1.0, 1], [0, 2], [4, 3]])
    nodes = torch.tensor([0, 2])
    mean, each = softmax_cross_entropy(F.normalize(a[nodes]) / 0.5, F.normalize(b), nodes)
    close(each, [0.894978, 1.025281])
    close(mean, 0.960129)
    assert bpr(torch.tensor([0.5, -1, 2]), torch.zeros(3, 1)).item() == pytest.approx(1.914267 / 3, abs=1e-6)


def test_the_loss_written_out():
    data = larger()
    model = build(data, contrast=0.3, temperature=0.5, pruning="random", rebuild_k=1, reg=0.2).eval()
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    model.rebuilt = True
    assert 0 < model.kept.value.float().mean() < 1
    main, beside = (torch.stack(model.propagated(view)).sum(0) for view in (model.pruned, model.original))
    users, items = main[:60], main[60:]
    margin = (users[batch.users] * items[batch.positives]).sum(1)[:, None]
    margin = margin - torch.einsum("nd,nkd->nk", users[batch.users], items[batch.negatives])
    expected = -F.logsigmoid(margin).mean() + 0.2 * model.penalty(batch)
    for theirs, ours, asked in ((beside[:60], users, batch.users), (beside[60:], items, batch.positives)):
        once = asked.unique()
        cosine = F.normalize(theirs[once]) @ F.normalize(ours).T / 0.5
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


def test_v1_schedule():
    made = schedule()
    expected = [1e-4, 4.97504975e-4, 4.97752609e-4, 4.98000490e-4, 4.98248619e-4]
    torch.testing.assert_close(made.betas, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-11)
    weights = torch.tensor([1, 8326.2344, 760.4489, 285.3202, 149.4866], dtype=torch.float64)
    torch.testing.assert_close(snr_weights(made, "x0"), weights, rtol=1e-6, atol=1e-3)


def test_v6_collaborative_convolution():
    f = torch.tensor([[0.1, 0.2, 0.7, 0], [0, 0.1, 0.6, 0.4], [0.8, 0.6, 0.1, 0], [0.1, 0.9, 0, 0.1]])
    network = denoiser(4, 4, torch.float32)
    with torch.no_grad():
        network.last.weight.copy_(f.T)
        network.last.bias.zero_()
        liked = torch.tensor([[1.0, 1], [0, 1]]).T @ torch.eye(2)  # R' E_u
        found = collaborative(network, torch.eye(4), liked)
        close(found, [[0.3, 0.2], [0.1, 0.1], [1.4, 0.6], [1, 0.9]])
        close((found - ENTITIES).square().mean(1), [0.265, 0.41, 0.16, 1.105])
        network.last.bias.fill_(0.3)
        found = collaborative(network, torch.eye(4), liked)
        torch.testing.assert_close(found, (f + 0.3)[:, :2] @ liked)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_reverse_chain_in_hidden_space_is_the_plain_one(normalize, dtype, tolerance):
    rows, dense = rows_of(larger(), dtype)
    network = denoiser(dense.shape[1], 12, dtype, normalize=normalize)
    with torch.no_grad():
        network.last.weight.mul_(3)  # so that the chain moves
        plain = ancestral(lambda x, t: network(x, t), dense, schedule(), prediction="x0", variance=None)
        found = network.last(reverse_rows(network, schedule(), rows))
    torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_loss_by_gram_matrices_is_the_plain_one(dtype, tolerance):
    """Values and gradients."""
    rows, dense = rows_of(larger(), dtype)
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
    rows, dense = rows_of(larger(), torch.float64)
    network, made = denoiser(dense.shape[1], 4), schedule()
    t = torch.full((len(dense),), 4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        torch.manual_seed(0)
        ours = torch.stack([noised(network, made, rows, t) for _ in range(3000)])
        draws = [torch.randn(dense.shape, generator=generator, dtype=torch.float64) for _ in range(3000)]
        theirs = torch.stack([q_sample(made, dense, t, noise) @ network.first for noise in draws])
    error = (ours.var(0) / 3000 + theirs.var(0) / 3000).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    one, other = (torch.cov((x - x.mean(0)).reshape(-1, 4).T) for x in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(one.diagonal().mean()))


@pytest.mark.parametrize("hidden", [8, 64, 512])
def test_noise_can_be_drawn_with_many_hidden_units(hidden):
    """W'W is singular where there are fewer entities."""
    rows, dense = rows_of(larger(), torch.float32)
    network = denoiser(dense.shape[1], hidden, torch.float32)
    with torch.no_grad():
        network.first.add_(torch.randn(dense.shape[1], 1) @ torch.randn(1, hidden))
    found = noised(network, schedule(), rows, torch.zeros(len(dense), dtype=torch.int64))
    assert torch.isfinite(found).all()


def test_a_rank_without_a_part_of_the_last_batch():
    data = larger()
    model = build(data, denoiser_batch=67).train()
    batches = model.batches(data, np.random.default_rng(0))
    loss = model.loss(batches.get(1, 1, 2))
    assert loss.item() == 0.0
    loss.backward()
    assert not model.denoiser.first.grad.any()


def test_the_whole_loss_is_that_of_dense_rows_on_average():
    """Both ways to noise have the same expectation: compared over many draws, by their standard errors."""
    data = larger()
    rows, dense = rows_of(data, torch.float64)
    network = denoiser(dense.shape[1], 4, dropout=0.0)
    vectors, liked = torch.randn(len(dense), 3).double(), torch.randn(40, 3).double()
    means = []
    with torch.no_grad():
        for whole in (False, True):
            torch.manual_seed(5)
            found = [denoising_loss(network, schedule(), rows, vectors, liked, 0.5, dense=whole) for _ in range(400)]
            found = torch.stack(found)
            means.append((found.mean(), found.std() / 20))
    (one, first), (other, second) = means
    assert abs(one - other) < 4 * (first**2 + second**2) ** 0.5
    assert first < 0.1 * one


def test_the_denoiser_leaves_the_recommender_alone_and_the_other_way_round():
    data = larger()
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


def test_without_the_convolution_the_denoiser_does_not_know_of_people():
    data = larger()
    losses = []
    for scale in (1.0, 5.0):
        model = build(data, collaborative=0.0)
        with torch.no_grad():
            model.user_embedding.weight.mul_(scale)
        torch.manual_seed(2)
        losses.append(model.loss(model.batches(data, np.random.default_rng(0)).get(0)).item())
    assert losses[0] == losses[1]


def test_the_denoiser_learns_what_is_there():
    data = larger()
    model = build(data, collaborative=0.0, denoiser_batch=32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for epoch in range(60):
        batches = model.batches(data, np.random.default_rng(epoch))
        for index in range(-(-int((model.full.degrees > 0).sum()) // 32)):
            model.loss(batches.get(index)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        rows = model.denoiser.last(model.denoised())
    there = torch.from_numpy(model.edges.matrix().toarray() > 0)
    assert rows[there].mean() > 10 * rows[~there].abs().mean()


# --- pruning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["corrected", "released"])
@pytest.mark.parametrize("pruning", ["diffusion", "random"])
def test_what_is_kept_is_part_of_the_graph_both_ways(pruning, fidelity):
    data = larger()
    model = build(data, pruning=pruning, fidelity=fidelity, rebuild_k=1)
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    kept = model.kept.value.numpy()
    assert (kept == kept[model.reverse]).all()
    assert 0 < kept.sum() < len(kept)
    once = kept.copy()
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    assert (model.kept.value.numpy() == once).all()  # the same epoch, the same graph


def test_edge_scores_are_the_denoised_rows():
    model = build(larger())
    with torch.no_grad():
        rows = model.denoiser.last(model.denoised()).numpy()
    np.testing.assert_allclose(model.edge_scores(), rows[model.edges.head, model.edges.tail], rtol=1e-4, atol=1e-5)


def test_keep_rate_drops_directions_by_themselves():
    data = larger()
    model = build(data, pruning="random", rebuild_k=100, keep_rate=0.5)
    model.batches(data, np.random.default_rng(0))
    model.rebuild()
    kept = model.kept.value.numpy()
    assert 0.3 < kept.mean() < 0.7
    assert (kept != kept[model.reverse]).any()


def test_views():
    model = build()
    model.pruned = model.view(np.arange(6) < 1)
    assert model.views() == (model.pruned, model.original)
    other = build(main_view="original")
    assert other.views() == (other.original, other.pruned)
    released = build(fidelity="released")
    released.pruned = released.view(np.arange(6) < 1)
    assert released.train().views() == (released.original, released.original)
    assert released.eval().views() == (released.pruned, released.original)


def test_the_original_view_can_be_capped_and_is_drawn_once():
    one, again, other = (build(larger(seed=seed), most_edges=1) for seed in (1, 1, 2))
    assert int(one.original[0].degrees.max()) == 1
    assert torch.equal(one.original[0].columns, again.original[0].columns)
    assert not torch.equal(one.original[0].columns, other.original[0].columns)


# --- runs ------------------------------------------------------------------------------------------------------

TINY = {"embedding_size": 16, "epochs": 3, "batch_size": 64, "denoiser_batch": 32, "hidden_size": 8, "rebuild_k": 1}


@pytest.mark.parametrize("preset", [None, "released"])
def test_it_learns(preset):
    data = larger()
    model = build(data, preset, **{**TINY, "contrast": 0.0, "reg": 0.0})
    losses = steps(model, data, 30, learning_rate=0.01)
    per_epoch = np.array(losses).reshape(30, -1)
    people = -(-len(data.train.items) // 64)
    assert per_epoch[-1, -people:].mean() < 0.5 * per_epoch[0, -people:].mean()
    model.prepare()


def test_a_graph_is_needed_and_must_touch_items(tmp_path):
    with pytest.raises(DataError, match="learns from a knowledge graph, and the data have none"):
        rd.train("diffkg", rd.split.leave_one_out(walks()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    apart = dataclasses.replace(training_data(ROWS, 2), kg=kg([(0, 0, 1)], [], 2, 1))
    with pytest.raises(DataError, match="No item is linked to an entity"):
        build(apart)


def test_items_without_entities_and_relations_seen_once_train():
    rows = Histories.from_lists([[0, 1], [1, 2], [2, 0], [3]])
    data = dataclasses.replace(training_data(rows, 4), kg=kg([(0, 0, 2), (1, 1, 2)], [(0, 0), (2, 1)], 3, 3))
    model = build(data, **TINY)
    steps(model, data, 3, learning_rate=0.01)
    model.prepare()
    assert torch.isfinite(model.score(rows, users=np.arange(4))).all()


@pytest.mark.filterwarnings("ignore:Training ended before the first validation")
def test_resumed_after_a_kill_in_either_phase_it_ends_the_same(tmp_path):
    split = rd.split.leave_one_out(walks(knowledge=True))
    whole = rd.train("diffkg", split, tmp_path / "whole", config=TINY)
    expected = rd.Recommender.load(whole.path).model.state_dict()
    from rediffuse.training.loop import Trainer

    for stop in (1, 4):  # in the denoiser's turn of the first epoch, in the recommender's
        place, taken = tmp_path / f"stopped{stop}", 0

        def out_of_time(self, stop=stop):
            nonlocal taken
            taken += 1
            return taken == stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_out_of_time", out_of_time)
            rd.train("diffkg", split, place, config=TINY)
        resumed = rd.train("diffkg", split, place, config=TINY, resume=True)
        found = rd.Recommender.load(resumed.path).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_paths_of_a_run(tmp_path):
    data = walks(knowledge=True)
    run = rd.train("diffkg", rd.split.leave_one_out(data), tmp_path / "run", config=TINY)
    recommender = rd.Recommender.load(run.path)
    table = pl.read_parquet(run.path / "knowledge.parquet")
    assert table.group_by("item_id").agg(pl.col("weight").sum())["weight"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert set(table["relation"]) == {"of 5", "of 2"}
    assert 0 < table["kept"].mean() < 1
    paths = recommender.explain(["i1", "i7", "i39", "no such item"], history=["i0", "i5"])
    assert paths["item_id"].unique(maintain_order=True).to_list() == ["i1", "i7"]
    assert paths.filter(item_id="i1")["entity"].to_list() in (["part 5.0", "part 2.0"], ["part 2.0", "part 5.0"])
    assert (paths["touched_item"].to_list()[-1], paths["entity"].to_list()[-1]) == ("i5", "part 5.1")
    assert recommender.explain(["i1"], user="u1").columns == paths.columns
    with pytest.warns(RediffuseWarning, match="1 of 1 users are unknown; there are no paths"):
        assert not len(recommender.explain(["i1"], user="nobody"))
    with pytest.raises(ConfigError, match="Say for whom"):
        recommender.explain(["i1"])
    popular = rd.train("popularity", rd.split.leave_one_out(data), tmp_path / "popular")
    with pytest.raises(ConfigError, match="no knowledge graph"):
        rd.Recommender.load(popular.path).explain(["i1"], user="u1")
