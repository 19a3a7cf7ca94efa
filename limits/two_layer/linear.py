"""The two-layer linear network: exact training dynamics at every width, N = ∞ included, without sampling a network.

    f(x) = (1/γ) · 1/√(ND) · Vᵀ Eᵀ x,    E (D, N), V (N, C), entries N(0,1) at step 0

With Z = [E ; Vᵀ], n = D + C rows, gradient descent multiplies Z from the left (by a matrix made of G = ∂L/∂W and numbers),
so that Z_t = A_t Z_0 with an n × n *propagator* A_t, and everything depends on Z_0 through its Gram matrix S_0 = Z_0 Z_0ᵀ/N:

    W = N s S_EV,   S_t = A_t S_0 A_tᵀ,   s = 1/(γ√(ND)),   W the effective weights (f = XW)

This holds in discrete time for momentum, weight decay, minibatches and several outputs, at every N.  Writing ε = N^{a−1/2}
(1 in μP, N^{-1/2} in NTP), A = d + εΠ with a number d (1 without weight decay), and S_0 = 1 + εX_0, the width drops out:

    W_t = [d²X_0 + d(ΠS_0 + S_0Πᵀ) + εΠS_0Πᵀ]_EV / (γ0√D)
    Ψ ← βΨ + (γ0/√D) A(G)(d + εΠ) + λΠ,     m ← βm + λd,       A(G) = [[0, G], [Gᵀ, 0]]
    Π ← Π − ηΨ,                             d ← d − ηm                            (Nesterov: force + βΨ for Ψ, so too m)

One recursion is the finite network (ε and X_0 its own), the mean-field limit (ε = 1, X_0 = 0) and the kernel limit
(ε = 0, where only f(0) is left of X_0).  Source: Noci et al. 2024, two-layer linear analysis; closure in the Gram matrix,
checked in the tests against directly trained networks to 1e-10.

**NTP.**  The limit's loss is random: f(0) stays of order one.  ``solve`` conditions on a given f(0) (0 if none is given);
``loss_law`` has the law over initialisations.  A comparison subtracts from each network the limit *with that network's f(0)*.
A naive one, which subtracts one curve from all networks, measures the spread of f(0) itself, which no width reduces:
exponent 0.  Curvature does not depend on f(0) in that limit.
"""

from functools import partial
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits.coordinates import Coordinates, coordinates
from limits.descent import Descent, descent, follow, heavy_ball
from limits.exponents.parametrization import fan_in_multiplier, laziness
from limits.losses import LOSSES
from limits.machine import compiled_soon, computing, in_float64
from limits.problem import Problem, given_outputs
from limits.theories import insist, insist_on_outputs, unknown_to_all
from limits.trajectory import Trajectory
from limits.two_layer import linear_curvature as curvature
from limits.two_layer.linear_curvature import OrderParameters


class Scales(NamedTuple):
    """The numbers of the recursion: ε, γ0/√D, D."""

    epsilon: Float[Array, ""]
    coupling: Float[Array, ""]
    num_inputs: Float[Array, ""]


class Propagator(NamedTuple):
    """(d + εΠ) Z_0 is Z_t, or, with m for d and Ψ for Π, the momentum buffer."""

    d: Float[Array, ""]
    Pi: Float[Array, "n n"]


def solve(
    problem: Problem,
    *,
    width: int | None = None,
    gram: Float[np.ndarray, "n n"] | None = None,
    initial_outputs: Float[np.ndarray, "P C"] | None = None,
) -> Trajectory:
    """The exact trajectory, at N = ∞ or, given ``width`` and ``gram`` S_0 = Z_0Z_0ᵀ/N (D+C, D+C), of a finite network.

    ``initial_outputs``: f(0) of the NTP limit, in the span of the inputs; 0 if not given.  Cost does not depend on width.
    Raises ValueError for a width without a Gram matrix, a Gram matrix that is not one, or an f(0) where it must vanish.
    """
    states = evolve(problem, width=width, gram=gram, initial_outputs=initial_outputs)
    return _measured(problem, states, width)


