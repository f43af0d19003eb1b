"""How much planted noise a denoiser takes out of item features: denoised z against clean c, raw r.

Only a generated world knows c. Three readings, since a model may put what it knows at another scale
or turn it, and layers that follow can undo that: distances as they are, directions alone, and
distances after the best affine map to c (fitted on other items, for z and for r alike).
Axes: item, d = hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from harness.stats.variance import LEVEL, t_point

NOTHING = 1e-6
"""Noise below this share of the clean features' squared length is none."""
FOLDS = 5
ROUNDING = 1e-3
"""Largest difference, relative to a feature's size, that float32 and another order of sums explain."""


@dataclass(frozen=True)
class Share:
    """A mean over items with its spread and 95 % interval (this trained model, new items)."""

    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Removed:
    """What a denoiser did to one modality's features. Shares: 1 all noise gone, 0 as before, below 0 more."""

    items: int
    distance: Share | None
    """1 - |z - c|^2 / |r - c|^2; None without noise, like the others."""
    direction: Share | None
    """1 - (1 - cos(z, c)) / (1 - cos(r, c))."""
    affine: Share | None
    """1 - sum |z' - c|^2 / sum |r' - c|^2, z' and r' the best affine maps of z and r to c, each
    item's from the other folds' items; None too where there are too few items for the map."""
    moved: float
    """Mean |z - r|^2 / |r|^2: how far features are moved, noise or not."""


def feature(
    vectors: Float[ndarray, "item frozen"], arrays: Mapping[str, ndarray], mode: str
) -> Float[ndarray, "item d"]:
    """Eq. 4, 5 with a trained model's weights: LayerNorm(W v + b) of any frozen vectors.

    Args:
        vectors: Frozen vectors of one modality.
        arrays: As `M3BSR.item_views` names them; without a norm's weights there is no norm (R16).
        mode: image or text.
    """
    weight, bias = (arrays[f"{mode}_project_{part}"].astype(float) for part in ("weight", "bias"))
    x = vectors.astype(float) @ weight.T + bias
    if f"{mode}_norm_weight" not in arrays:
        return np.asarray(x)
    x = x - x.mean(1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(1, keepdims=True) + 1e-5)
    return np.asarray(x * arrays[f"{mode}_norm_weight"] + arrays[f"{mode}_norm_bias"])


def same_feature(a: Float[ndarray, "item d"], b: Float[ndarray, "item d"]) -> bool:
    """Whether two computations gave the same features."""
    size = float(np.sqrt(np.square(b).mean()))
    return a.shape == b.shape and bool(
        np.abs(a - b).max(initial=0.0) <= ROUNDING * max(size, 1e-12)
    )


def removed(
    raw: Float[ndarray, "item d"],
    denoised: Float[ndarray, "item d"],
    clean: Float[ndarray, "item d"],
) -> Removed:
    """The shares of noise taken out. Raises ValueError for fewer than two items."""
    if len(raw) < 2:
        raise ValueError(f"{len(raw)} items: a spread over items needs two")
    r, z, c = (array.astype(float) for array in (raw, denoised, clean))
    before = np.square(r - c).sum(1)
    moved = float((np.square(z - r).sum(1) / np.square(r).sum(1).clip(1e-12)).mean())
    if before.sum() <= NOTHING * np.square(c).sum():
        return Removed(len(r), None, None, None, moved)
    there = before > NOTHING * np.square(c).sum(1)
    after = np.square(z - c).sum(1)
    turned, turned_before = 1 - _cosine(z, c), 1 - _cosine(r, c)
    off = there & (turned_before > NOTHING)
    return Removed(
        items=len(r),
        distance=_share(1 - after[there] / before[there]),
        direction=_share(1 - turned[off] / turned_before[off]),
        affine=_affine(r, z, c),
        moved=moved,
    )


def _cosine(a: Float[ndarray, "item d"], b: Float[ndarray, "item d"]) -> Float[ndarray, " item"]:
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / sizes.clip(1e-12))


def _share(values: Float[ndarray, " item"]) -> Share | None:
    if len(values) < 2:
        return None
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    half = t_point(1 - LEVEL / 2, len(values) - 1.0) * sd / math.sqrt(len(values))
    return Share(mean, sd, mean - half, mean + half)


def _affine(
    r: Float[ndarray, "item d"], z: Float[ndarray, "item d"], c: Float[ndarray, "item d"]
) -> Share | None:
    """A ratio of sums; sd and interval of its linearisation over items (delta method)."""
    items, width = r.shape
    if items * (FOLDS - 1) < 2 * FOLDS * (width + 1):  # fewer than two items a coefficient
        return None
    before, after = (_left_over(x, c) for x in (r, z))
    if before.sum() <= NOTHING * np.square(c).sum():
        return None  # the map alone takes all noise out
    ratio = float(after.sum() / before.sum())
    spread = _share((after - ratio * before) / before.mean())
    if spread is None:
        return None
    half = (spread.high - spread.low) / 2
    return Share(1 - ratio, spread.sd, 1 - ratio - half, 1 - ratio + half)


def _left_over(x: Float[ndarray, "item d"], c: Float[ndarray, "item d"]) -> Float[ndarray, " item"]:
    """Squared distance of every item's mapped feature to c, the map fitted without its fold."""
    inputs = np.hstack([x, np.ones((len(x), 1))])
    fold: ndarray = np.arange(len(x)) % FOLDS
    error = np.empty(len(x))
    for number in range(FOLDS):
        out: Bool[ndarray, " item"] = fold == number
        fitted = np.linalg.lstsq(inputs[~out], c[~out], rcond=None)[0]
        error[out] = np.square(inputs[out] @ fitted - c[out]).sum(1)
    return error
