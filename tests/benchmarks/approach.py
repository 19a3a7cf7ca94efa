"""How networks of every model approach their limit: exponents of the distance, widths 128 … 4096, with 95 % intervals.

    PYTHONPATH=. python tests/benchmarks/approach.py [--widths 128 256 512 1024 2048 4096] [--seeds 16] [--only linear3 …]
        [--samples 4096]

Root mean square over seeds of (network − limit) after 8 steps, of the loss, the sharpness and the largest NTK eigenvalue;
η0 = 0.3, γ0 = 1, 8 samples in 4 dimensions; of ConvNets three photographs of 8 × 8 pixels and one small output, η0 = 1.5,
widths 16 … 512, and a limit of so many samples.  Widths count where the distance is three times the limit's own error.  Of the
largest one also by how many standard errors, the limit's own among them, its mean is off the limit.  In NTP each network is
compared with the limit that has its f(0).
"""

import argparse
import time

import numpy as np

from comparisons import pairs
from comparisons.statistics.power_law import fit
from finite import Numerics
from finite.data.images import scaled
from finite.data.patches import patches10
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, solve
from limits.deep import conv

STEPS = 8
WIDTHS, OF_CONVNETS = (128, 256, 512, 1024, 2048, 4096), (16, 32, 64, 128, 256, 512)
SMALL = 0.3  # targets, so that the bulk of R, which has no edge where φ'' is not zero, does not reach the sharpness
CLASSES = np.eye(3)[np.arange(8) % 3]
FOLLOWED = "loss", "hessian_eigenvalues", "ntk_eigenvalues"
RESOLVED = Numerics(rtol=1e-5, max_matvecs=30)  # a thousandth of what networks of width 4096 differ by
PHOTOGRAPHS, ONE_OUTPUT = 3, np.array([[1.0], [-1.0], [0.5]])
CONVNETS = {"conv": {}, "convnet, L = 3": {"depth": 3},
            "resconvnet, Depth-μP, L = 2": {"depth": 2, "parametrization": "depth_mup"}}  # fmt: skip
MODELS = {
    "linear2": {},
    "linear3": {"model": "linear3"},
    "linear4": {"model": "linear4"},
    "mlp2 tanh": {"model": "mlp2", "scale": SMALL},
    "mlp2 relu": {"model": "mlp2", "activation": "relu"},
    "mlp2 gelu, cross-entropy": {"model": "mlp2", "activation": "gelu", "loss": "cross_entropy", "targets": CLASSES},
    "mlp3 tanh": {"model": "mlp3"},
    "mlp3 relu": {"model": "mlp3", "activation": "relu"},
    "mlp4 erf": {"model": "mlp4", "activation": "erf"},
    "resmlp linear, Depth-μP, L = 2": {"model": "resmlp", "activation": "linear", "depth": 2, "parametrization": "depth_mup"},
    "resmlp tanh, Depth-μP, L = 2": {"model": "resmlp", "depth": 2, "parametrization": "depth_mup", "scale": SMALL},
    "resmlp linear, α = 1, L = 2": {"model": "resmlp", "activation": "linear", "depth": 2, "parametrization": "alpha1"},
    "linear3, NTP": {"model": "linear3", "parametrization": "ntp"},
    "mlp3 tanh, NTP": {"model": "mlp3", "parametrization": "ntp"},
    "resmlp relu, NTP": {"model": "resmlp", "activation": "relu", "parametrization": "base=ntp, block.multiplier.L=-1/2"},
} | {
    f"{name}, {pooling}": {"model": name.split(",")[0], "pooling": pooling} | options
    for name, options in CONVNETS.items() for pooling in ("average", "max")
}  # fmt: skip


def a_problem(targets=None, scale=1.0, **options):
    usual = {"learning_rate": 0.3, "num_steps": STEPS, "measure_every": STEPS, "top_k": 1}
    if "pooling" in options:  # of several outputs several eigenvalues are nearly one, and none of them is known well
        return Problem(small_photographs(), SMALL * ONE_OUTPUT, **usual | {"learning_rate": 1.5} | options)
    rng = np.random.default_rng(0)
    inputs, drawn = rng.normal(size=(8, 4)), rng.normal(size=(8, 1))
    return Problem(inputs, scale * (drawn if targets is None else targets), **usual | options)


def small_photographs():
    """(3, 192): 8 × 8 pixels of three channels, each the mean of 4 × 4."""
    return scaled(patches10(PHOTOGRAPHS).train("cross_entropy")[0], (32, 32, 3), 8)[0]


def distances(problem, typical, widths, num_seeds):
    """{observable: (widths, seeds)} from the limit at the last step, and its own standard error there."""
    found = {name: [] for name in FOLLOWED if name in typical}
    for width in widths:
        keys = pairs.keys(0, width, num_seeds)
        trained = train(problem, build(problem, width), keys, observables=tuple(found), numerics=RESOLVED)
        limits = pairs.matching_limits(problem, width, keys, typical)
        for name, errors in found.items():
            errors.append([np.ravel(t[name][-1] - m[name][-1])[0] for t, m in zip(trained, limits, strict=True)])
    return {name: np.array(errors) for name, errors in found.items()}, {n: np.ravel(typical.error(n)[-1])[0] for n in found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--samples", type=int, help="of the limits of ConvNets")
    given = parser.parse_args()
    print(f"{given.seeds} seeds: exponent [95 % interval], rms at the largest width (limit's error), "
          "its mean in standard errors")  # fmt: skip
    for name in given.only:
        start, problem = time.perf_counter(), a_problem(**MODELS[name])
        of_images = "pooling" in MODELS[name]
        limit = conv.solve(problem, samples=given.samples) if of_images else solve(problem)
        widths = given.widths or (OF_CONVNETS if of_images else WIDTHS)
        errors, of_limit = distances(problem, limit, widths, given.seeds)
        for observable, values in errors.items():
            law, smallest = fit(widths, values, noise_floor=of_limit[observable]), np.sqrt(np.mean(values[-1] ** 2))
            off = np.mean(values[-1]) / np.hypot(np.std(values[-1], ddof=1) / np.sqrt(given.seeds), of_limit[observable])
            verdict = "contains −1/2" if law.interval[0] <= -0.5 <= law.interval[1] else "DOES NOT contain −1/2"
            verdict = verdict if law.status == "fitted" else law.status
            interval = f"{law.exponent:+.3f} [{law.interval[0]:+.3f}, {law.interval[1]:+.3f}]"
            what = f"{name:<37} {observable:<20} {interval}  {smallest:.1e} ({of_limit[observable]:.0e})"
            print(f"{what}  {off:+.1f} σ  {verdict}", flush=True)
        print(f"{'':<37} {time.perf_counter() - start:.0f} s, widths {list(widths)}", flush=True)
