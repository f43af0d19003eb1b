"""The protocol's procedures: golden numbers, independent libraries, the edges."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats
from statsmodels.stats.anova import anova_lm

from harness.evaluation.metrics import METRICS
from harness.stats import (
    Judgement,
    Power,
    Verdict,
    best_of_points,
    best_set,
    claims,
    column,
    compare,
    dagger,
    drawn,
    effect,
    effect_ratio,
    family,
    flips,
    heatmap,
    heatmap_one_run,
    holm,
    kendall,
    moments,
    one_mean,
    order,
    published_band,
    published_bands,
    shares,
    shrink,
    verdict,
)
from tests.parity.pairs import folder

NOT_NUMBERS = {"what", "source", "tolerance", "tolerance_rule", "input"}
ELSEWHERE = {"audit"}  # tests/harness/test_audit.py


def scores(seed, runs=5, users=40, mean=0.5, run_sd=0.02):
    """Scores of one method with a run effect, a user effect and noise."""
    generator = np.random.default_rng(seed)
    by_user = np.random.default_rng(99).normal(0, 0.3, users)
    by_run = generator.normal(0, run_sd, (runs, 1))
    return mean + by_user + by_run + generator.normal(0, 0.2, (runs, users))


# ---------------------------------------------------------------- golden numbers


def golden():
    return json.loads((folder() / "statistics.json").read_text(encoding="utf8"))


def close(path, theirs, ours, tolerance):
    """Assert that two nested structures agree, key by key and number by number."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), path
        assert set(ours) == set(theirs), path
        for key, value in theirs.items():
            loose = 1e-5 if key == "best_of" else tolerance
            close(f"{path}.{key}", value, ours[key], loose)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for i, value in enumerate(theirs):
            close(f"{path}[{i}]", value, ours[i], tolerance)
    elif isinstance(theirs, bool | str):
        assert ours == theirs, path
    else:
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), path


def our_numbers(theirs):
    """Everything that the golden file holds, computed here from its inputs."""
    above, tied = (np.array(theirs["input"][name]) for name in ("above", "tied"))
    names = theirs["input"]["methods"]
    cells = theirs["metrics_by_cell"]
    return {
        "metrics_by_cell": [
            {"above": cell["above"], "tied": cell["tied"]}
            | {
                label: metric(np.array(cell["above"])[None], np.array(cell["tied"])[None])[0]
                for label, metric in METRICS.items()
            }
            for cell in cells
        ],
        "metrics_run_means": {
            label: metric(above, tied).mean(axis=2) for label, metric in METRICS.items()
        },
        "tie_ledger_run_means": {
            label: dict(
                zip(
                    ("optimistic", "pessimistic"),
                    (end.mean(axis=2) for end in METRICS[label].ends(above, tied)),
                    strict=True,
                )
            )
            for label in theirs["tie_ledger_run_means"]
        },
        "statistics": {
            label: our_statistics(theirs["statistics"][label], names, METRICS[label](above, tied))
            for label in theirs["statistics"]
        },
        "holm_16": {
            "p": theirs["holm_16"]["p"],
            "corrected": holm(theirs["holm_16"]["p"]),
        },
        "shrunk_variances_two_runs_17_methods": {
            name: {"v": case["v"], "shrunk": shrunk.v, "d": shrunk.d}
            for name, case in theirs["shrunk_variances_two_runs_17_methods"].items()
            for shrunk in [shrink(np.array(case["v"]))]
        },
        "candidate_variance": [
            {key: case[key] for key in ("untouched", "full_above", "full_tied")}
            | {
                label: {"mean": ours.mean[0], "variance": ours.variance[0]}
                for label in ("HR@10", "NDCG@10")
                for ours in [
                    drawn(
                        METRICS[label],
                        np.array([case["untouched"]]),
                        np.array([case["full_above"]]),
                        np.array([case["full_tied"]]),
                    )
                ]
            }
            for case in theirs["candidate_variance"]
        ],
    }


