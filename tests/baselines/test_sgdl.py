"""SGDL: two phases and their switch, memory, mixture, look-ahead, cosines, scheduler, selection."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines import sgdl
from baselines.sgdl import (
    SGDL,
    Backbone,
    GumbelSelection,
    Input,
    Memory,
    Mixture,
    Phase,
    ReinforceSelection,
    Scheduler,
    Selecting,
    SGDLConfig,
    Triplets,
    Vectors,
    among_best,
    bpr,
    bpr_gradient,
    estimated_clean_ratio,
    gradient_cosines,
    mixture,
    scaled_by_user,
    two_means,
)
from harness.config import ProtocolConfig, TrainConfig
from harness.data.batches import TrainingSamples
from harness.seeding import torch_stream
from harness.training.loop import Checkpoint, Progress, StoppedError, fit
from models.graphs import light_gcn
from models.interface import Batch, Catalogue, Recommender
from tests import planted, worlds

RECORDS = worlds.records()
PAIRS = {(int(u), int(i)) for u, i in zip(RECORDS.user, RECORDS.item, strict=True)}
FAVORED = {
    (int(u), int(i))
    for u, i, b in zip(RECORDS.user, RECORDS.item, RECORDS.behaviour, strict=True)
    if b == 2
}


def build(**options: Any) -> SGDL:
    torch.manual_seed(0)
    config = SGDLConfig(**{"hidden": 6, "cosine_batch": 5, **options})
    model = SGDL(config, worlds.catalogue()).double()
    model.prepare(RECORDS)
    return model


def guided(**options: Any) -> SGDL:
    """A model at the start of phase II, with six pairs in ten memorised."""
    model = build(**options)
    chance = torch.rand(len(model.user), generator=torch.Generator().manual_seed(1))
    model.memory.ring[:] = chance < 0.6
    model.phase.fill_(int(Phase.SELF_GUIDED))
    model.begin_epoch(0, torch_stream(0, "begin"))
    return model


def batch(size: int = 1024, seed: int = 0) -> Batch:
    return worlds.batches(RECORDS, SGDL.samples, size, seed=seed)[0]


def pairs(user: Tensor, item: Tensor) -> set[tuple[int, int]]:
    return set(zip(user.tolist(), item.tolist(), strict=True))


def detached(vectors: Vectors) -> Vectors:
    return Vectors(*(one.detach() for one in vectors))


def gradient(loss: Tensor, *of: Tensor, **options: Any) -> tuple[Any, ...]:
    return tuple(torch.autograd.grad(loss, of, **options))


# Backbone and base loss -------------------------------------------------------------------------


def test_parameters_follow_the_formula() -> None:
    model = SGDL(SGDLConfig(), worlds.catalogue())
    networks = 301 + 3001
    tables = (worlds.USERS + worlds.ITEMS + 1) * 64  # one row more than the paper's: padding
    assert sum(p.numel() for p in model.parameters()) == tables + networks
    assert sum(p.numel() for p in model.scheduler.parameters()) == 3001
    assert sum(p.numel() for p in model.weight_network.parameters()) == 301


def test_tables_start_normal_with_deviation_a_tenth() -> None:
    model = SGDL(SGDLConfig(hidden=512), worlds.catalogue())
    assert float(model.user_table.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert float(model.item_table[1:].detach().std()) == pytest.approx(0.1, rel=0.05)
    assert not model.item_table[0].any()


def test_defaults_are_the_authors() -> None:
    config = SGDLConfig()
    assert (config.hidden, config.layers, config.learning_rate) == (64, 3, 5e-4)
    assert (config.meta_rate, config.schedule_rate) == (5e-4, 5e-3)
    assert (config.memory_epochs, config.weight_hidden, config.tau) == (10, 100, 1.0)
    assert (config.max_phase1_epochs, config.cosine_batch) == (50, 128)
    first = [next(iter(kind)) for kind in (Input, Backbone, Selecting)]
    assert [config.sgdl_input, config.backbone, config.selecting] == first


def test_final_vectors_are_the_mean_of_levels_zero_to_three() -> None:
    model = build()
    users, rows = worlds.USERS, worlds.ITEMS + 1
    binary = torch.zeros(users + rows, users + rows, dtype=torch.float64)
    for user, item in PAIRS:
        binary[user, users + item] = binary[users + item, user] = 1
    degree = binary.sum(1).clamp(min=1)
    step = binary / (degree.unsqueeze(0) * degree.unsqueeze(1)).sqrt()
    level = torch.cat([model.user_table, model.item_table])
    levels = [level, step @ level, step @ step @ level, step @ step @ step @ level]
    torch.testing.assert_close(torch.cat(model.vectors()), torch.stack(levels).mean(0))


def test_mf_has_no_propagation() -> None:
    model = build(backbone=Backbone.mf)
    assert torch.equal(model.vectors().users, model.user_table)
    assert torch.equal(model.vectors().items, model.item_table)


def test_the_loss_is_softplus_without_a_penalty() -> None:
    model = build()
    draws = torch_stream(3, "draws")
    triplets = model.triplets(replace(batch(), generator=torch_stream(3, "draws")))
    users, items = model.vectors()
    user, positive = batch().history.user, batch().target
    negative = model.negatives(user, 1, draws).squeeze(1)
    gap = (users[user] * items[negative]).sum(1) - (users[user] * items[positive]).sum(1)
    expected = (1 + gap.exp()).log().mean()
    torch.testing.assert_close(model.update(model.vectors(), triplets)["bpr"], expected)


def test_a_negative_is_no_pair_of_the_user() -> None:
    model = build()
    for seed in range(20):
        found = model.triplets(replace(batch(), generator=torch_stream(seed, "draws")))
        assert not pairs(found.user, found.negative) & PAIRS
        assert int(found.negative.min()) >= 1


def test_gradient_rows_are_those_of_autograd() -> None:
    ends = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(bpr_gradient(ends), gradient(bpr(ends).sum(), ends)[0])


# Phase I ----------------------------------------------------------------------------------------


def test_phase_one_has_a_fifth_of_the_rate_and_phase_two_all_of_it() -> None:
    model = build(learning_rate=0.01)
    rates = [group["lr"] for group in model.optimiser().param_groups]
    assert rates == [pytest.approx(0.002), 5e-4, 5e-3]
    model.phase.fill_(int(Phase.SELF_GUIDED))
    rates = [group["lr"] for group in model.optimiser().param_groups]
    assert rates == [0.01, 5e-4, 5e-3]


def test_phase_one_has_one_pass_and_trains_no_network() -> None:
    model = build()
    (losses,) = model.passes(batch())
    losses["bpr"].backward()
    networks = [*model.weight_network.parameters(), *model.scheduler.parameters()]
    assert all(parameter.grad is None for parameter in networks)
    assert model.user_table.grad is not None


def test_losses_are_stretched_by_user() -> None:
    user = torch.tensor([0, 0, 0, 1, 3, 3])
    losses = torch.tensor([0.2, 0.6, 1.0, 0.7, 0.4, 0.4], dtype=torch.float64)
    found = scaled_by_user(losses, user, 5)
    expected = [0, 0.5, 1, 0.7, 0, 0]  # an only loss stays raw; equal ones do not divide by zero
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def two_humps(seed: int, size: int = 300) -> Tensor:
    """A low hump, and a wide high one."""
    draws = np.random.default_rng(seed)
    low, high = draws.normal(0.2, 0.1, size), draws.normal(0.7, 0.2, size // 3)
    return torch.from_numpy(np.concatenate([low, high]).clip(0, 1))


def test_the_start_is_the_best_clustering_into_two() -> None:
    for seed in range(5):
        values = two_humps(seed, 30)
        clusters = two_means(values).bool()

        def spread(low: Tensor, values: Tensor = values) -> float:
            return sum(
                float((values[part] - values[part].mean()).square().sum())
                for part in (low, ~low)
                if part.any()
            )

        best = min(spread(values <= cut) for cut in values)
        assert spread(clusters[:, 0]) == pytest.approx(best)


@pytest.mark.parametrize("values", [[0.5], [0.3, 0.3, 0.3], [0.0, 1.0]])
def test_few_or_equal_losses_give_a_ratio(values: list[float]) -> None:
    assert 0 <= estimated_clean_ratio(torch.tensor(values, dtype=torch.float64)) <= 1


def test_a_constant_is_added_to_each_variance() -> None:
    values = torch.tensor([0.1, 0.3, 0.7, 0.7], dtype=torch.float64)
    found = Mixture.of(values, two_means(values))
    torch.testing.assert_close(found.variances, values.new_tensor([0.01 + 5e-4, 5e-4]))
    torch.testing.assert_close(found.means, values.new_tensor([0.2, 0.7]))


def slow_ratio(values: np.ndarray, responsibilities: np.ndarray, tolerance: float) -> float:
    """EM by the book, stopped by the mean log-likelihood."""
    last: float | None = -np.inf
    for number in range(102):
        counts = responsibilities.sum(0)
        means = values @ responsibilities / counts
        squares = (values[:, None] - means) ** 2
        variances = (responsibilities * squares).sum(0) / counts + 5e-4
        joint = counts / len(values) * np.exp(-squares / 2 / variances)
        joint /= np.sqrt(2 * np.pi * variances)
        responsibilities = joint / joint.sum(1, keepdims=True)
        likelihood = np.log(joint.sum(1)).mean()
        if last is None or number == 101:
            break
        last = None if abs(likelihood - last) < tolerance else float(likelihood)
    return float(1 - responsibilities[:, means.argmax()].mean())


def test_the_mixture_stops_early_and_starts_from_two_means() -> None:
    values = two_humps(3)
    start = two_means(values).numpy()
    ours = estimated_clean_ratio(values)
    assert ours == pytest.approx(slow_ratio(values.numpy(), start, 1e-2), abs=1e-9)
    assert abs(ours - slow_ratio(values.numpy(), start, 1e-9)) > 1e-3  # converged: another ratio
    assert mixture(values).means.max() > 0.5


def test_the_clean_share_is_that_of_the_component_with_the_smaller_mean() -> None:
    assert estimated_clean_ratio(two_humps(0)) == pytest.approx(0.75, abs=0.06)
    assert estimated_clean_ratio(1 - two_humps(0)) == pytest.approx(0.25, abs=0.06)


def test_the_best_of_each_user_are_found_as_by_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    user = torch.tensor([0] * 4 + [1] * 7 + [3] * 2)
    scores, places = torch.rand(13, generator=generator), torch.tensor([2, 3, 0, 5])
    found = among_best(scores, user, places)
    for number in range(4):
        own = (user == number).nonzero().squeeze(1)
        best = own[scores[own].argsort(descending=True)[: int(places[number])]]
        assert set(best.tolist()) == set(own[found[own]].tolist())


def test_memorised_are_the_pairs_among_the_n_best_beside_n_negatives() -> None:
    model = build().eval()
    with torch.no_grad():
        found = model.memorised_now(torch_stream(4, "draws"))
        users, items = model.vectors()
    negatives = model.negatives(model.user, 1, torch_stream(4, "draws")).squeeze(1)
    assert 0 < int(found.sum()) < len(found)
    for user in range(worlds.USERS):
        own = model.user == user
        pool = set(model.item[own].tolist()) | set(negatives[own].tolist())  # one candidate each
        scores = {item: float(users[user] @ items[item]) for item in pool}
        best = sorted(pool, key=scores.__getitem__, reverse=True)[: int(own.sum())]
        expected = [int(item) in best for item in model.item[own]]
        assert found[own].tolist() == expected


def test_a_pair_is_memorised_from_half_of_the_slots_on() -> None:
    memory = Memory(10)
    memory.prepare(2)
    for epoch in range(1, 8):
        memory.record(torch.tensor([True, epoch > 2]))
        assert memory.memorised.tolist() == [epoch >= 5, epoch >= 7]


def test_the_memory_is_a_ring() -> None:
    memory = Memory(4)
    memory.prepare(1)
    for _ in range(4):
        memory.record(torch.tensor([True]))
    for left in (3, 2, 1, 0):
        memory.record(torch.tensor([False]))
        assert memory.memorised.tolist() == [left >= 2]


def test_the_memory_outlives_loading_and_preparing() -> None:
    model = guided()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(9)
    other = SGDL(model.config, worlds.catalogue()).double()  # not prepared yet
    other.load_state_dict(torch.load(file, weights_only=True))
    other.prepare(RECORDS)
    assert torch.equal(other.memory.ring, model.memory.ring)
    other.begin_epoch(0, torch_stream(0, "begin"))
    assert torch.equal(torch.stack(other.clean), torch.stack(model.clean))


@pytest.mark.parametrize(("clean", "ends"), [(0.0, True), (1.01, False)])
def test_phase_one_ends_when_as_much_is_memorised_as_seems_clean(
    monkeypatch: pytest.MonkeyPatch, clean: float, ends: bool
) -> None:
    model = build()
    monkeypatch.setattr(model, "clean_ratio", lambda _: clean)
    for epoch in range(1, 8):
        assert not model.selects
        assert model.stage_ended(epoch, torch_stream(epoch, "end")) is ends
    assert float(model.ratios[6, 0]) == pytest.approx(
        float(model.memory.memorised.double().mean()), abs=1e-6
    )
    assert float(model.ratios[6, 1]) == pytest.approx(clean)
    assert model.next_stage()
    assert model.phase == Phase.SELF_GUIDED
    assert model.selects
    assert not model.stage_ended(1, torch_stream(0, "end"))
    assert not model.next_stage()


def test_phase_one_has_a_cap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(max_phase1_epochs=3)
    monkeypatch.setattr(model, "clean_ratio", lambda _: 1.01)
    ends = [model.stage_ended(epoch, torch_stream(epoch, "end")) for epoch in (1, 2, 3)]
    assert ends == [False, False, True]
    assert model.next_stage()
    assert "no memorisation point in 3 epochs" in caplog.text


def test_a_phase_one_that_the_harness_ends_before_its_point_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for clean in (0.0, 1.01):
        model = build()
        monkeypatch.setattr(model, "clean_ratio", lambda _, clean=clean: clean)
        for epoch in range(1, 8):
            model.stage_ended(epoch, torch_stream(epoch, "end"))
        assert model.next_stage()  # as train.epochs=7 does
        assert model.phase == Phase.SELF_GUIDED
        assert ("no memorisation point in 7 epochs" in caplog.text) is (clean > 1)


def test_without_a_memory_phase_one_goes_on_and_at_its_cap_training_stays_plain() -> None:
    model = build(memory_epochs=100, max_phase1_epochs=2, learning_rate=0.01)
    model.stage_ended(1, torch_stream(1, "end"))
    assert model.next_stage()
    assert model.phase == Phase.MEMORISATION
    assert model.stage_ended(1, torch_stream(2, "end"))
    assert model.next_stage()
    assert model.phase == Phase.FALLBACK
    assert model.selects
    assert len(list(model.passes(batch()))) == 1
    assert model.optimiser().param_groups[0]["lr"] == pytest.approx(0.002)
    assert not model.next_stage()


# Phase II: the clean batch ----------------------------------------------------------------------


def test_clean_negatives_avoid_memorised_pairs_alone() -> None:
    model = guided()
    memorised = pairs(model.user[model.memorised], model.item[model.memorised])
    negatives = set()
    for epoch in range(30):
        model.begin_epoch(epoch, torch_stream(epoch, "begin"))
        assert pairs(model.clean.user, model.clean.positive) == memorised
        negatives |= pairs(model.clean.user, model.clean.negative)
    assert not negatives & memorised
    assert negatives & PAIRS  # observed, but not memorised


def test_clean_triplets_are_recycled_in_the_same_order_within_an_epoch() -> None:
    model = guided()
    count = -(-len(model.clean.user) // 5)
    first, second = ([torch.stack(model.next_clean()) for _ in range(count)] for _ in range(2))
    assert torch.equal(torch.cat(first, 1), torch.stack(model.clean))
    assert torch.equal(torch.cat(second, 1), torch.cat(first, 1))
    before = torch.stack(model.clean)
    model.begin_epoch(1, torch_stream(1, "begin"))
    assert not torch.equal(torch.stack(model.clean), before)


# Phase II: look-ahead and meta loss -------------------------------------------------------------


def slow_step(model: SGDL, tables: Vectors, triplets: Triplets) -> Vectors:
    """theta - lr grad mean(w(l) l) by autograd through the propagation, graph kept."""
    losses = bpr(triplets.ends(model.final(tables)))
    mean = (model.weight_network(losses.detach()) * losses).mean()
    steps = gradient(mean, *tables, create_graph=True)
    rate = model.config.learning_rate
    return Vectors(tables.users - rate * steps[0], tables.items - rate * steps[1])


@pytest.mark.parametrize("backbone", Backbone)
def test_the_look_ahead_and_its_second_order_are_those_of_autograd(backbone: Backbone) -> None:
    model = guided(learning_rate=5.0, backbone=backbone)
    train, clean = model.triplets(batch()), model.clean
    tables = Vectors(model.user_table, model.item_table)
    slow = slow_step(model, tables, train)
    fast = model.look_ahead(detached(model.vectors()), train)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)
    weights = list(model.weight_network.parameters())
    slow_meta = bpr(clean.ends(model.final(slow))).mean()
    fast_meta = bpr(clean.ends(model.final(fast))).mean()
    expected, found = gradient(slow_meta, *weights), gradient(fast_meta, *weights)
    for one, other in zip(found, expected, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other)


def test_the_meta_loss_reaches_both_networks_and_no_table() -> None:
    model = guided()
    passes = model.passes(batch())
    sum(next(passes).values(), torch.zeros(())).backward()
    assert model.user_table.grad is None
    assert model.item_table.grad is None
    assert all(parameter.grad is not None for parameter in model.weight_network.parameters())
    model.zero_grad()
    (losses,) = passes
    losses["bpr"].backward()
    networks = [*model.weight_network.parameters(), *model.scheduler.parameters()]
    assert all(parameter.grad is None for parameter in networks)
    assert model.user_table.grad is not None


def test_the_meta_loss_is_taken_at_the_look_ahead_tables() -> None:
    model = guided(learning_rate=100.0)
    triplets, fixed = model.triplets(batch()), detached(model.vectors())
    with torch.no_grad():
        found = model.meta(fixed, triplets, torch_stream(5, "draws"))["meta"]
        model.cursor = 0
        clean = model.next_clean()
        probability = model.scheduler(*model.features(fixed, clean)).softmax(0)
        uniform = torch.rand(5, 5, generator=torch_stream(5, "draws")).double()
        chosen = model.selection.choose(probability, uniform).argmax(1)  # type: ignore[attr-defined]
        ahead = model.final(model.look_ahead(fixed, triplets))
    losses = {name: bpr(clean.ends(at))[chosen].mean() for name, at in (("a", ahead), ("t", fixed))}
    torch.testing.assert_close(found, losses["a"])
    assert abs(float(found - losses["t"])) > 1e-3


def test_the_tables_are_trained_with_the_updated_weights() -> None:
    model = guided(meta_rate=0.5, schedule_rate=0.5)
    optimiser, passes = model.optimiser(), model.passes(batch())
    before = model.user_table.detach().clone()
    next(passes)["meta"].backward()
    old = model.weight_network(torch.ones(1, dtype=torch.float64)).detach()
    optimiser.step()
    assert torch.equal(model.user_table, before)
    losses = bpr(model.triplets(batch()).ends(model.vectors()))
    (found,) = passes
    assert not torch.equal(model.weight_network(torch.ones(1, dtype=torch.float64)), old)
    expected = (model.weight_network(losses) * losses).mean()
    torch.testing.assert_close(found["bpr"], expected)


def test_a_weight_is_a_constant_to_its_loss() -> None:
    model = guided()
    losses = torch.rand(4, dtype=torch.float64, requires_grad=True)
    weights = model.weight_network(losses)
    assert weights.shape == (4,)
    assert ((weights > 0) & (weights < 1)).all()
    with pytest.raises(RuntimeError, match="not have been used"):
        gradient(weights.sum(), losses)


# Phase II: scheduler ----------------------------------------------------------------------------


def slow_cosines(model: SGDL, clean: Triplets) -> Tensor:
    """From the gradient of every triplet's loss in the whole tables."""
    ahead = slow_step(model, Vectors(model.user_table, model.item_table), clean)
    after = Vectors(*(table.detach().requires_grad_() for table in ahead))
    rows = []
    for number in range(len(clean.user)):
        gradients = [
            gradient(bpr(clean.ends(model.final(tables)))[number], *tables)
            for tables in (Vectors(model.user_table, model.item_table), after)
        ]
        rows.append(
            [
                torch.cosine_similarity(one.flatten(), other.flatten(), 0)
                for one, other in zip(*gradients, strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("numbers", [1, 1 << 24])
def test_cosines_are_those_of_whole_gradients(
    monkeypatch: pytest.MonkeyPatch, layers: int, numbers: int
) -> None:
    monkeypatch.setattr(sgdl, "COLUMN_NUMBERS", numbers)  # 1: a triplet at a time
    backbone = Backbone.lightgcn if layers else Backbone.mf
    model = guided(backbone=backbone, layers=max(1, layers), learning_rate=20.0)
    clean = model.next_clean()
    _, found = model.features(detached(model.vectors()), clean)
    expected = slow_cosines(model, clean)
    torch.testing.assert_close(found, expected)
    assert (expected < 0.99).any()


def test_a_triplet_without_gradient_has_cosine_zero() -> None:
    model = guided()
    clean = model.next_clean()
    ends = torch.zeros(5, 3, 6, dtype=torch.float64)
    assert torch.equal(
        gradient_cosines(model.graph, 3, clean, ends, ends), torch.zeros(5, 2).double()
    )


def test_the_scheduler_sees_sequences_of_length_one() -> None:
    torch.manual_seed(0)
    scheduler = Scheduler()
    losses, cosines = torch.rand(6), torch.rand(6, 2)
    logits = scheduler(losses, cosines)
    torch.testing.assert_close(scheduler(losses.flip(0), cosines.flip(0)), logits.flip(0))
    torch.testing.assert_close(scheduler(losses[:1], cosines[:1]), logits[:1])
    with torch.no_grad():
        for name, parameter in scheduler.named_parameters():
            if "weight_hh" in name:
                parameter.normal_()
    assert torch.equal(scheduler(losses, cosines), logits)


def test_cosines_come_before_losses_in_the_scheduler() -> None:
    torch.manual_seed(0)
    scheduler = Scheduler()
    with torch.no_grad():
        scheduler.fc1.weight[:, 20:] = 0
    losses, cosines = torch.rand(6), torch.rand(6, 2)
    assert torch.equal(scheduler(losses, cosines), scheduler(losses + 1, cosines))
    assert not torch.equal(scheduler(losses, cosines), scheduler(losses, cosines + 1))


def test_as_many_triplets_are_drawn_with_replacement() -> None:
    probability = torch.tensor([0.7, 0.2, 0.1, 0.0])
    selection = GumbelSelection(1.0)
    counts = torch.zeros(4)
    for seed in range(200):
        chosen = selection.choose(probability, selection.uniform(4, torch_stream(seed, "draws")))
        assert chosen.shape == (4, 4)
        assert chosen.argmax(1).shape == (4,)
        torch.testing.assert_close(chosen, chosen.round())
        counts += chosen.sum(0)
    torch.testing.assert_close(counts / 800, probability, atol=0.05, rtol=0)


def test_a_draw_has_the_gradient_of_the_softmax_at_its_temperature() -> None:
    uniform = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    for tau in (1.0, 0.5):
        logits = torch.tensor([0.1, 0.4, -0.3], requires_grad=True)
        probability = logits.softmax(0)
        noise = -(-uniform.log()).log()
        soft = ((probability.log() + noise) / tau).softmax(1)
        (expected,) = gradient((soft * weights).sum(), logits, retain_graph=True)
        chosen = GumbelSelection(tau).choose(probability, uniform)
        assert torch.equal(chosen.argmax(1), soft.argmax(1))
        torch.testing.assert_close(gradient((chosen * weights).sum(), logits)[0], expected)


def test_reinforce_adds_log_probabilities_times_the_meta_loss() -> None:
    logits = torch.tensor([0.1, 0.4, -0.3], requires_grad=True)
    probability = logits.softmax(0)
    ends = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = ReinforceSelection().losses(probability, ends, torch_stream(0, "draws"))
    drawn = torch.multinomial(probability.detach(), 3, replacement=True,
                              generator=torch_stream(0, "draws"))  # fmt: skip
    meta = bpr(ends[drawn]).mean()
    torch.testing.assert_close(found["meta"], meta)
    torch.testing.assert_close(found["scheduler"], probability[drawn].log().sum() * meta)
    for name, other in (("scheduler", ends), ("meta", logits)):
        (missing,) = gradient(found[name], other, allow_unused=True, retain_graph=True)
        assert missing is None


# Options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Input)
def test_the_input_decides_matrix_and_clean_set(kind: Input) -> None:
    model = build(sgdl_input=kind)
    wanted = FAVORED if kind is Input.favor else PAIRS
    assert pairs(model.user, model.item) == wanted
    assert len(model.user) == len(wanted)
    found = model.triplets(batch())
    assert pairs(found.user, found.positive) == wanted
    clean = pairs(model.user[model.memorised], model.item[model.memorised])
    assert clean == (FAVORED if kind is Input.union_favor_clean else set())


def test_favors_alone_make_the_negatives_of_input_favor() -> None:
    model = build(sgdl_input=Input.favor)
    negatives = set()
    for seed in range(30):
        found = model.triplets(replace(batch(), generator=torch_stream(seed, "draws")))
        negatives |= pairs(found.user, found.negative)
    assert not negatives & FAVORED
    assert negatives & (PAIRS - FAVORED)


def test_favors_that_are_clean_do_not_count_as_memorised_for_the_switch() -> None:
    model = build(sgdl_input=Input.union_favor_clean)
    model.stage_ended(1, torch_stream(0, "end"))
    assert float(model.ratios[0, 0]) == 0


def test_a_batch_without_favors_is_left_out_of_input_favor() -> None:
    model = build(sgdl_input=Input.favor)
    clicks = replace(batch(), favors=torch.zeros_like(batch().favors))
    assert list(model.passes(clicks)) == []
    assert float(model.loss(clicks)["bpr"].detach()) == 0


@pytest.mark.parametrize("persists", [True, False])
def test_the_scheduler_lives_through_the_epochs_unless_told_otherwise(persists: bool) -> None:
    model = guided(persist_scheduler=persists)
    optimiser = model.optimiser()

    def step() -> None:
        for losses in model.passes(batch()):
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            model.before_step(optimiser)
            optimiser.step()

    step()
    step()
    before = model.scheduler.fc1.weight.detach().clone()
    model.begin_epoch(1, torch_stream(1, "begin"))
    assert torch.equal(model.scheduler.fc1.weight, before) is persists
    step()
    steps = int(optimiser.state[model.user_table]["step"])
    assert steps == (3 if persists else 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"selecting": Selecting.reinforce},
        {"backbone": Backbone.mf},
        {"sgdl_input": Input.favor},
        {"sgdl_input": Input.union_favor_clean},
        {"persist_scheduler": False},
        {"layers": 1, "tau": 0.5, "cosine_batch": 3, "weight_hidden": 4},
    ],
    ids=str,
)
def test_every_variant_trains(options: dict[str, object]) -> None:
    model = guided(learning_rate=0.01, **options)
    optimiser, ends = model.optimiser(), []
    for epoch in range(20):
        model.begin_epoch(epoch, torch_stream(epoch, "begin"))
        for losses in model.passes(batch(seed=epoch)):
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            model.before_step(optimiser)
            optimiser.step()
        users, items = model.vectors()
        ends.append(float((users[model.user] * items[model.item]).sum(1).mean().detach()))
    assert ends[-1] > ends[0] + 0.05


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers", 0), ("memory_epochs", 0), ("max_phase1_epochs", 0), ("cosine_batch", 0),
     ("weight_hidden", 0), ("tau", 0.0)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_an_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        build(**{name: value})


def test_no_history_is_read() -> None:
    model = build().eval()
    history = worlds.case_history()
    nothing = worlds.history([[]] * len(worlds.CASES))
    assert torch.equal(model.encode(history), model.encode(nothing))


def test_all_users_share_one_propagation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build().eval(), []
    real = light_gcn

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(sgdl, "light_gcn", counted)
    with torch.no_grad():
        for _ in range(3):
            model.score_all(model.encode(worlds.case_history()))
    assert len(calls) == 1


@pytest.mark.parametrize("persists", [True, False])
def test_a_run_that_is_taken_up_after_any_epoch_ends_the_same(
    persists: bool, tmp_path: Path
) -> None:
    samples = TrainingSamples(
        worlds.split(RECORDS), SGDL.samples, ProtocolConfig(), TrainConfig(batch_size=32)
    )
    train, ends = TrainConfig(epochs=8, patience=8), []
    for number, kills in enumerate(([], [3, 7, 9])):  # in phase I, and in phase II
        checkpoint, progress = Checkpoint(tmp_path / str(number), {}), Progress()
        for kill in [*kills, None]:
            model = build(persist_scheduler=persists, learning_rate=0.02)
            with suppress(StoppedError):
                progress = fit(
                    model,
                    samples,
                    some_score,
                    train,
                    0,
                    checkpoint,
                    stop=partial(reached, checkpoint, kill),
                )
        assert model.phase == Phase.SELF_GUIDED
        assert progress.resumed == len(kills)
        ends.append(torch.cat([value.flatten().double() for value in model.state_dict().values()]))
    assert torch.equal(*ends)


def some_score(model: Recommender) -> float:
    return float(model.eval().state_dict()["user_table"].sum())


def reached(checkpoint: Checkpoint, epoch: int | None) -> bool:
    """Whether exactly so many epochs are finished."""
    state = checkpoint.load()
    return state is not None and state["progress"]["epoch"] == epoch


# Strength ---------------------------------------------------------------------------------------


def make(rate: float, catalogue: Catalogue) -> SGDL:
    config = SGDLConfig(hidden=8, learning_rate=0.1, cosine_batch=32, meta_rate=rate)
    return SGDL(config, catalogue)


@cache
def noisy(seed: int, rate: float) -> SGDL:
    """Trained on the world where half of the clicks are accidents, learning the weights at `rate`."""
    world = planted.noise(seed)
    model = planted.trained(partial(make, rate), world, seed, epochs=12, batch_size=256)
    assert isinstance(model, SGDL)
    return model


def mean(value: Callable[[int], float]) -> float:
    return sum(map(value, planted.SEEDS)) / len(planted.SEEDS)


@pytest.mark.slow
def test_learned_weights_stand_noise_better_than_fixed_ones() -> None:
    """The mechanism off: the weight network stays at its start (meta_rate 0)."""

    def strength(rate: float) -> float:
        return mean(lambda seed: planted.ndcg_at_10(noisy(seed, rate), planted.noise(seed)))

    on, off = strength(0.005), strength(0.0)
    assert on > mean(lambda seed: planted.most_popular(planted.noise(seed))) + 0.25
    assert on > off + 0.04


@pytest.mark.slow
def test_weights_fall_with_the_loss_and_what_is_memorised_is_cleaner() -> None:
    for seed in planted.SEEDS:
        world, model = planted.noise(seed), noisy(seed, 0.005)
        low, high = model.weight_network(torch.tensor([0.1, 2.0])).tolist()
        assert low > high + 0.2
        taste = (world.candidates[:, 0] - 1) // 12
        genuine = (model.item - 1) // 12 == taste[model.user]
        clean = genuine[model.memorised].double().mean()
        assert float(clean - genuine.double().mean()) > 0.05
