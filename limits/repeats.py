"""The error of what is computed from few independent repeats of something sampled.

The true value is within twice the error in at least 95 % of draws.  Its parts are added in squares:

the scatter     the standard error from R repeats, times t/1.96, t the 97.5 % quantile of Student's t with R − 1 degrees: 1.62
                for four, 1.21 for eight
the repulsion   eigenvalues of a noisy matrix keep their distance, in every repeat, and no scatter shows it.  A multiple one
                comes out split by about the noise of an entry (Wigner): those that are not apart may all be their mean.  Of
                two that are, each is pushed by noise²/gap.
the drift       past the edge of stability repeats drift apart, and the mean of losses o that scatter by σ is off what many
                samples do by up to about 2σ²/o.  So beside the error of R repeats stands min(1, 2σ/o) times that of one, of all
                observables; and what their mean outputs have less of than they have on average
"""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from limits.problem import Problem
from limits.trajectory import OBSERVABLES, RANK

Observables = dict[str, np.ndarray]

TWO_SIDED = 0.975
APART = 4.0  # times the noise
CURVED = 2.0  # the drift's.  Of mlp3 at η0 = 1.9 … 5 one would do, too


def check_repeats(repeats: int) -> None:
    """Raises ValueError for fewer than two."""
    if repeats < 2:
        raise ValueError(f"{repeats} repeats: a standard error needs two")


def scatter(of_repeats: Float[np.ndarray, "R *shape"]) -> Float[np.ndarray, "*shape"]:
    """Half of what the mean over the first axis is off by at most in 95 % of draws, as far as the repeats tell."""
    R = len(of_repeats)
    with np.errstate(all="ignore"):  # after a divergence
        return np.std(of_repeats, 0, ddof=1) * stdtrit(R - 1, TWO_SIDED) / stdtrit(np.inf, TWO_SIDED) / np.sqrt(R)


def repulsion(values: Float[np.ndarray, "T k"], noise: Float[np.ndarray, "T k"]) -> Float[np.ndarray, "T k"]:
    """How far eigenvalues, in order, may be pushed from their true places by entries of this standard deviation."""
    with np.errstate(all="ignore"):  # after a divergence, and zeros among zeros
        apart = -np.diff(values) > APART * np.maximum(noise[:, 1:], noise[:, :-1])
        group = np.cumsum(np.pad(apart, ((0, 0), (1, 0))), 1)
        together = group[:, :, None] == group[:, None, :]
        centre = np.einsum("tkj,tj->tk", together, values) / together.sum(2)
        gaps = np.where(together, np.inf, np.abs(values[:, :, None] - values[:, None, :]))
        return np.abs(values - centre) + np.sum(noise[:, :, None] ** 2 / gaps, 2)


def error_of_eigenvalues(
    values: Float[np.ndarray, "T k"], of_repeats: Float[np.ndarray, "R T k"], *, averaged: int
) -> Float[np.ndarray, "T k"]:
    """Of ``values``, each an eigenvalue of a matrix that is the mean of so many repeats', or a mean of such."""
    spread = scatter(of_repeats)
    return np.hypot(spread, repulsion(values, spread * np.sqrt(len(of_repeats) / averaged)))


def drift(problem: Problem, values: Observables, of_repeats: Observables) -> Float[np.ndarray, " T"]:
    """By how much of one repeat's error their mean may be off, zero before the edge: the Gauss-Newton part tells, which every
    theory of repeats has, and how far they are apart the loss.  A crossing that is over at the next measured step is not seen.
    """
    crossed = np.logical_or.accumulate(values["gauss_newton_eigenvalues"][:, 0] > problem.edge_of_stability)
    with np.errstate(all="ignore"):  # after a divergence
        apart = np.std(of_repeats["loss"], 0, ddof=1) / np.abs(values["loss"])
    return np.maximum.accumulate(np.where(crossed, np.fmin(CURVED * apart, 1.0), 0.0))


def errors_of(
    values: Observables, of_repeats: Observables, drifts: Float[np.ndarray, " T"], *, averaged: int
) -> Observables:
    """Of every observable; ``of_repeats`` has the repeats on a first axis.  ``drifts`` as ``drift`` has it, ``averaged`` as in
    ``error_of_eigenvalues``."""
    errors = {
        name: error_of_eigenvalues(values[name], repeats, averaged=averaged) if _ranked(name) else scatter(repeats)
        for name, repeats in of_repeats.items()
    }
    return {name: _with_drift(error, values[name], of_repeats[name], drifts) for name, error in errors.items()}


def _with_drift(error, value, of_repeats, drifts):
    drifts = drifts.reshape(-1, *[1] * (value.ndim - 1))
    with np.errstate(all="ignore"):  # after a divergence
        of_one = np.sqrt(len(of_repeats)) * error
        drifted = np.hypot(np.hypot(error, drifts * of_one), np.mean(of_repeats, 0) - value)
    return np.where(drifts > 0, drifted, error)


def first_ranks(observables: Observables, k: int) -> Observables:
    """With k eigenvalues of each.  The errors want more, for what the rest does to the last: C outputs have kernels whose
    eigenvalues are C-fold."""
    return {name: values[:, :k] if _ranked(name) else values for name, values in observables.items()}


def _ranked(name):
    return OBSERVABLES[name].axis is RANK
