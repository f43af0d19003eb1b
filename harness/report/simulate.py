"""Planted worlds from stored records: does a part's gain grow with what the part is for?

A sweep turns one knob of a generated world and leaves the rest alone. At every value the full model
stands against itself without a part; here the gains are computed, held against the knob, and judged.
`simulate_page.py` arranges them, `simulate_figure.py` draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jaxtyping import Int
from numpy import ndarray

from harness import stats
from harness.config import Cell, cell_key
from harness.report.content import CHAMPION
from harness.report.export import data_json, heading
from harness.report.gather import Gathered, TableData, gather
from harness.report.noise import Removed
from harness.stats import Claim, Comparison, Judgement, Moments, OneMean, Power
from harness.stats.contrast import Term, contrast, line_weights
from harness.store import Record
from harness.zoo import Method

SIMULATE_METRICS = ("HR@10", "NDCG@10")


@dataclass(frozen=True)
class Knob:
    """One thing that is planted, and what it is planted for."""

    name: str
    title: str
    axis: str
    """What its value is."""
    parts: tuple[str, ...]
    """Removals, by Figure 3's names, of the parts that should matter where the knob is high."""
    zero: str
    """What the world is like at 0, where these parts have nothing to do."""
    oracle: str = ""
    """What the full model at 0 stands for elsewhere in the sweep: a bound; empty where it is none."""


KNOBS = {
    "accident": Knob(
        "accident",
        "Accidental clicks",
        "chance of an accidental click before a step",
        ("w/o CDMD-B",),
        "no click is an accident",
        "accidental clicks taken out (fit and test)",
    ),
    "nuisance": Knob(
        "nuisance",
        "Noise in the image and text vectors",
        "size of the noise in the vectors",
        ("w/o CDMD-M",),
        "the vectors are clean",
        "clean vectors",
    ),
    "preference": Knob(
        "preference",
        "How clicks and favors differ",
        "difference between clicks and favors (1: as the data set is)",
        ("w/o MEIE", "w/o Shared Expert"),
        "image and text move clicks and favors alike",
    ),
}
"""The sweeps, by their names on the command line, in the order of the page."""


@dataclass(frozen=True)
class Point:
    """One value of a knob, and the prepared set that has it."""

    value: float
    world: str


@dataclass(frozen=True)
class Sweep:
    """One knob turned in the world of one data set."""

    knob: Knob
    data: str
    default: float
    """The data set's own value, at which its own records stand."""
    points: tuple[Point, ...]
    """Ascending."""


@dataclass(frozen=True)
class WorldFacts:
    """What a world holds, for readers who want to know what else a knob changes."""

    world: str
    events: int
    accidental_clicks: int
    favors: int
    users: int
    """Test users."""
    agreement: float | None
    """Cosine between what moves clicks and what moves favors."""


@dataclass(frozen=True)
class Noise:
    """What CDMD-M took out of one modality's features in one world, or why that is not known."""

    data: str
    point: Point
    mode: str
    removed: Removed | None
    run: str = ""
    """Key of the record whose model it is."""
    why: str = ""


@dataclass(frozen=True)
class Level:
    """A row's mean in one world."""

    data: str
    knob: str
    point: Point
    row: str
    metric: str
    mean: OneMean | None
    """None for a gap."""
    runs: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Gain:
    """A difference in one world: the full model minus a removal, or the oracle minus the full model."""

    data: str
    knob: str
    point: Point
    row: str
    """The removal, or ORACLE."""
    metric: str
    comparison: Comparison
    runs: tuple[str, ...]


ORACLE = "oracle"


class Finding(Enum):
    """What a sweep says of a part."""

    EARNS = "earns its keep where it should"
    NOT_FOUND = "not found"
    HARMS = "harms where it should help"
    FALLS = "its gain falls as the knob rises"
    UNTESTED = "not testable here"


