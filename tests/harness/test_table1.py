"""Table 1: our counts beside the paper's, whose own sums fail."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from harness.data.dataset import Dataset
from harness.data.demo import prepare_demo
from harness.data.synthetic import rec_tmall_world
from harness.experiments import table1
from harness.report.text import markdown
from harness.reproduce import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare_demo(root, "demo_rec_tmall", replace(rec_tmall_world(), users=60))
    prepare_demo(root, "tiny", replace(rec_tmall_world(), users=50))
    return root


def test_each_data_set_stands_above_its_twin_and_the_paper_is_complete(data):
    found = table1.rows([Dataset.open(data, "tiny"), Dataset.open(data, "demo_rec_tmall")])
    assert [(row.dataset, row.ours) for row in found] == [
        ("tiny", True), ("demo_rec_tmall", True), ("rec_tmall", False), ("kuaishou", False),
    ]  # fmt: skip


def test_ours_are_counted_from_the_events(data):
    dataset = Dataset.open(data, "tiny")
    ours = table1.rows([dataset])[0]
    behaviour = np.load(data / "tiny" / "event_behaviour.npy")
    assert (ours.users, ours.items, ours.interactions) == (
        dataset.users,
        dataset.items,
        len(behaviour),
    )
    assert ours.favors == pytest.approx((behaviour == 2).sum() / ours.users)
    assert ours.clicks == pytest.approx((behaviour == 1).sum() / ours.users)
    assert ours.adds_up
    assert ours.summed == pytest.approx(ours.divided)


def test_the_page_is_labelled_and_says_where_the_paper_does_not_add_up(data):
    page = markdown(table1.render(table1.rows([Dataset.open(data, "demo_rec_tmall")])))
    first, *rest = page.splitlines()
    assert first.startswith("DEMO DATA: demo_rec_tmall")
    assert "not the paper's" in first
    text = "\n".join(rest)
    assert "4.16 + 1.73 = 5.89 interactions a user, but 328,387 / 72,051 = 4.56" in text
    assert "255.02 + 40.96 = 295.98 interactions a user, but 5,852,725 / 22,793 = 256.78" in text
    assert "| Rec-Tmal (paper) | 72,051" in text


def test_real_data_are_not_called_demo(data):
    found = table1.rows([Dataset.open(data, "tiny")])
    real = [replace(row, demo=False, dataset="shop") if row.ours else row for row in found]
    assert table1.opening(real) == "Data: shop."
    assert table1.opening([*real, found[0]]).startswith(
        "DEMO DATA (tiny): shop, tiny - of these, tiny are small made-up worlds"
    )


def test_the_command_line_leaves_its_files(data, tmp_path, capsys):
    results = tmp_path / "results"
    words = ["table1", "--data", "tiny", "--data-dir", str(data), "--results", str(results)]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("DEMO DATA: tiny")
    folder = results / "tables" / "table1" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        "table.md", "table.csv", "table.tex", "table.json", "page.json",
    }  # fmt: skip
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    assert content["target"] == "table1"
    assert [row["summed"] for row in content["rows"] if row["source"] == "paper"] == [5.89, 295.98]
    assert [entry["name"] for entry in content["data"]] == ["tiny"]
    sources = [(row["source"], row["adds_up"]) for row in content["rows"]]
    assert sources == [("ours", True), ("paper", False), ("paper", False)]
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text(encoding="utf8"))))
    assert [row["interactions"] for row in rows[1:]] == ["328387", "5852725"]
    tex = (folder / "table.tex").read_text(encoding="utf8")
    assert r"\begin{tabular}" in tex
    assert r"\label{tab:data}" in tex


def test_a_plan_has_nothing_to_run(data, tmp_path, capsys):
    results = tmp_path / "results"
    words = ["table1", "--data", "tiny", "--data-dir", str(data), "--results", str(results)]
    assert main([*words, "--plan"]) == 0
    assert "0 cells wanted" in capsys.readouterr().out
    assert not results.exists()
