"""Tables of every format that people write, made up, read back with all their digits."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.audit import cells, latex
from harness.audit.grid import Scale
from harness.audit.read import read
from harness.errors import InputError


@pytest.fixture
def parse(tmp_path):
    """parse(name, text): the document of a file of this name and content."""

    def parsed(name, text, **options):
        path = tmp_path / name
        path.write_text(text, encoding="utf8")
        return read(path, **options)

    return parsed


def flat(document):
    """(label, data set) -> metric -> digits as printed, over all tables."""
    return {
        (row.label, row.dataset): {name: f"{value:f}" for name, value in row.values.items()}
        for table in document.tables
        for row in table.rows
    }


TWO = {
    ("SASRec", "Beauty"): {"HR@10": "0.1230", "NDCG@10": "0.0610"},
    ("SASRec", "Toys"): {"HR@10": "0.2340", "NDCG@10": "0.1200"},
    ("GRU4Rec", "Beauty"): {"HR@10": "0.1130", "NDCG@10": "0.0510"},
    ("GRU4Rec", "Toys"): {"HR@10": "0.2140", "NDCG@10": "0.1100"},
}
"""Two methods on two data sets: what most snippets below say."""


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1230", "0.1230"),
        (".123", "0.123"),
        ("**0.1230**", "0.1230"),
        ("<u>0.1230</u>", "0.1230"),
        ("<ins>0.1230</ins> †", "0.1230"),
        ("*0.1230*", "0.1230"),
        ("_0.1230_", "0.1230"),
        ("~~0.1230~~", "0.1230"),
        ("`0.1230`", "0.1230"),
        ("0.1230*", "0.1230"),
        ("0.1230**", "0.1230"),
        ("0.1230†‡", "0.1230"),
        ("0.1230<sup>1</sup>", "0.1230"),
        ("0.1230¹²", "0.1230"),
        ("0.1230[^2]", "0.1230"),
        ("0.1230a", "0.1230"),
        ("0.1230 ± 0.0004", "0.1230"),
        ("0.1230±.0004", "0.1230"),
        ("0.1230 &plusmn; 0.0004", "0.1230"),
        ("0.1230 +/- 0.0004", "0.1230"),
        ("0.1230 (0.0004)", "0.1230"),
        ("0.1230(4)", "0.1230"),
        ("(0.1230)", "0.1230"),
        ("≈ 0.1230", "0.1230"),
        ("12.30%", "12.30"),
        ("12.30 %", "12.30"),
        ("0,1230", "0.1230"),
        ("12,30", "12.30"),
        ("1,234", "1234"),
        ("1,234,567.5", "1234567.5"),
        ("1.2e-3", "0.0012"),
        ("−0.0012", "-0.0012"),
        ("+0.5", "0.5"),
    ],
)
def test_numbers(text, value):
    found = cells.number(text)
    assert found is not None
    assert f"{found.value:f}" == value
    assert found.percent is ("%" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "–",
        "n/a",
        "SASRec",
        "v1.5",
        "10th",
        "0.12/0.13",
        "0.12 0.13",
        "2018-01-02",
        "OOM",
        "1.2.3",
    ],
)
def test_not_numbers(text):
    assert cells.number(text) is None


def test_commas_are_decimal_points_between_semicolons():
    assert cells.number("12,345") == cells.Number(Decimal(12345))
    assert cells.number("12,345", decimal_comma=True) == cells.Number(Decimal("12.345"))
    assert cells.number("1.234,5", decimal_comma=True) == cells.Number(Decimal("1234.5"))


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "metric", "rest"),
    [
        ("HR@10", "HR@10", ""),
        ("hr@10", "HR@10", ""),
        ("H@5", "HR@5", ""),
        ("R@20", "HR@20", ""),
        ("Rec@20", "HR@20", ""),
        ("Recall@20", "HR@20", ""),
        ("Hit@1", "HR@1", ""),
        ("Hits @ 3", "HR@3", ""),
        ("Hit Rate@10", "HR@10", ""),
        ("Hit_Ratio_10", "HR@10", ""),
        ("HR (K=10)", "HR@10", ""),
        ("HR_10", "HR@10", ""),
        ("nDCG@10", "NDCG@10", ""),
        ("N@10", "NDCG@10", ""),
        ("NDCG 20", "NDCG@20", ""),
        ("N-DCG@20", "NDCG@20", ""),
        ("**NDCG@10** ↑", "NDCG@10", ""),
        ("Rec-Tmal HR@10", "HR@10", "Rec-Tmal"),
        ("rec_tmall_HR@10", "HR@10", "rec_tmall"),
        ("HR@10 (Beauty)", "HR@10", "Beauty"),
        ("HR@10_Beauty", "HR@10", "Beauty"),
        ("ML-1M: NDCG@10", "NDCG@10", "ML-1M"),
        ("@5 HR", "HR@5", ""),
        ("Top-10 NDCG", "NDCG@10", ""),
        ("HR@10 (%)", "HR@10", ""),
    ],
)
def test_headers(text, metric, rest):
    found = cells.metric_in(text)
    assert found is not None
    assert (str(found.metric), found.rest) == (metric, rest)
    assert found.percent is ("%" in text)


@pytest.mark.parametrize(
    "text",
    ["", "Method", "MRR@10", "Precision@5", "MAP@10", "AUC", "HR", "Rec-Tmal", "Recall", "ML-10M",
     "HR@10 sd", "NDCG@10 improv.", "HR@0", "tHR@10", "HR@10K", "CHR@10"],
)  # fmt: skip
def test_not_headers(text):
    assert cells.metric_in(text) is None


# --- CSV --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_csv_with_the_data_set_in_the_header(parse, sign):
    text = """method,Beauty HR@10,Beauty NDCG@10,Toys HR@10,Toys NDCG@10
