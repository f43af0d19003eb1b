"""What every method of the zoo must do, whatever it is: its tests are inherited."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import Numerics, ProtocolConfig
from harness.data.batches import EvaluationHistories
from harness.data.dataset import Split, Targets
from harness.seeding import stream, torch_stream
from harness.training.numerics import passes
from harness.zoo import METHODS, REFERENCES, Method
from models.interface import Batch, Behaviour, History, Interactions, Losses, Recommender, Samples
from models.layers import Dropout
from tests import worlds
from tests.worlds import CASES, ITEMS, LENGTH, NEITHER, USERS, Event

NO_GRADIENT: dict[tuple[str, str], str] = {
    **{
        (
            "kmclr",
            f"knowledge.attention.logit.{name}",
        ): "an item here has one triple: a softmax of one"
        for name in ("weight", "bias")
    },
    **{
        ("sgdl", f"scheduler.{lstm}.weight_hh_l0{end}"): "its sequences have length one"
        for lstm in ("grad_lstm", "loss_lstm")
        for end in ("", "_reverse")
    },
    **{
        ("ssdrec", f"denoising.item_level.{name}"): "a long-term vector that the authors never use"
        for name in ("long_term.weight", "long_term.bias", "long_term_slope.weight")
    },
}
"""(method, parameter): why the method itself leaves it without a gradient."""

READS_ALL_PLACES: dict[str, str] = {
    "bert4rec": "a Cloze: masked slots are read from both sides of the window",
    "mbstr": "a Cloze: masked places are read from both sides of the window, as its authors train it",
}
"""Window methods whose training may read later events than a target's place: why."""

MOVED_AT_USE: dict[tuple[str, str], str] = {
    (
        "m3bsr",
        "waves",
    ): "sines of the steps, taken to the weights' device where they are multiplied",
    ("m3bsr", "mix"): "weights of the schedule, taken to the noise's device where it is mixed",
}
"""(method, attribute): tensors outside buffers that stay where they were made: why that is right."""

SHOWN_WITH: dict[str, dict[str, Any]] = {
    "ebm": {"prediction": "softmax"},  # one negative, and four last tokens in ten dropped: too slow
    "mmsbr": {"rounds": 1},  # six post-norm layers do not stand the rate of the test
}
"""Options of a method (an enum's member by name) with which one batch can be learned in the steps of the test."""

DROPOUT_WITH: dict[str, dict[str, Any]] = {
    "mmsbr": {"rounds": 1, "numeric": "popularity"},
    "dipn": {"intent_task": "on"},
}
"""Options with which every dropout of a method takes part."""

LINEAR_TWICE = ("linear", "linear")
DROPOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "bert4rec": {
        "dropout": ("norm",),
        **{f"layers.{n}.attention.dropout": ("softmax",) for n in (0, 1)},
        **{f"layers.{n}.dropout": LINEAR_TWICE for n in (0, 1)},
    },
    "stosa": {
        "dropout": ("norm", "norm"),
        "layers.0.attention_dropout": ("softmax",),
        "layers.0.dropout": LINEAR_TWICE,
        "layers.0.mean_feed_forward.dropout": ("linear",),
        "layers.0.cov_feed_forward.dropout": ("linear",),
    },
    "ssdrec": {
        "relations.dropout": ("sum",) * 4,
        "denoising.sequence_level.dropout": ("table", "sum"),
        "denoising.item_level.dropout": ("product",),  # of the batch norm and the mask
        "backbone.dropout": ("norm",),
        **{f"backbone.layers.{n}.dropout": ("softmax", *LINEAR_TWICE) for n in (0, 1)},
    },
    "missrec": {
        "input_dropout": ("norm",),
        "transformer.encoder.0.attention.dropout": ("softmax",),
        "transformer.encoder.0.dropout": LINEAR_TWICE,
        "transformer.encoder.0.feed_forward.dropout": ("gelu",),
        "transformer.decoder.0.attention.dropout": ("softmax",),
        "transformer.decoder.0.cross.dropout": ("softmax",),
        "transformer.decoder.0.dropout": ("linear", *LINEAR_TWICE),
        "transformer.decoder.0.feed_forward.dropout": ("gelu",),
    },
    "mmsbr": {
        "items.text_tokens.dropout": ("tanh", "tanh"),
        "items.image_tokens.dropout": ("tanh", "tanh"),
        "items.rounds.0.text_layer.dropout": LINEAR_TWICE,
        "items.rounds.0.image_layer.dropout": LINEAR_TWICE,
        "items.dropout": ("mean", "relu", "relu"),  # of old and new pivots
        "scorer.attention.dropout": ("sum", "sum", "softmax", *LINEAR_TWICE),
    },
    "m3srec": {
        "dropout": ("norm",),
        "blocks.0.experts.mixtures.0.dropout": ("gelu",),
        "blocks.0.experts.mixtures.1.dropout": ("gelu",),
        "blocks.0.dropout": ("linear", "joined"),
        "blocks.1.experts.dropout": ("gelu",),
        "blocks.1.dropout": ("linear", "sum"),
    },
    "dipn": {
        "dropout": ("joined", "joined"),
        "heads.favor.dropout": ("relu",),
        "heads.click.dropout": ("relu",),
        "intent.dropout": ("relu",),
    },
    "cmclrec": {"towers.dropout": ("relu",)},  # its backbone is frozen in the last stage
}
"""Of a method and a dropout in it: what each of its calls in a training pass of the last stage drops."""

