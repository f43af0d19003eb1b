"""The footers under a table: what it was made from, and what its numbers can and cannot carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import median

import numpy as np

from harness import stats
from harness.config import ProtocolConfig, digest, plain
from harness.evaluation.metrics import METRICS, degenerate
from harness.ledger import Trial
from harness.report.content import CHAMPION, Column, columns_in_words
from harness.report.gather import Budget, Gathered, Runs, TableData
from harness.stats import Moments, Power
from harness.zoo import Group

FLIPS_NAMED = 6
"""Pairs that change places between sampled and full ranks: so many are named, the rest counted."""
CANDIDATES = 99
"""Negatives a user."""
SHORT = 12
"""Digits of a checksum that are printed."""


def notes(
    found: Gathered,
    datasets: Sequence[TableData],
    columns: Sequence[Column],
    numbers: Mapping[tuple[str, str], Mapping[str, Moments]],
    budgets: Sequence[Budget],
    budget_name: str,
    overrides: Sequence[str],
) -> tuple[str, ...]:
    """Every footer, in the order of printing."""
    return (
        *(_data(data, found) for data in datasets),
        _protocol(found, overrides),
        _correction(columns),
        _budget(budgets, budget_name),
        *(_ties(data, found) for data in datasets),
        *(line for data in datasets for line in _sampled_and_full(data, found)),
        *(line for data in datasets for line in _noise(data, found, numbers)),
        *(line for data in datasets for line in _redrawn(data, found)),
        *_versions(found),
    )


def _data(data: TableData, found: Gathered) -> str:
    users = ""
    if data.name in found.users:
        everyone = found.everyone.get(data.name)
        of_all = "" if everyone is None else f" of {everyone:,}"
        users = f"{found.users[data.name]:,}{of_all} test users, "
    return (
        f"Data {data.name}: {users}sha256 {data.data_sha256[:SHORT]}, "
        f"candidates (1 + 99 a user, the same for every method) {data.candidates_sha256[:SHORT]}."
    )


def _protocol(found: Gathered, overrides: Sequence[str]) -> str:
    """The readings' fingerprint, and every one that is not the default."""
    usual = plain(ProtocolConfig())
    changed = [f"{key}={value}" for key, value in found.protocol.items() if usual.get(key) != value]
    readings = (
        f"not the default: {', '.join(changed)}" if changed else "all readings at their defaults"
    )
    typed = f"; overrides: {', '.join(overrides)}" if overrides else ""
    return f"Protocol {protocol_fingerprint(found.protocol)}: {readings}{typed}."


def protocol_fingerprint(protocol: Mapping[str, object]) -> str:
    """The readings as 12 hex digits."""
    return digest(dict(protocol))[:SHORT]


def power_notes(columns: Sequence[Column]) -> list[str]:
    """What the number of runs allows, for each group of columns that share it."""
    said = []
    for power in Power:
        having = [column for column in columns if column.power is power and column.methods]
        where = (
            "" if len(having) == len(columns) else f" in {columns_in_words(having, len(columns))}"
        )
        if not having or power is Power.FULL:
            continue
        if power is Power.ONE:
            said.append(
                f"One run a method{where}: no standard deviation, no p, no dagger and no best set. "
                "How much a method moves from one training run to the next is unknown, so no "
                "difference is called significant; the intervals (in table.csv) are for "
                "these trained models and new users. Three runs or more are needed (--seeds 5)."
            )
        elif power is Power.TWO:
            said.append(
                f"Two runs a method{where}: p values but no dagger, mark or best set, which would be "
                "false in 15 % of tables without any difference. Three runs or more are needed."
            )
        else:
            said.append(
                f"Low power{where}: with 3 or 4 runs a method many real differences stay unmarked; "
                "an unmarked difference is not an equality."
            )
    return said


def _correction(columns: Sequence[Column]) -> str:
    """How many comparisons Holm corrected for."""
    counts = Counter(column.comparisons for column in columns if column.comparisons)
    if not counts:
        return f"Comparisons corrected for: none ({CHAMPION} has no tested pair)."
    if len(counts) == 1 and counts.total() == len(columns):
        count = next(iter(counts))
        return (
            f"Comparisons: {CHAMPION} against {count} other method{'s' * (count > 1)} in each of "
            f"{len(columns)} columns, corrected by Holm within a column ({count} comparisons)."
        )
    each = "; ".join(
        f"{count} in {columns_in_words([c for c in columns if c.comparisons == count], len(columns))}"
        for count in sorted({column.comparisons for column in columns}, reverse=True)
    )
    return f"Comparisons of {CHAMPION}, corrected by Holm within a column: {each}."


