"""Rows that look like one another: copied, or shifted by a constant. A hint, never a proof.

Two methods can share a number by chance, all the more where a column is crowded, so this is only
looked for when asked, says nothing of guilt and changes no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations

from harness.audit.bounds import Row, units

LEAST = 3
"""Shared metrics that two rows need before a likeness says anything."""


@dataclass(frozen=True)
class Likeness:
    """Two rows, in the order of the table, and what they have in common."""

    one: Row
    other: Row
    equal: tuple[str, ...]
    """Metrics with the same digits."""
    shared: int
    """Metrics that both rows have."""
    shift: int | None = None
    """Units by which every metric of the other row is above the first's, where it is the same for all
    (within one unit); None where it is not."""


def likenesses(rows: Sequence[Row]) -> list[Likeness]:
    """Pairs of rows, of whatever data sets, that are alike in half of their metrics or by a shift."""
    printed = units(rows)
    found = []
    for one, other in combinations(rows, 2):
        shared = [name for name in one.values if name in other.values]
        if len(shared) < LEAST:
            continue
        equal = tuple(name for name in shared if one.values[name] == other.values[name])
        shift = _shift(one, other, shared, printed)
        if 2 * len(equal) >= len(shared) or shift is not None:
            found.append(Likeness(one, other, equal, len(shared), shift))
    return found


def _shift(
    one: Row, other: Row, shared: Sequence[str], printed: Mapping[tuple[str, str], Decimal]
) -> int | None:
    steps = [
        int((other.values[name] - one.values[name]) / printed[other.dataset, name])
        for name in shared
    ]
    if max(steps) - min(steps) > 1 or min(map(abs, steps)) == 0:
        return None
    return round(sum(steps) / len(steps))


def in_words(likeness: Likeness) -> str:
    """`A and B print the same HR@10, HR@20 (2 of 4)`."""
    one, other = (
        f"{row.label}{f' on {row.dataset}' if row.dataset else ''}"
        for row in (likeness.one, likeness.other)
    )
    if likeness.shift is not None:
        return f"every number of {other} is {likeness.shift:+d} units from that of {one}"
    same = ", ".join(likeness.equal)
    return f"{one} and {other} print the same {same} ({len(likeness.equal)} of {likeness.shared})"
