"""A folder of results: one configuration, one run at a time; and what its numbers were computed with."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import finite
import limits
from comparisons.files import TEMPORARY, Damaged, Refused, one_line, plain, read_json, write_json

try:
    import fcntl
except ImportError:  # not a Unix: there two runs in one folder are the user's care
    fcntl = None


class Outdated(Damaged):
    """A file that another version of this package has written, whose numbers may be others."""


@cache
def sources() -> str:
    """Of which this is: the release, and eight digits of a digest of the files in which numbers are computed.

    A release does not say what a clone holds that was pulled, or changed, since.
    """
    digest = hashlib.sha256()
    for room in (limits, finite):
        home = Path(room.__file__).parent
        for path in sorted(path for ending in ("py", "json") for path in home.rglob(f"*.{ending}")):
            digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return f"{limits.__version__}+{digest.hexdigest()[:8]}"


@cache
def provenance() -> dict[str, str]:
    """What the numbers were computed with.  Raises Refused where JAX has no device."""
    device = _device()
    return {
        "superconsistency": sources(),
        **{name: importlib.metadata.version(name) for name in ("jax", "numpy")},
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
        "platform": platform.platform(),
    }


def _device():
    import jax

    try:
        return jax.devices()[0]
    except (RuntimeError, AssertionError) as fault:  # an assertion: JAX_PLATFORMS=cuda without JAX for CUDA
        wanted = f"JAX finds no device with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise Refused(f"{wanted}: {one_line(fault)}" if str(fault) else f"{wanted}; leave it out for the CPU") from None


def joined(provenances: Iterable[dict[str, str]]) -> dict[str, str]:
    """Of numbers that were computed at several times: each value that there is, "0.10.2; 0.12.0"."""
    records = list(provenances)
    return {name: "; ".join(dict.fromkeys(record[name] for record in records)) for name in provenance()}


def require_same_sources(path: Path, provenance: Mapping) -> None:
    """Raises Outdated where what a file holds was computed by other sources than these."""
    there = provenance.get("superconsistency", "an unknown version")
    if there != sources():
        raise Outdated(path, f"was computed by superconsistency {there}, this is {sources()}")


def slug(param: str) -> str:
    """A parametrization in the name of a file: itself, or where it is a path or a text, its letters and a digest."""
    letters = re.sub(r"[^A-Za-z0-9_]+", "_", param).strip("_")
    return param if letters == param else f"{letters[:24]}-{hashlib.sha256(param.encode()).hexdigest()[:6]}"


def digest(config: Mapping) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def folder(out: Path | None, name: str, config: Mapping) -> Path:
    """Where the results go: ``out`` if given, else results/NAME-DIGEST, one folder per configuration."""
    return out or Path("results") / f"{name}-{digest(config)[:8]}"


@contextlib.contextmanager
def claim(folder: str | Path, config: Mapping) -> Iterator[Path]:
    """The folder of one configuration, made where it is not there, and for one run, for the length of a ``with``.

    ``config`` is all that the numbers depend on, as JSON has it.  Temporaries of a killed run are removed.
    Raises files.Refused where the folder holds anything else, is in use by another run, or cannot be written, or without a
    device.
    """
    folder = Path(folder)
    provenance()  # raises here, before anything is written
    with contextlib.ExitStack() as held:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
            held.enter_context(_alone(folder))
            check(folder, config)
            if not (folder / "config.json").exists():
                write_json(config, folder / "config.json")
            (folder / "cells").mkdir(exist_ok=True)
            for left in folder.rglob(f".*{TEMPORARY}"):
                left.unlink(missing_ok=True)
        yield folder


def check(folder: Path, config: Mapping) -> None:
    """Raises files.Refused where the folder, if it is there, holds anything else than results of this configuration."""
    with _writing(folder):
        if not folder.exists():
            return
        _refuse_foreign(folder)
        if (folder / "config.json").exists():
            _refuse_another(folder, plain(config))


@contextlib.contextmanager
def _writing(folder):
    try:
        yield
    except (OSError, ValueError) as fault:  # ValueError: a name that no file can have
        why = getattr(fault, "strerror", None) or one_line(fault)
        raise Refused(f"{folder}: cannot be written: {why}") from None


def _refuse_foreign(folder):
    ours = {"config.json.sha256"}  # all that a run leaves which is killed before it has written config.json
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith("."))
    if foreign and "config.json" not in foreign:
        raise Refused(f"{folder}: holds {', '.join(foreign[:3])} but no config.json; take another folder")


def _refuse_another(folder, config):
    try:
        there = read_json(folder / "config.json")
    except Damaged as damage:
        raise Refused(f"{damage}; take another folder, or remove this one") from None
    differing = [key for key in {**there, **config} if there.get(key) != config.get(key)]
    if differing:
        named = "; ".join(f"{k} {_short(there, k)} there, {_short(config, k)} here" for k in differing[:3])
        raise Refused(f"{folder}: holds results of another configuration: {named}; take another folder, or remove it")


def _short(config, key):
    text = json.dumps(config[key], ensure_ascii=False) if key in config else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


@contextlib.contextmanager
def _alone(folder):
    """Hold the folder's lock, which the system takes back from a run that dies."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"{folder}: another run is writing there") from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        os.close(descriptor)
