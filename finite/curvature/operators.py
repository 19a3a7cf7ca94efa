"""Curvature of a finite network, as matrix-vector products on its parameters.

    loss   L(θ) = (1/P) Σ_p ℓ(f(x_p), y_p)  (``limits.losses``),    J = ∂f/∂θ, of size PC × (number of parameters)
    H = ∇²L = G + R,    G = Jᵀ ℓ'' J/P  (Gauss-Newton),    R = Σ_pc r_pc ∇²f_c(x_p),  r = ℓ'/P  (residual part)
    NTK    JJᵀ/P, of size PC × PC, for MSE with the same nonzero eigenvalues as G; in general G has those of BᵀJJᵀB/P,
           BBᵀ = ℓ''

The loss ``ell`` is MSE if not given: ℓ = |f − y|²/2, ℓ' = f − y, ℓ'' = 1.

Everything here is *raw*, of the weights that the given functions take; ``finite.train`` gives them in coordinates in which
it is the rescaled curvature.  Constructors bind network, data and weights, and return ``v → A v``.  Nonlinear functions
are linearised once, when the constructor runs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import Apply, Architecture, LayerFactors, Params, is_layer_factors
from limits.losses import MSE, Loss

SAMPLES_AT_ONCE = 512  # whose loss is evaluated together: what that holds need not grow with the data

Matvec = Callable[[Params], Params]


def loss(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss = MSE
) -> Float[Array, ""]:
    """L(θ): mean over samples, sum over outputs."""
    return ell.mean(apply(params, inputs), targets)


def loss_of_many(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss = MSE
) -> Float[Array, ""]:
    """L(θ) of any number of samples, ``SAMPLES_AT_ONCE`` after the other; not to be differentiated."""
    whole = len(inputs) // SAMPLES_AT_ONCE * SAMPLES_AT_ONCE
    if len(inputs) <= SAMPLES_AT_ONCE:
        return loss(apply, params, inputs, targets, ell)
    total = lambda x, y: jnp.sum(ell.value(apply(params, x), y))  # noqa: E731
    chunks = (array[:whole].reshape(-1, SAMPLES_AT_ONCE, array.shape[1]) for array in (inputs, targets))
    sums = jax.lax.map(lambda chunk: total(*chunk), tuple(chunks))
    rest = total(inputs[whole:], targets[whole:]) if whole < len(inputs) else 0.0
    return (jnp.sum(sums) + rest) / len(inputs)


def hessian(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss = MSE
) -> Matvec:
    """v → H v: forward over reverse."""
    return jax.linearize(jax.grad(lambda p: loss(apply, p, inputs, targets, ell)), params)[1]


def gauss_newton(apply: Apply, params: Params, inputs: Float[Array, "P D"], ell: Loss = MSE) -> Matvec:
    """v → G v = Jᵀ ℓ'' J v/P."""
    outputs, push, pull = jacobian(apply, params, inputs)
    if ell.quadratic:
        return lambda v: pull(push(v) / len(inputs))
    curvature = ell.curvature(outputs) / len(inputs)
    return lambda v: pull(jnp.einsum("pcd,pd->pc", curvature, push(v)))


def residual(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss = MSE
) -> Matvec:
    """v → R v: the Hessian of <r, f> with r = ℓ'/P held fixed; its own formula, not H − G."""
    r = ell.gradient(apply(params, inputs), targets) / len(inputs)
    return jax.linearize(jax.grad(lambda p: jnp.sum(r * apply(p, inputs))), params)[1]


def ntk(apply: Apply, params: Params, inputs: Float[Array, "P D"]) -> Callable[[Array], Array]:
    """u (P, C) → JJᵀ u/P (P, C), without the matrix."""
    _, push, pull = jacobian(apply, params, inputs)
    return lambda u: push(pull(u)) / len(inputs)


def jacobian(
    apply: Apply, params: Params, inputs: Float[Array, "P D"]
) -> tuple[Float[Array, "P C"], Callable[[Params], Array], Callable[[Array], Params]]:
    """(f, v → J v, u → Jᵀ u)"""
    outputs, push = jax.linearize(lambda p: apply(p, inputs), params)
    transpose = jax.linear_transpose(push, params)
    return outputs, push, lambda u: transpose(u)[0]


def dense_ntk(network: Architecture, params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "PC PC"]:
    """JJᵀ/P; row and column p·C + c.  From the layers' factors where the network has them: never a Jacobian.

        (JJᵀ)[(p,c),(q,d)] = Σ_layers (a(p)·a(q)) (b(p,c)·b(q,d))
    """
    rows = len(inputs) * jax.eval_shape(network.apply, params, inputs).shape[1]
    if network.layer_factors is None:
        operator, basis = ntk(network.apply, params, inputs), jnp.eye(rows, dtype=inputs.dtype)
        return jax.vmap(operator)(basis.reshape(rows, len(inputs), -1)).reshape(rows, rows)
    blocks = (
        jnp.einsum("...pm,...qm,...pcn,...qdn->pcqd", a, a, b, b, optimize=[(0, 1), (0, 1), (0, 1)])
        for a, b in _layers(network, params, inputs)
    )
    return sum(blocks).reshape(rows, rows) / len(inputs)


