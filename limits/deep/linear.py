"""Deep linear networks in μP at N = ∞: exact gradient descent at finite learning rate, nothing iterated to a fixed point.

    h¹ = W⁰x/√D,   h^{l+1} = W^l h^l/√N,   f = Vᵀh^L/(γ0 N),   weights N(0,1) at step 0,   l = 1 … L hidden layers

    h^l_p(t) = d(t) u^l_p(t) + Σ_{s<t} [d(t) A^{l−1}_p(t,s) + ρ(t,s) Σ_q π_q(s) H^{l−1}_pq(t,s) Δ_q(s)] g^l(s)
    g^l(t)   = d(t) r^l(t) + Σ_{s<t} Σ_q [d(t) B^l_q(t,s) + ρ(t,s) π_q(s) G^{l+1}(t,s) Δ_q(s)] h^l_q(s)

    H^l = <h^l h^l>,  G^l = <g^l g^l>,  A^l = ∂h^l/∂r^l,  B^{l−1} = ∂g^l/∂u^l,  Δ = y − f,  f = <g^L h^L>/γ0

with Gaussian u^l of covariance H^{l−1} and r^l of covariance G^{l+1}; H⁰ = XXᵀ/D, G^{L+1} = 1, A⁰ = B^L = 0; π_p(s) the share
of sample p in the batch of step s (1/P of all), ρ = η0γ0 for SGD, d = 1 without weight decay (Bordelon & Pehlevan 2022).  The
equations are causal, so one sweep forward in time solves them: ``limits.deep.linear_sweep``, in r = rank X directions.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular

from limits.deep import dmft
from limits.deep.linear_sweep import data_of, numbers_held, of_outputs, sweep
from limits.law import Prediction
from limits.losses import LOSSES
from limits.machine import in_float64, require_memory
from limits.problem import Problem
from limits.spectra import leading_eigenvalues
from limits.theories import features_stay, insist, other_powers, unknown_to_all
from limits.trajectory import OF_HESSIAN, Trajectory, hessian_left_open


class Kernels(NamedTuple):
    """The order parameters at the T measured steps (NumPy arrays); l − 1 is the index of hidden layer l.

    Features are linear in the inputs, h_p = Σ_a x̂_pa h_a, and kept for r = rank X directions a instead of P samples.

    inputs              (P, r)            x̂, orthogonal columns: x̂x̂ᵀ = XXᵀ/D
    features            (L, T, T, r, r)   <h^l_a(t) h^l_b(s)>; ``on_samples`` makes H^l of it
    gradients           (L, T, T, C, C)   G^l(t,s) = <g^l_c(t) g^l_e(s)>
    feature_responses   (L, T, T, r, C)   A^l(t,s) = ∂h^l_a(t)/∂r^l_c(s), r^l the Gaussian part of (W^l)ᵀg^{l+1}
    gradient_responses  (L, T, T, C, r)   B^{l−1}(t,s) = ∂g^l_c(t)/∂u^l_a(s), u^l the Gaussian part of W^{l−1}h^{l−1}
    outputs             (T, P, C)         f(t)
    error_signals       (T, P, C)         Δ(t) = y − f(t)
    """

    inputs: Float[np.ndarray, "P r"]
    features: Float[np.ndarray, "L T T r r"]
    gradients: Float[np.ndarray, "L T T C C"]
    feature_responses: Float[np.ndarray, "L T T r C"]
    gradient_responses: Float[np.ndarray, "L T T C r"]
    outputs: Float[np.ndarray, "T P C"]
    error_signals: Float[np.ndarray, "T P C"]

    def on_samples(self, kernel: Float[np.ndarray, "*any r r"]) -> Float[np.ndarray, "*any P P"]:
        """A feature kernel between samples, H_pq = Σ_ab x̂_pa x̂_qb kernel_ab."""
        return self.inputs @ kernel @ self.inputs.T

    @property
    def ntk(self) -> Float[np.ndarray, "T P C P C"]:
        """γ² J Jᵀ = Σ_l H^l ⊗ G^{l+1} at equal times, l = 0 … L."""
        features, gradients = (np.einsum("lttij->tlij", kernel) for kernel in (self.features, self.gradients))
        return _ntk(features, gradients, self.inputs)


def solve(problem: Problem, *, depth: int | None = None, hessian: bool = True) -> Trajectory:
    """The limit of the linear network of L = ``depth`` hidden layers (default: the problem's model) in μP.

    Loss, NTK and Gauss-Newton eigenvalues, and, if wanted, the Hessian's (``limits.deep.curvature``); momentum, weight decay,
    minibatches and several outputs as in ``limits.problem``.  Raises ValueError for a model that is not linear, another loss,
    optimiser or parametrization and a depth below 1, MemoryError for too many steps, both before it starts.
    """
    depth = _checked(problem, depth)
    fields = dmft.solve(replace(problem, model=f"linear{depth + 1}")) if hessian else {}  # first: it may not fit this machine
    data = data_of(problem)
    state, _ = sweep(data, depth, keep=False)
    observables = _observables(problem, data, state)
    known = np.isfinite(observables["loss"])
    of_hessian = {name: (fields[name].T * np.where(known, 1.0, np.nan)).T for name in OF_HESSIAN if name in fields}
    errors = {name: fields.error(name) for name in of_hessian}
    left_open = hessian_left_open("it was not asked for")
    return Trajectory(problem.steps, observables | of_hessian, errors, left_open=left_open)


def work(problem: Problem, *, hessian: bool = True) -> tuple[float, float]:
    """(multiplications, numbers held at once) of the Hessian's fields; the kernels' sweep is short beside them."""
    return dmft.work(problem) if hessian else (0.0, 0.0)


def insist_on_room(problem: Problem, *, hessian: bool = True) -> None:
    """Raises MemoryError, in one line, for what ``solve`` would not begin."""
    _checked(problem, None)
    if hessian:
        dmft.insist_on_room(problem)


def predict(
    problem: Problem, *, depth: int | None = None, draws: int = 1024, seed: int = 0, hessian: bool = True
) -> Prediction:
    """The 1/√N and 1/N laws, with the standard errors of so many draws: see ``limits.deep.linear_law``.

    Of the Hessian, which takes most of the time, those of what is outside its bulk.  ``depth`` and errors as in ``solve``.
    """
    depth = _checked(problem, depth)
    return dmft.predict(replace(problem, model=f"linear{depth + 1}"), draws=draws, seed=seed, hessian=hessian)


def work_of_laws(problem: Problem) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``predict``."""
    return dmft.work_of_laws(problem)


@in_float64
def kernels(problem: Problem, *, depth: int | None = None) -> Kernels:
    """All kernels and responses at the measured steps.  Arguments and errors as in ``solve``."""
    depth = _checked(problem, depth, kernels_too=True)
    data = data_of(problem)
    data, state, past = jax.tree.map(np.asarray, (data, *sweep(data, depth, keep=True)))
    with np.errstate(all="ignore"):  # after a divergence
        return _between_times(problem, data, state, past)


def _between_times(problem, data, state, past) -> Kernels:
    """From the coefficients; not a number after a divergence, which earlier times do not see."""
    diverged = ~np.all([np.isfinite(a).reshape(len(a), -1).all(1) for a in state[:3]], axis=0)
    if diverged.any():  # coefficients of what is yet to come are 0, but 0 · ∞ is not
        state, past = jax.tree.map(lambda a: np.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0), (state, past))
    two_time = (
        _features(data, state, past, problem.steps),
        _gradients(data, past, problem.steps),
        _feature_responses(data, state, past, problem.steps),
        _gradient_responses(data, state, past, problem.steps),
    )
    for kernel in two_time:
        kernel[:, diverged[problem.steps]] = kernel[:, :, diverged[problem.steps]] = np.nan
    outputs = data.inputs @ np.where(diverged[:, None, None], np.nan, state.weights)[problem.steps]
    return Kernels(data.inputs, *two_time, outputs=outputs, error_signals=problem.targets - outputs)


