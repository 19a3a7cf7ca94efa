"""What a user's files say: a network of theirs, its loss, its data, its optimiser.  FILE.py:NAME is an attribute of a file."""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from finite.networks.own import Model, theirs


def model(text: str, loss: str = "", batch: str = "") -> Model:
    """FILE.py:NAME, a ``Model`` or its ``build``.  Raises ValueError, in one line."""
    if not text:
        raise ValueError("which network?  FILE.py:NAME of its build(width, key), or of a Model")
    named = attribute(text)
    if isinstance(named, Model):
        if batch:
            raise ValueError(f"{text} is a Model, which has its own batch: leave out --batch {batch}")
        return named
    if not callable(named):
        raise ValueError(f"{text} is {type(named).__name__}: wanted a function build(width, key), or a Model")
    if not loss or not batch:
        raise ValueError(f"{text} has no {'batch' if loss else 'loss'}: give --{'batch' if loss else 'loss'}, or a Model")
    return Model(named, attribute(loss) if ":" in loss else loss, _batch(batch), text.rpartition(":")[2])


def optimizer(text: str) -> Any:
    """What ``--optimizer`` says: an attribute of a file, or a function of the width.  Raises ValueError, in one line."""
    if not text:
        raise ValueError('--optimizer is missing: "optax.adamw(1e-3)", say')
    if ".py:" in text:
        return attribute(text)
    import optax

    try:
        code = compile(text, "--optimizer", "eval")
    except SyntaxError as fault:
        raise ValueError(f"--optimizer {text!r}: {fault.msg}") from None

    def at(width):
        try:
            return eval(code, {"optax": optax, "math": math, "np": np, "width": width})  # the user's own words
        except Exception as fault:
            raise ValueError(f"--optimizer {text!r}: {fault}") from None

    return at


def attribute(text: str) -> Any:
    """FILE.py:NAME, imported from that file, whose neighbours it may import.  Raises ValueError where there is none."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ValueError(f"{text}: wanted FILE.py:NAME")
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    spec = importlib.util.spec_from_file_location(f"of {Path(file).resolve()}", file)  # no module that anybody imports
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # a dataclass looks for its own there
    if (folder := str(Path(file).resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as fault:  # whatever the user's file does
        raise ValueError(f"{file} cannot be imported: {type(fault).__name__}: {' '.join(str(fault).split())}") from None
    if not hasattr(module, name):
        raise ValueError(f"{file} has no {name}")
    return getattr(module, name)


def _batch(text: str) -> tuple[Any, Any]:
    if ".py:" in text:
        batch = attribute(text)
        with theirs(f"{text}()"):
            return batch() if callable(batch) else batch
    if not text.endswith(".npz"):
        raise ValueError(f"{text}: wanted FILE.npz or FILE.py:NAME")
    try:
        with np.load(text) as arrays:  # one array alone is no context: TypeError
            if missing := {"inputs", "targets"} - set(arrays):
                raise ValueError(f"{text} has no array {sorted(missing)[0]}: wanted inputs and targets")
            return arrays["inputs"], arrays["targets"]
    except (BadZipFile, EOFError, TypeError):
        raise ValueError(f"{text} is no file of arrays") from None


def transformation(optimizer: Any, width: int, params: Any) -> Any:
    """The optax transformation at that width.  Raises ValueError for what is none."""
    _refuse_uncalled(optimizer)
    if not hasattr(optimizer, "update") and callable(optimizer):
        arguments = (width,) if _takes_one(optimizer) else (width, params)
        with theirs(f"optimizer at width {width}"):
            optimizer = optimizer(*arguments)
    _refuse_uncalled(optimizer)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer is {type(optimizer).__name__}: wanted an optax transformation, or a function of the width")
    return optimizer


def _refuse_uncalled(optimizer: Any) -> None:
    """Raises ValueError for ``optax.adam`` in place of ``optax.adam(1e-3)``: the width would be taken for its learning rate."""
    maker = getattr(optimizer, "func", optimizer)  # of a partial
    if hasattr(optimizer, "update") or not inspect.isroutine(maker):
        return
    try:
        first = next(iter(inspect.signature(optimizer).parameters), "")
    except ValueError:  # of a builtin
        first = ""
    if first == "learning_rate" or maker.__module__.partition(".")[0] == "optax":
        name = f"optax.{maker.__name__}" if maker.__module__.startswith("optax") else maker.__name__
        raise ValueError(f"optimizer is the function {name} itself: wanted what it returns, {name}(1e-3), say")


def _takes_one(function: Callable) -> bool:
    """Whether one argument is all that it must be given."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def check(objective: Any, optimizer: Any, params: Any, batch: Any, width: int) -> None:
    """Raises ValueError, in one line, for a network that cannot be trained on this batch with this optimiser; only traced."""
    with theirs(f"width {width}"):
        gradient = jax.eval_shape(jax.grad(objective), params, batch)
    with theirs(f"width {width}, optimizer"):
        jax.eval_shape(optimizer.update, gradient, jax.eval_shape(optimizer.init, params), params)
