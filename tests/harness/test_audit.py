"""The audit's arithmetic: golden numbers, the paper's tables, properties of true histograms."""

from __future__ import annotations

import json
import math
import statistics
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.audit import Metric, Row, Sizes, judge, published
from harness.audit.bounds import bounds, smallest_repair, units
from harness.errors import InputError
from tests.parity import pairs

FIXTURES = pairs.HERE / "fixtures"


def golden():
    for folder in (pairs.folder(), FIXTURES):
        if (folder / "statistics.json").is_file():
            return json.loads((folder / "statistics.json").read_text(encoding="utf8"))["audit"]
    raise AssertionError("no statistics.json in the folder of parity pairs or in the fixtures")


def row(label="a", dataset="", **numbers):
    """row(HR_10="0.1") has HR@10."""
    values = {name.replace("_", "@"): Decimal(text) for name, text in numbers.items()}
    return Row(label, values, dataset)


# --- golden numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden()["rows"], ids=lambda case: case["row"])
def test_golden_rows(case):
    tolerance = golden()["tolerance"]
    values = {
        name: Decimal(text) for name, text in zip(case["columns"], case["values"], strict=True)
    }
    [verdict] = judge([Row(case["row"], values)])
    assert {float(unit) for unit in verdict.units.values()} == {case["unit"]}
    assert verdict.impossible is case["impossible"]
    assert verdict.repair == pytest.approx(case["smallest_repair_units"], abs=tolerance)
    assert sorted(verdict.struck) == case["struck"]
    assert list(verdict.below_chance) == case["below_chance"]
    ours = {frozenset(bound.cells): bound for bound in verdict.bounds}
    for theirs in case["bounds"]:
        bound = ours[frozenset(theirs["cells"])]
        assert bound.value == pytest.approx(theirs["value"], abs=tolerance)
        assert bound.low == pytest.approx(theirs["low"], abs=tolerance)
        assert bound.high == pytest.approx(theirs["high"], abs=tolerance)
        assert bound.broken is theirs["broken"]
    beyond = ours.keys() - {frozenset(theirs["cells"]) for theirs in case["bounds"]}
    assert beyond == {frozenset({"HR@10", "HR@20"})}  # dHR >= 0


# --- the paper --------------------------------------------------------------------------------


def test_33_of_34_rows_of_table_2_are_impossible():
    verdicts = judge(published().table2)
    repairs = sorted(verdict.repair for verdict in verdicts if verdict.impossible)
    assert (len(verdicts), len(repairs)) == (34, 33)
    assert round(repairs[0], 1) == 14.8
    assert round(repairs[-1], 1) == 201.5
    assert round(statistics.median(repairs), 1) == 26.8
    [possible] = [verdict for verdict in verdicts if not verdict.impossible]
    assert (possible.row.label, possible.row.dataset) == ("BERT4Rec", "rec_tmall")
    assert round(possible.repair, 2) == 0.49
    assert possible.struck == frozenset()


def test_table_2_below_chance_on_kuaishou_alone():
    found = {
        (verdict.row.label, verdict.row.dataset): verdict.below_chance
        for verdict in judge(published().table2)
        if verdict.below_chance
    }
    assert found == {
        ("GRU4Rec", "kuaishou"): ("HR@10", "HR@20"),
        ("SASRec", "kuaishou"): ("HR@20",),
        ("BERT4Rec", "kuaishou"): ("HR@20",),
    }


def test_cold_start_rows_are_possible():
    verdicts = judge(published().table3)
    assert [verdict.row.label for verdict in verdicts] == ["STOSA", "MMMLP", "EBM", "M3BSR"]
    assert not any(verdict.impossible for verdict in verdicts)


def test_table_1_does_not_add_up():
    sizes = published().table1
    assert [(str(size.summed), round(size.divided, 2)) for size in sizes.values()] == [
        ("5.89", 4.56), ("295.98", 256.78),
    ]  # fmt: skip
    assert not any(size.adds_up for size in sizes.values())


