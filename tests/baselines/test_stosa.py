"""STOSA: the facts of the authors' code that surprise, both encoders, strength."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.stosa import (
    STOSA,
    Encoder,
    Layer,
    STOSAConfig,
    blocked_keys,
    deviation,
    positive,
    squared_wasserstein,
)
from models.interface import Batch, Behaviour
from models.layers import Behaviors, Dropout
from tests import planted, worlds


def build(seed: int = 0, length: int = worlds.LENGTH, **options: object) -> STOSA:
    """A narrow model in float64 whose biases and norms are not at their start."""
    torch.manual_seed(seed)
    config = STOSAConfig(**{"hidden": 16, "heads": 2, "hidden_dropout": 0.0, **options})  # type: ignore[arg-type]
    model = STOSA(config, worlds.catalogue(length=length)).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


class Given(nn.Module):
    """Stands in for the draw of negatives, which is always item 1; notes whose they are."""

    def __init__(self) -> None:
        super().__init__()
        self.users: list[int] = []

    def forward(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
        self.users = user.tolist()
        return torch.ones(len(user), count, dtype=torch.int64)


def window(seed: int = 0) -> Batch:
    return worlds.batches(worlds.records(), STOSA.samples, seed=seed)[0]


# A slow copy, one sample at a time ---------------------------------------------------------------


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def norm(layer: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    gain, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    centred = x - x.mean(-1, keepdims=True)
    return gain * centred / np.sqrt(x.var(-1, keepdims=True) + 1e-12) + bias


def affine(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def distance(m1: np.ndarray, c1: np.ndarray, m2: np.ndarray, c2: np.ndarray) -> float:
    return float(((m1 - m2) ** 2).sum() + ((np.sqrt(c1) - np.sqrt(c2)) ** 2).sum())


def slow_states(model: STOSA, items: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both streams of one history of L slots, by loops over queries, keys and heads."""
    config, length = model.config, len(items)
    tables = (model.item_mean, model.item_cov, model.position_mean, model.position_cov)
    M, C, pm, pc = (table.detach().numpy() for table in tables)
    m = elu(norm(model.norm, M[items] + pm))
    c = elu(norm(model.norm, C[items] + pc)) + 1
    width = config.hidden // config.heads
    for layer in model.layers:
        qm, km, vm = (
            affine(part, m) for part in (layer.mean_query, layer.mean_key, layer.mean_value)
        )
        qc, kc, vc = (
            elu(affine(part, c)) + 1 for part in (layer.cov_query, layer.cov_key, layer.cov_value)
        )
        mean_context, cov_context = np.zeros_like(m), np.zeros_like(c)
        for head in range(config.heads):
            cut = slice(head * width, (head + 1) * width)
            for query in range(length):
                logits = np.full(length, -(2.0**32) + 1)
                for key in range(query + 1):
                    if items[key]:
                        w = distance(qm[query, cut], qc[query, cut], km[key, cut], kc[key, cut])
                        logits[key] = -w / np.sqrt(width)
                shares = np.exp(logits - logits.max())
                shares /= shares.sum()
                mean_context[query, cut] = shares @ vm[:, cut]
                cov_context[query, cut] = shares**2 @ vc[:, cut]
        m1 = norm(layer.norm, m + affine(layer.mean_dense, mean_context))
        c1 = norm(layer.norm, c + affine(layer.cov_dense, cov_context))
        f, g = layer.mean_feed_forward, layer.cov_feed_forward
        c = elu(norm(g.norm, c1 + affine(g.outer, elu(affine(g.inner, c1))))) + 1
        if config.encoder is Encoder.chained:
            m = norm(f.norm, m1 + affine(f.outer, elu(affine(f.inner, m1))))
    return m, c


