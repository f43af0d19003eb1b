"""SASRec against the authors' TensorFlow graph: hidden states, logits, loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.sasrec import SASRec, SASRecConfig, blocked_keys
from models.interface import Batch, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "SASRec"

NAMES = {
    "attention_norm": "attention_norm",
    "ffn_norm": "feed_forward_norm",
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "ffn1": "feed_forward.inner",
    "ffn2": "feed_forward.outer",
}


class Given(nn.Module):
    """Stands in for the draw of negatives."""

    def __init__(self, negatives: Tensor) -> None:
        super().__init__()
        self.negatives = negatives

    def forward(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return self.negatives.unsqueeze(1)


def load(pair: Pair) -> SASRec:
    config = pair.sidecar["config"]
    nothing = torch.zeros(config["items"] + 1, 1)
    flags = torch.zeros(config["items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=len(pair.arrays["in.item_ids"]), items=config["items"], length=config["length"],
        image=nothing, image_present=flags, text=nothing, text_present=flags, fields={},
        drops_own_events=False,
    )  # fmt: skip
    model = SASRec(
        SASRecConfig(
            hidden=config["d"],
            heads=config["heads"],
            blocks=config["blocks"],
            l2_emb=config["l2_emb"],
        ),
        catalogue,
    ).double()
    state = {}
    for name, value in pair.below("w.").items():
        first, *rest = name.split(".")
        if first.startswith("block"):
            number = first.removeprefix("block")
            state[".".join(["blocks", number, NAMES[rest[0]], *rest[1:]])] = value
        else:
            state[name] = value
    model.load_state_dict(state)
    return model.eval()


def check(pair: Pair) -> None:
    model = load(pair)
    items, positives = pair.tensor("in.item_ids"), pair.tensor("in.pos")
    history = History(torch.arange(len(items)), items, (items > 0).long())
    real = history.real.double().unsqueeze(2)
    blocked, length = blocked_keys(history.real), items.shape[1]

    x = model.inputs(items, real)
    for number, block in enumerate(model.blocks):
        a = block.after_attention(x, blocked, length)
        pair.compare(f"out.block{number}.after_attention", a)
        pair.compare(f"out.block{number}.after_ffn_before_mask", block.after_feed_forward(a))
        x = block(x, blocked, real, length)
    y = model.last_norm(model.states(history, length))
    pair.compare("out.hidden", y)

    flat = y.flatten(0, 1)
    for name in ("pos", "neg"):
        ids = pair.tensor(f"in.{name}").reshape(-1, 1)
        logits = model.score(flat, ids)
        pair.compare(f"out.{name}_logits", logits.view_as(items))
    state, candidates = model.encode(history), pair.tensor("in.candidates")
    pair.compare("out.candidate_logits", model.score(state, candidates.expand(len(items), -1)))
    pair.compare("out.candidate_logits", model.score_all(state)[:, candidates])

    wanted = positives > 0
    model.place_loss.negatives = Given(pair.tensor("in.neg")[wanted])
    ones = wanted.double()
    batch = Batch(history, positives, ones, torch.zeros_like(ones), torch.Generator())
    pair.compare("out.loss", torch.stack(list(model.loss(batch).values())).sum())
    pair.assert_all_compared("out.")
