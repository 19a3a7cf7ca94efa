"""The command: what it reads from files of the user's."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from comparisons.audit.options import PROGRAM, Options
from comparisons.audit.study import audit
from finite.networks.own import Model
from limits.command.arguments import stop


def answer(options: Options) -> None:
    """Print the report.  Ends the command: status 1 where the audit does not pass, 2 after one line where it cannot be made."""
    try:
        found = audit(model(options.model, options.loss, options.batch), optimizer=optimizer(options.optimizer),
                      param=options.param, widths=options.widths, seeds=options.seeds, steps=options.steps)  # fmt: skip
        print(found, flush=True)
        if options.out:
            found.save(options.out)
    except (ValueError, ImportError, OSError, MemoryError) as mistake:
        stop(PROGRAM, str(mistake))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", flush=True)
        raise SystemExit(130) from None
    raise SystemExit(0 if found.ok else 1)


def model(text: str, loss: str = "", batch: str = "") -> Model:
    """FILE.py:NAME, a ``Model`` or its ``build``.  Raises ValueError, in one line."""
    if not text:
        raise ValueError("which network?  FILE.py:NAME of its build(width, key), or of a Model")
    named = attribute(text)
    if isinstance(named, Model):
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

    def at(width):
        try:
            return eval(text, {"optax": optax, "math": math, "np": np, "width": width})  # the user's own words
        except Exception as fault:
            raise ValueError(f"--optimizer {text!r}: {fault}") from None

    at(1)
    return at


def attribute(text: str) -> Any:
    """FILE.py:NAME, imported from that file.  Raises ValueError where there is none."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ValueError(f"{text}: wanted FILE.py:NAME")
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{file} has no {name}")
    return getattr(module, name)


def _batch(text: str) -> tuple[Any, Any]:
    if ".py:" in text:
        found = attribute(text)
        return found() if callable(found) else found
    if not text.endswith(".npz"):
        raise ValueError(f"{text}: wanted FILE.npz or FILE.py:NAME")
    with np.load(text) as arrays:
        if missing := {"inputs", "targets"} - set(arrays):
            raise ValueError(f"{text} has no array {sorted(missing)[0]}: wanted inputs and targets")
        return arrays["inputs"], arrays["targets"]
