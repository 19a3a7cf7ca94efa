"""How often verdicts are right, on learning-rate transfer and on power laws, over synthetic data whose truth is known.

    PYTHONPATH=. python tests/benchmarks/verdicts.py [--sets 200] [--only laws]

Sweeps of four widths: mean log loss is a curve of log η0 with its minimum at 1.2 (N/90)^exponent; each network has 3 % noise of
its own, and each seed a factor of 10 % that is the same at all learning rates.  Beside the share of right verdicts stands the
best that an unbiased estimator can do which knows the curve, one that does not know how much each size's bends (z²) and leans
over (z³), and one that does not know either how it leans (z⁵).  (Verdicts on growth: coverage.py.)
"""

import argparse
from collections import Counter
from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy.stats import norm

from comparisons.statistics.minimum import CONFIDENCE, EQUIVALENCE, TOLERATED, analyse
from comparisons.statistics.power_law import fit
from comparisons.transfer.study import Options


def wall(z):
    return 0.05 * np.exp(np.minimum(3 * (z - 1), 5))


CURVES = {
    "parabola": lambda z, k: z**2,
    "flat parabola": lambda z, k: 0.1 * z**2,
    "steep on the right": lambda z, k: 0.25 * (np.exp(np.minimum(1.5 * z, 4)) - 1 - 1.5 * z),
    "flat, then a wall": lambda z, k: 0.1 * (np.exp(np.minimum(2 * z, 5)) - 1 - 2 * z),
    "a valley": lambda z, k: np.log1p(z**2),
    "over decades": lambda z, k: np.where(z > 0, 16, 8) * (np.hypot(z, 0.2) - 0.2),
    "nearly a kink": lambda z, k: 0.5 * np.hypot(z, np.sqrt(0.1)),
    "bends more": lambda z, k: 0.25 * np.exp(0.3 * k) * z**2,
    "leans over": lambda z, k: 0.25 * z**2 * (1 + 0.3 * k * np.tanh(z)),
    "leans, not far out": lambda z, k: 0.25 * z**2 + 0.1 * k * np.tanh(z) ** 3,
    "a wall comes near": lambda z, k: 0.2 * z**2 + wall(z + 0.2 * k) - wall(0.2 * k) - 3 * wall(0.2 * k) * z,
}  # log loss against log η0, from its minimum; the last four change their shape with k = log(N/90)
GRIDS = {"of the command": np.array(Options().learning_rates), "factors of two": 2.0 ** np.arange(-3, 5)}
WIDTHS = np.array([32, 64, 128, 256])
EXPONENTS = {"stays": 0.0, "moves by more than tolerated": 1.1 * TOLERATED, "moves": 3 * TOLERATED}
UNKNOWN = (), (2, 3), (2, 3, 5)  # how much it bends, leans over, and how far out
NOISE, OF_A_SEED, INITIAL = 0.03, 0.1, 1e3


def mean_log_loss(curve, rates, exponent):
    """(W, L)"""
    k = np.log(WIDTHS / 90)[:, None]
    return CURVES[curve](np.log(rates / 1.2) - exponent * k, k)


def sweeps(curve, rates, exponent, sets, seeds, noise=NOISE) -> xr.Dataset:
    """As many sweeps, a "parametrization" each."""
    rng, mean = np.random.default_rng(0), mean_log_loss(curve, rates, exponent)[:, None]
    own = noise * rng.standard_normal((sets, len(WIDTHS), seeds, len(rates)))
    common = OF_A_SEED * rng.standard_normal((sets, len(WIDTHS), seeds, 1))
    return xr.Dataset(
        {"final_loss": (("param", "width", "seed", "learning_rate"), np.exp(mean + own + common)),
         "initial_loss": (("param", "width", "seed"), np.full((sets, len(WIDTHS), seeds), INITIAL))},
        {"param": [str(one) for one in range(sets)], "width": WIDTHS, "learning_rate": rates}, {"precision": "float32"},
    )  # fmt: skip


def at_best(curve, rates, exponent, seeds, unknown: tuple[int, ...] = ()) -> float:
    """Share of right verdicts of an unbiased, Gaussian estimate that knows the noise and the curve, but not where it is.

    Its variance is the bound of Cramér and Rao, of the losses that are below the initial one; a seed's factor tells nothing,
    nor do changes by z to the ``unknown`` powers.  The levels of tests are those of the verdicts.
    """
    values, step, information = mean_log_loss(curve, rates, exponent), 1e-4, []
    slopes, k = (mean_log_loss(curve, rates * np.exp(step), exponent) - values) / step, np.log(WIDTHS)
    for slope, below, of_width in zip(slopes, values < np.log(INITIAL), np.log(WIDTHS / 90), strict=True):
        z = np.log(rates[below] / 1.2) - exponent * of_width
        nuisance = np.stack([z**power for power in (0, *unknown)], axis=1)
        information.append(np.sum((slope[below] - nuisance @ np.linalg.lstsq(nuisance, slope[below])[0]) ** 2))
    k = k - np.average(k, weights=information)
    error = NOISE / np.sqrt(seeds * np.sum(information * k**2))
    if exponent > TOLERATED:
        return norm.cdf((exponent - TOLERATED) / error - norm.ppf((1 + CONFIDENCE) / 2))
    sides = [norm.cdf((TOLERATED + side) / error - norm.ppf((1 + EQUIVALENCE) / 2)) for side in (-exponent, exponent)]
    return max(0.0, sum(sides) - 1)


