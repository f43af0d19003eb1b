"""What stands where on the page of the claims, in plain words; and the same for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.claims import (
    Cell,
    Claims,
    Judged,
    Part,
    PublishedCell,
    Word,
    counts,
    published_cells,
)
from harness.report.content import CHAMPION, Column
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
from harness.report.export import finite, heading, written
from harness.report.layout import bands, opening, p_value
from harness.stats import Power
from harness.stats.power import CHANCE

OTHER_FAMILIES = "Comparisons"
"""Start of the footer on Table 2's own families, which are not this page's."""
TITLE = "Claims: the paper's sentences, judged"
FIGURE = "claims"
CAPTION = (
    "Of each sentence the part that stands most against it: what is claimed to be higher minus the other, "
    "with its 95 % interval for new runs and new users. Right of zero speaks for the sentence. Marker, "
    "colour and word: the judgement, by one-sided p corrected over all sentences, so that an interval may "
    "leave zero out and the sentence be undecided. Grey tick: the true difference that the test of this "
    f"part would find with probability {CHANCE}, where it lies within the picture. The part is named under "
    f"each sentence, in the colour of {CHAMPION} where it is one of the two."
)
HEADINGS = (
    "judgement",
    "parts",
    "worst part",
    "difference",
    "p for",
    "p against",
    f"found {CHANCE}",
)
JUDGED = (
    "A sentence is all of its parts. Supported: the largest one-sided p of its parts, corrected, is below "
    "0.05. Contradicted: the smallest in the other direction, times the number of parts, corrected, is. "
    "Else undecided, which is no proof that the sentence is false."
)
POWER = (
    f"Found {CHANCE}: the smallest true difference that the test of the worst part would find with "
    f"probability {CHANCE}, with these runs and users: noncentral t with the estimated V and df, at the "
    "strictest step of Holm ({level}). A sentence of many parts needs more than that in each."
)
WORST = (
    "Worst part: the one with the largest p for the sentence; ± half of its 95 % interval (new runs and new "
    "users). Bold: the judgement rests on it. p: Holm's, over the family."
)
VERDICTS = (
    "Inside: within the 95 % band of one published run by our runs' spread; only as best of 10: only if the "
    "paper printed the best of ten runs. Struck: impossible by arithmetic alone, whatever the model; such a "
    "number has a verdict too, but no run of anything can have printed it."
)


def claims_page(claims: Claims) -> Document:
    """The whole page."""
    cells = published_cells(claims.table)
    parts: list[Grid | Notes | Picture] = [
        Notes("In short", headlines(claims)),
        Picture("The sentences", FIGURE, CAPTION),
        judgements(claims),
        Notes("What each sentence says, and what was found", tuple(map(sentence, claims.judged))),
    ]
    appendix: list[Grid] = []
    if cells:
        parts += [_counts(claims, cells), _orders(claims)]
        appendix.append(_listed(claims, cells))
    parts.append(Notes("The published numbers", published_lines(claims)))
    rests = tuple(note for note in claims.table.notes if not note.startswith(OTHER_FAMILIES))
    parts.append(Notes("What these judgements rest on", rests))
    if any(one.parts for one in claims.judged):
        appendix.append(_parts(claims))
    return Document(opening(claims.table), TITLE, tuple(parts), tuple(appendix))


def headlines(claims: Claims) -> tuple[str, ...]:
    """How many sentences got which judgement, and how they were judged."""
    counted = ", ".join(f"{claims.count(word)} {word.value}" for word in Word)
    where = " and ".join(data.name for data in claims.table.data)
    said = [f"{len(claims.judged)} sentences on the data here ({where}): {counted}."]
    for word in (Word.CONTRADICTED, Word.SUPPORTED):
        names = [
            f"{one.name} ({one.hypothesis.short})" for one in claims.judged if one.word is word
        ]
        if names:
            said.append(f"{word.value.capitalize()}: {', '.join(names)}.")
    tested = claims.entries // 2
    said.append(
        f"One Holm family: {claims.entries} entries, of {tested} sentences with p, two each (for it, "
        "against it)."
        if tested
        else "No sentence has a p, so the Holm family is empty."
    )
    if claims.power is Power.LOW and tested:
        said.append(
            "Low power: three or four runs a method; see the differences that would have been found."
        )
    if claims.table.demo:
        said.append(
            "Judged on the data here, which are made up: this says nothing about the paper's own numbers."
        )
    return tuple(said)


def judgements(claims: Claims) -> Grid:
    """Every sentence in a line: those of the family, then the others."""
    inside = [one for one in claims.judged if one.needed]
    others = [one for one in claims.judged if not one.needed]
    lines = [Line("Compared by the V-test, one Holm family")]
    lines += [Line(_name(one), _entries(claims, one)) for one in inside]
    if others:
        lines.append(Line("Outside the family"))
        lines += [Line(_name(one), _entries(claims, one)) for one in others]
    level = f"{claims.level:.2g}" if claims.entries else "there is none yet"
    below = (JUDGED, WORST, POWER.format(level=level))
    return Grid("Judgements", "Sentence", (Band("", "", HEADINGS),), tuple(lines), below)


def _name(judged: Judged) -> str:
    return f"{judged.name}: {judged.hypothesis.short}"


def _entries(claims: Claims, judged: Judged) -> tuple[Entry, ...]:
    worst = judged.worst
    word = (Span(judged.word.value, bold=judged.word in {Word.SUPPORTED, Word.CONTRADICTED}),)
    if worst is None:
        parts = f"0 of {judged.needed}" if judged.needed else ""
        return (word, entry(parts), *[EMPTY] * (len(HEADINGS) - 2))
    number = f"{judged.needed}"
    if len(judged.parts) < judged.needed:
        number = f"{len(judged.parts)} of {judged.needed}"
    claim = judged.claim
    return (
        word,
        entry(number),
        entry(part_name(claims, worst)),
        _difference(worst, bold=word[0].bold),
        entry(p_value(claim.support_holm if claim else None)),
        entry(p_value(claim.reverse_holm if claim else None)),
        entry("" if judged.detectable is None else _small(judged.detectable)),
    )


def part_name(claims: Claims, part: Part) -> str:
    """`M3BSR - EBM, kuaishou HR@10`."""
    shorts = {band.name: band.short for band in bands(claims.table)}
    return f"{part.better} - {part.than}, {shorts.get(part.dataset, part.dataset)} {part.metric}"


def _small(value: float) -> str:
    """A difference of scores; nothing that a score cannot reach is spelled out."""
    return f"{value:.4f}" if value <= 1 else "> 1"


def _difference(part: Part, *, bold: bool = False) -> Entry:
    pair = part.comparison
    half = f"{(pair.high - pair.low) / 2:.4f}".removeprefix("0")
    return (Span(f"{pair.difference:+.4f}", bold=bold, runs=part.runs), Span(f" ±{half}"))


def sentence(judged: Judged) -> str:
    """A sentence of the paper, what has to be true, the judgement and its numbers."""
    hypothesis = judged.hypothesis
    why = f" ({judged.why})" if judged.why else ""
    said = [
        f"{judged.name} (section {hypothesis.section}). The paper: {hypothesis.says}"
        if hypothesis.section[:1].isdigit()
        else f"{judged.name} ({hypothesis.section}). The paper: {hypothesis.says}",
        f"What must be true: {hypothesis.must.rstrip('.')}.",
        f"On the data here: {judged.word.value}{why}.",
    ]
    worst, claim = judged.worst, judged.claim
    if worst is not None:
        pair = worst.comparison
        said.append(
            f"Worst of {len(judged.parts)} parts: {worst.better} minus {worst.than} on {worst.dataset} "
            f"{worst.metric}, {pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]."
        )
    if claim is not None and claim.support_holm is not None and claim.reverse_holm is not None:
        said.append(
            f"Corrected p for it {p_value(claim.support_holm)}, against it {p_value(claim.reverse_holm)}."
        )
    if judged.detectable is not None:
        said.append(
            f"A true difference of {_small(judged.detectable)} in this part would be found with "
            f"probability {CHANCE}."
        )
    said += [f"{fact.rstrip('.')}." for fact in judged.facts if fact != judged.why]
    return " ".join(said)


# ------------------------------------------------------------------------- the published numbers


def _counts(claims: Claims, cells: Sequence[PublishedCell]) -> Grid:
    """How many published numbers got which verdict, possible and impossible ones apart."""
    names = list(dict.fromkeys(cell.dataset for cell in cells))
    made = {name: counts(cells, name) for name in names}
    wanted = [verdict for verdict in Cell
              if any(made[name][verdict, possible] for name in names for possible in (True, False))]  # fmt: skip
    lines = tuple(
        Line(verdict.value, tuple(
            (Span(str(made[name][verdict, possible]), struck=False),)
            for name in names for possible in (True, False)
        ))
        for verdict in wanted
    )  # fmt: skip
    shorts = {band.name: band.short for band in bands(claims.table)}
    columns = tuple(Band(name, shorts[name], ("possible", "impossible")) for name in names)
    return Grid("Published numbers of Table 2 by verdict", "Verdict", columns, lines, (VERDICTS,))


def _listed(claims: Claims, cells: Sequence[PublishedCell]) -> Grid:
    """The verdict on every published number."""
    by_place = {(cell.method, cell.dataset, cell.metric): cell for cell in cells}
    own = [band for band in bands(claims.table) if any(cell.dataset == band.name for cell in cells)]
    lines = []
    for row in claims.table.rows:
        entries: list[Entry] = []
        for band in own:
            for metric in band.columns:
                cell = by_place.get((row.label, band.name, metric))
                entries.append(EMPTY if cell is None else (
                    Span(cell.printed, struck=not cell.possible, runs=cell.runs),
                    Span(f" {cell.verdict.value}"),
                ))  # fmt: skip
        lines.append(Line(row.printed, tuple(entries)))
    return Grid(
        "The verdict on each published number", "Method", tuple(own), tuple(lines), (VERDICTS,)
    )


ORDER = ("tau", "95 %", "pairs open", "published lead", "over", "ours / theirs", "95 %, ratio")


def _orders(claims: Claims) -> Grid:
    """The order of methods and the size of the lead, of every column that the paper has."""
    lines = [
        Line(f"{column.dataset} {column.metric}", _order(column))
        for column in claims.table.columns
        if column.order is not None or column.against is not None
    ]
    below = (
        (
            "tau: Kendall's, of our order of the methods with the published one; its interval counts a pair "
            "that our runs do not order (p >= 0.05) once either way."
        ),
        (
            f"Ours / theirs: our lead of {CHAMPION} over the strongest published rival, over the published "
            "lead, with Fieller's interval."
        ),
    )
    return Grid(
        "The order of methods and the lead", "Column", (Band("", "", ORDER),), tuple(lines), below
    )


def _order(column: Column) -> tuple[Entry, ...]:
    order, against = column.order, column.against
    texts = ["", "", "", "", "", "", ""]
    if order is not None and order.tau is not None:
        texts[0] = f"{order.tau:.2f}"
        texts[1] = _interval(order.low, order.high, "no test")
        texts[2] = f"{order.open} of {order.pairs}"
    if against is not None:
        ratio = against.ratio
        texts[3], texts[4] = f"{against.published_gain:+.4f}", against.other
        texts[5] = "" if ratio.ratio is None else f"{ratio.ratio:.2f}"
        texts[6] = _interval(ratio.low, ratio.high, "not determined")
    return tuple(map(entry, texts))


def _interval(low: float | None, high: float | None, none: str) -> str:
    return none if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def published_lines(claims: Claims) -> tuple[str, ...]:
    """What arithmetic says of the published numbers, and what our runs may not say."""
    table = claims.table
    impossible, rows = table.published.impossible_rows()
    struck = sum(len(verdict.struck) for verdict in table.published.verdicts)
    numbers = sum(len(verdict.row.values) for verdict in table.published.verdicts)
    said = [
        (
            f"By arithmetic alone, whatever the model: {impossible} of the {rows} published rows of Table 2 "
            f"are impossible, {struck} of its {numbers} numbers are struck through (python -m harness.audit "
            "gives the bound each one breaks)."
        )
    ]
    others = [data.name for data in table.data if not table.published.comparable(data)]
    if others:
        said.append(
            f"{', '.join(others)}: the paper's numbers are of other data, so no published number gets a "
            "verdict by these runs, and no order or lead is held against the paper's."
        )
    said.append("Table 3 and Table 4 print their published numbers beside ours on their own pages.")
    return tuple(said)


PARTS = ("difference", "95 % interval", "p for it", "df")


def _parts(claims: Claims) -> Grid:
    """Every part of every sentence."""
    lines = []
    for judged in claims.judged:
        if judged.parts:
            lines.append(Line(_name(judged)))
            lines += [Line(part_name(claims, part), _part(part)) for part in judged.parts]
    below = ("p for it: one-sided, of this part alone, not corrected.",)
    return Grid("Every part of every sentence", "Part", (Band("", "", PARTS),), tuple(lines), below)


def _part(part: Part) -> tuple[Entry, ...]:
    pair = part.comparison
    return (
        (Span(f"{pair.difference:+.4f}", runs=part.runs),),
        entry(f"[{pair.low:+.4f}, {pair.high:+.4f}]"),
        entry(p_value(pair.p_greater)),
        entry(f"{pair.df:.1f}"),
    )


# ------------------------------------------------------------------------------------ programs


def claims_json(claims: Claims) -> dict[str, Any]:
    """The content of table.json: JSON's types, every number finite or null."""
    table = claims.table
    return {
        **heading("claims", table.data, table.protocol),
        "correction": {"method": "holm", "entries": claims.entries, "claims": claims.entries // 2,
                       "strictest_level": claims.level if claims.entries else None},
        "counts": {word.value: claims.count(word) for word in Word},
        "claims": [_claim(judged) for judged in claims.judged],
        "impossible": dict(zip(("rows", "of"), table.published.impossible_rows(), strict=True)),
        "published": [_published(cell) for cell in published_cells(table)],
        "order": [_order_json(column) for column in table.columns],
    }  # fmt: skip


