"""The figure of the planted worlds: accuracy and gains along each knob, and the noise taken out."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.content import CHAMPION
from harness.report.figures import COLOURS, OTHERS, OURS, canvas
from harness.report.noise import Removed, Share
from harness.report.simulate import KNOBS, SIMULATE_METRICS, Noise, Simulation, Sweep, part_of

METRIC = SIMULATE_METRICS[0]
OF_ROW = ((COLOURS[0], "s", "--"), (COLOURS[2], "^", "-."))
"""Colour, marker and line of a sweep's removals, in their order."""
OF_MODE = {"image": (COLOURS[0], "s", "--"), "text": (COLOURS[2], "^", "-.")}
ASIDE = 0.012
"""Share of the axis by which rows stand beside each other, so that their intervals are seen."""


def simulate_figure(simulation: Simulation) -> Figure:
    """Two rows of panels a data set (means, gains), a column a sweep, and the noise at the right."""
    names = [data.name for data in simulation.data]
    knobs = list(dict.fromkeys(sweep.knob.name for sweep in simulation.sweeps))
    noise = any(one.removed is not None for one in simulation.noise)
    width = len(knobs) + noise
    with canvas(3.1 * width, 4.6 * len(names)) as figure:
        grid = figure.add_gridspec(2 * len(names), width, height_ratios=[3, 2] * len(names))
        for number, name in enumerate(names):
            for column, knob in enumerate(knobs):
                sweep = next(s for s in simulation.sweeps if (s.data, s.knob.name) == (name, knob))
                means = figure.add_subplot(grid[2 * number, column])
                gains = figure.add_subplot(grid[2 * number + 1, column], sharex=means)
                _means(means, simulation, sweep)
                _gains(gains, simulation, sweep)
                means.set_title(f"{name}\n{sweep.knob.title}", fontsize=9)
                if column == 0:
                    means.set_ylabel(METRIC)
                    gains.set_ylabel(f"{CHAMPION} minus\nremoval, {METRIC}")
            if noise:
                own = [one for one in simulation.noise if one.data == name]
                last = width - 1
                above = figure.add_subplot(grid[2 * number, last])
                below = figure.add_subplot(grid[2 * number + 1, last], sharex=above)
                _noise(above, own, "distance")
                _noise(below, own, "direction")
                above.set_title("Planted noise taken out\nby CDMD-M (1: all)", fontsize=9)
                above.tick_params(labelbottom=False)
                above.legend(fontsize=7, frameon=False)
                below.set_xlabel(KNOBS["nuisance"].axis, fontsize=8)
        return figure


def _means(axes: Axes, simulation: Simulation, sweep: Sweep) -> None:
    rows = [(CHAMPION, OURS, "o", "-")]
    rows += [(row, *look) for row, look in zip(sweep.knob.parts, OF_ROW, strict=False)]
    for place, (row, colour, marker, line) in enumerate(rows):
        levels = [simulation.level(sweep, point, row, METRIC) for point in sweep.points]
        made = [(level.point.value, level.mean) for level in levels if level.mean is not None]
        _points(
            axes, _beside(sweep, [x for x, _ in made], place), [mean.mean for _, mean in made],
            [(mean.low, mean.high) for _, mean in made], row, (colour, marker, line),
        )  # fmt: skip
    start = simulation.level(sweep, sweep.points[0], CHAMPION, METRIC).mean
    if sweep.knob.oracle and sweep.points[0].value == 0 and start is not None:
        axes.axhline(
            start.mean, color="black", linestyle=(0, (4, 3)), linewidth=0.9, label="oracle"
        )
    _own_value(axes, sweep)
    axes.tick_params(labelbottom=False)
    _legend(axes)


def _gains(axes: Axes, simulation: Simulation, sweep: Sweep) -> None:
    axes.axhline(0, color="black", linewidth=0.9)
    for place, (part, look) in enumerate(zip(sweep.knob.parts, OF_ROW, strict=False)):
        gains = [simulation.gain(sweep, point, part, METRIC) for point in sweep.points]
        made = [(gain.point.value, gain.comparison) for gain in gains if gain is not None]
        _points(
            axes, _beside(sweep, [x for x, _ in made], place), [pair.difference for _, pair in made],
            [(pair.low, pair.high) for _, pair in made], part_of(part), look,
        )  # fmt: skip
    _own_value(axes, sweep)
    axes.set_xlabel(_wrapped(sweep.knob.axis), fontsize=8)


def _noise(axes: Axes, noise: list[Noise], reading: str) -> None:
    """One reading of what was taken out: distance or direction."""
    axes.axhline(0, color="black", linewidth=0.9)
    for mode, look in OF_MODE.items():
        made = [
            (one.point.value, share)
            for one in noise
            if one.mode == mode
            and one.removed is not None
            and (share := _share(one.removed, reading)) is not None
        ]
        _points(
            axes, [x for x, _ in made], [share.mean for _, share in made],
            [(share.low, share.high) for _, share in made], mode, look,
        )  # fmt: skip
    axes.set_ylabel(f"share, by {reading}")
    axes.set_xlim(left=0)
    axes.set_xticks([0, *dict.fromkeys(one.point.value for one in noise if one.point.value)])


def _share(removed: Removed, reading: str) -> Share | None:
    return {"distance": removed.distance, "direction": removed.direction}[reading]


def _points(
    axes: Axes,
    x: list[float],
    y: list[float],
    intervals: list[tuple[float, float]],
    label: str,
    look: tuple[str, str, str],
) -> None:
    """A line with markers and intervals; a label without points where there are none."""
    colour, marker, line = look
    below = [value - low for value, (low, _) in zip(y, intervals, strict=True)]
    above = [high - value for value, (_, high) in zip(y, intervals, strict=True)]
    axes.errorbar(x, y, yerr=[below, above] if y else None, color=colour, marker=marker,
                  linestyle=line, markersize=4, linewidth=1.2, capsize=2, label=label)  # fmt: skip


def _legend(axes: Axes) -> None:
    """Between the panel and the one below it, which has the same colours."""
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3,
                columnspacing=1.0, handlelength=2.2)  # fmt: skip


def _beside(sweep: Sweep, x: list[float], place: int) -> list[float]:
    """Values moved aside a little, another row another way."""
    reach = sweep.points[-1].value - sweep.points[0].value
    return [value + ASIDE * reach * place for value in x]


def _own_value(axes: Axes, sweep: Sweep) -> None:
    """A dotted line at the data set's own value."""
    if any(point.value == sweep.default for point in sweep.points):
        axes.axvline(sweep.default, color=OTHERS, linestyle=":", linewidth=0.9, zorder=0)
    axes.set_xticks([point.value for point in sweep.points])


def _wrapped(text: str) -> str:
    head, bracket, tail = text.partition(" (")
    return f"{head}\n({tail}" if bracket else head
