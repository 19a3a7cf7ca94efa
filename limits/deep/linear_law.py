"""How deep linear networks of finite width depart from their limit in μP: second-order expansion of the exact recursion.

At every width N a network trains within the span of what its matrices have met, and is exact in coordinates with respect
to its Gaussians (``limits.deep.network``).  Three things differ from N = ∞, and no other:

    Gaussians     those of one space of neurons are N-vectors; their inner products are not 0 and 1 but Wishart, those of
                  the rows of B, lower triangular, B_ij ~ N(0, 1/N) below the diagonal and B_ii² ~ χ²(N − i)/N on it
    conditioning  W on what is new to it is a Gaussian minus its part along the e_k, of whatever norm is left (the part
                  along e_k is what Wᵀ has told): ``limits.deep.gaussian_matrix``, not brought to norm 1
    f(0)          is <V_c h^L>/γ0 and not 0

A plain network has L spaces of neurons, a residual one has one.  With ε = N^{-1/2}, up to what is beyond 1/N,

    B = D + εℓ,   D_ii² = 1 − ε²(i + ½),     ℓ_ij ~ N(0,1) below the diagonal,  N(0,½) on it,     i = 0, 1, …

and o_N = o_∞ + ε o'[ℓ] + ½ε² o''[ℓ, ℓ] + …, so that as in ``limits.two_layer.linear_law`` std² = E o'² and bias = ½ E o'',
averages over draws of ℓ, with their standard errors.

Differentiation.  Fields that are dependent in the limit need not be so at finite width; their new direction has size ε, and
what is normalised there has no derivative at ε = 0.  Outputs and kernels have: at every N they are polynomials in the
weights.  So these are differentiated by central differences between the networks of ℓ and −ℓ at ε = ``STEP``, right to ε² of
what they are, and loss and eigenvalues as functions of them.  Directions smaller than ``TOLERANCE`` are left out, which
costs TOLERANCE/STEP² in o''.

Cost.  A network is its fields in coordinates, about a hundred at any N.  1024 draws of 20 steps take, beside some 15 s of
compilation on two shared cores, 5 s for linear3 of 10 inputs, 30 s for 64 inputs, 100 s for three residual blocks of 10.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from limits.deep.gaussian_matrix import GaussianMatrix, Space, has_room, send, send_back, unmet
from limits.deep.network import Data, Kind, Weights, moved
from limits.law import Prediction, law_of_draws, second_order
from limits.losses import LOSSES
from limits.machine import in_float64, require_memory
from limits.problem import Problem
from limits.spectra import apart, leading_eigenvalues

STEP = 2.0**-9  # ε of the differences
TOLERANCE = 1e-10
ROOM = 24  # steps that there is room for whatever they bring; then it doubles
SIDE_BY_SIDE = 16  # draws


class Sizes(NamedTuple):
    """r directions of the inputs, C outputs, H matrices between layers, each with room for n fields below and m above.

    new   how many directions a step brings at most to the features of a layer
    """

    r: int
    C: int
    H: int
    new: int
    n: int
    m: int


def _sizes(r, C, H, steps) -> Sizes:
    """With room for so many steps of plain networks; the decay of residual ones asks for more.

    The first layer's features are moved along C gradients a step, by which of these r × C numbers say, the same at all later
    times: C new directions.  In further layers these numbers change, and past gradients may become new directions later.
    """
    at_once, on_average = min(r, C) if H <= 1 else r, min(r, max(H, 1) * C)
    return Sizes(r, C, H, at_once, r + steps * on_average + at_once, (steps + 1) * C)


class State(NamedTuple):
    """Before a step."""

    step: Int[Array, ""]
    weights: Weights
    velocity: Weights
    matrices: GaussianMatrix


class Measured(NamedTuple):
    """weights w, f = x̂w · kernels of features, in the directions of the inputs, and of gradients."""

    weights: Float[Array, "*T r C"]
    features: Float[Array, "*T layers r r"]
    gradients: Float[Array, "*T layers C C"]


class Smooth(NamedTuple):
    """What the observables are functions of: w and Θ, on directions and outputs, with the spectrum of γ²JJᵀ/P."""

    weights: Float[Array, "*T r C"]
    theta: Float[Array, "*T rC rC"]


@in_float64
def predict(problem: Problem, kind: Kind, data: Data, *, draws: int = 1024, seed: int = 0) -> Prediction:
    """The laws of loss, NTK and Gauss-Newton eigenvalues at the measured steps, of linear networks trained on MSE.

    ``kind``, ``data``  the network, as ``limits.deep.dmft`` reads it;  ``draws``  of ℓ, over which the errors are standard
                        errors.
    """
    data = data._replace(space=Space(jnp.ones(()), jnp.asarray(TOLERANCE), jnp.asarray(False)))
    (_, r), C, H = data.inputs.shape, data.targets.shape[1], problem.network.depth - (not kind.residual)
    runs, steps = jnp.asarray(np.diff(problem.steps, prepend=-1)), min(ROOM, problem.steps[-1] + 1)
    while True:
        sizes = _sizes(r, C, H, int(steps))
        _check_memory(sizes, kind.residual, len(runs))
        if (found := _derivatives(kind, sizes, data, runs, problem.top_k, draws, seed)) is not None:
            break
        steps *= 2
    limit, first, second = found
    known = {"ntk_eigenvalues": apart(np.linalg.eigvalsh(np.nan_to_num(limit.theta))[:, ::-1], problem.top_k)}
    with np.errstate(over="ignore"):  # after a divergence
        laws = {name: law_of_draws(o1**2, second[name], known.get(name, True)) for name, o1 in first.items()}
    laws["gauss_newton_eigenvalues"] = laws["ntk_eigenvalues"]  # of MSE
    return Prediction(laws)


def _check_memory(sizes, residual, T):
    side = sizes.n + sizes.m
    S = (sizes.H + 1) * side if residual else side
    network = (sizes.H + 1) * side * S * 6
    kernels = T * (sizes.r * sizes.C) ** 2
    require_memory(SIDE_BY_SIDE * (2 * network + 8 * kernels), "these laws need")


def _derivatives(kind, sizes, data, runs, top_k, draws, seed) -> tuple[Smooth, dict, dict] | None:
    """(the limit, o' and o'' of each observable, (draws, T, …)); None where there is no room."""
    spaces = 1 if kind.residual else sizes.H + 1
    side = (sizes.H + 1) // spaces * (sizes.n + sizes.m)
    networks, shape = partial(_networks, kind, sizes, data, runs), (SIDE_BY_SIDE, spaces, side, side)
    limits, fits = networks(jnp.zeros((), float), jnp.zeros(shape))
    limit, found = jax.tree.map(lambda a: a[0], limits), []
    for key in jax.random.split(jax.random.key(seed), -(-draws // SIDE_BY_SIDE)):
        noise = jax.random.normal(key, shape, dtype=float)
        (up, room), (down, too) = (networks(jnp.asarray(step, float), noise) for step in (STEP, -STEP))
        if not jnp.all(fits & room & too):
            return None
        found.append(jax.tree.map(np.asarray, _observed(data, limit, *_differences(up, limit, down), top_k)))
    return limit, *jax.tree.map(lambda *parts: np.concatenate(parts)[:draws], *found)


@partial(jax.jit, static_argnums=(0, 1))
def _networks(kind, sizes, data, runs, epsilon, noise) -> tuple[Smooth, Bool[Array, " draws"]]:
    """(networks of these ℓ, whether there was room)"""

    def network(noise):
        measured, fits = _train(kind, sizes, data, runs, _gaussians(sizes, epsilon, noise))
        return _smooth(data, measured), fits

    return jax.vmap(network)(noise)


@jax.jit
def _differences(up, limit, down) -> tuple[Smooth, Smooth]:
    first = jax.tree.map(lambda u, d: (u - d) / (2 * STEP), up, down)
    return first, jax.tree.map(lambda u, o, d: (u - 2 * o + d) / STEP**2, up, limit, down)


def _gaussians(sizes, epsilon, noise) -> Float[Array, "layers rows S"]:
    """Rows of B; of each layer n for what comes from below, m for what comes from above."""
    rows = jnp.arange(noise.shape[-1])
    diagonal = jnp.sqrt(1.0 - epsilon**2 * (rows + 0.5))
    factor = jnp.tril(noise, -1) + noise * jnp.eye(len(rows)) / jnp.sqrt(2.0)
    B = jnp.diag(diagonal) + epsilon * factor
    return B.reshape(sizes.H + 1, sizes.n + sizes.m, -1)


def _train(kind, sizes, data, runs, gaussians) -> tuple[Measured, Bool[Array, ""]]:
    """(one network of these Gaussians at the last step of each of the runs, so many steps long; whether there was room)"""
    from_below, from_above = gaussians[:, : sizes.n], gaussians[:, sizes.n :]
    first, last = data.scales[0] * from_below[0, : sizes.r], data.scales[2] * from_above[-1, : sizes.C]
    weights = Weights(first, data.scales[1], jnp.zeros((sizes.H, sizes.m, sizes.n)), last)
    matrices, combine = unmet(from_below[1:], from_above[:-1]), None
    if sizes.new < sizes.r:
        (matrices, *_), combine = _forward(kind, data, weights, matrices, None), _combinations(sizes)
    step = partial(_step, kind, data, combine)
    start = State(jnp.zeros((), int), weights, jax.tree.map(jnp.zeros_like, weights), matrices)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(step, start)[1])

    def run(state, length):
        return jax.lax.fori_loop(0, length, lambda _, carry: step(carry[0]), (state, nothing))

    end, measured = jax.lax.scan(run, start, runs)
    return measured, has_room(end.matrices, sizes.new, sizes.C)


def _combinations(sizes) -> Float[Array, "new r"]:
    """Of r fields that bring so many new directions: any in general position bring them too."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(sizes.new, sizes.r)) / np.sqrt(sizes.r))


def _step(kind, data, combine, state) -> tuple[State, Measured]:
    """(after a step of gradient descent, what there was before it)"""
    weights = state.weights
    matrices, h, below = _forward(kind, data, weights, state.matrices, combine)
    matrices, g, above = _backward(kind, data, weights, matrices)
    effective = data.space.products(h[-1], weights.last) / data.richness
    kernels = (jnp.einsum("lis,ljs->lij", fields, fields) for fields in (h, g))
    force = _force(kind, data, state.step, effective, (h, below), (g, above))
    weights, velocity = moved(kind, data, state.step, weights, state.velocity, force)
    return State(state.step + 1, weights, velocity, matrices), Measured(effective, *kernels)


def _forward(kind, data, weights, matrices, combine) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, h of each direction of the inputs (layers, r, S), coordinates of those that they met (H, r, n))"""

    def through(h, matrix_and_trained):
        matrix, trained = matrix_and_trained
        matrix, out, coordinates = send(data.space, matrix, h, weights.left, trained, combine)
        return kind.residual * h + out, (matrix, h, coordinates)

    h, (matrices, behind, coordinates) = jax.lax.scan(through, weights.first, (matrices, weights.trained))
    return matrices, jnp.concatenate([behind, h[None]]), coordinates


def _backward(kind, data, weights, matrices) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, g of each output (layers, C, S), coordinates of those that their transposes met (H, C, m))"""

    def through(g, matrix_and_trained):
        matrix, trained = matrix_and_trained
        matrix, out, coordinates = send_back(data.space, matrix, g, weights.left, trained)
        return kind.residual * g + out, (matrix, g, coordinates)

    g, (matrices, before, above) = jax.lax.scan(through, weights.last, (matrices, weights.trained), reverse=True)
    return matrices, jnp.concatenate([g[None], before]), above


def _force(kind, data, step, effective, forward, backward) -> Weights:
    """−γ²∇L over γ0, M_ac = γ0 Σ_p π_p x̂_pa Δ_pc being the error signal of direction a."""
    (h, below), (g, above) = forward, backward
    share = data.shares[step % len(data.shares)]
    errors = -LOSSES[kind.loss].gradient(data.inputs @ effective, data.targets)
    M = data.richness * data.inputs.T @ (share[:, None] * errors)
    return Weights(
        first=data.rates[0] * M @ g[0],
        left=jnp.zeros(()),
        trained=data.rates[1] * jnp.einsum("ac,lan,lcm->lmn", M, below, above),
        last=data.rates[2] * M.T @ h[-1],
    )


def _smooth(data, measured) -> Smooth:
    """Θ = Σ_matrices a²r Φ below ∘ G above; the columns of x̂ are orthogonal, and √(x̂ᵀx̂/P) stands for x̂."""
    (_, r), C = data.inputs.shape, data.targets.shape[1]
    x = jnp.linalg.norm(data.inputs, axis=0) / jnp.sqrt(len(data.inputs))
    features = x[:, None] * measured.features * x
    first = jnp.einsum("ab,tce->tacbe", jnp.diag(x * x), measured.gradients[:, 0])
    between = jnp.einsum("tlab,tlce->tacbe", features[:, :-1], measured.gradients[:, 1:])
    last = jnp.einsum("tab,ce->tacbe", features[:, -1], jnp.eye(C))
    theta = data.rates[0] * first + data.rates[1] * between + data.rates[2] * last
    return Smooth(measured.weights, theta.reshape(-1, r * C, r * C))


@partial(jax.jit, static_argnums=4)
def _observed(data, limit, first, second, top_k) -> tuple[dict, dict]:
    """(o', o'') of every observable, of each draw and measured step."""

    def observe(at):
        return {
            "loss": LOSSES["mse"].mean(data.inputs @ at.weights, data.targets),
            "ntk_eigenvalues": leading_eigenvalues(at.theta, top_k),
        }

    def derivatives(o, o1, o2):
        return second_order(lambda h: observe(jax.tree.map(lambda a, b, c: a + h * b + 0.5 * h * h * c, o, o1, o2)))

    def at_a_step(args):
        return jax.vmap(derivatives, (None, 0, 0))(*args)

    by_step = jax.tree.map(lambda a: a.swapaxes(0, 1), (first, second))
    return jax.tree.map(lambda a: a.swapaxes(0, 1), jax.lax.map(at_a_step, (limit, *by_step)))
