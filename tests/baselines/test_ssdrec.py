"""SSDRec: facts of the authors' code that surprise, options, schedules, and its strength."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.ssdrec import (
    Augmented,
    Backbone,
    Candidates,
    EvalNoise,
    FilterRule,
    HierarchicalDenoising,
    NoAugmentation,
    Part,
    PositionMask,
    SSDRec,
    SSDRecConfig,
    annealed,
    consistencies,
    drop_share,
    filter_losses,
    insert_items,
    insert_vectors,
    right_padded,
)
from models.gumbel import Choice, Gumbel, LargeChoice, SampledChoice
from models.interface import Batch, History, Samples
from models.layers import Behaviors
from tests import planted, worlds
from tests.worlds import ITEMS, LENGTH, USERS

D = 16


def build(seed: int = 0, **options: object) -> SSDRec:
    """A narrow model in float64, without dropout, in evaluation mode."""
    torch.manual_seed(seed)
    dropouts = dict.fromkeys(
        ("dropout", "dropout_graph", "dropout_readout", "dropout_backbone"), 0.0
    )
    config = SSDRecConfig(**{"hidden": D, **dropouts, **options})
    model = SSDRec(config, worlds.catalogue()).double()
    model.prepare(worlds.records())
    return model.eval()


def batch(seed: int = 0) -> Batch:
    return replace(
        worlds.batches(worlds.records(), Samples.prefix)[0],
        generator=torch.Generator().manual_seed(seed),
    )


def terms(model: SSDRec, given: Batch | None = None) -> dict[str, float]:
    found = model.loss(batch() if given is None else given)
    return {name: float(term.detach()) for name, term in found.items()}


class Scripted:
    """Noise that decides every draw: the wanted option of a part gets 1e6."""

    def __init__(self, **wanted: Tensor) -> None:
        self.wanted = wanted

    def __call__(self, part: Part, scores: Tensor, first: int = 0) -> Tensor:
        wanted = self.wanted[part.name].unsqueeze(-1)
        return torch.zeros_like(scores).scatter_(-1, wanted, 1e6)


def script(rows: int, p: int, q: int, forward: int = 21, backward: int = 22) -> Scripted:
    ones = torch.ones(rows, dtype=torch.int64)
    return Scripted(
        position=p * ones, item_forward=forward * ones, item_backward=backward * ones,
        second_check=q * ones,
    )  # fmt: skip


def sequence(*items: int) -> tuple[Tensor, Tensor]:
    """A right-padded row, and its number of events."""
    row = torch.tensor([[*items, *[0] * (LENGTH - len(items))]])
    return row, (row > 0).sum(1)


def augment(model: SSDRec, noise: Scripted, *items: int) -> tuple[Augmented, Tensor, Tensor]:
    """S2 and S3a of one sequence; and s, I~."""
    row, count = sequence(*items)
    torch.manual_seed(5)
    s, table = torch.randn(1, LENGTH, D).double(), torch.randn(ITEMS + 1, D).double()
    return model.augmentation(row, count, s, table, noise, 0.5), s, table


# S1 ---------------------------------------------------------------------------------------------


def test_relations_agree_with_the_equations_written_out() -> None:
    model = build()
    one, E, P = model.relations, model.E, model.P

    def item_gnn(into: Tensor, out: Tensor) -> Tensor:
        x = torch.nn.functional.leaky_relu((E * into) @ one.W1, 0.2).sum(1) / math.sqrt(D)
        y = torch.nn.functional.leaky_relu((E * out) @ one.W2, 0.2).sum(1) / math.sqrt(D)
        w = torch.stack([x, y], 1).softmax(1)
        near = w[:, :1] * into + w[:, 1:] * out
        return one.k[0] * E + one.k[1] * near + one.k2  # the item itself first

    def user_gnn(near: Tensor) -> Tensor:
        return one.q[0] * near + one.q[1] * P + one.q2  # the neighbours first

    negative = one.item_incompatible(E)
    items = [item_gnn(one.item_in(E), one.item_out(E)), item_gnn(negative, negative)]
    users = [user_gnn(one.user_similar(P)), user_gnn(one.user_dissimilar(P))]
    i = torch.stack([torch.cat([one.item_user(P), part], 1) @ one.W_ii for part in items]).mean(0)
    u = torch.stack([torch.cat([one.user_item(E), part], 1) @ one.W_uu for part in users]).mean(0)
    found = one(E, P)
    torch.testing.assert_close(found[0], (u @ one.u_w).sigmoid() @ one.u_cat)
    torch.testing.assert_close(found[1], (i @ one.i_w).sigmoid() @ one.i_cat)


def test_an_encoders_kernel_is_three_scalars_for_all_items_and_dimensions() -> None:
    one = build().relations
    assert [tuple(x.shape) for x in (one.k, one.k2, one.q, one.q2)] == [(2,), (), (2,), ()]


def test_relations_come_from_training_events_of_the_last_slots() -> None:
    model = build(length=4)
    touched = model.relations.user_item(torch.eye(ITEMS + 1).double())
    train = worlds.records()
    for user in range(USERS):
        events = train.item[train.offsets[user] : train.offsets[user + 1]][-4:]
        assert touched[user].tolist() == torch.bincount(events, minlength=ITEMS + 1).tolist()


def test_padding_is_no_item_of_a_user_unless_asked_for() -> None:
    eye = torch.eye(ITEMS + 1).double()
    assert not build().relations.user_item(eye)[:, 0].any()
    counted = build(count_padding=True).relations.user_item(eye)
    assert counted[1, 0] == LENGTH - 1  # user 1 has one event


def test_edges_are_reported_and_an_empty_relation_of_items_is_refused() -> None:
    model = build()
    assert set(model.edges) == {
        "user_item", "item_in", "item_out", "item_incompatible", "user_similar", "user_dissimilar",
    }  # fmt: skip
    assert build(min_count=0).edges["item_in"] > model.edges["item_in"] > 0
    with pytest.raises(ValueError, match="min_count=50"):
        build(min_count=50)


def test_edges_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        edges = build().edges
    counts = ", ".join(f"{count} {name}" for name, count in edges.items())
    assert f"{ITEMS + 1} item rows, {USERS} users; edges: {counts}" in caplog.text


def test_the_limits_of_a_row_and_of_an_items_users_reach_the_relations() -> None:
    free, one = (build(min_count=0, **limit) for limit in ({}, {"neighbours": 1}))
    for name in ("item_in", "item_out"):
        weights = getattr(one.relations, name)(torch.eye(ITEMS + 1).double())
        rows = (weights > 0).sum(1)
        assert set(rows.tolist()) == {0, 1}
        assert one.edges[name] == int(rows.sum()) < free.edges[name]
    assert one.edges["user_similar"] < free.edges["user_similar"]
    train = worlds.records()
    pairs = torch.unique(torch.stack([train.user, train.item]), dim=1)
    most = int(torch.bincount(pairs[1]).max())
    assert build(min_count=0, most_users=most).edges == free.edges
    assert build(min_count=0, most_users=1).edges["user_similar"] == USERS  # each alone


def test_the_last_two_matrices_of_the_encoder_are_initialised() -> None:
    one = build().relations
    limit = math.sqrt(6 / (2 * D))
    for matrix in (one.u_cat, one.i_cat, one.W1):
        assert 0.9 * limit < float(matrix.detach().abs().max()) <= limit


# S2 and S3a -------------------------------------------------------------------------------------


def test_consistencies_agree_with_sums_over_pairs() -> None:
    torch.manual_seed(0)
    s, f, g = (2 * torch.randn(2, 5, 3).double() for _ in range(3))
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).double()
    sequence_, item = consistencies(s, f, g, real)
    clipped = s.clamp(-1, 1)
    for row in range(2):
        n = int(real[row].sum())
        alike = [
            sum(float(clipped[row, t] @ clipped[row, j]) for j in range(n) if j != t)
            for t in range(n)
        ]
        expected = torch.tensor(alike).double().softmax(0)
        torch.testing.assert_close(item[row, :n], expected)
        expected = (s * f * g).sum(2)[row, :n].softmax(0)
        torch.testing.assert_close(sequence_[row, :n], expected)
        assert not item[row, n:].any()
        assert not sequence_[row, n:].any()


def test_two_items_are_inserted_around_the_position() -> None:
    model = build(position_mask=PositionMask.code)
    found, s, table = augment(model, script(1, p=1, q=6), 3, 4, 5)
    assert found.items.tolist() == [[3, 21, 4, 22, 5, 0, 0, 0]]
    assert found.count.tolist() == [5]
    expected = torch.cat(
        [s[:, :1], table[21:22, None][:1], s[:, 1:2], table[22:23, None], s[:, 2:6]], 1
    )
    torch.testing.assert_close(found.vectors, expected)  # an inserted slot is I~ alone


def test_the_last_two_slots_fall_off() -> None:
    items = torch.arange(1, 9).unsqueeze(0)
    at = [insert_items(items, torch.tensor([p]), *torch.tensor([[91], [92]])) for p in (0, 5)]
    assert at[0].tolist() == [[91, 1, 92, 2, 3, 4, 5, 6]]
    assert at[1].tolist() == [[1, 2, 3, 4, 5, 91, 6, 92]]


def test_without_room_nothing_is_inserted_but_the_check_still_deletes() -> None:
    for n in (LENGTH - 2, LENGTH - 1, LENGTH):
        items = list(range(1, n + 1))
        found, s, _ = augment(build(), script(1, p=2, q=4), *items)
        inserted = n <= LENGTH - 2
        assert int(found.count) == n + 2 * inserted - 1
        assert int(found.items[0, 4]) == 0
        assert torch.equal(found.vectors, s) != inserted


def test_the_second_check_deletes_only_at_the_position_and_the_two_after_it() -> None:
    model = build(position_mask=PositionMask.code)
    for q in range(LENGTH):
        found, _, _ = augment(model, script(1, p=1, q=q), 3, 4, 5)
        whole = [3, 21, 4, 22, 5, 0, 0, 0]
        expected = [0 if slot == q and q in (1, 2, 3) else item for slot, item in enumerate(whole)]
        assert found.items.tolist() == [expected]
        assert int(found.count) == 5 - (q in (1, 2, 3))
    found, _, _ = augment(model, script(1, p=7, q=0), *range(1, 9))
    assert found.items.tolist() == [[0, *range(2, 9)]]  # slot 0 is 7 + 1 modulo 8


def test_a_padding_slot_as_position_changes_nothing() -> None:
    found, s, _ = augment(build(position_mask=PositionMask.code), script(1, p=5, q=5), 3, 4, 5)
    assert found.items.tolist() == [[3, 4, 5, 0, 0, 0, 0, 0]]
    assert int(found.count) == 3
    assert torch.equal(found.vectors, s)


def test_the_codes_position_mask_hardly_augments_short_sequences() -> None:
    items = torch.zeros(2000, LENGTH, dtype=torch.int64)
    items[:, :2] = torch.tensor([3, 5])
    user = torch.zeros(2000, dtype=torch.int64)
    for option, low, high in ((PositionMask.valid, 1, 1), (PositionMask.code, 0.1, 0.3)):
        model = build(position_mask=option)
        noise = Gumbel(torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = model.augmented(items, user, noise)
        share = float((found.position.argmax(1) < 2).double().mean())
        assert low <= share <= high  # code: about n / L = 1/4


def test_an_empty_history_is_left_alone() -> None:
    model = build()
    nothing = torch.zeros(3, LENGTH, dtype=torch.int64)
    found = model.augmented(nothing, torch.arange(3), Gumbel(torch.Generator()))
    assert not found.items.any()
    assert found.count.tolist() == [0, 0, 0]


def test_the_position_is_trained_through_the_vectors() -> None:
    torch.manual_seed(0)
    position = torch.zeros(1, LENGTH).double()
    position[0, 2] = 1
    position.requires_grad_()
    s = torch.randn(1, LENGTH, D).double()
    insert_vectors(s, position, s[:, 0], s[:, 1]).sum().backward()
    assert (position.grad != 0).all()


def test_without_augmentation_the_raw_sequence_goes_on() -> None:
    model = build(augment=False)
    assert isinstance(model.augmentation, NoAugmentation)
    items, _ = sequence(3, 4, 5)
    found = model.augmented(items, torch.tensor([2]), Gumbel(torch.Generator()))
    assert torch.equal(found.items, items)
    users, table = model.relations(model.E, model.P)
    # I~ + U~ / n, at padding slots too
    torch.testing.assert_close(found.vectors[0, 0], table[3] + users[2] / 3)
    torch.testing.assert_close(found.vectors[0, 7], table[0] + users[2] / 3)


# S3b --------------------------------------------------------------------------------------------


def denoise(model: SSDRec, items: Tensor, item: Tensor, level: Tensor, real: Tensor) -> object:
    """HSD with these draws of the two levels."""
    part: HierarchicalDenoising = model.denoising
    x0 = model.look_up(items)
    noise = Scripted(item_level=item, sequence_level=level)
    return part(items, x0, x0, x0[:, 0], real, (items > 0).sum(1), noise, 0.5)


def test_a_slot_goes_when_both_levels_say_so() -> None:
    model = build()
    items, _ = sequence(3, 4, 5, 6)
    first = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    second = torch.tensor([[0, 1, 0, 1, 1, 1, 1, 1]])
    found = denoise(model, items, first, second, items > 0)
    assert found.items.tolist() == [[3, 4, 5, 0, 0, 0, 0, 0]]
    assert found.kept.tolist() == [3]
    torch.testing.assert_close(found.vectors[0, :3], model.E[3:6])
    assert not found.vectors[0, 3:].any()


def test_the_raw_sequences_mask_cuts_what_an_insertion_pushed_behind_it() -> None:
    items, _ = sequence(3, 21, 4, 22, 5)
    raw = torch.arange(LENGTH).unsqueeze(0) < 3
    nothing = torch.zeros(1, LENGTH, dtype=torch.int64)
    found = denoise(build(), items, nothing, nothing, raw)
    assert found.items.tolist() == [[3, 21, 4, 0, 0, 0, 0, 0]]


def test_an_id_deleted_by_the_second_check_is_squeezed_out_but_counted() -> None:
    items = torch.tensor([[3, 0, 4, 5, 0, 0, 0, 0]])
    nothing = torch.zeros(1, LENGTH, dtype=torch.int64)
    found = denoise(build(), items, nothing, nothing, torch.arange(LENGTH).unsqueeze(0) < 4)
    assert found.items.tolist() == [[3, 4, 5, 0, 0, 0, 0, 0]]
    assert found.kept.tolist() == [4]


def test_the_next_item_trains_both_levels_through_what_is_kept() -> None:
    model = build()
    model.loss(batch())["next_item"].backward()
    item, sequence_ = model.denoising.item_level, model.denoising.sequence_level
    for layer in (item.W_u, item.W_v, item.W_e, sequence_.out, sequence_.mix):
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_the_item_level_normalises_each_slot_over_batch_and_width() -> None:
    norm = build().denoising.item_level.norm.train()
    x = torch.randn(6, LENGTH, D).double() + torch.arange(LENGTH).view(1, -1, 1)
    assert norm.num_features == LENGTH
    assert norm(x).mean((0, 2)).abs().max() < 1e-6


def test_the_sequence_level_mixes_slots() -> None:
    model = build()
    level = model.denoising.sequence_level
    x0 = torch.randn(1, LENGTH, D, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, LENGTH, 1).double()
    _, score = level(x0, ones)
    score[0, 0].sum().backward()
    assert (x0.grad.abs().sum(2) > 0).all()
    assert tuple(level.mix.weight.shape) == (LENGTH, 2 * LENGTH)


def test_training_judges_an_item_beside_the_target_and_a_test_beside_the_user() -> None:
    model = build()
    contexts = []
    model.denoising.item_level.W_v.register_forward_hook(
        lambda _, inputs, __: contexts.append(inputs[0].detach())
    )
    given = batch()
    model.loss(given)
    model.encode(given.history)
    torch.testing.assert_close(contexts[0], model.E[given.target].detach())
    torch.testing.assert_close(contexts[1], model.P[given.history.user].detach())


def test_reconstruction_is_squared_over_slots_and_width_and_divided_by_the_length() -> None:
    model = build()
    items, _ = sequence(3, 4, 5)
    nothing = torch.zeros(1, LENGTH, dtype=torch.int64)
    found = denoise(model, items, nothing, nothing, items > 0)
    M = (items > 0).double().unsqueeze(2)
    level = model.denoising.sequence_level
    x0 = model.look_up(items)
    enc = level.lstm(x0 * M)[0].unflatten(2, (2, D)).sum(2)
    dec = level.lstm(enc * M)[0].unflatten(2, (2, D)).sum(2)
    torch.testing.assert_close(found.reconstruction, ((dec - x0)[0, :3] ** 2).sum().view(1) / 3)


def test_long_term_vectors_are_computed_nowhere() -> None:
    model = build()
    model.denoising.item_level.long_term.register_forward_hook(
        lambda *_: pytest.fail("the long-term vector was computed")
    )
    terms(model)
    assert model.encode(worlds.case_history()).shape == (len(worlds.CASES), D)


# S3c --------------------------------------------------------------------------------------------


def test_a_sequence_of_which_nothing_is_left_reads_slot_0_over_all_slots() -> None:
    backbone: Backbone = build(layers=1).backbone
    items, vectors = torch.zeros(1, LENGTH).long(), torch.zeros(1, LENGTH, D).double()
    layer, x = backbone.layers[0], backbone.norm(backbone.position).unsqueeze(0)
    q, k, v = (
        part(x).unflatten(2, (2, -1)).transpose(1, 2)
        for part in (layer.query, layer.key, layer.value)
    )
    logits = (q @ k.mT / math.sqrt(D // 2)).float() - 10000
    gathered = (logits.softmax(-1).double() @ v).transpose(1, 2).flatten(2)
    a = layer.attention_norm(x + layer.dense(gathered))
    y = layer.feed_forward_norm(a + layer.outer(torch.nn.functional.gelu(layer.inner(a))))
    torch.testing.assert_close(backbone(items, vectors), y[:, 0])


def test_slots_that_no_row_uses_make_no_difference() -> None:
    model = build()
    items = torch.tensor([[3, 4, 5, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0, 0]])
    vectors = model.look_up(items) * (items > 0).unsqueeze(2)
    empty = torch.zeros(1, LENGTH, dtype=torch.int64)
    short = model.backbone(items, vectors)
    whole = model.backbone(
        torch.cat([items, empty]), torch.cat([vectors, torch.zeros_like(vectors[:1])])
    )
    torch.testing.assert_close(short, whole[:2])


def test_the_state_is_read_causally_at_the_last_kept_slot() -> None:
    model = build()
    items, _ = sequence(3, 4, 5)
    vectors = model.look_up(items)
    short = torch.where(torch.arange(LENGTH) < 2, items, 0)
    x = model.backbone.norm(vectors + model.backbone.position)
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for layer in model.backbone.layers:
        x = layer(x, x, later | (items == 0).unsqueeze(1))
    torch.testing.assert_close(model.backbone(items, vectors), x[:, 2])
    torch.testing.assert_close(model.backbone(short, vectors), x[:, 1])


# Losses -----------------------------------------------------------------------------------------


def test_the_loss_is_three_terms_and_the_softmax_has_the_padding_row() -> None:
    model = build(augment=False, denoise=False)
    model.drop.fill_(0.0)
    given = batch()
    items = right_padded(given.history, LENGTH)
    state = model.backbone(items, model.look_up(items) * (items > 0).unsqueeze(2))
    expected = torch.nn.functional.cross_entropy(state @ model.E.T, given.target)
    found = model.loss(given)
    assert list(found) == ["next_item", "reconstruction", "filter"]
    torch.testing.assert_close(found["next_item"], expected)


def test_the_curriculum_keeps_the_sequences_that_are_reconstructed_best() -> None:
    model = build(augment=False, denoise=False)
    given = batch()
    model.drop.fill_(0.5)
    items = right_padded(given.history, LENGTH)
    nothing = torch.zeros_like(items)
    costs = denoise(model, items, nothing, nothing, items > 0).reconstruction
    easy = costs.argsort()[: len(items) // 2]
    state = model.backbone(items, model.look_up(items) * (items > 0).unsqueeze(2))
    expected = torch.nn.functional.cross_entropy(state[easy] @ model.E.T, given.target[easy])
    found = model.loss(given)
    torch.testing.assert_close(found["next_item"], expected)
    torch.testing.assert_close(found["reconstruction"], costs[easy].mean())


def test_the_curriculum_lets_go_over_ten_epochs() -> None:
    shares = [drop_share(epoch) for epoch in range(12)]
    torch.testing.assert_close(torch.tensor(shares[:10]), torch.linspace(0.2, 0, 10))
    assert shares[9:] == [0.0, 0.0, 0.0]
    model = build()
    model.begin_epoch(3, torch.Generator())
    model.begin_epoch(5, torch.Generator())  # the stage began with the first epoch it saw
    assert float(model.drop) == pytest.approx(shares[2])


def test_one_sequence_is_always_kept() -> None:
    given = batch()
    one = replace(
        given,
        history=History(
            given.history.user[:1], given.history.items[:1], given.history.behaviours[:1]
        ),
        targets=given.targets[:1], clicks=given.clicks[:1], favors=given.favors[:1],
    )  # fmt: skip
    assert all(math.isfinite(term) for term in terms(build(), one).values())


def test_the_filter_loss_drops_the_highest_slots() -> None:
    ahead = torch.tensor([[3.0, -2.0, 1.0, 0.0, 5.0], [1.0, -1.0, 0.0, 0.0, 0.0]]).double()
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    count = real.sum(1)
    every = -(1e-10 + ahead.sigmoid()).log() * real
    found = {
        rule: filter_losses(ahead, real, count, 0.2, build(filter_rule=rule).lost)
        for rule in FilterRule
    }
    expected = every.clone()
    expected[0, 1] = 0  # floor(0.2 * 5) = 1: the highest
    torch.testing.assert_close(found[FilterRule.fixed], expected)
    expected[1] = 0  # floor(0.2 * 2) = 0: the authors' code loses the row
    torch.testing.assert_close(found[FilterRule.code], expected)
    for rule in FilterRule:  # not while the rate is exactly 0
        none = filter_losses(ahead, real, count, 0.0, build(filter_rule=rule).lost)
        torch.testing.assert_close(none, every)


def test_the_filter_loss_compares_each_slot_with_one_negative_of_the_user() -> None:
    model = build()
    items, user = torch.tensor([[3, 0, 4]]), torch.tensor([2])
    expected = (model.E[[3, 0, 4]] - model.E[7]) @ model.P[2]
    torch.testing.assert_close(model.ahead(items, torch.tensor([[7]]), user)[0], expected)


def test_a_sequences_negative_is_its_own_users() -> None:
    model, given = build(), batch()
    users = given.history.user.flip(0)

    class Given(nn.Module):
        def forward(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
            assert user.tolist() == users.tolist()
            return torch.full((len(user), count), 7)

    model.negatives = Given()
    assert users.tolist() != given.history.user.tolist()
    turned = replace(given, history=replace(given.history, user=users))
    assert terms(model, turned)["filter"] > 0  # nothing was drawn for anybody else


def test_padding_is_trained_by_scores_and_relations_but_not_by_look_ups() -> None:
    model = build()
    model.look_up(torch.tensor([0, 3])).sum().backward()
    assert not model.E.grad[0].any()
    assert model.E.grad[3].all()
    model.zero_grad()
    model.loss(batch())["next_item"].backward()
    assert model.E.grad[0].any()


# Schedules, initialisation, size ----------------------------------------------------------------


def test_the_temperature_compounds_every_40_batches_to_its_floor_after_720() -> None:
    model = build()
    optimiser = model.optimiser()
    seen = []
    for _ in range(800):
        seen.append(float(model.tau))  # of the batch of this number, from 1
        model.before_step(optimiser)
    assert set(seen[:39]) == {0.5}
    assert seen[39] == pytest.approx(0.5 * math.exp(-0.04))
    assert seen[79] == pytest.approx(0.5 * math.exp(-0.04 - 0.08))
    assert seen[718] > 1e-3
    assert seen[719] == 1e-3
    assert annealed(0.5, 41) == 0.5


def test_the_temperature_changes_no_value_of_the_loss() -> None:
    model = build()
    before = terms(model)
    model.tau.fill_(0.01)
    assert terms(model) == before


def test_gradients_are_clipped_to_norm_5() -> None:
    model = build()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    model.before_step(model.optimiser())
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert float(norm) == pytest.approx(5, rel=1e-4)


def test_tables_and_layers_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = SSDRec(SSDRecConfig(hidden=64), worlds.catalogue(users=500, items=500, length=50))
    assert float(model.E.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.E[0].detach().std()) > 0.01  # the padding row too
    assert float(model.P.detach().std()) == pytest.approx(math.sqrt(2 / 564), rel=0.05)
    item, lstm = model.denoising.item_level, model.augmentation.lstm
    assert float(item.W_u.weight.detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    xavier, torchs = math.sqrt(6 / (64 + 256)), 1 / math.sqrt(64)
    assert float(lstm.weight_hh_l0.detach().abs().max()) == pytest.approx(xavier, rel=0.01)
    assert float(lstm.weight_hh_l0_reverse.detach().abs().max()) == pytest.approx(torchs, rel=0.01)
    assert float(model.augmentation.ends.detach().std()) == pytest.approx(1, rel=0.2)
    assert float(model.backbone.position.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_defaults_are_those_of_the_authors_run() -> None:
    config = SSDRecConfig()
    assert (config.dropout, config.dropout_graph) == (0.3, 0.3)
    assert (config.dropout_readout, config.dropout_backbone) == (0.2, 0.5)
    assert (config.tau, config.layers, config.heads, config.length) == (0.5, 2, 2, 50)
    assert (config.learning_rate, config.weight_decay) == (1e-3, 0.0)
    firsts = (PositionMask.valid, FilterRule.fixed, EvalNoise.off, Behaviors.merged, Candidates.all)
    chosen = (
        config.position_mask, config.filter_rule, config.eval_noise, config.behaviors,
        config.candidates,
    )  # fmt: skip
    assert chosen == firsts == tuple(next(iter(type(option))) for option in firsts)


@pytest.mark.parametrize(("d", "layers", "length"), [(16, 2, 8), (8, 1, 5)])
def test_the_number_of_parameters_follows_the_formula(d: int, layers: int, length: int) -> None:
    model = build(hidden=d, layers=layers, length=length)
    tables = (ITEMS + 1 + USERS) * d
    graph, augmentation = 10 * d**2 + 6, 16 * d**2 + 2 * d
    sequence_level = 16 * d**2 + 16 * d + 2 * length**2 + length + 2 * d
    item_level = 4 * d**2 + 5 * d + 2 * length
    backbone = length * d + 2 * d + layers * (6 * d**2 + 10 * d)
    expected = tables + graph + augmentation + sequence_level + item_level + backbone
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# Options ----------------------------------------------------------------------------------------


def test_a_test_draws_nothing_by_default_and_always_the_same_under_code() -> None:
    history = worlds.case_history()
    off, code = build(), build(eval_noise=EvalNoise.code)
    assert torch.equal(code.encode(history), code.encode(history))
    assert not torch.equal(code.encode(history), off.encode(history))
    parts = [
        code.encode(worlds.history([events], user=[u]))
        for u, events in enumerate(worlds.CASES.values())
    ]
    torch.testing.assert_close(torch.cat(parts), code.encode(history))  # a user's own draw
    assert "test_noise.draws" not in code.state_dict()


def test_relations_are_computed_once_an_evaluation() -> None:
    model, calls = build(), []
    model.relations.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for _ in range(3):
            model.encode(worlds.case_history())
        assert len(calls) == 1
        model.prepare(worlds.records())
        model.encode(worlds.case_history())
    assert len(calls) == 2


def test_a_test_reads_item_vectors_without_the_users_share() -> None:
    model = build()
    seen = []
    model.denoising.item_level.norm.register_forward_hook(lambda _, x, __: seen.append(x[0]))
    items, _ = sequence(3, 4)
    model.encode(worlds.history([worlds.clicks([3, 4])]))
    _, table = model.relations(model.E, model.P)
    torch.testing.assert_close(seen[0], table[items])


def test_the_catalogues_size_and_the_option_choose_the_item_draw() -> None:
    assert type(build().augmentation.choice) is Choice
    assert isinstance(build(candidate_items=10).augmentation.choice, LargeChoice)
    sampled = build(candidates=Candidates.sampled, candidate_items=10)
    assert isinstance(sampled.augmentation.choice, SampledChoice)


def test_a_large_catalogue_has_the_same_loss() -> None:
    small, large = build(), build(candidate_items=ITEMS + 1)
    large.augmentation.choice = LargeChoice(ITEMS + 1)
    assert terms(small) == pytest.approx(terms(large))


def test_favor_only_reads_and_relates_favors() -> None:
    model = build(behaviors=Behaviors.favor_only, min_count=0)
    train = worlds.records()
    favors = (train.behaviour == 2).sum()
    weights = model.relations.user_item(torch.ones(ITEMS + 1, 1).double())
    assert int(weights.sum()) <= int(favors)
    mixed = worlds.history([[(3, 2), (4, 1), (5, 2)]])
    alone = worlds.history([[(3, 2), (5, 2)]])
    torch.testing.assert_close(model.encode(mixed), model.encode(alone))


def test_a_shorter_window_reads_the_latest_events() -> None:
    model = build(length=4)
    long = worlds.history([worlds.clicks([1, 2, 3, 4, 5, 6])])
    short = worlds.history([worlds.clicks([3, 4, 5, 6])])
    torch.testing.assert_close(model.encode(long), model.encode(short))


def test_a_warm_start_trains_the_backbone_and_hands_on_the_item_table() -> None:
    model = build(warm_start=True)
    assert list(model.loss(batch())) == ["next_item"]
    model.loss(batch())["next_item"].backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {
        "E", "backbone",
    }  # fmt: skip
    table, position = model.E.detach().clone(), model.backbone.position.detach().clone()
    model.begin_epoch(7, torch.Generator())
    model.before_step(model.optimiser())
    assert model.next_stage()
    assert torch.equal(model.E, table)
    assert not torch.equal(model.backbone.position, position)
    assert list(model.loss(batch())) == ["next_item", "reconstruction", "filter"]
    model.begin_epoch(8, torch.Generator())
    assert float(model.drop) == pytest.approx(0.2)  # the curriculum begins with this stage
    assert int(model.batches) == 0  # so does the annealing
    again = build(seed=1, warm_start=True)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode(worlds.case_history()), model.encode(worlds.case_history()))
    assert not model.next_stage()


@pytest.mark.parametrize(
    "options",
    [
        {"position_mask": PositionMask.code},
        {"filter_rule": FilterRule.code},
        {"eval_noise": EvalNoise.code},
        {"behaviors": Behaviors.favor_only, "min_count": 0},
        {"candidates": Candidates.sampled, "candidate_items": 5},
        {"candidate_items": 5},
        {"count_padding": True},
        {"augment": False},
        {"denoise": False},
        {"length": 4},
        {"warm_start": True},
    ],
    ids=str,
)
def test_every_option_trains(options: dict[str, object]) -> None:
    model = build(learning_rate=0.01, **options).train()
    optimiser = model.optimiser()
    model.begin_epoch(0, torch.Generator())
    first = last = 0.0
    for step in range(15):
        optimiser.zero_grad()
        loss = torch.stack(list(model.loss(batch()).values())).sum()
        loss.backward()
        model.before_step(optimiser)
        optimiser.step()
        last = float(loss.detach())
        first = last if step == 0 else first
    assert last < first
    assert torch.isfinite(model.eval().encode(worlds.case_history())).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "hidden 16 is no multiple of heads 3"),
        ({"layers": 0}, "layers is 0"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"min_count": -1}, "min_count is -1"),
        ({"candidate_items": 0}, "candidate_items is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"length": 2}, "length is 2"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


# Strength ---------------------------------------------------------------------------------------


def ndcg(world: planted.World, seed: int, **options: object) -> float:
    """After 12 epochs without dropout, which is noise of another kind."""
    config = SSDRecConfig(
        hidden=32, learning_rate=0.005, dropout=0.0, dropout_graph=0.0, dropout_readout=0.0,
        dropout_backbone=0.0, **options,
    )  # fmt: skip
    model = planted.trained(lambda catalogue: SSDRec(config, catalogue), world, seed, epochs=12)
    return planted.ndcg_at_10(model, world)


@pytest.mark.slow
def test_among_accidents_it_beats_popularity_and_its_backbone_alone() -> None:
    popular, whole, alone = [], [], []
    for seed in planted.SEEDS:
        world = planted.noise(seed)
        popular.append(planted.most_popular(world))
        whole.append(ndcg(world, seed))
        alone.append(ndcg(world, seed, augment=False, denoise=False))
    seeds = len(planted.SEEDS)
    assert sum(whole) / seeds > sum(popular) / seeds + 0.15
    assert sum(whole) / seeds > sum(alone) / seeds + 0.04
