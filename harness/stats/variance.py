"""THE variance of a difference, for new runs and new users (protocol, Statistics).

y[run, user] = score of a user in a run of one method. S runs, N users. Runs of two methods are NOT
paired, whatever their seed number. Variances divide by count - 1, p is two-sided, unless said.
The one-letter names are the protocol's: v = variance of the S run means; w = variance over users
of the seed-averaged scores (of a pair: of their difference); e = mean square of the residuals
y - run mean - user mean + mean; A = w/N; B = v/S; C = e/(NS); V = max(A + B - C, A, B).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special

LEVEL = 0.05
"""Every test's level; intervals cover 1 - LEVEL."""
EQUAL = 1e-9
"""Seed averages of a user this close are equal."""
ROUNDING = 1e-12
"""Scores lie in [0, 1]: a standard deviation or a difference below this is rounding, and is 0."""


class Power(Enum):
    """What the smallest number of runs in a comparison allows to print."""

    ONE = "one run: this trained model; intervals over users alone, no sd, p, mark or best set"
    TWO = "two runs: intervals and p, no mark (false in 0.15 of null tables), no best set"
    LOW = "low power"
    FULL = ""

    @classmethod
    def of(cls, runs: int) -> Power:
        """The rule for S runs: 1, 2, 3 to 4, or 5 and more."""
        return {1: cls.ONE, 2: cls.TWO, 3: cls.LOW, 4: cls.LOW}.get(runs, cls.FULL)

    @property
    def note(self) -> str:
        """The footer; empty from 5 runs on."""
        return self.value

    @property
    def tests(self) -> bool:
        """Whether there is an sd and a p at all."""
        return self is not Power.ONE

    @property
    def marks(self) -> bool:
        """Whether a mark or a best set may rest on the p."""
        return self in {Power.LOW, Power.FULL}


@dataclass(frozen=True, eq=False)
class Moments:
    """All that the procedures need of one method's scores in one column; computed once."""

    runs: int
    """S."""
    users: int
    """N."""
    mean: float
    v: float
    """nan with one run, like e."""
    w: float
    e: float
    run_means: Float[ndarray, " run"]
    user_means: Float[ndarray, " user"]
    """Seed-averaged score of every user."""

    @property
    def power(self) -> Power:
        """What this many runs allow to print."""
        return Power.of(self.runs)

    def divided(self, by: float) -> Moments:
        """The moments of the scores divided by a number."""
        return Moments(
            self.runs,
            self.users,
            self.mean / by,
            self.v / by**2,
            self.w / by**2,
            self.e / by**2,
            self.run_means / by,
            self.user_means / by,
        )


def moments(y: Float[ndarray, "run user"]) -> Moments:
    """mean, v, w, e of one method's scores.

    Raises ValueError for NaN or infinite scores, or for fewer than two users.
    """
    if not np.isfinite(y).all():
        raise ValueError("scores are NaN or infinite: nothing is computed from them")
    runs, users = y.shape
    if runs < 1 or users < 2:
        raise ValueError(f"{runs} runs x {users} users: at least one run and two users are needed")
    run_means, user_means = y.mean(axis=1), y.mean(axis=0)
    mean = float(run_means.mean())
    v = e = math.nan
    if runs > 1:
        v = _variance(run_means)
        residuals = y - run_means[:, None]
        residuals -= user_means - mean
        e = _clean(float(np.square(residuals).sum()) / ((runs - 1) * (users - 1)))
    w = _variance(user_means)
    return Moments(runs, users, mean, v, w, e, run_means, user_means)


def _clean(variance: float) -> float:
    """A variance, or 0 where it is nothing but rounding."""
    return variance if variance > ROUNDING**2 else 0.0


def _variance(values: Float[ndarray, " any"]) -> float:
    return _clean(float(values.var(ddof=1)))


@dataclass(frozen=True)
class OneMean:
    """A method's mean with its interval for new runs and new users (one run: for new users)."""

    mean: float
    sd: float | None
    """Of the run means; None with one run."""
    A: float
    B: float
    C: float
    V: float
    df: float
    low: float
    high: float
    power: Power


