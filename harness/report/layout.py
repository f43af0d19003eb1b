"""What stands where on the page: the table as a document of grids and notes, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from harness.report import beside
from harness.report.content import (
    BEST,
    CHAMPION,
    SECOND,
    Column,
    Comparison,
    Row,
    Table,
    TableCell,
    columns_in_words,
)
from harness.report.document import EMPTY, Band, Document, Entry, Grid, Line, Notes, Span, entry
from harness.report.footers import power_notes
from harness.stats import Power
from harness.zoo import Group

SHORT_VERDICTS = {
    "inside": "inside",
    "inside only as best of 10": "best of 10",
    "outside": "outside",
}
MEANING = (
    "Mean over runs ± standard deviation of the runs. Bold: the best of the methods; underlined: the "
    "second. †: better than every other method, the largest of its p values being below 0.05 for new "
    "runs and new users (no correction is due, as all must pass). Reference rows enter no test."
)


def document(table: Table) -> Document:
    """The whole page of a table."""
    parts: list[Grid | Notes] = [_main(table)]
    appendix: list[Grid] = []
    if any(cell.comparison for row in table.rows for cell in row.cells):
        parts.append(against(table))
        appendix.append(details(table))
    if any(cell.beside for row in table.rows for cell in row.cells):
        parts.append(_beside(table))
    parts.append(Notes("What these numbers rest on", table.notes))
    return Document(opening(table), table.title, tuple(parts), tuple(appendix))


def opening(table: Table) -> str:
    """The first line: which data, and whether the numbers can be the paper's."""
    names = ", ".join(data.name for data in table.data)
    made_up = [data.name for data in table.data if data.demo]
    if made_up:
        line = demo_line([data.name for data in table.data], made_up)
    else:
        line = f"Data: {names}."
        others = [data.name for data in table.data if table.published.column(data) is None]
        if others:
            line += f" The paper has no numbers for {', '.join(others)}."
    if table.users_limit:
        line += f" Only the first {table.users_limit} users: this shows that it runs, not who is better."
    return line


def demo_line(names: Sequence[str], made_up: Sequence[str]) -> str:
    """The first line of a page that has demo data; where there are others too, which is which."""
    what = "small made-up worlds with a planted truth"
    if len(made_up) == len(names):
        return (
            f"DEMO DATA: {', '.join(names)} - {what}. These numbers are not the paper's and say "
            "nothing about its data."
        )
    some = ", ".join(made_up)
    return (
        f"DEMO DATA ({some}): {', '.join(names)} - of these, {some} are {what}, whose numbers are not "
        "the paper's and say nothing about its data."
    )


def bands(table: Table) -> tuple[Band, ...]:
    """The metrics of each data set."""
    shorts = {
        data.name: data.name.removeprefix("demo_").removeprefix("rec_") for data in table.data
    }
    clash = len(set(shorts.values())) < len(shorts)
    metrics = tuple(dict.fromkeys(column.metric for column in table.columns))
    return tuple(Band(name, name if clash else short, metrics) for name, short in shorts.items())


