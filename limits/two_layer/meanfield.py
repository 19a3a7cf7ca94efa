"""Two-layer networks in μP at N = ∞, with any activation and loss: the mean-field limit, by clouds of particles.

    f(x) = (1/γ0) <v φ(e·x/√D)>,    rescaled Hessian R + F Fᵀ        (``particles``, ``neuron_blocks``, beside this file)

Gradient descent in discrete time, exact given the cloud.  Several clouds, scrambled independently, tell the error: every
observable is their mean, ``Trajectory.errors`` is that of ``limits.repeats`` (the true value is within twice that in 95 %
of draws).  Edges are no means: see below.

Which observables have a limit?  Means over neurons have: loss, NTK and Gauss-Newton eigenvalues, directional sharpness, and
the eigenvalues of the Hessian outside its bulk, roots of λ_k(M(λ)) = 1 with M(λ) = <F̂ᵀ(λ − R)⁻¹F̂>, F̂ = BᵀJ/√P.  The rest is
up to the bulk, the law of the eigenvalues of a neuron's block R_i.

φ'' = 0 (linear, ReLU)   R_i depends only on the samples that the neuron is active on, tr R_i = 0: the bulk is compact.  Its
    edges are the limits of λ_min and of R's edges, an eigenvalue without a root lies at the edge, and tr H = tr G.  ReLU:
    the edge is a maximum over patterns of activation, and a cloud, as a network of its size, lacks the rarest ones.
    ``limits.two_layer.patterns`` has all of them, at step 0 those that there are: then the edge is exact.  Later some might be
    deserted, and of large data sets the patterns are too many: then the value is the largest that the clouds have, and
    its error the distance to what no pattern exceeds.
otherwise                R_i has Σ_p r_p·v_i φ'' in it, and v_i is Gaussian at step 0: the bulk has no edge.  Its largest of
    N eigenvalues grows as √(log N), in the end past every outlier, and tr R as N: neither λ_min, nor R's edges, nor tr H
    has a limit, and they are left out.  Outliers above the bulk of the cloud are what wide networks have up to about that
    width.  An eigenvalue whose eigenvector one neuron carries is no outlier; then, and for all ranks below, the value is
    that of the cloud as a network, and its error is infinite.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from limits.machine import in_float64, require_memory
from limits.problem import Problem
from limits.repeats import check_repeats, drift, errors_of, first_ranks, scatter
from limits.spectra import Spectrum, spectrum
from limits.theories import insist
from limits.trajectory import Trajectory, hessian_left_open
from limits.two_layer.meanfield_law import predict
from limits.two_layer.neuron_blocks import (
    IN_BULK,
    Measurement,
    Observables,
    diverged,
    limit_of_hessian,
    measure,
    observables,
)
from limits.two_layer.neuron_blocks import hessian as hessian_of
from limits.two_layer.particles import cloud, functions, gauss_newton, path, population, refuses, without_ties
from limits.two_layer.patterns import candidates, edge

SIGNAL = "r"
PARTICLES, REPEATS = 4096, 4
LEVELS, DECOMPOSED = 12, 10  # matrices M(λ) of one eigenvalue; multiplications of a decomposition, over the side's third power
LEFT_OPEN = dict.fromkeys(("hessian_min", "residual_eigenvalues"), "the bulk of the Hessian has no edge with this activation")
LEFT_OPEN |= {"hessian_trace": "with this activation it grows with the width"}
__all__ = ["HessianSpectrum", "hessian_spectra", "predict", "refuses", "solve"]


class HessianSpectrum(NamedTuple):
    """outliers, largest first · bulk: eigenvalues of R_i, multiplicities per neuron, D + C in all."""

    outliers: Float[np.ndarray, " k"]
    bulk: Spectrum


@in_float64
def solve(
    problem: Problem, *, particles: int = PARTICLES, repeats: int = REPEATS, seed: int = 0, hessian: bool = True
) -> Trajectory:
    """The limit of ``mlp(problem, width, 1, activation)`` in μP, from so many clouds of so many particles.

    hessian   whether the Hessian's are found too, which of many samples and outputs take nearly all the time

    Momentum, weight decay, minibatches, several outputs and cross-entropy as in ``limits.problem``; observables as above.
    Raises ValueError for another parametrization, optimiser or depth and for clouds that are none; MemoryError before it
    starts.
    """
    check_repeats(repeats)
    clouds = [_trajectory(problem, times, hessian) for times in _clouds(problem, particles, repeats, seed)]
    of_clouds = {name: np.stack([cloud[name] for cloud in clouds]) for name in clouds[0]}
    in_bulk, signals = of_clouds.pop(IN_BULK, None), of_clouds.pop(SIGNAL)
    values = {name: np.mean(each, 0) for name, each in of_clouds.items()}
    errors = errors_of(values, of_clouds, drift(problem, values, of_clouds), averaged=1)
    if hessian:
        errors["hessian_eigenvalues"][in_bulk.any(0)] = np.inf
    if hessian and problem.network.nonlinearity.bent:
        _put_edges(values, errors, *_edges(problem, signals, of_clouds["residual_eigenvalues"][..., 0].max(0)))
    values, errors = (first_ranks(numbers, problem.top_k) for numbers in (values, errors))
    left_open = LEFT_OPEN if hessian else hessian_left_open("it was not asked for")
    return Trajectory(problem.steps, values, errors, left_open=left_open)


def work(
    problem: Problem, particles: int = PARTICLES, repeats: int = REPEATS, *, hessian: bool = True
) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``solve``, about."""
    P, rank, n = problem.num_samples, problem.targets.size, _of_a_neuron(problem)
    step = 6 * particles * P * n
    kernel, level = (particles * rows * rank**2 + DECOMPOSED * rank**3 for rows in (1, n))  # M(λ) is of all weights
    measured = 2 * kernel + hessian * LEVELS * (problem.top_k + 1) * level
    return repeats * (problem.num_steps * step + len(problem.steps) * measured), _room(problem, particles)


