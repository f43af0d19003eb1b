"""MMSBR (Zhang et al., TKDE 2024, arXiv 2309.17037): sessions of items made of pictures, texts, prices.

Facts from the authors' code, github.com/Zhang-xiaokun/MMSBR at commit b640ff4 (model.py, main.py); B1
to B7 are its open readings and ours. L1 to L7 number its layers in order:

item     L1 tokens of text and image, L2 pivots, L3 rounds of two transformer layers, L4 item vector
session  L5 interest (a gated sum, blind to order), L6 numeric branch
score    L7 score(i) = (interest . item i) (1 + D_i), or the interest's part alone

Axes: batch, length = slots of a left-padded history, row = items that are computed in a step, kept =
tokens that a transformer layer hands on, query, key, token = pivots, then tokens of one modality,
head, head_width = d / heads, kind = price x category, cand = candidate items, item = ids 1..n, whose
tables have row id - 1, item_row = items + 1 (row 0 is padding and zero), d = hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.interface import (
    Batch,
    Behaviour,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Recommender,
)
from models.layers import Dropout, Reads, Typed, typing
from models.precision import in_float32
from models.softmax import catalogue_cross_entropy, scored_cross_entropy

BLOCK = 4096
"""Items whose vectors are made at once."""
PAIRS = 1 << 17
"""Products of two tokens' numbers that are held at once (512 KiB in float32)."""


class SoftmaxAxis(Enum):
    """B1: attention weights sum to 1 over the keys, or over the queries (the published code)."""

    key = "key"
    query = "query"


class DistanceSign(Enum):
    """B2: a larger price distance multiplies the score up (the published code), or down."""

    plus = "plus"
    minus = "minus"


class Features(Enum):
    """B3: the given vectors, or noise in tables (what the published code trains on)."""

    kept = "kept"
    overwritten = "overwritten"


class Start(Enum):
    """Norms at 1 and 0 and an equal, positive gate, or these drawn too (the published code)."""

    repaired = "repaired"
    published = "published"


class Contrastive(Enum):
    """B4: an item's other vector stands in for the pseudo modality, or there is no such loss."""

    clip_pair = "clip_pair"
    off = "off"


class Numeric(Enum):
    """B5: no numeric branch, or one over quantile bins of the items' training counts."""

    none = "none"
    popularity = "popularity"


class Pivots(Enum):
    """B6: pivots of each item, or the same for all items (content alone tells them apart)."""

    item = "item"
    shared = "shared"


