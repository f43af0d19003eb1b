"""Multi-expert interest extraction, MEIE (section 4.3; Eq. 14-22).

Axes: batch, slot = slots of a sequence, expert = encoders side by side (or modalities: image, text,
id), query / key = slots of an attention, vector = pooled vectors (6 unique, then the common one),
d = hidden width, gate = 1, d, 6 or 6d (R10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from models.diffusion import StackedLinear, StackedNorm, key_mask, xavier
from models.interface import ModelConfig
from models.layers import Dropout


class Concat(Enum):
    """R7. Eq. 14-16 concatenate three modalities; along which axis is not said."""

    positions = "positions"
    """Along slots: [batch, 3 slots, d]."""
    features = "features"
    """Along the width, then one Linear(3d->d), shared by both behaviours."""


class Pooling(Enum):
    """R8. How an encoder's sequence becomes one vector is not said."""

    last = "last"
    """The latest slot (shared expert: the last slot of the id block)."""
    mean = "mean"
    """The mean over attended slots (shared expert: of all three blocks)."""


class DisentangleLoss(Enum):
    """R9. Eq. 20 as printed is least wherever all similarities are equal, total collapse included.

    The sentence above it says that it separates.
    """

    printed = "printed"
    separate = "separate"
    """mean_i tau * logsumexp_{k != i}(sim_ik / tau)."""
    orthogonal = "orthogonal"
    """mean over i != j of the squared cosine."""


class Gate(Enum):
    """R10. Eq. 22 adds a vector of width d and one of width 6d."""

    vector = "vector"
    """g in R^d, y = g h_common + (1 - g) (W_s z + b_s)."""
    scalar = "scalar"
    """The same with one number."""
    per_expert = "per_expert"
    """g in R^6, y = mean_e(g_e h_common + (1 - g_e) z_e)."""
    tile = "tile"
    """g in R^6d, y = W_s (g [h_common x 6] + (1 - g) z) + b_s."""


class ExpertPositions(Enum):
    """R18. Position embeddings of the experts are not mentioned; the extension has none."""

    learned = "learned"
    none = "none"


class ExpertNorm(Enum):
    """R21. Post- or pre-norm Transformer: not said."""

    post = "post"
    pre = "pre"


@dataclass
class DisentangleConfig:
    """Interest disentanglement (Eq. 20)."""

    loss: DisentangleLoss = DisentangleLoss.printed


@dataclass
class RoutingConfig:
    """Interest routing (Eq. 21, 22)."""

    gate: Gate = Gate.vector


@dataclass
class ExpertConfig:
    """The Transformer encoders (Eq. 17-19)."""

    layers: int = 2
    """Not said; the authors' extension (HEM3BSR, d8d32b4) has 2."""
    positions: ExpertPositions = ExpertPositions.learned
    norm: ExpertNorm = ExpertNorm.post
    dropout: float = 0.1
    """After the attention, inside and after the feed-forward part; nowhere else."""
    ffn_factor: int = 4
    """Width of the feed-forward part in units of d."""


@dataclass
class InterestConfig(ModelConfig):
    """What MEIE reads."""

    heads: int = 4
    """Attention heads, of every attention (the paper has no number; its extension has 4)."""
    concat: Concat = Concat.positions
    pooling: Pooling = Pooling.last
    disent: DisentangleConfig = field(default_factory=DisentangleConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)


# ------------------------------------------------------------------------------------- encoders


def attention(
    query: Float[Tensor, "rows query d"],
    key: Float[Tensor, "rows key d"],
    value: Float[Tensor, "rows key d"],
    mask: Float[Tensor, "rows key"],
    heads: int,
) -> Float[Tensor, "rows query d"]:
    """softmax(q k^T / sqrt(d / heads)) v per head, heads concatenated."""
    rows, _, width = query.shape
    deep = width // heads

    def split(x: Tensor) -> Tensor:
        """[rows, n, d] to [rows x head, d / head, n]."""
        return x.view(rows, -1, heads, deep).permute(0, 2, 3, 1).reshape(rows * heads, deep, -1)

    bias = mask.repeat_interleave(heads, 0).unsqueeze(2)
    scores = torch.baddbmm(bias, split(key).mT, split(query / math.sqrt(deep)))
    mixed = torch.bmm(split(value), scores.softmax(1))
    return mixed.view(rows, width, -1).mT.contiguous()


