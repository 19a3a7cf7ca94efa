"""Each loss against its textbook formula, its derivatives against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from limits import Problem
from limits.losses import LOSSES, MSE
from limits.machine import computing

P, C = 5, 4
TEXTBOOK = {
    "mse": lambda f, y: 0.5 * np.sum((f - y) ** 2, axis=1),
    "cross_entropy": lambda f, y: -np.sum(y * np.log(scipy.special.softmax(f, axis=1)), axis=1),
}


@pytest.fixture(autouse=True)
def _float64():
    with computing("float64"):
        yield


def drawn():
    """Outputs, and targets that are probability vectors."""
    rng = np.random.default_rng(0)
    return jnp.asarray(3 * rng.normal(size=(P, C))), jnp.asarray(rng.dirichlet(np.ones(C), size=P))


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_derivatives(name):
    loss, (f, y) = LOSSES[name], drawn()
    np.testing.assert_allclose(loss.value(f, y), TEXTBOOK[name](np.asarray(f), np.asarray(y)), rtol=1e-12)
    np.testing.assert_allclose(loss.mean(f, y), TEXTBOOK[name](np.asarray(f), np.asarray(y)).mean(), rtol=1e-12)
    np.testing.assert_allclose(loss.gradient(f, y), jax.vmap(jax.grad(loss.value))(f, y), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(loss.curvature(f), jax.vmap(jax.hessian(loss.value))(f, y), rtol=1e-12, atol=1e-14)
    root = loss.root(f)
    np.testing.assert_allclose(root @ root.swapaxes(1, 2), loss.curvature(f), rtol=1e-12, atol=1e-14)
    assert loss.quadratic == np.allclose(loss.curvature(f), np.eye(C))


def test_cross_entropy_of_large_outputs_is_finite():
    f, y = jnp.array([[1e4, 0.0, -1e4]]), jnp.array([[0.0, 1.0, 0.0]])
    assert LOSSES["cross_entropy"].value(f, y).tolist() == [1e4]
    assert np.isfinite(LOSSES["cross_entropy"].curvature(f)).all()


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        ("hinge", np.eye(3), "unknown loss 'hinge'; known: mse, cross_entropy"),
        ("cross_entropy", np.ones(3), "wants one output per class, at least 2"),
        ("cross_entropy", np.ones((3, 2)), "wants a probability vector per sample"),
        ("cross_entropy", np.array([[2.0, -1.0]] * 3), "wants a probability vector per sample"),
    ],
)
def test_refusals(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        Problem(np.ones((3, 2)), targets, loss=loss)


def test_mse_is_the_usual_one():
    assert Problem(np.ones((3, 2)), np.ones(3)).loss == MSE.name
