"""Every pair of the parity folder, checked by the adapter of its method (adapters/METHOD.py)."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from tests.parity import adapters
from tests.parity.pairs import Pair, load, pairs

ADAPTERS = {
    module.MODEL: module
    for module in (
        importlib.import_module(f"tests.parity.adapters.{entry.name}")
        for entry in pkgutil.iter_modules(adapters.__path__)
    )
}
NOT_YET_BUILT: set[str] = set()
"""Methods whose fixtures wait for the method; a fixture of any other method needs an adapter."""


PAIRS = [load(name) for name in pairs()]


def test_every_pair_has_an_adapter_or_waits_for_its_method() -> None:
    strangers = {pair.model for pair in PAIRS} - ADAPTERS.keys() - NOT_YET_BUILT
    assert not strangers, f"no adapter in tests/parity/adapters for {sorted(strangers)}"
    assert PAIRS, "the folder has no pair"


@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair.model in ADAPTERS], ids=lambda pair: pair.name
)
def test_pair(pair: Pair) -> None:
    ADAPTERS[pair.model].check(pair)
    assert pair.compared, f"{pair.name}: nothing was compared"


def test_no_method_is_both_built_and_awaited() -> None:
    assert not NOT_YET_BUILT & ADAPTERS.keys()
