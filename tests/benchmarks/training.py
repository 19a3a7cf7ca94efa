"""Training and measuring on this device: seconds per step and per measurement, and the part of its peak that they reach.

    PYTHONPATH=. python tests/benchmarks/training.py [--model conv] [--width 64] [--networks 8] [--samples 256]

One run, medians of --repeats.  The peak is that of large matrix products of the same precision in this run; operations are
those that XLA counts in one gradient.  A measurement is the largest Hessian eigenvalue to 1e-2 from a warm start, here once
every 16 steps; its products are beside it.  Networks run once as one batch, of seeds and learning rates, and once one after
the other.  Of SimpleConvNet also the step that one writes without this package, timed in turns with one after the other, and
the part of its time that is needed here.
"""

import argparse
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from device_parts import forward

from finite import Numerics
from finite.curvature import operators as curvature
from finite.data.patches import patches10
from finite.networks import by_role
from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.losses import LOSSES

EVERY, SIZE, PRODUCTS = 16, {"cpu": 2048}, 8  # of the matrices whose product is the peak, elsewhere 8192


def seconds(repeats, *functions):
    """Of one call of each, in turns, after one that compiles."""
    times = np.empty((1 + repeats, len(functions)))
    for turn in times:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            turn[i] = time.perf_counter() - start
    return np.median(times[1:], axis=0)


def peak(repeats):
    """Operations per second of a product of float32 matrices, at JAX's default precision of this device."""
    size = SIZE.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32) / size**0.5
    product = jax.jit(lambda a: jax.lax.fori_loop(0, PRODUCTS, lambda _, b: a @ b, a))
    return PRODUCTS * 2 * size**3 / seconds(repeats, lambda: jax.block_until_ready(product(a)))[0]


def operations(problem, network):
    """Of the gradient of one step of one network, as XLA counts them."""
    batch = problem.num_samples if problem.batches is None else problem.batches.shape[1]
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rows = [jax.ShapeDtypeStruct((batch, array.shape[1]), jnp.float32) for array in (problem.inputs, problem.targets)]

    def gradient(params, inputs, targets):
        acting = by_role(network.numbers("multiplier"), params)
        apply = network.architecture.apply
        return jax.grad(lambda p: curvature.loss(apply, p, inputs, targets, LOSSES[problem.loss]))(acting)

    return jax.jit(gradient).lower(shapes, *rows).compile().cost_analysis()["flops"]


def by_hand(problem, network):
    """One SimpleConvNet: a plain loop around a jitted step, XLA's own convolution, SGD."""
    start = by_role(network.numbers("multiplier"), network.init(jax.random.key(0)))
    data = [jnp.asarray(array, jnp.float32) for array in (problem.inputs, problem.targets)]

    @jax.jit
    def step(params, inputs, targets):
        loss = lambda p: LOSSES[problem.loss].mean(forward("XLA", problem.image, p, inputs), targets)  # noqa: E731
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(loss)(params))

    def loop():
        params = start
        for _ in range(problem.num_steps):
            params = step(params, *data)
        jax.block_until_ready(params)

    return loop


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="conv", choices=["conv", "convnet", "resconvnet", "vit", "mlp"])
    parser.add_argument("--param", default="mup")
    for name, value in {"width": 64, "depth": 2, "networks": 8, "samples": 256, "steps": 32, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    inputs, targets = patches10(given.samples).train("cross_entropy")
    problem = Problem(
        inputs, targets, given.param, model=given.model, depth=given.depth, activation="relu", loss="cross_entropy",
        num_steps=given.steps, measure_every=given.steps, top_k=1, learning_rate=0.1,
    )  # fmt: skip
    network = build(problem, given.width)
    keys = jax.random.split(jax.random.key(0), given.networks)
    rates = np.geomspace(0.05, 0.2, given.networks)
    highest, count = peak(given.repeats), operations(problem, network)
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(network.init, keys[0])))
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), float32, matrix products {highest / 1e12:.3g} TFLOP/s, jax "
          f"{jax.__version__}\n{given.model} N = {given.width}, {int(size):,} parameters, full batch of {given.samples}, "
          f"{count / 1e9:.3g} GFLOP a step")
    print(f"{'networks':<30}{'s/step':>10}{'of peak':>9}{'s/measurement':>15}{'products':>10}")
    for batched in (False, True):
        options = {"learning_rates": rates, "observables": ["loss"], "numerics": Numerics(vectorized=batched, rtol=1e-2)}
        beside = [by_hand(problem, network)] if given.model == "conv" and not batched else []
        plain, none, *hand = seconds(
            given.repeats,
            lambda: train(problem, network, keys, **options),  # noqa: B023
            lambda: train(replace(problem, num_steps=0), network, keys, **options),  # noqa: B023
            *beside,
        )
        step = (plain - none) / given.steps / given.networks
        options |= {"observables": ["loss", "hessian_eigenvalues"]}
        often, found = replace(problem, measure_every=EVERY), []
        (whole,) = seconds(given.repeats, lambda: found.append(train(often, network, keys, **options)))  # noqa: B023
        measured = len(often.steps) * given.networks
        each = (whole - plain) / measured
        products = sum(one.products["hessian_eigenvalues"].sum() for one in found[-1]) / measured
        name = f"{given.networks} {'in one batch' if batched else 'one after the other'}"
        print(f"{name:<30}{step:>10.2e}{count / step / highest:>9.1%}{each:>15.2e}{products:>10.1f}")
        for loop in hand:
            each = loop / given.steps
            parts = f"{count / each / highest:>9.1%}    of which {step / each:.2f} is needed here"
            print(f"{'one in a plain jitted loop':<30}{each:>10.2e}{parts}")


if __name__ == "__main__":
    main()
