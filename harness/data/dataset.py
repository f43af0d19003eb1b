"""A prepared set, opened: what is known of items, and what may be trained, validated and tested on.

Readings of the protocol (`harness.config.ProtocolConfig`):
    P1 scope changes how a history is cut (`harness.data.batches`); here only `Catalogue.length`.
    P2 drop: a user's earlier events on the test item leave that user's data altogether, those on the
       validation item leave training and the validation history. keep: nothing leaves. novel_only:
       only events on items that the user had not touched before are targets: the last such favor is
       the test, the one before it the validation; users without one are trained on, not tested.
    P3 train_targets: which training events are targets (`Interactions.target`).
    P4 global_time: at `date`, the 0.8 quantile of the times of all recorded events, training ends for
       everyone. Training and validation use nothing at or after it; users whose test favor lies before
       it are not tested. The history of a test favor may reach past the date, never past the favor.
    P5 negatives: which stored candidates are handed out.

Axes: event = interactions, users ascending, in time order; target = users that have such a target.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from harness.config import (
    Cutoff,
    Negatives,
    ProtocolConfig,
    SameItemHistory,
    Scope,
    TrainTargets,
)
from harness.data import candidates
from harness.data.files import DEMO, FORMAT, MANIFEST, write_archive
from harness.data.raw import FAVOR, sha256_file
from harness.errors import InputError, unknown
from models.interface import Catalogue, Interactions

REDRAWS = 10
"""Times that the test candidates are drawn anew."""
DATE_QUANTILE = 0.8
"""P4 global_time: this share of all recorded events lies before the date."""


@dataclass(frozen=True)
class Targets:
    """One kind of target, test or validation, of the users that have one, ascending."""

    user: Int[Tensor, " target"]
    item: Int[Tensor, " target"]
    position: Int[Tensor, " target"]
    """Place of the target event in `Split.events`."""
    left_out: Int[Tensor, "target two"]
    """Items whose events leave this history (0 = none): under `drop` the test item, and for a
    validation history also the validation item."""
    candidates: Int[Tensor, "target negatives"]
    """Items the user never touched, in the order drawn."""


@dataclass(frozen=True)
class Split:
    """What a run may see, by purpose."""

    events: Interactions
    """All recorded events of the users."""
    train: Interactions
    """The records: the only events that training may see."""
    test: Targets
    validation: Targets
    touched_offsets: Int[Tensor, " users_plus_one"]
    touched_items: Int[Tensor, " touched"]
    """The distinct items each user ever touched, ascending: those of user u are
    touched_items[touched_offsets[u] : touched_offsets[u + 1]]."""
    date: float | None = None
    """P4 global_time: where training ends for everyone."""
    redrawn: Callable[[], Int[Tensor, "redraw target negatives"] | None] = lambda: None
    """Other candidates of the test users, drawn when first asked for; None under P5 `popularity`."""


@dataclass(frozen=True)
class Dataset:
    """A folder data/NAME; its arrays are memory-mapped when first asked for."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: Path, name: str) -> Dataset:
        """Open a prepared set and check that its files are there with their sizes.

        Raises:
            InputError: no such set (the known ones are named), or it is damaged.
        """
        folder = Path(root) / name
        if not (folder / MANIFEST).is_file():
            raise _no_such_set(Path(root), name)
        try:
            manifest = dict(json.loads((folder / MANIFEST).read_text(encoding="utf8")))
            dataset = cls(folder, manifest)
            if manifest["format"] != FORMAT:
                raise _damaged(
                    dataset, MANIFEST, f"it has format {manifest['format']}, not {FORMAT}"
                )
            sizes = {key: entry["bytes"] for key, entry in manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(cls(folder, {}), MANIFEST, f"it cannot be read ({error})") from error
        for key, size in sizes.items():
            path = folder / key
            if not path.is_file():
                raise _damaged(dataset, key, "it is missing")
            if path.stat().st_size != size:
                raise _damaged(dataset, key, f"it has {path.stat().st_size} bytes, not {size}")
        return dataset

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.folder.name

    @property
    def users(self) -> int:
        """Kept users."""
        return int(self.manifest["counts"]["users"])

    @property
    def items(self) -> int:
        """Items of the catalogue, touched or not."""
        return int(self.manifest["counts"]["items"])

    @property
    def demo(self) -> bool:
        """True for generated data, whose numbers are not the paper's."""
        return bool(self.manifest["demo"])

    @property
    def data_sha256(self) -> str:
        """One SHA-256 for everything but the candidates."""
        return str(self.manifest["data_sha256"])

    def candidates_sha256(self, protocol: ProtocolConfig) -> str:
        """One SHA-256 for the candidates under this reading of P5."""
        if protocol.negatives is Negatives.uniform:
            return str(self.manifest["candidates_sha256"]["uniform"])
        return self._popular_sha256

    def array(self, key: str) -> ndarray:
        """One stored array, memory-mapped (copy on write: nobody can change the file)."""
        try:
            stored: ndarray = np.load(self.folder / f"{key}.npy", mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(self, f"{key}.npy", f"it cannot be read ({error})") from error
        return stored

    def catalogue(self, protocol: ProtocolConfig) -> Catalogue:
        """What a method may know before it sees an interaction."""
        lanes = 2 if protocol.scope is Scope.behavior else 1
        return Catalogue(
            users=self.users,
            items=self.items,
            length=protocol.max_history * lanes,
            image=torch.from_numpy(self.array("image")),
            image_present=torch.from_numpy(self.array("image_present")),
            text=torch.from_numpy(self.array("text")),
            text_present=torch.from_numpy(self.array("text_present")),
            fields={
                key: torch.from_numpy(self.array(f"field_{key}").astype(np.int64))
                for key in self.manifest["fields"]
            },
            drops_own_events=protocol.same_item_history is not SameItemHistory.keep,
        )

    def split(self, protocol: ProtocolConfig, users: int = 0) -> Split:
        """Training events, validation and test targets under these readings.

        Args:
            protocol: The readings.
            users: Only the first so many users that have a test target, renumbered from 0; 0 is all.

        Raises:
            InputError: nobody has a test target under these readings.
        """
        log = self._log
        places = _places(log, self.items, protocol)
        if (places.test < 0).all():
            raise InputError(
                f"no user of data set '{self.name}' has a test target under "
                f"protocol.same_item_history={protocol.same_item_history.name} "
                f"protocol.cutoff={protocol.cutoff.name}; the defaults are drop and per_user"
            )
        chosen = np.ones(len(log.offsets) - 1, dtype=bool)
        if users > 0:
            tested = np.nonzero(places.test >= 0)[0][:users]
            chosen[:] = False
            chosen[tested] = True
        number = np.cumsum(chosen) - 1
        kept = chosen[log.user]
        position = np.cumsum(kept) - 1
        negatives = self._negatives(protocol)
        drop = protocol.same_item_history is SameItemHistory.drop

        def targets(place: Int[ndarray, " user"], drawn: ndarray, *, own: bool) -> Targets:
            who = np.nonzero(chosen & (place >= 0))[0]
            item = log.item[place[who]]
            left_out = np.zeros((len(who), 2), dtype=np.int64)
            if drop:
                left_out[:, 0] = log.item[places.last[who]]
                left_out[:, 1] = 0 if own else item
            return Targets(
                user=_tensor(number[who]),
                item=_tensor(item),
                position=_tensor(position[place[who]]),
                left_out=_tensor(left_out),
                candidates=_tensor(drawn[who]),
            )

        everything = np.ones_like(kept)
        touched_offsets, touched = self.array("touched_offsets"), self.array("touched_items")
        sizes = np.diff(touched_offsets)
        return Split(
            events=_interactions(log, number, chosen, kept, everything),
            train=_interactions(log, number, chosen, kept & places.train, places.target),
            test=targets(places.test, negatives[0], own=True),
            validation=targets(places.validation, negatives[1], own=False),
            touched_offsets=_tensor(np.concatenate([[0], np.cumsum(sizes[chosen])])),
            touched_items=_tensor(touched[np.repeat(chosen, sizes)]),
            date=places.date,
            redrawn=lambda: self._redrawn_of(protocol, chosen & (places.test >= 0)),
        )

    @cached_property
    def _log(self) -> Log:
        offsets = np.asarray(self.array("offsets"))
        return Log(
            user=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
            item=self.array("event_item").astype(np.int64),
            behaviour=self.array("event_behaviour").astype(np.int64),
            time=self.array("event_time"),
            offsets=offsets,
        )

    def _redrawn_of(
        self, protocol: ProtocolConfig, who: Bool[ndarray, " user"]
    ) -> Int[Tensor, "redraw target negatives"] | None:
        if protocol.negatives is not Negatives.uniform:
            return None
        return torch.from_numpy(self._redrawn[:, who])

    @cached_property
    def _redrawn(self) -> Int[ndarray, "redraw user negatives"]:
        touched = candidates.Touched(self.array("touched_offsets"), self.array("touched_items"))
        seed = int(self.manifest["seed"])
        return np.stack(
            [candidates.redraw(seed, number, touched, self.items) for number in range(REDRAWS)]
        )

    def _negatives(self, protocol: ProtocolConfig) -> tuple[ndarray, ndarray]:
        """Negatives for test and validation, a row a user."""
        if protocol.negatives is Negatives.uniform:
            return self.array("negatives_test"), self.array("negatives_val")
        return self._popular

    @cached_property
    def _popular_sha256(self) -> str:
        return candidates.checksum(*self._popular)

    @cached_property
    def _popular(self) -> tuple[ndarray, ndarray]:
        """Candidates in proportion to popularity: as stored, or drawn and stored."""
        path = self.folder / "negatives_popularity.npz"
        shape = (self.users, candidates.NEGATIVES)
        if path.is_file():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    test, val = stored["test"], stored["val"]
                if test.shape == val.shape == shape:
                    return test, val
            except Exception:  # noqa: BLE001, S110 -- damaged, or of an older format
                pass  # the same draw again
        counts = np.bincount(self._log.item, minlength=self.items + 1)
        touched = candidates.Touched(self.array("touched_offsets"), self.array("touched_items"))
        test, val = (
            candidates.draw(
                int(self.manifest["seed"]),
                kind,
                self.array("user_number"),
                touched,
                self.items,
                counts,
            )
            for kind in candidates.KINDS
        )
        with suppress(OSError):  # a folder that cannot be written: the draw is the same every time
            write_archive(path, {"test": test, "val": val})
        return test, val


@dataclass(frozen=True)
class Log:
    """All recorded events of a set, in numpy."""

    user: Int[ndarray, " event"]
    item: Int[ndarray, " event"]
    behaviour: Int[ndarray, " event"]
    time: ndarray
    offsets: Int[ndarray, " user_plus_one"]


@dataclass(frozen=True)
class Places:
    """Where everyone's targets stand and what may be trained on; -1 is no target."""

    last: Int[ndarray, " user"]
    """The favor that is held out last; under global_time not all of them are tested."""
    test: Int[ndarray, " user"]
    validation: Int[ndarray, " user"]
    train: Bool[ndarray, " event"]
    target: Bool[ndarray, " event"]
    date: float | None


def _places(log: Log, items: int, protocol: ProtocolConfig) -> Places:
    """The split of every user at once (protocol, Data: split)."""
    place = np.arange(len(log.item))
    start, end = log.offsets[:-1], log.offsets[1:]
    target = np.ones(len(log.item), dtype=bool)
    if protocol.same_item_history is SameItemHistory.novel_only:
        target = _first_touch(log, items)
    favor = np.nonzero((log.behaviour == FAVOR) & target)[0]
    if protocol.train_targets is TrainTargets.favor:
        target = target & (log.behaviour == FAVOR)

    first_favor, favors = np.searchsorted(favor, start), np.searchsorted(favor, end)
    count = favors - first_favor
    last = np.full(len(start), -1)
    last[count > 0] = favor[favors[count > 0] - 1]
    last = np.where(last > start, last, -1)  # a history of nothing is no test
    before = np.full(len(start), -1)
    before[count > 1] = favor[favors[count > 1] - 2]
    has_validation = (before > start) & (last >= 0)
    has_validation &= log.item[before] != log.item[last]
    validation = np.where(has_validation, before, -1)

    cut = np.where(has_validation, validation, np.where(last >= 0, last, end))
    train = place < cut[log.user]
    if protocol.same_item_history is SameItemHistory.drop:
        for held_out in (last, validation):
            own = np.where(held_out >= 0, log.item[held_out], 0)
            train &= log.item != own[log.user]

    test, date = last, None
    if protocol.cutoff is Cutoff.global_time:
        date = float(np.quantile(log.time, DATE_QUANTILE, method="higher"))
        train &= log.time < date
        test = np.where((last >= 0) & (log.time[last] >= date), last, -1)
        validation = np.where(has_validation & (log.time[validation] < date), validation, -1)
        assert not (log.time[train] >= date).any()
    return Places(last, test, validation, train, target, date)


def _first_touch(log: Log, items: int) -> Bool[ndarray, " event"]:
    """True where a user meets an item for the first time."""
    first = np.zeros(len(log.item), dtype=bool)
    first[np.unique(log.user * (items + 1) + log.item, return_index=True)[1]] = True
    return first


def _interactions(
    log: Log,
    number: Int[ndarray, " user"],
    chosen: Bool[ndarray, " user"],
    kept: Bool[ndarray, " event"],
    target: Bool[ndarray, " event"],
) -> Interactions:
    """The kept events of the chosen users, users renumbered."""
    user = number[log.user[kept]]
    count = np.bincount(user, minlength=int(chosen.sum()))
    return Interactions(
        user=_tensor(user),
        item=_tensor(log.item[kept]),
        behaviour=_tensor(log.behaviour[kept]),
        target=torch.from_numpy(target[kept]),
        offsets=_tensor(np.concatenate([[0], np.cumsum(count)])),
    )


def _tensor(values: ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64))


def known_sets(root: Path) -> list[str]:
    """The prepared sets of a data folder, and the demo sets, which are made when first asked for."""
    there = [path.parent.name for path in Path(root).glob(f"*/{MANIFEST}")]
    return sorted({*DEMO, *(name for name in there if not name.startswith("."))})


def verify(dataset: Dataset) -> None:
    """Read every file and compare its SHA-256 with the manifest's.

    Raises:
        InputError: a file differs; it is named, with the command that makes the set again.
    """
    for key, entry in dataset.manifest["files"].items():
        if sha256_file(dataset.folder / key) != entry["sha256"]:
            raise _damaged(dataset, key, "its SHA-256 differs from the manifest's")


def _no_such_set(root: Path, name: str) -> InputError:
    error = unknown("data set", name, known_sets(root))
    return InputError(f"{error} (in '{root}'); make one with `python -m harness.prepare --help`")


def _damaged(dataset: Dataset, file: str, why: str) -> InputError:
    source = dataset.manifest.get("source", "SOURCE") if dataset.manifest else "SOURCE"
    again = f"python -m harness.prepare {source} --name {dataset.name}"
    return InputError(
        f"'{dataset.folder / file}' is damaged: {why}; prepare the set again: `{again} ...`"
    )
