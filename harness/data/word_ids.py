"""Bags of anonymous word ids as vectors: a stand-in where a source has no readable text.

Axes: item; words = 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

WIDTH = 512
"""As many numbers as a CLIP vector has."""
METHOD = (
    f"signed feature hashing of word-id counts to {WIDTH} dimensions "
    "(scikit-learn HashingVectorizer), L2-normalised; not CLIP: the source has no readable text"
)
"""For the manifest."""


def hasher() -> Any:
    """Turns lists of word ids into rows of length 1.

    Signed hashing (Weinberger et al., ICML 2009, arXiv:0902.2206) keeps inner products of bags in expectation,
    needs no vocabulary, no pass before it and no seed: the same words give the same vector in every set. Words
    are counted, not weighed by rarity.
    """
    from sklearn.feature_extraction.text import (  # noqa: PLC0415 - it costs a second that few readers need
        HashingVectorizer,
    )

    return HashingVectorizer(
        n_features=WIDTH, analyzer=str.split, norm="l2", alternate_sign=True, dtype=np.float32
    )


def hashed(bags: Sequence[str], vectorizer: Any) -> Float[ndarray, "item words"]:
    """A row for each bag of blank-separated words; all zeros for an empty one."""
    rows: ndarray = vectorizer.transform(bags).toarray()
    return rows
