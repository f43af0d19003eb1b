"""What a trained M3BSR shows of its items, against the slow model, event by event."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import models.m3bsr
import models.views
from harness.report.noise import feature
from models.interface import History
from models.m3bsr import M3BSR
from models.variants import VARIANTS
from tests.models.m3bsr_world import EVENTS, catalogue, history, reference, shaken, small, users

WAYS = {"image": "im", "text": "te", "id": "id"}


def views(model: M3BSR, histories: list[History]) -> dict[str, np.ndarray]:
    model.eval()
    with torch.no_grad():
        found = model.item_views(iter(histories))
    return {name: view.numpy() for name, view in found.items()}


def slow(model: M3BSR) -> dict[str, dict[int, np.ndarray]]:
    """Every view by item, from the slow model: one user and one event at a time."""
    whole, first_stage = reference(model), reference(model)
    first_stage.options = {**whole.options, "parts.behavior_denoiser": "none"}
    start = whole.options["sampling.eval_start"]
    seen: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for user in users():
        raw = whole.features(user)
        after_m = first_stage.user(user, catalogue().length, start)["denoised"]
        after_b = whole.user(user, catalogue().length, start)["denoised"]
        for behaviour, items in user.events.items():
            for slot, item in enumerate(items):
                for mode, short in WAYS.items():
                    seen[f"{mode}_raw"][item].append(raw[behaviour, short][slot])
                    if mode != "id":
                        seen[f"{mode}_denoised"][item].append(after_m[behaviour, short][slot])
                    if behaviour == "cl":
                        seen[f"{mode}_click"][item].append(after_b[behaviour, short][slot])
    return {
        name: {item: np.mean(rows, 0) for item, rows in of.items()} for name, of in seen.items()
    }


@pytest.mark.parametrize("variant", [None, "MLP twin", "w/o CDMD-M", "w/o CDMD-B"])
@pytest.mark.parametrize("portion", [1 << 17, 1])
def test_views_are_means_over_events_as_the_slow_model_computes_them(
    variant: str | None, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.m3bsr, "PORTION", portion)
    config = small()
    model = shaken(VARIANTS[variant](config) if variant else config)
    found, expected = views(model, [history(EVENTS, padding=2)]), slow(model)
    assert set(expected) == {name for name in found if name.rpartition("_")[0] in WAYS}
    for name, by_item in expected.items():
        assert found[name].dtype == np.float32
        for item, shown in zip(found["item"].tolist(), found[name], strict=True):
            if item in by_item:
                np.testing.assert_allclose(shown, by_item[item], rtol=1e-5, atol=1e-6)
            else:
                assert name.endswith("_click")
                assert np.isnan(shown).all()


def test_items_are_the_most_frequent_ties_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[int, int] = defaultdict(int)
    for clicks, favors in EVENTS:
        for item in clicks + favors:
            counts[item] += 1
    order = sorted(counts, key=lambda item: (-counts[item], item))
    model = shaken(small())
    everything = views(model, [history(EVENTS)])
    assert everything["item"].tolist() == order
    monkeypatch.setattr(models.views, "VIEWED", 5)
    few = views(model, [history(EVENTS)])
    assert few["item"].tolist() == order[:5]
    for name in expected_names(small()) - {"item"}:
        if "project" not in name and "norm" not in name:
            np.testing.assert_array_equal(few[name], everything[name][:5])


def test_batches_of_histories_change_nothing() -> None:
    model, whole = shaken(small()), history(EVENTS)
    parts = [
        replace(whole, user=whole.user[rows], items=whole.items[rows],
                behaviours=whole.behaviours[rows])
        for rows in (slice(0, 3), slice(3, 4), slice(4, None))
    ]  # fmt: skip
    once, cut = views(model, [whole]), views(model, parts)
    for name, view in once.items():
        np.testing.assert_allclose(view, cut[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["layernorm", "none"])
def test_weights_make_the_same_features_outside(norm: str) -> None:
    model = shaken(small(input__norm=norm))
    found = views(model, [history(EVENTS)])
    assert set(found) == expected_names(model.config)
    for mode in ("image", "text"):
        there = getattr(catalogue(), f"{mode}_present").numpy()[found["item"]]
        vectors = getattr(catalogue(), mode).numpy()[found["item"]]
        assert 0 < there.sum() < len(there)
        made = feature(vectors[there], found, mode)
        np.testing.assert_allclose(made, found[f"{mode}_raw"][there], rtol=1e-4, atol=1e-5)
        missing = found[f"{mode}_raw"][~there]
        np.testing.assert_allclose(missing, missing[:1].repeat(len(missing), 0), atol=1e-6)


def expected_names(config: Any) -> set[str]:
    """The names that other code relies on."""
    names = {"item", "image_raw", "text_raw", "id_raw", "image_denoised", "text_denoised"}
    names |= {"image_click", "text_click", "id_click"}
    parts = ["project_weight", "project_bias"]
    if config.input.norm.name == "layernorm":
        parts += ["norm_weight", "norm_bias"]
    return names | {f"{mode}_{part}" for mode in ("image", "text") for part in parts}


def test_histories_without_events_leave_no_items() -> None:
    model = shaken(small())
    found = views(model, [history([([], [])])])
    assert len(found["item"]) == 0
    assert found["image_denoised"].shape == (0, model.config.hidden)
    assert set(views(model, [])) == expected_names(model.config)


def test_views_of_a_model_in_its_usual_precision_ask_for_no_gradient() -> None:
    model = shaken(small()).float()
    for name, view in views(model, [history(EVENTS)]).items():
        assert view.dtype == (np.int64 if name == "item" else np.float32)


@pytest.mark.parametrize("start", ["clean", "bypass"])
def test_views_draw_nothing_and_follow_the_reading_of_evaluation(start: str) -> None:
    model = shaken(small(sampling__eval_start=start))
    before = torch.get_rng_state()
    first, second = views(model, [history(EVENTS)]), views(model, [history(EVENTS)])
    assert torch.equal(before, torch.get_rng_state())
    for name, view in first.items():
        np.testing.assert_array_equal(view, second[name])
    same = np.allclose(first["image_raw"], first["image_denoised"], atol=1e-6)
    assert same == (start == "bypass")
