"""DIPN, a reconstruction (Guo et al., "Buying or Browsing?", KDD 2019, doi 10.1145/3292500.3330670).

The paper's title page, abstract and introduction were at hand, its method section was not, and no code
of it is public. What these state is marked [P]; every other number or formula is OUR reading, as an
option D2 to D9 whose first value is the default. Numbers in brackets are the parts in order: [1] input,
[2] recurrence, [3] attention in a view, [4] attention over the views, [5] task towers, [6] loss.

Axes: batch, length = slots of a history, events standing from slot 0 on, view = click, favor, cand =
candidate items (training: the target, then its negatives), item_row = items + 1 (row 0 is padding and
zero), d = item width = the hidden width, x = input width, h = width of a recurrent state (H, or 2 H in
both directions), u = width of a user vector, A = attention width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

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
from models.layers import Dropout, from_the_left
from models.negatives import TrainingNegatives

VIEWS = {"click": Behaviour.CLICK, "favor": Behaviour.FAVOR}
"""The behaviours that are sequences of their own [P]; columns of the attention over views."""
TASKS = ("favor", "click")
"""What is learned together [P]; `favor` ranks the candidates."""
BLOCK = 1 << 22
"""Hidden values of a tower that are held at once when every item is scored (16 MiB in float32)."""


class Direction(Enum):
    """D2: the recurrence reads forward, or both ways (states side by side)."""

    forward = "forward"
    both = "both"


class Cell(Enum):
    """D3."""

    gru = "gru"
    lstm = "lstm"


class Bottom(Enum):
    """D4: a view's events are pooled by additive attention, or after multi-head self-attention."""

    additive = "additive"
    self_attention = "self_attention"


class Fusion(Enum):
    """D5: the weighted views are summed, or stand side by side."""

    weighted_sum = "weighted_sum"
    concatenation = "concatenation"


class Head(Enum):
    """D6: a two-layer tower over user and item a task, or a dot product a task."""

    tower = "tower"
    dot_product = "dot_product"


class Weights(Enum):
    """D7, of favor and click: 1 and 0.5, 1 and 1, or learned (sum of exp(-a) L + a)."""

    half_click = "half_click"
    equal = "equal"
    learned = "learned"


class IntentTask(Enum):
    """D8: a third task without a candidate, the closest thing to the paper's own label."""

    off = "off"
    on = "on"


class Attributes(Enum):
    """D9: vectors of the items' id fields (brand, seller, category) beside the item's, or not."""

    if_present = "if_present"
    off = "off"


@dataclass
class DIPNConfig(ModelConfig):
    """Readings D0 and D2 to D9, default first; all sizes are ours."""

    recurrent_width: int = 0
    """H; 0: the hidden width (D0)."""
    attention_width: int = 0
    """A; 0: the hidden width (D0)."""
    dropout: float = 0.2
    """Of the input, and after a tower's ReLU."""
    direction: Direction = Direction.forward
    cell: Cell = Cell.gru
    bottom: Bottom = Bottom.additive
    heads: int = 2
    """Of `self_attention`."""
    fusion: Fusion = Fusion.weighted_sum
    head: Head = Head.tower
    weights: Weights = Weights.half_click
    intent_task: IntentTask = IntentTask.off
    intent_weight: float = 0.5
    attributes: Attributes = Attributes.if_present
    attribute_width: int = 8
    """Of one field's vector."""
    negatives: int = 4
    """Items a target that the user never touched in training."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dropout": (0.2, 0.0, 0.5),
        "attribute_width": (8, 16),
    }


def matrix(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map whose matrix starts Xavier-uniform, its bias zero."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Inputs(nn.Module):
    """[1] x_t = the item's vector, then one vector a field."""

    fields: Tensor

    def __init__(self, fields: Mapping[str, Int[Tensor, " item_row"]], width: int) -> None:
        super().__init__()
        self.width = width * len(fields)
        numbers = torch.stack(list(fields.values())) if fields else torch.zeros(0, 1).long()
        self.register_buffer("fields", numbers, persistent=False)
        self.tables = nn.ModuleList(table(int(column.max()), width) for column in numbers)

    def forward(
        self, items: Int[Tensor, "batch length"], vectors: Float[Tensor, "item_row d"]
    ) -> Float[Tensor, "batch length x"]:
        """Zero at padding."""
        parts = [functional.embedding(items, vectors, padding_idx=0)]
        for each, column in zip(self.tables, self.fields, strict=True):
            parts.append(each(column[items]))
        return torch.cat(parts, dim=2)


