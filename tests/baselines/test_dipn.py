"""DIPN (reconstruction): what the paper states, our readings as options, and what it can learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.dipn import (
    DIPN,
    VIEWS,
    Attributes,
    Bottom,
    Cell,
    DIPNConfig,
    Direction,
    Fusion,
    Head,
    IntentTask,
    Weights,
)
from models.interface import Batch, Behaviour, Catalogue, History
from models.layers import Dropout
from tests import planted, worlds
from tests.planted import World

BCE = nn.functional.binary_cross_entropy_with_logits


def build(seed: int = 0, *, fields: bool = True, **options: object) -> DIPN:
    """A narrow model in float64 whose biases are not at their start; evaluation mode."""
    torch.manual_seed(seed)
    config = DIPNConfig(**{"hidden": 6, "recurrent_width": 8, "attention_width": 5, **options})
    catalogue = worlds.catalogue()
    model = DIPN(config, catalogue if fields else replace(catalogue, fields={})).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.weight[1:].normal_()
    return model.eval()


class Given(nn.Module):
    """Stands in for the draw of negatives."""

    def __init__(self, negatives: Tensor) -> None:
        super().__init__()
        self.negatives = negatives
        self.users: list[int] = []
        """Whose negatives were asked for."""

    def forward(self, user: Tensor, count: int, generator: torch.Generator) -> Tensor:
        self.users = user.tolist()
        return self.negatives.expand(len(user), count)


def batch() -> Batch:
    return worlds.case_batch(DIPN.samples)


def loss(model: DIPN, batch: Batch) -> dict[str, Tensor]:
    return model.loss(replace(batch, generator=torch.Generator().manual_seed(0)))


# A slow copy of the formulas, one user at a time ------------------------------------------------


def slow_view(model: DIPN, name: str, items: list[int]) -> Tensor:
    """s_v by loops over events."""
    view, width = model.views[name], model.views[name].width
    if not items:
        return torch.zeros(width, dtype=torch.float64)
    cell = view.recurrence.cell
    w, u, b, c = cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0
    state, states = torch.zeros(width, dtype=torch.float64), []
    for item in items:
        fields = [table.weight[column[item]] for table, column in zip(
            model.inputs.tables, model.inputs.fields, strict=True)]  # fmt: skip
        x = torch.cat([model.items.weight[item], *fields])
        r, z, n = (w @ x + b).chunk(3)
        ur, uz, un = (u @ state + c).chunk(3)
        r, z = (r + ur).sigmoid(), (z + uz).sigmoid()
        state = (1 - z) * (n + r * un).tanh() + z * state
        states.append(state)
    alpha = torch.stack(
        [view.attention.outer(view.attention.inner(h).tanh()).squeeze() for h in states]
    ).softmax(0)
    return (alpha.unsqueeze(1) * torch.stack(states)).sum(0)


def slow_user(model: DIPN, history: History, row: int) -> Tensor:
    """u of one user."""
    vectors = {}
    for name, behaviour in VIEWS.items():
        own = (history.behaviours[row] == int(behaviour)) & history.real[row]
        items = history.items[row][own].tolist()
        if items:
            vectors[name] = slow_view(model, name, items)
    if not vectors:
        return torch.zeros(model.config.recurrent_width, dtype=torch.float64)
    part = model.fusion.attention
    scores = torch.stack([part.outer(part.inner(s).tanh()).squeeze() for s in vectors.values()])
    beta = scores.softmax(0)
    return (beta.unsqueeze(1) * torch.stack(list(vectors.values()))).sum(0)


def test_user_vectors_are_those_of_a_slow_copy() -> None:
    model, history = build(), worlds.case_history()
    slow = torch.stack([slow_user(model, history, row) for row in range(len(history.user))])
    torch.testing.assert_close(model.encode(history), slow)


# What the paper states --------------------------------------------------------------------------


def test_views_have_recurrences_and_attentions_of_their_own() -> None:
    model = build()
    click, favor = model.views["click"], model.views["favor"]
    shared = {id(p) for p in click.parameters()} & {id(p) for p in favor.parameters()}
    assert not shared
    as_click = model.encode(worlds.history([worlds.clicks([3, 5])]))
    as_favor = model.encode(worlds.history([worlds.favors([3, 5])]))
    assert (as_click - as_favor).abs().max() > 1e-3


def test_attention_is_within_each_view_and_then_between_the_views() -> None:
    """The order of events across views tells nothing, the order inside a view does."""
    model = build()

    def user(events: list[tuple[int, int]]) -> Tensor:
        return model.encode(worlds.history([events]))

    click, favor = worlds.clicks([3, 5]), worlds.favors([7, 2])
    mixed = [click[0], favor[0], click[1], favor[1]]
    torch.testing.assert_close(user(click + favor), user(mixed))
    torch.testing.assert_close(user(click + favor), user(favor + click))
    assert (user(click + favor) - user(click[::-1] + favor)).abs().max() > 1e-4


def test_weights_are_over_real_events_and_over_views_that_are_not_empty() -> None:
    model, history = build(), worlds.case_history()
    for name, behaviour in VIEWS.items():
        x, real = model.view_input(history, behaviour)
        alpha = model.views[name].attention(model.views[name].states(x, real), real)
        assert not alpha[~real].any()
        torch.testing.assert_close(alpha.sum(1), real.any(1).double())
    views, present = model.view_vectors(history)
    beta = model.fusion.weights(views, present)
    assert not beta[~present].any()
    assert not views[~present].any()
    torch.testing.assert_close(beta.sum(1), present.any(1).double())
    cases = list(worlds.CASES)
    assert beta[cases.index("no favor")].tolist() == [1, 0]
    assert beta[cases.index("no click")].tolist() == [0, 1]
    assert not model.encode(history)[cases.index("empty")].any()


def test_the_candidate_enters_in_the_towers_and_nowhere_earlier() -> None:
    model, history = build(), worlds.case_history()
    user, items = model.encode(history), torch.arange(1, 9).expand(len(history.user), -1)
    tower = model.heads["favor"]
    together = torch.cat(
        [user.unsqueeze(1).expand(-1, 8, -1), model.items(items)], 2
    )  # F [u; E[c]], not split
    expected = tower.outer(tower.inner(together).relu()).squeeze(2)
    torch.testing.assert_close(model.score(user, items), expected)


def test_every_item_is_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    user = model.encode(worlds.case_history())
    expected = model.score_all(user)
    monkeypatch.setattr("baselines.dipn.BLOCK", 200)
    torch.testing.assert_close(model.score_all(user), expected)


def test_items_parts_are_made_once_an_evaluation() -> None:
    model = build()
    with torch.no_grad():
        first = model.prepared_items()
        assert model.prepared_items() is first
        model.train()
        assert model.prepared_items() is not first


# Loss -------------------------------------------------------------------------------------------


def test_a_favor_is_a_positive_of_both_tasks_and_a_click_of_one() -> None:
    model = build()
    negatives = torch.tensor([12, 13, 14, 11])
    model.negatives = Given(negatives)
    samples = batch()
    assert set(samples.favors.flatten().tolist()) == {0, 1}
    user = model.encode(samples.history)
    vectors = model.items(
        torch.cat([samples.targets, negatives.expand(len(samples.targets), -1)], 1)
    )
    losses = loss(model, samples)
    assert losses.keys() == {"favor", "click"}
    for task, weight in (("favor", 1.0), ("click", 0.5)):
        labels = torch.zeros(len(user), 5, dtype=torch.float64)
        labels[:, 0] = samples.favors[:, 0] if task == "favor" else 1
        torch.testing.assert_close(
            losses[task], weight * BCE(model.logits(task, user, vectors), labels)
        )


def test_negatives_are_those_of_the_rows_own_user() -> None:
    model, samples = build(), batch()
    model.negatives = Given(torch.tensor([12, 13, 14, 11]))
    users = samples.history.user.flip(0) + 3
    loss(model, replace(samples, history=replace(samples.history, user=users)))
    assert model.negatives.users == users.tolist()


def test_there_are_four_negatives_that_the_user_never_touched_in_training() -> None:
    assert DIPNConfig().negatives == 4
    model, train = build(), worlds.records()
    drawn = model.negatives(torch.arange(worlds.USERS), 200, torch.Generator().manual_seed(0))
    for user in range(worlds.USERS):
        touched = set(train.item[train.user == user].tolist())
        assert not touched & set(drawn[user].tolist())


def test_task_weights() -> None:
    costs = {"favor": torch.tensor(2.0), "click": torch.tensor(3.0)}
    equal = build(weights=Weights.equal).weighting(costs)
    assert {task: float(cost) for task, cost in equal.items()} == {"favor": 2, "click": 3}
    learned = DIPN(DIPNConfig(hidden=6, weights=Weights.learned), worlds.catalogue()).weighting
    assert [float(a.detach()) for a in learned.a.values()] == [0, 0]
    with torch.no_grad():
        learned.a["favor"].fill_(1.0)
    terms = learned(costs)
    torch.testing.assert_close(terms["favor"].detach(), 2 * torch.tensor(-1.0).exp() + 1)
    assert float(terms["click"].detach()) == 3


def test_the_intent_task_has_no_candidate_and_asks_the_targets_alone() -> None:
    model, samples = build(intent_task=IntentTask.on), batch()
    found = loss(model, samples)
    user = model.encode(samples.history)
    favored = samples.favors[:, 0].double()
    torch.testing.assert_close(found["intent"], 0.5 * BCE(model.intent.logit(user), favored))
    assert loss(build(), samples).keys() == {"favor", "click"}


# Options, sizes, start --------------------------------------------------------------------------


def slow_lstm_or_gru(cell: nn.GRU | nn.LSTM, x: Tensor) -> Tensor:
    return cell(x.unsqueeze(0))[0][0]


@pytest.mark.parametrize("cell", Cell)
def test_both_ways_read_each_rows_events_from_its_last_one_back(cell: Cell) -> None:
    model, history = build(direction=Direction.both, cell=cell), worlds.case_history()
    x, real = model.view_input(history, Behaviour.CLICK)
    part = model.views["click"].recurrence
    assert isinstance(part.cell, {Cell.gru: nn.GRU, Cell.lstm: nn.LSTM}[cell])
    states = part(x, real.sum(1))
    for row, count in enumerate(real.sum(1).tolist()):
        if count:
            events = x[row, :count]
            forward = slow_lstm_or_gru(part.cell, events)
            backward = slow_lstm_or_gru(part.backward_cell, events.flip(0)).flip(0)
            torch.testing.assert_close(states[row, :count], torch.cat([forward, backward], 1))
    assert model.encode(history).shape[1] == 2 * model.config.recurrent_width


def test_self_attention_mixes_the_events_of_a_view_before_they_are_pooled() -> None:
    model, history = build(bottom=Bottom.self_attention), worlds.case_history()
    x, real = model.view_input(history, Behaviour.CLICK)
    view = model.views["click"]
    states, mixed = view.recurrence(x, real.sum(1)), view.states(x, real)
    row = list(worlds.CASES).index("no favor")
    count = int(real[row].sum())
    query, key, value = view.mix.query_key_value(states[row, :count]).chunk(3, 1)
    heads = []
    for cut in (slice(0, 4), slice(4, 8)):
        weights = (query[:, cut] @ key[:, cut].T / 2).softmax(1)
        heads.append(weights @ value[:, cut])
    torch.testing.assert_close(mixed[row, :count], view.mix.output(torch.cat(heads, 1)))


def test_concatenation_keeps_the_weighted_views_side_by_side() -> None:
    model, history = build(fusion=Fusion.concatenation), worlds.case_history()
    views, present = model.view_vectors(history)
    beta = model.fusion.weights(views, present)
    expected = torch.cat([beta[:, :1] * views[:, 0], beta[:, 1:] * views[:, 1]], 1)
    torch.testing.assert_close(model.encode(history), expected)


def test_a_dot_product_head_maps_the_user_and_takes_the_item_as_it_is() -> None:
    model = build(head=Head.dot_product)
    user = model.encode(worlds.case_history())
    expected = model.heads["favor"].user(user) @ model.items.weight.T
    torch.testing.assert_close(model.score_all(user), expected)
    items = torch.arange(1, 5).expand(len(user), -1)
    torch.testing.assert_close(model.score(user, items), expected[:, 1:5])


def test_attributes_are_part_of_the_input_where_there_are_any() -> None:
    assert build().inputs.width == 8
    assert build(fields=False).inputs.width == 0
    off = build(attributes=Attributes.off)
    assert off.inputs.width == 0
    model, history = build(), worlds.history([worlds.clicks([1])])  # item 1 has brand 2
    before = model.encode(history)
    with torch.no_grad():
        model.inputs.tables[0].weight[2] += 1
    assert (model.encode(history) - before).abs().max() > 1e-4


def test_no_field_of_a_history_tells_times_so_there_is_no_gap_option() -> None:
    assert set(History.__dataclass_fields__) == {"user", "items", "behaviours"}
    assert not any("gap" in name for name in DIPNConfig.__dataclass_fields__)


def test_parameters() -> None:
    sizes = {"hidden": 64, "recurrent_width": 48, "attention_width": 32}
    catalogue: Catalogue = replace(worlds.catalogue(), fields={})
    V, d, H, A = worlds.ITEMS, 64, 48, 32
    views = 2 * (3 * H * d + 3 * H**2 + 6 * H) + 2 * (A * H + 2 * A)
    towers = 2 * (H * (H + d) + 2 * H + 1)
    expected = (V + 1) * d + views + (A * H + 2 * A) + towers
    model = DIPN(DIPNConfig(**sizes), catalogue)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_sizes_are_the_hidden_width_unless_said() -> None:
    model = DIPN(DIPNConfig(hidden=12), worlds.catalogue())
    assert model.items.embedding_dim == 12
    assert model.views["click"].width == 12
    assert model.fusion.attention.inner.out_features == 12


def test_matrices_start_xavier_uniform_biases_zero_and_items_normal() -> None:
    torch.manual_seed(0)
    model = DIPN(DIPNConfig(hidden=32), worlds.catalogue())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any(), name
    cell = model.views["click"].recurrence.cell
    for block in cell.weight_ih_l0.detach().split(32):  # each gate is a matrix of its own
        limit = (6 / sum(block.shape)) ** 0.5
        assert 0.95 * limit < float(block.abs().max()) <= limit
    items = model.items.weight.detach()
    assert not items[0].any()
    assert abs(float(items[1:].std()) - 0.02) < 2e-3


def test_dropout_is_on_the_input_and_after_a_towers_relu() -> None:
    model = build(intent_task=IntentTask.on)
    rates = {name: m.rate for name, m in model.named_modules() if isinstance(m, Dropout)}
    assert rates == dict.fromkeys(
        ("dropout", "heads.favor.dropout", "heads.click.dropout", "intent.dropout"), 0.2
    )


def test_defaults() -> None:
    config = DIPNConfig()
    assert (config.learning_rate, config.weight_decay, config.intent_weight) == (1e-3, 0, 0.5)
    for value in vars(config).values():
        if hasattr(type(value), "__members__"):
            assert value is next(iter(type(value)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"direction": Direction.both},
        {"cell": Cell.lstm, "direction": Direction.both},
        {"cell": Cell.lstm},
        {"bottom": Bottom.self_attention},
        {"fusion": Fusion.concatenation},
        {"head": Head.dot_product},
        {"weights": Weights.equal},
        {"weights": Weights.learned},
        {"intent_task": IntentTask.on},
        {"attributes": Attributes.off},
        {"negatives": 1},
    ],
    ids=str,
)
def test_every_option_trains_all_of_its_parameters(options: dict[str, object]) -> None:
    model = build(learning_rate=3e-3, **options).train()
    batches = [*worlds.batches(worlds.records(), DIPN.samples), batch()]
    optimiser, totals, reached = model.optimiser(), [], set()
    for step in range(30):
        terms = loss(model, batches[step % len(batches)])
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        totals.append(float(terms["favor"].detach()))
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in model.named_parameters()}
    assert sum(totals[-6:]) < sum(totals[:6])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="negatives 0 are at least 1"):
        build(negatives=0)
    with pytest.raises(ValueError, match="heads is 3, which does not divide"):
        build(bottom=Bottom.self_attention, heads=3)


# Strength ---------------------------------------------------------------------------------------


def compare(
    world: Callable[[int], World],
    off: Callable[[World], World],
    learning_rate: float,
    epochs: int = 20,
) -> tuple[float, float, float]:
    """Mean NDCG@10 in the world, with its mechanism off, and of MostPopular."""

    def make(catalogue: Catalogue) -> DIPN:
        config = DIPNConfig(hidden=16, dropout=0.0, learning_rate=learning_rate)
        return DIPN(config, catalogue)

    found = torch.zeros(len(planted.SEEDS), 3)
    for row, seed in enumerate(planted.SEEDS):
        here = world(seed)
        for column, where in enumerate((here, off(here))):
            model = planted.trained(make, where, seed, epochs=epochs)
            found[row, column] = planted.ndcg_at_10(model, where)
        found[row, 2] = planted.most_popular(here)
    ours, without, popular = found.mean(0).tolist()
    return ours, without, popular


@pytest.mark.slow
def test_clicks_tell_the_taste_of_which_few_favors_tell_the_half() -> None:
    ours, favors_alone, popular = compare(
        lambda seed: planted.cascade(seed, favors=2), planted.without_clicks, learning_rate=0.01
    )
    assert ours > popular + 0.3
    assert ours > favors_alone + 0.2


@pytest.mark.slow
def test_the_recurrence_reads_the_order_of_events() -> None:
    ours, shuffled, popular = compare(planted.order, planted.shuffled, learning_rate=0.02)
    assert ours > popular + 0.4
    assert ours > shuffled + 0.1
