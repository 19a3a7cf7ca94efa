"""How the cost of everything grows: exponents of seconds against the width N, samples P, inputs D and steps T.

    PYTHONPATH=. python tests/benchmarks/growth.py [--repeats 3] [--only step ntk ...]

Each is the slope of a straight line through log seconds at the sizes printed, the best of --repeats calls after one that
compiles; the other sizes stay what they are.  Beside it is what the problem asks for; what exceeds both that and 1.1 is marked.
Of the Hessian's eigenvalues the seconds are those of one product: how many the gaps of its spectrum ask for stands beside them.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from finite.data.synthetic import gaussian
from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.two_layer import linear as linear2
from limits.two_layer import linear_law as fluctuations

LIMIT = 1.1
HESSIAN = "hessian_eigenvalues"


class Row(NamedTuple):
    """``prepare(value)`` makes the call that is timed; ``asked`` is the exponent that the problem itself has, and why.

    Where ``counted``, the call returns trajectories, and its time is divided by the products that this observable took.
    """

    what: str
    against: str
    values: tuple[int, ...]
    prepare: Callable[[int], Callable[[], object]]
    asked: float = 1.0
    why: str = "linear"
    counted: str | None = None


def a_problem(P=100, D=50, C=1, **options):
    return Problem(*gaussian(0, P, D, C), **{"learning_rate": 0.1, "num_steps": 0, "top_k": 4} | options)


def network(observables, N=512, **options):
    """One network trained, and measured at its first and last step."""
    problem = a_problem(**options)
    problem = replace(problem, measure_every=max(1, problem.num_steps))
    built, key = build(problem, N), jax.random.split(jax.random.key(0), 1)
    return lambda: train(problem, built, key, observables=observables)


def steps(**sizes):
    """Many, so that they outweigh the call."""
    return network(["loss"], **{"num_steps": 400, "N": 1024, "P": 200, "D": 100} | sizes)


def hessian(**sizes):
    return network([HESSIAN], **{"N": 2048, "P": 200, "D": 100} | sizes)


def limit(**sizes):
    problem = a_problem(**{"num_steps": 200, "measure_every": 200, "P": 400} | sizes)
    return lambda: linear2.evolve(problem)


def spectra(**sizes):
    problem = a_problem(**{"P": 1500, "C": 4} | sizes)
    return lambda: linear2.solve(problem)


def predict(**sizes):
    problem = a_problem(**{"num_steps": 4, "measure_every": 4, "P": 60, "top_k": 2} | sizes)
    return lambda: fluctuations.predict(problem)


def along(name, of, **fixed):
    return lambda value: of(**{name: value} | fixed)


def ntk(**sizes):
    return network(["ntk_eigenvalues"], **{"N": 512, "D": 50} | sizes)


SQUARE = "an N x N matrix in every hidden layer"
ROWS = "n x n matrices, n = D + C: their products"
ROWS_STEP = "n x n matrices times C columns"
DIRECTIONS = "n^2/2 directions of n x n matrices, then 256 random ones"
ROWS_OF_ALL = {
    "step": [
        Row("training step, linear2", "N", (512, 1024, 2048, 4096), along("N", steps)),
        Row("training step, mlp3", "N", (512, 1024, 2048), along("N", steps, model="mlp3", num_steps=50), 2.0, SQUARE),
        Row("training step, linear2", "P", (200, 400, 800, 1600), along("P", steps)),
        Row("training step, linear2", "D", (100, 200, 400, 800), along("D", steps)),
        Row("training step, linear2", "T", (200, 400, 800, 1600), along("num_steps", steps)),
    ],
    "hessian": [
        Row("Hessian, linear2", "N", (1024, 2048, 4096, 8192), along("N", hessian), counted=HESSIAN),
        Row("Hessian, linear2", "P", (200, 400, 800, 1600), along("P", hessian), counted=HESSIAN),
        Row("Hessian, linear2", "D", (100, 200, 400, 800), along("D", hessian), counted=HESSIAN),
    ],
    "ntk": [
        Row("NTK, linear2", "P", (800, 1600, 3200, 6400), along("P", ntk)),
        Row("NTK, linear2", "N", (512, 1024, 2048, 4096), along("N", ntk, P=1000)),
    ],
    "limit": [
        Row("two-layer limit, solved", "D", (100, 200, 400), along("D", limit), 2.0, ROWS_STEP),
        Row("two-layer limit, solved", "P", (400, 800, 1600, 3200), along("P", limit, D=100)),
        Row("two-layer limit, solved", "T", (200, 400, 800), along("num_steps", limit, D=200)),
    ],
    "spectra": [
        Row("its spectra", "D", (150, 300, 600), along("D", spectra), 3.0, ROWS),
        Row("its spectra", "P", (1500, 3000, 6000), along("P", spectra, D=150)),
    ],
    "predict": [
        Row("limits.predict", "D", (10, 15, 20), along("D", predict), 4.0, DIRECTIONS),
        Row("limits.predict", "P", (60, 120, 240), along("P", predict, D=10)),
        Row("limits.predict", "T", (4, 8, 16), along("num_steps", predict, D=10)),
    ],
}


def seconds(call, repeats):
    """The best of some calls, after one that compiles: other work on the machine only adds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def growth(row, repeats):
    """(exponent, one string per size)"""
    calls = [row.prepare(value) for value in row.values]
    found = np.array([seconds(call, repeats) for call in calls])
    products = np.array([call()[0].products[row.counted].sum() if row.counted else 1 for call in calls])
    slope = np.polyfit(np.log(row.values), np.log(found / products), 1)[0]
    of = [f" / {number:.0f}" if row.counted else "" for number in products]
    return slope, [f"{value}: {time:.2g}{number}" for value, time, number in zip(row.values, found, of, strict=True)]


def table(names, repeats):
    print(f"{'':<26}{'exponent':>9}{'asked':>7}   sizes: seconds / products")
    for row in (row for name in names for row in ROWS_OF_ALL[name]):
        slope, sizes = growth(row, repeats)
        above = "  <- above" if slope > max(LIMIT, row.asked) else ""
        of = f"{f'{row.what}, {row.against}':<26}{slope:>9.2f}{row.asked:>7.0f}"
        print(f"{of}   {', '.join(sizes)}   ({row.why}){above}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS_OF_ALL, default=list(ROWS_OF_ALL))
    given = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    table(given.only, given.repeats)


if __name__ == "__main__":
    main()
