"""Records are whole or absent, and a damaged one never ends a run."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from harness.config import Cell, ProtocolConfig, Scope, cell_key, digest, plain
from harness.errors import InputError, unknown
from harness.seeding import stream, torch_stream
from harness.store import RANKS, Fingerprints, Ranks, Record, Store, write_json


def record(seed: int = 1, above: int = 3) -> Record:
    cell = Cell(method="sasrec", data="somewhere", seed=seed)
    ranks = Ranks(*(np.arange(4) + above for _ in range(6)))
    return Record(
        key=cell_key(cell), config=plain(cell), label="SASRec",
        fingerprints=Fingerprints("c", "d", "e"), versions={"torch": "2"}, host={"name": "h"},
        seconds={"total": 1.0}, peak_memory_mib=10.0, parameters=5, train_samples=9, epochs=2,
        best_epoch=1, curve=[{"epoch": 1, "loss": 0.5, "NDCG@10": 0.1}], ranks=ranks,
    )  # fmt: skip


def test_a_record_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    store, kept = Store(tmp_path), record()
    store.save(kept)
    loaded = store.load(kept.key)
    assert loaded == kept
    assert loaded is not None
    assert loaded.ranks is not None
    np.testing.assert_array_equal(loaded.ranks.above, [3, 4, 5, 6])
    assert [found.key for found in store.records()] == [kept.key]


def test_a_newer_record_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(record(above=3))
    store.save(record(above=7))
    loaded = store.load(record().key)
    assert loaded is not None
    assert loaded.ranks is not None
    assert loaded.ranks.above[0] == 7
    assert [path.name for path in store.cells.iterdir()] == [record().key]


@pytest.mark.parametrize("damage", ["json", "npz", "key", "missing"])
def test_a_corrupt_record_is_set_aside_with_a_warning(tmp_path: Path, damage: str) -> None:
    store, kept = Store(tmp_path), record()
    store.save(kept)
    folder = store.cells / kept.key
    if damage == "json":
        (folder / "record.json").write_text("{")
    elif damage == "npz":
        content = (folder / "ranks.npz").read_bytes()
        (folder / "ranks.npz").write_bytes(content[: len(content) // 2])
    elif damage == "key":
        content = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(content | {"key": "other"}))
    else:
        (folder / "ranks.npz").unlink()
    with pytest.warns(RuntimeWarning, match="will be computed again"):
        assert store.load(kept.key) is None
    assert not folder.exists()
    assert [path for path in store.cells.iterdir() if ".corrupt-" in path.name]
    assert store.load(kept.key) is None
    assert list(store.records()) == []


def test_a_record_changed_anywhere_is_set_aside_and_nothing_is_raised(tmp_path: Path) -> None:
    store, kept = Store(tmp_path), record()
    draws = stream(5, "damage")
    for name in ("ranks.npz", "record.json"):
        for _ in range(60):
            store.save(kept)
            path = store.cells / kept.key / name
            content = bytearray(path.read_bytes())
            if draws.random() < 0.3:
                content = content[: int(draws.integers(len(content)))]
            else:
                content[int(draws.integers(len(content)))] ^= 1 << int(draws.integers(8))
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = store.load(kept.key)
            if (
                loaded is not None
            ):  # a byte that means nothing: a space, a time stamp of the archive
                assert loaded == kept
                for field in RANKS:
                    np.testing.assert_array_equal(
                        getattr(loaded.ranks, field), getattr(kept.ranks, field)
                    )


def test_a_record_that_another_process_replaces_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.save(record(above=3))
    load_arrays = np.load

    def replaced_meanwhile(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(np, "load", load_arrays)
        store.save(record(above=7))
        raise FileNotFoundError("ranks.npz")

    monkeypatch.setattr(np, "load", replaced_meanwhile)
    loaded = store.load(record().key)
    assert loaded is not None
    assert loaded.ranks is not None
    assert loaded.ranks.above[0] == 7


def test_a_damaged_file_that_cannot_be_renamed_is_only_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, kept = Store(tmp_path), record()
    store.save(kept)
    (store.cells / kept.key / "record.json").write_text("{")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.warns(RuntimeWarning, match="cannot be renamed"):
        assert store.load(kept.key) is None


def test_a_record_of_an_older_format_is_read_not_set_aside(tmp_path: Path) -> None:
    """Before timing cells and redraws, records had neither; they are stale by their code, not corrupt."""
    store, kept = Store(tmp_path), record()
    store.save(kept)
    path = store.cells / kept.key / "record.json"
    content = json.loads(path.read_text())
    del content["measured"], content["sha256"]
    write_json(path, content | {"sha256": digest(content)})
    loaded = store.load(kept.key)
    assert loaded == kept
    assert loaded is not None
    assert loaded.ranks is not None
    assert loaded.ranks.above_redrawn is None


def test_redraws_measurements_and_arrays_come_back(tmp_path: Path) -> None:
    store, plain_record = Store(tmp_path), record()
    assert plain_record.ranks is not None
    redrawn = np.arange(8, dtype=np.uint8).reshape(2, 4)
    ranks = dataclasses.replace(plain_record.ranks, above_redrawn=redrawn, tied_redrawn=redrawn)
    store.save(dataclasses.replace(plain_record, ranks=ranks), {"view": np.ones((2, 3))})
    loaded = store.load(plain_record.key)
    assert loaded is not None
    assert loaded.ranks is not None
    np.testing.assert_array_equal(loaded.ranks.above_redrawn, redrawn)
    np.testing.assert_array_equal(store.arrays(plain_record.key)["view"], np.ones((2, 3)))

    timed = dataclasses.replace(record(seed=2), ranks=None, measured={"epoch": [1.0, 2.0]})
    store.save(timed)
    assert store.load(timed.key) == timed
    assert store.arrays(timed.key) == {}
    with pytest.raises(ValueError, match="with its ranks, or with what was measured"):
        store.save(dataclasses.replace(timed, measured=None))


def test_damaged_arrays_are_set_aside_and_the_record_stays(tmp_path: Path) -> None:
    store, kept = Store(tmp_path), record()
    store.save(kept, {"view": np.ones(3)})
    path = store.cells / kept.key / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(RuntimeWarning, match="arrays of .* cannot be read"):
        assert store.arrays(kept.key) == {}
    assert store.load(kept.key) == kept


def test_a_failed_write_leaves_the_old_record_and_no_rest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(record())
    with pytest.raises(ValueError, match="JSON"):
        store.save(dataclasses.replace(record(), seconds={"total": float("nan")}))
    assert store.load(record().key) == record()
    assert [path.name for path in store.cells.iterdir()] == [record().key]


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_results_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match=r"not writable.*--results"):
        Store(tmp_path / "results").ensure_writable()


def test_the_key_is_the_whole_config() -> None:
    keys = {
        cell_key(Cell()), cell_key(Cell(seed=1)), cell_key(Cell(users=5)),
        cell_key(Cell(protocol=ProtocolConfig(scope=Scope.behavior))),
    }  # fmt: skip
    assert len(keys) == 4
    assert cell_key(Cell(seed=1)) in keys
    assert plain(Cell())["protocol"]["same_item_history"] == "drop"


def test_streams_are_named_and_repeatable() -> None:
    assert stream(1, "a").random() == stream(1, "a").random()
    assert len({stream(1, "a").random(), stream(1, "b").random(), stream(2, "a").random()}) == 3
    first, second = (torch_stream(3, name).initial_seed() for name in ("a", "b"))
    assert first != second


def test_an_unknown_name_gets_the_nearest_one_and_the_list() -> None:
    message = str(unknown("method", "SASREK", ["sasrec", "gru4rec"]))
    assert message == "no method 'SASREK'; did you mean 'sasrec'? Choose from: gru4rec, sasrec"
    assert "did you mean" not in str(unknown("method", "zzz", ["sasrec"]))
