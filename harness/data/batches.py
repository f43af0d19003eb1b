"""From prepared integer arrays to batches: whole batches at a time, no Python per sample, no workers.

Axes: event = interactions of all users in order, batch, length = history slots, place = window slots,
lane_event = events of one lane (both behaviours together, or one behaviour).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from harness.config import ProtocolConfig, SameItemHistory, Scope, TrainConfig, Windows
from harness.data.dataset import Split, Targets
from models.interface import Batch, Behaviour, History, Interactions, Samples

BUCKET = 16
"""Batches whose samples are put in order of length together, so that a batch needs little padding."""


@dataclass(frozen=True)
class Lane:
    """Events that compete for the same 50 slots."""

    event: Int[Tensor, " lane_event"]
    """Their places in the source, ascending."""
    before: Int[Tensor, " event_plus_one"]
    """How many of them stand before each place of the source."""


class Histories:
    """Cuts histories out of one set of interactions (P1: the last 50 of the user, or per behaviour)."""

    def __init__(self, source: Interactions, protocol: ProtocolConfig) -> None:
        self.source = source
        self.length = protocol.max_history
        everything = torch.ones_like(source.item, dtype=torch.bool)
        masks = {
            Scope.user: [everything],
            Scope.behavior: [source.behaviour == int(Behaviour.CLICK),
                             source.behaviour == int(Behaviour.FAVOR)],
        }[protocol.scope]  # fmt: skip
        self.lanes = [
            Lane(mask.nonzero().squeeze(1), functional.pad(mask.cumsum(0), (1, 0)))
            for mask in masks
        ]

    def before(
        self,
        user: Int[Tensor, " batch"],
        end: Int[Tensor, " batch"],
        left_out: Int[Tensor, " batch"] | None = None,
        most_left_out: int = 0,
    ) -> History:
        """Histories of what stands strictly before place `end` of the source.

        Args:
            user: Whose they are.
            end: Place in the source of the target event.
            left_out: An item a row whose events do not count (P2: first drop, then cut).
            most_left_out: No row loses more events than this.
        """
        start = self.source.offsets[user]
        columns = []
        for lane in self.lanes:
            lane_end, lane_start = lane.before[end], lane.before[start]
            width = min(self.length + most_left_out, max(1, int((lane_end - lane_start).max())))
            place = lane_end.unsqueeze(1) - torch.arange(width, 0, -1)
            real = place >= lane_start.unsqueeze(1)
            event = lane.event[place.clamp(min=0)] if len(lane.event) else torch.zeros_like(place)
            if left_out is not None:
                real &= self.source.item[event] != left_out.unsqueeze(1)
                real &= real.flip(1).cumsum(1).flip(1) <= self.length
            columns.append(torch.where(real, event, -1))
        event = torch.cat(columns, dim=1)
        if len(columns) > 1 or (left_out is not None and most_left_out > 0):
            event = event.sort(dim=1).values  # padding (-1) to the left, events in time order
        longest = max(1, int((event >= 0).sum(1).max()))
        event = event[:, -longest:]
        real = event >= 0
        event = event.clamp(min=0)
        return History(
            user=user,
            items=self.source.item[event] * real,
            behaviours=self.source.behaviour[event] * real,
        )


class EvaluationHistories:
    """The histories of one kind of target (test or validation), P2 applied."""

    def __init__(self, split: Split, targets: Targets, protocol: ProtocolConfig) -> None:
        events, count = split.events, len(targets.user)
        users = len(events.offsets) - 1
        cut = torch.zeros(users, dtype=torch.int64)
        cut[targets.user] = targets.position
        left_out = torch.zeros(users, targets.left_out.shape[1], dtype=torch.int64)
        left_out[targets.user] = targets.left_out
        keep = torch.arange(len(events.item)) < cut[events.user]
        keep &= (events.item.unsqueeze(1) != left_out[events.user]).all(1)
        kept = _subset(events, keep)
        self.histories = Histories(kept, protocol)
        self.user = targets.user
        self.end = kept.offsets[targets.user + 1]
        lengths = (self.end - kept.offsets[targets.user]).clamp(max=protocol.max_history)
        self.by_length = torch.argsort(lengths, stable=True)
        self.count = count

    def batches(self, size: int) -> Iterator[tuple[Int[Tensor, " batch"], History]]:
        """Rows of the targets and their histories, alike in length."""
        for rows in self.by_length.split(size):
            yield rows, self.histories.before(self.user[rows], self.end[rows])


def _subset(events: Interactions, keep: Bool[Tensor, " event"]) -> Interactions:
    """The events where `keep` is true, offsets counted anew."""
    before = functional.pad(keep.cumsum(0), (1, 0))
    return Interactions(
        user=events.user[keep],
        item=events.item[keep],
        behaviour=events.behaviour[keep],
        target=events.target[keep],
        offsets=before[events.offsets],
    )


class TrainingSamples:
    """What a method is trained on: one sample a target (prefix), a user (window) or a pair of both."""

    def __init__(
        self, split: Split, kind: Samples, protocol: ProtocolConfig, train: TrainConfig
    ) -> None:
        self.size = train.batch_size
        self.per_epoch = train.samples
        self.passes = train.passes
        self.maker: _Prefixes | _Windows | _Pairs
        if kind is Samples.prefix:
            self.maker = _Prefixes(split.train, protocol)
        elif kind is Samples.window:
            self.maker = _Windows(split.train, protocol, train.windows)
        else:
            self.maker = _Pairs(split.train)

    def __len__(self) -> int:
        """Samples of one pass."""
        there = len(self.maker.lengths)
        return min(self.per_epoch, there) if self.per_epoch else there

    @property
    def batches(self) -> int:
        """Batches of one epoch."""
        buckets = [self.size * BUCKET] * (len(self) // (self.size * BUCKET))
        buckets.append(len(self) - sum(buckets))
        return self.passes * sum(-(-bucket // self.size) for bucket in buckets)

    def epoch(self, order: torch.Generator, draws: torch.Generator) -> Iterator[Batch]:
        """One epoch's batches, shuffled; samples of like length share a batch.

        Args:
            order: Stream of the shuffling.
            draws: Stream that each batch carries for the method's own draws.
        """
        for _ in range(self.passes):
            yield from self._one_pass(order, draws)

    def _one_pass(self, order: torch.Generator, draws: torch.Generator) -> Iterator[Batch]:
        """Every sample once, or `train.samples` of them."""
        chosen = torch.randperm(len(self.maker.lengths), generator=order)[: len(self)]
        buckets = chosen.split(self.size * BUCKET)
        batches: list[Tensor] = []
        for bucket in buckets:
            by_length = torch.argsort(self.maker.lengths[bucket], stable=True)
            batches.extend(bucket[by_length].split(self.size))
        for number in torch.randperm(len(batches), generator=order).tolist():
            yield self.maker.batch(batches[number], draws)


class _Prefixes:
    """Every training target with the history before it; targets without a history are left out."""

    def __init__(self, train: Interactions, protocol: ProtocolConfig) -> None:
        self.train = train
        self.histories = Histories(train, protocol)
        event = torch.arange(len(train.item))
        depth = event - train.offsets[train.user]
        drops = protocol.same_item_history is not SameItemHistory.keep
        own = earlier_touches(train) if drops else torch.zeros_like(depth)
        sample = train.target & (depth - own > 0)
        self.event = event[sample]
        self.own = own[sample]
        self.lengths = (depth - own)[sample].clamp(max=protocol.max_history)
        self.drops = drops

    def batch(self, rows: Int[Tensor, " batch"], draws: torch.Generator) -> Batch:
        """One batch of these samples."""
        event = self.event[rows]
        target = self.train.item[event]
        history = self.histories.before(
            self.train.user[event],
            event,
            target if self.drops else None,
            int(self.own[rows].max()),
        )
        favor = (self.train.behaviour[event] == int(Behaviour.FAVOR)).float().unsqueeze(1)
        return Batch(history, target.unsqueeze(1), 1 - favor, favor, draws)


class _Windows:
    """A user's last window of inputs (or all of them, end to end), with a target at each slot."""

    def __init__(self, train: Interactions, protocol: ProtocolConfig, windows: Windows) -> None:
        self.train = train
        lanes = 2 if protocol.scope is Scope.behavior else 1
        self.length = protocol.max_history * lanes
        drops = protocol.same_item_history is not SameItemHistory.keep
        self.target, self.clicks, self.favors = place_targets(train, drops=drops)
        start, end = train.offsets[:-1], train.offsets[1:] - 1  # the last event is only a target
        inputs = (end - start).clamp(min=0)
        count = (inputs + self.length - 1) // self.length
        if windows is Windows.last:
            count = count.clamp(max=1)
        user = torch.repeat_interleave(torch.arange(len(count)), count)
        number = torch.arange(len(user)) - (count.cumsum(0) - count)[user]
        window_end = end[user] - number * self.length
        window_start = torch.maximum(start[user], window_end - self.length)
        has_target = functional.pad((self.target > 0).cumsum(0), (1, 0))
        useful = has_target[window_end] > has_target[window_start]
        self.user, self.end = user[useful], window_end[useful]
        self.start = window_start[useful]
        self.lengths = self.end - self.start

    def batch(self, rows: Int[Tensor, " batch"], draws: torch.Generator) -> Batch:
        """One batch of these windows."""
        longest = max(1, int(self.lengths[rows].max()))
        event = self.end[rows].unsqueeze(1) - torch.arange(longest, 0, -1)
        real = event >= self.start[rows].unsqueeze(1)
        event = event.clamp(min=0)
        history = History(
            user=self.user[rows],
            items=self.train.item[event] * real,
            behaviours=self.train.behaviour[event] * real,
        )
        return Batch(
            history,
            self.target[event] * real,
            self.clicks[event] * real,
            self.favors[event] * real,
            draws,
        )


