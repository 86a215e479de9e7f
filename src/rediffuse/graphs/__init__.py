"""Influence diffusion: sparse graphs, attention over their edges, propagation. Arrays in, tensors out."""

from rediffuse.graphs.adjacency import bipartite_adjacency, row_normalised, social_adjacency, symmetric_normalised
from rediffuse.graphs.graph import Graph, Part, segment_softmax
from rediffuse.graphs.knowledge import KnowledgeEdges, knowledge_edges, leading_to, most_per_node
from rediffuse.graphs.propagate import propagate

__all__ = [
    "Graph",
    "KnowledgeEdges",
    "Part",
    "bipartite_adjacency",
    "knowledge_edges",
    "leading_to",
    "most_per_node",
    "propagate",
    "row_normalised",
    "segment_softmax",
    "social_adjacency",
    "symmetric_normalised",
]
