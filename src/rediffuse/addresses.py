"""Addresses such as ``s3://bucket/folder``: what is one, and the error where it cannot be used.

As a `Path`, ``s3://bucket`` is the relative path ``s3:/bucket``, and writing there makes a local folder ``s3:``. So
everything that takes a path asks here first.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from typing import Any

from rediffuse.errors import ConfigError, closest

# The schemes that some argument takes, and what such an address is.
SCHEMES = {"hf": "a run on the Hugging Face hub"}
# Two letters at least: C:/ is a drive of Windows.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def address_of(value: Any) -> str | None:
    """``value`` as ``scheme://rest`` if it is an address, as text or as a path; None if it is anything else."""
    if not isinstance(value, str | PathLike) or not isinstance(text := fspath(value), str):
        return None
    found = _ADDRESS.fullmatch(text.replace("\\", "/"))
    return None if found is None else f"{found[1]}://{found[2]}"


def refuse_address(name: str, value: Any) -> None:
    """Refuse an address for an argument that names a local file or folder.

    Args:
        name: name of the argument or option, for the error.
        value: what was passed for it; anything but an address is left to other checks.

    Raises:
        ConfigError: it is an address; the error names the known schemes.
    """
    address = address_of(value)
    if address is None:
        return
    scheme, _, rest = address.partition("://")
    if scheme.lower() == "file":
        raise ConfigError(f"{name} is {address}, and local paths have no scheme.", f"Write /{rest}")
    if scheme in SCHEMES:
        raise ConfigError(f"{name} is {address}, {SCHEMES[scheme]}.", "Give the path of a local file or folder here.")
    close = closest(scheme, SCHEMES)
    raise ConfigError(
        f"{name} is {address}, and {scheme}:// is not a known scheme.",
        f"{f'Did you mean {close}://? ' if close else ''}Give the path of a local file or folder. Known schemes: "
        f"{', '.join(f'{known}:// ({what})' for known, what in SCHEMES.items())}.",
    )
