"""Eigenvalues of a diagonal matrix plus one of low rank, A = diag(ρ) + F Fᵀ, from its secular equation.

    M(λ) = Fᵀ (λ − ρ)⁻¹ F,    q × q for q columns of F
    #{eigenvalues of A above λ} = #{ρ above λ} + #{eigenvalues of M(λ) above 1}          at every λ that is not one of the ρ

(Haynsworth 1968: λ − A and 1 − M(λ) are the Schur complements of [[λ − ρ, F], [Fᵀ, 1]], whose inertia they share.)  The
counts alone find every eigenvalue by bisection.  Faster: where M(λ)u = μu, the vector (λ − ρ)⁻¹Fu has the Rayleigh quotient
λ − μ(μ − 1)/μ', with μ' = −|(λ − ρ)⁻¹Fu|²: a step that converges like Rayleigh quotient iteration, taken where it stays
within the bracket.  A few times m q² operations for m poles; no m × m matrix is made.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Secular(NamedTuple):
    """A = diag(poles) + factor · factorᵀ; poles sorted, largest first."""

    poles: Float[np.ndarray, " m"]
    factor: Float[np.ndarray, "m q"]


def secular(poles: Float[np.ndarray, " m"], factor: Float[np.ndarray, "m p"]) -> Secular:
    """The matrix with its poles in order, and no more columns than rows."""
    order = np.argsort(-poles, kind="stable")
    factor = factor[order]
    if factor.shape[1] > len(factor):  # F = RᵀQᵀ with a square R
        factor = np.linalg.qr(factor.T, mode="r").T
    return Secular(poles[order], factor)


def matrix(a: Secular, lam: float) -> Float[np.ndarray, "q q"]:
    """M(λ)."""
    return (a.factor.T / (lam - a.poles)) @ a.factor


def count_above(a: Secular, lam: float) -> int:
    """How many eigenvalues of A are above λ, which must not be a pole."""
    return _poles_above(a, lam) + int(np.sum(np.linalg.eigvalsh(matrix(a, lam)) > 1))


def eigenvalue(a: Secular, k: int) -> float:
    """The k-th largest eigenvalue of A, 1 ≤ k ≤ m, to rounding (of A's norm)."""
    q = a.factor.shape[1]
    trace, tallest = np.sum(a.factor**2), max(abs(a.poles[0]), abs(a.poles[-1]))
    tolerance = 4 * np.finfo(float).eps * (tallest + trace)
    low, high = a.poles[k - 1], a.poles[k - 1] + trace  # Weyl's inequalities
    if k > q:
        high = min(high, a.poles[k - 1 - q])
    lam = a.poles[0] + trace if k <= q else _between(a, low, high)  # far above the poles M's eigenvectors are those of FᵀF
    last = np.inf
    while high - low > tolerance:
        mu, newton = _level(a, k, lam)
        if abs(newton) <= tolerance:
            return float(lam + newton)
        low, high = (lam, high) if mu > 1 else (low, min(lam, high))
        lam, improved, last = lam + max(mu, 0.0) * newton, abs(newton) < last / 2, abs(newton)
        if not (improved and low < lam < high):
            lam, last = _between(a, low, high), np.inf
    return float(low + high) / 2


def concentration(a: Secular, lam: float) -> float:
    """The largest squared entry of the unit eigenvector at the eigenvalue λ: 1 where it is one pole's own."""
    gaps = lam - a.poles
    if not gaps.all():
        return 1.0
    mu, vectors = np.linalg.eigh(matrix(a, lam))
    squares = ((a.factor @ vectors[:, np.argmin(np.abs(mu - 1))]) / gaps) ** 2
    return float(np.max(squares) / np.sum(squares))


def _level(a: Secular, k: int, lam: float) -> tuple[float, float]:
    """(μ, Newton's step to μ = 1): the k-th eigenvalue of A is above λ if and only if μ > 1.

    μ is an eigenvalue of M(λ), or ±∞ where the poles above λ decide by themselves.
    """
    rank = k - _poles_above(a, lam)
    q = a.factor.shape[1]
    if not 1 <= rank <= q:
        return (np.inf if rank < 1 else -np.inf), np.nan
    mu, vectors = np.linalg.eigh(matrix(a, lam))
    lifted = (a.factor @ vectors[:, q - rank]) / (lam - a.poles)
    with np.errstate(divide="ignore"):  # a direction that no pole couples to
        return float(mu[q - rank]), float((mu[q - rank] - 1) / np.sum(lifted**2))


def _poles_above(a: Secular, lam: float) -> int:
    return int(np.searchsorted(-a.poles, -lam, side="left"))


def _between(a: Secular, low: float, high: float) -> float:
    """About the middle, away from poles: close to one the rest of M(λ) drowns in rounding."""
    points = low + np.array([0.5, 0.4, 0.6]) * (high - low)
    return float(max(points, key=lambda point: np.min(np.abs(a.poles - point))))
