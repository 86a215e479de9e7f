"""Readers: tables, files and public data sets become a `Dataset`."""

from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.numbered import load_partitions, read_numbered
from rediffuse.readers.recbole import read_atomic

__all__ = ["load_partitions", "read_atomic", "read_interactions", "read_numbered"]
