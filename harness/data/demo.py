"""The demo data: two worlds of `harness.data.synthetic`, prepared like any other source."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.files import DEMO, MANIFEST, check_name, write_archive
from harness.data.prepare import prepare
from harness.data.raw import Raw
from harness.data.synthetic import World, WorldConfig, generate, kuaishou_world, rec_tmall_world
from harness.errors import InputError, unknown

TWINS = {"rec_tmall": rec_tmall_world, "kuaishou": kuaishou_world}
"""The worlds of `prepare demo`, by what follows the set's name and "_"."""


def read_world(world: World) -> Raw:
    """A generated world as a raw log; the truth stays behind."""
    config = world.config
    items = range(config.items)
    fields_of_items = {
        "brand": world.items.brand,
        "seller": world.items.seller,
        "category": world.items.leaf,
    }
    return Raw(
        source="demo",
        user=world.user,
        item=world.item,
        behaviour=world.behaviour + 1,
        timestamp=world.timestamp,
        user_ids=[str(user) for user in range(config.users)],
        item_ids=[str(item) for item in items],
        keep_items=True,
        title=world.titles(),
        picture=[f"generated:{item}" for item in items],
        category=[f"{p}-{leaf}" for p, leaf in zip(world.items.parent, world.items.leaf, strict=True)],
        fields={
            key: [f"{value:03d}" for value in values] for key, values in fields_of_items.items()
        } if config.id_fields else {},
        image=np.where(world.image.missing[:, None], 0.0, world.image.stored),
        text=np.where(world.text.missing[:, None], 0.0, world.text.stored),
        seed=config.seed,
        demo=True,
        facts={
            "world": asdict(config),
            "redraws": world.redraws,
            "accidental_clicks": int(world.accident.sum()),
            "cold_items": int(world.items.cold.sum()),
        },
    )  # fmt: skip


def prepare_demo(
    root: Path, name: str, config: WorldConfig, *, replace_old: bool = True
) -> dict[str, Any]:
    """Write one world as data/NAME, and its truth beside it as data/NAME.truth.npz."""
    check_name(name)
    world = generate(config)
    manifest = prepare(read_world(world), root, name, replace=replace_old)
    try:
        write_archive(root / f"{name}.truth.npz", world.truth())
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write '{root / name}.truth.npz' ({reason}); choose another folder with --data-dir DIR"
        ) from error
    return manifest


def ensure_demo(root: Path, name: str) -> None:
    """Prepare a default demo set when it is missing; other names are left to `Dataset.open`.

    Two processes at once both end well: each builds in a folder of its own, the first to finish stays.
    """
    if name in DEMO and not (root / name / MANIFEST).is_file():
        prepare_demo(root, name, TWINS[name.removeprefix("demo_")](), replace_old=False)


def worlds(overrides: list[str]) -> dict[str, WorldConfig]:
    """The two twins with knobs set: world.KNOB=VALUE for both, rec_tmall.KNOB=VALUE for one.

    world.seed=N gives the first twin N and the second N + 1, as in the defaults.

    Raises:
        InputError: no such knob, or a value that it cannot take.
    """
    configs = {twin: make() for twin, make in TWINS.items()}
    for override in overrides:
        key, equals, value = override.partition("=")
        group, dot, knob = key.partition(".")
        if not (equals and dot):
            raise InputError(
                f"'{override}' is not a knob; write world.KNOB=VALUE, as in world.accident=0.35"
            )
        if group not in ("world", *TWINS):
            raise unknown("world", group, ("world", *TWINS))
        for number, twin in enumerate(TWINS):
            if group in ("world", twin):
                shift = number if (group, knob) == ("world", "seed") else 0
                configs[twin] = _with_knob(configs[twin], knob, value, shift)
    for config in configs.values():
        _check(config)
    return configs


def _with_knob(config: WorldConfig, knob: str, value: str, shift: int) -> WorldConfig:
    """A world with one knob set from text."""
    kinds = {field.name: type(getattr(config, field.name)) for field in fields(WorldConfig)}
    if knob not in kinds:
        raise unknown("knob", knob, kinds)
    kind = kinds[knob]
    booleans = {"true": True, "false": False}
    try:
        parsed: Any = booleans[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise InputError(f"world.{knob}={value}: '{value}' is not {wanted}") from None
    changed: dict[str, Any] = {knob: parsed + shift if shift else parsed}
    return replace(config, **changed)


def _check(config: WorldConfig) -> None:
    """InputError for a value outside what the generator can do."""
    limits = {
        "seed": (0, 2**63), "users": (1, 10**7), "items": (100, 10**7), "width": (22, 65536),
        "stay": (0, 1), "succ": (0, 1), "browse": (0, 1), "delay": (0, 0.999), "direct": (0, 1),
        "accident": (0, 1), "nuisance": (0, 10**6), "overlap": (0, 1), "miss_im": (0, 1),
        "miss_te": (0, 1), "cold": (0, 1), "length_min": (3, 10**6), "length_max": (3, 10**6),
        "leaves": (8, 10**5),
    }  # fmt: skip
    for knob, value in asdict(config).items():
        if not math.isfinite(value):
            raise InputError(f"world.{knob}={value} must be a finite number")
    for knob, (low, high) in limits.items():
        value = getattr(config, knob)
        if not low <= value <= high:
            raise InputError(f"world.{knob}={value} must lie between {low} and {high}")
    if config.leaves % 8 or config.leaves > config.items:
        raise InputError(
            f"world.leaves={config.leaves} must be a multiple of 8, at most world.items={config.items}"
        )
