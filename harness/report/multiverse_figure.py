"""The specification curve: every reading's difference to the rival, sorted, over what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.content import CHAMPION
from harness.report.figures import COLOURS, OTHERS, OURS, canvas
from harness.report.multiverse import BASE, DECIDES, Kind, Multiverse, Reading, Verdict, World

MARKS: dict[Kind, tuple[str, str]] = {
    Kind.BASE: ("o", OURS),
    Kind.MODEL: ("o", COLOURS[0]),
    Kind.SET: ("D", COLOURS[3]),
    Kind.PROTOCOL: ("s", COLOURS[2]),
}
"""Shape and colour; grey print has the shapes."""
NAMES = {
    Kind.BASE: BASE,
    Kind.MODEL: "reading of the model",
    Kind.SET: "set of readings",
    Kind.PROTOCOL: "reading of the protocol",
}
LINE = 0.155
"""Inches a row of the matrix."""
CURVE = 2.6
"""Inches of the upper part."""


def draw(made: Multiverse) -> Figure:
    """A panel a data set: differences with intervals above, a matrix of what is changed below."""
    rows = _rows(made)
    matrix = LINE * (len(rows) + 1)
    width = 2.9 + 4.4 * len(made.worlds)
    with canvas(width, CURVE + matrix + 1.1) as figure:
        axes: Any = figure.subplots(
            2, len(made.worlds), squeeze=False, sharex="col",
            gridspec_kw={"height_ratios": [CURVE, matrix]},
        )  # fmt: skip
        for number, world in enumerate(made.worlds):
            columns = _columns(world)
            _curve(axes[0, number], world, columns)
            _matrix(axes[1, number], columns, rows, first=number == 0)
        handles = [
            axes[0, 0].plot([], [], marker, color=colour, label=NAMES[kind])[0]
            for kind, (marker, colour) in MARKS.items()
            if any(r.specification.kind is kind for w in made.worlds for r in w.readings)
        ]
        open_one = axes[0, 0].plot([], [], "o", color=OTHERS, markerfacecolor="white")[0]
        open_one.set_label("open: cannot be told from the rival")
        figure.legend(handles=[*handles, open_one], loc="outside lower center", ncols=3, fontsize=8)
        return figure


def _rows(made: Multiverse) -> list[tuple[Kind, str, str]]:
    """Kind, short name and printed name of every row of the matrix, from top to bottom."""
    found = {
        row.specification.short: (row.specification.kind, row.specification.label)
        for world in made.worlds
        for row in world.readings
    }
    return [
        (kind, short, label)
        for kind in Kind
        for short, (own, label) in found.items()
        if own is kind
    ]


def _columns(world: World) -> list[Reading]:
    """Readings by their difference; those without one at the right end."""

    def place(row: Reading) -> tuple[bool, float]:
        pair = row.outcomes[DECIDES].against_rival
        return pair is None, 0.0 if pair is None else pair.difference

    return sorted(world.readings, key=place)


def _curve(axes: Axes, world: World, columns: Sequence[Reading]) -> None:
    rival = world.panel.rival.label
    axes.axhline(0, color="black", linewidth=0.8)
    low, high = _limits(columns)
    for x, row in enumerate(columns):
        kind = row.specification.kind
        marker, colour = MARKS[kind]
        outcome = row.outcomes[DECIDES]
        pair = outcome.against_rival
        if pair is None:
            why = row.status or "no runs of the rival"
            axes.annotate(
                why, (x, 0.5), xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
                color=OTHERS, ha="center", va="center",
            )  # fmt: skip
            continue
        if not low < pair.difference < high:
            up = pair.difference > 0
            axes.annotate(
                f"{pair.difference:+.2f}", (x, high if up else low), xytext=(0, -14 if up else 14),
                textcoords="offset points", fontsize=7, color=colour, ha="center", va="center",
                arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
            continue
        told = outcome.verdict in {Verdict.WINS, Verdict.LOSES}
        axes.errorbar(
            x, pair.difference, yerr=[[pair.difference - pair.low], [pair.high - pair.difference]],
            fmt=marker, color=colour, markerfacecolor=colour if told else "white",
            markersize=7 if kind is Kind.BASE else 4.5, linewidth=1.8 if kind is Kind.BASE else 1,
        )  # fmt: skip
        if kind is Kind.BASE:
            axes.annotate(
                BASE, (x, pair.high), xytext=(0, 4), textcoords="offset points", fontsize=8,
                color=OURS, ha="center", va="bottom", fontweight="bold",
            )  # fmt: skip
    _through(axes, columns)
    demo = " (demo data)" if world.panel.data.demo else ""
    axes.set_title(f"{world.panel.data.name}{demo}", fontsize=10)
    axes.set_ylabel(f"{DECIDES}, {CHAMPION} minus {rival}\n(above 0: {CHAMPION} is better)")
    axes.set_ylim(low, high)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0, labelbottom=False)


def _limits(columns: Sequence[Reading]) -> tuple[float, float]:
    """Least and largest difference drawn to scale.

    A reading of the protocol may lie so far off that nothing else could be read: it is drawn at the
    edge, with its number.
    """
    pairs = [
        (row.specification.kind, pair)
        for row in columns
        if (pair := row.outcomes[DECIDES].against_rival) is not None
    ]
    near = [pair for kind, pair in pairs if kind is not Kind.PROTOCOL] or [p for _, p in pairs]
    low, high = min((p.low for p in near), default=0), max((p.high for p in near), default=0)
    room = max(high - low, 1e-6)
    for kind, pair in pairs:
        if kind is Kind.PROTOCOL and low - room < pair.difference < high + room:
            low, high = min(low, pair.low), max(high, pair.high)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.1 * max(high - low, 1e-6)
    return low - margin, high + margin


def _matrix(
    axes: Axes, columns: Sequence[Reading], rows: Sequence[tuple[Kind, str, str]], *, first: bool
) -> None:
    place = {short: y for y, (_, short, _) in enumerate(rows)}
    kinds = [kind for kind, _, _ in rows]
    for x, row in enumerate(columns):
        made = row.specification
        marker, colour = MARKS[made.kind]
        without = row.outcomes[DECIDES].against_rival is None
        turned = [place[name] for name in {made.short, *made.turned} if name in place]
        if len(turned) > 1:
            axes.plot([x, x], [min(turned), max(turned)], color=colour, linewidth=0.8)
        for y in turned:
            axes.plot(x, y, "x" if without else marker, color=OTHERS if without else colour,
                      markersize=4.5)  # fmt: skip
    _through(axes, columns)
    for y in range(1, len(rows)):
        if kinds[y] is not kinds[y - 1]:
            axes.axhline(y - 0.5, color="black", linewidth=0.8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-1.2, len(columns) - 0.3)
    axes.set_yticks(range(len(rows)), [label for _, _, label in rows] if first else [])
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.set_xticks([])
    axes.set_xlabel("readings, sorted by the difference above")


def _through(axes: Axes, columns: Sequence[Reading]) -> None:
    """A band through both parts where the reading is that the others start from."""
    for x, row in enumerate(columns):
        if row.specification.kind is Kind.BASE:
            axes.axvspan(x - 0.5, x + 0.5, color=OURS, alpha=0.12, linewidth=0, zorder=0)
