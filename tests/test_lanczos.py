"""Lanczos against dense eigensolvers: the values, the verdict, and what is said about the error."""

import jax
import jax.numpy as jnp
import matfree.decomp
import matfree.eig
import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from finite.lanczos import extremes, random_start, warm_start

RNG = np.random.default_rng(0)
SPECTRA = {
    "random": RNG.normal(size=60),
    "symmetric edges of high multiplicity": np.repeat([2.0, -2.0, 0.3, 0.0], [12, 12, 1, 25]),
    "outliers over symmetric edges": np.r_[7.0, 5.0, np.repeat([1.0, -1.0, 0.0], [10, 10, 20])],
    "low rank": np.r_[3.0, 2.0, 1.0, np.zeros(197)],
    "low rank, repeated": np.r_[3.0, 3.0, 1.0, np.zeros(197)],
    "clustered": np.r_[5.0, 5.02, 4.99, 4.9, RNG.uniform(-1, 1, 60)],
    "negative definite": -np.arange(1.0, 41.0),
    "larger modulus below": np.r_[1.0, 0.9, 0.8, -np.linspace(2, 30, 30)],
    "tiny": np.array([5.0, 4.0, -3.0, 2.0, 1.0]),
    "zero": np.zeros(9),
    "identity": np.ones(9),
}


def dense(spectrum, seed=0):
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    return (rotation * spectrum) @ rotation.T


def ends(matrix, top, bottom):
    """The oracle, in our order."""
    values = np.linalg.eigvalsh(matrix)
    return np.concatenate([values[::-1][:top], values[:bottom][::-1]])


@jax.jit(static_argnames=("top", "bottom", "rtol", "atol", "max_matvecs", "check_every"))
def solve(matrix, start, **options):
    return extremes(lambda v: matrix @ v, start, **options)