@pytest.mark.parametrize("encoder", Encoder)
def test_both_encoders_agree_with_a_slow_copy_padding_included(encoder: Encoder) -> None:
    model = build(encoder=encoder, layers=2)
    history = worlds.case_history(length=worlds.LENGTH)
    m, c = (x.detach().numpy() for x in model.states(history.items, worlds.LENGTH))
    for row, items in enumerate(history.items.tolist()):
        slow_m, slow_c = slow_states(model, items)
        np.testing.assert_allclose(m[row], slow_m, atol=1e-10)
        np.testing.assert_allclose(c[row], slow_c, atol=1e-10)


# Facts ------------------------------------------------------------------------------------------


def test_the_distance_is_squared_and_of_roots_of_variances() -> None:
    m1, c1, m2, c2 = (torch.tensor([x], dtype=torch.float64) for x in (1.0, 9.0, 4.0, 25.0))
    assert float(squared_wasserstein(m1, c1, m2, c2)) == 3.0**2 + 2.0**2
    assert float(deviation(torch.zeros(1))) == pytest.approx(1e-12)


def test_published_returns_the_embedded_mean_and_a_contextual_covariance() -> None:
    model, items = build(encoder=Encoder.published, layers=2), worlds.case_history().items
    m, c = model.embed(items)
    after_m, after_c = model.states(items, items.shape[1])
    assert torch.equal(after_m, m)
    assert (after_c - c).abs().max() > 0.1


def test_published_leaves_ten_tensors_a_layer_without_a_gradient() -> None:
    for encoder, missing in ((Encoder.chained, 0), (Encoder.published, 20)):
        model = build(encoder=encoder, layers=2)
        torch.stack(list(model.loss(window()).values())).sum().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert len(without) == missing
        assert all("mean_" in name for name in without)


def test_published_encoder_trains() -> None:
    batch, train = worlds.one_target_each(STOSA.samples)
    model = build(encoder=Encoder.published, learning_rate=0.01).train()
    model.prepare(train)
    optimiser, values = model.optimiser(), []
    for _ in range(30):
        optimiser.zero_grad()
        loss = model.loss(batch)["bpr"]
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]


def test_one_norm_serves_both_streams_at_the_input_and_behind_the_attention() -> None:
    model = build(layers=2)
    norms = [name for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms == [
        "norm",
        *(
            f"layers.{n}.{part}norm"
            for n in (0, 1)
            for part in ("", "mean_feed_forward.", "cov_feed_forward.")
        ),
    ]
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-12}


def test_both_embedded_streams_pass_an_elu_and_the_covariance_is_positive() -> None:
    model, items = build(), worlds.case_history().items
    m, c = model.embed(items)
    raw = model.norm(model.item_mean[items] + model.position_mean[-items.shape[1] :])
    torch.testing.assert_close(m, torch.where(raw > 0, raw, raw.exp() - 1))
    assert (m > -1).all()
    assert (c > 0).all()
    assert (model.states(items, 1)[1] > 0).all()
    torch.testing.assert_close(positive(torch.tensor([2.0, -1.0])), torch.tensor([3.0, 0.367879]))


def test_the_covariance_context_weighs_by_squared_attention_after_dropout() -> None:
    model = build(attention_dropout=0.5)
    layer, items = model.layers[0], worlds.case_history().items
    m, c = model.embed(items)
    seen: list[Tensor] = []
    layer.step = lambda one, m, c, A: (seen.append(A), (m, c))[1]
    layer.train()
    layer(m, c, blocked_keys(items > 0))
    A = seen[0]
    assert (A == 0).any()  # dropped
    value = layer.split(positive(layer.cov_value(c)))
    context = ((A * A) @ value).transpose(1, 2).flatten(2)
    c1 = layer.norm(c + layer.cov_dense(context))
    torch.testing.assert_close(layer.next_cov(c, A), positive(layer.cov_feed_forward(c1)))
    assert (layer.next_cov(c, A) > 0).all()
    assert (c1 < 0).any()  # only the end of a layer is positive


