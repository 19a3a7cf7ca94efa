"""The sampled limit of a deep nonlinear network: seconds and Monte-Carlo error, and a network of finite width beside it.

    python tests/benchmarks/dmft.py [--steps 100] [--inputs 5] [--depth 2] [--samples 8192] [--repeats 8] [--width 1024]

The loss curve of tanh perceptrons in μP, P samples in P dimensions, one output, η0 = 0.5, γ0 = 1.  Errors are relative to the
loss at each step, which falls by orders of magnitude: one standard error of the limit; and the distance from it of one
network, over as many seeds as there are repeats.  The first limit compiles, the second does not.
"""

import argparse
import time

import jax
import numpy as np

from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.deep import dmft


def a_problem(steps, inputs, depth):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(inputs, inputs)), rng.normal(size=inputs)
    return Problem(X, Y, model="mlp", depth=depth, activation="tanh", learning_rate=0.5, num_steps=steps)


def timed(function):
    start = time.perf_counter()
    return function(), time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, value in {"steps": 100, "inputs": 5, "depth": 2, "samples": 8192, "repeats": 8, "width": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    problem = a_problem(given.steps, given.inputs, given.depth)
    sampling = {"samples": given.samples, "repeats": given.repeats}
    limit, first = timed(lambda: dmft.solve(problem, **sampling))
    _, second = timed(lambda: dmft.solve(problem, **sampling, seed=1))
    keys = jax.random.split(jax.random.key(0), given.repeats)
    network = build(problem, given.width)
    networks, seconds = timed(lambda: train(problem, network, keys, observables=("loss",)))
    loss, error = limit["loss"], limit.error("loss")
    distance = np.sqrt(np.mean([(trajectory["loss"] - loss) ** 2 for trajectory in networks], axis=0))
    print(f"L = {given.depth}, tanh, P = {given.inputs}, T = {given.steps}; S = {given.samples}, {given.repeats} repeats")
    print(f"limit: {first:.1f} s with compilation, {second:.1f} s without")
    print(f"{given.repeats} networks of width {given.width}: {seconds:.1f} s with compilation")
    print("step       loss   limit's error   one network's distance")
    for step in sorted({0, 1, *np.linspace(0, given.steps, 11).astype(int)}):
        of_limit, of_network = 100 * error[step] / loss[step], 100 * distance[step] / loss[step]
        print(f"{step:4d} {loss[step]:10.3e} {of_limit:13.3f} % {of_network:20.2f} %")
    print(f"largest error of the limit: {100 * np.max(error / loss):.2f} % of the loss")
