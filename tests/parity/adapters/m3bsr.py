"""M3BSR against pairs made from its description (no official code is public).

Sizes, readings and ablations come from the sidecar, weights by their names (and, for layers that
exist under one reading only, by their shape where the name is new).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.diffusion import EvalStart, Noise, NoisedStart
from models.interface import Behaviour, Catalogue, History
from models.m3bsr import M3BSR, M3BSRConfig, PassNoise, TrainingPass
from models.variants import VARIANTS
from tests.parity.pairs import Pair

MODEL = "M3BSR"
MODALITIES = ("im", "te", "id")


def check(pair: Pair) -> None:
    model = build(pair)
    model.train()  # dropout is 0
    click, favor = histories(pair, model)
    training = model.training_pass(click, favor, recorded_noise(pair, model, click, favor))
    logits = model.score_all(model.output.query(training.interests.user))[:, 1:]
    losses = {"contrast": torch.zeros(()), "modality": torch.zeros(()), "behavior": torch.zeros(())}
    losses = {name: value.double() for name, value in losses.items()} | model.unweighted(training)
    losses["main"] = functional.cross_entropy(logits, pair.tensor("in/target") - 1)
    total = losses["main"] + sum(model.weights[name] * losses[name] for name in model.weights)
    total.backward()

    length = pair.sidecar["config"]["length"]
    ours = outputs(training, length) | {"logits": logits, "total": total}
    letters = {"main": "L_main", "contrast": "L_contrast", "modality": "L_m", "behavior": "L_b"}
    ours |= {letters[name]: value for name, value in losses.items()}
    for name in [name for name in pair.arrays if name.startswith("out/")]:
        short = name.removeprefix("out/")
        if short.startswith("eval_logits_"):
            evaluated = build(pair, EvalStart[short.removeprefix("eval_logits_")]).eval()
            with torch.no_grad():
                state = evaluated.encode(merged(pair))
                pair.compare(name, evaluated.score_all(state)[:, 1:])
        else:
            pair.compare(name, ours[short])
    entries = renamed(named(model), pair.below("w/"))
    for name in [name for name in pair.arrays if name.startswith("grad/")]:
        views = [view(parameter.grad) for parameter, view in entries[name.removeprefix("grad/")]]
        pair.compare(name, torch.cat(views).reshape(pair.arrays[name].shape))
    pair.assert_all_compared("out/", "grad/")


# ------------------------------------------------------------------------------------ the model


def build(pair: Pair, start: EvalStart = EvalStart.clean) -> M3BSR:
    """The pair's model in float64, with its weights and its evaluation noise."""
    config = settings(pair)
    config.sampling.eval_start = start
    fields = pair.tensor("in/item_fields")
    names = pair.sidecar["config"]["fields"]
    model = M3BSR(
        config,
        Catalogue(
            users=len(pair.arrays["w/emb/user"]),
            items=int(pair.sidecar["config"]["items"]),
            length=int(pair.sidecar["config"]["length"]),
            image=pair.tensor("in/im"),
            image_present=pair.tensor("in/im_ok"),
            text=pair.tensor("in/te"),
            text_present=pair.tensor("in/te_ok"),
            fields={name: fields[:, i] for i, name in enumerate(names) if 0 < i < len(names) - 1},
            drops_own_events=True,
        ),
    ).double()
    load_weights(pair, model)
    for stage, letter in ((model.modality, "m"), (model.behavior, "b")):
        begin = getattr(stage, "start", None)
        if isinstance(begin, NoisedStart):
            begin.draws = by_draw(pair, f"noise/eval_eps_{letter}", stage.draws, letter)
    return model


def settings(pair: Pair) -> M3BSRConfig:
    """The sidecar's readings and sizes as a config."""
    sidecar = pair.sidecar
    config = M3BSRConfig(hidden=int(sidecar["config"]["d"]))
    config.expert.dropout = float(sidecar["config"].get("dropout", 0.0))
    told = sidecar | sidecar["config"] | sidecar["readings"]
    variants = [told[key] for key in told if "ablation" in key or "variant" in key]
    for key, value in sidecar["readings"].items():
        if value not in variants:
            put(config, key.removeprefix("model."), value)
    for name in variants:
        config = ablated(config, name)
    return config


