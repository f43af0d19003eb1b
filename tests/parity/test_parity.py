"""Every pair of the parity folder, checked by the adapter of its method (adapters/METHOD.py)."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from harness.zoo import METHODS
from tests.parity import adapters
from tests.parity.pairs import Pair, load, pairs

ADAPTERS = {
    module.MODEL: module
    for module in (
        importlib.import_module(f"tests.parity.adapters.{entry.name}")
        for entry in pkgutil.iter_modules(adapters.__path__)
    )
}
PAIRS = [load(name) for name in pairs()]


def test_every_pair_has_an_adapter() -> None:
    strangers = {pair.model for pair in PAIRS} - ADAPTERS.keys()
    assert not strangers, f"no adapter in tests/parity/adapters for {sorted(strangers)}"
    assert PAIRS, "the folder has no pair"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_pair(pair: Pair) -> None:
    ADAPTERS[pair.model].check(pair)
    assert pair.compared, f"{pair.name}: nothing was compared"


def test_every_method_has_an_adapter() -> None:
    built = {method.label for method in METHODS}
    assert {name.split(" / ")[0] for name in ADAPTERS} == built
