"""Filters on a graph: how a signal on the items spreads over it.

R_hat is the normalised users x items matrix, S = R_hat' R_hat, with eigenvalues in [0, 1]. A filter g maps a row
signal x to x g(S). It gets x (B, I) and ``hop``, which maps x to x S, and yields its terms: what carried the mass, and
how much arrived (B, I). The sum of the terms is x g(S). No function builds S, or a matrix of its size.

Where a filter takes ``low_pass``, that maps x to x V V', with the top right singular vectors V of R_hat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.floating]
Hop = Callable[[Signal], Signal]
Terms = Iterator[tuple[str, Signal]]

# Series end where the weight of all later terms is below this.
TOLERANCE = 1e-7


def one_hop(hop: Hop, x: Signal) -> Terms:
    """x S: the linear filter. Nothing diffuses beyond the users who share an item."""
    yield "hop 1", hop(x)


def heat(hop: Hop, x: Signal, time: float) -> Terms:
    """x exp(-time (1 - S)): the heat equation after ``time``, as the series e^-time time^n / n! S^n over hops n."""
    weight, left = math.exp(-time), 1.0
    for n in range(1000):
        yield f"hop {n}", x * weight
        left -= weight
        if left < TOLERANCE:
            return
        x = hop(x)
        weight *= time / (n + 1)


def ppr(hop: Hop, x: Signal, continuation: float) -> Terms:
    """Personalised PageRank: (1 - continuation) sum_n continuation^n S^n.

    Args:
        continuation: probability of another hop, in [0, 1).
    """
    weight = 1 - continuation
    for n in range(math.ceil(math.log(TOLERANCE) / math.log(continuation)) if continuation else 1):
        yield f"hop {n}", x * weight
        x = hop(x)
        weight *= continuation


def gfcf(hop: Hop, x: Signal, low_pass: Hop, weight: float) -> Terms:
    """GF-CF: x S + weight x V V' (Shen et al., CIKM 2021)."""
    yield "hop 1", hop(x)
    if weight:
        yield "low pass", weight * low_pass(x)


def bspm(
    hop: Hop,
    x: Signal,
    low_pass: Hop,
    weight: float,
    *,
    time: float,
    steps: int,
    solver: Literal["euler", "rk4"],
    merge: Literal["early", "late"],
) -> Terms:
    """BSPM: blur, then sharpen by dX/dt = -X S (Choi et al., SIGIR 2023).

    Args:
        weight: of the ideal low-pass filter.
        time: how long the signal is sharpened.
        steps: steps of the solver over that time.
        solver: "euler" or "rk4", the classical Runge-Kutta method.
        merge: "early" sharpens the sum of both blurs, "late" only the linear one.
    """
    blurred = hop(x)
    yield "hop 1", blurred
    if weight:
        ideal = weight * low_pass(x)
        yield "low pass", ideal
        if merge == "early":
            blurred = blurred + ideal
    size = time / steps
    for _ in range(steps):
        if solver == "euler":
            change = -size * hop(blurred)
        else:
            # All four stages are multiples of X, X S, X S^2, ... because the equation is linear.
            change, power = np.zeros_like(blurred), blurred
            for order in range(1, 5):
                power = hop(power)
                change += (-size) ** order / math.factorial(order) * power
        yield "sharpening", change
        blurred = blurred + change


def plateau(u: Signal, flatness: float) -> Signal:
    """ChebyCF's target in u = 1 - 2 lambda: near 1 at low frequencies, near 0 at high ones, and flat between.

    Args:
        flatness: the exponent phi; larger is flatter.
    """
    return 0.5 - 0.5 * np.sign(u) * np.abs(u) ** flatness


def chebyshev_coefficients(function: Callable[[Signal], Signal], order: int) -> NDArray[np.float64]:
    """(order + 1,) coefficients of the polynomial that interpolates ``function`` on [-1, 1] at the Chebyshev nodes."""
    angles = np.pi * (np.arange(order + 1) + 0.5) / (order + 1)
    values = function(np.cos(angles))
    coefficients = 2 / (order + 1) * np.cos(np.outer(np.arange(order + 1), angles)) @ values
    coefficients[0] /= 2
    return coefficients


def chebyshev(
    hop: Hop, x: Signal, low_pass: Hop, weight: float, *, flatness: float, order: int = 8
) -> Terms:
    """ChebyCF: a Chebyshev polynomial in 1 - 2 S of the `plateau`, + weight x V V' (Kim et al., SIGIR 2025)."""
    coefficients = chebyshev_coefficients(lambda u: plateau(u, flatness), order).tolist()
    before, now = x, x - 2 * hop(x)
    yield "order 0", coefficients[0] * before
    for n in range(1, order + 1):
        yield f"order {n}", coefficients[n] * now
        if n < order:
            before, now = now, 2 * (now - 2 * hop(now)) - before
    if weight:
        yield "low pass", weight * low_pass(x)


def turbo(hop: Hop, x: Signal, order: int) -> Terms:
    """Turbo-CF: x P for order 1, x (2 P - P^2) for order 2 (Park et al., SIGIR 2024).

    Args:
        hop: maps x to x P, where P is S with a power applied to each element.
        order: 1 or 2.
    """
    once = hop(x)
    yield "hop 1", once * order
    if order == 2:
        yield "hop 2", -hop(once)
