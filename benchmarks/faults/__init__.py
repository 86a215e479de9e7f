"""Fault injection: killed processes and damaged files."""
