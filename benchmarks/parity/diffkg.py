"""Check DiffKG against its released code: same weights, graph, batches and noise must give the same numbers.

    git clone https://github.com/HKUDS/DiffKG
    python -m benchmarks.parity.diffkg --released DiffKG

Compares the edges of a knowledge graph, both encoders, the losses of both phases, their gradients, the reverse chain
and the edges that it keeps. Prints the largest relative differences, and fails above 1e-4. The released code is
imported from its own folder; none of it is copied here. If torch_scatter, which it needs, is absent, two of its
functions are replaced.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

import rediffuse as rd
from benchmarks.parity.released import add_folder, copy, finish, gap, gradient_gap, load, module, replaced, stay_on_cpu
from rediffuse.batching.pairs import PairBatch
from rediffuse.batching.rows import row_batch
from rediffuse.models.base import TrainingData
from rediffuse.models.diffkg import DiffKG
from rediffuse.models.diffkg_denoiser import denoise_graph, denoising_loss
from rediffuse.models.relation_attention import View

USERS, ITEMS, ENTITIES, TRIPLES, RELATIONS, BATCH = 15, 20, 40, 150, 3, 8


def main() -> None:
    add_folder(__doc__, "Model.py")
    stay_on_cpu()
    scatter = module("torch_scatter", scatter_sum=scatter_sum, scatter_softmax=scatter_softmax)
    model, handler = load("Model", torch_scatter=scatter), load("DataHandler")
    rng = np.random.default_rng(0)
    triples = np.stack([rng.integers(size, size=TRIPLES) for size in (ENTITIES, RELATIONS, ENTITIES)], axis=1)
    triples = triples[triples[:, 0] != triples[:, 2]]
    data, ours = our_model(rng, triples)
    args, reader = model.args, handler.DataHandler.__new__(handler.DataHandler)
    found = {"edges that differ": edges_that_differ(reader, ours, data, triples)}
    found |= compare(model, reader, args, ours, data, rng)
    finish(found)


def our_model(rng: np.random.Generator, triples: Any) -> tuple[TrainingData, DiffKG]:
    pairs = [(u, i) for u in range(USERS) for i in rng.permutation(ITEMS)[: rng.integers(2, 9)]]
    pairs += [(i % USERS, i) for i in range(ITEMS)]
    data = rd.read_interactions(
        pl.DataFrame(sorted(set(pairs)), ["user_id", "item_id"], orient="row"),
        kg=pl.DataFrame(triples, ["head", "relation", "tail"], orient="row"),
        item_entity=pl.DataFrame({"item_id": range(ITEMS), "entity_id": range(ITEMS)}),
    )
    popularity = np.bincount(data.interactions.items, minlength=ITEMS)
    training = TrainingData(data.interactions, USERS, ITEMS, popularity, kg=data.kg)
    torch.manual_seed(0)
    options = {"message_dropout": 0.0, "denoiser_dropout": 0.0, "most_edges": None, "reg": 0.0, "keep_rate": 1.0}
    sizes = {"embedding_size": 8, "hidden_size": 16, "kg_hops": 2, "contrast": 0.3, "collaborative": 0.4}
    ours = DiffKG(DiffKG.Config.build("released", options | sizes), ITEMS, USERS)
    ours.fit(training)
    return training, ours


def edges_that_differ(reader: Any, ours: DiffKG, data: TrainingData, triples: Any) -> float:
    """How many edges (head, tail, relation), in entities of the file, one of the two has and the other has not."""
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(Path(folder) / "kg.txt", triples, fmt="%d")
        edges, _ = reader.buildGraphs(reader.readTriplets(Path(folder) / "kg.txt"))
    assert data.kg is not None
    entity = data.kg.entity_ids.to_numpy()[ours.edges.entity]
    mine = zip(entity[ours.edges.head], entity[ours.edges.tail], ours.edges.relation, strict=True)
    return float(len({tuple(map(int, edge)) for edge in mine} ^ {tuple(map(int, edge)) for edge in edges}))


def compare(
    model: Any, reader: Any, args: Any, ours: DiffKG, data: TrainingData, rng: np.random.Generator
) -> dict[str, float]:
    edges, config = ours.edges, ours.config
    args.user, args.item, args.entity_n, args.relation_num = USERS, ITEMS, edges.num_nodes, edges.num_relations
    args.latdim, args.gnn_layer, args.layer_num_kg = config.embedding_size, config.layers, config.kg_hops
    args.mess_dropout_rate, args.res_lambda, args.triplet_num = 0.0, config.residual, -1
    reader.kg_dict = {}
    for head, relation, tail in zip(edges.head, edges.relation, edges.tail, strict=True):
        reader.kg_dict.setdefault(int(head), []).append((int(relation), int(tail)))
    theirs = model.Model(reader)
    weights = {
        "users": (ours.user_embedding.weight, theirs.uEmbeds),
        "entities": (ours.entity_embedding.value, theirs.eEmbeds),
        "relations": (ours.relation_embedding.value, theirs.rEmbeds),
        "attention": (ours.encoder.weight, theirs.rgat.W),
    }
    for mine, their in weights.values():
        copy(their, mine)
    interactions = ours_matrix(data)
    adjacency = reader.makeTorchAdj(interactions)

    kept = rng.random(len(edges)) < 0.5
    pruned = ours.view_of(kept)
    their_pruned = tuple(torch.from_numpy(x[..., kept]) for x in (np.stack([edges.head, edges.tail]), edges.relation))
    found: dict[str, float] = {}
    for name, view, their_view in (("whole graph", ours.original, None), ("pruned graph", pruned, their_pruned)):
        found[f"vectors, {name}"] = gap(summed(ours, view), torch.cat(theirs(adjacency, False, their_view)))

    # Distinct users and items: the released loss counts a node of a batch as often as it occurs.
    users, positives = (torch.from_numpy(rng.permutation(n)[:BATCH]) for n in (USERS, ITEMS))
    negatives = torch.from_numpy(rng.integers(ITEMS, size=BATCH))
    ours.train()
    ours.pruned, ours.rebuilt = pruned, True
    for fidelity in ("released", "corrected"):
        ours.config = config.model_copy(update={"fidelity": fidelity})
        loss = ours.recommender_loss(PairBatch(users, positives, negatives[:, None]))
        # By position, as the released program calls it, the pruned graph is taken for a switch of dropout.
        main = theirs(adjacency, their_pruned) if fidelity == "released" else theirs(adjacency, False, their_pruned)
        other = theirs(adjacency, False)
        anchors, (good, bad) = main[0][users], (main[1][x] for x in (positives, negatives))
        utils = load("Utils.Utils")
        their_loss = -utils.pairPredict(anchors, good, bad).sigmoid().log().mean()
        contrast = utils.contrastLoss(other[1], main[1], positives, config.temperature)
        contrast = contrast + utils.contrastLoss(other[0], main[0], users, config.temperature)
        their_loss = their_loss + config.contrast * contrast
        found[f"loss, {fidelity}"] = gap(loss, their_loss)
        mine, their = ([pair[side] for pair in weights.values()] for side in (0, 1))
        gradients = torch.autograd.grad(loss, mine), torch.autograd.grad(their_loss, their)
        found[f"gradients, {fidelity}"] = gradient_gap(*gradients)
    ours.config = config
    return found | compare_denoiser(model, reader, ours, theirs, interactions)


def compare_denoiser(model: Any, reader: Any, ours: DiffKG, theirs: Any, interactions: Any) -> dict[str, float]:
    config, denoiser, nodes = ours.config, ours.denoiser, ours.edges.num_nodes
    assert denoiser is not None
    network = model.Denoise([nodes, config.hidden_size], [config.hidden_size, nodes], 10, norm=True, dropout=0.0)
    first, last = network.in_layers[0], network.out_layers[0]
    copy(first.weight, torch.cat((denoiser.first.T, denoiser.first_time.weight), dim=1))
    for their, mine in ((first.bias, denoiser.first_time.bias), (last.weight, denoiser.last.weight)):
        copy(their, mine)
    for their, mine in ((network.emb_layer, denoiser.time), (last, denoiser.last)):
        copy(their.bias, mine.bias)
    copy(network.emb_layer.weight, denoiser.time.weight)
    levels = (config.noise_scale, config.noise_min, config.noise_max)
    diffusion = model.GaussianDiffusion(*levels, config.diffusion_steps)

    matrix = ours.edges.matrix()
    x_0, t = torch.from_numpy(matrix.toarray()), torch.arange(nodes) % config.diffusion_steps
    noise, everything = torch.randn_like(x_0), torch.arange(nodes)
    users, entities = theirs.uEmbeds.detach(), theirs.eEmbeds.detach()
    with replaced(torch, randint=lambda *_, **__: t, randn_like=lambda *_, **__: noise):
        bound, convolution = diffusion.training_losses(
            network, x_0, reader.buildUIMatrix(interactions), users, entities, everything
        )
        sums = ours.item_users @ ours.user_embedding.weight.detach()
        share, rows = config.collaborative, row_batch(matrix)
        loss = denoising_loss(denoiser, ours.schedule, rows, entities, sums, share, dense=True)
    their_loss = (1 - share) * bound.mean() + share * convolution.mean()
    mine = torch.autograd.grad(loss, [denoiser.first, denoiser.last.weight, denoiser.last.bias])
    their = torch.autograd.grad(their_loss, [first.weight, last.weight, last.bias])
    found = {"loss of the denoiser": gap(loss, their_loss)}
    found["gradients of the denoiser"] = gradient_gap((mine[0].T, *mine[1:]), (their[0][:, :nodes], *their[1:]))
    with torch.no_grad():
        denoised = diffusion.p_sample(network, x_0, 0)
        found["reverse chain"] = gap(denoiser.last(denoise_graph(denoiser, ours.schedule, ours.edges)), denoised)
    # The best column of each row, in either direction, where the graph has that edge.
    best = {(head, int(tail)) for head, tail in enumerate(denoised.argmax(dim=1))}
    both = best | {(tail, head) for head, tail in best}
    expected = [pair in both for pair in zip(ours.edges.head.tolist(), ours.edges.tail.tolist(), strict=True)]
    ours.rebuild_seed = 0
    ours.rebuild()
    found["kept edges that differ"] = float((ours.kept.value != torch.tensor(expected)).sum())
    if not any(expected):
        raise SystemExit("No edge is kept, so there is nothing to compare: use another seed.")
    return found


def summed(ours: DiffKG, view: View) -> Tensor:
    return torch.stack(ours.propagate_view(view)).sum(0)


def ours_matrix(data: TrainingData) -> Any:
    from scipy import sparse

    rows = data.train
    ones = np.ones(len(rows.items), dtype=np.float32)
    return sparse.coo_matrix((ones, (rows.owners, rows.items)), shape=(USERS, ITEMS))


def scatter_sum(values: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
    return torch.zeros((dim_size, *values.shape[1:]), dtype=values.dtype).index_add(dim, index, values)


def scatter_softmax(values: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
    powers = (values - values.max()).exp()
    return powers / scatter_sum(powers, index, dim, dim_size)[index]


if __name__ == "__main__":
    main()
