"""What is measured of one network at one step: every observable of ``limits.trajectory``, its error, the products it took.

    observe(program, network, params, acting, inverse_root, data, starts, key) -> {name: Measured}, starts

Pure functions of arrays, to be compiled together; ``Program`` says what is compiled.  Curvature is measured in coordinates
in which it is the rescaled one of ``limits.problem`` (``coordinates``).  A new observable is a row here beside the one there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from finite.curvature import density, lanczos
from finite.curvature import operators as curvature
from finite.networks import Architecture, Params, acting_through, by_role
from finite.numerics import Numerics
from limits.losses import LOSSES, Loss
from limits.machine import eigvalsh
from limits.problem import Problem
from limits.rows import Table

DENSE_NTK_ROWS = 700  # up to this PC the NTK is built of the layers' factors and decomposed, beyond it Lanczos costs less
CHECK_EVERY = 8  # at most so many products between two tests of convergence, as dear as several ones of a narrow network


class Program(NamedTuple):
    """What is compiled: the static argument of the compiled functions."""

    architecture: Architecture
    loss: str
    observables: tuple[str, ...]
    top_k: int
    numerics: Numerics

    @property
    def ell(self) -> Loss:
        return LOSSES[self.loss]

    def over_networks(self, function):
        """The function of one network, for many: batched, or one after the other inside one compiled loop."""
        return jax.vmap(function) if self.numerics.vectorized else partial(in_turn, function)


def in_turn(function, *many):
    """The function of one network after the other.

    One alone is the first of two, and how many have their turn XLA learns when it runs: of a loop that it knows to have one
    turn, and of arrays of one row, it makes another program, which rounds otherwise.
    """
    number = len(jax.tree.leaves(many)[0])
    many = jax.tree.map(lambda rows: jnp.concatenate([rows, rows]), many) if number == 1 else many
    leaf = jax.tree.leaves(many)[0]
    first = leaf[(0,) * leaf.ndim]
    turns = jnp.where(jnp.isnan(first) & (first == 0), 0, number)

    @partial(jax.jit, inline=True)  # asked for its shapes first, and yet traced once
    def result(i, many):
        return function(*jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, i, keepdims=False), many))

    def turn(i, results):
        return jax.tree.map(lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, i, 0), results, result(i, many))

    results = jax.tree.map(lambda shape: jnp.zeros((len(leaf), *shape.shape), shape.dtype), jax.eval_shape(result, 0, many))
    return jax.tree.map(lambda rows: rows[:number], jax.lax.fori_loop(0, turns, turn, results))


def program_of(problem: Problem, architecture: Architecture, observables: Sequence[str], numerics: Numerics) -> Program:
    """Of these observables, with what the numerics leave open."""
    vectorized = jax.default_backend() != "cpu" if numerics.vectorized is None else numerics.vectorized
    longest = longest_basis(problem) if numerics.max_matvecs is None else numerics.max_matvecs
    decided = replace(numerics, vectorized=vectorized, max_matvecs=longest, memory=None)  # how many at once: not compiled
    return Program(architecture, problem.loss, tuple(observables), problem.top_k, decided)


def longest_basis(problem: Problem) -> int:
    """Products, and vectors, of a Lanczos run that is not told how many."""
    return max(100, 20 + 2 * problem.top_k)


class Operator(NamedTuple):
    """One Lanczos run: ``matvec()`` builds v → A v; ``like`` is a vector; so many largest and smallest eigenvalues.

    Where A is one of the Hessian's ``parts``, numbers (g, r), ``mixed(g, r)`` builds it too: such runs are compiled once.
    """

    matvec: Callable
    like: Params
    top: int
    bottom: int
    parts: tuple[float, float] | None = None
    mixed: Callable | None = None


class Measured(NamedTuple):
    """An observable, its error (None where it is exact) and the products it took (None where there were none)."""

    value: Array
    error: Array | None = None
    products: Array | None = None


def coordinates(architecture, update, params):
    """(architecture, params) in the coordinates params/√M."""
    root = {role: jnp.sqrt(number) for role, number in update.metric.items()}
    return acting_through(architecture, root), by_role({role: 1.0 / number for role, number in root.items()}, params)


class At(NamedTuple):
    """One network at one step: functions of ``params``, which are the weights as they act, or in ``coordinates``."""

    program: Program
    network: Architecture
    params: Params
    data: tuple[Array, Array]
    inverse_root: curvature.Matvec
    spectra: dict[str, lanczos.Extremes]
    key: Array | None


@dataclass(frozen=True)
class Observer:
    """A row: observables that are measured together.

    observables   of ``limits.trajectory``
    measure       at → {observable: Measured}, once or several times
    runs          at → the Lanczos runs whose ``spectra`` it wants, by name; to be asked of shapes, too
    products      (program, network) → about how many products with the Hessian it costs beside those runs; one is the least
                  that a function of all weights and samples takes
    acting        whether it wants the weights as they act: of others a function in rescaled coordinates is curvature
    waits         whether what comes later waits for what it finds: not for what Lanczos runs alone have found
    """

    name: str
    observables: tuple[str, ...]
    measure: Callable[[At], Iterator[dict[str, Measured]]]
    runs: Callable[[At], dict[str, Operator]] = lambda at: {}
    products: Callable[[Program, Architecture], int] = lambda program, network: 1
    acting: bool = False
    waits: bool = True

    def wanted(self, program: Program) -> bool:
        return bool(set(self.observables) & set(program.observables))


def check_observers(observables: Sequence[str]) -> None:
    """Raises ValueError for an observable that nobody measures; the loss is measured beside them."""
    measured = {name for observer in OBSERVERS.values() for name in observer.observables} | {"loss"}
    if missing := [name for name in observables if name not in measured]:
        raise ValueError(f"no network's {missing[0]} can be measured: finite.curvature.observers has no row for it")


def observe(program, network, params, acting, inverse_root, data, starts, key):
    """Every wanted observable but the loss, by name; and the next starts.

    One computation after the other (``_after``).
    """
    observed, spectra = {}, {}
    for names in _together(operators(program, network, params, inverse_root, data)):
        runs = operators(program, network, params, inverse_root, data)
        spectra |= _spectra(program, {name: runs[name] for name in names}, starts, key)
        params, acting = _after(spectra[names[0]].matvecs, (params, acting))
    for observer in OBSERVERS.values():
        if not observer.wanted(program):
            continue
        where = (program.architecture, acting) if observer.acting else (network, params)
        for measured in observer.measure(At(program, *where, data, inverse_root, spectra, key)):
            observed |= measured
            if observer.waits:
                first = next(iter(measured.values())).value
                params, acting = _after(first[(0,) * first.ndim], (params, acting))
    if program.numerics.warm_start:
        starts = {name: (starts[name][1], lanczos.combined(spectrum.vectors, starts[name][1]), spectrum.beyond)
                  for name, spectrum in spectra.items()}  # fmt: skip
    return {name: measured for name, measured in observed.items() if name in program.observables}, starts


def operators(program, network, params, inverse_root, data) -> dict[str, Operator]:
    """The Lanczos runs that the wanted observables need, by name."""
    at, runs = At(program, network, params, data, inverse_root, {}, None), {}
    for observer in OBSERVERS.values():
        runs |= observer.runs(at) if observer.wanted(program) else {}
    return runs


def _together(runs) -> list[list[str]]:
    """The names of the runs, those that are compiled once in one list."""
    mixed = [name for name, run in runs.items() if run.parts]
    return [mixed, *([name] for name in runs if name not in mixed)] if mixed else [[name] for name in runs]


def lanczos_runs(program: Program, network: Architecture, rows: int) -> int:
    """As many as ``operators`` has, of a network with so many outputs of all samples."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    outputs = jax.ShapeDtypeStruct((rows, 1), jnp.float32)
    return len(operators(program, network, shapes, lambda v: v, (outputs, outputs)))


