"""SASRec: facts of the authors' code that surprise, options, negatives, speed paths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.sasrec import Loss, Norm, SASRec, SASRecConfig, blocked_keys
from models.interface import Batch, Behaviour, History
from models.layers import Behaviors, Dropout
from models.negatives import TrainingNegatives
from tests import planted, worlds
from tests.planted import SEEDS, World, ndcg_at_10


def build(seed: int = 0, length: int = worlds.LENGTH, **options: object) -> SASRec:
    """A narrow model in float64 whose biases and norms are not at their start."""
    torch.manual_seed(seed)
    config = SASRecConfig(**{"hidden": 16, "heads": 2, "dropout": 0.0, **options})
    model = SASRec(config, worlds.catalogue(length=length)).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def window(seed: int = 0) -> Batch:
    return worlds.batches(worlds.records(), SASRec.samples, seed=seed)[0]


def loss(model: SASRec, batch: Batch) -> Tensor:
    return torch.stack(list(model.loss(replace(batch, generator=torch.Generator())).values())).sum()


# A slow copy of the model, one sample at a time --------------------------------------------------


def norm(layer: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    gain, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    centred = x - x.mean(-1, keepdims=True)
    return gain * centred / np.sqrt(x.var(-1, keepdims=True) + 1e-8) + bias


def affine(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def slow_states(model: SASRec, items: list[int]) -> np.ndarray:
    """y of one history of L slots, by loops over queries and heads."""
    config, length = model.config, len(items)
    table = model.item_table.detach().numpy().copy()
    table[0] = 0
    real = np.array([[float(item > 0)] for item in items])
    x = (np.sqrt(config.hidden) * table[items] + model.position_table.detach().numpy()) * real
    width = config.hidden // config.heads
    for block in model.blocks:
        normed = norm(block.attention_norm, x)
        source = normed if config.norm is Norm.pre else x
        asks = x if config.norm is Norm.post else normed
        q = affine(block.attention.query, asks)
        k, v = affine(block.attention.key, source), affine(block.attention.value, source)
        gathered = np.zeros_like(x)
        for head in range(config.heads):
            cut = slice(head * width, (head + 1) * width)
            for query in range(length):
                logits = np.full(length, -(2.0**32) + 1)
                for key in range(query + 1):
                    if items[key]:
                        logits[key] = q[query, cut] @ k[key, cut] / np.sqrt(width)
                shares = np.exp(logits - logits.max())
                gathered[query, cut] = shares / shares.sum() @ v[:, cut]
        residual = {Norm.code: normed, Norm.pre: x, Norm.post: x}[config.norm]
        a = gathered + residual
        a = norm(block.attention_norm, a) if config.norm is Norm.post else a
        f0 = a if config.norm is Norm.post else norm(block.feed_forward_norm, a)
        f = affine(block.feed_forward.outer, np.maximum(affine(block.feed_forward.inner, f0), 0))
        f = f + (f0 if config.norm is Norm.code else a)
        f = norm(block.feed_forward_norm, f) if config.norm is Norm.post else f
        x = f * real
    return norm(model.last_norm, x)


@pytest.mark.parametrize("variant", Norm)
def test_norm_variants_agree_with_a_slow_copy(variant: Norm) -> None:
    model = build(norm=variant)
    history = worlds.case_history(length=worlds.LENGTH)
    ours = model.last_norm(model.states(history, worlds.LENGTH)).detach().numpy()
    slow = np.stack([slow_states(model, row) for row in history.items.tolist()])
    real = history.real.numpy()
    np.testing.assert_allclose(ours[real], slow[real], atol=1e-10)


def test_norm_variants_are_three_models() -> None:
    history = worlds.case_history()
    states = [build(norm=variant).encode(history) for variant in Norm]
    assert all((a - b).abs().max() > 1e-3 for a in states for b in states if a is not b)


# Facts ------------------------------------------------------------------------------------------


def only_residuals(model: SASRec) -> None:
    """Wipe the values and the feed-forward output, so that a block adds nothing to its residuals."""
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attention.value, block.feed_forward.outer):
                layer.weight.zero_()
                layer.bias.zero_()


def test_residual_is_the_normalised_query() -> None:
    model = build(blocks=1)
    only_residuals(model)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    real = torch.ones(3, 5, dtype=torch.bool)
    after = model.blocks[0].after_attention(x, blocked_keys(real), 5)
    torch.testing.assert_close(after, model.blocks[0].attention_norm(x))
    normed = model.blocks[0].feed_forward_norm(after)
    torch.testing.assert_close(model.blocks[0].after_feed_forward(after), normed)


def test_queries_alone_are_normalised() -> None:
    # Keys and values see x as it is, so doubling x doubles what is gathered from equal weights.
    model = build(blocks=1, heads=1)
    block = model.blocks[0]
    with torch.no_grad():
        block.attention.query.weight.zero_()
        block.attention.query.bias.zero_()
        block.attention.value.bias.zero_()
    x = torch.randn(2, 4, 16, dtype=torch.float64)
    blocked = blocked_keys(torch.ones(2, 4, dtype=torch.bool))
    query = block.attention_norm(x)
    one = block.after_attention(x, blocked, 4) - query
    two = block.after_attention(2 * x, blocked, 4) - block.attention_norm(2 * x)
    torch.testing.assert_close(two, 2 * one)


def test_no_output_projection_and_feed_forward_of_width_d() -> None:
    model = SASRec(SASRecConfig(hidden=24), worlds.catalogue())
    items, length, d, blocks = worlds.ITEMS, worlds.LENGTH, 24, 2
    cost = (items + 1) * d + length * d + blocks * (5 * d**2 + 9 * d) + 2 * d
    assert sum(p.numel() for p in model.parameters()) == cost
    assert {p.shape for block in model.blocks for p in block.parameters() if p.ndim == 2} == {
        (d, d)
    }


def test_attention_mask_is_finite_and_padding_is_no_key() -> None:
    model = build()
    padded = worlds.history([[], worlds.clicks([3, 4])], length=6)
    assert model.states(padded, 6).isfinite().all()
    blocked = blocked_keys(padded.real)
    assert blocked[1, :, :4].all()
    assert not blocked[1, 5, 4:].any()
    assert blocked[1, 4, 5]


def test_row_zero_is_stored_random_but_read_as_zeros() -> None:
    model = build()
    history, batch = worlds.case_history(length=worlds.LENGTH), window()
    before = (model.encode(history), loss(model, batch))
    assert model.item_table[0].abs().max() > 0
    state = before[0]
    assert (model.score(state, torch.zeros(len(state), 1, dtype=torch.int64)) == 0).all()
    assert (model.score_all(state)[:, 0] == 0).all()
    with torch.no_grad():
        model.item_table[0] = 100.0
    assert torch.equal(model.encode(history), before[0])
    assert torch.equal(loss(model, batch), before[1])


def test_l2_counts_row_zero_as_stored_and_nothing_else_moves_it() -> None:
    model, plain = build(l2_emb=0.02), build()
    losses = model.loss(window())
    tables = (model.item_table, model.position_table)
    expected = 0.01 * sum(table.square().sum() for table in tables)
    torch.testing.assert_close(losses["l2_emb"], expected)
    loss(model, window()).backward()
    torch.testing.assert_close(model.item_table.grad[0], 0.02 * model.item_table[0].detach())
    assert "l2_emb" not in plain.loss(window())
    loss(plain, window()).backward()
    assert (plain.item_table.grad[0] == 0).all()


def test_square_root_of_d_is_on_the_history_alone() -> None:
    model = build(hidden=16)
    items = torch.tensor([[3, 5]])
    x = model.inputs(items, torch.ones(1, 2, 1, dtype=torch.float64))
    torch.testing.assert_close(x, 4 * model.item_table[items] + model.position_table[-2:])
    state = torch.randn(1, 16, dtype=torch.float64)
    torch.testing.assert_close(
        model.score(state, items), (model.item_table[items] @ state.T).squeeze(2)
    )


def test_layer_norms_have_epsilon_1e_8_and_a_history_without_events_reads_the_last_bias() -> None:
    model = build()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 5
    assert {m.eps for m in norms} == {1e-8}
    state = model.encode(worlds.history([[], []]))
    torch.testing.assert_close(state, model.last_norm.bias.expand(2, -1))


def test_adam_has_the_authors_betas() -> None:
    group = build(learning_rate=1e-4).optimiser().param_groups[0]
    assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.98), 1e-8, 1e-4)


def test_initial_weights_are_glorot_uniform() -> None:
    torch.manual_seed(0)
    catalogue = worlds.catalogue(items=400)
    model = SASRec(SASRecConfig(hidden=64), catalogue)
    for table in (model.item_table, model.position_table, model.blocks[0].attention.key.weight):
        limit = (6 / sum(table.shape)) ** 0.5
        assert 0.95 * limit < table.abs().max() <= limit
        assert abs(float(table.detach().std()) - limit / 3**0.5) < 0.1 * limit
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, torch.nn.Linear))


# Trimming, padding, the short way at evaluation -------------------------------------------------


def test_the_newest_item_has_the_last_position_however_the_batch_is_trimmed() -> None:
    model = build()
    rows = [worlds.clicks([4, 2]), worlds.favors([7])]
    trimmed, padded = worlds.history(rows), worlds.history(rows, length=worlds.LENGTH)
    torch.testing.assert_close(model.encode(trimmed), model.encode(padded))
    targets = torch.tensor([[2, 9], [0, 5]])
    wide = torch.nn.functional.pad(targets, (worlds.LENGTH - 2, 0))
    losses = [
        loss(model, Batch(history, t, (t > 0).double(), torch.zeros(t.shape), torch.Generator()))
        for history, t in ((trimmed, targets), (padded, wide))
    ]
    torch.testing.assert_close(*losses)


def test_histories_longer_than_the_catalogue_says_are_cut_to_the_newest() -> None:
    model = build()
    events = worlds.clicks(list(range(1, 13)))
    long, short = worlds.history([events]), worlds.history([events[-worlds.LENGTH :]])
    torch.testing.assert_close(model.encode(long), model.encode(short))


@pytest.mark.parametrize("variant", Norm)
def test_encoding_computes_the_last_place_of_all_places(variant: Norm) -> None:
    model = build(norm=variant)
    history = worlds.case_history()
    all_places = model.last_norm(model.states(history, history.items.shape[1]))
    torch.testing.assert_close(model.encode(history), all_places[:, -1])


def test_later_events_change_no_earlier_place() -> None:
    model = build()
    a = worlds.history([worlds.clicks([1, 2, 3, 4])])
    b = worlds.history([worlds.clicks([1, 2, 9, 8])])
    torch.testing.assert_close(model.states(a, 4)[:, :2], model.states(b, 4)[:, :2])


# Loss and negatives -----------------------------------------------------------------------------


class Given(torch.nn.Module):
    """Negatives that are all one item."""

    def forward(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((len(user), count), 1)


def test_places_count_as_often_as_the_events_they_stand_for() -> None:
    model = build()
    model.place_loss.negatives = Given()
    history = worlds.history([worlds.clicks([3, 4]), worlds.clicks([5])])
    targets = torch.tensor([[6, 0], [0, 7]])
    one, two = ((targets == item).double() for item in (6, 7))

    def of(clicks: Tensor, favors: Tensor) -> float:
        batch = Batch(history, targets, clicks, favors, torch.Generator())
        return float(loss(model, batch).detach())

    a, b = of(one, torch.zeros_like(one)), of(two, torch.zeros_like(one))
    assert of(2 * one, two) == pytest.approx((2 * a + b) / 3)
    assert of(one, two) == pytest.approx((a + b) / 2)


def test_binary_loss() -> None:
    model = build()
    model.place_loss.negatives = Given()
    batch = window()
    y = model.last_norm(model.states(batch.history, batch.history.items.shape[1]))
    positive = (y * model.item_table[batch.targets]).sum(2)
    negative = (y * model.item_table[1]).sum(2)
    costs = -(positive.sigmoid() + 1e-24).log() - (1 - negative.sigmoid() + 1e-24).log()
    weights = batch.weights * (batch.targets > 0)
    torch.testing.assert_close(loss(model, batch), (weights * costs).sum() / weights.sum())


def test_one_of_k_negatives_is_the_default_and_more_add_up() -> None:
    batch = window()
    one, k = build(loss=Loss.bce_k, negatives=1), build(loss=Loss.bce_k, negatives=3)
    torch.testing.assert_close(loss(one, batch), loss(build(), batch))
    query = torch.randn(4, 16, dtype=torch.float64)
    target, user = torch.tensor([1, 2, 3, 4]), torch.arange(4)
    k.place_loss.negatives = Given()
    costs = k.place_loss(query, k.item_table, target, user, torch.Generator())
    own = -(query * k.item_table[target]).sum(1).sigmoid().log()
    torch.testing.assert_close(costs, own - 3 * (-(query @ k.item_table[1])).sigmoid().log())


def test_softmax_loss_is_cross_entropy_over_the_items_at_every_place_with_a_target() -> None:
    model, batch = build(loss=Loss.ce), window()
    y = model.last_norm(model.states(batch.history, batch.history.items.shape[1]))
    wanted = batch.targets > 0
    costs = torch.nn.functional.cross_entropy(
        y[wanted] @ model.item_table[1:].T, batch.targets[wanted] - 1, reduction="none"
    )
    weights = batch.weights[wanted].double()
    torch.testing.assert_close(loss(model, batch), (weights * costs).sum() / weights.sum())


def test_where_all_targets_stand_last_the_last_block_computes_that_slot_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = build(loss=Loss.ce), window()
    width = batch.history.items.shape[1]
    last = torch.arange(width) == width - 1
    batch = replace(batch, targets=batch.targets.clamp(min=1) * last, clicks=1.0 * last + 0 * batch.clicks,
                    favors=0 * batch.favors)  # fmt: skip
    asked, states = [], model.states
    monkeypatch.setattr(model, "states", lambda h, read: (asked.append(read), states(h, read))[1])
    value = loss(model, batch)
    assert asked == [1] != [width]
    costs = torch.nn.functional.cross_entropy(
        model.encode(batch.history) @ model.item_table[1:].T, batch.targets[:, -1] - 1
    )
    torch.testing.assert_close(value, costs)
    asked.clear()
    loss(model, window())
    assert asked == [width]


def test_a_batch_without_targets_costs_nothing() -> None:
    for option in Loss:
        model = build(loss=option)
        nothing = torch.zeros(2, 2, dtype=torch.int64)
        batch = Batch(
            worlds.history([worlds.clicks([1, 2]), []]),
            nothing, nothing.double(), nothing.double(), torch.Generator(),
        )  # fmt: skip
        value = loss(model, batch)
        value.backward()
        assert float(value.detach()) == 0


def test_negatives_are_uniform_over_what_the_user_never_touched_in_training() -> None:
    touched = [worlds.clicks([1, 2, 2]) + worlds.favors([5]), [], worlds.clicks(list(range(1, 26)))]
    negatives = TrainingNegatives(worlds.catalogue(users=3))
    negatives.prepare(worlds.interactions(touched))
    drawn = negatives(torch.tensor([0, 1, 2]), 44_000, torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(row, minlength=26) for row in drawn])
    for user, missing in ((0, {1, 2, 5}), (1, set()), (2, set())):  # user 2: nothing is left
        possible = sorted(set(range(1, 26)) - missing)
        expected = 44_000 / len(possible)
        assert counts[user].sum() == counts[user, possible].sum()
        chi2 = ((counts[user, possible] - expected) ** 2 / expected).sum()
        assert chi2 < 50  # 24 degrees of freedom: p = 0.0014


def test_negatives_follow_the_batchs_stream() -> None:
    model, batch = build(), window()

    def value(seed: int) -> float:
        draws = torch.Generator().manual_seed(seed)
        return float(model.loss(replace(batch, generator=draws))["next_item"].detach())

    assert value(1) == value(1)
    assert value(1) != value(2)


# Behaviours -------------------------------------------------------------------------------------


def test_merged_ignores_the_tags() -> None:
    model, history = build(), worlds.case_history()
    clicked = replace(history, behaviours=history.real.long())
    assert torch.equal(model.encode(history), model.encode(clicked))


def test_favor_only_reads_each_target_after_the_favors_before_it() -> None:
    model = build(behaviors=Behaviors.favor_only)
    model.place_loss.negatives = Given()
    events = [(3, 1), (4, 2), (5, 1), (6, 2), (7, 1)]
    targets = torch.tensor([[4, 5, 6, 7, 8]])
    ones = torch.ones(1, 5, dtype=torch.float64)
    history = worlds.history([events])
    batch = Batch(history, targets, ones, 0 * ones, torch.Generator())

    y = model.last_norm(model.states(history.only(Behaviour.FAVOR), 2))[0]
    read = y[
        [0, 0, 1, 1]
    ]  # targets 5, 6 after favor 4; 7, 8 after favor 6; 4 has nothing before it
    costs = -(read * model.item_table[5:9]).sum(1).sigmoid().log()
    costs = costs - (1 - (read @ model.item_table[1]).sigmoid()).log()
    torch.testing.assert_close(loss(model, batch), costs.mean())
    torch.testing.assert_close(model.encode(history)[0], y[-1])


# Training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", Loss)
@pytest.mark.parametrize("variant", Norm)
def test_every_parameter_gets_a_gradient(option: Loss, variant: Norm) -> None:
    model = build(loss=option, norm=variant, l2_emb=0.01).train()
    loss(model, window()).backward()
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": Loss.ce}, {"norm": Norm.pre}, {"norm": Norm.post}],
    ids=str,
)
def test_one_batch_can_be_learned(options: dict[str, object]) -> None:
    batch, train = worlds.one_target_each(SASRec.samples)
    torch.manual_seed(0)
    config = SASRecConfig(**{"hidden": 32, "learning_rate": 1e-2, "dropout": 0.0, **options})
    model = SASRec(config, worlds.catalogue())
    model.prepare(train)
    optimiser = model.optimiser()
    model.train()
    for _ in range(100):
        optimiser.zero_grad()
        model.loss(batch)["next_item"].backward()
        optimiser.step()
    best = model.eval().score_all(model.encode(batch.history))[:, 1:].argmax(1) + 1
    assert (best == batch.target).float().mean() >= 0.9


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden 16 is no multiple of heads 3"):
        build(heads=3)
    with pytest.raises(ValueError, match="blocks is 0"):
        build(blocks=0)


# Shared parts -----------------------------------------------------------------------------------


def test_dropout_from_random_words_keeps_the_mean_and_does_nothing_at_evaluation() -> None:
    torch.manual_seed(0)
    x = torch.ones(300_001)
    for rate in (0.5, 0.2):
        layer = Dropout(rate)
        out = layer(x)
        assert abs(float((out == 0).float().mean()) - rate) < 5e-3
        assert abs(float(out.mean()) - 1) < 1e-2
        assert len(out.unique()) == 2
        assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match=r"dropout 1.0"):
        Dropout(1.0)


def test_dropout_reaches_the_input_the_attention_and_both_feed_forward_layers() -> None:
    model = build(dropout=0.5)
    rates = [m.rate for m in model.modules() if isinstance(m, Dropout)]
    assert rates == [0.5] * 5  # one input, then per block attention and feed-forward (used twice)
    history: History = worlds.case_history()
    model.train()
    assert not torch.equal(model.encode(history), model.encode(history))
    model.eval()
    assert torch.equal(model.encode(history), model.encode(history))


# Strength ---------------------------------------------------------------------------------------


def strength(found: list[World], option: Loss) -> float:
    """Mean NDCG@10 over the seeds."""
    config = SASRecConfig(hidden=32, learning_rate=3e-3, dropout=0.2, loss=option)
    scores = [
        ndcg_at_10(planted.trained(lambda known: SASRec(config, known), world, seed, 12, 16), world)
        for seed, world in enumerate(found)
    ]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("option", [Loss.bce1, Loss.ce])
def test_order_is_read(option: Loss) -> None:
    found = [planted.order(seed, users=150) for seed in SEEDS]
    popular = sum(map(planted.most_popular, found)) / len(found)
    mixed = strength([planted.shuffled(world) for world in found], option)
    assert strength(found, option) > max(mixed, popular) + 0.2
