"""What is said of Table 4: the page, its sentences, and the files for programs."""

from __future__ import annotations

from statistics import median
from typing import Any

from harness.audit import Published
from harness.config import plain
from harness.report.content import CHAMPION
from harness.report.document import EMPTY, Band, Document, Entry, Grid, Line, Notes, Span, entry
from harness.report.export import heading, written
from harness.report.footers import protocol_fingerprint
from harness.report.layout import demo_line
from harness.report.timing import (
    BATCH,
    CLAIM,
    COLD,
    ELSEWHERE,
    EPOCH,
    MEASURES,
    ONE,
    PAPERS_BATCH,
    PAPERS_DATA,
    SHOWN,
    TITLE,
    Measure,
    Ratio,
    Timed,
    Timing,
    say_machine,
    spread,
)
from harness.training.timing import (
    BLOCK,
    REPEATS,
    WARM_UP,
    WHOLE_STEPS,
    Machine,
)


def page(timing: Timing) -> Document:
    """The whole page."""
    parts = (
        Notes("Measured on", measured_on(timing)),
        _seconds(timing),
        _ratios(timing),
        Notes("The claim", claim_lines(timing)),
        Notes("The paper's seconds", paper_lines(timing.paper)),
        _costs(timing),
        Notes("How it was timed", method_lines(timing)),
    )
    return Document(_opening(timing), TITLE, parts)


def _opening(timing: Timing) -> str:
    names = [data.name for data in timing.data]
    made_up = [data.name for data in timing.data if data.demo]
    line = demo_line(names, made_up) if made_up else f"Data: {', '.join(names)}."
    if timing.users_limit:
        line += f" Only the first {timing.users_limit} users: this shows that it runs, not who is faster."
    return line


def measured_on(timing: Timing) -> tuple[str, ...]:
    """The machine, and how busy it was."""
    if timing.machine is None:
        return ("Nothing is timed yet.",)
    said = [f"{say_machine(timing.machine)}; batch size {timing.batch}."]
    busy = [
        f"{row.method.label} on {row.dataset} ({_load(row)}; record {row.record.key[:12]})"
        for row in timing.rows.values()
        if row.record is not None and is_busy(row, timing.machine)
    ]
    if busy:
        said.append(
            f"Measured while the machine was busy: {'; '.join(busy)}. Time these again when it is idle: "
            "delete the folders of these records in results/cells, and run the same command."
        )
    else:
        loads = [value for row in timing.rows.values() for value in row.measured("load")]
        if loads:
            said.append(
                f"The machine was not busy: load average {min(loads):.1f} to {max(loads):.1f}, "
                "our own work included."
            )
    elsewhere = [row for row in timing.rows.values() if row.why.startswith(ELSEWHERE)]
    if elsewhere:
        names = ", ".join(f"{row.method.label} on {row.dataset}" for row in elsewhere)
        said.append(
            f"Timed on another machine, so not beside these: {names}. Time them here (on a cluster: ask for "
            "one kind of node, slurm.constraint=NAME): delete their records, and run the same command."
        )
    return tuple(said)


def is_busy(row: Timed, machine: Machine) -> bool:
    """More work than processors: by the load average of the end, or by the tasks running beside ours."""
    loads, others = row.measured("load"), row.measured("others")
    if loads and loads[-1] > machine.processors:  # before, it is our own earlier runs' as well
        return True
    return bool(others) and median(others) + machine.threads > machine.processors


def _load(row: Timed) -> str:
    loads, others = row.measured("load"), row.measured("others")
    said = [f"load average up to {max(loads):.1f}"] if loads else []
    said += [f"{median(others):g} other tasks running"] if others else []
    return ", ".join(said)


