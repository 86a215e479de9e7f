"""Attention over the relations of a knowledge graph (DiffKG, Jiang et al., WSDM 2024, eq. 1-2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.graphs import Graph
from rediffuse.nn import dropout


class View(NamedTuple):
    """A graph over entities, and the relation (edges,) of each of its edges."""

    graph: Graph
    relation: Tensor


class RelationAttention(nn.Module):
    """Add to each entity its neighbours, weighted by how well the relation between them fits both.

    a_htr = leaky( ([E_h || E_t] W) . E_r ), and alpha is its softmax over the edges of h. One hop gives
    E'_h = the direction of E_h + sum_t alpha_htr E_t, after dropout. The output adds up the hops: ``residual`` times
    the previous sum, plus the new direction.
    """

    def __init__(self, size: int, hops: int, residual: float, dropout: float) -> None:
        super().__init__()
        self.hops, self.residual, self.dropout = hops, residual, dropout
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * size, size), gain=2**0.5))

    def attention(self, entities: Tensor, relations: Tensor, view: View) -> Tensor:
        """(edges,) alpha, whose sum is one over the edges of each head.

        Args:
            entities, relations: (N, d) and (R, d).
        """
        graph, relation = view
        edges, count = graph.block(), len(relations)
        as_head, as_tail = (entities @ half for half in self.weight.chunk(2))
        if len(entities) * count > relations.shape[1] * len(graph):
            logits = (edges.both_ends(as_head, as_tail) * F.embedding(relation, relations)).sum(1)
        else:  # many edges: products of all entities and relations are fewer, and each edge looks up two of them
            by_head = _look_up(as_head @ relations.T, graph.owners * count + relation)
            logits = by_head + _look_up(as_tail @ relations.T, graph.columns * count + relation)
        return edges.softmax(F.leaky_relu(logits, 0.2))

    def forward(self, entities: Tensor, relations: Tensor, view: View) -> Tensor:
        """(N, d)."""
        output = entities
        for _ in range(self.hops):
            alpha = self.attention(entities, relations, view)
            received = entities + view.graph.block().gather(entities, alpha)
            entities = F.normalize(dropout(received, self.dropout, self.training), dim=1)
            output = self.residual * output + entities
        return output


def _look_up(table: Tensor, places: Tensor) -> Tensor:
    """The elements of ``table`` at ``places`` (n,), counted row by row."""
    return F.embedding(places, table.reshape(-1, 1)).squeeze(1)
