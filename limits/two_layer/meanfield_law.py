"""How a two-layer network of width N departs from its mean-field limit: predicted by differentiating in particles' masses.

A network of width N is the particle system of N independent draws, an observable o a functional of their law.  With
o'(z), o''(z, z') its first and second variation by mass at the *initial* particles z, z' (von Mises 1947),

    root mean square over seeds   N^{-1/2} · std,     std² = Var_z o'(z)
    mean over seeds               N^{-1} · bias,      bias = ½ [E o''(z, z) − E o''(z, z')]       z' an independent copy

f(0) ≠ 0 of a finite network is part of it.  In a cloud of M particles o'(z_i) = ∂o/∂w_i at w = 1/M, through the whole
training: one reverse sweep per number.  The bias is ½ E D²o[s, s] over random signs σ, s = (σ − σ̄)/√M, whose covariance
is that of M masses drawn at random, and has the standard error of the mean.

An eigenvalue of the Hessian is differentiated as the Rayleigh quotient of its eigenvector, corrected to first order,

    y = y_0 + (λ_0 − H_0)⁺ H y_0,      which makes <y, Hy>/<y, y> right to third order

Eigenvalues that others are close to, or that lie in the bulk (``limits.two_layer.meanfield``), have no such law: NaN.  Nor do
networks with a kink from here, as of ReLU or a hard tanh: what a moved neuron crosses is a density that no cloud's derivative
contains.

**Split groups.**  At step 0 neurons know no output from another, Θ = K ⊗ 1 with K = Σ_c Θ_cc/C: C eigenvalues are one in the
limit (of the Gauss-Newton matrix of cross-entropy, C − 1).  A network's split at order N^{-1/2}, into the branches of
K ⊗ 1 + h Θ'[s] along such directions s, from which law and shift are taken (``limits.law.branches``).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from limits.activations import ACTIVATIONS
from limits.descent import Descent, descent
from limits.law import Group, Prediction, branches, groups, law_of_draws, second_order
from limits.machine import by_batches, in_float64, require_memory
from limits.problem import Problem
from limits.repeats import check_repeats
from limits.spectra import apart, largest, leading_eigenvalues
from limits.theories import insist
from limits.two_layer import particles as system
from limits.two_layer.neuron_blocks import IN_BULK, Measurement, diverged, factors, hessian, limit_of_hessian, measure
from limits.two_layer.particles import Functions, Neurons, Population

APART = 0.02  # of the largest: a cloud splits equal eigenvalues, by about a quarter of that at 1024 particles
SIDE_BY_SIDE = 8  # sweeps, or directions
DRAWS = 512  # of a split group, in each cloud: nothing is trained for them


class Kind(NamedTuple):
    """What compiled code is specialised to."""

    functions: Functions
    top_k: int


class Roots(NamedTuple):
    """Eigenvalues of the Hessian where nothing has moved: y_0 (times √w), (λ_0 − R)⁻¹, (1 − M(λ_0))⁺ of each outlier."""

    outlier: Bool[Array, "*k"]
    vector: Float[Array, "*k N n"]
    resolvent: Float[Array, "*k N n n"]
    inner: Float[Array, "*k q q"]


class Run(NamedTuple):
    """A cloud's training; where it is at the measured steps, and the Hessian's eigenvalues there, with its own masses."""

    population: Population
    descent: Descent
    start: Neurons
    states: Neurons
    roots: Roots


@in_float64
def predict(
    problem: Problem, *, particles: int = 1024, repeats: int = 4, directions: int = 64, seed: int = 0
) -> Prediction | None:
    """The laws of every observable of ``limits.two_layer.meanfield`` at every measured step; None with a kink.

    From so many clouds of particles and so many random directions in each, over which the errors are standard errors.
    Raises ValueError and MemoryError as ``limits.two_layer.meanfield.solve``.
    """
    insist(system.refuses(problem))
    check_repeats(repeats)
    if problem.network.nonlinearity.kinked:
        return None
    n, rank, k = min(problem.inputs.shape) + problem.num_outputs, problem.targets.size, problem.top_k
    per_step = n * (n + 2) * k + 4 * SIDE_BY_SIDE * problem.num_samples * (problem.num_outputs + 1)
    numbers = particles * (len(problem.steps) * per_step + 8 * n * rank)
    require_memory(numbers, f"{particles} particles need", "take fewer")
    kind = Kind(system.functions(problem), problem.top_k)
    clouds = [_of_cloud(kind, problem, particles, directions, rng) for rng in np.random.default_rng(seed).spawn(repeats)]
    *derivatives, split = zip(*clouds, strict=True)
    variance, second, known = (jax.tree.map(lambda *numbers: np.stack(numbers), *part) for part in derivatives)
    known = {name: of_clouds.all(0) for name, of_clouds in known.items()}
    laws = {name: law_of_draws(variance[name], np.concatenate(second[name]), known.get(name, True)) for name in variance}
    _put_split(laws, split)
    laws.setdefault("gauss_newton_eigenvalues", laws["ntk_eigenvalues"])  # of MSE
    return Prediction(laws)


def _of_cloud(kind, problem, particles, directions, rng) -> tuple[dict, dict, dict, dict]:
    """(Var o', o'' along each direction, whether an eigenvalue has a law), by observable; ``_split_at_the_start``."""
    population, steps = system.population(problem, np.full(particles, 1 / particles)), descent(problem)
    start = jax.tree.map(jnp.asarray, system.cloud(problem, particles, rng))
    states = system.descend(kind.functions, population, steps, start)
    measured = [measure(kind.functions, population, jax.tree.map(lambda a: a[t], states)) for t in range(len(problem.steps))]  # noqa: B023
    roots, known = zip(*(_roots(kind, jax.tree.map(np.asarray, at)) for at in measured), strict=True)
    run = Run(population, steps, start, states, jax.tree.map(lambda *a: jnp.stack(a), *roots))
    along = _directions(directions, particles, rng)
    derivatives = jax.tree.map(np.asarray, (_variances(kind, run), _second_along(kind, run, along)))
    known = {name: np.stack([at_a_step[name] for at_a_step in known]) for name in known[0]}
    return *derivatives, known, _split_at_the_start(kind, population, start, rng)


def _directions(count, particles, rng) -> Float[Array, "count M"]:
    """Of the masses: random signs, with the covariance of masses drawn at random."""
    signs = rng.choice([-1.0, 1.0], size=(count, particles))
    return jnp.asarray(signs - signs.mean(1, keepdims=True)) / np.sqrt(particles)


def _roots(kind, measured: Measurement) -> tuple[Roots, dict[str, np.ndarray]]:
    """The top_k eigenvalues of the Hessian, and which eigenvalues have a law.  The others are any vector's quotient."""
    (N, n, q), k, compact = measured.factors.shape, kind.top_k, ACTIVATIONS[kind.functions.activation].linear
    any_root = Roots(np.array(False), np.full((N, n), 1 / np.sqrt(N * n)), np.zeros((N, n, n)), np.zeros((q, q)))
    names = ("hessian_eigenvalues", "gauss_newton_eigenvalues", "ntk_eigenvalues")
    if diverged(measured):
        return jax.tree.map(lambda a: np.stack([a] * k), any_root), dict.fromkeys(names, np.zeros(k, bool))
    exact = hessian(measured)
    of_cloud = limit_of_hessian(exact, k + 1, compact=compact)
    values = of_cloud["hessian_eigenvalues"], *(np.linalg.eigvalsh(a)[::-1] for a in (measured.gauss_newton, measured.ntk))
    known = {name: apart(each, k, APART) for name, each in zip(names, values, strict=True)}
    outlier = known["hessian_eigenvalues"] & (of_cloud[IN_BULK][:k] == 0) & (values[0][:k] > exact.poles[0])
    known["hessian_eigenvalues"] = outlier | (compact & (values[0][:k] <= exact.poles[0]))  # the edge itself has a law
    roots = [_root(measured, lam) if is_one else any_root for lam, is_one in zip(values[0][:k], outlier, strict=True)]
    return jax.tree.map(lambda *a: np.stack(a), *roots), known


def _root(measured: Measurement, lam) -> Roots:
    poles, turns = np.linalg.eigh(measured.blocks)
    resolvent = (turns / (lam - poles)[:, None, :]) @ turns.swapaxes(1, 2)
    lifted = resolvent @ measured.factors
    mu, vectors = np.linalg.eigh(np.einsum("inp,inq->pq", measured.factors, lifted))
    nearest = np.argmin(np.abs(mu - 1))
    vector = lifted @ vectors[:, nearest]
    inverse = np.divide(1, 1 - mu, out=np.zeros_like(mu), where=np.arange(len(mu)) != nearest)
    return Roots(np.array(True), vector / np.linalg.norm(vector), resolvent, (vectors * inverse) @ vectors.T)


@partial(jax.jit, static_argnums=0)
def _variances(kind, run):
    """Var_i ∂o/∂w_i of every number, one reverse sweep each, a few at a time."""

    def flat(mass):
        return jax.flatten_util.ravel_pytree(_observe(kind, run, mass))[0]

    values, pull = jax.vjp(flat, run.population.mass)
    variances = by_batches(lambda e: jnp.var(pull(e)[0]), jnp.eye(len(values)), SIDE_BY_SIDE)
    like = jax.eval_shape(partial(_observe, kind, run), run.population.mass)
    unflatten = jax.flatten_util.ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape), like))[1]
    return unflatten(variances)


