"""MMMLP (Liang et al., WWW 2023): an MLP-Mixer a modality, no attention, no mask.

Facts from the authors' code, github.com/Applied-Machine-Learning-Lab/MMMLP at commit d5dc757; M1 to
M5 are its open readings, default = what that code computes. L1 to L7 number the layers in order:

L1 item table, L2 to L4 one branch each of id, text and image, L5 fusion, L6 user vector, L7 score.

Here every frozen vector passes one linear map without bias (width of the vectors to d), since the
authors' vectors already had width d; image and text of a candidate are not used.

Axes: batch, length = slots of a left-padded history, slot = the L = `Catalogue.length` slots that
are mixed, item_row = items + 1 (row 0 is padding), distinct = different items of a batch, width = of
an image or text vector, d = hidden width H, fused = 3 d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.interface import Batch, Behaviour, Catalogue, History, Losses, ModelConfig
from models.layers import DotProduct, Dropout, Reads, fixed_padding_cross_entropy, typing


class PadRow(Enum):
    """M1: the padding vector is one more random vector, never trained, or zero."""

    random = "random"
    zero = "zero"


class ModalityPasses(Enum):
    """M2: mixer passes of text and image; the authors' loop of four feeds each the same input."""

    one = 1
    four = 4


class Fusion(Enum):
    """M3: a linear map a slot, or a mixer pass over all slots before it."""

    linear = "linear"
    mixer = "mixer"


class Align(Enum):
    """M5: the oldest event in the first slot, or the latest in the last."""

    left = "left"
    right = "right"


class Objective(Enum):
    """The loss: cross-entropy over the whole table, or a pair with one drawn negative."""

    cross_entropy = "cross_entropy"
    bpr = "bpr"


@dataclass
class MMMLPConfig(ModelConfig):
    """Readings M1 to M5, default first, and sizes; the authors' run file where it says."""

    hidden: int = 128
    """Width H, fixed in the authors' code."""
    learning_rate: float = 1e-4
    """Of Adam; the authors' run file."""
    id_passes: int = 2
    """K, passes of the id branch, which share one set of weights; ours (grid 1, 2, 4)."""
    dropout: float = 0.5
    """After each map of a mixer; ours (grid 0.1, 0.3, 0.5)."""
    expansion: int = 4
    """Hidden width of both mixing MLPs, in units of what they mix."""
    pad_row: PadRow = PadRow.random
    modality_passes: ModalityPasses = ModalityPasses.one
    fusion: Fusion = Fusion.linear
    behaviors: Reads = Reads.merged
    """M4."""
    align: Align = Align.left
    objective: Objective = Objective.cross_entropy

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "id_passes": (1, 2, 4),
        "dropout": (0.1, 0.3, 0.5),
    }


