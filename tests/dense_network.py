"""The oracle: a two-layer linear network of small width, trained step by step, its Hessian formed by autodiff.  float64."""

import jax
import jax.numpy as jnp
import numpy as np

from limits.exponents.parametrization import output_exponent


def train_dense(problem, Z):
    """Every observable of the network with weights Z = [E ; Vᵀ] (D+C, N), and ``spectrum``, all Hessian eigenvalues."""
    X, Y = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
    (P, D), C, N = X.shape, Y.shape[1], Z.shape[1]
    gamma = problem.richness * N ** output_exponent(problem.scaling())
    everything = np.arange(P)

    def outputs(theta):
        E, V = theta[: D * N].reshape(D, N), theta[D * N :].reshape(N, C)
        return X @ E @ V / (gamma * np.sqrt(N * D))

    @jax.jit
    def loss(theta, batch=everything):
        return 0.5 * jnp.mean(jnp.sum((outputs(theta)[batch] - Y[batch]) ** 2, axis=1))

    gradient, hessian, jacobian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss)), jax.jit(jax.jacobian(outputs))

    def measure(theta):
        H = gamma**2 * hessian(theta)
        J = gamma * jacobian(theta).reshape(P * C, -1)
        G = J.T @ J / P
        spectrum, ntk = jnp.linalg.eigvalsh(H)[::-1], jnp.linalg.eigvalsh(J @ J.T / P)[::-1]
        residual, g, k = jnp.linalg.eigvalsh(H - G)[::-1], gradient(theta), problem.top_k
        return {
            "loss": loss(theta),
            "hessian_eigenvalues": spectrum[:k],
            "hessian_min": spectrum[-1],
            "gauss_newton_eigenvalues": jnp.linalg.eigvalsh(G)[::-1][:k],
            "residual_eigenvalues": residual[jnp.array([0, -1])],
            "ntk_eigenvalues": jnp.pad(ntk, (0, k))[:k],
            "hessian_trace": jnp.trace(H),
            "directional_sharpness": g @ H @ g / (g @ g),
            "spectrum": spectrum,
        }

    theta = jnp.concatenate([Z[:D].ravel(), Z[D:].T.ravel()])
    buffer, measured = jnp.zeros_like(theta), []
    for t in range(problem.num_steps + 1):
        if t % problem.measure_every == 0:
            measured.append(measure(theta))
        if t < problem.num_steps:
            batch = everything if problem.batches is None else problem.batches[t]
            force = gamma**2 * gradient(theta, batch) + problem.weight_decay * theta
            buffer = problem.momentum * buffer + force
            theta = theta - problem.learning_rate * buffer
    return {name: np.stack([m[name] for m in measured]) for name in measured[0]}
