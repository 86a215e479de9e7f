"""What an object store can do, by fsspec; its errors say what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rediffuse.addresses import SCHEMES, scheme_of
from rediffuse.errors import DataError, MissingExtraError, RediffuseError, StorageError
from rediffuse.files import storage_error

# The fsspec implementation of a scheme.
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "hf": "huggingface_hub"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine; and AWS_ENDPOINT_URL "
    "for a store that is not Amazon's",
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "hf auth login, or HF_TOKEN",
}
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or a connection string"
# What says whether an object is still the same, the first that a store has.
_TAGS = ("ETag", "etag", "generation", "blob_id", "LastModified", "last_modified", "mtime", "created")
_DENIED = r"AccessDenied|Forbidden|Unauthorized|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|\b40[13]\b"
_NO_CREDENTIALS = ("Unable to locate credentials", "NoCredentials", "DefaultCredentials", "Anonymous caller")


@dataclass(frozen=True)
class Object:
    """What a store says of an object.

    Attributes:
        size: in bytes.
        tag: text that changes with the content.
    """

    size: int
    tag: str


@contextmanager
def explained(address: str, kind: type[RediffuseError]) -> Iterator[None]:
    """Turn errors of a store into errors of ``kind``, or into the `StorageError` of a full local disk.

    Raises:
        MissingExtraError: the package of the scheme is not installed.
    """
    try:
        yield
    except RediffuseError:
        raise
    except ImportError:
        raise MissingExtraError(_PACKAGES[scheme_of(address)], "cloud") from None
    except Exception as error:
        if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            # Of this machine: stores name no file.
            raise storage_error(f"{address} cannot be copied to {error.filename or 'the cache'}", error) from error
        problem, remedy = _said(address, error, "written" if kind is StorageError else "read")
        raise kind(problem, remedy) from error


def _said(address: str, error: Exception, done: str) -> tuple[str, str]:
    """What an error of a store means, and what to do about it."""
    scheme, text = scheme_of(address), " ".join(str(error).split())
    named = f"{type(error).__name__} {text}"
    found = f"Credentials are taken from {_CREDENTIALS.get(scheme, _AZURE)}."
    if any(sign in named for sign in _NO_CREDENTIALS):
        return f"{address} cannot be {done}: there are no credentials for {SCHEMES[scheme]}.", found
    if isinstance(error, FileNotFoundError):
        return f"{address} cannot be {done}: {text}.", "Check the bucket and the path; buckets are not created."
    if isinstance(error, PermissionError) or re.search(_DENIED, named):
        return f"{address} may not be {done}: {text}.", f"Check the credentials and their rights there. {found}"
    return (
        f"{address} cannot be {done}: {text or type(error).__name__}.",
        "Check the network, the endpoint and the region, then start again. What was copied is not copied again.",
    )


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and its path there."""
    import fsspec.core

    system, path = fsspec.core.url_to_fs(address)
    system.invalidate_cache()  # other machines write there too
    return system, path


def _object(info: dict[str, Any]) -> Object:
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    return Object(int(info["size"] or 0), tag)


def find(address: str, kind: type[RediffuseError] = DataError) -> dict[str, Object]:
    """All objects below an address, by what follows it and a slash; empty if there are none.

    Raises:
        RediffuseError: of ``kind``, the store cannot be read.
    """
    with explained(address, kind):
        system, path = _open(address)
        below = f"{path.rstrip('/')}/"
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            if scheme_of(address) != "hf" and not system.exists(path.split("/")[0]):
                raise
            return {}
        return {
            name.removeprefix(below): _object(info)
            for name, info in sorted(found.items())
            if name.startswith(below) and not name.endswith("/")
        }


def look(address: str, kind: type[RediffuseError] = DataError) -> Object | None:
    """The object at an address; None if there is none."""
    with explained(address, kind):
        system, path = _open(address)
        try:
            info = system.info(path)
        except FileNotFoundError:
            return None
        return _object(info) if info["type"] == "file" else None


def match(pattern: str, kind: type[RediffuseError] = DataError) -> list[str]:
    """The addresses of the objects that a pattern with ``*``, ``?``, ``[...]`` matches, sorted."""
    with explained(pattern, kind):
        system, path = _open(pattern)
        found = system.glob(path, detail=True)
        begin = pattern.removesuffix(path.partition("/")[2])  # a scheme and a bucket, perhaps with an account
        return [begin + name.partition("/")[2] for name, info in sorted(found.items()) if info["type"] == "file"]


def read_bytes(address: str, kind: type[RediffuseError] = DataError, end: int | None = None) -> bytes | None:
    """The content of an object, or its first bytes; None if there is none."""
    with explained(address, kind):
        system, path = _open(address)
        try:
            return system.cat_file(path, start=None if end is None else 0, end=end)
        except FileNotFoundError:
            return None


def get(address: str, path: Path, kind: type[RediffuseError] = DataError) -> None:
    """Copy an object into a local file."""
    with explained(address, kind):
        system, there = _open(address)
        system.get_file(there, str(path))


def put(path: Path, address: str) -> None:
    """Copy a local file into an object; readers see the old object or the new one.

    Raises:
        StorageError: the store cannot be written.
    """
    with explained(address, StorageError):
        system, there = _open(address)
        system.put_file(str(path), there, **({"overwrite": True} if _PACKAGES[scheme_of(address)] == "adlfs" else {}))


def put_bytes(content: bytes, address: str) -> None:
    """As `put`, for content in memory."""
    with explained(address, StorageError):
        system, there = _open(address)
        system.pipe_file(there, content)


def remove(address: str) -> None:
    """Remove an object, if it is there."""
    with explained(address, StorageError):
        system, there = _open(address)
        try:
            system.rm_file(there)
        except FileNotFoundError:
            return


def scan_options(address: str) -> dict[str, Any]:
    """The options with which polars finds the store that fsspec has found: ``storage_options`` and
    ``credential_provider``. Polars reads the environment for all but S3 itself."""
    if scheme_of(address) != "s3":
        return {}
    with explained(address, DataError):
        system, path = _open(address)
        bucket = path.split("/")[0]
        client = system.s3.meta
        region = client.region_name
        with suppress(OSError):  # who may read objects need not see the bucket
            answer = system.call_s3("head_bucket", Bucket=bucket)
            region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region") or region
        options = {"aws_region": region or "us-east-1"}
        place = urlsplit(client.endpoint_url)
        if "amazonaws.com" not in (place.hostname or ""):
            options |= {"aws_endpoint_url": client.endpoint_url}
        if place.scheme == "http":
            options |= {"aws_allow_http": "true"}
        if system.anon:
            return {"storage_options": options | {"aws_skip_signature": "true"}, "credential_provider": None}
        return {"storage_options": options, "credential_provider": _aws_credentials}


def _aws_credentials() -> tuple[dict[str, str], int | None]:
    """The credentials of the chain that fsspec asks too; called again before they expire."""
    import botocore.session

    session = botocore.session.get_session()
    found = session.get_credentials()
    if found is None:
        raise PermissionError("Unable to locate credentials")
    frozen = found.get_frozen_credentials()
    expiry = getattr(found, "_expiry_time", None)
    keys = {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
    if frozen.token:
        keys["aws_session_token"] = frozen.token
    return keys, None if expiry is None else int(expiry.timestamp())
