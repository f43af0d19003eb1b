"""Stored records as the runs of a table: what is there, what is missing, and what may not be mixed.

Axes: run = runs of one method on one data set, user = users with a test target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray

from harness.config import Cell, cell_key, plain
from harness.errors import InputError
from harness.evaluation.metrics import METRICS
from harness.store import Ranks, Record
from harness.zoo import METHODS, PAPER_ROWS, REFERENCES, Group, Method, find


@dataclass(frozen=True)
class TableData:
    """A data set as a table names it."""

    name: str
    demo: bool
    data_sha256: str
    candidates_sha256: str
    published_users: bool = False
    """True when its users are those whose numbers the paper published (bands: same users)."""


@dataclass(frozen=True)
class Budget:
    """What was spent on choosing a method's settings and on its runs."""

    method: str
    """Label."""
    dataset: str
    trials: int
    """Settings tried by tuning; 0: stored or default settings."""
    seconds: float
    """Of the trials and of the runs in this table."""


@dataclass(frozen=True)
class Runs:
    """The finished runs of one method on one data set."""

    method: Method
    records: tuple[Record, ...]
    """In ascending order of their seeds, at least one."""
    above: Int[ndarray, "run user"]
    tied: Int[ndarray, "run user"]
    above_full: Int[ndarray, "run user"]
    tied_full: Int[ndarray, "run user"]
    untouched: Int[ndarray, " user"]
    above_redrawn: Integer[ndarray, "run redraw user"] | None = None
    """Among other draws of the 99 candidates; None where a run has none."""
    tied_redrawn: Integer[ndarray, "run redraw user"] | None = None

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.records)

    def of_users(self, chosen: Bool[ndarray, " user"]) -> Runs:
        """The same runs, with the ranks of some users alone."""
        above, tied = self.above_redrawn, self.tied_redrawn
        return replace(
            self,
            above=self.above[:, chosen],
            tied=self.tied[:, chosen],
            above_full=self.above_full[:, chosen],
            tied_full=self.tied_full[:, chosen],
            untouched=self.untouched[chosen],
            above_redrawn=None if above is None else above[:, :, chosen],
            tied_redrawn=None if tied is None else tied[:, :, chosen],
        )

    def scores(self, metric: str) -> Float[ndarray, "run user"]:
        """A metric of every run and user, among 1 + 99 candidates."""
        return METRICS[metric](self.above, self.tied)

    def full_scores(self, metric: str) -> Float[ndarray, "run user"]:
        """The same among all items that the user never touched."""
        return METRICS[metric](self.above_full, self.tied_full)

    def redrawn_means(self, metric: str) -> Float[ndarray, " redraw"] | None:
        """The mean over runs and users in each redraw of the candidates."""
        if self.above_redrawn is None or self.tied_redrawn is None:
            return None
        above, tied = self.above_redrawn.astype(np.int64), self.tied_redrawn.astype(np.int64)
        return np.asarray(METRICS[metric](above, tied).mean(axis=(0, 2)))


@dataclass(frozen=True)
class RowPlan:
    """A row that a table has: a method asked for, or a row of the paper that nobody has built."""

    label: str
    group: Group
    method: Method | None


@dataclass(frozen=True)
class Gathered:
    """Records sorted into rows and columns, and the reasons for every gap."""

    rows: tuple[RowPlan, ...]
    """Methods in the paper's order, then reference rows."""
    left_out: tuple[str, ...]
    """Labels of the paper's rows that were not asked for."""
    runs: Mapping[tuple[str, str], Runs]
    """By label and data set."""
    wanted: Mapping[tuple[str, str], int]
    """Runs asked for, by label and data set."""
    missing: Mapping[tuple[str, str], tuple[str, ...]]
    """`seed 2: why` of every run asked for and not there, by label and data set."""
    users: Mapping[str, int]
    """Test users of a data set that count."""
    protocol: Mapping[str, Any]
    """Readings P1 to P5 of all records (of the cells asked for, where there is no record)."""
    everyone: Mapping[str, int] = field(default_factory=dict)
    """All test users of a data set, where only some of them count."""

    def methods(self, dataset: str) -> list[Runs]:
        """Runs of the methods that are compared (no reference rows), in the table's order."""
        return self._of(dataset, reference=False)

    def references(self, dataset: str) -> list[Runs]:
        """Runs of the reference rows."""
        return self._of(dataset, reference=True)

    def _of(self, dataset: str, *, reference: bool) -> list[Runs]:
        return [
            self.runs[row.label, dataset]
            for row in self.rows
            if (row.group is Group.reference) == reference and (row.label, dataset) in self.runs
        ]


