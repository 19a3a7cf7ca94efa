"""Results on disk: labelled arrays and JSON, each with its digest; whole or absent under their names, never half.

    with claim(folder, config) as store:            one configuration, one run at a time
        for name, width in widths.items():          trained only where it is not there or damaged
            cells[name] = store.kept(name, lambda: from_trajectories({width: train(width)}))
        dataset = store.finish(cells.values())

A file NAME is written under another name, brought to the disk, and renamed after its digest NAME.sha256
(`sha256sum -c` reads it).  A run that is killed at any moment leaves whole files, and temporaries that the next claim
removes.  Killed while it *replaces* a file, it may leave the old one with the new digest: damaged, so not read as data.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

import finite
import limits
from limits.trajectory import OBSERVABLES, RANK, Trajectory

try:
    import fcntl
except ImportError:  # not a Unix: there two runs in one folder are the user's care
    fcntl = None

TEMPORARY = ".partial"


class Damaged(Exception):
    """A file that is not what was written: missing, changed, cut, or without its digest.  The message is one line."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class Outdated(Damaged):
    """A file that another version of this package has written, whose numbers may be others."""


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
        raise Unwritten(f"{path}: cannot be written: {fault.strerror or _one_line(fault)}") from None


# Files --------------------------------------------------------------------------------------------------------------


def write(dataset: xr.Dataset, path: str | Path) -> None:
    """A NetCDF4 file and its digest.  Raises Unwritten.

    Made in memory first: HDF5 that meets a full disk neither says so nor ends in peace.
    """
    content = io.BytesIO()
    dataset.to_netcdf(content, engine="h5netcdf")
    _publish(Path(path), content.getbuffer())


def read(path: str | Path) -> xr.Dataset:
    """The dataset of ``write``, in memory.  Raises Damaged."""
    content = _verified(Path(path))
    try:
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as dataset:
            return dataset.load()
    except Exception as fault:  # whole, but not ours: whatever the libraries below make of it
        raise Damaged(Path(path), f"not a NetCDF4 file: {_one_line(fault)}") from None


def write_json(value, path: str | Path) -> None:
    """A JSON file and its digest; arrays become lists, and what is not finite becomes null.  Raises Unwritten."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _publish(Path(path), text.encode())


def read_json(path: str | Path):
    """The value of ``write_json``.  Raises Damaged."""
    content = _verified(Path(path))
    try:
        return json.loads(content)
    except ValueError as fault:
        raise Damaged(Path(path), f"not a JSON file: {_one_line(fault)}") from None


def _publish(path: Path, content: bytes | memoryview) -> None:
    digest = _digest_line(content, path.name).encode()
    with writing(path):
        # the digest before the file itself: alone it is an unfinished cell, a file without a digest would be damage
        _replace(path, content, before=lambda: _replace(_sidecar(path), digest))


def _replace(path, content, before=lambda: None):
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        temporary.write_bytes(content)
        _to_disk(temporary)
        before()
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
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


def _one_line(fault):
    return " ".join(str(fault).split()) or type(fault).__name__


def _plain(value):
    """As JSON has it: text keys, lists, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


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
        raise Refused(f"{wanted}: {_one_line(fault)}" if str(fault) else f"{wanted}; leave it out for the CPU") from None


def joined(provenances: Iterable[dict[str, str]]) -> dict[str, str]:
    """Of numbers that were computed at several times: each value that there is, "0.10.2; 0.12.0"."""
    found = list(provenances)
    return {name: "; ".join(dict.fromkeys(one[name] for one in found)) for name in provenance()}


def require_same_sources(path: Path, provenance: Mapping) -> None:
    """Raises Outdated where what a file holds was computed by other sources than these."""
    there = provenance.get("superconsistency", "an unknown version")
    if there != sources():
        raise Outdated(path, f"was computed by superconsistency {there}, this is {sources()}")


# Trajectories as labelled arrays ------------------------------------------------------------------------------------


