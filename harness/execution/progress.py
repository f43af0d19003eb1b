"""What a person sees while cells run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.config import Cell, Task
from harness.execution.live import Board, Live
from harness.zoo import find


def duration(seconds: float) -> str:
    """Seconds as a person says them: 48 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:02.0f} min"


def live_table(lives: list[Live]) -> Table:
    """Runs that are being worked on, a row each."""
    table = Table(box=None, pad_edge=False)
    for name in ("running", "data", "seed", "epoch", "loss", "NDCG@10", "best", "at most left"):
        table.add_column(name, justify="left" if name in ("running", "data") else "right")
    for live in lives:
        left = "" if live.ends_at is None else duration(max(0.0, live.ends_at - time.time()))
        table.add_row(
            live.method, live.data, str(live.seed), f"{live.epoch}/{live.epochs}",
            *("" if number is None else f"{number:.4f}"
              for number in (live.loss, live.validation, live.best)),
            left,
        )  # fmt: skip
    return table


class Display:
    """Cells done, running and failed, with the time left; used around the running of a plan.

    Writes to the error stream, so that a table can be piped.
    """

    def __init__(
        self, total: int, board: Board, workers: int, console: Console | None = None
    ) -> None:
        self.total, self.board, self.workers = total, board, workers
        self.console = console or Console(stderr=True)
        self.done = self.failed = 0
        self.spent: list[float] = []
        self.started = time.time()
        self.ended = threading.Event()
        self.screen: Screen | None = None

    def __enter__(self) -> Display:  # noqa: PYI034 - beartype cannot check Self
        """Begin to show."""
        self.started = time.time()
        if self.console.is_terminal and self.total:
            self.screen = Screen(self._panel(), console=self.console, auto_refresh=False,
                                 transient=True)  # fmt: skip
            self.screen.start()
            threading.Thread(target=self._refresh, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Stop showing; what was printed stays."""
        self.ended.set()
        if self.screen is not None:
            self.screen.stop()
            self.screen = None

    def finished(
        self, cell: Cell, ended: str, seconds: float, validation: float | None, epochs: int,
        message: str,
    ) -> None:  # fmt: skip
        """One more cell is over; says so on a line of its own."""
        self.done += 1
        if ended == "failed":
            self.failed += 1
        if ended == "done":
            self.spent.append(seconds)
        timing = " (timing)" if cell.task is Task.time else ""
        name = f"{find(cell.method).label:12} {cell.data} seed {cell.seed}{timing}"
        facts = {
            "done": f"{duration(seconds)}"
            + (f", {epochs} epochs, validation NDCG@10 {validation:.4f}"
               if validation is not None else ""),
            "stored": "stored by another process",
            "failed": f"FAILED: {message}",
            "stopped": "stopped; goes on from its last epoch next time",
        }[ended]  # fmt: skip
        width = len(str(self.total))
        self.console.print(
            f"[{self.done:{width}}/{self.total}] {name}: {facts}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    def left(self) -> str:
        """Time left, from the mean of what is done so far."""
        if not self.spent:
            return "time left: not known yet"
        mean = sum(self.spent) / len(self.spent)
        return f"about {duration(mean * (self.total - self.done) / self.workers)} left"

    def _panel(self) -> Group:
        lives = [live for live in self.board.lives() if live.updated >= self.started]
        counts = (f"{self.done} of {self.total} done, {len(lives)} running, {self.failed} failed, "
                  f"{duration(time.time() - self.started)} so far, {self.left()}")  # fmt: skip
        bar = ProgressBar(total=max(1, self.total), completed=self.done, width=60)
        return Group(live_table(lives), Text(counts), bar)

    def _refresh(self) -> None:
        """Redraw twice a second until the end."""
        while not self.ended.wait(0.5):
            screen = self.screen
            if screen is not None:
                screen.update(self._panel(), refresh=True)