@partial(jax.jit, static_argnums=0)
def _second_along(kind, run, directions):
    """o'' along each direction of the masses."""

    def second(direction):
        return second_order(lambda h: _observe(kind, run, run.population.mass + h * direction))[1]

    return by_batches(second, directions, SIDE_BY_SIDE)


def _observe(kind, run, mass):
    """Every observable at the measured steps, as a smooth function of the masses."""
    population = run.population._replace(mass=mass)
    states = system.descend(kind.functions, population, run.descent, run.start)
    at_one_time = partial(_observe_at_one_time, kind, population, run.population)
    return jax.lax.map(lambda args: at_one_time(*args), (states, run.states, run.roots))


def _observe_at_one_time(kind, population, own, z, own_z, roots):
    network, k = kind.functions, kind.top_k
    ntk = system.ntk(network, population, z)
    product = partial(system.hessian_product, network, population, z)
    quotient = partial(_quotient, product, population, own.mass, factors(network, own, own_z))
    eigenvalues = jax.vmap(quotient)(roots)
    observables = {
        "loss": system.loss(network, population, z),
        "hessian_eigenvalues": eigenvalues,
        "ntk_eigenvalues": leading_eigenvalues(ntk, k),
        "directional_sharpness": system.directional_sharpness(network, population, z),
    }
    gauss_newton = ntk if network.ell.quadratic else system.gauss_newton(network, population, z, ntk)
    if not network.ell.quadratic:
        observables["gauss_newton_eigenvalues"] = leading_eigenvalues(gauss_newton, k)
    if not ACTIVATIONS[network.activation].linear:
        return observables
    edge = _edge_of_a_linear_network(network, population, z)
    return observables | {
        "hessian_eigenvalues": jnp.where(roots.outlier, eigenvalues, edge),
        "hessian_min": -edge,
        "residual_eigenvalues": jnp.stack([edge, -edge]),
        "hessian_trace": jnp.trace(gauss_newton),
    }


