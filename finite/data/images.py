"""Images with labels, and what a network is given of them; .npz files and folders of pictures.

Pixels x are bytes, 0 … 255, or reals in [0, 1], which stand for x/255; images (n, H, W, channels), with 1 channel (grey) or
3 (red, green, blue).  A network is given

    inputs    (x/255 − 1/2) / (1/2), in [−1, 1], float64, rows of D = H·W·channels numbers in this order
    targets   for cross-entropy one-hot, e_y; for MSE centred, e_y − 1/C, so that every row sums to zero

``finite.data.patches`` has images that come with this package, ``finite.data.cifar10`` reads CIFAR-10.
"""

import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8
from tqdm import tqdm

from finite.data.synthetic import Data, DataError, drawn, read_arrays, reason
from limits import losses

LOG = logging.getLogger(__name__)
FORMATS = {  # that hold pixels and nothing that is run, by the ends of their files' names
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".avif": "AVIF",
}  # fmt: skip
TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
MANY = 2**27  # numbers, a GiB of them
BACKGROUND = (255, 255, 255)  # white shows behind what is transparent, as on a page


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images of one shape, and labels from 0 to C − 1; there need not be test images.

    Raises ValueError, in one line, for anything that does not fit together.
    """

    train_images: UInt8[np.ndarray, "P H W channels"] | Float[np.ndarray, "P H W channels"]
    train_labels: Integer[np.ndarray, " P_labels"]
    test_images: UInt8[np.ndarray, "Q H_test W_test channels_test"] | Float[np.ndarray, "Q H_test W_test channels_test"]
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

        Those are drawn by ``finite.data.drawn``.
        Raises ValueError for an unknown loss, for more samples than there are, or fewer than one, and where all are of one
        class.
        """
        return self._data("training", self.train_images, self.train_labels, loss, samples, seed)

    def test(self, loss: str = "mse", samples: int | None = None, seed: int = 0) -> Data:
        """The same of the test images."""
        return self._data("test", self.test_images, self.test_labels, loss, samples, seed)

    def _data(self, half, images, labels, loss, samples, seed):
        if not len(images):
            raise ValueError(f"there are no {half} images")
        if len(self.classes) < 2:
            raise ValueError(f"all images are of one class, {self.classes[0]}: wanted at least two to tell apart")
        targets = class_targets(labels, len(self.classes), loss)
        if samples is None:
            return network_inputs(images), targets
        chosen = drawn(len(images), samples, seed, f"{half} images")
        return network_inputs(images[chosen]), targets[chosen]


def network_inputs(
    images: UInt8[np.ndarray, "n H W channels"] | Float[np.ndarray, "n H W channels"]
) -> Float[np.ndarray, "n D"]:
    """(x/255 − 1/2) / (1/2) = x/127.5 − 1 of bytes, 2x − 1 of reals; one row per image."""
    x = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float64)
    x /= 127.5 if images.dtype == np.uint8 else 0.5  # in place: x is eight times as large as bytes
    x -= 1.0
    return x