def test_sums_are_compared_within_the_rounding_of_the_averages():
    def sizes(clicks, favors):
        return Sizes(3, 9, 10, Decimal(clicks), Decimal(favors))  # 10 / 3 = 3.333...

    assert sizes("2.33", "1.00").adds_up
    assert sizes("2.3", "1.0").adds_up
    assert not sizes("2.33", "1.02").adds_up


def test_published_is_typed_digit_for_digit():
    paper = published()
    first = paper.table2[0]
    assert (first.label, first.year, first.dataset) == ("GRU4Rec", 2015, "rec_tmall")
    assert first.group == "Traditional Sequential Recommendation Methods"
    assert str(paper.value("M3BSR", "rec_tmall", "NDCG@20")) == "0.2130"  # the zero is kept
    assert paper.value("M3BSR", "rec_tmall", "HR@5") is None
    assert paper.value("SASRec", "demo", "HR@10") is None
    assert {row.year for row in paper.table2 if row.label == "M3BSR"} == {None}
    assert paper.second_best["kuaishou"]["NDCG@20"] == "CMCLRec"
    assert [str(timing.training_seconds) for timing in paper.table4] == [
        "25.3",
        "28.7",
        "32.5",
        "35.2",
    ]
    heat = {(cell.dataset, cell.panel, str(cell.first)): str(cell.value) for cell in paper.figure4}
    assert heat["kuaishou", "temperature_x_weight", "0.5"] == "0.2580"
    assert len(heat) == 10


@pytest.mark.parametrize(
    "text",
    [
        "table2: {metrics: [HR@10], groups: {a: {b: {c: [0.1, 0.2]}}}}",
        "table2: {metrics: [HR@10], groups: {a: {b: {c: [many]}}}}",
        "table2: {metrics: [HR@10], groups: {a: {b: {c: [.nan]}}}}",
        "table1: {a: [1, 2]}",
        "table2: {groups: [a",
        "- 1",
    ],
)
def test_another_shape_is_the_users_mistake(tmp_path, text):
    path = tmp_path / "paper.yaml"
    path.write_text(text, encoding="utf8")
    with pytest.raises(InputError) as error:
        published(path)
    assert "paper.yaml" in str(error.value)
    assert "\n" not in str(error.value)


# --- units, slack and struck cells ------------------------------------------------------------


def test_a_unit_is_the_last_digit_of_the_columns_longest_number():
    rows = [
        row(dataset="x", HR_10="0.12", NDCG_10="0.0612"),
        row(dataset="x", HR_10="0.1234", NDCG_10="0.062"),
        row(dataset="y", HR_10="0.1"),
    ]
    assert units(rows) == {
        ("x", "HR@10"): Decimal("0.0001"),
        ("x", "NDCG@10"): Decimal("0.0001"),
        ("y", "HR@10"): Decimal("0.1"),
    }


def test_a_shorter_column_is_judged_less_strictly():
    fine = row(HR_10="0.1000", NDCG_10="0.0289")
    [strict] = judge([fine])
    [loose] = judge([row(HR_10="0.1", NDCG_10="0.0289")])
    assert strict.impossible is False  # 0.1 / log2(11) = 0.02891, rounded
    [strict] = judge([row(HR_10="0.1000", NDCG_10="0.0279")])
    [loose] = judge([row(HR_10="0.1", NDCG_10="0.0279")])
    assert (strict.impossible, loose.impossible) == (True, False)


def test_a_bound_is_broken_beyond_half_units_only():
    unit = {name: Decimal("0.0001") for name in ("HR@10", "NDCG@10")}
    [inside] = bounds({"HR@10": Decimal("0.2000"), "NDCG@10": Decimal("0.2001")}, unit)
    [outside] = bounds({"HR@10": Decimal("0.2000"), "NDCG@10": Decimal("0.2002")}, unit)
    assert (inside.broken, outside.broken) == (False, True)
    assert inside.margin == pytest.approx(-0.0001)
    assert inside.slack_high == pytest.approx(0.0001 + 1e-9)
    assert inside.slack_low == pytest.approx(0.5e-4 * (1 + 1 / math.log2(11)) + 1e-9)


