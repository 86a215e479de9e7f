"""Sparse graphs, attention over their edges, and propagation: what influence diffusion is made of."""

from rediffuse.graphs.adjacency import bipartite_adjacency, row_normalised, social_adjacency, symmetric_normalised
from rediffuse.graphs.graph import Graph, RowBlock, segment_softmax
from rediffuse.graphs.propagate import propagate

__all__ = [
    "Graph",
    "RowBlock",
    "bipartite_adjacency",
    "propagate",
    "row_normalised",
    "segment_softmax",
    "social_adjacency",
    "symmetric_normalised",
]
