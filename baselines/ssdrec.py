"""SSDRec: self-augmented sequence denoising for sequential recommendation (Zhang et al., ICDE 2024).

Facts from the authors' code, github.com/zc-97/SSDRec at commit 299421e (on RecBole 1.0.1): `model/hsd.py`,
`graph_data/data_process0706.py`, `Triainer/HsdTrainer.py`, `run_SSDRec.py`; numbers in brackets are its
parts in order: [S1] global relations, [S2] self-augmentation, [S3a] second check, [S3b] hierarchical
denoising (HSD), [S3c] backbone. [G..] are its known gaps, below in the class docstring.

Axes: batch = samples, length = slots of a RIGHT-padded sequence, L of them, class = 2 (1 is noise),
item_row = items + 1 (row 0 is padding), user_row = users, d = hidden width, cand = candidate items.

Symbols: E item table, P user table, I~ and U~ the same after [S1], n events of a sequence, n' after
[S3a], M = 1 at the events of the RAW sequence, r share left out by the curriculum, tau temperature,
s vectors of a sequence, p position that is augmented.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.gumbel import Choice, Gumbel, LargeChoice, Noise, SampledChoice, straight_through
from models.interface import (
    Batch,
    Behaviour,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Samples,
)
from models.layers import READINGS, Behaviors, DotProduct, Dropout
from models.negatives import TrainingNegatives
from models.relation_graphs import Relation, RelationGraphs, Rules, relation_graphs, windows
from models.softmax import catalogue_cross_entropy

log = logging.getLogger(__name__)

ABSENT = -2e32
"""Added to the consistency of a padding slot: it absorbs the score."""
MASKED = -10000.0
"""Added to the attention logit of a key that may not be seen."""
MOST_DROPPED = 0.2
"""The curriculum's r starts here; the filter loss leaves out this less r."""
CURRICULUM_EPOCHS = 10
ANNEAL_EVERY, ANNEAL_RATE, LOWEST_TAU = 40, 1e-3, 1e-3
MOST_NORM = 5.0
"""Of the gradient of all parameters together."""


class PositionMask(Enum):
    """D1 [G2]: whether a padding slot can be drawn as the position to augment, or to delete.

    In the authors' code (`code`) it can, and has the highest noise score: short sequences are hardly
    ever augmented.
    """

    valid = "valid"
    code = "code"


class FilterRule(Enum):
    """D2 [G5]: `code` loses the whole filter loss of a sequence that is too short to lose a slot."""

    fixed = "fixed"
    code = "code"


class EvalNoise(Enum):
    """D3 [G7]: at test the likelier class, or (`code`) a draw; here the same draw at every test."""

    off = "off"
    code = "code"


class Candidates(Enum):
    """D5: what an inserted item is drawn from, the whole catalogue or a uniform sample of it a batch."""

    all = "all"
    sampled = "sampled"


@dataclass
class SSDRecConfig(ModelConfig):
    """Settings of SSDRec: `run_SSDRec.py` and `text.yml`, except the width (theirs: 100)."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"min_count": (1, 3, 10)}

    length: int = 50
    """Slots L, for the latest events (theirs: 50; 200 on MovieLens-1M); never more than `Catalogue.length`.
    Everything is computed in all of them, so time grows with L however short the histories are."""
    layers: int = 2
    """Of the backbone."""
    heads: int = 2
    """Of each; they divide `hidden`."""
    dropout: float = 0.3
    """In the two passes of HSD's sequence level."""
    dropout_graph: float = 0.3
    dropout_readout: float = 0.2
    """Of the features of HSD's item level."""
    dropout_backbone: float = 0.5
    """Of its input, its attention weights and both sub-layers."""
    tau: float = 0.5
    """Temperature at the start; it changes gradients, never a sample."""
    min_count: int = 1
    """Items are related when they followed each other more often than this (theirs: 10, which leaves
    nothing of short histories)."""
    neighbours: int = 50
    """Heaviest edges of a row in each relation; theirs keeps all of a dense matrix."""
    most_users: int = 1000
    """An item with more users makes no two of them similar."""
    count_padding: bool = False
    """Ties a user to the padding item as often as the window has empty slots [G6], as theirs does."""
    candidate_items: int = 1024
    """Size of the sample under `sampled`; under `all` the gradient of a draw runs through so many items,
    the likeliest (all of them where there are no more)."""
    warm_start: bool = False
    """Train the backbone alone first, then keep its item table and nothing else."""
    position_mask: PositionMask = PositionMask.valid
    filter_rule: FilterRule = FilterRule.fixed
    eval_noise: EvalNoise = EvalNoise.off
    behaviors: Behaviors = Behaviors.merged
    """D4: `merged` ignores the tags; `favor_only` reads the favors and still predicts every target."""
    candidates: Candidates = Candidates.all
    augment: bool = True
    """False leaves out [S2] and [S3a]: HSD alone, on the raw sequence (an ablation of the paper)."""
    denoise: bool = True
    """False keeps every slot of the raw sequence: the backbone alone, with all losses."""


# Draws ------------------------------------------------------------------------------------------


class Part(Enum):
    """The draws of one pass, in the order of the authors' calls."""

    position = "position"
    item_forward = "item_forward"
    item_backward = "item_backward"
    second_check = "second_check"
    item_level = "item_level"
    sequence_level = "sequence_level"
    candidates = "candidates"
    """Ours: which items are candidates under `Candidates.sampled`."""


