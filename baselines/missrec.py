"""MISSRec: multi-modal interest-aware sequence representation (Wang et al., ACM MM 2023).

Axes: batch = users or samples, length = slots of a left-padded history, read = slots whose output is
wanted (all, or the latest), interest = interest tokens of a user, point = clustered vectors, cluster
= centroids, cand = candidate items, row = item rows or candidates that are scored, item_row = items
+ 1 (row 0 is padding), width = of an image or text vector, d = hidden width H.

Symbols: t, v = text and image vectors of an item, adapted to width d; e = its id vector; u = the
user's vector; gamma = fusion factor; tau = temperature; K = number of clusters. L1 to L7 number the
layers in order: L1 adaptors, L2 interests, L3 decoder input, L4 encoder of the interests, L5 decoder
of the items, L6 user vector, L7 score.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.interface import (
    Batch,
    Behaviour,
    Catalogue,
    History,
    Losses,
    ModelConfig,
    Recommender,
)
from models.layers import Dropout, Reads, typing
from models.softmax import scored_cross_entropy

EPS = 1e-12
"""Of every layer norm."""
POINTS = 4096
"""Points whose distances to all centroids are held at once."""
ROWS = 256
"""Points whose distances to all points are held at once (DPC-KNN): 51 MB at 50,000 points."""
WHOLE = 1 << 17
"""Item rows whose vectors are made all at once; where there are more, a block of them at a time."""
BLOCK = 4096
"""Rows of such a block, but for the softmax, which chooses its own."""


class Clusters(Enum):
    """I1: mini-batch k-means (active in the authors' code), or DPC-KNN (there, commented out)."""

    kmeans = "kmeans"
    dpc_knn = "dpc_knn"


class ItemFusion(Enum):
    """I2: weights of an item's two similarities: one gamma, their mean, or one gamma an item."""

    dynamic_shared = "dynamic_shared"
    static = "static"
    dynamic_instance = "dynamic_instance"


class Reg(Enum):
    """I3: the pooled interests' squared length, summed over the batch, or nothing."""

    as_coded = "as_coded"
    off = "off"


class Missing(Enum):
    """I4: a missing vector is zeros, so the adaptor's bias stands for it, or it is left out.

    Left out: of the history's sum, of the interests, and of the candidate's fusion, where the other
    modality then stands alone (where both are missing, the id alone).
    """

    zero = "zero"
    masked = "masked"


class Pretrain(Enum):
    """I6: from scratch, or a contrastive first stage on the same records, then a frozen Transformer."""

    none = "none"
    in_domain = "in_domain"


class Ids(Enum):
    """The authors' two ways of fine-tuning: with id vectors (released), or vectors of content alone."""

    transductive = "transductive"
    inductive = "inductive"


class ItemDrop(Enum):
    """What is left of a dropped item and the kept one before it, in pre-training.

    `as_coded`: the authors write both into one place, and on a CPU the dropped one, the later, stays.
    `as_described`: the kept one.
    """

    as_coded = "as_coded"
    as_described = "as_described"


@dataclass
class MISSRecConfig(ModelConfig):
    """Settings of MISSRec; defaults from the authors' code, default option first."""

    hidden: int = 300
    """Width H."""
    layers: int = 2
    """Half of them encode the interests, half decode the items: even."""
    heads: int = 4
    """Heads of each attention; they divide `hidden`."""
    inner: int = 256
    """Width I inside the feed-forward parts."""
    dropout: float = 0.5
    """Of the input, the attention weights, and the output and the inside of every sub-layer."""
    temperature: float = 0.07
    """tau, under every score."""
    reg_weight: float = 1e-4
    """Of the interests' term; a sum over the batch, so it grows with the batch size."""
    clusters: Clusters = Clusters.kmeans
    interest_ratio: float = 0.5
    """K for each text or image vector of an item (I7)."""
    most_interests: int = 1024
    """Upper bound of K; ours, as the ratio alone would give 618,529 clusters on Kuaishou (I7)."""
    fit_points: int = 50_000
    """Vectors, drawn at random, that the centroids are fitted to at most (I7)."""
    kmeans_passes: int = 5
    """Over these vectors."""
    kmeans_batch: int = 2048
    """Vectors an update of the centroids."""
    neighbour_ratio: float = 0.1
    """Nearest vectors that make a density, for each clustered one (DPC-KNN)."""
    item_fusion: ItemFusion = ItemFusion.dynamic_shared
    reg: Reg = Reg.as_coded
    missing: Missing = Missing.zero
    behaviors: Reads = Reads.merged
    """I5."""
    ids: Ids = Ids.transductive
    pretrain: Pretrain = Pretrain.none
    pretrain_epochs: int = 100
    """Epochs of the first stage (at most `train.epochs`)."""
    pretrain_interest_ratio: float = 0.02
    """`interest_ratio` of the first stage."""
    augmented_weight: float = 1e-3
    """lambda, of the contrast between a user and the same user with fewer items (pre-training)."""
    item_drop: float = 0.2
    """Chance of each item but the first to be dropped (pre-training)."""
    drop: ItemDrop = ItemDrop.as_coded

    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dropout": (0.1, 0.3, 0.5),
        "most_interests": (64, 256, 1024),
    }