def our_statistics(theirs, names, y):
    methods = {name: moments(values) for name, values in zip(names, y, strict=True)}
    everything = column(methods)
    a, b = methods["a"], methods["b"]
    pair = compare(a, b)
    unequal = compare(a, moments(y[1, :3]))
    two = compare(moments(y[0, :2]), moments(y[1, :2]))
    single = compare(moments(y[0, :1]), moments(y[1, :1]))
    mark = dagger(everything)
    better = everything.compare
    said = {
        "a>b": [better("a", "b")],
        "a>b and a>c": [better("a", "b"), better("a", "c")],
        "c>b": [better("c", "b")],
        "b>a and c>a": [better("b", "a"), better("c", "a")],
    }
    judged = list(claims(said).values())
    return {
        "methods": [our_method(methods[name]) for name in names],
        "pairs": [
            our_pair("-".join(key), value, methods[key[0]], methods[key[1]])
            for key, value in everything.pairs.items()
        ],
        "dagger": {"best": mark.best, "largest_p": mark.largest_p, "dagger": mark.dagger},
        "best_set": best_set(everything).methods,
        "unequal_runs_a5_b3": {"V": unequal.V, "df": unequal.df, "p": unequal.p},
        "two_runs_a_b": {
            "V": two.V,
            "df": two.df,
            "interval": (two.low, two.high),
            "p": two.p,
        },
        "one_run_a_b": {
            "difference": single.difference,
            "A": single.A,
            "df": single.df,
            "interval": (single.low, single.high),
        },
        "published_a": our_bands(a, theirs["published_a"]),
        "effect_ratio_a_b": [
            {
                "published_gain": case["published_gain"],
                "ratio": ours.ratio,
                "df": ours.df,
                "t": ours.t,
                "interval": (ours.low, ours.high) if ours.determined else "not determined",
            }
            for case in theirs["effect_ratio_a_b"]
            for ours in [effect_ratio(a, b, pair, case["published_gain"])]
        ],
        "order": [
            {"published": case["published"]}
            | {
                key: getattr(ours, key)
                for key in ("agree", "disagree", "open", "tied", "low", "high", "tau")
            }
            for case in theirs["order"]
            for ours in [order(everything, dict(zip(names, case["published"], strict=True)))]
        ],
        "heatmap_cells_abc": our_heatmap(heatmap(list(methods.values()))),
        "heatmap_one_run_a_cell_reference_a": our_heatmap(
            heatmap_one_run(y[:, 0].mean(axis=1), a), without={"v", "e", "r"}
        ),
        "claims": {
            "claims": list(said),
            "support_p": [claim.support_p for claim in judged],
            "reverse_p": [claim.reverse_p for claim in judged],
            "support_holm": [claim.support_holm for claim in judged],
            "reverse_holm": [claim.reverse_holm for claim in judged],
            "verdict": [claim.judgement.value for claim in judged],
        },
    }


def our_method(method):
    mean, noise = one_mean(method), shares(method)
    return {
        "mean": mean.mean,
        "v": method.v,
        "w": method.w,
        "e": method.e,
        "V": mean.V,
        "df": mean.df,
        "interval": (mean.low, mean.high),
        "shares": {
            "score": dataclasses.astuple(noise.score),
            "mean": dataclasses.astuple(noise.mean),
            "parts": dataclasses.astuple(noise.parts),
        },
    }


def our_pair(name, pair, a, b):
    size = effect(a, b)
    fields = ("difference", "A", "B", "C", "V", "df", "p", "p_users", "p_seeds")
    sizes = ("difference", "relative", "standardised", "better", "equal", "worse", "beats")
    return (
        {"pair": name, "interval": (pair.low, pair.high)}
        | {key: getattr(pair, key) for key in fields}
        | {
            "effect": {"relative_interval": (size.relative_low, size.relative_high)}
            | {key: getattr(size, key) for key in sizes}
        }
    )


def our_bands(method, theirs):
    ours = published_band(method, theirs["N_published"], theirs["half_unit"])
    groups = {"same_users": ours.same_users, "other_users": ours.other_users}
    return {
        "half_unit": theirs["half_unit"],
        "N_published": theirs["N_published"],
        "U": ours.U,
        "X": ours.X,
        "other_users_df": ours.other_users.df,
        "best_of": {
            f"{n}_{group}": {
                "points": bands.points[n],
                "band": dataclasses.astuple(bands.best_of[n]),
            }
            for group, bands in groups.items()
            for n in (5, 10)
        },
    } | {group: dataclasses.astuple(bands.one_run) for group, bands in groups.items()}


def our_heatmap(judged, without=frozenset()):
    return {key: value for key, value in dataclasses.asdict(judged).items() if key not in without}


def test_every_golden_number_is_met():
    theirs = golden()
    tolerance = theirs["tolerance"]
    assert theirs["tolerance_rule"].startswith("relative or absolute, whichever is looser")
    kept = {key: value for key, value in theirs.items() if key not in NOT_NUMBERS | ELSEWHERE}
    close("", kept, our_numbers(theirs), tolerance)