class MixerPass(nn.Module):
    """Pre-norm mixing along slots, then along channels; padding is mixed in like items.

    x <- x + T(LN(x)), then x <- x + C(LN'(x)); T, C: Linear, GELU (erf), Dropout, Linear, Dropout.
    """

    def __init__(self, slots: int, d: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(d)
        # These two keep torch's default start, uniform(+-1/sqrt(fan_in)): they are convolutions of
        # width 1 in the authors' code, which its initialisation passes over.
        self.token_in = nn.Linear(slots, expansion * slots)
        self.token_out = nn.Linear(expansion * slots, slots)
        self.channel_norm = nn.LayerNorm(d)
        self.channel_in = _small_linear(d, expansion * d)
        self.channel_out = _small_linear(expansion * d, d)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch slot d"]:
        """All slots."""
        mixed = self.token_out(self._token_hidden(x)).transpose(1, 2)
        return self._mix_channels(x + self.dropout(mixed))

    def read(
        self, x: Float[Tensor, "batch slot d"], slot: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d"]:
        """One slot a row: what `forward` has there, without the outputs that nobody reads."""
        weight = self.token_out.weight.index_select(0, slot).unsqueeze(2)
        bias = self.token_out.bias.index_select(0, slot).unsqueeze(1)
        mixed = torch.bmm(self._token_hidden(x), weight).squeeze(2) + bias
        return self._mix_channels(_at(x, slot) + self.dropout(mixed))

    def _token_hidden(self, x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch d hidden"]:
        """Hidden layer of T, the same for every channel."""
        inner = self.token_in(self.token_norm(x).transpose(1, 2))
        hidden: Tensor = self.dropout(functional.gelu(inner))
        return hidden

    def _mix_channels(self, x: Float[Tensor, "*places d"]) -> Float[Tensor, "*places d"]:
        """The second half of a pass, place by place."""
        hidden = self.dropout(functional.gelu(self.channel_in(self.channel_norm(x))))
        mixed: Tensor = x + self.dropout(self.channel_out(hidden))
        return mixed


class Branch(nn.Module):
    """L2 to L4: a LayerNorm of the input (eps 1e-12), then passes that share one set of weights."""

    def __init__(self, slots: int, d: int, passes: int, expansion: int, dropout: float) -> None:
        super().__init__()
        if passes < 1:
            raise ValueError(f"{passes} mixer passes; at least 1 is needed")
        self.norm = nn.LayerNorm(d, eps=1e-12)
        self.mixer = MixerPass(slots, d, expansion, dropout)
        self.passes = passes

    def forward(self, x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch slot d"]:
        """All slots."""
        out: Tensor = self.mixer(self._all_but_last(x))
        return out

    def read(
        self, x: Float[Tensor, "batch slot d"], slot: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d"]:
        """One slot a row."""
        return self.mixer.read(self._all_but_last(x), slot)

    def _all_but_last(self, x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch slot d"]:
        x = self.norm(x)
        for _ in range(self.passes - 1):
            x = self.mixer(x)
        return x


class LinearFusion(nn.Module):
    """L5: f = Linear(LN([id; text; image])), slot by slot; only the slot that is read is computed."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3 * d, eps=1e-12)
        self.linear = _small_linear(3 * d, d)

    def forward(self, x: Float[Tensor, "*places fused"]) -> Float[Tensor, "*places d"]:
        """Any places of the three branches side by side."""
        fused: Tensor = self.linear(self.norm(x))
        return fused

    def read(
        self,
        branches: Sequence[Branch],
        inputs: Sequence[Float[Tensor, "batch slot d"]],
        slot: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch d"]:
        """Only the slot that is read."""
        outputs = [branch.read(x, slot) for branch, x in zip(branches, inputs, strict=True)]
        return self.forward(torch.cat(outputs, dim=1))


class MixerFusion(LinearFusion):
    """L5 with the "Fusion Mixer" of the abstract: f = Linear(MixerPass(LN([id; text; image])))."""

    def __init__(self, d: int, slots: int, expansion: int, dropout: float) -> None:
        super().__init__(d)
        self.mixer = MixerPass(slots, 3 * d, expansion, dropout)

    def forward(self, x: Float[Tensor, "batch slot fused"]) -> Float[Tensor, "batch slot d"]:
        """All slots of the three branches side by side."""
        fused: Tensor = self.linear(self.mixer(self.norm(x)))
        return fused

    def read(
        self,
        branches: Sequence[Branch],
        inputs: Sequence[Float[Tensor, "batch slot d"]],
        slot: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch d"]:
        """The mixer needs all slots of the branches; of its own output one a row is made."""
        outputs = [branch(x) for branch, x in zip(branches, inputs, strict=True)]
        fused: Tensor = self.linear(self.mixer.read(self.norm(torch.cat(outputs, dim=2)), slot))
        return fused


class Arrangement(ABC):
    """Which events are mixed, and in which slots they stand."""

    def __init__(self, slots: int) -> None:
        self.slots = slots

    @abstractmethod
    def __call__(self, history: History) -> tuple[History, Int[Tensor, " batch"]]:
        """The history on exactly `slots` slots, and the slot of its latest event.

        A history without events is all padding, and read where its first event would stand.
        """


class RightAligned(Arrangement):
    """The latest event in the last slot, padding on the left."""

    def __call__(self, history: History) -> tuple[History, Int[Tensor, " batch"]]:
        """Re-packed, the latest `slots` events kept."""
        history = history.keep(history.real).padded(self.slots)
        return history, torch.full_like(history.user, self.slots - 1)


class LeftAligned(RightAligned):
    """The oldest kept event in slot 0, padding on the right: a slot's mixing weights are its own."""

    def __call__(self, history: History) -> tuple[History, Int[Tensor, " batch"]]:
        """Each row shifted to the left by its number of padded slots."""
        history, _ = super().__call__(history)
        count = history.real.sum(1)
        slot = torch.arange(self.slots, device=count.device) + (self.slots - count).unsqueeze(1)
        inside = slot < self.slots
        slot = slot.clamp(max=self.slots - 1)
        left = replace(
            history,
            items=history.items.gather(1, slot) * inside,
            behaviours=history.behaviours.gather(1, slot) * inside,
        )
        return left, (count - 1).clamp(min=0)


class FavorsAlone(Arrangement):
    """Favors, in the slots of another arrangement."""

    def __init__(self, inner: Arrangement) -> None:
        super().__init__(inner.slots)
        self.inner = inner

    def __call__(self, history: History) -> tuple[History, Int[Tensor, " batch"]]:
        """The favors re-packed."""
        return self.inner(history.only(Behaviour.FAVOR))


class FrozenVectors(nn.Module):
    """Input of a modality branch: a linear map without bias, so that zeros stay zeros.

    With a bias, a zero row would meet the norm's eps of 1e-12, which multiplies its gradient by 1e6.
    """

    vectors: Tensor

    def __init__(self, vectors: Float[Tensor, "item_row width"], d: int) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)
        self.map = _small_linear(vectors.shape[1], d, bias=False)

    def forward(
        self, items: Int[Tensor, " distinct"], place: Int[Tensor, "batch slot"]
    ) -> Float[Tensor, "batch slot d"]:
        """Each different item of the batch is mapped once: `items[place]` are the slots' items."""
        rows = self.vectors.index_select(0, items).to(self.map.weight.dtype)
        mapped: Tensor = self.map(rows)
        return mapped.index_select(0, place.flatten()).view(*place.shape, -1)


class CrossEntropy:
    """Mean -log softmax over all rows; the padding row is in the denominator and is not trained."""

    name: ClassVar[str] = "cross_entropy"

    def __call__(
        self, user: Float[Tensor, "batch d"], table: Float[Tensor, "item_row d"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Of each row's target."""
        return fixed_padding_cross_entropy(user, table, batch.target).mean()


class BPR:
    """Mean -log(1e-10 + sigmoid(s+ - s-)) with one other item a row, drawn uniformly."""

    name: ClassVar[str] = "bpr"

    def __call__(
        self, user: Float[Tensor, "batch d"], table: Float[Tensor, "item_row d"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Of each row's target and its negative."""
        generator = batch.generator
        drawn = torch.rand(len(user), generator=generator, device=generator.device).to(user.device)
        other = (drawn * (len(table) - 2)).long().clamp(max=len(table) - 3) + 1
        return self.of_pair(user, table, batch.target, other + (other >= batch.target))

    @staticmethod
    def of_pair(
        user: Float[Tensor, "batch d"],
        table: Float[Tensor, "item_row d"],
        positive: Int[Tensor, " batch"],
        negative: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Of given items."""
        rows = functional.embedding(torch.stack([positive, negative]), table)
        better, worse = (rows * user).sum(2)
        loss: Tensor = -(1e-10 + (better - worse).sigmoid()).log().mean()
        return loss


class MMMLP(DotProduct):
    """L1 to L7: u = LN_id(f[latest]), score(i) = u . E[i] with the tied table and no bias (L6, L7)."""

    Config = MMMLPConfig

    def __init__(self, config: MMMLPConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        d, slots = config.hidden, catalogue.length
        mixing = (config.expansion, config.dropout)

        self.items = nn.Embedding(catalogue.items + 1, d, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)  # row 0 too
        if config.pad_row is PadRow.zero:
            nn.init.zeros_(self.items.weight[0].detach())
        self.typing = typing(config.behaviors, d)
        self.text_vectors = FrozenVectors(catalogue.text, d)
        self.image_vectors = FrozenVectors(catalogue.image, d)

        passes = config.modality_passes.value
        self.id_branch = Branch(slots, d, config.id_passes, *mixing)
        self.text_branch = Branch(slots, d, passes, *mixing)
        self.image_branch = Branch(slots, d, passes, *mixing)
        self.fusion = LinearFusion(d)
        if config.fusion is Fusion.mixer:
            self.fusion = MixerFusion(d, slots, *mixing)

        aligned = LeftAligned(slots) if config.align is Align.left else RightAligned(slots)
        self.arrange: Arrangement = aligned
        if config.behaviors is Reads.favor_only:
            self.arrange = FavorsAlone(aligned)
        objectives: dict[Objective, type[CrossEntropy | BPR]] = {
            Objective.cross_entropy: CrossEntropy,
            Objective.bpr: BPR,
        }
        self.objective = objectives[config.objective]()

    def loss(self, batch: Batch) -> Losses:
        """One term; no auxiliary loss, no L2."""
        user = self.encode(batch.history)
        return {self.objective.name: self.objective(user, self.items.weight, batch)}

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """L1 to L6. The norm of the user vector is the id branch's input norm, used again."""
        arranged, latest = self.arrange(history)
        branches = [self.id_branch, self.text_branch, self.image_branch]
        fused = self.fusion.read(branches, self.inputs(arranged), latest)
        user: Tensor = self.id_branch.norm(fused)
        return user

    def inputs(self, arranged: History) -> list[Float[Tensor, "batch slot d"]]:
        """What the id, text and image branches are fed (L1 and the maps)."""
        items, place = torch.unique(arranged.items, return_inverse=True)
        return [
            self.typing(self.items(arranged.items), arranged.behaviours),
            self.text_vectors(items, place),
            self.image_vectors(items, place),
        ]

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """The id table alone."""
        return self.items.weight


def _small_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map that starts at N(0, 0.02^2) with bias 0."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=0.02)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def _at(x: Float[Tensor, "batch slot d"], slot: Int[Tensor, " batch"]) -> Float[Tensor, "batch d"]:
    """One slot a row."""
    row = torch.arange(len(slot), device=slot.device) * x.shape[1]
    return x.flatten(0, 1).index_select(0, row + slot)
