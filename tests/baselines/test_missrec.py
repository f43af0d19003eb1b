"""MISSRec: the facts that are got wrong most often, each named, and what it can learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.missrec import (
    Attention,
    Clusters,
    DensityPeaks,
    Ids,
    ItemDrop,
    ItemFusion,
    KMeans,
    Missing,
    MISSRec,
    MISSRecConfig,
    Output,
    Pretrain,
    Reads,
    Reg,
    fused,
    misaligned,
    nearest_of,
    plain,
    pooled_interests,
    shifted,
)
from harness.config import ProtocolConfig, TrainConfig
from harness.data.batches import TrainingSamples
from harness.training.loop import Checkpoint, StoppedError, fit
from models.interface import Batch, Behaviour, Catalogue, History, Recommender
from models.layers import Dropout
from models.softmax import scored_cross_entropy
from tests import planted, worlds

ITEMS, SLOTS, WIDTH, HIDDEN = 20, 6, 5, 8
ROWS = ([1, -2, 3], [4], [5, 6, -7, 8, 9, 10, -11, 12], [], [13, 13, -13])
NO_TEXT, NO_IMAGE, NEITHER = 6, 7, 5


def catalogue(slots: int = SLOTS, items: int = ITEMS, width: int = WIDTH) -> Catalogue:
    generator = torch.Generator().manual_seed(3)
    text, image = torch.randn(2, items + 1, width, generator=generator)
    has_text, has_image = torch.ones(2, items + 1, dtype=torch.bool)
    has_text[[0, NO_TEXT, NEITHER]] = False
    has_image[[0, NO_IMAGE, NEITHER]] = False
    return Catalogue(
        users=items, items=items, length=slots, drops_own_events=True, fields={},
        image=image * has_image[:, None], image_present=has_image,
        text=text * has_text[:, None], text_present=has_text,
    )  # fmt: skip


def model(seed: int = 0, *, interests: bool = True, **settings: object) -> MISSRec:
    """In evaluation mode, with interests; wide weights, so that nothing is hidden by small ones."""
    torch.manual_seed(seed)
    config = MISSRecConfig(**{"hidden": HIDDEN, "heads": 2, "inner": 12, **settings})  # type: ignore[arg-type]
    net = MISSRec(config, catalogue()).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2 and parameter.std() < 0.05:
                parameter.mul_(20)
    if interests:
        net.begin_epoch(0, generator(1))
    return net


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def history(*rows: Sequence[int], padding: int = 0) -> History:
    """Rows of items, favor where negative; the latest SLOTS."""
    rows = tuple(row[-SLOTS:] for row in rows)
    width = max(1, *(len(row) for row in rows)) + padding
    signed = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    kind = torch.where(signed < 0, int(Behaviour.FAVOR), int(Behaviour.CLICK)) * (signed != 0)
    return History(torch.arange(len(rows)), signed.abs(), kind)


def batch(past: History, *targets: int) -> Batch:
    ones = torch.ones(len(targets), 1)
    return Batch(past, torch.tensor(targets).unsqueeze(1), 1 - ones, ones, generator())


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def output(net: MISSRec, past: History) -> Output:
    return net.output(net.items(), plain(past))


def everywhere(net: MISSRec, past: History) -> Tensor:
    """All slots decoded."""
    tokens = net.interests.ids(past.items, past.items)
    x = net.inputs(net.items(), plain(past))
    return net.decoded(x, past, net.memory(tokens), tokens, read=past.items.shape[1])


class TestInterests:
    def test_every_text_and_image_vector_has_a_cluster_and_padding_has_none(self) -> None:
        net = model()
        for cluster in (net.interests.text_cluster, net.interests.image_cluster):
            assert cluster[0] == 0
            assert (cluster[1:] > 0).all()
        assert net.interests.centroids[0].abs().max() == 0

    def test_both_modalities_are_clustered_together(self) -> None:
        net = model(interest_ratio=0.01)  # one cluster
        text, image = net.modalities()
        same(net.interests.centroids[1], torch.cat([text[1:], image[1:]]).mean(0))

    @pytest.mark.parametrize(
        ("ratio", "most", "expected"),
        [(0.5, 1024, 20), (0.02, 1024, 1), (0.51, 1024, 21), (0.5, 7, 7), (1.0, 1024, 40)],
    )
    def test_k_is_a_share_of_all_vectors_rounded_up_and_bounded(
        self, ratio: float, most: int, expected: int
    ) -> None:
        net = model(interest_ratio=ratio, most_interests=most)
        assert net.interests.count(ratio) == expected
        used = torch.cat([net.interests.text_cluster, net.interests.image_cluster])
        assert used.max() <= expected
        assert len(net.interests.centroids) == 1 + expected

    def test_kuaishou_has_1024_interests_and_not_half_a_million(self) -> None:
        few, _ = model().interests, None
        few.vectors = 2 * 618_529
        assert few.count(0.5) == few.count(0.02) == 1024

    def test_each_cluster_of_a_history_stands_once_and_in_ascending_order(self) -> None:
        interests = model().interests
        interests.text_cluster.copy_(torch.arange(ITEMS + 1) % 7)
        interests.image_cluster.copy_(torch.arange(ITEMS + 1) % 5)
        items = torch.tensor([[0, 0, 0, 4, 1, 1], [1, 2, 3, 4, 5, 6]])
        assert interests.ids(items, items).tolist() == [
            [0, 1, 4, 0, 0, 0, 0],
            [0, 1, 2, 3, 4, 5, 6],  # the 0 of the image of item 5
        ]

    def test_a_row_shorter_than_the_longest_history_has_padding_among_its_interests(self) -> None:
        interests = model().interests
        short = interests.ids(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3]]))
        assert short[0, 0] == 0
        assert (short[0, 1:] > 0).all()
        full = torch.arange(1, SLOTS + 1).unsqueeze(0)
        assert (interests.ids(full, full) > 0).all()

    def test_they_are_found_anew_before_every_epoch(self) -> None:
        net = model()
        first = net.interests.centroids.clone()
        with torch.no_grad():
            net.modalities.text_adaptor.weight.mul_(2)
        net.begin_epoch(1, generator(1))
        assert not torch.equal(net.interests.centroids, first)

    def test_the_same_generator_finds_the_same_and_nothing_else_is_drawn(self) -> None:
        net, state = model(), torch.get_rng_state()
        first = net.interests.centroids.clone()
        net.begin_epoch(1, generator(1))
        assert torch.equal(net.interests.centroids, first)
        net.begin_epoch(1, generator(2))
        assert not torch.equal(net.interests.centroids, first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_centroids_are_constants_without_gradient(self) -> None:
        net = model().train()
        assert not net.interests.centroids.requires_grad
        assert "interests.centroids" not in dict(net.named_parameters())
        before = net.interests.centroids.clone()
        optimiser = net.optimiser()
        sum(net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5)).values()).backward()
        optimiser.step()
        assert torch.equal(net.interests.centroids, before)

    def test_evaluation_uses_the_epochs_table_which_is_saved_with_the_weights(self) -> None:
        net, other = model(), model(seed=4, interests=False)
        other.load_state_dict(net.state_dict())
        past = history(*ROWS)
        assert torch.equal(other.encode(past), net.encode(past))
        same(output(other, past).memory, output(net, past).memory)
        other.interests.centroids.mul_(-3)
        assert not torch.allclose(other.encode(past), net.encode(past))

    def test_their_order_carries_no_meaning(self) -> None:
        net = model()
        tokens = net.interests.ids(history(*ROWS).items, history(*ROWS).items)
        same(net.memory(tokens.flip(1)).flip(1), net.memory(tokens))


class TestClustering:
    def points(self, each: int = 20) -> tuple[Tensor, Tensor]:
        """Four far groups, and whose each point is."""
        group = torch.arange(4).repeat(each)
        centres = 10 * torch.eye(4, dtype=torch.float64)
        noise = torch.randn(len(group), 4, generator=generator(), dtype=torch.float64)
        return centres[group] + 0.1 * noise, group

    def test_density_peaks_find_far_groups(self) -> None:
        points, group = self.points()
        centroids, owner = DensityPeaks(MISSRecConfig())(points, 4, generator())
        assert len(torch.unique(owner * 4 + group)) == 4
        means = torch.stack([points[owner == number].mean(0) for number in range(4)])
        torch.testing.assert_close(centroids, means, rtol=1e-4, atol=1e-4)

    def test_density_peaks_in_blocks_are_those_of_the_whole_matrix(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points, _ = self.points()
        peaks = DensityPeaks(MISSRecConfig(neighbour_ratio=0.07))
        near = math.ceil(0.07 * len(points))
        distance = torch.cdist(points, points) / 2
        density = (-(distance.sort(1).values[:, :near] ** 2).mean(1)).exp()
        gap = torch.stack([
            distance[one][density > density[one]].min()
            if (density > density[one]).any()
            else distance.max()
            for one in range(len(points))
        ])  # fmt: skip
        expected = (density * gap).topk(9).indices
        for rows in (7, 1000):
            monkeypatch.setattr("baselines.missrec.ROWS", rows)
            assert torch.equal(peaks.peaks(points, 9), expected)

    def test_a_density_peaks_centroid_is_a_sum_over_its_number_and_a_little(self) -> None:
        points = torch.tensor([[2.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
        centroids, owner = DensityPeaks(MISSRecConfig()).of(points, torch.arange(2), 1)
        assert owner.tolist() == [0, 0]
        same(centroids, torch.tensor([[6 / 2.0001, 0.0]], dtype=torch.float64))

    def test_equal_centres_keep_to_themselves(self) -> None:
        points = torch.ones(3, 2, dtype=torch.float64)
        _, owner = DensityPeaks(MISSRecConfig()).of(points, torch.arange(3), 3)
        assert sorted(owner.tolist()) == [0, 1, 2]

    def test_kmeans_starts_at_random_points_and_moves_at_the_rate_of_its_count(self) -> None:
        points = torch.tensor([[0.0], [10.0], [1.0], [13.0], [2.0]], dtype=torch.float64)
        fitted = torch.tensor([0, 1, 2, 3, 4])
        kmeans = KMeans(MISSRecConfig(kmeans_passes=1, kmeans_batch=4))
        centroids, owner = kmeans.of(points, fitted, 2)
        # first batch, rate 1: means 0.5 and 11.5; second batch: 2 moves 0.5 at the rate 1 / 3
        same(centroids, torch.tensor([[1.0], [11.5]], dtype=torch.float64))
        assert owner.tolist() == [0, 1, 0, 1, 0]

    def test_kmeans_goes_over_its_points_as_often_as_it_is_told(self) -> None:
        points = torch.tensor([[0.0], [10.0], [1.0], [13.0], [2.0]], dtype=torch.float64)
        kmeans = KMeans(MISSRecConfig(kmeans_passes=2, kmeans_batch=4))
        centroids, _ = kmeans.of(points, torch.arange(5), 2)
        # after the first pass 1 and 11.5, which had 4 and 3 points; 0.5 moves 1 at the rate 1 / 4,
        # then 2 moves 0.875 at 1 / 6; 11.5 is the mean of 10 and 13 already
        same(centroids, torch.tensor([[1.0625], [11.5]], dtype=torch.float64))

    def test_a_centroid_without_points_in_a_batch_stays(self) -> None:
        points = torch.tensor([[0.0], [10.0], [0.0]], dtype=torch.float64)
        kmeans = KMeans(MISSRecConfig(kmeans_passes=1, kmeans_batch=1))
        centroids, _ = kmeans.of(points, torch.arange(3), 2)
        same(centroids, torch.tensor([[0.0], [10.0]], dtype=torch.float64))

    @pytest.mark.parametrize("kind", [KMeans, DensityPeaks])
    def test_fitted_to_a_sample_all_points_are_assigned(
        self, kind: type[KMeans | DensityPeaks]
    ) -> None:
        points, _ = self.points()
        centroids, owner = kind(MISSRecConfig(fit_points=10))(points, 30, generator())
        assert len(centroids) == 10
        assert len(owner) == len(points)
        if kind is KMeans:
            assert torch.equal(owner, torch.cdist(points, centroids).argmin(1))

    def test_nearest_is_the_least_distance_across_blocks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points, _ = self.points()
        centroids = torch.randn(7, 4, generator=generator(5), dtype=torch.float64)
        monkeypatch.setattr("baselines.missrec.POINTS", 9)
        assert torch.equal(nearest_of(points, centroids), torch.cdist(points, centroids).argmin(1))

    def test_items_without_any_vector_to_cluster_have_no_interests(self) -> None:
        net = model(missing=Missing.masked)
        net.modalities.present.fill_(False)
        net.begin_epoch(1, generator())
        assert net.interests.centroids.abs().max() == 0
        assert net.interests.text_cluster.max() == 0
        assert torch.isfinite(net.score_all(net.encode(history(*ROWS)))).all()


class TestTransformer:
    def test_the_decoder_reads_in_both_directions(self) -> None:
        net = model()
        before, after = (everywhere(net, history([1, 2, 3, last])) for last in (4, 12))
        tokens = net.interests.ids(*[history([1, 2, 3, 4]).items] * 2)
        memory = net.memory(tokens)  # the same for both: only self-attention tells the last item
        decoded = [
            net.decoded(net.inputs(net.items(), plain(past)), past, memory, tokens, read=4)
            for past in (history([1, 2, 3, 4]), history([1, 2, 3, 12]))
        ]
        assert not torch.allclose(decoded[0][:, 0], decoded[1][:, 0])
        assert not torch.allclose(before[:, 0], after[:, 0])

    @pytest.mark.parametrize("layers", [2, 4])
    def test_half_of_the_layers_encode_and_half_decode(self, layers: int) -> None:
        net = model(layers=layers)
        assert len(net.transformer.encoder) == len(net.transformer.decoder) == layers // 2
        past = history(*ROWS)
        user = functional.normalize(everywhere(net, past)[:, -1], dim=1)
        same(net.encode(past), user)  # reading one slot is computing all

    def test_norms_stand_after_the_residuals_and_end_each_half(self) -> None:
        net = model()
        x = torch.randn(2, 3, HIDDEN, dtype=torch.float64)
        seen = torch.ones(2, 3, dtype=torch.bool)
        layer = net.transformer.encoder[0]
        a = layer.attention_norm(x + layer.attention(x, x, seen))
        expected = layer.feed_forward_norm(a + layer.feed_forward(a))
        same(net.transformer.encode(x, seen), net.transformer.encoder_norm(expected))

    def test_attention_is_torchs(self) -> None:
        torch.manual_seed(0)
        ours = Attention(HIDDEN, 2, 0.0).double()
        theirs = nn.MultiheadAttention(HIDDEN, 2, batch_first=True).double()
        theirs.load_state_dict({
            "in_proj_weight": ours.into.weight, "in_proj_bias": ours.into.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        })  # fmt: skip
        query, memory = torch.randn(3, 2, HIDDEN).double(), torch.randn(3, 5, HIDDEN).double()
        seen = torch.rand(3, 5) > 0.4
        seen[:, 0] = True
        expected, _ = theirs(query, memory, memory, key_padding_mask=~seen)
        same(ours(query, memory, seen), expected)

    def test_norms_have_the_authors_eps_and_one_rate_drops_everywhere(self) -> None:
        net = model(dropout=0.3)
        norms = [part for part in net.modules() if isinstance(part, nn.LayerNorm)]
        assert len(norms) == 3 + 2 + 3
        assert {norm.eps for norm in norms} == {1e-12}
        drops = [part for part in net.modules() if isinstance(part, Dropout)]
        assert len(drops) == 1 + 3 + 4  # input; weights, output and inside of each layer's parts
        assert {drop.rate for drop in drops} == {0.3}

    def test_positions_count_from_the_oldest_event(self) -> None:
        net = model()
        short, long = history([1, 2, 3]), history([1, 2, 3], padding=3)
        with torch.no_grad():
            net.positions[3:] += 100  # nobody stands there
        items = net.items()
        same(net.inputs(items, plain(long))[:, 3:], net.inputs(items, plain(short)))
        first = items.text[1] + items.image[1] + net.positions[0]
        same(net.inputs(items, plain(long))[0, 3], net.input_norm(first))

    def test_the_input_sums_text_image_position_and_id(self) -> None:
        net, past = model(), history([3, 8])
        text, image = net.modalities()
        table = net.ids.weight  # type: ignore[union-attr]
        rows = torch.tensor([3, 8])
        expected = net.input_norm(text[rows] + image[rows] + table[rows] + net.positions[:2])
        same(net.inputs(net.items(), plain(past))[0], expected)

    def test_an_empty_history_is_one_padding_item(self) -> None:
        net = model()
        for past in (history([]), history([], [1, 2, 3])):
            user = net.encode(past)
            assert torch.isfinite(user).all()
            same(user[0], net.encode(history([], padding=SLOTS - 1))[0])

    def test_the_user_vector_has_length_one(self) -> None:
        lengths = model().encode(history(*ROWS)).norm(dim=1)
        same(lengths, torch.ones_like(lengths))


class TestScores:
    def test_weights_are_a_softmax_over_the_users_two_similarities(self) -> None:
        net, past = model(), history(*ROWS)
        with torch.no_grad():
            net.gamma.fill_(2.5)
        user = net.encode(past)
        text, image = (functional.normalize(each, dim=1) for each in net.modalities())
        table = functional.normalize(net.ids.weight, dim=1)  # type: ignore[union-attr]
        pair = torch.stack([user @ text.T, user @ image.T], dim=2)
        f = (pair * (2.5 * pair).softmax(2)).sum(2)
        expected = (user @ table.T + 2 * f) / 3 / 0.07
        same(net.score_all(user), expected)
        some = torch.tensor([[3, 1, 3, 0]]).expand(len(ROWS), -1)
        same(net.score(user, some), expected.gather(1, some))
        mean = (user @ table.T + pair.sum(2)) / 3 / 0.07
        assert (expected - mean).abs().max() > 0.01  # no mean, and no product with any one vector

    def test_gamma_is_one_number_that_starts_at_zero_the_plain_mean(self) -> None:
        net = model()
        assert net.gamma.tolist() == [0.0]
        assert net.gamma.requires_grad
        text, image = torch.rand(2, 4, 9, dtype=torch.float64)
        same(fused([text, image], torch.zeros(9).double(), 1.0), (text + image) / 2)

    def test_without_ids_the_fused_similarity_alone_is_the_score(self) -> None:
        net = model(ids=Ids.inductive)
        assert not hasattr(net.ids, "weight")
        user = net.encode(history(*ROWS))
        text, image = (functional.normalize(each, dim=1) for each in net.modalities())
        same(net.score_all(user), (user @ text.T + user @ image.T) / 2 / 0.07)

    def test_i2_static_is_the_mean_and_has_nothing_to_learn(self) -> None:
        static, shared = model(item_fusion=ItemFusion.static), model()
        past = history(*ROWS)
        same(static.score_all(static.encode(past)), shared.score_all(shared.encode(past)))
        assert "gamma" not in dict(static.named_parameters())

    def test_i2_dynamic_instance_has_one_gamma_an_item(self) -> None:
        net, past = model(item_fusion=ItemFusion.dynamic_instance), history(*ROWS)
        assert net.gamma.tolist() == [0.0] * (ITEMS + 1)
        before = net.score_all(net.encode(past))
        with torch.no_grad():
            net.gamma[4] = 30
        after = net.score_all(net.encode(past))
        changed = (before != after).any(0)
        assert changed.nonzero().flatten().tolist() == [4]

    def test_a_missing_vector_is_the_adaptors_bias(self) -> None:
        text, image = model().modalities()
        for number in (0, NEITHER, NO_TEXT):
            same(text[number], text[0])
        same(image[NO_IMAGE], image[0])
        assert text[0].abs().max() > 0

    def test_i4_masked_leaves_missing_vectors_out_of_histories_and_interests(self) -> None:
        net = model(missing=Missing.masked)
        text, image = net.modalities()
        table = net.ids.weight  # type: ignore[union-attr]
        for number, vectors in ((NO_TEXT, image), (NO_IMAGE, text)):
            x = net.inputs(net.items(), plain(history([number])))[0, 0]
            same(x, net.input_norm(vectors[number] + table[number] + net.positions[0]))
        assert net.interests.text_cluster[[NO_TEXT, NEITHER]].tolist() == [0, 0]
        assert net.interests.image_cluster[[NO_IMAGE, NEITHER]].tolist() == [0, 0]
        assert net.interests.image_cluster[NO_TEXT] > 0

    def test_i4_masked_lets_the_present_modality_of_a_candidate_stand_alone(self) -> None:
        net = model(missing=Missing.masked, ids=Ids.inductive)
        with torch.no_grad():
            net.gamma.fill_(3.0)
        user = net.encode(history(*ROWS))
        text, image = (functional.normalize(each, dim=1) for each in net.modalities())
        scores = net.score_all(user) * 0.07
        same(scores[:, NO_TEXT], user @ image[NO_TEXT])
        same(scores[:, NO_IMAGE], user @ text[NO_IMAGE])
        assert scores[:, NEITHER].abs().max() == 0


class TestLoss:
    def test_cross_entropy_runs_over_all_rows_padding_included(self) -> None:
        net, past = model(), history(*ROWS)
        logits, target = net.score_all(net.encode(past)), torch.tensor([1, 2, 3, 4, 20])
        losses = net.loss(batch(past, *target.tolist()))
        same(losses["next_item"], functional.cross_entropy(logits, target))
        without = functional.cross_entropy(logits[:, 1:], target - 1)
        assert (losses["next_item"] - without).abs() > 1e-4

    def test_it_is_the_same_in_blocks_of_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three products a block, values and gradients exact."""
        found = []
        for chunk in (None, 4):
            blocks = partial(scored_cross_entropy, chunk=chunk)
            monkeypatch.setattr("baselines.missrec.scored_cross_entropy", blocks)
            net = model()
            losses = net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5))
            sum(losses.values()).backward()
            found.append([losses["next_item"], *(p.grad for p in net.parameters())])
        for whole, blocks in zip(*found, strict=True):
            same(blocks, whole)

    @pytest.mark.parametrize("stage", ["next item", "pre-training"])
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"missing": Missing.masked},
            {"ids": Ids.inductive, "item_fusion": ItemFusion.static},
            {"item_fusion": ItemFusion.dynamic_instance, "behaviors": Reads.typed},
        ],
        ids=str,
    )
    def test_where_items_are_many_their_vectors_are_made_in_blocks(
        self, settings: dict[str, object], stage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The interests, the loss, its gradients and the scores are those of all vectors at once."""

        def numbers() -> list[Tensor]:
            net = model(**settings)
            net.pretraining.fill_(stage == "pre-training")
            losses = net.loss(batch(history(*ROWS), 1, 2, 2, 4, 20))
            sum(losses.values()).backward()
            reached = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
            if stage == "next item":
                assert {name for name, grad in reached.items() if grad.any()} == {
                    name for name, _ in net.named_parameters()
                }
            state = net.encode(history(*ROWS))
            drawn = torch.tensor([[1, 3, NO_TEXT]] * len(ROWS))
            return [
                *losses.values(), *reached.values(), net.interests.centroids, state,
                net.score(state, drawn), net.score_all(state),
            ]  # fmt: skip

        expected = numbers()
        monkeypatch.setattr("baselines.missrec.WHOLE", ITEMS)
        monkeypatch.setattr("baselines.missrec.BLOCK", 4)
        softmax: list[int] = []

        def blocks(*given: Any) -> Tensor:
            softmax.append(len(given[2]))
            return scored_cross_entropy(*given, chunk=4)

        monkeypatch.setattr("baselines.missrec.scored_cross_entropy", blocks)
        monkeypatch.setattr(MISSRec, "items", None)  # all at once
        for found, whole in zip(numbers(), expected, strict=True):
            same(found, whole)
        # Rows of the softmax are raw vectors, presence, gamma and, with ids, what E is made from.
        lines = 4 if settings.get("ids") is Ids.inductive else 6
        assert softmax == ([lines] if stage == "next item" else [])

    def test_the_padding_row_of_the_id_table_is_never_trained(self) -> None:
        net = model().train()
        optimiser = net.optimiser()
        for _ in range(3):
            optimiser.zero_grad()
            sum(net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5)).values()).backward()
            optimiser.step()
        assert net.ids.weight[0].abs().max() == 0  # type: ignore[union-attr]
        assert all(torch.isfinite(parameter).all() for parameter in net.parameters())

    def test_the_regulariser_is_the_pooled_interests_squared_length_summed_over_the_batch(
        self,
    ) -> None:
        memory = torch.randn(2, 4, HIDDEN, dtype=torch.float64)
        real = torch.tensor([[True, True, False, False], [True, True, True, False]])
        pooled = [0.5 * memory[0].sum(0), 0.75 * memory[1].sum(0)]  # padded rows are summed too
        expected = sum(float(p @ p) for p in pooled) / HIDDEN
        found = pooled_interests(Output(memory[:, 0], memory, real))
        assert float(found) == pytest.approx(expected)
        twice = pooled_interests(
            Output(memory[:, 0].repeat(2, 1), memory.repeat(2, 1, 1), real.repeat(2, 1))
        )
        same(twice, 2 * found)

    def test_the_regulariser_has_a_weight_of_a_ten_thousandth(self) -> None:
        net, past = model(), history(*ROWS)
        term = net.loss(batch(past, 1, 2, 3, 4, 5))["interests"]
        same(term, 1e-4 * pooled_interests(output(net, past)))
        assert term > 0

    def test_i3_off(self) -> None:
        net = model(reg=Reg.off)
        assert net.loss(batch(history(*ROWS), 1, 2, 3, 4, 5))["interests"] == 0


class TestPretraining:
    def pretraining(self, **settings: object) -> MISSRec:
        return model(pretrain=Pretrain.in_domain, pretrain_epochs=2, **settings)

    def test_item_drop_as_coded_keeps_the_dropped_item_in_place_of_the_one_before_it(self) -> None:
        """Keep 11, 13, 14 of 11 to 15: the authors' scatter gives 12, 13, 15."""
        items = torch.tensor([[11, 12, 13, 14, 15]])
        keep = torch.tensor([[True, False, True, True, False]])
        past = History(torch.zeros(1).long(), items, torch.ones_like(items))
        assert past.keep(shifted(keep)).items.tolist() == [[12, 13, 15]]
        scattered = torch.zeros(1, 5).long()
        for place, item in zip((keep.cumsum(1) - 1)[0], items[0], strict=True):
            scattered[0, place] = item  # in order: the later one stays
        assert scattered.tolist() == [[12, 13, 15, 0, 0]]

    def test_item_drop_as_described_keeps_the_first_item(self) -> None:
        net = self.pretraining(drop=ItemDrop.as_described, item_drop=0.9)
        past = history(*ROWS)
        shorter = net.shortened(past, generator())
        assert shorter.real.sum() < past.real.sum()
        for whole, short in zip(past.items, shorter.items, strict=True):
            rest = short[short > 0].tolist()
            assert rest[:1] == whole[whole > 0].tolist()[:1]
        full = torch.ones(1000, 5).long()
        many = net.shortened(History(full[:, 0], full, full), generator())
        assert many.real.sum() / 1000 == pytest.approx(1 + 0.1 * 4, abs=0.1)

    @pytest.mark.parametrize("drop", ItemDrop)
    def test_draws_come_from_the_generator_and_one_event_stays(self, drop: ItemDrop) -> None:
        net, past = self.pretraining(drop=drop), history(*ROWS)
        state = torch.get_rng_state()
        first, again = (net.shortened(past, generator(3)) for _ in range(2))
        assert torch.equal(first.items, again.items)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.real.any(1), past.real.any(1))

    def test_texts_move_towards_the_oldest_event_while_images_stay(self) -> None:
        past = history([11, 12, 13, 14, 15], [1, 2, 3])
        shorter = past.keep(torch.isin(past.items, torch.tensor([12, 13, 15, 1, 3])))
        view = misaligned(past, shorter)
        assert view.history.items.tolist() == [[12, 13, 15], [0, 1, 3]]
        assert view.images[0].tolist() == [11, 12, 13]
        assert view.images[1, 1:].tolist() == [1, 2]
        assert torch.equal(view.seen, past.items)  # interests: images of the untouched row

    def test_no_ids_are_read_or_scored(self) -> None:
        net, past = self.pretraining(), history(*ROWS)
        before = net.score_all(net.encode(past))
        with torch.no_grad():
            net.ids.weight[1:] = torch.randn(ITEMS, HIDDEN).double()  # type: ignore[union-attr]
        same(net.score_all(net.encode(past)), before)

    def test_the_losses_are_one_way_contrasts_over_the_batch_with_repeats_unmasked(self) -> None:
        net, past = self.pretraining(), history(*ROWS)
        shorter = net.shortened(past, generator(1))
        target = torch.tensor([1, 2, 2, 4, 5])
        losses = net.contrast(past, shorter, target)
        user = net.encode(past)
        second = net.output(net.items(), misaligned(past, shorter))
        text, image = (functional.normalize(each, dim=1)[target] for each in net.modalities())
        logits = (user @ text.T + user @ image.T) / 2 / 0.07
        label = torch.arange(5)
        same(losses["next_item"], functional.cross_entropy(logits, label))
        near = user @ second.user.T / 0.07
        same(losses["augmented"], 1e-3 * functional.cross_entropy(near, label))
        both = pooled_interests(output(net, past)) + pooled_interests(second)
        same(losses["interests"], 1e-4 * both)
        named = net.loss(batch(past, 1, 2, 2, 4, 5))
        assert named.keys() == losses.keys()

    def test_it_is_a_first_stage_that_selects_nothing_and_ends_after_its_epochs(self) -> None:
        net = self.pretraining()
        assert not net.selects
        assert [net.stage_ended(age, generator()) for age in (1, 2)] == [False, True]
        assert net.next_stage()
        assert net.selects
        assert not net.stage_ended(2, generator())
        assert not net.next_stage()
        scratch = model()
        assert scratch.selects
        assert not scratch.next_stage()

    def test_it_has_fewer_interests(self) -> None:
        net = self.pretraining(pretrain_interest_ratio=0.1)
        used = torch.cat([net.interests.text_cluster, net.interests.image_cluster])
        assert used.max() <= 4
        net.next_stage()
        net.begin_epoch(2, generator())
        used = torch.cat([net.interests.text_cluster, net.interests.image_cluster])
        assert used.max() > 4
        assert len(net.interests.centroids) == 21

    def test_fine_tuning_after_it_freezes_positions_and_transformer_also_when_resumed(self) -> None:
        net = self.pretraining()
        assert all(parameter.requires_grad for parameter in net.parameters())
        net.next_stage()
        resumed = self.pretraining()
        resumed.load_state_dict(net.state_dict())
        for one in (net, resumed):
            one.train().begin_epoch(2, generator())
            before = {name: p.clone() for name, p in one.named_parameters()}
            optimiser = one.optimiser()
            sum(one.loss(batch(history(*ROWS), 1, 2, 3, 4, 5)).values()).backward()
            optimiser.step()
            frozen = {n for n, p in one.named_parameters() if torch.equal(p, before[n])}
            assert frozen == {
                name for name in before if name.startswith(("positions", "transformer."))
            }

    def test_from_scratch_nothing_is_frozen(self) -> None:
        net = model()
        assert all(parameter.requires_grad for parameter in net.parameters())

    def test_a_killed_run_goes_on_bit_equal_in_either_stage(self, tmp_path: Path) -> None:
        train = worlds.records()

        def run(path: Path, interrupted: Sequence[int]) -> Tensor:
            """Train to the end; interrupted before these batches."""
            asked = 0

            def stop() -> bool:
                nonlocal asked
                asked += 1
                return asked in interrupted

            samples = TrainingSamples(
                worlds.split(train), MISSRec.samples, ProtocolConfig(max_history=worlds.LENGTH),
                TrainConfig(batch_size=32),
            )  # fmt: skip
            while True:
                torch.manual_seed(5)
                config = MISSRecConfig(
                    hidden=8, heads=2, inner=8, pretrain=Pretrain.in_domain, pretrain_epochs=2
                )
                net = MISSRec(config, worlds.catalogue())
                net.prepare(train)
                try:
                    fit(net, samples, value, TrainConfig(epochs=2), 3,
                        Checkpoint(path, {}), stop=stop)  # fmt: skip
                except StoppedError:
                    continue
                return net.eval().score_all(net.encode(worlds.case_history())).detach()

        expected = run(tmp_path / "whole.pt", [])
        batches = len(worlds.batches(train, MISSRec.samples, 32))
        stops = [batches + 1, 4 * batches - 1]  # in the second epoch of each stage
        assert torch.equal(run(tmp_path / "killed.pt", stops), expected)


