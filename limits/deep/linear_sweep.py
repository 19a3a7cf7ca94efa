"""The causal sweep of deep linear networks in μP at N = ∞, in coefficients: see ``limits.deep.linear`` for what is made of it.

    h¹ = W⁰x/√D,   h^{l+1} = W^l h^l/√N,   f = Vᵀh^L/(γ0 N),   weights N(0,1) at step 0,   l = 1 … L hidden layers

Inputs.  X = x̂ basisᵀ with r = rank X columns, so h^l(x_p) = Σ_a x̂_pa h^l_a, 1/√D included in x̂: nothing below knows the
number of samples.  The error signal in these coordinates is M_ac = Σ_p x̂_pa (y − f)_pc/P.  Each step adds to each W^l/√N C
outer products g^{l+1}_c (k^l_c)ᵀ/N, with k^l_c = Σ_a M_ac h^l_a and g^l_c = γ0 N ∂f_c/∂h^l (the same for all samples):

    h^{l+1}(t) = d(t) W^l h^l(t) + Σ_{s<t} ρ(t,s) g^{l+1}(s) <k^l(s) h^l(t)>          h¹(t) = d(t) ξ + Σ_s ρ(t,s) g¹(s) M(s)ᵀ
    g^l(t)     = d(t) W^lᵀ g^{l+1}(t) + Σ_{s<t} ρ(t,s) k^l(s) <g^{l+1}(s) g^{l+1}(t)>   g^L(t) = d(t) ζ + Σ_s ρ(t,s) k^L(s)

<·> is the mean over neurons, W^l from now on the initial matrix over √N, ξ and ζ the initial first and last weights, ρ η0γ0
times the response of a weight at step t to a force at step s: 1 for SGD, (1−β^{t−s})/(1−β) for a heavy ball at a constant
rate; d = 1 without weight decay.

Width.  At N = ∞ (dynamical mean-field theory: Bordelon & Pehlevan 2022) W^l x = u + Σ_s (∂x/∂r(s)) g^{l+1}(s) and
W^lᵀ y = r + Σ_i (∂y/∂u_i) x_i, where u has the covariance of the vectors x_i that W^l has met, r that of the g^{l+1}.  As
all is linear, every field is a row of coefficients.  Layer l's *sources* are the vectors that its features are made of,

    u^l_a  (r of them),   u^l_{js} (j < l, the fresh part of g^j(s) sent through W^j … W^{l−1}),   g^l(s)
    h^l(t) = Σ_i X^l_i(t) source_i,    g^l(t) = Σ_i U^l_i(t) u^l_i + Σ_s R^l(t,s) r^l(s)

    forward    X^{l+1}(t) = [d X^l(t),  d X^l_l(t) R^l + ρ <h^l(t) k^l>]                     X^l_l: on the sources g^l(s)
    backward   Y = d U^{l+1}(t) + ρ G^{l+1}(t) K^l,   U^l(t) = Y_{<l} + Y_l U^l,   R^l(t) = d 1_t + Y_l R^l

with K^l = M X^l and G^l = <g^l g^l>.  The Gram matrix of the sources is one for all layers, because W^l keeps inner products:
<u^{l+1}_i u^{l+1}_j> = <source_i source_j>.  It has n = r + LCT rows, a new one for each g^l_c(t), and everything at time t
follows from earlier rows.  No equation is iterated, no matrix is inverted, no limit of small steps is taken.

Cost.  O((r + C)(LC)²T³) operations and 8(2L² + 2L)(CT)² bytes: neither has r³ or P in it, as has a sweep that keeps
(Tr) × (Tr) kernels.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.coordinates import coordinates
from limits.descent import heavy_ball
from limits.machine import in_float64
from limits.problem import Problem

FIRST_STRETCH = 128  # steps; then the arrays double, each size a compilation of its own


class Data(NamedTuple):
    """What training sees: x̂ (P, r), targets (P, C), the samples of each step (or None), and the optimiser's responses.

    decay (T,) d(t) · response (T, T) ρ(t,s), 0 for s ≥ t · richness γ0.
    """

    inputs: Float[Array, "P r"]
    targets: Float[Array, "P C"]
    batches: Int[Array, "T b"] | None
    decay: Float[Array, " T"]
    response: Float[Array, "T T"]
    richness: Float[Array, ""]


class Past(NamedTuple):
    """Coefficients and inner products of all fields before step t, zeros from there on; times and outputs share an axis.

    gram (n, n), n = r + LCT: of all sources, layer after layer · of layer l, n_l = r + lCT: gradients (CT, CT) G^l,
    on_u (CT, n_{l−1}) U^l, on_r (CT, CT) R^l, pulls (CT, n_l) K^l · errors (r, CT) M.
    """

    gram: Float[Array, "n n"]
    gradients: tuple[Array, ...]
    on_u: tuple[Array, ...]
    on_r: tuple[Array, ...]
    pulls: tuple[Array, ...]
    errors: Float[Array, "r CT"]


class State(NamedTuple):
    """One step: effective weights (r, C), f = x̂ · weights; equal-time kernels; X^l_l(t) of each layer (or nothing)."""

    weights: Float[Array, "r C"]
    features: Float[Array, "L r r"]
    gradients: Float[Array, "L C C"]
    blocks: tuple[Array, ...]


@in_float64
def data_of(problem: Problem) -> Data:
    """What the sweep asks of a problem, up to its last measured step."""
    steps = problem.steps[-1]
    batches = None if problem.batches is None else jnp.pad(problem.batches[:steps], ((0, 1), (0, 0)))
    return Data(
        coordinates(problem).scaled,
        jnp.asarray(problem.targets),
        batches,  # of the last step, which is only measured, any
        *(jnp.asarray(a) for a in _responses_of_a_weight(problem)),
        jnp.asarray(problem.richness),
    )


def _responses_of_a_weight(problem) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, "T T"]]:
    """(d, ρ): what is left of a weight after t steps, and what a unit force, −γ²∇L at step s over γ0, has moved it by."""
    last = int(problem.steps[-1])
    weight, buffer = np.eye(1, last + 2)[0], np.zeros(last + 2)  # one that starts at 1, and one for each force
    path = [weight]
    for t, rate in enumerate(problem.step_sizes[:last]):
        gradient = problem.weight_decay * weight
        gradient[1 + t] -= problem.richness
        weight, buffer = heavy_ball(weight, buffer, gradient, rate, problem.momentum, nesterov=problem.nesterov)
        path.append(weight)
    return np.array(path)[:, 0], np.array(path)[:, 1:]


def numbers_held(r: int, C: int, depth: int, T: int, *, keep: bool) -> int:
    """How many numbers the sweep holds at once: its arrays twice, while they grow and for what is cut out of them."""
    CT = C * T
    past = (r + depth * CT) ** 2 + depth * CT * (2 * r + (depth + 2) * CT)
    states = T * (depth * (r * r + C * C) + r * C) + (depth * T * r * CT if keep else 0)
    return 2 * (past + states)


@in_float64
def sweep(data: Data, depth: int, *, keep: bool) -> tuple[State, Past]:
    """All T steps (leading axis T), with their blocks if ``keep``; and the coefficients.  After a divergence not finite.

    In stretches, each with arrays twice as long as the one before, so that early steps do not multiply zeros.
    """
    (_, r), C, last = data.inputs.shape, data.targets.shape[1], len(data.decay)
    start, length = 0, min(FIRST_STRETCH, last)
    past, stretches = _nothing(r, length * C, depth), []
    while True:
        past, state = _stretch(data, past, start, steps=length - start, keep=keep)
        missing = [(0, 0), (0, 0), (0, (last - length) * C)]
        stretches.append(state._replace(blocks=tuple(jnp.pad(block, missing) for block in state.blocks)))
        if length == last:
            return jax.tree.map(lambda *parts: jnp.concatenate(parts), *stretches), past
        start, length = length, min(last, 2 * length)
        past = _grown(past, start * C, length * C)


def _nothing(r, CT, depth) -> Past:
    """No time has passed, and there is room for T steps."""
    layers, n = range(depth), r + depth * CT
    return Past(
        gram=jnp.zeros((n, n)).at[:r, :r].set(jnp.eye(r)),
        gradients=tuple(jnp.zeros((CT, CT)) for _ in layers),
        on_u=tuple(jnp.zeros((CT, r + l * CT)) for l in layers),
        on_r=tuple(jnp.zeros((CT, CT)) for _ in layers),
        pulls=tuple(jnp.zeros((CT, r + (l + 1) * CT)) for l in layers),
        errors=jnp.zeros((r, CT)),
    )


def _grown(past, CT, longer) -> Past:
    """The same with room for ``longer`` times: on an axis of sources, each layer's part is padded by itself."""
    r = len(past.errors)

    def times(array, axis):
        return jnp.pad(array, [(0, longer - CT) if i == axis else (0, 0) for i in range(array.ndim)])

    def sources(array, axis):
        inputs, *layers = jnp.split(array, list(range(r, array.shape[axis], CT)), axis)
        return jnp.concatenate([inputs, *(times(layer, axis) for layer in layers)], axis)

    return Past(
        gram=sources(sources(past.gram, 0), 1),
        gradients=tuple(times(times(G, 0), 1) for G in past.gradients),
        on_u=tuple(sources(times(U, 0), 1) for U in past.on_u),
        on_r=tuple(times(times(R, 0), 1) for R in past.on_r),
        pulls=tuple(sources(times(K, 0), 1) for K in past.pulls),
        errors=times(past.errors, 1),
    )


