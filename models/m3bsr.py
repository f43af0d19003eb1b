"""M3BSR (SIGIR 2025): multi-modal multi-behaviour sequential recommendation with diffusion.

Input layer (Eq. 3-5), CDMD (models/diffusion.py), MEIE (models/experts.py), prediction and loss
(Eq. 23-25). Where the paper is silent or contradicts itself, an option R1-R23 says which reading is
taken, default first; each stands beside the part it changes, with the reason why it is open.

Axes: batch, slot = slots of clicks, key = slots of favors, 3 = image, text, id (in this order),
row = slots of all users one after another, item_row = items + 1, d = hidden width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.diffusion import (
    BEHAVIOR_SETS,
    MODALITY_SETS,
    BehaviorCondition,
    Denoised,
    DenoisingConfig,
    DiffusionLoss,
    MultilayerTwin,
    Noise,
    Passed,
    StackedLinear,
    Task,
    diffusion_stage,
    xavier,
)
from models.experts import (
    DISENTANGLEMENTS,
    DisentangleLoss,
    InterestConfig,
    Interests,
    MeanInterest,
    MultiExpert,
    UniqueExperts,
)
from models.interface import Batch, Behaviour, Catalogue, History, Losses, ModelConfig
from models.layers import DotProduct
from models.softmax import catalogue_cross_entropy
from models.views import ItemMeans, frequent_items

ID_WIDTH = 16
"""Width of an id field's table (section 5.1.3)."""


class InputNorm(Enum):
    """R16. No norm is mentioned.

    Without one the schedule's noise, of unit scale, drowns a projected unit-length vector (0.04 to
    0.06 a coordinate).
    """

    layernorm = "layernorm"
    none = "none"


class IdMlp(Enum):
    """R17. Eq. 3 says "MLP"; its depth is not given."""

    two_layer = "two_layer"
    linear = "linear"


@dataclass
class InputConfig:
    """The input layer (section 4.1)."""

    norm: InputNorm = InputNorm.layernorm
    id_mlp: IdMlp = IdMlp.two_layer


class OutputLayer(Enum):
    """R22. Eq. 23 has a weight matrix of its own; the authors' extension ties it to the items."""

    free = "free"
    tied = "tied"
    """W_y = E U^T with the item table E and U in R^{d x 16}; a bias of its own."""


@dataclass
class OutputConfig:
    """The prediction layer (Eq. 23)."""

    layer: OutputLayer = OutputLayer.free


@dataclass
class LossConfig:
    """Weights of Eq. 25 and the temperature of Eq. 20, the best of section 5.4."""

    lambda_c: float = 0.05
    lambda_m: float = 0.02
    lambda_b: float = 0.02
    tau: float = 0.3


class ModalityDenoiser(Enum):
    """What stands where CDMD-M stands."""

    diffusion = "diffusion"
    none = "none"
    mlp = "mlp"
    """A two-layer MLP of the same number of parameters (section 5.6)."""


class BehaviorDenoiser(Enum):
    """What stands where CDMD-B stands."""

    diffusion = "diffusion"
    none = "none"


@dataclass
class PartsConfig:
    """Parts that the ablations of Figure 3 take out (models/variants.py)."""

    modality_denoiser: ModalityDenoiser = ModalityDenoiser.diffusion
    behavior_denoiser: BehaviorDenoiser = BehaviorDenoiser.diffusion
    experts: bool = True
    shared_expert: bool = True


@dataclass
class M3BSRConfig(DenoisingConfig, InterestConfig):
    """All settings; the defaults are the set `paper`. R1-R23 are explained beside their options."""

    input: InputConfig = field(default_factory=InputConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "heads": (1, 2, 4),
        "expert.layers": (1, 2),
        "loss.lambda_m": (0.02, 0.2),
    }


def repaired(config: M3BSRConfig) -> M3BSRConfig:
    """The set `repaired`: R6 `noise` and R9 `separate`, what the prose says the parts are for."""
    config = copy.deepcopy(config)
    config.diffusion.loss = DiffusionLoss.noise
    config.disent.loss = DisentangleLoss.separate
    return config


# -------------------------------------------------------------------------------- input (Eq. 3-5)


