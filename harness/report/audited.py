"""The audit of the paper's printed numbers as a document of the report."""

from __future__ import annotations

from collections.abc import Sequence

from harness.audit.bounds import CANDIDATES, Verdict, decimals
from harness.audit.published import DEFAULT, PRINTED_NAMES
from harness.audit.read import read
from harness.audit.show import Audit, findings, meaning
from harness.report.document import EMPTY, Band, Document, Entry, Grid, Line, Notes, Span, entry

JUDGED = ("tightest bound", "value", "allowed", "margin", "repair", "verdict")


def audit_page() -> Document:
    """Every printed row with the bound that it breaks by most, and what that means."""
    audit = Audit.of(read(DEFAULT), CANDIDATES)
    parts: list[Grid | Notes] = [Notes("What was found", tuple(findings(audit)))]
    parts += [
        _grid(table.name, verdicts)
        for table, verdicts in zip(audit.document.tables, audit.verdicts, strict=True)
    ]
    if audit.document.sizes:
        parts.append(_sums(audit))
    parts.append(Notes("What it means", tuple(meaning(audit))))
    opening = "Published numbers, judged by arithmetic alone: no data, no model and no run of ours enters."
    return Document(opening, "Audit of the paper's printed numbers", tuple(parts))


def _grid(name: str, verdicts: Sequence[Verdict]) -> Grid:
    """A printed table with its verdicts, data set by data set."""
    metrics = tuple(dict.fromkeys(metric for v in verdicts for metric in v.row.values))
    lines: list[Line] = []
    for dataset in dict.fromkeys(verdict.row.dataset for verdict in verdicts):
        if dataset:
            lines.append(Line(PRINTED_NAMES.get(dataset, dataset)))
        for verdict in (v for v in verdicts if v.row.dataset == dataset):
            printed = tuple(_printed(verdict, metric) for metric in metrics)
            lines.append(Line(verdict.row.label, (*printed, *map(entry, _judged(verdict)))))
    return Grid(
        f"{name} of the paper",
        "Row",
        (Band("as printed", "printed", metrics), Band("judged", "judged", JUDGED)),
        tuple(lines),
        (
            (
                "Struck through: a number of a broken bound. Margin: the distance to the nearer end of what "
                "is allowed, negative outside. Repair: units of the last digit by which the numbers of the "
                "row have to move for some ranking to have them; rounding explains 0.5."
            ),
        ),
    )


def _printed(verdict: Verdict, metric: str) -> Entry:
    value = verdict.row.values.get(metric)
    return EMPTY if value is None else (Span(f"{value:f}", struck=metric in verdict.struck),)


def _judged(verdict: Verdict) -> tuple[str, ...]:
    """The bound missed by most, or met most narrowly."""
    digits = min(9, max((decimals(unit) for unit in verdict.units.values()), default=4))
    word = "impossible" if verdict.impossible else "possible"
    bound = verdict.worst
    if bound is None:
        return ("", "", "", "", f"{verdict.repair:.2f}", word)
    high = "..." if bound.high is None else f"{bound.high:.{digits}f}"
    return (
        bound.expression,
        f"{bound.value:.{digits}f}",
        f"{bound.low:.{digits}f} to {high}",
        f"{bound.margin:+.{digits}f}",
        f"{verdict.repair:.2f}",
        word,
    )


def _sums(audit: Audit) -> Grid:
    """Whether the averages and the counts of Table 1 agree."""
    lines = tuple(
        Line(
            PRINTED_NAMES.get(name, name),
            tuple(
                map(
                    entry,
                    (
                        f"{size.avg_clicks} + {size.avg_favors} = {size.summed}",
                        f"{size.interactions:,} / {size.users:,} = {size.divided:.2f}",
                        "adds up" if size.adds_up else "does not add up",
                    ),
                )
            ),
        )
        for name, size in audit.document.sizes.items()
    )
    columns = ("interactions a user: clicks + favors", "interactions / users", "verdict")
    return Grid("Sums of Table 1 of the paper", "Data", (Band("", "", columns),), lines)