class _Pairs:
    """Every distinct pair of a user and an item, with how often it was clicked and favored."""

    def __init__(self, train: Interactions) -> None:
        most = int(train.item.max()) + 1 if len(train.item) else 1
        key, pair = torch.unique(train.user * most + train.item, return_inverse=True)
        self.user, self.item = key // most, key % most
        favor = (train.behaviour == int(Behaviour.FAVOR)).long()
        counts = torch.zeros(2, len(key))
        counts.index_put_((favor, pair), torch.ones(len(pair)), accumulate=True)
        self.clicks, self.favors = counts
        self.lengths = torch.zeros_like(key)

    def batch(self, rows: Int[Tensor, " batch"], draws: torch.Generator) -> Batch:
        """One batch of these pairs; nobody's history is read."""
        nothing = torch.zeros(len(rows), 1, dtype=torch.int64)
        return Batch(
            History(self.user[rows], nothing, nothing),
            self.item[rows].unsqueeze(1),
            self.clicks[rows].unsqueeze(1),
            self.favors[rows].unsqueeze(1),
            draws,
        )


def earlier_touches(train: Interactions) -> Int[Tensor, " event"]:
    """How many earlier events each event's user has on the same item."""
    order, group_start = _by_user_and_item(train)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - group_start
    return place


