"""The multiverse from stored records: every reading of the text, M3BSR against one rival.

Two questions of each reading: does M3BSR beat the rival under it, and does M3BSR itself change? Both
are V-tests (protocol, Statistics). Readings of the model share one test with the reading they start
from; a reading of the protocol is a test of its own, so that only M3BSR minus the rival is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Any

from harness import stats
from harness.config import Cell, cell_key, plain
from harness.errors import InputError
from harness.report.content import CHAMPION
from harness.report.document import (
    EMPTY,
    Band,
    Document,
    Entry,
    Grid,
    Line,
    Notes,
    Picture,
    Span,
    entry,
)
from harness.report.export import heading, written
from harness.report.footers import protocol_fingerprint
from harness.report.gather import Gathered, TableData, gather
from harness.report.layout import demo_line, p_value
from harness.stats import Comparison, Moments, Plateau, Power
from harness.stats.spread import EqualSpread, equal_spread
from harness.stats.variance import LEVEL
from harness.store import Record
from harness.zoo import Method, find
from models.readings import Option

BASE = "default"
"""The reading that the others start from: the paper's set, or the user's overrides of it."""
METRICS = ("HR@10", "NDCG@10")
DECIDES = "NDCG@10"
"""The verdict's metric: the one that chose epochs, settings and the rival."""
TITLE = f"Multiverse. Does {CHAMPION} win however the text is read?"
DIVERGED = ("TrainingDivergedError", "BadScoresError")
"""Failures that are results: the reading does not train."""
NO_TRAINING = "does not train"
DROWNED = 1000
"""A loss so many times its part that ranks items is said to drown it."""


class Kind(Enum):
    """Groups of readings, as headed."""

    BASE = "What the others start from"
    MODEL = "Readings of the model, one at a time"
    SET = "Sets of readings"
    PROTOCOL = "Readings of the protocol, one at a time (the rival is run under them too)"


class Verdict(Enum):
    """M3BSR against the rival under one reading."""

    WINS = "wins"
    OPEN = "cannot be told"
    LOSES = "loses"


@dataclass(frozen=True)
class Specification:
    """One reading on one data set, with the cells that it needs."""

    id: str
    """R1 to R23, P1 to P5, the name of a set, or BASE."""
    kind: Kind
    option: str
    """Its key below `model.` or `protocol.`; empty for a set and for BASE."""
    value: str
    usual: str
    """What BASE has there."""
    why: str
    turned: tuple[str, ...]
    """`R6 noise` of every option that differs from BASE."""
    cells: tuple[Cell, ...]
    """M3BSR's; none for a reading that leaves nothing to train on or to test."""
    rival: tuple[Cell, ...]
    """The rival's under the same reading of the protocol."""
    data: TableData
    """With the candidates of this reading."""
    unusable: str = ""
    """Why there can be no runs."""

    @property
    def label(self) -> str:
        """`R6 diffusion.loss=noise`, `repaired`."""
        return f"{self.id} {self.option}={self.value}" if self.option else self.id

    @property
    def short(self) -> str:
        """`R6 noise`."""
        return f"{self.id} {self.value}" if self.option else self.id


@dataclass(frozen=True)
class Panel:
    """A data set: its rival and its readings, BASE first."""

    data: TableData
    rival: Method
    why_rival: str
    specifications: tuple[Specification, ...]


@dataclass(frozen=True)
class Outcome:
    """One reading in one metric; None where runs are missing."""

    moments: Moments | None = None
    rival: Moments | None = None
    against_rival: Comparison | None = None
    """M3BSR minus the rival."""
    rival_holm: float | None = None
    """Holm over all readings of the data set and metric."""
    against_base: Comparison | None = None
    """M3BSR under this reading minus M3BSR under BASE; only where both have one test."""
    base_holm: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """By p < 0.05 for this reading alone, as a paper with this reading would have it."""
        return None if self.against_rival is None else _verdict(self.against_rival)

    @property
    def changes(self) -> bool:
        """Whether the reading is called different from BASE."""
        pair = self.against_base
        return bool(
            pair and pair.power.marks and self.base_holm is not None and self.base_holm < LEVEL
        )


def _verdict(pair: Comparison) -> Verdict:
    if not pair.power.marks or pair.p is None or pair.p >= LEVEL:
        return Verdict.OPEN
    return Verdict.WINS if pair.difference > 0 else Verdict.LOSES


