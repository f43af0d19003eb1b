"""Figure 4: its cells, and what it says of made-up records with a planted peak."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from harness import stats
from harness.compose import Budget, compose_cell
from harness.config import Cell, cell_key
from harness.errors import InputError
from harness.experiments import common, figure4, table2
from harness.report.document import Grid
from harness.report.figures import write_figure
from harness.report.gather import TableData
from harness.report.heatmap import METRIC, NAMES, Heatmaps, heatmaps_json, panels
from harness.report.heatmap_figure import heatmap_figure
from harness.report.heatmap_page import heatmap_page
from harness.report.text import markdown
from harness.reproduce import TARGETS, main
from harness.run import Places
from harness.stats import Judgement
from harness.store import Record
from tests.harness.report_world import ranks, record, table_data

DATA = ("demo_rec_tmall", "demo_kuaishou")
ONE = DATA[:1]
USERS = 400
Level = Callable[[Cell], float]


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    """Hydra takes most of the time of these tests; no data set is opened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure4, "compose_cell", cache(compose_cell))
        patch.setattr(common, "check_split", lambda *_: None)
        patch.setattr(figure4, "table_data", _facts)
        yield


def _facts(asked: common.Request, planned: figure4.Plan) -> list[TableData]:
    if set(asked.names) <= set(DATA):
        return [table_data(name) for name in asked.names]
    return common.table_data(asked, planned)


def request(word: str | None = None, seeds: int = 3, *, typed: bool = False,
            budget: Budget = Budget.quick, overrides: tuple[str, ...] = (),
            data: tuple[str, ...] = ONE) -> common.Request:  # fmt: skip
    return common.Request(
        "figure4", "demo", data, budget, seeds, figure4.choose_methods(word), overrides,
        Places(Path("data"), Path("results")), "a command", seeds_typed=typed,
    )  # fmt: skip


def flat(_: Cell) -> float:
    return 0.0


def at_peak(cell: Cell) -> float:
    """The paper's peak, far above everything else."""
    loss, diffusion = cell.model.loss, cell.model.diffusion
    steps = (diffusion.steps_b or diffusion.steps, diffusion.steps_m or diffusion.steps)
    weights = (loss.lambda_b, loss.lambda_m, loss.lambda_c, loss.tau)
    return 0.6 * (steps == (10, 10) and weights == (0.02, 0.02, 0.05, 0.3))


def elsewhere(cell: Cell) -> float:
    """A ridge at weight 0.1 of every loss."""
    loss = cell.model.loss
    return 0.6 * (0.1 in (loss.lambda_b, loss.lambda_m, loss.lambda_c))


def made(asked: common.Request, level: Level, run_sd: float = 0.02) -> list[Record]:
    """Records of every cell: users and runs vary around a planted level."""
    user = np.random.default_rng(9).standard_normal(USERS)
    records = []
    for number, cell in enumerate(figure4.cells(asked)):
        random = np.random.default_rng(100 + number)
        score = level(cell) + user + run_sd * random.standard_normal()
        score += 0.2 * random.standard_normal(USERS)
        records.append(record(cell, ranks(1 - ndtr(0.4 + score))))
    return records


def judge(asked: common.Request, level: Level = flat, records: list[Record] | None = None,
          failed: dict[str, str] | None = None) -> Heatmaps:  # fmt: skip
    kept = made(asked, level) if records is None else records
    plan = figure4.Plan(tuple(figure4.cells(asked)), {r.key: r for r in kept}, ())
    return figure4.build(asked, plan, failed or {})


def text(heatmaps: Heatmaps) -> str:
    return markdown(heatmap_page(heatmaps))


# --- cells ---


