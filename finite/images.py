"""Images with labels, held as bytes, and what a network is given of them; .npz files and folders of pictures.

Pixels x are 0 … 255, images (n, H, W, channels), with 1 channel (grey) or 3 (red, green, blue).  A network is given

    inputs    (x/255 − 1/2) / (1/2), in [−1, 1], float64, rows of D = H·W·channels numbers in this order
    targets   for cross-entropy one-hot, e_y; for MSE centred, e_y − 1/C, so that every row sums to zero

``finite.patches`` has images that come with this package, ``finite.cifar10`` reads CIFAR-10.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8
from tqdm import tqdm

from finite.data import Data, DataError, read_arrays, reason
from limits import losses

PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images of one shape, and labels from 0 to C − 1; there need not be test images.

    Raises ValueError, in one line, for anything that does not fit together.
    """

    train_images: UInt8[np.ndarray, "P H W channels"]
    train_labels: Integer[np.ndarray, " P_labels"]
    test_images: UInt8[np.ndarray, "Q H_test W_test channels_test"]
    test_labels: Integer[np.ndarray, " Q_labels"]
    classes: tuple[str, ...]

    def __post_init__(self):
        if not self.train_images.size:
            raise ValueError("no training images")
        shape, test_shape = self.train_images.shape[1:], self.test_images.shape[1:]
        if shape != test_shape:
            raise ValueError(f"test images of shape {test_shape}, wanted {shape} as the training images have")
        _check_labels("training", self.train_images, self.train_labels, len(self.classes))
        _check_labels("test", self.test_images, self.test_labels, len(self.classes))

    def train(self, loss: str = "mse", samples: int | None = None, seed: int = 0) -> Data:
        """Inputs (P, D) and targets (P, C) of all training images in their order, or of ``samples`` different ones.

        Those are drawn at random; with the same seed, fewer are the first of more.
        Raises ValueError for an unknown loss and for more samples than there are, or fewer than one.
        """
        return self._data("training", self.train_images, self.train_labels, loss, samples, seed)

    def test(self, loss: str = "mse", samples: int | None = None, seed: int = 0) -> Data:
        """The same of the test images."""
        return self._data("test", self.test_images, self.test_labels, loss, samples, seed)

    def _data(self, half, images, labels, loss, samples, seed):
        if not len(images):
            raise ValueError(f"there are no {half} images")
        if samples is not None and not 1 <= samples <= len(images):
            raise ValueError(f"{samples} samples: there are from 1 to {len(images)} {half} images")
        targets = class_targets(labels, len(self.classes), loss)
        if samples is None:
            return network_inputs(images), targets
        drawn = np.random.default_rng(seed).permutation(len(images))[:samples]
        return network_inputs(images[drawn]), targets[drawn]


def network_inputs(images: UInt8[np.ndarray, "n H W channels"]) -> Float[np.ndarray, "n D"]:
    """(x/255 − 1/2) / (1/2) = x/127.5 − 1, one row per image."""
    x = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float64)
    x /= 127.5  # in place: x is eight times as large as the images
    x -= 1.0
    return x


def class_targets(labels: Integer[np.ndarray, " n"], num_classes: int, loss: str) -> Float[np.ndarray, "n C"]:
    """One-hot for cross-entropy, centred one-hot for MSE.  Raises ValueError for an unknown loss."""
    targets = np.eye(num_classes)[labels]
    losses.check(loss, targets)
    return targets - 1.0 / num_classes if loss == "mse" else targets


def holds_images(path: str | Path) -> bool:
    """Whether an .npz file has the arrays of ``read_npz``.  Raises DataError where it is none."""
    return "train_images" in read_arrays(path, (), ("train_images",))


def read_npz(path: str | Path) -> Images:
    """Arrays train_images (n, H, W) or (n, H, W, channels), bytes, and train_labels (n,) or (n, 1), of an .npz file.

    Where it has them, test_images, test_labels, and classes: C texts; else these are 0, 1, … to the largest training label.
    Raises DataError, a ValueError, for whatever is wrong with the file.
    """
    found = read_arrays(path, ("train_images", "train_labels"), ("test_images", "test_labels", "classes"))
    if ("test_images" in found) != ("test_labels" in found):
        raise DataError(f"{path}: test images and test labels come together, or neither")
    pixels, labels = _pixels_of(path, found, "train_images"), _labels_of(path, found, "train_labels")
    test_pixels, test_labels = pixels[:0], labels[:0]
    if "test_images" in found:
        test_pixels, test_labels = _pixels_of(path, found, "test_images"), _labels_of(path, found, "test_labels")
    try:
        return Images(pixels, labels, test_pixels, test_labels, _classes_of(path, found, labels))
    except ValueError as wrong:
        raise DataError(f"{path}: {wrong}") from None


