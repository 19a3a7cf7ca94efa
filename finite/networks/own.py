"""A network that is not ours: a function that builds it at any width, its loss, and a batch.

    model = Model(build, "cross_entropy", (tokens, labels))      build(width, key) -> (params, apply)
    model = from_linen(lambda width: MyModule(width), "cross_entropy", (tokens, labels))

``apply(params, inputs)`` is the network as it is; params are any pytree of arrays, inputs whatever ``apply`` reads: an array, a
dictionary, tokens.  The adapters know Flax, Equinox, Haiku and PyTorch by what these offer and import them where they are used.
Of theirs random numbers (dropout) are the same at every step, the key's, and state (a BatchNorm's averages) is as it began; an
Equinox module that is called with a key or a state wants a ``build`` of its own.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limits.losses import LOSSES

Build = Callable[[int, Any], Any]


@dataclass(frozen=True)
class Model:
    """What is asked of a user's network.

    build    (width, key) → (params, apply); apply(params, inputs) → outputs
    loss     (outputs, targets) → one number, or the name of one of ours, a mean over all samples (and places): "mse",
             "cross_entropy" of probabilities (…, C) or of integer labels (…)
    batch    (inputs, targets), which everything is measured on
    name     in what is printed
    """

    build: Build
    loss: str | Callable
    batch: Any
    name: str = "model"

    def __post_init__(self):
        require_known(self.loss)
        if not isinstance(self.batch, tuple | list) or len(self.batch) != 2:
            raise ValueError(f"batch is {_kind(self.batch)}: wanted the pair (inputs, targets)")
        object.__setattr__(self, "batch", jax.tree.map(_numbers, tuple(self.batch)))

    @property
    def loss_name(self) -> str:
        """Whose exponents it has: one that is not ours is taken to be bounded in its slope, as cross-entropy is."""
        return self.loss if isinstance(self.loss, str) else "cross_entropy"

    def at(self, width: int, key: Any) -> tuple[Any, Callable]:
        """(params, apply) of that width.  Raises ValueError, in one line, for what is no network of weights."""
        with theirs(f"build({width}, key)"):
            built = self.build(width, key)
        if not (isinstance(built, tuple | list) and len(built) == 2 and callable(built[1])):
            raise ValueError(f"build({width}, key) returned {_kind(built)}: wanted the pair (params, apply)")
        params, apply = built
        names = dict(zip(paths(params), jax.tree.leaves(params), strict=True))
        if not names:
            raise ValueError(f"build({width}, key): its params hold no arrays")
        for name, leaf in names.items():
            if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
                kind = f"of {leaf.dtype}" if hasattr(leaf, "dtype") else _kind(leaf)
                where = f"build({width}, key): {name} is {kind}"
                raise ValueError(f"{where}: params are arrays of real numbers; let apply hold the rest")
        return params, apply

    def of_outputs(self, outputs: Any, targets: Any) -> jax.Array:
        """The loss of these outputs; traceable.  Raises ValueError where it is not one number."""
        return loss_of(self.loss, outputs, targets)


def require_model(model: Any) -> None:
    """Raises ValueError for a build, or a module of a library, in place of a ``Model``."""
    if not isinstance(model, Model):
        adapters = "from_nnx, from_linen, from_equinox, from_haiku, from_torch"
        raise ValueError(f"model is {_kind(model)}: wanted a Model(build, loss, batch) of finite.networks.own, or {adapters}")


def require_known(loss: str | Callable) -> None:
    """Raises ValueError for a name that is no loss of ours."""
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}, or a function of (outputs, targets)")


def loss_of(loss: str | Callable, outputs: Any, targets: Any) -> jax.Array:
    """As ``Model.of_outputs``, of a loss by its name or a function."""
    if isinstance(loss, str):
        return _ours(loss, outputs, targets)
    value = loss(outputs, targets)
    if not _is_array(value):
        raise ValueError(f"the loss returns {_kind(value)}: wanted one number")
    value = jnp.asarray(value)
    if value.size != 1:
        raise ValueError(f"the loss returns an array of shape {value.shape}: wanted one number, a mean over the batch")
    return value.reshape(())


@contextlib.contextmanager
def theirs(call: str):
    """Whatever a user's function raises becomes a ValueError of one line; what it was is its cause."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as fault:
        kind = "" if isinstance(fault, ValueError) else f"{type(fault).__name__}: "
        raise ValueError(f"{call}: {kind}{' '.join(str(fault).split())[:300]}") from fault


def _ours(name: str, outputs, targets):
    """With integer labels of classes only the outputs of the labels are gathered: no one-hot array is made."""
    if not _is_array(outputs):
        raise ValueError(f"{name}: apply returns {_kind(outputs)}: wanted one array; or write a loss of (outputs, targets)")
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if LOSSES[name].of_classes and jnp.issubdtype(targets.dtype, jnp.integer) and targets.ndim == outputs.ndim - 1:
        return jnp.mean(cross_entropies(outputs, targets))
    if LOSSES[name].of_classes and targets.ndim == outputs.ndim - 1:
        raise ValueError(f"{name}: labels of classes are integers, these are {targets.dtype}")
    if outputs.shape != targets.shape:
        raise ValueError(f"{name}: outputs of shape {outputs.shape} and targets of shape {targets.shape}")
    return LOSSES[name].mean(outputs, targets)


