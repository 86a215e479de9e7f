"""Readers: tables, files and public data sets become a `Dataset`."""

from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.recbole import read_atomic

__all__ = ["read_atomic", "read_interactions"]