def refuses(problem: Problem) -> str | None:
    """Why this is not the theory of the problem: another network, loss, optimiser or parametrization."""
    if refusal := unknown_to_all(problem):
        return refusal
    model = problem.network
    one_layer = (model.family, model.architecture, model.depth) == ("perceptron", "plain", 1)
    if one_layer and model.nonlinearity.linear and LOSSES[problem.loss].quadratic and problem.trained == "all":
        return None
    return f"{problem.model}, {problem.loss}, {problem.trained} trained: this theory is of linear2, mse, all"


def flow(
    problem: Problem,
    *,
    width: int | None = None,
    gram: Float[np.ndarray, "n n"] | None = None,
    initial_outputs: Float[np.ndarray, "P C"] | None = None,
    rtol: float = 1e-10,
) -> Trajectory:
    """Gradient flow, dZ/dτ = −γ²∇L − λZ, at the times τ = η0 · measured steps (adaptive 8th order Runge-Kutta, diffrax).

    Arguments as in ``solve``.  Raises ValueError for momentum, minibatches and schedules: the flow has no counterpart.
    """
    if problem.momentum or problem.batches is not None or problem.warmup_steps or problem.schedule != "constant":
        raise ValueError("gradient flow has neither momentum, minibatches, warm-up nor a schedule")
    with computing("float64"):
        data, scales, X0 = _setup(problem, width, gram, initial_outputs)
        times = jnp.asarray(problem.learning_rate * problem.steps, float)
        decay = jnp.asarray(problem.weight_decay, float)
        return _measured(problem, _flow(data, scales, X0, decay, times, rtol), width)


@in_float64
def evolve(
    problem: Problem,
    *,
    width: int | None = None,
    gram: Float[np.ndarray, "n n"] | None = None,
    initial_outputs: Float[np.ndarray, "P C"] | None = None,
) -> OrderParameters:
    """The order parameters at the measured steps (NumPy arrays, leading axis T), in the basis of ``coordinates``.

    Arguments as in ``solve``.
    """
    data, scales, X0 = _setup(problem, width, gram, initial_outputs)
    return jax.tree.map(np.asarray, _descended(data, scales, X0, descent(problem)))


@in_float64
def sample_gram(key: Array, problem: Problem, *, width: int) -> Float[np.ndarray, "n n"]:
    """S_0 = ZZᵀ/N (D+C, D+C) of one random network of that width, in O((D+C)³) whatever the width.

    Bartlett: ZZᵀ = LLᵀ, L lower triangular with N(0,1) below the diagonal and L_ii² ~ χ²(N − i).  Below n = D + C columns
    Z itself is no larger than L and is drawn instead.
    """
    if width < 1:
        raise ValueError(f"width {width} must be at least 1")
    n = problem.num_inputs + problem.num_outputs
    if width < n:
        Z = jax.random.normal(key, (n, width), dtype=float)
        return np.asarray(Z @ Z.T / width)
    below, diagonal = jax.random.split(key)
    L = jnp.tril(jax.random.normal(below, (n, n), dtype=float), -1)
    chi = jnp.sqrt(jax.random.chisquare(diagonal, width - jnp.arange(n, dtype=float)))
    L = L + jnp.diag(chi)
    return np.asarray(L @ L.T / width)


@in_float64
def loss_law(problem: Problem) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """(mean, standard deviation) over initialisations of the NTP limit's loss at the measured steps, in closed form.

    W_0 has entries N(0, 1/(γ0²D)) and W_t is affine in it, so the loss is a quadratic form of a Gaussian.
    Raises ValueError for other parametrizations, whose limit is not random.
    """
    insist_on_outputs(problem)
    mean, deviation = _loss_law(*_setup(problem, None, None, None), descent(problem))
    return np.asarray(mean), np.asarray(deviation)


