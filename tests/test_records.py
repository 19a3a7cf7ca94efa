"""Results on disk: what is read is what was written, or is refused by name; no moment of a kill leaves half a file."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import limits
from comparisons import records
from comparisons.records import Damaged, Refused, claim
from limits.trajectory import OBSERVABLES, Trajectory

try:
    import resource
except ImportError:  # not a Unix
    resource = None

CONFIG = {"case": "linear2", "learning_rate": 0.5, "widths": [8, 16], "seeds": 3}
STEPS = np.array([0, 5, 10])


def trajectory(seed):
    """All four kinds of axes, fewer NTK than Hessian eigenvalues, some measuring errors and products, and a divergence."""
    rng = np.random.default_rng(seed)
    shapes = {"loss": (3,), "hessian_eigenvalues": (3, 4), "ntk_eigenvalues": (3, 2), "residual_eigenvalues": (3, 2),
              "density_nodes": (3, 10), "density_weights": (3, 10)}  # fmt: skip
    observables = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    observables["loss"][-1] = np.inf
    observables["ntk_eigenvalues"][-1] = np.nan
    errors = {name: rng.random(shapes[name]) for name in ("hessian_eigenvalues", "residual_eigenvalues")}
    products = {name: rng.integers(1, 100, size=3) for name in (*errors, "density_nodes", "density_weights")}
    return Trajectory(STEPS, observables, errors, products)


def one_width(width):
    return records.from_trajectories({width: [trajectory(width + s) for s in range(3)]})


@pytest.fixture
def written(tmp_path):
    records.write(one_width(8), tmp_path / "a.nc")
    return tmp_path / "a.nc"


# trajectories as labelled arrays


def test_dimensions_and_definitions():
    dataset = records.from_trajectories({w: [trajectory(w + s) for s in range(3)] for w in (8, 16)}, seeds=[7, 8, 9])
    assert dict(dataset.sizes) == {"width": 2, "seed": 3, "step": 3, "rank": 4, "edge": 2, "node": 10}
    assert dataset["loss"].dims == ("width", "seed", "step")
    assert dataset["hessian_eigenvalues"].dims == ("width", "seed", "step", "rank")
    assert dataset["residual_eigenvalues_error"].dims == ("width", "seed", "step", "edge")
    assert dataset["density_weights"].dims == ("width", "seed", "step", "node")
    assert dataset["density_nodes_products"].dims == dataset["hessian_eigenvalues_products"].dims == ("width", "seed", "step")
    assert dataset["loss"].attrs["definition"] == OBSERVABLES["loss"].definition
    assert {"long_name", "units"} <= set(dataset["hessian_eigenvalues_error"].attrs)
    assert dataset["hessian_eigenvalues_products"].attrs["long_name"] == "matrix-vector products of Hessian eigenvalues"
    lower = dataset["residual_eigenvalues"].sel(width=16, seed=8, edge="lower")
    np.testing.assert_array_equal(lower, trajectory(17)["residual_eigenvalues"][:, 1])


def test_trajectories_round_trip_through_the_disk(tmp_path):
    originals = {w: [trajectory(w + s) for s in range(3)] for w in (8, 16)}
    records.write(records.from_trajectories(originals), tmp_path / "a.nc")
    there = records.to_trajectories(records.read(tmp_path / "a.nc"))
    assert list(there) == [8, 16]
    for width, row in originals.items():
        for ours, read in zip(row, there[width], strict=True):
            np.testing.assert_equal(read.observables, ours.observables)
            np.testing.assert_equal(read.errors, ours.errors)
            np.testing.assert_equal(read.products, ours.products)
            assert all(np.issubdtype(counts.dtype, np.integer) for counts in read.products.values())
            np.testing.assert_array_equal(read.steps, ours.steps)


def other_steps():
    return Trajectory(STEPS + 1, trajectory(0).observables, trajectory(0).errors)


def fewer_observables():
    return Trajectory(STEPS, {"loss": trajectory(0)["loss"]})


@pytest.mark.parametrize(
    ("trajectories", "line"),
    [
        ({}, "no trajectories"),
        ({8: []}, "no trajectories"),
        ({8: [trajectory(0)], 16: [trajectory(0)] * 2}, "width 16 has 2 trajectories for 1 seeds"),
        ({8: [trajectory(0)], 16: [other_steps()]}, "width 16 was not measured at the same steps"),
        ({8: [trajectory(0), fewer_observables()]}, "width 8 does not have the same observables"),
    ],
)
def test_trajectories_that_do_not_fit_together(trajectories, line):
    with pytest.raises(ValueError, match=line):
        records.from_trajectories(trajectories)


# files


def test_digest_is_what_sha256sum_reads(written):
    content = hashlib.sha256(written.read_bytes()).hexdigest()
    assert (written.parent / "a.nc.sha256").read_text() == f"{content}  a.nc\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "a.nc.sha256"], cwd=written.parent, check=True)


def test_nothing_else_is_left(written):
    assert sorted(p.name for p in written.parent.iterdir()) == ["a.nc", "a.nc.sha256"]


def test_json_round_trip_with_null_for_what_is_not_finite(tmp_path):
    value = {"a": np.array([1.5, np.nan, -np.inf]), "b": np.float32(2), "c": (1, None, "β"), 4: {"d": np.int64(3)}}
    records.write_json(value, tmp_path / "a.json")
    assert records.read_json(tmp_path / "a.json") == {
        "a": [1.5, None, None], "b": 2.0, "c": [1, None, "β"], "4": {"d": 3}}  # fmt: skip
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def name_another(path):
    sidecar = path.with_name("a.nc.sha256")
    sidecar.write_text(sidecar.read_text().replace("a.nc", "b.nc"))


def replace_by_foreign(path):
    path.write_text("not NetCDF")
    path.with_name("a.nc.sha256").write_text(hashlib.sha256(b"not NetCDF").hexdigest() + "  a.nc\n")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "does not have the digest"),
        (lambda path: path.write_bytes(b""), "does not have the digest"),
        (flip_a_byte, "does not have the digest"),
        (lambda path: path.with_name("a.nc.sha256").unlink(), "digest cannot be read: No such file"),
        (lambda path: path.with_name("a.nc.sha256").write_bytes(b"\xff"), "does not have the digest"),
        (name_another, "does not have the digest"),
        (replace_by_foreign, "not a NetCDF4 file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
    ],
)
def test_damage_is_named_and_never_read(damage, why, written):
    damage(written)
    with pytest.raises(Damaged, match=why) as damaged:
        records.read(written)
    assert damaged.value.path == written
    assert str(damaged.value) == f"{written}: {damaged.value.why}"
    assert "\n" not in str(damaged.value)


def test_damaged_json(tmp_path):
    path = tmp_path / "a.json"
    records.write_json([1], path)
    path.write_text("[2]\n")
    with pytest.raises(Damaged, match="digest"):
        records.read_json(path)
    records.write_json([1], path)
    path.write_text("[2")
    path.with_name("a.json.sha256").write_text(records._digest_line(b"[2", "a.json"))
    with pytest.raises(Damaged, match="not a JSON file"):
        records.read_json(path)


def test_a_failed_write_leaves_what_was_there(written, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: self.write_text("half") / 0)
    with pytest.raises(ZeroDivisionError):
        records.write(one_width(16), written)
    assert records.read(written).width == 8
    assert sorted(p.name for p in written.parent.iterdir()) == ["a.nc", "a.nc.sha256"]


@pytest.mark.skipif(resource is None, reason="no limits of resources on this system")
@pytest.mark.parametrize("write", [lambda path: records.write(one_width(16), path),
                                   lambda path: records.write_json(list(range(9999)), path)])  # fmt: skip
def test_a_full_disk_is_one_line_and_leaves_what_was_there(written, write):
    """A file that may not grow beyond four kilobytes: the system's own refusal, after part of it is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(records.Unwritten) as fault:
            write(written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(fault.value) == f"{written}: cannot be written: File too large"
    assert records.read(written).width == 8
    assert sorted(p.name for p in written.parent.iterdir()) == ["a.nc", "a.nc.sha256"]


def test_provenance_is_text_on_disk_too(tmp_path):
    provenance = records.provenance()
    assert {"python", "jax", "numpy", "superconsistency", "device", "platform"} == set(provenance)
    records.write(one_width(8).assign_attrs(provenance), tmp_path / "a.nc")
    assert records.read(tmp_path / "a.nc").attrs == provenance


def test_provenance_of_several_runs_names_all():
    once = records.provenance()
    assert records.joined([once, once]) == once
    later = once | {"jax": "99"}
    assert records.joined([once, later, once]) == once | {"jax": f"{once['jax']}; 99"}


# folders


def test_an_interrupted_run_resumes(tmp_path):
    with claim(tmp_path / "run", CONFIG) as store:
        store.write("8", one_width(8))
    with claim(tmp_path / "run", dict(reversed(CONFIG.items()))) as store:
        assert (store.finished("8"), store.finished("16")) == (True, False)
        store.write("16", one_width(16))
        merged = store.finish([store.read(name) for name in ("8", "16")])
    there = records.read(tmp_path / "run" / "trajectories.nc")
    xr.testing.assert_identical(there, merged)
    assert there.attrs["numpy"] == np.__version__
    for width in (8, 16):
        xr.testing.assert_equal(there.sel(width=[width]), one_width(width))
        assert there["hessian_eigenvalues"].attrs == one_width(width)["hessian_eigenvalues"].attrs


def test_a_damaged_cell_is_named_and_redone(tmp_path):
    with claim(tmp_path, CONFIG) as store:
        store.write("8", one_width(8))
        flip_a_byte(store.cell("8"))
        with pytest.raises(Damaged, match=r"8\.nc"):
            store.finished("8")
        with pytest.raises(Damaged, match=r"8\.nc"):
            store.read("8")
        store.write("8", one_width(8))
        assert store.finished("8")


def test_a_cell_is_kept_and_computed_once(tmp_path, capsys):
    with claim(tmp_path, CONFIG) as store:
        first = store.kept("mup-8", lambda: one_width(8))
        xr.testing.assert_identical(first, one_width(8).assign_attrs(records.provenance()))
        again = store.kept("mup-8", lambda: pytest.fail("computed again"))
        xr.testing.assert_identical(again, first)
    assert capsys.readouterr().err == ""


def test_who_computes_a_cell_and_who_reads_it_go_on_with_the_same(tmp_path):
    """Down to the types of numbers, and the order of variables; the networks' own, a limit's without width, and a number."""
    made = one_width(8).merge(one_width(16).isel(width=0, seed=0, drop=True).rename(loss="loss_limit")[["loss_limit"]])
    made = made.assign(seconds=("width", [1.5], {"digits": 2})).assign_attrs(epsilon=1e-7, configuration="{}", of=np.float32(2))
    with claim(tmp_path, CONFIG) as store:
        first, again = (store.kept("8", lambda: made) for _ in range(2))
        assert described(again) == described(first)
        assert made["seconds"].attrs == {"digits": 2}
        assert "numpy" not in made.attrs
        written = [described(store.finish([one])) for one in (first, again)]
    assert written[0] == written[1]


def described(dataset):
    typed = {name: [(key, value, type(value)) for key, value in one.attrs.items()] for name, one in dataset.variables.items()}
    values = {name: (one.dims, one.dtype, one.values.tolist()) for name, one in dataset.fillna(0).variables.items()}
    return list(dataset.data_vars), sorted(dataset.coords), typed, values, [(*of, type(of[1])) for of in dataset.attrs.items()]


def test_a_damaged_cell_is_computed_again_with_one_line(tmp_path, capsys):
    with claim(tmp_path, CONFIG, "the program") as store:
        first = store.kept("8", lambda: one_width(8))
        flip_a_byte(store.cell("8"))
        xr.testing.assert_identical(store.kept("8", lambda: one_width(8)), first)
        assert store.finished("8")
        notice = capsys.readouterr().err
    assert notice == f"the program: {store.cell('8')}: does not have the digest in 8.nc.sha256; it is computed again\n"


def test_a_cell_of_another_version_is_named_and_computed_again(tmp_path, monkeypatch, capsys):
    old = records.sources()
    with claim(tmp_path, CONFIG, "the program") as store:
        store.kept("8", lambda: one_width(8))
        monkeypatch.setattr(records, "sources", lambda: "9.9.9+00000000")
        monkeypatch.setattr(records, "provenance", lambda: {"superconsistency": records.sources()})
        with pytest.raises(records.Outdated):
            store.read("8")
        assert store.kept("8", lambda: one_width(16)).width == 16
        assert store.kept("8", lambda: pytest.fail("computed again")).width == 16
    assert capsys.readouterr().err == (f"the program: {store.cell('8')}: was computed by superconsistency {old}, this is "
                                       "9.9.9+00000000; it is computed again\n")  # fmt: skip


def test_the_version_is_of_the_release_and_of_the_files(monkeypatch):
    release, _, digest = records.sources().partition("+")
    assert release == limits.__version__
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "linear2.py"))
    records.sources.cache_clear()
    changed = records.sources()
    records.sources.cache_clear()
    assert changed.startswith(f"{release}+")
    assert changed != f"{release}+{digest}"


