"""What a table holds: rows, cells, columns, and everything that is said of them.

Filled by `tables.build_table`; `layout.py` arranges it for readers, `export.py` for programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from harness.evaluation.metrics import METRICS
from harness.report.beside import Against, Beside, Published
from harness.report.gather import Budget, TableData
from harness.stats import Effect, Order, Power
from harness.zoo import Group, printed

CHAMPION = "M3BSR"
"""The method named in advance; it is compared with each of the others."""
BEST, SECOND, DAGGER = "best", "second", "dagger"


@dataclass(frozen=True)
class Comparison:
    """The champion minus one other method, in one column."""

    difference: float
    low: float
    high: float
    p: float | None
    """For new runs and new users; None with one run, like every p here."""
    df: float
    p_holm: float | None
    """Holm over the champion's comparisons of this column."""
    p_users: float | None
    """These trained models, new users."""
    p_seeds: float | None
    """These users, new runs."""
    marked: bool
    """Holm's p < 0.05, in the direction of the difference; never below 3 runs."""
    effect: Effect


@dataclass(frozen=True)
class TableCell:
    """One number of the table and everything that is said of it; None where there is nothing."""

    group: str
    method: str
    dataset: str
    metric: str
    seeds: int = 0
    """Runs in the mean."""
    mean: float | None = None
    sd: float | None = None
    """Of the run means; None with one run."""
    low: float | None = None
    """95 % interval for new runs and new users (one run: this trained model, new users)."""
    high: float | None = None
    place: str | None = None
    """`best` or `second` among the methods of its column, by the mean alone."""
    dagger: bool = False
    """The best, and better than every other method (protocol, mark 1)."""
    in_best_set: bool | None = None
    power: Power = Power.ONE
    comparison: Comparison | None = None
    beside: Beside | None = None
    runs: tuple[str, ...] = ()
    """Keys of the records in the mean."""

    @property
    def mark(self) -> str | None:
        """What a claim may rest on: dagger, best, second; None below 3 runs."""
        if not self.power.marks:
            return None
        return DAGGER if self.dagger else self.place


@dataclass(frozen=True)
class Row:
    """A method's cells, in the order of the columns."""

    label: str
    group: Group
    cells: tuple[TableCell, ...]
    note: str = ""
    """What the zoo has to say about the row."""
    gaps: Mapping[str, tuple[str, ...]] | None = None
    """Why runs are missing, by data set; `not built` for a row that nobody has built."""
    degenerate: tuple[str, ...] = ()
    """Runs whose scores tie so much that the order of ties decides."""

    @property
    def reconstruction(self) -> bool:
        """True when the method was built from a text alone, without its authors' code."""
        return self.printed != self.label

    @property
    def printed(self) -> str:
        """The row's name in every table."""
        return printed(self.label, self.note)


@dataclass(frozen=True)
class Column:
    """What is said of a whole column."""

    dataset: str
    metric: str
    methods: int
    """Methods with runs."""
    power: Power
    best: str | None
    """Label of the highest mean."""
    largest_p: float | None
    """Of the best against every other."""
    dagger: bool
    best_set: tuple[str, ...] | None
    comparisons: int
    """p values that Holm corrected for in the champion's family."""
    order: Order | None
    against: Against | None


@dataclass(frozen=True)
class Table:
    """Table 2 (or a table of its shape), complete: a renderer needs nothing else."""

    target: str
    title: str
    data: tuple[TableData, ...]
    users: Mapping[str, int]
    """Test users of each data set."""
    users_limit: int
    """At most so many users were asked for (budget smoke); 0 is all."""
    protocol: Mapping[str, Any]
    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    left_out: tuple[str, ...]
    """The paper's rows that were not asked for."""
    columns: tuple[Column, ...]
    budgets: tuple[Budget, ...]
    published: Published
    notes: tuple[str, ...]
    """Footers, in the order of printing."""

    @property
    def demo(self) -> bool:
        """True when any of the data are made up."""
        return any(data.demo for data in self.data)

    @property
    def comparisons(self) -> int:
        """Comparisons of the champion in one column (where columns differ: the most)."""
        return max((column.comparisons for column in self.columns), default=0)

    def column(self, dataset: str, metric: str) -> Column:
        """One column."""
        return next(c for c in self.columns if (c.dataset, c.metric) == (dataset, metric))


def columns_in_words(columns: Sequence[Column], total: int) -> str:
    """`all 8 columns`, or `shop HR@10, HR@20 and deskdrop (all columns)`, of a table of `total`."""
    if len(columns) == total:
        return f"all {total} columns"
    parts = []
    for dataset, members in groupby(columns, key=lambda column: column.dataset):
        metrics = [column.metric for column in members]
        every = len(metrics) == len(METRICS)
        parts.append(f"{dataset} (all columns)" if every else f"{dataset} {', '.join(metrics)}")
    return " and ".join(parts)
