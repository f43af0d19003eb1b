"""Small logs for tests of the data layer."""

from pathlib import Path

import numpy as np

from harness.data.dataset import Dataset
from harness.data.prepare import prepare
from harness.data.raw import Raw

CLICK, FAVOR = 1, 2
ITEMS = 130
Event = tuple[int, int]
"""Item 1..ITEMS, behaviour."""


def raw_log(
    users: list[list[Event]], times: list[list[float]] | None = None, **more: object
) -> Raw:
    """A log with one row an event, users one after the other, a second apart unless told."""
    rows = [(user, *event) for user, events in enumerate(users) for event in events]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    clock = times or [list(range(len(events))) for events in users]
    return Raw(
        source="table",
        user=columns[:, 0],
        item=columns[:, 1] - 1,
        behaviour=columns[:, 2],
        timestamp=np.array([time for row in clock for time in row], dtype=np.int64),
        user_ids=[f"u{user}" for user in range(len(users))],
        item_ids=[f"i{item}" for item in range(1, ITEMS + 1)],
        keep_items=True,
        **more,  # type: ignore[arg-type]
    )


def dataset(folder: Path, users: list[list[Event]], **more: object) -> Dataset:
    """The same, prepared and opened."""
    prepare(raw_log(users, **more), folder, "small")  # type: ignore[arg-type]
    return Dataset.open(folder, "small")


def clicks(*items: int) -> list[Event]:
    return [(item, CLICK) for item in items]
