"""Fit error ≈ prefactor · width^exponent, with intervals that cover, and refuse where there is no exponent.

Two errors of an observable o with reference o_∞, from S networks of every width:

    fluctuation   √(mean over seeds of (o_N − o_∞)²)     ~ N^-1/2
    bias          |mean over seeds of (o_N − o_∞)|       ~ N^-1

The reference matters.  With the largest trained width M in place of ∞, a power law A N^β turns into

    A √(N^2β + M^2β)      independent networks: too flat, for the error of the reference is added
    A (N^β − M^β)         deterministic or perfectly paired: too steep, for the error vanishes at N = M

and neither is a power law near M.  Against the theoretical limit there is no such bias.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import t as student_t

Status = Literal["fitted", "below noise floor", "past the edge of stability", "diverged", "too few widths"]
Kind = Literal["fluctuation", "bias"]

ABOVE_FLOOR = 3.0  # a width counts above so many noise floors: then the floor, added in squares, shifts it by 5 %
ABOVE_STANDARD_ERROR = 2.0  # and a bias counts above so many standard errors of the mean over seeds
FEWEST_WIDTHS = 3
FEWEST_SEEDS = 5  # for a bootstrap over seeds
ROUNDING = 1e-12  # of an exponent or a log prefactor: seeds that scatter less have no interval to resample

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error ≈ prefactor · width^exponent; called with widths, that line.  Not a number where ``status`` refuses it.

    interval, prefactor_interval    (low, high) of the confidence asked for; (β, β) for an exponent β that was held
    widths                          those that the fit used
    """

    exponent: float
    interval: tuple[float, float]
    prefactor: float
    prefactor_interval: tuple[float, float]
    status: Status
    widths: Float[np.ndarray, " W"]

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
    resamples: int = 1000,
    seed: int = 0,
) -> PowerLaw:
    """The power law of the errors of W widths.

    widths        (W,) different, positive, at least three
    errors        (W, S) signed deviations o_N − o_∞ of S seeds, or (W,) magnitudes
    exponent      held where given (negative: −0.5), so that the prefactor can be compared with a predicted one
    noise_floor   () or (W,) what the measuring itself cannot resolve; a width counts only above ``ABOVE_FLOOR`` of it
                  (never where it is inf or not a number), and a bias only above ``ABOVE_STANDARD_ERROR``
                  of its mean over seeds

    Fluctuations: unweighted least squares of log magnitude against log width, over the widths that count.
    Biases: least squares of the mean itself, weighted by its standard error, over all widths above the noise floor;
    leaving widths out because their mean came out small would flatten the exponent, taking the log of it would
    ruin it.
    Intervals: bootstrap-t, symmetric, resampling the seeds of all widths together, so that seeds may be paired across
    widths (one reference, one key) or not.  With fewer than five seeds: Student's t from the scatter about the line,
    which needs widths that err independently to be right about the prefactor.

    Status "diverged" where an error is not finite, "below noise floor" where fewer than three widths count.
    Raises ValueError, in one line, for shapes and options out of range.
    """
    widths, errors, noise_floor = _checked(widths, errors, noise_floor)
    _check_options(kind, exponent, confidence, resamples)
    if not np.isfinite(errors).all():
        return refused("diverged")
    above, counted, magnitude = _widths_that_count(errors, noise_floor, kind)
    if counted.sum() < FEWEST_WIDTHS:
        return refused("below noise floor")
    if errors.shape[1] < FEWEST_SEEDS:
        used, x = counted, np.log(widths[counted])
        theta, half = _line_with_residuals(x, np.log(magnitude[counted]), exponent, confidence)
    else:
        used = above if kind == "bias" else counted
        values, x = errors[used], np.log(widths[used])
        if kind == "fluctuation":
            values, estimate = values**2, _log_fit(x, exponent)
        else:
            estimate = _weighted_fit(x, values, noise_floor[used], exponent)
        theta, half = _bootstrap_t(estimate, values, confidence, resamples, seed)
    if not np.isfinite(theta).all():  # the weighted fit has not converged: there is no line to be seen
        return refused("below noise floor")
    return _power_law(theta, half, widths[used])


def _power_law(theta, half, widths) -> PowerLaw:
    """From (exponent, log prefactor) and half the widths of their intervals."""
    with np.errstate(over="ignore"):
        prefactor, low, high = (float(np.exp(t)) for t in (theta[1], theta[1] - half[1], theta[1] + half[1]))
    exponent, margin = float(theta[0]), float(half[0])
    return PowerLaw(exponent, (exponent - margin, exponent + margin), prefactor, (low, high), "fitted", widths)


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


def _widths_that_count(errors, noise_floor, kind) -> tuple[Bool[np.ndarray, " W"], Bool[np.ndarray, " W"], np.ndarray]:
    """Which magnitudes are above the noise floor, which of them also above their standard error, and the magnitudes."""
    magnitude = np.sqrt(np.mean(errors**2, axis=1)) if kind == "fluctuation" else np.abs(errors.mean(axis=1))
    above = (magnitude > ABOVE_FLOOR * noise_floor) & (magnitude > 0)
    if kind == "fluctuation" or errors.shape[1] == 1:
        return above, above, magnitude
    return above, above & (magnitude > ABOVE_STANDARD_ERROR * _standard_error_of_mean(errors)), magnitude


def _standard_error_of_mean(errors):
    return errors.std(axis=1, ddof=1) / np.sqrt(errors.shape[1])