@dataclass(frozen=True)
class Verdict:
    """One part in one sweep and metric."""

    data: str
    knob: str
    part: str
    metric: str
    zero: Gain | None
    """At 0."""
    top: Gain | None
    """At the sweep's greatest value."""
    rise: Comparison | None
    """Of the straight line through the gains, from the sweep's least value to its greatest."""
    claim: Claim | None
    finding: Finding
    why: str = ""
    """Why there is no test; empty where there is one."""
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Simulation:
    """All sweeps, computed."""

    data: tuple[TableData, ...]
    """The data sets that were asked for."""
    worlds: tuple[TableData, ...]
    sweeps: tuple[Sweep, ...]
    levels: tuple[Level, ...]
    gains: tuple[Gain, ...]
    verdicts: tuple[Verdict, ...]
    noise: tuple[Noise, ...]
    facts: tuple[WorldFacts, ...]
    protocol: Mapping[str, Any]
    users_limit: int
    budget_name: str
    overrides: tuple[str, ...]
    comparisons: int
    """Entries of the Holm family."""
    trained: int
    """Runs."""
    cut_off: int
    """Of these, runs that the limit of epochs ended while patience would have gone on."""

    def level(self, sweep: Sweep, point: Point, row: str, metric: str) -> Level:
        """One mean of a sweep."""
        return next(
            one for one in self.levels
            if (one.data, one.knob, one.point, one.row, one.metric)
            == (sweep.data, sweep.knob.name, point, row, metric)
        )  # fmt: skip

    def gain(self, sweep: Sweep, point: Point, row: str, metric: str) -> Gain | None:
        """One difference of a sweep; None where runs are missing."""
        found = (
            one for one in self.gains
            if (one.data, one.knob, one.point, one.row, one.metric)
            == (sweep.data, sweep.knob.name, point, row, metric)
        )  # fmt: skip
        return next(found, None)

    def headroom(self, verdict: Verdict) -> Gain | None:
        """The oracle minus the full model at the top of a verdict's sweep."""
        found = (
            one for one in self.gains
            if verdict.top is not None
            and (one.data, one.knob, one.point, one.row, one.metric)
            == (verdict.data, verdict.knob, verdict.top.point, ORACLE, verdict.metric)
        )  # fmt: skip
        return next(found, None)

    @property
    def power(self) -> Power:
        """What the row with the fewest runs allows."""
        powers = [level.mean.power for level in self.levels if level.mean]
        return min(powers, key=list(Power).index, default=Power.ONE)


def part_of(removal: str) -> str:
    """`CDMD-B` of `w/o CDMD-B`."""
    return removal.removeprefix("w/o ")


def build_simulation(
    records: Iterable[Record],
    wanted: Sequence[Cell],
    worlds: Sequence[TableData],
    rows: Mapping[str, Method],
    sweeps: Sequence[Sweep],
    *,
    people: Mapping[str, Int[ndarray, " user"]],
    noise: Sequence[Noise] = (),
    facts: Sequence[WorldFacts] = (),
    failed: Mapping[str, str] | None = None,
    budget_name: str = "",
    overrides: Sequence[str] = (),
) -> Simulation:
    """Compute everything that the page says.

    Args:
        records: Finished runs, each of a wanted cell.
        wanted: Worlds x rows x seeds, each cell once.
        worlds: Every world of the sweeps; records must have been made from exactly these.
        rows: The row of every wanted cell, by key.
        sweeps: Which worlds stand beside each other.
        people: Of every world with records, who its test users are: the same number is the same
            person in every world of a sweep.
        noise: What CDMD-M took out, where that is known.
        facts: Of the worlds; printed.
        failed: Why a cell has no record, by key.
        budget_name: Printed, like `overrides`.
        overrides: The user's `key=value`.

    Raises:
        InputError: Two records that may not stand in one table.
    """
    kept = tuple(records)
    found = gather(kept, wanted, worlds, failed or {}, rows)
    scores = _Scores(found, people)
    places = [(sweep, point) for sweep in sweeps for point in sweep.points]
    levels = [
        scores.level(sweep, point, row, metric)
        for sweep, point in places
        for row in (CHAMPION, *sweep.knob.parts)
        for metric in SIMULATE_METRICS
    ]
    gains = [
        gain
        for sweep, point in places
        for row in (*sweep.knob.parts, *([ORACLE] if sweep.knob.oracle else []))
        for metric in SIMULATE_METRICS
        if (gain := scores.gain(sweep, point, row, metric)) is not None
    ]
    asked = {cell.data for cell in wanted}
    names = dict.fromkeys(sweep.data for sweep in sweeps)
    return Simulation(
        data=tuple(world for world in worlds if world.name in names),
        worlds=tuple(world for world in worlds if world.name in asked),
        sweeps=tuple(sweeps),
        levels=tuple(levels),
        gains=tuple(gains),
        verdicts=(verdicts := _verdicts(scores, sweeps)),
        noise=tuple(noise),
        facts=tuple(facts),
        protocol=found.protocol,
        users_limit=max((cell.users for cell in wanted), default=0),
        budget_name=budget_name,
        overrides=tuple(overrides),
        comparisons=2 * sum(1 for v in verdicts if v.claim and v.claim.support_p is not None),
        trained=len(kept),
        cut_off=sum(map(_cut_off, kept)),
    )


def _cut_off(record: Record) -> bool:
    """Whether a run might have become better with more epochs."""
    train = record.config["train"]
    return bool(
        record.epochs >= train["epochs"] and record.epochs - record.best_epoch < train["patience"]
    )


