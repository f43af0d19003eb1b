"""Figure 3: its cells, and what it says of made-up records with a planted truth."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy.special import ndtr

from harness.compose import Budget, compose_cell
from harness.config import Cell, cell_key
from harness.errors import InputError
from harness.experiments import common, figure3, table2
from harness.report.ablation import Ablation, ablation_json, ablation_page, build_ablation
from harness.report.ablation_figure import MARK, ablation_figure
from harness.report.figures import OURS, write_figure
from harness.report.gather import gather
from harness.report.text import markdown
from harness.reproduce import main
from harness.run import Places
from harness.stats import Judgement
from harness.store import Record
from harness.zoo import find
from tests.harness.report_world import ranks, record, table_data

DATA = ("demo_rec_tmall", "demo_kuaishou")
MEIE, DENOISING = "w/o MEIE", ("w/o CDMD-M", "w/o CDMD-B")
EVEN = dict.fromkeys(figure3.REMOVALS, 0.0)


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    """Hydra takes most of the time of these tests; no data set is opened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure3, "compose_cell", cache(compose_cell))
        patch.setattr(common, "check_split", lambda *_: None)
        yield


def request(word: str | None = None, seeds: int = 3, overrides: tuple[str, ...] = (),
            target: str = "figure3", data: tuple[str, ...] = DATA) -> common.Request:  # fmt: skip
    choose = figure3.choose_methods if target == "figure3" else common.choose_methods
    return common.Request(
        target, "demo", data, Budget.quick, seeds, choose(word), overrides,
        Places(Path("data"), Path("results")), "a command",
    )  # fmt: skip


def made(asked: common.Request, drops: dict[str, float], run_sd: float = 0.02) -> list[Record]:
    """Records of every cell: users and runs vary, a removal lies `drops` below the full model."""
    rows = figure3.rows(asked)
    users = {name: np.random.default_rng(9).standard_normal(400) for name in asked.names}
    own = {}
    records = []
    for number, cell in enumerate(figure3.cells(asked)):
        row = rows[cell_key(cell)].label
        random = np.random.default_rng(100 + number)
        taste = own.setdefault((row, cell.data), 0.2 * random.standard_normal(400))
        level = 0.6 - drops.get(row, 0.0) + run_sd * random.standard_normal()
        score = level + users[cell.data] + taste + 0.2 * random.standard_normal(400)
        records.append(record(cell, ranks(1 - ndtr(score))))
    return records


def judge(drops: dict[str, float], asked: common.Request | None = None,
          records: list[Record] | None = None, **more: object) -> Ablation:  # fmt: skip
    asked = asked or request()
    return build_ablation(
        made(asked, drops) if records is None else records, figure3.cells(asked),
        [table_data(name) for name in asked.names], figure3.rows(asked),
        everything=figure3.REMOVALS, **more,  # type: ignore[arg-type]
    )  # fmt: skip


# --- cells ---


@pytest.mark.parametrize("overrides", [(), ("model.hidden=16", "train.epochs=3")])
def test_the_full_model_is_trained_once_for_table2_and_figure3(overrides):
    full = [
        cell_key(cell)
        for cell in table2.cells(request("m3bsr", overrides=overrides, target="table2"))
        if cell.method == "m3bsr"
    ]
    ours = figure3.cells(request(overrides=overrides))
    assert len(full) == 3 * len(DATA)
    assert [cell_key(cell) for cell in ours][: len(full)] == full


def test_cells_are_six_rows_on_each_data_set_with_each_seed():
    asked = request(seeds=2)
    cells = figure3.cells(asked)
    assert len({cell_key(cell) for cell in cells}) == len(cells) == 6 * 2 * 2
    assert {cell.method for cell in cells} == {"m3bsr"}
    assert sorted({cell.seed for cell in cells}) == [1, 2]
    labels = [row.label for row in figure3.rows(asked).values()]
    assert list(dict.fromkeys(labels)) == [
        "w/o CDMD-M", "w/o CDMD-B", "w/o MEIE", "w/o Shared Expert", "w/o Disent", "M3BSR",
    ]  # fmt: skip


