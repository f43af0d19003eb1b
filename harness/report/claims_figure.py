"""The figure of the claims: of every sentence its worst part, with its interval and the judgement."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.claims import Claims, Judged, Word
from harness.report.claims_page import part_name
from harness.report.content import CHAMPION
from harness.report.figures import COLOURS, OTHERS, OURS, canvas
from harness.stats.power import CHANCE

LOOKS = {
    Word.SUPPORTED: (COLOURS[2], "o", COLOURS[2]),
    Word.CONTRADICTED: (COLOURS[3], "X", COLOURS[3]),
    Word.UNDECIDED: (COLOURS[0], "D", "white"),
    Word.NOT_TESTABLE: (OTHERS, "s", "white"),
}
"""Colour, marker and filling of a judgement; told apart by the marker in grey print."""
ROOM = 0.35
"""Share of the drawn range beyond the outermost interval, for the words at the right."""


def claims_figure(claims: Claims) -> Figure:
    """One line a sentence, the paper's first on top; those without a comparison have their word alone."""
    judged = list(claims.judged)
    with canvas(9.0, 1.3 + 0.42 * len(judged)) as figure:
        axes = figure.add_subplot()
        for place, one in enumerate(judged):
            _draw(axes, place, one)
        axes.axvline(0, color="black", linewidth=0.9)
        axes.set_ylim(len(judged) - 0.4, -0.6)
        axes.set_yticks(range(len(judged)), [_label(claims, one) for one in judged], fontsize=8)
        for one, label in zip(judged, axes.get_yticklabels(), strict=True):
            if one.worst is not None and CHAMPION in {one.worst.better, one.worst.than}:
                label.set_color(OURS)
        axes.grid(visible=False, axis="y")
        low, high = _range(judged)
        axes.set_xlim(low, high)
        for place, one in enumerate(judged):
            axes.text(
                high, place, f"{one.word.value} ", ha="right", va="center", fontsize=8,
                color=LOOKS[one.word][0] if one.word is not Word.NOT_TESTABLE else "#555555",
            )  # fmt: skip
        axes.set_xlabel(
            "difference of the worst part (HR or NDCG; 1 is all), 95 % interval; right of 0: as the sentence says",
            fontsize=8,
        )
        axes.set_title("The paper's sentences on " + ", ".join(d.name for d in claims.table.data),
                       fontsize=9, loc="left")  # fmt: skip
        axes.legend(handles=_handles(judged), fontsize=7, frameon=False, loc="upper center",
                    bbox_to_anchor=(0.5, -0.06 - 0.6 / max(len(judged), 1)), ncols=5)  # fmt: skip
        return figure


def _label(claims: Claims, one: Judged) -> str:
    """Two lines: the sentence, and its worst part."""
    worst = one.worst
    below = part_name(claims, worst) if worst is not None else "no comparison"
    return f"{one.name}: {one.hypothesis.short}\n{below}"


def _draw(axes: Axes, place: int, one: Judged) -> None:
    worst = one.worst
    if worst is None:
        return
    colour, marker, filling = LOOKS[one.word]
    pair = worst.comparison
    axes.plot([pair.low, pair.high], [place, place], color=colour, linewidth=1.4)
    axes.plot([pair.difference], [place], color=colour, marker=marker, markersize=7,
              markerfacecolor=filling, linestyle="none")  # fmt: skip
    if one.detectable is not None:
        axes.plot([one.detectable], [place], color=OTHERS, marker="|", markersize=11,
                  markeredgewidth=1.6, linestyle="none")  # fmt: skip


def _range(judged: list[Judged]) -> tuple[float, float]:
    """What is drawn: every interval; a detectable difference far beyond them is left out."""
    ends = [
        end
        for one in judged
        if one.worst is not None
        for end in (one.worst.comparison.low, one.worst.comparison.high)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    width = (high - low) or 1.0
    return low - 0.05 * width, high + ROOM * width


def _handles(judged: list[Judged]) -> list[Line2D]:
    made = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            markerfacecolor=filling,
            linewidth=1.4,
            label=word.value,
        )
        for word, (colour, marker, filling) in LOOKS.items()
        if any(one.word is word for one in judged)
    ]
    if any(one.detectable is not None for one in judged):
        made.append(Line2D([], [], color=OTHERS, marker="|", linestyle="none", markersize=9,
                           markeredgewidth=1.6, label=f"would be found with {CHANCE}"))  # fmt: skip
    return made