# The post-norm Transformer (L4, L5)


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values share one stacked map, `into`."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (d // heads) ** -0.5
        self.into = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "batch read d"],
        memory: Float[Tensor, "batch slot d"],
        visible: Bool[Tensor, "batch slot"],
    ) -> Float[Tensor, "batch read d"]:
        """What each query gathers from the visible slots; at least one a row is visible."""
        d = query.shape[2]

        def split(x: Float[Tensor, "batch slots any"]) -> list[Tensor]:
            """Heads of each stacked map, as (batch, head, slots, width)."""
            parts = x.unflatten(2, (-1, self.heads, d // self.heads))
            return [part.transpose(1, 2) for part in parts.unbind(2)]

        weight, bias = self.into.weight, self.into.bias
        (q,) = split(functional.linear(query, weight[:d], bias[:d]) * self.scale)
        k, v = split(functional.linear(memory, weight[d:], bias[d:]))
        logits = (q @ k.mT).masked_fill_(~visible[:, None, None], -torch.inf)
        gathered: Tensor = self.dropout(logits.softmax(-1)) @ v
        mixed: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return mixed


class FeedForward(nn.Module):
    """Linear, GELU (erf), Dropout, Linear."""

    def __init__(self, d: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(d, inner)
        self.outer = nn.Linear(inner, d)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch slot d"]) -> Float[Tensor, "batch slot d"]:
        """Slot by slot."""
        out: Tensor = self.outer(self.dropout(functional.gelu(self.inner(x))))
        return out


class EncoderLayer(nn.Module):
    """L4: x <- LN(x + attention), x <- LN(x + feed-forward), over the interests."""

    def __init__(self, config: MISSRecConfig) -> None:
        super().__init__()
        d = config.hidden
        self.attention = Attention(d, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(d, eps=EPS)
        self.feed_forward = FeedForward(d, config.inner, config.dropout)
        self.feed_forward_norm = nn.LayerNorm(d, eps=EPS)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch interest d"], visible: Bool[Tensor, "batch interest"]
    ) -> Float[Tensor, "batch interest d"]:
        """All interests, those of padding too."""
        x = self.attention_norm(x + self.dropout(self.attention(x, x, visible)))
        out: Tensor = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return out


class DecoderLayer(EncoderLayer):
    """L5: self-attention over the items in both directions, cross-attention, feed-forward."""

    def __init__(self, config: MISSRecConfig) -> None:
        super().__init__(config)
        self.cross = Attention(config.hidden, config.heads, config.dropout)
        self.cross_norm = nn.LayerNorm(config.hidden, eps=EPS)

    def decode(
        self,
        query: Float[Tensor, "batch read d"],
        items: Float[Tensor, "batch length d"],
        visible: Bool[Tensor, "batch length"],
        memory: Float[Tensor, "batch interest d"],
        remembered: Bool[Tensor, "batch interest"],
    ) -> Float[Tensor, "batch read d"]:
        """The slots of `query`, which are among those of `items`."""
        x = self.attention_norm(query + self.dropout(self.attention(query, items, visible)))
        x = self.cross_norm(x + self.dropout(self.cross(x, memory, remembered)))
        out: Tensor = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return out


class Transformer(nn.Module):
    """L4 and L5; a norm ends each half."""

    def __init__(self, config: MISSRecConfig) -> None:
        super().__init__()
        half = config.layers // 2
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(half))
        self.encoder_norm = nn.LayerNorm(config.hidden, eps=EPS)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(half))
        self.decoder_norm = nn.LayerNorm(config.hidden, eps=EPS)

    def encode(
        self, interests: Float[Tensor, "batch interest d"], visible: Bool[Tensor, "batch interest"]
    ) -> Float[Tensor, "batch interest d"]:
        """L4."""
        for layer in self.encoder:
            interests = layer(interests, visible)
        memory: Tensor = self.encoder_norm(interests)
        return memory

    def decode(
        self,
        items: Float[Tensor, "batch length d"],
        visible: Bool[Tensor, "batch length"],
        memory: Float[Tensor, "batch interest d"],
        remembered: Bool[Tensor, "batch interest"],
        read: int,
    ) -> Float[Tensor, "batch read d"]:
        """L5 at the last `read` slots: of the last layer nothing else is computed."""
        x, last = items, len(self.decoder) - 1
        for number, layer in enumerate(self.decoder):
            assert isinstance(layer, DecoderLayer)
            query = x[:, -read:] if number == last else x
            x = layer.decode(query, x, visible, memory, remembered)
        decoded: Tensor = self.decoder_norm(x)
        return decoded


# The interests (L2)


class Clustering(ABC):
    """I1: centroids of points, and whose cluster each point is."""

    def __init__(self, config: MISSRecConfig) -> None:
        self.config = config

    def __call__(
        self, points: Float[Tensor, "point d"], clusters: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "cluster d"], Int[Tensor, " point"]]:
        """Fit to at most `fit_points` of the points, drawn at random; assign all of them.

        Args:
            points: What is clustered; at least one.
            clusters: K; fewer where fewer points are fitted to.
            generator: Of the draw.
        """
        order = torch.randperm(len(points), generator=generator, device=generator.device)
        fitted = order[: self.config.fit_points].to(points.device)
        return self.of(points, fitted, min(clusters, len(fitted)))

    @abstractmethod
    def of(
        self, points: Float[Tensor, "point d"], fitted: Int[Tensor, " some"], clusters: int
    ) -> tuple[Float[Tensor, "cluster d"], Int[Tensor, " point"]]:
        """Without draws: `fitted` are the points to fit to, in random order."""