every_method = pytest.mark.parametrize("method", METHODS + REFERENCES, ids=lambda row: row.key)
TRAINED = [method for method in METHODS + REFERENCES if method.trained]
every_trained_method = pytest.mark.parametrize("method", TRAINED, ids=lambda row: row.key)
every_case = pytest.mark.parametrize("case", CASES)


def build(method: Method, train: Interactions, seed: int = 0, **settings: Any) -> Recommender:
    """A narrow model of the small world, prepared."""
    model_class, config_class = method.load()
    torch.manual_seed(seed)
    model = model_class(config_class(hidden=16, **settings), worlds.catalogue())  # type: ignore[arg-type]
    model.prepare(train)
    return model


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def steps(model: Recommender, batches: Callable[[int], list[Batch]], epochs: int) -> float:
    """Train on these batches, as the harness does; the last total loss."""
    optimiser = model.optimiser()
    model.train()
    loss = torch.zeros(())
    for epoch in range(epochs):
        model.begin_epoch(epoch, torch_stream(epoch, "begin"))
        for batch in batches(epoch):
            for losses in model.passes(batch):
                loss = total(losses)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                model.before_step(optimiser)
                optimiser.step()
        if model.stage_ended(epoch + 1, torch_stream(epoch, "end")):
            break
    return float(loss.detach())


def fitted(method: Method, seed: int = 0, train: Interactions | None = None) -> Recommender:
    """Three epochs of every stage on the small world's records; in evaluation mode."""
    train = worlds.records() if train is None else train
    model = build(method, train, seed, learning_rate=0.01)
    more = model.trained
    while more:
        steps(model, lambda epoch: worlds.batches(train, model.samples, 16, seed=epoch), epochs=3)
        more = model.next_stage()
    return model.eval()


