"""The Hessian of an infinitely wide network: what its products are (``limits.deep.lanczos`` finds eigenvalues with them).

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
from jaxtyping import Array, Float

from limits.deep.bulk_edge import bulk_edge
from limits.deep.gaussian_matrix import GaussianMatrix, combinations, has_room, image, send, send_back
from limits.deep.lanczos import HESSIAN, RESIDUAL, directional_sharpness, outliers, spectrum
from limits.deep.network import Fields, Kind, State, Weights, grown, more_draws, outer, pulled_back, scaled, widened
from limits.losses import LOSSES

ROOM = 128  # fields that a matrix has room for at least: a size less to be compiled for


class Perceptron(NamedTuple):
    """The networks of ``limits.deep.network`` for ``limits.deep.lanczos``."""

    kind: Kind

    @property
    def exact(self) -> bool:
        return self.kind.exact

    @property
    def loss(self) -> str:
        return self.kind.loss

    def linearised(self, data, now, matrices):
        """The gradients of all outputs are there."""
        return matrices, now

    def pulled_back(self, data, now, matrices, signals: Float[Array, "b P C"]) -> tuple[GaussianMatrix, Weights]:
        kind = self.kind
        return matrices, jax.vmap(lambda signal: pulled_back(kind, data, signal, now))(kind.on_rows(data, signals))

    def product(self, data, now, matrices, tangents, parts) -> tuple[GaussianMatrix, Weights]:
        return product(self.kind, data, now, matrices, tangents, parts)

    def has_room(self, data, matrices, b, products) -> bool:
        (q, own), C = self.kind.counts(data), data.targets.shape[1]
        more = b * q + products * b * (C if self.exact else q), b * own * C * (1 + products)
        return matrices.sent.shape[1] >= ROOM and bool(has_room(matrices, *more))

    def wider(self, data, rng, state, tangents) -> tuple[State, Weights]:
        """Twice the room."""
        (H, n, S), m = state.matrices.sent.shape, state.matrices.returned.shape[1]
        sent, returned = more_draws(self.kind, rng, (H, n, m), S, data.space.copies)
        return grown(state, sent, returned), widened(tangents, n, m, sent.shape[2] - S)


def observables(kind, data, rng: np.random.Generator, state: State, k: int) -> tuple[dict, dict]:
    """(values, bounds of what Lanczos got wrong) of those of the Hessian that have a limit, at the step of ``state.now``; not
    a number after a divergence."""
    network = Perceptron(kind)
    if not kind.exact:
        return outliers(network, data, rng, state, k)
    if not np.isfinite(state.now.outputs).all():
        shapes = {"hessian_eigenvalues": k, "directional_sharpness": (), "hessian_min": (), "residual_eigenvalues": 2}
        values = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        return values, values
    b = min(k, data.targets.shape[1]) + 1  # a larger block costs little here
    directional = directional_sharpness(network, data, rng, state, b)
    edge = edge_of_bulk(kind, data, state.now)
    top, residual = (spectrum(network, data, rng, state, n, b, of, edge) for n, of in ((k, HESSIAN), (1, RESIDUAL)))
    upper, upper_error = _outside(top.values[:k], top.errors[:k], edge)
    lower, lower_error = _outside(-top.values[-1], top.errors[-1], edge)
    ends, ends_error = _outside(residual.values[[0, -1]] * [1, -1], residual.errors[[0, -1]], edge)
    values = {"hessian_eigenvalues": upper, "hessian_min": -lower, "residual_eigenvalues": ends * [1, -1]}
    errors = {"hessian_eigenvalues": upper_error, "hessian_min": lower_error, "residual_eigenvalues": ends_error}
    return values | {"directional_sharpness": directional}, errors | {"directional_sharpness": np.zeros(())}


def _outside(values, errors, edge):
    """(eigenvalues, none of which is below the edge of the bulk, bounds of their errors)"""
    return np.maximum(values, edge), np.where(values > edge, errors, np.maximum(values + errors - edge, 0.0))


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


def brought(kind, data, H: int) -> tuple[int, int]:
    """How many fields a product brings to each of the H matrices below and above, at most.

    Where φ is linear, those of the first matrix are combinations of the g_c and their δg_c, and each matrix sends on what it
    gets beside C of its own.
    """
    (q, own), C = kind.counts(data), data.targets.shape[1]
    return (min(q, max(H, 1) * C) if kind.exact else q), own * C


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