def test_each_row_lacks_its_part_and_nothing_else():
    asked = request(seeds=1, data=DATA[:1])
    rows = figure3.rows(asked)
    by_row = {rows[cell_key(cell)].label: cell for cell in figure3.cells(asked)}
    full = by_row.pop("M3BSR")
    for label, cell in by_row.items():
        assert (cell.train, cell.protocol, cell.data) == (full.train, full.protocol, full.data)
        assert cell.model == figure3.VARIANTS[label](full.model) != full.model
    assert by_row["w/o Disent"].model.loss.lambda_c == 0.0
    assert by_row["w/o MEIE"].model.parts.experts is False


def test_an_override_that_takes_the_part_out_already_is_refused():
    with pytest.raises(InputError, match="'w/o Disent' takes out what the settings of M3BSR"):
        figure3.cells(request(overrides=("model.loss.lambda_c=0",)))
    assert figure3.cells(request("cdmd-m", overrides=("model.loss.lambda_c=0",)))


def test_a_choice_of_removals_comes_with_the_full_model():
    labels = [row.label for row in figure3.choose_methods(" w/o CDMD-B,cdmd-m")]
    assert labels == ["M3BSR", "w/o CDMD-M", "w/o CDMD-B"]
    with pytest.raises(InputError, match=r"no row of Figure 3 'cdmd-x'; did you mean 'w/o CDMD-"):
        figure3.choose_methods("cdmd-x")
    with pytest.raises(InputError, match="names no row; choose from: M3BSR, w/o CDMD-M"):
        figure3.choose_methods(",")
    with pytest.raises(InputError, match="M3BSR cannot be built"):
        figure3.cells(request(overrides=("model.heads=3", "model.hidden=8")))


# --- what is said ---


def test_a_planted_drop_is_found_and_named():
    drops = {**EVEN, "w/o CDMD-B": 0.4, MEIE: 0.8}
    ablation = judge(drops)
    assert len(ablation.findings) == 4  # two data sets, two metrics
    for line in ablation.findings:
        lower = line.split("significantly lower: ")[1].split(";")[0]
        assert "w/o CDMD-B (-0." in lower
        assert MEIE in lower
        assert "w/o Disent" not in lower
        assert f"{MEIE} lowers it most, significantly more than every other removal." in line
    assert ablation.denoising == (
        "CDMD does not earn its keep here: M3BSR significantly beats w/o CDMD-M in 0 and "
        "w/o CDMD-B in 4 of 4 columns."
    )


def test_planted_nothing_is_not_found():
    ablation = judge(EVEN)
    for line in ablation.findings:
        assert "no significant change" in line
        assert "significantly lower" not in line
        assert "significantly more" not in line.replace("not significantly more", "")
    assert ablation.denoising.startswith("CDMD does not earn its keep here: ")
    assert "beats w/o CDMD-M in 0 and w/o CDMD-B in 0 of 4" in ablation.denoising
    assert ablation.judgement is Judgement.UNDECIDED


@pytest.mark.slow
def test_nothing_is_found_in_most_worlds_without_a_difference():
    """Both metrics of a world hang together; one in twenty may have a false mark."""
    asked = request(data=DATA[:1])
    marked = 0
    for world in range(40):
        random = np.random.default_rng(world)
        user = random.standard_normal(150)
        records = [
            record(cell, ranks(1 - ndtr(user + 0.03 * random.standard_normal()
                                        + 0.4 * random.standard_normal(150))))
            for cell in figure3.cells(asked)
        ]  # fmt: skip
        ablation = judge({}, asked, records)
        cells = [cell for row in ablation.table.rows for cell in row.cells]
        marked += any(cell.comparison and cell.comparison.marked for cell in cells)
    assert marked <= 6  # binomial(40, 0.05): more with a chance of 0.3 %


