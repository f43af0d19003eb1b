"""A table as Markdown, terminal text, LaTeX, CSV and JSON: the same numbers, nothing broken."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest

from harness.config import cell_key
from harness.report.document import (
    Band,
    Document,
    Grid,
    Line,
    Notes,
    Picture,
    Span,
    entry,
    from_json,
    to_json,
)
from harness.report.export import csv_text, json_content
from harness.report.files import write_table
from harness.report.latex import escape as latex_escape
from harness.report.latex import latex
from harness.report.layout import document
from harness.report.text import markdown, terminal
from harness.zoo import METHODS
from tests.harness.report_world import World

CELL_KEYS = [
    "group", "method", "dataset", "metric", "mean", "sd", "seeds", "low", "high", "published",
    "published_possible", "verdict", "p", "df", "p_holm", "p_users", "p_seeds", "in_best_set",
    "effect", "mark",
]  # fmt: skip
PAGE = Document(
    opening="DEMO DATA",
    title="A table",
    parts=(
        Grid(
            title="Means",
            corner="Method",
            bands=(Band("demo_one", "one", ("HR@10",)), Band("demo_two", "two", ("HR@10",))),
            lines=(
                Line("Ours"),
                Line("M3BSR", ((Span("0.5000", bold=True), Span("±.0100†")), entry("failed [1]"))),
                Line(
                    "SASRec",
                    (
                        (Span("0.4000", underline=True),),
                        (Span("0.3000", struck=True), Span(" +0.1000")),
                    ),
                ),
            ),
            below=("[1] why",),
        ),
        Notes("Notes", ("one", "two")),
    ),
)


@pytest.fixture(scope="module")
def world():
    return World(
        data=("demo_rec_tmall", "demo_kuaishou"), seeds=5, levels={"m3bsr": 0.5, "sasrec": 0.2}
    )


@pytest.fixture(scope="module")
def table(world):
    failed = {cell_key(c): "a | b_c & 50 % <nan>" for c in world.cells if c.method == "gru4rec"}
    return world.table(world.without(*(("gru4rec", seed) for seed in range(1, 6))), failed=failed)


def rows_of(text, title):
    """The cells of a Markdown grid by the name of its row."""
    part = text.split(f"## {title}")[1].split("\n## ")[0]
    found = {}
    for line in part.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[cells[0]] = cells[1:]
    return found


def test_a_small_page_as_markdown():
    assert markdown(PAGE) == (
        "DEMO DATA\n"
        "\n"
        "# A table\n"
        "\n"
        "## Means\n"
        "\n"
        "| Method | one HR@10         | two HR@10          |\n"
        "|--------|-------------------|--------------------|\n"
        "| *Ours*                                      | | |\n"
        "| M3BSR  | **0.5000**±.0100† | failed [1]         |\n"
        "| SASRec | <ins>0.4000</ins> | ~~0.3000~~ +0.1000 |\n"
        "\n"
        "- [1] why\n"
        "\n"
        "## Notes\n"
        "\n"
        "- one\n"
        "- two\n"
    )


def test_a_narrow_terminal_gets_a_grid_a_data_set():
    text = terminal(PAGE, colour=False, width=45)
    assert "## Means: demo_one" in text
    assert "## Means: demo_two" in text
    assert max(map(len, text.splitlines())) <= 45
    assert "## Means\n" in terminal(PAGE, colour=False, width=60)


def test_terminal_styles_do_not_move_columns():
    lines = terminal(PAGE, colour=True).splitlines()
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines]
    start = next(line for line in plain if line.startswith("Method")).rindex("HR@10")
    assert plain[lines.index(next(x for x in lines if "M3BSR" in x))][start:] == "failed [1]"
    assert "\x1b[1m0.5000\x1b[22m" in "\n".join(lines)
    assert "\x1b[4m0.4000\x1b[24m" in "\n".join(lines)


def test_demo_data_are_named_in_the_first_line_of_every_text(table):
    page = document(table)
    for text in (markdown(page), terminal(page, colour=False), latex(page, "tab:main")):
        first = text.splitlines()[0]
        assert "DEMO DATA" in first
        assert "not the paper's" in first


def test_few_users_are_named_in_the_first_line():
    text = markdown(document(World(limit=200, seeds=1).table()))
    assert "Only the first 200 users" in text.splitlines()[0]


def test_markdown_has_eight_columns_and_the_marks(table):
    means = rows_of(markdown(document(table)), "Means")
    assert len(means["Method"]) == 8
    assert all(len(row) == 8 for row in means.values())
    champion = next(row for row in table.rows if row.label == "M3BSR")
    for text, cell in zip(means["M3BSR"], champion.cells, strict=True):
        assert text.startswith(f"**{cell.mean:.4f}**±")
        assert text.endswith("†")
    assert all(re.match(r"<ins>0\.\d{4}</ins>±\.\d{4}$", text) for text in means["SASRec"])
    assert means["Random"] == ["0.1000", "0.0454", "0.2000", "0.0704"] * 2
    assert means["GRU4Rec"][0].startswith("failed [")


def test_markdown_sets_ours_minus_published_beside_struck_cells(table):
    beside = rows_of(markdown(document(table)), "Beside the paper")
    m3bsr = next(row for row in table.rows if row.label == "M3BSR")
    assert beside["M3BSR"][0] == f"~~0.3207~~ {m3bsr.cells[0].mean - 0.3207:+.4f}"
    assert beside["GRU4Rec"][0] == "~~0.1498~~"
    assert "33 of the 34 published rows are" in markdown(document(table))


def test_a_possible_published_row_is_not_struck():
    world = World(methods=tuple(method.key for method in METHODS))
    beside = rows_of(markdown(document(world.table())), "Beside the paper")
    assert beside["BERT4Rec"][0].startswith("0.2123")
    assert beside["STOSA"][0].startswith("~~0.2568~~")


def test_every_comparison_stands_in_the_file_in_full(table):
    text = markdown(document(table)).split("in full")[1]
    assert text.count("| SASRec ") == text.count("| MB-STR ") == 8
    assert "in full" not in terminal(document(table), colour=False)


def test_reasons_break_neither_markdown_nor_latex(table):
    assert r"a \| b_c & 50 % \<nan>" in markdown(document(table))
    assert r"a $|$ b\_c \& 50 \% $<$nan$>$" in latex(document(table), "tab:main")


def test_latex_is_balanced_and_has_the_marks(table):
    text = latex(document(table), "tab:main")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[{}]", "", code)
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert re.sub(r"\\\$", "", code).count("$") % 2 == 0
    for name in ("table*", "tabular"):
        assert code.count(rf"\begin{{{name}}}") == code.count(rf"\end{{{name}}}") > 0
    for mark in (
        r"\textbf{0.",
        r"\underline{0.",
        r"$\dagger$",
        r"\struck{0.3207}",
        r"$\pm$",
        r"\toprule",
    ):
        assert mark in code
    rows = [line for line in code.splitlines() if line.startswith("M3BSR &")]
    assert rows
    assert {line.count("&") for line in rows} <= {4, 8}
    assert len(re.findall(r"\\label\{([^}]*)\}", code)) == len(
        set(re.findall(r"\\label\{([^}]*)\}", code))
    )
    assert code.isascii()


def test_latex_wider_than_a_page_stands_in_a_float_a_data_set():
    def grid(text, columns=4):
        bands = tuple(Band(name, name, ("HR@10",) * columns) for name in ("one", "two"))
        line = Line("MostPopular", (entry(text),) * (2 * columns))
        return Document("Data.", "A table", (Grid("Means", "Method", bands, (line,), ("why",)),))

    narrow = latex(grid("0.3207"), "tab")
    assert narrow.count(r"\begin{tabular}") == 1
    assert r"\footnotesize" in narrow
    tight = latex(grid("0.3207±.0100"), "tab")
    assert tight.count(r"\begin{tabular}") == 1
    assert r"\scriptsize" in tight
    wide = latex(grid("+0.0917 +-.0829 p <.001"), "tab")
    assert wide.count(r"\begin{tabular}{l*{4}{l}}") == 2
    assert wide.count("why") == 1
    assert "Means: one. Data." in wide
    assert "Means: two. Data." in wide


def test_latex_escapes_every_special_sign():
    assert latex_escape(r"a\b{c}&%$#_~^") == (
        r"a\textbackslash{}b\{c\}\&\%\$\#\_\textasciitilde{}\textasciicircum{}"
    )
    assert latex_escape("Müller 漢 \n x") == "Müller ? x"


def test_json_has_the_promised_keys_and_only_finite_numbers(table):
    content = json.loads(json.dumps(json_content(table), allow_nan=False))
    assert list(content) == [
        "target",
        "data",
        "protocol",
        "cells",
        "reference",
        "budget",
        "correction",
    ]
    assert list(content["data"][0]) == ["name", "demo", "data_sha256", "candidates_sha256"]
    for cell in content["cells"] + content["reference"]:
        assert list(cell) == CELL_KEYS
        assert all(math.isfinite(v) for v in cell.values() if isinstance(v, float))
    assert len(content["cells"]) == 8 * len(table.rows)
    assert list(content["budget"][0]) == ["method", "dataset", "trials", "seconds"]
    assert content["correction"] == {"method": "holm", "comparisons": 2}
    assert content["protocol"]["same_item_history"] == "drop"


def test_json_says_what_the_table_says(table):
    cells = {(c["method"], c["dataset"], c["metric"]): c for c in json_content(table)["cells"]}
    ours = cells["M3BSR", "demo_kuaishou", "NDCG@20"]
    assert (ours["mark"], ours["in_best_set"], ours["p"], ours["effect"]) == (
        "dagger",
        True,
        None,
        None,
    )
    other = cells["SASRec", "demo_kuaishou", "NDCG@20"]
    assert other["mark"] == "second"
    assert other["effect"] == pytest.approx(ours["mean"] - other["mean"])
    assert other["p"] <= other["p_holm"]
    assert (ours["published"], ours["published_possible"], ours["verdict"]) == (0.1612, False, None)
    gap = cells["GRU4Rec", "demo_kuaishou", "NDCG@20"]
    assert (gap["mean"], gap["seeds"], gap["published"]) == (None, 0, 0.0103)


def test_one_run_leaves_every_p_null_in_json():
    content = json_content(World(seeds=1, data=("kuaishou",)).table())
    for cell in content["cells"]:
        assert (
            cell["p"] is cell["p_holm"] is cell["sd"] is cell["mark"] is cell["in_best_set"] is None
        )
    assert content["correction"]["comparisons"] == 0


def test_csv_is_the_json_and_more(table):
    content = json_content(table)
    lines = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [line["kind"] for line in lines].count("reference") == len(content["reference"])
    for line, cell in zip(lines, content["cells"] + content["reference"], strict=True):
        for key, value in cell.items():
            if value is None:
                assert line[key] == ""
            elif isinstance(value, bool):
                assert line[key] == ("true" if value else "false")
            elif isinstance(value, float):
                assert float(line[key]) == value
            else:
                assert line[key] == str(value)
        assert line["demo"] == "true"
    failed = next(line for line in lines if line["method"] == "GRU4Rec")
    assert failed["gap"].startswith("seed 1: failed: a | b_c")


def test_the_files_are_written(table, tmp_path):
    page = document(table)
    write_table(
        tmp_path / "x",
        markdown(page),
        csv_text(table),
        latex(page, "tab:main"),
        json_content(table),
        to_json(page),
    )
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "page.json", "table.csv", "table.json", "table.md", "table.tex",
    ]  # fmt: skip
    assert from_json(json.loads((tmp_path / "x/page.json").read_text("utf8"))) == page
    assert (tmp_path / "x/table.md").read_text("utf8") == markdown(page)


def test_a_table_of_nothing_can_be_written_in_every_format():
    table = World().table([])
    page = document(table)
    assert markdown(page)
    assert latex(page, "tab:main")
    assert json.dumps(json_content(table), allow_nan=False)
    assert csv_text(table).startswith("kind,group,method")


def test_a_picture_is_linked_named_and_included():
    picture = Picture("Bars", "bars", "Two bars, the second <higher>.")
    page = Document("Data: shop.", "Figure 3", (picture,))
    assert "![Bars](bars.svg)" in markdown(page)
    assert r"\<higher>" in markdown(page)
    assert "(drawn in bars.svg and .png)" in terminal(page, colour=False)
    written = latex(page, "tab:ablations")
    assert r"\includegraphics[width=\textwidth]{bars.png}" in written
    assert r"\label{fig:ablations}" in written
    assert from_json(json.loads(json.dumps(to_json(page)))) == page