def insist_on_room(
    problem: Problem, particles: int = PARTICLES, repeats: int = REPEATS, *, hessian: bool = True
) -> None:
    """Raises MemoryError for clouds that do not fit this machine."""
    require_memory(work(problem, particles, repeats, hessian=hessian)[1], f"{particles} particles need", "take fewer")


def _of_a_neuron(problem):
    """Weights of one, within the span of the inputs."""
    return min(problem.inputs.shape) + problem.num_outputs


def _room(problem, particles):
    n, rank = _of_a_neuron(problem), problem.targets.size
    return particles * (len(problem.steps) * n + 4 * n * (n + rank) + 8 * problem.num_samples) + 6 * rank**2


@in_float64
def hessian_spectra(problem: Problem, *, particles: int = PARTICLES, seed: int = 0) -> list[HessianSpectrum]:
    """Of one cloud at the measured steps: at most top_k outliers, and the bulk.  Empty once diverged; raises as ``solve``."""
    (times,) = _clouds(problem, particles, 1, seed)
    return [_spectrum(problem, measured) for measured in times]


def _clouds(problem, particles, repeats, seed) -> Iterator[Iterator[Measurement]]:
    """The measured steps of each cloud."""
    insist(refuses(problem))
    insist_on_room(problem, particles, repeats)
    return (_times(problem, cloud(problem, particles, rng)) for rng in np.random.default_rng(seed).spawn(repeats))


def _times(problem, start) -> Iterator[Measurement]:
    network, mass = functions(problem), np.full(len(start.readout), 1 / len(start.readout))
    fixed = population(problem, mass)
    states = path(network, fixed, problem, start)
    for t, step in enumerate(problem.steps):
        z = jax.tree.map(lambda a: a[t], states)  # noqa: B023
        measured = measure(network, fixed, z)
        yield measured if step else _at_the_start(network, fixed, z, measured)


def _at_the_start(network, fixed, z, measured) -> Measurement:
    theta = without_ties(measured.ntk, fixed.targets.shape[1])
    return measured._replace(ntk=theta, gauss_newton=gauss_newton(network, fixed, z, theta))


def _trajectory(problem, times: Iterable[Measurement], hessian: bool) -> Observables:
    """With more ranks than are wanted (``repeats.first_ranks``; one more of the Hessian), and r."""

    def of_hessian(exact, _):
        return limit_of_hessian(exact, problem.top_k + 1, compact=problem.network.nonlinearity.piecewise_linear)

    ranks, finder = problem.top_k + problem.num_outputs, of_hessian if hessian else None
    of_times = [observables(measured, ranks, finder) | {SIGNAL: np.asarray(measured.error)} for measured in times]
    return {name: np.stack([at_a_time[name] for at_a_time in of_times]) for name in of_times[0]}


def _edges(problem, signals: Float[np.ndarray, "R T P C"], reached: Float[np.ndarray, " T"]) -> Float[np.ndarray, "2 T"]:
    """(upper edges, errors) of the bulk where a neuron has a kink; ``reached`` by the clouds."""
    inputs, richness = np.asarray(population(problem, np.ones(1)).inputs), problem.richness
    patterns, slopes = candidates(inputs, problem.num_outputs), problem.network.nonlinearity.slopes
    noise = richness * np.linalg.norm(inputs, 2) * np.linalg.norm(scatter(signals), axis=(1, 2))
    result = np.stack([reached, np.full(len(reached), np.nan)])
    for t in np.flatnonzero(np.isfinite(noise)):
        of_cells = edge(inputs, signals[:, t].mean(0), patterns, max(reached[t] - noise[t], 0.0) / richness, slopes)
        upper = max(reached[t], richness * of_cells.attained) if t == 0 else reached[t]
        result[:, t] = upper, max(richness * of_cells.bound - upper, 0.0) + noise[t]
    return result


def _put_edges(values, errors, edge: Float[np.ndarray, " T"], error: Float[np.ndarray, " T"]) -> None:
    """In place of the clouds' own; no eigenvalue with a limit is below, and none may be below what the edge might be."""
    values["residual_eigenvalues"], values["hessian_min"] = np.stack([edge, -edge], 1), -edge
    errors["residual_eigenvalues"], errors["hessian_min"] = np.stack([error, error], 1), error
    roots = values["hessian_eigenvalues"]
    values["hessian_eigenvalues"] = tops = np.maximum(roots, edge[:, None])
    errors["hessian_eigenvalues"] = np.maximum(errors["hessian_eigenvalues"] - (tops - roots), (edge + error)[:, None] - tops)


def _spectrum(problem, measured) -> HessianSpectrum:
    if diverged(measured):
        return HessianSpectrum(np.zeros(0), Spectrum(np.zeros(0), np.zeros(0)))
    exact, (N, n, _) = hessian_of(measured), measured.blocks.shape
    observed = limit_of_hessian(exact, problem.top_k, compact=problem.network.nonlinearity.piecewise_linear)
    values = observed["hessian_eigenvalues"]
    outliers = values[(observed[IN_BULK] == 0) & (values > exact.poles[0])]
    multiplicities = np.full(N * n, 1 / N)
    zeros = problem.num_inputs + problem.num_outputs - np.sum(multiplicities)
    return HessianSpectrum(outliers, spectrum(exact.poles, multiplicities, zeros))
