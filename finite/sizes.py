"""How large is what in a network: the measured side of ``limits.exponents.regimes.predicted``, under the same names.

Sizes are root mean squares over entries, samples and outputs.  Stored weights are those without their multiplier.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from finite.curvature import operators as curvature
from finite.networks import Network, Params, by_role, is_layer_factors, normal
from finite.training.descent import Descent, descent
from limits.losses import LOSSES
from limits.machine import computing
from limits.optimizers import OPTIMIZERS
from limits.problem import Problem

POWER_ITERATIONS = 12
READOUTS = 64

Sizes = Mapping[str, Mapping[str, np.ndarray]]  # quantity → layer → values


def measure(problems: Sequence[Problem], networks: Sequence[Network], keys: Array, precision: str = "float32") -> Sizes:
    """The sizes at step 0 and after ``num_steps`` full-batch steps: quantity → layer → (networks, seeds).

    problems, networks   one of each per parametrization, otherwise alike: one compiled program serves all
    keys                 (seeds,); networks of one seed start from the same N(0, 1) draws

        h                        pre-activations at step 0
        f                        outputs at step 0, over ``READOUTS`` fresh readouts: one has only PC values
        delta_h, delta_f         the change of h and of f
        own_change               ΔW x, the part that the layer's own update made
        alignment                ΔW x over an entry of ΔW times one of x: N^e
        gradient, weight_update  an entry of ∂L/∂W at step 0, and of W − W_0, stored
        weight_update_spectral   the largest singular value of W − W_0, stored
        sharpness                λ_1 of the layer's block of the Gauss-Newton matrix at step 0, of stored weights; for what
                                 forgets the gradient's scale in the metric that divides by |gradient| + its root mean
                                 square, entry by entry, as Adam does
        loss                     "start" and "end", in place of layers

    A diverged network has sizes that are not finite.
    """
    return _measured(_sizes, problems, networks, keys, precision)


def alignment(problems: Sequence[Problem], networks: Sequence[Network], keys: Array, precision: str = "float32"
              ) -> Mapping[str, Float[np.ndarray, "networks seeds steps"]]:  # fmt: skip
    """The alignment of each layer's whole update, as in ``measure``, after each of ``num_steps`` full-batch steps."""
    return _measured(_alignment, problems, networks, keys, precision)


def check(network: Network) -> None:
    """Raises ValueError, in one line, for layers that an architecture does not tell."""
    if network.architecture.matrices is None or network.architecture.signals is None:
        raise ValueError("no sizes are known of a network whose architecture has no matrices and signals of its layers: see "
                         "finite.networks.Architecture")  # fmt: skip


def _measured(quantities, problems, networks, keys, precision):
    """``quantities`` of every network and seed: arrays (networks, seeds, …)."""
    first = networks[0]
    check(first)
    if any(n.architecture is not first.architecture for n in networks):
        raise ValueError("networks of different architectures: measure them one by one")
    architecture, problem = first.architecture, problems[0]
    program = OPTIMIZERS[problem.optimizer].forgets_scale, LOSSES[problem.loss], problem.num_steps
    with computing(precision):
        real = partial(jnp.asarray, dtype=jnp.zeros(()).dtype)
        data = real(problem.inputs), real(problem.targets)
        numbers = [(descent(p, n), n.numbers("multiplier"), n.numbers("init_std"))
                   for p, n in zip(problems, networks, strict=True)]  # fmt: skip
        stacked = jax.tree.map(lambda *values: jnp.stack([real(value) for value in values]), *numbers)
        per_seed = []
        for key in keys:
            drawn = jax.tree.map(real, architecture.init(key))
            shape = drawn["readout"].shape[0], READOUTS
            readouts = real(normal(jax.random.fold_in(key, READOUTS), shape))
            per_seed.append(jax.device_get(_of_each(quantities, architecture, program, data, stacked, drawn, readouts)))
    return jax.tree.map(lambda *seeds: np.stack(seeds, axis=1).astype(np.float64), *per_seed)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _of_each(quantities, architecture, program, data, numbers, drawn, readouts):
    """In every parametrization, one after the other, from the same N(0, 1) draws."""
    return jax.lax.map(lambda row: quantities(architecture, program, data, *row, drawn, readouts), numbers)


