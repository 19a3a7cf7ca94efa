"""Infinite width: the theory.  No random network is ever built here."""

__version__ = "0.2.0"  # of the distribution superconsistency (pyproject.toml reads it here); it changes with the numbers

import limits.start  # noqa: F401  (before what takes seconds)

# isort: split
from limits.deep import dmft
from limits.deep import infinite_depth as depth
from limits.deep import linear as deep_linear
from limits.exponents.algebra import Scaling
from limits.kernel import ntk
from limits.problem import Problem, minibatches
from limits.theories import predict, solve
from limits.trajectory import OBSERVABLES, Trajectory
from limits.two_layer import linear as linear2
from limits.two_layer import linear_curvature as curvature
from limits.two_layer import linear_law as fluctuations
from limits.two_layer import meanfield

__all__ = [
    "OBSERVABLES",
    "Problem",
    "Scaling",
    "Trajectory",
    "curvature",
    "deep_linear",
    "depth",
    "dmft",
    "fluctuations",
    "linear2",
    "meanfield",
    "minibatches",
    "ntk",
    "predict",
    "solve",
]  # fmt: skip


def __dir__():
    """Without what only stands here because a file of its name was imported."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
