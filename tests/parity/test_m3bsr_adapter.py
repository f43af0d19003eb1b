"""The M3BSR adapter on pairs of other readings, sizes and ablations, made by the slow model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.diffusion import EvalStart, ForwardNoise
from models.m3bsr import M3BSR, M3BSRConfig, PassNoise
from models.variants import VARIANTS
from tests.models.m3bsr_world import (
    EVENTS,
    ITEMS,
    LENGTH,
    batch,
    catalogue,
    options,
    reference,
    shaken,
    small,
    take,
    users,
)
from tests.parity.adapters.m3bsr import check, settings
from tests.parity.pairs import Pair

STAGES = (("m", "cl", "click"), ("m", "fa", "favor"), ("b", "cl", "behavior"))


def full_noise(noise: PassNoise) -> dict[str, np.ndarray]:
    """The recorded noise in slots of full length, features first."""
    found: dict[str, Any] = {}
    for letter, _, name in STAGES:
        part = getattr(noise, name)
        if part is not None:
            draws = part.draws.transpose(0, 1)
            missing = LENGTH - draws.shape[3]
            padded = torch.nn.functional.pad(draws, (0, 0, missing, 0)).numpy()
            found.setdefault(f"noise/eps_{letter}", []).append(padded)
            found[f"noise/t_{letter}"] = part.step.numpy()
    return {key: np.concatenate(v) if isinstance(v, list) else v for key, v in found.items()}


def made(config: M3BSRConfig, readings: dict[str, Any], rename: dict[str, str]) -> Pair:
    """A pair whose outputs are the slow model's."""
    model = shaken(config)
    sample = batch()
    click, favor = model.split(sample.history)
    noise = model.draw(click, favor, sample.generator)
    slow = reference(model)
    theirs = slow.batch(users(noise), LENGTH)
    world = catalogue()
    arrays: dict[str, np.ndarray] = {}
    for name, array in slow.w.items():
        new = name
        for old, other in rename.items():
            new = new.replace(old, other)
        arrays[f"w/{new}"] = array
    for side, name in enumerate(("cl", "fa")):
        table = np.zeros((len(EVENTS), LENGTH), dtype=np.int64)
        for row, events in zip(table, EVENTS, strict=True):
            if events[side]:
                row[-len(events[side]) :] = events[side]
        arrays[f"in/{name}"] = table
    fields = [torch.arange(ITEMS + 1), *world.fields.values()]
    arrays |= {
        "in/target": np.arange(1, len(EVENTS) + 1),
        "in/user": np.arange(len(EVENTS)),
        "in/item_fields": torch.stack(fields, 1).numpy(),
        "in/im": world.image.double().numpy(), "in/im_ok": world.image_present.numpy(),
        "in/te": world.text.double().numpy(), "in/te_ok": world.text_present.numpy(),
        "out/y": theirs["y"], "out/logits": theirs["logits"],
        "out/L_m": np.array(theirs["modality"]), "out/L_b": np.array(theirs["behavior"]),
        "out/L_contrast": np.array(theirs["contrast"]), "out/L_main": np.array(theirs["main"]),
        "out/total": np.array(theirs["total"]),
    }  # fmt: skip
    noises = full_noise(noise)
    if config.forward.noise is ForwardNoise.closed:
        noises = {key: v[:, 0] if "eps" in key else v for key, v in noises.items()}
    arrays |= noises
    arrays |= evaluation(model, slow, arrays)
    sidecar = {
        "model": "M3BSR (reconstruction)",
        "config": {
            "d": config.hidden, "length": LENGTH, "items": ITEMS, "dropout": 0.0,
            "fields": ["item", "brand", "user"],
        },
        "readings": readings,
        "tolerance": {"float64": 1e-10},
        "tolerance_rule": "absolute difference <= tolerance * max(1, largest absolute value of the array)",
        "arrays": {name: {"meaning": "first axis features"} for name in arrays},
    }  # fmt: skip
    return Pair("made", sidecar, arrays)


def evaluation(model: M3BSR, slow: Any, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Logits of the three starts, the noised one with noise of its own."""
    found = {}
    people = users()
    rng = np.random.default_rng(4)
    for letter in ("m", "b"):
        if f"noise/eps_{letter}" in arrays:
            shape = list(arrays[f"noise/eps_{letter}"].shape)
            shape[-3] = 1
            drawn = rng.standard_normal(shape)
            found[f"noise/eval_eps_{letter}"] = drawn
            whole = drawn[:, None] if drawn.ndim == 4 else drawn
            draws = torch.from_numpy(whole).transpose(0, 1)
            for user in people:
                parts = draws.chunk(2, 1) if letter == "m" else [draws]
                for side, part in zip(("cl", "fa"), parts, strict=False):
                    take(user, letter, side, part[:, :, 0])
    for start in EvalStart:
        logits = slow.batch(people, model.catalogue.length, start.name)["logits"]
        found[f"out/eval_logits_{start.name}"] = logits
    return found


@pytest.mark.parametrize(
    ("readings", "rename"),
    [
        ({}, {}),
        ({"model.heads": 4, "expert.layers": 1, "diffusion.steps": 3, "loss.tau": 0.5}, {}),
        ({"forward.noise": "chain", "diffusion.loss": "noise"}, {}),
        ({"forward.noise": "chain", "reverse.input": "forward"}, {}),
        ({"denoiser.sharing": "per_feature", "denoiser.time_embedding": False}, {}),
        ({"denoiser.block": "block"}, {"ln1": "before", "ln2": "later"}),
        ({"output.layer": "tied", "concat": "features"}, {"out/u": "tie/w", "concat": "fuse"}),
        ({"expert.norm": "pre", "expert.positions": "none"}, {"final": "ln"}),
        ({"routing.gate": "tile", "pooling": "mean", "input.norm": "none"}, {"spec": "ws"}),
    ],
)
def test_readings_come_from_the_sidecar(readings: dict[str, Any], rename: dict[str, str]) -> None:
    overrides = {key.removeprefix("model.").replace(".", "__"): v for key, v in readings.items()}
    config = small(**overrides)
    named = options(config)
    told = {key: value for key, value in named.items() if "." in key and "parts" not in key}
    told |= {"model.heads": config.heads, "concat": named["concat"], "pooling": named["pooling"]}
    check(made(config, told, rename))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spelling", [str, lambda name: name.lower().replace(" ", "_")])
def test_ablations_come_from_the_sidecar(variant: str, spelling: Any) -> None:
    pair = made(VARIANTS[variant](small()), {"heads": 2, "diffusion.steps": 4}, {})
    pair.sidecar["ablation"] = spelling(variant)
    check(pair)


def test_an_unknown_reading_is_refused() -> None:
    pair = made(small(), {"heads": 2, "diffusion.steps": 4}, {})
    pair.sidecar["readings"]["routing.door"] = "open"
    with pytest.raises(AssertionError, match=r"routing\.door"):
        settings(pair)
