"""What is said of the multiverse: sentences, the page, and the files for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

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
from harness.report.layout import demo_line, p_value
from harness.report.multiverse import (
    BASE,
    DECIDES,
    METRICS,
    TITLE,
    Kind,
    Multiverse,
    Reading,
    Spread,
    Verdict,
    World,
)
from harness.stats import Comparison, Power
from harness.stats.variance import LEVEL
from models.readings import Option


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
