"""Single cells of foreign tables: a number with its digits, a metric in a header, plain text."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from decimal import Decimal

from harness.audit.bounds import Metric

MISSING = {
    "", "-", "--", "---", "–", "—", "/", "\\", "×", "x", "n/a", "na", "nan", "none", "null", "~",
    "n.a.", "oom", "oot", "?", "tbd", "...", "…", "not reported",
}  # fmt: skip
"""What tables print where they have no number."""

SUPERSCRIPTS = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")
"""Raised digits are footnote marks (or M³BSR), never part of a number."""

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)"
    r"(?P<digits>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
    r"(?P<exponent>[eE][+-]?\d+)?"
)
_NAMES = (
    r"hit[\s_-]*(?:rate|ratio)s?|hits?|hr|recall|n-?dcg"
    r"|normali[sz]ed\s+discounted\s+cumulative\s+gain"
)
_METRIC = re.compile(
    rf"(?<![A-Za-z0-9])(?:(?P<name>{_NAMES})(?:[\s_@(=-]|top|at|k\s*=)*"
    r"|(?P<letter>rec|[hrn])\s*@\s*)(?P<cutoff>\d+)\)?(?!\d|\.\d|[A-Za-z])",
    re.IGNORECASE,
)
_NAME = re.compile(rf"(?<![A-Za-z0-9])(?:{_NAMES})(?![A-Za-z0-9])", re.IGNORECASE)
_CUTOFF = re.compile(r"(?<![A-Za-z0-9])(?:@|top[\s-]*|k\s*=)\s*(\d+)(?!\w)", re.IGNORECASE)
_OTHER = re.compile(
    r"(?<![A-Za-z])(?:mrr|map|m?ap|precision|prec|p|auc|gauc|f1|coverage)(?:\s*@\s*\d+)?(?![A-Za-z])",
    re.IGNORECASE,
)
_SPREAD = re.compile(
    r"(?<![A-Za-z])(?:sd|std(?:dev)?|stdev|stderr|se|ci|p|p[\s-]*values?|improv\w*|imp|gains?|lift"
    r"|delta|low|high|seeds)(?![A-Za-z])|Δ|±",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """A number as printed."""

    value: Decimal
    percent: bool = False
    """Printed with a percent sign."""


@dataclass(frozen=True)
class Heading:
    """A column's header that names a metric."""

    metric: Metric
    rest: str
    """What else it says: the data set."""
    percent: bool = False


def plain(text: str) -> str:
    """Text without Markdown and HTML marks, entities, raised footnotes and odd spaces."""
    text = html.unescape(text)
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE)
    text = re.sub(
        r"<sup>(.*?)</sup>", lambda found: raised(found[1]), text, flags=re.IGNORECASE | re.DOTALL
    )
    text = re.sub(r"</?[A-Za-z][^<>]*>", "", text)
    text = re.sub(r"\[\^[^\]]*\]", "", text)  # Markdown's footnotes
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # and links
    text = text.replace("**", "").replace("__", "").replace("~~", "").replace("`", "")
    text = re.sub(r"(?<![\w*])[*_](?=\S)([^*_]*)(?<=\S)[*_](?![\w*])", r"\1", text)
    text = re.sub(r"\\([\\`*_{}\[\]()#+.!|~-])", r"\1", text)
    for minus in "−‐‑‒":
        text = text.replace(minus, "-")
    return " ".join(text.replace("\ufeff", "").split())


def raised(text: str) -> str:
    """Superscript text: its digits as raised digits, everything else dropped."""
    return text.translate(SUPERSCRIPTS) if re.fullmatch(r"[\d+-]+", text.strip()) else ""


def is_missing(text: str) -> bool:
    """True for the ways of saying that there is no number."""
    return plain(text).strip("()*†‡ ").lower() in MISSING


def number(text: str, *, decimal_comma: bool = False) -> Number | None:
    """The number that a cell prints, or None.

    A spread after it (0.32 ± 0.01, 0.32 (0.01)), marks of rank and significance, footnote letters
    and raised digits are left out; thousands have commas; .123 and 0,123 are 0.123.
    `decimal_comma`: every comma is a decimal point (tables separated by semicolons).
    """
    text = plain(text).replace("_", " ")
    if decimal_comma and re.search(r"\d,\d", text):
        text = re.sub(r"(?<=\d)\.(?=\d{3})", "", text).replace(",", ".")
    found = _NUMBER.search(text)
    if found is None or re.search(r"[^\W_]", text[: found.start()]):
        return None
    rest = text[found.end() :]
    if re.match(r"[A-Za-z]{2}|[.,]?\d|\s*[/|;:-]?\s*\.?\d", rest):
        return None  # a word, a date, or two numbers in one cell
    digits = found["digits"]
    thousands = re.match(r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)", digits)
    digits = digits.replace(",", "" if thousands else ".")
    value = Decimal(f"{found['sign']}{digits}{found['exponent'] or ''}")
    return Number(value, percent=rest.lstrip().startswith("%"))


def metric_in(text: str) -> Heading | None:
    """The metric that a header names, with the rest of it: `Rec-Tmal HR@10` is (HR@10, Rec-Tmal).

    Hit, Hit Rate, Recall and their one letters with @ are HR: the same number with one positive a
    user. A header of a spread, of a p-value or of an improvement names none.
    """
    text = plain(text)
    percent = "%" in text
    text = " ".join(re.sub(r"\(\s*%\s*\)|\[\s*%\s*\]|%", " ", text).split())
    found = _METRIC.search(text)
    if found is not None:
        name, cutoff = found["name"] or found["letter"], int(found["cutoff"])
        rest = f"{text[: found.start()]} {text[found.end() :]}"
    else:
        named, at = _NAME.search(text), _CUTOFF.search(text)  # "@10" above "HR"
        if named is None or at is None:
            return None
        name, cutoff = named[0], int(at[1])
        rest = _CUTOFF.sub(" ", _NAME.sub(" ", text))
    if cutoff < 1 or _SPREAD.search(rest):
        return None
    rest = re.sub(
        r"[↑↓⇑⇓]|(?<![A-Za-z])(?:mean|avg|average)(?![A-Za-z])", " ", rest, flags=re.IGNORECASE
    )
    rest = " ".join(rest.split()).strip(" -–—_:|/,.()[]")
    return Heading(Metric(cutoff, "NDCG" if name.lower().startswith("n") else "HR"), rest, percent)


def other_metric(text: str) -> str | None:
    """The name of a ranking metric that is not judged here (MRR, MAP, AUC ...)."""
    found = _OTHER.search(plain(text))
    return found[0] if found else None


def label(text: str) -> str:
    """The name of a row without citations and marks: `**SASRec**† [12]` is `SASRec`."""
    text = plain(text)
    text = re.sub(r"\s*\[[\d,;\s–-]*\]", "", text)
    return text.strip().strip("*†‡§¶♠♣♥♦⋆★• ").rstrip("⁰¹²³⁴⁵⁶⁷⁸⁹ ").strip()
