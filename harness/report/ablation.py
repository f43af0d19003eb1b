"""Figure 3 from stored records: the full M3BSR against itself without each of its parts.

The table is one of Table 2's shape (`build_table`) whose rows are the removals; here it is read:
which removals lower a metric, which one most, and what that says of the paper's claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness import stats
from harness.config import Cell
from harness.report.beside import Published
from harness.report.content import (
    CHAMPION,
    Column,
    Comparison,
    Table,
    TableCell,
    columns_in_words,
)
from harness.report.document import Document, Grid, Line, Notes, Part, Picture
from harness.report.export import json_content
from harness.report.footers import power_notes
from harness.report.gather import TableData, gather
from harness.report.layout import against, bands, details, line_of, opening, p_value
from harness.report.tables import build_table
from harness.stats import Judgement, Power
from harness.stats.variance import LEVEL
from harness.store import Record
from harness.zoo import Method

ABLATION_METRICS = ("HR@10", "NDCG@10")
"""The metrics of Figure 3."""
EXPERTS = "w/o MEIE"
"""The removal that lowers both metrics most, the paper says."""
DENOISING = ("w/o CDMD-M", "w/o CDMD-B")
"""The two halves of CDMD."""
FEW = {Power.ONE: "one run", Power.TWO: "two runs"}
"""Too few for a mark or a judgement (protocol, Statistics, few runs)."""
NOT_TESTED = " Nothing is called significant."
MEANING = (
    "Mean over runs ± standard deviation of the runs. Bold: the best row; underlined: the second. †: "
    "better than every other row. The paper prints bars and no numbers, so nothing stands beside ours."
)
FIGURE = "bars"
"""Name of the figure's files."""
CAPTION = (
    "One bar a removal, the full model last (orange); bars start at 0 and carry their mean at the foot. "
    "Whiskers: 95 % interval, {interval}. Dashed line: the full model. *: differs from the full model "
    "(Holm p < 0.05 over the column{few}). A word in the place of a bar: no runs."
)

JUDGED = (
    "Judged together, one Holm family: a half is supported when the largest one-sided p of its "
    "comparisons, corrected, is below 0.05; contradicted when the smallest in the other direction "
    "is, times their number; undecided else. The whole is contradicted with any half."
)


@dataclass(frozen=True)
class Half:
    """One of the two things that the paper claims, and what our runs say of it."""

    text: str
    claim: stats.Claim | None
    """None where comparisons that the claim needs are not there."""
    why: str = ""
    """Why there is no judgement; empty where there is one."""

    @property
    def judgement(self) -> Judgement:
        """Undecided without the comparisons."""
        return self.claim.judgement if self.claim else Judgement.UNDECIDED


@dataclass(frozen=True)
class Ablation:
    """Figure 3 as a table, and in sentences."""

    table: Table
    findings: tuple[str, ...]
    """One a data set and metric."""
    denoising: str
    """Whether CDMD earns its keep."""
    claim: str
    """The paper's words."""
    halves: tuple[Half, ...]

    @property
    def judgement(self) -> Judgement:
        """Of the whole claim: contradicted with any half, supported with all."""
        judged = {half.judgement for half in self.halves}
        if Judgement.CONTRADICTED in judged:
            return Judgement.CONTRADICTED
        return Judgement.SUPPORTED if judged == {Judgement.SUPPORTED} else Judgement.UNDECIDED


def build_ablation(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    datasets: Sequence[TableData],
    rows: Mapping[str, Method],
    *,
    everything: Sequence[str],
    failed: Mapping[str, str] | None = None,
    budget_name: str = "",
    overrides: Sequence[str] = (),
) -> Ablation:
    """Build the table and what it says.

    Args:
        records: Finished runs, each of a wanted cell.
        wanted: Rows x data sets x seeds.
        datasets: The data sets, in order.
        rows: The row of every wanted cell, by key, in the order of printing. Removals are methods
            whose label is the paper's name of the removal.
        everything: Labels of all removals of the paper, whether wanted or not.
        failed: Why a cell has no record, by key.
        budget_name: Printed, like `overrides`.
        overrides: The user's `key=value`.

    Raises:
        InputError: Two records that may not stand in one table.
    """
    kept = tuple(records)
    table = build_table(
        kept, wanted, datasets, failed=failed, target="figure3", budget_name=budget_name,
        overrides=overrides, methods=rows, metrics=ABLATION_METRICS,
    )  # fmt: skip
    found = gather(kept, wanted, datasets, failed or {}, rows)
    columns = {
        (data.name, metric): stats.column(
            {
                runs.method.label: stats.moments(runs.scores(metric))
                for runs in found.methods(data.name)
            }
        )
        for data in datasets
        for metric in ABLATION_METRICS
    }
    return Ablation(
        table=table,
        findings=tuple(_finding(table, place, column) for place, column in columns.items()),
        denoising=_denoising(table, columns),
        claim=str(Published.read().paper.content["figure3"]["claim"]),
        halves=_halves(columns, everything),
    )


