"""SimpleConvNet: two convolutions and a readout, without biases; and what the convolutional networks share.

    h¹ = E ∗ x/√channels   (stride 2),      h² = W ∗ pool φ(h¹)   (stride 4),      f = V · pool φ(h²)/√S

(weights as they act), φ = ReLU.  A kernel acts on the 3×3 pixels around one, beyond the border zero, and has 1/√9 in front;
strides and borders as "SAME" has them in XLA: of n rows ⌈n/stride⌉ are left.  pool is over 2×2 pixels where there are as many;
S are left at the end: one of an image of 32×32, 16×16 or 8×8.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import Architecture, Network, Params, Signal, once, parametrized, rowwise, standard_normal
from finite.networks.mlp import check_sizes
from limits.activations import ACTIVATIONS
from limits.exponents.parametrization import fan_in_multiplier
from limits.models import POOLINGS
from limits.problem import Problem

SIDE = 3  # pixels of a kernel

Image = tuple[int, int, int]  # rows, columns, channels
Map = Float[Array, "P _ _ _"]  # rows, columns, channels of each sample


def conv(problem: Problem, width: int, pooling: str = "max", activation: str = "relu") -> Network:
    """SimpleConvNet for the problem's images, outputs and parametrization.

    params = {"input": E (9·channels, N), "hidden": W (9·N, N), "readout": V (S·N, C)}
    whose rows are row and column of a pixel, and channel, fastest

    Raises ValueError for a width below 1, inputs that are no images, and exponents that are not of a plain network.
    """
    check_sizes(width, 2)
    return parametrized(_conv(problem.image, width, problem.num_outputs, pooling, activation), problem, "plain", width, 2)


@once
def _conv(image: Image, width: int, num_outputs: int, pooling: str, activation: str) -> Architecture:
    def forward(params, inputs):
        """f and the signals of every layer."""
        images = of_images(inputs, image)
        first = convolution(images, params["input"], stride=2)
        seen = activated(first, pooling, activation)
        second = convolution(seen, params["hidden"], stride=4)
        last = read_out(activated(second, pooling, activation), params["readout"])
        signals = {
            "input": by_pixel(neighbourhoods(images, 2), first),
            "hidden 2": by_pixel(neighbourhoods(seen, 4), second),
            "readout": last,
        }
        return last.output, signals

    def apply(params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "P C"]:
        return forward(params, inputs)[0]

    def matrices(params: Params) -> dict[str, Array]:
        return {"input": params["input"], "hidden 2": params["hidden"], "readout": params["readout"]}

    def signals(params: Params, inputs: Float[Array, "P D"]) -> dict[str, Signal]:
        return forward(params, inputs)[1]

    def behind(images):
        first = pooled(images[:, ::2, ::2], pooling)
        return pooled(first[:, ::4, ::4], pooling)

    kernels = {"input": (SIDE**2 * image[2], width), "hidden": (SIDE**2 * width, width)}
    shapes = kernels | {"readout": (pixels(behind, image) * width, num_outputs)}
    places = pixels(lambda images: images[:, ::2, ::2], image)
    return Architecture(partial(standard_normal, shapes=shapes), apply, True, None, matrices, signals, places)


def pixels(shrink: Callable[[Map], Map], image: Image) -> int:
    """How many are left of an image."""
    _, rows, columns, _ = jax.eval_shape(shrink, jax.ShapeDtypeStruct((1, *image), jnp.float32)).shape
    return rows * columns


def of_images(inputs: Float[Array, "P D"], image: Image) -> Map:
    """The inputs as images, over √channels: what the first kernel sees."""
    return inputs.reshape(-1, *image) * fan_in_multiplier(image[2])


def neighbourhoods(x: Map, stride: int = 1) -> Map:
    """The 3×3 pixels around each (with a stride, of each window), over √9: (P, rows, columns, 9·channels)."""
    P, rows, columns, _ = x.shape
    if stride >= SIDE and rows % stride == columns % stride == 0:  # windows that do not overlap, within the image
        windows = x.reshape(P, rows // stride, stride, columns // stride, stride, -1)[:, :, :SIDE, :, :SIDE]
        return windows.swapaxes(2, 3).reshape(P, rows // stride, columns // stride, -1) / SIDE
    borders = jax.lax.padtype_to_pads((rows, columns), (SIDE, SIDE), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    rows, columns = (-(-side // stride) * stride for side in (rows, columns))
    taps = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(SIDE) for j in range(SIDE)]
    return jnp.concatenate(taps, axis=-1) / SIDE


def convolution(x: Map, kernel: Float[Array, "m n"], stride: int = 1) -> Map:
    """``kernel`` (9·channels, n) on every neighbourhood.

    XLA's own convolution takes twenty times as long to differentiate in a loop on a CPU (jaxlib 0.10.2).  The neighbourhoods,
    nine times as large as x, are made again on the way back.
    """
    return jax.checkpoint(lambda x, kernel: rowwise(neighbourhoods(x, stride), kernel))(x, kernel)


def activated(x: Map, pooling: str, activation: str) -> Map:
    """pool φ(x), or φ of the largest.

    Of a φ that only grows the two are the same, with the same derivatives (of ReLU: where the largest is positive, equal
    pixels share them, elsewhere there are none).  So φ acts on a quarter of the pixels.
    """
    phi = ACTIVATIONS[activation].phi
    return phi(pooled(x, pooling)) if POOLINGS[pooling].first else pooled(phi(x), pooling)


def pooled(x: Map, pooling: str, leave: int = 1) -> Map:
    """Over 2×2 pixels; as it is where fewer than ``leave`` rows or columns would be left.  Odd ones at the end are dropped."""
    P, rows, columns, channels = x.shape
    rows, columns = rows // 2, columns // 2
    if min(rows, columns) < leave:
        return x
    windows = x[:, : 2 * rows, : 2 * columns].reshape(P, rows, 2, columns, 2, channels)
    return POOLINGS[pooling].reduction(windows, axis=(2, 4))


def read_out(x: Map, readout: Float[Array, "m C"]) -> Signal:
    """f from all S pixels, over √S."""
    features = x.reshape(len(x), -1) * fan_in_multiplier(x.shape[1] * x.shape[2])
    return Signal(features, features @ readout)


def by_pixel(arriving: Map, output: Map) -> Signal:
    """Each pixel a row."""
    return Signal(arriving.reshape(-1, arriving.shape[-1]), output.reshape(-1, output.shape[-1]))
