"""Fit error ≈ prefactor · width^exponent, with intervals that cover, and refuse where there is no exponent.

Two errors of an observable o with reference o_∞, from S networks of every width:

    fluctuation   √(mean over seeds of (o_N − o_∞)²)     ~ N^-1/2
    bias          |mean over seeds of (o_N − o_∞)|       ~ N^-1

The reference matters.  With the largest trained width M in place of ∞, a power law A N^β turns into

    A √(N^2β + M^2β)      independent networks: too flat, for the error of the reference is added
    A (N^β − M^β)         deterministic or perfectly paired: too steep, for the error vanishes at N = M

and neither is a power law near M.  Against the theoretical limit there is no such bias.

An exponent is in the interval if the errors, divided by N^β, show no trend with log N that a test at level 1 − confidence
sees.  Both tests permute or average within whole seeds, which may be paired across widths (one reference, one key) or not:

    fluctuation   the squares divided by N^2β are exchangeable across the widths of a seed, whatever the shape of their
                  distribution: a permutation test, exact for any number of seeds (Lehmann & Romano 2005, §15.2)
    bias          the contrast of the means is 0: Student's t, with Hall's correction for skewed seeds (Hall 1992, J. R.
                  Stat. Soc. B 54, 221)

Beside the leading order there is a next one.  It bends the line by less than a few seeds show and yet moves the exponent by
more than their error, so that an interval which is to cover must allow for one of some size (Armstrong & Kolesár 2018,
Econometrica 86, 655): ``NEXT_ORDER`` of a bias, of its prefactor at a held exponent too; ``NEXT_ORDER_OF_SQUARES`` of a
fluctuation's exponent, or what a theory knows it to be.  Of an error that is a power law and nothing else these intervals
therefore hold the exponent more often than they say; those that allow for none hold it about as often, and miss it where
there is one.  A fluctuation whose next order is larger, and seen, has it fitted.  How often intervals cover, either way:
``tests/benchmarks/coverage.py``.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import ceil, isfinite
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq, minimize_scalar
from scipy.special import stdtrit

Status = Literal["fitted", "below noise floor", "past the edge of stability", "diverged", "too few widths", "too few seeds",
                 "no power law"]  # fmt: skip
Kind = Literal["fluctuation", "bias"]

ABOVE_FLOOR = 3.0  # a width counts above so many noise floors: then the floor, added in squares, shifts it by 5 %
FEWEST_WIDTHS = 3
FEWEST_SEEDS = 5  # fewer show of hardly any law that it is none, nor have t-statistics of skewed ones a known distribution
FEWEST_SIGNS = 7  # seeds of a bias: so many can change signs in ways enough to be surprised by at ``LEVEL``, 2^(1 − S) of them
LEVEL = 0.03  # of the test of a power law, which then refuses at most 5 % of true ones at any number of seeds
NEXT_ORDER = 0.2  # relative size of the next order of a bias at its narrowest width, N^-2 beside N^-1: its standard deviation
NEXT_ORDER_OF_SQUARES = 0.1  # and of a mean square, N^-2 beside N^-1: at most, unless it is seen, and fitted
LARGEST_NEXT_ORDER = 0.5  # what is more at the narrowest width is no correction
EXPONENTS = np.linspace(-6.0, 4.0, 401)  # are looked for here
UPWARDS = 2.0  # times as far as Student's t says reaches the interval of a mean square: no sample shows its tail
SAMPLED = 2.0  # noise floors by which a reference may be off
ROUNDING = 1e-12  # relative: seeds that scatter less have no interval to resample

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error ≈ prefactor · width^exponent; called with widths, that line.  Not a number where ``status`` refuses it.

    interval, prefactor_interval    (low, high) of the confidence asked for; (β, β) for an exponent β that was held
    widths                          those that the fit used
    next_order                      size of the next order relative to the leading one at the narrowest width, where it
                                    was fitted; 0 where not
    """

    exponent: float
    interval: tuple[float, float]
    prefactor: float
    prefactor_interval: tuple[float, float]
    status: Status
    widths: Float[np.ndarray, " W"]
    next_order: float = 0.0

    def __call__(self, widths):
        return self.prefactor * np.asarray(widths, dtype=float) ** self.exponent


