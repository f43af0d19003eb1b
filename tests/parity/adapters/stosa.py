"""STOSA against the authors' classes: the chained encoder, and theirs as it was published."""

from __future__ import annotations

import torch

from baselines.stosa import STOSA, Encoder, STOSAConfig, blocked_keys, squared_wasserstein
from models.interface import Batch, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "STOSA"

NAMES = {
    "item_mean_embeddings.weight": "item_mean",
    "item_cov_embeddings.weight": "item_cov",
    "position_mean_embeddings.weight": "position_mean",
    "position_cov_embeddings.weight": "position_cov",
    "item_encoder.layer.": "layers.",
    "attention.LayerNorm": "norm",
    "attention.": "",
    "_intermediate.dense_1": "_feed_forward.inner",
    "_intermediate.dense_2": "_feed_forward.outer",
    "_intermediate.LayerNorm": "_feed_forward.norm",
    "LayerNorm": "norm",
}
"""Replaced in this order."""


def our_name(theirs: str) -> str:
    for old, new in NAMES.items():
        theirs = theirs.replace(old, new)
    return theirs


class Given(torch.nn.Module):
    """Stands in for the draw of negatives."""

    def __init__(self, negatives: torch.Tensor) -> None:
        super().__init__()
        self.negatives = negatives

    def forward(self, user: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.negatives.unsqueeze(1)


def load(pair: Pair, encoder: Encoder) -> STOSA:
    config = pair.sidecar["config"]
    nothing = torch.zeros(config["items"] + 1, 1)
    flags = torch.zeros(config["items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=config["batch"], items=config["items"], length=config["length"],
        image=nothing, image_present=flags, text=nothing, text_present=flags, fields={},
        drops_own_events=False,
    )  # fmt: skip
    model = STOSA(
        STOSAConfig(
            hidden=config["d"],
            heads=config["heads"],
            layers=config["layers"],
            pvn_weight=config["pvn_weight"],
            encoder=encoder,
        ),
        catalogue,
    ).double()
    model.load_state_dict({our_name(name): value for name, value in pair.below("w.").items()})
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {
        config["layer_norm_eps"]
    }
    return model.eval()


def check(pair: Pair) -> None:
    theirs = [pair.tensor(f"w2.{name}") for name in ("mu1", "c1", "mu2", "c2")]
    ours = squared_wasserstein(*(x.unsqueeze(1) for x in theirs[:2]), *theirs[2:])
    pair.compare("w2.distance", ours)
    items = pair.tensor("in.item_ids")
    blocked, length = blocked_keys(items > 0), items.shape[1]
    for encoder, prefix in ((Encoder.chained, "fixed"), (Encoder.published, "asis")):
        model = load(pair, encoder)
        m, c = model.embed(items)
        pair.compare("emb_mean", m)
        pair.compare("emb_cov", c)
        attention = torch.zeros(())
        for number, layer in enumerate(model.layers):
            attention = layer.attention(m, c, blocked)
            m, c = layer.step(layer, m, c, attention)
            if encoder is Encoder.chained:
                pair.compare(f"fixed.layer{number}.mean", m)
                pair.compare(f"fixed.layer{number}.cov", c)
                pair.compare(f"fixed.layer{number}.attention", attention)
        if encoder is Encoder.published:
            pair.compare("asis.mean", m)
            pair.compare("asis.cov", c)
            pair.compare("asis.attention", attention)
        for found, whole in zip(model.states(items, length), (m, c), strict=True):
            torch.testing.assert_close(found, whole)
        compare_loss(pair, model, prefix)
        compare_scores(pair, model, prefix)
    pair.assert_all_compared("emb_", "fixed.", "asis.", "w2.distance")


def compare_loss(pair: Pair, model: STOSA, prefix: str) -> None:
    items, positives = pair.tensor("in.item_ids"), pair.tensor("in.pos")
    wanted = (positives > 0) & (items > 0)
    assert torch.equal(wanted, positives > 0), "a target at a slot of padding"
    model.negatives = Given(pair.tensor("in.neg")[wanted])
    ones = wanted.double()
    history = History(torch.arange(len(items)), items, (items > 0).long())
    losses = model.loss(Batch(history, positives, ones, 0 * ones, torch.Generator()))
    pair.compare(f"{prefix}.loss_bpr", losses["bpr"])
    pair.compare(f"{prefix}.loss_pvn", losses["positive_versus_negative"])


def compare_scores(pair: Pair, model: STOSA, prefix: str) -> None:
    items = pair.tensor("in.item_ids")
    state = model.encode(History(torch.arange(len(items)), items, (items > 0).long()))
    rows = torch.arange(model.catalogue.items + 2).expand(len(items), -1)
    distances = -model.score(state, rows)
    pair.compare(f"{prefix}.distance_all_items", distances)
    torch.testing.assert_close(-model.score_all(state), distances[:, :-1])
