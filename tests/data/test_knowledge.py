"""Knowledge graphs as edges: examples worked by hand, odd links, and paths between items."""

from __future__ import annotations

import numpy as np
import polars as pl

from rediffuse.data.dataset import KnowledgeGraph
from rediffuse.data.knowledge import KnowledgeEdges, knowledge_edges, leading_to, most_per_node
from rediffuse.graphs.paths import strongest_paths


def kg(triples: list[tuple[int, int, int]], links: list[tuple[int, int]], entities: int, relations: int):
    head, relation, tail = np.array(triples, dtype=np.int32).reshape(-1, 3).T
    ids = (pl.Series("entity_id", range(entities)), pl.Series("relation_id", range(relations)))
    return KnowledgeGraph(head, relation, tail, *ids, np.array(links, dtype=np.int32).reshape(-1, 2))


def listed(edges: KnowledgeEdges) -> list[tuple[int, int, int]]:
    return list(zip(edges.head.tolist(), edges.tail.tolist(), edges.relation.tolist(), strict=True))


# Two items, which are entities 0 and 1; entities 2 and 3 are others.
SMALL = kg([(0, 0, 2), (1, 0, 2), (1, 1, 3)], [(0, 0), (1, 1)], 4, 2)


def test_edges_of_a_small_graph():
    edges = knowledge_edges(SMALL, 2)
    assert listed(edges) == [(0, 2, 0), (1, 2, 0), (1, 3, 1), (2, 0, 2), (2, 1, 2), (3, 1, 3)]
    assert (edges.num_nodes, edges.num_relations, edges.dropped) == (4, 4, 0)
    assert edges.matrix().toarray().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]]
    assert edges.entity.tolist() == [0, 1, 2, 3]
    assert [listed(edges)[i] for i in edges.reverse()] == [
        (2, 0, 2), (2, 1, 2), (3, 1, 3), (0, 2, 0), (1, 2, 0), (1, 3, 1)
    ]  # fmt: skip


def test_entities_have_other_numbers_than_items():
    """Item 0 is entity 3, item 1 none."""
    edges = knowledge_edges(kg([(3, 0, 1), (1, 0, 2)], [(0, 3)], 4, 1), 2)
    node = {int(entity): number for number, entity in enumerate(edges.entity) if entity >= 0}
    assert node[3] == 0
    assert edges.entity[1] == -1
    assert edges.num_nodes == 5  # two items, and three entities that are none
    assert {(node[3], node[1]), (node[1], node[2])} <= {(h, t) for h, t, _ in listed(edges)}
    assert not (edges.head == 1).any()


def test_several_entities_of_an_item_and_several_items_of_an_entity_are_joined():
    """Item 0 is entities 0 and 1; items 1 and 2 are both entity 2; item 3 is entity 3 alone."""
    edges = knowledge_edges(kg([(0, 0, 3)], [(0, 0), (0, 1), (1, 2), (2, 2), (3, 3)], 4, 1), 4)
    node = {int(entity): number for number, entity in enumerate(edges.entity) if entity >= 0}
    assert node[3] == 3
    assert sorted(node[entity] for entity in (0, 1, 2)) == [4, 5, 6]
    assert edges.num_relations == 4  # the triples' one and "is", both ways
    assert {(h, t) for h, t, r in listed(edges) if r == 1} == {(0, node[0]), (0, node[1]), (1, node[2]), (2, node[2])}
    assert {(h, t) for h, t, r in listed(edges) if r == 3} == {(node[0], 0), (node[1], 0), (node[2], 1), (node[2], 2)}


def test_of_several_triples_the_lowest_relation_stays_forwards_before_backwards():
    edges = knowledge_edges(kg([(0, 1, 2), (0, 0, 2), (2, 0, 0)], [(0, 0), (1, 1)], 3, 2), 2)
    assert listed(edges) == [(0, 2, 0), (2, 0, 0)]
    assert edges.dropped == 2


def test_no_edges_and_no_links():
    edges = knowledge_edges(kg([], [], 2, 1), 3)
    assert (len(edges), edges.num_nodes, edges.matrix().nnz) == (0, 5, 0)


def test_edges_that_lead_to_the_best_columns():
    edges = knowledge_edges(SMALL, 2)
    scores = np.array([[0.05, 0.1, 0.9, 0.2], [0.3, 0.2, 0.1, 0.4], [0.2, 0.1, 0.8, 0.3], [0.9, 0.1, 0.2, 0.3]])
    kept = leading_to(edges, scores.argmax(1)[:, None])
    kept |= kept[edges.reverse()]
    assert listed(edges.where(kept)) == [(0, 2, 0), (1, 3, 1), (2, 0, 2), (3, 1, 3)]


def test_most_per_node():
    edges = knowledge_edges(SMALL, 2)
    assert most_per_node(edges, 1, np.array([0.1, 0.2, 0.9, 0.0, 0.5, 0.3])).tolist() == [
        True, False, True, False, True, True
    ]  # fmt: skip
    assert most_per_node(edges, 2, np.zeros(6)).all()


def test_paths_by_hand():
    edges = pl.DataFrame(
        {
            "item_id": ["a", "a", "b", "b", "c"],
            "relation": ["by", "of", "by", "like", "by"],
            "entity": ["x", "y", "x", None, "x"],
            "other_item": [None, None, None, "a", None],
            "weight": [0.6, 0.4, 0.5, 0.25, 1.0],
            "kept": [True, True, False, True, True],
        }
    )
    found = strongest_paths(edges, pl.Series(["c", "a", "b", "none"]), pl.Series(["a", "b"]), 5)
    assert found.rows() == [
        ("c", "by", "x", "by", "a", 0.6, True),
        ("c", "by", "x", "by", "b", 0.5, False),
        ("a", "by", "x", "by", "b", 0.3, False),
        ("b", "by", "x", "by", "a", 0.3, False),
        ("b", "like", None, None, "a", 0.25, True),
    ]
    assert strongest_paths(edges, pl.Series(["c"]), pl.Series(["a", "b"]), 1).height == 1
    assert strongest_paths(edges, pl.Series([], dtype=pl.String), pl.Series(["a"]), 1).height == 0