@partial(jax.jit, static_argnames=("steps", "keep"), donate_argnames="past")
def _stretch(data, past, start, *, steps, keep) -> tuple[Past, State]:
    """So many steps from ``start`` on."""

    def step(past, t):
        times = jnp.arange(past.errors.shape[1]) // data.targets.shape[1]
        rates = data.response[t, jnp.minimum(times, len(data.decay) - 1)]  # there is room for more times than there are
        past, gradients = _backward(data, past, rates, t)
        past, weights, features, blocks = _forward(data, past, rates, t)
        return past, State(weights, features, gradients, blocks if keep else ())

    return jax.lax.scan(step, past, start + jnp.arange(steps))


def _backward(data, past, rates, t) -> tuple[Past, Float[Array, "L C C"]]:
    """g^L(t), …, g¹(t): their coefficients, and their inner products with all sources and with each other."""
    (r, CT), C, decay, gram = past.errors.shape, data.targets.shape[1], data.decay[t], past.gram
    on_u, on_r, gradients = list(past.on_u), list(past.on_r), [*past.gradients, of_outputs(C, CT)]
    fresh = _put(jnp.zeros((C, CT)), decay * jnp.eye(C), 0, t * C)
    U, above, rows = jnp.zeros_like(past.pulls[-1][:C]), gradients[-1][:C], []
    for l in reversed(range(len(on_u))):
        n = r + l * CT
        Y = decay * U + (rates * above) @ past.pulls[l]
        U, R = Y[:, :n] + Y[:, n:] @ on_u[l], fresh + Y[:, n:] @ on_r[l]
        on_u[l], on_r[l] = _put(on_u[l], U, t * C, 0), _put(on_r[l], R, t * C, 0)
        with_u = U @ gram[:n, :n]
        above = with_u @ on_u[l].T + R @ gradients[l + 1] @ on_r[l].T
        gradients[l] = _put_twice(gradients[l], above, t * C)
        rows.append(jnp.concatenate([with_u, above], 1))
    for l, row in zip(reversed(range(len(on_u))), rows, strict=True):
        for U in on_u[l + 1 :]:  # what g^l(t) becomes in a layer above overlaps with what the g of that layer are made of
            row = jnp.concatenate([row, row @ U.T], 1)
        gram = _put_twice(gram, row, r + l * CT + t * C)
    equal_time = jnp.stack([jax.lax.dynamic_slice(G, (t * C, t * C), (C, C)) for G in gradients[:-1]])
    return past._replace(gram=gram, gradients=tuple(gradients[:-1]), on_u=tuple(on_u), on_r=tuple(on_r)), equal_time


