"""Table 3 from stored records: Table 2's runs among users with a short history, and by its length.

Nothing is trained for it: a user's ranks are those of Table 2. What counts as the length of a history
is every recorded event of the user strictly before the test favor, before any reading drops one.
Axes: run = runs of one method on one data set, user = users with a test target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from harness import stats
from harness.config import Cell
from harness.ledger import Trial
from harness.report.beside import Published
from harness.report.content import CHAMPION, Table
from harness.report.export import csv_lines, json_content, written
from harness.report.gather import Gathered, Runs, TableData, gather
from harness.report.tables import build_table
from harness.stats import Comparison, Judgement, Power
from harness.stats.groups import lead_gap
from harness.stats.variance import LEVEL
from harness.store import Record
from harness.zoo import Group, Method

COLD = 10
"""Most recorded interactions before the test favor of a cold-start user (section 5.5)."""
COLD_METRICS = ("HR@10", "NDCG@10")
"""The metrics of Table 3."""
RIVALS = ("STOSA", "MMMLP", "EBM")
"""The strong baselines of Table 3."""
STRATA: tuple[tuple[int, int | None], ...] = ((0, 5), (6, 10), (11, 20), (21, 50), (51, None))
"""Least and most interactions before the test favor; None is no end."""
STRATA_METRIC = "HR@10"
FEW_USERS = 20
"""A stratum with fewer users is flagged: its intervals rest on too little."""
CLAIM = (
    "on users with at most 10 interactions M3BSR demonstrated significantly better performance (HR@10, "
    "NDCG@10) than strong baselines (section 5.5)"
)


@dataclass(frozen=True)
class Cold:
    """Who is cold in a data set."""

    dataset: str
    users: int
    """Cold ones."""
    everyone: int
    """Users with a test target."""
    shortest: int
    """Interactions before the test favor."""
    longest: int

    @property
    def share(self) -> float:
        """Of the test users."""
        return self.users / self.everyone if self.everyone else 0.0


@dataclass(frozen=True)
class Stratum:
    """The test users whose histories are of like length; at least one."""

    dataset: str
    low: int
    high: int | None
    users: int

    @property
    def label(self) -> str:
        """`≤5`, `6-10`, `51+`."""
        if self.high is None:
            return f"{self.low}+"
        return f"≤{self.high}" if self.low == 0 else f"{self.low}-{self.high}"

    @property
    def few(self) -> bool:
        """Too few users for its interval to be trusted."""
        return self.users < FEW_USERS

    @property
    def cold(self) -> bool:
        """Whether its users are cold."""
        return self.high is not None and self.high <= COLD


@dataclass(frozen=True)
class Point:
    """HR@10 of one method in one stratum."""

    method: str
    """Label."""
    group: Group
    stratum: Stratum
    runs: tuple[str, ...]
    """Keys of the records."""
    mean: float
    low: float | None
    """95 % interval as in every table; None for a lone user, like high."""
    high: float | None


@dataclass(frozen=True)
class Lead:
    """The champion's lead over another method among cold users, and among the others."""

    dataset: str
    metric: str
    other: str
    cold: float
    others: float
    gap: Comparison
    """cold - others."""
    p_holm: float | None
    """Over the leads of the column."""
    runs: tuple[str, ...]

    @property
    def marked(self) -> bool:
        """Holm's p < 0.05, in the direction of the gap; never below 3 runs."""
        return self.gap.power.marks and self.p_holm is not None and self.p_holm < LEVEL


class Verdict(Enum):
    """What the data say of the claim."""

    SUPPORTED = Judgement.SUPPORTED.value
    CONTRADICTED = Judgement.CONTRADICTED.value
    UNDECIDED = Judgement.UNDECIDED.value
    UNTESTED = "not testable here"


@dataclass(frozen=True)
class ColdClaim:
    """The paper's claim on one data set."""

    dataset: str
    verdict: Verdict
    claim: stats.Claim | None
    """None where users or runs that the claim needs are not there."""
    why: str
    """Why there is no judgement; empty where there is one."""


@dataclass(frozen=True)
class ColdStart:
    """Table 3, the strata, and what they say."""

    table: Table
    cold: tuple[Cold, ...]
    strata: tuple[Stratum, ...]
    points: tuple[Point, ...]
    """Of every method with stored runs, reference rows last."""
    named: tuple[str, ...]
    """Labels that the figure draws in full: the table's rows, at most six."""
    leads: tuple[Lead, ...]
    claims: tuple[ColdClaim, ...]

    def of(self, dataset: str) -> list[Stratum]:
        """The strata of a data set."""
        return [stratum for stratum in self.strata if stratum.dataset == dataset]

    def line(self, label: str, dataset: str) -> list[Point]:
        """A method's points on a data set, in the order of the strata."""
        return [p for p in self.points if p.method == label and p.stratum.dataset == dataset]


