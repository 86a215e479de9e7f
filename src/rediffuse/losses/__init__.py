"""Losses over a catalogue of items."""

from rediffuse.losses.softmax import sampled_softmax, softmax_cross_entropy

__all__ = ["sampled_softmax", "softmax_cross_entropy"]