def refused(status: Status) -> PowerLaw:
    """No exponent, and why.  The caller detects "past the edge of stability": there the map is chaotic."""
    if status not in get_args(Status)[1:]:
        raise ValueError(f"status {status!r} is not one of {', '.join(get_args(Status)[1:])}")
    return PowerLaw(NAN, (NAN, NAN), NAN, (NAN, NAN), status, np.zeros(0))


def fit(
    widths,
    errors,
    *,
    kind: Kind = "fluctuation",
    exponent: float | None = None,
    noise_floor=0.0,
    confidence: float = 0.95,
    next_order: bool | float = True,
    resamples: int = 1000,
    seed: int = 0,
) -> PowerLaw:
    """The power law of the errors of W widths.

    widths        (W,) different, positive, at least three
    errors        (W, S) signed deviations o_N − o_∞ of S seeds, or (W,) magnitudes, as is that of one seed
    exponent      held where given (negative: −0.5), so that the prefactor can be compared with a predicted one
    noise_floor   () or (W,) what the measuring itself cannot resolve; a width counts only above ``ABOVE_FLOOR`` of it
                  (never where it is inf or not a number)
    next_order    whether intervals allow for one; False: of an error that is a power law and nothing else.  A number is the
                  least that is allowed for in a fluctuation's mean square at the narrowest width, relative to the leading
                  order: a theory of both knows bias²/(N std²)
    resamples     permutations and changes of sign; ``seed`` draws them

    What is fitted, and the intervals, are the module's; of magnitudes without seeds least squares of the logarithms, with
    Student's t from the scatter about the line, which needs widths that err independently to be right about the prefactor.
    Four of them show whether the line is bent, as that of no power law is, or, which is fitted, by a next order.

    Status "diverged" where an error is not finite; "below noise floor" where fewer than three widths count, or a mean may be
    zero; "too few seeds" below ``FEWEST_SEEDS``, of a bias's exponent ``FEWEST_SIGNS``, or where they exclude none; "no power
    law" where what is left beside the best line, the next order included, is larger than in all but ``LEVEL`` of permutations
    (changes of sign, of a bias), or where the mean of a fluctuation falls more slowly than its spread, by more than ``SAMPLED``
    noise floors: then the reference is not the limit.  How much of a bend that sees is a matter of seeds: of fluctuations
    exp(−N/300), N = 128 … 2048, all but 6 % with eight seeds, not half with four; of N^-1/2 + 0.05, within 3 % of a power law
    over those widths, nothing.
    A held exponent is not tested so.  A bias that is hardly above the fluctuations is told from zero, and fitted, by chance: of
    all such data sets at most 1 − confidence have an interval that misses it, but of those that are fitted more.
    Raises ValueError, in one line, for shapes and options out of range.

    >>> draws = np.random.default_rng(0).normal(size=(5, 32))
    >>> widths = np.array([64, 128, 256, 512, 1024])
    >>> law = fit(widths, 0.3 * widths[:, None] ** -0.5 * draws)
    >>> f"{law.exponent:.2f} [{law.interval[0]:.2f}, {law.interval[1]:.2f}]", law.status
    ('-0.45 [-0.58, -0.32]', 'fitted')
    >>> fit(widths, np.exp(-widths / 100)[:, None] * (1 + 0.1 * draws), kind="bias").status
    'no power law'
    """
    widths, errors, noise_floor = _checked(widths, errors, noise_floor)
    _check_options(kind, exponent, confidence, resamples)
    if not np.isfinite(errors).all():
        return refused("diverged")
    unit = np.abs(errors).max() or 1.0  # squares and cubes of anything fit into floats
    with np.errstate(all="ignore"):  # what is not a number is not fitted
        law = _in_units(widths, errors / unit, noise_floor / unit, kind, exponent, confidence, next_order, resamples, seed)
        low, high = law.prefactor_interval
        return replace(law, prefactor=law.prefactor * unit, prefactor_interval=(low * unit, high * unit))


