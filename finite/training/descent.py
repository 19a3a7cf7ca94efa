"""The optimisers of ``limits.optimizers`` on weights as they act, a row each: all powers of the width are numbers here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from finite.networks import Network, Params, by_role
from limits.optimizers import OPTIMIZERS
from limits.problem import Problem
from limits.rows import Table


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
        return UPDATES[self.optimizer].transformation(self)

    def preconditioner(self, state: optax.OptState, params: Params) -> Params:
        """P of ``limits.problem``: √v̂/s + ε of Adam, 1 of SGD; not a number before step 0."""
        return UPDATES[self.optimizer].preconditioner(self, state, params)

    # What transformations are made of

    @property
    def at_rates(self) -> optax.GradientTransformation:
        """Times the learning rates of the roles, over η0."""
        return optax.stateless(lambda updates, _: by_role(self.rates, updates))

    @property
    def decayed(self) -> optax.GradientTransformation:
        """And the weights' decay."""
        return optax.stateless(lambda updates, params: jax.tree.map(jnp.add, updates, by_role(self.decay, params)))

    @property
    def in_units(self) -> optax.GradientTransformation:
        """In units of the gradient's size."""
        unit = {role: 1.0 / size for role, size in self.gradient.items()}
        return optax.stateless(lambda gradient, _: by_role(unit, gradient))

    @property
    def down(self) -> optax.GradientTransformation:
        """Times −η of the step."""
        return optax.scale_by_learning_rate(lambda step: self.eta[step])


@dataclass(frozen=True)
class Update:
    """A row: what an optimiser does to acting weights.

    transformation       of a ``Descent``, with its numbers, which are traced
    preconditioner       (``Descent``, the transformation's state, weights) → P of ``limits.problem``, like the weights
    decay_in_gradient    whether the weight decay is a part of the gradient, and so in its units
    """

    name: str
    transformation: Callable[[Descent], optax.GradientTransformation]
    preconditioner: Callable[[Descent, optax.OptState, Params], Params]
    decay_in_gradient: bool = False


def _sgd(of):
    return optax.chain(of.at_rates, of.decayed, optax.trace(of.momentum, of.nesterov), of.down)


def _no_preconditioner(of, state, params):
    return jax.tree.map(jnp.ones_like, params)


def _moments(of):
    return optax.scale_by_adam(*of.betas, eps=of.epsilon)


def _adam(of):
    return optax.chain(of.in_units, of.decayed, _moments(of), of.at_rates, of.down)


def _adamw(of):
    return optax.chain(of.in_units, _moments(of), of.at_rates, of.decayed, of.down)


def _of_adam(of, state, params):
    moments = optax.tree.get(state, "ScaleByAdamState")
    unbiased = 1.0 - of.betas[1] ** moments.count
    return jax.tree.map(lambda v: jnp.sqrt(v / unbiased) + of.epsilon, moments.nu)


UPDATES = Table("optimizer", (
    Update("sgd", _sgd, _no_preconditioner),
    Update("adam", _adam, _of_adam, decay_in_gradient=True),
    Update("adamw", _adamw, _of_adam),
))  # fmt: skip


def descent(problem: Problem, network: Network) -> Descent:
    """The problem's optimiser on the network's acting weights, in the precision of the scope.

    Rates of θ turned into rates of multiplier · θ: the gradient shrinks by the multiplier, the update grows by it.  The unit of
    the metric is 1, or of an optimiser that forgets the gradient's scale the size of a gradient entry.
    """
    names = ("multiplier", "init_std", "learning_rate", "gradient")
    multiplier, std, rate, gradient = (network.numbers(name) for name in names)
    update, forgets, roles = UPDATES.find(problem.optimizer), OPTIMIZERS[problem.optimizer].forgets_scale, list(network.factors)
    unit = {role: multiplier[role] * std[role] if update.decay_in_gradient else 1.0 for role in roles}  # of the decaying
    numbers = {
        "eta": problem.step_sizes,
        "momentum": problem.momentum,
        "betas": problem.betas,
        "epsilon": problem.epsilon,
        "decay": {role: problem.weight_decay / unit[role] if problem.trained in ("all", role) else 0.0 for role in roles},
        "rates": {role: rate[role] * multiplier[role] ** (1 if forgets else 2) for role in roles},
        "gradient": {role: gradient[role] / multiplier[role] for role in roles},
        "metric": {role: rate[role] * multiplier[role] ** 2 / (gradient[role] if forgets else 1.0) for role in roles},
    }
    as_real = partial(jnp.asarray, dtype=jnp.zeros(()).dtype)
    return Descent(problem.optimizer, problem.nesterov, **jax.tree.map(as_real, numbers))
