"""M3SRec (Bian et al., CIKM 2023), a reconstruction: text and image tokens, mixtures of experts.

No code and no readable full text of the paper exists (see `M3SRec`); L1 to L7 number the layers of
this reconstruction in order, Q1 to Q9 its readings, default first.

L1 projections and item table, L2 tokens, L3 blocks with experts a modality, L4 blocks with experts
that all modalities share, L5 readout, L6 candidates, L7 score.

Axes: batch, length = slots of a history (left-aligned here: the oldest event in slot 0), stream =
modalities (text, image, and the id under Q1 `stream`), read = slots a row whose output is wanted,
query and key = stream x slots, token = any number of tokens, place = targets of a batch, row = items
that a batch needs, item_row = items + 1 (row 0 is padding), width = of an image or text vector,
d = hidden width, inner = experts x 4 d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.interface import (
    Batch,
    Catalogue,
    History,
    Losses,
    ModelConfig,
    Samples,
)
from models.layers import READINGS, Behaviors, DotProduct, Dropout, Reading, Reads, typing
from models.softmax import catalogue_cross_entropy


class Id(Enum):
    """Q1: E_i added to both tokens and to the candidate, a third stream of tokens, or no id."""

    add = "add"
    stream = "stream"
    none = "none"


class Mask(Enum):
    """Q2: a token sees what is not later than itself, or everything."""

    causal = "causal"
    bidirectional = "bidirectional"


class Gate(Enum):
    """Q3: all experts weighted by the router's softmax, or its largest one or two.

    The weights of the experts that stay are those of the full softmax: were a single weight scaled up
    to 1, its router could not learn.
    """

    dense = "dense"
    top1 = "top1"
    top2 = "top2"


class Readout(Enum):
    """Q4: how the streams' last tokens become the user vector."""

    attention = "attention"
    mean = "mean"
    concat = "concat"


class Score(Enum):
    """Q5: cosine over a temperature (as UniSRec, of the same group), or a plain product."""

    cosine = "cosine"
    dot = "dot"


class Places(Enum):
    """Q9: one target a prefix, or (the causal mask allows it) one at every slot of a window."""

    last = "last"
    all = "all"


@dataclass
class M3SRecConfig(ModelConfig):
    """Sizes and the readings Q1 to Q9, default first; none of them is known from the paper."""

    heads: int = 4
    """Of the attention; they divide `hidden`."""
    experts: int = 4
    """Of each mixture, at least 1."""
    expert_hidden: int = 0
    """Hidden width of an expert; 0 means 4 d."""
    specific_blocks: int = 1
    """S, blocks whose experts belong to a modality (L3)."""
    cross_blocks: int = 1
    """C, blocks whose experts serve all modalities (L4); S + C is at least 1."""
    dropout: float = 0.2
    """Of the tokens, of both sub-layers' outputs and inside the experts; not of attention weights."""
    temperature: float = 0.07
    """tau of L7 and of the pre-training."""
    id: Id = Id.add
    mask: Mask = Mask.causal
    gate: Gate = Gate.dense
    readout: Readout = Readout.attention
    score: Score = Score.cosine
    pretrain_weight: float = 0.1
    """Q6: of the four losses across modalities (0.1 or 1)."""
    pretrain_epochs: int = 10
    """Q7: epochs of the first stage; 0 leaves it out."""
    behaviors: Reads = Reads.merged
    """Q8."""
    places: Places = Places.last

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "pretrain_weight": (0.1, 1.0),
        "pretrain_epochs": (10, 0),
        "dropout": (0.2, 0.5),
    }


# Parts ------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """L3a: multi-head attention over the tokens of all streams together, scale 1/sqrt(d/heads)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    def forward(
        self,
        query: Float[Tensor, "batch query d"],
        memory: Float[Tensor, "batch key d"],
        seen: Bool[Tensor, "batch query key"],
    ) -> Float[Tensor, "batch query d"]:
        """What each query gathers from the keys that it sees; it must see one at least."""

        def split(x: Float[Tensor, "batch token d"]) -> Float[Tensor, "batch head token part"]:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        gathered = functional.scaled_dot_product_attention(
            split(self.query(query)),
            split(self.key(memory)),
            split(self.value(memory)),
            attn_mask=seen.unsqueeze(1),
        )
        out: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return out


