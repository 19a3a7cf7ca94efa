"""A network of infinite width in training: the fields of its neurons, and one step of gradient descent.

    plain      h¹ = W⁰x/√D,   h^{l+1} = W^l φ(h^l)/√N                  f = V φ(h^L)/(γ0 N)
    residual   h⁰ = W⁰x/√D,   h^{l+1} = h^l + L^{-α} W^l φ(h^l)/√N     l = 0 … L − 1

Its H + 1 layers are joined by H random matrices W^l, each a ``limits.deep.gaussian_matrix``.  A neuron of the limit has first
or last weights of its own, and of the others it sees what the W^l let through.  <·> is the mean over neurons, Δ = −∂ℓ/∂f, π_p
the share of sample p in the step's batch; a are the powers of the depth in front of a matrix, r those of its learning rate:

    W⁰ = a · fresh Gaussians,     W^l(t) = d(t) a W^l + A^l(t),     V = a · fresh Gaussians,       A^l(0) = 0
    g^L_c = φ'(h^L) V_c,   g^l = [g^{l+1}] + φ'(h^l) W^l(t)ᵀ g^{l+1}         g^l_c = γ0 N ∂f_c/∂h^l; [ ] if residual
    f_c = <V_c φ(h^L)>/γ0
    forces  a²r Σ_pc e_pc · { g_c xᵀ/√D on W⁰,   g^{l+1}_c φ(h^l)ᵀ on A^l,   φ(h^L) on V_c },        e = γ0 π Δ

All that training needs of the outputs is this error signal: fields are Σ_c e_pc g_c, one *cotangent* per sample however many
outputs there are.  The optimiser of ``limits.problem`` acts on all weights: weight decay shrinks what is left of the initial
matrices, d, too.

A field is S samples of neurons: scrambled Sobol points (Owen 1997) for the Gaussians met at step 0, which matter most,
pseudo-random ones later.  Where φ is linear only inner products of fields matter; there a field is its coordinates with
respect to all Gaussians of the network, and nothing is sampled.

Features are fields of q *rows*: the P samples; or, where φ is linear, the r directions of the inputs, of which the samples
are combinations x̂ (P, r): h_p = Σ_a x̂_pa h_a.  Then the g_c are the same for all rows, and the cotangents are they, C fields
of all outputs, whatever the error signal; nothing but f has P in it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import ndtri

from limits.activations import ACTIVATIONS
from limits.deep.gaussian_matrix import GaussianMatrix, Space, has_room, longer, meet, send, send_back, unmet, with_more
from limits.descent import heavy_ball
from limits.losses import LOSSES

HALF_A_CELL = 0.5**31  # Sobol points are multiples of 2⁻³⁰, 0 among them


class Kind(NamedTuple):
    """What is compiled: the static argument of the compiled functions."""

    activation: str
    loss: str
    residual: bool
    nesterov: bool

    @property
    def exact(self) -> bool:
        return ACTIVATIONS[self.activation].linear

    def activated(self, h):
        """(φ(h), φ'(h))"""
        return jax.jvp(ACTIVATIONS[self.activation].phi, (h,), (jnp.ones_like(h),))

    def counts(self, data) -> tuple[int, int]:
        """(q, cotangents)"""
        (P, r), C = data.inputs.shape, data.targets.shape[1]
        return (r, C) if self.exact else (P, P)

    def rows(self, data) -> Float[Array, "q r"]:
        """The inputs whose features are fields."""
        return jnp.eye(data.inputs.shape[1]) if self.exact else data.inputs

    def on_samples(self, data, of_rows: Float[Array, "*any q C"]) -> Float[Array, "*any P C"]:
        """What is linear in the features."""
        return data.inputs @ of_rows if self.exact else of_rows

    def on_rows(self, data, signal: Float[Array, "*any P C"]) -> Float[Array, "*any q C"]:
        """Error signals, of which Σ_p signal_pc φ(h_p) is made."""
        return data.inputs.T @ signal if self.exact else signal

    def at_outputs(self, signal: Float[Array, "*any q C"], last: Float[Array, "C S"]) -> Float[Array, "*any g S"]:
        """The cotangents of φ(h^L)."""
        return jnp.broadcast_to(last, (*signal.shape[:-2], *last.shape)) if self.exact else signal @ last

    def by_row(self, signal: Float[Array, "q C"], cotangents: Float[Array, "*stack g m"]) -> Float[Array, "*stack q m"]:
        """Σ_c signal_pc g_c, of numbers that are linear in the cotangents."""
        return signal @ cotangents if self.exact else cotangents


class Data(NamedTuple):
    """inputs (P, r) over √D, in coordinates of rank r · targets · shares π of each step (one row if all are the same) · the
    optimiser's numbers · scales a and rates a²r of first, hidden and last weights."""

    inputs: Float[Array, "P r"]
    targets: Float[Array, "P C"]
    shares: Float[Array, "T P"]
    step_sizes: Float[Array, " steps"]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    richness: Float[Array, ""]
    scales: Float[Array, "3"]
    rates: Float[Array, "3"]
    space: Space


class Weights(NamedTuple):
    """As they act: first (r, S) · left, d·a, of the H initial matrices · trained (H, m, n), A of each · last (C, S)."""

    first: Float[Array, "r S"]
    left: Float[Array, ""]
    trained: Float[Array, "H m n"]
    last: Float[Array, "C S"]


class Fields(NamedTuple):
    """weights that they go by · outputs f · of the H + 1 layers h and features φ(h) · coordinates of those that the H matrices
    met · an error signal · its cotangents at the H + 1 layers, and coordinates of those that the transposes met."""

    weights: Weights
    outputs: Float[Array, "P C"]
    h: Float[Array, "layers q S"]
    features: Float[Array, "layers q S"]
    below: Float[Array, "H q n"]
    signal: Float[Array, "q C"]
    cotangents: Float[Array, "layers g S"]
    above: Float[Array, "H g m"]


class State(NamedTuple):
    """Before a step; the fields are those of the step before."""

    step: Int[Array, ""]
    weights: Weights
    velocity: Weights
    matrices: GaussianMatrix
    fields: Fields


def first_draws(kind, rng, sizes, samples, copies=1):
    """First weights (r, S), Gaussians in store for the matrices (H, n, S) and (H, m, S), last weights (C, S)."""
    r, P, C, H, n, m = sizes
    drawn = _gaussians(kind, rng, r + C + H * (n + m), 0 if kind.exact else samples, copies)
    first, last, (sent, returned) = drawn[:r], drawn[r : r + C], _stored(drawn[r + C :], H, n, m)
    if not kind.exact:
        (first, *below), (*above, last) = _met_first(kind, rng, (r, P, C, H), samples // copies)
        for l in range(H):
            sent[l, :P], returned[l, :P] = (np.tile(draws[l], copies) for draws in (below, above))
        first, last = np.tile(first, copies), np.tile(last, copies)
    return first, sent, returned, last


def more_draws(kind, rng, sizes, size, copies=1):
    """As many more Gaussians in store, (H, n, S) and (H, m, S), beside fields of ``size`` numbers."""
    H, n, m = sizes
    return _stored(_gaussians(kind, rng, H * (n + m), size, int(copies)), H, n, m)


def _gaussians(kind, rng, count, size, copies) -> Float[np.ndarray, "count S"]:
    """Independent N(0,1) fields: of so many samples; or coordinates of their own, behind ``size`` others."""
    return np.eye(count, size + count, size) if kind.exact else np.tile(rng.normal(size=(count, size // copies)), copies)


def _stored(fields, H, n, m):
    """Rows as (H, n, S) and (H, m, S)."""
    S = fields.shape[1]
    return fields[: H * n].reshape(H, n, S), fields[H * n :].reshape(H, m, S)


def _met_first(kind, rng, sizes, samples):
    """What each layer gets from below, and from above, at step 0: all that meets in the same neurons is one Sobol net."""
    r, P, C, H = sizes
    below, above = [r, *[P] * H], [*[P] * H, C]
    if kind.residual:
        fields = _parts(quasi_gaussians(rng, sum(below + above), samples), below + above)
        return fields[: H + 1], fields[H + 1 :]
    pairs = [_parts(quasi_gaussians(rng, b + a, samples), [b, a]) for b, a in zip(below, above, strict=True)]
    return zip(*pairs, strict=True)


def quasi_gaussians(rng, count, samples) -> Float[np.ndarray, "count S"]:
    """Scrambled Sobol points turned normal; pseudo-random beyond the last Sobol sequence."""
    from scipy.stats import qmc  # takes a second to import

    quasi = min(count, qmc.Sobol.MAXDIM)
    points = qmc.Sobol(quasi, rng=rng).random(samples).T
    return np.concatenate([ndtri(points + HALF_A_CELL), rng.normal(size=(count - quasi, samples))])


def _parts(fields, sizes):
    return np.split(fields, np.cumsum(sizes)[:-1])


@partial(jax.jit, static_argnums=0)
def begin(kind, data, first, sent, returned, last) -> State:
    """Before step 0, with these Gaussians: (r, S), (H, n, S), (H, m, S) and (C, S)."""
    (H, n, S), m, (P, C), (q, g) = sent.shape, returned.shape[1], data.targets.shape, kind.counts(data)
    weights = Weights(data.scales[0] * first, data.scales[1], jnp.zeros((H, m, n)), data.scales[2] * last)
    shapes = (P, C), (H + 1, q, S), (H + 1, q, S), (H, q, n), (q, C), (H + 1, g, S), (H, g, m)
    velocity = jax.tree.map(jnp.zeros_like, weights)
    nothing = Fields(velocity, *(jnp.zeros(shape) for shape in shapes))
    return State(jnp.zeros((), int), weights, velocity, unmet(sent, returned), nothing)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(kind, data, state, until) -> State:
    """Steps up to ``until``, or as long as the matrices have room.  Its fields are those that the last step went by."""
    def going(state):
        return (state.step < until) & has_room(state.matrices, *kind.counts(data))

    def step(state):
        matrices, h, below = forward(kind, data, state.weights, state.matrices)
        last = state.weights.last
        last = jax.lax.cond(state.step == 0, lambda: without_outputs(data.space, kind.activated(h[-1])[0], last), lambda: last)
        return descended(kind, data, state._replace(weights=state.weights._replace(last=last)), matrices, h, below)

    return jax.lax.while_loop(going, step, state)


def descended(kind, data, state, matrices, h, below) -> State:
    """After the step of the state's weights, which have sent these forward."""
    fields = seen(kind, data, state.fields, state.weights, h, below)
    share = data.shares[state.step % len(data.shares)]
    signal = -LOSSES[kind.loss].gradient(fields.outputs, data.targets) * share[:, None] * data.richness
    matrices, fields = backward(kind, data, fields, matrices, kind.on_rows(data, signal))
    force = scaled(
        data, pulled_back(kind, data, fields.signal, fields.features[-1], fields.below, fields.cotangents[0], fields.above)
    )
    weights, velocity = moved(kind, data, state.step, state.weights, state.velocity, force)
    return State(state.step + 1, weights, velocity, matrices, fields)


def forward(kind, data, weights, matrices, combine=None) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, h of the H + 1 layers, coordinates of their features); ``combine`` as in ``meet``"""

    def through(h, matrix_and_trained):
        matrix, trained = matrix_and_trained
        matrix, out, coordinates = send(data.space, matrix, kind.activated(h)[0], weights.left, trained, combine)
        return kind.residual * h + out, (matrix, h, coordinates)

    start = kind.rows(data) @ weights.first
    h, (matrices, behind, coordinates) = jax.lax.scan(through, start, (matrices, weights.trained))
    return matrices, jnp.concatenate([behind, h[None]]), coordinates


def seen(kind, data, before, weights, h, below) -> Fields:
    """The fields with what went forward, of these weights; cotangents are those before."""
    features = kind.activated(h)[0]
    outputs = kind.on_samples(data, data.space.products(features[-1], weights.last)) / data.richness
    return before._replace(weights=weights, outputs=outputs, h=h, features=features, below=below)


def backward(kind, data, fields, matrices, signal: Float[Array, "q C"]) -> tuple[GaussianMatrix, Fields]:
    """(the matrices, the fields with the cotangents of this error signal)"""
    matrices, cotangents, above = sent_back(kind, data, fields, matrices, signal[None])
    return matrices, fields._replace(signal=signal, cotangents=cotangents[:, 0], above=above[:, 0])


def sent_back(kind, data, fields, matrices, signals: Float[Array, "b q C"]) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, cotangents (layers, b, g, S), coordinates (H, b, g, m) of those that the transposes met)"""
    slopes = kind.activated(fields.h)[1]
    slopes = slopes[:, :1] if kind.exact else slopes

    def through(cotangents, layer):
        matrix, trained, slope = layer
        b, g, S = cotangents.shape
        matrix, out, coordinates = send_back(data.space, matrix, cotangents.reshape(-1, S), fields.weights.left, trained)
        further = slope * out.reshape(b, g, S)
        return kind.residual * cotangents + further, (matrix, cotangents, coordinates.reshape(b, g, -1))

    start = slopes[-1] * kind.at_outputs(signals, fields.weights.last)
    layers = matrices, fields.weights.trained, slopes[:-1]
    first, (matrices, behind, above) = jax.lax.scan(through, start, layers, reverse=True)
    return matrices, jnp.concatenate([first[None], behind]), above


def without_outputs(space, features: Float[Array, "q S"], last: Float[Array, "C S"]) -> Float[Array, "C S"]:
    """The last weights, of the same norm, but orthogonal to these features: f = 0."""
    met, *_ = meet(space, jnp.zeros_like(features), jnp.zeros((), int), features)
    rest = space.beyond(last, met)
    return rest * (space.norms(last) / space.norms(rest))[:, None]


def pulled_back(kind, data, signal, features, below, cotangents, above) -> Weights:
    """Jᵀ of an error signal: Σ_pc e_pc { g_c xᵀ/√D,  g^{l+1}_c φ(h^l)ᵀ,  φ(h^L) }, of fields as in ``Fields``, features of the
    last layer, cotangents of the first."""
    return Weights(
        first=kind.rows(data).T @ kind.by_row(signal, cotangents),
        left=jnp.zeros(()),
        trained=kind.by_row(signal, above).mT @ below,
        last=signal.T @ features,
    )


def scaled(data, tangent: Weights, power: float = 1.0) -> Weights:
    """Each matrix's part times this power of its learning rate a²r."""
    first, hidden, last = data.rates**power
    trained = jax.tree.map(lambda A: hidden * A, tangent.trained)
    return Weights(first * tangent.first, tangent.left, trained, last * tangent.last)


def moved(kind, data, step, weights, velocity, force) -> tuple[Weights, Weights]:
    """(weights, velocity) after a step of the optimiser with this force, −γ²∇L over γ0 at N = ∞."""
    gradient = jax.tree.map(lambda weight, force: data.weight_decay * weight - force, weights, force)
    return heavy_ball(weights, velocity, gradient, data.step_sizes[step], data.momentum, nesterov=kind.nesterov)


def widened(weights: Weights, n: int, m: int, s: int) -> Weights:
    """The same, or many of them, where fields have s more coordinates and there is room for n more below, m above."""
    first, last = longer(weights.first, s), longer(weights.last, s)
    return weights._replace(first=first, trained=longer(weights.trained, m, n), last=last)


@jax.jit
def grown(state, sent, returned) -> State:
    """The same with room for as many more fields; Gaussians that bring coordinates of their own make all fields longer."""
    n, m, s = sent.shape[1], returned.shape[1], sent.shape[2] - state.matrices.sent.shape[2]

    def wider(weights):
        return widened(weights, n, m, s)

    matrices, fields = with_more(state.matrices, sent, returned), state.fields
    fields = fields._replace(
        weights=wider(fields.weights),
        **{name: longer(getattr(fields, name), s) for name in ("h", "features", "cotangents")},
        below=longer(fields.below, n),
        above=longer(fields.above, m),
    )
    return State(state.step, wider(state.weights), wider(state.velocity), matrices, fields)
