"""Training: from a split to a run folder."""

from rediffuse.training.train import train

__all__ = ["train"]
