"""Curvature of a user's own network, against dense matrices."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import finite.curvature
from finite.curvature import host, own
from finite.networks.own import Model, cross_entropies
from limits.machine import computing

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(5, 3)), RNG.integers(3, size=5)
KEY = jax.random.key(0)
PARAMS = {"blocks": [{"w": RNG.normal(size=(3, 4))}, {"w": RNG.normal(size=(4, 4))}], "head": RNG.normal(size=(4, 3))}
BATCH = {"x": INPUTS}, LABELS


def apply(params, inputs):
    h = inputs["x"]
    for block in params["blocks"]:
        h = jnp.tanh(h @ block["w"])
    return h @ params["head"]


OBJECTIVE = own.objective(Model(lambda width, key: (PARAMS, apply), "cross_entropy", BATCH), apply)


@pytest.fixture(autouse=True)
def _in_float64():
    with computing("float64"):
        yield


@cache
def dense_hessian(select=None):
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, PARAMS))
    matrix = np.asarray(jax.hessian(lambda v: OBJECTIVE(unravel(v), BATCH))(flat))
    if select is None:
        return matrix
    marks = unravel(jnp.zeros_like(flat))
    marks["blocks"][1]["w"] = jnp.ones((4, 4))
    chosen = np.asarray(ravel_pytree(marks)[0]) == 1
    return matrix[np.ix_(chosen, chosen)]


@pytest.mark.parametrize("select", [None, "blocks/1", "*/1/w"])
def test_sharpness(select):
    wanted = np.linalg.eigvalsh(dense_hessian(select))[::-1][:3]
    found = finite.curvature.sharpness(OBJECTIVE, PARAMS, BATCH, top=3, select=select, rtol=1e-8)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-7)


def test_sharpness_within_a_compiled_loop():
    """As a step of somebody's training, of several networks at once."""
    scales = jnp.array([1.0, 0.5])
    scaled = lambda by: jax.tree.map(lambda leaf: by * leaf, PARAMS)  # noqa: E731
    found = jax.jit(jax.vmap(lambda by: own.sharpness(OBJECTIVE, scaled(by), BATCH).values[0]))(scales)
    wanted = [own.sharpness(OBJECTIVE, scaled(by), BATCH).values[0] for by in scales]
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_sharpness_in_little_memory():
    spectrum = np.linalg.eigvalsh(dense_hessian())
    for rtol in (1e-1, 1e-5):
        found = own.sharpness(OBJECTIVE, PARAMS, BATCH, basis=5, rtol=rtol)
        assert np.min(np.abs(found.values[0] - spectrum)) <= found.errors[0] <= rtol * found.values[0]
        assert found.converged
    np.testing.assert_allclose(found.values[0], spectrum[-1], rtol=1e-9)
    start = jax.tree.map(lambda rows: rows.sum(0), found.vectors)
    for basis in (5, 40):
        again = own.sharpness(OBJECTIVE, PARAMS, BATCH, basis=basis, rtol=1e-5, start=start)
        assert again.matvecs <= 4 < found.matvecs
    nowhere = own.Objective(apply, lambda f, y: jnp.nan * jnp.sum(f))
    assert np.isnan(own.sharpness(nowhere, PARAMS, BATCH, basis=5).values).all()
    assert own.memory(PARAMS, vectors=2) == 2 * 8 * 40


def test_preconditioned_sharpness():
    P = jax.tree.map(lambda leaf: 1.0 + leaf**2, PARAMS)
    root = np.sqrt(np.asarray(ravel_pytree(P)[0]))
    wanted = np.linalg.eigvalsh(dense_hessian() / root / root[:, None])[-1]
    found = own.sharpness(OBJECTIVE, PARAMS, BATCH, preconditioner=P, rtol=1e-8)
    np.testing.assert_allclose(found.values[0], wanted, rtol=1e-7)