class NoTestNoise(nn.Module):
    """D3 `off`: the sample is the class with the higher score."""

    def __init__(self, users: int, length: int) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, user: Int[Tensor, " batch"]) -> Noise:  # noqa: ARG002
        """No noise, whoever it is."""
        return lambda _, scores, first=0: torch.zeros_like(scores)  # noqa: ARG005


class FixedTestNoise(nn.Module):
    """D3 `code`: noise at test too, one draw a user, slot and class for all tests."""

    SEED = 20240311
    LEVELS = (Part.item_level, Part.sequence_level)
    draws: Tensor

    def __init__(self, users: int, length: int) -> None:
        super().__init__()
        like = torch.zeros(users, len(self.LEVELS), length, 2)
        fixed = Gumbel(torch.Generator().manual_seed(self.SEED))
        self.register_buffer("draws", fixed(Part.item_level, like), persistent=False)

    def forward(self, user: Int[Tensor, " batch"]) -> Noise:
        """These users' draws."""
        draws = self.draws[user]
        return lambda part, scores, first=0: draws[:, self.LEVELS.index(part)].to(scores.dtype)  # noqa: ARG005


# [S1] Global relations --------------------------------------------------------------------------


class RelationEncoder(nn.Module):
    """[S1] One layer over the relations of all users and items: E, P to I~, U~.

    The negative relations (incompatible, dissimilar) are ADDED, with the weights of the positive ones.
    """

    def __init__(self, config: SSDRecConfig, catalogue: Catalogue) -> None:
        super().__init__()
        d, rows, users = config.hidden, catalogue.items + 1, catalogue.users
        self.user_item = Relation(users, rows)
        self.item_user = Relation(rows, users)
        self.item_in, self.item_out = Relation(rows, rows), Relation(rows, rows)
        self.item_incompatible = Relation(rows, rows)
        self.user_similar, self.user_dissimilar = Relation(users, users), Relation(users, users)
        self.W1, self.W2, self.u_w, self.i_w, self.u_cat, self.i_cat = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(d, d))) for _ in range(6)
        )
        self.W_uu, self.W_ii = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * d, d))) for _ in range(2)
        )
        # k0 and k1, q0 and q1: a convolution of width 2, drawn as such
        self.k, self.q = (
            nn.Parameter(torch.empty(2).uniform_(-math.sqrt(1.5), math.sqrt(1.5))) for _ in range(2)
        )
        self.k2, self.q2 = (
            nn.Parameter(torch.empty(()).uniform_(-math.sqrt(0.5), math.sqrt(0.5)))
            for _ in range(2)
        )
        self.dropout = Dropout(config.dropout_graph)

    def fill(self, graphs: RelationGraphs) -> None:
        """Take the relations."""
        self.user_item.fill(graphs.user_item)
        self.item_user.fill(graphs.user_item.T.tocsr())
        self.item_in.fill(graphs.item_in)
        self.item_out.fill(graphs.item_out)
        self.item_incompatible.fill(graphs.item_incompatible)
        self.user_similar.fill(graphs.user_similar)
        self.user_dissimilar.fill(graphs.user_dissimilar)

    def forward(
        self, E: Float[Tensor, "item_row d"], P: Float[Tensor, "user_row d"]
    ) -> tuple[Float[Tensor, "user_row d"], Float[Tensor, "item_row d"]]:
        """U~ and I~.

        The mean over the two relations is taken before W_uu and W_ii, which is the same and half the work.
        """
        alike = self.users(P, self.user_similar(P)) + self.users(P, self.user_dissimilar(P))
        after, unlike = self.item_out(E), self.item_incompatible(E)
        near = self.items(E, self.item_in(E), after) + self.items(E, unlike, unlike)
        u = torch.cat([self.user_item(E), alike / 2], 1) @ (self.W_uu @ self.u_w)
        i = torch.cat([self.item_user(P), near / 2], 1) @ (self.W_ii @ self.i_w)
        return u.sigmoid() @ self.u_cat, i.sigmoid() @ self.i_cat

    def items(
        self,
        E: Float[Tensor, "item_row d"],
        a: Float[Tensor, "item_row d"],
        b: Float[Tensor, "item_row d"],
    ) -> Float[Tensor, "item_row d"]:
        """itemGNN: k0 E + k1 (w_a a + w_b b) + k2, two weights an item; scalars k for all items."""
        x = functional.leaky_relu((E * a) @ self.W1, 0.2).sum(1)
        y = functional.leaky_relu((E * b) @ self.W2, 0.2).sum(1)
        w = ((x - y) / math.sqrt(E.shape[1])).sigmoid().unsqueeze(1)  # softmax over the pair
        dropped: Tensor = self.dropout(
            self.k[0] * E + self.k[1] * torch.lerp(b, a, w.to(b)) + self.k2
        )
        return dropped

    def users(
        self, P: Float[Tensor, "user_row d"], near: Float[Tensor, "user_row d"]
    ) -> Float[Tensor, "user_row d"]:
        """userGNN: q0 near + q1 P + q2; the neighbours come first, unlike the items'."""
        dropped: Tensor = self.dropout(self.q[0] * near + self.q[1] * P + self.q2)
        return dropped


# [S2] and [S3a] Self-augmentation ---------------------------------------------------------------


