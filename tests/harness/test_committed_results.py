"""The demo's results that come with the repository have the shape that today's code writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.reproduce import main
from harness.zoo import METHODS, PAPER_ROWS

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "results" / "tables"
KEPT = ("table1", "table2", "table3", "table4", "figure3", "figure5", "claims")
"""At least these are kept; others may be."""


def shape(content: Any) -> Any:
    """JSON without its values: keys, and the shape of a list's first entry."""
    if isinstance(content, dict):
        return {key: shape(value) for key, value in content.items()}
    if isinstance(content, list):
        return [shape(content[0])] if content else []
    return None


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ .*$", text, re.MULTILINE)


@pytest.mark.parametrize("target", KEPT)
def test_what_is_kept_is_whole_and_labelled_demo(target: str) -> None:
    folder = TABLES / target / "demo"
    names = {path.name for path in folder.iterdir()}
    assert {"table.md", "table.csv", "table.tex", "table.json", "page.json"} <= names
    text = (folder / "table.md").read_text(encoding="utf8")
    assert text.startswith("DEMO DATA")
    assert "What is missing" not in text
    page = json.loads((folder / "page.json").read_text(encoding="utf8"))
    assert page["command"] == f"python -m harness.reproduce {target}"
    assert page["budget"] == "quick"


def test_table_2_has_every_row_with_three_runs() -> None:
    content = json.loads((TABLES / "table2/demo/table.json").read_text(encoding="utf8"))
    cells = content["cells"]
    assert list(dict.fromkeys(cell["method"] for cell in cells)) == [r.label for r in PAPER_ROWS]
    assert len(cells) == 17 * 2 * 4
    assert {cell["seeds"] for cell in cells} == {3}
    assert all(cell["verdict"] is None for cell in cells)  # made-up data judge no published number


def test_readmes_numbers_are_those_of_the_kept_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    sample = readme.split("<!-- output of: python -m harness.reproduce table2 -->")[1].split("```")[
        1
    ]
    content = json.loads((TABLES / "table2/demo/table.json").read_text(encoding="utf8"))
    for cell in content["cells"] + content["reference"]:
        assert f"{cell['mean']:.4f}" in sample, cell


def test_readmes_sentences_are_those_of_the_kept_table() -> None:
    """README breaks lines as a terminal does, and leaves parts out; what it shows is word for word."""

    def words(text: str) -> str:
        return " ".join(re.sub(r"^(- |#+ .*$)", "", text, flags=re.MULTILINE).split())

    readme = (ROOT / "README.md").read_text(encoding="utf8")
    sample = readme.split("<!-- output of: python -m harness.reproduce table2 -->")[1].split("```")[
        1
    ]
    shown = [line for line in sample.splitlines() if not line.startswith(("|", "[", "#"))]
    kept = words((TABLES / "table2/demo/table.md").read_text(encoding="utf8"))
    sentences = re.split(r"(?<=\.) (?=[A-Z(])", " ".join(" ".join(shown).split()))
    assert len(sentences) > 8
    assert [one for one in sentences if one not in kept] == []


def test_the_page_is_kept() -> None:
    page = (ROOT / "results" / "report.html").read_text(encoding="utf8")
    assert "DEMO" in page[:20_000]
    for method in METHODS:
        assert method.label in page


@pytest.mark.slow
def test_a_fresh_smoke_run_has_the_shape_of_what_is_kept(tmp_path: Path) -> None:
    places = ["--results", str(tmp_path / "results"), "--data-dir", str(tmp_path / "data")]
    assert main(["table2", "--budget", "smoke", "--methods", "sasrec,m3bsr", *places]) == 0
    fresh, kept = tmp_path / "results/tables/table2/demo", TABLES / "table2/demo"
    assert {p.name for p in fresh.iterdir()} == {p.name for p in kept.iterdir()}
    ours, theirs = (
        json.loads((folder / "table.json").read_text(encoding="utf8")) for folder in (fresh, kept)
    )
    assert shape(ours) == shape(theirs)
    assert [data["data_sha256"] for data in ours["data"]] == [
        data["data_sha256"] for data in theirs["data"]
    ]
    columns = [
        list(dict.fromkeys((cell["dataset"], cell["metric"]) for cell in content["cells"]))
        for content in (ours, theirs)
    ]
    assert columns[0] == columns[1]
    texts = [(folder / "table.md").read_text(encoding="utf8") for folder in (fresh, kept)]
    assert headings(texts[0]) == headings(texts[1])
    heads = [(folder / "table.csv").read_text().splitlines()[0] for folder in (fresh, kept)]
    assert heads[0] == heads[1]
