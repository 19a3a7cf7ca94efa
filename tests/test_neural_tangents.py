"""neural-tangents, as mended: it imports on this JAX, leaves JAX alone, and computes the right kernels."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits.kernel import neural_tangents_compat

nt = neural_tangents_compat.load()

X1, X2 = (jax.random.normal(jax.random.key(i), (n, 3)) for i, n in ((1, 4), (2, 5)))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32


def two_layers(params, x):
    """(n, 3) → (n, 2); with a split, whose several outputs neural-tangents cannot walk through by itself."""
    left, right = jnp.split(jnp.tanh(x @ params["w"]), 2, axis=-1)
    return (left * right) @ params["v"]


PARAMS = {"w": jax.random.normal(jax.random.key(3), (3, 8)), "v": jax.random.normal(jax.random.key(4), (4, 2))}


def jacobian(x):
    """(n, 2, number of parameters)"""
    leaves = jax.tree_util.tree_leaves(jax.jacobian(two_layers)(PARAMS, x))
    return jnp.concatenate([leaf.reshape(len(x), 2, -1) for leaf in leaves], axis=-1)


@pytest.mark.parametrize("implementation", list(nt.NtkImplementation), ids=lambda i: i.name)
def test_empirical_ntk_is_the_contracted_jacobian(implementation):
    ntk = nt.empirical_ntk_fn(two_layers, trace_axes=(), implementation=implementation)(X1, X2, PARAMS)
    expected = jnp.einsum("ncp,mdp->nmcd", jacobian(X1), jacobian(X2))
    np.testing.assert_allclose(ntk, expected, **TOLERANCE)


def test_relu_kernel_is_the_arc_cosine_kernel():
    """Cho & Saul 2009, eq. 6: K = |x||y| (sin θ + (π − θ) cos θ)/π for E[relu relu] doubled, inputs over √D."""
    _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(1, W_std=1.0), nt.stax.Relu(), nt.stax.Dense(1, W_std=2.0**0.5))
    norms = jnp.linalg.norm(X1, axis=1)[:, None] * jnp.linalg.norm(X2, axis=1)[None, :]
    angle = jnp.arccos(X1 @ X2.T / norms)
    expected = norms * (jnp.sin(angle) + (jnp.pi - angle) * jnp.cos(angle)) / jnp.pi / 3
    np.testing.assert_allclose(kernel_fn(X1, X2, "nngp"), expected, **TOLERANCE)


def test_predict_takes_a_traced_kernel():
    """f(t) = (1 − exp(−η K t/P)) y on the training set, here with P outputs and η = 1, under jit."""
    k, y = jnp.diag(jnp.array([1.0, 2.0])), jnp.ones((2, 1))
    predict = jax.jit(lambda k: nt.predict.gradient_descent_mse(k, y)(2.0, jnp.zeros((2, 1)), jnp.zeros((2, 1)), k)[0])
    np.testing.assert_allclose(predict(k)[:, 0], 1 - np.exp(-np.array([1.0, 2.0])), **TOLERANCE)


def test_largest_learning_rate():
    """2 P/λ_max, P = 2 outputs"""
    assert nt.predict.max_learning_rate(jnp.diag(jnp.array([1.0, 4.0])), 2) == pytest.approx(2 * 2 / 4, rel=1e-5)


FRESH = """
import sys, jax, jax.core, jax.interpreters.ad as ad
before = {m: set(vars(m)) for m in (jax, jax.core, ad)}
from limits.kernel.neural_tangents_compat import load
load()
changed = {(m.__name__, n) for m, names in before.items() for n in set(vars(m)) ^ names
           if f"{m.__name__}.{n}" not in sys.modules}  # but for submodules that were imported
assert not changed, changed
assert "jax.util" not in sys.modules or "stand-in" not in (sys.modules["jax.util"].__doc__ or "")
assert not {"tensorflow", "tf2jax"} & set(sys.modules)
assert load() is load()
"""


def test_no_tensorflow_and_jax_unchanged(fresh_python):
    fresh_python(FRESH)


ABSENT = """
import importlib.metadata as metadata
def version(name, known=metadata.version):
    if name == "neural-tangents":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
from limits.kernel.neural_tangents_compat import load
try:
    load()
except ImportError as error:
    assert "pip install --no-deps neural-tangents==0.6.5 frozendict" in str(error) and "\\n" not in str(error)
else:
    raise SystemExit("did not refuse")
"""


def test_says_how_to_install_it(fresh_python):
    fresh_python(ABSENT)


@pytest.fixture
def fresh_python(pytestconfig):
    def run(code):
        done = subprocess.run([sys.executable, "-c", code], cwd=pytestconfig.rootpath, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize(("fault", "said"), [
    (ModuleNotFoundError("No module named 'tf2jax'"), "No module named 'tf2jax'"),
    (AttributeError("module 'jax' has no attribute 'xla'\nmore"), "module 'jax' has no attribute 'xla'"),
    (RuntimeError(), "RuntimeError")])  # fmt: skip
def test_a_broken_installation_says_how_to_mend_it(monkeypatch, fault, said):
    for name in [name for name in sys.modules if name.split(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)

    def missing(name):
        raise fault

    monkeypatch.setattr(neural_tangents_compat.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf"needs neural-tangents, .* \({said}\): pip install --no-deps"):
        neural_tangents_compat.load()
