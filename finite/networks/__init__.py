"""Networks of width N: pure functions over a pytree of weights, one file per architecture.

An *architecture* knows no power of the width: its forward pass takes the weights as they act, h = x W.  A *network* is an
architecture with the numbers that a parametrization prescribes for each role at one width and depth: its stored weights θ
act as multiplier · θ, start with the standard deviation init_std, and are trained at η0 · learning_rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from math import prod
from threading import Lock
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from limits.exponents.algebra import Scaling
from limits.exponents.parametrization import Factors, factors
from limits.machine import computing
from limits.problem import Problem

Params = PyTree[Float[Array | np.ndarray, "..."]]  # a dictionary whose top-level keys are the roles: input, hidden, readout, …
Apply = Callable[[Params, Float[Array, "P D"]], Float[Array, "P C"]]

ROW = 2**15  # numbers at least in one draw


class LayerFactors(NamedTuple):
    """∂f_c(x_p)/∂W = a(p) b(p, c)ᵀ of one weight matrix W (m, n), or of a stack of them."""

    a: Float[Array, "*stack P m"]
    b: Float[Array, "*stack P C n"]


class Signal(NamedTuple):
    """What arrives at a layer, already activated, and what its matrix makes of it.

    A row is a sample, or one place in it: a pixel that a kernel stands on, a token.
    """

    arriving: Float[Array, "rows m"] | None
    output: Float[Array, "rows n"]


@dataclass(frozen=True, eq=False)
class Architecture:
    """Functions of weights; it holds none.

    init              key → params, always drawn in float32, so that one key is one network at either precision: N(0, 1), but
                      the gains of a normalisation are 1; in NumPy, unless it is traced
    apply             (params, inputs (P, D)) → outputs f (P, C), in the params' precision
    layerwise_linear  f is linear in each single weight matrix, hence tr R = 0 and tr H = tr G exactly
    layer_factors     (params, inputs) → ``LayerFactors`` in place of every leaf of the params, or None where the weights
                      are not plain matrices
    matrices          params → the weights of each layer, by the layer names of ``limits.exponents.regimes``, or role and
                      another word; of many residual blocks, those of the last; linear in the params
    signals           (params, inputs) → the ``Signal`` of each of these layers; "stream" behind residual blocks has only
                      an output
    places            pixels or tokens of the widest layer: what it holds of a sample is ``places`` times the width

    Compiled functions are keyed on the object: builders return the same one for the same arguments.
    """

    init: Callable[[Array], Params]
    apply: Apply
    layerwise_linear: bool = False
    layer_factors: Callable[[Params, Float[Array, "P D"]], PyTree] | None = None
    matrices: Callable[[Params], dict[str, Array]] | None = None
    signals: Callable[[Params, Float[Array, "P D"]], dict[str, Signal]] | None = None
    places: int = 1


@dataclass(frozen=True, eq=False)
class Network(Architecture):
    """An architecture at the numbers of a parametrization; ``init`` and ``apply`` are of the stored weights.

    width, depth, richness    N, L, γ0
    scaling                   the exponents
    factors                   what they amount to, by role
    trained                   "all" roles, or "readout"
    architecture              what is left without them: functions of the acting weights; its ``init`` draws N(0, 1)
    """

    width: int = 0
    depth: int = 0
    richness: float = 1.0
    trained: str = "all"
    scaling: Scaling | None = None
    factors: Mapping[str, Factors] | None = None
    architecture: Architecture | None = None

    def numbers(self, quantity: str) -> dict[str, float]:
        """One of multiplier, init_std, learning_rate and gradient, by role."""
        return {role: getattr(numbers, quantity) for role, numbers in self.factors.items()}


def once(build: Callable[..., Architecture]) -> Callable[..., Architecture]:
    """The builder with a memory that threads share: two that ask at once get the same object."""
    remembered, turn = cache(build), Lock()

    @wraps(build)
    def built(*sizes):
        with turn:
            return remembered(*sizes)

    return built


def parametrized(
    architecture: Architecture, problem: Problem, kind: str, width: int, depth: int, block_size: int = 1
) -> Network:
    """The architecture, "plain" or "residual" and of that width and depth, at the numbers of the problem's parametrization.

    Raises ValueError where the parametrization is not of such networks, or has no exponents for a role.
    """
    given, richness, trained = problem.scaling(kind, depth), problem.richness, problem.trained
    numbers, roles = factors(given, width, depth, richness=richness, block_size=block_size), roles_of(architecture)
    if missing := [role for role in roles if role not in numbers]:
        raise ValueError(f"{given.name} has no exponents for {', '.join(missing)}")
    numbers = {role: numbers[role] for role in roles}
    architecture = readout_only(architecture) if trained == "readout" else architecture
    std = {role: of_role.init_std for role, of_role in numbers.items()}
    stored = acting_through(architecture, {role: of_role.multiplier for role, of_role in numbers.items()})
    return Network(
        init=lambda key: jax.device_put(by_role(std, architecture.init(key))),
        apply=stored.apply,
        layerwise_linear=stored.layerwise_linear,
        layer_factors=stored.layer_factors,
        places=stored.places,
        width=width,
        depth=depth,
        richness=richness,
        trained=trained,
        scaling=given,
        factors=numbers,
        architecture=architecture,
    )


def roles_of(architecture: Architecture) -> list[str]:
    """The top-level keys of its params, but those that hold no weights."""
    params = jax.eval_shape(architecture.init, jax.random.key(0))
    return [role for role, of_role in params.items() if jax.tree.leaves(of_role)]


@once
def readout_only(architecture: Architecture) -> Architecture:
    """The same function of all weights, with derivatives in the readout's only (random features): linear in these."""

    def apply(params, inputs):
        held = {role: of_role if role == "readout" else jax.lax.stop_gradient(of_role) for role, of_role in params.items()}
        return architecture.apply(held, inputs)

    return replace(architecture, apply=apply, layerwise_linear=True, layer_factors=None)


