"""Curvature of a user's own network, to be called in a training loop of theirs; compiled once per objective.

    objective = Objective(apply, loss)                          loss(outputs, targets) → one number
    sharpness(objective, params, batch, top=5, select="blocks/*/attn").values

Raw: of the weights as they are stored.  ``batch`` is (inputs, targets); ``select`` restricts to leaves by their path, a pattern
of it or of its beginning, the others being held.  A Lanczos run keeps vectors of the size of what is selected, ``MATVECS`` of
them.  Where that is more than there is memory for it keeps fewer (``basis``): of one eigenvalue a vector at a time and the best
half of them whenever there is no room (thick restarts: Wu & Simon 2000); of several it is begun again from what was found.
Where all fit, and always but for ``sharpness``, a function may be called inside a jit or vmap of one's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from finite.curvature import lanczos
from finite.curvature.density import Density, spectral_density
from finite.curvature.operators import inner, preconditioned, signs_like, squared_norm
from finite.networks.own import Model, cross_entropies, loss_of, paths, require_known
from limits.machine import physical_memory

MATVECS = 100
FEWEST = 8  # vectors of a basis that is begun again
SHARE = 0.3  # of the machine's memory that a basis may take, with what surrounds it
BESIDE = 7, 14  # vectors: weights, a product and what makes it, half a large leaf; the same in one compiled program


@dataclass(frozen=True, eq=False)
class Objective:
    """What is differentiated; programs are kept by the object, so make one and keep it.  The loss as in a ``Model``.

    >>> objective = Objective(lambda w, x: x @ w, lambda f, y: jnp.mean((f - y) ** 2) / 2)
    >>> x = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> print(sharpness(objective, jnp.zeros(2), (x, jnp.zeros(2)), top=2).values)
    [2.  0.5]
    """

    apply: Callable
    loss: str | Callable

    def __post_init__(self):
        require_known(self.loss)

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        """Raises ValueError where the batch is no pair, or the loss not one number."""
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batch is {type(batch).__name__}: wanted the pair (inputs, targets)")
        return loss_of(self.loss, self.apply(params, batch[0]), batch[1])


def _check(batch_loss, batch) -> None:
    """Raises ValueError, in one line: within compiled code neither would be told by its name."""
    if not isinstance(batch_loss, Objective):
        raise ValueError(f"batch_loss is {type(batch_loss).__name__}: wanted Objective(apply, loss), of an apply that is built")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch is {type(batch).__name__}: wanted the pair (inputs, targets)")


def objective(model: Model, apply: Callable) -> Objective:
    """Of a model at the ``apply`` that it has built: for networks whose widths are compared, as in ``comparisons.audit``.

    >>> x = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> model = Model(lambda width, key: (jnp.zeros((2, 1)), lambda w, x: x @ w), "mse", (x, jnp.ones((2, 1))))
    >>> params, apply = model.at(8, jax.random.key(0))
    >>> print(objective(model, apply)(params, model.batch))
    0.5
    """
    return Objective(apply, model.of_outputs)


def sharpness(
    batch_loss: Objective, params: Any, batch: Any, *, top: int = 1, select: str | None = None, preconditioner: Any = None,
    rtol: float | Array = 1e-3, basis: int | None = None, start: Any = None,
) -> lanczos.Extremes:  # fmt: skip
    """The ``top`` largest eigenvalues of the Hessian, with errors; preconditioned, of P^{-1/2} H P^{-1/2}.

    preconditioner   P, diagonal, like the params (√v̂ + ε of Adam)
    basis            vectors that are kept at once; default what fits, at most ``MATVECS``
    start            like the params, or like what is selected: ``vectors`` of an earlier call's result summed, say; default a
                     random one

    Raises MemoryError, in one line, where not even ``FEWEST`` vectors fit; ValueError where nothing is selected.
    """
    _check(batch_loss, batch)
    if top < 1:
        raise ValueError(f"top {top}: wanted at least 1")
    chosen = _chosen(params, select)
    kept = _basis(params, chosen, top) if basis is None else basis
    whole = kept >= min(MATVECS, sum(leaf.size for leaf in _selected(params, chosen)))
    begin = jax.tree.leaves(start)
    if begin and len(begin) != len(chosen):
        begin = _selected(start, chosen)
    if top == 1 and not whole:
        product = lambda v: _product(batch_loss, chosen, params, batch, preconditioner, v)  # noqa: E731
        return _largest(product, _selected(params, chosen), begin, kept, float(rtol))
    start = begin or jax.tree.map(jnp.zeros_like, _selected(params, chosen))
    extremes = _extremes(batch_loss, chosen, top, kept, params, batch, preconditioner, start, rtol)
    for _ in range(0 if whole else -(-MATVECS // kept) - 1):
        if bool(extremes.converged.all()):
            break
        start = jax.tree.map(lambda rows: jnp.nan_to_num(rows).sum(0), extremes.vectors)
        extremes = _extremes(batch_loss, chosen, top, kept, params, batch, preconditioner, start, rtol)
    return extremes


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _extremes(batch_loss, chosen, top, kept, params, batch, preconditioner, start, rtol):
    matvec = _matvec(batch_loss, chosen, params, batch, preconditioner)
    return lanczos.extremes(matvec, start, top=top, rtol=rtol, max_matvecs=kept)


@partial(jax.jit, static_argnums=(0, 1))
def _product(batch_loss, chosen, params, batch, preconditioner, v):
    return _matvec(batch_loss, chosen, params, batch, preconditioner)(v)


def _matvec(batch_loss, chosen, params, batch, preconditioner):
    matvec, _ = _hessian(batch_loss, chosen, params, batch)
    if preconditioner is None:
        return matvec
    roots = jax.tree.map(jnp.sqrt, _selected(preconditioner, chosen))
    return preconditioned(matvec, lambda v: jax.tree.map(jnp.divide, v, roots))


def _largest(product: Callable, like: list, start: list, kept: int, rtol: float) -> lanczos.Extremes:
    """The largest eigenvalue, as ``lanczos.extremes`` has it: beside the basis there is a product and what makes it."""
    v = jax.tree.map(jnp.copy, start) or jax.jit(lanczos.random_start)(jax.random.key(kept), like)
    fewest = 1 if start else kept  # by which a random start tells the largest from others
    basis, matrix, eps = [_unit(v)], np.zeros((kept, kept)), float(jnp.finfo(v[0].dtype).eps)
    for count in range(1, MATVECS + 1):
        m, (w, overlaps) = len(basis), _orthogonal(product(basis[-1]), basis)
        matrix[:m, m - 1] = matrix[m - 1, :m] = overlaps
        if not np.isfinite(overlaps).all():
            value, error, limit, turn = np.nan, np.nan, 0.0, np.full((m, m), np.nan)
            break
        values, turn = np.linalg.eigh(matrix[:m, :m])
        coupling = float(_length(w))
        value, rounding = values[-1], eps * (np.abs(values).max() + coupling)
        error, noise = coupling * abs(turn[-1, -1]) + lanczos.ROUNDING * rounding, lanczos.BREAKDOWN * rounding
        limit = max(rtol * abs(value), 2 * noise)
        if (error <= limit and count >= fewest) or coupling <= noise or count == MATVECS:
            break
        if m == kept:
            best = m - kept // 2
            _turned(basis, turn[:, best:])
            matrix = np.diag(np.pad(values[best:], (0, best)))
        basis.append(_unit(w))
    _turned(basis, turn[:, -1:])
    arrays = (np.array([number]) for number in (value, error, error <= limit))
    return lanczos.Extremes(*arrays, [leaf[None] for leaf in basis[0]], None, np.asarray(count))


def _orthogonal(w: list, basis: list) -> tuple[list, np.ndarray]:
    """(w without its parts along the basis, these); twice, for what rounding leaves."""
    overlaps = np.zeros(len(basis))
    for place in [*range(len(basis))] * 2:
        w, overlap = _without(w, basis[place])
        overlaps[place] += overlap
    return w, overlaps


@partial(jax.jit, donate_argnums=0)
def _unit(v):
    return [leaf / _length(v) for leaf in v]


@jax.jit
def _length(v):
    return jnp.sqrt(squared_norm(v))


@partial(jax.jit, donate_argnums=0)
def _without(w, unit):
    overlap = inner(unit, w)
    return [a - overlap * b for a, b in zip(w, unit, strict=True)], overlap


def _turned(basis: list, weights: np.ndarray) -> None:
    """In place of the basis these combinations of it, leaf by leaf, so that there never are two of it."""
    for place in range(len(basis[0])):
        rows = [vector[place] for vector in basis]
        made = [_combination(rows, jnp.asarray(column, rows[0].dtype)) for column in weights.T]
        for vector, leaf in zip(basis, made, strict=False):
            vector[place] = leaf
        for vector in basis[len(made) :]:
            vector[place] = None
    del basis[weights.shape[1] :]


@jax.jit
def _combination(rows, weights):
    return sum(weight * row for weight, row in zip(weights, rows, strict=True))


@partial(jax.jit, static_argnums=(0,), static_argnames=("select", "probes"))
def trace(
    batch_loss: Objective, params: Any, batch: Any, key: Any, *, select: str | None = None, probes: int = 16
) -> tuple[Any, Any]:
    """(tr H, its standard error) from random signs (Hutchinson 1990).  Raises ValueError for fewer than two probes."""
    if probes < 2:
        raise ValueError(f"probes {probes}: a standard error needs two")
    matvec, like = _hessian(batch_loss, _chosen(params, select), params, batch)

    def sample(key):
        z = signs_like(key, like)
        return inner(z, matvec(z))

    samples = jax.lax.map(sample, jax.random.split(key, probes))
    return jnp.mean(samples), jnp.std(samples, ddof=1) / jnp.sqrt(probes)


@partial(jax.jit, static_argnums=(0,), static_argnames=("select", "probes", "steps"))
def density(
    batch_loss: Objective, params: Any, batch: Any, key: Any, *, select: str | None = None, probes: int = 8, steps: int = 64
) -> Density:
    """The density of the Hessian's eigenvalues (``finite.curvature.density``)."""
    matvec, like = _hessian(batch_loss, _chosen(params, select), params, batch)
    return spectral_density(matvec, like, key, probes=probes, steps=steps)


