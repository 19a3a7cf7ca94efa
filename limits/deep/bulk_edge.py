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
SETTLED = 1e-12  # relative change in an iteration
MOST = 100  # iterations; of a power, before all eigenvalues are cheaper


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
        try:
            return _gap(gradients / sigma, features / sigma, T, variance)
        except np.linalg.LinAlgError:  # singular: on the edge, to rounding
            return None

    high = 2 * low
    while gap(high) is None:
        low, high = high, 2 * high
    while high - low > CLOSE * low:
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) is None else (low, middle)
    points = high * (1 + CLOSE * 2.0 ** np.arange(POINTS))
    gaps = np.array([np.inf if (above := gap(sigma)) is None else _smallest(*above) for sigma in points])
    if gaps[0] > ABRUPT or np.inf in gaps:  # of layers so unequal rounding hides on which side of the edge they are
        return float(size * high)
    powers = np.concatenate([[0], np.arange(2, POINTS + 1)])  # σ − edge begins with (1 − μ)²
    return float(size * np.linalg.solve(gaps[:, None] ** powers, points)[0])


def _gap(A0, B0, T, variance) -> tuple | None:
    """None below the edge; above it a matrix whose smallest eigenvalue is 1 − μ, and nearly its vector.

    Newton's iterates increase to the smallest solution, as the iteration's own do.
    """
    start = np.stack([A0, B0])
    z, identity = start, np.broadcast_to(np.eye(A0.shape[1]), start.shape)
    for _ in range(MOST):
        if _tightness(*z, T) >= 1:
            return None
        resolvent = _resolvent(*z, T)
        missing = start + variance * _passed_on(resolvent, len(A0)) - z
        derivative = np.eye(z.size) - variance * _derivative(resolvent, len(A0))
        step, test = (solution.reshape(z.shape) for solution in np.linalg.solve(derivative, _columns(missing, identity)).T)
        if np.linalg.eigvalsh(test).min() <= 0:  # 1 − a positive map is inverted by one if and only if μ < 1
            return None
        z = z + step
        if np.linalg.norm(step) <= SETTLED * np.linalg.norm(z):
            break
    return derivative, test


def _columns(*blocks):
    return np.stack([block.ravel() for block in blocks], 1)


def _smallest(derivative, start) -> float:
    """Its smallest eigenvalue, which is real and positive, by inverse iteration."""
    inverse, vector, rate = np.linalg.inv(derivative), start.ravel(), 0.0
    for _ in range(MOST):
        vector = inverse @ vector
        last, rate = rate, np.linalg.norm(vector)
        vector = vector / rate
        if abs(rate - last) <= SETTLED * rate:
            return 1 / rate
    return float(np.linalg.eigvals(derivative).real.min())


def _tightness(A, B, T) -> float:
    """At 1 the pencil is singular: the largest eigenvalue of A T⁻¹B T⁻ᵀ, a product of positive matrices."""
    X = np.linalg.inv(T)
    return float(np.linalg.eigvals(_whole(A) @ X @ _whole(B) @ X.T).real.max())


def _resolvent(A, B, T):
    return np.linalg.inv(np.block([[-_whole(A), T.T], [T, -_whole(B)]]))


def _passed_on(resolvent, layers):
    """What a W and Wᵀ of unit variance make of the blocks of ζ and of η: more of A and of B."""
    of_eta, of_zeta = np.split(_blocks(resolvent, 2 * layers), 2)
    return _shifted(of_zeta, of_eta)


def _shifted(of_zeta, of_eta):
    nothing = np.zeros_like(of_eta[:1])
    return np.stack([np.concatenate([of_zeta[1:], nothing]), np.concatenate([nothing, of_eta[:-1]])])


def _derivative(resolvent, layers):
    """Of ``_passed_on`` by A and B, as a matrix."""
    C = len(resolvent) // (2 * layers)
    R = resolvent.reshape(2 * layers, C, 2 * layers, C)
    moved = np.einsum("makb,kdme->maekbd", R, R).reshape(2 * layers, -1, 2 * layers * C * C)
    of_eta, of_zeta = np.split(moved, 2)
    return _shifted(of_zeta, of_eta).reshape(2 * layers * C * C, -1)


def _whole(blocks) -> np.ndarray:
    layers, C, _ = blocks.shape
    return np.einsum("lm,lce->lcme", np.eye(layers), blocks).reshape(layers * C, layers * C)


def _blocks(matrix, count) -> np.ndarray:
    """Those on the diagonal."""
    C = len(matrix) // count
    return np.einsum("lcle->lce", matrix.reshape(count, C, count, C))
