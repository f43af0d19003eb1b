"""BERT4Rec: the network, the Cloze samples, the updates, every option, strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from baselines.bert4rec import (
    Align,
    BERT4Rec,
    BERT4RecConfig,
    Cloze,
    Masking,
    Optimiser,
    Softmax,
    StaticMasks,
    hashed,
    left_positions,
    right_positions,
)
from models.interface import Behaviour, Interactions
from models.layers import Behaviors, Dropout
from models.softmax import BLOCK
from tests import planted, worlds
from tests.worlds import ITEMS, LENGTH, Event

MASK = ITEMS + 1


def build(
    seed: int = 0, length: int = LENGTH, *, drops: bool = True, **options: object
) -> BERT4Rec:
    """A narrow model in float64 whose weights are not at their start."""
    torch.manual_seed(seed)
    catalogue = worlds.catalogue(length=length)
    object.__setattr__(catalogue, "drops_own_events", drops)
    config = BERT4RecConfig(
        **{"hidden": 16, "heads": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0, **options}  # type: ignore[arg-type]
    )
    model = BERT4Rec(config, catalogue).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def on(model: BERT4Rec, *users: list[Event], target: list[bool] | None = None) -> BERT4Rec:
    """The model, prepared with these users' events (users 0, 1, ...)."""
    train = worlds.interactions([*users, *([[]] * (worlds.USERS - len(users)))])
    if target is not None:
        train = Interactions(
            train.user, train.item, train.behaviour, torch.tensor(target), train.offsets
        )
    model.prepare(train)
    return model


def draw(model: BERT4Rec, user: int = 0, count: int = 1, seed: int = 0) -> Cloze:
    users = torch.full((count,), user)
    return model.windows.draw(users, torch.Generator().manual_seed(seed))


def originals(cloze: Cloze) -> list[list[int]]:
    """The events of each sample, masked ones by their true item with a minus."""
    rows = []
    for ids, slots, labels in zip(
        cloze.ids.tolist(), cloze.slots.tolist(), cloze.labels.tolist(), strict=True
    ):
        row = list(ids)
        for slot, label in zip(slots, labels, strict=True):
            if label:
                assert row[slot] == MASK
                row[slot] = -label
        assert MASK not in row
        rows.append([item for item in row if item])
    return rows


# The network --------------------------------------------------------------------------------------