@dataclass(frozen=True)
class Reading:
    """A reading and what its runs say."""

    specification: Specification
    outcomes: Mapping[str, Outcome]
    """By metric."""
    runs: tuple[str, ...]
    """Keys of M3BSR's records."""
    rival_runs: tuple[str, ...]
    users: int | None
    """Test users; a reading of the protocol may have others than BASE."""
    gaps: tuple[str, ...]
    """Why runs are missing, M3BSR's and the rival's."""
    remark: str
    """Where M3BSR's own losses drown the one that ranks items."""
    status: str
    """Instead of numbers where M3BSR has no runs: `does not train`, `failed`, `not run`, ..."""

    @property
    def verdict(self) -> Verdict | None:
        """By the metric that decides."""
        return self.outcomes[DECIDES].verdict


@dataclass(frozen=True)
class Spread:
    """How far the readings that share one test lie apart, beside what equal ones would."""

    metric: str
    lowest: tuple[str, float]
    highest: tuple[str, float]
    count: int
    runs: int
    """Of each reading."""
    left_out: tuple[str, ...]
    """Readings with fewer runs than that."""
    test: Plateau | None
    """Of all being equal; None with one run a reading."""
    equal: EqualSpread

    @property
    def range(self) -> float:
        """Highest minus lowest mean."""
        return self.highest[1] - self.lowest[1]


@dataclass(frozen=True)
class World:
    """A data set's readings."""

    panel: Panel
    readings: tuple[Reading, ...]
    spreads: tuple[Spread, ...]
    seconds: float
    """Of all runs, M3BSR's and the rival's."""

    def compared(self, metric: str) -> list[Reading]:
        """Readings with a difference to the rival."""
        return [row for row in self.readings if row.outcomes[metric].against_rival is not None]


@dataclass(frozen=True)
class Multiverse:
    """Everything that the page says."""

    worlds: tuple[World, ...]
    protocol: Mapping[str, Any]
    seeds: int
    budget_name: str
    overrides: tuple[str, ...]
    options: tuple[Option, ...]


# ----------------------------------------------------------------------------------- from records


def diverged(reason: str) -> bool:
    """Whether a failure says that the method does not train under its settings."""
    return reason.startswith(DIVERGED)


def build_multiverse(
    stored: Mapping[str, Record],
    panels: Iterable[Panel],
    *,
    failed: Mapping[str, str],
    seeds: int,
    options: Sequence[Option],
    budget_name: str = "",
    overrides: Sequence[str] = (),
) -> Multiverse:
    """Read the records of every reading.

    Args:
        stored: Finished runs by key.
        panels: The data sets with their readings.
        failed: Why a cell has no record, by key.
        seeds: Runs asked for.
        options: All options that the text leaves open, for counting their combinations.
        budget_name: Printed, like `overrides`.
        overrides: The user's `key=value`.

    Raises:
        InputError: Two records that may not stand in one table.
    """
    worlds = tuple(_world(stored, panel, failed) for panel in panels)
    base = worlds[0].panel.specifications[0].cells[0]
    protocol = dict(plain(base.protocol))
    return Multiverse(worlds, protocol, seeds, budget_name, tuple(overrides), tuple(options))


def _world(stored: Mapping[str, Record], panel: Panel, failed: Mapping[str, str]) -> World:
    rows = panel.specifications
    shared = [row for row in rows if row.kind is not Kind.PROTOCOL]
    tests = [shared, *([row] for row in rows if row.kind is Kind.PROTOCOL and row.cells)]
    found: dict[str, Gathered] = {}
    for group in tests:
        made = _gather(stored, group, panel.rival, failed)
        found |= dict.fromkeys((row.label for row in group), made)
    seen = {run.key: run for made in found.values() for one in made.runs.values() for run in one.records}  # fmt: skip
    moments = {
        metric: {
            label: stats.moments(made.runs[label, panel.data.name].scores(metric))
            for label, made in found.items()
            if (label, panel.data.name) in made.runs
        }
        for metric in METRICS
    }
    outcomes = {metric: _outcomes(panel, found, moments[metric], metric) for metric in METRICS}
    readings = tuple(
        _reading(row, panel, found.get(row.label), {m: outcomes[m][row.label] for m in METRICS})
        for row in rows
    )
    spreads = [
        _spread(metric, {row.label: (row.short, moments[metric].get(row.label)) for row in shared})
        for metric in METRICS
    ]
    return World(
        panel=panel,
        readings=readings,
        spreads=tuple(spread for spread in spreads if spread is not None),
        seconds=sum((run.seconds["total"] for run in seen.values()), 0.0),
    )


