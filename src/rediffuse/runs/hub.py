"""Runs on the Hugging Face hub: ``hf://user/name``, or ``hf://user/name@revision``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import fspath
from pathlib import Path
from typing import Any

from rediffuse.addresses import address_of
from rediffuse.errors import ConfigError, RunError

SCHEME = "hf://"
REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
# As a `Path`, an address has one slash after the colon.
_ADDRESS = re.compile(rf"hf:/{{1,2}}({REPO})(?:@([\w./-]+))?")
LOGIN = "Log in with: hf auth login, or set HF_TOKEN."


def is_address(value: Any) -> bool:
    """Whether a run is given by its address on the hub, as text or as a path."""
    return (address_of(value) or "").startswith(SCHEME)


def download(address: str | Path) -> Path:
    """The folder of a run on the hub, in the hub's cache. Files that are there already are not fetched again.

    Without a connection, the run is taken from the cache. The folder is for reading: the cache shares its files.

    Raises:
        ConfigError: the address is not of the form ``hf://user/name@revision``.
        RunError: there is no such repository or revision, it may not be read, or the hub cannot be reached.
    """
    found = _ADDRESS.fullmatch(fspath(address).replace("\\", "/"))
    if found is None:
        raise ConfigError(
            f"{address} is not the address of a run on the hub.", f"Write {SCHEME}user/name or {SCHEME}user/name@main."
        )
    import huggingface_hub

    repo, revision = found.groups()
    with explained(repo, revision):
        return Path(huggingface_hub.snapshot_download(repo, revision=revision))


@contextmanager
def explained(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's client into a `RunError` that says what to do.

    Raises:
        RunError: the repository or revision does not exist, the hub refuses this account, or it cannot be reached.
    """
    from huggingface_hub import utils

    try:
        yield
    except utils.GatedRepoError:
        raise RunError(f"{repo} needs the consent of its owner.", f"Ask for it on its page. {LOGIN}") from None
    except utils.RepositoryNotFoundError:
        raise RunError(
            f"The hub has no model {repo}, or it is private.", f"Check the name. For a private one: {LOGIN}"
        ) from None
    except utils.RevisionNotFoundError:
        raise RunError(f"{repo} has no revision {revision!r}.", "Give a branch, a tag or a commit of it.") from None
    except utils.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise RunError(f"The hub does not let this account do this with {repo}.", LOGIN) from error
        raise RunError(f"The hub has answered {status} for {repo}: {error}", "Try again later.") from error
    except (utils.LocalEntryNotFoundError, utils.OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | FileNotFoundError | TimeoutError):
            raise  # a full disk
        raise RunError(
            f"The hub cannot be reached, and the cache does not hold {repo}.",
            "Check the connection, and that HF_HUB_OFFLINE is not set.",
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise RunError(f"The hub cannot be reached: {error}", "Check the connection.") from error