def one_way(
    lstm: nn.LSTM, x: Float[Tensor, "batch length d"], *, backward: bool
) -> Float[Tensor, "batch length d"]:
    """States of one direction of a bidirectional LSTM: twice as fast as both in one call."""
    end = "_reverse" if backward else ""
    names = ["weight_ih_l0", "weight_hh_l0", *(["bias_ih_l0", "bias_hh_l0"] if lstm.bias else [])]
    weights = [getattr(lstm, name + end) for name in names]
    zeros = x.new_zeros(1, x.shape[0], lstm.hidden_size)
    x = x.flip(1) if backward else x
    states: Tensor = torch.lstm(
        x, (zeros, zeros), weights, lstm.bias, 1, 0.0, lstm.training, False, True
    )[0]
    return states.flip(1) if backward else states


def bi_lstm(d: int, *, bias: bool) -> nn.LSTM:
    """The forward direction's matrices Xavier uniform; the backward one's as torch draws them."""
    lstm = nn.LSTM(d, d, bidirectional=True, batch_first=True, bias=bias)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        nn.init.xavier_uniform_(lstm.get_parameter(name))
    return lstm


@dataclass(frozen=True)
class Augmented:
    """A sequence that goes on to denoising."""

    items: Int[Tensor, "batch length"]
    vectors: Float[Tensor, "batch length d"]
    """s, moved with the items; an inserted slot has I~ of its item alone."""
    count: Int[Tensor, " batch"]
    """n, n + 2, or less one after the second check."""
    position: Float[Tensor, "batch length"]
    """One-hot of p."""


def item_choice(config: SSDRecConfig, rows: int) -> Choice:
    """The part of D5 for a catalogue of so many rows."""
    size = config.candidate_items
    if config.candidates is Candidates.sampled:
        return SampledChoice(size, Part.candidates)
    return Choice() if rows <= size else LargeChoice(size)


def valid_positions(
    noise_score: Float[Tensor, "batch length"], real: Float[Tensor, "batch length"]
) -> Float[Tensor, "batch length"]:
    """D1 `valid`: no padding slot is drawn while there is an event."""
    return noise_score + (1 - real) * ABSENT


def all_positions(
    noise_score: Float[Tensor, "batch length"],
    real: Float[Tensor, "batch length"],  # noqa: ARG001
) -> Float[Tensor, "batch length"]:
    """D1 `code`: padding slots have the highest noise score, 1, and are drawn like the others."""
    return noise_score


POSITIONS = {PositionMask.valid: valid_positions, PositionMask.code: all_positions}


class NoAugmentation(nn.Module):
    """The raw sequence goes on."""

    def __init__(self, config: SSDRecConfig, catalogue: Catalogue) -> None:  # noqa: ARG002
        super().__init__()

    def forward(
        self,
        items: Int[Tensor, "batch length"],
        count: Int[Tensor, " batch"],
        s: Float[Tensor, "batch length d"],
        table: Float[Tensor, "item_row d"],  # noqa: ARG002
        noise: Noise,  # noqa: ARG002
        tau: float,  # noqa: ARG002
    ) -> Augmented:
        """Nothing is drawn."""
        return Augmented(items, s, count, torch.zeros_like(s[:, :, 0]))


