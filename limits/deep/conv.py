"""SimpleConvNet in μP at N = ∞, on images: fields per sample and place, sampled.

    h¹ = E ∗ x/√channels   (stride 2),      h² = W ∗ pool φ(h¹)   (stride 4),      f = V · pool φ(h²)/(γ0 √S)

(kernels of 3×3 pixels with 1/√9 in front, beyond the border zero; S pixels are left at the end).  As N → ∞ the channels of a
pixel become independent draws, so a map is a field at each of its places.  W acts on patches: with the K pixels of a kernel
that meet anything, z_py = (pool φ(h¹) at those around y)/√9 is a field of K times as many numbers, and W, all its K matrices
beside each other, one Gaussian matrix from patches to h² (``limits.deep.gaussian_matrix``).  Its transpose sends the
gradient at y to all pixels of the patch.  Pooling acts on each channel by itself: elementwise on samples.

    g²_py = V pulled back through the pooling,    g¹_px = (Wᵀ g²) pulled back through the patches      N γ0 ∂f/∂h at a place
    forces  γ0 a²r Σ_pc π_p Δ_pc · { Σ_x g¹_pxc x̂_pxᵀ on E,   Σ_y g²_pyc z_pyᵀ on W,   pool φ(h²) on V_c }

What training needs of the outputs is their sum Σ_c π_p Δ_pc g_pc, one cotangent per sample and place; only a measurement of
the NTK pulls each output back, and training does not see what it meets.  Optimiser and conventions are those of
``limits.deep.network``.

Cost: a step at which the matrix has met n patches and m gradients takes about 15 (n K + m K) P Y S multiplications, Y the
places of h².  The error is the spread of independent repeats and the step from S/2 to S.
"""

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.activations import ACTIVATIONS
from limits.deep.dmft import RATE, ROOM, TOLERANCE, check_sampling, data_of, motion, observables, require_room, stacked
from limits.deep.gaussian_matrix import GaussianMatrix, Space, has_room, longer, send, send_back, unmet, with_more
from limits.deep.network import Data, Weights, moved, quasi_gaussians, scaled, widened, without_outputs
from limits.exponents.parametrization import fan_in_multiplier
from limits.losses import LOSSES
from limits.machine import in_float64
from limits.models import POOLINGS
from limits.problem import Problem
from limits.repeats import errors_of, first_ranks
from limits.theories import features_stay, insist, other_powers, unknown_to_all
from limits.trajectory import Trajectory, hessian_left_open

SAMPLES, REPEATS = 2048, 4
FAMILY = "conv"  # of ``limits.models``
SIDE = 3  # pixels of a kernel
STRIDES = 2, 4
MEASURING = 2**31  # of a run's random streams, behind all that training may spawn

Map = Float[Array, "P _ _ S"]  # rows and columns


