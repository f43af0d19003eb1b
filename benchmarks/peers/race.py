"""Two processes in turn, the ratio of their speeds, and what a bar says of it.

A side is a program that prints a line when it is ready, and then for each line it reads does one round
of its work and prints a line of JSON: seconds, and the units (targets, users) done in them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tabulate import tabulate


class SideFailedError(RuntimeError):
    """A side ended before it answered; its own words stand above, on the standard error."""


class Side:
    """A running program that answers each request with what a round cost."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def ready(self) -> None:
        """Wait until it is warmed up."""
        self._answer()

    def round(self) -> dict[str, Any]:
        """One round."""
        assert self.process.stdin is not None, "opened with a pipe"
        try:
            self.process.stdin.write("round\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideFailedError(f"{self.name} ended (code {self.process.wait()})") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "opened with a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise SideFailedError(f"{self.name} ended (code {self.process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Result:
    """The rounds of both sides, in the order they were run."""

    ours: list[dict[str, Any]]
    theirs: list[dict[str, Any]]

    @property
    def ratio(self) -> float:
        """How many times less time a unit takes us, over all rounds together."""
        return each(self.theirs) / each(self.ours)

    @property
    def rounds(self) -> list[float]:
        """The same of each pair of rounds: how much the machine moved it."""
        pairs = zip(self.theirs, self.ours, strict=True)
        return [each([theirs]) / each([ours]) for theirs, ours in pairs]


def each(rounds: Sequence[Mapping[str, Any]], clock: str = "seconds") -> float:
    """Seconds a unit, by the wall or (`processor`) of all threads' work."""
    return sum(turn[clock] for turn in rounds) / sum(turn["units"] for turn in rounds)


def race(ours: Side, theirs: Side, rounds: int) -> Result:
    """So many rounds of each, in turn."""
    result = Result([], [])
    for _ in range(rounds):
        result.theirs.append(theirs.round())
        result.ours.append(ours.round())
    return result


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ratio: float
    """Times better than the reference: faster, or smaller."""
    against: str
    bar: float | None = None
    """What `ratio` must reach; None: for information."""
    note: str = ""

    @property
    def missed(self) -> bool:
        """There is a bar and the ratio is below it."""
        return self.bar is not None and not self.ratio >= self.bar

    @property
    def verdict(self) -> str:
        """In a word."""
        return "" if self.bar is None else "missed" if self.missed else "met"


def row(
    what: str, against: str, result: Result, bar: float | None = None, unit: str = "target"
) -> Row:
    """The line of a race: its note has the rounds' range, microseconds a unit, and the ratio of work."""
    ours, theirs = (1e6 * each(rounds) for rounds in (result.ours, result.theirs))
    note = f"rounds {min(result.rounds):.1f} to {max(result.rounds):.1f}"
    note += f"; {ours:.4g} µs a {unit} against {theirs:.4g}"
    if all("processor" in turn for turn in result.ours + result.theirs):
        work = each(result.theirs, "processor") / each(result.ours, "processor")
        note += f"; by processor time {work:.1f}"
    said = Row(what, result.ratio, against, bar, note)
    report(said)
    return said


def report(said: Row) -> None:
    """Say it at once, on the standard error."""
    print(f"  {said.what}: {said.ratio:.2f} times {said.against} {said.verdict} ({said.note})",
          file=sys.stderr, flush=True)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """All lines, and how many bars were missed."""
    cells = [
        [line.what, f"{line.ratio:.2f}", line.against,
         "" if line.bar is None else f"{line.bar:.2f}", line.verdict, line.note]
        for line in rows
    ]  # fmt: skip
    heads = ["what", "times better", "than", "bar", "", "note"]
    missed = [line.what for line in rows if line.missed]
    end = f"{len(missed)} bars missed: {'; '.join(missed)}" if missed else "no bar missed"
    return f"{tabulate(cells, heads, disable_numparse=True)}\n{end}"
