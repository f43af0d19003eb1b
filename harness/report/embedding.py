"""Figure 5 from stored views of items: maps of them, and what the eye is to see in them as numbers.

A record of seed 1 keeps its model's views of the most frequent items (`M3BSR.item_views`). Of each data
set and modality four spaces are measured: features before and after CDMD-M in M3BSR, and before and
after the MLP in its twin. Three of them are drawn. Axes: item, d = hidden width, 2 = of a map,
draw = bootstrap draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples
from threadpoolctl import threadpool_limits

from harness.report.content import CHAMPION, Table
from harness.stats import Judgement

TWIN = "MLP twin"
"""The row whose CDMD-M is an MLP of as many parameters, as `models.variants` names it."""
MODES = ("image", "text")
RAW, DENOISED, TWIN_RAW, TWIN_MAPPED = "raw", "after CDMD", "raw, MLP twin", "after the MLP"
SPACES = {
    RAW: (CHAMPION, "raw"),
    DENOISED: (CHAMPION, "denoised"),
    TWIN_RAW: (TWIN, "raw"),
    TWIN_MAPPED: (TWIN, "denoised"),
}
"""Row and stored view of each space."""
BEFORE = {RAW: RAW, DENOISED: RAW, TWIN_RAW: TWIN_RAW, TWIN_MAPPED: TWIN_RAW}
"""The same model's features before its denoiser."""
DRAWN = (RAW, DENOISED, TWIN_MAPPED)
FEATURES, MAP = "features", "map"
"""Where a number is taken: among the features themselves, or in the map."""
SILHOUETTE, PURITY, OVERLAP, DISPERSION = "silhouette", "purity", "overlap", "dispersion"
BY_CATEGORY = (SILHOUETTE, PURITY, DISPERSION)
MEASURES = (SILHOUETTE, PURITY, DISPERSION, OVERLAP)
JUDGED = (SILHOUETTE, PURITY)
PAIRS = ((DENOISED, RAW), (DENOISED, TWIN_MAPPED), (TWIN_MAPPED, TWIN_RAW))
NEIGHBOURS = 10
PERPLEXITY = 30.0
"""sklearn's own default; a third of the items where there are few."""
LEAST = 10
"""Items below which nothing is drawn or measured."""
CLUSTERS = 8
DRAWS = 1000
COLOURED = 8
"""Categories with a colour of their own; the rest are grey."""
NO_CATEGORY = -1


@dataclass(frozen=True)
class Views:
    """What is stored of one data set."""

    data: str
    arrays: Mapping[str, Mapping[str, ndarray]]
    """Of each row's model of seed 1, as `M3BSR.item_views` names them; rows without are left out."""
    keys: Mapping[str, str]
    """The record of each row."""
    why: Mapping[str, str]
    """Why a row has no views."""
    present: Mapping[str, Bool[ndarray, " item_row"]]
    """Items that have a vector, by modality."""
    vectors: Mapping[str, Float[ndarray, "item_row frozen"]]
    categories: Sequence[str | None] | None
    """Of every item row; None for a data set without categories."""


@dataclass(frozen=True)
class Labels:
    """What the items of a scene are coloured by."""

    names: tuple[str, ...]
    """The largest first, ties by name."""
    of_item: Int[ndarray, " item"]
    """Place in `names`, or NO_CATEGORY."""
    clusters: bool = False
    """True where they are k-means clusters of the frozen vectors, for want of categories."""
    said: str = ""
    """What they are."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over items (None where none is taken)."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Space:
    """One cloud of items."""

    run: str
    x: Float[ndarray, "item d"]
    map: Float[ndarray, "item 2"] | None
    """None where it is not drawn."""
    measures: Mapping[tuple[str, str], Estimate]
    """By place (FEATURES, MAP) and measure."""
    moved: float | None = None
    """Mean squared distance to the features before, over these features' mean squared length."""
    common: float | None = None
    """Share of that movement which is one shift for all items; None where nothing moves."""


