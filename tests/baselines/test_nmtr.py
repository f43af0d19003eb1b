"""NMTR: the facts most often got wrong, each named, options, cost, strength."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.nmtr import NMTR, CascadeForm, NMTRConfig, Optimiser, Variant, log_loss
from models.interface import Batch, Behaviour, Samples
from tests import planted, worlds
from tests.parity.adapters import nmtr as adapter
from tests.parity.pairs import load

CLICK, FAVOR = int(Behaviour.CLICK), int(Behaviour.FAVOR)


def build(seed: int = 0, users: int = worlds.USERS, **options: object) -> NMTR:
    """A narrow model in float64 whose biases are not at their start, and tables not small."""
    torch.manual_seed(seed)
    config = NMTRConfig(**{"hidden": 8, **options})  # type: ignore[arg-type]
    model = NMTR(config, worlds.catalogue(users=users)).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.Q[0] = 0
    return model


def pairs(seed: int = 0) -> Batch:
    batch = worlds.batches(worlds.records(), Samples.pair, seed=seed)[0]
    return replace(batch, generator=torch.Generator().manual_seed(seed))


def total(model: NMTR, batch: Batch) -> Tensor:
    return torch.stack(list(model.loss(batch).values())).sum()


# A slow copy of the equations, one pair at a time ------------------------------------------------


def slow_logits(model: NMTR, user: int, item: int) -> list[float]:
    """o_1 .. o_n of one pair."""
    p, q = (table.detach().numpy()[row] for table, row in ((model.P, user), (model.Q, item)))
    bias = model.b.detach().numpy()[item]
    x0 = {
        Variant.ncf: np.concatenate([p, q, p * q]),
        Variant.mlp: np.concatenate([p, q]),
        Variant.gmf: p * q,
    }[model.config.variant]
    logits: list[float] = []
    for f in model.interactions:
        x = x0
        for layer in (f.first, *f.rest):
            x = layer.weight.detach().numpy() @ x
            x = np.maximum(0, x if layer.bias is None else x + layer.bias.detach().numpy())
        own = float((f.h.weight.detach().numpy() @ x).item())
        if logits:
            own += logits[-1]
            own /= 2 if model.config.cascade is CascadeForm.halved else 1
        logits.append(own + bias)
    return logits


@pytest.mark.parametrize("cascade", CascadeForm)
@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_are_those_of_a_slow_copy(
    variant: Variant, layers: int, cascade: CascadeForm
) -> None:
    model = build(variant=variant, layers=layers, cascade=cascade)
    users, items = torch.arange(3), torch.tensor([[1, 7], [25, 3], [4, 4]])
    ours = model.logits(model.P[users].unsqueeze(1), items)
    slow = [
        [slow_logits(model, u, i) for i in row]
        for u, row in zip(users.tolist(), items.tolist(), strict=True)
    ]
    torch.testing.assert_close(torch.stack(ours, 2), torch.tensor(slow, dtype=torch.float64))


def test_the_cascade_is_on_logits_halved_and_the_same_bias_is_added_at_every_behaviour() -> None:
    model = build()
    items = torch.tensor([[5]])
    before = [float(o.detach()) for o in model.logits(model.P[:1].unsqueeze(1), items)]
    with torch.no_grad():
        model.b[5] += 1
    after = [float(o.detach()) for o in model.logits(model.P[:1].unsqueeze(1), items)]
    # 1 at the click; at the favor half of that, which came with the logit, and 1 of its own
    assert np.subtract(after, before) == pytest.approx([1, 1.5])
    plain = build(cascade=CascadeForm.plain)
    with torch.no_grad():
        start = plain.score(plain.P[:1], items)
        plain.b[5] += 1
        assert float(plain.score(plain.P[:1], items) - start) == pytest.approx(2)


def test_embeddings_are_shared_by_behaviours_and_only_towers_are_their_own() -> None:
    model = build()
    tables = {name for name, _ in model.named_parameters() if "." not in name}
    assert tables == {"P", "Q", "b"}
    assert len(model.interactions) == 2
    a, b = model.interactions
    assert not torch.equal(a.first.weight, b.first.weight)
    # GMF's and MLP's parts of the NCF tower read the same rows (NeuMF has a pair of tables for each)
    p, q = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    assert [torch.equal(x, y) for x, y in zip(a.features(p, q), (p, q, p * q), strict=True)] == [
        True
    ] * 3


def test_towers_halve_and_gmf_is_one_square_layer_without_a_bias() -> None:
    def shapes(**options: object) -> list[tuple[int, ...]]:
        f = build(hidden=16, **options).interactions[0]
        return [tuple(p.shape) for p in f.parameters()]

    assert shapes() == [(24, 48), (24,), (12, 24), (12,), (1, 12)]
    assert shapes(variant=Variant.mlp) == [(16, 32), (16,), (8, 16), (8,), (1, 8)]
    assert shapes(layers=1) == [(24, 48), (24,), (1, 24)]
    assert shapes(variant=Variant.gmf) == [(16, 16), (1, 16)]
    assert [f.in_features for f in build(hidden=5).interactions[0].rest] == [7]  # rounded down


@pytest.mark.parametrize(("d", "layers"), [(16, 2), (64, 2), (8, 1)])
def test_parameter_count_follows_the_formula(d: int, layers: int) -> None:
    model = NMTR(NMTRConfig(hidden=d, layers=layers), worlds.catalogue())
    widths = [3 * d // 2**k for k in range(layers + 1)]
    tower = sum(a * b + b for a, b in pairwise(widths)) + widths[-1]
    users, rows = worlds.USERS, worlds.ITEMS + 1  # the padding row is one more than V
    expected = (users + rows) * d + rows + 2 * tower
    assert sum(p.numel() for p in model.parameters()) == expected
    if layers == 2:
        by_hand = 3 * d * 1.5 * d + 1.5 * d + 1.5 * d * 0.75 * d + 0.75 * d + 0.75 * d
        assert tower == by_hand


def test_gmf_parameter_count_follows_the_formula() -> None:
    model = NMTR(NMTRConfig(hidden=12, variant=Variant.gmf), worlds.catalogue())
    assert sum(p.numel() for p in model.interactions.parameters()) == 2 * (12**2 + 12)


def test_initial_values_are_the_authors() -> None:
    torch.manual_seed(0)
    model = NMTR(NMTRConfig(hidden=64), worlds.catalogue(users=400, items=400))
    for table in (model.P.detach(), model.Q.detach()[1:]):
        assert 0.019 < float(table.abs().max()) <= 0.02  # normal(0, 0.01), cut at two deviations
        assert float(table.std()) == pytest.approx(0.0088, rel=0.03)
    assert (model.b == 0).all()
    for f in model.interactions:
        for linear in (f.first, *f.rest, f.h):
            limit = (3 / linear.in_features) ** 0.5
            assert 0.8 * limit < float(linear.weight.detach().abs().max()) <= limit
            assert linear.bias is None or (linear.bias == 0).all()


# Samples and loss -------------------------------------------------------------------------------


def caught(model: NMTR, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """User, items and deepest behaviours that the loss of a batch is made of."""
    seen = []
    objective = model.objective
    model.objective = lambda *parts: (seen.append(parts), objective(*parts))[1]  # type: ignore[method-assign,assignment]
    model.loss(batch)
    return seen[0]


def test_labels_are_nested_and_the_deepest_behaviour_of_a_pair_counts() -> None:
    # user 0: item 1 clicked, 2 favored only, 3 clicked and favored, 4 favored then clicked
    events = [(1, CLICK), (2, FAVOR), (3, CLICK), (3, FAVOR), (4, FAVOR), (4, CLICK), (1, CLICK)]
    batch = worlds.batches(worlds.interactions([events]), Samples.pair)[0]
    model = build(users=1)
    model.prepare(worlds.interactions([events]))
    _, items, deepest = caught(model, batch)
    found = dict(zip(items[:, 0].tolist(), deepest[:, 0].tolist(), strict=True))
    assert found == {1: CLICK, 2: FAVOR, 3: FAVOR, 4: FAVOR}  # each pair once, favor implies click
    assert (deepest[:, 1:] == 0).all()


def test_each_pair_has_four_negatives_that_the_user_never_touched() -> None:
    train = worlds.records()
    touched = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
    model, draws = build(), []
    for seed in range(20):
        user, items, _ = caught(model, pairs(seed))
        assert items.shape[1] == 1 + 4
        draws.append(items[:, 1:])
        for row, drawn in zip(user.tolist(), items[:, 1:].tolist(), strict=True):
            assert not {(row, item) for item in drawn} & touched
    assert not torch.equal(draws[0], draws[1])  # drawn again each time


def test_the_log_loss_has_1e_7_inside_both_logarithms() -> None:
    logits = torch.tensor([[-60.0, 60.0, 0.3, -2.0]], dtype=torch.float64)
    labels = torch.tensor([[True, False, True, False]])
    y = 1 / (1 + np.exp(-logits.numpy()))
    expected = -np.where(labels, np.log(y + 1e-7), np.log(1 - y + 1e-7)).mean()
    assert float(log_loss(logits, labels)) == pytest.approx(expected)
    assert float(log_loss(logits, labels)) < 10  # a wrong certainty costs 16.1, not 60


def test_tasks_are_weighted_means_over_pairs_and_negatives() -> None:
    model, batch = build(click_weight=0.25), pairs()
    losses = model.loss(batch)
    user, items, deepest = caught(model, replace(batch, generator=torch.Generator().manual_seed(0)))
    logits = model.logits(model.P[user].unsqueeze(1), items)
    for r, share in ((1, 0.25), (2, 0.75)):
        expected = share * log_loss(logits[r - 1], deepest >= r)
        torch.testing.assert_close(losses[f"behaviour_{r}"], expected)
    assert set(losses) == {"behaviour_1", "behaviour_2"}


def test_l2_is_of_whole_tables_and_towers_without_a_half_biases_and_h_apart() -> None:
    model = build(reg_user=0.1, reg_item=0.3)
    towers = [layer.weight for f in model.interactions for layer in (f.first, *f.rest)]
    expected = 0.1 * sum(w.square().sum() for w in (model.P, *towers))
    expected = expected + 0.3 * model.Q.square().sum()
    torch.testing.assert_close(model.loss(pairs())["l2"], expected)


def test_clicks_are_labels_even_where_favors_alone_are_targets() -> None:
    """Pairs are all of the training records', whatever the protocol calls a target."""
    train = worlds.records()
    favors = replace(train, target=train.behaviour == FAVOR)
    batch, all_targets = (worlds.batches(records, Samples.pair)[0] for records in (favors, train))
    assert torch.equal(batch.targets, all_targets.targets)
    assert (batch.target_behaviour == CLICK).any()