def test_cdmd_earns_its_keep_when_both_halves_are_missed_everywhere():
    ablation = judge({**EVEN, "w/o CDMD-M": 0.5, "w/o CDMD-B": 0.5})
    assert ablation.denoising == (
        "CDMD earns its keep here: M3BSR significantly beats w/o CDMD-M and w/o CDMD-B in all 4 "
        "columns."
    )


def test_a_removal_that_helps_is_said_to_help():
    ablation = judge({**EVEN, "w/o CDMD-M": -0.6, "w/o CDMD-B": 0.5})
    assert all("significantly HIGHER: w/o CDMD-M (+0." in line for line in ablation.findings)
    assert "w/o CDMD-M significantly beats M3BSR in all 4 columns." in ablation.denoising
    assert ablation.denoising.startswith("CDMD does not earn its keep here")
    assert ablation.halves[0].judgement is Judgement.CONTRADICTED
    assert ablation.judgement is Judgement.CONTRADICTED


def test_the_papers_claim_is_supported_when_it_is_planted():
    drops = {**dict.fromkeys(figure3.REMOVALS, 0.5), MEIE: 1.0}
    ablation = judge(drops)
    assert [half.judgement for half in ablation.halves] == [Judgement.SUPPORTED] * 2
    assert ablation.judgement is Judgement.SUPPORTED
    assert [half.claim.parts for half in ablation.halves if half.claim] == [20, 16]
    page = markdown(ablation_page(ablation))
    assert "removing MEIE lowers them most. On the data here: supported." in page


def test_the_papers_claim_is_contradicted_when_another_part_matters_more():
    drops = {**dict.fromkeys(figure3.REMOVALS, 0.5), "w/o Disent": 1.0}
    ablation = judge(drops)
    assert [half.judgement for half in ablation.halves] == [
        Judgement.SUPPORTED, Judgement.CONTRADICTED,
    ]  # fmt: skip
    assert ablation.judgement is Judgement.CONTRADICTED


@pytest.mark.parametrize(("seeds", "few"), [(1, "one run"), (2, "two runs")])
def test_few_runs_are_said_to_test_nothing(seeds, few):
    asked = request(seeds=seeds)
    ablation = judge({**dict.fromkeys(figure3.REMOVALS, 0.5), MEIE: 1.0}, asked)
    text = markdown(ablation_page(ablation))
    assert "ignificantly" not in text  # neither lower nor more
    assert all(
        f"lower, from {few} only" in line and "Nothing is called significant." in line
        for line in ablation.findings
    )
    assert ablation.denoising == (
        f"Whether CDMD earns its keep here cannot be said from {few} a row; by the means alone "
        "M3BSR is above w/o CDMD-M in 4 and w/o CDMD-B in 4 of 4 columns."
    )
    assert ablation.judgement is Judgement.UNDECIDED
    assert f"undecided ({few} a row)" in text
    assert f"{few.capitalize()} a method" in text  # and why
    cells = ablation_json(ablation)["cells"]
    assert all(cell["mark"] is None and cell["in_best_set"] is None for cell in cells)


# --- gaps, files ---


def test_failed_and_missing_runs_are_named():
    asked = request()
    rows = figure3.rows(asked)
    records = made(asked, EVEN)
    gone = [r for r in records if rows[r.key].label == MEIE and r.data == DATA[0]]
    one = next(r for r in records if rows[r.key].label == "w/o Disent" and r.seed == 2)
    left = [r for r in records if r not in gone and r is not one]
    ablation = judge(EVEN, asked, left, failed={gone[0].key: "the loss became NaN in epoch 3"})
    page = markdown(ablation_page(ablation))
    assert (
        "w/o MEIE on demo_rec_tmall: seed 1: failed: the loss became NaN in epoch 3; seeds 2, 3: not run."
        in page
    )
    assert "w/o Disent on demo_rec_tmall: 2 runs only; seed 2: not run." in page
    assert "No runs: w/o MEIE." in ablation.findings[0]
    assert "lower, from two runs only: w/o Disent (" in ablation.findings[0]
    assert "no significant change: w/o CDMD-M (" in ablation.findings[0]  # it has three
    assert "CDMD does not earn its keep here" in ablation.denoising
    assert "No runs" not in ablation.findings[2]
    assert {half.why for half in ablation.halves} == {"no runs of w/o MEIE on demo_rec_tmall"}
    assert ablation.judgement is Judgement.UNDECIDED


