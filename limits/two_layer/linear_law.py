"""How a network of finite width departs from the limit: predicted by differentiating the recursion, no simulation.

At step 0 the Gram matrix is S_0 = 1 + N^{-1/2} Ξ with Wishart moments: E Ξ = 0, Cov(Ξ_ij, Ξ_kl) = δ_ikδ_jl + δ_ilδ_jk.
Every later observable is a function of it, so with o_N − o_∞ = N^{-1/2} o'[Ξ] + N^{-1} ½o''[Ξ, Ξ] + …

    root mean square over seeds   N^{-1/2} · std,     std² = E o'[Ξ]²
    mean over seeds               N^{-1} · bias,      bias = ½ E o''[Ξ, Ξ]

**μP.**  o' is linear: std = √2 ‖sym ∂o/∂S_0‖_F, one reverse sweep per number; bias = ½ Σ o''[B, B] over the n(n+1)/2
independent directions B of Ξ, summed exactly (or, beyond ``EXACT_DIRECTIONS``, over random ±combinations, with its
standard error).

**NTP.**  ε = N^{-1/2} enters also as the strength of feature learning and f(0) stays random, so the limit subtracted is
the one with the network's own f(0) (see ``limits.two_layer.linear``), and o', o'' are averaged over draws of Ξ: the Bartlett
factor of S_0 expanded in ε, which keeps the third moment of Ξ that the bias feels.  Standard errors are given.

**Split groups.**  Eigenvalues that are one in the limit, as those of Θ at step 0 with several outputs, always in NTP, split at
order N^{-1/2} and repel each other: their means, too, are of that order.  Degenerate perturbation theory gives o' and o'' of
each member of the group in each of many draws of Ξ (``limits.law.branches``).
"""

from collections.abc import Iterator
from functools import partial
from math import inf
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits.coordinates import Coordinates, coordinates
from limits.descent import Descent, descent
from limits.exponents.parametrization import output_exponent
from limits.law import Group, Law, Prediction, branches, groups, law_of_draws, second_order
from limits.machine import by_batches, compiled_soon, in_float64
from limits.problem import Problem
from limits.spectra import apart
from limits.trajectory import Trajectory
from limits.two_layer import linear as linear2
from limits.two_layer import linear_curvature as curvature

EXACT_DIRECTIONS = 1024
SAMPLED_DIRECTIONS = 256
SIDE_BY_SIDE = 64  # directions, or draws
HESSIAN, NTK = "hessian_eigenvalues", "ntk_eigenvalues"
SAME_AS = {NTK: ("gauss_newton_eigenvalues",)}  # of MSE
RANKED = (HESSIAN, NTK, *SAME_AS[NTK])


@in_float64
def predict(problem: Problem, *, draws: int = 1024, seed: int = 0) -> Prediction:
    """The laws of every observable at every measured step.  ``draws``, ``seed``: of Ξ, where an average is sampled.

    Raises ValueError for parametrizations between NTP and μP: their rates are not powers of N^{-1/2} alone.
    """
    exponent = output_exponent(problem.scaling())
    if exponent not in (0.0, 0.5):
        raise ValueError(f"fluctuations are predicted for ntp and mup, not for output exponent {exponent:g}")
    data = coordinates(problem)
    numbers, states, n = linear2.scales(problem, inf), linear2.evolve(problem), sum(data.optimum.shape)
    more = linear2._measure_all(states, n, problem.top_k + 1, problem.top_k + 1)  # by one eigenvalue: is the last one apart?
    known = {name: values[:, : problem.top_k] if name in RANKED else values for name, values in more.items()}
    run = Run(data, numbers, descent(problem), known, _expansions(states, known))
    key = jax.random.key(seed)
    factors = _gaussian_factors(key, draws, n)
    if exponent == 0.5:
        sensitivity, laws = _meanfield_laws(run, key, n)
    else:
        sensitivity, laws = None, _kernel_laws(run, factors)
    simple = _simple_eigenvalues(problem, more)
    laws = {
        name: Law(*(np.where(simple.get(name, True), np.asarray(values), np.nan) for values in law))
        for name, law in laws.items()
    }
    _put_split(laws, run, exponent == 0.5, list(_groups(states, known, simple)), factors)
    if sensitivity is not None:
        sensitivity = {name: np.asarray(values) for name, values in sensitivity.items()}
    return Prediction(laws, np.asarray(data.basis), sensitivity)


def edge_crossing(problem: Problem, limit: Trajectory) -> int | None:
    """The first measured step at which the limit's sharpness exceeds the edge of stability 2(1+β)/η0 − λ; None if never.

    From there on the dynamics amplifies differences, the expansion in 1/√N loses its meaning, and no exponent is fitted.
    With minibatches the noise may destabilise earlier; the condition is that of the full batch.
    """
    beyond = ~(limit["sharpness"] <= problem.edge_of_stability)
    return int(limit.steps[np.argmax(beyond)]) if beyond.any() else None


