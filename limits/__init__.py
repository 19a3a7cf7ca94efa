"""Infinite width: the theory.  No random network is ever built here."""

from limits import curvature, deep_linear, depth, dmft, fluctuations, linear2, meanfield, ntk
from limits.limit import predict, solve
from limits.problem import Problem, minibatches
from limits.size_algebra import Scaling
from limits.trajectory import OBSERVABLES, Trajectory

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
