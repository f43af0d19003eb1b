"""KMCLR: the facts most often got wrong, each named, options, cost, strength."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.kmclr import (
    KG,
    KMCLR,
    PAIRS,
    Attributes,
    Clusters,
    KMCLRConfig,
    KnowledgeGraph,
    KnowledgeHalf,
    NoKnowledge,
    Norm,
    Rescale,
    TatecSign,
    Triples,
    Vectors,
    behaviour_contrast,
    k_means,
    keep_probabilities,
    squared_distance,
    view_contrast,
)
from harness.config import ProtocolConfig, TrainConfig
from harness.data.batches import TrainingSamples
from harness.training.loop import Trainer
from models.graphs import Bipartite
from models.interface import Behaviour, Catalogue, Interactions, Losses, Samples
from tests import planted, worlds

CLICK, FAVOR = int(Behaviour.CLICK), int(Behaviour.FAVOR)
D = 8


def catalogue(**fields: list[int]) -> Catalogue:
    """The small world, whose items have two attributes unless other ones are given."""
    number = torch.arange(worlds.ITEMS + 1)
    two = {"brand": torch.where(number % 6 == 0, 0, number % 4 + 1), "seller": number % 3}
    given = {name: torch.tensor(values) for name, values in fields.items()}
    return replace(worlds.catalogue(), fields=given or two)


def build(
    seed: int = 0,
    train: Interactions | None = None,
    world: Catalogue | None = None,
    **options: object,
) -> KMCLR:
    """A narrow model in float64, prepared."""
    torch.manual_seed(seed)
    config = KMCLRConfig(**{"hidden": D, "ssl_group": 2, **options})  # type: ignore[arg-type]
    model = KMCLR(config, catalogue() if world is None else world).double()
    model.prepare(worlds.records() if train is None else train)
    return model


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def knowledge_of(model: KMCLR) -> KnowledgeHalf:
    assert isinstance(model.knowledge, KnowledgeHalf)
    return model.knowledge


def epoch_of(model: KMCLR, seed: int = 0) -> Iterator[Losses]:
    """An epoch's losses, one update after each."""
    optimiser = model.optimiser()
    model.train()
    model.begin_epoch(0, draws())
    for batch in worlds.batches(worlds.records(), Samples.pair, 16, seed=seed):
        for losses in model.passes(batch):
            optimiser.zero_grad()
            total(losses).backward()  # type: ignore[no-untyped-call]
            model.before_step(optimiser)
            optimiser.step()
            yield losses


# Sizes, starts, optimiser --------------------------------------------------------------------------


def test_the_parameters_are_those_of_the_formula() -> None:
    model = build(layers=2)
    U, V, d, K, n_r = worlds.USERS, worlds.ITEMS, D, 2, 2
    n_e = 4 + 2
    padding_rows = 3 * d  # of P's partner Q and of both copies' items
    formula = (
        (U + V) * d + 2 * K * d * d + 2 * K * d * d + U * d + 2 * (V + n_e + 1 + n_r + 1) * d
        + 2 * (n_r + 1) * d * d + 3 * d + 1 + d * d + d
    )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == formula + padding_rows


def test_the_knowledge_tables_start_small_and_relation_matrices_as_one_tensor() -> None:
    torch.manual_seed(0)
    model = build(hidden=64)
    knowledge = knowledge_of(model)
    for table in (knowledge.users, knowledge.copies[0].items, knowledge.copies[1].items):
        assert float(table.detach().std()) == pytest.approx(0.1, rel=0.1)
    limit = math.sqrt(2) * math.sqrt(6 / (64 * 64 + 3 * 64))  # fan in d^2, fan out (n_r + 1) d
    for M in (knowledge.transr.M, knowledge.tatec.M):
        assert 0.95 * limit < M.abs().max() <= limit


def test_the_behaviour_tables_are_xavier_over_their_own_rows() -> None:
    half = build().behaviour
    assert half.P.abs().max() <= math.sqrt(6 / (worlds.USERS + D))
    assert half.Q.abs().max() <= math.sqrt(6 / (worlds.ITEMS + D))
    assert not half.Q[0].any()


