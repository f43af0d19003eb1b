"""MMSBR: facts of the authors' code that surprise, substitutes, options, and what it can learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.mmsbr import (
    MMSBR,
    Contrastive,
    DistanceSign,
    Features,
    GaussianAttention,
    GivenVectors,
    MMSBRConfig,
    Numeric,
    NumericScore,
    PairContrast,
    Pivots,
    Reads,
    SoftmaxAxis,
    Start,
    TransformerLayer,
    contrast,
    wasserstein,
)
from models.interface import Batch, Behaviour, Catalogue
from models.layers import Dropout
from tests import planted, worlds


def build(seed: int = 0, catalogue: Catalogue | None = None, **options: object) -> MMSBR:
    """A narrow model in float64, in evaluation mode."""
    torch.manual_seed(seed)
    config = MMSBRConfig(**{"hidden": 8, "heads": 2, "rounds": 2, **options})
    model = MMSBR(config, catalogue or worlds.catalogue()).double()
    model.prepare(worlds.records())
    return model.eval()


def samples(seed: int = 0) -> Batch:
    return worlds.batches(worlds.records(), MMSBR.samples, seed=seed)[0]


def loss(model: MMSBR, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    return model.loss(replace(batch, generator=torch.Generator().manual_seed(seed)))


def same_width() -> Catalogue:
    """The small world with vectors of one joint space."""
    catalogue = worlds.catalogue()
    text = nn.functional.pad(catalogue.text, (0, worlds.IMAGE_WIDTH - worlds.TEXT_WIDTH))
    return replace(catalogue, text=text)


# Item side --------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
def test_parameters(joint: bool) -> None:
    catalogue = same_width() if joint else worlds.catalogue()
    config = MMSBRConfig(hidden=64)
    n, d, layers = catalogue.items, 64, 2 * config.rounds
    used = n * 4 * d + 16 * (d**2 + d) + layers * (12 * d**2 + 10 * d) + 7 * d**2 + 4 * d + 1
    image, text = catalogue.image.shape[1], catalogue.text.shape[1]
    maps = (image + text) * d + 2 * d
    if not joint:  # what stands in for a pseudo modality has a map of its own
        maps *= 2
    empty = d  # ours: the session without events
    count = sum(p.numel() for p in MMSBR(config, catalogue).parameters())
    assert count == used + maps + empty
    numeric = MMSBR(replace(config, numeric=Numeric.popularity), catalogue)
    branch = (2 * config.prices + 1) * d + 8 * d**2 + 10 * d
    assert sum(p.numel() for p in numeric.parameters()) == count + branch


def slow_layer(layer: TransformerLayer, x: Tensor, axis: SoftmaxAxis) -> Tensor:
    """L3 of one item, head by head."""
    d, tokens = x.shape[1], x.shape[0]
    width = d // layer.heads
    query, key, value = layer.query_key_value(x).split(d, dim=1)
    gathered = torch.zeros_like(x)
    for head in range(layer.heads):
        cut = slice(head * width, (head + 1) * width)
        logits = query[:, cut] @ key[:, cut].T / math.sqrt(width)
        weights = logits.softmax(1 if axis is SoftmaxAxis.key else 0)
        for token in range(tokens):
            gathered[token, cut] = weights[token] @ value[:, cut]
    x = layer.norm(x + gathered @ layer.output.weight.T)
    return layer.norm(x + layer.outer(layer.inner(x).relu()))


@pytest.mark.parametrize("axis", SoftmaxAxis)
@pytest.mark.parametrize("kept", [1, 4, 8])
def test_attention_weights_sum_to_one_over_keys_or_as_published_over_queries(
    axis: SoftmaxAxis, kept: int
) -> None:
    layer = build(softmax_axis=axis).items.rounds[0].text_layer
    x = torch.randn(3, 8, 8, dtype=torch.float64)
    expected = torch.stack([slow_layer(layer, item, axis) for item in x])
    torch.testing.assert_close(layer(x, kept), expected[:, :kept])


@pytest.mark.parametrize("axis", SoftmaxAxis)
@pytest.mark.parametrize("pairs", [1, 1 << 10, 1 << 20])
def test_attention_in_blocks_of_items_has_the_same_gradients(
    axis: SoftmaxAxis, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.mmsbr.PAIRS", pairs)
    layer = build(softmax_axis=axis).items.rounds[0].text_layer
    x = torch.randn(5, 8, 8, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(5, 6, 8, dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad((layer(x, 6) * factors).sum(), leaves)
    slow = torch.stack([slow_layer(layer, item, axis) for item in x])[:, :6]
    for found, expected in zip(
        ours, torch.autograd.grad((slow * factors).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_layer_has_one_norm_and_an_output_map_without_bias() -> None:
    layer = build().items.rounds[0].text_layer
    norms = [module for module in layer.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 1
    assert norms[0].eps == 1e-5
    assert layer.output.bias is None
    assert layer.query_key_value.bias is not None


def test_text_comes_first_pivots_are_averaged_and_tokens_are_summed() -> None:
    model = build()
    first = model.items.rounds[0]
    pivots, text, image = torch.randn(3, 2, 4, 8, dtype=torch.float64)
    after_text = first.text_layer(torch.cat([pivots, text], 1), 8)
    middle = (after_text[:, :4] + pivots) / 2
    after_image = first.image_layer(torch.cat([middle, image], 1), 8)
    expected = (
        (middle + after_image[:, :4]) / 2,
        text + after_text[:, 4:],
        image + after_image[:, 4:],
    )
    for ours, theirs in zip(first(pivots, text, image), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(first.pivots_alone(pivots, text, image), expected[0])


def test_pivots_have_no_order_but_tokens_of_a_modality_are_separate_mlps() -> None:
    tokens = build().items.text_tokens
    out = tokens(torch.randn(2, 8, dtype=torch.float64))
    assert out.shape == (2, 4, 8)
    assert (out[:, 0] - out[:, 1]).abs().min() > 0
    assert out.abs().max() < 1  # the last layer is a Tanh


def test_item_vectors_are_never_negative() -> None:
    vectors = build().item_vectors()
    assert (vectors >= 0).all()
    assert (vectors[1:].sum(1) > 0).any()
    assert not vectors[0].any()


def test_item_vectors_do_not_depend_on_the_session_or_on_the_other_items() -> None:
    model = build()
    torch.testing.assert_close(model.items(torch.tensor([3, 7])), model.item_vectors()[[4, 8]])


def test_item_vectors_are_made_once_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, history = build(), worlds.case_history()
    made = []
    forward = model.items.forward
    monkeypatch.setattr(
        model.items, "forward", lambda rows: made.append(len(rows)) or forward(rows)
    )
    monkeypatch.setattr("baselines.mmsbr.BLOCK", 10)
    with torch.no_grad():
        for _ in range(2):
            model.score_all(model.encode(history))
    assert made == [10, 10, 5]


def test_shared_pivots_know_items_by_their_content_alone() -> None:
    catalogue = worlds.catalogue()
    image, text = catalogue.image.clone(), catalogue.text.clone()
    image[5], text[5] = image[6], text[6]
    twins = replace(catalogue, image=image, text=text)
    shared = build(catalogue=twins, pivots=Pivots.shared).item_vectors()
    own = build(catalogue=twins, pivots=Pivots.item).item_vectors()
    assert torch.equal(shared[5], shared[6])
    assert not torch.equal(own[5], own[6])


def test_missing_vectors_are_zeros_before_the_map() -> None:
    features = build().items.features
    text, image = features(torch.tensor([worlds.NEITHER[0] - 1]))
    assert torch.equal(text[0], features.text_map.bias)
    assert torch.equal(image[0], features.image_map.bias)


def test_overwritten_features_are_tables_of_noise_that_never_saw_the_content() -> None:
    with_content = build(features=Features.overwritten)
    without = replace(
        worlds.catalogue(),
        image=torch.zeros(worlds.ITEMS + 1, 7),
        text=torch.zeros(worlds.ITEMS + 1, 5),
    )
    blind = build(features=Features.overwritten, catalogue=without)
    assert torch.equal(with_content.item_vectors(), blind.item_vectors())
    assert not torch.equal(build().item_vectors(), build(catalogue=without).item_vectors())
    for table in with_content.items.features.parameters():
        assert table.shape == (worlds.ITEMS, 8)
        assert table.abs().max() <= 8**-0.5


# Session side -----------------------------------------------------------------------------------


def test_the_interest_is_a_gated_sum_without_softmax() -> None:
    model, history = build(), worlds.case_history()
    part, vectors = model.interest, model.item_vectors()
    for row, items in enumerate(history.items.tolist()):
        h = vectors[[item for item in items if item]]
        if not len(h):
            continue
        mean = h.mean(0)
        expected = torch.zeros(8, dtype=torch.float64)
        for each in h:
            gate = (part.of_item(each) + part.of_mean.weight @ mean).sigmoid()
            expected += (part.gate.weight @ gate + part.gate.bias) * each
        torch.testing.assert_close(model.encode(history)[0][row], expected)
    assert part.of_mean.bias is None


def test_the_gate_may_be_negative() -> None:
    model = build()
    with torch.no_grad():
        model.interest.gate.weight.zero_()
        model.interest.gate.bias.fill_(-2.0)
    history = worlds.history([worlds.clicks([3, 5])])
    torch.testing.assert_close(
        model.encode(history)[0][0], -2 * model.item_vectors()[[3, 5]].sum(0)
    )


def test_the_order_of_a_session_does_not_matter() -> None:
    model = build()
    there = worlds.history([worlds.clicks([1, 2, 13, 5])])
    back = worlds.history([worlds.clicks([5, 13, 2, 1])])
    torch.testing.assert_close(model.encode(there)[0], model.encode(back)[0])


def test_with_the_numeric_branch_the_last_event_matters() -> None:
    model = build(numeric=Numeric.popularity)
    there = worlds.history([worlds.clicks([1, 2, 13, 24])])
    back = worlds.history([worlds.clicks([24, 13, 2, 1])])
    assert model.scorer.price[1] != model.scorer.price[24]
    assert (model.encode(there)[1] - model.encode(back)[1]).abs().max() > 1e-6


def test_a_session_without_events_has_a_learned_vector() -> None:
    model = build()
    assert torch.equal(model.encode(worlds.history([[]]))[0][0], model.interest.nothing)


def test_typed_reads_the_behaviours_and_merged_does_not() -> None:
    history = worlds.case_history()
    clicked = replace(history, behaviours=history.real.long())
    assert torch.equal(build().encode(history)[0], build().encode(clicked)[0])
    typed = build(behaviors=Reads.typed)
    assert (typed.encode(history)[0] - typed.encode(clicked)[0]).abs().max() > 1e-6
    assert not typed.typing.vectors.weight[0].any()  # padding has none


def test_favor_only_reads_favors() -> None:
    model, history = build(behaviors=Reads.favor_only), worlds.case_history()
    favors = history.only(Behaviour.FAVOR)
    assert torch.equal(model.encode(history)[0], model.encode(favors)[0])
    clicks_alone = worlds.history([worlds.clicks([2, 8])])
    assert torch.equal(model.encode(clicks_alone)[0][0], model.interest.nothing)


def test_favor_only_learns_from_favors_alone() -> None:
    batch = worlds.case_batch(MMSBR.samples)
    favors = replace(batch, history=batch.history.only(Behaviour.FAVOR))
    for numeric in Numeric:
        found, expected = (
            loss(build(behaviors=Reads.favor_only, numeric=numeric), one) for one in (batch, favors)
        )
        assert found == expected
        merged = [loss(build(numeric=numeric), one)["next_item"] for one in (batch, favors)]
        assert not torch.equal(*merged)


# Numeric branch and score -----------------------------------------------------------------------


def test_score_is_the_product_times_one_plus_or_minus_the_distance() -> None:
    history, plain = worlds.case_history(), build()
    products = plain.encode(history)[0] @ plain.item_vectors().T
    torch.testing.assert_close(plain.score_all(plain.encode(history)), products)
    for sign, factor in ((DistanceSign.plus, 1), (DistanceSign.minus, -1)):
        model = build(numeric=Numeric.popularity, distance_sign=sign)
        scorer, state = model.scorer, model.encode(history)
        price, category = scorer.price[history.items], scorer.category[history.items]
        mean, cov = scorer.attention(price, category, history.real)
        items = torch.arange(worlds.ITEMS + 1)
        distance = scorer.distance(mean, cov)[:, scorer.kind(items)]
        assert (distance >= 0).all()
        products = state[0] @ model.item_vectors().T
        expected = (products * (1 + factor * distance))[:, 1:]
        torch.testing.assert_close(model.score_all(state)[:, 1:], expected)


def test_wasserstein_is_the_distance_of_means_and_of_roots() -> None:
    m1, m2 = torch.randn(2, 5, dtype=torch.float64)
    c1, c2 = torch.rand(2, 5, dtype=torch.float64)
    expected = (m1 - m2).square().sum() + (c1.sqrt() - c2.sqrt()).square().sum()
    torch.testing.assert_close(wasserstein(m1, c1, m2, c2), expected)
    nothing = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    wasserstein(m1, nothing, m1, nothing).backward()
    assert torch.isfinite(nothing.grad).all()  # the roots are clamped at 1e-24


def test_the_last_events_gaussian_is_what_a_slow_copy_has() -> None:
    torch.manual_seed(1)
    config = MMSBRConfig(hidden=8, heads=2)
    part = GaussianAttention(config, prices=5, categories=3).double().eval()
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    price, category = torch.tensor([[0, 2, 4, 1]]), torch.tensor([[0, 1, 2, 2]])
    real = torch.tensor([[False, True, True, True]])
    ours = part(price, category, real)

    norm = part.norm
    assert norm.eps == 1e-12
    assert sum(isinstance(module, nn.LayerNorm) for module in part.modules()) == 1
    prices, categories = price[0, 1:], part.category[category[0, 1:]]
    x_mean = norm(part.mean[prices]) + norm(categories)
    x_cov = nn.functional.elu(norm(part.cov[prices]) + norm(categories)) + 1
    context_mean, context_cov = (torch.zeros(8, dtype=torch.float64) for _ in range(2))
    for head in range(2):
        cut = slice(4 * head, 4 * head + 4)
        q_mean, k_mean, v_mean = (
            part.of_mean[n](x_mean)[:, cut] for n in ("query", "key", "value")
        )
        q_cov, k_cov, v_cov = (
            (nn.functional.elu(part.of_cov[n](x_cov)) + 1)[:, cut]
            for n in ("query", "key", "value")
        )
        logits = torch.stack(
            [-wasserstein(q_mean[-1], q_cov[-1], k_mean[t], k_cov[t]) for t in range(3)]
        )
        weights = (logits / 2).softmax(0)
        context_mean[cut] = weights @ v_mean
        context_cov[cut] = weights**2 @ v_cov  # squared weights
    mean = norm(part.of_mean["dense"](context_mean) + part.mean[prices[-1]])
    cov = norm(part.of_cov["dense"](context_cov) + part.cov[prices[-1]])
    torch.testing.assert_close(ours[0][0], mean)
    torch.testing.assert_close(ours[1][0], cov)


def test_popularity_bins_are_quantiles_that_ties_share() -> None:
    scorer = NumericScore(MMSBRConfig(hidden=8), items=8, prices=4)
    counts = torch.tensor([99, 0, 0, 1, 1, 5, 9, 9, 30])
    scorer.prepare(counts)
    assert scorer.price[1:].tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert not scorer.category.any()


# Loss -------------------------------------------------------------------------------------------


def named(model: MMSBR, batch: Batch) -> set[int]:
    history = model.read(batch.history)
    return (set(history.items.flatten().tolist()) | set(batch.target.tolist())) - {0}


@pytest.mark.parametrize("numeric", Numeric)
def test_the_softmax_is_over_all_items_where_they_are_covered(numeric: Numeric) -> None:
    model, batch = build(numeric=numeric), samples()
    scores = model.score_all(model.encode(batch.history))[:, 1:]
    expected = nn.functional.cross_entropy(scores, batch.target - 1)
    torch.testing.assert_close(loss(model, batch)["next_item"], expected)


@pytest.mark.parametrize("numeric", Numeric)
def test_drawn_items_stand_for_all_that_the_batch_does_not_name(numeric: Numeric) -> None:
    model = build(numeric=numeric, softmax_items=2)
    batch = worlds.case_batch(MMSBR.samples)
    batch = replace(
        batch, history=replace(batch.history, items=batch.history.items.clamp(max=6)),
        targets=batch.targets.clamp(max=9),
    )  # fmt: skip
    known = named(model, batch)
    items, bias = model.step_items(batch.history, batch.target, torch.Generator().manual_seed(0))
    assert items[: len(known)].tolist() == sorted(known)
    assert not bias[: len(known)].any()
    assert len(items) == len(known) + 2 == len(set(items.tolist()))
    rest = worlds.ITEMS - len(known)
    torch.testing.assert_close(bias[-2:], torch.full((2,), math.log(rest / 2)))
    scores = model.score_all(model.encode(batch.history))[:, items] + bias
    place = [items.tolist().index(target) for target in batch.target.tolist()]
    expected = nn.functional.cross_entropy(scores, torch.tensor(place))
    torch.testing.assert_close(loss(model, batch)["next_item"], expected)


def test_the_estimate_of_the_denominator_is_unbiased() -> None:
    model = build(softmax_items=3)
    history = worlds.history([worlds.clicks([1, 2])])
    weights = torch.rand(worlds.ITEMS + 1, generator=torch.Generator().manual_seed(1)).exp()
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(3000):
        items, bias = model.step_items(history, torch.tensor([4]), generator)
        found.append(float((weights[items] * bias.exp()).sum()))
    assert abs(sum(found) / len(found) / float(weights[1:].sum()) - 1) < 0.01


def test_a_step_makes_the_vectors_of_its_items_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(softmax_items=1)
    batch = replace(
        worlds.case_batch(MMSBR.samples), history=worlds.history([worlds.clicks([3])] * 8)
    )
    made = []
    forward = model.items.forward
    monkeypatch.setattr(model.items, "forward", lambda rows: made.append(rows) or forward(rows))
    loss(model, batch)
    assert len(made) == 1
    assert len(made[0]) == len(named(model, batch)) + 1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_vectors_made_in_blocks_have_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    model = build(dropout=dropout, dropout_item=dropout).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(3)
        torch.stack(list(loss(model, samples()).values())).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradients()
    monkeypatch.setattr("baselines.mmsbr.BLOCK", 4)
    sizes = []
    encode = model.items.forward
    monkeypatch.setattr(
        model.items, "forward", lambda rows: (sizes.append(len(rows)), encode(rows))[1]
    )
    blocks = gradients()
    assert max(sizes) == 4
    assert len(sizes) > len(set(sizes)) + 2  # each block forward, and again on the way back
    for one, other in zip(gradients(), blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # what is dropped is dropped again
    if not dropout:
        for one, other in zip(whole, blocks, strict=True):
            torch.testing.assert_close(one, other)


def test_contrast_has_the_largest_terms_below_and_the_positive_above() -> None:
    e, g = torch.randn(2, 7, 4, dtype=torch.float64)
    for largest in (3, 7, 100):
        expected = []
        for row, products in enumerate(e @ g.T):
            terms = products.exp().sort(descending=True).values[:largest]
            expected.append(terms.sum().log() - products[row])
        torch.testing.assert_close(contrast(e, g, largest), torch.stack(expected))
    assert (contrast(e, g, 1) < 0).sum() == 0  # the largest is at least the positive


def test_each_vector_passes_the_map_of_what_it_stands_in_for() -> None:
    features = build(catalogue=same_width()).items.features
    assert isinstance(features, GivenVectors)
    rows = torch.arange(5)
    pseudo_text, pseudo_image = features.stand_ins(rows)
    image, text = features.image[:5].double(), features.text[:5].double()
    assert torch.equal(pseudo_text, features.text_map(image))
    assert torch.equal(pseudo_image, features.image_map(text))


def test_contrast_is_a_mean_of_cosines_over_tau_on_items_that_have_both_vectors() -> None:
    model = build(catalogue=same_width(), temperature=0.2, contrastive_weight=0.3)
    features, part = model.items.features, model.contrast
    assert isinstance(part, PairContrast)
    catalogue = worlds.catalogue()
    both = (catalogue.image_present & catalogue.text_present)[1:].nonzero().squeeze(1)
    assert 0 < len(both) < worlds.ITEMS
    terms = 0
    for e, g in zip(features(both), features.stand_ins(both), strict=True):
        cosines = nn.functional.normalize(e, dim=1) @ nn.functional.normalize(g, dim=1).T / 0.2
        terms = terms + (cosines.logsumexp(1) - cosines.diagonal()).mean()
    found = part(features, torch.arange(worlds.ITEMS), torch.Generator())["contrast"]
    torch.testing.assert_close(found, 0.3 * terms)
    nobody = torch.tensor([worlds.NEITHER[0] - 1])
    assert float(part(features, nobody, torch.Generator())["contrast"].detach()) == 0


def test_contrast_is_over_so_many_items_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(contrastive_items=4)
    sizes = []
    monkeypatch.setattr(
        "baselines.mmsbr.contrast", lambda e, g, k: sizes.append(len(e)) or contrast(e, g, k)
    )
    loss(model, samples())
    assert sizes == [4, 4]


def test_contrast_is_of_the_items_of_the_step_drawn_ones_too() -> None:
    model, batch = build(softmax_items=3), worlds.case_batch(MMSBR.samples)
    rows: list[Tensor] = []
    model.contrast.register_forward_pre_hook(lambda module, given: rows.append(given[1]))
    loss(model, batch)
    items, _ = model.step_items(batch.history, batch.target, torch.Generator().manual_seed(0))
    named = set(batch.history.items.flatten().tolist()) | set(batch.target.tolist())
    assert rows[0].tolist() == (items - 1).tolist()
    assert len(set(items.tolist()) - named) == 3


def test_contrast_trains_the_maps_of_the_vectors_and_nothing_else() -> None:
    model = build().train()
    loss(model, samples())["contrast"].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all(name.startswith("items.features.") for name in trained)


def test_contrast_can_be_off() -> None:
    assert loss(build(contrastive=Contrastive.off), samples()).keys() == {"next_item"}
    assert loss(build(), samples()).keys() == {"next_item", "contrast"}


# Start, dropout, options ------------------------------------------------------------------------


def test_every_parameter_starts_uniform_as_published_norm_gains_too() -> None:
    limit = 16**-0.5
    for start in Start:
        torch.manual_seed(0)
        model = MMSBR(MMSBRConfig(hidden=16, start=start), worlds.catalogue())
        odd = {n for n, p in model.named_parameters() if p.detach().abs().max() > limit}
        odd |= {n for n, p in model.named_parameters() if len(p.detach().unique()) == 1 < p.numel()}
        repaired = {
            n for n, _ in model.named_parameters() if n.endswith(("norm.weight", "norm.bias"))
        }
        gate = model.interest.gate
        if start is Start.published:
            assert odd == set()
        else:
            assert odd == {*repaired, "interest.gate.weight"}
            assert not gate.weight.any()
            assert float(gate.bias.detach()) == limit
        table = model.items.pivots.table.detach()
        assert abs(float(table.std()) - limit / math.sqrt(3)) < 0.01
        assert table.abs().max() > 0.99 * limit
        gains = model.items.rounds[0].text_layer.norm.weight
        assert (gains.min() < 0) == (start is Start.published)


def test_the_gate_starts_positive_and_as_published_with_either_sign() -> None:
    def sums(start: Start) -> Tensor:
        history = worlds.history([worlds.clicks([1, 2, 3])])
        models = [build(seed, hidden=16, start=start) for seed in range(6)]
        gates = [m.encode(history)[0].sum() / m.item_vectors()[1:4].sum() for m in models]
        return torch.stack(gates).detach()

    torch.testing.assert_close(sums(Start.repaired), torch.full((6,), 0.25, dtype=torch.float64))
    assert set(sums(Start.published).sign().tolist()) == {1, -1}


def test_dropout_is_at_the_places_of_the_authors() -> None:
    model = build(numeric=Numeric.popularity)
    rates = {
        name: module.rate for name, module in model.named_modules() if isinstance(module, Dropout)
    }
    inside = {name for name in rates if "tokens" in name or "layer" in name}
    assert {rates[name] for name in inside} == {0.6}
    assert {rates[name] for name in rates.keys() - inside} == {0.2}
    assert rates.keys() - inside == {"items.dropout", "scorer.attention.dropout"}


def test_dropout_is_on_again_after_an_evaluation() -> None:
    model = build().train()
    model.eval()
    model.train()
    assert not torch.equal(model.items(torch.arange(9)), model.items(torch.arange(9)))


def test_defaults() -> None:
    config = MMSBRConfig()
    assert (config.hidden, config.learning_rate, config.weight_decay) == (64, 1e-3, 0)
    assert (config.heads, config.rounds, config.pivot_count, config.token_count) == (4, 3, 4, 4)
    assert (config.dropout_item, config.dropout, config.contrastive_weight) == (0.6, 0.2, 0.01)
    for value in vars(config).values():
        if hasattr(type(value), "__members__"):
            assert value is next(iter(type(value)))


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_axis": SoftmaxAxis.query},
        {"features": Features.overwritten},
        {"start": Start.published},
        {"numeric": Numeric.popularity},
        {"numeric": Numeric.popularity, "distance_sign": DistanceSign.minus},
        {"pivots": Pivots.shared},
        {"behaviors": Reads.typed},
        {"behaviors": Reads.favor_only},
        {"softmax_items": 3},
        {"pivot_count": 2, "token_count": 3},
    ],
    ids=str,
)
def test_every_option_trains_all_of_its_parameters(options: dict[str, object]) -> None:
    model = build(learning_rate=3e-3, dropout=0.0, dropout_item=0.0, **options).train()
    batches = [samples(seed) for seed in range(3)] + [worlds.case_batch(MMSBR.samples)]
    optimiser, first, reached = model.optimiser(), [], set()
    for step in range(24):
        total = sum(loss(model, batches[step % 4]).values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        first.append(float(total.detach()))
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in model.named_parameters()}
    assert sum(first[-4:]) < sum(first[:4])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden 8 is no multiple of heads 3"):
        build(heads=3)
    with pytest.raises(ValueError, match="rounds is 0"):
        build(rounds=0)


# Strength ---------------------------------------------------------------------------------------


def test_content_alone_tells_the_taste_that_items_without_records_belong_to() -> None:
    """Shared pivots: the positives of this world have no record, so ids say nothing of them."""

    def make(catalogue: Catalogue) -> MMSBR:
        config = MMSBRConfig(
            hidden=16, rounds=1, pivots=Pivots.shared, dropout=0.0,
            dropout_item=0.0, learning_rate=3e-3,
        )  # fmt: skip
        return MMSBR(config, catalogue)

    ours, popular, blind = [], [], []
    for seed in planted.SEEDS:
        world = planted.content(seed)
        nothing = planted.without_content(world)
        ours.append(planted.ndcg_at_10(planted.trained(make, world, seed, epochs=6), world))
        blind.append(planted.ndcg_at_10(planted.trained(make, nothing, seed, epochs=1), nothing))
        popular.append(planted.most_popular(world))
    mean = sum(ours) / len(ours)
    assert mean > sum(popular) / len(popular) + 0.25
    assert mean > sum(blind) / len(blind) + 0.25