class _Scores:
    """Moments of every row, world and metric, computed once, and their differences."""

    def __init__(self, found: Gathered, people: Mapping[str, Int[ndarray, " user"]]) -> None:
        self.found = found
        self.people = people
        self.known: dict[tuple[str, str, str], Moments] = {}

    def moments(self, row: str, world: str, metric: str) -> Moments | None:
        """None where there is no run."""
        runs = self.found.runs.get((row, world))
        if runs is None:
            return None
        key = (row, world, metric)
        if key not in self.known:
            self.known[key] = stats.moments(runs.scores(metric))
        return self.known[key]

    def keys(self, row: str, world: str) -> tuple[str, ...]:
        """Keys of the records."""
        runs = self.found.runs.get((row, world))
        return tuple(record.key for record in runs.records) if runs else ()

    def level(self, sweep: Sweep, point: Point, row: str, metric: str) -> Level:
        """A mean, or the reason for its gap."""
        own = self.moments(row, point.world, metric)
        why = "; ".join(self.found.missing.get((row, point.world), ()))
        mean = stats.one_mean(own) if own is not None else None
        keys = self.keys(row, point.world)
        return Level(sweep.data, sweep.knob.name, point, row, metric, mean, keys, why)

    def term(self, weight: float, row: str, world: str, metric: str) -> Term | None:
        """A mean as part of a sum."""
        own = self.moments(row, world, metric)
        return None if own is None else Term(weight, own, self.people[world])

    def gain(self, sweep: Sweep, point: Point, row: str, metric: str) -> Gain | None:
        """The full model minus a removal; for ORACLE the full model at 0 minus it here."""
        if row == ORACLE:
            zero = sweep.points[0]
            if zero.value != 0 or point == zero:
                return None
            sides = ((CHAMPION, zero.world), (CHAMPION, point.world))
        else:
            sides = ((CHAMPION, point.world), (row, point.world))
        terms = [
            self.term(weight, *side, metric)
            for weight, side in zip((1.0, -1.0), sides, strict=True)
        ]
        made = [term for term in terms if term is not None]
        if len(made) < len(terms):
            return None
        keys = tuple(key for side in sides for key in self.keys(*side))
        return Gain(sweep.data, sweep.knob.name, point, row, metric, contrast(made), keys)

    def rise(
        self, sweep: Sweep, part: str, metric: str
    ) -> tuple[Comparison | None, tuple[str, ...]]:
        """How much the gain's straight line rises over the sweep, and the runs it rests on."""
        pairs = [
            (point, full, less)
            for point in sweep.points
            if (full := self.moments(CHAMPION, point.world, metric)) is not None
            and (less := self.moments(part, point.world, metric)) is not None
        ]
        if len(pairs) < 2:
            return None, ()
        terms, keys = [], []
        weights = line_weights([point.value for point, _, _ in pairs])
        for weight, (point, full, less) in zip(weights, pairs, strict=True):
            users = self.people[point.world]
            terms += [Term(float(weight), full, users), Term(-float(weight), less, users)]
            keys += [*self.keys(CHAMPION, point.world), *self.keys(part, point.world)]
        return contrast(terms), tuple(keys)


def _verdicts(scores: _Scores, sweeps: Sequence[Sweep]) -> tuple[Verdict, ...]:
    """Every part in every sweep and metric, one Holm family.

    "Earns its keep where it should" says two things: the gain rises with the knob, and at the top it
    is above zero (protocol, claims: the largest one-sided p of both).
    """
    open_ends = []
    parts: dict[str, list[Comparison]] = {}
    for sweep in sweeps:
        for part in sweep.knob.parts:
            for metric in SIMULATE_METRICS:
                name = f"{sweep.data} {sweep.knob.name} {part} {metric}"
                zero = scores.gain(sweep, sweep.points[0], part, metric)
                top = scores.gain(sweep, sweep.points[-1], part, metric)
                rise, keys = scores.rise(sweep, part, metric)
                if top is not None and rise is not None:
                    parts[name] = [rise, top.comparison]
                zero = zero if sweep.points[0].value == 0 else None
                open_ends.append((name, sweep, part, metric, zero, top, rise, keys))
    judged = stats.claims(parts)
    return tuple(
        Verdict(
            sweep.data, sweep.knob.name, part, metric, zero, top, rise, judged.get(name),
            *_finding(judged.get(name), top, rise), keys,
        )
        for name, sweep, part, metric, zero, top, rise, keys in open_ends
    )  # fmt: skip


