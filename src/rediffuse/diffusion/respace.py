"""Respacing: sampling in fewer steps than a network was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, repeat

import torch
from torch import Tensor

from rediffuse.diffusion.schedule import NoiseSchedule, check_steps
from rediffuse.errors import ConfigError


def space_timesteps(steps: int, counts: str | int | Sequence[int]) -> list[int]:
    """Choose which of ``steps`` timesteps to keep. Improved DDPM (Nichol & Dhariwal 2021), section 4.

    Args:
        steps: T.
        counts: how many timesteps to keep in each of several equal sections, as ``"10,15,20"``, ``[10, 15, 20]`` or
            ``45``. They are spread evenly and include both ends of the section; the first ``T mod sections`` sections
            are longer by one. Or ``"ddimN"``: N timesteps from 0, with the smallest whole stride that gives N.

    Returns:
        Timesteps in ascending order.

    Raises:
        ConfigError: ``counts`` cannot be read, is not positive, or exceeds the timesteps of a section.
    """
    check_steps("space_timesteps", steps)
    if isinstance(counts, str) and counts.strip().startswith("ddim"):
        return _strided(steps, _whole(counts.strip().removeprefix("ddim"), counts))
    if isinstance(counts, str):
        sections = [_whole(value, counts) for value in counts.split(",")]
    elif isinstance(counts, Iterable):
        sections = [_whole(value, counts) for value in counts]
    else:
        sections = [_whole(counts, counts)]
    if not sections:
        raise ConfigError("space_timesteps: no section is given.", "Give at least one count, for example '8'.")

    size, longer = divmod(steps, len(sections))
    kept: list[int] = []
    start = 0
    for number, count in enumerate(sections):
        length = size + (number < longer)
        if length < count:
            raise ConfigError(
                f"space_timesteps: section {number} of {len(sections)} has {length} of {steps} timesteps, "
                f"fewer than the {count} asked for.",
                f"Ask for at most {length} there, or use fewer sections.",
            )
        stride = (length - 1) / (count - 1) if count > 1 else 0.0
        # A running sum, not number * stride, so that ties round as in the released code.
        kept += [start + round(offset) for offset in accumulate(repeat(stride, count - 1), initial=0.0)]
        start += length
    return kept


def space_log_snr(schedule: NoiseSchedule, count: int) -> list[int]:
    """Choose ``count`` timesteps of a schedule, even in log(abar / (1 - abar)) as nearly as its timesteps allow.

    DPM-Solver++ (Lu et al. 2022) takes its steps in that quantity, and is more exact so than with `space_timesteps`,
    unless there are very few.

    Returns:
        Timesteps in ascending order, the first and the last one among them; of one, the first.

    Raises:
        ConfigError: ``count`` is not a whole number from 1 to the number of timesteps.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= schedule.steps:
        raise ConfigError(
            f"space_log_snr: cannot keep {count!r} of {schedule.steps} timesteps.",
            f"Give a whole number from 1 to {schedule.steps}.",
        )
    # Of an abar of 0, the logarithm is that of the smallest positive number.
    log_snr = schedule.snr.clamp_min(torch.finfo(schedule.snr.dtype).tiny).log()
    kept: list[int] = []
    # Each leaves enough timesteps for those that follow.
    for number, aim in enumerate(torch.linspace(float(log_snr[0]), float(log_snr[-1]), count, dtype=log_snr.dtype)):
        start, stop = (
            kept[-1] + 1 if kept else 0,
            schedule.steps - count + number + 1,
        )
        kept.append(start + int((log_snr[start:stop] - aim).abs().argmin()))
    return kept


def _strided(steps: int, count: int) -> list[int]:
    """``count`` of ``steps`` timesteps from 0, with the smallest whole stride that gives this number."""
    for stride in range(1, steps + 1):
        kept = range(0, steps, stride)
        if len(kept) == count:
            return list(kept)
    possible = sorted({-(-steps // stride) for stride in range(1, steps + 1)})
    nearest = sorted(sorted(possible, key=lambda other: abs(other - count))[:2])
    raise ConfigError(
        f"space_timesteps: no whole stride gives exactly {count} of {steps} timesteps.",
        f"The nearest counts that exist: {', '.join(f'ddim{other}' for other in nearest)}.",
    )


def _whole(value: str | int, counts: object) -> int:
    """``value``, which is one of ``counts``, as a positive integer."""
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(value, bool | float):
        raise ConfigError(
            f"space_timesteps: cannot use {value!r} in {counts!r}.",
            "Give whole numbers of at least 1 as '10,15,20', or 'ddim10'.",
        )
    return count


def respace(schedule: NoiseSchedule, timesteps: Sequence[int]) -> tuple[NoiseSchedule, Tensor]:
    """A shorter schedule that has the same abar at the kept timesteps.

    Args:
        schedule: the schedule of T steps.
        timesteps: N timesteps to keep, ascending, without repetition.

    Returns:
        The schedule of N steps, whose betas are 1 - abar_t / abar_{kept before t}; and the original timesteps (N,)
        int64, which are what the network takes.

    Raises:
        ConfigError: ``timesteps`` are empty, out of range, or not ascending.
    """
    kept = [int(t) for t in timesteps]
    if not kept or kept[0] < 0 or kept[-1] >= schedule.steps:
        raise ConfigError(
            f"Timesteps {_short(kept)} do not lie in a schedule of {schedule.steps} steps.",
            f"Give at least one, from 0 to {schedule.steps - 1}.",
        )
    if any(a >= b for a, b in pairwise(kept)):
        raise ConfigError(f"Timesteps {_short(kept)} are not ascending.", "Sort them and remove repetitions.")
    numbers = torch.tensor(kept, device=schedule.betas.device)
    if len(kept) == schedule.steps:
        return schedule, numbers
    abar = schedule.alphas_cumprod[numbers]
    betas = 1 - abar / torch.cat((torch.ones_like(abar[:1]), abar[:-1]))
    return NoiseSchedule(schedule.name, betas, abar), numbers


def _short(kept: list[int]) -> str:
    return str(kept) if len(kept) <= 12 else f"[{', '.join(map(str, kept[:6]))}, .., {kept[-1]}]"
