"""Deep networks in μP at N = ∞, any activation, plain or residual: dynamical mean-field theory in one sweep forward in time.

The network, its fields and its step are those of ``limits.deep.network``: the optimiser of ``limits.problem``
in discrete time, minibatches, several outputs.  As N → ∞ its loss and its kernels,

    Φ^l = <φ(h^l) φ(h^l)>,    G^l = <g^l g^l>,    Θ = Σ_matrices a²r Φ below ∘ G above,

are numbers (a²r powers of the depth alone), and so are eigenvalues of its Hessian (``limits.deep.curvature``).  Bordelon &
Pehlevan 2022 derive the kernels, Bordelon et al. 2023 and Yang et al. 2023 those of residual networks; the usual solution
iterates all at once to a fixed point, with paths sampled at each iteration and (TP) × (TP) responses along each path.  Here
time goes forward once, and responses are products of fields.

Fields are S samples: all converges as S → ∞, and the spread over independent repeats is the error.  For linear activations
they are coordinates, and the limit is exact.

Cost.  A step of one matrix that has met n fields takes about 15 nPS multiplications forward, and as many backward, of one
output or of ten; a measured step sends the gradients of all C outputs back.  n grows by at most P a step, but fields change
slowly: 100 steps of 5 samples are about 100 fields below, 150 above.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits.activations import ACTIVATIONS
from limits.coordinates import coordinates
from limits.deep import curvature, lanczos
from limits.deep import linear_law as deep_fluctuations
from limits.deep.gaussian_matrix import Space
from limits.deep.network import Data, Kind, State, advance, begin, first_draws, grown, more_draws, sent_back
from limits.exponents.algebra import Exponents
from limits.exponents.parametrization import gauge
from limits.law import Prediction
from limits.losses import LOSSES
from limits.machine import RATE, in_float64, require_memory, two_digits
from limits.problem import Problem
from limits.repeats import drift, errors_of, first_ranks
from limits.spectra import leading_eigenvalues
from limits.theories import features_stay, insist, other_layers, other_powers, unknown_to_all
from limits.trajectory import Trajectory, hessian_left_open

TOLERANCE = 1e-3  # what is left out of sampled fields, where they move by one: a tenth of the error at 8192 samples
EXACT_TOLERANCE = 1e-10
MEASURING = 2**31  # of a run's random streams, behind all that training may spawn
PRODUCTS = 15  # of a measurement of the Hessian, about
ROOM = 64  # fields that a matrix has room for at first (and at least four steps' worth); then it doubles

require_room = partial(require_memory, advice="fewer samples or steps")


class Kernels(NamedTuple):
    """The order parameters at the T measured steps; layers l = 1 … L of plain networks, 0 … L of residual ones.

    features     (layers, T, T, P, P)         Φ^l(t,s)
    gradients    (layers, T, T, P, C, P, C)   G^l(t,s)
    outputs      (T, P, C)                    f(t)
    ntk          (T, P, C, P, C)              Θ, rescaled
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


@in_float64
def solve(
    problem: Problem, *, samples: int = 8192, repeats: int = 8, seed: int = 0, hessian: bool = True
) -> Trajectory:
    """The limit of the problem's network: loss, NTK and Gauss-Newton eigenvalues at the measured steps, and the Hessian.

    hessian   whether the Hessian's are found too, which cost a measured step as much as some thirty steps of training
    samples   S, a power of two
    repeats   independent runs; values are those of their mean outputs and NTK, errors those of ``limits.repeats``: the true
              value is within twice the error in 95 % of draws.  Half of them are enough for the Hessian's, whose errors
              know the step from S/2 to S, too

    For linear activations the limit is exact, and neither means anything.  Raises ValueError, in one line, for what has no
    such limit, and MemoryError for what does not fit this machine: at once, or later if fields need more room than usual.
    """
    kind, data = _read(problem, samples, repeats)
    insist_on_room(problem, samples, repeats, hessian=hessian)
    total, of_runs, of_hessian, ranks = None, [], [], problem.top_k + problem.num_outputs
    for run, rng in _runs(problem, kind, data, samples, repeats, seed):
        curved = hessian and len(of_hessian) < _curved(repeats)
        measured, of_curvature = _measured(kind, data, run, rng, problem.top_k * curved)
        of_runs.append(observables(kind, data, *measured, ranks))
        of_hessian += [of_curvature] * curved
        total = measured if total is None else jax.tree.map(np.add, total, measured)
    values = observables(kind, data, *(sums / len(of_runs) for sums in total), ranks)
    errors, drifts, of_repeats = {}, None, stacked(of_runs)
    if not kind.exact:
        drifts = drift(problem, values, of_repeats)
        errors = errors_of(values, of_repeats, drifts, averaged=repeats)
    if hessian:
        coarse = None if kind.exact else _coarse(problem, kind, data, samples, _curved(_curved(repeats)), seed + 1)
        curved, curved_errors = mean_hessian(of_hessian, coarse, drifts)
        values, errors = values | curved, errors | curved_errors
    values, errors = (first_ranks(observed, problem.top_k) for observed in (values, errors))
    return Trajectory(problem.steps, values, errors, left_open=left_open(kind, hessian))


