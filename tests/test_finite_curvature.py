"""Every matrix-vector product against a dense matrix from plain automatic differentiation, in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from finite.curvature import operators as curvature
from finite.networks import is_layer_factors
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from limits.kernel import neural_tangents_compat
from limits.losses import LOSSES
from limits.machine import PRECISIONS, computing
from limits.problem import Problem

P, D, C, N = 5, 3, 2, 4
CASES = {
    "depth1-linear": lambda problem: mlp(problem, N, 1, "linear"),
    "depth2-relu": lambda problem: mlp(problem, N, 2, "relu"),
    "depth3-gelu": lambda problem: mlp(problem, N, 3, "gelu"),
    "residual-relu": lambda problem: resmlp(problem, N, 3, "relu"),
    "residual-blocks-of-2-tanh": lambda problem: resmlp(problem, N, 2, "tanh", block_size=2),
}
SAMPLE_LOSSES = {
    "mse": lambda f, y: 0.5 * jnp.sum((f - y) ** 2),
    "cross_entropy": lambda f, y: -jnp.sum(y * jnp.log(jnp.exp(f) / jnp.sum(jnp.exp(f)))),
}
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _float64():
    with computing("float64"):
        yield


class Dense:
    """A small network, with J (PC, n) from jacrev, H from ``jax.hessian``, G from J, and R from second derivatives of f.

    ``loss``: each with a formula of its own, and with ∂²ℓ/∂f² by automatic differentiation of it.
    """

    def __init__(self, build, seed=0, loss="mse"):
        rng = np.random.default_rng(seed)
        self.inputs, self.targets = (jnp.asarray(rng.normal(size=(P, n))) for n in (D, C))
        self.of, self.sample_loss = LOSSES[loss], SAMPLE_LOSSES[loss]
        if loss == "cross_entropy":
            self.targets = jax.nn.softmax(self.targets)  # any probability vector
        problem = Problem(np.asarray(self.inputs), np.asarray(self.targets), richness=0.8)
        self.network = build(problem)
        params = self.network.init(jax.random.key(seed))
        self.params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        self.flat, self.unravel = ravel_pytree(self.params)
        self.jacobian = jax.jit(jax.jacrev(self.outputs))(self.flat)
        self.hessian = jax.jit(jax.hessian(self.loss))(self.flat)
        f = self.outputs(self.flat)
        self.output_hessian = jax.hessian(self.of_outputs)(f)  # (PC, PC), 1/P included
        self.gauss_newton = self.jacobian.T @ self.output_hessian @ self.jacobian
        second = jax.jit(jax.jacfwd(jax.jacrev(self.outputs)))(self.flat)  # (PC, n, n)
        self.residual = jnp.tensordot(jax.grad(self.of_outputs)(f), second, 1)

    def outputs(self, flat):
        return self.network.apply(self.unravel(flat), self.inputs).ravel()

    def of_outputs(self, outputs):
        return sum(self.sample_loss(f, y) for f, y in zip(outputs.reshape(P, C), self.targets, strict=True)) / P

    def loss(self, flat):
        return self.of_outputs(self.outputs(flat))

    @property
    def bound(self):
        return self.network.apply, self.params, self.inputs

    def columns(self, matvec):
        """The matrix of a product on parameters."""
        return jax.jit(jax.vmap(lambda v: ravel_pytree(matvec(self.unravel(v)))[0]))(jnp.eye(len(self.flat))).T


LOSSY = [*((case, "mse") for case in CASES), *((case, "cross_entropy") for case in list(CASES)[1:4])]


@pytest.fixture(scope="module", params=LOSSY, ids="-".join)
def dense(request):
    case, loss = request.param
    with computing("float64"):
        return Dense(CASES[case], loss=loss)


def test_loss(dense):
    got = curvature.loss(*dense.bound, dense.targets, dense.of)
    np.testing.assert_allclose(got, dense.loss(dense.flat), **TOLERANCE)


def test_hessian(dense):
    np.testing.assert_allclose(
        dense.columns(curvature.hessian(*dense.bound, dense.targets, dense.of)), dense.hessian, **TOLERANCE
    )


def test_parts(dense):
    columns = dense.columns(curvature.parts(*dense.bound, dense.targets, dense.of, *jnp.array([0.3, -2.0])))
    np.testing.assert_allclose(columns, 0.3 * dense.gauss_newton - 2 * dense.residual, **TOLERANCE)


def test_gauss_newton(dense):
    columns = dense.columns(curvature.gauss_newton(*dense.bound, dense.of))
    np.testing.assert_allclose(columns, dense.gauss_newton, **TOLERANCE)


def test_gauss_newton_from_the_ntk(dense):
    """The nonzero eigenvalues of G are those of the dense NTK between roots of ℓ''."""
    f = dense.outputs(dense.flat).reshape(P, C)
    matrix = curvature.dense_gauss_newton(curvature.dense_ntk(dense.network, *dense.bound[1:]), f, dense.of)
    expected = jnp.linalg.eigvalsh(dense.gauss_newton)[::-1][: P * C]
    np.testing.assert_allclose(jnp.linalg.eigvalsh(matrix)[::-1][: len(expected)], expected, rtol=1e-9, atol=1e-12)


def test_residual(dense):
    matrix = dense.columns(curvature.residual(*dense.bound, dense.targets, dense.of))
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
            curvature.gauss_newton_trace(network, *dense.bound[1:], dense.of), jnp.trace(dense.gauss_newton), **TOLERANCE
        )


def test_hessian_trace(dense):
    estimate = jax.jit(partial(curvature.trace, dense.network, probes=200, ell=dense.of))
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
    got = curvature.directional_sharpness(*dense.bound, dense.targets, dense.of)
    np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_preconditioned(dense):
    root = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, len(dense.flat)))
    over_root = partial(jax.tree.map, lambda root, v: v / root, dense.unravel(root))
    matvec = curvature.preconditioned(curvature.hessian(*dense.bound, dense.targets, dense.of), over_root)
    np.testing.assert_allclose(dense.columns(matvec), dense.hessian / root[:, None] / root, **TOLERANCE)


def test_gradient_noise_is_the_trace_of_the_covariance(dense):
    """Of the gradients of the samples' own losses."""

    def losses(flat):
        outputs = dense.outputs(flat).reshape(P, C)
        return jnp.stack([dense.sample_loss(f, y) for f, y in zip(outputs, dense.targets, strict=True)])

    covariance = np.cov(jax.jacrev(losses)(dense.flat).T, bias=True)
    got = jax.jit(partial(curvature.gradient_noise, dense.network.apply, ell=dense.of))(*dense.bound[1:], dense.targets)
    np.testing.assert_allclose(got, np.trace(covariance), **TOLERANCE)


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