def _by_user_and_item(
    train: Interactions,
) -> tuple[Int[Tensor, " event"], Int[Tensor, " event"]]:
    """Events sorted by (user, item), time order kept, and where in it each one's group starts."""
    most = int(train.item.max()) + 1 if len(train.item) else 1
    key = train.user * most + train.item
    order = torch.argsort(key, stable=True)
    sorted_key = key[order]
    return order, torch.searchsorted(sorted_key, sorted_key)


def place_targets(
    train: Interactions, *, drops: bool
) -> tuple[Int[Tensor, " event"], Float[Tensor, " event"], Float[Tensor, " event"]]:
    """What is read at each event of a window: an item (0: nothing), its click and favor events.

    Without `drops`, the next event. With it, all events of an item are read at the place before the
    item's first touch (protocol P2), so that a target's own events never stand in its history.
    """
    order, group_start = _by_user_and_item(train)
    first = torch.empty_like(order)
    first[order] = order[group_start] if drops else order
    wanted = train.target & (first > train.offsets[train.user])  # something stands before it
    place = first[wanted] - 1
    target = torch.zeros_like(train.item)
    target[place] = train.item[wanted]
    counts = torch.zeros(2, len(train.item))
    favor = (train.behaviour[wanted] == int(Behaviour.FAVOR)).long()
    counts.index_put_((favor, place), torch.ones(len(place)), accumulate=True)
    return target, counts[0], counts[1]