def transfer(sets: int, seeds: int = 8, grids=tuple(GRIDS), curves=tuple(CURVES)) -> Iterator[tuple]:
    """(grid, curve, way of the optimum): shares that say "transfers", "does not transfer", and that may be right at most, by
    what is ``UNKNOWN`` of each size; shares of true values in the intervals of the exponent, and of the optima.
    """
    for grid in grids:
        for curve in curves:
            for name, exponent in EXPONENTS.items():
                optima, shifts = analyse(sweeps(curve, GRIDS[grid], exponent, sets, seeds))
                said = [np.mean([s.verdict == verdict for s in shifts]) for verdict in ("transfers", "does not transfer")]
                known = [s.interval for s in shifts if np.isfinite(s.exponent)] or [(np.nan, np.nan)]
                covered = np.mean([low <= exponent <= high for low, high in known])
                found = np.mean([o.interval[0] <= 1.2 * (o.width / 90) ** exponent <= o.interval[1] for o in optima])
                best = (at_best(curve, GRIDS[grid], exponent, seeds, unknown) for unknown in UNKNOWN)
                yield grid, curve, name, *said, *best, covered, found


def print_transfer(sets, seeds):
    print(f"transfer: {sets} sweeps a row, {len(WIDTHS)} widths, {seeds} seeds, {NOISE:.0%} noise; tolerated N^±{TOLERATED:g}")
    print(f"{'grid':<16}{'curve':<20}{'optimum':<30}{'transfers':>10}{'does not':>10}{'right at best':>15}{'z², z³ open':>13}"
          f"{'and z⁵':>8}{'exponent in':>13}{'optimum in':>12}")  # fmt: skip
    for grid, curve, name, *shares in transfer(sets, seeds):
        row = "".join(f"{share:>{width}.3f}" for share, width in zip(shares, (10, 10, 15, 13, 8, 13, 12), strict=True))
        print(f"{grid:<16}{curve:<20}{name:<30}{row}", flush=True)


# Power laws and what is none: a fluctuation is the law times a Gaussian number, a bias the law in the mean, of seeds that
# scatter by ``SCATTER`` of it.

FITTED_WIDTHS = 128.0 * 2.0 ** np.arange(5)
LAWS = {
    "N^-1": FITTED_WIDTHS**-1,
    "3/N (1 + 30/N)": 3 / FITTED_WIDTHS * (1 + 30 / FITTED_WIDTHS),
    "exp(-N/300)": np.exp(-FITTED_WIDTHS / 300),
    "N^-1/2 + 0.05": FITTED_WIDTHS**-0.5 + 0.05,
    "1, 2, 3, 2, 1": np.array([1.0, 2, 3, 2, 1]),
}
SCATTER = (0.01, 0.1, 0.6)


def law_rows(sets, counts=(5, 8, 32)):
    """(law, errors, pairing, S), (no power law, fitted, −1 covered where fitted, median width of the interval)."""
    for name, law in LAWS.items():
        for pairing in ("unpaired", "paired"):
            for count in counts:
                z = _seeds(sets, count, paired=pairing == "paired")
                yield (name, "fluctuation", pairing, count), _said("fluctuation", law[:, None] * z)
                for scatter in SCATTER:
                    errors = law[:, None] * (1 + scatter * z)
                    yield (name, f"bias, seeds ± {scatter:g}", pairing, count), _said("bias", errors)
    for count in counts:
        errors = _seeds(sets, count, paired=False) * FITTED_WIDTHS[:, None] ** -0.5 + 0.05
        yield ("N^-1/2 z + 0.05", "fluctuation", "unpaired", count), _said("fluctuation", errors)


def _seeds(sets, count, paired):
    drawn = np.random.default_rng(count).standard_normal((sets, 1 if paired else len(FITTED_WIDTHS), count))
    return np.broadcast_to(drawn, (sets, len(FITTED_WIDTHS), count))


def _said(kind, errors):
    laws = [fit(FITTED_WIDTHS, one, kind=kind, resamples=400) for one in errors]
    said, intervals = Counter(law.status for law in laws), [law.interval for law in laws if law.status == "fitted"]
    covered = np.mean([low - 1e-9 <= -1 <= high + 1e-9 for low, high in intervals]) if intervals else np.nan
    width = np.median([high - low for low, high in intervals]) if intervals else np.nan
    return said["no power law"] / len(laws), said["fitted"] / len(laws), covered, width


def print_laws(sets):
    print(f"power laws and others, {sets} data sets a row")
    print(f"{'law':<18}{'errors':<20}{'pairing':<10}{'S':>3}" + "   no power law   fitted   −1 covered   interval")
    for (name, kind, pairing, count), numbers in law_rows(sets):
        row = "".join(f"{'–' if np.isnan(n) else f'{n:.3f}':>{w}}" for n, w in zip(numbers, (15, 9, 13, 11), strict=True))
        print(f"{name:<18}{kind:<20}{pairing:<10}{count:>3}{row}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", choices=("transfer", "laws"))
    given = parser.parse_args()
    if given.only != "laws":
        print_transfer(given.sets, given.seeds)
    if given.only != "transfer":
        print_laws(given.sets)
