"""Training networks of width N, measured on the way.

    train(problem, network, keys) -> [Trajectory, …]        one seed per key

Loss, γ, optimiser and time are those of ``limits.problem``, observables those of ``limits.trajectory``, over all samples
if not told otherwise.  Between two measurements one compiled loop runs; one other compiled function measures.
Parametrization, learning rates, momentum, weight decay, data, batches and keys are arguments of both: changing them
compiles nothing.  Images may be seen shifted and mirrored by the steps (``finite.augmentation``), never by what is measured.

What is trained are the weights as they act, multiplier · θ, at the learning rates that do the same to them.  Curvature is
measured in the coordinates in which all of these rates are η0 (``_coordinates``): there it is the rescaled one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from finite import curvature, density, lanczos
from finite.augmentation import augmentation
from finite.descent import descent
from finite.networks import Architecture, Network, Params, acting_through, by_role
from limits.losses import LOSSES, Loss
from limits.memory import physical
from limits.precision import computing
from limits.problem import Problem
from limits.trajectory import MEASURED, STORED, Trajectory

DENSE_NTK_ROWS = 2000  # up to this PC the NTK is built of the layers' factors and decomposed, beyond it Lanczos takes over
CHECK_EVERY = 8  # at most so many products between two tests of convergence, as dear as several ones of a narrow network
HESSIAN = {"hessian_eigenvalues", "hessian_min"}
DENSITY = {"density_nodes", "density_weights"}
KERNEL = ("gauss_newton_eigenvalues", "ntk_eigenvalues")  # for MSE the same nonzero spectrum
FRAMED = 6  # times a batch of images of its own, with frames around them, is what a seed holds that augments it
HOST_MEMORY = 2 * 2**30  # bytes for the seeds of a chunk, where the device does not tell what it has; for one large network
HOST_PART = 0.5  # more, up to so much of this machine's


def train(
    problem: Problem,
    network: Network,
    keys: Array,
    *,
    initial: Params | None = None,
    precision: str = "float32",
    observables: Sequence[str] = MEASURED,
    curvature_samples: int | None = None,
    rtol: float = 1e-3,
    max_matvecs: int = 100,
    warm_start: bool = True,
    probes: int = 16,
    density_probes: int = 8,
    density_steps: int = 32,
    memory: int | float | None = None,
    vectorized: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Trajectory]:
    """The trajectories of one network per key, e.g. ``keys = jax.random.split(jax.random.key(0), 8)``.

    network       built for this problem, e.g. ``mlp(problem, width)``; a seed starts at ``network.init(key)``
    initial       or at these weights: ``params`` with a leading axis over the seeds
    precision     "float32" or "float64", of everything; results are float64 on the host
    observables   which of ``limits.trajectory.STORED`` to measure
    curvature_samples    all but the loss are measured on the first so many samples (default: all), which then stand for L
    rtol          relative tolerance of Lanczos eigenvalues; ``Trajectory.errors`` holds what was reached
    max_matvecs   products after which a Lanczos run gives up, and vectors of the parameters' size that it may hold
    warm_start    start each Lanczos run from the eigenvectors of the measurement before
    probes        random vectors of the trace estimate, where the trace is not exact
    density_probes, density_steps    random vectors of the spectral density, and products with each: as many nodes, or as many
                  as there are parameters; ``finite.density.Density(nodes[None], weights[None])`` smooths it
    memory        bytes for the seeds that run side by side (default: most of the device's); the rest follow in chunks
    vectorized    whether the seeds of a chunk run as one batch, in equal parts on all accelerators of this machine; by
                  default they do, except on a CPU, where one after the other is two to three times faster
    progress      called after every measured step with the fraction of the job that is done

    Raises ValueError for an unknown observable or precision, for more eigenvalues than parameters, more curvature samples
    than there are, a density of fewer than two random vectors, and for a network or weights that do not fit; MemoryError if
    ``memory`` does not hold one network.  A divergence is no error: from there on the values are not finite.
    """
    with computing(precision):
        vectorized = jax.default_backend() != "cpu" if vectorized is None else vectorized
        numerics = rtol, max_matvecs, warm_start, probes, vectorized, density_probes, density_steps
        program = _Program(network.architecture, problem.loss, tuple(observables), problem.top_k, *numerics)
        samples = problem.num_samples if curvature_samples is None else curvature_samples
        _check(problem, network, program, keys, initial, samples)
        devices = len(jax.local_devices()) if vectorized else 1
        chunks = _chunks(len(keys), devices * _side_by_side(problem, network, program, samples, memory), devices)
        trajectories = []
        for done, rows in enumerate(chunks):
            weights = _weights(network, keys[rows], jax.tree.map(lambda leaf: leaf[rows], initial))  # noqa: B023
            report = None if progress is None else lambda part: progress((done + part) / len(chunks))  # noqa: B023
            trajectories += _train_chunk(problem, network, program, keys[rows], weights, samples, report)
    return trajectories[: len(keys)]  # without the last chunk's padding


class _Program(NamedTuple):
    """What is compiled: the static argument of the compiled functions."""

    architecture: Architecture
    loss: str
    observables: tuple[str, ...]
    top_k: int
    rtol: float
    max_matvecs: int
    warm_start: bool
    probes: int
    vectorized: bool
    density_probes: int = 8
    density_steps: int = 32

    @property
    def of(self) -> Loss:
        return LOSSES[self.loss]

    def over_seeds(self, function):
        """The function of one seed, for many: batched, or one after the other inside one compiled loop."""
        return jax.vmap(function) if self.vectorized else lambda *seeds: jax.lax.map(lambda one: function(*one), seeds)


class _Operator(NamedTuple):
    """One Lanczos run: ``matvec()`` builds v → A v; ``like`` is a vector; so many largest and smallest eigenvalues."""

    matvec: Callable
    like: Params
    top: int
    bottom: int


class _Measured(NamedTuple):
    """An observable, its error (None where it is exact) and the products it took (None where there were none)."""

    value: Array
    error: Array | None = None
    products: Array | None = None


def _train_chunk(problem, network, program, keys, weights, samples, progress):
    """The trajectories of the seeds that run side by side; their stored ``weights`` have a leading axis over them."""
    steps, update = problem.steps, descent(problem, network)
    data = tuple(jnp.asarray(array, jnp.zeros(()).dtype) for array in (problem.inputs, problem.targets))
    curved = tuple(array[:samples] for array in data)
    batches = None if problem.batches is None else jnp.asarray(problem.batches, jnp.int32)
    augmented = augmentation(problem)
    weights = by_role(network.numbers("multiplier"), weights)
    if program.vectorized:
        weights, keys = _over_devices((weights, keys))
    state, starts = _begin(program, update, curved, weights, keys)
    measurements = []
    for index, step in enumerate(steps):
        if index:
            weights, state = _advance(program, update, data, batches, augmented, weights, state, keys, steps[index - 1], step)
        measured, starts = _measure(program, update, data, curved, weights, state, starts, keys, index)
        measurements.append(jax.device_get(measured))
        if progress is not None:
            progress((index + 1) / len(steps))
    return _trajectories(steps, measurements)


@partial(jax.jit, static_argnums=0)
def _begin(program, update, curved, weights, keys):
    """The optimiser's state, and for every Lanczos run three vectors of the past (``lanczos.warm_start``)."""

    def begin(params, key):
        operators = _operators(program, program.architecture, params, params, curved)
        key = _measuring_key(key, 0)
        starts = {name: (lanczos.random_start(key, operator.like),) * 3 for name, operator in operators.items()}
        return update.transformation().init(params), starts

    return program.over_seeds(begin)(weights, keys)


@partial(jax.jit, static_argnums=0)
def _advance(program, update, data, batches, augmented, weights, state, keys, start, stop):
    """Weights and optimiser's state after the steps start, …, stop − 1."""
    optimizer, apply = update.transformation(), program.architecture.apply

    def step(t, now, key):
        params, state = now
        inputs, targets = data if batches is None else jax.tree.map(lambda rows: rows[batches[t]], data)
        inputs = inputs if augmented is None else augmented.seen(_augmenting_key(key, t), inputs)
        gradient = jax.grad(lambda p: curvature.loss(apply, p, inputs, targets, program.of))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def advance(params, state, key):
        return jax.lax.fori_loop(start, stop, lambda t, now: step(t, now, key), (params, state))

    return program.over_seeds(advance)(weights, state, keys)


@partial(jax.jit, static_argnums=0)
def _measure(program, update, data, curved, weights, state, starts, keys, index):
    """((values, errors, products) by observable; for every Lanczos run the vectors from which the next one starts)"""

    def measure(params, state, starts, key):
        loss = curvature.loss(program.architecture.apply, params, *data, program.of)
        healthy = jnp.isfinite(loss)
        params = jax.tree.map(lambda leaf: jnp.where(healthy, leaf, 0), params)  # no Lanczos run on a diverged network
        rescaled = *_coordinates(program.architecture, update, params), update.preconditioner(state, params)
        found, starts = _observe(program, *rescaled, curved, starts, _measuring_key(key, index + 1))
        values = {name: jnp.where(healthy, one.value, jnp.nan) for name, one in found.items()}
        errors = {name: _or_infinite(one.error, healthy) for name, one in found.items() if one.error is not None}
        products = {name: one.products for name, one in found.items() if one.products is not None}
        return ({"loss": loss, **values}, errors, products), starts

    return program.over_seeds(measure)(weights, state, starts, keys)


def _coordinates(architecture, update, params):
    """(architecture, params) in the coordinates u = params/√metric, in which every step is η0 times the gradient."""
    root = {role: jnp.sqrt(number) for role, number in update.metric.items()}
    return acting_through(architecture, root), by_role({role: 1.0 / number for role, number in root.items()}, params)


def _observe(program, network, params, preconditioner, data, starts, key):
    """Every wanted observable but the loss, by name; and the next starts.

    One computation after the other (``_after``).
    """
    apply, wanted, top_k, found, spectra = network.apply, set(program.observables), program.top_k, {}, {}
    for name, past in starts.items():
        start = lanczos.warm_start(key, *past)
        spectra[name] = _extremes(program, _operators(program, network, params, preconditioner, data)[name], start)
        params = _after(spectra[name].matvecs, params)
    if "hessian" in spectra:
        values, errors, products = _values(spectra["hessian"])
        found["hessian_eigenvalues"] = _Measured(values[:top_k], errors[:top_k], products)
        found["hessian_min"] = _Measured(values[-1], errors[-1], products)
    if "residual" in spectra:
        found["residual_eigenvalues"] = _values(spectra["residual"])
    if "preconditioned" in spectra:
        found["preconditioned_sharpness"] = _Measured(*(column.squeeze() for column in _values(spectra["preconditioned"])))
    for names, measured in _kernel_spectra(program, network, params, data, spectra):
        found |= dict.fromkeys(names, measured)
        params = _after(measured.value[0], params)
    if "hessian_trace" in wanted:
        value, error = curvature.trace(network, params, *data, key, probes=program.probes, of=program.of)
        products = None if network.layerwise_linear else jnp.asarray(program.probes)
        found["hessian_trace"] = _Measured(value, error, products)
        params = _after(value, params)
    if "directional_sharpness" in wanted:
        value = curvature.directional_sharpness(apply, params, *data, program.of)
        found["directional_sharpness"] = _Measured(value, products=jnp.asarray(1))
        params = _after(value, params)
    if wanted & DENSITY:
        found |= _density(program, network, params, data, key)
        params = _after(found["density_nodes"].value[0], params)
    if "gradient_noise" in wanted:
        found["gradient_noise"] = _Measured(curvature.gradient_noise(apply, params, *data, program.of))
    if program.warm_start:
        starts = {name: (starts[name][1], lanczos.combined(spectrum.vectors, starts[name][1]), spectrum.beyond)
                  for name, spectrum in spectra.items()}  # fmt: skip
    return {name: measured for name, measured in found.items() if name in wanted}, starts


def _density(program, network, params, data, key):
    """Nodes and weights of the Hessian's spectral density, of all its random vectors one behind the other."""
    matvec = curvature.hessian(network.apply, params, *data, program.of)
    key = jax.random.fold_in(key, 1)  # other vectors than those of the trace
    found = density.spectral_density(matvec, params, key, probes=program.density_probes, steps=program.density_steps)
    products = jnp.asarray(found.nodes.size)  # one for each node
    weights = found.weights / program.density_probes
    return {"density_nodes": _Measured(found.nodes.ravel(), products=products),
            "density_weights": _Measured(weights.ravel(), products=products)}  # fmt: skip


def _values(spectrum: lanczos.Extremes) -> _Measured:
    return _Measured(spectrum.values, spectrum.errors, spectrum.matvecs)


def _operators(program, network, params, preconditioner, data):
    """The Lanczos runs that the wanted observables need, by name: "hessian", "residual", and those of ``_kernels``."""
    wanted, (inputs, targets), of = set(program.observables), data, program.of
    size, operators = _size(params), {}
    hessian = partial(curvature.hessian, network.apply, params, *data, of)
    if wanted & HESSIAN:
        top = program.top_k if "hessian_eigenvalues" in wanted else 0
        bottom = int("hessian_min" in wanted and size > top)  # otherwise it is the last of the largest
        operators["hessian"] = _Operator(hessian, params, top, bottom)
    if "residual_eigenvalues" in wanted:
        operators["residual"] = _Operator(lambda: curvature.residual(network.apply, params, *data, of), params, 1, 1)
    if "preconditioned_sharpness" in wanted:
        root = jax.tree.map(jnp.sqrt, preconditioner)
        operators["preconditioned"] = _Operator(lambda: curvature.preconditioned(hessian(), root), params, 1, 0)
    if network.layer_factors is None or targets.size > DENSE_NTK_ROWS:
        top = min(program.top_k, targets.size)
        of_outputs = targets.size <= size  # JJᵀ and JᵀJ: in the smaller of the two spaces
        kernel = (curvature.ntk, targets) if of_outputs else (curvature.gauss_newton, params)
        for name in _kernels(program):
            matvec, like = kernel if name == "ntk" else (partial(curvature.gauss_newton, of=of), params)
            operators[name] = _Operator(partial(matvec, network.apply, params, inputs), like, top, 0)
    return operators


def _kernels(program):
    """The spectra needed, each with the observables that it is: "ntk" and, where it differs, "gauss_newton"."""
    wanted = [name for name in KERNEL if name in program.observables]
    if program.of.quadratic:
        return {"ntk": wanted} if wanted else {}
    return {name.removesuffix("_eigenvalues"): [name] for name in wanted}


def _kernel_spectra(program, network, params, data, spectra):
    """(observables, what is measured of top_k eigenvalues) of the NTK and of G; zeros beyond their PC rows."""
    kernels = _kernels(program)
    dense = kernels and not kernels.keys() & spectra.keys()
    theta = curvature.dense_ntk(network, params, data[0]) if dense else None
    for name, observables in kernels.items():
        if dense:
            matrix = theta if name == "ntk" else curvature.dense_gauss_newton(theta, network.apply(params, data[0]), program.of)
            values, errors, products = jnp.linalg.eigvalsh(matrix)[::-1][: program.top_k], None, None
            theta = _after(values[0], theta)
        else:
            values, errors, products = _values(spectra[name])
        missing = (0, program.top_k - len(values))
        yield observables, _Measured(jnp.pad(values, missing), None if errors is None else jnp.pad(errors, missing), products)


def _after(result, params):
    """The params, once ``result``, a number that is never −∞, is known.

    XLA starts independent computations together, and on a CPU (jaxlib 0.10.2, two cores) batched ones can then wait for
    each other's threads for ever.
    """
    return jax.tree.map(lambda leaf: jnp.where(result.astype(leaf.dtype) == -jnp.inf, 0, leaf), params)


def _extremes(program, operator, start):
    return lanczos.extremes(
        operator.matvec(),
        start,
        top=operator.top,
        bottom=operator.bottom,
        rtol=program.rtol,
        max_matvecs=program.max_matvecs,
        check_every=CHECK_EVERY,
    )


def _measuring_key(key, index):
    """A stream apart from the one that draws the weights."""
    return jax.random.fold_in(jax.random.fold_in(key, 0x6D656173), index)


def _augmenting_key(key, step):
    """Of how a step sees its batch: a stream apart from both."""
    return jax.random.fold_in(jax.random.fold_in(key, 0x6372_6F70), step)


def _or_infinite(error, healthy):
    return jnp.where(healthy & ~jnp.isnan(error), error, jnp.inf)


def _trajectories(steps, measurements):
    """One trajectory per seed from the (values, errors, products) at each step, in float64."""
    *numbers, products = jax.tree.map(lambda *steps: np.stack(steps, axis=1), *measurements)
    values, errors = jax.tree.map(np.float64, numbers)
    return [
        Trajectory(steps, *jax.tree.map(lambda column: column[seed], (values, errors, products)))  # noqa: B023
        for seed in range(len(values["loss"]))
    ]


def _check(problem, network, program, keys, initial, samples):
    shapes = _shapes(network)
    unknown = [name for name in program.observables if name not in STORED]
    if unknown:
        raise ValueError(f"unknown observable {unknown[0]!r}; known: {', '.join(STORED)}")
    if not 1 <= samples <= problem.num_samples:
        raise ValueError(f"curvature_samples {samples} must be from 1 to the {problem.num_samples} samples")
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
    if DENSITY & set(program.observables):
        density.check(program.density_probes, program.density_steps)
    if program.top_k > _size(shapes):
        raise ValueError(f"top_k {program.top_k} is more than the network's {_size(shapes)} parameters")
    if jnp.ndim(keys) != (1 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else 2):
        raise ValueError("one key per seed, along a leading axis: jax.random.split(key, number of seeds)")
    if initial is not None and any(leaf.shape[0] != len(keys) for leaf in jax.tree.leaves(initial)):
        raise ValueError(f"{len(keys)} keys but initial weights for {jax.tree.leaves(initial)[0].shape[0]} networks")


def _weights(network, keys, initial):
    """The initial weights of a chunk, with a leading axis over seeds, in the precision of the scope.

    Drawn one by one and not compiled together: so they are bit for bit what ``network.init(key)`` returns.
    """
    if initial is None:
        drawn = [jax.device_get(network.init(key)) for key in keys]
        initial = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), initial)