def test_only_the_cells_of_broken_bounds_are_struck():
    [verdict] = judge([row(HR_5="0.2000", NDCG_5="0.3000", HR_10="0.3500", HR_20="0.4000")])
    assert verdict.struck == {"HR@5", "NDCG@5"}
    assert verdict.worst.cells == ("HR@5", "NDCG@5")


def test_where_no_bound_breaks_alone_the_row_is_struck():
    [verdict] = judge([row(HR_10="0.1398", NDCG_10="0.1398", HR_20="0.2907", NDCG_20="0.1820")])
    assert not any(bound.broken for bound in verdict.bounds)
    assert verdict.impossible
    assert verdict.struck == set(verdict.row.values)


# --- any cutoffs, any subset of metrics -------------------------------------------------------


def test_hits_alone():
    good, even = judge([
        row(HR_1="0.1", HR_5="0.2", HR_50="0.9"),
        row(HR_1="0.3", HR_5="0.2", HR_50="0.9"),
    ])  # fmt: skip
    assert not good.impossible
    assert even.repair == pytest.approx(0.5, abs=1e-6)  # 0.25 and 0.25, each rounded its own way
    assert not even.impossible


def test_hits_that_fall_are_impossible():
    [verdict] = judge([row(HR_1="0.30", HR_5="0.20", HR_50="0.90")])
    assert verdict.impossible
    assert verdict.struck == {"HR@1", "HR@5"}


def test_ndcg_alone():
    good, bad = judge([
        row(NDCG_5="0.20", NDCG_10="0.25", NDCG_20="0.30"),
        row(NDCG_5="0.20", NDCG_10="0.15", NDCG_20="0.30"),
    ])  # fmt: skip
    assert not good.impossible
    assert bad.impossible
    assert bad.struck == {"NDCG@5", "NDCG@10"}


def test_hits_and_ndcg_at_different_cutoffs():
    good, bad = judge([row(HR_5="0.20", NDCG_10="0.25"), row(HR_5="0.20", NDCG_10="0.60")])
    assert not good.impossible
    assert bad.impossible  # at most 0.20 + 0.80 / log2(7)
    assert bad.bounds == ()
    assert bad.struck == {"HR@5", "NDCG@10"}


def test_at_one_both_metrics_are_the_same():
    [verdict] = judge([row(HR_1="0.20", NDCG_1="0.22")])
    assert verdict.impossible


def test_single_numbers_lie_between_0_and_1():
    low, fine, high = judge([row(HR_10="-0.02"), row(HR_10="1.00"), row(HR_10="1.02")])
    assert (low.impossible, fine.impossible, high.impossible) == (True, False, True)


def test_a_row_without_numbers_is_possible():
    [verdict] = judge([Row("a", {})])
    assert not verdict.impossible
    assert verdict.worst is None


# --- candidates -------------------------------------------------------------------------------


def test_chance_is_k_over_the_candidates():
    rows = [row(HR_10="0.0500")]
    assert judge(rows)[0].below_chance == ("HR@10",)
    assert judge(rows, candidates=1000)[0].below_chance == ()
    assert judge(rows, candidates=None)[0].below_chance == ()
    assert judge([row(HR_10="0.1000")])[0].below_chance == ()  # exactly chance


def test_with_few_candidates_every_user_is_a_hit():
    rows = [row(HR_20="0.90")]
    assert not judge(rows)[0].impossible
    assert judge(rows, candidates=20)[0].impossible


def test_cutoffs_beyond_a_hundred_need_a_longer_ranking():
    rows = [row(HR_50="0.50", HR_500="0.80", NDCG_500="0.30")]
    assert not judge(rows, candidates=None)[0].impossible
    assert not judge(rows, candidates=100_000)[0].impossible
    assert judge(rows, candidates=100)[0].impossible  # HR@500 of 100 candidates is 1


# --- properties -------------------------------------------------------------------------------


def metrics_of(shares, cutoffs):
    """HR@K and NDCG@K of rank shares, written out once more."""
    values = {}
    for cutoff in cutoffs:
        values[f"HR@{cutoff}"] = math.fsum(shares[:cutoff])
        values[f"NDCG@{cutoff}"] = math.fsum(
            share / math.log2(rank + 1) for rank, share in enumerate(shares[:cutoff], start=1)
        )
    return values


