"""Exported LaTeX is LaTeX: read strictly here, and compiled where there is an engine (nox -s latex)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache

import pytest

from harness.config import cell_key
from harness.report.audited import audit_page
from harness.report.document import Band, Document, Grid, Line, Notes, Picture, Span, entry
from harness.report.figures import canvas, write_figure
from harness.report.latex import latex
from harness.report.layout import document
from tests.harness.report_world import World

KNOWN = {
    "begin", "end", "centering", "footnotesize", "scriptsize", "setlength", "tabcolsep", "caption",
    "label", "toprule", "midrule", "bottomrule", "cmidrule", "multicolumn", "textit", "textbf",
    "underline", "struck", "providecommand", "setbox", "hbox", "rlap", "vrule", "wd", "box", "par",
    "smallskip", "parbox", "textwidth", "includegraphics", "pm", "dagger", "ddagger", "tau", "times",
    "geq", "leq", "ldots", "cdot", "mu", "circ", "textbackslash", "textasciitilde", "textasciicircum",
}  # fmt: skip
"""Commands that LaTeX, booktabs and graphicx have."""
SIGNS = "".join(map(chr, (*range(0x20, 0x7F), *range(0xA0, 0x250), 0x2009, 0x2013, 0x2014, 0x2018,
                          0x2019, 0x201C, 0x201D, 0x2020, 0x2021, 0x2026, 0x2212, 0x3B1, 0x3C4,
                          0x6F22, 0xD7, 0x1F600)))  # fmt: skip
"""Every sign that a name may have, and some beyond."""
PARAGRAPH = r"""\documentclass[twocolumn]{article}
\usepackage[textwidth=506.3pt,textheight=9in]{geometry}
\usepackage{booktabs,graphicx}
"""
"""A two-column page as wide as ACM's."""


def hostile():
    """A page that has every sign wherever there is a text, and a group under each heading."""
    line = (
        (Span(SIGNS[:40], bold=True),),
        (Span("a_b", underline=True), Span("&%$#")),
        (Span("0.1", struck=True), Span("\\end{tabular}")),
        (),
    )
    bands = (Band("one_&", "one", ("HR@10", "p < .05")), Band("two%", "two", ("{", "}")))
    grid = Grid("Signs # 1", "Row \\ corner", bands, (Line("Group ~ ^"), Line("R_1 & co", line)),
                (" ".join(SIGNS),))  # fmt: skip
    flat = Grid("No bands", "Row", (Band("", "", ("a", "b")),), (Line("x", line[:2]),))
    picture = Picture("A _figure_", "bars", "50 % & more.")
    notes = Notes("Notes {", (SIGNS, "two\nlines \\"))
    return Document("DEMO DATA\nin 100 % of cases", "A table: \\ & % $ # _ { } ~ ^",
                    (picture, grid, notes, flat))  # fmt: skip


@cache
def pages():
    """Documents of every shape: full, with gaps and failures, one run, two runs, nothing, hostile."""
    twins = ("demo_rec_tmall", "demo_kuaishou")
    world = World(data=twins, seeds=5, levels={"m3bsr": 0.5, "sasrec": 0.2})
    failed = {
        cell_key(c): "a | b_c & 50 % <nan> \\x {" for c in world.cells if c.method == "gru4rec"
    }
    gaps = world.without(*(("gru4rec", seed) for seed in range(1, 6)))
    paper = World(data=("rec_tmall", "kuaishou"))
    return {
        "full": document(world.table()),
        "gaps": document(world.table(gaps, failed=failed)),
        "one run": document(World(seeds=1).table()),
        "two runs": document(World(seeds=2).table()),
        "nothing": document(World().table([])),
        "the paper's data": document(paper.table()),
        "audit": audit_page(),
        "every sign": hostile(),
    }


NAMES = (
    "full",
    "gaps",
    "one run",
    "two runs",
    "nothing",
    "the paper's data",
    "audit",
    "every sign",
)


def code_of(text):
    """LaTeX without its comments; `%` starts one unless it is escaped."""
    return "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())