def _claim(judged: Judged) -> dict[str, Any]:
    claim, worst, hypothesis = judged.claim, judged.worst, judged.hypothesis
    return {
        "id": hypothesis.id,
        "name": judged.name,
        "section": hypothesis.section,
        "says": hypothesis.says,
        "must": hypothesis.must,
        "judgement": judged.word.value,
        "why": judged.why,
        "in_family": judged.in_family,
        "parts": judged.needed,
        "parts_with_runs": len(judged.parts),
        "p_support": finite(claim.support_p) if claim else None,
        "p_support_holm": finite(claim.support_holm) if claim else None,
        "p_reverse": finite(claim.reverse_p) if claim else None,
        "p_reverse_holm": finite(claim.reverse_holm) if claim else None,
        "worst": _part_json(worst) if worst else None,
        "detectable": finite(judged.detectable),
        "facts": list(judged.facts),
    }


def _part_json(part: Part) -> dict[str, Any]:
    pair = part.comparison
    return {
        "better": part.better, "than": part.than, "dataset": part.dataset, "metric": part.metric,
        "difference": finite(pair.difference), "low": finite(pair.low), "high": finite(pair.high),
        "p": finite(pair.p_greater), "df": finite(pair.df),
    }  # fmt: skip


def _published(cell: PublishedCell) -> dict[str, Any]:
    return {
        "method": cell.method, "dataset": cell.dataset, "metric": cell.metric,
        "published": cell.published, "possible": cell.possible, "verdict": cell.verdict.value,
        "mean": finite(cell.mean), "low": finite(cell.low), "high": finite(cell.high),
    }  # fmt: skip


