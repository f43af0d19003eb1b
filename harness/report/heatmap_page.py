"""What stands where on the page of Figure 4, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.report.content import CHAMPION
from harness.report.document import (
    Band,
    Document,
    Entry,
    Grid,
    Line,
    Notes,
    Part,
    Picture,
    Span,
    entry,
)
from harness.report.footers import SHORT, protocol_fingerprint
from harness.report.heatmap import METRIC, STEPS, Heatmaps, Panel, Printed, Spot, Surface, pair
from harness.report.layout import demo_line

TITLE = "Figure 4. Sensitivity of M3BSR to its denoising and contrastive settings"
FIGURE = "heatmaps"
"""Name of the figure's files."""
CAPTION = (
    "HR@10 of M3BSR over two settings at a time, a row of maps a data set, one colour scale a row. Thick "
    "frame: the highest cell; dot: a cell that cannot be told from it; dashed frame: where the paper has "
    "its peak; grey with a dash: no run. The bracket in the colour bar is as long as equal cells spread "
    "by chance, from the spread of runs: differences of colour within it say nothing."
)
MARKS = (
    "Bold: the highest; underlined: cannot be told from it (these and the highest are the plateau, which "
    "holds the true peak in 95 % of maps). ‡: where the paper has its peak. -: no run."
)
UNMARKED = (
    "Bold: the highest, by the mean alone; nothing is known of how far runs differ, so no cell is told "
    "from another. ‡: where the paper has its peak. -: no run."
)
RULE = (
    "The peak is there: supported when that cell is alone in the plateau, contradicted when it is outside, "
    "undecided else; over the data sets contradicted with any, supported with all. A cell without its runs "
    "cannot be ruled out as the peak, so none is supported while there are such cells."
)
NAMED = 4
"""Cells without runs that are named; the rest are counted."""


def heatmap_page(heatmaps: Heatmaps) -> Document:
    """The whole page."""
    parts: list[Part] = [
        Picture("HR@10 over two settings at a time", FIGURE, CAPTION),
        Notes("The paper's peaks", _claims(heatmaps)),
    ]
    parts += [_grid(heatmaps, panel) for panel in heatmaps.panels]
    parts.append(Notes("What each map says", tuple(map(statistics_line, heatmaps.surfaces))))
    printed = _printed_grid(heatmaps)
    if printed is not None:
        parts.append(printed)
    parts.append(Notes("What is moved", _moved(heatmaps)))
    parts.append(Notes("What these numbers rest on", _rests_on(heatmaps)))
    return Document(_opening(heatmaps), TITLE, tuple(parts))


def _opening(heatmaps: Heatmaps) -> str:
    names = [data.name for data in heatmaps.data]
    made_up = [data.name for data in heatmaps.data if data.demo]
    line = demo_line(names, made_up) if made_up else f"Data: {', '.join(names)}."
    if heatmaps.users_limit:
        line += f" Only the first {heatmaps.users_limit} users: this shows that it runs, not where a peak is."
    return line


# --- grids ---


def _bands(heatmaps: Heatmaps, columns: Sequence[str]) -> tuple[Band, ...]:
    shorts = [d.name.removeprefix("demo_").removeprefix("rec_") for d in heatmaps.data]
    clash = len(set(shorts)) < len(shorts)
    return tuple(
        Band(data.name, data.name if clash else short, tuple(columns))
        for data, short in zip(heatmaps.data, shorts, strict=True)
    )


def _grid(heatmaps: Heatmaps, panel: Panel) -> Grid:
    """One panel on every data set: the first setting down, the second across."""
    surfaces = [heatmaps.surface(panel.name, data.name) for data in heatmaps.data]
    columns = [str(value) for value in panel.second.values]
    made = []
    for first in panel.first.values:
        entries = [
            _entry(surface, spot)
            for surface in surfaces
            for spot in surface.spots
            if spot.first == first
        ]
        made.append(Line(str(first), tuple(entries)))
    known = any(surface.statistics for surface in surfaces)
    alike = [surface.data.name for surface in surfaces if _all_alike(surface)]
    below = [
        (
            f"{METRIC}; rows: {panel.first.label}, columns: {panel.second.label} (the paper's Figures "
            f"{panel.figures})."
        ),
        MARKS if known else UNMARKED,
    ]
    if alike:
        below.append(f"{', '.join(alike)}: every cell may be the peak, so none is underlined.")
    below += [line for surface in surfaces for line in _gaps(surface)]
    return Grid(
        panel.title, panel.first.label, _bands(heatmaps, columns), tuple(made), tuple(below)
    )


def _all_alike(surface: Surface) -> bool:
    """Whether no cell is told from the highest."""
    found = surface.statistics
    return found is not None and len(found.plateau) == len(found.means)


def _entry(surface: Surface, spot: Spot) -> Entry:
    """`0.3207‡`, or a dash."""
    tail = "‡" if (spot.first, spot.second) == surface.panel.peak else ""
    if spot.mean is None:
        return entry("-" + tail)
    if not spot.complete:
        tail = f" ({len(spot.runs)} of {surface.per_spot} runs){tail}"
    number = Span(
        f"{spot.mean:.4f}",
        bold=spot.highest,
        underline=spot.plateau and not spot.highest and not _all_alike(surface),
        runs=spot.runs,
    )
    return (number, Span(tail)) if tail else (number,)


