"""Losses over a catalogue of items."""

from rediffuse.losses.ranking import binary_cross_entropy, bpr, gbce_beta, logistic, squared_error
from rediffuse.losses.softmax import sampled_softmax, softmax_cross_entropy

__all__ = [
    "binary_cross_entropy",
    "bpr",
    "gbce_beta",
    "logistic",
    "sampled_softmax",
    "softmax_cross_entropy",
    "squared_error",
]
