"""What all pictures share: titles, legends and axes that fit, whatever was measured."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from comparisons import labelled
from comparisons import style as plots
from comparisons.convergence import picture as convergence_plots
from comparisons.convergence import rates
from comparisons.landscape import late
from comparisons.landscape import picture as landscape_plots
from comparisons.statistics import super_consistency
from limits import Trajectory

STEPS, WIDTHS, SEEDS = np.array([0, 5, 10]), (8, 16, 32), 5
KINDS = {
    "usual": lambda rng, shape: 1 + 0.1 * rng.normal(size=shape),
    "zero": lambda _, shape: np.zeros(shape),
    "constant": lambda _, shape: np.full(shape, 0.3),
    "negative": lambda rng, shape: -1 - rng.random(shape),
    "huge": lambda rng, shape: 10.0 ** rng.uniform(20, 308, shape),
    "tiny": lambda rng, shape: 10.0 ** rng.uniform(-320, -100, shape),
    "infinite": lambda _, shape: np.full(shape, np.inf),
    "diverged": lambda rng, shape: np.where(rng.random(shape) < 0.5, np.nan, 10.0 ** rng.uniform(-9, 300, shape)),
}


def measured(kinds, seed):
    """A run of three observables whose values are of these kinds, with their limit and deviations."""
    rng = np.random.default_rng(seed)

    def trajectories(number):
        return {width: [Trajectory(STEPS, {name: KINDS[kind](rng, (len(STEPS), *((2,) if name != "loss" else ())))
                                           for name, kind in kinds.items()}) for _ in range(number)]
                for width in WIDTHS}  # fmt: skip

    values = labelled.from_trajectories(trajectories(SEEDS))
    with np.errstate(all="ignore"):
        deviations = (values - 1).rename({name: f"{name}_deviation" for name in values.data_vars})
    limit = labelled.from_trajectories(trajectories(1)).isel(width=0, seed=0, drop=True)
    errors = (1e-9 * abs(limit)).rename({name: f"{name}_error_limit" for name in limit.data_vars})
    limit = limit.rename({name: f"{name}_limit" for name in limit.data_vars}).merge(errors)
    return values.merge(deviations).merge(limit).assign_attrs(epsilon=1e-7)


def drawn(figure):
    """Laid out as it would be saved: every text inside the figure."""
    plots.fit_titles(figure)
    figure.draw_without_rendering()
    assert np.isfinite([axis.get_ylim() for axis in figure.axes]).all()
    return figure


def test_saved_as_matplotlib_saves_it(tmp_path):
    """Byte for byte, though drawn half as often."""

    dataset = measured({"loss": "usual", "hessian_eigenvalues": "usual", "ntk_eigenvalues": "negative"}, 0)

    def dynamics():
        return convergence_plots.dynamics(dataset, 4.0, "A title that is long enough to be broken into several lines " * 3)

    plots.save(dynamics(), tmp_path / "ours")
    theirs = dynamics()
    with matplotlib.rc_context(plots.STYLE):
        drawn(theirs).set_layout_engine("none")
        theirs.savefig(tmp_path / "theirs.png", metadata={"Software": None})
        theirs.savefig(tmp_path / "theirs.pdf", metadata={"CreationDate": None})
    for ending in ("png", "pdf"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()


def sticks_out(figure):
    """The titles and legends that are wider than the figure, or end outside it."""
    titles = [text for axis in figure.axes for text in [axis.title]] + figure.texts
    boxes = [artist.get_window_extent() for artist in [*titles, *figure.legends]]
    return [box for box in boxes if box.x0 < -1 or box.x1 > figure.bbox.width + 1]


kinds_of_values = st.fixed_dictionaries(
    {name: st.sampled_from(list(KINDS)) for name in ("loss", "hessian_eigenvalues", "ntk_eigenvalues")}
)


@pytest.mark.slow
@given(kinds=kinds_of_values, seed=st.integers(0, 99), edge=st.sampled_from([np.nan, 1e-9, 4.0, 1e200]))
@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate])
def test_every_picture_can_be_drawn_whatever_was_measured(kinds, seed, edge):
    dataset = measured(kinds, seed)
    with np.errstate(all="ignore"):
        fitted = rates.measure_rates(dataset, "theory", None, None)
        grown = super_consistency.measure_growth(dataset, "theory", None, None)
        several = dataset[list(kinds)].expand_dims(param=["mup"]).assign(
            edge_of_stability=("param", [edge]), preconditioned_edge_of_stability=("param", [edge]))  # fmt: skip
        lately = late.late_values(several)
    drawn(convergence_plots.dynamics(dataset, edge, "a title"))
    drawn(convergence_plots.rates(dataset, fitted, "theory", "a title", [0, 5, 10]))
    drawn(convergence_plots.growth(dataset, grown, "theory", "a title"))
    drawn(landscape_plots.picture(several, lately, "a title"))


def named(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_run_without_a_step_has_one_tick():
    dataset = measured(dict.fromkeys(("loss", "hessian_eigenvalues", "ntk_eigenvalues"), "usual"), 0).isel(step=[0])
    axis = drawn(convergence_plots.dynamics(dataset, np.nan, "a title")).axes[0]
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [0]


def test_a_legend_lists_what_is_drawn_and_nothing_else():
    dataset = measured(dict.fromkeys(("loss", "hessian_eigenvalues", "ntk_eigenvalues"), "usual"), 0)
    dataset = dataset.where(dataset.step == 0).assign_attrs(dataset.attrs)  # diverged at once
    with np.errstate(all="ignore"):
        fitted = rates.measure_rates(dataset, "theory", None, None)
        grown = super_consistency.measure_growth(dataset, "largest-width", None, None)
    assert named(convergence_plots.rates(dataset, fitted, "theory", "a title", [0, 5, 10]))[:2] == ["step 0", "fit"]
    lost = convergence_plots.rates(dataset, fitted, "theory", "a title", [5, 10])
    assert {axis.texts[0].get_text() for axis in lost.axes} == {"diverged"}
    assert not any(axis.lines for axis in lost.axes)
    assert named(convergence_plots.dynamics(dataset, np.nan, "a title")) == ["N = 8", "N = 16", "N = 32", "limit"]
    no_limit = dataset.drop_vars([name for name in dataset.data_vars if name.endswith(("_limit", "_deviation"))])
    widths = ["N = 8", "N = 16", "N = 32"]
    assert named(convergence_plots.dynamics(no_limit, np.nan, "a title")) == widths
    with np.errstate(all="ignore"):
        against = rates.measure_rates(no_limit, "largest-width", None, None)
    axis = convergence_plots.rates(no_limit, against, "largest-width", "a title", [0]).axes[0]
    assert axis.get_ylabel() == "rms over seeds of $o_N-o_{32}$"
    assert named(convergence_plots.growth(no_limit, grown, "largest-width", "a title")) == widths[:2]
    assert not named(convergence_plots.dynamics(dataset.where(False), np.nan, "a title"))


@pytest.mark.parametrize("panels", [1, 2, 5])
def test_titles_and_legends_end_where_the_figure_does(panels):
    figure = Figure(figsize=(2.6 * panels, 3), layout="constrained")
    for axis in np.ravel(figure.subplots(1, panels)):
        axis.set_title("NTP: late × 1.09, falls with the size of the network, in several words")
    path = "/a/long/folder/" + "name" * 20
    figure.suptitle(f"conv, cross-entropy, {path}, P = 512, D = 3072, C = 10, γ0 = 1, warm-up 100, batch 64; N = 8, 48 steps")
    lines = [axis.plot([0, 1], label=f"N = {2**n}")[0] for n in range(9)]
    axis.fill_between([0, 1], [1, 2], label=plots.banded("range over seeds"))
    plots.legend_below(figure, [*lines, plots.band("range over seeds")])
    assert not sticks_out(drawn(figure))
    assert len(figure.legends) == 1


@pytest.mark.parametrize(("edge", "line"), [(3.0, True), (1e3, False), (1e-3, False), (np.nan, False)])
def test_an_edge_far_from_the_curves_is_told_in_words(edge, line):
    axis = Figure().subplots()
    axis.plot([0, 1], [1, 2])
    axis.set_ylim(0, 2.2)
    plots.mark_edge(axis, edge)
    assert (len(axis.lines) == 2) == line
    assert axis.get_ylim()[1] < 4
    assert bool(axis.texts) == (not line and np.isfinite(edge))


def test_an_edge_among_the_curves_is_a_line():
    axis = Figure().subplots()
    axis.plot([0, 1], [0.3, 2])
    plots.mark_edge(axis, 0.5)
    assert len(axis.lines) == 2


def test_what_cannot_be_on_a_logarithmic_axis_says_so():
    axis = Figure().subplots()
    axis.plot([0, 1], [0, -2])
    plots.logarithmic(axis)
    assert (axis.get_yscale(), axis.texts[0].get_text()) == ("linear", "nothing above zero")


def test_a_blow_up_leaves_its_start_in_sight():
    dataset = measured(dict.fromkeys(("loss", "hessian_eigenvalues", "ntk_eigenvalues"), "constant"), 0)
    dataset["loss"][..., 2], dataset["hessian_eigenvalues"][:, :, 2] = 1e40, 1e20
    axes = convergence_plots.dynamics(dataset, np.nan, "a title").axes
    assert [axis.get_yscale() for axis in axes] == ["log", "log", "linear"]
    for axis, top in zip(axes, (1e40, 1e20), strict=False):
        low, high = axis.get_ylim()
        assert low < 0.3 < top < high


def test_titles_break_after_commas_and_semicolons_only():
    title = "conv, cross-entropy, P = 512, D = 3072, batch 64; N = 8, 48 steps"
    lines = plots.wrapped(title, 30).split("\n")
    assert lines == [
        "conv, cross-entropy, P = 512,",
        "D = 3072, batch 64; N = 8,",
        "48 steps",
    ]


def test_what_is_too_long_for_a_line_is_broken_where_it_hurts_least():
    assert plots.wrapped("of a network, " + "x" * 25, 20).split("\n") == ["of a network,", "x" * 20, "x" * 5]
    assert plots.wrapped("the best of all networks", 14).split("\n") == ["the best of", "all networks"]
    assert plots.wrapped(r"optimum $\propto N^{+0.03}$, transfers", 30).split("\n") == [
        r"optimum $\propto N^{+0.03}$,", "transfers"]  # fmt: skip


def labels(low, high):
    axis = Figure().subplots()
    axis.set(yscale="log", ylim=(low, high))
    plots.plain_numbers(axis.yaxis)
    axis.figure.draw_without_rendering()
    return {text.get_text() for text in axis.get_yticklabels()}


def test_short_axes_have_plain_numbers_and_long_ones_powers():
    assert {"0.5", "1", "2"} <= labels(0.3, 3)
    assert "$\\mathdefault{10^{0}}$" in labels(1e-6, 10)
    within = {text for text in labels(0.005, 1.28) if text and 0.005 <= float(text) <= 1.28}
    assert within == {"0.01", "0.03", "0.1", "0.3", "1"}  # no two touch


@pytest.mark.parametrize("factor", [1.5, 2, 2.5, 4, 5.9, 6.1, 20])
@pytest.mark.parametrize("low", [0.11, 0.4, 0.63, 1.0, 2.1, 55.0])
def test_however_short_an_axis_two_numbers_say_its_scale(low, factor):
    assert sum(low <= float(text) <= factor * low for text in labels(low, factor * low) if text) >= 2


def test_what_diverges_at_once_is_a_point():
    one = measured(dict.fromkeys(("loss", "hessian_eigenvalues", "ntk_eigenvalues"), "usual"), 0)
    diverged = one.where(one.step == 0)
    for axis in drawn(convergence_plots.dynamics(diverged, 4.0, "a title")).axes:
        points = [line for line in axis.lines if line.get_marker() == "o"]
        assert len(points) == len(WIDTHS) + 1, "and the limit's"
        assert axis.get_xlim()[1] >= STEPS[-1]


def test_a_sampled_limit_is_drawn_within_twice_its_own_error():
    axis, limit = Figure().subplots(), xr.DataArray([1.0, 2.0, 3.0], {"step": STEPS}, ["step"])
    plots.limit(axis, limit, 0 * limit)
    assert not axis.collections
    plots.limit(axis, limit, 0.1 * limit)
    (band,) = axis.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (pytest.approx(0.8), pytest.approx(3.6))
    assert {line.get_linestyle() for line in axis.lines} == {"--"}
    plots.limit(axis, limit, limit.where(limit > 1, np.inf))
    np.testing.assert_array_equal(axis.lines[-1].get_ydata(), [np.nan, 2, 3])
    assert [handle.get_label() for handle in plots.limit_handles()] == [axis.lines[0].get_label(), band.get_label()]
