"""CMCLRec (reconstruction): profiles, towers, simulation, stages, readings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.cmclrec import (
    BACKBONE,
    JOINT,
    TOWERS,
    Backbone,
    CMCLRec,
    CMCLRecConfig,
    Profile,
    Sequence,
    Simulate,
    Training,
    composed,
    contrast,
    item_table,
    nearest,
)
from baselines.mmmlp import MMMLP, MMMLPConfig, Reads
from baselines.sasrec import SASRec, SASRecConfig
from harness.zoo import find
from models.interface import Batch, Behaviour, Catalogue, History, Interactions, Losses, Samples
from tests import planted, worlds
from tests.planted import SEEDS, World, ndcg_at_10

NO_DROPOUT = {
    "tower_dropout": 0.0,
    "sasrec": SASRecConfig(dropout=0.0),
    "mmmlp": MMMLPConfig(dropout=0.0),
}


def build(stage: int = TOWERS, train: Interactions | None = None, **options: object) -> CMCLRec:
    """A narrow model in float64, its towers far from their start; without dropout."""
    torch.manual_seed(0)
    config = CMCLRecConfig(**{"hidden": 16, **NO_DROPOUT, **options})  # type: ignore[arg-type]
    model = CMCLRec(config, worlds.catalogue()).double()
    with torch.no_grad():
        for parameter in model.towers.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        item_table(model.backbone).normal_()
    model.prepare(worlds.records() if train is None else train)
    model.stage.fill_(stage)
    return model.eval()


def first_batch(kind: Samples) -> Batch:
    return worlds.batches(worlds.records(), kind)[0]


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# Parts ------------------------------------------------------------------------------------------


def test_parameters_beside_the_backbone_are_those_of_the_formula() -> None:
    model, d = build(), 16
    features = worlds.IMAGE_WIDTH + worlds.TEXT_WIDTH
    backbone = sum(p.numel() for p in model.backbone.parameters())
    expected = backbone + features * d + d + 2 * (d**2 + d)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_every_table_calls_it_a_reconstruction() -> None:
    assert "reconstruction" in find("cmclrec").note
    assert "RECONSTRUCTION" in str(CMCLRec.__doc__)


def test_the_backbone_is_a_method_of_its_own_with_this_width_and_rate() -> None:
    own = SASRecConfig(hidden=128, heads=2, blocks=1, learning_rate=0.5)
    config = CMCLRecConfig(hidden=24, learning_rate=0.01, weight_decay=0.1, sasrec=own)
    model = CMCLRec(config, worlds.catalogue())
    assert isinstance(model.backbone, SASRec)
    assert model.backbone.config == replace(own, hidden=24, learning_rate=0.01, weight_decay=0.1)
    assert model.samples is Samples.window
    other = CMCLRec(replace(config, backbone=Backbone.mmmlp), worlds.catalogue())
    assert isinstance(other.backbone, MMMLP)
    assert other.samples is Samples.prefix


def test_sides_are_user_features_and_interactions_not_image_and_text() -> None:
    """The feature tower has no path for a sequence, the interaction tower none for a vector."""
    model, history = build(), worlds.case_history()
    blind = build()
    blind.profile.image.zero_()
    blind.profile.text.zero_()
    seen = [one.towers.of_features(one.profile(history)) for one in (model, blind)]
    states = [one.towers.of_sequences(one.backbone.encode(history)) for one in (model, blind)]
    assert not torch.equal(*seen)
    assert torch.equal(*states)


def test_towers_are_unit_vectors_and_items_pass_the_map_of_the_sequences() -> None:
    towers = build().towers
    x, h = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    hidden = (x @ towers.inner.weight.T + towers.inner.bias).relu()
    f = hidden @ towers.outer.weight.T + towers.outer.bias
    torch.testing.assert_close(towers.of_features(x), f / f.norm(dim=1, keepdim=True))
    g = h @ towers.sequence.weight.T + towers.sequence.bias
    torch.testing.assert_close(towers.of_sequences(h), g / g.norm(dim=1, keepdim=True))
    torch.testing.assert_close(
        towers.similarities(x, h), towers.of_features(x) @ towers.of_sequences(h).T / 0.07
    )


def test_towers_start_normal_with_a_deviation_of_0_02_and_biases_zero() -> None:
    torch.manual_seed(0)
    model = CMCLRec(CMCLRecConfig(hidden=128), worlds.catalogue())
    for linear in (model.towers.inner, model.towers.outer, model.towers.sequence):
        assert abs(float(linear.weight.detach().std()) - 0.02) < 0.002
        assert (linear.bias == 0).all()
    config = CMCLRecConfig()
    assert (config.temperature, config.simulated, config.cold_max, config.warm_min) == (
        0.07, 10, 10, 3,
    )  # fmt: skip
    assert (config.tower_learning_rate, config.tower_batch, config.tower_epochs) == (1e-3, 1024, 20)
    assert config.tower_dropout == 0.1


# Profiles ---------------------------------------------------------------------------------------


def mean_of(items: list[int], vectors: Tensor, present: Tensor) -> Tensor:
    """Mean vector of the items that have one, of length 1; zeros without any."""
    known = [vectors[item].double() for item in items if present[item]]
    if not known:
        return torch.zeros(vectors.shape[1], dtype=torch.float64)
    mean = torch.stack(known).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("option", Profile)
def test_profiles_are_normalised_means_of_the_clicked_items_vectors(option: Profile) -> None:
    model, history, known = build(profile=option), worlds.case_history(), worlds.catalogue()
    found = model.profile(history)
    for row, events in enumerate(worlds.CASES.values()):
        clicked = [item for item, kind in events if kind == int(Behaviour.CLICK)]
        everything = [item for item, _ in events]
        used = everything if option is Profile.all or not clicked else clicked
        expected = [
            mean_of(used, known.image, known.image_present),
            mean_of(used, known.text, known.text_present),
        ]
        if option is Profile.clicks_count:
            expected.append(torch.tensor([float(len(used))], dtype=torch.float64).log1p())
        torch.testing.assert_close(found[row], torch.cat(expected))


def test_a_half_without_any_vector_is_zeros() -> None:
    found = build().profile(worlds.history([worlds.clicks(list(worlds.NEITHER)), []]))
    assert (found == 0).all()


def test_a_profile_is_of_the_history_alone_whoever_the_user_is() -> None:
    """A training sample tells nothing of what the user did after it."""
    model, history = build(stage=JOINT), worlds.case_history()
    found = model.profile(history)
    for row in range(len(worlds.CASES)):
        alone = History(torch.tensor([11]), history.items[row : row + 1], history.behaviours[[row]])
        torch.testing.assert_close(model.profile(alone)[0], found[row])
    batch = first_batch(model.samples)
    used: list[Tensor] = []
    model.profile.register_forward_hook(lambda module, read, out: used.append(read[0].items))
    model.loss(batch)
    assert [items.tolist() for items in used] == [batch.history.items.tolist()]


# Contrast ---------------------------------------------------------------------------------------


def test_contrast_is_both_directions_halved() -> None:
    model = build()
    x, h = torch.randn(4, 12, dtype=torch.float64), torch.randn(4, 16, dtype=torch.float64)
    logits, place = model.towers.similarities(x, h), torch.arange(4)
    losses = model.contrast(x, h, place)
    rows, columns = (functional.cross_entropy(a, place) for a in (logits, logits.T))
    torch.testing.assert_close(losses["to_sequences"], rows / 2)
    torch.testing.assert_close(losses["to_features"], columns / 2)


def test_samples_of_the_same_user_are_no_negatives() -> None:
    logits = torch.randn(3, 3, dtype=torch.float64)
    rows, columns = contrast(logits, torch.tensor([7, 2, 7]))
    allowed = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    for found, matrix in ((rows, logits), (columns, logits.T)):
        terms = [matrix[i, allowed[i]].logsumexp(0) - matrix[i, i] for i in range(3)]
        torch.testing.assert_close(found, torch.stack(terms).mean())


@pytest.mark.parametrize("backbone", Backbone)
@pytest.mark.parametrize("stage", [TOWERS, JOINT])
def test_contrast_of_nobody_is_zero_and_has_a_gradient(stage: int, backbone: Backbone) -> None:
    model = build(stage, backbone=backbone, warm_min=99)
    losses = model.loss(worlds.case_batch(model.samples))
    total(losses).backward()
    assert float((losses["to_features"] + losses["to_sequences"]).detach()) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("option", Sequence)
def test_warm_users_have_three_training_events_and_an_interaction_side(option: Sequence) -> None:
    train = worlds.records()
    model = build(interactions=option)
    events = [
        train.behaviour[a:b] for a, b in zip(train.offsets[:-1], train.offsets[1:], strict=True)
    ]
    last = [kinds[-worlds.LENGTH :] for kinds in events]
    expected = [
        user
        for user, kinds in enumerate(events)
        if len(kinds) >= 3 and (option is Sequence.merged or (last[user] == 2).any())
    ]
    assert model.warm.user.tolist() == expected
    assert 0 < len(expected) < worlds.USERS


def test_the_interaction_side_is_the_latest_training_events() -> None:
    train = worlds.records()
    for option in Sequence:
        model = build(interactions=option)
        for state, user in zip(model.warm_states(), model.warm.user.tolist(), strict=True):
            a, b = train.offsets[user], train.offsets[user + 1]
            events = list(zip(train.item[a:b].tolist(), train.behaviour[a:b].tolist(), strict=True))
            history = worlds.history([events[-worlds.LENGTH :]])
            if option is Sequence.favor:
                history = history.only(Behaviour.FAVOR)
            torch.testing.assert_close(state, model.backbone.encode(history)[0])


# Simulation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [3, 7, 1 << 21])
def test_nearest_is_exact_in_blocks_and_prefers_the_smaller_of_equals(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.cmclrec.BLOCK", block)
    draws = torch.Generator().manual_seed(0)
    table = torch.randint(0, 2, (40, 3), generator=draws).double()  # many equal products
    query = torch.randint(0, 3, (9, 3), generator=draws).double()
    products = query @ table.T
    expected = products.argsort(dim=1, descending=True, stable=True)
    for count in (1, 5, 40, 99):
        assert torch.equal(nearest(query, table, count), expected[:, :count])
    assert nearest(query[:0], table, 5).shape == (0, 5)


def test_simulated_items_are_the_most_similar_ones_best_last_never_padding() -> None:
    model, history = build(simulated=4), worlds.case_history()
    with torch.no_grad():
        query = model.towers.of_features(model.profile(history))
        products = query @ model.towers.of_sequences(item_table(model.backbone)).T
        found = model.simulate(model, query, history.user)
    products[:, 0] = -torch.inf
    assert torch.equal(found.flip(1), products.topk(4).indices)
    assert (found > 0).all()


def test_more_simulated_items_than_there_are_is_all_of_them() -> None:
    model = build(simulated=99)
    found = model.simulate(model, torch.randn(1, 16, dtype=torch.float64), torch.tensor([0]))
    assert sorted(found[0].tolist()) == list(range(1, worlds.ITEMS + 1))


def test_neighbour_copies_the_latest_items_of_the_most_similar_other_warm_user() -> None:
    model, train = build(simulate=Simulate.neighbour, simulated=3), worlds.records()
    sides = model.towers.of_sequences(model.warm_states())
    for place, user in enumerate(model.warm.user.tolist()):
        query = sides[place : place + 1]  # most similar to this user
        a, b = train.offsets[user], train.offsets[user + 1]
        copied = model.simulate(model, query, torch.tensor([worlds.USERS + 1]))
        assert copied[0].tolist() == train.item[a:b][-3:].tolist()
        order = (query @ sides.T)[0].argsort(descending=True)
        other = int(model.warm.user[order[1]])
        a, b = train.offsets[other], train.offsets[other + 1]
        copied = model.simulate(model, query, torch.tensor([user]))
        assert copied[0].tolist() == train.item[a:b][-3:].tolist()


def test_without_another_warm_user_nothing_is_copied() -> None:
    for rows in ([[], worlds.clicks([1, 2])], [[], worlds.clicks([1, 2, 3])]):
        train = worlds.interactions(rows + [[]] * (worlds.USERS - 2))
        model = build(simulate=Simulate.neighbour, train=train)
        found = model.simulate(model, torch.randn(1, 16, dtype=torch.float64), torch.tensor([1]))
        assert (found == 0).all()


def test_simulated_items_stand_before_the_real_history_and_duplicates_stay() -> None:
    history = worlds.history([worlds.clicks([4, 2]), [], worlds.favors([9])])
    simulated = torch.tensor([[7, 4], [3, 1], [0, 5]])
    whole = composed(simulated, history, Behaviour.CLICK)
    assert whole.items.tolist() == [[7, 4, 4, 2], [0, 0, 3, 1], [0, 0, 5, 9]]
    assert whole.behaviours.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 2]]


@pytest.mark.parametrize("most", [10, 5, 2])
def test_warm_users_read_their_real_history_alone(most: int) -> None:
    model, history = build(cold_max=most, simulated=2), worlds.case_history()
    whole, counts = model.completed(history), history.real.sum(1)
    grown = whole.real.sum(1) - counts
    expected = torch.where(counts <= most, (worlds.LENGTH - counts).clamp(max=2), 0)
    assert grown.tolist() == expected.tolist()
    for row, count in enumerate(counts.tolist()):
        latest = whole.items[row, whole.items.shape[1] - count :]
        assert latest.tolist() == history.items[row, history.items.shape[1] - count :].tolist()


def test_what_is_read_is_cut_to_the_latest() -> None:
    model = build(simulated=10)
    full = worlds.history([worlds.clicks(list(range(1, worlds.LENGTH + 1)))])
    assert torch.equal(model.completed(full).items, full.items)


def test_tags_of_simulated_items() -> None:
    for option, tag in ((Sequence.merged, Behaviour.CLICK), (Sequence.favor, Behaviour.FAVOR)):
        model = build(interactions=option, simulated=2)
        whole = model.completed(worlds.history([[]]))
        assert whole.behaviours.tolist() == [[int(tag)] * 2]
    typed = build(backbone=Backbone.mmmlp, mmmlp=MMMLPConfig(dropout=0.0, behaviors=Reads.typed))
    assert typed.encode(worlds.case_history()).isfinite().all()


def test_items_are_mapped_once_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, history = build(), worlds.case_history()
    calls = []
    of_sequences = model.towers.of_sequences
    monkeypatch.setattr(
        model.towers, "of_sequences", lambda h: (calls.append(len(h)), of_sequences(h))[1]
    )
    with torch.no_grad():
        for _ in range(3):
            model.encode(history)
    assert calls == [worlds.ITEMS + 1]


# Stages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", Backbone)
def test_first_stage_is_the_backbone_by_itself(backbone: Backbone) -> None:
    model, history = build(stage=BACKBONE, backbone=backbone), worlds.case_history()
    batch = first_batch(model.samples)
    again = replace(batch, generator=torch.Generator().manual_seed(1))
    fresh = replace(batch, generator=torch.Generator().manual_seed(1))
    losses = next(iter(model.passes(again)))
    torch.testing.assert_close(losses, model.backbone.loss(fresh))
    torch.testing.assert_close(model.encode(history), model.backbone.encode(history))
    optimised = {id(p) for group in model.optimiser().param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.backbone.parameters()}
    assert model.selects


def test_second_stage_moves_the_towers_alone_on_all_warm_users_a_batch_at_a_time() -> None:
    model = build(stage=BACKBONE, tower_batch=4, sasrec=SASRecConfig(dropout=0.5))
    assert model.next_stage()
    assert model.selects
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = model.optimiser()
    assert {group["lr"] for group in optimiser.param_groups} == {1e-3}
    model.train()
    model.begin_epoch(0, torch.Generator().manual_seed(0))
    assert not model.backbone.training  # frozen: nothing is dropped
    counts = 0
    for batch in worlds.batches(worlds.records(), model.samples, 2):
        for losses in model.passes(batch):
            counts += 1
            optimiser.zero_grad()
            total(losses).backward()
            optimiser.step()
    assert counts == -(-len(model.warm) // 4)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("towers.")}
    draws = torch.Generator()
    assert [model.stage_ended(age, draws) for age in (19, 20)] == [False, True]
    assert not model.next_stage()


def latest(train: Interactions, user: int) -> list[worlds.Event]:
    """A user's last training events, as many as a history holds."""
    some = slice(int(train.offsets[user]), int(train.offsets[user + 1]))
    events = zip(train.item[some].tolist(), train.behaviour[some].tolist(), strict=True)
    return list(events)[-worlds.LENGTH :]