def products(program: Program, network: Architecture, rows: int, of_a_run: int) -> int:
    """About how many a measurement takes, of which each Lanczos run takes so many."""
    beside = sum(observer.products(program, network) for observer in OBSERVERS.values() if observer.wanted(program))
    return beside + of_a_run * lanczos_runs(program, network, rows)


def _runs_alone(program, network):
    return 0


# Rows -----------------------------------------------------------------------------------------------------------------


def _hessian(at):
    return curvature.hessian(at.network.apply, at.params, *at.data, at.program.ell)


def _hessian_runs(at):
    count, wanted = size(at.params), at.program.observables
    top = at.program.top_k if "hessian_eigenvalues" in wanted else 0
    bottom = int("hessian_min" in wanted and count > top)  # otherwise it is the last of the largest
    return {"hessian": Operator(partial(_hessian, at), at.params, top, bottom, (1.0, 1.0), _mixed(at))}


def _mixed(at):
    return partial(curvature.parts, at.network.apply, at.params, *at.data, at.program.ell)


def _hessian_eigenvalues(at):
    (values, errors, products), top_k = _values(at.spectra["hessian"]), at.program.top_k
    yield {"hessian_eigenvalues": Measured(values[:top_k], errors[:top_k], products),
           "hessian_min": Measured(values[-1], errors[-1], products)}  # fmt: skip


