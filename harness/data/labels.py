"""Texts of many users or items that are made when asked for, instead of millions of Python strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

SOME = 65_536
"""Texts made at once while going through all."""


class Labels(Sequence[str]):
    """A sequence of texts over a pyarrow column or over numbers; see `Numbered` and `Column`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def some(self, places: Any) -> list[str]:
        """The texts at some places (a slice, or an array of places)."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return self.some(place)
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.some(np.array([place % len(self)]))[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), SOME):
            yield from self.some(slice(start, start + SOME))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> ndarray:
        return np.array(list(self), dtype=dtype or str)


class Numbered(Labels):
    """PREFIX and a number each, as in u9774184."""

    def __init__(self, numbers: Int[ndarray, " label"], prefix: str = "") -> None:
        self.numbers, self.prefix = numbers, prefix

    def __len__(self) -> int:
        return len(self.numbers)

    def some(self, places: Any) -> list[str]:
        """See `Labels`."""
        return [f"{self.prefix}{number}" for number in self.numbers[places].tolist()]


class Column(Labels):
    """A pyarrow column of strings, perhaps memory-mapped; null is empty text."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def some(self, places: Any) -> list[str]:
        """See `Labels`."""
        chosen = self.column[places] if isinstance(places, slice) else self.column.take(pa.array(places))
        return ["" if text is None else text for text in chosen.to_pylist()]
