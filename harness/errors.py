"""A user's mistake, said in one line: the value, the nearest valid one, the choices, the next step."""

from __future__ import annotations

import argparse
import difflib
import warnings
from collections.abc import Iterable
from typing import NoReturn


class InputError(Exception):
    """Something that the user typed or supplied cannot be used: one line, exit code 2."""


class OneLineParser(argparse.ArgumentParser):
    """A command line whose mistakes are InputError, like every other one."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's message and where to look."""
        raise InputError(f"{message}; see {self.prog} --help")


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