def build_cold_start(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    datasets: Sequence[TableData],
    rows: Mapping[str, Method],
    recorded: Mapping[str, Int[ndarray, " user"]],
    *,
    further: tuple[Iterable[Record], Sequence[Cell]] = ((), ()),
    failed: Mapping[str, str] | None = None,
    searches: Mapping[tuple[str, str], Sequence[Trial]] | None = None,
    budget_name: str = "",
    overrides: Sequence[str] = (),
) -> ColdStart:
    """Build the table, the strata and what they say.

    Args:
        records: Finished runs, each of a wanted cell.
        wanted: Methods x data sets x seeds, reference rows with one seed.
        datasets: The data sets, in order.
        rows: The method of every wanted cell, by key, in the order of printing.
        recorded: Interactions before the test favor of each test user, by data set.
        further: Runs of Table 2's other methods, and their cells; they enter the strata alone.
        failed: Why a cell has no record, by key.
        searches: The trials of tuning, by the method's key and the data set.
        budget_name: Printed, like `overrides`.
        overrides: The user's `key=value`.

    Raises:
        InputError: Two records that may not stand in one table.
    """
    kept, (more, other_cells) = tuple(records), further
    chosen = {data.name: recorded[data.name] <= COLD for data in datasets}
    cold = tuple(_cold(data.name, recorded[data.name]) for data in datasets)
    table = build_table(
        kept, wanted, datasets, failed=failed, target="table3", searches=searches,
        budget_name=budget_name, overrides=overrides, methods=rows, metrics=COLD_METRICS, users=chosen,
        published=Published.cold_start({one.dataset: one.share for one in cold}),
    )  # fmt: skip
    labels = [row.label for row in table.rows]
    table = replace(
        table,
        title=f"{table.title}: at most {COLD} interactions before the test",
        left_out=tuple(label for label in (*RIVALS, CHAMPION) if label not in labels),
    )
    found = gather(kept, wanted, datasets, failed or {}, rows, chosen)
    everyone = gather((*kept, *more), (*wanted, *other_cells), datasets, failed or {})
    strata = tuple(
        stratum for data in datasets for stratum in _strata(data.name, recorded[data.name])
    )
    return ColdStart(
        table=table,
        cold=cold,
        strata=strata,
        points=tuple(_points(everyone, strata, recorded)),
        named=_named(labels),
        leads=tuple(
            lead
            for data in datasets
            for metric in COLD_METRICS
            for lead in _leads(everyone, labels, data.name, metric, chosen[data.name])
        ),
        claims=_claims(found, cold),
    )


def _cold(dataset: str, recorded: Int[ndarray, " user"]) -> Cold:
    shortest, longest = (int(recorded.min()), int(recorded.max())) if len(recorded) else (0, 0)
    return Cold(dataset, int((recorded <= COLD).sum()), len(recorded), shortest, longest)


def _strata(dataset: str, recorded: Int[ndarray, " user"]) -> list[Stratum]:
    """Those that have users."""
    made = [Stratum(dataset, *ends, int(_inside(recorded, *ends).sum())) for ends in STRATA]
    return [stratum for stratum in made if stratum.users]


def _inside(recorded: Int[ndarray, " user"], low: int, high: int | None) -> Bool[ndarray, " user"]:
    return np.asarray((recorded >= low) & (recorded <= (math.inf if high is None else high)))


def _named(labels: Sequence[str]) -> tuple[str, ...]:
    """The table's rows where they can be told apart by colour; else the paper's, then the first."""
    most = 6
    first = [label for label in labels if label in {CHAMPION, *RIVALS}]
    rest = [label for label in labels if label not in first]
    chosen = {*first, *rest[: most - len(first)]}
    return tuple(label for label in labels if label in chosen)


def _points(
    found: Gathered, strata: Sequence[Stratum], recorded: Mapping[str, Int[ndarray, " user"]]
) -> Iterable[Point]:
    """Every method with runs in every stratum."""
    for row in found.rows:
        for stratum in strata:
            runs = found.runs.get((row.label, stratum.dataset))
            if runs is None:
                continue
            group = _inside(recorded[stratum.dataset], stratum.low, stratum.high)
            scores = runs.scores(STRATA_METRIC)[:, group]
            keys = tuple(record.key for record in runs.records)
            if stratum.users < 2:
                mean = float(scores.mean())
                yield Point(row.label, row.group, stratum, keys, mean, None, None)
            else:
                one = stats.one_mean(stats.moments(scores))
                yield Point(row.label, row.group, stratum, keys, one.mean, one.low, one.high)


def _leads(
    found: Gathered,
    labels: Sequence[str],
    dataset: str,
    metric: str,
    cold: Bool[ndarray, " user"],
) -> list[Lead]:
    """The champion against each of the others; none where either kind of user is too rare."""
    ours = found.runs.get((CHAMPION, dataset))
    if ours is None or min(cold.sum(), (~cold).sum()) < 2:
        return []
    a = ours.scores(metric)
    made = []
    for label in labels:
        runs = found.runs.get((label, dataset))
        if label == CHAMPION or runs is None:
            continue
        b = runs.scores(metric)
        inside, outside = (
            float(a[:, group].mean() - b[:, group].mean()) for group in (cold, ~cold)
        )
        made.append(
            Lead(dataset, metric, label, inside, outside, lead_gap(a, b, cold), None,
                 (*_keys(ours), *_keys(runs)))
        )  # fmt: skip
    tested = [lead.gap.p for lead in made if lead.gap.p is not None]
    corrected = iter(stats.holm(tested))
    return [lead if lead.gap.p is None else replace(lead, p_holm=next(corrected)) for lead in made]


