"""A part of the prior inside the training loss: the mechanism of the repeat bias, with a value per item.

For a user u with the history x_1 .. x_t, the logit of every item j that is not in the history grows by beta r_j, with

    r = log(1 + s / e)        s = [(w . x) D_i^-1/2 R' D_u^-y R D_i^-z + mu x_t D_i^-1/2 N D_i^-1/2]

s is the score of `theat` (see there) at its usual options, from the last `RECENT` items, without its prior; of each row
the `KEPT` largest values count. So r is sparse, and beta, which is learned with the network, is the weight of
log(s + e), up to a constant of the row. Training and scoring add the same r.

The graph was counted on the interactions that are the targets of the training. Left as it is, it would point at each
of them: the pair of the last item and the target is in it. So training leaves out what the user contributed to the
graph: r is computed from the matrices of all other users, and from the degrees of other users for the items that the
user has yet to reach. When the trained model scores an item that is not in the history, no contribution of the user is
in its count, so training and scoring see the same thing. Items of the history have contributions of their user, and so
get no r; the repeat bias is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from rediffuse.batching.matrix import binary_matrix
from rediffuse.data.histories import Histories
from rediffuse.graphs.item_graph import power, strongest
from rediffuse.models.theat import DECAY, WINDOW, TemporalHeat

# Items of the history that r is computed from, and the values kept per row.
RECENT, KEPT = 10, 256
# The options of theat, which has not chosen its own when the training begins.
HALF_LIFE, TRANSITION_WEIGHT, ITEM_EXPONENT = 5.0, 0.3, 0.6
# e, and the smallest s that counts: below it, r is nothing but the rounding of a difference.
FLOOR, SMALLEST = 1e-3, 1e-5
# beta is this times a parameter, so Adam moves it this much faster than a weight; and its start.
RATE, START = 10.0, 0.5

# Sparse values: row numbers, item numbers, values.
Values = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Own:
    """What the users of the training contributed to the graph, to be left out.

    Attributes:
        begins: (interactions,) where the own interactions of each interaction's user begin.
        owners: (interactions,) its user.
        pairs: users x items, where the entry of a user's item is the number of the pair plus 1.
        first: (pairs,) the first interaction of each pair.
        pair: (interactions,) the pair of each interaction.
        user_weights: (users,) what a user adds to the entry of two of their items.
        followers: pairs x items, what the user of a pair has added to the transitions from its item.
    """

    begins: NDArray[np.int64]
    owners: NDArray[np.int64]
    pairs: sparse.csr_array
    first: NDArray[np.int64]
    pair: NDArray[np.int64]
    user_weights: NDArray[np.float64]
    followers: sparse.csr_array


class GraphResidual(nn.Module):
    """The values r of `theat`, and their weight beta.

    Attributes:
        strength: beta, divided by `RATE`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(START / RATE))
        self.train_items = np.empty(0, dtype=np.int32)
        self.own: Own | None = None  # in training only

    @property
    def beta(self) -> Tensor:
        return RATE * self.strength

    def fit(self, train: Histories, graph: TemporalHeat) -> None:
        """Remember what each user contributed to a graph that was fitted with ``train``.

        Args:
            train: the interactions as the batches of the training number them; synthetic ones are not in the graph.
        """
        self.train_items = train.items
        own = train if train.synthetic is None else train.where(~train.synthetic)
        lengths = train.lengths
        begins = np.repeat(train.offsets[1:] - own.lengths, lengths)
        matrix = binary_matrix(own, graph.num_items)
        # The same matrix, with the numbers of pairs instead of ones.
        numbers = np.arange(1, len(matrix.indices) + 1, dtype=np.int64)
        pairs = sparse.csr_array((numbers, matrix.indices, matrix.indptr), shape=matrix.shape)
        keys = np.repeat(np.arange(len(own)), np.diff(pairs.indptr)) * graph.num_items + pairs.indices
        owners = train.owners
        pair = np.searchsorted(keys, owners * graph.num_items + train.items)
        pair = np.minimum(pair, max(len(keys) - 1, 0))  # synthetic interactions may have no pair, and are not read
        real = np.flatnonzero(np.arange(len(train.items)) >= begins)
        first = np.zeros(len(keys), dtype=np.int64)
        first[pair[real[::-1]]] = real[::-1]
        ends = np.repeat(train.offsets[1:], lengths)
        parts = []
        for lag in range(1, WINDOW + 1):
            at = real[real + lag < ends[real]]
            at = at[train.items[at] != train.items[at + lag]]
            parts.append((pair[at], train.items[at + lag], np.full(len(at), DECAY ** (lag - 1), dtype=np.float32)))
        rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        followers = sparse.coo_array((values, (rows, columns)), shape=(len(keys), graph.num_items)).tocsr()
        weights = power(np.diff(pairs.indptr), -graph.config.user_exponent)
        self.own = Own(begins, owners, pairs, first, pair, weights, sparse.csr_array(followers))

    def training_values(self, graph: TemporalHeat, targets: Tensor) -> Values:
        """r of the histories before some training interactions, without the contributions of their users.

        Args:
            targets: (n,) int64 numbers of the interactions.
        """
        own = self.own
        assert own is not None
        at = targets.cpu().numpy()
        # A target that is synthetic, or a user's first own interaction, has no history.
        lengths = np.clip(at - own.begins[at], 0, RECENT)
        known = np.flatnonzero(lengths)
        at, lengths = at[known], lengths[known]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        places = np.arange(offsets[-1]) + np.repeat(at - lengths - offsets[:-1], lengths)
        recent = Histories(offsets, self.train_items[places])
        shared, followers, mass = _mass(graph, recent)
        users = own.owners[at]
        of_users = own.pairs[users]
        keys = _keys(of_users)
        inside, found = _find(shared, keys)
        in_history = own.first[of_users.data - 1] < np.repeat(at, np.diff(of_users.indptr))
        ratio = _without_one(graph.degrees.cpu().numpy()[of_users.indices])
        lost = np.repeat(mass * own.user_weights[users], np.diff(of_users.indptr))
        shared.data[inside] -= lost[found].astype(np.float32)
        shared.data[inside] *= (ratio[found] ** ITEM_EXPONENT).astype(np.float32)
        shared.data[inside[in_history[found]]] = 0
        of_last = own.followers[own.pair[at - 1]]
        scale = power(graph.degrees.cpu().numpy(), -0.5)[self.train_items[at - 1]]
        inside, found = _find(followers, _keys(of_last))
        followers.data[inside] -= (of_last.data * np.repeat(scale, np.diff(of_last.indptr)))[found].astype(np.float32)
        inside, found = _find(followers, keys)
        followers.data[inside] *= (ratio[found] ** 0.5).astype(np.float32)
        followers.data[inside[in_history[found]]] = 0
        return _values(graph, shared, followers, known, targets.device)

    def values(self, graph: TemporalHeat, histories: Histories, device: torch.device) -> Values:
        """r of B histories."""
        known = np.flatnonzero(histories.lengths)
        histories = histories.take(known)
        shared, followers, _ = _mass(graph, histories.tail(RECENT))
        seen = _keys(binary_matrix(histories, graph.num_items))
        for term in (shared, followers):
            term.data[_find(term, seen)[0]] = 0
        return _values(graph, shared, followers, known, device)


