"""An audit in words, for a person: aligned tables, a sentence per kind of finding, what it means."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from harness.audit.bounds import (
    ROUNDING,
    SMALLEST_UNIT,
    Bound,
    Law,
    Metric,
    Sizes,
    Verdict,
    decimals,
    judge,
)
from harness.audit.copied import in_words, likenesses
from harness.audit.grid import Table
from harness.audit.published import PRINTED_NAMES
from harness.audit.read import Document

NAMED = 4
"""Rows that a sentence names; the table has them all."""


@dataclass(frozen=True)
class Audit:
    """A document with its verdicts."""

    document: Document
    candidates: int | None
    verdicts: tuple[tuple[Verdict, ...], ...]
    """For each table, for each row."""
    copied: bool = False
    """Rows that look like one another are named too."""

    @classmethod
    def of(cls, document: Document, candidates: int | None, *, copied: bool = False) -> Audit:
        """Judge every table of a document."""
        found = tuple(tuple(judge(table.rows, candidates)) for table in document.tables)
        return cls(document, candidates, found, copied)

    @property
    def all(self) -> tuple[Verdict, ...]:
        """The verdicts of all tables."""
        return tuple(verdict for verdicts in self.verdicts for verdict in verdicts)

    @property
    def wrong_sums(self) -> dict[str, Sizes]:
        """Data sets whose averages and counts disagree."""
        return {name: size for name, size in self.document.sizes.items() if not size.adds_up}

    @property
    def clean(self) -> bool:
        """Nothing impossible was found."""
        return not self.wrong_sums and not any(verdict.impossible for verdict in self.all)


# --- the page --------------------------------------------------------------------------------


def page(audit: Audit, width: int = 110) -> str:
    """Everything that is printed for a person."""
    lines = [f"Audit of {audit.document.source}", ""]
    for table, verdicts in zip(audit.document.tables, audit.verdicts, strict=True):
        lines += [_title(table, verdicts), "", _rows(verdicts), ""]
    if audit.document.sizes:
        lines += ["Table 1", "", _sums(audit.document.sizes), ""]
    for title, points in (("What was found", findings(audit)), ("What it means", meaning(audit))):
        lines.append(title)
        for point in points:
            lines += textwrap.wrap(
                point, width, initial_indent="- ", subsequent_indent="  ",
                break_on_hyphens=False, break_long_words=False,
            )  # fmt: skip
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _title(table: Table, verdicts: Sequence[Verdict]) -> str:
    """A table's name, size and the unit that its numbers were printed in."""
    units = sorted({unit for verdict in verdicts for unit in verdict.units.values()})
    scale = 100 if table.percent else 1
    printed = " or ".join(f"{unit * scale:f}".rstrip("0").rstrip(".") for unit in units)
    percent = ", printed in percent and shown as fractions" if table.percent else ""
    return f"{table.name} ({_counted(len(verdicts))}; unit of the last digit {printed}{percent})"


def _rows(verdicts: Sequence[Verdict]) -> str:
    """One line a row: the bound missed by most (or met most narrowly), and the verdict."""
    names = any(verdict.row.dataset for verdict in verdicts)
    body = []
    for verdict in verdicts:
        bound = verdict.worst
        body.append([
            verdict.row.label,
            *([_dataset(verdict)] if names else []),
            bound.expression if bound else "-",
            _fixed(bound.value, verdict) if bound else "-",
            _range(bound, verdict) if bound else "-",
            f"{bound.margin:+.{_digits(verdict)}f}" if bound else "-",
            f"{verdict.repair:.2f}",
            "impossible" if verdict.impossible else "possible",
        ])  # fmt: skip
    headers = ["row", *(["data"] if names else []), "tightest bound", "value", "allowed", "margin",
               "repair", "verdict"]  # fmt: skip
    align = [
        "left",
        *(["left"] if names else []),
        "left",
        "right",
        "right",
        "right",
        "right",
        "left",
    ]
    return tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _sums(sizes: Mapping[str, Sizes]) -> str:
    body = [
        [
            PRINTED_NAMES.get(name, name),
            f"{size.avg_clicks} + {size.avg_favors} = {size.summed}",
            f"{size.interactions:,} / {size.users:,} = {size.divided:.2f}",
            "adds up" if size.adds_up else "does not add up",
        ]
        for name, size in sizes.items()
    ]
    headers = ["data", "interactions a user: clicks + favors", "interactions / users", "verdict"]
    return tabulate(body, headers, tablefmt="simple", disable_numparse=True)


