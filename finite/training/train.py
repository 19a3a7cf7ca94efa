"""Training networks of width N, measured on the way.

    train(problem, network, keys) -> [Trajectory, …]        one network per key

Loss, γ, optimiser and time are those of ``limits.problem``, observables those of ``limits.trajectory``, over all samples
if not told otherwise.  Between two measurements one compiled loop runs; one other compiled function measures.
Parametrization, learning rates, momentum, weight decay, data, batches and keys are arguments of both: changing them
compiles nothing.  Networks of several seeds and learning rates run side by side (``finite.training.side_by_side``).  Images may
be seen shifted and mirrored by the steps (``finite.training.augmentation``), never by what is measured.

What is trained are the weights as they act, multiplier · θ, at the learning rates that do the same to them.  Curvature is
measured by ``finite.curvature.observers``.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from finite.curvature import density
from finite.curvature import operators as curvature
from finite.curvature.observers import DENSITY, check_observers, coordinates, observe, operators, program_of, size
from finite.networks import Network, Params, by_role
from finite.numerics import USUAL, Numerics
from finite.training.augmentation import augmentation
from finite.training.descent import check_preconditioned, descent
from finite.training.side_by_side import plan
from limits.machine import compiled_soon, computing
from limits.problem import Problem
from limits.trajectory import Trajectory, check_storable, measured_by_default

LOG = logging.getLogger(__name__)


def train(
    problem: Problem,
    network: Network,
    keys: Array,
    *,
    learning_rates: Sequence[float] | None = None,
    initial: Params | None = None,
    observables: Sequence[str] | None = None,
    curvature_samples: int | None = None,
    numerics: Numerics = USUAL,
    progress: Callable[[float], None] | None = None,
) -> list[Trajectory]:
    """The trajectories of one network per key, e.g. ``keys = jax.random.split(jax.random.key(0), 8)``.

    network       built for this problem, e.g. ``mlp(problem, width)``; it starts at ``network.init(key)``
    learning_rates       η0 of each network, instead of the problem's for all; keys may repeat
    initial       start at these weights: ``params`` with a leading axis over the networks
    observables   which of ``limits.trajectory.storable()`` to measure; by default ``measured_by_default()``
    curvature_samples    all but the loss are measured on the first so many samples (default: all), which then stand for L
    numerics      precision, tolerances, what runs at once
    progress      called after every measured step with the fraction of the job that is done

    What was chosen is logged, as information of the logger "finite".

    Raises ValueError for an unknown observable or precision, for more eigenvalues than parameters, more curvature samples
    than there are, a density of fewer than two random vectors, and for a network, learning rates or weights that do not fit;
    MemoryError if ``memory`` does not hold one network.  A divergence is no error: from there on the values are not finite.

    >>> from finite.networks.build import build
    >>> problem = Problem([[1.0, 0.0], [0.0, 2.0]], [1.0, -1.0], learning_rate=0.2, num_steps=8, measure_every=4)
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> trained = train(problem, build(problem, 256), keys, observables=["loss"])
    >>> len(trained), trained[0]["loss"].shape, bool(trained[0]["loss"][-1] < trained[0]["loss"][0])
    (4, (3,), True)
    """
    with computing(numerics.precision):
        wanted = measured_by_default() if observables is None else observables
        compiled = program_of(problem, network.architecture, wanted, numerics)
        samples = problem.num_samples if curvature_samples is None else curvature_samples
        check(problem, network, compiled.observables, samples)
        _check_networks(keys, learning_rates, initial)
        if DENSITY & set(compiled.observables):
            density.check(numerics.density_probes, numerics.density_steps)
        chosen = plan(problem, network, compiled, len(keys), samples, numerics.memory)
        LOG.info("%s", chosen)
        etas = _etas(problem, learning_rates, len(keys))
        trajectories, chunks = [], chosen.rows()
        for done, rows in enumerate(chunks):
            weights = _weights(network, keys[rows], jax.tree.map(lambda leaf: leaf[rows], initial))  # noqa: B023
            report = None if progress is None else lambda part: progress((done + part) / len(chunks))  # noqa: B023
            trajectories += _train_chunk(problem, network, compiled, keys[rows], etas[rows], weights, samples, report)
    return trajectories[: len(keys)]  # without the last chunk's padding


def _etas(problem, learning_rates, networks) -> Float[np.ndarray, "networks steps"]:
    """The learning rate of every step of every network."""
    if learning_rates is None:
        return np.tile(problem.step_sizes, (networks, 1))
    return np.stack([replace(problem, learning_rate=float(rate)).step_sizes for rate in learning_rates])


def _train_chunk(problem, network, program, keys, etas, weights, samples, progress):
    """The trajectories of the networks that run side by side; ``weights``, as they act, have a leading axis over them."""
    steps, update = problem.steps, descent(problem, network)
    data = tuple(jnp.asarray(array, jnp.zeros(()).dtype) for array in (problem.inputs, problem.targets))
    curved = tuple(array[:samples] for array in data)
    batches = None if problem.batches is None else jnp.asarray(problem.batches, jnp.int32)
    augmented = augmentation(problem)
    etas = jnp.asarray(etas, update.eta.dtype)
    if program.numerics.vectorized:
        weights, keys, etas = _over_devices((weights, keys, etas))
    state, starts = _begin(program, update, curved, weights)
    measurements = []
    for index in range(len(steps)):
        if index:
            stretch = jax.device_put((np.int32(steps[index - 1]), np.int32(steps[index])))
            weights, state = _advance(program, update, data, batches, augmented, weights, state, keys, etas, *stretch)
        place = jax.device_put(np.int32(index))
        measured, starts = _measure(program, update, data, curved, weights, state, starts, keys, place)
        measurements.append(jax.device_get(measured))
        if progress is not None:
            progress((index + 1) / len(steps))
    return _trajectories(steps, measurements)


@partial(jax.jit, static_argnums=0)
def _begin(program, update, curved, weights):
    """The optimiser's state, and for every Lanczos run three vectors (``lanczos.warm_start``) of a past that it has not."""

    def begin(params):
        runs = operators(program, program.architecture, params, lambda v: v, curved)
        starts = {name: (jax.tree.map(jnp.zeros_like, run.like),) * 3 for name, run in runs.items()}
        return update.transformation().init(params), starts

    return program.over_networks(begin)(weights)


