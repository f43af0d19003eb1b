"""EBM / END4Rec: the facts most often got wrong, each named, all options, stages, strength."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.ebm import (
    EBM,
    BlockMLP,
    CompactnessOf,
    ComplexBlockMLP,
    ComplexFusion,
    EBMConfig,
    EmbeddingNorm,
    FilterFusion,
    FinalMiner,
    Fusion,
    HardEliminator,
    KeepLogits,
    LastToken,
    Prediction,
    Rate,
    RealFusion,
    Residual,
    SoftFilter,
    Stage,
    StagePath,
    Stages,
    Threshold,
    Transform,
    Variant,
    binary_loss,
    coding_rate,
    contrast,
    full_time,
    over_time,
    over_time_and_channels,
    preference,
)
from models.interface import Batch, Behaviour, History, Samples
from tests import planted, worlds
from tests.parity.adapters import ebm as adapter
from tests.parity.pairs import load

D, L = 16, worlds.LENGTH
OPTIONS: dict[str, type[Enum]] = {
    "embedding_norm": EmbeddingNorm, "fusion": Fusion, "residual": Residual,
    "compactness_of": CompactnessOf, "preference_rate": Rate, "threshold": Threshold,
    "keep_logits": KeepLogits, "last_token": LastToken, "transform": Transform,
    "final_miner": FinalMiner, "prediction": Prediction, "stages": Stages,
    "stage_path": StagePath, "variant": Variant,
}  # fmt: skip


def build(seed: int = 0, stage: int | None = None, **options: object) -> EBM:
    """A narrow model in float64, weights away from their start, in its last stage or another."""
    torch.manual_seed(seed)
    config = EBMConfig(**{"hidden": D, "dropout": 0.0, **options})  # type: ignore[arg-type]
    model = EBM(config, worlds.catalogue()).double()
    model.prepare(worlds.records())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if config.variant is not Variant.released:
            model.embedding.item[0] = 0
            model.embedding.behaviour[0] = 0
    model.stage += len(model.plan) - 1 if stage is None else stage
    model.begin_epoch(0, torch.Generator())
    return model.eval()


def prefixes(seed: int = 0) -> Batch:
    batch = worlds.batches(worlds.records(), Samples.prefix, seed=seed)[0]
    return replace(batch, generator=torch.Generator().manual_seed(seed))


def total(model: EBM, batch: Batch) -> Tensor:
    return torch.stack(list(model.loss(batch).values())).sum()


def changed(options: dict[str, type[Enum]] = OPTIONS) -> Iterator[tuple[str, Enum]]:
    for name, kind in options.items():
        yield from ((name, value) for value in list(kind)[1:])


# P1, P2 -----------------------------------------------------------------------------------------


def test_the_newest_event_has_the_last_position_and_rows_of_padding_are_zero() -> None:
    model = build()
    with torch.no_grad():
        model.embedding.after[0].bias.add_(1.0)
    trimmed = worlds.history([worlds.clicks([4, 2]), worlds.favors([7])])
    short, padded = model.embedding(trimmed), model.embedding(trimmed.padded(L))
    torch.testing.assert_close(short, padded[:, -2:])
    assert not padded[:, : L - 2].any()
    assert not short[1, 0].any()


def test_transforms_run_over_all_columns_whatever_a_batch_was_trimmed_to() -> None:
    model, history = build(), worlds.case_history()
    rows = [worlds.clicks([4, 2]), worlds.favors([7])]
    for read in (history, worlds.history(rows)):
        torch.testing.assert_close(model.encode(read), model.encode(read.padded(L)))
    # and the columns matter: the same events in a shorter time are not the same
    S = torch.randn(1, 3, D, dtype=torch.float64)
    fusion = model.miner.layers[0].fusion
    assert (fusion(full_time(S, L))[0][:, -3:] - fusion(S)[0]).abs().max() > 1e-3


def test_histories_longer_than_the_catalogue_says_are_cut_to_the_newest() -> None:
    model = build()
    events = worlds.clicks(list(range(1, 13)))
    long, short = worlds.history([events]), worlds.history([events[-L:]])
    torch.testing.assert_close(model.encode(long), model.encode(short))


def test_the_chunked_mlp_is_complex_and_relu_acts_on_both_parts() -> None:
    torch.manual_seed(0)
    mlp = ComplexBlockMLP(12, 3).double()
    W1, b1, W2, b2 = (
        torch.randn(*shape, dtype=torch.float64)
        for shape in ((2, 3, 4, 4), (2, 3, 4), (2, 3, 4, 4), (2, 3, 4))
    )
    mlp.load_state_dict({"W1": W1, "b1": b1, "W2": W2, "b2": b2})
    x = torch.randn(2, 5, 12, dtype=torch.complex128)
    expected = torch.empty_like(x)
    for block in range(3):
        cut = slice(4 * block, 4 * block + 4)
        inner = x[:, :, cut] @ torch.complex(*W1[:, block]) + torch.complex(*b1[:, block])
        inner = torch.complex(inner.real.relu(), inner.imag.relu())
        outer = inner @ torch.complex(*W2[:, block]) + torch.complex(*b2[:, block])
        expected[:, :, cut] = outer
    torch.testing.assert_close(mlp(x), expected)


def test_the_fourier_transform_is_a_plain_sum_and_its_inverse_has_one_over_l() -> None:
    class Same(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x

    fusion = ComplexFusion(EBMConfig(hidden=D), L)
    fusion.mlp = Same()
    S = torch.randn(2, L, D, dtype=torch.float64)
    out, _ = fusion(S)
    torch.testing.assert_close(out, S)
    torch.testing.assert_close(fusion.mlp.seen[:, 0].real, S.sum(1))


def test_real_part_processing_mirrors_time_and_the_complex_does_not() -> None:
    config = EBMConfig(hidden=D)
    S = torch.randn(2, L, D)
    torch.manual_seed(0)
    for kind, mirrored in ((RealFusion, True), (ComplexFusion, False)):
        out, _ = kind(config, L)(S)
        assert torch.allclose(out[:, 1:], out[:, 1:].flip(1), atol=1e-6) == mirrored


def test_the_filtered_fusion_is_one_factor_a_channel_then_an_mlp_at_every_slot() -> None:
    fusion = FilterFusion(EBMConfig(hidden=D), L)
    S = torch.randn(2, L, D)
    torch.testing.assert_close(fusion(S)[0], S)  # starts as 1 + 0i
    layer = build(fusion=Fusion.filtered).miner.layers[0]
    assert isinstance(layer.then.mlp, BlockMLP)
    assert layer.then.mlp.activation is torch.nn.functional.gelu
    assert isinstance(build().miner.layers[0].then, torch.nn.Identity)


def test_a_layer_is_a_norm_of_fusion_plus_residual_and_padding_stays_zero() -> None:
    history = worlds.history([worlds.clicks([4, 2, 6]), worlds.favors([7])])
    for residual in Residual:
        model = build(residual=residual)
        m = model.embedding.mask(history)
        S = model.embedding(history)
        layer = model.miner.layers[0]
        out, _ = layer(S, m)
        fused = layer.fusion(full_time(S, L))[0][:, -3:]
        before = fused + S if residual is Residual.yes else fused
        torch.testing.assert_close(out, layer.norm(before) * m)
        assert not out[1, :2].any()


def test_every_layer_norm_has_epsilon_1e_12() -> None:
    for fusion in Fusion:
        norms = [m for m in build(fusion=fusion).modules() if isinstance(m, torch.nn.LayerNorm)]
        assert len(norms) == (7 if fusion is Fusion.filtered else 5)
        assert {norm.eps for norm in norms} == {1e-12}


# Compactness ------------------------------------------------------------------------------------


def test_the_coding_rate_is_half_a_log_determinant_of_the_smaller_matrix() -> None:
    for rows, d in ((4, 9), (9, 4)):
        Z = torch.randn(3, rows, d, dtype=torch.float64)
        scale = d / (12 * 0.5**2)
        tall = torch.linalg.slogdet(torch.eye(rows) + scale * Z @ Z.mT).logabsdet / 2
        wide = torch.linalg.slogdet(torch.eye(d) + scale * Z.mT @ Z).logabsdet / 2
        torch.testing.assert_close(tall, wide)
        torch.testing.assert_close(coding_rate(Z, 0.5, 12), tall)


def test_padding_adds_nothing_to_the_coding_rate_but_counts_in_its_length() -> None:
    Z = torch.randn(2, 3, D, dtype=torch.float64)
    torch.testing.assert_close(coding_rate(full_time(Z, L), 0.5, L), coding_rate(Z, 0.5, L))
    assert (coding_rate(Z, 0.5, 3) > coding_rate(Z, 0.5, L)).all()
    assert not coding_rate(torch.zeros(1, 3, D), 0.5, L).any()


def test_compactness_is_minimised() -> None:
    model = build(compactness_weight=0.5)
    found = model.sequences(worlds.case_history(), 2, None)
    term = model.regularisers(found, torch.ones(8, dtype=torch.int64), Stage())["compactness"]
    R = coding_rate(found.signals[0], 0.5, L).mean()
    torch.testing.assert_close(term, 0.5 * R)  # added, and R is never negative
    assert float(R.detach()) > 0


def test_compactness_is_of_the_miner_the_final_sequence_or_the_spectrum() -> None:
    found = {
        of: (model := build(compactness_of=of)).compactness_of(
            model.sequences(worlds.case_history(), 2, None)
        )
        for of in CompactnessOf
    }
    model = build()
    sequences = model.sequences(worlds.case_history(), 2, None)
    torch.testing.assert_close(found[CompactnessOf.miner], sequences.signals[0])
    assert not found[CompactnessOf.final][0].any()  # the empty history: padding is zero
    torch.testing.assert_close(found[CompactnessOf.final][:, -1][1:], sequences.final[1:, -1])
    assert found[CompactnessOf.frequency].is_complex()
    assert not coding_rate(found[CompactnessOf.frequency], 0.5, L).is_complex()


# P3 ---------------------------------------------------------------------------------------------


def test_rare_behaviours_have_the_larger_preference_and_a_rate_of_zero_gives_two() -> None:
    rate = torch.tensor([0.0, 0.3, 1.0, 4.2, 50.0], requires_grad=True)
    p = preference(rate)
    assert p[0] == 2
    assert (p.diff() < 0).all()
    assert (p > 1).all()
    assert float(p[2].detach()) == pytest.approx(1 + np.exp(-1))


def test_rates_are_mean_counts_a_user_in_training() -> None:
    events = [worlds.clicks([1, 2, 3]) + worlds.favors([4]), worlds.clicks([5]), [], []]
    model = build()
    model.prepare(worlds.interactions(events))
    assert model.decouplers[0].rate().tolist() == [1.0, 0.25]


def test_a_learned_rate_is_the_softplus_of_a_parameter_that_starts_at_one() -> None:
    torch.manual_seed(0)
    model = EBM(EBMConfig(hidden=D, preference_rate=Rate.learned), worlds.catalogue())
    raw = model.decouplers[0].rate.raw
    assert raw.tolist() == [1, 1]
    torch.testing.assert_close(model.decouplers[0].rate(), torch.log1p(torch.e ** raw.detach()))


def eliminator(**options: object) -> HardEliminator:
    hard: HardEliminator = build(**options).decouplers[0]
    return hard


def test_thresholds_are_of_the_tokens_state_or_of_its_column() -> None:
    S = torch.randn(2, 3, D, dtype=torch.float64)
    state = eliminator().threshold
    torch.testing.assert_close(state(S), (S @ state.linear.weight.T + state.linear.bias)[:, :, 0])
    column = eliminator(threshold=Threshold.column).threshold
    torch.testing.assert_close(column(S), column.raw[-3:].sigmoid().expand(2, 3))


@pytest.mark.parametrize("kind", KeepLogits)
def test_logits_of_the_choice(kind: KeepLogits) -> None:
    margin = torch.full((1, 40_000), 1.3, dtype=torch.float64)
    hard = eliminator(keep_logits=kind)
    q = float(margin[0, 0].sigmoid())
    expected = {
        KeepLogits.probabilities: 1 / (1 + np.exp(1 - 2 * q)),  # q = 0.79 is kept 0.64 of the time
        KeepLogits.logarithms: q,
        KeepLogits.differences: 1 / (1 + np.exp(-2 * 1.3)),
    }[kind]
    mask = hard.drawn(margin, torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0, 1}
    assert float(mask.mean()) == pytest.approx(expected, abs=0.01)


def test_the_mask_is_hard_forwards_and_soft_backwards() -> None:
    margin = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    mask = eliminator().drawn(margin, torch.Generator().manual_seed(1))
    assert set(mask.tolist()[0]) <= {0, 1}
    mask.sum().backward()
    assert (margin.grad > 0).all()


def test_scoring_keeps_where_q_is_above_one_half_and_draws_nothing() -> None:
    model, history = build(), worlds.case_history()
    S = model.sequences(history, 0, None).signals[0]
    hard = model.decouplers[0]
    with torch.no_grad():
        hard.threshold.linear.bias.add_(hard.margin(S, history)[history.real].median())
    kept, dropped = hard(S, history, None)
    q = hard.margin(S, history).sigmoid()
    torch.testing.assert_close(kept, S * (q > 0.5).unsqueeze(2))
    torch.testing.assert_close(kept + dropped, S)
    real = history.real
    assert not kept[~real].any()
    assert not dropped[~real].any()
    assert 0 < (q[real] > 0.5).double().mean() < 1


def test_the_last_token_may_be_dropped_unless_it_is_protected() -> None:
    history = worlds.history([worlds.clicks([1, 2, 3])])
    for option in LastToken:
        model = build(last_token=option)
        with torch.no_grad():
            model.decouplers[0].threshold.linear.bias.fill_(100.0)  # drop all
        S, S_hp = model.sequences(history, 1, None).signals
        expected = S[:, -1] if option is LastToken.protected else torch.zeros(1, D)
        torch.testing.assert_close(S_hp[:, -1], expected.to(S))
        assert not S_hp[:, :-1].any()
        torch.testing.assert_close(
            model.sequences(history, 1, torch.Generator()).signals[1][:, -1], expected.to(S)
        )


# P4 ---------------------------------------------------------------------------------------------


def test_filters_start_as_the_identity_and_noise_is_what_the_filter_removed() -> None:
    soft = SoftFilter(EBMConfig(hidden=D, dropout=0.0), L, 2).eval()
    history = worlds.history([worlds.clicks([1, 2]) + worlds.favors([3])])
    S = torch.randn(1, 3, D)
    signal, noise = soft(S, history, None)
    torch.testing.assert_close(noise, torch.zeros_like(S), atol=1e-6, rtol=0)
    torch.testing.assert_close(signal, soft.norm(2 * S))
    model = build()
    *_, S_hp, S_sp = (found := model.sequences(history, 2, None)).signals
    raw = S_hp - found.noises[1]
    torch.testing.assert_close(S_sp, model.decouplers[1].norm(raw + S_hp))


def test_shares_count_all_real_tokens_kept_or_not() -> None:
    history = worlds.history(
        [worlds.clicks([1, 2, 4]) + worlds.favors([3]), [], worlds.favors([5])]
    )
    shares = build().decouplers[1].shares(history)
    assert shares.tolist() == [[0.75, 0.25], [0, 0], [0, 1]]


def test_a_filters_imaginary_part_is_void_at_the_zero_and_the_nyquist_frequency() -> None:
    F = torch.complex(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    flat = torch.ones(1, L, 1)
    alternating = torch.tensor([1.0, -1.0]).repeat(L // 2).view(1, L, 1)
    for S in (flat, alternating):
        assert over_time(S, F).abs().max() < 1e-6
    assert over_time(torch.randn(1, L, 1), F).abs().max() > 0.1


def test_the_other_transform_goes_over_channels_too() -> None:
    S = torch.randn(2, L, D, dtype=torch.float64)
    half = torch.randn(2, 1, D, dtype=torch.complex128)
    spectrum = torch.fft.rfft(torch.fft.fft(S.to(torch.complex128), dim=2).real, dim=1)
    spectrum = spectrum + 1j * torch.fft.rfft(
        torch.fft.fft(S.to(torch.complex128), dim=2).imag, dim=1
    )
    expected = torch.fft.irfft(torch.fft.ifft(half * spectrum, dim=2), n=L, dim=1)
    torch.testing.assert_close(over_time_and_channels(S, half), expected)
    one = torch.ones(2, 1, D, dtype=torch.complex128)
    torch.testing.assert_close(over_time_and_channels(S, one), S)


# P5, P6 -----------------------------------------------------------------------------------------


def test_the_contrast_ranks_signal_above_origin_above_noise() -> None:
    up, down = torch.tensor([3.0, 2.0]), torch.tensor([-1.0, 0.0])
    zero = torch.zeros(2)
    expected = -(up.sigmoid().log().mean() + (zero - down).sigmoid().log().mean())
    torch.testing.assert_close(contrast(up, zero, down), expected)
    assert contrast(up, zero, down) < contrast(down, zero, up)


def test_both_contrasts_look_at_the_last_slot_and_the_target() -> None:
    model, batch = build(contrast_weight=0.3), prefixes()
    found = model.sequences(batch.history, 2, None)
    (S, S_hp, S_sp), (S_hn, S_sn) = found.signals, found.noises
    losses = model.regularisers(found, batch.target, Stage())

    def Q(A: Tensor) -> Tensor:  # noqa: N802
        return (A[:, -1] * model.embedding.item[batch.target]).sum(1)

    for name, triple in (("hard", (S_hp, S, S_hn)), ("soft", (S_sp, S_hp, S_sn))):
        torch.testing.assert_close(losses[f"contrast_{name}"], 0.3 * contrast(*map(Q, triple)))


def test_binary_prediction_has_one_negative_that_the_user_has_nowhere() -> None:
    model, batch = build(), prefixes()
    scores = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    y = scores.sigmoid()
    torch.testing.assert_close(binary_loss(scores), -(y[:, 0].log() + (1 - y[:, 1]).log()).mean())
    asked = []
    score = model.score
    model.score = lambda *parts: (asked.append(parts[1]), score(*parts))[1]  # type: ignore[method-assign,assignment]
    model.loss(batch)
    assert asked[0].shape == (len(batch.target), 2)
    train = worlds.records()
    touched = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
    pairs = zip(batch.history.user.tolist(), asked[0].tolist(), strict=True)
    for user, (positive, negative) in pairs:
        assert (user, positive) in touched
        assert (user, negative) not in touched


def test_softmax_prediction_is_over_all_items() -> None:
    model, batch = build(prediction=Prediction.softmax), prefixes()
    found = model.sequences(batch.history, 2, torch.Generator().manual_seed(0))
    logits = found.final[:, -1] @ model.embedding.item[1:].T
    expected = torch.nn.functional.cross_entropy(logits, batch.target - 1)
    torch.testing.assert_close(model.loss(batch)["prediction"], expected)


def test_scores_are_tied_and_have_a_norm_of_their_own_on_top_of_the_filters() -> None:
    model, history = build(), worlds.case_history()
    found = model.sequences(history, 2, None)
    assert model.head.norm is not model.decouplers[1].norm
    user = model.head.norm(found.signals[2])[:, -1]
    torch.testing.assert_close(model.encode(history), user)
    torch.testing.assert_close(model.score_all(user), user @ model.embedding.item.T)


def test_the_targets_behaviour_is_no_input() -> None:
    model, batch = build(), prefixes()
    swapped = replace(
        batch, clicks=batch.favors, favors=batch.clicks, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(total(model, batch), total(model, swapped))


def test_the_final_miner_stands_between_filter_and_prediction() -> None:
    model, history = build(final_miner=FinalMiner.yes), worlds.case_history()
    found = model.sequences(history, 2, None)
    last, _ = model.closing(found.signals[2] * found.m, found.m)
    torch.testing.assert_close(found.final, model.head.norm(last))
    earlier = model.sequences(history, 1, None)
    torch.testing.assert_close(earlier.final, model.head.norm(earlier.signals[1]))
    assert build().closing is None


# P7 ---------------------------------------------------------------------------------------------


def terms(stage: int, **options: object) -> set[str]:
    return set(build(stage=stage, **options).loss(prefixes()))


def trainable(stage: int, **options: object) -> set[str]:
    model = build(stage=stage, **options)
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} | {
        ".".join(name.split(".")[:2])
        for name, p in model.named_parameters()
        if p.requires_grad and name.startswith("decouplers")
    }


def test_four_stages_train_miner_hard_part_soft_part_and_everything() -> None:
    model = build(stage=0)
    assert [stage.epochs for stage in model.plan] == [3, 2, 2, None]
    assert [stage.rate for stage in model.plan] == [1, 1, 1, 0.5]
    assert trainable(0) == {"embedding", "miner", "head"}
    assert trainable(1) == {"decouplers", "decouplers.0"}
    assert trainable(2) == {"decouplers", "decouplers.1"}
    everything = {"embedding", "miner", "head", "decouplers", "decouplers.0", "decouplers.1"}
    assert trainable(3) == everything
    assert "closing" in trainable(2, final_miner=FinalMiner.yes)


def test_each_stage_has_its_own_terms_and_score() -> None:
    assert terms(0) == {"prediction", "compactness"}
    assert terms(1) == {"prediction", "contrast_hard"}
    assert terms(2) == {"prediction", "contrast_soft"}
    assert terms(3) == {"prediction", "contrast_hard", "contrast_soft", "compactness"}
    history = worlds.case_history()
    model = build(stage=0)
    for depth in (0, 1, 2, 2):  # S, S_hp, S_sp, S_sp
        found = model.sequences(history, depth, None)
        torch.testing.assert_close(model.encode(history), model.head(found.signals[depth])[:, -1])
        model.next_stage()


def test_whole_path_and_whole_loss_in_every_stage() -> None:
    for stage in range(4):
        assert terms(stage, stage_path=StagePath.whole) == terms(3)
        assert trainable(stage, stage_path=StagePath.whole) == trainable(stage)


def test_only_the_last_stage_selects_and_the_others_end_by_their_epochs() -> None:
    model, draws = build(stage=0, miner_epochs=5), torch.Generator()
    assert not model.selects
    assert [model.stage_ended(age, draws) for age in (4, 5)] == [False, True]
    assert [model.next_stage() for _ in range(4)] == [True, True, True, False]
    assert int(model.stage) == 3
    assert model.selects
    assert not model.stage_ended(1000, draws)


def test_the_last_stage_has_half_the_rate() -> None:
    assert build(stage=0, learning_rate=1e-3).optimiser().param_groups[0]["lr"] == 1e-3
    assert build(stage=3, learning_rate=1e-3).optimiser().param_groups[0]["lr"] == 5e-4
    joint = build(stages=Stages.joint, learning_rate=1e-3)
    assert joint.optimiser().param_groups[0]["lr"] == 1e-3


def test_what_a_stage_does_not_train_stays_as_it_is() -> None:
    for stage in range(4):
        model = build(stage=stage)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimiser = model.optimiser()
        total(model, prefixes()).backward()
        optimiser.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_stage_is_taken_up_where_it_was_left() -> None:
    model, file = build(stage=1), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build(seed=3, stage=0)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.begin_epoch(0, torch.Generator())
    assert int(other.stage) == 1
    frozen = [[p.requires_grad for p in one.parameters()] for one in (model, other)]
    assert frozen[0] == frozen[1]
    assert torch.equal(model.encode(worlds.case_history()), other.encode(worlds.case_history()))


def test_joint_and_miner_only_have_a_single_stage() -> None:
    joint = build(stages=Stages.joint)
    assert len(joint.plan) == 1
    assert set(joint.loss(prefixes())) == terms(3)
    alone = build(variant=Variant.miner_only)
    assert len(alone.plan) == 1
    assert set(alone.loss(prefixes())) == {"prediction", "compactness"}
    assert not len(alone.decouplers)
    first = build(stage=0)
    names = {name for name, _ in alone.named_parameters()}
    assert names == {name for name, p in first.named_parameters() if p.requires_grad}


# Released form ----------------------------------------------------------------------------------


def test_the_released_form_has_its_own_parts_and_no_gradient_in_its_hard_part() -> None:
    model = build(variant=Variant.released)
    assert len(model.plan) == 1
    total(model, prefixes()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {f"decouplers.0.threshold.linear.{part}" for part in ("weight", "bias")}
    assert model.item_vectors() is model.head.linear.weight  # untied
    assert not [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    A = torch.randn(2, 3, D)
    torch.testing.assert_close(model.Q(A, A[:, 0]), A.mean(1))
    assert model.compactness_of(model.sequences(worlds.case_history(), 2, None)).shape[1] == L


def test_the_adapter_reads_a_released_item_0_as_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_DIR", str(Path(adapter.__file__).parents[1] / "fixtures"))
    pair = load("ebm")
    items, behaviours = (pair.arrays[f"release/in/{name}"] for name in ("items", "behaviors"))
    table = pair.arrays["release/w/embedding.item_emb.embedding_table"].copy()
    other = items[behaviours > 0][0]
    assert not (items == 0).any()
    table[[0, other]] = table[[other, 0]]  # another name for the same item
    pair.arrays["release/w/embedding.item_emb.embedding_table"] = table
    pair.arrays["release/in/items"] = np.where(items == other, 0, items)
    adapter.check_release(pair)
    assert "release/out/logits" in pair.compared


# Options, cost, beginnings ----------------------------------------------------------------------


def test_first_options_are_the_defaults() -> None:
    config = EBMConfig()
    for name, kind in OPTIONS.items():
        assert getattr(config, name) is next(iter(kind)), name
    enums = {
        field.name for field in fields(config) if isinstance(getattr(config, field.name), Enum)
    }
    assert enums == set(OPTIONS)
    numbers = (config.hidden, config.blocks, config.layers, config.dropout, config.temperature)
    assert numbers == (64, 4, 2, 0.2, 1.0)
    assert (config.coding_eps, config.contrast_weight, config.compactness_weight) == (
        0.5,
        0.1,
        0.01,
    )
    assert (config.miner_epochs, config.hard_epochs, config.soft_epochs) == (3, 2, 2)
    assert config.learning_rate == 1e-3
    combinations = np.prod([len(values) for values in EBMConfig.GRID.values()])
    assert combinations == 8


@pytest.mark.parametrize(("name", "value"), list(changed()), ids=str)
def test_every_option_changes_the_model_and_trains(name: str, value: Enum) -> None:
    def losses(**options: object) -> list[float]:
        torch.manual_seed(0)
        config = EBMConfig(**{"hidden": D, "dropout": 0.0, "learning_rate": 0.01, **options})  # type: ignore[arg-type]
        model = EBM(config, worlds.catalogue())
        model.prepare(worlds.records())
        found, more = [], True
        while more:
            optimiser = model.optimiser()
            model.begin_epoch(0, torch.Generator())
            for _ in range(4):
                optimiser.zero_grad()
                loss = total(model.train(), prefixes())
                loss.backward()
                optimiser.step()
                found.append(float(loss.detach()))
            more = model.next_stage()
        assert np.isfinite(found).all()
        return found

    assert losses(**{name: value}) != losses()


@pytest.mark.parametrize(("d", "blocks", "layers"), [(16, 4, 2), (64, 4, 2), (12, 3, 1)])
def test_parameter_count_follows_the_formula(d: int, blocks: int, layers: int) -> None:
    model = EBM(EBMConfig(hidden=d, blocks=blocks, layers=layers), worlds.catalogue())
    n_b, c = 2, d // blocks
    tables = (worlds.ITEMS + n_b + L + 2) * d  # two rows of padding more than V + n_b + L
    norms = 3 * 2 * d  # embedding, soft filter, head
    expected = tables + layers * (4 * d * c + 4 * d + 2 * d) + d + 1 + 2 * n_b * d + norms
    assert sum(p.numel() for p in model.parameters()) == expected


def test_initial_values_are_normal_0_02() -> None:
    torch.manual_seed(0)
    model = EBM(EBMConfig(hidden=64), worlds.catalogue(items=300))
    mlp = model.miner.layers[0].fusion.mlp
    weight = model.decouplers[0].threshold.linear.weight
    for tensor in (model.embedding.item[1:], model.embedding.position, mlp.W1, mlp.W2, weight):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.25)
    assert not model.embedding.item[0].any()
    assert not mlp.b1.any()
    re, im = model.decouplers[1].filters
    assert (re == 1).all()
    assert (im == 0).all()


def test_padding_rows_are_never_trained() -> None:
    model = build()
    total(model, prefixes()).backward()
    assert not model.embedding.item.grad[0].any()
    assert not model.embedding.behaviour.grad[0].any()


def test_behaviours_matter_and_order_matters() -> None:
    model = build()
    events = worlds.clicks([1, 2, 3])
    history = worlds.history([events])
    turned = worlds.history([events[::-1]])
    favored = History(
        history.user, history.items, history.behaviours.clamp(min=int(Behaviour.FAVOR))
    )
    assert (model.encode(history) - model.encode(turned)).abs().max() > 1e-3
    assert (model.encode(history) - model.encode(favored)).abs().max() > 1e-3


def test_impossible_settings_are_refused() -> None:
    for options, message in (
        ({"blocks": 3}, "hidden 16 is no multiple of blocks 3"),
        ({"layers": 0}, "layers is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"coding_eps": 0.0}, "coding_eps is 0.0"),
        ({"hard_epochs": 0}, "hard_epochs is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)


# Strength ---------------------------------------------------------------------------------------


def test_it_learns_a_cascade_of_clicks_and_favors() -> None:
    """Above MostPopular, and above itself where it sees favors alone."""

    def trained(world: planted.World, seed: int) -> float:
        config = EBMConfig(hidden=16, dropout=0.1, learning_rate=0.01, layers=1)
        model = planted.trained(lambda c: EBM(config, c), world, seed, epochs=5, batch_size=128)
        return planted.ndcg_at_10(model, world)

    worlds = [planted.cascade(seed, favors=2) for seed in planted.SEEDS]
    ours = np.mean([trained(world, seed) for seed, world in enumerate(worlds)])
    blind = [trained(planted.without_clicks(world), seed) for seed, world in enumerate(worlds)]
    assert ours > np.mean([planted.most_popular(world) for world in worlds]) + 0.25
    assert ours > np.mean(blind) + 0.2
