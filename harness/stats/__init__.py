"""Statistics for S runs x N users x M methods: the protocol's procedures, chosen by simulation.

    methods = {label: moments(y) for label, y in scores.items()}   # y[run, user], float64
    everything = column(methods)                                   # all pairs, once
    dagger(everything), family(everything, "M3BSR"), best_set(everything)

variance: moments, intervals, V-test, effect sizes. marks: dagger, Holm family, best set.
published: prediction bands, verdict, effect ratio. order: tau, flips, claims. heatmap: plateau.
shares: where the noise comes from.
"""

from harness.stats.heatmap import Plateau, heatmap, heatmap_one_run
from harness.stats.marks import (
    Against,
    BestSet,
    Dagger,
    Family,
    best_set,
    dagger,
    family,
    holm,
)
from harness.stats.order import Claim, Flips, Judgement, Order, claims, flips, kendall, order
from harness.stats.published import (
    Band,
    Bands,
    EffectRatio,
    Published,
    Shrunk,
    Verdict,
    best_of_points,
    effect_ratio,
    published_band,
    published_bands,
    shrink,
    verdict,
)
from harness.stats.shares import Drawn, Parts, Shares, drawn, shares
from harness.stats.variance import (
    Column,
    Comparison,
    Effect,
    Moments,
    OneMean,
    Power,
    column,
    compare,
    effect,
    moments,
    one_mean,
)

__all__ = [
    "Against",
    "Band",
    "Bands",
    "BestSet",
    "Claim",
    "Column",
    "Comparison",
    "Dagger",
    "Drawn",
    "Effect",
    "EffectRatio",
    "Family",
    "Flips",
    "Judgement",
    "Moments",
    "OneMean",
    "Order",
    "Parts",
    "Plateau",
    "Power",
    "Published",
    "Shares",
    "Shrunk",
    "Verdict",
    "best_of_points",
    "best_set",
    "claims",
    "column",
    "compare",
    "dagger",
    "drawn",
    "effect",
    "effect_ratio",
    "family",
    "flips",
    "heatmap",
    "heatmap_one_run",
    "holm",
    "kendall",
    "moments",
    "one_mean",
    "order",
    "published_band",
    "published_bands",
    "shares",
    "shrink",
    "verdict",
]