def _keys(runs: Runs) -> tuple[str, ...]:
    return tuple(record.key for record in runs.records)


def _claims(found: Gathered, cold: Sequence[Cold]) -> tuple[ColdClaim, ...]:
    """The paper's claim on each data set, one Holm family (protocol, claims)."""
    parts: dict[str, list[Comparison]] = {}
    why: dict[str, str] = {}
    for one in cold:
        there = {runs.method.label for runs in found.methods(one.dataset)}
        lacking = [label for label in (CHAMPION, *RIVALS) if label not in there]
        if one.users < 2:
            why[one.dataset] = f"{one.users} of {one.everyone} test users are cold"
        elif lacking:
            why[one.dataset] = f"no runs of {', '.join(lacking)}"
        else:
            columns = [
                stats.column(
                    {
                        runs.method.label: stats.moments(runs.scores(metric))
                        for runs in found.methods(one.dataset)
                    }
                )
                for metric in COLD_METRICS
            ]
            parts[one.dataset] = [
                column.compare(CHAMPION, rival) for column in columns for rival in RIVALS
            ]
    judged = stats.claims(parts)
    few = {Power.ONE: "one run a row", Power.TWO: "two runs a row"}
    made = []
    for one in cold:
        claim = judged.get(one.dataset)
        if claim is None:
            made.append(ColdClaim(one.dataset, Verdict.UNTESTED, None, why[one.dataset]))
        else:
            verdict = Verdict(claim.judgement.value)
            made.append(ColdClaim(one.dataset, verdict, claim, few.get(claim.power, "")))
    return tuple(made)


# ------------------------------------------------------------------------------------ for programs


def cold_start_json(made: ColdStart) -> dict[str, Any]:
    """Table 2's schema of the cold users, and `cold`, `strata`, `leads`, `claims`."""
    return {
        **json_content(made.table),
        "cold": [
            {
                "dataset": one.dataset,
                "most_interactions": COLD,
                "users": one.users,
                "test_users": one.everyone,
                "share": one.share,
                "shortest": one.shortest,
                "longest": one.longest,
            }
            for one in made.cold
        ],
        "strata": [_point_line(point) for point in made.points],
        "leads": [_lead_line(lead) for lead in made.leads],
        "claims": [
            {
                "text": CLAIM,
                "dataset": one.dataset,
                "judgement": one.verdict.value,
                "comparisons": one.claim.parts if one.claim else None,
                "support_p": one.claim.support_p if one.claim else None,
                "support_p_holm": one.claim.support_holm if one.claim else None,
                "reverse_p": one.claim.reverse_p if one.claim else None,
                "reverse_p_holm": one.claim.reverse_holm if one.claim else None,
                "why": one.why,
            }
            for one in made.claims
        ],
    }


def _point_line(point: Point) -> dict[str, Any]:
    stratum = point.stratum
    return {
        "group": point.group.value,
        "method": point.method,
        "dataset": stratum.dataset,
        "metric": STRATA_METRIC,
        "mean": point.mean,
        "seeds": len(point.runs),
        "low": point.low,
        "high": point.high,
        "least_interactions": stratum.low,
        "most_interactions": stratum.high,
        "users": stratum.users,
        "few_users": stratum.few,
    }


def _lead_line(lead: Lead) -> dict[str, Any]:
    return {
        "method": lead.other,
        "dataset": lead.dataset,
        "metric": lead.metric,
        "lead_cold": lead.cold,
        "lead_others": lead.others,
        "effect": lead.gap.difference,
        "effect_low": lead.gap.low,
        "effect_high": lead.gap.high,
        "df": lead.gap.df,
        "p": lead.gap.p,
        "p_holm": lead.p_holm,
        "p_users": lead.gap.p_users,
        "p_seeds": lead.gap.p_seeds,
        "holm_marked": lead.marked,
    }


def cold_start_csv(made: ColdStart) -> str:
    """Every number, a line each; `kind` says which: method, reference, stratum or lead."""
    users = {one.dataset: one.users for one in made.cold}
    demo = {data.name: data.demo for data in made.table.data}
    return written(
        [
            *(
                {
                    **line,
                    "least_interactions": 0,
                    "most_interactions": COLD,
                    "users": users[line["dataset"]],
                    "few_users": users[line["dataset"]] < FEW_USERS,
                }
                for line in csv_lines(made.table)
            ),
            *(
                {"kind": "stratum", **_point_line(point), "demo": demo[point.stratum.dataset]}
                for point in made.points
            ),
            *(
                {"kind": "lead", **_lead_line(lead), "demo": demo[lead.dataset]}
                for lead in made.leads
            ),
        ]
    )
