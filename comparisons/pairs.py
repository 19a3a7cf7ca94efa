"""Each network beside its limit: its key, its f(0) and Gram matrix, the limit to be subtracted from it."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from comparisons import results
from finite.curvature.observers import longest_basis
from finite.networks import Network
from finite.networks.build import build
from limits import Problem, Trajectory
from limits import theories as limit
from limits.losses import LOSSES
from limits.machine import computing
from limits.trajectory import IN_BULK, without_limit


@dataclass(frozen=True)
class Limit:
    """The cell of the infinite network of a parametrization and a depth."""

    param: str
    depth: int

    @property
    def name(self) -> str:
        return f"{results.slug(self.param)}-L{self.depth}-limit"

    def __str__(self):
        return f"{self.param} L = {self.depth} limit"


def keys(seed: int, width: int, seeds: int, depth: int | None = None) -> Array:
    """One key per network of a width (and, where it is given, a depth); networks of different sizes are independent."""
    network_keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), width), seeds)
    return network_keys if depth is None else jax.vmap(lambda key: jax.random.fold_in(key, depth))(network_keys)


def refused(problem: Problem, *, hessian: bool = True, times: int = 1) -> str | None:
    """The line that says why no theory finds it, or so many like it: unknown, too long or too large; None where one does.

    Raises ImportError where the theory's package is not installed.
    """
    try:
        limit.insist_on_room(problem, hessian=hessian, times=times)
    except (ValueError, MemoryError) as refusal:
        return str(refusal)
    return None


def why_no_limit(problem: Problem, *, hessian: bool = True, times: int = 1) -> str | None:
    """The line that says why there is none to be drawn beside networks: refused, or a package is not installed."""
    try:
        return refused(problem, hessian=hessian, times=times)
    except ImportError as lacking:
        return str(lacking)


def why_no_laws(problem: Problem) -> str | None:
    """The line that says why nobody waits for the laws of the deviations from a limit that is known; None where one does."""
    try:
        limit.insist_on_room_for_laws(problem)
    except (ValueError, MemoryError) as refusal:
        return str(refusal)
    return None


def matching_limits(problem: Problem, width: int, keys: Array, typical: Trajectory) -> list[Trajectory]:
    """What is to be subtracted from each network: the limit that has its f(0); in μP f(0) → 0 and there is one for all."""
    if not limit.outputs_are_random(problem):
        return [typical] * len(keys)
    network = build(problem, width)
    return [limit.solve(problem, initial_outputs=initial_outputs(problem, network, key)) for key in keys]


def left_open(limit: Trajectory) -> dict[str, str]:
    """The observables whose (largest) value has an infinite error at all steps, and so no limit: why."""
    return {name: IN_BULK for name in limit.observables if without_limit(limit, name).all()}


def only(trajectory: Trajectory, names: Collection[str]) -> Trajectory:
    """With no other observables."""
    parts = {part: {name: values for name, values in getattr(trajectory, part).items() if name in names}
             for part in ("observables", "errors", "products")}  # fmt: skip
    return replace(trajectory, **parts)


def initial_outputs(problem: Problem, network: Network, key: Array) -> Float[np.ndarray, "P C"]:
    """f(0), in float64."""
    with computing("float64"):
        params = jax.tree.map(lambda w: jnp.asarray(w, float), network.init(key))
        return np.asarray(network.apply(params, jnp.asarray(problem.inputs)))


def initial_gram(network: Network, key: Array) -> Float[np.ndarray, "n n"]:
    """S_0 = ZZᵀ/N of a two-layer network, Z = [E ; Vᵀ] (D+C, N), in units of the weights' standard deviation."""
    params, std = network.init(key), network.numbers("init_std")
    E, V = (np.asarray(params[role], np.float64) / std[role] for role in ("input", "readout"))
    Z = np.concatenate([E, V.T])
    return Z @ Z.T / Z.shape[1]


def max_matvecs(problem: Problem) -> int:
    """How long a Lanczos run can be at most.

    No Krylov space of a two-layer linear Hessian has more dimensions than it has distinct eigenvalues: 3DC + C² outliers at
    most, ±cσ_i and 0 (``limits.two_layer.linear_curvature``).  A shorter basis compiles faster.
    """
    model, C = problem.network, problem.num_outputs
    if (model.architecture, model.depth) != ("plain", 1) or not LOSSES[problem.loss].quadratic or not model.nonlinearity.linear:
        return longest_basis(problem)
    return min(longest_basis(problem), 3 * problem.num_inputs * C + C**2 + 2 * C + 8)
