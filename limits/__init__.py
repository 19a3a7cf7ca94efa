"""Infinite width: the theory.  No random network is ever built here."""

from limits import curvature, fluctuations, linear2, ntk
from limits.problem import Problem, minibatches
from limits.size_algebra import Scaling
from limits.trajectory import OBSERVABLES, Trajectory

__all__ = [
    "OBSERVABLES", "Problem", "Scaling", "Trajectory",
    "curvature", "fluctuations", "linear2", "minibatches", "ntk",
]  # fmt: skip