def _finding(claim: Claim | None, top: Gain | None, rise: Comparison | None) -> tuple[Finding, str]:
    """A claim's judgement in this page's words, and why there is none."""
    if claim is None or top is None or rise is None:
        return Finding.UNTESTED, "runs at the greatest value and at one other are needed"
    if not claim.power.marks:
        few = "one run" if claim.power is Power.ONE else "two runs"
        return Finding.UNTESTED, f"{few} a row; three are needed"
    if claim.judgement is Judgement.SUPPORTED:
        return Finding.EARNS, ""
    if claim.judgement is Judgement.UNDECIDED:
        return Finding.NOT_FOUND, ""
    below, falls = top.comparison.p_greater or 0.0, rise.p_greater or 0.0
    return (Finding.HARMS if below >= falls else Finding.FALLS), ""


def simulate_json(simulation: Simulation) -> dict[str, Any]:
    """The content of table.json: JSON's types, every number finite or null."""
    worlds = {world.name: world for world in simulation.worlds}
    return {
        **heading("simulate", simulation.data, simulation.protocol),
        "worlds": [data_json(world) for world in worlds.values()],
        "sweeps": [
            {
                "data": sweep.data,
                "knob": sweep.knob.name,
                "default": sweep.default,
                "points": [{"value": p.value, "world": p.world} for p in sweep.points],
            }
            for sweep in simulation.sweeps
        ],
        "lines": lines(simulation),
        "facts": [vars(facts) for facts in simulation.facts],
        "correction": {"method": "holm", "comparisons": simulation.comparisons},
        "runs": {"trained": simulation.trained, "cut_off": simulation.cut_off},
    }


def lines(simulation: Simulation) -> list[dict[str, Any]]:
    """Every number as one line: kind is mean, gain, headroom, rise or noise."""
    empty: dict[str, Any] = dict.fromkeys(
        ("kind", "data", "sweep", "value", "world", "row", "metric", "runs", "estimate", "sd", "low",
         "high", "p", "df", "p_for", "p_against", "finding", "why")
    )  # fmt: skip
    made = [empty | _level_line(level) for level in simulation.levels]
    made += [empty | _gain_line(gain) for gain in simulation.gains]
    made += [empty | _verdict_line(verdict) for verdict in simulation.verdicts]
    made += [empty | line for noise in simulation.noise for line in _noise_lines(noise)]
    return made


def _level_line(level: Level) -> dict[str, Any]:
    mean = level.mean
    return {
        "kind": "mean", "data": level.data, "sweep": level.knob, "value": level.point.value,
        "world": level.point.world, "row": level.row, "metric": level.metric,
        "runs": len(level.runs), "estimate": mean and mean.mean, "sd": mean and mean.sd,
        "low": mean and mean.low, "high": mean and mean.high, "why": level.why or None,
    }  # fmt: skip


def _numbers(pair: Comparison | None) -> dict[str, Any]:
    if pair is None:
        return {}
    return {
        "estimate": pair.difference,
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
        "df": pair.df,
    }


def _gain_line(gain: Gain) -> dict[str, Any]:
    kind = "headroom" if gain.row == ORACLE else "gain"
    return {
        "kind": kind, "data": gain.data, "sweep": gain.knob, "value": gain.point.value,
        "world": gain.point.world, "row": CHAMPION if kind == "headroom" else part_of(gain.row),
        "metric": gain.metric, "runs": len(gain.runs), **_numbers(gain.comparison),
    }  # fmt: skip


def _verdict_line(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "kind": "rise", "data": verdict.data, "sweep": verdict.knob, "row": part_of(verdict.part),
        "metric": verdict.metric, "runs": len(verdict.runs), **_numbers(verdict.rise),
        "p_for": claim and claim.support_holm, "p_against": claim and claim.reverse_holm,
        "finding": verdict.finding.value, "why": verdict.why or None,
    }  # fmt: skip


def _noise_lines(noise: Noise) -> list[dict[str, Any]]:
    start = {
        "kind": "noise", "data": noise.data, "sweep": "nuisance", "value": noise.point.value,
        "world": noise.point.world, "row": noise.mode, "why": noise.why or None,
    }  # fmt: skip
    if noise.removed is None:
        return [start]
    shares = {
        "share removed": noise.removed.distance,
        "share removed, direction": noise.removed.direction,
        "share removed, best affine map": noise.removed.affine,
    }
    made = [
        start | {"metric": name, "runs": 1, "estimate": share and share.mean,
                 "sd": share and share.sd, "low": share and share.low, "high": share and share.high}
        for name, share in shares.items()
    ]  # fmt: skip
    return [*made, start | {"metric": "moved", "runs": 1, "estimate": noise.removed.moved}]


def unique_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once: sweeps of one data set share its own world."""
    return list({cell_key(cell): cell for cell in cells}.values())
