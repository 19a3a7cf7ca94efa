"""Sharpness of a network of your own, in your own training loop: raw curvature, of the weights as they are stored."""

import jax
import jax.numpy as jnp

from finite.curvature import Objective, sharpness

objective = Objective(lambda params, x: jnp.tanh(x @ params["first"]) @ params["last"], lambda f, y: jnp.mean((f - y) ** 2))
first, last, x = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(3, 16), (16, 1), (32, 3)]))
params, batch = {"first": first, "last": last / 4}, (x, jnp.sin(x[:, :1]))
for step in range(101):
    if step % 50 == 0:
        found = sharpness(objective, params, batch)
        print(f"step {step:3d}: loss {objective(params, batch):.3f}, sharpness {found.values[0]:.1f}")
    params = jax.tree.map(lambda w, g: w - 0.05 * g, params, jax.grad(objective)(params, batch))

# step   0: loss 0.772, sharpness 9.1
# step  50: loss 0.016, sharpness 9.1
# step 100: loss 0.012, sharpness 9.1
