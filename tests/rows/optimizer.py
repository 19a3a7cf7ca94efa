"""A sign optimiser: the size of its update, from which its exponents follow, and what it does to the weights."""

import jax
import jax.numpy as jnp
import optax

from finite.training.descent import UPDATES, Update
from limits.optimizers import OPTIMIZERS, Optimizer


def signs(recipe):
    sign = optax.stateless(lambda gradient, _: jax.tree.map(jnp.sign, gradient))
    return optax.chain(sign, recipe.at_rates, recipe.decayed, recipe.down)


OPTIMIZERS.add(Optimizer("signs", "sign", preconditioned=False, description="the gradient's signs"))
UPDATES.add(Update("signs", signs))
