"""MISSRec against the authors' classes: every layer, scores, both stages' losses, DPC-KNN."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.missrec import (
    DensityPeaks,
    ItemFusion,
    Items,
    MISSRec,
    MISSRecConfig,
    Output,
    View,
    misaligned,
    plain,
)
from models.interface import Behaviour, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "MISSRec"

NAMES = {
    "self_attn/in_proj_": "attention.into.",
    "self_attn/out_proj/": "attention.out.",
    "multihead_attn/in_proj_": "cross.into.",
    "multihead_attn/out_proj/": "cross.out.",
    "linear1/": "feed_forward.inner.",
    "linear2/": "feed_forward.outer.",
}
NORMS = {
    "encoder": {"norm1": "attention_norm", "norm2": "feed_forward_norm"},
    "decoder": {"norm1": "attention_norm", "norm2": "cross_norm", "norm3": "feed_forward_norm"},
}
TOP = {
    "item_embedding": "ids.weight",
    "position_embedding": "positions",
    "fusion_factor": "gamma",
    "in_norm/": "input_norm.",
    "text_adaptor/": "modalities.text_adaptor.",
    "img_adaptor/": "modalities.image_adaptor.",
    "encoder/norm/": "transformer.encoder_norm.",
    "decoder/norm/": "transformer.decoder_norm.",
}


def ours(name: str) -> str:
    """Our name of one of their weights."""
    for theirs, mine in TOP.items():
        if name.startswith(theirs):
            return mine + name.removeprefix(theirs)
    half, layer, rest = name.split("/", 2)
    start = f"transformer.{half}.{layer.removeprefix('layer')}."
    for theirs, mine in NAMES.items():
        if rest.startswith(theirs):
            return start + mine + rest.removeprefix(theirs)
    norm, part = rest.split("/")
    return f"{start}{NORMS[half][norm]}.{part}"


def build(pair: Pair) -> MISSRec:
    """The model of the pair's sizes with its weights and interests, in float64."""
    sizes, options = pair.sidecar["sizes"], pair.sidecar["options"]
    assert sizes["encoder_layers"] == sizes["decoder_layers"]
    text, image = pair.tensor("in/text"), pair.tensor("in/image")
    one_a_row = pair.arrays["w/fusion_factor"].ndim == 1
    config = MISSRecConfig(
        item_fusion=ItemFusion.dynamic_instance if one_a_row else ItemFusion.dynamic_shared,
        interest_ratio=1.0,  # room for any number of clusters
        hidden=sizes["H"],
        layers=2 * sizes["encoder_layers"],
        heads=sizes["heads"],
        inner=sizes["inner"],
        temperature=options["tau"],
        reg_weight=options["gamma"],
        augmented_weight=options["lambda"],
    )
    catalogue = Catalogue(
        users=sizes["batch"], items=sizes["n_items_with_pad"] - 1, length=sizes["L"],
        image=image, image_present=image.any(1), text=text, text_present=text.any(1),
        fields={}, drops_own_events=False,
    )  # fmt: skip
    model = MISSRec(config, catalogue).double().eval()
    state = {ours(name): value for name, value in pair.below("w/").items()}
    state["gamma"] = state["gamma"].reshape(-1)  # one number, or one an item
    centroids = pair.tensor("in/interest_embeddings")
    table = torch.zeros_like(model.interests.centroids)
    table[: len(centroids)] = centroids
    state["interests.centroids"] = table
    state["interests.text_cluster"] = pair.tensor("in/text_interest")
    state["interests.image_cluster"] = pair.tensor("in/image_interest")
    state["pretraining"] = torch.tensor(False)
    model.load_state_dict(state)
    return model


def packed(items: Tensor) -> History:
    """Right-packed, as the harness hands a history, but as wide as before."""
    history = History(torch.arange(len(items)), items, (items > 0) * int(Behaviour.CLICK))
    return history.keep(items > 0).padded(items.shape[1])


def unpacked(x: Tensor, items: Tensor) -> Tensor:
    """Slots of a right-packed row at the places of a left-aligned one; its padding last."""
    count = (items > 0).sum(1, keepdim=True)
    slot = (torch.arange(items.shape[1]) - count) % items.shape[1]
    return x.gather(1, slot.unsqueeze(2).expand_as(x))


def encoded(model: MISSRec, items: Items, view: View) -> tuple[Tensor, Tensor, Tensor, Output]:
    """Tokens, decoder input and all slots decoded, beside what the model itself makes of a view."""
    tokens = model.interests.ids(view.history.items, view.seen)
    x = model.inputs(items, view)
    memory = model.memory(tokens)
    width = view.history.items.shape[1]
    everything = model.decoded(x, view.history, memory, tokens, read=width)
    return tokens, x, everything, model.output(items, view)


def check(pair: Pair) -> None:
    model, options = build(pair), pair.sidecar["options"]
    sequence, target = pair.tensor("in/seq"), pair.tensor("in/pos")
    history, real = packed(sequence), sequence > 0
    assert torch.equal(real.sum(1), pair.tensor("in/len"))

    items = model.items()
    tokens, x, everything, output = encoded(model, items, plain(history))
    pair.compare("out/interest_seq", tokens)
    pair.compare("out/dec_in", unpacked(x, sequence), real)
    pair.compare("out/memory", output.memory)
    pair.compare("out/dec", unpacked(everything, sequence), real)
    pair.compare("out/seq_output", output.user)
    pair.compare("out/seq_output", model.encode(history))
    pair.compare("out/reg", model.penalty(output))
    pair.compare("out/scores", model.score_all(output.user))
    rows = torch.arange(len(items.text)).expand(len(sequence), -1)
    pair.compare("out/scores", model.score(output.user, rows))
    pair.compare("out/loss", torch.stack(list(model.next_item(history, target).values())).sum())

    model.pretraining.fill_(True)  # the same weights, without ids
    shorter = packed(pair.tensor("in/seq_aug"))
    assert torch.equal(shorter.real.sum(1), pair.tensor("in/len_aug"))
    losses = model.contrast(history, shorter, target)
    pair.compare("out/pre_loss", torch.stack(list(losses.values())).sum())
    pair.compare("out/pre_seq_item", losses["next_item"])
    pair.compare("out/pre_seq_seq", losses["augmented"] / options["lambda"])
    items = model.items()
    pair.compare("out/pre_reg", model.penalty(model.output(items, plain(history))))
    view = misaligned(history, shorter)
    pair.compare("out/pre_reg_aug", model.penalty(model.output(items, view)))

    peaks = DensityPeaks(
        MISSRecConfig(neighbour_ratio=options["dpc_neighbours"] / len(pair.arrays["in/dpc_tokens"]))
    )
    points = pair.tensor("in/dpc_tokens")
    centroids, owner = peaks.of(points, torch.arange(len(points)), options["dpc_clusters"])
    pair.compare("out/dpc_cluster", owner)
    pair.compare("out/dpc_centroids", centroids)
    pair.assert_all_compared("out/")