def cross_entropies(logits: Any, labels: Any) -> jax.Array:
    """Of logits (…, C) at integer labels (…); not a number where one is no class: indexing would take another's."""
    of_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_class, of_label, jnp.nan)


def paths(tree: Any) -> list[str]:
    """The name of every leaf, "blocks/0/attn/kernel", in JAX's order."""
    return [_path(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _path(keys) -> str:
    words = [str(next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field))) for key in keys]
    of_variable = len(words) > 1 and words[-1] == "value" and hasattr(keys[-1], "name")  # nnx: its array
    return "/".join(words[:-1] if of_variable else words) or "params"


def _numbers(leaf: Any) -> Any:
    """A leaf of a batch as an array of ours: a tensor, a data frame.  Raises ValueError for one that holds no numbers."""
    if not _is_array(leaf) and hasattr(leaf, "__array__"):
        with theirs(f"batch holds {_kind(leaf)}"):
            leaf = np.asarray(leaf)
    dtype = jnp.asarray(leaf).dtype if isinstance(leaf, float | int) else getattr(leaf, "dtype", None)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_, jax.dtypes.prng_key)):
        raise ValueError(f"batch holds {_kind(leaf) if dtype is None else f'an array of {dtype}'}: wanted arrays of numbers")
    return leaf


def _is_array(value) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic | float)


def _kind(value) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"dict of {', '.join(map(str, list(value)[:4]))}"
    return type(value).__name__


# Adapters -------------------------------------------------------------------------------------------------------------


def _made(make: Callable, width: int, **random: Any) -> Any:
    """What make returns, of the width and what random numbers come from, by its name where make knows it by that.

    Raises ValueError for a network itself, in place of what makes one.
    """
    if not (inspect.isroutine(make) or isinstance(make, type | partial)):
        kind = type(make).__name__
        raise ValueError(f"make is one {kind}, of one width: wanted what makes it of any, lambda width: {kind}(width), say")
    if random and next(iter(random)) in inspect.signature(make).parameters:
        return make(width, **random)
    return make(width, *random.values())


def from_nnx(make: Callable, loss: str | Callable, batch: tuple, name: str = "nnx") -> Model:
    """``make(width, rngs)`` returns a flax.nnx.Module; its ``nnx.Param`` are the params."""

    def build(width, key):
        from flax import nnx

        graph, params, rest = nnx.split(_made(make, width, rngs=nnx.Rngs(key)), nnx.Param, ...)
        return params, lambda params, inputs: nnx.merge(graph, params, rest, copy=True)(inputs)  # whose state may change

    return Model(build, loss, batch, name)


def from_linen(make: Callable, loss: str | Callable, batch: tuple, name: str = "linen") -> Model:
    """``make(width)`` returns a flax.linen.Module; "params" are the params, other collections stay as ``init`` made them."""

    def build(width, key):
        module = _made(make, width)
        held = dict(module.init(key, batch[0]))
        params = held.pop("params")

        def apply(params, inputs):
            outputs, _ = module.apply({"params": params, **held}, inputs, rngs={"params": key}, mutable=list(held))
            return outputs

        return params, apply

    return Model(build, loss, batch, name)


def from_equinox(make: Callable, loss: str | Callable, batch: tuple, name: str = "equinox", *, vmap: bool = True) -> Model:
    """``make(width, key)`` is an equinox.Module of one sample (``vmap=False``: of the batch); its real arrays are params."""

    def build(width, key):
        import equinox

        params, rest = equinox.partition(_made(make, width, key=key), equinox.is_inexact_array)

        def apply(params, inputs):
            module = equinox.combine(params, rest)
            return jax.vmap(module)(inputs) if vmap else module(inputs)

        return params, apply

    return Model(build, loss, batch, name)


def from_haiku(make: Callable, loss: str | Callable, batch: tuple, name: str = "haiku") -> Model:
    """``make(width)`` returns a function of inputs that calls haiku modules."""

    def build(width, key):
        import haiku

        transformed = haiku.transform_with_state(_made(make, width))
        params, state = transformed.init(key, batch[0])
        return params, lambda params, inputs: transformed.apply(params, state, key, inputs)[0]

    return Model(build, loss, batch, name)


def from_torch(make: Callable, loss: str | Callable, batch: tuple, name: str = "torch") -> Model:
    """``make(width)`` is a torch.nn.Module, in ``eval``, through torchax (the extra ``torch``).

    Its parameters that ask for gradients are the params; buffers (masks, a BatchNorm's averages) are held.  Tensors that
    ``forward`` makes anew are JAX's too, but for those of ``device="cpu"``, which torchax refuses beside others.
    """

    def build(width, key):
        from finite.networks.torchax_compat import load

        torchax = load()
        import torch

        torch.manual_seed(int(np.asarray(jax.random.key_data(key)).ravel()[-1]))
        module = _made(make, width).eval()
        state, function = torchax.extract_jax(module)
        asking = {n for n, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        held = {n: leaf for n, leaf in state.items() if n not in asking}

        def apply(params, inputs):
            with torch.device("jax:0"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Explicitly requested dtype int64")  # of arange, PyTorch's default
                return function({**held, **params}, (jax.tree.map(jnp.asarray, inputs),))

        return {n: leaf for n, leaf in state.items() if n in asking}, apply

    return Model(build, loss, batch, name)
