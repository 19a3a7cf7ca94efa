"""The largest eigenvalues of a symmetric matvec on vectors, repeated ones as often as they occur: block Lanczos, restarted.

    A Q = Q T + W,    T = Qᵀ A Q,    W = 0 but for the last block,    |A y − θ y| = |W s|,  y = Q s a Ritz vector

The Krylov space of one vector holds one vector of each eigenspace; that of k random ones, k of each: all that the k largest
eigenvalues can be, and no run in the complement of what was found need follow (``finite.lanczos``, where vectors are too long
for many of them to be kept).  Every block is orthogonalised against all; a full basis gives way to its better half of Ritz
vectors (Wu and Simon, SIAM J. Matrix Anal. 22 (2000) 602).

A block that the space does not go on with is rounding noise, hence random: of an invariant space the basis grows on beside it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from limits.precision import eigh

BLOCKS = 24  # of the basis
KEPT = 12  # after a restart
CHECK = 3  # blocks between two looks at the residuals; BLOCKS − KEPT is a multiple
RESTARTS = 40
FEWEST = 8  # vectors of a block: single ones take longer
RTOL = 1e-9  # of the residuals, to the largest |θ|; an eigenvalue's error is about the square of its own over the gap
REACHED = 1e-6  # values that are no better after all restarts are NaN


class _State(NamedTuple):
    """The first ``count`` blocks have had their product; the next one is orthonormal to them."""

    basis: Array  # (BLOCKS + 1, b, n)
    matrix: Array  # (M, M) T, M = BLOCKS b
    rest: Array  # (b, b) R of the last block of Wᵀ = Q R
    count: Array
    products: Array  # of blocks


class _Ritz(NamedTuple):
    values: Array  # (k,) largest first
    residuals: Array  # (k,)
    scale: Array  # the largest |θ|
    theta: Array  # (M,) all, in ascending order, and lowest so many that are none
    weights: Array  # (M, M) s


def largest(matvec: Callable[[Array], Array], size: int, k: int) -> Float[Array, " k"]:
    """The k largest eigenvalues of ``matvec`` on vectors (size,), largest first; zeros beyond the size.

    A piece for compiled code, in float64.  NaN where the operator is not finite or, after ``RESTARTS``, a residual exceeds
    ``REACHED``.  Memory: 25 max(k, 8) vectors; where there are no more dimensions, the whole matrix is decomposed.
    """
    apply, b = jax.vmap(matvec), max(k, FEWEST)
    M = BLOCKS * b
    if size < M + b:
        values = eigh(apply(jnp.eye(size)))[0][::-1][:k]
        return jnp.pad(values, (0, k - len(values)))

    def unfinished(carry):
        state, ritz = carry
        open_ = jnp.any(ritz.residuals > RTOL * ritz.scale) & jnp.all(jnp.isfinite(state.rest))
        return open_ & (state.products < BLOCKS + RESTARTS * (BLOCKS - KEPT))

    def grow(carry):
        state, ritz = carry
        state = lax.cond(state.count == BLOCKS, _restart, lambda state, _: state, state, ritz)
        state = lax.fori_loop(0, CHECK, lambda _, state: _extend(apply, state), state)
        return state, _ritz(state, k)

    first = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (size, b), float))[0].T
    zero, whole = jnp.zeros((), int), jnp.zeros((M, M))
    state = _State(jnp.zeros((BLOCKS + 1, b, size)).at[0].set(first), whole, jnp.zeros((b, b)), zero, zero)
    start = _Ritz(jnp.zeros(k), jnp.full(k, jnp.inf), jnp.ones(()), whole[0], whole)
    state, ritz = lax.while_loop(unfinished, grow, (state, start))
    return jnp.where(ritz.residuals <= REACHED * ritz.scale, ritz.values, jnp.nan)


def _extend(apply, state):
    """One product of a block, orthogonalised; T gets its rows and columns from it."""
    basis, b = state.basis, state.basis.shape[1]
    W = apply(basis[state.count])
    scale = jnp.max(jnp.linalg.norm(W, axis=1))
    W, overlaps = _project_out(basis, W, state.count)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), state.products), W.shape, float)
    Q, R = jnp.linalg.qr((W + jnp.finfo(W.dtype).eps * scale / jnp.sqrt(W.shape[1]) * noise).T)
    Q = jnp.linalg.qr(_project_out(basis, Q.T, state.count)[0].T)[0].T  # twice is enough
    matrix = lax.dynamic_update_slice(state.matrix, overlaps, (state.count * b, 0))
    matrix = lax.dynamic_update_slice(matrix, overlaps.T, (0, state.count * b))
    return _State(basis.at[state.count + 1].set(Q), matrix, R, state.count + 1, state.products + 1)


def _project_out(basis, W, last):
    """W (b, n) without the blocks up to ``last``, and its products (b, M) with them."""

    def against(j, carry):
        W, overlaps = carry
        now = W @ basis[j].T
        return W - now @ basis[j], lax.dynamic_update_slice(overlaps, now, (0, j * len(W)))

    return lax.fori_loop(0, last + 1, against, (W, jnp.zeros((len(W), (len(basis) - 1) * len(W)))))


def _ritz(state, k):
    b = len(state.rest)
    used = jnp.arange(len(state.matrix)) < state.count * b
    matrix = jnp.where(jnp.isfinite(state.matrix), state.matrix, 0)
    unused = -2 * jnp.linalg.norm(matrix)  # below all others
    theta, s = eigh(jnp.where(used[:, None] & used, matrix, jnp.diag(jnp.full(len(used), unused))))
    last = lax.dynamic_slice(s, ((state.count - 1) * b, 0), (b, len(s)))
    residuals = jnp.linalg.norm(state.rest @ last[:, ::-1][:, :k], axis=0)
    return _Ritz(theta[::-1][:k], residuals, jnp.max(jnp.where(theta > unused, jnp.abs(theta), 0)), theta, s)


def _restart(state, ritz):
    """The upper Ritz vectors, and the block that is next."""
    b, n = state.basis.shape[1:]
    kept = KEPT * b
    vectors = ritz.weights[:, -kept:].T @ state.basis[:-1].reshape(-1, n)
    basis = jnp.zeros_like(state.basis).at[:KEPT].set(vectors.reshape(KEPT, b, n)).at[KEPT].set(state.basis[BLOCKS])
    matrix = jnp.zeros_like(state.matrix).at[:kept, :kept].set(jnp.diag(ritz.theta[-kept:]))
    return state._replace(basis=basis, matrix=matrix, count=jnp.asarray(KEPT))
