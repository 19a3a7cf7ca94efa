"""What is measured of one network at one step: every observable of ``limits.trajectory``, its error, the products it took.

    observe(program, network, params, preconditioner, data, starts, key) -> {name: Measured}, starts

Pure functions of arrays, to be compiled together; ``Program`` says what is compiled.  Curvature is measured in coordinates
in which it is the rescaled one of ``limits.problem`` (``coordinates``).
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from finite.curvature import density, lanczos
from finite.curvature import operators as curvature
from finite.networks import Architecture, Params, acting_through, by_role
from limits.losses import LOSSES, Loss

DENSE_NTK_ROWS = 700  # up to this PC the NTK is built of the layers' factors and decomposed, beyond it Lanczos costs less
CHECK_EVERY = 8  # at most so many products between two tests of convergence, as dear as several ones of a narrow network
HESSIAN = {"hessian_eigenvalues", "hessian_min"}
DENSITY = {"density_nodes", "density_weights"}
KERNEL = ("gauss_newton_eigenvalues", "ntk_eigenvalues")  # for MSE the same nonzero spectrum


class Program(NamedTuple):
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

    def over_networks(self, function):
        """The function of one network, for many: batched, or one after the other inside one compiled loop."""
        return jax.vmap(function) if self.vectorized else lambda *many: jax.lax.map(lambda one: function(*one), many)


class Operator(NamedTuple):
    """One Lanczos run: ``matvec()`` builds v → A v; ``like`` is a vector; so many largest and smallest eigenvalues."""

    matvec: Callable
    like: Params
    top: int
    bottom: int


class Measured(NamedTuple):
    """An observable, its error (None where it is exact) and the products it took (None where there were none)."""

    value: Array
    error: Array | None = None
    products: Array | None = None


def coordinates(architecture, update, params):
    """(architecture, params) in the coordinates params/√M."""
    root = {role: jnp.sqrt(number) for role, number in update.metric.items()}
    return acting_through(architecture, root), by_role({role: 1.0 / number for role, number in root.items()}, params)


def observe(program, network, params, preconditioner, data, starts, key):
    """Every wanted observable but the loss, by name; and the next starts.

    One computation after the other (``_after``).
    """
    apply, wanted, top_k, found, spectra = network.apply, set(program.observables), program.top_k, {}, {}
    for name, past in starts.items():
        start = lanczos.warm_start(key, *past)
        spectra[name] = _extremes(program, operators(program, network, params, preconditioner, data)[name], start)
        params = _after(spectra[name].matvecs, params)
    if "hessian" in spectra:
        values, errors, products = _values(spectra["hessian"])
        found["hessian_eigenvalues"] = Measured(values[:top_k], errors[:top_k], products)
        found["hessian_min"] = Measured(values[-1], errors[-1], products)
    if "residual" in spectra:
        found["residual_eigenvalues"] = _values(spectra["residual"])
    if "preconditioned" in spectra:
        found["preconditioned_sharpness"] = Measured(*(column.squeeze() for column in _values(spectra["preconditioned"])))
    for names, measured in _kernel_spectra(program, network, params, data, spectra):
        found |= dict.fromkeys(names, measured)
        params = _after(measured.value[0], params)
    if "hessian_trace" in wanted:
        value, error = curvature.trace(network, params, *data, key, probes=program.probes, of=program.of)
        products = None if network.layerwise_linear else jnp.asarray(program.probes)
        found["hessian_trace"] = Measured(value, error, products)
        params = _after(value, params)
    if "directional_sharpness" in wanted:
        value = curvature.directional_sharpness(apply, params, *data, program.of)
        found["directional_sharpness"] = Measured(value, products=jnp.asarray(1))
        params = _after(value, params)
    if wanted & DENSITY:
        found |= _density(program, network, params, data, key)
        params = _after(found["density_nodes"].value[0], params)
    if "gradient_noise" in wanted:
        found["gradient_noise"] = Measured(curvature.gradient_noise(apply, params, *data, program.of))
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
    return {"density_nodes": Measured(found.nodes.ravel(), products=products),
            "density_weights": Measured(weights.ravel(), products=products)}  # fmt: skip


def _values(spectrum: lanczos.Extremes) -> Measured:
    return Measured(spectrum.values, spectrum.errors, spectrum.matvecs)


def operators(program, network, params, preconditioner, data):
    """The Lanczos runs that the wanted observables need, by name: "hessian", "residual", and those of ``kernels``."""
    wanted, (inputs, targets), of = set(program.observables), data, program.of
    count, runs = size(params), {}
    hessian = partial(curvature.hessian, network.apply, params, *data, of)
    if wanted & HESSIAN:
        top = program.top_k if "hessian_eigenvalues" in wanted else 0
        bottom = int("hessian_min" in wanted and count > top)  # otherwise it is the last of the largest
        runs["hessian"] = Operator(hessian, params, top, bottom)
    if "residual_eigenvalues" in wanted:
        runs["residual"] = Operator(lambda: curvature.residual(network.apply, params, *data, of), params, 1, 1)
    if "preconditioned_sharpness" in wanted:
        root = jax.tree.map(jnp.sqrt, preconditioner)
        runs["preconditioned"] = Operator(lambda: curvature.preconditioned(hessian(), root), params, 1, 0)
    if network.layer_factors is None or targets.size > DENSE_NTK_ROWS:
        top = min(program.top_k, targets.size)
        of_outputs = targets.size <= count  # JJᵀ and JᵀJ: in the smaller of the two spaces
        kernel = (curvature.ntk, targets) if of_outputs else (curvature.gauss_newton, params)
        for name in kernels(program):
            matvec, like = kernel if name == "ntk" else (partial(curvature.gauss_newton, of=of), params)
            runs[name] = Operator(partial(matvec, network.apply, params, inputs), like, top, 0)
    return runs


def kernels(program):
    """The spectra needed, each with the observables that it is: "ntk" and, where it differs, "gauss_newton"."""
    wanted = [name for name in KERNEL if name in program.observables]
    if program.of.quadratic:
        return {"ntk": wanted} if wanted else {}
    return {name.removesuffix("_eigenvalues"): [name] for name in wanted}


def _kernel_spectra(program, network, params, data, spectra):
    """(observables, what is measured of top_k eigenvalues) of the NTK and of G; zeros beyond their PC rows."""
    wanted = kernels(program)
    dense = wanted and not wanted.keys() & spectra.keys()
    theta = curvature.dense_ntk(network, params, data[0]) if dense else None
    for name, observables in wanted.items():
        if dense:
            matrix = theta if name == "ntk" else curvature.dense_gauss_newton(theta, network.apply(params, data[0]), program.of)
            values, errors, products = jnp.linalg.eigvalsh(matrix)[::-1][: program.top_k], None, None
            theta = _after(values[0], theta)
        else:
            values, errors, products = _values(spectra[name])
        missing = (0, program.top_k - len(values))
        yield observables, Measured(jnp.pad(values, missing), None if errors is None else jnp.pad(errors, missing), products)


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


def size(tree) -> int:
    """Numbers in a tree of arrays, or of their shapes."""
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))