def _residual_runs(at):
    matvec = partial(curvature.residual, at.network.apply, at.params, *at.data, at.program.ell)
    return {"residual": Operator(matvec, at.params, 1, 1, (0.0, 1.0), _mixed(at))}


def _residual_eigenvalues(at):
    yield {"residual_eigenvalues": _values(at.spectra["residual"])}


def _preconditioned_runs(at):
    def matvec():
        return curvature.preconditioned(_hessian(at), at.inverse_root)

    return {"preconditioned": Operator(matvec, at.params, 1, 0)}


def _preconditioned_sharpness(at):
    columns = _values(at.spectra["preconditioned"])
    yield {"preconditioned_sharpness": Measured(*(column.squeeze() for column in columns))}


def _kernel_runs(at):
    (inputs, targets), program, runs = at.data, at.program, {}
    if at.network.layer_factors is None or targets.size > DENSE_NTK_ROWS:
        top = min(program.top_k, targets.size)
        of_outputs = targets.size <= size(at.params)  # JJᵀ and JᵀJ: in the smaller of the two spaces
        kernel = (curvature.ntk, targets) if of_outputs else (curvature.gauss_newton, at.params)
        for name in kernels(program):
            matvec, like = kernel if name == "ntk" else (partial(curvature.gauss_newton, ell=program.ell), at.params)
            runs[name] = Operator(partial(matvec, at.network.apply, at.params, inputs), like, top, 0)
    return runs


def _kernel_eigenvalues(at):
    """Of top_k eigenvalues of the NTK and of G; zeros beyond their PC rows."""
    wanted, program, network, inputs = kernels(at.program), at.program, at.network, at.data[0]
    dense = wanted and not wanted.keys() & at.spectra.keys()
    theta = curvature.dense_ntk(network, at.params, inputs) if dense else None
    for name, observables in wanted.items():
        if dense:
            outputs = None if name == "ntk" else network.apply(at.params, inputs)
            matrix = theta if outputs is None else curvature.dense_gauss_newton(theta, outputs, program.ell)
            values, errors, products = eigvalsh(matrix)[::-1][: program.top_k], None, None
            theta = _after(values[0], theta)
        else:
            values, errors, products = _values(at.spectra[name])
        missing = (0, program.top_k - len(values))
        measured = Measured(jnp.pad(values, missing), None if errors is None else jnp.pad(errors, missing), products)
        yield dict.fromkeys(observables, measured)


def kernels(program):
    """The spectra needed, each with the observables that it is: "ntk" and, where it differs, "gauss_newton"."""
    wanted = [name for name in KERNEL if name in program.observables]
    if program.ell.quadratic:
        return {"ntk": wanted} if wanted else {}
    return {name.removesuffix("_eigenvalues"): [name] for name in wanted}


def _trace(at):
    probes = at.program.numerics.probes
    value, error = curvature.trace(at.network, at.params, *at.data, at.key, probes=probes, ell=at.program.ell)
    yield {"hessian_trace": Measured(value, error, None if at.network.layerwise_linear else jnp.asarray(probes))}


def _trace_products(program, network):
    return 0 if network.layerwise_linear else program.numerics.probes


def _directional_sharpness(at):
    value = curvature.directional_sharpness(at.network.apply, at.params, *at.data, at.program.ell)
    yield {"directional_sharpness": Measured(value, products=jnp.asarray(1))}


