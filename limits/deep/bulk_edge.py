"""The edge of the bulk of the Hessian of an infinitely wide linear network, from its kernels.

Of the tangents of a matrix, those that no gradient sees are χ h^{m-1}_aᵀ and g^{m+1}_c ψᵀ, with fresh fields χ and ψ of the
layer m behind the first, before the second.  What joins them in the second derivative of f is one passage forward,

    R = γ0 Σ_{i≤m} 2 M_ac <ψ^m_c, E^{m-1} … E^i χ^i_a>,    E = W, or 1 + W if residual,    M = Σ_p ρ_p x̂_p,

so the bulk of R is ± the singular values of a matrix of products of random matrices.  Its norm σ, of infinite multiplicity,
is the edge; Gauss-Newton part and whatever else gradients see are of finite rank, so that it is H's too.  With η = Mᵀ(passed
forward) and its dual ζ, σ is where this pencil of C fields η and ζ for each layer begins to be singular (σ over γ0):

    Tη = Bζ,   Tᵀζ = Aη,     A = G/σ,   B = Φ/σ,   T = 1 − (E below the diagonal)

with Φ^m = Mᵀ<h^{m-1} h^{m-1}>M and G^m = <g^{m+1} g^{m+1}>, each times the rate of its matrix, identities in place of the
kernels of inputs and outputs.  The W, of entries of variance t²/N, are free of each
other: above the edge, and only there, the Dyson equation has a smallest solution A, B ≥ 0, limit of the increasing iteration

    A_m = G_m/σ + t² [(TᵀB⁻¹T − A)⁻¹ of ζ]_{m+1},      B_m = Φ_m/σ + t² [… of η]_{m-1},       T now the mean

(Lehner 1999; Haagerup & Thorbjørnsen 2005).  The rate μ at which it converges reaches 1 at the edge as 1 − c √(σ − edge).
"""

import numpy as np
from jaxtyping import Float

CLOSE = 1e-4  # relative, to the edge: from there it is extrapolated
POINTS = 6  # through which the extrapolation goes, at distances that double
ABRUPT = 0.5  # 1 − μ so close to the edge: layers so unequal, near a divergence, that W hardly joins them
SETTLED = 1e-13  # relative change in an iteration
MOST = 20_000  # iterations


def bulk_edge(
    features: Float[np.ndarray, "layers C C"], gradients: Float[np.ndarray, "layers C C"], passed: float, variance: float
) -> float:
    """σ of these Φ and G, layer by layer; ``passed`` 1 if residual, else 0; ``variance`` t².  Not a number if they are none."""
    if not np.isfinite([features, gradients]).all():
        return np.nan
    size = np.sqrt(np.abs(features).max()) * np.sqrt(np.abs(gradients).max())
    if size == 0.0:
        return 0.0
    features, gradients = features / np.abs(features).max(), gradients / np.abs(gradients).max()
    side, C = features.shape[0] * features.shape[1], features.shape[1]
    T = np.eye(side) - passed * np.eye(side, k=-C)
    low = np.sqrt(_tightness(gradients, features, T))  # of the mean
    if low == 0.0 or len(features) == 1:
        return float(size * low)

    def gap(sigma):
        return _gap(gradients / sigma, features / sigma, T, variance)

    high = 2 * low
    while gap(high) is None:
        low, high = high, 2 * high
    while high - low > CLOSE * low:
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) is None else (low, middle)
    points = high * (1 + CLOSE * 2.0 ** np.arange(POINTS))
    gaps = np.array([gap(sigma) for sigma in points])
    if gaps[0] > ABRUPT:
        return float(size * high)
    powers = np.concatenate([[0], np.arange(2, POINTS + 1)])  # σ − edge begins with (1 − μ)²
    return float(size * np.linalg.solve(gaps[:, None] ** powers, points)[0])


def _gap(A0, B0, T, variance) -> float | None:
    """1 − μ above the edge, None below."""
    A, B = A0, B0
    for _ in range(MOST):
        if _tightness(A, B, T) >= 1:
            return None
        before, resolvent = A, _resolvent(A, B, T)
        more_A, more_B = _passed_on(resolvent, len(A), variance)
        A, B = A0 + more_A, B0 + more_B
        if np.linalg.norm(A - before) <= SETTLED * np.linalg.norm(A):
            break
    return 1 - _rate(resolvent, A, B, variance)


def _rate(resolvent, A, B, variance) -> float:
    """μ: the largest eigenvalue of the iteration's derivative, a positive map, found as that of 1 + it."""
    rate, last = 0.0, np.inf
    while abs(rate - last) > SETTLED**0.8:
        moved = _passed_on(resolvent @ _pair(A, B) @ resolvent, len(A), variance)
        A, B = A + moved[0], B + moved[1]
        size = np.hypot(np.linalg.norm(A), np.linalg.norm(B))
        A, B, rate, last = A / size, B / size, size - 1, rate
    return rate


def _tightness(A, B, T) -> float:
    """At 1 the pencil is singular: the largest eigenvalue of A T⁻¹B T⁻ᵀ, a product of positive matrices."""
    X = np.linalg.inv(T)
    return float(np.linalg.eigvals(_whole(A) @ X @ _whole(B) @ X.T).real.max())


def _resolvent(A, B, T):
    return np.linalg.inv(np.block([[-_whole(A), T.T], [T, -_whole(B)]]))


def _pair(A, B):
    zero = np.zeros((len(A) * A.shape[1],) * 2)
    return np.block([[_whole(A), zero], [zero, _whole(B)]])


def _passed_on(resolvent, layers, variance):
    """What W and Wᵀ make of the blocks of ζ and of η."""
    of_eta, of_zeta = np.split(_blocks(resolvent, 2 * layers), 2)
    nothing = np.zeros_like(of_eta[:1])
    return variance * np.concatenate([of_zeta[1:], nothing]), variance * np.concatenate([nothing, of_eta[:-1]])


def _whole(blocks) -> np.ndarray:
    layers, C, _ = blocks.shape
    return np.einsum("lm,lce->lcme", np.eye(layers), blocks).reshape(layers * C, layers * C)


def _blocks(matrix, count) -> np.ndarray:
    """Those on the diagonal."""
    C = len(matrix) // count
    return np.einsum("lcle->lce", matrix.reshape(count, C, count, C))
