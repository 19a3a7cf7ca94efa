"""Infinite width: the theory.  No random network is ever built here."""

from limits import curvature, fluctuations, linear2
from limits.parametrization import MUP, NTP, Parametrization
from limits.problem import Problem, minibatches
from limits.trajectory import OBSERVABLES, Trajectory

__all__ = [
    "MUP", "NTP", "OBSERVABLES", "Parametrization", "Problem", "Trajectory",
    "curvature", "fluctuations", "linear2", "minibatches",
]  # fmt: skip
