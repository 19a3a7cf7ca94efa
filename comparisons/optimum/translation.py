"""By how much curves are shifted against each other: all of each tells it, not its lowest point alone.

Log mean loss of a size on the grid x = log η0 is, u = x − shift being the distance from its minimum,

    f(u) + height + c₂u² + c₃u³

where f, a spline through as many values as the grid has points, is common to all sizes, and the rest is each size's own: a
curve may bend more than another, and lean over, without its minimum having moved.  Least squares.  Whether that is all in which
the curves differ is tested.  Where nothing moves it is right whatever f is; where something does, as far as a spline can follow
f between the points.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.interpolate import BSpline, PPoly, make_interp_spline
from scipy.special import stdtrit

LEVEL = 0.02  # of the test
DEGREE = 3  # of the spline
POWERS = (2, 3)  # by which shapes may differ: fewer on a grid of less than five points
ONE_MORE = (2, 3, 4)  # what another power has elsewhere is doubtful: shapes differ as they like
FLIPS = 1000
STEPS, PRECISION = 20, 1e-5


@dataclass(frozen=True, eq=False)
class Translation:
    """Shifts of Z sizes, of zero sum.

    of_seeds     (Z, Z, S) what each seed of each size, the second axis, adds to each shift; linearised
    of_misfit    (Z, Z) covariance of the shifts by how much more the points scatter about the fit than the seeds explain
    doubts       (2, Z) by how much a spline of one degree less, and one more power in which shapes differ, have them elsewhere
    """

    shifts: Float[np.ndarray, " Z"]
    of_seeds: Float[np.ndarray, "Z Z S"]
    of_misfit: Float[np.ndarray, "Z Z"]
    doubts: Float[np.ndarray, "2 Z"]

    def slope(self, contrast: Float[np.ndarray, " Z"]) -> tuple[float, tuple[float, float]]:
        """contrast @ shifts, and its 95 % interval: Student's t, with degrees of freedom after Welch (1947), and a doubt."""
        parts = np.einsum("z,zws->ws", contrast, self.of_seeds)
        seeds, variances = parts.shape[1], parts.var(axis=1, ddof=1) * parts.shape[1]
        total = variances.sum()
        freedom = (seeds - 1) * (total**2 / np.sum(variances**2) if total else 1)
        reach = stdtrit(freedom, 0.975) * np.sqrt(total + contrast @ self.of_misfit @ contrast)
        slope, reach = float(contrast @ self.shifts), float(reach + np.abs(self.doubts @ contrast).max())
        return slope, (slope - reach, slope + reach)


def translation(x: Float[np.ndarray, " L"], losses: Float[np.ndarray, "Z S L"]) -> Translation | None:
    """None where the curves differ otherwise, by more than seeds explain, or on fewer than three points.

    Seeds are paired: a seed has one network at all learning rates, and what is common to them shifts nothing.
    """
    sizes, seeds, points = losses.shape
    if points < 3:
        return None
    mean = losses.mean(axis=1)
    shares = (losses / mean[:, None] - 1) / seeds  # of log mean loss, each seed's
    own = shares - shares.mean(axis=2, keepdims=True)
    weight = np.tile(1 / np.sqrt(np.mean(own**2, axis=(0, 1)) + np.finfo(float).tiny), sizes)
    weight /= weight.max()
    degree = min(DEGREE, points - 1)
    ways = [(degree, POWERS), (max(degree - 1, 2), POWERS), (degree, ONE_MORE)]
    fits = [_fit(x, np.log(mean), weight, degree, powers[: points - 3]) for degree, powers in ways]
    if None in fits:
        return None
    (shifts, gain, off), *others = fits
    flips = np.random.default_rng(0).choice([-1.0, 1.0], size=(FLIPS, sizes, seeds)) * np.sqrt(seeds / (seeds - 1))
    flipped = np.einsum("bzs,zsl->bzl", flips, shares).reshape(FLIPS, -1)
    beside, misfit = (np.sum((values @ off.T * weight) ** 2, axis=-1) for values in (flipped, np.log(mean).ravel()))
    if np.mean(beside >= misfit) <= LEVEL:
        return None
    unexplained = max(misfit - beside.mean(), 0) / np.trace(off)
    of_seeds = np.einsum("zwl,wsl->zws", gain.reshape(sizes, sizes, points), shares)
    doubts = shifts - np.array([elsewhere for elsewhere, *_ in others])
    return Translation(shifts, of_seeds, unexplained * (gain / weight**2) @ gain.T, doubts)


def _fit(x, y, weight, degree, powers):
    """Shifts (Z,) of curves y (Z, L), what takes y to them and what takes it to what the fit leaves: Gauss and Newton's steps.

    None where they do not end.
    """
    sizes, points = y.shape
    no_sum = np.linalg.svd(np.ones((1, sizes)))[2][1:].T
    own = np.repeat(no_sum, points, axis=0)  # (Z L, Z − 1) takes what is each size's own, of zero sum, to the points
    spline = make_interp_spline(x, np.eye(points), degree)
    moved, lowest = np.zeros(sizes - 1), x[y.mean(axis=0).argmin()]
    for _ in range(STEPS):
        at = np.tile(x, sizes) - own @ moved
        u = at - lowest
        linear = np.concatenate([spline(at), own, *(u[:, None] ** power * own for power in powers)], axis=1)
        values = np.linalg.lstsq(weight[:, None] * linear, weight * y.ravel())[0]
        changes = [change @ own.T for change in np.split(values[points:], 1 + len(powers))[1:]]
        of_changes = sum(power * u ** (power - 1) * change for power, change in zip(powers, changes, strict=True))
        curve = BSpline(spline.t, spline.c @ values[:points], degree)
        design = np.concatenate([-(curve.derivative()(at) + of_changes)[:, None] * own, linear], axis=1)
        inverse = np.linalg.pinv(weight[:, None] * design) * weight
        step = inverse[: sizes - 1] @ (y.ravel() - linear @ values)
        flat = PPoly.from_spline(curve.derivative()).roots(extrapolate=False)
        moved, lowest = moved + step, min([x[0], *flat[np.isfinite(flat)], x[-1]], key=curve)
        if not np.abs(moved).max() < np.ptp(x):
            return None
        if np.abs(step).max() < PRECISION:
            # the minimum of f moves with y, and with it what the changes are measured from
            of_lowest = -spline.derivative()(lowest) @ inverse[sizes - 1 :][:points] / curve.derivative(2)(lowest)
            gain = inverse[: sizes - 1] + np.outer(inverse[: sizes - 1] @ (of_changes + np.zeros_like(at)), of_lowest)
            return no_sum @ moved, no_sum @ gain, np.eye(sizes * points) - design @ inverse
    return None
