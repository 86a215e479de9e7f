"""Training: from a split to a run folder."""

from rediffuse.training.callbacks import TrainingEvent
from rediffuse.training.estimate import Estimate, estimate
from rediffuse.training.refit import refit
from rediffuse.training.train import train
from rediffuse.training.update import update

__all__ = ["Estimate", "TrainingEvent", "estimate", "refit", "train", "update"]