def _gather(
    stored: Mapping[str, Record],
    group: Sequence[Specification],
    rival: Method,
    failed: Mapping[str, str],
) -> Gathered:
    """The runs of readings that share one test, and the rival's."""
    champion = find("m3bsr")
    wanted: dict[str, Cell] = {}
    methods: dict[str, Method] = {}
    for row in group:
        mine = Method(**{**vars(champion), "label": row.label})
        for method, cells in ((mine, row.cells), (rival, row.rival)):
            for cell in cells:
                key = cell_key(cell)
                wanted[key], methods[key] = cell, method
    records = [stored[key] for key in wanted if key in stored]
    return gather(records, list(wanted.values()), [group[0].data], failed, methods)


def _outcomes(
    panel: Panel, found: Mapping[str, Gathered], mine: Mapping[str, Moments], metric: str
) -> dict[str, Outcome]:
    """A metric's comparisons, each family corrected by Holm."""
    theirs = {
        label: stats.moments(made.runs[panel.rival.label, panel.data.name].scores(metric))
        for label, made in found.items()
        if (panel.rival.label, panel.data.name) in made.runs
    }
    rival = {label: stats.compare(own, theirs[label]) for label, own in mine.items() if label in theirs}  # fmt: skip
    base = {
        row.label: stats.compare(mine[row.label], mine[BASE])
        for row in panel.specifications
        if row.kind in {Kind.MODEL, Kind.SET} and row.label in mine and BASE in mine
    }
    rival_holm, base_holm = _holm(rival), _holm(base)
    return {
        row.label: Outcome(
            moments=mine.get(row.label),
            rival=theirs.get(row.label),
            against_rival=rival.get(row.label),
            rival_holm=rival_holm.get(row.label),
            against_base=base.get(row.label),
            base_holm=base_holm.get(row.label),
        )
        for row in panel.specifications
    }


def _holm(pairs: Mapping[str, Comparison]) -> dict[str, float]:
    """Corrected p values; pairs with one run have none."""
    tested = {label: pair.p for label, pair in pairs.items() if pair.p is not None}
    return dict(zip(tested, stats.holm(list(tested.values())), strict=True))


def _reading(
    row: Specification,
    panel: Panel,
    found: Gathered | None,
    outcomes: Mapping[str, Outcome],
) -> Reading:
    name = panel.data.name
    if found is None:
        return Reading(row, outcomes, (), (), None, (row.unusable,), "", "not possible here")
    mine, theirs = found.runs.get((row.label, name)), found.runs.get((panel.rival.label, name))
    missing = found.missing.get((row.label, name), ())
    of_rival = found.missing.get((panel.rival.label, name), ())
    gaps = _by_reason(CHAMPION, missing)
    if row.kind in {Kind.BASE, Kind.PROTOCOL}:  # the others share BASE's runs of the rival
        gaps += _by_reason(panel.rival.label, of_rival)
    status = ""
    if mine is None:
        reasons = [reason.partition(": ")[2] for reason in missing]
        failures = [reason.removeprefix("failed: ") for reason in reasons if reason != "not run"]
        status = "failed" if failures else "not run"
        if failures and all(map(diverged, failures)):
            status = NO_TRAINING
    return Reading(
        specification=row,
        outcomes=outcomes,
        runs=tuple(record.key for record in mine.records) if mine else (),
        rival_runs=tuple(record.key for record in theirs.records) if theirs else (),
        users=mine.above.shape[1] if mine else None,
        gaps=tuple(gaps),
        remark=_drowned(mine.records) if mine else "",
        status=status,
    )  # fmt: skip


def _drowned(records: Sequence[Record]) -> str:
    """A sentence on runs whose last epoch's loss is more than DROWNED times the part that ranks items."""
    last = [record.curve[-1] for record in records if record.curve and "main" in record.curve[-1]]
    large = [row for row in last if row["loss"] > DROWNED * row["main"]]
    if not large:
        return ""
    worst = max(large, key=lambda row: float(row["loss"]))
    return (
        f"trains on a loss of {worst['loss']:.1e}, of which the part that ranks items is {worst['main']:.2f} "
        f"({len(large)} of {len(records)} runs)"
    )


def _by_reason(who: str, missing: Sequence[str]) -> list[str]:
    """`M3BSR seeds 1, 2: not run`."""
    seeds: dict[str, list[str]] = {}
    for gap in missing:
        seed, _, reason = gap.removeprefix("seed ").partition(": ")
        seeds.setdefault(reason, []).append(seed)
    return [
        f"{who} seed{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {reason}"
        for reason, numbers in seeds.items()
    ]


