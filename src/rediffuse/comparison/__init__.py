"""Finished runs on the test part and side by side: results, statistics, and a report."""

from rediffuse.comparison.compare import Comparison, compare
from rediffuse.comparison.evaluated import evaluate_run

__all__ = ["Comparison", "compare", "evaluate_run"]
