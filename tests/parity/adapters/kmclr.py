"""KMCLR against the authors' modules: both halves, all losses, views and keep probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.kmclr import (
    KMCLR,
    KMCLRConfig,
    KnowledgeHalf,
    Rescale,
    Source,
    Triples,
    Vectors,
    behaviour_contrast,
    binary,
    bpr,
    keep_probabilities,
    view_contrast,
    views,
)
from models.graphs import Bipartite, Graph
from models.interface import Catalogue, Interactions
from tests.parity.pairs import Pair

MODEL = "KMCLR"


class Given(Source):
    """Stands in for a knowledge graph that the fixture hands over."""

    def __init__(self, relations: int, entities: int) -> None:
        self.relations, self.entities = relations, entities

    def pairs(self, train: Interactions) -> list[tuple[int, Tensor, Tensor]]:
        return []


def padded(table: Tensor) -> Tensor:
    """The fixture's items count from 0, ours from 1."""
    return nn.functional.pad(table, (0, 0, 1, 0))


def build(pair: Pair) -> KMCLR:
    """The model with the fixture's weights and triples, in float64."""
    sizes = pair.sidecar["config"]
    users, items, d, layers = (sizes[name] for name in ("users", "items", "d", "layers"))
    relations, entities = sizes["padding_relation"], sizes["padding_entity"]
    nothing, flags = torch.zeros(items + 1, 1), torch.zeros(items + 1, dtype=torch.bool)
    catalogue = Catalogue(
        users=users, items=items, length=1, image=nothing, image_present=flags, text=nothing,
        text_present=flags, fields={}, drops_own_events=False,
    )  # fmt: skip
    config = KMCLRConfig(
        hidden=d,
        layers=layers,
        kg_layers=sizes["kg_layers"],
        ssl_group=sizes["ssl_group"],
        contrast_tau=sizes["contrast_tau"],
    )
    model = KMCLR(config, catalogue)
    model.knowledge = KnowledgeHalf(config, catalogue, Given(relations, entities))
    model.double()
    state = {
        f"behaviour.{ours}": pair.tensor(f"w/behav/{theirs}")
        for ours, theirs in (
            ("P", "user_embedding.weight"),
            ("C_u", "u_concatenation_w"),
            ("C_i", "i_concatenation_w"),
            *((f"A.{layer}", f"layers.{layer}.u_w") for layer in range(layers)),
            *((f"B.{layer}", f"layers.{layer}.i_w") for layer in range(layers)),
        )
    }
    state["behaviour.Q"] = padded(pair.tensor("w/behav/item_embedding.weight"))
    for copy in range(2):
        for kind, name in (("item", "items"), ("entity", "entities"), ("relation", "relations")):
            table = pair.tensor(f"w/kg/emb_{kind}_list.{copy}.weight")
            state[f"knowledge.tables.{copy}.{name}"] = padded(table) if kind == "item" else table
    for ours, theirs in (
        ("users", "embedding_user.weight"),
        ("transr.M", "transR_W"),
        ("tatec.M", "TATEC_W"),
        ("attention.logit.weight", "gat.layers.0.fc.weight"),
        ("attention.logit.bias", "gat.layers.0.fc.bias"),
        ("attention.out.weight", "gat.out.weight"),
        ("attention.out.bias", "gat.out.bias"),
    ):
        state[f"knowledge.{ours}"] = pair.tensor(f"w/kg/{theirs}")
    model.load_state_dict(state)

    edges = []
    for number in range(sizes["behaviors"]):
        user, item = pair.tensor(f"in/behavior{number}").nonzero(as_tuple=True)
        edges.append(Bipartite(user, item + 1, users, items + 1))
    model.graphs = [binary(some) for some in edges]
    knowledge = model.knowledge
    knowledge.edges, knowledge.target_graph = edges[-1], edges[-1].normalised()
    knowledge.favored = torch.arange(1, items + 1)
    knowledge.graph.entity = torch.cat(
        [torch.full((1, sizes["entities_per_item"]), entities), pair.tensor("in/kg_entities")]
    )
    knowledge.graph.relation = torch.cat(
        [torch.full((1, sizes["entities_per_item"]), relations), pair.tensor("in/kg_relations")]
    )
    knowledge.views = []
    for number in (1, 2):
        block = pair.tensor(f"in/view{number}_adj")[:users, users:]
        user, item = block.nonzero(as_tuple=True)
        kept = Bipartite(user, item + 1, users, items + 1)
        knowledge.views.append(Graph(kept, block[user, item]))
    return model.eval()


