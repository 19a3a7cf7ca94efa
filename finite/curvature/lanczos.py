"""Extreme eigenvalues of a symmetric matvec on pytrees: Lanczos in one jitted loop that ends with a verdict.

    A V_m = V_m T_m + β_m v_{m+1} e_mᵀ,     T_m = S Θ Sᵀ tridiagonal,     |A y_i − θ_i y_i| = β_m |s_mi|,  y_i = V_m s_i

The basis grows until the wanted θ_i are accurate, or max_matvecs is reached.  Its memory traffic costs as much as the
products of a network, hence three measures: it is stored in blocks of rows, of which only those in use are read; it is
orthogonalised again only when Simon's recurrence says so (Math. Comp. 42 (1984) 115); eigenvectors come at the end.

A Krylov space holds one vector of each eigenspace: of a repeated eigenvalue it shows one copy.  Hence another run, from a
random vector x orthogonal to the Ritz vectors found, which are projected out of its products.  It asks whether any
eigenvalue above a level λ is left.  Unless x is by chance (of probability ``MISSED``) nearly orthogonal to its eigenvector,
the spectral measure μ of x has a mass of π MISSED²/2n or more there; and by the inequality of Markov and Stieltjes

    μ([λ, ∞)) ≤ 1 / Σ_{j≤m} p_j(λ)²,      β_j p_{j+1} = (λ − α_j) p_j − β_{j-1} p_{j-1},     if no Ritz value is above λ,

p_j the orthonormal polynomials of μ.  The sum grows exponentially: a few products exclude such an eigenvalue.  A Ritz value
above λ, where p_j < 0, is one: it is put among those found, and another run begins.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from limits.machine import eigh

BLOCK_ROWS = 16  # of a large basis; larger blocks read more unused rows, smaller ones take longer to compile
ONE_BLOCK = 2**18  # numbers of a basis that is one block: what is not in use costs less than more blocks to compile
BREAKDOWN = 50  # a coupling β below so many units of rounding of |A| is noise: the Krylov space is exhausted
ROUNDING = 8  # no value is claimed to be known better than so many units of rounding of |A|
LEADING = (16, 64)  # sizes of eigenproblems, tried before the whole: 17 us, 640 us; to larger ones OpenBLAS takes threads
MISSED = 1e-3  # the probability that a second copy of an eigenvalue stays unseen
GUARD = 6  # Ritz vectors beyond the wanted ones that are projected out too: what is left is farther from the levels


class Extremes(NamedTuple):
    """The ``top`` algebraically largest eigenvalues, largest first, then the ``bottom`` smallest, smallest last.

    values      NaN where the operator is not finite or the space has fewer dimensions
    errors      r + 8 ε |A|, r = |A y − θ y| the residual: some eigenvalue is at most so far.  Once close eigenvalues
                have parted the error is about r²/gap, far smaller; before, a value may stand for two.  More where further
                copies of eigenvalues are not excluded: up to the last level above which there are none, at most the
                distance to the first value
    converged   errors ≤ max(rtol |θ|, atol, 100 ε |A|): the value, and that it is the k-th, repeated ones counted as often
                as they occur
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


class _Ends(NamedTuple):
    """So many largest and smallest values are wanted, of a matrix that a basis of ``size`` vectors is made for.

    Ritz vectors are kept in ascending order of their values: the wanted ones, and at each end some more.
    """

    top: int
    bottom: int
    size: int

    @property
    def sign(self) -> np.ndarray:
        """(k,) of the end of each wanted value: times it, they fall from the end on."""
        return np.repeat([1, -1], [self.top, self.bottom])

    @property
    def outermost(self) -> np.ndarray:
        """(k,) the index of the first value of each one's end."""
        return np.repeat([0, self.top + self.bottom - 1], [self.top, self.bottom])

    @property
    def repeated(self) -> bool:
        """Whether a value may be a copy of another one."""
        return max(self.top, self.bottom) > 1

    @property
    def kept(self) -> int:
        return min(_with_guard(self.top) + _with_guard(self.bottom), self.size)

    def kept_of(self, m) -> Array:
        """(kept,) which of m values in ascending order are kept; m and more where there are fewer."""
        rank = jnp.arange(self.kept)
        return rank + jnp.where(rank < _with_guard(self.bottom), 0, jnp.maximum(m - self.kept, 0))

    def wanted_of(self, count) -> tuple[Array, Array]:
        """(k,) which of ``count`` kept ones are wanted, and whether they are there."""
        place = jnp.concatenate([count - 1 - jnp.arange(self.top), jnp.arange(self.bottom)[::-1]])
        return place, (place >= 0) & (place < count)


