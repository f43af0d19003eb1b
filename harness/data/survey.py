"""Table 1 of the plausible selections of a log, beside the paper's; which one the paper used is not known.

The nearest is named by a stated distance. Nothing is searched for: a survey's selections are few, fixed
and named, and none is adjusted until it matches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from tabulate import tabulate

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "paper" / "published.yaml"
"""The paper's printed numbers."""
COLUMNS = ("users", "items", "interactions", "clicks_per_user", "favors_per_user")
"""Of Table 1, as a manifest's `table1` and `Staged.survey` name them."""


def published_row(data: str) -> dict[str, float] | None:
    """The paper's Table 1 row of a data set; None where the file or the row is not there."""
    try:
        content = yaml.safe_load(PUBLISHED.read_text(encoding="utf8"))
        row = content["table1"][data]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    return dict(zip(COLUMNS, map(float, row), strict=True))


def distance(row: Mapping[str, float], paper: Mapping[str, float]) -> float:
    """Root mean square of the natural logarithms of the five ratios; infinite for an empty selection.

    0 is equality; 0.69 means that the numbers are off by a factor of two, as it were.
    """
    if min(row[name] for name in COLUMNS) <= 0:
        return math.inf
    squares = [math.log(row[name] / paper[name]) ** 2 for name in COLUMNS]
    return math.sqrt(sum(squares) / len(squares))


def contradiction(paper: Mapping[str, float]) -> str | None:
    """One line if a printed row contradicts itself: users x (clicks + favors) is not interactions."""
    product = paper["users"] * (paper["clicks_per_user"] + paper["favors_per_user"])
    slack = paper["users"] * 0.01  # two numbers rounded to two digits
    if abs(product - paper["interactions"]) <= slack:
        return None
    return (
        f"the paper's row contradicts itself: {paper['users']:,.0f} users x "
        f"({paper['clicks_per_user']:g} + {paper['favors_per_user']:g}) = {product:,.0f}, not "
        f"{paper['interactions']:,.0f}; so no selection can match all five numbers"
    )


def survey_text(data: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """A page: the selections' rows, the paper's, the nearest, and what the paper's row says of itself.

    Args:
        data: The data set as results/paper/published.yaml calls it; without a row there, no comparison.
        rows: Name and counts of each selection, as `Staged.survey` gives them.
    """
    paper = published_row(data)
    table: list[list[str]] = []
    for name, row in rows:
        far = "" if paper is None else f"{distance(row, paper):.2f}"
        table.append([name, *_cells(row), far])
    if paper is not None:
        table.append(["the paper's Table 1", *_cells(paper), ""])
    heads = ["selection", "users", "items", "interactions", "clicks a user", "favors a user"]
    lines = [
        tabulate(table, [*heads, "distance"], disable_numparse=True, tablefmt="github",
                 colalign=("left", *["right"] * 6)),
    ]  # fmt: skip
    if paper is None:
        return "\n".join(["", *lines, "", "The paper has no row for this data set."])
    reached = [(distance(row, paper), name) for name, row in rows]
    least, nearest = min(reached, default=(math.inf, ""))
    lines += [
        "",
        "distance: root mean square of the logarithms of the five ratios to the paper's row",
    ]
    if math.isfinite(least):
        factor = math.exp(least)
        lines.append(f"nearest: {nearest} (distance {least:.2f}: off by a factor of {factor:.2f})")
    else:
        lines.append("nearest: none; no selection has a user")
    said = contradiction(paper)
    lines += [said] if said else []
    lines.append(
        "The paper does not say how its cut was drawn; nothing here was tuned to match it."
    )
    return "\n".join(["", *lines])


def _cells(row: Mapping[str, float]) -> list[str]:
    whole = [f"{row[name]:,.0f}" for name in COLUMNS[:3]]
    return [*whole, *(f"{row[name]:.2f}" for name in COLUMNS[3:])]
