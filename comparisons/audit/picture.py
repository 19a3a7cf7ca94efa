"""The picture of an audit: sizes against the width, each beside the power that is asked for."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparisons import style as plots
from comparisons.audit.verdict import DIFFERS, Row
from finite.networks.roles import BIAS, GAIN

PANELS = (("h", "h", r"$h$ at step 0"), ("delta_h", "Δh", r"$\Delta h$"), ("own_change", "ΔW x", r"$\Delta W\,x$"))
WRONG = "firebrick"


@plots.styled
def picture(audit, path: Path) -> None:
    """``audit`` is a ``comparisons.audit.study.Audit``.  Gray: as asked for; red: what differs, beside the power wanted."""
    figure = Figure(figsize=(3.0 * (len(PANELS) + 1), 3.2), layout="constrained")
    rows = {(row.weight, row.operation, row.quantity): row for row in audit.rows}
    measured, axes = audit.measured, figure.subplots(1, len(PANELS) + 1)
    for axis, (size, quantity, label) in zip(axes, PANELS, strict=False):
        for role in measured.roles:
            row = rows.get((role.use.path, role.use.operation, quantity))
            if row and role.use.operation not in (BIAS, GAIN):
                _line(axis, measured.widths, measured.by_width(size, role.use.site), row, role.use.path)
        axis.set_title(label)
    for size, color in (("f", "black"), ("delta_f", "tab:blue")):
        row = rows["outputs", "", size]
        _line(axes[-1], measured.widths, measured.by_width(size), row, {"f": "$f$", "delta_f": r"$\Delta f$"}[size], color)
    axes[-1].set_title("outputs")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="width $N$")
        plots.at_sizes(axis.xaxis, measured.widths)
        handles, labels = axis.get_legend_handles_labels()
        if labels:
            axis.legend(handles[:6], labels[:6], fontsize=6)
    axes[0].set_ylabel("root mean square")
    explained = [Line2D([], [], color="0.6", marker="o", markersize=3, label="as wanted, or undecided"),
                 Line2D([], [], color=WRONG, marker="o", markersize=3, label="differs"),
                 Line2D([], [], color=WRONG, linestyle=":", linewidth=1, label="the power that is wanted")]  # fmt: skip
    figure.legend(handles=explained, loc="outside lower center", ncols=len(explained), fontsize=7)
    told = "\n".join(map(str, audit.suspects[:3])) or ("passes" if audit.ok else "fails")
    figure.suptitle(f"{audit.name} beside {audit.parametrization}: {told}", fontsize=8)
    figure.savefig(path)


def _line(axis, widths, values, row: Row, label: str, color: str = "0.6") -> None:
    wrong = row.verdict == DIFFERS
    with np.errstate(divide="ignore"):
        middle = np.exp([np.log(sizes).mean() for sizes in values])
    if not (np.isfinite(middle) & (middle > 0)).all():
        return
    color = WRONG if wrong else color
    axis.plot(widths, middle, marker="o", markersize=3, color=color, label=label if wrong or color != "0.6" else None)
    if wrong:
        level = np.exp(np.mean(np.log(middle) - row.wanted * np.log(widths)))
        axis.plot(widths, level * np.asarray(widths, float) ** row.wanted, color=WRONG, linestyle=":", linewidth=1)
