"""tests/benchmarks/peers.py, small: everyone who is installed computes the same."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"


@pytest.mark.slow
def test_peers_compute_the_same(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers

    def none(small):
        def prepare():
            raise ModuleNotFoundError(name="nobody")

        return peers.Rows("nothing", {"ours": lambda: lambda: np.array([1.0, 2.0]), "theirs": prepare}, np.array([1.0, 2.2]))

    rows = {name: peers.ROWS[name] for name in ("dmft", "ntk")}
    monkeypatch.setattr(peers, "ROWS", rows | {"none": none})
    monkeypatch.setattr(sys, "argv", ["peers.py", "--size", "small", "--repeats", "1"])
    peers.main()
    said = capsys.readouterr().out
    found = dict(re.findall(r"^  (\S.*?) {2,}.* (\S+)$", said, re.MULTILINE))
    assert found["theirs"] == "nobody"
    assert {name for name in found if name.startswith("nt ")} == {
        "nt jacobian contraction", "nt ntk vector products", "nt structured derivatives"}  # fmt: skip
    errors = re.findall(r" (\de[+-]\d\d)$", said, re.MULTILINE)
    assert errors[-1] == "9e-02"
    assert max(map(float, errors[:-1])) <= 1e-3
    assert len(errors) == 7
