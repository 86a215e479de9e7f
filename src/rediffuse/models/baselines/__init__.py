"""Baselines: models that others are compared with, one file each."""
