"""Compiled programs are kept between runs, in the user's cache folder and nowhere else, and no number depends on it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from comparisons import compiled, options
from comparisons.convergence.options import Options
from limits import machine

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--widths", "6", "8", "12", "--seeds", "2", "--steps", "2", "--measure-every", "1", "--samples", "4", "--inputs", "3"]
FOLDER, ENABLED = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def told(tmp_path, **environment):
    return compiled.settings(True, {"XDG_CACHE_HOME": str(tmp_path / "cache"), **environment})


def process(cache, *words):
    """`python …` of a user who has this cache folder, and has told JAX nothing."""
    environment = {name: value for name, value in os.environ.items() if "_CACHE" not in name} | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {path: path.stat().st_mtime_ns for path in (cache / "superconsistency").rglob("*-cache")}


def results(folder):
    """The bytes of all variables but the seconds, and of the JSON files."""
    with xr.open_dataset(folder / "trajectories.nc", engine="h5netcdf") as dataset:
        variables = {name: values.values.tobytes() for name, values in dataset.drop_vars("seconds").variables.items()}
    return variables | {path.name: path.read_bytes() for path in folder.glob("*.json")}


@pytest.mark.slow
def test_a_warm_cache_changes_no_byte(tmp_path):
    job = ["-m", "comparisons.convergence", *SMALL, "--out"]
    cold = process(tmp_path / "cache", *job, str(tmp_path / "cold"))
    warm = process(tmp_path / "cache", *job, str(tmp_path / "warm"))
    assert len(cold) > 20
    assert warm == cold  # nothing was compiled again
    assert len(results(tmp_path / "cold")) > 40
    assert results(tmp_path / "warm") == results(tmp_path / "cold")


@pytest.mark.parametrize("wanted", [True, False])
def test_jax_does_as_it_is_told(wanted, tmp_path):
    compiling = f"from comparisons import compiled; compiled.keep({wanted}); import jax; jax.jit(lambda x: 2 * x)(1.0)"
    assert bool(process(tmp_path, "-c", compiling)) == wanted


def test_where_it_is(tmp_path, monkeypatch):
    folder = Path(told(tmp_path)[FOLDER])
    assert folder.is_relative_to(tmp_path / "cache" / "superconsistency")
    assert folder.stat().st_mode & 0o077 == 0  # what is loaded from there is run
    monkeypatch.setattr(compiled, "processor", lambda: "another")
    another = Path(told(tmp_path)[FOLDER])
    monkeypatch.setattr(compiled, "version", lambda _: "9.9")
    assert len({folder, another, Path(told(tmp_path)[FOLDER])}) == 3


@pytest.mark.parametrize(("platform", "below"), [("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")])
def test_the_users_cache_folder(platform, below, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert compiled.home({}) == tmp_path / below
    assert compiled.home({"XDG_CACHE_HOME": str(tmp_path / "x")}) == tmp_path / "x"


def test_it_can_be_turned_off(tmp_path):
    assert compiled.settings(False, {}) == {ENABLED: "false"}
    assert ENABLED not in told(tmp_path)  # as the user has it


def test_a_folder_of_the_users_own_is_respected(tmp_path):
    """With all that is compiled, unless the user wants only what took long."""
    assert told(tmp_path, **{FOLDER: "mine"}) == {SHORTEST: "0"}
    assert told(tmp_path, **{FOLDER: "mine", SHORTEST: "2"}) == {SHORTEST: "2"}
    assert not (tmp_path / "cache").exists()
    assert told(tmp_path, **{SHORTEST: "2"})[SHORTEST] == "2"


def test_where_nothing_can_be_written_there_is_none(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert told(tmp_path) == {}


def test_in_a_process_that_has_jax_already_nothing_changes():
    before = dict(os.environ)
    compiled.keep(True)
    compiled.keep(False)
    assert dict(os.environ) == before


def test_a_jaxlib_that_does_not_know_an_option_compiles_without(monkeypatch):
    monkeypatch.setattr(machine, "QUICKLY", {"no_such_option": True})
    assert machine.compiled_soon()(lambda x: x + 1)(1) == 2

    @machine.compiled_soon(static_argnums=0)
    def to_the_power(n, x):
        return x**n

    assert [to_the_power(n, 3) for n in (1, 2, 2)] == [3, 9, 9]


def test_what_was_not_used_for_longest_is_forgotten_first(tmp_path):
    for used, name in enumerate(["old/a", "new/b", "new/c"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (used, used))
    compiled.forget(tmp_path, 300)
    assert len(list(tmp_path.rglob("?"))) == 3
    os.utime(tmp_path / "old/a", (9, 0))  # read again
    compiled.forget(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("?")) == ["a", "c"]


def test_processors_of_other_instructions_have_other_names(monkeypatch):
    assert compiled.processor() == compiled.processor()
    here = "processor\t: 0\nmodel name\t: X\ncpu MHz\t: 1\nflags\t: avx2\n\nprocessor\t: 1\n"
    names = []
    for text in (here, here.replace("MHz\t: 1", "MHz\t: 2"), here.replace("avx2", "avx2 avx512f")):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        names.append(compiled.processor())
    assert names[0] == names[1] != names[2]


def test_the_options_digest_does_not_know_it():
    configs = [options.config(Options(compilation_cache=kept), np.ones((2, 1)), np.ones((2, 1))) for kept in (True, False)]
    assert configs[0] == configs[1]