def _quotient(product, population, mass, factor, root: Roots):
    """<y, Hy>/<y, y> of the eigenvector where the masses are their own, corrected to first order."""
    weight = jnp.sqrt(mass)[:, None]

    def neurons(y):
        return Neurons(*jnp.split(y / weight, [population.inputs.shape[1]], axis=1))

    def corrected(b):  # (λ_0 − H_0)⁺ b, by Woodbury's formula
        b = _without(root.vector, b)
        seen = jnp.einsum("inq,inm,im->q", factor, root.resolvent, b, optimize="optimal")
        return _without(root.vector, jnp.einsum("inm,im->in", root.resolvent, b + factor @ (root.inner @ seen)))

    moved = product(neurons(root.vector))
    y = neurons(root.vector + corrected(weight * jnp.concatenate(moved, 1)))
    return system.inner(population, y, product(y)) / system.inner(population, y, y)


def _without(unit, b):
    return b - jnp.sum(unit * b) * unit


def _edge_of_a_linear_network(network, population, z):
    """The bulk is ±γ0 σ(x̂ᵀr)."""
    mixed = population.richness * population.inputs.T @ system.error_signal(network, population, z)
    return jnp.sqrt(leading_eigenvalues(mixed.T @ mixed, 1)[0])


# Groups of eigenvalues that are one at step 0 ---------------------------------------------------------------------------