def ablated(config: M3BSRConfig, name: Any) -> M3BSRConfig:
    """An ablation by the paper's name, however it is punctuated; none for None or an empty name."""
    if not name or name in ("none", "full"):
        return config
    words = re.sub("without|w/o|wo_|no_|[^a-z]", "", str(name).lower())
    known = {re.sub("w/o|[^a-z]", "", key.lower()): key for key in VARIANTS}
    (found,) = [key for short, key in known.items() if short.startswith(words) or short == words]
    return VARIANTS[found](config)


def put(config: Any, path: str, value: Any) -> None:
    """Set `routing.gate` to the member of that name, numbers and booleans as they are."""
    *parents, last = path.split(".")
    for name in parents:
        config = getattr(config, name)
    assert last in {field.name for field in dataclasses.fields(config)}, path
    kind = type(getattr(config, last))
    setattr(config, last, kind[value] if isinstance(value, str) else kind(value))


Part = tuple[nn.Parameter, Callable[[Tensor], Tensor]]


def whole(tensor: Tensor) -> Tensor:
    return tensor


def first(tensor: Tensor) -> Tensor:
    return tensor[0]


def slice_of(index: int, count: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.chunk(count, 1)[index]


def linear(
    name: str, layers: list[Any], view: Callable[[Tensor], Tensor] = whole
) -> dict[str, Any]:
    return {
        f"{name}/w": [(layer.weight, view) for layer in layers],
        f"{name}/b": [(layer.bias, view) for layer in layers],
    }


def norm(name: str, layers: list[Any], view: Callable[[Tensor], Tensor] = whole) -> dict[str, Any]:
    return {
        f"{name}/g": [(layer.weight, view) for layer in layers],
        f"{name}/b": [(layer.bias, view) for layer in layers],
    }


def named(model: M3BSR) -> dict[str, list[Part]]:
    """A fixture's name to the parts of our parameters that, end to end, hold the same array."""
    names: dict[str, list[Part]] = {}
    tables = model.input.id.tables
    for field, table in zip(("item", *model.catalogue.fields, "user"), tables, strict=True):
        names[f"emb/{field}"] = [(table, whole)]
    for i, layer in enumerate(model.input.id.mlp, 1):
        names |= linear(f"id{i}", [layer], first)
    names |= linear("proj/im", [model.input.image.project], first)
    names |= linear("proj/te", [model.input.text.project], first)
    missing = [model.input.image.missing, model.input.text.missing]
    names["missing"] = [(vector, lambda tensor: tensor[None]) for vector in missing]
    names["empty"] = [(model.input.empty, whole)]
    if isinstance(model.input.norms[0], nn.LayerNorm):
        names["in_ln/g"] = [
            (part.weight, lambda tensor: tensor[None]) for part in model.input.norms
        ]
        names["in_ln/b"] = [(part.bias, lambda tensor: tensor[None]) for part in model.input.norms]
    for stage, letter in ((model.modality, "dm"), (model.behavior, "db")):
        names |= denoiser_names(stage, letter)
    experts: Any = model.experts
    if hasattr(experts, "click"):
        names |= encoder_names("ex", [experts.click, experts.favor])
    if hasattr(experts, "shared"):
        shared = experts.shared
        names |= linear("ca/q", [shared.query], first)
        for i, letter in enumerate("kv"):
            names[f"ca/{letter}/w"] = [
                (shared.key_value.weight, lambda x, i=i: x[0].chunk(2, 0)[i])
            ]
            names[f"ca/{letter}/b"] = [(shared.key_value.bias, lambda x, i=i: x[0].chunk(2, 0)[i])]
        names |= linear("ca/o", [shared.out], first)
        names |= encoder_names("sh", [shared.encoder])
        if hasattr(shared.concat, "project"):
            names |= linear("concat", [shared.concat.project], first)
    if hasattr(experts, "routing"):
        names |= linear("gate", [experts.routing.gate], first)
        if hasattr(experts.routing, "specific"):
            names |= linear("spec", [experts.routing.specific], first)
    if hasattr(experts, "specific"):
        names |= linear("spec", [experts.specific], first)
    names["out/b"] = [(model.output.bias, lambda tensor: tensor[1:])]
    if hasattr(model.output, "weight"):
        names["out/w"] = [(model.output.weight, lambda tensor: tensor[1:])]
    else:
        names["out/u"] = [(model.output.project, whole)]
    return names


def denoiser_names(stage: Any, letter: str) -> dict[str, list[Part]]:
    if hasattr(stage, "widen"):
        return linear(f"{letter}/f1", [stage.widen]) | linear(f"{letter}/f2", [stage.narrow])
    if not hasattr(stage, "denoiser"):
        return {}
    part = stage.denoiser
    names = {}
    if hasattr(part.time, "project"):
        names |= linear(f"{letter}/time", [part.time.project])
    for short in ("query", "key", "value", "out"):
        names |= linear(f"{letter}/{short[0]}", [getattr(part.attention, short)])
    if hasattr(part, "norm_before"):
        names |= norm(f"{letter}/ln1", [part.norm_before])
        names |= norm(f"{letter}/ln2", [part.norm_after])
        names |= linear(f"{letter}/f1", [part.widen])
        names |= linear(f"{letter}/f2", [part.narrow])
    return names


def encoder_names(name: str, encoders: list[Any]) -> dict[str, list[Part]]:
    names: dict[str, list[Part]] = {}
    if hasattr(encoders[0].positions, "weight"):
        parts = [(part.positions.weight, lambda tensor: tensor.flatten(1, 2)) for part in encoders]
        names[f"{name}/pos"] = parts
    for i in range(len(encoders[0].layers)):
        layers = [encoder.layers[i] for encoder in encoders]
        mixers = [layer.mixer for layer in layers]
        for j, letter in enumerate("qkv"):
            names |= linear(f"{name}/{i}/{letter}", [m.project for m in mixers], slice_of(j, 3))
        names |= linear(f"{name}/{i}/o", [mixer.out for mixer in mixers])
        names |= norm(f"{name}/{i}/ln1", [layer.norm_1 for layer in layers])
        names |= norm(f"{name}/{i}/ln2", [layer.norm_2 for layer in layers])
        names |= linear(f"{name}/{i}/f1", [layer.feed_forward.widen for layer in layers])
        names |= linear(f"{name}/{i}/f2", [layer.feed_forward.narrow for layer in layers])
    if not isinstance(encoders[0].final, nn.Identity):
        names |= norm(f"{name}/final", [encoder.final for encoder in encoders])
    return names


def load_weights(pair: Pair, model: M3BSR) -> None:
    """Copy every array of the pair; each of ours must be met, each of theirs used."""
    theirs = pair.below("w/")
    ours = renamed(named(model), theirs)
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    with torch.no_grad():
        for name, parts in ours.items():
            views = [view(parameter) for parameter, view in parts]
            sizes = [len(view) for view in views]
            joined = torch.cat(views).shape
            for view, part in zip(views, theirs[name].reshape(joined).split(sizes), strict=True):
                view.copy_(part)


def renamed(ours: dict[str, list[Part]], theirs: dict[str, Tensor]) -> dict[str, list[Part]]:
    """Ours under their names: where one is new, the next unknown array of that shape and kind."""
    found = {name: parts for name, parts in ours.items() if name in theirs}
    for name in [name for name in ours if name not in theirs]:
        shape = torch.cat([view(parameter) for parameter, view in ours[name]]).shape
        same = [
            other
            for other, array in theirs.items()
            if other not in found
            and array.numel() == shape.numel()
            and array.shape[-1] == shape[-1]
        ]
        kind = [other for other in same if other[-1] == name[-1]] or same
        group = [other for other in kind if other[:2] == name[:2]] or kind
        assert group, f"no array for {name} {tuple(shape)}"
        found[group[0]] = ours[name]
    return found


# ----------------------------------------------------------------------------- inputs and noise


def merged(pair: Pair) -> History:
    """Clicks, then favors, as one history; the model takes them apart again."""
    items = torch.cat([pair.tensor("in/cl"), pair.tensor("in/fa")], 1)
    clicks = pair.arrays["in/cl"].shape[1]
    kind = torch.full_like(items, int(Behaviour.FAVOR))
    kind[:, :clicks] = int(Behaviour.CLICK)
    return History(pair.tensor("in/user"), items, torch.where(items > 0, kind, 0))


def histories(pair: Pair, model: M3BSR) -> tuple[History, History]:
    return model.split(merged(pair))


def by_draw(pair: Pair, name: str, draws: int, letter: str) -> Tensor:
    """Noise as [draw, feature, batch, slot, d]; several draws may stand before or after features."""
    array = pair.tensor(name)
    if array.dim() == 4:
        return array.unsqueeze(0)
    features = {"m": 4, "b": 3}[letter]
    if array.shape[0] != array.shape[1]:
        return array if array.shape[:2] == (draws, features) else array.transpose(0, 1)
    feature_first = "first axis" in pair.sidecar["arrays"][name]["meaning"]
    return array.transpose(0, 1) if feature_first else array


def recorded_noise(pair: Pair, model: M3BSR, click: History, favor: History) -> PassNoise:
    def stage(letter: str, part: Any, features: slice, side: History) -> Noise | None:
        if not hasattr(part, "draws") or f"noise/eps_{letter}" not in pair.arrays:
            return None
        draws = by_draw(pair, f"noise/eps_{letter}", part.draws, letter)
        step = pair.tensor(f"noise/t_{letter}")
        return Noise(draws[:, features, :, -side.items.shape[1] :], step)

    return PassNoise(
        stage("m", model.modality, slice(0, 2), click),
        stage("m", model.modality, slice(2, 4), favor),
        stage("b", model.behavior, slice(None), click),
    )


# ------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Frame:
    """Puts our trimmed sequences into slots of full length, zero where nothing is attended."""

    length: int
    attend: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        x = x * self.attend.unsqueeze(2)
        return functional.pad(x, (0, 0, self.length - x.shape[-2], 0))


def outputs(training: TrainingPass, length: int) -> dict[str, Tensor]:
    frames = {
        "cl": Frame(length, training.click.attend),
        "fa": Frame(length, training.favor.attend),
    }
    sides = (training.click, training.favor)

    def mask(name: str) -> Tensor:
        rows = [getattr(side, name) for side in sides]
        return torch.stack([functional.pad(row, (length - row.shape[1], 0)) for row in rows])

    found: dict[str, Tensor] = {
        "real": mask("real"),
        "attend": mask("attend"),
        "features": torch.stack([frames["cl"](training.click.x), frames["fa"](training.favor.x)]),
        "denoised": torch.cat(
            [frames["cl"](training.denoised[0]), frames["fa"](training.denoised[1])]
        ),
        "y": training.interests.user,
    }
    of_click, of_favor = training.modality
    if of_click.levels is not None and of_favor.levels is not None:
        ends = [part.levels.at(len(part.levels.mean)) for part in (of_click, of_favor)]
        found["noised_m"] = torch.cat([frames["cl"](ends[0]), frames["fa"](ends[1])])
    levels = training.behavior.levels
    if levels is not None:
        found["noised_b"] = frames["cl"](levels.at(len(levels.mean)))
    stages = (("m", "cl", of_click), ("m", "fa", of_favor), ("b", "cl", training.behavior))
    for stage, side, part in stages:
        if part.path is not None:
            chain = frames[side](torch.cat([part.path, part.features.unsqueeze(0)]))
            for i, modality in enumerate(MODALITIES[: chain.shape[1]]):
                found[f"chain_{stage}_{side}_{modality}"] = chain[:, i]
    if training.interests.vectors is not None:
        vectors = training.interests.vectors.transpose(0, 1)
        found["experts"] = vectors[:6]
        if len(vectors) > 6:
            found["common"] = vectors[6]
    if training.interests.gate is not None:
        found["gate"] = training.interests.gate
    return found
