"""Phases that a training takes from finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rediffuse.config import ModelConfig
from rediffuse.data.split import Split
from rediffuse.errors import ConfigError, RunError
from rediffuse.models.base import Model
from rediffuse.runs.run_folder import RunContents, read_run

# The phase of models that have one. To take it is to take the whole network.
NETWORK = "fit"
# The prior that is in the training loss.
RESIDUAL = "residual"


def read_phase_run(phase: str, path: str | Path, split: Split) -> RunContents:
    """Read the run that a phase is taken from. With another split, it might have learned from the test subset.

    Raises:
        RunError: the run cannot be read, or was trained on another split.
    """
    contents = read_run(path)
    if contents.config["split"]["fingerprint"] != split.fingerprint:
        raise RunError(
            f"{path}, given for phase {phase!r}, was trained on another split.", "Train it on this data and split."
        )
    return contents


def with_another_prior(kind: type[Model], run: RunContents, preset: str | None, config: dict[str, Any]) -> ModelConfig:
    """The options of a run of this model, with the prior of ``config``.

    Raises:
        ConfigError: another model, a preset, or an option that the network was trained with.
    """
    if run.config["model"] != kind.name or kind.phases != (NETWORK,) or "prior" not in kind.Config.model_fields:
        raise ConfigError(
            f"{run.path} is a run of {run.config['model']}, whose network {kind.name} cannot use.",
            f"Take the phase {NETWORK!r} from a run of {kind.name}, for models that are trained in one phase.",
        )
    trained = run.config["config"]
    options = kind.Config.build(None, trained | config, model=kind.name)
    written = options.model_dump(mode="json")
    changed = sorted(name for name in written if name != "prior" and written[name] != trained.get(name, written[name]))
    if preset is not None or changed:
        what = f"preset {preset}" if preset is not None else ", ".join(changed)
        raise ConfigError(
            f"{what} cannot change: the network of {run.path} was trained with its own options.",
            "Change prior alone, or train a network with the other options.",
        )
    if RESIDUAL in (written["prior"], trained["prior"]) and written["prior"] != trained["prior"]:
        raise ConfigError(
            f"The prior cannot change from {trained['prior']} to {written['prior']}: prior={RESIDUAL} is in the "
            "training loss.",
            "Take prior=head or prior=none, or train a network.",
        )
    return options
