"""Augmentation of image batches, on the device: every image is seen through a shifted window, and mirrored half of the time."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from limits.problem import Problem

PADDING = 4  # pixels, while training


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Augmentation:
    """What a step sees of its batch: the images' shape, which is compiled, and their black, which is traced.

    image    (H, W, channels)
    black    of every channel, in units of the inputs
    """

    image: tuple[int, int, int] = field(metadata={"static": True})
    black: Float[Array, " channels"]

    def seen(self, key: Array, inputs: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """``crop_and_flip`` of the images that are the rows of the inputs; the key decides."""
        return crop_and_flip(key, inputs.reshape(-1, *self.image), PADDING, self.black).reshape(inputs.shape)


def augmentation(problem: Problem) -> Augmentation | None:
    """The problem's, in the precision of the scope; None where it has none.

    A problem does not say how its pixels were normalised: black is the least number of each channel over all samples.  That
    is −1 of inputs as ``finite.data.images`` makes them, where any pixel is black.  Of pixels that were centred one by one, as
    ``finite.data.digits`` are, no single number is black: the frame is as dark as the darkest of them, 0 or below.
    """
    if not problem.augment:
        return None
    darkest = problem.inputs.reshape(-1, problem.image[2]).min(axis=0)
    return Augmentation(problem.image, jnp.asarray(darkest, jnp.zeros(()).dtype))


def crop_and_flip(
    key: Array, images: Num[Array, "B H W channels"], padding: int = 4, fill: float | Float[Array, " channels"] = 0.0
) -> Num[Array, "B H W channels"]:
    """Each image with ``padding`` pixels of ``fill`` around it, cut back to H × W at a random place, mirrored or not.

    All (2·padding + 1)² places and both orientations are equally likely, independently for each image.  Traceable.
    Black is 0 for pixels from 0 to 255, and −1 once they are (x/255 − 1/2) / (1/2): then give fill=-1; or one per channel.
    Raises ValueError for a negative padding.
    """
    if padding < 0:
        raise ValueError(f"padding {padding} must be at least 0")
    place_key, flip_key = jax.random.split(key)
    count, *shape = images.shape
    corners = jax.random.randint(place_key, (count, 2), 0, 2 * padding + 1, jnp.int32)  # the same at either precision
    mirrored = jax.random.bernoulli(flip_key, jnp.float32(0.5), (count,))
    rows, columns, channels = shape
    frame_shape = count, rows + 2 * padding, columns + 2 * padding, channels
    frame = jnp.broadcast_to(jnp.asarray(fill).astype(images.dtype), frame_shape)
    framed = jax.lax.dynamic_update_slice(frame, images, (0, padding, padding, 0))

    def seen(image, corner, mirror):
        crop = jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), shape)
        return jnp.where(mirror, crop[:, ::-1], crop)

    return jax.vmap(seen)(framed, corners, mirrored)
