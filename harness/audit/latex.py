r"""LaTeX tables as grids of plain strings: `tabular` and its relatives, without running TeX.

`\multicolumn` repeats its text over the columns it spans, `\multirow` stays in its first row, and
every other command is either dropped with its arguments, kept for its text, or printed by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.audit.cells import raised

_ENVIRONMENTS = r"(?:tabular[xy]?\*?|longtable|array|tabu|tblr|NiceTabular\*?)"
_BEGIN = re.compile(rf"\\begin\s*\{{({_ENVIRONMENTS})\}}")
_RULES = re.compile(
    r"\\(?:(?:toprule|midrule|bottomrule|hline|hdashline|addlinespace|endhead|endfirsthead"
    r"|endfoot|endlastfoot|morecmidrules|thickhline|Xhline)(?![A-Za-z])(?:\s*\[[^\]]*\])?"
    r"|(?:cmidrule|cline|cdashline|noalign|Xcline)(?![A-Za-z])(?:\s*\[[^\]]*\])?(?:\s*\([^)]*\))?"
    r"(?:\s*\{[^{}]*\})?"
    r"|specialrule(?![A-Za-z])(?:\s*\{[^{}]*\}){3})"
)
_DROPPED = {
    "cite": 1, "citep": 1, "citet": 1, "citealp": 1, "citeauthor": 1, "citeyear": 1, "parencite": 1,
    "footnote": 1, "footnotemark": 0, "footnotetext": 1, "tnote": 1, "tablefootnote": 1, "label": 1,
    "ref": 1, "vspace": 1, "hspace": 1, "cellcolor": 1, "rowcolor": 1, "columncolor": 1, "color": 1,
    "fontsize": 2, "setlength": 2, "rule": 2, "phantom": 1, "hphantom": 1, "vphantom": 1,
    "includegraphics": 1, "arrayrulecolor": 1, "fontseries": 1, "renewcommand": 2,
}  # fmt: skip
"""Commands without text of their own: number of arguments that go with them."""
_LAST = {
    "textcolor": 2, "colorbox": 2, "fcolorbox": 3, "rotatebox": 2, "scalebox": 2, "resizebox": 3,
    "multirow": 3, "multirowcell": 2, "multicolumn": 3, "parbox": 2, "raisebox": 2, "makebox": 1,
    "href": 2, "adjustbox": 2, "diagbox": 2, "rlap": 1, "llap": 1,
}  # fmt: skip
"""Commands whose text is their last argument: number of arguments."""
_SIGNS = {
    "pm": " ± ", "textpm": " ± ", "times": "×", "Delta": "Δ", "quad": " ", "qquad": " ",
    "textendash": "–", "textemdash": "—", "textbackslash": "\\", "newline": " ", "tabularnewline": " ",
    "textasciitilde": "~", "space": " ", "cdots": "...", "ldots": "...", "dots": "...", "percent": "%",
    "textpercent": "%", "textminus": "-", "textunderscore": "_",
}  # fmt: skip
_MARKS = re.compile(
    "dagger|ddagger|dag|ddag|textdagger(dbl)?|ast|star|bigstar|bullet|circ|diamond|clubsuit|spadesuit"
    "|heartsuit|diamondsuit|checkmark|cmark|xmark|S|P|textasteriskcentered|textbullet|triangle(up)?"
    "|blacktriangle|uparrow|downarrow|Uparrow|Downarrow|textuparrow|textdownarrow"
    "|bf|it|em|tt|rm|sl|sc|sf|(bf|md)series|(it|up|sc)shape|(rm|sf|tt)family|(un)?boldmath|normalfont"
    "|tiny|scriptsize|footnotesize|small|normalsize|large|Large|displaystyle|textstyle|selectfont"
    "|centering|raggedright|raggedleft|noindent|arraybackslash|leavevmode|left|right|relax|protect"
    "|hfill?|null|strut"
)
"""Marks, fonts and sizes: nothing to read."""


@dataclass(frozen=True)
class LatexTable:
    """One tabular."""

    name: str
    """The caption, or empty."""
    grid: list[list[str]]


def tables(source: str) -> list[LatexTable]:
    """Every tabular of a LaTeX source, outermost ones, in order."""
    source = re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*", r"\1", source)
    found = []
    position = 0
    while (begin := _BEGIN.search(source, position)) is not None:
        stop, body = _environment(source, begin)
        body = _arguments_skipped(begin[1], body)
        found.append(LatexTable(_caption(source, begin.start(), stop), _grid(_flattened(body))))
        position = stop
    if not found and "&" in source and r"\\" in source:
        found.append(LatexTable("", _grid(source)))
    return found


def _environment(source: str, begin: re.Match[str]) -> tuple[int, str]:
    """Where an environment ends, and what stands in it (nested ones included)."""
    depth = 1
    name = re.escape(begin[1])
    for mark in re.finditer(rf"\\(begin|end)\s*\{{{name}\}}", source[begin.end() :]):
        depth += 1 if mark[1] == "begin" else -1
        if depth == 0:
            start = begin.end()
            return start + mark.end(), source[start : start + mark.start()]
    return len(source), source[begin.end() :]


def _arguments_skipped(name: str, body: str) -> str:
    """A body without the environment's own arguments: position, width, columns."""
    count = 2 if name.rstrip("*") in ("tabularx", "tabulary") or name == "tabular*" else 1
    at = 0
    while count:
        at = _optional(body, at)
        start = _blank(body, at)
        if start >= len(body) or body[start] != "{":
            break
        _, at = _group(body, start)
        count -= 1
    return body[at:]