def table(rows: int, width: int) -> nn.Embedding:
    """Vectors of ids 1 to `rows`, normal(0, 0.02); that of padding (0) is zero."""
    embedding = nn.Embedding(rows + 1, width, padding_idx=0)
    nn.init.normal_(embedding.weight[1:].detach(), std=0.02)
    return embedding


class Forward(nn.Module):
    """[2] One recurrence from the first event to the last, state zero before it.

    GRU: n = tanh(W x + b + r (U h + c)), h' = (1 - z) n + z h, gates r, z, n.
    """

    ways = 1

    def __init__(self, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = recurrence(cell, inputs, hidden)

    def forward(
        self, x: Float[Tensor, "batch length x"], events: Int[Tensor, " batch"]  # noqa: ARG002
    ) -> Float[Tensor, "batch length h"]:  # fmt: skip
        """States; what stands behind a row's last event is never read."""
        states: Tensor = self.cell(x)[0]
        return states


class BothWays(Forward):
    """[2] The same, and a second recurrence from the last event to the first (D2)."""

    ways = 2

    def __init__(self, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__(cell, inputs, hidden)
        self.backward_cell = recurrence(cell, inputs, hidden)

    def forward(
        self, x: Float[Tensor, "batch length x"], events: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch length h"]:
        """States of both, event by event."""
        slot = torch.arange(x.shape[1], device=x.device)
        turned = (events.unsqueeze(1) - 1 - slot).clamp(min=0)  # its own inverse on the events

        def turn(values: Tensor) -> Tensor:
            return values.gather(1, turned.unsqueeze(2).expand(-1, -1, values.shape[2]))

        return torch.cat([self.cell(x)[0], turn(self.backward_cell(turn(x))[0])], dim=2)


def recurrence(cell: Cell, inputs: int, hidden: int) -> nn.GRU | nn.LSTM:
    """torch's, each gate's block a Xavier-uniform matrix, biases zero."""
    kinds: dict[Cell, type[nn.GRU | nn.LSTM]] = {Cell.gru: nn.GRU, Cell.lstm: nn.LSTM}
    network = kinds[cell](inputs, hidden, batch_first=True)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            for block in parameter.detach().split(hidden):
                nn.init.xavier_uniform_(block)
    return network


class Additive(nn.Module):
    """[3, 4] The score a . tanh(W v + b) of each of some vectors, and its softmax over the real ones."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inner, self.outer = matrix(inputs, width), matrix(width, 1, bias=False)

    def forward(
        self, vectors: Float[Tensor, "batch place v"], real: Bool[Tensor, "batch place"]
    ) -> Float[Tensor, "batch place"]:
        """Weights: zero where nothing is real, so that a row of nothing has none."""
        scores = self.outer(self.inner(vectors).tanh()).squeeze(2)
        weights: Tensor = scores.masked_fill(~real, -1e30).softmax(1) * real
        return weights


class AsTheyAre(nn.Module):
    """D4 additive: states are pooled as they are."""

    def forward(self, states: Tensor, real: Tensor) -> Tensor:  # noqa: ARG002
        """The same."""
        return states


class SelfAttention(nn.Module):
    """D4 self_attention: each state becomes a mixture of its view's states, without residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads is {heads}, which does not divide the state's width {width}")
        self.heads = heads
        self.query_key_value, self.output = matrix(width, 3 * width), matrix(width, width)

    def forward(
        self, states: Float[Tensor, "batch length h"], real: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length h"]:
        """Keys are the events; a row of padding (never read) sees itself."""
        split = self.query_key_value(states).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = real.unsqueeze(1) | torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        mixed = functional.scaled_dot_product_attention(query, key, value, seen.unsqueeze(1))
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class View(nn.Module):
    """[2, 3] One behaviour: a recurrence and an attention that are its own."""

    def __init__(self, config: DIPNConfig, inputs: int, hidden: int, attention: int) -> None:
        super().__init__()
        ways = {Direction.forward: Forward, Direction.both: BothWays}[config.direction]
        self.recurrence = ways(config.cell, inputs, hidden)
        self.width = hidden * ways.ways
        self.mix: AsTheyAre | SelfAttention = AsTheyAre()
        if config.bottom is Bottom.self_attention:
            self.mix = SelfAttention(self.width, config.heads)
        self.attention = Additive(self.width, attention)

    def forward(
        self, x: Float[Tensor, "batch length x"], real: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch h"]:
        """The view's vector s = sum_t alpha_t h_t; zero for an empty view."""
        states = self.states(x, real)
        pooled = torch.bmm(self.attention(states, real).unsqueeze(1), states)
        return pooled.squeeze(1)

    def states(
        self, x: Float[Tensor, "batch length x"], real: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length h"]:
        """What is pooled."""
        states: Tensor = self.mix(self.recurrence(x, real.sum(1)), real)
        return states


class Tower(nn.Module):
    """[5] logit(u, c) = w . ReLU(F [u; E[c]] + b) + b', dropout after the ReLU.

    F [u; e] = F_u u + F_e e: the first is made once a user, the second once an item.
    """

    def __init__(self, user: int, item: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.user_width = user
        self.inner, self.outer = matrix(user + item, hidden), matrix(hidden, 1)
        self.dropout = Dropout(dropout)

    def items(self, vectors: Float[Tensor, "*items d"]) -> Float[Tensor, "*items hidden"]:
        """F_e e."""
        return vectors @ self.inner.weight[:, self.user_width :].T

    def forward(
        self, user: Float[Tensor, "batch u"], items: Float[Tensor, "batch cand hidden"]
    ) -> Float[Tensor, "batch cand"]:
        """Logits of items that `items` has prepared."""
        weight = self.inner.weight[:, : self.user_width]
        of_user = functional.linear(user, weight, self.inner.bias).unsqueeze(1)
        hidden = self.dropout((of_user + items).relu())
        logits: Tensor = self.outer(hidden).squeeze(2)
        return logits

    def all(
        self, user: Float[Tensor, "batch u"], items: Float[Tensor, "item_row hidden"]
    ) -> Float[Tensor, "batch item_row"]:
        """Logits of every item, a block of items at a time."""
        rows = max(BLOCK // (items.shape[1] * max(len(user), 1)), 1)
        blocks = items.split(rows)
        return torch.cat([self(user, each.expand(len(user), -1, -1)) for each in blocks], 1)


class DotProductHead(nn.Module):
    """D6: logit(u, c) = (M u + b) . E[c]."""

    def __init__(self, user: int, item: int) -> None:
        super().__init__()
        self.user = matrix(user, item)

    def items(self, vectors: Float[Tensor, "*items d"]) -> Float[Tensor, "*items d"]:
        """As they are."""
        return vectors

    def forward(
        self, user: Float[Tensor, "batch u"], items: Float[Tensor, "batch cand d"]
    ) -> Float[Tensor, "batch cand"]:
        """Logits."""
        return torch.bmm(items, self.user(user).unsqueeze(2)).squeeze(2)

    def all(
        self, user: Float[Tensor, "batch u"], items: Float[Tensor, "item_row d"]
    ) -> Float[Tensor, "batch item_row"]:
        """Logits of every item."""
        logits: Tensor = self.user(user) @ items.T
        return logits


class Fused(nn.Module, ABC):
    """[4] Attention over the views that are not empty, then D5."""

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.attention = Additive(width, attention)

    def weights(
        self, views: Float[Tensor, "batch view h"], present: Bool[Tensor, "batch view"]
    ) -> Float[Tensor, "batch view"]:
        """beta, zero for an empty view."""
        beta: Tensor = self.attention(views, present)
        return beta

    @abstractmethod
    def forward(
        self, views: Float[Tensor, "batch view h"], present: Bool[Tensor, "batch view"]
    ) -> Float[Tensor, "batch u"]:
        """User vectors; zero for a user without events."""


class WeightedSum(Fused):
    """u = sum_v beta_v s_v."""

    def forward(
        self, views: Float[Tensor, "batch view h"], present: Bool[Tensor, "batch view"]
    ) -> Float[Tensor, "batch u"]:
        """As wide as a view's vector."""
        return (self.weights(views, present).unsqueeze(2) * views).sum(1)


class Concatenation(Fused):
    """u = [beta_click s_click; beta_favor s_favor]."""

    def forward(
        self, views: Float[Tensor, "batch view h"], present: Bool[Tensor, "batch view"]
    ) -> Float[Tensor, "batch u"]:
        """As wide as all views' vectors."""
        return (self.weights(views, present).unsqueeze(2) * views).flatten(1)


class FixedWeights(nn.Module):
    """[6] sum_k w_k L_k."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, costs: Mapping[str, Tensor]) -> Losses:
        """The weighted terms."""
        return {task: self.weights[task] * cost for task, cost in costs.items()}


class LearnedWeights(nn.Module):
    """D7 learned: sum_k exp(-a_k) L_k + a_k, a_k from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in TASKS})

    def forward(self, costs: Mapping[str, Tensor]) -> Losses:
        """The weighted terms."""
        return {task: (-self.a[task]).exp() * cost + self.a[task] for task, cost in costs.items()}


class NoIntent(nn.Module):
    """D8 off."""

    def forward(self, user: Tensor, batch: Batch) -> Losses:  # noqa: ARG002
        """No term."""
        return {}


class Intent(nn.Module):
    """D8 on: "is the next event a favor?", of the targets alone; logit = w . ReLU(F u + b) + b'."""

    def __init__(self, user: int, hidden: int, dropout: float, weight: float) -> None:
        super().__init__()
        self.inner, self.outer = matrix(user, hidden), matrix(hidden, 1)
        self.dropout, self.weight = Dropout(dropout), weight

    def logit(self, user: Float[Tensor, "batch u"]) -> Float[Tensor, " batch"]:
        """The user's intent, whatever the candidate."""
        logit: Tensor = self.outer(self.dropout(self.inner(user).relu())).squeeze(1)
        return logit

    def forward(self, user: Float[Tensor, "batch u"], batch: Batch) -> Losses:
        """The weighted term."""
        favored = (batch.target_behaviour == int(Behaviour.FAVOR)).to(user.dtype)
        cost = functional.binary_cross_entropy_with_logits(self.logit(user), favored)
        return {"intent": self.weight * cost}


class DIPN(Recommender):
    """Hierarchical attention over recurrent views, trained on several tasks (a reconstruction).

    Paper: Long Guo, Lifeng Hua, Rongfei Jia, Binqiang Zhao, Xiaobo Wang, Bin Cui, "Buying or Browsing?:
    Predicting Real-time Purchasing Intent using Attention-based Deep Network with Multiple Behavior",
    KDD 2019, pages 1984-1992. No official code and no third-party implementation was found.

    What the paper states [P] and this follows: recurrent views that are apart, attention within each
    view and then between the views, multi-task training. What differs, and must be said of any number:
      - The original predicts whether a user will buy, one probability a user and moment, and has no
        candidate; it would give every candidate of a user the same score. Here the candidate enters in
        the towers, and nowhere earlier.
      - The views are clicks and favors. The touch events (swipes, taps), most of the paper's gain, do
        not exist here, and nothing is made up for them.
      - The time gap between events, another input of the original's successor, cannot be an option: a
        `History` has no times.
      - Cell, form of attention, tasks, sizes, losses, weights and start are ours.
    A target is a positive of `click` whatever its behaviour (a favor implies interest), and of `favor`
    if it is one; its negatives are of neither.

    Raises:
        ValueError: a size or count that is not possible.
    """

    Config: ClassVar[type[ModelConfig]] = DIPNConfig
    config: DIPNConfig

    def __init__(self, config: DIPNConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        hidden = config.recurrent_width or config.hidden
        attention = config.attention_width or config.hidden
        widths = (config.hidden, hidden, attention, config.attribute_width, config.negatives)
        if min(widths) < 1:
            raise ValueError(
                f"hidden {config.hidden}, recurrent_width {hidden}, attention_width {attention}, "
                f"attribute_width {config.attribute_width} and negatives {config.negatives} are at least 1"
            )
        self.items = table(catalogue.items, config.hidden)
        fields = catalogue.fields if config.attributes is Attributes.if_present else {}
        self.inputs = Inputs(fields, config.attribute_width)
        self.dropout = Dropout(config.dropout)
        width = config.hidden + self.inputs.width
        self.views = nn.ModuleDict({name: View(config, width, hidden, attention) for name in VIEWS})
        state = hidden * {Direction.forward: 1, Direction.both: 2}[config.direction]
        fusions: dict[Fusion, tuple[type[Fused], int]] = {
            Fusion.weighted_sum: (WeightedSum, state),
            Fusion.concatenation: (Concatenation, len(VIEWS) * state),
        }
        fused, user = fusions[config.fusion]
        self.fusion = fused(state, attention)

        def head() -> nn.Module:
            if config.head is Head.tower:
                return Tower(user, config.hidden, hidden, config.dropout)
            return DotProductHead(user, config.hidden)

        self.heads = nn.ModuleDict({task: head() for task in TASKS})
        fixed = {Weights.half_click: 0.5, Weights.equal: 1.0}
        self.weighting: nn.Module = (
            LearnedWeights()
            if config.weights is Weights.learned
            else FixedWeights({"favor": 1.0, "click": fixed[config.weights]})
        )
        self.intent: nn.Module = NoIntent()
        if config.intent_task is IntentTask.on:
            self.intent = Intent(user, hidden, config.dropout, config.intent_weight)
        self.negatives = TrainingNegatives(catalogue)

    def prepare(self, train: Interactions) -> None:
        """What each user touched: negatives avoid it."""
        self.negatives.prepare(train)

    def loss(self, batch: Batch) -> Losses:
        """[6] Binary cross-entropy a task, mean over all samples, negatives included."""
        user = self.encode(batch.history)
        negatives = self.negatives(batch.history.user, self.config.negatives, batch.generator)
        vectors = self.items(torch.cat([batch.targets[:, -1:], negatives], dim=1))
        positives = {"favor": batch.favors[:, -1] > 0, "click": batch.targets[:, -1] > 0}
        costs = {}
        for task in TASKS:
            logits = self.logits(task, user, vectors)
            labels = torch.zeros_like(logits)
            labels[:, 0] = positives[task].to(labels.dtype)
            costs[task] = functional.binary_cross_entropy_with_logits(logits, labels)
        return {**self.weighting(costs), **self.intent(user, batch)}

    def logits(
        self, task: str, user: Float[Tensor, "batch u"], vectors: Float[Tensor, "batch cand d"]
    ) -> Float[Tensor, "batch cand"]:
        """[5] One task's logits of given item vectors."""
        head = self.head(task)
        logits: Tensor = head(user, head.items(vectors))
        return logits

    def head(self, task: str) -> Tower | DotProductHead:
        """One task's part of D6."""
        head = self.heads[task]
        assert isinstance(head, Tower | DotProductHead)
        return head

    def encode(self, history: History) -> Float[Tensor, "batch u"]:
        """[1] to [4] The user vector u."""
        views, present = self.view_vectors(history)
        user: Tensor = self.fusion(views, present)
        return user

    def view_vectors(
        self, history: History
    ) -> tuple[Float[Tensor, "batch view h"], Bool[Tensor, "batch view"]]:
        """[1] to [3] The vector of each view, and which views are not empty."""
        vectors, present = [], []
        for name, behaviour in VIEWS.items():
            x, real = self.view_input(history, behaviour)
            vectors.append(self.views[name](x, real))
            present.append(real.any(1))
        return torch.stack(vectors, 1), torch.stack(present, 1)

    def view_input(
        self, history: History, behaviour: Behaviour
    ) -> tuple[Float[Tensor, "batch length x"], Bool[Tensor, "batch length"]]:
        """[1] One behaviour's events from slot 0 on, and where they are."""
        seen = history.only(behaviour)
        items = from_the_left(seen.items, seen.real.sum(1))
        return self.dropout(self.inputs(items, self.items.weight)), items > 0

    def prepared_items(self) -> Float[Tensor, "item_row hidden"]:
        """F_e e of every item for the task that ranks."""
        return self.once("items", lambda: self.head("favor").items(self.items.weight))

    def score(
        self, state: Float[Tensor, "batch u"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """logit_favor of some items."""
        logits: Tensor = self.head("favor")(state, self.prepared_items()[items])
        return logits

    def score_all(self, state: Float[Tensor, "batch u"]) -> Float[Tensor, "batch item_row"]:
        """logit_favor of every item."""
        return self.head("favor").all(state, self.prepared_items())