def gather(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    datasets: Sequence[TableData],
    failed: Mapping[str, str],
    methods: Mapping[str, Method] | None = None,
    users: Mapping[str, Bool[ndarray, " user"]] | None = None,
) -> Gathered:
    """Sort records into the rows and columns that the wanted cells ask for.

    Args:
        records: Finished runs; each must belong to a wanted cell (by key).
        wanted: The cells of the table.
        datasets: Its data sets, in order.
        failed: Why a cell has no record, by key; a cell in neither is `not run`.
        methods: Whose row each wanted cell belongs to, by key, in the order of rows: for tables that
            tell rows of one method apart. Default: the cell's method, rows as in the paper.
        users: Which test users count, by data set (default: all). Where fewer than two do, nothing
            can be said of the data set: its runs are left out, and why is in `missing`.

    Raises:
        InputError: Two records that do not belong into one table, both named: of one method, data
            set and seed; of different data, candidates or test users; of different readings of the
            protocol; or runs of one method with different settings. Also a record nobody asked for.
    """
    cells = {cell_key(cell): cell for cell in wanted}
    method_of = methods or {key: find(cell.method) for key, cell in cells.items()}
    found: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        if record.key not in cells:
            raise InputError(f"{_name(record)} belongs to no cell of this table; leave it out")
        found.setdefault((method_of[record.key].label, record.data), []).append(record)
    _refuse_mixtures(found, datasets)

    counts: dict[tuple[str, str], int] = {}
    missing: dict[tuple[str, str], tuple[str, ...]] = {}
    stored = {record.key for group in found.values() for record in group}
    for key, cell in cells.items():
        place = (method_of[key].label, cell.data)
        counts[place] = counts.get(place, 0) + 1
        if key not in stored:
            reason = f"seed {cell.seed}: " + _why(failed, key)
            missing[place] = (*missing.get(place, ()), reason)
    if methods is None:
        rows, left_out = _rows({method.label for method in method_of.values()})
    else:
        of_label = {method.label: method for method in methods.values()}
        rows = tuple(RowPlan(label, method.group, method) for label, method in of_label.items())
        left_out = ()
    runs = {place: _runs(method_of[group[0].key], group) for place, group in found.items()}
    some = next(iter(runs.values()), None)
    counted = {data: one.above.shape[1] for (_, data), one in runs.items()}
    everyone: dict[str, int] = {}
    if users is not None:
        everyone = {data: len(chosen) for data, chosen in users.items()}
        counted = {data: int(chosen.sum()) for data, chosen in users.items()}
        for place in counts:
            if counted[place[1]] < 2:
                few = f"{counted[place[1]]} of {everyone[place[1]]} users"
                missing[place] = (few, *missing.get(place, ()))
        runs = {
            (label, data): one.of_users(users[data])
            for (label, data), one in runs.items()
            if counted[data] >= 2
        }
    return Gathered(
        rows=rows,
        left_out=left_out,
        runs=runs,
        wanted=counts,
        missing=missing,
        users=counted,
        protocol=some.records[0].config["protocol"] if some else _protocol(wanted),
        everyone=everyone,
    )


def _why(failed: Mapping[str, str], key: str) -> str:
    return f"failed: {' '.join(failed[key].split())}" if key in failed else "not run"


def _protocol(wanted: Sequence[Cell]) -> dict[str, Any]:
    return dict(plain(wanted[0].protocol)) if wanted else {}


