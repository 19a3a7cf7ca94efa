"""What Lanczos finds of any spectrum (apart from test_lanczos, which runs on machines without hypothesis too)."""

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_lanczos import dense, ends, solve


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])  # minimising takes minutes
@given(
    counts=st.lists(st.integers(1, 5), min_size=4, max_size=6),
    gaps=st.lists(st.sampled_from([0.3, 0.6, 1.0]), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_blocks_that_are_equal_count_as_often_as_they_occur(counts, gaps, seed):
    """Outliers with one to five copies, over a bulk that no basis exhausts; or else the error covers what is missing."""
    outliers = np.repeat(2.2 + np.cumsum(gaps)[: len(counts)], counts)
    spectrum = np.r_[outliers, np.random.default_rng(seed).uniform(-1, 2, 300 - len(outliers))]
    found = solve(np.diag(spectrum), "float64", seed=seed, top=12, bottom=0, check_every=1)
    true = np.sort(spectrum)[::-1][:12]
    assert (np.abs(found.values - true) <= found.errors + 1e-14).all()
    undecided = int(np.sum(~found.converged))  # a last copy may be found and not be known to be there
    assert undecided <= 1 or len(outliers) < 12  # the bulk's own values have no gaps


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    spectrum=st.lists(st.floats(-4, 4, width=16), min_size=20, max_size=20),
    seed=st.integers(0, 1000),
)
def test_errors_bound_the_distance_to_an_eigenvalue(spectrum, seed):
    found = solve(dense(spectrum, seed), "float64", seed=seed, max_matvecs=9)
    distance = np.abs(found.values[:, None] - spectrum).min(1)
    assert (distance <= found.errors).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    spectrum=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=20, max_size=20),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_what_converged_is_right_in_value_and_multiplicity(spectrum, seed, dtype):
    found = solve(dense(spectrum, seed), dtype, seed=seed)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, ends(dense(spectrum, seed), 3, 2), atol=4e-3)
