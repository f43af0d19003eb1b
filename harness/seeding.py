"""Named random streams: each consumer takes its own, so that one more draw here moves nothing there.

SPEC 7 of the scientific Python community; the demo worlds' rule (seed, then the name's code points).
"""

from __future__ import annotations

import numpy as np
import torch


def stream(seed: int, name: str) -> np.random.Generator:
    """NumPy generator of one named consumer: PCG64(SeedSequence([seed] + code points of name))."""
    entropy = [seed, *(ord(letter) for letter in name)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def torch_stream(seed: int, name: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Torch generator of one named consumer, seeded from `stream`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(stream(seed, name).integers(2**63 - 1)))
    return generator
