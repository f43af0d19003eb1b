"""CMCLRec against an independent implementation of the reconstruction: towers, losses, simulation."""

from __future__ import annotations

import torch

from baselines.cmclrec import CMCLRec, CMCLRecConfig, composed, contrast, item_table, nearest
from models.interface import Behaviour, Catalogue, History
from tests.parity.pairs import Pair

MODEL = "CMCLRec"

TOWERS = {"inner": "feature/fc1", "outer": "feature/fc2", "sequence": "interaction"}


def load(pair: Pair) -> CMCLRec:
    """A model of the pair's sizes with its towers and its items' table, in float64."""
    sizes = pair.sidecar["sizes"]
    rows, half = sizes["n_items_with_pad"], sizes["d_features"] // 2
    image, text = torch.zeros(rows, half), torch.zeros(rows, sizes["d_features"] - half)
    present = torch.arange(rows) > 0
    catalogue = Catalogue(
        users=sizes["warm"] + sizes["cold"], items=rows - 1, length=sizes["L"], image=image,
        image_present=present, text=text, text_present=present, fields={}, drops_own_events=True,
    )  # fmt: skip
    config = CMCLRecConfig(hidden=sizes["d"], simulated=sizes["n_sim"])
    model = CMCLRec(config, catalogue).double()
    weights = pair.below("w/")
    state = {
        f"{ours}.{part}": weights.pop(f"{theirs}/{part}")
        for ours, theirs in TOWERS.items()
        for part in ("weight", "bias")
    }
    assert not weights, f"never loaded: {sorted(weights)}"
    model.towers.load_state_dict(state)
    with torch.no_grad():
        item_table(model.backbone).copy_(pair.tensor("in/item_embedding"))
    return model.eval()


@torch.no_grad()
def check(pair: Pair) -> None:
    model = load(pair)
    towers = model.towers
    x, h = pair.tensor("in/user_features"), pair.tensor("in/sequence_states")
    pair.compare("out/feature_vectors", towers.of_features(x))
    pair.compare("out/interaction_vectors", towers.of_sequences(h))
    similarities, user = towers.similarities(x, h), torch.arange(len(x))
    pair.compare("out/logits", similarities)
    rows, columns = contrast(similarities, user)
    pair.compare("out/loss_rows", rows)
    pair.compare("out/loss_cols", columns)
    pair.compare("out/loss", torch.stack(list(model.contrast(x, h, user).values())).sum())

    query = towers.of_features(pair.tensor("in/cold_features"))
    pair.compare("out/cold_vectors", query)
    items = towers.of_sequences(item_table(model.backbone))
    pair.compare("out/item_similarity", query @ items.T)
    cold = torch.arange(len(query))
    simulated = model.simulate(model, query, cold)
    pair.compare("out/simulated", simulated)
    real = pair.tensor("in/real")
    history = History(cold, real, (real > 0) * int(Behaviour.CLICK))
    whole = composed(simulated, history, Behaviour.CLICK)
    pair.compare("out/composed", whole.padded(real.shape[1]).items)
    pair.compare("out/nearest_warm", nearest(query, towers.of_sequences(h), 1).squeeze(1))
    pair.assert_all_compared("out/")
