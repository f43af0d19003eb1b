"""Every reading R1-R23 and every ablation against the slow model (reference_m3bsr.py)."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.diffusion import ChainGradient, EvalStart, NoisedStart
from models.m3bsr import M3BSR, M3BSRConfig, repaired
from models.variants import VARIANTS
from tests.models.m3bsr_world import (
    EVENTS,
    batch,
    history,
    options,
    reference,
    shaken,
    small,
    take,
    users,
)
from tests.parity.adapters.m3bsr import named


def readings(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every value of every Enum and bool that is not the default, from the config itself."""
    found: list[tuple[str, Any]] = []
    for item in dataclasses.fields(config):
        value, path = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value) and item.name != "parts":
            found += readings(value, f"{path}.")
        elif isinstance(value, Enum):
            found += [(path, other.name) for other in type(value) if other is not value]
        elif isinstance(value, bool):
            found.append((path, not value))
    return found


SIZES: list[tuple[str, Any]] = [
    ("diffusion.steps", 1), ("diffusion.steps", 7), ("diffusion.steps_m", 2),
    ("diffusion.steps_b", 6), ("heads", 1), ("heads", 4), ("expert.layers", 1),
    ("expert.layers", 3), ("expert.ffn_factor", 2), ("loss.tau", 0.7), ("loss.lambda_c", 0.3),
]  # fmt: skip
ONE_AT_A_TIME = [{}, *({path: value} for path, value in readings(M3BSRConfig()) + SIZES)]


def combinations(count: int) -> list[dict[str, Any]]:
    """Random readings of all options at once; R1 alpha stays out (its numbers drown the rest)."""
    rng = np.random.default_rng(11)
    by_path: dict[str, list[Any]] = {}
    for path, value in readings(M3BSRConfig()):
        if value != "alpha":
            by_path.setdefault(path, []).append(value)
    found = []
    for _ in range(count):
        chosen = {}
        for path, values in by_path.items():
            pick = int(rng.integers(len(values) + 1))
            if pick:
                chosen[path] = values[pick - 1]
        found.append(chosen)
    return found


def name(overrides: dict[str, Any]) -> str:
    return ",".join(f"{path}={value}" for path, value in overrides.items()) or "default"


def configured(overrides: dict[str, Any]) -> M3BSRConfig:
    return small(**{path.replace(".", "__"): value for path, value in overrides.items()})


def close(ours: torch.Tensor, theirs: Any, tolerance: float = 1e-10) -> None:
    theirs = torch.from_numpy(np.asarray(theirs))
    scale = max(1.0, float(theirs.abs().max()))
    assert ours.shape == theirs.shape
    assert float((ours.detach() - theirs).abs().max()) <= tolerance * scale


def total_loss(model: M3BSR) -> tuple[torch.Tensor, Any, Any]:
    """Total loss, the pass and its noise."""
    sample = batch()
    click, favor = model.split(sample.history)
    noise = model.draw(click, favor, sample.generator)
    training = model.training_pass(click, favor, noise)
    terms = model.loss(dataclasses.replace(sample, generator=torch.Generator().manual_seed(0)))
    return torch.stack(list(terms.values())).sum(), training, noise


def assert_equal(model: M3BSR) -> None:
    """Training pass, losses and evaluation, ours against theirs."""
    slow = reference(model)
    total, training, noise = total_loss(model)
    theirs = slow.batch(users(noise), model.catalogue.length)
    logits = model.score_all(model.output.query(training.interests.user))[:, 1:]
    close(training.interests.user, theirs["y"])
    close(logits, theirs["logits"])
    for term, value in model.unweighted(training).items():
        close(value, theirs[term])
    close(functional.cross_entropy(logits, batch().target - 1), theirs["main"])
    close(total, theirs["total"])
    for i, user in enumerate(theirs["users"]):
        for side, behaviour in enumerate(("cl", "fa")):
            for m, modality in enumerate(("im", "te", "id")):
                own = user["denoised"][behaviour, modality]
                close(training.denoised[side][m, i, -len(own) :], own)
    start = model.config.sampling.eval_start
    with torch.no_grad():
        scores = model.score_all(model.encode(history(EVENTS)))[:, 1:]
    close(scores, slow.batch(evaluated(model), model.catalogue.length, start.name)["logits"])


