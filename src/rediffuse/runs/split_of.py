"""The split that a run was trained on, made again from its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rediffuse.data.dataset import Dataset
from rediffuse.data.split import Split, by_name
from rediffuse.data.synthetic import augmentation
from rediffuse.errors import RunError


class Described(Protocol):
    """A run as far as it says what it was trained on: its folder, and the content of config.json."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> dict[str, Any]: ...


def check_data(run: Described, dataset: Dataset) -> None:
    """Check that a run was trained on a dataset, with the same synthetic interactions and items.

    Raises:
        RunError: it was not, or has items that were added afterwards.
    """
    if added := run.config.get("items_added_to"):
        raise RunError(
            f"{run.path} has {added['items']:,} items that were added after its training and are not in the data.",
            f"Use the run that they were added to, {added['run']}; its scores of other items are the same.",
        )
    trained_on = run.config["data"]
    own = dataset.fingerprint_without_synthetic, augmentation(dataset)
    if (trained_on["fingerprint"], trained_on.get("augmentation")) != own:
        raise RunError(f"{run.path} was trained on other data.", "Give the dataset that it was trained on.")


def split_of(run: Described, dataset: Dataset) -> Split:
    """The split of a run, which is not ``none``.

    Raises:
        RunError: as `check_data`, or the split of the data differs from that of the run.
    """
    check_data(run, dataset)
    made_with = run.config["split"]
    split = by_name(made_with["name"], dataset, **made_with["params"])
    if split.fingerprint != made_with["fingerprint"]:
        raise RunError(f"The split {made_with['name']} of these data differs from that of {run.path}.", "Train again.")
    return split