def test_decay_and_the_cyclic_rate_are_the_behaviour_halfs_alone() -> None:
    model = build(learning_rate=1e-3)
    optimiser = model.optimiser()
    assert isinstance(optimiser, torch.optim.AdamW)
    behaviour, knowledge = optimiser.param_groups
    assert (behaviour["weight_decay"], knowledge["weight_decay"]) == (1e-4, 0)
    assert set(behaviour["params"]) == set(model.behaviour.parameters())
    schedule = model.schedule(optimiser, steps=4)
    rates = []
    for _ in range(17):
        rates.append(behaviour["lr"])
        assert knowledge["lr"] == 1e-3
        for _ in range(4):  # it moves once an epoch
            assert behaviour["lr"] == rates[-1]
            optimiser.step()
            schedule.step()
    up, down = np.linspace(1e-3, 5e-3, 6), np.linspace(5e-3, 1e-3, 11)
    np.testing.assert_allclose(rates, [*up, *down[1:], up[1]])


def test_the_behaviour_halfs_gradient_is_clipped_to_20() -> None:
    model = build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.before_step(model.optimiser())
    assert all((p.grad == 1).all() for p in model.knowledge.parameters() if p.grad is not None)
    for parameter in model.behaviour.parameters():
        parameter.grad = torch.full_like(parameter, 100)
    model.before_step(model.optimiser())
    squares = sum(p.grad.square().sum() for p in model.behaviour.parameters() if p.grad is not None)
    assert math.sqrt(squares) == pytest.approx(20, rel=1e-5)


# Two halves, mixed 0.9 and 0.1 ----------------------------------------------------------------------


def test_each_half_gets_no_gradient_from_the_others_losses() -> None:
    model = build()
    user, item = model.target.user[:20], model.target.item[:20]
    mix = model.knowledge.mix()
    total(model.behaviour_loss(user, item, mix, draws())).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in model.knowledge.parameters())
    assert all(p.grad is not None for p in model.behaviour.parameters())
    model.zero_grad()
    total(model.knowledge.loss(model.target, user, item, draws())).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in model.behaviour.parameters())


def test_final_vectors_are_nine_parts_behaviour_and_one_part_knowledge() -> None:
    model = build().eval()
    with torch.no_grad():
        behaviour, knowledge = model.behaviour(model.graphs)[0], knowledge_of(model)()
        for number in range(2):
            expected = 0.9 * behaviour[number] + 0.1 * knowledge[number]
            torch.testing.assert_close(model.vectors()[number], expected)
        history = worlds.case_history()
        scores = model.score_all(model.encode(history))
    torch.testing.assert_close(
        scores, model.vectors().users[history.user] @ model.vectors().items.T
    )


def test_scoring_propagates_once_an_evaluation_and_without_dropout() -> None:
    model = build()
    list(epoch_of(model))
    model.eval()
    calls = []
    model.behaviour.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = model.score_all(model.encode(worlds.case_history()))
        assert torch.equal(first, model.score_all(model.encode(worlds.case_history())))
    assert len(calls) == 1


def test_the_knowledge_part_of_the_behaviour_loss_is_free_of_dropout() -> None:
    model = build().train()
    vectors = Vectors(model.behaviour.P, model.behaviour.Q)
    one, other = model.knowledge.mix()(vectors), model.knowledge.mix()(vectors)
    assert torch.equal(one.items, other.items)
    assert model.knowledge.training


# An epoch ---------------------------------------------------------------------------------------------