class KMeans(Clustering):
    """Mini-batch k-means, Euclidean; random points are the first centroids.

    A centroid moves to the mean of its points in a batch at the rate of 1 over the points that it had
    before (1 at first), as the authors' k-means; one without points in a batch stays.
    """

    def of(
        self, points: Float[Tensor, "point d"], fitted: Int[Tensor, " some"], clusters: int
    ) -> tuple[Float[Tensor, "cluster d"], Int[Tensor, " point"]]:
        """Passes over the fitted points, then one assignment of all points."""
        centroids = points[fitted[:clusters]]
        had = centroids.new_ones(clusters, 1)
        for _ in range(self.config.kmeans_passes):
            for chosen in fitted.split(self.config.kmeans_batch):
                batch = points[chosen]
                nearest = nearest_of(batch, centroids)
                sums = torch.zeros_like(centroids).index_add_(0, nearest, batch)
                count = torch.bincount(nearest, minlength=clusters).unsqueeze(1)
                moved = (sums / count.clamp(min=1) - centroids) * (count > 0)
                centroids = centroids + moved / had
                had = had + count
        return centroids, nearest_of(points, centroids)


class DensityPeaks(Clustering):
    """DPC-KNN. Distances are Euclidean / sqrt(d).

    Density = exp(-mean squared distance to the k nearest, itself included); gap = distance to the
    nearest denser point, or the largest distance of all. The K largest density x gap are centres;
    every point belongs to the nearest, and a centroid is the sum of its points / (count + 1e-4).
    """

    def of(
        self, points: Float[Tensor, "point d"], fitted: Int[Tensor, " some"], clusters: int
    ) -> tuple[Float[Tensor, "cluster d"], Int[Tensor, " point"]]:
        """Centres among the fitted points; all points belong to one, and make its centroid."""
        centres = fitted[self.peaks(points[fitted], clusters)]
        owner = nearest_of(points, points[centres])
        owner[centres] = torch.arange(len(centres), device=owner.device)  # also if two are equal
        sums = torch.zeros_like(points[centres]).index_add_(0, owner, points)
        count = torch.bincount(owner, minlength=len(centres)).unsqueeze(1).to(points.dtype)
        return sums / (count + 1e-4), owner

    def peaks(self, points: Float[Tensor, "point d"], clusters: int) -> Int[Tensor, " cluster"]:
        """Numbers of the centres, best first; distances are made a block at a time, twice."""
        near = max(1, math.ceil(len(points) * self.config.neighbour_ratio))
        densities, largest = [], points.new_zeros(())
        for _, distance in self._distances(points):
            nearest = distance.topk(near, dim=1, largest=False).values
            densities.append((-nearest.square().mean(1)).exp())
            largest = torch.maximum(largest, distance.max())
        density = torch.cat(densities)
        gaps = [
            torch.where(density > density[block].unsqueeze(1), distance, largest).amin(1)
            for block, distance in self._distances(points)
        ]
        return (density * torch.cat(gaps)).topk(clusters).indices

    @staticmethod
    def _distances(points: Float[Tensor, "point d"]) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(points), ROWS):
            block = slice(start, start + ROWS)
            yield block, torch.cdist(points[block], points) / math.sqrt(points.shape[1])


CLUSTERING: dict[Clusters, type[Clustering]] = {
    Clusters.kmeans: KMeans,
    Clusters.dpc_knn: DensityPeaks,
}


def nearest_of(
    points: Float[Tensor, "point d"], centroids: Float[Tensor, "cluster d"]
) -> Int[Tensor, " point"]:
    """Number of the nearest centroid: least |c|^2 / 2 - p . c."""
    half = centroids.square().sum(1) / 2
    return torch.cat(
        [
            torch.addmm(half, block, centroids.T, alpha=-1).argmin(1)
            for block in points.split(POINTS)
        ]
    )