def dense_gauss_newton(
    theta: Float[Array, "PC PC"], outputs: Float[Array, "P C"], ell: Loss = MSE
) -> Float[Array, "PC PC"]:
    """BᵀJJᵀB/P, of the nonzero eigenvalues of G, from the dense NTK and f."""
    if ell.quadratic:
        return theta
    P, C = outputs.shape
    root = ell.root(outputs)
    tensor = jnp.einsum("pce,pcqd,qdf->peqf", root, theta.reshape(P, C, P, C), root, optimize=[(0, 1), (0, 1)])
    return tensor.reshape(P * C, P * C)


def gauss_newton_trace(
    network: Architecture, params: Params, inputs: Float[Array, "P D"], ell: Loss = MSE
) -> Float[Array, ""]:
    """tr G = |BᵀJ|²/P, exactly, in the memory of one backward pass.

    Without the layers' factors sample after sample, and C gradients at once: samples do not mix.
    """
    if network.layer_factors is not None:
        root = None if ell.quadratic else ell.root(network.apply(params, inputs))
        pairs = ((a, b if root is None else jnp.einsum("pce,...pcn->...pen", root, b))
                 for a, b in _layers(network, params, inputs))  # fmt: skip
        return sum(jnp.sum(jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=(-2, -1))) for a, b in pairs) / len(inputs)

    def of_sample(x):
        outputs, pull = jax.vjp(lambda p: network.apply(p, x[None])[0], params)
        return jnp.sum(jax.vmap(lambda column: squared_norm(pull(column)[0]))(ell.root(outputs).T))

    return jnp.mean(jax.lax.map(of_sample, inputs))


def trace(
    network: Architecture,
    params: Params,
    inputs: Float[Array, "P D"],
    targets: Float[Array, "P C"],
    key: Array,
    *,
    probes: int = 16,
    ell: Loss = MSE,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(tr H, its standard error).  tr G is exact; so is tr R = 0 if the network is layerwise linear.

    Otherwise tr R is the mean of zᵀRz over random signs z (Hutchinson 1990), the error its standard error.
    Raises ValueError for fewer than two probes, whose spread nobody knows.
    """
    exact = gauss_newton_trace(network, params, inputs, ell)
    if network.layerwise_linear:
        return exact, jnp.zeros_like(exact)
    if probes < 2:
        raise ValueError(f"{probes} probes: a standard error needs two")
    matvec = residual(network.apply, params, inputs, targets, ell)

    def sample(key):
        z = signs_like(key, params)
        return inner(z, matvec(z))

    samples = jax.lax.map(sample, jax.random.split(key, probes))
    return exact + jnp.mean(samples), jnp.std(samples, ddof=1) / jnp.sqrt(probes)


def directional_sharpness(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss = MSE
) -> Float[Array, ""]:
    """gᵀHg/|g|² along g = ∇L; not a number where g = 0."""
    gradient, matvec = jax.linearize(jax.grad(lambda p: loss(apply, p, inputs, targets, ell)), params)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]))
    direction = jax.tree.map(lambda leaf: leaf / largest, gradient)  # near convergence |g|² underflows; 0/0 is wanted
    return inner(direction, matvec(direction)) / squared_norm(direction)


def parts(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss, g: Array, r: Array
) -> Matvec:
    """v → (g G + r R) v, of numbers g and r that may be traced: one compiled program is the product with H, with G and with R.

    The Hessian of (1/P) Σ_p g ℓ(f) + (r − g) <ℓ'(f_0), f> at f_0 = f.
    """
    held = ell.gradient(apply(params, inputs), targets)

    def mixed(p):
        outputs = apply(p, inputs)
        return g * ell.mean(outputs, targets) + (r - g) * jnp.sum(held * outputs) / len(inputs)

    return jax.linearize(jax.grad(mixed), params)[1]


def preconditioned(matvec: Matvec, inverse_root: Matvec) -> Matvec:
    """v → P^{-1/2} A P^{-1/2} v, where ``inverse_root`` is v → P^{-1/2} v."""
    return lambda v: inverse_root(matvec(inverse_root(v)))


def gradient_noise(
    apply: Apply, params: Params, inputs: Float[Array, "P D"], targets: Float[Array, "P C"], ell: Loss = MSE
) -> Float[Array, ""]:
    """tr Σ = (1/P) Σ_p |∇ℓ_p − ∇L|², the trace of the covariance of one sample's gradient; sample after sample."""
    mean = jax.grad(lambda p: loss(apply, p, inputs, targets, ell))(params)

    def of_sample(pair):
        x, y = pair
        gradient = jax.grad(lambda p: loss(apply, p, x[None], y[None], ell))(params)
        return squared_norm(jax.tree.map(jnp.subtract, gradient, mean))

    return jnp.mean(jax.lax.map(of_sample, (inputs, targets)))


def signs_like(key: Array, params: Params) -> Params:
    """Independent ±1, one for every parameter; the same at either precision."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    bits = [jax.random.bits(k, leaf.shape, jnp.uint8) & 1 for k, leaf in zip(keys, leaves, strict=True)]
    return structure.unflatten([2 * b.astype(leaf.dtype) - 1 for b, leaf in zip(bits, leaves, strict=True)])


def inner(u: Params, v: Params) -> Float[Array, ""]:
    """<u, v> over all parameters."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), u, v)))


def squared_norm(v: Params) -> Float[Array, ""]:
    """|v|² over all parameters."""
    return inner(v, v)


def _layers(network, params, inputs) -> list[LayerFactors]:
    return jax.tree.leaves(network.layer_factors(params, inputs), is_leaf=is_layer_factors)
