"""Training: from a split to a run folder."""

from rediffuse.training.refit import refit
from rediffuse.training.train import train
from rediffuse.training.update import update

__all__ = ["refit", "train", "update"]
