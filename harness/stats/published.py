"""A published number beside our runs: prediction bands, verdict, effect ratio.

v, S, N, w, e as in harness.stats.variance; d = degrees of freedom of v; R = v (1 + 1/S) = variance
of one new run about our mean, same users; U = variance of a mean from our N users; X = U (1 + N /
N_published) = variance that other users add; half unit = half of the published number's last digit.
Axes: method; q, z = nodes of the two quadratures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize, special, stats

from harness.stats.variance import LEVEL, ROUNDING, Comparison, Moments, Power, t_point

BESTS = (5, 10)
"""A baseline's published number is the best of an unnamed number of runs: these two are shown."""


@dataclass(frozen=True)
class Band:
    """Where 95 % of published numbers would fall; half a rounding unit is added at each end."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a published number lies in the band, its ends included."""
        return bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Bands:
    """The bands on the same users, or on others."""

    one_run: Band
    variance: float
    """R, or R + X."""
    df: float
    best_of: dict[int, Band]
    points: dict[int, tuple[float, float]]
    """2.5 and 97.5 % points of (best of n - our mean) / sqrt v; empty when v = 0."""


@dataclass(frozen=True)
class Published:
    """What a published number of one run, or of a best of 5 or 10, may be by our runs."""

    mean: float
    v: float
    """As used: shrunk over methods when S = 2."""
    d: float
    R: float
    U: float
    X: float
    same_users: Bands
    other_users: Bands
    power: Power


@dataclass(frozen=True, eq=False)
class Shrunk:
    """Run variances of two-run methods, drawn towards each other (Smyth 2004)."""

    v: Float[ndarray, " method"]
    d: float


def shrink(v: Float[ndarray, " method"]) -> Shrunk:
    """Shrink the run variances of all methods with S = 2 (protocol, published value).

    v floored at 1e-5 of their median; z = ln v - digamma(1/2) + ln(1/2); x = var z - trigamma(1/2).
    x <= 0: each v = mean v, d = M; else trigamma(d0/2) = x and v = (d0 s0 + v) / (d0 + 1). A lone
    method, or a median of 0, has nothing to be drawn towards: v as it is, d = 1.
    """
    count = len(v)
    floor = 1e-5 * float(np.median(v)) if count else 0.0
    if count < 2 or floor == 0:
        return Shrunk(v, 1.0)
    v = np.maximum(v, floor)
    z = np.log(v) - special.digamma(0.5) + math.log(0.5)
    x = float(z.var(ddof=1) - special.polygamma(1, 0.5))
    if x <= 0:
        return Shrunk(np.full(count, v.mean()), float(count))
    # trigamma falls from infinity to 0; in log space its inverse has one simple root
    half = math.exp(
        optimize.brentq(
            lambda log: math.log(special.polygamma(1, math.exp(log)) / x), -50, 50, xtol=1e-14
        )
    )
    s0 = math.exp(float(z.mean()) + float(special.digamma(half)) - math.log(half))
    d0 = 2 * half
    return Shrunk((d0 * s0 + v) / (d0 + 1), min(d0 + 1, float(count)))


def published_bands(
    methods: Mapping[str, Moments], users_published: int, half_units: Mapping[str, float]
) -> dict[str, Published]:
    """The bands of a column's methods that have two runs or more and a published number.

    Args:
        methods: Our moments by method.
        users_published: N_published, test users of the published number.
        half_units: Half a unit of the last digit of each method's published number.
    """
    two = [name for name, method in methods.items() if method.runs == 2]
    shrunk = shrink(np.array([methods[name].v for name in two]))
    v_and_d = {
        name: (method.v, float(method.runs - 1))
        for name, method in methods.items()
        if method.runs > 2
    } | {name: (float(v), shrunk.d) for name, v in zip(two, shrunk.v, strict=True)}
    return {
        name: published_band(methods[name], users_published, half_units[name], *v_and_d[name])
        for name in methods
        if name in v_and_d and name in half_units
    }


def published_band(
    ours: Moments,
    users_published: int,
    half_unit: float,
    v: float | None = None,
    d: float | None = None,
) -> Published:
    """The bands of one method. `v`, `d`: its shrunk run variance, needed when S = 2.

    Raises ValueError with one run, or with two runs and no shrunk variance.
    """
    S, N = ours.runs, ours.users
    if S == 1 or (S == 2 and (v is None or d is None)):
        raise ValueError("a band needs two runs, and then a variance shrunk over methods")
    v = ours.v if v is None else v
    d = S - 1.0 if d is None else d
    R = v * (1 + 1 / S)
    U = max(0.0, ours.w / N - ours.e / (N * S))
    X = U * (1 + N / users_published)
    variance = R + X
    df = variance**2 / (R**2 / d + X**2 / (N - 1)) if variance else N - 1.0
    return Published(
        mean=ours.mean,
        v=v,
        d=d,
        R=R,
        U=U,
        X=X,
        same_users=_bands(ours, half_unit, v, d, R, d, 0.0),
        other_users=_bands(ours, half_unit, v, d, variance, df, X),
        power=ours.power,
    )


