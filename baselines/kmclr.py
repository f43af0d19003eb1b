"""KMCLR: knowledge enhancement for contrastive multi-behaviour recommendation (Xuan et al., WSDM 2023).

Axes: batch = target interactions of a step, behaviour = click, favor (the target stands last),
user_row = users, item_row = items + 1 (row 0 is padding), edge = distinct pairs of a user and an item,
block_edge = those of a block of users, pair = (relation, entity) pairs of an item, head = items that
have a pair, wanted = items whose vectors are asked for, sampled = users of the behaviour contrast,
distinct = those, each once, point = vectors to cluster, width = of an image or text vector, inner = d
times layers, cand = candidates, d = width.

Symbols: P, Q tables of users and items, A_l, B_l, C_u, C_i weights of the behaviour half, R_b the binary
matrix of behaviour b, e tables and v item vectors of the knowledge half, M_r the matrix of relation r.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.graphs import Bipartite, Graph, distinct_pairs, light_gcn
from models.interface import (
    Batch,
    Behaviour,
    Catalogue,
    History,
    Interactions,
    Losses,
    ModelConfig,
    Samples,
)
from models.layers import DotProduct, Dropout
from models.negatives import TrainingNegatives

BEHAVIOURS = (Behaviour.CLICK, Behaviour.FAVOR)
"""The target stands last."""
KNOWLEDGE_SHARE = 0.1
"""Of the final vectors; fixed in the authors' code."""
PAIRS = 10
"""Pairs of an item that are read: the first ones of its list."""
ENTITY_DROP = 0.5
"""Chance that a version of the triples lacks a pair."""
LEAST_KEPT = 0.6
"""Keep probability of a block's weakest edge; its strongest is always kept."""
USER_BLOCK = 2048
"""Users whose edges are rescaled together."""
BLOCK_NUMBERS = 1 << 24
"""Entries of a dense block held at once (64 MiB in float32)."""
POINT_NUMBERS = 1 << 18
"""Entries of the vectors to cluster that are worked on at once: a cache's worth, not a second table."""
UP, DOWN = 5, 10
"""Epochs in which the behaviour half's rate rises and falls."""
REDRAWS = 20
"""Times that a false tail is drawn again while it is true."""
CLUSTER_ROUNDS = 20
"""Most rounds of k-means."""
FIT_POINTS = 1 << 15
"""Vectors that k-means is fitted to, drawn among those of the training items where there are more: with
sqrt(items) centres it would cost items ** 1.5 otherwise. Every item is then given its clusters."""

log = logging.getLogger(__name__)


class KG(Enum):
    """Where the triples come from: the authors' knowledge graphs do not exist for these data.

    `attributes`: id fields of an item (brand, seller, category); where the data have none, as `modality`.
    `modality`: the two nearest clusters of the item's frozen image, and of its text.
    `none`: no knowledge half at all; only behaviour vectors are trained and scored.
    """

    attributes = "attributes"
    modality = "modality"
    none = "none"


class TatecSign(Enum):
    """K1: the authors' sign rewards false triples, TATEC's value being a similarity."""

    as_released = "as_released"
    corrected = "corrected"


class Norm(Enum):
    """K2: the authors' normaliser returns the matrix unchanged; `symmetric` is D^-1/2 R_b D^-1/2."""

    none = "none"
    symmetric = "symmetric"


class Rescale(Enum):
    """K3: over what keep probabilities span 0.6 to 1: a block's edges, or all its pairs (authors)."""

    edges = "edges"
    full_block = "full_block"


@dataclass
class KMCLRConfig(ModelConfig):
    """Settings of KMCLR; defaults from the authors' code, except the width (theirs: 32)."""

    learning_rate: float = 1e-3
    """Of the knowledge half, and the lowest of the behaviour half."""
    peak: float = 5.0
    """The behaviour half's highest rate, in parts of `learning_rate`; at least 1."""
    weight_decay: float = 1e-4
    """Decoupled (AdamW), of the behaviour half; the knowledge half has none."""
    kg: KG = KG.attributes
    tatec_sign: TatecSign = TatecSign.as_released
    graph_norm: Norm = Norm.none
    """Not `norm`: an override of a setting goes to every method that has it, and SASRec has one."""
    rescale: Rescale = Rescale.edges
    layers: int = 3
    """K of the behaviour half, at least 1."""
    kg_layers: int = 3
    """K_g of the knowledge half's LightGCN."""
    behaviour_batch: int = 8192
    """Target interactions of a step of the behaviour half; its loss is divided by it."""
    knowledge_batch: int = 2048
    """Target interactions of a step of the knowledge half."""
    triple_batch: int = 4096
    """Triples of a step."""
    beta: float = 0.005
    """Weight of the behaviour contrast."""
    reg: float = 1e-3
    """Weight of the squared norms in the behaviour half's loss."""
    ssl_group: int = 18
    """G: sampled users that are no negatives of each other."""
    view_weight: float = 0.1
    """Weight of each of the two contrasts between views."""
    contrast_tau: float = 0.2
    """Temperature of the contrast between views."""
    table_decay: float = 1e-4
    """Weight of the table rows' squared norms in the knowledge half's loss."""
    dropout: float = 0.4
    """Of entity vectors, of the attention and of item vectors in the knowledge half."""
    edge_dropout: float = 0.3
    """Of the knowledge half's graph."""

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "layers": (1, 2, 3),
        "behaviour_batch": (1024, 8192),
        "beta": (0.005, 0.05),
    }


