"""The two kernels of a network of infinite width at step 0, analytically, through neural-tangents.

    K(x, x') = E f(x) f(x')        Θ(x, x') = Σ_θ r_θ ∂f(x)/∂θ ∂f(x')/∂θ        of one output, weights N(0, 1)

with r_θ the learning rate of the weight's role over η0.  A network is a tuple of layers, each of which maps the pair:

    Dense, Conv    K ← m² K̄,           Θ ← m² (Θ̄ + r K̄)            K̄: mean over what one output meets, so 1/√fan-in is in
    Activation     K ← E φ(u) φ(v),    Θ ← Θ · E φ'(u) φ'(v)        (u, v) ~ N(0, K)
    Block          K ← K + K_branch,   Θ ← Θ + Θ_branch
    AveragePool    both: mean over the pairs of pixels of two windows

m is the role's multiplier without its 1/√fan-in (Lee et al. 2018; Jacot et al. 2018; Arora et al. 2019 for convolutions).

tanh, which has no closed form, is in ``limits.kernel.tanh``; the other activations are closed forms; ReLU's Θ rounds to
1e-8 where two samples are equal.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations_with_replacement
from math import isqrt, prod, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from limits.activations import ACTIVATIONS
from limits.exponents.parametrization import Factors
from limits.kernel import neural_tangents_compat
from limits.machine import in_float64, require_memory
from limits.models import POOLINGS, Model

BLOCK_NUMBERS = 2**22  # numbers of one intermediate kernel that are held at once: 32 MiB


@dataclass(frozen=True)
class Image:
    """The rows of the inputs are images of this (height, width, channels), channels last; the first layer if at all."""

    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Dense:
    """A matrix; ``gain`` is one more factor in front of it."""

    role: str
    gain: float = 1.0


@dataclass(frozen=True)
class Conv:
    """A convolution, size × size, zeros around the image so that only the stride shrinks it ("SAME" in XLA's words)."""

    role: str
    size: int = 3
    stride: int = 1
    gain: float = 1.0


@dataclass(frozen=True)
class Activation:
    """φ by its name in ``limits.activations``."""

    name: str


@dataclass(frozen=True)
class AveragePool:
    """Means over 2 × 2 pixels, odd ones at the end dropped; left out where fewer than ``leave`` rows or columns would be left.

    There is no analytic kernel of max pooling.
    """

    leave: int = 1


@dataclass(frozen=True)
class Flatten:
    """Pixels become channels."""


@dataclass(frozen=True)
class Block:
    """h ← h + branch(h), ``copies`` times, with weights of their own; the branch begins with its activation."""

    branch: tuple["Layer", ...]
    copies: int = 1


Layer = Image | Dense | Conv | Activation | AveragePool | Flatten | Block


def layers(model: Model, image: tuple[int, int, int] | None = None) -> tuple[Layer, ...]:
    """The layers of ``finite.networks.build``, for inputs that are images of this (rows, columns, channels) if the model's are.

    Raises ValueError for transformers, and for poolings and activations that have no analytic kernel.
    """
    if model.nonlinearity.kernel is None:
        have = ", ".join(row.name for row in ACTIVATIONS.values() if row.kernel)
        raise ValueError(f"no kernel limit for activation {model.activation!r}; known: {have}")
    if model.family not in LAYERS:
        raise ValueError(f"no kernel limit is known for {model.family}")
    if image and not POOLINGS[model.pooling].has_kernel:
        known = " or ".join(row.name for row in POOLINGS.values() if row.has_kernel)
        raise ValueError(f"{model.pooling} pooling has no analytic kernel: {known} pooling has one")
    return LAYERS[model.family](model, Activation(model.activation), image)


def _perceptron(model, phi, _):
    branch = (*(phi, Dense("block_inner")) * (model.block_size - 1), phi, Dense("block"))
    plain = (phi, Dense("hidden")) * (model.depth - 1)
    inside = (Block(branch, model.depth),) if model.architecture == "residual" else plain
    return (Dense("input"), *inside, phi, Dense("readout"))


def _conv(model, phi, image):
    convolutions = (Conv("input", stride=2), phi, AveragePool(), Conv("hidden", stride=4), phi, AveragePool())
    return (Image(image), *convolutions, Flatten(), Dense("readout"))


def _convnet(model, phi, image):
    return (Image(image), Conv("input", stride=2), *_stages(model), phi, Flatten(), Dense("readout"))


LAYERS = {"perceptron": _perceptron, "conv": _conv, "convnet": _convnet}  # by family


def _stages(model):
    """Three stages of blocks as even as they can be, the first ones larger; φ before each convolution, its gain √2."""
    conv = {role: (Activation(model.activation), Conv(role, gain=sqrt(2))) for role in ("hidden", "block_inner", "block")}
    block = Block((*conv["block_inner"] * (model.block_size - 1), *conv["block"]))
    blocks = model.depth if model.architecture == "residual" else model.depth - 1
    for stage in range(3):
        copies = blocks // 3 + (stage < blocks % 3)
        if model.architecture == "plain":
            yield from conv["hidden"] * copies
        elif copies:
            yield replace(block, copies=copies)
        yield AveragePool(leave=2 if stage < 2 else 1)


def kernels(
    network: tuple[Layer, ...], inputs: Float[np.ndarray, "P D"], factors: Mapping[str, Factors]
) -> tuple[Float[np.ndarray, "P P"], Float[np.ndarray, "P P"]]:
    """(K, Θ), symmetric; the last ones are remembered.

    ``factors`` are of weights N(0, 1) at width 1 (``limits.exponents.parametrization``); a learning rate of 0 is of weights
    that are not trained.  Raises MemoryError for more samples than fit.
    """
    spread = _numbers_per_pair(network)
    require_memory(8 * len(inputs) ** 2 + 8 * max(spread, BLOCK_NUMBERS))  # what is made of K and Θ included
    numbers = tuple((role, factor.multiplier, factor.learning_rate) for role, factor in factors.items())
    inputs = np.ascontiguousarray(inputs, np.float64)
    return _kernels(network, inputs.tobytes(), inputs.shape, numbers, max(1, isqrt(BLOCK_NUMBERS // spread)))


@lru_cache(maxsize=8)
@in_float64
def _kernels(network, inputs, shape, numbers, largest):
    """In square blocks of at most ``largest`` samples a side, the upper triangle of them."""
    of_pair = _compiled(network, numbers)
    P = shape[0]
    count = -(-P // largest)
    side = -(-P // count)
    x = np.pad(np.frombuffer(inputs).reshape(shape), ((0, side * count - P), (0, 0)), mode="edge")  # one shape to compile
    blocks = np.empty((2, count, side, count, side))
    for i, j in combinations_with_replacement(range(count), 2):
        left, right = (jnp.asarray(x[k * side : (k + 1) * side]) for k in (i, j))
        block = np.stack(of_pair(left, None if i == j else right))
        blocks[:, i, :, j] = block if i != j else (block + block.swapaxes(1, 2)) / 2
        blocks[:, j, :, i] = blocks[:, i, :, j].swapaxes(1, 2)
    blocks = blocks.reshape(2, side * count, side * count)[:, :P, :P]
    return blocks[0], blocks[1]


def _compiled(network, numbers):
    """(x, x' or None for x again) → (K, Θ)"""
    stax = neural_tangents_compat.load().stax
    image = network[0].shape if isinstance(network[0], Image) else None
    numbers = {role: (multiplier, rate) for role, multiplier, rate in numbers}
    _, _, kernel_of = stax.serial(*(_stax(stax, layer, numbers) for layer in _fitting(network)))

    def arranged(x):
        return x if x is None or image is None else x.reshape(-1, *image)

    @jax.jit
    def of_pair(left, right):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # FanInSum: branches are to be independent; they are
            return tuple(kernel_of(arranged(left), arranged(right), ("nngp", "ntk")))

    return of_pair


def _stax(stax, layer: Layer, numbers):
    """The layer of neural-tangents."""
    match layer:
        case Dense(role, gain):
            return _trained(stax, stax.Dense(1, gain * numbers[role][0]), numbers[role][1])
        case Conv(role, size, stride, gain):
            dense = _stax(stax, Dense(role, gain), numbers)
            return stax.serial(_patches(stax, size, stride), dense)
        case Activation(name):
            return ACTIVATIONS.find(name).kernel(stax)
        case AveragePool():
            return stax.AvgPool((2, 2), (2, 2))
        case Flatten():
            return stax.Flatten()
        case Block(branch, copies):
            inside = stax.serial(*(_stax(stax, inner, numbers) for inner in branch))
            block = stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), inside), stax.FanInSum())
            return stax.repeat(block, copies)


def _patches(stax, size, stride):
    """What a convolution makes of kernels before its weights: the mean over the size² offsets at which both pixels are read.

    By shifted sums, and not by ``stax.Conv``: two float64 convolutions in one program crash XLA on CPUs (jaxlib 0.10.2).
    """

    def kernel_of(k, **_):
        first = {"nngp": 2, "ntk": 2, "cov1": 2 - k.diagonal_batch, "cov2": 2 - k.diagonal_batch}  # behind the samples
        pixels = 1 if k.diagonal_spatial else 2  # rows, (rows',) columns, (columns')
        patched = {name: getattr(k, name) for name in first}
        for name, kernel in patched.items():
            if kernel is not None and kernel.ndim:  # Θ of the inputs is a plain 0
                for axis in (first[name], first[name] + pixels):
                    kernel = _mean_over_offsets(kernel, range(axis, axis + pixels), size, stride)
            patched[name] = kernel
        return k.replace(**patched)

    @stax.layer
    @stax.supports_masking(remask_kernel=False)
    def patches():
        def strided(x):  # a stand-in, for its shape
            return x[:, ::stride, ::stride]

        def init(_, shape):
            return jax.eval_shape(strided, jax.ShapeDtypeStruct(shape, float)).shape, ()

        return init, lambda _, x, **__: strided(x), kernel_of

    return patches()


def _mean_over_offsets(kernel, axes, size, stride):
    """The mean over the offsets in a window of ``size``, along all ``axes`` at once; zeros around."""
    (pads,) = jax.lax.padtype_to_pads((kernel.shape[axes[0]],), (size,), (stride,), "SAME")
    padded = jnp.pad(kernel, [pads if axis in axes else (0, 0) for axis in range(kernel.ndim)])
    last = padded.shape[axes[0]] - size
    return sum(
        padded[tuple(slice(o, o + last + 1, stride) if axis in axes else slice(None) for axis in range(kernel.ndim))]
        for o in range(size)
    ) / size  # fmt: skip


def _trained(stax, weights, rate):
    """The layer K ← m² K̄, Θ ← m² (Θ̄ + K̄) of neural-tangents with r K̄ in place of K̄ in Θ."""

    @stax.layer
    @stax.supports_masking(remask_kernel=False)
    def weighted():
        return lambda _, shape: (shape, ()), lambda _, x, **__: x, lambda k, **__: k.replace(ntk=k.ntk + (rate - 1) * k.nngp)

    return weights if rate == 1 else stax.serial(weights, weighted())


def _numbers_per_pair(network) -> int:
    """The most numbers that a layer's kernel of two samples has: all pairs of pixels."""
    if not isinstance(network[0], Image):
        return 1
    return prod(network[0].shape[:2]) ** 2


def _fitting(network):
    """The layers without the image, and without the pools that it is too small for."""
    rows, columns, _ = network[0].shape if isinstance(network[0], Image) else (1, 1, 1)
    for layer in network:
        match layer:
            case Image():
                continue
            case Conv(_, _, stride):
                rows, columns = -(-rows // stride), -(-columns // stride)
            case AveragePool(leave):
                if min(rows, columns) // 2 < leave:
                    continue
                rows, columns = rows // 2, columns // 2
        yield layer
