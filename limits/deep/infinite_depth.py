"""Residual networks of infinite depth, behind the limit of infinite width: extrapolated from networks of finite depth.

Where branches carry L^{-1/2} (Depth-μP) or L^{-1} (α = 1) and L blocks together move by order one, the stream of L blocks is
an Euler scheme of step 1/L, of a stochastic or an ordinary differential equation (Bordelon et al. 2023; Yang et al. 2023),
and every observable has an expansion

    o(L) = o(∞) + c₁/L + c₂/L² + …,        e.g. (1 + 1/L)^L = e (1 − 1/(2L) + …), the stream's kernel at step 0

Depths L, 2L and 4L, each solved by ``limits.deep.dmft``, give o(∞) without c₁ and c₂ (Richardson 1911; for weak errors of
stochastic equations Talay & Tubaro 1990):  o(∞) ≈ (o(L) − 6 o(2L) + 8 o(4L))/3.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from limits.deep import dmft
from limits.exponents.algebra import ONE
from limits.exponents.parametrization import gauge
from limits.problem import Problem
from limits.theories import insist
from limits.trajectory import Trajectory, hessian_left_open


def solve(problem: Problem, *, samples: int = 8192, repeats: int = 8, seed: int = 0) -> Trajectory:
    """The limit L → ∞ of what ``dmft.solve`` measures, from the problem's own depth, twice and four times that.

    ``errors`` adds three in squares: the distance from the extrapolation without the smallest depth, which leaves c₂; should
    c₂ happen to be small, the distance of depth 4L over L², the size of the next terms; and the standard error of the
    samples, which the extrapolation makes about 3.3 times larger.

    Raises ValueError, in one line, where there is no such limit, and else as ``dmft.solve``.
    """
    insist(refuses(problem))
    depths = [problem.network.depth * factor for factor in (1, 2, 4)]
    options = {"samples": samples, "repeats": repeats, "seed": seed, "hessian": False}
    trajectories = [dmft.solve(replace(problem, depth=depth), **options) for depth in depths]
    values, errors = {}, {}
    for name in trajectories[0].observables:
        of_depths = np.stack([trajectory[name] for trajectory in trajectories])
        sampling = np.stack([trajectory.error(name) for trajectory in trajectories])
        values[name] = _combined(weights(depths), of_depths)
        second = values[name] - _combined(weights(depths[1:]), of_depths[1:])
        third = (values[name] - of_depths[-1]) / depths[0] / depths[0]
        errors[name] = np.sqrt(second**2 + third**2 + _combined(weights(depths) ** 2, sampling**2))
    left_open = hessian_left_open("only kernels are extrapolated to infinite depth")
    return Trajectory(problem.steps, values, errors, left_open=left_open)


def weights(depths: list[int]) -> Float[np.ndarray, " n"]:
    """Of values at n depths in their extrapolation to infinity, where the first n − 1 powers of 1/L cancel."""
    powers = np.vander(1.0 / np.array(depths), increasing=True)
    return np.linalg.solve(powers.T, np.eye(len(depths))[0])


def _combined(weights, of_depths):
    with np.errstate(invalid="ignore"):  # a divergence
        return np.tensordot(weights, of_depths, 1)


def refuses(problem: Problem) -> str | None:
    """Where branches or their learning rates have other powers of the depth than those with which the limit exists."""
    if problem.network.architecture != "residual":
        return f"model {problem.model!r} has no limit of infinite depth: resmlp has"
    scaling = gauge(problem.scaling())
    branch, rate = scaling["block"].multiplier.L, scaling["block"].learning_rate.L
    ends = {(scaling[role].multiplier.L, scaling[role].learning_rate.L) for role in ("input", "readout")}
    if branch not in (Fraction(-1, 2), -1) or 2 * branch + rate != -1 or ends != {(ONE.L, ONE.L)}:
        return (
            f"{scaling.name} has no known limit of infinite depth: branches want L^(-1/2) or L^(-1), their learning rate "
            "the power of L that makes the blocks together move by order one, input and readout none; as depth_mup and alpha1"
        )
    return None
