"""The page of Table 3: cold users, M3BSR's lead among them, the claim, the strata of history length."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.cold_start import (
    CLAIM,
    COLD,
    COLD_METRICS,
    FEW_USERS,
    RIVALS,
    STRATA_METRIC,
    Cold,
    ColdClaim,
    ColdStart,
    Lead,
    Point,
)
from harness.report.content import CHAMPION, Row, TableCell
from harness.report.document import EMPTY, Band, Document, Entry, Grid, Line, Notes, Picture, Span
from harness.report.document import entry as plain_entry
from harness.report.layout import bands, document, p_value
from harness.zoo import Group

COUNTED = (
    "Counted: every recorded click and favor of the user strictly before the test favor in the order of "
    "time, those on the test item included, before any reading of the protocol drops one and before the "
    "cut to the last 50. What a method reads may be less."
)
UNTRAINED = (
    "Every number is of Table 2's runs (the same records), whose ranks are read again for these users "
    "alone: no method was trained or tuned for cold users."
)
WHOSE = (
    "The caption of the paper's Table 3 says Rec-Tmal, its section 5.5 says Kuaishou. Which one its four rows "
    "are of is not known, so they stand beside both, and each data set is judged by itself."
)
BANDS = (
    "The paper does not say how many of its users are cold: the bands of the verdicts take our share of cold "
    "users, of the users that its Table 1 prints."
)
JUDGED = (
    f"A judgement rests on {CHAMPION} against each of {', '.join(RIVALS)} in {' and '.join(COLD_METRICS)}: "
    "supported when the largest of the one-sided p values is below 0.05; contradicted when the smallest in "
    "the other direction is, times their number; undecided else. Data sets that are judged are one Holm "
    "family."
)


def cold_start_page(made: ColdStart) -> Document:
    """The whole page."""
    page = document(made.table)
    main, *middle, rests_on = page.parts
    strata = _strata(made)
    parts = [
        main,
        Notes("Who is cold", (*map(_who, made.cold), COUNTED, UNTRAINED)),
        _intervals(made),
        *middle,
        *_leads(made),
        Notes("The paper's claim", _claims(made)),
        Picture("By length of history", "strata", _caption(made)),
        strata,
        rests_on,
    ]
    return Document(page.opening, page.title, tuple(parts), (*page.appendix, *_everything(made)))


def _who(cold: Cold) -> str:
    """`demo_kuaishou: 80 of 400 test users (20.0 %) have at most 10 interactions`, and what of it."""
    start = (
        f"{cold.dataset}: {cold.users:,} of {cold.everyone:,} test users ({100 * cold.share:.1f} %)"
    )
    ends = f"histories have {cold.shortest:,} to {cold.longest:,} interactions"
    said = f"{start} have at most {COLD} interactions before the test favor; {ends}."
    if cold.users < 2:
        return f"{said} Nothing can be said of cold users here."
    if cold.users < FEW_USERS:
        return f"{said} So few users carry little: read the intervals, not the means."
    if cold.users == cold.everyone:
        return f"{said} Everyone is cold: this is Table 2 once more."
    return said


def _intervals(made: ColdStart) -> Grid:
    """Every mean's interval."""
    table = made.table
    rows = [
        row for row in (*table.rows, *table.references) if any(c.low is not None for c in row.cells)
    ]
    lines = tuple(Line(row.printed, tuple(map(_interval, row.cells))) for row in rows)
    kinds = {cell.power.tests for row in table.rows for cell in row.cells if cell.mean is not None}
    what = (
        "for new runs and new users" if kinds == {True}
        else "for new runs and new users; where a row has one run, for this trained model and new users"
    )  # fmt: skip
    below = (f"95 % intervals of the means, {what}. Few cold users make them wide.",)
    return Grid("Intervals of the means", "Method", bands(table), lines, below)


def _interval(cell: TableCell) -> Entry:
    if cell.low is None or cell.high is None:
        return EMPTY
    return (Span(f"[{cell.low:.4f}, {cell.high:.4f}]", runs=cell.runs),)


def _leads(made: ColdStart) -> list[Grid | Notes]:
    """Whether the champion leads by more among cold users."""
    title = f"{CHAMPION}'s lead among cold users minus its lead among the others"
    if not made.leads:
        one_sided = [
            f"{one.dataset}: {one.users:,} cold users, {one.everyone - one.users:,} others; two of each are needed."
            for one in made.cold
            if min(one.users, one.everyone - one.users) < 2
        ]  # fmt: skip
        return [Notes(title, tuple(one_sided))] if one_sided else []
    rows = [row for row in made.table.rows if any(lead.other == row.label for lead in made.leads)]
    lines = tuple(_lead_line(row, made.leads) for row in rows)
    tested = any(lead.gap.p is not None for lead in made.leads)
    below = [
        (
            f"({CHAMPION} minus the method of the row among users with at most {COLD} interactions) minus the "
            "same among the others, ± half of the 95 % interval. Above 0: the lead is larger among cold users."
        )
    ]
    below.append(
        "The two groups share the runs, so what moves a run as a whole cancels. p: Holm's, over the rows of the "
        "column. Bold: below 0.05, with three runs or more."
        if tested
        else "One run a method: no p, and the interval is for these trained models and new users."
    )
    return [Grid(title, "Method", bands(made.table), lines, tuple(below))]