@jax.jit
def _loss_law(data, scales, X0, descent):
    r, C = data.optimum.shape

    def deviation(W0):  # √K(W_t − W*), (T, r, C): its square is twice the excess loss
        start = X0.at[:r, r:].set(W0 * scales.coupling * scales.num_inputs)  # X_EV = γ0√D W
        states = descend(data, scales, start, descent)
        return jnp.sqrt(data.kernel)[:, None] * (states.weights - data.optimum)

    # all outputs share one propagator: the response of the first to each of its r initial weights
    first = jnp.eye(r)[:, :, None] * jnp.eye(1, C)
    offset, response = jax.vmap(lambda W0: jax.jvp(deviation, (jnp.zeros((r, C)),), (W0,)), out_axes=(None, 0))(first)
    response = response[..., 0]
    variance = 1.0 / (scales.coupling * scales.num_inputs) ** 2  # 1/(γ0²D)
    covariance = variance * jnp.einsum("ita,itb->tab", response, response)
    mean = data.floor + 0.5 * (jnp.sum(offset**2, (1, 2)) + C * jnp.trace(covariance, axis1=1, axis2=2))
    spread = 0.5 * C * jnp.sum(covariance**2, (1, 2)) + jnp.einsum("tac,tab,tbc->t", offset, covariance, offset)
    return mean, jnp.sqrt(spread)


def scales(problem: Problem, width: float) -> Scales:
    """The numbers of the recursion at a width (``math.inf`` for the limit)."""
    return Scales(
        epsilon=jnp.asarray(laziness(problem.scaling(), width), float),
        coupling=jnp.asarray(problem.richness * fan_in_multiplier(problem.num_inputs), float),
        num_inputs=jnp.asarray(problem.num_inputs, float),
    )


def _setup(problem, width, gram, initial_outputs):
    """(Coordinates, Scales, X_0) with X_0 = (S_0 − 1)/ε in the coordinates' basis."""
    insist(refuses(problem))
    data, numbers = coordinates(problem), scales(problem, inf if width is None else width)
    n = sum(data.optimum.shape)
    if (width is None) != (gram is None):
        raise ValueError("a finite network needs both its width and its initial Gram matrix; the limit neither")
    if gram is not None:
        if initial_outputs is not None:
            raise ValueError("a Gram matrix already fixes the initial outputs")
        turn = jax.scipy.linalg.block_diag(data.basis, jnp.eye(problem.num_outputs))
        return data, numbers, (turn.T @ _checked_gram(problem, width, gram) @ turn - jnp.eye(n)) / numbers.epsilon
    X0 = jnp.zeros((n, n))
    if initial_outputs is None:
        return data, numbers, X0
    cross = numbers.coupling * numbers.num_inputs * _weights_of(problem, data, initial_outputs)
    r = len(cross)
    return data, numbers, X0.at[:r, r:].set(cross).at[r:, :r].set(cross.T)


def _checked_gram(problem, width, gram):
    n = problem.num_inputs + problem.num_outputs
    gram = np.asarray(gram, np.float64)
    if width < 1:
        raise ValueError(f"width {width} must be at least 1")
    if gram.shape != (n, n) or not np.allclose(gram, gram.T, atol=1e-10 * np.abs(gram).max()):
        raise ValueError(f"the Gram matrix must be symmetric and of shape ({n}, {n}), D + C a side; got {gram.shape}")
    return jnp.asarray(gram)


def _weights_of(problem, data, outputs):
    """W (r, C) with XW = f(0)."""
    outputs = given_outputs(problem, outputs)
    weights = np.asarray(data.inputs).T @ outputs / np.asarray(data.kernel)[:, None] / problem.num_samples
    if not np.allclose(np.asarray(data.inputs) @ weights, outputs, atol=1e-6 * (1 + np.abs(outputs).max())):
        raise ValueError("these initial outputs are not linear in the inputs: no linear network has them")
    return jnp.asarray(weights)


@jax.jit
def descend(data: Coordinates, scales: Scales, X0: Float[Array, "n n"], descent: Descent) -> OrderParameters:
    """Gradient descent from S_0 = 1 + εX_0; order parameters at the measured steps."""
    start = _start(X0)
    step = partial(_step, data, scales, X0, descent)
    propagators = follow(descent, step, (start, jax.tree.map(jnp.zeros_like, start)), lambda state: state[0])
    return jax.vmap(partial(order_parameters, data, scales, X0))(propagators)


_descended = compiled_soon()(descend)


def _start(X0):
    return Propagator(jnp.ones(()), jnp.zeros_like(X0))