class SelfAttention(nn.Module):
    """Multi-head self-attention of a stack of experts; query, key and value in one product."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, experts: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = StackedLinear(experts, width, 3 * width)
        for part in self.project.weight.data.chunk(3, 1):
            xavier(part)
        self.out = StackedLinear(experts, width, width)

    def kept(
        self, x: Float[Tensor, "expert batch slot d"]
    ) -> Float[Tensor, "expert batch query d"]:
        """The slots that the output covers: all."""
        return x

    def forward(
        self, x: Float[Tensor, "expert batch slot d"], mask: Float[Tensor, "batch slot"]
    ) -> Float[Tensor, "expert batch query d"]:
        """Attention over attended slots, then W_o."""
        experts, batch, slots, width = x.shape
        projected = self.project(x.flatten(1, 2)).view(experts * batch, slots, 3, width)
        query, key, value = projected.unbind(2)
        mixed = attention(query, key, value, mask.repeat(experts, 1), self.heads)
        return self.out(mixed.view(experts, batch * slots, width)).view_as(x)


class LastQueryAttention(SelfAttention):
    """The same numbers for the last slot alone, all that R8 `last` reads of the last layer.

    With one query the products with W_k and W_v move off the slots: q k^T = (q W_k) x^T and
    attention (x W_v) = (attention x) W_v.
    """

    def kept(
        self, x: Float[Tensor, "expert batch slot d"]
    ) -> Float[Tensor, "expert batch query d"]:
        """The slots that the output covers: the last."""
        return x[:, :, -1:]

    def forward(
        self, x: Float[Tensor, "expert batch slot d"], mask: Float[Tensor, "batch slot"]
    ) -> Float[Tensor, "expert batch query d"]:
        """Attention of the last slot over attended slots, then W_o."""
        experts, batch, _, width = x.shape
        heads, deep = self.heads, width // self.heads
        weight_q, weight_k, weight_v = self.project.weight.chunk(3, 1)
        bias_q, bias_k, bias_v = self.project.bias.unsqueeze(1).chunk(3, 2)
        query = torch.baddbmm(bias_q, x[:, :, -1], weight_q.mT) / math.sqrt(deep)
        split = query.view(experts, batch, heads, deep).transpose(1, 2)
        by_head = weight_k.reshape(experts, heads, deep, width)
        folded = (split @ by_head).transpose(1, 2)  # [expert, batch, head, d]
        steady = (query * bias_k).view(experts, batch, heads, deep).sum(3, keepdim=True)
        scores = folded @ x.mT + steady + mask.unsqueeze(1)
        context = (scores.softmax(3) @ x).transpose(1, 2)  # [expert, head, batch, d]
        values = context @ weight_v.reshape(experts, heads, deep, width).mT
        mixed = values.transpose(1, 2).reshape(experts, batch, width) + bias_v
        return self.out(mixed).unsqueeze(2)


class FeedForward(nn.Module):
    """W_2 drop(relu(W_1 x)) of a stack of experts."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, experts: int, width: int, config: ExpertConfig) -> None:
        super().__init__()
        self.widen = StackedLinear(experts, width, config.ffn_factor * width)
        self.narrow = StackedLinear(experts, config.ffn_factor * width, width)
        self.drop = Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "expert batch slot d"]
    ) -> Float[Tensor, "expert batch slot d"]:
        """Slot by slot."""
        inner = self.drop(self.widen(x.flatten(1, 2)).relu_())
        return self.narrow(inner).view_as(x)


