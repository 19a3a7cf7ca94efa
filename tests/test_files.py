"""Results on disk: what is read is what was written, or is refused by name; no moment leaves half a file."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from comparisons import files
from comparisons.files import Damaged

try:
    import resource
except ImportError:  # not a Unix
    resource = None

ATTRIBUTES, WIDTH = {"n": np.int64(3), "title": "γ"}, ("width", [8], files.COORDINATES["width"])
DATASET, OTHER = (xr.Dataset({"loss": (("width", "step"), rows, {"units": "1"})}, {"width": WIDTH}, ATTRIBUTES)
                  for rows in ([[0.1 + 0.2, np.inf, np.nan]], np.ones((1, 3))))  # fmt: skip


@pytest.fixture
def written(tmp_path):
    files.write(DATASET, tmp_path / "a.nc")
    return tmp_path / "a.nc"




def test_digest_is_what_sha256sum_reads(written):
    content = hashlib.sha256(written.read_bytes()).hexdigest()
    assert (written.parent / "a.nc.sha256").read_text() == f"{content}  a.nc\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "a.nc.sha256"], cwd=written.parent, check=True)


def test_coordinates_say_what_they_are(tmp_path):
    """But for those that have said it."""
    for said in ({}, {"long_name": "number of heads"}):
        dataset = DATASET.assign_coords(width=("width", [8], said))
        files.write(dataset, tmp_path / "a.nc")
        assert files.read(tmp_path / "a.nc")["width"].attrs == {"long_name": "width N", "units": "1"} | said
        assert dataset["width"].attrs == said


def test_nothing_else_is_left(written):
    assert sorted(p.name for p in written.parent.iterdir()) == ["a.nc", "a.nc.sha256"]


def test_json_round_trip_with_null_for_what_is_not_finite(tmp_path):
    value = {"a": np.array([1.5, np.nan, -np.inf]), "b": np.float32(2), "c": (1, None, "β"), 4: {"d": np.int64(3)}}
    files.write_json(value, tmp_path / "a.json")
    assert files.read_json(tmp_path / "a.json") == {
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
        files.read(written)
    assert damaged.value.path == written
    assert str(damaged.value) == f"{written}: {damaged.value.why}"
    assert "\n" not in str(damaged.value)


def test_damaged_json(tmp_path):
    path = tmp_path / "a.json"
    files.write_json([1], path)
    path.write_text("[2]\n")
    with pytest.raises(Damaged, match="digest"):
        files.read_json(path)
    files.write_json([1], path)
    path.write_text("[2")
    path.with_name("a.json.sha256").write_text(files._digest_line(b"[2", "a.json"))
    with pytest.raises(Damaged, match="not a JSON file"):
        files.read_json(path)


def test_a_failed_write_leaves_what_was_there(written, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: self.write_text("half") / 0)
    with pytest.raises(ZeroDivisionError):
        files.write(OTHER, written)
    xr.testing.assert_identical(files.read(written), DATASET)
    assert sorted(p.name for p in written.parent.iterdir()) == ["a.nc", "a.nc.sha256"]


@pytest.mark.skipif(resource is None, reason="no limits of resources on this system")
@pytest.mark.parametrize("write", [lambda path: files.write(OTHER, path),
                                   lambda path: files.write_json(list(range(9999)), path)])  # fmt: skip
def test_a_full_disk_is_one_line_and_leaves_what_was_there(written, write):
    """A file that may not grow beyond four kilobytes: the system's own refusal, after part of it is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(files.Unwritten) as fault:
            write(written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(fault.value) == f"{written}: cannot be written: File too large"
    xr.testing.assert_identical(files.read(written), DATASET)
    assert sorted(p.name for p in written.parent.iterdir()) == ["a.nc", "a.nc.sha256"]


def test_damaged_files_of_a_folder(written):
    files.write_json([1], written.with_name("b.json"))
    written.with_name("c.json.sha256").touch()  # killed before the file itself was there
    assert list(files.damaged(written.parent)) == []
    flip_a_byte(written)
    assert [damage.path for damage in files.damaged(written.parent)] == [written]


def test_numbers_are_read_as_they_were_written(written):
    xr.testing.assert_identical(files.read(written), DATASET)