def scaled(
    inputs: Float[np.ndarray, "P D"], shape: tuple[int, int, int], size: int
) -> tuple[Float[np.ndarray, "P D_scaled"], tuple[int, int, int]]:
    """Central squares of images of this shape, with size × size pixels, each the mean of what it covers; and their shape.

    Raises ValueError for a size below 1, and one above the square's side.
    """
    side, channels = min(shape[:2]), shape[2]
    if not 1 <= size <= side:
        raise ValueError(f"image size {size}: wanted 1 to {side}, the images are {shape[0]}×{shape[1]}")
    top, left = ((extent - side) // 2 for extent in shape[:2])
    squares = inputs.reshape(-1, *shape)[:, top : top + side, left : left + side]
    edges = np.arange(size + 1) * side / size
    within = np.clip(np.minimum.outer(np.arange(1, side + 1), edges[1:]) - np.maximum.outer(np.arange(side), edges[:-1]), 0, 1)
    means = within * size / side  # (pixels, new ones): the part of each new one that lies in a pixel
    return np.einsum("phwc,hi,wj->pijc", squares, means, means, optimize=True).reshape(len(inputs), -1), (size, size, channels)


def class_targets(labels: Integer[np.ndarray, " n"], num_classes: int, loss: str) -> Float[np.ndarray, "n C"]:
    """One-hot for cross-entropy, centred one-hot for MSE.  Raises ValueError for an unknown loss, MemoryError for too many."""
    if len(labels) * num_classes > MANY:
        from limits.machine import require_memory  # with it comes JAX: options are read before

        require_memory(len(labels) * num_classes, f"{len(labels)} labels of {num_classes} classes need")
    targets = np.eye(num_classes)[labels]
    losses.check(loss, targets)
    return targets if losses.LOSSES[loss].of_classes else targets - 1.0 / num_classes


def numbered(labels: Integer[np.ndarray, " n"] | Bool[np.ndarray, " n"]) -> tuple[Integer[np.ndarray, " n"], tuple[str, ...]]:
    """Labels as numbers from 0 to C − 1, and the C different labels, in order.

    They are 0, …, C − 1, or 1, …, C, or −1 and 1; every class has a sample.  Raises ValueError for other ones.
    """
    distinct, numbers = np.unique(labels, return_inverse=True)
    first, last = (int(label) for label in distinct[[0, -1]])
    if not (first in (0, 1) and last - first == len(distinct) - 1) and distinct.tolist() != [-1, 1]:
        shown = ", ".join(str(label) for label in distinct[:4]) + (f", … {last}" if len(distinct) > 4 else "")
        raise ValueError(f"labels {shown}: wanted classes numbered from 0 or from 1, none left out")
    return numbers.reshape(-1), tuple(str(int(label)) for label in distinct)


def holds_images(path: str | Path) -> bool:
    """Whether an .npz file has the arrays of ``read_npz``.  Raises DataError where it is none."""
    return "train_images" in read_arrays(path, (), ("train_images",))


def read_npz(path: str | Path) -> Images:
    """Arrays train_images, as ``pixels_of`` reads them, and train_labels (n,) or (n, 1), integers, of an .npz file.

    Where it has them, test_images, test_labels, and classes: C texts; else these are as ``numbered`` finds them.
    Raises DataError, a ValueError, for whatever is wrong with the file.
    """
    arrays = read_arrays(path, ("train_images", "train_labels"), ("test_images", "test_labels", "classes"))
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise DataError(f"{path}: test images and test labels come together, or neither")
    pixels, labels = pixels_of(path, arrays, "train_images"), _labels_of(path, arrays, "train_labels")
    test_pixels, test_labels = pixels[:0], labels[:0]
    if "test_images" in arrays:
        test_pixels, test_labels = pixels_of(path, arrays, "test_images"), _labels_of(path, arrays, "test_labels")
    try:
        classes, values = _classes_of(arrays, labels)
        labels, test_labels = _among(values, "training", labels), _among(values, "test", test_labels)
        return Images(pixels, labels, test_pixels, test_labels, classes)
    except ValueError as wrong:
        raise DataError(f"{path}: {wrong}") from None


def pixels_of(
    path: str | Path, arrays: dict, name: str
) -> UInt8[np.ndarray, "n H W channels"] | Float[np.ndarray, "n H W channels"]:
    """Images (n, H, W) or (n, H, W, channels) of an .npz file: integers from 0 to 255 as bytes, reals in [0, 1].

    Raises DataError for anything else.
    """
    values = arrays[name]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: {name} hold {getattr(values, 'dtype', 'no numbers')}, wanted integers or reals")
    pixels = values[..., None] if values.ndim == 3 else values
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape[1:]:
        raise DataError(f"{path}: {name} of shape {values.shape}, wanted (n, H, W), (n, H, W, 1) or (n, H, W, 3)")
    whole, limit = pixels.dtype.kind != "f", 1 if pixels.dtype.kind == "f" else 255
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= limit):
        extent = f"{pixels.min():g} … {pixels.max():g}"
        raise DataError(f"{path}: {name} go over {extent}; wanted integers from 0 to 255, or reals from 0 to 1")
    return pixels.astype(np.uint8 if whole else np.float64)


