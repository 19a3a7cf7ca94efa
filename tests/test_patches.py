"""patches10: the photographs that were published, cut without a pixel in both halves; neither trivial nor hopeless."""

import hashlib

import numpy as np
import pytest

from finite.data import patches
from finite.data import synthetic as data
from finite.data.patches import patches10


def test_the_photographs_are_those_that_were_put_in():
    """The digest is that of the ten squares as scaled from their sources, before they were encoded."""
    found = hashlib.sha256(np.stack(patches._photographs()).tobytes()).hexdigest()
    assert found == "f223d2d84dc92906b1b41032117c6c01ffdab33480e080439226f14f904b6ed1"


def test_every_photograph_has_a_credit_and_a_free_licence():
    assert list(data.embedded(patches.PATCHES, patches.PATCHES_SHA256)) == list(patches.PHOTOGRAPHS)
    assert all(credit.endswith(("; CC0", "; public domain")) for credit in patches.PHOTOGRAPHS.values())
    assert patches.PATCHES.stat().st_size < 1_000_000


def test_classes_are_balanced_and_named():
    images = patches10(50, 30, seed=3)
    assert images.train_images.shape == (50, 32, 32, 3)
    assert images.test_images.shape == (30, 32, 32, 3)
    assert images.classes == tuple(patches.PHOTOGRAPHS)
    np.testing.assert_array_equal(np.bincount(images.train_labels), 5)
    np.testing.assert_array_equal(np.bincount(images.test_labels), 3)


def test_crops_depend_on_the_seed_only_and_more_samples_begin_alike():
    few, many, other = patches10(30, 10, seed=1), patches10(64, 20, seed=1), patches10(30, 10, seed=2)
    np.testing.assert_array_equal(many.train_images[:30], few.train_images)
    np.testing.assert_array_equal(many.test_images[:10], few.test_images)
    assert not np.array_equal(other.train_images, few.train_images)


def test_train_and_test_crops_share_no_pixel_and_no_crop_comes_twice(monkeypatch):
    """A photograph whose pixels are all different says of every crop where it lies."""
    height, width = np.indices((256, 256), dtype=np.uint8)
    rulers = [np.stack([height, width, np.full_like(height, label)], axis=-1) for label in range(10)]
    monkeypatch.setattr(patches, "_photographs", lambda: rulers)
    images = patches10(4000, 2000)
    assert images.train_images[..., 0].max() == 191
    assert images.test_images[..., 0].min() == 192
    np.testing.assert_array_equal(images.train_images[:, 5, 7, 2], images.train_labels)
    offset = images.train_images.astype(int) - images.train_images[:, :1, :1].astype(int)
    np.testing.assert_array_equal(offset[..., 0], np.broadcast_to(np.arange(32)[:, None], (4000, 32, 32)))
    np.testing.assert_array_equal(offset[..., 1], np.broadcast_to(np.arange(32), (4000, 32, 32)))
    assert len(np.unique(images.train_images[:, 0, 0], axis=0)) == 4000
    assert len(np.unique(images.test_images[:, 0, 0], axis=0)) == 2000


def test_all_places_of_a_photograph_can_be_had():
    images = patches10(10, 74_250)
    assert len(images.test_images) == 10 * 33 * 225


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((0, 5), "0 crops: wanted from 1 to 362250"),
        ((362_251, 5), "362251 crops"),
        ((5, -1), "-1 crops: wanted from 0 to 74250"),
        ((5, 74_251), "74251 crops"),
    ],
)
def test_sizes_that_cannot_be(sizes, line):
    with pytest.raises(ValueError, match=line):
        patches10(*sizes)


def test_no_test_crops_need_be():
    assert patches10(5, 0).test_images.shape == (0, 32, 32, 3)


def test_neither_trivial_nor_hopeless():
    """The module's docstring holds these accuracies, over five seeds; a tenth would be chance."""
    images = patches10(2000, 1000)
    (x, y), (z, wanted) = images.train(), images.test()
    label, wanted = y.argmax(axis=1), wanted.argmax(axis=1)

    colours, test_colours = (rows.reshape(len(rows), -1, 3).mean(axis=1) for rows in (x, z))
    centroids = np.stack([colours[label == c].mean(axis=0) for c in range(10)])
    nearest = squared_distances(test_colours, centroids).argmin(axis=1)
    assert 0.45 < np.mean(nearest == wanted) < 0.57

    near = squared_distances(x, x)
    scale = np.median(near) / 2
    fitted = np.linalg.solve(np.exp(-near / scale) + 1e-3 * np.eye(len(x)), y)
    predicted = (np.exp(-squared_distances(z, x) / scale) @ fitted).argmax(axis=1)
    assert 0.62 < np.mean(predicted == wanted) < 0.74


def squared_distances(a, b):
    return np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], None])
def test_damaged_photographs_are_refused(damage, tmp_path, monkeypatch):
    if damage:
        (tmp_path / "patches10.npz").write_bytes(damage(patches.PATCHES.read_bytes()))
    monkeypatch.setattr(patches, "PATCHES", tmp_path / "patches10.npz")
    patches._photographs.cache_clear()
    with pytest.raises(data.DataError, match=r"patches10\.npz: .*install this package anew"):
        patches10(10)
