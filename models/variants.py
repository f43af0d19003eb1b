"""The ablations of Figure 3 and the twin of section 5.6, each from a config to a changed copy."""

from __future__ import annotations

import copy
from collections.abc import Callable

from models.m3bsr import BehaviorDenoiser, M3BSRConfig, ModalityDenoiser


def without_modality_denoising(config: M3BSRConfig) -> M3BSRConfig:
    """w/o CDMD-M: image and text pass unchanged, L_m = 0."""
    config = copy.deepcopy(config)
    config.parts.modality_denoiser = ModalityDenoiser.none
    return config


def without_behavior_denoising(config: M3BSRConfig) -> M3BSRConfig:
    """w/o CDMD-B: clicks pass unchanged, L_b = 0."""
    config = copy.deepcopy(config)
    config.parts.behavior_denoiser = BehaviorDenoiser.none
    return config


def without_experts(config: M3BSRConfig) -> M3BSRConfig:
    """w/o MEIE: no experts, no routing, L_contrast = 0; y is Linear(6d->d) of the six means."""
    config = copy.deepcopy(config)
    config.parts.experts = False
    return config


def without_shared_expert(config: M3BSRConfig) -> M3BSRConfig:
    """w/o Shared Expert: y = W_s z + b_s, Eq. 20 over six vectors."""
    config = copy.deepcopy(config)
    config.parts.shared_expert = False
    return config


def without_disentanglement(config: M3BSRConfig) -> M3BSRConfig:
    """w/o Disent: lambda_c = 0."""
    config = copy.deepcopy(config)
    config.loss.lambda_c = 0.0
    return config


def multilayer_twin(config: M3BSRConfig) -> M3BSRConfig:
    """CDMD-M replaced by a two-layer MLP of as many parameters, for the t-SNE comparison."""
    config = copy.deepcopy(config)
    config.parts.modality_denoiser = ModalityDenoiser.mlp
    return config


VARIANTS: dict[str, Callable[[M3BSRConfig], M3BSRConfig]] = {
    "w/o CDMD-M": without_modality_denoising,
    "w/o CDMD-B": without_behavior_denoising,
    "w/o MEIE": without_experts,
    "w/o Shared Expert": without_shared_expert,
    "w/o Disent": without_disentanglement,
    "MLP twin": multilayer_twin,
}
"""By the names that Figure 3 prints."""