class DenseGate(nn.Module):
    """Q3 `dense`: g = softmax over all experts, no noise."""

    def forward(self, logits: Float[Tensor, "*token expert"]) -> Float[Tensor, "*token expert"]:
        """One weight an expert."""
        return logits.softmax(-1)


class TopGate(nn.Module):
    """Q3 `top1`, `top2`: the same weights, all but the largest few set to zero."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, logits: Float[Tensor, "*token expert"]) -> Float[Tensor, "*token expert"]:
        """One weight an expert; of equal ones the first stays."""
        gates = logits.softmax(-1)
        order = gates.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(gates).scatter(-1, order[..., : self.count], 1.0)
        return gates * kept


GATES: dict[Gate, Callable[[], nn.Module]] = {
    Gate.dense: DenseGate,
    Gate.top1: lambda: TopGate(1),
    Gate.top2: lambda: TopGate(2),
}


class Mixture(nn.Module):
    """L3b: y = sum_k g_k Expert_k(x), g the gate of Linear(x), Expert = Linear GELU Drop Linear.

    All experts stand side by side in one matrix: expert k owns rows k 4d to (k + 1) 4d of `inner`
    and the same columns of `outer`. Weighting the hidden layers before the second map is the same.
    """

    def __init__(self, config: M3SRecConfig) -> None:
        super().__init__()
        d = config.hidden
        inner = config.experts * (config.expert_hidden or 4 * d)
        self.router = nn.Linear(d, config.experts)
        self.gate = GATES[config.gate]()
        self.inner = nn.Linear(d, inner)
        self.dropout = Dropout(config.dropout)
        self.outer = nn.Linear(inner, d, bias=False)
        self.outer_bias = nn.Parameter(torch.zeros(config.experts, d))

    def gates(self, x: Float[Tensor, "*token d"]) -> Float[Tensor, "*token expert"]:
        """The weight of each expert."""
        gates: Tensor = self.gate(self.router(x))
        return gates

    def forward(self, x: Float[Tensor, "*token d"]) -> Float[Tensor, "*token d"]:
        """Token by token."""
        gates = self.gates(x)
        hidden = self.dropout(functional.gelu(self.inner(x))).unflatten(-1, (gates.shape[-1], -1))
        weighted = (hidden * gates.unsqueeze(-1)).flatten(-2)
        out: Tensor = self.outer(weighted) + gates @ self.outer_bias
        return out


class Specific(nn.Module):
    """L3: a mixture a stream, its router and experts its own."""

    def __init__(self, config: M3SRecConfig, streams: int) -> None:
        super().__init__()
        self.mixtures = nn.ModuleList(Mixture(config) for _ in range(streams))

    def forward(
        self, x: Float[Tensor, "batch stream read d"]
    ) -> Float[Tensor, "batch stream read d"]:
        """Stream by stream."""
        parts = zip(self.mixtures, x.unbind(1), strict=True)
        return torch.stack([mixture(part) for mixture, part in parts], 1)


class Block(nn.Module):
    """L3 and L4: shared attention, then the experts, each x <- LN(x + Drop(sub-layer))."""

    def __init__(self, config: M3SRecConfig, experts: nn.Module) -> None:
        super().__init__()
        self.attention = Attention(config.hidden, config.heads)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.experts = experts
        self.experts_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = Dropout(config.dropout)

    def attend(
        self,
        x: Float[Tensor, "batch stream read d"],
        memory: Float[Tensor, "batch stream length d"],
        seen: Bool[Tensor, "batch query key"],
    ) -> Float[Tensor, "batch stream read d"]:
        """The tokens `x` after the first sub-layer."""
        gathered = self.attention(x.flatten(1, 2), memory.flatten(1, 2), seen)
        out: Tensor = self.attention_norm(x + self.dropout(gathered).view_as(x))
        return out

    def mix(self, x: Float[Tensor, "batch stream read d"]) -> Float[Tensor, "batch stream read d"]:
        """The same tokens after the second."""
        out: Tensor = self.experts_norm(x + self.dropout(self.experts(x)))
        return out

    def forward(
        self,
        x: Float[Tensor, "batch stream read d"],
        memory: Float[Tensor, "batch stream length d"],
        seen: Bool[Tensor, "batch query key"],
    ) -> Float[Tensor, "batch stream read d"]:
        """Both."""
        return self.mix(self.attend(x, memory, seen))


class AttentionReadout(nn.Module):
    """L5: u = sum_m alpha_m h_m, alpha = softmax over streams of v . tanh(Linear(h_m))."""

    def __init__(self, d: int, streams: int) -> None:  # noqa: ARG002
        super().__init__()
        self.linear = nn.Linear(d, d)
        self.direction = nn.Linear(d, 1, bias=False)

    def alpha(self, h: Float[Tensor, "place stream d"]) -> Float[Tensor, "place stream"]:
        """Weights of the streams."""
        alpha: Tensor = self.direction(self.linear(h).tanh()).squeeze(2).softmax(1)
        return alpha

    def forward(self, h: Float[Tensor, "place stream d"]) -> Float[Tensor, "place d"]:
        """User vectors."""
        return (self.alpha(h).unsqueeze(2) * h).sum(1)


class MeanReadout(nn.Module):
    """Q4 `mean`: u is the mean over streams."""

    def __init__(self, d: int, streams: int) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, h: Float[Tensor, "place stream d"]) -> Float[Tensor, "place d"]:
        """User vectors."""
        return h.mean(1)


class ConcatReadout(nn.Module):
    """Q4 `concat`: u = Linear of the streams side by side."""

    def __init__(self, d: int, streams: int) -> None:
        super().__init__()
        self.linear = nn.Linear(streams * d, d)

    def forward(self, h: Float[Tensor, "place stream d"]) -> Float[Tensor, "place d"]:
        """User vectors."""
        out: Tensor = self.linear(h.flatten(1))
        return out


READOUTS: dict[Readout, Callable[[int, int], nn.Module]] = {
    Readout.attention: AttentionReadout,
    Readout.mean: MeanReadout,
    Readout.concat: ConcatReadout,
}


class Tables(NamedTuple):
    """L1 of some items: z_text, z_image and E (None under Q1 `none`)."""

    text: Float[Tensor, "row d"]
    image: Float[Tensor, "row d"]
    id: Float[Tensor, "row d"] | None

    def added(self, items: Int[Tensor, "*slots"]) -> list[Float[Tensor, "*slots d"]]:
        """What the token streams look up under Q1 `add`: both vectors with the id in them."""
        text, image, *ids = self.apart(items)
        return [text + ids[0], image + ids[0]]

    def apart(self, items: Int[Tensor, "*slots"]) -> list[Float[Tensor, "*slots d"]]:
        """Under Q1 `stream` and `none`: each on its own."""
        return [functional.embedding(items, table) for table in self if table is not None]

    def candidates(self) -> Float[Tensor, "row d"]:
        """L6: c(i) = z_text(i) + z_image(i) + E_i."""
        together = self.text + self.image
        return together if self.id is None else together + self.id


class NoIds(nn.Module):
    """Q1 `none`."""

    def forward(self, rows: Int[Tensor, " row"]) -> None:  # noqa: ARG002
        """Nothing."""
        return


# Losses -----------------------------------------------------------------------------------------


def info_nce(
    query: Float[Tensor, "place d"],
    table: Float[Tensor, "row d"],
    target: Int[Tensor, " place"],
    temperature: float,
) -> Float[Tensor, " place"]:
    """-log of exp(cos(a_i, b_i)/tau) / sum_j exp(cos(a_i, b_j)/tau), j over i and other targets.

    b_j = table[target_j]: a column with another place's equal target is left out. So all columns are
    rows of the table, each as often as it is a target, m times, and the row's own once: with L the
    cross-entropy in which it stands m times too, the loss is log(1 + m (exp(L) - 1)). No matrix of
    places x places is held.
    """
    items, column, count = torch.unique(target, return_inverse=True, return_counts=True)
    count = count.to(query.dtype)
    columns = functional.normalize(table.index_select(0, items), dim=1)
    scaled = functional.normalize(query, dim=1) / temperature
    own = count[column]
    # cross-entropy with m copies of each column, of the sum of the own copies
    crowd = catalogue_cross_entropy(scaled, columns, count.log(), column, padding=True)
    return torch.log1p(own * torch.expm1(crowd))


Rows = Int[Tensor, " row"] | slice
"""Some items, or all of them (a slice, which copies no vector)."""


class Objective(ABC):
    """What a stage trains, and the items whose vectors it needs."""

    @abstractmethod
    def rows(
        self, items: Int[Tensor, "batch length"], target: Int[Tensor, " place"]
    ) -> tuple[Rows, Int[Tensor, "batch length"], Int[Tensor, " place"]]:
        """The items, and `items` and `target` as places among them."""

    @abstractmethod
    def __call__(
        self,
        user: Float[Tensor, "place d"],
        streams: Float[Tensor, "place stream d"],
        tables: Tables,
        target: Int[Tensor, " place"],
    ) -> Losses:
        """Terms, one number a place each."""


@dataclass(frozen=True)
class PreTraining(Objective):
    """Stage 1 of the paper (its abstract): the sequence's context against the target item.

    InfoNCE(u, c) + w [InfoNCE(u, z_text) + InfoNCE(u, z_image) + InfoNCE(h_text, z_image)
    + InfoNCE(h_image, z_text)], one direction.
    """

    temperature: float
    weight: float

    def rows(
        self, items: Int[Tensor, "batch length"], target: Int[Tensor, " place"]
    ) -> tuple[Rows, Int[Tensor, "batch length"], Int[Tensor, " place"]]:
        """The items of the batch."""
        everything = torch.cat([items.flatten(), target])
        rows, place = torch.unique(everything, return_inverse=True)
        return rows, place[: items.numel()].view_as(items), place[items.numel() :]

    def __call__(
        self,
        user: Float[Tensor, "place d"],
        streams: Float[Tensor, "place stream d"],
        tables: Tables,
        target: Int[Tensor, " place"],
    ) -> Losses:
        """The five terms, weighted."""
        text, image = streams[:, 0], streams[:, 1]
        sides = {
            "user_item": (1.0, user, tables.candidates()),
            "user_text": (self.weight, user, tables.text),
            "user_image": (self.weight, user, tables.image),
            "text_image": (self.weight, text, tables.image),
            "image_text": (self.weight, image, tables.text),
        }
        return {
            name: weight * info_nce(query, table, target, self.temperature)
            for name, (weight, query, table) in sides.items()
        }


@dataclass(frozen=True)
class NextItem(Objective):
    """Stage 2: cross-entropy of L7 over the real items."""

    scoring: Cosine | Dot

    def rows(
        self, items: Int[Tensor, "batch length"], target: Int[Tensor, " place"]
    ) -> tuple[Rows, Int[Tensor, "batch length"], Int[Tensor, " place"]]:
        """All items."""
        return slice(None), items, target

    def __call__(
        self,
        user: Float[Tensor, "place d"],
        streams: Float[Tensor, "place stream d"],  # noqa: ARG002
        tables: Tables,
        target: Int[Tensor, " place"],
    ) -> Losses:
        """One term."""
        query, table = self.scoring.user(user), self.scoring.item(tables.candidates())
        return {"next_item": catalogue_cross_entropy(query, table, None, target)}


@dataclass(frozen=True)
class Cosine:
    """L7: cos(u, c) / tau as a product of two vectors."""

    temperature: float

    def user(self, u: Float[Tensor, "place d"]) -> Float[Tensor, "place d"]:
        """The factor u / (|u| tau)."""
        return functional.normalize(u, dim=1) / self.temperature

    def item(self, c: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """The factor c / |c|."""
        return functional.normalize(c, dim=1)


@dataclass(frozen=True)
class Dot:
    """Q5 `dot`: u . c."""

    temperature: float

    def user(self, u: Float[Tensor, "place d"]) -> Float[Tensor, "place d"]:
        """As it is."""
        return u

    def item(self, c: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """As it is."""
        return c


# Where losses are read --------------------------------------------------------------------------


class Targets(NamedTuple):
    """The targets of a batch: row and slot (left-aligned) at which each is read, its events."""

    row: Int[Tensor, " place"]
    slot: Int[Tensor, " place"]
    item: Int[Tensor, " place"]
    weight: Float[Tensor, " place"]


class Place(ABC):
    """Q9: which slots are read."""

    samples: ClassVar[Samples]

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    @abstractmethod
    def read(self, history: History) -> Int[Tensor, "batch read"]:
        """The slots of a left-aligned history whose output is wanted."""

    @abstractmethod
    def targets(self, batch: Batch) -> Targets:
        """The targets that have something to be read from; `slot` counts among those read."""


class LastPlace(Place):
    """One target a row, read at its latest event."""

    samples = Samples.prefix

    def read(self, history: History) -> Int[Tensor, "batch read"]:
        """The slot of the latest event; slot 0, which is padding then, of a row without one."""
        return (history.real.sum(1, keepdim=True) - 1).clamp(min=0)

    def targets(self, batch: Batch) -> Targets:
        """Each row's."""
        row = torch.arange(len(batch.target), device=batch.target.device)
        return Targets(row, torch.zeros_like(row), batch.target, batch.weights[:, -1])