def _density(at):
    """Nodes and weights of the Hessian's spectral density, of all its random vectors one behind the other."""
    key = jax.random.fold_in(at.key, 1)  # other vectors than those of the trace
    probes, steps = at.program.numerics.density_probes, at.program.numerics.density_steps
    spectrum = density.spectral_density(_hessian(at), at.params, key, probes=probes, steps=steps)
    products = jnp.asarray(spectrum.nodes.size)  # one for each node
    weights = spectrum.weights / probes
    yield {"density_nodes": Measured(spectrum.nodes.ravel(), products=products),
           "density_weights": Measured(weights.ravel(), products=products)}  # fmt: skip


def _density_products(program, _):
    return program.numerics.density_probes * program.numerics.density_steps


def _gradient_noise(at):
    yield {"gradient_noise": Measured(curvature.gradient_noise(at.network.apply, at.params, *at.data, at.program.ell))}


HESSIAN = ("hessian_eigenvalues", "hessian_min")
DENSITY = {"density_nodes", "density_weights"}
KERNEL = ("gauss_newton_eigenvalues", "ntk_eigenvalues")  # for MSE the same nonzero spectrum
OBSERVERS = Table("observer", (
    Observer("hessian", HESSIAN, _hessian_eigenvalues, _hessian_runs, _runs_alone, waits=False),
    Observer("residual", ("residual_eigenvalues",), _residual_eigenvalues, _residual_runs, _runs_alone, waits=False),
    Observer("preconditioned", ("preconditioned_sharpness",), _preconditioned_sharpness, _preconditioned_runs, _runs_alone,
             waits=False),
    Observer("kernels", KERNEL, _kernel_eigenvalues, _kernel_runs, _runs_alone),
    Observer("trace", ("hessian_trace",), _trace, products=_trace_products),
    Observer("direction", ("directional_sharpness",), _directional_sharpness),
    Observer("density", ("density_nodes", "density_weights"), _density, products=_density_products),
    Observer("noise", ("gradient_noise",), _gradient_noise),
))  # fmt: skip


# Lanczos --------------------------------------------------------------------------------------------------------------


def _values(spectrum: lanczos.Extremes) -> Measured:
    return Measured(spectrum.values, spectrum.errors, spectrum.matvecs)


def _after(result, params):
    """The params, once ``result``, a number that is never −∞, is known.

    XLA starts independent computations together, and on a CPU (jaxlib 0.10.2, two cores) batched ones can then wait for
    each other's threads for ever.
    """
    return jax.tree.map(lambda leaf: jnp.where(result.astype(leaf.dtype) == -jnp.inf, 0, leaf), params)


def _spectra(program, runs, starts, key) -> dict[str, lanczos.Extremes]:
    """Of one run, or of several that are compiled once, one after the other."""
    top, bottom = (max(getattr(run, end) for run in runs.values()) for end in ("top", "bottom"))

    def spectrum(matvec, past, needed=None):
        return lanczos.extremes(
            matvec,
            lanczos.warm_start(key, *past),
            top=top,
            bottom=bottom,
            rtol=program.numerics.rtol,
            max_matvecs=program.numerics.max_matvecs,
            check_every=CHECK_EVERY,
            needed=needed,
        )

    if len(runs) == 1:
        return {name: spectrum(run.matvec(), starts[name]) for name, run in runs.items()}
    (first, *_), real = runs.values(), jnp.zeros(()).dtype
    needed = [np.r_[np.arange(top) < run.top, np.arange(bottom) >= bottom - run.bottom] for run in runs.values()]
    past = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(starts[name] for name in runs))
    parts = jnp.array([run.parts for run in runs.values()], real)
    extremes = jax.lax.map(lambda row: spectrum(first.mixed(*row[0]), *row[1:]), (parts, past, jnp.array(needed)))
    return {name: _only(needed[i], jax.tree.map(lambda leaf: leaf[i], extremes)) for i, name in enumerate(runs)}  # noqa: B023


def _only(wanted, spectrum: lanczos.Extremes) -> lanczos.Extremes:
    """With the values that are."""
    values, errors, converged, vectors = jax.tree.map(lambda leaf: leaf[np.flatnonzero(wanted)], spectrum[:4])
    return spectrum._replace(values=values, errors=errors, converged=converged, vectors=vectors)


def size(tree) -> int:
    """Numbers in a tree of arrays, or of their shapes."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))
