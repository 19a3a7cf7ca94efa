"""The folder of a run: one configuration, one run at a time, temporaries removed; and what the numbers were computed with."""

import re
from pathlib import Path

import numpy as np
import pytest

import limits
from comparisons import results
from comparisons.files import Refused
from comparisons.results import claim

CONFIG = {"case": "linear2", "learning_rate": 0.5, "widths": [8, 16], "seeds": 3}


def test_provenance_is_text():
    provenance = results.provenance()
    assert {"python", "jax", "numpy", "superconsistency", "device", "platform"} == set(provenance)
    assert all(isinstance(value, str) for value in provenance.values())


def test_provenance_of_several_runs_names_all():
    once = results.provenance()
    assert results.joined([once, once]) == once
    later = once | {"jax": "99"}
    assert results.joined([once, later, once]) == once | {"jax": f"{once['jax']}; 99"}


def test_the_version_is_of_the_release_and_of_the_files(monkeypatch):
    release, _, digest = results.sources().partition("+")
    assert release == limits.__version__
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "linear.py"))
    results.sources.cache_clear()
    changed = results.sources()
    results.sources.cache_clear()
    assert changed.startswith(f"{release}+")
    assert changed != f"{release}+{digest}"


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


@pytest.mark.skipif(results.fcntl is None, reason="no file locks on this system")
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
    folder = tmp_path / "run"
    with claim(folder, CONFIG):
        pass
    (folder / "cells" / "mup").mkdir()
    left = [folder / name for name in (".config.json.0a.partial", "cells/.16.npz.1b.partial", "cells/mup/.0.npz.2c.partial")]
    kept = [folder / ".hidden", folder / "notes.partial"]
    for path in left + kept:
        path.touch()
    with claim(folder, CONFIG):
        pass
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_to_look_is_to_leave_alone(tmp_path):
    """What a dry run does: another configuration is refused, and nothing is written."""
    results.check(tmp_path / "absent", CONFIG)
    with claim(tmp_path / "run", CONFIG):
        pass
    before = sorted(tmp_path.rglob("*"))
    results.check(tmp_path / "run", CONFIG)
    with pytest.raises(Refused, match="seeds 3 there, 4 here"):
        results.check(tmp_path / "run", CONFIG | {"seeds": 4})
    assert sorted(tmp_path.rglob("*")) == before


def test_the_digest_depends_on_the_configuration_but_not_on_its_order():
    assert len({results.digest(one) for one in (CONFIG, CONFIG | {"seeds": 4}, CONFIG | {"momentum": 0.9})}) == 3
    assert results.digest(dict(reversed(CONFIG.items()))) == results.digest(CONFIG)


def test_the_folder_is_the_one_asked_for_or_one_per_configuration():
    assert results.folder(Path("here"), "name", CONFIG) == Path("here")
    assert results.folder(None, "name", CONFIG) == Path("results") / f"name-{results.digest(CONFIG)[:8]}"


def test_a_parametrization_of_ones_own_in_the_name_of_a_file():
    assert results.slug("depth_mup") == "depth_mup"
    own = results.slug("base=mup, readout.multiplier=-3/4")
    assert re.fullmatch(r"base_mup_readout_multipl-[0-9a-f]{6}", own)
    assert results.slug("base=mup, readout.multiplier=3/4") != own