def norm(layer: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    gain, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    centred = x - x.mean(-1, keepdims=True)
    return gain * centred / np.sqrt(x.var(-1, keepdims=True) + 1e-12) + bias


def affine(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def slow_head(model: BERT4Rec, tokens: list[int], slot: int) -> np.ndarray:
    """g at a slot of one row without padding, oldest token first, by loops over queries and heads."""
    config, length = model.config, len(tokens)
    E, S, P = (
        t.detach().numpy() for t in (model.token_table, model.segment_table, model.position_table)
    )
    x = norm(model.norm, E[tokens] + S[0] + P[:length])
    heads = config.heads
    width = config.hidden // heads
    for layer in model.layers:
        q, k, v = (
            affine(part, x)
            for part in (layer.attention.query, layer.attention.key, layer.attention.value)
        )
        gathered = np.zeros_like(x)
        for head in range(heads):
            cut = slice(head * width, (head + 1) * width)
            for query in range(length):
                logits = k[:, cut] @ q[query, cut] / np.sqrt(width)
                shares = np.exp(logits - logits.max())
                gathered[query, cut] = shares / shares.sum() @ v[:, cut]
        x = norm(layer.attention_norm, x + affine(layer.project, gathered))
        x = norm(layer.feed_forward_norm, x + affine(layer.outer, gelu(affine(layer.inner, x))))
    return norm(model.head.norm, gelu(affine(model.head.dense, x[slot])))


def test_histories_end_in_a_mask_and_agree_with_a_slow_copy() -> None:
    model = build()
    history = worlds.case_history()
    found = model.encode(history).detach().numpy()
    for row, items in enumerate(history.items.tolist()):
        tokens = [*[item for item in items if item][-(LENGTH - 1) :], MASK]
        np.testing.assert_allclose(found[row], slow_head(model, tokens, -1), atol=1e-10)


def test_masked_slots_see_both_sides() -> None:
    model = build()
    slots = torch.tensor([[1]])
    a, b = torch.tensor([[3, MASK, 5, 6]]), torch.tensor([[3, MASK, 5, 9]])
    assert (model.states(a, slots) - model.states(b, slots)).abs().max() > 1e-3


def test_the_last_layer_makes_the_wanted_slots_of_all() -> None:
    model = build()
    ids = functional.pad(worlds.case_history().items[:, 1:], (0, 1), value=MASK)
    everything = torch.arange(LENGTH).expand(len(ids), -1)
    slots = torch.tensor([[7, 3]]).expand(len(ids), -1)
    torch.testing.assert_close(model.states(ids, slots), model.states(ids, everything)[:, [7, 3]])


def test_scores_are_the_tied_product_and_a_bias_an_item_after_the_heads_transform() -> None:
    model, history = build(), worlds.case_history()
    g = model.encode(history)
    expected = g @ model.token_table.T + model.output_bias
    torch.testing.assert_close(model.score_all(g), expected[:, : ITEMS + 1])
    items = torch.tensor([[2, 20]]).expand(len(g), -1)
    torch.testing.assert_close(model.score(g, items), expected[:, [2, 20]])


def test_only_the_newest_length_minus_one_events_are_read() -> None:
    model = build()
    events = worlds.clicks(list(range(1, LENGTH + 1)))
    torch.testing.assert_close(
        model.encode(worlds.history([events])), model.encode(worlds.history([events[1:]]))
    )


def test_parameters_are_as_many_as_the_formula_says() -> None:
    d, V, n = 16, ITEMS + 4, 2
    expected = V * d + 2 * d + LENGTH * d + 2 * d + n * (12 * d**2 + 13 * d) + d**2 + 3 * d + V
    assert sum(p.numel() for p in build(layers=n).parameters()) == expected


def test_heads_are_one_for_each_32_and_the_inner_width_is_four_times_unless_told() -> None:
    for hidden, heads in ((16, 1), (64, 2), (256, 8)):
        model = BERT4Rec(BERT4RecConfig(hidden=hidden), worlds.catalogue())
        assert model.layers[0].attention.heads == heads
        assert model.layers[0].inner.out_features == 4 * hidden
    assert build(inner=24).layers[0].inner.out_features == 24


def test_initial_weights_are_normal_and_cut_at_two_deviations() -> None:
    for spread in (0.02, 0.1):
        torch.manual_seed(0)
        model = BERT4Rec(BERT4RecConfig(initializer_range=spread), worlds.catalogue(items=400))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                assert parameter.abs().max() <= 2 * spread
                if parameter.numel() > 4000:
                    # a normal cut at two deviations has 0.88 of its deviation
                    assert float(parameter.detach().std()) == pytest.approx(0.88 * spread, rel=0.03)
            else:
                gain = "norm" in name and name.endswith("weight")
                assert (parameter == (1.0 if gain else 0.0)).all()
    assert BERT4RecConfig().initializer_range == 0.02


def test_layer_norms_have_epsilon_1e_12_and_there_is_no_norm_at_the_end() -> None:
    norms = {n: m.eps for n, m in build().named_modules() if isinstance(m, torch.nn.LayerNorm)}
    layers = [f"layers.{n}.{part}" for n in (0, 1) for part in ("attention", "feed_forward")]
    assert set(norms) == {"norm", "head.norm", *(f"{layer}_norm" for layer in layers)}
    assert set(norms.values()) == {1e-12}


def test_dropout_is_nowhere_in_the_head_nor_inside_the_wide_layer() -> None:
    model = build(hidden_dropout=0.4, attention_dropout=0.1)
    rates = {n: m.rate for n, m in model.named_modules() if isinstance(m, Dropout)}
    assert rates == {
        "dropout": 0.4,
        **{f"layers.{n}.dropout": 0.4 for n in (0, 1)},
        **{f"layers.{n}.attention.dropout": 0.1 for n in (0, 1)},
    }
    x = torch.randn(5, 16).double()
    model.train()
    assert torch.equal(model.head(x), model.head(x))


def test_positions_count_from_the_oldest_event_or_end_with_the_newest() -> None:
    real = worlds.history([worlds.clicks([3, 4]), worlds.clicks([5, 6, 7])]).real
    assert left_positions(real, 8)[0].tolist() == [0, 0, 1]
    assert left_positions(real, 8)[1].tolist() == [0, 1, 2]
    assert right_positions(real, 8).tolist() == [[5, 6, 7]] * 2
    history = worlds.history([worlds.clicks([3, 4])])
    left, right = build(), build(align=Align.right)
    assert (left.encode(history) - right.encode(history)).abs().max() > 1e-3
    torch.testing.assert_close(right.encode(history), right.encode(history.padded(LENGTH)))


# The samples --------------------------------------------------------------------------------------


def windows_of(model: BERT4Rec, user: int = 0) -> list[tuple[int, int]]:
    first, last = model.windows.offsets[user], model.windows.offsets[user + 1]
    pairs = zip(model.windows.start[first:last], model.windows.end[first:last], strict=True)
    return [(int(start), int(end)) for start, end in pairs]


def test_long_sequences_are_cut_backwards_in_steps_and_once_at_the_start() -> None:
    events = worlds.clicks([1 + n % 20 for n in range(21)])
    model = on(build(window_step=0.5), events)
    assert windows_of(model) == [(13, 21), (9, 17), (5, 13), (1, 9), (0, 8)]
    assert windows_of(on(build(window_step=0.5), events[:20])) == [
        (12, 20), (8, 16), (4, 12), (0, 8),
    ]  # fmt: skip
    assert windows_of(on(build(window_step=0.5), events[:8])) == [(0, 8)]
    assert windows_of(on(build(window_step=0.5), events[:3])) == [(0, 3)]
    assert build(length=50, window_step=0.1).windows.step == 5
    assert build(length=50, window_step=0.01).windows.step == 1  # a step of 0 would never end


def test_every_window_is_drawn() -> None:
    events = worlds.clicks(list(range(1, 22)))
    model = on(build(window_step=0.5), events)
    newest = {max(map(abs, row)) for row in originals(draw(model, count=300))}
    assert newest == {21, 17, 13, 9, 8}


@pytest.mark.parametrize(
    ("rho", "events", "masked"),
    [(0.6, 8, 5), (0.6, 5, 3), (0.2, 8, 2), (0.2, 2, 1), (0.5, 5, 3), (0.5, 1, 1), (0.6, 1, 1)],
)
def test_so_many_slots_are_masked_and_halves_round_up(rho: float, events: int, masked: int) -> None:
    model = on(build(rho=rho, last_share=0.0), worlds.clicks(list(range(1, events + 1))))
    for row in originals(draw(model, count=20)):
        assert sum(item < 0 for item in row) == masked
        assert [abs(item) for item in row] == list(range(1, events + 1))


def test_no_more_slots_than_rho_times_the_window() -> None:
    model = build(rho=0.55, length=10)
    assert model.windows.most == round(0.55 * 10)
    assert build(rho=0.6, length=50).windows.most == 30
    assert build(rho=0.2, length=200).windows.most == 40


def test_masked_slots_become_mask_always_and_all_are_as_likely() -> None:
    model = on(
        build(rho=0.25, last_share=0.0, masking=Masking.dynamic), worlds.clicks([*range(1, 9)])
    )
    rows = originals(draw(model, count=4000))
    counts = torch.zeros(8)
    for row in rows:
        for item in row:
            counts[abs(item) - 1] += item < 0
    assert ((counts - 1000).abs() < 120).all()  # 4 standard deviations


def test_a_share_of_the_samples_masks_the_last_event_alone() -> None:
    events = worlds.clicks(list(range(1, 9)))
    rows = originals(draw(on(build(last_share=0.25), events), count=2000))
    last = [row for row in rows if sum(item < 0 for item in row) == 1]
    assert all(row == [1, 2, 3, 4, 5, 6, 7, -8] for row in last)
    assert len(last) == pytest.approx(500, abs=80)
    assert BERT4RecConfig().last_share == pytest.approx(1 / 11)
    assert all(row[-1] == -8 for row in originals(draw(on(build(last_share=1.0), events), count=9)))


def test_a_single_event_cannot_be_a_last_item_sample_but_is_masked() -> None:
    model = on(build(last_share=1.0), worlds.clicks([4]), worlds.clicks([4, 4]))
    assert originals(draw(model, 0)) == [[-4]]
    assert originals(draw(model, 1)) == [[-4]]  # nothing but its own events stands before it
    kept = on(build(last_share=1.0, drops=False), worlds.clicks([4]), worlds.clicks([4, 4]))
    assert originals(draw(kept, 1)) == [[4, -4]]


def test_static_masks_are_ten_and_the_same_in_every_run() -> None:
    events = worlds.clicks(list(range(1, 9)))
    found = []
    for seed in (0, 1):
        model = on(build(seed, rho=0.4, last_share=0.0), events)
        found.append({tuple(row) for row in originals(draw(model, count=500, seed=seed))})
    assert found[0] == found[1]
    assert 5 < len(found[0]) <= 10
    fewer = on(build(rho=0.4, last_share=0.0, copies=2), events)
    assert len({tuple(row) for row in originals(draw(fewer, count=100))}) == 2


def test_dynamic_masks_are_ever_new() -> None:
    model = on(
        build(rho=0.4, last_share=0.0, masking=Masking.dynamic), worlds.clicks([*range(1, 9)])
    )
    assert len({tuple(row) for row in originals(draw(model, count=600))}) > 50  # of 56 possible


def test_hashed_keys_are_distinct_and_uniform() -> None:
    keys = hashed(torch.arange(100_000))
    assert len(keys.unique()) == 100_000
    assert float(keys.min()) >= 0
    assert float(keys.max()) < 1
    counts = torch.histc(keys, 100, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 150  # chi square, 99 degrees: p = 0.0007
    masks, window = StaticMasks(10, 8), torch.arange(2)
    number = torch.arange(8).expand(2, -1)
    keys = masks.keys(window, number, torch.Generator().manual_seed(0))
    assert len(keys.unique()) == 16


def test_own_events_of_a_masked_item_leave_the_sample_and_it_is_masked_once() -> None:
    events = worlds.clicks([5, 3, 5, 7, 5])
    model = on(build(rho=0.4, last_share=0.0, masking=Masking.dynamic), events)
    seen = {tuple(row) for row in originals(draw(model, count=400))}
    assert (3, 7, -5) in seen  # two slots of item 5 chosen, the later one masked
    assert (3, -5, 7) in seen
    for row in seen:
        masked = [-item for item in row if item < 0]
        assert len(set(masked)) == len(masked)
        assert not {item for item in row if item > 0} & set(masked)
    kept = on(build(rho=0.4, last_share=0.0, drops=False, masking=Masking.dynamic), events)
    assert all([abs(i) for i in row] == [5, 3, 5, 7, 5] for row in originals(draw(kept, count=50)))


def test_only_targets_are_masked_and_counted_and_windows_without_one_give_no_sample() -> None:
    events = worlds.clicks([1, 2]) + worlds.favors([3]) + worlds.clicks([4, 5]) + worlds.favors([6])
    events += worlds.clicks([7])
    target = [tag == int(Behaviour.FAVOR) for _, tag in events]
    nothing = worlds.clicks([8, 9])
    model = build(rho=0.6, last_share=0.0)
    on(model, events, nothing, target=[*target, False, False])
    rows = originals(draw(model, count=50))
    assert {tuple(item for item in row if item < 0) for row in rows} == {(-3,), (-6,)}
    assert all(len(row) == 7 for row in rows)
    assert draw(model, 1).ids.shape[0] == 0
    assert windows_of(model, 1) == []
    assert float(model.cloze_loss(draw(model, 1), torch.Generator()).detach()) == 0

    last = build(last_share=1.0)
    on(last, events, nothing, target=[*target, False, False])
    assert originals(draw(last)) == [[1, 2, 3, 4, 5, -6]]  # what follows the last favor is gone


def test_favor_only_reads_and_masks_favors_alone() -> None:
    model = build(behaviors=Behaviors.favor_only)
    events = worlds.clicks([1, 2]) + worlds.favors([3, 4]) + worlds.clicks([5])
    on(model, events)
    assert {abs(item) for item in originals(draw(model))[0]} == {3, 4}
    history = worlds.history([events])
    expected = build().encode(worlds.history([worlds.favors([3, 4])]))
    torch.testing.assert_close(model.encode(history), expected)


def test_samples_follow_the_batchs_stream() -> None:
    model = build()
    user = torch.arange(worlds.USERS)
    one, again, other = (
        model.windows.draw(user, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.ids, again.ids)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)


# Loss -------------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_masked_slots_of_the_softmax_over_all_tokens() -> None:
    model = build()
    cloze = Cloze(
        torch.tensor([[3, MASK, MASK], [0, MASK, 8]]),
        torch.tensor([[1, 2], [1, 0]]),
        torch.tensor([[5, 6], [7, 0]]),
    )
    g = [slow_head(model, [3, MASK, MASK], 1), slow_head(model, [3, MASK, MASK], 2),
         slow_head(model, [MASK, 8], 0)]  # fmt: skip
    logits = torch.from_numpy(np.stack(g)) @ model.token_table.T + model.output_bias
    assert logits.shape[1] == ITEMS + 4
    total = functional.cross_entropy(logits, torch.tensor([5, 6, 7]), reduction="sum")
    torch.testing.assert_close(model.cloze_loss(cloze, torch.Generator()), total / (3 + 1e-5))


def test_exact_softmax_never_holds_all_logits() -> None:
    assert BLOCK * 4 < 16 * 2**20
    model = build()
    g = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1, 2, 3, 4, 5, 6])
    costs = model.place_loss(g, model.token_table, model.output_bias, label, torch.Generator())
    logits = g @ model.token_table.T + model.output_bias
    torch.testing.assert_close(costs, functional.cross_entropy(logits, label, reduction="none"))


def test_sampled_softmax_estimates_the_exact_one() -> None:
    torch.manual_seed(1)
    g, label = torch.randn(4, 16).double(), torch.tensor([1, 2, 3, 4])
    exact, sampled = build(), build(softmax=Softmax.sampled, negatives=40_000)
    costs = [
        model.place_loss(
            g, model.token_table, model.output_bias, label, torch.Generator().manual_seed(0)
        )
        for model in (exact, sampled)
    ]
    torch.testing.assert_close(*costs, atol=0.05, rtol=0.05)
    few = build(softmax=Softmax.sampled, negatives=1)
    assert torch.isfinite(
        few.place_loss(g, few.token_table, few.output_bias, label, torch.Generator())
    ).all()


# Updates ----------------------------------------------------------------------------------------


def slow_update(
    values: np.ndarray, gradients: list[np.ndarray], rates: list[float], decay: float
) -> np.ndarray:
    """Adam without bias correction, epsilon outside the root, decay beside it."""
    m, v = np.zeros_like(values), np.zeros_like(values)
    for gradient, rate in zip(gradients, rates, strict=True):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        values = values - rate * (m / (np.sqrt(v) + 1e-6) + decay * values)
    return values


def test_the_authors_adam_has_no_bias_correction_and_decays_tables_but_no_bias_and_no_norm() -> (
    None
):
    model = build(learning_rate=1e-2, warm_up=3, steps=10)
    rates = [0.0, 1e-2 / 3, 2e-2 / 3, 0.7e-2, 0.6e-2]
    optimiser = model.optimiser()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in before}
    for step in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3  # small: nothing is clipped
            gradients[name].append(parameter.grad.numpy().copy())
        model.before_step(optimiser)
        assert int(model.step) == step + 1
        optimiser.step()
    for name, parameter in model.named_parameters():
        decay = 0.01 if parameter.ndim == 2 else 0.0
        expected = slow_update(before[name], gradients[name], rates, decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_clipped_to_a_common_norm_of_5() -> None:
    model = build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.before_step(model.optimiser())
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    assert float(norms.norm()) == pytest.approx(5, rel=1e-4)


def test_the_rate_rises_for_100_steps_from_nothing_and_falls_to_nothing() -> None:
    model = build(learning_rate=1e-4)
    rate = model.updates.rate_at
    assert rate(0) == 0
    assert rate(50) == pytest.approx(5e-5)
    assert rate(100) == pytest.approx(1e-4 * (1 - 100 / 400_000))
    assert rate(200_000) == pytest.approx(5e-5)
    assert rate(400_000) == rate(500_000) == 0


def test_training_ends_with_the_steps_of_the_schedule() -> None:
    model = build(steps=3)
    for _ in range(3):
        assert not model.stage_ended(1, torch.Generator())
        model.before_step(model.optimiser())
    assert model.stage_ended(1, torch.Generator())
    assert int(model.state_dict()["step"]) == 3  # a resumed run goes on counting


def test_adam_is_torchs_at_a_constant_rate() -> None:
    model = build(optimiser=Optimiser.adam, learning_rate=1e-3, weight_decay=1e-5, steps=1)
    optimiser = model.optimiser()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.before_step(optimiser)
    assert all((p.grad == 1).all() for p in model.parameters())
    group = optimiser.param_groups[0]
    assert isinstance(optimiser, torch.optim.Adam)
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-5)
    assert not model.stage_ended(1, torch.Generator())


