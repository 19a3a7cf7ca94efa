"""What is learned: inputs (P, D) and targets (P, C), made, embedded or from a file; float64, never unpickled."""

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_SHA256 = "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"

Data = tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P C"]]


class DataError(ValueError):
    """Data that cannot be used; the message is one line and names the file."""


def gaussian(seed: int, samples: int, inputs: int, outputs: int = 1) -> Data:
    """A linear teacher on white inputs: X_pd ~ N(0, 1), Y = c X W with W_dk ~ N(0, 1).

    c, close to 1/√D, makes mean(Y²) = 1 over all samples and outputs; nothing is centred, there is no label noise.
    The first rows of X for P samples are X for fewer samples with the same seed.
    Raises ValueError where a size is below 1, MemoryError where they are too large for this machine.
    """
    from limits.machine import require_memory  # with it comes JAX: options are read before

    for name, size in (("samples", samples), ("inputs", inputs), ("outputs", outputs)):
        if size < 1:
            raise ValueError(f"{size} {name}: wanted at least 1")
    require_memory((samples + outputs) * (inputs + outputs), f"{samples} samples of {inputs} inputs and {outputs} outputs need")
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((inputs, outputs))
    x = rng.standard_normal((samples, inputs))
    y = x @ teacher
    return x, y / _root_mean_square(y)


def digits(samples: int, outputs: int = 1, seed: int = 0) -> Data:
    """``samples`` different handwritten digits, 8×8 grey pixels, drawn at random and in random order.

    Inputs (P, 64): each pixel centred over these P images, then one factor for all: mean(X²) = 1.
    Targets: outputs = 1 → +1 for an even digit, −1 for an odd one; outputs = C from 2 to 10 → only the digits
    0 … C−1 are drawn, one-hot, each column centred over these P images.

    Source: E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998),
    https://doi.org/10.24432/C50P49, its test set of 1797 images, as in scikit-learn; licence CC BY 4.0
    (https://creativecommons.org/licenses/by/4.0/); here stored as bytes, otherwise unchanged.

    Raises ValueError for sizes that the images do not offer, DataError where the embedded file is damaged.
    """
    if not 1 <= outputs <= 10:
        raise ValueError(f"{outputs} outputs: the digits have from 1 (even or odd) to 10 (one per digit)")
    images, labels = _embedded_digits()
    kept = np.flatnonzero(labels < outputs) if outputs > 1 else np.arange(len(labels))
    if not 2 <= samples <= len(kept):
        raise ValueError(f"{samples} samples: with {outputs} outputs the digits have from 2 to {len(kept)}")
    chosen = np.random.default_rng(seed).permutation(kept)[:samples]
    x = _centred(images[chosen].reshape(samples, -1).astype(np.float64))
    return x / _root_mean_square(x), _digit_targets(labels[chosen], outputs)


def drawn(count: int, samples: int, seed: int, noun: str = "samples") -> Int[np.ndarray, " samples"]:
    """Which of ``count`` are taken: ``samples`` different ones at random, as they come, in random order.

    With the same seed, fewer are the first of more.  Raises ValueError for more than there are, or fewer than one.
    """
    if not 1 <= samples <= count:
        raise ValueError(f"{samples} samples: there are from 1 to {count} {noun}")
    return np.random.default_rng(seed).permutation(count)[:samples]


def embedded(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that comes with this package.

    Raises DataError where it is absent, or another than the one with that SHA-256.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: {fault.strerror}; install this package anew") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: not the file that was published; install this package anew")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def read_arrays(path: str | Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The named members of an .npz file, those of ``optional`` where it has them; a member without numbers as its bytes.

    Raises DataError for anything but an intact .npz file with all of ``names``, and for pickled objects.
    """
    try:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                wanted = f" with {' and '.join(names)}" if names else ""
                raise DataError(f"{path}: one array without a name, wanted an .npz file of several{wanted}")
            absent = [name for name in names if name not in loaded]
            if absent:
                raise DataError(f"{path}: no array {' or '.join(absent)}; it has {', '.join(loaded) or 'none'}")
            return {name: loaded[name] for name in (*names, *optional) if name in loaded}
    except DataError:
        raise
    except Exception as fault:  # zipfile, zlib and numpy raise some ten different things for a file that is not theirs
        why = "holds pickled objects, which are never loaded" if "pickle" in str(fault) else reason(fault)
        raise DataError(f"{path}: cannot be read as an .npz file: {why}") from None


def reason(fault: Exception) -> str:
    """What an exception says, in one line and without the name of the file."""
    return getattr(fault, "strerror", None) or " ".join(str(fault).split()) or type(fault).__name__


def _root_mean_square(values):
    return np.sqrt(np.mean(values**2))


def _centred(values):
    return values - values.mean(axis=0)


def _digit_targets(labels, outputs):
    if outputs == 1:
        return np.where(labels % 2 == 0, 1.0, -1.0)[:, None]
    return _centred(np.eye(outputs)[labels])


@cache
def _embedded_digits() -> tuple[UInt8[np.ndarray, "1797 8 8"], UInt8[np.ndarray, " 1797"]]:
    """Images of grey levels 0 … 16, and the digits that they show."""
    arrays = embedded(DIGITS, DIGITS_SHA256)
    return arrays["images"], arrays["labels"]
