"""Trajectories as arrays: every axis has its name, every number its definition, and all come back."""

import numpy as np
import pytest

from comparisons import labelled
from limits.trajectory import OBSERVABLES, Trajectory

STEPS = np.array([0, 5, 10])


def trajectory(seed):
    """All four kinds of axes, fewer NTK than Hessian eigenvalues, some measuring errors and products, and a divergence."""
    rng = np.random.default_rng(seed)
    shapes = {"loss": (3,), "hessian_eigenvalues": (3, 4), "ntk_eigenvalues": (3, 2), "residual_eigenvalues": (3, 2),
              "density_nodes": (3, 10), "density_weights": (3, 10)}  # fmt: skip
    observables = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    observables["loss"][-1] = np.inf
    observables["ntk_eigenvalues"][-1] = np.nan
    errors = {name: rng.random(shapes[name]) for name in ("hessian_eigenvalues", "residual_eigenvalues")}
    products = {name: rng.integers(1, 100, size=3) for name in (*errors, "density_nodes", "density_weights")}
    return Trajectory(STEPS, observables, errors, products)


def test_dimensions_and_definitions():
    dataset = labelled.from_trajectories({w: [trajectory(w + s) for s in range(3)] for w in (8, 16)}, seeds=[7, 8, 9])
    assert dict(dataset.sizes) == {"width": 2, "seed": 3, "step": 3, "rank": 4, "edge": 2, "node": 10}
    assert dataset["loss"].dims == ("width", "seed", "step")
    assert dataset["hessian_eigenvalues"].dims == ("width", "seed", "step", "rank")
    assert dataset["residual_eigenvalues_error"].dims == ("width", "seed", "step", "edge")
    assert dataset["density_weights"].dims == ("width", "seed", "step", "node")
    assert dataset["density_nodes_products"].dims == dataset["hessian_eigenvalues_products"].dims == ("width", "seed", "step")
    assert dataset["loss"].attrs["definition"] == OBSERVABLES["loss"].definition
    assert {"long_name", "units"} <= set(dataset["hessian_eigenvalues_error"].attrs)
    assert dataset["hessian_eigenvalues_products"].attrs["long_name"] == "matrix-vector products of Hessian eigenvalues"
    lower = dataset["residual_eigenvalues"].sel(width=16, seed=8, edge="lower")
    np.testing.assert_array_equal(lower, trajectory(17)["residual_eigenvalues"][:, 1])


def test_what_a_cell_holds_is_what_was_put_there():
    originals = [trajectory(seed) for seed in range(3)]
    arrays = labelled.arrays(originals)
    assert arrays["hessian_eigenvalues_error"].shape == (3, 3, 4)
    for ours, again in zip(originals, labelled.trajectories(arrays, STEPS), strict=True):
        np.testing.assert_equal(again.observables, ours.observables)
        np.testing.assert_equal(again.errors, ours.errors)
        np.testing.assert_equal(again.products, ours.products)
        np.testing.assert_array_equal(again.steps, ours.steps)


def other_steps():
    return Trajectory(STEPS + 1, trajectory(0).observables, trajectory(0).errors)


def fewer_observables():
    return Trajectory(STEPS, {"loss": trajectory(0)["loss"]})


@pytest.mark.parametrize(
    ("trajectories", "line"),
    [
        ({}, "no trajectories"),
        ({8: []}, "no trajectories"),
        ({8: [trajectory(0)], 16: [trajectory(0)] * 2}, "width 16 has 2 trajectories for 1 seeds"),
        ({8: [trajectory(0)], 16: [other_steps()]}, "width 16 was not measured at the same steps"),
        ({8: [trajectory(0), fewer_observables()]}, "width 8 does not have the same observables"),
    ],
)
def test_trajectories_that_do_not_fit_together(trajectories, line):
    with pytest.raises(ValueError, match=line):
        labelled.from_trajectories(trajectories)
