"""Small local copies of architectures that people use, in the four libraries of JAX, as their users write them.

``MODELS``: name → (function that returns a ``Model``, the role of every weight, by the end of its path or the whole of it).
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from finite.networks.own import from_equinox, from_haiku, from_linen, from_nnx

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(8, 5)).astype(np.float32), RNG.normal(size=(8, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(4, 8, 8, 2)).astype(np.float32), RNG.integers(3, size=4)
VOCABULARY, LENGTH, HEADS = 11, 6, 4
TOKENS = RNG.integers(VOCABULARY, size=(4, LENGTH)), RNG.integers(VOCABULARY, size=(4, LENGTH))
MASK = np.tril(np.ones((LENGTH, LENGTH), bool))


# flax.nnx -------------------------------------------------------------------------------------------------------------


class NnxMLP(nnx.Module):
    def __init__(self, width, rngs):
        self.first, self.second = nnx.Linear(5, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.norm, self.last = nnx.RMSNorm(width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.second(nnx.relu(self.first(x))))))


class NnxConvNet(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(width, width, (3, 3), feature_group_count=width, use_bias=False, rngs=rngs)
        self.second, self.norm = nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.second(self.depthwise(nnx.relu(self.first(x))))))
        return self.last(jnp.mean(x, axis=(1, 2)))


class NnxLlama(nnx.Module):
    """Rotary positions, grouped queries, SwiGLU, RMSNorm, the readout tied to the embedding."""

    def __init__(self, width, rngs):
        inner, head = 3 * width, width // HEADS
        linear = lambda a, b: nnx.Linear(a, b, use_bias=False, rngs=rngs)  # noqa: E731
        self.embed, self.head = nnx.Embed(VOCABULARY, width, rngs=rngs), head
        self.query, self.key, self.value = linear(width, width), linear(width, 2 * head), linear(width, 2 * head)
        self.out, self.gate = linear(width, width), linear(width, inner)
        self.up, self.down = linear(width, inner), linear(inner, width)
        self.norm1, self.norm2, self.norm3 = (nnx.RMSNorm(width, rngs=rngs) for _ in range(3))

    def rotated(self, x):
        angles = np.arange(LENGTH)[:, None] / 100 ** (np.arange(self.head // 2) / (self.head // 2))
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def __call__(self, tokens):
        h = self.embed(tokens)
        x, shape = self.norm1(h), (*tokens.shape, -1, self.head)
        q, k, v = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        q, k, v = self.rotated(q), *(jnp.repeat(one, HEADS // 2, axis=2) for one in (self.rotated(k), v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(self.head)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(MASK, scores, -1e9)), v)
        h = h + self.out(mixed.reshape(h.shape))
        x = self.norm2(h)
        h = h + self.down(jax.nn.silu(self.gate(x)) * self.up(x))
        return self.embed.attend(self.norm3(h))


# flax.linen -----------------------------------------------------------------------------------------------------------


class LinenConvNet(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(self.width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.GroupNorm(num_groups=4)(nn.Conv(2 * self.width, (3, 3))(x))
        return nn.Dense(3)(jnp.mean(nn.relu(x), axis=(1, 2)))


class LinenGPT(nn.Module):
    width: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCABULARY, self.width)
        h = embed(tokens) + self.param("position", nn.initializers.normal(0.02), (LENGTH, self.width))
        for _ in range(2):
            h = h + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(h), mask=MASK[None, None])
            h = h + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(h))))
        return embed.attend(nn.LayerNorm()(h))


class LinenBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, h, _):
        return h + nn.Dense(self.width, use_bias=False)(nn.tanh(nn.Dense(self.width)(nn.RMSNorm()(h)))), None


class LinenScan(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        h, _ = layers(self.width)(nn.Dense(self.width)(x), None)
        return nn.Dense(3)(h)


# equinox --------------------------------------------------------------------------------------------------------------


class EqxAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, width, key):
        a, b, c = jax.random.split(key, 3)
        self.embed, self.norm = eqx.nn.Embedding(VOCABULARY, width, key=a), eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(HEADS, width, use_output_bias=True, key=b)
        self.last = eqx.nn.Linear(width, VOCABULARY, key=c)

    def __call__(self, tokens):
        h = jax.vmap(self.embed)(tokens)
        x = jax.vmap(self.norm)(h)
        return jax.vmap(self.last)(h + self.attention(x, x, x, mask=MASK))


class EqxSwiGLU(eqx.Module):
    first: eqx.nn.Linear
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    last: eqx.nn.Linear
    norm: eqx.nn.RMSNorm

    def __init__(self, width, key):
        keys = jax.random.split(key, 5)
        sizes = ((5, width), (width, 2 * width), (width, 2 * width), (2 * width, width), (width, 3))
        layers = [eqx.nn.Linear(*size, use_bias=False, key=k) for size, k in zip(sizes, keys, strict=True)]
        self.first, self.gate, self.up, self.down, self.last = layers
        self.norm = eqx.nn.RMSNorm(width, use_bias=False)

    def __call__(self, x):
        h = self.first(x)
        n = self.norm(h)
        return self.last(h + self.down(jax.nn.silu(self.gate(n)) * self.up(n)))


# haiku ----------------------------------------------------------------------------------------------------------------


def haiku_conv(width):
    def forward(x):
        x = jax.nn.relu(hk.Conv2D(width, 3)(x))
        x = hk.LayerNorm(-1, True, True)(hk.Conv2D(width, 3, stride=2)(x))
        return hk.Linear(3)(jnp.mean(jax.nn.relu(x), axis=(1, 2)))

    return forward


def haiku_transformer(width):
    def forward(tokens):
        h = hk.Embed(VOCABULARY, width)(tokens)
        x = hk.RMSNorm(-1)(h)
        h = h + hk.MultiHeadAttention(HEADS, width // HEADS, w_init=hk.initializers.VarianceScaling())(x, x, x)
        return hk.Linear(VOCABULARY)(h)

    return forward


MODELS = {
    "nnx-mlp": (lambda: from_nnx(NnxMLP, "mse", VECTORS), {
        "first/kernel": "input", "second/kernel": "hidden", "last/kernel": "readout", "norm/scale": "norm_gain",
        "first/bias": "bias", "second/bias": "bias", "last/bias": "constant"}),
    "nnx-conv": (lambda: from_nnx(NnxConvNet, "cross_entropy", IMAGES), {
        "first/kernel": "input", "depthwise/kernel": "input", "second/kernel": "hidden", "last/kernel": "readout",
        "norm/scale": "norm_gain", "norm/bias": "bias", "first/bias": "bias", "second/bias": "bias", "last/bias": "constant"}),
    "nnx-llama": (lambda: from_nnx(NnxLlama, "cross_entropy", TOKENS), {
        "embed/embedding": "embedding readout", **dict.fromkeys(("norm1/scale", "norm2/scale", "norm3/scale"), "norm_gain"),
        **{f"{name}/kernel": "hidden" for name in ("query", "key", "value", "out", "gate", "up", "down")}}),
    "linen-conv": (lambda: from_linen(LinenConvNet, "cross_entropy", IMAGES), {
        "Conv_0/kernel": "input", "Conv_1/kernel": "hidden", "Dense_0/kernel": "readout", "Dense_0/bias": "constant",
        "GroupNorm_0/scale": "norm_gain", "bias": "bias"}),
    "linen-gpt": (lambda: from_linen(LinenGPT, "cross_entropy", TOKENS), {
        "Embed_0/embedding": "embedding readout", "position": "bias", "kernel": "hidden", "bias": "bias",
        "scale": "norm_gain"}),
    "linen-scan": (lambda: from_linen(LinenScan, "mse", VECTORS), {
        "ScanCheckpointLinenBlock_0/Dense_0/kernel": "hidden", "ScanCheckpointLinenBlock_0/Dense_1/kernel": "hidden",
        "Dense_0/kernel": "input", "Dense_1/kernel": "readout", "Dense_1/bias": "constant", "bias": "bias",
        "Block_0/Dense_1/bias": "bias", "scale": "norm_gain"}),
    "equinox-mlp": (lambda: from_equinox(lambda width, key: eqx.nn.MLP(5, 3, width, 2, key=key), "mse", VECTORS), {
        "layers/0/weight": "input", "layers/1/weight": "hidden", "layers/2/weight": "readout", "layers/2/bias": "constant",
        "bias": "bias"}),
    "equinox-attention": (lambda: from_equinox(EqxAttention, "cross_entropy", TOKENS), {
        "embed/weight": "embedding", "norm/weight": "norm_gain", "norm/bias": "bias", "last/weight": "readout",
        "last/bias": "constant", "output_proj/bias": "bias", "weight": "hidden"}),
    "equinox-swiglu": (lambda: from_equinox(EqxSwiGLU, "mse", VECTORS), {
        "first/weight": "input", "last/weight": "readout", "norm/weight": "norm_gain", "weight": "hidden"}),
    "haiku-mlp": (lambda: from_haiku(lambda width: lambda x: hk.nets.MLP([width, width, 3])(x), "mse", VECTORS), {
        "linear_0/w": "input", "linear_1/w": "hidden", "linear_2/w": "readout", "linear_2/b": "constant", "b": "bias"}),
    "haiku-conv": (lambda: from_haiku(haiku_conv, "cross_entropy", IMAGES), {
        "conv2_d/w": "input", "conv2_d_1/w": "hidden", "linear/w": "readout", "linear/b": "constant", "scale": "norm_gain",
        "offset": "bias", "b": "bias"}),
    "haiku-transformer": (lambda: from_haiku(haiku_transformer, "cross_entropy", TOKENS), {
        "embeddings": "embedding", "multi_head_attention/query/w": "hidden", "scale": "norm_gain", "linear/b": "constant",
        "multi_head_attention/linear/w": "hidden", "key/w": "hidden", "value/w": "hidden", "linear/w": "readout",
        "multi_head_attention/linear/b": "bias", "b": "bias"}),
}  # fmt: skip


def expected(wanted, path):
    """Of the longest end of the path that is there."""
    return wanted[max((end for end in wanted if path.endswith(end)), key=len)]
