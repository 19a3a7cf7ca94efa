"""The Hessian of a two-layer network, exact at any width and in the mean-field limit: a block per neuron, plus low rank.

    γ²∇²L = R + F Fᵀ,    F_i = √(w_i/P) J_iᵀB,    J_i = ∂[v_i φ(e_i·x̂)]/∂z_i  (PC × n),    BBᵀ = ∂²ℓ/∂f²
    R_i = γ0 [[Σ_p r_p·v_i φ'' x̂_p x̂_pᵀ, Σ_p φ' x̂_p r_pᵀ], [·, 0]]    n × n, n = r + C

in the notation of ``limits.two_layer.particles``.

With every block diagonalised this is a diagonal matrix plus one of rank PC at most: λ, no eigenvalue of an R_i, is one of the
Hessian if and only if it is a root of

    det(1 − M(λ)) = 0,    M(λ) = Σ_i F_iᵀ(λ − R_i)⁻¹F_i    PC × PC        (``limits.two_layer.secular``)

The D − r input weights of a neuron outside the span of the inputs are in its null space.  The law of the eigenvalues of the
R_i is the *bulk*; eigenvalues of the Hessian apart from it are *outliers*.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits.coordinates import coordinates
from limits.machine import in_float64
from limits.problem import Problem
from limits.spectra import Spectrum, largest, spectrum
from limits.theories import insist
from limits.two_layer import particles, secular
from limits.two_layer.particles import Functions, Neurons, Population
from limits.two_layer.secular import Secular

Observables = dict[str, np.ndarray]
OfHessian = Callable[[Secular, int], Observables]

CARRIED = 0.5  # the part of an eigenvector that makes it one neuron's
IN_BULK = "in bulk"


class Measurement(NamedTuple):
    """At one time: loss · r = ∂L/∂f · Θ/P and BᵀΘB/P, Θ the rescaled NTK · γ²gᵀHg/|g|² · R_i · F_i."""

    loss: Float[Array, ""]
    error: Float[Array, "P C"]
    ntk: Float[Array, "PC PC"]
    gauss_newton: Float[Array, "PC PC"]
    directional_sharpness: Float[Array, ""]
    blocks: Float[Array, "N n n"]
    factors: Float[Array, "N n PC"]


@in_float64
def measure_network(
    problem: Problem, input_weights: Float[np.ndarray, "D N"], readout: Float[np.ndarray, "N C"]
) -> Observables:
    """Every observable of ``limits.trajectory`` of the network in μP with these weights, N(0,1) at step 0.

    Raises ValueError, in one line, for a problem without a mean-field limit and for weights that do not fit.
    """
    measured = _network(problem, input_weights, readout)
    null = len(readout) * (problem.num_inputs + problem.num_outputs) - measured.blocks.shape[0] * measured.blocks.shape[1]
    return observables(measured, problem.top_k, partial(_exact_hessian, null=null))


@in_float64
def hessian_spectrum(
    problem: Problem, input_weights: Float[np.ndarray, "D N"], readout: Float[np.ndarray, "N C"]
) -> Spectrum:
    """The N(D+C) eigenvalues of that network's rescaled Hessian, one secular root after the other; raises likewise."""
    exact = hessian(_network(problem, input_weights, readout))
    values = np.array([secular.eigenvalue(exact, k + 1) for k in range(len(exact.poles))])
    zeros = len(readout) * (problem.num_inputs + problem.num_outputs) - len(values)
    return spectrum(values, np.ones(len(values)), zeros)


def observables(measured: Measurement, top_k: int, of_hessian: OfHessian | None) -> Observables:
    """Loss, kernels, directional sharpness, and what ``of_hessian(hessian, top_k)`` finds; not a number where diverged."""
    if diverged(measured):
        template = observables(jax.tree.map(jnp.zeros_like, measured), top_k, of_hessian)
        return {name: np.full_like(values, np.nan) for name, values in template.items()} | {"loss": np.asarray(measured.loss)}
    return {
        "loss": np.asarray(measured.loss),
        "gauss_newton_eigenvalues": largest(np.linalg.eigvalsh(measured.gauss_newton), top_k),
        "ntk_eigenvalues": largest(np.linalg.eigvalsh(measured.ntk), top_k),
        "directional_sharpness": np.asarray(measured.directional_sharpness),
        **(of_hessian(hessian(measured), top_k) if of_hessian else {}),
    }


