"""Figure 4 drawn: a row of heatmaps a data set, with what cannot be told from the highest cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from harness.report.figures import OURS, canvas
from harness.report.heatmap import METRIC, Heatmaps, Spot, Surface

COLOURS = mpl.colormaps["cividis"]
"""Rises in lightness, alike to readers with colour-vision deficiencies and in grey print."""
MISSING = "#D9D9D9"
PANEL = (3.4, 2.9)
"""Width and height of a map, inches."""
LIGHT = 0.55
"""Lightness from which on numbers are written in black."""
HALF_SCALE = 0.0005
"""Half of a colour scale's width where all cells are equal."""


def heatmap_figure(heatmaps: Heatmaps) -> Figure:
    """Rows of maps, one colour scale a row."""
    names, count = [data.name for data in heatmaps.data], len(heatmaps.panels)
    with canvas(PANEL[0] * count + 0.9, PANEL[1] * len(names) + 0.35) as figure:
        grid = figure.subplots(len(names), count, squeeze=False)
        for row, name in zip(grid, names, strict=True):
            surfaces = [heatmaps.surface(panel.name, name) for panel in heatmaps.panels]
            scale = _scale(surfaces)
            for axes, surface in zip(row, surfaces, strict=True):
                _map(axes, surface, scale)
            _bar(figure, list(row), surfaces, scale)
        figure.legend(handles=_handles(), loc="outside lower center", ncols=4, frameon=False,
                      fontsize=7.5)  # fmt: skip
        return figure


def _chance(surfaces: Sequence[Surface]) -> float:
    """The widest range that equal cells of these maps have by chance; 0 where it is not known."""
    return max((s.from_nothing[0] for s in surfaces if s.from_nothing is not None), default=0.0)


def _scale(surfaces: Sequence[Surface]) -> Normalize:
    """From the lowest to the highest cell, and at least as wide as equal cells spread by chance."""
    means = [spot.mean for s in surfaces for spot in s.spots if spot.mean is not None] or [0.0]
    low, high = min(means), max(means)
    half = max(high - low, _chance(surfaces), 2 * HALF_SCALE) / 2
    middle = (low + high) / 2
    return Normalize(middle - half, middle + half)


def _map(axes: Axes, surface: Surface, scale: Normalize) -> None:
    """One map: the second setting across, the first upwards."""
    panel = surface.panel
    across, up = panel.second.values, panel.first.values
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(across) - 0.5)
    axes.set_ylim(-0.5, len(up) - 0.5)
    axes.set_xticks(range(len(across)), [str(value) for value in across])
    axes.set_yticks(range(len(up)), [str(value) for value in up])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(panel.second.label)
    axes.set_ylabel(panel.first.label)
    axes.set_title(f"{surface.data.name}\n{panel.title}", fontsize=9, loc="left")
    for spot in surface.spots:
        few = "" if spot.complete else f"{len(spot.runs)} of {surface.per_spot} runs"
        _spot(axes, spot, (across.index(spot.second), up.index(spot.first)), scale, few)
    for spot in surface.spots:  # frames lie over all cells
        x, y = across.index(spot.second), up.index(spot.first)
        if spot.highest:
            axes.add_patch(_frame(x, y, 0.44, color=OURS, linewidth=2.4))
        if (spot.first, spot.second) == panel.peak:
            axes.add_patch(_frame(x, y, 0.36, color="black", linewidth=2.2))
            axes.add_patch(_frame(x, y, 0.36, color="white", linewidth=1.4, linestyle=(0, (3, 2))))


def _spot(axes: Axes, spot: Spot, place: tuple[int, int], scale: Normalize, few: str) -> None:
    """A cell: its colour, its number, its dot; how many runs it has where it lacks some (`few`)."""
    x, y = place
    colour = MISSING if spot.mean is None else COLOURS(scale(spot.mean))
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white",
                             linewidth=1.0))  # fmt: skip
    red, green, blue = mpl.colors.to_rgb(colour)
    ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > LIGHT else "white"
    number = "-" if spot.mean is None else f"{spot.mean:.4f}".removeprefix("0")
    axes.text(x, y, number, ha="center", va="center", fontsize=7.5, color=ink)
    if few and spot.runs:
        axes.text(x, y - 0.3, few, ha="center", va="center", fontsize=5.5, color=ink)
    if spot.plateau:
        axes.plot([x + 0.3], [y + 0.27], marker="o", markersize=2.6, color=ink, linestyle="none")


def _frame(x: int, y: int, half: float, **look: Any) -> Rectangle:
    return Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, **look)


def _bar(figure: Figure, row: list[Axes], surfaces: Sequence[Surface], scale: Normalize) -> None:
    """The colour bar of a row, with a bracket as long as equal cells spread by chance."""
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=row, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)
    chance = _chance(surfaces)
    known = f"\n(bracket: equal cells, ±{chance / 2:.4f})" if chance else ""
    bar.set_label(f"{METRIC} (share of users){known}", fontsize=7.5)
    if chance and scale.vmin is not None and scale.vmax is not None:
        middle = (scale.vmin + scale.vmax) / 2
        ends = [middle - chance / 2, middle + chance / 2]
        for colour, width in (("black", 3.0), ("white", 1.2)):
            bar.ax.plot([0.5, 0.5], ends, color=colour, linewidth=width, marker="_", markersize=8,
                        markeredgewidth=width, clip_on=False)  # fmt: skip


def _handles() -> list[Patch | Line2D]:
    return [
        Patch(facecolor="none", edgecolor=OURS, linewidth=2.4, label="highest"),
        Line2D([], [], color="black", marker="o", markersize=3, linestyle="none",
               label="not told from the highest"),
        Patch(facecolor="none", edgecolor="black", linestyle=(0, (3, 2)), linewidth=1.6,
              label="the paper's peak"),
        Patch(facecolor=MISSING, label="-  no run"),
    ]  # fmt: skip
