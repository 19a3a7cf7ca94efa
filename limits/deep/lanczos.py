"""Block Lanczos on fields: the leading eigenvalues of H = γ² M^½ (∂²L) M^½ at N = ∞, M = a²r of each matrix.

A direction v in weight space is held as the weights of a network of fields are (``limits.deep.network.Weights``), in the
orthonormal fields e_k above and b_j below of each random matrix.  With <·> the mean over neurons,

    <v, v'> = <first first'> + Σ_matrices Σ_kj A_kj A'_kj + <last last'>,      v = M^{-½} δw.

Fields below may be of K times as many neurons, as the patches that a convolution acts on: being orthonormal in their own
mean, they leave this as it is.  What a product meets, the random matrices remember (Gaussian conditioning), so they go along
with the Krylov space; training does not see it.

A ``Network`` says how its fields are differentiated, and how much room that takes.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.deep.gaussian_matrix import GaussianMatrix
from limits.deep.network import Weights, scaled
from limits.losses import LOSSES
from limits.machine import eigh, require_memory
from limits.spectra import multiplets

HESSIAN, GAUSS_NEWTON, RESIDUAL = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)
FEW = 64  # neurons, or an eighth of them all, or √S: what no more carry lies in the bulk
FEWEST, BLOCKS = 8, 24  # products of a block: before what is in the bulk is believed to be there, and at most
RTOL = 1e-9  # of the eigenvalues, to the largest |θ|, where all is exact
SAMPLED_RTOL = 1e-3  # else
DROPPED = 1e-7  # parts of a block that are so small are no new directions


@runtime_checkable
class Network(Protocol):
    """What is asked of a network of fields; hashable, for it is a static argument of compiled functions.

    A state has the ``fields`` of its step, their weights among them, and ``matrices``, all that have met something.
    """

    exact: bool  # whether fields are coordinates, not samples
    loss: str  # of ``limits.losses``

    def linearised(self, data, fields, matrices) -> tuple[Any, Any]:
        """(matrices, fields) with what products share: the gradient of L among them."""

    def pulled_back(self, data, fields, matrices, signals: Float[Array, "b P C"]) -> tuple[Any, Weights]:
        """(matrices, Jᵀ of each of these error signals)"""

    def product(self, data, fields, matrices, tangents: Weights, parts) -> tuple[Any, Weights]:
        """(matrices, H v of each of b tangents v, or so much of G and so much of R)"""

    def has_room(self, data, matrices, b: int, products: int) -> bool:
        """Whether for one product of b tangents, or their start, that brings as many fields as it can, and so many more
        that bring what they usually do."""

    def wider(self, data, rng: np.random.Generator, state, tangents: Weights, b: int, products: int) -> tuple[Any, Weights]:
        """(state, tangents) with about twice the room, where there is none for these."""


class Krylov(NamedTuple):
    """The first ``count`` blocks of b tangents have had their product; the next one is orthonormal to them.

    basis    orthonormal tangents, on a first axis of M + b; zeros where a block has brought fewer
    matrix   (M, M) T
    rest     (b, b) of the last block, what its product has beyond the basis, in the next one
    """

    basis: Weights
    matrix: Float[Array, "M M"]
    rest: Float[Array, "b b"]
    count: Int[Array, ""]


class Ritz(NamedTuple):
    """values, largest first · bounds of their errors · vectors in the Krylov space, a row each; of m, or the first of them."""

    values: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    vectors: Float[np.ndarray, "m M"]


def outliers(network: Network, data, rng: np.random.Generator, state, k: int) -> tuple[dict, dict]:
    """(values, bounds of what Lanczos got wrong) of those of the Hessian that samples know, at the step of ``state.fields``;
    not a number after a divergence.  Infinite bounds of those that lie in the bulk, and so have no limit."""
    if not np.isfinite(state.fields.outputs).all():
        values = {"hessian_eigenvalues": np.full(k, np.nan), "directional_sharpness": np.full((), np.nan)}
        return values, values
    b = min(k, data.targets.shape[1])
    directional = directional_sharpness(network, data, rng, state, b)
    after, krylov, top = _found(network, data, rng, state, k, b)
    carriers = _carriers(after.matrices, _combined(jnp.asarray(top.vectors[:k]), krylov.basis))
    in_bulk = np.logical_or.accumulate(carriers < _few(krylov.basis.last.shape[-1]))
    values = {"hessian_eigenvalues": top.values[:k], "directional_sharpness": directional}
    errors = {"hessian_eigenvalues": np.where(in_bulk, np.inf, top.errors[:k]), "directional_sharpness": np.zeros(())}
    return values, errors


def directional_sharpness(network: Network, data, rng: np.random.Generator, state, b: int) -> float:
    """g·Hg/|g|², not a number where g = 0: one product of a block, of which the gradient is all."""
    gradient = LOSSES[network.loss].gradient(state.fields.outputs, data.targets)
    start = jnp.zeros((b, *data.targets.shape)).at[0].set(gradient)
    _, krylov = _after_product(network, data, HESSIAN, *_begun(network, data, rng, state, start))
    return float(jnp.trace(krylov.matrix)) if np.any(gradient) else np.nan


def spectrum(
    network: Network, data, rng: np.random.Generator, state, k: int, b: int, parts=HESSIAN, edge: float | None = None
) -> Ritz:
    """The k largest eigenvalues of H, or of these parts, as far as gradients see them, at the step of ``state.fields``.

    ``edge`` of the bulk, where it is known: then the smallest is found too, and what is within the bulk is left there.
    Starts from b random directions in the range of Jᵀ: that finds b-fold eigenvalues.  Where all is exact, more of them if
    as many are one (of whitened inputs all but one are).
    """
    bulk = (-np.inf, -np.inf) if edge is None else (edge, -edge)
    *_, ritz = _found(network, data, rng, state, k, b, parts, bulk)
    if network.exact and b < k and _alike(ritz.values[:k], max(bulk[0], 0.0)) >= b:
        return spectrum(network, data, rng, state, k, min(2 * b, k), parts, edge)
    return ritz


def _found(
    network, data, rng, state, k, b, parts=HESSIAN, bulk=(-np.inf, -np.inf)
) -> tuple[Any, Krylov, Ritz]:
    """(state with all that products met, Krylov space, what was found in it)"""
    signals, ritz = jnp.asarray(rng.normal(size=(b, *data.targets.shape))), None
    after, krylov = _begun(network, data, rng, state, signals)
    while ritz is None:
        after, krylov = _with_room(network, data, rng, *_after_product(network, data, parts, after, krylov))
        ritz = _settled(krylov, k, bulk, RTOL if network.exact else SAMPLED_RTOL)
    return after, krylov, ritz


@jax.jit
def _carriers(matrices, tangents: Weights) -> Float[Array, " k"]:
    """By how many neurons each tangent is carried: one over the sum of squares of their parts.

    A neuron has its row of the first weights and of each matrix, or its column of the last.  Outliers are carried by a part of
    all S, what lies in the bulk by a few, whatever S: of tanh networks, S = 2048, 700 and 2 … 20 (``_few``).
    """
    layers = jax.tree.leaves(matrices, is_leaf=lambda node: isinstance(node, GaussianMatrix))
    trained = zip(jax.tree.leaves(tangents.trained), (matrix.above for matrix in layers), strict=True)
    ends = (jnp.sum(weights**2, axis=1) for weights in (tangents.first, tangents.last))
    between = (jnp.einsum("k...mn,k...ln,...ms,...ls->k...s", A, A, e, e, optimize=True) for A, e in trained)
    parts = jnp.concatenate([part.reshape(len(part), -1) for part in (*ends, *between)], axis=1)
    return jnp.sum(parts, 1) ** 2 / jnp.sum(parts**2, 1)


def _alike(values, above) -> int:
    """How many eigenvalues that are larger than this are one, at most."""
    values = values[values > max(above, DROPPED * values[0])]
    return max(last - first for first, last in multiplets(values)) if len(values) else 0


def _begun(network, data, rng, state, signals) -> tuple[Any, Krylov]:
    """With room for the fewest products."""
    b = len(signals)
    _require_memory(state, b)
    state = state._replace(matrices=jax.tree.map(jnp.copy, state.matrices))
    while not network.has_room(data, state.matrices, b, FEWEST):
        state, _ = network.wider(data, rng, state, state.velocity, b, FEWEST)
        _require_memory(state, b)
    matrices, fields, krylov = begin(network, data, state.fields, state.matrices, signals)
    return state._replace(matrices=matrices, fields=fields), krylov


def _with_room(network, data, rng, state, krylov) -> tuple[Any, Krylov]:
    """For one more product."""
    while not network.has_room(data, state.matrices, len(krylov.rest), 0):
        state, basis = network.wider(data, rng, state, krylov.basis, len(krylov.rest), 0)
        _require_memory(state, len(krylov.rest))
        krylov = krylov._replace(basis=basis)
    return state, krylov


def _require_memory(state, b):
    """For the basis, held twice while it is added to, and as much room for fields again."""
    tangent, matrices = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (state.fields.weights, state.matrices))
    require_memory(2 * (BLOCKS + 1) * b * tangent + 2 * matrices, "the Hessian needs", "fewer samples or steps")


@partial(jax.jit, static_argnums=(0, 5))
def begin(network, data, fields, matrices, signals: Float[Array, "b P C"], blocks: int = BLOCKS) -> tuple[Any, Any, Krylov]:
    """(matrices, fields, Krylov space) before the first product: it starts from what Jᵀ makes of these signals, and has room
    for so many blocks."""
    matrices, fields = network.linearised(data, fields, matrices)
    matrices, start = network.pulled_back(data, fields, matrices, signals)
    start = jax.vmap(partial(scaled, data, power=0.5))(start)
    start, _ = _orthonormal(data.space, start, jnp.sqrt(jnp.diagonal(_products(data.space, start, start))))
    b = len(signals)
    M = blocks * b
    basis = jax.tree.map(lambda leaf: jnp.zeros((M + b, *leaf.shape[1:])), start)
    return matrices, fields, Krylov(_put(basis, start, 0), jnp.zeros((M, M)), jnp.zeros((b, b)), jnp.zeros((), int))


def _few(S) -> float:
    return max(np.sqrt(S), min(FEW, S / 8))


def _after_product(network, data, parts, state, krylov) -> tuple[Any, Krylov]:
    matrices, krylov = extended(network, data, jnp.asarray(parts), state.fields, state.matrices, krylov)
    return state._replace(matrices=matrices), krylov


@partial(jax.jit, static_argnums=0, donate_argnums=(4, 5))
def extended(network, data, parts, fields, matrices, krylov) -> tuple[Any, Krylov]:
    """One product of a block, orthogonalised; T gets its rows and columns from it."""
    b, space, at = len(krylov.rest), data.space, krylov.count * len(krylov.rest)
    block = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at, b), krylov.basis)
    matrices, images = network.product(data, fields, matrices, block, parts)
    least = jnp.sqrt(jnp.max(jnp.diagonal(_products(space, images, images)))) * jnp.ones(b)
    images, overlaps = _beyond(space, krylov.basis, krylov.count + 1, images)
    images, more = _beyond(space, krylov.basis, krylov.count + 1, images)  # twice is enough
    new, rest = _orthonormal(space, images, least)
    new, _ = _beyond(space, krylov.basis, krylov.count + 1, new)
    rows = (overlaps + more)[:, : len(krylov.matrix)]
    matrix = jax.lax.dynamic_update_slice(krylov.matrix, rows, (at, 0))
    matrix = jax.lax.dynamic_update_slice(matrix, rows.T, (0, at))
    return matrices, Krylov(_put(krylov.basis, new, at + b), matrix, rest, krylov.count + 1)


def _settled(krylov, k, bulk, tolerance) -> Ritz | None:
    """At least k values, once the k largest, and the smallest, are found or lie in the bulk, or are as good as they get."""
    T, rest, count = jax.device_get((krylov.matrix, krylov.rest, krylov.count))
    b, used = len(rest), count * len(rest)
    if not np.isfinite(T).all():
        return Ritz(*np.full((2, k), np.nan), np.full((k, len(T) + b), np.nan))
    values, vectors = np.linalg.eigh((T + T.T)[:used, :used] / 2)
    residuals = np.linalg.norm(rest @ vectors[-b:], axis=0)
    values, errors = (np.pad(rising[::-1], (0, max(0, k - len(rising)))) for rising in (values, _bounds(values, residuals)))
    outside = np.append((values + errors)[:k] > bulk[0], (values - errors)[-1] < bulk[1])
    known = np.append(errors[:k], errors[-1]) <= tolerance * np.abs(values).max()
    done = count >= FEWEST and (known | ~outside).all()
    rows = np.pad(vectors.T[::-1], ((0, max(0, k - used)), (0, len(T) + b - used)))
    return Ritz(values, errors, rows) if done or not rest.any() or count >= BLOCKS else None


def _bounds(values, residuals):
    """|λ − θ| ≤ ε, and ≤ ε²/gap where no other eigenvalue is nearer than the gap (Temple & Kato)."""
    gaps = np.abs(values[:, None] - values) - residuals
    np.fill_diagonal(gaps, np.inf)
    gaps = np.maximum(gaps.min(1), residuals)
    return residuals * np.divide(residuals, gaps, out=np.zeros_like(gaps), where=gaps > 0)


def _products(space, u, v) -> Float[Array, "a b"]:
    """<u, v> of many tangents."""

    def dot(x, y):
        return x.reshape(len(x), -1) @ y.reshape(len(y), -1).T

    trained = sum(jax.tree.leaves(jax.tree.map(dot, u.trained, v.trained)))
    return space.weight * (dot(u.first, v.first) + dot(u.last, v.last)) + trained


def _combined(weights: Float[Array, "a b"], tangents) -> Weights:
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), tangents)


def _beyond(space, basis, blocks, tangents) -> tuple[Weights, Float[Array, "b M"]]:
    """(their parts orthogonal to the first so many blocks of the basis, their products with it); of a basis that is large, and
    mostly room, no more is read."""
    b, M = len(tangents.last), len(basis.last)

    def block(i):
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i * b, b), basis)

    def met(i, overlaps):
        return jax.lax.dynamic_update_slice(overlaps, _products(space, tangents, block(i)), (0, i * b))

    def without(i, rest):
        weights = jax.lax.dynamic_slice_in_dim(overlaps, i * b, b, axis=1)
        return jax.tree.map(jnp.subtract, rest, _combined(weights, block(i)))

    overlaps = jax.lax.fori_loop(0, blocks, met, jnp.zeros((b, M)))
    return jax.lax.fori_loop(0, blocks, without, tangents), overlaps


def _orthonormal(space, tangents, sizes) -> tuple[Weights, Float[Array, "b b"]]:
    """(orthonormal q_j, R) with tangents = Rᵀ q; zeros in place of what is small beside these sizes."""
    sizes = jnp.where(sizes > 0, sizes, 1.0)
    values, vectors = eigh(_products(space, tangents, tangents) / jnp.outer(sizes, sizes))
    lengths = jnp.where(values > DROPPED**2, jnp.sqrt(jnp.abs(values)), 0.0)
    inverses = jnp.where(lengths > 0, 1.0 / jnp.where(lengths > 0, lengths, 1.0), 0.0)
    return _combined((vectors * inverses).T / sizes, tangents), (vectors * lengths).T * sizes


def _put(basis, block, at) -> Weights:
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, at, 0), basis, block)
