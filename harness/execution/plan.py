"""Wanted minus stored: which cells have to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.config import Cell, Task, cell_key
from harness.fingerprint import fingerprints
from harness.run import Places, open_dataset
from harness.store import Record, Store
from harness.training import timing
from harness.zoo import find


@dataclass(frozen=True)
class Plan:
    """The cells of an artefact, and those of them that are stored and current."""

    wanted: tuple[Cell, ...]
    stored: dict[str, Record]
    """By key. Made by the code, data and candidates of now; a timing on this machine (`current`)."""
    stale: tuple[str, ...]
    """Keys that are stored but are not current: they run again."""

    @property
    def missing(self) -> list[Cell]:
        """What has to be run, each cell once."""
        once = {cell_key(cell): cell for cell in self.wanted}
        return [cell for key, cell in once.items() if key not in self.stored]


def alone(cell: Cell) -> bool:
    """Whether nothing may run beside a cell: its seconds are what it is for."""
    return cell.task is Task.time


def plan(cells: Sequence[Cell], places: Places, *, any_machine: bool = False) -> Plan:
    """Look the cells up in the store; `any_machine` as in `current`.

    Raises InputError for an unknown data set.
    """
    store = Store(places.results)
    stored, stale = {}, []
    for cell in cells:
        key = cell_key(cell)
        record = None if key in stored else store.load(key)
        if record is None:
            continue
        if current(record, cell, places, any_machine=any_machine):
            stored[key] = record
        else:
            stale.append(key)
    return Plan(tuple(cells), stored, tuple(dict.fromkeys(stale)))


def current(record: Record, cell: Cell, places: Places, *, any_machine: bool = False) -> bool:
    """True when a record was made by the code, data and candidates of now.

    A timing must also have been made on a machine like this one: processor model, threads, GPU and
    torch's release (`harness.training.timing.same_machine`). `any_machine` takes those of others too:
    where the cells run elsewhere than where they are planned, on the nodes of a cluster.
    """
    dataset = open_dataset(places.data, cell.data)
    now = fingerprints(find(cell.method).module, dataset, cell.protocol, cell.task)
    if record.fingerprints != now:
        return False
    if any_machine or cell.task is Task.score:
        return True
    return timing.same_machine(timing.described(record.host), timing.machine())
