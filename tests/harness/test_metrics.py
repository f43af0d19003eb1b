"""Metrics of (above, tied): worked values, brute force over tie orders, an independent library."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluation.metrics import METRICS, degenerate, hit_rate, ndcg

CANDIDATES = 100


@st.composite
def counts(draw):
    above = draw(st.integers(0, CANDIDATES - 1))
    return above, draw(st.integers(0, CANDIDATES - 1 - above))


def one(metric, above, tied):
    return float(metric(np.array([above]), np.array([tied]))[0])


@given(counts(), st.integers(1, 30))
def test_metrics_equal_the_average_over_all_tie_orders(both, k):
    above, tied = both
    ranks = range(above + 1, above + tied + 2)  # the positive is equally likely at each
    hits = [rank <= k for rank in ranks]
    gains = [hit / math.log2(rank + 1) for hit, rank in zip(hits, ranks, strict=True)]
    assert one(lambda a, t: hit_rate(a, t, k), *both) == pytest.approx(np.mean(hits), abs=1e-12)
    assert one(lambda a, t: ndcg(a, t, k), *both) == pytest.approx(np.mean(gains), abs=1e-12)


@given(counts(), st.sampled_from([10, 20]))
def test_ndcg_lies_between_the_discounted_hit_rate_and_the_hit_rate(both, k):
    hits = one(METRICS[f"HR@{k}"], *both)
    gains = one(METRICS[f"NDCG@{k}"], *both)
    assert hits / math.log2(k + 1) - 1e-12 <= gains <= hits + 1e-12


@given(counts(), st.sampled_from(list(METRICS)))
def test_one_more_candidate_above_never_helps(both, label):
    above, tied = both
    if above + tied < CANDIDATES - 1:
        assert one(METRICS[label], above + 1, tied) <= one(METRICS[label], above, tied) + 1e-12


@given(counts(), st.sampled_from(list(METRICS)))
def test_the_expectation_lies_inside_the_tie_ledger(both, label):
    above, tied = (np.array([count]) for count in both)
    optimistic, pessimistic = METRICS[label].ends(above, tied)
    value = METRICS[label](above, tied)
    assert pessimistic[0] - 1e-12 <= value[0] <= optimistic[0] + 1e-12


@pytest.mark.parametrize(
    ("label", "value"), [("HR@10", 0.10), ("NDCG@10", 0.0454355933809), ("HR@20", 0.20)]
)
def test_a_constant_scorer_gets_what_chance_gets(label, value):
    assert one(METRICS[label], 0, CANDIDATES - 1) == pytest.approx(value, abs=1e-12)


def test_untied_gains_are_exact_to_the_last_digit():
    above = np.arange(CANDIDATES)
    expected = np.where(above < 10, 1 / np.log2(above + 2), 0.0)
    assert (ndcg(above, np.zeros_like(above), 10) == expected).all()


def test_untied_values_agree_with_ir_measures():
    generator = np.random.default_rng(1)
    scores = generator.random((60, CANDIDATES))
    above = (scores[:, 1:] > scores[:, :1]).sum(1)
    none = np.zeros_like(above)
    judged = [ir_measures.Qrel(str(u), "0", 1) for u in range(60)]
    run = [
        ir_measures.ScoredDoc(str(u), str(i), float(score))
        for u, row in enumerate(scores)
        for i, score in enumerate(row)
    ]
    for label, measure in (
        ("HR@10", ir_measures.Success @ 10),
        ("HR@20", ir_measures.Success @ 20),
        ("NDCG@10", ir_measures.nDCG @ 10),
        ("NDCG@20", ir_measures.nDCG @ 20),
    ):
        theirs = {m.query_id: m.value for m in ir_measures.iter_calc([measure], judged, run)}
        expected = [theirs[str(u)] for u in range(60)]
        assert METRICS[label](above, none) == pytest.approx(expected, abs=1e-12)


def test_the_metrics_stand_in_the_paper_s_order():
    assert list(METRICS) == ["HR@10", "NDCG@10", "HR@20", "NDCG@20"]
    assert [metric.label for metric in METRICS.values()] == list(METRICS)


def test_counts_of_runs_by_users_and_full_ranks_go_through_at_once():
    above = np.array([[0, 9, 600_000], [10, 19, 20]])
    values = METRICS["HR@20"](above, np.zeros_like(above))
    assert values.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_a_run_with_a_wide_bracket_has_degenerate_scores():
    above, tied = np.zeros(1000, dtype=int), np.zeros(1000, dtype=int)
    tied[:10] = 99  # bracket 10 / 1000: not wider than 0.01
    assert not degenerate(above, tied)
    tied[10] = 99
    assert degenerate(above, tied)
    assert not degenerate(above, tied, width=0.02)
    assert not degenerate(above, np.full(1000, 9))  # ties that cannot leave the first ten


@pytest.mark.parametrize(
    "above", [np.array([np.nan, 1.0]), np.array([0.5, 1.0]), np.array([-1, 1])]
)
@pytest.mark.parametrize("label", list(METRICS))
def test_what_is_no_count_raises(label, above):
    metric = METRICS[label]
    function = getattr(metric.function, "__wrapped__", metric.function)
    with pytest.raises(Exception, match=r"above|counts|type"):
        function(above, np.array([0, 0]), metric.k)