def refuses(problem: Problem, depth: int | None = None) -> str | None:
    """Why there is no such limit of the problem's model, or of a network of so many hidden layers in its place.

    Raises MemoryError for what does not fit this machine.
    """
    if refusal := unknown_to_all(problem):
        return refusal
    model = problem.network
    if depth is None and not (model.architecture == "plain" and model.nonlinearity.linear):
        return f"model {problem.model!r} is not a deep linear network: linear3, linear4, … are"
    depth = model.depth if depth is None else depth
    if depth < 1:
        return f"depth {depth} must be at least 1"
    if not LOSSES[problem.loss].quadratic:
        return f"{problem.loss} has no closed limit here: loss mse has, or model mlp2 with activation linear"
    refusal = features_stay(problem) or other_powers(problem.scaling("plain", depth))
    if refusal is None:
        require_memory(_numbers(problem, depth, kernels_too=False), advice="fewer steps")
    return refusal


def _checked(problem, depth, *, kernels_too=False) -> int:
    """The number of hidden layers; refuses what has no such limit or does not fit this machine."""
    insist(refuses(problem, depth))
    depth = problem.network.depth if depth is None else depth
    require_memory(_numbers(problem, depth, kernels_too), advice="fewer steps")
    return depth


def _numbers(problem, depth, kernels_too) -> int:
    """That are held at once."""
    (P, C), T, r = problem.targets.shape, len(problem.steps), min(problem.inputs.shape)
    held = numbers_held(r, C, depth, int(problem.steps[-1]) + 1, keep=kernels_too) + 2 * T * (r * C) ** 2
    return held + (T * T * (depth * (r + C) ** 2 + 2 * r * r) + 2 * T * P * C if kernels_too else 0)


