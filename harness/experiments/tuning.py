"""Tuning: the same number of trials for every method, chosen on validation, every trial in a ledger.

Two rounds. First the grid that all methods share, learning rate x hidden (section 5.1.3 of the paper).
Then the method's own grid (`Config.GRID`), in a drawn order, at the best point of the first round;
when it is used up, at the second best, and so on, until every method has had its trials. A method
without enough combinations has fewer, and the table says so.

The choice feeds every other artefact of the same budget and data (harness/compose.py).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import ledger
from harness.compose import Budget, check_overrides, compose_cell
from harness.config import Cell, cell_key, plain_value
from harness.errors import InputError
from harness.evaluation.ranks import Validation
from harness.execution.plan import Plan, plan
from harness.experiments.common import (
    Request,
    check_cells,
    failures,
    publish_page,
    table_data,
)
from harness.ledger import Trial
from harness.report.tuning import json_content, page
from harness.run import open_dataset
from harness.seeding import stream
from harness.store import Record
from harness.zoo import METHODS, REFERENCES, Method, find

RATE, HIDDEN = "model.learning_rate", "model.hidden"


@dataclass(frozen=True)
class Space:
    """What all methods share."""

    rates: tuple[float, ...]
    hidden: tuple[int, ...]
    trials: int
    """Of each method on each data set, both rounds together."""


SPACES: dict[Budget, Space] = {
    Budget.smoke: Space((1e-3,), (16, 32), 3),
    Budget.quick: Space((2e-3, 6e-3, 2e-2), (16, 32), 10),
    Budget.paper: Space((1e-5, 1e-4, 1e-3), (64, 128, 256, 512), 24),
}
"""The paper's grid (section 5.1.3); on the demo's small worlds, higher rates and smaller widths."""

TUNED = (*METHODS, *(method for method in REFERENCES if method.trained))
"""Whose settings are chosen: the paper's methods, and reference rows that are trained."""


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """`--methods a,b`: rows that are trained. Raises InputError for another name."""
    if word is None:
        return TUNED
    chosen = {find(name).key for name in word.split(",") if name.strip()}
    without = chosen - {method.key for method in TUNED}
    if without or not chosen:
        named = f"'{min(without)}' has nothing to tune" if without else "names no method"
        raise InputError(
            f"--methods '{word}': {named}; choose from: {', '.join(m.key for m in TUNED)}"
        )
    return tuple(method for method in TUNED if method.key in chosen)


def cells(request: Request) -> Sequence[Cell]:
    """The trials that can be named so far: the second round of a method follows its first.

    Raises InputError for overrides that no method has, or that leave nothing to train on.
    """
    check_overrides(request.methods, request.overrides)
    shared = [cell for search in searches(request) for cell in search.shared]
    check_cells(shared, request.places)
    return [cell for search in searches(request) for cell in search.known(request)]


def later(request: Request) -> str:
    """What a plan has to say of trials that cannot be named yet."""
    count = sum(
        max(0, search.trials - len(search.known(request)))
        for search in searches(request)
        if len(search.known(request)) == len(search.shared)
    )
    if not count:
        return ""
    return f"and up to {count} trials of the methods' own grids, named when the shared grid is done"


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write the ledgers below results/tuned and the table's files; returns what a terminal shows."""
    failed = failures(request) | failed
    trials: dict[str, list[Trial]] = {name: [] for name in request.names}
    for search in searches(request):
        trials[search.data] += search.ledger(request, planned.stored, failed)
    mine = {method.key for method in request.methods}
    for name, made in trials.items():
        path = ledger.path_of(request.places.results / "tuned", request.budget.name, name)
        others = [trial for trial in ledger.read(path) if trial.method not in mine]
        order = [method.key for method in TUNED]
        rows = sorted([*others, *made], key=lambda t: (order.index(t.method), t.number))
        before = ledger.commands(path) if others else []
        ledger.write(path, rows, [*before, request.command])
    data = table_data(request, planned)
    floor = {name: most_popular(request, planned.wanted, name) for name in request.names}
    space, budget = _space_in_words(request), request.budget.name
    shown = page(trials, data, request.methods, space, budget, floor)
    content = json_content(trials, data, request.methods, floor)
    return publish_page(request, planned, shown, _csv(trials), "tab:tuning", content)


