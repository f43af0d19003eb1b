"""From stored records to a significance-tested table beside the paper's numbers (protocol, Statistics).

`build_table` computes; `layout.py` says what stands where, `text.py`, `latex.py` and `export.py`
write it. Nothing here trains, and nothing here changes a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from numpy import ndarray

from harness import stats
from harness.config import Cell
from harness.evaluation.metrics import METRICS
from harness.ledger import Trial
from harness.report import footers
from harness.report.beside import Published, beside, effect_ratio, published_order
from harness.report.content import (
    BEST,
    CHAMPION,
    SECOND,
    Column,
    Comparison,
    Row,
    Table,
    TableCell,
)
from harness.report.gather import Gathered, RowPlan, TableData, gather
from harness.stats import Moments, Power
from harness.store import Record
from harness.zoo import Group, Method

EQUAL = 1e-12
"""Means this close are one place in the ranking."""
TITLES = {
    "table2": "Table 2. Overall comparison",
    "table3": "Table 3. Cold-start users",
    "figure3": "Figure 3. M3BSR without each of its parts",
}


def build_table(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    datasets: Sequence[TableData],
    *,
    failed: Mapping[str, str] | None = None,
    target: str = "table2",
    searches: Mapping[tuple[str, str], Sequence[Trial]] | None = None,
    budget_name: str = "",
    overrides: Sequence[str] = (),
    published: Published | None = None,
    methods: Mapping[str, Method] | None = None,
    metrics: Sequence[str] = tuple(METRICS),
    users: Mapping[str, Bool[ndarray, " user"]] | None = None,
) -> Table:
    """Build the table that the wanted cells ask for out of the records that there are.

    Args:
        records: Finished runs with their ranks, each of a wanted cell.
        wanted: Every cell of the table (methods x data sets x seeds, reference rows with one seed).
        datasets: The data sets, in order; records must have been made from exactly these.
        failed: Why a cell has no record, by cell key; without a reason it is `not run`.
        target: Names the folder of the files.
        searches: The trials of tuning, by the method's key and the data set; none without them.
        budget_name: smoke, quick or paper; printed.
        overrides: The user's `key=value`; printed.
        published: The published numbers; default: the paper's.
        methods: Whose row each cell belongs to, where rows share a method (see `gather`).
        metrics: The columns of each data set.
        users: Which test users count, by data set; default: all.

    Raises:
        InputError: Two records that may not stand in one table, named (see `gather`).
    """
    published = published or Published.read()
    found = gather(records, wanted, datasets, failed or {}, methods, users)
    columns: list[Column] = []
    cells: dict[str, list[TableCell]] = {row.label: [] for row in found.rows}
    numbers: dict[tuple[str, str], dict[str, Moments]] = {}
    for data in datasets:
        for metric in metrics:
            column, made, moments = _column(found, data, metric, published)
            columns.append(column)
            numbers[data.name, metric] = moments
            for cell in made:
                cells[cell.method].append(cell)
    rows = [_row(found, plan, cells[plan.label], datasets) for plan in found.rows]
    spent = tuple(footers.spent(found, datasets, searches or {}))
    return Table(
        target=target,
        title=TITLES.get(target, target),
        data=tuple(datasets),
        users=found.users,
        users_limit=max((cell.users for cell in wanted), default=0),
        protocol=found.protocol,
        rows=tuple(row for row in rows if row.group is not Group.reference),
        references=tuple(row for row in rows if row.group is Group.reference),
        left_out=found.left_out,
        columns=tuple(columns),
        budgets=spent,
        published=published,
        notes=footers.notes(found, datasets, columns, numbers, spent, budget_name, overrides),
    )


def _column(
    found: Gathered, data: TableData, metric: str, published: Published
) -> tuple[Column, list[TableCell], dict[str, Moments]]:
    """One column: what is said of it, a cell for every row, and the moments of all its rows."""
    methods = {
        runs.method.label: stats.moments(runs.scores(metric)) for runs in found.methods(data.name)
    }
    references = {
        runs.method.label: stats.moments(runs.scores(metric))
        for runs in found.references(data.name)
    }
    everything = stats.column(methods)
    printed = beside(everything, data, metric, published)
    places = _places(methods)
    dagger = stats.dagger(everything) if methods else None
    best_set = stats.best_set(everything).methods if len(methods) > 1 else None
    family = stats.family(everything, CHAMPION) if CHAMPION in methods else None
    comparisons = _comparisons(methods, family)
    alone = len(methods) < 2  # a lone method beats nobody
    cells = []
    for plan in found.rows:
        own = {**methods, **references}.get(plan.label)
        is_method = plan.label in methods
        cells.append(
            _cell(
                plan,
                data,
                metric,
                own,
                place=places.get(plan.label),
                dagger=bool(dagger and dagger.dagger and not alone and dagger.best == plan.label),
                in_best_set=plan.label in best_set if is_method and best_set is not None else None,
                power=everything.power if is_method else Power.ONE,
                comparison=comparisons.get(plan.label),
                beside=printed.get(plan.label),
                runs=_keys(found, plan.label, data),
            )
        )
    column = Column(
        dataset=data.name,
        metric=metric,
        methods=len(methods),
        power=everything.power,
        best=dagger.best if dagger else None,
        largest_p=dagger.largest_p if dagger else None,
        dagger=bool(dagger and dagger.dagger and not alone),
        best_set=best_set,
        comparisons=family.comparisons if family else 0,
        order=published_order(everything, data, metric, published),
        against=effect_ratio(everything, data, metric, published, CHAMPION),
    )
    return column, cells, {**methods, **references}


def _cell(
    plan: RowPlan, data: TableData, metric: str, own: Moments | None, **said: Any
) -> TableCell:
    """A row's cell in a column; `own` is None for a gap."""
    group = plan.group.value
    if own is None:
        return TableCell(group, plan.label, data.name, metric, beside=said["beside"])
    mean = stats.one_mean(own)
    return TableCell(
        group, plan.label, data.name, metric, own.runs, mean.mean, mean.sd, mean.low, mean.high,
        **said,
    )  # fmt: skip


