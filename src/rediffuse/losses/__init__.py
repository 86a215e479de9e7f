"""Losses over a catalogue of items."""

from rediffuse.losses.buckets import scalable_cross_entropy
from rediffuse.losses.ranking import binary_cross_entropy, bpr, gbce_beta, logistic, squared_error, uniform_softmax
from rediffuse.losses.sampled import Draws, sampled_softmax
from rediffuse.losses.softmax import softmax_cross_entropy

__all__ = [
    "Draws",
    "binary_cross_entropy",
    "bpr",
    "gbce_beta",
    "logistic",
    "sampled_softmax",
    "scalable_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
    "uniform_softmax",
]
