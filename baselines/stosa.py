"""STOSA: stochastic self-attention between Gaussian items (Fan et al., WWW 2022).

Facts from the authors' code, github.com/zfan20/STOSA at commit 1f00ecb: seqmodels.py (DistSAModel),
modules.py, trainers.py, main.py.

Axes: batch = users or windows, length = slots of a left-padded history, read = the last slots whose
output is wanted, place = places of a window that have a target, head, cand = candidate items,
item_row = items + 1 (row 0 is padding), d = hidden width.

Symbols: m a mean, c the diagonal of a covariance, e(x) = ELU(x) + 1 > 0, LN layer norm, A attention
weights, L = `Catalogue.length`, W the squared 2-Wasserstein distance of two such Gaussians,

    W = |m1 - m2|^2 + |sqrt(c1) - sqrt(c2)|^2,

which is the squared Euclidean distance of the points [m; sqrt(c)].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.interface import (
    Batch,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Recommender,
    Samples,
)
from models.layers import READINGS, Behaviors, Dropout
from models.negatives import TrainingNegatives
from models.precision import in_float32

MASKED = -(2.0**32) + 1
"""Attention logit of a key that may not be seen: finite, so that a row without keys is uniform."""
SMALLEST = 1e-24
"""Covariances are raised to this before their root is taken (modules.py)."""


class Encoder(Enum):
    """T1: both streams go from layer to layer, as written; or the mean stream is lost, as published.

    The authors' encoder gives each layer's new mean to a misspelt variable: every layer reads the
    embedded mean again and it is also what the encoder returns. The mean maps behind the attention
    then never get a gradient (10 tensors a layer).
    """

    chained = "chained"
    published = "published"


@dataclass
class STOSAConfig(ModelConfig):
    """Settings of STOSA; defaults from the command in the authors' README."""

    layers: int = 1
    """At least 1 (the code's own default is 2)."""
    heads: int = 4
    """They divide `hidden` (the code's own default is 2)."""
    hidden_dropout: float = 0.3
    """Of both embeddings and all four sub-layers (the code's own default is 0.5)."""
    attention_dropout: float = 0.0
    """Of the attention weights (the code's own default is 0.5)."""
    pvn_weight: float = 0.005
    """lambda, the weight of the term that keeps positive and negative apart (code: 0.1)."""
    encoder: Encoder = Encoder.chained
    """T1."""
    behaviors: Behaviors = Behaviors.merged
    """T2: `merged` ignores the tags; `favor_only` reads the favors and still predicts every target."""

    GRID: ClassVar[dict[str, tuple[float, ...]]] = {
        "pvn_weight": (0.0, 0.005, 0.1),
        "layers": (1, 2),
    }


