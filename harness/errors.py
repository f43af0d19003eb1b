"""A user's mistake, said in one line: the value, the nearest valid one, the choices, the next step."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class InputError(Exception):
    """Something that the user typed or supplied cannot be used: one line, exit code 2."""


def unknown(kind: str, value: str, choices: Iterable[str]) -> InputError:
    """`no method 'sasrek'; did you mean 'sasrec'? Choose from: ...`."""
    names = sorted(choices)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.4)
    hint = f"; did you mean '{lower[near[0]]}'?" if near else "."
    return InputError(f"no {kind} '{value}'{hint} Choose from: {', '.join(names)}")


def warnings_in_one_line() -> None:
    """Let Python print the message of a warning alone, without the line of code that gave it."""

    def line(message: Warning | str, *_: object, **__: object) -> str:
        return f"warning: {message}\n"

    warnings.formatwarning = line