def _shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def _size(tree):
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _chunks(seeds, most, devices):
    """Rows of each chunk: equally many (one compilation for all) on each device, filled up with the last seed."""
    count = ceil(seeds / most)
    length = devices * ceil(seeds / count / devices)
    rows = np.minimum(np.arange(count * length), seeds - 1)
    return list(rows.reshape(count, length))


def _over_devices(tree):
    """The leading axis, of seeds, in equal parts on all devices of this machine: what is compiled follows its data."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("seeds",))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds")))


def _side_by_side(problem, network, program, samples, memory):
    """How many seeds fit into the memory of one device at once."""
    resident, workspace = _footprint(problem, network, program, samples)
    memory = _device_memory(resident + workspace) if memory is None else memory
    most = memory // (resident + workspace) if program.vectorized else (memory - workspace) // resident
    if most < 1:
        needed = (resident + workspace) / 2**30
        raise MemoryError(f"one network needs about {needed:.1f} GiB, more than the {memory / 2**30:.1f} GiB of memory")
    return int(most)


def _footprint(problem, network, program, samples):
    """Bytes of one seed, estimated: (what it keeps all the time, what is needed while it is worked on)."""
    itemsize, shapes = jnp.zeros(()).dtype.itemsize, jax.tree.leaves(_shapes(network))
    parameters, rows = _size(shapes), problem.targets.size
    runs = _lanczos_runs(program, network, rows)
    kept = 2 * 3 * (1 + runs) * parameters  # weights, two moments, three vectors of each Lanczos run, coming in and going out
    vectors = max(program.max_matvecs * (runs > 0), program.density_steps * bool(DENSITY & set(program.observables)))
    lanczos = (min(vectors, parameters) + 8) * parameters
    copies = 1 if network.layer_factors is None else problem.num_outputs  # each output has its way back
    batch = problem.num_samples if problem.batches is None else problem.batches.shape[1]
    rows_at_once = max(8 * samples * copies, 3 * batch, 2 * problem.num_samples)  # curvature, a step, the loss
    signals = (network.depth + 1) * rows_at_once * network.places * network.width
    kernel = 4 * min(rows, DENSE_NTK_ROWS) ** 2
    framed = FRAMED * batch * problem.num_inputs if problem.augment else 0
    return itemsize * kept, itemsize * (lanczos + signals + kernel + framed)


def _lanczos_runs(program, network, rows):
    """As many as ``_operators`` has."""
    wanted = set(program.observables)
    runs = bool(wanted & HESSIAN) + ("residual_eigenvalues" in wanted) + ("preconditioned_sharpness" in wanted)
    return runs + len(_kernels(program)) * (network.layer_factors is None or rows > DENSE_NTK_ROWS)


def _device_memory(of_one):
    """Most of what is free on the device; where it does not tell, what serves on a CPU, and what one network needs."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return 0.8 * (stats["bytes_limit"] - stats["bytes_in_use"])
    return min(max(HOST_MEMORY, of_one), HOST_PART * physical())