def three(value: float) -> str:
    """Three digits: 0.0123, 1.23, 123, 1,234."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".removesuffix(".")


def _short(timing: Timing) -> dict[str, str]:
    return {data.name: data.name.removeprefix("demo_").removeprefix("rec_") for data in timing.data}


def _seconds(timing: Timing) -> Grid:
    """Medians with quartiles."""
    notes: list[str] = []
    lines = []
    for method in timing.methods:
        entries: list[Entry] = []
        for data in timing.data:
            entries += _row_entries(timing.rows.get((method.label, data.name)), notes)
        lines.append(Line(method.printed, tuple(entries)))
    heads = tuple(measure.heading for measure in SHOWN)
    short = _short(timing)
    bands = tuple(Band(data.name, short[data.name], heads) for data in timing.data)
    sizes = {int(size) for row in timing.rows.values() if (size := row.number("users")) is not None}
    batch = " or ".join(map(str, sorted(sizes))) or str(timing.batch)
    below = (
        "Median [quartiles] of the repeats. Seconds are this machine's: nothing is claimed of them.",
        f"A batch: 1 + 99 candidates scored for {batch} users at once; one user: for one at a time.",
        *(f"[{number}] {note}" for number, note in enumerate(notes, 1)),
    )
    return Grid("Seconds", "Method", bands, tuple(lines), below)


def _row_entries(row: Timed | None, notes: list[str]) -> list[Entry]:
    if row is None or row.record is None:
        why = "not asked for" if row is None else row.why
        if ":" in why or "(" in why:
            notes.append(f"{row.method.label} on {row.dataset}: {why}." if row else why)
            why = f"{why.partition(':')[0].partition(' (')[0]} [{len(notes)}]"
        return [entry(why), *[EMPTY] * (len(SHOWN) - 1)]
    made: list[Entry] = []
    for measure in SHOWN:
        one = spread(row.measured(measure.name))
        middle, lower, upper = (
            three(measure.factor * value) for value in (one.middle, one.lower, one.upper)
        )
        made.append((Span(middle, runs=(row.record.key,)), Span(f" [{lower}, {upper}]")))
    return made


def _say_ratio(value: Ratio | None) -> str:
    return (
        "" if value is None else f"{three(value.value)} [{three(value.low)}, {three(value.high)}]"
    )


def _ratios(timing: Timing) -> Grid:
    """Every time over the champion's, and the paper's the same way."""
    lines = []
    for method in timing.methods:
        entries: list[Entry] = []
        for data in timing.data:
            for measure in SHOWN:
                made = timing.ratio(method.label, data.name, measure)
                if made is None or method.label == CHAMPION:
                    entries.append(entry("" if made is None else "1"))
                    continue
                runs = tuple(
                    record.key
                    for label in (method.label, CHAMPION)
                    if (record := timing.rows[label, data.name].record) is not None
                )
                head, _, tail = _say_ratio(made).partition(" ")
                entries.append((Span(head, runs=runs), Span(f" {tail}")))
        for measure in (EPOCH, BATCH):
            papers = timing.published_ratio(method.label, measure)
            same = method.label == CHAMPION
            entries.append(entry("1" if same and papers else _say_ratio(papers)))
        lines.append(Line(method.printed, tuple(entries)))
    heads, short = tuple(measure.ratio_heading for measure in SHOWN), _short(timing)
    bands = (
        *(Band(data.name, short[data.name], heads) for data in timing.data),
        Band("the paper, Kuaishou", "paper", ("epoch", "prediction")),
    )
    below = (
        (
            f"Every time over {CHAMPION}'s: medians, and in brackets the range from lower over upper to "
            "upper over lower quartile; the paper's range is what its printed digits leave open."
        ),
        (
            "Ratios carry over to other machines better than seconds, though not exactly: a GPU does many "
            "small steps at once that one thread does in turn."
        ),
    )
    return Grid(f"Ratios to {CHAMPION}", "Method", bands, tuple(lines), below)


COSTS = ("parameters", "MiB at most", "samples", "batches", "MFLOP a sample", "MFLOP a user",
         "ms first batch", "s prepare")  # fmt: skip


def _costs(timing: Timing) -> Grid:
    """What else a method takes, a line a method and data set."""
    lines = []
    for data in timing.data:
        lines.append(Line(data.name))
        for method in timing.methods:
            row = timing.rows.get((method.label, data.name))
            if row is None or row.record is None:
                lines.append(Line(method.printed, (EMPTY,) * len(COSTS)))
                continue
            record = row.record
            values = [
                f"{record.parameters:,}",
                three(record.peak_memory_mib),
                f"{record.train_samples:,}",
                f"{row.number('steps') or 0:,.0f}",
                three((row.number("flops_sample") or 0.0) / 1e6),
                three((row.number("flops_user") or 0.0) / 1e6),
                three(1e3 * spread(row.measured(COLD.name)).middle),
                three(record.seconds.get("prepare", 0.0)),
            ]
            first = (Span(values[0], runs=(record.key,)),)
            lines.append(Line(method.printed, (first, *map(entry, values[1:]))))
    below = (
        (
            "Samples and batches: of one epoch. A method trained on prefixes has a sample a target, one "
            "trained at all places a sample a user, one without order a sample a pair: their epochs are not "
            "equally much work."
        ),
        (
            "FLOPs: counted matrix products only, two a multiply-add; of training (forward and backward) a "
            "sample, of a prediction a user. Table look-ups and element-wise work are not counted."
        ),
        (
            "First batch: a prediction when what all users share (a graph, vectors of all items) has to be "
            "computed first. MiB: the process at its largest, Python and the data included (on a GPU: its "
            "allocations). Prepare: reading the data, building the model and its graphs, counts or clusters."
        ),
    )
    return Grid("What else it costs", "Method", (Band("", "", COSTS),), tuple(lines), below)


# --------------------------------------------------------------------------------- sentences


def claim_lines(timing: Timing) -> tuple[str, ...]:
    """The paper's claim, and the ratios that it is to be judged by."""
    said = [
        (
            f"The paper: {CLAIM}. What is comparable is for the reader to say; no test settles it, for repeats on "
            "one machine are no sample of machines."
        )
    ]
    for data in timing.data:
        for method in timing.methods:
            if method.label == CHAMPION:
                continue
            ours = _over(timing, method.label, data.name, BATCH)
            if ours is None:
                continue
            papers = timing.published_ratio(CHAMPION, BATCH, method.label)
            beside = f"; in the paper {_say_ratio(papers)}" if papers else ""
            single = _over(timing, method.label, data.name, ONE)
            epoch = _over(timing, method.label, data.name, EPOCH)
            said.append(
                f"{data.name}: a prediction takes {CHAMPION} {_say_ratio(ours)} times as long as "
                f"{method.label}{beside}; one user alone {_say_ratio(single)} times, an epoch "
                f"{_say_ratio(epoch)} times."
            )
    if len(said) == 1:
        said.append(f"{CHAMPION} and another method have to be timed first; nothing is said.")
    return tuple(said)


