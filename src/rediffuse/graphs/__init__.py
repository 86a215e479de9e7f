"""Influence diffusion: sparse graphs, attention over their edges, propagation. Arrays in, tensors out."""

from rediffuse.graphs.adjacency import bipartite_adjacency, row_normalised, social_adjacency, symmetric_normalised
from rediffuse.graphs.graph import Graph, Part, segment_softmax
from rediffuse.graphs.propagate import propagate

__all__ = [
    "Graph",
    "Part",
    "bipartite_adjacency",
    "propagate",
    "row_normalised",
    "segment_softmax",
    "social_adjacency",
    "symmetric_normalised",
]
