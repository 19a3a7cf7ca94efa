"""Training a user's own network, measured on the way: what ``finite.training.train`` does with ours.

    recipe = Recipe("mine.py:build", "mse", "data.npz", "optax.adam(1e-3)", num_steps=100, measure_every=10)
    train(recipe, 64, keys, learning_rates=[0.5, 1.0, 2.0]) -> [Trajectory, …]        one network per key

A step is that of their optimiser, its updates times η0.  The loss is over their whole batch; curvature is raw, of the weights
as they are stored (``finite.curvature.own``).  As with ours, other learning rates and keys compile nothing, and on a CPU a
network is the same alone or among others.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from finite.curvature import own
from finite.curvature.observers import in_turn, size
from finite.networks import from_file
from finite.networks.own import Model
from finite.training.side_by_side import Plan, device_memory
from limits.machine import computing
from limits.problem import minibatches
from limits.trajectory import OBSERVABLES, Trajectory

LOG = logging.getLogger(__name__)
PROBES = 16  # of the trace
KEPT = 10  # times its weights is what a network keeps: those, two moments, gradients, going in and coming out


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how, in the words of the user: every process reads their files for itself.

    model, loss, batch, optimizer    as ``finite.networks.from_file`` reads them
    batch_size    samples per step, drawn epoch by epoch along the leading axes of their batch; None: all of them
    seed          of what is drawn
    """

    model: str
    loss: str = ""
    batch: str = ""
    optimizer: str = ""
    num_steps: int = 1
    measure_every: int = 1
    batch_size: int | None = None
    seed: int = 0

    @property
    def steps(self) -> Int[np.ndarray, " T"]:
        """The measured ones; index t is before step t."""
        return np.arange(0, self.num_steps + 1, self.measure_every)

    @property
    def name(self) -> str:
        """In what is printed: their file without its folders, and the name in it."""
        return Path(self.model).name

    def read(self) -> Model:
        """Raises ValueError, in one line."""
        return _read(self)

    @property
    def num_samples(self) -> int:
        """Raises ValueError where the arrays of the batch are not of equally many samples."""
        counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.read().batch)}
        if len(counts) != 1 or counts == {()}:
            raise ValueError(f"{self.batch or self.model}: inputs and targets are of different numbers of samples, "
                             f"{', '.join(str(*count) or 'none' for count in sorted(counts))}")  # fmt: skip
        return next(iter(counts))[0]

    def digest(self) -> str:
        """SHA-256 of the user's files, as far as they are named, and of the batch."""
        digest = hashlib.sha256()
        for text in (self.model, self.loss, self.batch, self.optimizer):
            if ".py:" in text:
                digest.update(Path(text.rpartition(":")[0]).read_bytes())
        for leaf in jax.tree.leaves(self.read().batch):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()


@cache
def _read(recipe):
    return from_file.model(recipe.model, recipe.loss, recipe.batch)


class Program:
    """What is compiled once for a width, whatever the seeds and learning rates are; by the object."""

    def __init__(self, recipe: Recipe, width: int):
        model = recipe.read()
        params, apply = model.at(width, jax.random.key(0))
        self.width, self.objective = width, own.objective(model, apply)
        self.optimizer = from_file.transformation(from_file.optimizer(recipe.optimizer), width, params)
        self.data = jax.tree.map(jnp.asarray, tuple(model.batch))
        self.shapes = jax.eval_shape(lambda tree: jax.tree.map(jnp.asarray, tree), params)
        samples, of_step = recipe.num_samples, recipe.batch_size
        drawn = of_step and minibatches(np.random.default_rng((recipe.seed, 1)), samples, of_step, recipe.num_steps)
        self.batches = drawn if drawn is None else jnp.asarray(drawn, jnp.int32)
        self.vectorized = jax.default_backend() != "cpu"
        from_file.check(self.objective, self.optimizer, self.shapes, self.data, width)

    def over_networks(self, function: Callable) -> Callable:
        return jax.vmap(function) if self.vectorized else partial(in_turn, function)


@cache
def program_of(recipe: Recipe, width: int) -> Program:
    """Raises ValueError, in one line, for what is no network, optimiser or batch, or does not fit together."""
    with computing("float32"):
        return Program(recipe, width)


def check_start(recipe: Recipe, width: int) -> None:
    """Raises ValueError, in one line, where the loss is not finite before anything is trained."""
    program = program_of(recipe, width)
    with computing("float32"):
        params, _ = recipe.read().at(width, jax.random.key(0))
        loss = float(jax.jit(program.objective)(params, program.data))
    if not np.isfinite(loss):
        raise ValueError(f"the loss at width {width} is {loss} at step 0: there is nothing to train")


