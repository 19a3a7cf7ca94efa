"""Deep networks in μP at N = ∞, any activation, plain or residual: dynamical mean-field theory in one sweep forward in time.

    plain      h¹ = W⁰x/√D,   h^{l+1} = W^l φ(h^l)/√N                  f = V φ(h^L)/(γ0 N)
    residual   h⁰ = W⁰x/√D,   h^{l+1} = h^l + L^{-α} W^l φ(h^l)/√N     (l = 0 … L − 1)

A neuron of the limit has its own input weights (or readout weights), and sees the others only through the random matrices
W^l, which are ``limits.gaussian_matrix``.  With a the powers of the depth in front of a matrix, r those of its learning
rate, <·> the mean over neurons, Δ = −∂ℓ/∂f and π_p the share of sample p in the step's batch, the weights as they act are

    W⁰ = a · fresh Gaussians,     W^l(t) = d(t) a W^l + A^l(t),     V = a · fresh Gaussians,       A^l(0) = 0

    g^L_c = φ'(h^L) V_c,   g^l = [g^{l+1}] + φ'(h^l) W^l(t)ᵀ g^{l+1}         g^l_c = γ0 N ∂f_c/∂h^l; [ ] residual
    forces  γ0 a²r Σ_pc π_p Δ_pc · { g_c x_pᵀ/√D,  g^{l+1}_c φ(h^l)ᵀ,  φ(h^L) on V_c }

and the optimiser of ``limits.problem`` acts on all of them.  Discrete time, heavy ball, weight decay (which shrinks d too),
minibatches, several outputs.  Bordelon & Pehlevan 2022 derive the theory, Bordelon et al. 2023 and Yang et al. 2023 that of
residual networks; they iterate kernels to a fixed point with sampled paths and dense (TP)² responses, none of which is here.

Fields are S samples: scrambled Sobol points (Owen 1997) for the Gaussians met at step 0, pseudo-random later.  Everything
converges as S → ∞, the spread over independent repeats is the error.  For linear activations only inner products of fields
matter, so there fields are coordinates with respect to all Gaussians, and the limit is exact.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import ndtri
from scipy.stats import qmc

from limits.activations import ACTIVATIONS
from limits.curvature import leading_eigenvalues
from limits.gaussian_matrix import GaussianMatrix, Space, has_room, meet, send, send_back, unmet
from limits.linear2 import coordinates
from limits.losses import LOSSES
from limits.parametrization import gauge, input_multiplier, output_exponent
from limits.precision import in_float64
from limits.problem import Problem
from limits.size_algebra import Exponents
from limits.trajectory import Trajectory

TOLERANCE = 1e-3  # of sampled fields: changes the loss by a tenth of the error of 8192 samples
EXACT_TOLERANCE = 1e-10
HALF_A_CELL = 0.5**31  # Sobol points are multiples of 2⁻³⁰, 0 among them
ROOM = 64  # fields that a matrix has room for at first (and at least four steps' worth); then it doubles


class Kernels(NamedTuple):
    """The order parameters at the T measured steps; l = 1 … L in plain networks, 0 … L in residual ones.

    features     (l, T, T, P, P)         Φ^l(t,s) = <φ(h^l_p(t)) φ(h^l_q(s))>
    gradients    (l, T, T, P, C, P, C)   G^l(t,s) = <g^l_pc(t) g^l_qe(s)>
    outputs      (T, P, C)               f(t)
    ntk          (T, P, C, P, C)         rescaled: γ² J Jᵀ, at equal times
    """

    features: Float[np.ndarray, "layers T T P P"]
    gradients: Float[np.ndarray, "layers T T P C P C"]
    outputs: Float[np.ndarray, "T P C"]
    ntk: Float[np.ndarray, "T P C P C"]


class Verdict(NamedTuple):
    """Whether twice the samples changed no kernel by more than the tolerance.

    error     the largest relative change (Frobenius norm) among features, gradients, outputs and NTK; 0 if exact
    samples   S of the finer of the two runs; 0 if exact
    """

    converged: bool
    error: float
    samples: int


class Estimate(NamedTuple):
    """Mean over the repeats, standard error of each number in it, and whether there were enough samples."""

    mean: Kernels
    error: Kernels
    verdict: Verdict


class _Kind(NamedTuple):
    """What is compiled: the static argument of the compiled functions."""

    activation: str
    loss: str
    residual: bool

    @property
    def exact(self) -> bool:
        return self.activation == "linear"

    def activated(self, h):
        """(φ(h), φ'(h))"""
        return jax.jvp(ACTIVATIONS[self.activation], (h,), (jnp.ones_like(h),))


class _Data(NamedTuple):
    """inputs (P, r) over √D, in coordinates of rank r · targets · shares π of each step (one row if all are the same) · the
    optimiser's numbers · scales a and rates a²r of first, hidden and last weights."""

    inputs: Float[Array, "P r"]
    targets: Float[Array, "P C"]
    shares: Float[Array, "T P"]
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    richness: Float[Array, ""]
    scales: Float[Array, "3"]
    rates: Float[Array, "3"]
    space: Space


class _Weights(NamedTuple):
    """As they act: first (r, S) · left, d·a, of the H initial matrices · trained (H, m, n), A of each · last (C, S)."""

    first: Float[Array, "r S"]
    left: Float[Array, ""]
    trained: Float[Array, "H m n"]
    last: Float[Array, "C S"]


class _Now(NamedTuple):
    """outputs f · of the H + 1 layers features φ(h) and gradients g · coordinates of those that the H matrices met."""

    outputs: Float[Array, "P C"]
    features: Float[Array, "layers P S"]
    gradients: Float[Array, "layers PC S"]
    below: Float[Array, "H P n"]
    above: Float[Array, "H PC m"]


class _State(NamedTuple):
    """Before a step."""

    step: Int[Array, ""]
    weights: _Weights
    velocity: _Weights
    matrices: GaussianMatrix
    now: _Now


@in_float64
def solve(problem: Problem, *, samples: int = 8192, repeats: int = 8, seed: int = 0) -> Trajectory:
    """The limit of the problem's network: loss, NTK and Gauss-Newton eigenvalues at the measured steps.

    samples   S, a power of two
    repeats   independent runs; values are their mean, errors the standard error of the mean

    For linear activations the limit is exact, and neither means anything.  Raises ValueError, in one line, for what has no
    such limit, and MemoryError for what does not fit this machine: at once, or later if fields need more room than usual.
    """
    return Trajectory(problem.steps, *_estimate(problem, _observables, samples, repeats, seed))


@in_float64
def kernels(problem: Problem, *, samples: int = 8192, repeats: int = 8, seed: int = 0, tolerance: float = 0.01) -> Estimate:
    """All kernels at the measured steps, with their errors, and the verdict on S samples against S/2; else as ``solve``."""
    mean, error = _estimate(problem, _kernels, samples, repeats, seed)
    if not error:
        return Estimate(mean, jax.tree.map(np.zeros_like, mean), Verdict(bool(np.isfinite(mean.outputs).all()), 0.0, 0))
    coarse, _ = _estimate(problem, _kernels, samples // 2, repeats, seed + 1)
    change = max(float(np.linalg.norm(c - m) / np.linalg.norm(m)) for c, m in zip(coarse, mean, strict=True))
    return Estimate(mean, error, Verdict(change < tolerance, change, samples))


def _estimate(problem, measured, samples, repeats, seed):
    """Mean and standard error of what ``measured`` makes of independent runs; no error, {}, of an exact one."""
    kind, data = _read(problem, samples, repeats)
    generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(1 if kind.exact else repeats)]
    runs = [measured(problem, kind, data, _run(problem, kind, data, samples, rng)) for rng in generators]
    if kind.exact:
        return runs[0], {}
    mean = jax.tree.map(lambda *values: np.mean(values, 0), *runs)
    return mean, jax.tree.map(lambda *values: np.std(values, 0, ddof=1) / np.sqrt(repeats), *runs)


def _read(problem, samples, repeats) -> tuple[_Kind, _Data]:
    """The problem as it is computed; refuses what has no such limit."""
    model, scaling = problem.network, gauge(problem.scaling())
    if output_exponent(scaling) != 0.5:
        raise ValueError(f"{scaling.name} has another limit: this one is of μP's powers of the width, output exponent 1/2")
    if model.block_size > 1:
        raise ValueError(f"no limit of blocks of {model.block_size} matrices: block_size 1 only")
    kind = _Kind(model.activation, problem.loss, model.architecture == "residual")
    if not kind.exact and (samples < 4 or samples & (samples - 1)):
        raise ValueError(f"{samples} samples: wanted a power of two, at least 4")
    if not kind.exact and repeats < 2:
        raise ValueError(f"{repeats} repeats: at least 2, for their spread is the error")
    roles = [scaling.roles.get(role, Exponents()) for role in ("input", "block" if kind.residual else "hidden", "readout")]
    of_depth = [(e.multiplier(1, model.depth), e.learning_rate(1, model.depth)) for e in roles]
    data = _Data(
        coordinates(problem).inputs * input_multiplier(problem.num_inputs),
        problem.targets,
        _shares(problem),
        problem.learning_rate,
        problem.momentum,
        problem.weight_decay,
        problem.richness,
        scales=np.array([a for a, _ in of_depth]),
        rates=np.array([a * a * rate for a, rate in of_depth]),
        space=Space(*((1.0, EXACT_TOLERANCE) if kind.exact else (1.0 / samples, TOLERANCE))),
    )
    return kind, jax.tree.map(jnp.asarray, data)


def _shares(problem) -> Float[np.ndarray, "T P"]:
    """How much of each step's batch each sample is."""
    P = problem.num_samples
    if problem.batches is None:
        return np.full((1, P), 1 / P)
    return np.stack([np.bincount(batch, minlength=P) / len(batch) for batch in problem.batches] or [np.zeros(P)])


def _run(problem, kind, data, samples, rng) -> Iterator[_Now]:
    """The fields at each measured step."""
    (P, C), r, H = problem.targets.shape, data.inputs.shape[1], problem.network.depth - (not kind.residual)
    n, m = max(ROOM, 4 * P), max(ROOM, 4 * P * C)
    _check_memory(H, n, m, r + C + H * (n + m) if kind.exact else samples)
    state = _begin(kind, data, *_first_draws(kind, rng, (r, P, C, H, n, m), samples))
    for step in problem.steps:
        while (state := _advance(kind, data, state, step)).step < step:
            H, n, S = state.matrices.sent.shape
            m = state.matrices.returned.shape[1]
            _check_memory(H, 2 * n, 2 * m, S + H * (n + m) * kind.exact)
            state = _grown(state, *_split(_gaussians(kind, rng, H * (n + m), S), H, n, m))
        yield state.now


def _check_memory(H, n, m, S):
    """Fields of the matrices, each held twice while a step replaces them."""
    needed, there = 8 * 2 * 2 * H * (n + m) * S, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise MemoryError(
            f"this limit needs about {needed / 2**30:.1f} GiB, more than the {there / 2**30:.1f} GiB there are: "
            "fewer samples or steps"
        )


def _gaussians(kind, rng, count, size) -> Float[np.ndarray, "count S"]:
    """Independent N(0,1) fields: of so many samples; or coordinates of their own, behind ``size`` others."""
    return np.eye(count, size + count, size) if kind.exact else rng.normal(size=(count, size))


def _split(fields, H, n, m):
    """(H, n, S) and (H, m, S)"""
    S = fields.shape[1]
    return fields[: H * n].reshape(H, n, S), fields[H * n :].reshape(H, m, S)


def _first_draws(kind, rng, sizes, samples):
    """First weights (r, S), fields in store for the matrices (H, n, S) and (H, m, S), last weights (C, S)."""
    r, P, C, H, n, m = sizes
    drawn = _gaussians(kind, rng, r + C + H * (n + m), 0 if kind.exact else samples)
    first, last, (sent, returned) = drawn[:r], drawn[r : r + C], _split(drawn[r + C :], H, n, m)
    if not kind.exact:
        (first, *below), (*above, last) = _met_first(kind, rng, (r, P, C, H), samples)
        for l in range(H):
            sent[l, :P], returned[l, : P * C] = below[l], above[l]
    return first, sent, returned, last


def _met_first(kind, rng, sizes, samples):
    """What each layer gets from below, and from above, at step 0: all that meets in the same neurons is one Sobol net."""
    r, P, C, H = sizes
    below, above = [r, *[P] * H], [*[P * C] * H, C]
    if kind.residual:
        fields = _split_into(_quasi_gaussians(rng, sum(below + above), samples), below + above)
        return fields[: H + 1], fields[H + 1 :]
    pairs = [_split_into(_quasi_gaussians(rng, b + a, samples), [b, a]) for b, a in zip(below, above, strict=True)]
    return zip(*pairs, strict=True)


def _quasi_gaussians(rng, count, samples) -> Float[np.ndarray, "count S"]:
    """Scrambled Sobol points (Owen 1997) turned normal, as far as there are Sobol sequences."""
    quasi = min(count, qmc.Sobol.MAXDIM)
    points = qmc.Sobol(quasi, rng=rng).random(samples).T
    return np.concatenate([ndtri(points + HALF_A_CELL), rng.normal(size=(count - quasi, samples))])


def _split_into(fields, sizes):
    return np.split(fields, np.cumsum(sizes)[:-1])


@partial(jax.jit, static_argnums=0)
def _begin(kind, data, first, sent, returned, last) -> _State:
    """Step 0.  The last weights do not correlate with the features that they meet: f(0) = 0."""
    trained = jnp.zeros((len(sent), returned.shape[1], sent.shape[1]))
    weights = _Weights(data.scales[0] * first, data.scales[1], trained, last)
    velocity = jax.tree.map(jnp.zeros_like, weights)
    matrices, h, below = _forward(kind, data, weights, unmet(sent, returned))
    features, *_ = kind.activated(h[-1])
    met, *_ = meet(data.space, jnp.zeros_like(features), 0, features)
    last = data.space.beyond(last, met)
    weights = weights._replace(last=data.scales[2] * last / data.space.norms(last)[:, None])
    return _State(jnp.zeros((), int), weights, velocity, *_backward(kind, data, weights, matrices, h, below))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(kind, data, state, until) -> _State:
    """Steps up to ``until``, or as long as the matrices have room."""
    P, C = data.targets.shape

    def going(state):
        return (state.step < until) & has_room(state.matrices, P, P * C)

    def step(state):
        weights, velocity = _descend(kind, data, state)
        met = _forward(kind, data, weights, state.matrices)
        return _State(state.step + 1, weights, velocity, *_backward(kind, data, weights, *met))

    return jax.lax.while_loop(going, step, state)


def _forward(kind, data, weights, matrices) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrices, h of the H + 1 layers, coordinates of their features)"""

    def through(h, matrix_and_trained):
        matrix, trained = matrix_and_trained
        matrix, out, coordinates = send(data.space, matrix, kind.activated(h)[0], weights.left, trained)
        return kind.residual * h + out, (matrix, h, coordinates)

    h, (matrices, behind, coordinates) = jax.lax.scan(through, data.inputs @ weights.first, (matrices, weights.trained))
    return matrices, jnp.concatenate([behind, h[None]]), coordinates


def _backward(kind, data, weights, matrices, h, below) -> tuple[GaussianMatrix, _Now]:
    """(the matrices, all fields of this step)"""
    features, slopes = kind.activated(h)
    C, S = weights.last.shape

    def through(g, layer):
        matrix, trained, slope = layer
        matrix, out, coordinates = send_back(data.space, matrix, g, weights.left, trained)
        return kind.residual * g + jnp.repeat(slope, C, 0) * out, (matrix, g, coordinates)

    g = (slopes[-1][:, None] * weights.last).reshape(-1, S)
    layers = matrices, weights.trained, slopes[:-1]
    g, (matrices, before, above) = jax.lax.scan(through, g, layers, reverse=True)
    outputs = data.space.products(features[-1], weights.last) / data.richness
    return matrices, _Now(outputs, features, jnp.concatenate([g[None], before]), below, above)


def _descend(kind, data, state) -> tuple[_Weights, _Weights]:
    """(weights, velocity) after the step."""
    now, (P, C) = state.now, data.targets.shape
    share = data.shares[state.step % len(data.shares)]
    errors = -LOSSES[kind.loss].gradient(now.outputs, data.targets) * share[:, None] * data.richness
    above = now.above.reshape(-1, P, C, now.above.shape[-1])
    force = _Weights(
        first=data.rates[0] * jnp.einsum("pc,pr,pcs->rs", errors, data.inputs, now.gradients[0].reshape(P, C, -1)),
        left=jnp.zeros(()),
        trained=data.rates[1] * jnp.einsum("pc,lpn,lpcm->lmn", errors, now.below, above),
        last=data.rates[2] * errors.T @ now.features[-1],
    )

    def velocity(v, weight, force):
        return data.momentum * v + data.weight_decay * weight - force

    velocity = jax.tree.map(velocity, state.velocity, state.weights, force)
    return jax.tree.map(lambda weight, v: weight - data.learning_rate * v, state.weights, velocity), velocity


def _grown(state, sent, returned) -> _State:
    """The same with room for as many more fields; Gaussians that bring coordinates of their own make all fields longer."""
    n, m, s = sent.shape[1], returned.shape[1], sent.shape[2] - state.matrices.sent.shape[2]

    def longer(array, *by):
        return jnp.pad(array, [(0, 0)] * (array.ndim - len(by)) + [(0, more) for more in by])

    def of_weights(w):
        return w._replace(first=longer(w.first, s), trained=longer(w.trained, m, n), last=longer(w.last, s))

    old, now = state.matrices, state.now
    matrices = old._replace(
        below=longer(old.below, n, s),
        above=longer(old.above, m, s),
        sent=jnp.concatenate([longer(old.sent, s), sent], 1),
        returned=jnp.concatenate([longer(old.returned, s), returned], 1),
        forward=longer(old.forward, m, n),
        backward=longer(old.backward, m, n),
    )
    features, gradients = longer(now.features, s), longer(now.gradients, s)
    now = _Now(now.outputs, features, gradients, longer(now.below, n), longer(now.above, m))
    return _State(state.step, of_weights(state.weights), of_weights(state.velocity), matrices, now)


def _observables(problem, kind, data, run) -> dict[str, np.ndarray]:
    measured = [jax.device_get(_measure(kind, data, now, problem.top_k)) for now in run]
    found = jax.tree.map(lambda *steps: np.stack(steps), *measured)
    gone = ~np.isfinite(found["loss"])
    return {name: values if name == "loss" else np.where(gone[:, None], np.nan, values) for name, values in found.items()}


@partial(jax.jit, static_argnums=(0, 3))
def _measure(kind, data, now, top_k) -> dict[str, Array]:
    """The observables, over all samples."""
    loss, size = LOSSES[kind.loss], data.targets.size
    theta = _ntk(data, now) / len(data.targets)
    root = loss.root(now.outputs)
    curved = jnp.einsum("pci,pcqe,qej->piqj", root, theta, root)
    return {
        "loss": loss.mean(now.outputs, data.targets),
        "ntk_eigenvalues": leading_eigenvalues(theta.reshape(size, size), top_k),
        "gauss_newton_eigenvalues": leading_eigenvalues(curved.reshape(size, size), top_k),
    }


def _ntk(data, now) -> Float[Array, "P C P C"]:
    """Σ over the matrices of rate · Φ below ∘ G above."""
    P, C = data.targets.shape
    gradients = now.gradients.reshape(-1, P, C, now.gradients.shape[-1])
    features = data.space.weight * jnp.einsum("lps,lqs->lpq", now.features, now.features)
    gradients = data.space.weight * jnp.einsum("lpcs,lqes->lpcqe", gradients, gradients)
    first, last = data.inputs @ data.inputs.T, jnp.eye(C)
    return (
        data.rates[0] * jnp.einsum("pq,pcqe->pcqe", first, gradients[0])
        + data.rates[1] * jnp.einsum("lpq,lpcqe->pcqe", features[:-1], gradients[1:])
        + data.rates[2] * jnp.einsum("pq,ce->pcqe", features[-1], last)
    )


def _kernels(problem, kind, data, run) -> Kernels:
    """From the fields of all measured steps, times kept on the host."""
    P, C = problem.targets.shape
    times = [jax.device_get((now.features, now.gradients, now.outputs, _ntk(data, now))) for now in run]
    features, gradients, outputs, ntk = (np.stack(parts) for parts in zip(*times, strict=True))
    gradients = gradients.reshape(*gradients.shape[:2], P, C, -1)
    weight = float(data.space.weight)
    return Kernels(
        weight * np.einsum("tlps,ulqs->ltupq", features, features, optimize=True),
        weight * np.einsum("tlpcs,ulqes->ltupcqe", gradients, gradients, optimize=True),
        outputs,
        ntk,
    )
