"""The split that a command trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.output import say

if TYPE_CHECKING:
    from rediffuse.data.split import Split

SplitName = Annotated[
    str,
    typer.Option(
        "--split",
        help="default, global-time, sessions, leave-one-out, ratio, cold-items, given, none or paper:diffrec.",
    ),
]
Quantile = Annotated[
    float | None,
    typer.Option(help="Share of the interactions, or sessions, before the test (--split global-time, sessions)."),
]
ValidQuantile = Annotated[
    float | None, typer.Option(help="Share of those before the test that train (--split global-time, sessions).")
]
Ratio = Annotated[
    str | None, typer.Option(metavar="TRAIN,VALID", help="Shares, for example 0.8,0.1; the rest is tested.")
]
Targets = Annotated[
    str | None,
    typer.Option(help="all, next or successive: what is predicted of a user after the cut (--split global-time)."),
]
Fraction = Annotated[float | None, typer.Option(help="Share of the items to hold out (--split cold-items).")]
SplitSeed = Annotated[int | None, typer.Option(help="Seed of a random split (--split ratio, cold-items).")]


# The splits that an option of a command belongs to.
_OWNERS = {
    "quantile": ("global-time", "sessions"),
    "valid_quantile": ("global-time", "sessions"),
    "targets": ("global-time",),
    "ratio": ("ratio",),
    "fraction": ("cold-items",),
    "split_seed": ("ratio", "cold-items"),
}


def read_split(
    name: str,
    dataset: Path,
    quantile: float | None = None,
    valid_quantile: float | None = None,
    ratio: str | None = None,
    targets: str | None = None,
    fraction: float | None = None,
    split_seed: int | None = None,
) -> Split:
    """Split a saved dataset by the name of a split or protocol, and print what leaks on stderr. Collective.

    Raises:
        ConfigError, DataError: as `split_params`, `rediffuse.evaluation.protocols.split_for` and `load_dataset`.
    """
    from rediffuse.data.loading import load_dataset
    from rediffuse.data.shared import shared_split
    from rediffuse.evaluation.protocols import split_for

    params = split_params(name, quantile, valid_quantile, ratio, targets, fraction, split_seed)
    split = shared_split(load_dataset(dataset), lambda data: split_for(name, data, **params))
    for remark in (split.leak, split.note):
        if remark:
            say(f"Note: {remark}")
    return split


def split_params(
    name: str,
    quantile: float | None = None,
    valid_quantile: float | None = None,
    ratio: str | None = None,
    targets: str | None = None,
    fraction: float | None = None,
    split_seed: int | None = None,
) -> dict[str, Any]:
    """The parameters of the split ``name`` from the options of a command.

    Raises:
        ConfigError: an option belongs to another split, or is not of its form.
    """
    from rediffuse.errors import ConfigError

    key = name.replace("_", "-")
    given: dict[str, Any] = {"quantile": quantile, "valid_quantile": valid_quantile, "targets": targets}
    given |= {"ratio": ratio or None, "fraction": fraction, "split_seed": split_seed}
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        owners = _OWNERS[option]
        if key not in owners:
            why = {
                "default": "the default split chooses itself, by what the data have",
                "leave-one-out": "leave-one-out always tests the last interaction",
                "given": "a given split came with the data",
                "none": "it holds nothing out",
                "global-time": "its subsets are cut at a point in time",
                "sessions": "it holds out whole sessions, and predicts each item but the first",
                "ratio": "its subsets are random shares",
                "cold-items": "its held-out items are drawn at random",
            }.get(key, "it has no such option")
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"{flag} does not go with --split {name}: {why}.", f"Add --split {owners[0]}, or leave {flag} out."
            )
    params = {option: value for option, value in given.items() if option not in ("ratio", "split_seed")}
    params |= {} if split_seed is None else {"seed": split_seed}
    if ratio is None:
        return params
    try:
        train, valid = (float(share) for share in ratio.split(","))
    except ValueError:
        raise ConfigError(
            f"--ratio was given {ratio!r}.",
            "Give two shares: --ratio 0.8,0.1 (training, validation; the rest is tested).",
        ) from None
    return params | {"train": train, "valid": valid}


def split_options(
    name: str,
    quantile: float | None = None,
    valid_quantile: float | None = None,
    ratio: str | None = None,
    targets: str | None = None,
    fraction: float | None = None,
    split_seed: int | None = None,
) -> list[str]:
    """The options that choose the same split in another command."""
    options = [] if name == "default" else ["--split", name]
    given = {"quantile": quantile, "valid-quantile": valid_quantile, "ratio": ratio, "targets": targets}
    for flag, value in (given | {"fraction": fraction, "split-seed": split_seed}).items():
        options += [] if value is None else [f"--{flag}", str(value)]
    return options
