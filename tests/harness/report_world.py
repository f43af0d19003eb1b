"""Records made up in memory, for tests of the report: no training, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import ndtr

from harness.config import Cell, ProtocolConfig, cell_key, plain
from harness.report.content import Table
from harness.report.gather import TableData
from harness.report.tables import build_table
from harness.store import Fingerprints, Ranks, Record
from harness.zoo import METHODS, REFERENCES, find

ITEMS = 380
"""Items that nobody touched, in every world."""


def table_data(name: str, *, demo: bool | None = None) -> TableData:
    made_up = name.startswith("demo") if demo is None else demo
    return TableData(name, made_up, f"{name}-data-sha", f"{name}-candidates-sha")


def record(cell: Cell, ranks: Ranks, **changes: object) -> Record:
    """A finished run of a cell."""
    label = find(cell.method).label
    made = Record(
        key=cell_key(cell),
        config=plain(cell),
        label=label,
        fingerprints=Fingerprints(
            f"code-of-{cell.method}", f"{cell.data}-data-sha", f"{cell.data}-candidates-sha"
        ),
        versions={"python": "3.11", "torch": "2.13"},
        host={},
        seconds={"total": 10.0},
        peak_memory_mib=1.0,
        parameters=1,
        train_samples=1,
        epochs=1,
        best_epoch=1,
        curve=[],
        ranks=ranks,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    """Scores = user + user x method + level of the method + run; ranks follow from them."""

    data: tuple[str, ...] = ("demo_rec_tmall",)
    seeds: int = 3
    users: int = 200
    methods: tuple[str, ...] = ("gru4rec", "sasrec", "mbstr", "m3bsr")
    references: tuple[str, ...] = ("random", "mostpopular")
    levels: Mapping[str, float] = field(default_factory=dict)
    """Of a method, above 0; a unit is the spread of users."""
    run_sd: float = 0.02
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    limit: int = 0

    def __post_init__(self) -> None:
        self.cells: list[Cell] = []
        self.records: list[Record] = []
        for number, name in enumerate(self.data):
            random = np.random.default_rng(number)
            user = random.standard_normal(self.users)
            for key in self.methods + self.references:
                own = 0.3 * random.standard_normal(self.users)
                runs = self.seeds if key in self.methods else 1
                for seed in range(1, runs + 1):
                    cell = Cell(
                        method=key, data=name, seed=seed, users=self.limit, protocol=self.protocol
                    )
                    level = self.levels.get(key, 0.0) + self.run_sd * random.standard_normal()
                    noise = 0.3 * random.standard_normal(self.users)
                    share = 1 - ndtr(level + user + own + noise)
                    self.cells.append(cell)
                    self.records.append(record(cell, ranks(share, constant=key == "random")))

    @property
    def datasets(self) -> list[TableData]:
        return [table_data(name) for name in self.data]

    def without(self, *runs: tuple[str, int]) -> list[Record]:
        """The records but those of some methods and seeds."""
        return [r for r in self.records if (r.config["method"], r.seed) not in runs]

    def table(self, records: list[Record] | None = None, **more: object) -> Table:
        chosen = self.records if records is None else records
        return build_table(chosen, self.cells, self.datasets, **more)  # type: ignore[arg-type]


def ranks(share: np.ndarray, *, constant: bool = False) -> Ranks:
    """Counts of users whose positive has this share of all items above it."""
    users = len(share)
    above, tied = np.floor(share * 99.99).astype(np.int64), np.zeros(users, dtype=np.int64)
    full, tied_full = np.floor(share * (ITEMS + 0.99)).astype(np.int64), tied
    if constant:
        above, full = np.zeros_like(above), np.zeros_like(full)
        tied, tied_full = np.full_like(above, 99), np.full_like(full, ITEMS)
    untouched = np.full(users, ITEMS, dtype=np.int64)
    return Ranks(np.arange(users), above, tied, full, tied_full, untouched)


assert {"gru4rec", "sasrec", "mbstr", "m3bsr"} <= {method.key for method in METHODS}
assert {"random", "mostpopular"} <= {method.key for method in REFERENCES}
