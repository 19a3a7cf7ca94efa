"""A random matrix through what it has met: adjoint, of the right law, against matrices of finite size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits.deep import gaussian_matrix
from limits.deep.gaussian_matrix import Space, has_room, unmet
from limits.machine import in_float64

S = 4096
UNTRAINED = np.zeros((8, 8))
_send, _send_back = jax.jit(gaussian_matrix.send), jax.jit(gaussian_matrix.send_back)


def send(matrix, fields, left=1.0, trained=UNTRAINED, through=_send):
    space = Space(jnp.asarray(1.0 / S), jnp.asarray(1e-8))
    return through(space, matrix, jnp.asarray(fields), jnp.asarray(left), jnp.asarray(trained))


def send_back(matrix, fields, left=1.0, trained=UNTRAINED):
    return send(matrix, fields, left, trained, _send_back)


def a_matrix(rng):
    return unmet(jnp.asarray(rng.normal(size=(8, S))), jnp.asarray(rng.normal(size=(8, S))))


def forth_and_back(forth, back, x):
    """Fields that a matrix and its transpose meet in turns: x, y, x', y' with W x, Wᵀ y, …; every nonlinearity another."""
    wx = forth(x)
    y = jnp.tanh(wx)
    wy = back(y)
    x2 = jnp.maximum(wy + x, 0.0)
    wx2 = forth(x2)
    y2 = jnp.tanh(wx2 - 0.5 * wx)
    wy2 = back(y2)
    return [x, x2], [wx, wx2], [y, y2], [wy, wy2]


def by_conditioning(rng):
    """The fields of ``forth_and_back`` of an infinite matrix, (2, S) each side, and the matrix in the end."""
    matrix = a_matrix(rng)

    def step(sender):
        def through(x):
            nonlocal matrix
            matrix, out, _ = sender(matrix, x)
            return out

        return through

    fields = forth_and_back(step(send), step(send_back), jnp.asarray(rng.normal(size=(1, S))))
    return [np.concatenate(f) for f in fields], matrix


@in_float64
def test_the_transpose_is_the_adjoint():
    """<y, W x> = <Wᵀ y, x> for all that was met, to rounding, whatever the number of samples."""
    (x, wx, y, wy), _ = by_conditioning(np.random.default_rng(0))
    np.testing.assert_allclose(y @ wx.T / S, wy @ x.T / S, atol=1e-12)


@in_float64
def test_products_are_those_of_large_matrices():
    """All inner products, each side, in the mean over draws; among them the responses <y, W x'> and <Wᵀ y', x>."""

    def products(fields, size):
        x, wx, y, wy = fields
        below, above = np.concatenate([x, wy]), np.concatenate([wx, y])
        return np.concatenate([(below @ below.T / size).ravel(), (above @ above.T / size).ravel()])

    limit = np.array([products(by_conditioning(np.random.default_rng(s))[0], S) for s in range(20)])
    N, draws = 1024, []
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        W = rng.normal(size=(N, N)) / np.sqrt(1024)
        fields = forth_and_back(lambda x: x @ W.T, lambda y: y @ W, rng.normal(size=(1, N)))  # noqa: B023
        draws.append(products([np.concatenate(f) for f in fields], N))
    error = np.sqrt((np.var(limit, 0) + np.var(draws, 0)) / 20)
    distance = np.abs(np.mean(limit, 0) - np.mean(draws, 0))
    assert (distance < 4.5 * error + 2e-3).all(), distance / error  # both have a bias of order 1/N
    assert np.mean(limit, 0)[3] > 0.1  # x and Wᵀ y': a response


@in_float64
def test_the_trained_part_acts_on_what_was_met():
    rng = np.random.default_rng(3)
    _, matrix = by_conditioning(rng)
    trained, fields = rng.normal(size=(8, 8)), np.asarray(matrix.below[:2])
    _, plain, _ = send(matrix, fields)
    _, out, _ = send(matrix, fields, 0.5, trained)
    expected = 0.5 * plain + (trained[:, :2].T @ np.asarray(matrix.above))
    np.testing.assert_allclose(out, expected, atol=1e-12)
    above = np.asarray(matrix.above[:2])
    _, back, _ = send_back(matrix, above, 0.5, trained)
    np.testing.assert_allclose(fields @ back.T / S, out @ above.T / S, atol=1e-12)


@in_float64
def test_what_was_met_takes_no_room():
    """A field in the span of others comes out as their combination, and is not counted; one beyond the tolerance neither."""
    _, matrix = by_conditioning(np.random.default_rng(4))
    before = int(matrix.num_below)
    mixed = np.array([[0.3, -2.0]]) @ np.asarray(matrix.below[:2])
    again, _, coordinates = send(matrix, mixed * (1 + 1e-13))
    assert int(again.num_below) == before == 2
    np.testing.assert_allclose(coordinates[0, :2], [0.3, -2.0], rtol=1e-9)
    new, _, _ = send(matrix, np.random.default_rng(5).normal(size=(2, S)))
    assert int(new.num_below) == 4
    np.testing.assert_allclose(new.below[:4] @ new.below[:4].T / S, np.eye(4), atol=1e-12)
    assert bool(has_room(new, 4, 6))
    assert not bool(has_room(new, 5, 0))
    assert not bool(has_room(new, 0, 7))


@in_float64
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_the_size_of_a_field_does_not_matter(scale):
    matrix = a_matrix(np.random.default_rng(6))
    x = np.random.default_rng(7).normal(size=(2, S))
    _, out, _ = send(matrix, x)
    _, scaled, _ = send(matrix, scale * x)
    np.testing.assert_allclose(scaled / scale, out, atol=1e-12)
