"""Predicted fluctuations and biases against trained networks, and the width from which the law holds.

    PYTHONPATH=. python tests/benchmarks/laws.py [--model linear3] [--richness 1 2] [--widths 128 512] [--networks 2000]

After 8 steps at η0 = 0.3 of 8 samples in 4 dimensions: √N · root mean square and N · mean over networks of (network − limit),
with the standard error of both sides, by how many of them they differ, and the next order: what is left, relative, times N.
"""

import argparse
import time

import jax
import numpy as np

from finite import Numerics
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, predict, solve

STEPS = 8
FOLLOWED = "loss", "hessian_eigenvalues", "ntk_eigenvalues"
AT_ONCE = 250  # networks of one call


def first(values):
    """Of a list of eigenvalues the largest."""
    return np.ravel(values[-1])[0]


def deviations(problem, width, count):
    """{observable: (networks,)} at the last step."""
    limit, found = solve(problem), {name: [] for name in FOLLOWED}
    keys = jax.random.split(jax.random.key(width), count)
    for some in (keys[i : i + AT_ONCE] for i in range(0, count, AT_ONCE)):
        numerics = Numerics(precision="float64", rtol=1e-5, max_matvecs=30)
        for network in train(problem, build(problem, width), some, observables=FOLLOWED, numerics=numerics):
            for name, errors in found.items():
                errors.append(first(network[name]) - first(limit[name]))
    return {name: np.array(errors) for name, errors in found.items()}


def compared(law, errors, width):
    """(what, measured, predicted, standard error of the difference) of each side of the law."""
    count, (std, bias) = len(errors), (first(law.std), first(law.bias))
    squares = width * errors**2
    rms, own = np.sqrt(squares.mean()), squares.std() / np.sqrt(count) / (2 * np.sqrt(squares.mean()))
    yield "√N · rms", rms, std, np.hypot(own, first(law.std_error))
    yield "N · mean", width * errors.mean(), bias, np.hypot(width * errors.std() / np.sqrt(count), first(law.bias_error))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="linear3")
    parser.add_argument("--richness", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--networks", type=int, default=2000)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(8, 4)), rng.normal(size=(8, 1))
    print(f"{given.model}, {given.networks} networks of each width: measured, predicted ± standard error of the difference")
    for richness in given.richness:
        problem = Problem(inputs, targets, model=given.model, richness=richness, learning_rate=0.3, num_steps=STEPS,
                          measure_every=STEPS, top_k=1)  # fmt: skip
        laws = predict(problem)
        for width in given.widths:
            start = time.perf_counter()
            for name, errors in deviations(problem, width, given.networks).items():
                for what, measured, predicted, error in compared(laws[name], errors, width):
                    off, next_order = (measured - predicted) / error, width * (measured / predicted - 1)
                    row = f"γ0 = {richness:g}  N = {width:<6}{name:<20} {what}  {measured:+9.4f}  {predicted:+9.4f}"
                    print(f"{row} ± {error:.4f}  {off:+5.1f} σ  next order {next_order:+.0f}/N", flush=True)
            print(f"    {time.perf_counter() - start:.0f} s", flush=True)
