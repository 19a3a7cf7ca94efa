"""The kernel limit of multilayer perceptrons: in NTP, and between NTP and μP, training is linear in function space.

    f ← f − η0 v,    v ← β v + Θ[:, batch] (f − y)[batch]/|batch|        Θ = γ² JJᵀ, of size P × P, at its initial value

for each output, in discrete time, with heavy-ball momentum and minibatches.  Θ and the covariance K/γ0² of f(0) come
analytically from neural-tangents (Jacot et al. 2018; Lee et al. 2018).  The residual part of the Hessian vanishes, so its
eigenvalues are those of Θ/P and stay what they are.

In NTP f(0) stays random.  ``solve`` conditions on a given one (0 if none is given), ``loss_law`` has the law over
initialisations.  Between NTP and μP f(0) vanishes.
"""

import warnings
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits import neural_tangents_compat
from limits.parametrization import output_exponent
from limits.precision import in_float64
from limits.problem import Problem
from limits.trajectory import Trajectory

QUADRATURE_DEGREE = 100  # of the activation without a closed form: six digits of tanh's kernels, measured against 400
QUADRATURE_NUMBERS = 2**24  # that are held at once
PIECEWISE_LINEAR = ("linear", "relu")  # tr R = 0 at every width; else it stays random in the limit


def solve(
    problem: Problem, *, depth: int, activation: str, initial_outputs: Float[np.ndarray, "P C"] | None = None
) -> Trajectory:
    """The limit of ``mlp(problem, width, depth, activation)`` that starts at these outputs.

    All observables, but the Hessian's trace only for linear and ReLU networks: elsewhere its residual part stays random.
    Raises ValueError for μP and other parametrizations without a kernel limit, for weight decay (the kernel then shrinks),
    for an unknown activation, and for an f(0) where it must vanish.
    """
    _check(problem)
    start = _start(problem, initial_outputs)
    _, theta = kernels(problem, depth=depth, activation=activation)
    errors = _descend(problem, theta, start - problem.targets)
    return Trajectory(problem.steps, _observables(problem, theta, errors, activation))


def loss_law(problem: Problem, *, depth: int, activation: str) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """(mean, standard deviation) over initialisations of the loss at the measured steps, in closed form.

    f(0) ~ N(0, K/γ0²), independent outputs; f − y stays linear in it.  Raises ValueError as ``solve``, and where f(0)
    vanishes.
    """
    _check(problem)
    if output_exponent(problem.scaling()) > 0:
        raise ValueError(f"the limit of {problem.scaling().name} does not depend on f(0): its loss has no spread")
    nngp, theta = kernels(problem, depth=depth, activation=activation)
    values, vectors = np.linalg.eigh(nngp)
    spread = vectors * np.sqrt(np.clip(values, 0, None)) / problem.richness  # f(0) = spread · N(0, 1)
    P, C = problem.targets.shape
    columns = _descend(problem, theta, np.concatenate([-problem.targets, spread], axis=1))
    offset, spread = columns[..., :C], columns[..., C:]
    covariance = np.einsum("tpi,tqi->tpq", spread, spread)
    mean = np.sum(offset**2, (1, 2)) + C * np.trace(covariance, axis1=1, axis2=2)
    variance = 2 * C * np.sum(covariance**2, (1, 2)) + 4 * np.einsum("tpc,tpq,tqc->t", offset, covariance, offset)
    return mean / (2 * P), np.sqrt(variance) / (2 * P)


def kernels(problem: Problem, *, depth: int, activation: str) -> tuple[Float[np.ndarray, "P P"], Float[np.ndarray, "P P"]]:
    """(K, Θ) at γ0 = 1: the covariance of f(0) and the neural tangent kernel of one output.

    Weights N(0, 1), factors 1/√fan-in in front of every matrix, no biases.  Raises ValueError for an unknown activation.
    """
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1")
    return _kernels(problem.inputs.tobytes(), problem.inputs.shape, depth, activation)