def read_folder(path: str | Path, size: int | None = None) -> Images:
    """A folder with one subfolder of PNG or JPEG pictures per class; or folders ``train`` and ``test`` that are such folders.

    Classes go in the order of their names; pictures may lie deeper within their class, hidden ones do not count.
    All are shown in colour and must have one shape, unless ``size`` is given: then each is cut to its central square and
    scaled to size × size.  Without ``train`` and ``test``, all are training images.
    Raises ValueError for a size below 1; DataError for a picture that cannot be read, and where there is none.
    """
    if size is not None and size < 1:
        raise ValueError(f"size {size} must be at least 1")
    root = Path(path)
    halves = [root / "train", root / "test"]
    if not all(half.is_dir() for half in halves):
        halves = [root]
    classes = _subfolders(halves[0])
    if _subfolders(halves[-1]) != classes:
        raise DataError(f"{halves[-1]}: its subfolders are not those of {halves[0]}, one per class")
    files = [[(file, label) for label, name in enumerate(classes) for file in _pictures(half / name)] for half in halves]
    pixels = _decoded([file for half in files for file, _ in half], size, root.name)
    labels = np.array([label for half in files for _, label in half])
    cut = len(files[0])
    return Images(pixels[:cut], labels[:cut], pixels[cut:], labels[cut:], tuple(classes))


def _check_labels(half, images, labels, num_classes):
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} {half} images but {len(labels)} labels, wanted one per image")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"a {half} label is {wrong[0]}, wanted 0 to {num_classes - 1}: there are {num_classes} classes")


def _pixels_of(path, found, name):
    pixels = found[name]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise DataError(f"{path}: {name} hold {getattr(pixels, 'dtype', 'no numbers')}, wanted uint8, from 0 to 255")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise DataError(f"{path}: {name} of shape {found[name].shape}, wanted (n, H, W), (n, H, W, 1) or (n, H, W, 3)")
    return pixels


def _labels_of(path, found, name):
    labels = found[name]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} hold {getattr(labels, 'dtype', 'no numbers')}, wanted integers")
    if labels.ndim not in (1, 2) or labels.size != len(labels):
        raise DataError(f"{path}: {name} of shape {labels.shape}, wanted one label per image")
    return labels.reshape(-1).astype(np.int64)


def _classes_of(path, found, labels):
    names = found.get("classes", None)
    if names is None:
        count = int(labels.max(initial=-1)) + 1
        if count > len(labels):
            raise DataError(f"{path}: a training label is {count - 1}, wanted classes numbered from 0, each with images")
        names = np.arange(count).astype(str)
    if not isinstance(names, np.ndarray) or names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path}: classes hold {getattr(names, 'dtype', 'no texts')}, wanted a list of texts")
    return tuple(names.tolist())


def _subfolders(folder):
    """Their names in order; at least one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: no subfolders, wanted one per class")
    return names


def _pictures(folder):
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and not file.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: no pictures, wanted files that end in {', '.join(PICTURES)}")
    return files


def _decoded(files, size, description) -> UInt8[np.ndarray, "n H W 3"]:
    """The pixels of all pictures, one after the other into one array."""
    pixels = None
    for place, file in enumerate(tqdm(files, desc=description, unit="picture", disable=None, leave=False)):
        picture = _picture(file, size)
        pixels = np.empty((len(files), *picture.shape), np.uint8) if pixels is None else pixels
        if picture.shape != pixels.shape[1:]:
            found, wanted = (f"{width}×{height}" for height, width, _ in (picture.shape, pixels.shape[1:]))
            raise DataError(f"{file}: {found} pixels, {files[0].name} has {wanted}; with a size given, all are scaled to it")
        pixels[place] = picture
    return pixels


def _picture(file, size) -> UInt8[np.ndarray, "H W 3"]:
    from PIL import Image, ImageOps  # comes with matplotlib

    try:
        content = io.BytesIO(file.read_bytes())
        Image.open(content, formats=("PNG", "JPEG")).verify()  # the checksums of a PNG, which decoding passes over
        with Image.open(content) as picture:
            if picture.mode[0] in "IF":  # would be clipped to 255
                raise DataError(f"{file}: more than 8 bits per pixel and channel, wanted 8")
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        return np.asarray(upright if size is None else _central_square(upright).resize((size, size)))
    except DataError:
        raise
    except Exception as fault:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … for a damaged file
        raise DataError(f"{file}: cannot be read as a PNG or JPEG picture: {reason(fault)}") from None


def _central_square(picture):
    side = min(picture.size)
    left, top = ((extent - side) // 2 for extent in picture.size)
    return picture.crop((left, top, left + side, top + side))
