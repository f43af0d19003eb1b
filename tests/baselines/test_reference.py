"""Reference rows: worked by hand, and against dictionaries written from the protocol's words."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor

from baselines.reference import (
    ItemKNN,
    LastClick,
    Markov,
    MostPopular,
    Random,
    Reference,
    ReferenceConfig,
)
from harness.evaluation.metrics import hit_rate, ndcg
from harness.evaluation.ranks import above_and_tied
from harness.seeding import stream
from models.interface import Behaviour, History, Samples
from tests.worlds import batches, catalogue, history, interactions, random_events

ROWS = [Random, MostPopular, LastClick, Markov, ItemKNN]
Record = list[int]
HAND: list[Record] = [[1, 2, 2, 3], [2, 3], [3], [], [4, 1, 2]]
"""pop of 1..5: 2, 4, 3, 1, 0; distinct items a record: 3, 2, 1, 0, 3."""


def fitted(row: type[Reference], records: list[Record], items: int, length: int = 50) -> Reference:
    known = catalogue(users=len(records), items=items, length=length)
    model = row(ReferenceConfig(), known)
    model.prepare(interactions([[(item, 1) for item in record] for record in records]))
    return model


def scores(model: Reference, events: list[int]) -> list[float]:
    """Scores of items 1..items for one history."""
    state = model.encode(history([[(item, 1) for item in events]]))
    found: list[float] = model.score_all(state)[0, 1:].tolist()
    return found


def test_random_is_constant_and_its_metrics_are_exact() -> None:
    model = fitted(Random, HAND, 100)
    state = model.encode(history([[(1, 1)], [(2, 2)]]))
    found = model.score(state, torch.arange(1, 101).expand(2, -1))
    above, tied = (count.numpy() for count in above_and_tied(found[:, 1:], found[:, 0]))
    assert hit_rate(above, tied, 10) == pytest.approx([0.1, 0.1], abs=1e-12)
    assert ndcg(above, tied, 10) == pytest.approx([0.0454, 0.0454], abs=5e-5)


def test_most_popular_by_hand() -> None:
    assert scores(fitted(MostPopular, HAND, 5), [5, 1]) == [2, 4, 3, 1, 0]


def test_last_click_by_hand() -> None:
    """Item 2 stands at places 0 and 2: the last counts; item 5 was never recorded but was read."""
    found = scores(fitted(LastClick, HAND, 5), [2, 5, 2])
    assert found == pytest.approx([2e-6, 3 + 4e-6, 3e-6, 1e-6, 2], abs=1e-12)


def test_markov_by_hand() -> None:
    """Pairs: 1-2 twice, 2-3 twice, 4-1 once; 2-2 is not one. Last event 2, before it 1, then 4."""
    found = scores(fitted(Markov, HAND, 5), [3, 4, 1, 2])
    expected = [0.3 * 1 + 2e-4, 0.6 * 2 + 4e-4, 2 + 3e-4, 1e-4, 0]
    assert found == pytest.approx(expected, abs=1e-12)


def test_item_knn_by_hand() -> None:
    """Item 2 is read twice and counts twice; item 3 is not its own neighbour."""
    found = scores(fitted(ItemKNN, HAND, 5), [2, 3, 2])
    c12, c13, c23, c24 = 2 / sqrt(3), 1 / sqrt(3), 1 / sqrt(3) + 1 / sqrt(2), 1 / sqrt(3)
    expected = [
        (2 * c12 / sqrt(7) + c13 / sqrt(6)) / sqrt(5) + 2e-7,
        c23 / sqrt(6) / sqrt(7) + 4e-7,
        2 * c23 / sqrt(7) / sqrt(6) + 3e-7,
        2 * c24 / sqrt(7) / sqrt(4) + 1e-7,
        0,
    ]
    assert found == pytest.approx(expected, abs=1e-12)


def test_an_item_without_company_ties_exactly_with_others_of_its_popularity() -> None:
    """What item 1 gives itself is taken off without a rounding rest."""
    records = [[1], [1], [2], [2], [3, 4], [5, 5], [6, 7, 8]]
    found = scores(fitted(ItemKNN, records, 9), [1, 3, 1, 1])
    assert found[0] == found[1] == found[4] == 2e-7
    assert found[3] > found[5] > 0


def popularity(records: list[Record]) -> Counter[int]:
    return Counter(item for record in records for item in record)


def slow_random(records: list[Record], read: list[int], item: int) -> float:
    return 0.0


def slow_most_popular(records: list[Record], read: list[int], item: int) -> float:
    return popularity(records)[item]


def slow_last_click(records: list[Record], read: list[int], item: int) -> float:
    places = [place for place, event in enumerate(read) if event == item]
    return (1 + max(places) if places else 0) + 1e-6 * popularity(records)[item]


def slow_markov(records: list[Record], read: list[int], item: int) -> float:
    follows: dict[int, Counter[int]] = defaultdict(Counter)
    for record in records:
        for first, second in pairwise(record):
            if first != second:
                follows[first][second] += 1
    terms = zip(reversed(read), (1, 0.6, 0.3), strict=False)
    score = sum(weight * follows[event][item] for event, weight in terms)
    return score + 1e-4 * popularity(records)[item]


def slow_item_knn(records: list[Record], read: list[int], item: int) -> float:
    pop, score = popularity(records), 0.0
    for event in read:
        both = [set(record) for record in records if {event, item} <= set(record)]
        if event != item:
            together = sum(1 / sqrt(len(record)) for record in both)
            score += together / sqrt((pop[event] + 3) * (pop[item] + 3))
    return score + 1e-7 * pop[item]


SLOW = dict(
    zip(
        ROWS,
        (slow_random, slow_most_popular, slow_last_click, slow_markov, slow_item_knn),
        strict=True,
    )
)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_against_dictionaries(row: type[Reference], seed: int) -> None:
    items = 17
    events = random_events(seed, users=14, most=12, items=items)
    records = [[item for item, _ in user] for user in events]
    read = [
        [item for item, _ in user]
        for user in random_events(seed + 10, users=9, most=8, items=items)
    ]
    model = fitted(row, records, items)
    state = model.encode(history([[(item, 2) for item in user] for user in read]))
    found = model.score_all(state)[:, 1:]
    expected = [[SLOW[row](records, user, item) for item in range(1, items + 1)] for user in read]
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("row", ROWS)
def test_score_and_score_all_agree_to_the_bit_in_any_batch(row: type[Reference]) -> None:
    users, items = 60, 150
    records = [[item for item, _ in user] for user in random_events(5, users, 40, items)]
    model = fitted(row, records, items)
    state = model.encode(history(random_events(6, users, 30, items)))
    everything = model.score_all(state)
    draws = stream(7, "candidates").integers(1, items + 1, (users, 20))
    chosen = torch.from_numpy(draws)
    assert torch.equal(model.score(state, chosen), everything.gather(1, chosen))
    for size in (1, 7):
        parts: list[Tensor] = [model.score_all(part) for part in state.split(size)]
        assert torch.equal(torch.cat(parts), everything)
        narrow = zip(state.split(size), chosen.split(size), strict=True)
        assert torch.equal(
            torch.cat([model.score(part, some) for part, some in narrow]),
            everything.gather(1, chosen),
        )


@pytest.mark.parametrize("row", ROWS)
def test_padding_and_behaviour_change_no_bit(row: type[Reference]) -> None:
    model = fitted(row, HAND, 5)
    read = history([[(2, 1), (5, 2), (1, 1)], [(3, 1)], []])
    plain = model.score_all(model.encode(read))
    favors = replace(read, behaviours=torch.where(read.real, int(Behaviour.FAVOR), 0))
    assert torch.equal(model.score_all(model.encode(read.padded(9))), plain)
    assert torch.equal(model.score_all(model.encode(favors)), plain)


@pytest.mark.parametrize("row", [Markov, ItemKNN])
def test_an_empty_history_leaves_popularity(row: type[Reference]) -> None:
    found = scores(fitted(row, HAND, 5), [])
    order = torch.tensor(found).argsort(descending=True)
    assert (order + 1).tolist() == [2, 3, 1, 4, 5]


@pytest.mark.parametrize("row", ROWS)
def test_nothing_recorded_is_legal(row: type[Reference]) -> None:
    model = fitted(row, [[], []], 4)
    read: History = history([[(1, 1), (2, 1)], []])
    found = model.score_all(model.encode(read))
    assert torch.isfinite(found).all()
    assert torch.equal(
        model.score(model.encode(read), torch.tensor([[2, 4], [2, 4]])), found[:, [2, 4]]
    )


@pytest.mark.parametrize("row", ROWS)
def test_preparing_twice_is_preparing_once(row: type[Reference]) -> None:
    model, again = fitted(row, HAND, 5), fitted(row, HAND[::-1], 5)
    again.prepare(interactions([[(item, 1) for item in record] for record in HAND]))
    assert scores(again, [3, 1]) == scores(model, [3, 1])


def test_a_reference_row_is_not_trained() -> None:
    model = fitted(MostPopular, HAND, 5)
    assert not model.trained
    assert not list(model.parameters())
    assert not model.state_dict()
    with pytest.raises(TypeError, match="MostPopular is a reference row"):
        model.loss(batches(interactions(random_events(1)), Samples.prefix)[0])


@pytest.mark.parametrize("row", [Markov, ItemKNN])
def test_counts_need_no_items_by_items_memory(row: type[Reference]) -> None:
    """Kuaishou's 618,529 items: what is kept grows with events, not with items squared."""
    items = 618_529
    records = [[item for item, _ in user] for user in random_events(8, 30, 20, items)]
    model = fitted(row, records, items)
    kept = sum(buffer.numel() for buffer in model.buffers())
    assert kept < 5 * items
    state = model.encode(history([[(records[0][0], 1)]]))
    assert torch.isfinite(model.score(state, torch.tensor([[1, items]]))).all()
