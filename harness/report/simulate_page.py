"""What stands where on the page of the planted worlds, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
from harness.report.export import written
from harness.report.footers import SHORT, protocol_fingerprint
from harness.report.layout import demo_line, p_value
from harness.report.noise import Removed
from harness.report.simulate import (
    KNOBS,
    ORACLE,
    SIMULATE_METRICS,
    Finding,
    Gain,
    Knob,
    Noise,
    Point,
    Simulation,
    Sweep,
    Verdict,
    lines,
    part_of,
)
from harness.stats import Comparison, Power

TITLE = "Planted worlds: where each part of M3BSR earns its keep"
FIGURE = "simulate"
CAPTION = (
    "Top row of a data set: HR@10 (mean, 95 % interval) of the full model and of the model without the "
    "part that the knob is meant for, at each value of the knob; dashed: the full model at 0, an oracle "
    "for what denoising could win. Row below: the full model minus the removal, with 95 % interval; a "
    "part that earns its keep lies on zero at the left and rises. Dotted: the data set's own value. "
    "Right: share of the planted noise that CDMD-M takes out of the item features, by distance and by "
    "direction."
)
MEANING = (
    f"Mean over runs ± standard deviation of the runs. Gain: {CHAMPION} minus the removal, ± half of the "
    "95 % interval (new runs and new users); bold: the interval leaves zero out (not corrected; for "
    "looking, the judgement stands above)."
)
JUDGED = (
    "A part earns its keep where it should when its gain rises along the knob (straight line through "
    "the gains; users of several worlds count once) and is above zero at the greatest value: the larger "
    "of the two one-sided p, corrected by Holm, below 0.05. It harms, or its gain falls, when the smaller "
    "p in the other direction, times two, is, corrected. Else: not found, which is no proof of absence."
)
SHARES = (
    "Share of the planted noise that CDMD-M takes out of the features of items, by the model of the first "
    "run (seed 1): 1 all, 0 none, below 0 it adds. Mean over items ± standard deviation. A feature: after "
    "the model's own projection and norm, and the mean over an item's events in the test histories. By "
    "distance: 1 minus the squared distance of denoised to clean features over that of raw to clean ones. "
    "By direction: the same with 1 - cosine. After a map: both first mapped to the clean features by the "
    "best affine map fitted on other items, since later layers can undo any such map. Moved: squared "
    "distance of denoised to raw features over the squared length of raw ones."
)
NOT_MEASURED = (
    "Whether CDMD-B moves accidental clicks more than genuine ones is not measured: it needs features of "
    "single events, which no record keeps."
)


def simulate_page(simulation: Simulation) -> Document:
    """The whole page."""
    parts: list[Grid | Notes | Picture] = [
        Notes("What was found", headlines(simulation)),
        Picture("Gains in planted worlds", FIGURE, CAPTION),
        _judgements(simulation),
    ]
    for knob in KNOBS.values():
        sweeps = [sweep for sweep in simulation.sweeps if sweep.knob is knob]
        if sweeps:
            parts.append(_sweep_grid(simulation, sweeps))
    if simulation.noise:
        parts.append(_noise_grid(simulation))
    parts += [
        Notes("Sentence by sentence", tuple(_sentence(simulation, v) for v in simulation.verdicts)),
        Notes("What is planted", _planted(simulation)),
    ]
    if simulation.facts:
        parts.append(_worlds_grid(simulation))
    parts.append(Notes("What these numbers rest on", _rests_on(simulation)))
    return Document(_opening(simulation), TITLE, tuple(parts))


def _opening(simulation: Simulation) -> str:
    names = [data.name for data in simulation.data]
    line = demo_line(names, [data.name for data in simulation.data if data.demo])
    if simulation.users_limit:
        line += f" Only the first {simulation.users_limit} users: this shows that it runs, not who is better."
    return line


# --- what was found ---


def headlines(simulation: Simulation) -> tuple[str, ...]:
    """A line a part: in how many of its columns which finding; and the noise taken out."""
    said = []
    for knob, part in _parts(simulation):
        own = [v for v in simulation.verdicts if (v.knob, v.part) == (knob.name, part)]
        groups: dict[Finding, list[Verdict]] = {}
        for verdict in own:
            groups.setdefault(verdict.finding, []).append(verdict)
        each = "; ".join(
            f"{finding.value} in {_where(group, len(own))}" for finding, group in groups.items()
        )
        why = next((v.why for v in own if v.why), "")
        said.append(f"{part_of(part)} ({knob.title.lower()}): {each}{f' ({why})' if why else ''}.")
    said += [
        _taken_out(simulation, data.name)
        for data in simulation.data
        if _measured(simulation, data.name)
    ]
    if simulation.cut_off:
        said.append(
            f"Read with care: {simulation.cut_off} of {simulation.trained} runs were ended by the limit of "
            "epochs and not by early stopping. A part that slows learning down looks harmful there; "
            "train.epochs=100 (or --budget paper) lifts the limit."
        )
    return (*said, NOT_MEASURED)


def _parts(simulation: Simulation) -> Iterable[tuple[Knob, str]]:
    knobs = {sweep.knob.name: sweep.knob for sweep in simulation.sweeps}
    return ((knob, part) for knob in knobs.values() for part in knob.parts)


def _where(group: Sequence[Verdict], total: int) -> str:
    if len(group) == total:
        return "every column"
    return ", ".join(f"{verdict.data} {verdict.metric}" for verdict in group)


def _measured(simulation: Simulation, data: str) -> list[Removed]:
    """What was taken out of either modality in the worlds with noise."""
    found = (noise.removed for noise in simulation.noise if noise.data == data)
    return [removed for removed in found if removed is not None and removed.distance is not None]


def _taken_out(simulation: Simulation, data: str) -> str:
    """The three readings, each as the range over modalities and worlds."""
    found = _measured(simulation, data)
    readings = {
        "by distance": [removed.distance for removed in found],
        "by direction": [removed.direction for removed in found],
        "after the best affine map": [removed.affine for removed in found],
    }
    each = []
    for name, shares in readings.items():
        percent = [round(100 * share.mean) for share in shares if share is not None]
        if percent:
            low, high = min(percent), max(percent)
            each.append(f"{name} {low} %" if low == high else f"{name} {low} to {high} %")
    return (
        f"Of the planted noise in {data}'s worlds CDMD-M takes out: {', '.join(each)} (over image, text "
        "and sizes of the noise; below 0 it adds)."
    )


def _sentence(simulation: Simulation, verdict: Verdict) -> str:
    """Everything that is known of one part in one sweep and metric."""
    knob = KNOBS[verdict.knob]
    why = f" ({verdict.why})" if verdict.why else ""
    where = f"{verdict.data}, {verdict.knob}, {part_of(verdict.part)}, {verdict.metric}"
    said = [f"{where}: {verdict.finding.value}{why}."]
    if verdict.rise is not None:
        p = verdict.claim.support_holm if verdict.claim else None
        tail = "" if p is None else f"; with the gain at the top, Holm p {p_value(p)}"
        said.append(f"Over the sweep the gain rises by {_interval(verdict.rise)}{tail}.")
    if verdict.top is not None:
        said.append(
            f"At {verdict.knob} {verdict.top.point.value:g} it is {_interval(verdict.top.comparison)}."
        )
        headroom = simulation.headroom(verdict)
        if headroom is not None:
            said.append(
                f"There the oracle ({knob.oracle}) is {_interval(headroom.comparison)} above the full "
                "model: so much is still to be won."
            )
    if verdict.zero is not None:
        said.append(f"At 0, where {knob.zero}, {_at_zero(verdict.zero.comparison)}.")
    return " ".join(said)


def _at_zero(pair: Comparison) -> str:
    """Whether nothing is gained or lost, and what can be excluded."""
    whom = " (this trained model alone)" if pair.power is Power.ONE else ""
    if pair.low <= 0 <= pair.high:
        largest = max(-pair.low, pair.high)
        return (
            f"it is {_interval(pair)}{whom}: no gain or loss is seen, and one above {largest:.4f} either "
            "way is excluded (95 %)"
        )
    does = "gains" if pair.difference > 0 else "costs"
    return f"it {does} all the same: {_interval(pair)}{whom} (not corrected)"


def _interval(pair: Comparison) -> str:
    return f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"


# --- grids ---


def _judgements(simulation: Simulation) -> Grid:
    columns = ("at 0", "at the top", "rise", "Holm p", "found")
    bands = tuple(Band(metric, metric, columns) for metric in SIMULATE_METRICS)
    made = []
    for sweep in simulation.sweeps:
        top = sweep.points[-1].value
        made.append(Line(f"{sweep.data}, {sweep.knob.name} 0 to {top:g}"))
        for part in sweep.knob.parts:
            entries: list[Entry] = []
            for metric in SIMULATE_METRICS:
                verdict = next(
                    v for v in simulation.verdicts
                    if (v.data, v.knob, v.part, v.metric)
                    == (sweep.data, sweep.knob.name, part, metric)
                )  # fmt: skip
                entries += _judgement(verdict)
            made.append(Line(part_of(part), tuple(entries)))
    return Grid("Does the gain grow with the knob?", "Part", bands, tuple(made), (JUDGED,))


def _judgement(verdict: Verdict) -> list[Entry]:
    claim = verdict.claim
    p = claim.support_holm if claim else None
    decided = verdict.finding in {Finding.EARNS, Finding.HARMS, Finding.FALLS}
    return [
        _difference(verdict.zero),
        _difference(verdict.top),
        EMPTY if verdict.rise is None else _pair(verdict.rise, verdict.runs),
        EMPTY if p is None else entry(p_value(p)),
        (Span(verdict.finding.value, bold=decided),),
    ]


def _difference(gain: Gain | None) -> Entry:
    return EMPTY if gain is None else _pair(gain.comparison, gain.runs)


def _pair(pair: Comparison, runs: tuple[str, ...]) -> Entry:
    half = f"{(pair.high - pair.low) / 2:.4f}".removeprefix("0")
    clear = pair.power.marks and not pair.low <= 0 <= pair.high
    return (Span(f"{pair.difference:+.4f}", bold=clear, runs=runs), Span(f" ±{half}"))


def _named(sweep: Sweep, point: Point) -> str:
    return f"{point.value:g}" + (" (own)" if point.value == sweep.default else "")


def _bands(sweeps: Sequence[Sweep]) -> tuple[Band, ...]:
    return tuple(
        Band(
            sweep.data,
            sweep.data.removeprefix("demo_").removeprefix("rec_"),
            tuple(_named(sweep, point) for point in sweep.points),
        )
        for sweep in sweeps
    )


def _sweep_grid(simulation: Simulation, sweeps: Sequence[Sweep]) -> Grid:
    """Means and gains at every value of one knob."""
    knob = sweeps[0].knob
    places = [(sweep, point) for sweep in sweeps for point in sweep.points]
    made = []
    for metric in SIMULATE_METRICS:
        made.append(Line(metric))
        made += [
            Line(row, tuple(_mean(simulation, *place, row, metric) for place in places))
            for row in (CHAMPION, *knob.parts)
        ]
        for row in (*knob.parts, *([ORACLE] if knob.oracle else [])):
            name = "headroom" if row == ORACLE else f"gain of {part_of(row)}"
            gains = (simulation.gain(*place, row, metric) for place in places)
            made.append(Line(name, tuple(map(_difference, gains))))
    below = [f"Columns: {knob.axis}; own: the data set as it is. At 0 {knob.zero}.", MEANING]
    if knob.oracle:
        below.append(
            f"Headroom: {CHAMPION} at 0, which is {CHAMPION} with {knob.oracle}, minus {CHAMPION} here."
        )
    return Grid(knob.title, "Row", _bands(sweeps), tuple(made), tuple(below))


def _mean(simulation: Simulation, sweep: Sweep, point: Point, row: str, metric: str) -> Entry:
    level = simulation.level(sweep, point, row, metric)
    if level.mean is None:
        return entry("failed" if "failed" in level.why else "not run")
    sd = "" if level.mean.sd is None else "±" + f"{level.mean.sd:.4f}".removeprefix("0")
    few = f" ({len(level.runs)} run{'s' * (len(level.runs) > 1)})" if level.why else ""
    return (Span(f"{level.mean.mean:.4f}", runs=level.runs), Span(sd + few))


def _noise_grid(simulation: Simulation) -> Grid:
    sweeps = [sweep for sweep in simulation.sweeps if sweep.knob.name == "nuisance"]
    found = {(noise.data, noise.point, noise.mode): noise for noise in simulation.noise}
    made = []
    for mode in dict.fromkeys(noise.mode for noise in simulation.noise):
        made.append(Line(mode))
        own = [found.get((s.data, point, mode)) for s in sweeps for point in s.points]
        made += [
            Line(name, tuple(_noise_entry(noise, name) for noise in own))
            for name in ("by distance", "by direction", "after a map", "moved")
        ]
    gaps = dict.fromkeys(
        f"{noise.point.world}: {noise.why}." for noise in simulation.noise if noise.why
    )
    return Grid(
        "Share of the planted noise that CDMD-M takes out", "Features", _bands(sweeps), tuple(made),
        (SHARES, *gaps),
    )  # fmt: skip


def _noise_entry(noise: Noise | None, name: str) -> Entry:
    if noise is None or noise.removed is None:
        return EMPTY
    runs = (noise.run,) if noise.run else ()
    if name == "moved":
        return (Span(f"{noise.removed.moved:.3f}", runs=runs),)
    removed = noise.removed
    share = {
        "by distance": removed.distance,
        "by direction": removed.direction,
        "after a map": removed.affine,
    }[name]
    if share is None:
        return entry("no noise" if removed.distance is None else "")
    return (Span(f"{share.mean:+.3f}", runs=runs), Span(f"±{share.sd:.3f}".replace("±0.", "±.")))


def _worlds_grid(simulation: Simulation) -> Grid:
    columns = ("test users", "events", "accidental clicks", "favors", "agreement")
    made = tuple(
        Line(
            facts.world,
            (
                entry(f"{facts.users:,}"),
                entry(f"{facts.events:,}"),
                entry(f"{facts.accidental_clicks:,}"),
                entry(f"{facts.favors:,}"),
                EMPTY if facts.agreement is None else entry(f"{facts.agreement:+.2f}"),
            ),
        )
        for facts in simulation.facts
    )
    below = (
        "Agreement: cosine between what moves clicks and what moves favors; 1 the same, -1 opposed."
    )
    return Grid("The worlds", "World", (Band("", "", columns),), made, (below,))


# --- notes ---

KNOB_NOTES = {
    "accident": (
        "accident: before each step a user clicks, with this chance, an item that means nothing to them "
        "(and with the same chance another one). No genuine event changes; a greater chance keeps the "
        "smaller's accidents. At 0 every genuine event is there and nothing else, so the full model at 0 "
        "is the oracle that accidental clicks are taken out for, on the same users."
    ),
    "nuisance": (
        "nuisance: size of what is no signal in the image and text vectors; part of it lies in the "
        "signal's own directions, so no projection removes it. No event changes. At 0 the vectors are "
        "clean, so the full model at 0 is the oracle."
    ),
    "preference": (
        "preference: one number for how differently image and text move clicks and favors. Each behaviour "
        "has coefficients of (image taste, text taste, first image style, first text style). 0: both point "
        "the same way, to their mean; 1: as the data set is; in between and above, each is turned away from "
        "the mean by that many times its own angle. Their lengths stay, so each behaviour is moved as "
        "strongly as before; the bias of favors is set so that there are as many of them. At 0 the parts "
        "may still help for other reasons (category, seller), so a gain there is no error."
    ),
}


def _planted(simulation: Simulation) -> tuple[str, ...]:
    knobs = dict.fromkeys(sweep.knob.name for sweep in simulation.sweeps)
    start = (
        "Each sweep turns one knob of the generator and leaves everything else; settings of the model are "
        "those of the data set itself at every value (its tuning, if any), not chosen anew."
    )
    return (start, *(KNOB_NOTES[name] for name in knobs))


def _rests_on(simulation: Simulation) -> tuple[str, ...]:
    said = [
        f"Data {data.name}: sha256 {data.data_sha256[:SHORT]}, candidates (1 + 99 a user) "
        f"{data.candidates_sha256[:SHORT]}; the other worlds' are in table.json."
        for data in simulation.data
    ]
    typed = f"; overrides: {', '.join(simulation.overrides)}" if simulation.overrides else ""
    said.append(f"Protocol {protocol_fingerprint(simulation.protocol)}, budget "
                f"{simulation.budget_name or 'not named'}{typed}.")  # fmt: skip
    if simulation.comparisons:
        said.append(
            f"Judged together, one Holm family: {simulation.comparisons} p values (two for each part, "
            "data set and metric)."
        )
    power = simulation.power
    if power is Power.ONE:
        said.append(
            "One run a row: intervals are for these trained models and new users; nothing is tested. Three "
            "runs or more are needed (--seeds 3)."
        )
    elif power is Power.TWO:
        said.append("Two runs a row: p values, but nothing is judged. Three or more are needed.")
    elif power.note:
        said.append("Low power: with 3 or 4 runs a row many real gains stay unfound.")
    return tuple(said)


def csv_text(simulation: Simulation) -> str:
    """One line a number, numbers in full, nothing for null."""
    demo = {data.name: data.demo for data in simulation.data}
    return written([{**line, "demo": demo[line["data"]]} for line in lines(simulation)])
