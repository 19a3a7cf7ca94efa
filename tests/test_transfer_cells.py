"""A network of a sweep is the same whatever is trained beside it: bit for bit on a CPU, to rounding as a batch."""

from itertools import product

import numpy as np
import pytest
from trained import train

from comparisons import cells, pairs
from comparisons.cells import Group, Store
from comparisons.transfer import networks
from comparisons.transfer.networks import Cell
from comparisons.transfer.study import Options, prepare
from finite.networks.build import build

SIZES = {"widths": (8, 16), "param": ("mup",), "seeds": 3, "steps": 4, "samples": 8, "inputs": 3}
NINE = [Cell("mup", 8, 1, rate, seed) for rate in (0.3, 1.0, 1000.0) for seed in range(3)]


@pytest.fixture
def work():
    return prepare(Options(**SIZES, learning_rates=(0.3, 1.0, 1000.0))).work


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, "test")


def ensured(work, store, wanted):
    cells.Run(store.folder, work, store, cells.Engine(), "test").ensure(wanted)


def contents(store):
    """The bytes of every cell, by its name."""
    return {path.name: path.read_bytes() for path in sorted(store.folder.rglob("*.npz"))}


def test_a_network_is_the_same_alone_and_among_others(work, store):
    ensured(work, store, NINE)
    together = contents(store)
    store.path(NINE[4]).unlink()
    ensured(work, store, NINE)
    assert contents(store) == together
    assert len({store.read(cell)["loss"].tobytes() for cell in NINE[:6]}) == 6


def test_cells_are_kept_chunk_by_chunk(work, store, monkeypatch):
    """Chunks of two of nine cells, all of one length, interrupted in the third; what then follows is what one chunk gives."""
    assert cells.at_once(work, NINE[0]) > 9
    ensured(work, store, NINE)
    together = contents(store)
    for cell in NINE:
        store.path(cell).unlink()
    monkeypatch.setattr(cells, "at_once", lambda *_: 2)
    groups = cells.grouped(work, NINE, NINE)
    assert [len(group.cells) for group in groups] == [2] * 5
    for group in groups[:2]:
        assert cells.compute(work, store, group) == []
    monkeypatch.setattr(networks, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cells.compute(work, store, groups[2])
    monkeypatch.undo()
    assert store.missing(NINE) == NINE[4:]
    ensured(work, store, NINE)
    assert contents(store) == together


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options",
    [
        {"param": ("mup",), "momentum": 0.5, "batch_size": 4},
        pytest.param({"param": ("sp",), "model": "mlp3", "optimizer": "adam", "limit": False}, marks=pytest.mark.slow),
        pytest.param({"param": ("mup",), "model": "conv", "data": "digits", "inputs": 64, "outputs": 3, "widths": (2, 4),
                      "loss": "cross_entropy"}, marks=pytest.mark.slow),
    ],
    ids=["linear2", "mlp3", "conv"],
)  # fmt: skip
def test_a_cell_is_bit_for_bit_a_network_trained_alone(options, store):
    """Whatever else is in its chunk: other seeds, other learning rates, a divergence."""
    rates = (0.05, 0.3, 1000.0)
    work = prepare(Options(**{**SIZES, "seeds": 2, "learning_rates": rates, **options})).work
    (param, depth), width = next(iter(work.scalings)), options.get("widths", (8,))[0]
    for followed in (False, True):
        group = [Cell(param, width, depth, rate, seed, followed) for rate, seed in product(rates, (0, 1))]
        assert cells.compute(work, store, Group(tuple(group), tuple(group))) == []
        for cell in group:
            problem = work.problem(param, depth, cell.learning_rate)
            name = networks.sharpness(problem)
            (alone,) = train(problem, build(problem, width), work.keys(width, depth, [cell.seed]),
                             observables=("loss", name)[: 1 + followed], max_matvecs=pairs.max_matvecs(problem))  # fmt: skip
            wanted = {"loss": alone["loss"]}
            if followed:
                wanted |= {"sharpness": alone[name], "sharpness_error": alone.error(name)}
            for key, values in store.read(cell).items():  # nan is nan, whatever its bits
                np.testing.assert_array_equal(values, wanted.pop(key).reshape(len(values), -1)[:, 0], err_msg=key)
            assert not wanted


def test_side_by_side_is_one_by_one(work, store, tmp_path, monkeypatch):
    """As on an accelerator, up to rounding, of each learning rate that does not diverge."""
    ensured(work, store, NINE[:6])
    monkeypatch.setattr(cells.jax, "default_backend", lambda: "gpu")
    batch = Store(tmp_path / "batch", "test")
    ensured(work, batch, NINE[:6])
    for cell in NINE[:6]:
        np.testing.assert_allclose(batch.read(cell)["loss"], store.read(cell)["loss"], rtol=1e-5)