@partial(jax.jit, static_argnums=(0,), static_argnames=("top",))
def ntk(batch_loss: Objective, params: Any, inputs: Any, *, top: int = 1, rtol: float | Array = 1e-3) -> lanczos.Extremes:
    """The ``top`` largest eigenvalues of JJᵀ/P, P the number of samples, by products; outputs one array, samples first."""
    outputs, push = jax.linearize(lambda p: batch_loss.apply(p, inputs), params)
    _refuse_half_precision("outputs are", outputs)
    pull = jax.linear_transpose(push, params)
    matvec = lambda u: push(*pull(u)) / len(outputs)  # noqa: E731
    return lanczos.extremes(matvec, jnp.zeros_like(outputs), top=top, rtol=rtol, max_matvecs=MATVECS)


@partial(jax.jit, static_argnums=(0,))
def gradient_noise(batch_loss: Objective, params: Any, batch: Any) -> jax.Array:
    """tr Σ = (1/P) Σ_p |∇ℓ_p − ∇L|² of losses that are means over samples; sample after sample."""
    mean = jax.grad(batch_loss)(params, batch)

    def of_sample(sample):
        alone = jax.grad(batch_loss)(params, jax.tree.map(lambda leaf: leaf[None], sample))
        return squared_norm(jax.tree.map(jnp.subtract, alone, mean))

    return jnp.mean(jax.lax.map(of_sample, jax.tree.map(jnp.asarray, tuple(batch))))


