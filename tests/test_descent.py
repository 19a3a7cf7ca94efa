"""The optimiser of the theories, against optax's and against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limits import Problem, minibatches
from limits.descent import descent, follow, heavy_ball
from limits.machine import computing

A = np.array([[2.0, 0.5], [0.5, 1.0]])  # of the loss ½ wᵀAw − b·w
B = np.array([1.0, -2.0])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_is_that_of_optax(nesterov):
    weights, decay, momentum, rate = {"w": np.array([0.3, -0.7])}, 0.1, 0.6, 0.2
    with computing("float64"):
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum, nesterov))
        theirs = jax.tree.map(jnp.asarray, weights)
        state = optimizer.init(theirs)
        ours, velocity = weights, {"w": np.zeros(2)}
        for _ in range(5):
            update, state = optimizer.update({"w": A @ theirs["w"] - B}, state, theirs)
            theirs = optax.apply_updates(theirs, update)
            gradient = {"w": A @ ours["w"] - B + decay * ours["w"]}
            ours, velocity = heavy_ball(ours, velocity, gradient, rate, momentum, nesterov=nesterov)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-13)


@pytest.mark.parametrize("batched", [False, True])
def test_what_is_observed_is_at_the_measured_steps(batched):
    """Before steps 0, 3 and 6 of eight: warm-up, cosine and batches in their order."""
    rng = np.random.default_rng(0)
    batches = minibatches(rng, 5, 2, 8) if batched else None
    X, Y = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    problem = Problem(X, Y, num_steps=8, measure_every=3, warmup_steps=2, schedule="cosine", batches=batches, momentum=0.5)

    def step(state, rate, batch):
        rows = slice(None) if batch is None else batch
        weight, velocity = state
        gradient = jnp.asarray(X)[rows].sum() * weight - jnp.asarray(Y)[rows].sum()
        return heavy_ball(weight, velocity, gradient, rate, 0.5, nesterov=False)

    with computing("float64"):
        seen = jax.jit(lambda: follow(descent(problem), step, (jnp.ones(()), jnp.zeros(())), lambda state: state[0]))()
    weight, velocity, expected = 1.0, 0.0, []
    for t, rate in enumerate(problem.step_sizes):
        if t % 3 == 0:
            expected.append(weight)
        rows = slice(None) if batches is None else batches[min(t, 7)]
        velocity = 0.5 * velocity + X[rows].sum() * weight - Y[rows].sum()
        weight = weight - rate * velocity
    np.testing.assert_allclose(seen, expected, rtol=1e-12)