def test_a_cell_that_cannot_be_computed_leaves_nothing(tmp_path):
    with claim(tmp_path, CONFIG) as store:
        with pytest.raises(ZeroDivisionError):
            store.kept("8", lambda: 1 / 0)
        assert not any((tmp_path / "cells").iterdir())


def test_a_cell_of_another_name_is_not_taken(tmp_path):
    with claim(tmp_path, CONFIG) as store:
        store.write("16", one_width(16))
        for ending in (".nc", ".nc.sha256"):
            shutil.copy(tmp_path / "cells" / f"16{ending}", tmp_path / "cells" / f"8{ending}")
        with pytest.raises(Damaged, match="digest"):
            store.finished("8")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({**CONFIG, "seeds": 4}, "seeds 3 there, 4 here;"),
        ({**CONFIG, "momentum": 0.9}, "momentum absent there, 0.9 here;"),
        ({"case": "linear2"}, r"learning_rate 0\.5 there, absent here; widths \[8, 16\] there"),
    ],
)
def test_another_configuration_is_refused_by_its_options(changed, line, tmp_path):
    with claim(tmp_path, CONFIG):
        pass
    with pytest.raises(Refused, match=line) as refusal, claim(tmp_path, changed):
        pytest.fail("claimed")
    assert "\n" not in str(refusal.value)