SASRec,0.1230,0.0610,0.2340,0.1200
GRU4Rec,0.1130,0.0510,0.2140,0.1100
"""
    assert flat(parse("a.csv", text.replace(",", sign))) == TWO


def test_csv_with_two_header_lines(parse):
    text = """,Beauty,,Toys,
Method,HR@10,NDCG@10,HR@10,NDCG@10
SASRec (2018),0.1230,0.0610,0.2340,0.1200
GRU4Rec (2015),0.1130,0.0510,0.2140,0.1100
"""
    document = parse("a.csv", text)
    assert flat(document) == TWO
    assert [row.year for row in document.tables[0].rows] == [2018, 2018, 2015, 2015]


def test_csv_with_metrics_over_data_sets(parse):
    text = """Method,HR@10,,NDCG@10,
,Beauty,Toys,Beauty,Toys
SASRec,0.1230,0.2340,0.0610,0.1200
GRU4Rec,0.1130,0.2140,0.0510,0.1100
"""
    assert flat(parse("a.csv", text)) == TWO


def test_csv_with_three_header_lines(parse):
    text = """Model,Beauty,,,
,HR,,NDCG,
,@5,@10,@5,@10
SASRec,0.12,0.23,0.06,0.12
"""
    values = {"HR@5": "0.12", "HR@10": "0.23", "NDCG@5": "0.06", "NDCG@10": "0.12"}
    assert flat(parse("a.csv", text)) == {("SASRec", "Beauty"): values}


def test_csv_with_columns_of_data_set_and_method(parse):
    text = """Dataset,Model,HR@10,NDCG@10,Params
Beauty,SASRec,0.1230,0.0610,1.5
,GRU4Rec,0.1130,0.0510,2.5
Toys,SASRec,0.2340,0.1200,1.5
,GRU4Rec,0.2140,0.1100,2.5
"""
    assert flat(parse("a.csv", text)) == TWO


def test_csv_with_methods_as_columns(parse):
    text = """Dataset,Metric,SASRec,GRU4Rec,Improv.
Beauty,HR@10,0.1230,0.1130,8.8%
,NDCG@10,0.0610,0.0510,19.6%
Toys,HR@10,0.2340,0.2140,9.3%
,NDCG@10,0.1200,0.1100,9.1%
"""
    document = parse("a.csv", text)
    assert flat(document) == TWO
    assert document.tables[0].notes == ("not a method: row 'Improv.'",)


def test_csv_with_a_number_a_line(parse):
    text = """dataset,method,metric,value,sd
