"""MB-STR: the facts most often got wrong, each named, and a slow reading beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.mbstr import (
    MBSTR,
    MBSTRConfig,
    Windows,
    drop_own_events,
    keep_own_events,
    relative_bucket,
)
from models.interface import Batch, Behaviour, Catalogue, History, Interactions
from tests import planted
from tests.parity.adapters.mbstr import build, in_place
from tests.parity.pairs import Pair

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
ITEMS, LENGTH, HIDDEN = 20, 6, 8
MASK = ITEMS + 1
CLICK, FAVOR = int(Behaviour.CLICK), int(Behaviour.FAVOR)


def catalogue(length: int = LENGTH, *, drops: bool = True) -> Catalogue:
    nothing, flags = torch.zeros(ITEMS + 1, 1), torch.zeros(ITEMS + 1, dtype=torch.bool)
    return Catalogue(9, ITEMS, length, nothing, flags, nothing, flags, {}, drops)


def model(seed: int = 0, *, length: int = LENGTH, drops: bool = True, **settings: object) -> MBSTR:
    torch.manual_seed(seed)
    config = MBSTRConfig(**{"hidden": HIDDEN, **settings})  # type: ignore[arg-type]
    return MBSTR(config, catalogue(length, drops=drops)).double().eval()


def signed(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Left-padded items and behaviours; a negative item is a favor."""
    width = max(1, *(len(row) for row in rows)) + padding
    both = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    return both.abs(), torch.where(both < 0, FAVOR, CLICK) * (both != 0)


def history(*rows: Sequence[int], padding: int = 0) -> History:
    items, behaviours = signed(rows, padding)
    return History(torch.arange(len(rows)), items, behaviours)


def records(*rows: Sequence[int], target: Sequence[bool] | None = None) -> Interactions:
    """Training events of users 0, 1, ...; a negative item is a favor."""
    both = torch.tensor([item for row in rows for item in row])
    lengths = torch.tensor([0] + [len(row) for row in rows])
    return Interactions(
        user=torch.repeat_interleave(torch.arange(len(rows)), lengths[1:]),
        item=both.abs(),
        behaviour=torch.where(both < 0, FAVOR, CLICK),
        target=torch.ones(len(both), dtype=torch.bool) if target is None else torch.tensor(target),
        offsets=lengths.cumsum(0),
    )


def batch(users: int, seed: int = 0) -> Batch:
    items = torch.zeros(users, 1, dtype=torch.int64)
    none = torch.zeros(users, 1)
    generator = torch.Generator().manual_seed(seed)
    return Batch(History(torch.arange(users), items, items), items, none, none, generator)


ROWS = ([1, -2, 3], [4], [5, 6, -7, 8, 9, -10], [], [13, 14, -13])


def windows() -> Windows:
    """Two rows of different length, four masked events of either behaviour."""
    labels, behaviours = signed([[3, -4, 5, 6, -7], [8, -9]])
    masked = torch.tensor([[False, True, True, False, False], [False, False, False, True, True]])
    return Windows(torch.where(masked, MASK, labels), behaviours, labels * masked)


# --- the method, read slowly, padding included ---------------------------------------------------


def norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def slow_bucket(r: int) -> int:
    """T5's rule for 32 buckets and distance 40, spelt out; r = key minus query."""
    n, a = -r, abs(r)
    m = a if a < 8 else min(15, 8 + math.floor(math.log(a / 8) / math.log(40 / 8) * 8))
    return 16 * (n < 0) + m


def slow_attention(
    x: np.ndarray, behaviours: np.ndarray, w: dict[str, np.ndarray], n_b: int
) -> np.ndarray:
    """One row, every pair of places and every head by itself."""
    length, d = x.shape
    P, relative = w["attention.projection"], w["attention.relative"]
    heads, width = P.shape[3:]
    mix = [softmax(w[f"attention.alpha{k}"], 1) for k in (1, 2)]
    M1, M2 = (
        np.einsum("ceh,ehxy->chxy", a, w[f"attention.W{k}"])
        for k, a in zip((1, 2), mix, strict=True)
    )
    q, k, v = (
        np.stack([np.einsum("d,dhx->hx", x[i], P[s, behaviours[i]]) for i in range(length)])
        for s in range(3)
    )
    out = np.zeros((length, heads, width))
    for i in range(length):
        for h in range(heads):
            score, values = np.zeros(length), np.zeros((length, width))
            for j in range(length):
                real = behaviours[i] > 0 and behaviours[j] > 0
                c = (behaviours[i] - 1) * n_b + behaviours[j] if real else 0
                bilinear = q[i, h] @ M1[c, h] @ k[j, h] / np.sqrt(width)
                score[j] = bilinear + relative[c, slow_bucket(j - i), h] if real else -1e30
                values[j] = v[j, h] @ M2[c, h]
            out[i, h] = softmax(score, 0) @ values
    return out.reshape(length, d)