def test_without_the_full_model_or_without_any_run_nothing_is_said():
    asked = request()
    rows = figure3.rows(asked)
    left = [r for r in made(asked, EVEN) if rows[r.key].label != "M3BSR"]
    for records in (left, []):
        ablation = judge(EVEN, asked, records)
        assert all("nothing is said" in line for line in ablation.findings)
        assert ablation.denoising.startswith("Whether CDMD earns its keep here cannot be said")
        assert markdown(ablation_page(ablation))


def test_a_choice_of_rows_judges_cdmd_and_not_the_claim():
    asked = request("cdmd-m,cdmd-b")
    ablation = judge({"w/o CDMD-M": 0.5, "w/o CDMD-B": 0.5}, asked)
    assert ablation.denoising.startswith("CDMD earns its keep here")
    assert "w/o Disent on demo_kuaishou" in ablation.halves[0].why


def test_rows_are_told_apart_though_their_records_have_one_name():
    asked = request(seeds=2)
    records = made(asked, {**EVEN, MEIE: 1.0})
    assert {r.label for r in records} == {"M3BSR"}
    found = gather(
        records, figure3.cells(asked), [table_data(name) for name in DATA], {}, figure3.rows(asked)
    )
    assert len(found.runs) == 6 * 2
    assert all(
        runs.seeds == 2 and runs.method.label == row for (row, _), runs in found.runs.items()
    )


def test_records_of_one_row_with_other_settings_do_not_mix():
    asked = request(seeds=2, data=DATA[:1])
    records = made(asked, EVEN)
    cell = figure3.cells(asked)[0]
    other: Cell = replace(cell, seed=2, train=replace(cell.train, epochs=7))
    stray = replace(records[1], config=record(other, records[1].ranks).config)
    with pytest.raises(InputError, match="settings beside the seed"):
        judge(EVEN, asked, [records[0], stray, *records[2:]])


def test_json_has_table2s_schema_with_the_names_of_the_figure():
    ablation = judge({**EVEN, MEIE: 0.8})
    content = ablation_json(ablation)
    json.dumps(content, allow_nan=False)
    assert content["target"] == "figure3"
    assert {cell["method"] for cell in content["cells"]} == {*figure3.REMOVALS, "M3BSR"}
    assert {cell["metric"] for cell in content["cells"]} == {"HR@10", "NDCG@10"}
    assert content["correction"] == {"method": "holm", "comparisons": 5}
    for cell in content["cells"]:
        assert (cell["p_holm"] is None) == (cell["method"] == "M3BSR")
        if cell["method"] == MEIE:
            assert cell["effect"] > 0
            assert cell["p_holm"] < 0.05
    assert content["claim"]["judgement"] == "undecided"
    assert content["denoising"] == ablation.denoising


def test_publish_writes_the_four_files(tmp_path, monkeypatch):
    asked = replace(request(), places=Places(tmp_path / "data", tmp_path / "results"))
    cells = figure3.cells(asked)
    records = {r.key: r for r in made(asked, {**EVEN, MEIE: 0.8})}

    class Opened:
        def __init__(self, _root, name):
            facts = table_data(name)
            self.demo, self.data_sha256 = facts.demo, facts.data_sha256
            self.candidates_sha256 = lambda _: facts.candidates_sha256

    monkeypatch.setattr(common, "open_dataset", Opened)
    shown = figure3.publish(asked, figure3.Plan(tuple(cells), records, ()), {})
    folder = tmp_path / "results" / "tables" / "figure3" / "demo"
    assert shown.endswith(f"written to {folder}/table.md, .csv, .tex, .json, bars.svg, .png")
    assert (folder / "bars.svg").stat().st_size > 1000
    assert (folder / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert "CDMD does not earn its keep here" in shown
    page = (folder / "table.md").read_text(encoding="utf8")
    assert page.startswith("DEMO DATA")
    assert "(bars.svg)" in page
    assert page.index("(bars.svg)") < page.index("## Means")
    assert "not drawn yet" not in page
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text(encoding="utf8"))))
    assert len(lines) == 6 * 2 * 2
    tex = (folder / "table.tex").read_text(encoding="utf8")
    assert "w/o Shared Expert" in tex
    assert r"\label{tab:ablations}" in tex
    assert json.loads((folder / "table.json").read_text(encoding="utf8"))["target"] == "figure3"