# --- the sentences ---------------------------------------------------------------------------


def findings(audit: Audit) -> Iterator[str]:
    """One sentence per kind of finding, over all tables."""
    for table, verdicts in zip(audit.document.tables, audit.verdicts, strict=True):
        yield _count(table, verdicts)
    impossible = [verdict for verdict in audit.all if verdict.impossible]
    broken = [
        (verdict, bound) for verdict in impossible for bound in verdict.bounds if bound.broken
    ]
    broken.sort(key=lambda pair: pair[1].margin)
    few = [(v, b) for v, b in broken if b.law is Law.level and b.too_low]
    if few:
        yield _listed(
            "NDCG@K is smaller than HR@K permits: each hit adds at least 1 / log2(K + 1)",
            [f"{_name(v)} prints {_cell(v, b.cells[-1])} where {_cell(v, b.cells[0])} needs at least "
             f"{_fixed(b.low, v)}" for v, b in few])  # fmt: skip
    many = [(v, b) for v, b in broken if b.law is Law.level and b.too_high]
    if many:
        yield _listed(
            "NDCG@K is larger than HR@K: each hit adds at most 1",
            [f"{_name(v)} prints {_cell(v, b.cells[-1])} with {_cell(v, b.cells[0])}"
             for v, b in many])  # fmt: skip
    falls = [(v, b) for v, b in broken if b.law is Law.hits]
    if falls:
        yield _listed(
            "HR falls with a longer list, although no hit can be lost",
            [f"{_name(v)} prints {_cell(v, b.cells[-1])} < {_cell(v, b.cells[0])}" for v, b in falls])  # fmt: skip
    gains = [(v, b) for v, b in broken if b.law in (Law.gain, Law.rise)]
    shrinks = [(v, b) for v, b in gains if b.too_low and b.value < 0]
    if shrinks:
        yield _listed(
            "NDCG falls with a longer list, although every further hit adds to it",
            [f"{_name(v)} prints {' < '.join(_cell(v, n) for n in b.expression.split(' - '))}"
             for v, b in shrinks])  # fmt: skip
    for word, chosen in (
        ("less", [(v, b) for v, b in gains if b.too_low and b.value >= 0]),
        ("more", [(v, b) for v, b in gains if b.too_high]),
    ):
        if chosen:
            yield _gains(word, chosen)
    alone = [v for v in impossible if not any(bound.broken for bound in v.bounds)]
    if alone:
        yield _listed("No bound is broken alone, but no ranking gives all numbers of the row at once",
                      [f"{_name(v)}, repair {v.repair:.2f} units" for v in alone])  # fmt: skip
    cut = [v for v in impossible if v.repair <= 2 * ROUNDING]
    if cut:
        yield _listed("A repair of at most one unit: digits that were cut off, not rounded, would do",
                      [f"{_name(v)}, {v.repair:.2f} units" for v in cut])  # fmt: skip
    yield from _warnings(audit)
    if audit.copied:
        yield from _copied(audit)
    for name, size in audit.wrong_sums.items():
        yield (
            f"Table 1, {PRINTED_NAMES.get(name, name)}: impossible if every interaction is a click or "
            f"a favor: {size.avg_clicks} + {size.avg_favors} = {size.summed} a user, but "
            f"{size.interactions:,} / {size.users:,} = {size.divided:.2f}."
        )
    if audit.document.sizes and not audit.wrong_sums:
        yield "Table 1: all sums add up."
    for table in audit.document.tables:
        if table.percent:
            yield _percent(table)
        if table.notes:
            rest = f"; and {len(table.notes) - NAMED} more" if len(table.notes) > NAMED else ""
            yield f"{table.name}: left out: {'; '.join(table.notes[:NAMED])}{rest}."
    longest = -SMALLEST_UNIT.adjusted()
    numbers = (value for verdict in audit.all for value in verdict.row.values.values())
    if any(decimals(value) > longest for value in numbers):
        yield f"Numbers with more than {longest} decimals were judged as printed with {longest}."


