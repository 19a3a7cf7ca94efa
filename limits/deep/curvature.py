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
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from limits.deep.bulk_edge import bulk_edge
from limits.deep.gaussian_matrix import GaussianMatrix, has_room, image, send, send_back
from limits.deep.network import State, Weights, grown, more_draws, outer, pulled_back, scaled, widened
from limits.losses import LOSSES
from limits.machine import eigh, require_memory

HESSIAN, GAUSS_NEWTON, RESIDUAL = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)
FEWEST, BLOCKS = 8, 24  # products of a block: before what is in the bulk is believed to be there, and at most
RTOL = 1e-9  # of the residuals, to the largest |θ|, where all is exact
SAMPLED_RTOL = 1e-3  # else; an eigenvalue's error is about the square of its own over the gap
DROPPED = 1e-7  # parts of a block that are so small are no new directions


class Krylov(NamedTuple):
    """The first ``count`` blocks of b tangents have had their product; the next one is orthonormal to them.

    gradient (b,) of the loss, in the first block
    basis    orthonormal tangents, on a first axis of M + b; zeros where a block has brought fewer
    matrix   (M, M) T
    rest     (b, b) of the last block, what its product has beyond the basis, in the next one
    """

    gradient: Float[Array, " b"]
    basis: Weights
    matrix: Float[Array, "M M"]
    rest: Float[Array, "b b"]
    count: Int[Array, ""]


class Ritz(NamedTuple):
    """values, largest first, zeros where there are none · residuals, bounds of their errors · directional g·Hg/|g|²."""

    values: Float[np.ndarray, " M"]
    residuals: Float[np.ndarray, " M"]
    directional: Float[np.ndarray, ""]


def observables(kind, data, rng: np.random.Generator, state: State, k: int) -> tuple[dict, dict]:
    """(values, bounds of what Lanczos got wrong) of those of the Hessian that have a limit, at the step of ``state.now``."""
    if not np.isfinite(state.now.outputs).all():
        return _unknown(kind, k), _unknown(kind, k)
    if not kind.exact:
        top = spectrum(kind, data, rng, state, k)
        values = {"hessian_eigenvalues": top.values[:k], "directional_sharpness": top.directional}
        return values, {"hessian_eigenvalues": top.residuals[:k], "directional_sharpness": np.zeros(())}
    edge = edge_of_bulk(kind, data, state.now)
    top, residual = (spectrum(kind, data, rng, state, n, of, edge) for n, of in ((k, HESSIAN), (1, RESIDUAL)))
    upper, upper_error = _outside(top.values[:k], top.residuals[:k], edge)
    lower, lower_error = _outside(-top.values[-1], top.residuals[-1], edge)
    ends, ends_error = _outside(residual.values[[0, -1]] * [1, -1], residual.residuals[[0, -1]], edge)
    values = {"hessian_eigenvalues": upper, "hessian_min": -lower, "residual_eigenvalues": ends * [1, -1]}
    errors = {"hessian_eigenvalues": upper_error, "hessian_min": lower_error, "residual_eigenvalues": ends_error}
    return values | {"directional_sharpness": top.directional}, errors | {"directional_sharpness": np.zeros(())}


def _outside(values, residuals, edge):
    """(eigenvalues, none of which is below the edge of the bulk, bounds of their errors)"""
    return np.maximum(values, edge), np.where(values > edge, residuals, np.maximum(values + residuals - edge, 0.0))


def _unknown(kind, k) -> dict:
    """After a divergence."""
    shapes = {"hessian_eigenvalues": k, "directional_sharpness": ()}
    shapes |= {"hessian_min": (), "residual_eigenvalues": 2} if kind.exact else {}
    return {name: np.full(shape, np.nan) for name, shape in shapes.items()}


