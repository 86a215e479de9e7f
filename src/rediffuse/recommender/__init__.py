"""Recommendations from a run folder, in the caller's own ids, without the training data."""

from rediffuse.recommender.recommender import Recommender

__all__ = ["Recommender"]