@lru_cache(maxsize=16)
@in_float64
def _kernels(inputs: bytes, shape: tuple[int, int], depth: int, activation: str):
    stax = neural_tangents_compat.load().stax
    activations = {
        "linear": stax.Identity,
        "relu": stax.Relu,
        "erf": stax.Erf,
        "gelu": stax.Gelu,
        "tanh": lambda: stax.ElementwiseNumerical(jnp.tanh, QUADRATURE_DEGREE),
    }
    if activation not in activations:
        raise ValueError(f"no kernel limit for activation {activation!r}; known: {', '.join(activations)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a quadrature is one
        hidden = [layer for _ in range(depth) for layer in (stax.Dense(1), activations[activation]())]
    _, _, kernel_of = stax.serial(*hidden, stax.Dense(1))
    x = jnp.asarray(np.frombuffer(inputs).reshape(shape))
    numbers = len(x) ** 2 * (QUADRATURE_DEGREE**2 if activation == "tanh" else 1)
    blocks = jnp.array_split(x, min(len(x), -(-numbers // QUADRATURE_NUMBERS)))
    found = [kernel_of(block, x, ("nngp", "ntk")) for block in blocks]
    return tuple(np.concatenate([getattr(one, name) for one in found]) for name in ("nngp", "ntk"))


@in_float64
def _descend(problem: Problem, theta: Float[np.ndarray, "P P"], start: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "T P n"]:
    """f − y at the measured steps, for every column of its start: the recursion is linear."""
    batches = np.arange(problem.num_samples)[None] if problem.batches is None else problem.batches
    states = _recursion(
        jnp.asarray(theta), jnp.asarray(start), jnp.asarray(batches), problem.learning_rate, problem.momentum, problem.num_steps
    )
    return np.asarray(states)[problem.steps]


@partial(jax.jit, static_argnames="num_steps")
def _recursion(theta: Array, start: Array, batches: Array, eta0, momentum, num_steps: int) -> Array:
    def step(state, t):
        error, velocity = state
        batch = batches[t % len(batches)]
        velocity = momentum * velocity + theta[:, batch] @ error[batch] / batch.size
        error = error - eta0 * velocity
        return (error, velocity), error

    _, later = jax.lax.scan(step, (start, jnp.zeros_like(start)), jnp.arange(num_steps))
    return jnp.concatenate([start[None], later])


def _observables(problem, theta, errors, activation):
    P, C = problem.targets.shape
    T, k = len(problem.steps), problem.top_k
    values = np.repeat(np.linalg.eigvalsh(theta)[::-1] / P, C)
    top = np.tile(np.pad(values, (0, k))[:k], (T, 1))
    pushed = theta @ errors  # Θ(f − y)
    with np.errstate(all="ignore"):  # diverged errors, and no error at all
        loss = np.sum(errors**2, (1, 2)) / (2 * P)
        along_gradient = np.sum(pushed**2, (1, 2)) / np.sum(errors * pushed, (1, 2)) / P
    observables = {
        "loss": loss,
        "hessian_eigenvalues": top,
        "hessian_min": np.zeros(T),
        "gauss_newton_eigenvalues": top.copy(),
        "residual_eigenvalues": np.zeros((T, 2)),
        "ntk_eigenvalues": top.copy(),
        "directional_sharpness": along_gradient,
    }
    if activation in PIECEWISE_LINEAR:
        observables["hessian_trace"] = np.full(T, C * np.trace(theta) / P)
    for name, values in observables.items():
        if name != "loss":
            values[~np.isfinite(observables["loss"])] = np.nan
    return observables


def _check(problem):
    if output_exponent(problem.scaling()) >= 0.5:
        raise ValueError(f"{problem.scaling().name} has no kernel limit: features move")
    if problem.weight_decay:
        raise ValueError("weight decay shrinks the kernel: the kernel limit wants weight decay 0")


def _start(problem, initial_outputs):
    if initial_outputs is None:
        return np.zeros_like(problem.targets)
    if output_exponent(problem.scaling()) > 0:
        raise ValueError(f"in the limit of {problem.scaling().name} f(0) = 0; it can be given in NTP only")
    outputs = np.asarray(initial_outputs, np.float64)
    if outputs.shape != problem.targets.shape:
        raise ValueError(f"initial outputs of shape {outputs.shape}: wanted {problem.targets.shape}, like the targets")
    return outputs