def edge_of_bulk(kind, data, now) -> float:
    """Of a linear network: see ``limits.deep.bulk_edge``."""
    weight, (layers, _, S) = data.space.weight, now.gradients.shape
    signal = kind.on_rows(data, LOSSES[kind.loss].gradient(now.outputs, data.targets) / len(data.targets))
    kernels = weight * jnp.einsum("las,lbs->lab", now.features, now.features)
    features = jnp.concatenate([jnp.eye(len(signal))[None], kernels[:-1]])
    features = jnp.einsum("ac,lab,be->lce", signal, features, signal)
    gradients = now.gradients.reshape(layers, -1, S)
    kernels = weight * jnp.einsum("lcs,les->lce", gradients, gradients)
    gradients = jnp.concatenate([kernels[1:], jnp.eye(signal.shape[1])[None]])
    rates = jnp.repeat(data.rates, jnp.array([1, layers - 1, 1]), total_repeat_length=layers + 1)[:, None, None]
    features, gradients = jax.device_get((features * rates[:-1], gradients * rates[1:]))
    return float(data.richness) * bulk_edge(features, gradients, float(kind.residual), float(now.weights.left) ** 2)


def spectrum(kind, data, rng: np.random.Generator, state: State, k: int, parts=HESSIAN, edge: float | None = None) -> Ritz:
    """The k largest eigenvalues of H, or of these parts, as far as gradients see them, at the step of ``state.now``.

    ``edge`` of the bulk, where it is known: then the smallest is found too, and what is within the bulk is left there.
    Starts from the gradient of the loss and, for repeated eigenvalues, min(k, C) random directions in the range of Jᵀ.
    """
    _require_memory(state, min(k, data.targets.shape[1]) + 1)
    krylov = _begin(kind, data, state.now, jnp.asarray(_signals(data, rng, k)))
    bulk = jnp.asarray([-np.inf, -np.inf] if edge is None else [edge, -edge])
    while True:
        state, krylov, done = _iterated(kind, k, data, state, krylov, jnp.asarray(parts), bulk)
        if done:
            return jax.device_get(_found(krylov))
        state, krylov = _with_room(kind, rng, state, krylov)
        _require_memory(state, len(krylov.rest))


def _require_memory(state, b):
    """For the basis, held twice while it is added to, and as much room for fields again."""
    tangent, matrices = (sum(of.size for of in jax.tree.leaves(part)) for part in (state.now.weights, state.matrices))
    require_memory(2 * (BLOCKS + 1) * b * tangent + 2 * matrices, "the Hessian needs", "fewer samples or steps")


def _signals(data, rng, k) -> Float[np.ndarray, "b P C"]:
    """Of which the start is made, behind that of the gradient."""
    P, C = data.targets.shape
    return rng.normal(size=(min(k, C), P, C))


@partial(jax.jit, static_argnums=0)
def _begin(kind, data, now, signals) -> Krylov:
    """Nothing has been multiplied yet."""
    gradient = LOSSES[kind.loss].gradient(now.outputs, data.targets)
    signals = kind.on_rows(data, jnp.concatenate([gradient[None], signals]))
    start = jax.vmap(lambda signal: scaled(data, pulled_back(kind, data, signal, now), 0.5))(signals)
    start, R = _orthonormal(data.space, start, jnp.sqrt(jnp.diagonal(_products(data.space, start, start))))
    b, M = len(R), BLOCKS * len(R)
    basis = jax.tree.map(lambda of: jnp.zeros((M + b, *of.shape[1:])), start)
    return Krylov(R[:, 0], _put(basis, start, 0), jnp.zeros((M, M)), jnp.zeros((b, b)), jnp.zeros((), int))


def _with_room(kind, rng, state, krylov) -> tuple[State, Krylov]:
    """Twice the room."""
    (H, n, S), m = state.matrices.sent.shape, state.matrices.returned.shape[1]
    sent, returned = more_draws(kind, rng, (H, n, m), S)
    return grown(state, sent, returned), krylov._replace(basis=widened(krylov.basis, n, m, sent.shape[2] - S))


