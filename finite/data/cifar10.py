"""CIFAR-10, its binary version: 50 000 training and 10 000 test images of 32×32 colour pixels in ten classes.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
Six files of 10 000 records; a record is one label byte, then 1024 bytes of red, of green and of blue, row by row.
It is not part of this package; ``download`` fetches the archive (170 MB).  The home page publishes its MD5,
c32a1d4ab5d03f1284b67883e8d87530; the SHA-256 that is pinned here is the one that other libraries hold for the same archive.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from finite.data.download import fetch
from finite.data.images import Images
from finite.data.synthetic import DataError, reason

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

TRAIN_FILES = tuple(f"data_batch_{batch}.bin" for batch in range(1, 6))
FILES = (*TRAIN_FILES, "test_batch.bin")
INNER_FOLDER = "cifar-10-batches-bin"
RECORDS = 10_000  # in a file
RECORD_BYTES = 1 + 3 * 32 * 32


def cifar10(path: str | Path) -> Images:
    """All images, from the .tar.gz archive, which is read without unpacking it to disk, or from the folder it unpacks to.

    Raises DataError, a ValueError, where a file is absent, has not its size, has a label above 9, or the archive is damaged.
    """
    path = Path(path)
    images = np.empty((len(FILES) * RECORDS, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.int64)
    absent = set(FILES)
    for name, content in _folder_files(path) if path.is_dir() else _archive_files(path):
        rows = slice(FILES.index(name) * RECORDS, (FILES.index(name) + 1) * RECORDS)
        images[rows], labels[rows] = _decoded(f"{path}: {name}", content)
        absent.discard(name)
    if absent:
        raise DataError(f"{path}: no {', '.join(sorted(absent))}; wanted the six files of CIFAR-10's binary version")
    train = len(TRAIN_FILES) * RECORDS
    return Images(images[:train], labels[:train], images[train:], labels[train:], CLASSES)


def download(folder: str | Path = ".") -> Path:
    """The archive in that folder, from the home page of CIFAR-10 unless it is there; see ``finite.data.download.fetch``."""
    return fetch(URL, SHA256, folder)


def _folder_files(folder) -> Iterator[tuple[str, bytes]]:
    inner = folder / INNER_FOLDER
    for file in ((inner if inner.is_dir() else folder) / name for name in FILES):
        if file.is_file():
            _check_size(f"{folder}: {file.name}", file.stat().st_size)
            yield file.name, file.read_bytes()


def _archive_files(path) -> Iterator[tuple[str, bytes]]:
    try:
        with gzip.open(path) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isfile() and name in FILES:
                        _check_size(f"{path}: {name}", member.size)
                        yield name, archive.extractfile(member).read()
            while unpacked.read(1 << 20):  # gzip compares its checksum at the very end
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as fault:
        raise DataError(f"{path}: cannot be read as a .tar.gz archive: {reason(fault)}") from None


def _check_size(name, size):
    wanted = RECORDS * RECORD_BYTES
    if size != wanted:
        raise DataError(f"{name} has {size} bytes, wanted {wanted}: {RECORDS} records of {RECORD_BYTES}")


def _decoded(name, content):
    """Images (n, 32, 32, 3) and labels (n,)."""
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, RECORD_BYTES)
    labels, planes = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
    if labels.max() >= len(CLASSES):
        raise DataError(f"{name} has the label {labels.max()}, wanted 0 to {len(CLASSES) - 1}")
    return planes.transpose(0, 2, 3, 1), labels