def _cells(table: Table, dataset: str, metric: str) -> dict[str, TableCell]:
    """The cells of a column, by row."""
    return {
        row.label: cell
        for row in table.rows
        for cell in row.cells
        if (cell.dataset, cell.metric) == (dataset, metric)
    }


def _finding(table: Table, place: tuple[str, str], column: stats.Column) -> str:
    """A data set and metric: which removals lower it, which do not, which one most."""
    where = " ".join(place)
    cells = _cells(table, *place)
    pairs = {label: cell.comparison for label, cell in cells.items() if cell.comparison}
    if not pairs:
        return f"{where}: {CHAMPION} and a removal with runs are both needed; nothing is said."
    groups: dict[str, list[str]] = {}
    for label, pair in pairs.items():
        few = _few(column, label)
        groups.setdefault(_direction(pair, few), []).append(_change(label, pair))
    said = "; ".join(f"{what}: {', '.join(who)}" for what, who in groups.items())
    untested = "" if any(_few(column, label) is None for label in pairs) else NOT_TESTED
    missing = [label for label in cells if label != CHAMPION and label not in pairs]
    gaps = f" No runs: {', '.join(missing)}." if missing else ""
    return f"{where}: {said}.{untested}{_most(pairs, column)}{gaps}"


def _few(column: stats.Column, label: str) -> str | None:
    """`one run` where a removal or the full model has too few to call anything significant."""
    return FEW.get(column.compare(CHAMPION, label).power)


def _direction(pair: Comparison, few: str | None) -> str:
    """What a removal does to the metric."""
    if few:
        return f"{'lower' if pair.difference > 0 else 'not lower'}, from {few} only"
    if not pair.marked:
        return "no significant change"
    return "significantly lower" if pair.difference > 0 else "significantly HIGHER"


def _change(label: str, pair: Comparison) -> str:
    """`w/o MEIE (-0.0312, Holm p 0.012)`: the removal minus the full model."""
    p = "" if pair.p_holm is None else f", Holm p {p_value(pair.p_holm)}"
    return f"{label} ({-pair.difference:+.4f}{p})"


def _most(pairs: Mapping[str, Comparison], column: stats.Column) -> str:
    """Which removal hurts most; "more than every other" needs p < 0.05 against each, uncorrected."""
    lowest = max(pairs, key=lambda label: pairs[label].difference)
    if pairs[lowest].difference <= 0:
        return " No removal lowers the mean."
    start = f" {lowest} lowers it most"
    others = {label: column.compare(label, lowest) for label in pairs if label != lowest}
    if not others or any(pair.power in FEW for pair in others.values()):
        return f"{start}."
    alike = [label for label, pair in others.items() if pair.p is None or pair.p >= LEVEL]
    if alike:
        return f"{start}, but not significantly more than {', '.join(alike)}."
    return f"{start}, significantly more than every other removal."


def _denoising(table: Table, columns: Mapping[tuple[str, str], stats.Column]) -> str:
    """One sentence on CDMD: it earns its keep where both halves' removals lose in every column."""
    start = "Whether CDMD earns its keep here cannot be said"
    pairs: dict[str, list[tuple[Column, Comparison]]] = {label: [] for label in DENOISING}
    few: list[str] = []
    for column in table.columns:
        place = (column.dataset, column.metric)
        cells = _cells(table, *place)
        for label in DENOISING:
            if label in cells and (comparison := cells[label].comparison) is not None:
                pairs[label].append((column, comparison))
                few += filter(None, [_few(columns[place], label)])
    total = len(table.columns)
    missing = [label for label, group in pairs.items() if len(group) < total]
    if missing:
        return f"{start}: no runs to compare of {', '.join(missing)} in some or all columns."

    def those(sign: int, *, marked: bool) -> dict[str, list[Column]]:
        return {
            label: [
                column
                for column, pair in group
                if sign * pair.difference > 0 and (pair.marked or not marked)
            ]
            for label, group in pairs.items()
        }

    def count(won: Mapping[str, list[Column]]) -> str:
        return " and ".join(f"{label} in {len(group)}" for label, group in won.items())

    if few:
        means = count(those(1, marked=False))
        return (
            f"{start} from {few[0]} a row; by the means alone {CHAMPION} is above {means} of "
            f"{total} columns."
        )
    won, lost = those(1, marked=True), those(-1, marked=True)
    if all(len(group) == total for group in won.values()):
        return (
            f"CDMD earns its keep here: {CHAMPION} significantly beats {' and '.join(DENOISING)} in "
            f"all {total} columns."
        )
    reverse = "".join(
        f" {label} significantly beats {CHAMPION} in {columns_in_words(group, total)}."
        for label, group in lost.items()
        if group
    )
    return (
        f"CDMD does not earn its keep here: {CHAMPION} significantly beats {count(won)} of {total} "
        f"columns.{reverse}"
    )


