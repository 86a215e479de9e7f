"""How exact solvers are in few steps, where the exact result is known: x_0 ~ N(0, s^2).

The probability flow keeps x_t / std(x_t), so from x_T it leads to x_T s / std(x_T), and the best network is
E[x_0 | x_t] = sqrt(abar_t) s^2 x_t / std(x_t)^2.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rediffuse.diffusion import NoiseSchedule, noise_schedule, solver, space_log_snr, space_timesteps

PAGE = Path(__file__).parents[2] / "docs" / "diffusion.md"
SPREAD = 0.5


def error(name: str, schedule: NoiseSchedule, kept: list[int], spread: float = SPREAD) -> float:
    """The error of the result, in per cent of the exact one."""
    abar = schedule.alphas_cumprod
    std = (abar * spread**2 + 1 - abar).sqrt()

    def network(x_t, t):
        return (abar[t].sqrt() * spread**2 / std[t] ** 2)[:, None] * x_t

    found = solver(name)(network, std[-1].reshape(1, 1), schedule, kept).item()
    return 100 * abs(found / spread - 1)


def kept(schedule: NoiseSchedule, spacing: str, steps: int) -> list[int]:
    return space_log_snr(schedule, steps) if spacing == "log_snr" else space_timesteps(schedule.steps, str(steps))


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("steps", [8, 12, 16, 24])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_with_steps_even_in_log_snr_dpm_solver_is_better_than_ddim(name, steps, spread):
    schedule = noise_schedule(name, 1000)
    spaced = kept(schedule, "log_snr", steps)
    assert error("dpmpp_2m", schedule, spaced, spread) < 0.45 * error("ddim", schedule, spaced, spread)


def test_with_even_steps_it_can_be_worse_than_ddim_and_even_in_log_snr_helps():
    for name in ("linear", "cosine"):
        schedule = noise_schedule(name, 1000)
        even, spaced = kept(schedule, "even", 16), kept(schedule, "log_snr", 16)
        assert error("dpmpp_2m", schedule, even) > error("ddim", schedule, even)
        assert error("dpmpp_2m", schedule, spaced) < error("dpmpp_2m", schedule, even) / 4


def test_the_table_of_the_page_is_measured():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`, T = (\d+) \| (\d+) \| ([\d. |]+) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 9
    for name, total, steps, cells in rows:
        schedule = noise_schedule(name, int(total))
        found = [
            f"{error(function, schedule, kept(schedule, spacing, int(steps))):.1f}"
            for spacing in ("even", "log_snr")
            for function in ("ddim", "dpmpp_2m")
        ]
        assert cells.split(" | ") == found, (name, steps)
