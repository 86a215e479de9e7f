"""Energy and greenhouse gases of trainings, as codecarbon estimates them without a network."""

# pyright: reportMissingImports=false
# codecarbon is optional, and CI does not install it.
from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rediffuse.errors import ConfigError, MissingExtraError, RunError
from rediffuse.files import atomic_write_text

ESTIMATE = (
    "Energy is an estimate by codecarbon for the whole machine, other processes included: the power of a processor is "
    "measured where its counters (RAPL) can be read, and modelled from its type and load elsewhere; that of memory is "
    "modelled. CO2 is that energy times the average emissions of the country's electricity. Sessions that were killed "
    "are not in it."
)
# What is measured of each session.
SUMS = ("kwh", "co2_kg", "minutes")


class Meter:
    """Measures what a block of work consumes, and adds it to a file.

    Args:
        country: ISO 3166 code of three letters, for the emissions of its electricity.

    Raises:
        MissingExtraError: codecarbon is not installed.
        ConfigError: codecarbon does not know the country.
    """

    def __init__(self, country: str) -> None:
        try:
            import codecarbon
        except ImportError:
            raise MissingExtraError("codecarbon", "energy") from None
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._tracker_class, self.country = codecarbon.OfflineEmissionsTracker, country
        found: dict[str, Any] = {}
        with self._tracking(found):
            pass
        # It would take the world's average.
        if not found["country_name"]:
            remedy = "Write the ISO 3166 code of three letters, such as DEU, FRA or USA."
            raise ConfigError(f"codecarbon does not know the country {country!r}.", remedy)

    @contextlib.contextmanager
    def measuring(self, path: Path) -> Iterator[None]:
        """Add the energy of the block to a file, also if it fails or is interrupted."""
        found: dict[str, Any] = {}
        try:
            with self._tracking(found):
                yield
        finally:
            if found:
                session = {name: found[name] for name in SUMS} | {"country": self.country}
                content = {"note": ESTIMATE, "sessions": [*_sessions(path), session]}
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(path, json.dumps(content, indent=2) + "\n")

    @contextlib.contextmanager
    def _tracking(self, found: dict[str, Any]) -> Iterator[None]:
        tracker = self._tracker_class(
            country_iso_code=self.country,
            output_methods=[],
            log_level="critical",
            allow_multiple_runs=True,
        )
        began = time.monotonic()
        tracker.start()
        try:
            yield
        finally:
            tracker.stop()
            data = tracker.final_emissions_data
            found |= {"kwh": float(data.energy_consumed), "co2_kg": float(data.emissions)}
            found |= {"minutes": (time.monotonic() - began) / 60, "country_name": data.country_name}


def energy_of(*paths: Path) -> dict[str, Any] | None:
    """The sums of files that `Meter` wrote: ``kwh``, ``co2_kg``, measured ``minutes``; None if nothing was measured.

    Raises:
        RunError: a file is damaged.
    """
    sessions = [session for path in paths for session in _sessions(path)]
    if not sessions:
        return None
    return {name: sum(session[name] for session in sessions) for name in SUMS}


def _sessions(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sessions"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Remove it; its measurements are lost.") from None