def slow_block(
    x: np.ndarray, behaviours: np.ndarray, w: dict[str, np.ndarray], n_b: int
) -> tuple[np.ndarray, np.ndarray]:
    """Attention output and state after a block, of one row."""
    attended = slow_attention(x, behaviours, w, n_b)
    x = norm(x + attended, w, "attention_norm")
    f = np.zeros_like(x)
    for i, b in enumerate(behaviours):
        if b > 0:
            inner, outer = (f"feed_forward.{layer}.{b - 1}" for layer in ("inner", "outer"))
            hidden = np.maximum(0, w[f"{inner}.weight"] @ x[i] + w[f"{inner}.bias"])
            f[i] = w[f"{outer}.weight"] @ hidden + w[f"{outer}.bias"]
    return attended, norm(x + f, w, "feed_forward_norm")


def slow_states(net: MBSTR, ids: Tensor, behaviours: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Attention outputs and states of all blocks, at every place."""
    x = net.items.weight.detach().numpy()[ids.numpy()]
    attended, states = [], [torch.tensor(x)]
    for block in net.blocks:
        w = {name: p.detach().numpy() for name, p in block.named_parameters()}
        rows = [slow_block(x[b], behaviours[b].numpy(), w, net.n_b) for b in range(len(x))]
        attended.append(torch.tensor(np.stack([row[0] for row in rows])))
        x = np.stack([row[1] for row in rows])
        states.append(torch.tensor(x))
    return attended, states


@pytest.fixture(scope="module")
def official() -> Pair:
    sidecar = json.loads((FIXTURES / "mbstr.json").read_text(encoding="utf8"))
    with np.load(FIXTURES / "mbstr.npz") as arrays:
        return Pair("mbstr", sidecar, {name: arrays[name] for name in arrays.files})


def test_pads_attend_uniformly_and_nothing_reads_them(official: Pair) -> None:
    net, behaviours = build(official), official.tensor("in/behaviors")
    attended, states = slow_states(net, official.tensor("in/input_ids"), behaviours)
    for number, state in enumerate(states):  # every place, padding too, as the official code has it
        official.compare(f"mid/hidden{number}", state)
    for number, state in enumerate(attended):
        official.compare(f"mid/attn{number}", state)
    pads = behaviours == 0
    assert states[1][pads].abs().min() > 0  # not zero after the first block
    alike = attended[0][pads & (torch.arange(4).unsqueeze(1) == 3)]
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))

    with torch.no_grad():  # other parameters of padding: other pads, the same events
        for block in net.blocks:
            block.attention.projection[:, 0] = 1.0
            block.attention.relative[0] = 5.0
            block.attention.alpha2[0] = torch.randn(2, 2)
    changed = slow_states(net, official.tensor("in/input_ids"), behaviours)[1][-1]
    torch.testing.assert_close(changed[~pads], states[-1][~pads])
    assert not torch.allclose(changed[pads], states[-1][pads])


@pytest.mark.parametrize("n_b", [1, 2, 3])
def test_states_are_those_of_the_card_for_any_number_of_behaviours(n_b: int) -> None:
    class Sized(MBSTR):
        behaviours = n_b

    torch.manual_seed(n_b)
    config = MBSTRConfig(hidden=12, heads=3, blocks=2)
    net = Sized(config, catalogue(length=9)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    behaviours = torch.randint(1, n_b + 1, (4, 10))
    behaviours *= torch.arange(10) >= torch.tensor([0, 3, 9, 6]).unsqueeze(1)
    ids = torch.randint(1, MASK + 1, (4, 10)) * (behaviours > 0)
    attended, states = slow_states(net, ids, behaviours)
    layout = net.layout(behaviours)
    x = net.embed(ids, layout)
    for block, wanted_attended, wanted in zip(net.blocks, attended, states[1:], strict=True):
        everything = (layout, layout.bias_rows(), layout.everything)
        real = behaviours > 0
        got = in_place(block.attention(x, *everything), layout)
        torch.testing.assert_close(got[real], wanted_attended[real])
        x = block(x, *everything)
        torch.testing.assert_close(in_place(x, layout)[real], wanted[real])


# --- input and attention -----------------------------------------------------------------------


def test_the_bucket_table_for_key_minus_query_from_minus_60_to_60() -> None:
    table = relative_bucket(torch.arange(-60, 61), 32, 40).tolist()
    assert table == [slow_bucket(r) for r in range(-60, 61)]
    at = dict(zip(range(-60, 61), table, strict=True))
    assert [at[-a] for a in range(9)] == list(range(9))  # single steps, then logarithmic
    assert at[-60] == at[-40] == 15
    assert at[1] == 17  # keys after the query: 16 and up
    assert at[40] == at[60] == 31
    assert 16 not in table  # no key is after the query at distance 0


def test_no_position_and_no_behaviour_is_added_to_the_input() -> None:
    net, given = model(), windows()
    layout = net.layout(given.behaviours)
    x = net.embed(given.ids, layout)
    assert torch.equal(x, net.items.weight[given.ids.flatten()[layout.place]])
    x = in_place(x, layout)
    assert torch.equal(x[0, 1], x[1, 4])  # masks: other places, same row
    swapped = net.layout(given.behaviours * 2 % 3)  # clicks and favors exchanged
    assert torch.equal(in_place(net.embed(given.ids, swapped), swapped), x)


def test_order_enters_through_the_relative_bias_alone() -> None:
    net = model()
    past, turned = history([1, 2, 3, 4]), history([4, 3, 2, 1])
    assert not torch.allclose(net.encode(past), net.encode(turned))
    with torch.no_grad():
        for block in net.blocks:
            block.attention.relative.zero_()
    torch.testing.assert_close(net.encode(past), net.encode(turned))


def test_pairs_are_directed_and_zero_where_either_is_padding() -> None:
    pairs = model().layout(torch.tensor([[0, 1, 2]])).pairs()
    assert pairs.tolist() == [[[0, 0, 0], [0, 1, 2], [0, 3, 4]]]


def test_attention_reads_both_directions() -> None:
    net, given = model(), windows()
    layout = net.layout(given.behaviours)
    later = given.ids.clone()
    later[0, 4] = 2
    states = [
        in_place(net.blocks[0](net.embed(ids, layout), layout, layout.bias_rows(),
                               layout.everything), layout)
        for ids in (given.ids, later)
    ]  # fmt: skip
    assert not torch.allclose(states[0][0, 0], states[1][0, 0])


def test_values_are_transformed_by_pair_and_not_projected_afterwards() -> None:
    net, given = model(), windows()
    layout = net.layout(given.behaviours)
    attention = net.blocks[0].attention
    x = net.embed(given.ids, layout)
    arguments = (x, layout, layout.bias_rows(), layout.everything)
    before = attention(*arguments)
    with torch.no_grad():
        attention.alpha2[3] += torch.tensor([5.0, -5.0]).unsqueeze(1)  # pair favor <- click
    change = in_place((attention(*arguments) - before).abs(), layout).amax(2)
    favors = given.behaviours == FAVOR
    assert (change[favors] > 0).all()
    assert change[~favors].max() == 0
    with torch.no_grad():
        attention.W2.zero_()
    assert attention(*arguments).abs().max() == 0  # no bias behind it
    assert {name for name, _ in attention.named_parameters()} == {
        "projection", "W1", "W2", "alpha1", "alpha2", "relative",
    }  # fmt: skip


def test_each_event_goes_through_the_feed_forward_network_of_its_behaviour() -> None:
    net, x = model(), torch.randn(5, HIDDEN).double()
    feed_forward = net.blocks[0].feed_forward
    before = feed_forward(x, [3, 2])
    with torch.no_grad():
        feed_forward.outer[1].bias += 1
    torch.testing.assert_close(feed_forward(x, [3, 2]) - before, torch.ones(5, 1).double() *
                               torch.tensor([[0], [0], [0], [1], [1]]).expand(5, HIDDEN))  # fmt: skip


def test_the_last_block_makes_what_is_read_and_nothing_else_changes() -> None:
    net, given = model(blocks=3), windows()
    layout = net.layout(given.behaviours)
    read = layout.read_places(given.labels > 0)
    all_places = net.predict(given.ids, layout, layout.everything)
    torch.testing.assert_close(net.predict(given.ids, layout, read), all_places[read.event])


# --- head and loss -----------------------------------------------------------------------------


def test_the_head_is_a_residual_around_the_norm_of_linear_experts() -> None:
    net = model(shared_experts=2, specific_experts=2)
    head, x = net.head, torch.randn(4, HIDDEN).double()
    out = head(x, [3, 1])
    for number, behaviour in ((0, 0), (3, 1)):
        gate = (x[number] @ head.gates[behaviour]).softmax(0)
        experts = torch.cat([head.shared(x[number]), head.specific[behaviour](x[number])])
        mixture = gate @ experts.view(4, HIDDEN)  # linear: no activation
        torch.testing.assert_close(out[number], x[number] + head.norm(mixture))
    with torch.no_grad():
        for linear in (head.shared, *head.specific):
            linear.weight.zero_()
            linear.bias.zero_()
    torch.testing.assert_close(head(x, [3, 1]), x)


def test_a_masked_event_is_predicted_by_the_head_of_its_own_behaviour() -> None:
    net, given = model(), windows()
    layout = net.layout(given.behaviours)
    read = layout.read_places(given.labels > 0)
    before = net.predict(given.ids, layout, read)
    with torch.no_grad():
        net.head.specific[FAVOR - 1].weight += torch.randn(HIDDEN, HIDDEN)
    changed = (net.predict(given.ids, layout, read) != before).any(1)
    assert changed.tolist() == [False] * read.counts[0] + [True] * read.counts[1]
    assert read.counts == [2, 2]


def test_the_softmax_has_the_padding_column_and_not_the_mask_column() -> None:
    net, given = model(), windows()
    layout = net.layout(given.behaviours)
    read = layout.read_places(given.labels > 0)
    out = net.predict(given.ids, layout, read)
    target = given.labels.flatten()[read.place]
    loss = functional.cross_entropy(out @ net.items.weight[:MASK].T, target)
    torch.testing.assert_close(net.masked_loss(given), loss)
    without = functional.cross_entropy(out @ net.items.weight[1:MASK].T, target - 1)
    with_mask = functional.cross_entropy(out @ net.items.weight[: MASK + 1].T, target)
    assert (loss - without).abs() > 1e-3
    assert (loss - with_mask).abs() > 1e-3


def test_no_masked_event_at_all_gives_zero_and_not_nan() -> None:
    net, given = model(), windows()
    loss = net.masked_loss(Windows(given.ids, given.behaviours, torch.zeros_like(given.labels)))
    loss.backward()
    assert loss == 0
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_exactly_one_masked_event_is_a_batch_like_any_other() -> None:
    net, given = model(), windows()
    labels = torch.zeros_like(given.labels)
    labels[0, 1] = 4
    assert torch.isfinite(net.masked_loss(Windows(given.ids, given.behaviours, labels)))


# --- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "h", "blocks"), [(16, 2, 2), (32, 4, 3)])
def test_parameter_count(d: int, h: int, blocks: int) -> None:
    net = model(hidden=d, heads=h, blocks=blocks)
    V, n_b = ITEMS, 2
    pairs = n_b**2 + 1
    block = 3 * (n_b + 1) * d**2 + 2 * n_b * d**2 // h + 2 * pairs * n_b * h + 32 * h * pairs
    block += n_b * (8 * d**2 + 5 * d) + 4 * d
    head = (3 + n_b) * (d**2 + d) + 4 * n_b * d + 2 * d
    expected = (V + 1 + n_b) * d + blocks * block + head
    assert sum(p.numel() for p in net.parameters()) == expected


def test_every_parameter_gets_a_gradient_but_paddings_and_the_unused_rows() -> None:
    net = model().train()
    with torch.no_grad():
        for block in net.blocks:  # large enough that no ReLU is dead for all events
            for linear in block.feed_forward.inner:
                linear.weight.normal_()
    net.prepare(records(*[[i + 1, -(i + 2), i + 3, -(i + 4), i + 5] for i in range(9)]))
    net.loss(batch(9))["cross_entropy"].backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert grads.keys() == dict(net.named_parameters()).keys()
    for name, grad in grads.items():
        assert torch.isfinite(grad).all(), name
        assert grad.abs().max() > 0, name
    table = grads["items.weight"].abs().amax(1)
    assert table[0] == 0  # padding
    assert (table[1 : MASK + 1] > 0).all()  # items (all are classes), mask
    assert (table[MASK + 1 :] == 0).all()  # n_b - 1 rows that nothing uses
    for block in range(2):
        name = f"blocks.{block}.attention"
        assert grads[f"{name}.projection"][:, 0].abs().max() == 0
        assert (grads[f"{name}.projection"][:, 1:].abs().amax((2, 3, 4)) > 0).all()
        for table_of_pairs in ("alpha1", "alpha2", "relative"):
            grad = grads[f"{name}.{table_of_pairs}"].abs().amax((1, 2))
            assert grad[0] == 0  # pairs with padding
            assert (grad[1:] > 0).all()


def test_the_padding_row_is_zero_and_never_trained() -> None:
    net = model().train()
    net.prepare(records([1, -2, 3, 4, -5], [6, -7, 8]))
    optimiser = net.optimiser()
    for seed in range(3):
        optimiser.zero_grad()
        net.loss(batch(2, seed))["cross_entropy"].backward()
        optimiser.step()
    assert net.items.weight[0].abs().max() == 0


def test_starting_values() -> None:
    net = model(hidden=64)
    attention, network = net.blocks[0].attention, net.blocks[0].feed_forward
    assert abs(net.items.weight[1:].std() - 0.02) < 0.002
    assert abs(attention.projection.std() - 0.02) < 0.002
    assert abs(network.inner[0].weight.std() - 0.02) < 0.002
    assert network.inner[0].bias.abs().max() == network.outer[1].bias.abs().max() == 0
    for name in ("W1", "W2", "relative"):
        assert abs(getattr(attention, name).std() - 1) < 0.15
    assert abs(net.head.gates.std() - 1) < 0.15


def test_defaults_and_decay_is_adams_l2() -> None:
    config = MBSTRConfig()
    assert (config.hidden, config.heads, config.blocks, config.expansion) == (16, 2, 2, 4)
    assert (config.dropout, config.mask_probability) == (0.2, 0.2)
    assert (config.learning_rate, config.weight_decay) == (1e-3, 1e-6)
    assert (config.shared_experts, config.specific_experts) == (3, 1)
    optimiser = model().optimiser()
    assert type(optimiser) is torch.optim.Adam
    assert optimiser.param_groups[0]["weight_decay"] == 1e-6
    assert not optimiser.param_groups[0].get("decoupled_weight_decay", False)


# --- training samples --------------------------------------------------------------------------


def draw(net: MBSTR, train: Interactions, seed: int = 0) -> Windows:
    net.prepare(train)
    users = len(train.offsets) - 1
    return net.draw_windows(torch.arange(users), torch.Generator().manual_seed(seed))


def test_masked_ids_keep_their_behaviour_and_the_label_is_the_true_item() -> None:
    rows = [[1 + (u + i) % ITEMS for i in range(LENGTH + 1)] for u in range(200)]
    got = draw(model(drops=False), records(*rows))
    items = torch.tensor(rows)
    masked = got.labels > 0
    assert torch.equal(got.ids, torch.where(masked, MASK, items))
    assert torch.equal(got.labels, items * masked)
    assert (got.behaviours == CLICK).all()
    assert masked.any(1).all()  # at least one a sample
    n = LENGTH + 1
    expected = 0.2 + 0.8**n / n  # each event, and the one that is forced when none was masked
    assert abs(masked.double().mean() - expected) < 0.03
    assert (masked.double().mean(0) - expected).abs().max() < 0.12  # no place is preferred


def test_the_forced_mask_is_uniform_over_the_targets() -> None:
    rows = [[1, 2, 3, 4]] * 4000
    got = draw(model(mask_probability=0.0), records(*rows))
    assert (got.labels > 0).sum(1).tolist() == [1] * 4000
    assert ((got.labels > 0).double().mean(0) - 0.25).abs().max() < 0.03


def test_events_that_are_no_training_targets_are_never_masked() -> None:
    """Reading P3 `favor`, for one, makes the favors the only targets (predict_only_target)."""
    rows = [[1, -2, 3, -4, 5]] * 500 + [[6, 7]]
    train = records(*rows, target=[item < 0 for row in rows for item in row])
    got = draw(model(mask_probability=0.5), train)
    assert set(got.labels.unique().tolist()) == {0, 2, 4}
    assert (got.labels[:-1] > 0).any(1).all()
    assert got.labels[-1].sum() == 0  # nothing to mask: the sample adds nothing to the loss
    assert got.ids[-1].tolist()[-2:] == [6, 7]


def test_a_long_record_gives_its_last_window_or_a_uniformly_drawn_one() -> None:
    long = list(range(1, 13))  # 12 events, windows of 7 start at 0..5
    got = draw(model(), records(*[long] * 6000))
    full = torch.where(got.labels > 0, got.labels, got.ids)
    start = full[:, 0] - 1
    assert torch.equal(full, start.unsqueeze(1) + torch.arange(1, 8))
    share = torch.bincount(start, minlength=6) / 6000
    assert len(share) == 6
    assert abs(share[5] - (0.8 + 0.2 / 6)) < 0.02
    assert (share[:5] - 0.2 / 6).abs().max() < 0.012


def test_a_short_record_is_kept_whole_and_left_padded() -> None:
    got = draw(model(), records([1, 2, 3], [4, -5, 6, 7, 8, 9, 10]))
    assert got.ids.shape == (2, 7)
    assert got.ids[0, :4].sum() == 0
    assert got.behaviours[0, :4].sum() == 0
    full = torch.where(got.labels > 0, got.labels, got.ids)
    assert full.tolist() == [[0, 0, 0, 0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]


def test_the_same_generator_gives_the_same_samples() -> None:
    train = records(*[list(range(1, 15))] * 50)
    first, again, other = (draw(model(), train, seed) for seed in (1, 1, 2))
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)


def random_records(users: int = 300) -> Interactions:
    """Few items, so that most are touched more than once."""
    generator = torch.Generator().manual_seed(5)
    items = torch.randint(1, 6, (users, 9), generator=generator)
    favor = torch.rand(users, 9, generator=generator) < 0.3
    return records(*(items * torch.where(favor, -1, 1)).tolist())


def test_under_drop_no_visible_event_names_an_item_that_is_masked_in_its_window() -> None:
    got = draw(model(), random_records())
    named = (got.ids.unsqueeze(2) == got.labels.unsqueeze(1)) & (got.labels > 0).unsqueeze(1)
    assert not named.any()
    kept = draw(model(drops=False), random_records())
    named = (kept.ids.unsqueeze(2) == kept.labels.unsqueeze(1)) & (kept.labels > 0).unsqueeze(1)
    assert named.any()  # the test can see a leak


def test_under_drop_the_window_closes_up_and_keeps_its_order() -> None:
    train = random_records()
    dropped, kept = draw(model(), train), draw(model(drops=False), train)
    for row in range(300):  # same stream, same masks: only the own events are gone
        masked = set(kept.labels[row].tolist()) - {0}
        events = zip(*(x[row].tolist() for x in (kept.ids, kept.behaviours, kept.labels)),
                     strict=True)  # fmt: skip
        expected = [event for event in events if event[0] > 0 and event[0] not in masked]
        got = list(zip(*(x[row].tolist() for x in (dropped.ids, dropped.behaviours,
                                                   dropped.labels)), strict=True))  # fmt: skip
        assert got == [(0, 0, 0)] * (len(got) - len(expected)) + expected


def test_which_events_stay() -> None:
    items = torch.tensor([[0, 1, 2, 1, 3, 2, 1]])
    masked = torch.tensor([[False, False, False, True, False, False, True]])
    assert drop_own_events(items, masked).int().tolist() == [[0, 0, 1, 1, 1, 1, 1]]
    assert keep_own_events(items, masked).int().tolist() == [[0, 1, 1, 1, 1, 1, 1]]


def test_own_earlier_events_do_not_change_the_loss_under_drop() -> None:
    with_click = records([1, 9, 2, 9, 3, -9], target=[False] * 5 + [True])
    without = records([1, 2, 3, -9], target=[False] * 3 + [True])
    losses = []
    for drops, train in ((True, with_click), (True, without), (False, with_click)):
        net = model(drops=drops)
        net.prepare(train)
        losses.append(net.loss(batch(1))["cross_entropy"])
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.allclose(losses[2], losses[1])


def test_windows_are_made_of_whole_records_not_of_the_batchs_histories() -> None:
    net = model()
    net.prepare(records([1, -2, 3], [4, 5]))
    assert torch.isfinite(net.loss(batch(2))["cross_entropy"])
    assert not {name for name in net.state_dict() if "train" in name or "bucket" in name}


# --- scoring -----------------------------------------------------------------------------------


def test_scoring_reads_a_favor_mask_behind_the_history() -> None:
    net = model()
    items, behaviours = signed([[1, -2, 3]])
    ids = torch.cat([items, torch.tensor([[MASK]])], dim=1)
    layout = net.layout(torch.cat([behaviours, torch.tensor([[FAVOR]])], dim=1))
    state = net.predict(ids, layout, layout.everything)
    place = (layout.place == 3).nonzero().item()
    torch.testing.assert_close(net.encode(history([1, -2, 3]))[0], state[place])
    encoded = net.encode(history([1, -2, 3]))
    torch.testing.assert_close(net.score_all(encoded), encoded @ net.items.weight[:MASK].T)


def test_all_events_of_a_full_history_are_seen_although_the_mask_takes_a_slot() -> None:
    net = model()
    full = [1, 2, 3, 4, 5, 6]
    assert len(full) == LENGTH
    assert not torch.allclose(net.encode(history(full)), net.encode(history([7, *full[1:]])))
    torch.testing.assert_close(net.encode(history([9, *full])), net.encode(history(full)))


def test_trimming_and_padding_change_nothing() -> None:
    net = model()
    expected = net.encode(history(*ROWS))
    torch.testing.assert_close(net.encode(history(*ROWS, padding=5)), expected)
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(net.encode(history(row))[0], expected[number])
    given = windows()
    wider = Windows(*(functional.pad(x, (2, 0)) for x in (given.ids, given.behaviours,
                                                          given.labels)))  # fmt: skip
    torch.testing.assert_close(net.masked_loss(wider), net.masked_loss(given))


def test_an_empty_history_is_the_mask_alone() -> None:
    net = model()
    user = net.encode(history([]))
    assert torch.isfinite(net.score_all(user)).all()
    alone = net.encode(history([1], []))[1]
    torch.testing.assert_close(user[0], alone)


def test_behaviours_of_the_history_matter() -> None:
    net = model()
    assert not torch.allclose(net.encode(history([1, 2, 3])), net.encode(history([1, -2, 3])))


def test_one_batch_can_be_learned() -> None:
    torch.manual_seed(0)
    net = MBSTR(MBSTRConfig(hidden=16, dropout=0.0, learning_rate=1e-2), catalogue())
    rows = [[3, 4, -5], [6, 7, -8], [9, 10, -11], [12, 13, -14]]
    train = records(*rows, target=[item < 0 for row in rows for item in row])
    net.prepare(train)
    optimiser = net.optimiser()
    for step in range(150):
        optimiser.zero_grad()
        loss = net.loss(batch(4, step))["cross_entropy"]
        loss.backward()
        optimiser.step()
    assert loss < 0.05
    scores = net.eval().score_all(net.encode(history([3, 4], [6, 7], [9, 10], [12, 13])))
    assert scores[:, 1:].argmax(1).add(1).tolist() == [5, 8, 11, 14]


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide"):
        model(heads=3)


def test_it_learns_a_cascade_of_clicks_and_favors() -> None:
    """Above MostPopular, and above itself where it sees favors alone."""

    def trained(world: planted.World, seed: int) -> float:
        net = planted.trained(
            lambda catalogue: MBSTR(MBSTRConfig(hidden=16, learning_rate=5e-3), catalogue),
            world, seed, epochs=10, batch_size=32,
        )  # fmt: skip
        return planted.ndcg_at_10(net, world)

    worlds = [planted.cascade(seed, favors=2) for seed in planted.SEEDS]
    ours = np.mean([trained(world, seed) for seed, world in enumerate(worlds)])
    blind = [trained(planted.without_clicks(world), seed) for seed, world in enumerate(worlds)]
    assert ours > np.mean([planted.most_popular(world) for world in worlds]) + 0.2
    assert ours > np.mean(blind) + 0.15
