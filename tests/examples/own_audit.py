"""Is the parametrization of my network right?  Its readout is divided by √width, where μP wants width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import comparisons
from finite.networks.own import Model


def build(width, key):
    a, b = jax.random.split(key)
    params = {"first": jax.random.normal(a, (6, width)) / 6**0.5, "last": jax.random.normal(b, (width, 2))}
    return params, lambda params, x: jnp.tanh(x @ params["first"]) @ params["last"] / width**0.5


rng = np.random.default_rng(0)
model = Model(build, "mse", (rng.normal(size=(16, 6)), rng.normal(size=(16, 2))))
audit = comparisons.audit(model, optimizer=optax.adam(0.01), widths=(16, 32, 64, 128))
print(*audit.suspects, sep="\n")  # print(audit) has every exponent; audit.assert_ok() stands in a test of yours

# last: readout multiplier: N^-1/2 found, N^-1 wanted
