"""Conditional diffusion denoising, CDMD (section 4.2; Eq. 1, 2, 6-13).

Axes: batch, slot = slots of the denoised sequence, key = slots of the condition, feature = features
denoised side by side, denoiser = sets of weights, step = T, path = T - 1 (xbar_{T-1} .. xbar_1),
draw = 1 or T (R13), head_key = heads x keys, d = hidden width.

The noise predictor has no residual and no feed-forward part, so everything that does not change
along the chain is folded once a stage: with k = c W_k and v = c W_v of one head, the scores
(u W_q) k^T are x (W_q k^T) plus a constant of the step, and the head's share of the output is
attention (v W_o). A step of the chain is then two batched products and a softmax. Scores are kept
as [keys, slots]: a softmax over short rows is ten times slower when the row is the last axis.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.interface import ModelConfig
from models.precision import in_float32


class NoiseSchedule(Enum):
    """R1. The paper gives its range [0.001, 0.1] to alpha, not to beta.

    Then 1/sqrt(A_T) is 3e7 and the chain explodes. As a range of beta it is the usual schedule.
    """

    beta = "beta"
    """beta_t rises from 0.001 to 0.1."""
    alpha = "alpha"
    """alpha_t falls from 0.1 to 0.001; not trainable."""


class ScheduleMean(Enum):
    """R2. Eq. 1 and 6 print the mean (1 - beta) h, Eq. 7 and 11 print sqrt(alpha) h."""

    sqrt_alpha = "sqrt_alpha"
    one_minus_beta = "one_minus_beta"
    """x_t = a_t x_{t-1} + sqrt(beta_t) e; the reverse step stays as printed."""


@dataclass
class ScheduleConfig:
    """How much noise each step adds."""

    noise: NoiseSchedule = NoiseSchedule.beta
    mean: ScheduleMean = ScheduleMean.sqrt_alpha


class DenoiserBlock(Enum):
    """R14. Eq. 9 names cross-attention and nothing else.

    An extension by one of the authors (HEM3BSR, d8d32b4) wraps it in norms and a feed-forward part.
    """

    attention = "attention"
    block = "block"
    """n = LN(u), a = LN(n + attention(n, c)), eps = Linear(4d->d) relu Linear(d->4d) a."""


class Sharing(Enum):
    """R15. Eq. 9 and 12 carry no index that says which features share a predictor."""

    per_modality = "per_modality"
    """CDMD-M: image and text, both behaviours alike; CDMD-B: image, text, id."""
    per_stage = "per_stage"
    per_feature = "per_feature"


@dataclass
class DenoiserConfig:
    """The noise predictor."""

    time_embedding: bool = True
    """R3. Eq. 9 does not read t; the authors' extension adds a sinusoidal embedding of it."""
    block: DenoiserBlock = DenoiserBlock.attention
    sharing: Sharing = Sharing.per_modality


class EvalStart(Enum):
    """R4. Where the reverse chain starts when nothing is trained is not said."""

    clean = "clean"
    """From the features as they are."""
    noised = "noised"
    """From features with noise of `sampling.seed`, the same for all users."""
    bypass = "bypass"
    """Both CDMD are skipped, as in the authors' extension."""


@dataclass
class SamplingConfig:
    """What evaluation does."""

    eval_start: EvalStart = EvalStart.clean
    seed: int = 0
    """Of the noise of `eval_start=noised`."""


class BehaviorCondition(Enum):
    """R5. "h^c = h_fa^im" is printed; the prose speaks of the features of favor behaviour."""

    same_modality = "same_modality"
    image = "image"


@dataclass
class BehaviorConfig:
    """CDMD-B."""

    condition: BehaviorCondition = BehaviorCondition.same_modality


class DiffusionLoss(Enum):
    """R6. Eq. 10 and 13 print a distance along the chain; the work they cite trains on noise."""

    printed = "printed"
    """sum over t = 1..T-1 of E(x_t - xbar_t)."""
    noise = "noise"
    """E(e - eps(x_t, c, t)), one t a user and stage."""
    reconstruction = "reconstruction"
    """E(x_0 - xbar_0)."""


class Reduction(Enum):
    """R19. Eq. 10 prints a squared norm (a sum); the authors' extension takes a mean."""

    mean = "mean"
    sum = "sum"
    """Over d; over slots it stays a mean."""


@dataclass
class DiffusionConfig:
    """Steps and losses of both stages."""

    steps: int = 10
    """R11. T: 10 in section 5.4, 15 in section 5.1.3."""
    steps_m: int = 0
    """T of CDMD-M alone (Figure 4); 0 is `steps`."""
    steps_b: int = 0
    """T of CDMD-B alone (Figure 4); 0 is `steps`."""
    loss: DiffusionLoss = DiffusionLoss.printed
    reduction: Reduction = Reduction.mean


class ReverseInput(Enum):
    """R12. Eq. 8 starts each step from the noisy tilde h_t, Eq. 12 from tilde h_{t+1}.

    A chain feeds each step with the one before.
    """

    chained = "chained"
    forward = "forward"
    """Each step starts from the forward process's x_t; the output is step 1 of x_1."""


@dataclass
class ReverseConfig:
    """The reverse process."""

    input: ReverseInput = ReverseInput.chained


