"""The Hessian of an infinitely wide network: what its products are (``limits.deep.lanczos`` finds eigenvalues with them).

With tangents v and the inner product of ``limits.deep.lanczos``, H v takes one more pass forward and one backward (M = a²r of
each matrix, u = M^½ v, δ the derivative along u, ρ_p = ∂ℓ_p/∂f/P; r, C and coordinates of an orthonormal family on the other
side):

    δh^{l+1} = [δh^l] + W φ'(h^l)δh^l + Σ_kj u_kj e_k <b_j φ(h^l)>                                          [ ] if residual
    δf       = (<u φ(h^L)> + <V φ'(h^L)δh^L>)/γ0
    δg^L     = φ''(h^L)δh^L eV + φ'(h^L) (δe V + e u)                             e = γ0 ρ, and g its cotangents
    δg^l     = [δg^{l+1}] + φ''(h^l)δh^l · Wᵀg^{l+1} + φ'(h^l) (Wᵀδg^{l+1} + Σ_kj u_kj b_j <e_k g^{l+1}>)
    H v      = M^½ Σ_p { δg x̂,   δg φᵀ + g(φ'δh)ᵀ,   δe φ + e φ'δh }

What δe makes is the Gauss-Newton part G, the rest, δ of the weights and of what they make at fixed e, the residual part R: one
cotangent per sample for both.  Where φ is linear the g_c of all outputs are at hand, and no δe goes backward.  Each product is
met by the random matrices as a step of training is (Gaussian conditioning), and training does not see it.  Exact where φ is
linear, else of S samples.

What has a limit.  G is of finite rank, and so is all of R that the gradients see; the rest of R is a bulk of infinite
multiplicity.  Eigenvalues of H outside it are those of the Krylov space of gradients, and Lanczos finds them in about ten
products; the k-th largest of the limit is never below the upper edge of the bulk (``limits.deep.bulk_edge`` where φ is linear).
Where φ'' does not vanish the bulk has no edge.  What lies in it is carried by a few neurons and moves with S: its error is
infinite.

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
from limits.deep.network import (
    Fields,
    Kind,
    State,
    Weights,
    backward,
    grown,
    more_draws,
    pulled_back,
    scaled,
    sent_back,
    widened,
)
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

    def linearised(self, data, fields, matrices):
        """With the gradient of L, of all samples; where φ is linear, the cotangents are those of any signal."""
        signal = LOSSES[self.loss].gradient(fields.outputs, data.targets) * data.richness / len(data.targets)
        signal = self.kind.on_rows(data, signal)
        return (matrices, fields._replace(signal=signal)) if self.exact else backward(self.kind, data, fields, matrices, signal)

    def pulled_back(self, data, fields, matrices, signals: Float[Array, "b P C"]) -> tuple[GaussianMatrix, Weights]:
        signals, b = self.kind.on_rows(data, signals), len(signals)
        if self.exact:
            cotangents, above = (jnp.broadcast_to(field, (b, *field.shape)) for field in (fields.cotangents[0], fields.above))
        else:
            matrices, cotangents, above = sent_back(self.kind, data, fields, matrices, signals)
            cotangents, above = cotangents[0], above.swapaxes(0, 1)
        force = partial(pulled_back, self.kind, data, features=fields.features[-1], below=fields.below)
        return matrices, jax.vmap(lambda e, g, a: force(e, cotangents=g, above=a))(signals, cotangents, above)

    def product(self, data, fields, matrices, tangents, parts) -> tuple[GaussianMatrix, Weights]:
        return product(self.kind, data, fields, matrices, tangents, parts)

    def has_room(self, data, matrices, b, products) -> bool:
        (q, g), C = self.kind.counts(data), data.targets.shape[1]
        more = b * q + products * b * (C if self.exact else q), g + b * g * (1 + products)
        return matrices.sent.shape[1] >= ROOM and bool(has_room(matrices, *more))

    def wider(self, data, rng, state, tangents, b, products) -> tuple[State, Weights]:
        """Twice the room."""
        (H, n, S), m = state.matrices.sent.shape, state.matrices.returned.shape[1]
        sent, returned = more_draws(self.kind, rng, (H, n, m), S, data.space.copies)
        return grown(state, sent, returned), widened(tangents, n, m, sent.shape[2] - S)


def observables(kind, data, rng: np.random.Generator, state: State, k: int) -> tuple[dict, dict]:
    """(values, bounds of what Lanczos got wrong) of those of the Hessian that have a limit, at the step of ``state.fields``;
    not a number after a divergence."""
    network = Perceptron(kind)
    if not kind.exact:
        return outliers(network, data, rng, state, k)
    if not np.isfinite(state.fields.outputs).all():
        shapes = {"hessian_eigenvalues": k, "directional_sharpness": (), "hessian_min": (), "residual_eigenvalues": 2}
        values = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        return values, values
    b = min(k, data.targets.shape[1]) + 1  # a larger block costs little here
    directional = directional_sharpness(network, data, rng, state, b)
    edge = edge_of_bulk(kind, data, state.fields)
    top, residual = (spectrum(network, data, rng, state, n, b, parts, edge) for n, parts in ((k, HESSIAN), (1, RESIDUAL)))
    upper, upper_error = _outside(top.values[:k], top.errors[:k], edge)
    lower, lower_error = _outside(-top.values[-1], top.errors[-1], edge)
    ends, ends_error = _outside(residual.values[[0, -1]] * [1, -1], residual.errors[[0, -1]], edge)
    values = {"hessian_eigenvalues": upper, "hessian_min": -lower, "residual_eigenvalues": ends * [1, -1]}
    errors = {"hessian_eigenvalues": upper_error, "hessian_min": lower_error, "residual_eigenvalues": ends_error}
    return values | {"directional_sharpness": directional}, errors | {"directional_sharpness": np.zeros(())}


def _outside(values, errors, edge):
    """(eigenvalues, none of which is below the edge of the bulk, bounds of their errors)"""
    return np.maximum(values, edge), np.where(values > edge, errors, np.maximum(values + errors - edge, 0.0))


def edge_of_bulk(kind, data, fields) -> float:
    """Of a linear network: see ``limits.deep.bulk_edge``."""
    kernels = (data.space.weight * jnp.einsum("las,lbs->lab", rows, rows) for rows in (fields.features, fields.cotangents))
    return edge_from_kernels(kind, data, fields.outputs, *kernels, fields.weights.left)


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
    q, g = kind.counts(data)
    return (min(q, max(H, 1) * data.targets.shape[1]) if kind.exact else q), g


def product(
    kind, data, fields: Fields, matrices: GaussianMatrix, tangents: Weights, parts=HESSIAN
) -> tuple[GaussianMatrix, Weights]:
    """(the matrices having met it, H v of each of b tangents v, or so much of G and so much of R)

    ``fields`` have the cotangents of γ0 times the gradient of L (``Perceptron.linearised``): what changes Jᵀ of that is R's
    part, and that of its change, G's.
    """
    of_signal, of_weights = parts
    u = jax.vmap(partial(scaled, data, power=0.5))(tangents)
    slopes, bends = jax.jvp(lambda h: kind.activated(h)[1], (fields.h,), (jnp.ones_like(fields.h),))
    matrices, dh, below = _forward(kind, data, fields, matrices, u, slopes)
    features = slopes[-1] * dh[-1]
    change = of_signal * _change(kind, data, fields, u.last, features)
    u, below, features, bends = jax.tree.map(lambda leaf: of_weights * leaf, (u, below, features, bends[:, None] * dh))
    matrices, cotangents, above = _backward(kind, data, fields, matrices, u, slopes, bends, change)
    at = fields.signal, fields.features[-1], fields.below, fields.cotangents[0], fields.above
    along = jax.vmap(lambda *moved: jax.jvp(partial(pulled_back, kind, data), at, moved)[1])
    return matrices, jax.vmap(partial(scaled, data, power=0.5))(along(change, features, below, cotangents, above))


def _forward(kind, data, fields, matrices, u, slopes) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, δh of the H + 1 layers (layers, b, q, S), coordinates of φ'δh (b, H, q, n))"""
    new, q = brought(kind, data, len(matrices.below))[0], kind.counts(data)[0]
    combine = jnp.kron(jnp.eye(len(u.first)), combinations(new, q)) if new < q else None

    def through(dh, layer):
        matrix, trained, slope, features, move = layer
        b, q, S = dh.shape
        changes = (slope * dh).reshape(-1, S)
        matrix, out, coordinates = send(data.space, matrix, changes, fields.weights.left, trained, combine)
        out = out.reshape(b, q, S) + features @ move.swapaxes(1, 2) @ matrix.above
        return kind.residual * dh + out, (matrix, dh, coordinates.reshape(b, q, -1))

    layers = matrices, fields.weights.trained, slopes[:-1], fields.below, u.trained.swapaxes(0, 1)
    dh, (matrices, behind, coordinates) = jax.lax.scan(through, kind.rows(data) @ u.first, layers)
    return matrices, jnp.concatenate([behind, dh[None]]), coordinates.swapaxes(0, 1)