def check(pair: Pair) -> None:
    model = build(pair)
    sizes, half, knowledge = pair.sidecar["config"], model.behaviour, model.knowledge

    vectors, sums = half(model.graphs)
    pair.compare("out/behav_user", vectors.users)
    pair.compare("out/behav_item", vectors.items[1:])
    each = views(sums, half.A, half.C_u)
    pair.compare("out/behav_user_each", each)
    item_sums = [level.item_sums for level in half.levels(model.graphs)]
    pair.compare("out/behav_item_each", views(item_sums, half.B, half.C_i)[:, 1:])

    distinct, rank = torch.unique(pair.tensor("in/ssl_users"), return_inverse=True)
    contrast = behaviour_contrast(each[:, distinct], rank, sizes["ssl_group"])
    pair.compare("out/ssl_per_behavior", contrast)

    for copy in range(2):
        pair.compare(f"out/kg_item{copy}", knowledge.item_vectors(copy)[1:])
    ours = knowledge()
    pair.compare("out/kg_user", ours.users)
    pair.compare("out/kg_item", ours.items[1:])

    triples = Triples(
        pair.tensor("in/h") + 1, pair.tensor("in/r"), pair.tensor("in/pos_t"),
        pair.tensor("in/neg_t"),
    )  # fmt: skip
    pair.compare("out/transr_loss", knowledge.transr(knowledge.copies[0], triples))
    pair.compare("out/tatec_loss", knowledge.tatec(knowledge.copies[1], triples))

    user, positive, negative = pair.tensor("in/u"), pair.tensor("in/p") + 1, pair.tensor("in/n") + 1
    summed, squares = knowledge.bpr(user, positive, negative)
    pair.compare("out/kg_bpr_sum", summed)
    pair.compare("out/kg_bpr_reg", squares)

    one, other = (
        knowledge.item_vectors(
            0,
            torch.cat([knowledge.graph.entity[:1], pair.tensor(f"in/view{number}_entities")]),
        )
        for number in (1, 2)
    )
    stability = torch.cosine_similarity(one, other)
    pair.compare("out/stability", stability[1:])
    everyone = torch.arange(sizes["users"]).repeat_interleave(sizes["items"])
    everything = torch.arange(1, sizes["items"] + 1).repeat(sizes["users"])
    dense = Bipartite(everyone, everything, sizes["users"], sizes["items"] + 1)
    for rescale in Rescale:  # over all pairs of the block, both spans are the same
        kept = keep_probabilities(
            knowledge.users, knowledge.copies[0].items, stability, dense, rescale
        )
        pair.compare("out/edge_keep_prob", kept.view(sizes["users"], -1))

    first, second = (knowledge.view(number) for number in range(2))
    tau = sizes["contrast_tau"]
    items = view_contrast(first.items[positive], second.items[positive], tau)
    pair.compare("out/view_item_loss", items)
    pair.compare("out/view_user_loss", view_contrast(first.users[user], second.users[user], tau))

    final: Vectors = knowledge.mix()(vectors)
    pair.compare("out/final_user", final.users)
    pair.compare("out/final_item", final.items[1:])
    with torch.no_grad():
        pair.compare("out/final_user", model.vectors().users)
        candidates = torch.stack([positive, negative], 1)
        scores = model.score(model.vectors().users[user], candidates)
        pair.compare("out/bpr", -(scores[:, 0] - scores[:, 1]).sigmoid().log())
    pair.compare("out/bpr", bpr(final.users[user], final.items[positive], final.items[negative]))
    pair.assert_all_compared("out/")