Beauty,SASRec,HR@10,0.1230,0.01
Beauty,SASRec,NDCG@10,0.0610,0.01
Toys,SASRec,HR@10,0.2340,0.01
Toys,SASRec,NDCG@10,0.1200,0.01
Beauty,GRU4Rec,HR@10,0.1130,0.01
Beauty,GRU4Rec,NDCG@10,0.0510,0.01
Toys,GRU4Rec,HR@10,0.2140,0.01
Toys,GRU4Rec,NDCG@10,0.1100,0.01
Toys,GRU4Rec,MRR,0.1000,0.01
"""
    document = parse("a.csv", text)
    assert flat(document) == TWO
    assert document.tables[0].notes == ("not judged: MRR",)


def test_csv_with_a_title_remarks_and_blank_lines(parse):
    text = """\ufeff# made up
"Table 7: HR@10 and NDCG@10, on Beauty"

Method,HR@10,NDCG@10,MRR@10
"SASRec [1, 2]",0.1230,"0.0610",0.05

"""
    document = parse("a.csv", text)
    assert flat(document) == {("SASRec", ""): {"HR@10": "0.1230", "NDCG@10": "0.0610"}}
    assert document.tables[0].notes == ("not judged: column MRR@10",)


def test_csv_with_decimal_commas(parse):
    text = "Method;HR@10;NDCG@10\nSASRec;0,123;0,061\nGRU4Rec;12,345;6,2\n"
    rows = parse("a.csv", text, scale=Scale.fraction).tables[0].rows
    assert [str(value) for row in rows for value in row.values.values()] == [
        "0.123", "0.061", "12.345", "6.2",
    ]  # fmt: skip


def test_csv_without_names_numbers_its_rows(parse):
    text = "HR@10,NDCG@10\n0.1,0.05\n0.2,0.1\n"
    assert [label for label, _ in flat(parse("a.csv", text))] == ["row 1", "row 2"]


def test_two_columns_of_one_name_are_two_data_sets(parse):
    text = "Method,HR@10,NDCG@10,HR@10,NDCG@10\nSASRec,0.1,0.05,0.2,0.1\n"
    assert list(flat(parse("a.csv", text))) == [("SASRec", ""), ("SASRec", "(2)")]


def test_a_data_set_named_once_holds_until_the_next(parse):
    text = """Method,Beauty HR@10,NDCG@10,Toys HR@10,NDCG@10
SASRec,0.1230,0.0610,0.2340,0.1200
GRU4Rec,0.1130,0.0510,0.2140,0.1100
"""
    assert flat(parse("a.csv", text)) == TWO


def test_headings_between_rows_are_groups(parse):
    text = """Method,HR@10,NDCG@10
Traditional,,
SASRec,0.1230,0.0610
Multi-modal,,
MMMLP,0.1330,0.0710
"""
    [table] = parse("a.csv", text).tables
    assert [(row.label, row.group) for row in table.rows] == [
        ("SASRec", "Traditional"), ("MMMLP", "Multi-modal"),
    ]  # fmt: skip


def test_headings_between_rows_are_data_sets_where_methods_recur(parse):
    text = """Method,HR@10,NDCG@10
Beauty,,
SASRec,0.1230,0.0610
GRU4Rec,0.1130,0.0510
Toys,,
SASRec,0.2340,0.1200
GRU4Rec,0.2140,0.1100
"""
    assert flat(parse("a.csv", text)) == TWO


def test_blocks_with_headers_of_their_own(parse):
    text = """Beauty,,
