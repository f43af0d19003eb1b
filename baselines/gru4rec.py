"""GRU4Rec: recurrent networks for session-based recommendation (Hidasi et al., ICLR 2016; CIKM 2018).

Axes: batch = users or windows, length = slots of a left-padded history, time = events of sequences
that all start at 0, lane = sequences side by side in one step, step = events of a lane in order,
place = places of a window that have a target, column = scored items of a step (the targets of all its
lanes, then the extra negatives), extra = those negatives, cand = candidate items, gate = stacked gates,
item_row = items + 1 (row 0 is padding and never trained), d = width of the last layer.

Symbols: W_y output table, H state, r and z gates, n candidate state, s scores, c item counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.interface import (
    Batch,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Samples,
)
from models.layers import READINGS, Behaviors, DotProduct, Dropout, Reading, from_the_left
from models.precision import in_float32

BLOCK = 1 << 20
"""Scores held at once (4 MiB in float32), so that a block of steps stays in the cache."""


class Embedding(Enum):
    """G1: the input is a row of the output table, of a table of its own, or the item's own product."""

    shared = "shared"
    separate = "separate"
    one_hot = "one_hot"


class Reset(Enum):
    """G2: the reset gate acts after or before the recurrent product; z changes its meaning too."""

    after = "after"
    before = "before"


class Loss(Enum):
    """G3."""

    cross_entropy = "cross_entropy"
    bpr_max = "bpr_max"
    top1 = "top1"


class Batching(Enum):
    """G4: windows side by side, or lanes in which one window follows another (the authors' way)."""

    padded = "padded"
    parallel = "parallel"


class Bptt(Enum):
    """G5: gradients flow through all steps, or through one (the authors' way)."""

    full = "full"
    one = "one"


class Optimiser(Enum):
    """The authors' Adagrad, or the Adam of the other methods."""

    adagrad = "adagrad"
    adam = "adam"


@dataclass
class GRU4RecConfig(ModelConfig):
    """Settings of GRU4Rec; defaults from the authors' PyTorch code, except the width (theirs: 100).

    `batching` and `bptt` default to what lets all methods share one loader; `parallel` with `one` is
    the authors' procedure.
    """

    learning_rate: float = 0.05
    """Adagrad's; its own grid is 0.01, 0.05, 0.1, 0.2. Adam wants the paper's grid instead."""
    layers: list[int] = field(default_factory=list)
    """Widths of the GRU layers in order; empty: one of width `hidden`. `one_hot` uses the first."""
    embedding: Embedding = Embedding.shared
    """G1."""
    embedding_width: int = 0
    """Width of the separate table; 0: that of the first layer."""
    reset: Reset = Reset.after
    """G2."""
    loss: Loss = Loss.cross_entropy
    """G3; `top1` with `negatives` 0 is the model of 2016."""
    batching: Batching = Batching.padded
    """G4."""
    bptt: Bptt = Bptt.full
    """G5."""
    behaviors: Behaviors = Behaviors.merged
    """G6: `merged` ignores the tags; `favor_only` reads the favors and still predicts every target."""
    lanes: int = 64
    """Sequences side by side under `parallel` (the authors' batch size), which divides the loss."""
    negatives: int = 2048
    """Extra negatives N, shared by all lanes."""
    sample_alpha: float = 0.5
    """Negatives are drawn in proportion to count ** alpha: 0 uniform, 1 popularity."""
    logq: float = 0.0
    """Strength of the correction for that, in `cross_entropy`; the authors advise 1."""
    elu: float = 0.5
    """Scores pass ELU with this alpha first, in `bpr_max`; 0: linear."""
    bpreg: float = 1.0
    """Weight of the score penalty, in `bpr_max`."""
    dropout_embedding: float = 0.0
    """Of the input vector (`shared` and `separate`)."""
    dropout_hidden: float = 0.0
    """Of each layer's state; the dropped state is what is carried on."""
    optimiser: Optimiser = Optimiser.adagrad
    """Said under a table when it is Adam."""
    momentum: float = 0.0
    """Adagrad's."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "learning_rate": (0.01, 0.05, 0.1, 0.2),
        "dropout_embedding": (0.0, 0.3),
    }


def glorot(tensor: Tensor, rows: int, columns: int) -> None:
    """Uniform in +-sqrt(6 / (rows + columns)), in place."""
    limit = math.sqrt(6 / (rows + columns))
    nn.init.uniform_(tensor, -limit, limit)


def glorot_gates(weight: Float[Tensor, "gate width"], width: int) -> None:
    """Each gate's block of `width` rows as a matrix of its own, in place."""
    for block in torch.split(weight.detach(), width):
        glorot(block, *block.shape)