def start_of(matrix, dtype, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=len(matrix)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_dense_matrices(name, dtype):
    matrix = dense(SPECTRA[name])
    with jax.enable_x64(True):
        found = solve(jnp.asarray(matrix, dtype), start_of(matrix, dtype), top=3, bottom=2, max_matvecs=len(matrix))
    scale = np.abs(np.linalg.eigvalsh(matrix)).max()
    true = ends(matrix, 3, 2)
    assert found.converged.all()
    assert found.values.dtype == dtype
    assert found.matvecs <= len(matrix)
    bound = found.errors + 8 * np.finfo(dtype).eps * scale + np.finfo(dtype).tiny
    assert (np.abs(found.values - true) <= bound).all()
    assert (found.errors <= np.maximum(1e-3 * np.abs(true) * 1.001, 100 * np.finfo(dtype).eps * scale)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ritz_vectors_are_orthonormal_eigenvectors(dtype):
    matrix = dense(SPECTRA["random"])
    with jax.enable_x64(True):
        found = solve(jnp.asarray(matrix, dtype), start_of(matrix, dtype), top=4, bottom=2, max_matvecs=60)
    v = np.asarray(found.vectors, np.float64)
    np.testing.assert_allclose(v @ v.T, np.eye(6), atol=np.sqrt(np.finfo(dtype).eps))
    residuals = np.linalg.norm(v @ matrix - np.asarray(found.values)[:, None] * v, axis=1)
    assert (residuals <= 1.01 * np.asarray(found.errors)).all()


def test_float32_reaches_its_rounding():
    matrix = dense(SPECTRA["random"])
    found = solve(jnp.asarray(matrix, "float32"), start_of(matrix, "float32"), top=3, rtol=1e-5, max_matvecs=60)
    np.testing.assert_allclose(found.values, ends(matrix, 3, 0), rtol=1e-6)


def test_scipy_and_matfree_agree():
    matrix = dense(RNG.normal(size=200), seed=3)
    with jax.enable_x64(True):
        start = start_of(matrix, "float64")
        found = solve(jnp.asarray(matrix), start, top=4, rtol=1e-9, max_matvecs=200)
        theirs = matfree.eig.eigh_partial(matfree.decomp.tridiag_sym(int(found.matvecs)))(lambda v: matrix @ v, start)
    scipys = scipy.sparse.linalg.eigsh(matrix, 4, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(found.values, np.sort(scipys)[::-1], rtol=1e-10)
    np.testing.assert_allclose(found.values, np.sort(theirs[0])[::-1][:4], rtol=1e-10)


def test_matvecs_are_counted_and_few_when_the_rank_is_low():
    calls = []
    matrix = dense(SPECTRA["low rank"])

    def matvec(v):
        jax.debug.callback(lambda: calls.append(0))
        return jnp.asarray(matrix, "float32") @ v

    found = extremes(matvec, start_of(matrix, "float32"), top=3)
    jax.effects_barrier()
    assert len(calls) == found.matvecs <= 10


def test_repeated_values_are_counted_as_often_as_they_occur():
    spectrum = np.repeat([2.0, 1.0, -1.0], [3, 4, 20])
    with jax.enable_x64(True):
        found = solve(jnp.asarray(dense(spectrum)), start_of(spectrum, "float64"), top=6, max_matvecs=27)
    assert found.converged.all()
    assert found.matvecs < 27
    np.testing.assert_allclose(found.values, [2, 2, 2, 1, 1, 1], rtol=1e-12)


def test_an_exhausted_space_is_no_verdict():
    """Ten copies of 2 and no products to find them: what is shown is not claimed to be complete."""
    spectrum = np.repeat([2.0, 1.0, -1.0], [10, 4, 20])
    with jax.enable_x64(True):
        found = solve(jnp.asarray(dense(spectrum)), start_of(spectrum, "float64"), top=3, max_matvecs=4)
    np.testing.assert_array_equal(found.converged, [True, False, False])


def test_more_values_than_dimensions_are_not_numbers():
    matrix = jnp.diag(jnp.array([5.0, 4.0]))
    found = solve(matrix, jnp.array([1.0, 1.0]), top=3, bottom=1)
    np.testing.assert_allclose(found.values, [5, 4, np.nan, 4], rtol=1e-6)
    np.testing.assert_array_equal(found.converged, [True, True, False, True])


@pytest.mark.parametrize("max_matvecs", [1, 2, 6])
def test_too_few_products_are_reported(max_matvecs):
    matrix = dense(RNG.normal(size=300))
    found = solve(jnp.asarray(matrix, "float32"), start_of(matrix, "float32"), top=3, max_matvecs=max_matvecs)
    assert not found.converged.any()
    assert found.matvecs == max_matvecs


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_operator_that_is_not_finite_has_no_values(poison):
    matrix = dense(SPECTRA["random"])
    matrix[3, 4] = matrix[4, 3] = poison
    found = solve(jnp.asarray(matrix, "float32"), start_of(matrix, "float32"), top=3, bottom=1)
    assert np.isnan(found.values).all()
    assert not found.converged.any()
    assert found.matvecs < 10


def test_seeds_by_vmap_equal_one_by_one():
    matrices = [dense(SPECTRA[name][:40], seed) for seed, name in enumerate(["random", "clustered", "low rank"])]
    matrices[2][0, 0] = np.nan
    matrices = jnp.asarray(np.stack(matrices), "float32")
    starts = jnp.stack([start_of(matrix, "float32", seed) for seed, matrix in enumerate(matrices)])

    def one(matrix, start):
        return solve(matrix, start, top=3, bottom=1)

    together = jax.vmap(one)(matrices, starts)
    for i in range(3):
        alone = one(matrices[i], starts[i])
        np.testing.assert_allclose(together.values[i], alone.values, rtol=1e-5)
        np.testing.assert_array_equal(together.converged[i], alone.converged)
        assert together.matvecs[i] == alone.matvecs


def test_trees_go_in_and_come_out():
    matrix = jnp.asarray(dense(SPECTRA["random"][:20]), "float32")

    def matvec(tree):
        flat = matrix @ jnp.concatenate([tree["a"].ravel(), tree["b"]])
        return {"a": flat[:12].reshape(3, 4), "b": flat[12:]}

    start = random_start(jax.random.key(0), {"a": jnp.zeros((3, 4)), "b": jnp.zeros(8)})
    found = jax.jit(lambda start: extremes(matvec, start, top=2))(start)
    assert found.vectors["a"].shape == (2, 3, 4)
    np.testing.assert_allclose(found.values, ends(matrix, 2, 0), rtol=1e-3)
    for i in range(2):
        image = matvec(jax.tree.map(lambda x, i=i: x[i], found.vectors))
        np.testing.assert_allclose(image["b"], found.values[i] * found.vectors["b"][i], atol=1e-2)


def test_a_zero_start_is_a_random_one():
    matrix = dense(SPECTRA["random"])
    found = solve(jnp.asarray(matrix, "float32"), jnp.zeros(60), top=2, max_matvecs=60)
    np.testing.assert_allclose(found.values, ends(matrix, 2, 0), rtol=1e-3)


def test_a_warm_start_saves_products_and_finds_the_same():
    spectrum = np.r_[10.0, 8.0, 7.0, np.random.default_rng(5).normal(size=300)]
    old, noise = dense(spectrum), RNG.normal(size=(303, 303)) * 1e-3
    new = jnp.asarray(old + noise + noise.T, "float32")
    cold = start_of(old, "float32")
    before = solve(jnp.asarray(old, "float32"), cold, top=3, check_every=1)
    again = solve(new, cold, top=3, check_every=1)
    warm = solve(new, warm_start(jax.random.key(0), before.vectors), top=3, check_every=1)
    assert warm.matvecs < again.matvecs
    np.testing.assert_allclose(warm.values, ends(np.asarray(new), 3, 0), rtol=1e-3)
    assert warm.converged.all()


def test_a_warm_start_survives_a_divergence():
    start = warm_start(jax.random.key(0), jnp.full((2, 5), jnp.nan))
    assert np.isfinite(start).all()
    assert np.any(start != 0)


def test_partial_reorthogonalisation_survives_many_products():
    """A long run in a wide spectrum, where plain Lanczos reports spurious copies of the outliers."""
    spectrum = np.r_[1e3, 5e2, 1e2, np.linspace(0, 10, 500)]
    found = solve(jnp.asarray(dense(spectrum), "float32"), start_of(spectrum, "float32"), top=6, max_matvecs=200)
    np.testing.assert_allclose(found.values, np.sort(spectrum)[::-1][:6], rtol=2e-3)
    assert found.matvecs > 50


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    spectrum=st.lists(st.floats(-4, 4, width=16), min_size=12, max_size=12),
    seed=st.integers(0, 1000),
    max_matvecs=st.sampled_from([4, 8, 12]),
)
def test_errors_bound_the_distance_to_an_eigenvalue(spectrum, seed, max_matvecs):
    matrix = dense(np.array(spectrum), seed)
    with jax.enable_x64(True):
        found = solve(jnp.asarray(matrix), start_of(matrix, "float64", seed), top=2, bottom=2, max_matvecs=max_matvecs)
    distance = np.abs(np.asarray(found.values)[:, None] - np.array(spectrum)).min(1)
    assert (distance <= np.asarray(found.errors) + 1e-14).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    spectrum=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=12, max_size=12),
    seed=st.integers(0, 1000),
)
def test_what_converged_is_right_in_value_and_multiplicity(spectrum, seed):
    matrix = dense(np.array(spectrum), seed)
    with jax.enable_x64(True):
        found = solve(jnp.asarray(matrix), start_of(matrix, "float64", seed), top=3, bottom=2, max_matvecs=12)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, ends(matrix, 3, 2), atol=4e-3)
