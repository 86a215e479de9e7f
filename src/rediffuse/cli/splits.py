"""The split that a command trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.output import say

if TYPE_CHECKING:
    from rediffuse.data.split import Split

SplitName = Annotated[
    str, typer.Option("--split", help="default, global-time, leave-one-out, ratio, given, none or paper:diffrec.")
]
Quantile = Annotated[
    float | None, typer.Option(help="Share of the interactions before the test subset (--split global-time).")
]
ValidQuantile = Annotated[
    float | None, typer.Option(help="Share of those before the test that train (--split global-time).")
]
Ratio = Annotated[
    str | None, typer.Option(metavar="TRAIN,VALID", help="Shares, for example 0.8,0.1; the rest is tested.")
]


def read_split(
    name: str,
    dataset: Path,
    quantile: float | None = None,
    valid_quantile: float | None = None,
    ratio: str | None = None,
) -> Split:
    """Split a saved dataset by the name of a split or protocol, and print what leaks on stderr.

    Raises:
        ConfigError, DataError: as `split_params`, `rediffuse.evaluation.protocols.split_for` and `load_dataset`.
    """
    from rediffuse.data.loading import load_dataset
    from rediffuse.evaluation.protocols import split_for

    params = split_params(name, quantile, valid_quantile, ratio)
    split = split_for(name, load_dataset(dataset), **params)
    for remark in (split.leak, split.note):
        if remark:
            say(f"Note: {remark}")
    return split


def split_params(
    name: str, quantile: float | None = None, valid_quantile: float | None = None, ratio: str | None = None
) -> dict[str, Any]:
    """The parameters of the split ``name`` from the options of a command.

    Raises:
        ConfigError: an option belongs to another split, or is not of its form.
    """
    from rediffuse.errors import ConfigError

    key = name.replace("_", "-")
    cut = {"quantile": quantile, "valid_quantile": valid_quantile}
    cut = {option: value for option, value in cut.items() if value is not None}
    for option, owner in (*((option, "global-time") for option in cut), *((("ratio", "ratio"),) if ratio else ())):
        if key != owner:
            why = {
                "default": "the default split chooses itself, by what the data have",
                "leave-one-out": "leave-one-out always tests the last interaction",
                "given": "a given split came with the data",
                "none": "it holds nothing out",
                "global-time": "its subsets are cut at a point in time",
                "ratio": "its subsets are random shares",
            }.get(key, "it has no such option")
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"{flag} does not go with --split {name}: {why}.", f"Add --split {owner}, or leave {flag} out."
            )
    if ratio is None:
        return cut
    try:
        train, valid = (float(share) for share in ratio.split(","))
    except ValueError:
        raise ConfigError(
            f"--ratio was given {ratio!r}.",
            "Give two shares: --ratio 0.8,0.1 (training, validation; the rest is tested).",
        ) from None
    return {"train": train, "valid": valid}


def split_options(
    name: str, quantile: float | None = None, valid_quantile: float | None = None, ratio: str | None = None
) -> list[str]:
    """The options that choose the same split in another command."""
    options = [] if name == "default" else ["--split", name]
    for flag, value in (("--quantile", quantile), ("--valid-quantile", valid_quantile), ("--ratio", ratio)):
        options += [] if value is None else [flag, str(value)]
    return options