def _curved(repeats):
    """Runs of which the Hessian is found, where there are so many."""
    return max(2, repeats // 2)


def left_open(kind, hessian: bool) -> dict[str, str]:
    """What of the Hessian is not known, and why."""
    if not hessian:
        return hessian_left_open("it was not asked for")
    compact = ACTIVATIONS[kind.activation].piecewise_linear
    edge = "samples do not reach the edge of its bulk" if compact else "its bulk has no edge"
    return hessian_left_open(f"of the Hessian with activation {kind.activation} outliers are known: {edge}")


def _coarse(problem, kind, data, samples, repeats, seed) -> list[tuple[dict, dict]]:
    """Of the Hessian, from runs of half as many samples, in arrays of the same length."""
    data = data._replace(space=data.space._replace(copies=jnp.asarray(2)))
    return [_measured(kind, data, *run, problem.top_k)[1] for run in _runs(problem, kind, data, samples, repeats, seed)]


def mean_hessian(of_runs, coarse, drifts) -> tuple[dict, dict]:
    """(values, errors: bounds of Lanczos' own, and, where it is sampled, the scatter and what fewer samples change)"""
    of_repeats, bounds = (stacked(runs) for runs in zip(*of_runs, strict=True))
    values = {name: np.mean(repeats, 0) for name, repeats in of_repeats.items()}
    bounds = {name: np.max(bound, 0) for name, bound in bounds.items()}
    if coarse is None:
        return values, bounds
    of_coarse = stacked([run for run, _ in coarse])
    spread = errors_of(values, of_repeats, drifts, averaged=1)
    change = {name: np.mean(of_coarse[name], 0) - value for name, value in values.items()}
    return values, {name: np.hypot(np.hypot(spread[name], change[name]), bounds[name]) for name in values}


def stacked(runs):
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


@in_float64
def predict(problem: Problem, *, draws: int = 1024, seed: int = 0, hessian: bool = True) -> Prediction | None:
    """The 1/√N and 1/N laws of the same observables where the limit is exact and the loss MSE, else None: sampled fields
    are too noisy to be differentiated.

    ``draws``, ``seed`` and ``hessian`` as in ``limits.deep.linear_law``; errors as in ``solve``.
    """
    insist(refuses(problem))
    if not problem.network.nonlinearity.linear or not LOSSES[problem.loss].quadratic:
        return None
    return deep_fluctuations.predict(problem, *_read(problem, 0, 0), draws=draws, seed=seed, hessian=hessian)


@in_float64
def work_of_laws(problem: Problem) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``predict``; (0, 0) where there are no laws."""
    if not problem.network.nonlinearity.linear or not LOSSES[problem.loss].quadratic:
        return 0.0, 0.0
    return deep_fluctuations.work(problem, *_read(problem, 0, 0))


@in_float64
def kernels(problem: Problem, *, samples: int = 8192, repeats: int = 8, seed: int = 0, tolerance: float = 0.01) -> Estimate:
    """All kernels at the measured steps, with their errors, and the verdict on S samples against S/2; else as ``solve``."""
    mean, error = _mean_kernels(problem, samples, repeats, seed)
    if error is None:
        finite = bool(np.isfinite(mean.outputs).all())
        return Estimate(mean, jax.tree.map(np.zeros_like, mean), Verdict(finite, 0.0, 0))
    coarse, _ = _mean_kernels(problem, samples // 2, repeats, seed + 1)
    with np.errstate(all="ignore"):  # no outputs before step 0, or a divergence
        changes = [np.linalg.norm(c - m) / np.linalg.norm(m) for c, m in zip(coarse, mean, strict=True)]
    change = float(np.max(changes))
    return Estimate(mean, error, Verdict(change < tolerance, change, samples))


def _mean_kernels(problem, samples, repeats, seed) -> tuple[Kernels, Kernels | None]:
    """(mean, standard error or None if exact)"""
    kind, data = _read(problem, samples, repeats)
    (P, C), T, layers = problem.targets.shape, len(problem.steps), problem.network.depth + kind.residual
    fields = 2 * T * layers * P * (1 + C) * (1 if kind.exact else samples)
    require_room(fields + repeats * (layers * T * T + T) * P * P * (1 + C * C))
    return _mean_and_error([_kernels(kind, data, *run) for run in _runs(problem, kind, data, samples, repeats, seed)])


def _mean_and_error(of_runs):
    """(mean, standard error of the mean) of each number; None for the error of one run."""
    if len(of_runs) == 1:
        return of_runs[0], None
    with np.errstate(all="ignore"):  # after a divergence
        mean = jax.tree.map(lambda *values: np.mean(values, 0), *of_runs)
        return mean, jax.tree.map(lambda *values: np.std(values, 0, ddof=1) / np.sqrt(len(values)), *of_runs)


def work(problem: Problem, samples: int = 8192, repeats: int = 8, *, hessian: bool = True) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``solve``, to a factor of about three.  In T steps a matrix meets about 2√T
    times the fields of one, and a measurement is some fifteen products."""
    (P, C), T, r = problem.targets.shape, int(problem.steps[-1]) + 1, min(problem.inputs.shape)
    exact = problem.network.nonlinearity.linear
    H = problem.network.depth - (problem.network.architecture == "plain")
    (below, above, outputs), b = (r, C, 0) if exact else (P, P, P * C), hessian * (min(problem.top_k, C) + exact)
    met, more, runs = min(T, 2 * np.sqrt(T)), b * PRODUCTS, 1 if exact else repeats
    (n, m), (new_n, new_m) = (below * met, above * met), (more * (C if exact else P),) * 2
    S = r + C + 4 * H * (n + m + new_n + new_m) if exact else samples
    training = 15 * H * (n * below + m * above) * S * T
    measuring = 15 * H * ((n + new_n / 2) * below + (m + new_m / 2) * above) * S * more * len(problem.steps)
    measuring += 15 * H * (m + outputs / 2) * outputs * S * len(problem.steps)
    n, m = (2 * max(ROOM, count) for count in (n + new_n, m + max(new_m, outputs)))
    basis = 2 * (lanczos.BLOCKS + 1) * b * ((r + C) * S + H * n * m)
    return runs * (training + measuring), _numbers_held(H, n, m, S) + basis


def insist_on_room(problem: Problem, samples: int = 8192, repeats: int = 8, *, hessian: bool = True) -> None:
    """Raises MemoryError, in one line, for what ``solve`` would not begin."""
    multiplications, numbers = work(problem, samples, repeats, hessian=hessian)
    require_room(numbers, f"this limit takes about {two_digits(multiplications / RATE / 60)} minutes and needs")


def refuses(problem: Problem) -> str | None:
    """Why there is no such limit."""
    if refusal := unknown_to_all(problem) or other_powers(problem.scaling()) or features_stay(problem):
        return refusal
    return other_layers(problem, ("perceptron",), "matrices")


def _read(problem, samples, repeats) -> tuple[Kind, Data]:
    """The problem as it is computed; refuses what has no such limit."""
    insist(refuses(problem))
    model = problem.network
    kind = Kind(model.activation, problem.loss, model.architecture == "residual", problem.nesterov)
    if not kind.exact:
        check_sampling(samples, repeats, problem.num_samples)
    space = Space(1.0, EXACT_TOLERANCE) if kind.exact else Space(1.0 / samples, TOLERANCE * motion(problem))
    return kind, data_of(problem, coordinates(problem).scaled, "block" if kind.residual else "hidden", space)


def data_of(problem: Problem, inputs: Float[Array, "_ r"], between: str, space: Space) -> Data:
    """The problem in the numbers that the sweeps take; ``between``: the role of matrices behind the first, before the last."""
    roles, depth = gauge(problem.scaling()).roles, problem.network.depth
    powers = [_of_depth(roles.get(name, Exponents()), depth) for name in ("input", between, "readout")]
    data = Data(
        inputs,
        problem.targets,
        _shares(problem),
        problem.step_sizes,
        problem.momentum,
        problem.weight_decay,
        problem.richness,
        scales=np.array([multiplier for multiplier, _ in powers]),
        rates=np.array([multiplier * multiplier * rate for multiplier, rate in powers]),
        space=space,
    )
    return jax.tree.map(jnp.asarray, data)


def check_sampling(samples, repeats, rows=1):
    """Fields of so many rows have room to be drawn free of each other, and there is a spread."""
    for name, number in (("samples", samples), ("repeats", repeats)):
        if not isinstance(number, int | np.integer):
            raise ValueError(f"{name} {number!r}: wanted a whole number")
    if samples < 4 or samples & (samples - 1):
        raise ValueError(f"{samples} samples: wanted a power of two, at least 4")
    if samples < 4 * rows:
        raise ValueError(f"{samples} samples: of the fields of {rows} inputs they are too few, wanted at least {4 * rows}")
    if repeats < 2:
        raise ValueError(f"{repeats} repeats: wanted at least 2, for their spread is the error")


def _of_depth(exponents, depth) -> tuple[float, float]:
    """(multiplier, learning rate) of a role, without their powers of the width."""
    return exponents.multiplier(1, depth), exponents.learning_rate(1, depth)


def motion(problem) -> float:
    """How far fields move, at most one: f is their motion over γ0, so what is left out must be small beside that."""
    errors = LOSSES[problem.loss].gradient(jnp.zeros(problem.targets.shape), jnp.asarray(problem.targets))
    size = problem.richness * float(jnp.sqrt(jnp.mean(errors**2)))
    return min(1.0, size) if size > 0 else 1.0


def _shares(problem) -> Float[np.ndarray, "T P"]:
    """How much of each step's batch each sample is."""
    P = problem.num_samples
    if problem.batches is None:
        return np.full((1, P), 1 / P)
    return np.stack([np.bincount(batch, minlength=P) / len(batch) for batch in problem.batches] or [np.zeros(P)])


def _runs(problem, kind, data, samples, repeats, seed) -> Iterator[tuple[Iterator[State], np.random.Generator]]:
    """(run, what measuring may draw from), independent, one after the other; an exact one needs no second."""
    for of_run in np.random.SeedSequence(seed).spawn(1 if kind.exact else repeats):
        of_measuring = np.random.SeedSequence(of_run.entropy, spawn_key=(*of_run.spawn_key, MEASURING))
        run = _run(problem, kind, data, samples, np.random.default_rng(of_run))
        yield run, np.random.default_rng(of_measuring)


def _run(problem, kind, data, samples, rng) -> Iterator[State]:
    """Behind each measured step, with its fields."""
    (q, g), r, (P, C) = kind.counts(data), data.inputs.shape[1], problem.targets.shape
    H = problem.network.depth - (not kind.residual)
    n, m = max(ROOM, 4 * q), max(ROOM, 4 * g)
    require_room(_numbers_held(H, n, m, r + C + H * (n + m) if kind.exact else samples))
    state = begin(kind, data, *first_draws(kind, rng, (r, P, C, H, n, m), samples, int(data.space.copies)))
    for step in problem.steps:
        while (state := advance(kind, data, state, step + 1)).step <= step:
            (_, n, S), m = state.matrices.sent.shape, state.matrices.returned.shape[1]
            require_room(_numbers_held(H, 2 * n, 2 * m, S + H * (n + m) * kind.exact))
            state = grown(state, *more_draws(kind, rng, (H, n, m), S, data.space.copies))
        yield state


def _numbers_held(H, n, m, S):
    """Two fields of S numbers for each that the matrices have room for, held twice while a step replaces them."""
    return 2 * 2 * H * (n + m) * S


def _measured(kind, data, run, rng, k) -> tuple[tuple[np.ndarray, np.ndarray], tuple[dict, dict]]:
    """f (T, P, C) and Θ (T, P, C, P, C); of the Hessian, if k > 0, values and bounds of their errors."""
    measured, of_hessian = [], []
    for state in run:
        gradients = _gradients(kind, data, rng, state)
        measured.append(jax.device_get((state.fields.outputs, ntk(kind, data, state.fields, gradients))))
        of_hessian.append(curvature.observables(kind, data, rng, state, k) if k else ({}, {}))
    outputs_and_ntk = tuple(np.stack(parts) for parts in zip(*measured, strict=True))
    return outputs_and_ntk, tuple(stacked(steps) for steps in zip(*of_hessian, strict=True))


def observables(kind, data, outputs, ntk, top_k) -> dict[str, np.ndarray]:
    """Over all samples; not a number after a divergence."""
    values = jax.device_get(_measure(kind, data, outputs, ntk, top_k))
    gone = ~np.isfinite(values["loss"])
    for name in values.keys() - {"loss"}:
        values[name] = np.where(gone[:, None] if values[name].ndim > 1 else gone, np.nan, values[name])
    if not ACTIVATIONS[kind.activation].piecewise_linear:
        del values["hessian_trace"]  # this is G's; R's grows with the width
    return values


@partial(jax.jit, static_argnums=(0, 4))
def _measure(kind, data, outputs, ntk, top_k) -> dict[str, Array]:
    loss, side = LOSSES[kind.loss], data.targets.size

    def at_a_step(outputs_and_ntk):
        f, theta = outputs_and_ntk
        root = loss.root(f)
        curved = jnp.einsum("pci,pcqe,qej->piqj", root, theta, root)
        return {
            "loss": loss.mean(f, data.targets),
            "ntk_eigenvalues": leading_eigenvalues(theta.reshape(side, side), top_k),
            "gauss_newton_eigenvalues": leading_eigenvalues(curved.reshape(side, side), top_k),
            "hessian_trace": jnp.trace(curved.reshape(side, side)),
        }

    return jax.lax.map(at_a_step, (outputs, ntk / len(data.targets)))


def _gradients(kind, data, rng, state) -> Float[Array, "layers own C S"]:
    """Of all outputs: of each sample its own, or the same for all.  What the matrices meet here, training does not see."""
    if kind.exact:
        return state.fields.cotangents[:, None]
    more = more_draws(kind, rng, (len(state.matrices.sent), 0, data.targets.size), state.fields.h.shape[-1], data.space.copies)
    return gradients(kind, data, grown(state, *more))


@partial(jax.jit, static_argnums=0)
def gradients(kind, data, state) -> Float[Array, "layers P C S"]:
    """Of all outputs, of each sample, where the matrices have room for them."""
    P, C = data.targets.shape
    signals = jnp.broadcast_to(jnp.eye(C)[:, None], (C, P, C))
    return sent_back(kind, data, state.fields, state.matrices, signals)[1].swapaxes(1, 2)


@partial(jax.jit, static_argnums=0)
def ntk(kind, data, fields, gradients) -> Float[Array, "P C P C"]:
    """Σ over the matrices of a²r Φ below ∘ G above."""
    P, C = data.targets.shape
    features = kind.on_samples(data, fields.features)
    features = data.space.weight * jnp.einsum("lps,lqs->lpq", features, features)
    gradients = data.space.weight * jnp.einsum("lpcs,lqes->lpcqe", gradients, gradients)
    gradients = jnp.broadcast_to(gradients, (len(gradients), P, C, P, C))
    first = jnp.einsum("pr,qr,pcqe->pcqe", data.inputs, data.inputs, gradients[0])
    between = jnp.einsum("lpq,lpcqe->pcqe", features[:-1], gradients[1:])
    last = jnp.einsum("pq,ce->pcqe", features[-1], jnp.eye(C))
    return data.rates[0] * first + data.rates[1] * between + data.rates[2] * last


def _kernels(kind, data, run, rng) -> Kernels:
    """From the fields of all measured steps, kept on the host."""
    (P, C), kept = data.targets.shape, []
    for state in run:
        fields, of_outputs = state.fields, _gradients(kind, data, rng, state)
        theta = ntk(kind, data, fields, of_outputs)
        kept.append(jax.device_get((kind.on_samples(data, fields.features), of_outputs, fields.outputs, theta)))
    features, of_outputs, outputs, theta = (np.stack(steps) for steps in zip(*kept, strict=True))
    weight = float(data.space.weight)
    of_gradients = weight * np.einsum("tlpcs,ulqes->ltupcqe", of_outputs, of_outputs, optimize=True)
    return Kernels(
        features=weight * np.einsum("tlps,ulqs->ltupq", features, features, optimize=True),
        gradients=np.broadcast_to(of_gradients, (*of_gradients.shape[:3], P, C, P, C)),
        outputs=outputs,
        ntk=theta,
    )