def test_a_row_without_a_key_attends_uniformly_to_all_slots_in_either_precision() -> None:
    items = worlds.history([worlds.clicks([3, 4])], length=6).items
    for model in (build(), build().float()):
        m, c = model.embed(items)
        A = model.layers[0].attention(m, c, blocked_keys(items > 0))
        torch.testing.assert_close(A[:, :, :4], torch.full_like(A[:, :, :4], 1 / 6))
        assert (A[:, :, 4, 4] == 1).all()
        assert (A[:, :, 5, :4] == 0).all()


def test_attention_and_distances_are_made_in_float32_under_bf16() -> None:
    model, items = build().float(), worlds.case_history().items
    layer, blocked = model.layers[0], blocked_keys(items > 0)
    m, c = (x.detach() for x in model.embed(items))
    p, n = (model.candidates(torch.tensor(each)) for each in ([3, 4], [5, 6]))
    exact, between = layer.attention(m, c, blocked), squared_wasserstein(*p, *n)
    with torch.autocast("cpu", torch.bfloat16):
        A, low = layer.attention(m, c, blocked), layer.attention(m.bfloat16(), c, blocked)
        bare = Layer.attention.__wrapped__(layer, m, c, blocked)
        again = squared_wasserstein(*p, *n)
        halves = squared_wasserstein(*(x.bfloat16() for x in (*p, *n)))
    assert torch.equal(A, exact)
    assert torch.equal(again, between)
    assert low.dtype == halves.dtype == torch.float32
    torch.testing.assert_close(low.sum(-1), torch.ones_like(low[..., 0]))
    torch.testing.assert_close(
        halves, squared_wasserstein(*(x.bfloat16().float() for x in (*p, *n)))
    )
    assert (bare - exact).abs().max() > 0.01  # what autocast alone would make of the rows


def test_a_history_without_events_scores_as_one_of_all_slots_of_padding() -> None:
    model = build()
    nobody = worlds.history([[], []])
    m, c = slow_states(model, [0] * worlds.LENGTH)
    state = model.encode(nobody)
    np.testing.assert_allclose(state[0].detach().numpy(), np.stack([m[-1]] * 2), atol=1e-10)
    np.testing.assert_allclose(state[1].detach().numpy(), np.stack([c[-1]] * 2), atol=1e-10)


def test_candidates_have_no_norm_no_elu_on_the_mean_and_no_position() -> None:
    model, history = build(), worlds.case_history()
    m, c = model.encode(history)
    items = torch.tensor([[3, 20]]).expand(len(m), -1)
    M, C = model.item_mean[items], model.item_cov[items]
    spread = (c.unsqueeze(1).sqrt() - (torch.nn.functional.elu(C) + 1).sqrt()).square().sum(2)
    expected = -((m.unsqueeze(1) - M).square().sum(2) + spread)
    torch.testing.assert_close(model.score((m, c), items), expected)
    torch.testing.assert_close(model.score_all((m, c))[:, [3, 20]], expected)


def test_the_nearest_item_comes_first() -> None:
    model = build()
    cov = positive(model.item_cov[7:8])
    assert int(model.score_all((model.item_mean[7:8], cov))[:, 1:].argmax()) + 1 == 7


def test_losses_are_bpr_of_distances_and_a_hinge_between_positive_and_negative() -> None:
    model = build(pvn_weight=0.3)
    sequence = (torch.randn(2, 16).double(), torch.rand(2, 16).double())
    p, n = torch.tensor([3, 4]), torch.tensor([5, 5])
    bpr, pvn = model.place_losses(sequence, p, n)
    gaussians = [(x.detach().numpy(), c.detach().numpy()) for x, c in map(model.candidates, (p, n))]
    for row in range(2):
        s = [x[row].numpy() for x in sequence]
        a, b = ([x[row] for x in pair] for pair in gaussians)
        plus, minus, between = distance(*s, *a), distance(*s, *b), distance(*a, *b)
        assert float(bpr[row].detach()) == pytest.approx(np.log1p(np.exp(plus - minus)))
        assert float(pvn[row].detach()) == pytest.approx(max(0.0, plus - between))

    batch, plain = window(), build(pvn_weight=0.0)
    losses, other = (
        one.loss(replace(batch, generator=torch.Generator().manual_seed(1)))
        for one in (model, build(pvn_weight=0.6))
    )
    torch.testing.assert_close(2 * losses["positive_versus_negative"],
                               other["positive_versus_negative"])  # fmt: skip
    assert float(plain.loss(batch)["positive_versus_negative"].detach()) == 0