@partial(jax.jit, static_argnums=0)
def _advance(program, update, data, batches, augmented, weights, state, keys, etas, start, stop):
    """Weights and optimiser's state after the steps start, …, stop − 1."""
    apply = program.architecture.apply

    def step(t, carry, key, optimizer):
        params, state = carry
        inputs, targets = data if batches is None else jax.tree.map(lambda rows: rows[batches[t]], data)
        inputs = inputs if augmented is None else augmented.seen(_augmenting_key(key, t), inputs)
        gradient = jax.grad(lambda p: curvature.loss(apply, p, inputs, targets, program.ell))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def advance(params, state, key, eta):
        optimizer = replace(update, eta=eta).transformation()
        return jax.lax.fori_loop(start, stop, lambda t, carry: step(t, carry, key, optimizer), (params, state))

    return program.over_networks(advance)(weights, state, keys, etas)


@compiled_soon(static_argnums=0)
def _measure(program, update, data, curved, weights, state, starts, keys, index):
    """((values, errors, products) by observable; for every Lanczos run the vectors from which the next one starts)"""

    def measure(params, state, starts, key):
        loss = curvature.loss_of_many(program.architecture.apply, params, *data, program.ell)
        healthy = jnp.isfinite(loss)
        params = jax.tree.map(lambda leaf: jnp.where(healthy, leaf, 0), params)  # no Lanczos run on a diverged network
        rescaled = *coordinates(program.architecture, update, params), params, update.inverse_root(state)
        observed, starts = observe(program, *rescaled, curved, starts, _measuring_key(key, index + 1))
        values = {name: jnp.where(healthy, measured.value, jnp.nan) for name, measured in observed.items()}
        errors = {
            name: _or_infinite(measured.error, healthy) for name, measured in observed.items() if measured.error is not None
        }
        products = {name: measured.products for name, measured in observed.items() if measured.products is not None}
        return ({"loss": loss, **values}, errors, products), starts

    return program.over_networks(measure)(weights, state, starts, keys)