def _main(table: Table) -> Grid:
    """The table itself, with its marks, footnotes and what it says of the champion."""
    notes: list[str] = []
    lines = _grouped(table.rows, lambda row: line_of(row, table, notes))
    if table.references:
        lines.append(Line(Group.reference.value))
        lines += [line_of(row, table, notes) for row in table.references]
    below = [*headline(table), *power_notes(table.columns), *_best_sets(table), MEANING]
    below += [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    built = [f"{row.label}: {row.note}" for row in table.rows if row.reconstruction]
    if built:
        below.append(f"(reconstruction): built without its authors' code. {'; '.join(built)}.")
    about = [f"{row.label}: {row.note}" for row in (*table.rows, *table.references)
             if row.note and not row.reconstruction]  # fmt: skip
    if about:
        below.append(f"About rows: {'; '.join(about)}.")
    if table.left_out:
        below.append(f"Rows of the paper that were not asked for: {', '.join(table.left_out)}.")
    return Grid("Means", "Method", bands(table), tuple(lines), tuple(below))


def _grouped(rows: Iterable[Row], line: Callable[[Row], Line]) -> list[Line]:
    """Lines of rows under the headings of their groups."""
    lines = []
    for group, members in groupby(rows, key=lambda row: row.group):
        lines += [Line(group.value), *map(line, members)]
    return lines


def line_of(row: Row, table: Table, notes: list[str]) -> Line:
    """A row of means; why something is missing goes to the notes, numbered."""
    entries: list[Entry] = []
    numbers: list[int] = []

    def note(text: str) -> int:
        if text not in notes:
            notes.append(text)
        return notes.index(text) + 1

    for data in table.data:
        cells = [cell for cell in row.cells if cell.dataset == data.name]
        gaps = (row.gaps or {}).get(data.name, ())
        reasons = _reasons(gaps)
        if cells[0].mean is not None:
            entries += [_mean(cell) for cell in cells]
            if gaps:
                made = f"{cells[0].seeds} run{'s' * (cells[0].seeds > 1)} only"
                numbers.append(note(f"{row.label} on {data.name}: {made}; {_in_words(reasons)}."))
            continue
        failed = any(reason.startswith("failed") for reason in reasons)
        word = "failed" if failed else next(iter(reasons), "")
        if failed:
            word += f" [{note(f'{row.label} on {data.name}: {_in_words(reasons)}.')}]"
        entries += [entry(word), *[EMPTY] * (len(cells) - 1)]
    if row.degenerate and row.group is not Group.reference:
        numbers.append(note(f"{row.label}: degenerate scores in {', '.join(row.degenerate)}."))
    return Line(
        row.printed + "".join(f" [{number}]" for number in dict.fromkeys(numbers)), tuple(entries)
    )


def _reasons(gaps: Sequence[str]) -> dict[str, list[str]]:
    """`seed 1: not run`, `seed 2: not run` as {`not run`: [`1`, `2`]}; other gaps have no seeds."""
    reasons: dict[str, list[str]] = {}
    for gap in gaps:
        seed, colon, reason = gap.removeprefix("seed ").partition(": ")
        by_seed = gap.startswith("seed ") and colon
        reasons.setdefault(reason if by_seed else gap, []).extend([seed] if by_seed else [])
    return reasons


def _in_words(reasons: dict[str, list[str]]) -> str:
    """`seeds 1, 2: not run`."""
    return "; ".join(
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}: {reason}" if seeds else reason
        for reason, seeds in reasons.items()
    )


def _mean(cell: TableCell) -> Entry:
    """`0.5923±.0071†`."""
    mean = Span(
        f"{cell.mean:.4f}",
        bold=cell.place == BEST,
        underline=cell.place == SECOND,
        runs=cell.runs,
    )
    sd = "" if cell.sd is None else "±" + f"{cell.sd:.4f}".removeprefix("0")
    tail = sd + ("†" if cell.dagger else "")
    return (mean, Span(tail)) if tail else (mean,)


def _best_sets(table: Table) -> list[str]:
    """The methods that may be the best, by column."""
    members: dict[str, list[Column]] = {}
    for column in table.columns:
        if column.best_set is not None:
            members.setdefault(_members(table, column), []).append(column)
    if not members:
        return []
    total = len(table.columns)
    each = "; ".join(
        f"in {columns_in_words(group, total)}: {who}" for who, group in members.items()
    )
    meaning = "methods that may be the best; it holds the true best in 95 % of tables"
    return [f"Best set ({meaning}), {each}."]


def _members(table: Table, column: Column) -> str:
    """A best set in the fewest words."""
    best = column.best_set or ()
    out = [row.label for row in table.rows if row.label not in best and _has(row, column)]
    if not out:
        return f"all {column.methods}"
    return f"all but {', '.join(out)}" if len(out) < len(best) - 1 else ", ".join(best)


def _has(row: Row, column: Column) -> bool:
    return _cell(row, column).mean is not None


def _cell(row: Row, column: Column) -> TableCell:
    return next(c for c in row.cells if (c.dataset, c.metric) == (column.dataset, column.metric))


