"""EBM / END4Rec, Efficient Noise-Decoupling for Multi-Behavior Sequential Recommendation.

Han et al., WWW 2024, doi 10.1145/3589334.3645380, arXiv 2403.17603. A RECONSTRUCTION: the full text was
not at hand, and the authors' release, github.com/USTC-StarTeam/End4Rec, neither runs nor follows the
paper. Our sources: the paper's abstract and overview figure; [C1] the release's archive at commit
c23f802; [C2] its later rewrite, commit 4f184c1; [G] a third party's version that numbers its equations,
github.com/wzf2000/GAMER, class END4Rec, commit 6552d6b; [N] reading notes on the overview figure. Where
they leave a choice, it is an option (E1 to E14 below, our reading first); all other settings are G's.

The file goes through the paper's parts: P1 embedding (Eq. 1), P2 efficient behaviour miner (Eq. 2-4), P3
hard noise eliminator (Eq. 5-6), P4 soft noise filter (Eq. 7), P5 contrast (Eq. 8-9), P6 prediction, P7
guided training; then R, the network as released, and the model. The paper's tables say EBM, which is
strictly the miner, for the whole: `variant` has both.

Axes: batch, length = slots of a left-padded history (n of them), column = L = `Catalogue.length` columns of
time, of which the slots are the last, frequency = L (or L // 2 + 1) of them, block = k blocks of channels,
c = d / k channels of a block, behaviour = n_b, choice = (keep, drop), item_row = items + 1 (row 0 is
padding), d = hidden width. S is the mined sequence; h and s mean hard and soft, p and n signal and noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.interface import Batch, Catalogue, History, Interactions, Losses, ModelConfig
from models.layers import DotProduct, Dropout
from models.negatives import TrainingNegatives
from models.precision import in_float32
from models.softmax import catalogue_cross_entropy

EPS = 1e-12
"""Of every LayerNorm (G)."""


class Variant(Enum):
    """The whole model, its miner alone (P1, P2 and the norm of P6), or the network as released (R)."""

    full = "full"
    miner_only = "miner_only"
    released = "released"


class EmbeddingNorm(Enum):
    """E1: LayerNorm and dropout after the sum of embeddings (G), or nothing (C1)."""

    norm = "norm"
    none = "none"


class Fusion(Enum):
    """E2: what mixes the channels of a block."""

    complex_mlp = "complex_mlp"
    """An MLP with complex weights at every frequency."""
    filtered = "filtered"
    """A complex filter at every frequency, then a real MLP with GELU at every slot (G)."""
    real_mlp = "real_mlp"
    """A real MLP on the real part of the spectrum (C1): its output mirrors time."""


class Residual(Enum):
    """E3: S = LN(Dropout(S~) + S) (G), or without the sum (C1)."""

    yes = "yes"
    no = "no"


class CompactnessOf(Enum):
    """E5: which sequence the coding rate is taken of."""

    miner = "miner"
    """The miner's output S."""
    final = "final"
    """The normed sequence that the score is read from (G)."""
    frequency = "frequency"
    """The last fusion's output, before the way back to time (C1)."""


class Rate(Enum):
    """E6: lambda of a behaviour's preference."""

    counted = "counted"
    """Mean number of its events a user in training."""
    learned = "learned"
    """Softplus of a parameter that starts at 1 (G)."""


class Threshold(Enum):
    """E7: t, which a preference has to pass."""

    state = "state"
    """A linear function of the token's state (C1)."""
    column = "column"
    """The sigmoid of one parameter a column (G)."""


class KeepLogits(Enum):
    """E8: logits of the choice between keeping and dropping a token."""

    probabilities = "probabilities"
    """(q, 1 - q), as C1 prepares them."""
    logarithms = "logarithms"
    """(log q, log(1 - q))."""
    differences = "differences"
    """(p - t, t - p) (G)."""


class LastToken(Enum):
    """E9: whether the hard eliminator may drop the latest token, which the score is read from."""

    free = "free"
    protected = "protected"


class Transform(Enum):
    """E10: the soft filter's transform, over time (G) or over time and channels (N)."""

    time = "time"
    time_and_channels = "time_and_channels"


class FinalMiner(Enum):
    """E11: a further miner layer behind the soft filter, before prediction (N)."""

    no = "no"
    yes = "yes"


class Prediction(Enum):
    """E12: binary cross-entropy against one negative (C1), or over all items (C2, G)."""

    bce = "bce"
    softmax = "softmax"


class Stages(Enum):
    """E13: four guided stages, or one joint one (G)."""

    four = "four"
    joint = "joint"


class StagePath(Enum):
    """E14: in a stage, score and loss of what has been trained by then, or of everything (C1, C2)."""

    own = "own"
    whole = "whole"