@pytest.mark.parametrize("option", Sequence)
def test_second_stage_makes_profiles_of_all_latest_training_events(option: Sequence) -> None:
    model, train = build(interactions=option), worlds.records()
    read: list[History] = []
    model.profile.register_forward_hook(lambda module, given, out: read.append(given[0]))
    model.begin_epoch(0, torch.Generator().manual_seed(0))
    list(model.passes(first_batch(model.samples)))
    (history,) = read
    users = history.user.tolist()
    assert sorted(users) == model.warm.user.tolist()
    whole = worlds.history([latest(train, user) for user in users], length=worlds.LENGTH)
    assert torch.equal(history.items, whole.items)
    assert torch.equal(history.behaviours, whole.behaviours)
    assert (history.real.sum(1) == worlds.LENGTH).any()


def test_events_that_are_no_targets_make_users_warm_too() -> None:
    train = worlds.records()
    some = replace(train, target=torch.arange(len(train.item)) % 3 == 0)
    for option in Sequence:
        expected, found = (build(interactions=option, train=each) for each in (train, some))
        assert found.warm.user.tolist() == expected.warm.user.tolist()
        rows = torch.arange(len(found.warm))
        histories = [one.warm.history(rows, worlds.LENGTH) for one in (expected, found)]
        assert torch.equal(histories[0].items, histories[1].items)