def glorot_table(table: Float[Tensor, "item_row gate"], width: int) -> None:
    """Each gate's block of `width` columns as a table of I rows, in place; row 0 zero."""
    for block in torch.split(table.detach(), width, dim=1):
        glorot(block, len(table) - 1, width)
    table.detach()[0] = 0


class Input(nn.Module, ABC):
    """G1: what the first layer reads of an item."""

    width: int
    """Columns of what it returns."""

    @abstractmethod
    def forward(
        self, items: Int[Tensor, "batch time"], output: Float[Tensor, "item_row d"]
    ) -> Float[Tensor, "batch time width"]:
        """Input of each item; `output` is W_y."""


class SharedInput(Input):
    """The item's row of W_y (the authors' "constrained" embedding)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.dropout = Dropout(dropout)

    def forward(
        self, items: Int[Tensor, "batch time"], output: Float[Tensor, "item_row d"]
    ) -> Float[Tensor, "batch time width"]:
        """The rows, dropped out."""
        rows: Tensor = self.dropout(functional.embedding(items, output))
        return rows


class SeparateInput(Input):
    """The item's row of a table E of its own."""

    def __init__(self, items: int, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Parameter(torch.empty(items + 1, width))
        glorot_table(self.table, width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        items: Int[Tensor, "batch time"],
        output: Float[Tensor, "item_row d"],  # noqa: ARG002
    ) -> Float[Tensor, "batch time width"]:
        """The rows, dropped out."""
        rows: Tensor = self.dropout(functional.embedding(items, self.table))
        return rows


class OneHotInput(Input):
    """The item's row of W_x, which is already the input product of the first layer; no dropout."""

    def __init__(self, items: int, hidden: int) -> None:
        super().__init__()
        self.width = 3 * hidden
        self.table = nn.Parameter(torch.empty(items + 1, 3 * hidden))
        glorot_table(self.table, hidden)

    def forward(
        self,
        items: Int[Tensor, "batch time"],
        output: Float[Tensor, "item_row d"],  # noqa: ARG002
    ) -> Float[Tensor, "batch time width"]:
        """The rows."""
        return functional.embedding(items, self.table)


class AddBias(nn.Module):
    """A linear map whose product has been looked up already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "batch time gate"]) -> Float[Tensor, "batch time gate"]:
        """The product plus the bias."""
        return x + self.bias


def gate_products(width: int | None, hidden: int) -> nn.Linear | AddBias:
    """Input products of the three gates; `width` None where they are looked up (`one_hot`)."""
    if width is None:
        return AddBias(3 * hidden)
    linear = nn.Linear(width, 3 * hidden)
    glorot_gates(linear.weight, hidden)
    nn.init.zeros_(linear.bias)
    return linear


class Cell(nn.Module, ABC):
    """G2: one GRU step."""

    hidden: int
    product: nn.Linear | AddBias
    """Input products of the gates; the input does not wait for the state, so all steps at once."""

    @abstractmethod
    def step(
        self, product: Float[Tensor, "batch gate"], state: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        """The next state H'."""


class ResetAfter(Cell):
    """n = tanh(W_n x + b_in + r (U_n H + b_hn)), H' = (1 - z) n + z H; gates r, z, n, two biases."""

    def __init__(self, width: int | None, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.product = gate_products(width, hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        glorot_gates(self.recurrent.weight, hidden)
        nn.init.zeros_(self.recurrent.bias)

    def step(
        self, product: Float[Tensor, "batch gate"], state: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        """As torch.nn.GRUCell computes it."""
        recurrent: Tensor = self.recurrent(state)
        gates = 2 * self.hidden
        r, z = (product[:, :gates] + recurrent[:, :gates]).sigmoid_().chunk(2, 1)
        n = torch.addcmul(product[:, gates:], r, recurrent[:, gates:]).tanh_()
        return n + z * (state - n)


class ResetBefore(Cell):
    """n = tanh(W_n x + b_n + U_n (r H)), H' = (1 - z) H + z n; gates n, r, z, one bias."""

    def __init__(self, width: int | None, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.product = gate_products(width, hidden)
        self.recurrent_gates = nn.Linear(hidden, 2 * hidden, bias=False)
        self.recurrent_new = nn.Linear(hidden, hidden, bias=False)
        glorot_gates(self.recurrent_gates.weight, hidden)
        glorot_gates(self.recurrent_new.weight, hidden)

    def step(
        self, product: Float[Tensor, "batch gate"], state: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        """As in the article of 2016; z is the share of the new, not of the old."""
        gates: Tensor = product[:, self.hidden :] + self.recurrent_gates(state)
        r, z = gates.sigmoid_().chunk(2, 1)
        n: Tensor = (product[:, : self.hidden] + self.recurrent_new(r * state)).tanh_()
        return state + z * (n - state)


class Layer(nn.Module, ABC):
    """One GRU layer over a sequence."""

    cell: Cell

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch time width"], state: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch time hidden"]:
        """The state after each event, from the state before the first."""


class SteppedLayer(Layer):
    """Step by step: any cell, dropout on the carried state, gradients through all steps or one."""

    def __init__(self, cell: Cell, dropout: float, carry: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cell = cell
        self.dropout = Dropout(dropout)
        self.carry = carry

    def forward(
        self, x: Float[Tensor, "batch time width"], state: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch time hidden"]:
        """The dropped states, which are also what is carried."""
        states = []
        for product in self.cell.product(x).unbind(1):
            state = self.dropout(self.cell.step(product, self.carry(state)))
            states.append(state)
        return torch.stack(states, 1)


class FusedLayer(Layer):
    """torch's own GRU, one call a sequence: `after`, no dropout, gradients through all steps."""

    cell: ResetAfter

    def __init__(self, cell: ResetAfter) -> None:
        super().__init__()
        self.cell = cell

    def forward(
        self, x: Float[Tensor, "batch time width"], state: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch time hidden"]:
        """The states."""
        product, recurrent = self.cell.product, self.cell.recurrent
        assert isinstance(product, nn.Linear), "an item's own product cannot be fused"
        weights = [product.weight, recurrent.weight, product.bias, recurrent.bias]
        states: Tensor = torch.gru(
            x, state.unsqueeze(0), weights, True, 1, 0.0, self.training, False, True
        )[0]
        return states


def whole(state: Tensor) -> Tensor:
    """The state with its gradient."""
    return state


CARRY: dict[Bptt, Callable[[Tensor], Tensor]] = {Bptt.full: whole, Bptt.one: Tensor.detach}


def layer(config: GRU4RecConfig, width: int | None, hidden: int) -> Layer:
    """The part of G2 and G5; `width` None where the input products are looked up."""
    cell = {Reset.after: ResetAfter, Reset.before: ResetBefore}[config.reset](width, hidden)
    if (
        isinstance(cell, ResetAfter)
        and isinstance(cell.product, nn.Linear)
        and config.dropout_hidden == 0
        and config.bptt is Bptt.full
    ):
        return FusedLayer(cell)
    return SteppedLayer(cell, config.dropout_hidden, CARRY[config.bptt])


class Criterion(nn.Module, ABC):
    """G3: what a row of scores costs. An item that is no column of the row's step scores -inf."""

    def correction(self, log_odds: Tensor) -> Tensor:
        """Added to the scores of a step's columns, from the log of what each is drawn in proportion to."""
        return torch.zeros_like(log_odds)

    @abstractmethod
    def forward(
        self, scores: Float[Tensor, "place column"], positive: Int[Tensor, " place"]
    ) -> Float[Tensor, " place"]:
        """One number a row. Every column but the target's own is a negative, also a second target.

        Args:
            scores: Of the step's columns.
            positive: Column of each row's target.
        """


class CrossEntropy(Criterion):
    """-log(softmax(s)[i] + 1e-24), s less logq times the log of the sampling odds."""

    def __init__(self, logq: float) -> None:
        super().__init__()
        self.logq = logq

    def correction(self, log_odds: Tensor) -> Tensor:
        """-logq log c of in-batch columns, -logq alpha log c of the extra ones."""
        return -self.logq * log_odds

    def forward(
        self, scores: Float[Tensor, "place column"], positive: Int[Tensor, " place"]
    ) -> Float[Tensor, " place"]:
        """The softmax is over all columns."""
        surprise = functional.cross_entropy(scores, positive, reduction="none")
        return -((-surprise).exp() + 1e-24).log()


class BPRMax(Criterion):
    """-log(sum_j q_j sigmoid(s_i - s_j) + 1e-24) + bpreg sum_j q_j s_j^2, q a softmax without i."""

    def __init__(self, elu: float, bpreg: float) -> None:
        super().__init__()
        self.activation = nn.ELU(elu) if elu > 0 else nn.Identity()
        self.bpreg = bpreg

    def forward(
        self, scores: Float[Tensor, "place column"], positive: Int[Tensor, " place"]
    ) -> Float[Tensor, " place"]:
        """As the authors do, the positive is 0 when the row's maximum is taken, and leaves after exp."""
        column = torch.arange(scores.shape[1], device=scores.device)
        absent = scores == -torch.inf
        left_out = absent | (column == positive.unsqueeze(1))
        s = self.activation(scores.masked_fill(absent, 0))
        others = s.masked_fill(left_out, 0)
        mass = (others - others.amax(1, keepdim=True)).exp().masked_fill(left_out, 0)
        q = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
        won: Tensor = (q * (s.gather(1, positive.unsqueeze(1)) - s).sigmoid()).sum(1)
        penalty: Tensor = (q * s.square()).sum(1)
        return self.bpreg * penalty - (won + 1e-24).log()


class Top1(Criterion):
    """mean_j(sigmoid(s_j - s_i) + sigmoid(s_j^2)) - sigmoid(s_i^2) / columns, j over all (2016)."""

    def forward(
        self, scores: Float[Tensor, "place column"], positive: Int[Tensor, " place"]
    ) -> Float[Tensor, " place"]:
        """The mean is over the columns that the row's step has."""
        absent = scores == -torch.inf
        s = scores.masked_fill(absent, 0)
        target = s.gather(1, positive.unsqueeze(1))
        terms = ((s - target).sigmoid() + s.square().sigmoid()).masked_fill(absent, 0)
        own = target.squeeze(1).square().sigmoid()
        return (terms.sum(1) - own) / (~absent).sum(1)


def criterion(config: GRU4RecConfig) -> Criterion:
    """The part of G3."""
    parts: dict[Loss, Callable[[], Criterion]] = {
        Loss.cross_entropy: lambda: CrossEntropy(config.logq),
        Loss.bpr_max: lambda: BPRMax(config.elu, config.bpreg),
        Loss.top1: Top1,
    }
    return parts[config.loss]()


@dataclass(frozen=True)
class Grid:
    """When and in which lane the slots of a batch's windows are trained."""

    lane: Int[Tensor, " batch"]
    """Lane of each window."""
    start: Int[Tensor, " batch"]
    """Step of each window's slot 0; negative where padding comes first."""
    lanes: int
    steps: int
    divisor: int
    """The batch size that a step's loss is divided by."""


def padded_grid(history: History, lanes: int) -> Grid:  # noqa: ARG001
    """Every window in a lane of its own, last slots at the same step."""
    windows, length = history.items.shape
    lane = torch.arange(windows, device=history.items.device)
    return Grid(lane, torch.zeros_like(lane), windows, length, windows)


def parallel_grid(history: History, lanes: int) -> Grid:
    """The authors' session-parallel mini-batch: the next window goes where a lane has ended."""
    events = history.real.sum(1)
    windows = len(events)
    free = torch.zeros(lanes, dtype=torch.int64, device=events.device)
    lane, first = torch.zeros_like(events), torch.zeros_like(events)
    done = 0
    while done < windows:
        step = free.min()
        ended = (free == step).nonzero().squeeze(1)[: windows - done]
        taken = slice(done, done + len(ended))
        lane[taken], first[taken] = ended, step
        free[ended] = step + events[taken].clamp(min=1)
        done += len(ended)
    start = first - (history.items.shape[1] - events)
    return Grid(lane, start, lanes, int(free.max()), lanes)


GRIDS: dict[Batching, Callable[[History, int], Grid]] = {
    Batching.padded: padded_grid,
    Batching.parallel: parallel_grid,
}


class GRU4Rec(DotProduct):
    """A GRU over the latest items, each step scored against its batch and sampled items.

    Papers: Balazs Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR
    2016, arXiv 1511.06939; Balazs Hidasi and Alexandros Karatzoglou, "Recurrent Neural Networks with
    Top-k Gains for Session-based Recommendations", CIKM 2018, arXiv 1706.03847. Authors' code:
    github.com/hidasib/GRU4Rec, commit a4ed5fb (Theano), and github.com/hidasib/
    GRU4Rec_PyTorch_Official, commit d1fc311; written here from the equations, not from the code.

    score(i) = H . W_y[i] + b_y[i]. A step's loss is the sum over its lanes, divided by the batch size
    also when fewer lanes are left; a batch's loss is the sum over its steps.

    Differences from the authors' code:
      - Default batching: the harness's windows, each in a lane of its own, with gradients through all
        steps and one set of extra negatives a batch. `parallel` and `bptt=one` are the authors' lanes
        and gradients; windows then come in the loader's order, not by start time, and `loss` sums the
        steps of a batch, where the authors update after each (`passes` does).
      - A place counts as often as the events it stands for; lanes without a target at a step are in
        neither rows nor columns.
      - Negatives are drawn among items that have a training event. The initial weights follow the run's
        seed (the authors' PyTorch code always starts from seed 42).
      - One initialisation, the authors' "compatibility" one: each gate's block on its own.
      - Without the sum of 2016's bpr, final activations, label smoothing and Nesterov momentum.

    Raises:
        ValueError: a width, lane or negative count that is not possible.
    """

    Config: ClassVar[type[ModelConfig]] = GRU4RecConfig
    samples: ClassVar[Samples] = Samples.window
    config: GRU4RecConfig
    log_counts: Tensor
    odds: Tensor

    def __init__(self, config: GRU4RecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        sizes = list(config.layers) or [config.hidden]
        if min(*sizes, config.lanes) < 1 or min(config.negatives, config.embedding_width) < 0:
            raise ValueError(
                f"layers {sizes} and lanes {config.lanes} are at least 1, negatives "
                f"{config.negatives} and embedding_width {config.embedding_width} at least 0"
            )
        if config.embedding is Embedding.one_hot:
            sizes = sizes[:1]
        items, last = catalogue.items, sizes[-1]
        self.output_table = nn.Parameter(torch.empty(items + 1, last))
        glorot_table(self.output_table, last)
        self.output_bias = nn.Parameter(torch.zeros(items + 1))
        inputs: dict[Embedding, Callable[[], Input]] = {
            Embedding.shared: lambda: SharedInput(last, config.dropout_embedding),
            Embedding.separate: lambda: SeparateInput(
                items, config.embedding_width or sizes[0], config.dropout_embedding
            ),
            Embedding.one_hot: lambda: OneHotInput(items, sizes[0]),
        }
        self.input = inputs[config.embedding]()
        first = None if config.embedding is Embedding.one_hot else self.input.width
        self.widths = sizes
        self.layers = nn.ModuleList(
            layer(config, width, size)
            for width, size in zip([first, *sizes[:-1]], sizes, strict=True)
        )
        self.criterion = criterion(config)
        self.grid = GRIDS[config.batching]
        self.reading = READINGS[config.behaviors]()
        self.cut = PASSES[config.batching, config.bptt]
        self.register_buffer("log_counts", torch.zeros(items + 1), persistent=False)
        self.register_buffer("odds", torch.zeros(items + 1, dtype=torch.float64), persistent=False)
        self._count(torch.ones(items + 1, dtype=torch.int64))

    def prepare(self, train: Interactions) -> None:
        """Count the items: for the draw of negatives and the correction of it."""
        self._count(torch.bincount(train.item, minlength=self.catalogue.items + 1))

    def _count(self, counts: Int[Tensor, " item_row"]) -> None:
        counts = counts.to(self.odds.device)
        counts[0] = 0
        odds = torch.where(counts > 0, counts.double() ** self.config.sample_alpha, 0.0)
        self.odds = odds.cumsum(0)
        self.log_counts = counts.clamp(min=1).double().log().to(self.log_counts.dtype)

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """W_y."""
        return self.output_table

    def item_bias(self) -> Float[Tensor, " item_row"]:
        """The items' biases b_y."""
        return self.output_bias

    def start(self, batch: int) -> list[Tensor]:
        """The state of each layer before a first event: zeros."""
        return [self.output_table.new_zeros(batch, width) for width in self.widths]

    def advance(
        self, items: Int[Tensor, "batch time"], states: list[Tensor]
    ) -> list[Float[Tensor, "batch time hidden"]]:
        """States of each layer after each event; a later layer reads the one below at the same event.

        Args:
            items: Ids in time order, padding at the end if anywhere.
            states: Of each layer, before the first of these events.
        """
        x, after = self.input(items, self.output_table), []
        for part, state in zip(self.layers, states, strict=True):
            x = part(x, state)
            after.append(x)
        return after

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """H after the last of at most `Catalogue.length` events; zeros for a user without history."""
        history = self.reading.history(history)
        history = history.padded(min(history.items.shape[1], self.catalogue.length))
        events = history.real.sum(1)
        states = self.advance(from_the_left(history.items, events), self.start(len(events)))[-1]
        row = torch.arange(len(events), device=events.device)
        return states[row, (events - 1).clamp(min=0)] * (events > 0).unsqueeze(1)

    def loss(self, batch: Batch) -> Losses:
        """Sum over the steps of each step's loss."""
        history = self.reading.history(batch.history)
        events, width = history.real.sum(1), history.items.shape[1]
        states = self.advance(from_the_left(history.items, events), self.start(len(events)))[-1]

        grid = self.grid(batch.history, self.config.lanes)
        slots = self.reading.slots(batch.history, width)
        row, place = ((batch.targets > 0) & (slots >= 0)).nonzero(as_tuple=True)
        step = grid.start[row] + place
        by_step = step.argsort(stable=True)
        row, place, step = row[by_step], place[by_step], step[by_step]
        state = states[row, slots[row, place] - (width - events)[row]]
        columns = batch.targets.new_zeros(grid.steps, grid.lanes)
        columns[step, grid.lane[row]] = batch.targets[row, place]
        extra = self.draw(batch.generator)
        weights = batch.weights[row, place] / grid.divisor
        return {"next_item": self.cost(state, step, grid.lane[row], weights, columns, extra)}

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """The losses of a batch that are to be followed by an optimiser step each.

        The authors update after every event step, and the state carries over: under `parallel` and
        `bptt=one` that is done, with fresh negatives each. Otherwise there is one loss, `loss`.
        """
        return self.cut(self, batch)

    def draw(self, generator: torch.Generator) -> Int[Tensor, " extra"]:
        """N items with replacement, in proportion to count ** alpha."""
        chance = torch.rand(
            self.config.negatives,
            dtype=torch.float64,
            generator=generator,
            device=generator.device,
        ).to(self.odds.device)
        drawn = torch.searchsorted(self.odds, chance * self.odds[-1], right=True)
        return drawn.clamp(max=self.catalogue.items)

    def cost(
        self,
        state: Float[Tensor, "place d"],
        step: Int[Tensor, " place"],
        lane: Int[Tensor, " place"],
        weights: Float[Tensor, " place"],
        columns: Int[Tensor, "step lane"],
        extra: Int[Tensor, " extra"],
    ) -> Float[Tensor, ""]:
        """Weighted sum over places of what each costs.

        Args:
            state: H of each place.
            step: Its step, ascending.
            lane: Its lane.
            weights: How much it counts.
            columns: Targets of each step's lanes; 0 where a lane has none.
            extra: Negatives of all steps.
        """
        alpha = self.config.sample_alpha
        bias = self.output_bias[columns] + self.criterion.correction(self.log_counts[columns])
        extra_bias = self.output_bias[extra]
        extra_bias = extra_bias + self.criterion.correction(alpha * self.log_counts[extra])
        total: Tensor = _BlockwiseCost.apply(  # type: ignore[no-untyped-call]
            self.criterion,
            (step, lane, weights.to(state.dtype)),
            state,
            functional.embedding(columns, self.output_table),
            bias.masked_fill(columns == 0, -torch.inf),
            functional.embedding(extra, self.output_table),
            extra_bias,
        )
        return total

    def optimiser(self) -> torch.optim.Optimizer:
        """Adagrad as the authors wrote it, or Adam."""
        return {Optimiser.adagrad: self._adagrad, Optimiser.adam: super().optimiser}[
            self.config.optimiser
        ]()

    def _adagrad(self) -> torch.optim.Optimizer:
        tables = [
            parameter
            for name, parameter in self.named_parameters()
            if name.endswith(("table", "output_bias"))  # a row an item
        ]
        known = {id(p) for p in tables}
        return Adagrad(
            [
                {"params": [p for p in self.parameters() if id(p) not in known]},
                {"params": tables, "table": True},
            ],
            lr=self.config.learning_rate,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )


def one_pass(model: GRU4Rec, batch: Batch) -> Iterator[Losses]:
    """A batch at once."""
    yield model.loss(batch)


def stepwise_passes(model: GRU4Rec, batch: Batch) -> Iterator[Losses]:
    """A step of all lanes at a time; the weights may move in between."""
    lanes = _Lanes(batch, model.grid(batch.history, model.config.lanes), model.reading)
    states = model.start(lanes.items.shape[1])
    for step, items in enumerate(lanes.items):
        states = [state * ~lanes.starts[step].unsqueeze(1) for state in states]
        after = [state.squeeze(1) for state in model.advance(items.unsqueeze(1), states)]
        fed = (items > 0).unsqueeze(1)
        after = [torch.where(fed, new, old) for new, old in zip(after, states, strict=True)]
        states = [state.detach() for state in after]
        lane = lanes.targets[step].nonzero().squeeze(1)
        if len(lane):
            extra = model.draw(batch.generator)
            columns = lanes.targets[step : step + 1]
            weights = lanes.weights[step, lane] / lanes.divisor
            now = torch.zeros_like(lane)
            cost = model.cost(after[-1][lane], now, lane, weights, columns, extra)
            yield {"next_item": cost}


PASSES: dict[tuple[Batching, Bptt], Callable[[GRU4Rec, Batch], Iterator[Losses]]] = {
    (Batching.padded, Bptt.full): one_pass,
    (Batching.padded, Bptt.one): one_pass,
    (Batching.parallel, Bptt.full): one_pass,
    (Batching.parallel, Bptt.one): stepwise_passes,
}


def step_scores(
    state: Float[Tensor, "place d"],
    step: Int[Tensor, " place"],
    lane: Int[Tensor, " place"],
    vectors: Float[Tensor, "step lane d"],
    bias: Float[Tensor, "step lane"],
    extra_vectors: Float[Tensor, "extra d"],
    extra_bias: Float[Tensor, " extra"],
) -> Float[Tensor, "place column"]:
    """Scores of each place against the targets of its step's lanes, then the extra negatives (L3)."""
    queries = vectors.new_zeros(vectors.shape).index_put((step, lane), state)
    in_batch = (queries @ vectors.mT + bias.unsqueeze(1))[step, lane]
    return torch.cat([in_batch, torch.addmm(extra_bias, state, extra_vectors.T)], 1)


class _BlockwiseCost(torch.autograd.Function):
    """Weighted sum of costs, a block of steps at a time; no block's scores outlive it.

    The gradient of a sum does not wait for what comes after, so each block's is taken at once, while
    its scores are in the cache: nothing is stored for the backward pass, nor made again there.
    """

    @staticmethod
    @in_float32
    def forward(
        ctx: Any,
        criterion: Criterion,
        places: tuple[Tensor, Tensor, Tensor],
        state: Tensor,
        vectors: Tensor,
        bias: Tensor,
        extra_vectors: Tensor,
        extra_bias: Tensor,
    ) -> Tensor:
        """Arguments as in `step_scores`; `places` are step, lane and weight of each state."""
        step, lane, weight = places
        steps, lanes = bias.shape
        size = max(1, BLOCK // (lanes * (lanes + len(extra_bias))))
        counts = torch.bincount(step // size, minlength=-(-steps // size)).tolist()
        inputs = (state, vectors, bias, extra_vectors, extra_bias)
        ctx.gradients = gradients = [torch.zeros_like(tensor) for tensor in inputs]
        wanted = any(ctx.needs_input_grad)
        total, first = state.new_zeros(()), 0
        for number, count in enumerate(counts):
            here, now = slice(first, first + count), slice(number * size, (number + 1) * size)
            first += count
            if not count:
                continue
            cuts = (here, now, now, slice(None), slice(None))
            parts = [
                x[cut].detach().requires_grad_(wanted) for x, cut in zip(inputs, cuts, strict=True)
            ]
            with torch.set_grad_enabled(wanted):
                scores = step_scores(parts[0], step[here] % size, lane[here], *parts[1:])
                cost = (weight[here] * criterion(scores, lane[here])).sum()
            total += cost.detach()
            if wanted:
                of_parts = torch.autograd.grad(cost, parts)
                for gradient, cut, part in zip(gradients, cuts, of_parts, strict=True):
                    gradient[cut] += part
        return total

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the blocks, times that of the sum."""
        return (None, None, *(gradient * part for part in ctx.gradients))


class _Lanes:
    """A window batch laid out in lanes: one row a step."""

    def __init__(self, batch: Batch, grid: Grid, reading: Reading) -> None:
        history = batch.history
        read = reading.slots(history, reading.history(history).items.shape[1])
        row, slot = history.real.nonzero(as_tuple=True)
        at = (grid.start[row] + slot, grid.lane[row])
        before = functional.pad(read, (1, 0), value=-1)[:, :-1]
        first = functional.pad(history.real, (1, 0))[:, :-1] < history.real
        fed = torch.where(first, read >= 0, read > before)
        targets = batch.targets * (read >= 0)

        def lay(values: Tensor) -> Tensor:
            out = values.new_zeros(grid.steps, grid.lanes)
            out[at] = values[row, slot]
            return out

        self.items, self.targets = lay(history.items * fed), lay(targets)
        self.weights, self.starts = lay(batch.weights), lay(first)
        self.divisor = grid.divisor


class Adagrad(torch.optim.Optimizer):
    """acc += g^2; mom = momentum mom - lr g / sqrt(acc + eps); w += mom.

    Unlike torch.optim.Adagrad: eps stands inside the root, and there is momentum. In groups with
    `table`, rows without gradient are left as they are, their momentum too; a sparse gradient's rows
    are summed before squaring, and of a dense one the rows that are not all zero count.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay, "table": False
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "Adagrad takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._rows if group["table"] else self._whole
                    update(parameter, parameter.grad, group)

    def _of(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Sum of squares, and momentum where there is some."""
        state = self.state[parameter]
        if not state:
            state["squares"] = torch.zeros_like(parameter)
            if group["momentum"]:
                state["momentum"] = torch.zeros_like(parameter)
        return state["squares"], state.get("momentum")

    def _whole(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        squares, momentum = self._of(parameter, group)
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        squares.addcmul_(gradient, gradient)
        change = gradient / (squares + group["eps"]).sqrt_()
        if momentum is None:
            parameter.sub_(change, alpha=group["lr"])
        else:
            parameter.add_(momentum.mul_(group["momentum"]).sub_(change, alpha=group["lr"]))

    def _rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        squares, momentum = self._of(parameter, group)
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, gradient = gradient.indices()[0], gradient.values()
        else:
            rows = gradient.reshape(len(gradient), -1).any(1).nonzero().squeeze(1)
            gradient = gradient[rows]
        if group["weight_decay"]:
            gradient = gradient.add(parameter[rows], alpha=group["weight_decay"])
        summed = squares[rows].addcmul_(gradient, gradient)
        squares[rows] = summed
        change = (gradient / (summed + group["eps"]).sqrt_()).mul_(-group["lr"])
        if momentum is not None:
            change.add_(momentum[rows], alpha=group["momentum"])
            momentum[rows] = change
        parameter.index_add_(0, rows, change)
