"""Rows with several yes-or-no signals (clicked, liked, followed, ...) as kinds of events for staging.

A row's kind is the sum of its signals' bits, so that one reading of a log serves every rule of what is a
click and what is a favor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray


@dataclass(frozen=True)
class FavorRule:
    """What counts as a favor."""

    signals: tuple[str, ...]
    """One of them is enough."""
    text: str
    """In words, for help and manifests."""


@dataclass(frozen=True)
class Signals:
    """Names of a source's signals; the place of a name is its bit."""

    names: tuple[str, ...]
    rules: Mapping[str, FavorRule]
    """By the name that a command line gives; the default first."""

    def kinds(self, signals: Iterable[str]) -> tuple[int, ...]:
        """All kinds in which at least one of these signals is on."""
        mask = sum(1 << self.names.index(name) for name in signals)
        return tuple(kind for kind in range(1, 1 << len(self.names)) if kind & mask)

    def choices(self, click: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Kinds that are a click and kinds that are a favor, by the name of the favor rule."""
        return {
            name: (self.kinds([click]), self.kinds(rule.signals))
            for name, rule in self.rules.items()
        }

    def kind(self, signals: Mapping[str, Bool[ndarray, " row"]]) -> Int[ndarray, " row"]:
        """Each row's kind: the sum of the bits of the signals that are on."""
        parts = [signals[name].astype(np.int64) << bit for bit, name in enumerate(self.names)]
        kinds: ndarray = np.sum(np.stack(parts), axis=0)
        return kinds


def on(
    columns: Mapping[str, Int[ndarray, " row"]],
) -> tuple[dict[str, Bool[ndarray, " row"]], Bool[ndarray, " row"]]:
    """Columns of 0 and 1 as signals, and which rows hold nothing else in all of them."""
    good = np.all([(values == 0) | (values == 1) for values in columns.values()], axis=0)
    return {name: (values == 1) & good for name, values in columns.items()}, good
