"""The models by name: which network, which limit, what the theory predicts.  One vocabulary for every command and figure."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np

from finite.networks import Network, Params
from finite.networks.mlp import ACTIVATIONS, mlp
from limits import Problem, Trajectory, fluctuations, linear2
from limits.fluctuations import Prediction
from limits.parametrization import output_exponent


@dataclass(frozen=True)
class Theory:
    """What is known of the limit.

    solve     problem → the limit that stands for all networks (in NTP its loss is the mean over f(0))
    predict   problem → the laws by which networks approach it
    gram      params → the initial Gram matrix S_0 of a network, float64
    match     (problem, width, gram) → the limit to be subtracted from that network: in NTP the one with its f(0)
    """

    solve: Callable[[Problem], Trajectory]
    predict: Callable[[Problem], Prediction]
    gram: Callable[[Params], np.ndarray]
    match: Callable[[Problem, int, np.ndarray], Trajectory]


@dataclass(frozen=True)
class Case:
    """A model: ``network(problem, width)``, its limit where there is one, and how long a Lanczos run can be at most."""

    network: Callable[[Problem, int], Network]
    theory: Theory | None = None
    max_matvecs: Callable[[Problem], int] = lambda problem: 100


def initial_gram(params: Params) -> np.ndarray:
    """S_0 = ZZᵀ/N of a two-layer network, Z = [E ; Vᵀ] (D+C, N)."""
    E, V = (np.asarray(params[role], np.float64) for role in ("input", "readout"))
    Z = np.concatenate([E, V.T])
    return Z @ Z.T / Z.shape[1]


def typical_limit(problem: Problem) -> Trajectory:
    """The limit; in NTP, whose loss depends on f(0), with the mean of the loss over initialisations."""
    limit = linear2.solve(problem)
    if output_exponent(problem.scaling()) == 0:
        return replace(limit, observables=limit.observables | {"loss": linear2.loss_law(problem)[0]})
    return limit


def matching_limit(problem: Problem, width: int, gram: np.ndarray) -> Trajectory:
    """The limit with the f(0) that the network of this Gram matrix has; in μP f(0) → 0 and there is one for all."""
    if output_exponent(problem.scaling()) != 0:
        return linear2.solve(problem)
    return linear2.solve(problem, initial_outputs=linear2.outputs_at_start(problem, width, gram))


def keys(seed: int, width: int, seeds: int) -> jax.Array:
    """One key per network of a width; networks of different widths are independent."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), width), seeds)


def case(model: str, depth: int = 2, activation: str = "tanh") -> Case:
    """The case of that name; depth and activation are those of "mlp".  Raises ValueError for an unknown name."""
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    return MODELS[model](depth, activation)


def _linear2(*_):
    theory = Theory(typical_limit, fluctuations.predict, initial_gram, matching_limit)
    return Case(lambda problem, width: mlp(problem, width, depth=1, activation="linear"), theory, _krylov_bound)


def _krylov_bound(problem):
    """No Krylov space of the two-layer linear Hessian has more dimensions than it has distinct eigenvalues.

    These are 3DC + C² outliers at most, ±cσ_i and 0 (``limits.curvature``).  A shorter basis compiles faster.
    """
    C = problem.num_outputs
    return min(100, 3 * problem.num_inputs * C + C**2 + 2 * C + 8)


def _mlp(depth, activation):
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    return Case(lambda problem, width: mlp(problem, width, depth=depth, activation=activation))


MODELS = {"linear2": _linear2, "mlp": _mlp}