@in_float64
def _observables(problem, data, state) -> dict[str, np.ndarray]:
    x, state = np.asarray(data.inputs), jax.tree.map(lambda a: np.asarray(a)[problem.steps], state)
    with np.errstate(all="ignore"):  # after a divergence
        loss = np.sum((problem.targets - x @ state.weights) ** 2, (1, 2)) / (2 * len(x))
        theta = _ntk(state.features, state.gradients, np.diag(np.linalg.norm(x, axis=0) / np.sqrt(len(x))))
    side = state.weights.shape[1] * state.weights.shape[2]
    eigenvalues = np.asarray(_eigenvalues(jnp.asarray(theta.reshape(-1, side, side)), problem.top_k))
    return {"loss": loss, "ntk_eigenvalues": eigenvalues, "gauss_newton_eigenvalues": eigenvalues.copy()}


@partial(jax.jit, static_argnames="top_k")
def _eigenvalues(matrices, top_k):
    return jax.lax.map(lambda matrix: leading_eigenvalues(matrix, top_k), matrices)


def _ntk(features, gradients, x) -> Float[np.ndarray, "T m C m C"]:
    """Σ_l H^l ⊗ G^{l+1} over the rows of x (m, r): on all samples for x̂; of the same spectrum, times P, for (x̂ᵀx̂)^½/√P."""
    T, _, r, _ = features.shape
    C = gradients.shape[-1]
    below = np.concatenate([np.broadcast_to(np.eye(r), (T, 1, r, r)), features], 1)
    above = np.concatenate([gradients, np.broadcast_to(np.eye(C), (T, 1, C, C))], 1)
    return np.einsum("tlpq,tlce->tpcqe", x @ below @ x.T, above)


def _features(data, state, past, steps) -> Float[np.ndarray, "L T T r r"]:
    r, decay = data.inputs.shape[1], data.decay[steps, None, None]
    X, H = np.broadcast_to(np.eye(r), (len(steps), r, r)), np.empty((len(state.blocks), len(steps), len(steps), r, r))
    for l, block in enumerate(state.blocks):
        X = np.concatenate([decay * X, block[steps]], 2)
        flat = X.reshape(-1, X.shape[2])
        H[l] = _by_times(flat @ past.gram[: X.shape[2], : X.shape[2]] @ flat.T, r, r)
    return H


def _gradients(data, past, steps) -> Float[np.ndarray, "L T T C C"]:
    C = data.targets.shape[1]
    return np.stack([_by_times(G, C, C)[np.ix_(steps, steps)] for G in past.gradients])


def _feature_responses(data, state, past, steps) -> Float[np.ndarray, "L T T r C"]:
    """A^l = X^l_l R^l: h^l depends on r^l through the g^l that it is made of."""
    r, C = data.inputs.shape[1], data.targets.shape[1]
    responses = [(block[steps] @ R).reshape(-1, R.shape[1]) for block, R in zip(state.blocks, past.on_r, strict=True)]
    return np.stack([_by_times(A, r, C)[:, steps] for A in responses])


def _gradient_responses(data, state, past, steps) -> Float[np.ndarray, "L T T C r"]:
    """B^{l−1} of h^l = d u^l + E g^l and g^l = d r^l + D h^l: (1 − DE)⁻¹ D d, a triangular system.

    E(t,s) = X^l_l(t) and D(t,s) = d(t) B^l(t,s) + ρ(t,s) G^{l+1}(t,s) M(s)ᵀ.
    """
    (r, CT), C, T = past.errors.shape, data.targets.shape[1], len(data.decay)
    decay, M = data.decay, past.errors.reshape(r, T, C)
    B, responses = np.zeros((CT, T * r)), []
    for l in reversed(range(len(state.blocks))):
        G = (of_outputs(C, CT) if l == len(state.blocks) - 1 else past.gradients[l + 1]).reshape(T, C, T, C)
        pushed = np.einsum("ts,tcse,ase->tcsa", data.response, G, M, optimize=True).reshape(CT, T * r)
        D = np.repeat(decay, C)[:, None] * B + pushed
        system = np.eye(CT) - D @ state.blocks[l].reshape(T * r, CT)
        B = solve_triangular(system, D * np.repeat(decay, r), lower=True, unit_diagonal=True, check_finite=False)
        responses.append(_by_times(B, C, r)[np.ix_(steps, steps)])
    return np.stack(responses[::-1])


def _by_times(matrix, rows, columns):
    """(T · rows, S · columns) as (T, S, rows, columns)."""
    return matrix.reshape(-1, rows, matrix.shape[1] // columns, columns).swapaxes(1, 2)
