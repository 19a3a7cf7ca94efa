"""The optimum of a sweep that somebody else has made: how its file is read, the truth of synthetic ones, a user's mistakes."""

import numpy as np
import pytest

import comparisons
from comparisons import files
from comparisons.optimum.study import PROGRAM, main

RATES = 2.0 ** np.arange(-10, -1)
SIZES = (64, 128, 256, 512)
EXPONENT = -0.3


def best(size):
    return 0.02 * (size / 128) ** EXPONENT


def lost(size, rate, seed):
    """A curve with its minimum at ``best``; every network has its own noise, every seed a factor of its own."""
    z, rng = np.log(rate / best(size)), np.random.default_rng([size, seed, int(1e6 * rate)])
    return (2 + 0.1 * z**2 + 0.01 * z**3) * np.exp(0.005 * rng.standard_normal() + 0.1 * np.sin(seed))


def rows(sizes=SIZES, seeds=4, rates=RATES):
    return [(size, rate, seed, lost(size, rate, seed)) for size in sizes for rate in rates for seed in range(seeds)]


def written(path, table, head="width,learning_rate,seed,loss", separator=","):
    path.write_text("\n".join([head, *(separator.join(map(str, row)) for row in table)]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("head", ["width,learning_rate,seed,loss", "Params,LR,Seed,Val Loss", "d_model;ETA;trial;final-loss",
                                  "units\tlr\tseed\tloss"])  # fmt: skip
def test_the_truth_of_a_sweep_is_found(head, tmp_path):
    """Whatever its columns are called, with a comment, an empty line and networks that have diverged."""
    separator = next(mark for mark in ",;\t" if mark in head)
    table = [(*row[:3], "NaN" if row[1] > 8 * best(row[0]) else row[3]) for row in rows()]
    path = tmp_path / "sweep.csv"
    written(path, table, head, separator)
    path.write_text(f"\ufeff# of the cluster\n\n{path.read_text()}", encoding="utf-8")
    found = comparisons.optimum(str(path))
    (shift,) = found.shifts
    assert shift.size == head.partition(separator)[0]
    assert shift.interval[0] < EXPONENT < shift.interval[1] < shift.interval[0] + 0.2
    assert shift.verdict == "does not transfer"
    for one in found.optima:
        assert one.interval[0] < best(one.width) < one.interval[1]
        assert one.best_learning_rate == pytest.approx(best(one.width), rel=0.15)
    assert f"{'N' if shift.size == 'width' else shift.size}^-0." in str(found)


def test_of_one_seed_an_optimum_is_between_its_neighbours():
    """Rows without a seed; of each size only the rates around its optimum, so that no two have the same."""
    table = [(size, rate, 2 + np.log(rate / best(size)) ** 2) for size in SIZES for rate in best(size) * RATES / RATES[4]]
    found = comparisons.optimum(dict(zip(("width", "lr", "loss"), zip(*table, strict=True), strict=True)))
    np.testing.assert_allclose([one.interval for one in found.optima], [[best(n) / 2, best(n) * 2] for n in SIZES])
    np.testing.assert_allclose([one.best_learning_rate for one in found.optima], [best(n) for n in SIZES])
    (shift,) = found.shifts
    assert shift.exponent == pytest.approx(EXPONENT)
    assert shift.interval[0] < EXPONENT < shift.interval[1]
    assert found.remarks == ["one seed: intervals are those between learning rates of the grid; what is chance is not known"]


def test_rows_without_a_seed_are_of_several():
    table = rows()
    alike = comparisons.optimum({"width": [r[0] for r in table], "lr": [r[1] for r in table], "loss": [r[3] for r in table]})
    named = comparisons.optimum(dict(zip(("width", "lr", "seed", "loss"), zip(*table, strict=True), strict=True)))
    assert (alike.optima, alike.shifts) == (named.optima, named.shifts)


def test_what_did_not_run_is_not_what_diverged(tmp_path, capsys):
    """A rate at which a seed has no row is left out, with a line; one size has fewer rates, one fewer seeds."""
    table = [row for row in rows() if row[:3] != (128, RATES[5], 1) and not (row[0] == 256 and row[1] > 8 * best(256))
             and (row[0], row[2]) != (512, 3)]  # fmt: skip
    main([written(tmp_path / "sweep.csv", table), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert f"width 128: left out, as not all of its 4 seeds have a row: learning rate {RATES[5]:g}\n" in told
    assert told.endswith(f"results in {tmp_path / 'out'}\n")
    found = files.read_json(tmp_path / "out" / "optimum.json")
    assert [one["width"] for one in found["optima"]] == list(SIZES)
    for one in found["optima"]:
        assert one["best_learning_rate"] == pytest.approx(best(one["width"]), rel=0.15)
    assert found["shifts"][0]["verdict"] == "does not transfer"
    without = [row for row in table if row[:2] != (128, RATES[5])]
    same = comparisons.optimum(dict(zip(("width", "lr", "seed", "loss"), zip(*without, strict=True), strict=True))).optima
    assert [list(one.interval) for one in same] == [one["interval"] for one in found["optima"]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "optimum.json", "optimum.json.sha256", "optimum.png", "optimum.pdf", "index.html"}  # fmt: skip


def test_what_is_above_the_initial_loss_has_diverged(tmp_path):
    """Finite, next to the optimum, and thousands of times too large."""
    table = [(*row[:3], 1e4 if row[1] > 3 * best(row[0]) else row[3]) for row in rows()]
    found = comparisons.optimum(written(tmp_path / "a.csv", table), initial_loss=10.0)
    columns = "width,learning_rate,seed,loss,initial_loss"
    same = comparisons.optimum(written(tmp_path / "b.csv", [(*row, 10.0) for row in table], columns))
    infinite = [(*row[:3], "inf" if row[3] > 10 else row[3], 10.0) for row in table]
    diverged = comparisons.optimum(written(tmp_path / "c.csv", infinite, columns))
    ends = [[one.interval for one in each.optima] for each in (found, same, diverged)]
    assert ends[0] == ends[1] == ends[2]
    assert all(low < best(n) < high for n, (low, high) in zip(SIZES, ends[0], strict=True))


HEAD = "width,lr,seed,loss\n"
GOOD = "".join(f"{n},{rate},0,{loss}\n" for n in (8, 16) for rate, loss in ((0.1, 3), (0.2, 2), (0.4, 3)))


@pytest.mark.parametrize(("text", "more", "line"), [
    ("", (), "a.csv: wanted a line with the names of columns, and a line for each network"),
    (HEAD, (), "a.csv: wanted a line with the names of columns"),
    ("width,lr,seed\n8,1,0\n", (), "a.csv has no column of the loss: it has width, lr, seed; --loss NAME says which it is"),
    ("width,loss\n8,1\n", (), "a.csv has no column of the learning rate: it has width, loss"),
    ("a,b,lr,loss\n8,1,1,1\n", (), "a.csv has no column of sizes (width, depth, params, batch, ...): it has a, b, lr, loss"),
    ("width,depth,lr,loss\n8,1,1,1\n4,2,1,1\n", (), "a.csv: which column is the size, width, depth? --size NAME"),
    ("width,lr,val_loss,test_loss\n8,1,1,1\n", (), "a.csv: which column is the loss, val_loss, test_loss? --loss NAME"),
    (HEAD + GOOD, ("--loss", "accuracy"), "a.csv has no column 'accuracy': it has width, lr, seed, loss"),
    (HEAD + "8,0.1,0,1.5\n8,0.2,0,low\n", (), "a.csv, line 3: loss 'low' is no number"),
    ("# mine\n" + HEAD + "wide,0.1,0,1\n", (), "a.csv, line 3: width 'wide' is no number"),
    (HEAD + "8,0,0,1\n", (), "a.csv, line 2: lr 0: wanted a positive number"),
    (HEAD + "8,nan,0,1\n", (), "a.csv, line 2: lr nan: wanted a positive number"),
    (HEAD + "8,0.1,0,-1\n", (), "a.csv, line 2: loss -1 is below zero: its logarithm is looked at"),
    (HEAD + "8,0.1,0\n", (), "a.csv, line 2: 3 fields, the first line has 4"),
    (HEAD + GOOD + "16,0.4,0,1\n", (), "a.csv, line 8: width 16, learning rate 0.4, seed 0 again: the first is on line 7"),
    (HEAD + GOOD.partition("16")[0], (), "width 8 is the only one: at least 2 sizes are wanted"),
    (HEAD + GOOD + "32,0.1,0,1\n32,0.2,0,1\n", (), "width 32 has 2 learning rates: at least 3 are wanted"),
    (HEAD + GOOD + "8,0.2,1,1\n", (), "width 8 has 1 learning rate at which all of its 2 seeds have a row: at least 3"),
    ("param," + HEAD + "mup," + "mup,".join(GOOD.splitlines(True)) + "sp,8,1,0,1\n", (), "width 8 of sp has 1 learning rate"),
    (HEAD + GOOD, ("--initial-loss", "-1"), "initial-loss -1: wanted a positive number"),
    (None, (), "a.csv: No such file or directory"),
    (b"width\xff,lr,loss\n", (), "a.csv: is no text in UTF-8"),
])  # fmt: skip
def test_a_mistake_is_one_line(text, more, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as end:
        main(["a.csv", *more, "--out", "out"])
    told = capsys.readouterr().err
    assert (end.value.code, told.count("\n")) == (2, 1)
    assert told.startswith(f"{PROGRAM}: {line}"), told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "loss"), [
    (1, "0"), (1, "nan"), (1, "1e-320"), (1, "1e305"), (10**300, "1"),
])  # fmt: skip
def test_a_sweep_that_says_nothing_is_drawn_all_the_same(size, loss, tmp_path, capsys):
    table = [(n * size, rate, 0, loss) for n in (8, 16) for rate in (0.1, 0.2, 0.4)]
    main([written(tmp_path / "a.csv", table), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "undecided: an optimum may be off the grid" in told
    assert "more of them there would tell" in told
    assert (tmp_path / "out" / "optimum.png").stat().st_size


def test_no_file_and_a_folder(capsys, tmp_path):
    for words in ([], [str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(words)
    assert capsys.readouterr().err.splitlines() == [
        f"{PROGRAM}: which sweep? FILE.csv of columns width, learning_rate, seed, loss",
        f"{PROGRAM}: {tmp_path}: Is a directory"]  # fmt: skip
