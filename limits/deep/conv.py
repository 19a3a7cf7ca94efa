"""Convolutional networks in μP and Depth-μP at N = ∞, on images: the fields of ``limits.deep.conv_network``, sampled.

SimpleConvNet, the deep convolutional network, and the residual one with one convolution in a block: loss, NTK and
Gauss-Newton eigenvalues, and the eigenvalues of the Hessian that gradients see (``limits.deep.lanczos``).

Cost: a step at which a matrix has met n patches and m gradients takes about as long as 1.5 (n + m) K P Y S multiplications at
``limits.machine.RATE``, Y the places of the map behind it and K the pixels of a patch; measuring the Hessian once, as 30 to
100 steps.  The error is the spread of independent repeats and the step from S/2 to S.
"""

from collections.abc import Iterator
from math import prod, sqrt

import jax
import jax.numpy as jnp
import numpy as np

from limits.deep import conv_network, lanczos
from limits.deep.conv_network import FIRST_STRIDE, SIDE, Kind, State, advance, begin, first_draws, grown, more_draws, ntk
from limits.deep.dmft import (
    MEASURING,
    RATE,
    ROOM,
    check_sampling,
    data_of,
    left_open,
    mean_hessian,
    motion,
    observables,
    require_room,
    stacked,
)
from limits.deep.gaussian_matrix import Space
from limits.deep.network import Data
from limits.exponents.parametrization import fan_in_multiplier
from limits.machine import in_float64, two_digits
from limits.models import MODELS, POOLINGS
from limits.problem import Problem
from limits.repeats import drift, errors_of, first_ranks
from limits.theories import features_stay, insist, other_layers, other_powers, unknown_to_all
from limits.trajectory import Trajectory

SAMPLES, REPEATS = 1024, 24  # by default; more samples where a step's gradients ask for them
# What is left out of fields, where they move by one.  Of SimpleConvNet on 8 photographs, 64 steps at S = 512, 1934 of 2080
# patches were kept at 0.001, and 952, 447, 176 at 0.01, 0.03, 0.1, in a third of the time.  Of three small images with averages
# the loss had moved by 0.0343 in four steps, and at 0.01, 0.03 lay 0.3 %, 1.3 % of that higher than at 0.001 (S = 8192).
# Gradients all bring something new as long as S has room for it: 990 of 1024, 1949 of 2048.
TOLERANCE = 0.01
FAMILY = "conv"  # of ``limits.models``, SimpleConvNet
FAMILIES = frozenset(row.family for row in MODELS.values() if row.pools)
STAGES = 3  # of the deep ones
PRODUCTS = 20  # of a measurement of the Hessian, about: 8, or 24 where what is looked for lies in the bulk
READ = 10  # multiplications in the time in which a number of Lanczos' basis is read, as it is six times for each product
CURVED = 6  # of so many runs one for the Hessian


@in_float64
def solve(
    problem: Problem, *, samples: int | None = None, repeats: int = REPEATS, seed: int = 0, hessian: bool = True
) -> Trajectory:
    """The limit of the problem's network: loss, NTK and Gauss-Newton eigenvalues at the measured steps, and the Hessian.

    hessian   whether the Hessian's are found too: its largest eigenvalues and the directional sharpness
    samples   S, a power of two; gradients that were met leave S less their number of directions to new ones, so S is at least
              four times what a step brings.  By default that, and no less than ``SAMPLES``
    repeats   independent runs, whose mean outputs and NTK the values are of; a sixth of them for the Hessian's, which cost ten
              times as much and are the mean of theirs.  Errors are their scatter (``limits.repeats``) and, in squares, what
              is changed by half as many samples and twice the tolerance, in half as many runs; and Lanczos' own bound

    >>> images, classes = np.random.default_rng(0).normal(size=(2, 64)), np.eye(2)
    >>> problem = Problem(images, classes, model="conv", learning_rate=0.2, num_steps=2, measure_every=2)
    >>> limit = solve(problem, samples=128, repeats=2, hessian=False)
    >>> [bool(loss > 0) for loss in limit["loss"]], limit["ntk_eigenvalues"].shape
    ([True, True], (2, 3))

    Raises ValueError, in one line, for what has no such limit, and MemoryError for what does not fit this machine: at once, or
    later if fields need more room than usual.
    """
    samples = _samples(problem, samples)
    kind, data = _read(problem, samples, repeats)
    insist_on_room(problem, samples, repeats, hessian=hessian)
    halved = data._replace(space=data.space._replace(copies=jnp.asarray(2), tolerance=2 * data.space.tolerance))
    fewer = _of_them(repeats, 2)
    fine, of_hessian = _measured(problem, kind, data, samples, repeats, seed, hessian * _of_them(repeats, CURVED))
    coarse, of_coarse_hessian = _measured(problem, kind, halved, samples, fewer, seed + 1, hessian * _of_them(fewer, CURVED))
    ranks = problem.top_k + problem.num_outputs
    values, of_coarse = (_of_mean(kind, data, runs, ranks) for runs in (fine, coarse))
    of_repeats = stacked([observables(kind, data, *run, ranks) for run in fine])
    drifts = drift(problem, values, of_repeats)
    spread = errors_of(values, of_repeats, drifts, averaged=repeats)
    errors = {name: np.hypot(error, of_coarse[name] - values[name]) for name, error in spread.items()}
    if hessian:
        curved, curved_errors = mean_hessian(of_hessian, of_coarse_hessian, drifts)
        values, errors = values | curved, errors | curved_errors
    values, errors = (first_ranks(observed, problem.top_k) for observed in (values, errors))
    return Trajectory(problem.steps, values, errors, left_open=left_open(kind, hessian))


