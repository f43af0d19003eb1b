"""SGDL against the authors' code: backbone, weights, scheduler, one look-ahead and one meta step, EM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.sgdl import (
    SGDL,
    Backbone,
    GumbelSelection,
    Phase,
    SGDLConfig,
    Triplets,
    Vectors,
    as_records,
    bpr,
    estimated_clean_ratio,
    mixture,
)
from models.interface import Catalogue
from tests.parity.pairs import Pair

MODEL = "SGDL"


class Given(GumbelSelection):
    """A selection whose uniform draws are the fixture's."""

    def __init__(self, tau: float, draws: Tensor) -> None:
        super().__init__(tau)
        self.draws = draws

    def uniform(self, size: int, generator: torch.Generator) -> Tensor:
        return self.draws


def load(pair: Pair) -> SGDL:
    config = pair.sidecar["config"]
    nothing = torch.zeros(config["items"] + 1, 1)
    flags = torch.zeros(config["items"] + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=config["users"], items=config["items"], length=1, image=nothing, image_present=flags,
        text=nothing, text_present=flags, fields={}, drops_own_events=False,
    )  # fmt: skip
    layers = config["layers"]
    settings = SGDLConfig(
        hidden=config["d"],
        backbone=Backbone.lightgcn if layers else Backbone.mf,
        layers=max(1, layers),
        weight_hidden=config["ltw_hidden"],
        cosine_batch=config["clean_batch"],
        tau=config["tau"],
        learning_rate=float(pair.tensor("in/inner_lr")),
    )
    model = SGDL(settings, catalogue).double()
    with torch.no_grad():
        model.user_table.copy_(pair.tensor("w/user"))
        model.item_table[1:].copy_(pair.tensor("w/item"))
    names = {"l1": "inner", "l2": "outer"}
    network = pair.below("w/ltw/")
    model.weight_network.load_state_dict(
        {f"{names[name[:2]]}{name[2:]}": value for name, value in network.items()}
    )
    model.scheduler.load_state_dict(pair.below("w/sched/"))
    model.selection = Given(config["tau"], pair.tensor("in/uniform"))
    user, item = pair.tensor("in/R").nonzero(as_tuple=True)
    model.prepare(as_records(user, item + 1, config["users"]))
    model.phase.fill_(int(Phase.SELF_GUIDED))
    return model


def gradient(network: nn.Module, name: str) -> Tensor:
    found = network.get_parameter(name).grad
    assert found is not None
    return found


def triplets(pair: Pair, kind: str) -> Triplets:
    user, positive, negative = (pair.tensor(f"in/{kind}_{end}") for end in ("user", "pos", "neg"))
    return Triplets(user, positive + 1, negative + 1)


def check(pair: Pair) -> None:
    model = load(pair)
    train, clean = triplets(pair, "train"), triplets(pair, "clean")
    graph, users = model.graph, len(model.user_table)

    size = users + len(model.item_table) - 1
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    adjacency[graph.edges.user, users + graph.edges.item - 1] = graph.values
    pair.compare("mid/adj", adjacency + adjacency.T)

    found = model.vectors()
    pair.compare("out/user", found.users)
    pair.compare("out/item", found.items[1:])
    pair.compare("out/rating", (found.users @ found.items[1:].T).sigmoid())
    model.eval()
    everything = torch.arange(users).unsqueeze(1), torch.arange(1, len(model.item_table))
    state = found.users[everything[0].squeeze(1)]
    pair.compare("out/rating", model.score(state, everything[1].expand(users, -1)).sigmoid())

    losses = bpr(train.ends(found))
    pair.compare("out/bpr", losses)
    pair.compare("out/bpr_mean", losses.mean())
    level_zero = train.ends(Vectors(model.user_table, model.item_table))
    pair.compare("out/reg", level_zero.square().sum() / 2 / len(losses))  # never trained
    weights = model.weight_network(losses)
    pair.compare("out/ltw_train_weights", weights.unsqueeze(1))
    pair.compare("out/weighted_train_loss", (weights * losses).mean())
    pair.compare("out/final_loss", model.update(found, train)["bpr"])

    fixed = Vectors(*(one.detach() for one in found))
    ahead = model.look_ahead(fixed, train)
    pair.compare("out/lookahead_user", ahead.users)
    pair.compare("out/lookahead_item", ahead.items[1:])

    clean_losses, cosines = model.features(fixed, clean)
    pair.compare("out/grad_cosine", cosines)
    pair.compare("out/clean_loss", clean_losses.unsqueeze(1))
    after = clean.ends(model.final(model.look_ahead(fixed, clean)))
    pair.compare("out/clean_loss_lookahead", bpr(after))
    logit = model.scheduler(clean_losses, cosines)
    pair.compare("out/sched_logit", logit.unsqueeze(1))
    pair.compare("out/sched_prob", logit.softmax(0))
    assert isinstance(model.selection, GumbelSelection)
    chosen = model.selection.choose(logit.softmax(0), pair.tensor("in/uniform"))
    pair.compare("out/selection", chosen)

    model.clean = clean
    meta = model.meta(fixed, train, torch.Generator())["meta"]
    pair.compare("out/meta_loss", meta)
    meta.backward()
    assert model.user_table.grad is None
    assert model.item_table.grad is None
    for name in pair.below("out/grad_ltw/"):
        ours = name.replace("l1", "inner").replace("l2", "outer")
        pair.compare(f"out/grad_ltw/{name}", gradient(model.weight_network, ours))
    for name in pair.below("out/grad_sched/"):
        pair.compare(f"out/grad_sched/{name}", gradient(model.scheduler, name))

    values = pair.tensor("in/gmm_losses")
    pair.compare("out/gmm_clean_ratio", torch.tensor(estimated_clean_ratio(values)))
    pair.compare("out/gmm_means", mixture(values).means.sort().values)
    pair.assert_all_compared("out/", "mid/")
