"""The optimisers of ``limits.problem``, on weights as they act: all powers of the width are numbers here."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from finite.networks import Network, Params, by_role
from limits.problem import Problem


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Descent:
    """The update of the acting weights: its kind, which is compiled, and its numbers, which are traced."""

    optimizer: str = field(metadata={"static": True})
    nesterov: bool = field(metadata={"static": True})
    eta: Array  # the learning rate of every step
    momentum: Array  # β
    betas: tuple[Array, Array]
    epsilon: Array  # in units of ``gradient``
    decay: dict[str, Array]  # by role: λ, 0 where the role is not trained; in units of ``gradient`` within Adam's gradient
    rates: dict[str, Array]  # by role, over η0
    gradient: dict[str, Array]  # by role: the unit of Adam's gradients
    metric: dict[str, Array]  # by role: M of ``limits.problem``, of the acting weights

    def transformation(self) -> optax.GradientTransformation:
        """The recursions of ``limits.problem``."""
        at_rates = optax.stateless(lambda gradient, _: by_role(self.rates, gradient))
        decay = optax.stateless(lambda updates, params: jax.tree.map(jnp.add, updates, by_role(self.decay, params)))
        down = optax.scale_by_learning_rate(lambda step: self.eta[step])
        if self.optimizer == "sgd":
            return optax.chain(at_rates, decay, optax.trace(self.momentum, self.nesterov), down)
        unit = {role: 1.0 / size for role, size in self.gradient.items()}
        in_units = optax.stateless(lambda gradient, _: by_role(unit, gradient))
        adam = optax.scale_by_adam(*self.betas, eps=self.epsilon)
        if self.optimizer == "adam":
            return optax.chain(in_units, decay, adam, at_rates, down)
        return optax.chain(in_units, adam, at_rates, decay, down)

    def preconditioner(self, state: optax.OptState, params: Params) -> Params:
        """P of ``limits.problem``: √v̂/s + ε of Adam, 1 of SGD; not a number before step 0."""
        if self.optimizer == "sgd":
            return jax.tree.map(jnp.ones_like, params)
        moments = optax.tree.get(state, "ScaleByAdamState")
        unbiased = 1.0 - self.betas[1] ** moments.count
        return jax.tree.map(lambda v: jnp.sqrt(v / unbiased) + self.epsilon, moments.nu)


def descent(problem: Problem, network: Network) -> Descent:
    """The problem's optimiser on the network's acting weights, in the precision of the scope.

    Rates of θ turned into rates of multiplier · θ: the gradient shrinks by the multiplier, the update grows by it.
    """
    names = ("multiplier", "init_std", "learning_rate", "gradient")
    multiplier, std, rate, gradient = (network.numbers(name) for name in names)
    adam, roles = problem.rule == "adam", list(network.factors)
    unit = {role: multiplier[role] * std[role] if problem.optimizer == "adam" else 1.0 for role in roles}  # of the decaying
    numbers = {
        "eta": problem.learning_rates,
        "momentum": problem.momentum,
        "betas": problem.betas,
        "epsilon": problem.epsilon,
        "decay": {role: problem.weight_decay / unit[role] if problem.trained in ("all", role) else 0.0 for role in roles},
        "rates": {role: rate[role] * multiplier[role] ** (1 if adam else 2) for role in roles},
        "gradient": {role: gradient[role] / multiplier[role] for role in roles},
        "metric": {role: rate[role] * multiplier[role] ** 2 / (gradient[role] if adam else 1.0) for role in roles},
    }
    as_real = partial(jnp.asarray, dtype=jnp.zeros(()).dtype)
    return Descent(problem.optimizer, problem.nesterov, **jax.tree.map(as_real, numbers))
