"""MMMLP: the facts that ports get wrong, each named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.mmmlp import (
    BPR,
    MMMLP,
    Align,
    Fusion,
    MMMLPConfig,
    ModalityPasses,
    Objective,
    PadRow,
    Reads,
)
from models.interface import Batch, Behaviour, Catalogue, History
from tests import planted

ITEMS, SLOTS, WIDTH, HIDDEN = 20, 6, 5, 8


def catalogue(slots: int = SLOTS) -> Catalogue:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, ITEMS + 1, WIDTH, generator=generator)
    vectors[:, 0] = 0
    vectors[:, 5] = 0  # an item without picture and text
    present = torch.ones(ITEMS + 1, dtype=torch.bool)
    present[[0, 5]] = False
    return Catalogue(ITEMS, ITEMS, slots, vectors[0], present, vectors[1], present, {}, True)


def model(seed: int = 0, **settings: object) -> MMMLP:
    torch.manual_seed(seed)
    config = MMMLPConfig(hidden=HIDDEN, **settings)  # type: ignore[arg-type]
    return MMMLP(config, catalogue()).double().eval()


def history(*rows: Sequence[int], padding: int = 0) -> History:
    """Rows of items, favor where negative."""
    width = max(1, *(len(row) for row in rows)) + padding
    signed = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    kind = torch.where(signed < 0, int(Behaviour.FAVOR), int(Behaviour.CLICK)) * (signed != 0)
    return History(torch.arange(len(rows)), signed.abs(), kind)


def batch(past: History, *targets: int) -> Batch:
    ones = torch.ones(len(targets), 1)
    generator = torch.Generator().manual_seed(0)
    return Batch(past, torch.tensor(targets).unsqueeze(1), 1 - ones, ones, generator)


ROWS = ([1, -2, 3], [4], [5, 6, -7, 8, 9, 10, -11, 12], [], [13, 13, -13])


def outputs(net: MMMLP, past: History) -> tuple[list[Tensor], Tensor]:
    """All slots of all branches, and the slot that is read."""
    arranged, latest = net.arrange(past)
    branches = (net.id_branch, net.text_branch, net.image_branch)
    pairs = zip(branches, net.inputs(arranged), strict=True)
    return [branch(x) for branch, x in pairs], latest


def test_all_id_passes_share_one_set_of_weights() -> None:
    one, three = model(id_passes=1), model(id_passes=3)
    assert [p.shape for p in one.parameters()] == [p.shape for p in three.parameters()]
    x = torch.randn(2, SLOTS, HIDDEN, dtype=torch.float64)
    once = one.id_branch(x)
    mixer = one.id_branch.mixer
    torch.testing.assert_close(three.id_branch(x), mixer(mixer(once)))
    assert not torch.allclose(once, mixer(once))


def test_the_modality_loop_of_four_feeds_the_same_input_and_is_one_pass() -> None:
    net, four = model(), model(modality_passes=ModalityPasses.four)
    x = torch.randn(2, SLOTS, HIDDEN, dtype=torch.float64)
    start = net.text_branch.norm(x)
    for _ in range(4):  # the authors' loop: each round starts from the same input
        out = net.text_branch.mixer(start)
    torch.testing.assert_close(net.text_branch(x), out, rtol=0, atol=0)
    for branch in (four.text_branch, four.image_branch):
        stacked = branch.norm(x)
        for _ in range(4):
            stacked = branch.mixer(stacked)
        torch.testing.assert_close(branch(x), stacked)
    assert not torch.allclose(four.text_branch(x), out)


def test_the_padding_vector_is_random_and_mixed_in_like_an_item() -> None:
    net = model()
    assert net.items.weight[0].abs().min() > 0
    assert net.items.weight[0].abs().max() < 0.02 * 6
    short, full = history([1, 2, 3]), history([1, 2, 3, 4, 5, 6])
    before = [net.encode(past) for past in (short, full)]
    with torch.no_grad():
        net.items.weight[0] += torch.randn(HIDDEN)
    after = [net.encode(past) for past in (short, full)]
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


def test_m1_zero_padding_row() -> None:
    net = model(pad_row=PadRow.zero)
    assert net.items.weight[0].abs().max() == 0
    sum(net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5)).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", Objective)
def test_the_padding_vector_is_never_trained(objective: Objective) -> None:
    net = model(objective=objective).train()
    before = net.items.weight[0].clone()
    optimiser = net.optimiser()
    for _ in range(3):
        optimiser.zero_grad()
        sum(net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5)).values()).backward()
        optimiser.step()
    assert torch.equal(net.items.weight[0], before)
    assert not torch.equal(net.items.weight[1], model().items.weight[1])


def test_the_input_norm_of_the_id_branch_is_the_norm_of_the_user_vector() -> None:
    net, past = model(), history(*ROWS)
    places, latest = outputs(net, past)
    fused = net.fusion(torch.cat(places, dim=2))[torch.arange(len(ROWS)), latest]
    torch.testing.assert_close(net.encode(past), net.id_branch.norm(fused))
    norms = sum(isinstance(part, torch.nn.LayerNorm) for part in net.modules())
    assert norms == 3 * 3 + 1  # input, token and channel of each branch, and the fusion's


@pytest.mark.parametrize("fusion", Fusion)
@pytest.mark.parametrize("align", Align)
def test_reading_one_slot_equals_computing_all(fusion: Fusion, align: Align) -> None:
    net, past = model(fusion=fusion, align=align, id_passes=3), history(*ROWS)
    places, latest = outputs(net, past)
    fused = net.fusion(torch.cat(places, dim=2))[torch.arange(len(ROWS)), latest]
    torch.testing.assert_close(net.encode(past), net.id_branch.norm(fused))


def test_m3_the_fusion_mixer_mixes_the_normed_branches_over_slots() -> None:
    net, past = model(fusion=Fusion.mixer), history(*ROWS)
    places, latest = outputs(net, past)
    wide = net.fusion.norm(torch.cat(places, dim=2))
    expected = net.fusion.linear(net.fusion.mixer(wide))[torch.arange(len(ROWS)), latest]
    torch.testing.assert_close(net.encode(past), net.id_branch.norm(expected))


def test_scores_are_dot_products_with_the_tied_table_without_bias() -> None:
    net, past = model(), history(*ROWS)
    user = net.encode(past)
    torch.testing.assert_close(net.score_all(user), user @ net.items.weight.T)
    some = torch.tensor([[3, 1, 3]]).expand(len(ROWS), -1)
    torch.testing.assert_close(net.score(user, some), net.score_all(user).gather(1, some))


def test_vectors_of_candidates_are_not_used() -> None:
    net, past = model(), history([1, 2, 3])
    scores = net.score_all(net.encode(past))
    for vectors in (net.text_vectors.vectors, net.image_vectors.vectors):
        vectors[4:] = 7.0
    assert torch.equal(scores, net.score_all(net.encode(past)))


def test_cross_entropy_runs_over_all_rows_padding_included() -> None:
    net, past = model(), history(*ROWS)
    logits = net.encode(past) @ net.items.weight.T
    targets = torch.tensor([1, 2, 3, 4, 20])
    loss = net.loss(batch(past, *targets.tolist()))["cross_entropy"]
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets))
    without = functional.cross_entropy(logits[:, 1:], targets - 1)
    assert (loss - without).abs() > 1e-3


def test_bpr_compares_with_one_other_item() -> None:
    net, past = model(objective=Objective.bpr), history(*ROWS)
    user = net.encode(past)
    positive, negative = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6, 7, 8, 9, 10])
    scores = net.score_all(user)
    difference = scores.gather(1, positive[:, None]) - scores.gather(1, negative[:, None])
    expected = -(1e-10 + difference.sigmoid()).log().mean()
    torch.testing.assert_close(BPR.of_pair(user, net.items.weight, positive, negative), expected)

    drawn: list[Tensor] = []

    class Spy(BPR):
        @staticmethod
        def of_pair(user: Tensor, table: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            drawn.append(negative)
            return BPR.of_pair(user, table, positive, negative)

    targets = torch.arange(2000) % ITEMS + 1
    Spy()(torch.zeros(2000, HIDDEN).double(), net.items.weight, batch(past, *targets.tolist()))
    assert (drawn[0] != targets).all()
    assert set(drawn[0].tolist()) == set(range(1, ITEMS + 1))


def test_position_mixing_starts_uniform_and_everything_else_at_002() -> None:
    torch.manual_seed(0)
    net = MMMLP(MMMLPConfig(hidden=64), catalogue(slots=40))
    for branch in (net.id_branch, net.text_branch, net.image_branch):
        for linear in (branch.mixer.token_in, branch.mixer.token_out):
            bound = linear.in_features**-0.5
            for start in (linear.weight, linear.bias):
                assert start.abs().max() <= bound
                assert start.abs().max() > 0.9 * bound
                assert abs(start.std() - bound / 3**0.5) < 0.1 * bound
        for linear in (branch.mixer.channel_in, branch.mixer.channel_out):
            assert abs(linear.weight.std() - 0.02) < 0.002
            assert linear.bias.abs().max() == 0
    for linear in (net.fusion.linear, net.text_vectors.map, net.image_vectors.map):
        assert abs(linear.weight.std() - 0.02) < 0.003
    assert abs(net.items.weight.std() - 0.02) < 0.002


def test_norms_at_the_ends_have_a_smaller_eps_than_those_in_the_mixers() -> None:
    net = model()
    for branch in (net.id_branch, net.text_branch, net.image_branch):
        assert branch.norm.eps == 1e-12
        assert branch.mixer.token_norm.eps == branch.mixer.channel_norm.eps == 1e-5
    assert net.fusion.norm.eps == 1e-12


def test_modality_maps_have_no_bias_so_missing_vectors_stay_zero() -> None:
    net = model()
    assert net.text_vectors.map.bias is None
    assert net.image_vectors.map.bias is None
    arranged, _ = net.arrange(history([5, 1]))  # item 5 has neither
    _, text, image = net.inputs(arranged)
    for slots in (text, image):
        assert slots[0, 0].abs().max() == 0
        assert slots[0, 1].abs().max() > 0
        assert slots[0, 2:].abs().max() == 0  # padding


def test_the_oldest_event_stands_in_the_first_slot_and_padding_on_the_right() -> None:
    arranged, latest = model().arrange(history(*ROWS))
    assert arranged.items.tolist() == [
        [1, 2, 3, 0, 0, 0],
        [4, 0, 0, 0, 0, 0],
        [7, 8, 9, 10, 11, 12],
        [0, 0, 0, 0, 0, 0],
        [13, 13, 13, 0, 0, 0],
    ]
    assert arranged.behaviours[0].tolist() == [1, 2, 1, 0, 0, 0]
    assert latest.tolist() == [2, 0, 5, 0, 2]


def test_m5_right_alignment_reads_the_last_slot() -> None:
    arranged, latest = model(align=Align.right).arrange(history(*ROWS))
    assert arranged.items[0].tolist() == [0, 0, 0, 1, 2, 3]
    assert latest.tolist() == [5] * 5
    left, right = model(), model(align=Align.right)
    assert not torch.allclose(left.encode(history([1, 2])), right.encode(history([1, 2])))


@pytest.mark.parametrize("align", Align)
def test_trimming_and_padding_change_nothing(align: Align) -> None:
    net = model(align=align)
    expected = net.encode(history(*ROWS))
    torch.testing.assert_close(net.encode(history(*ROWS, padding=5)), expected, rtol=0, atol=0)
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(net.encode(history(row))[0], expected[number])


def test_an_empty_history_is_read_at_slot_0_of_padding_alone() -> None:
    net = model()
    user = net.encode(history([]))
    arranged, latest = net.arrange(history([]))
    assert arranged.items.sum() == 0
    assert latest.item() == 0
    places = [
        branch(x)
        for branch, x in zip(
            (net.id_branch, net.text_branch, net.image_branch), net.inputs(arranged), strict=True
        )
    ]
    torch.testing.assert_close(user, net.id_branch.norm(net.fusion(torch.cat(places, 2))[:, 0]))
    assert torch.isfinite(net.score_all(user)).all()


def test_m4_behaviours_are_merged_or_favors_alone_or_typed() -> None:
    clicks, mixed = history([1, 2, 3]), history([1, -2, 3])
    merged, favor_only, typed = (model(behaviors=reads) for reads in Reads)
    torch.testing.assert_close(merged.encode(clicks), merged.encode(mixed), rtol=0, atol=0)
    torch.testing.assert_close(favor_only.encode(mixed), favor_only.encode(history([-2])))
    torch.testing.assert_close(favor_only.encode(clicks), favor_only.encode(history([])))
    assert not torch.allclose(typed.encode(clicks), typed.encode(mixed))
    arranged, _ = typed.arrange(mixed)
    items = typed.items(arranged.items)
    added = typed.inputs(arranged)[0] - items
    kinds = typed.typing.vectors.weight
    torch.testing.assert_close(added[0, :3], kinds[[1, 2, 1]])
    assert added[0, 3:].abs().max() == 0  # padding has no behaviour


def test_parameter_count() -> None:
    net = MMMLP(MMMLPConfig(hidden=128), catalogue(slots=50))
    N, L, H = ITEMS + 1, 50, 128
    official = N * H + 3 * (8 * L**2 + 5 * L + 8 * H**2 + 11 * H) + 3 * H**2 + 7 * H
    maps = 2 * WIDTH * H  # ours, from the vectors' width to H
    assert sum(p.numel() for p in net.parameters()) == official + maps


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fusion": Fusion.mixer},
        {"behaviors": Reads.typed},
        {"modality_passes": ModalityPasses.four},
        {"objective": Objective.bpr},
        {"align": Align.right},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(settings: dict[str, object]) -> None:
    net = model(**settings).train()
    sum(net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5)).values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert net.items.weight.grad is not None
    assert net.items.weight.grad[0].abs().max() == 0  # padding, the only row without one


def test_one_batch_can_be_learned() -> None:
    torch.manual_seed(1)
    net = MMMLP(MMMLPConfig(hidden=16, dropout=0.0, learning_rate=3e-3), catalogue())
    samples = batch(history(*ROWS), 1, 2, 3, 4, 5)
    optimiser = net.optimiser()
    for _ in range(300):
        optimiser.zero_grad()
        loss = sum(net.loss(samples).values())
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    scores = net.eval().score_all(net.encode(samples.history))
    assert scores[:, 1:].argmax(1).add(1).tolist() == [1, 2, 3, 4, 5]


def test_defaults() -> None:
    config = MMMLPConfig()
    assert (config.hidden, config.learning_rate, config.weight_decay) == (128, 1e-4, 0)
    assert (config.id_passes, config.dropout, config.expansion) == (2, 0.5, 4)
    for name, first in (("pad_row", PadRow), ("modality_passes", ModalityPasses),
                        ("fusion", Fusion), ("behaviors", Reads), ("align", Align),
                        ("objective", Objective)):  # fmt: skip
        assert getattr(config, name) is next(iter(first))


def test_no_pass_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="0 mixer passes"):
        model(id_passes=0)


def test_vectors_of_a_history_without_records_tell_the_taste() -> None:
    """Candidates are scored by their ids, so the histories are the cold ones here."""
    with_vectors, without, popular = [], [], []
    config = MMMLPConfig(hidden=32, id_passes=1, learning_rate=3e-3, dropout=0.1)
    for seed in planted.SEEDS:
        world = planted.past(seed)
        for one, found in (
            (world, with_vectors),
            (planted.without_content(world), without),
        ):
            net = planted.trained(
                lambda catalogue: MMMLP(config, catalogue), one, seed, epochs=4, batch_size=128
            )
            found.append(planted.ndcg_at_10(net, one))
        popular.append(planted.most_popular(world))
    mean = sum(with_vectors) / 3
    assert mean > sum(without) / 3 + 0.25
    assert mean > sum(popular) / 3 + 0.25
