"""EBM: `full/` the model end to end, `paper/` single steps on free input, `release/` the official code."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.ebm import (
    EBM,
    ComplexFusion,
    EBMConfig,
    SoftFilter,
    Stage,
    Variant,
    binary_loss,
    coding_rate,
    contrast,
    preference,
    relaxed_choice,
    towards_target,
)
from models.interface import Catalogue, History
from tests.parity.pairs import Pair

MODEL = "EBM / END4Rec"


def catalogue(items: int, length: int) -> Catalogue:
    nothing, flags = torch.zeros(items + 1, 1), torch.zeros(items + 1, dtype=torch.bool)
    return Catalogue(1, items, length, nothing, flags, nothing, flags, {}, drops_own_events=False)


def history(items: Tensor, behaviours: Tensor) -> History:
    return History(torch.arange(len(items)), items, behaviours)


# full -------------------------------------------------------------------------------------------


def full_model(pair: Pair) -> EBM:
    """The default model, with the fixture's weights, in float64."""
    sizes = pair.sidecar["config"]["full"]

    class Sized(EBM):
        behaviours = sizes["n_behaviors"]

    config = EBMConfig(
        hidden=sizes["d"], blocks=sizes["blocks"], layers=sizes["layers"],
        coding_eps=sizes["coding_eps"], contrast_weight=sizes["cl_weight"],
        compactness_weight=sizes["reg_weight"],
    )  # fmt: skip
    model = Sized(config, catalogue(sizes["num_items"], sizes["length"])).double()
    w = pair.below("full/w/")
    norms = {
        "embedding.after.0": "ln_embed",
        "decouplers.1.norm": "ln_soft",
        "head.norm": "ln_out",
    }
    state = {
        "stage": torch.tensor(len(model.plan) - 1),
        "embedding.item": w.pop("item"),
        "embedding.behaviour": w.pop("behavior"),
        "embedding.position": w.pop("position")[1:],  # row 0 is of padding, which has none here
        "decouplers.0.threshold.linear.weight": w.pop("score_w").unsqueeze(0),
        "decouplers.0.threshold.linear.bias": w.pop("score_b"),
        "decouplers.1.filters": torch.stack([w.pop("filter_re"), w.pop("filter_im")]),
    }
    for layer in range(sizes["layers"]):
        norms[f"miner.layers.{layer}.norm"] = f"layer{layer}/ln"
        for name in ("W1", "b1", "W2", "b2"):
            ours = f"miner.layers.{layer}.fusion.mlp.{name}"
            state[ours] = w.pop(f"layer{layer}/{name}")
    for ours, theirs in norms.items():
        state[f"{ours}.weight"] = w.pop(f"{theirs}_g")
        state[f"{ours}.bias"] = w.pop(f"{theirs}_b")
    assert not w, f"{pair.name}: weights never used: {sorted(w)}"
    model.load_state_dict(state)
    model.decouplers[0].rate.rate = pair.tensor("full/in/lambda")
    assert sizes["ln_eps"] == model.head.norm.eps
    return model.eval()


def check_full(pair: Pair) -> None:
    model = full_model(pair)
    read = history(pair.tensor("full/in/items"), pair.tensor("full/in/behaviors"))
    candidates, target = pair.tensor("full/in/candidates"), pair.tensor("full/in/target")

    pair.compare("full/out/S0", model.embedding(read))
    found = model.sequences(read, 2, None)
    (S, S_hp, S_sp), (S_hn, S_sn) = found.signals, found.noises
    hard = model.decouplers[0]
    pair.compare("full/out/S", S)
    pair.compare("full/out/preference", preference(hard.rate()))
    pair.compare("full/out/keep", (hard.margin(S, read) > 0) * read.real.double())
    pair.compare("full/out/S_hp", S_hp)
    pair.compare("full/out/S_hn", S_hn)
    pair.compare("full/out/S_sp_last", S_sp[:, -1])
    pair.compare("full/out/S_sn_last", S_sn[:, -1])
    user = model.encode(read)
    pair.compare("full/out/user", user)
    pair.compare("full/out/scores", model.score(user, candidates))
    pair.compare("full/out/scores", model.score_all(user).gather(1, candidates))

    losses = model.regularisers(found, target, Stage())
    config = model.config
    pair.compare("full/out/reg", losses["compactness"] / config.compactness_weight)
    pair.compare("full/out/cl_hard", losses["contrast_hard"] / config.contrast_weight)
    pair.compare("full/out/cl_soft", losses["contrast_soft"] / config.contrast_weight)
    pair_of_items = torch.stack([target, pair.tensor("full/in/negative")], dim=1)
    pred = binary_loss(model.score(user, pair_of_items))
    pair.compare("full/out/pred", pred)
    pair.compare("full/out/loss", pred + torch.stack(list(losses.values())).sum())


# paper ------------------------------------------------------------------------------------------


