"""Check DiffNet and DiffNet++ against their released code: same weights, graphs and batches must give the same numbers.

    git clone https://github.com/PeiJieSun/diffnet
    python -m benchmarks.parity.diffnet --released diffnet

Compares the vectors of users and items, the loss and its gradients. Prints the largest relative differences, and fails
above 1e-4. The released code is imported from its own folder; none of it is copied here. It needs TensorFlow 1, which
no longer installs, so its lines run on an imitation of the few operations that they use (`tensorflow1.py`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

import rediffuse as rd
from benchmarks.parity.released import add_folder, copy, finish, gap, gradient_gap, load
from benchmarks.parity.tensorflow1 import imitation
from rediffuse.batching.pairs import PairBatch
from rediffuse.models.base import TrainingData
from rediffuse.models.diffnet import DiffNet
from rediffuse.models.diffnetpp import DiffNetPP, Gate, LinkAttention
from rediffuse.models.social import SIDES, SocialModel

USERS, ITEMS, LINKS, SIZE, WIDTH, BATCH, NEGATIVES = 17, 23, 30, 6, 9, 12, 3
# Folders of the two programs, and what they call their parts.
FOLDERS = {"diffnet": "diffnet-tensorflow-v1-python3", "diffnetplus": "Diffnet++"}
ATTENTIONS = {
    "friend_attention": "social_neighbors",
    "interest_attention": "user_item",
    "item_attention": "item_user",
}
GATES = {
    "social_gate": "user_part_social",
    "interest_gate": "user_part_interest",
    "item_gate": "item_part_itself",
    "item_users_gate": "item_part_user",
}


def main() -> None:
    folder = add_folder(__doc__, "programs")
    sys.path[:0] = [str(folder / name) for name in FOLDERS.values()]
    torch.manual_seed(0)
    data, vectors = training_data(np.random.default_rng(0))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, kind in (("diffnet", DiffNet), ("diffnetplus", DiffNetPP)):
            found |= {f"{kind.name}: {what}": value for what, value in compare(name, kind, data, vectors, temporary)}
    finish(found)


def compare(name: str, kind: type[SocialModel], data: TrainingData, vectors: Any, folder: str) -> Any:
    """Yield what is compared, and the difference."""
    ours = kind(kind.Config.build("released", {"embedding_size": SIZE}), ITEMS, USERS)
    ours.fit(data)
    rng = np.random.default_rng(1)
    users, positives, negatives = (
        torch.from_numpy(rng.integers(size, size=shape))
        for size, shape in ((USERS, BATCH), (ITEMS, BATCH), (ITEMS, (BATCH, NEGATIVES)))
    )
    # The released program gets samples and their labels: all positives, then all negatives.
    samples = torch.cat((positives, negatives.flatten()))
    labels = (torch.arange(len(samples)) < BATCH).float()
    owners = torch.cat((users, users.repeat_interleave(NEGATIVES)))
    sys.modules["tensorflow"], variables = imitation(x[:, None] for x in (samples, owners, labels))
    theirs = run(name, ours, vectors, Path(folder))
    shared = share_weights(ours, theirs, variables)

    found_users, found_items = ours.vectors()
    order = columns_of_released(found_users.shape[1])
    yield "users", gap(found_users[:, order], theirs.final_user_embedding)
    yield "items", gap(found_items[:, order], theirs.final_item_embedding)
    of_users, of_positives, of_negatives = ours.batch_vectors(PairBatch(users, positives, negatives))
    scores = (of_users * of_positives).sum(1), torch.einsum("nd,nkd->nk", of_users, of_negatives)
    loss = BATCH * ours.pair_loss(*scores)  # ours is a mean over positives, theirs a sum
    yield "loss", gap(loss, theirs.loss)
    # One layer projects the features of users and of items there: its gradient is the sum of both.
    mine = iter(torch.autograd.grad(loss, [weight for group, _ in shared for weight in group]))
    totals = [sum(next(mine) for _ in group) for group, _ in shared]
    yield "gradients", gradient_gap(totals, torch.autograd.grad(theirs.loss, [weight for _, weight in shared]))  # pyright: ignore[reportArgumentType]


def training_data(rng: np.random.Generator) -> tuple[TrainingData, dict[str, Any]]:
    """Interactions, links and features. Some users have no friend."""
    pairs = {(u, int(i)) for u in range(USERS) for i in rng.permutation(ITEMS)[: rng.integers(1, 6)]}
    pairs |= {(i % USERS, i) for i in range(ITEMS)}
    vectors = {"user": rng.normal(size=(USERS, WIDTH)), "item": rng.normal(size=(ITEMS, WIDTH))}
    users, items = (
        pl.DataFrame({f"{side}_id": range(len(vectors[side])), "vector": vectors[side].tolist()}) for side in SIDES
    )
    links = pl.DataFrame(rng.integers(USERS - 3, size=(LINKS, 2)), ["source", "target"], orient="row")
    frame = pl.DataFrame(sorted(pairs), ["user_id", "item_id"], orient="row")
    data = rd.read_interactions(frame, users=users, items=items, social=links)
    popularity = np.bincount(data.interactions.items, minlength=ITEMS)
    return TrainingData(data.interactions, USERS, ITEMS, popularity, data.items, data.users, data.social), vectors


def run(name: str, ours: SocialModel, vectors: dict[str, Any], folder: Path) -> Any:
    """Build the released graph; its weights are new."""
    for side in SIDES:
        np.save(folder / f"{side}.npy", vectors[side])
    conf = SimpleNamespace(num_users=USERS, num_items=ITEMS, dimension=SIZE, learning_rate=1e-3)
    for side in SIDES:
        setattr(conf, f"{side}_review_vector_matrix", str(folder / f"{side}.npy"))
    supply: dict[str, Any] = {"USER_ITEM_SPARSITY_DICT": {}}
    graphs = {"SOCIAL_NEIGHBORS": ours.friends, "CONSUMED_ITEMS": ours.interest}
    if isinstance(ours, DiffNetPP):
        graphs["ITEM_CUSTOMER"] = ours.item_users
    for what, graph in graphs.items():
        degree = graph.degrees.clamp_min(1)
        supply[f"{what}_INDICES_INPUT"] = torch.stack((graph.owners, graph.columns), dim=1).numpy()
        supply[f"{what}_VALUES_INPUT"] = (1 / degree[graph.owners]).numpy()
        supply[f"{what}_NUM_INPUT"] = degree.numpy()
    theirs = getattr(load(name), name)(conf)
    theirs.inputSupply(supply)
    theirs.startConstructGraph()
    return theirs


def share_weights(ours: SocialModel, theirs: Any, variables: list[Tensor]) -> list[tuple[list[Tensor], Tensor]]:
    """Give our model the released weights. Returns our weights beside the released one that they come from."""
    layer = theirs.reduce_dimension_layer.variables
    projections: list[Any] = [*ours.projections.values()]
    shared: list[tuple[list[Tensor], Tensor]] = [
        ([ours.user_embedding.weight], theirs.user_embedding),
        ([ours.item_embedding.weight], theirs.item_embedding),
        ([projection.weight.value for projection in projections], layer[0]),
        ([projection.bias for projection in projections], layer[1]),
    ]
    if isinstance(ours, DiffNetPP):
        for number, (place, part) in enumerate(zip(("first", "second"), ours.layers, strict=True)):
            for name, called in GATES.items():
                gate: Gate = getattr(part, name)
                for layer_number, linear in enumerate((gate.first, gate.second), start=1):
                    kernel, bias = getattr(theirs, f"{place}_{called}_graph_att_layer{layer_number}").variables
                    shared += [([linear.weight], kernel), ([linear.bias], bias)]
            for graph, (name, called) in enumerate(ATTENTIONS.items()):
                attention: LinkAttention = getattr(part, name)
                kernel, bias = getattr(theirs, f"{place}_low_att_layer_for_{called}_layer1").variables
                # Numbers per edge are made for three layers of each graph, of which the program uses two.
                theta = ([attention.theta.value], variables[3 * graph + number])
                shared += [theta, ([attention.scale], kernel), ([attention.shift], bias)]
    for mine, weight in shared:
        for one in mine:
            copy(one, weight)
    return shared


def columns_of_released(width: int) -> list[int]:
    """The columns of our vectors in their order: h1, h2, embedding, features; ours has h2 at the end."""
    if width == SIZE:
        return list(range(width))
    return [block * SIZE + column for block in (0, 3, 1, 2) for column in range(SIZE)]


if __name__ == "__main__":
    main()
