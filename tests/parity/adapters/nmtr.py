"""NMTR against the authors' TensorFlow graph: probabilities, losses, in all settings of the fixture."""

from __future__ import annotations

import torch

from baselines.nmtr import NMTR, NMTRConfig, Variant, log_loss
from models.interface import Catalogue
from tests.parity.pairs import Pair

MODEL = "NMTR"

VARIANTS = {"Multi_NCF": Variant.ncf, "Multi_GMF": Variant.gmf, "Multi_MLP": Variant.mlp}


def build(pair: Pair, name: str) -> NMTR:
    """The model of one setting, with its weights, in float64; the fixture's items count from 0."""
    sizes = pair.sidecar["config"]
    run = sizes["runs"][name]
    nothing = torch.zeros(sizes["items"] + 1, 1)
    flags = torch.zeros(sizes["items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=sizes["users"], items=sizes["items"], length=1,
        image=nothing, image_present=flags, text=nothing, text_present=flags, fields={},
        drops_own_events=False,
    )  # fmt: skip

    class Sized(NMTR):
        behaviours = run["behaviours"]

    config = NMTRConfig(
        hidden=sizes["embed"],
        variant=VARIANTS[run["variant"]],
        layers=run["layers"],
        reg_user=float(run["reg"]["user_and_W"]),
        reg_item=float(run["reg"]["item"]),
    )
    model = Sized(config, catalogue).double()
    w = pair.below(f"{name}/w/")
    padded = torch.nn.functional.pad
    state = {
        "P": w.pop("embedding_P"),
        "Q": padded(w.pop("embedding_Q"), (0, 0, 1, 0)),
        "b": padded(w.pop("bias").squeeze(1), (1, 0)),
    }
    for r in range(run["behaviours"]):
        ours = f"interactions.{r}"
        state[f"{ours}.h.weight"] = w.pop(f"h_{r + 1}").T
        for layer in range(1 + len(model.interactions[r].rest)):
            number = f"{r + 1}_{layer}" if f"W{r + 1}_{layer}" in w else f"{r + 1}"
            place = f"{ours}.rest.{layer - 1}" if layer else f"{ours}.first"
            state[f"{place}.weight"] = w.pop(f"W{number}").T
            if f"b{number}" in w:
                state[f"{place}.bias"] = w.pop(f"b{number}").squeeze(0)
    assert not w, f"{pair.name}: weights of {name} never used: {sorted(w)}"
    model.load_state_dict(state)

    weights = run["weights"]
    first_or_mid, last = weights["mid_or_first"], weights["last"]
    middle = [] if run["behaviours"] == 2 else [first_or_mid]
    first = first_or_mid if run["behaviours"] == 2 else 1 - first_or_mid - last
    model.shares = [first, *middle, last]
    return model.eval()


def check(pair: Pair) -> None:
    user, item = pair.tensor("in/user"), pair.tensor("in/item").unsqueeze(1) + 1
    for name, run in pair.sidecar["config"]["runs"].items():
        model = build(pair, name)
        parts = ["first", "last"] if run["behaviours"] == 2 else ["first", "mid", "last"]
        labels = [pair.tensor(f"in/label_{part}").bool() for part in parts]
        deepest = torch.stack(labels).sum(0).unsqueeze(1)

        logits = model.logits(model.P[user].unsqueeze(1), item)
        losses = model.objective(user, item, deepest)
        for r, part in enumerate(parts):
            pair.compare(f"{name}/out/score_{part}", logits[r].sigmoid().squeeze(1))
            loss = log_loss(logits[r], deepest > r)
            pair.compare(f"{name}/out/loss_{part}", loss)
            torch.testing.assert_close(losses[f"behaviour_{r + 1}"], model.shares[r] * loss)
        pair.compare(f"{name}/out/loss_total", torch.stack(list(losses.values())).sum())

        pair.compare(f"{name}/out/score_last", model.score(model.P[user], item).sigmoid()[:, 0])
        everything = model.score_all(model.P[user]).gather(1, item).squeeze(1)
        pair.compare(f"{name}/out/score_last", everything.sigmoid())
        pair.assert_all_compared(f"{name}/out/")