def exponent_of(growing: Sequence[int], sizes: Sequence[Float[np.ndarray, "_"]]) -> tuple[float, tuple[float, float]]:
    """(exponent, 95 % interval) of sizes ∝ growing^exponent, from any number of seeds at each; not numbers where a size is
    not finite, or zero.
    """
    if not all((np.isfinite(size) & (size > 0)).all() for size in sizes):
        return np.nan, (np.nan, np.nan)
    x, logs = np.log(growing), [np.log(size) for size in sizes]
    leverage = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    exponent = float(leverage @ [log.mean() for log in logs])
    variances = leverage**2 * [log.var(ddof=1) / len(log) for log in logs]
    if not variances.any():
        return exponent, (exponent, exponent)
    freedom = np.sum(variances) ** 2 / np.sum(variances**2 / [len(log) - 1 for log in logs])  # Welch, Satterthwaite
    half = float(stdtrit(freedom, 0.975) * np.sqrt(np.sum(variances)))
    return exponent, (exponent - half, exponent + half)


def _in_units(widths, errors, noise_floor, kind, exponent, confidence, next_order, resamples, seed) -> PowerLaw:
    magnitude = np.sqrt(np.mean(errors**2, axis=1)) if kind == "fluctuation" else np.abs(errors.mean(axis=1))
    used = (magnitude > ABOVE_FLOOR * noise_floor) & (magnitude > 0)
    if used.sum() < FEWEST_WIDTHS:
        return refused("below noise floor")
    widths, errors, noise_floor = widths[used], errors[used], noise_floor[used]
    if errors.shape[1] == 1:
        return _line_of_magnitudes(widths, magnitude[used], exponent, confidence, next_order)
    if kind == "fluctuation":
        return _fluctuation(widths, errors, noise_floor, exponent, confidence, next_order, resamples, seed)
    return _bias(widths, errors, noise_floor, exponent, confidence, next_order, resamples, seed)


def _checked(widths, errors, noise_floor):
    widths, errors = np.asarray(widths, dtype=float), np.asarray(errors, dtype=float)
    if widths.ndim != 1 or len(widths) < FEWEST_WIDTHS:
        raise ValueError(f"widths of shape {widths.shape}: wanted a list of at least {FEWEST_WIDTHS}")
    if not (np.isfinite(widths).all() and (widths > 0).all() and len(np.unique(widths)) == len(widths)):
        raise ValueError(f"widths {widths.tolist()}: wanted positive ones, none twice")
    if errors.ndim not in (1, 2) or len(errors) != len(widths) or errors.size == 0:
        raise ValueError(f"errors of shape {errors.shape}: wanted ({len(widths)},) or ({len(widths)}, seeds)")
    noise_floor = np.asarray(noise_floor, dtype=float)
    if noise_floor.shape not in ((), widths.shape) or (noise_floor < 0).any():
        raise ValueError(f"noise floor {noise_floor.tolist()}: wanted one, or one for each width, none negative")
    return widths, errors.reshape(len(widths), -1), np.broadcast_to(noise_floor, widths.shape)


def _check_options(kind, exponent, confidence, resamples):
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    if exponent is not None and not np.isfinite(exponent):
        raise ValueError(f"exponent {exponent} must be finite")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} must be between 0 and 1")
    if resamples < 100:
        raise ValueError(f"{resamples} resamples: wanted at least 100")


# Magnitudes without seeds --------------------------------------------------------------------------------------------


