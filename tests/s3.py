"""An S3 server on this machine, with a bucket; what the tests of object stores share."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator

import fsspec
import pytest

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of moto's server, which holds nothing."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch) -> str:
    """The address of an empty bucket, which s3fs and polars find through the environment, and an empty cache."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": server, "REDIFFUSE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    name = f"b-{uuid.uuid4().hex[:12]}"
    store().mkdir(name)
    return f"s3://{name}"


def store() -> fsspec.AbstractFileSystem:
    """The S3 of the environment, by a client of its own."""
    return fsspec.filesystem("s3", use_listings_cache=False)


def names(address: str) -> list[str]:
    """The objects below an address."""
    found = store().find(address)
    return sorted(name.removeprefix(address.removeprefix("s3://") + "/") for name in found)
