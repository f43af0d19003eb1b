"""What two or more methods share.

Axes: batch, cand = candidate items, item_row = items + 1 (row 0 is padding), d = hidden width.
"""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from models.interface import History, Recommender


class DotProduct(Recommender):
    """A method whose score is a dot product of a user vector and an item vector, plus a bias."""

    @abstractmethod
    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """User vectors."""

    @abstractmethod
    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """One vector an item; row 0 (padding) is never a candidate."""

    def item_bias(self) -> Float[Tensor, " item_row"] | None:
        """One bias an item, or none."""
        return None

    def score(
        self, state: Float[Tensor, "batch d"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Dot products with the candidates' rows."""
        scores = (self.item_vectors()[items] @ state.unsqueeze(-1)).squeeze(-1)
        bias = self.item_bias()
        return scores if bias is None else scores + bias[items]

    def score_all(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch item_row"]:
        """Dot products with every row, as one matrix product."""
        scores = state @ self.item_vectors().T
        bias = self.item_bias()
        return scores if bias is None else scores + bias