@dataclass
class EBMConfig(ModelConfig):
    """G's sizes (C2: d 128, batches of 64); Adam at 1e-3, half of it in the last stage (C1, C2)."""

    variant: Variant = Variant.full
    blocks: int = 4
    """k, of channels."""
    layers: int = 2
    """Of the miner."""
    dropout: float = 0.2
    temperature: float = 1.0
    """tau of the Gumbel-softmax."""
    coding_eps: float = 0.5
    """E4: eps of the coding rate; G 1.0, C1 1e-3 (there its gradient hardly changes direction)."""
    contrast_weight: float = 0.1
    compactness_weight: float = 0.01
    miner_epochs: int = 3
    """Of the first stage; those of the second and third follow (C1)."""
    hard_epochs: int = 2
    soft_epochs: int = 2
    embedding_norm: EmbeddingNorm = EmbeddingNorm.norm
    fusion: Fusion = Fusion.complex_mlp
    residual: Residual = Residual.yes
    compactness_of: CompactnessOf = CompactnessOf.miner
    preference_rate: Rate = Rate.counted
    threshold: Threshold = Threshold.state
    keep_logits: KeepLogits = KeepLogits.probabilities
    last_token: LastToken = LastToken.free
    transform: Transform = Transform.time
    final_miner: FinalMiner = FinalMiner.no
    prediction: Prediction = Prediction.bce
    stages: Stages = Stages.four
    stage_path: StagePath = StagePath.own

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "prediction": (Prediction.bce, Prediction.softmax),
        "last_token": (LastToken.free, LastToken.protected),
        "dropout": (0.2, 0.4),
    }


# P1 Embedding -----------------------------------------------------------------------------------


class Embedding(nn.Module):
    """[Eq. 1] S = Dropout(LN(E_item + E_behaviour + E_position)); rows of padding are zero.

    A position is a column of time, so the newest event has always the last one.
    """

    def __init__(self, config: EBMConfig, catalogue: Catalogue, n_b: int) -> None:
        super().__init__()
        d = config.hidden
        self.item = nn.Parameter(_padded_normal(catalogue.items, d))
        self.behaviour = nn.Parameter(_padded_normal(n_b, d))
        self.position = nn.Parameter(0.02 * torch.randn(catalogue.length, d))
        normed = config.embedding_norm is EmbeddingNorm.norm
        layers = [nn.LayerNorm(d, eps=EPS), Dropout(config.dropout)] if normed else []
        self.after = nn.Sequential(*layers)

    def reads(self, history: History) -> History:
        """At most the newest L events."""
        return history.padded(min(history.items.shape[1], len(self.position)))

    def mask(self, history: History) -> Float[Tensor, "batch length 1"]:
        """m, 1 at real tokens."""
        return history.real.unsqueeze(2).to(self.item)

    def forward(self, history: History) -> Float[Tensor, "batch length d"]:
        """S before the miner."""
        behaviours = history.behaviours * history.real
        x = functional.embedding(history.items, self.item, padding_idx=0)
        x = x + functional.embedding(behaviours, self.behaviour, padding_idx=0)
        x = x + self.position[-history.items.shape[1] :]
        out: Tensor = self.after(x) * self.mask(history)
        return out


# P2 Efficient behaviour miner -------------------------------------------------------------------


def full_time(S: Float[Tensor, "batch length d"], L: int) -> Float[Tensor, "batch column d"]:
    """All L columns: the padding that a short batch was spared is zero."""
    return functional.pad(S, (0, 0, L - S.shape[1], 0))