def evaluated(model: M3BSR) -> list[Any]:
    """Users with the evaluation noise of the model."""
    found = users()
    for stage, letter in ((model.modality, "m"), (model.behavior, "b")):
        start = getattr(stage, "start", None)
        if isinstance(start, NoisedStart):
            for user in found:
                for side, part in enumerate(start.draws.chunk(start.groups, 1)):
                    take(user, letter, ("cl", "fa")[side], part[:, :, 0])
    return found


@pytest.mark.parametrize("overrides", ONE_AT_A_TIME, ids=name)
def test_reading(overrides: dict[str, Any]) -> None:
    assert_equal(shaken(configured(overrides)))


@pytest.mark.parametrize("overrides", combinations(12), ids=range(12))
def test_combination_of_readings(overrides: dict[str, Any]) -> None:
    assert_equal(shaken(configured(overrides)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("start", EvalStart)
def test_ablation(variant: str, start: EvalStart) -> None:
    assert_equal(shaken(VARIANTS[variant](small(sampling__eval_start=start.name))))


def test_repaired_set() -> None:
    assert_equal(shaken(repaired(small())))


def test_every_reading_was_tried() -> None:
    table = {
        "schedule.noise", "schedule.mean", "denoiser.time_embedding", "sampling.eval_start",
        "behavior.condition", "diffusion.loss", "concat", "pooling", "disent.loss", "routing.gate",
        "reverse.input", "forward.noise", "denoiser.block", "denoiser.sharing", "input.norm",
        "input.id_mlp", "expert.positions", "diffusion.reduction", "chain.gradient", "expert.norm",
        "output.layer", "init.denoiser_out", "diffusion.steps",
    }  # fmt: skip
    assert table <= {path for overrides in ONE_AT_A_TIME for path in overrides}
    assert len(table) == 23


@pytest.mark.parametrize(
    "overrides",
    [
        chosen
        for chosen in [*ONE_AT_A_TIME, *combinations(6)]
        if chosen.get("schedule.noise") != "alpha"  # gradients of 3e11: the small ones are rounding
        and chosen.get("chain.gradient") != ChainGradient.straight.name  # not the slope, by design
    ],
    ids=name,
)
def test_gradient_is_the_slope_of_the_slow_model(overrides: dict[str, Any]) -> None:
    model = shaken(configured(overrides))
    total, _, noise = total_loss(model)
    total.backward()
    slow, people = reference(model), users(noise)
    rng = np.random.default_rng(3)
    entries = named(model)
    candidates = sorted(entries.keys() - {"emb/item", "out/w", "out/b"})
    for key in rng.choice(candidates, 3, replace=False):
        views = [view(parameter.grad) for parameter, view in entries[key]]
        gradient = torch.cat(views).flatten().numpy()
        flat = slow.w[key].reshape(-1)
        at = int(np.argmax(np.abs(gradient)))
        before, step = flat[at], 1e-6  # small: a ReLU may be near its kink
        slopes = []
        for sign in (1, -1):
            flat[at] = before + sign * step
            slopes.append(slow.batch(people, model.catalogue.length)["total"])
        flat[at] = before
        slope = (slopes[0] - slopes[1]) / (2 * step)
        assert abs(slope - gradient[at]) <= 1e-6 + 1e-5 * abs(slope), key


def test_options_reach_the_slow_model() -> None:
    found = options(small(routing__gate="tile", loss__tau=0.5))
    assert found["routing.gate"] == "tile"
    assert found["loss.tau"] == 0.5