def _over_devices(tree):
    """The leading axis, of networks, in equal parts on all devices of this machine: what is compiled follows its data."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("networks",))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("networks")))


def _measuring_key(key, index):
    """A stream apart from the one that draws the weights."""
    return jax.random.fold_in(jax.random.fold_in(key, 0x6D656173), index)


def _augmenting_key(key, step):
    """Of how a step sees its batch: a stream apart from both."""
    return jax.random.fold_in(jax.random.fold_in(key, 0x6372_6F70), step)


def _or_infinite(error, healthy):
    return jnp.where(healthy & ~jnp.isnan(error), error, jnp.inf)


def _trajectories(steps, measurements):
    """One trajectory per network from the (values, errors, products) at each step, in float64."""
    *numbers, products = jax.tree.map(lambda *steps: np.stack(steps, axis=1), *measurements)
    values, errors = jax.tree.map(np.float64, numbers)
    return [
        Trajectory(steps, *jax.tree.map(lambda column: column[network], (values, errors, products)))  # noqa: B023
        for network in range(len(values["loss"]))
    ]


def check(problem: Problem, network: Network, observables: Sequence[str], curvature_samples: int = 1) -> None:
    """Raises ValueError, in one line, for what ``train`` would refuse of these, before anything is computed."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    check_storable(observables)
    check_observers(observables)
    if "preconditioned_sharpness" in observables:
        check_preconditioned(problem.optimizer)
    if not 1 <= curvature_samples <= problem.num_samples:
        raise ValueError(f"curvature_samples {curvature_samples} must be from 1 to the {problem.num_samples} samples")
    wanted = problem.scaling(network.scaling.architecture, network.depth), problem.richness, problem.trained
    if wanted != (network.scaling, network.richness, network.trained):
        raise ValueError("the network's exponents, richness or trained roles are not the problem's: build it for this problem")
    inputs = jax.ShapeDtypeStruct(problem.inputs.shape, jnp.float32)
    try:
        fits = jax.eval_shape(network.apply, shapes, inputs).shape == problem.targets.shape
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"no network from {inputs.shape} to {problem.targets.shape}: build it for this problem")
    if problem.top_k > size(shapes):
        raise ValueError(f"top_k {problem.top_k} is more than the network's {size(shapes)} parameters")


def _check_networks(keys, learning_rates, initial):
    if isinstance(keys, list | tuple) or jnp.ndim(keys) != (1 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else 2):
        raise ValueError("one key per network, along a leading axis: jax.random.split(key, number of networks)")
    if learning_rates is not None and len(learning_rates) != len(keys):
        raise ValueError(f"{len(keys)} keys but {len(learning_rates)} learning rates: one for each, keys may repeat")
    if initial is not None and any(leaf.shape[0] != len(keys) for leaf in jax.tree.leaves(initial)):
        raise ValueError(f"{len(keys)} keys but initial weights for {jax.tree.leaves(initial)[0].shape[0]} networks")


def _weights(network, keys, initial):
    """The initial weights of a chunk, as they act, with a leading axis over networks, in the precision of the scope.

    Drawn one by one and not compiled together: so they are bit for bit those of ``network.init(key)``.  A key that repeats,
    for another learning rate, is drawn once.  Multiplied on the host, where that compiles nothing.
    """
    if initial is None:
        numbers = jax.random.key_data(keys) if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys
        _, first, places = np.unique(np.asarray(numbers), axis=0, return_index=True, return_inverse=True)
        drawn = [jax.device_get(network.init(keys[i])) for i in first]
        initial = jax.tree.map(lambda *leaves: np.stack(leaves)[places.reshape(-1)], *drawn)
    stored = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.zeros(()).dtype), initial)
    return jax.device_put(by_role(network.numbers("multiplier"), stored))
