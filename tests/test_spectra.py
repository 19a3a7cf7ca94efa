"""What all theories ask of eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits.machine import by_batches, computing
from limits.spectra import apart, largest, leading_eigenvalues, spectrum


def test_leading_eigenvalues_have_two_right_derivatives():
    """Against central differences of numpy's eigenvalues, along a curve of symmetric matrices."""
    rng = np.random.default_rng(0)
    A, B, Q = (a + a.T for a in rng.normal(size=(3, 6, 6)))

    def exact(h):
        return np.linalg.eigvalsh(A + h * B + h**2 * Q)[::-1][:3]

    h = 1e-4
    slopes = (exact(h) - exact(-h)) / (2 * h)
    bends = (exact(h) - 2 * exact(0.0) + exact(-h)) / h**2
    with computing("float64"):
        curve = lambda t: leading_eigenvalues(jnp.asarray(A) + t * B + t**2 * Q, 3)  # noqa: E731
        one = (jnp.ones(()),)
        first, second = jax.jvp(lambda t: jax.jvp(curve, (t,), one)[1], (jnp.zeros(()),), one)
    np.testing.assert_allclose(first, slopes, rtol=1e-4)
    np.testing.assert_allclose(second, bends, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [2, 7])
def test_the_largest_and_beyond_their_number_zeros(k):
    values = np.array([-3.0, 0.5, 2.0, -1.0, 2.0])
    expected = sorted([*values, *[0.0] * (k - len(values))], reverse=True)[:k]
    with computing("float64"):
        compiled = jax.jit(largest, static_argnums=1)(jnp.asarray(values), k)
    np.testing.assert_array_equal(largest(values, k), expected)
    np.testing.assert_array_equal(compiled, expected)


@pytest.mark.parametrize("tolerance", [1e-7, 0.3])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_an_eigenvalue_is_apart_if_no_other_is_near(k, tolerance):
    """Against all pairs; seven values, two of them equal, so that with k = 6 the last is one more than is asked for."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1.0, size=(20, 7))
    values[:, 3] = values[:, 5] * (1 + 1e-9)
    values = np.sort(values)[:, ::-1]
    near = np.abs(values[:, :, None] - values[:, None, :]) <= tolerance * values[:, :1, None]
    expected = near.sum(2)[:, :k] == 1
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(apart(values, k, tolerance), expected)
    np.testing.assert_array_equal(apart(values[0], k, tolerance), expected[0])


def test_beyond_the_last_eigenvalue_there_are_zeros():
    np.testing.assert_array_equal(apart(np.array([2.0, 1e-9]), 4), [True, False, False, False])


def test_a_spectrum_is_in_order_and_has_what_occurs():
    values, counts = spectrum(np.array([1.0, -2.0, 5.0, 3.0]), np.array([2.0, 1.0, 1.0, 0.0]), 4)
    np.testing.assert_array_equal(np.repeat(values, counts.astype(int)), [5, 1, 1, 0, 0, 0, 0, -2])
    assert 0.0 not in spectrum(np.ones(1), np.ones(1), 0).values


@pytest.mark.parametrize(("rows", "most", "length"), [(7, 3, 3), (66, 64, 33), (4, 8, 4)])
def test_batches_have_one_length(rows, most, length):
    """So that one is compiled.  Against the function of each row."""
    values = np.arange(2.0 * rows).reshape(rows, 2)

    def function(row):
        return {"sum": row.sum(), "square": row**2}

    found = by_batches(function, jnp.asarray(values), most)
    np.testing.assert_array_equal(found["sum"], values.sum(1))
    np.testing.assert_array_equal(found["square"], values**2)
    text = str(jax.make_jaxpr(lambda a: by_batches(function, a, most))(values))
    assert text.count("scan[") == 1
    assert f"f32[{length},2]" in text