class ForwardNoise(Enum):
    """R13. Eq. 7 is called a closed form and prints one step of a chain."""

    closed = "closed"
    """One draw serves every t."""
    chain = "chain"
    """A draw a step."""


@dataclass
class ForwardConfig:
    """The forward process."""

    noise: ForwardNoise = ForwardNoise.closed


class ChainGradient(Enum):
    """R20. Whether the gradient runs through all T predictions is not said."""

    full = "full"
    straight = "straight"
    """The predictor reads the chain's state without passing a gradient back to it."""


@dataclass
class ChainConfig:
    """The unrolled chain."""

    gradient: ChainGradient = ChainGradient.full
    recompute: bool = False
    """Forget what a portion of users computed and compute it again when going back. For a large
    batch x hidden: the memory of one portion, a third more time, the same numbers."""


class DenoiserOut(Enum):
    """R23. No initialisation is printed."""

    zero = "zero"
    """The predictor's last Linear starts at 0: at first the chain predicts no noise."""
    xavier = "xavier"


@dataclass
class InitConfig:
    """Initialisation."""

    denoiser_out: DenoiserOut = DenoiserOut.zero


@dataclass
class DenoisingConfig(ModelConfig):
    """What both CDMD stages read."""

    heads: int = 4
    """Attention heads, of every attention (the paper has no number; its extension has 4)."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    behavior: BehaviorConfig = field(default_factory=BehaviorConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    reverse: ReverseConfig = field(default_factory=ReverseConfig)
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    init: InitConfig = field(default_factory=InitConfig)


# ---------------------------------------------------------------------------------------- layers


def xavier(weight: Float[Tensor, "... outputs inputs"]) -> None:
    """Fill each matrix of a stack as Xavier-uniform does (a width of 0 is legal)."""
    bound = math.sqrt(6 / (weight.shape[-1] + weight.shape[-2]))
    nn.init.uniform_(weight, -bound, bound)


class StackedLinear(nn.Module):
    """Several Linear layers of one size, applied side by side as one batched product."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, stack: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(stack, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(stack, outputs))
        xavier(self.weight.data)

    def forward(
        self, x: Float[Tensor, "stack rows inputs"], sets: Int[Tensor, " stack"] | None = None
    ) -> Float[Tensor, "stack rows outputs"]:
        """Apply x W^T + b with matrix i for row i of the stack, or matrix sets[i]."""
        weight, bias = self.picked(sets)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    def picked(self, sets: Int[Tensor, " stack"] | None) -> tuple[Tensor, Tensor]:
        """Weights [stack, outputs, inputs] and biases [stack, outputs] of some sets; None is all."""
        if sets is None:
            return self.weight, self.bias
        return self.weight.index_select(0, sets), self.bias.index_select(0, sets)


class StackedNorm(nn.Module):
    """Several LayerNorms over d (eps 1e-5), one a row of the stack."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, stack: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(stack, width))
        self.bias = nn.Parameter(torch.zeros(stack, width))

    def forward(
        self, x: Float[Tensor, "stack ... d"], sets: Int[Tensor, " stack"] | None = None
    ) -> Float[Tensor, "stack ... d"]:
        """Normalised, with the affine part of each row of the stack (or of `sets`)."""
        order = range(len(self.weight)) if sets is None else sets.tolist()
        rows = [
            functional.layer_norm(part, part.shape[-1:], self.weight[i], self.bias[i])
            for part, i in zip(x.unbind(0), order, strict=True)
        ]
        return torch.stack(rows)


def key_mask(attend: Bool[Tensor, "batch key"], like: Tensor) -> Float[Tensor, "batch key"]:
    """0 where a key is attended, minus infinity elsewhere: added to scores."""
    mask = torch.zeros(attend.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~attend, -math.inf)


# -------------------------------------------------------------------- schedule, forward (Eq. 6, 7)


class Schedule:
    """Numbers of the T steps, as lists of floats in which index t - 1 is step t.

    alpha, product (A_t), gamma = (1 - a_t) / sqrt(1 - A_t) of Eq. 8, and the forward process
    x_t = mean_t x_0 + deviation_t noise_t with `mix` (float64, [step, step]): noise_t is the mix of
    the steps' own draws that has unit variance.
    """

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        ramp = torch.linspace(0.001, 0.1, steps, dtype=torch.float64)
        falling = torch.linspace(0.1, 0.001, steps, dtype=torch.float64)
        alpha = {NoiseSchedule.beta: 1 - ramp, NoiseSchedule.alpha: falling}[config.noise]
        carry = {ScheduleMean.sqrt_alpha: alpha.sqrt(), ScheduleMean.one_minus_beta: alpha}[
            config.mean
        ]
        beta = 1 - alpha
        product = alpha.cumprod(0)
        mix = torch.zeros(steps, steps, dtype=torch.float64)
        row = torch.zeros(steps, dtype=torch.float64)
        for t in range(steps):
            row = row * carry[t]
            row[t] = beta[t].sqrt()
            mix[t] = row
        deviation = mix.square().sum(1).sqrt()
        self.steps = steps
        self.alpha: list[float] = alpha.tolist()
        self.product: list[float] = product.tolist()
        self.gamma: list[float] = (beta / (1 - product).sqrt()).tolist()
        self.mean: list[float] = carry.cumprod(0).tolist()
        self.deviation: list[float] = deviation.tolist()
        self.mix = mix / deviation[:, None]


@dataclass(frozen=True)
class Noise:
    """The random part of one stage: standard normal draws and, for R6 `noise`, one step a user."""

    draws: Float[Tensor, "draw feature batch slot d"]
    step: Int[Tensor, " batch"]
    """In 1..T."""

    def of(self, users: Int[Tensor, " some"], slots: int) -> Noise:
        """The noise of some users' last slots."""
        return Noise(self.draws[:, :, users, -slots:], self.step[users])


