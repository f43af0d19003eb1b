"""MMSBR: the official class on both softmax axes, with and without its numeric branch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from baselines.mmsbr import (
    MMSBR,
    Features,
    MMSBRConfig,
    Numeric,
    NumericScore,
    SoftmaxAxis,
    contrast,
)
from models.interface import Behaviour, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "MMSBR"

LAYER = {"out": "output", "ffn1": "inner", "ffn2": "outer", "norm": "norm"}
FUSE = {"fuse1": "inner", "fuse2": "outer"}
SESSION = {"glu1": "of_item", "glu2": "of_mean", "gate_out": "gate"}
TABLES = ("image", "text", "text_from_image", "image_from_text")


def weights(pair: Pair) -> dict[str, Tensor]:
    """The pair's weights under our names."""
    sizes, given = pair.sidecar["sizes"], pair.below("w/")
    pivots, tokens = sizes["pivots"], sizes["features_per_modality"]
    numbers = [f"pivot{n}" for n in range(1, pivots + 1)]
    state = {"items.pivots.table": torch.cat([given.pop(name) for name in numbers], 1)}
    for name in TABLES:
        state[f"items.features.{name.replace('_from_', '_of_')}"] = pair.tensor(f"in/{name}")
    for kind in ("image", "text"):
        names = [f"{kind}_feature{n}/fc" for n in range(1, tokens + 1)]
        ours = f"items.{kind}_tokens."
        for part in ("weight", "bias"):
            state[f"{ours}inner.{part}"] = torch.cat([given.pop(f"{n}1/{part}") for n in names])
        state[f"{ours}weight"] = torch.stack([given.pop(f"{n}2/weight").T for n in names])
        state[f"{ours}bias"] = torch.stack([given.pop(f"{n}2/bias") for n in names])
        for number in range(sizes["rounds"]):
            theirs, layer = f"block{number + 1}/{kind}/", f"items.rounds.{number}.{kind}_layer."
            for part in ("weight", "bias"):
                state[f"{layer}query_key_value.{part}"] = torch.cat(
                    [given.pop(f"{theirs}{name}/{part}") for name in ("query", "key", "value")]
                )
    for theirs, value in given.items():
        name, *rest = theirs.split("/")
        if name.startswith("block"):
            kind, part, last = rest
            place = f"items.rounds.{int(name.removeprefix('block')) - 1}.{kind}_layer."
            state[f"{place}{LAYER[part]}.{last}"] = value
        elif name.startswith("fuse"):
            state[f"items.{FUSE[name]}.{rest[0]}"] = value
        elif name in SESSION:
            state[f"interest.{SESSION[name]}.{rest[0]}"] = value
        elif name.startswith("price_norm"):
            state[f"scorer.attention.norm.{rest[0]}"] = value
        elif name in ("price_mean", "price_cov", "category"):
            state[f"scorer.attention.{name.removeprefix('price_')}"] = value
        else:
            kind, part = name.split("_")
            state[f"scorer.attention.of_{kind}.{part}.{rest[0]}"] = value
    return state


def build(pair: Pair, axis: SoftmaxAxis) -> MMSBR:
    """The model of the pair's sizes with its weights, in float64."""
    sizes = pair.sidecar["sizes"]
    items, nothing = sizes["n_items"], torch.zeros(sizes["n_items"] + 1, 1)
    flags = torch.ones(items + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=sizes["batch"], items=items, length=sizes["max_len"], image=nothing,
        image_present=flags, text=nothing, text_present=flags, fields={}, drops_own_events=False,
    )  # fmt: skip
    config = MMSBRConfig(
        hidden=sizes["d"], heads=sizes["heads"], rounds=sizes["rounds"],
        pivot_count=sizes["pivots"], token_count=sizes["features_per_modality"],
        softmax_axis=axis, features=Features.overwritten, numeric=Numeric.popularity,
    )  # fmt: skip
    model = MMSBR(config, catalogue)
    model.scorer = scorer = NumericScore(config, items, sizes["prices"], sizes["categories"])
    scorer.price[1:] = pair.tensor("in/item_price") - 1
    scorer.category[1:] = pair.tensor("in/item_category") - 1
    state = {"interest.nothing": torch.zeros(sizes["d"]), **weights(pair)}
    model.double().load_state_dict(state)
    return model.eval()


def check(pair: Pair) -> None:
    sessions = pair.tensor("in/sessions")
    assert torch.equal((sessions > 0).sum(1), pair.tensor("in/len"))
    clicks = (sessions > 0) * int(Behaviour.CLICK)
    history = History(torch.arange(len(sessions)), sessions, clicks).keep(sessions > 0)
    target = pair.tensor("in/target")
    sizes = pair.sidecar["sizes"]

    for axis, mark, block in (
        (SoftmaxAxis.query, "", "_query_axis"),
        (SoftmaxAxis.key, "_key_axis", "_key_axis"),
    ):
        model = build(pair, axis)
        layer, x = model.items.rounds[0].image_layer, pair.tensor("in/block_x")
        for kept in (x.shape[1], sizes["pivots"]):
            pair.compare(
                f"out/block_y{block}",
                torch.cat([layer(x, kept), pair.tensor(f"out/block_y{block}")[:, kept:]], 1),
            )
        vectors = model.item_vectors()
        pair.compare(f"out/item_vectors{mark}", vectors[1:])
        interest, factor = model.encode(history)
        pair.compare(f"out/interest{mark}", interest)
        pair.compare(f"out/scores_interest{mark}", interest @ vectors[1:].T)

    model = build(pair, SoftmaxAxis.query)
    scorer = model.scorer
    price, category = scorer.price[history.items], scorer.category[history.items]
    mean, cov = scorer.attention(price, category, history.real)
    pair.compare("out/price_session_mean", mean)
    pair.compare("out/price_session_cov", cov)
    items = torch.arange(1, sizes["n_items"] + 1)
    for name, of_kind in zip(("mean", "cov"), scorer.attention.kinds(), strict=True):
        pair.compare(f"out/price_item_{name}", of_kind[scorer.kind(items)])
    pair.compare("out/distance", scorer.distance(mean, cov)[:, scorer.kind(items)])
    state = model.encode(history)
    pair.compare("out/scores", model.score_all(state)[:, 1:])
    pair.compare("out/scores", model.score(state, items.expand(len(sessions), -1)))

    rows = items - 1
    total = sum(
        contrast(e, g, sizes["num_neg"]).sum()
        for e, g in zip(
            model.items.features(rows), model.items.features.stand_ins(rows), strict=True
        )
    ) / math.log(10)
    pair.compare("out/contrastive", total)
    interest, factor = state
    vectors, bias = model.item_vectors()[1:], torch.zeros(len(items), dtype=torch.float64)
    costs = scorer.cross_entropy(interest, [factor], items, vectors, bias, target)
    pair.compare("out/loss", costs.mean() + pair.sidecar.get("lambda", 0.01) * total)
    content = functional.cross_entropy(interest @ vectors.T, target)
    pair.compare("out/loss_ce_interest_only", content)
    pair.assert_all_compared("out/")