class Run(NamedTuple):
    """What a trajectory is made of, but for ε and X_0, and in the limit the observables' values and what they expand about."""

    data: Coordinates
    numbers: linear2.Scales
    descent: Descent
    known: dict[str, Array]
    expanded: tuple[curvature.Expansion, curvature.Expansion]


@compiled_soon()
def _expansions(states, known):
    """At the measured steps.  In NTP too they are the same for every X_0: the curvature does not depend on f(0)."""
    return jax.lax.map(lambda at: curvature.expansions(*at), (states, known))


def _observe(run, epsilon, X0):
    """Every observable at the measured steps, as a smooth function of ε and X_0."""
    states = linear2.descend(run.data, run.numbers._replace(epsilon=epsilon), X0, run.descent)
    return jax.vmap(curvature.differentiable)(states, run.expanded, run.known)


def _meanfield_laws(run, key, n):
    """(sensitivities, laws) in μP: both from all directions of Ξ where these are few enough, else each by its own means."""
    zero = jax.tree.map(jnp.zeros_like, run.known)
    if n * (n + 1) // 2 <= EXACT_DIRECTIONS:
        basis = _basis(n)
        first, second = _along(run, basis)
        sensitivity = jax.tree.map(lambda o: 0.5 * jnp.tensordot(jnp.moveaxis(o, 0, -1), basis, 1), first)
        bias, bias_error = jax.tree.map(lambda o: 0.5 * jnp.sum(o, 0), second), zero
    else:
        sensitivity = _gradients(run, n)
        _, second = _along(run, _random_directions(key, n))
        bias = jax.tree.map(lambda o: 0.5 * jnp.mean(o, 0), second)
        bias_error = jax.tree.map(lambda o: 0.5 * jnp.std(o, 0) / np.sqrt(SAMPLED_DIRECTIONS), second)
    std = jax.tree.map(lambda g: jnp.sqrt(2.0) * jnp.linalg.norm(g, axis=(-2, -1)), sensitivity)
    laws = {name: (std[name], bias[name], zero[name], zero[name], bias_error[name], zero[name]) for name in zero}
    return sensitivity, laws


@compiled_soon()
def _along(run, directions):
    """(o', o'') along directions of X_0."""

    def derivatives(direction):
        return second_order(lambda h: _observe(run, jnp.ones(()), h * direction))

    return by_batches(derivatives, directions, SIDE_BY_SIDE)


@partial(jax.jit, static_argnames="n")
def _gradients(run, n):
    """sym ∂o/∂S_0 at S_0 = 1 (T, …, n, n), one reverse sweep per number, a few at a time."""

    def flat(X0):
        return jax.flatten_util.ravel_pytree(_observe(run, jnp.ones(()), X0))[0]

    values, pull = jax.vjp(flat, jnp.zeros((n, n)))
    gradients = by_batches(lambda e: pull(e)[0], jnp.eye(len(values)), 16)
    gradients = 0.5 * (gradients + gradients.swapaxes(1, 2))
    unflatten = jax.flatten_util.ravel_pytree(run.known)[1]
    return jax.vmap(jax.vmap(unflatten, 1, -1), 2, -1)(gradients)


def _basis(n):
    """The independent unit directions of Ξ: Ξ = Σ_k ξ_k B_k with ξ_k uncorrelated, of variance 1; |B_k|² = 2."""
    rows, columns = np.tril_indices(n)
    basis = np.zeros((len(rows), n, n))
    basis[np.arange(len(rows)), rows, columns] = np.where(rows == columns, np.sqrt(2.0), 1.0)
    basis[np.arange(len(rows)), columns, rows] = basis[np.arange(len(rows)), rows, columns]
    return jnp.asarray(basis)


def _random_directions(key, n):
    """Random-sign combinations of all of them: E o''[Ξ, Ξ] needs no more than their second moments."""
    signs = jax.random.rademacher(key, (SAMPLED_DIRECTIONS, n, n), dtype=float)
    lower = jnp.tril(signs, -1)
    return lower + lower.swapaxes(1, 2) + jnp.sqrt(2.0) * signs * jnp.eye(n)


@compiled_soon(static_argnums=(1, 2))
def _gaussian_factors(key, draws, n):
    """ℓ of the Bartlett factor L/√N = 1 + εℓ − ε² diag(2i+1)/4: N(0,1) below the diagonal, N(0,1/2) on it."""
    g = jax.random.normal(key, (draws, n, n), dtype=float)
    return jnp.tril(g, -1) + g * jnp.eye(n) / jnp.sqrt(2.0)