def test_the_axes_are_the_guess_and_the_peaks_the_papers():
    found = panels()
    assert tuple(found) == NAMES
    assert [len(panel.places) for panel in found.values()] == [25, 25, 20]
    steps = ["5", "10", "15", "20", "25"]
    weights = ["0.01", "0.02", "0.05", "0.1", "0.15"]
    assert [str(value) for value in found["behaviour"].first.values] == steps
    assert [str(value) for value in found["modality"].second.values] == weights
    assert [float(value) for value in found["contrastive"].first.values] == [0.01, 0.1, 0.3, 0.5]
    assert found["behaviour"].peak == found["modality"].peak == (Decimal(10), Decimal("0.02"))
    assert found["contrastive"].peak == (Decimal("0.3"), Decimal("0.05"))
    few = panels(named_only=True)
    assert [len(panel.places) for panel in few.values()] == [9, 9, 9]


@pytest.mark.parametrize("overrides", [(), ("model.hidden=16", "train.epochs=3")])
def test_the_cell_at_the_papers_peak_is_table_2s_full_model(overrides):
    asked = request(overrides=overrides)
    full = [
        cell_key(cell)
        for cell in table2.cells(
            replace(asked, target="table2", methods=common.choose_methods("m3bsr"))
        )
        if cell.method == "m3bsr"
    ]
    places, rows = figure4.rows(asked)
    peaks = {
        places[panel.name, ONE[0], *panel.peak] for panel in figure4.chosen_panels(asked)
    }  # fmt: skip
    assert len(peaks) == 1  # three panels, one cell
    at_the_peak = [key for key, row in rows.items() if row.label in peaks]
    assert at_the_peak == full
    assert len(full) == 3


def test_a_cell_sets_its_two_settings_and_nothing_else():
    asked = request(seeds=1)
    full = compose_cell(figure4.FULL, ONE[0], Budget.quick)
    cells = figure4.cells(asked)
    assert len(cells) == len({cell_key(cell) for cell in cells}) == 25 + 25 + 20 - 2
    for cell in cells:
        assert (cell.method, cell.data, cell.seed) == ("m3bsr", ONE[0], 1)
        assert (cell.train, cell.protocol, cell.users) == (full.train, full.protocol, full.users)
        back = replace(
            cell.model,
            loss=full.model.loss,
            diffusion=replace(cell.model.diffusion, steps_b=0, steps_m=0),
        )
        assert back == full.model
        assert 0 in (cell.model.diffusion.steps_b, cell.model.diffusion.steps_m)


@pytest.mark.parametrize(
    ("overrides", "steps", "own"),
    [
        ((), 10, 0),
        ((), 25, 25),
        (("model.diffusion.steps=15",), 15, 0),
        (("model.diffusion.steps=15",), 10, 10),
        (("model.diffusion.steps_b=20",), 20, 20),
        (("model.diffusion.steps_b=20",), 10, 0),
    ],
)
def test_a_stages_own_steps_are_set_only_where_they_differ(overrides, steps, own):
    asked = request(seeds=1, overrides=overrides)
    panel = panels()["behaviour"]
    full = compose_cell(figure4.FULL, ONE[0], Budget.quick, overrides)
    place = ("behaviour", ONE[0], Decimal(steps), panel.peak[1])
    found = dict(figure4._grid(asked))
    assert found[place].model.diffusion.steps_b == own
    assert found[place].model.diffusion.steps == full.model.diffusion.steps


@pytest.mark.parametrize(
    ("budget", "seeds", "typed", "every", "total"),
    [
        (Budget.quick, 3, False, 1, 68 + 2),
        (Budget.quick, 3, True, 3, 68 * 3),
        (Budget.paper, 5, False, 5, 68 * 5),
        (Budget.paper, 1, True, 1, 68),
        (Budget.smoke, 1, False, 1, 25),
    ],
)
def test_runs_a_cell(budget, seeds, typed, every, total):
    asked = request(seeds=seeds, typed=typed, budget=budget)
    assert figure4.runs_a_cell(asked) == every
    assert len(figure4.cells(asked)) == total
    said = figure4.later(asked)
    assert f"{every} run{'s' * (every > 1)} each" in said
    assert ("at the paper's peaks" in said) == (every != seeds)


