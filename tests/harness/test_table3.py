"""Table 3: its cells are Table 2's; what it says of made-up records with a planted cold start."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from harness import reproduce
from harness.compose import Budget, compose_cell
from harness.config import Cell, ProtocolConfig, cell_key
from harness.execution.plan import Plan
from harness.experiments import common, table2, table3
from harness.report import cold_start_figure
from harness.report.beside import Published
from harness.report.cold_start import (
    COLD,
    RIVALS,
    STRATA,
    ColdStart,
    Verdict,
    build_cold_start,
    cold_start_csv,
    cold_start_json,
)
from harness.report.cold_start_page import cold_start_page
from harness.report.document import Grid, from_json, to_json
from harness.report.figures import write_figure
from harness.report.gather import gather
from harness.report.text import markdown
from harness.run import Places, open_dataset
from harness.stats import compare, moments
from harness.stats.groups import lead_gap
from harness.store import Record
from harness.zoo import REFERENCES, find
from tests.harness.report_world import ranks, record, table_data

DATA = ("demo_rec_tmall", "demo_kuaishou")
METHODS = ("stosa", "mmmlp", "ebm", "m3bsr")
USERS = 300
HISTORY = np.tile([3, 5, 7, 10, 11, 18, 35, 60], 40)[:USERS]
"""Interactions before the test favor: half of the users are cold, in every stratum there are 36 or more."""
BETTER = {"m3bsr": (0.9, 0.9)}
"""Levels among cold users and among the others, above 0."""


def cells_of(methods: Sequence[str] = METHODS, data: Sequence[str] = DATA, seeds: int = 3,
             references: Sequence[str] = ("random", "mostpopular")) -> list[Cell]:  # fmt: skip
    return [
        Cell(method=key, data=name, seed=seed)
        for key in (*methods, *references)
        for name in data
        for seed in range(1, 1 + (seeds if key in methods else 1))
    ]


def made(cells: Sequence[Cell], history: np.ndarray = HISTORY,
         levels: Mapping[str, tuple[float, float]] = BETTER) -> list[Record]:  # fmt: skip
    """Records: score = user + user x method + level of the method in the user's group + run."""
    users = len(history)
    own: dict[tuple[str, str], np.ndarray] = {}
    records = []
    for number, cell in enumerate(cells):
        random = np.random.default_rng(100 + number)
        taste = own.setdefault((cell.method, cell.data), 0.2 * random.standard_normal(users))
        user = np.random.default_rng(len(cell.data)).standard_normal(users)
        level = np.where(history <= COLD, *levels.get(cell.method, (0.0, 0.0)))
        score = user + taste + level + 0.02 * random.standard_normal()
        score = score + 0.2 * random.standard_normal(users)
        records.append(record(cell, ranks(1 - ndtr(score + 0.4), constant=cell.method == "random")))
    return records


