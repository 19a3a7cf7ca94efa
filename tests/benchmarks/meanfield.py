"""The mean-field limit of a tanh network: seconds and standard errors against the number of particles, and random clouds.

    python tests/benchmarks/meanfield.py [--inputs 10] [--samples 40] [--steps 100]

A random cloud of M particles is a network of width M: its error is that of the network, M^{-1/2}.
"""

import argparse
import time

import numpy as np

from limits import Problem
from limits.two_layer import meanfield, particles


def a_problem(inputs, samples, steps):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, inputs))
    y = np.sin(2 * x @ rng.normal(size=inputs) / np.sqrt(inputs)) + 0.3 * x[:, 0]
    return Problem(x, y, model="mlp2", learning_rate=0.5, num_steps=steps, measure_every=max(1, steps // 10))


def random_cloud(problem, count, rng):
    """Independent particles: a network of width ``count``."""
    rank = min(problem.inputs.shape)
    return particles.Neurons(rng.normal(size=(count, rank)), rng.normal(size=(count, problem.num_outputs)))


def row(name, problem, count):
    meanfield.solve(problem, particles=count)  # compiles
    start = time.perf_counter()
    found = meanfield.solve(problem, particles=count)
    seconds = time.perf_counter() - start
    relative = [found.error(o)[-1] / abs(found[o][-1]) for o in ("loss", "sharpness", "ntk_eigenvalues")]
    errors = "  ".join(f"{np.max(error):.1e}" for error in relative)
    print(f"  {name:<13} {count:>6} particles x 4  {seconds:7.2f} s   {errors}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option, value in {"inputs": 10, "samples": 40, "steps": 100}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    options = parser.parse_args()
    problem = a_problem(**vars(options))
    print(f"{options}: relative standard errors at the last step of loss, sharpness, NTK eigenvalues")
    for count in (256, 1024, 4096):
        row("quasi-random", problem, count)
    meanfield.cloud = random_cloud
    for count in (256, 1024, 4096):
        row("random", problem, count)
    start = time.perf_counter()
    meanfield.predict(problem)
    print(f"  the 1/√N and 1/N laws: {time.perf_counter() - start:.1f} s, compilation included")