def check(text):
    """Raise AssertionError for anything that an engine would stop at, or print wrongly."""
    code = code_of(text)
    stripped = re.sub(r"\\[\\{}&%$#_]", "  ", code)  # escaped signs and row ends
    depth, mathematics = 0, False
    for sign in stripped:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0, "a brace closes nothing"
        if sign == "$":
            mathematics = not mathematics
        assert not (sign in "<>^_|" and not mathematics), f"{sign} outside of mathematics"
    assert depth == 0, "a brace is open"
    assert not mathematics, "mathematics are open"
    assert "#" not in re.sub(r"\\providecommand\{\\struck\}.*", "", stripped)
    assert set(re.findall(r"\\([A-Za-z]+)", stripped)) <= KNOWN
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{([^}]*)\}", stripped):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    labels = re.findall(r"\\label\{([^}]*)\}", code)
    assert len(labels) == len(set(labels))
    for label in labels:
        assert re.fullmatch(r"[a-z0-9:+-]+", label)
    tables = re.findall(
        r"\\begin\{tabular\}\{l\*\{(\d+)\}\{l\}\}(.*?)\\end\{tabular\}", code, re.DOTALL
    )
    assert len(tables) == code.count(r"\begin{tabular}")
    for number, body in tables:
        check_rows(body, 1 + int(number))
    return len(tables)


def check_rows(body, columns):
    """Every row of a tabular has as many columns as the tabular."""
    for line in body.strip().splitlines():
        if line in {r"\toprule", r"\midrule", r"\bottomrule"}:
            continue
        if line.startswith(r"\cmidrule"):
            for first, last in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", line):
                assert 2 <= int(first) <= int(last) <= columns
            continue
        assert line.endswith(r" \\"), line
        wide = sum(int(size) - 1 for size in re.findall(r"\\multicolumn\{(\d+)\}", line))
        assert len(re.findall(r"(?<!\\)&", line)) + 1 + wide == columns, line


@pytest.mark.parametrize("name", NAMES)
def test_a_strict_reader_finds_nothing(name):
    assert check(latex(pages()[name], "tab:main")) >= 1


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (r"\bottomrule", r"\bottom"),
        (r"\end{tabular}", ""),
        (r" \\", " & x \\\\"),
        (r"\textbf{0.", r"\textbf{0{."),
        (r"$\dagger$", r"$\dagger"),
        (r"\_", "_"),
        (r"\%", "%"),
        (r"$<$", "<"),
    ],
)
def test_the_strict_reader_is_strict(good, bad):
    text = latex(pages()["full"], "tab:main")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert check(text)
    assert good in text
    with pytest.raises(AssertionError):
        check(text.replace(good, bad, 1))


def test_every_sign_becomes_latex():
    text = code_of(latex(Document("o", "t", (Grid("g", "c", (Band("", "", (SIGNS,)),),
                                                  (Line("l", (entry(SIGNS),)),)),)), "tab:x"))  # fmt: skip
    assert check(text) == 1
    assert "漢" not in text
    assert "\N{GRINNING FACE}" not in text


@pytest.fixture(scope="module")
def engine():
    """Pdflatex; without it the tests skip, but not where REPORT_LATEX says that it is there."""
    path = os.environ.get("REPORT_LATEX") or shutil.which("pdflatex")
    if path is None:
        pytest.skip("no pdflatex on this machine; nox -s latex installs it")
    return path


@pytest.fixture(scope="module")
def log(engine, tmp_path_factory):
    """Compile all pages as one paper, each input twice as long as a page may be; the engine's log."""
    folder = tmp_path_factory.mktemp("paper")
    with canvas(3.0, 2.0) as figure:
        figure.subplots().plot([1, 2], [2, 1])
    write_figure(folder, "bars", figure)
    inputs = []
    for number, (name, page) in enumerate(pages().items()):
        (folder / f"table{number}.tex").write_text(latex(page, f"tab:t{number}"), "utf8")
        inputs.append(rf"\typeout{{input: {name}}}\input{{table{number}}}\clearpage")
    paper = [PARAGRAPH, r"\begin{document}", *inputs, r"\end{document}"]
    (folder / "paper.tex").write_text("\n".join(paper), "utf8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper"]
    for _ in range(2):  # the second time with the references of the first
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    text = (folder / "paper.log").read_text("latin1")
    assert done.returncode == 0, text[-2000:]
    return text


@pytest.mark.engine
def test_an_engine_compiles_every_page(log):
    assert "Output written on paper.pdf" in log
    for complaint in ("LaTeX Error", "Undefined control sequence", "Missing character",
                      "multiply defined", "undefined references"):  # fmt: skip
        assert complaint not in log, log[log.index(complaint) - 300 :][:600]


@pytest.mark.engine
def test_no_table_is_wider_than_the_page(log):
    too_wide = [
        float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide", log)
    ]
    assert max(too_wide, default=0.0) < 10
