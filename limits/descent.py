"""Gradient descent as the theories take it: a problem's optimiser, one step of it, the way from measurement to measurement.

    v ← β v + g,    θ ← θ − η v        heavy ball;   Nesterov: θ ← θ − η (g + β v)            (``limits.problem``)

What θ is differs: a propagator of weights, the particles of a cloud, the coefficients of fields, the outputs themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.problem import Problem

Weights = TypeVar("Weights")  # a tree of arrays, of JAX or NumPy
Number = Float[Array | np.ndarray, ""] | float
State = TypeVar("State")  # what a step leads from and to: weights and velocity, mostly
Observed = TypeVar("Observed")
Step = Callable[[Any, Array, Array | None], Any]  # (state, learning rate, sample indices or None for all) → state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Descent:
    """A problem's optimiser up to the last measured step: its numbers, which are traced, and its kind, which is compiled.

    rates, batches            η and, if not all samples are in each step, their indices, by intervals between two measurements
    momentum, weight_decay    β, λ
    nesterov                  whether it looks ahead
    """

    rates: Float[Array, "intervals every"]
    batches: Int[Array, "intervals every b"] | None
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    nesterov: bool = field(metadata={"static": True})


def descent(problem: Problem) -> Descent:
    """The problem's; call it within ``limits.machine.computing("float64")``."""
    intervals, every = len(problem.steps) - 1, problem.measure_every

    def by_interval(of_steps):
        return jnp.asarray(of_steps[: intervals * every].reshape(intervals, every, *of_steps.shape[1:]))

    return Descent(
        rates=by_interval(problem.step_sizes),
        batches=None if problem.batches is None else by_interval(problem.batches),
        momentum=jnp.asarray(problem.momentum, float),
        weight_decay=jnp.asarray(problem.weight_decay, float),
        nesterov=problem.nesterov,
    )


def heavy_ball(
    weights: Weights,
    velocity: Weights,
    gradient: Weights,
    rate: Number,
    momentum: Number,
    *,
    nesterov: bool,
) -> tuple[Weights, Weights]:
    """(weights, velocity) after one step; ``gradient`` with what weight decay adds to it."""
    velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
    along = jax.tree.map(lambda v, g: g + momentum * v, velocity, gradient) if nesterov else velocity
    return jax.tree.map(lambda w, v: w - rate * v, weights, along), velocity


def follow(descent: Descent, step: Step, start: State, observe: Callable[[State], Observed]) -> Observed:
    """What is observed at the measured steps (leading axis T), the start among them; a piece for compiled code.

    Where arrays grow on the way, as in ``limits.deep``, steps are taken one by one instead.
    """

    def interval(state, rates_and_batches):
        state, _ = jax.lax.scan(lambda state, at_step: (step(state, *at_step), None), state, rates_and_batches)
        return state, observe(state)

    _, later = jax.lax.scan(interval, start, (descent.rates, descent.batches))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), observe(start), later)
