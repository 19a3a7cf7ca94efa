"""What the errors of sampled quantities promise: the truth within twice of them in 95 % of draws."""

import numpy as np
import pytest

from limits import Problem
from limits.deep import dmft
from limits.kernel import ntk
from limits.repeats import CURVED, drift, error_of_eigenvalues, errors_of, first_ranks, repulsion, scatter
from limits.two_layer import meanfield

DRAWS = 1000


def eigenvalues(matrices):
    return np.linalg.eigvalsh(matrices)[..., ::-1]


@pytest.mark.parametrize("R", [2, 4, 8])
def test_the_scatter_of_a_mean(R):
    draws = np.random.default_rng(0).normal(size=(R, DRAWS))
    assert 0.93 < np.mean(np.abs(draws.mean(0)) <= 2 * scatter(draws)) < 0.97


@pytest.mark.parametrize("R", [4, 8])
@pytest.mark.parametrize(
    "true", [(0, -20, -40), (0, -3, -6, -9), (0, 0, -8, -8), (0, 0, 0, -9), (0, 0, 0, 0, 0), (1, 0, -5, -9)]
)
def test_eigenvalues_single_multiple_and_close(true, R):
    """Of R noisy matrices, variances 1 on the diagonal and 1/2 beside it: means of theirs, and those of their mean."""
    noise = np.random.default_rng(0).normal(size=(DRAWS, R, len(true), len(true)))
    matrices = np.diag(true) + (noise + noise.swapaxes(-1, -2)) / 2
    each = eigenvalues(matrices)
    for values, averaged in ((each.mean(1), 1), (eigenvalues(matrices.mean(1)), R)):
        error = error_of_eigenvalues(values, each.swapaxes(0, 1), averaged=averaged)
        assert (np.mean(np.abs(values - true) <= 2 * error, 0) > 0.93).all(), (
            averaged,
            np.mean(np.abs(values - true) <= 2 * error, 0),
        )


def test_the_scatter_alone_misses_a_twofold_eigenvalue():
    noise = np.random.default_rng(0).normal(size=(DRAWS, 4, 2, 2))
    each = eigenvalues(noise + noise.swapaxes(-1, -2))
    assert np.mean(np.abs(each.mean(1)) <= 2 * scatter(each.swapaxes(0, 1))) < 0.9


def test_repulsion():
    found = repulsion(np.array([[5.0, 4.0, 0.0]]), np.array([[0.5, 0.5, 0.1]]))
    np.testing.assert_allclose(found, [[0.5 + 0.25 / 5, 0.5 + 0.25 / 4, 0.01 / 5 + 0.01 / 4]])
    np.testing.assert_array_equal(repulsion(np.array([[2.0, 2.0, 0.0]]), np.zeros((1, 3))), 0)
    assert np.isnan(repulsion(np.full((1, 2), np.nan), np.full((1, 2), np.nan))).all()


def test_past_the_edge_errors_grow_to_those_of_one_repeat():
    """The edge is 4; once it was crossed, repeats drift apart.  Then what the mean's value is off theirs counts, too."""
    problem = Problem(np.eye(2), [1.0, -1.0], learning_rate=0.5, num_steps=4)
    tops = np.array([[3.0, 1.0], [np.nan, 1.0], [4.1, 0.0], [3.9, 0.0], [3.8, 0.0]])
    of_repeats = {"loss": np.array([[1.0, 1.0, 4.8, 2.0, 3.0], [1.0, 3.0, 5.2, 6.0, 3.0]]),
                  "hessian_eigenvalues": np.array([[1.0, 2, 4, 8, 5], [1.5, 2, 4, 7, 4]])[..., None]}  # fmt: skip
    values = {name: repeats.mean(0) for name, repeats in of_repeats.items()}
    drifts = drift(problem, {**values, "gauss_newton_eigenvalues": tops}, of_repeats)
    np.testing.assert_allclose(drifts, [0, 0, CURVED * np.sqrt(0.08) / 5, 1, 1])
    values["loss"] = values["loss"] - [0.1, 0.1, 0.5, 0.25, 0.0]
    found = errors_of(values, of_repeats, drifts, averaged=1)
    scattered = {name: scatter(repeats) for name, repeats in of_repeats.items()}
    larger = np.sqrt(1 + 2 * drifts**2)  # than of two repeats
    np.testing.assert_allclose(found["loss"], np.hypot(larger * scattered["loss"], [0, 0, 0.5, 0.25, 0.0]))
    np.testing.assert_allclose(found["hessian_eigenvalues"][:, 0], larger * scattered["hessian_eigenvalues"][:, 0])


def test_repeats_that_diverged_are_one_each():
    problem = Problem(np.eye(2), [1.0, -1.0], learning_rate=0.5, num_steps=1)
    values = {"loss": np.array([1.0, np.nan]), "gauss_newton_eigenvalues": np.array([[5.0], [np.nan]])}
    assert drift(problem, values, {"loss": np.array([[1.0, np.inf], [1.0, np.nan]])}).tolist() == [0.0, 1.0]


@pytest.mark.slow
def test_few_samples_know_how_far_past_the_edge_they_are_off_many():
    """By 1.7 of the standard errors of the mean the loss was off, root mean square."""
    rng = np.random.default_rng(0)
    problem = Problem(rng.normal(size=(8, 4)), rng.normal(size=(8, 1)), model="mlp3", learning_rate=2.2, num_steps=40,
                      measure_every=2, top_k=1)  # fmt: skip
    many = dmft.solve(problem, samples=4096, repeats=4, hessian=False)
    for name in ("loss", "ntk_eigenvalues"):
        off = []
        for seed in range(10, 14):
            few = dmft.solve(problem, samples=512, repeats=8, hessian=False, seed=seed)
            past = np.logical_or.accumulate(few["gauss_newton_eigenvalues"][:, 0] > problem.edge_of_stability)
            off.append(((few[name] - many[name]) / few.error(name))[past])
        assert np.sqrt(np.mean(np.concatenate(off) ** 2)) < 1.2


def test_first_ranks():
    cut = first_ranks({"loss": np.zeros(3), "ntk_eigenvalues": np.zeros((3, 4)), "residual_eigenvalues": np.zeros((3, 2))}, 1)
    assert {name: values.shape for name, values in cut.items()} == {
        "loss": (3,), "ntk_eigenvalues": (3, 1), "residual_eigenvalues": (3, 2)}  # fmt: skip


SOLVERS = {
    "mlp2": lambda problem, seed: meanfield.solve(problem, particles=256, seed=seed),
    "mlp3": lambda problem, seed: dmft.solve(problem, samples=256, repeats=4, seed=seed, hessian=False),
}


@pytest.mark.parametrize(("model", "activation"), [("mlp2", "relu"), ("mlp3", "erf")])
def test_the_ntk_at_step_0_is_within_its_errors(model, activation):
    """Every eigenvalue is twofold: two outputs.  Against the analytic kernel, over twenty seeds."""
    rng = np.random.default_rng(0)
    options = {"model": model, "activation": activation, "num_steps": 0, "top_k": 5}
    X, Y = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    exact = ntk.solve(Problem(X, Y, "ntp", **options))["ntk_eigenvalues"][0]
    problem, within, size = Problem(X, Y, **options), [], []
    for seed in range(20):
        found = SOLVERS[model](problem, seed)
        within.append(np.abs(found["ntk_eigenvalues"][0] - exact) <= 2 * found.error("ntk_eigenvalues")[0])
        size.append(found.error("ntk_eigenvalues")[0] / exact)
    assert np.mean(within) >= 0.95
    assert np.median(size) < 0.08
