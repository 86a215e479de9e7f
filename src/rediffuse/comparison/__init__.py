"""Test results of runs, and comparisons of them: metrics, statistics, and a report."""

from rediffuse.comparison.compare import compare
from rediffuse.comparison.evaluate_run import evaluate
from rediffuse.comparison.result import Comparison

__all__ = ["Comparison", "compare", "evaluate"]
