"""Figure 3 drawn: a bar for each removal and one for the full model, in every column of the table."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.content import CHAMPION, Row, Table, TableCell
from harness.report.figures import OTHERS, OURS, canvas

MARK = "*"
"""Above a bar that differs from the full model's."""
PANEL = (4.4, 2.7)
"""Width and height of a column's panel, inches."""
ROOM = 1.22
"""Height of a panel over the tallest interval: room for marks and for the panel's words."""


def ablation_figure(table: Table) -> Figure:
    """A row of panels a data set, a panel a metric; bars from 0, with 95 % intervals."""
    names = [data.name for data in table.data]
    metrics = list(dict.fromkeys(column.metric for column in table.columns))
    with canvas(PANEL[0] * len(metrics), PANEL[1] * len(names)) as figure:
        grid = figure.subplots(len(names), len(metrics), squeeze=False)
        for panels, name in zip(grid, names, strict=True):
            for axes, metric in zip(panels, metrics, strict=True):
                cells = [
                    cell for row in table.rows for cell in row.cells
                    if (cell.dataset, cell.metric) == (name, metric)
                ]  # fmt: skip
                _panel(axes, table.rows, cells)
                axes.set_title(name, fontsize=9, loc="left")
                axes.set_ylabel(f"{metric} (share of users)" if "HR" in metric else metric)
        return figure


def _panel(axes: Axes, rows: Sequence[Row], cells: Sequence[TableCell]) -> None:
    """One column's bars, in the order of the rows: the full model last."""
    top = max(
        (max(cell.mean, cell.high or 0) for cell in cells if cell.mean is not None), default=0
    )
    height = ROOM * (top or 1.0)
    axes.set_ylim(0, height)
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(cells)), [_name(cell.method) for cell in cells], fontsize=7.5)
    for row, label in zip(rows, axes.get_xticklabels(), strict=True):
        if row.label == CHAMPION:
            label.set_color(OURS)
            label.set_fontweight("bold")
    for place, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        if cell.mean is None:
            axes.text(place, 0.02 * height, _why(row, cell.dataset), rotation=90, ha="center",
                      va="bottom", fontsize=7.5, color="#555555")  # fmt: skip
        else:
            _bar(axes, place, cell, height)
    full = next((c.mean for c in cells if c.method == CHAMPION and c.mean is not None), None)
    if full is not None:
        axes.axhline(full, color=OURS, linestyle=(0, (4, 3)), linewidth=0.9, zorder=3)


def _bar(axes: Axes, place: int, cell: TableCell, height: float) -> None:
    """A bar, its interval, its number at its foot and its mark."""
    mean = cell.mean or 0.0
    low = mean if cell.low is None else cell.low
    high = mean if cell.high is None else cell.high
    ours = cell.method == CHAMPION
    axes.bar(place, mean, width=0.72, color=OURS if ours else OTHERS, edgecolor="black",
             linewidth=0.6, hatch="" if ours else "//", alpha=1.0 if ours else 0.55)  # fmt: skip
    axes.errorbar(place, mean, yerr=[[mean - low], [high - mean]], color="black", capsize=3,
                  linewidth=1.1, zorder=4)  # fmt: skip
    axes.text(place, 0.03 * height, f"{mean:.4f}".removeprefix("0"), ha="center", va="bottom",
              fontsize=7.5, zorder=5,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # fmt: skip
    if cell.comparison is not None and cell.comparison.marked:
        axes.text(place, high + 0.005 * height, MARK, ha="center", va="bottom", fontsize=13,
                  fontweight="bold")  # fmt: skip


def _why(row: Row, dataset: str) -> str:
    """A gap in a word."""
    reasons = (row.gaps or {}).get(dataset, ())
    failed = any("failed" in reason for reason in reasons)
    return "failed" if failed else "not run"


def _name(label: str) -> str:
    """A row's label on two lines."""
    head, space, tail = label.partition(" ")
    return f"{head}\n{tail.replace(' ', chr(10))}" if space else label