def from_trajectories(
    trajectories: Mapping[int, Sequence[Trajectory]], seeds: Sequence[int] | None = None
) -> xr.Dataset:
    """The trajectories of each width, one per seed, as variables (width, seed, step) and (width, seed, step, rank).

    ``residual_eigenvalues`` have the dimension ``edge`` (upper, lower) in place of ``rank``, which counts from 1, and so does
    ``node`` of a spectral density.
    Where an observable has fewer eigenvalues than another it is filled up with NaN; its attribute ``ranks`` says how
    many it has.  ``<name>_error`` where there are measuring errors; ``<name>_products`` (width, seed, step), integers, where
    matrix-vector products were counted.  ``seeds`` are labels, by default 0, 1, ….
    Raises ValueError where the trajectories differ in steps, seeds or observables.
    """
    if not trajectories or not all(trajectories.values()):
        raise ValueError("no trajectories: wanted at least one seed of at least one width")
    seeds = list(range(len(next(iter(trajectories.values()))))) if seeds is None else list(seeds)
    first = next(iter(trajectories.values()))[0]
    _require_alike(trajectories, first, seeds)
    grid = [[_variables(one) for one in row] for row in trajectories.values()]
    stacked = {name: np.array([[one[name] for one in row] for row in grid]) for name in grid[0][0]}
    ranks = max((values.shape[-1] for name, values in stacked.items() if _axis(name) == ("rank",)), default=0)
    coordinates = {"width": list(trajectories), "seed": seeds, "step": first.steps}
    for name, values in stacked.items():
        if _axis(name):
            axis = OBSERVABLES[_parts(name)[0]].axis
            coordinates[axis.name] = list(axis.labels(ranks if axis is RANK else values.shape[-1]))
    return xr.Dataset({name: _labelled(name, values, ranks) for name, values in stacked.items()}, coordinates)


def to_trajectories(dataset: xr.Dataset) -> dict[int, list[Trajectory]]:
    """What ``from_trajectories`` was given."""
    return {
        int(width): [to_trajectory(dataset.sel(width=width, seed=seed)) for seed in dataset.seed.values]
        for width in dataset.width.values
    }


def _require_alike(trajectories, first, seeds):
    for width, row in trajectories.items():
        if len(row) != len(seeds):
            raise ValueError(f"width {width} has {len(row)} trajectories for {len(seeds)} seeds")
        if any(not np.array_equal(one.steps, first.steps) for one in row):
            raise ValueError(f"width {width} was not measured at the same steps throughout")
        if any(_shapes(one) != _shapes(first) for one in row):
            raise ValueError(f"width {width} does not have the same observables throughout")


def _shapes(trajectory):
    return {name: values.shape for name, values in _variables(trajectory).items()}


def _variables(trajectory: Trajectory) -> dict[str, np.ndarray]:
    errors = {f"{name}_error": values for name, values in trajectory.errors.items()}
    products = {f"{name}_products": counts for name, counts in trajectory.products.items()}
    return {**trajectory.observables, **errors, **products}


def _parts(variable: str) -> tuple[str, str]:
    """(observable, "", "error" or "products") of a variable's name."""
    for kind in ("error", "products"):
        if variable.endswith(f"_{kind}"):
            return variable.removesuffix(f"_{kind}"), kind
    return variable, ""


def _axis(variable) -> tuple[str, ...]:
    name, kind = _parts(variable)
    axis = OBSERVABLES[name].axis
    return (axis.name,) if axis and kind != "products" else ()


def _labelled(variable, values, ranks):
    (name, kind), axis = _parts(variable), _axis(variable)
    observable = OBSERVABLES[name]
    label = {"": "", "error": "measuring error of ", "products": "matrix-vector products of "}[kind]
    definition = {"": "", "error": "bound on what the measuring got wrong in: ", "products": "how many were taken for: "}[kind]
    attributes = {"long_name": label + observable.label, "units": "1", "definition": definition + observable.definition}
    if axis == ("rank",):
        attributes["ranks"] = values.shape[-1]
        values = np.pad(values, [(0, 0)] * 3 + [(0, ranks - values.shape[-1])], constant_values=np.nan)
    return ("width", "seed", "step", *axis), values, attributes


def to_trajectory(one: xr.Dataset) -> Trajectory:
    """Of the variables of one network, or of the limit: along the steps, without a width and a seed."""
    found = {"": {}, "error": {}, "products": {}}
    for variable, v in one.data_vars.items():
        name, kind = _parts(str(variable))
        found[kind][name] = v.values[:, : v.attrs["ranks"]] if "ranks" in v.attrs else v.values
    return Trajectory(one.step.values, found[""], found["error"], found["products"])