def test_a_choice_of_panels():
    assert [row.label for row in figure4.choose_methods(" Contrastive,behavior")] == [
        "behaviour", "contrastive",
    ]  # fmt: skip
    assert len(figure4.cells(request("modality", seeds=1))) == 25
    with pytest.raises(
        InputError, match=r"no panel of Figure 4 'modalit'; did you mean 'modality'"
    ):
        figure4.choose_methods("modalit")
    with pytest.raises(InputError, match="names no panel; choose from: behaviour, modality"):
        figure4.choose_methods(",")


def test_settings_that_leave_a_panel_nothing_to_move_are_refused():
    for overrides, panel in (
        (("model.parts.behavior_denoiser=none",), "behaviour"),
        (("model.parts.modality_denoiser=mlp",), "modality"),
        (("model.parts.experts=false",), "contrastive"),
        (("model.disent.loss=orthogonal",), "contrastive"),
    ):
        with pytest.raises(InputError, match=f"leaves the panel '{panel}' nothing to move"):
            figure4.cells(request(overrides=overrides))
        others = ",".join(name for name in NAMES if name != panel)
        assert figure4.cells(request(others, overrides=overrides))
    with pytest.raises(InputError, match=r"model\.loss\.tau is an axis of contrastive"):
        figure4.cells(request("contrastive", overrides=("model.loss.tau=0.2",)))
    assert figure4.cells(request(overrides=("model.loss.tau=0.2",)))
    with pytest.raises(InputError, match="M3BSR cannot be built"):
        figure4.cells(request(overrides=("model.heads=3", "model.hidden=8")))


# --- what is said ---


@pytest.mark.parametrize("typed", [False, True])
def test_a_planted_peak_is_found_where_the_paper_has_it(typed):
    heatmaps = judge(request(seeds=3 if typed else 10, typed=typed), at_peak)
    for surface in heatmaps.surfaces:
        assert surface.statistics is not None
        assert surface.claim == (
            Judgement.SUPPORTED, f"it is above all {len(surface.spots) - 1} others",
        )  # fmt: skip
        assert [spot.name for spot in surface.spots if spot.plateau] == [
            f"{surface.panel.peak[0]} / {surface.panel.peak[1]}"
        ]
        assert not surface.statistics.flat
    page = text(heatmaps)
    assert page.count("On the data here: supported.") == 3
    assert "is alone in the plateau" in page


@pytest.mark.parametrize("typed", [False, True])
def test_a_peak_elsewhere_contradicts_the_paper(typed):
    heatmaps = judge(request(seeds=3 if typed else 10, typed=typed), elsewhere)
    for panel in heatmaps.panels:
        assert heatmaps.judgement(panel.name) is Judgement.CONTRADICTED
    for surface in heatmaps.surfaces:
        assert {str(spot.second) for spot in surface.spots if spot.plateau} == {"0.1"}
        assert surface.highest is not None
        assert str(surface.highest.second) == "0.1"
    assert text(heatmaps).count("On the data here: contradicted.") == 3


@pytest.mark.parametrize("typed", [False, True])
def test_a_flat_surface_is_called_flat_and_decides_nothing(typed):
    heatmaps = judge(request(typed=typed))
    for surface in heatmaps.surfaces:
        assert surface.statistics is not None
        assert surface.statistics.flat
        assert surface.claim[0] is Judgement.UNDECIDED
    page = text(heatmaps)
    assert page.count("not told from flat") == 3
    alike = [s for s in heatmaps.surfaces if all(spot.plateau for spot in s.spots)]
    assert page.count("every cell may be the peak, so none is underlined") == len(alike)
    assert typed or len(alike) == 3
    assert ("<ins>" in page) == (len(alike) < 3)