def positive(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """e(x) = ELU(x) + 1."""
    return functional.elu(x) + 1


def deviation(c: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The roots sqrt(c) of variances, which are first raised to SMALLEST."""
    return c.clamp(min=SMALLEST).sqrt()


@in_float32
def squared_wasserstein(
    m1: Float[Tensor, "*#shape d"],
    c1: Float[Tensor, "*#shape d"],
    m2: Float[Tensor, "*#shape d"],
    c2: Float[Tensor, "*#shape d"],
) -> Float[Tensor, "*shape"]:
    """W of Gaussians with these means and variances; no root is taken of the sum."""
    means = (m1 - m2).square().sum(-1)
    return means + (deviation(c1) - deviation(c2)).square().sum(-1)


class FeedForward(nn.Module):
    """LN(x + Dropout(Linear(ELU(Linear(x))))), inner width 4 d (modules.py, DistIntermediate)."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, 4 * hidden)
        self.outer = nn.Linear(4 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch read d"]) -> Float[Tensor, "batch read d"]:
        """Slot by slot."""
        out: Tensor = self.norm(x + self.dropout(self.outer(functional.elu(self.inner(x)))))
        return out


class Layer(nn.Module):
    """One layer (modules.py, DistLayer): one attention from both streams, then each its own maps."""

    def __init__(self, config: STOSAConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.scale = (d // config.heads) ** -0.5
        self.mean_query, self.mean_key, self.mean_value, self.mean_dense = (
            nn.Linear(d, d) for _ in range(4)
        )
        self.cov_query, self.cov_key, self.cov_value, self.cov_dense = (
            nn.Linear(d, d) for _ in range(4)
        )
        self.norm = nn.LayerNorm(d, eps=1e-12)
        """One norm for both streams after the attention."""
        self.mean_feed_forward = FeedForward(d, config.hidden_dropout)
        self.cov_feed_forward = FeedForward(d, config.hidden_dropout)
        self.dropout = Dropout(config.hidden_dropout)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.step = STEPS[config.encoder]

    def split(self, x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch head slot width"]:
        """The heads' parts."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    @in_float32
    def attention(
        self,
        m: Float[Tensor, "batch length d"],
        c: Float[Tensor, "batch length d"],
        blocked: Bool[Tensor, "batch read length"],
    ) -> Float[Tensor, "batch head read length"]:
        """Softmax over keys of -W(query, key) / sqrt(d / heads), before dropout.

        |query|^2 of the expanded square is the same for all keys of a softmax and is left out. A logit
        that is blocked is replaced, not lowered: a slot of padding attends uniformly to all slots.
        All of it is made in float32: differences of large squares are nothing for 8 bits.
        """
        read = blocked.shape[1]
        query_c, key_c = positive(self.cov_query(c[:, -read:])), positive(self.cov_key(c))
        query = torch.cat(
            [self.split(self.mean_query(m[:, -read:])), self.split(deviation(query_c))], -1
        )
        key = torch.cat([self.split(self.mean_key(m)), self.split(deviation(key_c))], -1)
        products = (2 * self.scale * query) @ key.mT
        logits = products - self.scale * key.square().sum(-1).unsqueeze(2)
        A: Tensor = logits.masked_fill(blocked.unsqueeze(1), MASKED).softmax(-1)
        return A

    def next_mean(
        self,
        m: Float[Tensor, "batch length d"],
        A: Float[Tensor, "batch head read length"],
    ) -> Float[Tensor, "batch read d"]:
        """LN(m + Dropout(Linear(A V))), then the feed-forward network."""
        context = (A @ self.split(self.mean_value(m))).transpose(1, 2).flatten(2)
        m = self.norm(m[:, -A.shape[2] :] + self.dropout(self.mean_dense(context)))
        out: Tensor = self.mean_feed_forward(m)
        return out

    def next_cov(
        self,
        c: Float[Tensor, "batch length d"],
        A: Float[Tensor, "batch head read length"],
    ) -> Float[Tensor, "batch read d"]:
        """The same with A squared, element by element, and e() of values and of the result."""
        value = self.split(positive(self.cov_value(c)))
        context = (A.square() @ value).transpose(1, 2).flatten(2)
        c = self.norm(c[:, -A.shape[2] :] + self.dropout(self.cov_dense(context)))
        return positive(self.cov_feed_forward(c))

    def forward(
        self,
        m: Float[Tensor, "batch length d"],
        c: Float[Tensor, "batch length d"],
        blocked: Bool[Tensor, "batch read length"],
    ) -> tuple[Float[Tensor, "batch read d"], Float[Tensor, "batch read d"]]:
        """Both streams at the slots that are read."""
        A = self.attention_dropout(self.attention(m, c, blocked))
        return self.step(self, m, c, A)


Step = Callable[[Layer, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""T1: from a layer, both streams and the attention to both streams at the slots that are read."""


def chained_step(
    layer: Layer,
    m: Float[Tensor, "batch length d"],
    c: Float[Tensor, "batch length d"],
    A: Float[Tensor, "batch head read length"],
) -> tuple[Float[Tensor, "batch read d"], Float[Tensor, "batch read d"]]:
    """Both streams move."""
    return layer.next_mean(m, A), layer.next_cov(c, A)


def published_step(
    layer: Layer,
    m: Float[Tensor, "batch length d"],
    c: Float[Tensor, "batch length d"],
    A: Float[Tensor, "batch head read length"],
) -> tuple[Float[Tensor, "batch read d"], Float[Tensor, "batch read d"]]:
    """The mean stays what was embedded."""
    return m[:, -A.shape[2] :], layer.next_cov(c, A)


STEPS: dict[Encoder, Step] = {Encoder.chained: chained_step, Encoder.published: published_step}


class STOSA(Recommender):
    """Attention and scores by distance between Gaussians; BPR with a positive-versus-negative term.

    Paper: Ziwei Fan et al., "Sequential Recommendation via Stochastic Self-Attention", WWW 2022,
    doi 10.1145/3485447.3512077, arXiv 2201.06035. Authors' code: github.com/zfan20/STOSA, commit
    1f00ecb, which has no licence: written here from its facts and the paper's idea alone.

    m = ELU(Dropout(LN(M[ids] + P_m))) and c = e(Dropout(LN(C[ids] + P_c))) with the same LN, then the
    layers; score(i) = -W(m, c at the last slot; M[i], e(C[i])): no norm and no ELU on a candidate.

    Differences from the authors' code:
      - `encoder=chained` repairs the lost mean stream of the authors' encoder; their published numbers
        presumably come from `published`.
      - Negatives avoid the user's training items only (theirs look at held-out items too).
      - The loss counts a place as often as the events it stands for (`Batch.weights`), and is written
        with logsigmoid; they add 1e-24 to its argument, which changes nothing.
      - Without their unused parameters: one margin a user, one scalar of a kernel. The unused mask row
        of the item tables is kept.

    Raises:
        ValueError: `hidden` is no multiple of `heads`, there is no layer, or the weight is negative.
    """

    Config: ClassVar[type[ModelConfig]] = STOSAConfig
    samples: ClassVar[Samples] = Samples.window
    config: STOSAConfig

    def __init__(self, config: STOSAConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        if config.heads < 1 or config.hidden % config.heads:
            raise ValueError(f"hidden {config.hidden} is no multiple of heads {config.heads}")
        if config.layers < 1:
            raise ValueError(f"layers is {config.layers}; at least 1 is needed")
        if config.pvn_weight < 0:
            raise ValueError(f"pvn_weight is {config.pvn_weight}; it is not negative")
        rows, d = catalogue.items + 2, config.hidden
        self.item_mean = nn.Parameter(torch.empty(rows, d))
        self.item_cov = nn.Parameter(torch.empty(rows, d))
        self.position_mean = nn.Parameter(torch.empty(catalogue.length, d))
        self.position_cov = nn.Parameter(torch.empty(catalogue.length, d))
        self.norm = nn.LayerNorm(d, eps=1e-12)
        self.dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.reading = READINGS[config.behaviors]()
        self.negatives = TrainingNegatives(catalogue)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, mean=0.01, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def prepare(self, train: Interactions) -> None:
        """Note what each user touched: no negative may be among it."""
        self.negatives.prepare(train)

    def embed(
        self, items: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length d"]]:
        """Both streams; the last slot always has the last position. Row 0 is random, never trained."""
        width = items.shape[1]
        m = functional.embedding(items, self.item_mean, 0) + self.position_mean[-width:]
        c = functional.embedding(items, self.item_cov, 0) + self.position_cov[-width:]
        return functional.elu(self.dropout(self.norm(m))), positive(self.dropout(self.norm(c)))

    def states(
        self, items: Int[Tensor, "batch length"], read: int
    ) -> tuple[Float[Tensor, "batch read d"], Float[Tensor, "batch read d"]]:
        """Both streams at the last `read` slots after all layers."""
        blocked = blocked_keys(items > 0)
        m, c = self.embed(items)
        for layer in self.layers[:-1]:
            m, c = layer(m, c, blocked)
        m, c = self.layers[-1](m, c, blocked[:, -read:])
        return m, c

    def candidates(
        self, items: Int[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape d"], Float[Tensor, "*shape d"]]:
        """Mean and variances of items as candidates: M[i] and e(C[i])."""
        cov = functional.embedding(items, self.item_cov, 0)
        return functional.embedding(items, self.item_mean, 0), positive(cov)

    def loss(self, batch: Batch) -> Losses:
        """-log sigmoid(d- - d+) and lambda max(0, d+ - d+-), means over target events.

        d+, d- and d+- are W of (sequence, positive), (sequence, negative), (positive, negative).
        """
        history = self.reading.history(batch.history)
        width = history.items.shape[1]
        slots = self.reading.slots(batch.history, width)
        row, place = ((batch.targets > 0) & (slots >= 0)).nonzero(as_tuple=True)
        m, c = self.states(history.items, width)
        sequence = (m[row, slots[row, place]], c[row, slots[row, place]])
        negative = self.negatives(history.user[row], 1, batch.generator).squeeze(1)
        bpr, pvn = self.place_losses(sequence, batch.targets[row, place], negative)
        weights = batch.weights[row, place].to(m.dtype)
        total = weights.sum().clamp(min=1)
        return {
            "bpr": (weights * bpr).sum() / total,
            "positive_versus_negative": self.config.pvn_weight * (weights * pvn).sum() / total,
        }

    def place_losses(
        self,
        sequence: tuple[Float[Tensor, "place d"], Float[Tensor, "place d"]],
        positives: Int[Tensor, " place"],
        negatives: Int[Tensor, " place"],
    ) -> tuple[Float[Tensor, " place"], Float[Tensor, " place"]]:
        """Both terms of each place, without weights."""
        p, n = self.candidates(positives), self.candidates(negatives)
        to_positive = squared_wasserstein(*sequence, *p)
        bpr = -functional.logsigmoid(squared_wasserstein(*sequence, *n) - to_positive)
        return bpr, (to_positive - squared_wasserstein(*p, *n)).relu()

    def encode(self, history: History) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
        """Mean and variances at the last slot.

        A history without events attends uniformly to L slots of padding, so a batch that has one is
        widened to L slots.
        """
        history = self.reading.history(history)
        most = self.catalogue.length
        empty = not bool(history.real.any(1).all())
        items = history.padded(most if empty else min(history.items.shape[1], most)).items
        m, c = self.states(items, 1)
        return m.squeeze(1), c.squeeze(1)

    def score(
        self,
        state: tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]],
        items: Int[Tensor, "batch cand"],
    ) -> Float[Tensor, "batch cand"]:
        """-W: the nearest item comes first."""
        m, c = (part.unsqueeze(1) for part in state)
        return -squared_wasserstein(m, c, *self.candidates(items))

    def score_all(
        self, state: tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]
    ) -> Float[Tensor, "batch item_row"]:
        """The same by matrix products: -W = 2 m M^T + 2 sqrt(c) S^T - |M|^2 - |S|^2 - |m|^2 - |c|."""
        m, s = state[0], deviation(state[1])
        M = self.item_mean[:-1]
        S = self.once("deviations", lambda: deviation(positive(self.item_cov[:-1])))
        squares = self.once("squares", lambda: M.square().sum(1) + S.square().sum(1))
        scores = torch.addmm(-squares, m, M.T, alpha=2).addmm_(s, S.T, alpha=2)
        return scores - (m.square().sum(1) + s.square().sum(1)).unsqueeze(1)


def blocked_keys(real: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """True where the query (second axis) may not see the key (third): padding, or a later slot."""
    length = real.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=real.device).triu(1)
    return later | ~real.unsqueeze(1)
