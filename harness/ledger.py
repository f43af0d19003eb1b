"""The ledger of tuning: every trial of every method on one data set, and which one was chosen.

`results/tuned/BUDGET/DATA.csv`: the commands that made it as comment lines, then a trial a line.
The chosen setting of a method is computed from its trials and stored nowhere else.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.store import write_bytes


@dataclass(frozen=True)
class Trial:
    """One setting, tried with the tuning seed."""

    method: str
    """Key of the zoo."""
    number: int
    """From 1, in the order tried."""
    own: bool
    """False: of the grid that all methods share; True: of the method's own."""
    settings: dict[str, Any]
    """What the trial sets beyond the budget's stored settings, by the key of `key=value`."""
    ndcg: float
    """Validation NDCG@10 of the best epoch; NaN where the run failed."""
    best_epoch: int
    epochs: int
    seconds: float
    parameters: int
    key: str
    """Of the record."""
    code: str
    """Fingerprint of the code that made it, shortened."""

    @property
    def failed(self) -> bool:
        """True when the run gave no score."""
        return math.isnan(self.ndcg)


def path_of(folder: Path, budget: str, data: str) -> Path:
    """Where the ledger of a data set is, below a folder `tuned`."""
    return folder / budget / f"{data}.csv"


def read(path: Path) -> list[Trial]:
    """All trials; none where there is no ledger.

    Raises InputError for a file that is no ledger.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    try:
        return [_trial(row) for row in csv.DictReader(lines)]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"'{path}' is no ledger of tuning ({error!r:.80}); remove it and tune again"
        ) from error


def _trial(row: dict[str, str]) -> Trial:
    kinds = {"int": int, "float": float, "str": str}
    values: dict[str, Any] = {
        field.name: kinds[str(field.type)](row[field.name])
        for field in fields(Trial)
        if str(field.type) in kinds
    }
    if row["own"] not in {"0", "1"}:
        raise ValueError(f"own={row['own']}")
    return Trial(**values, own=row["own"] == "1", settings=dict(json.loads(row["settings"])))


def commands(path: Path) -> list[str]:
    """The command lines that made a ledger, oldest first; none where there is no ledger."""
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")]


def write(path: Path, trials: Iterable[Trial], made_by: Iterable[str]) -> None:
    """Write a ledger with the command lines that made it, whole or not at all."""
    text = io.StringIO()
    text.writelines(f"# {command}\n" for command in dict.fromkeys(made_by))
    writer = csv.DictWriter(text, [field.name for field in fields(Trial)], lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        row = asdict(trial)
        row["settings"] = json.dumps(trial.settings, sort_keys=True)
        row["own"] = int(trial.own)
        row["ndcg"] = f"{trial.ndcg:.6f}"
        row["seconds"] = f"{trial.seconds:.1f}"
        writer.writerow(row)
    write_bytes(path, text.getvalue().encode("utf8"))


def of_method(trials: Iterable[Trial], method: str) -> list[Trial]:
    """The trials of one method, in the order tried."""
    return sorted((t for t in trials if t.method == method), key=lambda trial: trial.number)


def chosen(trials: Iterable[Trial], method: str) -> Trial | None:
    """The method's trial of the highest validation NDCG@10, of equals the first; None without one."""
    scored = [trial for trial in of_method(trials, method) if not trial.failed]
    return max(scored, key=lambda trial: trial.ndcg, default=None)


def find(folders: Sequence[Path], budget: str, data: str, method: str) -> list[Trial]:
    """A method's trials from the first of these folders that has some."""
    for folder in folders:
        if found := of_method(read(path_of(folder, budget, data)), method):
            return found
    return []
