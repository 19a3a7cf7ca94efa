"""How often intervals and verdicts are right, over synthetic seeds: the numbers behind "95 %".

    PYTHONPATH=. python tests/benchmarks/coverage.py [--sets 500]

Seeds of unit variance and zero mean, of four shapes, from benign to badly skewed; one seed's values at several widths are
independent, half shared or the same.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from comparisons.super_consistency import GROWN, Agreement, largest_growth, verdict

# name → draws of zero mean and unit variance; (skewness, excess kurtosis)
SHAPES = {
    "Gaussian": lambda rng, size: rng.standard_normal(size),  # (0, 0)
    "t5": lambda rng, size: rng.standard_t(5, size) * np.sqrt(3 / 5),  # (0, 6)
    "chi2": lambda rng, size: (rng.chisquare(3, size) - 3) / np.sqrt(6),  # 3 degrees of freedom: (1.6, 4)
    "lognormal": lambda rng, size: (np.exp(0.5 * rng.standard_normal(size)) - np.exp(1 / 8))
    / np.sqrt(np.exp(1 / 2) - np.exp(1 / 4)),  # σ = 1/2: (1.75, 5.9)
}
PAIRINGS = {"unpaired": 0.0, "half paired": 0.5, "paired": 1.0}  # share of a seed's variance that is the same at all widths
SEEDS = (3, 4, 8, 16, 32)


def seeds(rng: np.random.Generator, shape: str, shared: float, size: tuple[int, int, int]) -> Float[np.ndarray, "D W S"]:
    """Data sets of S seeds at W widths (or steps): zero mean, unit variance."""
    sets, widths, count = size
    common = SHAPES[shape](rng, (sets, 1, count)) if shared > 0 else 0.0
    own = SHAPES[shape](rng, (sets, widths, count)) if shared < 1 else np.zeros(size)
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * own


# The largest growth of a deviation: of five widths, along a curve; a seed's deviations at different steps share most of their
# variance.

CURVES = {
    "flat": [1, 1, 1, 1, 1, 1],
    "to 1.5": [1, 1.1, 1.2, 1.3, 1.4, 1.5],
    "to 2 and back": [1, 1.6, 2, 1.7, 1.2, 0.8],
    "stays at 2": [1, 2, 2, 2, 2, 2],
    "decays": [1, 0.9, 0.8, 0.6, 0.5, 0.4],
    "to 2.2": [1, 1.4, 1.8, 2, 2.2, 2.2],
    "to 4": [1, 1.5, 2, 2.6, 3.3, 4],
}  # rms deviation against step, of its start
WIDTHS = 64 * 2.0 ** np.arange(5)
SHARED = 0.8  # of the variance of a seed's deviation, between steps
AGREES = Agreement(sizes=[64, 128], values=[1.0, 1.0], ratio=1.0, at_most=1.0, exponent=0.0, interval=(0.0, 0.0))


def growing(rng, shape, paired, curve, sets, count):
    """Deviations (sets, W, S, T)."""
    steps = len(curve)

    def along(widths):
        drawn = seeds(rng, shape, SHARED, (sets * widths, steps, count))
        return drawn.reshape(sets, widths, steps, count).swapaxes(2, 3)

    drawn = np.sqrt(paired) * along(1) + np.sqrt(1 - paired) * along(len(WIDTHS))
    return drawn * np.array(curve) / np.sqrt(WIDTHS)[:, None, None]


def growth_rows(sets: int, counts=SEEDS) -> Iterator[tuple]:
    """(shape, pairing, S): shares of ``_judged`` over all curves."""
    for shape in SHAPES:
        for name in ("unpaired", "paired"):
            for count in counts:
                found = [_judged(errors, max(curve[1:])) for index, curve in enumerate(CURVES.values()) for errors in growing(
                    np.random.default_rng(index), shape, PAIRINGS[name], curve, -(-sets // len(CURVES)), count)]  # fmt: skip
                yield shape, name, count, *np.nanmean(found, axis=0)


def _judged(errors, true) -> tuple[float, float, float, float, float]:
    """Covered; "accumulates" of what is tolerated; "super consistent" of what is not; undecided; too few seeds."""
    _, (low, high) = largest_growth(errors)
    said, tolerated = verdict(AGREES, (low, high)), true <= GROWN
    return (low <= true <= high, said == "accumulates" if tolerated else np.nan,
            np.nan if tolerated else said == "super consistent", said == "undecided", said == "too few seeds")  # fmt: skip


def print_growth(sets):
    print(f"\nlargest growth of a deviation, at most × {GROWN:g} tolerated; {sets} data sets a row")
    head = ("covered", "false accumulates", "false super consistent", "undecided", "too few")
    print(f"{'seeds':<20}{'S':>3}" + "".join(f"{title:>{len(title) + 3}}" for title in head))
    for shape, name, count, *shares in growth_rows(sets):
        shares[0] = np.nan if shares[-1] == 1 else shares[0]  # too few seeds have no interval
        row = [f"{f'{share:.3f}':>{len(title) + 3}}" for share, title in zip(shares, head, strict=True)]
        print(f"{f'{shape}, {name}':<20}{count:>3}" + "".join(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=500)
    print_growth(parser.parse_args().sets)