def test_configurations_of_numpy_values_and_tuples_are_the_same(tmp_path):
    for config in (CONFIG, {**CONFIG, "widths": np.array([8, 16]), "learning_rate": np.float64(0.5)}):
        with claim(tmp_path, config):
            pass


def test_a_changed_configuration_file_is_refused(tmp_path):
    with claim(tmp_path, CONFIG):
        pass
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("0.5", "0.7"))
    with pytest.raises(Refused, match=r"config\.json: does not have the digest"), claim(tmp_path, CONFIG):
        pytest.fail("claimed")


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refused, match=r"holds thesis\.tex"), claim(tmp_path, CONFIG):
        pytest.fail("claimed")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file/run", "file", "a\0b", "a" * 300])
def test_a_folder_that_cannot_be_written_is_refused(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be written"), claim(tmp_path / name, CONFIG):
        pytest.fail("claimed")


@pytest.mark.skipif(records.fcntl is None, reason="no file locks on this system")
def test_one_run_at_a_time(tmp_path):
    with claim(tmp_path, CONFIG):
        with pytest.raises(Refused, match="another run"), claim(tmp_path, CONFIG):
            pytest.fail("claimed")
        assert (tmp_path / "config.json").exists()
    with claim(tmp_path, CONFIG):
        pass


def test_faults_of_the_caller_pass_through(tmp_path):
    for fault in (OSError, ValueError, KeyboardInterrupt):
        with pytest.raises(fault), claim(tmp_path, CONFIG):
            raise fault


def test_temporaries_are_removed_and_other_files_kept(tmp_path):
    with claim(tmp_path, CONFIG) as store:
        store.write("8", one_width(8))
    left = [tmp_path / ".config.json.0a.partial", tmp_path / "cells" / ".16.nc.1b.partial"]
    kept = [tmp_path / ".hidden", tmp_path / "notes.partial"]
    for path in left + kept:
        path.touch()
    with claim(tmp_path, CONFIG) as store:
        assert store.finished("8")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


KILLED = """
import os, signal, sys
import xarray as xr
from comparisons import records

records.provenance = lambda: {"superconsistency": records.sources()}
calls = 0

def run(folder, at):
    def counting(function):
        def call(*args, **kwargs):
            global calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    os.replace, os.fsync = counting(os.replace), counting(os.fsync)  # between two of them the disk does not change
    with records.claim(folder, {"seeds": 1}) as store:
        for width in (8, 16):
            store.write(str(width), xr.Dataset({"loss": ("width", [0.0])}, {"width": [width]}))
    os._exit(calls)

for at in range(20):
    child = os.fork()                       # before JAX, if it is there, has started a device
    child or run(f"{sys.argv[1]}/{at}", at)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_any_moment_leaves_whole_files_only(tmp_path, pytestconfig):
    """Three files, config.json and two cells, take each six calls: fsync of the file, then fsync, rename and fsync of
    the folder for its digest, then rename and fsync of the folder for itself."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == [18, *[-signal.SIGKILL] * 18, 18]
    for at in range(1, 19):
        with claim(tmp_path / str(at), {"seeds": 1}) as store:  # neither refused nor damaged
            whole = [width for width in (8, 16) if store.finished(str(width))]
        assert whole == [width for width, renamed in ((8, 11), (16, 17)) if at > renamed], at
        assert not list((tmp_path / str(at)).rglob("*.partial"))