def build(cells: Sequence[Cell] | None = None, records: Sequence[Record] | None = None,
          history: Mapping[str, np.ndarray] | None = None, **more: object) -> ColdStart:  # fmt: skip
    cells = cells_of() if cells is None else cells
    names = list(dict.fromkeys(cell.data for cell in cells))
    return build_cold_start(
        made(cells) if records is None else records, cells, [table_data(name) for name in names],
        {cell_key(cell): find(cell.method) for cell in cells},
        history or dict.fromkeys(names, HISTORY), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def check_page(one: ColdStart) -> str:
    """The page as Markdown, after it went through everything that is made of it."""
    page = cold_start_page(one)
    assert from_json(to_json(page)) == page
    json.dumps(cold_start_json(one), allow_nan=False)
    assert list(csv.DictReader(io.StringIO(cold_start_csv(one))))
    cold_start_figure.draw(one)
    text = markdown(page)
    assert text.startswith("DEMO DATA") or not any(data.demo for data in one.table.data)
    return text


# --- cells ---


def request(word: str | None = None, seeds: int = 3, target: str = "table3",
            overrides: tuple[str, ...] = (), data: Path = Path("data"),
            names: tuple[str, ...] = DATA[:1]) -> common.Request:  # fmt: skip
    choose = table3.choose_methods if target == "table3" else common.choose_methods
    return common.Request(
        target, "demo", names, Budget.quick, seeds, choose(word), overrides,
        Places(data, data / "results"), "a command",
    )  # fmt: skip


@pytest.fixture
def _unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes most of the time of these tests; no data set is opened."""
    monkeypatch.setattr(table3, "compose_cell", cached)
    monkeypatch.setattr(common, "compose_cell", cached)
    for check in ("check_split", "check_model"):
        monkeypatch.setattr(common, check, lambda *_: None)


cached = cache(compose_cell)


@pytest.mark.usefixtures("_unopened")
@pytest.mark.parametrize(
    "overrides",
    [(), pytest.param(("model.hidden=16", "train.epochs=3"), marks=pytest.mark.slow)],
)
def test_every_cell_is_table2s(overrides):
    ours = [cell_key(cell) for cell in table3.cells(request(overrides=overrides))]
    same = table2.cells(request(",".join(METHODS), target="table2", overrides=overrides))
    assert ours == [cell_key(cell) for cell in same]
    assert len(set(ours)) == (4 * 3 + 3 + len(REFERENCES) - 1)  # SASRec (CE) is trained


def test_the_rows_are_the_papers_and_any_of_table2s_may_be_named():
    assert [m.label for m in table3.choose_methods(None)] == [*RIVALS, "M3BSR"]
    assert [m.key for m in table3.choose_methods("m3bsr,gru4rec")] == ["gru4rec", "m3bsr"]
    printed = [verdict.row.label for verdict in Published.cold_start({}).verdicts]
    assert printed == 2 * [*RIVALS, "M3BSR"]


# --- who is cold ---


def test_what_is_counted_are_all_recorded_events_before_the_test_favor(data):
    cell = Cell(method="m3bsr", data="tiny", seed=1)
    counted = table3.recorded([cell, replace(cell, seed=2)], Places(data, data / "results"))["tiny"]
    dataset = open_dataset(data, "tiny")
    offsets, behaviour = dataset.array("offsets"), dataset.array("event_behaviour")
    last = [
        int(np.nonzero(behaviour[start:end] == behaviour.max())[0][-1])
        for start, end in pairwise(offsets)
    ]
    assert counted.tolist() == last  # whatever the user did after it does not count
    some = table3.recorded([replace(cell, users=7)], Places(data, data / "results"))["tiny"]
    assert some.tolist() == last[:7]
    kept = replace(cell, protocol=replace(ProtocolConfig(), max_history=3))
    assert table3.recorded([kept], Places(data, data))["tiny"].tolist() == last


def test_only_cold_users_enter_the_table():
    cells = cells_of(data=DATA[:1])
    records = made(cells)
    one = build(cells, records)
    cold = HISTORY <= COLD
    for row in (*one.table.rows, *one.table.references):
        for cell in row.cells:
            own = [r for r in records if r.label == row.label]
            found = gather(own, [c for c in cells if find(c.method).label == row.label],
                           [table_data(DATA[0])], {})  # fmt: skip
            scores = found.runs[row.label, DATA[0]].scores(cell.metric)[:, cold]
            assert cell.mean == pytest.approx(scores.mean(), abs=1e-12)
            assert cell.runs == tuple(r.key for r in own)
    text = check_page(one)
    count = int(cold.sum())
    assert f"demo_rec_tmall: {count} of 300 test users ({100 * count / 300:.1f} %)" in text
    assert f"Data demo_rec_tmall: {count} of 300 test users, sha256" in text


def test_the_strata_hold_every_user_once_and_every_method_with_runs():
    other = cells_of(("gru4rec",), seeds=2, references=())
    one = build(further=(made(other), other))
    for name in DATA:
        assert [s.label for s in one.of(name)] == ["≤5", "6-10", "11-20", "21-50", "51+"]
        assert sum(s.users for s in one.of(name)) == USERS
        assert len(one.line("GRU4Rec", name)) == len(STRATA)
        means = [(p.mean, p.stratum.users) for p in one.line("M3BSR", name)]
        cold = sum(m * n for m, n in means[:2]) / sum(n for _, n in means[:2])
        of_table = next(c for r in one.table.rows if r.label == "M3BSR" for c in r.cells
                        if (c.dataset, c.metric) == (name, "HR@10"))  # fmt: skip
        assert of_table.mean == pytest.approx(cold)
    assert "GRU4Rec" not in {row.label for row in one.table.rows}
    assert one.named == (*RIVALS, "M3BSR")
    text = check_page(one)
    assert "Thin grey: the other methods" in text
    assert "| GRU4Rec " in text.split("the other methods with stored runs")[1]


def test_a_stratum_with_few_users_is_flagged_and_one_without_is_left_out():
    history = np.array([3] * 100 + [15] * 19 + [70])
    cells = cells_of(data=DATA[:1])
    one = build(cells, made(cells, history), {DATA[0]: history})
    assert [(s.label, s.users, s.few) for s in one.strata] == [
        ("≤5", 100, False), ("11-20", 19, True), ("51+", 1, True),
    ]  # fmt: skip
    lone = one.line("M3BSR", DATA[0])[-1]
    assert (lone.low, lone.high) == (None, None)
    assert "19 (few)" in check_page(one)


# --- edges ---


@pytest.mark.parametrize("cold", [0, 1])
def test_without_two_cold_users_nothing_is_said_of_them(cold):
    history = np.array([5] * cold + [40] * 120)
    cells = cells_of()
    mixed = {DATA[0]: history, DATA[1]: HISTORY}
    records = [
        r for cell in cells for r in made([cell], mixed[cell.data])
    ]  # one at a time: other draws, the same law
    one = build(cells, records, mixed)
    text = check_page(one)
    assert f"demo_rec_tmall: {cold} of {len(history)} test users" in text
    assert f"not testable here ({cold} of {len(history)} test users are cold)" in text
    assert "Nothing can be said of cold users here" in text
    assert {c.mean for r in one.table.rows for c in r.cells if c.dataset == DATA[0]} == {None}
    assert all(c.mean is not None for r in one.table.rows for c in r.cells if c.dataset == DATA[1])
    assert f"| {cold} of {len(history)} users |" in text
    assert {lead.dataset for lead in one.leads} == {DATA[1]}
    assert one.line("M3BSR", DATA[0])  # the strata have everyone
    only = build([c for c in cells if c.data == DATA[0]],
                 [r for r in records if r.data == DATA[0]], {DATA[0]: history})  # fmt: skip
    assert f"{cold} cold users, 120 others; two of each are needed." in check_page(only)


def test_where_everyone_is_cold_there_is_nobody_to_compare_with():
    history = np.full(200, 4)
    cells = cells_of(data=DATA[:1])
    one = build(cells, made(cells, history), {DATA[0]: history})
    text = check_page(one)
    assert "Everyone is cold: this is Table 2 once more." in text
    assert "200 cold users, 0 others; two of each are needed." in text
    assert not one.leads
    assert one.claims[0].verdict is Verdict.SUPPORTED


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_runs_mark_and_judge_nothing(seeds):
    cells = cells_of(seeds=seeds)
    one = build(cells, made(cells))
    text = check_page(one)
    assert [claim.verdict for claim in one.claims] == [Verdict.UNDECIDED] * 2
    assert f"undecided ({'one run' if seeds == 1 else 'two runs'} a row)" in text
    assert not any(lead.marked for lead in one.leads)
    assert all((lead.p_holm is None) == (seeds == 1) for lead in one.leads)
    assert {c.mark for r in one.table.rows for c in r.cells} == {None}


def test_gaps_are_named_and_nothing_is_made_up():
    cells = cells_of()
    records = made(cells)
    nothing = build(cells, [])
    text = check_page(nothing)
    assert text.count("not testable here (no runs of M3BSR, STOSA, MMMLP, EBM)") == 2
    assert not nothing.points
    left = [r for r in records if r.label != "MMMLP"]
    failed = {cell_key(c): "the loss became NaN" for c in cells if c.method == "mmmlp"}
    some = build(cells, left, failed=failed)
    assert "not testable here (no runs of MMMLP)" in check_page(some)
    assert "failed: the loss became NaN" in check_page(some)
    assert {lead.other for lead in some.leads} == {"STOSA", "EBM"}
    ours = build(cells, [r for r in records if r.label == "M3BSR" and r.seed < 3])
    assert "2 runs only; seed 3: not run" in check_page(ours)


def test_a_choice_of_rows_names_the_papers_that_are_left_out():
    cells = cells_of(("gru4rec", "m3bsr"))
    one = build(cells, made(cells))
    text = check_page(one)
    assert "Rows of the paper that were not asked for: STOSA, MMMLP, EBM." in text
    assert "not testable here (no runs of STOSA, MMMLP, EBM)" in text
    assert one.named == ("GRU4Rec", "M3BSR")


def test_many_rows_are_not_all_drawn_in_colour():
    many = ("gru4rec", "sasrec", "bert4rec", "stosa", "ssdrec", "mmmlp", "mbstr", "ebm", "m3bsr")
    cells = cells_of(many, data=DATA[:1], seeds=1)
    one = build(cells, made(cells))
    assert one.named == ("GRU4Rec", "SASRec", "STOSA", "MMMLP", "EBM", "M3BSR")
    check_page(one)


# --- judgements ---


def verdicts(levels: Mapping[str, tuple[float, float]]) -> tuple[ColdStart, list[Verdict]]:
    cells = cells_of()
    one = build(cells, made(cells, levels=levels))
    return one, [claim.verdict for claim in one.claims]


def test_the_claim_follows_the_planted_truth_among_cold_users_alone():
    one, won = verdicts({"m3bsr": (0.9, -0.9)})
    assert won == [Verdict.SUPPORTED] * 2
    assert all(cell.dagger for r in one.table.rows if r.label == "M3BSR" for cell in r.cells)
    assert "On demo_kuaishou: supported (6 comparisons; corrected p for it <.001" in check_page(one)
    _, lost = verdicts({"m3bsr": (-0.9, 0.9)})
    assert lost == [Verdict.CONTRADICTED] * 2
    _, even = verdicts({})
    assert even == [Verdict.UNDECIDED] * 2
    _, beaten = verdicts({"m3bsr": (0.5, 0.0), "ebm": (1.3, 0.0)})  # one rival is enough
    assert beaten == [Verdict.CONTRADICTED] * 2


def test_a_lead_that_is_larger_among_cold_users_is_told_from_one_that_is_not():
    larger, _ = verdicts({"m3bsr": (0.9, 0.0)})
    assert all(lead.marked and lead.gap.difference > 0 for lead in larger.leads)
    smaller, _ = verdicts({"m3bsr": (0.0, 0.9)})
    assert all(lead.marked and lead.gap.difference < 0 for lead in smaller.leads)
    same, _ = verdicts({"m3bsr": (0.3, 0.3)})
    assert sum(lead.marked for lead in same.leads) <= 1
    for lead in (*larger.leads, *same.leads):
        assert lead.gap.difference == pytest.approx(lead.cold - lead.others)
        assert len(lead.runs) == 6
    assert "minus its lead among the others" in check_page(larger)


def test_a_gap_of_leads_is_the_difference_of_two_comparisons():
    random = np.random.default_rng(0)
    a, b = random.random((3, 90)), random.random((5, 90))
    inside = np.arange(90) < 30
    gap = lead_gap(a, b, inside)
    pairs = [compare(moments(a[:, g]), moments(b[:, g])) for g in (inside, ~inside)]
    assert gap.difference == pytest.approx(pairs[0].difference - pairs[1].difference)
    assert pytest.approx(pairs[0].A + pairs[1].A) == gap.A  # the groups share no user
    assert pytest.approx(pairs[0].C + pairs[1].C) == gap.C
    shifted = lead_gap(a + np.array([[0.0], [5.0], [9.0]]), b, inside)  # runs as a whole
    assert pytest.approx(gap.V) == shifted.V
    turned = lead_gap(a, b, ~inside)
    assert (turned.difference, turned.V) == pytest.approx((-gap.difference, gap.V))
    one = lead_gap(a[:1], b, inside)
    assert one.p is None
    assert one.low < one.difference < one.high
    flat = lead_gap(np.zeros((3, 9)), np.zeros((3, 9)), np.arange(9) < 4)
    assert (flat.V, flat.p) == (0.0, 1.0)
    with pytest.raises(ValueError, match="two users"):
        lead_gap(a, b, np.arange(90) < 1)


@pytest.mark.parametrize(("inside", "outside", "runs"), [(40, 300, 3), (300, 200, 5)])
def test_the_interval_of_a_gap_holds_the_truth_as_often_as_it_says(inside, outside, runs):
    random = np.random.default_rng(1)
    group = np.arange(inside + outside) < inside
    held, worlds = 0, 300
    for _ in range(worlds):
        user = 0.8 * random.standard_normal(len(group))

        def method(user: np.ndarray = user) -> np.ndarray:
            own = user + 0.45 * random.standard_normal(len(group))
            run = 0.03 * random.standard_normal((runs, 1))
            of_group = 0.02 * random.standard_normal((runs, 1)) * group
            noise = 0.39 * random.standard_normal((runs, len(group)))
            return (own + run + of_group + noise > 0.5).astype(np.float64)

        gap = lead_gap(method(), method(), group)
        held += gap.low <= 0 <= gap.high
    assert 0.91 < held / worlds < 0.995


# --- beside the paper ---


def test_the_published_rows_stand_beside_both_data_sets_and_are_possible():
    one = build()
    text = check_page(one)
    assert text.count("0.2897") == 2 * 1  # M3BSR's HR@10, once a data set
    assert "None is struck through: by arithmetic alone all 4 published rows are possible" in text
    assert "~~" not in text
    assert "caption of the paper's Table 3 says Rec-Tmal, its section 5.5 says Kuaishou" in text
    cells = cold_start_json(one)["cells"]
    assert {cell["verdict"] for cell in cells} == {None}
    assert {cell["published_possible"] for cell in cells} == {True}


def test_on_the_papers_data_there_are_verdicts_for_the_share_of_cold_users():
    cells = cells_of(data=("rec_tmall", "kuaishou"))
    one = build(cells, made(cells))
    verdict = {c.beside.verdict for r in one.table.rows for c in r.cells if c.beside}
    assert verdict <= {"inside", "inside only as best of 10", "outside"}
    share = float((HISTORY <= COLD).mean())
    published = one.table.published
    data = table_data("kuaishou")
    assert published.users(data) == round(share * published.paper.table1["kuaishou"].users)
    text = check_page(one)
    assert "take our share of cold users" in text
    assert "no verdict is given" not in text
    other = cells_of(data=("shop",))
    assert "Beside the paper" not in check_page(build(other, made(other)))


# --- files ---


def test_json_and_csv_hold_every_number():
    one = build()
    content = cold_start_json(one)
    assert content["target"] == "table3"
    assert {cell["metric"] for cell in content["cells"]} == {"HR@10", "NDCG@10"}
    assert content["correction"] == {"method": "holm", "comparisons": 3}
    assert [c["users"] for c in content["cold"]] == [int((HISTORY <= COLD).sum())] * 2
    assert len(content["strata"]) == 2 * 5 * 6
    assert len(content["leads"]) == 2 * 2 * 3
    assert [c["judgement"] for c in content["claims"]] == ["supported"] * 2
    lines = list(csv.DictReader(io.StringIO(cold_start_csv(one))))
    kinds = [line["kind"] for line in lines]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "method": 16, "reference": 8, "stratum": 60, "lead": 12,
    }  # fmt: skip
    for line in lines:
        assert line["demo"] == "true"
        if line["kind"] == "stratum":
            assert math.isfinite(float(line["mean"]))
            assert int(line["users"]) > 0


def test_the_figure_is_the_same_bytes_for_the_same_numbers(tmp_path):
    other = cells_of(("gru4rec",), references=())
    for name in ("a", "b"):
        write_figure(tmp_path / name, "strata", cold_start_figure.draw(
            build(further=(made(other), other))))  # fmt: skip
    svg = (tmp_path / "a" / "strata.svg").read_text(encoding="utf8")
    assert svg == (tmp_path / "b" / "strata.svg").read_text(encoding="utf8")
    for word in ("M3BSR", "cold: at most 10", "n = ", "1 other method", "(demo data)", "HR@10"):
        assert word in svg, word


def test_numbers_on_the_page_name_their_runs():
    page = cold_start_page(build())
    grids = {part.title: part for part in page.parts if isinstance(part, Grid)}
    for title in ("Means", "Intervals of the means", "HR@10 by length of history",
                  "M3BSR's lead among cold users minus its lead among the others"):  # fmt: skip
        rows = [line for line in grids[title].lines if line.entries and line.name != "test users"]
        assert rows
        for line in rows:
            assert all(entry[0].runs for entry in line.entries if entry[0].text), (title, line.name)


@pytest.mark.slow
@pytest.mark.usefixtures("_unopened")
def test_table2s_other_methods_enter_the_strata_where_they_are_stored(tmp_path, monkeypatch):
    asked = request("stosa,m3bsr", data=tmp_path)
    looked_up: list[Cell] = []

    def stored(cells: Sequence[Cell], _places: Places) -> Plan:
        looked_up.extend(cells)
        some = [cell for cell in cells if cell.method == "gru4rec" and cell.seed == 2]
        return Plan(tuple(cells), {r.key: r for r in made(some)}, ())

    monkeypatch.setattr(table3, "plan", stored)
    found = table3.further(asked)
    assert {cell.method for cell in looked_up}.isdisjoint({"stosa", "m3bsr"})
    whole = {cell_key(cell) for cell in table2.cells(request(target="table2", data=tmp_path))}
    assert {cell_key(cell) for cell in looked_up} < whole
    assert [(cell.method, cell.seed) for cell in found.wanted] == [("gru4rec", 2)]


@pytest.mark.slow
def test_table2_then_table3_trains_nothing(words, tmp_path, capsys):
    asked = [*words, "--budget", "smoke", "--workers", "1"]
    assert reproduce.main(["table2", *asked, "--methods", "gru4rec,stosa"]) == 0
    stored = sorted(p.name for p in (tmp_path / "results" / "cells").iterdir())
    capsys.readouterr()
    assert reproduce.main(["table3", *asked, "--methods", "stosa"]) == 0
    out, err = capsys.readouterr()
    assert "to run" not in err
    assert sorted(p.name for p in (tmp_path / "results" / "cells").iterdir()) == stored
    assert "# Table 3. Cold-start users" in out
    folder = tmp_path / "results" / "tables" / "table3" / "tiny"
    names = {"table.md", "table.csv", "table.tex", "table.json", "page.json", "strata.svg", "strata.png"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    assert "GRU4Rec" in {line["method"] for line in content["strata"]}
    assert {cell["method"] for cell in content["cells"]} == {"STOSA"}
    assert content["claims"][0]["judgement"] == "not testable here"
    assert content["cold"][0]["test_users"] == 120
