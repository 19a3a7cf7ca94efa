"""Augmentation: every output is a crop of its own image, at every place and in both orientations equally often."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finite.data.images import network_inputs
from finite.training.augmentation import augmentation, crop_and_flip
from limits import Problem
from limits.machine import computing


def numbered(count, height, width, channels=3):
    """Images whose pixels are all different, and none zero."""
    return jnp.arange(1.0, 1 + count * height * width * channels).reshape(count, height, width, channels)


def possible(image, padding, fill):
    """All (2·padding + 1)² crops, then the same mirrored."""
    height, width, _ = image.shape
    framed = np.full((height + 2 * padding, width + 2 * padding, image.shape[2]), fill, image.dtype)
    framed[padding : padding + height, padding : padding + width] = image
    places = [(row, column) for row in range(2 * padding + 1) for column in range(2 * padding + 1)]
    crops = [framed[row : row + height, column : column + width] for row, column in places]
    return np.stack(crops + [crop[:, ::-1] for crop in crops])


@pytest.mark.parametrize(("shape", "padding", "fill"), [((32, 32, 3), 4, 0.0), ((5, 8, 1), 2, -1.0), ((4, 3, 3), 0, 0.0)])
def test_every_output_is_a_crop_of_its_own_image(shape, padding, fill):
    images = numbered(20, *shape)
    seen = np.asarray(crop_and_flip(jax.random.key(3), images, padding, fill))
    assert (seen.shape, seen.dtype) == (images.shape, images.dtype)
    for before, after in zip(np.asarray(images), seen, strict=True):
        assert sum(np.array_equal(after, crop) for crop in possible(before, padding, fill)) == 1


def test_every_crop_is_equally_likely():
    """Nine places, two orientations: of 18 000 draws each has 1000, within five standard deviations."""
    image = numbered(1, 4, 4)
    seen = np.asarray(crop_and_flip(jax.random.key(0), jnp.repeat(image, 18_000, axis=0), padding=1))
    crops = possible(np.asarray(image[0]), 1, 0.0).reshape(18, -1)
    counts = (seen.reshape(-1, 1, crops.shape[1]) == crops).all(axis=-1).sum(axis=0)
    assert counts.sum() == 18_000
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(1000 * 17 / 18))


def test_shifts_and_mirrors_are_independent_between_images():
    """Twenty copies of one image: not all are seen alike."""
    seen = np.asarray(crop_and_flip(jax.random.key(1), jnp.repeat(numbered(1, 8, 8), 20, axis=0)))
    assert len(np.unique(seen.reshape(20, -1), axis=0)) > 10


def test_the_key_alone_decides_compiled_or_not():
    images = numbered(6, 8, 8)
    first, again = (np.asarray(crop_and_flip(jax.random.key(5), images)) for _ in range(2))
    compiled = jax.jit(partial(crop_and_flip, padding=4))(jax.random.key(5), images)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, compiled)
    assert not np.array_equal(first, crop_and_flip(jax.random.key(6), images))


def test_black_stays_black_before_and_after_normalising():
    """Cropping bytes and then normalising is normalising and then cropping with fill −1."""
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    cropped = crop_and_flip(jax.random.key(2), pixels)
    assert cropped.dtype == jnp.uint8
    after = crop_and_flip(jax.random.key(2), pixels / 127.5 - 1, fill=-1)
    np.testing.assert_allclose(np.asarray(cropped) / 127.5 - 1, after, atol=1e-6)


def test_every_channel_has_its_own_black():
    """That of a problem's inputs: the least of the channel."""
    rng = np.random.default_rng(1)
    images = rng.uniform(1, 2, size=(30, 5, 4, 3)) - [0, 10, 20]
    problem = Problem(images.reshape(30, -1), np.ones(30), image_shape=(5, 4, 3), augment=True)
    augmented = augmentation(problem)
    black = images.min(axis=(0, 1, 2))
    np.testing.assert_allclose(augmented.black, black, rtol=1e-6)
    assert augmentation(replace(problem, augment=False)) is None
    seen = augmented.seen(jax.random.key(0), jnp.float32(problem.inputs)).reshape(30, 5, 4, 3)
    frame = (np.abs(seen - black) < 1e-5).all(axis=-1)
    assert 0.65 < frame.mean() < 0.85  # shifts by −4 … 4 rows and columns leave 5/9 · 4/9 of 5 × 4 pixels
    for before, after in zip(np.float32(images), np.asarray(seen), strict=True):
        assert any(np.array_equal(after, crop) for crop in possible(before, 4, np.float32(black)))


def test_black_of_normalised_bytes_is_minus_one():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    problem = Problem(network_inputs(pixels), np.ones(40), model="conv", image_shape=(4, 4, 3), augment=True)
    assert (pixels.min(axis=(0, 1, 2)) == 0).all()
    assert (augmentation(problem).black == -1).all()


def test_crops_are_the_same_at_either_precision():
    problem = Problem(np.random.default_rng(0).normal(size=(9, 64)), np.ones(9), model="conv", augment=True)
    found = []
    for precision in ("float32", "float64"):
        with computing(precision):
            inputs = jnp.asarray(problem.inputs, jnp.zeros(()).dtype)
            found.append(np.asarray(augmentation(problem).seen(jax.random.key(0), inputs)))
    assert found[1].dtype == np.float64
    np.testing.assert_array_equal(found[0], np.float32(found[1]))


def test_labels_and_batch_order_are_left_alone():
    """Image p of the output is of image p of the input: so its label is label p."""
    images = jnp.stack([jnp.full((6, 6, 1), 10.0 + label) for label in range(30)])
    seen = np.asarray(crop_and_flip(jax.random.key(4), images, padding=2))
    np.testing.assert_array_equal(seen.max(axis=(1, 2, 3)), 10.0 + np.arange(30))


def test_padding_cannot_be_negative():
    with pytest.raises(ValueError, match="padding -1 must be at least 0"):
        crop_and_flip(jax.random.key(0), numbered(1, 4, 4), padding=-1)
