"""Claims: the hypotheses as data, and what made-up records with a planted truth say of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtr
from statsmodels.stats.power import TTestPower

from harness import stats
from harness.compose import Budget, compose_cell
from harness.config import cell_key
from harness.errors import InputError
from harness.evaluation.metrics import METRICS
from harness.execution.plan import Plan
from harness.experiments import claims, common, figure3, table2
from harness.report.claims import (
    Claims,
    Evidence,
    Judged,
    Means,
    Word,
    build_claims,
    counts,
    peaks,
    published_cells,
)
from harness.report.claims_figure import claims_figure
from harness.report.claims_page import claims_json, claims_page, csv_text
from harness.report.figures import write_figure
from harness.report.hypotheses import Compare, Hypothesis, Peak, Sheet, Untestable, read
from harness.report.text import markdown
from harness.reproduce import main
from harness.run import Places
from harness.stats.power import CHANCE, detectable
from harness.store import Record
from harness.zoo import METHODS, Group
from tests.harness.report_world import World, ranks, record, table_data
from tests.harness.test_stats import golden

DATA = ("demo_rec_tmall", "demo_kuaishou")
USERS = 300
MEIE = "w/o MEIE"
TRUE = {**dict.fromkeys(figure3.REMOVALS, 0.5), MEIE: 1.0} | {
    method.label: 0.6 for method in METHODS if method.group is not Group.ours
}
"""How far each row lies below M3BSR in a world where everything that the paper says is true."""


class Opened:
    """A prepared set that was never prepared."""

    def __init__(self, _root: Path, name: str) -> None:
        facts = table_data(name)
        self.demo, self.data_sha256 = facts.demo, facts.data_sha256
        self.candidates_sha256 = lambda _: facts.candidates_sha256


_composed = cache(compose_cell)


@pytest.fixture(autouse=True)
def _nothing_is_prepared(request, monkeypatch):
    """Hydra and model building take most of the time of these tests; no data set is opened.

    Left alone is the test of the command line, which has a data set.
    """
    if "words" in request.fixturenames:
        return
    for module in (common, figure3):
        monkeypatch.setattr(module, "compose_cell", _composed)
    for check in ("check_split", "check_model"):
        monkeypatch.setattr(common, check, lambda *_: None)
    monkeypatch.setattr(common, "open_dataset", Opened)
    monkeypatch.setattr(claims, "_cold", lambda *_: dict.fromkeys(DATA, np.arange(USERS) % 3 == 0))
    monkeypatch.setattr(claims, "_look_up", lambda *_: None)


def request(word: str | None = None, seeds: int = 3, data: tuple[str, ...] = DATA,
            overrides: tuple[str, ...] = (), results: Path = Path("results")) -> common.Request:  # fmt: skip
    return common.Request(
        "claims", "demo", data, Budget.quick, seeds, claims.choose_methods(word), overrides,
        Places(Path("data"), results), "python -m harness.reproduce claims",
    )  # fmt: skip


def label_of(asked: common.Request) -> dict[str, str]:
    rows = figure3.rows(claims._figure3(asked))
    return {cell_key(cell): rows[cell_key(cell)].label if cell_key(cell) in rows
            else common.find(cell.method).label for cell in claims.cells(asked)}  # fmt: skip


def made(asked: common.Request, drops: Mapping[object, float], run_sd: float = 0.02,
         noise: float = 0.2) -> list[Record]:  # fmt: skip
    """Records of every cell: a row lies `drops` (by row, or by row and data set) below M3BSR."""
    labels = label_of(asked)
    users = {name: np.random.default_rng(9).standard_normal(USERS) for name in asked.names}
    records = []
    for number, cell in enumerate(claims.cells(asked)):
        row = labels[cell_key(cell)]
        random = np.random.default_rng(100 + number)
        drop = drops.get((row, cell.data), drops.get(row, 0.0))
        level = 0.4 - drop + run_sd * random.standard_normal()
        score = level + users[cell.data] + noise * random.standard_normal(USERS)
        records.append(record(cell, ranks(1 - ndtr(score))))
    return records


def judge(drops: Mapping[object, float], asked: common.Request | None = None,
          records: Sequence[Record] | None = None, **more: float) -> Claims:  # fmt: skip
    asked = asked or request()
    kept = made(asked, drops, **more) if records is None else records
    planned = Plan(tuple(claims.cells(asked)), {r.key: r for r in kept}, ())
    return claims.build(asked, planned, {})


def of(made_: Claims, name: str) -> Judged:
    return next(one for one in made_.judged if one.name == name)


def words(made_: Claims) -> dict[str, str]:
    return {one.name: one.word.value for one in made_.judged}


# --- cells ---


def test_cells_are_those_of_table2_and_figure3_each_once():
    asked = request(seeds=2)
    keys = [cell_key(cell) for cell in claims.cells(asked)]
    two = {cell_key(cell) for cell in table2.cells(replace(asked, methods=METHODS))}
    three = {
        cell_key(cell)
        for cell in figure3.cells(replace(asked, methods=figure3.choose_methods(None)))
    }
    assert len(keys) == len(set(keys))
    assert set(keys) == two | three
    assert len(two & three) == 2 * 2  # the full model, on two data sets, in two runs


def test_a_choice_of_rows_comes_with_m3bsr():
    asked = request("ebm,CDMD-M,SASRec", seeds=1, data=DATA[:1])
    assert [row.label for row in asked.methods] == ["SASRec", "EBM", "M3BSR", "w/o CDMD-M"]
    labels = set(label_of(asked).values())
    assert {"SASRec", "EBM", "M3BSR", "w/o CDMD-M"} < labels
    assert "STOSA" not in labels
    with pytest.raises(InputError, match="no row of Table 2 or Figure 3 'ebn'; did you mean 'ebm'"):
        claims.choose_methods("ebn")
    with pytest.raises(InputError, match="names no row"):
        claims.choose_methods(",")


# --- what is said ---


@cache
def everything_true() -> Claims:
    return judge(TRUE)


def test_where_everything_is_true_every_compared_sentence_is_supported():
    made_ = everything_true()
    compared = [one for one in made_.judged if one.needed]
    assert {one.word for one in compared} == {Word.SUPPORTED}
    assert {one.name: one.needed for one in compared} == {
        "C1": 128, "C2": 40, "C3": 40, "C4": 48, "C5": 20, "C6": 16, "C7a": 4, "C7b": 4, "C7c": 4,
        "C7d": 4, "C11 demo_rec_tmall": 6, "C11 demo_kuaishou": 6, "C12": 16,
    }  # fmt: skip
    others = {one.name for one in made_.judged if one.word is Word.NOT_TESTABLE}
    assert others == {"C8", "C9", "C10", "C13", "C14", "C15"}
    assert of(made_, "C8").why == "figure4 has no stored cells"


def test_the_page_says_which_data_how_many_entries_and_what_was_found():
    page = markdown(claims_page(everything_true()))
    assert page.startswith("DEMO DATA: demo_rec_tmall, demo_kuaishou")
    assert "One Holm family: 26 entries, of 13 sentences with p, two each" in page
    assert "13 supported, 0 contradicted, 0 undecided, 6 not testable here" in page
    assert "33 of the 34 published rows of Table 2 are impossible" in page
    assert "no published number gets a verdict by these runs" in page
    assert "by verdict" not in page
    assert "Low power: three or four runs" in page
    assert "corrected by Holm within a column" not in page  # Table 2's families, not this one


def test_one_lost_column_is_enough_to_contradict():
    """M3BSR lies far below SSDRec on one data set; all else is as the paper says."""
    made_ = judge({**TRUE, ("SSDRec", "demo_kuaishou"): -0.6})
    said = words(made_)
    assert said["C1"] == said["C2"] == "contradicted"
    assert {said[name] for name in ("C3", "C4", "C5", "C6", "C12")} == {"supported"}
    worst = of(made_, "C1").worst
    assert worst is not None
    assert (worst.better, worst.than, worst.dataset) == ("M3BSR", "SSDRec", "demo_kuaishou")
    assert worst.comparison.high < 0


def test_a_tie_leaves_a_sentence_undecided_and_says_what_would_have_been_found():
    made_ = judge({**TRUE, "SSDRec": 0.0})
    one = of(made_, "C1")
    assert one.word is Word.UNDECIDED
    assert one.why == ""
    assert one.worst is not None
    assert one.detectable is not None
    assert one.detectable > one.worst.comparison.difference
    assert "would be found with probability 0.8" in markdown(claims_page(made_))


def test_another_part_that_matters_more_contradicts_meie_alone():
    made_ = judge({**TRUE, MEIE: 0.5, "w/o Disent": 2.0})
    said = words(made_)
    assert said["C6"] == "contradicted"
    assert said["C5"] == said["C7d"] == "supported"
    harmful = words(judge({**TRUE, "w/o CDMD-B": -0.6}))
    assert harmful["C5"] == harmful["C7b"] == "contradicted"
    assert harmful["C7a"] == "supported"


def test_cold_start_is_judged_on_the_cold_users_of_each_data_set(monkeypatch):
    """EBM is far better on every third user, the cold ones, of one data set, and nowhere else."""
    asked = request("stosa,mmmlp,ebm", data=DATA)
    labels = label_of(asked)
    kept = []
    for one in made(asked, TRUE):
        if labels[one.key] == "EBM" and one.data == "demo_kuaishou":
            best = ranks(np.where(np.arange(USERS) % 3 == 0, 0.0, 0.9))
            kept.append(replace(one, ranks=best))
        else:
            kept.append(one)
    made_ = judge({}, asked, kept)
    assert of(made_, "C11 demo_kuaishou").word is Word.CONTRADICTED
    assert of(made_, "C11 demo_rec_tmall").word is Word.SUPPORTED
    facts = " ".join(of(made_, "C11 demo_kuaishou").facts)
    assert "100 of the 300 test users of demo_kuaishou" in facts
    assert "the text of section 5.5" in facts
    monkeypatch.setattr(claims, "_cold", lambda *_: dict.fromkeys(DATA, np.arange(USERS) == 7))
    few = of(judge({}, asked, kept), "C11 demo_kuaishou")
    assert few.word is Word.NOT_TESTABLE
    assert few.why == "1 of the 300 test users of demo_kuaishou are cold-start users"


# --- few runs, gaps ---


@pytest.mark.parametrize(
    ("seeds", "why"),
    [(1, "one run a method: no test"), (2, "two runs of a method: p values, but no judgement")],
)
def test_few_runs_leave_everything_undecided_and_say_why(seeds, why):
    made_ = judge(TRUE, request("stosa,mmmlp,ebm,w/o CDMD-M", seeds=seeds, data=DATA[:1]))
    judged = [one for one in made_.judged if one.parts and one.word is not Word.NOT_TESTABLE]
    assert {one.name for one in judged} == {"C7a", "C11 demo_rec_tmall"}
    assert {one.word for one in judged} == {Word.UNDECIDED}
    assert all(one.why.startswith(why) for one in judged)
    assert made_.entries == (0 if seeds == 1 else 4)
    assert all((one.detectable is None) == (seeds == 1) for one in judged)
    page = markdown(claims_page(made_))
    assert why in page
    json.dumps(claims_json(made_), allow_nan=False)


def test_rows_without_runs_make_a_sentence_not_testable_and_are_named():
    asked = request("ebm,stosa,cdmd-m", data=DATA[:1])
    labels = label_of(asked)
    kept = [r for r in made(asked, TRUE) if labels[r.key] != "EBM"]
    made_ = judge({}, asked, kept)
    one = of(made_, "C12")
    assert one.word is Word.NOT_TESTABLE
    assert one.why == "no runs of CMCLRec, EBM"
    assert of(made_, "C1").why.startswith("no runs of GRU4Rec, SASRec, BERT4Rec, SSDRec and ")
    assert len(of(made_, "C1").parts) == 4  # against STOSA alone
    assert of(made_, "C7a").word is Word.SUPPORTED
    assert made_.entries == 2


def test_without_any_run_the_page_is_printed_all_the_same(tmp_path):
    made_ = judge({}, request("ebm,cdmd-m", data=DATA[:1]), [])
    page = markdown(claims_page(made_))
    assert "No sentence has a p, so the Holm family is empty." in page
    assert made_.count(Word.NOT_TESTABLE) == len(made_.judged)
    json.dumps(claims_json(made_), allow_nan=False)
    assert csv_text(made_)
    write_figure(tmp_path, "claims", claims_figure(made_))
    assert (tmp_path / "claims.svg").stat().st_size > 1000


def test_one_run_less_of_one_row_is_said():
    asked = request("cdmd-m", seeds=2, data=DATA[:1])
    labels = label_of(asked)
    kept = [r for r in made(asked, TRUE) if not (labels[r.key] == "w/o CDMD-M" and r.seed == 2)]
    one = of(judge({}, asked, kept), "C7a")
    assert one.word is Word.UNDECIDED
    assert one.why == "one run a method: no test"


# --- the published numbers ---


def test_published_numbers_of_the_papers_data_are_counted_by_verdict():
    world = World(data=("rec_tmall",), methods=("gru4rec", "bert4rec", "ebm", "m3bsr"))
    left = world.without(*(("ebm", seed) for seed in (1, 2, 3)))
    made_ = build_claims(read(), world.table(left), {})
    cells = published_cells(made_.table)
    assert len(cells) == 4 * 4
    counted = counts(cells, "rec_tmall")
    assert sum(counted.values()) == len(cells)
    assert sum(n for (verdict, _), n in counted.items() if verdict.value == "no runs") == 4
    assert sum(n for (_, possible), n in counted.items() if possible) == 4  # BERT4Rec's row
    page = markdown(claims_page(made_))
    assert "Published numbers of Table 2 by verdict: rec_tmall" in page
    assert "The verdict on each published number" in page
    assert "~~0.3207~~" in page
    assert "The order of methods and the lead" in page
    content = claims_json(made_)
    assert {cell["verdict"] for cell in content["published"]} >= {"no runs", "outside"}
    assert content["order"][0]["tau"] is not None
    lines = list(csv.DictReader(io.StringIO(csv_text(made_))))
    assert sum(line["kind"] == "published" for line in lines) == 16


def test_one_run_cannot_judge_a_published_number():
    world = World(data=("rec_tmall",), methods=("ebm", "m3bsr"), seeds=1)
    made_ = build_claims(read(), world.table(), {})
    said = {cell.verdict.value for cell in published_cells(made_.table)}
    assert said == {"undecidable with one run"}


# --- evidence from elsewhere ---


def plateau(means: Sequence[float], sd: float = 0.004) -> stats.Plateau:
    random = np.random.default_rng(3)
    return stats.heatmap(
        [
            stats.moments(mean + sd * random.standard_normal((3, 1)) + np.linspace(-0.1, 0.1, 50)[None])
            for mean in means
        ]
    )  # fmt: skip


def test_a_peak_is_supported_only_where_it_stands_alone_on_every_data_set():
    alone, flat = plateau([0.5, 0.3, 0.3]), plateau([0.31, 0.3, 0.3])
    assert peaks({"a": (alone, 0)}, "10 / 0.02").word is Word.SUPPORTED
    assert peaks({"a": (alone, 0), "b": (flat, 0)}, "10 / 0.02").word is Word.UNDECIDED
    assert peaks({"a": (flat, 0), "b": (alone, 2)}, "10 / 0.02").word is Word.CONTRADICTED
    assert (
        "1 of 3 cells may be the peak, this one among them"
        in peaks({"a": (alone, 0)}, "x").facts[0]
    )


def test_figure4_answers_for_the_panels_that_have_cells():
    """The full model's own cell is Table 2's: alone it is no heatmap."""
    ten, weight = Decimal(10), Decimal("0.02")
    spots = [
        SimpleNamespace(first=ten, second=weight),
        SimpleNamespace(first=Decimal(5), second=weight),
    ]
    alone = plateau([0.5, 0.3])
    surfaces = [
        SimpleNamespace(panel=SimpleNamespace(name=name), data=SimpleNamespace(name="a"), spots=spots,
                        judged=spots[:judged], statistics=alone if judged > 1 else None, why="one cell")
        for name, judged in (("behaviour", 2), ("modality", 1))
    ]  # fmt: skip
    module = SimpleNamespace(build=lambda *_: SimpleNamespace(surfaces=surfaces))
    peaks_of = [one for one in read() if isinstance(one.test, Peak)]
    found = claims._peaks(module, request(data=DATA[:1]), Plan((), {}, ()), peaks_of)
    assert list(found) == ["C8"]
    assert found["C8"].word is Word.SUPPORTED
    assert "10 / 0.02 has 0.4999" in found["C8"].facts[0]


def test_figure5_answers_once_the_twin_has_runs():
    reading = SimpleNamespace(data="a", judgement=stats.Judgement.UNDECIDED, why="no categories")
    made_ = SimpleNamespace(judgement=stats.Judgement.UNDECIDED, readings=[reading])
    twin = SimpleNamespace(label="MLP twin")
    module = SimpleNamespace(
        rows=lambda _: {"full": claims.FULL, "twin": twin}, build=lambda *_: made_
    )
    some: Record = made(request("ebm", seeds=1, data=DATA[:1]), TRUE)[0]
    asked = request(data=DATA[:1])
    assert claims._clusters(module, asked, Plan((), {"full": some}, ()), ()) is None
    said = claims._clusters(module, asked, Plan((), {"full": some, "twin": some}, ()), ())
    assert said is not None
    assert said.word is Word.UNDECIDED
    assert said.facts == ("a: undecided (no categories)",)


def test_evidence_is_printed_and_enters_no_family():
    world = World()
    said = {"C8": Evidence(Word.CONTRADICTED, facts=("the peak is elsewhere",))}
    made_ = build_claims(read(), world.table(), {}, said)
    assert of(made_, "C8").word is Word.CONTRADICTED
    assert not of(made_, "C8").in_family
    assert made_.entries == 0
    assert "the peak is elsewhere." in markdown(claims_page(made_))


# --- statistics ---


@pytest.mark.parametrize(("count", "level"), [(3, 0.05), (5, 0.002), (10, 0.01), (200, 0.0004)])
def test_detectable_differences_are_those_of_an_independent_library(count, level):
    theirs = TTestPower().solve_power(nobs=count, alpha=level, power=CHANCE, alternative="larger")
    ours = detectable(1.0, count - 1.0, level)
    assert ours == pytest.approx(theirs * count**0.5, rel=1e-4)
    assert detectable(4.0, count - 1.0, level) == pytest.approx(2 * ours)
    assert detectable(0.0, count - 1.0, level) == 0.0


@pytest.mark.parametrize("metric", ["HR@10", "NDCG@10"])
def test_golden_claims_come_out_of_the_same_path(metric):
    """Judgements and corrected p of four claims on three methods, as in statistics.json."""
    theirs = golden()
    above, tied = (np.array(theirs["input"][name]) for name in ("above", "tied"))
    y = METRICS[metric](above, tied)
    methods = dict(zip(theirs["input"]["methods"], map(stats.moments, y), strict=True))
    world = World()
    means = Means({(world.data[0], metric): stats.column(methods)}, {})
    said = {
        "a>b": ("a", "b"),
        "a>b and a>c": ("a", "bc"),
        "c>b": ("c", "b"),
        "b>a and c>a": ("bc", "a"),
    }
    hypotheses = [
        Hypothesis(
            name, "", "", "", "", Compare(Sheet.table2, tuple(better), tuple(than), (metric,))
        )
        for name, (better, than) in said.items()
    ]
    judged = build_claims(hypotheses, world.table(), {Sheet.table2: means}).judged
    wanted = theirs["statistics"][metric]["claims"]
    assert [one.word.value for one in judged] == wanted["verdict"]
    for ours, key in (("support_holm", "support_holm"), ("reverse_holm", "reverse_holm")):
        found = [getattr(one.claim, ours) for one in judged]
        assert found == pytest.approx(wanted[key], rel=1e-6, abs=1e-9)


# --- the file, the files ---


def test_the_papers_file_is_whole():
    hypotheses = {one.id: one for one in read()}
    assert list(hypotheses)[:4] == ["C1", "C2", "C3", "C4"]
    sizes = {name: len(one.test.pairs) for name, one in hypotheses.items()
             if isinstance(one.test, Compare)}  # fmt: skip
    assert (sizes["C1"], sizes["C2"], sizes["C3"], sizes["C4"], sizes["C5"], sizes["C6"]) == (
        16, 5, 5, 6, 5, 4,
    )  # fmt: skip
    assert isinstance(hypotheses["C15"].test, Untestable)


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("{compare: table9, better: [M3BSR], than: [EBM], metrics: [HR@10]}", "no sheet 'table9'"),
        ("{compare: table2, better: [M3BSR], than: [EBN], metrics: [HR@10]}", "no row 'EBN'; did you mean 'EBM'"),
        ("{compare: table2, better: [M3BSR], than: [EBM], metrics: [HR@11]}", "no metric 'HR@11'"),
        ("{peak: behavor, at: [1, 2]}", "no panel 'behavor'; did you mean 'behaviour'"),
        ("{}", "C1 has not the shape of"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(tmp_path, test, says):
    path = tmp_path / "claims.yaml"
    path.write_text(
        f"hypotheses:\n  C1: {{section: a, short: b, says: c, must: d, test: {test}}}\n"
    )
    with pytest.raises(InputError, match=says):
        read(path)


def test_json_csv_and_figure_hold_everything_and_are_the_same_every_time(tmp_path):
    made_ = everything_true()
    content = claims_json(made_)
    json.dumps(content, allow_nan=False)
    assert content["target"] == "claims"
    assert content["correction"]["entries"] == 26
    first = content["claims"][0]
    assert {"id", "judgement", "why", "parts", "p_support_holm", "p_reverse_holm", "worst",
            "detectable"} <= set(first)  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(csv_text(made_))))
    parts = [line for line in lines if line["kind"] == "part" and line["id"] == "C1"]
    assert len(parts) == 128
    assert {line["kind"] for line in lines} == {"claim", "part", "order"}
    for name in ("one", "two"):
        write_figure(tmp_path, name, claims_figure(made_))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    drawn = (tmp_path / "one.svg").read_text(encoding="utf8")
    assert "C6: MEIE matters most" in drawn
    assert "supported" in drawn


def test_numbers_of_the_grid_name_their_runs():
    made_ = everything_true()
    page = claims_page(made_)
    grid = next(part for part in page.parts if getattr(part, "title", "") == "Judgements")
    line = next(line for line in grid.lines if line.name.startswith("C5"))
    keys = [key for cell in line.entries for span in cell for key in span.runs]
    assert len(keys) == len(set(keys)) == 6  # three runs of each of the two


@pytest.mark.slow
def test_from_the_command_line(words, capsys, tmp_path):
    arguments = ["claims", *words, "--budget", "smoke", "--methods", "ebm,cdmd-m"]
    assert main([*arguments, "--plan"]) == 0
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "results" / "tables" / "claims" / "tiny"
    for name in ("table.md", "table.csv", "table.tex", "table.json", "claims.svg", "claims.png"):
        assert (folder / name).is_file()
    assert "C7a: denoising of modalities helps" in shown
    assert "one run a method: no test" in shown
