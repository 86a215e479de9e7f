"""Finished runs side by side: test results, statistics, and a report."""
