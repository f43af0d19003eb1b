"""Facts of M3BSR: what its parts do, what they cannot do, and where the paper surprises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from models.diffusion import (
    AttentionChain,
    DiffusionLoss,
    Levels,
    NoiseSchedule,
    Schedule,
    ScheduleConfig,
    StackedLinear,
    denoiser,
)
from models.experts import (
    DISENTANGLEMENTS,
    DisentangleLoss,
    Dropout,
    Gate,
    LastQueryAttention,
    SelfAttention,
    cosines,
    printed_disentanglement,
)
from models.interface import Batch, Behaviour, History
from models.m3bsr import M3BSR, M3BSRConfig, portions, repaired
from models.variants import VARIANTS
from tests.models.m3bsr_world import EVENTS, ITEMS, batch, catalogue, history, shaken, small

FLOOR = 42 * math.log(6)


def train(model: M3BSR, sample: Batch, steps: int, rate: float = 1e-2) -> list[float]:
    """Main loss before each of some Adam steps."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    seen = []
    for _ in range(steps):
        terms = model.loss(sample)
        seen.append(terms["main"].item())
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    return seen


# ---------------------------------------------------------------------------- schedule, chain


def test_schedule_of_ten_steps_has_the_printed_figures() -> None:
    schedule = Schedule(ScheduleConfig(), 10)
    assert schedule.product[-1] == pytest.approx(0.592, abs=5e-4)
    assert schedule.deviation[-1] == pytest.approx(0.639, abs=5e-4)
    assert 1 / math.sqrt(schedule.product[-1]) == pytest.approx(1.299, abs=1e-3)


def test_the_range_as_alpha_explodes_the_chain() -> None:
    schedule = Schedule(ScheduleConfig(noise=NoiseSchedule.alpha), 10)
    assert 1 / math.sqrt(schedule.product[-1]) == pytest.approx(3e7, rel=0.2)
    model = shaken(small(schedule__noise="alpha", diffusion__steps=10))
    click, favor = model.split(history(EVENTS))
    sample = batch()
    training = model.training_pass(click, favor, model.draw(click, favor, sample.generator))
    assert float(training.behavior.features.detach().abs().max()) > 1e6


def test_chain_removes_more_than_the_noise_when_it_predicts_the_noise_exactly() -> None:
    schedule = Schedule(ScheduleConfig(), 10)
    coefficient = schedule.deviation[-1]
    for t in range(10, 0, -1):
        coefficient = (coefficient - schedule.gamma[t - 1]) / math.sqrt(schedule.alpha[t - 1])
    assert coefficient == pytest.approx(-0.59, abs=5e-3)


@pytest.mark.parametrize("mean", ["sqrt_alpha", "one_minus_beta"])
def test_chained_noise_has_the_variance_of_the_closed_form(mean: str) -> None:
    config = small(schedule__mean=mean).schedule
    schedule = Schedule(config, 6)
    assert torch.allclose(schedule.mix.square().sum(1), torch.ones(6, dtype=torch.float64))
    if mean == "sqrt_alpha":
        closed = [math.sqrt(1 - product) for product in schedule.product]
        assert schedule.deviation == pytest.approx(closed)


def unrolled(start: Tensor, folded: Any, schedule: Schedule, straight: bool) -> list[Tensor]:
    """The chain step by step, differentiated by autograd."""
    states = []
    for t in range(schedule.steps, 0, -1):
        source = start.detach() if straight else start
        noise = folded.noise_at(source.unsqueeze(0), [t])[0]
        start = (start - schedule.gamma[t - 1] * noise) / math.sqrt(schedule.alpha[t - 1])
        states.append(start)
    return states