def read_folder(path: str | Path, size: int | None = None) -> Images:
    """A folder with one subfolder of pictures per class; or a folder ``train`` that is such a folder, and others beside it.

    Those are ``test``, else ``val`` (valid, validation), with the same classes; without either all are training images, and
    one that has no classes is passed over.  Classes go in the order of their names; pictures, whose formats are ``FORMATS``,
    may lie deeper within their class; what else is not hidden is named in a line of the log.
    All are shown in colour, on white, with 8 bits, and must have one shape, unless ``size`` is given: then each is cut to its
    central square and scaled to size × size.
    Raises ValueError for a size below 1; DataError for a picture that cannot be read, where there is none, and where splits
    and classes lie side by side.  MemoryError where ``size`` makes them too large.
    """
    if size is not None and size < 1:
        raise ValueError(f"image size {size} must be at least 1")
    root = Path(path)
    halves = _halves(root)
    classes = _subfolders(halves[0])
    if _subfolders(halves[-1]) != classes:
        raise DataError(f"{halves[-1]}: its subfolders are not those of {halves[0]}, one per class")
    for folder in dict.fromkeys([root, *halves]):
        _name_skipped(folder, [entry for entry in folder.iterdir() if entry.is_file()])
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


def _labels_of(path, arrays, name):
    labels = arrays[name]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} hold {getattr(labels, 'dtype', 'no numbers')}, wanted integers")
    if labels.ndim not in (1, 2) or labels.size != len(labels):
        raise DataError(f"{path}: {name} of shape {labels.shape}, wanted one label per image")
    return labels.reshape(-1).astype(np.int64)


def _classes_of(arrays, labels):
    """(their names, their labels in order)"""
    names = arrays.get("classes", None)
    if names is None:
        names = numbered(labels)[1]
        return names, np.array(names, np.int64)
    if not isinstance(names, np.ndarray) or names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError(f"classes hold {getattr(names, 'dtype', 'no texts')}, wanted a list of texts")
    from_one = labels.min(initial=1) == 1 and labels.max(initial=0) == len(names)
    return tuple(names.tolist()), np.arange(len(names)) + from_one


def _among(values, half, labels):
    """The places of labels in the ascending values of the classes."""
    if (wrong := labels[~np.isin(labels, values)]).size:
        wanted = f"{values[0]} {'or' if len(values) == 2 else 'to'} {values[-1]}"
        raise ValueError(f"a {half} label is {wrong[0]}, wanted {wanted}: there are {len(values)} classes")
    return np.searchsorted(values, labels)


def _halves(root):
    """The folders of the classes: of training images, and where there are any, of test images."""
    names = _subfolders(root)
    splits = {part: [name for name in names if name.lower() in part] for part in (TRAIN, VALIDATION, TEST)}
    known = [name for of_part in splits.values() for name in of_part]
    others = [name for name in names if name not in known]
    if not known:
        _check_classes(root, names)
        return [root]
    if others:
        raise DataError(f"{root}: {_listed(known)} beside {_listed(others)}: wanted either splits (train, val, test), each "
                        "with a subfolder per class, or a subfolder per class")  # fmt: skip
    if len(splits[TRAIN]) != 1 or any(len(of_part) > 1 for of_part in splits.values()):
        raise DataError(f"{root}: {_listed(known)}: wanted one folder train, and at most one val and one test")
    if not _subfolder_names(root / splits[TRAIN][0]):
        raise DataError(f"{root / splits[TRAIN][0]}: no subfolders, wanted one per class")
    beside = [root / name for name in (*splits[TEST], *splits[VALIDATION])]
    labelled = [folder for folder in beside if _subfolder_names(folder)]
    _name_skipped(root, [folder for folder in beside if folder not in labelled])
    for folder in labelled[1:]:
        LOG.info("%s: passed over %s, for there is %s", root, folder.name, labelled[0].name)
    return [root / splits[TRAIN][0], *labelled[:1]]


def _check_classes(root, names):
    """None of them a split: folders that hold nothing but the same folders, several of them, are."""
    inside = {tuple(_subfolder_names(root / name)) for name in names}
    bare = not any(file.suffix.lower() in FORMATS for name in names for file in (root / name).iterdir())
    if bare and len(inside) == 1 and len(shared := inside.pop()) > 1:
        raise DataError(f"{root}: {_listed(names)} hold no pictures, but folders {_listed(shared)} each: wanted splits (train, "
                        "val, test), each with a subfolder per class, or a subfolder per class")  # fmt: skip


