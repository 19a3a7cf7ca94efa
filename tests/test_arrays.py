"""The user's own arrays: numbers as they are, labels and images as classes and pixels, every fault named in one line."""

import pickle
import zipfile

import numpy as np
import pytest

from finite.data.arrays import holds_classes, load_npz
from finite.data.images import network_inputs
from finite.data.synthetic import DataError

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6.0)


@pytest.mark.parametrize("targets", [Y, Y[:, None].astype(np.float32), np.stack([Y, -Y], 1), np.eye(6, dtype=int)])
def test_numbers_come_back_as_they_are(targets, tmp_path):
    np.savez(tmp_path / "a.npz", inputs=X.astype(np.uint8), targets=targets, other=np.array("ignored"))
    x, y, shape = load_npz(str(tmp_path / "a.npz"))
    assert (x.dtype, y.dtype, shape) == (np.float64, np.float64, None)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, targets.reshape(6, -1))


LABELS = np.array([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(LABELS, 3), (LABELS[:, None].astype(np.uint8), 3), (LABELS + 1, 3), (LABELS > 0, 2), (2 * (LABELS > 0) - 1, 2)],
    ids=["from 0", "column of bytes", "from 1", "booleans", "signs"],
)
def test_labels_are_classes_and_each_has_its_samples(labels, classes, tmp_path):
    """One-hot for cross-entropy, centred for MSE; rows stay beside their inputs, in random order: they lay class by class."""
    np.savez(tmp_path / "a.npz", inputs=X, targets=labels)
    x, one_hot, _ = load_npz(tmp_path / "a.npz", "cross_entropy")
    rows = (x[:, 0] / 2).astype(int)
    assert sorted(rows) == list(range(6)) != rows.tolist()
    assert one_hot.shape == (6, classes)
    assert (np.sort(one_hot, axis=1) == [0] * (classes - 1) + [1]).all()
    assert one_hot.any(axis=0).all()
    order = np.unique(labels, return_inverse=True)[1].reshape(-1)
    np.testing.assert_array_equal(one_hot.argmax(axis=1), order[rows])
    np.testing.assert_allclose(load_npz(tmp_path / "a.npz", "mse")[1], one_hot - 1 / classes)
    np.savez(tmp_path / "b.npz", inputs=X, labels=labels)
    for ours, theirs in zip(load_npz(tmp_path / "b.npz", "mse"), load_npz(tmp_path / "a.npz", "mse"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert holds_classes(tmp_path / "b.npz")


@pytest.mark.parametrize("targets", [Y, LABELS])
def test_some_samples_are_drawn(targets, tmp_path):
    np.savez(tmp_path / "a.npz", inputs=X, targets=targets)
    x, y, _ = load_npz(tmp_path / "a.npz", samples=4, seed=3)
    more = load_npz(tmp_path / "a.npz", samples=6, seed=3)
    np.testing.assert_array_equal(x, more[0][:4])
    np.testing.assert_array_equal(y, more[1][:4])
    assert len(np.unique(more[0], axis=0)) == 6
    with pytest.raises(ValueError, match=r"7 samples: there are from 1 to 6 samples in .*a\.npz"):
        load_npz(tmp_path / "a.npz", samples=7)


BYTES = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("inputs", [BYTES, BYTES[..., 0], BYTES / 255, np.float32(BYTES[..., :1] / 255), BYTES.astype(int)])
def test_inputs_may_be_images(inputs, tmp_path):
    np.savez(tmp_path / "a.npz", inputs=inputs, targets=Y)
    x, _, shape = load_npz(tmp_path / "a.npz")
    channels = 3 if inputs.shape[3:] == (3,) else 1
    assert shape == (4, 5, channels)
    np.testing.assert_allclose(x, network_inputs(BYTES[..., :channels]), atol=1e-6)


def test_whether_targets_are_classes(tmp_path):
    for targets, classes in ((LABELS, True), (np.eye(6), True), (Y, False), (np.stack([Y, Y], 1), False)):
        np.savez(tmp_path / "a.npz", inputs=X, targets=targets)
        assert holds_classes(tmp_path / "a.npz") == classes


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
        (nameless, "one array without a name, wanted an .npz file of several with inputs and targets$"),
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
        (npz(inputs=X, targets=np.array(list("abcdef"))), r"targets hold <U1, .* reals: number the classes, np.unique"),
        (npz(inputs=X, labels=np.array(list("abcdef"))), r"labels of shape \(6,\) hold <U1, .* integers: number the classes"),
        (npz(inputs=X, labels=LABELS.astype(float)), r"labels of shape \(6,\) hold float64, wanted a column of integers$"),
        (npz(inputs=X, labels=LABELS, targets=Y), "it has targets and labels, wanted one of them"),
        (npz(inputs=X, targets=np.stack([Y, Y], 1) > 2), "targets hold bool"),
        (npz(inputs=X, targets=LABELS * 2), "targets are integers, labels 0, 2, 4: wanted classes numbered from 0 or from 1"),
        (npz(inputs=X, targets=LABELS + 2), "labels 2, 3, 4: wanted .* none left out; numbers to be learned are reals"),
        (npz(inputs=X, targets=0 * LABELS), "all labels are 0: wanted at least two classes"),
        (npz(inputs=BYTES.astype(float), targets=Y), "inputs go over 0 … 255; wanted integers from 0 to 255, or reals"),
        (npz(inputs=np.moveaxis(BYTES, -1, 1), targets=Y), r"inputs of shape .6, 3, 4, 5., wanted .n, H, W."),
        (npz(inputs=BYTES[:0], targets=Y[:0]), "inputs of shape .*, wanted at least one image"),
        (npz(inputs=X[:, :0], targets=Y), "inputs of shape"),
        (npz(inputs=X[:0], targets=Y[:0]), "inputs of shape"),
        (npz(inputs=X[..., None, None, None], targets=Y), "inputs of shape"),
        (npz(inputs=X[:, 0], targets=Y), "inputs of shape"),
        (npz(inputs=X, targets=Y[:, None, None]), "targets of shape"),
        (npz(inputs=X, targets=np.float64(1)), "targets of shape"),
    ],
)
def test_load_npz_refuses_in_one_line_that_names_the_file(write, line, tmp_path):
    path = tmp_path / "faulty.npz"
    write(path)
    with pytest.raises(DataError, match=line) as refusal:
        load_npz(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_load_npz_refuses_names_that_no_file_can_have():
    for path in ("a\0b.npz", "a" * 5000):
        with pytest.raises(DataError, match=r"no such file|cannot be read"):
            load_npz(path)
