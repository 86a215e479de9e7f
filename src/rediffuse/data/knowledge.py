"""A knowledge graph as numbered, directed edges between nodes, the first of which are the items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.dataset import KnowledgeGraph


@dataclass(frozen=True, eq=False)
class KnowledgeEdges:
    """Directed edges, sorted by head and then by tail, each with its reverse; at most one from one node to another.

    Attributes:
        head, tail: (edges,) int64 nodes. Nodes 0 .. items - 1 are the items.
        relation: (edges,) int64; r + half of ``num_relations`` is relation r from tail to head.
        num_nodes, num_relations: N and R; R counts reversed relations too.
        entity: (N,) int64 the entity of each node, or -1 for an item without one.
        dropped: number of triples between nodes that another triple connects already.
    """

    head: NDArray[np.int64]
    tail: NDArray[np.int64]
    relation: NDArray[np.int64]
    num_nodes: int
    num_relations: int
    entity: NDArray[np.int64]
    dropped: int

    def __len__(self) -> int:
        return len(self.head)

    def matrix(self) -> sparse.csr_array:
        """(N, N) adjacency, with ones."""
        data = np.ones(len(self), dtype=np.float32)
        offsets = np.concatenate(([0], np.cumsum(np.bincount(self.head, minlength=self.num_nodes))))
        return sparse.csr_array((data, self.tail, offsets), shape=(self.num_nodes, self.num_nodes))

    def reverse(self) -> NDArray[np.int64]:
        """(edges,) the number of each edge's reverse."""
        return np.lexsort((self.head, self.tail))

    def where(self, kept: NDArray[np.bool_]) -> KnowledgeEdges:
        """The edges under ``kept`` (edges,); nodes and relations keep their numbers."""
        return KnowledgeEdges(
            self.head[kept],
            self.tail[kept],
            self.relation[kept],
            self.num_nodes,
            self.num_relations,
            self.entity,
            self.dropped,
        )


def knowledge_edges(kg: KnowledgeGraph, num_items: int) -> KnowledgeEdges:
    """Both directions of every triple, and the node of each entity.

    An item and an entity that are linked to each other and to nothing else are one node. If an item has several
    entities, or an entity several items, they stay separate nodes and a relation of its own connects them; its number
    comes after those of the triples. Of several triples from one node to another the lowest relation is kept, forward
    ones before reversed ones (as in DiffKG's released code).
    """
    items, linked = kg.item_entity[:, 0].astype(np.int64), kg.item_entity[:, 1].astype(np.int64)
    alone = (np.bincount(items, minlength=num_items)[items] == 1) & (
        np.bincount(linked, minlength=kg.num_entities)[linked] == 1
    )
    node = np.full(kg.num_entities, -1, dtype=np.int64)
    node[linked[alone]] = items[alone]
    others = np.flatnonzero(node < 0)
    node[others] = num_items + np.arange(len(others))
    entity = np.full(num_items + len(others), -1, dtype=np.int64)
    entity[node] = np.arange(kg.num_entities)

    relations = kg.num_relations + int((~alone).any())
    head = np.concatenate((node[kg.head], items[~alone]))
    tail = np.concatenate((node[kg.tail], node[linked[~alone]]))
    relation = np.concatenate((kg.relation.astype(np.int64), np.full(int((~alone).sum()), kg.num_relations)))
    head, tail = np.concatenate((head, tail)), np.concatenate((tail, head))
    relation = np.concatenate((relation, relation + relations))
    order = np.lexsort((relation, tail, head))
    head, tail, relation = head[order], tail[order], relation[order]
    first = np.ones(len(head), dtype=bool)
    first[1:] = (head[1:] != head[:-1]) | (tail[1:] != tail[:-1])
    return KnowledgeEdges(
        head[first],
        tail[first],
        relation[first],
        len(entity),
        2 * relations,
        entity,
        int((~first).sum()) // 2,
    )


def leading_to(edges: KnowledgeEdges, columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(edges,) whether each edge leads from a node to one of its ``columns`` (N, k)."""
    keys = np.arange(edges.num_nodes)[:, None] * edges.num_nodes + columns
    return np.isin(edges.head * edges.num_nodes + edges.tail, keys)


def most_per_node(edges: KnowledgeEdges, most: int, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(edges,) whether each edge is among the ``most`` of its head with the highest ``scores`` (edges,)."""
    order = np.lexsort((-scores, edges.head))
    counts = np.bincount(edges.head, minlength=edges.num_nodes)
    place = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.zeros(len(edges), dtype=bool)
    kept[order[place < most]] = True
    return kept
