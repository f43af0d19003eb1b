"""The paper's sentences judged by our runs: one Holm family of claims (protocol, Statistics, claims).

A hypothesis is a set of parts, "a is above b in this metric on this data set". It is supported when its
worst part, corrected, is; contradicted when one part is reversed, counted over all of them. What a
sentence needs and the store lacks makes it not testable here; nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from jaxtyping import Bool
from numpy import ndarray

from harness import stats
from harness.report.beside import UNDECIDED as ONE_RUN
from harness.report.content import Table
from harness.report.gather import Gathered, TableData
from harness.report.hypotheses import Compare, Elsewhere, Hypothesis, Peak, Sheet, Untestable
from harness.stats import Claim, Comparison, Judgement, Power
from harness.stats.power import detectable
from harness.stats.variance import LEVEL

NAMED = 4
"""Methods without runs: so many are named, the rest counted."""


class Word(Enum):
    """What is said of a sentence."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class Evidence:
    """What another artefact says of a sentence."""

    word: Word
    why: str = ""
    facts: tuple[str, ...] = ()
    """Its numbers, in words."""


@dataclass(frozen=True)
class Part:
    """One comparison that a hypothesis needs: `better` is claimed to be above `than`."""

    better: str
    than: str
    dataset: str
    metric: str
    comparison: Comparison
    """`better` minus `than`."""
    runs: tuple[str, ...]
    """Keys of the records."""


@dataclass(frozen=True)
class Means:
    """The methods of a sheet, compared: everything that parts are taken from."""

    columns: Mapping[tuple[str, str], stats.Column]
    """By data set and metric."""
    runs: Mapping[tuple[str, str], tuple[str, ...]]
    """Keys of records, by label and data set."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What is to be known of a data set here: why it has no columns, or which users these are."""


@dataclass(frozen=True)
class Judged:
    """A sentence, and what our runs say of it."""

    name: str
    """The id, with the data set where each is judged by itself."""
    hypothesis: Hypothesis
    word: Word
    why: str = ""
    """Why there is no answer; empty where there is one."""
    parts: tuple[Part, ...] = ()
    """Those with runs."""
    needed: int = 0
    """Parts of the hypothesis, with runs or not."""
    claim: Claim | None = None
    """None outside the family."""
    detectable: float | None = None
    """Of the worst part: the true difference that would be found with probability 0.8; None without a p."""
    facts: tuple[str, ...] = ()

    @property
    def in_family(self) -> bool:
        """Whether it has two entries in the Holm family."""
        return self.claim is not None and self.claim.support_p is not None

    @property
    def worst(self) -> Part | None:
        """The part that stands most against the sentence: the largest one-sided p."""
        return max(self.parts, key=_against, default=None)


def _against(part: Part) -> tuple[float, float]:
    """Greater for a part that stands more against its sentence."""
    pair = part.comparison
    if pair.p_greater is not None:
        return pair.p_greater, -pair.difference
    spread = math.sqrt(pair.V)
    return (-pair.difference / spread if spread else -math.inf * pair.difference), -pair.difference


@dataclass(frozen=True)
class Claims:
    """The whole artefact."""

    table: Table
    """Table 2: verdicts on published cells, orders, effect ratios."""
    judged: tuple[Judged, ...]
    entries: int
    """Of the Holm family: two a claim with p."""

    @property
    def level(self) -> float:
        """Holm's strictest step, that the detectable differences are computed at."""
        return LEVEL / max(self.entries, 1)

    @property
    def power(self) -> Power:
        """Of the family's claim with the fewest runs."""
        order = list(Power)
        powers = [one.claim.power for one in self.judged if one.claim is not None]
        return min(powers, key=order.index, default=Power.ONE)

    def count(self, word: Word) -> int:
        """Sentences with this judgement."""
        return sum(one.word is word for one in self.judged)


def means(
    found: Gathered,
    datasets: Sequence[TableData],
    metrics: Iterable[str],
    kept: Mapping[str, Bool[ndarray, " user"]] | None = None,
    about: Mapping[str, str] | None = None,
) -> Means:
    """The methods' means and all their comparisons, from gathered runs.

    Args:
        found: Runs by row and data set.
        datasets: The data sets, in order.
        metrics: Columns of each data set.
        kept: The test users that count, by data set; a data set with fewer than two has no columns.
            None: everyone.
        about: See `Means`.
    """
    columns = {}
    for data in datasets:
        chosen = None if kept is None else kept.get(data.name)
        if kept is not None and (chosen is None or chosen.sum() < 2):
            continue
        for metric in metrics:
            scores = {
                runs.method.label: runs.scores(metric) for runs in found.methods(data.name)
            }  # fmt: skip
            columns[data.name, metric] = stats.column(
                {
                    label: stats.moments(y if chosen is None else y[:, chosen])
                    for label, y in scores.items()
                }
            )
    keys = {
        place: tuple(record.key for record in runs.records) for place, runs in found.runs.items()
    }
    return Means(columns, keys, about or {})