def spent(
    found: Gathered,
    datasets: Sequence[TableData],
    searches: Mapping[tuple[str, str], Sequence[Trial]],
) -> list[Budget]:
    """Trials of tuning, and the seconds of these and of the table's records.

    `searches` has the trials by the method's key and the data set.
    """
    budgets = []
    for row in found.rows:
        for data in datasets:
            runs = found.runs.get((row.label, data.name))
            if row.group is Group.reference or row.method is None or runs is None:
                continue
            trials = searches.get((row.method.key, data.name), ())
            seconds = sum(record.seconds["total"] for record in runs.records)
            seconds += sum(trial.seconds for trial in trials)
            budgets.append(Budget(row.label, data.name, len(trials), seconds))
    return budgets


def _budget(budgets: Sequence[Budget], name: str) -> str:
    """Trials and seconds a method."""
    label = f"Tuning budget ({name})" if name else "Tuning budget"
    trials = {budget.trials for budget in budgets}
    if trials <= {0}:
        settings = "the defaults" if name == "paper" else "stored settings"
        what = f"{settings} of every method, 0 trials"
    elif len(trials) == 1:
        what = f"{trials.pop()} trials for every method and data set"
    else:
        what = "trials differ: " + ", ".join(
            f"{budget.method} on {budget.dataset} {budget.trials}" for budget in budgets
        )
    by_method = {
        method: sum(budget.seconds for budget in group)
        for method, group in groupby(budgets, key=lambda budget: budget.method)
    }
    seconds = ", ".join(f"{method} {value:,.0f}" for method, value in by_method.items())
    return f"{label}: {what}. Seconds (tuning and the runs of this table): {seconds or 'none'}."


def degenerate_runs(found: Gathered, label: str, datasets: Sequence[TableData]) -> tuple[str, ...]:
    """`demo_kuaishou seed 2` of each run whose HR@10 depends on the order of ties."""
    return tuple(
        f"{data.name} seed {record.seed}"
        for data in datasets
        if (runs := found.runs.get((label, data.name))) is not None
        for record, above, tied in zip(runs.records, runs.above, runs.tied, strict=True)
        if degenerate(above, tied)
    )


def _ties(data: TableData, found: Gathered) -> str:
    """The widest HR@10 bracket, and the runs beyond 0.01."""
    widths: dict[str, float] = {}
    flat: list[str] = []
    for runs in found.methods(data.name):
        first, last = METRICS["HR@10"].ends(runs.above, runs.tied)
        for record, width in zip(runs.records, (first - last).mean(axis=1), strict=True):
            widths[f"{runs.method.label}, seed {record.seed}"] = float(width)
        flat += [
            f"{runs.method.label} {run}"
            for run in degenerate_runs(found, runs.method.label, [data])
        ]
    if not widths:
        why = "no runs" if found.users.get(data.name, 2) > 1 else "too few users"
        return f"Ties on {data.name}: {why}."
    widest = max(widths, key=widths.__getitem__)
    named = f"degenerate scores (wider than 0.01): {', '.join(flat) if flat else 'none'}"
    floor = [
        runs.method.label
        for runs in found.references(data.name)
        if degenerate_runs(found, runs.method.label, [data])
    ]
    tail = f"; reference rows that tie by design: {', '.join(floor)}" if floor else ""
    most = f"at most {widths[widest]:.4f} ({widest})" if widths[widest] else "nothing"
    return (
        f"Ties on {data.name}: the order of ties can move HR@10 of a run by {most}; {named}{tail}."
    )


def _sampled_and_full(data: TableData, found: Gathered) -> list[str]:
    """Whether ranks among 100 candidates and among all untouched items order the methods alike."""
    runs = found.methods(data.name)
    if len(runs) < 2:
        return []
    taus, flipped = [], []
    for name in METRICS:
        flips = stats.flips(_means(runs, name, full=False), _means(runs, name, full=True))
        taus.append(f"{name} {'none' if flips.tau is None else f'{flips.tau:.2f}'}")
        flipped += [f"{a}/{b} ({name})" for a, b in flips.flipped]
    if flipped:
        more = len(flipped) - FLIPS_NAMED
        pairs = "pairs that change places: " + ", ".join(flipped[:FLIPS_NAMED])
        pairs += f" and {more} more" if more > 0 else ""
    else:
        pairs = "no pair changes places"
    return [
        (
            f"Sampled against full ranks on {data.name}: Kendall's tau of the methods' order "
            f"{', '.join(taus)}; {pairs}."
        )
    ]