def check_paper(pair: Pair) -> None:
    S0, W1 = pair.tensor("paper/in/S0"), pair.tensor("paper/w/W1")
    L, d = S0.shape[1:]
    config = EBMConfig(hidden=d, blocks=W1.shape[1])
    fusion = ComplexFusion(config, L).double()
    fusion.mlp.load_state_dict(pair.below("paper/w/") | {"W1": W1}, strict=False)
    S1, _ = fusion(S0)
    pair.compare("paper/out/S1", S1)
    rate = coding_rate(pair.tensor("paper/out/S1"), float(pair.tensor("paper/in/eps")), L)
    pair.compare("paper/out/rate", rate)

    p = preference(pair.tensor("paper/in/lambda"))
    pair.compare("paper/out/preference", p)
    behaviours = pair.tensor("paper/in/behaviors")
    q = (p[behaviours] - pair.tensor("paper/in/token_score")).sigmoid()
    pair.compare("paper/out/keep_prob", q)
    tau = float(pair.tensor("paper/in/tau"))
    drawn = relaxed_choice(torch.stack([q, 1 - q], 2), pair.tensor("paper/in/uniform"), tau)
    pair.compare("paper/out/gumbel_soft", drawn)

    n_b = len(pair.arrays["paper/w/filter_re"])
    soft = SoftFilter(config, L, n_b).double()
    filters = torch.stack([pair.tensor("paper/w/filter_re"), pair.tensor("paper/w/filter_im")])
    soft.load_state_dict({"filters": filters}, strict=False)
    valid = pair.tensor("paper/in/valid").long()
    read = history(valid, behaviours + 1)  # an item where valid: real there alone
    shares = soft.shares(read).double()
    pair.compare("paper/out/proportion", shares)
    S_sp = soft.filtered(S0, shares)
    pair.compare("paper/out/S_sp", S_sp)
    pair.compare("paper/out/S_sn", S0 - S_sp)
    target = pair.tensor("paper/in/target_vec")
    Q = [towards_target(A, target) for A in (S_sp, S0, S0 - S_sp)]
    pair.compare("paper/out/contrast", contrast(*Q))


# release ----------------------------------------------------------------------------------------


def released_model(pair: Pair) -> EBM:
    """The released network with its weights, in float64.

    Its items and behaviours count from 0: an item 0 of its own is no padding, so items move up by one.
    """
    sizes = pair.sidecar["config"]

    class Sized(EBM):
        behaviours = sizes["n_behaviors"] - 1

    release = sizes["release"]
    config = EBMConfig(
        variant=Variant.released, hidden=sizes["d"], blocks=sizes["blocks"],
        layers=release["layers"], coding_eps=release["epsilon"],
    )  # fmt: skip
    model = Sized(config, catalogue(sizes["num_items"], sizes["length"])).double()
    w = pair.below("release/w/")
    for name in ("embedding.item_emb.embedding_table", "output_layer.weight", "output_layer.bias"):
        w[name] = torch.cat([torch.zeros_like(w[name][:1]), w[name]])
    state = {"stage": torch.tensor(0)}
    for ours, theirs in (("item", "item"), ("behaviour", "beh"), ("position", "pos")):
        state[f"embedding.{ours}"] = w.pop(f"embedding.{theirs}_emb.embedding_table")
    for ours, theirs in (("1", "fc1"), ("2", "fc2")):
        places = [f"ebm.block_mlps.{block}.{theirs}" for block in range(sizes["blocks"])]
        mlp = "miner.layers.0.mlp"
        state[f"{mlp}.W{ours}"] = torch.stack([w.pop(f"{place}.weight").T for place in places])
        state[f"{mlp}.b{ours}"] = torch.stack([w.pop(f"{place}.bias") for place in places])
    for part in ("weight", "bias"):
        state[f"decouplers.0.threshold.linear.{part}"] = w.pop(f"hard_noise.fc.{part}")
        for behaviour in range(sizes["n_behaviors"]):
            theirs = f"soft_noise.linears.{behaviour}.{part}"
            state[f"decouplers.1.linears.{behaviour}.{part}"] = w.pop(theirs)
        state[f"head.linear.{part}"] = w.pop(f"output_layer.{part}")
    assert not w, f"{pair.name}: weights never used: {sorted(w)}"
    model.load_state_dict(state)
    return model.eval()


def check_release(pair: Pair) -> None:
    model = released_model(pair)
    read = history(pair.tensor("release/in/items") + 1, pair.tensor("release/in/behaviors"))
    assert (pair.tensor("release/in/positions") == torch.arange(model.L)).all()

    pair.compare("release/out/embedding", model.embedding(read))
    found = model.sequences(read, 2, None)
    (S, S_hp, S_sp), (S_hn, S_sn) = found.signals, found.noises
    for name, ours in {"S": S, "S_hp": S_hp, "S_hn": S_hn, "S_sp": S_sp, "S_sn": S_sn}.items():
        pair.compare(f"release/out/{name}", ours)
    pair.compare("release/out/logits", model.score_all(model.encode(read))[:, 1:])
    losses = model.regularisers(found, torch.ones(len(S), dtype=torch.int64), model.now)
    config = model.config
    pair.compare("release/out/reg", losses["compactness"] / config.compactness_weight)
    for part in ("hard", "soft"):
        ours = losses[f"contrast_{part}"] / config.contrast_weight
        pair.compare(f"release/out/contrast_{part}", ours)


def check(pair: Pair) -> None:
    check_full(pair)
    check_paper(pair)
    check_release(pair)
    pair.assert_all_compared("full/out/", "paper/out/", "release/out/")