def _start(architecture, loss, data, multiplier, init_std, drawn):
    """(the acting weights, ∂L/∂W of such weights)"""
    start = by_role({role: multiplier[role] * init_std[role] for role in multiplier}, drawn)
    return start, jax.grad(lambda params: curvature.loss(architecture.apply, params, *data, loss))


def _alignment(architecture, program, data, update: Descent, multiplier, init_std, drawn: Params, _):
    _, loss, num_steps = program
    start, slope = _start(architecture, loss, data, multiplier, init_std, drawn)
    step = _step(slope, update.transformation())

    def aligned(state, _):
        state = step(state)
        own, per_entry = _own_change(architecture, architecture.signals(state[0], data[0]),
                                     jax.tree.map(jnp.subtract, state[0], start))  # fmt: skip
        return state, {name: own[name] / per_entry[name] for name in own}

    return jax.lax.scan(aligned, (start, update.transformation().init(start)), length=num_steps)[1]


def _own_change(architecture, after, moved):
    """ΔW x of every matrix, and an entry of ΔW times one of x."""
    matrices = architecture.matrices(moved)
    return ({name: _rms(after[name].arriving @ w) for name, w in matrices.items()},
            {name: _rms(after[name].arriving) * _rms(w) for name, w in matrices.items()})  # fmt: skip


def _sizes(architecture, program, data, update: Descent, multiplier, init_std, drawn: Params, readouts: Array):
    (forgets, loss, num_steps), inputs = program, data[0]
    acting_std = {role: multiplier[role] * init_std[role] for role in multiplier}
    start, slope = _start(architecture, loss, data, multiplier, init_std, drawn)
    end = _trained(slope, update.transformation(), start, num_steps)
    moved, gradient = jax.tree.map(jnp.subtract, end, start), by_role(multiplier, slope(start))
    before, after = architecture.signals(start, inputs), architecture.signals(end, inputs)
    stored = architecture.matrices(by_role({role: 1.0 / number for role, number in multiplier.items()}, moved))
    changes = {name: _rms(after[name].output - s.output) for name, s in before.items()}
    own, per_entry = _own_change(architecture, after, moved)
    return {
        "h": {name: _rms(s.output) for name, s in before.items() if name != "readout"},
        "f": {"readout": _rms(before["readout"].arriving @ readouts) * acting_std["readout"]},
        "delta_h": {name: change for name, change in changes.items() if name != "readout"},
        "delta_f": {"readout": changes["readout"]},
        "own_change": own,
        "alignment": {name: own[name] / per_entry[name] for name in own},
        "gradient": {name: _rms(g) for name, g in architecture.matrices(gradient).items()},
        "weight_update": {name: _rms(w) for name, w in stored.items()},
        "weight_update_spectral": _spectral_norms(stored),
        "sharpness": _sharpness(architecture, forgets, multiplier, start, gradient, inputs),
        "loss": {when: curvature.loss(architecture.apply, at, *data, loss) for when, at in (("start", start), ("end", end))},
    }


def _step(slope, optimizer):
    def step(state):
        params, memory = state
        updates, memory = optimizer.update(slope(params), memory, params)
        return jax.tree.map(jnp.add, params, updates), memory

    return step


def _trained(slope, optimizer, params: Params, num_steps: int) -> Params:
    step = _step(slope, optimizer)
    return jax.lax.fori_loop(0, num_steps, lambda _, state: step(state), (params, optimizer.init(params)))[0]


def _rms(values: Array) -> Array:
    return jnp.sqrt(jnp.mean(values**2))


