"""The multiverse: its readings and cells, and what it says of made-up records with a planted truth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from harness import reproduce
from harness.compose import Budget, compose_cell
from harness.config import ProtocolConfig, cell_key, plain
from harness.errors import InputError
from harness.execution.plan import Plan
from harness.experiments import common, multiverse, table2
from harness.report import multiverse_figure
from harness.report.figures import write_figure
from harness.report.multiverse import Kind, Multiverse, Verdict, World, build_multiverse
from harness.report.multiverse_page import counts, csv_text, json_content, page, summary
from harness.report.text import markdown
from harness.run import Places
from harness.stats.spread import equal_spread
from harness.store import Record
from harness.zoo import METHODS, find
from models.experts import DisentangleLoss
from models.m3bsr import M3BSRConfig
from models.readings import OPTIONS, SETS, option, value_name
from tests.harness.report_world import ranks, record, table_data

DATA = ("demo_rec_tmall", "demo_kuaishou")
SOME = "r6,r9=separate,repaired,p2=keep,p4"
"""Six readings beside the one that they start from."""
LATE = 60
"""Test users under P4."""


class Opened:
    """A data set's facts without its files."""

    def __init__(self, _root: Path, name: str) -> None:
        facts = table_data(name)
        self.demo, self.data_sha256 = facts.demo, facts.data_sha256
        self.candidates_sha256 = lambda _: facts.candidates_sha256


@pytest.fixture(scope="module", autouse=True)
def _no_files():
    """Hydra takes most of the time of these tests; no data set and no results are opened."""
    with pytest.MonkeyPatch.context() as patch:
        composed = cache(compose_cell)
        for module in (common, multiverse):
            patch.setattr(module, "compose_cell", composed)
            patch.setattr(module, "check_split", lambda *_: None)
            patch.setattr(module, "open_dataset", Opened)
        patch.setattr(multiverse, "plan", lambda cells, _: Plan(tuple(cells), {}, ()))
        patch.setattr(multiverse, "_unusable", lambda *_: "")
        patch.setattr(multiverse, "RIVALS", tuple(map(find, ("gru4rec", "sasrec", "ebm"))))
        yield


def request(word: str | None = SOME, seeds: int = 3, overrides: tuple[str, ...] = (),
            target: str = "multiverse", data: tuple[str, ...] = DATA[:1]) -> common.Request:  # fmt: skip
    choose = multiverse.choose_methods if target == "multiverse" else common.choose_methods
    return common.Request(
        target, "demo", data, Budget.quick, seeds, choose(word), overrides,
        Places(Path("data"), Path("results")), "a command",
    )  # fmt: skip


def made(asked: common.Request, levels: Mapping[str, float] | None = None,
         run_sd: float = 0.02) -> dict[str, Record]:  # fmt: skip
    """Records of every cell, by key: M3BSR's `levels` by reading, above the rival's 0."""
    levels = levels or {}
    records = {}
    for panel in multiverse.panels(asked):
        user = np.random.default_rng(9).standard_normal(400)
        for row in panel.specifications:
            level = levels.get(row.short, levels.get("all", 0.0))
            for own, cells in ((level, row.cells), (0.0, row.rival)):
                for cell in cells:
                    key = cell_key(cell)
                    if key in records:
                        continue
                    random = np.random.default_rng(int(key[:8], 16))
                    score = own + run_sd * random.standard_normal() + user
                    score = score + 0.2 * random.standard_normal(400)
                    users = LATE if row.id == "P4" else 400
                    records[key] = record(cell, ranks(1 - ndtr(score[:users])))
    return records