def _gaps(surface: Surface) -> list[str]:
    """Cells without their runs, by reason."""
    reasons: dict[str, list[str]] = {}
    for spot in surface.spots:
        for gap in spot.gaps:
            reasons.setdefault(gap.partition(": ")[2] or gap, []).append(spot.name)
    said = []
    for reason, names in reasons.items():
        named = list(dict.fromkeys(names))
        rest = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        said.append(f"{surface.data.name}, {', '.join(named[:NAMED])}{rest}: {reason}.")
    return said


def _printed_grid(heatmaps: Heatmaps) -> Grid | None:
    """The cells that the paper's text names, beside ours."""
    columns = ("paper", "below its peak", "ours", "below ours there")
    made = []
    for panel in heatmaps.panels:
        surfaces = {data.name: heatmaps.surface(panel.name, data.name) for data in heatmaps.data}
        places = dict.fromkeys(
            (cell.first, cell.second) for s in surfaces.values() for cell in s.printed
        )
        if places:
            made.append(Line(panel.title))
        for place in places:
            entries: list[Entry] = []
            for surface in surfaces.values():
                found = [c for c in surface.printed if (c.first, c.second) == place]
                entries += _printed(found[0]) if found else [entry("")] * len(columns)
            made.append(Line(pair(*place), tuple(entries)))
    if not made:
        return None
    below = [
        (
            "Paper: HR@10 as its text prints it. Below its peak: the paper's value at its peak minus this one; "
            "below ours there: our cell at the same place minus this one."
        )
    ]
    if any(panel.name == "modality" for panel in heatmaps.panels):
        below.append(
            "The paper's text on modality denoising (5.4.2) repeats that on behaviour denoising, numbers and "
            "panels included, so both have the same printed cells."
        )
    if any(data.demo for data in heatmaps.data):
        below.append("On demo data the paper's numbers are of other data; no verdict is given.")
    for data in heatmaps.data:
        below += _published_gap([s for s in heatmaps.surfaces if s.data is data])
    return Grid("The paper's printed cells beside ours", "Cell", _bands(heatmaps, columns),
                tuple(made), tuple(below))  # fmt: skip


def _printed(cell: Printed) -> list[Entry]:
    peak = cell.below == 0
    ours = entry("-")
    if cell.spot is not None and cell.spot.mean is not None:
        ours = (Span(f"{cell.spot.mean:.4f}", runs=cell.spot.runs),)
    below = "" if peak or cell.ours_below is None else f"{cell.ours_below:+.4f}"
    return [
        entry(str(cell.published)),
        entry("" if peak else f"{cell.below:+.4f}"),
        ours,
        entry(below),
    ]


def _published_gap(surfaces: Sequence[Surface]) -> list[str]:
    """The paper's widest gap on a data set, beside the spread of equal cells at our spread of runs."""
    gaps = [
        (cell, surface)
        for surface in surfaces
        if surface.run_sd is not None
        for cell in surface.printed
        if cell.below
    ]
    if not gaps:
        return []
    worst, surface = max(gaps, key=lambda gap: gap[0].below)
    equal = len(surface.statistics.means) if surface.statistics else 0
    expected = _one_run_spread(surface)
    start = (
        f"{surface.data.name}: the widest gap that the paper prints is {worst.below:.4f}, from "
        f"{worst.published + worst.below} at its peak to {worst.published} at {pair(worst.first, worst.second)}. "
        f"Runs at one setting differ here by a standard deviation of {surface.run_sd:.4f}, so {equal} equal cells "
        f"of one run each spread {expected:.4f} from lowest to highest by chance"
    )
    if surface.data.demo:
        return [f"{start}. (The paper's data have more users; its runs may differ less.)"]
    if expected >= float(worst.below):
        return [f"{start}: the paper's gap is no more than that."]
    return [f"{start}: the paper's gap is more than that."]


def _one_run_spread(surface: Surface) -> float:
    """Expected range of as many equal cells with one run each."""
    nothing, sd, own = surface.from_nothing, surface.run_sd, surface.cell_sd
    if nothing is None or not sd or not own:
        return 0.0
    return nothing[0] / own * sd


# --- notes ---


def _claims(heatmaps: Heatmaps) -> tuple[str, ...]:
    """The judgement of each panel's peak."""
    said = []
    for panel in heatmaps.panels:
        each = []
        for data in heatmaps.data:
            word, why = heatmaps.surface(panel.name, data.name).claim
            each.append(f"{data.name}: {word.value}" + (f" ({why})" if why else ""))
        said.append(
            f"The paper: {panel.title.lower()} peaks at {panel.first.label} "
            f"{panel.peak[0]} and {panel.second.label} {panel.peak[1]}. On the data here: "
            f"{heatmaps.judgement(panel.name).value}. {'; '.join(each)}."
        )
    return (*said, RULE)