def _line_of_magnitudes(widths, magnitude, held, confidence, next_order) -> PowerLaw:
    """Least squares of the logarithms, intervals by Student's t, from the scatter about the line, which must not be bent."""
    x, y, narrowness, size = np.log(widths), np.log(magnitude), widths.min() / widths, 0.0
    rows = np.stack([np.ones_like(x), x])[: 1 if held is not None else 2]
    y = y - (held or 0.0) * x
    if held is None and _is_bent(rows, x, y):
        size = _size_of_next_order(rows, y, narrowness)
        rows, y = np.stack([*rows, narrowness / (1 + size * narrowness)]), y - np.log1p(size * narrowness)
        if not next_order or abs(size) > 0.99 * LARGEST_NEXT_ORDER or _is_bent(rows, x, y):
            return refused("no power law")
    theta, free = np.linalg.lstsq(rows.T, y, rcond=None)[0], len(x) - len(rows)
    variance = np.sum(_without(rows, y) ** 2) / free
    half = stdtrit(free, (1 + confidence) / 2) * np.sqrt(variance * np.diag(np.linalg.inv(rows @ rows.T)))
    exponent, reach = (held, 0.0) if held is not None else (theta[1], half[1])
    ends = theta[0] - half[0], theta[0] + half[0]
    return _power_law(exponent, (float(exponent - reach), float(exponent + reach)), theta[0], ends, widths, size)


def _is_bent(rows, x, y):
    """Whether a parabola is nearer than chance allows: Student's t of its curvature.  Too few points never show it."""
    free, curvature = len(x) - len(rows) - 1, _without(rows, (x - x.mean()) ** 2)
    if free < 1:
        return False
    bend = curvature @ y / (curvature @ curvature)
    rest = np.sum((_without(rows, y) - bend * curvature) ** 2) + ROUNDING**2
    return bool(abs(bend) * np.sqrt(curvature @ curvature * free / rest) > stdtrit(free, 1 - LEVEL / 2))


def _size_of_next_order(rows, y, narrowness) -> float:
    """c of the factor 1 + c N_min/N beside which the line fits best."""
    misfit = lambda c: np.sum(_without(rows, y - np.log1p(c * narrowness)) ** 2)  # noqa: E731
    return float(minimize_scalar(misfit, bounds=(-LARGEST_NEXT_ORDER, LARGEST_NEXT_ORDER), method="bounded").x)


def _power_law(exponent, interval, log_prefactor, log_interval, widths, next_order=0.0) -> PowerLaw:
    prefactor, low, high = (float(np.exp(value)) for value in (log_prefactor, *log_interval))
    return PowerLaw(float(exponent), interval, prefactor, (low, high), "fitted", widths, float(next_order))


# Exponents that a test does not exclude ------------------------------------------------------------------------------


def _root(terms, x, misfit: Callable) -> float:
    """β with Σ terms · exp(−β x) = 0, a trend that vanishes: of several the one that fits best, NaN where there is none."""

    def trend(beta):
        return np.sum(np.exp(-np.multiply.outer(beta, x)) * terms, axis=-1)

    signs = np.sign(trend(EXPONENTS))
    roots = [brentq(trend, EXPONENTS[i], EXPONENTS[i + 1], xtol=1e-14) for i in np.flatnonzero(signs[1:] * signs[:-1] < 0)]
    return min([*roots, *EXPONENTS[signs == 0]], key=misfit, default=NAN)


def _not_excluded(excess: Callable, estimate: float) -> tuple[float, float]:
    """From the estimate on, both ways, as far as ``excess`` of a test over its critical value is not above 0."""
    return estimate - _reach(lambda d: excess(estimate - d)), estimate + _reach(lambda d: excess(estimate + d))


def _reach(excess: Callable, precision=1e-4) -> float:
    def above(distance):  # finite
        value = excess(distance)
        return value if isfinite(value) else 1.0 if value > 0 else -1.0

    inside, outside = 0.0, 1 / 64
    while above(outside) <= 0:
        inside, outside = outside, 2 * outside
        if outside > np.ptp(EXPONENTS):
            return np.inf
    return brentq(above, inside, outside, xtol=ROUNDING, rtol=precision) if above(inside) <= 0 else inside