def _spectral_norms(matrices: Mapping[str, Array]) -> dict[str, Array]:
    """By power iteration: an update is of low rank, with a gap behind its first singular value."""

    def iterate(_, vectors):
        return {name: _unit(w.T @ (w @ vectors[name])) for name, w in matrices.items()}

    vectors = {name: _unit(w.T @ (w @ jnp.ones(w.shape[1], w.dtype))) for name, w in matrices.items()}
    vectors = jax.lax.fori_loop(0, POWER_ITERATIONS, iterate, vectors)
    return {name: jnp.linalg.norm(w @ vectors[name]) for name, w in matrices.items()}


def _sharpness(architecture, forgets, multiplier, params, gradient, inputs):
    """λ_1 of JMJᵀ/P for each layer's stored weights; M is 1; where scales are forgotten, by entry, 1/(|gradient| + its rms)."""
    metric = jax.tree.map(lambda g: 1 / (jnp.abs(g) + _rms(g)) if forgets else jnp.ones_like(g), gradient)
    if architecture.layer_factors is None:
        return _sharpness_of_products(architecture, by_role(multiplier, by_role(multiplier, metric)), params, inputs)
    factors = architecture.layer_factors(params, inputs)
    left, right = (jax.tree.map(lambda pair: pair[i], factors, is_leaf=is_layer_factors) for i in (0, 1))  # noqa: B023
    arriving, back, metric = (architecture.matrices(tree) for tree in (by_role(multiplier, left), right, metric))
    kernels = {name: _kernel(arriving[name], back[name], metric[name]) for name in arriving}
    return {name: _top_eigenvalue(partial(jnp.matmul, kernel), len(kernel), kernel.dtype) for name, kernel in kernels.items()}


def _sharpness_of_products(architecture, metric, params, inputs):
    """The same by products with J and Jᵀ of the acting weights; ``metric`` holds the squares of their multipliers."""
    outputs, push, pull = curvature.jacobian(architecture.apply, params, inputs)
    names = list(jax.eval_shape(architecture.matrices, params))
    place = jax.linear_transpose(architecture.matrices, params)

    def of_layer(chosen):
        def kernel(u):
            moved = architecture.matrices(jax.tree.map(jnp.multiply, metric, pull(u.reshape(outputs.shape))))
            (alone,) = place({name: moved[name] * chosen[i] for i, name in enumerate(names)})
            return push(alone).reshape(-1) / len(inputs)

        return _top_eigenvalue(kernel, outputs.size, outputs.dtype)

    return dict(zip(names, jax.lax.map(of_layer, jnp.eye(len(names), dtype=outputs.dtype)), strict=True))


def _kernel(a: Float[Array, "P m"], b: Float[Array, "P C n"], metric: Float[Array, "m n"]) -> Float[Array, "PC PC"]:
    """Σ_ij M_ij a_i(p) a_i(q) b_j(p,c) b_j(q,d) / P, through (P², n)."""
    P, C, _ = b.shape
    through = (a[:, None, :] * a[None, :, :]) @ metric
    return jnp.einsum("pqn,pcn,qdn->pcqd", through, b, b, optimize=[(0, 1), (0, 1)]).reshape(P * C, P * C) / P


def _top_eigenvalue(product, size, dtype) -> Array:
    """Of a positive semidefinite matrix, by power iteration: a lower bound, at worst as far off as the first gap."""
    start = jnp.cos(jnp.arange(size, dtype=dtype))
    vector = jax.lax.fori_loop(0, POWER_ITERATIONS, lambda _, u: _unit(product(u)), _unit(start))
    return vector @ product(vector)


def _unit(v: Array) -> Array:
    """v/|v|, also where |v|² would be too small for the precision."""
    v = v / jnp.maximum(jnp.max(jnp.abs(v)), jnp.finfo(v.dtype).tiny)
    return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)
