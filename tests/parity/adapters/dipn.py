"""DIPN (reconstruction): states, both levels of attention, logits and losses of its formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from baselines.dipn import DIPN, TASKS, VIEWS, Attributes, DIPNConfig
from models.interface import Catalogue, History
from tests.parity.pairs import Pair

MODEL = "DIPN"

GRU = {"Wi": "weight_ih_l0", "Wh": "weight_hh_l0", "bi": "bias_ih_l0", "bh": "bias_hh_l0"}
ADDITIVE = {"W": "inner.weight", "b": "inner.bias", "v": "outer.weight"}
TOWER = {
    "fc1_W": "inner.weight",
    "fc1_b": "inner.bias",
    "fc2_W": "outer.weight",
    "fc2_b": "outer.bias",
}


def build(pair: Pair) -> DIPN:
    """The model of the pair's sizes with its weights, in float64."""
    sizes, given = pair.sidecar["config"], pair.below("w/")
    nothing = torch.zeros(sizes["items"] + 1, 1)
    flags = torch.zeros(sizes["items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=sizes["batch"], items=sizes["items"], length=2 * sizes["length"], image=nothing,
        image_present=flags, text=nothing, text_present=flags, fields={}, drops_own_events=False,
    )  # fmt: skip
    config = DIPNConfig(
        hidden=sizes["d"], recurrent_width=sizes["hidden"], attention_width=sizes["attention"],
        dropout=0.0, attributes=Attributes.off,
    )  # fmt: skip
    model = DIPN(config, catalogue).double()
    state = {"items.weight": given.pop("item")}
    for view in VIEWS:
        for theirs, ours in GRU.items():
            state[f"views.{view}.recurrence.cell.{ours}"] = given.pop(f"{view}/gru_{theirs}")
        for theirs, ours in ADDITIVE.items():
            value = given.pop(f"{view}/att_{theirs}")
            state[f"views.{view}.attention.{ours}"] = value.unsqueeze(0) if theirs == "v" else value
    for theirs, ours in ADDITIVE.items():
        value = given.pop(f"top_{theirs}")
        state[f"fusion.attention.{ours}"] = value.unsqueeze(0) if theirs == "v" else value
    for task in TASKS:
        for theirs, ours in TOWER.items():
            state[f"heads.{task}.{ours}"] = given.pop(f"{task}/{theirs}")
    assert not given, f"weights that were not read: {sorted(given)}"
    model.load_state_dict(state)
    return model.eval()


def merged(pair: Pair) -> History:
    """The two sequences in one history, clicks before favors; the model takes them apart again."""
    items = torch.cat([pair.tensor(f"in/{view}") for view in VIEWS], 1)
    tags = torch.cat(
        [torch.full_like(pair.tensor(f"in/{view}"), int(b)) for view, b in VIEWS.items()], 1
    )
    history = History(torch.arange(len(items)), items, tags * (items > 0))
    return history.keep(items > 0)


def to_the_right(values: Tensor, real: Tensor, length: int) -> Tensor:
    """The fixture's layout: padding on the left, zero there."""
    out = values.new_zeros(len(values), length, *values.shape[2:])
    for row, count in enumerate(real.sum(1).tolist()):
        out[row, length - count :] = values[row, :count]
    return out


def check(pair: Pair) -> None:
    model, history = build(pair), merged(pair)
    sizes = pair.sidecar["config"]
    for name, behaviour in VIEWS.items():
        x, real = model.view_input(history, behaviour)
        view = model.views[name]
        states = view.states(x, real)
        pair.compare(f"out/{name}/states", to_the_right(states, real, sizes["length"]))
        alpha = view.attention(states, real)
        pair.compare(f"out/{name}/alpha", to_the_right(alpha, real, sizes["length"]))
        pair.compare(f"out/{name}/vector", view(x, real))
    views, present = model.view_vectors(history)
    pair.compare("out/beta", model.fusion.weights(views, present))
    user = model.encode(history)
    pair.compare("out/user", user)

    candidates = pair.tensor("in/candidates")
    vectors, costs = model.items(candidates), {}
    for task in TASKS:
        logits = model.logits(task, user, vectors)
        pair.compare(f"out/logit_{task}", logits)
        labels = pair.tensor(f"in/label_{task}")
        costs[task] = functional.binary_cross_entropy_with_logits(logits, labels)
        pair.compare(f"out/loss_{task}", costs[task])
    pair.compare("out/logit_favor", model.score(user, candidates))
    pair.compare("out/logit_favor", model.score_all(user).gather(1, candidates))
    assert model.weighting.weights == sizes["task_weights"]
    pair.compare("out/loss", torch.stack(list(model.weighting(costs).values())).sum())
    pair.assert_all_compared("out/")