class Interests(nn.Module):
    """L2: centroids, which are constants, and the cluster of each item's text and image.

    Row 0 of `centroids` is padding: zeros. Cluster 0 belongs to padding (and to what is left out).
    """

    centroids: Tensor
    text_cluster: Tensor
    image_cluster: Tensor

    def __init__(self, config: MISSRecConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.clustering = CLUSTERING[config.clusters](config)
        self.vectors, self.limit = 2 * catalogue.items, config.most_interests
        self.length = catalogue.length
        most = max(self.count(config.interest_ratio), self.count(config.pretrain_interest_ratio))
        self.register_buffer("centroids", torch.zeros(most + 1, config.hidden))
        none = torch.zeros(catalogue.items + 1, dtype=torch.int64)
        self.register_buffer("text_cluster", none)
        self.register_buffer("image_cluster", none.clone())

    def count(self, ratio: float) -> int:
        """K: this share of all text and image vectors, rounded up, at most the limit."""
        return max(1, min(math.ceil(ratio * self.vectors), self.limit))

    @torch.no_grad()
    def refresh(
        self,
        points: Float[Tensor, "point d"],
        clustered: Bool[Tensor, "item_row 2"],
        ratio: float,
        generator: torch.Generator,
    ) -> None:
        """Cluster the vectors of both modalities together.

        Args:
            points: t of the items whose texts take part, then v of those whose images do.
            clustered: whether the text, the image of an item takes part.
            ratio: clusters a vector.
            generator: of the draws.
        """
        for buffer in (self.centroids, self.text_cluster, self.image_cluster):
            buffer.zero_()
        if len(points):
            centroids, owner = self.clustering(points, self.count(ratio), generator)
            self.centroids[1 : len(centroids) + 1] = centroids
            texts = int(clustered[:, 0].sum())
            self.text_cluster[clustered[:, 0]] = owner[:texts] + 1
            self.image_cluster[clustered[:, 1]] = owner[texts:] + 1

    def ids(
        self, text_items: Int[Tensor, "batch length"], image_items: Int[Tensor, "batch other"]
    ) -> Int[Tensor, "batch interest"]:
        """Clusters of the items' texts and images, each once a user, ascending; then padding.

        A row that is shorter than the longest possible history has a 0 in front too, as in the
        authors' code, whose rows always have the full length: the regulariser counts it.
        """
        found = torch.cat([self.text_cluster[text_items], self.image_cluster[image_items]], 1)
        short = (text_items > 0).sum(1, keepdim=True) < self.length
        found = torch.cat([found, torch.where(short, 0, found[:, -1:])], 1).sort(1).values
        first = functional.pad(found[:, 1:] != found[:, :-1], (1, 0), value=True)
        place = first.cumsum(1) - 1
        width = int(place[:, -1].max()) + 1 if len(place) else 1
        return found.new_zeros(len(found), width).scatter_(1, place, found)


# The items (L1, L3, L7)


class Modalities(nn.Module):
    """L1: t and v of every item; a missing vector is zeros, which the adaptor's bias takes over."""

    text: Tensor
    image: Tensor
    present: Tensor

    def __init__(self, catalogue: Catalogue, d: int) -> None:
        super().__init__()
        self.register_buffer("text", catalogue.text, persistent=False)
        self.register_buffer("image", catalogue.image, persistent=False)
        present = torch.stack([catalogue.text_present, catalogue.image_present], 1)
        self.register_buffer("present", present, persistent=False)
        # The adaptors keep torch's start, uniform(+-1/sqrt(width)), bias too, as in the authors'
        # code, which makes them after it has drawn all other weights.
        self.text_adaptor = nn.Linear(catalogue.text.shape[1], d)
        self.image_adaptor = nn.Linear(catalogue.image.shape[1], d)

    def forward(self) -> tuple[Float[Tensor, "item_row d"], Float[Tensor, "item_row d"]]:
        """Vectors t and v of all items."""
        return self.adapted(self.weights(), self.text, self.image)

    def weights(self) -> list[Tensor]:
        """Of both adaptors."""
        text, image = self.text_adaptor, self.image_adaptor
        return [text.weight, text.bias, image.weight, image.bias]

    @staticmethod
    def adapted(
        weights: Sequence[Tensor],
        text: Float[Tensor, "row text_width"],
        image: Float[Tensor, "row image_width"],
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
        """Vectors t and v of some items, with these weights."""
        text_weight, text_bias, image_weight, image_bias = weights
        dtype = text_weight.dtype
        texts = functional.linear(text.to(dtype), text_weight, text_bias)
        return texts, functional.linear(image.to(dtype), image_weight, image_bias)

    def some(
        self, items: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
        """Vectors t and v of these items, in blocks that the way back makes again.

        What they are made from, up to 10 KB an item, is so held a block at a time.
        """

        def made(block: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
            return self.adapted(self.weights(), self.text[block], self.image[block])

        blocks = [checkpoint(made, block, use_reentrant=False) for block in items.split(BLOCK)]
        texts, images = zip(*blocks, strict=True)
        return torch.cat(texts), torch.cat(images)

    @torch.no_grad()
    def points(self) -> Float[Tensor, "point d"]:
        """Vectors t of the items whose texts are clustered, then v of those whose images are."""
        clustered = self.clustered()
        if len(self.text) <= WHOLE:
            text, image = self()
            return torch.cat([text[clustered[:, 0]], image[clustered[:, 1]]])
        weight, end = self.text_adaptor.weight, [0, int(clustered[:, 0].sum())]
        points = weight.new_empty(int(clustered.sum()), len(weight))
        for block in blocks_of(len(self.text)):
            made = self.adapted(self.weights(), self.text[block], self.image[block])
            for modality, vectors in enumerate(made):
                chosen = vectors[clustered[block, modality]]
                points[end[modality] : end[modality] + len(chosen)] = chosen
                end[modality] += len(chosen)
        return points

    def clustered(self) -> Bool[Tensor, "item_row 2"]:
        """Which texts and images are points of the clustering: all, but not padding."""
        rows = torch.arange(len(self.present), device=self.present.device)
        return (rows > 0).unsqueeze(1).expand(-1, 2)

    def read(
        self,
        text: Float[Tensor, "row d"],
        image: Float[Tensor, "row d"],
        present: Bool[Tensor, "row 2"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
        """What a history sums of each item: t and v."""
        return text, image

    def scored(
        self,
        text: Float[Tensor, "row d"],
        image: Float[Tensor, "row d"],
        present: Bool[Tensor, "row 2"],  # noqa: ARG002
    ) -> list[Float[Tensor, "row d"]]:
        """What a user is compared with: t and v of length 1."""
        return [functional.normalize(text, dim=1), functional.normalize(image, dim=1)]


class MaskedModalities(Modalities):
    """I4: what is missing is left out."""

    def clustered(self) -> Bool[Tensor, "item_row 2"]:
        """The present ones."""
        return self.present & super().clustered()

    def read(
        self,
        text: Float[Tensor, "row d"],
        image: Float[Tensor, "row d"],
        present: Bool[Tensor, "row 2"],
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
        """Zeros where missing."""
        return text * present[:, :1], image * present[:, 1:]

    def scored(
        self,
        text: Float[Tensor, "row d"],
        image: Float[Tensor, "row d"],
        present: Bool[Tensor, "row 2"],
    ) -> list[Float[Tensor, "row d"]]:
        """The other modality stands in for a missing one: any weights of two equals give it alone."""
        texts, images = super().scored(*self.read(text, image, present), present)
        has_text, has_image = present[:, :1], present[:, 1:]
        return [torch.where(has_text, texts, images), torch.where(has_image, images, texts)]


class NoIds(nn.Module):
    """Items without id vectors: pre-training, and the inductive way."""

    def lines(self) -> list[Tensor]:
        """What an id vector is made from, each with one line an item row: nothing."""
        return []

    def add(
        self,
        x: Float[Tensor, "row d"],
        lines: Sequence[Tensor],  # noqa: ARG002
    ) -> Float[Tensor, "row d"]:
        """Nothing added."""
        return x

    def scored(self, lines: Sequence[Tensor]) -> list[Float[Tensor, "row d"]]:  # noqa: ARG002
        """Nothing to compare a user with."""
        return []


class IdTable(NoIds):
    """E, whose padding row is zero and stays so."""

    def __init__(self, items: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(items + 1, d), std=0.02))
        nn.init.zeros_(self.weight[0].detach())

    def lines(self) -> list[Tensor]:
        """E, and 0 for padding, 1 for every item.

        Their product is E without a gradient at the padding row, which a norm of length 0 would make
        infinite.
        """
        real = torch.ones_like(self.weight[:, :1])
        real[0] = 0
        return [self.weight, real]

    def add(self, x: Float[Tensor, "row d"], lines: Sequence[Tensor]) -> Float[Tensor, "row d"]:
        """E added (L3)."""
        return x + lines[0] * lines[1]

    def scored(self, lines: Sequence[Tensor]) -> list[Float[Tensor, "row d"]]:
        """E with rows of length 1."""
        return [functional.normalize(lines[0] * lines[1], dim=1)]


def blocks_of(rows: int) -> Iterator[slice]:
    """The item rows, a block at a time."""
    for start in range(0, rows, BLOCK):
        yield slice(start, start + BLOCK)


def everything(history: History) -> History:
    """Both behaviours."""
    return history


def favors(history: History) -> History:
    """Favors alone."""
    return history.only(Behaviour.FAVOR)


def kept(keep: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """Item drop as described: what is kept stays."""
    return keep


def shifted(keep: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """Item drop as coded: of a kept item and those dropped after it, the last one stays.

    That is the item whose successor is kept, or the latest.
    """
    return functional.pad(keep[:, 1:], (0, 1), value=True)


STAYS = {ItemDrop.as_coded: shifted, ItemDrop.as_described: kept}


def fused(
    similarities: Sequence[Float[Tensor, "batch row"]],
    gamma: Float[Tensor, "*batch row"],
    temperature: float,
) -> Float[Tensor, "batch row"]:
    """L7: score from u . norm(t), u . norm(v) and, with ids, u . norm(E).

    The weights are a softmax over the user's two similarities a, b times gamma, so that
    f = w_a a + w_b b = b + (a - b) sigmoid(gamma (a - b)): no product of u with any fused vector.
    """
    text, image, *ids = similarities
    difference = text - image
    score = image + difference * (gamma * difference).sigmoid()
    for similarity in ids:
        score = (similarity + 2 * score) / 3
    return score / temperature


@dataclass(frozen=True)
class Items:
    """Items as they are read, and as they are scored: all, or some."""

    text: Float[Tensor, "row d"]
    """What its text (and its id) adds to a history (L3)."""
    image: Float[Tensor, "row d"]
    """What its image adds."""
    scored: list[Float[Tensor, "row d"]]
    """Unit vectors: text, image and, with ids, the id's (L7)."""
    gamma: Float[Tensor, " row"]
    """Fusion factor."""
    place: Int[Tensor, " item_row"] | None = None
    """Row of each item; None where that is its number, as all are here."""

    def row(self, items: Int[Tensor, "*_"]) -> Int[Tensor, "*_"]:
        """Where these items are."""
        return items if self.place is None else self.place[items]


@dataclass(frozen=True)
class View:
    """What is read of some users."""

    history: History
    """Ids, texts, mask and behaviours."""
    images: Int[Tensor, "batch length"]
    """Items whose images are added at the slots."""
    seen: Int[Tensor, "batch other"]
    """Items whose images are interests."""


@dataclass(frozen=True)
class Output:
    """A view encoded."""

    user: Float[Tensor, "batch d"]
    """u (L6)."""
    memory: Float[Tensor, "batch interest d"]
    """Encoded interests (L4), padding too."""
    real: Bool[Tensor, "batch interest"]
    """Which of them are interests."""


def no_penalty(output: Output) -> Float[Tensor, ""]:
    """I3 off."""
    return output.user.new_zeros(())


def pooled_interests(output: Output) -> Float[Tensor, ""]:
    """I3: sum_b |p_b|^2 / d, p_b = (share of real interests) x (sum over all encoded rows).

    The authors call it orthogonality; it shrinks the pooled interests, padding's rows among them.
    """
    share = output.real.to(output.memory.dtype).mean(1, keepdim=True)
    pooled: Tensor = output.memory.sum(1) * share
    return pooled.square().sum() / pooled.shape[1]


class MISSRec(Recommender):
    """Interest tokens encoded, the items decoded over them in both directions, candidates fused.

    Paper: Jinpeng Wang, Ziyun Zeng, Yunxiao Wang, Yuting Wang, Xingyu Lu, Tianxiang Li, Jun Yuan, Rui
    Zhang, Hai-Tao Zheng and Shu-Tao Xia, "MISSRec: Pre-training and Transferring Multi-modal
    Interest-aware Sequence Representation for Recommendation", ACM MM 2023, arXiv 2308.11175. Authors'
    code: github.com/gimpong/MM23-MISSRec, commit c3167c5, whose fine-tuning with ids is the default.

    Differences from the authors' code:
      - SUBSTITUTE: their corpora for pre-training do not exist here. The default is their training
        from scratch; `pretrain=in_domain` pre-trains on the same training records, with item drop
        alone (there is no second, word-dropped text). Both stages have the harness's batch size, 4096
        in theirs at pre-training, and the in-batch negatives are as many as it.
      - K = ceil(ratio x vectors) is cut at `most_interests`, and centroids are fitted to at most
        `fit_points` vectors; all vectors are assigned, before each epoch.
      - k-means reads the vectors in a random order, not texts first; a centroid that gets no vectors
        stays; and all passes are made (their stopping rule compares the centroids with themselves,
        which ends the loop after the first). DPC-KNN is exact, its distances made in blocks of rows.
      - The padding row of the id table is never trained. It is a class of the softmax, as in theirs.
      - Histories stand at the right; positions still count from the oldest event. Of the last
        decoder layer only the slot that is read is computed. A history without events is read as one
        padding item without interests.
      - The softmax over all rows is exact but made in blocks of rows, three products each. Beyond
        131,072 rows the items' vectors are made in these blocks too, and of the items that a batch
        names: the same numbers to rounding, in less memory (docs/scale.md).

    Raises:
        ValueError: A size, share or rate that makes no model.
    """

    Config: ClassVar[type[ModelConfig]] = MISSRecConfig
    config: MISSRecConfig
    gamma: Tensor
    pretraining: Tensor

    def __init__(self, config: MISSRecConfig, catalogue: Catalogue) -> None:
        super().__init__(config, catalogue)
        refuse(config)
        d = config.hidden
        self.positions = nn.Parameter(torch.empty(catalogue.length, d))
        self.input_norm = nn.LayerNorm(d, eps=EPS)
        self.input_dropout = Dropout(config.dropout)
        self.transformer = Transformer(config)
        initialise(self)
        self.reading = favors if config.behaviors is Reads.favor_only else everything
        self.typing = typing(config.behaviors, d)
        masked = config.missing is Missing.masked
        self.modalities = (MaskedModalities if masked else Modalities)(catalogue, d)
        self.without_ids = NoIds()
        with_ids = config.ids is Ids.transductive
        self.ids = IdTable(catalogue.items, d) if with_ids else self.without_ids
        self.interests = Interests(config, catalogue)
        rows = catalogue.items + 1 if config.item_fusion is ItemFusion.dynamic_instance else 1
        gamma = torch.zeros(rows)
        if config.item_fusion is ItemFusion.static:  # the mean is the softmax of gamma = 0
            self.register_buffer("gamma", gamma, persistent=False)
        else:
            self.gamma = nn.Parameter(gamma)
        self.many = catalogue.items + 1 > WHOLE
        self.penalty = pooled_interests if config.reg is Reg.as_coded else no_penalty
        self.stays = STAYS[config.drop]
        self.freezes = config.pretrain is Pretrain.in_domain
        self.register_buffer("pretraining", torch.tensor(self.freezes))

    # Stages

    @property
    def selects(self) -> bool:
        """Pre-training ends with its last weights."""
        return not self.pretraining

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:  # noqa: ARG002
        """L2: new interests, without gradients. After pre-training the Transformer is frozen."""
        moves = bool(self.pretraining) or not self.freezes
        for parameter in (self.positions, *self.transformer.parameters()):
            parameter.requires_grad_(moves)
        pretrains, config = bool(self.pretraining), self.config
        ratio = config.pretrain_interest_ratio if pretrains else config.interest_ratio
        points = self.modalities.points()
        self.interests.refresh(points, self.modalities.clustered(), ratio, generator)
        self._remembered.clear()

    def stage_ended(self, epochs: int, generator: torch.Generator) -> bool:  # noqa: ARG002
        """Pre-training is over after its epochs."""
        return bool(self.pretraining) and epochs >= self.config.pretrain_epochs

    def next_stage(self) -> bool:
        """Fine-tuning follows pre-training."""
        follows = bool(self.pretraining)
        self.pretraining.fill_(False)
        self._remembered.clear()
        return follows

    # Training

    def loss(self, batch: Batch) -> Losses:
        """Of the stage."""
        history = self.reading(batch.history)
        if self.pretraining:
            return self.contrast(history, self.shortened(history, batch.generator), batch.target)
        return self.next_item(history, batch.target)

    def next_item(self, history: History, target: Int[Tensor, " batch"]) -> Losses:
        """Fine-tuning: cross-entropy over all rows, that of padding too, and the regulariser."""
        view = plain(history)
        items = self.items_of(view.history.items)
        output = self.output(items, view)
        return {
            "next_item": self.entropy(output.user, items, target).mean(),
            "interests": self.config.reg_weight * self.penalty(output),
        }

    def entropy(
        self, user: Float[Tensor, "batch d"], items: Items, target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Cross-entropy over all rows."""
        if self.many:
            return self.entropy_in_blocks(user, target)

        def scores(shared: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
            *scored, gamma = rows
            return fused([shared[0] @ each.T for each in scored], gamma, self.config.temperature)

        return scored_cross_entropy(scores, [user], [*items.scored, items.gamma], target)

    def entropy_in_blocks(
        self, user: Float[Tensor, "batch d"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The same; each block of the softmax makes its rows' vectors, and again on the way back."""

        def scores(shared: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
            user, *weights = shared
            text, image, *lines = rows
            made = self.made(self.modalities.adapted(weights, text, image), lines)
            near = [user @ each.T for each in made.scored]
            return fused(near, made.gamma, self.config.temperature)

        shared = [user, *self.modalities.weights()]
        rows = [self.modalities.text, self.modalities.image, *self.lines()]
        return scored_cross_entropy(scores, shared, rows, target)

    def contrast(self, history: History, shorter: History, target: Int[Tensor, " batch"]) -> Losses:
        """Pre-training: each user against the batch's targets, and against the shortened users.

        One direction: users are the anchors; an item that is a target twice is not masked.

        Args:
            history: The users.
            shorter: The same users after item drop.
            target: Next items.
        """
        items = self.items_of(history.items, shorter.items, target)
        first = self.output(items, plain(history))
        second = self.output(items, misaligned(history, shorter))
        tau, label = self.config.temperature, torch.arange(len(target), device=target.device)
        rows = items.row(target)
        near = [first.user @ each[rows].T for each in items.scored]
        to_item = fused(near, items.gamma[rows], tau)
        to_user = first.user @ second.user.T / tau
        penalty = self.penalty(first) + self.penalty(second)
        return {
            "next_item": functional.cross_entropy(to_item, label),
            "augmented": self.config.augmented_weight * functional.cross_entropy(to_user, label),
            "interests": self.config.reg_weight * penalty,
        }

    def shortened(self, history: History, generator: torch.Generator) -> History:
        """Item drop: each item but the first is dropped with `item_drop`."""
        chance = torch.rand(history.items.shape, generator=generator, device=generator.device).to(
            history.items.device
        )
        first = history.real.cumsum(1) == 1
        return history.keep(self.stays((chance >= self.config.item_drop) | first))

    # Users

    def encode(self, history: History) -> Float[Tensor, "batch d"]:
        """User vectors u (L6)."""
        view = plain(self.reading(history))
        return self.output(self.items_of(view.history.items), view).user

    def output(self, items: Items, view: View) -> Output:
        """L2 to L6."""
        tokens = self.interests.ids(view.history.items, view.seen)
        memory = self.memory(tokens)
        decoded = self.decoded(self.inputs(items, view), view.history, memory, tokens, read=1)
        return Output(functional.normalize(decoded[:, 0], dim=1), memory, tokens > 0)

    def inputs(self, items: Items, view: View) -> Float[Tensor, "batch length d"]:
        """L3: Dropout(LN(t + v + position + E)); positions count from the oldest event."""
        history = view.history
        width = history.items.shape[1]
        empty = width - history.real.sum(1, keepdim=True).clamp(min=1)
        place = (torch.arange(width, device=empty.device) - empty).clamp(min=0)
        text, image = items.text[items.row(history.items)], items.image[items.row(view.images)]
        x = text + image + self.positions[place]
        dropped: Tensor = self.input_dropout(
            self.input_norm(self.typing(x, history.behaviours * history.real))
        )
        return dropped

    def memory(self, tokens: Int[Tensor, "batch interest"]) -> Float[Tensor, "batch interest d"]:
        """L4: the interests, encoded without positions."""
        memory: Tensor = self.transformer.encode(
            self.interests.centroids[tokens], one_visible(tokens > 0)
        )
        return memory

    def decoded(
        self,
        x: Float[Tensor, "batch length d"],
        history: History,
        memory: Float[Tensor, "batch interest d"],
        tokens: Int[Tensor, "batch interest"],
        read: int,
    ) -> Float[Tensor, "batch read d"]:
        """L5 at the last `read` slots; only padding is hidden, later items are not."""
        return self.transformer.decode(
            x, one_visible(history.real), memory, one_visible(tokens > 0), read
        )

    # Items

    def items(self) -> Items:
        """All items; made once an update, and once an evaluation."""
        return self.once("items", lambda: self.made(self.modalities(), self.lines()))

    def lines(self) -> list[Tensor]:
        """What items are made from beside t and v, each with one line an item row (see `made`)."""
        ids = self.without_ids if self.pretraining else self.ids
        present = self.modalities.present
        return [present, self.gamma.expand(len(present)), *ids.lines()]

    def made(
        self,
        adapted: tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]],
        lines: Sequence[Tensor],
    ) -> Items:
        """Items from their t and v, and from their lines of `lines`."""
        (text, image), (present, gamma, *identity) = adapted, lines
        ids = self.ids if identity else self.without_ids
        texts, images = self.modalities.read(text, image, present)
        scored = [*self.modalities.scored(text, image, present), *ids.scored(identity)]
        return Items(ids.add(texts, identity), images, scored, gamma)

    def items_of(self, *wanted: Int[Tensor, "*_"]) -> Items:
        """All items or, where they are many, those that are wanted."""
        if not self.many:
            return self.items()
        chosen = torch.cat([items.flatten() for items in wanted]).unique()
        place = chosen.new_zeros(self.catalogue.items + 1)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        made = self.made(self.modalities.some(chosen), [each[chosen] for each in self.lines()])
        return replace(made, place=place)

    def scored(self) -> tuple[list[Float[Tensor, "item_row d"]], Float[Tensor, " item_row"]]:
        """Unit vectors and fusion factors of all items."""
        if self.many:
            return self.once("scored", self._scored_in_blocks)
        items = self.items()
        return items.scored, items.gamma

    def _scored_in_blocks(self) -> tuple[list[Tensor], Tensor]:
        modalities, lines = self.modalities, self.lines()
        scored: list[Tensor] = []
        for block in blocks_of(self.catalogue.items + 1):
            text, image = modalities.text[block], modalities.image[block]
            adapted = modalities.adapted(modalities.weights(), text, image)
            made = self.made(adapted, [each[block] for each in lines]).scored
            if not scored:
                scored = [each.new_empty(len(modalities.text), each.shape[1]) for each in made]
            for into, each in zip(scored, made, strict=True):
                into[block] = each
        return scored, lines[1]

    def score(
        self, state: Float[Tensor, "batch d"], items: Int[Tensor, "batch cand"]
    ) -> Float[Tensor, "batch cand"]:
        """L7 of some items a user."""
        scored, gamma = self.scored()
        near = [(each[items] @ state.unsqueeze(2)).squeeze(2) for each in scored]
        return fused(near, gamma[items], self.config.temperature)

    def score_all(self, state: Float[Tensor, "batch d"]) -> Float[Tensor, "batch item_row"]:
        """L7 of every row, as matrix products."""
        scored, gamma = self.scored()
        return fused([state @ each.T for each in scored], gamma, self.config.temperature)


def plain(history: History) -> View:
    """A history as it is."""
    return View(history, history.items, history.items)


def misaligned(history: History, shorter: History) -> View:
    """A shortened history with the images of the whole one, each at its old place.

    The authors shorten texts alone. Places count from the oldest event, so texts move towards it
    while the images stay; the interests are of the kept texts and of all images.
    """
    width, kept = history.items.shape[1], shorter.items.shape[1]
    dropped = history.real.sum(1, keepdim=True) - shorter.real.sum(1, keepdim=True)
    slot = torch.arange(width - kept, width, device=dropped.device) - dropped
    return View(shorter, history.items.gather(1, slot.clamp(min=0)), history.items)


def one_visible(real: Bool[Tensor, "batch slot"]) -> Bool[Tensor, "batch slot"]:
    """The real slots; in a row without any, the last: softmax over nothing is no number."""
    none = ~real.any(1, keepdim=True)
    return torch.cat([real[:, :-1], real[:, -1:] | none], 1)


def initialise(model: nn.Module) -> None:
    """N(0, 0.02^2), biases 0; the stacked input maps of attention start Xavier-uniform."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Attention):
            nn.init.xavier_uniform_(module.into.weight)
    for name, parameter in model.named_parameters():
        if name == "positions":
            nn.init.normal_(parameter, std=0.02)


def refuse(config: MISSRecConfig) -> None:
    """Stop at settings that make no model.

    Raises:
        ValueError: Which one, and what it may be.
    """
    if config.heads < 1 or config.hidden % config.heads:
        raise ValueError(f"hidden {config.hidden} is no multiple of heads {config.heads}")
    if config.layers < 2 or config.layers % 2:
        raise ValueError(f"layers is {config.layers}; an even number from 2 on is needed")
    for name in ("interest_ratio", "pretrain_interest_ratio", "neighbour_ratio"):
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}; above 0 and at most 1 is needed")
    for name in (
        "most_interests",
        "fit_points",
        "kmeans_passes",
        "kmeans_batch",
        "pretrain_epochs",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; at least 1 is needed")
    if not config.temperature > 0:
        raise ValueError(f"temperature is {config.temperature}; above 0 is needed")
    if not 0 <= config.item_drop < 1:
        raise ValueError(f"item_drop is {config.item_drop}; from 0 to below 1 is needed")