class IdEmbedding(nn.Module):
    """Eq. 3: one table a field (item, its fields, user), concatenated, then an MLP."""

    def __init__(self, config: M3BSRConfig, catalogue: Catalogue) -> None:
        super().__init__()
        sizes = [int(values.max()) + 1 for values in catalogue.fields.values()]
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(rows, ID_WIDTH).normal_(std=0.02))
            for rows in (catalogue.items + 1, *sizes, catalogue.users)
        )
        fields = torch.stack(list(catalogue.fields.values())) if sizes else torch.zeros(0, 1).long()
        self.register_buffer("fields", fields, persistent=False)
        self.fields: Int[Tensor, "field item_row"]
        widths = {IdMlp.two_layer: 2, IdMlp.linear: 1}[config.input.id_mlp] * [config.hidden]
        inputs = [ID_WIDTH * len(self.tables), *widths]
        self.mlp = nn.ModuleList(StackedLinear(1, *sizes) for sizes in pairwise(inputs))

    def forward(
        self, items: Int[Tensor, " row"], user: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d"]:
        """One vector an event."""
        ids = [items, *(values[items] for values in self.fields), user]
        parts = [functional.embedding(i, table) for i, table in zip(ids, self.tables, strict=True)]
        x: Tensor = self.mlp[0](torch.cat(parts, 1).unsqueeze(0))
        for layer in self.mlp[1:]:
            x = layer(x.relu())
        return x[0]


class FrozenEmbedding(nn.Module):
    """Eq. 4, 5: an item's frozen vector, projected; a learned vector instead where it is missing."""

    def __init__(
        self,
        width: int,
        vectors: Float[Tensor, "item_row frozen"],
        present: Bool[Tensor, " item_row"],
    ) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("present", present, persistent=False)
        self.vectors: Tensor
        self.present: Tensor
        self.project = StackedLinear(1, vectors.shape[1], width)
        self.missing = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def forward(self, items: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """One vector an item."""
        projected = self.project(self.vectors[items].to(self.missing).unsqueeze(0))[0]
        return torch.where(self.present[items].unsqueeze(1), projected, self.missing)


@dataclass(frozen=True)
class Features:
    """One behaviour's sequences."""

    x: Float[Tensor, "3 batch slot d"]
    real: Bool[Tensor, "batch slot"]
    attend: Bool[Tensor, "batch slot"]
    """Real slots, or the last one of a user without events of this behaviour."""
    share: Float[Tensor, "batch slot"]
    """1 / real slots of the batch on real slots, else 0: the mean of Eq. 10 (R19)."""
    users: int
    """Of the whole batch, of which these features may be a portion."""

    def portions(self, order: Int[Tensor, " batch"], count: int) -> list[Features]:
        """Users in this order, cut into portions, each trimmed to its longest history."""
        parts = [part[order].chunk(count) for part in (self.real, self.attend, self.share)]
        cut = zip(self.x.index_select(1, order).chunk(count, 1), *parts, strict=True)
        found = []
        for x, real, attend, share in cut:
            slots = int(attend.sum(1).max())
            trimmed = (real[:, -slots:], attend[:, -slots:], share[:, -slots:])
            found.append(Features(x[:, :, -slots:], *trimmed, self.users))
        return found


class InputLayer(nn.Module):
    """Ids and frozen vectors to three features a slot (section 4.1)."""

    def __init__(self, config: M3BSRConfig, catalogue: Catalogue) -> None:
        super().__init__()
        width = config.hidden
        self.image = FrozenEmbedding(width, catalogue.image, catalogue.image_present)
        self.text = FrozenEmbedding(width, catalogue.text, catalogue.text_present)
        self.id = IdEmbedding(config, catalogue)
        norm = {InputNorm.layernorm: nn.LayerNorm, InputNorm.none: nn.Identity}[config.input.norm]
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.empty = nn.Parameter(torch.empty(2, 3, width).normal_(std=0.02))
        """[click, favor][image, text, id]: what a user without such events shows in the last slot."""

    def forward(self, click: History, favor: History) -> tuple[Features, Features]:
        """Features of clicks and of favors.

        Image and text depend on the item alone: they are projected and normed once for each
        distinct item of the batch, padding among them.
        """
        sides = (click, favor)
        items = torch.cat([side.items.flatten() for side in sides])
        users = torch.cat([side.user.repeat_interleave(side.items.shape[1]) for side in sides])
        distinct, place = torch.unique(items, return_inverse=True)
        norm_image, norm_text, norm_id = self.norms
        image = functional.embedding(place, norm_image(self.image(distinct)))
        text = functional.embedding(place, norm_text(self.text(distinct)))
        rows = (image, text, norm_id(self.id(items, users)))
        cut = click.items.numel()
        return (
            self._features(click, [part[:cut] for part in rows], self.empty[0]),
            self._features(favor, [part[cut:] for part in rows], self.empty[1]),
        )

    def weights(self) -> dict[str, Tensor]:
        """What `item_views` shows of the input layer, float32."""
        found = {}
        for name, part, norm in zip(
            ("image", "text"), (self.image, self.text), self.norms[:2], strict=True
        ):
            found[f"{name}_project_weight"] = part.project.weight[0].detach().float()
            found[f"{name}_project_bias"] = part.project.bias[0].detach().float()
            for end, parameter in norm.named_parameters():  # none under R16 `none`
                found[f"{name}_norm_{end}"] = parameter.detach().float()
        return found

    @staticmethod
    def _features(side: History, rows: list[Tensor], empty: Float[Tensor, "3 d"]) -> Features:
        """One behaviour's rows in slots, with the stand-in of empty histories."""
        x = torch.stack(rows).view(3, *side.items.shape, -1)
        stand_in = torch.zeros_like(side.real)
        stand_in[:, -1] = ~side.real.any(1)
        x = torch.where(stand_in.unsqueeze(2), empty[:, None, None], x)
        share = side.real.to(x) / side.real.sum().clamp(min=1)
        return Features(x, side.real, side.real | stand_in, share, len(side.real))


# ----------------------------------------------------------------------------- output (Eq. 23)


class FreeOutput(nn.Module):
    """R22 `free`: a row and a bias an item."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(rows))

    def query(self, user: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """What an item's row is multiplied with."""
        return user

    def rows(self, item_table: Float[Tensor, "item_row id"]) -> Float[Tensor, "item_row d"]:
        """One row an item; the id table is not read."""
        del item_table
        return self.weight


class TiedOutput(nn.Module):
    """R22 `tied`: (E U^T) y is E (y U), so the 16-wide item table serves as it is."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.project = nn.Parameter(torch.empty(width, ID_WIDTH))
        xavier(self.project.data)
        self.bias = nn.Parameter(torch.zeros(rows))

    def query(self, user: Float[Tensor, "batch d"]) -> Float[Tensor, "batch id"]:
        """What an item's row is multiplied with."""
        return user @ self.project

    def rows(self, item_table: Float[Tensor, "item_row id"]) -> Float[Tensor, "item_row id"]:
        """The id table."""
        return item_table


# ------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class PassNoise:
    """The recorded randomness of one training pass."""

    click: Noise | None
    """CDMD-M on clicks: image, text."""
    favor: Noise | None
    """CDMD-M on favors: image, text."""
    behavior: Noise | None
    """CDMD-B: image, text, id."""

    def of(self, users: Int[Tensor, " some"], clicks: Features, favors: Features) -> PassNoise:
        """The noise of some users, aligned to the end of their sequences."""
        slots = (clicks.x.shape[2], favors.x.shape[2], clicks.x.shape[2])
        parts = (self.click, self.favor, self.behavior)
        return PassNoise(
            *(part and part.of(users, n) for part, n in zip(parts, slots, strict=True))
        )


PORTION = 1 << 17
"""Values of one feature of one portion of users: about 80 users of 26 events at d = 64. Measured:
with portions that stay near the cache a batch of 1,024 takes a third less time."""


def portions(clicks: Features, favors: Features) -> list[tuple[Tensor, Features, Features]]:
    """Users of like lengths together, trimmed: their numbers, clicks and favors (on a GPU all).

    Nothing that follows the input layer knows of other users, so this changes time and memory only.
    """
    batch, device = len(clicks.attend), clicks.x.device
    values = clicks.x[0].numel() + favors.x[0].numel()
    count = math.ceil(values / PORTION) if device.type == "cpu" else 1
    if min(count, batch) <= 1:
        return [(torch.arange(batch, device=device), clicks, favors)]
    of_clicks, of_favors = clicks.attend.sum(1), favors.attend.sum(1)
    order = torch.argsort(of_clicks * (1 + favors.attend.shape[1]) + of_favors, stable=True)
    cut = (order.chunk(count), clicks.portions(order, count), favors.portions(order, count))
    return list(zip(*cut, strict=True))


@dataclass(frozen=True)
class TrainingPass:
    """Everything that a training pass computes before the prediction layer."""

    click: Features
    favor: Features
    modality: tuple[Denoised, Denoised]
    behavior: Denoised
    denoised: tuple[Tensor, Tensor]
    """Clicks and favors as the experts read them, [3, batch, slot, d] each."""
    interests: Interests


class M3BSR(DotProduct):
    """The model of Cui, Lu, Tong, Li and Zhao, SIGIR 2025, doi 10.1145/3726302.3730044.

    No official code is public. Raises ValueError for sizes that do not fit (heads, steps, layers, tau).
    """

    Config: ClassVar[type[ModelConfig]] = M3BSRConfig

    def __init__(self, config: M3BSRConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        check(config)
        length = catalogue.length
        self.input = InputLayer(config, catalogue)
        steps_m = config.diffusion.steps_m or config.diffusion.steps
        steps_b = config.diffusion.steps_b or config.diffusion.steps
        self.modality = modality_stage(config, steps_m, length)
        self.behavior = behavior_stage(config, steps_b, length)
        self.condition = {
            BehaviorCondition.same_modality: slice(None),
            BehaviorCondition.image: slice(0, 1),
        }[config.behavior.condition]
        layer = MultiExpert if config.parts.shared_expert else UniqueExperts
        self.experts = (
            layer(length, config) if config.parts.experts else MeanInterest(length, config)
        )
        self.disentangle = DISENTANGLEMENTS[config.disent.loss]
        output = FreeOutput if config.output.layer is OutputLayer.free else TiedOutput
        self.output: FreeOutput | TiedOutput = output(config.hidden, catalogue.items + 1)
        self.tau = config.loss.tau
        self.run = partial(checkpoint, use_reentrant=False) if config.chain.recompute else at_once
        self.weights = {
            "contrast": config.loss.lambda_c,
            "modality": config.loss.lambda_m,
            "behavior": config.loss.lambda_b,
        }

    # ------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> Losses:
        """Eq. 24, 25: main, and where their part exists contrast, modality and behavior."""
        click, favor = self.split(batch.history)
        noise = self.draw(click, favor, batch.generator)
        parts = portions(*self.input(click, favor))
        done = [
            self.run(self.portion, clicks, favors, noise.of(users, clicks, favors))
            for users, clicks, favors in parts
        ]
        target = batch.target[torch.cat([users for users, _, _ in parts])]
        query = self.output.query(torch.cat([user for user, _ in done]))
        rows, bias = self.item_vectors(), self.item_bias()
        losses = {"main": catalogue_cross_entropy(query, rows, bias, target).mean()}
        for name in done[0][1]:
            if self.weights[name] > 0:
                sums = torch.stack([terms[name] for _, terms in done])
                losses[name] = self.weights[name] * sums.sum()
        return losses

    def portion(
        self, clicks: Features, favors: Features, noise: PassNoise
    ) -> tuple[Float[Tensor, "batch d"], Losses]:
        """Vectors y of some users and what they add to the batch's losses."""
        training = self.walk(clicks, favors, noise)
        return training.interests.user, self.unweighted(training)

    def unweighted(self, training: TrainingPass) -> Losses:
        """What a pass adds to L_contrast, L_m and L_b, as far as their parts exist."""
        losses: Losses = {}
        if training.interests.vectors is not None:
            each = self.disentangle(training.interests.vectors, self.tau)
            losses["contrast"] = each.sum() / training.click.users
        modality = [part.loss for part in training.modality if part.loss is not None]
        if modality:
            losses["modality"] = torch.stack(modality).sum()
        if training.behavior.loss is not None:
            losses["behavior"] = training.behavior.loss
        return losses

    def draw(self, click: History, favor: History, generator: torch.Generator) -> PassNoise:
        """The randomness of a pass; both halves of CDMD-M share one sampled step a user."""
        like = self.input.empty
        width = like.shape[-1]
        of_click = self.modality.draw(like.new_empty(2, *click.items.shape, width), generator)
        of_favor = self.modality.draw(like.new_empty(2, *favor.items.shape, width), generator)
        of_behavior = self.behavior.draw(like.new_empty(3, *click.items.shape, width), generator)
        if of_click is not None and of_favor is not None:
            of_favor = Noise(of_favor.draws, of_click.step)
        return PassNoise(of_click, of_favor, of_behavior)

    def training_pass(self, click: History, favor: History, noise: PassNoise) -> TrainingPass:
        """A whole batch at once: what `loss` does in portions."""
        clicks, favors = self.input(click, favor)
        return self.walk(clicks, favors, noise)

    def walk(self, clicks: Features, favors: Features, noise: PassNoise) -> TrainingPass:
        """Both CDMD stages on noised features, then the experts."""
        of_click = self.modality(self.modality_task(clicks, 0), noise.click)
        of_favor = self.modality(self.modality_task(favors, 1), noise.favor)
        guide = torch.cat([of_favor.features, favors.x[2:]])
        task = self.behavior_task(of_click.features, clicks, guide, favors)
        behavior = self.behavior(task, noise.behavior)
        interests = self.experts(behavior.features, guide, clicks.attend, favors.attend)
        return TrainingPass(
            clicks, favors, (of_click, of_favor), behavior, (behavior.features, guide), interests
        )

    # ----------------------------------------------------------------------------- evaluation

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """User vectors y (R22 tied: y U), with CDMD from the start that R4 chooses."""
        parts = portions(*self.input(*self.split(history)))
        found = [self.interest(clicks, favors) for _, clicks, favors in parts]
        order = torch.cat([users for users, _, _ in parts])
        return self.output.query(torch.cat(found)[order.argsort()])

    def interest(self, clicks: Features, favors: Features) -> Float[Tensor, "batch d"]:
        """Vectors y of some users when nothing is trained."""
        _, guide, denoised = self.denoised(clicks, favors)
        interests: Interests = self.experts(denoised, guide, clicks.attend, favors.attend)
        return interests.user

    def denoised(
        self, clicks: Features, favors: Features
    ) -> tuple[
        Float[Tensor, "2 batch slot d"],
        Float[Tensor, "3 batch key d"],
        Float[Tensor, "3 batch slot d"],
    ]:
        """Clicks after CDMD-M (image, text), favors after it, and clicks after CDMD-B."""
        of_click = self.modality.evaluate(self.modality_task(clicks, 0))
        of_favor = self.modality.evaluate(self.modality_task(favors, 1))
        guide = torch.cat([of_favor, favors.x[2:]])
        task = self.behavior_task(of_click, clicks, guide, favors)
        return of_click, guide, self.behavior.evaluate(task)

    def item_views(self, histories: Iterable[History]) -> dict[str, Tensor]:
        """What the most frequent items look like on their way through the model, for Figure 5.

        An item's view is the mean over its events in the histories: its clicks and favors, or its
        clicks alone after CDMD-B (NaN for an item without a click).

        Returns:
            Arrays, float32 but `item`:
            item: int64 [item], at most 2,000 (models/views.py), the most frequent first, ties by id.
            image_raw, text_raw, id_raw: [item, d], features as the input layer makes them.
            image_denoised, text_denoised: [item, d], after CDMD-M or what stands in its place.
            image_click, text_click, id_click: [item, d], clicks after CDMD-B too.
            image_project_weight [d, frozen], image_project_bias [d], image_norm_weight [d],
            image_norm_bias [d], and the same of text: what makes LN(W v + b) of any frozen vector v;
            without the norm's under R16 `none`.
        """
        raw = ("image_raw", "text_raw", "id_raw")
        denoised = ("image_denoised", "text_denoised")
        behaved = ("image_click", "text_click", "id_click")
        kept, rows = list(histories), self.catalogue.items + 1
        items = frequent_items(kept, rows)
        means = ItemMeans((*raw, *denoised, *behaved), items, rows, self.input.empty[0, 0])
        for history in kept:
            click, favor = self.split(history)
            for users, clicks, favors in portions(*self.input(click, favor)):
                of_click = click.items[users, -clicks.x.shape[2] :]
                of_favor = favor.items[users, -favors.x.shape[2] :]
                after_m, guide, after_b = self.denoised(clicks, favors)
                means.add(raw, of_click, clicks.x)
                means.add(raw, of_favor, favors.x)
                means.add(denoised, of_click, after_m)
                means.add(denoised, of_favor, guide[:2])
                means.add(behaved, of_click, after_b)
        return {"item": items, **means.all(), **self.input.weights()}

    def modality_task(self, side: Features, group: int) -> Task:
        """CDMD-M: image and text under the id of the same slots; id passes (section 4.2.1)."""
        return Task(side.x[:2], side.x[2:], side.attend, side.share, group)

    def behavior_task(
        self, denoised: Tensor, clicks: Features, guide: Tensor, favors: Features
    ) -> Task:
        """CDMD-B: image, text and id of clicks under those of favors (section 4.2.2)."""
        source = torch.cat([denoised, clicks.x[2:]])
        return Task(source, guide[self.condition], favors.attend, clicks.share)

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """W_y, or the item table under R22 tied."""
        return self.output.rows(self.input.id.tables[0])

    def item_bias(self) -> Float[Tensor, " item_row"]:
        """The bias b of Eq. 23."""
        return self.output.bias

    @staticmethod
    def split(history: History) -> tuple[History, History]:
        """Clicks alone and favors alone."""
        return history.only(Behaviour.CLICK), history.only(Behaviour.FAVOR)


def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it: `chain.recompute` off."""
    return function(*arguments)


def modality_stage(config: M3BSRConfig, steps: int, length: int) -> Passed:
    """CDMD-M or what stands in its place; evaluation noise stream 0."""
    sets = MODALITY_SETS[config.denoiser.sharing]
    if config.parts.modality_denoiser is ModalityDenoiser.diffusion:
        return diffusion_stage(config, sets, steps, length, 0)
    if config.parts.modality_denoiser is ModalityDenoiser.mlp:
        return MultilayerTwin(config, sets, steps)
    return Passed()


def behavior_stage(config: M3BSRConfig, steps: int, length: int) -> Passed:
    """CDMD-B or what stands in its place; evaluation noise stream 1."""
    if config.parts.behavior_denoiser is BehaviorDenoiser.diffusion:
        return diffusion_stage(config, BEHAVIOR_SETS[config.denoiser.sharing], steps, length, 1)
    return Passed()


def check(config: M3BSRConfig) -> None:
    """Raise ValueError for sizes that do not fit."""
    if config.heads < 1 or config.hidden % config.heads:
        legal = [heads for heads in (1, 2, 4, 8, 16) if config.hidden % heads == 0]
        raise ValueError(
            f"model.heads={config.heads} does not divide model.hidden={config.hidden}; "
            f"choose one of {legal}"
        )
    if config.hidden % 2:
        raise ValueError(f"model.hidden={config.hidden} is odd; the time embedding needs pairs")
    at_least_one = {
        "model.diffusion.steps": config.diffusion.steps,
        "model.expert.layers": config.expert.layers,
        "model.expert.ffn_factor": config.expert.ffn_factor,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}={value} is too small; choose 1 or more")
    not_negative: dict[str, float] = {
        "model.diffusion.steps_m": config.diffusion.steps_m,
        "model.diffusion.steps_b": config.diffusion.steps_b,
        "model.loss.lambda_c": config.loss.lambda_c,
        "model.loss.lambda_m": config.loss.lambda_m,
        "model.loss.lambda_b": config.loss.lambda_b,
    }
    for name, number in not_negative.items():
        if number < 0:
            raise ValueError(f"{name}={number} is negative; choose 0 or more")
    if config.loss.tau <= 0:
        raise ValueError(f"model.loss.tau={config.loss.tau} is no temperature; choose one above 0")
    if not 0 <= config.expert.dropout < 1:
        raise ValueError(
            f"model.expert.dropout={config.expert.dropout}; choose from 0 up to below 1"
        )