@pytest.mark.parametrize("gradient", ["full", "straight"])
@pytest.mark.parametrize("block", ["attention", "block"])
def test_chain_and_its_gradient_equal_the_unrolled_steps(
    block: str, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.diffusion.CACHED", 150)  # several portions
    config = small(denoiser__block=block, chain__gradient=gradient, init__denoiser_out="xavier")
    torch.manual_seed(0)
    part = denoiser(2, 4, config).double()
    schedule = Schedule(config.schedule, 4)
    start = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    condition = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    attend = torch.rand(5, 6) > 0.3
    attend[:, -1] = True
    weight = torch.randn(4, 2, 5, 3, 8, dtype=torch.float64)
    leaves = [start, condition, *part.parameters()]
    sets = torch.arange(2)
    path, end = part(condition, attend, sets).chain(start, schedule)
    ours = torch.cat([path, end.unsqueeze(0)])
    theirs = torch.stack(
        unrolled(start, part(condition, attend, sets), schedule, gradient == "straight")
    )
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    found = torch.autograd.grad((ours * weight).sum(), leaves)
    wanted = torch.autograd.grad((theirs * weight).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


def test_backward_of_the_chain_passes_gradcheck() -> None:
    torch.manual_seed(0)
    schedule = Schedule(ScheduleConfig(), 3)
    shapes = ((2, 2, 4), (2, 6, 4), (2, 6, 4), (3, 2, 6))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def chain(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return AttentionChain.apply(*tensors, schedule, 2, False)

    assert torch.autograd.gradcheck(chain, inputs)


def test_at_the_start_the_chain_predicts_no_noise() -> None:
    torch.manual_seed(0)
    model = M3BSR(small(), catalogue()).double().eval()
    click, favor = model.split(history(EVENTS))
    noise = model.draw(click, favor, batch().generator)
    training = model.training_pass(click, favor, noise)
    gain = 1 / math.sqrt(Schedule(ScheduleConfig(), 4).product[-1])
    for stage in (*training.modality, training.behavior):
        assert stage.levels is not None
        assert torch.allclose(stage.features, stage.levels.at(4) * gain)
    clicks, _ = model.input(click, favor)
    evaluated = model.modality.evaluate(model.modality_task(clicks, 0))
    assert torch.allclose(evaluated, clicks.x[:2] * gain)


def test_the_clean_feature_cancels_in_the_printed_loss() -> None:
    """The loss is noise prediction along the chain: moving x_0 moves nothing but the predictor."""
    torch.manual_seed(0)
    model = M3BSR(small(), catalogue()).double()
    click, favor = model.split(history(EVENTS))
    noise = model.draw(click, favor, batch().generator)
    clicks, _ = model.input(click, favor)
    task = model.modality_task(clicks, 0)
    moved = replace(task, x0=task.x0 + torch.randn_like(task.x0))
    first, second = model.modality(task, noise.click), model.modality(moved, noise.click)
    assert first.loss is not None
    assert second.loss is not None
    assert first.loss.item() > 0.01
    assert first.loss.item() == pytest.approx(second.loss.item(), rel=1e-12)


def test_levels_of_one_user_are_those_of_its_own_step() -> None:
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 8), torch.randn(5, 2, 3, 4, 8)
    levels = Levels(x0, noise, [0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5])
    mine = levels.of_users(torch.tensor([5, 1, 3]))
    for user, t in enumerate((5, 1, 3)):
        assert torch.allclose(mine[:, user], levels.at(t)[:, user])


@pytest.mark.parametrize(
    "overrides", [{}, {"diffusion__loss": "noise"}, {"pooling": "mean"}], ids=str
)
def test_recomputed_chains_give_the_same_losses_and_gradients(
    overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.m3bsr.PORTION", 200)  # a few users at a time
    found = []
    for recompute in (False, True):
        model = shaken(small(chain__recompute=recompute, **overrides))
        terms = model.loss(batch())
        torch.stack(list(terms.values())).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append(terms | gradients)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize(
    "overrides", [{}, {"diffusion__loss": "noise"}, {"forward__noise": "chain"}]
)
def test_portions_of_like_lengths_change_nothing(
    overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for portion in (1 << 17, 200, 1):
        monkeypatch.setattr("models.m3bsr.PORTION", portion)
        model = shaken(small(sampling__eval_start="noised", **overrides))
        parts = portions(*model.input(*model.split(history(EVENTS))))
        assert len(parts) == {1 << 17: 1, 200: 4, 1: len(EVENTS)}[portion]
        terms = model.loss(batch())
        torch.stack(list(terms.values())).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append(terms | gradients | {"scores": model.encode(history(EVENTS))})
    widths = [clicks.x.shape[2] for _, clicks, _ in parts]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in found[0].items():
            assert torch.allclose(value, other[name], rtol=0, atol=1e-12), name


def test_stages_may_have_steps_of_their_own() -> None:
    model = M3BSR(small(diffusion__steps_m=3, diffusion__steps_b=6), catalogue())
    assert (model.modality.schedule.steps, model.behavior.schedule.steps) == (3, 6)


# ------------------------------------------------------------------------------- evaluation


def test_bypass_is_the_model_without_denoisers() -> None:
    bypass = shaken(small(sampling__eval_start="bypass"))
    bare = M3BSR(
        VARIANTS["w/o CDMD-M"](VARIANTS["w/o CDMD-B"](bypass.config)), catalogue()
    ).double()
    bare.load_state_dict(bypass.state_dict(), strict=False)
    assert torch.equal(bare.encode(history(EVENTS)), bypass.encode(history(EVENTS)))


def test_starts_differ_and_the_noised_one_follows_its_seed() -> None:
    clean = shaken(small())
    found = {"clean": clean.encode(history(EVENTS))}
    for seed in (0, 0, 1):
        model = M3BSR(small(sampling__eval_start="noised", sampling__seed=seed), catalogue())
        model.double().load_state_dict(clean.state_dict())
        found[f"{seed}" if f"{seed}" not in found else f"{seed} again"] = model.encode(
            history(EVENTS)
        )
    assert torch.equal(found["0"], found["0 again"])
    assert not torch.allclose(found["0"], found["1"])
    assert not torch.allclose(found["0"], found["clean"])


@pytest.mark.parametrize("start", ["clean", "noised", "bypass"])
@pytest.mark.parametrize("overrides", [{}, {"pooling": "mean"}, {"concat": "features"}])
def test_scores_depend_on_neither_padding_nor_company(
    start: str, overrides: dict[str, Any]
) -> None:
    model = shaken(small(sampling__eval_start=start, **overrides)).eval()
    together = model.encode(history(EVENTS))
    padded = model.encode(history(EVENTS, padding=5))
    assert torch.allclose(together, padded, rtol=0, atol=1e-12)
    for user in range(len(EVENTS)):
        whole = history(EVENTS)
        alone = History(
            whole.user[user : user + 1], whole.items[user : user + 1], whole.behaviours[[user]]
        )
        assert torch.allclose(model.encode(alone)[0], together[user], rtol=0, atol=1e-12)


def test_padding_may_hold_any_behaviour() -> None:
    model = shaken(small())
    usual = history(EVENTS)
    odd = replace(usual, behaviours=torch.where(usual.items > 0, usual.behaviours, 1))
    assert torch.equal(model.encode(usual), model.encode(odd))


def test_users_without_any_event_score_by_the_empty_vectors_alone() -> None:
    model = shaken(small())
    empty = History(torch.tensor([2, 5]), torch.zeros(2, 1).long(), torch.zeros(2, 1).long())
    scores = model.score_all(model.encode(empty))
    assert torch.isfinite(scores).all()
    assert torch.allclose(scores[0], scores[1], rtol=0, atol=1e-12)


def test_order_of_clicks_matters_and_interleaving_does_not() -> None:
    model = shaken(small())

    def one(events: list[tuple[int, int]]) -> Tensor:
        table = torch.tensor([events])
        return model.encode(History(torch.tensor([0]), table[:, :, 0], table[:, :, 1]))

    usual = one([(3, 1), (4, 2), (5, 1)])
    assert torch.equal(usual, one([(4, 2), (3, 1), (5, 1)]))
    assert not torch.allclose(usual, one([(5, 1), (4, 2), (3, 1)]))


# ---------------------------------------------------------------------------------- Eq. 20


@pytest.mark.parametrize("count", [7, 6])
def test_printed_loss_is_least_under_total_collapse(count: int) -> None:
    floor = count * (count - 1) * math.log(count - 1)
    collapsed = torch.randn(3, 1, 8, dtype=torch.float64).expand(-1, count, -1)
    collapsed = collapsed.clone().requires_grad_()
    loss = printed_disentanglement(collapsed, 0.3).mean()
    loss.backward()
    assert loss.item() == pytest.approx(floor, rel=1e-12)
    assert float(collapsed.grad.abs().max()) < 1e-12
    spread = torch.randn(50, count, 8, dtype=torch.float64)
    for one in spread:
        assert printed_disentanglement(one[None], 0.3).item() > floor
    if count == 7:
        assert floor == pytest.approx(75.254, abs=5e-4) == pytest.approx(FLOOR, abs=5e-4)


def descend(kind: DisentangleLoss, steps: int = 400) -> tuple[float, float, float]:
    """Mean cosine at the start and at the end of Adam on vectors alone, and the loss at the end."""
    torch.manual_seed(0)
    common = torch.randn(1, 1, 16)
    vectors = (common + 0.25 * torch.randn(1, 7, 16)).requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=0.02)

    def mean_cosine() -> float:
        return float((cosines(vectors.detach()).sum() - 7) / 42)

    first = mean_cosine()
    for _ in range(steps):
        loss = DISENTANGLEMENTS[kind](vectors, 0.3).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return first, mean_cosine(), DISENTANGLEMENTS[kind](vectors, 0.3).item()


def test_printed_loss_does_not_separate_what_begins_together() -> None:
    first, last, loss = descend(DisentangleLoss.printed)
    assert first > 0.9
    assert last > first
    assert loss == pytest.approx(FLOOR, abs=1e-3)


def test_separate_loss_reaches_the_simplex() -> None:
    _, last, _ = descend(DisentangleLoss.separate)
    assert last == pytest.approx(-1 / 6, abs=0.01)


def test_orthogonal_loss_reaches_right_angles() -> None:
    _, last, loss = descend(DisentangleLoss.orthogonal)
    assert abs(last) < 0.02
    assert loss < 1e-3


# ------------------------------------------------------------------ sizes, start, parameters


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("d", "layers"), [(8, 2), (64, 1), (64, 3)])
def test_number_of_parameters_is_the_formula(d: int, layers: int) -> None:
    world = replace(
        catalogue(), image=torch.zeros(ITEMS + 1, 512), text=torch.zeros(ITEMS + 1, 512), length=50
    )
    config = M3BSRConfig(hidden=d)
    config.expert.layers = layers
    rows = (ITEMS + 1) + 4 + len(EVENTS)  # item, brand, user
    formula = (
        16 * rows + 16 * 3 * d + d + d**2 + d + 1026 * d + 14 * d + 5 * (5 * d**2 + 5 * d)
        + 7 * layers * (12 * d**2 + 13 * d) + 450 * d + 4 * d**2 + 4 * d + 13 * d**2 + 2 * d
        + (ITEMS + 1) * (d + 1)  # row 0, padding, is one more than the items
    )  # fmt: skip
    assert count(M3BSR(config, world)) == formula


@pytest.mark.parametrize("hidden", [16, 64])
@pytest.mark.parametrize(
    "overrides",
    [
        {}, {"denoiser__sharing": "per_stage"}, {"denoiser__sharing": "per_feature"},
        {"denoiser__block": "block"}, {"denoiser__time_embedding": False},
    ],
    ids=str,
)  # fmt: skip
def test_twin_has_the_parameters_of_the_denoiser_it_replaces(
    hidden: int, overrides: dict[str, Any]
) -> None:
    config = small(hidden=hidden, **overrides)
    ours = M3BSR(config, catalogue()).modality
    twin = M3BSR(VARIANTS["MLP twin"](config), catalogue()).modality
    assert count(twin) == pytest.approx(count(ours), rel=0.05)


def test_every_matrix_starts_xavier_uniform_on_its_own() -> None:
    torch.manual_seed(0)
    model = M3BSR(small(hidden=64), catalogue())
    for module in model.modules():
        if isinstance(module, SelfAttention):
            for part in module.project.weight.chunk(3, 1):
                bound = math.sqrt(6 / 128)
                assert 0.99 * bound < float(part.detach().abs().max()) <= bound
    for stage in (model.modality, model.behavior):
        assert not stage.denoiser.attention.out.weight.any()
        assert stage.denoiser.attention.value.weight.any()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)
    for table in (*model.input.id.tables, model.output.weight):
        assert float(table.detach().std()) == pytest.approx(
            0.02, rel=0.35
        )  # 64 values in the smallest


@pytest.mark.parametrize("block", ["attention", "block"])
def test_xavier_start_predicts_noise(block: str) -> None:
    torch.manual_seed(0)
    zero = M3BSR(small(denoiser__block=block), catalogue()).modality.denoiser
    xavier = M3BSR(small(denoiser__block=block, init__denoiser_out="xavier"), catalogue())
    assert not zero.last.weight.any()
    assert xavier.modality.denoiser.last.weight.any()


@pytest.mark.parametrize(
    "overrides",
    [
        {}, {"denoiser__block": "block"}, {"routing__gate": "per_expert"},
        {"routing__gate": "tile"}, {"output__layer": "tied"}, {"concat": "features"},
        {"expert__norm": "pre"}, {"pooling": "mean"}, {"reverse__input": "forward"},
        {"chain__gradient": "straight"}, {"diffusion__loss": "noise"},
    ],
    ids=str,
)  # fmt: skip
def test_every_parameter_gets_a_gradient(overrides: dict[str, Any]) -> None:
    model = shaken(small(**overrides))
    torch.stack(list(model.loss(batch()).values())).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_at_the_start_only_the_last_layer_of_a_denoiser_learns() -> None:
    """W_o is 0, so nothing before it has a slope yet; one step later everything has."""
    torch.manual_seed(0)
    model = M3BSR(small(), catalogue())
    sample = batch()

    def silent() -> set[str]:
        model.zero_grad()
        torch.stack(list(model.loss(sample).values())).sum().backward()
        return {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}

    stopped = {
        f"{stage}.denoiser.{part}.{kind}"
        for stage in ("modality", "behavior")
        for part in ("time.project", "attention.query", "attention.key", "attention.value")
        for kind in ("weight", "bias")
    }
    assert silent() == stopped
    model.optimiser().step()
    assert not silent()


@pytest.mark.parametrize("overrides", [{}, {"diffusion__loss": "noise"}], ids=str)
def test_a_batch_can_be_learned(overrides: dict[str, Any]) -> None:
    torch.manual_seed(0)
    losses = train(M3BSR(small(hidden=16, **overrides), catalogue()), batch(), 60)
    assert losses[-1] < 0.2 * losses[0]


def test_same_seed_same_loss_and_another_generator_another_noise() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = M3BSR(small(expert__dropout=0.1), catalogue())
        found.append({n: v.item() for n, v in model.loss(batch(seed)).items()})
    assert found[0] == found[1]
    assert found[0]["modality"] != found[2]["modality"]


# ----------------------------------------------------------------------------------- parts


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    torch.manual_seed(0)
    drop = Dropout(0.1)
    x = torch.ones(1000, 301, requires_grad=True)
    y = drop(x)
    y.sum().backward()
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.003)
    assert float(y.detach().mean()) == pytest.approx(1.0, abs=0.003)
    assert torch.equal(x.grad, y.detach())
    assert len(y.detach().unique()) == 2
    assert drop.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_last_query_attention_is_the_last_row_of_the_full_one() -> None:
    torch.manual_seed(0)
    full, last = SelfAttention(3, 8, 2).double(), LastQueryAttention(3, 8, 2).double()
    last.load_state_dict(full.state_dict())
    for parameter in (full.project.bias, full.out.bias):
        parameter.data.normal_()
    last.load_state_dict(full.state_dict())
    x = torch.randn(3, 4, 6, 8, dtype=torch.float64)
    mask = torch.zeros(4, 6, dtype=torch.float64)
    mask[1, :3] = -math.inf
    assert torch.allclose(full(x, mask)[:, :, -1:], last(x, mask), rtol=0, atol=1e-13)


