"""How exactly losses and gradients are computed: in full float32, or faster on a GPU (`train.numerics`).

One switch, in steps; each includes those before it (`harness.config.Numerics`). It changes training
alone: weights, gradients, the optimiser, validation and test are float32 whatever it says, and what is
sensitive stays float32 in training too (`models/precision.py`). A number made with a step beyond
`exact` has a name of its own and stands beside the exact one, never in its place;
`benchmarks/numerics.py` says how far apart the two are. No step has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.config import Numerics
from harness.errors import InputError
from models.interface import Batch, Losses, Recommender

BACKEND = "inductor"
"""Of torch.compile."""


def exact_numerics() -> None:
    """Full float32 and deterministic kernels on a GPU, whatever its defaults.

    TF32 and bf16 are faster and move numbers in the third digit; autotuned kernels differ from run
    to run. On a CPU nothing of this applies.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def facts(numerics: Numerics) -> dict[str, str | bool]:
    """The switch and what it means, as records say it (after `exact_numerics`)."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return {
        "switch": numerics.name,
        "tf32": tf32 or (numerics.includes(Numerics.tf32) and torch.cuda.is_available()),
        "bf16": numerics.includes(Numerics.bf16),
        "compiled": numerics.includes(Numerics.compiled),
        "graphs": numerics.includes(Numerics.graphs),
        "autotuned": torch.backends.cudnn.benchmark,
        "deterministic": torch.backends.cudnn.deterministic,
    }


def prepare(model: Recommender, numerics: Numerics) -> None:
    """Compile the model's losses where the switch says so.

    A method whose `passes` make losses without `loss` computes those as they are.

    Raises:
        InputError: This machine cannot do what is asked.
    """
    check(numerics, model.device)
    if numerics.includes(Numerics.compiled):
        mode = "reduce-overhead" if numerics.includes(Numerics.graphs) else None
        setattr(model, "loss", torch.compile(model.loss, backend=BACKEND, mode=mode))  # noqa: B010 -- a method


def check(numerics: Numerics, device: torch.device) -> None:
    """Raise InputError where this machine cannot do what is asked."""
    asked, on_gpu = f"train.numerics={numerics.name}", device.type == "cuda"
    if numerics.includes(Numerics.graphs) and not on_gpu:
        raise InputError(f"'{asked}': CUDA graphs need a GPU; choose compiled, bf16 or exact")
    if numerics.includes(Numerics.bf16) and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise InputError(
            f"'{asked}': {torch.cuda.get_device_name()} does not compute in bfloat16; "
            "choose tf32 or exact"
        )
    if numerics.includes(Numerics.compiled):
        try:
            torch.compile(torch.sin, backend=BACKEND)(torch.ones(2, device=device))
        except Exception as error:  # whatever the compiler's parts make of what they lack
            raise InputError(
                f"'{asked}': torch.compile does not work here ({_last_line(error)}); "
                "install what it names (a C++ compiler; on a GPU triton), or choose bf16 or exact"
            ) from error


def _last_line(error: Exception) -> str:
    """What an error says, in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


@contextmanager
def products(numerics: Numerics) -> Iterator[None]:
    """TF32 in products, where the switch says so, of losses and gradients alike."""
    if not numerics.includes(Numerics.tf32):
        yield
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        exact_numerics()


def passes(model: Recommender, batch: Batch, numerics: Numerics) -> Iterator[Losses]:
    """`Recommender.passes`, each loss computed as the switch says.

    What the caller does between two losses (gradients, the optimiser's step) is outside autocast.
    """
    if not numerics.includes(Numerics.bf16):
        yield from model.passes(batch)
        return
    made = iter(model.passes(batch))
    while True:
        if numerics.includes(Numerics.graphs):
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            losses = next(made, None)
        if losses is None:
            return
        yield {name: term.float() for name, term in losses.items()}