class Kind(NamedTuple):
    """What is compiled: the static argument of the compiled functions.  ``image`` is rows, columns, channels."""

    activation: str
    loss: str
    pooling: str
    image: tuple[int, int, int]
    nesterov: bool

    def activated(self, h: Map) -> Map:
        """pool φ(h), over 2×2 pixels where there are as many."""
        phi = ACTIVATIONS[self.activation].phi
        pool = partial(pooled, pooling=self.pooling)
        return phi(pool(h)) if POOLINGS[self.pooling].first else pool(phi(h))

    def seen(self, h: Float[Array, "PX S"]) -> Float[Array, "PY KS"]:
        """z: the patches of pool φ(h¹)."""
        return neighbourhoods(self.activated(h.reshape(-1, *self.places[0], h.shape[-1])), STRIDES[1])

    def features(self, h: Float[Array, "PY S"]) -> Float[Array, "P ZS"]:
        """pool φ(h²) of the Z places that are left, over √Z."""
        last = self.activated(h.reshape(-1, *self.places[1], h.shape[-1]))
        return last.reshape(len(last), -1) * fan_in_multiplier(prod(last.shape[1:3]))

    @property
    def places(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of h¹ and h²."""
        first = tuple(-(-side // STRIDES[0]) for side in self.image[:2])
        return first, tuple(-(-side // STRIDES[1]) for side in _halved(first))

    @property
    def counts(self) -> tuple[int, int, int]:
        """(Y places of h², K pixels of its patches, Z places of the features)"""
        first, second = self.places
        K = prod(len(_taps(side, STRIDES[1])) for side in _halved(first))
        return prod(second), K, prod(_halved(second))


def _halved(sides):
    """What pooling leaves."""
    return tuple(side // 2 for side in sides) if min(sides) > 1 else tuple(sides)


def pooled(x: Map, pooling: str) -> Map:
    """Over 2×2 pixels where there are as many; odd ones at the end are dropped."""
    P, *sides, S = x.shape
    if min(sides) < 2:
        return x
    rows, columns = _halved(sides)
    windows = x[:, : 2 * rows, : 2 * columns].reshape(P, rows, 2, columns, 2, S)
    return POOLINGS[pooling].of(windows, axis=(2, 4))


def neighbourhoods(x: Map, stride: int) -> Float[Array, "_ _"]:
    """The patches of 3×3 pixels, over √9, without the pixels that are beyond the border in all of them ("SAME" in XLA)."""
    _, rows, columns, S = x.shape
    borders = jax.lax.padtype_to_pads((rows, columns), (SIDE, SIDE), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    down, across = (-(-side // stride) * stride for side in (rows, columns))
    taps = [
        padded[:, i : i + down : stride, j : j + across : stride] for i in _taps(rows, stride) for j in _taps(columns, stride)
    ]
    return jnp.stack(taps, 3).reshape(-1, len(taps) * S) / SIDE


def _taps(side, stride) -> list[int]:
    """The pixels of a kernel that anywhere meet a pixel of the map, along one axis."""
    ((before, _),) = jax.lax.padtype_to_pads((side,), (SIDE,), (stride,), "SAME")
    return [i for i in range(SIDE) if any(0 <= y + i - before < side for y in range(0, side, stride))]


class Fields(NamedTuple):
    """weights that they go by · outputs f · h¹ and h² · coordinates of the patches that W met."""

    weights: Weights
    outputs: Float[Array, "P C"]
    first: Float[Array, "PX S"]
    second: Float[Array, "PY S"]
    below: Float[Array, "PY n"]


class State(NamedTuple):
    """Before a step; the fields are those of the step before."""

    step: Int[Array, ""]
    weights: Weights
    velocity: Weights
    matrix: GaussianMatrix
    now: Fields


def first_draws(kind, rng, sizes, samples, copies=1):
    """First weights (r, S), Gaussians in store (n, S) and (m, KS), last weights (C, ZS).  All that meets in the same neurons
    at step 0 is one Sobol net."""
    (r, P, C, n, m), (Y, K, Z), size = sizes, kind.counts, samples // copies
    first, back = np.split(quasi_gaussians(rng, r + K * P * Y, size), [r])
    sent, last = np.split(quasi_gaussians(rng, P * Y + C * Z, size), [P * Y])
    more_sent, more_back = rng.normal(size=(n - P * Y, size)), rng.normal(size=((m - P * Y) * K, size))
    sent, back = np.concatenate([sent, more_sent]), np.concatenate([back, more_back])
    first, sent, back, last = (np.tile(of, copies) for of in (first, sent, back, last))
    return first, sent, back.reshape(m, -1), last.reshape(C, -1)


def more_draws(kind, rng, n, m, samples, copies=1):
    """As many more Gaussians in store, (n, S) and (m, KS)."""
    drawn = np.tile(rng.normal(size=(n + m * kind.counts[1], samples // copies)), copies)
    return drawn[:n], drawn[n:].reshape(m, -1)


@partial(jax.jit, static_argnums=0)
def begin(kind, data, first, sent, returned, last) -> State:
    """Before step 0, with these Gaussians."""
    (n, S), m, rows = sent.shape, len(returned), len(data.targets) * kind.counts[0]
    weights = Weights(data.scales[0] * first, data.scales[1], jnp.zeros((m, n)), data.scales[2] * last)
    velocity = jax.tree.map(jnp.zeros_like, weights)
    shapes = data.targets.shape, (len(data.inputs), S), (rows, S), (rows, n)
    nothing = Fields(velocity, *(jnp.zeros(shape) for shape in shapes))
    return State(jnp.zeros((), int), weights, velocity, unmet(sent, returned), nothing)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(kind, data, state, until) -> State:
    """Steps up to ``until``, or as long as the matrix has room.  Its fields are those that the last step went by."""
    rows = len(data.targets) * kind.counts[0]

    def going(state):
        return (state.step < until) & has_room(state.matrix, rows, rows)

    def step(state):
        weights, space = state.weights, data.space
        h = data.inputs @ weights.first
        matrix, second, below = send(space, state.matrix, kind.seen(h), weights.left, weights.trained)
        features, last = kind.features(second), weights.last
        last = jax.lax.cond(state.step == 0, lambda: without_outputs(space, features, last), lambda: last)
        weights = weights._replace(last=last)
        now = Fields(weights, space.products(features, last) / data.richness, h, second, below)
        share = data.shares[state.step % len(data.shares)]
        errors = -LOSSES[kind.loss].gradient(now.outputs, data.targets) * share[:, None] * data.richness
        matrix, g, above = cotangents(kind, data, matrix, now, errors)
        force = Weights(data.inputs.T @ g, jnp.zeros(()), above.T @ below, errors.T @ features)
        weights, velocity = moved(kind, data, state.step, weights, state.velocity, scaled(data, force))
        return State(state.step + 1, weights, velocity, matrix, now)

    return jax.lax.while_loop(going, step, state)


def cotangents(kind, data, matrix, now, signal: Float[Array, "P C"]) -> tuple[GaussianMatrix, Array, Array]:
    """(the matrix, Σ_c signal_pc g¹_pxc (PX, S), coordinates of Σ_c signal_pc g²_pyc (PY, m))"""
    (g,) = jax.vjp(kind.features, now.second)[1](signal @ now.weights.last)
    matrix, g, above = send_back(data.space, matrix, g, now.weights.left, now.weights.trained)
    return matrix, jax.vjp(kind.seen, now.first)[1](g)[0], above


@partial(jax.jit, static_argnums=0)
def ntk(kind, data, matrix, now, sent, returned) -> Float[Array, "P C P C"]:
    """Σ over the matrices of a²r <∂f ∂f>; these draws make room for the gradients of all outputs."""
    (P, C), rows = data.targets.shape, len(now.below)
    now = now._replace(weights=widened(now.weights, len(sent), len(returned), 0), below=longer(now.below, len(sent)))

    def of_output(matrix, signal):
        matrix, g, above = cotangents(kind, data, matrix, now, jnp.broadcast_to(signal, (P, C)))
        first = jnp.einsum("pxr,pxs->prs", data.inputs.reshape(P, -1, data.inputs.shape[1]), g.reshape(P, -1, g.shape[1]))
        return matrix, (first.reshape(P, -1), above.reshape(P, rows // P, -1))

    _, (first, above) = jax.lax.scan(of_output, with_more(matrix, sent, returned), jnp.eye(C))
    below = now.below.reshape(P, rows // P, -1)
    features = kind.features(now.second)
    below = jnp.einsum("pyn,qzn->pyqz", below, below)
    above = jnp.einsum("cpym,eqzm->pycqze", above, above)
    return (
        data.rates[0] * data.space.weight * jnp.einsum("cps,eqs->pcqe", first, first)
        + data.rates[1] * jnp.einsum("pyqz,pycqze->pcqe", below, above)
        + data.rates[2] * jnp.einsum("pq,ce->pcqe", data.space.products(features, features), jnp.eye(C))
    )


@jax.jit
def grown(state, sent, returned) -> State:
    """The same with room for as many more fields."""
    n, m = len(sent), len(returned)
    weights, velocity, at = (widened(of, n, m, 0) for of in (state.weights, state.velocity, state.now.weights))
    now = state.now._replace(weights=at, below=longer(state.now.below, n))
    return State(state.step, weights, velocity, with_more(state.matrix, sent, returned), now)


@in_float64
def solve(
    problem: Problem, *, samples: int = SAMPLES, repeats: int = REPEATS, seed: int = 0, hessian: bool = True
) -> Trajectory:
    """The limit of SimpleConvNet: loss, NTK and Gauss-Newton eigenvalues and the trace of the Hessian at the measured steps.

    samples   S, a power of two; gradients that were met leave S less their number of directions to new ones: of SimpleConvNet
              on 8 photographs 1000 were met in 64 steps at S = 1024, and the loss moved by 5 % from half of that S
    repeats   independent runs, whose mean outputs and NTK the values are of.  Errors are their scatter
              (``limits.repeats``) and, in squares, what is changed by half as many samples, in half as many runs

    >>> images, classes = np.random.default_rng(0).normal(size=(2, 64)), np.eye(2)
    >>> problem = Problem(images, classes, model="conv", learning_rate=0.2, num_steps=2, measure_every=2)
    >>> limit = solve(problem, samples=128, repeats=2)
    >>> [bool(loss > 0) for loss in limit["loss"]], limit["ntk_eigenvalues"].shape
    ([True, True], (2, 3))

    The Hessian's other observables are left open.  Raises ValueError, in one line, for what has no such limit, and
    MemoryError for what does not fit this machine: at once, or later if fields need more room than usual.
    """
    kind, data = _read(problem, samples, repeats)
    insist_on_room(problem, samples, repeats, hessian=hessian)
    halved = data._replace(space=data.space._replace(copies=jnp.asarray(2)))
    fine = _measured(problem, kind, data, samples, repeats, seed)
    coarse = _measured(problem, kind, halved, samples, _fewer(repeats), seed + 1)
    ranks = problem.top_k + problem.num_outputs
    values, of_coarse = (_of_mean(kind, data, runs, ranks) for runs in (fine, coarse))
    spread = errors_of(values, stacked([observables(kind, data, *run, ranks) for run in fine]), averaged=repeats)
    errors = {name: np.hypot(of, of_coarse[name] - values[name]) for name, of in spread.items()}
    values, errors = (first_ranks(of, problem.top_k) for of in (values, errors))
    open_ = hessian_left_open("the limit of convolutions is known of the Gauss-Newton part only")
    return Trajectory(problem.steps, values, errors, left_open=open_)


def _fewer(repeats):
    return max(2, repeats // 2)


def _of_mean(kind, data, runs, ranks):
    return observables(kind, data, *(np.mean(of, 0) for of in zip(*runs, strict=True)), ranks)


def work(problem: Problem, samples: int = SAMPLES, repeats: int = REPEATS, *, hessian: bool = True) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``solve``, to a factor of about three.  Fields of kinks do not repeat: in T
    steps a matrix meets T times the patches of one."""
    kind, (P, C), T = _kind(problem), problem.targets.shape, int(problem.steps[-1]) + 1
    (Y, K, _), X, patch = kind.counts, prod(kind.places[0]), SIDE**2 * kind.image[2]
    met, measured = P * Y * T, len(problem.steps)
    step = 30 * K * met * P * Y * samples + 4 * P * X * patch * samples
    room = 2 * max(ROOM, met)
    numbers = (3 * (K + 1) * (room + P * Y * C) + 8 * P * X + P * C * patch) * samples
    return (repeats + _fewer(repeats)) * step * (T + C * measured), numbers


def insist_on_room(problem: Problem, samples: int = SAMPLES, repeats: int = REPEATS, *, hessian: bool = True) -> None:
    """Raises MemoryError, in one line, for what ``solve`` would not begin."""
    multiplications, numbers = work(problem, samples, repeats, hessian=hessian)
    require_room(numbers, f"this limit takes about {multiplications / RATE / 60:.2g} minutes and needs")


def refuses(problem: Problem) -> str | None:
    """Why there is no such limit."""
    if refusal := unknown_to_all(problem) or other_powers(problem.scaling()) or features_stay(problem):
        return refusal
    if problem.network.family != FAMILY:
        return f"no limit is known for {problem.model} in {problem.scaling().name}"
    return None


def _kind(problem):
    model = problem.network
    return Kind(model.activation, problem.loss, model.pooling, problem.image, problem.nesterov)


def _read(problem, samples, repeats) -> tuple[Kind, Data]:
    """The problem as it is computed; refuses what has no such limit."""
    insist(refuses(problem))
    check_sampling(samples, repeats)
    images = jnp.asarray(problem.inputs).reshape(-1, *problem.image) * fan_in_multiplier(problem.image[2])
    space = Space(1.0 / samples, TOLERANCE * motion(problem))
    return _kind(problem), data_of(problem, neighbourhoods(images, STRIDES[0]), "hidden", space)


def _measured(problem, kind, data, samples, repeats, seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """f (T, P, C) and Θ (T, P, C, P, C) of independent runs.  What measuring draws, training does not see."""
    found = []
    for of_run in np.random.SeedSequence(seed).spawn(repeats):
        of_measuring = np.random.SeedSequence(of_run.entropy, spawn_key=(*of_run.spawn_key, MEASURING))
        rng, copies = np.random.default_rng(of_measuring), int(data.space.copies)
        gradients, of_steps = data.targets.size * kind.counts[0], []
        for state in run(problem, kind, data, samples, np.random.default_rng(of_run)):
            theta = ntk(kind, data, state.matrix, state.now, *more_draws(kind, rng, 0, gradients, samples, copies))
            of_steps.append(jax.device_get((state.now.outputs, theta)))
        found.append(tuple(np.stack(of) for of in zip(*of_steps, strict=True)))
    return found


def run(problem, kind, data, samples, rng) -> Iterator[State]:
    """Behind each measured step, with its fields."""
    (P, C), copies = problem.targets.shape, int(data.space.copies)
    n = m = max(ROOM, 4 * P * kind.counts[0])
    state = begin(kind, data, *first_draws(kind, rng, (data.inputs.shape[1], P, C, n, m), samples, copies))
    for step in problem.steps:
        while (state := advance(kind, data, state, step + 1)).step <= step:
            n, m = len(state.matrix.sent), len(state.matrix.returned)
            require_room(3 * 2 * (n + m) * (kind.counts[1] + 1) * samples)
            state = grown(state, *more_draws(kind, rng, n, m, samples, copies))
        yield state