# --------------------------------------------------------------------------------- the judgement


@dataclass(frozen=True)
class _Asked:
    """A comparison hypothesis on the data sets that it is judged on."""

    name: str
    hypothesis: Hypothesis
    test: Compare
    names: tuple[str, ...]
    parts: tuple[Part, ...]
    lacking: tuple[tuple[str, str], ...]
    """Label and data set of what has no runs."""
    facts: tuple[str, ...]


def build_claims(
    hypotheses: Sequence[Hypothesis],
    table: Table,
    sheets: Mapping[Sheet, Means],
    evidence: Mapping[str, Evidence] | None = None,
) -> Claims:
    """Judge every hypothesis on the table's data sets.

    Args:
        hypotheses: In the paper's order.
        table: Table 2, whose data sets they are judged on.
        sheets: Means to compare; a sheet that is not there has no runs.
        evidence: What other artefacts say, by hypothesis; without it, it is not testable here.
    """
    asked = {
        one.name: one
        for hypothesis in hypotheses
        if isinstance(hypothesis.test, Compare)
        for one in _asked(hypothesis, hypothesis.test, table.data, sheets)
    }
    judged = stats.claims(
        {
            name: [part.comparison for part in one.parts]
            for name, one in asked.items()
            if not one.lacking
        }
    )
    entries = 2 * sum(claim.support_p is not None for claim in judged.values())
    answers: list[Judged] = []
    for hypothesis in hypotheses:
        if isinstance(hypothesis.test, Compare):
            answers += [
                _compared(one, judged.get(name), LEVEL / max(entries, 1))
                for name, one in asked.items()
                if one.hypothesis is hypothesis
            ]
        else:
            answers.append(_elsewhere(hypothesis, (evidence or {}).get(hypothesis.id)))
    return Claims(table, tuple(answers), entries)


def _asked(
    hypothesis: Hypothesis,
    test: Compare,
    datasets: Sequence[TableData],
    sheets: Mapping[Sheet, Means],
) -> list[_Asked]:
    """The hypothesis with its parts; one a data set where each is judged by itself."""
    sheet = sheets.get(test.sheet, Means({}, {}))
    groups = [(data,) for data in datasets] if test.apart else [tuple(datasets)]
    made = []
    for group in groups:
        names = tuple(data.name for data in group)
        parts: list[Part] = []
        lacking: list[tuple[str, str]] = []
        for name in names:
            for metric in test.metrics:
                column = sheet.columns.get((name, metric))
                there = column.methods if column else {}
                for a, b in test.pairs:
                    absent = [label for label in (a, b) if label not in there]
                    lacking += [(label, name) for label in absent]
                    if column is not None and not absent:
                        runs = (*sheet.runs.get((a, name), ()), *sheet.runs.get((b, name), ()))
                        parts.append(Part(a, b, name, metric, column.compare(a, b), runs))
        facts = [sheet.about[name] for name in names if name in sheet.about]
        facts += [
            f"{data.name} is the data of {reading}"
            for data in group
            if (reading := test.readings.get(twin(data)))
        ]
        made.append(_Asked(
            f"{hypothesis.id} {names[0]}" if test.apart else hypothesis.id, hypothesis, test, names,
            tuple(parts), tuple(dict.fromkeys(lacking)), tuple(facts),
        ))  # fmt: skip
    return made


def twin(data: TableData) -> str:
    """The paper's name of a data set, or of a demo's model."""
    return data.name.removeprefix("demo_") if data.demo else data.name


def _compared(asked: _Asked, claim: Claim | None, level: float) -> Judged:
    needed = len(asked.test.pairs) * len(asked.test.metrics) * len(asked.names)
    word, why = _word(asked, claim)
    answer = Judged(
        asked.name, asked.hypothesis, word, why, asked.parts, needed, claim, None, asked.facts
    )
    worst = answer.worst
    if worst is None or not answer.in_family:
        return answer
    found = detectable(worst.comparison.V, worst.comparison.df, level)
    return Judged(
        asked.name, asked.hypothesis, word, why, asked.parts, needed, claim, found, asked.facts
    )


def _word(asked: _Asked, claim: Claim | None) -> tuple[Word, str]:
    """The judgement, and why there is none."""
    if claim is None:
        return Word.NOT_TESTABLE, _lacking(asked)
    single = sum(part.comparison.p is None for part in asked.parts)
    if single:
        few = (
            "one run a method: no test"
            if single == len(asked.parts)
            else f"one run only in {single} of {len(asked.parts)} comparisons: no test of them"
        )
        return Word.UNDECIDED, few
    if claim.power is Power.TWO:
        return Word.UNDECIDED, "two runs of a method: p values, but no judgement (three are needed)"
    return Word(claim.judgement.value), ""