def _combined(log_prefactor, along, level):
    """Interval of log prefactor from how it moves along the exponent's interval, and from the level's own margins.

    Limits of a sum from those of independent parts, in squares (Zou & Donner 2008, Statistics in Medicine 27, 1693).
    """
    down, up = log_prefactor - min(along), max(along) - log_prefactor
    return log_prefactor - np.hypot(down, level[0]), log_prefactor + np.hypot(up, level[1])


# Fluctuations: permutations ------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _permutations(seed, resamples, seeds, widths) -> Int[np.ndarray, "B S W"]:
    """Of the widths, for each seed its own: the same for all observables and steps."""
    every = np.broadcast_to(np.arange(widths), (resamples, seeds, widths))
    return np.random.default_rng(seed).permuted(every, axis=2)


def _fluctuation(widths, errors, noise_floor, held, confidence, next_order, resamples, seed) -> PowerLaw:
    x = np.log(widths)
    if held is not None:
        log_prefactor, margins = _level(np.mean(errors**2 * np.exp(-2 * held * x)[:, None], axis=0), confidence)
        return _power_law(held, (held, held), log_prefactor, (log_prefactor - margins[0], log_prefactor + margins[1]), widths)
    if errors.shape[1] < FEWEST_SEEDS:
        return refused("too few seeds")
    shuffled, flat = _permutations(seed, resamples, errors.shape[1], len(x)), np.ones((1, len(x)))
    squares = _Squares(x, errors, flat, shuffled)
    allowed = (-squares.beyond, max(squares.beyond, 0.0 if next_order is True else next_order)) if next_order else (0.0,)
    intervals = [squares.beside(size).interval(confidence) for size in allowed]
    if not squares.is_a_power_law(noise_floor):
        squares = _Squares(x, errors, np.concatenate([flat, [squares.narrowness]]), shuffled)
        if not squares.has_a_small_next_order or not squares.is_a_power_law(noise_floor):
            return refused("no power law")
        intervals += [squares.beside(sign * squares.beyond).interval(confidence) for sign in (-1, 1)]
    interval = min(low for low, _ in intervals), max(high for _, high in intervals)
    if not np.isfinite(interval).all():
        return refused("too few seeds")
    log_prefactor, margins = _level(squares.levels(squares.exponent), confidence)
    along = [_level(squares.levels(beta), confidence)[0] for beta in interval]
    ends = _combined(log_prefactor, along, margins)
    return _power_law(squares.exponent, interval, log_prefactor, ends, widths, squares.next_order)