def train(
    recipe: Recipe,
    width: int,
    keys: Array,
    learning_rates: Sequence[float],
    *,
    observables: Sequence[str] = ("loss",),
    curvature_samples: int | None = None,
    top_k: int = 1,
    rtol: float = 1e-2,
    progress: Callable[[float], None] | None = None,
) -> list[Trajectory]:
    """The trajectories of one network per key, each at its learning rate; keys may repeat.

    observables          of ``MEASURES``, and the loss
    curvature_samples    all but the loss are of the first so many samples, by default of all
    rtol                 relative tolerance of eigenvalues

    Raises ValueError, in one line, for what cannot be trained.  A divergence is no error.
    """
    program = program_of(recipe, width)
    check_observables(program, observables)
    with computing("float32"):
        plan = _plan(program, len(keys))
        LOG.info("%s", plan)
        trajectories, chunks = [], plan.rows()
        curved = jax.tree.map(lambda rows: rows[:curvature_samples], program.data)
        measured = _Measured(program, curved, tuple(observables), top_k, rtol)
        for done, rows in enumerate(chunks):
            report = lambda part: progress and progress((done + part) / len(chunks))  # noqa: B023, E731
            etas = jnp.asarray([learning_rates[row] for row in rows], jnp.float32)
            trajectories += _chunk(program, recipe, keys[rows], etas, measured, report)
    return trajectories[: len(keys)]  # without the last chunk's padding


def check_observables(program: Program, observables: Sequence[str]) -> None:
    """Raises ValueError for what is not measured of a network that is not ours."""
    if unknown := [name for name in observables if name != "loss" and name not in MEASURES]:
        raise ValueError(f"{unknown[0]} is not measured of a network of your own; there are loss, {', '.join(MEASURES)}")
    if "preconditioned_sharpness" in observables and not has_adam(program):
        raise ValueError("preconditioned_sharpness: there is no adam in the optimizer whose preconditioner could be known")


def has_adam(program: Program) -> bool:
    """Whether there is an Adam in its optimiser."""
    return bool(_adams(jax.eval_shape(program.optimizer.init, program.shapes)))