def _percent(table: Table) -> str:
    """Why a table was read as percent; a doubt where most of its numbers do not ask for it."""
    total = sum(len(row.values) for row in table.rows)
    if 2 * table.above_one >= total or table.above_one == 0:
        return f"{table.name}: numbers above 1 or with %, so all were read as percent (--scale)."
    return (
        f"{table.name}: all numbers were read as percent, as {table.above_one} of {total} are above 1 or "
        "have a %; if those are slips in a table of fractions, use --scale fraction."
    )


def _count(table: Table, verdicts: Sequence[Verdict]) -> str:
    """How many rows of a table are impossible, and by how much; which are not."""
    repairs = sorted(verdict.repair for verdict in verdicts if verdict.impossible)
    if not repairs:
        every = f"all {len(verdicts)} rows are" if len(verdicts) > 1 else "the row is"
        return f"{table.name}: {every} possible."
    size = f"{repairs[0]:.1f} units of the last digit"
    if len(repairs) > 1:
        size = (
            f"{repairs[0]:.1f} to {repairs[-1]:.1f} units of the last digit, "
            f"median {statistics.median(repairs):.1f}"
        )
    text = (
        f"{table.name}: {len(repairs)} of {_counted(len(verdicts))} {_are(len(repairs))} impossible: "
        f"no ranking has these numbers, rounded. Smallest repair {size} (rounding explains 0.5)."
    )
    fine = [f"{_name(v)} ({v.repair:.2f})" for v in verdicts if not v.impossible]
    return f"{text} Possible: {_some(fine)}." if fine else text


def _gains(word: str, chosen: Sequence[tuple[Verdict, Bound]]) -> str:
    """Rows whose NDCG grows less, or more, than their further hits permit."""
    verdict, bound = chosen[0]
    K, L = sorted({Metric.of(name).cutoff for name in bound.cells})
    limit = f"at least 1 / log2({L} + 1)" if word == "less" else f"at most 1 / log2({K} + 2)"
    rows = len({id(v) for v, _ in chosen})
    return (
        f"NDCG grows {word} with the longer list than the growth of HR permits, in {_counted(rows)}: a hit at "
        f"ranks {K + 1} to {L} adds {limit}. By most: {_name(verdict)}, {bound.expression} = "
        f"{_fixed(bound.value, verdict)}, allowed {_range(bound, verdict)}."
    )


def _warnings(audit: Audit) -> Iterator[str]:
    """Rows below chance."""
    low = [v for v in audit.all if v.below_chance]
    if low:
        own = bool(audit.document.sizes)
        foreign = "" if own else "; where a whole catalogue was ranked, add --full"
        items = []
        for v in low:
            cells = " and ".join(_cell(v, name) for name in v.below_chance)
            items.append(f"{_name(v)} ({cells})")
        yield _listed(
            f"Warning, below chance (possible, but a random order of {audit.candidates} candidates has "
            f"HR@K = K / {audit.candidates}{foreign})", items)  # fmt: skip


def _copied(audit: Audit) -> Iterator[str]:
    """Rows that look like one another, table by table."""
    for table in audit.document.tables:
        alike = likenesses(table.rows)
        if not alike:
            yield f"{table.name}: no two rows look like one another."
            continue
        yield _listed(
            f"{table.name}: rows that look like one another (a hint to ask, not a proof: close methods "
            "share numbers by chance)",
            [in_words(likeness) for likeness in alike],
        )