def _with_guard(wanted):
    """How many Ritz vectors are kept for so many wanted ones of an end; one, ``Extremes.beyond``, where no run follows."""
    return wanted + (0 if wanted == 0 else 1 if wanted == 1 else GUARD)


class _State(NamedTuple):
    """v_0 … v_m, the matrix of the products with v_0 … v_{m-1}, and how orthogonal they are.

    The first vectors may be Ritz vectors of earlier runs, *locked*; the matrix is tridiagonal after them.
    """

    basis: tuple[Array, ...]  # blocks of rows; in a block that is in use the rows beyond m are zero
    previous: Array  # (n,) v_{m-1}
    current: Array  # (n,) v_m
    m: Array  # products so far, and locked vectors
    alpha: Array  # (M,) the diagonal
    beta: Array  # (M,) between v_j and v_{j+1}; 0 where the coupling was cut
    scale: Array  # a bound of |A| from earlier runs; at first, squares of what is ε times it are as small as floats are
    cut: Array  # a bound of the couplings that were cut: positive once the space was exhausted
    omega: Array  # (2, M) estimates of v_{m-1}·v_k and v_m·v_k
    again: Array  # the vector after this one is to be orthogonalised too: the recurrence has two terms
    locked: Array  # how many vectors are
    residuals: Array  # (M,) of the locked ones
    coupling: Array  # (kept, M) of the locked ones with the others
    levels: Array  # (2, k) times sign: just beyond the wanted values of earlier runs, and at their tolerance
    growth: Array  # (3, 2, k) p_{m-1}, p_m, Σ p_j² at the levels; the sum is ∞ once it suffices, −∞ if a Ritz value is above


class _Ritz(NamedTuple):
    """The Ritz pairs kept, and the wanted ones of them."""

    values: Array  # (kept,) in ascending order
    residuals: Array  # (kept,)
    weights: Array  # (M, kept) of the basis; 0 where there are fewer
    wanted: Array  # (k,) values; NaN where there are fewer
    errors: Array  # (k,) of the residuals and of rounding
    limits: Array  # (k,) that the errors are to reach


class _Verdict(NamedTuple):
    errors: Array  # (k,) with what is not excluded
    converged: Array  # (k,)
    more: Array  # whether another run follows


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
    needed: Bool[Array, " k"] | None = None,
) -> Extremes:
    """Eigenvalues at the two ends of the spectrum of ``matvec``, from ``start`` (any length; zero: a random one).

    That nothing is beyond the largest and the smallest value rests on ``start``: every eigenvector must have a part in it, as
    in a random one and in a ``warm_start``.  Where more than one value is wanted at an end, further runs see to repeated
    ones: about as many as the most frequent value has copies, the last of which excludes more, in 5 to 15 products as a rule.
    A run ends early where its space is exhausted (β at rounding level), else after max_matvecs products.  The residual is
    tested after a quarter more of them each time, and at least every ``check_every``.  Values that are not ``needed`` (default:
    all are) may be of any accuracy, and of one that is needed alone at its end no second copy is looked for.

    Memory: max_matvecs vectors, and on a CPU the time to clear them.  Compile it (``jax.jit``) with its caller.
    """
    v, unravel, product = _on_vectors(matvec, start)
    ends = _Ends(top, bottom, min(max_matvecs, v.size))
    idle = jnp.zeros(top + bottom, bool) if needed is None else ~needed

    def unfinished(carry):
        state, ritz, accepted = carry
        open_ = _undecided(state) | ~(idle | (ritz.errors <= jnp.maximum(ritz.limits, accepted))).all()
        return (state.m < ends.size) & (state.cut == 0) & jnp.isfinite(state.alpha).all() & open_

    def grow(carry):
        state, _, accepted = carry
        m, fewest = state.m, min(top + bottom + 1, ends.size)
        until = jnp.clip(m + jnp.clip((m - state.locked) // 4, 1, check_every), fewest, ends.size)
        more = lambda s: (s.m < until) | ((s.m < ends.size) & _undecided(s) & jnp.isfinite(s.alpha).all())  # noqa: E731
        going = lambda state: more(state) & (state.cut == 0)  # noqa: E731
        state = lax.while_loop(going, partial(_extend, product, ends.sign), state)
        return state, _ritz(state, ends, rtol, atol), accepted

    def run(carry):
        state, ritz, _, matvecs, runs = carry
        accepted = jnp.where(runs > 0, jnp.max(ritz.errors, initial=0.0, where=~(idle | jnp.isnan(ritz.errors))), 0)
        unknown = ritz._replace(errors=jnp.full_like(ritz.errors, jnp.inf))
        state = _when(runs > 0, lambda state: _restart(state, ritz, runs, ends), state) if ends.repeated else state
        state, ritz, _ = lax.while_loop(unfinished, grow, (state, unknown, accepted))
        matvecs, order = matvecs + state.m - state.locked, _in_order(_locked(state, ritz, ends))
        state = state._replace(basis=_combine(state, ritz.weights[:, order]))
        return state, ritz, _judge(state, ritz, idle, runs, ends), matvecs, runs + 1

    state, zero = _begin(v, ends), jnp.zeros((), jnp.int32)
    ritz = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda s: _ritz(s, ends, rtol, atol), state))
    carry = state, ritz, _Verdict(ritz.errors, ritz.errors < 0, jnp.asarray(True)), zero, zero
    carry = lax.while_loop(lambda carry: carry[2].more, run, carry) if ends.repeated else run(carry)
    return _found(*carry[:4], unravel, ends)


