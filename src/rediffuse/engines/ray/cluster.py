"""Connecting to Ray, quietly; and paths that its workers find."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rediffuse.errors import MissingExtraError, RunError

# Seconds between two checks of Ray Train for workers that died.
_HEALTH_CHECK = "0.5"


def require_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        MissingExtraError: Ray Data or Ray Train is not installed.
    """
    # Set before Ray is imported: it reports nothing about this machine, and asks no server for anything.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of every actor that Ray Data starts
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _HEALTH_CHECK)
    try:
        import ray.data
        import ray.train  # noqa: F401
    except ImportError:
        raise MissingExtraError("ray", "ray") from None


@contextlib.contextmanager
def cluster(remedy: str) -> Iterator[None]:
    """Connect to Ray: to the cluster that RAY_ADDRESS names, else to one of this machine, which ends with the context.

    Args:
        remedy: what to do if Ray fails.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: Ray failed.
    """
    require_ray()
    import ray
    import ray.exceptions
    import ray.train

    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS") or "local"
        # Ray would look for the address of this machine on the network, which one machine does not need.
        local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = "started on this machine" if local else f"reached at RAY_ADDRESS={address}"
            raise RunError(f"Ray cannot be {problem}: {_last_line(error)}.", "See docs/batch_inference.md.") from error
    quiet()
    try:
        yield
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        raise RunError(f"Ray failed: {_last_line(error)}.", remedy) from error
    finally:
        if started:
            ray.shutdown()


def quiet() -> None:
    """Leave out what Ray says about its own work."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def everywhere(path: Any) -> str:
    """A path, an address or a glob as every process of this machine, and every node with the same disks, finds it."""
    text = str(getattr(path, "path", path))
    return text if "://" in text else str(Path(text).absolute())


def _last_line(error: BaseException) -> str:
    """What a traceback in an error says at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].removesuffix('.') if lines else 'no message'}"
