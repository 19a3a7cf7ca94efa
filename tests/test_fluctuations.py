"""The predicted 1/√N and 1/N laws against finite differences of the exact solution, sampled Gram matrices, closed forms."""

import jax
import numpy as np
import pytest

from limits import Problem, minibatches
from limits.exponents.parametrization import interpolated
from limits.two_layer import linear as linear2
from limits.two_layer import linear_law as fluctuations

WIDE = 10**6  # any width above D + C: in μP the recursion itself does not contain it


def small_problem(C=1, **options):
    rng = np.random.default_rng(3)
    options = {"num_steps": 6, "measure_every": 3, "learning_rate": 0.4, "top_k": 2} | options
    return Problem(inputs=rng.normal(size=(8, 3)), targets=rng.normal(size=(8, C)), **options)


def at(problem, X):
    return linear2.solve(problem, width=WIDE, gram=np.eye(len(X)) + X)


RICH = {"momentum": 0.3, "weight_decay": 0.05, "batches": minibatches(np.random.default_rng(0), 8, 4, 6)}


@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "momentum, decay, minibatches"])
def test_meanfield_law_equals_finite_differences(options):
    """Sensitivity along every direction, and ½ΣD²o over the directions of a Wishart matrix, by central differences."""
    problem = small_problem(**options)
    prediction = fluctuations.predict(problem)
    n, h = 4, 1e-3
    limit = linear2.solve(problem)
    std2 = {name: 0.0 for name in prediction}
    bias = {name: 0.0 for name in prediction}
    for i in range(n):
        for j in range(i + 1):
            B = np.zeros((n, n))
            B[i, j] = B[j, i] = np.sqrt(2) if i == j else 1.0
            up, down = at(problem, h * B), at(problem, -h * B)
            slope = prediction.first_order(np.eye(n) + B)
            for name in prediction:
                first = (up[name] - down[name]) / (2 * h)
                np.testing.assert_allclose(slope[name], first, rtol=1e-4, atol=1e-5, err_msg=name)
                std2[name] += first**2
                bias[name] += 0.5 * (up[name] - 2 * limit[name] + down[name]) / h**2
    for name, law in prediction.items():
        np.testing.assert_allclose(law.std, np.sqrt(std2[name]), rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(law.bias, bias[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_both_routes_agree(monkeypatch):
    """Reverse sweeps and random directions, made for large problems, against the sum over all directions."""
    problem = small_problem(C=2)
    exact = fluctuations.predict(problem)
    monkeypatch.setattr(fluctuations, "EXACT_DIRECTIONS", 1)
    sampled = fluctuations.predict(problem)
    for name in exact:
        np.testing.assert_allclose(sampled[name].std, exact[name].std, rtol=1e-9, err_msg=name)
        distance = np.abs(sampled[name].bias - exact[name].bias)
        assert np.all(np.isnan(distance) | (distance <= 5 * sampled[name].bias_error + 1e-9)), name


def test_closed_forms():
    """One sample, x = 1: at step 0 Θ = S_EE + S_VV has std 2/√N and no bias; L = ½(S_EV√N/γ0 … − y)² as below."""
    y, richness = 1.7, 0.8
    problem = Problem(inputs=np.ones((1, 1)), targets=[[y]], richness=richness, num_steps=0, top_k=1)
    law = fluctuations.predict(problem)
    np.testing.assert_allclose(law["ntk_eigenvalues"].std, 2.0)
    np.testing.assert_allclose(law["ntk_eigenvalues"].bias, 0.0, atol=1e-12)
    np.testing.assert_allclose(law["loss"].std, y / richness)  # f(0) = S_EV/γ0, variance 1/(Nγ0²)
    np.testing.assert_allclose(law["loss"].bias, 0.5 / richness**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("mup", marks=pytest.mark.long), "ntp"])  # μP's: finite differences, above
def test_laws_describe_sampled_networks(name):
    """Root mean square and mean over 600 networks of width 3000 (their exact trajectories), within the sampling error.

    Of two outputs: in μP pairs of eigenvalues at step 0 alone, in NTP always.
    """
    problem = small_problem(C=2, parametrization=name)
    width, count, D = 3000, 600, problem.num_inputs
    prediction, limit = fluctuations.predict(problem), linear2.solve(problem)
    deviations = {observable: [] for observable in prediction}
    corrected = {observable: [] for observable in prediction}
    for key in jax.random.split(jax.random.key(5), count):
        gram = linear2.sample_gram(key, problem, width=width)
        network = linear2.solve(problem, width=width, gram=gram)
        if name == "ntp":
            f0 = problem.inputs @ gram[:D, D:] * np.sqrt(width / D) / problem.richness
            limit = linear2.solve(problem, initial_outputs=f0)
        first = prediction.first_order(gram) if name == "mup" else None
        for observable in prediction:
            difference = network[observable] - limit[observable]
            deviations[observable].append(difference)
            corrected[observable].append(difference - (first[observable] if first else 0))
    for observable, law in prediction.items():
        squares = np.square(deviations[observable]) * width
        error = np.hypot(squares.std(0) / np.sqrt(count), 2 * law.std * law.std_error)
        assert np.all(np.abs(squares.mean(0) - law.std**2) <= 5 * error + 0.02 * law.std**2 + 1e-12), observable
        mean = np.mean(corrected[observable], 0)
        predicted = law.shift / np.sqrt(width) + law.bias / width
        error = np.std(corrected[observable], 0) / np.sqrt(count) + law.shift_error / np.sqrt(width)
        slack = 5 * error + (5 * law.bias_error + 0.15 * np.abs(law.bias) + 0.05) / width
        assert np.all(np.abs(mean - predicted) <= slack), observable


@pytest.mark.parametrize("name", ["mup", pytest.param("ntp", marks=pytest.mark.slow)])
def test_pair_in_closed_form(name):
    """One sample, x = 1, two outputs: Θ = S_EE + S_VV is 2, twice, and Θ' = h + Ξ with h ~ N(0,2) and a symmetric 2 × 2 matrix.

    Its eigenvalues are t ± r, t ~ N(0,1) and r of density r e^{-r²/2}: mean ±√(π/2), and both have variance 2 + 1 + 2.
    """
    problem = Problem(np.ones((1, 1)), [[0.3, -0.7]], num_steps=0, top_k=2, parametrization=name)
    law = fluctuations.predict(problem, draws=4096)["ntk_eigenvalues"]
    assert np.all(np.abs(law.shift[0] - np.sqrt(np.pi / 2) * np.array([1, -1])) <= 4 * law.shift_error[0])
    assert np.all(np.abs(law.std[0] - np.sqrt(5)) <= 4 * law.std_error[0])
    assert np.all(law.std_error[0] < 0.03)


@pytest.mark.slow
def test_residual_edge_is_shifted_in_ntp():
    """λ_max(R) = c σ(G) ≥ 0 vanishes in the limit, so its mean is of order N^{-1/2}; that of the NTK is not."""
    prediction = fluctuations.predict(small_problem(parametrization="ntp"), draws=256)
    assert (prediction["residual_eigenvalues"].shift[:, 0] > 0).all()
    assert (prediction["ntk_eigenvalues"].shift == 0).all()


def test_edge_crossing():
    problem = small_problem(learning_rate=0.4, num_steps=20, measure_every=2)
    limit = linear2.solve(problem)
    assert fluctuations.edge_crossing(problem, limit) is None
    hot = small_problem(learning_rate=1.02 * 2 / limit["sharpness"].min(), num_steps=20, measure_every=2)
    crossing = fluctuations.edge_crossing(hot, linear2.solve(hot))
    assert crossing is not None
    assert linear2.solve(hot)["sharpness"][crossing // 2] > hot.edge_of_stability


def test_refusals():
    with pytest.raises(ValueError, match="predicted for ntp and mup"):
        fluctuations.predict(small_problem(parametrization=interpolated(0.25)))
    with pytest.raises(ValueError, match="in μP only"):
        fluctuations.predict(small_problem(parametrization="ntp"), draws=8).first_order(np.eye(4))
