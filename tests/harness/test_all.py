"""`reproduce all`: every artefact of section 5 from one plan, each cell once."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.compose import Budget, compose_cell
from harness.config import cell_key
from harness.experiments import all as everything
from harness.experiments import artefact
from harness.experiments.common import Request
from harness.reproduce import main
from harness.run import Places
from harness.zoo import find


def request(data: Path, results: Path, budget: Budget = Budget.smoke) -> Request:
    places = Places(data, results)
    methods = everything.choose_methods(None)
    command = "python -m harness.reproduce all --data tiny"
    return Request("all", "tiny", ("tiny",), budget, 1, methods, (), places, command)


def test_a_cell_that_two_artefacts_need_is_planned_once(data: Path, tmp_path: Path) -> None:
    asked = request(data, tmp_path)
    keys = [cell_key(cell) for cell in everything.cells(asked)]
    assert len(set(keys)) == len(keys)
    parts = {
        part.target: {cell_key(cell) for cell in artefact(part.target).cells(part)}
        for part in everything.parts(asked)
    }
    assert set(keys) == set().union(*parts.values())
    assert parts["table3"] < parts["table2"]
    assert parts["claims"] == parts["table2"] | parts["figure3"]
    assert len(parts["figure3"] & parts["table2"]) == 1
    assert parts["figure4"] & parts["table2"]
    assert not parts["table4"] & parts["table2"]
    assert len(keys) < sum(map(len, parts.values()))


def test_a_composed_cell_is_the_callers_own() -> None:
    first = compose_cell(find("sasrec"), "tiny", Budget.smoke)
    key = cell_key(first)
    first.train.epochs = 77
    second = compose_cell(find("sasrec"), "tiny", Budget.smoke)
    assert cell_key(second) == key
    assert second.train.epochs != 77


def test_tuning_comes_first_where_its_choice_decides(data: Path, tmp_path: Path) -> None:
    (first,) = everything.before(request(data, tmp_path, Budget.paper))
    assert first.target == "tuning"
    assert first.command == "python -m harness.reproduce tuning --data tiny"
    assert everything.before(request(data, tmp_path, Budget.quick)) == []


@pytest.mark.slow
def test_everything_from_one_command(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["all", *words, "--budget", "smoke"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == list(everything.PARTS)
    assert all("written to " in line for line in said)
    for target in everything.PARTS:
        page = tmp_path / "results" / "tables" / target / "tiny" / "table.md"
        text = page.read_text(encoding="utf8")
        assert text.startswith("DEMO DATA")
        assert "What is missing" not in text
    assert main(["all", *words, "--budget", "smoke", "--plan"]) == 0
    assert " 0 to run" in capsys.readouterr().out
