"""Every matrix-vector product against a dense matrix from plain automatic differentiation, in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from finite import curvature
from finite.networks import is_layer_factors
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from limits import neural_tangents_compat
from limits.precision import PRECISIONS, computing
from limits.problem import Problem

P, D, C, N = 5, 3, 2, 4
CASES = {
    "depth1-linear": lambda problem: mlp(problem, N, 1, "linear"),
    "depth2-relu": lambda problem: mlp(problem, N, 2, "relu"),
    "depth3-gelu": lambda problem: mlp(problem, N, 3, "gelu"),
    "residual-relu": lambda problem: resmlp(problem, N, 3, "relu"),
    "residual-blocks-of-2-tanh": lambda problem: resmlp(problem, N, 2, "tanh", block_size=2),
}
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _float64():
    with computing("float64"):
        yield


class Dense:
    """A small network, with J (PC, n) from jacrev, H from ``jax.hessian``, and G and R from those two."""

    def __init__(self, build, seed=0):
        rng = np.random.default_rng(seed)
        self.inputs, self.targets = (jnp.asarray(rng.normal(size=(P, n))) for n in (D, C))
        problem = Problem(np.asarray(self.inputs), np.asarray(self.targets), richness=0.8)
        self.network = build(problem)
        params = self.network.init(jax.random.key(seed))
        self.params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        self.flat, self.unravel = ravel_pytree(self.params)
        self.jacobian = jax.jit(jax.jacrev(self.outputs))(self.flat)
        self.hessian = jax.jit(jax.hessian(self.loss))(self.flat)
        self.gauss_newton = self.jacobian.T @ self.jacobian / P
        second = jax.jit(jax.jacfwd(jax.jacrev(self.outputs)))(self.flat)  # (PC, n, n)
        self.residual = jnp.tensordot((self.outputs(self.flat) - self.targets.ravel()) / P, second, 1)

    def outputs(self, flat):
        return self.network.apply(self.unravel(flat), self.inputs).ravel()

    def loss(self, flat):
        return jnp.mean(0.5 * jnp.sum((self.outputs(flat).reshape(P, C) - self.targets) ** 2, axis=1))

    @property
    def bound(self):
        return self.network.apply, self.params, self.inputs

    def columns(self, matvec):
        """The matrix of a product on parameters."""
        return jax.jit(jax.vmap(lambda v: ravel_pytree(matvec(self.unravel(v)))[0]))(jnp.eye(len(self.flat))).T


@pytest.fixture(scope="module", params=CASES)
def dense(request):
    with computing("float64"):
        return Dense(CASES[request.param])


def test_loss(dense):
    np.testing.assert_allclose(curvature.loss(*dense.bound, dense.targets), dense.loss(dense.flat), **TOLERANCE)


def test_hessian(dense):
    np.testing.assert_allclose(
        dense.columns(curvature.hessian(*dense.bound, dense.targets)), dense.hessian, **TOLERANCE
    )


def test_gauss_newton(dense):
    np.testing.assert_allclose(dense.columns(curvature.gauss_newton(*dense.bound)), dense.gauss_newton, **TOLERANCE)


def test_residual(dense):
    matrix = dense.columns(curvature.residual(*dense.bound, dense.targets))
    np.testing.assert_allclose(matrix, dense.residual, **TOLERANCE)
    np.testing.assert_allclose(matrix + dense.gauss_newton, dense.hessian, **TOLERANCE)


def test_ntk(dense):
    expected = dense.jacobian @ dense.jacobian.T / P
    operator = curvature.ntk(*dense.bound)
    columns = jax.vmap(lambda u: operator(u.reshape(P, C)).ravel())(jnp.eye(P * C)).T
    np.testing.assert_allclose(columns, expected, **TOLERANCE)
    np.testing.assert_allclose(curvature.dense_ntk(dense.network, *dense.bound[1:]), expected, **TOLERANCE)


def test_ntk_without_layer_factors(dense):
    plain = replace(dense.network, layer_factors=None)
    np.testing.assert_allclose(
        curvature.dense_ntk(plain, *dense.bound[1:]), dense.jacobian @ dense.jacobian.T / P, **TOLERANCE
    )


def test_layer_factors_are_the_layers_gradients(dense):
    """∂f_c(x_p)/∂weights = a(p) b(p, c)ᵀ, layer by layer; of stacked blocks, with their axes in front."""
    factors = dense.network.layer_factors(*dense.bound[1:])
    outer = jax.tree.map(lambda pair: jnp.einsum("...pm,...pcn->pc...mn", *pair), factors, is_leaf=is_layer_factors)
    expected = jax.jacrev(dense.network.apply)(*dense.bound[1:])
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, **TOLERANCE), outer, expected)
    stacks = {role: pair.a.shape[:-2] for role, pair in factors.items() if is_layer_factors(pair)}
    assert stacks == {role: dense.params[role].shape[:-2] for role in stacks}


def test_neural_tangents_agrees(dense):
    theta = neural_tangents_compat.load().empirical_ntk_fn(dense.network.apply, trace_axes=())(
        dense.inputs, None, dense.params
    )  # (P, P, C, C)
    expected = jnp.transpose(theta, (0, 2, 1, 3)).reshape(P * C, P * C) / P
    np.testing.assert_allclose(curvature.dense_ntk(dense.network, *dense.bound[1:]), expected, **TOLERANCE)


def test_gauss_newton_trace_is_exact(dense):
    for network in (dense.network, replace(dense.network, layer_factors=None)):
        np.testing.assert_allclose(
            curvature.gauss_newton_trace(network, *dense.bound[1:]), jnp.trace(dense.gauss_newton), **TOLERANCE
        )


def test_hessian_trace(dense):
    estimate = jax.jit(partial(curvature.trace, dense.network, probes=200))
    value, error = estimate(*dense.bound[1:], dense.targets, jax.random.key(0))
    if dense.network.layerwise_linear:
        assert error == 0
        np.testing.assert_allclose(value, jnp.trace(dense.hessian), **TOLERANCE)
    else:
        off_diagonal = dense.residual - jnp.diag(jnp.diag(dense.residual))
        spread = jnp.sqrt(2 * jnp.sum(off_diagonal**2) / 200)  # of a mean of 200 probes, Rademacher
        assert abs(value - jnp.trace(dense.hessian)) < 4 * spread
        assert error == pytest.approx(float(spread), rel=0.3)


def test_directional_sharpness(dense):
    gradient = jax.grad(dense.loss)(dense.flat)
    expected = gradient @ dense.hessian @ gradient / (gradient @ gradient)
    np.testing.assert_allclose(curvature.directional_sharpness(*dense.bound, dense.targets), expected, **TOLERANCE)


def test_directional_sharpness_of_a_tiny_gradient():
    """g of 1e-25, whose square is zero in float32: the quotient is what float64 says; at g = 0 it is not a number."""
    dense = Dense(CASES["depth1-linear"])
    values = []
    for size in (1e-25, 0.0):
        params = {"input": jnp.zeros((D, N)), "hidden": (), "readout": jnp.full((N, C), size)}
        for name in PRECISIONS:
            with computing(name):
                arrays = jax.tree.map(lambda leaf, name=name: leaf.astype(name), (params, dense.inputs, dense.targets))
                values.append(float(curvature.directional_sharpness(dense.network.apply, *arrays)))
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-12)
    assert np.isnan(values[2:]).all()


def test_trace_refuses_one_probe():
    dense = Dense(lambda problem: mlp(problem, N, 1, "tanh"))
    with pytest.raises(ValueError, match="1 probes"):
        curvature.trace(dense.network, *dense.bound[1:], dense.targets, jax.random.key(0), probes=1)