def test_the_towers_weights_do_not_decay() -> None:
    for stage in (BACKBONE, TOWERS, JOINT):
        model = build(stage, weight_decay=0.1)
        towers = {id(p) for p in model.towers.parameters()}
        groups = model.optimiser().param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert {decay.pop(each, 0.0) for each in towers} == {0.0}
        assert set(decay.values()) == (set() if stage == TOWERS else {0.1})


def test_second_stage_moves_only_cold_users_scores() -> None:
    model, history = build(cold_max=3), worlds.case_history()
    before = model.score_all(model.encode(history))
    with torch.no_grad():
        model.towers.outer.weight.normal_()
    after = model.score_all(model.encode(history))
    warm = history.real.sum(1) > 3
    assert warm.any()
    assert torch.equal(before[warm], after[warm])
    assert not torch.equal(before[~warm], after[~warm])


def test_states_of_the_frozen_backbone_are_made_once_and_forgotten_with_its_weights() -> None:
    model = build()
    model.begin_epoch(0, torch.Generator())
    kept = model.states
    model.begin_epoch(1, torch.Generator())
    assert model.states is kept
    model.load_state_dict(model.state_dict())
    assert len(model.states) == 0
    assert not any("states" in name or "warm" in name for name in model.state_dict())


def test_without_warm_users_there_is_no_second_stage() -> None:
    train = worlds.interactions([worlds.clicks([1, 2])] * worlds.USERS)
    assert not build(stage=BACKBONE, train=train).next_stage()


