"""Filters against dense matrix functions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from rediffuse.graphs import filters

RNG = np.random.default_rng(3)
R = (RNG.random((40, 25)) < 0.15).astype(np.float64)
R[:, R.sum(0) == 0] = np.eye(40)[:, :1]
R[R.sum(1) == 0, 0] = 1
R_HAT = R / np.sqrt(R.sum(1))[:, None] / np.sqrt(R.sum(0))
S = R_HAT.T @ R_HAT
V = np.linalg.svd(R_HAT)[2][:6].T
X = RNG.random((7, 25))


def hop(x):
    return (x @ R_HAT.T) @ R_HAT


def low_pass(x):
    return x @ V @ V.T


def of_eigenvalues(function):
    """X g(S), by the eigenvalues of S."""
    values, vectors = np.linalg.eigh(S)
    return X @ vectors @ np.diag(function(values)) @ vectors.T


def total(terms):
    return sum(term for _, term in terms)


@pytest.mark.parametrize("time", [0.2, 1.0, 5.0])
def test_heat_is_the_matrix_exponential(time):
    expected = X @ scipy.linalg.expm(-time * (np.eye(25) - S))
    np.testing.assert_allclose(total(filters.heat(hop, X, time)), expected, atol=1e-6)


@pytest.mark.parametrize("continuation", [0.0, 0.3, 0.8])
def test_ppr_is_the_resolvent(continuation):
    expected = X @ np.linalg.inv(np.eye(25) - continuation * S) * (1 - continuation)
    np.testing.assert_allclose(total(filters.ppr(hop, X, continuation)), expected, atol=1e-6)


def test_one_hop_and_gfcf():
    np.testing.assert_allclose(total(filters.one_hop(hop, X)), X @ S)
    np.testing.assert_allclose(total(filters.gfcf(hop, X, low_pass, 0.3)), X @ S + 0.3 * X @ V @ V.T)


@pytest.mark.parametrize("merge", ["early", "late"])
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_bspm_solves_its_equation_with_many_steps(solver, merge):
    steps = 4000 if solver == "euler" else 20
    found = total(filters.bspm(hop, X, low_pass, 0.2, time=1.2, steps=steps, solver=solver, merge=merge))
    blurred, ideal = X @ S, 0.2 * X @ V @ V.T
    decay = scipy.linalg.expm(-1.2 * S)
    expected = (blurred + ideal) @ decay if merge == "early" else blurred @ decay + ideal
    np.testing.assert_allclose(found, expected, atol=2e-4 if solver == "euler" else 1e-6)


def test_one_step_of_bspm_is_the_formula_of_the_solver():
    blurred = X @ S
    euler = total(filters.bspm(hop, X, low_pass, 0.0, time=1.2, steps=1, solver="euler", merge="late"))
    np.testing.assert_allclose(euler, blurred - 1.2 * blurred @ S)

    def slope(x):
        return -x @ S

    k1 = slope(blurred)
    k2 = slope(blurred + 1.1 * k1)
    k3 = slope(blurred + 1.1 * k2)
    k4 = slope(blurred + 2.2 * k3)
    rk4 = total(filters.bspm(hop, X, low_pass, 0.0, time=2.2, steps=1, solver="rk4", merge="late"))
    np.testing.assert_allclose(rk4, blurred + 2.2 / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


@pytest.mark.parametrize("flatness", [1.5, 10.0])
def test_chebyshev_is_the_polynomial_of_the_eigenvalues(flatness):
    nodes = np.cos(np.pi * (np.arange(9) + 0.5) / 9)
    values = np.where(nodes < 0, 0.5 * np.abs(nodes) ** flatness + 0.5, 0.5 - 0.5 * np.abs(nodes) ** flatness)
    polynomial = np.polynomial.chebyshev.Chebyshev(np.polynomial.chebyshev.chebfit(nodes, values, 8))
    expected = of_eigenvalues(lambda eigenvalues: polynomial(1 - 2 * eigenvalues)) + 0.1 * X @ V @ V.T
    found = total(filters.chebyshev(hop, X, low_pass, 0.1, flatness=flatness))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_plateau_passes_low_frequencies():
    eigenvalues = np.array([1.0, 0.5, 0.0])
    np.testing.assert_allclose(filters.plateau(1 - 2 * eigenvalues, 3.0), [1.0, 0.5, 0.0])


def test_turbo():
    powered = S**0.7

    def powered_hop(x):
        return x @ powered

    np.testing.assert_allclose(total(filters.turbo(powered_hop, X, 1)), X @ powered)
    np.testing.assert_allclose(total(filters.turbo(powered_hop, X, 2)), X @ (2 * powered - powered @ powered))