def _flattened(body: str) -> str:
    """A body whose inner tabulars (line breaks in a cell) are braces with spaces."""
    while (inner := list(_BEGIN.finditer(body))) != []:
        begin = inner[-1]  # the innermost of the last
        stop, content = _environment(body, begin)
        content = _arguments_skipped(begin[1], content).replace(r"\\", " ")
        text = re.sub(r"(?<!\\)&", " ", content)
        body = f"{body[: begin.start()]}{{{text}}}{body[stop:]}"
    return body


def _caption(source: str, start: int, stop: int) -> str:
    """The caption of the float around a tabular, in plain text, shortened."""
    first = max(source.rfind(r"\begin{table", 0, start), source.rfind(r"\end{table", 0, start))
    last = source.find(r"\end{table", stop)
    around = source[max(first, 0) : last if last >= 0 else stop]
    found = re.search(r"\\caption\*?\s*(?:\[[^\]]*\])?\s*\{", around)
    if found is None:
        return ""
    text = " ".join(plain(_group(around, found.end() - 1)[0]).split())
    return text if len(text) <= 80 else text[:79].rsplit(" ", 1)[0] + " …"


def _grid(body: str) -> list[list[str]]:
    body = _RULES.sub(" ", body)
    return [
        [text for cell in _split(line, "&") for text in _spanned(cell)]
        for line in _split(body, "\\\\")
        if line.strip()
    ]


def _split(text: str, mark: str) -> list[str]:
    r"""Text at every `&`, or at every `\\` (with its `*` and `[space]`), outside braces."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if depth == 0 and mark == "&" and text[at] == "&":
            parts.append(text[start:at])
            start = at = at + 1
        elif depth == 0 and mark != "&" and _is_break(text, at):
            parts.append(text[start:at])
            end = re.compile(r"(?:\\\\|\\tabularnewline(?![A-Za-z]))\*?(?:[ \t]*\[[^\]]*\])?")
            found = end.match(text, at)
            start = at = found.end() if found else at + 2
        elif text[at] == "\\":
            at += 2
        else:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            depth = max(depth, 0)
            at += 1
    return [*parts, text[start:]]


def _is_break(text: str, at: int) -> bool:
    return (
        text.startswith("\\\\", at)
        or re.match(r"\\tabularnewline(?![A-Za-z])", text[at:]) is not None
    )


def _spanned(cell: str) -> list[str]:
    """A cell's plain text, as often as the columns it spans."""
    found = re.search(r"\\multicolumn\s*\{\s*(\d+)\s*\}", cell)
    count = int(found[1]) if found else 1
    return [" ".join(plain(cell).split())] * min(max(count, 1), 1000)


def plain(text: str) -> str:
    """LaTeX without commands: what a reader sees, footnote marks left out."""
    out: list[str] = []
    at = 0
    while at < len(text):
        sign = text[at]
        if sign == "\\":
            words, at = _command(text, at)
            out.append(words)
        elif sign == "{":
            inner, at = _group(text, at)
            out.append(plain(inner))
        elif sign in "^_" and at + 1 < len(text):
            argument, at = _argument(text, at + 1)
            words = plain(argument)
            if sign == "^":
                out.append(f" {words}" if "±" in words else raised(words))
            else:
                out.append(f"_{words}" if "±" not in words else f" {words}")
        else:
            out.append({"~": " ", "$": "", "}": "", "&": " "}.get(sign, sign))
            at += 1
    return "".join(out)


def _command(text: str, at: int) -> tuple[str, int]:
    """What the command at `at` prints, and where the text goes on."""
    found = re.compile(r"\\([A-Za-z]+)\*?\s*").match(text, at)
    if found is None:
        sign = text[at + 1 : at + 2]
        words = " " if sign in "\\;: " else "" if sign in ",!/-()[]'`^\"~=." else sign
        return words, at + 2
    name, at = found[1], found.end()
    if name in _SIGNS:
        words = _SIGNS[name]
    elif _MARKS.fullmatch(name):
        words = ""
    elif name == "textsuperscript":
        argument, at = _argument(text, at)
        words = raised(plain(argument))
    elif name in _DROPPED:
        _, at = _arguments(text, at, _DROPPED[name])
        words = ""
    elif name in _LAST:
        argument, at = _arguments(text, at, _LAST[name])
        words = plain(argument)
    else:
        words, at = _unknown(text, at, name)
    return words, at


def _unknown(text: str, at: int, name: str) -> tuple[str, int]:
    """A command of the authors': the text of its argument, or its name where it has none."""
    start = _blank(text, _optional(text, at))
    if start >= len(text) or text[start] != "{":
        return f" {name}", at
    argument, at = _group(text, start)
    return plain(argument) if argument else f" {name}", at


def _arguments(text: str, at: int, count: int) -> tuple[str, int]:
    """The last of `count` arguments, options between them skipped."""
    at, last = _optional(text, at), ""
    for _ in range(count):
        last, at = _argument(text, at)
        at = _optional(text, at)
    return last, at


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _optional(text: str, at: int) -> int:
    """The position after any number of bracketed options at `at`."""
    while True:
        start = _blank(text, at)
        if start >= len(text) or text[start] != "[":
            return at
        end = text.find("]", start)
        if end < 0:
            return at
        at = end + 1


def _argument(text: str, at: int) -> tuple[str, int]:
    """The argument at `at`: a group, a command or a single sign."""
    at = _blank(text, at)
    if at >= len(text):
        return "", at
    if text[at] == "{":
        return _group(text, at)
    if text[at] == "\\":
        found = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL).match(text, at)
        end = found.end() if found else at + 1
        return text[at:end], end
    return text[at], at + 1


def _group(text: str, at: int) -> tuple[str, int]:
    """What stands between the brace at `at` and its partner, and the position after that."""
    depth, start = 0, at + 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if depth == 0:
            return text[start : at - 1], at
    return text[start:], len(text)
