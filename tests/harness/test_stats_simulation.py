"""Direction and level of the procedures in a simulated world whose truth is known.

World: Gaussian score = the method's level + user (variance 0.65) + user x method (0.2) + user x run
(0.15) + run (sd 0.03); `above` is its percentile among 99. At LEVEL, HR@10 = 0.31.
Every bound is the protocol's, widened by three Monte Carlo standard errors of a rate of 0.05.
"""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from scipy import special

from harness.evaluation.metrics import hit_rate
from harness.stats import (
    best_set,
    column,
    compare,
    dagger,
    effect,
    family,
    heatmap,
    moments,
    one_mean,
    published_band,
)

pytestmark = pytest.mark.slow

LEVEL = 0.786
HIGHER = LEVEL + 0.5
LOWER = LEVEL - 0.5


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """multipletests collects garbage at every call, which costs more than all else here."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def error(repetitions):
    """Three Monte Carlo standard errors of a rate of 0.05."""
    return 3 * math.sqrt(0.05 * 0.95 / repetitions)


def hits(generator, levels, runs, users, run_sds=0.03, by_user=None):
    """HR@10 of every [method, run, user]; new users, unless their effect is given."""
    levels = np.asarray(levels)[:, None, None]
    count = len(levels)
    if by_user is None:
        by_user = people(generator, count, users)
    score = (
        levels
        + by_user
        + generator.normal(0, 1, (count, runs, 1)) * np.reshape(run_sds, (-1, 1, 1))
        + generator.normal(0, 0.15**0.5, (count, runs, users))
    )
    above = np.minimum((100 * special.ndtr(-score)).astype(int), 99)
    return hit_rate(above, np.zeros_like(above), 10)


def people(generator, count, users):
    """User and user x method effects."""
    own = generator.normal(0, 0.2**0.5, (count, 1, users))
    return own + generator.normal(0, 0.65**0.5, users)


def table(generator, levels, runs, users=300, run_sds=0.03):
    """A column of methods named M3BSR, 1, 2, .."""
    y = hits(generator, levels, runs, users, run_sds)
    names = ["M3BSR", *(str(i) for i in range(1, len(levels)))]
    return column({name: moments(values) for name, values in zip(names, y, strict=True)})


def covers(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
@pytest.mark.parametrize(("users", "tables"), [(300, 1000), (3000, 400)])
def test_intervals_cover_93_to_97_percent(runs, users, tables):
    generator = np.random.default_rng(1)
    pairs, ratios = [], []
    for _ in range(tables):
        methods = [moments(y) for y in hits(generator, [LEVEL] * 8, runs, users)]
        for a, b in zip(methods[::2], methods[1::2], strict=True):
            pairs.append(covers(compare(a, b), 0.0))
            size = effect(a, b)
            ratios.append(size.relative_low <= 0 <= size.relative_high)
    allowed = error(4 * tables)  # 0.010 and 0.016
    assert 0.93 - allowed <= np.mean(pairs) <= 0.97 + allowed
    assert 0.93 - allowed <= np.mean(ratios) <= 0.97 + allowed


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_the_interval_of_one_mean_covers_the_truth(runs):
    generator = np.random.default_rng(2)
    truth = hits(generator, [LEVEL] * 20, 20, 20_000).mean()
    tables = 1000
    covered = [
        covers(one_mean(moments(hits(generator, [LEVEL], runs, 300)[0])), truth)
        for _ in range(tables)
    ]
    assert 0.93 - error(tables) <= np.mean(covered) <= 0.97 + error(tables)


@pytest.mark.parametrize("runs", [3, 5])
def test_marks_over_1000_null_tables_are_as_rare_as_the_protocol_says(runs):
    generator = np.random.default_rng(3)
    tables = 1000
    marked, best, held = [], [], []
    for _ in range(tables):
        everything = table(generator, [LEVEL] * 17, runs)
        named = family(everything)
        assert named.comparisons == 16
        marked.append(any(row.mark for row in named.against.values()))
        best.append(dagger(everything).dagger)
        held.append("M3BSR" in best_set(everything).methods)  # each of the equal is the best
    assert np.mean(marked) <= 0.05 + error(tables)  # 0.071
    assert np.mean(best) <= 0.05 + error(tables)
    assert np.mean(held) >= 0.95 - error(tables)  # 0.929


@pytest.mark.parametrize("runs", [3, 5])
def test_two_equal_best_methods_earn_no_dagger(runs):
    generator = np.random.default_rng(4)
    tables = 1000
    tied, held = [], []
    for _ in range(tables):
        everything = table(generator, [HIGHER, HIGHER, *[LOWER] * 4], runs)
        tied.append(dagger(everything).dagger)
        held.append("M3BSR" in best_set(everything).methods)
    assert np.mean(tied) <= 0.05 + error(tables)
    assert np.mean(held) >= 0.95 - error(tables)


@pytest.mark.parametrize("runs", [3, 5])
def test_an_unstable_method_named_in_advance_is_not_marked_more_often(runs):
    generator = np.random.default_rng(5)
    tables = 500
    sds = [0.09, *[0.03] * 16]
    marked = [
        any(
            row.mark
            for row in family(table(generator, [LEVEL] * 17, runs, run_sds=sds)).against.values()
        )
        for _ in range(tables)
    ]
    assert np.mean(marked) <= 0.05 + error(tables)


@pytest.mark.parametrize("runs", [3, 5])
def test_a_planted_winner_wins_and_a_planted_loser_loses(runs):
    generator = np.random.default_rng(6)
    tables = 100
    won = lost = 0
    for _ in range(tables):
        ahead = table(generator, [HIGHER, *[LEVEL] * 16], runs, users=1000)
        rows = family(ahead).against.values()
        won += (
            dagger(ahead).dagger
            and dagger(ahead).best == "M3BSR"
            and best_set(ahead).methods == ("M3BSR",)
            and all(row.mark and row.comparison.difference > 0 for row in rows)
        )
        behind = table(generator, [LOWER, *[LEVEL] * 16], runs, users=1000)
        rows = family(behind).against.values()
        lost += "M3BSR" not in best_set(behind).methods and all(
            row.mark and row.comparison.difference < 0 for row in rows
        )
    assert won >= 0.95 * tables
    assert lost >= 0.95 * tables


@pytest.mark.parametrize("runs", [1, 2])
def test_one_and_two_runs_never_mark_anything(runs):
    generator = np.random.default_rng(7)
    for _ in range(50):
        everything = table(generator, [HIGHER, *[LEVEL] * 16], runs)
        assert not dagger(everything).dagger
        assert not any(row.mark for row in family(everything).against.values())
        assert best_set(everything).methods is None


@pytest.mark.parametrize("runs", [3, 5])
def test_bands_hold_a_new_run_and_a_best_of_five(runs):
    generator = np.random.default_rng(8)
    tables, users = 500, 300
    same, other, best = [], [], []
    for _ in range(tables):
        here = people(generator, 1, users)
        ours = moments(hits(generator, [LEVEL], runs, users, by_user=here)[0])
        bands = published_band(ours, users, half_unit=0.0)
        new = hits(generator, [LEVEL], 5, users, by_user=here)[0].mean(axis=1)
        same.append(bands.same_users.one_run.holds(new[0]))
        best.append(bands.same_users.best_of[5].holds(new.max()))
        elsewhere = hits(generator, [LEVEL], 1, users)[0].mean()
        other.append(bands.other_users.one_run.holds(elsewhere))
    for inside in (same, other, best):
        assert 0.93 - error(tables) <= np.mean(inside) <= 0.98 + error(tables)


def test_a_flat_heatmap_is_called_flat_and_its_peak_is_kept():
    generator = np.random.default_rng(9)
    tables = 500
    fallen, kept = [], []
    for _ in range(tables):
        judged = heatmap([moments(y) for y in hits(generator, [LEVEL] * 25, 3, 300)])
        fallen.append(not judged.flat)
        kept.append(0 in judged.plateau)
    assert np.mean(fallen) <= 0.05 + error(tables)
    assert np.mean(kept) >= 0.95 - error(tables)


def test_a_planted_peak_is_found():
    generator = np.random.default_rng(10)
    levels = [LEVEL] * 25
    levels[7] = HIGHER + 0.5
    for _ in range(20):
        judged = heatmap([moments(y) for y in hits(generator, levels, 3, 1000)])
        assert not judged.flat
        assert judged.plateau == (7,)