def _of_them(repeats: int, parts: int) -> int:
    return max(2, repeats // parts)


def _of_mean(kind, data, runs, ranks):
    return observables(kind, data, *(np.mean(of_runs, 0) for of_runs in zip(*runs, strict=True)), ranks)


def work(problem: Problem, samples: int | None = None, repeats: int = REPEATS, *, hessian: bool = True) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``solve``, to a factor of about three.  Of the patches that a matrix meets in
    training a third brings something new, of the gradients all, as long as S has room for it."""
    samples = _samples(problem, samples)
    kind, (P, C), T = kind_of(problem), problem.targets.shape, int(problem.steps[-1]) + 1
    X, patch, measured = prod(kind.places[0]), SIDE**2 * kind.image[2], len(problem.steps)
    b = hessian * min(problem.top_k, C)
    training, numbers = 4 * P * X * patch * samples * T, (8 * P * X + P * C * patch) * samples
    curvature, basis = 0.0, b * (patch + C) * samples
    for Y, K in zip(*kind.counts[:2], strict=True):
        rows, products = P * Y, P * Y * b * PRODUCTS
        below, above = max(ROOM, rows * T / 3), max(ROOM, min(rows * T, samples))
        n, m = 2 * (below + products), min(above + products, samples + rows * b)
        training += 1.5 * K * (below + above) * rows * (T + C * measured) * samples
        curvature += 6 * K * (below + above + products / 2) * products * measured * samples
        curvature += 6 * READ * b * n * m * PRODUCTS**2 / 2 * measured
        numbers += 3 * (K + 1) * (n + m + rows * C) * samples
        basis += b * n * m
    fewer = _of_them(repeats, 2)
    multiplications = (repeats + fewer) * training + (_of_them(repeats, CURVED) + _of_them(fewer, CURVED)) * curvature
    return multiplications, numbers + 2 * (lanczos.BLOCKS + 1) * basis


def insist_on_room(problem: Problem, samples: int | None = None, repeats: int = REPEATS, *, hessian: bool = True) -> None:
    """Raises MemoryError, or ValueError where a step has too many gradients, in a line, for what ``solve`` would not begin."""
    samples = _samples(problem, samples)
    _check_room_for_gradients(problem, samples)
    multiplications, numbers = work(problem, samples, repeats, hessian=hessian)
    require_room(numbers, f"this limit takes about {two_digits(multiplications / RATE / 60)} minutes and needs")


def refuses(problem: Problem) -> str | None:
    """Why there is no such limit."""
    if refusal := unknown_to_all(problem) or other_powers(problem.scaling()) or features_stay(problem):
        return refusal
    if refusal := other_layers(problem, FAMILIES, "convolutions"):
        return refusal
    if len(kind_of(problem).pools) == 1:  # the readout's alone
        return "no limit is known of one convolution and a readout: depth 2 at least"
    return None


def kind_of(problem: Problem) -> Kind:
    """What is compiled for the problem's network."""
    model = problem.network
    residual = model.architecture == "residual"
    if model.family == FAMILY:
        shape = {"stride": 4, "pools": ((1,), (1,)), "pool_first": POOLINGS[model.pooling].first, "gain": 1.0}
    else:
        pools = _pools(model.depth - (not residual))
        shape = {"stride": 1, "pools": pools, "pool_first": True, "gain": sqrt(2.0)}
    of_problem = {"activation": model.activation, "loss": problem.loss, "nesterov": problem.nesterov, "image": problem.image}
    return Kind(**of_problem, pooling=model.pooling, residual=residual, **shape)


def _pools(count) -> tuple[tuple[int, ...], ...]:
    """Before each of so many convolutions of the deep network, and the readout: three stages share them as evenly as they can,
    a pooling is behind each, and all but the last leave no fewer than 2×2 pixels."""
    pools, due = [], ()
    for stage in range(STAGES):
        for _ in range(count // STAGES + (stage < count % STAGES)):
            pools.append(due)
            due = ()
        due = (*due, 2 if stage < STAGES - 1 else 1)
    return (*pools, due)


def _read(problem, samples, repeats) -> tuple[Kind, Data]:
    """The problem as it is computed."""
    check_sampling(samples, repeats)
    kind = kind_of(problem)
    images = jnp.asarray(problem.inputs).reshape(-1, *problem.image) * fan_in_multiplier(problem.image[2])
    space = Space(1.0 / samples, TOLERANCE * motion(problem))
    between = "block" if kind.residual else "hidden"
    return kind, data_of(problem, conv_network.neighbourhoods(images, FIRST_STRIDE), between, space)


def _samples(problem, given: int | None) -> int:
    """The default where none are given; refuses what has no such limit."""
    insist(refuses(problem))
    return max(SAMPLES, _fewest(problem)) if given is None else given


def _fewest(problem) -> int:
    """Fields of S samples have S directions, of which a step must leave some, at S/2 too."""
    return 4 << (max(kind_of(problem).rows(problem)) - 1).bit_length()


def _check_room_for_gradients(problem, samples):
    if samples < (wanted := _fewest(problem)):
        rows = max(kind_of(problem).rows(problem))
        raise ValueError(f"{samples} samples: a step brings a matrix {rows} gradients, wanted at least {wanted} samples")


def _measured(problem, kind, data, samples, repeats, seed, curved) -> tuple[list, list]:
    """(f (T, P, C) and Θ (T, P, C, P, C) of independent runs, values and bounds of the Hessian of the first few).  What
    measuring draws, training does not see."""
    measured, of_hessian, copies = [], [], int(data.space.copies)
    gradients = [(0, data.targets.shape[1] * rows) for rows in kind.rows(data)]
    for index, of_run in enumerate(np.random.SeedSequence(seed).spawn(repeats)):
        of_measuring = np.random.SeedSequence(of_run.entropy, spawn_key=(*of_run.spawn_key, MEASURING))
        rng, of_steps, curvatures = np.random.default_rng(of_measuring), [], []
        for state in run(problem, kind, data, samples, np.random.default_rng(of_run)):
            theta = ntk(kind, data, state.matrices, state.fields, *more_draws(kind, rng, gradients, samples, copies))
            of_steps.append(jax.device_get((state.fields.outputs, theta)))
            if index < curved:
                curvatures.append(lanczos.outliers(kind, data, rng, state, problem.top_k))
        measured.append(tuple(np.stack(steps) for steps in zip(*of_steps, strict=True)))
        of_hessian += [tuple(stacked(steps) for steps in zip(*curvatures, strict=True))] * (index < curved)
    return measured, of_hessian


def run(problem, kind, data, samples, rng) -> Iterator[State]:
    """Behind each measured step, with its fields."""
    sizes, copies = (data.inputs.shape[1], *problem.targets.shape), int(data.space.copies)
    rooms = [(max(ROOM, 4 * rows),) * 2 for rows in kind.rows(data)]
    state = begin(kind, data, *first_draws(kind, rng, sizes, rooms, samples, copies))
    for step in problem.steps:
        while (state := advance(kind, data, state, step + 1)).step <= step:
            more = kind.lacking(data, state.matrices)
            rooms = [len(m.sent) + len(m.returned) + sum(pair) for m, pair in zip(state.matrices, more, strict=True)]
            require_room(sum(3 * fields * (K + 1) * samples for fields, K in zip(rooms, kind.counts[1], strict=True)))
            state = grown(state, *more_draws(kind, rng, more, samples, copies))
        yield state