def _mass(graph: TemporalHeat, recent: Histories) -> tuple[sparse.csr_array, sparse.csr_array, NDArray[np.float64]]:
    """The two terms of s (n, num_items), without the scale of recommended items; and the mass that left the history of
    each row (n,)."""
    inputs = graph.inputs(recent, graph.settings | {"half_life": HALF_LIFE})
    terms = graph.shared_mass(inputs["history"]), graph.follower_mass(inputs["last"])
    for term in terms:
        term.sort_indices()
    scale = power(graph.degrees.cpu().numpy(), -0.5)
    return *terms, np.asarray(inputs["history"] @ scale)


def _values(
    graph: TemporalHeat,
    shared: sparse.csr_array,
    followers: sparse.csr_array,
    known: NDArray[np.int64],
    device: torch.device,
) -> Values:
    """r from the two terms of s, for the rows ``known``."""
    degrees = graph.degrees.cpu().numpy()
    for term, exponent in ((shared, ITEM_EXPONENT), (followers, 0.5)):
        term.data *= power(degrees, -exponent).astype(np.float32)[term.indices]
    followers.data *= np.float32(TRANSITION_WEIGHT)
    total = sparse.csr_array(shared + followers)
    total.data[total.data < SMALLEST] = 0
    total.eliminate_zeros()
    scores, columns = np.asarray(total.data, dtype=np.float32), total.indices
    chosen, _, _ = strongest(total, KEPT)
    rows = np.repeat(known, np.diff(total.indptr))[chosen]
    found = rows, columns[chosen].astype(np.int64), np.log1p(scores[chosen] / np.float32(FLOOR))
    rows, items, values = (torch.from_numpy(part).to(device) for part in found)
    return rows, items, values


def _keys(matrix: sparse.csr_array) -> NDArray[np.int64]:
    """One ascending number per entry of a matrix whose rows are in order of columns."""
    height, width = matrix.shape  # pyright: ignore
    return np.repeat(np.arange(height), np.diff(matrix.indptr)) * width + matrix.indices


def _find(matrix: sparse.csr_array, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the entries ``keys`` are in a matrix, and which of them are there at all."""
    present = np.append(_keys(matrix), -1)  # no key is -1, and none is past the end
    at = np.searchsorted(present[:-1], keys)
    found = np.flatnonzero(present[at] == keys)
    return at[found], found


def _without_one(degrees: NDArray[np.floating]) -> NDArray[np.float64]:
    """d / (d - 1): what a degree that counts one user fewer does to its reciprocal; 1 where no user is left."""
    degrees = degrees.astype(np.float64)
    return np.where(degrees > 1, degrees / np.maximum(degrees - 1, 1), 1.0)