def _keys(found: Gathered, label: str, data: TableData) -> tuple[str, ...]:
    runs = found.runs.get((label, data.name))
    return tuple(record.key for record in runs.records) if runs else ()


def _places(methods: Mapping[str, Moments]) -> dict[str, str]:
    """Who is best and who second by the mean; equals share a place, two bests leave no second."""
    if not methods:
        return {}
    top = max(moments.mean for moments in methods.values())
    best = [label for label, own in methods.items() if top - own.mean <= EQUAL]
    rest = {label: own.mean for label, own in methods.items() if label not in best}
    places = dict.fromkeys(best, BEST)
    if rest and len(best) == 1:
        level = max(rest.values())
        places |= {label: SECOND for label, mean in rest.items() if level - mean <= EQUAL}
    return places


def _comparisons(
    methods: Mapping[str, Moments], family: stats.Family | None
) -> dict[str, Comparison]:
    """The champion against each of the others of a column."""
    if family is None:
        return {}
    made = {}
    for other, against in family.against.items():
        pair = against.comparison
        made[other] = Comparison(
            difference=pair.difference,
            low=pair.low,
            high=pair.high,
            p=pair.p,
            df=pair.df,
            p_holm=against.p_holm,
            p_users=pair.p_users,
            p_seeds=pair.p_seeds,
            marked=against.mark,
            effect=stats.effect(methods[family.method], methods[other]),
        )
    return made


def _row(
    found: Gathered, plan: RowPlan, cells: Sequence[TableCell], datasets: Sequence[TableData]
) -> Row:
    gaps: dict[str, tuple[str, ...]] = {}
    for data in datasets:
        if plan.method is None:
            gaps[data.name] = ("not built",)
        elif (plan.label, data.name) in found.missing:
            gaps[data.name] = found.missing[plan.label, data.name]
        elif (plan.label, data.name) not in found.wanted:
            gaps[data.name] = ("not asked for",)
    return Row(
        label=plan.label,
        group=plan.group,
        cells=tuple(cells),
        note=plan.method.note if plan.method else "",
        gaps=gaps,
        degenerate=footers.degenerate_runs(found, plan.label, datasets),
    )
