"""The options that sources with long logs share, and the selection they make."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from harness.data.ordering import Selection
from harness.errors import InputError, unknown

EPOCH = dt.date(1970, 1, 1)
DAY = 86_400


@dataclass(frozen=True)
class LogOptions:
    """What was typed; a source takes some of them."""

    months: tuple[str, ...] = ()
    """Events of these calendar months alone, as in 2014-09."""
    begin: str | None = None
    """First day, as in 2014-09-01."""
    end: str | None = None
    """Last day, itself included."""
    minimum_events: int = 5
    """Events that a user needs; at least 5, which is the protocol's."""
    favor_share: tuple[float, float] = (0.0, 1.0)
    """Least and largest share of favors among a user's events."""
    favor_rule: str | None = None
    """What is a favor, where a source has a choice; None is its default."""
    features: Path | None = None
    """Folder of vectors (`prepare features`); items whose picture is gone are left out."""
    keep_staging: bool = False
    """What was read stays on disk for other selections."""


def selection(
    options: LogOptions,
    *,
    second: int = 1,
    zone: int = 0,
    days: tuple[str, str] | None = None,
    rules: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    items: Bool[ndarray, " raw_item"] | None = None,
    items_rule: str = "",
) -> Selection:
    """The selection that the options ask for.

    Args:
        options: What was typed.
        second: Ticks of the log's clock in a second (1,000 for milliseconds).
        zone: Seconds that local time is ahead of the log's clock: 28,800 for days in China and a log in
            seconds since 1970 UTC; 0 for a log that is written in local time.
        days: First and last day where neither months nor days were asked for; None is all.
        rules: Kinds that are click and favor by name of the favor rule, the default first; None is kind
            1 a click and 2 a favor.
        items: Wanted raw item numbers, None for all.
        items_rule: What they are.

    Raises:
        InputError: a month, day, share, number or rule cannot be used.
    """
    if options.minimum_events < 5:
        raise InputError(
            f"--minimum-events {options.minimum_events}: the protocol keeps users of at least 5 events; "
            "give 5 or more"
        )
    low, high = options.favor_share
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"--favor-share {low:g},{high:g}: give two shares between 0 and 1, low first"
        )
    spans = [month_span(month) for month in options.months]
    begin, end = (options.begin, options.end) if options.begin or options.end else days or ("", "")
    if options.months and (options.begin or options.end):
        raise InputError("--months and --from/--to say the same twice; give one of them")
    if not options.months and (begin or end):
        first = day_number("--from", begin) if begin else -(10**6)
        last = day_number("--to", end) + 1 if end else 10**6
        if first >= last:
            raise InputError(f"--from {begin} lies behind --to {end}")
        spans = [(first, last)]
    times = tuple(
        ((first * DAY - zone) * second, (last * DAY - zone) * second)
        for first, last in sorted(spans)
    )
    kinds: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (2,))
    if rules is not None:
        rule = options.favor_rule or next(iter(rules))
        if rule not in rules:
            raise unknown("favor rule", rule, rules)
        kinds = rules[rule]
    return Selection(
        click=kinds[0], favor=kinds[1], times=times, items=items, items_rule=items_rule,
        minimum_events=options.minimum_events, favor_share=options.favor_share,
    )  # fmt: skip


def month_span(month: str) -> tuple[int, int]:
    """First day of a month and of the next, in days since 1970.

    Raises:
        InputError: it is no month.
    """
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise InputError(f"'{month}' is no month; write it as in --months 2014-09")
    first = np.datetime64(month, "M")
    begin, end = (int((first + more).astype("datetime64[D]").astype(int)) for more in (0, 1))
    return begin, end


def day_number(option: str, day: str) -> int:
    """Days since 1970.

    Raises:
        InputError: it is no day.
    """
    try:
        return (dt.date.fromisoformat(day) - EPOCH).days
    except ValueError:
        raise InputError(
            f"{option} {day}: that is no day; write it as in {option} 2014-09-30"
        ) from None


def lookup(numbers: Int[ndarray, " item"]) -> Bool[ndarray, " raw_item"]:
    """Marks by raw number, from a list of raw numbers."""
    marks = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=bool)
    marks[numbers] = True
    return marks