@partial(jax.jit, static_argnums=(0,), static_argnames=("halvings",))
def critical_sharpness(
    batch_loss: Objective, params: Any, batch: Any, direction: Any, *, rate: float | Array = 1.0, halvings: int = 3
) -> jax.Array:
    """2/η_c: η_c the smallest step along ``direction`` (an update at learning rate 1) that raises the loss (Kalra et al. 2026).

    From ``rate`` on the step is doubled, or halved, until the loss passes its start, then bisected ``halvings`` times: an upper
    bound within a factor 1 + 2^-halvings.  Forward passes, no derivative: 3 + ``halvings`` where ``rate`` is within a factor 2
    (that of the last call, say), and one for each further factor.  0 where no step raises it; not a number where none lowers
    it, as far as rounding tells: an ascent, or weights that have arrived.
    """
    start = batch_loss(params, batch)

    def raises(step):
        return ~(batch_loss(jax.tree.map(lambda p, d: p + step * d, params, direction), batch) < start)  # not a number: it does

    first = raises(jnp.asarray(rate, start.dtype))
    factor = jnp.where(first, 0.5, 2.0).astype(start.dtype)

    def goes_on(carry):
        step, raised = carry
        return (raised == first) & (step > 1e-12) & (step < 1e12)

    begin = jnp.asarray(rate, start.dtype), first
    step, _ = jax.lax.while_loop(goes_on, lambda carry: (carry[0] * factor, raises(carry[0] * factor)), begin)
    low, high = jnp.where(first, step, step / 2), jnp.where(first, 2 * step, step)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = raises(middle)
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    _, high = jax.lax.fori_loop(0, halvings, halve, (low, high))
    return jnp.where(first & (step <= 1e-12), jnp.nan, jnp.where(high < 1e12, 2 / high, 0.0))