def meaning(audit: Audit) -> Iterator[str]:
    """What such a verdict says, and what it does not."""
    among = (
        f"among {audit.candidates} candidates" if audit.candidates else "among any number of items"
    )
    if audit.clean:
        yield "Every row could come from some ranking. That does not show that one was measured."
    else:
        yield (
            f"Impossible: with one relevant item a user {among}, HR@K and NDCG@K are averages over the "
            "rank of that item. No model, data, split, choice of negatives, rule for ties or weighting "
            "of users gives these numbers, each taken within half a unit of its last digit."
        )
        yield (
            "Repair: the number of units by which the numbers of a row have to move, at the least, "
            "all together, for some ranking to have them (linear programme over rank shares)."
        )
        yield (
            "It does not say why, nor which number of a row is wrong. A slip in typing, each metric "
            "taken from another run or epoch, other definitions (several relevant items a user, other "
            "logarithms), rows mixed up: all look the same. It is arithmetic, no accusation."
        )
    yield "Possible: nothing contradicts the row; it is not thereby right."


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _listed(text: str, items: Sequence[str]) -> str:
    return f"{text}: {_some(items, '; ')}."


def _some(items: Sequence[str], between: str = ", ") -> str:
    rest = f"{between}and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return between.join(items[:NAMED]) + rest


def _name(verdict: Verdict) -> str:
    return " on ".join(filter(None, (verdict.row.label, _dataset(verdict))))


def _dataset(verdict: Verdict) -> str:
    return PRINTED_NAMES.get(verdict.row.dataset, verdict.row.dataset)


def _cell(verdict: Verdict, name: str) -> str:
    return f"{name} = {verdict.row.values[name]:f}"


def _digits(verdict: Verdict) -> int:
    return min(9, max((decimals(unit) for unit in verdict.units.values()), default=4))


def _fixed(value: float, verdict: Verdict) -> str:
    return f"{value:.{_digits(verdict)}f}"


def _range(bound: Bound, verdict: Verdict) -> str:
    high = "..." if bound.high is None else _fixed(bound.high, verdict)
    return f"{_fixed(bound.low, verdict)} to {high}"


# --- for programs ----------------------------------------------------------------------------


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as JSON's types; numbers of the table are strings, as printed."""
    return {
        "source": audit.document.source,
        "candidates": audit.candidates,
        "rows": len(audit.all),
        "impossible": sum(verdict.impossible for verdict in audit.all),
        "tables": [
            {
                "name": table.name,
                "percent": table.percent,
                "notes": list(table.notes),
                "rows": [_row_json(verdict) for verdict in verdicts],
            }
            for table, verdicts in zip(audit.document.tables, audit.verdicts, strict=True)
        ],
        "sums": {
            name: {
                "avg_clicks": str(size.avg_clicks),
                "avg_favors": str(size.avg_favors),
                "summed": str(size.summed),
                "users": size.users,
                "interactions": size.interactions,
                "divided": size.divided,
                "adds_up": size.adds_up,
            }
            for name, size in audit.document.sizes.items()
        },
        "findings": list(findings(audit)),
    }


def _row_json(verdict: Verdict) -> dict[str, Any]:
    row = verdict.row
    return {
        "row": row.label,
        "year": row.year,
        "group": row.group,
        "dataset": row.dataset,
        "columns": list(row.values),
        "values": [f"{value:f}" for value in row.values.values()],
        "units": {name: float(unit) for name, unit in verdict.units.items()},
        "bounds": [
            {
                "law": bound.law.value,
                "cells": list(bound.cells),
                "expression": bound.expression,
                "value": bound.value,
                "low": bound.low,
                "high": bound.high,
                "margin": bound.margin,
                "broken": bound.broken,
            }
            for bound in verdict.bounds
        ],
        "impossible": verdict.impossible,
        "smallest_repair_units": verdict.repair,
        "struck": sorted(verdict.struck),
        "below_chance": list(verdict.below_chance),
    }
