"""Residual networks of infinite depth: closed forms at step 0, differential equations, and networks of finite depth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from limits import Problem, minibatches
from limits.deep import dmft
from limits.deep import infinite_depth as depth

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 1))
K = X @ X.T / 3


def a_problem(param="depth_mup", **options):
    usual = {"model": "resmlp", "activation": "linear", "depth": 4, "num_steps": 4, "measure_every": 4, "learning_rate": 0.1}
    return Problem(X, Y, param, **usual | options)


def top(kernel):
    """Its eigenvalues over P, largest first."""
    return np.linalg.eigvalsh(kernel)[::-1] / len(kernel)


@pytest.mark.parametrize(("param", "kernel"), [("depth_mup", 3 * np.e * K), ("alpha1", 3 * K)])
def test_the_ntk_of_linear_networks_at_step_0(param, kernel):
    """Three times e K in Depth-μP, three times K for α = 1: first layer, blocks and last layer have the same share."""
    found = depth.solve(a_problem(param, depth=8, num_steps=0))
    assert (np.abs(found["ntk_eigenvalues"][0] - top(kernel)) < 2 * found.error("ntk_eigenvalues")[0]).all()
    np.testing.assert_allclose(found["ntk_eigenvalues"][0], top(kernel), rtol=5e-4)


def test_kernels_of_finite_depth_at_step_0():
    """(1 + 1/L)^l K behind l blocks; between the ends of a block, L − 1 of them, less than e K by 3/(2L)."""
    L = 8
    found, _, _ = dmft.kernels(a_problem(depth=L, num_steps=0))
    growth = 1.125
    for l in range(L + 1):
        np.testing.assert_allclose(found.features[l, 0, 0], growth**l * K, rtol=1e-10)
        np.testing.assert_allclose(found.gradients[l, 0, 0, :, 0, :, 0], growth ** (L - l) * np.ones((3, 3)), rtol=1e-10)
    np.testing.assert_allclose(found.ntk[0, :, 0, :, 0], (2 * growth**L + growth ** (L - 1)) * K, rtol=1e-10)
    in_block = [growth_of(L) ** (L - 1) / np.e - 1 for L in (64, 128)]
    np.testing.assert_allclose(in_block, [-1.5 / 64, -1.5 / 128], rtol=0.03)


def growth_of(L):
    return 1 + 1 / L


def relu_moments(kernel):
    """E φ(u) φ(v), E φ'(u) φ'(v) (Cho & Saul 2009)."""
    size = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    angle = np.arccos(np.clip(kernel / size, -1, 1))
    return size * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def relu_ntk(noisy):
    """Θ at L = ∞: with s the depth over L, dK/ds = Φ, dG/ds = −Φ' ∘ G (both times 0 for α = 1), Θ = G K + ∫ Φ G ds + Φ."""
    end = noisy * solve_ivp(lambda s, k: relu_moments(k.reshape(3, 3))[0].ravel(), (0, 1), K.ravel(), rtol=1e-9).y[:, -1]
    end = end.reshape(3, 3) if noisy else K

    def back(s, state):  # from the last layer, K and G and ∫ Φ G
        kernel, gradient, _ = state.reshape(3, 3, 3)
        phi, slope = relu_moments(kernel)
        return np.concatenate([-noisy * phi, noisy * slope * gradient, phi * gradient]).ravel()

    phi, slope = relu_moments(end)
    start = np.concatenate([end, slope, np.zeros((3, 3))]).ravel()
    first, gradient, blocks = solve_ivp(back, (0, 1), start, rtol=1e-9).y[:, -1].reshape(3, 3, 3)
    np.testing.assert_allclose(first, K, atol=1e-6)
    return gradient * K + blocks + phi


@pytest.mark.slow
@pytest.mark.parametrize(("param", "noisy"), [("depth_mup", 1), ("alpha1", 0)])
def test_the_ntk_of_relu_networks_at_step_0_solves_a_differential_equation(param, noisy):
    problem = a_problem(param, activation="relu", depth=2, num_steps=0)
    found = depth.solve(problem, samples=8192, repeats=4)
    value, error = found["ntk_eigenvalues"][0], found.error("ntk_eigenvalues")[0]
    exact = top(relu_ntk(noisy))
    assert (np.abs(value - exact) < 4 * error).all()
    assert error[0] < 0.03 * exact[0]


@pytest.mark.slow
def test_networks_approach_infinite_depth_as_1_over_L():
    """Trained: from depth 3, 6 and 12, what is left at 9 and 18, which the extrapolation has not seen, halves."""
    problem = a_problem(depth=3, momentum=0.4, weight_decay=0.1, batches=minibatches(np.random.default_rng(1), 3, 2, 4))
    limit = depth.solve(problem)
    for name in ("loss", "ntk_eigenvalues"):
        found = (dmft.solve(replace(problem, depth=L), hessian=False) for L in (9, 18))
        far, near = (np.ravel(of[name][-1] - limit[name][-1])[0] for of in found)
        assert near / far == pytest.approx(0.5, rel=0.1)


def test_extrapolation_cancels_powers_of_the_depth():
    depths = np.array([3.0, 6.0, 12.0])
    values = 0.7 + 2.0 / depths - 5.0 / depths**2
    assert depth.weights([3, 6, 12]) @ values == pytest.approx(0.7, rel=1e-12)
    np.testing.assert_allclose(depth.weights([3, 6, 12]), [1 / 3, -2, 8 / 3], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "mlp", "param": "mup"}, "model 'mlp' has no limit of infinite depth: resmlp has"),
        ({"param": "mup"}, "mup has no known limit of infinite depth"),
        ({"param": "base=depth_mup, block.learning_rate.L=1"}, "has no known limit of infinite depth"),
        (
            {"param": "base=depth_mup, block.multiplier.L=-3/4, block.learning_rate.L=1/2"},
            "has no known limit of infinite depth",
        ),
        ({"param": "sp"}, "sp has no known limit of infinite depth"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        depth.solve(a_problem(**options))


def test_divergence_is_data():
    limit = depth.solve(a_problem(learning_rate=1e30, depth=1))
    assert limit.diverged.tolist() == [False, True]
    assert np.isnan(limit["ntk_eigenvalues"][1]).all()
