"""A law from independent draws, against Python's own statistics."""

from math import sqrt
from statistics import fmean, stdev

import numpy as np
import pytest

from limits.law import law_of_draws


def test_of_draws():
    rng = np.random.default_rng(0)
    squares, second = rng.uniform(1.0, 2.0, size=(5, 3)), rng.normal(size=(7, 3))
    law = law_of_draws(squares, second, np.array([True, True, False]))
    for t in range(2):
        std = sqrt(fmean(squares[:, t]))
        assert law.std[t] == pytest.approx(std)
        assert law.std_error[t] == pytest.approx(stdev(squares[:, t]) / sqrt(5) / (2 * std))  # of √ by its derivative
        assert law.bias[t] == pytest.approx(fmean(second[:, t]) / 2)
        assert law.bias_error[t] == pytest.approx(stdev(second[:, t]) / sqrt(7) / 2)
        assert law.shift[t] == law.shift_error[t] == 0
    assert np.isnan([values[2] for values in law]).all()


def test_what_does_not_fluctuate_has_no_error():
    law = law_of_draws(np.zeros((4, 2)), np.ones((4, 2)))
    np.testing.assert_array_equal(law.std_error, 0.0)
    np.testing.assert_array_equal(law.bias, 0.5)
