"""SSDRec against the authors' code: graphs, relations, self-augmentation, denoising, losses, scores.

All of it follows their code (D1 to D3 = code), with the Gumbel noise that they drew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.ssdrec import (
    Denoised,
    EvalNoise,
    FilterRule,
    Part,
    PositionMask,
    SSDRec,
    SSDRecConfig,
    consistencies,
    filter_losses,
    one_way,
)
from models.interface import Batch, Catalogue, History
from models.relation_graphs import RelationGraphs, Rules, relation_graphs
from tests.parity.pairs import Pair

MODEL = "SSDRec"
NAMES = {
    "item_embedding.weight": "E",
    "user_embedding.weight": "P",
    "dna.i_concatenation_w": "relations.i_cat",
    "dna.u_concatenation_w": "relations.u_cat",
    "dna.i_w": "relations.i_w",
    "dna.u_w": "relations.u_w",
    "dna.ii_w": "relations.W_ii",
    "dna.uu_w": "relations.W_uu",
    "dna.W1": "relations.W1",
    "dna.W2": "relations.W2",
    "dna.conv_layer.weight": "relations.k",
    "dna.conv_layer.bias": "relations.k2",
    "dna.conv_layer_user.weight": "relations.q",
    "dna.conv_layer_user.bias": "relations.q2",
    "dna.denoise.se_embedding.weight": "augmentation.ends",
    "read_out.activation.weight": "denoising.item_level.long_term_slope.weight",
}
PREFIXES = {
    "dna.denoise.Bi_LSTM.": "augmentation.lstm.",
    "rnn.": "denoising.sequence_level.lstm.",
    "conv.": "denoising.sequence_level.mix.",
    "seq_level_mlp.0.": "denoising.sequence_level.out.",
    "read_out.batch_norm.": "denoising.item_level.norm.",
    "read_out.fc_u.": "denoising.item_level.W_u.",
    "read_out.fc_v.": "denoising.item_level.W_v.",
    "read_out.fc_e.": "denoising.item_level.W_e.",
    "read_out.mlp_n_ls.": "denoising.item_level.long_term.",
    "sub_model.position_embedding.weight": "backbone.position",
    "sub_model.LayerNorm.": "backbone.norm.",
    "sub_model.trm_encoder.layer.": "backbone.layers.",
}
LAYER = {
    "multi_head_attention.LayerNorm": "attention_norm",
    "multi_head_attention.": "",
    "feed_forward.dense_1": "inner",
    "feed_forward.dense_2": "outer",
    "feed_forward.LayerNorm": "feed_forward_norm",
}


@dataclass(frozen=True)
class Recorded:
    """The noise of one pass, as it was drawn."""

    draws: Mapping[str, Tensor]

    def __call__(self, part: Part, scores: Tensor, first: int = 0) -> Tensor:
        """Columns from `first` on of the draw that has this part's number in the order of the calls."""
        draws = self.draws[str(list(Part).index(part))]
        return draws[:, first : first + scores.shape[1]].to(scores.dtype)


class GivenNegatives(nn.Module):
    """Stands in for the draw of negatives."""

    def __init__(self, negatives: Tensor) -> None:
        super().__init__()
        self.negatives = negatives

    def forward(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return self.negatives.unsqueeze(1)


class GivenTestNoise(nn.Module):
    """Stands in for the noise of a test."""

    def __init__(self, noise: Recorded) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, user: Tensor) -> Recorded:
        return self.noise


def ours(name: str) -> str:
    """Our name of one of their parameters."""
    if name in NAMES:
        return NAMES[name]
    for prefix, other in PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            for part, short in LAYER.items():
                rest = rest.replace(part, short)
            return other + rest
    raise KeyError(name)


def build(pair: Pair) -> SSDRec:
    config = pair.sidecar["config"]
    backbone = config["backbone"]
    rows, users = config["items"] + 1, config["users"] + 1  # their user 0 is padding
    nothing, flags = torch.zeros(rows, 1), torch.zeros(rows, dtype=torch.bool)
    catalogue = Catalogue(
        users=users, items=config["items"], length=config["length"], image=nothing,
        image_present=flags, text=nothing, text_present=flags, fields={}, drops_own_events=False,
    )  # fmt: skip
    settings = SSDRecConfig(
        hidden=config["d"],
        layers=backbone["layers"],
        heads=backbone["heads"],
        tau=config["tau"],
        min_count=config["graph_min_count"],
        count_padding=True,
        position_mask=PositionMask.code,
        filter_rule=FilterRule.code,
        eval_noise=EvalNoise.code,
    )
    model = SSDRec(settings, catalogue).double()
    own = model.state_dict()
    theirs = {ours(name): value for name, value in pair.below("w.").items()}
    mix = (
        "denoising.sequence_level.mix.weight"  # theirs is (to slot, from slot, 1, which of the two)
    )
    theirs[mix] = theirs[mix].squeeze(2).transpose(1, 2)
    loaded = {name: value.reshape(own[name].shape) for name, value in theirs.items()}
    missing = model.load_state_dict({**own, **loaded}) and own.keys() - loaded.keys()
    counters = {"tau", "batches", "drop", "warming", "first_epoch"}
    assert missing == counters | {"denoising.item_level.norm.num_batches_tracked"}
    model.relations.fill(graphs(pair))
    model.drop.fill_(config["curriculum_drop_rate"])
    return model.eval()


