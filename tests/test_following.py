"""How long networks follow the limit beyond the edge: trajectories whose follow time is known, and the law of many draws."""

import numpy as np
import pytest
import xarray as xr

from comparisons.convergence import picture
from comparisons.convergence.following import (
    TOLERANCE,
    followed_steps,
    growth_of,
    measure_following,
    predicted_steps,
    relative_deviations,
)
from limits.law import Law, Prediction

WIDTHS = np.array([64, 256, 1024, 4096, 16384])
STEPS = np.arange(0, 201, 2)
GROWTHS = {"log N": lambda t: np.exp(0.1 * t), "√N": lambda t: 1 + 0.5 * t, "to the end": lambda t: np.ones_like(t, float)}


def synthetic(grows, seeds=48) -> xr.Dataset:
    """Loss 3, sharpness 5 in the limit; networks z N^-½ times what differences grow to off it, relatively."""
    z = np.random.default_rng(0).normal(size=(len(WIDTHS), seeds, 1))
    off = z * WIDTHS[:, None, None] ** -0.5 * grows(STEPS)
    dims, coordinates = ("width", "seed", "step"), {"width": WIDTHS, "step": STEPS}
    found = {"loss": 3 * (1 + off), "loss_deviation": 3 * off}
    variables = {name: (dims, values) for name, values in found.items()}
    variables |= {name: ((*dims, "rank"), values[..., None]) for name, values in
                  {"hessian_eigenvalues": 5 * (1 + off), "hessian_eigenvalues_deviation": 5 * off}.items()}  # fmt: skip
    variables |= {"loss_limit": ("step", np.full(len(STEPS), 3.0)),
                  "hessian_eigenvalues_limit": (("step", "rank"), np.full((len(STEPS), 1), 5.0))}  # fmt: skip
    return xr.Dataset(variables, coordinates | {"rank": [1]})


def law_of(grows) -> Prediction:
    none = np.zeros(len(STEPS))
    return Prediction({"loss": Law(3 * grows(STEPS), *[none] * 5)})


def test_the_first_step_that_is_off_counts():
    off = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    np.testing.assert_array_equal(followed_steps(off, np.array([0, 2, 4, 6])), [4, 0, 6, 6])


@pytest.mark.parametrize("law", GROWTHS)
def test_synthetic_networks_follow_as_long_as_their_growth_says(law):
    grows = GROWTHS[law]
    loss, sharpness = measure_following(synthetic(grows), law_of(grows), crossing=2)
    assert loss.law == sharpness.law == law
    assert loss.steps == sharpness.steps
    z = np.abs(np.random.default_rng(1).normal(size=(4000, 1)))
    for width, steps, (low, high), predicted in zip(WIDTHS, loss.steps, loss.intervals, loss.predicted, strict=True):
        off = z * grows(STEPS) > TOLERANCE * width**0.5
        off[:, -1] = True
        each = STEPS[off.argmax(axis=1)]
        assert predicted == pytest.approx(np.mean(each), abs=4 * np.std(each) / 63 + 1e-3)
        assert low - (high - low) / 2 - 1 <= np.mean(each) <= high + (high - low) / 2
        assert 0 <= low <= steps <= high <= STEPS[-1]
    if law == "log N":
        assert loss.interval[0] < 0.1 < loss.interval[1]
        assert loss.rate == pytest.approx(0.1, rel=0.15)
    else:
        assert np.isnan([loss.rate, *loss.interval]).all()


def test_few_widths_that_go_astray_decide_nothing():
    """Of the widest all follow to the end; of two all are lost."""
    (loss, _) = measure_following(synthetic(lambda t: np.ones_like(t, float)), None, crossing=0)
    assert loss.law == "to the end"
    assert loss.predicted is None
    assert np.isnan(loss.rate)
    assert measure_following(synthetic(GROWTHS["log N"]).isel(width=[0, 1]), None, crossing=0)[0].law == "undecided"


def test_what_does_not_depend_on_the_width_has_no_law():
    law, rate, _ = growth_of(WIDTHS, np.random.default_rng(0).poisson(40, size=(5, 32)))
    assert law == "undecided"
    assert np.isnan(rate)


@pytest.mark.parametrize("grows", [lambda n: n / 16, lambda n: 40 - 200 * n**-0.5])
def test_what_grows_like_neither_has_no_law(grows):
    steps = grows(WIDTHS[:, None]) + 3 * np.random.default_rng(0).gumbel(size=(5, 32))
    assert growth_of(WIDTHS, np.round(steps).clip(0).astype(int))[0] == "undecided"


@pytest.mark.parametrize(("error", "until"), [(0.0, 200), (0.04, 200), (0.06, 0), (lambda t: 0.004 * t, 12)])
def test_of_a_limit_that_is_not_known_nothing_is_said(error, until):
    """Relative errors; a quarter of the tolerance is 0.05.  The law is read at the same steps."""
    values = synthetic(GROWTHS["log N"])
    relative = error(STEPS) if callable(error) else np.full(len(STEPS), error)
    values["loss_error_limit"] = "step", 3 * relative
    (loss, sharpness) = measure_following(values, law_of(GROWTHS["log N"]), crossing=2)
    assert loss.until == until
    assert sharpness.until == 200
    whole = measure_following(synthetic(GROWTHS["log N"]), law_of(GROWTHS["log N"]), crossing=2)[0]
    assert max(loss.steps) <= until
    assert (loss.steps == whole.steps) == (until == 200)
    np.testing.assert_array_equal(np.array(loss.predicted) <= until, True)
    figure = picture.following(values, [loss], 4.9, "a title")
    known = [line.get_xdata()[0] for axis in figure.axes for line in axis.lines if line.get_label() == picture.KNOWN]
    assert known == [until] * (until < 200)


def test_where_the_law_ends_late_enough_it_still_says_how_long():
    """Of the sharpness there is none where differences are so large that the next order counts."""
    values, whole = synthetic(GROWTHS["log N"]), law_of(GROWTHS["log N"])
    expected = measure_following(values, whole, crossing=2)[0].predicted
    for step, known in ((160, True), (60, False), (0, False)):
        std = np.where(step > STEPS, whole["loss"].std, np.nan)
        found = measure_following(values, Prediction({"loss": whole["loss"]._replace(std=std)}), crossing=2)[0].predicted
        assert (found is not None) == known
        if known:
            np.testing.assert_allclose(found, expected, atol=1)


def test_a_divergence_is_off_and_the_picture_is_drawn():
    values = synthetic(GROWTHS["log N"], seeds=8)
    np.testing.assert_allclose(relative_deviations(values, "loss"), abs(values["loss"] / 3 - 1), atol=1e-12)
    for name in ("loss", "loss_deviation"):
        values[name][0, 0, 5:] = np.nan
    found = measure_following(values, law_of(GROWTHS["log N"]), crossing=2)
    assert found[0].steps[0] <= found[1].steps[0]
    figure = picture.following(values, found, 4.9, "a title")
    (of_widths,) = [axis for axis in figure.axes if axis.get_xlabel() == "width $N$"]
    drawn = [line for line in of_widths.lines if line.get_label() == "predicted"]
    np.testing.assert_allclose(drawn[0].get_ydata(), predicted_steps(GROWTHS["log N"](STEPS), WIDTHS, STEPS))