def test_the_numbers_are_those_of_the_statistics():
    asked = request(typed=True)
    records = {r.key: r for r in made(asked, at_peak)}
    heatmaps = judge(asked, records=list(records.values()))
    for surface in heatmaps.surfaces:
        scores = []
        for spot in surface.spots:
            assert len(spot.runs) == 3
            of_runs = [common_scores(records[key]) for key in spot.runs]
            assert spot.mean == pytest.approx(np.mean(of_runs))
            scores.append(stats.moments(np.stack(of_runs)))
        expected = stats.heatmap(scores)
        assert surface.statistics == expected
        assert surface.cell_sd == pytest.approx(expected.D**0.5)


def common_scores(one: Record) -> np.ndarray:
    """HR@10 of every user."""
    assert one.ranks is not None
    return (one.ranks.above < 10).astype(float)


def test_with_one_run_a_cell_the_peaks_own_runs_are_the_measure():
    asked = request()
    records = {r.key: r for r in made(asked, flat)}
    surface = judge(asked, records=list(records.values())).surface("contrastive", ONE[0])
    assert surface.peak_runs is not None
    assert surface.statistics is not None
    assert (surface.peak_runs.runs, surface.statistics.df) == (3, 2)
    assert surface.peak_runs.v == surface.statistics.D
    means = [records[key].ranks for key in surface.peak_keys]
    shown = surface.spots[[(s.first, s.second) for s in surface.spots].index(surface.panel.peak)]
    assert means[0] is not None
    assert shown.mean == pytest.approx(
        float((means[0].above < 10).mean())
    )  # one run, like the rest
    assert shown.runs == surface.peak_keys[:1]
    line = next(line for line in text(judge(asked)).splitlines() if "contrastive loss: not" in line)
    assert "the spread is that of the 3 runs at 0.3 / 0.05" in line


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_runs(seeds):
    heatmaps = judge(request(seeds=seeds, typed=True), at_peak)
    page = text(heatmaps)
    json.dumps(heatmaps_json(heatmaps), allow_nan=False)
    for surface in heatmaps.surfaces:
        assert (surface.statistics is None) == (seeds == 1)
    if seeds == 1:
        assert page.count("On the data here: undecided.") == 3
        assert "how far runs differ is not known" in page
        assert "No cell is told from another" in page.replace("no cell", "No cell")
        assert "<ins>" not in page
    assert "**0." in page  # the highest is marked by its mean


def test_smoke_says_what_it_is():
    page = text(judge(request(seeds=1, budget=Budget.smoke)))
    assert "Only the first 200 users" in page.splitlines()[0]
    assert "only the settings that the paper's text names" in page


def test_missing_cells_are_gaps_and_support_nothing():
    asked = request(typed=True)
    records = made(asked, at_peak)
    places, rows = figure4.rows(asked)
    lost = places["behaviour", ONE[0], Decimal(25), Decimal("0.15")]
    short = places["behaviour", ONE[0], Decimal(5), Decimal("0.01")]
    gone = [r for r in records if rows[r.key].label == lost]
    one = next(r for r in records if rows[r.key].label == short and r.seed == 2)
    left = [r for r in records if r not in gone and r is not one]
    heatmaps = judge(asked, records=left, failed={gone[0].key: "the loss became NaN"})
    surface = heatmaps.surface("behaviour", ONE[0])
    assert surface.claim == (Judgement.UNDECIDED, "2 of 25 cells lack runs")
    assert len(surface.judged) == 23
    assert heatmaps.plateaus("behaviour") == {}
    assert set(heatmaps.plateaus("modality")) == set(ONE)
    assert heatmaps.judgement("modality") is Judgement.SUPPORTED
    page = text(heatmaps)
    assert "demo_rec_tmall, 25 / 0.15: failed: the loss became NaN." in page
    assert "demo_rec_tmall, 5 / 0.01 and" not in page
    assert "(2 of 3 runs)" in page
    words = [t.get_text() for t in heatmap_figure(heatmaps).axes[0].texts]
    assert words.count("-") == 1
    assert "2 of 3 runs" in words