@dataclass(frozen=True)
class Scene:
    """One data set and modality."""

    data: str
    mode: str
    items: Int[ndarray, " item"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    labels: Labels | None = None
    spaces: Mapping[str, Space] = field(default_factory=dict)
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Why a space is not there."""
    chance: float | None = None
    """Purity that categories dealt out at random have on average."""
    differences: Mapping[tuple[str, str, str], Estimate] = field(default_factory=dict)
    """Of features, by minuend, subtrahend and measure."""
    why: str = ""
    """Why there is nothing of this scene at all."""


@dataclass(frozen=True)
class Reading:
    """What the eye's claim comes to on one data set, as we read it."""

    data: str
    judgement: Judgement
    why: str = ""
    """Why it is not judged; empty where it is."""


@dataclass(frozen=True)
class Embedding:
    """Figure 5, complete."""

    table: Table
    """Accuracy of M3BSR and of its twin."""
    scenes: tuple[Scene, ...]
    readings: tuple[Reading, ...]
    claim: str
    """The paper's words."""

    @property
    def judgement(self) -> Judgement:
        """Of all data sets: contradicted with any, supported with all."""
        judged = {reading.judgement for reading in self.readings}
        if Judgement.CONTRADICTED in judged:
            return Judgement.CONTRADICTED
        return Judgement.SUPPORTED if judged == {Judgement.SUPPORTED} else Judgement.UNDECIDED

    @property
    def drawn(self) -> tuple[Scene, ...]:
        """Scenes with at least one map."""
        return tuple(
            scene
            for scene in self.scenes
            if any(name in scene.spaces and scene.spaces[name].map is not None for name in DRAWN)
        )


def build_embedding(
    table: Table,
    views: Sequence[Views],
    claim: str,
    embed: Callable[[Float[ndarray, "item d"]], Float[ndarray, "item 2"]] | None = None,
) -> Embedding:
    """Measure every scene and judge the claim.

    Args:
        table: Accuracy of the two rows.
        views: What is stored of each data set.
        claim: The paper's words.
        embed: Makes a map; default: `t_sne`.
    """
    scenes = tuple(build_scene(one, mode, embed or t_sne) for one in views for mode in MODES)
    readings = tuple(
        _reading(one.data, [scene for scene in scenes if scene.data == one.data], table)
        for one in views
    )
    return Embedding(table, scenes, readings, claim)


def build_scene(views: Views, mode: str, embed: Callable[[ndarray], ndarray]) -> Scene:
    """One data set and modality: its items, labels, maps and numbers."""
    if not views.arrays:
        why = "; ".join(f"{row}: {reason}" for row, reason in views.why.items())
        return Scene(views.data, mode, why=why or "not run")
    items = _common_items(views, mode)
    if len(items) < LEAST:
        total = int(views.present[mode].sum())
        why = (
            f"the data set has no {mode} vectors: all items share one learned vector"
            if not total
            else f"{len(items)} of the shown items have {mode} vectors, and {LEAST} are needed"
        )
        return Scene(views.data, mode, items, why=why)
    labels = label_items(views, mode, items)
    counted = labels.of_item != NO_CATEGORY
    groups = labels.of_item[counted]
    distinct = len(np.unique(groups))
    labelled = counted if 2 <= distinct < len(groups) else np.zeros_like(counted)
    spaces: dict[str, Space] = {}
    gaps: dict[str, str] = {}
    sums: dict[str, dict[tuple[str, str], tuple[ndarray, ndarray]]] = {}
    for name, (row, view) in SPACES.items():
        if row not in views.arrays:
            gaps[name] = views.why.get(row, "not run")
            continue
        x = _rows(views.arrays[row], f"{mode}_{view}", items)
        if not np.isfinite(x).all():
            gaps[name] = "its features are not finite"
            continue
        if np.ptp(x, axis=0).max() <= 1e-6 * max(1e-12, float(np.abs(x).max())):
            gaps[name] = "all items have the same feature"
            continue
        before = _rows(views.arrays[row], f"{mode}_raw", items)
        points = embed(x) if name in DRAWN else None
        places = {FEATURES: x, **({} if points is None else {MAP: points})}
        near = neighbours(cdist(before, before))
        sums[name] = {
            (place, measure): sides
            for place, cloud in places.items()
            for measure, sides in _sums(cloud, near, labels.of_item, labelled).items()
        }
        moved, common = (None, None) if view == "raw" else _movement(before, x)
        measured = {key: _estimate(*sides) for key, sides in sums[name].items()}
        spaces[name] = Space(views.keys[row], x, points, measured, moved, common)
    differences = {
        (a, b, measure): _estimate(*sums[a][FEATURES, measure], *sums[b][FEATURES, measure])
        for (a, b), measure in product(PAIRS, BY_CATEGORY)
        if a in sums and b in sums and (FEATURES, measure) in sums[a]
    }
    chance = _chance(labels.of_item[labelled]) if labelled.any() else None
    return Scene(views.data, mode, items, labels, spaces, gaps, chance, differences)


def _common_items(views: Views, mode: str) -> Int[ndarray, " item"]:
    """Items that every stored model shows and that have a vector, in the first one's order."""
    first, *others = (arrays["item"] for arrays in views.arrays.values())
    kept = views.present[mode][first]
    for other in others:
        kept = kept & np.isin(first, other)
    return np.asarray(first[kept], dtype=np.int64)


def _rows(
    arrays: Mapping[str, ndarray], view: str, items: Int[ndarray, " item"]
) -> Float[ndarray, "item d"]:
    """A view's rows of these items, float64."""
    order = np.argsort(arrays["item"])
    place = order[np.searchsorted(arrays["item"], items, sorter=order)]
    return np.asarray(arrays[view][place], dtype=np.float64)


def t_sne(x: Float[ndarray, "item d"]) -> Float[ndarray, "item 2"]:
    """Van der Maaten and Hinton 2008, as scikit-learn has it; the same points for the same features.

    On one thread: with more, sums run in another order, and a thousand steps make other maps of that.
    So do the kernels that BLAS chooses for another processor (OPENBLAS_CORETYPE); the numbers among the
    features do not move.
    """
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1)
    with threadpool_limits(1):
        return np.asarray(made.fit_transform(x.astype(np.float32)), dtype=np.float64)


