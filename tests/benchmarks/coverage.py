"""How often intervals and verdicts are right, over synthetic seeds: the numbers behind "95 %".

    PYTHONPATH=. python tests/benchmarks/coverage.py [--sets 500] [--only fits]

Seeds of unit variance and zero mean, of four shapes, from benign to badly skewed; one seed's values at several widths are
independent, half shared or the same.  And networks: those of the main job, exact ones in place of trained ones.
"""

import argparse
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import wishart

from comparisons.convergence.rates import allowance
from comparisons.convergence.study import Options, prepare
from comparisons.statistics.power_law import NEXT_ORDER_OF_SQUARES, fit
from comparisons.statistics.super_consistency import GROWN, Agreement, largest_growth, verdict
from limits import Problem, predict, solve
from limits.coordinates import coordinates
from limits.descent import descent
from limits.law import Law
from limits.machine import in_float64
from limits.two_layer import linear, linear_curvature

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
                found = [_judged(errors, curve) for index, curve in enumerate(CURVES.values()) for errors in growing(
                    np.random.default_rng(index), shape, PAIRINGS[name], curve, -(-sets // len(CURVES)), count)]  # fmt: skip
                yield shape, name, count, *np.nanmean(found, axis=0)


def _judged(errors, curve) -> tuple[float, float, float, float, float, float]:
    """Covered, and by the interval of the step at which it is largest; "accumulates" of what is tolerated; "super consistent"
    of what is not; undecided; too few seeds."""
    at, true = 1 + int(np.argmax(curve[1:])), max(curve[1:])
    (low, high), (low_there, high_there) = (largest_growth(some)[1] for some in (errors, errors[..., [0, at]]))
    said, tolerated = verdict(AGREES, (low, high)), true <= GROWN
    return (low <= true <= high, low_there <= true <= high_there, said == "accumulates" if tolerated else np.nan,
            np.nan if tolerated else said == "super consistent", said == "undecided", said == "too few seeds")  # fmt: skip


def print_growth(sets):
    print(f"\nlargest growth of a deviation, at most × {GROWN:g} tolerated; {sets} data sets a row")
    head = ("covered", "its step known", "false accumulates", "false super consistent", "undecided", "too few")
    print(f"{'seeds':<20}{'S':>3}" + "".join(f"{title:>{len(title) + 3}}" for title in head))
    for shape, name, count, *shares in growth_rows(sets):
        shares[:2] = [np.nan, np.nan] if shares[-1] == 1 else shares[:2]  # too few seeds have no interval
        row = [f"{f'{share:.3f}':>{len(title) + 3}}" for share, title in zip(shares, head, strict=True)]
        print(f"{f'{shape}, {name}':<20}{count:>3}" + "".join(row), flush=True)


# Power laws: fluctuations N^-1/2 without a mean, biases N^-1.  A row is one kind of seeds.

LAWS = {"fluctuation": (-0.5, 2.0), "bias": (-1.0, 3.0)}  # exponent, prefactor
SPREAD = 1.0  # of the seeds, over the mean, of a bias: 0.5 … 2 in the main job, after the control variate
WEAK = 0.3  # fluctuations over √N beside which a bias 3/N is weak: with 8 seeds its t-statistic falls from 3.5 to 0.9
NEXT = {"fluctuation": NEXT_ORDER_OF_SQUARES, "bias": 30 / 128}  # next order, relative, at the narrowest width (of squares)
FITS = ("exponent", "its prefactor", "prefactor", "exponent alone", "its prefactor alone", "prefactor alone", "next order",
        "its held", "next order alone", "refused", "zero bias", "weak bias", "undecided")  # fmt: skip
EXACT = 1e-8  # an interval that is no wider is of what is known exactly: of seeds that are the same at all widths


def deviating(kind, z, next_order=0.0, mean=1.0):
    """Deviations (sets, W, S) of seeds z."""
    exponent, prefactor = LAWS[kind]
    more = (1 + next_order * WIDTHS.min() / WIDTHS)[:, None]
    if kind == "fluctuation":
        return prefactor * z * np.sqrt(more) * WIDTHS[:, None] ** exponent
    return prefactor * (mean * more + SPREAD * z) * WIDTHS[:, None] ** exponent


def fit_row(task) -> list[float]:
    """``FITS`` of one kind of seeds.

    Shares of the data sets fitted whose interval covers: the exponent, the prefactor with it and with it held; the same three
    of intervals that allow for no next order ("alone"); where there is one, the exponent, the held prefactor, and the exponent
    by an interval that allows for none.  Not a number where it is known exactly.  Shares of all data sets: refused as no
    power law, zero biases that are fitted, biases under larger fluctuations whose interval misses their exponent (few have one,
    by chance), and those without a verdict ("too few seeds", "below noise floor").
    """
    kind, shape, pairing, count, sets = task
    z = seeds(np.random.default_rng(count), shape, PAIRINGS[pairing], (sets, len(WIDTHS), count))
    exponent, prefactor = LAWS[kind]

    def laws(errors, **options):
        return [fit(WIDTHS, one, kind=kind, resamples=400, **options) for one in errors]

    def covered(found, name, value):
        intervals = np.array([getattr(law, name) for law in found if law.status == "fitted"])
        if len(intervals) == 0 or np.ptp(intervals, axis=1).max() < EXACT:
            return np.nan
        return np.mean((intervals[:, 0] - EXACT <= value) & (value <= intervals[:, 1] + EXACT))

    def missed(found):
        return np.mean([law.status == "fitted" and not law.interval[0] <= exponent <= law.interval[1] for law in found])

    def said(found, *statuses):
        return np.mean([law.status in statuses for law in found])

    errors, bent = deviating(kind, z), deviating(kind, z, NEXT[kind])
    free, shares = laws(errors), []
    for found, allowed in ((free, True), (laws(errors, next_order=False), False)):
        held = laws(errors, exponent=exponent, next_order=allowed)
        shares += [covered(found, "interval", exponent), covered(found, "prefactor_interval", prefactor),
                   covered(held, "prefactor_interval", prefactor)]  # fmt: skip
    is_bias = kind == "bias"
    return [*shares, covered(laws(bent), "interval", exponent),
            covered(laws(bent, exponent=exponent), "prefactor_interval", prefactor) if is_bias else np.nan,
            covered(laws(bent, next_order=False), "interval", exponent), said(free, "no power law"),
            said(laws(deviating(kind, z, mean=0.0)), "fitted") if is_bias else np.nan,
            missed(laws((prefactor / np.sqrt(WIDTHS)[:, None] + WEAK * z) / np.sqrt(WIDTHS)[:, None])) if is_bias else np.nan,
            said(free, "too few seeds", "below noise floor")]  # fmt: skip


def fit_tasks(sets: int, counts=SEEDS, kinds=tuple(LAWS)) -> list[tuple]:
    """Every kind of seeds, for ``fit_row``."""
    return [(*kind, sets) for kind in itertools.product(kinds, SHAPES, PAIRINGS, counts)]


def print_fits(sets):
    print(f"power laws at 5 widths; {sets} data sets a row; shares whose interval covers, and shares of verdicts")
    print(f"{'seeds':<36}{'S':>3}" + "".join(f"{title:>{len(title) + 3}}" for title in FITS))
    tasks = fit_tasks(sets)
    with ProcessPoolExecutor() as pool:
        for (kind, shape, pairing, count, _), shares in zip(tasks, pool.map(fit_row, tasks), strict=True):
            row = "".join(f"{'–' if np.isnan(share) else f'{share:.3f}':>{len(title) + 3}}"
                          for share, title in zip(shares, FITS, strict=True))  # fmt: skip
            print(f"{f'{kind}, {shape}, {pairing}':<36}{count:>3}{row}", flush=True)


# Networks of the main job: how often −1/2 is in the interval of a fluctuation's exponent, fitted as the command fits it.

SETTING = Options(model="linear2", param="mup")
NETWORK_WIDTHS = sorted(SETTING.widths)
FOLLOWED = ("loss", "sharpness", "ntk_eigenvalues")


@in_float64
def networks(problem: Problem, width: int, count: int) -> dict[str, Float[np.ndarray, "count T"]]:
    """``FOLLOWED``, of eigenvalues the largest, along the exact trajectories of linear2 from Wishart's Gram matrices.

    These are in the basis of ``coordinates``: their law knows none.
    """
    data, steps, scales = coordinates(problem), descent(problem), linear.scales(problem, width)
    n = sum(data.optimum.shape)
    grams = wishart.rvs(width, np.eye(n), size=count, random_state=np.random.default_rng(width)).reshape(-1, n, n) / width

    def one(X0):
        states = linear.descend(data, scales, X0, steps)
        found = jax.lax.map(partial(linear_curvature.measure, columns=n, spare=1, top_k=1), states)
        return found["loss"], found["hessian_eigenvalues"][:, 0], found["ntk_eigenvalues"][:, 0]

    found = jax.jit(partial(jax.lax.map, one))(jnp.asarray(grams - np.eye(n)) / scales.epsilon)
    return dict(zip(FOLLOWED, map(np.asarray, found), strict=True))


def network_tasks(sets: int, seed: int) -> list[tuple]:
    """(observable, step, allowance of the next order, errors (sets, W, S)); the problem is the command's of this seed."""
    problem = prepare(replace(SETTING, seed=seed)).problem
    limit, laws = solve(problem), predict(problem)
    found = [networks(problem, width, sets * SETTING.seeds) for width in NETWORK_WIDTHS]
    tasks = []
    for name in FOLLOWED:
        errors = np.array([one[name] - first(limit[name]) for one in found])
        errors = errors.reshape(len(NETWORK_WIDTHS), sets, SETTING.seeds, -1).transpose(3, 1, 0, 2)
        law = np.transpose([first(part) for part in laws[name]])
        tasks += [(name, int(step), allowance(Law(*of_law), NETWORK_WIDTHS[0]), of_errors)
                  for step, of_law, of_errors in zip(problem.steps, law, errors, strict=True)]  # fmt: skip
    return tasks


def first(values):
    """(T,) or (T, k): the number, or the largest."""
    return values.reshape(len(values), -1)[:, 0]


def network_row(task) -> list[float]:
    """Of the sets that are fitted (a share): shares of the intervals that hold −1/2, that are below it, and above; their median
    width; and the share that hold it where no next order is allowed for."""
    _, _, allowed, errors = task
    usual, alone = (np.array([law.interval for law in laws if law.status == "fitted"]) for laws in (
        [fit(NETWORK_WIDTHS, one, next_order=order) for one in errors] for order in (allowed, False)))  # fmt: skip
    below, above = usual[:, 1] < -0.5, usual[:, 0] > -0.5
    return [len(usual) / len(errors), 1 - np.mean(below | above), np.mean(below), np.mean(above),
            np.median(np.ptp(usual, axis=1)), np.mean((alone[:, 0] <= -0.5) & (alone[:, 1] >= -0.5))]  # fmt: skip


def print_networks(sets, seed):
    print(f"\nfluctuations of exact networks of the main job, problem of seed {seed}: {len(NETWORK_WIDTHS)} widths, "
          f"{SETTING.seeds} seeds, {sets} data sets a row; intervals that hold −1/2")  # fmt: skip
    head = ("next order", "fitted", "hold it", "below", "above", "median width", "none allowed for")
    print(f"{'observable':<17}{'step':>4}" + "".join(f"{title:>{len(title) + 3}}" for title in head))
    tasks = network_tasks(sets, seed)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for (name, step, allowed, _), found in zip(tasks, pool.map(network_row, tasks), strict=True):
            row = "".join(f"{number:>{len(title) + 3}.3f}" for number, title in zip((allowed, *found), head, strict=True))
            print(f"{name:<17}{step:>4}{row}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--only", choices=("fits", "growth", "networks"))
    parser.add_argument("--seed", type=int, default=0, help="of the problem of the networks")
    given = parser.parse_args()
    if given.only in (None, "fits"):
        print_fits(given.sets)
    if given.only in (None, "growth"):
        print_growth(given.sets)
    if given.only in (None, "networks"):
        print_networks(given.sets, given.seed)