def _halves(
    columns: Mapping[tuple[str, str], stats.Column], everything: Sequence[str]
) -> tuple[Half, ...]:
    """The two halves of the paper's claim, one Holm family (protocol, claims)."""
    texts = {
        "every removal lowers every metric here": [
            (CHAMPION, removal) for removal in everything
        ],
        f"{EXPERTS} is below every other removal here": [
            (removal, EXPERTS) for removal in everything if removal != EXPERTS
        ],
    }  # fmt: skip
    parts: dict[str, list[stats.Comparison]] = {}
    absent: dict[str, list[str]] = {}
    for text, pairs in texts.items():
        for (dataset, _), column in columns.items():
            for a, b in pairs:
                lacking = [f"{name} on {dataset}" for name in (a, b) if name not in column.methods]
                if lacking:
                    absent.setdefault(text, []).extend(lacking)
                else:
                    parts.setdefault(text, []).append(column.compare(a, b))
    judged = stats.claims({text: parts[text] for text in texts if text not in absent})
    halves = []
    for text in texts:
        if text in absent:
            names = ", ".join(dict.fromkeys(absent[text]))
            halves.append(Half(text, None, f"no runs of {names}"))
        else:
            claim = judged[text]
            halves.append(
                Half(text, claim, FEW.get(claim.power, "") and f"{FEW[claim.power]} a row")
            )
    return tuple(halves)


def claim_lines(ablation: Ablation) -> tuple[str, ...]:
    """The judgement of the paper's claim, whole and by halves."""
    return (
        f"The paper: {ablation.claim}. On the data here: {ablation.judgement.value}.",
        *map(_half_line, ablation.halves),
        JUDGED,
    )


def _half_line(half: Half) -> str:
    if half.claim is None or half.why:
        return f"{half.text}: {half.judgement.value} ({half.why})."
    claim = half.claim
    return (
        f"{half.text}: {claim.judgement.value} ({claim.parts} comparisons; corrected p for it "
        f"{p_value(claim.support_holm)}, against it {p_value(claim.reverse_holm)})."
    )


def ablation_page(ablation: Ablation) -> Document:
    """The whole page."""
    table = ablation.table
    notes: list[str] = []
    lines: tuple[Line, ...] = tuple(line_of(row, table, notes) for row in table.rows)
    below = [MEANING, *power_notes(table.columns)]
    below += [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    parts: list[Part] = [
        Picture("HR@10 and NDCG@10 without each part", FIGURE, _caption(table)),
        Grid("Means", "Row", bands(table), lines, tuple(below)),
        Notes("What each removal does", (*ablation.findings, ablation.denoising)),
        Notes("The paper's claim", claim_lines(ablation)),
    ]
    appendix: list[Grid] = []
    if any(cell.comparison for row in table.rows for cell in row.cells):
        parts.insert(2, replace(against(table), title=f"{CHAMPION} minus each row", corner="Row"))
        appendix.append(replace(details(table), corner="Row"))
    parts.append(Notes("What these numbers rest on", table.notes))
    return Document(opening(table), table.title, tuple(parts), tuple(appendix))


def _caption(table: Table) -> str:
    """What the bars show, by what the runs allow."""
    powers = {column.power for column in table.columns if column.methods}
    interval = "for new runs and new users"
    if Power.ONE in powers:
        interval = "for these trained models and new users where a row has one run"
        interval += "" if powers == {Power.ONE} else ", else for new runs and new users"
    few = "" if powers and all(power.marks for power in powers) else "; never below three runs"
    return CAPTION.format(interval=interval, few=few)


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """Table 2's schema, and what is said: `findings`, `denoising`, `claim`."""
    return {
        **json_content(ablation.table),
        "findings": list(ablation.findings),
        "denoising": ablation.denoising,
        "claim": {
            "text": ablation.claim,
            "judgement": ablation.judgement.value,
            "halves": [
                {
                    "text": half.text,
                    "judgement": half.judgement.value,
                    "comparisons": half.claim.parts if half.claim else None,
                    "support_p": half.claim.support_p if half.claim else None,
                    "support_p_holm": half.claim.support_holm if half.claim else None,
                    "reverse_p": half.claim.reverse_p if half.claim else None,
                    "reverse_p_holm": half.claim.reverse_holm if half.claim else None,
                    "why": half.why,
                }
                for half in ablation.halves
            ],
        },
    }