def _means(runs: Iterable[Runs], metric: str, *, full: bool) -> dict[str, float]:
    return {
        one.method.label: float((one.full_scores if full else one.scores)(metric).mean())
        for one in runs
    }


def _noise(
    data: TableData, found: Gathered, numbers: Mapping[tuple[str, str], Mapping[str, Moments]]
) -> list[str]:
    """Where the noise of HR@10 comes from: users, runs, both, and the draw of candidates."""
    runs = found.methods(data.name)
    parts = []
    known = [
        shares.mean
        for one in runs
        if (shares := stats.shares(numbers[data.name, "HR@10"][one.method.label])) is not None
    ]
    if known:
        users, of_runs, both = (
            100 * median(getattr(share, part) for share in known)
            for part in ("users", "runs", "user_run")
        )
        parts.append(
            f"of the variance of a printed mean (median over methods) {users:.0f} % comes from "
            f"users, {of_runs:.0f} % from runs, {both:.0f} % from users x runs"
        )
    sd = _candidate_sd(runs, found)
    if sd is not None:
        label, value = sd
        parts.append(
            f"drawing other candidates moves one run of {label} by a standard deviation of {value:.4f}"
        )
    return [f"Noise of HR@10 on {data.name}: {'; '.join(parts)}."] if parts else []


def _candidate_sd(runs: Sequence[Runs], found: Gathered) -> tuple[str, float] | None:
    """Of the champion, or of the first method without it; uniform candidates alone have a formula."""
    if not runs or found.protocol.get("negatives") != "uniform":
        return None
    one = next((r for r in runs if r.method.label == CHAMPION), runs[0])
    untouched = np.broadcast_to(one.untouched, one.above_full.shape)
    if int(untouched.min()) < CANDIDATES:
        return None
    drawn = stats.drawn(
        METRICS["HR@10"], untouched.ravel(), one.above_full.ravel(), one.tied_full.ravel()
    )
    return one.method.label, drawn.sd_of_mean(one.above.shape[1])


def _redrawn(data: TableData, found: Gathered) -> list[str]:
    """What other draws of the 99 candidates, the same for every method, would have changed."""
    means = {
        runs.method.label: redrawn
        for runs in found.methods(data.name)
        if (redrawn := runs.redrawn_means("HR@10")) is not None
    }
    if not means:
        return []
    count = len(next(iter(means.values())))
    sds = {label: float(values.std(ddof=1)) for label, values in means.items()}
    widest = max(sds, key=sds.__getitem__)
    typical = median(sds.values())
    spread = f"median over methods; the largest {sds[widest]:.4f}, {widest}"
    parts = [f"the standard deviation of a printed HR@10 is {typical:.4f} ({spread})"]
    if len(means) > 1:
        first = Counter(
            max(means, key=lambda label: float(means[label][draw])) for draw in range(count)
        )
        leaders = ", ".join(f"{label} in {times}" for label, times in first.most_common())
        parts.append(f"the best is {leaders} of {count}")
    rivals = [label for label in means if label != CHAMPION]
    if CHAMPION in means and rivals:
        rival = max(rivals, key=lambda label: float(means[label].mean()))
        lead = means[CHAMPION] - means[rival]
        parts.append(
            f"{CHAMPION} minus {rival} lies between {lead.min():+.4f} and {lead.max():+.4f} (standard "
            f"deviation {lead.std(ddof=1):.4f})"
        )
    return [f"Other candidates on {data.name}, {count} redraws: {'; '.join(parts)}."]


def _versions(found: Gathered) -> list[str]:
    """Library releases and code; runs made by different ones are named."""
    records = [record for runs in found.runs.values() for record in runs.records]
    if not records:
        return []
    releases = Counter(
        ", ".join(f"{name} {version}" for name, version in record.versions.items())
        for record in records
    )
    if len(releases) == 1:
        made = f"Made with {next(iter(releases))}."
    else:
        each = "; ".join(f"{text} ({count} runs)" for text, count in releases.items())
        made = f"Runs were made with different library releases: {each}."
    codes = {
        label: runs.records[0].fingerprints.code
        for (label, _), runs in found.runs.items()
        if runs.method.group is not Group.reference
    }
    labels: dict[str, list[str]] = {}
    for row in found.rows:
        if row.label in codes:
            labels.setdefault(codes[row.label][:SHORT], []).append(row.label)
    code = "; ".join(f"{short} ({', '.join(names)})" for short, names in labels.items())
    return [f"{made} Code fingerprints: {code or 'none'}."]
