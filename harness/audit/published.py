"""The paper's printed numbers (results/paper/published.yaml), typed and digit for digit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from harness.audit.bounds import Row, Sizes
from harness.errors import InputError

DEFAULT = Path(__file__).resolve().parents[2] / "results" / "paper" / "published.yaml"

PRINTED_NAMES = {"rec_tmall": "Rec-Tmal", "kuaishou": "Kuaishou"}
"""Data sets as the paper spells them."""


@dataclass(frozen=True)
class Timing:
    """A row of Table 4."""

    label: str
    training_seconds: Decimal
    """Per epoch."""
    inference_seconds: Decimal
    """Per prediction."""


@dataclass(frozen=True)
class HeatCell:
    """A cell of Figure 4 that the text names: HR@10 at one pair of settings."""

    dataset: str
    panel: str
    """`steps_x_weight` or `temperature_x_weight`."""
    first: Decimal
    second: Decimal
    value: Decimal


@dataclass(frozen=True)
class Published:
    """Everything that the paper prints; tables that the file lacks are empty."""

    path: Path
    table1: Mapping[str, Sizes]
    """By data set."""
    table2: tuple[Row, ...]
    """One row a method and data set, methods in the paper's order."""
    second_best: Mapping[str, Mapping[str, str]]
    """Label underlined in Table 2, by data set and metric."""
    table3: tuple[Row, ...]
    """Cold-start users; the paper does not agree with itself which data set it is."""
    table4: tuple[Timing, ...]
    figure4: tuple[HeatCell, ...]
    content: Mapping[str, Any] = field(repr=False)
    """The whole file; numbers are strings."""

    def value(self, label: str, dataset: str, metric: str) -> Decimal | None:
        """A number of Table 2, or None where the paper prints none."""
        for row in self.table2:
            if (row.label, row.dataset) == (label, dataset):
                return row.values.get(metric)
        return None


def split_year(printed: str) -> tuple[str, int | None]:
    """`SASRec (2018)` as ("SASRec", 2018); a name without a year as (name, None)."""
    found = re.fullmatch(r"(.*\S)\s*\(((?:19|20)\d\d)\)", printed.strip())
    return (found[1], int(found[2])) if found else (printed.strip(), None)


def published(path: Path | None = None) -> Published:
    """The paper's numbers, or those of another file of the same shape.

    Raises:
        InputError: the file is missing, is not YAML or has another shape.
    """
    path = DEFAULT if path is None else Path(path)
    return from_content(path, load_yaml(path))


def load_yaml(path: Path) -> Any:
    """A YAML file with every scalar as the string that is written, so that no digit is lost.

    Raises:
        InputError: the file cannot be read or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader)  # noqa: S506 - makes strings alone
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"'{path}' cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise InputError(f"'{path}' is not YAML:{where} {problem}") from error


def from_content(path: Path, content: Any) -> Published:
    """Type the content of a file of published.yaml's shape.

    Raises:
        InputError: another shape; the message says where.
    """
    where = "the file"
    try:
        where = "table1"
        sizes = {name: _sizes(row) for name, row in _without_columns(content, "table1").items()}
        where = "table2"
        table2, second_best = _table2(content.get("table2") or {})
        where = "table3"
        three = content.get("table3") or {}
        table3 = tuple(
            Row(label, _named(three["metrics"], values), "", "", year)
            for printed, values in (three.get("rows") or {}).items()
            for label, year in [split_year(printed)]
        )
        where = "table4"
        table4 = tuple(
            Timing(split_year(printed)[0], *map(_decimal, values))
            for printed, values in ((content.get("table4") or {}).get("rows") or {}).items()
        )
        where = "figure4"
        figure4 = tuple(_heat_cells(content.get("figure4") or {}))
    except (AttributeError, KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise InputError(
            f"'{path}': {where} has not the shape of results/paper/published.yaml ({error})"
        ) from error
    return Published(path, sizes, table2, second_best, table3, table4, figure4, content)


def _without_columns(content: Any, table: str) -> dict[str, Any]:
    return {key: row for key, row in (content.get(table) or {}).items() if key != "columns"}


def _sizes(row: list[str]) -> Sizes:
    users, items, interactions, clicks, favors = row
    return Sizes(int(users), int(items), int(interactions), _decimal(clicks), _decimal(favors))


def _table2(table: Any) -> tuple[tuple[Row, ...], dict[str, dict[str, str]]]:
    """Rows of Table 2 and the labels of its second bests."""
    rows = [
        Row(label, _named(table["metrics"], values), dataset, group, year)
        for group, methods in (table.get("groups") or {}).items()
        for printed, datasets in methods.items()
        for label, year in [split_year(printed)]
        for dataset, values in datasets.items()
    ]
    marks = (table.get("printed_marks") or {}).get("second_best") or {}
    second = {
        dataset: {metric: split_year(printed)[0] for metric, printed in metrics.items()}
        for dataset, metrics in marks.items()
    }
    return tuple(rows), second


def _named(metrics: list[str], values: list[str]) -> dict[str, Decimal]:
    """Numbers by metric."""
    return {name: _decimal(value) for name, value in zip(metrics, values, strict=True) if value}


def _heat_cells(figure: Any) -> list[HeatCell]:
    found = []
    for dataset in (name for name in figure if name in PRINTED_NAMES):
        for panel, cells in figure[dataset].items():
            for settings, value in cells.items():
                first, second = map(_decimal, settings.split("/"))
                found.append(HeatCell(dataset, panel, first, second, _decimal(value)))
    return found


def _decimal(text: str) -> Decimal:
    value = Decimal(str(text))
    if not value.is_finite():
        raise ValueError(f"'{text}' is not a number")
    return value
