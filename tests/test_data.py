"""The data: normalised as documented, reproducible, and every faulty file refused in one line that names it."""

import pickle
import zipfile

import numpy as np
import pytest

from finite import data


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


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)


@pytest.mark.parametrize("targets", [Y, Y[:, None].astype(np.float32), np.stack([Y, -Y], 1)])
def test_load_npz_returns_what_is_there(targets, tmp_path):
    np.savez(tmp_path / "a.npz", inputs=X.astype(np.uint8), targets=targets, other=np.array("ignored"))
    x, y = data.load_npz(str(tmp_path / "a.npz"), samples=6, inputs=2, outputs=targets[0].size)
    assert (x.dtype, y.dtype) == (np.float64, np.float64)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, targets.reshape(6, -1))


def npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def member(name, content):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("targets.npy", b"")
            archive.writestr(name, content)

    return write


def nameless(path):
    with path.open("wb") as file:
        np.save(file, X)


def truncated(path):
    np.savez(path, inputs=X, targets=Y)
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path):
    np.savez(path, inputs=X, targets=Y)
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes())] ^= 1
    path.write_bytes(content)


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}".ljust(118)


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("1,2,3\n4,5,6\n"), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps({"inputs": X})), "pickled objects"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "cannot be read"),
        (nameless, "one array without a name"),
        (truncated, "cannot be read"),
        (flipped, "cannot be read"),
        (member("inputs", "text"), "hold no numbers"),
        (member("inputs.npy", "text"), "hold no numbers|cannot be read"),
        (member("inputs.npy", HUGE), "cannot be read"),
        (npz(inputs=X), "no array targets; it has inputs"),
        (npz(x=X, y=Y), "no array inputs or targets; it has x, y"),
        (npz(), "no array inputs or targets; it has none"),
        (npz(inputs=X, targets=Y[:-1]), "6 inputs but 5 targets"),
        (npz(inputs=np.array([{}, []], dtype=object), targets=Y), "pickled objects"),
        (npz(inputs=np.where(X == 3, np.nan, X), targets=Y), "inputs hold 1 values that are not finite"),
        (npz(inputs=X, targets=np.where(Y < 2, np.inf, Y)), "targets hold 2 values that are not finite"),
        (npz(inputs=np.full((6, 2), np.longdouble("1e4000")), targets=Y), "inputs hold 12 values that are not finite"),
        (npz(inputs=X * 1j, targets=Y), "inputs hold complex128"),
        (npz(inputs=X, targets=np.array(list("abcdef"))), "targets hold <U1"),
        (npz(inputs=X, targets=Y > 2), "targets hold bool"),
        (npz(inputs=X[:, :0], targets=Y), "inputs of shape"),
        (npz(inputs=X[:0], targets=Y[:0]), "inputs of shape"),
        (npz(inputs=X[..., None], targets=Y), "inputs of shape"),
        (npz(inputs=X[:, 0], targets=Y), "inputs of shape"),
        (npz(inputs=X, targets=Y[:, None, None]), "targets of shape"),
        (npz(inputs=X, targets=np.float64(1)), "targets of shape"),
    ],
)
def test_load_npz_refuses_in_one_line_that_names_the_file(write, line, tmp_path):
    path = tmp_path / "faulty.npz"
    write(path)
    with pytest.raises(data.DataError, match=line) as refusal:
        data.load_npz(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wanted", [{"samples": 5}, {"inputs": 3}, {"outputs": 2}])
def test_load_npz_refuses_other_sizes_than_asked_for(wanted, tmp_path):
    np.savez(tmp_path / "a.npz", inputs=X, targets=Y)
    (name, size), = wanted.items()
    with pytest.raises(data.DataError, match=rf"a\.npz: it has \d {name}, and {size} were asked for"):
        data.load_npz(tmp_path / "a.npz", **wanted)


def test_load_npz_refuses_names_that_no_file_can_have():
    for path in ("a\0b.npz", "a" * 5000):
        with pytest.raises(data.DataError, match=r"no such file|cannot be read"):
            data.load_npz(path)