def members(config: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Settings in which an option stands as the name of its member."""
    return {
        name: type(getattr(config, name))[value] if isinstance(value, str) else value
        for name, value in named.items()
    }


OPERATIONS = {
    "Addmm": "linear", "Mm": "linear", "NativeLayerNorm": "norm", "Softmax": "softmax",
    "Relu": "relu", "Gelu": "gelu", "Tanh": "tanh", "Add": "sum", "Mul": "product", "Div": "mean",
    "Cat": "joined", "Stack": "joined", "Embedding": "table",
}  # fmt: skip


def made_by(x: Tensor) -> str:
    """The operation that made a tensor, whatever its shape was then."""
    node = x.grad_fn
    while node is not None and node.name() in {"ViewBackward0", "UnsafeViewBackward0"}:
        node = node.next_functions[0][0]
    assert node is not None
    name = node.name().removesuffix("Backward0")
    return OPERATIONS.get(name, name)


def dropped(model: Recommender) -> dict[str, tuple[str, ...]]:
    """What each dropout drops, call by call, in one training pass of the model's last stage."""
    found: dict[str, tuple[str, ...]] = {}
    model.train()
    while model.next_stage():
        pass
    for name, module in model.named_modules():
        if isinstance(module, Dropout | nn.Dropout):

            def note(module: nn.Module, inputs: tuple[Tensor], _: Tensor, name: str = name) -> None:
                if module.training:
                    found[name] = (*found.get(name, ()), made_by(inputs[0]))

            module.register_forward_hook(note)
    model.begin_epoch(0, torch_stream(0, "begin"))
    next(iter(model.passes(worlds.case_batch(model.samples))))
    return found


@pytest.mark.parametrize(
    "method", [row for row in METHODS if row.key in DROPOUTS], ids=lambda row: row.key
)
def test_dropout_stands_where_it_should_and_nowhere_else(method: Method) -> None:
    options = members(method.load()[1](), DROPOUT_WITH.get(method.key, {}))
    assert dropped(build(method, worlds.records(), **options)) == DROPOUTS[method.key]


def without_dropout(config: Any) -> dict[str, Any]:
    """Settings that switch it off, in nested settings too."""
    found: dict[str, Any] = {field.name: 0.0 for field in fields(config) if "dropout" in field.name}
    for name, value in vars(config).items():
        if is_dataclass(value):
            found[name] = replace(value, **without_dropout(value))
    return found


@cache
def shared(method: Method) -> Recommender:
    """A fitted model that no test may change."""
    return fitted(method)


@torch.no_grad()
def scores(model: Recommender, history: History) -> Tensor:
    """Scores of items 1 to ITEMS."""
    return model.score_all(model.encode(history))[:, 1:]


@torch.no_grad()
def candidate_scores(model: Recommender, history: History, items: Tensor) -> Tensor:
    return model.score(model.encode(history), items)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def row(history: History, number: int) -> History:
    """One user of a history, without the padding that the others need."""
    real = max(1, int(history.real[number].sum()))
    return History(
        history.user[number : number + 1],
        history.items[number : number + 1, -real:],
        history.behaviours[number : number + 1, -real:],
    )


def some_items(users: int) -> Tensor:
    draws = stream(3, "candidates")
    return torch.from_numpy(
        draws.permuted(torch.arange(1, ITEMS + 1).repeat(users, 1).numpy(), axis=1)
    )


@every_method
class TestScores:
    def test_they_are_numbers_of_the_right_shape(self, method: Method) -> None:
        model, history = shared(method), worlds.case_history()
        found = scores(model, history)
        assert found.shape == (len(CASES), ITEMS)
        assert found.is_floating_point()
        assert torch.isfinite(found).all()
        assert candidate_scores(model, history, some_items(len(CASES))[:, :3]).shape == (
            len(CASES),
            3,
        )

    def test_they_differ_between_items_and_between_users(self, method: Method) -> None:
        if method.key == "random":
            pytest.skip("Random is constant by definition")
        found = scores(shared(method), worlds.case_history())
        assert (found.std(1) > 0).all()
        assert method.key == "mostpopular" or (found[-1] - found[-2]).abs().max() > 0

    def test_they_follow_their_candidates(self, method: Method) -> None:
        model, history = shared(method), worlds.case_history()
        in_order = torch.arange(1, ITEMS + 1).repeat(len(CASES), 1)
        mixed = some_items(len(CASES))
        expected = candidate_scores(model, history, in_order).gather(1, mixed - 1)
        close(candidate_scores(model, history, mixed), expected)

    def test_other_candidates_do_not_matter(self, method: Method) -> None:
        model, history, items = shared(method), worlds.case_history(), some_items(len(CASES))
        few = candidate_scores(model, history, items[:, :4])
        close(few, candidate_scores(model, history, items)[:, :4])

    def test_some_and_all_agree(self, method: Method) -> None:
        model, history, items = shared(method), worlds.case_history(), some_items(len(CASES))
        everything = scores(model, history)
        close(candidate_scores(model, history, items), everything.gather(1, items - 1))

    def test_encoding_again_gives_the_same_and_draws_nothing(self, method: Method) -> None:
        model, history = shared(method), worlds.case_history()
        before = torch.get_rng_state()
        first = scores(model, history)
        assert torch.equal(first, scores(model, history))
        assert torch.equal(torch.get_rng_state(), before)

    def test_encoding_leaves_the_history_as_it_was(self, method: Method) -> None:
        history = worlds.case_history()
        scores(shared(method), history)
        assert torch.equal(history.items, worlds.case_history().items)
        assert torch.equal(history.behaviours, worlds.case_history().behaviours)

    @pytest.mark.parametrize("size", [1, 3])
    def test_the_batch_size_does_not_matter(self, method: Method, size: int) -> None:
        model, history = shared(method), worlds.case_history()
        parts = [
            History(user, items, behaviours)
            for user, items, behaviours in zip(
                history.user.split(size),
                history.items.split(size),
                history.behaviours.split(size),
                strict=True,
            )
        ]
        close(torch.cat([scores(model, part) for part in parts]), scores(model, history))

    def test_the_order_of_users_does_not_matter(self, method: Method) -> None:
        model, history = shared(method), worlds.case_history()
        turned = History(history.user.flip(0), history.items.flip(0), history.behaviours.flip(0))
        close(scores(model, turned).flip(0), scores(model, history))


@every_method
class TestHistories:
    def test_more_padding_changes_nothing(self, method: Method) -> None:
        model = shared(method)
        rows = [events[-4:] for events in CASES.values()]
        short = worlds.history(rows)
        expected = scores(model, short)
        for length in range(5, LENGTH + 1):
            close(scores(model, short.padded(length)), expected)

    @every_case
    def test_a_user_alone_scores_as_in_company(self, method: Method, case: str) -> None:
        """The padding of a row stands on the left, and nothing else tells where events begin."""
        model, history, number = shared(method), worlds.case_history(), list(CASES).index(case)
        alone = scores(model, row(history, number))
        assert torch.isfinite(alone).all()
        close(alone.squeeze(0), scores(model, history)[number])

    def test_only_padding_is_legal(self, method: Method) -> None:
        model = shared(method)
        nobody = worlds.history([[], []], user=[3, 5])
        found = scores(model, nobody)
        assert torch.isfinite(found).all()
        close(scores(model, nobody.padded(LENGTH)), found)

    def test_behaviours_at_padding_are_never_read(self, method: Method) -> None:
        model, history = shared(method), worlds.case_history(LENGTH)
        for garbage in Behaviour:
            behaviours = torch.where(history.real, history.behaviours, int(garbage))
            found = scores(model, replace(history, behaviours=behaviours))
            close(found, scores(model, history))

    def test_the_longest_history_is_legal(self, method: Method) -> None:
        model = shared(method)
        full = worlds.history([worlds.clicks(list(range(1, LENGTH + 1)))] * 2)
        assert torch.isfinite(scores(model, full)).all()


PAST = worlds.random_events(seed=5, most=9)
"""What each user did before the test target."""


def split_with_future(futures: list[list[Event]]) -> Split:
    """Train on PAST, test the first event of each user's future, which is followed by the rest."""
    events = worlds.interactions(
        [[*past, *future] for past, future in zip(PAST, futures, strict=True)]
    )
    position = events.offsets[:-1] + torch.tensor([len(past) for past in PAST])
    targets = Targets(
        user=torch.arange(USERS),
        item=events.item[position],
        position=position,
        left_out=torch.zeros(USERS, 2, dtype=torch.int64),  # nothing hides a target that leaks
        candidates=torch.zeros(USERS, 99, dtype=torch.int64),
    )
    return replace(worlds.split(worlds.interactions(PAST), events), test=targets)


def untouched(draws_name: str) -> list[list[Event]]:
    """A future a user, of items that are not in the user's past."""
    draws = stream(8, draws_name)
    futures = []
    for past in PAST:
        new = sorted(set(range(1, ITEMS + 1)) - {item for item, _ in past})
        items = [int(item) for item in draws.choice(new, int(draws.integers(1, 5)))]
        futures.append(worlds.favors(items[:1]) + worlds.clicks(items[1:]))
    return futures


@every_method
def test_a_changed_future_changes_nothing(method: Method) -> None:
    """The whole way of the harness: records, training, histories, scores."""
    found = []
    for name in ("one future", "another"):
        split = split_with_future(untouched(name))
        model = fitted(method, train=split.train)
        histories = EvaluationHistories(split, split.test, ProtocolConfig(max_history=LENGTH))
        rows, history = next(histories.batches(USERS))
        found.append(scores(model, history)[rows.argsort()])
    assert torch.equal(*found)


@every_trained_method
def test_a_window_reads_a_target_from_what_stands_before_it(method: Method) -> None:
    """Only one place has a target: events after it change no loss."""
    model = shared(method)
    if model.samples is not Samples.window or method.key in READS_ALL_PLACES:
        pytest.skip(READS_ALL_PLACES.get(method.key, "trained on prefixes: nothing stands after"))
    items = list(range(1, LENGTH + 1))
    for place in range(LENGTH - 1):
        losses = []
        for later in (items[place + 1 :], [9] * (LENGTH - 1 - place)):
            history = worlds.history([worlds.clicks(items[: place + 1] + later)], user=[2])
            targets = torch.zeros_like(history.items)
            targets[:, place] = 20
            batch = Batch(
                history,
                targets,
                torch.zeros(targets.shape),
                (targets > 0).float(),
                torch_stream(0, "draws"),
            )
            losses.append(total(model.loss(batch)).detach())
        close(losses[0], losses[1])


@every_trained_method
class TestTraining:
    def test_losses_are_named_finite_scalars(self, method: Method) -> None:
        model = build(method, worlds.records())
        model.begin_epoch(0, torch_stream(0, "begin"))
        for batch in [
            worlds.case_batch(model.samples),
            *worlds.batches(worlds.records(), model.samples),
        ]:
            losses = model.loss(batch)
            assert losses
            for name, term in losses.items():
                assert isinstance(name, str)
                assert term.shape == ()
                assert torch.isfinite(term), name

    def test_empty_and_odd_histories_give_no_nan_gradient(self, method: Method) -> None:
        model = fitted(method).train()
        for seed in range(3):
            total(model.loss(worlds.case_batch(model.samples, seed))).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name

    def test_in_bf16_losses_and_gradients_stay_near(self, method: Method) -> None:
        """Of every stage (`train.numerics=bf16`); weights and their gradients are float32."""
        train = worlds.records()
        model = build(method, train, learning_rate=0.01)
        more = True
        while more:
            steps(model, lambda epoch: worlds.batches(train, model.samples, 16, seed=epoch), 2)
            found = []
            for step in (Numerics.exact, Numerics.bf16):
                torch.manual_seed(3)
                model.train().zero_grad()
                model.begin_epoch(0, torch_stream(0, "begin"))
                batches = worlds.batches(train, model.samples, 16, seed=4)
                losses = [
                    total(each)
                    for batch in [*batches, worlds.case_batch(model.samples, 4)]
                    for each in passes(model, batch, step)
                ]
                torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
                gradients = [
                    torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()
                ]
                flat = torch.cat([each.flatten() for each in gradients])
                found.append((torch.stack(losses).detach(), flat.clone()))
            (exact, gradient), (losses_16, gradient_16) = found
            torch.testing.assert_close(losses_16, exact, rtol=0.02, atol=1e-3)
            assert gradient_16.dtype == torch.float32
            assert torch.cosine_similarity(gradient, gradient_16, dim=0) > 0.9
            more = model.next_stage()

    def test_every_parameter_gets_a_gradient(self, method: Method) -> None:
        train = worlds.records()
        model = build(method, train, learning_rate=0.01)
        reached = set()
        more = True
        while more:  # in one of its stages
            steps(
                model, lambda epoch: worlds.batches(train, model.samples, 16, seed=epoch), epochs=3
            )
            model.train().zero_grad()
            for epoch in range(4):
                model.begin_epoch(epoch, torch_stream(epoch, "begin"))
                batches = worlds.batches(train, model.samples, 16, seed=epoch)
                for batch in [*batches, worlds.case_batch(model.samples, epoch)]:
                    for losses in model.passes(batch):
                        total(losses).backward()  # type: ignore[no-untyped-call]
            reached |= {
                name
                for name, parameter in model.named_parameters()
                if parameter.grad is not None and parameter.grad.any()
            }
            more = model.next_stage()
        without = {name for name, _ in model.named_parameters()} - reached
        assert without == {name for key, name in NO_GRADIENT if key == method.key}

    def test_one_batch_can_be_learned(self, method: Method) -> None:
        """Each user's target comes to stand above all items that the user never touched."""
        model_class, config_class = method.load()
        batch, train = worlds.one_target_each(model_class.samples)
        history = worlds.one_target_each(Samples.prefix)[0].history
        config = config_class()
        options = members(config, SHOWN_WITH.get(method.key, {}))
        model = build(method, train, learning_rate=0.01, **without_dropout(config), **options)
        touched = torch.zeros(USERS, ITEMS, dtype=torch.bool)
        touched[train.user, train.item - 1] = True
        target = batch.targets[:, -1:] - 1

        def first() -> float:
            found = scores(model.eval(), history)
            others = found.masked_fill(touched, -torch.inf).amax(1, keepdim=True)
            return float((found.gather(1, target) > others).double().mean())

        assert first() < 0.5
        more = True
        while more:
            start = steps(model, lambda _: [batch], epochs=1)
            share, end = 0.0, start
            for _ in range(10):
                end = steps(model, lambda _: [batch], epochs=30)
                share = first()
                if share >= 0.9:
                    break
            more = model.next_stage()
        assert share >= 0.9
        assert end < start

    def test_saved_and_loaded_it_scores_the_same(self, method: Method) -> None:
        model, history = shared(method), worlds.case_history()
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = build(method, worlds.records(), seed=9).eval()
        assert not torch.equal(scores(other, history), scores(model, history))
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(scores(other, history), scores(model, history))
        other.prepare(worlds.records())
        assert torch.equal(scores(other, history), scores(model, history))

    def test_the_same_seed_gives_the_same_and_another_does_not(self, method: Method) -> None:
        history = worlds.case_history()
        first = scores(fitted(method, seed=4), history)
        assert torch.equal(scores(fitted(method, seed=4), history), first)
        assert not torch.equal(scores(fitted(method, seed=5), history), first)

    def test_draws_of_a_pass_come_from_the_batch(self, method: Method) -> None:
        """Dropout aside (evaluation mode): the same generator gives the same loss, bit for bit."""
        model = shared(method)
        before = torch.get_rng_state()
        first, again = (
            total(model.loss(worlds.case_batch(model.samples))).detach() for _ in range(2)
        )
        assert torch.equal(first, again)
        assert torch.equal(torch.get_rng_state(), before)

    def test_training_does_not_write_into_the_batch(self, method: Method) -> None:
        model = fitted(method)
        batch, fresh = worlds.case_batch(model.samples), worlds.case_batch(model.samples)
        total(model.loss(batch)).backward()  # type: ignore[no-untyped-call]
        for name in ("targets", "clicks", "favors"):
            assert torch.equal(getattr(batch, name), getattr(fresh, name))
        assert torch.equal(batch.history.items, fresh.history.items)


UNTRAINED = [method for method in REFERENCES if not method.trained]


@every_method
def test_the_zoo_says_which_rows_are_trained(method: Method) -> None:
    assert method.load()[0].trained == method.trained


@pytest.mark.parametrize("method", UNTRAINED, ids=lambda row: row.key)
def test_a_reference_row_prepares_the_same_after_loading(method: Method) -> None:
    model, other = shared(method), build(method, worlds.interactions(PAST))
    other.load_state_dict(model.state_dict())
    other.prepare(worlds.records())
    assert not list(model.parameters())
    assert torch.equal(scores(other, worlds.case_history()), scores(model, worlds.case_history()))


class TestWorlds:
    """The small world holds what the tests above are about."""

    def test_cases(self) -> None:
        history = worlds.case_history()
        assert int(history.items.max()) <= ITEMS
        assert history.items.shape[1] == LENGTH
        catalogue = worlds.catalogue()
        for present in (catalogue.image_present, catalogue.text_present):
            assert not present[list(NEITHER)].any()
            assert present.any()

    @pytest.mark.parametrize("kind", Samples, ids=lambda kind: kind.name)
    def test_batches_see_every_kind_of_user(self, kind: Samples) -> None:
        batches = worlds.batches(worlds.records(), kind, 16)
        users = torch.cat([batch.history.user for batch in batches])
        assert len(users.unique()) >= USERS - 5
        if kind is Samples.pair:
            assert all(not batch.history.real.any() for batch in batches)
            return
        read = [batch.history for batch in batches]
        assert any((~history.only(Behaviour.FAVOR).real.any(1)).any() for history in read)
        assert any((~history.only(Behaviour.CLICK).real.any(1)).any() for history in read)


def tensors(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that an object holds, however deep, with the name of the attribute it is in."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, key if isinstance(key, str) else name, seen)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors(inner, name, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for attribute, inner in vars(value).items():
            own = attribute not in {"_parameters", "_buffers", "_modules"}
            yield from tensors(inner, attribute if own else name, seen)


@every_method
def test_a_model_moves_to_another_device_whole(method: Method) -> None:
    """As far as a machine without a GPU can tell: on the meta device nothing is left on the CPU."""
    model_class, config_class = method.load()
    model = model_class(config_class(hidden=16), worlds.catalogue())
    known = {id(tensor) for _, tensor in tensors(model.catalogue, "catalogue", set())}
    model.to("meta")
    left = {
        name
        for name, tensor in tensors(model, method.key, set())
        if tensor.device.type != "meta" and id(tensor) not in known
    }
    assert left == {name for key, name in MOVED_AT_USE if key == method.key}


def combinations() -> Iterator[str]:
    yield from (method.key for method in METHODS + REFERENCES)


def test_exemptions_name_methods_that_exist() -> None:
    keys = set(combinations())
    named = {key for key, _ in (*NO_GRADIENT, *MOVED_AT_USE)}
    named |= {*READS_ALL_PLACES, *SHOWN_WITH, *DROPOUT_WITH, *DROPOUTS}
    assert named <= keys