def test_without_any_run_everything_is_a_gap():
    heatmaps = judge(request(data=DATA), records=[])
    page = text(heatmaps)
    assert page.count("fewer than two cells have their runs") >= 6
    assert "not run." in page
    assert "and 21 more: not run" in page
    assert "0.0000" not in page
    json.dumps(heatmaps_json(heatmaps), allow_nan=False)
    assert heatmap_figure(heatmaps)


def test_without_the_peak_nothing_is_said_of_it():
    asked = request(typed=True)
    places, rows = figure4.rows(asked)
    peak = places["modality", ONE[0], Decimal(10), Decimal("0.02")]
    left = [r for r in made(asked, flat) if rows[r.key].label != peak]
    surface = judge(asked, records=left).surface("modality", ONE[0])
    assert surface.statistics is not None
    assert surface.claim == (Judgement.UNDECIDED, "no runs at 10 / 0.02")
    one_run = request()
    left = [r for r in made(one_run, flat) if r.seed == 1]
    surface = judge(one_run, records=left).surface("modality", ONE[0])
    assert surface.statistics is None
    assert "fewer than two runs at 10 / 0.02" in surface.why


def test_runs_that_are_all_equal_do_not_crash():
    asked = request("contrastive")
    same = ranks(np.linspace(0, 0.999, USERS))
    heatmaps = judge(asked, records=[record(cell, same) for cell in figure4.cells(asked)])
    surface = heatmaps.surfaces[0]
    assert surface.statistics is not None
    assert surface.statistics.flat
    assert all(spot.highest for spot in surface.spots)
    json.dumps(heatmaps_json(heatmaps), allow_nan=False)
    assert text(heatmaps)
    assert heatmap_figure(heatmaps)


def test_where_tuning_left_the_axes_it_is_said():
    asked = request(seeds=1, data=DATA)
    page = text(judge(asked))
    tuned = compose_cell(figure4.FULL, DATA[1], Budget.quick).model.loss.lambda_m
    assert tuned == 0.2
    assert (
        "Modality denoising on demo_kuaishou: Table 2's M3BSR is at 10 / 0.2, which is no cell"
        in page
    )
    assert all(
        cell.model.loss.lambda_m == tuned
        for place, cell in figure4._grid(asked)
        if place[:2] == ("behaviour", DATA[1])
    )


def test_published_cells_stand_beside_ours_and_get_no_verdict_on_demo_data():
    heatmaps = judge(request(data=DATA), at_peak)
    page = text(heatmaps)
    assert "0.3155" in page
    assert (
        "the widest gap that the paper prints is 0.0052, from 0.3207 at its peak to 0.3155" in page
    )
    assert "no verdict is given" in page
    assert "no more than that" not in page
    grid = next(
        part for part in heatmap_page(heatmaps).parts
        if isinstance(part, Grid) and "printed" in part.title
    )  # fmt: skip
    lines = {line.name: line for line in grid.lines if line.entries}
    assert [span.text for entry in lines["25 / 0.15"].entries[:2] for span in entry] == [
        "0.3155", "+0.0052",
    ]  # fmt: skip
    real = judge(request("behaviour"), flat)
    surface = replace(
        real.surfaces[0], data=replace(real.surfaces[0].data, name="rec_tmall", demo=False)
    )
    real = replace(real, data=(surface.data,), surfaces=(surface,))
    assert "the paper's gap is no more than that" in text(real)
    other = replace(real.data[0], name="shop")
    real = replace(real, data=(other,), surfaces=(replace(surface, data=other, printed=()),))
    assert "printed cells beside ours" not in text(real)


# --- figure and files ---


