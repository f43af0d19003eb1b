"""The house in order: the zoo names every method file, and every config can be composed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from harness.compose import Budget, check_overrides, compose_cell
from harness.config import Cell, digest, plain
from harness.zoo import METHODS, REFERENCES, Method
from models.interface import ModelConfig, Recommender

ROOT = Path(__file__).parents[1]
every_method = pytest.mark.parametrize("method", METHODS + REFERENCES, ids=lambda row: row.key)


def test_keys_and_labels_are_unique_and_lower_case_keys() -> None:
    rows = METHODS + REFERENCES
    for names in ([row.key for row in rows], [row.label for row in rows]):
        assert len(set(names)) == len(names)
    assert all(row.key == row.key.lower() and row.key.isidentifier() for row in rows)


def test_every_method_file_is_in_the_zoo() -> None:
    files = {path.stem for path in (ROOT / "baselines").glob("*.py")} - {"__init__", "reference"}
    assert files == {row.key for row in METHODS if row.module.startswith("baselines.")}
    assert all(row.module.split(".")[1] == row.key for row in METHODS)


def test_every_reference_row_is_in_the_zoo() -> None:
    module = importlib.import_module("baselines.reference")
    classes = {
        name
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Recommender) and not inspect.isabstract(value)
    }
    assert classes == {row.model for row in REFERENCES if row.module == module.__name__}


@every_method
def test_model_and_config_stand_in_one_file(method: Method) -> None:
    model_class, config_class = method.load()
    assert issubclass(model_class, Recommender)
    assert issubclass(config_class, model_class.Config)
    assert model_class.__module__ == config_class.__module__ == method.module
    assert model_class.trained == method.trained
    assert inspect.getdoc(inspect.getmodule(model_class))


@every_method
def test_a_config_composes_and_comes_back(method: Method) -> None:
    _, config_class = method.load()
    assert is_dataclass(config_class)
    schema = OmegaConf.structured(config_class)
    assert OmegaConf.to_object(schema) == config_class()
    stored = OmegaConf.create(OmegaConf.to_yaml(schema))
    assert OmegaConf.to_object(OmegaConf.merge(schema, stored)) == config_class()
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(schema, {"hiden": 8})


@every_method
def test_a_cell_keeps_its_methods_own_settings(method: Method) -> None:
    _, config_class = method.load()
    cell = Cell(method=method.key, model=config_class())
    composed = OmegaConf.to_object(OmegaConf.structured(cell))
    assert isinstance(composed, Cell)
    assert type(composed.model) is config_class
    assert digest(plain(composed)) == digest(plain(cell))


def choices(config: Any, under: str = "") -> Iterator[tuple[str, Enum]]:
    """Every field that is a choice, nested ones dotted, with its default."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Enum):
            yield under + field.name, value
        elif is_dataclass(value):
            yield from choices(value, f"{under}{field.name}.")


@every_method
def test_every_choice_can_be_set_by_its_name_and_defaults_to_the_first(method: Method) -> None:
    model_class, config_class = method.load()
    for name, default in choices(model_class.Config()):
        assert default is next(iter(type(default))), f"{name}: the default stands first"
    schema = OmegaConf.structured(config_class)
    for name, default in choices(config_class()):
        for choice in type(default):
            OmegaConf.update(schema, name, choice.name)
            assert dict(choices(OmegaConf.to_object(schema)))[name] is choice


def test_choices_that_yaml_takes_for_booleans_can_be_typed() -> None:
    words = {"off", "on", "yes", "no", "true", "false"}
    typed = 0
    for method in METHODS:
        for name, default in choices(method.load()[1]()):
            for choice in type(default):
                if choice.name in words:
                    word = f"model.{name}={choice.name}"
                    cell = compose_cell(method, "any", Budget.paper, [word], tuned=())
                    assert dict(choices(cell.model))[name] is choice
                    check_overrides([method], [word])
                    typed += 1
    assert typed


@every_method
def test_learning_rate_and_width_are_set_as_the_grid_sets_them(method: Method) -> None:
    _, config_class = method.load()
    names = {field.name for field in fields(config_class)}
    assert {field.name for field in fields(ModelConfig)} <= names