def _forward(data, past, rates, t) -> tuple[Past, Array, Array, tuple[Array, ...]]:
    """h¹(t), …, h^L(t) and f(t): (past with K(t) and M(t), effective weights, <h^l h^l>, X^l_l)."""
    (r, CT), C, decay = past.errors.shape, data.targets.shape[1], data.decay[t]
    X, overlap, block = jnp.eye(r), past.gram[:r], rates * past.errors  # overlap: of h^l(t) with every source
    rows, features, blocks = [], [], []
    for l, (R, K) in enumerate(zip(past.on_r, past.pulls, strict=True)):
        n = r + (l + 1) * CT
        X, overlap = jnp.concatenate([decay * X, block], 1), decay * overlap + block @ past.gram[n - CT : n]
        rows.append(X)
        features.append(overlap[:, :n] @ X.T)
        blocks.append(block)
        block = decay * block @ R + rates * (overlap[:, :n] @ K.T)
    weights = jax.lax.dynamic_slice_in_dim(overlap, n - CT + t * C, C, 1) / data.richness  # <h^L g^L>/γ0
    M = _error(data, weights, t)
    pulls = tuple(_put(K, M.T @ X, t * C, 0) for K, X in zip(past.pulls, rows, strict=True))
    return past._replace(pulls=pulls, errors=_put(past.errors, M, 0, t * C)), weights, jnp.stack(features), tuple(blocks)


def _error(data, weights, t) -> Float[Array, "r C"]:
    """M(t) = x̂ᵀ(y − f)/P over the samples of the step."""
    x, y = data.inputs, data.targets
    if data.batches is not None:
        x, y = x[data.batches[t]], y[data.batches[t]]
    return x.T @ (y - x @ weights) / len(x)


def _put(array, values, row, column):
    return jax.lax.dynamic_update_slice(array, values, (row, column))


def _put_twice(symmetric, rows, at):
    return _put(_put(symmetric, rows, at, 0), rows.T, 0, at)


def of_outputs(C: int, CT: int) -> Float[Array, "CT CT"]:
    """G^{L+1}, 1 at all pairs of times."""
    return jnp.tile(jnp.eye(C), (CT // C, CT // C))