def _split_at_the_start(kind, population, start, rng) -> dict[str, dict[tuple[int, int], tuple]]:
    """{observable: {(first rank, how many): (λ', λ'') of these branches along each direction}}"""
    outputs, splits = population.targets.shape[1], {}
    if outputs == 1:
        return splits
    along = _directions(DRAWS, len(population.mass), rng)
    for name in ("ntk_eigenvalues",) if kind.functions.ell.quadratic else ("ntk_eigenvalues", "gauss_newton_eigenvalues"):
        matrix = _kernel(kind.functions, name, population, start, symmetric=True)
        splits[name] = {(group.first, group.shown): tuple(each[:, : group.shown] for each in
                                                          _branches(kind, name, population, start, group, along))
                        for group in _groups(np.asarray(matrix), kind.top_k)}  # fmt: skip
    return splits


def _groups(matrix, k) -> list[Group]:
    """Of the k largest, those that are several and apart from all others."""
    values, identity = np.linalg.eigvalsh(matrix)[::-1], np.eye(len(matrix))
    several = groups(largest(values, k)[None], apart(values, k)[None], lambda _, value: (matrix - value * identity, -identity))
    return [group for group in several
            if np.sum(np.abs(values - group.value) < APART * values[0]) == group.vectors.shape[1]]  # fmt: skip


@partial(jax.jit, static_argnums=(0, 1))
def _branches(kind, name, population, start, group, along):
    kernel = partial(_kernel, kind.functions, name)
    symmetric, own = kernel(population, start, symmetric=True), kernel(population, start)

    def of_direction(direction):
        def moved(h, rate, v):
            change = kernel(population._replace(mass=population.mass + h * direction), start) - own
            return (symmetric + change) @ v - (group.value + h * rate) * v

        return branches(moved, group.vectors, group.inverse)

    return by_batches(of_direction, along, SIDE_BY_SIDE)


def _kernel(network, name, population, z, *, symmetric=False):
    """Θ/P, or BᵀΘB/P; symmetric: with K ⊗ 1 in place of Θ."""
    theta = system.ntk(network, population, z)
    if symmetric:
        theta = system.without_ties(theta, population.targets.shape[1])
    return theta if name == "ntk_eigenvalues" else system.gauss_newton(network, population, z, theta)


def _put_split(laws, clouds) -> None:
    """What the clouds have of split groups, at the first measured step, where all of them see the same ones."""
    for name, of_first in clouds[0].items():
        for at, count in of_first:
            if all((at, count) in cloud[name] for cloud in clouds):
                of_clouds = (cloud[name][at, count] for cloud in clouds)
                first, second = (np.concatenate(derivatives) for derivatives in zip(*of_clouds, strict=True))
                for values, of_split in zip(laws[name], law_of_draws(first**2, second, shifts=first), strict=True):
                    values[0, at : at + count] = of_split