class _Squares:
    """Squared errors of seeds: N^2β times a combination of ``basis`` (1, or 1 and N_min/N) in the mean, at one exponent β.

    Divided by both they are exchangeable across the widths of a seed.
    """

    def __init__(self, x, errors, basis, shuffled):
        self.x, self.errors, self.basis, self.shuffled = x, errors, basis, shuffled
        self.narrowness = np.exp(x.min() - x)  # N_min/N
        self.of_basis = np.linalg.pinv(basis.T)
        self.contrast = _without(basis, x)
        self.shuffled_contrast = self.contrast[shuffled].reshape(len(shuffled), -1)
        self.exponent = self._untrended()

    def _untrended(self):
        """The exponent at which the squares over the law have no trend."""
        return _root(self.contrast * self.over(0.0).mean(axis=1), 2 * (self.x - self.x.mean()), self._misfit)

    def over(self, beta):
        """(W, S): e²/N^2β, in units of the central width."""
        return self.errors**2 * np.exp(-2 * beta * (self.x - self.x.mean()))[:, None]

    def normalised(self, beta):
        """(W, S): of mean 1 at every width under the law; not a number where the next order eats up the leading one."""
        over = self.over(beta)
        law = self.basis.T @ self.coefficients(over.mean(axis=1))
        return over / np.where(law > 0, law, NAN)[:, None]

    def _misfit(self, beta):
        """How far the mean squares are from the law."""
        means = self.over(beta).mean(axis=1)
        return np.sum(_without(self.basis, means) ** 2) / np.mean(means) ** 2

    def coefficients(self, means):
        return self.of_basis @ means

    def levels(self, beta):
        """(S,): whose mean is the squared prefactor, the next order being what it was found to be."""
        law = 1 + ((1 + self.next_order) ** 2 - 1) * self.narrowness
        return np.mean(self.over(beta) / law[:, None], axis=0) * np.exp(-2 * beta * self.x.mean())

    @property
    def next_order(self):
        """Relative to the leading one, at the narrowest width."""
        leading, *next_ = self.coefficients(self.over(self.exponent).mean(axis=1))
        return float(np.sqrt(max(1 + next_[0] / leading, 0)) - 1) if next_ else 0.0

    @property
    def beyond(self):
        """Relative size, at the narrowest width, of an order after those of the basis, which is allowed for on either side.

        After 1 + 2c N_min/N, the square of 1 + c N_min/N has c²: so large, or twice.
        """
        return 2 * self.next_order**2 if len(self.basis) > 1 else NEXT_ORDER_OF_SQUARES

    def beside(self, size):
        """The same law of errors that have so much of the order ``beyond``."""
        coefficients = self.coefficients(self.over(self.exponent).mean(axis=1))
        more = 1 + size * self.narrowness ** len(self.basis) * coefficients.sum() / (self.basis.T @ coefficients)
        law = copy(self)
        law.errors = self.errors / np.sqrt(more)[:, None]
        law.exponent = law._untrended()
        return law

    @property
    def has_a_small_next_order(self):
        return np.isfinite(self.exponent) and abs(self.next_order) <= LARGEST_NEXT_ORDER

    def interval(self, confidence):
        """Exponents at which the trend is not above most trends of permuted widths."""
        most = ceil(confidence * (len(self.shuffled) - 1))

        def excess(beta):
            squares = self.normalised(beta)
            trends = np.abs(self.shuffled_contrast @ squares.T.ravel())
            rounding = ROUNDING * np.abs(self.contrast) @ squares.sum(axis=1)
            margin = np.abs(self.contrast @ squares.sum(axis=1)) - np.partition(trends, most)[most]
            return np.inf if np.isnan(margin) else margin - rounding

        return _not_excluded(excess, self.exponent)

    def share_that_fits_worse(self):
        """Of permutations that have something of the order ``beyond``: whose mean squares fit a law worse."""
        squares = self.normalised(self.exponent)
        squares /= np.maximum(squares.mean(axis=0), np.finfo(float).tiny)  # seeds that are paired tell alike, large or small
        off = _without(np.concatenate([self.basis, [self.x]]), np.eye(len(self.x)))
        shuffled = squares.T[np.arange(squares.shape[1])[:, None], self.shuffled].mean(axis=1)
        drawn = np.random.default_rng(0).uniform(-self.beyond, self.beyond, len(shuffled))
        shuffled = shuffled * np.exp(np.outer(drawn, self.narrowness ** len(self.basis)))
        misfits = np.sum((np.log(np.concatenate([shuffled, squares.mean(axis=1)[None]])) @ off) ** 2, axis=1)
        return np.mean(misfits >= misfits[-1])

    def share_with_a_slower_mean(self, offset):
        """Of permutations: whose mean over seeds falls even more slowly with the width, in units of the fluctuation.

        A bias falls faster; what does not is a reference that is not the limit, which is ``offset`` (W,) lower.
        """
        signed = (self.errors + offset[:, None]) * np.exp(-self.exponent * (self.x - self.x.mean()))[:, None]
        trends = np.append(self.shuffled_contrast @ signed.T.ravel(), self.contrast @ signed.sum(axis=1))
        rounding = ROUNDING * np.abs(self.contrast) @ np.abs(signed).sum(axis=1)
        return np.mean(np.sign(signed.sum()) * (trends - trends[-1]) >= -rounding)

    def is_a_power_law(self, noise_floor):
        means = [self.share_with_a_slower_mean(times * noise_floor) for times in (-SAMPLED, 0, SAMPLED)]
        return min(self.share_that_fits_worse(), max(means)) > LEVEL / 2