def _lacking(asked: _Asked) -> str:
    """`no runs of EBM, SASRec (demo_kuaishou) and 3 more`."""
    places: dict[str, list[str]] = {}
    for label, name in asked.lacking:
        places.setdefault(label, []).append(name)
    said = [
        label if len(names) == len(asked.names) else f"{label} ({', '.join(names)})"
        for label, names in places.items()
    ]
    if not asked.parts and asked.test.sheet is Sheet.table3 and asked.facts:
        return asked.facts[0]
    rest = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return f"no runs of {', '.join(said[:NAMED])}{rest}"


def _elsewhere(hypothesis: Hypothesis, evidence: Evidence | None) -> Judged:
    if isinstance(hypothesis.test, Untestable):
        return Judged(hypothesis.id, hypothesis, Word.NOT_TESTABLE, hypothesis.test.why)
    if evidence is None:
        return Judged(hypothesis.id, hypothesis, Word.NOT_TESTABLE, nothing(hypothesis.test))
    return Judged(
        hypothesis.id, hypothesis, evidence.word, evidence.why, facts=evidence.facts
    )  # fmt: skip


def nothing(test: Peak | Elsewhere | Compare) -> str:
    """Why a sentence about another artefact has no answer yet."""
    target = test.target if isinstance(test, Elsewhere) else "figure4"
    return f"{target} has no stored cells"


def peaks(
    plateaus: Mapping[str, tuple[stats.Plateau, int]],
    what: str,
    gaps: Mapping[str, str] | None = None,
) -> Evidence:
    """The judgement of "the peak is there" over data sets: contradicted with any, supported with all.

    Args:
        plateaus: By data set: the judged heatmap, and the place of the claimed peak among its cells.
        what: The claimed setting, in words.
        gaps: Why a data set has no heatmap, by its name.
    """
    gaps = gaps or {}
    said = tuple(f"{name}: {why}" for name, why in gaps.items())
    if not plateaus:
        return Evidence(Word.UNDECIDED, "; ".join(said))
    judged = {plateau.peak_at(cell) for plateau, cell in plateaus.values()}
    facts = tuple(
        f"{name}: {what} has {plateau.means[cell]:.4f}, the highest cell {max(plateau.means):.4f}; "
        f"{len(plateau.plateau)} of {len(plateau.means)} cells may be the peak"
        f"{', this one among them' if cell in plateau.plateau else ', this one not'}; the surface is "
        f"{'not told from flat' if plateau.flat else 'not flat'} (F = {plateau.F:.2f}, critical "
        f"{plateau.F_critical:.2f})"
        for name, (plateau, cell) in plateaus.items()
    )
    if Judgement.CONTRADICTED in judged:
        return Evidence(Word.CONTRADICTED, facts=(*facts, *said))
    if judged == {Judgement.SUPPORTED} and not gaps:
        return Evidence(Word.SUPPORTED, facts=facts)
    return Evidence(Word.UNDECIDED, "; ".join(said), facts)


# --------------------------------------------------------------------------------- published cells


class Cell(Enum):
    """What is said of a published number of Table 2, beside whether it is possible at all."""

    INSIDE = "inside"
    BEST_OF_10 = "inside only as best of 10"
    OUTSIDE = "outside"
    UNDECIDABLE = "undecidable with one run"
    NO_RUNS = "no runs"


@dataclass(frozen=True)
class PublishedCell:
    """A published number of the paper's own data, judged."""

    method: str
    dataset: str
    metric: str
    published: float
    printed: str
    possible: bool
    """False: struck through by arithmetic alone, whatever our runs say."""
    verdict: Cell
    mean: float | None
    """Ours."""
    low: float | None
    high: float | None
    runs: tuple[str, ...]


def published_cells(table: Table) -> list[PublishedCell]:
    """Every published number of the table's data sets; none of demo data or of others."""
    compared = {data.name for data in table.data if table.published.comparable(data)}
    made = []
    for row in table.rows:
        for cell in row.cells:
            beside = cell.beside
            if beside is None or cell.dataset not in compared:
                continue
            verdict = Cell.NO_RUNS
            if beside.verdict is not None:
                verdict = Cell.UNDECIDABLE if beside.verdict == ONE_RUN else Cell(beside.verdict)
            made.append(PublishedCell(
                cell.method, cell.dataset, cell.metric, float(beside.published),
                str(beside.published), beside.possible, verdict, cell.mean, beside.low, beside.high,
                cell.runs,
            ))  # fmt: skip
    return made


def counts(cells: Sequence[PublishedCell], dataset: str) -> dict[tuple[Cell, bool], int]:
    """Published numbers of a data set by verdict and possibility."""
    own = [cell for cell in cells if cell.dataset == dataset]
    return {
        (verdict, possible): sum((c.verdict, c.possible) == (verdict, possible) for c in own)
        for verdict in Cell
        for possible in (True, False)
    }