def statistics_line(surface: Surface) -> str:
    """Flat or not, the plateau, and the observed range beside that of equal cells."""
    start = f"{surface.data.name}, {surface.panel.title.lower()}"
    found, highest = surface.statistics, surface.highest
    if found is None:
        best = f"; the highest is {highest.mean:.4f} at {highest.name}" if highest else ""
        return f"{start}: nothing is tested: {surface.why}{best}."
    count = len(found.means)
    f_value = "infinite" if math.isinf(found.F) else f"{found.F:.2f}"
    flat = "not told from flat" if found.flat else "not flat"
    said = [
        (
            f"{start}: {flat} (F = {f_value}, critical {found.F_critical:.2f} at {count - 1} and "
            f"{found.df:.1f} df; D = {found.D:.3g}, so a cell's mean has a standard deviation of "
            f"{math.sqrt(found.D):.4f})."
        )
    ]
    if highest is not None:
        alone = "is alone in the plateau" if len(found.plateau) == 1 else (
            f"is one of {len(found.plateau)} of {count} cells that may be the peak"
        )  # fmt: skip
        said.append(f"The highest cell, {highest.mean:.4f} at {highest.name}, {alone}.")
    nothing = surface.from_nothing
    if nothing is not None and surface.span is not None:
        said.append(
            f"From lowest to highest the cells spread {surface.span:.4f}; {count} equal cells spread "
            f"{nothing[0]:.4f} by chance, and less than {nothing[1]:.4f} in 95 % of maps."
        )
    peak = surface.peak_runs
    if surface.per_spot == 1 and peak is not None:
        said.append(
            f"One run a cell: the spread is that of the {peak.runs} runs at {pair(*surface.panel.peak)} (mean "
            f"{peak.mean:.4f}, standard deviation {math.sqrt(peak.v):.4f}), of which the map shows the first."
        )
    return " ".join(said)


def _moved(heatmaps: Heatmaps) -> tuple[str, ...]:
    """What a panel sets, and where the full model stands."""
    said = [
        (
            "A cell sets the two settings of its map; everything else is as in Table 2's M3BSR (tuned, if this "
            "budget has a tuning). The axes are a guess: the paper's figure prints no numbers, its text a few "
            "cells."
        )
    ]
    if any(panel.printed == STEPS for panel in heatmaps.panels):
        said.append(
            "Each denoising map moves the steps of its own stage alone; the other stage keeps the full model's. "
            "Whether the paper moved one or both it does not say."
        )
    if heatmaps.users_limit:
        said.append("Budget smoke: only the settings that the paper's text names.")
    for surface in heatmaps.surfaces:
        where = f"{surface.panel.title} on {surface.data.name}"
        if surface.full == surface.panel.peak:
            continue
        on_axes = surface.full in surface.panel.places
        said.append(
            f"{where}: Table 2's {CHAMPION} is at {pair(*surface.full)}, "
            + ("another cell of the map." if on_axes else "which is no cell of the map.")
        )
    same = [s for s in heatmaps.surfaces if s.full == s.panel.peak]
    if same:
        names = "; ".join(f"{s.panel.title.lower()} on {s.data.name}" for s in same)
        said.append(
            f"The cell at the paper's peak is Table 2's {CHAMPION}, the same runs: {names}."
        )
    return tuple(said)


def _rests_on(heatmaps: Heatmaps) -> tuple[str, ...]:
    every, peak = heatmaps.per_spot, heatmaps.at_peak
    runs = f"{every} run{'s' * (every > 1)} in every cell"
    if peak != every:
        runs = f"one run a cell, {peak} at the paper's peak of each map"
    said = [
        (
            f"Runs: {runs}. --seeds N gives every cell N; without it budget paper has 5 in every cell, smoke 1, "
            "quick 1 and 3 at the paper's peak."
        )
    ]
    if every == 1 and peak > 1:
        said.append(
            f"The spread of runs from {peak} runs has {peak - 1} degree{'s' * (peak > 2)} of freedom: low "
            "power, and real peaks of some height stay unfound. It is taken to be the same at all settings."
        )
    elif every == 1:
        said.append(
            "One run a cell and no further one at the peak: no cell is told from another. Two runs or more are "
            "needed (--seeds 3)."
        )
    said += [
        f"Data {data.name}: "
        + (f"{heatmaps.users[data.name]:,} test users, " if data.name in heatmaps.users else "")
        + f"sha256 {data.data_sha256[:SHORT]}, candidates (1 + 99 a user, the same for every cell) "
        f"{data.candidates_sha256[:SHORT]}."
        for data in heatmaps.data
    ]
    typed = f"; overrides: {', '.join(heatmaps.overrides)}" if heatmaps.overrides else ""
    said.append(f"Protocol {protocol_fingerprint(heatmaps.protocol)}, budget "
                f"{heatmaps.budget_name or 'not named'}{typed}.")  # fmt: skip
    said += [f"Made with {release}." for release in heatmaps.versions]
    return tuple(said)
