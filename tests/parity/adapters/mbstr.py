"""MB-STR: the official network, from buckets to scores."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.mbstr import MBSTR, Layout, MBSTRConfig, Windows, relative_bucket
from models.interface import Catalogue
from tests.parity.pairs import Pair

MODEL = "MB-STR"


def build(pair: Pair) -> MBSTR:
    """The model of the pair's sizes with its weights, in float64."""
    sizes = pair.sidecar["config"]
    d, n_b, n_sh, n_sp = (
        sizes[name] for name in ("d_model", "n_behaviors", "n_shared", "n_specific")
    )
    nothing = torch.zeros(sizes["num_items"] + 1, 1)
    flags = torch.zeros(sizes["num_items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=1, items=sizes["num_items"], length=sizes["max_len"] - 1,
        image=nothing, image_present=flags, text=nothing, text_present=flags,
        fields={}, drops_own_events=False,
    )  # fmt: skip
    config = MBSTRConfig(
        hidden=d, heads=sizes["n_heads"], blocks=sizes["n_layers"], expansion=sizes["d_ff"] // d,
        shared_experts=n_sh, specific_experts=n_sp,
        buckets=sizes["num_buckets"], max_distance=sizes["max_distance"],
    )  # fmt: skip

    class Sized(MBSTR):
        behaviours = n_b

    w = pair.below("w/")

    def stacked(names: list[str]) -> Tensor:
        return torch.cat([w.pop(name) for name in names])

    state = {"items.weight": w.pop("backbone.embedding.token.weight")}
    for block in range(sizes["n_layers"]):
        theirs, ours = f"backbone.transformer_blocks.{block}", f"blocks.{block}"
        for name in ("W1", "W2", "alpha1", "alpha2"):
            state[f"{ours}.attention.{name}"] = w.pop(f"{theirs}.attention.{name}")
        state[f"{ours}.attention.projection"] = w.pop(f"{theirs}.attention.linear_layers")
        state[f"{ours}.attention.relative"] = torch.stack(
            [
                w.pop(f"{theirs}.attention.rpb.{kind}.relative_attention_bias.weight")
                for kind in range(n_b**2 + 1)
            ]
        )
        for part in ("weight", "bias"):
            for norm, name in (("attention", "input"), ("feed_forward", "output")):
                state[f"{ours}.{norm}_norm.{part}"] = w.pop(f"{theirs}.{name}_sublayer.norm.{part}")
            for behaviour in range(n_b):
                network = f"{theirs}.feed_forward.pff.{behaviour}"
                for layer, name in (("inner", "w_1"), ("outer", "w_2")):
                    state[f"{ours}.feed_forward.{layer}.{behaviour}.{part}"] = w.pop(
                        f"{network}.{name}.{part}"
                    )
    state["head.gates"] = w.pop("head.w_gates")
    for part in ("weight", "bias"):
        state[f"head.norm.{part}"] = w.pop(f"head.ln.{part}")
        state[f"head.shared.{part}"] = stacked(
            [f"head.shared_experts.{number}.0.{part}" for number in range(n_sh)]
        )
        for behaviour in range(n_b):
            own = range(behaviour * n_sp, (behaviour + 1) * n_sp)
            state[f"head.specific.{behaviour}.{part}"] = stacked(
                [f"head.specific_experts.{number}.0.{part}" for number in own]
            )
    assert not w, f"weights of the pair that were not read: {sorted(w)}"
    model = Sized(config, catalogue).double().eval()
    model.load_state_dict(state)
    return model


def in_place(x: Tensor, layout: Layout) -> Tensor:
    """States of all events in their windows; zero at padding."""
    windows = x.new_zeros(layout.rows * layout.places, x.shape[1])
    windows[layout.place] = x
    return windows.view(layout.rows, layout.places, -1)


def by_place(x: Tensor, place: Tensor) -> Tensor:
    """States of read events in the order of their places."""
    return x[torch.argsort(place)]


def check(pair: Pair) -> None:
    sizes = pair.sidecar["config"]
    model = build(pair)
    ids, behaviours = pair.tensor("in/input_ids"), pair.tensor("in/behaviors")
    labels = pair.tensor("in/labels")
    layout = model.layout(behaviours)

    places = torch.arange(sizes["max_len"])
    distances = (sizes["num_buckets"], sizes["max_distance"])
    pair.compare("mid/bucket_m60_p60", relative_bucket(torch.arange(-60, 61), *distances))
    pair.compare("mid/bucket_LxL", relative_bucket(places - places.unsqueeze(1), *distances))
    pair.compare("mid/bucket_LxL", model.bucket)
    pair.compare("mid/pair_index", layout.pairs())
    relative = model.blocks[0].attention.relative[:, model.bucket]  # kind, query, key, head
    pair.compare("mid/rpb_block0", relative.permute(3, 1, 2, 0).unsqueeze(0))

    # States of padding are never read and not computed here; theirs are compared with a slow
    # reading of it in tests/baselines/test_mbstr.py.
    real = behaviours > 0
    x = model.embed(ids, layout)
    pair.compare("mid/hidden0", in_place(x, layout))
    for number, block in enumerate(model.blocks):
        attended = block.attention(x, layout, layout.bias_rows(), layout.everything)
        pair.compare(f"mid/attn{number}", in_place(attended, layout), real)
        x = block(x, layout, layout.bias_rows(), layout.everything)
        pair.compare(f"mid/hidden{number + 1}", in_place(x, layout), real)

    read = layout.read_places(labels > 0)
    pair.compare("out/masked_head_input", by_place(x[read.event], read.place))
    prediction = model.predict(ids, layout, read)
    pair.compare("out/masked_head_repr", by_place(prediction, read.place))
    logits = prediction @ model.item_vectors().T
    pair.compare("out/masked_logits", by_place(logits, read.place))
    pair.compare("out/loss", model.masked_loss(Windows(ids, behaviours, labels)))

    last = torch.zeros_like(real)
    last[:, -1] = True
    read = layout.read_places(last)
    state = by_place(model.predict(pair.tensor("in/eval_input_ids"), layout, read), read.place)
    pair.compare("out/candidate_scores", model.score(state, pair.tensor("in/candidates")))
    pair.assert_all_compared("mid/", "out/")