def one_mean(method: Moments) -> OneMean:
    """Interval of one method's mean: A = w/N, B = v/S, C = e/(NS), t at V's df."""
    A, B, C, V, df = _total(method.w, method)
    half = _half_width(V, df)
    power = method.power
    return OneMean(
        mean=method.mean,
        sd=math.sqrt(method.v) if power.tests else None,
        A=A,
        B=B,
        C=C,
        V=V,
        df=df,
        low=method.mean - half,
        high=method.mean + half,
        power=power,
    )


@dataclass(frozen=True)
class Comparison:
    """Method a minus method b."""

    difference: float
    w: float
    """Variance over users of the difference of the seed averages."""
    A: float
    B: float
    C: float
    V: float
    df: float
    low: float
    high: float
    p: float | None
    """Two-sided, for new runs and new users; None with one run, like every p."""
    p_greater: float | None
    """One-sided: small when a > b."""
    p_users: float | None
    """These trained models, new users (t of the seed averages, paired by user)."""
    p_seeds: float | None
    """These users, new runs (Welch)."""
    seeds_df: float | None
    """Welch's degrees of freedom."""
    power: Power

    def reversed(self) -> Comparison:
        """Method b minus method a."""
        return replace(
            self,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            p_greater=None if self.p_greater is None else self._p_less(),
        )

    def _p_less(self) -> float:
        return _one_sided(-self.difference, self.V, self.df)


def compare(a: Moments, b: Moments) -> Comparison:
    """The V-test of a against b, with p_users and p_seeds beside it.

    Raises ValueError unless both were measured on the same number of users.
    """
    _check_users(a, b)
    return _compare(a, b, _variance(a.user_means - b.user_means))


def _check_users(a: Moments, b: Moments) -> None:
    if a.users != b.users:
        raise ValueError(f"methods measured on {a.users} and {b.users} users are not comparable")


def _compare(a: Moments, b: Moments, w: float) -> Comparison:
    """The comparison, given the pair's w."""
    A, B, C, V, df = _total(w, a, b)
    power = Power.of(min(a.runs, b.runs))
    tests = (a.users - 1.0, _welch_df(a, b)) if power.tests else None
    return tested(a.mean - b.mean, w, (A, B, C), (V, df), power, tests)


def tested(
    difference: float,
    w: float,
    parts: tuple[float, float, float],
    total: tuple[float, float],
    power: Power,
    tests: tuple[float, float] | None,
) -> Comparison:
    """A difference with its interval and p values.

    Args:
        difference: What is tested against 0.
        w: Variance over users of one user's part in it.
        parts: A, B, C.
        total: V and its degrees of freedom.
        power: Of the fewest runs in it.
        tests: Degrees of freedom over users and over runs; None where there is no p.
    """
    A, B, C = parts
    V, df = total
    half = _half_width(V, df)
    return Comparison(
        difference=difference,
        w=w,
        A=A,
        B=B,
        C=C,
        V=V,
        df=df,
        low=difference - half,
        high=difference + half,
        p=_two_sided(difference, V, df) if tests else None,
        p_greater=_one_sided(difference, V, df) if tests else None,
        p_users=_two_sided(difference, A, tests[0]) if tests else None,
        p_seeds=_two_sided(difference, B, tests[1]) if tests else None,
        seeds_df=tests[1] if tests else None,
        power=power,
    )


def _total(w: float, *methods: Moments) -> tuple[float, float, float, float, float]:
    """A, B, C, V, df of one mean or of a difference; each method's terms with its own S.

    df = V^2 / (A^2/(N-1) + sum of v^2/(S^2 (S-1))); V = 0: N - 1. One run anywhere: A alone.
    """
    users = methods[0].users
    A = w / users
    if min(method.runs for method in methods) == 1:
        return A, 0.0, 0.0, A, users - 1.0
    B = sum(method.v / method.runs for method in methods)
    C = sum(method.e / (users * method.runs) for method in methods)
    V = max(A + B - C, A, B)
    if V == 0:
        return A, B, C, V, users - 1.0
    bottom = A**2 / (users - 1) + sum(
        method.v**2 / (method.runs**2 * (method.runs - 1)) for method in methods
    )
    return A, B, C, V, V**2 / bottom


def _welch_df(a: Moments, b: Moments) -> float:
    """Degrees of freedom of Welch's test over runs; N - 1 when no run mean varies."""
    parts = [method.v / method.runs for method in (a, b)]
    if sum(parts) == 0:
        return a.users - 1.0
    bottom = sum(part**2 / (method.runs - 1) for part, method in zip(parts, (a, b), strict=True))
    return sum(parts) ** 2 / bottom