# ---------------------------------------------------------------- independent libraries


def test_the_levels_beside_v_agree_with_scipy():
    a, b = scores(1), scores(2, runs=4, mean=0.55)
    pair = compare(moments(a), moments(b))
    users = scipy_stats.ttest_rel(a.mean(0), b.mean(0))
    runs = scipy_stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False)
    assert pair.p_users == pytest.approx(users.pvalue, rel=1e-9)
    assert pair.p_seeds == pytest.approx(runs.pvalue, rel=1e-9)
    assert pair.seeds_df == pytest.approx(runs.df, rel=1e-9)


def test_one_run_gives_the_t_interval_over_users():
    a, b = scores(1, runs=1), scores(2, runs=1)
    pair = compare(moments(a), moments(b))
    interval = scipy_stats.ttest_rel(a[0], b[0]).confidence_interval(0.95)
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_v_is_the_balanced_anova_of_runs_nested_in_methods():
    runs, users = 3, 6
    values = np.stack([scores(1, runs, users, run_sd=0.5), scores(2, runs, users, run_sd=0.5)])
    grid = np.indices(values.shape).reshape(3, -1)
    frame = pd.DataFrame({"y": values.ravel(), "method": grid[0], "run": grid[1], "user": grid[2]})
    fit = smf.ols("y ~ C(method) * C(user) + C(method):C(run)", frame).fit()
    squares = anova_lm(fit)["sum_sq"] / anova_lm(fit)["df"]
    scale = 2 / (users * runs)
    A = squares["C(method):C(user)"] * scale
    B = squares["C(method):C(run)"] * scale
    C = squares["Residual"] * scale
    pair = compare(moments(values[0]), moments(values[1]))
    assert pytest.approx((A, B, C), rel=1e-9) == (pair.A, pair.B, pair.C)
    assert pytest.approx(max(A + B - C, A, B), rel=1e-9) == pair.V


def test_holm_by_its_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    rank = np.sort(p) * [4, 3, 2, 1]
    expected = np.minimum(np.maximum.accumulate(rank), 1)[np.argsort(np.argsort(p))]
    assert holm(list(p)) == pytest.approx(list(expected))
    assert holm([]) == []


def test_tau_agrees_with_scipy_and_ignores_the_thirteenth_digit():
    ours, theirs = [0.1, 0.3, 0.2, 0.25], [0.2, 0.5, 0.3, 0.3]
    expected = scipy_stats.kendalltau(ours, theirs).statistic
    assert kendall(ours, theirs) == pytest.approx(expected)
    assert kendall([0.1, 0.1 + 1e-14, 0.2], theirs[:3]) == kendall([0.1, 0.1, 0.2], theirs[:3])
    assert kendall([0.1, 0.1], [0.1, 0.2]) is None
    assert kendall([0.1], [0.1]) is None


def test_best_of_points_agree_with_simulation():
    generator = np.random.default_rng(5)
    draws, S, d, g, n = 400_000, 3, 2.0, 0.7, 5
    q = np.sqrt(generator.chisquare(d, draws) / d)
    top = scipy_stats.norm.ppf(generator.random(draws) ** (1 / n))
    value = (top - generator.normal(size=draws) * np.sqrt(1 / S + g * q**2)) / q
    low, high = best_of_points(n, S, d, g)
    for point, share in ((low, 0.025), (high, 0.975)):
        # Monte Carlo error of a share of 0.025 by 400,000 draws: 0.00025
        assert (value < point).mean() == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize("case", [(300, 25, 0), (150, 10, 30), (99, 5, 94), (120, 0, 60)])
