"""MMMLP: the official class, all intermediate outputs, scores and both losses."""

from __future__ import annotations

import torch

from baselines.mmmlp import BPR, MMMLP, Branch, MMMLPConfig
from models.interface import Batch, Behaviour, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "MMMLP"

LAYERS = {
    "norm_in": "norm",
    "token/norm": "mixer.token_norm",
    "token/fc1": "mixer.token_in",
    "token/fc2": "mixer.token_out",
    "channel/norm": "mixer.channel_norm",
    "channel/fc1": "mixer.channel_in",
    "channel/fc2": "mixer.channel_out",
}
BRANCHES = {"id": "id_branch", "text": "text_branch", "image": "image_branch"}


def build(pair: Pair) -> MMMLP:
    """The model of the pair's sizes with its weights, in float64."""
    sizes = pair.sidecar["sizes"]
    text, image = pair.tensor("in/text"), pair.tensor("in/image")
    present = torch.ones(sizes["n_items_with_pad"], dtype=torch.bool)
    catalogue = Catalogue(
        users=sizes["batch"], items=sizes["n_items_with_pad"] - 1, length=sizes["L"],
        image=image, image_present=present, text=text, text_present=present,
        fields={}, drops_own_events=False,
    )  # fmt: skip
    config = MMMLPConfig(
        hidden=sizes["H"], id_passes=sizes["id_passes"], expansion=sizes["expansion"]
    )
    model = MMMLP(config, catalogue).double().eval()
    state = {"items.weight": pair.tensor("w/item_embedding")}
    for theirs, ours in BRANCHES.items():
        for layer, name in LAYERS.items():
            for part in ("weight", "bias"):
                state[f"{ours}.{name}.{part}"] = pair.tensor(f"w/{theirs}/{layer}/{part}")
    for layer in ("norm", "linear"):
        for part in ("weight", "bias"):
            state[f"fusion.{layer}.{part}"] = pair.tensor(f"w/fuse/{layer}/{part}")
    for name in ("text", "image"):  # the pair's vectors already have width H
        state[f"{name}_vectors.map.weight"] = torch.eye(sizes["H"], dtype=torch.float64)
    weights = {n for n in pair.arrays if n.startswith("w/")}
    assert len(state) == len(weights) + 2, "a weight of the pair was not read"
    model.load_state_dict(state)
    return model


def check(pair: Pair) -> None:
    model = build(pair)
    items = pair.tensor("in/seq")
    history = History(
        user=torch.arange(len(items)),
        items=items,
        behaviours=(items > 0) * int(Behaviour.CLICK),
    ).keep(items > 0)  # right-packed, as the harness hands it; the model aligns it to the left
    arranged, latest = model.arrange(history)
    assert torch.equal(arranged.items, items)
    assert torch.equal(latest, pair.tensor("in/len") - 1)

    inputs = model.inputs(arranged)
    x = model.id_branch.norm(inputs[0])
    for number in range(1, model.id_branch.passes + 1):
        x = model.id_branch.mixer(x)
        pair.compare(f"out/id_layer{number}", x)
    branches: list[Branch] = [model.id_branch, model.text_branch, model.image_branch]
    outputs = [branch(each) for branch, each in zip(branches, inputs, strict=True)]
    pair.compare("out/text", outputs[1])
    pair.compare("out/image", outputs[2])
    pair.compare("out/fused", model.fusion(torch.cat(outputs, dim=2)))

    user = model.encode(history)
    pair.compare("out/seq_output", user)
    pair.compare("out/logits", model.score_all(user))
    everything = torch.arange(len(pair.arrays["w/item_embedding"])).expand(len(items), -1)
    pair.compare("out/logits", model.score(user, everything))
    ones = torch.ones(len(items), 1)
    positive = pair.tensor("in/pos")
    batch = Batch(history, positive.unsqueeze(1), 1 - ones, ones, torch.Generator())
    pair.compare("out/loss_ce", sum(model.loss(batch).values()))
    negative = pair.tensor("in/neg")
    pair.compare("out/loss_bpr", BPR.of_pair(user, model.items.weight, positive, negative))
    pair.assert_all_compared("out/")
