"""The small data of many tests."""

from __future__ import annotations

from typing import Any

from rediffuse.data.dataset import Dataset
from rediffuse.testing import synthetic_interactions


def ring_dataset(named: bool = True, **options: Any) -> Dataset:
    return synthetic_interactions(text_ids=named, **options)


walks = ring_dataset
