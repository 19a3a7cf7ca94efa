"""The user's own arrays, from an .npz file: ``inputs`` and ``targets`` or ``labels``, one sample per row.

    inputs     (P, D), integers or reals, as they are; or images (P, H, W) or (P, H, W, channels), see ``finite.data.images``
    targets    (P, C), or reals (P,): numbers to be learned, as they are
               integers (P,) or (P, 1): labels of classes, 0 … C − 1 or 1 … C (or −1 and 1), which become targets (P, C)
    labels     such integers under their own name
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from finite.data.images import class_targets, network_inputs, numbered, pixels_of
from finite.data.synthetic import Data, DataError, drawn, read_arrays


def load_npz(
    path: str | Path, loss: str = "mse", samples: int | None = None, seed: int = 0
) -> tuple[*Data, tuple[int, int, int] | None]:
    """Inputs (P, D), targets (P, C), and of images their (H, W, channels).

    ``samples`` of them are drawn by ``finite.data.drawn``; without, all come as they are, but those with labels, which often
    lie class by class, in random order.
    Raises DataError, a ValueError, for whatever is wrong with the file; ValueError for more samples than it has.
    """
    arrays = _read(path, "inputs")
    x, shape = _inputs(path, arrays)
    labels = _labels(arrays["targets"])
    y = _matrix(path, "targets", arrays["targets"]) if labels is None else _classes(path, labels, loss)
    if len(x) != len(y):
        raise DataError(f"{path}: {len(x)} inputs but {len(y)} targets, wanted one target row per input row")
    if samples is None and labels is None:
        return x, y, shape
    rows = drawn(len(x), len(x) if samples is None else samples, seed, f"samples in {path}")
    return x[rows], y[rows], shape


def holds_classes(path: str | Path) -> bool:
    """Whether the targets of an .npz file are labels, or a probability vector for each sample.  Raises DataError."""
    targets = _read(path)["targets"]
    if _labels(targets) is not None:
        return True
    y = _matrix(path, "targets", targets)
    return bool(y.shape[1] > 1 and y.min() >= 0 and np.allclose(y.sum(axis=1), 1, atol=1e-6))


def _read(path, *names):
    """These arrays and "targets", which may be called labels."""
    try:
        labels = read_arrays(path, ("labels",))["labels"]
    except DataError:  # and whatever else is wrong is told of inputs and targets
        return read_arrays(path, (*names, "targets"))
    arrays = read_arrays(path, names, ("targets",))
    if "targets" in arrays:
        raise DataError(f"{path}: it has targets and labels, wanted one of them")
    if _labels(labels) is None:
        raise DataError(f"{path}: labels {_told(labels)}, wanted a column of integers{_numbered(labels)}")
    return arrays | {"targets": labels}


def _told(values):
    return f"of shape {values.shape} hold {values.dtype}" if isinstance(values, np.ndarray) else "hold no numbers"


def _numbered(values):
    """What to do with the names of classes."""
    text = isinstance(values, np.ndarray) and values.dtype.kind in "US"
    return ": number the classes, np.unique(…, return_inverse=True)[1]" if text else ""


def _inputs(path, arrays):
    if getattr(arrays["inputs"], "ndim", 2) not in (3, 4):
        return _matrix(path, "inputs", arrays["inputs"]), None
    pixels = pixels_of(path, arrays, "inputs")
    if not len(pixels):
        raise DataError(f"{path}: inputs of shape {pixels.shape}, wanted at least one image")
    return network_inputs(pixels), pixels.shape[1:]


def _labels(targets: Any) -> Shaped[np.ndarray, " P"] | None:
    """None where they are no labels."""
    column = getattr(targets, "ndim", 0) == 1 or getattr(targets, "shape", ())[1:] == (1,)
    return targets.reshape(-1) if column and targets.size and targets.dtype.kind in "iub" else None


def _classes(path, labels, loss):
    try:
        numbers, classes = numbered(labels)
        if len(classes) < 2:
            raise ValueError(f"all labels are {classes[0]}: wanted at least two classes to tell apart")
        return class_targets(numbers, len(classes), loss)
    except ValueError as wrong:
        raise DataError(f"{path}: targets are integers, {wrong}; numbers to be learned are reals") from None


def _matrix(path, name, values) -> Float[np.ndarray, "P n"]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        held = getattr(values, "dtype", "no numbers")
        raise DataError(f"{path}: {name} hold {held}, wanted integers or reals{_numbered(values)}")
    if name == "targets" and values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{path}: {name} of shape {values.shape}, wanted a matrix with one row per sample")
    with np.errstate(over="ignore"):  # a long double beyond the range of float64: not finite, and refused as such
        values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {name} hold {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    return values