class PostNormLayer(nn.Module):
    """R21 `post`: x = LN1(x + drop(MHA(x))), x = LN2(x + drop(FFN(x)))."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, width: int, mixer: SelfAttention, config: ExpertConfig) -> None:
        super().__init__()
        experts = len(mixer.out.weight)
        self.mixer = mixer
        self.norm_1 = StackedNorm(experts, width)
        self.norm_2 = StackedNorm(experts, width)
        self.feed_forward = FeedForward(experts, width, config)
        self.drop = Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "expert batch slot d"], mask: Float[Tensor, "batch slot"]
    ) -> Float[Tensor, "expert batch query d"]:
        """One layer; the slots are those that its attention keeps."""
        x = self.norm_1(self.mixer.kept(x) + self.drop(self.mixer(x, mask)))
        return self.norm_2(x + self.drop(self.feed_forward(x)))


class PreNormLayer(PostNormLayer):
    """R21 `pre`: x += drop(MHA(LN1 x)), x += drop(FFN(LN2 x))."""

    def forward(
        self, x: Float[Tensor, "expert batch slot d"], mask: Float[Tensor, "batch slot"]
    ) -> Float[Tensor, "expert batch query d"]:
        """One layer; the slots are those that its attention keeps."""
        x = self.mixer.kept(x) + self.drop(self.mixer(self.norm_1(x), mask))
        return x + self.drop(self.feed_forward(self.norm_2(x)))


class LearnedPositions(nn.Module):
    """R18 `learned`: a vector for each block and distance from the end, one table an expert."""

    def __init__(self, experts: int, blocks: int, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, blocks, length, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "expert batch slot d"]
    ) -> Float[Tensor, "expert batch slot d"]:
        """Add positions to x; slots are `blocks` sequences end to end."""
        experts, _, slots, width = x.shape
        each = slots // self.weight.shape[1]
        return x + self.weight[:, :, :each].flip(2).reshape(experts, 1, slots, width)


def last_slot(
    x: Float[Tensor, "expert batch slot d"], attend: Bool[Tensor, "batch all_slots"]
) -> Float[Tensor, "expert batch d"]:
    """R8 `last`."""
    del attend
    return x[:, :, -1]


def mean_slot(
    x: Float[Tensor, "expert batch slot d"], attend: Bool[Tensor, "batch slot"]
) -> Float[Tensor, "expert batch d"]:
    """R8 `mean`, over attended slots."""
    share = attend.to(x) / attend.sum(1, keepdim=True)
    return (share.unsqueeze(1) @ x).squeeze(2)


class Encoders(nn.Module):
    """Experts side by side: positions, Transformer layers, pooling (Eq. 17-19)."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, experts: int, blocks: int, length: int, config: InterestConfig) -> None:
        super().__init__()
        width, expert = config.hidden, config.expert
        self.positions = (
            LearnedPositions(experts, blocks, length, width)
            if expert.positions is ExpertPositions.learned
            else nn.Identity()
        )
        layer = {ExpertNorm.post: PostNormLayer, ExpertNorm.pre: PreNormLayer}[expert.norm]
        last = {Pooling.last: LastQueryAttention, Pooling.mean: SelfAttention}[config.pooling]
        mixers = [SelfAttention] * (expert.layers - 1) + [last]
        self.layers = nn.ModuleList(
            layer(width, mixer(experts, width, config.heads), expert) for mixer in mixers
        )
        self.final = StackedNorm(experts, width) if expert.norm is ExpertNorm.pre else nn.Identity()
        self.pool = POOLINGS[config.pooling]

    def forward(
        self, x: Float[Tensor, "expert batch slot d"], attend: Bool[Tensor, "batch slot"]
    ) -> Float[Tensor, "expert batch d"]:
        """One vector an expert and user."""
        mask = key_mask(attend, x)
        x = self.positions(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.pool(self.final(x), attend)


Pool = Callable[[Tensor, Tensor], Tensor]
POOLINGS: dict[Pooling, Pool] = {Pooling.last: last_slot, Pooling.mean: mean_slot}


# --------------------------------------------------------------------- shared expert (Eq. 14-17)


class AlongSlots(nn.Module):
    """R7 `positions`: three blocks of slots, image, text, id."""

    blocks = 3

    def forward(
        self, x: Float[Tensor, "3 batch slot d"], attend: Bool[Tensor, "batch slot"]
    ) -> tuple[Float[Tensor, "batch all_slots d"], Bool[Tensor, "batch all_slots"]]:
        """The sequence and which of it is attended."""
        return x.transpose(0, 1).flatten(1, 2), attend.repeat(1, 3)


class AlongWidth(nn.Module):
    """R7 `features`: one vector of width 3d a slot, then Linear(3d->d)."""

    blocks = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = StackedLinear(1, 3 * width, width)

    def forward(
        self, x: Float[Tensor, "3 batch slot d"], attend: Bool[Tensor, "batch slot"]
    ) -> tuple[Float[Tensor, "batch slot d"], Bool[Tensor, "batch slot"]]:
        """The sequence and which of it is attended."""
        _, batch, slots, width = x.shape
        wide = x.permute(1, 2, 0, 3).reshape(1, batch * slots, 3 * width)
        return self.project(wide).view(batch, slots, width), attend


class SharedExpert(nn.Module):
    """Clicks attend to favors, then an encoder (Eq. 14-17)."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, length: int, config: InterestConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads = config.heads
        self.concat = AlongSlots() if config.concat is Concat.positions else AlongWidth(width)
        self.query = StackedLinear(1, width, width)
        self.key_value = StackedLinear(1, width, 2 * width)
        for part in self.key_value.weight.data.chunk(2, 1):
            xavier(part)
        self.out = StackedLinear(1, width, width)
        self.encoder = Encoders(1, self.concat.blocks, length, config)

    def forward(
        self,
        click: Float[Tensor, "3 batch slot d"],
        favor: Float[Tensor, "3 batch key d"],
        attend_click: Bool[Tensor, "batch slot"],
        attend_favor: Bool[Tensor, "batch key"],
    ) -> Float[Tensor, "batch d"]:
        """h_common."""
        source, attend = self.concat(click, attend_click)
        condition, attend_condition = self.concat(favor, attend_favor)
        query = self.query(source.flatten(0, 1).unsqueeze(0)).view_as(source)
        key_value = self.key_value(condition.flatten(0, 1).unsqueeze(0))
        key, value = key_value.view(*condition.shape[:2], 2, -1).unbind(2)
        mask = key_mask(attend_condition, source)
        mixed = attention(query, key, value, mask, self.heads)
        shared = self.out(mixed.flatten(0, 1).unsqueeze(0)).view(1, *source.shape)
        return self.encoder(shared, attend)[0]


# -------------------------------------------------------------------- disentanglement (Eq. 20)


def cosines(vectors: Float[Tensor, "batch vector d"]) -> Float[Tensor, "batch vector vector"]:
    """Cosine of each pair, norms clamped at 1e-8."""
    unit = functional.normalize(vectors, dim=2, eps=1e-8)
    return unit @ unit.mT


def without_self(similarity: Float[Tensor, "batch vector vector"]) -> Tensor:
    """Each row without its diagonal entry: [batch, vector, vector - 1]."""
    batch, count, _ = similarity.shape
    flat = similarity.flatten(1)[:, 1:].view(batch, count - 1, count + 1)
    return flat[:, :, :-1].reshape(batch, count, count - 1)


def printed_disentanglement(
    vectors: Float[Tensor, "batch vector d"], tau: float
) -> Float[Tensor, " batch"]:
    """R9 `printed`: Eq. 20 to the letter.

    It does not separate: its floor n (n - 1) log(n - 1), 42 log 6 for 7 vectors, is attained
    wherever all similarities are equal, for instance when all vectors are one.
    """
    scaled = without_self(cosines(vectors)) / tau
    return -scaled.log_softmax(2).sum((1, 2))


def separate_disentanglement(
    vectors: Float[Tensor, "batch vector d"], tau: float
) -> Float[Tensor, " batch"]:
    """R9 `separate`: the denominators of Eq. 20 alone; least for a simplex (cosines -1/(n - 1))."""
    return tau * (without_self(cosines(vectors)) / tau).logsumexp(2).mean(1)


def orthogonal_disentanglement(
    vectors: Float[Tensor, "batch vector d"], tau: float
) -> Float[Tensor, " batch"]:
    """R9 `orthogonal`: mean squared cosine; tau is not read."""
    del tau
    return without_self(cosines(vectors)).square().mean((1, 2))


DISENTANGLEMENTS = {
    DisentangleLoss.printed: printed_disentanglement,
    DisentangleLoss.separate: separate_disentanglement,
    DisentangleLoss.orthogonal: orthogonal_disentanglement,
}


# --------------------------------------------------------------------------- routing (Eq. 21, 22)


class VectorRouting(nn.Module):
    """R10 `vector`, and `scalar` with one gate: y = g h_common + (1 - g) (W_s z + b_s)."""

    def __init__(self, width: int, gates: int) -> None:
        super().__init__()
        self.gate = StackedLinear(1, 7 * width, gates)
        self.specific = StackedLinear(1, 6 * width, width)

    def forward(
        self, common: Float[Tensor, "batch d"], unique: Float[Tensor, "6 batch d"]
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch gate"]]:
        """User vectors y and gates g."""
        z = unique.transpose(0, 1).flatten(1)
        gate = self.gate(torch.cat([common, z], 1).unsqueeze(0))[0].sigmoid()
        return self.mix(gate, common, z), gate

    def mix(self, gate: Tensor, common: Tensor, z: Tensor) -> Tensor:
        """The mixture y."""
        return gate * common + (1 - gate) * self.specific(z.unsqueeze(0))[0]


class TileRouting(VectorRouting):
    """R10 `tile`: y = W_s (g [h_common x 6] + (1 - g) z) + b_s."""

    def mix(self, gate: Tensor, common: Tensor, z: Tensor) -> Tensor:
        """The mixture y."""
        mixed = gate * common.repeat(1, 6) + (1 - gate) * z
        return self.specific(mixed.unsqueeze(0))[0]


class PerExpertRouting(VectorRouting):
    """R10 `per_expert`: y = mean_e(g_e h_common + (1 - g_e) z_e)."""

    def __init__(self, width: int, gates: int) -> None:
        super().__init__(width, gates)
        del self.specific

    def mix(self, gate: Tensor, common: Tensor, z: Tensor) -> Tensor:
        """The mixture y."""
        by_expert = gate.unsqueeze(2)
        experts = z.view(len(z), 6, -1)
        return (by_expert * common.unsqueeze(1) + (1 - by_expert) * experts).mean(1)


def routing(gate: Gate, width: int) -> VectorRouting:
    """R10."""
    kind, gates = {
        Gate.vector: (VectorRouting, width),
        Gate.scalar: (VectorRouting, 1),
        Gate.per_expert: (PerExpertRouting, 6),
        Gate.tile: (TileRouting, 6 * width),
    }[gate]
    return kind(width, gates)


# ------------------------------------------------------------------------------ the whole layer


@dataclass(frozen=True)
class Interests:
    """What the layer made of the six denoised sequences."""

    user: Float[Tensor, "batch d"]
    """y."""
    vectors: Float[Tensor, "batch vector d"] | None = None
    """What Eq. 20 disentangles: the six unique vectors, then the common one; None without experts."""
    gate: Float[Tensor, "batch gate"] | None = None


class MultiExpert(nn.Module):
    """Six unique experts, a shared one and the routing (section 4.3)."""

    def __init__(self, length: int, config: InterestConfig) -> None:
        super().__init__()
        self.click = Encoders(3, 1, length, config)
        self.favor = Encoders(3, 1, length, config)
        self.shared = SharedExpert(length, config)
        self.routing = routing(config.routing.gate, config.hidden)

    def forward(
        self,
        click: Float[Tensor, "3 batch slot d"],
        favor: Float[Tensor, "3 batch key d"],
        attend_click: Bool[Tensor, "batch slot"],
        attend_favor: Bool[Tensor, "batch key"],
    ) -> Interests:
        """User vectors y, the seven vectors and the gate."""
        unique = torch.cat([self.click(click, attend_click), self.favor(favor, attend_favor)])
        common = self.shared(click, favor, attend_click, attend_favor)
        user, gate = self.routing(common, unique)
        return Interests(user, torch.cat([unique, common.unsqueeze(0)]).transpose(0, 1), gate)


class UniqueExperts(nn.Module):
    """w/o Shared Expert: y = W_s z + b_s, six vectors to disentangle."""

    def __init__(self, length: int, config: InterestConfig) -> None:
        super().__init__()
        self.click = Encoders(3, 1, length, config)
        self.favor = Encoders(3, 1, length, config)
        self.specific = StackedLinear(1, 6 * config.hidden, config.hidden)

    def forward(
        self,
        click: Float[Tensor, "3 batch slot d"],
        favor: Float[Tensor, "3 batch key d"],
        attend_click: Bool[Tensor, "batch slot"],
        attend_favor: Bool[Tensor, "batch key"],
    ) -> Interests:
        """User vectors y and the six vectors."""
        unique = torch.cat([self.click(click, attend_click), self.favor(favor, attend_favor)])
        vectors = unique.transpose(0, 1)
        return Interests(self.specific(vectors.flatten(1).unsqueeze(0))[0], vectors)


class MeanInterest(nn.Module):
    """w/o MEIE: y = Linear(6d->d) of the mean of each denoised sequence over attended slots."""

    def __init__(self, length: int, config: InterestConfig) -> None:
        super().__init__()
        del length  # it has no positions
        self.specific = StackedLinear(1, 6 * config.hidden, config.hidden)

    def forward(
        self,
        click: Float[Tensor, "3 batch slot d"],
        favor: Float[Tensor, "3 batch key d"],
        attend_click: Bool[Tensor, "batch slot"],
        attend_favor: Bool[Tensor, "batch key"],
    ) -> Interests:
        """User vectors y."""
        means = torch.cat([mean_slot(click, attend_click), mean_slot(favor, attend_favor)])
        return Interests(self.specific(means.transpose(0, 1).flatten(1).unsqueeze(0))[0])