def headline(table: Table) -> list[str]:
    """Whether the champion wins, column by column, and what the reference rows say to that."""
    said = []
    champion = next((row for row in table.rows if row.label == CHAMPION), None)
    columns = [
        column for column in table.columns
        if champion is not None and _has(champion, column) and column.methods > 1
    ]  # fmt: skip
    if champion is None or not columns:
        said.append(f"{CHAMPION} has no runs beside other methods here: nothing is said of it.")
    else:
        absent = {
            row.label for row in table.rows if any(cell.mean is None for cell in row.cells)
        } | set(table.left_out)
        among = " among the methods with runs" if absent else ""
        said.append(_verdict(champion, columns, len(table.columns), among))
        if absent:
            count = len(table.rows) + len(table.left_out)
            said.append(
                f"{len(absent)} of the paper's {count} rows have no runs in some or all columns, so "
                "nothing is said of them."
            )
    above: dict[str, list[Column]] = {}
    for column in table.columns:
        best = max((c.mean for row in table.rows if (c := _cell(row, column)).mean is not None),
                   default=None)  # fmt: skip
        for row in table.references:
            if best is not None and (_cell(row, column).mean or 0.0) >= best:
                above.setdefault(row.label, []).append(column)
    if above:
        total = len(table.columns)
        where: dict[str, list[str]] = {}
        for label, group in above.items():
            where.setdefault(columns_in_words(group, total), []).append(label)
        each = "; ".join(f"{', '.join(labels)} in {words}" for words, labels in where.items())
        said.append(f"Reference rows at or above the best method: {each}.")
    return said


def _verdict(champion: Row, columns: Sequence[Column], everything: int, among: str) -> str:
    """One sentence on the champion; it wins where it has the dagger, and nowhere else."""

    def those(**wanted: object) -> list[Column]:
        cells = ((column, _cell(champion, column)) for column in columns if column.power.marks)
        return [
            column for column, cell in cells
            if all(getattr(cell, name) == value for name, value in wanted.items())
        ]  # fmt: skip

    led = sum(_cell(champion, column).place == BEST for column in columns)
    highest = f"its mean is the highest in {led} of {everything} columns"
    open_columns = [column for column in columns if not column.power.marks]
    if len(open_columns) == len(columns):
        few = "one run" if any(c.power is Power.ONE for c in columns) else "two runs"
        return f"Whether {CHAMPION} is the best cannot be said from {few} a method; {highest}."
    won, lost = those(dagger=True), those(in_best_set=False)
    may = those(dagger=False, in_best_set=True)
    if len(won) == everything:
        return f"{CHAMPION} wins{among}: it beats every other one in all {everything} columns (†)."
    parts = [highest]
    if won:
        parts.append(f"it beats every other method (†) in {columns_in_words(won, everything)}")
    if may:
        parts.append(
            f"it may be the best, but does not beat every other, in {columns_in_words(may, everything)}"
        )
    if lost:
        leaders = " or ".join(dict.fromkeys(str(column.best) for column in lost))
        parts.append(
            f"it is out of the best set in {columns_in_words(lost, everything)}, where {leaders} leads"
        )
    if open_columns:
        parts.append(f"too few runs to say in {columns_in_words(open_columns, everything)}")
    start = "does not win everywhere" if won else "does not win"
    return f"{CHAMPION} {start}: {'. '.join([parts[0], *map(_sentence, parts[1:])])}."


def _sentence(part: str) -> str:
    return part[0].upper() + part[1:]


def against(table: Table) -> Grid:
    """The champion minus each of the others."""
    rows = [row for row in table.rows if any(cell.comparison for cell in row.cells)]
    lines = [
        Line(row.printed, tuple(_difference(cell.comparison) for cell in row.cells)) for row in rows
    ]
    below = [
        f"{CHAMPION} minus the method of the row, ± half of the 95 % interval (new runs and new users)."
    ]
    counts = sorted({column.comparisons for column in table.columns if column.comparisons})
    if counts:
        below.append(
            f"p: Holm's, over the {' or '.join(map(str, counts))} comparisons of the column. Bold: below 0.05, in "
            "the direction of the sign. More in table.md and table.csv: p, p over users alone, p over "
            "runs alone, relative and standardised differences."
        )
    else:
        below = [
            (
                f"{CHAMPION} minus the method of the row, ± half of the 95 % interval (these trained "
                "models, new users). One run a method: no p."
            )
        ]
    return Grid(f"{CHAMPION} against each other method", "Method", bands(table), tuple(lines),
                tuple(below))  # fmt: skip


def _difference(comparison: Comparison | None) -> Entry:
    """`+0.0312 ±.0210 p .012`."""
    if comparison is None:
        return EMPTY
    half = (comparison.high - comparison.low) / 2
    tail = " ±" + f"{half:.4f}".removeprefix("0")
    if comparison.p_holm is not None:
        tail += f" p {p_value(comparison.p_holm)}"
    return (Span(f"{comparison.difference:+.4f}", bold=comparison.marked), Span(tail))