@st.composite
def histograms(draw):
    """Rank shares of users with ties: above uniform or skewed, expectation over the tied places."""
    users = draw(st.integers(1, 3000))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    skew = draw(st.sampled_from([0.3, 1.0, 4.0, 30.0]))
    above = np.minimum((100 * generator.random(users) ** skew).astype(int), 99)
    reach = draw(st.sampled_from([1, 3, 100]))
    tied = np.minimum(generator.integers(0, reach, users), 99 - above)
    steps = np.zeros(101)  # each user spreads one evenly over the places above .. above + tied
    np.add.at(steps, above, 1 / (tied + 1))
    np.add.at(steps, above + tied + 1, -1 / (tied + 1))
    shares = np.maximum(np.cumsum(steps[:100]), 0.0)
    return (shares / shares.sum()).tolist()


CUTOFFS = st.sets(st.sampled_from([1, 3, 5, 10, 20, 50, 100]), min_size=1, max_size=4).map(sorted)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shares=histograms(), cutoffs=CUTOFFS, digits=st.sampled_from([2, 3, 4]), data=st.data())
def test_tables_of_true_histograms_are_never_called_impossible(shares, cutoffs, digits, data):
    exact = metrics_of(shares, cutoffs)
    names = data.draw(st.sets(st.sampled_from(sorted(exact)), min_size=1), label="metrics")
    values = {name: Decimal(f"{exact[name]:.{digits}f}") for name in names}
    [verdict] = judge([Row("true", values)])
    assert not verdict.impossible, verdict
    assert not any(bound.broken for bound in verdict.bounds)
    assert verdict.struck == frozenset()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shares=histograms(), cutoffs=CUTOFFS)
def test_numbers_in_full_length_are_never_called_impossible(shares, cutoffs):
    values = {name: Decimal(repr(value)) for name, value in metrics_of(shares, cutoffs).items()}
    [verdict] = judge([Row("true", values)])
    assert not verdict.impossible, verdict


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shares=histograms(), digits=st.sampled_from([2, 3, 4]), data=st.data())
def test_a_number_moved_out_of_its_bounds_is_found(shares, digits, data):
    exact = metrics_of(shares, [10, 20])
    values = {name: Decimal(f"{value:.{digits}f}") for name, value in exact.items()}
    unit = Decimal(1).scaleb(-digits)
    name, moved = data.draw(
        st.sampled_from([
            ("NDCG@10", values["HR@10"] + 2 * unit),
            ("NDCG@20", values["HR@20"] + 2 * unit),
            ("HR@20", values["HR@10"] - 2 * unit),
            ("NDCG@20", values["NDCG@10"] - 2 * unit),
            ("HR@20", Decimal(1) + 2 * unit),
        ])
    )  # fmt: skip
    [verdict] = judge([Row("moved", values | {name: moved})])
    assert verdict.impossible
    assert name in verdict.struck
    assert verdict.repair > 0.5


@settings(max_examples=50, deadline=None, derandomize=True)
@given(shares=histograms(), move=st.integers(-3000, 3000))
def test_the_repair_is_the_least_move_that_helps(shares, move):
    values = {name: Decimal(f"{v:.4f}") for name, v in metrics_of(shares, [10, 20]).items()}
    values["NDCG@10"] += Decimal(move) / 10000
    unit = dict.fromkeys(values, Decimal("0.0001"))
    repair = smallest_repair(values, unit)
    assert repair <= abs(move) + 0.5 + 1e-6  # moving it back is one way
    wider = {name: 2 * size for name, size in unit.items()}
    assert smallest_repair(values, wider) == pytest.approx(repair / 2, abs=1e-6)


def test_metrics_have_the_order_of_the_papers_columns():
    names = ["NDCG@20", "HR@20", "NDCG@10", "HR@10"]
    assert [str(metric) for metric in sorted(map(Metric.of, names))] == names[::-1]