@dataclass(frozen=True)
class Levels:
    """x_t of Eq. 7 at every t: mean_t x_0 + deviation_t noise_t."""

    x0: Float[Tensor, "feature batch slot d"]
    noise: Float[Tensor, "draw feature batch slot d"]
    """Of unit variance at each step; one row serves all steps if there is but one."""
    mean: list[float]
    deviation: list[float]

    def noise_of(self, t: int) -> Tensor:
        """noise_t."""
        return self.noise[min(t, len(self.noise)) - 1]

    def at(self, t: int) -> Float[Tensor, "feature batch slot d"]:
        """x_t."""
        return torch.add(self.x0 * self.mean[t - 1], self.noise_of(t), alpha=self.deviation[t - 1])

    def noise_of_users(self, step: Int[Tensor, " batch"]) -> Float[Tensor, "feature batch slot d"]:
        """noise_t with each user's own t."""
        if len(self.noise) == 1:
            return self.noise[0]
        user = torch.arange(len(step), device=step.device)
        mine: Tensor = self.noise[step - 1, :, user]
        return mine.transpose(0, 1)

    def of_users(self, step: Int[Tensor, " batch"]) -> Float[Tensor, "feature batch slot d"]:
        """x_t with each user's own t."""
        scale = torch.tensor([self.mean, self.deviation], dtype=self.x0.dtype, device=step.device)
        mean, deviation = scale[:, step - 1].reshape(2, 1, -1, 1, 1).unbind(0)
        return mean * self.x0 + deviation * self.noise_of_users(step)


def closed_levels(schedule: Schedule, x0: Tensor, draws: Tensor) -> Levels:
    """R13 `closed`: one draw serves every t."""
    return Levels(x0, draws, schedule.mean, schedule.deviation)


def chain_levels(schedule: Schedule, x0: Tensor, draws: Tensor) -> Levels:
    """R13 `chain`: the draws of steps 1..t add up."""
    mix = schedule.mix.to(draws)
    noise = (mix @ draws.flatten(1)).view_as(draws)
    return Levels(x0, noise, schedule.mean, schedule.deviation)


def clean_levels(schedule: Schedule, x0: Tensor) -> Levels:
    """No noise at any t (R4 `clean`)."""
    still = x0.new_zeros(()).expand(1, *x0.shape)
    return Levels(x0, still, [1.0] * schedule.steps, [0.0] * schedule.steps)


# ------------------------------------------------------------------------ noise predictor (Eq. 9)


def attend_keys(scores: Tensor, heads: int, out: Tensor | None = None) -> Tensor:
    """Softmax over the keys of each head; scores [rows, head_key, slot]."""
    by_head = (len(scores), heads, -1, scores.shape[2])
    into = None if out is None else out.view(by_head)
    return torch.softmax(scores.view(by_head), 2, out=into).view_as(scores)


