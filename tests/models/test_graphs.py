"""LightGCN's propagation against dense matrices, to second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.graphs import Bipartite, Graph, distinct_pairs, light_gcn

USERS, ITEM_ROWS, WIDTH = 6, 9, 4


def edges() -> Bipartite:
    """A few random pairs; user 5 and items 7 and 8 have none."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(0, USERS - 1, (14,), generator=generator)
    item = torch.randint(1, ITEM_ROWS - 2, (14,), generator=generator)
    user, item = distinct_pairs(user, item, ITEM_ROWS)
    mixed = torch.randperm(len(user), generator=generator)
    return Bipartite(user[mixed], item[mixed], USERS, ITEM_ROWS)


def tables() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(USERS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True),
        torch.randn(ITEM_ROWS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True),
    )


def dense(graph: Graph) -> Tensor:
    """The whole matrix, users first."""
    matrix = torch.zeros(USERS + ITEM_ROWS, USERS + ITEM_ROWS, dtype=torch.float64)
    ends = graph.edges.user, USERS + graph.edges.item
    matrix.index_put_(ends, graph.values.double(), accumulate=True)
    return matrix + matrix.T


def dense_light_gcn(users: Tensor, items: Tensor, graph: Graph, layers: int) -> Tensor:
    matrix, level = dense(graph), torch.cat([users, items])
    levels = [level]
    for _ in range(layers):
        levels.append(matrix @ levels[-1])
    return torch.stack(levels).mean(0)


def test_the_graph_is_the_symmetrically_normalised_binary_matrix() -> None:
    graph = edges().normalised()
    binary = (dense(graph) > 0).double()
    degree = binary.sum(1).clamp(min=1)
    expected = binary / (degree.unsqueeze(0) * degree.unsqueeze(1)).sqrt()
    torch.testing.assert_close(dense(graph), expected, rtol=1e-6, atol=1e-6)


def test_weights_are_entries_of_the_matrix_and_a_zero_leaves_the_edge_out() -> None:
    every = edges()
    weights = torch.rand(len(every.user), generator=torch.Generator().manual_seed(2))
    weights[[1, 4, 5]] = 0
    kept = weights > 0
    alone = Bipartite(every.user[kept], every.item[kept], USERS, ITEM_ROWS)
    found = every.normalised(weights)
    torch.testing.assert_close(dense(found), dense(alone.normalised(weights[kept])))
    binary = every.normalised(kept.float())
    torch.testing.assert_close(dense(binary), dense(alone.normalised()))
    assert torch.isfinite(found.values).all()


def test_factors_do_not_normalise_again() -> None:
    graph = edges().normalised()
    factors = torch.linspace(0, 2, len(graph.values))
    torch.testing.assert_close(graph.times(factors).values, graph.values * factors)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_final_vectors_are_the_mean_of_all_levels(layers: int) -> None:
    (users, items), graph = tables(), edges().normalised()
    found = torch.cat(light_gcn(users, items, graph, layers))
    torch.testing.assert_close(found, dense_light_gcn(users, items, graph, layers))


def test_isolated_nodes_and_padding_keep_level_zero_alone() -> None:
    (users, items), graph = tables(), edges().normalised()
    user, item = light_gcn(users, items, graph, 3)
    torch.testing.assert_close(user[5], users[5] / 4)
    torch.testing.assert_close(item[[0, 7, 8]], items[[0, 7, 8]] / 4)


def test_first_and_second_derivatives_are_those_of_dense_matrices() -> None:
    graph = edges().normalised()

    def squared(users: Tensor, items: Tensor) -> Tensor:
        user, item = light_gcn(users, items, graph, 2)
        return (user @ item.T).sigmoid().square()

    assert torch.autograd.gradcheck(squared, tables())
    assert torch.autograd.gradgradcheck(squared, tables())


def test_a_gradient_flows_through_a_look_ahead_step() -> None:
    """theta' = theta - lr grad(w loss): the gradient in w of a loss at theta'."""
    (users, items), graph = tables(), edges().normalised()
    gradients = []
    for sparse in (True, False):
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

        def loss(users: Tensor, items: Tensor, sparse: bool = sparse) -> Tensor:
            final = (
                torch.cat(light_gcn(users, items, graph, 2))
                if sparse
                else dense_light_gcn(users, items, graph, 2)
            )
            return final.tanh().square().sum()

        steps = torch.autograd.grad(weight * loss(users, items), (users, items), create_graph=True)
        ahead = loss(users - 0.5 * steps[0], items - 0.5 * steps[1])
        gradients.append(torch.autograd.grad(ahead, weight)[0])
    assert float(gradients[0]) != 0
    torch.testing.assert_close(*gradients)


def test_pairs_become_distinct() -> None:
    user, item = distinct_pairs(torch.tensor([1, 0, 1, 1]), torch.tensor([3, 2, 3, 1]), 9)
    assert user.tolist() == [0, 1, 1]
    assert item.tolist() == [2, 1, 3]


def test_a_graph_without_edges_gathers_nothing() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    (users, items), graph = tables(), Bipartite(nobody, nobody, USERS, ITEM_ROWS).normalised()
    user, item = light_gcn(users, items, graph, 1)
    torch.testing.assert_close(user, users / 2)
    torch.testing.assert_close(item, items / 2)


@pytest.mark.parametrize(("user", "item"), [(USERS, 1), (0, ITEM_ROWS), (0, 0), (-1, 1)])
def test_an_edge_to_a_row_that_does_not_exist_is_an_error(user: int, item: int) -> None:
    with pytest.raises(ValueError, match="not all rows from"):
        Bipartite(torch.tensor([0, user]), torch.tensor([1, item]), USERS, ITEM_ROWS)
