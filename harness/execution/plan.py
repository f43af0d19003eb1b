"""Wanted minus stored: which cells have to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.config import Cell, cell_key
from harness.fingerprint import fingerprints
from harness.run import Places, open_dataset
from harness.store import Record, Store
from harness.zoo import find


@dataclass(frozen=True)
class Plan:
    """The cells of an artefact, and those of them that are stored and current."""

    wanted: tuple[Cell, ...]
    stored: dict[str, Record]
    """By key. Made by the code, data and candidates of now."""
    stale: tuple[str, ...]
    """Keys that are stored but were made by other code, data or candidates: they run again."""

    @property
    def missing(self) -> list[Cell]:
        """What has to be run, each cell once."""
        once = {cell_key(cell): cell for cell in self.wanted}
        return [cell for key, cell in once.items() if key not in self.stored]


def plan(cells: Sequence[Cell], places: Places) -> Plan:
    """Look the cells up in the store. Raises InputError for an unknown data set."""
    store = Store(places.results)
    stored, stale = {}, []
    for cell in cells:
        key = cell_key(cell)
        record = None if key in stored else store.load(key)
        if record is None:
            continue
        if current(record, cell, places):
            stored[key] = record
        else:
            stale.append(key)
    return Plan(tuple(cells), stored, tuple(dict.fromkeys(stale)))


def current(record: Record, cell: Cell, places: Places) -> bool:
    """True when a record was made by the code, data and candidates of now."""
    dataset = open_dataset(places.data, cell.data)
    now = fingerprints(find(cell.method).module, dataset, cell.protocol)
    return record.fingerprints == now