class Folded(ABC):
    """A noise predictor that has read its condition."""

    @abstractmethod
    def noise_of_users(self, x: Tensor, step: Tensor) -> Tensor:
        """eps(x, c, t) with each user's own t; x [feature, batch, slot, d], step [batch]."""

    @abstractmethod
    def noise_at(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """eps(x_i, c, t_i) of several t at once; x [step, feature, batch, slot, d]."""

    @abstractmethod
    def chain(self, start: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """xbar_{T-1} .. xbar_1 [path, feature, batch, slot, d] and xbar_0 of the chain of Eq. 8."""


class FoldedAttention(Folded):
    """R14 `attention`: two matrices a user and feature, and one bias a step (see the file's head)."""

    def __init__(
        self,
        keys: Float[Tensor, "feature batch head_key d"],
        values: Float[Tensor, "feature batch head_key d"],
        bias: Float[Tensor, "step feature batch head_key"],
        heads: int,
        chain: ChainConfig,
    ) -> None:
        self.keys, self.values, self.bias = keys.flatten(0, 1), values.flatten(0, 1), bias
        self.heads = heads
        self.straight = chain.gradient is ChainGradient.straight

    def noise_of_users(self, x: Tensor, step: Tensor) -> Tensor:
        """See `Folded`."""
        user = torch.arange(len(step), device=step.device)
        bias = self.bias[step - 1, :, user].transpose(0, 1).flatten(0, 1).unsqueeze(2)
        scores = torch.baddbmm(bias, self.keys, x.flatten(0, 1).mT)
        return torch.bmm(attend_keys(scores, self.heads).mT, self.values).view_as(x)

    def noise_at(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """See `Folded`; all steps of a user are rows of one product."""
        several, features, batch, slots, width = x.shape
        rows = x.permute(1, 2, 0, 3, 4).reshape(features * batch, several * slots, width)
        bias = self.bias[[t - 1 for t in steps]].permute(1, 2, 3, 0).flatten(0, 1).unsqueeze(3)
        scores = torch.bmm(self.keys, rows.mT)
        scores = (scores.view(*scores.shape[:2], several, slots) + bias).flatten(2)
        noise = torch.bmm(attend_keys(scores, self.heads).mT, self.values)
        return noise.view(features, batch, several, slots, width).permute(2, 0, 1, 3, 4)

    def chain(self, start: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """See `Folded`."""
        path, end = AttentionChain.apply(  # type: ignore[no-untyped-call]
            start.flatten(0, 1), self.keys, self.values, self.bias.flatten(1, 2), schedule,
            self.heads, self.straight,
        )  # fmt: skip
        return path.view(-1, *start.shape), end.view(start.shape)


class AttentionChain(torch.autograd.Function):
    """All T reverse steps (Eq. 8, 12) of the folded predictor, with a backward pass of its own.

    Unrolled by autograd the chain would hold a gradient of the folded keys and values for each step
    and add them up one by one, and would scale states in passes of their own. Rows (a user and
    feature) know nothing of each other, so a part of them walks all T steps while its keys and
    values are in the cache.
    """

    @staticmethod
    @in_float32
    def forward(
        ctx: Any, start: Tensor, keys: Tensor, values: Tensor, bias: Tensor, schedule: Schedule,
        heads: int, straight: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """xbar_{T-1} .. xbar_1 and xbar_0; start [rows, slot, d], bias [step, rows, head_key]."""
        steps, slots = schedule.steps, start.shape[1]
        path = start.new_empty(steps - 1, *start.shape)
        end = torch.empty_like(start)
        kept = start.new_empty(steps, *keys.shape[:2], slots)
        for part in parts_of(keys):
            state, key, value = start[part], keys[part], values[part]
            for t in range(steps, 0, -1):
                scores = torch.baddbmm(bias[t - 1, part].unsqueeze(2), key, state.mT)
                attention = attend_keys(scores, heads, kept[t - 1, part])
                into = path[steps - t, part] if t > 1 else end[part]
                root = 1 / math.sqrt(schedule.alpha[t - 1])
                gain = -schedule.gamma[t - 1] * root
                torch.baddbmm(state, attention.mT, value, beta=root, alpha=gain, out=into)
                state = into
        ctx.save_for_backward(start, path, keys, values, bias, kept)
        ctx.schedule, ctx.heads, ctx.straight = schedule, heads, straight
        ctx.set_materialize_grads(False)
        return path, end

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(
        ctx: Any, d_path: Tensor | None, d_end: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of start, keys, values and bias."""
        start, path, keys, values, bias, kept = ctx.saved_tensors
        schedule: Schedule = ctx.schedule
        steps = schedule.steps
        d_end = torch.zeros_like(start) if d_end is None else d_end.contiguous()
        d_start = torch.empty_like(start)
        d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
        d_bias = torch.empty_like(bias)
        for part in parts_of(keys):
            key, value = keys[part], values[part]
            d_state = d_end[part]
            by_head = (len(key), ctx.heads, -1, start.shape[1])
            for t in range(1, steps + 1):
                state = path[steps - t - 1, part] if t < steps else start[part]
                attention = kept[t - 1, part]
                root = 1 / math.sqrt(schedule.alpha[t - 1])
                gain = -schedule.gamma[t - 1] * root
                d_values[part].baddbmm_(attention, d_state, alpha=gain)
                d_scores = torch.bmm(value, d_state.mT).mul_(attention)
                total = d_scores.view(by_head).sum(2, keepdim=True)
                d_scores.view(by_head).addcmul_(attention.view(by_head), total, value=-1)
                d_scores.mul_(gain)
                d_keys[part].baddbmm_(d_scores, state)
                torch.sum(d_scores, 2, out=d_bias[t - 1, part])
                d_next = d_state * root
                if t < steps and d_path is not None:
                    d_next.add_(d_path[steps - t - 1, part])
                if not ctx.straight:
                    d_next.baddbmm_(d_scores.mT, key)
                d_state = d_next
            d_start[part] = d_state
        return d_start, d_keys, d_values, d_bias, None, None, None


def parts_of(keys: Tensor) -> list[slice]:
    """Rows in equal portions whose folded keys fill about a megabyte (one portion on a GPU)."""
    portions = math.ceil(keys.numel() / CACHED) if keys.device.type == "cpu" else 1
    each = max(1, math.ceil(len(keys) / max(1, portions)))
    return [slice(low, low + each) for low in range(0, len(keys), each)]


CACHED = 1 << 18
"""Values of the folded keys in one portion: 1 MiB in float32."""


class FoldedBlock(Folded):
    """R14 `block`: norms and a feed-forward part around the folded attention."""

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        time: Float[Tensor, "step feature d"],
        chain: ChainConfig,
    ) -> None:
        self.read = read
        self.time = time
        self.straight = chain.gradient is ChainGradient.straight

    def noise_of_users(self, x: Tensor, step: Tensor) -> Tensor:
        """See `Folded`."""
        return self.read(x + self.time[step - 1].transpose(0, 1).unsqueeze(2))

    def noise_at(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """See `Folded`."""
        several, features, batch, slots, width = x.shape
        time = self.time[[t - 1 for t in steps]]
        u = (x + time[:, :, None, None]).permute(1, 2, 0, 3, 4).flatten(2, 3)
        noise = self.read(u).view(features, batch, several, slots, width)
        return noise.permute(2, 0, 1, 3, 4)

    def chain(self, start: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """See `Folded`."""
        states = []
        state = start
        for t in range(schedule.steps, 0, -1):
            source = state.detach() if self.straight else state
            noise = self.read(source + self.time[t - 1, :, None, None])
            state = (state - schedule.gamma[t - 1] * noise) / math.sqrt(schedule.alpha[t - 1])
            states.append(state)
        path = torch.stack(states[:-1]) if len(states) > 1 else start.new_empty(0, *start.shape)
        return path, states[-1]


class Timeless(nn.Module):
    """R3 false: the predictor does not know the step; one row serves all."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.register_buffer("still", torch.zeros(1, 1, width), persistent=False)
        self.still: Tensor
        self.steps = steps

    def forward(self, sets: Int[Tensor, " feature"]) -> Float[Tensor, "step feature d"]:
        """Zeros."""
        return self.still.expand(self.steps, len(sets), -1)


class TimeEmbedding(nn.Module):
    """R3 true: W_t s(t) + b_t with s(t) = [sin(t w_k); cos(t w_k)], w_k = 10000^(-2k/d)."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, denoisers: int, width: int, steps: int) -> None:
        super().__init__()
        self.project = StackedLinear(denoisers, width, width)
        rate = 10000 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
        angle = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] * rate
        self.waves = torch.cat([angle.sin(), angle.cos()], 1)
        """s(t) in float64, whatever the module's type: cast when used."""

    def forward(self, sets: Int[Tensor, " feature"]) -> Float[Tensor, "step feature d"]:
        """One row a step and feature."""
        weight, bias = self.project.picked(sets)
        return (self.waves.to(weight) @ weight.mT + bias.unsqueeze(1)).transpose(0, 1)


class ConditionalAttention(nn.Module):
    """Four Linear layers a set of weights (Eq. 9), and the folding of those that read the condition."""

    def __init__(self, denoisers: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = StackedLinear(denoisers, width, width)
        self.key = StackedLinear(denoisers, width, width)
        self.value = StackedLinear(denoisers, width, width)
        self.out = StackedLinear(denoisers, width, width)

    def fold(
        self,
        condition: Float[Tensor, "feature batch key d"],
        mask: Float[Tensor, "batch key"],
        time: Float[Tensor, "step feature d"],
        sets: Int[Tensor, " feature"],
    ) -> tuple[
        Float[Tensor, "feature batch head_key d"],
        Float[Tensor, "feature batch head_key d"],
        Float[Tensor, "step feature batch head_key"],
    ]:
        """W_q k^T, v W_o and the constants of the scores (time, query bias, mask), head by head."""
        features, batch, keys, width = condition.shape
        heads, deep = self.heads, width // self.heads
        rows = condition.flatten(1, 2)

        def split(x: Tensor) -> Tensor:
            """[feature, batch x key, d] to [feature x head, batch x key, d / head]."""
            return x.view(features, -1, heads, deep).transpose(1, 2).flatten(0, 1)

        def join(x: Tensor) -> Tensor:
            """[feature x head, batch x key, n] to [feature, batch, head x key, n]."""
            blocks = x.view(features, heads, batch, keys, -1)
            return blocks.transpose(1, 2).reshape(features, batch, heads * keys, -1)

        query, query_bias = self.query.picked(sets)
        query, query_bias = query / math.sqrt(deep), query_bias / math.sqrt(deep)
        out, out_bias = self.out.picked(sets)
        key = split(self.key(rows, sets))
        value = split(self.value(rows, sets))
        by_head = query.view(features * heads, deep, width)
        folded_keys = join(torch.bmm(key, by_head))
        # attention weights of a head sum to 1, so each head may carry its share of the bias
        share = (out_bias / heads).repeat_interleave(heads, 0).unsqueeze(1)
        back = out.mT.reshape(features * heads, deep, width)
        folded_values = join(torch.baddbmm(share, value, back))
        steady = torch.baddbmm(query_bias.unsqueeze(1), time.transpose(0, 1), query.mT)
        steady = steady.view(features, -1, heads, deep).transpose(1, 2).flatten(0, 1)
        bias = join(torch.bmm(key, steady.mT)).movedim(3, 0)
        return folded_keys, folded_values, bias + mask.repeat(1, heads)


class AttentionDenoiser(nn.Module):
    """R14 `attention`: Eq. 9 and nothing else (no residual, norm, feed-forward part or dropout)."""

    def __init__(self, denoisers: int, width: int, steps: int, config: DenoisingConfig) -> None:
        super().__init__()
        self.time = time_part(denoisers, width, steps, config)
        self.attention = ConditionalAttention(denoisers, width, config.heads)
        self.heads, self.chain = config.heads, config.chain
        self.last: StackedLinear = self.attention.out

    def forward(
        self,
        condition: Float[Tensor, "feature batch key d"],
        attend: Bool[Tensor, "batch key"],
        sets: Int[Tensor, " feature"],
    ) -> Folded:
        """The predictor of one stage, with its condition read."""
        mask = key_mask(attend, condition)
        keys, values, bias = self.attention.fold(condition, mask, self.time(sets), sets)
        return FoldedAttention(keys, values, bias, self.heads, self.chain)


class BlockDenoiser(nn.Module):
    """R14 `block`: n = LN(u), a = LN(n + attention(n, c)), Linear(4d->d) relu Linear(d->4d) a."""

    def __init__(self, denoisers: int, width: int, steps: int, config: DenoisingConfig) -> None:
        super().__init__()
        self.time = time_part(denoisers, width, steps, config)
        self.attention = ConditionalAttention(denoisers, width, config.heads)
        self.norm_before = StackedNorm(denoisers, width)
        self.norm_after = StackedNorm(denoisers, width)
        self.widen = StackedLinear(denoisers, width, 4 * width)
        self.narrow = StackedLinear(denoisers, 4 * width, width)
        self.heads, self.chain = config.heads, config.chain
        self.last: StackedLinear = self.narrow

    def forward(
        self,
        condition: Float[Tensor, "feature batch key d"],
        attend: Bool[Tensor, "batch key"],
        sets: Int[Tensor, " feature"],
    ) -> Folded:
        """The predictor of one stage, with its condition read."""
        mask = key_mask(attend, condition)
        time = self.time(sets)
        still = torch.zeros_like(time[:1])
        keys, values, bias = self.attention.fold(condition, mask, still, sets)
        folded = FoldedAttention(keys, values, bias, self.heads, self.chain)

        def read(u: Float[Tensor, "feature batch slot d"]) -> Float[Tensor, "feature batch slot d"]:
            """The block, given x plus its time."""
            normed = self.norm_before(u, sets)
            attended = folded.noise_at(normed.unsqueeze(0), [1])[0]
            after = self.norm_after(normed + attended, sets)
            inner = self.widen(after.flatten(1, 2), sets).relu()
            return self.narrow(inner, sets).view_as(u)

        return FoldedBlock(read, time, self.chain)


def time_part(denoisers: int, width: int, steps: int, config: DenoisingConfig) -> nn.Module:
    """R3."""
    if config.denoiser.time_embedding:
        return TimeEmbedding(denoisers, width, steps)
    return Timeless(width, steps)


DENOISERS: dict[DenoiserBlock, type[AttentionDenoiser | BlockDenoiser]] = {
    DenoiserBlock.attention: AttentionDenoiser,
    DenoiserBlock.block: BlockDenoiser,
}


def denoiser(denoisers: int, steps: int, config: DenoisingConfig) -> nn.Module:
    """R14, R23: a noise predictor with so many sets of weights."""
    part = DENOISERS[config.denoiser.block](denoisers, config.hidden, steps, config)
    if config.init.denoiser_out is DenoiserOut.zero:
        nn.init.zeros_(part.last.weight)
    return part


# --------------------------------------------------------------------- reverse process (Eq. 8, 12)


def chained(levels: Levels, predictor: Folded, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """R12 `chained`: each step starts where the one before ended."""
    return predictor.chain(levels.at(schedule.steps), schedule)


@dataclass(frozen=True)
class EachFromForward:
    """R12 `forward`: each step starts from x_t, so all T are one batch; xbar_0 is step 1 of x_1."""

    straight: bool
    whole: bool
    """Also the steps that only the printed loss reads."""

    def __call__(
        self, levels: Levels, predictor: Folded, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        """xbar_{T-1} .. xbar_1 (empty unless `whole`) and xbar_0."""
        steps = list(range(schedule.steps if self.whole else 1, 0, -1))
        states = torch.stack([levels.at(t) for t in steps])
        noise = predictor.noise_at(states.detach() if self.straight else states, steps)
        shape = (-1, *[1] * (states.dim() - 1))
        gamma = states.new_tensor([schedule.gamma[t - 1] for t in steps]).view(shape)
        alpha = states.new_tensor([schedule.alpha[t - 1] for t in steps]).view(shape)
        ends = (states - gamma * noise) / alpha.sqrt()
        return ends[:-1], ends[-1]


Reverse = Callable[[Levels, Folded, Schedule], tuple[Tensor, Tensor]]


# -------------------------------------------------------------------------- losses (Eq. 10, 13)


class SquaredDistance(torch.autograd.Function):
    """Sum over steps of the weighted squares of value_i - mean_i x_0 - deviation_i noise_i."""

    @staticmethod
    @in_float32
    def forward(
        ctx: Any, values: Tensor, x0: Tensor, noise: list[Tensor], mean: list[float],
        deviation: list[float], weight: Tensor,
    ) -> Tensor:  # fmt: skip
        """A scalar; values [step, feature, batch, slot, d], weight [batch, slot]."""
        weighted = torch.empty_like(values)
        total = values.new_zeros(())
        for i, value in enumerate(values):
            rest = torch.add(value, x0, alpha=-mean[i]).add_(noise[i], alpha=-deviation[i])
            torch.mul(rest, weight.unsqueeze(2), out=weighted[i])
            total += rest.flatten() @ weighted[i].flatten()
        ctx.save_for_backward(weighted)
        ctx.mean = mean
        return total

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the values and of x_0."""
        (weighted,) = ctx.saved_tensors
        d_values = weighted * (2 * d_total)
        mean = d_values.new_tensor(ctx.mean)
        d_x0 = (-mean @ d_values.flatten(1)).view(d_values.shape[1:])
        return d_values, d_x0, None, None, None, None


@dataclass(frozen=True)
class Walk:
    """One training pass of a stage, as its loss reads it."""

    levels: Levels
    path: Float[Tensor, "path feature batch slot d"]
    end: Float[Tensor, "feature batch slot d"]
    predictor: Folded
    step: Int[Tensor, " batch"]
    schedule: Schedule
    weight: Float[Tensor, "batch slot"]
    """0 at padding, else 1 / (d x slots that count), or without the d under R19 `sum`."""


def printed_distance(walk: Walk) -> Tensor:
    """R6 `printed`: sum over t = 1..T-1 of E(x_t - xbar_t), summed over features."""
    steps = range(walk.schedule.steps - 1, 0, -1)
    return SquaredDistance.apply(  # type: ignore[no-untyped-call, no-any-return]
        walk.path,
        walk.levels.x0,
        [walk.levels.noise_of(t) for t in steps],
        [walk.levels.mean[t - 1] for t in steps],
        [walk.levels.deviation[t - 1] for t in steps],
        walk.weight,
    )


def noise_distance(walk: Walk) -> Tensor:
    """R6 `noise`: E(e - eps(x_t, c, t)) at each user's own t, summed over features."""
    predicted = walk.predictor.noise_of_users(walk.levels.of_users(walk.step), walk.step)
    noise = walk.levels.noise_of_users(walk.step)
    return SquaredDistance.apply(  # type: ignore[no-untyped-call, no-any-return]
        predicted.unsqueeze(0), walk.levels.x0, [noise], [0.0], [1.0], walk.weight
    )


def reconstruction_distance(walk: Walk) -> Tensor:
    """R6 `reconstruction`: E(x_0 - xbar_0), summed over features."""
    still = torch.zeros_like(walk.end)
    return SquaredDistance.apply(  # type: ignore[no-untyped-call, no-any-return]
        walk.end.unsqueeze(0), walk.levels.x0, [still], [1.0], [0.0], walk.weight
    )


DISTANCES = {
    DiffusionLoss.printed: printed_distance,
    DiffusionLoss.noise: noise_distance,
    DiffusionLoss.reconstruction: reconstruction_distance,
}


# -------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Denoised:
    """What a stage made of its features in training."""

    features: Float[Tensor, "feature batch slot d"]
    loss: Float[Tensor, ""] | None = None
    """Unweighted, summed over features; None where the part has no loss."""
    levels: Levels | None = None
    """x_1 .. x_T."""
    path: Float[Tensor, "path feature batch slot d"] | None = None
    """xbar_{T-1} .. xbar_1."""


@dataclass(frozen=True)
class Task:
    """What a stage denoises, and under which condition."""

    x0: Float[Tensor, "feature batch slot d"]
    condition: Float[Tensor, "condition batch key d"]
    """As many features as x0, or one that serves them all."""
    attend: Bool[Tensor, "batch key"]
    """Keys of the condition that are attended."""
    share: Float[Tensor, "batch slot"]
    """What each slot counts in the loss: 0, or 1 / real slots of the batch (R19)."""
    group: int = 0
    """Which row of R15's table of weight sets: click 0, favor 1."""


class Passed(nn.Module):
    """No denoiser: features pass unchanged (the ablations). The other stages have its interface."""

    def draw(
        self, like: Float[Tensor, "feature batch slot d"], rng: torch.Generator
    ) -> Noise | None:
        """The randomness of a training pass over such features; here none."""
        del like, rng
        return None

    def forward(self, task: Task, noise: Noise | None) -> Denoised:
        """A training pass."""
        del noise
        return Denoised(self.evaluate(task))

    def evaluate(self, task: Task) -> Float[Tensor, "feature batch slot d"]:
        """What the experts read when nothing is trained."""
        return task.x0


class MultilayerTwin(Passed):
    """CDMD-M replaced by Linear, ReLU, Linear of as many parameters (section 5.6); no loss."""

    def __init__(self, config: DenoisingConfig, sets: Sequence[Sequence[int]], steps: int) -> None:
        super().__init__()
        self.sets = SetTable(sets)
        with torch.device("meta"):
            twin = denoiser(self.sets.count, steps, config)
        each = sum(parameter.numel() for parameter in twin.parameters()) // self.sets.count
        width = config.hidden
        inner = round((each - width) / (2 * width + 1))
        self.widen = StackedLinear(self.sets.count, width, inner)
        self.narrow = StackedLinear(self.sets.count, inner, width)

    def evaluate(self, task: Task) -> Float[Tensor, "feature batch slot d"]:
        """Mapped slot by slot, in training too."""
        sets = self.sets(task.group)
        inner = self.widen(task.x0.flatten(1, 2), sets).relu()
        mapped: Tensor = self.narrow(inner, sets)
        return mapped.view_as(task.x0)


class SetTable(nn.Module):
    """R15: which set of weights each feature of each group uses (groups: click, favor)."""

    __call__: Callable[..., Tensor]  # nn.Module leaves it Any

    def __init__(self, sets: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.count = 1 + max(max(group) for group in sets)
        table = torch.tensor(sets, dtype=torch.int64, device="cpu")
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor

    def forward(self, group: int) -> Int[Tensor, " feature"]:
        """The group's sets."""
        return self.table[group]


class CleanStart(nn.Module):
    """R4 `clean`: evaluation starts from x_0."""

    def forward(self, schedule: Schedule, x0: Tensor, group: int) -> Levels:
        """No noise at any t."""
        del group
        return clean_levels(schedule, x0)


class NoisedStart(nn.Module):
    """R4 `noised`: the forward process with one draw a run, aligned to the end of the sequence."""

    def __init__(
        self, levels: Callable[[Schedule, Tensor, Tensor], Levels], draws: Tensor, groups: int
    ) -> None:
        super().__init__()
        self.levels = levels
        self.groups = groups
        self.register_buffer("draws", draws, persistent=False)
        self.draws: Float[Tensor, "draw all_features 1 length d"]

    def forward(self, schedule: Schedule, x0: Tensor, group: int) -> Levels:
        """The same noise for every user."""
        draws = self.draws.chunk(self.groups, 1)[group][:, :, :, -x0.shape[2] :]
        return self.levels(schedule, x0, draws.expand(-1, -1, x0.shape[1], -1, -1))


class Denoising(Passed):
    """One CDMD stage: noise its features (Eq. 7), walk them back under a condition (Eq. 8, 9)."""

    def __init__(
        self, config: DenoisingConfig, sets: Sequence[Sequence[int]], steps: int, start: nn.Module
    ) -> None:
        super().__init__()
        self.schedule = Schedule(config.schedule, steps)
        self.sets = SetTable(sets)
        self.denoiser = denoiser(self.sets.count, steps, config)
        self.levels = LEVELS[config.forward.noise]
        self.draws = steps if config.forward.noise is ForwardNoise.chain else 1
        straight = config.chain.gradient is ChainGradient.straight
        whole = config.diffusion.loss is DiffusionLoss.printed
        reverse: dict[ReverseInput, tuple[Reverse, Reverse]] = {
            ReverseInput.chained: (chained, chained),
            ReverseInput.forward: (
                EachFromForward(straight, whole),
                EachFromForward(straight, whole=False),
            ),
        }
        self.reverse, self.reverse_in_evaluation = reverse[config.reverse.input]
        self.distance = DISTANCES[config.diffusion.loss]
        self.unit = config.hidden if config.diffusion.reduction is Reduction.mean else 1
        self.start = start

    def draw(self, like: Float[Tensor, "feature batch slot d"], rng: torch.Generator) -> Noise:
        """Standard normal draws for these features and a uniform step for each user."""
        # drawn where the generator lives, which may not be where the model does
        draws = torch.randn(
            self.draws, *like.shape, generator=rng, dtype=like.dtype, device=rng.device
        )
        step = torch.randint(
            1, self.schedule.steps + 1, (like.shape[1],), generator=rng, device=rng.device
        )
        return Noise(draws.to(like.device), step.to(like.device))

    def forward(self, task: Task, noise: Noise | None) -> Denoised:
        """Training: noise of Eq. 7, T steps back (Eq. 8), and the loss of Eq. 10 or 13."""
        assert noise is not None
        levels = self.levels(self.schedule, task.x0, noise.draws)
        predictor = self.predictor(task)
        path, end = self.reverse(levels, predictor, self.schedule)
        weight = task.share / self.unit
        walk = Walk(levels, path, end, predictor, noise.step, self.schedule, weight)
        return Denoised(end, self.distance(walk), levels, path)

    def evaluate(self, task: Task) -> Float[Tensor, "feature batch slot d"]:
        """Evaluation: T steps back from the start of R4."""
        levels = self.start(self.schedule, task.x0, task.group)
        return self.reverse_in_evaluation(levels, self.predictor(task), self.schedule)[1]

    def predictor(self, task: Task) -> Folded:
        """The noise predictor with its condition read, once a stage."""
        condition = task.condition.expand(len(task.x0), -1, -1, -1)
        folded: Folded = self.denoiser(condition, task.attend, self.sets(task.group))
        return folded


class TrainingOnlyDenoising(Denoising):
    """R4 `bypass`: evaluation skips the stage."""

    def evaluate(self, task: Task) -> Float[Tensor, "feature batch slot d"]:
        """The features."""
        return task.x0


LEVELS = {ForwardNoise.closed: closed_levels, ForwardNoise.chain: chain_levels}

MODALITY_SETS = {
    Sharing.per_modality: ((0, 1), (0, 1)),
    Sharing.per_stage: ((0, 0), (0, 0)),
    Sharing.per_feature: ((0, 1), (2, 3)),
}
"""CDMD-M: sets of (image, text) for click, then for favor."""

BEHAVIOR_SETS = {
    Sharing.per_modality: ((0, 1, 2),),
    Sharing.per_stage: ((0, 0, 0),),
    Sharing.per_feature: ((0, 1, 2),),
}
"""CDMD-B: sets of (image, text, id)."""


def diffusion_stage(
    config: DenoisingConfig, sets: Sequence[Sequence[int]], steps: int, length: int, stream: int
) -> Denoising:
    """A stage with the parts that R4 chooses; `stream` keeps the stages' evaluation noise apart."""
    if config.sampling.eval_start is EvalStart.bypass:
        return TrainingOnlyDenoising(config, sets, steps, CleanStart())
    if config.sampling.eval_start is EvalStart.clean:
        return Denoising(config, sets, steps, CleanStart())
    generator = torch.Generator().manual_seed(2 * config.sampling.seed + stream)
    draws = steps if config.forward.noise is ForwardNoise.chain else 1
    features = sum(len(group) for group in sets)
    noise = torch.randn(draws, features, 1, length, config.hidden, generator=generator)
    levels = LEVELS[config.forward.noise]
    return Denoising(config, sets, steps, NoisedStart(levels, noise, len(sets)))