def test_stacked_linear_may_serve_one_set_twice() -> None:
    torch.manual_seed(0)
    layer = StackedLinear(2, 4, 3)
    x = torch.randn(3, 5, 4)
    mapped = layer(x, torch.tensor([1, 0, 1]))
    for row, index in enumerate((1, 0, 1)):
        assert torch.allclose(mapped[row], x[row] @ layer.weight[index].T, atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "terms"),
    [
        ("w/o CDMD-M", {"main", "contrast", "behavior"}),
        ("w/o CDMD-B", {"main", "contrast", "modality"}),
        ("w/o MEIE", {"main", "modality", "behavior"}),
        ("w/o Shared Expert", {"main", "contrast", "modality", "behavior"}),
        ("w/o Disent", {"main", "modality", "behavior"}),
        ("MLP twin", {"main", "contrast", "behavior"}),
    ],
)
def test_an_ablation_loses_the_term_of_the_part_it_takes_out(variant: str, terms: set[str]) -> None:
    config = small()
    changed = VARIANTS[variant](config)
    assert changed != config == small()
    assert M3BSR(changed, catalogue()).loss(batch()).keys() == terms


def test_repaired_changes_two_readings() -> None:
    config = repaired(M3BSRConfig())
    assert config.diffusion.loss is DiffusionLoss.noise
    assert config.disent.loss is DisentangleLoss.separate
    config.diffusion.loss = DiffusionLoss.printed
    config.disent.loss = DisentangleLoss.printed
    assert config == M3BSRConfig()


