"""The optimisers of ``limits.optimizers`` on weights as they act, a row each: all powers of the width are numbers here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from finite.curvature.operators import Matvec
from finite.networks import Network, by_role
from finite.training.matrices import Bases, Sides, bases, by_leaf, leaf_by_leaf, muon, shampoo, stacked
from limits.exponents.algebra import MUON_SCALES, VECTORS
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
    gradient: dict[str, Array]  # by role: the unit of the gradients that ε is compared with
    metric: dict[str, Array]  # by role: M of ``limits.problem``, of the acting weights
    weights: dict[str, Array]  # by role: the unit of the acting weights, their standard deviation at step 0

    def transformation(self) -> optax.GradientTransformation:
        """The recursions of ``limits.problem``."""
        return UPDATES[self.optimizer].transformation(self)

    def inverse_root(self, state: optax.OptState) -> Matvec | None:
        """v → P^(−1/2) v of ``limits.problem``, not a number where no step has been seen; None where it has none."""
        root = UPDATES[self.optimizer].inverse_root
        return root and root(self, state)

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
    def in_weights(self) -> optax.GradientTransformation:
        """Times the root mean square of the weights of every matrix, as ``optax.adafactor`` does to weights of order one."""

        def of_matrix(update, weights):
            return optax.scale_by_param_block_rms().update(update, optax.EmptyState(), weights)[0]

        def update(updates, state, params):
            relative = by_role({role: 1.0 / std for role, std in self.weights.items()}, params)
            many = zip(by_leaf(updates), jax.tree.leaves(relative), strict=True)
            leaves = [stacked(role, leaf, of_matrix)(leaf, weights) for (role, leaf), weights in many]
            return by_role(self.weights, jax.tree.unflatten(jax.tree.structure(updates), leaves)), state

        return optax.GradientTransformation(optax.init_empty_state, update)

    @property
    def down(self) -> optax.GradientTransformation:
        """Times −η of the step."""
        return optax.scale_by_learning_rate(lambda step: self.eta[step])


@dataclass(frozen=True)
class Update:
    """A row: what an optimiser does to acting weights.

    transformation       of a ``Descent``, with its numbers, which are traced
    inverse_root         (``Descent``, the transformation's state) → v → P^(−1/2) v of ``limits.problem``, symmetric; None where
                         no linear preconditioner is behind the update: it is no gradient in any metric that its state holds
    decay_in_gradient    whether the weight decay is a part of the gradient, and so in its units
    """

    name: str
    transformation: Callable[[Descent], optax.GradientTransformation]
    inverse_root: Callable[[Descent, optax.OptState], Matvec] | None = None
    decay_in_gradient: bool = False


def _sgd(rule):
    return optax.chain(rule.at_rates, rule.decayed, optax.trace(rule.momentum, rule.nesterov), rule.down)


def _identity(rule, state):
    return lambda v: v


def _moments(rule):
    return optax.scale_by_adam(*rule.betas, eps=rule.epsilon)


def _adam(rule):
    return optax.chain(rule.in_units, rule.decayed, _moments(rule), rule.at_rates, rule.down)


def _adamw(rule):
    return optax.chain(rule.in_units, _moments(rule), rule.at_rates, rule.decayed, rule.down)


def _over_adam(rule, state):
    moments = optax.tree.get(state, "ScaleByAdamState")
    unbiased = 1.0 - rule.betas[1] ** moments.count[..., None]  # of a stack of vectors one each
    root = jax.tree.map(lambda v: jnp.sqrt(jnp.sqrt(v / unbiased) + rule.epsilon), moments.nu)
    return lambda v: jax.tree.map(jnp.divide, v, root)


def _sign(rule):
    return optax.chain(optax.scale_by_sign(), rule.at_rates, rule.decayed, rule.down)


def _lion(rule):
    return optax.chain(optax.scale_by_lion(*rule.betas), rule.at_rates, rule.decayed, rule.down)


def _lamb(rule):
    trusted = leaf_by_leaf(lambda role: optax.scale_by_trust_ratio())
    return optax.chain(rule.in_units, _moments(rule), rule.decayed, trusted, rule.at_rates, rule.down)


def _adafactor(rule):
    factored = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=1), optax.clip_by_block_rms(1.0))
    return optax.chain(
        rule.in_units, leaf_by_leaf(lambda role: factored), rule.in_weights, rule.at_rates, rule.decayed, rule.down
    )


def _whole(rule, of_matrix):
    chosen = leaf_by_leaf(lambda role: _moments(rule) if role in VECTORS else of_matrix)
    return optax.chain(rule.in_units, chosen, rule.at_rates, rule.decayed, rule.down)


def _muon(scale, rule):
    return _whole(rule, muon(scale, rule.momentum, rule.nesterov, rule.epsilon))


def _shampoo(rule, adam=False):
    return _whole(rule, shampoo(rule.betas, rule.epsilon, adam=adam))


def _over_shampoo(rule, state, adam=False):
    """Of stacks at once; decomposed here, before any product asks for it."""
    states = optax.tree.get(state, "Leaves").states
    metrics = [
        bases(of_leaf, rule.betas[1], rule.epsilon, adam=adam) if isinstance(of_leaf, Sides) else of_leaf for of_leaf in states
    ]

    def divided(of_leaf, v):
        return of_leaf.over(v, 0.5) if isinstance(of_leaf, Bases) else _over_adam(rule, of_leaf)(v)

    return lambda v: jax.tree.unflatten(jax.tree.structure(v), map(divided, metrics, jax.tree.leaves(v)))


UPDATES = Table("update (finite.training.descent.UPDATES) of optimizer", (
    Update("sgd", _sgd, _identity),
    Update("adam", _adam, _over_adam, decay_in_gradient=True),
    Update("adamw", _adamw, _over_adam),
    Update("sign", _sign),
    Update("lion", _lion),
    Update("lamb", _lamb, decay_in_gradient=True),
    Update("adafactor", _adafactor),
    *(Update(f"muon_{scale}", partial(_muon, scale)) for scale in MUON_SCALES),
    Update("shampoo", _shampoo, _over_shampoo),
    Update("soap", partial(_shampoo, adam=True), partial(_over_shampoo, adam=True)),
))  # fmt: skip


def check_preconditioned(optimizer: str) -> None:
    """Raises ValueError where there is no preconditioned sharpness."""
    if UPDATES.find(optimizer).inverse_root is None:
        raise ValueError(f"{optimizer} has no preconditioned sharpness: its step is no known matrix times the gradient")


def descent(problem: Problem, network: Network) -> Descent:
    """The problem's optimiser on the network's acting weights, in the precision of the scope.

    Rates of θ turned into rates of multiplier · θ: the gradient shrinks by the multiplier, the update grows by it.  The metric
    is what the update is per gradient: 1, or of an optimiser that forgets the gradient's scale a ratio of two sizes.
    """
    factors, update = network.factors, UPDATES.find(problem.optimizer)
    acting = {role: f.multiplier * f.init_std for role, f in factors.items()}
    unit = {role: acting[role] if update.decay_in_gradient else 1.0 for role in factors}  # of the decaying
    numbers = {
        "eta": problem.step_sizes,
        "momentum": problem.momentum,
        "betas": problem.betas,
        "epsilon": problem.epsilon,
        "decay": {role: problem.weight_decay / unit[role] if problem.trained in ("all", role) else 0.0 for role in factors},
        "rates": {role: f.learning_rate * f.multiplier**f.gauge for role, f in factors.items()},
        "gradient": {role: f.epsilon / f.multiplier for role, f in factors.items()},
        "metric": {role: f.learning_rate * f.multiplier**2 / (f.gradient / f.update) for role, f in factors.items()},
        "weights": acting,
    }
    as_real = partial(jnp.asarray, dtype=jnp.zeros(()).dtype)
    return Descent(problem.optimizer, problem.nesterov, **jax.tree.map(as_real, numbers))
