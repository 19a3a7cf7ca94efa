"""The kernel limit: in NTP, and between NTP and μP, a network of any architecture moves in function space by its kernel.

    f ← f − η v,    v ← β v + Θ[:, batch] ∂ℓ/∂f[batch]/|batch|          Θ = γ² JJᵀ, of size P × P, at its initial value

for each output, in discrete time, with momentum (heavy ball or Nesterov), minibatches, warm-up and schedule of
``limits.problem``; ℓ the loss of one sample (``limits.losses``).  For MSE this is linear in f.  Θ and the covariance K/γ0² of
f(0) are analytic (``limits.kernel.analytic``).  Powers of the depth stand in them as the parametrization says, each role's
learning rate included.  A network of which only the readout is trained has such a limit in μP too, for its features cannot
move.

The residual part of the Hessian vanishes, so its eigenvalues are those of Bᵀ(Θ ⊗ 1)B/P with BBᵀ = ∂²ℓ/∂f²: for MSE those of
Θ/P, which stay what they are; for cross-entropy they move with f, while Θ stays.

In NTP f(0) stays random.  ``solve`` conditions on a given one (0 if none is given), ``loss_law`` has the law over
initialisations.  Between NTP and μP f(0) vanishes.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh

from limits.descent import descent, follow, heavy_ball
from limits.exponents.parametrization import factors, gauge, output_exponent
from limits.kernel import analytic, neural_tangents_compat
from limits.losses import LOSSES
from limits.machine import in_float64
from limits.problem import Problem, given_outputs
from limits.spectra import largest
from limits.theories import insist, insist_on_outputs, unknown_to_all
from limits.trajectory import Trajectory

DENSE_ROWS = 500  # up to this size a matrix is decomposed, beyond it Lanczos (ARPACK, to rounding) takes over
ROUNDING = 1e-12  # of the largest eigenvalue: two that are no farther apart are one, repeated
LEFT_OPEN = {"hessian_trace": "that of its residual part stays random at every width"}
DRAWS = 1024  # of f(0), for the law of the cross-entropy


def solve(problem: Problem, *, initial_outputs: Float[np.ndarray, "P C"] | None = None) -> Trajectory:
    """The limit of ``problem.network`` that starts at these outputs.

    All observables, but the Hessian's trace only for linear and ReLU networks and where only the readout is trained:
    elsewhere its residual part stays random.  Raises ValueError for μP and other parametrizations without a kernel limit,
    for models without analytic kernels, for weight decay (the kernel then shrinks) and for an f(0) where it must vanish;
    MemoryError for more samples than fit.
    """
    insist(refuses(problem))
    start = np.zeros_like(problem.targets) if initial_outputs is None else given_outputs(problem, initial_outputs)
    _, theta = kernels(problem)
    return Trajectory(problem.steps, _observables(problem, theta, *_descend(problem, theta, start)), left_open=LEFT_OPEN)


def loss_law(problem: Problem) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """(mean, standard deviation) over initialisations of the loss at the measured steps.

    f(0) ~ N(0, K/γ0²), independent outputs.  For MSE in closed form: f − y stays linear in it.  Cross-entropy has none: the
    mean and standard deviation of DRAWS networks, the same ones at every call; their standard errors are 1/√DRAWS = 3 % and
    about 2 % of the standard deviation.  Raises as ``solve``, and ValueError where f(0) vanishes.
    """
    insist(refuses(problem))
    insist_on_outputs(problem)
    nngp, theta = kernels(problem)
    values, vectors = np.linalg.eigh(nngp)
    spread = vectors * np.sqrt(np.clip(values, 0, None)) / problem.richness  # f(0) = spread · N(0, 1)
    if LOSSES[problem.loss].quadratic:
        return _quadratic_law(problem, theta, spread)
    draws = np.random.default_rng(0).normal(size=(DRAWS, *problem.targets.shape))
    losses = _run(problem, theta, spread @ draws, problem.targets, _losses)
    return losses.mean(axis=1), losses.std(axis=1, ddof=1)


def kernels(problem: Problem) -> tuple[Float[np.ndarray, "P P"], Float[np.ndarray, "P P"]]:
    """(K, Θ) of ``problem.network`` at γ0 = 1: the covariance of f(0) and the neural tangent kernel of one output.

    Weights N(0, 1), no biases.  Raises ValueError for a parametrization with other powers of the width than those between
    NTP and μP and for models without analytic kernels; MemoryError for more samples than fit.
    """
    output_exponent(problem.scaling())  # a width-independent kernel, or ValueError
    model, network = problem.network, _layers(problem)
    of_depth = factors(gauge(problem.scaling()), 1, model.depth, block_size=model.block_size)
    if problem.trained == "readout":
        of_depth = {
            role: factor if role == "readout" else replace(factor, learning_rate=0.0) for role, factor in of_depth.items()
        }
    return analytic.kernels(network, problem.inputs, of_depth)


def refuses(problem: Problem) -> str | None:
    """Why there is no kernel limit: see ``solve``; ImportError without neural-tangents."""
    if refusal := unknown_to_all(problem):
        return refusal
    if output_exponent(problem.scaling()) >= 0.5 and problem.trained == "all":
        return f"{problem.scaling().name} has no kernel limit: features move"
    if problem.weight_decay:
        return "weight decay shrinks the kernel: the kernel limit wants weight decay 0"
    try:
        _layers(problem)
    except ValueError as refusal:
        return str(refusal)
    neural_tangents_compat.load()  # what is installed may be broken
    return None


def _layers(problem):
    model = problem.network
    return analytic.layers(model, problem.image if model.reads == "images" else None)


def _descend(problem, theta, start):
    """(outputs (T, P, C), targets) at the measured steps; for MSE f − y and 0, so that small errors keep their digits."""
    targets = problem.targets
    if LOSSES[problem.loss].quadratic:
        start, targets = start - targets, np.zeros_like(targets)
    return _run(problem, theta, start, targets, _outputs), targets


def _quadratic_law(problem, theta, spread):
    """As ``loss_law``, from the columns f − y of a network that starts at 0 and the P columns that f(0) is made of."""
    start = np.concatenate([-problem.targets, spread], axis=1)
    mean, variance = _run(problem, theta, start, np.zeros_like(start), _moments)
    return mean / (2 * len(start)), np.sqrt(variance) / (2 * len(start))


def _outputs(loss, outputs, targets):
    return outputs


def _losses(loss, outputs, targets):
    """(draws,) from outputs (draws, P, C)"""
    return jnp.mean(loss.value(outputs, targets), axis=-1)


def _moments(loss, columns, targets):
    """Mean and variance of Σ (f − y)², Gaussian of mean ``offset`` and in each output of covariance ``spread spreadᵀ``."""
    offset, spread = columns[:, : -len(columns)], columns[:, -len(columns) :]
    C = offset.shape[1]
    mean = jnp.sum(offset**2) + C * jnp.sum(spread**2)
    return mean, 2 * C * jnp.sum((spread.T @ spread) ** 2) + 4 * jnp.sum((spread.T @ offset) ** 2)


@in_float64
def _run(problem: Problem, theta, start, targets, observe):
    """``observe(loss, outputs, targets)`` at the measured steps, stacked; outputs start at ``start`` (…, P, C)."""
    static = {"loss": LOSSES[problem.loss], "observe": observe}
    seen = _recursion(*map(jnp.asarray, (theta, start, targets)), descent(problem), **static)
    return jax.tree.map(np.asarray, seen)


@partial(jax.jit, static_argnames=("loss", "observe"))
def _recursion(theta, start, targets, descent, *, loss, observe):
    def step(state, rate, batch):
        outputs, velocity = state
        rows = slice(None) if batch is None else batch
        slope = loss.gradient(outputs[..., rows, :], targets[rows])
        push = theta[:, rows] @ slope / slope.shape[-2]
        return heavy_ball(outputs, velocity, push, rate, descent.momentum, nesterov=descent.nesterov)

    return follow(descent, step, (start, jnp.zeros_like(start)), lambda state: observe(loss, state[0], targets))


@in_float64
def _observables(problem, theta, outputs, targets):
    loss, (T, P, C), k, outputs = LOSSES[problem.loss], outputs.shape, problem.top_k, jnp.asarray(outputs)
    slope, root = np.asarray(loss.gradient(outputs, targets)), np.asarray(loss.root(outputs))
    mean = np.asarray(loss.value(outputs, targets).mean(axis=1))
    with np.errstate(all="ignore"):  # diverged outputs, and no gradient at all
        along_gradient = _along_gradient(theta, slope, root)
    ntk = np.tile(np.repeat(_leading(theta, np.ones((P, 1, 1)), k), C)[:k], (T, 1))
    curvature = ntk if loss.quadratic else np.stack([_leading(theta, at_step, k) for at_step in root])
    observables = {
        "loss": mean,
        "hessian_eigenvalues": curvature,
        "hessian_min": np.zeros(T),
        "gauss_newton_eigenvalues": curvature,
        "residual_eigenvalues": np.zeros((T, 2)),
        "ntk_eigenvalues": ntk,
        "directional_sharpness": along_gradient,
    }
    if problem.network.nonlinearity.piecewise_linear or problem.trained == "readout":  # tr R = 0 at every width
        observables["hessian_trace"] = np.einsum("pp,tpce->t", theta, root**2) / P
    return {name: values if name == "loss" else _until_divergence(mean, values) for name, values in observables.items()}


def _along_gradient(theta, slope, root):
    """|Bᵀ Θ s|²/(P sᵀ Θ s) with s = ∂ℓ/∂f"""
    pushed = theta @ slope
    return np.sum(np.einsum("tpce,tpc->tpe", root, pushed) ** 2, (1, 2)) / np.sum(slope * pushed, (1, 2)) / len(theta)


def _until_divergence(loss, values):
    return np.where(np.isfinite(loss).reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def _leading(theta: Float[np.ndarray, "P P"], root: Float[np.ndarray, "P C C"], k: int) -> Float[np.ndarray, " k"]:
    """The k largest eigenvalues of Bᵀ(Θ ⊗ 1)B/P, zeros beyond its PC; not numbers where B is not finite."""
    unit = np.abs(root).max()  # in units of which nothing underflows
    if not 0 < unit < np.inf:
        return np.full(k, 0.0 if unit == 0 else np.nan)
    rows = root.shape[0] * root.shape[1]
    eigenvalues = _dense if rows <= max(DENSE_ROWS, 2 * k) else _lanczos
    return eigenvalues(theta, root / unit, rows, k) * unit**2 / len(theta)


def _dense(theta, root, rows, k):
    matrix = np.einsum("pce,pq,qcf->peqf", root, theta, root, optimize=True).reshape(rows, rows)
    return largest(np.linalg.eigvalsh(matrix), k)


def _lanczos(theta, root, rows, k):
    """A Krylov space holds one vector of each eigenspace, and further copies come into it by rounding only: hence other runs
    orthogonal to what was found, each for one eigenvalue that takes the place of the least, until none is above that."""

    def apply(x):
        pushed = theta @ np.einsum("pce,pe->pc", root, x.reshape(root.shape[:2]))
        return np.einsum("pce,pc->pe", root, pushed).ravel()

    def outside(x):
        return x - vectors @ (x @ vectors)

    def leading(apply, count):
        shifted = LinearOperator((rows, rows), lambda x: apply(x) + shift * x.ravel(), dtype=float)
        values, vectors = eigsh(shifted, count, which="LA", v0=np.random.default_rng(0).normal(size=rows))
        return values - shift, vectors

    shift = np.trace(theta) / len(theta) or 1.0  # ARPACK fails where the first product is 0

    eigenvalues, vectors = leading(apply, k)
    for _ in range(k):
        (other,), vector = leading(lambda x: outside(apply(outside(x))), 1)
        least = np.argmin(eigenvalues)
        if other <= eigenvalues[least] + ROUNDING * eigenvalues.max():
            break
        eigenvalues[least], vectors[:, least] = other, outside(vector[:, 0])
    return np.sort(eigenvalues)[::-1]