def cross_entropy_in_chunks(features: Any, readout: Any, labels: Any, *, chunk: int = 256) -> jax.Array:
    """Mean cross-entropy of the logits ``features @ readout`` (n, vocabulary), of so many places at a time, in derivatives too.

    features (…, n), labels (…): integers; with one that is no class the mean is not a number.  For an ``apply``
    that returns (features, readout): ``loss=lambda outputs, labels: cross_entropy_in_chunks(*outputs, labels)``.  A chunk's
    logits are computed again for its derivative; no more places than one chunk are as they are without.
    """
    rows, count = (features.reshape(-1, features.shape[-1]), labels.reshape(-1)), labels.size
    of_places = lambda features, labels: cross_entropies(features @ readout, labels)  # noqa: E731
    if count <= chunk:
        return jnp.mean(of_places(*rows))
    of_places, whole = jax.checkpoint(of_places), count - count % chunk
    chunks = [array[:whole].reshape(-1, chunk, *array.shape[1:]) for array in rows]
    begin = jnp.sum(of_places(*(array[whole:] for array in rows)))  # what is left over
    return jax.lax.scan(lambda total, places: (total + jnp.sum(of_places(*places)), None), begin, chunks)[0] / count


def memory(params: Any, *, select: str | None = None, vectors: int = MATVECS) -> int:
    """Bytes of a Lanczos basis of so many vectors."""
    return vectors * sum(leaf.size * leaf.dtype.itemsize for leaf in _selected(params, _chosen(params, select)))


def _basis(params, chosen, top):
    vector = sum(leaf.size * leaf.dtype.itemsize for leaf in _selected(params, chosen))
    room, fewest = SHARE * physical_memory() / vector, FEWEST + 2 * (top - 1)
    in_parts, compiled = (int(room - beside) for beside in BESIDE)
    kept = compiled if top > 1 or compiled >= MATVECS else in_parts
    if kept < fewest:
        taken = (fewest + BESIDE[top > 1]) * vector / 2**30
        need = f"a Lanczos basis of {fewest} vectors and what surrounds it take {taken:.1f} GiB"
        raise MemoryError(f"{need}, more than {SHARE:.0%} of the memory: select some leaves")
    return min(MATVECS, kept)


def _chosen(params, select) -> tuple[int, ...]:
    """The places of the selected leaves."""
    names = paths(params)
    if select is None:
        return tuple(range(len(names)))
    chosen = tuple(i for i, name in enumerate(names) if fnmatchcase(name, select) or fnmatchcase(name, f"{select}/*"))
    if not chosen:
        raise ValueError(f"select {select!r} is no leaf's path: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
    return chosen


def _selected(tree, chosen):
    leaves = jax.tree.leaves(tree)
    return [jnp.asarray(leaves[i]) for i in chosen]


def _hessian(batch_loss, chosen, params, batch):
    """(v → H v of the selected leaves, what v is like)"""
    leaves, tree = jax.tree.flatten(params)

    def loss(selected):
        moved = list(leaves)
        for place, leaf in zip(chosen, selected, strict=True):
            moved[place] = leaf
        return batch_loss(tree.unflatten(moved), batch)

    like, names = _selected(params, chosen), paths(params)
    for place, leaf in zip(chosen, like, strict=True):
        _refuse_half_precision(f"{names[place]} is", leaf)
    return jax.linearize(jax.grad(loss), like)[1], like


def _refuse_half_precision(subject, leaf):
    """Raises ValueError: of such products rounding leaves too little, and the host knows no eigenvalues of them."""
    if jnp.finfo(leaf.dtype).bits < 32:
        raise ValueError(f"{subject} {leaf.dtype}: curvature wants float32; let apply cast what it reads")
