"""Typed cells from a budget and `key=value` overrides, by Hydra: once a method and data set.

Order, later wins: the config's defaults, the budget, the stored settings of the method
(results/tuned/quick.yaml, not for budget paper), what tuning chose for it on this data
(results/tuned/BUDGET/DATA.csv), the user's overrides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from harness import ledger
from harness.config import Cell
from harness.errors import InputError, unknown
from harness.zoo import Method

TUNED = Path(__file__).resolve().parents[1] / "results" / "tuned"


class Budget(Enum):
    """How much a table may cost: structure (smoke), a demo (quick), or the paper's protocol."""

    smoke = "smoke"
    quick = "quick"
    paper = "paper"


SETTINGS: dict[Budget, dict[str, Any]] = {
    Budget.smoke: {"users": 200, "train.epochs": 2, "train.patience": 2, "train.samples": 512},
    Budget.quick: {"train.epochs": 30, "train.patience": 3},
    Budget.paper: {},
}
"""What a budget sets, before a method's stored settings."""

SEEDS = {Budget.smoke: 1, Budget.quick: 3, Budget.paper: 5}
"""Runs of each method, unless --seeds says otherwise."""


LEAST: dict[str, float] = {
    "users": 0,
    "model.hidden": 1,
    "model.learning_rate": 0,
    "model.weight_decay": 0,
    "train.epochs": 1,
    "train.patience": 1,
    "train.batch_size": 1,
    "train.samples": 0,
    "train.passes": 1,
    "train.evaluation_batch": 1,
    "protocol.max_history": 1,
}
"""Smallest value of a setting; a method's own settings are checked by its class."""


def compose_cell(
    method: Method,
    data: str,
    budget: Budget,
    overrides: Sequence[str] = (),
    tuned: Sequence[Path] = (TUNED,),
) -> Cell:
    """The cell of one method on one data set, seed 0.

    Args:
        method: Whose cell.
        data: Name of the data set.
        budget: See SETTINGS.
        overrides: Hydra's `key=value`; those of `model.` that this method lacks are left out (the
            caller has made sure, by `check_overrides`, that some method has them).
        tuned: Folders of ledgers; the first that has trials of the method on the data decides.
    """
    settings = dict(SETTINGS[budget])
    if budget is not Budget.paper:
        settings |= stored_settings(method.key, data)
    settings |= tuned_settings(method.key, data, budget, tuned)
    if budget is Budget.smoke:
        settings |= SETTINGS[budget]
    words = [f"{key}={_literal(value)}" for key, value in settings.items()]
    words += [word for word in overrides if _known(method, _key(word))]
    cell = _cell(method, tuple(words))
    cell.method, cell.data = method.key, data
    return cell


def check_overrides(methods: Iterable[Method], overrides: Sequence[str]) -> None:
    """Raise InputError unless every override is a known key, with a value of its type, somewhere."""
    chosen = list(methods)
    for word in overrides:
        key = _key(word)
        having = [method for method in chosen if _known(method, key)]
        if not having:
            raise unknown("setting", key, {name for method in chosen for name in keys(method)})
        for method in having:
            _cell(method, (word,))


def stored_settings(method: str, data: str) -> dict[str, Any]:
    """Settings of the demo budgets: for every method, then for this one, then for it on this data."""
    stored = _quick()
    return {
        **stored.get("every_method", {}),
        **stored.get("methods", {}).get(method, {}),
        **stored.get("data", {}).get(data, {}).get(method, {}),
    }


def tuned_settings(
    method: str, data: str, budget: Budget, folders: Sequence[Path]
) -> dict[str, Any]:
    """What tuning chose; budget smoke takes the choice of budget quick, which has its settings."""
    name = (Budget.quick if budget is Budget.smoke else budget).name
    choice = ledger.chosen(ledger.find(folders, name, data, method), method)
    return {} if choice is None else choice.settings


@cache
def _quick() -> Mapping[str, Any]:
    content = yaml.safe_load((TUNED / "quick.yaml").read_text(encoding="utf8"))
    return content if isinstance(content, dict) else {}


@cache
def keys(method: Method) -> frozenset[str]:
    """Every key of a method's cell that the user may set."""
    cell = Cell(model=method.load()[1]())
    return frozenset(key for key, _ in _leaves(cell)) - {"method", "data", "seed", "task"}


def _leaves(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", value


def _known(method: Method, key: str) -> bool:
    return key in keys(method)


def _key(word: str) -> str:
    """The key of `key=value`. Raises InputError for a word of another form."""
    try:
        override = OverridesParser.create().parse_override(word)
        override.value()
    except HydraException as error:
        raise InputError(f"'{word}' is not key=value; an example: train.epochs=3") from error
    if override.is_sweep_override() or override.is_add() or override.is_delete():
        raise InputError(f"'{word}' is not key=value; an example: train.epochs=3")
    return str(override.key_or_group)


def _quoted(method: Method, word: str) -> str:
    """`model.reg='off'` for `model.reg=off`: a choice's name that YAML would take for a boolean."""
    key, _, value = word.partition("=")
    if value.lower() not in {"on", "off", "yes", "no", "true", "false"}:
        return word
    return f"{key}='{value}'" if key in _choices(method) else word


@cache
def _choices(method: Method) -> frozenset[str]:
    """Keys whose value is the name of a choice."""
    leaves = _leaves(Cell(model=method.load()[1]()))
    return frozenset(key for key, value in leaves if isinstance(value, Enum))


def _cell(method: Method, words: tuple[str, ...]) -> Cell:
    """Compose by Hydra; the caller's own. Raises InputError for a value that does not fit its field."""
    return deepcopy(_composed(method, words))


@cache
def _composed(method: Method, words: tuple[str, ...]) -> Cell:
    """See `_cell`; artefacts share most of their cells, and composing one takes some 35 ms."""
    name = f"cell_{method.key}"
    ConfigStore.instance().store(name, Cell(method=method.key, model=method.load()[1]()))
    try:
        with initialize(version_base=None, config_path=None):
            config = compose(name, [_quoted(method, word) for word in words])
        cell = OmegaConf.to_object(config)
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        culprit = str(error).splitlines()[0].removeprefix("Error merging override ")
        raise InputError(f"'{culprit}': {reason}") from error
    if not isinstance(cell, Cell):
        raise TypeError(f"{method.key}: not a cell")
    for key, value in _leaves(cell):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"'{key}={value}': a finite number is needed")
        if key in LEAST and value < LEAST[key]:
            raise InputError(f"'{key}={value}': at least {LEAST[key]:g} is needed")
    return cell


def _literal(value: Any) -> str:
    """A value as Hydra reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