def _without(basis, values):
    """Less its projection on the rows of ``basis``."""
    return values - basis.T @ np.linalg.lstsq(basis.T, values, rcond=None)[0]


def _level(squares, confidence):
    """½ log of the mean of the (S,) squares, and how far its interval reaches down and up.

    A sample seldom shows the tail of its distribution, so that its mean square is more often too small than too large, and its
    standard error with it.  The lower end has the whole error, 1 − confidence; the upper is twice as far as Student's t has it.
    """
    mean, quantile = squares.mean(), partial(stdtrit, len(squares) - 1)
    error = 0.5 * squares.std(ddof=1) / np.sqrt(len(squares)) / mean
    return 0.5 * np.log(mean), (quantile(confidence) * error, UPWARDS * quantile((1 + confidence) / 2) * error)


# Biases: contrasts of means ------------------------------------------------------------------------------------------


def _bias(widths, errors, noise_floor, held, confidence, next_order, resamples, seed) -> PowerLaw:
    if errors.shape[1] < (FEWEST_SIGNS if held is None else FEWEST_SEEDS):
        return refused("too few seeds")
    means = _Means(widths, errors, noise_floor, NEXT_ORDER if next_order else 0.0)
    exponent = means.exponent if held is None else held
    if np.isnan(exponent) or means.level(exponent, 1 - LEVEL)[1] == -np.inf:  # the mean may be 0
        return refused("below noise floor")
    if held is not None:
        log_prefactor, *ends = means.level(held, confidence)
        return _power_law(held, (held, held), log_prefactor, ends, widths)
    if means.share_that_fits_worse(resamples, seed) <= LEVEL:
        return refused("no power law")
    interval = means.interval(confidence)
    if not np.isfinite(interval).all():
        return refused("below noise floor")
    log_prefactor, *ends = means.level(means.exponent, confidence)
    margins = log_prefactor - ends[0], ends[1] - log_prefactor
    along = [means.level(beta, confidence)[0] for beta in interval]
    return _power_law(means.exponent, interval, log_prefactor, _combined(log_prefactor, along, margins), widths)


def _hall_limits(values, critical) -> tuple[float, float, float]:
    """Standard error of the mean of (S,) values, and the least and the largest t-statistic that is no surprise.

    Student's t less the skewness of its distribution, to order 1/S, is t + a t² + a² t³/3 + a/2, a = skewness/(3√S): a monotone
    function of t, at ±critical (Hall 1992).
    """
    seeds, deviation = len(values), max(values.std(ddof=1), ROUNDING * np.abs(values).max())
    a = np.mean((values - values.mean()) ** 3) / deviation**3 / (3 * np.sqrt(seeds))
    corrected = np.array([-critical, critical]) - a / 2
    t = (np.cbrt(1 + 3 * a * corrected) - 1) / a if abs(a) > 1e-6 else corrected
    return deviation / np.sqrt(seeds), *t


