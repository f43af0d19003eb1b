"""M3SRec against an independent implementation of the reconstruction: forward pass, gates, losses."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.m3srec import Gate, M3SRec, M3SRecConfig, info_nce
from models.interface import Batch, Behaviour, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "M3SRec"

ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
NORMS = {"norm1": "attention_norm", "norm2": "experts_norm"}


def load(pair: Pair) -> M3SRec:
    """The model of the pair's sizes with its weights, in float64; it begins with its pre-training."""
    sizes = pair.sidecar["sizes"]
    rows, d = sizes["n_items_with_pad"], sizes["d"]
    text, image = pair.tensor("in/text"), pair.tensor("in/image")
    present = torch.arange(rows) > 0
    catalogue = Catalogue(
        users=sizes["batch"], items=rows - 1, length=sizes["L"], image=image,
        image_present=present, text=text, text_present=present, fields={}, drops_own_events=False,
    )  # fmt: skip
    options = pair.sidecar.get("options", {})
    config = M3SRecConfig(
        hidden=d, heads=sizes["heads"], experts=sizes["experts"],
        specific_blocks=sizes["specific_blocks"], cross_blocks=sizes["cross_blocks"],
        expert_hidden=sizes["expert_hidden"], gate=Gate[options.get("gate", "dense")],
    )  # fmt: skip
    model = M3SRec(config, catalogue).double()
    model.load_state_dict(state(pair, model))
    return model.eval()


def state(pair: Pair, model: M3SRec) -> dict[str, Tensor]:
    """The pair's weights by our names; every one of them is used."""
    weights = pair.below("w/")
    found = {"stage": model.stage}

    def take(ours: str, theirs: str) -> None:
        found[ours] = weights.pop(theirs)

    def linear(ours: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            take(f"{ours}.{part}", f"{theirs}/{part}")

    def norm(ours: str, theirs: str) -> None:
        found[f"{ours}.weight"] = 1 + weights.pop(f"{theirs}/gain_minus_1")
        take(f"{ours}.bias", f"{theirs}/bias")

    def mixture(ours: str, theirs: str) -> None:
        linear(f"{ours}.router", f"{theirs}/router")
        layers = {
            f"{layer}/{part}": [
                weights.pop(f"{theirs}/expert{number}/{layer}/{part}")
                for number in range(model.config.experts)
            ]
            for layer in ("fc1", "fc2")
            for part in ("weight", "bias")
        }
        found[f"{ours}.inner.weight"] = torch.cat(layers["fc1/weight"])
        found[f"{ours}.inner.bias"] = torch.cat(layers["fc1/bias"])
        found[f"{ours}.outer.weight"] = torch.cat(layers["fc2/weight"], 1)
        found[f"{ours}.outer_bias"] = torch.stack(layers["fc2/bias"])

    take("items.weight", "item_embedding")
    take("positions.weight", "position_embedding")
    take("types.weight", "type_embedding")
    linear("text_map", "text")
    linear("image_map", "image")
    norm("norm", "norm_in")
    for number in range(len(model.blocks)):
        ours, theirs = f"blocks.{number}", f"block{number + 1}"
        for letter, name in ATTENTION.items():
            linear(f"{ours}.attention.{name}", f"{theirs}/{letter}")
        for short, name in NORMS.items():
            norm(f"{ours}.{name}", f"{theirs}/{short}")
        if number < model.config.specific_blocks:
            mixture(f"{ours}.experts.mixtures.0", f"{theirs}/text")
            mixture(f"{ours}.experts.mixtures.1", f"{theirs}/image")
        else:
            mixture(f"{ours}.experts", f"{theirs}/shared")
    linear("readout.linear", "fuse")
    found["readout.direction.weight"] = weights.pop("fuse/score").unsqueeze(0)
    assert not weights, f"never loaded: {sorted(weights)}"
    return found


def check(pair: Pair) -> None:
    model = load(pair)
    items, positives = pair.tensor("in/seq"), pair.tensor("in/pos")
    history = History(torch.arange(len(items)), items, (items > 0) * int(Behaviour.CLICK)).keep(
        items > 0
    )  # right-packed, as the harness hands it
    arranged = model.arranged(history)
    width = arranged.items.shape[1]
    arranged = History(
        arranged.user, items, (items > 0) * int(Behaviour.CLICK)
    )  # as wide as the pair's
    assert torch.equal(model.arranged(history).items, items[:, :width])
    assert torch.equal(model.place.read(arranged).squeeze(1), pair.tensor("in/len") - 1)

    tables, times = model.all_tables(), torch.arange(items.shape[1]).expand_as(items)
    x = model.tokens(arranged, tables, items)
    pair.compare("out/tokens", x.flatten(1, 2))
    seen = model.seen(arranged, times)
    for number, block in enumerate(model.blocks, start=1):
        a = block.attend(x, x, seen)
        pair.compare(f"out/block{number}_attention", a.flatten(1, 2))
        mixtures = getattr(block.experts, "mixtures", [block.experts] * 2)
        gates = [mixture.gates(a[:, stream]) for stream, mixture in enumerate(mixtures)]
        pair.compare(f"out/block{number}_gates", torch.cat(gates, 1))
        x = block.mix(a)
        pair.compare(f"out/block{number}_out", x.flatten(1, 2))
    h = model.hidden(arranged, model.tokens(arranged, tables, items), model.place.read(arranged))
    h = h.squeeze(2)
    pair.compare("out/h_text", h[:, 0])
    pair.compare("out/h_image", h[:, 1])
    pair.compare("out/alpha", model.readout.alpha(h))
    user = model.user(history)
    pair.compare("out/user", user)
    pair.compare("out/scores", model.score_all(model.encode(history)))

    sides = {"fused": (user, tables.candidates()), "text": (h[:, 0], tables.text),
             "image": (h[:, 1], tables.image)}  # fmt: skip
    for name in pair.below("out/nce_"):
        context, target = name.split("_")
        table = sides[target][1]
        terms = info_nce(sides[context][0], table, positives, model.config.temperature)
        pair.compare(f"out/nce_{name}", terms.mean())

    ones = torch.ones(len(items), 1, dtype=torch.float64)
    batch = Batch(history, positives.unsqueeze(1), ones, 0 * ones, torch.Generator())
    for name in ("pre", "ce"):
        pair.compare(f"out/loss_{name}", torch.stack(list(model.loss(batch).values())).sum())
        model.next_stage()
    pair.assert_all_compared("out/")
