"""What the options of a run were that was saved before they existed, or before their default changed."""

from __future__ import annotations

from typing import Any

# Format of config.json: 2 since DiffuRec noises scaled item vectors by default.
CONFIG_FORMAT = 2
# Built-in model -> its options before format 2, where config.json does not name them.
_BEFORE: dict[str, dict[str, Any]] = {"diffurec": {"normalize": False, "noise_schedule": "trunc_lin"}}


def complete(config: dict[str, Any]) -> None:
    """Add to the content of a config.json of format 1 the options that its run was trained with and that it lacks."""
    if config.get("format", 1) < CONFIG_FORMAT:
        config["config"] = _completed(config)


def _completed(described: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, or of a part of a blend."""
    options = described["config"]
    if not (described.get("class") or "rediffuse.").startswith("rediffuse."):
        return options
    options = _BEFORE.get(described["model"], {}) | options
    if (backbone := options.get("backbone")) in _BEFORE:  # of pdrec or diffuasr: only options that were set are saved
        options["backbone_options"] = _BEFORE[backbone] | options["backbone_options"]
    if described["model"] == "blend":
        options["parts"] = [part | {"config": _completed(part)} for part in options["parts"]]
    return options
