"""Files from the network, pinned by their SHA-256."""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tqdm import tqdm

from finite.data.synthetic import DataError, reason

CHUNK = 1 << 20


def fetch(url: str, sha256: str, folder: str | Path = ".", timeout: float = 30.0) -> Path:
    """The file of that address, in ``folder``, under the last part of its name; not fetched anew where it is there already.

    It appears under its name only once it is whole and has that SHA-256.  ``timeout``: seconds of silence that are borne.
    Raises DataError, in one line, without network (it says where to put the file by hand), and for a file with other content:
    one that arrives is removed, one that was there is left alone.
    """
    target = Path(folder) / url.rpartition("/")[2]
    if target.exists():
        return _checked(target, sha256)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = _save(url, part, timeout)
        if digest != sha256:
            raise DataError(f"{url}: what arrived has SHA-256 {digest}, wanted {sha256}; nothing was kept")
        os.replace(part, target)
    except (OSError, HTTPException) as fault:
        why = reason(fault.reason) if isinstance(fault, URLError) and isinstance(fault.reason, OSError) else reason(fault)
        raise DataError(f"{url}: cannot be fetched ({why}); get it where there is a network and put it at {target}") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _checked(target, sha256):
    with open(target, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(f"{target}: it has SHA-256 {digest}, wanted {sha256}; remove it to have it fetched anew")
    return target


def _save(url, part, timeout):
    """Writes the file and returns its SHA-256, with a progress bar where there is a terminal."""
    digest = hashlib.sha256()
    with urlopen(url, timeout=timeout) as answer, open(part, "xb") as file:
        size = int(answer.headers["Content-Length"] or 0) or None
        with tqdm(total=size, desc=part.name.split(".")[0], unit="B", unit_scale=True, disable=None, leave=False) as bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    return digest.hexdigest()