def p_value(value: float | None) -> str:
    """`.012`, `<.001`, or nothing for none: how every page prints a p."""
    if value is None:
        return ""
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


DETAILS = (
    "difference", "95 % interval", "p", "Holm p", "df", "p users", "p runs", "relative %",
    "95 % interval, %", "in sds of users", "users better / equal / worse %", "run beats run %",
)  # fmt: skip


def details(table: Table) -> Grid:
    """Every comparison with every number, a line each."""
    lines = []
    for column in table.columns:
        members = [
            (row.printed, comparison) for row in table.rows
            if (comparison := _cell(row, column).comparison) is not None
        ]  # fmt: skip
        if members:
            lines.append(Line(f"{column.dataset} {column.metric}"))
            lines += [Line(label, _detail(comparison)) for label, comparison in members]
    below = (
        (
            "p users: these trained models, new users. p runs: these users, new runs. In sds of users: "
            "the difference over the standard deviation of the users' differences. Run beats run: chance "
            f"that a run of {CHAMPION} scores higher than a run of the method."
        ),
    )
    return Grid(f"{CHAMPION} minus each other method, in full", "Method", (Band("", "", DETAILS),),
                tuple(lines), below)  # fmt: skip


def _detail(comparison: Comparison) -> tuple[Entry, ...]:
    effect = comparison.effect
    relative = "" if effect.relative is None else f"{100 * effect.relative:+.1f}"
    interval = ""
    if effect.relative_low is not None and effect.relative_high is not None:
        interval = f"[{100 * effect.relative_low:+.1f}, {100 * effect.relative_high:+.1f}]"
    texts = (
        f"{comparison.difference:+.4f}",
        f"[{comparison.low:+.4f}, {comparison.high:+.4f}]",
        p_value(comparison.p),
        p_value(comparison.p_holm),
        f"{comparison.df:.1f}",
        p_value(comparison.p_users),
        p_value(comparison.p_seeds),
        relative,
        interval,
        "" if effect.standardised is None else f"{effect.standardised:+.3f}",
        " / ".join(f"{100 * share:.0f}" for share in (effect.better, effect.equal, effect.worse)),
        "" if effect.beats is None else f"{100 * effect.beats:.0f}",
    )
    return tuple(entry(text) for text in texts)


def _beside(table: Table) -> Grid:
    """The published numbers, ours minus them, and the verdict where the data are the paper's."""
    rows = [row for row in table.rows if any(cell.beside for cell in row.cells)]
    lines = _grouped(rows, lambda row: Line(row.printed, tuple(map(_published, row.cells))))
    impossible, printed = table.published.impossible_rows()
    struck = (
        "Struck through: impossible by arithmetic alone, whatever the model "
        f"({impossible} of the {printed} published rows are; python -m harness.audit gives the bound "
        "each one breaks)."
        if impossible
        else f"None is struck through: by arithmetic alone all {printed} published rows are possible "
        "(python -m harness.audit)."
    )
    below = [f"Published number, then ours minus it. {struck}"]
    compared = [data.name for data in table.data if table.published.comparable(data)]
    others = [data.name for data in table.data if data.name not in compared]
    if compared:
        users = {True: "the same users", False: "other users"}
        how = "; ".join(f"{data.name}: {users[data.published_users]}" for data in table.data
                        if data.name in compared)  # fmt: skip
        below.append(
            "Inside: within the 95 % band of one published run by our runs' spread; best of 10: only "
            f"if the paper printed the best of ten runs; outside: neither. Bands for {how}."
        )
    if others:
        below.append(
            f"{', '.join(others)}: the paper's numbers are of other data, so no verdict is given and "
            "the differences say nothing about the paper."
        )
    below += beside.lines({(c.dataset, c.metric): (c.order, c.against) for c in table.columns})
    return Grid("Beside the paper", "Method", bands(table), tuple(lines), tuple(below))


def _published(cell: TableCell) -> Entry:
    """`~~0.3207~~ +0.0213 outside`."""
    if cell.beside is None:
        return EMPTY
    spans = [Span(f"{cell.beside.published}", struck=not cell.beside.possible)]
    if cell.mean is not None:
        spans.append(Span(f" {cell.mean - float(cell.beside.published):+.4f}"))
    verdict = SHORT_VERDICTS.get(cell.beside.verdict or "")
    if verdict:
        spans.append(Span(f" {verdict}"))
    return tuple(spans)
