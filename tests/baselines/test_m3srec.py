"""M3SRec (reconstruction): shared attention, whose experts, masks, losses, stages, readings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.m3srec import (
    ConcatReadout,
    Gate,
    Id,
    M3SRec,
    M3SRecConfig,
    Mask,
    MeanReadout,
    Mixture,
    Places,
    Readout,
    Reads,
    Score,
    Specific,
    TopGate,
    every_slot,
    info_nce,
    left_aligned,
)
from harness.zoo import find
from models.interface import Batch, Behaviour, Catalogue, History, Losses, Samples
from tests import planted, worlds
from tests.planted import SEEDS, World, ndcg_at_10

FINE_TUNING = 1
"""Value of `stage` after pre-training."""


def build(seed: int = 0, stage: int = FINE_TUNING, **options: object) -> M3SRec:
    """A narrow model in float64, its weights far from their start; without dropout."""
    torch.manual_seed(seed)
    config = M3SRecConfig(**{"hidden": 16, "dropout": 0.0, **options})  # type: ignore[arg-type]
    model = M3SRec(config, worlds.catalogue()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    model.stage.fill_(stage)
    return model


def prefixes() -> Batch:
    return worlds.batches(worlds.records(), Samples.prefix)[0]


def total(losses: Losses) -> float:
    return float(torch.stack(list(losses.values())).sum().detach())


# Parameters, start, optimiser -------------------------------------------------------------------


@pytest.mark.parametrize(("specific", "cross"), [(1, 1), (2, 1), (0, 2)])
def test_parameters_are_those_of_the_formula(specific: int, cross: int) -> None:
    d, n_e, vectors = 24, 3, worlds.IMAGE_WIDTH + worlds.TEXT_WIDTH
    config = M3SRecConfig(hidden=d, experts=n_e, specific_blocks=specific, cross_blocks=cross)
    model = M3SRec(config, worlds.catalogue())
    rows, length = worlds.ITEMS + 1, worlds.LENGTH  # row 0 (padding) is stored
    mixture = n_e * (8 * d**2 + 5 * d) + n_e * (d + 1)
    layers = 4 * d**2 + 4 * d + 4 * d
    expected = (
        rows * d + length * d + 2 * d + vectors * d + 2 * d + 2 * d
        + specific * (layers + 2 * mixture) + cross * (layers + mixture) + d**2 + 2 * d
    )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == expected


def test_start_is_normal_with_a_deviation_of_0_02_and_biases_zero() -> None:
    torch.manual_seed(0)
    model = M3SRec(M3SRecConfig(hidden=64), worlds.catalogue(items=400))
    for table in (model.items.weight[1:], model.blocks[0].attention.key.weight,
                  model.blocks[1].experts.inner.weight, model.text_map.weight):  # fmt: skip
        assert abs(float(table.detach().std()) - 0.02) < 0.002
    assert (model.items.weight[0] == 0).all()
    biases = [p for name, p in model.named_parameters() if "bias" in name]
    assert all((bias == 0).all() for bias in biases)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 5
    assert {norm.eps for norm in norms} == {1e-12}
    assert all((norm.weight == 1).all() for norm in norms)


def test_defaults_and_adam() -> None:
    config = M3SRecConfig()
    assert (config.heads, config.experts, config.dropout, config.temperature) == (4, 4, 0.2, 0.07)
    assert (config.specific_blocks, config.cross_blocks, config.pretrain_epochs) == (1, 1, 10)
    assert isinstance(build().optimiser(), torch.optim.Adam)


def test_every_table_calls_it_a_reconstruction() -> None:
    assert "reconstruction" in find("m3srec").note
    assert "RECONSTRUCTION" in str(M3SRec.__doc__)


# Layers -----------------------------------------------------------------------------------------


def tokens(model: M3SRec, history: History) -> tuple[History, Tensor]:
    arranged = model.arranged(history)
    return arranged, model.tokens(arranged, model.all_tables(), arranged.items)


def test_positions_count_from_the_oldest_event_and_serve_all_modalities() -> None:
    model = build()
    events = worlds.clicks([4, 2])
    _, alone = tokens(model, worlds.history([events]))
    _, padded = tokens(model, worlds.history([events], length=5))
    torch.testing.assert_close(alone, padded[:, :, :2])
    tables = model.all_tables()
    for stream, table in enumerate((tables.text, tables.image)):
        raw = (
            table[4]
            + model.items.weight[4]
            + model.positions.weight[0]
            + model.types.weight[stream]
        )
        torch.testing.assert_close(alone[0, stream, 0], model.norm(raw))


def test_a_missing_vector_is_zeros_so_its_map_leaves_the_bias() -> None:
    model, tables = build(), build().all_tables()
    for item in worlds.NEITHER:
        torch.testing.assert_close(tables.text[item], model.text_map.bias)
        torch.testing.assert_close(tables.image[item], model.image_map.bias)


def test_attention_is_shared_a_text_token_sees_the_images() -> None:
    model = build()
    arranged, x = tokens(model, worlds.history([worlds.clicks([1, 2, 3])]))
    seen = model.seen(arranged, every_slot(arranged))
    before = model.blocks[0].attend(x, x, seen)
    changed = x.clone()
    changed[:, 1, 0] += 1  # the image of the first event
    after = model.blocks[0].attend(x, changed, seen)
    moved = (before - after).abs().amax(3)[0] > 1e-6
    assert moved.all()  # text and image tokens, at the same time and later


def test_causal_tokens_see_both_modalities_up_to_their_time_and_no_padding() -> None:
    model = build()
    arranged = left_aligned(worlds.history([worlds.clicks([1, 2, 3]), worlds.clicks([4])]))
    seen = model.seen(arranged, every_slot(arranged)).view(2, 2, 3, 2, 3)
    for stream in range(2):
        for time in range(3):
            for other in range(2):
                assert seen[0, stream, time, other].tolist() == [key <= time for key in range(3)]
    # the second row holds one event: a padding token sees it, and itself alone of the padding
    assert seen[1, 0, 2].tolist() == [[True, False, True], [True, False, False]]


def test_bidirectional_tokens_see_all_events() -> None:
    model = build(mask=Mask.bidirectional)
    arranged = left_aligned(worlds.history([worlds.clicks([1, 2, 3]), worlds.clicks([4])]))
    seen = model.seen(arranged, every_slot(arranged)).view(2, 2, 3, 2, 3)
    assert seen[0].all()
    assert seen[1, 0, 0].tolist() == [[True, False, False]] * 2
    causal = build().encode(arranged)
    assert (model.encode(arranged)[0] - causal[0]).abs().max() > 1e-3


def test_first_blocks_have_experts_a_modality_and_the_last_share_theirs() -> None:
    model = build(specific_blocks=2, cross_blocks=2)
    kinds = [type(block.experts) for block in model.blocks]
    assert kinds == [Specific, Specific, Mixture, Mixture]
    same = torch.randn(1, 1, 3, 16, dtype=torch.float64).expand(1, 2, 3, 16)
    for block in model.blocks:
        text, image = block.experts(same)[0]
        assert torch.allclose(text, image) is isinstance(block.experts, Mixture)


def test_a_mixture_is_the_weighted_sum_of_its_experts() -> None:
    mixture = build().blocks[1].experts
    x = torch.randn(3, 16, dtype=torch.float64)
    gates = mixture.router(x).softmax(1)
    torch.testing.assert_close(mixture.gates(x), gates)
    expected = torch.zeros_like(x)
    for k in range(4):
        cut = slice(64 * k, 64 * (k + 1))
        hidden = functional.gelu(x @ mixture.inner.weight[cut].T + mixture.inner.bias[cut])
        expert = hidden @ mixture.outer.weight[:, cut].T + mixture.outer_bias[k]
        expected += gates[:, k : k + 1] * expert
    torch.testing.assert_close(mixture(x), expected)


@pytest.mark.parametrize(("gate", "kept"), [(Gate.top1, 1), (Gate.top2, 2)])
def test_top_gates_keep_the_largest_weights_as_they_are(gate: Gate, kept: int) -> None:
    logits = torch.randn(50, 4, dtype=torch.float64)
    gates, dense = TopGate(kept)(logits), logits.softmax(1)
    assert ((gates > 0).sum(1) == kept).all()
    torch.testing.assert_close(gates.sum(1), dense.topk(kept).values.sum(1))
    equal = TopGate(kept)(torch.zeros(1, 4))
    assert equal.tolist() == [[0.25] * kept + [0.0] * (4 - kept)]
    assert isinstance(build(gate=gate).blocks[1].experts.gate, TopGate)


def test_post_norms_and_residuals() -> None:
    model = build()
    block = model.blocks[1]
    arranged, x = tokens(model, worlds.history([worlds.clicks([1, 2])]))
    seen = model.seen(arranged, every_slot(arranged))
    attention = block.attention(x.flatten(1, 2), x.flatten(1, 2), seen).view_as(x)
    a = block.attention_norm(x + attention)
    torch.testing.assert_close(block.attend(x, x, seen), a)
    torch.testing.assert_close(block.mix(a), block.experts_norm(a + block.experts(a)))


def test_the_last_block_computes_the_slots_that_are_read_and_no_others() -> None:
    model = build(specific_blocks=1, cross_blocks=1)
    arranged, x = tokens(model, worlds.case_history())
    everywhere = model.hidden(arranged, x, every_slot(arranged))
    last = model.place.read(arranged)
    found = model.hidden(arranged, x, last)
    assert found.shape[2] == 1
    rows = torch.arange(len(last))
    torch.testing.assert_close(found[:, :, 0], everywhere[rows, :, last.squeeze(1)])


def test_dropout_is_of_tokens_sub_layers_and_experts_but_not_of_attention_weights() -> None:
    model = build(dropout=0.3, specific_blocks=1, cross_blocks=1)
    where = [name for name, m in model.named_modules() if type(m).__name__ == "Dropout"]
    assert where == [
        "dropout",
        "blocks.0.experts.mixtures.0.dropout", "blocks.0.experts.mixtures.1.dropout",
        "blocks.0.dropout", "blocks.1.experts.dropout", "blocks.1.dropout",
    ]  # fmt: skip


# Readout and score ------------------------------------------------------------------------------


def test_readout_is_an_attention_over_modalities_or_a_mean_or_a_map() -> None:
    h = torch.randn(5, 2, 16, dtype=torch.float64)
    attention = build().readout
    logits = [attention.linear(h[:, m]).tanh() @ attention.direction.weight[0] for m in range(2)]
    alpha = torch.stack(logits, 1).softmax(1)
    torch.testing.assert_close(attention(h), alpha[:, :1] * h[:, 0] + alpha[:, 1:] * h[:, 1])
    mean, concat = build(readout=Readout.mean).readout, build(readout=Readout.concat).readout
    assert isinstance(mean, MeanReadout)
    torch.testing.assert_close(mean(h), (h[:, 0] + h[:, 1]) / 2)
    assert isinstance(concat, ConcatReadout)
    torch.testing.assert_close(concat(h), concat.linear(torch.cat([h[:, 0], h[:, 1]], 1)))


@pytest.mark.parametrize("score", Score)
def test_score_is_a_cosine_over_tau_or_a_product(score: Score) -> None:
    model, history = build(score=score), worlds.case_history()
    u, c = model.user(history), model.all_tables().candidates()
    found = model.score_all(model.encode(history))
    cosine = torch.nn.functional.cosine_similarity(u.unsqueeze(1), c, dim=2) / 0.07
    torch.testing.assert_close(found, cosine if score is Score.cosine else u @ c.T)


def test_the_candidate_is_both_vectors_and_the_id() -> None:
    model = build()
    tables = model.all_tables()
    image = model.image[3].double() @ model.image_map.weight.T + model.image_map.bias
    text = model.text[3].double() @ model.text_map.weight.T + model.text_map.bias
    torch.testing.assert_close(tables.candidates()[3], image + text + model.items.weight[3])
    assert tables.candidates()[0].abs().max() > 0.1  # padding: its maps' biases


def test_ids_are_added_to_the_tokens_or_a_stream_of_their_own_or_nowhere() -> None:
    history = worlds.history([worlds.clicks([3, 5])])
    streams, with_id = {}, {}
    for option in Id:
        model = build(id=option)
        streams[option] = tokens(model, history)[1].shape[1]
        tables = model.all_tables()
        with_id[option] = not torch.equal(tables.candidates(), tables.text + tables.image)
    assert streams == {Id.add: 2, Id.stream: 3, Id.none: 2}
    assert with_id == {Id.add: True, Id.stream: True, Id.none: False}
    assert "items.weight" not in dict(build(id=Id.none).named_parameters())
    model = build(id=Id.stream)
    before = tokens(model, history)[1]
    with torch.no_grad():
        model.items.weight[3] += 1
    moved = (tokens(model, history)[1] - before).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [False, False, True]


# Losses -----------------------------------------------------------------------------------------


def slow_info_nce(query: Tensor, table: Tensor, target: list[int], tau: float) -> Tensor:
    """One row, one column at a time."""
    terms = []
    for i, mine in enumerate(target):
        cosines = {
            j: torch.cosine_similarity(query[i], table[other], 0) / tau
            for j, other in enumerate(target)
            if j == i or other != mine
        }
        terms.append(torch.stack(list(cosines.values())).logsumexp(0) - cosines[i])
    return torch.stack(terms)


def test_pre_training_leaves_out_columns_of_the_same_target() -> None:
    torch.manual_seed(0)
    query = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    table = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    target = [4, 2, 4, 7, 4, 2]
    fast = info_nce(query, table, torch.tensor(target), 0.5)
    slow = slow_info_nce(query, table, target, 0.5)
    torch.testing.assert_close(fast, slow)
    for one, other in zip(
        torch.autograd.grad(fast.sum(), (query, table)),
        torch.autograd.grad(slow.sum(), (query, table)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_pre_training_is_right_in_float32_where_nearly_nothing_is_left_to_learn() -> None:
    table = torch.eye(4)
    found = info_nce(table[[1, 1, 2, 3]], table, torch.tensor([1, 1, 2, 3]), 0.07)
    expected = math.log1p(2 * math.exp(-1 / 0.07))
    assert found[0].item() == pytest.approx(expected, abs=1e-6)


def test_pre_training_is_context_against_target_plus_a_tenth_of_four_crossed_terms() -> None:
    batch = prefixes()
    model = build(stage=0)
    losses = model.loss(batch)
    assert set(losses) == {"user_item", "user_text", "user_image", "text_image", "image_text"}
    arranged, x = tokens(model, batch.history)
    h = model.hidden(arranged, x, model.place.read(arranged)).squeeze(2)
    u, tables, target = model.readout(h), model.all_tables(), batch.target.tolist()
    sides = {
        "user_item": (1.0, u, tables.candidates()), "user_text": (0.1, u, tables.text),
        "user_image": (0.1, u, tables.image), "text_image": (0.1, h[:, 0], tables.image),
        "image_text": (0.1, h[:, 1], tables.text),
    }  # fmt: skip
    for name, (weight, query, table) in sides.items():
        term = slow_info_nce(query, table, target, 0.07).mean()
        torch.testing.assert_close(losses[name], weight * term)
    whole = build(stage=0, pretrain_weight=1.0).loss(batch)
    torch.testing.assert_close(whole["text_image"], 10 * losses["text_image"])
    torch.testing.assert_close(whole["user_item"], losses["user_item"])


def test_training_is_the_cross_entropy_over_real_items_without_padding() -> None:
    model, batch = build(), prefixes()
    logits = model.score_all(model.encode(batch.history))[:, 1:]
    expected = functional.cross_entropy(logits, batch.target - 1)
    torch.testing.assert_close(model.loss(batch), {"next_item": expected})


def test_stages_pre_training_then_training_of_all_parameters() -> None:
    model = build(stage=0, pretrain_epochs=2)
    draws = torch.Generator()
    assert not model.selects
    assert [model.stage_ended(age, draws) for age in (1, 2)] == [False, True]
    for stage in range(2):
        assert stage == 0 or model.next_stage()
        model.zero_grad()
        torch.stack(list(model.loss(prefixes()).values())).sum().backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
    assert model.selects
    assert not model.stage_ended(100, draws)
    assert not model.next_stage()
    assert "stage" in model.state_dict()


def test_without_pre_training_there_is_one_stage() -> None:
    config = M3SRecConfig(hidden=16, pretrain_epochs=0)
    model = M3SRec(config, worlds.catalogue())
    assert model.selects
    assert not model.next_stage()
    assert set(model.loss(prefixes())) == {"next_item"}


# Behaviours and places --------------------------------------------------------------------------


def test_what_is_read_of_the_behaviours() -> None:
    history = worlds.case_history()
    clicked = replace(history, behaviours=history.real.long())
    merged, typed = build(), build(behaviors=Reads.typed)
    assert torch.equal(merged.encode(history), merged.encode(clicked))
    assert (typed.encode(history) - typed.encode(clicked)).abs().max() > 1e-3
    favors = build(behaviors=Reads.favor_only)
    torch.testing.assert_close(favors.encode(history), merged.encode(history.only(Behaviour.FAVOR)))


def test_every_place_of_a_window_is_read_as_the_prefix_that_ends_there() -> None:
    model, last = build(places=Places.all), build()
    assert (model.samples, last.samples) == (Samples.window, Samples.prefix)
    window = worlds.history([worlds.clicks([1, 2, 3]), worlds.clicks([7])])
    targets = torch.tensor([[4, 0, 5], [0, 0, 6]])
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    batch = Batch(window, targets, weights, torch.zeros_like(weights), torch.Generator())
    prefix = worlds.history(
        [worlds.clicks([1]), worlds.clicks([1, 2, 3]), worlds.clicks([1, 2, 3]), worlds.clicks([7])]
    )
    ones = torch.ones(4, 1)
    rows = Batch(prefix, torch.tensor([[4], [5], [5], [6]]), ones, 0 * ones, torch.Generator())
    torch.testing.assert_close(model.loss(batch), last.loss(rows))


def test_windows_of_favors_read_each_target_after_the_favors_before_it() -> None:
    model = build(places=Places.all, behaviors=Reads.favor_only)
    window = worlds.history([[(3, 1), (4, 2), (5, 1), (6, 2)], worlds.favors([9])])
    targets = torch.tensor([[7, 0, 0, 8], [0, 0, 0, 2]])
    ones = (targets > 0).float()
    batch = Batch(window, targets, ones, 0 * ones, torch.Generator())
    prefix = worlds.history([worlds.favors([4, 6]), worlds.favors([9])])
    one = torch.ones(2, 1)
    rows = Batch(prefix, torch.tensor([[8], [2]]), one, 0 * one, torch.Generator())
    torch.testing.assert_close(model.loss(batch), build().loss(rows))  # 7 has nothing before it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "hidden 16 is no multiple of heads 3"),
        ({"experts": 0}, "experts is 0"),
        ({"experts": 1, "gate": Gate.top2}, "gate top2 needs 2"),
        ({"specific_blocks": 0, "cross_blocks": 0}, "at least one block"),
        ({"places": Places.all, "mask": Mask.bidirectional}, "places=all needs mask=causal"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


OPTIONS: list[dict[str, object]] = [
    {"id": Id.stream}, {"id": Id.none}, {"mask": Mask.bidirectional}, {"gate": Gate.top1},
    {"gate": Gate.top2}, {"readout": Readout.mean}, {"readout": Readout.concat},
    {"score": Score.dot}, {"pretrain_weight": 1.0}, {"pretrain_epochs": 0},
    {"behaviors": Reads.favor_only}, {"behaviors": Reads.typed}, {"places": Places.all},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains(options: dict[str, object]) -> None:
    world = planted.order(0, users=60)

    def make(catalogue: Catalogue) -> M3SRec:
        settings = {"hidden": 16, "learning_rate": 1e-2, "dropout": 0.0, "pretrain_epochs": 1}
        return M3SRec(M3SRecConfig(**{**settings, **options}), catalogue)  # type: ignore[arg-type]

    model = make(world.catalogue)
    model.stage.fill_(FINE_TUNING)
    batch = worlds.batches(world.train, model.samples, length=planted.LENGTH)[0]
    fitted = planted.trained(make, world, seed=0, epochs=3)
    assert total(fitted.loss(batch)) < total(model.eval().loss(batch)) - 0.1
    assert all(p.isfinite().all() for p in fitted.parameters())


# Strength ---------------------------------------------------------------------------------------


def strength(worlds_: list[World]) -> float:
    """Mean NDCG@10 over the seeds."""
    config = M3SRecConfig(
        hidden=16, experts=2, learning_rate=1e-2, pretrain_epochs=2, places=Places.all
    )
    found = [
        ndcg_at_10(planted.trained(lambda known: M3SRec(config, known), world, seed, 4, 32), world)
        for seed, world in enumerate(worlds_)
    ]
    return sum(found) / len(found)


def popular(worlds_: list[World]) -> float:
    return sum(map(planted.most_popular, worlds_)) / len(worlds_)


def test_vectors_rank_items_that_nobody_touched() -> None:
    found = [planted.content(seed, users=150) for seed in SEEDS]
    without = [planted.without_content(world) for world in found]
    assert strength(found) > max(strength(without), popular(found)) + 0.3


def test_order_is_read() -> None:
    found = [planted.order(seed, users=150) for seed in SEEDS]
    mixed = [planted.shuffled(world) for world in found]
    assert strength(found) > max(strength(mixed), popular(found)) + 0.2