def _step(data, scales, X0, descent, state, rate, batch):
    """One step of gradient descent on the propagator; ``batch``: sample indices, None for all."""
    at, velocity = state
    W = _effective_weights(data, scales, X0, at)
    if batch is None:
        G = data.kernel[:, None] * (W - data.optimum)
    else:
        x, y = data.inputs[batch], data.targets[batch]
        G = x.T @ (x @ W - y) / len(batch)
    decay = descent.weight_decay
    gradient = Propagator(decay * at.d, scales.coupling * _apply_A(G, at, scales) + decay * at.Pi)
    return heavy_ball(at, velocity, gradient, rate, descent.momentum, nesterov=descent.nesterov)


def _apply_A(G, state, scales):
    """A(G)(d + εΠ), never forming A: its blocks have C rows or columns."""
    r, C = G.shape
    rows_E = state.d * jnp.eye(r, r + C) + scales.epsilon * state.Pi[:r]
    rows_V = state.d * jnp.eye(C, r + C, k=r) + scales.epsilon * state.Pi[r:]
    return jnp.concatenate([G @ rows_V, G.T @ rows_E])


def _effective_weights(data, scales, X0, state):
    """W = [d²X_0 + d(ΠS_0 + S_0Πᵀ) + εΠS_0Πᵀ]_EV/(γ0√D) in O(n²C)."""
    r, _ = data.optimum.shape
    S0_E, S0_V = _gram_rows(X0, scales, slice(None, r)), _gram_rows(X0, scales, slice(r, None))
    Pi_E, Pi_V = state.Pi[:r], state.Pi[r:]
    Y = jnp.concatenate([S0_E, S0_V]) @ Pi_V.T
    cross = state.d**2 * X0[:r, r:] + state.d * (Pi_E @ S0_V.T + Y[:r]) + scales.epsilon * Pi_E @ Y
    return cross / (scales.coupling * scales.num_inputs)


def _gram_rows(X0, scales, rows):
    return jnp.eye(len(X0))[rows] + scales.epsilon * X0[rows]


def order_parameters(data, scales, X0, state: Propagator) -> OrderParameters:
    """What the curvature needs, on all samples, from the propagator."""
    W = _effective_weights(data, scales, X0, state)
    A = state.d * jnp.eye(len(X0)) + scales.epsilon * state.Pi
    excess = 0.5 * jnp.sum(data.kernel[:, None] * (W - data.optimum) ** 2)
    return OrderParameters(
        gram=A @ (jnp.eye(len(X0)) + scales.epsilon * X0) @ A.T,
        weights=W,
        gradient=data.kernel[:, None] * (W - data.optimum),
        kernel=data.kernel,
        residual_scale=scales.epsilon * scales.coupling,
        num_inputs=scales.num_inputs,
        loss=data.floor + excess,
    )


@jax.jit
def _flow(data, scales, X0, decay, times, rtol) -> OrderParameters:
    """Gradient flow of the propagator at these τ."""
    import diffrax  # takes half a second, and gradient flow alone needs it

    def velocity(_, at, __):
        G = data.kernel[:, None] * (_effective_weights(data, scales, X0, at) - data.optimum)
        return Propagator(-decay * at.d, -scales.coupling * _apply_A(G, at, scales) - decay * at.Pi)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity), diffrax.Dopri8(), t0=0.0, t1=times[-1], dt0=None,
        y0=_start(X0), saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol * 1e-2), max_steps=1_000_000,
    )  # fmt: skip
    return jax.vmap(partial(order_parameters, data, scales, X0))(solution.ys)


@in_float64
def _measured(problem, states, width) -> Trajectory:
    n = states.gram.shape[-1]
    columns = n if width is None else min(width, n)
    spare = problem.top_k if width is None else min(problem.top_k, width - columns)
    observables = _measure_all(states, columns, spare, problem.top_k)
    return Trajectory(problem.steps, {name: np.asarray(values) for name, values in observables.items()})


@compiled_soon(static_argnums=(1, 2, 3))
def _measure_all(states, columns, spare, top_k):
    return jax.lax.map(partial(curvature.measure, columns=columns, spare=spare, top_k=top_k), states)
