"""Data by name, a row each, and by the name of a file: the inputs, the targets, and of images their shape."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from finite.data.arrays import load_npz
from finite.data.cifar10 import cifar10
from finite.data.images import Images, holds_images, read_folder, read_npz, scaled
from finite.data.patches import patches10
from finite.data.synthetic import digits, gaussian
from finite.data.text import Text, plays, read_text, windows
from limits.losses import LOSSES
from limits.rows import Table

Shaped = tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P C"], tuple[int, int, int] | None]  # None: not said


@dataclass(frozen=True)
class Wanted:
    """What is wanted of data; None: as usual.  Targets of classes are one-hot with cross-entropy, and centred with MSE."""

    samples: int | None = None
    inputs: int | None = None
    outputs: int | None = None
    loss: str = "mse"
    seed: int = 0
    image_size: int | None = None

    @property
    def classes(self) -> int:
        """Outputs of data that have as many as one likes."""
        return _given(self.outputs, 10 if LOSSES[self.loss].of_classes else 1)


@dataclass(frozen=True)
class Named:
    """A row.

    load          what is wanted → inputs, targets, images' shape; ValueError, in one line, for what the data does not have
    description   for the help of the commands
    images        whether it says their shape
    """

    name: str
    load: Callable[[Wanted], Shaped]
    description: str = ""
    images: bool = False


def _gaussian(wanted):
    return *gaussian(wanted.seed, _given(wanted.samples, 40), _given(wanted.inputs, 10), wanted.classes), None


def _digits(wanted):
    if wanted.inputs not in (None, 64):
        raise ValueError(f"{wanted.inputs} inputs: the digits have 64")
    return *digits(_given(wanted.samples, 256), wanted.classes, wanted.seed), None


def _patches10(wanted):
    images = patches10(_given(wanted.samples, 256), 0, wanted.seed)  # drawn already
    return *images.train(wanted.loss), images.train_images.shape[1:]


def _plays(wanted):
    return _next_characters(plays(), wanted)


DATA = Table("data", (
    Named("gaussian", _gaussian, "a linear teacher"),
    Named("digits", _digits, "1797 real 8×8 images"),
    Named("patches10", _patches10, "32×32 colour crops of ten photographs", images=True),
    Named("plays", _plays, "four of Shakespeare's, for gpt"),
))  # fmt: skip


def load(data: str, wanted: Wanted) -> Shaped:
    """Of that name, or in that file or folder.  Raises ValueError, in one line, for what is neither."""
    inputs, targets, shape = _loaded(data, wanted)
    if wanted.image_size is None or _is_folder_of_pictures(data):  # whose pictures are scaled as they are read
        return inputs, targets, shape
    if shape is None:
        raise ValueError(f"image size {wanted.image_size}: {data} has no images, or does not say their shape")
    inputs, shape = scaled(inputs, shape, wanted.image_size)
    return inputs, targets, shape


def _loaded(data, wanted) -> Shaped:
    if data in DATA:
        return _checked(data, *DATA[data].load(wanted))
    if suffix(data) == ".txt":
        return _next_characters(read_text(data), wanted)
    if suffix(data) == ".npz" and not holds_images(data):
        return load_npz(data, wanted.loss, wanted.samples, wanted.seed)
    images = _images(data, wanted)
    count = _given(wanted.samples, len(images.train_images))  # in random order: the first ones have the curvature
    return *images.train(wanted.loss, count, wanted.seed), images.train_images.shape[1:]


def _checked(name, inputs, targets, shape) -> Shaped:
    if not (inputs.ndim == targets.ndim == 2 and len(inputs) == len(targets)):
        raise ValueError(f"data {name}: inputs {inputs.shape} and targets {targets.shape}: wanted (P, D) and (P, C)")
    return inputs, targets, shape


def suffix(data: str) -> str:
    """How the name ends, in small letters."""
    return Path(data).suffix.lower()


def may_be_images(data: str) -> bool:
    """Of an .npz file its arrays tell."""
    return DATA[data].images if data in DATA else suffix(data) != ".txt"


def _is_folder_of_pictures(data):
    return data not in DATA and Path(data).is_dir() and not _holds_cifar10(Path(data))


def _next_characters(text: Text, wanted) -> Shaped:
    """Stretches of the text as tokens, and the character behind each, one-hot and centred."""
    length = _given(wanted.inputs, min(16, len(text.train_tokens) - 1))
    samples = _given(wanted.samples, min(256, max(len(text.train_tokens) - length, 1)))
    tokens, following = windows(text.train_tokens, length, samples, wanted.seed)
    C = len(text.vocabulary)
    return tokens.astype(float), np.eye(C)[following[:, -1]] - 1 / C, None


def _images(data, wanted) -> Images:
    path = Path(data)
    if suffix(data) == ".npz":
        return read_npz(path)
    if suffix(data) == ".gz" or _holds_cifar10(path):
        return cifar10(path)
    if data and path.is_dir():
        return read_folder(path, wanted.image_size)
    raise ValueError(f"unknown data {data!r}; known: {', '.join(DATA)}, a file that ends in .npz or .txt, a folder of images, "
                     "or CIFAR-10's binary version")  # fmt: skip


def _holds_cifar10(path):
    return any((path / part / "data_batch_1.bin").is_file() for part in ("", "cifar-10-batches-bin"))


def _given(value, usual):
    return usual if value is None else value
