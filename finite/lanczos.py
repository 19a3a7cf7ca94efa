"""Extreme eigenvalues of a symmetric matvec on pytrees: Lanczos in one jitted loop that ends with a verdict.

    A V_m = V_m T_m + β_m v_{m+1} e_mᵀ,     T_m = S Θ Sᵀ tridiagonal,     |A y_i − θ_i y_i| = β_m |s_mi|,  y_i = V_m s_i

The basis grows until the wanted θ_i are accurate, or max_matvecs is reached.  Its memory traffic costs as much as the
products of a network, hence three measures: it is stored in blocks of rows, of which only those in use are read; it is
orthogonalised again only when Simon's recurrence says so (Math. Comp. 42 (1984) 115); eigenvectors come at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

BLOCK_ROWS = 16  # of the basis; larger blocks read more unused rows, smaller ones take longer to compile
BREAKDOWN = 50  # a coupling β below so many units of rounding of |A| is noise: the Krylov space is exhausted
ROUNDING = 8  # no value is claimed to be known better than so many units of rounding of |A|
LEADING = (16, 64)  # sizes of eigenproblems, tried before the whole: 17 us, 640 us; to larger ones OpenBLAS takes threads


class Extremes(NamedTuple):
    """The ``top`` algebraically largest eigenvalues, largest first, then the ``bottom`` smallest, smallest last.

    values      NaN where the operator is not finite or the space has fewer dimensions
    errors      r + 8 ε |A|, r = |A y − θ y| the residual: some eigenvalue is at most so far.  Once close eigenvalues
                have parted the error is about r²/gap, far smaller; before, a value may stand for two
    converged   errors ≤ max(rtol |θ|, atol, 100 ε |A|), and after a breakdown (see ``extremes``) none is missing
    vectors     like ``start`` with a leading axis, unit length and orthogonal to √ε
    beyond      like ``start``: the Ritz vectors that come next at each end, summed; of any accuracy, 0 where there are none
    matvecs     products used
    """

    values: Float[Array, " k"]
    errors: Float[Array, " k"]
    converged: Bool[Array, " k"]
    vectors: PyTree
    beyond: PyTree
    matvecs: Int[Array, ""]


class _State(NamedTuple):
    """v_0 … v_m, the tridiagonal matrix of the products with v_0 … v_{m-1}, and how orthogonal they are."""

    basis: tuple[Array, ...]  # blocks of rows; in a block that is in use the rows beyond m are zero
    previous: Array  # (n,) v_{m-1}
    current: Array  # (n,) v_m
    m: Array  # products so far
    alpha: Array  # (M,) the diagonal
    beta: Array  # (M,) between v_j and v_{j+1}; 0 where the coupling was cut
    cut: Array  # a bound of the couplings that were cut
    omega: Array  # (2, M) estimates of v_{m-1}·v_k and v_m·v_k
    again: Array  # the vector after this one is to be orthogonalised too: the recurrence has two terms


def extremes(
    matvec: Callable[[Any], Any],
    start: PyTree,
    *,
    top: int,
    bottom: int = 0,
    rtol: float | Array = 1e-3,
    atol: float | Array = 0.0,
    max_matvecs: int = 100,
    check_every: int = 4,
) -> Extremes:
    """Eigenvalues at the two ends of the spectrum of ``matvec``, from ``start`` (any length; zero: a random one).

    A Krylov space holds one vector of each eigenspace.  When it is exhausted (β at rounding level) the search goes on
    from a random vector orthogonal to it, until such a new space, of three vectors or more, has nothing to add:
    repeated eigenvalues are then counted as often as they occur.  Multiplicity in a space that is not exhausted is,
    as always with a single start, not seen.  The residual is tested after a quarter more products each time, and at least
    every ``check_every``.

    Memory: max_matvecs vectors, and on a CPU the time to clear them.  Compile it (``jax.jit``) with its caller.
    """
    v, unravel, product = _on_vectors(matvec, start)
    size = min(max_matvecs, v.size)

    def read(state):
        return _ritz(state, v.size, top, bottom, rtol, atol)

    def unfinished(carry):
        state, (_, _, converged, _) = carry
        return (state.m < size) & ~converged.all() & jnp.isfinite(state.alpha).all()

    def grow(carry):
        m = carry[0].m
        until = jnp.clip(m + jnp.clip(m // 4, 1, check_every), min(top + bottom + 1, size), size)
        state = lax.fori_loop(m, until, lambda _, state: _extend(product, state), carry[0])
        return state, read(state)

    state = _begin(v, size)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(read, state))
    state, (values, errors, converged, weights) = lax.while_loop(unfinished, grow, (state, nothing))
    vectors = jnp.zeros((top + bottom + 1, v.size), v.dtype)
    for j, block in enumerate(state.basis):
        rows = weights[j * BLOCK_ROWS : (j + 1) * BLOCK_ROWS]
        vectors = _when(j * BLOCK_ROWS < state.m, lambda y, rows=rows, block=block: y + rows.T @ block, vectors)
    return Extremes(values, errors, converged, jax.vmap(unravel)(vectors[:-1]), unravel(vectors[-1]), state.m)


def tridiagonal(
    matvec: Callable[[Any], Any], start: PyTree, steps: int
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """(α, β) of T_m after m = ``steps`` products, or as many as there are dimensions; β_j couples rows j and j + 1.

    Where a Krylov space is exhausted β_j = 0, and the rows after it are of a random vector orthogonal to it.
    """
    v, _, product = _on_vectors(matvec, start)
    size = min(steps, v.size)
    state = lax.fori_loop(0, size, lambda _, state: _extend(product, state), _begin(v, size))
    return state.alpha, state.beta


def random_start(key: Array, like: PyTree) -> PyTree:
    """A Gaussian vector of the structure of ``like``."""
    flat, unravel = ravel_pytree(like)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def combined(vectors: PyTree, before: PyTree) -> PyTree:
    """The sum of the ``vectors`` (leading axis), each with the sign of its overlap with ``before``; without what is not finite.

    An eigenvector has no sign of its own: so sums of successive ones differ by what has happened between them.
    """
    old, unravel = ravel_pytree(before)
    rows = jax.vmap(lambda vector: ravel_pytree(vector)[0])(vectors)
    rows = jnp.where(jnp.isfinite(rows), rows, 0)
    return unravel(jnp.where(rows @ old < 0, -1, 1).astype(rows.dtype) @ rows)


def warm_start(key: Array, older: PyTree, newer: PyTree, beyond: PyTree, mix: float = 0.03) -> PyTree:
    """``newer`` moved on as far as it has moved from ``older``; and, ``mix`` as long, ``beyond`` and a random vector.

    Moved on, a start is off by the second difference of the eigenvectors of successive matrices, not by the first.  The
    rest is for eigenvalues that have overtaken: a start that is an eigenvector knows no other; ``mix`` must not be 0.
    """
    (old, _), (new, unravel), (other, _) = ravel_pytree(older), ravel_pytree(newer), ravel_pytree(beyond)
    moved = new - old * (old @ new) / jnp.maximum(old @ old, jnp.finfo(new.dtype).tiny)  # new, if they have nothing in common
    noise, length = jax.random.normal(key, new.shape, new.dtype), jnp.linalg.norm(new)
    rest = jnp.where(jnp.isfinite(other), other, 0) + noise / jnp.linalg.norm(noise)
    return unravel(new + moved + mix * jnp.where(length > 0, length, 1) * rest)


def _on_vectors(matvec, start):
    """(the start as a vector, its way back, the product with vectors)"""
    v, unravel = ravel_pytree(start)
    return v, unravel, lambda x: ravel_pytree(matvec(unravel(x)))[0]


def _begin(v, size):
    v = lax.cond(jnp.any(v != 0), lambda v: v, lambda v: random_start(jax.random.key(size), v), v)
    v = v / jnp.linalg.norm(v)
    rows = [min(BLOCK_ROWS, size - first) for first in range(0, size, BLOCK_ROWS)]
    first = jnp.zeros((rows[0], v.size), v.dtype).at[0].set(v)
    zeros = jnp.zeros(size, v.dtype)
    return _State(
        basis=(first, *(jnp.full((r, v.size), j, v.dtype) for j, r in enumerate(rows[1:]))),  # equal ones XLA copies
        previous=jnp.zeros_like(v),
        current=v,
        m=jnp.zeros((), jnp.int32),
        alpha=zeros,
        beta=zeros,
        cut=jnp.zeros((), v.dtype),
        omega=jnp.stack([zeros, zeros.at[0].set(1)]),
        again=jnp.asarray(False),
    )


def _extend(product, state):
    """One product: the next α, β and basis vector."""
    m, v, eps = state.m, state.current, jnp.finfo(state.current.dtype).eps
    w = product(v) - state.beta[m - 1] * state.previous  # the last β of the array is 0 until it is the last
    alpha = state.alpha.at[m].set(jnp.vdot(v, w))
    w = w - alpha[m] * v
    length = jnp.linalg.norm(w)
    noise = eps * _norm(alpha, state.beta)
    omega = _overlaps(state, alpha, length, noise)
    stale = jnp.max(jnp.where(jnp.arange(alpha.size) <= m, jnp.abs(omega), 0)) > jnp.sqrt(eps)
    exhausted = length <= BREAKDOWN * noise
    clean = stale | state.again | exhausted
    w, length, broken = lax.cond(
        clean,
        lambda w: _orthogonalise(state.basis, w, m, BREAKDOWN * noise),
        lambda w: (w, length, jnp.asarray(False)),
        w,
    )
    w = w / length
    return _State(
        basis=_put(state.basis, m + 1, w),
        previous=v,
        current=w,
        m=m + 1,
        alpha=alpha,
        beta=state.beta.at[m].set(jnp.where(broken, 0, length)),
        cut=jnp.where(broken, jnp.maximum(state.cut, BREAKDOWN * noise), state.cut),
        omega=jnp.stack([state.omega[1], jnp.where(clean, eps, omega).at[m + 1].set(1, mode="drop")]),
        again=broken | (stale & ~state.again),
    )


def _overlaps(state, alpha, length, noise):
    """Simon's recurrence for the overlaps of v_{m+1} with v_0 … v_m, from those of v_{m-1} and v_m."""
    m, (older, old) = state.m, state.omega
    below = jnp.roll(state.beta, 1).at[0].set(0)  # β_{k-1}
    mixed = state.beta * jnp.roll(old, -1) + (alpha - alpha[m]) * old + below * jnp.roll(old, 1)
    mixed = mixed - below[m] * older
    mixed = jnp.where(jnp.arange(alpha.size) < m, mixed, 0)
    return (mixed + jnp.where(mixed < 0, -noise, noise)) / length