def test_a_batch_makes_eleven_updates_unless_told() -> None:
    batch = worlds.batches(worlds.records(), BERT4Rec.samples)[0]
    assert len(list(build().passes(batch))) == 11
    assert len(list(build(samples_a_row=2).passes(batch))) == 2


def test_defaults_are_those_of_the_authors_beauty() -> None:
    config = BERT4RecConfig()
    assert (config.hidden, config.layers, config.learning_rate) == (64, 2, 1e-4)
    assert (config.hidden_dropout, config.attention_dropout) == (0.5, 0.2)
    assert (config.rho, config.window_step, config.copies) == (0.6, 0.1, 10)
    assert (config.decay, config.warm_up, config.steps) == (0.01, 100, 400_000)
    assert BERT4RecConfig.GRID["rho"] == (0.2, 0.4, 0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "hidden 16 is no multiple of heads 3"),
        ({"layers": 0}, "layers is 0"),
        ({"rho": 0.0}, "rho is 0.0"),
        ({"window_step": 2.0}, "window_step is 2.0"),
        ({"last_share": -0.1}, "last_share is -0.1"),
        ({"weight_decay": 0.1}, "weight_decay is for optimiser=adam"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


# Training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masking": Masking.dynamic, "align": Align.right},
        {"optimiser": Optimiser.adam, "softmax": Softmax.sampled, "negatives": 50},
    ],
    ids=str,
)
def test_every_option_trains(options: dict[str, object]) -> None:
    batch, train = worlds.one_target_each(BERT4Rec.samples)
    torch.manual_seed(0)
    config = BERT4RecConfig(
        hidden=32, hidden_dropout=0.0, attention_dropout=0.0, learning_rate=3e-3, rho=0.2,
        last_share=0.8, warm_up=10, initializer_range=0.1, layers=1, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    model = BERT4Rec(config, worlds.catalogue())
    model.prepare(train)
    optimiser = model.optimiser()

    def right() -> float:
        best = model.eval().score_all(model.encode(batch.history))[:, 1:].argmax(1) + 1
        model.train()
        return float((best == batch.target).float().mean())

    assert right() < 0.5
    for _ in range(30):
        for losses in model.passes(batch):
            optimiser.zero_grad()
            losses["masked_item"].backward()
            model.before_step(optimiser)
            optimiser.step()
    assert right() >= 0.75


def strengths(config: BERT4RecConfig, epochs: int) -> tuple[list[float], list[float], list[float]]:
    """NDCG@10 in the order worlds, in the same ones without order, and of MostPopular."""
    ours, popular, blind = [], [], []
    for seed in planted.SEEDS:
        world = planted.order(seed)
        mixed = planted.shuffled(world)
        for found, where in ((ours, world), (blind, mixed)):
            model = planted.trained(lambda c: BERT4Rec(config, c), where, seed, epochs=epochs)
            found.append(planted.ndcg_at_10(model, where))
        popular.append(planted.most_popular(world))
    return ours, blind, popular


@pytest.mark.slow
def test_it_learns_an_order_that_popularity_and_shuffled_records_do_not_have() -> None:
    config = BERT4RecConfig(
        hidden=32, layers=1, hidden_dropout=0.0, attention_dropout=0.0, rho=0.2, last_share=0.3,
        masking=Masking.dynamic, learning_rate=3e-3, initializer_range=0.1,
        align=Align.right,  # all histories are as long: with `left`, [MASK] has a new position
    )  # fmt: skip
    ours, blind, popular = strengths(config, epochs=6)
    assert np.mean(ours) > np.mean(popular) + 0.5
    assert np.mean(ours) > np.mean(blind) + 0.15