# ------------------------------------------------------------------------------------ labels


def label_items(views: Views, mode: str, items: Int[ndarray, " item"]) -> Labels:
    """The items' categories, by their parents where there are many; else clusters of their vectors."""
    if views.categories is not None:
        shown = np.unique(np.concatenate([arrays["item"] for arrays in views.arrays.values()]))
        names = [views.categories[item] or "" for item in shown]
        if any(names):  # ranked over both modalities, so that a colour is one category in both
            grouped, said = _parents(names)
            everyone = _labels(grouped, said=said)
            return replace(everyone, of_item=everyone.of_item[np.searchsorted(shown, items)])
    count = min(CLUSTERS, max(2, len(items) // LEAST))
    vectors = np.asarray(views.vectors[mode][items], dtype=np.float64)
    count = min(count, len(np.unique(vectors, axis=0)))
    if count < 2:
        return _labels([""] * len(items), said="no categories, and all vectors are the same")
    with threadpool_limits(1):
        found = KMeans(count, n_init=4, random_state=0).fit_predict(vectors)
    said = f"{count} k-means clusters of the frozen {mode} vectors, no categories: the data set has none"
    return _labels([f"cluster {number + 1}" for number in found], said=said, clusters=True)


def _labels(names: Sequence[str], *, said: str, clusters: bool = False) -> Labels:
    distinct, place, count = np.unique(
        np.asarray(names, dtype=str), return_inverse=True, return_counts=True
    )
    real = [number for number, name in enumerate(distinct) if name]
    order = sorted(real, key=lambda number: (-count[number], distinct[number]))
    new = np.full(len(distinct), NO_CATEGORY)
    new[order] = np.arange(len(order))
    return Labels(tuple(str(distinct[number]) for number in order), new[place], clusters, said)


def _parents(names: Sequence[str]) -> tuple[list[str], str]:
    """Names cut to their parents (`3-17` is 3, `Action|Drama` is Action) where there are many."""
    there = [name for name in names if name]
    if len(set(there)) <= COLOURED:
        return list(names), "the data set's categories"
    for separator, everywhere in ((">", False), ("|", False), ("/", False), ("-", True)):
        share = sum(separator in name for name in there) / len(there)
        cut = [re.split(re.escape(separator), name, maxsplit=1)[0].strip() for name in names]
        if share > 0 and (share == 1 or not everywhere) and len(set(cut)) < len(set(names)):
            return cut, (
                f"the data set's categories, by their parents (what stands before the first '{separator}')"
            )
    return list(names), "the data set's categories"


# ---------------------------------------------------------------------------------- measures


def neighbours(distances: Float[ndarray, "item item"]) -> Int[ndarray, "item neighbour"]:
    """The nearest others of each item, nearest first, ties by place."""
    count = min(NEIGHBOURS, len(distances) - 1)
    alone = distances.copy()
    np.fill_diagonal(alone, np.inf)
    return np.argsort(alone, axis=1, kind="stable")[:, :count]


def _sums(
    cloud: Float[ndarray, "item width"],
    near_before: Int[ndarray, "item neighbour"],
    label: Int[ndarray, " item"],
    labelled: Bool[ndarray, " item"],
) -> dict[str, tuple[ndarray, ndarray]]:
    """Every measure as two numbers an item that counts; its value is the ratio of their sums."""
    distances = cdist(cloud, cloud)
    near = neighbours(distances)
    shared = (near[:, :, None] == near_before[:, None, :]).any(2).mean(1)
    found = {OVERLAP: (shared, np.ones_like(shared))}
    if not labelled.any():
        return found
    own, group = distances[np.ix_(labelled, labelled)], label[labelled]
    silhouette = silhouette_samples(own, group, metric="precomputed")
    found[SILHOUETTE] = (silhouette, np.ones_like(silhouette))
    purity = (group[neighbours(own)] == group[:, None]).mean(1)
    found[PURITY] = (purity, np.ones_like(purity))
    same = group[:, None] == group[None]
    np.fill_diagonal(same, val=False)
    company = same.sum(1)
    counted = company > 0
    within = (own * same).sum(1)[counted] / company[counted]
    overall = own.sum(1)[counted] / (len(own) - 1)
    found[DISPERSION] = (within, overall)
    return found


def _chance(group: Int[ndarray, " item"]) -> float:
    """Mean purity over all ways to deal the same categories out: exact."""
    count = np.bincount(group)
    return float((count * (count - 1)).sum() / (len(group) * (len(group) - 1)))


def _movement(
    before: Float[ndarray, "item d"], after: Float[ndarray, "item d"]
) -> tuple[float, float | None]:
    """How far items are moved, and which share of it is one shift of them all."""
    step = after - before
    total = float(np.square(step).sum(1).mean())
    length = float(np.square(before).sum(1).mean())
    if total <= 1e-10 * length:
        return 0.0, None
    return total / length, float(np.square(step.mean(0)).sum()) / total


def _estimate(
    above: ndarray, below: ndarray, above_2: ndarray | None = None, below_2: ndarray | None = None
) -> Estimate:
    """Sum above / sum below (minus another such ratio of the same items), bootstrapped over items."""
    weights = _weights(len(above))
    value = above.sum() / below.sum()
    drawn = (weights @ above) / (weights @ below)
    if above_2 is not None and below_2 is not None:
        value -= above_2.sum() / below_2.sum()
        drawn = drawn - (weights @ above_2) / (weights @ below_2)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


@lru_cache(maxsize=4)
def _weights(items: int) -> Float[ndarray, "draw item"]:
    """How often each item is in each bootstrap draw; the same for all spaces, so pairs stay pairs."""
    random = np.random.default_rng(0)
    return random.multinomial(items, np.full(items, 1 / items), DRAWS).astype(np.float64)


# --------------------------------------------------------------------------------- the claim


def _reading(data: str, scenes: Sequence[Scene], table: Table) -> Reading:
    """Supported: both measures rise over both rivals in both modalities, beyond their intervals.

    Contradicted: against one of the rivals all of them fall. Undecided: anything else.
    """
    if any(scene.labels is not None and scene.labels.clusters for scene in scenes):
        why = "without categories there is nothing that clusters could be compact by"
        return Reading(data, Judgement.UNDECIDED, why)
    if table.users_limit:
        return Reading(data, Judgement.UNDECIDED, f"only the first {table.users_limit} users")
    parts: dict[str, list[Estimate]] = {RAW: [], TWIN_MAPPED: []}
    for scene, rival, measure in product(scenes, parts, JUDGED):
        found = scene.differences.get((DENOISED, rival, measure))
        if found is None:
            lacking = scene.why or scene.gaps.get(DENOISED) or scene.gaps.get(rival)
            why = f"{scene.mode}: {lacking or 'too few items in categories'}"
            return Reading(data, Judgement.UNDECIDED, why)
        parts[rival].append(found)
    if all(_above(part) for group in parts.values() for part in group):
        return Reading(data, Judgement.SUPPORTED)
    if any(all(_below(part) for part in group) for group in parts.values()):
        return Reading(data, Judgement.CONTRADICTED)
    return Reading(data, Judgement.UNDECIDED)


def _above(part: Estimate) -> bool:
    return part.low is not None and part.low > 0


def _below(part: Estimate) -> bool:
    return part.high is not None and part.high < 0