def test_negatives_are_none_of_the_users_training_items() -> None:
    model, batch = build(), window()
    touched = [
        {
            int(i)
            for i, u in zip(worlds.records().item, worlds.records().user, strict=True)
            if u == n
        }
        for n in range(worlds.USERS)
    ]
    user = batch.history.user.repeat_interleave(200)
    drawn = model.negatives(user, 1, torch.Generator().manual_seed(0)).squeeze(1)
    assert all(int(i) not in touched[u] for i, u in zip(drawn, user.tolist(), strict=True))


@pytest.mark.parametrize("option", Behaviors)
def test_each_place_has_a_negative_of_its_own_user(option: Behaviors) -> None:
    model = build(behaviors=option)
    model.negatives = Given()
    rows = [worlds.favors([3, 4]), worlds.favors([5]), worlds.favors([2, 8, 6])]
    history = worlds.history(rows, user=[7, 2, 11])
    ones = history.real.double()
    targets = torch.where(history.real, 20, 0)
    targets[2, -2] = 0  # a slot without a target
    model.loss(Batch(history, targets, ones, 0 * ones, torch.Generator()))
    assert model.negatives.users == [7, 7, 2, 11, 11]


def test_places_count_as_often_as_the_events_they_stand_for() -> None:
    model = build()
    history = worlds.history([worlds.clicks([3, 4]), worlds.clicks([5])])
    targets = torch.tensor([[6, 0], [0, 7]])
    one, two = ((targets == item).double() for item in (6, 7))

    def of(clicks: Tensor) -> float:
        batch = Batch(history, targets, clicks, 0 * clicks, torch.Generator().manual_seed(0))
        return float(model.loss(batch)["bpr"].detach())

    assert of(2 * one + two) == pytest.approx((2 * of(one) + of(two)) / 3)


def test_initial_weights_have_mean_0_01_rows_of_padding_too_and_padding_is_never_trained() -> None:
    torch.manual_seed(0)
    model = STOSA(STOSAConfig(hidden=64), worlds.catalogue(items=400))
    model.prepare(worlds.records())
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.numel() > 4000:
            assert float(parameter.detach().mean()) == pytest.approx(0.01, abs=1.5e-3)
            assert float(parameter.detach().std()) == pytest.approx(0.02, abs=1e-3)
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert model.item_mean[0].abs().max() > 0
    torch.stack(list(model.loss(window()).values())).sum().backward()
    for table in (model.item_mean, model.item_cov):
        assert (table.grad[0] == 0).all()
        assert (table.grad[-1] == 0).all()  # the unused mask row


def test_parameters_are_as_many_as_the_formula_says() -> None:
    d, items, length, layers = 16, worlds.ITEMS, worlds.LENGTH, 2
    expected = 2 * (items + 2) * d + 2 * length * d + 2 * d + layers * (24 * d**2 + 24 * d)
    assert sum(p.numel() for p in build(layers=layers).parameters()) == expected