def acting_through(architecture: Architecture, multipliers: Mapping[str, float | Array]) -> Architecture:
    """The same functions of weights that act as multiplier · weights (``init`` is left as it is)."""

    def apply(params, inputs):
        return architecture.apply(by_role(multipliers, params), inputs)

    def layer_factors(params, inputs):
        pairs = architecture.layer_factors(by_role(multipliers, params), inputs)
        return {
            role: jax.tree.map(
                lambda pair: LayerFactors(multipliers[role] * pair.a, pair.b), of_role, is_leaf=is_layer_factors  # noqa: B023
            )
            for role, of_role in pairs.items()
        }

    has = architecture.layer_factors is not None
    linear, places = architecture.layerwise_linear, architecture.places
    return Architecture(architecture.init, apply, linear, layer_factors if has else None, places=places)


def standard_normal(key: Array, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Weights N(0, 1) of these shapes, as ``normal`` draws them."""
    keys = jax.random.split(key, len(shapes))
    return {name: normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def normal(key: Array, shape: tuple[int, ...]) -> Float[Array | np.ndarray, "..."]:
    """``jax.random.normal(key, shape)`` in float32, bit for bit.

    Not traced, it is the beginning of one long row, in NumPy: a draw of any length begins with the same numbers, and so one
    compiled program serves all shapes (of larger ones each has its own), at either precision of the process.
    """
    if isinstance(key, jax.core.Tracer):
        return jax.random.normal(key, shape, jnp.float32)
    size = prod(shape)
    with computing("float32"):
        return np.asarray(_row(key, max(size, ROW)))[:size].reshape(shape)


@partial(jax.jit, static_argnums=1)
def _row(key, size):
    return jax.random.normal(key, (size,), jnp.float32)


def rowwise(x: Float[Array, "*rows m"], weights: Float[Array, "m n"]) -> Float[Array, "*rows n"]:
    """x W as a product of two matrices: with more dimensions in front, XLA's gradient takes three times as long on a CPU.

    (Of W in a compiled loop; jaxlib 0.10.2.)
    """
    return (x.reshape(-1, len(weights)) @ weights).reshape(*x.shape[:-1], -1)


def one_hot_outputs(num_outputs: int, inputs: Float[Array, "P D"]) -> Float[Array, "C P C"]:
    """The cotangents that pull back ∂f_c for each c: samples do not mix, so one pass per output serves all samples."""
    one_hot = jnp.eye(num_outputs, dtype=inputs.dtype)[:, None, :]
    return jnp.broadcast_to(one_hot, (num_outputs, len(inputs), num_outputs))


def by_role(numbers: Mapping[str, float | Array], params: Params) -> Params:
    """Every weight times the number of its role, in the weights' precision; in NumPy where both are.

    There it compiles nothing, and a product of two numbers is the same everywhere.
    """

    def times(number, leaf):
        with np.errstate(over="ignore"):  # then it diverges
            return leaf * (number if isinstance(number, jax.Array) else np.asarray(number)).astype(leaf.dtype)

    return {
        role: jax.tree.map(lambda leaf: times(numbers[role], leaf), of_role)  # noqa: B023
        for role, of_role in params.items()
    }


def is_layer_factors(leaf) -> bool:
    return isinstance(leaf, LayerFactors)