def _plan(program, networks):
    """On a CPU in turn; on an accelerator side by side, as many as the memory holds."""
    kept = 4 * KEPT * size(program.shapes)
    held = kept + program.vectorized * 4 * 3 * _signals(program)
    return Plan(networks, ceil(networks / max(1, int(device_memory(held) // held))), program.vectorized, 1)


def _signals(program):
    """Numbers that a forward pass makes, those within loops once."""
    traced = jax.make_jaxpr(program.objective)(program.shapes, program.data)
    return sum(size([out.aval]) for equation in traced.jaxpr.eqns for out in equation.outvars)


def _chunk(program, recipe, keys, etas, measured, report):
    params = _initial(recipe.read(), program.width, keys)
    state, steps, rows = _begin(program, etas, params), recipe.steps, []
    for index, step in enumerate(steps):
        if index:
            stretch = np.int32(steps[index - 1]), np.int32(step)
            params, state = _advance(program, program.data, program.batches, etas, params, state, *stretch)
        losses = np.asarray(_losses(program, program.data, etas, params), float)
        rows.append([measured.at_step(place, key, index, loss, partial(_one, (params, state), place))
                     for place, (key, loss) in enumerate(zip(keys, losses, strict=True))])  # fmt: skip
        report((index + 1) / len(steps))
    measured.starts.clear()
    return [_trajectory(steps, column) for column in zip(*rows, strict=True)]


def _one(networks, place):
    return jax.tree.map(lambda leaf: leaf[place], networks)


def _initial(model, width, keys):
    """(network, …) weights; a key that repeats, for another learning rate, is built once."""
    numbers = np.asarray(jax.random.key_data(keys))
    _, first, places = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    built = [model.at(width, keys[i])[0] for i in first]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)[places.reshape(-1)]), *built)


@partial(jax.jit, static_argnums=0)
def _begin(program, etas, params):
    return program.over_networks(lambda eta, params: program.optimizer.init(params))(etas, params)


@partial(jax.jit, static_argnums=0)
def _losses(program, data, etas, params):
    return program.over_networks(lambda eta, params: program.objective(params, data))(etas, params)


@partial(jax.jit, static_argnums=0)
def _advance(program, data, batches, etas, params, state, start, stop):
    """Weights and optimiser's state after the steps start, …, stop − 1."""

    def advance(eta, params, state):
        def step(t, carry):
            params, state = carry
            batch = data if batches is None else jax.tree.map(lambda rows: rows[batches[t]], data)
            updates, state = program.optimizer.update(jax.grad(program.objective)(params, batch), state, params)
            return jax.tree.map(lambda p, u: (p + eta * u).astype(p.dtype), params, updates), state

        return jax.lax.fori_loop(start, stop, step, (params, state))

    return program.over_networks(advance)(etas, params, state)


# Measurements ---------------------------------------------------------------------------------------------------------


class _Measured:
    """What is measured of one network at a time; eigenvectors of the last measurement start the next."""

    def __init__(self, program, curved, observables, top_k, rtol):
        self.program, self.curved, self.top_k, self.rtol = program, curved, top_k, rtol
        self.observables = [name for name in observables if name != "loss"]
        self.starts: dict[tuple[str, int], Any] = {}

    def at_step(self, place, key, index, loss, network) -> dict[str, tuple[Any, Any, Any]]:
        """(value, error or None, products or None) by observable, at a measured step; ``network()`` is (params, state)."""
        readings = {"loss": (loss, None, None)}
        for name in self.observables:
            measure, counted = MEASURES[name]
            if np.isfinite(loss):
                at = jax.random.fold_in(jax.random.fold_in(key, 0x6D656173), index)
                readings[name] = jax.device_get(measure(self, place, at, *network()))
            else:
                lost = np.full(self.top_k, np.nan) if OBSERVABLES[name].axis else np.nan
                readings[name] = (lost, np.full_like(lost, np.inf), 0) if counted else (lost, None, None)
        return readings

    def extremes(self, name, place, params, top, preconditioner=None):
        extremes = own.sharpness(self.program.objective, params, self.curved, top=top, rtol=self.rtol,
                                 start=self.starts.get((name, place)), preconditioner=preconditioner)  # fmt: skip
        past = jax.tree.map(lambda rows: jnp.nan_to_num(rows).sum(0), extremes.vectors)
        self.starts[name, place] = jax.tree.structure(params).unflatten(jax.tree.leaves(past))
        return extremes


def _eigenvalues(measured, place, key, params, state):
    extremes = measured.extremes("hessian", place, params, measured.top_k)
    return extremes.values, extremes.errors, extremes.matvecs


def _preconditioned(measured, place, key, params, state):
    by = _preconditioner(measured.program, measured.program.data, params, state)
    extremes = measured.extremes("preconditioned", place, params, 1, by)
    return extremes.values[0], extremes.errors[0], extremes.matvecs


def _trace(measured, place, key, params, state):
    return *own.trace(measured.program.objective, params, measured.curved, key, probes=PROBES), PROBES


def _noise(measured, place, key, params, state):
    return own.gradient_noise(measured.program.objective, params, measured.curved), None, None


MEASURES = {  # by observable: how, and whether it has an error, and takes products
    "hessian_eigenvalues": (_eigenvalues, True),
    "preconditioned_sharpness": (_preconditioned, True),
    "hessian_trace": (_trace, True),
    "gradient_noise": (_noise, False),
}


RAW = "H = ∇²L, of the weights as they are stored"
DEFINITIONS = {  # where they are not those of ``limits.trajectory``
    "loss": "the loss that was given, of the whole batch",
    "hessian_eigenvalues": f"the top_k algebraically largest eigenvalues of {RAW}",
    "preconditioned_sharpness": "the largest eigenvalue of P^{-1/2} H P^{-1/2}, P = (√v̂ + ε)/r of the Adam in the optimizer at "
                                f"the step that follows, r its learning rates; {RAW}",
    "hessian_trace": f"the trace of {RAW}",
    "gradient_noise": "(1/P) Σ_p |∇ℓ_p − ∇L|², ℓ_p the loss of one sample, of the weights as they are stored",
}  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _preconditioner(program, data, params, state):
    """P = (√v̂ + ε)/r of the step that follows, on the whole batch, r being the learning rates in their optimiser: of every
    Adam in it, whatever stands around it, by how its update answers to its first moment, −∂u/∂m̂ = 1/P.  What no Adam moves
    is held, P = ∞.
    """
    gradient, nodes = jax.grad(program.objective)(params, data), _adams(state)

    def update(moments):
        given = iter(moments)
        moved = jax.tree.map(lambda node: node._replace(mu=next(given)) if _is_adam(node) else node, state, is_leaf=_is_adam)
        updates, after = program.optimizer.update(gradient, moved, params)
        return updates, [node.mu for node in _adams(after)]

    moments = [node.mu for node in nodes]
    _, (slopes, decays) = jax.jvp(update, (moments,), (jax.tree.map(jnp.ones_like, moments),))
    beta = jax.tree.leaves(decays)[0].ravel()[0]
    unbiased = beta / (1 - beta ** (nodes[0].count + 1))
    return jax.tree.map(lambda slope: -unbiased / slope, slopes)


def _is_adam(node):
    return type(node).__name__ == "ScaleByAdamState"  # optax's, which is imported where theirs is


def _adams(state):
    return [node for node in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(node)]


def _trajectory(steps, column):
    """Of what was found at each step, in float64."""
    kinds = [{name: [at[name][kind] for at in column] for name in column[0] if column[0][name][kind] is not None}
             for kind in range(3)]  # fmt: skip
    values, errors = ({name: np.array(series, float) for name, series in kind.items()} for kind in kinds[:2])
    return Trajectory(steps, values, errors, {name: np.array(series, int) for name, series in kinds[2].items()})