def test_ntk_trace_density_and_noise():
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, PARAMS))
    jacobian = np.asarray(jax.jacobian(lambda v: apply(unravel(v), BATCH[0]).ravel())(flat))
    found = own.ntk(OBJECTIVE, PARAMS, BATCH[0], top=2, rtol=1e-8)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(jacobian @ jacobian.T / 5)[::-1][:2], rtol=1e-7)
    trace, error = own.trace(OBJECTIVE, PARAMS, BATCH, jax.random.key(0), probes=400)
    assert abs(trace - np.trace(dense_hessian())) < 4 * error
    of_density, error = own.density(OBJECTIVE, PARAMS, BATCH, jax.random.key(0), probes=200, steps=5).mean(lambda x: x**2)
    assert abs(of_density - np.mean(np.linalg.eigvalsh(dense_hessian()) ** 2)) < 4 * error
    alone = [ravel_pytree(jax.grad(OBJECTIVE)(PARAMS, ({"x": x[None]}, y[None])))[0]
             for x, y in zip(INPUTS, LABELS, strict=True)]  # fmt: skip
    wanted = np.mean(np.sum((np.array(alone) - np.mean(alone, axis=0)) ** 2, axis=1))
    np.testing.assert_allclose(own.gradient_noise(OBJECTIVE, PARAMS, BATCH), wanted, rtol=1e-10)


@pytest.mark.parametrize("rate", [1e-3, 0.3, 50.0])
def test_critical_sharpness(rate):
    """Of a quadratic along its gradient it is its curvature, wherever the search begins."""
    quadratic = own.Objective(lambda w, x: w, lambda f, y: 3.5 * jnp.sum(f**2) / 2)
    w = jnp.array([1.0, -2.0])
    found = own.critical_sharpness(quadratic, w, (None, None), -3.5 * w, rate=rate, halvings=20)
    np.testing.assert_allclose(found, 3.5, rtol=1e-5)
    flat = own.Objective(lambda w, x: w, lambda f, y: -jnp.sum(f))
    assert own.critical_sharpness(flat, w, (None, None), jnp.ones(2), rate=rate) == 0
    for nowhere in (3.5 * w, 0 * w):  # up, and not at all
        assert np.isnan(own.critical_sharpness(quadratic, w, (None, None), nowhere, rate=rate))


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_critical_sharpness_takes_six_forward_passes_from_a_rate_that_is_near(rate):
    """Within a factor 2 of 2/3.5; and is then known to an eighth."""
    passes = []

    def counted(w, x):
        jax.debug.callback(lambda: passes.append(w))
        return w

    quadratic, w = own.Objective(counted, lambda f, y: 3.5 * jnp.sum(f**2) / 2), jnp.array([1.0, -2.0])
    found = own.critical_sharpness(quadratic, w, (None, None), -3.5 * w, rate=rate)
    jax.effects_barrier()
    assert len(passes) == 6
    assert 3.5 / (1 + 1 / 8) <= found <= 3.5


