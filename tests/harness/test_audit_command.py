"""`python -m harness.audit`: what it prints, its exit codes, and what it must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.audit.__main__ import main
from harness.audit.published import DEFAULT
from harness.audit.read import read
from harness.report.document import Band, Document, Grid, Line, Notes, Span, entry
from harness.report.latex import latex
from harness.report.text import markdown

FINE = "Method,HR@10,NDCG@10,HR@20,NDCG@20\nA,0.1777,0.0876,0.3735,0.1368\n"
BAD = FINE + "B (2020),0.2000,0.3000,0.3735,0.1368\n"


@pytest.fixture
def table(tmp_path):
    def written(text, name="a.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf8")
        return str(path)

    return written


def test_the_papers_own_tables(capsys):
    assert main([]) == 1
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.endswith("impossible")]
    assert len(rows) == 33
    one_line = " ".join(out.split())
    for said in (
        "33 of 34 rows are impossible",
        "Smallest repair 14.8 to 201.5 units of the last digit, median 26.8",
        "Possible: BERT4Rec on Rec-Tmal (0.49)",
        "Table 3: all 4 rows are possible",
        "M3BSR on Kuaishou prints NDCG@20 = 0.1612 < NDCG@10 = 0.1630",
        "GRU4Rec on Kuaishou prints NDCG@10 = 0.0021 where HR@10 = 0.0853 needs at least 0.0247",
        "GRU4Rec on Kuaishou (HR@10 = 0.0853 and HR@20 = 0.1360); SASRec on Kuaishou (HR@20 = 0.1490)",
        "BERT4Rec on Kuaishou (HR@20 = 0.1958)",
        "4.16 + 1.73 = 5.89 a user, but 328,387 / 72,051 = 4.56",
        "255.02 + 40.96 = 295.98 a user, but 5,852,725 / 22,793 = 256.78",
        "It is arithmetic, no accusation",
    ):
        assert said in one_line


def test_a_clean_table_is_exit_0(table, capsys):
    assert main([table(FINE)]) == 0
    out = capsys.readouterr().out
    assert "the row is possible" in out
    assert "impossible" not in out


def test_an_impossible_row_is_exit_1_and_named(table, capsys):
    assert main([table(BAD)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" impossible")] == ["B"]
    assert [line.split()[0] for line in lines if line.endswith(" possible")] == ["A"]
    assert any("B prints NDCG@10 = 0.3000 with HR@10 = 0.2000" in line for line in lines)


def test_a_wrong_sum_alone_is_exit_1(table, capsys):
    text = "table1: {shop: [10, 20, 61, 4.00, 2.00]}\ntable2: {metrics: [HR@10], groups: {}}\n"
    assert main([table(text, "a.yaml")]) == 1
    out = capsys.readouterr().out
    assert "Table 1, shop: impossible" in " ".join(out.split())
    assert main([table(text.replace("61", "60"), "b.yaml")]) == 0


def test_json_has_every_bound(table, capsys):
    assert main([table(BAD), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["rows"], content["impossible"]) == (2, 1)
    [fine, bad] = content["tables"][0]["rows"]
    assert (fine["impossible"], fine["struck"]) == (False, [])
    assert (bad["row"], bad["year"], bad["impossible"]) == ("B", 2020, True)
    assert bad["values"] == ["0.2000", "0.3000", "0.3735", "0.1368"]
    assert len(bad["bounds"]) == 4
    assert bad["bounds"][0]["high"] == pytest.approx(0.2)
    assert bad["bounds"][0]["margin"] == pytest.approx(-0.1)
    assert bad["bounds"][0]["broken"] is True


def test_candidates_set_the_chance_level(table, capsys):
    path = table("Method,HR@10\nA,0.0500\n")
    assert main([path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "below chance" in said
    assert "where a whole catalogue was ranked, add --full" in said
    for words in (["--candidates", "1000"], ["--full"]):
        assert main([path, *words]) == 0
        assert "below chance" not in capsys.readouterr().out


def test_percent_is_said(table, capsys):
    path = table("Method,HR@10,NDCG@10\nA,17.77,8.76\n")
    assert main([path]) == 0
    assert "read as percent" in capsys.readouterr().out
    assert main([path, "--scale", "fraction"]) == 1


def test_a_doubtful_percent_is_said_to_be_one(table, capsys):
    assert main([table("Method,HR@10,NDCG@10\nA,0.61,0.34\nB,6.1,0.34\n")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "as 1 of 4 are above 1" in said
    assert "use --scale fraction" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.csv"], "no table 'nowhere.csv'"),
        (["{table}", "--format", "cvs"], "no table format 'cvs'; did you mean 'csv'?"),
        (["{table}", "--scale", "percents"], "no scale 'percents'; did you mean 'percent'?"),
        (["{table}", "--candidates", "many"], "--candidates many: a whole number"),
        (["{table}", "--candidates", "1"], "--candidates 1: a whole number"),
        (["{table}", "--candidates", "9", "--full"], "exclude each other"),
        (["{table}", "more"], "more; see python -m harness.audit --help"),
        (["{table}", "--ful"], "--ful"),
        (["--format"], "--format"),
    ],
)
def test_mistakes_are_exit_2_and_one_line(table, capsys, words, says):
    path = table(FINE)
    assert main([word.replace("{table}", path) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_help_is_exit_0(capsys):
    assert main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out


def test_it_imports_no_torch_and_no_pandas():
    code = (
        "import sys; from harness.audit.__main__ import main; code = main(['--json']);"
        "print(code, sorted({'torch', 'pandas', 'hydra'} & set(sys.modules)), file=sys.stderr)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "1 []"
    assert json.loads(done.stdout)["source"] == "results/paper/published.yaml"


def test_the_default_is_the_papers_file():
    assert DEFAULT.is_file()


def test_this_projects_own_tables_can_be_audited(tmp_path):
    """Markdown and LaTeX of harness.report: spreads, marks, struck numbers, two data sets."""

    def cell(text, **style):
        return (Span(text, **style), Span(" ±0.0100"), Span("†"))

    grid = Grid(
        title="Means",
        corner="Method",
        bands=(Band("Toys", "toys", ("HR@10", "NDCG@10")), Band("Beauty", "b", ("HR@10", "NDCG@10"))),
        lines=(
            Line("Traditional methods"),
            Line("SASRec", (cell("0.2340", bold=True), cell("0.1200", underline=True),
                            cell("0.1230", struck=True), entry("-"))),
        ),
        below=("† best",),
    )  # fmt: skip
    page = Document("DEMO DATA", "Table 2", (grid, Notes("Notes", ("HR@10 is a | share",))))
    (tmp_path / "table.md").write_text(markdown(page), encoding="utf8")
    (tmp_path / "table.tex").write_text(latex(page, "tab:main"), encoding="utf8")
    for name, toys, beauty in (("table.md", "toys", "b"), ("table.tex", "Toys", "Beauty")):
        [found] = read(tmp_path / name).tables
        values = {row.dataset: {k: str(v) for k, v in row.values.items()} for row in found.rows}
        assert values == {
            toys: {"HR@10": "0.2340", "NDCG@10": "0.1200"},
            beauty: {"HR@10": "0.1230"},
        }
        assert {row.group for row in found.rows} == {"Traditional methods"}
