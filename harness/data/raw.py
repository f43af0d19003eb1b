"""What every reader of a source hands to `harness.data.prepare`: one log and what is known of items.

Axes: event = rows of the log in file order, item = rows of the item list, image_width / text_width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from numpy import ndarray

from harness.errors import InputError

CLICK, FAVOR = 1, 2
"""Codes of the behaviours, as in `models.interface.Behaviour` (not imported: it brings torch)."""

SEED = 20250713
"""Seed of the candidate streams of every source that has no seed of its own."""


@dataclass(frozen=True)
class Raw:
    """A source, read: clicks and favors alone, with numbers for users and items.

    In file order, or already by user and time; arrays may be memory-mapped, texts made when asked for.
    """

    source: str
    user: Int[ndarray, " event"]
    """Raw user numbers: they name the user's candidate stream."""
    item: Int[ndarray, " event"]
    """Places in `item_ids`."""
    behaviour: Int[ndarray, " event"]
    timestamp: Int[ndarray, " event"] | Float[ndarray, " event"]
    """Any clock that increases, seconds in all our sources."""
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    keep_items: bool = False
    """Items that no kept user touched stay (there is a list of items); otherwise they leave."""
    title: Sequence[str] | None = None
    picture: Sequence[str] | None = None
    category: Sequence[str] | None = None
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Id fields as text, an entry an item; empty text is unknown."""
    image: Float[ndarray, "item image_width"] | None = None
    """All-zero rows are missing."""
    text: Float[ndarray, "item text_width"] | None = None
    seed: int = SEED
    demo: bool = False
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Rows of the source that are neither click nor favor, by what they are."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each raw file."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the manifest should say (a world's knobs, a threshold)."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from error