def _found(state, ritz, verdict, matvecs, unravel, ends):
    """What ``extremes`` returns, after the last run."""
    count = jnp.minimum(state.m, ends.kept)
    place, exists = ends.wanted_of(count)[0], jnp.isfinite(ritz.wanted)
    kept = jnp.concatenate(state.basis[: _blocks(state.basis, ends.kept)])
    kept = kept[jnp.argsort(_in_order(_locked(state, ritz, ends)))]
    vectors = jnp.where(exists[:, None], kept[place], jnp.nan)
    beyond = (ends.top > 0) * kept[jnp.maximum(count - 1 - ends.top, 0)] + (ends.bottom > 0) * kept[ends.bottom % ends.size]
    beyond = jnp.where(exists.all() & (count > ends.top + ends.bottom), beyond, 0)
    return Extremes(ritz.wanted, verdict.errors, verdict.converged, jax.vmap(unravel)(vectors), unravel(beyond), matvecs)


def tridiagonal(
    matvec: Callable[[Any], Any], start: PyTree, steps: int
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """(α, β) of T_m after m = ``steps`` products, or as many as there are dimensions; β_j couples rows j and j + 1.

    Where a Krylov space is exhausted β_j = 0, and the rows after it are of a random vector orthogonal to it.
    """
    v, _, product = _on_vectors(matvec, start)
    ends = _Ends(0, 0, min(steps, v.size))
    state = lax.fori_loop(0, ends.size, lambda _, state: _extend(product, ends.sign, state), _begin(v, ends))
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


def _begin(v, ends):
    v = lax.cond(jnp.any(v != 0), lambda v: v, lambda v: random_start(jax.random.key(ends.size), v), v)
    v = v / jnp.linalg.norm(v)
    most = ends.size if ends.size * v.size <= ONE_BLOCK else BLOCK_ROWS
    rows = [min(most, ends.size - first) for first in range(0, ends.size, most)]
    first = jnp.zeros((rows[0], v.size), v.dtype).at[0].set(v)
    zeros, k = jnp.zeros(ends.size, v.dtype), len(ends.sign)
    return _State(
        basis=(first, *(jnp.full((r, v.size), j, v.dtype) for j, r in enumerate(rows[1:]))),  # equal ones XLA copies
        previous=jnp.zeros_like(v),
        current=v,
        m=jnp.zeros((), jnp.int32),
        alpha=zeros,
        beta=zeros,
        scale=jnp.asarray(np.sqrt(float(v.size * jnp.finfo(v.dtype).tiny)) / jnp.finfo(v.dtype).eps, v.dtype),
        cut=jnp.zeros((), v.dtype),
        omega=jnp.stack([zeros, zeros.at[0].set(1)]),
        again=jnp.asarray(False),
        locked=jnp.zeros((), jnp.int32),
        residuals=zeros,
        coupling=jnp.zeros((ends.kept, ends.size), v.dtype),
        levels=jnp.full((2, k), -jnp.inf, v.dtype),  # nothing is known: every value is above
        growth=jnp.ones((3, 2, k), v.dtype).at[0].set(0),
    )


def _restart(state, ritz, runs, ends):
    """From a random vector orthogonal to the Ritz vectors kept, which come first and stay."""
    zeros, written, lock = jnp.zeros_like(state.alpha), _blocks(state.basis, ends.kept + 1), _locked(state, ritz, ends)
    count, order = lock.sum(dtype=jnp.int32), _in_order(lock)
    values, residuals = (jnp.where(lock, x, 0)[order] for x in (ritz.values, ritz.residuals))
    state = state._replace(basis=_cut(state.basis, count, written), locked=count)
    v = random_start(jax.random.key(ends.size + runs), state.current)
    v = lax.fori_loop(0, 2, lambda _, v: _project_out(state, v)[0], v)  # twice, lest little is left
    v = v / jnp.linalg.norm(v)
    exists = ~jnp.isnan(ritz.wanted)
    levels = jnp.where(exists, ends.sign * ritz.wanted, -jnp.inf)
    levels = levels + jnp.where(exists, jnp.stack([ritz.errors, jnp.maximum(ritz.errors, ritz.limits / 2)]), 0)
    first = ends.outermost == np.arange(len(ends.sign))
    return state._replace(
        basis=(*_put(state.basis[:written], count, v), *state.basis[written:]),
        previous=jnp.zeros_like(v),
        current=v,
        m=count,
        alpha=zeros.at[: ends.kept].set(values),
        beta=zeros,
        scale=_norm(state, state.alpha),
        cut=jnp.zeros_like(state.cut),
        omega=jnp.zeros_like(state.omega).at[1, count].set(1),
        again=jnp.asarray(False),
        residuals=zeros.at[: ends.kept].set(residuals),
        coupling=jnp.zeros_like(state.coupling),
        levels=jnp.where(first, jnp.inf, levels),  # which has no copy that could be missed
        growth=jnp.ones_like(state.growth).at[0].set(0),
    )


def _locked(state, ritz, ends):
    """(kept,) which Ritz vectors are projected out: the wanted ones, and of the others those that are eigenvectors nearly.

    Others contain eigenvectors that were missed, which then are none of the projected matrix.
    """
    place, exists = ends.wanted_of(jnp.minimum(state.m, ends.kept))
    wanted = jnp.zeros(ends.kept, bool).at[place].max(exists, mode="drop")
    spread = jnp.max(ritz.values) - jnp.min(ritz.values)
    near = ritz.residuals**2 <= spread * jnp.min(ritz.limits, initial=jnp.inf, where=~jnp.isnan(ritz.limits))
    return (wanted | near) & (jnp.arange(ends.kept) < state.m)


def _in_order(lock):
    """(kept,) the Ritz vectors in the order in which they are stored after a run: the locked ones first."""
    return jnp.argsort(~lock)


def _cut(basis, count, written):
    """With no vectors but so many first ones; of the blocks beyond those that were written nothing is read."""
    rows = (jnp.arange(len(block)) + j * len(basis[0]) for j, block in enumerate(basis[:written]))
    cut = (jnp.where(row[:, None] < count, block, 0) for row, block in zip(rows, basis, strict=False))
    return (*cut, *basis[written:])


def _extend(product, sign, state):
    """One product: the next α, β and basis vector."""
    m, v, eps = state.m, state.current, jnp.finfo(state.current.dtype).eps
    w = product(v) - state.beta[m - 1] * state.previous  # the last β of the array is 0 until it is the last
    alpha = state.alpha.at[m].set(jnp.vdot(v, w))
    w, coupling = _project_out(state, w - alpha[m] * v)
    length = jnp.linalg.norm(w)
    noise = eps * _norm(state, alpha)
    omega = _overlaps(state, alpha, length, noise)
    stale = jnp.max(jnp.where(jnp.arange(alpha.size) <= m, jnp.abs(omega), 0)) > jnp.sqrt(eps)
    clean = stale | state.again | (length <= BREAKDOWN * noise)
    w, length, broken = lax.cond(
        clean,
        lambda w: _orthogonalise(state.basis, w, m, BREAKDOWN * noise),
        lambda w: (w, length, jnp.asarray(False)),
        w,
    )
    w = w / length
    beta = state.beta.at[m].set(jnp.where(broken, 0, length))
    return state._replace(
        basis=_put(state.basis, m + 1, w),
        previous=v,
        current=w,
        m=m + 1,
        alpha=alpha,
        beta=beta,
        cut=jnp.where(broken, jnp.maximum(state.cut, BREAKDOWN * noise), state.cut),
        omega=jnp.stack([state.omega[1], jnp.where(clean, eps, omega).at[m + 1].set(1, mode="drop")]),
        again=broken | (stale & ~state.again),
        coupling=state.coupling.at[:, m].set(coupling),
        growth=_polynomials(state, sign, alpha[m], beta[m]),
    )


def _project_out(state, w):
    """w without the locked vectors, and its products with them."""
    kept = len(state.coupling)

    def project(carry):
        w, overlaps = carry[0], []
        for j, block in enumerate(state.basis[: _blocks(state.basis, kept)]):
            rows = jnp.arange(len(block)) + j * len(state.basis[0])
            overlaps.append(jnp.where(rows < state.locked, block @ w, 0))
            w = w - overlaps[-1] @ block
        return w, jnp.concatenate(overlaps)[:kept]

    nothing = w, jnp.zeros(kept, w.dtype)
    return _when(state.locked > 0, project, nothing) if kept else nothing


def _blocks(basis, rows):
    """How many blocks of the basis so many rows are in."""
    return -(-rows // len(basis[0]))


def _polynomials(state, sign, alpha, beta):
    """The next p_j at the levels, and the sum of their squares."""
    before, current, total = state.growth
    after = ((state.levels - sign * alpha) * current - state.beta[state.m - 1] * before) / beta
    more = jnp.where((after > 0) & (total > 0), total + after**2, -jnp.inf)
    enough = 2 / jnp.pi / MISSED**2 * state.current.size
    return jnp.stack([current, after, jnp.where((total == jnp.inf) | (more > enough), jnp.inf, more)])


def _undecided(state):
    """Whether it is open that there are further eigenvalues above the levels: to be seen without an eigenproblem."""
    return jnp.isfinite(state.growth[2, 1]).any()


def _overlaps(state, alpha, length, noise):
    """Simon's recurrence for the overlaps of v_{m+1} with v_0 … v_m, from those of v_{m-1} and v_m."""
    m, (older, old), k = state.m, state.omega, jnp.arange(alpha.size)
    below = jnp.roll(state.beta, 1).at[0].set(0)  # β_{k-1}
    mixed = state.beta * jnp.roll(old, -1) + (alpha - alpha[m]) * old + below * jnp.roll(old, 1)
    mixed = mixed - below[m] * older
    mixed = jnp.where((k >= state.locked) & (k < m), mixed, 0)
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
            w_removed = _when(j * len(basis[0]) <= m, partial(against, block), w_removed)
        w, removed = w_removed
        length = jnp.linalg.norm(w)
        lost = ~broken & (length <= noise)
        w = lax.cond(lost, lambda w: random_start(jax.random.key(m), w), lambda w: w, w)
        return w, broken | lost, length, lost | (removed > 16 * jnp.finfo(w.dtype).eps * length**2)

    carry = (w, jnp.asarray(False), jnp.zeros((), w.dtype), jnp.asarray(True))
    w, broken, length, _ = lax.while_loop(lambda carry: carry[-1], project, carry)
    return w, length, broken


def _put(basis, m, v):
    """Row m of the basis; the first row of a block, but the first one, clears the others.  A while loop writes in place."""
    row, of_block = m % len(basis[0]), m // len(basis[0])

    def write(j, block):
        block = _when(row == 0, jnp.zeros_like, block) if j else block
        return lax.dynamic_update_index_in_dim(block, v, row, 0)

    return tuple(_when((of_block == j) & (row < len(block)), partial(write, j), block) for j, block in enumerate(basis))


def _when(condition, function, x):
    """function(x) or x, as a loop of one turn or none: XLA updates its operand in place, a conditional's it copies."""
    return lax.fori_loop(0, jnp.asarray(condition, jnp.int32), lambda _, x: function(x), x)


def _combine(state, weights):
    """The basis, with these combinations of its vectors in the place of the first ones."""
    kept, n, most = weights.shape[1], state.current.size, len(state.basis[0])
    vectors = jnp.zeros((kept, n), weights.dtype)

    def add(first, block, turn, vectors):  # rows of the turn: else XLA takes the product out of the loop, done where not due
        rows = lax.dynamic_slice_in_dim(weights, first + turn, len(block))
        return vectors + rows.T @ block

    for first, block in zip(range(0, len(weights), most), state.basis, strict=True):
        turns = jnp.asarray(first < state.m, jnp.int32)
        vectors = lax.fori_loop(0, turns, partial(add, first, block), vectors)
    first = [vectors[j * most :][: len(block)] for j, block in enumerate(state.basis[: _blocks(state.basis, kept)])]
    filled = [jnp.pad(rows, ((0, len(block) - len(rows)), (0, 0))) for rows, block in zip(first, state.basis, strict=False)]
    return (*filled, *state.basis[len(filled) :])


def _eigh(matrix, m):
    """Eigenvalues, ascending, and vectors of a matrix that is diagonal beyond row m."""
    def leading(size, matrix):
        theta, s = eigh(matrix[:size, :size])
        rest = jnp.diagonal(matrix)[size:]
        return jnp.append(theta, rest), jax.scipy.linalg.block_diag(s, jnp.eye(len(rest), dtype=s.dtype))

    sizes = [size for size in LEADING if size < len(matrix)]
    branches = [*(partial(leading, size) for size in sizes), eigh]
    return lax.switch(sum(m > size for size in sizes), branches, matrix)


def _norm(state, alpha):
    """A bound of |T| by its rows, the scale of all rounding; not less than in earlier runs."""
    return jnp.maximum(state.scale, jnp.max(jnp.abs(alpha) + state.beta + jnp.roll(state.beta, 1)))


def _ritz(state, ends, rtol, atol):
    """The Ritz pairs of all vectors that have their product, locked ones included."""
    m, size = state.m, ends.size
    scale, rounding = _norm(state, state.alpha), jnp.finfo(state.alpha.dtype).eps
    used, finite = jnp.arange(size) < m, jnp.isfinite(scale)
    inner = jnp.where(jnp.arange(size - 1) < m - 1, state.beta[:-1], 0)
    # unused rows hold a value above all others: the eigenvalues of T_m come first, in ascending order
    matrix = jnp.diag(jnp.where(used, state.alpha, 3 * scale + 1)) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    matrix = matrix.at[: ends.kept].add(state.coupling).at[:, : ends.kept].add(state.coupling.T)
    theta, s = _eigh(jnp.where(finite, matrix, 0), m)
    earlier = jnp.arange(size) < state.locked
    new = jnp.where(earlier[:, None], 0, s)
    residual = state.residuals @ jnp.abs(s) + state.beta[m - 1] * jnp.abs(s[m - 1])
    residual = residual + state.cut * jnp.linalg.norm(new, axis=0)
    known = jnp.min(jnp.abs(theta[:, None] - state.alpha) + state.residuals, axis=1, where=earlier, initial=jnp.inf)
    residual = jnp.minimum(residual, known)  # an eigenvalue is as near as it was

    rank = ends.kept_of(m)
    values, residuals, weights = (jnp.where(finite & (rank < m), x[..., rank], 0) for x in (theta, residual, s))
    place, exists = ends.wanted_of(jnp.minimum(m, ends.kept))
    wanted, errors = (jnp.where(finite & exists, x[place], jnp.nan) for x in (values, residuals + ROUNDING * rounding * scale))
    limits = jnp.maximum(jnp.maximum(rtol * jnp.abs(wanted), atol), 2 * BREAKDOWN * rounding * scale)
    return _Ritz(values, residuals, weights, wanted, errors, limits)


def _judge(state, ritz, idle, runs, ends):
    """What a run has shown: no further eigenvalue is above the first value, nor above a level whose sum suffices."""
    total, values, complete = state.growth[2], ends.sign * ritz.wanted, state.m == state.current.size
    excluded = (ends.sign[:, None, None] == ends.sign) & (total == jnp.inf)
    ahead = jnp.where(excluded, state.levels, jnp.inf) - values[:, None, None]
    first = (values + ritz.errors)[ends.outermost] - values
    nearest = jnp.minimum(jnp.min(jnp.where(ahead >= 0, ahead, jnp.inf), axis=(1, 2)), first)
    errors = jnp.maximum(ritz.errors, jnp.where(complete, 0, nearest))
    converged = errors <= ritz.limits
    room = (state.m > 0) & (jnp.minimum(state.m, ends.kept) < ends.size) & (runs <= len(ends.sign))
    more = ~complete & ~(idle | converged).all() & (total[1] == -jnp.inf).any() & room & jnp.isfinite(state.alpha).all()
    return _Verdict(errors, converged, more)