def _spread(metric: str, rows: Mapping[str, tuple[str, Moments | None]]) -> Spread | None:
    """Of the readings that share one test and have the most runs; None for fewer than two."""
    there = {short: own for short, own in rows.values() if own is not None}
    if not there:
        return None
    runs = max(own.runs for own in there.values())
    cells = {short: own for short, own in there.items() if own.runs == runs}
    if len(cells) < 2:
        return None
    means = {short: own.mean for short, own in cells.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    test = stats.heatmap(list(cells.values())) if runs > 1 else None
    return Spread(
        metric=metric,
        lowest=(low, means[low]),
        highest=(high, means[high]),
        count=len(cells),
        runs=runs,
        left_out=tuple(short for short in there if short not in cells),
        test=test,
        equal=equal_spread(len(cells), test.df) if test else equal_spread(len(cells)),
    )


# ------------------------------------------------------------------------------------- in words


def summary(world: World, seeds: int) -> tuple[str, ...]:
    """What a data set says: counts, verdicts that differ, and the spread beside chance."""
    panel = world.panel
    compared = world.compared(DECIDES)
    if not compared:
        return (
            (
                f"{panel.data.name}: {CHAMPION} and {panel.rival.label} have no runs under one reading: "
                "nothing is said."
            ),
        )
    lines = [f"{panel.data.name}: {_counts(world, metric)}" for metric in METRICS]
    lines.append(f"{panel.data.name}: {_differing(world)}")
    lines.append(f"{panel.data.name}: {_changing(world, seeds)}")
    lines += [f"{panel.data.name}: {_spread_line(spread)}" for spread in world.spreads]
    return tuple(lines)


def counts(world: World, metric: str) -> dict[str, int]:
    """Readings compared with the rival: above, below, and significantly so (alone, and after Holm)."""
    rows = [row.outcomes[metric] for row in world.compared(metric)]
    pairs = [(row, row.against_rival) for row in rows if row.against_rival is not None]

    def holm(sign: int) -> int:
        return sum(
            sign * pair.difference > 0 and pair.power.marks
            and row.rival_holm is not None and row.rival_holm < LEVEL
            for row, pair in pairs
        )  # fmt: skip

    return {
        "readings": len(rows),
        "above": sum(pair.difference > 0 for _, pair in pairs),
        "below": sum(pair.difference < 0 for _, pair in pairs),
        "wins": sum(row.verdict is Verdict.WINS for row in rows),
        "loses": sum(row.verdict is Verdict.LOSES for row in rows),
        "wins_holm": holm(1),
        "loses_holm": holm(-1),
        "tested": sum(pair.power.marks for _, pair in pairs),
    }


def _counts(world: World, metric: str) -> str:
    found = counts(world, metric)
    n, rival = found["readings"], world.panel.rival.label
    sides = f"in {found['above']} of {n} readings {CHAMPION} is above {rival} in {metric}"
    under = f"below in {found['below']}"
    if not found["tested"]:
        return f"{sides}, {under}; with fewer than three runs nothing is called significant."
    few = "" if found["tested"] == n else f" ({found['tested']} of them have the runs to say so)"
    return (
        f"{sides}, significantly in {found['wins']} ({found['wins_holm']} after Holm over the readings); "
        f"{under}, significantly in {found['loses']} ({found['loses_holm']} after Holm){few}."
    )


def _differing(world: World) -> str:
    """Readings whose verdict is not BASE's."""
    rows = world.compared(DECIDES)
    own = {row.specification.short: row.verdict for row in rows if row.verdict is not None}
    gaps = len(world.readings) - len(rows)
    missing = f" {gaps} of {len(world.readings)} readings have no verdict." if gaps else ""
    if BASE not in own:
        return f"the {BASE} has no verdict that others could differ from.{missing}"
    base = own[BASE]
    others = {short: verdict for short, verdict in own.items() if verdict is not base}
    start = (
        f"verdict of the {BASE} ({DECIDES}): {CHAMPION} {_said(base)} {world.panel.rival.label}; "
    )
    if not others:
        return f"{start}every other reading with runs has the same.{missing}"
    parts = [
        f"{verdict.value}: {', '.join(short for short, one in others.items() if one is verdict)}"
        for verdict in Verdict
        if verdict in others.values()
    ]
    return f"{start}another one in {len(others)} of {len(own) - 1}: {'; '.join(parts)}.{missing}"


def _said(verdict: Verdict) -> str:
    return {
        Verdict.WINS: "beats",
        Verdict.OPEN: "cannot be told from",
        Verdict.LOSES: "loses against",
    }[verdict]


def _changing(world: World, seeds: int) -> str:
    """Readings under which M3BSR itself is another."""
    rows = [row for row in world.readings if row.outcomes[DECIDES].against_base is not None]
    if not rows:
        return f"{CHAMPION} under other readings is not set against the {BASE}: runs are missing."
    tested = [
        row for row in rows
        if (pair := row.outcomes[DECIDES].against_base) is not None and pair.power.marks
    ]  # fmt: skip
    if not tested:
        few = {Power.ONE: "one run", Power.TWO: "two runs"}.get(Power.of(seeds), "too few runs")
        return f"whether {CHAMPION} changes with the reading cannot be said from {few} a reading."
    parts = []
    for metric in METRICS:
        changed = [
            f"{row.specification.short} ({_signed(row.outcomes[metric].against_base)})"
            for row in tested
            if row.outcomes[metric].changes
        ]
        parts.append(
            f"{metric} {len(changed)} of {len(tested)}"
            + (f": {', '.join(changed)}" if changed else "")
        )
    return f"readings of the model under which {CHAMPION} differs from the {BASE} (Holm): {'; '.join(parts)}."


def _signed(pair: Comparison | None) -> str:
    return "" if pair is None else f"{pair.difference:+.4f}"


def _spread_line(spread: Spread) -> str:
    """The range of a metric over readings, beside the range of equal ones."""
    start = (
        f"{spread.metric} over the {spread.count} readings that share one test lies between "
        f"{spread.lowest[1]:.4f} ({spread.lowest[0]}) and {spread.highest[1]:.4f} ({spread.highest[0]}), "
        f"a range of {spread.range:.4f}"
    )
    left = f" Left out, with fewer runs: {', '.join(spread.left_out)}." if spread.left_out else ""
    equal = (
        f"{spread.count} readings that are all equal lie {spread.equal.expected:.1f} standard deviations of "
        f"a reading's mean apart on average, and less than {spread.equal.high:.1f} in 95 % of cases"
    )
    if spread.test is None:
        return (
            f"{start}. {equal}; one run a reading does not tell that deviation: read nothing from the "
            f"range.{left}"
        )
    one, many = math.sqrt(spread.test.v), math.sqrt(spread.test.D)
    width = f", so that the range is {spread.range / many:.1f} of them" if many else ""
    verdict = "not rejected" if spread.test.flat else "rejected"
    wide = spread.range > spread.equal.high * many
    if wide == spread.test.flat:
        apart = "further apart than 95 % of" if wide else "no further apart than"
        left = f" The two ends alone lie {apart} such ends do.{left}"
    return (
        f"{start}. One run's standard deviation is {one:.4f}, that of a mean of {spread.runs} runs, with "
        f"users x reading, {many:.4f}{width}; {equal}. That all are equal is {verdict} (F test over all of "
        f"them).{left}"
    )


def combinations(options: Iterable[Option]) -> int:
    """How many ways there are to read everything at once."""
    return math.prod(len(option.values) for option in options)


def cautions(made: Multiverse) -> tuple[str, ...]:
    """What a reader must not take from the page."""
    taken = max(len(world.readings) for world in made.worlds)
    count = combinations(made.options)
    return (
        (
            f"One at a time: each row changes one thing and leaves the rest as the {BASE} has it. The text "
            f"allows {count:,} combinations; {taken} of them are here. Readings that matter only together, "
            "or undo one another, are not seen, and no count here is a probability."
        ),
        (
            f"Every reading has the learning rate, width and epochs that suit the {BASE}; another reading "
            "might do better with its own. A low row is no proof that the reading is worse."
        ),
        (
            f"Verdict: {DECIDES}, {CHAMPION} minus the rival, V-test for new runs and new users, p < 0.05 for "
            "this reading alone: what a paper that reads the text so would have reported. Among readings "
            "without any difference one in twenty wins or loses by chance; the summary counts Holm's too. "
            "Never with fewer than three runs."
        ),
        (
            f"Two verdicts that differ need not differ significantly: whether {CHAMPION} itself changes is "
            f"said by the grid of differences to the {BASE}."
        ),
        (
            "Readings P1 to P5 change what is tested or what every method may read and learn from. Their "
            f"HR@10 and NDCG@10 are not comparable with other rows, so no difference to the {BASE} is given; "
            f"{CHAMPION} and the rival share each such test. P2 and P4 may leave fewer test users (column users)."
        ),
    )


def rests_on(made: Multiverse) -> tuple[str, ...]:
    """Data, protocol, runs."""
    lines = []
    for world in made.worlds:
        data = world.panel.data
        lines.append(f"Data {data.name}: sha256 {data.data_sha256[:12]}, candidates {data.candidates_sha256[:12]}"
                     f"{_other_candidates(world)}.")  # fmt: skip
        lines.append(
            f"Rival on {data.name}: {world.panel.rival.label} ({world.panel.rival.key}), {world.panel.why_rival}."
        )
        runs = {key for row in world.readings for key in (*row.runs, *row.rival_runs)}
        lines.append(f"Runs on {data.name}: {len(runs)}, {world.seconds:,.0f} seconds; {made.seeds} asked for of each "
                     "reading. Settings beside the readings are Table 2's.")  # fmt: skip
    typed = f"; overrides: {', '.join(made.overrides)}" if made.overrides else ""
    lines.append(
        f"Protocol of the {BASE}: {protocol_fingerprint(made.protocol)}{typed}; budget {made.budget_name or 'none'}."
    )
    families = [
        f"{metric} on {world.panel.data.name}: "
        f"{sum(row.outcomes[metric].base_holm is not None for row in world.readings)} against the {BASE}, "
        f"{sum(row.outcomes[metric].rival_holm is not None for row in world.readings)} against the rival"
        for world in made.worlds
        for metric in METRICS
    ]
    lines.append(f"Comparisons corrected by Holm, each list a family: {'; '.join(families)}.")
    return tuple(lines)


def _other_candidates(world: World) -> str:
    """`; under P5 popularity 0123456789ab`."""
    own = world.panel.data.candidates_sha256
    return "".join(
        f"; under {row.specification.short} {row.specification.data.candidates_sha256[:12]}"
        for row in world.readings
        if row.specification.data.candidates_sha256 != own
    )


# -------------------------------------------------------------------------------------- the page


def page(made: Multiverse) -> Document:
    """The whole page: figure, summary, both grids, cautions; what each reading is in the appendix."""
    notes: list[str] = []
    main = _grid_of(
        made,
        "Every reading against the rival",
        lambda world: (
            "users",
            *METRICS,
            *(f"{metric} - {world.panel.rival.label}" for metric in METRICS),
            "verdict",
        ),
        lambda row: _against_rival(row, notes),
        tuple(Kind),
    )
    below = [
        (
            f"Mean over runs ± standard deviation of the runs; then {CHAMPION} minus the rival under the "
            "same protocol, ± half of the 95 % interval (new runs and new users; one run: these trained "
            "models, new users). Bold: p < 0.05 for this reading alone."
        ),
        *_few_runs(made),
        *(f"[{number}] {note}" for number, note in enumerate(notes, 1)),
    ]
    parts: list[Grid | Notes | Picture] = [
        Picture("The verdict under every reading", "multiverse", _caption(made)),
        Notes("Summary", tuple(line for world in made.worlds for line in summary(world, made.seeds))),
        Grid(main.title, main.corner, main.bands, main.lines, tuple(below)),
    ]  # fmt: skip
    if any(outcome.against_base for world in made.worlds for row in world.readings
           for outcome in row.outcomes.values()):  # fmt: skip
        other = _grid_of(
            made,
            f"{CHAMPION} under each reading minus {CHAMPION} as {BASE}",
            lambda _: METRICS,
            _against_base,
            (Kind.MODEL, Kind.SET),
        )
        said = (
            "± half of the 95 % interval; p: Holm's, over the readings of the metric and data set. Bold: "
            "below 0.05, with three runs or more."
        )
        parts.append(Grid(other.title, other.corner, other.bands, other.lines, (said,)))
    parts += [
        Notes("How to read this", cautions(made)),
        Notes("What these numbers rest on", rests_on(made)),
    ]
    return Document(opening(made), TITLE, tuple(parts), (_readings_grid(made),))


def opening(made: Multiverse) -> str:
    """The first line: which data."""
    data = [world.panel.data for world in made.worlds]
    names, made_up = [one.name for one in data], [one.name for one in data if one.demo]
    line = demo_line(names, made_up) if made_up else f"Data: {', '.join(names)}."
    limit = max(
        cell.users
        for world in made.worlds
        for row in world.panel.specifications
        for cell in row.cells
    )
    if limit:
        line += f" Only the first {limit} users: this shows that it runs, not who is better."
    return line


def _caption(made: Multiverse) -> str:
    rivals = ", ".join(
        f"{world.panel.rival.label} on {world.panel.data.name}" for world in made.worlds
    )
    return (
        f"Above: {DECIDES} of {CHAMPION} minus the strongest rival ({rivals}), a reading a column, sorted, with "
        "95 % intervals; filled where p < 0.05 for this reading alone; an arrow with a number: off the scale. Below: "
        "what the reading changes. The "
        f"{BASE} is marked through both; columns at the right end have no difference, and say why."
    )


def _few_runs(made: Multiverse) -> list[str]:
    few = {
        row.outcomes[DECIDES].against_rival.power  # type: ignore[union-attr]
        for world in made.worlds
        for row in world.compared(DECIDES)
    }
    said = {
        Power.ONE: "One run a reading: no standard deviation and no p; nothing wins or loses.",
        Power.TWO: "Two runs a reading: p values but no verdict, which would be false too often.",
        Power.LOW: "Low power: with 3 or 4 runs many real differences stay unmarked.",
    }
    return [text for power, text in said.items() if power in few]


def _rows(made: Multiverse, kinds: Sequence[Kind]) -> list[tuple[Kind, str]]:
    """Kinds and labels of all data sets' readings, in order."""
    found = {
        row.specification.label: row.specification.kind
        for world in made.worlds
        for row in world.readings
    }
    return [(kind, label) for kind in kinds for label, own in found.items() if own is kind]


def _grid_of(
    made: Multiverse, title: str, columns: Any, entries: Any, kinds: Sequence[Kind]
) -> Grid:
    """A band a data set, a line a reading, under the headings of their kinds."""
    shorts = {
        world.panel.data.name: world.panel.data.name.removeprefix("demo_").removeprefix("rec_")
        for world in made.worlds
    }
    bands = tuple(
        Band(world.panel.data.name, shorts[world.panel.data.name], tuple(columns(world)))
        for world in made.worlds
    )
    lines: list[Line] = []
    for kind, members in groupby(_rows(made, kinds), key=lambda row: row[0]):
        lines.append(Line(kind.value))
        for _, label in members:
            found: list[Entry] = []
            marks = ""
            for world, band in zip(made.worlds, bands, strict=True):
                row = next((r for r in world.readings if r.specification.label == label), None)
                own, mark = ((entry(BASE),), "") if row is None else entries(row)
                found += [*own, *[EMPTY] * (len(band.columns) - len(own))]
                marks += mark
            lines.append(Line(label + marks, tuple(found)))
    return Grid(title, "Reading", bands, tuple(lines))


def _against_rival(row: Reading, notes: list[str]) -> tuple[tuple[Entry, ...], str]:
    mark = ""
    if said := [*row.gaps, *filter(None, [row.remark])]:
        text = f"{row.specification.label} on {row.specification.data.name}: {'; '.join(said)}."
        notes.append(text)
        mark = f" [{len(notes)}]"
    if not row.runs:
        return (entry(row.status),), mark
    made: list[Entry] = [entry(str(row.users))]
    for metric in METRICS:
        own = row.outcomes[metric].moments
        if own is None:
            raise InputError(f"{row.specification.label}: runs without scores")
        sd = "" if math.isnan(own.v) else "±" + f"{math.sqrt(own.v):.4f}".removeprefix("0")
        made.append((Span(f"{own.mean:.4f}", runs=row.runs), Span(sd)))
    for metric in METRICS:
        outcome = row.outcomes[metric]
        made.append(
            _difference(
                outcome.against_rival,
                (*row.runs, *row.rival_runs),
                bold=outcome.verdict in {Verdict.WINS, Verdict.LOSES},
            )
        )
    verdict = row.verdict
    made.append(entry(verdict.value if verdict else "no runs of the rival"))
    return tuple(made), mark


def _difference(
    pair: Comparison | None, runs: tuple[str, ...], *, bold: bool, p: float | None = None
) -> Entry:
    """`+0.0312 ±.0210 p .012`."""
    if pair is None:
        return EMPTY
    half = (pair.high - pair.low) / 2
    tail = " ±" + f"{half:.4f}".removeprefix("0")
    if p is not None:
        tail += f" p {p_value(p)}"
    return (Span(f"{pair.difference:+.4f}", bold=bold, runs=runs), Span(tail))


def _against_base(row: Reading) -> tuple[tuple[Entry, ...], str]:
    if not row.runs:
        return (entry(row.status),), ""
    return (
        tuple(
            _difference(outcome.against_base, row.runs, bold=outcome.changes, p=outcome.base_holm)
            for outcome in (row.outcomes[metric] for metric in METRICS)
        ),
        "",
    )


def _readings_grid(made: Multiverse) -> Grid:
    """What each reading is, and why the text leaves it open."""
    lines: list[Line] = []
    rows = {
        row.specification.label: row.specification
        for world in made.worlds
        for row in world.readings
    }
    for kind in (Kind.MODEL, Kind.SET, Kind.PROTOCOL):
        members = [row for row in rows.values() if row.kind is kind]
        if members:
            lines.append(Line(kind.value))
            lines += [Line(row.label, (entry(row.usual), entry(row.why))) for row in members]
    return Grid(
        "What each reading is", "Reading", (Band("", "", (BASE, "why it is open")),), tuple(lines)
    )


# ------------------------------------------------------------------------------------ for programs


def json_content(made: Multiverse) -> dict[str, Any]:
    """The content of table.json: JSON's types, every number finite or null."""
    return {
        **heading("multiverse", [world.panel.data for world in made.worlds], made.protocol),
        "rivals": [
            {
                "dataset": world.panel.data.name,
                "method": world.panel.rival.label,
                "why": world.panel.why_rival,
            }
            for world in made.worlds
        ],
        "readings": [line for world in made.worlds for line in _lines(world)],
        "summary": [
            {
                "dataset": world.panel.data.name,
                "metric": metric,
                **counts(world, metric),
                "spread": _spread_json(world, metric),
            }
            for world in made.worlds
            for metric in METRICS
        ],
        "sentences": [line for world in made.worlds for line in summary(world, made.seeds)],
        "combinations": combinations(made.options),
        "correction": {"method": "holm", "within": "metric and data set"},
    }


def _lines(world: World) -> list[dict[str, Any]]:
    return [_line(world, row, metric) for row in world.readings for metric in METRICS]


def _line(world: World, row: Reading, metric: str) -> dict[str, Any]:
    """One reading in one metric."""
    made, told = row.specification, row.outcomes[metric]
    own, rival = told.moments, told.rival
    return {
        "dataset": made.data.name,
        "id": made.id,
        "kind": made.kind.name.lower(),
        "option": made.option,
        "value": made.value,
        "base": made.usual,
        "why": made.why,
        "metric": metric,
        "users": row.users,
        "seeds": own.runs if own else 0,
        "mean": own.mean if own else None,
        "sd": math.sqrt(own.v) if own and not math.isnan(own.v) else None,
        "rival": world.panel.rival.label,
        "rival_seeds": rival.runs if rival else 0,
        "rival_mean": rival.mean if rival else None,
        **_pair("rival", told.against_rival, told.rival_holm),
        "verdict": told.verdict.value if told.verdict else None,
        **_pair("base", told.against_base, told.base_holm),
        "changes": told.changes if told.against_base else None,
        "status": row.status or "done",
        "gap": "; ".join(row.gaps) or None,
        "remark": row.remark or None,
    }


def _pair(against: str, pair: Comparison | None, holm: float | None) -> dict[str, float | None]:
    return {
        f"minus_{against}": pair.difference if pair else None,
        f"minus_{against}_low": pair.low if pair else None,
        f"minus_{against}_high": pair.high if pair else None,
        f"minus_{against}_p": pair.p if pair else None,
        f"minus_{against}_p_holm": holm,
    }


def _spread_json(world: World, metric: str) -> dict[str, Any] | None:
    spread = next((one for one in world.spreads if one.metric == metric), None)
    if spread is None:
        return None
    test = spread.test
    return {
        "readings": spread.count,
        "runs": spread.runs,
        "lowest": spread.lowest[1],
        "lowest_reading": spread.lowest[0],
        "highest": spread.highest[1],
        "highest_reading": spread.highest[0],
        "run_sd": math.sqrt(test.v) if test else None,
        "mean_sd": math.sqrt(test.D) if test else None,
        "equal_expected_sds": spread.equal.expected,
        "equal_high_sds": spread.equal.high,
        "equal_rejected": not test.flat if test else None,
    }


def csv_text(made: Multiverse) -> str:
    """One line a reading and metric; numbers in full, nothing for null."""
    return written(
        [{**line, "demo": world.panel.data.demo} for world in made.worlds for line in _lines(world)]
    )
