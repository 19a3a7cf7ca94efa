"""By how much curves are shifted against each other: all of each tells it, not its lowest point alone.

Log mean loss of a size on the grid x = log η0 is, u = x − shift being the distance from its minimum,

    f(u) + height + c₂u² + c₃u³

where f, a spline through as many values as the grid has points, is common to all sizes, and the rest is each size's own: a
curve may bend more than another, and lean over, without its minimum having moved.  Least squares.  Whether that is all in which
the curves differ is tested.  Where nothing moves it is right whatever f is; where something does, as far as a spline can follow
f between the points: of a wall e^4x that itself comes nearer with the size, on a grid of factors of three and under 10 % noise,
it cannot, and "transfers" may be said of N^0.12.  And where shapes differ by what near the minimum is a leaning that ends soon,
u³ becoming a constant, no powers of u are that, nor does noise of 3 % show it: by 0.1 tanh³u more for each e-fold of the size,
"transfers" is said of N^0.11 in 4 of 10.  ``tests/benchmarks/verdicts.py`` prints how often.

A curve that leans over pulls its shift along by as much as u³ is not how it leans.  So other ways of differing are fitted too,
and the interval reaches as far as those that explain the curves put the shift, in so far as that is more than chance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.interpolate import BSpline, PPoly, make_interp_spline
from scipy.special import stdtrit

LEVEL = 0.02  # of the test
DEGREE = 3  # of the spline
POWERS = (2, 3)  # by which shapes may differ: fewer on a grid of less than five points
ELSEWHERE = (2, 3, 4), (2, 2.5)  # what these have elsewhere is doubtful: one more power, and a leaning that far out is less
FLIPS = 1000
STEPS, PRECISION = 20, 1e-5


@dataclass(frozen=True, eq=False)
class Translation:
    """Shifts of Z sizes, of zero sum.

    of_seeds     (Z, Z, S) what each seed of each size, the second axis, adds to each shift; linearised
    of_misfit    (Z, Z) covariance of the shifts by how much more the points scatter about the fit than the seeds explain
    doubts       (3, Z) by how much a spline of one degree less, and the powers ``ELSEWHERE``, have them elsewhere
    of_doubts    (3, Z, Z, S) and what each seed adds to that
    """

    shifts: Float[np.ndarray, " Z"]
    of_seeds: Float[np.ndarray, "Z Z S"]
    of_misfit: Float[np.ndarray, "Z Z"]
    doubts: Float[np.ndarray, "3 Z"]
    of_doubts: Float[np.ndarray, "3 Z Z S"]

    def slope(self, contrast: Float[np.ndarray, " Z"], confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
        """contrast @ shifts, and its interval: Student's t, with degrees of freedom after Welch (1947), and the doubts.

        Of a doubt d with the variance v by chance remains d (1 − v/d²), nothing where v is more (James & Stein 1961).
        """
        seeds, variances = self.of_seeds.shape[-1], _variances(contrast, self.of_seeds)
        total = variances.sum()
        freedom = (seeds - 1) * (total**2 / np.sum(variances**2) if total else 1)
        reach = stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(total + contrast @ self.of_misfit @ contrast)
        slope, doubts = float(contrast @ self.shifts), self.doubts @ contrast
        chance = _variances(contrast, self.of_doubts).sum(axis=-1)
        moved = -doubts * np.maximum(1 - chance / np.maximum(doubts**2, np.finfo(float).tiny), 0)
        return slope, (float(slope + min(0, *moved) - reach), float(slope + max(0, *moved) + reach))


def _variances(contrast, of_seeds):
    """(…, Z): by the seeds of each size, of a contrast of what they add, (…, Z, Z, S)."""
    parts = np.einsum("z,...zws->...ws", contrast, of_seeds)
    return parts.var(axis=-1, ddof=1) * parts.shape[-1]


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
    ways = [(degree, POWERS), (max(degree - 1, 2), POWERS), *((degree, powers) for powers in ELSEWHERE)]
    fits = [_fit(x, np.log(mean), weight, degree, powers[: points - 3]) for degree, powers in ways]
    if None in fits:
        return None
    flips = np.random.default_rng(0).choice([-1.0, 1.0], size=(FLIPS, sizes, seeds)) * np.sqrt(seeds / (seeds - 1))
    flipped = np.einsum("bzs,zsl->bzl", flips, shares).reshape(FLIPS, -1)
    besides, misfits = (np.array([np.sum((values @ off.T * weight) ** 2, axis=-1) for *_, off in fits])
                        for values in (flipped, np.log(mean).ravel()))  # fmt: skip
    possible = np.mean(besides >= misfits[:, None], axis=1) > LEVEL
    if not possible[0]:
        return None
    (shifts, gain, off), possible[1] = fits[0], True  # a spline that is rougher tells about the better one
    unexplained = max(misfits[0] - besides[0].mean(), 0) / np.trace(off)
    gains = np.reshape([by for _, by, _ in fits], (-1, sizes, sizes, points))
    of_seeds, *of_others = np.einsum("kzwl,wsl->kzws", gains, shares)
    doubts = possible[1:, None] * (shifts - np.array([places for places, *_ in fits[1:]]))
    of_doubts = of_seeds - np.array(of_others)
    return Translation(shifts, of_seeds, unexplained * (gain / weight**2) @ gain.T, doubts, of_doubts)


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
        linear = np.concatenate([spline(at), own, *(_power(u, power)[:, None] * own for power in powers)], axis=1)
        values = np.linalg.lstsq(weight[:, None] * linear, weight * y.ravel())[0]
        changes = [change @ own.T for change in np.split(values[points:], 1 + len(powers))[1:]]
        of_changes = sum(power * _power(u, power - 1) * change for power, change in zip(powers, changes, strict=True))
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


def _power(u, power):
    """|u|^power, with the sign that the next whole power has."""
    return np.abs(u) ** power * np.sign(u) ** np.ceil(power)