@partial(jax.jit, static_argnums=(0, 1))
def _iterated(kind, k, data, state, krylov, parts, bulk) -> tuple[State, Krylov, Bool[Array, ""]]:
    """As long as the matrices have room; and whether the k largest values are found, or as good as they get."""
    (q, own), (b, C) = kind.counts(data), (len(krylov.rest), data.targets.shape[1])

    def open_(krylov):
        values, residuals = _ritz(krylov)
        outside = jnp.append(values[:k] > bulk[0], values[-1] < bulk[1])
        known = jnp.append(residuals[:k], residuals[-1]) <= (RTOL if kind.exact else SAMPLED_RTOL) * jnp.max(jnp.abs(values))
        exhausted = (krylov.count > 0) & jnp.all(krylov.rest == 0)
        some = (krylov.count < FEWEST) | jnp.any(outside & ~known)
        return (krylov.count < BLOCKS) & some & ~exhausted

    def going(carry):
        state, krylov = carry
        return has_room(state.matrices, b * q, b * own * C) & open_(krylov)

    state, krylov = jax.lax.while_loop(going, lambda carry: _extended(kind, data, parts, *carry), (state, krylov))
    return state, krylov, ~open_(krylov)


def _extended(kind, data, parts, state, krylov) -> tuple[State, Krylov]:
    """One product of a block, orthogonalised; T gets its rows and columns from it."""
    b, space, at = len(krylov.rest), data.space, krylov.count * len(krylov.rest)
    block = jax.tree.map(lambda of: jax.lax.dynamic_slice_in_dim(of, at, b), krylov.basis)
    matrices, images = product(kind, data, state, block, parts)
    least = jnp.sqrt(jnp.max(jnp.diagonal(_products(space, images, images)))) * jnp.ones(b)
    images, overlaps = _beyond(space, krylov.basis, images)
    images, more = _beyond(space, krylov.basis, images)  # twice is enough
    new, rest = _orthonormal(space, images, least)
    new, _ = _beyond(space, krylov.basis, new)
    rows = (overlaps + more)[:, : len(krylov.matrix)]
    matrix = jax.lax.dynamic_update_slice(krylov.matrix, rows, (at, 0))
    matrix = jax.lax.dynamic_update_slice(matrix, rows.T, (0, at))
    krylov = krylov._replace(basis=_put(krylov.basis, new, at + b), matrix=matrix, rest=rest, count=krylov.count + 1)
    return state._replace(matrices=matrices), krylov


@jax.jit
def _found(krylov) -> Ritz:
    g = krylov.gradient
    return Ritz(*_ritz(krylov), g @ krylov.matrix[: len(g), : len(g)] @ g / (g @ g))


def _ritz(krylov) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """(values, largest first, residuals)"""
    b, M = len(krylov.rest), len(krylov.matrix)
    used = jnp.arange(M) < krylov.count * b
    T = jnp.where(used[:, None] & used, krylov.matrix, 0.0)
    values, s = eigh((T + T.T) / 2)
    last = jax.lax.dynamic_slice(s, (jnp.maximum(krylov.count - 1, 0) * b, 0), (b, M))
    return values[::-1], jnp.linalg.norm(krylov.rest @ last, axis=0)[::-1]


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


def product(kind, data, state: State, tangents: Weights, parts=HESSIAN) -> tuple[GaussianMatrix, Weights]:
    """(the matrices having met it, H v of each of b tangents v, or so much of G and so much of R)"""
    now, u = state.now, jax.vmap(partial(scaled, data, power=0.5))(tangents)
    slopes, bends = jax.jvp(lambda h: kind.activated(h)[1], (now.h,), (jnp.ones_like(now.h),))
    matrices, dh, below = _forward(kind, data, now, state.matrices, u, slopes)
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

    def through(dh, layer):
        matrix, trained, slope, features, move = layer
        b, q, S = dh.shape
        matrix, out, coordinates = send(data.space, matrix, (slope * dh).reshape(-1, S), now.weights.left, trained)
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

