"""The table for programs: JSON of a fixed schema, and one tidy CSV with everything."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.report.content import Row, Table, TableCell
from harness.report.footers import protocol_fingerprint
from harness.report.gather import TableData


def data_json(data: TableData) -> dict[str, Any]:
    """A data set as every table.json names it."""
    return {
        "name": data.name,
        "demo": data.demo,
        "data_sha256": data.data_sha256,
        "candidates_sha256": data.candidates_sha256,
    }


def heading(target: str, data: Iterable[TableData], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What every table.json begins with."""
    return {
        "target": target,
        "data": [data_json(one) for one in data],
        "protocol": {**protocol, "fingerprint": protocol_fingerprint(protocol)},
    }


def json_content(table: Table) -> dict[str, Any]:
    """The content of table.json: JSON's types, every number finite or null.

    `p`, `df`, `p_holm`, `p_users`, `p_seeds` and `effect` (a difference) are M3BSR's against the
    cell's method and null in its own row; `mark` is dagger, best, second, or null below three runs.
    """
    content: dict[str, Any] = finite(
        {
            **heading(table.target, table.data, table.protocol),
            "cells": [_cell(cell) for row in table.rows for cell in row.cells],
            "reference": [_cell(cell) for row in table.references for cell in row.cells],
            "budget": [
                {
                    "method": budget.method,
                    "dataset": budget.dataset,
                    "trials": budget.trials,
                    "seconds": budget.seconds,
                }
                for budget in table.budgets
            ],
            "correction": {"method": "holm", "comparisons": table.comparisons},
        }
    )
    return content


def _cell(cell: TableCell) -> dict[str, Any]:
    comparison, beside = cell.comparison, cell.beside
    return {
        "group": cell.group,
        "method": cell.method,
        "dataset": cell.dataset,
        "metric": cell.metric,
        "mean": cell.mean,
        "sd": cell.sd,
        "seeds": cell.seeds,
        "low": cell.low,
        "high": cell.high,
        "published": float(beside.published) if beside else None,
        "published_possible": beside.possible if beside else None,
        "verdict": beside.verdict if beside else None,
        "p": comparison.p if comparison else None,
        "df": comparison.df if comparison else None,
        "p_holm": comparison.p_holm if comparison else None,
        "p_users": comparison.p_users if comparison else None,
        "p_seeds": comparison.p_seeds if comparison else None,
        "in_best_set": cell.in_best_set,
        "effect": comparison.difference if comparison else None,
        "mark": cell.mark,
    }


def _more(row: Row, cell: TableCell) -> dict[str, Any]:
    """What the CSV has beyond the JSON."""
    comparison, beside = cell.comparison, cell.beside
    effect = comparison.effect if comparison else None
    five, ten = (beside.best_of_5, beside.best_of_10) if beside else (None, None)
    return {
        "place": cell.place,
        "effect_low": comparison.low if comparison else None,
        "effect_high": comparison.high if comparison else None,
        "holm_marked": comparison.marked if comparison else None,
        "relative": effect.relative if effect else None,
        "relative_low": effect.relative_low if effect else None,
        "relative_high": effect.relative_high if effect else None,
        "standardised": effect.standardised if effect else None,
        "users_better": effect.better if effect else None,
        "users_equal": effect.equal if effect else None,
        "users_worse": effect.worse if effect else None,
        "run_beats_run": effect.beats if effect else None,
        "band_low": beside.low if beside else None,
        "band_high": beside.high if beside else None,
        "band_best_of_5_low": five[0] if five else None,
        "band_best_of_5_high": five[1] if five else None,
        "band_best_of_10_low": ten[0] if ten else None,
        "band_best_of_10_high": ten[1] if ten else None,
        "gap": "; ".join((row.gaps or {}).get(cell.dataset, ())) or None,
    }


def csv_text(table: Table) -> str:
    """One line a cell, reference rows last; numbers in full, nothing for null."""
    return written(csv_lines(table))


def csv_lines(table: Table) -> list[dict[str, Any]]:
    """The lines of `csv_text` by column, for artefacts that have further ones."""
    demo = {data.name: data.demo for data in table.data}
    return [
        {"kind": kind, **_cell(cell), **_more(row, cell), "demo": demo[cell.dataset]}
        for kind, rows in (("method", table.rows), ("reference", table.references))
        for row in rows
        for cell in row.cells
    ]


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines as CSV: the columns of all, in the order met; nothing where a line lacks one."""
    out = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line)) or ["kind"]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _text(value) for key, value in line.items()})
    return out.getvalue()


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return value


def finite(value: Any) -> Any:
    """Every NaN or infinity as null, all the way down."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
