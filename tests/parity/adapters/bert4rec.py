"""BERT4Rec against the authors' TensorFlow graph: embedding, layers, head, loss."""

from __future__ import annotations

import torch

from baselines.bert4rec import PADDED, BERT4Rec, BERT4RecConfig, Cloze
from models.interface import Catalogue
from tests.parity.pairs import Pair

MODEL = "BERT4Rec"

NAMES = {
    "emb.word_embeddings": "token_table",
    "emb.token_type_embeddings": "segment_table",
    "emb.position_embeddings": "position_table",
    "emb.norm": "norm",
    "attention.self": "attention",
    "attention.output.dense": "project",
    "attention.output.norm": "attention_norm",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.norm": "feed_forward_norm",
    "head.transform": "head",
    "head.output_bias": "output_bias",
}
"""The longest name that starts a weight's stands for it."""


def our_name(theirs: str) -> str:
    prefix = ""
    if theirs.startswith("layer"):
        number, theirs = theirs.removeprefix("layer").split(".", 1)
        prefix = f"layers.{number}."
    found = max((name for name in NAMES if theirs.startswith(name)), key=len)
    return prefix + NAMES[found] + theirs.removeprefix(found)


def load(pair: Pair) -> BERT4Rec:
    config = pair.sidecar["config"]
    nothing = torch.zeros(config["items"] + 1, 1)
    flags = torch.zeros(config["items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=config["batch"], items=config["items"], length=config["length"],
        image=nothing, image_present=flags, text=nothing, text_present=flags, fields={},
        drops_own_events=False,
    )  # fmt: skip
    assert config["mask_id"] == config["items"] + 1
    assert config["vocab"] == config["items"] + 4
    model = BERT4Rec(
        BERT4RecConfig(
            hidden=config["d"],
            heads=config["heads"],
            layers=config["layers"],
            inner=config["inner"],
        ),
        catalogue,
    ).double()
    state = {our_name(name): value for name, value in pair.below("w.").items()}
    model.load_state_dict({**state, "step": torch.tensor(0)})
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {
        config["layer_norm_eps"]
    }
    return model.eval()


def check(pair: Pair) -> None:
    model = load(pair)
    ids, real = pair.tensor("in.token_ids"), pair.tensor("in.token_mask") > 0
    assert torch.equal(ids > 0, real)
    places, labels = pair.tensor("in.masked_positions"), pair.tensor("in.masked_labels")
    weighed = pair.tensor("in.masked_weights") > 0

    # their rows as they are, padded on the right
    x = model.embed(ids, torch.arange(ids.shape[1]).expand_as(ids))
    pair.compare("out.embedding", x)
    padded = ((~real).double() * PADDED)[:, None, None]
    for number, layer in enumerate(model.layers):
        x = layer(x, x, padded)
        pair.compare(f"out.layer{number}", x)
    g = model.head(x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2])))
    log_probs = (g @ model.token_table.T + model.output_bias).log_softmax(-1)
    pair.compare("out.log_probs", log_probs)
    costs = model.place_loss(
        g.flatten(0, 1), model.token_table, model.output_bias, labels.flatten(), torch.Generator()
    )
    pair.compare("out.loss_per_slot", costs.view_as(labels))

    # and as the model holds them: padded on the left, the last layer at the masked slots alone
    order = torch.argsort(real.to(torch.int8), dim=1, stable=True)
    moved = (~real).sum(1, keepdim=True)
    cloze = Cloze(ids.gather(1, order), (places + moved) * weighed, labels * weighed)
    pair.compare("out.loss", model.cloze_loss(cloze, torch.Generator()))
    pair.assert_all_compared("out.")
