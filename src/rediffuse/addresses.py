"""Addresses such as ``s3://bucket/folder``: what is one, and the error where it cannot be used.

As a `Path`, ``s3://bucket`` is the relative path ``s3:/bucket``, and writing there makes a local folder ``s3:``. So
everything that takes a path asks here first.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rediffuse.errors import ConfigError, closest

# The schemes that some argument takes, and what is there.
SCHEMES = {
    "s3": "S3 and stores like it",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob Storage",
    "abfs": "Azure Data Lake",
    "abfss": "Azure Data Lake",
    "hf": "the Hugging Face hub",
}
# Two letters at least: C:/ is a drive of Windows.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


class AddressPath(type(Path())):
    """An address where a `Path` is passed around: it prints with both slashes, and names what is below it with ``/``.

    Nothing can be opened by it.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return address_of_text(text) or text

    def __fspath__(self) -> str:
        return str(self)


def address_of_text(text: str) -> str | None:
    """`address_of`, for text."""
    found = _ADDRESS.fullmatch(text.replace("\\", "/"))
    return None if found is None else f"{found[1]}://{found[2].rstrip('/')}"


def address_of(value: Any) -> str | None:
    """``value`` as ``scheme://rest`` if it is an address, as text or as a path; None if it is anything else."""
    if not isinstance(value, str | PathLike) or not isinstance(text := fspath(value), str):
        return None
    return address_of_text(text)


def scheme_of(address: str) -> str:
    """What is before ``://``."""
    return address.partition("://")[0]


def refuse_unknown(name: str, value: Any) -> None:
    """Refuse an address whose scheme is not known.

    Args:
        name: name of the argument or option, for the error.
        value: what was passed for it; anything but an address is left to other checks.

    Raises:
        ConfigError: the scheme is unknown; the error names the known ones.
    """
    address = address_of(value)
    if address is None or (scheme := scheme_of(address)) in SCHEMES:
        return
    if scheme.lower() == "file":
        path = address.partition("://")[2]
        raise ConfigError(f"{name} is {address}, and local paths have no scheme.", f"Write /{path}")
    close = closest(scheme, SCHEMES)
    raise ConfigError(
        f"{name} is {address}, and {scheme}:// is not a known scheme.",
        f"{f'Did you mean {close}://? ' if close else ''}Give a local path; one with a colon in it begins at the root. "
        f"Known schemes: {', '.join(f'{known}://' for known in SCHEMES)}.",
    )


def refuse_address(name: str, value: Any) -> None:
    """Refuse an address for an argument that names a local file or folder. Arguments as for `refuse_unknown`.

    Raises:
        ConfigError: it is an address.
    """
    refuse_unknown(name, value)
    if (address := address_of(value)) is not None:
        problem = f"{name} is {address}, on {SCHEMES[scheme_of(address)]}, and only a local path can be given here."
        raise ConfigError(problem, "Give a local path: copy what is there, or copy what is written afterwards.")
