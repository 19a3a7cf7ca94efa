"""The largest eigenvalues of a symmetric matvec on vectors, repeated ones as often as they occur: filtered block Lanczos.

    A Q = Q T + W,    T = Qᵀ A Q,    W = 0 but for the last block,    |A y − θ y| = |W s|,  y = Q s a Ritz vector

The Krylov space of one vector holds one vector of each eigenspace; that of k random ones, k of each: all that the k largest
eigenvalues can be, and no run in the complement of what was found need follow (``finite.curvature.lanczos``, where vectors are
too long for many of them to be kept).  Every block is orthogonalised against all; one that the space does not go on with is
rounding noise, hence random: of an invariant space the basis grows on beside it.

A few blocks give a number h ≤ λ_k.  The rest is done with p(A), p the Chebyshev polynomial that is within ±1 from the lower
end of the spectrum, which the caller knows, to h and grows beyond (Zhou and Saad, SIAM J. Matrix Anal. 29 (2007) 954):
products of A cost less than to orthogonalise as often.  A full basis gives way to its better half of Ritz vectors (Wu and
Simon, SIAM J. Matrix Anal. 22 (2000) 602).  In the end values and residuals are those of A on the vectors found.

p must not lift the largest eigenvalue so far that those next to h drown in its rounding: what stands far off the rest is found
by the few blocks already, and projected out from then on; what stands less far off lowers the degree.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from limits.machine import eigh

FEWEST = 4  # vectors of a block: single ones take longer, and eight for as many values half as long again
BLOCKS = 12  # of the basis
KEPT = 6  # after a restart
CHECK = 3  # blocks between two looks at the residuals; BLOCKS − KEPT is a multiple
UNFILTERED = 9  # blocks before the filter
DEGREE = 9  # of p at most; odd, so that nothing below its interval comes out on top
LIFTED = 1e5  # what p may be at most
FAR, FOUND = 3.0, 1e-9  # half widths of p's interval from its centre, and residual to the largest |θ|, of what is projected out
RESTARTS = 45
RTOL = 1e-8  # of the residuals, to |θ|; an eigenvalue's error is about the square of its own over the gap
REACHED = 1e-6  # likewise; values that are no better in the end are NaN
FLOOR = 1e-6  # of the |θ| that residuals are compared with, to the largest


class _State(NamedTuple):
    """The first ``count`` blocks have had their product; the next one is orthonormal to them."""

    basis: Array  # (BLOCKS + 1, b, n)
    matrix: Array  # (M, M) T, M = BLOCKS b
    rest: Array  # (b, b) R of the last block of Wᵀ = Q R
    count: Array
    products: Array  # of blocks


class _Ritz(NamedTuple):
    residuals: Array  # (k,) largest value first
    scale: Array  # the largest |θ|
    theta: Array  # (M,) all, in ascending order, and lowest so many that are none
    weights: Array  # (M, M) s


def largest(
    matvec: Callable[[Array], Array], size: int, k: int, lowest: Float[Array, ""], highest: float | Float[Array, ""] = jnp.inf
) -> Float[Array, " k"]:
    """The k largest eigenvalues of ``matvec`` on vectors (size,), largest first; zeros beyond the size.

    A piece for compiled code, in float64.  No eigenvalue is below ``lowest``: the closer, the faster; nor above ``highest``.
    NaN where the operator is not finite or, after ``RESTARTS``, neither the residual nor what is left to ``highest`` is
    within ``REACHED``: eigenvalues may crowd there.  Memory: 13 max(k, 4) vectors; where there are no more dimensions, the
    whole matrix is decomposed.
    """
    apply, b = jax.vmap(matvec), max(k, FEWEST)
    if size < (BLOCKS + 1) * b:
        values = eigh(apply(jnp.eye(size)))[0][::-1][:k]
        return jnp.pad(values, (0, k - len(values)))
    start = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (size, b), float))[0].T
    state, ritz = _iterated(apply, start, k, UNFILTERED)
    vectors = _leading(state, ritz, b)
    known = jnp.all(ritz.residuals <= RTOL * _sizes(ritz.theta[-k:][::-1], ritz.scale)) | ~jnp.isfinite(ritz.scale)
    vectors = lax.cond(known, lambda vectors: vectors[:k], partial(_refined, apply, ritz, lowest), vectors)
    images = apply(vectors)
    values, turn = eigh(images @ vectors.T)
    residuals = jnp.linalg.norm(turn.T @ images - values[:, None] * (turn.T @ vectors), axis=1)
    error = jnp.minimum(residuals, jnp.abs(highest - values))
    return jnp.where(error <= REACHED * _sizes(values, ritz.scale), values, jnp.nan)[::-1]


def _sizes(values, largest_of_all):
    return jnp.maximum(jnp.abs(values), FLOOR * largest_of_all)


def _refined(apply, ritz, lowest, vectors):
    """(k, n) vectors of the k largest, from Ritz vectors of a few blocks."""
    k, b = len(ritz.residuals), len(vectors)
    theta = ritz.theta[-k:][::-1]
    centre, half = (theta[-1] + lowest) / 2, (theta[-1] - lowest) / 2
    above = (theta - centre) / half
    far = (above > FAR) & (ritz.residuals <= FOUND * ritz.scale)
    apart = jnp.where(far[:, None], vectors[:k], 0)
    without = lambda x: x - (x @ apart.T) @ apart  # noqa: E731
    height = jnp.arccosh(jnp.maximum(jnp.max(jnp.where(far, 1.0, above)), 1.0))  # T_d(cosh x) = cosh dx
    degree = jnp.clip(jnp.log(2 * LIFTED) / height, 1, DEGREE).astype(int)
    filtered = partial(_filtered, lambda x: without(apply(x) - centre * x) / half, degree - (degree % 2 == 0))
    fresh = jax.random.normal(jax.random.key(2), vectors.shape, float)
    start = without(jnp.where(jnp.pad(far, (0, b - k))[:, None], fresh, vectors))
    start = jnp.linalg.qr(without(jnp.linalg.qr(start.T)[0].T).T)[0].T
    most = BLOCKS + RESTARTS * (BLOCKS - KEPT)
    rest = _leading(*_iterated(filtered, start, k, most, k - jnp.sum(far)), b)
    return jnp.where(far[:, None], apart, rest[jnp.cumsum(~far) - 1])


def _filtered(moved, degree, block):
    """p(A) of a block, by the recurrence of Chebyshev polynomials; ``moved`` has its interval at ±1."""
    return lax.fori_loop(1, degree, lambda _, pair: (pair[1], 2 * moved(pair[1]) - pair[0]), (block, moved(block)))[1]


def _iterated(apply, start, k, most, wanted=None):
    """(state, Ritz pairs), at most so many products of blocks from ``start``, which is orthonormal; until the first ``wanted``
    of k pairs, default all, are found."""
    (b, n), M, zero = start.shape, BLOCKS * len(start), jnp.zeros((), int)

    def unfinished(carry):
        state, ritz = carry
        open_ = ritz.residuals > RTOL * _sizes(ritz.theta[-k:][::-1], ritz.scale)
        open_ = jnp.any(open_ & (jnp.arange(k) < (k if wanted is None else wanted))) & jnp.all(jnp.isfinite(state.rest))
        return open_ & (state.products < most)

    def grow(carry):
        state, ritz = carry
        state = lax.cond(state.count == BLOCKS, _restart, lambda state, _: state, state, ritz)
        state = lax.fori_loop(0, CHECK, lambda _, state: _extend(apply, state), state)
        return state, _ritz(state, k)

    basis = jnp.zeros((BLOCKS + 1, b, n)).at[0].set(start)
    state = _State(basis, jnp.zeros((M, M)), jnp.zeros((b, b)), zero, zero)
    unknown = _Ritz(jnp.full(k, jnp.inf), jnp.ones(()), jnp.zeros(M), jnp.zeros((M, M)))
    return lax.while_loop(unfinished, grow, (state, unknown))


def _extend(apply, state):
    """One product of a block, orthogonalised; T gets its rows and columns from it."""
    basis, b = state.basis, state.basis.shape[1]
    W = apply(basis[state.count])
    scale = jnp.max(jnp.linalg.norm(W, axis=1))
    W, overlaps = _project_out(basis, W)
    noise = jax.random.uniform(jax.random.fold_in(jax.random.key(1), state.products), W.shape, float, -1, 1)
    Q, R = jnp.linalg.qr((W + jnp.finfo(W.dtype).eps * scale / jnp.sqrt(W.shape[1]) * noise).T)
    Q = jnp.linalg.qr(_project_out(basis, Q.T)[0].T)[0].T  # twice is enough
    overlaps = overlaps[:, : len(state.matrix)]
    matrix = lax.dynamic_update_slice(state.matrix, overlaps, (state.count * b, 0))
    matrix = lax.dynamic_update_slice(matrix, overlaps.T, (0, state.count * b))
    return _State(basis.at[state.count + 1].set(Q), matrix, R, state.count + 1, state.products + 1)


def _project_out(basis, W):
    """W without its part in the basis, and its products with all of that."""
    rows = basis.reshape(-1, basis.shape[2])
    overlaps = W @ rows.T
    return W - overlaps @ rows, overlaps


def _ritz(state, k):
    b = len(state.rest)
    used = jnp.arange(len(state.matrix)) < state.count * b
    matrix = jnp.where(jnp.isfinite(state.matrix), state.matrix, 0)
    unused = -2 * jnp.linalg.norm(matrix)  # below all others
    theta, s = eigh(jnp.where(used[:, None] & used, matrix, jnp.diag(jnp.full(len(used), unused))))
    last = lax.dynamic_slice(s, ((state.count - 1) * b, 0), (b, len(s)))
    residuals = jnp.linalg.norm(state.rest @ last[:, ::-1][:, :k], axis=0)
    return _Ritz(residuals, jnp.max(jnp.where(theta > unused, jnp.abs(theta), 0)), theta, s)


def _leading(state, ritz, count):
    """So many upper Ritz vectors, largest first."""
    rows = state.basis[:-1].reshape(len(state.matrix), -1)
    return ritz.weights[:, -count:][:, ::-1].T @ rows


def _restart(state, ritz):
    """The upper Ritz vectors, and the block that is next."""
    b, n = state.basis.shape[1:]
    kept = KEPT * b
    vectors = _leading(state, ritz, kept).reshape(KEPT, b, n)
    basis = jnp.zeros_like(state.basis).at[:KEPT].set(vectors).at[KEPT].set(state.basis[BLOCKS])
    matrix = jnp.zeros_like(state.matrix).at[:kept, :kept].set(jnp.diag(ritz.theta[-kept:][::-1]))
    return state._replace(basis=basis, matrix=matrix, count=jnp.asarray(KEPT))