def value(net: Recommender) -> float:
    """Some validation score."""
    net.eval()
    with torch.no_grad():
        return float(net.score_all(net.encode(worlds.case_history())).std())


class TestSettings:
    def test_the_defaults_are_the_authors(self) -> None:
        config = MISSRecConfig()
        assert (config.layers, config.heads, config.hidden, config.inner) == (2, 4, 300, 256)
        assert (config.dropout, config.learning_rate, config.weight_decay) == (0.5, 1e-3, 0.0)
        assert (config.temperature, config.reg_weight, config.augmented_weight) == (
            0.07, 1e-4, 1e-3,
        )  # fmt: skip
        assert (config.interest_ratio, config.pretrain_interest_ratio) == (0.5, 0.02)
        assert (config.most_interests, config.fit_points) == (1024, 50_000)
        assert (config.kmeans_passes, config.kmeans_batch) == (5, 2048)
        assert (config.pretrain_epochs, config.item_drop) == (100, 0.2)
        choices = [f.name for f in fields(config) if isinstance(getattr(config, f.name), Enum)]
        assert len(choices) == 8
        for name in choices:
            choice = getattr(config, name)
            assert choice is next(iter(type(choice)))

    def test_the_grid_has_at_most_twelve_combinations_of_real_settings(self) -> None:
        names = {field.name for field in fields(MISSRecConfig)}
        assert MISSRecConfig.GRID.keys() <= names
        assert math.prod(len(values) for values in MISSRecConfig.GRID.values()) <= 12

    def test_parameters_are_as_many_as_the_papers_cost_formula_says(self) -> None:
        N, L, H, I, half = ITEMS + 1, 50, 32, 24, 2  # noqa: E741
        config = MISSRecConfig(hidden=H, inner=I, layers=2 * half)
        net = MISSRec(config, catalogue(slots=L, width=512))
        expected = (
            N * H + L * H + half * (4 * H**2 + 2 * H * I + 9 * H + I)
            + half * (8 * H**2 + 2 * H * I + 15 * H + I) + 6 * H + (512 + 512 + 2) * H + 1
        )  # fmt: skip
        assert sum(parameter.numel() for parameter in net.parameters()) == expected

    def test_the_start_is_the_authors(self) -> None:
        torch.manual_seed(0)
        net = MISSRec(MISSRecConfig(hidden=64, inner=128), catalogue(slots=40, width=100))
        table = net.ids.weight  # type: ignore[union-attr]
        assert table[0].abs().max() == 0
        layer = net.transformer.decoder[0]
        small = [table[1:], net.positions]
        for linear in (layer.attention.out, layer.cross.out, layer.feed_forward.inner,
                       layer.feed_forward.outer):  # fmt: skip
            small.append(linear.weight)
            assert linear.bias.abs().max() == 0
        for weight in small:
            assert abs(float(weight.detach().std()) - 0.02) < 0.002
        bound = (6 / (4 * 64)) ** 0.5  # Xavier of the stacked map, 3 H x H
        for attention in (layer.attention, layer.cross, net.transformer.encoder[0].attention):
            assert 0.95 * bound < attention.into.weight.abs().max() <= bound
            assert attention.into.bias.abs().max() == 0
        for adaptor in (net.modalities.text_adaptor, net.modalities.image_adaptor):
            for start in (adaptor.weight, adaptor.bias):
                assert 0.09 < start.abs().max() <= 0.1  # 1 / sqrt(100), bias too

    def test_i5_behaviours_are_merged_or_favors_alone_or_typed(self) -> None:
        clicks, mixed = history([1, 2, 3]), history([1, -2, 3])
        merged, favor_only, typed = (model(behaviors=reads) for reads in Reads)
        same(merged.encode(clicks), merged.encode(mixed))
        same(favor_only.encode(mixed), favor_only.encode(history([-2])))
        same(favor_only.encode(clicks), favor_only.encode(history([])))
        assert not torch.allclose(typed.encode(clicks), typed.encode(mixed))
        vectors = typed.typing.vectors.weight  # type: ignore[union-attr]
        items = typed.items()
        x = items.text[2] + items.image[2] + typed.positions[1] + vectors[int(Behaviour.FAVOR)]
        same(typed.inputs(items, plain(mixed))[0, 1], typed.input_norm(x))
        assert vectors[0].abs().max() == 0

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"hidden": 10, "heads": 4}, "hidden 10 is no multiple of heads 4"),
            ({"layers": 3}, "layers is 3"),
            ({"layers": 0}, "layers is 0"),
            ({"interest_ratio": 0.0}, "interest_ratio is 0.0"),
            ({"most_interests": 0}, "most_interests is 0"),
            ({"kmeans_batch": 0}, "kmeans_batch is 0"),
            ({"temperature": 0.0}, "temperature is 0.0"),
            ({"item_drop": 1.0}, "item_drop is 1.0"),
            ({"dropout": 1.0}, "dropout 1.0"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_model_are_refused(
        self, settings: dict[str, object], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            model(**settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"layers": 4},
            {"clusters": Clusters.dpc_knn},
            {"item_fusion": ItemFusion.static},
            {"item_fusion": ItemFusion.dynamic_instance},
            {"reg": Reg.off},
            {"missing": Missing.masked},
            {"behaviors": Reads.favor_only},
            {"behaviors": Reads.typed},
            {"ids": Ids.inductive},
            {"pretrain": Pretrain.in_domain},
            {"pretrain": Pretrain.in_domain, "ids": Ids.inductive, "missing": Missing.masked},
            {"pretrain": Pretrain.in_domain, "drop": ItemDrop.as_described},
        ],
        ids=str,
    )
    def test_every_option_trains(self, settings: dict[str, object]) -> None:
        """Also through both stages: every parameter is reached, and the loss falls."""
        torch.manual_seed(0)
        small = {"hidden": 8, "heads": 2, "inner": 8, "dropout": 0.0, "learning_rate": 0.02}
        net = MISSRec(MISSRecConfig(**small, **settings), worlds.catalogue())  # type: ignore[arg-type]
        batches = worlds.batches(worlds.records(), net.samples, 64)
        reached, more = set(), True
        while more:
            optimiser, losses = net.train().optimiser(), []
            for epoch in range(6):
                net.begin_epoch(epoch, generator(epoch))
                for one in batches:
                    loss = sum(net.loss(one).values())
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    losses.append(float(loss.detach()))
            reached |= {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
            count = len(batches)
            assert sum(losses[-count:]) < sum(losses[:count])
            more = net.next_stage()
        assert reached == {name for name, _ in net.named_parameters()}


class TestStrength:
    """The content world: no positive has a record, so ids and popularity say nothing."""

    def make(self, **settings: object) -> Callable[[Catalogue], MISSRec]:
        small = {"hidden": 32, "inner": 32, "heads": 2, "most_interests": 16}
        config = MISSRecConfig(**{**small, "learning_rate": 0.01, "dropout": 0.1, **settings})  # type: ignore[arg-type]
        return lambda catalogue: MISSRec(config, catalogue)

    def test_cold_items_are_found_by_their_vectors(self) -> None:
        with_vectors, without, popular = [], [], []
        for seed in planted.SEEDS:
            world = planted.content(seed)
            blind = planted.without_content(world)
            for one, found in ((world, with_vectors), (blind, without)):
                net = planted.trained(self.make(), one, seed, epochs=2, batch_size=128)
                found.append(planted.ndcg_at_10(net, one))
            popular.append(planted.most_popular(world))
        mean = sum(with_vectors) / 3
        assert mean > sum(without) / 3 + 0.4
        assert mean > sum(popular) / 3 + 0.4

    @pytest.mark.slow
    def test_pretraining_on_the_same_records_and_a_frozen_transformer_find_them_too(self) -> None:
        found, popular = [], []
        for seed in planted.SEEDS:
            world = planted.content(seed)
            make = self.make(pretrain=Pretrain.in_domain, pretrain_epochs=3)
            net = planted.trained(make, world, seed, epochs=3, batch_size=128)
            found.append(planted.ndcg_at_10(net, world))
            popular.append(planted.most_popular(world))
        assert sum(found) / 3 > sum(popular) / 3 + 0.4
