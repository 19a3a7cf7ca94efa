"""The Hessian of an infinitely wide network: Lanczos on fields.

A direction in weight space is held as the weights of ``limits.deep.network`` are: first (r, S), trained (H, m, n) in the
orthonormal fields e_k above and b_j below of each matrix, last (C, S).  With r, C and coordinates of an orthonormal family
on the other side, and <·> the mean over neurons,

    <v, v'> = <first first'> + Σ_l Σ_kj A^l_kj A'^l_kj + <last last'>,      v = M^{-½} δw,     M = a²r of each matrix,

and H = γ² M^½ (∂²L) M^½ is symmetric.  H v takes one more pass forward and one backward (u = M^½ v, δ the derivative along
u, ρ_p = ∂ℓ_p/∂f/P):

    δh^{l+1} = [δh^l] + W φ'(h^l)δh^l + Σ_kj u_kj e_k <b_j φ(h^l)>                                          [ ] if residual
    δf       = (<u φ(h^L)> + <V φ'(h^L)δh^L>)/γ0
    δg^L     = φ''(h^L)δh^L V + φ'(h^L) u
    δg^l     = [δg^{l+1}] + φ''(h^l)δh^l · Wᵀg^{l+1} + φ'(h^l) (Wᵀδg^{l+1} + Σ_kj u_kj b_j <e_k g^{l+1}>)
    H v      = M^½ γ0 Σ_p { δρ g x̂ + ρ δg x̂,   δρ gφᵀ + ρ δg φᵀ + ρ g(φ'δh)ᵀ,   δρ φ + ρ φ'δh }

Terms of δρ are the Gauss-Newton part G, those of ρ the residual part R.  Each product is met by the random matrices as a
step of training is (Gaussian conditioning), and training does not see it.  Exact where φ is linear, else of S samples.

What has a limit.  G is of finite rank, and so is all of R that the gradients see; the rest of R is a bulk of infinite
multiplicity.  Eigenvalues of H outside it are those of the Krylov space of gradients, and Lanczos finds them in about ten
products; the k-th largest of the limit is never below the upper edge of the bulk (``limits.deep.bulk_edge`` where φ is linear).
Where φ'' does not vanish the bulk has no edge, and what lies in it moves with S: its error says so.

Below the edge of stability networks approach all of this evenly; beyond it some narrow ones are far off, at the lower end
first.  Of three linear residual blocks after 8 steps the smallest eigenvalue is, at η0 = 0.15 (λ1 = 8.7 < 2/η0 = 13), −0.511,
and −0.60 ± 0.03, −0.56 ± 0.02 on average at N = 64, 256; at η0 = 0.3 (λ1 = 11.5 > 6.7), −0.149, and −0.44 ± 0.18,
−0.41 ± 0.15, −0.166 ± 0.007 at N = 64, 128, 256.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.deep.bulk_edge import bulk_edge
from limits.deep.gaussian_matrix import GaussianMatrix, combinations, has_room, image, send, send_back
from limits.deep.network import Fields, State, Weights, grown, more_draws, outer, pulled_back, scaled, widened
from limits.losses import LOSSES
from limits.machine import eigh, require_memory

HESSIAN, GAUSS_NEWTON, RESIDUAL = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)
FEWEST, BLOCKS = 8, 24  # products of a block: before what is in the bulk is believed to be there, and at most
ROOM = 128  # fields that a matrix has room for at least: a size less to be compiled for
RTOL = 1e-9  # of the eigenvalues, to the largest |θ|, where all is exact
SAMPLED_RTOL = 1e-3  # else
DROPPED = 1e-7  # parts of a block that are so small are no new directions


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
    """values, largest first · bounds of their errors."""

    values: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]


def observables(kind, data, rng: np.random.Generator, state: State, k: int) -> tuple[dict, dict]:
    """(values, bounds of what Lanczos got wrong) of those of the Hessian that have a limit, at the step of ``state.now``."""
    if not np.isfinite(state.now.outputs).all():
        return _unknown(kind, k), _unknown(kind, k)
    starts = min(k, data.targets.shape[1]) + kind.exact  # a larger block costs little there
    directional = directional_sharpness(kind, data, rng, state, starts)
    if not kind.exact:
        top = spectrum(kind, data, rng, state, k, starts)
        values = {"hessian_eigenvalues": top.values[:k], "directional_sharpness": directional}
        return values, {"hessian_eigenvalues": top.errors[:k], "directional_sharpness": np.zeros(())}
    edge = edge_of_bulk(kind, data, state.now)
    top, residual = (spectrum(kind, data, rng, state, n, starts, of, edge) for n, of in ((k, HESSIAN), (1, RESIDUAL)))
    upper, upper_error = _outside(top.values[:k], top.errors[:k], edge)
    lower, lower_error = _outside(-top.values[-1], top.errors[-1], edge)
    ends, ends_error = _outside(residual.values[[0, -1]] * [1, -1], residual.errors[[0, -1]], edge)
    values = {"hessian_eigenvalues": upper, "hessian_min": -lower, "residual_eigenvalues": ends * [1, -1]}
    errors = {"hessian_eigenvalues": upper_error, "hessian_min": lower_error, "residual_eigenvalues": ends_error}
    return values | {"directional_sharpness": directional}, errors | {"directional_sharpness": np.zeros(())}


def _outside(values, errors, edge):
    """(eigenvalues, none of which is below the edge of the bulk, bounds of their errors)"""
    return np.maximum(values, edge), np.where(values > edge, errors, np.maximum(values + errors - edge, 0.0))


def _unknown(kind, k) -> dict:
    """After a divergence."""
    shapes = {"hessian_eigenvalues": k, "directional_sharpness": ()}
    shapes |= {"hessian_min": (), "residual_eigenvalues": 2} if kind.exact else {}
    return {name: np.full(shape, np.nan) for name, shape in shapes.items()}


def edge_of_bulk(kind, data, now) -> float:
    """Of a linear network: see ``limits.deep.bulk_edge``."""
    kernels = (data.space.weight * jnp.einsum("las,lbs->lab", of, of) for of in (now.features, now.gradients))
    return edge_from_kernels(kind, data, now.outputs, *kernels, now.weights.left)


def edge_from_kernels(kind, data, outputs, features, gradients, left) -> float:
    """Of features (layers, r, r) in the directions of the inputs, gradients (layers, C, C), and what is left of the W."""
    features, gradients = jax.device_get(_kernels_of_bulk(kind, data, outputs, features, gradients))
    return float(data.richness) * bulk_edge(features, gradients, float(kind.residual), float(left) ** 2)


@partial(jax.jit, static_argnums=0)
def _kernels_of_bulk(kind, data, outputs, features, gradients):
    """Φ and G of ``limits.deep.bulk_edge``"""
    signal, layers = kind.on_rows(data, LOSSES[kind.loss].gradient(outputs, data.targets) / len(data.targets)), len(features)
    features = jnp.concatenate([jnp.eye(len(signal))[None], features[:-1]])
    features = jnp.einsum("ac,lab,be->lce", signal, features, signal)
    gradients = jnp.concatenate([gradients[1:], jnp.eye(signal.shape[1])[None]])
    rates = jnp.repeat(data.rates, jnp.array([1, layers - 1, 1]), total_repeat_length=layers + 1)[:, None, None]
    return features * rates[:-1], gradients * rates[1:]


def directional_sharpness(kind, data, rng: np.random.Generator, state: State, b: int) -> float:
    """g·Hg/|g|², not a number where g = 0: one product of a block, of which the gradient is all."""
    gradient = LOSSES[kind.loss].gradient(state.now.outputs, data.targets)
    start = jnp.zeros((b, *data.targets.shape)).at[0].set(gradient)
    _, krylov = _next(kind, data, HESSIAN, *_begun(kind, data, rng, state, start))
    return float(jnp.trace(krylov.matrix)) if np.any(gradient) else np.nan


def spectrum(
    kind, data, rng: np.random.Generator, state: State, k: int, b: int, parts=HESSIAN, edge: float | None = None
) -> Ritz:
    """The k largest eigenvalues of H, or of these parts, as far as gradients see them, at the step of ``state.now``.

    ``edge`` of the bulk, where it is known: then the smallest is found too, and what is within the bulk is left there.
    Starts from b random directions in the range of Jᵀ: that finds b-fold eigenvalues.
    """
    bulk = (-np.inf, -np.inf) if edge is None else (edge, -edge)
    (state, krylov), found = _begun(kind, data, rng, state, jnp.asarray(rng.normal(size=(b, *data.targets.shape)))), None
    while found is None:
        state, krylov = _with_room(kind, data, rng, *_next(kind, data, parts, state, krylov))
        found = _settled(krylov, k, bulk, RTOL if kind.exact else SAMPLED_RTOL)
    return found


def _begun(kind, data, rng, state, signals) -> tuple[State, Krylov]:
    """With room for the fewest products."""
    _require_memory(state, len(signals))
    krylov = begin(kind, data, state.now, signals)
    state = state._replace(matrices=jax.tree.map(jnp.copy, state.matrices))
    return _with_room(kind, data, rng, state, krylov, FEWEST)


def _with_room(kind, data, rng, state, krylov, products=0) -> tuple[State, Krylov]:
    """For one that brings as many fields as it can, and so many that bring what they usually do."""
    (q, own), (b, C) = kind.counts(data), (len(krylov.rest), data.targets.shape[1])
    more = b * q + products * b * (C if kind.exact else q), b * own * C * (1 + products)
    while state.matrices.sent.shape[1] < ROOM or not has_room(state.matrices, *more):
        state, krylov = _wider(kind, data, rng, state, krylov)
    return state, krylov


def _wider(kind, data, rng, state, krylov) -> tuple[State, Krylov]:
    """Twice the room."""
    (H, n, S), m = state.matrices.sent.shape, state.matrices.returned.shape[1]
    sent, returned = more_draws(kind, rng, (H, n, m), S, data.space.copies)
    _require_memory(state, len(krylov.rest))
    return grown(state, sent, returned), krylov._replace(basis=widened(krylov.basis, n, m, sent.shape[2] - S))


def _require_memory(state, b):
    """For the basis, held twice while it is added to, and as much room for fields again."""
    tangent, matrices = (sum(of.size for of in jax.tree.leaves(part)) for part in (state.now.weights, state.matrices))
    require_memory(2 * (BLOCKS + 1) * b * tangent + 2 * matrices, "the Hessian needs", "fewer samples or steps")


@partial(jax.jit, static_argnums=(0, 4))
def begin(kind, data, now, signals: Float[Array, "b P C"], blocks: int = BLOCKS) -> Krylov:
    """Nothing has been multiplied yet; starts from what Jᵀ makes of these signals, and has room for so many blocks."""
    signals = kind.on_rows(data, signals)
    start = jax.vmap(lambda signal: scaled(data, pulled_back(kind, data, signal, now), 0.5))(signals)
    start, _ = _orthonormal(data.space, start, jnp.sqrt(jnp.diagonal(_products(data.space, start, start))))
    b = len(signals)
    M = blocks * b
    basis = jax.tree.map(lambda of: jnp.zeros((M + b, *of.shape[1:])), start)
    return Krylov(_put(basis, start, 0), jnp.zeros((M, M)), jnp.zeros((b, b)), jnp.zeros((), int))


def _next(kind, data, parts, state, krylov) -> tuple[State, Krylov]:
    matrices, krylov = extended(kind, data, jnp.asarray(parts), state.now, state.matrices, krylov)
    return state._replace(matrices=matrices), krylov


def brought(kind, data, H: int) -> tuple[int, int]:
    """How many fields a product brings to each of the H matrices below and above, at most.

    Where φ is linear, those of the first matrix are combinations of the g_c and their δg_c, and each matrix sends on what it
    gets beside C of its own.
    """
    (q, own), C = kind.counts(data), data.targets.shape[1]
    return (min(q, max(H, 1) * C) if kind.exact else q), own * C


@partial(jax.jit, static_argnums=0, donate_argnums=(4, 5))
def extended(kind, data, parts, now, matrices, krylov) -> tuple[GaussianMatrix, Krylov]:
    """One product of a block, orthogonalised; T gets its rows and columns from it."""
    b, space, at = len(krylov.rest), data.space, krylov.count * len(krylov.rest)
    block = jax.tree.map(lambda of: jax.lax.dynamic_slice_in_dim(of, at, b), krylov.basis)
    matrices, images = product(kind, data, now, matrices, block, parts)
    least = jnp.sqrt(jnp.max(jnp.diagonal(_products(space, images, images)))) * jnp.ones(b)
    images, overlaps = _beyond(space, krylov.basis, images)
    images, more = _beyond(space, krylov.basis, images)  # twice is enough
    new, rest = _orthonormal(space, images, least)
    new, _ = _beyond(space, krylov.basis, new)
    rows = (overlaps + more)[:, : len(krylov.matrix)]
    matrix = jax.lax.dynamic_update_slice(krylov.matrix, rows, (at, 0))
    matrix = jax.lax.dynamic_update_slice(matrix, rows.T, (0, at))
    return matrices, Krylov(_put(krylov.basis, new, at + b), matrix, rest, krylov.count + 1)


def _settled(krylov, k, bulk, tolerance) -> Ritz | None:
    """At least k values, once the k largest, and the smallest, are found or lie in the bulk, or are as good as they get."""
    T, rest, count = jax.device_get((krylov.matrix, krylov.rest, krylov.count))
    b, used = len(rest), count * len(rest)
    if not np.isfinite(T).all():
        return Ritz(*np.full((2, k), np.nan))
    values, vectors = np.linalg.eigh((T + T.T)[:used, :used] / 2)
    residuals = np.linalg.norm(rest @ vectors[-b:], axis=0)
    values, errors = (np.pad(of[::-1], (0, max(0, k - len(of)))) for of in (values, _bounds(values, residuals)))
    outside = np.append((values + errors)[:k] > bulk[0], (values - errors)[-1] < bulk[1])
    known = np.append(errors[:k], errors[-1]) <= tolerance * np.abs(values).max()
    done = count >= FEWEST and (known | ~outside).all()
    return Ritz(values, errors) if done or not rest.any() or count >= BLOCKS else None


def _bounds(values, residuals):
    """|λ − θ| ≤ ε, and ≤ ε²/gap where no other eigenvalue is nearer than the gap (Temple & Kato)."""
    gaps = np.abs(values[:, None] - values) - residuals
    np.fill_diagonal(gaps, np.inf)
    gaps = np.maximum(gaps.min(1), residuals)
    return residuals * np.divide(residuals, gaps, out=np.zeros_like(gaps), where=gaps > 0)


def _products(space, u, v) -> Float[Array, "a b"]:
    """<u, v> of many tangents."""

    def of(x, y):
        return x.reshape(len(x), -1) @ y.reshape(len(y), -1).T

    return space.weight * (of(u.first, v.first) + of(u.last, v.last)) + of(u.trained, v.trained)


def _combined(weights: Float[Array, "a b"], tangents) -> Weights:
    return jax.tree.map(lambda of: jnp.tensordot(weights, of, 1), tangents)


def _beyond(space, basis, tangents) -> tuple[Weights, Float[Array, "a b"]]:
    """(their parts orthogonal to the basis, their products with it)"""
    overlaps = _products(space, tangents, basis)
    return jax.tree.map(jnp.subtract, tangents, _combined(overlaps, basis)), overlaps


def _orthonormal(space, tangents, sizes) -> tuple[Weights, Float[Array, "b b"]]:
    """(orthonormal q_j, R) with tangents = Rᵀ q; zeros in place of what is small beside these sizes."""
    sizes = jnp.where(sizes > 0, sizes, 1.0)
    values, vectors = eigh(_products(space, tangents, tangents) / jnp.outer(sizes, sizes))
    lengths = jnp.where(values > DROPPED**2, jnp.sqrt(jnp.abs(values)), 0.0)
    inverses = jnp.where(lengths > 0, 1.0 / jnp.where(lengths > 0, lengths, 1.0), 0.0)
    return _combined((vectors * inverses).T / sizes, tangents), (vectors * lengths).T * sizes


def _put(basis, block, at) -> Weights:
    return jax.tree.map(lambda of, new: jax.lax.dynamic_update_slice_in_dim(of, new, at, 0), basis, block)


def product(
    kind, data, now: Fields, matrices: GaussianMatrix, tangents: Weights, parts=HESSIAN
) -> tuple[GaussianMatrix, Weights]:
    """(the matrices having met it, H v of each of b tangents v, or so much of G and so much of R)"""
    u = jax.vmap(partial(scaled, data, power=0.5))(tangents)
    slopes, bends = jax.jvp(lambda h: kind.activated(h)[1], (now.h,), (jnp.ones_like(now.h),))
    matrices, dh, below = _forward(kind, data, now, matrices, u, slopes)
    features, bends = slopes[-1] * dh[-1], bends[:, None] * dh
    matrices, gradient, above = _backward(kind, data, now, matrices, u, slopes, bends)
    signal, changes = _error_signals(kind, data, now, u.last, features)

    def of_one(change, moved):
        gauss_newton, residual = pulled_back(kind, data, change, now), _residual(kind, data, signal, now, moved)
        found = jax.tree.map(lambda g, r: data.richness * (parts[0] * g + parts[1] * r), gauss_newton, residual)
        return scaled(data, found, 0.5)

    return matrices, jax.vmap(of_one)(changes, (gradient, below, above, features))


def _forward(kind, data, now, matrices, u, slopes) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, δh of the H + 1 layers (layers, b, q, S), coordinates of φ'δh (b, H, q, n))"""
    new, q = brought(kind, data, len(matrices.below))[0], kind.counts(data)[0]
    combine = jnp.kron(jnp.eye(len(u.first)), combinations(new, q)) if new < q else None

    def through(dh, layer):
        matrix, trained, slope, features, move = layer
        b, q, S = dh.shape
        fields = (slope * dh).reshape(-1, S)
        matrix, out, coordinates = send(data.space, matrix, fields, now.weights.left, trained, combine)
        out = out.reshape(b, q, S) + features @ move.swapaxes(1, 2) @ matrix.above
        return kind.residual * dh + out, (matrix, dh, coordinates.reshape(b, q, -1))

    layers = matrices, now.weights.trained, slopes[:-1], now.below, u.trained.swapaxes(0, 1)
    dh, (matrices, behind, coordinates) = jax.lax.scan(through, kind.rows(data) @ u.first, layers)
    return matrices, jnp.concatenate([behind, dh[None]]), coordinates.swapaxes(0, 1)


