"""GRU4Rec: facts of the authors' code that surprise, losses, lanes, gradients cut, optimiser."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.gru4rec import (
    Adagrad,
    Batching,
    BPRMax,
    Bptt,
    CrossEntropy,
    Embedding,
    FusedLayer,
    GRU4Rec,
    GRU4RecConfig,
    Loss,
    Optimiser,
    Reset,
    ResetAfter,
    ResetBefore,
    SteppedLayer,
    Top1,
    parallel_grid,
)
from models.interface import Batch, Behaviour
from models.layers import Behaviors
from tests import planted, worlds


def build(seed: int = 0, items: int = worlds.ITEMS, **options: object) -> GRU4Rec:
    """A narrow model in float64 whose biases are not at their start."""
    torch.manual_seed(seed)
    config = GRU4RecConfig(**{"hidden": 8, "negatives": 5, "lanes": 4, **options})
    model = GRU4Rec(config, worlds.catalogue(items=items)).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def window(seed: int = 0) -> Batch:
    return worlds.batches(worlds.records(), GRU4Rec.samples, seed=seed)[0]


def loss(model: GRU4Rec, batch: Batch, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return model.loss(replace(batch, generator=draws))["next_item"]


def batch_of(rows: list[list[tuple[int, int]]], targets: list[list[int]]) -> Batch:
    history, wanted = worlds.history(rows), torch.tensor(targets)
    ones = (wanted > 0).double()
    return Batch(history, wanted, ones, torch.zeros_like(ones), torch.Generator())


# Cells ------------------------------------------------------------------------------------------


def test_reset_after_is_torchs_cell_and_z_keeps_the_old_state() -> None:
    torch.manual_seed(0)
    cell, stock = ResetAfter(5, 4).double(), nn.GRUCell(5, 4).double()
    cell.product.weight.data, cell.recurrent.weight.data = (
        stock.weight_ih.data,
        stock.weight_hh.data,
    )
    cell.product.bias.data, cell.recurrent.bias.data = stock.bias_ih.data, stock.bias_hh.data
    x, state = torch.randn(3, 5).double(), torch.randn(3, 4).double()
    torch.testing.assert_close(cell.step(cell.product(x), state), stock(x, state))
    cell.product.bias.data[4:8] = 50.0  # gates r, z, n: z = 1
    torch.testing.assert_close(cell.step(cell.product(x), state), state)


def test_reset_before_is_the_articles_and_z_takes_the_new_state() -> None:
    torch.manual_seed(0)
    cell = ResetBefore(5, 4).double()
    x, state = torch.randn(3, 5).double(), torch.randn(3, 4).double()
    w_n, w_r, w_z = cell.product.weight.split(4)
    u_r, u_z = cell.recurrent_gates.weight.split(4)
    r = (x @ w_r.T + state @ u_r.T).sigmoid()
    z = (x @ w_z.T + state @ u_z.T).sigmoid()
    n = (x @ w_n.T + (r * state) @ cell.recurrent_new.weight.T).tanh()
    torch.testing.assert_close(cell.step(cell.product(x), state), (1 - z) * state + z * n)
    cell.product.bias.data[8:] = 50.0  # gates n, r, z: z = 1
    after = cell.step(cell.product(x), state)
    torch.testing.assert_close(after, n)


@pytest.mark.parametrize("embedding", Embedding)
@pytest.mark.parametrize("reset", Reset)
def test_parameters(embedding: Embedding, reset: Reset) -> None:
    items, d = worlds.ITEMS + 1, 8  # row 0 included
    model = build(embedding=embedding, reset=reset)
    own = {Embedding.shared: 3 * d * d, Embedding.separate: items * d + 3 * d * d,
           Embedding.one_hot: items * 3 * d}[embedding]  # fmt: skip
    recurrent = 3 * d * d + {Reset.after: 6 * d, Reset.before: 3 * d}[reset]
    assert sum(p.numel() for p in model.parameters()) == items * d + items + own + recurrent


def test_one_hot_looks_the_input_product_up_and_has_one_layer_of_the_first_size() -> None:
    for reset in Reset:
        model = build(embedding=Embedding.one_hot, reset=reset, layers=[6, 4])
        assert [part.cell.hidden for part in model.layers] == [6]
        assert model.output_table.shape == (worlds.ITEMS + 1, 6)
        product = model.input.table[7] + model.layers[0].cell.product.bias
        one = model.advance(torch.tensor([[7]]), model.start(1))[0][:, 0]
        torch.testing.assert_close(one, model.layers[0].cell.step(product[None], model.start(1)[0]))


def test_shared_input_is_the_output_row_so_its_width_is_the_last_layers() -> None:
    model = build(layers=[6, 4])
    assert model.layers[0].cell.product.weight.shape == (18, 4)
    items = torch.tensor([[7, 3]])
    states = model.advance(items, model.start(1))
    first = nn.GRU(4, 6, batch_first=True).double()
    first.weight_ih_l0.data = model.layers[0].cell.product.weight.data
    first.weight_hh_l0.data = model.layers[0].cell.recurrent.weight.data
    first.bias_ih_l0.data = model.layers[0].cell.product.bias.data
    first.bias_hh_l0.data = model.layers[0].cell.recurrent.bias.data
    torch.testing.assert_close(states[0], first(model.output_table[items])[0])


def test_a_later_layer_reads_the_layer_below_at_the_same_event() -> None:
    model = build(layers=[6, 8])
    items = torch.tensor([[7, 3, 9]])
    whole = model.advance(items, model.start(1))
    states = model.start(1)
    for event in items.unbind(1):
        states = [s[:, -1] for s in model.advance(event[:, None], states)]
    torch.testing.assert_close(states, [s[:, -1] for s in whole])


def test_which_layers_are_fused() -> None:
    def kind(**options: object) -> type:
        return type(build(**options).layers[0])

    assert kind() is FusedLayer
    assert kind(embedding=Embedding.separate, embedding_width=3) is FusedLayer
    for options in (
        {"dropout_hidden": 0.1},
        {"reset": Reset.before},
        {"bptt": Bptt.one},
        {"embedding": Embedding.one_hot},
    ):
        assert kind(**options) is SteppedLayer


def test_fused_and_stepped_layers_agree_with_their_gradients() -> None:
    model = build()
    stepped = build()
    stepped.layers[0] = SteppedLayer(stepped.layers[0].cell, 0.0, lambda state: state)
    values = []
    for each in (model, stepped):
        value = loss(each, window())
        value.backward()
        values.append((value, each.output_table.grad, each.layers[0].cell.recurrent.weight.grad))
    torch.testing.assert_close(*values)


def test_the_dropped_state_is_what_is_carried_on() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([0.0, 2.0, 0.0, 2.0], dtype=x.dtype)

    torch.manual_seed(0)
    layer = SteppedLayer(ResetAfter(5, 4).double(), 0.5, lambda state: state)
    layer.dropout = Half()
    x, zero = torch.randn(1, 2, 5).double(), torch.zeros(1, 4).double()
    states = layer(x, zero)
    product = layer.cell.product(x)
    first = Half()(layer.cell.step(product[:, 0], zero))
    second = Half()(layer.cell.step(product[:, 1], first))
    torch.testing.assert_close(states, torch.stack([first, second], 1))


# Scores and losses ------------------------------------------------------------------------------


def test_scores_are_linear_with_one_bias_an_item() -> None:
    model = build()
    state = model.encode(worlds.case_history())
    scores = state @ model.output_table.T + model.output_bias
    torch.testing.assert_close(model.score_all(state), scores)
    items = torch.randint(1, worlds.ITEMS + 1, (len(state), 7))
    torch.testing.assert_close(model.score(state, items), scores.gather(1, items))


def slow_bpr_max(s: np.ndarray, i: int, elu: float, bpreg: float) -> float:
    s = np.where(s > 0, s, elu * np.expm1(s)) if elu else s
    others = [j for j in range(len(s)) if j != i]
    mass = np.exp(s[others])
    q = mass / mass.sum()
    won = (q / (1 + np.exp(s[others] - s[i]))).sum()
    return float(-np.log(won + 1e-24) + bpreg * (q * s[others] ** 2).sum())


def slow_top1(s: np.ndarray, i: int) -> float:
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    return float((sigmoid(s - s[i]) + sigmoid(s**2)).mean() - sigmoid(s[i] ** 2) / len(s))


def test_losses_agree_with_slow_copies_and_absent_columns_count_for_nothing() -> None:
    scores = 2 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    positive = torch.arange(6)
    absent = torch.zeros(6, 9, dtype=torch.bool)
    absent[:, 7] = True
    absent[0, 3] = True
    masked = scores.masked_fill(absent, -torch.inf)
    for criterion, slow in (
        (BPRMax(0.5, 1.0), lambda s, i: slow_bpr_max(s, i, 0.5, 1.0)),
        (BPRMax(0.0, 1.95), lambda s, i: slow_bpr_max(s, i, 0.0, 1.95)),
        (Top1(), slow_top1),
        (CrossEntropy(0.0), lambda s, i: float(np.log(np.exp(s).sum()) - s[i])),
    ):
        ours = criterion(masked, positive)
        for row, column in enumerate(positive.tolist()):
            there = ~absent[row].numpy()
            s = scores[row].numpy()[there]
            assert float(ours[row]) == pytest.approx(slow(s, int(there[:column].sum())), abs=1e-9)


def test_cross_entropy_has_1e_24_inside_the_logarithm() -> None:
    scores = torch.tensor([[-200.0, 200.0]], dtype=torch.float64)
    assert float(CrossEntropy(0.0)(scores, torch.tensor([0]))) == pytest.approx(24 * np.log(10))


def test_logq_corrects_batch_columns_by_count_and_extra_ones_by_count_to_the_alpha() -> None:
    model = build(logq=1.0, sample_alpha=0.5)
    counts = torch.bincount(worlds.records().item, minlength=worlds.ITEMS + 1)
    batch = batch_of([worlds.clicks([3]), worlds.clicks([4])], [[1], [2]])
    extra = torch.tensor([5, 1, 6])
    model.draw = lambda _: extra
    state = model.encode(batch.history)
    items = torch.tensor([1, 2, *extra.tolist()])
    logits = state @ model.output_table[items].T + model.output_bias[items]
    power = torch.tensor([1, 1, 0.5, 0.5, 0.5], dtype=torch.float64)
    logits = logits - power * counts[items].clamp(min=1).double().log()
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum") / 2
    torch.testing.assert_close(model.loss(batch)["next_item"], expected)


@pytest.mark.parametrize("option", Loss)
def test_duplicates_of_the_target_stay_among_the_negatives(option: Loss) -> None:
    model = build(loss=option)
    batch = batch_of([worlds.clicks([3]), worlds.clicks([4])], [[1], [1]])
    model.draw = lambda _: torch.tensor([1, 6])
    state, items = model.encode(batch.history), torch.tensor([1, 1, 1, 6])
    scores = state @ model.output_table[items].T + model.output_bias[items]
    expected = model.criterion(scores, torch.arange(2)).sum() / 2
    torch.testing.assert_close(model.loss(batch)["next_item"], expected)


def test_a_steps_loss_is_divided_by_the_batch_size_also_when_fewer_lanes_remain() -> None:
    rows = [worlds.clicks([3, 5, 7]), worlds.clicks([4])]
    targets = [[5, 7, 9], [0, 0, 2]]
    padded, parallel = build(negatives=0), build(negatives=0, batching=Batching.parallel, lanes=8)
    one = batch_of(rows, targets)
    states = padded.advance(one.history.items[:1], padded.start(1))[-1][0]
    last = padded.encode(one.history)
    scores = last @ padded.output_table[[9, 2]].T + padded.output_bias[[9, 2]]
    shared_step = nn.functional.cross_entropy(scores, torch.arange(2), reduction="sum")
    # Steps 0 and 1 have one lane with a target: one column, cost 0.
    torch.testing.assert_close(loss(padded, one), shared_step / 2)
    # In lanes, both start at step 0: 5 against 2 there, then each alone.
    scores = torch.stack([states[0], last[1]]) @ padded.output_table[[5, 2]].T
    scores = scores + padded.output_bias[[5, 2]]
    first_step = nn.functional.cross_entropy(scores, torch.arange(2), reduction="sum")
    torch.testing.assert_close(loss(parallel, one), first_step / 8)


def test_places_count_as_often_as_the_events_they_stand_for() -> None:
    model, batch = build(), window()
    double = replace(batch, clicks=2 * batch.clicks, favors=2 * batch.favors)
    torch.testing.assert_close(loss(model, double), 2 * loss(model, batch))


def test_scores_in_blocks_are_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = []
    for block in (1, 300, 1 << 20):
        monkeypatch.setattr("baselines.gru4rec.BLOCK", block)
        model = build()
        value = loss(model, window())
        value.backward()
        values.append([value, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(values[0], values[2])
    torch.testing.assert_close(values[1], values[2])


@pytest.mark.parametrize("option", Loss)
def test_gradients_taken_in_blocks_are_right(option: Loss) -> None:
    model, batch = build(loss=option), window()
    model.zero_grad()
    loss(model, batch).backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
                values.append(loss(model, batch))
                parameter.sub_(direction, alpha=sign * 1e-5)
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(
            slope, (direction * parameter.grad).sum(), rtol=1e-5, atol=1e-7, msg=name
        )


def test_a_batch_without_targets_costs_nothing() -> None:
    for batching in Batching:
        model = build(batching=batching)
        value = loss(model, batch_of([worlds.clicks([1, 2]), []], [[0, 0], [0, 0]]))
        value.backward()
        assert float(value.detach()) == 0


# Lanes ------------------------------------------------------------------------------------------


def test_the_next_window_goes_where_a_lane_has_ended() -> None:
    lengths = [3, 1, 2, 2, 1]
    history = worlds.history([worlds.clicks([1] * n) for n in lengths])
    grid = parallel_grid(history, 2)
    # Lane 0: windows 0 (steps 0-2), 3 (3-4); lane 1: 1 (0), 2 (1-2), 4 (3).
    assert grid.lane.tolist() == [0, 1, 1, 0, 1]
    first = grid.start + 3 - torch.tensor(lengths)
    assert first.tolist() == [0, 0, 1, 3, 3]
    assert (grid.steps, grid.lanes, grid.divisor) == (5, 2, 2)


def test_no_two_windows_share_a_lane_at_a_step() -> None:
    batch = window()
    for lanes in (1, 3, 40):
        grid = parallel_grid(batch.history, lanes)
        row, slot = batch.history.real.nonzero(as_tuple=True)
        at = (grid.start[row] + slot) * lanes + grid.lane[row]
        assert len(at.unique()) == len(at)
        assert 0 <= int(at.min()) <= int(at.max()) < grid.steps * lanes


@pytest.mark.parametrize("behaviors", Behaviors)
@pytest.mark.parametrize("layers", [[8], [6, 8]])
def test_stepwise_passes_add_up_to_the_loss_of_the_lanes(
    behaviors: Behaviors, layers: list[int]
) -> None:
    options = {"negatives": 0, "behaviors": behaviors, "lanes": 3, "layers": layers}
    model = build(batching=Batching.parallel, bptt=Bptt.one, **options)
    batch, gradients = window(), []
    for make in (lambda: model.loss(batch), lambda: list(model.passes(batch))):
        model.zero_grad()
        made = make()
        terms = [each["next_item"] for each in (made if isinstance(made, list) else [made])]
        assert len(terms) == 1 or len(terms) > 5
        torch.stack(terms).sum().backward()
        gradients.append([torch.stack(terms).sum(), *(p.grad for p in model.parameters())])
    # Between favors the carried state has no gradient any more, when weights may have moved.
    same = len(gradients[0]) if behaviors is Behaviors.merged else 1
    torch.testing.assert_close(gradients[0][:same], gradients[1][:same])


def test_passes_of_padded_batches_are_one_loss() -> None:
    model, batch = build(negatives=0), window()
    (only,) = model.passes(batch)
    torch.testing.assert_close(only, model.loss(batch))


def test_passes_let_the_weights_move_between_two_steps() -> None:
    model = build(batching=Batching.parallel, bptt=Bptt.one)
    optimiser, before = model.optimiser(), model.output_table.detach().clone()
    values = []
    for losses in model.passes(window()):
        optimiser.zero_grad()
        losses["next_item"].backward()
        optimiser.step()
        values.append(losses["next_item"].detach())
    assert torch.stack(values).isfinite().all()
    assert not torch.equal(before, model.output_table)


def test_gradients_end_after_one_step_but_the_state_goes_on() -> None:
    for bptt, reaches in ((Bptt.full, True), (Bptt.one, False)):
        model = build(bptt=bptt, embedding=Embedding.separate, negatives=5)
        batch = batch_of([worlds.clicks([3, 5])], [[0, 9]])
        other = batch_of([worlds.clicks([4, 5])], [[0, 9]])
        value = loss(model, batch)
        assert not torch.equal(value, loss(model, other))
        value.backward()
        assert bool(model.input.table.grad[3].any()) is reaches
        assert bool(model.input.table.grad[5].any())


# Negatives --------------------------------------------------------------------------------------


def test_negatives_are_drawn_in_proportion_to_count_to_the_alpha() -> None:
    events = [worlds.clicks([1] * 16 + [2] * 4 + [3])]
    for alpha in (0.0, 0.5, 1.0):
        model = build(negatives=60_000, sample_alpha=alpha)
        model.prepare(worlds.interactions(events))
        drawn = model.draw(torch.Generator().manual_seed(0))
        share = torch.bincount(drawn, minlength=worlds.ITEMS + 1) / len(drawn)
        wanted = torch.tensor([16.0, 4.0, 1.0]) ** alpha
        torch.testing.assert_close(share[1:4], wanted / wanted.sum(), atol=0.01, rtol=0)
        assert share[0] == share[4:].sum() == 0


def test_negatives_follow_the_batchs_stream() -> None:
    model, batch = build(), window()
    assert torch.equal(loss(model, batch, 1), loss(model, batch, 1))
    assert not torch.equal(loss(model, batch, 1), loss(model, batch, 2))


# Start and optimiser ----------------------------------------------------------------------------


def test_each_gates_block_starts_as_a_matrix_of_its_own() -> None:
    torch.manual_seed(0)
    catalogue = worlds.catalogue(items=500)

    def spans(blocks: tuple[Tensor, ...], rows: int, columns: int) -> None:
        limit = (6 / (rows + columns)) ** 0.5
        for block in blocks:
            assert 0.97 * limit < block.detach().abs().max() <= limit

    model = GRU4Rec(GRU4RecConfig(hidden=64), catalogue)
    spans(model.layers[0].cell.product.weight.split(64), 64, 64)  # 0.217, not 0.168
    spans(model.layers[0].cell.recurrent.weight.split(64), 64, 64)
    spans((model.output_table,), 500, 64)
    assert all((p == 0).all() for p in model.parameters() if p.ndim == 1)

    wide = GRU4Rec(
        GRU4RecConfig(hidden=64, embedding=Embedding.separate, embedding_width=32), catalogue
    )
    spans(wide.layers[0].cell.product.weight.split(64), 64, 32)
    spans((wide.input.table,), 500, 32)
    hot = GRU4Rec(
        GRU4RecConfig(hidden=64, embedding=Embedding.one_hot, reset=Reset.before), catalogue
    )
    spans(hot.input.table.split(64, dim=1), 500, 64)
    spans(hot.layers[0].cell.recurrent_gates.weight.split(64), 64, 64)
    assert all((table[0] == 0).all() for table in (hot.input.table, wide.output_table))


def test_models_of_different_seeds_start_differently() -> None:
    assert not torch.equal(build(seed=1).output_table, build(seed=2).output_table)


def test_adagrad_adds_epsilon_inside_the_root() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimiser = Adagrad([weight], lr=0.1, momentum=0.5, eps=0.5)
    squares, momentum, expected = 0.0, 0.0, 1.0
    for gradient in (0.3, -0.2, 0.7):
        weight.grad = torch.full_like(weight, gradient)
        optimiser.step()
        squares += gradient**2
        momentum = 0.5 * momentum - 0.1 * gradient / (squares + 0.5) ** 0.5
        expected += momentum
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected).detach())


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_that_were_not_touched_stay_and_their_momentum_waits(sparse: bool) -> None:
    table = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))
    optimiser = Adagrad([{"params": [table], "table": True}], lr=0.1, momentum=0.5)

    def step(rows: list[int], values: list[float]) -> None:
        factor = torch.tensor(values, dtype=torch.float64).unsqueeze(1).expand(-1, 2)
        gradient = torch.sparse_coo_tensor([rows], factor, table.shape, check_invariants=True)
        table.grad = gradient if sparse else gradient.to_dense()
        optimiser.step()

    step([1, 1, 2], [1.0, 2.0, 1.0])  # duplicates are summed before squaring: 9, not 5
    state = optimiser.state[table]
    assert state["squares"][:, 0].tolist() == [0, 9, 1, 0]
    before, momentum = table.detach().clone(), state["momentum"].clone()
    step([2], [1.0])
    changed = (table.detach() != before).any(1)
    assert changed.tolist() == [False, False, True, False]
    assert torch.equal(state["momentum"][1], momentum[1])


def test_every_table_is_updated_by_touched_rows_alone() -> None:
    for embedding in Embedding:
        model = build(embedding=embedding, negatives=0, momentum=0.5)
        optimiser = model.optimiser()
        assert isinstance(optimiser, Adagrad)
        rows = {
            id(p) for group in optimiser.param_groups if group["table"] for p in group["params"]
        }
        tables = {n for n, p in model.named_parameters() if id(p) in rows}
        own = set() if embedding is Embedding.shared else {"input.table"}
        assert tables == {"output_table", "output_bias"} | own
        before = model.output_table.detach().clone()
        loss(model, batch_of([worlds.clicks([3]), worlds.clicks([4])], [[8], [9]])).backward()
        optimiser.step()
        moved = (model.output_table.detach() != before).any(1).nonzero().flatten().tolist()
        assert moved == ([3, 4, 8, 9] if embedding is Embedding.shared else [8, 9])


def test_adam_is_the_uniform_alternative() -> None:
    optimiser = build(optimiser=Optimiser.adam, learning_rate=1e-3).optimiser()
    assert isinstance(optimiser, torch.optim.Adam)
    assert optimiser.param_groups[0]["lr"] == 1e-3


# Histories --------------------------------------------------------------------------------------

every_network = pytest.mark.parametrize(
    ("embedding", "reset", "layers"),
    [(e, r, s) for e, r, s in itertools.product(Embedding, Reset, ([8], [6, 8]))],
)


@every_network
def test_padding_and_trimming_change_nothing(
    embedding: Embedding, reset: Reset, layers: list[int]
) -> None:
    for batching in Batching:
        model = build(embedding=embedding, reset=reset, layers=layers, batching=batching)
        batch = window()
        extra = 3
        wider = replace(
            batch,
            history=batch.history.padded(batch.history.items.shape[1] + extra),
            targets=nn.functional.pad(batch.targets, (extra, 0)),
            clicks=nn.functional.pad(batch.clicks, (extra, 0)),
            favors=nn.functional.pad(batch.favors, (extra, 0)),
        )
        torch.testing.assert_close(loss(model, batch), loss(model, wider))
    history = worlds.history([worlds.clicks([2, 9]), worlds.favors([7]), []])
    torch.testing.assert_close(model.encode(history), model.encode(history.padded(worlds.LENGTH)))


def test_the_state_is_zero_at_each_rows_first_event() -> None:
    model = build()
    together = model.encode(worlds.history([worlds.clicks([2, 9, 4]), worlds.clicks([7]), []]))
    for row, events in enumerate(([2, 9, 4], [7])):
        alone = model.encode(worlds.history([worlds.clicks(events)]))[0]
        torch.testing.assert_close(together[row], alone)
    assert (together[2] == 0).all()


def test_only_the_last_events_are_fed() -> None:
    model, events = build(), worlds.clicks(list(range(1, 13)))
    long, short = worlds.history([events]), worlds.history([events[-worlds.LENGTH :]])
    torch.testing.assert_close(model.encode(long), model.encode(short))


def test_favor_only_reads_each_target_after_the_favors_before_it() -> None:
    model = build(behaviors=Behaviors.favor_only, negatives=4)
    events = [(3, 1), (4, 2), (5, 1), (6, 2), (7, 1)]
    batch = batch_of([events], [[4, 5, 6, 7, 8]])
    favors = batch.history.only(Behaviour.FAVOR)
    states = model.advance(favors.items, model.start(1))[-1][0]
    extra = model.draw(torch.Generator().manual_seed(0))
    expected = 0.0
    for target, state in ((5, 0), (6, 0), (7, 1), (8, 1)):  # nothing stands before 4
        items = torch.tensor([target, *extra.tolist()])
        scores = states[state] @ model.output_table[items].T + model.output_bias[items]
        expected = expected - scores.log_softmax(0)[0]
    torch.testing.assert_close(loss(model, batch), expected)
    torch.testing.assert_close(model.encode(batch.history)[0], states[-1])


def test_merged_ignores_the_tags() -> None:
    model, history = build(), worlds.case_history()
    clicked = replace(history, behaviours=history.real.long())
    assert torch.equal(model.encode(history), model.encode(clicked))


# Training ---------------------------------------------------------------------------------------


@every_network
def test_every_parameter_gets_a_gradient(
    embedding: Embedding, reset: Reset, layers: list[int]
) -> None:
    options = itertools.product(Loss, Batching, Bptt)
    for option, batching, bptt in options:
        model = build(
            embedding=embedding, reset=reset, layers=layers,
            loss=option, batching=batching, bptt=bptt,
        ).train()  # fmt: skip
        loss(model, window()).backward()
        assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimiser": Optimiser.adam, "learning_rate": 1e-2},
        {"batching": Batching.parallel, "bptt": Bptt.one},
        {"loss": Loss.bpr_max},
        {"loss": Loss.top1},
        {"embedding": Embedding.one_hot, "reset": Reset.before},
    ],
    ids=str,
)
def test_one_batch_can_be_learned(options: dict[str, object]) -> None:
    batch, train = worlds.one_target_each(GRU4Rec.samples)
    torch.manual_seed(0)
    model = GRU4Rec(GRU4RecConfig(**{"hidden": 32, "lanes": 6, **options}), worlds.catalogue())
    model.prepare(train)
    optimiser = model.optimiser()
    model.train()
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(batch)["next_item"].backward()
        optimiser.step()
    best = model.eval().score_all(model.encode(batch.history))[:, 1:].argmax(1) + 1
    assert (best == batch.target).float().mean() >= 0.9


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="negatives -1"):
        build(negatives=-1)
    with pytest.raises(ValueError, match=r"layers \[0\]"):
        build(layers=[0])


@pytest.mark.parametrize("embedding", Embedding, ids=str)
def test_adagrad_takes_tables_for_tables_whatever_the_size_of_a_matrix(
    embedding: Embedding,
) -> None:
    model = build(items=23, hidden=8, embedding=embedding)  # 3 x 8 rows: as many as a table has
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {bool(group.get("table")): group["params"] for group in model.optimiser().param_groups}
    tables = {names[id(parameter)] for parameter in groups[True]}
    assert {"output_table", "output_bias"} <= tables
    assert all(name.endswith(("table", "output_bias")) for name in tables)
    assert not any(names[id(parameter)].endswith("table") for parameter in groups[False])


# Strength ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, 15),
        *(
            pytest.param(options, epochs, marks=pytest.mark.slow)
            for options, epochs in (
                ({"loss": Loss.bpr_max}, 15),
                ({"loss": Loss.top1, "negatives": 0}, 15),  # the model of 2016
                ({"reset": Reset.before, "embedding": Embedding.one_hot}, 8),
                ({"batching": Batching.parallel, "bptt": Bptt.one, "lanes": 16}, 4),  # the authors'
            )
        ),
    ],
    ids=str,
)
def test_the_state_tells_where_a_user_goes_next(options: dict[str, object], epochs: int) -> None:
    """A ring walked up or down: only the order of the events tells the next one."""
    config = GRU4RecConfig(**{"hidden": 16, "negatives": 64, "learning_rate": 0.1, **options})
    found = np.zeros((len(planted.SEEDS), 3))
    for row, seed in enumerate(planted.SEEDS):
        world = planted.order(seed)
        for column, where in enumerate((world, planted.shuffled(world))):
            model = planted.trained(
                lambda c: GRU4Rec(config, c), where, seed, epochs, batch_size=32
            )
            found[row, column] = planted.ndcg_at_10(model, where)
        found[row, 2] = planted.most_popular(world)
    ours, shuffled, popular = found.mean(0)
    assert ours > popular + 0.5
    assert ours > shuffled + 0.15