Method,HR@10,NDCG@10
SASRec,0.1230,0.0610
GRU4Rec,0.1130,0.0510
Toys,,
Method,HR@10,NDCG@10
SASRec,0.2340,0.1200
GRU4Rec,0.2140,0.1100
"""
    assert flat(parse("a.csv", text)) == TWO


def test_missing_and_unreadable_cells_are_left_out(parse):
    text = "Method,HR@10,NDCG@10\nSASRec,0.1,-\nGRU4Rec,good,0.05\nEBM,OOM,OOM\n"
    [table] = parse("a.csv", text).tables
    assert [(row.label, list(row.values)) for row in table.rows] == [
        ("SASRec", ["HR@10"]), ("GRU4Rec", ["NDCG@10"]),
    ]  # fmt: skip
    assert table.notes == ("not a number: 'good' (GRU4Rec, HR@10)",)


def test_latin_1_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("Méthode,HR@10\nSASRec,0.1 ± 0.2\n".encode("latin-1"))
    assert flat(read(path)) == {("SASRec", ""): {"HR@10": "0.1"}}


# --- percent ----------------------------------------------------------------------------------


def test_numbers_above_one_are_percent(parse):
    [table] = parse("a.csv", "Method,HR@10,NDCG@10\nA,12.30,6.1\nB,0.90,0.40\n").tables
    assert table.percent
    assert [f"{value:f}" for row in table.rows for value in row.values.values()] == [
        "0.1230", "0.061", "0.0090", "0.0040",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["Method,HR@10 (%)\nA,0.90\n", "Method,HR@10\nA,0.90%\n"])
def test_a_percent_sign_is_percent(parse, text):
    assert flat(parse("a.csv", text)) == {("A", ""): {"HR@10": "0.0090"}}


def test_the_scale_can_be_said(parse):
    text = "Method,HR@10\nA,1.20\n"
    assert not parse("a.csv", text, scale=Scale.fraction).tables[0].percent
    assert flat(parse("b.csv", "Method,HR@10\nA,0.5\n", scale=Scale.percent)) == {
        ("A", ""): {"HR@10": "0.005"}
    }


def test_a_few_numbers_above_one_leave_a_doubt(parse):
    [table] = parse("a.csv", "Method,HR@10,NDCG@10\nA,0.61,0.34\nB,6.1,0.34\n").tables
    assert (table.percent, table.above_one) == (True, 1)


# --- what is no name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ",Params,HR@10,NDCG@10\nSASRec,1.2M,0.0605,0.0318\n",
        "Model,Precision@10,HR@10,NDCG@10\nSASRec,0.01,0.0605,0.0318\n",
        "Params,Time,Model,HR@10,NDCG@10\n3M,0.5,SASRec,0.0605,0.0318\n",
    ],
)
def test_a_column_of_sizes_or_other_metrics_names_no_row(parse, text):
    [row] = parse("a.csv", text).tables[0].rows
    assert (row.label, row.dataset, row.group) == ("SASRec", "", "")


def test_another_metric_before_the_judged_ones_is_said_to_be_left_out(parse):
    [table] = parse("a.csv", "Model,Precision@10,HR@10\nSASRec,0.01,0.0605\n").tables
    assert table.notes == ("not judged: column Precision@10",)


def test_mean_in_a_header_is_no_data_set(parse):
    text = "model,dataset,hr@10_mean,hr@10_std,ndcg@10_mean\nSASRec,toys,0.0605,0.0011,0.0318\n"
    assert flat(parse("a.csv", text)) == {
        ("SASRec", "toys"): {"HR@10": "0.0605", "NDCG@10": "0.0318"}
    }


def test_where_a_label_recurs_every_heading_is_a_data_set(parse):
    text = r"""\begin{table}\caption{Results.}\begin{tabular}{lcc}
    Model & HR@10 & NDCG@10 \\
    \multicolumn{3}{c}{Beauty} \\ SASRec & .0605 & .0318 \\ Ours & .0741 & .0425 \\
    \multicolumn{3}{c}{Toys} \\ SASRec & .0350 & .0192 \\
    \end{tabular}\end{table}"""
    document = parse("a.tex", text)
    assert list(flat(document)) == [("SASRec", "Beauty"), ("Ours", "Beauty"), ("SASRec", "Toys")]
    assert document.tables[0].name == "Results"


# --- Markdown ---------------------------------------------------------------------------------


def test_markdown_with_marks(parse):
    text = """# Results

Some text | with a bar.

## Table 2: on two sets