@pytest.mark.parametrize("chunk", [1, 4, 6, 256])
def test_cross_entropy_in_chunks(chunk):
    features, readout, labels = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(4, 10)), RNG.integers(10, size=(2, 3))
    plain = lambda f, r: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(f @ r), labels[..., None], -1))  # noqa: E731
    chunked = lambda f, r: own.cross_entropy_in_chunks(f, r, labels, chunk=chunk)  # noqa: E731
    np.testing.assert_allclose(chunked(features, readout), plain(features, readout), rtol=1e-12)
    for a, b in zip(*(jax.grad(of, (0, 1))(features, readout) for of in (chunked, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
    for label in (-1, 10):
        assert np.isnan(own.cross_entropy_in_chunks(features[0, :1], jnp.asarray(readout), jnp.array([label]), chunk=chunk))


@pytest.mark.parametrize(("places", "share"), [(128, 1.02), (2048, 0.6)])
def test_chunks_take_no_more_memory_than_all_logits(places, share):
    """What XLA plans for a product with the Hessian, of a tied vocabulary of 50,304 as GPT-2's; nothing is computed."""
    embedding, places = jax.ShapeDtypeStruct((50_304, 768), jnp.float32), jax.ShapeDtypeStruct((places,), jnp.int32)

    def planned(cross_entropy):
        loss = lambda e, x, y: cross_entropy(jnp.tanh(e[x]), e.T, y)  # noqa: E731
        product = lambda e, v, x, y: jax.jvp(jax.grad(lambda e: loss(e, x, y)), (e,), (v,))[1]  # noqa: E731
        return jax.jit(product).lower(embedding, embedding, places, places).compile().memory_analysis().temp_size_in_bytes

    whole = planned(lambda features, readout, labels: jnp.mean(cross_entropies(features @ readout, labels)))
    assert planned(finite.curvature.cross_entropy_in_chunks) <= share * whole


@pytest.mark.parametrize(("size", "basis"), [(60, None), (60, 8), (12, None)])
def test_sharpness_of_products_on_the_host(size, basis):
    """Repeated eigenvalues as often as they occur, in a small basis too; each within its error of one."""
    spectrum = np.concatenate([[7.0, 5.0, 5.0, 5.0, 4.0], RNG.uniform(-3.0, 3.0, size=size - 5)])
    turn = np.linalg.qr(RNG.normal(size=(size, size)))[0]
    matrix = turn * spectrum @ turn.T
    found = host.sharpness_of_matvec(lambda v: matrix @ v, size, top=5, rtol=1e-6, dtype=np.float64, basis=basis)
    np.testing.assert_allclose(found.values, spectrum[:5], rtol=1e-6)
    assert found.converged.all()
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(5), atol=1e-8)
    loose = host.sharpness_of_matvec(lambda v: matrix @ v, size, top=2, rtol=0.1, dtype=np.float64, max_matvecs=30)
    errors = np.min(np.abs(loose.values[:, None] - spectrum), axis=1)
    assert (errors[np.isfinite(loose.values)] <= loose.errors[np.isfinite(loose.values)]).all()


def test_products_on_the_host_are_of_anything():
    """A Hessian by JAX, in float32; one that does not converge says so; mistakes in one line."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, PARAMS))
    gradient = jax.grad(lambda v: OBJECTIVE(unravel(v), BATCH))
    product = jax.jit(lambda v: jax.jvp(gradient, (flat,), (v.astype(flat.dtype),))[1])
    found = finite.curvature.sharpness_of_matvec(product, flat.size, top=2)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(dense_hessian())[::-1][:2], rtol=1e-3)
    assert found.values.dtype == np.float32
    few = host.sharpness_of_matvec(lambda v: np.arange(900.0) ** 0.1 * v, 900, top=2, rtol=1e-9, basis=4, max_matvecs=8)
    assert not few.converged.any()
    for wrong, line in ((lambda v: v[1:], r"shape \(39,\): wanted \(40,\)"), (lambda v: v / 0, "are not finite")):
        with pytest.raises(ValueError, match=line), np.errstate(all="ignore"):
            host.sharpness_of_matvec(wrong, 40)


def test_mistakes(monkeypatch):
    with pytest.raises(ValueError, match="top 0: wanted at least 1"):
        own.sharpness(OBJECTIVE, PARAMS, BATCH, top=0)
    with pytest.raises(ValueError, match="select 'attn' is no leaf's path"):
        own.sharpness(OBJECTIVE, PARAMS, BATCH, select="attn")
    with pytest.raises(ValueError, match=r"batch is dict: wanted the pair \(inputs, targets\)"):
        own.sharpness(OBJECTIVE, PARAMS, BATCH[0])
    with pytest.raises(ValueError, match="unknown loss 'l2'; known: mse"):
        own.Objective(apply, "l2")
    with pytest.raises(ValueError, match=r"the loss returns an array of shape \(5,\): wanted one number"):
        own.trace(own.Objective(apply, lambda f, y: f[:, 0]), PARAMS, BATCH, jax.random.key(0))
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    for ask in (own.sharpness, partial(own.trace, key=KEY), partial(own.density, key=KEY)):
        with pytest.raises(ValueError, match="blocks/0/w is bfloat16: curvature wants float32"):
            ask(OBJECTIVE, half, BATCH)
    with pytest.raises(ValueError, match="outputs are bfloat16: curvature wants float32"):
        own.ntk(OBJECTIVE, half, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), BATCH[0]))
    assert own.Objective(apply, "cross_entropy")(PARAMS, BATCH) == OBJECTIVE(PARAMS, BATCH)
    monkeypatch.setattr(own, "physical_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="a Lanczos basis of 8 vectors and what surrounds it take"):
        own.sharpness(OBJECTIVE, PARAMS, BATCH)