# --- bars ---


def drawn(figure) -> list[list[str]]:
    """The words of each panel."""
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_bars_are_marked_where_a_removal_differs_and_nowhere_else():
    table = judge({**EVEN, "w/o CDMD-B": 0.4, MEIE: 0.8}).table
    figure = ablation_figure(table)
    assert len(figure.axes) == 4  # two data sets, two metrics
    for axes, words, column in zip(figure.axes, drawn(figure), table.columns, strict=True):
        cells = [
            cell for row in table.rows for cell in row.cells
            if (cell.dataset, cell.metric) == (column.dataset, column.metric)
        ]  # fmt: skip
        assert axes.get_title(loc="left") == column.dataset
        assert column.metric in axes.get_ylabel()
        bars = [bar for bars in axes.containers if hasattr(bars, "patches") for bar in bars.patches]
        assert [bar.get_height() for bar in bars] == [cell.mean for cell in cells]
        assert axes.get_ylim()[0] == 0
        assert words.count(MARK) == 2
        assert [f"{cell.mean:.4f}"[1:] for cell in cells] == [w for w in words if w != MARK]
        assert to_hex(bars[-1].get_facecolor()).upper() == OURS  # the full model, last
        assert all(to_hex(bar.get_facecolor()).upper() != OURS for bar in bars[:-1])


@pytest.mark.parametrize("seeds", [1, 2])
def test_bars_of_few_runs_have_no_marks(seeds):
    ablation = judge({**EVEN, MEIE: 0.8}, request(seeds=seeds))
    assert not any(MARK in words for words in drawn(ablation_figure(ablation.table)))
    text = markdown(ablation_page(ablation))
    assert "never below three runs" in text
    assert ("for these trained models and new users" in text.split("## Means")[0]) == (seeds == 1)


def test_gaps_are_words_in_the_place_of_bars():
    asked = request()
    rows = figure3.rows(asked)
    records = made(asked, EVEN)
    gone = [r for r in records if rows[r.key].label == MEIE and r.data == DATA[0]]
    left = [r for r in records if r not in gone and rows[r.key].label != "w/o Disent"]
    table = judge(EVEN, asked, left, failed={gone[0].key: "the loss became NaN"}).table
    words = drawn(ablation_figure(table))
    assert "failed" in words[0]
    assert "failed" not in words[2]
    assert all("not run" in panel for panel in words)
    nothing = drawn(ablation_figure(judge(EVEN, asked, []).table))
    assert all(panel == ["not run"] * 6 for panel in nothing)


def test_the_same_numbers_are_drawn_as_the_same_bytes(tmp_path):
    table = judge({**EVEN, MEIE: 0.8}).table
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_figure(folder, "bars", ablation_figure(table))
    for ending in ("svg", "png"):
        one, other = (tmp_path / name / f"bars.{ending}" for name in "ab")
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_end_to_end(words, tmp_path, capsys):
    command = ["figure3", *words, "--budget", "smoke", "--methods", "meie"]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())  # whatever the terminal's width
    assert "Nothing is called significant." in shown
    folder = tmp_path / "results" / "tables" / "figure3" / "tiny"
    assert (folder / "bars.svg").exists()
    assert len(json.loads((folder / "table.json").read_text(encoding="utf8"))["cells"]) == 4


assert find("m3bsr") == figure3.FULL
assert set(DENOISING) < set(figure3.REMOVALS)
