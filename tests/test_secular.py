"""Secular roots against dense eigenvalues: of random matrices, and of networks' Hessians by automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limits import Problem
from limits.activations import ACTIVATIONS
from limits.losses import LOSSES
from limits.two_layer import secular
from limits.two_layer.neuron_blocks import hessian_spectrum, measure_network

WIDTH = 40


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 24), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_every_eigenvalue_and_every_count(m, q, distinct, sparse, seed):
    """Poles that repeat, poles that nothing couples to, and more columns than rows included."""
    rng = np.random.default_rng(seed)
    poles = rng.normal(size=m) if distinct == 4 else rng.integers(-distinct, distinct + 1, size=m).astype(float)
    factor = rng.normal(size=(m, q)) * (rng.random((m, 1)) < 0.5 if sparse else 1)
    dense = np.linalg.eigvalsh(np.diag(poles) + factor @ factor.T)[::-1]
    of = secular.secular(poles, factor)
    found = [secular.eigenvalue(of, k + 1) for k in range(m)]
    np.testing.assert_allclose(found, dense, atol=1e-7 if distinct < 4 else 1e-12 * (1 + dense[0]))
    for lam in rng.uniform(dense[-1] - 1, dense[0] + 1, size=5):
        assert secular.count_above(of, lam) == np.sum(dense > lam)


def test_concentration_is_the_largest_squared_entry():
    rng = np.random.default_rng(0)
    poles, factor = rng.normal(size=12), rng.normal(size=(12, 3))
    values, vectors = np.linalg.eigh(np.diag(poles) + factor @ factor.T)
    of = secular.secular(poles, factor)
    found = [secular.concentration(of, value) for value in values]
    np.testing.assert_allclose(found, np.max(vectors**2, axis=0), rtol=1e-9)
    assert secular.concentration(secular.secular(np.array([2.0, 1.0]), np.zeros((2, 1))), 2.0) == 1.0


def dense_network(problem, E, V):
    """Every observable and the whole spectrum of the network in μP, from Jacobian and Hessian of the loss in all weights."""
    x, y, (D, N), C = problem.inputs, jnp.asarray(problem.targets), E.shape, V.shape[1]
    phi, loss, gamma = ACTIVATIONS[problem.network.activation].phi, LOSSES[problem.loss], problem.richness * np.sqrt(N)

    def outputs(theta):
        return phi(x @ theta[: D * N].reshape(D, N) / np.sqrt(D)) @ theta[D * N :].reshape(N, C) / (gamma * np.sqrt(N))

    def total(theta):
        return loss.mean(outputs(theta), y)

    @jax.jit
    def derivatives(theta):
        curvature = jax.vmap(jax.hessian(lambda f, y: loss.value(f, y)))(outputs(theta), y)
        J = gamma * jax.jacobian(outputs)(theta)
        G = jnp.einsum("pci,pcd,pdj->ij", J, curvature, J) / len(x)
        return total(theta), jax.grad(total)(theta), gamma**2 * jax.hessian(total)(theta), G, J.reshape(-1, len(theta))

    total_loss, g, H, G, J = jax.device_get(derivatives(jnp.concatenate([E.ravel(), V.ravel()])))
    spectrum, R, k = np.linalg.eigvalsh(H)[::-1], np.linalg.eigvalsh(H - G), problem.top_k
    return {
        "loss": total_loss,
        "hessian_eigenvalues": spectrum[:k],
        "hessian_min": spectrum[-1],
        "gauss_newton_eigenvalues": np.linalg.eigvalsh(G)[::-1][:k],
        "residual_eigenvalues": np.array([R[-1], R[0]]),
        "ntk_eigenvalues": np.pad(np.linalg.eigvalsh(J @ J.T / len(x))[::-1], (0, k))[:k],
        "hessian_trace": np.trace(H),
        "directional_sharpness": g @ H @ g / (g @ g),
        "spectrum": spectrum,
    }


def a_network(activation, loss="mse", C=1, P=6, D=4, **options):
    rng = np.random.default_rng(5)
    targets = np.eye(C)[rng.integers(C, size=P)] if loss == "cross_entropy" else rng.normal(size=(P, C))
    problem = Problem(rng.normal(size=(P, D)), targets, model="mlp2", activation=activation, loss=loss,
                      richness=1.3, **{"top_k": 4} | options)  # fmt: skip
    return problem, rng.normal(size=(D, WIDTH)), 2 * rng.normal(size=(WIDTH, C))


CASES = {
    "tanh": ("tanh",), "relu": ("relu",), "erf": ("erf",), "gelu": ("gelu",), "linear": ("linear",),
    "tanh, 3 outputs": ("tanh", "mse", 3), "linear, 3 outputs": ("linear", "mse", 3),
    "tanh, cross-entropy": ("tanh", "cross_entropy", 3), "relu, cross-entropy": ("relu", "cross_entropy", 3),
    "gelu, cross-entropy of two": ("gelu", "cross_entropy", 2), "linear, cross-entropy": ("linear", "cross_entropy", 3),
    "fewer samples than inputs": ("tanh", "mse", 1, 3, 5), "one sample": ("relu", "mse", 2, 1, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_layer_networks_against_dense_hessians(case):
    problem, E, V = a_network(*case)
    with jax.enable_x64(True):
        dense = dense_network(problem, E, V)
    spectrum = hessian_spectrum(problem, E, V)
    whole = np.repeat(spectrum.values, spectrum.multiplicities.astype(int))
    np.testing.assert_allclose(whole, dense["spectrum"], atol=1e-10)
    found = measure_network(problem, E, V)
    assert set(found) == set(dense) - {"spectrum"}
    for name, values in found.items():
        np.testing.assert_allclose(values, dense[name], atol=1e-10, err_msg=name)


def test_weights_that_do_not_fit():
    problem, E, V = a_network("tanh")
    with pytest.raises(ValueError, match=r"weights \(3, 40\) and \(40, 1\): wanted \(D, N\) and \(N, C\)"):
        measure_network(problem, E[:3], V)


def test_weights_that_have_diverged():
    problem, E, V = a_network("tanh")
    found = measure_network(problem, E, np.where(V > 0, np.inf, V))
    assert all(np.isnan(values).all() for name, values in found.items() if name != "loss")