@pytest.mark.parametrize("label", ["HR@10", "NDCG@20"])
def test_draws_of_candidates_agree_with_scipy_s_hypergeometric(case, label):
    untouched, above, tied = case
    first = second = total = 0.0
    for a in range(100):
        chance_a = scipy_stats.hypergeom(untouched, above, 99).pmf(a)
        for t in range(100 - a) if chance_a else ():
            chance = chance_a * scipy_stats.hypergeom(untouched - above, tied, 99 - a).pmf(t)
            value = METRICS[label](np.array([a]), np.array([t]))[0]
            first, second = first + chance * value, second + chance * value**2
            total += chance
    assert total == pytest.approx(1, abs=1e-9)
    ours = drawn(METRICS[label], *(np.array([count, count]) for count in case))
    assert ours.mean == pytest.approx([first, first], abs=1e-9)
    assert ours.variance == pytest.approx([second - first**2] * 2, abs=1e-9)
    assert ours.sd_of_mean(2) == pytest.approx(math.sqrt(max(second - first**2, 0) / 2), abs=1e-9)


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinite_scores_raise(bad):
    values = scores(1)
    values[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments(values)


def test_what_cannot_be_compared_raises():
    with pytest.raises(ValueError, match="two users"):
        moments(np.zeros((3, 1)))
    a, b = moments(scores(1)), moments(scores(1, users=41))
    for call in (compare, effect, lambda a, b: column({"a": a, "b": b})):
        with pytest.raises(ValueError, match="40 and 41 users"):
            call(a, b)
    with pytest.raises(KeyError):
        family(column({"a": a}))


def test_equal_deterministic_methods_have_p_one_and_different_ones_zero():
    flat = np.tile(scores(1, runs=1), (5, 1))
    a, same, lower = (moments(values) for values in (flat, flat.copy(), flat - 0.1))
    equal = compare(a, same)
    assert (equal.V, equal.df, equal.p, equal.p_greater) == (0, 39, 1, 0.5)
    assert (equal.p_users, equal.p_seeds) == (1, 1)
    assert (equal.low, equal.high) == (0, 0)
    apart = compare(a, lower)
    assert (apart.V, apart.df, apart.p, apart.p_greater) == (0, 39, 0, 0)
    assert (apart.p_users, apart.p_seeds) == (0, 0)
    assert apart.reversed().p_greater == 1
    assert effect(a, same).beats == 0.5
    assert (effect(a, lower).beats, effect(lower, a).beats) == (1, 0)
    assert effect(a, lower).standardised is None
    both = column({"a": a, "lower": lower, "same": same})
    assert best_set(both).methods == ("a", "same")
    assert not dagger(both).dagger


def test_a_deterministic_method_among_noisy_ones_keeps_v():
    flat, noisy = moments(np.tile(scores(1, runs=1), (5, 1))), moments(scores(2))
    pair = compare(flat, noisy)
    assert flat.v == flat.e == 0
    assert noisy.v / 5 == pytest.approx(pair.B)
    assert math.isfinite(pair.df)


def test_v_is_never_below_its_parts():
    for seed in range(20):
        pair = compare(moments(scores(seed, run_sd=0)), moments(scores(100 + seed, run_sd=0)))
        assert max(pair.A, pair.B, pair.A + pair.B - pair.C) <= pair.V
        assert pair.df > 0


def test_runs_are_not_paired():
    a, b = scores(1), scores(2)
    shuffled = compare(moments(a), moments(b[[3, 0, 4, 2, 1]]))
    straight = compare(moments(a), moments(b))
    assert shuffled.p == pytest.approx(straight.p, rel=1e-9)


def test_a_comparison_reversed_is_the_comparison_of_the_others():
    a, b = moments(scores(1)), moments(scores(2, mean=0.52))
    for key, value in dataclasses.asdict(compare(a, b).reversed()).items():
        expected = getattr(compare(b, a), key)
        assert value == (expected if isinstance(value, Power) else pytest.approx(expected)), key


@settings(max_examples=50)
@given(
    hnp.arrays(
        float, st.tuples(st.integers(2, 4), st.integers(2, 9)), elements=st.floats(0, 1, width=32)
    )
)
def test_a_single_mean_stays_in_its_interval_and_the_shares_sum_to_one(y):
    method = moments(y)
    mean, noise = one_mean(method), shares(method)
    assert mean.low <= mean.mean <= mean.high
    for parts in (noise.score, noise.mean):
        assert sum(dataclasses.astuple(parts)) == pytest.approx(1) or not any(
            dataclasses.astuple(parts)
        )


@pytest.mark.parametrize(
    ("runs", "power", "p", "marks"),
    [
        (1, Power.ONE, False, False),
        (2, Power.TWO, True, False),
        (3, Power.LOW, True, True),
        (4, Power.LOW, True, True),
        (5, Power.FULL, True, True),
    ],
)
def test_few_runs_print_what_the_protocol_allows(runs, power, p, marks):
    methods = {
        "M3BSR": moments(scores(1, runs, mean=5.0)),
        "b": moments(scores(2, runs)),
        "c": moments(scores(3, runs)),
    }
    everything = column(methods)
    winner, named, best = dagger(everything), family(everything), best_set(everything)
    for result in (winner, named, best, one_mean(methods["b"]), everything):
        assert result.power is power
    assert (winner.largest_p is not None) is p
    assert winner.dagger is marks
    assert named.comparisons == (2 if p else 0)
    assert all((row.p_holm is not None) is p for row in named.against.values())
    assert all(row.mark is marks for row in named.against.values())
    assert best.methods == (("M3BSR",) if marks else None)
    pair = everything.compare("M3BSR", "b")
    assert pair.low < pair.difference < pair.high
    for value in (pair.p, pair.p_greater, pair.p_users, pair.p_seeds, pair.seeds_df):
        assert (value is not None) is p
    assert (one_mean(methods["b"]).sd is not None) is p
    assert (shares(methods["b"]) is not None) is p
    assert (effect(methods["M3BSR"], methods["b"]).beats is not None) is p
    judged = claims({"wins": [pair], "loses": [pair.reversed()]})
    expected = (
        (Judgement.SUPPORTED, Judgement.CONTRADICTED) if marks else (Judgement.UNDECIDED,) * 2
    )
    assert (judged["wins"].judgement, judged["loses"].judgement) == expected
    assert (judged["wins"].support_p is not None) is p
    ranks = order(everything, {"M3BSR": 0.3, "b": 0.2, "c": 0.1})
    assert (ranks.low is not None) is p
    assert effect_ratio(methods["M3BSR"], methods["b"], pair, 4.0).determined is p
    assert bool(power.note) is (runs < 5)


def test_one_missing_run_lowers_its_pairs_and_the_column():
    methods = {"a": moments(scores(1, 5, mean=5.0)), "b": moments(scores(2, 5))}
    methods["c"] = moments(scores(3, 1))
    everything = column(methods)
    assert everything.compare("a", "b").power is Power.FULL
    assert everything.compare("a", "c").power is Power.ONE
    assert everything.compare("a", "c").V == everything.compare("a", "c").A
    named = family(everything, "a")
    assert named.comparisons == 1
    assert named.against["b"].mark
    assert not named.against["c"].mark
    assert best_set(everything).methods is None


def test_a_column_holds_every_pair_and_both_directions():
    methods = {name: moments(scores(seed)) for seed, name in enumerate("abcd")}
    everything = column(methods)
    assert len(everything.pairs) == 6
    for a, b in itertools.permutations(methods, 2):
        direct = compare(methods[a], methods[b])
        assert everything.compare(a, b).p == pytest.approx(direct.p, rel=1e-9)
        assert everything.compare(a, b).difference == pytest.approx(direct.difference)


def test_effect_sizes_say_who_is_better_for_whom():
    a = np.array([[0.0, 0.5, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0]])
    b = np.array([[0.5, 0.5 + 1e-10, 0.0, 0.5], [0.5, 0.5, 0.0, 0.5]])
    size = effect(moments(a), moments(b))
    assert (size.better, size.equal, size.worse) == (0.5, 0.25, 0.25)
    nothing = effect(moments(a), moments(np.zeros((2, 4))))
    assert nothing.relative is nothing.relative_low is None


# ---------------------------------------------------------------- published numbers


def test_two_run_variances_are_shrunk_over_methods():
    methods = {str(seed): moments(scores(seed, runs=2)) for seed in range(6)}
    methods["five"] = moments(scores(7, runs=5))
    methods["one"] = moments(scores(8, runs=1))
    half_units = dict.fromkeys(methods, 5e-5)
    bands = published_bands(methods, 50, half_units)
    assert "one" not in bands
    shrunk = shrink(np.array([methods[str(seed)].v for seed in range(6)]))
    assert [bands[str(seed)].v for seed in range(6)] == pytest.approx(list(shrunk.v))
    assert {bands[str(seed)].d for seed in range(6)} == {shrunk.d}
    assert (bands["five"].v, bands["five"].d) == (methods["five"].v, 4)
    assert published_bands(methods, 50, {"five": 5e-5}).keys() == {"five"}
    for name in ("0", "one"):
        with pytest.raises(ValueError, match="two runs"):
            published_band(methods[name], 50, 5e-5)


def test_shrinking_pulls_towards_each_other_and_survives_zeros():
    v = np.array([1e-4, 1e-7, 3e-6, 2e-3, 0.0])
    shrunk = shrink(v)
    floored = np.maximum(v, 1e-5 * 3e-6)
    assert np.ptp(np.log(shrunk.v)) < np.ptp(np.log(floored))
    assert (np.argsort(shrunk.v) == np.argsort(v)).all()
    assert 1 < shrunk.d <= 5
    for untouched in (np.zeros(4), np.array([0.1])):
        assert (shrink(untouched).v == untouched).all()
        assert shrink(untouched).d == 1


def test_verdicts_of_a_published_number():
    bands = published_band(moments(scores(1, users=400)), 400, 5e-5)
    other, ten = bands.other_users.one_run, bands.other_users.best_of[10]
    assert ten.high > other.high
    assert verdict(other.high, bands) is Verdict.INSIDE
    assert verdict((other.high + ten.high) / 2, bands) is Verdict.BEST_OF_10
    assert verdict(ten.high + 1e-6, bands) is Verdict.OUTSIDE
    assert verdict(other.low - 1e-6, bands) is Verdict.OUTSIDE
    assert verdict(other.high, bands, same_users=True) is not Verdict.INSIDE


def test_a_deterministic_method_has_a_band_of_rounding_and_users_only():
    bands = published_band(moments(np.tile(scores(1, runs=1), (5, 1))), 40, 5e-5)
    assert bands.same_users.one_run.low == pytest.approx(bands.mean - 5e-5)
    assert bands.same_users.best_of[10] == bands.same_users.one_run
    assert bands.other_users.df == 39
    assert verdict(bands.mean, bands) is Verdict.INSIDE


def test_a_gain_of_zero_gives_no_ratio():
    a, b = moments(scores(1)), moments(scores(2))
    ratio = effect_ratio(a, b, compare(a, b), 0.0)
    assert ratio.ratio is None
    assert not ratio.determined


# ---------------------------------------------------------------- orders, claims, heatmaps


def test_flips_between_sampled_and_full():
    judged = flips({"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.4}, {"a": 0.1, "b": 0.2, "c": 0.05})
    assert judged.flipped == (("a", "b"),)
    assert judged.pairs == 3
    assert judged.tau == pytest.approx(1 / 3)
    assert flips({"a": 0.3, "b": 0.2}, {"a": 0.1, "b": 0.1}).flipped == ()


def test_a_claim_without_parts_or_with_a_wrong_part():
    a, b, c = (moments(scores(seed, mean=mean)) for seed, mean in ((1, 3.0), (2, 2.0), (3, 1.0)))
    right, wrong = compare(a, b), compare(c, b)
    judged = claims({"none": [], "half": [right, wrong], "right": [right]})
    assert judged["none"].judgement is Judgement.UNDECIDED
    assert judged["half"].judgement is Judgement.CONTRADICTED
    assert judged["right"].judgement is Judgement.SUPPORTED
    assert (judged["half"].parts, judged["right"].parts) == (2, 1)
    two_claims_two_entries_each = 4
    smallest = min(right.p_greater, judged["half"].reverse_p)
    corrected = min(judged["right"].support_holm, judged["half"].reverse_holm)
    assert corrected == pytest.approx(two_claims_two_entries_each * smallest)


def test_a_peak_stands_alone_or_in_a_plateau():
    cells = [moments(scores(seed, mean=mean)) for seed, mean in ((1, 0.5), (2, 0.5), (3, 3.0))]
    judged = heatmap(cells)
    assert not judged.flat
    assert judged.plateau == (2,)
    assert judged.peak_at(2) is Judgement.SUPPORTED
    assert judged.peak_at(0) is Judgement.CONTRADICTED
    level = heatmap([moments(scores(seed)) for seed in range(4)])
    assert level.flat
    assert level.peak_at(level.plateau[0]) is Judgement.UNDECIDED


def test_a_heatmap_s_cells_have_equal_runs_and_users():
    one, five = moments(scores(1, runs=1)), moments(scores(2))
    for cells in ([one, one], [five, one], [five, moments(scores(1, users=41))], [five]):
        with pytest.raises(ValueError, match="heatmap"):
            heatmap(cells)
    with pytest.raises(ValueError, match="reference"):
        heatmap_one_run(np.array([0.1, 0.2]), one)


def test_equal_cells_without_noise_are_flat_and_others_are_not():
    flat = moments(np.tile(scores(1, runs=1), (3, 1)))
    higher = moments(np.tile(scores(1, runs=1), (3, 1)) + 0.1)
    assert heatmap([flat, flat]).flat
    judged = heatmap([flat, higher])
    assert not judged.flat
    assert judged.plateau == (1,)


def test_candidates_drawn_from_too_few_items_raise():
    with pytest.raises(ValueError, match="99 negatives"):
        drawn(METRICS["HR@10"], np.array([98]), np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="99 negatives"):
        drawn(METRICS["HR@10"], np.array([100]), np.array([60]), np.array([60]))