def _bands(
    ours: Moments, half_unit: float, v: float, d: float, variance: float, df: float, X: float
) -> Bands:
    half = t_point(1 - LEVEL / 2, df) * math.sqrt(variance) + half_unit
    one_run = Band(ours.mean - half, ours.mean + half)
    if v == 0:  # every run is the same, so the best of n is just one of them
        return Bands(one_run, variance, df, dict.fromkeys(BESTS, one_run), {})
    points = {n: best_of_points(n, ours.runs, d, X / v) for n in BESTS}
    sd = math.sqrt(v)
    best_of = {
        n: Band(ours.mean + sd * low - half_unit, ours.mean + sd * high + half_unit)
        for n, (low, high) in points.items()
    }
    return Bands(one_run, variance, df, best_of, points)


@lru_cache(maxsize=4096)
def best_of_points(n: int, S: int, d: float, g: float) -> tuple[float, float]:
    """2.5 and 97.5 % points of (max of n Z - Z' sqrt(1/S + g q^2)) / q, q^2 = chi2(d)/d.

    By quadrature, to 1e-6: trapezoids over log q and over the largest of n normals, both of which
    converge faster than any power of the step because the integrands are smooth and vanish at both
    ends.
    """
    q, q_weight = _q_nodes(d)
    z = np.arange(-7.0, 9.0, min(0.2, 0.5 / math.sqrt(S)))
    log_density = -(z**2) / 2 + (n - 1) * special.log_ndtr(z)
    z_weight = np.exp(log_density - log_density.max())
    z_weight /= z_weight.sum()
    spread = np.sqrt(1 / S + g * q**2)[:, None]

    def share_below(x: float) -> float:
        return float(q_weight @ special.ndtr((x * q[:, None] - z) / spread) @ z_weight)

    def point(share: float) -> float:
        low, high = -4.0, 8.0
        while share_below(low) > share:
            low *= 2
        while share_below(high) < share:
            high *= 2
        return float(optimize.brentq(lambda x: share_below(x) - share, low, high, xtol=1e-8))

    return point(LEVEL / 2), point(1 - LEVEL / 2)


def _q_nodes(d: float) -> tuple[Float[ndarray, " q"], Float[ndarray, " q"]]:
    """Nodes and weights for the mean over q, q^2 = chi2(d)/d: density q^d exp(-d q^2 / 2) in log q."""
    ends = 0.5 * np.log(stats.chi2.ppf([1e-9, 1 - 1e-12], d) / d)
    step = min(0.15, 0.5 / math.sqrt(d))
    log_q = np.arange(ends[0], ends[1] + step, step)
    weight = np.exp(d * log_q - d * np.exp(2 * log_q) / 2 + d / 2)
    return np.exp(log_q), weight / weight.sum()


class Verdict(Enum):
    """A published number against our band."""

    INSIDE = "inside"
    BEST_OF_10 = "inside only as best of 10"
    OUTSIDE = "outside"


def verdict(value: float, bands: Published, *, same_users: bool = False) -> Verdict:
    """Judge a published number; on other users, unless ours are the published ones."""
    band = bands.same_users if same_users else bands.other_users
    if band.one_run.holds(value):
        return Verdict.INSIDE
    return Verdict.BEST_OF_10 if band.best_of[max(BESTS)].holds(value) else Verdict.OUTSIDE


@dataclass(frozen=True)
class EffectRatio:
    """Our gain over the published gain (repro_eval's ER), with Fieller's interval."""

    ratio: float | None
    """None for a published gain of 0."""
    low: float | None
    """None: print "not determined", like high."""
    high: float | None
    df: float | None
    t: float | None

    @property
    def determined(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None


def effect_ratio(a: Moments, b: Moments, pair: Comparison, published_gain: float) -> EffectRatio:
    """ER = x / y: our gain of a over b, `pair` = compare(a, b), over the published gain.

    V of ours, P = v_a + v_b (one published run each), t at p_seeds' df, top = y^2 - t^2 P:
    (xy -+ t sqrt(V top + P x^2)) / top; not determined when top <= 0, or with one run.
    """
    x, y = pair.difference, published_gain
    ratio = x / y if abs(y) > ROUNDING else None
    if pair.seeds_df is None:
        return EffectRatio(ratio, None, None, None, None)
    t = t_point(1 - LEVEL / 2, pair.seeds_df)
    P = a.v + b.v
    top = y**2 - t**2 * P
    if top <= 0 or ratio is None:
        return EffectRatio(ratio, None, None, pair.seeds_df, t)
    root = t * math.sqrt(pair.V * top + P * x**2)
    return EffectRatio(ratio, (x * y - root) / top, (x * y + root) / top, pair.seeds_df, t)