def _subfolders(folder):
    """Their names in order; at least one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = _subfolder_names(folder)
    if not names:
        raise DataError(f"{folder}: no subfolders, wanted one per class")
    return names


def _subfolder_names(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    pictures = [file for file in files if file.suffix.lower() in FORMATS]
    if not pictures:
        raise DataError(f"{folder}: no pictures, wanted files that end in {', '.join(FORMATS)}")
    _name_skipped(folder, [file for file in files if file.suffix.lower() not in FORMATS])
    return pictures


def _name_skipped(folder, entries):
    if names := sorted(entry.name for entry in entries if not entry.name.startswith(".")):
        LOG.info("%s: passed over %s, no pictures of a class", folder, _listed(names))


def _listed(names, most=3):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _decoded(files, size, description) -> UInt8[np.ndarray, "n H W 3"]:
    """The pixels of all pictures, one after the other into one array."""
    if size is not None:
        from limits.machine import require_memory  # with it comes JAX: options are read before

        require_memory(3 / 8 * len(files) * size * size, f"pictures of {size}×{size} pixels need")
    pixels = None
    for place, file in enumerate(tqdm(files, desc=description, unit="picture", disable=None, leave=False)):
        picture = _picture(file, size)
        pixels = np.empty((len(files), *picture.shape), np.uint8) if pixels is None else pixels
        if picture.shape != pixels.shape[1:]:
            actual, wanted = (f"{width}×{height}" for height, width, _ in (picture.shape, pixels.shape[1:]))
            raise DataError(f"{file}: {actual} pixels, {files[0].name} has {wanted}; with a size given, all are scaled to it")
        pixels[place] = picture
    return pixels


def _picture(file, size) -> UInt8[np.ndarray, "H W 3"]:
    from PIL import Image, ImageOps  # comes with matplotlib

    form = FORMATS[file.suffix.lower()]
    try:
        content, known = file.read_bytes(), tuple(set(FORMATS.values()))  # any of them: ends of names are often mistaken
        Image.open(io.BytesIO(content), formats=known).verify()  # the checksums of a PNG, which decoding passes over
        with Image.open(io.BytesIO(content), formats=known) as picture:
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a phone's JPEG with a thumbnail behind it
                raise DataError(f"{file}: {picture.n_frames} pictures in one file, wanted one")
            upright = _on_background(ImageOps.exif_transpose(_of_bytes(file, content, picture)))
        return np.asarray(upright if size is None else _central_square(upright).resize((size, size)))
    except DataError:
        raise
    except Exception as fault:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … for a damaged file
        raise DataError(f"{file}: cannot be read as a {form} picture: {reason(fault)}") from None


def _of_bytes(file, content, picture):
    """The picture with 8 bits per pixel and channel; of 16 the nearest, where Pillow would cut off the lower ones."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return _of_two_bytes(np.asarray(picture), picture.info)
    if picture.mode[0] in "IF":  # would be clipped to 255
        raise DataError(f"{file}: more than 16 bits per pixel and channel, or reals; wanted 8 or 16")
    layout = str(picture.tile[0].args) if picture.tile else ""
    if picture.format == "PNG" and layout in ("RGB;16B", "RGBA;16B"):  # in the other order of bytes, the lower ones are seen
        with Image.open(io.BytesIO(content), formats=("PNG",)) as lower:
            lower.tile = [tile._replace(args=layout.replace(";16B", ";16L")) for tile in lower.tile]
            both = np.asarray(picture).astype(np.uint16) * 256 + np.asarray(lower)
        return _of_two_bytes(both, picture.info)
    if ";16" in layout:
        raise DataError(f"{file}: 16 bits per pixel and channel, laid out as {layout}: wanted 8, or 16 in a PNG of colours")
    return picture


def _of_two_bytes(deep: Num[np.ndarray, "..."], info: dict):
    """The picture, transparent where a pixel has the one colour that its file calls so: compared before it is rounded."""
    from PIL import Image

    picture, hidden = Image.fromarray(_nearest_byte(deep)), info.get("transparency")
    picture.info = {name: value for name, value in info.items() if name != "transparency"}
    if hidden is not None:
        seen = np.any(np.atleast_3d(deep) != np.reshape(hidden, -1), axis=-1)
        picture.putalpha(Image.fromarray(255 * seen.astype(np.uint8)))
    return picture


def _nearest_byte(deep: Num[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """0 … 65535 as 0 … 255: over 257, rounded."""
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_background(picture):
    """In colour, on the background where it is transparent."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    shown = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, (*BACKGROUND, 255)), shown).convert("RGB")


def _central_square(picture):
    side = min(picture.size)
    left, top = ((extent - side) // 2 for extent in picture.size)
    return picture.crop((left, top, left + side, top + side))
