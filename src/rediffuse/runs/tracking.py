"""Trackers: TensorBoard, Weights & Biases and MLflow, through Accelerate.

A run records the tracker's run in its config.json, so that a resumed training and `rediffuse.evaluate` add to it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rediffuse.errors import ConfigError, MissingExtraError, RediffuseWarning, did_you_mean

# Tracker -> the extra that installs it; the package has the tracker's name.
EXTRAS = {"tensorboard": "track", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "rediffuse"  # a project of W&B, an experiment of MLflow, the folder of TensorBoard's files


def check_tracker(name: str | None, artifacts: bool) -> None:
    """Check before training that a tracker can be used.

    Raises:
        ConfigError: it is unknown, or takes no artifacts.
        MissingExtraError: its package is not installed.
    """
    if name is None:
        if artifacts:
            raise ConfigError("track_artifacts needs a tracker.", "Give one, for example mlflow.")
        return
    if name not in EXTRAS:
        raise ConfigError(f"Unknown tracker {name!r}.", did_you_mean(name, EXTRAS))
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # W&B's folder "wandb" of earlier runs looks like a package without origin
        raise MissingExtraError(name, EXTRAS[name])
    if artifacts and name == "tensorboard":
        raise ConfigError("TensorBoard stores no artifacts.", "Leave out track_artifacts, or use mlflow or wandb.")


def legal_name(name: str, tracker: str) -> str:
    """The name of a metric as a tracker takes it: ``hr@10/unseen`` becomes ``hr_at_10_unseen``, except in TensorBoard.

    MLflow refuses ``@``, W&B cannot use it in a formula, and MLflow's file store cannot hold ``hr@10`` and a name
    below it.
    """
    if tracker == "tensorboard":
        return name
    plain = name.replace("@", "_at_").replace("/unseen", "_unseen")
    return re.sub(r"[^\w/.\- ]", "_", plain)


class Tracking:
    """A run of a tracker, which the main process writes.

    A tracker that fails during training is reported once and then left alone: training goes on.

    Args:
        name: as `check_tracker` accepts it.
        folder: the run folder.
        recorded: `record` of the tracker's run to continue; None: a new one.
    """

    def __init__(self, name: str, folder: Path, recorded: dict[str, Any] | None = None) -> None:
        self.name, self.folder, self.recorded = name, folder, recorded or {}
        self.works = True

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Start the tracker's run, or continue it, and close it at the end.

        Raises:
            ConfigError: the tracker cannot start.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.tracker = LOGGER_TYPE_TO_CLASS[self.name](PROJECT, **self._options())
        try:
            self.tracker.start()
        except Exception as error:
            raise ConfigError(
                f"The tracker {self.name} cannot start: {_first_line(error)}",
                "Mend this, or train without the tracker.",
            ) from error
        try:
            yield
        finally:
            self._attempt(self.tracker.finish)

    def _options(self) -> dict[str, Any]:
        run = self.recorded.get("run")
        if self.name == "tensorboard":
            return {"logging_dir": str(self.folder)}
        if self.name == "wandb":
            return {"name": self.folder.name} | ({"id": run, "resume": "allow"} if run else {})
        if run and self.recorded.get("uri") and "MLFLOW_TRACKING_URI" not in os.environ:
            import mlflow

            mlflow.set_tracking_uri(self.recorded["uri"])
        return {"run_id": run} if run else {"run_name": self.folder.resolve().name}

    def record(self) -> dict[str, Any]:
        """What config.json says of the tracker's run."""
        found: dict[str, Any] = {"tracker": self.name}
        if self.name == "wandb":
            found |= {"run": self.tracker.tracker.id, "project": PROJECT}
        elif self.name == "mlflow":
            import mlflow

            found |= {
                "run": self.tracker.tracker.info.run_id,
                "uri": _without_password(mlflow.get_tracking_uri()),
                "project": PROJECT,
            }
        return found

    def describe(self, facts: dict[str, Any]) -> None:
        """Log what does not change during the run; nested values get names with dots."""
        self._attempt(lambda: self.tracker.store_init_configuration(_flat(facts)))

    def log(self, values: dict[str, float | None], step: int | None = None) -> None:
        """Log metrics; values that are None are left out."""
        legal = {legal_name(name, self.name): value for name, value in values.items() if value is not None}
        self._attempt(lambda: self.tracker.log(legal, step=step))

    def log_folder(self) -> None:
        """Log the files of the run folder, without checkpoints, as an artifact."""
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file() and not path.name.startswith(".")]

        def log() -> None:
            if self.name == "mlflow":
                for path in files:
                    self.tracker.log_artifact(str(path), artifact_path="run")
                return
            import wandb

            artifact = wandb.Artifact(f"run-{self.tracker.tracker.id}", type="model")
            for path in files:
                artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self.tracker.tracker.log_artifact(artifact)

        self._attempt(log)

    def _attempt(self, work: Callable[[], object]) -> None:
        if not self.works:
            return
        try:
            work()
        except Exception as error:  # of the network, of a server, of a tracker's own rules
            self.works = False
            warnings.warn(
                f"The tracker {self.name} has failed and gets nothing more: {_first_line(error)} The run is not "
                "affected.",
                RediffuseWarning,
                stacklevel=3,
            )


def log_test_metrics(run_config: dict[str, Any], folder: Path, result: dict[str, Any]) -> None:
    """Add the test metrics of a run to its run in the tracker, if training had one. Called in the main process.

    Args:
        run_config: content of config.json.
        folder: the run folder.
        result: content of test.json.

    Warns:
        RediffuseWarning: the tracker is not installed, or cannot be reached; the evaluation itself is not affected.
    """
    recorded = run_config.get("tracking")
    if not recorded:
        return
    protocol = result["protocol"]["name"]
    prefix = "test" if protocol == result["split"] else f"test {protocol.replace(':', ' ')}"
    values = {
        f"{prefix}/{name}" + ("" if policy == "all" else f"/{policy}"): value
        for policy, metrics in result["metrics"].items()
        for name, value in metrics.items()
    }
    tracking = Tracking(recorded["tracker"], folder, recorded)
    try:
        check_tracker(tracking.name, artifacts=False)
        with tracking.open():
            tracking.log(values)
    except (ConfigError, MissingExtraError) as error:
        warnings.warn(f"The test metrics were not tracked. {error}", RediffuseWarning, stacklevel=2)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names with dots, in the types that trackers accept."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