def _lead_line(row: Row, leads: Sequence[Lead]) -> Line:
    found = {(lead.dataset, lead.metric): lead for lead in leads if lead.other == row.label}
    return Line(
        row.printed, tuple(_gap(found.get((cell.dataset, cell.metric))) for cell in row.cells)
    )


def _gap(lead: Lead | None) -> Entry:
    """`+0.0312 ±.0210 p .012`."""
    if lead is None:
        return EMPTY
    tail = " ±" + f"{(lead.gap.high - lead.gap.low) / 2:.4f}".removeprefix("0")
    if lead.p_holm is not None:
        p = p_value(lead.p_holm)
        tail += f" p {p}"
    return (Span(f"{lead.gap.difference:+.4f}", bold=lead.marked, runs=lead.runs), Span(tail))


def _claims(made: ColdStart) -> tuple[str, ...]:
    table = made.table
    lines = [f"The paper: {CLAIM}.", *map(_claim, made.claims), WHOSE]
    if any(table.published.comparable(data) for data in table.data):
        lines.append(BANDS)
    return (*lines, JUDGED)


def _claim(one: ColdClaim) -> str:
    if one.claim is None or one.why:
        return f"On {one.dataset}: {one.verdict.value} ({one.why})."
    claim = one.claim
    return (
        f"On {one.dataset}: {one.verdict.value} ({claim.parts} comparisons; corrected p for it "
        f"{p_value(claim.support_holm) or 'none'}, against it {p_value(claim.reverse_holm) or 'none'})."
    )


# ------------------------------------------------------------------------------------- the strata


def _caption(made: ColdStart) -> str:
    named = ", ".join(made.named)
    grey = any(p.method not in made.named and p.group is not Group.reference for p in made.points)
    also = " Thin grey: the other methods of Table 2 with stored runs." if grey else ""
    few = (
        f" Open markers: fewer than {FEW_USERS} users, whose intervals may leave the panel."
        if any(s.few for s in made.strata)
        else ""
    )
    return (
        f"{STRATA_METRIC} by the number of recorded interactions before the test favor, a panel a data set; "
        f"shaded: cold users, at most {COLD}. {named}: mean over runs with 95 % intervals (new runs and new "
        f"users; one run: this trained model), drawn side by side.{also}{few} Strata differ in their users "
        "and test items, so a line's rise or fall is not what more history does to the same user; methods "
        "within a stratum are compared on the same users."
    )


def _strata(made: ColdStart) -> Grid:
    """The named methods' numbers."""
    below = (
        (
            f"{STRATA_METRIC}, mean over runs, ± half of the 95 % interval. Strata without users are left out"
            f"; (few): fewer than {FEW_USERS} users, whose interval is not to be trusted; a lone user has none. "
            "Nothing is tested here. All methods: table.md, table.csv."
        ),
    )
    labels = [label for label in made.named if any(p.method == label for p in made.points)]
    return _grid(made, f"{STRATA_METRIC} by length of history", labels, below)


def _everything(made: ColdStart) -> list[Grid]:
    """Methods and reference rows that the page's grid leaves out."""
    rest = list(dict.fromkeys(p.method for p in made.points if p.method not in made.named))
    if not rest:
        return []
    title = f"{STRATA_METRIC} by length of history, the other methods with stored runs and reference rows"
    return [_grid(made, title, rest, ())]


def _grid(made: ColdStart, title: str, labels: Sequence[str], below: tuple[str, ...]) -> Grid:
    shorts = {band.name: band.short for band in bands(made.table)}
    names = [one.dataset for one in made.cold if made.of(one.dataset)]
    users = tuple(
        plain_entry(f"{s.users:,}" + " (few)" * s.few) for name in names for s in made.of(name)
    )
    lines = [Line("test users", users)]
    for label in labels:
        entries: list[Entry] = []
        for name in names:
            found = {point.stratum: point for point in made.line(label, name)}
            entries += [_point(found.get(stratum)) for stratum in made.of(name)]
        lines.append(Line(label, tuple(entries)))
    heads = tuple(Band(name, shorts[name], tuple(s.label for s in made.of(name))) for name in names)
    return Grid(title, "Method", heads, tuple(lines), below)


def _point(point: Point | None) -> Entry:
    """`0.3123 ±.0210`."""
    if point is None:
        return EMPTY
    mean = Span(f"{point.mean:.4f}", runs=point.runs)
    if point.low is None or point.high is None:
        return (mean,)
    half = f"{(point.high - point.low) / 2:.4f}".removeprefix("0")
    return (mean, Span(f" ±{half}"))