def test_defaults_are_those_of_the_authors_readme_and_adam_has_its_usual_betas() -> None:
    config = STOSAConfig()
    assert (config.hidden, config.layers, config.heads) == (64, 1, 4)
    assert (config.hidden_dropout, config.attention_dropout) == (0.3, 0.0)
    assert (config.pvn_weight, config.learning_rate, config.weight_decay) == (0.005, 1e-3, 0)
    group = build().optimiser().param_groups[0]
    assert (group["betas"], group["lr"]) == ((0.9, 0.999), 1e-3)
    assert STOSAConfig.GRID == {"pvn_weight": (0.0, 0.005, 0.1), "layers": (1, 2)}


def test_dropout_reaches_both_embeddings_the_attention_and_four_sub_layers() -> None:
    model = build(hidden_dropout=0.3, attention_dropout=0.1)
    rates = sorted(m.rate for m in model.modules() if isinstance(m, Dropout))
    assert rates == [0.1, 0.3, 0.3, 0.3, 0.3]  # input and layer, each used twice, two networks


# Trimming, behaviours, settings ------------------------------------------------------------------


def test_the_newest_item_has_the_last_position_however_the_batch_is_trimmed() -> None:
    model = build()
    rows = [worlds.clicks([4, 2]), worlds.favors([7])]
    trimmed, padded = worlds.history(rows), worlds.history(rows, length=worlds.LENGTH)
    for short, long in zip(model.encode(trimmed), model.encode(padded), strict=True):
        torch.testing.assert_close(short, long)


def test_encoding_computes_the_last_place_of_all_places() -> None:
    model, items = build(layers=2), worlds.case_history().items
    for last, everything in zip(
        model.states(items, 1), model.states(items, items.shape[1]), strict=True
    ):
        torch.testing.assert_close(last, everything[:, -1:])


def test_favor_only_reads_the_favors() -> None:
    model, history = build(behaviors=Behaviors.favor_only), worlds.case_history()
    merged = build()
    found, expected = model.encode(history), merged.encode(history.only(Behaviour.FAVOR))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.isfinite(torch.stack(list(model.loss(window()).values()))).all()


def test_favor_only_reads_each_target_after_the_favors_before_it() -> None:
    model = build(behaviors=Behaviors.favor_only)
    model.negatives = Given()
    history = worlds.history([[(3, 1), (4, 2), (5, 1), (6, 2), (7, 1)]])
    targets = torch.tensor([[4, 5, 6, 7, 8]])
    ones = torch.ones(1, 5, dtype=torch.float64)
    losses = model.loss(Batch(history, targets, ones, 0 * ones, torch.Generator()))

    m, c = (x[0] for x in model.states(history.only(Behaviour.FAVOR).items, 2))
    # targets 5, 6 after favor 4; 7, 8 after favor 6; 4 has nothing before it
    read = [0, 0, 1, 1]
    bpr, pvn = model.place_losses((m[read], c[read]), torch.arange(5, 9), torch.ones(4).long())
    torch.testing.assert_close(losses["bpr"], bpr.mean())
    torch.testing.assert_close(
        losses["positive_versus_negative"], model.config.pvn_weight * pvn.mean()
    )


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden 16 is no multiple of heads 3"):
        build(heads=3)
    with pytest.raises(ValueError, match="layers is 0"):
        build(layers=0)
    with pytest.raises(ValueError, match="pvn_weight is -1"):
        build(pvn_weight=-1.0)


# Strength ----------------------------------------------------------------------------------------


def test_it_learns_an_order_that_popularity_and_shuffled_records_do_not_have() -> None:
    config = STOSAConfig(hidden=32, heads=2, hidden_dropout=0.1, learning_rate=0.01)
    ours, popular, blind = [], [], []
    for seed in planted.SEEDS:
        world = planted.order(seed)
        mixed = planted.shuffled(world)
        for found, where in ((ours, world), (blind, mixed)):
            model = planted.trained(lambda c: STOSA(config, c), where, seed, epochs=8)
            found.append(planted.ndcg_at_10(model, where))
        popular.append(planted.most_popular(world))
    assert np.mean(ours) > np.mean(popular) + 0.5
    assert np.mean(ours) > np.mean(blind) + 0.2