@dataclass(frozen=True)
class Search:
    """The trials of one method on one data set."""

    method: Method
    data: str
    trials: int
    base: Cell
    """What every trial starts from: the budget's stored settings and the user's overrides."""
    points: tuple[dict[str, Any], ...]
    """First round: what each trial sets."""
    own: tuple[dict[str, Any], ...]
    """The method's own grid in the order of the second round."""

    @property
    def shared(self) -> list[Cell]:
        """The cells of the first round."""
        return [with_settings(self.base, point) for point in self.points]

    def known(self, request: Request) -> list[Cell]:
        """The cells of the trials that can be named, in the order tried."""
        return [cell for _, cell, _ in self.named(request)]

    def named(self, request: Request) -> list[tuple[dict[str, Any], Cell, bool]]:
        """Settings, cell and whether it is of the own grid, of each trial that can be named."""
        first = [(point, cell, False) for point, cell in zip(self.points, self.shared, strict=True)]
        order = self._best_first(request)
        if order is None:
            return first
        seen = {cell_key(cell) for _, cell, _ in first}
        second: list[tuple[dict[str, Any], Cell, bool]] = []
        for base, extra in itertools.product(order, self.own):
            if len(first) + len(second) >= self.trials:
                break
            settings = {**base, **extra}
            cell = with_settings(self.base, settings)
            if cell_key(cell) not in seen:
                seen.add(cell_key(cell))
                second.append((settings, cell, True))
        return first + second

    def _best_first(self, request: Request) -> list[dict[str, Any]] | None:
        """The settings of the first round by their score; None while one is neither done nor failed."""
        stored = plan(self.shared, request.places).stored
        failed = failures(request)
        scores = []
        for point, cell in zip(self.points, self.shared, strict=True):
            key = cell_key(cell)
            if key in stored:
                scores.append((-best_score(stored[key])[0], point))
            elif key in failed:
                scores.append((math.inf, point))
            else:
                return None
        return [point for _, point in sorted(scores, key=lambda pair: pair[0])]

    def ledger(
        self, request: Request, stored: Mapping[str, Record], failed: Mapping[str, str]
    ) -> Iterator[Trial]:
        """The trials that are done or have failed."""
        for number, (settings, cell, own) in enumerate(self.named(request), 1):
            key = cell_key(cell)
            if key in stored:
                record = stored[key]
                ndcg, epoch = best_score(record)
                yield Trial(
                    self.method.key, number, own, _plain(settings), ndcg, epoch, record.epochs,
                    record.seconds["total"], record.parameters, key, record.fingerprints.code[:12],
                )  # fmt: skip
            elif key in failed:
                yield Trial(
                    self.method.key, number, own, _plain(settings), math.nan, 0, 0, 0.0, 0, key, ""
                )


def searches(request: Request) -> list[Search]:
    """One search a data set and method, as far as the overrides leave something to choose."""
    space = SPACES[request.budget]
    fixed = {word.split("=")[0] for word in request.overrides}
    made = []
    for data in request.names:
        for method in request.methods:
            trials = request.trials or space.trials
            points = list(_product({RATE: space.rates, HIDDEN: space.hidden}, fixed))
            if request.trials is not None:  # a smaller search sees some of each grid
                drawn = stream(0, "shared grid").permutation(len(points))
                points = [points[place] for place in drawn[: -(-trials // 2)]]
            base = compose_cell(method, data, request.budget, request.overrides, tuned=())
            own = _own_grid(method, fixed)
            made.append(Search(method, data, trials, base, tuple(points), own))
    return made


def _own_grid(method: Method, fixed: set[str]) -> tuple[dict[str, Any], ...]:
    """The combinations of a method's own options, in an order drawn once for all."""
    grid = {f"model.{key}": values for key, values in method.load()[1].GRID.items()}
    points = list(_product(grid, fixed))
    order = stream(0, f"own grid {method.key}").permutation(len(points))
    return tuple(points[place] for place in order)


def _product(grid: Mapping[str, Sequence[Any]], fixed: set[str]) -> Iterator[dict[str, Any]]:
    """Every combination of a grid without the options that the user has fixed."""
    free = {key: values for key, values in grid.items() if key not in fixed}
    for values in itertools.product(*free.values()):
        yield dict(zip(free, values, strict=True))


def with_settings(base: Cell, settings: Mapping[str, Any]) -> Cell:
    """A copy of a cell with some dotted settings changed.

    Raises AttributeError for a setting that the cell does not have: a GRID is wrong.
    """
    cell = copy.deepcopy(base)
    for key, value in settings.items():
        *path, last = key.split(".")
        owner: Any = cell
        for name in path:
            owner = getattr(owner, name)
        getattr(owner, last)
        setattr(owner, last, value)
    return cell


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are typed: an option by its name."""
    return {key: plain_value(value) for key, value in settings.items()}


def best_score(record: Record) -> tuple[float, int]:
    """Validation NDCG@10 of the epoch whose weights were kept, and that epoch."""
    row = record.curve[record.best_epoch - 1]
    return float(row["NDCG@10"]), record.best_epoch


def most_popular(request: Request, wanted: Sequence[Cell], name: str) -> float:
    """Validation NDCG@10 of MostPopular: the least that a method should reach."""
    cell = next(cell for cell in wanted if cell.data == name)
    dataset = open_dataset(request.places.data, name)
    split = dataset.split(cell.protocol, cell.users)
    model_class, config_class = find("mostpopular").load()
    model = model_class(config_class(), dataset.catalogue(cell.protocol))
    model.prepare(split.train)
    return Validation(split, cell.protocol, cell.train.evaluation_batch)(model)


def _space_in_words(request: Request) -> str:
    """What the search goes through."""
    space = SPACES[request.budget]
    rates = ", ".join(f"{rate:g}" for rate in space.rates)
    widths = ", ".join(map(str, space.hidden))
    count = request.trials or space.trials
    said = (
        f"{count} trials of every method on every data set: learning rate {rates} x hidden {widths}, "
        "then the method's own grid at the best of these; one seed (0), validation NDCG@10"
    )
    fixed = f", with {' '.join(request.overrides)}" if request.overrides else ""
    return said + fixed


def _csv(trials: Mapping[str, Iterable[Trial]]) -> str:
    """Every trial a line."""
    lines = ["data,method,trial,own,settings,ndcg,best_epoch,epochs,seconds,parameters,key"]
    for data, made in trials.items():
        for t in made:
            words = " ".join(f"{key}={value}" for key, value in t.settings.items())
            lines.append(
                f"{data},{t.method},{t.number},{int(t.own)},{words},{t.ndcg:.6f},{t.best_epoch},"
                f"{t.epochs},{t.seconds:.1f},{t.parameters},{t.key}"
            )
    return "\n".join(lines) + "\n"