def diverged(measured: Measurement) -> bool:
    """Whether there is no Hessian to speak of: numbers, or their squares, that are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        parts = (measured.loss, measured.ntk, measured.blocks, measured.factors)
        return not all(np.isfinite(np.sum(np.square(part))) for part in parts)


def hessian(measured: Measurement) -> Secular:
    """The rescaled Hessian (without the null space outside the inputs' span), every block diagonalised."""
    poles, turns = np.linalg.eigh(np.asarray(measured.blocks))
    factor = turns.swapaxes(1, 2) @ np.asarray(measured.factors)
    return secular.secular(poles.ravel(), factor.reshape(poles.size, -1))


def limit_of_hessian(exact: Secular, top_k: int, *, compact: bool) -> Observables:
    """What a cloud's Hessian says of the limit (see ``meanfield``), and, under ``IN_BULK``, which ranks have none."""
    values = np.array([secular.eigenvalue(exact, k + 1) for k in range(top_k)])
    if not compact:
        carried = [secular.concentration(exact, value) > CARRIED for value in values]
        return {"hessian_eigenvalues": values, IN_BULK: np.logical_or.accumulate(carried).astype(float)}
    edge, bottom = exact.poles[0], exact.poles[-1]
    return {
        "hessian_eigenvalues": np.maximum(values, edge),
        "hessian_min": bottom,
        "residual_eigenvalues": np.array([edge, bottom]),
        "hessian_trace": np.sum(exact.factor**2),
        IN_BULK: np.zeros(top_k),
    }


@partial(jax.jit, static_argnums=0)
def measure(network: Functions, population: Population, z: Neurons) -> Measurement:
    """All that the observables need."""
    theta = particles.ntk(network, population, z)
    return Measurement(
        particles.loss(network, population, z),
        particles.error_signal(network, population, z),
        theta,
        particles.gauss_newton(network, population, z, theta),
        particles.directional_sharpness(network, population, z),
        blocks(network, population, z),
        factors(network, population, z),
    )


def blocks(network: Functions, population: Population, z: Neurons) -> Float[Array, "N n n"]:
    """R_i"""
    x, error = population.inputs, particles.error_signal(network, population, z)
    h = z.input @ x.T
    of_input = jnp.einsum("ip,pa,pb->iab", network.bend(h) * (z.readout @ error.T), x, x, optimize="optimal")
    mixed = jnp.einsum("ip,pa,pc->iac", network.slope(h), x, error, optimize="optimal")
    corner = jnp.zeros((len(h), error.shape[1], error.shape[1]))
    return population.richness * jnp.block([[of_input, mixed], [mixed.swapaxes(1, 2), corner]])


def factors(network: Functions, population: Population, z: Neurons) -> Float[Array, "N n PC"]:
    """F_i"""
    x, (P, C) = population.inputs, population.targets.shape
    root, h = network.ell.root(particles.outputs(network, population, z)), z.input @ x.T
    of_input = jnp.einsum("ip,pa,ic,pcb->iapb", network.slope(h), x, z.readout, root, optimize="optimal")
    of_readout = jnp.einsum("ip,pcb->icpb", network.phi(h), root)
    both = jnp.concatenate([of_input, of_readout], 1).reshape(len(h), -1, P * C)
    return jnp.sqrt(population.mass / P)[:, None, None] * both


def _network(problem, input_weights, readout) -> Measurement:
    insist(particles.refuses(problem))
    wanted = (problem.num_inputs, len(readout)), (len(readout), problem.num_outputs)
    if (input_weights.shape, readout.shape) != wanted:
        raise ValueError(f"weights {input_weights.shape} and {readout.shape}: wanted (D, N) and (N, C) = {wanted}")
    width, basis = len(readout), coordinates(problem).basis
    z = Neurons(jnp.asarray(input_weights, float).T @ basis, jnp.asarray(readout, float))
    return measure(particles.functions(problem), particles.population(problem, np.full(width, 1 / width)), z)


def _exact_hessian(exact: Secular, top_k: int, null: int) -> Observables:
    """With so many zeros besides."""
    m = len(exact.poles)
    top = [secular.eigenvalue(exact, k + 1) for k in range(min(top_k, m))]
    zero = [0.0] * (null > 0)
    return {
        "hessian_eigenvalues": largest(np.array(top + [0.0] * min(null, top_k)), top_k),
        "hessian_min": np.array(min([secular.eigenvalue(exact, m), *zero])),
        "residual_eigenvalues": np.array([max([exact.poles[0], *zero]), min([exact.poles[-1], *zero])]),
        "hessian_trace": np.array(np.sum(exact.poles) + np.sum(exact.factor**2)),
    }
