"""The deep convolutional network, plain or residual, without biases: a stem, three stages, a readout.

    stem        h ← E ∗ x/√channels, stride 2
    stage       plain: h ← W ∗ c φ(h);     residual, blocks of k kernels: h ← h + W ∗ c φ(… U ∗ c φ(h) …);     then pool
    readout     f = V · φ(h)/√S

(weights as they act), φ = ReLU, c = √2 its gain; ∗, pool and S as in ``finite.networks.conv``.  An image of 32×32 has 16×16,
8×8 and 4×4 pixels in the stages, and 2×2 at the end.  Between the stages no fewer than 2×2 are left: to smaller maps a kernel
would be mostly border.  The branch multiplier L^{-α} belongs to W, the role "block".
"""

from functools import partial, reduce
from math import sqrt

import jax
from jaxtyping import Array, Float

from finite.networks import Architecture, Network, Params, Signal, once, parametrized, standard_normal
from finite.networks.conv import (
    SIDE,
    Image,
    by_pixel,
    convolution,
    neighbourhoods,
    of_images,
    pixels,
    pooled,
    read_out,
)
from finite.networks.mlp import check_sizes
from limits.activations import ACTIVATIONS
from limits.problem import Problem

STAGES = 3


def convnet(problem: Problem, width: int, depth: int, pooling: str = "max", activation: str = "relu") -> Network:
    """The plain network: ``depth`` convolutions, the stem is the first; the stages share the others as evenly as they can.

    params = {"input": E (9·channels, N), "hidden": W (depth − 1, 9·N, N), "readout": V (S·N, C)}

    Raises ValueError for sizes below 1, inputs that are no images, and exponents that are not of a plain network.
    """
    check_sizes(width, depth)
    architecture = _convnet(problem.image, width, ("hidden",), depth - 1, 1, problem.num_outputs, pooling, activation)
    return parametrized(architecture, problem, "plain", width, depth)


def resconvnet(
    problem: Problem, width: int, depth: int, block_size: int = 1, pooling: str = "max", activation: str = "relu"
) -> Network:
    """The residual network of ``depth`` blocks, which the stages share as evenly as they can.

    params = {"input": E (9·channels, N), "block_inner": U (L, k−1, 9·N, N), absent for k = 1, "block": W (L, 9·N, N),
              "readout": V (S·N, C)}

    Raises ValueError for sizes below 1, inputs that are no images, and exponents that are not of a residual network.
    """
    check_sizes(width, depth, block_size)
    roles, ends = ("block_inner", "block"), (problem.num_outputs, pooling, activation)
    architecture = _convnet(problem.image, width, roles, depth, block_size, *ends)
    return parametrized(architecture, problem, "residual", width, depth, block_size)


@once
def _convnet(
    image: Image,
    width: int,
    inside: tuple[str, ...],
    depth: int,
    block_size: int,
    num_outputs: int,
    pooling: str,
    activation: str,
) -> Architecture:
    """``depth`` blocks, whose kernels have the roles ``inside``: "hidden", or "block_inner" and "block"."""
    residual, kernel, bounds = "block" in inside, (SIDE**2 * width, width), _bounds(depth)
    phi = ACTIVATIONS[activation].phi
    left = pixels(lambda images: reduce(lambda x, stage: _pooled(x, stage, pooling), range(STAGES), images[:, ::2, ::2]), image)
    shapes = {
        "input": (SIDE**2 * image[2], width),
        "hidden": (depth, *kernel),
        "block_inner": (depth, block_size - 1, *kernel),
        "block": (depth, *kernel),
        "readout": (left * width, num_outputs),
    }
    shapes = {role: shapes[role] for role in ("input", *inside, "readout") if 0 not in shapes[role]}
    inner_names = [f"block_inner {i + 1}" for i in range(block_size - 1)]

    def block(stream, weights):
        """The stream behind a block, and the signals within it."""
        signals, y = [], stream
        for kernel in (*weights.get("block_inner", ()), weights[inside[-1]]):
            active = sqrt(2) * phi(y)
            y = convolution(active, kernel)
            signals.append(by_pixel(neighbourhoods(active), y))
        return stream + y if residual else y, signals

    def forward(params, inputs, watch=lambda behind: behind):
        """First layer's signal, blocks' signals (a leading axis over them) stage by stage, the stream, last layer's signal."""
        images, within = of_images(inputs, image), []
        stream = first = convolution(images, params["input"], 2)
        for stage, (start, stop) in enumerate(bounds):
            if start < stop:
                weights = {role: params[role][start:stop] for role in inside if role in shapes}
                stream, signals = jax.lax.scan(lambda h, kernels: watch(block(h, kernels)), stream, weights)
                within.append(signals)
            stream = _pooled(stream, stage, pooling)
        return by_pixel(neighbourhoods(images, 2), first), within, stream, read_out(phi(stream), params["readout"])

    def apply(params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "P C"]:
        return forward(params, inputs, lambda behind: (behind[0], None))[-1].output

    def matrices(params: Params) -> dict[str, Array]:
        hidden = {f"hidden {l + 2}": params["hidden"][l] for l in range(0 if residual else depth)}
        inner = {name: params["block_inner"][-1, i] for i, name in enumerate(inner_names)}
        last = {"block": params["block"][-1]} if residual else {}
        return {"input": params["input"], **hidden, **inner, **last, "readout": params["readout"]}

    def signals(params: Params, inputs: Float[Array, "P D"]) -> dict[str, Signal]:
        first, within, stream, last = forward(params, inputs)
        if residual:
            of_blocks = {name: Signal(*(x[-1] for x in s)) for name, s in zip([*inner_names, "block"], within[-1], strict=True)}
            of_blocks["stream"] = Signal(None, stream.reshape(-1, width))
        else:
            in_order = [Signal(*rows) for (s,) in within for rows in zip(*s, strict=True)]
            of_blocks = {f"hidden {l + 2}": s for l, s in enumerate(in_order)}
        return {"input": first, **of_blocks, "readout": last}

    init, places = partial(standard_normal, shapes=shapes), pixels(lambda images: images[:, ::2, ::2], image)
    return Architecture(init, apply, True, None, matrices, signals, places)


def _bounds(depth):
    """(first, behind the last) of the blocks of each stage; where three does not divide them, the first stages have more."""
    sizes = [depth // STAGES + (stage < depth % STAGES) for stage in range(STAGES)]
    return [(sum(sizes[:stage]), sum(sizes[: stage + 1])) for stage in range(STAGES)]


def _pooled(x, stage, pooling):
    return pooled(x, pooling, leave=2 if stage < STAGES - 1 else 1)
