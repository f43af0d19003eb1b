"""A document as LaTeX: one float a grid, notes as comments. It needs no package but booktabs."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

from harness.report.document import EMPTY, Document, Entry, Grid, Notes, Picture, Span

HEAD = r"""% Needs \usepackage{booktabs}, and \usepackage{graphicx} where there are figures; nothing else.
\providecommand{\struck}[1]{{\setbox0=\hbox{#1}\rlap{\vrule width\wd0 height.65ex depth-.57ex}\box0}}
"""
"""`\\struck` draws a line through its argument with TeX's own means."""

SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "±": r"$\pm$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", "−": "$-$", "τ": r"$\tau$", "×": r"$\times$", "≥": r"$\geq$",
    "≤": r"$\leq$", "–": "--", "—": "---", "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\ldots{}", "·": r"$\cdot$",
    "µ": r"$\mu$", "°": r"$^\circ$", "²": "$^2$", "³": "$^3$", "\u00ad": "",
}  # fmt: skip
PAGE = 506.0
"""Points that a float over both columns of a page has (ACM's two-column layout)."""
SIZES = {"footnotesize": 4.45, "scriptsize": 4.25}
"""Font sizes to try, and the points that a sign takes in each, on average (measured)."""
GAP = 2.5
"""Points on each side of a column."""
ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Accents that TeX's first font encoding (OT1, the default) can set over a letter."""
LAST_LATIN = "\u017f"
"""Accented letters beyond this one are not known to engines."""
LETTERS = frozenset("ßæœøłÆŒØŁ¡¿£§¶©")
"""Signs beyond ASCII that it has."""


def escape(text: str) -> str:
    """Text that LaTeX prints as it is; what its default fonts do not have becomes a question mark."""
    text = re.sub(r"\s+", " ", text)
    return "".join(SIGNS.get(sign, sign if _has(sign) else "?") for sign in text)


def _has(sign: str) -> bool:
    """Whether an engine without further packages prints this sign."""
    letter, *accents = list(unicodedata.normalize("NFD", sign))
    printed = (letter.isascii() and letter.isprintable()) or letter in LETTERS
    return sign <= LAST_LATIN and printed and len(accents) <= 1 and ACCENTS.issuperset(accents)


def latex(document: Document, label: str) -> str:
    """The document as floats to be input into a paper.

    `label` is the first float's label; the next ones are numbered. The appendix, longer than a
    page, is left to the other formats.
    """
    lines = [*_comment(document.opening), HEAD.rstrip()]
    number = pictures = 0
    for part in document.parts:
        if isinstance(part, Notes):
            lines += ["", *_comment(part.title + ":")]
            lines += [comment for line in part.lines for comment in _comment("- " + line)]
            continue
        if isinstance(part, Picture):
            pictures += 1
            name = "fig:" + label.removeprefix("tab:") + (f"-{pictures}" if pictures > 1 else "")
            lines += ["", *_picture(part, document, name)]
            continue
        for grid in _pieces(part):
            number += 1
            name = label if number == 1 else f"{label}-{number}"
            lines += ["", *_float(grid, document, name)]
    return "\n".join(lines) + "\n"


def _picture(picture: Picture, document: Document, label: str) -> list[str]:
    """A figure over both columns of a page; the file stands beside this one."""
    caption = f"{document.title}: {picture.title}. {picture.caption} {document.opening}"
    return [
        r"\begin{figure*}[t]",
        rf"\centering\includegraphics[width=\textwidth]{{{picture.name}.png}}",
        rf"\caption{{{escape(caption)}}}\label{{{label}}}",
        r"\end{figure*}",
    ]


def _pieces(grid: Grid) -> list[Grid]:
    """A grid as it is, or a grid a band where it is wider than a page; the notes go with the last."""
    if len(grid.bands) == 1 or _width(grid, "scriptsize") <= PAGE:
        return [grid]
    pieces = [
        replace(grid.one_band(index), title=f"{grid.title}: {band.name}", below=())
        for index, band in enumerate(grid.bands)
    ]
    return [*pieces[:-1], replace(pieces[-1], below=grid.below)]


def _width(grid: Grid, size: str) -> float:
    """Points that a grid takes, about."""
    rows = [line for line in grid.lines if line.entries]
    names = [name for band in grid.bands for name in band.columns]
    columns = [[grid.corner, *(line.name for line in rows)]]
    for index, name in enumerate(names):
        texts = ["".join(span.text for span in line.entries[index]) for line in rows]
        columns.append([name, *texts])
    return sum(SIZES[size] * max(map(len, column)) + 2 * GAP for column in columns)


def _float(grid: Grid, document: Document, label: str) -> list[str]:
    """One grid as a float over both columns of a page."""
    columns = sum(len(band.columns) for band in grid.bands)
    caption = f"{document.title}: {grid.title}. {document.opening}"
    size = next((size for size in SIZES if _width(grid, size) <= PAGE), "scriptsize")
    return [
        r"\begin{table*}[t]",
        rf"\centering\{size}\setlength{{\tabcolsep}}{{{GAP:g}pt}}",
        rf"\caption{{{escape(caption)}}}\label{{{label}}}",
        rf"\begin{{tabular}}{{l*{{{columns}}}{{l}}}}",
        r"\toprule",
        *_header(grid),
        r"\midrule",
        *_lines(grid, columns),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip\parbox{{\textwidth}}{{{escape(line)}}}" for line in grid.below),
        r"\end{table*}",
    ]


def _header(grid: Grid) -> list[str]:
    """The data sets over their columns, then the columns."""
    names = " & ".join([escape(grid.corner), *(escape(c) for b in grid.bands for c in b.columns)])
    if not any(band.name for band in grid.bands):
        return [names + r" \\"]
    above, rules, at = [""], "", 2
    for band in grid.bands:
        size = len(band.columns)
        above.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(band.name)}}}")
        rules += rf"\cmidrule(lr){{{at}-{at + size - 1}}}"
        at += size
    return [" & ".join(above) + r" \\", rules, names + r" \\"]


def _lines(grid: Grid, columns: int) -> list[str]:
    """Rows; the heading of a group stands over the full width, with a rule above all but the first."""
    lines: list[str] = []
    for line in grid.lines:
        if line.entries:
            cells = [escape(line.name), *(_paint(item or EMPTY) for item in line.entries)]
            lines.append(" & ".join(cells) + r" \\")
        else:
            lines += [r"\midrule"] if lines else []
            heading = rf"\multicolumn{{{columns + 1}}}{{l}}{{\textit{{{escape(line.name)}}}}} \\"
            lines.append(heading)
    return lines


def _paint(item: Entry) -> str:
    return "".join(_span(span) for span in item)


def _span(span: Span) -> str:
    text = escape(span.text)
    for wanted, command in (
        (span.struck, "struck"),
        (span.underline, "underline"),
        (span.bold, "textbf"),
    ):
        if wanted and text:
            text = rf"\{command}{{{text}}}"
    return text


def _comment(text: str) -> list[str]:
    """A comment line; line breaks in the text stay comments."""
    return [f"% {line}" for line in text.splitlines()] or ["%"]
