"""Curvature along training at several widths: the late values and their verdicts, the whole command, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from trained import train

from comparisons import files, labelled, pairs
from comparisons.cells import Store
from comparisons.landscape import limit as infinite
from comparisons.landscape import study
from comparisons.landscape.late import late_values
from comparisons.landscape.picture import panel, picture
from comparisons.landscape.study import Cell, Options, landscape, main, prepare
from comparisons.statistics.super_consistency import APART, LATE
from finite.networks.build import build
from limits import solve, theories
from limits.deep import linear as deep_linear
from limits.machine import RATE

SMALL = {
    "data": "digits", "model": "mlp2", "samples": 16, "outputs": 3, "widths": (8, 16), "steps": 8, "measure_every": 2,
    "batch_size": 4, "curvature_samples": 6, "learning_rate": (0.5,), "seeds": 2,
    "observables": ("loss", "hessian_eigenvalues", "hessian_min", "gradient_noise"), "limit": False,
}  # fmt: skip


def small(folder=None, **options):
    return Options(**{**SMALL, **options, "out": folder})


def synthetic(exponent, noise=0.0, widths=(16, 64, 256), seeds=4) -> xr.Dataset:
    """Sharpness 3 N^exponent late, something else before."""
    steps = np.arange(0, 101, 10)
    rng = np.random.default_rng(1)
    late = 3 * np.array(widths)[:, None] ** exponent * np.exp(noise * rng.normal(size=(len(widths), seeds)))
    values = np.where(steps >= LATE * 100, late[..., None], 17.0)[None, ..., None]
    dims = ("param", "width", "seed", "step", "rank")
    return xr.Dataset({"hessian_eigenvalues": (dims, values)}, {"param": ["mup"], "width": list(widths), "step": steps})


@pytest.mark.parametrize(
    ("exponent", "expected"), [(0.0, "super consistent"), (0.05, "super consistent"), (-0.5, "falls"), (0.5, "grows")]
)
def test_late_values_are_told_apart(exponent, expected):
    (late,) = late_values(synthetic(exponent, noise=0.01))
    assert late.verdict == expected
    assert late.interval[0] < exponent < late.interval[1]
    assert late.exponent == pytest.approx(exponent, abs=0.02)
    np.testing.assert_allclose(late.values, 3 * np.array(late.sizes) ** exponent, rtol=0.03)
    assert late.ratio == pytest.approx(16 ** abs(exponent), rel=0.05)


@pytest.mark.parametrize(("optimizer", "name"), [("sgd", "hessian_eigenvalues"), ("adam", "preconditioned_sharpness"),
                                                  ("adamw", "preconditioned_sharpness")])  # fmt: skip
def test_what_is_followed_has_an_edge_of_its_own(optimizer, name):
    """The line belongs to what is followed by default; what has none gets none, and no legend for it."""
    run = prepare(small(optimizer=optimizer, observables=None))
    assert run.options.observables == ("loss", name)
    problem = next(iter(run.problems.values()))
    edges = {"edge_of_stability": problem.edge_of_stability,
             "preconditioned_edge_of_stability": problem.preconditioned_edge_of_stability}  # fmt: skip
    values = synthetic(0.0, noise=0.1).assign({key: ("param", [edge]) for key, edge in edges.items()})
    values["preconditioned_sharpness"] = (1 if optimizer == "sgd" else 4) * values["hessian_eigenvalues"].isel(rank=0)
    figure = picture(values, late_values(values), "a title")
    drawn = {axis.get_ylabel(): [line.get_ydata()[0] for line in axis.lines if line.get_label() == "edge of stability"]
             for axis in figure.axes}  # fmt: skip
    raw, preconditioned = drawn[r"$\lambda_1(H)$"], drawn[r"$\lambda_1(P^{-1/2}HP^{-1/2})$"]
    assert raw == ([4.0] if optimizer == "sgd" else [])
    assert preconditioned == pytest.approx([4.0 if optimizer == "sgd" else 76.0])
    alone = values.drop_vars("preconditioned_sharpness")
    shown = [text.get_text() for text in picture(alone, late_values(alone), "a title").legends[0].get_texts()]
    assert ("edge of stability" in shown) == (optimizer == "sgd")


def test_a_law_over_few_widths_is_a_law():
    """Ratio 1.3, less than what is tolerated of a whole range."""
    (late,) = late_values(synthetic(-0.38, noise=0.01, widths=(64, 128)))
    assert late.ratio < APART
    assert late.verdict == "falls"


def test_without_noise_it_is_the_power_law():
    (late,) = late_values(synthetic(-0.5))
    assert (late.ratio, late.exponent) == (pytest.approx(4), pytest.approx(-0.5))


def test_a_divergence_has_no_late_value():
    gone = synthetic(-0.5)
    gone["hessian_eigenvalues"][0, 1, 2, -1] = np.nan
    assert late_values(gone)[0].verdict == "diverged"


def test_a_cell_is_the_trained_networks(tmp_path):
    run = prepare(small())
    (found,) = run.compute([Cell("ntp", 8, 1)], Store(tmp_path, "test"), lambda part: None)
    problem = run.problems["ntp", 1]
    assert problem.scaling().name == "ntp"
    trained = train(problem, build(problem, 8), pairs.keys(0, 8, 2), observables=SMALL["observables"], curvature_samples=6,
                    rtol=1e-2)  # fmt: skip
    np.testing.assert_equal(found, labelled.arrays(trained))


def test_the_whole_command(tmp_path, capsys):
    found = landscape(small(tmp_path / "there"))
    assert {(one.parametrization, one.observable) for one in found} == {
        (param, name) for param in ("mup", "ntp") for name in SMALL["observables"]
    }
    dataset = files.read(tmp_path / "there" / "landscape.nc")
    assert dataset["hessian_eigenvalues"].sizes == {"param": 2, "width": 2, "seed": 2, "step": 5, "rank": 1}
    np.testing.assert_allclose(dataset.edge_of_stability, 4)
    assert len(files.read_json(tmp_path / "there" / "landscape.json")) == 8
    for ending in ("png", "pdf"):
        assert (tmp_path / "there" / f"landscape.{ending}").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "mup       hessian_eigenvalues" in said


@pytest.mark.slow
def test_networks_of_growing_depth(tmp_path, capsys):
    options = {"model": "resmlp", "param": ("depth_mup",), "widths": (8,), "depths": (2, 4, 8), "density": True}
    found = landscape(small(tmp_path / "there", **options, observables=("loss", "hessian_eigenvalues")))
    assert [(one.observable, one.growing, one.sizes) for one in found] == [
        ("loss", "depth", [2, 4, 8]), ("hessian_eigenvalues", "depth", [2, 4, 8])]  # fmt: skip
    dataset = files.read(tmp_path / "there" / "landscape.nc")
    assert dataset["loss"].sizes == {"param": 1, "depth": 3, "seed": 2, "step": 5}
    run = prepare(small(**options, observables=("loss",)))
    problem = run.problems["depth_mup", 4]
    assert problem.network.depth == 4
    alone = train(problem, build(problem, 8), pairs.keys(0, 8, 2, depth=4), observables=["loss"])
    for seed, one in enumerate(alone):
        np.testing.assert_allclose(dataset["loss"].sel(param="depth_mup", depth=4, seed=seed), one["loss"], rtol=1e-6)
    said = capsys.readouterr().out
    assert "L = 8" in said
    assert "L^exponent" in said
    assert "resmlp tanh" in said
    assert "N = 8" in said
    assert (tmp_path / "there" / "density.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_density_of_augmented_images(tmp_path):
    options = {"model": "conv", "widths": (2, 3), "param": ("mup",), "observables": ("loss",), "steps": 2, "density": True}
    landscape(small(tmp_path / "there", augment=True, **options))
    dataset = files.read(tmp_path / "there" / "landscape.nc")
    weights = dataset["density_weights"]
    np.testing.assert_allclose(weights.sum("node"), 1, rtol=1e-5)
    assert (tmp_path / "there" / "density.png").stat().st_size > 5000
    plain = landscape(small(tmp_path / "plain", **options))
    assert [one.observable for one in plain] == ["loss"]
    other = files.read(tmp_path / "plain" / "landscape.nc")
    assert (dataset["loss"].isel(step=0) == other["loss"].isel(step=0)).all()
    assert (dataset["loss"].isel(step=-1) != other["loss"].isel(step=-1)).all()


LINEAR = {"data": "gaussian", "model": "linear2", "loss": "mse", "samples": 8, "batch_size": None, "widths": (8, 512),
          "steps": 4, "learning_rate": (0.3, 0.7), "observables": ("loss", "hessian_eigenvalues", "gradient_noise"),
          "limit": True}  # fmt: skip


@pytest.mark.slow
def test_limits_are_dashed_where_they_are_known(tmp_path, capsys):
    """Wide networks are near; what is not measured of the same samples, or by theories, is said in a line each."""
    options = small(tmp_path / "there", **LINEAR, curvature_samples=8)
    landscape(options)
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "no limit" in line] == [
        f"no limit is drawn of gradient_noise in {param}: no theory has it" for param in ("mup", "ntp")]  # fmt: skip
    dataset = files.read(tmp_path / "there" / "landscape.nc")
    for name in ("loss", "hessian_eigenvalues"):
        limit, wide = dataset[f"{name}_limit"], dataset[name].sel(width=512)
        scale = float(abs(limit).max())
        if name != "loss":  # in NTP that of a network has its f(0)
            np.testing.assert_allclose(wide.mean("seed"), limit.transpose(*wide.mean("seed").dims), atol=scale / 8)
        np.testing.assert_allclose(wide.mean("seed").sel(param="mup"), limit.sel(param="mup"), atol=scale / 8)
    figure = picture(dataset, late_values(dataset), "a title")
    drawn = [line.get_ydata() for axis in figure.axes for line in axis.lines if line.get_label() == "limit"]
    assert len(drawn) == 4
    np.testing.assert_array_equal(drawn[1], dataset["loss_limit"].sel(param="ntp"))
    assert "limit" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_dry_run_says_which_limits_are_left_out(tmp_path, capsys):
    landscape(small(tmp_path, **LINEAR | {"samples": 10}, curvature_samples=8, dry_run=True))
    cells, *lines = capsys.readouterr().out.splitlines()
    assert cells.startswith("6 cells, about ")
    assert lines == [f"no limit is drawn of hessian_eigenvalues, gradient_noise in {param}: the networks' is of the first 8 "
                     "samples, the limit's of all 10" for param in ("mup", "ntp")]  # fmt: skip
    landscape(small(tmp_path, **LINEAR | {"samples": 10, "limit": False}, curvature_samples=8, dry_run=True))
    assert capsys.readouterr().out.count("\n") == 1


def test_a_title_says_every_rate():
    assert ", MSE, " in prepare(small(**LINEAR)).title
    assert ", η0 = 0.5 (mup), 7 (ntp), " in prepare(small(**LINEAR | {"learning_rate": ()})).title
    assert ", η0 = 0.3, " in prepare(small(**LINEAR | {"learning_rate": (0.3,)})).title


def test_what_has_no_limit_says_why(tmp_path, monkeypatch):
    convolutions = prepare(Options(samples=64))
    assert convolutions.limits == []
    in_mup, in_ntp = study._without_limit(convolutions, {})
    assert in_mup.startswith("no limit is drawn in mup: the limit of conv in mup on 64 samples would take about ")
    assert in_ntp == "no limit is drawn in ntp: max pooling has no analytic kernel: average pooling has one"
    few = prepare(Options(samples=4, steps=8, param=("mup",)))
    assert [str(cell) for cell in few.limits] == ["mup L = 2 limit"]
    problem = prepare(small(**LINEAR)).problems["ntp", 1]
    observables = ("loss", "hessian_eigenvalues", "ntk_eigenvalues")
    assert list(infinite.left_out(problem, observables, 6)) == ["hessian_eigenvalues", "ntk_eigenvalues"]
    assert infinite.left_out(problem, observables, 8) == {}
    classes = prepare(small(samples=6)).problems["ntp", 1]
    assert list(infinite.left_out(classes, observables, 6)) == ["hessian_eigenvalues"]

    def too_large(problem, **_):
        raise MemoryError("too large")

    monkeypatch.setattr(infinite, "solve", too_large)
    limit, unknown = infinite.read(infinite.computed(problem, observables, 8), problem)
    assert limit is None
    assert infinite.why_not(unknown, "ntp") == [f"no limit is drawn of {', '.join(observables)} in ntp: too large"]


def test_what_is_known_of_one_parametrization_only():
    """Limits that know different observables, as where curvature is of fewer samples in one, are one dataset."""
    steps = {"step": [0, 1]}
    mup = xr.Dataset({"loss_limit": ("step", [1.0, 2.0])}, steps).expand_dims(param=["mup"], depth=[2])
    ntp = xr.Dataset({"loss_limit": ("step", [3.0, 4.0]), "ntk_limit": ("step", [5.0, 6.0])}, steps)
    found = infinite.together([mup, ntp.expand_dims(param=["ntp"], depth=[2])], ["ntp", "mup", "sp"], [2])
    np.testing.assert_array_equal(found["loss_limit"].sel(depth=2), [[3, 4], [1, 2], [np.nan, np.nan]])
    np.testing.assert_array_equal(found["ntk_limit"].sel(depth=2), [[5, 6], [np.nan, np.nan], [np.nan, np.nan]])


def test_the_limits_hessian_is_found_only_where_it_is_drawn():
    """It takes most of the time; without it the other observables are the same."""
    observables = ("loss", "ntk_eigenvalues", "hessian_eigenvalues")
    problem = prepare(small(**LINEAR | {"model": "linear3", "widths": (8, 16), "steps": 2})).problems["mup", 2]
    assert infinite.needs_hessian(problem, observables, 8)
    assert not infinite.needs_hessian(problem, observables, 6)
    assert not infinite.needs_hessian(problem, observables[:2], 8)
    found, without = infinite.read(infinite.computed(problem, observables[:2], 8), problem)
    assert without == {}
    assert set(found.observables) == {"loss", "ntk_eigenvalues"}
    np.testing.assert_array_equal(found["loss"], deep_linear.solve(problem, hessian=False)["loss"])
    assert "hessian_eigenvalues" in solve(problem, hessian=False).left_open
    assert theories.work(problem, hessian=False)[0] < theories.work(problem)[0]


def test_where_the_hessian_takes_too_long_the_rest_of_the_limit_is_drawn(monkeypatch):
    run = prepare(small(**LINEAR | {"model": "mlp3", "widths": (8, 16), "steps": 2, "param": ("mup",), "learning_rate": (0.3,)},
                        curvature_samples=8))  # fmt: skip
    ((key, problem),) = run.problems.items()
    without, with_it = (theories.work(problem, hessian=hessian)[0] / RATE / 60 for hessian in (False, True))
    assert run._curved(problem)
    monkeypatch.setattr(theories, "LONGEST", (without + with_it) / 2)
    assert (run.no_limits[key], run._curved(problem)) == (None, False)
    told = infinite.left_out(problem, run.observables, 8)
    assert list(told) == ["hessian_eigenvalues"]
    assert told["hessian_eigenvalues"].startswith("the limit of mlp3 in mup on 8 samples would take about ")
    monkeypatch.setattr(theories, "LONGEST", without / 2)
    assert prepare(run.options).no_limits[key].startswith("the limit of mlp3")


def test_limits_of_several_depths_have_the_colours_of_their_networks(tmp_path):
    options = small(None, **LINEAR | {"model": "resmlp", "widths": (8,), "depths": (2, 4), "param": ("depth_mup",)},
                    curvature_samples=8)  # fmt: skip
    run = prepare(replace(options, activation="linear", learning_rate=(0.3,), observables=("loss", "ntk_eigenvalues")))
    assert [str(cell) for cell in run.limits] == ["depth_mup L = 2 limit", "depth_mup L = 4 limit"]
    values = synthetic(0.0)["hessian_eigenvalues"].isel(param=0, rank=0).rename(width="depth")
    axis = Figure().subplots()
    panel(axis, values, limit=2 * values.isel(seed=0, drop=True))
    lines, dashed = ([line for line in axis.lines if (line.get_label() == "limit") == which] for which in (False, True))
    assert [line.get_color() for line in lines] == [line.get_color() for line in dashed]
    assert {line.get_linestyle() for line in dashed} == {"--"}


def test_a_divergence_is_a_result(tmp_path):
    found = landscape(small(tmp_path / "there", learning_rate=(1e4,), param=("mup",), observables=("loss",), loss="mse",
                            curvature_samples=256))  # fmt: skip
    assert [one.verdict for one in found] == ["diverged"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": (0.5, 1.0, 2.0)}, "3 learning rates for 2 parametrizations"),
        ({"measure_every": 3}, "measure-every 3: wanted a divisor of the 8 steps"),
        ({"observables": ("sharp", "sharp")}, "observables sharp sharp: wanted at least 1, positive, none twice"),
        ({"observables": ("density_nodes",)}, "unknown observable 'density_nodes'; known: loss"),
        ({"observables": ("sharp",)}, "unknown observable 'sharp'; known: loss, hessian_eigenvalues"),
        ({"curvature_samples": 0}, "curvature-samples 0 must be at least 1"),
        ({"widths": (8,)}, "widths 8: wanted at least 2"),
        ({"model": "mlp", "depths": (1, 2)}, "2 widths and 2 depths: one of them grows, of the other give one"),
        ({"widths": (8,), "depths": (1, 2)}, "depths 1 2: mlp2 has its own; models of any depth: mlp, resmlp"),
        ({"model": "gpt"}, "is no token"),
        ({"model": "vit", "widths": (8, 12)}, "width 12 is no multiple of the 8 heads"),
        ({"top_k": 10**6}, "top_k 1000000 is more than the network's 536 parameters"),
        ({"tolerance": float("nan")}, "tolerance nan: wanted a finite number"),
        ({"tolerance": 0.0}, "tolerance 0 must be above 0 and below 1"),
        ({"observables": ("loss",)}, "curvature-samples 6: nothing that depends on it is among the observables loss"),
        ({"observables": ("loss", "gradient_noise"), "top_k": 2}, "top-k 2: nothing that depends on it is among"),
        ({"observables": ("loss", "gradient_noise"), "tolerance": 0.1}, "tolerance 0.1: nothing that depends on it is among"),
        ({"batch_size": 17}, "batch size 17 must be from 1 to the 16 samples"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(small(**options))


def test_a_mistake_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["--widths", "8"])
    assert capsys.readouterr().err == "python -m comparisons.landscape: widths 8: wanted at least 2, positive, none twice\n"


def test_usual_learning_rates():
    run = prepare(small(param=("ntp", "mup", "sp"), learning_rate=()))
    assert [problem.learning_rate for problem in run.problems.values()] == [7.0, 0.5, 0.5]
    assert Options(param=("mup",), data="patches10").load()[0].shape == (2000, 3072)
    assert Options(data="digits").load()[0].shape == (256, 64)


@pytest.mark.parametrize(("steps", "every"), [(256, 32), (48, 6), (7, 1), (101, 101), (1, 1), (20, 2)])
def test_a_default_interval_divides_the_steps(steps, every):
    assert Options(steps=steps).adapted().measure_every == every


@pytest.mark.parametrize(("model", "data"), [("conv", "patches10"), ("vit", "patches10"), ("gpt", "plays")])
def test_defaults_follow_what_was_given(model, data):
    """64 samples are less than the usual batch: a batch is all of them."""
    run = prepare(Options(model=model, samples=64, widths=(8, 16), param=("mup",)))
    (problem,) = run.problems.values()
    assert (run.options.data, run.options.loss) == (data, "cross_entropy")
    assert (problem.num_samples, problem.batches) == (64, None)


def test_numbers_to_be_learned_have_the_squared_loss(tmp_path):
    for targets, loss in ((np.arange(6.0), "mse"), (np.arange(6) % 2, "cross_entropy")):
        np.savez(tmp_path / "a.NPZ", inputs=np.ones((6, 2)), targets=targets)
        (tmp_path / "a.NPZ.npz").rename(tmp_path / "a.NPZ")
        run = prepare(Options(data=str(tmp_path / "a.NPZ"), model="mlp2", widths=(8, 16), param=("mup",)))
        assert run.options.loss == run.problems["mup", 1].loss == loss


def test_a_curve_ends_where_a_network_diverges_and_its_axis_stays_logarithmic():
    values = xr.DataArray([[[np.nan, 1, 10], [np.nan, 3, np.nan]]], {"width": [8]}, ("width", "seed", "step"))
    axis = Figure().subplots()
    panel(axis, values.assign_coords(step=[0, 1, 2]))
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [np.nan, 2, np.nan])
    assert axis.get_yscale() == "log"


def test_own_exponents_are_classified(tmp_path, capsys):
    own = "base=mup, hidden.learning_rate=1"
    landscape(replace(small(tmp_path / "there"), param=(own,), observables=("loss",), steps=2, curvature_samples=256))
    assert capsys.readouterr().out.startswith("base=mup")
