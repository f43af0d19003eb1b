"""Texts of many users or items that are made when asked for, instead of millions of Python strings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

SOME = 65_536
"""Texts made at once while going through all."""


class Labels(Sequence[str]):
    """A sequence of texts over a pyarrow column or over numbers; see `Numbered` and `Column`.

    Texts asked for one by one are made in blocks, so that going through some in order is quick.
    """

    begin = 0
    block: tuple[str, ...] = ()

    @abstractmethod
    def some(self, places: Any) -> list[str]:
        """The texts at some places (a slice, or an array of places)."""

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return self.some(place)
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        if not self.begin <= place < self.begin + len(self.block):
            self.begin = place - place % SOME
            self.block = tuple(self.some(slice(self.begin, self.begin + SOME)))
        return self.block[place - self.begin]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), SOME):
            yield from self.some(slice(start, start + SOME))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> ndarray:
        return np.array(list(self), dtype=dtype or str)


class Numbered(Labels):
    """PREFIX and a number each, as in u9774184; a negative number is empty text.

    Args:
        numbers: A number a label.
        prefix: Stands before each.
        digits: Numbers with fewer get zeros in front, so that texts stand in the numbers' order.
    """

    def __init__(self, numbers: Int[ndarray, " label"], prefix: str = "", digits: int = 1) -> None:
        self.numbers, self.prefix, self.digits = numbers, prefix, digits

    def __len__(self) -> int:
        return len(self.numbers)

    def some(self, places: Any) -> list[str]:
        """See `Labels`."""
        return [
            f"{self.prefix}{number:0{self.digits}d}" if number >= 0 else ""
            for number in self.numbers[places].tolist()
        ]


class Column(Labels):
    """A pyarrow column of strings, perhaps memory-mapped; null is empty text.

    Args:
        column: The texts.
        order: Place in the column of each label, -1 for empty text; None is the column's own order.
    """

    def __init__(
        self, column: pa.ChunkedArray, order: Int[ndarray, " label"] | None = None
    ) -> None:
        self.column, self.order = column, order

    def __len__(self) -> int:
        return len(self.column if self.order is None else self.order)

    def some(self, places: Any) -> list[str]:
        """See `Labels`."""
        if self.order is not None:
            wanted = self.order[places]
            known = wanted >= 0
            texts = self.column.take(pa.array(wanted[known])).to_pylist()
            result = np.full(len(wanted), "", dtype=object)
            result[known] = texts
            return ["" if text is None else str(text) for text in result.tolist()]
        chosen = (
            self.column[places] if isinstance(places, slice) else self.column.take(pa.array(places))
        )
        return ["" if text is None else text for text in chosen.to_pylist()]
