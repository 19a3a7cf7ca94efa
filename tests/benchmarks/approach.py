"""How networks of every model approach their limit: exponents of the distance, widths 250 … 4000, with 95 % intervals.

    python tests/benchmarks/approach.py [--widths 250 500 1000 2000 4000] [--seeds 24] [--only linear3 …]

Root mean square over seeds of (network − limit) after 12 steps, of the loss and of the largest NTK eigenvalue;
η0 = 0.3, γ0 = 1, 12 samples in 6 dimensions.  In NTP each network is compared with the limit that has its f(0).
"""

import argparse
import time

import numpy as np

from comparisons import pairs
from comparisons.power_law import fit
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, solve

STEPS = 12
CLASSES = np.eye(3)[np.arange(12) % 3]
MODELS = {
    "linear2": {},
    "linear3": {"model": "linear3"},
    "linear4": {"model": "linear4"},
    "mlp2 tanh": {"model": "mlp2"},
    "mlp2 relu": {"model": "mlp2", "activation": "relu"},
    "mlp2 gelu, cross-entropy": {"model": "mlp2", "activation": "gelu", "loss": "cross_entropy", "targets": CLASSES},
    "mlp3 tanh": {"model": "mlp3"},
    "mlp3 relu": {"model": "mlp3", "activation": "relu"},
    "mlp4 erf": {"model": "mlp4", "activation": "erf"},
    "resmlp tanh, Depth-μP, L = 4": {"model": "resmlp", "depth": 4, "parametrization": "depth_mup"},
    "resmlp linear, α = 1, L = 4": {"model": "resmlp", "activation": "linear", "depth": 4, "parametrization": "alpha1"},
    "linear3, NTP": {"model": "linear3", "parametrization": "ntp"},
    "mlp3 tanh, NTP": {"model": "mlp3", "parametrization": "ntp"},
    "resmlp relu, NTP": {"model": "resmlp", "activation": "relu", "parametrization": "base=ntp, block.multiplier.L=-1/2"},
}


def a_problem(targets=None, **options):
    rng = np.random.default_rng(0)
    inputs, drawn = rng.normal(size=(12, 6)), rng.normal(size=(12, 1))
    usual = {"learning_rate": 0.3, "num_steps": STEPS, "measure_every": STEPS, "top_k": 1}
    return Problem(inputs, drawn if targets is None else targets, **usual | options)


def distances(problem, widths, num_seeds):
    """{observable: (widths, seeds)} at the last step, and the limit's own standard error there."""
    typical, found = solve(problem), {"loss": [], "ntk_eigenvalues": []}
    for width in widths:
        keys = pairs.keys(0, width, num_seeds)
        trained = train(problem, build(problem, width), keys, observables=tuple(found))
        limits = pairs.matching_limits(problem, width, keys, typical)
        for name, errors in found.items():
            errors.append([np.ravel(t[name][-1] - m[name][-1])[0] for t, m in zip(trained, limits, strict=True)])
    return {name: np.array(errors) for name, errors in found.items()}, {n: np.ravel(typical.error(n)[-1])[0] for n in found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", type=int, nargs="+", default=[250, 500, 1000, 2000, 4000])
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="MODEL")
    given = parser.parse_args()
    print(f"widths {given.widths}, {given.seeds} seeds: exponent [95 % interval], rms at the largest width (limit's error)")
    for name in given.only:
        start = time.perf_counter()
        errors, of_limit = distances(a_problem(**MODELS[name]), given.widths, given.seeds)
        for observable, values in errors.items():
            law, smallest = fit(given.widths, values), np.sqrt(np.mean(values[-1] ** 2))
            verdict = "contains −1/2" if law.interval[0] <= -0.5 <= law.interval[1] else "DOES NOT contain −1/2"
            interval = f"{law.exponent:+.3f} [{law.interval[0]:+.3f}, {law.interval[1]:+.3f}]"
            print(f"{name:<30} {observable:<16} {interval}  {smallest:.1e} ({of_limit[observable]:.0e})  {verdict}", flush=True)
        print(f"{'':<30} {time.perf_counter() - start:.0f} s", flush=True)
