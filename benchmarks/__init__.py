"""Measurements, tables, parity checks and fault injection; run each as a module: see README.md beside this file."""