def test_an_epoch_runs_in_the_authors_order_on_its_first_batch() -> None:
    model = build(behaviour_batch=10, knowledge_batch=15, triple_batch=10)
    interactions, heads = len(model.target.user), int((catalogue().fields["seller"] > 0).sum())
    heads += int(((catalogue().fields["seller"] == 0) & (catalogue().fields["brand"] > 0)).sum())
    names = [next(iter(losses)) for losses in epoch_of(model)]
    assert names == [
        *["transr"] * (heads // 10),  # the last, smaller batch is dropped
        *["tatec"] * (heads // 10),
        *["knowledge_bpr"] * -(-interactions // 15),
        *["bpr"] * -(-interactions // 10),
    ]
    batch = worlds.batches(worlds.records(), Samples.pair, 16)[0]
    assert not list(model.passes(batch))
    model.begin_epoch(1, draws())
    assert next(model.passes(batch))


def test_few_triples_are_one_batch() -> None:
    names = [next(iter(losses)) for losses in epoch_of(build())]
    assert names == ["transr", "tatec", "knowledge_bpr", "bpr"]


def test_views_are_drawn_anew_each_epoch_after_the_triples_were_learned() -> None:
    model = build()
    knowledge = knowledge_of(model)
    assert knowledge.views == [knowledge.target_graph] * 2
    seen = [list(knowledge.views) for _ in epoch_of(model)]
    assert seen[0] == seen[1] == [knowledge.target_graph] * 2
    assert seen[2] == seen[3]
    assert knowledge.target_graph not in seen[2]
    before = list(knowledge.views)
    list(epoch_of(model, seed=1))
    for old, new in zip(before, knowledge.views, strict=True):
        assert not torch.equal(old.values, new.values)


def test_nobody_with_a_favor_means_nothing_to_train() -> None:
    model = build(train=worlds.interactions([worlds.clicks([1, 2])] * worlds.USERS))
    assert not list(epoch_of(model))


def test_a_run_taken_up_after_an_epoch_ends_as_if_it_had_not_stopped() -> None:
    train = worlds.records()
    samples = TrainingSamples(
        worlds.split(train), Samples.pair, ProtocolConfig(), TrainConfig(batch_size=16)
    )
    trainers = []
    for _ in range(2):
        torch.manual_seed(0)
        model = KMCLR(KMCLRConfig(hidden=D), catalogue())
        model.prepare(train)
        trainers.append(Trainer(model, samples, seed=0))
    straight, resumed = trainers
    straight.epoch(0, lambda: False)
    resumed.restore(deepcopy(straight.state()))
    state = torch.get_rng_state()
    straight.epoch(1, lambda: False)
    torch.set_rng_state(state)
    resumed.epoch(1, lambda: False)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_users_without_a_favor_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = build()
    favored = worlds.records().user[worlds.records().behaviour == FAVOR].unique()
    missing = worlds.USERS - len(favored)
    assert missing > 0
    assert f"{missing} of {worlds.USERS} users have no training favor" in caplog.text
    assert set(model.target.user.tolist()) == set(favored.tolist())


# 1 Behaviour half ---------------------------------------------------------------------------------------


def test_neighbours_are_summed_or_symmetrically_normalised() -> None:
    train = worlds.interactions([worlds.clicks([1, 2, 2, 3]), worlds.clicks([3])])
    table = torch.ones(worlds.ITEMS + 1, 1, dtype=torch.float64)
    plain = build(train=train).graphs[0].to_users(table).squeeze(1)
    assert plain[:3].tolist() == [3, 1, 0]  # binary: a second click adds nothing
    normalised = build(train=train, graph_norm=Norm.symmetric).graphs[0].to_users(table).squeeze(1)
    expected = [2 / math.sqrt(3) + 1 / math.sqrt(6), 1 / math.sqrt(2), 0]
    torch.testing.assert_close(normalised[:3], torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_the_contrast_is_over_the_width_and_leaves_out_the_own_group() -> None:
    torch.manual_seed(0)
    users = [5, 2, 5, 7, 1, 2, 9]  # 5 and 2 were sampled twice
    table = torch.randn(2, 10, D, dtype=torch.float64)
    distinct, rank = torch.unique(torch.tensor(users), return_inverse=True)
    found = behaviour_contrast(table[:, distinct], rank, group=3)
    for b in range(2):  # the target with itself, too
        for number, x in enumerate(users):
            mine = set(users[number // 3 * 3 : number // 3 * 3 + 3])

            def s(y: int, x: int = x, b: int = b) -> float:
                return math.exp(float(table[1, x] @ table[b, y]) / D)

            negatives = sum(s(y) for y in set(users) - mine)
            expected = -math.log(1e-8 + s(x) / (1e-8 + negatives))
            assert float(found[b, number]) == pytest.approx(expected)


def test_other_behaviours_positives_are_drawn_and_users_without_are_skipped() -> None:
    train = worlds.interactions(
        [worlds.clicks([1, 2]) + worlds.favors([3]), worlds.favors([4]), worlds.clicks([5])]
    )
    clicks = build(train=train).records[0]
    user, item = clicks.positives(torch.tensor([0, 1, 2] * 200), draws())
    assert set(zip(user.tolist(), item.tolist(), strict=True)) == {(0, 1), (0, 2), (2, 5)}
    assert (item == 1).sum() == pytest.approx(100, abs=30)


def test_a_negative_avoids_the_items_of_that_behaviour_alone() -> None:
    items = list(range(1, worlds.ITEMS + 1))
    train = worlds.interactions([worlds.clicks(items[:-2]) + worlds.favors(items[-2:])])
    clicks, favors = build(train=train).records
    user = torch.zeros(500, dtype=torch.int64)
    assert set(clicks.others(user, draws()).tolist()) == set(items[-2:])
    assert set(favors.others(user, draws()).tolist()) == set(items[:-2])


def test_the_behaviour_loss_sums_over_users_and_divides_by_the_configured_batch() -> None:
    model = build(behaviour_batch=50, reg=0.01, beta=0.5)
    user, item = model.target.user, model.target.item
    positive, negative = item.flip(0), (item % worlds.ITEMS) + 1
    clicked = model.records[0].count[user] > 0
    assert not clicked.all()
    for records in model.records:
        records.positives = lambda who, _: (who[clicked], positive[clicked])  # type: ignore[method-assign]
        records.others = lambda who, _: negative[: len(who)]  # type: ignore[method-assign]
    mix = model.knowledge.mix()
    found = model.behaviour_loss(user, item, mix, draws())
    users, items = mix(model.behaviour(model.graphs)[0])

    def summed(who: Tensor, good: Tensor) -> Tensor:
        bad = negative[: len(who)]
        margin = (users[who] * items[good]).sum(1) - (users[who] * items[bad]).sum(1)
        return -margin.sigmoid().log().sum()

    terms = (summed(user[clicked], positive[clicked]) + summed(user, item)) / 2
    torch.testing.assert_close(found["bpr"], terms / 50)
    squares = sum(x.square().sum() for x in (users[user], items[item], items[negative]))
    torch.testing.assert_close(found["l2"], 0.01 * squares / 50)  # the last behaviour's alone


def test_a_tenth_of_the_batch_is_contrasted() -> None:
    model = build(beta=1.0, behaviour_batch=1)
    user, item = (column.repeat(3) for column in (model.target.user, model.target.item))
    assert len(user) // 10 > 2  # more than one group
    chosen = user[torch.randperm(len(user), generator=after_draws(model, user))[: len(user) // 10]]
    found = model.behaviour_loss(user, item, model.knowledge.mix(), draws())["contrast"]
    distinct, rank = torch.unique(chosen, return_inverse=True)
    sums = model.behaviour(model.graphs)[1]
    each = torch.cat([(u @ A).sigmoid() for u, A in zip(sums, model.behaviour.A, strict=True)], 2)
    views = (each @ model.behaviour.C_u)[:, distinct]
    expected = behaviour_contrast(views, rank, 2).mean(0).sum()
    torch.testing.assert_close(found, expected)


def after_draws(model: KMCLR, user: Tensor) -> torch.Generator:
    """The generator as it is when the contrast draws its users."""
    generator = draws()
    who, _ = model.records[0].positives(user, generator)
    model.records[0].others(who, generator)
    model.records[1].others(user, generator)
    return generator


# 2 Knowledge half ----------------------------------------------------------------------------------------


def test_an_item_without_a_triple_attends_to_the_padding_entity() -> None:
    model = build(world=catalogue(brand=[0, 0, 1] + [2] * (worlds.ITEMS - 2))).eval()
    knowledge = knowledge_of(model)
    copy, attention = knowledge.copies[0], knowledge.attention
    v = knowledge.item_vectors(0)
    for item, entity in ((1, 2), (2, 0)):  # the last row is the padding
        h = copy.entities[entity]
        torch.testing.assert_close(v[item], attention.out(h + copy.items[item]).relu())


def test_attention_reads_item_relation_and_entity_and_skips_padding() -> None:
    model = build(world=catalogue(brand=[0] + [1] * 25, seller=[0, 2] + [0] * 24)).eval()
    knowledge = knowledge_of(model)
    copy, attention = knowledge.copies[1], knowledge.attention
    logits = []
    for relation, entity in ((0, 0), (1, 2)):
        row = torch.cat([copy.items[1], copy.relations[relation], copy.entities[entity]])
        logits.append(functional.leaky_relu(attention.logit(row), 0.2))
    a = torch.cat(logits).softmax(0)
    h = a[0] * copy.entities[0] + a[1] * copy.entities[2]
    v = knowledge.item_vectors(1)
    torch.testing.assert_close(v[1], attention.out(h + copy.items[1]).relu())
    alone = attention.out(copy.entities[0] + copy.items[2]).relu()
    torch.testing.assert_close(v[2], alone)


def test_dropout_and_edge_dropout_are_training_alone() -> None:
    model = build().train()
    knowledge = knowledge_of(model)
    assert not torch.equal(knowledge().items, knowledge().items)
    kept = knowledge.edge_dropout(torch.ones(10000))
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / 0.7]), atol=1e-4, rtol=0)
    assert float((kept > 0).float().mean()) == pytest.approx(0.7, abs=0.03)
    model.eval()
    assert torch.equal(knowledge().items, knowledge().items)


def triples() -> Triples:
    return Triples(*(torch.tensor(x) for x in ([1, 2, 5], [0, 1, 0], [0, 4, 2], [1, 5, 3])))


@pytest.mark.parametrize("sign", TatecSign)
def test_tatec_rewards_false_triples_as_released_and_true_ones_corrected(sign: TatecSign) -> None:
    knowledge = knowledge_of(build(tatec_sign=sign))
    copy, M = knowledge.copies[1], knowledge.tatec.M
    terms, squares = [], []
    for h_id, r_id, *tails in zip(*(column.tolist() for column in triples()), strict=True):
        h, r = copy.items[h_id], copy.relations[r_id]
        true, false = (
            h @ M[r_id] @ t + h @ r + t @ r + h @ t for t in (copy.entities[i] for i in tails)
        )
        gap = false - true if sign is TatecSign.as_released else true - false
        terms.append(-functional.logsigmoid(gap))
        rows = [h, r, *(copy.entities[i] for i in tails)]
        squares.append(sum(row.square().sum() / 2 for row in rows))
    expected = torch.stack(terms).mean() + 1e-3 * (sum(squares) / 3 + M.square().sum().sqrt())
    torch.testing.assert_close(knowledge.tatec(copy, triples()), expected)


def test_transr_compares_squared_distances_and_punishes_transformed_vectors() -> None:
    knowledge = knowledge_of(build())
    copy, M = knowledge.copies[0], knowledge.transr.M
    terms, squares = [], []
    for h_id, r_id, *tails in zip(*(column.tolist() for column in triples()), strict=True):
        h, r = M[r_id] @ copy.items[h_id], copy.relations[r_id]
        true, false = (M[r_id] @ copy.entities[i] for i in tails)
        gap = (h + r - false).square().sum() - (h + r - true).square().sum()
        terms.append(-functional.logsigmoid(gap))
        squares.append(sum(row.square().sum() / 2 for row in (h, r, true, false)))
    expected = torch.stack(terms).mean() + 1e-3 * (sum(squares) / 3 + M.square().sum().sqrt())
    torch.testing.assert_close(knowledge.transr(copy, triples()), expected)


def test_each_triple_loss_trains_its_own_copy() -> None:
    model = build()
    knowledge = knowledge_of(model)
    losses = epoch_of(model)
    for copy in range(2):
        before = [
            [table.detach().clone() for table in one.parameters()] for one in knowledge.copies
        ]
        next(losses)
        after = [list(one.parameters()) for one in knowledge.copies]
        moved = [
            not all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
            for pair in zip(before, after, strict=True)
        ]
        assert moved == [copy == 0, copy == 1]


def test_a_head_gives_one_true_triple_an_epoch_and_its_false_tail_is_false() -> None:
    graph = knowledge_of(build()).graph
    for seed in range(5):
        found = graph.epoch(draws(seed))
        heads = (graph.entity != graph.entities).any(1).nonzero().squeeze(1)
        assert torch.equal(found.head.sort().values, heads)
        for head, relation, tail, false in zip(*(c.tolist() for c in found), strict=True):
            true = set(zip(graph.relation[head].tolist(), graph.entity[head].tolist(), strict=True))
            assert (relation, tail) in true
            assert (relation, false) not in true


def test_false_tails_may_be_of_another_relation() -> None:
    graph = knowledge_of(build()).graph
    found = graph.epoch(draws())
    of_brand = found.false_tail < 4
    assert (of_brand & (found.relation == 1)).any()


def test_no_tail_can_be_false_where_all_items_are_alike() -> None:
    graph = knowledge_of(build(world=catalogue(brand=[0] + [1] * 25))).graph
    found = graph.epoch(draws())
    assert torch.equal(found.tail, found.false_tail)


def test_knowledge_bpr_is_a_sum_and_its_penalty_a_mean_of_table_rows() -> None:
    knowledge = knowledge_of(build().eval())
    user, good, bad = (torch.tensor(x) for x in ([0, 3, 3, 6], [1, 2, 5, 9], [7, 8, 7, 1]))
    users, items = knowledge()
    summed, squares = knowledge.bpr(user, good, bad)
    margin = (users[user] * (items[bad] - items[good])).sum(1)
    torch.testing.assert_close(summed, functional.softplus(margin).sum())
    rows = [knowledge.users[user]]
    rows += [copy.items[i] for copy in knowledge.copies for i in (good, bad)]
    torch.testing.assert_close(squares, sum(row.square().sum() for row in rows) / 2 / 4)


def test_a_step_computes_the_vectors_of_favored_items_and_its_own_alone() -> None:
    """The rest is not in the graph: losses and gradients are those of all items' vectors."""
    found = []
    for everything in (False, True):
        model = build().eval()
        knowledge = knowledge_of(model)
        knowledge.draw_views(draws())
        assert len(knowledge.favored) < worlds.ITEMS
        if everything:
            knowledge.favored = torch.arange(worlds.ITEMS + 1)
        user, item = model.target.user, model.target.item
        total(knowledge.loss(model.target, user, item, draws())).backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in knowledge.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)


# 3 Views ---------------------------------------------------------------------------------------------------


def edge_world() -> tuple[Tensor, Tensor, Tensor, Bipartite]:
    torch.manual_seed(0)
    users = torch.randn(6, D, dtype=torch.float64)
    items = torch.randn(10, D, dtype=torch.float64)
    stability = torch.rand(10, dtype=torch.float64)
    user, item = torch.tensor([0, 0, 1, 2, 4, 5, 5]), torch.tensor([1, 9, 2, 9, 4, 6, 7])
    return users, items, stability, Bipartite(user, item, 6, 10)


@pytest.mark.parametrize("rescale", Rescale)
def test_keep_probabilities_equal_those_of_the_whole_matrix(rescale: Rescale) -> None:
    users, items, stability, edges = edge_world()
    dense = (users @ items[1:].T).softmax(1) * stability[1:]
    weight = dense[edges.user, edges.item - 1]
    over = weight if rescale is Rescale.edges else dense
    expected = 0.6 + 0.4 * (weight - over.min()) / (over.max() - over.min())
    found = keep_probabilities(users, items, stability, edges, rescale)
    torch.testing.assert_close(found, expected)


def test_keep_probabilities_follow_both_stability_and_score() -> None:
    users, items, stability, edges = edge_world()
    found = keep_probabilities(users, items, stability, edges, Rescale.full_block)
    less = keep_probabilities(
        users, items, stability * (torch.arange(10) != 9), edges, Rescale.full_block
    )
    assert (less[edges.item == 9] == 0.6).all()
    other = keep_probabilities(-users, items, stability, edges, Rescale.full_block)
    assert not torch.allclose(found, other)


def test_rows_are_rescaled_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, stability, edges = edge_world()
    monkeypatch.setattr("baselines.kmclr.USER_BLOCK", 3)
    found = keep_probabilities(users, items, stability, edges, Rescale.edges)
    for block in (found[:4], found[4:]):
        assert block.min() == pytest.approx(0.6)
        assert block.max() == pytest.approx(1.0)


def test_a_lone_edge_is_kept() -> None:
    users, items, stability, _ = edge_world()
    edges = Bipartite(torch.tensor([3]), torch.tensor([2]), 6, 10)
    assert keep_probabilities(users, items, stability, edges, Rescale.edges).tolist() == [1.0]


def test_half_of_the_pairs_are_dropped_to_the_padding() -> None:
    graph = knowledge_of(build()).graph
    real = graph.entity != graph.entities
    versions = torch.stack([graph.thinned(draws(seed)) for seed in range(200)])
    dropped = (versions == graph.entities)[:, real].double().mean()
    assert float(dropped) == pytest.approx(0.5, abs=0.03)
    assert ((versions == graph.entity) | (versions == graph.entities)).all()


def test_views_are_thinned_graphs_normalised_anew() -> None:
    model = build().train()
    knowledge = knowledge_of(model)
    knowledge.draw_views(draws())
    for view in knowledge.views:
        kept = view.values > 0
        assert 0.6 < kept.double().mean() < 1
        edges = view.edges
        degrees = [
            torch.bincount(ends[kept], minlength=rows)[ends].double()
            for ends, rows in ((edges.user, edges.users), (edges.item, edges.item_rows))
        ]
        expected = (degrees[0] * degrees[1]).rsqrt()[kept]
        torch.testing.assert_close(view.values[kept].double(), expected, rtol=1e-6, atol=0)


def test_the_view_contrast_leaves_the_own_pair_out_of_the_sum() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, D, dtype=torch.float64)
    cosine = torch.cosine_similarity(first.unsqueeze(1), second.unsqueeze(0), dim=2)
    e = (cosine / 0.2).exp()
    expected = -(e.diagonal() / (e.sum(1) - e.diagonal())).log().sum()
    torch.testing.assert_close(view_contrast(first, second, 0.2), expected)
    assert float(view_contrast(first[:1], second[:1], 0.2)) == 0


# Where the triples come from -------------------------------------------------------------------------------


def test_attributes_make_one_triple_a_known_field() -> None:
    world = catalogue(brand=[0, 1, 0, 3] + [0] * 22, seller=[0, 0, 2] + [0] * 23)
    graph = knowledge_of(build(world=world)).graph
    assert (graph.relations, graph.entities) == (2, 5)
    assert graph.entity[:5].tolist() == [[5], [0], [4], [2], [5]]
    assert graph.relation[:5].tolist() == [[2], [0], [1], [0], [2]]


def test_no_more_than_ten_pairs_of_an_item_are_read() -> None:
    fields = {f"field{n:02}": [0] + [1] * worlds.ITEMS for n in range(PAIRS + 3)}
    graph = knowledge_of(build(world=catalogue(**fields))).graph
    assert graph.entity[1].tolist() == list(range(PAIRS))


@pytest.mark.parametrize("kg", [KG.attributes, KG.modality])
def test_modality_stands_in_where_no_field_is_known(kg: KG) -> None:
    model = build(world=replace(worlds.catalogue(), fields={}), kg=kg)
    graph, world = knowledge_of(model).graph, worlds.catalogue()
    assert isinstance(graph.source, Clusters)
    k = round(math.sqrt(worlds.ITEMS))
    assert (graph.relations, graph.entities) == (2, 2 * k)
    for item in range(1, worlds.ITEMS + 1):
        real = graph.entity[item] != graph.entities
        entities, relations = graph.entity[item][real], graph.relation[item][real]
        assert torch.equal(entities // k, relations)
        assert (relations == 0).sum() == 2 * world.image_present[item]
        assert (relations == 1).sum() == 2 * world.text_present[item]
        assert len(entities.unique()) == len(entities)


def test_attributes_are_the_default_where_there_are_any() -> None:
    assert isinstance(knowledge_of(build()).graph.source, Attributes)
    assert isinstance(knowledge_of(build(kg=KG.modality)).graph.source, Clusters)


def test_clusters_are_those_of_training_items_and_always_the_same() -> None:
    train = worlds.records()
    graphs = []
    for seed in range(2):
        torch.manual_seed(seed)
        graph = KnowledgeGraph(Clusters(worlds.catalogue()), worlds.ITEMS + 1)
        graph.prepare(train)
        graphs.append(graph.entity)
    assert torch.equal(*graphs)
    untouched = worlds.catalogue().image.clone()
    absent = sorted(set(range(1, worlds.ITEMS + 1)) - set(train.item.tolist()))
    untouched[absent] += 100
    moved = KnowledgeGraph(Clusters(replace(worlds.catalogue(), image=untouched)), worlds.ITEMS + 1)
    moved.prepare(train)
    trained = train.item.unique()
    assert torch.equal(moved.entity[trained], graphs[0][trained])


def test_k_means_finds_planted_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    points = (centres.unsqueeze(1) + torch.randn(3, 30, 2)).flatten(0, 1)
    found = k_means(points, 3, draws(1))
    distance = torch.cdist(centres, found).amin(1)
    assert (distance < 1).all()
    assert len(k_means(points[:2], 3, draws())) == 2


def test_clustering_holds_no_second_table_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(40, 6, generator=draws())
    whole = k_means(points, 5, draws(1))
    monkeypatch.setattr("baselines.kmclr.POINT_NUMBERS", 18)
    sizes, square = [], Tensor.square
    monkeypatch.setattr(Tensor, "square", lambda x: (sizes.append(len(x)), square(x))[1])
    squared_distance(points, points[3])
    assert max(sizes) == 3  # rows at once
    monkeypatch.undo()
    monkeypatch.setattr("baselines.kmclr.POINT_NUMBERS", 18)
    assert torch.equal(k_means(points, 5, draws(1)), whole)


def test_clusters_are_fitted_to_some_vectors_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = worlds.records()
    everything = KnowledgeGraph(Clusters(worlds.catalogue()), worlds.ITEMS + 1)
    everything.prepare(train)
    fitted = []

    def watched(points: Tensor, *more: object) -> Tensor:
        fitted.append(len(points))
        return k_means(points, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("baselines.kmclr.k_means", watched)
    monkeypatch.setattr("baselines.kmclr.FIT_POINTS", 7)
    some = KnowledgeGraph(Clusters(worlds.catalogue()), worlds.ITEMS + 1)
    some.prepare(train)
    assert fitted == [7, 7]
    assert some.entity.shape == everything.entity.shape  # every item has its clusters all the same


def test_without_vectors_there_is_no_triple_and_it_still_trains() -> None:
    nothing = torch.zeros(worlds.ITEMS + 1, dtype=torch.bool)
    world = replace(worlds.catalogue(), fields={}, image_present=nothing, text_present=nothing)
    names = [next(iter(losses)) for losses in epoch_of(build(world=world))]
    assert names == ["knowledge_bpr", "bpr"]


def test_without_knowledge_behaviour_vectors_stand_alone() -> None:
    model = build(kg=KG.none).eval()
    assert isinstance(model.knowledge, NoKnowledge)
    assert not list(model.knowledge.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.vectors(), model.behaviour(model.graphs)[0])
    assert [next(iter(losses)) for losses in epoch_of(model)] == ["bpr"]


# Settings and strength ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kg", KG)
@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("rescale", Rescale)
def test_every_option_trains(kg: KG, norm: Norm, rescale: Rescale) -> None:
    model = build(kg=kg, graph_norm=norm, rescale=rescale, layers=1, kg_layers=1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(torch.isfinite(total(losses)) for losses in epoch_of(model))
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 0},
        {"behaviour_batch": 0},
        {"knowledge_batch": 0},
        {"triple_batch": 0},
        {"ssl_group": 0},
        {"kg_layers": -1},
        {"peak": 0.5},
        {"contrast_tau": 0.0},
        {"dropout": 1.0},
        {"edge_dropout": -0.1},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        build(**options)


def test_it_learns_from_clicks_what_will_be_favored() -> None:
    """The cascade world: beyond popularity, and beyond the same method without the clicks."""

    def trained(world: planted.World, seed: int) -> float:
        config = KMCLRConfig(
            hidden=16, layers=2, learning_rate=3e-3, behaviour_batch=32, knowledge_batch=128,
            ssl_group=3,
        )  # fmt: skip
        net = planted.trained(
            lambda catalogue: KMCLR(config, catalogue), world, seed, epochs=12, batch_size=4096
        )
        return planted.ndcg_at_10(net, world)

    some = [planted.cascade(seed) for seed in planted.SEEDS]
    ours = np.mean([trained(world, seed) for seed, world in enumerate(some)])
    blind = [trained(planted.without_clicks(world), seed) for seed, world in enumerate(some)]
    assert ours > np.mean([planted.most_popular(world) for world in some]) + 0.3
    assert ours > np.mean(blind) + 0.2