def _rows(asked: set[str]) -> tuple[tuple[RowPlan, ...], tuple[str, ...]]:
    """The table's rows, and the paper's rows that were left out on purpose.

    The paper's rows in its order; a method of ours that it does not have ends its group. Rows that
    nobody has built are named as gaps, unless only some of the built ones are wanted.
    """
    built = {method.label: method for method in METHODS}
    choice = any(label not in asked for label in built)
    known = {row.label for row in PAPER_ROWS}
    further = [method for method in METHODS if method.label not in known]
    rows, left_out = [], []
    for group in Group:
        for row in PAPER_ROWS:
            if row.group is not group:
                continue
            if row.label in asked or not (choice or row.label in built):
                rows.append(RowPlan(row.label, group, built.get(row.label)))
            else:
                left_out.append(row.label)
        rows += [
            RowPlan(method.label, group, method)
            for method in (*further, *REFERENCES)
            if method.group is group and method.label in asked
        ]
    return tuple(rows), tuple(left_out)


def _runs(method: Method, records: Sequence[Record]) -> Runs:
    ranks = [_ranks(record) for record in records]
    return Runs(
        method=method,
        records=tuple(records),
        above=np.stack([one.above for one in ranks]),
        tied=np.stack([one.tied for one in ranks]),
        above_full=np.stack([one.above_full for one in ranks]),
        tied_full=np.stack([one.tied_full for one in ranks]),
        untouched=ranks[0].untouched,
        above_redrawn=_stacked([one.above_redrawn for one in ranks]),
        tied_redrawn=_stacked([one.tied_redrawn for one in ranks]),
    )


def _stacked(arrays: Sequence[ndarray | None]) -> ndarray | None:
    """The runs' arrays as one; None where any run has none."""
    there = [array for array in arrays if array is not None]
    return np.stack(there) if len(there) == len(arrays) else None


def _ranks(record: Record) -> Ranks:
    if record.ranks is None:
        raise InputError(f"{_name(record)} has no ranks; run it again")
    return record.ranks


def _name(record: Record) -> str:
    """`record 0123456789ab (SASRec on demo_kuaishou, seed 2)`."""
    return f"record {record.key[:12]} ({record.label} on {record.data}, seed {record.seed})"


def _refuse_mixtures(
    found: Mapping[tuple[str, str], Sequence[Record]], datasets: Sequence[TableData]
) -> None:
    """Raise InputError for the first two records that may not stand in one table.

    `found` has the records of each row and data set.
    """
    records = [(record, place) for place, group in found.items() for record in group]
    expected = {data.name: data for data in datasets}
    first_of_data: dict[str, Record] = {}
    first_of_row: dict[tuple[str, str], Record] = {}
    seen: dict[tuple[str, str, int], Record] = {}
    for record, place in records:
        if record.data not in expected:
            raise InputError(f"{_name(record)}: data set '{record.data}' is not in this table; "
                             f"it has: {', '.join(expected)}")  # fmt: skip
        twin = seen.setdefault((*place, record.seed), record)
        if twin is not record:
            raise InputError(f"two records of one run: {_name(twin)} and {_name(record)}")
        data = expected[record.data]
        made = (record.fingerprints.data, record.fingerprints.candidates)
        if made != (data.data_sha256, data.candidates_sha256):
            raise InputError(f"{_name(record)} was made from other data or candidates than "
                             f"'{data.name}' has now; run it again")  # fmt: skip
        _same_test(first_of_data.setdefault(record.data, record), record)
        _same_settings(first_of_row.setdefault(place, record), record)
    for record, _ in records[1:]:
        if record.config["protocol"] != records[0][0].config["protocol"]:
            raise _differ("readings of the protocol", records[0][0], record)


def _same_test(one: Record, other: Record) -> None:
    """The test users of a data set, and how many items their full ranks are among, must agree."""
    mine, theirs = _ranks(one), _ranks(other)
    if not np.array_equal(mine.user, theirs.user):
        raise _differ("test users", one, other)
    if not np.array_equal(mine.untouched, theirs.untouched):
        raise _differ("items that the test users never touched", one, other)


def _same_settings(one: Record, other: Record) -> None:
    """Runs of one method on one data set may differ in their seed alone."""
    if {**one.config, "seed": 0} != {**other.config, "seed": 0}:
        raise _differ("settings beside the seed", one, other)
    if one.fingerprints.code != other.fingerprints.code:
        raise _differ("code", one, other)


def _differ(what: str, one: Record, other: Record) -> InputError:
    return InputError(f"{_name(one)} and {_name(other)} differ in their {what}; "
                      "they cannot stand in one table")  # fmt: skip
