"""The models by name: which network, which limit, what the theory predicts.  One vocabulary for every command and figure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from finite.networks import Network, Params
from finite.networks.mlp import check_sizes, mlp
from finite.networks.resmlp import resmlp
from limits import Problem, Scaling, Trajectory, fluctuations, linear2, ntk, regimes
from limits.fluctuations import Prediction
from limits.parametrization import output_exponent, read_scaling


@dataclass(frozen=True)
class Theory:
    """What is known of the limit.

    solve     problem → the limit that stands for all networks (in NTP its loss is the mean over f(0))
    predict   problem → the laws by which networks approach it; None where they are not known
    start     (problem, network, params) → what the theory has to know of a network's initial weights, float64
    match     (problem, width, start) → the limit to be subtracted from that network: in NTP the one with its f(0)
    """

    solve: Callable[[Problem], Trajectory]
    predict: Callable[[Problem], Prediction | None]
    start: Callable[[Problem, Network, Params], np.ndarray]
    match: Callable[[Problem, int, np.ndarray], Trajectory]


@dataclass(frozen=True)
class Case:
    """A model.

    network      (problem, width) → the network
    limit        output exponent a (0 in NTP, 1/2 in μP) → the theory, where there is one
    max_matvecs  problem → how long a Lanczos run can be at most
    """

    network: Callable[[Problem, int], Network]
    architecture: str = "plain"
    depth: int = 1
    block_size: int = 1
    limit: Callable[[float], Theory | None] = lambda exponent: None
    max_matvecs: Callable[[Problem], int] = lambda problem: 100

    def scaling(self, param: str, optimizer: str = "sgd") -> Scaling:
        """The exponents that a name, a file or a text stand for.  Raises ValueError in one line."""
        return read_scaling(param, optimizer, self.architecture, depth=self.depth)

    def derived(self, given: Scaling) -> regimes.Case:
        """What the algebra of sizes says of them."""
        depth = self.depth if self.architecture == "plain" else 1
        return regimes.case(given, depth=depth, block_size=self.block_size)

    def theory(self, given: Scaling) -> Theory | None:
        """The limit, if it is known for these exponents."""
        try:
            exponent = output_exponent(given)
        except ValueError:
            return None
        return self.limit(exponent)


def regime(case: Case, given: Scaling) -> str:
    """One line: what training does in this parametrization."""
    verdict = regimes.classify(case.derived(given))
    return f"{given.name}, {given.optimizer}: {verdict.regime}; {verdict.reason}"


def initial_gram(problem: Problem, network: Network, params: Params) -> np.ndarray:
    """S_0 = ZZᵀ/N of a two-layer network, Z = [E ; Vᵀ] (D+C, N), in units of the weights' standard deviation."""
    std = network.numbers("init_std")
    E, V = (np.asarray(params[role], np.float64) / std[role] for role in ("input", "readout"))
    Z = np.concatenate([E, V.T])
    return Z @ Z.T / Z.shape[1]


def typical_limit(problem: Problem) -> Trajectory:
    """The limit; in NTP, whose loss depends on f(0), with the mean of the loss over initialisations."""
    limit = linear2.solve(problem)
    if output_exponent(problem.scaling()) == 0:
        return replace(limit, observables=limit.observables | {"loss": linear2.loss_law(problem)[0]})
    return limit


def known_laws(problem: Problem) -> Prediction | None:
    """The predicted laws in μP and NTP; between the two there are none."""
    return fluctuations.predict(problem) if output_exponent(problem.scaling()) in (0.0, 0.5) else None


def matching_limit(problem: Problem, width: int, gram: np.ndarray) -> Trajectory:
    """The limit with the f(0) that the network of this Gram matrix has; in μP f(0) → 0 and there is one for all."""
    if output_exponent(problem.scaling()) != 0:
        return linear2.solve(problem)
    return linear2.solve(problem, initial_outputs=linear2.outputs_at_start(problem, width, gram))


def initial_outputs(problem: Problem, network: Network, params: Params) -> np.ndarray:
    """f(0) (P, C)"""
    return np.asarray(network.apply(params, jnp.asarray(problem.inputs, jnp.float32)), np.float64)


def _typical_kernel_limit(problem, depth, activation):
    """As ``typical_limit``, of a multilayer perceptron."""
    limit = ntk.solve(problem, depth=depth, activation=activation)
    if output_exponent(problem.scaling()) == 0:
        mean, _ = ntk.loss_law(problem, depth=depth, activation=activation)
        return replace(limit, observables=limit.observables | {"loss": mean})
    return limit


def keys(seed: int, width: int, seeds: int) -> jax.Array:
    """One key per network of a width; networks of different widths are independent."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), width), seeds)


def case(model: str, depth: int = 2, activation: str = "tanh", block_size: int = 1) -> Case:
    """The case of that name; depth and activation are those of "mlp" and "resmlp".

    Raises ValueError for an unknown name, a depth below 1 and an unknown activation.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    check_sizes(1, depth, activation)
    return MODELS[model](depth, activation, block_size)


def _linear2(*_):
    theory = Theory(typical_limit, known_laws, initial_gram, matching_limit)
    return Case(lambda problem, width: mlp(problem, width), limit=lambda exponent: theory, max_matvecs=_krylov_bound)


def _krylov_bound(problem):
    """No Krylov space of the two-layer linear Hessian has more dimensions than it has distinct eigenvalues.

    These are 3DC + C² outliers at most, ±cσ_i and 0 (``limits.curvature``).  A shorter basis compiles faster.
    """
    C = problem.num_outputs
    return min(100, 3 * problem.num_inputs * C + C**2 + 2 * C + 8)


def _mlp(depth, activation, _):
    sizes = {"depth": depth, "activation": activation}
    kernel = Theory(
        solve=partial(_typical_kernel_limit, **sizes),
        predict=lambda problem: None,
        start=initial_outputs,
        match=lambda problem, width, outputs: ntk.solve(problem, **sizes, initial_outputs=outputs),
    )
    build = lambda problem, width: mlp(problem, width, depth, activation)  # noqa: E731
    return Case(build, "plain", depth, limit=lambda exponent: kernel if exponent < 0.5 else None)


def _resmlp(depth, activation, block_size):
    build = lambda problem, width: resmlp(problem, width, depth, activation, block_size)  # noqa: E731
    return Case(build, "residual", depth, block_size)


MODELS = {"linear2": _linear2, "mlp": _mlp, "resmlp": _resmlp}