class Vectors(NamedTuple):
    """A row a user and a row an item."""

    users: Float[Tensor, "user_row d"]
    items: Float[Tensor, "item_row d"]


# 1 Behaviour half --------------------------------------------------------------------------------


class Level(NamedTuple):
    """What one layer makes of the tables."""

    user_sums: Float[Tensor, "behaviour user_row d"]
    """u_b, one behaviour by itself."""
    item_sums: Float[Tensor, "behaviour item_row d"]
    users: Float[Tensor, "user_row d"]
    """P_{l+1}, all behaviours fused."""
    items: Float[Tensor, "item_row d"]


class BehaviourHalf(nn.Module):
    """A graph network on all behaviours at once (the authors' GNN.py).

    u_b = R_b Q_l and i_b = R_b^T P_l, P_{l+1} = sigmoid(mean_b(u_b) A_l), Q_{l+1} = sigmoid(mean_b(i_b) B_l).
    The outputs of all layers, side by side and without the tables, times C_u or C_i are the vectors. No
    bias, no dropout.
    """

    def __init__(self, users: int, item_rows: int, d: int, layers: int) -> None:
        super().__init__()
        self.P = nn.Parameter(_xavier(users, d))
        self.Q = nn.Parameter(functional.pad(_xavier(item_rows - 1, d), (0, 0, 1, 0)))
        self.A = nn.ParameterList(_xavier(d, d) for _ in range(layers))
        self.B = nn.ParameterList(_xavier(d, d) for _ in range(layers))
        self.C_u = nn.Parameter(_xavier(layers * d, d))
        self.C_i = nn.Parameter(_xavier(layers * d, d))

    def levels(self, graphs: list[Graph]) -> Iterator[Level]:
        """Layer by layer; inputs of a layer are the fused tables alone."""
        P, Q = self.P, self.Q
        for A, B in zip(self.A, self.B, strict=True):
            u = torch.stack([graph.to_users(Q) for graph in graphs])
            i = torch.stack([graph.to_items(P) for graph in graphs])
            P, Q = (u.mean(0) @ A).sigmoid(), (i.mean(0) @ B).sigmoid()
            yield Level(u, i, P, Q)

    def forward(
        self, graphs: list[Graph]
    ) -> tuple[Vectors, list[Float[Tensor, "behaviour user_row d"]]]:
        """Vectors, and each layer's u_b, from which `views` of some users are made."""
        P, Q, sums = [], [], []
        for level in self.levels(graphs):
            P.append(level.users)
            Q.append(level.items)
            sums.append(level.user_sums)
        return Vectors(torch.cat(P, 1) @ self.C_u, torch.cat(Q, 1) @ self.C_i), sums


def views(
    sums: list[Float[Tensor, "behaviour row d"]],
    weights: nn.ParameterList,
    C: Float[Tensor, "inner d"],
) -> Float[Tensor, "behaviour row d"]:
    """Vectors of one behaviour alone: [sigmoid(u_b A_1); ..; sigmoid(u_b A_K)] C_u, or of items."""
    each = [(u @ A).sigmoid() for u, A in zip(sums, weights, strict=True)]
    return torch.cat(each, 2) @ C


