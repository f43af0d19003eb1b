"""What the report embeds of runs: each once, what several share once, curves rounded.

A run is stored as it was made; nothing here computes anything but its own test metrics.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config import digest
from harness.evaluation.metrics import METRICS
from harness.store import Record, Store
from harness.zoo import METHODS

SCORE = "NDCG@10"
"""What training validates on."""


class Runs:
    """Runs by number, for the numbers of a page to point at."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers: dict[str, int] = {}
        self._runs: list[dict[str, Any]] = []
        self._shared: dict[str, dict[str, int]] = {}
        self._values: dict[str, list[Any]] = {}

    def number(self, key: str) -> int:
        """The number of a run; it is read when it is first asked for."""
        if key not in self._numbers:
            record = self._store.load(key)
            self._add(key, {"key": key} if record is None else self._run(record))
        return self._numbers[key]

    def every(self, names: Sequence[str] | None = None) -> None:
        """Take up every other record of the store too (of these data sets; None: of all)."""
        if not self._store.cells.is_dir():
            return
        for folder in sorted(self._store.cells.iterdir()):
            if folder.name.startswith(".") or ".corrupt" in folder.name:
                continue
            if folder.name not in self._numbers:
                record = self._store.load(folder.name)
                if record is not None and (names is None or record.data in names):
                    self._add(record.key, self._run(record))

    @property
    def found(self) -> list[dict[str, Any]]:
        """Runs that are in the store, by method, data and seed."""
        runs = [{"number": at, **run} for at, run in enumerate(self._runs) if "config" in run]
        return sorted(runs, key=lambda run: (run["data"], run["label"], run["config"], run["seed"]))

    @property
    def missing(self) -> int:
        """Runs that a page names and the store does not have."""
        return sum("config" not in run for run in self._runs)

    def content(self) -> dict[str, Any]:
        """Everything, for the page's script."""
        return {
            "runs": self._runs,
            **self._values,
            "methods": [method.key for method in METHODS],
        }

    def _add(self, key: str, run: dict[str, Any]) -> None:
        self._numbers[key] = len(self._runs)
        self._runs.append(run)

    def _share(self, kind: str, value: Any) -> int:
        """The number of a value that several runs have."""
        values = self._values.setdefault(kind, [])
        numbers = self._shared.setdefault(kind, {})
        name = digest(value)
        if name not in numbers:
            numbers[name] = len(values)
            values.append(value)
        return numbers[name]

    def _run(self, record: Record) -> dict[str, Any]:
        """A record in few words; what is absent is left out."""
        config = dict(record.config)
        config.pop("seed")
        host = record.host
        curve = [row.get(SCORE) for row in record.curve]
        run: dict[str, Any] = {
            "key": record.key,
            "label": record.label,
            "method": str(record.config["method"]),
            "data": record.data,
            "seed": record.seed,
            "config": self._share("configs", list(flat(config))),
            "made": self._share(
                "makings",
                {
                    "code": record.fingerprints.code,
                    "data": record.fingerprints.data,
                    "candidates": record.fingerprints.candidates,
                    "versions": ", ".join(f"{name} {v}" for name, v in record.versions.items()),
                },
            ),
            "node": self._share("nodes", _node(host)),
            "seconds": {name: _rounded(float(value), 3) for name, value in record.seconds.items()},
            "memory": round(record.peak_memory_mib),
            "parameters": record.parameters,
            "samples": record.train_samples,
            "epochs": record.epochs,
            "best": record.best_epoch,
            "finished": record.finished,
        }
        if any(value is not None for value in curve):
            run["curve"] = [None if value is None else _rounded(float(value), 4) for value in curve]
        if record.resumed:
            run["resumed"] = record.resumed
        if record.ranks is not None:
            run["scores"] = {
                name: _rounded(float(metric(record.ranks.above, record.ranks.tied).mean()), 4)
                for name, metric in METRICS.items()
            }
            run["users"] = len(record.ranks.user)
        if record.measured:
            run["measured"] = {
                name: [_rounded(float(value), 6) for value in values]
                for name, values in record.measured.items()
            }
        return run


def _node(host: Mapping[str, Any]) -> str:
    """`vm (x86_64, 1 thread)`."""
    about = [str(host.get("gpu") or host.get("processor") or "")]
    if "threads" in host:
        about.append(f"{host['threads']} thread{'s' * (host['threads'] != 1)}")
    text = ", ".join(filter(None, about))
    name = str(host.get("name", "unknown"))
    return f"{name} ({text})" if text else name


def _rounded(value: float, digits: int) -> float:
    """For reading; a whole number without its point."""
    return round(value, digits)


def flat(config: Mapping[str, Any], under: str = "") -> Iterable[str]:
    """A resolved config as the overrides that would set it: `model.hidden=32`."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{under}{name}.")
        else:
            yield f"{under}{name}={_word(value)}"


def _word(value: Any) -> str:
    """A value as the command line takes it: `true`, `null`, `0.1`, `beta`."""
    return value if isinstance(value, str) else json.dumps(value)