def _over(timing: Timing, label: str, dataset: str, measure: Measure) -> Ratio | None:
    """The champion's time over another method's."""
    made = timing.ratio(label, dataset, measure)
    return None if made is None else Ratio(1 / made.value, 1 / made.high, 1 / made.low)


def paper_lines(paper: Published) -> tuple[str, ...]:
    """What the paper's seconds can be of, by arithmetic."""
    row = next(row for row in paper.table4 if row.label == CHAMPION)
    sizes = paper.table1[PAPERS_DATA]
    epoch, once = float(row.training_seconds), float(row.inference_seconds)
    users, events = sizes.users, sizes.interactions
    a_pass, batches = once * users, -(-users // PAPERS_BATCH)
    room = int(epoch / once)
    return (
        (
            f"The paper does not say what one prediction is. {once} s for one user would be {users:,} x "
            f"{once} s = {a_pass:,.0f} s, {a_pass / 3600:.1f} h, for one pass over the users of Kuaishou: "
            f"{a_pass / epoch:.0f} training epochs of {epoch} s, and early stopping needs such a pass after "
            f"each of them. For a batch of {PAPERS_BATCH} users it is {1e3 * once / PAPERS_BATCH:.2f} ms a user "
            f"and {batches} x {once} s = {batches * once:.0f} s a pass. Only the batch fits, so the paper's "
            "prediction stands beside our batch."
        ),
        (
            f"An epoch of {epoch} s has room for {room} batches of {once} s, if a step of training takes at "
            f"least as long as a prediction: {room * PAPERS_BATCH:,} samples. That is about one sample a user "
            f"({users:,}), and far from one an interaction ({events:,}: "
            f"{1e3 * epoch / (events / PAPERS_BATCH):.2f} ms a batch). Our epoch goes through every training "
            "target once, so its seconds are of another epoch than the paper's."
        ),
    )


def method_lines(timing: Timing) -> tuple[str, ...]:
    """How it was measured, and of what."""
    said = [
        (
            "Each method in a process of its own, after all other runs and with none of ours beside it; "
            f"{WARM_UP} batches before the first repeat, at least {REPEATS} repeats. An epoch has everything: "
            "the method's refreshed samples, batches put together, losses, gradients, the optimiser; no "
            "validation. A prediction has a user's history in memory, encodes it, scores 1 + 99 candidates "
            "and hands the scores over."
        ),
        *_whole(timing),
        *_stages(timing),
        f"Settings: those of Table 2 (seed 1), but batches of {timing.batch} and a whole epoch"
        + (f"; overrides: {', '.join(timing.overrides)}." if timing.overrides else "."),
        (
            "Timings of other processors, numbers of threads, GPUs or releases of torch are measured again, "
            "and never stand in one table."
        ),
        f"Protocol {protocol_fingerprint(timing.protocol)}. "
        + " ".join(
            f"Data {data.name}: sha256 {data.data_sha256[:12]}, candidates "
            f"{data.candidates_sha256[:12]}."
            for data in timing.data
        ),
        "The other methods: the same command with --methods all, or any list.",
    ]
    return tuple(said)


def _whole(timing: Timing) -> list[str]:
    """Which epochs were timed whole."""
    done = [row for row in timing.rows.values() if row.record is not None]
    parts = [row for row in done if not row.number("whole")]
    if not done:
        return []
    if not parts:
        return ["Every epoch was timed whole."]
    each = "; ".join(
        f"{row.method.label} on {row.dataset} ({row.number('steps'):,.0f} batches)" for row in parts
    )
    return [
        (
            f"Epochs of more than {WHOLE_STEPS} batches were not timed whole, but from their beginning and "
            f"{BLOCK} batches a repeat, times the batches of an epoch: {each}."
        )
    ]


def _stages(timing: Timing) -> list[str]:
    """What went before the stage that was timed."""
    said = []
    for row in timing.rows.values():
        earlier = row.measured("earlier_stages")
        if not earlier:
            continue
        count = len(earlier)
        each = ", ".join(f"{three(value)}" for value in earlier)
        reached = (
            "" if row.number("last_stage") else
            " The last stage was not reached: what is timed is the stage after these."
        )  # fmt: skip
        said.append(
            f"{row.method.label} on {row.dataset} is trained in stages; timed is the last, whose epochs "
            f"compete for the final weights. On the way there, {count} epoch{'s' * (count > 1)} of earlier "
            f"stages (one each, more where a stage goes on): {each} s.{reached}"
        )
    return said


# ---------------------------------------------------------------------------------- programs


def table_rows(timing: Timing) -> list[dict[str, Any]]:
    """Every measure of every row, times in seconds; None where there is nothing."""
    made = []
    for data in timing.data:
        twin = data.name.removeprefix("demo_") if data.demo else data.name
        for method in timing.methods:
            row = timing.rows.get((method.label, data.name))
            for measure in MEASURES:
                one = row.spread(measure) if row else None
                ours = timing.ratio(method.label, data.name, measure)
                beside = twin == PAPERS_DATA
                value = timing.published(method.label, measure) if beside else None
                papers = timing.published_ratio(method.label, measure) if beside else None
                made.append({
                    "group": method.group.value,
                    "method": method.label,
                    "dataset": data.name,
                    "measure": measure.name,
                    "median": one.middle if one else None,
                    "lower": one.lower if one else None,
                    "upper": one.upper if one else None,
                    "least": one.least if one else None,
                    "most": one.most if one else None,
                    "repeats": one.repeats if one else 0,
                    "ratio": ours.value if ours else None,
                    "ratio_low": ours.low if ours else None,
                    "ratio_high": ours.high if ours else None,
                    "published": None if value is None else float(value),
                    "published_ratio": papers.value if papers else None,
                    "gap": (row.why if row else "not asked for") or None,
                })  # fmt: skip
    return made


def cost_rows(timing: Timing) -> list[dict[str, Any]]:
    """What is known of each row beside its seconds."""
    made = []
    for row in timing.rows.values():
        if row.record is None or timing.machine is None:
            continue
        others = row.measured("others")
        made.append({
            "method": row.method.label,
            "dataset": row.dataset,
            "key": row.record.key,
            "parameters": row.record.parameters,
            "peak_memory_mib": row.record.peak_memory_mib,
            "samples": row.record.train_samples,
            "batches": row.number("steps"),
            "whole_epochs": bool(row.number("whole")),
            "flops_sample": row.number("flops_sample"),
            "flops_user": row.number("flops_user"),
            "users_a_batch": row.number("users"),
            "prepare_seconds": row.record.seconds.get("prepare"),
            "earlier_stages": row.measured("earlier_stages"),
            "last_stage": bool(row.number("last_stage")),
            "load": max(row.measured("load"), default=None),
            "others_running": median(others) if others else None,
            "busy": is_busy(row, timing.machine),
        })  # fmt: skip
    return made


def json_content(timing: Timing) -> dict[str, Any]:
    """The content of table.json. Times in seconds; `ratio`: over M3BSR's on the same data."""
    machine = timing.machine
    return {
        **heading("table4", timing.data, timing.protocol),
        "machine": None if machine is None else plain(machine),
        "batch_size": timing.batch,
        "cells": table_rows(timing),
        "costs": cost_rows(timing),
        "claim": {
            "text": CLAIM,
            "judgement": "for the reader",
            "why": "no test settles what is comparable; the ratios are in cells",
        },
        "notes": [*claim_lines(timing), *paper_lines(timing.paper)],
    }


def csv_text(timing: Timing) -> str:
    """A line a method, data set and measure, with what else is known of the row."""
    costs = {(cost["method"], cost["dataset"]): cost for cost in cost_rows(timing)}
    demo = {data.name: data.demo for data in timing.data}
    further = (
        "key", "parameters", "peak_memory_mib", "samples", "batches", "whole_epochs", "flops_sample",
        "flops_user", "users_a_batch", "prepare_seconds", "load", "others_running", "busy",
    )  # fmt: skip
    made = []
    for row in table_rows(timing):
        cost = costs.get((row["method"], row["dataset"]), {})
        more = {name: cost.get(name) for name in further}
        made.append({**row, **more, "demo": demo[row["dataset"]]})
    return written(made)
