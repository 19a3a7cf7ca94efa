"""Lanczos against dense eigensolvers: the values, the verdict, and what is said about the error."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg

from finite.curvature.lanczos import combined, extremes, random_start, warm_start

RNG = np.random.default_rng(0)
SPECTRA = {  # all of one size: compiled once
    "random": RNG.normal(size=48),
    "symmetric edges of high multiplicity": np.repeat([2.0, -2.0, 0.3, 0.0], [12, 12, 1, 23]),
    "outliers over symmetric edges": np.r_[7.0, 5.0, np.repeat([1.0, -1.0, 0.0], [10, 10, 26])],
    "low rank": np.r_[3.0, 2.0, 1.0, np.zeros(45)],
    "low rank, repeated": np.r_[3.0, 3.0, 1.0, np.zeros(45)],
    "decaying": 0.3 ** np.arange(48),
    "clustered": np.r_[5.0, 5.02, 4.99, 4.9, RNG.uniform(-1, 1, 44)],
    "negative definite": -np.arange(1.0, 49.0),
    "larger modulus below": np.r_[1.0, 0.9, 0.8, -np.linspace(2, 30, 45)],
    "zero": np.zeros(48),
    "identity": np.ones(48),
}


def dense(spectrum, seed=0):
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    return (rotation * spectrum) @ rotation.T


def ends(matrix, top, bottom):
    """The oracle, in our order."""
    values = np.linalg.eigvalsh(matrix)
    return np.concatenate([values[::-1][:top], values[:bottom][::-1]])


@jax.jit(static_argnames=("top", "bottom", "max_matvecs", "check_every"))
def compiled(matrix, start, **options):
    return extremes(lambda v: matrix @ v, start, **options)


def solve(matrix, dtype="float32", start=None, seed=1, **options):
    """Three largest and two smallest eigenvalues of a dense matrix from a random start, as NumPy arrays."""
    options = {"top": 3, "bottom": 2, "max_matvecs": 100, "rtol": 1e-3} | options
    start = np.random.default_rng(seed).normal(size=len(matrix)) if start is None else start
    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(compiled(jnp.asarray(matrix, dtype), jnp.asarray(start, dtype), **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_dense_matrices(name, dtype):
    matrix, eps = dense(SPECTRA[name]), np.finfo(dtype).eps
    found = solve(matrix, dtype)
    true, scale = ends(matrix, 3, 2), np.abs(SPECTRA[name]).max()
    assert found.converged.all()
    assert found.values.dtype == dtype
    assert found.matvecs <= 64  # more than dimensions where all are needed, and further copies are to be excluded
    assert (np.abs(found.values - true) <= found.errors + 4 * eps * scale).all()  # the oracle's own rounding
    assert (found.errors <= np.maximum(1.01e-3 * np.abs(true), 101 * eps * scale + 1e3 * np.finfo(dtype).tiny ** 0.5)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ritz_vectors_are_orthonormal_eigenvectors(dtype):
    matrix, slack = dense(SPECTRA["random"]), np.sqrt(np.finfo(dtype).eps)
    found = solve(matrix, dtype)
    v = found.vectors.astype(np.float64)
    np.testing.assert_allclose(v @ v.T, np.eye(5), atol=slack)
    residuals = np.linalg.norm(v @ matrix - found.values[:, None] * v, axis=1)
    assert (residuals <= found.errors + slack).all()
    assert (residuals <= 4e-3).all()


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-13)])
def test_values_reach_the_rounding_of_the_dtype(dtype, rtol):
    matrix = dense(SPECTRA["random"])
    np.testing.assert_allclose(solve(matrix, dtype, rtol=rtol).values, ends(matrix, 3, 2), rtol=rtol)


def test_scipy_and_matfree_agree():
    decomp, eig = (pytest.importorskip(f"matfree.{name}") for name in ("decomp", "eig"))
    matrix = dense(RNG.normal(size=48), seed=3)
    found = solve(matrix, "float64", rtol=1e-9)
    scipys = scipy.sparse.linalg.eigsh(matrix, 3, which="LA", return_eigenvectors=False)
    with jax.enable_x64(True):
        start = jnp.asarray(RNG.normal(size=48))
        solver = jax.jit(eig.eigh_partial(decomp.tridiag_sym(45)), static_argnums=0)
        matfrees = np.asarray(solver(lambda v: jnp.asarray(matrix) @ v, start)[0])
    np.testing.assert_allclose(found.values[:3], np.sort(scipys)[::-1], rtol=1e-10)
    np.testing.assert_allclose(found.values[:3], np.sort(matfrees)[::-1][:3], rtol=1e-10)


def test_matvecs_are_counted_and_few_when_the_rank_is_low():
    calls, matrix = [], jnp.asarray(dense(SPECTRA["low rank"]), "float32")

    def matvec(v):
        jax.debug.callback(lambda: calls.append(0))
        return matrix @ v

    found = jax.jit(lambda v: extremes(matvec, v, top=3, max_matvecs=16))(jnp.ones(48))
    jax.effects_barrier()
    assert len(calls) == found.matvecs <= 10


def test_repeated_values_are_counted_as_often_as_they_occur():
    found = solve(dense(np.repeat([2.0, 1.0, -1.0], [2, 4, 42])), "float64")
    assert found.converged.all()
    assert found.matvecs < 16
    np.testing.assert_allclose(found.values, [2, 2, 1, -1, -1], rtol=1e-12)


@pytest.mark.parametrize("name", ["identity", "low rank, repeated"])
def test_a_lone_value_needs_no_further_run(name):
    """That the largest one is repeated changes nothing."""
    alone, three = (solve(dense(SPECTRA[name]), "float64", top=k, bottom=0) for k in (1, 3))
    assert alone.converged.all()
    assert alone.matvecs < three.matvecs
    np.testing.assert_allclose(alone.values, three.values[:1], rtol=1e-12)


def test_what_is_not_needed_is_not_waited_for():
    only, options = jnp.array([True, False, False, False, False]), {"top": 3, "bottom": 2, "max_matvecs": 100}
    matrix = jnp.asarray(dense(np.r_[9.0, SPECTRA["random"][1:]]), "float32")
    whole, found = (compiled(matrix, jnp.ones(48), **options, needed=needed) for needed in (None, only))
    assert found.matvecs < whole.matvecs
    assert found.converged[0]
    np.testing.assert_allclose(found.values[0], 9, rtol=1e-3)
    equal = compiled(jnp.eye(48), jnp.ones(48), **options, needed=only)
    assert equal.matvecs <= 2  # no second copy is looked for


def diagonal(n=5000):
    """Of blocks: outliers that occur one to three times at either end, over a bulk; applied in O(n)."""
    bulk = np.random.default_rng(2).uniform(-1, 2, n - 13)
    return np.r_[5.0, 5.0, 5.0, 4.0, 3.5, 3.5, 3.0, -4.0, -4.0, -3.0, -3.0, -3.0, -2.0, bulk]


@jax.jit
def of_diagonal(spectrum, start):
    return extremes(lambda v: spectrum * v, start, top=7, bottom=5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_repeated_outliers_of_a_large_matrix(dtype):
    """Whose Krylov spaces are never exhausted: one alone shows each outlier once."""
    spectrum = diagonal()
    with jax.enable_x64(dtype == "float64"):
        starts = jnp.asarray(np.random.default_rng(3).normal(size=(3, len(spectrum))), dtype)
        found = jax.device_get(jax.lax.map(partial(of_diagonal, jnp.asarray(spectrum, dtype)), starts))
    true = np.r_[np.sort(spectrum)[::-1][:7], np.sort(spectrum)[:5][::-1]]
    assert found.converged.all()
    assert (np.abs(found.values - true) <= found.errors + 8 * np.finfo(dtype).eps * 5).all()
    assert (np.abs(found.values - true) <= 1e-4 * np.abs(true)).all()
    assert (found.matvecs < 5 * 45).all()  # three runs and the one that excludes more, of a third of the basis each
    gram = np.einsum("skn,sln->skl", found.vectors, found.vectors)
    np.testing.assert_allclose(gram, np.tile(np.eye(12), (3, 1, 1)), atol=np.sqrt(np.finfo(dtype).eps))


def test_copies_that_are_not_excluded_widen_the_error():
    """With no products left for another run: the third value may be a further copy of the first."""
    spectrum = np.r_[np.repeat([5.0, 4.0], 2), 3.0, np.zeros(43)]
    found = solve(dense(spectrum), "float64", bottom=0, max_matvecs=4)
    np.testing.assert_allclose(found.values, [5, 4, 3], rtol=1e-10)  # one copy of each
    np.testing.assert_array_equal(found.converged, [True, False, False])
    assert (np.abs(found.values - ends(spectrum * np.eye(48), 3, 0)) <= found.errors).all()


def test_no_ghosts_when_spaces_are_exhausted_again_and_again():
    """Every new space begins with noise that one pass of Gram-Schmidt against a half orthogonal basis does not clean."""
    rng = np.random.default_rng(1)
    spectra = rng.choice([-1.0, 0.0, 0.01], size=(100, 20))
    matrices = np.stack([dense(spectrum, seed) for seed, spectrum in enumerate(spectra)])
    arguments = jnp.asarray(matrices, "float32"), jnp.asarray(rng.normal(size=(100, 20)), "float32")
    one = lambda of: compiled(*of, top=3, bottom=2, max_matvecs=20)  # noqa: E731
    found = jax.device_get(jax.lax.map(one, arguments))  # batched ones may wait for each other (limits.machine)
    distance = np.abs(found.values[:, :, None] - spectra[:, None]).min(-1)
    assert (distance <= found.errors).all()


def test_an_exhausted_space_is_no_verdict():
    """Four products show 2, 1 and -1: that there is only one 2 is not claimed."""
    found = solve(dense(np.repeat([2.0, 1.0, -1.0], [10, 4, 34])), "float64", bottom=0, max_matvecs=3)
    np.testing.assert_allclose(found.values, [2, 1, -1], rtol=1e-12)
    np.testing.assert_array_equal(found.converged, [True, False, False])


def test_fewer_dimensions_than_values():
    found = solve(np.diag([5.0, 4.0, 3.0]), top=4, bottom=2)
    np.testing.assert_allclose(found.values, [5, 4, 3, np.nan, 4, 3], rtol=1e-6)
    np.testing.assert_array_equal(found.converged, [True, True, True, False, True, True])


@pytest.mark.parametrize("max_matvecs", [1, 5])
def test_too_few_products_are_reported(max_matvecs):
    found = solve(dense(SPECTRA["random"]), max_matvecs=max_matvecs)
    assert not found.converged.any()
    assert found.matvecs == max_matvecs


def test_values_whose_squares_are_no_floats_are_not_claimed():
    matrix = 1e-30 * dense(SPECTRA["clustered"])
    found = solve(matrix)
    assert (np.abs(found.values - ends(matrix, 3, 2)) <= found.errors).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_operator_that_is_not_finite_has_no_values(poison):
    matrix = dense(SPECTRA["random"])
    matrix[3, 4] = matrix[4, 3] = poison
    found = solve(matrix)
    assert np.isnan(found.values).all()
    assert not found.converged.any()
    assert found.matvecs < 10


def test_seeds_by_vmap_equal_one_by_one():
    matrices = np.stack([dense(SPECTRA[name], i) for i, name in enumerate(["random", "clustered", "low rank", "zero"])])
    matrices[3, 0, 0] = np.nan
    starts = RNG.normal(size=(4, 48))
    batched = jax.vmap(lambda a, x: compiled(a, x, top=3, bottom=2, max_matvecs=100))
    together = jax.device_get(batched(jnp.asarray(matrices, "float32"), jnp.asarray(starts, "float32")))
    for i in range(4):
        alone = solve(matrices[i], start=starts[i])
        np.testing.assert_allclose(together.values[i], alone.values, rtol=1e-5, atol=1e-6)
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
    found = solve(matrix, start=np.zeros(48))
    np.testing.assert_allclose(found.values, ends(matrix, 3, 2), rtol=1e-3)


def moving(steps, speed=1e-3):
    """Matrices of one spectrum whose eigenvectors turn at a constant rate."""
    rng = np.random.default_rng(6)
    spectrum, turn = np.r_[10.0, 8.0, 7.0, rng.normal(size=297)], rng.normal(size=(300, 300))
    matrix, rotation = dense(spectrum), scipy.linalg.expm(speed * (turn - turn.T))
    for _ in range(steps):
        yield matrix
        matrix = rotation @ matrix @ rotation.T


def test_a_warm_start_saves_products_and_finds_the_same():
    past, products = None, []
    for t, matrix in enumerate(moving(5)):
        start = None if past is None else warm_start(jax.random.key(t), *past)
        cold, warm = (solve(matrix, start=s, bottom=0, check_every=1) for s in (None, start))
        assert warm.converged.all()
        np.testing.assert_allclose(warm.values, [10, 8, 7], rtol=1e-3)
        products.append((int(warm.matvecs), int(cold.matvecs)))
        older = np.ones(300, "float32") if past is None else past[1]
        past = older, combined(warm.vectors, older), warm.beyond
    assert all(warm < 0.8 * cold for warm, cold in products[1:]), products  # five of either exclude further copies


def test_a_warm_start_moves_on():
    """By as much as between the two before: what is left is of second order."""
    vectors = [np.linalg.eigh(matrix)[1][:, ::-1][:, :2].T for matrix in moving(3)]
    older = combined(vectors[0], vectors[0].sum(0))
    newer = combined(vectors[1] * np.array([[-1], [1]]), older)  # an eigenvector has no sign
    start = warm_start(jax.random.key(0), older, newer, np.zeros(300), mix=1e-9)

    def outside(start):
        inside = vectors[2].T @ (vectors[2] @ start)
        return np.linalg.norm(start - inside) / np.linalg.norm(start)

    assert outside(newer) > 0.02
    assert outside(start) < 0.06 * outside(newer)


def test_an_eigenvalue_that_overtakes_is_seen():
    """A start at the eigenvector of 10 alone would converge on it."""
    spectrum = np.r_[10.0, 9.0, 0.9 ** np.arange(298)]
    before = solve(dense(spectrum), top=1, bottom=0, check_every=1)
    vector = combined(before.vectors, before.vectors[0])
    overtaken = dense(np.r_[10.0, 10.5, spectrum[2:]])
    for seed in range(5):
        start = warm_start(jax.random.key(seed), vector, vector, before.beyond)
        np.testing.assert_allclose(solve(overtaken, start=start, top=1, bottom=0, check_every=1).values, 10.5, rtol=1e-3)


def test_what_comes_next_is_found_beside_what_is_wanted():
    matrix = dense(np.r_[10.0, 9.0, 8.0, np.zeros(40), -5.0, -6.0])
    found = solve(matrix, "float64", top=2, bottom=1, rtol=1e-9)
    vectors = np.linalg.eigh(matrix)[1]
    next_ones = vectors[:, [-3, 1]]  # of 8 and of −5
    np.testing.assert_allclose(np.abs(next_ones.T @ found.beyond), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.beyond), np.sqrt(2), rtol=1e-6)
    nothing = solve(np.diag([3.0, 2.0, 1.0]), top=2, bottom=1)
    np.testing.assert_array_equal(nothing.beyond, 0)


def test_a_warm_start_survives_a_divergence():
    lost = jnp.full(5, jnp.nan)
    start = warm_start(jax.random.key(0), jnp.ones(5), combined(jnp.full((2, 5), jnp.nan), jnp.ones(5)), lost)
    assert np.isfinite(start).all()
    assert np.any(start != 0)


def test_no_spurious_copies_in_a_long_run():
    """Where Lanczos without reorthogonalisation reports the outliers several times."""
    spectrum = np.r_[13.0, 12.0, 10 * np.linspace(0, 1, 298) ** 0.5]
    found = solve(dense(spectrum), rtol=1e-5, bottom=0, check_every=1)
    assert found.matvecs > 64  # beyond the leading eigenproblem
    assert found.converged.all()
    np.testing.assert_allclose(found.values, [13, 12, 10], rtol=1e-5)


def test_a_pair_that_has_not_parted_is_not_taken_for_one():
    """A Ritz value between two close eigenvalues: residual²/gap is tiny there, the residual is not."""
    spectrum = np.r_[5.0, 4.398, 4.378, 4.24, 4.13, np.random.default_rng(7).uniform(-1, 4, 295)]
    for seed in range(5):
        found = solve(dense(spectrum), seed=seed, bottom=0, check_every=1)
        assert found.converged.all()
        np.testing.assert_allclose(found.values, spectrum[:3], rtol=1e-3)


def test_decompositions_of_a_batch_are_done_one_after_the_other():
    """On a CPU those of a batch can wait for each other for ever."""
    def values(scale):
        return extremes(lambda v: scale * jnp.arange(1.0, 31.0) * v, jnp.ones(30), top=2, max_matvecs=30).values

    program = jax.jit(jax.vmap(values)).lower(jnp.arange(1.0, 4.0)).as_text()
    shapes = re.findall(r"stablehlo.custom_call @lapack_\w*syevd\w*\(.*?: \(tensor<([\dx]+)xf", program)
    assert shapes
    assert all(shape.count("x") == 1 for shape in shapes)
