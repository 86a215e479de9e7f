"""Influence diffusion: propagation over sparse graphs. Pure functions of torch tensors."""

from rediffuse.graphs.adjacency import bipartite_adjacency
from rediffuse.graphs.propagate import propagate

__all__ = ["bipartite_adjacency", "propagate"]