def _order_json(column: Column) -> dict[str, Any]:
    order, against = column.order, column.against
    return {
        "dataset": column.dataset, "metric": column.metric,
        "tau": finite(order.tau) if order else None,
        "tau_low": finite(order.low) if order else None,
        "tau_high": finite(order.high) if order else None,
        "pairs_open": order.open if order else None,
        "pairs": order.pairs if order else None,
        "rival": against.other if against else None,
        "published_lead": finite(against.published_gain) if against else None,
        "effect_ratio": finite(against.ratio.ratio) if against else None,
        "effect_ratio_low": finite(against.ratio.low) if against else None,
        "effect_ratio_high": finite(against.ratio.high) if against else None,
    }  # fmt: skip


def csv_text(claims: Claims) -> str:
    """A line a sentence, a part, a published number and a column, told apart by `kind`."""
    demo = {data.name: data.demo for data in claims.table.data}
    lines: list[Mapping[str, Any]] = []
    for judged in claims.judged:
        made = _claim(judged)
        worst = made.pop("worst") or {}
        made.pop("facts")
        lines.append({"kind": "claim", **made, **worst})
        same = {"id": made["id"], "name": made["name"], "judgement": made["judgement"]}
        lines += [
            {"kind": "part", **same, **_part_json(part), "demo": demo[part.dataset]}
            for part in judged.parts
        ]
    for cell in published_cells(claims.table):
        lines.append({"kind": "published", **_published(cell), "demo": demo[cell.dataset]})
    for column in claims.table.columns:
        lines.append({"kind": "order", **_order_json(column), "demo": demo[column.dataset]})
    return written(lines)