def test_the_figure_marks_the_highest_its_equals_and_the_papers_peak(tmp_path):
    heatmaps = judge(request(data=DATA, typed=True), elsewhere)
    figure = heatmap_figure(heatmaps)
    maps = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(maps) == 6
    for axes, surface in zip(maps, heatmaps.surfaces, strict=True):
        assert axes.get_xlabel() == surface.panel.second.label
        assert axes.get_ylabel() == surface.panel.first.label
        assert axes.get_title(loc="left").splitlines() == [surface.data.name, surface.panel.title]
        dots = sum(len(line.get_xdata()) for line in axes.lines)
        assert dots == len(surface.statistics.plateau)
        words = [t.get_text() for t in axes.texts]
        assert words == [f"{spot.mean:.4f}"[1:] for spot in surface.spots]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_figure(folder, "heatmaps", heatmap_figure(heatmaps))
    one, other = (tmp_path / name / "heatmaps.svg" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_colour_scale_is_never_narrower_than_chance():
    heatmaps = judge(request(typed=True))
    figure = heatmap_figure(heatmaps)
    bar = next(axes for axes in figure.axes if METRIC in axes.get_ylabel())
    low, high = bar.get_ylim()
    for surface in heatmaps.surfaces:
        assert surface.from_nothing is not None
        assert high - low >= surface.from_nothing[0] - 1e-12
    assert "bracket: equal cells" in bar.get_ylabel()


def test_json_and_csv_have_every_number(tmp_path):
    asked = request(data=DATA)
    asked = replace(asked, places=Places(tmp_path / "data", tmp_path / "results"))
    records = made(asked, at_peak)
    plan = figure4.Plan(tuple(figure4.cells(asked)), {r.key: r for r in records}, ())
    shown = figure4.publish(asked, plan, {})
    folder = tmp_path / "results" / "tables" / "figure4" / "demo"
    assert shown.endswith(f"{folder}/table.md, .csv, .tex, .json, heatmaps.svg, .png")
    assert (folder / "heatmaps.svg").exists()
    assert (folder / "table.md").read_text(encoding="utf8").startswith("DEMO DATA")
    tex = (folder / "table.tex").read_text(encoding="utf8")
    assert r"\label{tab:sensitivity}" in tex
    assert "?" not in tex  # every sign is one that LaTeX has
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    assert content["target"] == "figure4"
    assert content["runs"] == {"cell": 1, "peak": 3}
    assert [data["name"] for data in content["data"]] == list(DATA)
    assert [s["panel"] for s in content["surfaces"]] == list(NAMES) * 2
    for surface in content["surfaces"]:
        assert len(surface["cells"]) in (20, 25)
        assert sum(cell["plateau"] for cell in surface["cells"]) == surface["statistics"]["plateau"]
        assert sum(cell["paper_peak"] for cell in surface["cells"]) == 1
        assert surface["claim"]["judgement"] in {"supported", "contradicted", "undecided"}
        assert surface["at_peak"]["runs"] == 3
    assert {claim["panel"] for claim in content["claims"]} == set(NAMES)
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text(encoding="utf8"))))
    cells = [line for line in lines if line["kind"] == "cell"]
    assert len(cells) == 2 * 70
    assert all(line["demo"] == "true" and 0 < float(line["mean"]) < 1 for line in cells)
    assert sum(line["kind"] == "published" for line in lines) == 2 * 7 + 0
    grid = next(p for p in heatmap_page(judge(asked, at_peak)).parts if isinstance(p, Grid))
    assert grid.lines[0].entries[0][0].runs  # provenance


# --- from the command line ---


@pytest.mark.slow
def test_end_to_end(words, tmp_path, capsys):
    command = ["figure4", *words, "--budget", "smoke", "--methods", "contrastive"]
    assert main([*command, "--plan"]) == 0
    assert "9 cells wanted" in capsys.readouterr().out
    assert main(command) == 0
    assert "# Figure 4" in capsys.readouterr().out
    folder = tmp_path / "results" / "tables" / "figure4" / "tiny"
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    assert [len(surface["cells"]) for surface in content["surfaces"]] == [9]
    assert all(cell["mean"] is not None for cell in content["surfaces"][0]["cells"])
    assert main([*command, "--plan"]) == 0
    assert "9 stored, 0 to run" in capsys.readouterr().out


assert "figure4" in TARGETS
