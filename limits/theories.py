"""The front door: which theory knows the limit of a problem.

    solve(problem) -> Trajectory        predict(problem) -> Prediction, or None where the rates have no theory yet

    powers of the width   model                             theory
    those of NTP, and     linear2                           ``linear2``     exact, at every width
    up to those of μP     all others, ConvNets too          ``ntk``         kernel gradient descent
    those of μP           linear2                           ``linear2``
                          linear3, …                        ``deep_linear`` exact
                          mlp2                              ``meanfield``   particles
                          mlp3, …, resmlp                   ``dmft``        sampled; exact for linear activations
                          all, only the readout trained     ``ntk``

With Nesterov, warm-up or a schedule linear models go the way of the others.
"""

from dataclasses import replace
from types import ModuleType

import numpy as np
from jaxtyping import Float

from limits.deep import dmft
from limits.deep import linear as deep_linear
from limits.exponents.parametrization import output_exponent
from limits.kernel import ntk
from limits.law import Prediction
from limits.problem import Problem, given_outputs, refuse_unknown_limit
from limits.trajectory import Trajectory
from limits.two_layer import linear as linear2
from limits.two_layer import linear_law as fluctuations
from limits.two_layer import meanfield


def theory(problem: Problem) -> ModuleType:
    """The module that knows the limit.  Raises ValueError, in one line, where none does."""
    refuse_unknown_limit(problem)
    of = _theory(problem)
    of.check(problem)
    return of


def _theory(problem):
    model, features_move = problem.network, output_exponent(problem.scaling()) == 0.5 and problem.trained == "all"
    one_layer = (model.architecture, model.family, model.depth) == ("plain", "perceptron", 1)
    if one_layer and linear2.knows(problem):
        return linear2
    if not features_move:
        return ntk
    if deep_linear.knows(problem):
        return deep_linear
    return meanfield if one_layer else dmft


def outputs_are_random(problem: Problem) -> bool:
    """Whether f(0) stays random in the limit: in NTP."""
    return output_exponent(problem.scaling()) == 0


def solve(problem: Problem, *, initial_outputs: Float[np.ndarray, "P C"] | None = None) -> Trajectory:
    """The limit, whatever the model.

    In NTP, where f(0) stays random, the loss is the mean over initialisations; with ``initial_outputs``, f(0), it is that
    of networks which start there.  Raises ValueError, in one line, where no limit is known or f(0) must vanish;
    MemoryError where it does not fit this machine; both before anything is computed.
    """
    of = theory(problem)
    if initial_outputs is not None:
        return of.solve(problem, initial_outputs=given_outputs(problem, initial_outputs))
    limit = of.solve(problem)
    if not outputs_are_random(problem):
        return limit
    return replace(limit, observables=limit.observables | {"loss": of.loss_law(problem)[0]})


def predict(problem: Problem) -> Prediction | None:
    """How networks of width N depart from the limit, where that is known: see ``limits.two_layer.linear_law``."""
    of, exponent = theory(problem), output_exponent(problem.scaling())
    if of is linear2 and exponent in (0.0, 0.5):
        return fluctuations.predict(problem)
    return of.predict(problem) if hasattr(of, "predict") else None
