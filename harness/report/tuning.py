"""The page of a search: what each method's trials found, where the optimum lies, what luck is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from harness.ledger import Trial, chosen, of_method
from harness.report.document import Band, Document, Entry, Grid, Line, Notes, Span, entry
from harness.report.export import data_json
from harness.report.gather import TableData
from harness.report.layout import demo_line
from harness.zoo import Method

TITLE = "Tuning: the same search for every method"
COLUMNS = ("Trials", "Failed", "Best", "Median", "Epoch", "Seconds", "At an edge")
DRAWS = (1, 2, 4, 8, 12, 24)
"""n of the best-of-n curve, as far as there are trials."""
EDGE = (
    "At an edge: the chosen value is the lowest or highest of three or more, so a wider search may "
    "find a better one."
)
BEST = (
    "Best, Median: validation NDCG@10 over a method's trials (a failed trial counts as 0); Epoch: the "
    "best one of the chosen trial; Seconds: of all its trials. Bold: above MostPopular."
)
CURVE = (
    "Expected best validation NDCG@10 of n trials drawn from those made, without repetition: what a "
    "smaller search would have found on average."
)


def expected_best(values: Sequence[float], draws: int) -> float:
    """Mean over all choices of `draws` of the values (without repetition) of their maximum.

    Raises ValueError for fewer values than draws.
    """
    if not 1 <= draws <= len(values):
        raise ValueError(f"{draws} draws from {len(values)} values")
    ways = comb(len(values), draws)
    return sum(value * comb(place, draws - 1) / ways for place, value in enumerate(sorted(values)))


def edges(trials: Sequence[Trial], choice: Trial) -> list[str]:
    """`learning_rate=0.01 (highest)` of each numeric setting whose chosen value ends its range."""
    found = []
    for key in sorted({key for trial in trials for key in trial.settings}):
        values = {trial.settings[key] for trial in trials if key in trial.settings}
        if len(values) < 3 or not all(_is_number(value) for value in values):
            continue
        value = choice.settings.get(key)
        if value in (min(values), max(values)):
            end = "lowest" if value == min(values) else "highest"
            found.append(f"{key.removeprefix('model.')}={value:g} ({end})")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scores(trials: Sequence[Trial]) -> list[float]:
    """Validation NDCG@10 of each trial; a failed one found nothing."""
    return [0.0 if trial.failed else trial.ndcg for trial in trials]


def page(
    ledgers: Mapping[str, Sequence[Trial]],
    data: Sequence[TableData],
    methods: Sequence[Method],
    space: str,
    budget: str,
    floor: Mapping[str, float],
) -> Document:
    """The whole page; every trial stands in the appendix.

    Args:
        ledgers: Trials by data set.
        data: The data sets, in order.
        methods: The rows, in order.
        space: What was searched, in words.
        budget: smoke, quick or paper.
        floor: Validation NDCG@10 of MostPopular, by data set.
    """
    names = [one.name for one in data]
    made_up = [one.name for one in data if one.demo]
    opening = demo_line(names, made_up) if made_up else f"Data: {', '.join(names)}."
    parts: list[Grid | Notes] = []
    appendix = []
    for name in names:
        made = {method.key: of_method(ledgers[name], method.key) for method in methods}
        parts += [_summary(name, methods, made, floor[name]), _curve(name, methods, made)]
        appendix.append(_every_trial(name, methods, made))
    parts.append(Notes("What was searched", _notes(ledgers, methods, space, budget, floor)))
    return Document(opening, f"{TITLE} (budget {budget})", tuple(parts), tuple(appendix))


def _summary(
    name: str, methods: Sequence[Method], made: Mapping[str, Sequence[Trial]], floor: float
) -> Grid:
    lines = []
    for method in methods:
        trials = made[method.key]
        choice = chosen(trials, method.key)
        if not trials or choice is None:
            cells = [str(len(trials)), str(len(trials)), "none", "", "", "", ""]
            lines.append(Line(method.printed, tuple(map(entry, cells))))
            continue
        values = sorted(scores(trials))
        half = len(values) // 2
        middle = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
        best: Entry = (Span(f"{choice.ndcg:.4f}", bold=choice.ndcg > floor),)
        lines.append(
            Line(
                method.printed,
                (
                    entry(str(len(trials))),
                    entry(str(sum(trial.failed for trial in trials))),
                    best,
                    entry(f"{middle:.4f}"),
                    entry(f"{choice.best_epoch} of {choice.epochs}"),
                    entry(f"{sum(trial.seconds for trial in trials):,.0f}"),
                    entry(", ".join(edges(trials, choice)) or "no"),
                ),
            )
        )
    floors = ("", "", f"{floor:.4f}", "", "", "", "")
    lines += [Line("Reference"), Line("MostPopular", tuple(map(entry, floors)))]
    return Grid(
        f"What the search found on {name}", "Method", (Band("", "", COLUMNS),), tuple(lines),
        (BEST, EDGE),
    )  # fmt: skip


def _curve(name: str, methods: Sequence[Method], made: Mapping[str, Sequence[Trial]]) -> Grid:
    most = max((len(trials) for trials in made.values()), default=0)
    draws = tuple(sorted({n for n in (*DRAWS, most) if 1 <= n <= most}))
    lines = []
    for method in methods:
        values = scores(made[method.key])
        cells = [f"{expected_best(values, n):.4f}" if n <= len(values) else "" for n in draws]
        lines.append(Line(method.printed, tuple(map(entry, cells))))
    heads = tuple(f"n = {n}" for n in draws)
    return Grid(
        f"Best of n trials on {name}", "Method", (Band("", "", heads),), tuple(lines), (CURVE,)
    )


def _every_trial(name: str, methods: Sequence[Method], made: Mapping[str, Sequence[Trial]]) -> Grid:
    lines = []
    for method in methods:
        choice = chosen(made[method.key], method.key)
        lines.append(Line(method.printed))
        for trial in made[method.key]:
            words = " ".join(
                f"{key.removeprefix('model.')}={value}" for key, value in trial.settings.items()
            )
            lines.append(
                Line(
                    f"{trial.number}",
                    (
                        (Span("failed" if trial.failed else f"{trial.ndcg:.4f}",
                              bold=trial is choice),),
                        entry(f"{trial.best_epoch} of {trial.epochs}"),
                        entry(f"{trial.seconds:.1f}"),
                        entry(words),
                    ),
                )
            )  # fmt: skip
    heads = ("Validation NDCG@10", "Best epoch", "Seconds", "Settings")
    return Grid(f"Every trial on {name}", "Trial", (Band("", "", heads),), tuple(lines))


def _notes(
    ledgers: Mapping[str, Sequence[Trial]],
    methods: Sequence[Method],
    space: str,
    budget: str,
    floor: Mapping[str, float],
) -> tuple[str, ...]:
    counts = {
        (method.printed, name): len(of_method(trials, method.key))
        for name, trials in ledgers.items()
        for method in methods
    }
    said = [f"{space}."]
    most = max(counts.values(), default=0)
    fewer = [f"{label} on {name} {n}" for (label, name), n in counts.items() if n < most]
    said.append(
        f"Every method had {most} trials."
        if not fewer
        else f"Not every method had {most} trials: {', '.join(fewer)}."
    )
    for name, trials in ledgers.items():
        below = [
            f"{method.printed} {best.ndcg:.4f}"
            for method in methods
            if (best := chosen(trials, method.key)) is not None and best.ndcg <= floor[name]
        ]
        said.append(
            f"Not above MostPopular ({floor[name]:.4f}) on validation on {name}: "
            f"{', '.join(below) or 'none'}."
        )
    said.append(
        "This shows that the search runs; nothing uses what it chose."
        if budget == "smoke"
        else f"The chosen settings are those that `--budget {budget}` uses on this data from now on; "
        "`key=value` on a command line still wins over them."
    )
    return tuple(said)


def json_content(
    ledgers: Mapping[str, Sequence[Trial]],
    data: Sequence[TableData],
    methods: Sequence[Method],
    floor: Mapping[str, float],
) -> dict[str, Any]:
    """The content of table.json: data sets, each method's choice, curve and trials."""
    found = []
    for name, trials in ledgers.items():
        for method in methods:
            made = of_method(trials, method.key)
            choice = chosen(made, method.key)
            found.append(
                {
                    "method": method.label,
                    "dataset": name,
                    "chosen": None if choice is None else choice.settings,
                    "ndcg": None if choice is None else choice.ndcg,
                    "edges": [] if choice is None else edges(made, choice),
                    "seconds": sum(trial.seconds for trial in made),
                    "best_of_n": [expected_best(scores(made), n) for n in range(1, len(made) + 1)],
                    "trials": [_trial(trial) for trial in made],
                }
            )
    return {
        "target": "tuning",
        "data": [{**data_json(one), "most_popular": floor[one.name]} for one in data],
        "searches": found,
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "own": trial.own,
        "settings": trial.settings,
        "ndcg": None if trial.failed else trial.ndcg,
        "best_epoch": trial.best_epoch,
        "epochs": trial.epochs,
        "seconds": trial.seconds,
        "parameters": trial.parameters,
        "key": trial.key,
    }