def _start(factor, epsilon):
    """X_0 of these ℓ, (S_0 − 1)/ε."""
    ends = 0.5 * jnp.diag(2 * jnp.arange(len(factor)) + 1.0)
    return factor + factor.T + epsilon * (factor @ factor.T - ends)


def _kernel_laws(run, factors):
    """NTP: averages over draws of the derivatives in ε of o(ε, X_0(ε)) − o(0, f(0) of X_0(ε))."""
    first, second = jax.tree.map(np.asarray, _kernel_derivatives(run, factors))
    return {name: law_of_draws(first[name] ** 2, second[name], shifts=first[name]) for name in run.known}


@compiled_soon()
def _kernel_derivatives(run, factors):
    def derivatives(factor):
        def deviation(epsilon):
            X0 = _start(factor, epsilon)
            return jax.tree.map(jnp.subtract, *(_observe(run, e, X0) for e in (epsilon, jnp.zeros(()))))

        return second_order(deviation)

    return by_batches(derivatives, factors, SIDE_BY_SIDE)


# Groups of eigenvalues that are one in the limit ------------------------------------------------------------------------


def _groups(states, known, simple) -> Iterator[tuple[str, Group]]:
    for name in (HESSIAN, NTK):

        def singular(t, value, of_hessian=name == HESSIAN):
            state = jax.tree.map(lambda a: a[t], states)
            products = partial(_products, of_hessian, v=jnp.eye(state.gradient.size), state=state)
            return jax.jvp(products, (jnp.asarray(value),), (jnp.ones(()),))

        yield from ((name, group) for group in groups(np.asarray(known[name]), simple[name], singular))


def _products(of_hessian, lam, v, state):
    """M(λ) − 1, or Θ/P − λ, times these columns: singular where λ is an eigenvalue."""
    product = partial(curvature.secular_product, lam) if of_hessian else curvature.gauss_newton_product
    return jax.vmap(partial(product, state), 1, 1)(v) - (1.0 if of_hessian else lam) * v


def _put_split(laws, run, meanfield, split, factors) -> None:
    """In place of what the laws have for these groups."""
    if not split:
        return
    group_branches = [[] for _ in split]
    for some in np.split(factors, range(SIDE_BY_SIDE, len(factors), SIDE_BY_SIDE)):
        along = _states_along(run, meanfield, some)
        for (name, group), of_group in zip(split, group_branches, strict=True):
            of_group.append(_branches(name == HESSIAN, group, *jax.tree.map(lambda a: a[:, group.step], along)))  # noqa: B023
    for (name, group), of_group in zip(split, group_branches, strict=True):
        first, second = (np.concatenate(draws)[:, : group.shown] for draws in zip(*of_group, strict=True))
        law = law_of_draws(first**2, second, shifts=first)
        for observable in (name, *SAME_AS.get(name, ())):
            for values, of_split in zip(laws[observable], law, strict=True):
                values[group.step, group.ranks] = of_split


@compiled_soon(static_argnums=1)
def _states_along(run, meanfield, factors) -> tuple[curvature.OrderParameters, ...]:
    """Order parameters at ε = 0 and their first two derivatives, (draws, T, …)."""

    def derivatives(factor):
        def states(epsilon):
            X0 = _start(factor, epsilon)
            strength, X0 = (jnp.ones(()), epsilon * X0) if meanfield else (epsilon, X0)
            return linear2.descend(run.data, run.numbers._replace(epsilon=strength), X0, run.descent)

        return states(jnp.zeros(())), *second_order(states)

    return jax.vmap(derivatives)(factors)


@compiled_soon(static_argnums=0)
def _branches(of_hessian, group, states, first, second) -> tuple[Float[Array, "draws g"], Float[Array, "draws g"]]:
    def of_draw(*state):
        def moved(h, rate, v):
            at = jax.tree.map(lambda a, b, c: a + h * b + 0.5 * h * h * c, *state)
            return _products(of_hessian, group.value + h * rate, v, at)

        return branches(moved, group.vectors, group.inverse)

    return jax.vmap(of_draw)(states, first, second)


def _simple_eigenvalues(problem, more):
    """Per ranked observable (T, k): whether the eigenvalue is apart from its neighbours, one rank beyond k included."""
    simple = {name: apart(np.asarray(more[name]), problem.top_k) for name in RANKED}
    edge = np.asarray(more["residual_eigenvalues"])[:, :1]
    at_edge = np.asarray(more["hessian_eigenvalues"])[:, : problem.top_k] <= edge * (1 + 1e-9)
    return simple | {HESSIAN: simple[HESSIAN] | at_edge}  # as smooth as ρ(S_0), however many