def _orthogonalise(basis, w, m, noise):
    """Gram-Schmidt against v_0 … v_m; a w that is all noise gives way to a random vector.

    The basis is itself orthogonal to √ε only, so that a pass leaves √ε of what it removes: repeated unless that is
    little.  Returns w, its length and whether it was replaced.
    """

    def project(carry):
        def against(block, carry):
            w, removed = carry
            overlaps = block @ w
            return w - overlaps @ block, removed + overlaps @ overlaps

        w, broken, *_ = carry
        w_removed = w, jnp.zeros((), w.dtype)
        for j, block in enumerate(basis):
            w_removed = _when(j * BLOCK_ROWS <= m, partial(against, block), w_removed)
        w, removed = w_removed
        length = jnp.linalg.norm(w)
        lost = ~broken & (length <= noise)
        w = lax.cond(lost, lambda w: random_start(jax.random.key(m), w), lambda w: w, w)
        return w, broken | lost, length, lost | (removed > 16 * jnp.finfo(w.dtype).eps * length**2)

    carry = (w, jnp.asarray(False), jnp.zeros((), w.dtype), jnp.asarray(True))
    w, broken, length, _ = lax.while_loop(lambda carry: carry[-1], project, carry)
    return w, length, broken


def _put(basis, m, v):
    """Row m of the basis; the first row of a block clears the others.  A while loop writes in place."""
    row = m % BLOCK_ROWS

    def write(block):
        block = _when(row == 0, jnp.zeros_like, block)
        return lax.dynamic_update_index_in_dim(block, v, row, 0)

    return tuple(_when((m // BLOCK_ROWS == j) & (row < len(block)), write, block) for j, block in enumerate(basis))


def _when(condition, function, x):
    """function(x) or x, as a loop of one turn or none: XLA updates its operand in place, a conditional's it copies."""
    return lax.fori_loop(0, jnp.asarray(condition, jnp.int32), lambda _, x: function(x), x)


def _eigh(matrix, m):
    """Eigenvalues, ascending, and vectors of a matrix that is diagonal beyond row m."""
    def leading(size, matrix):
        theta, s = jnp.linalg.eigh(matrix[:size, :size])
        rest = jnp.diagonal(matrix)[size:]
        return jnp.append(theta, rest), jax.scipy.linalg.block_diag(s, jnp.eye(len(rest), dtype=s.dtype))

    sizes = [size for size in LEADING if size < len(matrix)]
    branches = [*(partial(leading, size) for size in sizes), lambda matrix: tuple(jnp.linalg.eigh(matrix))]
    return lax.switch(sum(m > size for size in sizes), branches, matrix)


def _norm(alpha, beta):
    """A bound of |T| by its rows, the scale of all rounding."""
    return jnp.max(jnp.abs(alpha) + beta + jnp.roll(beta, 1))


def _ritz(state, n, top, bottom, rtol, atol):
    """Values, error bounds, verdict and weights (M, top + bottom + 1) of the wanted Ritz pairs and of what is beyond."""
    m, size = state.m, state.alpha.size
    scale, rounding = _norm(state.alpha, state.beta), jnp.finfo(state.alpha.dtype).eps
    used, finite = jnp.arange(size) < m, jnp.isfinite(scale)
    inner = jnp.where(jnp.arange(size - 1) < m - 1, state.beta[:-1], 0)
    # unused rows hold a value above all others: the eigenvalues of T_m come first, in ascending order
    tridiagonal = jnp.diag(jnp.where(used, state.alpha, 3 * scale + 1)) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    theta, s = _eigh(jnp.where(finite, tridiagonal, 0), m)
    error = state.beta[m - 1] * jnp.abs(s[m - 1]) + state.cut + ROUNDING * rounding * scale

    wanted = jnp.concatenate([m - 1 - jnp.arange(top), jnp.arange(bottom)[::-1]])
    exists = finite & (wanted >= 0) & (wanted < m)
    limit = jnp.maximum(jnp.maximum(rtol * jnp.abs(theta[wanted]), atol), 2 * BREAKDOWN * rounding * scale)

    # where the couplings fall below the tolerance a Krylov space is exhausted; the newest one begins after that
    smallest = jnp.min(limit, where=exists, initial=jnp.inf)
    negligible = state.beta <= jnp.maximum(smallest, jnp.sqrt(rounding) * scale)
    falls = negligible & ~jnp.roll(negligible, 1).at[0].set(False) & (jnp.arange(size) < m - 1)
    begin = jnp.max(jnp.where(falls, jnp.arange(1, size + 1), 0))
    newest = jnp.where(jnp.arange(size)[:, None] >= begin, s, 0)
    touched = used & (jnp.linalg.norm(newest, axis=0) > 0.1)  # of m copies of a value one has a weight of 1/m or more

    def nothing_beyond(sign, wanted, limit):
        first = jnp.argmax(jnp.where(touched, sign * theta, -jnp.inf))
        lead = sign * (theta[wanted] - theta[first])
        return ((lead >= -limit) & (error[first] <= 2 * limit)) | (lead >= 4 * error[first])

    complete = jnp.concatenate(
        [nothing_beyond(1, wanted[:top], limit[:top]), nothing_beyond(-1, wanted[top:], limit[top:])]
    )
    complete = complete & (m - begin >= 3) | (m == n) | ((begin == 0) & ~negligible[m - 1])
    converged = exists & complete & (error[wanted] <= limit)
    values, errors, weights = (jnp.where(exists, x[..., wanted], jnp.nan) for x in (theta, error, s))
    beyond = (top > 0) * s[:, jnp.maximum(m - 1 - top, 0)] + (bottom > 0) * s[:, bottom % size]
    beyond = jnp.where(finite & (m > top + bottom), beyond, 0)
    return values, errors, converged, jnp.column_stack([weights, beyond])
