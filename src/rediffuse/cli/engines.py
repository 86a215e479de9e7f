"""Options of commands that an engine can run in several processes."""

from __future__ import annotations

from typing import Annotated

import typer

from rediffuse.errors import ConfigError, did_you_mean

ENGINES = ("ray",)
Engine = Annotated[
    str | None,
    typer.Option(help="ray: in several processes, on this machine or on the cluster that RAY_ADDRESS names."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes of --engine.")]


def uses_ray(engine: str | None, workers: int | None) -> bool:
    """Whether Ray is to do the work.

    Raises:
        ConfigError: there is no such engine, or workers are given without one.
    """
    if engine is None and workers is not None:
        raise ConfigError("--workers are processes of an engine.", "Add --engine ray, or leave the option out.")
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}.", did_you_mean(engine, ENGINES))
    return engine is not None
