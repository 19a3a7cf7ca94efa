"""What all pictures share."""

from matplotlib.figure import Figure

from comparisons import plots


def test_titles_break_after_commas_and_semicolons_only():
    title = "conv, cross-entropy, P = 512, D = 3072, batch 64; N = 8, 48 steps"
    lines = plots.wrapped(title, 30).split("\n")
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] == [
        "conv, cross-entropy, P = 512,",
        "D = 3072, batch 64; N = 8,",
        "48 steps",
    ]


def test_a_long_word_stays_whole():
    assert plots.wrapped("of a network, " + "x" * 50, 20).split("\n")[1] == "x" * 50


def labels(low, high):
    axis = Figure().subplots()
    axis.set(yscale="log", ylim=(low, high))
    plots.plain_numbers(axis.yaxis)
    axis.figure.draw_without_rendering()
    return {text.get_text() for text in axis.get_yticklabels()}


def test_short_axes_have_plain_numbers_and_long_ones_powers():
    assert {"0.5", "1", "2"} <= labels(0.3, 3)
    assert "$\\mathdefault{10^{0}}$" in labels(1e-6, 10)