# Estimates of θ = (exponent, log prefactor).  A bootstrap wants many at once: from means (B, W) of what the seeds
# contribute, θ (B, 2) and its derivative (B, 2, W), which carries the scatter of the seeds over to θ.

Estimate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _line(x, held) -> Float[np.ndarray, "2 W"]:
    """The matrix that takes log magnitudes (less held · x) to θ (less (held, 0))."""
    if held is None:
        return np.linalg.pinv(np.stack([x, np.ones_like(x)], axis=1))
    return np.stack([np.zeros_like(x), np.full_like(x, 1 / len(x))])


def _line_with_residuals(x, y, held, confidence):
    """θ and half the widths of its intervals by Student's t, from the scatter of y about the line."""
    line, offset = _line(x, held), np.array([held or 0.0, 0.0])
    y = y - offset[0] * x
    theta = line @ y
    free = len(x) - (1 if held is not None else 2)
    variance = np.sum((y - theta[0] * x - theta[1]) ** 2) / free
    half = student_t.ppf((1 + confidence) / 2, free) * np.sqrt(variance * np.sum(line**2, axis=1))
    return theta + offset, half


def _log_fit(x, held) -> Estimate:
    """Least squares of ½ log(mean square) against x."""
    line, offset = _line(x, held), np.array([held or 0.0, 0.0])

    def estimate(mean_squares):
        y = 0.5 * np.log(mean_squares) - offset[0] * x
        return y @ line.T + offset, line * (0.5 / mean_squares)[:, None, :]

    return estimate


def _weighted_fit(x, errors, noise_floor, held, iterations=30) -> Estimate:
    """Least squares of A exp(β x) to the means, with their variances; Gauss-Newton in β, A eliminated."""
    means = errors.mean(axis=1)
    # no error bar is trusted beyond six digits, so that seeds which agree exactly do not divide by zero
    variance = np.maximum(_standard_error_of_mean(errors), 1e-6 * np.abs(means).max()) ** 2 + noise_floor**2
    start = -1.0 if held is None else held
    centre = np.average(x, weights=means**2 / variance)
    x = x - centre

    def pieces(beta, means):
        f = np.exp(beta[:, None] * x)
        norm = np.sum(f**2 / variance, axis=1)
        amplitude = np.sum(f * means / variance, axis=1) / norm
        slope = amplitude[:, None] * f * x
        overlap = np.sum(f * slope / variance, axis=1) / norm
        across = slope - f * overlap[:, None]  # the change with β that no change of A makes up for
        to_beta = across / variance / np.sum(across**2 / variance, axis=1)[:, None]
        return f, amplitude, norm, overlap, to_beta

    def solve(means):
        beta, step = np.full(len(means), start), np.full(len(means), np.inf)
        for _ in range(0 if held is not None else iterations):
            f, amplitude, _, _, to_beta = pieces(beta, means)
            step = np.sum(to_beta * (means - amplitude[:, None] * f), axis=1)
            beta = beta + np.clip(step, -0.5, 0.5)
            if not (np.abs(step) > 1e-7).any():
                break
        return beta if held is not None else np.where(np.abs(step) < 1e-4, beta, np.nan)

    def estimate(means):
        beta = solve(means)
        f, amplitude, norm, overlap, to_beta = pieces(beta, means)
        to_amplitude = f / variance / norm[:, None]
        if held is None:
            to_amplitude = to_amplitude - overlap[:, None] * to_beta
        else:
            to_beta = np.zeros_like(to_beta)
        theta = np.stack([beta, np.log(np.abs(amplitude)) - beta * centre], axis=1)
        to_log_prefactor = to_amplitude / amplitude[:, None] - centre * to_beta
        return theta, np.stack([to_beta, to_log_prefactor], axis=1)

    return estimate


# The bootstrap -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _counts(seed, seeds, resamples) -> Float[np.ndarray, "B S"]:
    """How often each seed is drawn in each resample: the same for all widths, and for all observables and steps."""
    return np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(float)


def _standard_errors(derivative, values, means, counts) -> Float[np.ndarray, "B 2"]:
    """Of θ, linearised: the scatter over seeds of derivative · (value − mean)."""
    influence = derivative @ values - np.sum(derivative * means[:, None, :], axis=2, keepdims=True)
    seeds = values.shape[1]
    return np.sqrt(np.einsum("bs,bks->bk", counts, influence**2) / (seeds * (seeds - 1)))


def _bootstrap_t(estimate, values, confidence, resamples, seed):
    """θ and half the widths of its intervals: the quantile of |θ* − θ|/se* times se (Hall 1992, §3.5 and 3.6).

    Percentile and BCa intervals of 16 Gaussian seeds cover 80 to 90 % where 95 % are claimed: the spread of so few is
    underestimated, and by the resamples again.  Divided by their own standard errors they know.
    """
    seeds = values.shape[1]
    counts = _counts(seed, seeds, resamples)
    with np.errstate(all="ignore"):  # a resample without any error, or without a line, is infinitely far off
        means = values.mean(axis=1)[None]
        theta, derivative = estimate(means)
        error = _standard_errors(derivative, values, means, np.ones((1, seeds)))[0]
        resampled = counts @ values.T / seeds
        thetas, derivatives = estimate(resampled)
        distance = np.abs(thetas - theta) / _standard_errors(derivatives, values, resampled, counts)
    distance = np.where(np.isnan(distance), np.inf, distance)
    quantile = np.quantile(distance, confidence, axis=0, method="higher")
    return theta[0], np.where(error > ROUNDING, quantile * np.maximum(error, ROUNDING), 0.0)
