"""Files of results: NetCDF and JSON, each with its digest; whole or absent under their names, never half.

A file NAME is written under another name, brought to the disk, and renamed after its digest NAME.sha256
(`sha256sum -c` reads it).  A run that is killed at any moment leaves whole files, and temporaries that the next one
removes.  Killed while it *replaces* a file, it may leave the old one with the new digest: damaged, so not read as data.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

TEMPORARY = ".partial"
COORDINATES = {
    "param": {"long_name": "parametrization"},
    "width": {"long_name": "width N", "units": "1"},
    "depth": {"long_name": "depth L", "units": "1"},
    "seed": {"long_name": "number of the seed", "units": "1"},
    "step": {"long_name": "gradient steps taken", "units": "1"},
    "learning_rate": {"long_name": "learning rate η0", "units": "1"},
    "rank": {"long_name": "rank of an eigenvalue, from the largest, 1", "units": "1"},
    "edge": {"long_name": "end of the spectrum"},
    "node": {"long_name": "node of a quadrature of the spectral density", "units": "1"},
}  # of every file


class Damaged(Exception):
    """A file that is not what was written: missing, changed, cut, or without its digest.  The message is one line."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class Refused(Exception):
    """A folder that cannot take these results.  The message is one line."""


class Unwritten(Refused):
    """A file that cannot be written: a full disk, a quota.  It ends the run at once, for the next one could not be either."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """For the length of a ``with``, raises Unwritten for what the system refuses."""
    try:
        yield
    except OSError as fault:
        raise Unwritten(f"{path}: cannot be written: {fault.strerror or one_line(fault)}") from None


def write(dataset: xr.Dataset, path: str | Path) -> None:
    """A NetCDF4 file and its digest; coordinates are described by ``COORDINATES``.  Raises Unwritten.

    Made in memory first: HDF5 that meets a full disk neither says so nor ends in peace.
    """
    content = io.BytesIO()
    described = {name: dataset[name].assign_attrs(COORDINATES[name] | dataset[name].attrs)
                 for name in set(COORDINATES) & set(dataset.coords)}  # fmt: skip
    dataset.assign_coords(described).to_netcdf(content, engine="h5netcdf")
    _publish(Path(path), content.getvalue())


def read(path: str | Path) -> xr.Dataset:
    """The dataset of ``write``, in memory.  Raises Damaged."""
    content = _verified(Path(path))
    try:
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as dataset:
            return dataset.load()
    except Exception as fault:  # whole, but not ours: whatever the libraries below make of it
        raise Damaged(Path(path), f"not a NetCDF4 file: {one_line(fault)}") from None


def write_json(value, path: str | Path) -> None:
    """A JSON file and its digest; arrays become lists, and what is not finite becomes null.  Raises Unwritten."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _publish(Path(path), text.encode())


def read_json(path: str | Path):
    """The value of ``write_json``.  Raises Damaged."""
    content = _verified(Path(path))
    try:
        return json.loads(content)
    except ValueError as fault:
        raise Damaged(Path(path), f"not a JSON file: {one_line(fault)}") from None


def damaged(folder: Path) -> Iterator[Damaged]:
    """Of the files in a folder that have a digest, those that it does not fit."""
    for sidecar in sorted(folder.glob("*.sha256")):
        path = sidecar.with_suffix("")
        try:
            if path.exists():  # alone it is of a run that was killed before it had written the file
                _verified(path)
        except Damaged as damage:
            yield damage


def _publish(path: Path, content: bytes) -> None:
    digest = _digest_line(content, path.name).encode()
    with writing(path):
        # the digest before the file itself: alone it is an unfinished file, a file without a digest would be damage
        replace(path, content, before=lambda: replace(_sidecar(path), digest))


def replace(path: Path, content: bytes, wait: bool = True, before: Callable[[], None] = lambda: None) -> None:
    """The content is there, or what was there before.  ``wait``: until it is on the disk, where ``before`` is called then."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        temporary.write_bytes(content)
        if wait:
            _to_disk(temporary)
        before()
        os.replace(temporary, path)
        if wait and os.name == "posix":  # elsewhere a folder cannot be opened
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path):
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sidecar(path):
    return path.with_name(path.name + ".sha256")


def _digest_line(content, name):
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def _verified(path: Path) -> bytes:
    content = _content(path, path, "cannot be read")
    digest = _content(_sidecar(path), path, "its digest cannot be read")
    if digest != _digest_line(content, path.name).encode():
        raise Damaged(path, f"does not have the digest in {_sidecar(path).name}")
    return content


def _content(file, path, why):
    try:
        return file.read_bytes()
    except OSError as fault:
        raise Damaged(path, f"{why}: {fault.strerror}") from None


def one_line(fault: BaseException) -> str:
    """What it says, or is."""
    return " ".join(str(fault).split()) or type(fault).__name__


def plain(value):
    """A value as JSON has it: text keys, lists, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