def _backward(kind, data, now, matrices, u, slopes, bends) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, δg of the first layer (b, g, S), coordinates of those that the transposes met (b, H, g, m))"""
    (_, own), (b, C, S) = kind.counts(data), u.last.shape
    slopes, bends = slopes[:, :own, None], bends[:, :, :own, None]

    def through(dg, layer):
        matrix, trained, slope, bend, gradients, move = layer
        left = now.weights.left
        matrix, out, coordinates = send_back(data.space, matrix, dg.reshape(-1, S), left, trained)
        out = out.reshape(b, own * C, S) + gradients @ move @ matrix.below
        before = image(matrix.transposed, gradients, left, trained.T)
        further = slope * out.reshape(b, own, C, S) + bend * before.reshape(own, C, S)
        return kind.residual * dg + further, (matrix, coordinates.reshape(b, own * C, -1))

    dg = bends[-1] * now.weights.last + slopes[-1] * u.last[:, None]
    layers = matrices, now.weights.trained, slopes[:-1], bends[:-1], now.above, u.trained.swapaxes(0, 1)
    dg, (matrices, coordinates) = jax.lax.scan(through, dg, layers, reverse=True)
    return matrices, dg.reshape(b, own * C, S), coordinates.swapaxes(0, 1)


def _error_signals(kind, data, now, last, features) -> tuple[Float[Array, "q C"], Float[Array, "b q C"]]:
    """ρ, and δρ of each tangent."""

    def outputs(features, last):
        return data.space.weight * jnp.einsum("...qs,...cs->...qc", features, last) / data.richness

    moved = kind.on_samples(data, outputs(now.features[-1], last) + outputs(features, now.weights.last))
    share = 1.0 / len(data.targets)
    signal = LOSSES[kind.loss].gradient(now.outputs, data.targets)
    curved = jnp.einsum("pce,bpe->bpc", LOSSES[kind.loss].curvature(now.outputs), moved)
    return kind.on_rows(data, share * signal), kind.on_rows(data, share * curved)


def _residual(kind, data, signal, now, moved) -> Weights:
    """Σ_p ρ_p of what the gradient of f_p changes by, along one tangent."""
    gradient, below, above, features = moved
    first = now._replace(gradients=gradient[None], features=features[None], above=above)
    found = pulled_back(kind, data, signal, first)
    further = jax.vmap(outer, (None, 0, 0))(signal, below, now.above).swapaxes(1, 2)
    return found._replace(trained=found.trained + further)