@dataclass
class MMSBRConfig(ModelConfig):
    """Readings B1 to B7, default first, and sizes: the authors' where they have them."""

    heads: int = 4
    rounds: int = 3
    """Of a text and an image layer each (6 layers in the authors' count)."""
    pivot_count: int = 4
    token_count: int = 4
    """Tokens a modality."""
    dropout_item: float = 0.6
    """Of the tokens and inside the transformer layers."""
    dropout: float = 0.2
    """Of the item vector and of the numeric branch."""
    softmax_axis: SoftmaxAxis = SoftmaxAxis.key
    distance_sign: DistanceSign = DistanceSign.plus
    features: Features = Features.kept
    start: Start = Start.repaired
    contrastive: Contrastive = Contrastive.clip_pair
    contrastive_weight: float = 0.01
    """lambda (grid 0.01, 0.1, 1)."""
    contrastive_items: int = 2048
    """Of a step's items that have both vectors, at most so many are contrasted."""
    contrastive_largest: int = 100
    """Terms of the denominator: the largest."""
    temperature: float = 0.1
    """tau of the contrastive cosines."""
    numeric: Numeric = Numeric.none
    prices: int = 50
    """Bins of the training count."""
    pivots: Pivots = Pivots.item
    behaviors: Reads = Reads.merged
    """B7."""
    softmax_items: int = 2048
    """Items drawn a step for the softmax, beside those that the batch names anyway: when these are all,
    the softmax is over the whole catalogue."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "contrastive_weight": (0.01, 0.1, 1.0),
        "dropout": (0.2, 0.0),
        "dropout_item": (0.6, 0.2),
    }


# Item side --------------------------------------------------------------------------------------


class GivenVectors(nn.Module):
    """The frozen vectors, each modality through a linear map to d; zeros where one is missing.

    The authors train four tables of d numbers an item (image, text and their pseudo twins), which
    start as the PCA of such vectors.
    """

    image: Tensor
    text: Tensor
    complete: Tensor

    def __init__(self, catalogue: Catalogue, d: int) -> None:
        super().__init__()
        self.register_buffer("image", catalogue.image[1:], persistent=False)
        self.register_buffer("text", catalogue.text[1:], persistent=False)
        complete = (catalogue.image_present & catalogue.text_present)[1:]
        self.register_buffer("complete", complete, persistent=False)
        widths = catalogue.image.shape[1], catalogue.text.shape[1]
        self.image_map, self.text_map = (nn.Linear(width, d) for width in widths)
        # Vectors of one joint space pass the map of what they stand in for; others need their own.
        joint = widths[0] == widths[1]
        self.image_of_text = self.image_map if joint else nn.Linear(widths[1], d)
        self.text_of_image = self.text_map if joint else nn.Linear(widths[0], d)

    def forward(self, rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        """Text and image vectors (row x d)."""
        return self.text_map(self._text(rows)), self.image_map(self._image(rows))

    def stand_ins(self, rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        """What stands in for the pseudo text and the pseudo image (row x d)."""
        return self.text_of_image(self._image(rows)), self.image_of_text(self._text(rows))

    def contrasted(self, rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Items with both vectors."""
        return self.complete[rows]

    def _image(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row width"]:
        return self.image.index_select(0, rows).to(self.image_map.weight.dtype)

    def _text(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row width"]:
        return self.text.index_select(0, rows).to(self.text_map.weight.dtype)


class TrainedTables(nn.Module):
    """The authors' four tables, as their construction leaves them: noise."""

    def __init__(self, catalogue: Catalogue, d: int) -> None:
        super().__init__()
        shape = (catalogue.items, d)
        self.text, self.image = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        self.text_of_image = nn.Parameter(torch.empty(shape))
        self.image_of_text = nn.Parameter(torch.empty(shape))

    def forward(self, rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        """Text and image vectors (row x d)."""
        return functional.embedding(rows, self.text), functional.embedding(rows, self.image)

    def stand_ins(self, rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        """Pseudo text and pseudo image (row x d)."""
        tables = self.text_of_image, self.image_of_text
        return functional.embedding(rows, tables[0]), functional.embedding(rows, tables[1])

    def contrasted(self, rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """All items."""
        return torch.ones_like(rows, dtype=torch.bool)


class Tokens(nn.Module):
    """L1: an MLP a token, Linear Tanh Dropout Linear Tanh Dropout, all of the same d-wide vector."""

    def __init__(self, d: int, count: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(d, count * d)
        self.weight = nn.Parameter(torch.empty(count, d, d))
        """Of the second layers, input x output."""
        self.bias = nn.Parameter(torch.empty(count, d))
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row token d"]:
        """Tokens of one modality."""
        hidden = self.dropout(self.inner(x).tanh()).view(len(x), *self.bias.shape)
        outer = torch.baddbmm(self.bias.unsqueeze(1), hidden.transpose(0, 1), self.weight)
        tokens: Tensor = self.dropout(outer.tanh())
        return tokens.transpose(0, 1)


class PivotTable(nn.Module):
    """L2: pivots of each item, which take the place of its id."""

    def __init__(self, items: int, count: int, d: int) -> None:
        super().__init__()
        self.shape = (count, d)
        self.table = nn.Parameter(torch.empty(items, count * d))

    def forward(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row token d"]:
        """The items' own."""
        return functional.embedding(rows, self.table).view(len(rows), *self.shape)


class SharedPivots(nn.Module):
    """L2 without ids (B6)."""

    def __init__(self, count: int, d: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, d))

    def forward(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row token d"]:
        """The same for every item."""
        return self.table.expand(len(rows), *self.table.shape)


class TransformerLayer(nn.Module):
    """L3: x <- LN(x + MHA(x)), x <- LN(x + FFN(x)), ONE LayerNorm at both places; no positions.

    Queries, keys and values have a bias, the output map has none; attention weights are not dropped.
    """

    def __init__(self, config: MMSBRConfig, tokens: int) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.query_key_value = nn.Linear(d, 3 * d)
        self.output = nn.Linear(d, d, bias=False)
        self.inner, self.outer = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = Dropout(config.dropout_item)
        by_query = config.softmax_axis is SoftmaxAxis.query
        self.axis = 0 if by_query else 1
        # Weights that sum to 1 over the queries need all of them, whatever is handed on.
        self.least_queries = tokens if by_query else 0

    def forward(self, x: Float[Tensor, "row token d"], kept: int) -> Float[Tensor, "row kept d"]:
        """The first `kept` tokens' new states."""
        attended = self.output(self.attention(x, kept))
        x = self.norm(x[:, :kept] + self.dropout(attended))
        out: Tensor = self.norm(x + self.dropout(self.outer(self.inner(x).relu())))
        return out

    def attention(self, x: Float[Tensor, "row token d"], kept: int) -> Float[Tensor, "row kept d"]:
        """All heads side by side.

        Items stand last while tokens meet: eight tokens are too few for a matrix product an item.
        """
        rows, tokens, d = x.shape
        shape = (tokens, 3, self.heads, d // self.heads, rows)
        Q, K, V = self.query_key_value(x).view(rows, -1).T.contiguous().view(shape).unbind(1)
        Q = Q[: max(kept, self.least_queries)] * (d // self.heads) ** -0.5
        out = _Attention.apply(Q, K, V, self.axis)[:kept]  # type: ignore[no-untyped-call]
        gathered: Tensor = out.view(kept * d, rows).T.reshape(rows, kept, d)
        return gathered


class _Attention(torch.autograd.Function):
    """sum_k softmax(Q K)[q, k] V[k] of every item, some items at a time.

    Tensors are (token, head, head_width, row). The products of all pairs of tokens are 2 tokens times
    larger than their inputs: a block of them stays in the cache, and none is kept for the backward pass.
    """

    @staticmethod
    @in_float32
    def forward(ctx: Any, Q: Tensor, K: Tensor, V: Tensor, axis: int) -> Tensor:
        """The weights sum to 1 over queries (axis 0) or keys (1)."""
        out, weights = torch.empty_like(Q), Q.new_empty(len(Q), *K.shape[:2], K.shape[3])
        for block in _Attention.blocks(Q, K):
            products = Q[..., block].unsqueeze(1) * K[..., block]
            weights[..., block] = now = products.sum(3).softmax(axis)
            out[..., block] = (now.unsqueeze(3) * V[..., block]).sum(1)
        ctx.save_for_backward(Q, K, V, weights)
        ctx.axis = axis
        return out

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of Q, K and V."""
        Q, K, V, weights = ctx.saved_tensors
        of_q, of_k, of_v = (torch.empty_like(each) for each in (Q, K, V))
        for block in _Attention.blocks(Q, K):
            now, above = weights[..., block], gradient[..., block].unsqueeze(1)
            of_v[..., block] = (now.unsqueeze(3) * above).sum(0)
            of_score = (above * V[..., block]).sum(3) * now
            of_score = of_score - now * of_score.sum(ctx.axis, keepdim=True)
            of_score = of_score.unsqueeze(3)
            of_q[..., block] = (of_score * K[..., block]).sum(1)
            of_k[..., block] = (of_score * Q[..., block].unsqueeze(1)).sum(0)
        return of_q, of_k, of_v, None

    @staticmethod
    def blocks(Q: Tensor, K: Tensor) -> Iterator[slice]:
        """Items at a time."""
        rows = Q.shape[3]
        size = max(PAIRS // (len(Q) * K[..., 0].numel()), 1)
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))


class Round(nn.Module):
    """L3: the pivots meet the text tokens, then the image tokens."""

    def __init__(self, config: MMSBRConfig) -> None:
        super().__init__()
        tokens = config.pivot_count + config.token_count
        self.text_layer = TransformerLayer(config, tokens)
        self.image_layer = TransformerLayer(config, tokens)

    def forward(
        self,
        pivots: Float[Tensor, "row pivot d"],
        text: Float[Tensor, "row token d"],
        image: Float[Tensor, "row token d"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New pivots, text and image tokens."""
        pivots, text = self.meet(self.text_layer, pivots, text)
        pivots, image = self.meet(self.image_layer, pivots, image)
        return pivots, text, image

    def pivots_alone(
        self,
        pivots: Float[Tensor, "row pivot d"],
        text: Float[Tensor, "row token d"],
        image: Float[Tensor, "row token d"],
    ) -> Float[Tensor, "row pivot d"]:
        """New pivots alone: nobody reads the tokens of the last round."""
        for layer, tokens in ((self.text_layer, text), (self.image_layer, image)):
            pivots = (layer(torch.cat([pivots, tokens], 1), pivots.shape[1]) + pivots) / 2
        return pivots

    @staticmethod
    def meet(layer: TransformerLayer, pivots: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pivots: mean of the old and the layer's; tokens: sum of both."""
        count = pivots.shape[1]
        out = layer(torch.cat([pivots, tokens], 1), count + tokens.shape[1])
        return (out[:, :count] + pivots) / 2, out[:, count:] + tokens


class ItemEncoder(nn.Module):
    """L1 to L4: one vector an item, from its content and its pivots; no session takes part."""

    def __init__(self, config: MMSBRConfig, catalogue: Catalogue) -> None:
        super().__init__()
        d, count = config.hidden, config.pivot_count
        features: dict[Features, type[GivenVectors | TrainedTables]] = {
            Features.kept: GivenVectors,
            Features.overwritten: TrainedTables,
        }
        self.features = features[config.features](catalogue, d)
        self.text_tokens = Tokens(d, config.token_count, config.dropout_item)
        self.image_tokens = Tokens(d, config.token_count, config.dropout_item)
        self.pivots: PivotTable | SharedPivots = (
            PivotTable(catalogue.items, count, d)
            if config.pivots is Pivots.item
            else SharedPivots(count, d)
        )
        self.rounds = nn.ModuleList(Round(config) for _ in range(config.rounds))
        self.inner, self.outer = nn.Linear(count * d, d), nn.Linear(d, d)
        self.dropout = Dropout(config.dropout)

    def forward(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Vectors of some items (id - 1), never negative (L4)."""
        text, image = self.features(rows)
        text, image = self.text_tokens(text), self.image_tokens(image)
        pivots = self.pivots(rows)
        *first, last = self.rounds
        for each in first:
            pivots, text, image = each(pivots, text, image)
        assert isinstance(last, Round)
        pivots = last.pivots_alone(pivots, text, image)
        x = self.inner(self.dropout(pivots.flatten(1))).relu()
        x = self.outer(self.dropout(x)).relu()
        out: Tensor = self.dropout(x)
        return out


# Session side -----------------------------------------------------------------------------------


class Interest(nn.Module):
    """L5: s = sum_t beta_t h_t, beta_t = w . sigmoid(A h_t + B mean(h)) + b: no softmax, no positions.

    A session without events has a learned vector (the authors have no such session).
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.of_item, self.of_mean = nn.Linear(d, d), nn.Linear(d, d, bias=False)
        self.gate = nn.Linear(d, 1)
        self.nothing = nn.Parameter(torch.empty(d))

    def forward(
        self, h: Float[Tensor, "batch length d"], real: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch d"]:
        """Session vectors; `h` is zero at padding."""
        events = real.sum(1, keepdim=True)
        mean = h.sum(1) / events.clamp(min=1)
        gate = self.gate((self.of_item(h) + self.of_mean(mean).unsqueeze(1)).sigmoid_())
        beta = gate.squeeze(2) * real
        interest = torch.bmm(beta.unsqueeze(1), h).squeeze(1)
        return torch.where(events > 0, interest, self.nothing)


def wasserstein(
    mean: Float[Tensor, "*left d"],
    cov: Float[Tensor, "*left d"],
    other_mean: Float[Tensor, "*right d"],
    other_cov: Float[Tensor, "*right d"],
) -> Float[Tensor, "*both"]:
    """Squared 2-Wasserstein distance of Gaussians with diagonal covariances, summed over d (L6)."""
    roots = cov.clamp(min=1e-24).sqrt() * other_cov.clamp(min=1e-24).sqrt()
    return ((mean - other_mean).square() + cov + other_cov - 2 * roots).sum(-1)


def positive(x: Tensor) -> Tensor:
    """ELU(x) + 1: what makes a covariance of any number."""
    return functional.elu(x) + 1


class GaussianAttention(nn.Module):
    """L6: the last event's numeric interest, a Gaussian, by attention of Gaussians.

    Only the last event's query is made: nobody reads the others. ONE LayerNorm serves everywhere.
    """

    def __init__(self, config: MMSBRConfig, prices: int, categories: int) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.mean, self.cov = (nn.Parameter(torch.empty(prices, d)) for _ in range(2))
        self.category = nn.Parameter(torch.empty(categories, d))
        self.norm = nn.LayerNorm(d, eps=1e-12)
        names = ("query", "key", "value", "dense")
        self.of_mean = nn.ModuleDict({name: nn.Linear(d, d) for name in names})
        self.of_cov = nn.ModuleDict({name: nn.Linear(d, d) for name in names})
        self.dropout = Dropout(config.dropout)

    def kinds(self) -> tuple[Float[Tensor, "kind d"], Float[Tensor, "kind d"]]:
        """Mean and covariance (before the last ELU + 1) of an item of each price and category."""
        mean = self.mean.unsqueeze(1) + self.category
        cov = self.cov.unsqueeze(1) + self.category
        return mean.flatten(0, 1), cov.flatten(0, 1)

    def forward(
        self, price: Int[Tensor, "batch length"], category: Int[Tensor, "batch length"],
        real: Bool[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:  # fmt: skip
        """Mean and covariance (before the last ELU + 1), read at the last slot.

        Args:
            price: Row of each event's price; anything at padding.
            category: Row of its category.
            real: Where there is an event.
        """
        category_norm = self.norm(functional.embedding(category, self.category))
        raw_mean, raw_cov = (functional.embedding(price, table) for table in (self.mean, self.cov))
        x_mean = self.dropout(self.norm(raw_mean) + category_norm)
        x_cov = positive(self.dropout(self.norm(raw_cov) + category_norm))
        mean = {name: self._heads(self.of_mean[name](x)) for name, x in self._read(x_mean)}
        cov = {name: self._heads(positive(self.of_cov[name](x))) for name, x in self._read(x_cov)}

        distance = wasserstein(mean["query"], cov["query"], mean["key"], cov["key"])
        logits = -distance / math.sqrt(mean["query"].shape[-1]) - 10000 * ~real.unsqueeze(2)
        weights = self.dropout(logits.softmax(1)).unsqueeze(3)  # batch length head 1
        context_mean = (weights * mean["value"]).sum(1).flatten(1)
        context_cov = (weights.square() * cov["value"]).sum(1).flatten(1)
        out_mean = self.norm(self.dropout(self.of_mean["dense"](context_mean)) + raw_mean[:, -1])
        out_cov = self.norm(self.dropout(self.of_cov["dense"](context_cov)) + raw_cov[:, -1])
        events = real[:, -1:]
        return out_mean * events, out_cov * events

    @staticmethod
    def _read(x: Tensor) -> tuple[tuple[str, Tensor], ...]:
        return ("query", x[:, -1:]), ("key", x), ("value", x)

    def _heads(self, x: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length head w"]:
        by_head: Tensor = x.unflatten(2, (self.heads, -1))
        return by_head


class ContentScore(nn.Module):
    """L7 without a numeric branch (B5): score = interest . item."""

    def prepare(self, counts: Int[Tensor, " item_row"]) -> None:
        """Nothing to count."""

    def session(self, history: History) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Nothing beside the interest."""
        return ()

    def factor(self, session: Sequence[Tensor], items: Tensor) -> float:  # noqa: ARG002
        """The interest's score as it is."""
        return 1.0

    def cross_entropy(
        self,
        interest: Float[Tensor, "batch d"],
        session: Sequence[Tensor],  # noqa: ARG002
        items: Int[Tensor, " row"],  # noqa: ARG002
        vectors: Float[Tensor, "row d"],
        bias: Float[Tensor, " row"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Of each session's target row; `bias` is added to the scores."""
        return catalogue_cross_entropy(interest, vectors, bias, target, padding=True)


class NumericScore(nn.Module):
    """L6 and L7: score = (interest . item)(1 + D) or (1 - D) (B2), D the distance to the item's kind.

    D depends on the price and the category of an item alone, so it is made once a kind.
    """

    price: Tensor
    category: Tensor

    def __init__(self, config: MMSBRConfig, items: int, prices: int, categories: int = 1) -> None:
        super().__init__()
        self.attention = GaussianAttention(config, prices, categories)
        self.sign = {DistanceSign.plus: 1.0, DistanceSign.minus: -1.0}[config.distance_sign]
        for name in ("price", "category"):
            nothing = torch.zeros(items + 1, dtype=torch.int64)
            self.register_buffer(name, nothing, persistent=False)

    def prepare(self, counts: Int[Tensor, " item_row"]) -> None:
        """Price = quantile bin of the training count; items of the same count share it."""
        ranked = counts[1:].sort().values
        fewer = torch.searchsorted(ranked, counts)  # items with a smaller count
        bins = len(self.attention.mean)
        self.price = (fewer * bins // len(ranked)).clamp(max=bins - 1).to(self.price.device)

    def session(self, history: History) -> tuple[Tensor, ...]:
        """1 + D or 1 - D of every kind (batch x kind)."""
        price, category = self.price[history.items], self.category[history.items]
        mean, cov = self.attention(price, category, history.real)
        distance = self.distance(mean, cov)
        return (1 + self.sign * distance,)

    def distance(
        self, mean: Float[Tensor, "batch d"], cov: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch kind"]:
        """D; both covariances pass ELU + 1 once more."""
        kind_mean, kind_cov = self.attention.kinds()
        mean, cov = mean.unsqueeze(1), cov.unsqueeze(1)
        return wasserstein(mean, positive(cov), kind_mean, positive(kind_cov))

    def kind(self, items: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Price and category of items as one number."""
        return self.price[items] * len(self.attention.category) + self.category[items]

    def factor(
        self, session: Sequence[Tensor], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """What multiplies the interest's score."""
        return session[0].gather(1, self.kind(items))

    def cross_entropy(
        self,
        interest: Float[Tensor, "batch d"],
        session: Sequence[Tensor],
        items: Int[Tensor, " row"],
        vectors: Float[Tensor, "row d"],
        bias: Float[Tensor, " row"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Of each session's target row; `bias` is added to the scores."""

        def scores(shared: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
            vectors, bias, kind = rows
            return (shared[0] @ vectors.T) * shared[1].index_select(1, kind) + bias

        rows = (vectors, bias, self.kind(items))
        return scored_cross_entropy(scores, (interest, session[0]), rows, target)


# Loss -------------------------------------------------------------------------------------------


def contrast(
    e: Float[Tensor, "row d"], g: Float[Tensor, "row d"], largest: int
) -> Float[Tensor, " row"]:
    """log(sum of the `largest` greatest exp(e_i . g_j) over j) - e_i . g_i; i may be among them or not."""
    products = e @ g.T
    greatest = products if len(g) <= largest else products.topk(largest, 1, sorted=False).values
    return greatest.logsumexp(1) - products.diagonal()


class PairContrast(nn.Module):
    """con: an item's vectors of each modality against the pseudo ones of the step's items.

    The authors sum dot products over the whole catalogue, in log base 10.
    """

    def __init__(self, config: MMSBRConfig) -> None:
        super().__init__()
        self.weight, self.items = config.contrastive_weight, config.contrastive_items
        self.largest, self.temperature = config.contrastive_largest, config.temperature

    def forward(
        self,
        features: GivenVectors | TrainedTables,
        rows: Int[Tensor, " row"],
        generator: torch.Generator,
    ) -> Losses:
        """Mean over items that have both vectors; 0 where there is none."""
        rows = rows[features.contrasted(rows)]
        rows = rows[_subset(len(rows), self.items, generator).to(rows.device)]
        costs = [
            contrast(self._cosine(e), self._cosine(g) / self.temperature, self.largest)
            for e, g in zip(features(rows), features.stand_ins(rows), strict=True)
        ]
        return {"contrast": self.weight * torch.cat(costs).sum() / max(len(rows), 1)}

    @staticmethod
    def _cosine(x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        return functional.normalize(x, dim=1)


class NoContrast(nn.Module):
    """B4 off."""

    def forward(self, *_: Any) -> Losses:
        """No term."""
        return {}


def _subset(count: int, most: int, generator: torch.Generator) -> Int[Tensor, " chosen"]:
    """At most `most` of the numbers below `count`, all of them in order where they are not more."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator, device=generator.device)[:most].cpu()


class MMSBR(Recommender):
    """A pivot transformer makes the items, a gated sum the session (default: B1 to B7 repaired).

    Paper: Xiaokun Zhang, Bo Xu, Fenglong Ma, Chenliang Li, Liang Yang, Hongfei Lin, "Beyond
    Co-occurrence: Multi-modal Session-based Recommendation", TKDE 2024, doi 10.1109/TKDE.2023.3309995.
    Authors' code: github.com/Zhang-xiaokun/MMSBR, commit b640ff4; written here from its facts.

    What the published code does and this does not, unless asked: its softmax runs over the queries
    (`softmax_axis=query`); its construction ends by drawing every parameter from uniform(+-1/sqrt(d)),
    which overwrites the loaded content (`features=overwritten`); its dropout is off from the second
    epoch on; its test data choose the epoch. A distance that multiplies the score up is kept
    (`distance_sign`), and so is the draw, but for two things (`start=published` draws them too):
      - LayerNorms start at 1 and 0, which learns in fewer steps.
      - The gate starts at 1/sqrt(d) for every event. Item vectors are never negative, so an interest
        whose gate starts negative, in half of the draws, ranks a session's kin last, and hardly ever
        turns round: such a run stays below popularity.
    Mind the dropout of the item vector too: it is noise on every logit, and costs most of what a few
    hundred steps can learn.

    Substitutes:
      - Frozen vectors of any width pass a linear map to d a modality; the authors train tables.
      - There are no pseudo modalities (a picture drawn from the text, labels of the picture). An item's
        text vector stands in for its pseudo image and its image vector for its pseudo text, each
        through the map of what it stands in for, as in a joint space (maps of their own where the
        widths differ, since there is no joint space then). The contrast is over the items of a step,
        those that the batch names and those that are drawn for the softmax (at most
        `contrastive_items` of both together): a mean of natural logs, of cosines over a temperature.
      - There is no price: no numeric branch, or popularity's quantile bins and one category.
      - The softmax is over all items where `softmax_items` covers them. Otherwise the items of the
        batch's histories and targets are in every denominator, and drawn ones stand for all others,
        each for as many: an unbiased estimate of the whole sum.
      - A session without events has a learned vector; in L6 its mean and covariance are 0.
    The authors' unused modules (an id table, positions, an MLP) do not exist here; the constant 1e-8
    that they add to every score changes nothing.

    Raises:
        ValueError: a size that is not possible.
    """

    Config: ClassVar[type[ModelConfig]] = MMSBRConfig
    config: MMSBRConfig

    def __init__(self, config: MMSBRConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        d = config.hidden
        if d % config.heads:
            raise ValueError(f"hidden {d} is no multiple of heads {config.heads}")
        counts = ("heads", "rounds", "pivot_count", "token_count", "prices", "contrastive_largest")
        for name in counts:
            if getattr(config, name) < 1:
                raise ValueError(f"{name} is {getattr(config, name)}; at least 1 is needed")
        self.items = ItemEncoder(config, catalogue)
        self.typing = typing(config.behaviors, d)
        self.interest = Interest(d)
        self.scorer: ContentScore | NumericScore = (
            ContentScore()
            if config.numeric is Numeric.none
            else NumericScore(config, catalogue.items, config.prices)
        )
        contrasts = {Contrastive.clip_pair: PairContrast(config), Contrastive.off: NoContrast()}
        self.contrast: nn.Module = contrasts[config.contrastive]
        reads: dict[Reads, Callable[[History], History]] = {
            Reads.merged: lambda history: history,
            Reads.favor_only: lambda history: history.only(Behaviour.FAVOR),
            Reads.typed: lambda history: history,
        }
        self.read = reads[config.behaviors]
        self.draw_parameters()

    def draw_parameters(self) -> None:
        """Every parameter uniform in +-1/sqrt(d), biases too, then `Start`."""
        limit = self.config.hidden**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -limit, limit)
        if isinstance(self.typing, Typed):
            nn.init.zeros_(self.typing.vectors.weight[0].detach())  # padding has none
        if self.config.start is Start.repaired:
            nn.init.zeros_(self.interest.gate.weight)
            nn.init.constant_(self.interest.gate.bias, limit)
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    module.reset_parameters()

    def prepare(self, train: Interactions) -> None:
        """Count the items: for the bins of the numeric branch."""
        self.scorer.prepare(torch.bincount(train.item, minlength=self.catalogue.items + 1))
        self._remembered.clear()

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the target over all items, and the contrast."""
        history = self.read(batch.history)
        items, bias = self.step_items(history, batch.target, batch.generator)
        vectors = self.step_vectors(items - 1)
        place = items.new_zeros(self.catalogue.items + 1)
        place[items] = torch.arange(1, len(items) + 1, device=items.device)
        h = functional.embedding(place[history.items], functional.pad(vectors, (0, 0, 1, 0)))
        interest, session = self.sessions(history, h)
        costs = self.scorer.cross_entropy(
            interest, session, items, vectors, bias.to(vectors.dtype), place[batch.target] - 1
        )
        contrast = self.contrast(self.items.features, items - 1, batch.generator)
        return {"next_item": costs.mean(), **contrast}

    def step_items(
        self, history: History, target: Int[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """The items of a step, and the log of how many items each stands for in the softmax."""
        named = torch.zeros(self.catalogue.items + 1, dtype=torch.bool, device=target.device)
        named[history.items.flatten()] = True
        named[target] = True
        named[0] = False
        known, rest = named.nonzero().squeeze(1), (~named).nonzero().squeeze(1)[1:]
        chosen = _subset(len(rest), self.config.softmax_items, generator)
        drawn = rest[chosen.to(rest.device)]
        stands_for = math.log(len(rest) / len(drawn)) if len(drawn) else 0.0
        bias = functional.pad(torch.zeros(len(known)), (0, len(drawn)), value=stands_for)
        return torch.cat([known, drawn]), bias.to(target.device)

    def step_vectors(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """L4 of a step's items: where they are many, a block at a time, made again on the way back.

        The layers of the items that 1,024 histories of 50 name in a catalogue of 618,529 would fill more
        than 12 GiB.
        """
        if len(rows) <= BLOCK:
            made: Tensor = self.items(rows)
            return made
        return torch.cat(
            [checkpoint(self.items, block, use_reentrant=False) for block in rows.split(BLOCK)]
        )

    def sessions(
        self, history: History, h: Float[Tensor, "batch length d"]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Interests, and what the scorer wants to know of the sessions; `h` are the events' items."""
        h = self.typing(h, history.behaviours * history.real)
        return self.interest(h, history.real), self.scorer.session(history)

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """L4 of every item, a block at a time; row 0 zero."""
        return self.once("item_vectors", self._item_vectors)

    def _item_vectors(self) -> Float[Tensor, "item_row d"]:
        rows = torch.arange(self.catalogue.items, device=self.device)
        vectors = torch.cat([self.items(block) for block in rows.split(BLOCK)])
        return functional.pad(vectors, (0, 0, 1, 0))

    def encode(self, history: History) -> tuple[Tensor, ...]:
        """The interest (batch x d), then what the scorer wants to know of the sessions."""
        history = self.read(history)
        h = functional.embedding(history.items, self.item_vectors())
        interest, session = self.sessions(history, h)
        return interest, *session

    def score(
        self, state: tuple[Tensor, ...], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """L7 of some items."""
        interest, *session = state
        products = (self.item_vectors()[items] @ interest.unsqueeze(2)).squeeze(2)
        return products * self.scorer.factor(session, items)

    def score_all(self, state: tuple[Tensor, ...]) -> Float[Tensor, "batch item_row"]:
        """L7 of every item."""
        interest, *session = state
        rows = torch.arange(self.catalogue.items + 1, device=interest.device)
        factor = self.scorer.factor(session, rows.expand(len(interest), -1))
        return (interest @ self.item_vectors().T) * factor