class AllPlaces(Place):
    """A target at every slot of a window that has one, in units of the events it stands for."""

    samples = Samples.window

    def read(self, history: History) -> Int[Tensor, "batch read"]:
        """Every slot."""
        return every_slot(history)

    def targets(self, batch: Batch) -> Targets:
        """Those with an event before them."""
        read = self.reading.history(batch.history)
        width = read.items.shape[1]
        empty = width - read.real.sum(1, keepdim=True)
        slots = self.reading.slots(batch.history, width) - empty
        row, place = ((batch.targets > 0) & (slots >= 0)).nonzero(as_tuple=True)
        weights = batch.weights[row, place]
        return Targets(row, slots[row, place], batch.targets[row, place], weights)


def every_slot(history: History) -> Int[Tensor, "batch length"]:
    """All slots of each row."""
    slots = torch.arange(history.items.shape[1], device=history.items.device)
    return slots.expand(len(history.items), -1)


def left_aligned(history: History) -> History:
    """The oldest event in slot 0, padding on the right."""
    length = history.items.shape[1]
    empty = length - history.real.sum(1, keepdim=True)
    slot = torch.arange(length, device=history.items.device) + empty
    inside, slot = slot < length, slot.clamp(max=length - 1)
    return replace(
        history,
        items=history.items.gather(1, slot) * inside,
        behaviours=history.behaviours.gather(1, slot) * inside,
    )