def test_joint_training_adds_a_tenth_of_the_contrast_and_moves_both() -> None:
    model = build(stage=JOINT, training=Training.joint)
    batch = first_batch(model.samples)
    losses = model.loss(replace(batch, generator=torch.Generator().manual_seed(1)))
    alone = model.backbone.loss(replace(batch, generator=torch.Generator().manual_seed(1)))
    warm = batch.history.real.sum(1) >= 3
    history = History(*(x[warm] for x in vars(batch.history).values()))
    apart = model.contrast(model.profile(history), model.backbone.encode(history), history.user)
    expected = {**alone, **{name: 0.1 * term for name, term in apart.items()}}
    torch.testing.assert_close(losses, expected)
    model.zero_grad()
    total({name: losses[name] for name in apart}).backward()
    assert item_table(model.backbone).grad.abs().sum() > 0
    groups = model.optimiser().param_groups
    assert [len(group["params"]) for group in groups][1] == 6
    config = CMCLRecConfig(training=Training.joint)
    alone = CMCLRec(config, worlds.catalogue())
    assert int(alone.stage) == JOINT
    assert not alone.next_stage()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"simulated": 0}, "simulated is 0"),
        ({"warm_min": 0}, "warm_min is 0"),
        ({"cold_max": -1}, "cold_max is -1"),
        ({"tower_batch": 1}, "tower_batch is 1"),
        ({"sasrec": SASRecConfig(heads=3)}, "hidden 16 is no multiple of heads 3"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


OPTIONS: list[dict[str, object]] = [
    {}, {"backbone": Backbone.mmmlp}, {"training": Training.joint},
    {"training": Training.joint, "backbone": Backbone.mmmlp}, {"simulate": Simulate.neighbour},
    {"simulated": 5}, {"simulated": 20}, {"profile": Profile.all},
    {"profile": Profile.clicks_count}, {"interactions": Sequence.favor}, {"cold_max": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains(options: dict[str, object]) -> None:
    world = planted.content(0, users=60)

    def make(catalogue: Catalogue) -> CMCLRec:
        settings = {"hidden": 16, "learning_rate": 1e-2, "tower_learning_rate": 1e-2}
        return CMCLRec(CMCLRecConfig(**{**settings, **options}), catalogue)  # type: ignore[arg-type]

    torch.manual_seed(0)
    fitted, fresh = planted.trained(make, world, seed=0, epochs=3), make(world.catalogue).eval()
    fresh.stage.fill_(int(fitted.stage))
    assert int(fitted.stage) in {TOWERS, JOINT}
    contrasts = []
    for model in (fitted, fresh):
        history = model.reading.history(world.history)
        known = history.real.any(1)
        parts = [x[known] for x in (history.user, history.items, history.behaviours)]
        with torch.no_grad():
            h = model.backbone.encode(History(*parts))
            x = model.profile(world.history)[known]
            contrasts.append(float(total(model.contrast(x, h, parts[0]))))
    assert contrasts[0] < contrasts[1] - 0.1
    assert all(p.isfinite().all() for p in fitted.parameters())


# Strength ---------------------------------------------------------------------------------------


def strength(found: list[World], **options: object) -> float:
    """Mean NDCG@10 over the seeds."""
    settings = {"hidden": 16, "learning_rate": 1e-2, "tower_learning_rate": 1e-2, "tower_batch": 64}
    given = {**settings, "sasrec": SASRecConfig(dropout=0.2), **options}
    config = CMCLRecConfig(**given)  # type: ignore[arg-type]
    scores = [
        ndcg_at_10(
            planted.trained(lambda known: CMCLRec(config, known), world, seed, 10, 32), world
        )
        for seed, world in enumerate(found)
    ]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("option", Simulate)
def test_simulated_behaviours_tell_the_taste_of_users_whose_items_the_backbone_does_not_know(
    option: Simulate,
) -> None:
    found = [planted.past(seed, users=150) for seed in SEEDS]
    popular = sum(map(planted.most_popular, found)) / len(found)
    nobody_is_cold = strength(found, cold_max=0)
    blind = strength([planted.without_content(world) for world in found], simulate=option)
    assert strength(found, simulate=option) > max(nobody_is_cold, blind, popular) + 0.1
