"""The data that is made or embedded: normalised as documented, reproducible, and refused where it is damaged."""

import numpy as np
import pytest

from finite.data import synthetic as data


@pytest.mark.parametrize("outputs", [1, 3])
def test_gaussian_targets_are_linear_in_the_inputs_and_of_unit_mean_square(outputs):
    x, y = data.gaussian(seed=1, samples=40, inputs=10, outputs=outputs)
    assert (x.shape, y.shape) == ((40, 10), (40, outputs))
    assert np.mean(y**2) == pytest.approx(1)
    _, misfit, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    assert rank == 10
    np.testing.assert_allclose(misfit, 0, atol=1e-24)


def test_gaussian_inputs_are_white():
    """Entries of XᵀX/P have standard error 1/√P, on the diagonal √2 of it."""
    x, _ = data.gaussian(seed=2, samples=10_000, inputs=5)
    np.testing.assert_allclose(x.T @ x / 10_000, np.eye(5), atol=5 * 2**0.5 / 100)


def test_gaussian_depends_on_the_seed_only_and_more_samples_begin_alike():
    np.testing.assert_array_equal(data.gaussian(3, 20, 4)[0][:5], data.gaussian(3, 5, 4)[0])
    assert not np.array_equal(data.gaussian(3, 5, 4)[0], data.gaussian(4, 5, 4)[0])


@pytest.mark.parametrize("outputs", [1, 2, 7, 10])
def test_digits_are_centred_and_of_unit_mean_square(outputs):
    x, y = data.digits(samples=50, outputs=outputs, seed=3)
    assert (x.shape, y.shape) == ((50, 64), (50, outputs))
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-14)
    assert np.mean(x**2) == pytest.approx(1)
    if outputs > 1:
        np.testing.assert_allclose(y.sum(axis=0), 0, atol=1e-13)
        np.testing.assert_allclose(np.ptp(y, axis=0), 1)
        np.testing.assert_allclose(y.sum(axis=1), 0, atol=1e-13)


def test_digits_all_of_them():
    """The counts of the published test set: 178 zeros, 182 ones, …"""
    counts = np.bincount(data._embedded_digits()[1])
    np.testing.assert_array_equal(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    x, y = data.digits(samples=1797)
    assert (y == 1).sum() == counts[::2].sum()
    assert (y == -1).sum() == counts[1::2].sum()
    assert len(np.unique(x, axis=0)) == 1797


def test_digits_can_be_told_apart():
    """Images and labels belong together: least squares separates zeros from ones, in images that it has not seen."""
    x, y = data.digits(samples=300, outputs=2, seed=1)
    weights = np.linalg.lstsq(x[:200], y[:200], rcond=1e-3)[0]
    assert np.mean((x[200:] @ weights).argmax(1) == y[200:].argmax(1)) > 0.97


def test_digits_keep_only_the_first_classes():
    images, labels = data._embedded_digits()
    kept = {image.tobytes() for image in images[labels < 3]}
    x, _ = data.digits(samples=len(kept), outputs=3)
    assert len(x) == 178 + 182 + 177
    with pytest.raises(ValueError, match="from 2 to 537"):
        data.digits(samples=538, outputs=3)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: data.digits(10, outputs=11), "11 outputs"),
        (lambda: data.digits(10, outputs=0), "0 outputs"),
        (lambda: data.digits(1), "1 samples"),
        (lambda: data.digits(1798), "1798 samples"),
        (lambda: data.gaussian(0, 0, 3), "0 samples"),
        (lambda: data.gaussian(0, 3, 0), "0 inputs"),
        (lambda: data.gaussian(0, 3, 3, -1), "-1 outputs"),
    ],
)
def test_sizes_that_cannot_be(make, line):
    with pytest.raises(ValueError, match=line):
        make()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], None])
def test_damaged_digits_are_refused(damage, tmp_path, monkeypatch):
    if damage:
        (tmp_path / "digits.npz").write_bytes(damage(data.DIGITS.read_bytes()))
    monkeypatch.setattr(data, "DIGITS", tmp_path / "digits.npz")
    data._embedded_digits.cache_clear()
    with pytest.raises(data.DataError, match=r"digits\.npz: .*install this package anew"):
        data.digits(10)


def test_drawn_samples_are_different_ones_and_fewer_are_the_first_of_more():
    np.testing.assert_array_equal(np.sort(data.drawn(9, 9, seed=1)), np.arange(9))
    np.testing.assert_array_equal(data.drawn(9, 9, seed=1)[:4], data.drawn(9, 4, seed=1))
    assert (data.drawn(9, 9, seed=1) != data.drawn(9, 9, seed=2)).any()
    for samples in (0, 10):
        with pytest.raises(ValueError, match=f"{samples} samples: there are from 1 to 9 pictures"):
            data.drawn(9, samples, 0, "pictures")


def test_more_than_the_memory_is_refused_before_it_is_made():
    with pytest.raises(MemoryError, match=r"1000000000000 samples of 10 inputs and 1 outputs need about"):
        data.gaussian(0, 10**12, 10)
