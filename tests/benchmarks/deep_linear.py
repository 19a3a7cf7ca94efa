"""The causal sweep of ``limits.deep.linear`` against the usual way to solve the same equations.

    python tests/benchmarks/deep_linear.py [--steps 100] [--samples 10] [--depth 2] [--iterations 80] [--repeats 5]

``fixed_point`` is that way, straightforward: all times at once, dense (TP) × (TP) solves, from the kernels of one iteration
to those of the next, damped, in eager JAX, float64.  It is stopped when its loss is within 1e-3 (of the initial loss) of the
sweep's.  At more richness it overflows (a test shows it).  Medians of one run, interleaved, the sweep after its compilation:
only ratios within one run mean something.  Then the growth of the sweep's cost with T, P and L.
"""

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits import Problem
from limits.deep import linear as deep_linear
from limits.machine import computing


class Iterate(NamedTuple):
    """Kernels and responses of one iteration, times and samples (outputs) on one axis; one of each per hidden layer."""

    H: list[Float[Array, "TP TP"]]
    G: list[Float[Array, "TC TC"]]
    A: list[Float[Array, "TP TC"]]
    B: list[Float[Array, "TC TP"]]
    f: Float[Array, "T P C"]


def fixed_point(problem: Problem, *, depth: int, damping: float) -> Iterator[Iterate]:
    """The iterates of h = u + E g, g = r + D h (heavy ball allowed), from kernels that do not move; without end.

    Sample space, all samples, no weight decay.  Each is ``damping`` times the one before plus the rest times the new one.
    """
    P, C, T = problem.num_samples, problem.num_outputs, problem.num_steps + 1
    lags = np.arange(T)[:, None] - np.arange(T)
    beta = problem.momentum
    rho = jnp.asarray(np.where(lags > 0, (1 - beta ** np.maximum(lags, 0)) / (1 - beta), 0.0))
    rho = rho * problem.learning_rate * problem.richness / P
    first = jnp.asarray(problem.inputs @ problem.inputs.T / problem.num_inputs)
    H0, top = _everywhere(first, T), _everywhere(jnp.eye(C), T)
    zero = jnp.zeros((T * P, T * C))
    now = Iterate([H0] * depth, [top] * depth, [zero] * depth, [zero.T] * depth, jnp.zeros((T, P, C)))
    while True:
        error = jnp.asarray(problem.targets) - now.f
        below, above = [H0, *now.H], [*now.G, top]
        A, B = [zero, *now.A], [*now.B, zero.T]  # A^l of layer l + 1; B^l of layer l, which layer l + 1 has as its own
        layers = []
        for l in range(depth):
            E = A[l] + _pushed(rho, below[l], error)
            D = B[l + 1] + _pushed(rho, above[l + 1], error.swapaxes(1, 2))
            layers.append(_layer(E, D, below[l], above[l + 1]))
        H, G, A, B = (list(kernels) for kernels in zip(*layers, strict=True))
        response = A[-1].reshape(T, P, T, C).sum(2)
        moved = _pushed(rho, H[-1], error).reshape(T, P, T, C).sum(2)
        new = Iterate(H, G, A, B, (response + moved) / problem.richness)
        now = jax.tree.map(lambda old, new: damping * old + (1 - damping) * new, now, new)
        yield now


def _layer(E, D, below, above):
    """(H, G, A, B) of h = u + E g, g = r + D h with <uu> = below, <rr> = above."""
    of_h, of_g = jnp.eye(len(E)) - E @ D, jnp.eye(len(D)) - D @ E
    h_u, h_r = jnp.linalg.inv(of_h), jnp.linalg.solve(of_h, E)
    g_r, g_u = jnp.linalg.inv(of_g), jnp.linalg.solve(of_g, D)
    return h_u @ below @ h_u.T + h_r @ above @ h_r.T, g_r @ above @ g_r.T + g_u @ below @ g_u.T, h_r, g_u


def _pushed(rho, kernel, error):
    """ρ(t−s) kernel(t,s) error(s): (T m, T m), (T, m, n) -> (T m, T n)."""
    T, m, n = error.shape
    return jnp.einsum("ts,tpsq,sqc->tpsc", rho, kernel.reshape(T, m, T, m), error).reshape(T * m, T * n)


def _everywhere(kernel, T):
    """The same at all pairs of times."""
    return jnp.tile(kernel, (T, T))


def a_problem(steps, samples, **options):
    """Training to τ = η0 · steps = 4."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(samples, samples)), rng.normal(size=samples)
    return Problem(inputs, targets, num_steps=steps, **{"learning_rate": 4.0 / steps, "richness": 1.0} | options)


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _sweep_seconds(steps, samples, depth, repeats):
    problem = a_problem(steps, samples)
    deep_linear.solve(problem, depth=depth, hessian=False)  # compiles
    return float(np.median([_seconds(lambda: deep_linear.solve(problem, depth=depth, hessian=False)) for _ in range(repeats)]))


def against_fixed_point(steps, samples, depth, iterations, repeats):
    problem = a_problem(steps, samples)
    print(f"T = {steps}, P = {samples}, L = {depth}, float64")
    compiling = _seconds(lambda: deep_linear.solve(problem, depth=depth, hessian=False))
    exact = deep_linear.solve(problem, depth=depth, hessian=False)["loss"]
    print(f"  loss from {exact[0]:.3f} to {exact[-1]:.5f}; the first sweep, which compiles: {compiling:.1f} s")
    iterated, swept, distance = [], [], np.inf
    iterates = fixed_point(problem, depth=depth, damping=0.8)
    while len(iterated) < iterations and distance > 1e-3 * exact[0]:
        with computing("float64"):
            start = time.perf_counter()
            outputs = np.asarray(next(iterates).f)
            iterated.append(time.perf_counter() - start)
        swept += [_seconds(lambda: deep_linear.solve(problem, depth=depth, hessian=False)) for _ in range(repeats)]
        distance = np.abs(np.sum((outputs - problem.targets) ** 2, (1, 2)) / (2 * samples) - exact).max()
    sweep, one, count = float(np.median(swept)), float(np.median(iterated)), len(iterated)
    print(f"  sweep {sweep:.4f} s    one iteration of the fixed point {one:.3f} s    ratio {one / sweep:.0f}")
    print(f"  {count} iterations {sum(iterated):.1f} s, loss within {distance:.1e}    ratio {sum(iterated) / sweep:.0f}")


def growth(steps, samples, depth, repeats):
    print("growth of the sweep's cost (s)")
    for name, settings in {
        "T": [(n * steps, samples, depth) for n in (1, 2, 4, 8)],
        "P": [(steps, n * samples, depth) for n in (1, 2, 4, 8)],
        "L": [(steps, samples, n) for n in (1, 2, 3, 4)],
    }.items():
        for setting in settings:
            print(f"  {name}: T, P, L = {setting}: {_sweep_seconds(*setting, repeats):.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, value in {"steps": 100, "samples": 10, "depth": 2, "iterations": 80, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    against_fixed_point(**vars(options))
    growth(options.steps, options.samples, options.depth, options.repeats)