| Method | Beauty HR@10 | Beauty NDCG@10 | Toys HR@10 | Toys NDCG@10 |
|:-------|-------------:|----|----|---:|
| **SASRec**† [12] | **0.1230** ± 0.004 | <u>0.0610</u>* | ~~0.2340~~ (0.01) | 0.1200<sup>1</sup> |
| GRU4Rec\\* | 0.1130 | 0.0510 | 0.2140 | 0.1100 |

More text.
"""
    document = parse("a.md", text)
    assert flat(document) == TWO
    assert document.tables[0].name == "Table 2: on two sets"


def test_markdown_with_two_header_lines(parse):
    text = """
|         | Beauty |         | Toys  |         |
|---------|--------|---------|-------|---------|
| Method  | HR@10  | NDCG@10 | HR@10 | NDCG@10 |
| *Traditional* | | | | |
| SASRec  | 0.1230 | 0.0610  | 0.2340 | 0.1200 |
| GRU4Rec | 0.1130 | 0.0510  | 0.2140 | 0.1100 |
"""
    assert flat(parse("a.md", text)) == TWO


def test_markdown_without_outer_bars_and_two_tables(parse):
    text = """Method | HR@10
--- | ---
SASRec | 0.1230

Method | NDCG@10
--- | ---
SASRec | 0.0610
"""
    document = parse("a.markdown", text)
    assert [table.name for table in document.tables] == ["table 1", "table 2"]
    assert [list(row.values) for table in document.tables for row in table.rows] == [
        ["HR@10"], ["NDCG@10"],
    ]  # fmt: skip


# --- LaTeX ------------------------------------------------------------------------------------

BOOKTABS = r"""
\documentclass{article}
\newcommand{\best}[1]{\textbf{#1}} % \begin{tabular} in a remark
\begin{table*}[t]
\caption{Results on \emph{two} sets, in 50\% of cases.\label{tab:a}}
\centering
\resizebox{\textwidth}{!}{
\begin{tabular}{@{}l|cc|c@{\hspace{2pt}}c@{}}
\toprule
\multirow{2}{*}{Method} & \multicolumn{2}{c|}{\textbf{Beauty}} & \multicolumn{2}{c}{Toys} \\
\cmidrule(lr){2-3} \cmidrule(lr){4-5}
 & HR@10 & NDCG@10 & HR@10 $\uparrow$ & NDCG@10 \\ \midrule
\multicolumn{5}{l}{\textit{Traditional}} \\ \hline
SASRec~\cite{kang2018} & \textbf{0.1230} & \underline{0.0610}$^{\dagger}$
 & 0.2340 $\pm$ 0.0040 & $0.1200_{\pm 0.01}$ \\[2pt]
\rowcolor{gray!20} GRU4Rec\footnote{see 0.5 & more} & \best{0.1130} & {\bf .0510}
 & \cellcolor[gray]{0.9}0.2140$^*$ & 0.1100\textsuperscript{2} \\
% EBM & 0.9 & 0.9 & 0.9 & 0.9 \\
\bottomrule
\end{tabular}}
\end{table*}
"""


def test_latex_with_booktabs(parse):
    document = parse("a.tex", BOOKTABS)
    two = TWO | {("GRU4Rec", "Beauty"): {"HR@10": "0.1130", "NDCG@10": "0.0510"}}
    assert flat(document) == two
    [table] = document.tables
    assert table.name == "Results on two sets, in 50% of cases"
    assert {row.group for row in table.rows} == {"Traditional"}


def test_latex_tabularx_and_nested_cells(parse):
    text = r"""
\begin{tabularx}{\linewidth}{Xrr}
\textsc{Model} & \begin{tabular}[c]{@{}c@{}}HR\\@10\end{tabular} & \makecell{NDCG\\@10} \\
\hline
M$^3$BSR (ours) & \textcolor{red}{0.1230} & \num{0.0610} \\
\end{tabularx}
"""
    expected = {("M³BSR (ours)", ""): {"HR@10": "0.1230", "NDCG@10": "0.0610"}}
    assert flat(parse("a.tex", text)) == expected


def test_latex_rows_without_an_environment(parse):
    text = r"Method & HR@10 & NDCG@10 \\ \hline \ours & 0.1230 & 0.0610 \\"
    assert flat(parse("a.ltx", text)) == {("ours", ""): {"HR@10": "0.1230", "NDCG@10": "0.0610"}}


def test_latex_longtable_with_repeated_headers_and_methods_as_columns(parse):
    text = r"""
\begin{longtable}{llcc}
\caption{Long}\\
Dataset & Metric & SASRec & GRU4Rec \\ \endfirsthead
\multirow{2}{*}{Beauty} & HR@10 & 0.1230 & 0.1130 \\
& NDCG@10 & 0.0610 & 0.0510 \\
\multirow{2}{*}{Toys} & HR@10 & 0.2340 & 0.2140 \\
& NDCG@10 & 0.1200 & 0.1100 \tabularnewline
\end{longtable}
"""
    assert flat(parse("a.tex", text)) == TWO


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\textbf{\underline{0.12}}", "0.12"),
        (r"0.12\%", "0.12%"),
        (r"a\_b \& c", "a_b & c"),
        (r"\rotatebox[origin=c]{90}{up}", "up"),
        (r"\href{https://a.b}{link}", "link"),
        (r"$\mathbf{0.12}^{*}_{(3)}$", "0.12_(3)"),
        (r"HR$_{10}$", "HR_10"),
        (r"{\color{red}\bfseries 0.12}", "0.12"),
        (r"0.12\tnote{a}", "0.12"),
        (r"caf\'e", "cafe"),
        (r"\unclosed{0.12", "0.12"),
    ],
)
def test_latex_text(source, text):
    assert latex.plain(source).strip() == text


# --- YAML and JSON ----------------------------------------------------------------------------


def test_yaml_keeps_trailing_zeros(parse):
    text = "SASRec: {HR@10: 0.1230, NDCG@10: 0.0610}\nGRU4Rec: {HR@10: 0.1130, NDCG@10: null}\n"
    assert flat(parse("a.yaml", text)) == {
        ("SASRec", ""): {"HR@10": "0.1230", "NDCG@10": "0.0610"},
        ("GRU4Rec", ""): {"HR@10": "0.1130"},
    }


YAML_TWO = """
Beauty:
  SASRec: {HR@10: 0.1230, NDCG@10: 0.0610}
  GRU4Rec: {HR@10: 0.1130, NDCG@10: 0.0510}
  EBM: {HR@10: 0.9, NDCG@10: 0.5}
Toys:
  SASRec: {HR@10: 0.2340, NDCG@10: 0.1200}
  GRU4Rec: {HR@10: 0.2140, NDCG@10: 0.1100}
"""
YAML_TURNED = """
SASRec (2018): {Beauty: [0.1230, 0.0610], Toys: [0.2340, 0.1200]}
GRU4Rec (2015): {Beauty: [0.1130, 0.0510], Toys: [0.2140, 0.1100]}
EBM: {Beauty: [0.9, 0.5]}
metrics: [HR@10, NDCG@10]
"""


@pytest.mark.parametrize("text", [YAML_TWO, YAML_TURNED])
def test_yaml_of_methods_and_data_sets_in_either_order(parse, text):
    assert flat(parse("a.yml", text)) == TWO | {
        ("EBM", "Beauty"): {"HR@10": "0.9", "NDCG@10": "0.5"}
    }


def test_yaml_of_records(parse):
    text = """
- {model: SASRec, dataset: Beauty, HR@10: 0.1230, NDCG@10: 0.0610}
- {model: SASRec, dataset: Toys, HR@10: 0.2340, NDCG@10: 0.1200}
- {model: GRU4Rec, dataset: Beauty, HR@10: 0.1130, NDCG@10: 0.0510}
- {model: GRU4Rec, dataset: Toys, HR@10: 0.2140, NDCG@10: 0.1100}
"""
    assert flat(parse("a.yaml", text)) == TWO


def test_yaml_of_the_papers_shape(parse):
    text = """
table1: {shop: [10, 20, 60, 4.0, 2.0]}
table2:
  metrics: [HR@10, NDCG@10]
  groups: {Old: {SASRec (2018): {shop: [0.1230, 0.0610]}}}
table3: {metrics: [HR@10], rows: {SASRec: [0.5]}}
"""
    document = parse("a.yaml", text)
    assert [table.name for table in document.tables] == ["Table 2", "Table 3"]
    row = document.tables[0].rows[0]
    assert (row.label, row.year, row.group, row.dataset) == ("SASRec", 2018, "Old", "shop")
    assert document.sizes["shop"].adds_up


def test_json_tables_of_this_project(parse):
    text = """{"target": "table2", "cells": [
 {"group": "Old", "method": "SASRec", "dataset": "Beauty", "metric": "HR@10", "mean": 0.1230, "sd": null},
 {"group": "Old", "method": "SASRec", "dataset": "Beauty", "metric": "NDCG@10", "mean": 0.0610, "sd": 1}],
 "reference": [
 {"group": "Ref", "method": "Random", "dataset": "Beauty", "metric": "HR@10", "mean": 0.1, "sd": null}],
 "budget": [{"method": "SASRec", "dataset": "Beauty", "trials": 1, "seconds": 2.0}]}"""
    assert flat(parse("table.json", text)) == {
        ("SASRec", "Beauty"): {"HR@10": "0.1230", "NDCG@10": "0.0610"},
        ("Random", "Beauty"): {"HR@10": "0.1"},
    }


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "HR@10"),
        ("a.csv", "Method,MRR\nSASRec,0.5\n", "HR@10"),
        ("a.csv", "Method,HR@10\n", "HR@10"),
        ("a.md", "no table here", "HR@10"),
        ("a.tex", r"\begin{tabular}{l} nothing \end{tabular}", "HR@10"),
        ("a.tex", r"\begin{tabular}{ll} open & HR@10", "HR@10"),
        ("a.yaml", "a: [1, 2", "line 1"),
        ("a.yaml", "just text", "HR@10"),
        ("a.json", "{", "line 1"),
        ("a.xlsx", "x", "--format"),
        ("table", "x", "--format"),
        ("a.csv", "\0\0", "csv"),
        ("a.yaml", "\0\0", "csv"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(parse, name, text, words):
    with pytest.raises(InputError) as error:
        parse(name, text)
    assert words in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "results.csv").write_text("x", encoding="utf8")
    with pytest.raises(InputError, match=r"did you mean '.*results\.csv'"):
        read(tmp_path / "result.csv")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"no table 'nowhere/a\.csv'"):
        read(tmp_path.joinpath("nowhere/a.csv").relative_to(tmp_path))


def test_the_format_can_be_said(parse):
    text = "Method,HR@10\nSASRec,0.1230\n"
    assert flat(parse("a.txt", text, kind="csv")) == {("SASRec", ""): {"HR@10": "0.1230"}}
    with pytest.raises(InputError, match="did you mean 'csv'"):
        parse("b.txt", text, kind="cvs")


PIECES = r"""HR@10 NDCG@10 HR NDCG @5 Method Dataset Metric Value SASRec (2018) Beauty 0.1230 12.3% .5
- | || |---|---| & \\ \multicolumn{2}{c}{a} \multirow{2}{*}{b} \textbf{0.1} \begin{tabular}{lcc}
\end{tabular} \caption{c} \hline { } [ ] $ ^ _ ± , ; : # ** ~~ <u> % \ {HR@10: 0.1} a metrics:"""
SOME = st.sampled_from([*PIECES.split(), "\n", " ", ",", " & "])


@settings(max_examples=300, deadline=None, derandomize=True)
@example(kind="csv", pieces=["HR@10\nHR@10HR@10|"], between="")
@given(
    kind=st.sampled_from(["yaml", "json", "csv", "markdown", "latex"]),
    pieces=st.lists(SOME, max_size=40),
    between=st.sampled_from(["", " ", ",", " | ", " & "]),
)
def test_whatever_is_written_is_read_or_refused(tmp_path_factory, kind, pieces, between):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(between.join(pieces), encoding="utf8")
    try:
        document = read(path, kind)
        said = document.source
        assert document.tables or document.sizes
    except InputError as error:
        said = str(error)
    assert said.count("\n") == 0
