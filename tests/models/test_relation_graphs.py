"""Relation graphs against dense loops over all pairs, and what keeps them sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.relation_graphs import Relation, RelationGraphs, Rules, relation_graphs, windows

ITEMS = 14
EVERYTHING = {"neighbours": None, "most_users": None}


def sequences(seed: int = 0, users: int = 20, length: int = 8) -> torch.Tensor:
    """Windows of 0 to `length` events, low ids more often."""
    draws = np.random.default_rng(seed)
    rows = 1 + (ITEMS * draws.random((users, length)) ** 2).astype(int)
    number = draws.integers(1, length + 1, users)
    number[3] = 0
    return torch.from_numpy(rows * (np.arange(length) < number[:, None]))


def build(windows_: torch.Tensor, **rules: object) -> dict[str, np.ndarray]:
    """Dense arrays of the graphs."""
    found = relation_graphs(windows_, ITEMS + 1, Rules(**{"min_count": 1, **EVERYTHING, **rules}))
    return {name: getattr(found, name).toarray() for name in found.edges}


def to_one(matrix: np.ndarray) -> np.ndarray:
    """Columns divided by their sums, then transposed."""
    sums = matrix.sum(0)
    return (matrix / np.where(sums == 0, 1, sums)).T


def slow_strangers(near: np.ndarray, direct: np.ndarray, left_out: set[int]) -> np.ndarray:
    """Pairs that are not related but share neighbours, by loops."""
    found = np.zeros_like(near)
    for i in range(len(near)):
        for j in range(len(near)):
            common = (near[i] > 0) & (near[j] > 0)
            if i != j and direct[i, j] == 0 and not {i, j} & left_out and common.any():
                found[i, j] = (near[i] + near[j])[common].sum()
    return found


def slow(rows: list[list[int]], min_count: int, share: float) -> dict[str, np.ndarray]:
    """The graphs, one pair at a time."""
    size, users = ITEMS + 1, len(rows)
    weight, count, user_item = (
        np.zeros((size, size)),
        np.zeros((size, size)),
        np.zeros((users, size)),
    )
    for u, row in enumerate(rows):
        for t, i in enumerate(row):
            user_item[u, i] += 1
            for s, j in enumerate(row[t + 1 :], start=1):
                weight[i, j] += (len(row) - s) / len(row)
                count[i, j] += 1
    follows = weight * (count > min_count)
    together = count + count.T
    np.fill_diagonal(together, 0)
    frequency = user_item[:, 1:].sum(0)
    rare = np.argsort(frequency, kind="stable")[: int(np.ceil(share * ITEMS))] + 1
    incompatible = slow_strangers(together * (together > min_count), together, {0, *rare.tolist()})
    similar = np.zeros((users, users))
    for u in range(users):
        for v in range(users):
            shared = sum(i in rows[v] for i in rows[u]) + sum(i in rows[u] for i in rows[v])
            if u != v and shared:
                similar[u, v] = shared / (len(rows[u]) + len(rows[v]))
    idle = np.argsort([len(row) for row in rows], kind="stable")[
        : int(np.ceil(share * (users - 1)))
    ]
    dissimilar = slow_strangers(similar, similar, set(idle.tolist()))
    row_sums = follows.sum(1, keepdims=True)
    return {
        "user_item": user_item,
        "item_in": to_one(follows),
        "item_out": follows / np.where(row_sums == 0, 1, row_sums),
        "item_incompatible": to_one(incompatible),
        "user_similar": to_one(similar + np.eye(users)),
        "user_dissimilar": to_one(dissimilar),
    }


@pytest.mark.parametrize("min_count", [0, 1])
@pytest.mark.parametrize("share", [0.8, 0.3])
def test_without_limits_every_graph_is_that_of_loops_over_all_pairs(
    min_count: int, share: float
) -> None:
    filled: set[str] = set()
    for seed in range(8):
        windows_ = sequences(seed, length=3 + seed % 3)
        found = build(windows_, min_count=min_count, rare_items=share, idle_users=share)
        rows = [[i for i in row if i] for row in windows_.tolist()]
        for name, expected in slow(rows, min_count, share).items():
            np.testing.assert_allclose(found[name], expected, atol=1e-12, err_msg=name)
            filled |= {name} if expected.any() else set()
    assert len(filled) >= (6 if share < 0.5 else 4)  # each was put to the test


def test_items_are_related_in_the_order_of_events() -> None:
    found = build(torch.tensor([[1, 2, 0], [1, 2, 3], [1, 2, 3]]), min_count=1)
    out, into = found["item_out"], found["item_in"]
    assert out[1].argmax() == 2
    assert not out[3].any()  # nothing follows it
    assert not into[1].any()  # nothing comes before it
    # a gap of s in a window of n weighs (n - s) / n: 1 to 2 three times, 1 to 3 twice
    ones, twos = 1 / 2 + 2 / 3 + 2 / 3, 1 / 3 + 1 / 3
    np.testing.assert_allclose(out[1, 2:4], [ones / (ones + twos), twos / (ones + twos)])


def test_rows_sum_to_one_or_nothing() -> None:
    for name, matrix in build(sequences(), neighbours=3).items():
        if name != "user_item":
            sums = matrix.sum(1)
            assert ((np.abs(sums - 1) < 1e-12) | (sums == 0)).all()


def test_each_row_keeps_its_heaviest_neighbours() -> None:
    whole, few = build(sequences(1)), build(sequences(1), neighbours=2)
    for name in ("item_in", "item_out", "user_similar"):
        own = np.eye(len(few[name])) if name == "user_similar" else 0  # a user itself always stays
        for all_of_row, kept in zip(whole[name] * (1 - own), few[name] * (1 - own), strict=True):
            assert (kept > 0).sum() == min(2, (all_of_row > 0).sum())
            if (kept > 0).any():
                left = all_of_row[kept == 0]
                assert all_of_row[kept > 0].min() >= left.max()
    assert (few["user_similar"].diagonal() > 0).all()


def test_a_bridge_joins_only_the_neighbours_that_it_keeps() -> None:
    windows_ = torch.tensor([[1, 2]] * 3 + [[1, 3]] * 2 + [[1, 4]])

    def joined(neighbours: int | None) -> list[list[int]]:
        found = build(windows_, min_count=0, rare_items=0.0, neighbours=neighbours)
        return np.argwhere(found["item_incompatible"]).tolist()

    assert joined(2) == [[2, 3], [3, 2]]
    assert joined(None) == [[2, 3], [2, 4], [3, 2], [3, 4], [4, 2], [4, 3]]


def test_an_item_of_too_many_users_makes_nobody_similar() -> None:
    windows_ = torch.tensor([[1, 2], [1, 3], [1, 4], [5, 2]])
    assert build(windows_)["user_similar"][0, 1] > 0
    found = build(windows_, most_users=2)["user_similar"]
    assert found[0, 1] == 0
    assert found[0, 3] > 0  # through item 2, which two users have


def test_padding_counts_only_when_asked_for() -> None:
    windows_ = torch.tensor([[1, 2, 0], [3, 0, 0], [0, 0, 0]])
    assert not build(windows_)["user_item"][:, 0].any()
    assert build(windows_, count_padding=True)["user_item"][:, 0].tolist() == [1, 2, 0]


def test_windows_are_the_last_events_of_each_user() -> None:
    user, item = torch.tensor([0, 0, 0, 2]), torch.tensor([4, 5, 6, 7])
    assert windows(user, item, 4, 2).tolist() == [[5, 6], [0, 0], [7, 0], [0, 0]]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert windows(nothing, nothing, 2, 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_nobody_and_nothing_make_empty_graphs() -> None:
    found: RelationGraphs = relation_graphs(torch.zeros(3, 4).long(), 5, Rules(1))
    assert found.edges == {
        "user_item": 0, "item_in": 0, "item_out": 0, "item_incompatible": 0,
        "user_similar": 3, "user_dissimilar": 0,
    }  # fmt: skip


def test_blocks_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(sequences(2, users=40), neighbours=3)
    monkeypatch.setattr("models.relation_graphs.ROWS", 3)
    for name, matrix in build(sequences(2, users=40), neighbours=3).items():
        np.testing.assert_allclose(matrix, whole[name], atol=1e-12)


def test_a_relation_is_a_product_with_a_gradient() -> None:
    matrix = relation_graphs(sequences(), ITEMS + 1, Rules(1)).user_item
    relation = Relation(*matrix.shape).double()
    relation.fill(matrix)
    dense = torch.from_numpy(matrix.toarray())
    table = torch.randn(ITEMS + 1, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(relation(table), dense @ table)
    torch.autograd.gradcheck(relation, table)
    assert not relation.state_dict()
    with pytest.raises(ValueError, match="is not one of"):
        Relation(2, 2).fill(matrix)


def test_kuaishous_shape_needs_little_memory() -> None:
    """Edges are at most `neighbours` a row, however many items share a window."""
    draws = np.random.default_rng(0)
    windows_ = torch.from_numpy(draws.integers(1, 6001, (300, 50)))
    edges = relation_graphs(windows_, 600_001, Rules(0, neighbours=5)).edges
    assert edges["item_in"] <= 5 * 6000
    assert edges["user_similar"] <= 6 * 300
