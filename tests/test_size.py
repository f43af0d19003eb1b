"""No method's memory grows with users x items or batch x items: the largest tensor of a step is watched."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.config import ProtocolConfig, TrainConfig
from harness.data.batches import TrainingSamples
from harness.training.loop import StoppedError, Trainer
from harness.zoo import METHODS, REFERENCES, Method
from models.interface import History
from tests import worlds

USERS, ITEMS, BATCH, LENGTH = 192, 20_000, 128, 6
FULL = BATCH * ITEMS
"""Entries of a matrix of a batch's logits; users x items has half as many again."""
BLOCKS = (
    ("models.softmax", "BLOCK"),
    ("models.gumbel", "BLOCK"),
    ("baselines.gru4rec", "BLOCK"),
    ("baselines.kmclr", "BLOCK_NUMBERS"),
    ("baselines.sgdl", "COLUMN_NUMBERS"),
    ("baselines.nmtr", "MOST_HIDDEN"),
    ("baselines.dipn", "BLOCK"),
    ("baselines.missrec", "POINTS"),
    ("baselines.missrec", "WHOLE"),
    ("baselines.mmsbr", "BLOCK"),
)
"""Constants that bound what is held at once: here as many times smaller as the world is."""
BOUNDED = {"mmsbr": {"contrastive_items": 64}, "ssdrec": {"candidate_items": 64}}
"""Settings that do the same."""


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation gave or wrote, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at every result; an expanded one counts as what it is stored in."""
        del types
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                stored = leaf.untyped_storage().nbytes() // leaf.element_size()
                entries = min(leaf.numel(), stored)
                if entries > self.entries:
                    self.entries, self.operation = entries, f"{func} {list(leaf.shape)}"
        return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in BLOCKS:
        made = importlib.import_module(module)
        monkeypatch.setattr(made, name, getattr(made, name) >> 4)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", METHODS + REFERENCES, ids=lambda method: method.key)
def test_no_step_holds_users_or_a_batch_times_the_catalogue(method: Method) -> None:
    model_class, config_class = method.load()
    torch.manual_seed(0)
    often = worlds.clicks([1, 2, 3])  # some items follow each other, as SSDRec's graph needs
    drawn = worlds.random_events(2, USERS, 7, ITEMS)
    train = worlds.interactions([often + events for events in drawn])
    catalogue = worlds.catalogue(USERS, ITEMS, LENGTH)
    with Largest() as largest:
        model = model_class(config_class(hidden=16, **BOUNDED.get(method.key, {})), catalogue)
        model.prepare(train)
        if model.trained:
            protocol = ProtocolConfig(max_history=LENGTH)
            samples = TrainingSamples(
                worlds.split(train), model.samples, protocol, TrainConfig(batch_size=BATCH)
            )
            assert len(samples) >= BATCH
            asked = iter(range(1))  # one batch
            with suppress(StoppedError):
                Trainer(model, samples, seed=1).epoch(0, lambda: next(asked, None) is None)
        model.eval()
        with torch.no_grad():
            rows = [worlds.clicks([1, 5, 9]) + worlds.favors([9])] * BATCH
            history: History = worlds.history(rows)
            model.score(model.encode(history), torch.randint(1, ITEMS, (BATCH, 100)))
    assert largest.entries < 0.8 * FULL, largest.operation