def test_a_modality_that_no_item_has_is_legal() -> None:
    world = replace(
        catalogue(),
        image=torch.zeros(ITEMS + 1, 0),
        image_present=torch.zeros(ITEMS + 1, dtype=torch.bool),
    )
    model = M3BSR(small(), world)
    torch.stack(list(model.loss(batch()).values())).sum().backward()
    assert model.input.image.missing.grad.any()


def test_no_fields_beside_ids_is_legal() -> None:
    model = M3BSR(small(), replace(catalogue(), fields={}))
    assert torch.isfinite(model.score_all(model.encode(history(EVENTS)))).all()


def test_settings_are_set_from_the_command_line_by_name() -> None:
    schema = OmegaConf.structured(M3BSRConfig)
    given = ["schedule.noise=alpha", "routing.gate=scalar", "diffusion.steps=15", "loss.tau=0.5",
             "chain.gradient=straight", "init.denoiser_out=xavier", "concat=features", "heads=8",
             "expert.norm=pre", "pooling=mean", "denoiser.time_embedding=false"]  # fmt: skip
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_dotlist(given)))
    assert isinstance(config, M3BSRConfig)
    assert config.routing.gate is Gate.scalar
    assert config.schedule.noise is NoiseSchedule.alpha
    assert (config.diffusion.steps, config.heads, config.loss.tau) == (15, 8, 0.5)
    assert config.denoiser.time_embedding is False


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"heads": 3}, "model.heads=3 does not divide model.hidden=8"),
        ({"hidden": 9, "heads": 3}, "model.hidden=9 is odd"),
        ({"diffusion__steps": 0}, "model.diffusion.steps=0"),
        ({"diffusion__steps_b": -1}, "model.diffusion.steps_b=-1"),
        ({"expert__layers": 0}, "model.expert.layers=0"),
        ({"loss__tau": 0.0}, "model.loss.tau=0.0"),
        ({"loss__lambda_m": -0.1}, "model.loss.lambda_m=-0.1"),
        ({"expert__dropout": 1.0}, "model.expert.dropout=1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        M3BSR(small(**overrides), catalogue())


def test_behaviours_are_taken_apart() -> None:
    click, favor = M3BSR.split(history(EVENTS))
    assert set(click.behaviours.unique().tolist()) == {0, int(Behaviour.CLICK)}
    assert set(favor.behaviours.unique().tolist()) == {0, int(Behaviour.FAVOR)}
    assert [row[row > 0].tolist() for row in click.items] == [clicks for clicks, _ in EVENTS]
