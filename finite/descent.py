"""The optimisers of ``limits.problem``, on weights as they act: all powers of the width are numbers here."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from finite.networks import Network, by_role
from limits.problem import Problem


class Descent(NamedTuple):
    """The numbers of the update, of the acting weights; traced."""

    eta0: Array
    momentum: Array  # β
    weight_decay: Array  # λ
    betas: tuple[Array, Array]
    epsilon: Array  # in units of ``gradient``
    rates: dict[str, Array]  # by role, over η0
    gradient: dict[str, Array]  # by role: the unit of Adam's gradients
    metric: dict[str, Array]  # by role: curvature is that of the coordinates weights/√metric

    def optimizer(self, name):
        """The recursions of ``limits.problem``."""
        at_rates = optax.stateless(lambda gradient, _: by_role(self.rates, gradient))
        decay = optax.add_decayed_weights(self.weight_decay)
        if name == "sgd":
            return optax.chain(at_rates, decay, optax.sgd(self.eta0, momentum=self.momentum))
        unit = {role: 1.0 / size for role, size in self.gradient.items()}
        in_units = optax.stateless(lambda gradient, _: by_role(unit, gradient))
        adam = optax.scale_by_adam(*self.betas, eps=self.epsilon)
        return optax.chain(in_units, adam, at_rates, decay, optax.scale(-self.eta0))


def descent(problem: Problem, network: Network) -> Descent:
    """The problem's optimiser on the network's acting weights, in the precision of the scope.

    Rates of θ turned into rates of multiplier · θ: the gradient shrinks by the multiplier, the update grows by it.

    The metric is what a step per η0 amounts to per gradient: the rate itself for SGD, the rate over the gradient's size
    for Adam.
    """
    multiplier, rate, gradient = (network.numbers(name) for name in ("multiplier", "learning_rate", "gradient"))
    adam, roles = problem.optimizer == "adam", list(network.factors)
    numbers = Descent(
        problem.learning_rate,
        problem.momentum,
        problem.weight_decay,
        problem.betas,
        problem.epsilon,
        rates={role: rate[role] * multiplier[role] ** (1 if adam else 2) for role in roles},
        gradient={role: gradient[role] / multiplier[role] for role in roles},
        metric={role: rate[role] * multiplier[role] ** 2 / (gradient[role] if adam else 1.0) for role in roles},
    )
    return jax.tree.map(lambda number: jnp.asarray(number, jnp.zeros(()).dtype), numbers)
