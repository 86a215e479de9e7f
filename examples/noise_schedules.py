"""Print noise schedules: how much of the signal is left after each step of noise."""

from __future__ import annotations

import rediffuse as rd


def main() -> None:
    for name in ("trunc_lin", "cosine", "sqrt"):
        schedule = rd.diffusion.noise_schedule(name, steps=32)
        print(name)
        for t in range(0, 32, 4):
            signal = schedule.alphas_cumprod[t].sqrt().item()
            print(f"  t={t:>2}  beta {schedule.betas[t]:.4f}  {'#' * round(50 * signal)}")


if __name__ == "__main__":
    main()