# Many cells, one folder -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A claimed folder: config.json, cells/NAME.nc, whose digest holds its name too, and at the end trajectories.nc.

    A name is a short string, such as "128", "mup-128" or "mup-limit".  ``program`` opens the notices of damage.
    """

    folder: Path
    program: str

    def cell(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.nc"

    def finished(self, name: str) -> bool:
        """Whether this cell is there and whole.  Raises Damaged where it is there but is not what these sources wrote."""
        if not self.cell(name).exists():
            return False
        self.read(name)
        return True

    def read(self, name: str) -> xr.Dataset:
        """Raises Damaged, and Outdated."""
        dataset = read(self.cell(name))
        require_same_sources(self.cell(name), dataset.attrs)
        return dataset

    def write(self, name: str, dataset: xr.Dataset) -> xr.Dataset:
        """One cell, with its provenance: what ``read`` then returns.  A damaged one is replaced."""
        dataset = _as_read(dataset.assign_attrs(provenance()))
        write(dataset, self.cell(name))
        return dataset

    def kept(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The cell; computed and written where it is not there, or damaged, or of another version, which one line says."""
        dataset = self._whole(self.cell(name), lambda: self.read(name))
        return self.write(name, compute()) if dataset is None else dataset

    def finish(self, cells: Iterable[xr.Dataset]) -> xr.Dataset:
        """These cells along their widths as trajectories.nc; they stay."""
        merged = xr.concat(list(cells), dim="width", join="exact", data_vars="minimal", coords="minimal", compat="override",
                           combine_attrs="drop_conflicts")  # fmt: skip
        whole = self.folder / "trajectories.nc"
        self._whole(whole, lambda: read(whole))  # replaced in any case, but its user wants to know of damage
        write(merged, whole)
        return merged

    def _whole(self, path, read):
        """What the file holds; None where it is not there, or not of use, which one line on standard error says."""
        if not path.exists():
            return None
        try:
            return read()
        except Damaged as damage:
            tqdm.write(f"{self.program}: {damage}; it is computed again", file=sys.stderr)  # above the progress bars


def _as_read(dataset):
    """With NumPy's numbers for attributes, as in a file: who goes on from there goes on with the same."""
    found = dataset.copy()
    for one in (found, *found.variables.values()):
        one.attrs = {name: np.asarray(of)[()] if isinstance(of, int | float) else of for name, of in one.attrs.items()}
    return found


@contextlib.contextmanager
def claim(folder: str | Path, config: Mapping, program: str = "comparisons") -> Iterator[Store]:
    """The store of one configuration in ``folder``, made where it is not there, for the length of a ``with``.

    ``config`` is all that the numbers depend on, as JSON has it; ``program`` is who gives notice of damaged cells.
    Temporaries of a killed run are removed.
    Raises Refused where the folder holds anything else, is in use by another run, or cannot be written, or without a device.
    """
    folder, config = Path(folder), _plain(config)
    provenance()  # raises here, before anything is written
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
            held.enter_context(_alone(folder))
            _agree(folder, config)
            (folder / "cells").mkdir(exist_ok=True)
            _remove_temporaries(folder)
        except (OSError, ValueError) as fault:  # ValueError: a name that no file can have
            why = getattr(fault, "strerror", None) or _one_line(fault)
            raise Refused(f"{folder}: cannot be written: {why}") from None
        yield Store(folder, program)


def _refuse_foreign(folder):
    ours = {"config.json.sha256"}  # all that a run leaves which is killed before it has written config.json
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith("."))
    if foreign and "config.json" not in foreign:
        raise Refused(f"{folder}: holds {', '.join(foreign[:3])} but no config.json; take another folder")


def _agree(folder, config):
    """Write the configuration, or find the same one written."""
    path = folder / "config.json"
    if not path.exists():
        return write_json(config, path)
    try:
        there = read_json(path)
    except Damaged as damage:
        raise Refused(f"{damage}; take another folder, or remove this one") from None
    differing = [key for key in {**there, **config} if there.get(key) != config.get(key)]
    if differing:
        named = "; ".join(f"{k} {_short(there, k)} there, {_short(config, k)} here" for k in differing[:3])
        raise Refused(f"{folder}: holds results of another configuration: {named}; take another folder, or remove it")


def _short(config, key):
    text = json.dumps(config[key], ensure_ascii=False) if key in config else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


def _remove_temporaries(folder):
    for place in (folder, folder / "cells"):
        for path in place.glob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)


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