def t_point(probability: float, df: float) -> float:
    """Student's t: the point below which this share lies."""
    return float(special.stdtrit(df, probability))


def _half_width(V: float, df: float) -> float:
    return t_point(1 - LEVEL / 2, df) * math.sqrt(V)


def _two_sided(difference: float, V: float, df: float) -> float:
    """P of t; with V = 0: 0, or 1 at difference 0."""
    if V == 0:
        return 1.0 if abs(difference) < ROUNDING else 0.0
    return float(2 * special.stdtr(df, -abs(difference) / math.sqrt(V)))


def _one_sided(difference: float, V: float, df: float) -> float:
    """P of t, small for a positive difference; with V = 0: 0, 0.5 or 1."""
    if V == 0:
        return 0.5 if abs(difference) < ROUNDING else float(difference < 0)
    return float(special.stdtr(df, -difference / math.sqrt(V)))


@dataclass(frozen=True, eq=False)
class Column:
    """All methods of one column (the 17; reference rows enter no test) and all their pairs."""

    methods: dict[str, Moments]
    pairs: dict[tuple[str, str], Comparison]
    """(a, b) with a before b in `methods`."""

    def compare(self, a: str, b: str) -> Comparison:
        """The comparison a minus b, in either order."""
        if (a, b) in self.pairs:
            return self.pairs[a, b]
        return self.pairs[b, a].reversed()

    @property
    def power(self) -> Power:
        """What the method with the fewest runs allows to print."""
        return Power.of(min((m.runs for m in self.methods.values()), default=1))

    @property
    def best(self) -> str:
        """The method with the highest mean; the first of equals."""
        return max(self.methods, key=lambda name: self.methods[name].mean)


def column(methods: Mapping[str, Moments]) -> Column:
    """Every pair of a column's methods, by vectorised differences.

    Raises ValueError unless all were measured on the same number of users.
    """
    names = list(methods)
    for name in names[1:]:
        _check_users(methods[names[0]], methods[name])
    averages = np.stack([methods[name].user_means for name in names]) if names else np.empty((0, 0))
    pairs = {}
    for i, a in enumerate(names[:-1]):
        ws = (averages[i] - averages[i + 1 :]).var(axis=1, ddof=1)
        for b, w in zip(names[i + 1 :], ws, strict=True):
            pairs[a, b] = _compare(methods[a], methods[b], _clean(float(w)))
    return Column(dict(methods), pairs)


@dataclass(frozen=True)
class Effect:
    """Effect sizes of a against b."""

    difference: float
    relative: float | None
    """mean a / mean b - 1; None unless both means are positive."""
    relative_low: float | None
    relative_high: float | None
    standardised: float | None
    """difference / sqrt w of the pair; None at w = 0."""
    better: float
    """Share of users whose seed average is higher with a; equal: within 1e-9."""
    equal: float
    worse: float
    beats: float | None
    """Chance that a run of a beats a run of b; None with one run."""


def effect(a: Moments, b: Moments) -> Effect:
    """Effect sizes; the relative interval is exp(log ratio -+ t sqrt V) - 1.

    Its V and df are those of the scores divided by their method's mean.
    Raises ValueError unless both were measured on the same number of users.
    """
    _check_users(a, b)
    differences = a.user_means - b.user_means
    difference = a.mean - b.mean
    w = _variance(differences)
    relative = low = high = None
    if a.mean > 0 and b.mean > 0:
        relative = a.mean / b.mean - 1
        scaled = compare(a.divided(a.mean), b.divided(b.mean))
        half = _half_width(scaled.V, scaled.df)
        low, high = (math.exp(math.log(a.mean / b.mean) + sign * half) - 1 for sign in (-1, 1))
    beats = None
    if min(a.runs, b.runs) > 1:
        spread = a.v + b.v
        if spread > 0:
            beats = float(special.ndtr(difference / math.sqrt(spread)))
        else:
            beats = 1 - _one_sided(difference, 0.0, 1.0)
    return Effect(
        difference=difference,
        relative=relative,
        relative_low=low,
        relative_high=high,
        standardised=difference / math.sqrt(w) if w else None,
        better=float((differences > EQUAL).mean()),
        equal=float((np.abs(differences) <= EQUAL).mean()),
        worse=float((differences < -EQUAL).mean()),
        beats=beats,
    )