class SelfAugmentation(nn.Module):
    """[S2] Two items are inserted around the noisiest event; [S3a] one of the three may go again."""

    def __init__(self, config: SSDRecConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.lstm = bi_lstm(config.hidden, bias=False)
        self.ends = nn.Parameter(torch.randn(2, config.hidden))
        """What stands before the first and behind the last slot."""
        self.choice = item_choice(config, catalogue.items + 1)
        self.positions = POSITIONS[config.position_mask]

    def forward(
        self,
        items: Int[Tensor, "batch length"],
        count: Int[Tensor, " batch"],
        s: Float[Tensor, "batch length d"],
        table: Float[Tensor, "item_row d"],
        noise: Noise,
        tau: float,
    ) -> Augmented:
        """[S2] and [S3a].

        Args:
            items: The raw sequence.
            count: n.
            s: I~[item] + U~[user] / n, at padding slots too.
            table: I~.
            noise: Of this pass.
            tau: Temperature.
        """
        return self.checked(self.inserted(items, count, s, table, noise, tau), count, noise)

    def inserted(
        self,
        items: Int[Tensor, "batch length"],
        count: Int[Tensor, " batch"],
        s: Float[Tensor, "batch length d"],
        table: Float[Tensor, "item_row d"],
        noise: Noise,
        tau: float,
    ) -> Augmented:
        """[S2]: the sequence with its two new items where p < n and n <= L - 2, else as it was."""
        ahead, behind = self.between_ends(s)
        # both readings of a direction, with the ends and without, are one batch
        f, forward = one_way(self.lstm, torch.cat([ahead, s]), backward=False).chunk(2)
        g, backward = one_way(self.lstm, torch.cat([behind, s]), backward=True).chunk(2)
        score = self.noise_score(items, s, f, g)
        position = straight_through(score, noise(Part.position, score), tau)
        # the forward state before p and the backward state after it, modulo L
        queries = [
            (states * position.roll(step, 1).unsqueeze(2)).sum(1)
            for states, step in ((forward, -1), (backward, 1))
        ]
        item_fw, fw = self.choice(queries[0], table, noise, Part.item_forward, tau)
        item_bw, bw = self.choice(queries[1], table, noise, Part.item_backward, tau)
        p = position.argmax(1)
        room = ((p < count) & (count <= items.shape[1] - 2)).unsqueeze(1)
        return Augmented(
            torch.where(room, insert_items(items, p, item_fw, item_bw), items),
            torch.where(room.unsqueeze(2), insert_vectors(s, position, fw, bw), s),
            count + 2 * room.squeeze(1),
            position,
        )

    @torch.no_grad()
    def checked(self, found: Augmented, count: Int[Tensor, " batch"], noise: Noise) -> Augmented:
        """[S3a]: a second draw; where it hits p, p + 1 or p + 2 (modulo L) the id there becomes 0.

        It asks only whether p < n (`count`): a sequence that had no room loses an event of its own. The
        vectors stay, so nothing has a gradient here.
        """
        ahead, behind = self.between_ends(found.vectors)
        f, g = one_way(self.lstm, ahead, backward=False), one_way(self.lstm, behind, backward=True)
        score = self.noise_score(found.items, found.vectors, f, g)
        q, p = (score + noise(Part.second_check, score)).argmax(1), found.position.argmax(1)
        gone = (p < count) & ((q - p) % found.items.shape[1] < 3)
        kept = found.items.scatter(1, q.unsqueeze(1), 0)
        items = torch.where(gone.unsqueeze(1), kept, found.items)
        return replace(found, items=items, count=found.count - gone.long())

    def between_ends(self, s: Float[Tensor, "batch length d"]) -> tuple[Tensor, Tensor]:
        """What the forward direction has read before each slot, and the backward one behind it."""
        start, end = self.ends.unsqueeze(1).expand(2, len(s), -1).unsqueeze(2).unbind(0)
        return torch.cat([start, s[:, :-1]], 1), torch.cat([s[:, 1:], end], 1)

    def noise_score(
        self,
        items: Int[Tensor, "batch length"],
        s: Float[Tensor, "batch length d"],
        f: Float[Tensor, "batch length d"],
        g: Float[Tensor, "batch length d"],
    ) -> Float[Tensor, "batch length"]:
        """1 - sequence consistency x item consistency; 1 at padding slots, as D1 has it."""
        real = (items > 0).to(s.dtype)
        sequence, item = consistencies(s, f, g, real)
        return self.positions(1 - sequence * item, real)


def consistencies(
    s: Float[Tensor, "batch length d"],
    f: Float[Tensor, "batch length d"],
    g: Float[Tensor, "batch length d"],
    real: Float[Tensor, "batch length"],
) -> tuple[Float[Tensor, "batch length"], Float[Tensor, "batch length"]]:
    """softmax_t(sum_d s_t f_t g_t) and softmax_t(sum over events j != t of <clip(s_t), clip(s_j)>).

    The inner products with all events are one product with their sum.
    """
    absent = (1 - real) * ABSENT
    clipped = s.clamp(-1, 1)
    others = (clipped * real.unsqueeze(2)).sum(1, keepdim=True) - clipped
    sequence, item = (s * f * g).sum(2), (clipped * others).sum(2)
    return (sequence + absent).softmax(1), (item + absent).softmax(1)


def insert_items(
    items: Int[Tensor, "batch length"],
    p: Int[Tensor, " batch"],
    forward: Int[Tensor, " batch"],
    backward: Int[Tensor, " batch"],
) -> Int[Tensor, "batch length"]:
    """Items before p, `forward`, item p, `backward`, the rest; the last two slots fall off."""
    slot, p = torch.arange(items.shape[1], device=items.device), p.unsqueeze(1)
    moved = items.gather(1, slot - (slot > p).long() - (slot > p + 1).long())
    moved = torch.where(slot == p, forward.unsqueeze(1), moved)
    return torch.where(slot == p + 2, backward.unsqueeze(1), moved)


def insert_vectors(
    s: Float[Tensor, "batch length d"],
    position: Float[Tensor, "batch length"],
    forward: Float[Tensor, "batch d"],
    backward: Float[Tensor, "batch d"],
) -> Float[Tensor, "batch length d"]:
    """The same for the vectors, as sums weighted by the one-hot of p, through which it is trained.

    Weights of value 0 are kept where the authors' code has them: they carry gradients.
    """
    hard = position.detach()
    chosen = (position * hard).sum(1, keepdim=True)
    later = hard.cumsum(1) - hard  # 1 behind p
    left = (1 - later - hard) * chosen + (1 - hard) * position
    right = later * (chosen + position)
    p = position.unsqueeze(2)
    return (
        s * left.unsqueeze(2)
        + (s * p).roll(1, 1)
        + shifted(s * right.unsqueeze(2))
        + forward.unsqueeze(1) * p
        + backward.unsqueeze(1) * p.roll(2, 1)
    )


def shifted(x: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
    """Two slots to the right; the last two fall off."""
    return functional.pad(x[:, :-2], (0, 0, 2, 0))


# [S3b] Hierarchical denoising -------------------------------------------------------------------


class SequenceLevel(nn.Module):
    """HSD's sequence level: a reconstruction, and what differs from it."""

    def __init__(self, config: SSDRecConfig, length: int) -> None:
        super().__init__()
        self.lstm = bi_lstm(config.hidden, bias=True)
        self.mix = nn.Linear(2 * length, length)
        """Mixes SLOTS, the same way in every dimension: a convolution with L channels and kernel 1 x 2."""
        self.out = xavier_linear(config.hidden, 2, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x0: Float[Tensor, "batch length d"], M: Float[Tensor, "batch length 1"]
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length class"]]:
        """Reconstruction dec, and the two-way score."""
        dec = self.pass_through(self.pass_through(self.dropout(x0) * M) * M)
        mixed = self.mix.weight @ torch.cat([dec, x0], 1) + self.mix.bias.unsqueeze(1)
        return dec, self.out(self.dropout(mixed).relu()).sigmoid() * M

    def pass_through(self, x: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        """Sum of the two directions, over all L slots."""
        return one_way(self.lstm, x, backward=False) + one_way(self.lstm, x, backward=True)


class ItemLevel(nn.Module):
    """HSD's item level: each item beside the context t (the target in training, the user at test)."""

    def __init__(self, config: SSDRecConfig, length: int) -> None:
        super().__init__()
        d = config.hidden
        self.norm = nn.BatchNorm1d(length)
        """Over the SLOTS: each slot has its own statistics."""
        self.W_u = xavier_linear(d, d, bias=False)
        self.W_v = xavier_linear(d, d, bias=True)
        self.W_e = xavier_linear(d, 2, bias=False)
        self.long_term = xavier_linear(2 * d, d, bias=True)
        self.long_term_slope = nn.PReLU(d)
        self.dropout = Dropout(config.dropout_readout)

    def forward(
        self,
        vectors: Float[Tensor, "batch length d"],
        t: Float[Tensor, "batch d"],
        M: Float[Tensor, "batch length 1"],
    ) -> tuple[Float[Tensor, "batch length class"], Float[Tensor, "batch length d"]]:
        """Two-way score sigmoid(M W_e tanh(M W_u feat + W_v t + b)), and the features."""
        feat = self.dropout(self.norm(vectors) * M) * M
        e = self.W_e((self.W_u(feat) + self.W_v(t).unsqueeze(1)).tanh()) * M
        return e.sigmoid(), feat

    def long_term_vector(
        self,
        e: Float[Tensor, "batch length class"],
        feat: Float[Tensor, "batch length d"],
        t: Float[Tensor, "batch d"],
        M: Float[Tensor, "batch length 1"],
    ) -> Float[Tensor, "batch d"]:
        """What the authors' code computes and never uses; neither do we."""
        weight = (e[:, :, 1:] + (1 - M) * ABSENT).softmax(1)
        r = self.long_term_slope((feat * weight).sum(1))
        vector: Tensor = self.long_term(self.dropout(torch.cat([r, t], 1)))
        return vector


def xavier_linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """Xavier normal, bias 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def noisy_to_both(
    item: Float[Tensor, "batch length class"],
    sequence: Float[Tensor, "batch length class"],
    noise: Noise,
    tau: float,
) -> Float[Tensor, "batch length"]:
    """1 where both levels draw class 1."""
    first = straight_through(item, noise(Part.item_level, item), tau)
    second = straight_through(sequence, noise(Part.sequence_level, sequence), tau)
    return first[:, :, 1] * second[:, :, 1]


def nothing_noisy(
    item: Float[Tensor, "batch length class"],
    sequence: Float[Tensor, "batch length class"],  # noqa: ARG001
    noise: Noise,  # noqa: ARG001
    tau: float,  # noqa: ARG001
) -> Float[Tensor, "batch length"]:
    """Every slot is kept."""
    return torch.zeros_like(item[:, :, 0])


@dataclass(frozen=True)
class Denoised:
    """What HSD makes of a sequence."""

    items: Int[Tensor, "batch length"]
    """Kept ids moved left."""
    vectors: Float[Tensor, "batch length d"]
    """E of the kept ids; zero behind them."""
    kept: Int[Tensor, " batch"]
    """Kept slots, at least 1; a slot whose id [S3a] made 0 counts."""
    reconstruction: Float[Tensor, " batch"]
    """L_rec of each sequence."""


class HierarchicalDenoising(nn.Module):
    """[S3b] A slot goes when both levels call it noise."""

    def __init__(self, config: SSDRecConfig, length: int) -> None:
        super().__init__()
        self.sequence_level = SequenceLevel(config, length)
        self.item_level = ItemLevel(config, length)
        self.noisy = noisy_to_both if config.denoise else nothing_noisy

    def forward(
        self,
        items: Int[Tensor, "batch length"],
        x0: Float[Tensor, "batch length d"],
        vectors: Float[Tensor, "batch length d"],
        t: Float[Tensor, "batch d"],
        real: Bool[Tensor, "batch length"],
        count: Int[Tensor, " batch"],
        noise: Noise,
        tau: float,
    ) -> Denoised:
        """Denoise.

        Args:
            items: After [S3a].
            x0: E of them.
            vectors: After [S3a].
            t: Context of the item level.
            real: M, events of the RAW sequence: what an insertion pushed behind them is lost [G3].
            count: n'.
            noise: Of this pass.
            tau: Temperature.
        """
        mask = real.to(x0.dtype)
        M = mask.unsqueeze(2)
        dec, sequence = self.sequence_level(x0, M)
        item, _ = self.item_level(vectors, t, M)
        keep = (1 - self.noisy(item, sequence, noise, tau) * mask) * mask
        left = items * keep.detach().long()
        order = torch.argsort((left == 0).to(torch.int8), dim=1, stable=True)
        left = left.gather(1, order)
        place = order.unsqueeze(2).expand_as(x0)
        return Denoised(
            left,
            (x0 * keep.unsqueeze(2)).gather(1, place) * (left > 0).unsqueeze(2),
            keep.detach().sum(1).long().clamp(min=1),
            ((dec - x0) * M).square().sum((1, 2)) / count.clamp(min=1),
        )


# [S3c] Backbone ---------------------------------------------------------------------------------


class Layer(nn.Module):
    """Post-norm: LN(x + attention), then LN(x + W_2 gelu(W_1 x))."""

    def __init__(self, config: SSDRecConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))
        self.dense = nn.Linear(d, d)
        self.attention_norm = nn.LayerNorm(d, eps=1e-12)
        self.inner, self.outer = nn.Linear(d, d), nn.Linear(d, d)
        self.feed_forward_norm = nn.LayerNorm(d, eps=1e-12)
        self.dropout = Dropout(config.dropout_backbone)

    def forward(
        self,
        x: Float[Tensor, "batch read d"],
        memory: Float[Tensor, "batch length d"],
        blocked: Bool[Tensor, "batch read length"],
    ) -> Float[Tensor, "batch read d"]:
        """New states of the slots in `x`."""

        def split(
            states: Float[Tensor, "batch slots d"],
        ) -> Float[Tensor, "batch head slots width"]:
            return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        logits = q @ k.mT * q.shape[3] ** -0.5
        # in single precision, whose rounding shows where every key carries the mask
        logits = logits.float() + MASKED * blocked.unsqueeze(1)
        weights = self.dropout(logits.softmax(3).to(x.dtype))
        gathered = (weights @ v).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.dropout(self.dense(gathered)))
        inner = functional.gelu(self.inner(x))
        out: Tensor = self.feed_forward_norm(x + self.dropout(self.outer(inner)))
        return out


class Backbone(nn.Module):
    """[S3c] SASRec as in RecBole 1.0.1: an encoder like BERT's with a causal mask, width d inside."""

    def __init__(self, config: SSDRecConfig, length: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(length, config.hidden))
        self.norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.dropout = Dropout(config.dropout_backbone)
        self.draw()

    def draw(self) -> None:
        """N(0, 0.02^2), biases 0, norms 1 and 0."""
        nn.init.normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self, items: Int[Tensor, "batch length"], vectors: Float[Tensor, "batch length d"]
    ) -> Float[Tensor, "batch d"]:
        """State at the last item; at slot 0, from all L slots alike, where there is none.

        Slots that are empty in every row weigh nothing and are cut off, unless a row is empty.
        """
        count = (items > 0).sum(1)
        width = items.shape[1]
        if len(count) and int(count.min()) > 0:
            width = int(count.max())
        items, vectors = items[:, :width], vectors[:, :width]
        later = torch.ones(width, width, dtype=torch.bool, device=items.device).triu(1)
        blocked = later | (items == 0).unsqueeze(1)
        x = self.dropout(self.norm(vectors + self.position[:width]))
        for layer in self.layers[:-1]:
            x = layer(x, x, blocked)
        last = (count - 1).clamp(min=0).view(-1, 1, 1)
        state: Tensor = self.layers[-1](
            x.gather(1, last.expand(-1, 1, x.shape[2])),
            x,
            blocked.gather(1, last.expand(-1, 1, width)),
        )
        return state.squeeze(1)


# Losses and schedules ---------------------------------------------------------------------------


def lose_nothing(
    count: Int[Tensor, " batch"],
    length: int,  # noqa: ARG001
    rate: float,  # noqa: ARG001
) -> Int[Tensor, " batch"]:
    """D2 `fixed`: a row that is too short to lose a slot loses none."""
    return count


def lose_all(count: Int[Tensor, " batch"], length: int, rate: float) -> Int[Tensor, " batch"]:
    """D2 `code`: it loses all (a slice from -0 on), unless the rate is 0."""
    return torch.where(count == 0, length, count) if rate else count


LOST = {FilterRule.fixed: lose_nothing, FilterRule.code: lose_all}


def filter_losses(
    ahead: Float[Tensor, "batch length"],
    real: Bool[Tensor, "batch length"],
    count: Int[Tensor, " batch"],
    rate: float,
    lost: Callable[[Tensor, int, float], Tensor],
) -> Float[Tensor, "batch length"]:
    """-log(1e-10 + sigmoid(ahead)) of each slot, without the floor(rate n') highest of a row.

    Args:
        ahead: <P[user], E[item]> less the same of the negative.
        real: M.
        count: n'.
        rate: Share that is dropped.
        lost: D2, from that number, L and the rate to how many are dropped.
    """
    losses = -torch.log(1e-10 + ahead.sigmoid()) * real
    place = losses.detach().argsort(dim=1).argsort(dim=1)
    most = lost((rate * count).long(), losses.shape[1], rate)
    return losses * (place < losses.shape[1] - most.unsqueeze(1))


def drop_share(epoch: int) -> float:
    """r: linspace(0.2, 0, 10)[epoch], then 0."""
    last = CURRICULUM_EPOCHS - 1
    return MOST_DROPPED - epoch * (MOST_DROPPED / last) if epoch < last else 0.0


def annealed(tau: float, batches: int) -> float:
    """Temperature in the batch of this number (from 1): every 40th shrinks it by exp(-number / 1000)."""
    if batches % ANNEAL_EVERY:
        return tau
    return max(LOWEST_TAU, tau * math.exp(-ANNEAL_RATE * batches))


def right_padded(history: History, length: int) -> Int[Tensor, "batch length"]:
    """The items from slot 0 on."""
    items = history.padded(length).items
    return items.gather(1, torch.argsort((items == 0).to(torch.int8), dim=1, stable=True))


def check(config: SSDRecConfig, length: int) -> None:
    """Refuse settings that make no model."""
    if config.heads < 1 or config.hidden % config.heads:
        raise ValueError(f"hidden {config.hidden} is no multiple of heads {config.heads}")
    for name in ("layers", "neighbours", "most_users", "candidate_items"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; at least 1 is needed")
    if config.min_count < 0:
        raise ValueError(f"min_count is {config.min_count}; it is a count, at least 0")
    if config.tau <= 0:
        raise ValueError(f"tau is {config.tau}; a temperature is above 0")
    if length < 3:
        raise ValueError(f"length is {length}; at least 3 slots are needed, an event and two more")


EVENTS: dict[Behaviors, tuple[Behaviour, ...]] = {
    Behaviors.merged: (Behaviour.CLICK, Behaviour.FAVOR),
    Behaviors.favor_only: (Behaviour.FAVOR,),
}
"""D4: behaviours of the events that the relations are built from."""

TEST_NOISE: dict[EvalNoise, Callable[[int, int], nn.Module]] = {
    EvalNoise.off: NoTestNoise,
    EvalNoise.code: FixedTestNoise,
}


class SSDRec(DotProduct):
    """Self-augmented denoising in front of a backbone.

    Paper: Chi Zhang, Qilong Han, Rui Chen, Xiangyu Zhao, Peng Tang and Hongtao Song, "SSDRec:
    Self-Augmented Sequence Denoising for Sequential Recommendation", ICDE 2024, arXiv 2403.04278.
    Authors' code: github.com/zc-97/SSDRec, commit 299421e, whose computations are the defaults except
    where an option says so.

    What the authors' code is known for, and what is done about it:
      G1 u_cat and i_cat are never initialised (raw memory): here Xavier uniform.
      G2 padding is drawn as a position: `position_mask`.
      G3 the mask is the raw sequence's, after augmentation too: two slots are cut. Kept.
      G4 in training an item is judged beside the TARGET, at test beside the user. Kept.
      G5 short sequences lose their filter loss: `filter_rule`.
      G6 graphs hold the validation item, the padding item and lengths of a neighbouring user: here
         training events alone, no padding (`count_padding`), and each user's own length.
      G7 Gumbel noise stays on at test: `eval_noise`. Under `code` every test is the same draw here.
      G8 dense graphs of users x users and items x items: here sparse, `neighbours` a row (two items or
         users are joined by what has kept both of them), similar users through the items of at most
         `most_users`.
      G9 evaluation with sampled candidates fails there; here every candidate is scored.

    Other differences: a drawn item's gradient runs through the `candidate_items` likeliest items, where
    the catalogue has more; the filter loss draws its negative among items that the user has not
    touched in training; the inner width of the backbone is d (theirs: 100, and d = 100).

    Raises:
        ValueError: `hidden` is no multiple of `heads`, or a size or the temperature is too small; from
            `prepare`: no two items are related under `min_count`. (No two that are incompatible, or
            dissimilar, is no error: a small world has none.)
    """

    Config: ClassVar[type[ModelConfig]] = SSDRecConfig
    samples: ClassVar[Samples] = Samples.prefix
    config: SSDRecConfig
    tau: Tensor
    batches: Tensor
    drop: Tensor
    warming: Tensor
    first_epoch: Tensor

    def __init__(self, config: SSDRecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        self.length = min(config.length, catalogue.length)
        check(config, self.length)
        d = config.hidden
        self.E = nn.Parameter(nn.init.normal_(torch.empty(catalogue.items + 1, d), std=0.02))
        self.P = nn.Parameter(nn.init.xavier_normal_(torch.empty(catalogue.users, d)))
        self.relations = RelationEncoder(config, catalogue)
        self.augmentation = (SelfAugmentation if config.augment else NoAugmentation)(
            config, catalogue
        )
        self.denoising = HierarchicalDenoising(config, self.length)
        self.backbone = Backbone(config, self.length)
        self.noise: Callable[[torch.Generator], Noise] = Gumbel
        self.test_noise = TEST_NOISE[config.eval_noise](catalogue.users, self.length)
        self.negatives = TrainingNegatives(catalogue)
        self.lost = LOST[config.filter_rule]
        self.reading = READINGS[config.behaviors]()
        self.edges: dict[str, int] = {}
        """Of each relation, once prepared."""
        double = torch.float64
        self.register_buffer("tau", torch.tensor(config.tau, dtype=double))
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("drop", torch.tensor(drop_share(0), dtype=double))
        self.register_buffer("warming", torch.tensor(config.warm_start))
        self.register_buffer("first_epoch", torch.tensor(-1))

    def prepare(self, train: Interactions) -> None:
        """Relations of what each user did last, their sizes in the log; negatives avoid what each touched."""
        self.negatives.prepare(train)
        config, catalogue = self.config, self.catalogue
        read = torch.isin(
            train.behaviour, torch.tensor(EVENTS[config.behaviors]).to(train.behaviour)
        )
        sequences = windows(train.user[read], train.item[read], catalogue.users, self.length)
        graphs = relation_graphs(
            sequences,
            catalogue.items + 1,
            Rules(
                config.min_count,
                config.neighbours,
                config.most_users,
                count_padding=config.count_padding,
            ),
        )
        self.edges = graphs.edges
        if not self.edges["item_in"]:
            raise ValueError(
                f"no item followed another more than min_count={config.min_count} times, so that no "
                f"items are related (edges: {self.edges}); choose a smaller min_count"
            )
        log.info(
            "%d item rows, %d users; edges: %s", catalogue.items + 1, catalogue.users,
            ", ".join(f"{count} {name}" for name, count in self.edges.items()),
        )  # fmt: skip
        self.relations.fill(graphs)
        self._remembered.clear()

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:  # noqa: ARG002
        """The curriculum's r, by epochs of the denoising stage."""
        if not self.warming:
            if self.first_epoch < 0:
                self.first_epoch.fill_(epoch)
            self.drop.fill_(drop_share(epoch - int(self.first_epoch)))

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Clip the gradient's norm to 5; the temperature of the next batch."""
        nn.utils.clip_grad_norm_(self.parameters(), MOST_NORM)
        if not self.warming:
            self.batches += 1
            self.tau.fill_(annealed(float(self.tau), int(self.batches) + 1))

    def next_stage(self) -> bool:
        """After a warm start: keep the item table, draw the backbone again."""
        if not self.warming:
            return False
        self.warming.fill_(False)
        self.backbone.draw()
        return True

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy and L_rec, means over the kept part of the batch, and the filter loss.

        The kept part is the floor((1 - r) B) sequences with the lowest L_rec, at least one; the
        cross-entropy is over all rows of E, padding's among them.
        """
        history = self.reading.history(batch.history)
        items, user = right_padded(history, self.length), history.user
        if self.warming:
            state = self.state(items, self.look_up(items))
            return {"next_item": self.cross_entropy(state, batch.target)}
        noise, drop = self.noise(batch.generator), float(self.drop)
        given = self.augmented(items, user, noise)
        found = self.denoising(
            given.items, self.look_up(given.items), given.vectors, self.look_up(batch.target),
            items > 0, given.count, noise, float(self.tau),
        )  # fmt: skip
        easy = found.reconstruction.detach().argsort(stable=True)
        easy = easy[: max(1, int((1 - drop) * len(easy)))]
        state = self.state(found.items[easy], found.vectors[easy])
        negative = self.negatives(user, 1, batch.generator)
        filtered = filter_losses(
            self.ahead(given.items, negative, user), items > 0, given.count,
            MOST_DROPPED - drop, self.lost,
        )  # fmt: skip
        return {
            "next_item": self.cross_entropy(state, batch.target[easy]),
            "reconstruction": found.reconstruction[easy].mean(),
            "filter": filtered.sum(1).mean(),
        }

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """States of the denoised raw sequences; the item level reads I~ alone, beside P[user]."""
        history = self.reading.history(history)
        items, user = right_padded(history, self.length), history.user
        x0, real = self.look_up(items), items > 0
        if self.warming:
            return self.state(items, x0)
        _, table = self.once("relations", lambda: self.relations(self.E, self.P))
        found = self.denoising(
            items, x0, functional.embedding(items, table), functional.embedding(user, self.P),
            real, real.sum(1), self.test_noise(user), float(self.tau),
        )  # fmt: skip
        return self.state(found.items, found.vectors)

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """E: score = state . E[item]."""
        return self.E

    def augmented(
        self, items: Int[Tensor, "batch length"], user: Int[Tensor, " batch"], noise: Noise
    ) -> Augmented:
        """[S1] to [S3a] of right-padded sequences."""
        users, table = self.relations(self.E, self.P)
        count = (items > 0).sum(1)
        own = functional.embedding(user, users) / count.clamp(min=1).unsqueeze(1)
        s = functional.embedding(items, table) + own.unsqueeze(1)
        found: Augmented = self.augmentation(items, count, s, table, noise, float(self.tau))
        return found

    def state(
        self, items: Int[Tensor, "batch length"], vectors: Float[Tensor, "batch length d"]
    ) -> Float[Tensor, "batch d"]:
        """[S3c] of kept items."""
        state: Tensor = self.backbone(items, vectors)
        return state

    def look_up(self, items: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """Rows of E; padding's row is read, but not trained from here."""
        return functional.embedding(items, self.E, padding_idx=0)

    def ahead(
        self,
        items: Int[Tensor, "batch length"],
        negative: Int[Tensor, "batch one"],
        user: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch length"]:
        """<P[user], E[item]> - <P[user], E[negative]> of each slot."""
        own = functional.embedding(user, self.P).unsqueeze(2)
        return ((self.look_up(items) - self.look_up(negative)) @ own).squeeze(2)

    def cross_entropy(
        self, state: Float[Tensor, "batch d"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Mean over the samples."""
        return catalogue_cross_entropy(state, self.E, None, target, padding=True).mean()
