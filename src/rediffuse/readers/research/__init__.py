"""Data that authors of papers released, from a folder that the user obtained, with the split of the paper."""

from rediffuse.readers.research.released import FORMS, SETS, read_released

__all__ = ["FORMS", "SETS", "read_released"]
