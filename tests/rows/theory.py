"""A toy theory: when it is asked, what it refuses, and what it knows."""

import numpy as np

from limits.theories import THEORIES, Theory
from limits.trajectory import Trajectory


def refuses(problem):
    return "the toy wants richness 1" if problem.richness != 1 else None


def solve(problem):
    return Trajectory(problem.steps, {"loss": np.full(len(problem.steps), 7.0)})


def predict(problem):
    return None  # no laws


def means(problem):
    return problem.model == "linear2" and problem.momentum > 0


THEORIES.add(Theory("toy", means, home=__name__, law=__name__), first=True)