def graphs(pair: Pair) -> RelationGraphs:
    """Built from the toy sequences; nothing is cut off."""
    config = pair.sidecar["config"]
    sequences = torch.nn.functional.pad(pair.tensor("graph.in.sequences"), (0, 0, 1, 0))
    return relation_graphs(
        sequences,
        config["items"] + 1,
        Rules(config["graph_min_count"], neighbours=None, most_users=None, count_padding=True),
        rare=pair.tensor("graph.in.excluded_items"),
        idle=pair.tensor("graph.in.excluded_users"),
    )


def kept_percent(found: Denoised, count: Tensor) -> Tensor:
    """The logged percentage."""
    return 100 * found.kept.sum() / count.sum()


def check(pair: Pair) -> None:
    model, built, config = build(pair), graphs(pair), pair.sidecar["config"]
    for name in built.edges:
        pair.compare(f"graph.{name}", torch.from_numpy(getattr(built, name).toarray()))
    pair.compare("graph.item_user", torch.from_numpy(built.user_item.T.toarray()))

    users, table = model.relations(model.E, model.P)
    pair.compare("s1.user_embeddings", users)
    pair.compare("s1.item_embeddings", table)

    items, user, target = pair.tensor("in.items"), pair.tensor("in.user"), pair.tensor("in.target")
    count, real = pair.tensor("in.length"), items > 0
    assert torch.equal(count, real.sum(1))
    s = table[items] + (users[user] / count.unsqueeze(1)).unsqueeze(1)
    pair.compare("s2.sequence_embeddings", s)
    augmentation = model.augmentation
    ahead, behind = augmentation.between_ends(s)
    f = one_way(augmentation.lstm, ahead, backward=False)
    g = one_way(augmentation.lstm, behind, backward=True)
    sequence, item = consistencies(s, f, g, real.double())
    pair.compare("s2.sequence_consistency", sequence)
    pair.compare("s2.item_consistency", item)
    noise = Recorded(pair.below("gumbel.dna."))
    found = augmentation.inserted(items, count, s, table, noise, config["tau"])
    pair.compare("s2.position_one_hot", found.position)
    pair.compare("s2.applied", (found.position.argmax(1) < count).long())
    pair.compare("s2.augmented_items", found.items)
    pair.compare("s2.augmented_embeddings", found.vectors)
    pair.compare("s2.augmented_length", found.count)
    found = augmentation.checked(found, count, noise)
    pair.compare("s3a.items_after_second_check", found.items)
    pair.compare("s3a.length", found.count)

    noise = Recorded(pair.below("gumbel.train."))
    given = model.augmented(items, user, noise)
    pair.compare("train.raw_items", given.items)
    pair.compare("train.raw_length", given.count)
    x0, t = model.look_up(given.items), model.look_up(target)
    M = real.double().unsqueeze(2)
    denoised = model.denoising(
        given.items, x0, given.vectors, t, real, given.count, noise, config["tau"]
    )
    pair.compare("train.reconstruction", denoised.reconstruction)
    pair.compare("train.denoised_items", denoised.items)
    pair.compare("train.denoised_embeddings", denoised.vectors)
    pair.compare("train.denoised_length", denoised.kept)
    pair.compare("train.kept_percent", kept_percent(denoised, given.count))
    e, feat = model.denoising.item_level(given.vectors, t, M)
    lstm = model.denoising.sequence_level.lstm
    last = one_way(lstm, x0 * M, backward=False)[:, -1] + one_way(lstm, x0 * M, backward=True)[:, 0]
    level = model.denoising.item_level.long_term_vector(e, feat, t, M)
    pair.compare("train.embedding_level", level + last)
    state = model.backbone(denoised.items, denoised.vectors)
    pair.compare("train.user_vector", state)
    pair.compare("train.scores", model.score_all(state))

    negative, rate = pair.tensor("in.negative").unsqueeze(1), config["filter_drop_rate"]
    for name, ids, n in (
        ("check.filter_loss_per_position", items, count),
        ("train.filter_loss", given.items, given.count),
    ):
        losses = filter_losses(model.ahead(ids, negative, user), real, n, rate, model.lost)
        pair.compare(name, losses if name.startswith("check") else losses.sum(1).mean())

    model.noise = lambda _: noise
    model.negatives = GivenNegatives(pair.tensor("in.negative"))
    history = History(user, left_padded(items), left_padded(real.long()))
    zero = torch.zeros(len(items), 1, dtype=torch.float64)
    terms = model.loss(Batch(history, target.unsqueeze(1), zero, zero + 1, torch.Generator()))
    pair.compare("train.loss_reconstruction", terms["reconstruction"])
    pair.compare("train.loss_ce", terms["next_item"])
    pair.compare("train.loss_total", torch.stack(list(terms.values())).sum())

    noise = Recorded(pair.below("gumbel.eval."))
    model.test_noise = GivenTestNoise(noise)
    with torch.no_grad():
        pair.compare("eval.scores", model.score_all(model.encode(history)))
    # the percentage divides by n' of an augmentation that is thrown away
    denoised = model.denoising(
        items, model.look_up(items), table[items], model.P[user], real, count, noise, config["tau"]
    )
    thrown_away = model.augmented(items, user, noise).count
    pair.compare("eval.kept_percent", kept_percent(denoised, thrown_away))
    compared = ("graph.user", "graph.item", "s1.", "s2.", "s3a.", "train.", "eval.", "check.")
    pair.assert_all_compared(*compared)


def left_padded(items: Tensor) -> Tensor:
    """As the harness hands them over."""
    return items.gather(1, torch.argsort((items > 0).to(torch.int8), dim=1, stable=True))
