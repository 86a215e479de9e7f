"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: REDIFFUSE_DATA, else ../shared/data beside the checkout.

    Tests that need it skip where it is absent, and fail where CI is set.
    """
    named = os.environ.get("REDIFFUSE_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        reason = f"No real data: {root} does not exist. Set REDIFFUSE_DATA to a folder of data sets."
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return root
