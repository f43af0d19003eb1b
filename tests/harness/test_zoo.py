"""The zoo: order of the paper, names, misspelt names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.errors import InputError
from harness.zoo import METHODS, PAPER_ROWS, REFERENCES, Group, PaperRow, find, select

ROOT = Path(__file__).parents[2]


def test_paper_rows_are_those_of_the_published_table() -> None:
    published = yaml.safe_load((ROOT / "results/paper/published.yaml").read_text("utf8"))
    groups = published["table2"]["groups"]
    printed = [(group, name) for group, rows in groups.items() for name in rows]
    assert [(row.group.value, row.printed) for row in PAPER_ROWS] == printed


def test_methods_are_in_the_papers_order_with_its_year_and_group() -> None:
    rows = [row for row in PAPER_ROWS if row.built]
    labels = {row.label for row in rows}
    ours = [
        method for method in METHODS if method.label in labels
    ]  # a further method is nobody's row
    assert [PaperRow(method.label, method.year, method.group) for method in ours] == rows  # type: ignore[arg-type]
    assert {method.group for method in REFERENCES} == {Group.reference}


@pytest.mark.parametrize("name", ["mbstr", "MB-STR", "mb-str", "MBSTR"])
def test_a_method_is_found_by_key_or_label_in_any_case(name: str) -> None:
    assert find(name).key == "mbstr"


def test_selection_is_in_table_order_and_each_once() -> None:
    assert [method.key for method in select(["random", "M3BSR", "sasrec", "SASRec"])] == [
        "sasrec", "m3bsr", "random",
    ]  # fmt: skip


def test_a_misspelt_method_names_the_nearest_and_the_choices() -> None:
    with pytest.raises(InputError, match=r"no method 'sasrek'; did you mean 'sasrec'\?.*gru4rec"):
        find("sasrek")


def test_a_row_of_the_paper_that_is_not_built_says_so() -> None:
    missing = [row for row in PAPER_ROWS if not row.built]
    for row in missing:
        with pytest.raises(InputError, match=f"'{row.label}' of the paper is not built"):
            find(row.label)


def test_the_zoo_is_read_without_torch() -> None:
    code = "import sys, harness.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