class Causal:
    """Q2 `causal`: events at the query's time or before it, of all streams."""

    def __call__(
        self, time: Int[Tensor, "batch read"], real: Bool[Tensor, "batch length"]
    ) -> Bool[Tensor, "batch read length"]:
        """True where a query's time may see a key's."""
        earlier = torch.arange(real.shape[1], device=time.device) <= time.unsqueeze(2)
        return real.unsqueeze(1) & earlier


class Bidirectional:
    """Q2 `bidirectional`: all events."""

    def __call__(
        self, time: Int[Tensor, "batch read"], real: Bool[Tensor, "batch length"]
    ) -> Bool[Tensor, "batch read length"]:
        """True at events."""
        return real.unsqueeze(1).expand(-1, time.shape[1], -1)


# The model --------------------------------------------------------------------------------------


class M3SRec(DotProduct):
    """RECONSTRUCTION: every row of this model is to be printed as "M3SRec (reconstruction)".

    Paper: Shuqing Bian, Xingyu Pan, Wayne Xin Zhao, Jinpeng Wang, Chuyuan Wang and Ji-Rong Wen,
    "Multi-modal Mixture of Experts Representation Learning for Sequential Recommendation", CIKM 2023,
    doi 10.1145/3583780.3614978. Its repository (github.com/RUCAIBox/M3SRec) holds a sentence that code
    will come. Known are the abstract (a mixture-of-experts fusion over the multi-modal sequence;
    pre-training that relates the sequence's context to the target item), a third party's
    re-implementation for another task (shared attention, experts of a modality, then shared ones) and
    a survey (two steps: pre-training, training). All else is ours, the readings Q1 to Q9 above all, so
    a difference from the published row says nothing about either side.

    x_{m,t} = Drop(LN(z_m(i_t) + E_{i_t} + position_t + type_m)); the blocks; u from the last tokens;
    score(i) = cos(u, z_text(i) + z_image(i) + E_i) / tau. Padding is no candidate anywhere (because
    of the maps' biases its vector is not zero). Stage 1 pre-trains by InfoNCE against the next item,
    stage 2 trains the cross-entropy over all items; all parameters train in both.

    Substitutes: 512-wide CLIP vectors for the paper's encoders, missing ones zeros; only this
    benchmark's training records are pre-trained on.

    Two other models bear the name: M3Rec (Mamba, ICASSP 2025), and a class M3SRec with Wasserstein
    distances.

    Raises:
        ValueError: `hidden` is no multiple of `heads`, there is no block or no expert, the gate keeps
            more experts than there are, or `places=all` would let a target be seen.
    """

    Config: ClassVar[type[ModelConfig]] = M3SRecConfig
    config: M3SRecConfig
    text: Tensor
    image: Tensor
    numbers: Tensor
    stage: Tensor

    def __init__(self, config: M3SRecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        check(config)
        d, streams = config.hidden, 3 if config.id is Id.stream else 2
        self.register_buffer("text", catalogue.text, persistent=False)
        self.register_buffer("image", catalogue.image, persistent=False)
        self.register_buffer("numbers", torch.arange(catalogue.items + 1), persistent=False)
        self.register_buffer("stage", torch.tensor(0 if config.pretrain_epochs else 1))

        self.text_map = nn.Linear(catalogue.text.shape[1], d)
        self.image_map = nn.Linear(catalogue.image.shape[1], d)
        self.items: nn.Module = NoIds()
        if config.id is not Id.none:
            self.items = nn.Embedding(catalogue.items + 1, d, padding_idx=0)
        self.look_up = Tables.added if config.id is Id.add else Tables.apart
        self.positions = nn.Embedding(catalogue.length, d)
        self.types = nn.Embedding(streams, d)
        self.typing = typing(config.behaviors, d)
        self.norm = nn.LayerNorm(d, eps=1e-12)
        self.dropout = Dropout(config.dropout)
        specific = [Block(config, Specific(config, streams)) for _ in range(config.specific_blocks)]
        cross = [Block(config, Mixture(config)) for _ in range(config.cross_blocks)]
        self.blocks = nn.ModuleList([*specific, *cross])
        self.readout = READOUTS[config.readout](d, streams)

        favors = config.behaviors is Reads.favor_only
        self.reading = READINGS[Behaviors.favor_only if favors else Behaviors.merged]()
        self.visible = Causal() if config.mask is Mask.causal else Bidirectional()
        self.scoring = (Cosine if config.score is Score.cosine else Dot)(config.temperature)
        self.place = (AllPlaces if config.places is Places.all else LastPlace)(self.reading)
        self.samples = self.place.samples  # type: ignore[misc]  # a setting decides it here
        self.objectives: list[Objective] = [
            PreTraining(config.temperature, config.pretrain_weight),
            NextItem(self.scoring),
        ]
        self.apply(start)

    @property
    def selects(self) -> bool:
        """Validation chooses among the epochs of the second stage only."""
        return bool(self.stage)

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """Pre-training ends after its epochs (Q7)."""
        return not self.stage and epochs >= self.config.pretrain_epochs

    def next_stage(self) -> bool:
        """From pre-training to training."""
        if self.stage:
            return False
        self.stage.fill_(1)
        return True

    def loss(self, batch: Batch) -> Losses:
        """Means over target events of the stage's terms."""
        objective = self.objectives[int(self.stage)]
        history, targets = self.arranged(batch.history), self.place.targets(batch)
        rows, items, target = objective.rows(history.items, targets.item)
        tables = self.tables(rows)
        x = self.tokens(history, tables, items)
        h = self.hidden(history, x, self.place.read(history))[targets.row, :, targets.slot]
        terms = objective(self.readout(h), h, tables, target)
        weight = targets.weight.to(h.dtype)
        events = weight.sum().clamp(min=1)
        return {name: (weight * term).sum() / events for name, term in terms.items()}

    def arranged(self, history: History) -> History:
        """What is read of a history, left-aligned, at most L slots."""
        history = self.reading.history(history)
        return left_aligned(history.padded(min(history.items.shape[1], self.catalogue.length)))

    def tables(self, rows: Rows) -> Tables:
        """L1: the vectors of these items."""
        kind = self.text_map.weight.dtype
        text = self.text_map(self.text[rows].to(kind))
        image = self.image_map(self.image[rows].to(kind))
        return Tables(text, image, self.items(self.numbers[rows]))

    def all_tables(self) -> Tables:
        """L1: the vectors of all items; once an evaluation."""
        return self.once("tables", lambda: self.tables(slice(None)))

    def tokens(
        self, history: History, tables: Tables, items: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch stream length d"]:
        """L2: the tokens, stream by stream; `items` are the history's places in the tables."""
        x = torch.stack(self.look_up(tables, items), 1)
        x = x + self.types.weight[:, None, :] + self.positions.weight[: items.shape[1]]
        tokens: Tensor = self.dropout(self.norm(self.typing(x, history.behaviours.unsqueeze(1))))
        return tokens

    def seen(
        self, history: History, time: Int[Tensor, "batch read"]
    ) -> Bool[Tensor, "batch query key"]:
        """True where a token at these times sees a key: as the mask says, and itself."""
        streams = torch.eye(self.types.num_embeddings, dtype=torch.bool, device=time.device)
        now = every_slot(history).unsqueeze(1) == time.unsqueeze(2)
        itself = now[:, None, :, None] & streams[:, None, :, None]
        others = self.visible(time, history.real)[:, None, :, None]
        return (others | itself).flatten(3, 4).flatten(1, 2)

    def hidden(
        self,
        history: History,
        x: Float[Tensor, "batch stream length d"],
        read: Int[Tensor, "batch read"],
    ) -> Float[Tensor, "batch stream read d"]:
        """L3 and L4: these slots after all blocks; of the last block nothing else is computed."""
        seen = self.seen(history, every_slot(history))
        for block in self.blocks[:-1]:
            x = block(x, x, seen)
        rows = torch.arange(len(read), device=read.device).unsqueeze(1)
        wanted = x.transpose(1, 2)[rows, read].transpose(1, 2)
        last: Tensor = self.blocks[-1](wanted, x, self.seen(history, read))
        return last

    def user(self, history: History) -> Float[Tensor, "batch d"]:
        """L5: u."""
        history, tables = self.arranged(history), self.all_tables()
        x = self.tokens(history, tables, history.items)
        latest = LastPlace(self.reading).read(history)
        u: Tensor = self.readout(self.hidden(history, x, latest).squeeze(2))
        return u

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """L5, with L7's factor of the user in it."""
        return self.scoring.user(self.user(history))

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """L6, with L7's factor of the item in it."""
        return self.once("candidates", lambda: self.scoring.item(self.all_tables().candidates()))


def check(config: M3SRecConfig) -> None:
    """Refuse what cannot be built.

    Raises:
        ValueError: See `M3SRec`.
    """
    if config.heads < 1 or config.hidden % config.heads:
        raise ValueError(f"hidden {config.hidden} is no multiple of heads {config.heads}")
    if min(config.specific_blocks, config.cross_blocks) < 0 or not (
        config.specific_blocks + config.cross_blocks
    ):
        raise ValueError(
            f"specific_blocks {config.specific_blocks} and cross_blocks {config.cross_blocks}: "
            "at least one block is needed"
        )
    needed = {Gate.dense: 1, Gate.top1: 1, Gate.top2: 2}[config.gate]
    if config.experts < needed:
        raise ValueError(f"experts is {config.experts}; gate {config.gate.name} needs {needed}")
    if config.places is Places.all and config.mask is Mask.bidirectional:
        raise ValueError("places=all needs mask=causal: its targets stand in the window")


def start(module: nn.Module) -> None:
    """N(0, 0.02^2) for matrices and tables, biases 0, padding rows 0; norms keep torch's 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())