def build(asked: common.Request, records: Mapping[str, Record], **more: object) -> Multiverse:
    return build_multiverse(
        records, multiverse.panels(asked), failed=more.pop("failed", {}),  # type: ignore[arg-type]
        seeds=asked.seeds, options=(*OPTIONS, *multiverse.PROTOCOL), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def verdicts(world: World) -> dict[str, str | None]:
    return {row.specification.short: row.verdict and row.verdict.value for row in world.readings}


def leaves(config: object, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for entry in fields(config):  # type: ignore[arg-type]
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", value


# --- readings ---


def test_no_option_and_no_value_is_forgotten():
    assert [o.id for o in OPTIONS] == [f"R{number}" for number in range(1, 24)]
    for config, options in ((M3BSRConfig(), OPTIONS), (ProtocolConfig(), multiverse.PROTOCOL)):
        choices = {path: value for path, value in leaves(config) if isinstance(value, Enum)}
        choices = {p: v for p, v in choices.items() if not p.startswith("parts.")}
        tables = {o.path: o for o in options}
        assert set(choices) <= set(tables)
        assert set(tables) - set(choices) <= {"denoiser.time_embedding", "diffusion.steps"}
        for path, default in choices.items():
            assert tables[path].values[0] is default
            assert set(tables[path].values) == set(type(default))
            assert len(tables[path].values) > 1


def test_numbers_of_the_readings_stand_beside_their_options():
    """`R9.` opens the docstring of the type that R9 names."""
    for o in OPTIONS:
        default = o.of(M3BSRConfig())
        if isinstance(default, Enum):
            assert (type(default).__doc__ or "").startswith(f"{o.id}. ")


def test_an_option_without_a_list_of_values_is_refused():
    with pytest.raises(TypeError, match="R99 heads: nothing lists its values"):
        option(M3BSRConfig(), "R99", "heads", "why")


def test_a_reading_changes_a_copy():
    config = M3BSRConfig()
    nine = next(o for o in OPTIONS if o.id == "R9")
    changed = nine.taken(config, DisentangleLoss.separate)
    assert nine.of(changed) is DisentangleLoss.separate
    assert config == M3BSRConfig() != changed
    assert nine.others(changed) == (DisentangleLoss.printed, DisentangleLoss.orthogonal)
    assert value_name(True) == "true"


# --- cells ---


def test_what_the_others_start_from_is_table_2s():
    asked = request(None, data=DATA)
    full = {
        cell_key(cell) for cell in table2.cells(request("ebm,m3bsr", target="table2", data=DATA))
        if cell.method in {"m3bsr", "ebm"}
    }  # fmt: skip
    keys = [cell_key(cell) for cell in multiverse.cells(asked)]
    assert full <= set(keys)
    assert len(keys) == len(set(keys))
    alternatives = sum(len(o.values) - 1 for o in OPTIONS)
    readings = 6
    assert len(keys) == 2 * 3 * (1 + alternatives + len(SETS) + readings + 1 + readings)
    plan_line = multiverse.later(asked)
    assert plan_line.startswith("37 readings on demo_rec_tmall, against EBM (the highest HR@10")


def test_each_reading_changes_one_setting_and_nothing_else():
    asked = request(None, seeds=1)
    panel = multiverse.panels(asked)[0]
    base = dict(leaves(panel.specifications[0].cells[0]))
    for row in panel.specifications[1:]:
        own = dict(leaves(row.cells[0]))
        changed = {key for key in base if own[key] != base[key]}
        if row.kind is Kind.SET:
            assert changed == {"model.diffusion.loss", "model.disent.loss"}
            assert row.turned == ("R6 noise", "R9 separate")
            continue
        prefix = "protocol." if row.kind is Kind.PROTOCOL else "model."
        assert changed == {prefix + row.option}
        assert value_name(own[prefix + row.option]) == row.value
        assert value_name(base[prefix + row.option]) == row.usual
        theirs = row.rival[0]
        assert theirs.method == "ebm"
        assert plain(theirs.protocol) == plain(row.cells[0].protocol)


def test_an_override_is_what_the_others_start_from():
    asked = request("r6,r9,repaired", overrides=("model.disent.loss=separate",))
    labels = [row.short for row in multiverse.panels(asked)[0].specifications]
    assert labels == [
        "default", "R6 noise", "R6 reconstruction", "R9 printed", "R9 orthogonal",
    ]  # fmt: skip
    asked = request("r9,repaired", overrides=("model.disent.loss=separate",))
    assert "repaired" in [row.short for row in multiverse.panels(asked)[0].specifications]
    both = ("model.disent.loss=separate", "model.diffusion.loss=noise")
    asked = request("repaired,p2=drop", overrides=(*both, "protocol.same_item_history=keep"))
    rows = multiverse.panels(asked)[0].specifications
    assert [row.short for row in rows] == ["default", "P2 drop"]


def test_readings_are_chosen_by_id():
    labels = [row.label for row in multiverse.choose_methods(" P2,r10=tile,repaired,R4,r10=scalar")]
    assert labels == ["M3BSR", "R4", "R10=scalar", "R10=tile", "repaired", "P2"]
    with pytest.raises(InputError, match=r"no reading 'r24'; did you mean 'R"):
        multiverse.choose_methods("r24")
    with pytest.raises(InputError, match="no value of R10 'tiles'; did you mean 'tile'"):
        multiverse.choose_methods("r10=tiles")
    with pytest.raises(InputError, match="names no reading; choose from: R1, R2"):
        multiverse.choose_methods(",")
    with pytest.raises(InputError, match="M3BSR cannot be built"):
        multiverse.cells(request(overrides=("model.heads=3", "model.hidden=8")))
    with pytest.raises(InputError, match=r"no setting 'model\.inner'"):
        multiverse.cells(request(overrides=("model.inner=8",)))  # of MISSRec, who is not here


# --- the rival ---


def stored_table2(validations: Mapping[str, float]) -> Any:
    """`plan` as if Table 2 had runs of these methods, with this validation NDCG@10."""

    def plan(cells: Iterable[Any], _places: Places) -> Plan:
        chosen = tuple(cells)
        stored = {
            cell_key(cell): record(
                cell, ranks(np.linspace(0, 0.99, 50) if cell.method == "gru4rec" else np.full(50, 0.5)),
                curve=[{"epoch": 1, "NDCG@10": 0.0}, {"epoch": 2, "NDCG@10": validations[cell.method]}],
                best_epoch=2,
            )
            for cell in chosen if cell.method in validations
        }  # fmt: skip
        return Plan(chosen, stored, ())

    return plan


def test_the_rival_is_chosen_by_validation(monkeypatch):
    """GRU4Rec is best in the test; nobody looks."""
    known = {"ebm": 0.2, "gru4rec": 0.1, "sasrec": 0.3}
    monkeypatch.setattr(multiverse, "plan", stored_table2(known))
    one = multiverse.rival(request(), DATA[0])
    assert one.method.label == "SASRec"
    assert "the highest validation NDCG@10, 0.3000, of the 3 methods with runs here" in one.why
    cells = multiverse.cells(request("p2", seeds=1))
    assert [cell.method for cell in cells] == ["m3bsr", "sasrec"] + 2 * ["m3bsr", "sasrec"]


@pytest.mark.parametrize("known", [{}, {"ebm": 0.2}, {"sasrec": 0.3}])
def test_without_table_2_the_rival_is_the_papers(monkeypatch, known):
    monkeypatch.setattr(multiverse, "plan", stored_table2(known))
    one = multiverse.rival(request(), DATA[0])
    assert one.method.label == "EBM"
    assert "as Table 2 is not stored" in one.why


# --- what is said ---


def test_a_planted_win_is_a_win_and_flips_with_the_numbers():
    asked = request()
    up = build(asked, made(asked, {"all": 0.5})).worlds[0]
    assert set(verdicts(up).values()) == {"wins"}
    down = build(asked, made(asked, {"all": -0.5})).worlds[0]
    assert set(verdicts(down).values()) == {"loses"}
    even = build(asked, made(asked, {})).worlds[0]
    assert list(verdicts(even).values()).count("cannot be told") >= len(even.readings) - 1
    found = counts(up, "HR@10")
    assert (found["readings"], found["above"], found["wins"], found["wins_holm"]) == (7, 7, 7, 7)
    assert counts(down, "NDCG@10")["loses_holm"] == 7
    assert "significantly in 7 (7 after Holm over the readings)" in summary(up, 3)[0]
    assert "every other reading with runs has the same." in summary(up, 3)[2]


def test_a_reading_that_turns_the_verdict_is_named():
    asked = request()
    world = build(asked, made(asked, {"all": 0.5, "R6 noise": -0.5, "P2 keep": -0.5})).worlds[0]
    assert verdicts(world)["default"] == "wins"
    assert verdicts(world)["R6 noise"] == verdicts(world)["P2 keep"] == "loses"
    said = summary(world, 3)
    assert "M3BSR beats EBM; another one in 2 of 6: loses: R6 noise, P2 keep." in said[2]
    assert "NDCG@10 1 of 4: R6 noise (-0." in said[3]
    rows = {row.specification.short: row for row in world.readings}
    assert rows["R6 noise"].outcomes["HR@10"].changes
    assert not rows["R9 separate"].outcomes["HR@10"].changes
    assert rows["P2 keep"].outcomes["HR@10"].against_base is None  # another test
    assert "That all are equal is rejected (F test" in said[4]


def test_the_range_of_equal_readings_is_set_beside_chance():
    asked = request("r6,r9,r10,r4,r8,r21")
    world = build(asked, made(asked, {})).worlds[0]
    line = next(line for line in summary(world, 3) if "HR@10 over the" in line)
    assert "HR@10 over the 12 readings that share one test lies between" in line
    assert "12 readings that are all equal lie 3.3 standard deviations" in line
    assert "That all are equal is not rejected (F test" in line


def test_two_ends_and_the_test_of_all_may_disagree():
    """One reading of thirteen is off: the F test over all has less power than the two ends."""
    asked = request("r6,r9,r10,r4,r8,r21")
    said = set()
    for level in np.linspace(0.0, 0.3, 7):
        world = build(asked, made(asked, {"R8 mean": float(level)})).worlds[0]
        spread, line = world.spreads[0], summary(world, 3)[4]
        assert spread.test is not None
        wide = spread.range > spread.equal.high * np.sqrt(spread.test.D)
        assert ("The two ends alone" in line) == (wide == spread.test.flat)
        said.add((bool(wide), spread.test.flat))
    assert {(False, True), (True, False)} <= said


def test_readings_of_the_protocol_have_users_of_their_own():
    asked = request()
    world = build(asked, made(asked, {"all": 0.5})).worlds[0]
    users = {row.specification.short: row.users for row in world.readings}
    assert users["P4 global_time"] == LATE
    assert users["P2 keep"] == users["default"] == 400
    assert world.spreads[0].count == 5  # P2 and P4 are no part of it


@pytest.mark.parametrize(("seeds", "said"), [(1, "One run a reading"), (2, "Two runs a reading")])
def test_few_runs_win_nothing(seeds, said):
    asked = request(seeds=seeds)
    result = build(asked, made(asked, {"all": 1.0}))
    assert set(verdicts(result.worlds[0]).values()) == {"cannot be told"}
    text = markdown(page(result))
    assert said in text
    assert "with fewer than three runs nothing is called significant." in text
    assert "**" not in text.split("## Every reading against the rival")[1].split("\n- Mean")[0]
    content = json_content(result)
    if seeds == 1:
        assert all(
            line["sd"] is None and line["minus_rival_p"] is None for line in content["readings"]
        )
        assert "read nothing from the range" in text
    assert all(line["verdict"] == "cannot be told" for line in content["readings"])


# --- gaps, files ---


def test_what_does_not_train_is_a_result_and_what_is_missing_a_gap():
    asked = request("r1,r6,p2=keep")
    records = made(asked, {"all": 0.5})
    rows = {row.short: row for row in multiverse.panels(asked)[0].specifications}
    failed = {}
    for cell in rows["R1 alpha"].cells:
        key = cell_key(cell)
        del records[key]
        failed[key] = "TrainingDivergedError: loss not finite in epoch 1"
    for cell in rows["P2 keep"].rival:
        del records[cell_key(cell)]
    del records[cell_key(rows["R6 noise"].cells[1])]
    result = build(asked, records, failed=failed)
    text = markdown(page(result))
    told = {row.specification.short: row for row in result.worlds[0].readings}
    assert told["R1 alpha"].status == "does not train"
    assert (
        "R1 schedule.noise=alpha on demo_rec_tmall: M3BSR seeds 1, 2, 3: failed: Training" in text
    )
    assert told["P2 keep"].verdict is None
    assert told["P2 keep"].gaps == ("EBM seeds 1, 2, 3: not run",)
    assert "no runs of the rival" in text
    assert told["R6 noise"].verdict is Verdict.OPEN  # two runs
    assert told["R6 reconstruction"].verdict is Verdict.WINS
    assert "2 of 5 readings have no verdict." in text
    assert result.worlds[0].spreads[0].left_out == ("R6 noise",)
    assert multiverse_figure.draw(result)


def test_a_reading_that_cannot_be_run_is_a_row(monkeypatch):
    monkeypatch.setattr(
        multiverse, "_unusable",
        lambda _, both: "1 test users" if both[0].protocol.cutoff.name == "global_time" else "",
    )  # fmt: skip
    asked = request()
    assert len(multiverse.cells(asked)) == 3 * (6 + 2)
    result = build(asked, made(asked))
    row = result.worlds[0].readings[-1]
    assert (row.status, row.gaps) == ("not possible here", ("1 test users",))
    assert markdown(page(result))
    assert multiverse_figure.draw(result)


def test_a_loss_that_is_drowned_is_said():
    asked = request("r1", seeds=1)
    records = made(asked)
    key = cell_key(multiverse.panels(asked)[0].specifications[1].cells[0])
    row = {"epoch": 1, "loss": 4e23, "main": 5.5, "NDCG@10": 0.1}
    records[key] = replace(records[key], curve=[row])
    text = markdown(page(build(asked, records)))
    assert (
        "trains on a loss of 4.0e+23, of which the part that ranks items is 5.50 (1 of 1 runs)"
        in text
    )


@pytest.mark.parametrize("kept", ["none", "base", "without base"])
def test_a_page_prints_with_none_or_some_of_its_runs(kept):
    asked = request(data=DATA)
    base = {
        cell_key(cell)
        for panel in multiverse.panels(asked)
        for cell in panel.specifications[0].cells
    }
    keep = {
        "none": lambda _: False,
        "base": base.__contains__,
        "without base": lambda k: k not in base,
    }
    records = {key: one for key, one in made(asked).items() if keep[kept](key)}
    result = build(asked, records)
    assert markdown(page(result)).startswith("DEMO DATA")
    assert csv_text(result)
    json.dumps(json_content(result), allow_nan=False)
    assert multiverse_figure.draw(result)
    if kept != "without base":
        assert all(
            "nothing is said" in line for world in result.worlds for line in summary(world, 3)
        )
    else:
        assert "the default has no verdict" in summary(result.worlds[0], 3)[2]


def test_json_and_csv_have_a_line_a_reading_and_metric():
    asked = request(data=DATA)
    result = build(asked, made(asked, {"all": 0.5}))
    content = json_content(result)
    json.dumps(content, allow_nan=False)
    assert content["target"] == "multiverse"
    assert [data["name"] for data in content["data"]] == list(DATA)
    assert content["protocol"]["same_item_history"] == "drop"
    assert [one["method"] for one in content["rivals"]] == ["EBM", "EBM"]
    assert len(content["readings"]) == 2 * 7 * 2
    assert content["combinations"] == 4076863488
    lines = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert len(lines) == len(content["readings"])
    for line, row in zip(lines, content["readings"], strict=True):
        assert float(line["minus_rival"]) == row["minus_rival"]
        assert row["minus_rival_p_holm"] >= row["minus_rival_p"]
        assert (row["minus_base"] is None) == (row["kind"] in {"base", "protocol"})


def test_publish_writes_the_files_and_the_figure(tmp_path):
    asked = replace(request(), places=Places(tmp_path / "data", tmp_path / "results"))
    cells, records = multiverse.cells(asked), made(asked, {"all": 0.5})
    gone = {cell_key(cell) for cell in multiverse.panels(asked)[0].specifications[1].cells}
    left = {key: one for key, one in records.items() if key not in gone}
    reason = dict.fromkeys(gone, "TrainingDivergedError: loss not finite")
    shown = multiverse.publish(asked, Plan(tuple(cells), left, ()), reason)
    assert shown.endswith("/table.md, .csv, .tex, .json, multiverse.svg, .png")
    assert "What is missing" not in shown  # it does not train: nothing would fill the gap
    folder = tmp_path / "results" / "tables" / "multiverse" / "demo"
    text = (folder / "table.md").read_text(encoding="utf8")
    assert "](multiverse.svg)" in text
    assert "why it is open" in text
    assert r"\label{tab:multiverse}" in (folder / "table.tex").read_text(encoding="utf8")
    first = (folder / "multiverse.svg").read_bytes()
    assert b"M3BSR minus EBM" in first
    write_figure(tmp_path, "again", multiverse_figure.draw(build(asked, left, failed=reason)))
    assert (tmp_path / "again.svg").read_bytes() == first


def test_25_equal_means_spread_as_the_protocol_says():
    spread = equal_spread(25)
    assert (round(spread.expected, 1), round(spread.high, 1)) == (3.9, 5.2)
    assert equal_spread(2).expected == pytest.approx(2 / np.sqrt(np.pi), abs=1e-6)
    assert equal_spread(25, 20.0).high > spread.high  # an estimated one
    drawn = np.ptp(np.random.default_rng(0).standard_normal((40_000, 12)), axis=1)
    assert equal_spread(12).expected == pytest.approx(drawn.mean(), abs=0.01)
    assert equal_spread(12).high == pytest.approx(np.quantile(drawn, 0.95), abs=0.03)
    with pytest.raises(ValueError, match="two means"):
        equal_spread(1)


# --- from the command line ---


@pytest.mark.slow
def test_a_smoke_run_from_the_command_line(words, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    asked = ["multiverse", *words, "--budget", "smoke", "--methods", "r4=bypass,p2=novel_only,p4"]
    with pytest.MonkeyPatch.context() as real:
        real.setattr(multiverse, "plan", plan_as_it_is)
        real.setattr(multiverse, "_unusable", UNUSABLE)
        for module in (common, multiverse):
            real.setattr(module, "open_dataset", OPEN)
        assert reproduce.main([*asked, "--plan"]) == 0
        assert "5 cells wanted" in capsys.readouterr().out
        assert reproduce.main(asked) == 0
        out = capsys.readouterr().out
    assert out.startswith("DEMO DATA")
    assert "not possible here" in out  # nobody has a validation favor left under novel_only
    folder = tmp_path / "results" / "tables" / "multiverse" / "tiny"
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    rows = {(row["id"], row["metric"]): row for row in content["readings"]}
    assert rows["P4", "HR@10"]["users"] < rows["default", "HR@10"]["users"]
    assert rows["R4", "HR@10"]["seeds"] == 1


assert len(multiverse.RIVALS) == len(METHODS) - 1
plan_as_it_is, UNUSABLE, OPEN = multiverse.plan, multiverse._unusable, multiverse.open_dataset