def _backward(kind, data, fields, matrices, u, slopes, bends, change) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, δg of the first layer (b, g, S), coordinates of those that the transposes met (b, H, g, m))"""
    b, _, S = u.last.shape
    slopes, bends = (rows[..., :1, :] if kind.exact else rows for rows in (slopes, bends))  # the same for all rows

    def through(dg, layer):
        matrix, trained, slope, bend, above, move = layer
        left = fields.weights.left
        matrix, out, coordinates = send_back(data.space, matrix, dg.reshape(-1, S), left, trained)
        out = out.reshape(dg.shape) + above @ move @ matrix.below
        further = slope * out + bend * image(matrix.transposed, above, left, trained.T)
        return kind.residual * dg + further, (matrix, coordinates.reshape(b, len(above), -1))

    def at_outputs(change, last):
        return jax.jvp(kind.at_outputs, (fields.signal, fields.weights.last), (change, last))

    start, moved = jax.vmap(at_outputs, out_axes=(None, 0))(change, u.last)
    layers = matrices, fields.weights.trained, slopes[:-1], bends[:-1], fields.above, u.trained.swapaxes(0, 1)
    dg, (matrices, coordinates) = jax.lax.scan(through, bends[-1] * start + slopes[-1] * moved, layers, reverse=True)
    return matrices, dg, coordinates.swapaxes(0, 1)


def _change(kind, data, fields, last, features) -> Float[Array, "b q C"]:
    """δe of each tangent."""

    def outputs(features, last):
        return data.space.weight * jnp.einsum("...qs,...cs->...qc", features, last)

    moved = kind.on_samples(data, outputs(fields.features[-1], last) + outputs(features, fields.weights.last))
    return kind.on_rows(
        data, jnp.einsum("pce,bpe->bpc", LOSSES[kind.loss].curvature(fields.outputs), moved) / len(data.targets)
    )