def behaviour_contrast(
    each: Float[Tensor, "behaviour distinct d"], rank: Int[Tensor, " sampled"], group: int
) -> Float[Tensor, "behaviour sampled"]:
    """-log(1e-8 + s(U_t[x], U_b[x]) / (1e-8 + sum over y of s(U_t[x], U_b[y]))), s = exp(<., .> / d).

    The negatives y are the sampled users, each once, that are not in the group of x. The positive is in
    no sum, and the target behaviour is also contrasted with itself.

    Args:
        each: Views of the sampled users, each once; the target behaviour last.
        rank: Rows of them, in the order of sampling.
        group: G users in a row make a group.
    """
    s = (each[-1] @ each.mT / each.shape[2]).exp()
    number = torch.arange(len(rank), device=rank.device) // group
    member = torch.zeros(
        -(-len(rank) // group), each.shape[1], dtype=torch.bool, device=rank.device
    )
    member[number, rank] = True
    negatives = s[:, rank].masked_fill(member[number], 0).sum(2)
    positives = s.diagonal(dim1=1, dim2=2)[:, rank]
    return -(1e-8 + positives / (1e-8 + negatives)).log()


class Records(nn.Module):
    """The distinct pairs of one behaviour: its graph, and draws from it."""

    user: Tensor
    item: Tensor
    count: Tensor

    def __init__(self, catalogue: Catalogue, behaviour: Behaviour) -> None:
        super().__init__()
        self.behaviour = behaviour
        self.users, self.item_rows = catalogue.users, catalogue.items + 1
        self.negatives = TrainingNegatives(catalogue)
        nothing = torch.zeros(0, dtype=torch.int64)
        for name in ("user", "item", "count"):
            self.register_buffer(name, nothing, persistent=False)

    def prepare(self, train: Interactions) -> Bipartite:
        """Note the training events of this behaviour."""
        mine = train.behaviour == int(self.behaviour)
        before = functional.pad(mine.cumsum(0), (1, 0))
        records = Interactions(
            train.user[mine], train.item[mine], train.behaviour[mine], train.target[mine],
            before[train.offsets],
        )  # fmt: skip
        self.negatives.prepare(records)
        device = self.user.device
        user, item = distinct_pairs(records.user, records.item, self.item_rows)
        self.user, self.item = user.to(device), item.to(device)
        self.count = torch.bincount(self.user, minlength=self.users)
        return Bipartite(self.user, self.item, self.users, self.item_rows)

    def positives(
        self, user: Int[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Int[Tensor, " drawn"], Int[Tensor, " drawn"]]:
        """A random item of each user's; users without one are left out."""
        user = user[self.count[user] > 0]
        first = (self.count.cumsum(0) - self.count)[user]
        number = _uniform(len(user), generator, user.device) * self.count[user]
        return user, self.item[first + number.long()]

    def others(
        self, user: Int[Tensor, " batch"], generator: torch.Generator
    ) -> Int[Tensor, " batch"]:
        """A uniform item each that is none of the user's of this behaviour."""
        drawn: Tensor = self.negatives(user, 1, generator)
        return drawn.squeeze(1)


# 2 Knowledge half: triples -------------------------------------------------------------------------


class Source(ABC):
    """Where (relation, entity) pairs of items come from."""

    relations: int
    """n_r."""
    entities: int
    """n_e."""

    @abstractmethod
    def pairs(
        self, train: Interactions
    ) -> list[tuple[int, Int[Tensor, " item_row"], Bool[Tensor, " item_row"]]]:
        """Relation, entity of each item, and whether the item has it; one entry a pair."""


class Attributes(Source):
    """(item, has brand, b) and so on: a relation a field, an entity a value; 0 is unknown."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.fields = [catalogue.fields[name] for name in sorted(catalogue.fields)]
        self.relations = len(self.fields)
        self.entities = sum(int(field.max()) for field in self.fields)

    def pairs(
        self,
        train: Interactions,  # noqa: ARG002
    ) -> list[tuple[int, Int[Tensor, " item_row"], Bool[Tensor, " item_row"]]]:
        """The fields, by name."""
        found, first = [], 0
        for relation, field in enumerate(self.fields):
            found.append((relation, first + field - 1, field > 0))
            first += int(field.max())
        return found


class Clusters(Source):
    """(item, looks like, c) and (item, reads like, c): the two nearest image and text clusters.

    Clusters are those of the training items' vectors (FIT_POINTS of them at most), round(sqrt(items))
    of each kind, from a fixed seed; every item with a vector belongs to them, so that items without a
    record have triples too.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.vectors = [
            (catalogue.image, catalogue.image_present),
            (catalogue.text, catalogue.text_present),
        ]
        self.count = max(1, round(math.sqrt(catalogue.items)))
        self.relations, self.entities = len(self.vectors), len(self.vectors) * self.count

    def pairs(
        self, train: Interactions
    ) -> list[tuple[int, Int[Tensor, " item_row"], Bool[Tensor, " item_row"]]]:
        """Nearest first."""
        generator = torch.Generator().manual_seed(0)
        trained = torch.bincount(train.item, minlength=len(self.vectors[0][1])) > 0
        found = []
        for relation, (vectors, present) in enumerate(self.vectors):
            points = vectors[drawn(present & trained, generator)]
            if not len(points):
                continue
            centres = k_means(points, self.count, generator)
            near = nearest(vectors, centres, min(2, len(centres))) + relation * self.count
            found += [(relation, entity, present) for entity in near.unbind(1)]
        return found


def drawn(wanted: Bool[Tensor, " item_row"], generator: torch.Generator) -> Int[Tensor, " point"]:
    """The wanted rows, or FIT_POINTS of them, ascending."""
    rows = wanted.nonzero().squeeze(1)
    if len(rows) <= FIT_POINTS:
        return rows
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order[:FIT_POINTS].to(rows.device)].sort().values


def nearest(
    points: Float[Tensor, "point width"], centres: Float[Tensor, "centre width"], count: int
) -> Int[Tensor, "point count"]:
    """The `count` nearest centres of each point, nearest first; block by block."""
    half = centres.square().sum(1) / 2
    blocks = points.split(max(1, BLOCK_NUMBERS // len(centres)))
    return torch.cat([(block @ centres.T - half).topk(count, 1).indices for block in blocks])


def squared_distance(
    points: Float[Tensor, "point width"], centre: Float[Tensor, " width"]
) -> Float[Tensor, " point"]:
    """From each point to one centre; block by block."""
    blocks = points.split(max(1, POINT_NUMBERS // points.shape[1]))
    return torch.cat([(block - centre).square().sum(1) for block in blocks])


def k_means(
    points: Float[Tensor, "point width"], count: int, generator: torch.Generator
) -> Float[Tensor, "centre width"]:
    """Lloyd's rounds until the clusters stand, from `count` points (all of them, if there are fewer).

    Each first centre is drawn in proportion to the squared distance from those before it (k-means++). A
    centre that is nearest to no point stays where it is.
    """
    chances = torch.ones(len(points), device=generator.device)
    distance = torch.full_like(chances, torch.inf, device=points.device)
    first = []
    for _ in range(min(count, len(points))):
        first.append(int(torch.multinomial(chances, 1, generator=generator)))
        distance = torch.minimum(distance, squared_distance(points, points[first[-1]]))
        chances = (distance + 1e-12).to(generator.device)
    centres = points[first]
    before = torch.full((len(points),), -1, device=points.device)
    for _ in range(CLUSTER_ROUNDS):
        cluster = nearest(points, centres, 1).squeeze(1)
        if torch.equal(cluster, before):
            break
        before = cluster
        size = torch.bincount(cluster, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, cluster, points)
        centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
    return centres


def source(kg: KG, catalogue: Catalogue) -> Source:
    """The attributes where there are any and they are wanted; otherwise the clusters."""
    if kg is KG.attributes and catalogue.fields:
        return Attributes(catalogue)
    return Clusters(catalogue)


class Triples(NamedTuple):
    """True triples of items, relations and entities, and a false tail for each."""

    head: Int[Tensor, " batch"]
    relation: Int[Tensor, " batch"]
    tail: Int[Tensor, " batch"]
    false_tail: Int[Tensor, " batch"]


class KnowledgeGraph(nn.Module):
    """Up to PAIRS (relation, entity) pairs an item; what an item has not is (n_r, n_e), the padding."""

    relation: Tensor
    entity: Tensor

    def __init__(self, source: Source, item_rows: int) -> None:
        super().__init__()
        self.source, self.item_rows = source, item_rows
        self.relations, self.entities = source.relations, source.entities
        for name, padding in (("relation", self.relations), ("entity", self.entities)):
            self.register_buffer(name, torch.full((item_rows, 1), padding), persistent=False)

    def prepare(self, train: Interactions) -> None:
        """Put each item's pairs first, and no more columns than the richest item needs.

        Columns that are padding everywhere have no attention: the authors' 10 give the same.
        """
        pairs, device = self.source.pairs(train), self.entity.device
        if not pairs:
            return
        real = torch.stack([present for _, _, present in pairs], 1)
        entity = torch.stack([entity for _, entity, _ in pairs], 1)
        relation = torch.tensor([relation for relation, _, _ in pairs]).expand_as(entity)
        width = min(PAIRS, max(1, int(real.sum(1).max())))
        order = torch.argsort((~real).to(torch.int8), dim=1, stable=True)[:, :width]
        real = real.gather(1, order)
        self.entity = torch.where(real, entity.gather(1, order), self.entities).to(device)
        self.relation = torch.where(real, relation.gather(1, order), self.relations).to(device)

    def thinned(self, generator: torch.Generator) -> Int[Tensor, "item_row pair"]:
        """Entities of a version of the triples in which some are dropped."""
        chance = _uniform(self.entity.numel(), generator, self.entity.device)
        return self.entity.masked_fill(chance.view_as(self.entity) < ENTITY_DROP, self.entities)

    def epoch(self, generator: torch.Generator) -> Triples:
        """A random triple of each head, heads shuffled, and a random tail of a random head.

        The false tail is drawn again while it makes a true triple.
        """
        heads = (self.entity != self.entities).any(1).nonzero().squeeze(1)
        heads = heads[_permutation(len(heads), generator, heads.device)]
        relation, tail = self._any_of(heads, generator)
        false_tail = tail.clone()
        for _ in range(REDRAWS):
            true = (self.relation[heads] == relation.unsqueeze(1)) & (
                self.entity[heads] == false_tail.unsqueeze(1)
            )
            again = true.any(1).nonzero().squeeze(1)
            if not len(again):
                break
            others = (_uniform(len(again), generator, heads.device) * len(heads)).long()
            false_tail[again] = self._any_of(heads[others], generator)[1]
        return Triples(heads, relation, tail, false_tail)

    def _any_of(
        self, head: Int[Tensor, " head"], generator: torch.Generator
    ) -> tuple[Int[Tensor, " head"], Int[Tensor, " head"]]:
        """A random pair of each head."""
        count = (self.entity[head] != self.entities).sum(1)
        place = (_uniform(len(head), generator, head.device) * count).long()
        return self.relation[head, place], self.entity[head, place]


class Copy(nn.Module):
    """One of the two sets of tables; the last row of entities and relations is the padding."""

    def __init__(self, graph: KnowledgeGraph, d: int) -> None:
        super().__init__()
        self.items = nn.Parameter(_normal(graph.item_rows, d))
        self.entities = nn.Parameter(_normal(graph.entities + 1, d))
        self.relations = nn.Parameter(_normal(graph.relations + 1, d))

    def embedded(
        self, triples: Triples
    ) -> tuple[
        Float[Tensor, "batch d"],
        Float[Tensor, "batch d"],
        Float[Tensor, "batch d"],
        Float[Tensor, "batch d"],
    ]:
        """Rows of head, relation, true and false tail."""
        return (
            functional.embedding(triples.head, self.items),
            functional.embedding(triples.relation, self.relations),
            functional.embedding(triples.tail, self.entities),
            functional.embedding(triples.false_tail, self.entities),
        )


class TripleLoss(nn.Module, ABC):
    """2a: a loss on the triples of one copy, with a matrix M_r a relation."""

    def __init__(self, relations: int, d: int) -> None:
        super().__init__()
        self.M = nn.Parameter(torch.empty(relations + 1, d, d))
        nn.init.xavier_uniform_(self.M, gain=math.sqrt(2))

    def times(
        self, relation: Int[Tensor, " batch"], x: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """M_r x; relations are few, so every matrix is applied and one result kept."""
        every = torch.einsum("rij,bj->bri", self.M, x)
        return every[torch.arange(len(x), device=x.device), relation]

    def penalty(self, *vectors: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """1e-3 (mean half squared norms + the norm of all M together)."""
        squares = [x.square().sum(1).mean() / 2 for x in vectors]
        return 1e-3 * torch.stack([*squares, self.M.norm()]).sum()

    @abstractmethod
    def forward(self, copy: Copy, triples: Triples) -> Float[Tensor, ""]:
        """Mean over the triples, and the penalty."""


class TransR(TripleLoss):
    """-log sigmoid(D_false - D_true) with D = |M_r h + r - M_r t|^2."""

    def forward(self, copy: Copy, triples: Triples) -> Float[Tensor, ""]:
        """Mean over the triples, and the penalty on what M_r has transformed."""
        h, r, true, false = copy.embedded(triples)
        h, true, false = (self.times(triples.relation, x) for x in (h, true, false))
        D_true, D_false = ((h + r - t).square().sum(1) for t in (true, false))
        mean = -functional.logsigmoid(D_false - D_true).mean()
        return mean + self.penalty(h, r, true, false)


class TATEC(TripleLoss):
    """A log sigmoid of f_false - f_true, or turned around (K1), f = h^T M_r t + h.r + t.r + h.t."""

    def __init__(self, relations: int, d: int, sign: TatecSign) -> None:
        super().__init__(relations, d)
        self.sign = -1 if sign is TatecSign.as_released else 1

    def forward(self, copy: Copy, triples: Triples) -> Float[Tensor, ""]:
        """Mean over the triples, and the penalty on the vectors as stored."""
        h, r, true, false = copy.embedded(triples)
        f_true, f_false = (
            (h * (self.times(triples.relation, t) + r + t) + t * r).sum(1) for t in (true, false)
        )
        mean = -functional.logsigmoid(self.sign * (f_true - f_false)).mean()
        return mean + self.penalty(h, r, true, false)


# 2 Knowledge half: vectors --------------------------------------------------------------------------


class PairAttention(nn.Module):
    """What an item's pairs tell of it (the authors' GAT.py); both copies share one.

    logit = LeakyReLU_0.2(w^T [e_item; e_rel; e_ent] + b), a softmax over the pairs, h = sum a e_ent,
    v = ReLU((h + e_item) W^T + b'). Dropout on the entity vectors, the attention and v. An item without
    a pair attends to the padding entity.
    """

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__()
        self.logit = nn.Linear(3 * d, 1)
        self.out = nn.Linear(d, d)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        copy: Copy,
        item: Int[Tensor, " wanted"],
        relation: Int[Tensor, "wanted pair"],
        entity: Int[Tensor, "wanted pair"],
    ) -> Float[Tensor, "wanted d"]:
        """The v of some items.

        Args:
            copy: The tables.
            item: Rows of the items.
            relation: Relations of each item's pairs.
            entity: Their entities; a pair without one (n_e) is not attended to.
        """
        items = functional.embedding(item, copy.items)
        entities = self.dropout(functional.embedding(entity, copy.entities))
        w_item, w_relation, w_entity = self.logit.weight.squeeze(0).chunk(3)
        logit = (items @ w_item).unsqueeze(1) + (copy.relations @ w_relation)[relation]
        logit = functional.leaky_relu(logit + entities @ w_entity + self.logit.bias, 0.2)
        padding = entity == len(copy.entities) - 1
        attention = self.dropout(logit.masked_fill(padding, -9e15).softmax(1))
        h = (attention.unsqueeze(1) @ entities).squeeze(1)
        v: Tensor = self.dropout(self.out(h + items).relu())
        return v


# 3 Knowledge-guided views ---------------------------------------------------------------------------


def span_of_edges(
    weight: Float[Tensor, " block_edge"], *_: object
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Smallest and largest weight among the block's edges."""
    return weight.min(), weight.max()


def span_of_block(
    _: Float[Tensor, " block_edge"],
    users: Float[Tensor, "block d"],
    items: Float[Tensor, "item d"],
    normaliser: Float[Tensor, " block"],
    stability: Float[Tensor, " item"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Smallest and largest weight among all pairs of the block, edges or not."""
    rows = max(1, BLOCK_NUMBERS // len(items))
    spans = [
        torch.stack(((u @ items.T - n.unsqueeze(1)).exp() * stability).aminmax())
        for u, n in zip(users.split(rows), normaliser.split(rows), strict=True)
    ]
    low, high = torch.stack(spans, 1)
    return low.min(), high.max()


SPANS: dict[Rescale, Callable[..., tuple[Tensor, Tensor]]] = {
    Rescale.edges: span_of_edges,
    Rescale.full_block: span_of_block,
}


def keep_probabilities(
    users: Float[Tensor, "user_row d"],
    items: Float[Tensor, "item_row d"],
    stability: Float[Tensor, " item_row"],
    edges: Bipartite,
    rescale: Rescale,
) -> Float[Tensor, " edge"]:
    """Chance of each edge to stay: softmax_i(<user, item>) times the item's stability, rescaled.

    The softmax is over all items, its values are needed at the edges alone. They are rescaled linearly
    to 0.6 .. 1, block of users by block; where all are equal, all stay.

    Args:
        users: Raw table rows.
        items: Raw table rows of a copy.
        stability: Of each item in that copy.
        edges: Users ascending.
        rescale: Over what the span is taken.
    """
    items, stability = items[1:], stability[1:]
    rows = max(1, BLOCK_NUMBERS // len(items))
    kept = []
    for start in range(0, len(users), USER_BLOCK):
        block = users[start : start + USER_BLOCK]
        ends = torch.tensor([start, start + USER_BLOCK], device=edges.user.device)
        first, last = torch.searchsorted(edges.user, ends).tolist()
        if first == last:
            continue
        user, item = edges.user[first:last] - start, edges.item[first:last] - 1
        normaliser = torch.cat([(u @ items.T).logsumexp(1) for u in block.split(rows)])
        logit = (block[user] * items[item]).sum(1) - normaliser[user]
        weight = logit.exp() * stability[item]
        low, high = SPANS[rescale](weight, block, items, normaliser, stability)
        share = torch.where(high > low, (weight - low) / (high - low), 1.0)
        kept.append(LEAST_KEPT + (1 - LEAST_KEPT) * share)
    return torch.cat(kept) if kept else users.new_zeros(0)


def view_contrast(
    first: Float[Tensor, "batch d"], second: Float[Tensor, "batch d"], tau: float
) -> Float[Tensor, ""]:
    """Sum of -log(e^(cos / tau) / (row sum - own)), one direction; nothing to contrast in one row."""
    if len(first) < 2:
        return first.sum() * 0
    z = functional.normalize(first) @ functional.normalize(second).T / tau
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (z.masked_fill(own, -torch.inf).logsumexp(1) - z.diagonal()).sum()


Mix = Callable[[Vectors], Vectors]
"""From vectors of the behaviour half to the final ones (section 4)."""


class KnowledgeHalf(nn.Module):
    """A user table, two copies of the knowledge tables, and LightGCN on the target behaviour's graph."""

    def __init__(self, config: KMCLRConfig, catalogue: Catalogue, source: Source) -> None:
        super().__init__()
        d = config.hidden
        self.graph = KnowledgeGraph(source, catalogue.items + 1)
        self.users = nn.Parameter(_normal(catalogue.users, d))
        self.copies = [Copy(self.graph, d) for _ in range(2)]
        self.tables = nn.ModuleList(self.copies)
        self.attention = PairAttention(d, config.dropout)
        self.transr = TransR(self.graph.relations, d)
        self.tatec = TATEC(self.graph.relations, d, config.tatec_sign)
        self.edge_dropout = Dropout(config.edge_dropout)
        self.layers, self.rescale, self.tau = config.kg_layers, config.rescale, config.contrast_tau
        self.view_weight, self.table_decay = config.view_weight, config.table_decay
        self.batch_size, self.triple_batch = config.knowledge_batch, config.triple_batch

    def prepare(self, train: Interactions, target: Bipartite) -> None:
        """Find the triples and the graph; until views are drawn, both are the whole graph."""
        self.favored = target.item.unique()
        self.graph.prepare(train)
        self.edges, self.target_graph = target, target.normalised()
        self.views = [self.target_graph] * 2

    def item_vectors(
        self,
        copy: int,
        entity: Int[Tensor, "item_row pair"] | None = None,
        wanted: Int[Tensor, " wanted"] | None = None,
    ) -> Float[Tensor, "item_row d"]:
        """The v of a copy, from all triples or from those of a version; zeros where not wanted."""
        entity = self.graph.entity if entity is None else entity
        if wanted is None:
            wanted = torch.arange(len(entity), device=entity.device)
        v: Tensor = self.attention(
            self.copies[copy], wanted, self.graph.relation[wanted], entity[wanted]
        )
        return v.new_zeros(len(entity), v.shape[1]).index_copy(0, wanted, v)

    def forward(self, wanted: Int[Tensor, " wanted"] | None = None) -> Vectors:
        """LightGCN from the user table and (v_0 + v_1) / 2; exact where items are wanted.

        A step wants the favored items and its own alone: no other is in the graph.
        """
        kept: Tensor = self.edge_dropout(torch.ones_like(self.target_graph.values))
        v = (self.item_vectors(0, wanted=wanted) + self.item_vectors(1, wanted=wanted)) / 2
        return Vectors(*light_gcn(self.users, v, self.target_graph.times(kept), self.layers))

    def mix(self) -> Mix:
        """0.9 of the behaviour half, 0.1 of this one as it stands, without dropout or gradient."""
        training = self.training
        self.eval()
        with torch.no_grad():
            mine = self()
        self.train(training)

        def mixed(theirs: Vectors) -> Vectors:
            own = KNOWLEDGE_SHARE
            pairs = zip(theirs, mine, strict=True)
            return Vectors(*((1 - own) * b + own * k for b, k in pairs))

        return mixed

    def passes(self, target: Records, generator: torch.Generator) -> Iterator[Losses]:
        """An epoch of this half: TransR on copy 0, TATEC on copy 1, new views, target interactions."""
        for name, loss, copy in (
            ("transr", self.transr, self.copies[0]),
            ("tatec", self.tatec, self.copies[1]),
        ):
            triples = self.graph.epoch(generator)
            size = min(self.triple_batch, len(triples.head))
            for step in range(len(triples.head) // size if size else 0):
                part = slice(step * size, (step + 1) * size)
                yield {name: loss(copy, Triples(*(column[part] for column in triples)))}
        self.draw_views(generator)
        order = _permutation(len(target.user), generator, target.user.device)
        for rows in order.split(self.batch_size):
            yield self.loss(target, target.user[rows], target.item[rows], generator)

    def loss(
        self,
        target: Records,
        user: Int[Tensor, " batch"],
        positive: Int[Tensor, " batch"],
        generator: torch.Generator,
    ) -> Losses:
        """2b and 3 of some target interactions."""
        negative = target.others(user, generator)
        bpr, squares = self.bpr(user, positive, negative)
        first, second = (self.view(number) for number in range(2))
        losses = {"knowledge_bpr": bpr, "knowledge_l2": self.table_decay * squares}
        for name, rows, one, other in (
            ("view_items", positive, first.items, second.items),
            ("view_users", user, first.users, second.users),
        ):
            contrast = view_contrast(one[rows], other[rows], self.tau)
            losses[name] = self.view_weight * contrast
        return losses

    def bpr(
        self,
        user: Int[Tensor, " batch"],
        positive: Int[Tensor, " batch"],
        negative: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """softplus(neg - pos), SUMMED; and half the squared TABLE rows over the batch's size."""
        users, items = self(torch.cat([self.favored, positive, negative]).unique())
        margin = (users[user] * (items[negative] - items[positive])).sum(1)
        rows = [functional.embedding(user, self.users)]
        for copy in self.copies:
            rows += [functional.embedding(item, copy.items) for item in (positive, negative)]
        squares = torch.stack([row.square().sum() for row in rows]).sum() / 2
        return functional.softplus(margin).sum(), squares / max(1, len(user))

    def view(self, number: int) -> Vectors:
        """LightGCN over a view's graph, from the user table and that copy's vectors of favored items."""
        v = self.item_vectors(number, wanted=self.favored)
        return Vectors(*light_gcn(self.users, v, self.views[number], self.layers))

    @torch.no_grad()
    def draw_views(self, generator: torch.Generator) -> None:
        """Thin the graph once for each copy; what is kept is normalised anew."""
        for number, copy in enumerate(self.copies):
            one, other = (
                self.item_vectors(number, self.graph.thinned(generator)) for _ in range(2)
            )
            stability = functional.cosine_similarity(one, other)
            chance = keep_probabilities(self.users, copy.items, stability, self.edges, self.rescale)
            drawn = _uniform(len(chance), generator, chance.device)
            self.views[number] = self.edges.normalised((drawn < chance).to(chance.dtype))


class NoKnowledge(nn.Module):
    """Stands in for the knowledge half where there is none."""

    def prepare(self, train: Interactions, target: Bipartite) -> None:
        """Nothing to find."""

    def mix(self) -> Mix:
        """The behaviour half's vectors alone."""
        return lambda theirs: theirs

    def passes(
        self,
        target: Records,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> Iterator[Losses]:
        """Nothing to train."""
        yield from ()

    def loss(self, *_: object) -> Losses:
        """No term."""
        return {}


# The two halves together ------------------------------------------------------------------------------


class KMCLR(DotProduct):
    """Two halves over user and item ids, trained by themselves and added: 0.9 behaviour, 0.1 knowledge.

    Paper: Hongrui Xuan, Yi Liu, Bohan Li and Hongzhi Yin, "Knowledge Enhancement for Contrastive
    Multi-Behavior Recommendation", WSDM 2023, doi 10.1145/3539597.3570386. Authors' code:
    github.com/xuanhongrui/KMCLR, commit 8f62958, whose choices are the defaults. Not sequential: users
    are rows of tables, so what they click after training is not seen. Images and texts reach it by
    `kg=modality` alone.

    An epoch is the authors': TransR pass, TATEC pass, views, target interactions through the knowledge
    half, target interactions through the behaviour half, in batches of this method's own sizes, for the
    behaviour contrast and the summed losses depend on them. All of it is run on the first batch after
    `begin_epoch`, and later batches of the epoch add nothing: the harness's batches are the clock alone,
    and `train.batch_size`, `train.samples` and `train.passes` change nothing. `loss` is the sum of both
    halves' losses at a batch's favored pairs.

    SUBSTITUTE: no knowledge graph of these data exists. Triples come from id fields, or from clusters of
    frozen vectors (`KG`).

    Differences from the authors' code:
      - Scores and the constant knowledge part of the behaviour loss are computed without dropout; theirs
        score in training mode. One optimiser with two groups of parameters holds both halves (AdamW
        without decay is Adam), no model copy is built and thrown away, no item is cut off.
      - Triples are gone through in random order, not in the order of the file, and where they are fewer
        than a batch they are one batch. Interactions' last, smaller batch is trained too (theirs drop it
        in the knowledge half).
      - Edge dropout drops both directions of an edge at once.
      - The positive of an interaction is the interaction's item in both halves; theirs is a random
        item of its user in the knowledge half.
      - Keep probabilities are computed at the edges, not for all pairs (K3 `full_block`: same span).

    Raises:
        ValueError: a count below 1, or a rate or share that is none.
    """

    Config: ClassVar[type[ModelConfig]] = KMCLRConfig
    samples: ClassVar[Samples] = Samples.pair
    config: KMCLRConfig

    def __init__(self, config: KMCLRConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        for name in ("layers", "behaviour_batch", "knowledge_batch", "triple_batch", "ssl_group"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} is {getattr(config, name)}; at least 1 is needed")
        if config.kg_layers < 0:
            raise ValueError(f"kg_layers is {config.kg_layers}; it cannot be negative")
        if config.peak < 1:
            raise ValueError(f"peak is {config.peak}; the highest rate is no lower than the lowest")
        if config.contrast_tau <= 0:
            raise ValueError(f"contrast_tau is {config.contrast_tau}; a temperature is positive")
        item_rows = catalogue.items + 1
        self.behaviour = BehaviourHalf(catalogue.users, item_rows, config.hidden, config.layers)
        self.knowledge: KnowledgeHalf | NoKnowledge = NoKnowledge()
        if config.kg is not KG.none:
            self.knowledge = KnowledgeHalf(config, catalogue, source(config.kg, catalogue))
        self.records = [Records(catalogue, behaviour) for behaviour in BEHAVIOURS]
        self.on_device = nn.ModuleList(self.records)
        self.weigh = GRAPHS[config.graph_norm]
        self.graphs: list[Graph] = []
        self.epoch_is_new = True

    @property
    def target(self) -> Records:
        """Records of the target behaviour."""
        return self.records[-1]

    def prepare(self, train: Interactions) -> None:
        """A graph a behaviour, and the triples; says how many users the target losses skip."""
        self._remembered.clear()
        edges = [records.prepare(train) for records in self.records]
        self.graphs = [self.weigh(some) for some in edges]
        self.knowledge.prepare(train, edges[-1])
        skipped = int((self.target.count == 0).sum())
        log.info(
            "%d of %d users have no training favor: target losses skip them, their vectors come from "
            "clicks", skipped, self.catalogue.users,
        )  # fmt: skip

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:  # noqa: ARG002
        """The next batch starts a new epoch."""
        self.epoch_is_new = True

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """The whole epoch, on its first batch (see the class); nothing where nobody has a favor."""
        if not self.epoch_is_new or not len(self.target.user):
            return
        self.epoch_is_new = False
        yield from self.knowledge.passes(self.target, batch.generator)
        user, item, mix = self.target.user, self.target.item, self.knowledge.mix()
        order = _permutation(len(user), batch.generator, user.device)
        for rows in order.split(self.config.behaviour_batch):
            yield self.behaviour_loss(user[rows], item[rows], mix, batch.generator)

    def loss(self, batch: Batch) -> Losses:
        """Both halves' terms at the favored pairs of the batch."""
        favored = batch.favors[:, -1] > 0
        user, item = batch.history.user[favored], batch.target[favored]
        knowledge = self.knowledge.loss(self.target, user, item, batch.generator)
        mix = self.knowledge.mix()
        return {**knowledge, **self.behaviour_loss(user, item, mix, batch.generator)}

    def behaviour_loss(
        self,
        user: Int[Tensor, " batch"],
        item: Int[Tensor, " batch"],
        mix: Mix,
        generator: torch.Generator,
    ) -> Losses:
        """1b: (BPR + reg |last vectors|^2 + beta contrast) / batch, sums over users, means over b.

        Args:
            user: Users of target interactions.
            item: Their items: the target's positives; each other behaviour's are drawn.
            mix: What the knowledge half adds, a constant.
            generator: Stream of the draws.
        """
        vectors, sums = self.behaviour(self.graphs)
        users, items = mix(vectors)
        drawn = [records.positives(user, generator) for records in self.records[:-1]]
        terms, squares = [], user.new_zeros(())
        for records, (who, positive) in zip(self.records, [*drawn, (user, item)], strict=True):
            u, i, j = users[who], items[positive], items[records.others(who, generator)]
            terms.append(bpr(u, i, j).sum())
            squares = torch.stack([x.square().sum() for x in (u, i, j)]).sum()
        chosen = user[_permutation(len(user), generator, user.device)[: len(user) // 10]]
        distinct, rank = torch.unique(chosen, return_inverse=True)
        each = views([u_b[:, distinct] for u_b in sums], self.behaviour.A, self.behaviour.C_u)
        contrast = behaviour_contrast(each, rank, self.config.ssl_group)
        size = self.config.behaviour_batch
        return {
            "bpr": torch.stack(terms).mean() / size,
            "l2": self.config.reg * squares / size,
            "contrast": self.config.beta * contrast.sum(1).mean() / size,
        }

    def vectors(self) -> Vectors:
        """4: final vectors, computed once an evaluation."""
        return self.once("vectors", lambda: self.knowledge.mix()(self.behaviour(self.graphs)[0]))

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """Final vectors of the users; the history itself is not read."""
        return self.vectors().users[history.user]

    def item_vectors(self) -> Float[Tensor, "item_row d"]:
        """Final vectors of the items."""
        return self.vectors().items

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Clip the behaviour half's gradient to norm 20."""
        nn.utils.clip_grad_norm_(self.behaviour.parameters(), 20.0)

    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW on the behaviour half, Adam on the knowledge half; a half without gradient rests."""
        halves = [
            {"params": [*self.behaviour.parameters()], "weight_decay": self.config.weight_decay},
            {"params": [*self.knowledge.parameters()], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(halves, lr=self.config.learning_rate, fused=True)

    def schedule(
        self, optimiser: torch.optim.Optimizer, steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The behaviour half's rate goes up for 5 epochs and down for 10, over and over."""
        peak = self.config.peak

        def triangle(step: int) -> float:
            epoch = step // max(1, steps) % (UP + DOWN)
            height = epoch / UP if epoch < UP else (UP + DOWN - epoch) / DOWN
            return 1 + (peak - 1) * height

        return torch.optim.lr_scheduler.LambdaLR(optimiser, [triangle, lambda _: 1.0])


def bpr(
    user: Float[Tensor, "batch d"],
    positive: Float[Tensor, "batch d"],
    negative: Float[Tensor, "batch d"],
) -> Float[Tensor, " batch"]:
    """-log sigmoid(pos - neg)."""
    return -functional.logsigmoid((user * (positive - negative)).sum(1))


def binary(edges: Bipartite) -> Graph:
    """R_b as it is: sums over neighbours."""
    return Graph(edges, torch.ones(len(edges.user), device=edges.user.device))


GRAPHS: dict[Norm, Callable[[Bipartite], Graph]] = {
    Norm.none: binary,
    Norm.symmetric: Bipartite.normalised,
}


def _xavier(rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    return nn.init.xavier_uniform_(torch.empty(rows, columns))


def _normal(rows: int, d: int) -> Float[Tensor, "rows d"]:
    return nn.init.normal_(torch.empty(rows, d), std=0.1)


def _uniform(
    count: int, generator: torch.Generator, device: torch.device
) -> Float[Tensor, " count"]:
    """From 0 to below 1, in float64 so that no product with a count reaches the count."""
    drawn = torch.rand(count, dtype=torch.float64, generator=generator, device=generator.device)
    return drawn.to(device)


def _permutation(
    count: int, generator: torch.Generator, device: torch.device
) -> Int[Tensor, " count"]:
    return torch.randperm(count, generator=generator, device=generator.device).to(device)