class BlockMLP(nn.Module):
    """Two layers for each block of channels by itself: x W1 + b1, `activation`, x W2 + b2."""

    def __init__(
        self, d: int, blocks: int, activation: Callable[[Tensor], Tensor] = torch.relu
    ) -> None:
        super().__init__()
        c = d // blocks
        self.blocks, self.activation = blocks, activation
        self.W1, self.b1, self.W2, self.b2 = (
            nn.Parameter(0.02 * torch.randn(blocks, c, c) if weight else torch.zeros(blocks, c))
            for weight in (True, False, True, False)
        )

    def forward(self, x: Float[Tensor, "batch place d"]) -> Float[Tensor, "batch place d"]:
        """The same at every place."""
        parts = x.reshape(-1, self.blocks, x.shape[2] // self.blocks).transpose(0, 1)
        inner = self.activation(torch.baddbmm(self.b1.unsqueeze(1), parts, self.W1))
        out = torch.baddbmm(self.b2.unsqueeze(1), inner, self.W2)
        return out.transpose(0, 1).reshape(x.shape)


class ComplexBlockMLP(nn.Module):
    """BlockMLP with complex weights, stored as (real, imaginary).

    A complex number is a pair of real ones here: x W is x' W' with twice the width, and the
    activation, ReLU on real and imaginary parts separately, is a plain ReLU.
    """

    def __init__(self, d: int, blocks: int) -> None:
        super().__init__()
        c = d // blocks
        self.blocks = blocks
        self.W1 = nn.Parameter(0.02 * torch.randn(2, blocks, c, c))
        self.b1 = nn.Parameter(torch.zeros(2, blocks, c))
        self.W2 = nn.Parameter(0.02 * torch.randn(2, blocks, c, c))
        self.b2 = nn.Parameter(torch.zeros(2, blocks, c))

    def forward(
        self, x: Complex[Tensor, "batch frequency d"]
    ) -> Complex[Tensor, "batch frequency d"]:
        """The same at every frequency."""
        pairs = torch.view_as_real(x)
        parts = pairs.reshape(-1, self.blocks, 2 * x.shape[2] // self.blocks).transpose(0, 1)
        inner = torch.baddbmm(self.side_by_side(self.b1), parts, self.real_matrix(self.W1)).relu()
        out = torch.baddbmm(self.side_by_side(self.b2), inner, self.real_matrix(self.W2))
        return torch.view_as_complex(out.transpose(0, 1).reshape(pairs.shape))

    @staticmethod
    def side_by_side(b: Float[Tensor, "2 block c"]) -> Float[Tensor, "block 1 two_c"]:
        """(real, imaginary) of each channel in turn."""
        return b.permute(1, 2, 0).flatten(1).unsqueeze(1)

    @staticmethod
    def real_matrix(W: Float[Tensor, "2 block c c"]) -> Float[Tensor, "block two_c two_c"]:
        """[[Re, Im], [-Im, Re]] for each pair of channels: the product with Re + i Im."""
        re, im = W
        rows = torch.stack([torch.stack([re, im], dim=3), torch.stack([-im, re], dim=3)], dim=2)
        return rows.flatten(3).flatten(1, 2)


class FusionPart(nn.Module, ABC):
    """[Eq. 2-3] Frequency-aware fusion: from S to S~ at all columns, and what stood between."""

    @abstractmethod
    def forward(
        self, S: Float[Tensor, "batch column d"]
    ) -> tuple[Float[Tensor, "batch column d"], Tensor]:
        """S~, and the fused spectrum [batch, frequency, d]."""


class ComplexFusion(FusionPart):
    """S~ = Re(IFFT(MLP(FFT(S)))), complex weights; no symmetry of the spectrum outlives the ReLU."""

    def __init__(self, config: EBMConfig, L: int) -> None:  # noqa: ARG002
        super().__init__()
        self.mlp = ComplexBlockMLP(config.hidden, config.blocks)

    @in_float32
    def forward(
        self, S: Float[Tensor, "batch column d"]
    ) -> tuple[Float[Tensor, "batch column d"], Complex[Tensor, "batch frequency d"]]:
        """The plain sum forwards, 1/L on the way back."""
        spectrum = self.mlp(torch.fft.fft(S, dim=1))
        return torch.fft.ifft(spectrum, dim=1).real, spectrum


class FilterFusion(FusionPart):
    """G's fusion: one complex factor a channel for all frequencies, which starts at 1."""

    def __init__(self, config: EBMConfig, L: int) -> None:
        super().__init__()
        self.L = L
        self.filter = nn.Parameter(
            torch.stack([torch.ones(config.hidden), torch.zeros(config.hidden)])
        )

    @in_float32
    def forward(
        self, S: Float[Tensor, "batch column d"]
    ) -> tuple[Float[Tensor, "batch column d"], Complex[Tensor, "batch frequency d"]]:
        """Half of the spectrum, and its inverse."""
        spectrum = torch.fft.rfft(S, dim=1) * torch.complex(*self.filter)
        return torch.fft.irfft(spectrum, n=self.L, dim=1), spectrum


class RealFusion(FusionPart):
    """C1's fusion: the real part of the spectrum alone, so column t equals column L - t."""

    def __init__(self, config: EBMConfig, L: int) -> None:  # noqa: ARG002
        super().__init__()
        self.mlp = BlockMLP(config.hidden, config.blocks)

    @in_float32
    def forward(
        self, S: Float[Tensor, "batch column d"]
    ) -> tuple[Float[Tensor, "batch column d"], Float[Tensor, "batch frequency d"]]:
        """A real spectrum in, a real one out."""
        spectrum = self.mlp(torch.fft.fft(S, dim=1).real)
        return torch.fft.ifft(spectrum, dim=1).real, spectrum


FUSIONS: dict[Fusion, type[FusionPart]] = {
    Fusion.complex_mlp: ComplexFusion,
    Fusion.filtered: FilterFusion,
    Fusion.real_mlp: RealFusion,
}


class SlotMLP(nn.Module):
    """The second half of G's layer: S = LN(Dropout(MLP(S)) + S), real, GELU, at every slot."""

    def __init__(self, config: EBMConfig) -> None:
        super().__init__()
        self.mlp = BlockMLP(config.hidden, config.blocks, functional.gelu)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden, eps=EPS)

    def forward(self, S: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        """Slot by slot."""
        out: Tensor = self.norm(self.dropout(self.mlp(S)) + S)
        return out


class MinerLayer(nn.Module):
    """S = LN(Dropout(S~) + S), S~ the fusion of S at all columns; not causal, padding stays zero.

    The transforms run over all L columns, whatever a batch was trimmed to; all else at its slots.
    """

    def __init__(self, config: EBMConfig, L: int) -> None:
        super().__init__()
        self.L = L
        self.fusion = FUSIONS[config.fusion](config, L)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden, eps=EPS)
        self.carried = {Residual.yes: 1.0, Residual.no: 0.0}[config.residual]
        self.then = SlotMLP(config) if config.fusion is Fusion.filtered else nn.Identity()

    def forward(
        self, S: Float[Tensor, "batch length d"], m: Float[Tensor, "batch length 1"]
    ) -> tuple[Float[Tensor, "batch length d"], Tensor]:
        """The next S, and the fused spectrum; `S` is zero at padding, and so is what comes out."""
        fused, spectrum = self.fusion(full_time(S, self.L))
        S = self.norm(self.dropout(fused[:, -S.shape[1] :]) + self.carried * S)
        return self.then(S) * m, spectrum


class Miner(nn.Module):
    """The stack of layers."""

    def __init__(self, config: EBMConfig, L: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MinerLayer(config, L) for _ in range(config.layers))

    def forward(
        self, S: Float[Tensor, "batch length d"], m: Float[Tensor, "batch length 1"]
    ) -> tuple[Float[Tensor, "batch length d"], Tensor]:
        """S and the last layer's spectrum."""
        spectrum: Tensor = S
        for layer in self.layers:
            S, spectrum = layer(S, m)
        return S, spectrum


@in_float32
def coding_rate(Z: Tensor, eps: float, L: int) -> Float[Tensor, " batch"]:
    """[Eq. 4] R = 1/2 log det(I + d / (L eps^2) Z Z*) of [batch, row, d]; zero rows add nothing.

    Taken of the smaller of Z Z* and Z* Z. It is minimised: a compact sequence is cheap to code.
    """
    rows, d = Z.shape[1:]
    adjoint = Z.mH
    gram = Z @ adjoint if rows <= d else adjoint @ Z
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    logdet: Tensor = torch.linalg.slogdet(eye + d / (L * eps**2) * gram).logabsdet
    return logdet / 2


# P3 Hard noise eliminator -----------------------------------------------------------------------


class Decoupler(nn.Module, ABC):
    """A part that splits a sequence into signal and noise."""

    def prepare(self, train: Interactions) -> None:
        """What the part has to know of the training records: nothing, by default."""

    @abstractmethod
    def forward(
        self,
        S: Float[Tensor, "batch length d"],
        history: History,
        generator: torch.Generator | None,
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length d"]]:
        """Signal and noise; with a generator the choice is drawn (training), else it is made."""


def preference(rate: Float[Tensor, " behaviour"]) -> Float[Tensor, " behaviour"]:
    """[Eq. 5] p = exp(-lambda) lambda^lambda / Gamma(lambda + 1) + 1, in (1, 2]: the rarer, the larger."""
    return torch.exp(torch.xlogy(rate, rate) - rate - torch.lgamma(rate + 1)) + 1


def relaxed_choice(
    logits: Float[Tensor, "batch length choice"],
    uniform: Float[Tensor, "batch length choice"],
    temperature: float,
) -> Float[Tensor, "batch length choice"]:
    """[Eq. 6] Gumbel-softmax before the straight-through step, noise -log(-log u)."""
    tiny = torch.finfo(uniform.dtype).tiny  # u may be drawn as 0
    noise = -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
    return ((logits + noise) / temperature).softmax(dim=2)


def probabilities(margin: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length choice"]:
    """(q, 1 - q): kept tokens are drawn with a chance between 0.27 and 0.73 at temperature 1."""
    q = margin.sigmoid()
    return torch.stack([q, 1 - q], dim=2)


def logarithms(margin: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length choice"]:
    """(log q, log(1 - q)): a token is kept with probability q."""
    return torch.stack([functional.logsigmoid(margin), functional.logsigmoid(-margin)], dim=2)


def differences(margin: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length choice"]:
    """(p - t, t - p)."""
    return torch.stack([margin, -margin], dim=2)


KEEP_LOGITS: dict[KeepLogits, Callable[[Tensor], Tensor]] = {
    KeepLogits.probabilities: probabilities,
    KeepLogits.logarithms: logarithms,
    KeepLogits.differences: differences,
}


class CountedRate(nn.Module):
    """lambda_b = events of behaviour b a user in training; fixed."""

    rate: Tensor

    def __init__(self, n_b: int) -> None:
        super().__init__()
        self.register_buffer("rate", torch.ones(n_b), persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Count."""
        counts = torch.bincount(train.behaviour, minlength=len(self.rate) + 1)[1:]
        self.rate = (counts / (len(train.offsets) - 1)).to(self.rate)

    def forward(self) -> Float[Tensor, " behaviour"]:
        """Lambda."""
        return self.rate


class LearnedRate(nn.Module):
    """lambda_b = softplus of a parameter."""

    def __init__(self, n_b: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.ones(n_b))

    def prepare(self, train: Interactions) -> None:
        """Nothing to count."""

    def forward(self) -> Float[Tensor, " behaviour"]:
        """Lambda."""
        return functional.softplus(self.raw)


class TokenThreshold(nn.Module):
    """t_i = w . S_i + b."""

    def __init__(self, d: int, L: int) -> None:  # noqa: ARG002
        super().__init__()
        self.linear = nn.Linear(d, 1)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, S: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length"]:
        """Of each token's state."""
        t: Tensor = self.linear(S).squeeze(2)
        return t


class PositionThreshold(nn.Module):
    """t_i = sigmoid of a parameter of column i, whatever stands there."""

    def __init__(self, d: int, L: int) -> None:  # noqa: ARG002
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(L))

    def forward(self, S: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length"]:
        """Of each column."""
        return self.raw[-S.shape[1] :].sigmoid().expand(len(S), -1)


RATES: dict[Rate, Callable[[int], CountedRate | LearnedRate]] = {
    Rate.counted: CountedRate,
    Rate.learned: LearnedRate,
}
THRESHOLDS: dict[Threshold, Callable[[int, int], nn.Module]] = {
    Threshold.state: TokenThreshold,
    Threshold.column: PositionThreshold,
}


class HardEliminator(Decoupler):
    """[Eq. 5-6] A token is kept with q = sigmoid(p_b - t): S_hp = mask S, S_hn = (1 - mask) S.

    Training draws the mask and lets the gradient through as if it were soft; scoring keeps a token
    where q > 1/2. The latest token may be dropped too, and S_hp then ends in zeros.
    """

    def __init__(self, config: EBMConfig, L: int, n_b: int) -> None:
        super().__init__()
        self.rate = RATES[config.preference_rate](n_b)
        self.threshold = THRESHOLDS[config.threshold](config.hidden, L)
        self.logits = KEEP_LOGITS[config.keep_logits]
        self.temperature = config.temperature
        self.spared = {LastToken.free: 0.0, LastToken.protected: 1.0}[config.last_token]

    def prepare(self, train: Interactions) -> None:
        """The rates of behaviours."""
        self.rate.prepare(train)

    def forward(
        self,
        S: Float[Tensor, "batch length d"],
        history: History,
        generator: torch.Generator | None,
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length d"]]:
        """S_hp and S_hn."""
        margin = self.margin(S, history)
        mask = (margin > 0).to(S) if generator is None else self.drawn(margin, generator)
        latest = self.spared + (1 - self.spared) * mask[:, -1:]
        mask = torch.cat([mask[:, :-1], latest], dim=1).unsqueeze(2)
        return mask * S, (1 - mask) * S

    def margin(
        self, S: Float[Tensor, "batch length d"], history: History
    ) -> Float[Tensor, "batch length"]:
        """P - t, whose sigmoid is q."""
        padded = functional.pad(preference(self.rate()), (1, 0))
        margin: Tensor = padded[history.behaviours * history.real] - self.threshold(S)
        return margin

    def drawn(
        self, margin: Float[Tensor, "batch length"], generator: torch.Generator
    ) -> Float[Tensor, "batch length"]:
        """0 or 1 forwards, the relaxed choice backwards."""
        uniform = torch.rand(
            *margin.shape, 2, dtype=margin.dtype, generator=generator, device=generator.device
        )
        soft = relaxed_choice(self.logits(margin), uniform.to(margin.device), self.temperature)
        keep, drop = soft.unbind(2)
        return (keep >= drop).to(keep) - keep.detach() + keep


# P4 Soft noise filter ---------------------------------------------------------------------------


def over_time(
    S: Float[Tensor, "batch column d"], F: Complex[Tensor, "batch 1 d"]
) -> Float[Tensor, "batch column d"]:
    """irfft(F rfft(S)): F is the same at all frequencies, its imaginary part void at 0 and Nyquist."""
    filtered: Tensor = torch.fft.irfft(F * torch.fft.rfft(S, dim=1), n=S.shape[1], dim=1)
    return filtered


def over_time_and_channels(
    S: Float[Tensor, "batch column d"], F: Complex[Tensor, "batch 1 d"]
) -> Float[Tensor, "batch column d"]:
    """The same with a transform over channels too: F has one factor a frequency of the channels."""
    spectrum = F * torch.fft.rfftn(S, dim=(2, 1))
    filtered: Tensor = torch.fft.irfftn(spectrum, s=(S.shape[2], S.shape[1]), dim=(2, 1))
    return filtered


TRANSFORMS: dict[Transform, Callable[[Tensor, Tensor], Tensor]] = {
    Transform.time: over_time,
    Transform.time_and_channels: over_time_and_channels,
}


class SoftFilter(Decoupler):
    """[Eq. 7] Raw S_sp = filter of S_hp, F = sum_b w_b F_b; S_sn = S_hp - raw S_sp.

    The signal goes on as S_sp = LN(Dropout(raw S_sp) + S_hp).
    """

    def __init__(self, config: EBMConfig, L: int, n_b: int) -> None:
        super().__init__()
        self.L, self.n_b = L, n_b
        ones = torch.ones(n_b, config.hidden)
        self.filters = nn.Parameter(torch.stack([ones, torch.zeros_like(ones)]))
        self.apply_filter = TRANSFORMS[config.transform]
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden, eps=EPS)

    def forward(
        self,
        S: Float[Tensor, "batch length d"],
        history: History,
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length d"]]:
        """S_sp and S_sn of S = S_hp."""
        raw = self.filtered(S, self.shares(history).to(S))
        signal: Tensor = self.norm(self.dropout(raw) + S)
        return signal, S - raw

    def shares(self, history: History) -> Float[Tensor, "batch behaviour"]:
        """w_b: share of behaviour b among the real tokens, dropped or not."""
        behaviours = history.behaviours * history.real
        counts = functional.one_hot(behaviours, self.n_b + 1)[:, :, 1:].sum(1)
        return counts / counts.sum(1, keepdim=True).clamp(min=1)

    @in_float32
    def filtered(
        self, S: Float[Tensor, "batch length d"], shares: Float[Tensor, "batch behaviour"]
    ) -> Float[Tensor, "batch length d"]:
        """Raw S_sp."""
        F = torch.complex(*(shares @ self.filters)).unsqueeze(1)
        return self.apply_filter(full_time(S, self.L), F)[:, -S.shape[1] :]


# P5 Noise-decoupling contrast -------------------------------------------------------------------


def contrast(
    signal: Float[Tensor, "*shape"], origin: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """[Eq. 8-9] -log s(Q(A+) - Q(A)) - log s(Q(A) - Q(A-)), mean over the batch."""
    gaps = torch.stack([signal - origin, origin - noise])
    return -functional.logsigmoid(gaps).mean() * 2


def towards_target(
    A: Float[Tensor, "batch length d"], target: Float[Tensor, "batch d"]
) -> Float[Tensor, " batch"]:
    """Q(A) = A at the last slot . E[target]."""
    return (A[:, -1] * target).sum(1)


# P6 Prediction ----------------------------------------------------------------------------------


class TiedHead(nn.Module):
    """User vector LN(A)_last, scored with the table of P1; A = S_sp brings an LN of its own."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d, eps=EPS)

    def forward(self, A: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        """At every slot; the user is the last."""
        out: Tensor = self.norm(A)
        return out

    def table(
        self, item: Float[Tensor, "item_row d"]
    ) -> tuple[Float[Tensor, "item_row d"], Float[Tensor, " item_row"] | None]:
        """Item vectors and biases."""
        return item, None


def binary_prediction(model: EBM, batch: Batch, user: Float[Tensor, "batch d"]) -> Tensor:
    """-log s(positive) - log(1 - s(negative)), one uniform negative that the user has nowhere."""
    drawn = model.negatives(batch.history.user, 1, batch.generator)
    scores = model.score(user, torch.cat([batch.target.unsqueeze(1), drawn], dim=1))
    return binary_loss(scores)


def binary_loss(scores: Float[Tensor, "batch 2"]) -> Float[Tensor, ""]:
    """Of (positive, negative), mean over the batch."""
    return -functional.logsigmoid(scores * scores.new_tensor([1.0, -1.0])).sum(1).mean()


def softmax_prediction(model: EBM, batch: Batch, user: Float[Tensor, "batch d"]) -> Tensor:
    """Cross-entropy over all items."""
    items, bias = model.item_vectors(), model.item_bias()
    return catalogue_cross_entropy(user, items, bias, batch.target).mean()


PREDICTIONS: dict[Prediction, Callable[[EBM, Batch, Tensor], Tensor]] = {
    Prediction.bce: binary_prediction,
    Prediction.softmax: softmax_prediction,
}


# P7 Guided training -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What a stage trains, how far the sequence goes through the decouplers, which terms it has."""

    trained: tuple[str, ...] = ("",)
    """Beginnings of parameters' names; all others are frozen."""
    depth: int = 2
    """Decouplers passed: the score is read from S, S_hp or S_sp."""
    contrasts: tuple[int, ...] = (0, 1)
    """0: (S_hp, S, S_hn), 1: (S_sp, S_hp, S_sn)."""
    compact: bool = True
    rate: float = 1.0
    """Of the learning rate."""
    epochs: int | None = None
    """How long; None: until early stopping ends it."""


def guided(config: EBMConfig) -> list[Stage]:
    """Miner, hard part, soft part, everything at half the rate; only the last stops early."""
    miner = ("embedding.", "miner.", "head.")
    return [
        Stage(miner, 0, (), compact=True, epochs=config.miner_epochs),
        Stage(("decouplers.0.",), 1, (0,), compact=False, epochs=config.hard_epochs),
        Stage(("decouplers.1.", "closing."), 2, (1,), compact=False, epochs=config.soft_epochs),
        Stage(rate=0.5),
    ]


def guided_whole(config: EBMConfig) -> list[Stage]:
    """The same parts in turn, but always the whole path and the whole loss."""
    whole = Stage()
    return [
        replace(whole, trained=stage.trained, rate=stage.rate, epochs=stage.epochs)
        for stage in guided(config)
    ]


PLANS: dict[tuple[Stages, StagePath], Callable[[EBMConfig], list[Stage]]] = {
    (Stages.four, StagePath.own): guided,
    (Stages.four, StagePath.whole): guided_whole,
    (Stages.joint, StagePath.own): lambda _: [Stage()],
    (Stages.joint, StagePath.whole): lambda _: [Stage()],
}


# R Released form --------------------------------------------------------------------------------


class ReleasedEmbedding(nn.Module):
    """R1 A sum of three tables: no norm, no dropout, and padding is an item like the others."""

    def __init__(self, config: EBMConfig, catalogue: Catalogue, n_b: int) -> None:
        super().__init__()
        d = config.hidden
        self.item = nn.Parameter(0.02 * torch.randn(catalogue.items + 1, d))
        self.behaviour = nn.Parameter(0.02 * torch.randn(n_b + 1, d))
        self.position = nn.Parameter(0.02 * torch.randn(catalogue.length, d))

    def reads(self, history: History) -> History:
        """Always L slots."""
        return history.padded(len(self.position))

    def mask(self, history: History) -> Float[Tensor, "batch length 1"]:
        """Ones."""
        return torch.ones_like(history.items, dtype=self.item.dtype).unsqueeze(2)

    def forward(self, history: History) -> Float[Tensor, "batch length d"]:
        """S before the miner."""
        return (
            self.item[history.items]
            + self.behaviour[history.behaviours * history.real]
            + self.position
        )


class ReleasedMiner(nn.Module):
    """R2 C1's fusion without residual, norm and dropout; with gradients, which C1's own lacks."""

    def __init__(self, config: EBMConfig, L: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RealFusion(config, L) for _ in range(config.layers))

    def forward(
        self,
        S: Float[Tensor, "batch length d"],
        m: Float[Tensor, "batch length 1"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length d"], Tensor]:
        """S and the last layer's spectrum."""
        spectrum: Tensor = S
        for layer in self.layers:
            S, spectrum = layer(S)
        return S, spectrum


class ReleasedHard(Decoupler):
    """R3 mask = [sigmoid(1 - t) > 1/2]: no preference, no noise, and no gradient for t."""

    def __init__(self, config: EBMConfig, L: int, n_b: int) -> None:
        super().__init__()
        del n_b
        self.threshold = TokenThreshold(config.hidden, L)

    def forward(
        self,
        S: Float[Tensor, "batch length d"],
        history: History,  # noqa: ARG002
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length d"]]:
        """S_hp and S_hn."""
        mask = (self.threshold(S) < 1).to(S).unsqueeze(2)
        return mask * S, (1 - mask) * S


class ReleasedSoft(Decoupler):
    """R4 S_sp = a Linear of S_hp, one a behaviour; a dropped token gives its bias."""

    def __init__(self, config: EBMConfig, L: int, n_b: int) -> None:
        super().__init__()
        del L
        self.linears = nn.ModuleList(
            nn.Linear(config.hidden, config.hidden) for _ in range(n_b + 1)
        )

    def forward(
        self,
        S: Float[Tensor, "batch length d"],
        history: History,
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length d"], Float[Tensor, "batch length d"]]:
        """S_sp and S_sn."""
        behaviours = (history.behaviours * history.real).unsqueeze(2)
        signal = torch.zeros_like(S)
        for behaviour, linear in enumerate(self.linears):
            signal = signal + linear(S) * (behaviours == behaviour)
        return signal, S - signal


class ReleasedHead(nn.Module):
    """R5 logits = Linear(d, items) of S_sp at the last position: no norm, untied."""

    def __init__(self, d: int, catalogue: Catalogue) -> None:
        super().__init__()
        self.linear = nn.Linear(d, catalogue.items + 1)

    def forward(self, A: Float[Tensor, "batch length d"]) -> Float[Tensor, "batch length d"]:
        """The same."""
        return A

    def table(
        self,
        item: Float[Tensor, "item_row d"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "item_row d"], Float[Tensor, " item_row"] | None]:
        """Item vectors and biases."""
        return self.linear.weight, self.linear.bias


def time_mean(
    A: Float[Tensor, "batch length d"],
    target: Float[Tensor, "batch d"],  # noqa: ARG001
) -> Float[Tensor, "batch d"]:
    """R6 Q(A) is A's mean over time, each channel by itself, and knows no target."""
    return A.mean(1)


# The model --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """One batch on its way through the model."""

    spectrum: Tensor
    """The last fusion's output."""
    signals: list[Tensor]
    """S, S_hp, S_sp, as far as the stage goes; [batch, length, d]."""
    noises: list[Tensor]
    """S_hn, S_sn."""
    final: Float[Tensor, "batch length d"]
    """What the score is read from."""
    m: Float[Tensor, "batch length 1"]


def of_miner(found: Sequences) -> Tensor:
    """S."""
    return found.signals[0]


def of_final(found: Sequences) -> Tensor:
    """The head's sequence, padding zero."""
    return found.final * found.m


def of_frequency(found: Sequences) -> Tensor:
    """The spectrum; complex where the fusion is."""
    return found.spectrum


COMPACTNESS_OF: dict[CompactnessOf, Callable[[Sequences], Tensor]] = {
    CompactnessOf.miner: of_miner,
    CompactnessOf.final: of_final,
    CompactnessOf.frequency: of_frequency,
}


class EBM(DotProduct):
    """Embedding, miner, hard and soft decoupler, tied scores; trained in four guided stages.

    L = L_pred + w_cl (L_cl_hard + L_cl_soft) + w_r R. What is left out of a history by trimming is
    padding, and padding is zero wherever it is read, so it is never computed. The model does not know
    the target's behaviour: every prefix is a sample, and its target's behaviour is not an input.

    Variant `miner_only` is the first stage alone, stopped early. Variant `released` has C1's forward
    pass (R1-R6, its compactness of the frequency domain) and is trained jointly: in C1 no gradient
    passes the transforms, and its second stage would train a part that none reaches. E1 to E3, E5 to
    E11, E13 and E14 are settled in it; E4 is not (C1's `coding_eps` is 1e-3), nor are E12 and `layers`.
    """

    Config = EBMConfig
    config: EBMConfig
    behaviours: ClassVar[int] = 2
    """n_b: click and favor."""

    stage: Tensor

    def __init__(self, config: EBMConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        _check(config)
        self.L = catalogue.length
        self.closing: nn.Module | None = None
        self.negatives = TrainingNegatives(catalogue)
        self.predict = PREDICTIONS[config.prediction]
        self.register_buffer("stage", torch.tensor(0))
        {
            Variant.full: self._full,
            Variant.miner_only: self._miner_only,
            Variant.released: self._released,
        }[config.variant](config, catalogue)

    def _full(self, config: EBMConfig, catalogue: Catalogue) -> None:
        """P1 to P7."""
        self._miner_only(config, catalogue)
        hard = HardEliminator(config, self.L, self.behaviours)
        self.decouplers.extend([hard, SoftFilter(config, self.L, self.behaviours)])
        if config.final_miner is FinalMiner.yes:
            self.closing = MinerLayer(config, self.L)
        self.plan = PLANS[config.stages, config.stage_path](config)

    def _miner_only(self, config: EBMConfig, catalogue: Catalogue) -> None:
        """P1, P2 and P6's norm."""
        self.embedding: Embedding | ReleasedEmbedding
        self.embedding = Embedding(config, catalogue, self.behaviours)
        self.miner: Miner | ReleasedMiner = Miner(config, self.L)
        self.decouplers = nn.ModuleList()
        self.head: TiedHead | ReleasedHead = TiedHead(config.hidden)
        self.Q: Callable[[Tensor, Tensor], Tensor] = towards_target
        self.compactness_of = COMPACTNESS_OF[config.compactness_of]
        self.plan = [Stage(depth=0, contrasts=())]

    def _released(self, config: EBMConfig, catalogue: Catalogue) -> None:
        """R1 to R6."""
        self.embedding = ReleasedEmbedding(config, catalogue, self.behaviours)
        self.miner = ReleasedMiner(config, self.L)
        parts = (ReleasedHard, ReleasedSoft)
        self.decouplers = nn.ModuleList(part(config, self.L, self.behaviours) for part in parts)
        self.head = ReleasedHead(config.hidden, catalogue)
        self.Q = time_mean
        self.compactness_of = of_frequency
        self.plan = [Stage()]

    @property
    def now(self) -> Stage:
        """The stage that the model is in."""
        return self.plan[int(self.stage)]

    def prepare(self, train: Interactions) -> None:
        """Rates of behaviours; what each user touched, for the negatives."""
        self.negatives.prepare(train)
        for part in self.decouplers:
            if isinstance(part, Decoupler):  # as all are; for the type checker
                part.prepare(train)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:  # noqa: ARG002
        """Freeze what the stage does not train."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.now.trained))

    @property
    def selects(self) -> bool:
        """Only a stage of no fixed length stops early."""
        return self.now.epochs is None

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """After a stage's epochs."""
        return self.now.epochs is not None and epochs >= self.now.epochs

    def next_stage(self) -> bool:
        """On to the next of the plan."""
        if int(self.stage) + 1 == len(self.plan):
            return False
        self.stage += 1
        return True

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam at the stage's rate."""
        return torch.optim.Adam(
            self.parameters(),
            lr=self.config.learning_rate * self.now.rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def loss(self, batch: Batch) -> Losses:
        """The terms of the stage."""
        found = self.sequences(batch.history, self.now.depth, batch.generator)
        prediction = self.predict(self, batch, found.final[:, -1])
        return {"prediction": prediction, **self.regularisers(found, batch.target, self.now)}

    def regularisers(self, found: Sequences, target: Int[Tensor, " batch"], stage: Stage) -> Losses:
        """w_cl L_cl of the stage's decouplers, and w_r R."""
        losses: Losses = {}
        goal = functional.embedding(target, self.embedding.item)
        signals, noises = (
            [self.Q(A, goal) for A in found_] for found_ in (found.signals, found.noises)
        )
        for part in stage.contrasts:
            term = contrast(signals[part + 1], signals[part], noises[part])
            losses[f"contrast_{('hard', 'soft')[part]}"] = self.config.contrast_weight * term
        if stage.compact:
            R = coding_rate(self.compactness_of(found), self.config.coding_eps, self.L).mean()
            losses["compactness"] = self.config.compactness_weight * R
        return losses

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """The last slot of the stage's sequence; nothing is drawn."""
        return self.sequences(history, self.now.depth, None).final[:, -1]

    def sequences(
        self, history: History, depth: int, generator: torch.Generator | None
    ) -> Sequences:
        """Miner, then `depth` decouplers, each of which splits the signal of the one before."""
        history = self.embedding.reads(history)
        m = self.embedding.mask(history)
        S, spectrum = self.miner(self.embedding(history), m)
        signals, noises = [S], []
        for part in self.decouplers[:depth]:
            signal, noise = part(signals[-1], history, generator)
            signals.append(signal)
            noises.append(noise)
        last = signals[-1]
        if self.closing is not None and depth == len(self.decouplers):
            last, _ = self.closing(last * m, m)
        return Sequences(spectrum, signals, noises, self.head(last), m)

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """The head's table."""
        return self.head.table(self.embedding.item)[0]

    def item_bias(self) -> Float[Tensor, " item_row"] | None:
        """The head's bias."""
        return self.head.table(self.embedding.item)[1]


def _check(config: EBMConfig) -> None:
    """Raise ValueError for settings that make no model."""
    if config.blocks < 1 or config.hidden % config.blocks:
        raise ValueError(f"hidden {config.hidden} is no multiple of blocks {config.blocks}")
    if config.layers < 1:
        raise ValueError(f"layers is {config.layers}; the miner has at least 1")
    for name in ("temperature", "coding_eps"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it has to be above 0")
    for name in ("miner_epochs", "hard_epochs", "soft_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; a stage has at least 1 epoch")


def _padded_normal(rows: int, d: int) -> Float[Tensor, "table d"]:
    """Normal(0, 0.02) behind a row of zeros for padding."""
    return functional.pad(0.02 * torch.randn(rows, d), (0, 0, 1, 0))