def test_scoring_is_the_logit_of_the_last_behaviour_and_orders_as_its_probability() -> None:
    model, items = build(), torch.arange(1, 26).expand(3, -1)
    state = model.encode(worlds.history([[], [], []], user=[0, 4, 7]))
    scores = model.score(state, items)
    last = model.logits(state.unsqueeze(1), items)[-1]
    assert torch.equal(scores, last)
    assert torch.equal(scores.argsort(1), last.sigmoid().argsort(1))


def test_the_history_is_not_read_and_users_without_a_pair_keep_their_initial_vector(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build()
    assert torch.equal(
        model.encode(worlds.history([worlds.clicks([1, 2])], user=[3])),
        model.encode(worlds.history([worlds.favors([9])], user=[3])),
    )
    with caplog.at_level(logging.INFO):
        model.prepare(worlds.records())
    assert "1 of 12 users have no training pair" in caplog.text  # user 0
    start = model.P.detach().clone()
    optimiser = model.optimiser()
    total(model, pairs()).backward()
    optimiser.step()
    moved = (start != model.P).any(1)
    assert moved.tolist() == [False, *[True] * 11]


def test_the_padding_row_and_its_bias_are_never_trained() -> None:
    model = build(reg_item=0.1)
    total(model, pairs()).backward()
    assert not model.Q.grad[0].any()
    assert model.b.grad[0] == 0


def test_the_adapter_compares_a_task_of_weight_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_DIR", str(Path(adapter.__file__).parents[1] / "fixtures"))
    pair = load("nmtr")
    pair.sidecar["config"]["runs"]["mlp2"]["weights"] = {"mid_or_first": 0.0, "last": 1.0}
    pair.arrays["mlp2/out/loss_total"] = pair.arrays["mlp2/out/loss_last"]
    adapter.check(pair)
    pair.arrays["mlp2/out/loss_first"] = pair.arrays["mlp2/out/loss_first"] + 0.01
    with pytest.raises(AssertionError, match="mlp2/out/loss_first"):
        adapter.check(pair)


# Options ----------------------------------------------------------------------------------------


def test_defaults_are_the_authors_but_for_adam() -> None:
    config = NMTRConfig()
    assert (config.hidden, config.learning_rate, config.negatives, config.layers) == (
        64,
        0.01,
        4,
        2,
    )
    assert (config.reg_user, config.reg_item, config.click_weight) == (0, 0, 0.5)
    first = (Variant.ncf, CascadeForm.halved, Optimiser.adam)
    assert (config.variant, config.cascade, config.optimiser) == first
    assert [next(iter(kind)) for kind in (Variant, CascadeForm, Optimiser)] == list(first)
    assert NMTRConfig.GRID == {"click_weight": (1 / 3, 1 / 2, 2 / 3)}


def test_adagrad_starts_from_1e_8_without_epsilon_and_adam_is_the_default() -> None:
    assert isinstance(build().optimiser(), torch.optim.Adam)
    model = build(optimiser=Optimiser.adagrad, learning_rate=0.05)
    optimiser = model.optimiser()
    group = optimiser.param_groups[0]
    assert (group["lr"], group["eps"], group["initial_accumulator_value"]) == (0.05, 0, 1e-8)
    start = model.b.detach().clone()
    total(model, pairs()).backward()
    gradient = model.b.grad.clone()
    optimiser.step()
    torch.testing.assert_close(model.b, start - 0.05 * gradient / (gradient**2 + 1e-8).sqrt())


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("cascade", CascadeForm)
@pytest.mark.parametrize("optimiser", Optimiser)
def test_every_setting_trains(variant: Variant, cascade: CascadeForm, optimiser: Optimiser) -> None:
    model = build(variant=variant, cascade=cascade, optimiser=optimiser, learning_rate=0.05)
    steps = model.optimiser()
    losses = []
    for _ in range(15):
        steps.zero_grad()
        loss = total(model, pairs())
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_all_items_are_scored_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    state = model.P[:5]
    whole = model.score_all(state)
    monkeypatch.setattr("baselines.nmtr.MOST_HIDDEN", 5 * 12 * 4)  # four items at a time
    torch.testing.assert_close(model.score_all(state), whole)


def test_impossible_settings_are_refused() -> None:
    for options, message in (
        ({"layers": 0}, "layers is 0"),
        ({"layers": 9}, "use fewer layers"),
        ({"negatives": 0}, "negatives is 0"),
        ({"click_weight": 1.5}, "click_weight is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)


# Strength ---------------------------------------------------------------------------------------


def test_it_learns_a_cascade_of_clicks_and_favors() -> None:
    """Above MostPopular, above itself without clicks, and above itself without the click task."""

    def trained(world: planted.World, seed: int, **options: object) -> float:
        config = NMTRConfig(**{"hidden": 16, **options})  # type: ignore[arg-type]
        model = planted.trained(lambda c: NMTR(config, c), world, seed, epochs=15, batch_size=128)
        return planted.ndcg_at_10(model, world)

    worlds = [planted.cascade(seed) for seed in planted.SEEDS]
    ours = np.mean([trained(world, seed) for seed, world in enumerate(worlds)])
    blind = [trained(planted.without_clicks(world), seed) for seed, world in enumerate(worlds)]
    alone = [trained(world, seed, click_weight=0.0) for seed, world in enumerate(worlds)]
    assert ours > np.mean([planted.most_popular(world) for world in worlds]) + 0.4
    assert ours > np.mean(blind) + 0.3
    assert ours > np.mean(alone) + 0.3
