"""A kinked activation.  Its slopes, left and right of the kink, say that it has one: no theory gives it a 1/√N law."""

import jax.numpy as jnp

from limits.activations import ACTIVATIONS, Activation

SLOPES = 0.1, 1.0


def leaky(h):
    return jnp.where(h > 0, h, SLOPES[0] * h)


ACTIVATIONS.add(Activation("leaky", leaky, SLOPES, kernel=lambda stax: stax.LeakyRelu(SLOPES[0])))
