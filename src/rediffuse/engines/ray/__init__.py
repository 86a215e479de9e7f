"""Batch inference on Ray Data, and training on Ray Train: on this machine, or on the cluster that RAY_ADDRESS names."""

from rediffuse.engines.ray.batch import recommend
from rediffuse.engines.ray.training import train

__all__ = ["recommend", "train"]