class _Means:
    """Signed errors of seeds, A N^β (1 + c N_min/N) in the mean, c unknown, of the standard deviation ``allowance``.

    Means are weighted as if their spread over seeds fell like N^-1/2, or N^-1 (what a control variate leaves), whichever it is
    nearer to.  Each width's own spread would favour means that came out small, for then a skewed distribution has not shown its
    tail.  The errors of what comes out are those of the seeds, whatever their spread.
    """

    def __init__(self, widths, errors, noise_floor, allowance):
        self.errors, self.floor, self.next_order = errors, noise_floor, allowance * widths.min() / widths
        self.centre = np.mean(np.log(widths))
        self.x = np.log(widths) - self.centre
        spread = np.maximum(errors.std(axis=1, ddof=1), 1e-6 * np.abs(errors).max())  # no error bar has more than six digits
        slope = np.polyfit(self.x, np.log(spread), 1)[0]
        power = min((-0.5, -1.0), key=lambda power: abs(slope - power))
        self.variance = np.mean(spread**2 * np.exp(-2 * power * self.x)) * np.exp(2 * power * self.x) / errors.shape[1]
        self.contrast, self.exponent = None, -1.0
        for _ in range(2):  # the weights hardly depend on the exponent
            self.contrast = self._contrast(self.exponent)
            self.exponent = _root(self.contrast * errors.mean(axis=1), self.x, self._misfit)
            if np.isnan(self.exponent):
                break

    def over(self, beta):
        """(W, S): e/N^β, in units of the central width."""
        return self.errors * np.exp(-beta * self.x)[:, None]

    def _others(self, beta):
        """(W + 1, W): by how much measuring each width, and the next order, move the means over N^β; one standard deviation."""
        scale = np.exp(-beta * self.x)
        weights = 1 / (self.variance * scale**2)
        amplitude = weights @ self.over(beta).mean(axis=1) / weights.sum()
        return np.concatenate([np.diag(self.floor * scale), [amplitude * self.next_order]])

    def _weights(self, beta):
        others = self._others(beta)
        return np.linalg.inv(np.diag(self.variance * np.exp(-2 * beta * self.x)) + others.T @ others)

    def _off(self, beta, *basis):
        """(W, W): takes means to what is left of them beside the rows of ``basis``."""
        weights, basis = self._weights(beta), np.stack([np.ones_like(self.x), *basis])
        return np.eye(len(self.x)) - basis.T @ np.linalg.solve(basis @ weights @ basis.T, basis @ weights)

    def _contrast(self, beta):
        return self.x @ self._weights(beta) @ self._off(beta)

    def _misfit(self, beta):
        off = self._off(beta) @ self.over(beta).mean(axis=1)
        return off @ self._weights(beta) @ off

    def interval(self, confidence):
        """Exponents whose contrast of the means is not above the error of seeds, measuring and next order together."""
        critical = self._critical(confidence)

        def excess(beta):
            contrasts, others = self.contrast @ self.over(beta), np.linalg.norm(self._others(beta) @ self.contrast)
            error, low, high = _hall_limits(contrasts, critical)
            trend = contrasts.mean()
            return abs(trend) - np.hypot(error * (high if trend > 0 else low), critical * others)

        return _not_excluded(excess, self.exponent)

    def share_that_fits_worse(self, resamples, seed):
        """Of means whose seeds have changed signs beside the line, and whose measuring and next order are drawn anew."""
        rng, beta = np.random.default_rng(seed), self.exponent
        off, others = self._off(beta, self.x), self._others(beta)
        beside = off @ self.over(beta)
        signs = rng.choice([-1.0, 1.0], size=(resamples, beside.shape[1]))
        drawn = signs @ beside.T / beside.shape[1] + rng.standard_normal((resamples, len(others))) @ others @ off.T
        drawn = np.concatenate([drawn, beside.mean(axis=1)[None]])
        misfits = np.sum((drawn @ self._weights(beta)) * drawn, axis=1)
        return np.mean(misfits >= misfits[-1])

    def level(self, beta, confidence):
        """Log prefactor of the leading order and its interval, at an exponent that is given."""
        weights = self._weights(beta).sum(axis=0)
        weights = weights / weights.sum()
        values, of_others = weights @ self.over(beta), np.linalg.norm(self._others(beta) @ weights)
        values = values * np.sign(values.mean())
        critical = self._critical(confidence)
        error, low, high = _hall_limits(values, critical)
        down, up = (np.hypot(error * t, critical * of_others) for t in (high, low))
        return tuple(np.log(values.mean() + np.array([0, -min(down, values.mean()), up])) - beta * self.centre)

    def _critical(self, confidence):
        """A fifth of the error is kept for the skewness that so few seeds do not show."""
        return stdtrit(self.errors.shape[1] - 1, 1 - 0.8 * (1 - confidence) / 2)
