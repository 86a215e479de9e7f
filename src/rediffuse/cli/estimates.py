"""Estimates of training time and memory, as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rediffuse.cli.output import emit, print_rich, rank

if TYPE_CHECKING:
    from rediffuse.training import Estimate


def print_estimates(estimates: list[Estimate], as_json: bool) -> None:
    """Print what was measured, and what follows from it."""

    def print_summary() -> None:
        for estimate in estimates:
            for line in _lines(estimate):
                print_rich(line)
        print_rich("Measured on a few steps, so the times are rough. Nothing was written.")

    if rank() == 0:
        emit({"estimates": [estimate.to_dict() for estimate in estimates]}, as_json, print_summary)


def _lines(estimate: Estimate) -> list[str]:
    from rediffuse.training.progress import short

    lines = [f"{estimate.model} on {estimate.device}:"]
    for phase in estimate.phases:
        named = f" of {phase.phase}" if len(estimate.phases) > 1 else ""
        lines.append(
            f"  an epoch{named} takes about {short(phase.epoch_seconds)} ({phase.steps:,} steps, {phase.timed} timed)"
        )
        if phase.validation_seconds is not None:
            lines.append(f"  a validation{named} takes about {short(phase.validation_seconds)}")
    if not estimate.phases:
        lines.append(f"  it has no epochs; fitting it took {short(estimate.fit_seconds)}")
        if estimate.validation_seconds is not None:
            lines.append(f"  a validation takes about {short(estimate.validation_seconds)}, and choices take several")
    else:
        epochs = " + ".join(f"{phase.epochs:,}" for phase in estimate.phases)
        limit = "" if estimate.max_minutes is None else f" or {estimate.max_minutes:g} minutes"
        lines.append(
            f"  at most about {short(estimate.most_seconds)} in all ({epochs} epochs{limit}); early stopping usually "
            "ends before that"
        )
    if estimate.memory_mib is not None:
        lines.append(f"  about {estimate.memory_mib:,} MiB of memory, the data included")
    return lines
