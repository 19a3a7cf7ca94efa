"""Augmentation of image batches, on the device: every image is seen through a shifted window, and mirrored half of the time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num


def crop_and_flip(
    key: Key[Array, ""], images: Num[Array, "B H W channels"], padding: int = 4, fill: float = 0.0
) -> Num[Array, "B H W channels"]:
    """Each image with ``padding`` pixels of ``fill`` around it, cut back to H × W at a random place, mirrored or not.

    All (2·padding + 1)² places and both orientations are equally likely, independently for each image.  Traceable.
    Black is 0 for pixels from 0 to 255, and −1 once they are (x/255 − 1/2) / (1/2): then give fill=-1.
    Raises ValueError for a negative padding.
    """
    if padding < 0:
        raise ValueError(f"padding {padding} must be at least 0")
    place_key, flip_key = jax.random.split(key)
    count, *shape = images.shape
    corners = jax.random.randint(place_key, (count, 2), 0, 2 * padding + 1)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (count,))
    framed = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)

    def seen(image, corner, mirror):
        crop = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)
        return jnp.where(mirror, crop[:, ::-1], crop)

    return jax.vmap(seen)(framed, corners, mirrored)
