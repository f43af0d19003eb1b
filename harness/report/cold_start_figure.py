"""The figure beside Table 3: HR@10 by the length of a user's history, a panel a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.cold_start import COLD, STRATA_METRIC, ColdStart, Point, Stratum
from harness.report.content import CHAMPION
from harness.report.figures import COLOURS, OTHERS, OURS, canvas
from harness.zoo import Group

LOOKS = tuple(
    zip(
        (COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[6], COLOURS[4], COLOURS[5]),
        ("s", "^", "D", "v", "P", "X"),
        ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))),
        strict=True,
    )
)
"""Colour, marker and line of the named methods but M3BSR, in their order."""
ASIDE = 0.07
"""Strata by which named methods stand beside each other, so that their intervals are seen."""
SHADE = "#F0F0F0"
FAINT = "#C8C8C8"


def draw(made: ColdStart) -> Figure:
    """Small multiples with one scale; cold strata are shaded, n users stand under each tick."""
    names = [one.dataset for one in made.cold]
    looks = _looks([label for label in made.named if any(p.method == label for p in made.points)])
    with canvas(1.0 + 3.7 * len(names), 4.1) as figure:
        panels: Any = figure.subplots(1, len(names), squeeze=False, sharey=True)
        for axes, name in zip(panels[0], names, strict=True):
            _panel(axes, made, name, looks)
        panels[0, 0].set_ylabel(f"{STRATA_METRIC} among 1 + 99 candidates")
        panels[0, 0].set_ylim(0, _top(made))
        handles = [
            panels[0, 0].plot([], [], color=colour, marker=marker, linestyle=line, markersize=5,
                              linewidth=2 if label == CHAMPION else 1.3, label=label)[0]
            for label, (colour, marker, line) in looks.items()
        ]  # fmt: skip
        others = _others(made)
        if others:
            handles += panels[0, 0].plot(
                [], [], color=FAINT, linewidth=0.9, label=f"{len(others)} other methods of Table 2"
            )
        if any(stratum.few for stratum in made.strata):
            handles += panels[0, 0].plot(
                [], [], "o", color=OTHERS, markerfacecolor="white", linestyle="none",
                label="open: fewer than 20 users",
            )  # fmt: skip
        if handles:
            figure.legend(handles=handles, loc="outside lower center", fontsize=8,
                          ncols=3 if len(names) < 2 else 6)  # fmt: skip
        return figure


def _looks(named: Sequence[str]) -> dict[str, tuple[str, str, Any]]:
    """Colour, marker and line by label; M3BSR last, so that it is drawn on top."""
    rest = [label for label in named if label != CHAMPION]
    looks: dict[str, tuple[str, str, Any]] = dict(zip(rest, LOOKS, strict=False))
    return looks | ({CHAMPION: (OURS, "o", "-")} if CHAMPION in named else {})


def _others(made: ColdStart) -> list[str]:
    """Methods with runs that are drawn as thin grey lines; no reference rows."""
    return list(
        dict.fromkeys(
            point.method
            for point in made.points
            if point.method not in made.named and point.group is not Group.reference
        )
    )


def _top(made: ColdStart) -> float:
    """Room for every mean, and for the intervals of strata that have the users for one."""
    tops = [point.mean for point in made.points if point.group is not Group.reference]
    tops += [
        point.high
        for point in made.points
        if point.method in made.named and point.high is not None and not point.stratum.few
    ]
    return min(1.02, 1.12 * max(tops, default=1.0) or 1.0)


def _panel(axes: Axes, made: ColdStart, name: str, looks: dict[str, tuple[str, str, Any]]) -> None:
    strata = made.of(name)
    place = {stratum: number for number, stratum in enumerate(strata)}
    cold = sum(stratum.cold for stratum in strata)
    if cold:
        axes.axvspan(-0.5, cold - 0.5, color=SHADE, zorder=0, linewidth=0)
        axes.annotate(
            f"cold: at most {COLD}", (-0.45, 0.985), xycoords=("data", "axes fraction"), fontsize=8,
            color="#555555", ha="left", va="top",
        )  # fmt: skip
    for label in _others(made):
        line = made.line(label, name)
        axes.plot(
            [place[point.stratum] for point in line], [point.mean for point in line], color=FAINT,
            linewidth=0.9, zorder=1.5,
        )  # fmt: skip
    for number, (label, look) in enumerate(looks.items()):
        aside = ASIDE * (number - (len(looks) - 1) / 2)
        _line(axes, made.line(label, name), place, aside, look, ours=label == CHAMPION)
    if not any(point.stratum.dataset == name for point in made.points):
        axes.annotate("no runs", (0.5, 0.5), xycoords="axes fraction", color=OTHERS, ha="center")
    axes.set_xticks(range(len(strata)), [f"{s.label}\nn = {s.users:,}" for s in strata])
    axes.set_xlim(-0.5, max(len(strata), 1) - 0.5)
    axes.set_xlabel("recorded interactions before the test favor\n(n: users of that length)")
    axes.grid(visible=False, axis="x")
    demo = " (demo data)" if any(d.demo for d in made.table.data if d.name == name) else ""
    axes.set_title(f"{name}{demo}", fontsize=10)


def _line(
    axes: Axes,
    points: Sequence[Point],
    place: dict[Stratum, int],
    aside: float,
    look: tuple[str, str, Any],
    *,
    ours: bool,
) -> None:
    """A named method: line, intervals, filled markers, open ones where users are few."""
    colour, marker, style = look
    order = 3.0 + ours
    x = [place[point.stratum] + aside for point in points]
    axes.plot(x, [point.mean for point in points], color=colour, linestyle=style,
              linewidth=2 if ours else 1.3, zorder=order)  # fmt: skip
    for at, point in zip(x, points, strict=True):
        if point.low is not None and point.high is not None:
            axes.vlines(at, max(0.0, point.low), point.high, color=colour, zorder=order,
                        linewidth=1.4 if ours else 1.0)  # fmt: skip
        axes.plot([at], [point.mean], marker=marker, color=colour, zorder=order + 0.1,
                  markersize=6 if ours else 4.5,
                  markerfacecolor="white" if point.stratum.few else colour)  # fmt: skip
