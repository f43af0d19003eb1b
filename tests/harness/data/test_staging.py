"""The streaming core against a plain reference, through kills, archives, skew and odd values."""

import gzip
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from harness.data import ordering, staging
from harness.data.blocks import Layout, read_rows
from harness.data.choice import LogOptions, selection
from harness.data.labels import Column, Numbered
from harness.data.ordering import Selection, places_in_order
from harness.data.raw import sha256_file
from harness.data.staging import Decoded, Log, decoded, kinds_of, stage
from harness.data.texts import Text, find_texts
from harness.errors import InputError
from tests.harness.data.logs import CLICK, FAVOR

LAYOUT = Layout(b"\t", ("user", "item", "what", "time"))
TYPES = {"user": pa.int32(), "item": pa.int32(), "what": pa.string(), "time": pa.int64()}
KINDS = {"view": 1, "save": 2, "both": 3, "buy": 0}
BOTH = Selection(click=(1, 3), favor=(2, 3))
Row = tuple[int, int, str, int]


def decode(block: bytes, text: Text, first: bool) -> Decoded:
    rows = read_rows(block, LAYOUT, TYPES, first=first)
    kind, left_out, unknown = kinds_of(rows, "what", KINDS)
    return decoded(
        rows, rows.numbers("user"), rows.numbers("item"), kind, rows.numbers("time"),
        left_out=left_out, unknown=unknown,
    )  # fmt: skip


def rows_of(seed: int, count: int = 400, users: int = 25) -> list[Row]:
    """A log with users of a long tail, equal times, repeated rows and rows that are left out."""
    random = np.random.default_rng(seed)
    user = (users * random.random(count) ** 2).astype(int) * 7
    item = random.integers(0, 30, count)
    what = random.choice(list(KINDS), count, p=[0.6, 0.2, 0.1, 0.1])
    time = random.integers(1_000, 1_040, count)
    rows = list(zip(user.tolist(), item.tolist(), what.tolist(), time.tolist(), strict=True))
    for place in random.integers(0, count, count // 8):
        rows.insert(int(random.integers(0, count)), rows[place])
    return rows


def lines(rows: list[Row]) -> bytes:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def write(folder: Path, rows: list[Row], parts: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for part, some in enumerate(np.array_split(np.arange(len(rows)), parts)):
        (folder / f"log_{part}.txt").write_bytes(lines([rows[place] for place in some]))
    return folder


def log(folder: Path, **more: Any) -> Log:
    return Log("made", find_texts(folder, "log", "log", example="log.txt"), decode, **more)


def reference(rows: list[Row], wanted: Selection) -> list[tuple[int, int, int, int]]:
    """(user, item, behaviour, time) of the kept events, by the plain rules."""
    seen: set[Row] = set()
    events: dict[int, list[tuple[int, int, int]]] = {}
    for row in rows:
        user, item, what, time = row
        if row in seen or not KINDS[what]:
            continue
        seen.add(row)
        if wanted.times and not any(begin <= time < end for begin, end in wanted.times):
            continue
        if wanted.items is not None and not (item < len(wanted.items) and wanted.items[item]):
            continue
        both = [(KINDS[what] in wanted.click, CLICK), (KINDS[what] in wanted.favor, FAVOR)]
        events.setdefault(user, []).extend((time, item, code) for is_it, code in both if is_it)
    found = []
    for user in sorted(events):
        mine = sorted(events[user], key=lambda event: event[0])
        favors = [place for place, event in enumerate(mine) if event[2] == FAVOR]
        low, high = wanted.favor_share
        if (
            len(mine) >= wanted.minimum_events
            and favors and favors[-1] > 0
            and low <= len(favors) / len(mine) <= high
        ):  # fmt: skip
            found += [(user, item, code, time) for time, item, code in mine]
    return found


Outcome = tuple[list[tuple[int, int, int, int]], dict[str, Any]]


def outcome(one: Log, root: Path, wanted: Selection = BOTH) -> Outcome:
    """What a selection gives, with raw numbers, and its ledger."""
    with stage(one, root, show=False) as staged:
        chosen = staged.select(wanted)
        raw = chosen.raw(user_prefix="u")
        users = np.asarray(chosen.array("users"))[raw.user]
        items = chosen.item_numbers[raw.item]
        columns = (users, items, raw.behaviour, raw.timestamp)
        events = list(zip(*(column.tolist() for column in columns), strict=True))
        assert [raw.user_ids[user] for user in raw.user[:3].tolist()] == [
            f"u{row[0]}" for row in events[:3]
        ]
        return events, {**chosen.facts()["ledger"], "files": dict(raw.files)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, journal entries and buckets in a log of some hundred rows."""
    monkeypatch.setattr(staging, "BLOCK", 600)
    monkeypatch.setattr(staging, "SAVE_BYTES", 1_500)
    monkeypatch.setattr(staging, "BUCKET_ROWS", 90)
    monkeypatch.setattr(staging, "SPLIT_ROWS", 110)


SELECTIONS = {
    "clicks and favors": Selection(),
    "rows that are both": BOTH,
    "times": Selection(times=((1_000, 1_010), (1_020, 1_040))),
    "items": replace(BOTH, items=np.arange(20) % 3 > 0),
    "share": replace(BOTH, favor_share=(0.3, 0.45)),
    "more events": Selection(minimum_events=12),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", SELECTIONS)
def test_events_are_those_of_the_plain_rules(tmp_path: Path, name: str) -> None:
    for seed in range(3):
        rows = rows_of(seed)
        folder = write(tmp_path / f"raw{seed}", rows)
        events, ledger = outcome(log(folder), tmp_path / f"data{seed}", SELECTIONS[name])
        assert events == reference(rows, SELECTIONS[name])
        assert len(events) > 20
        assert ledger["rows"] == len(rows) == ledger["events"] + sum(ledger["dropped"].values())
        assert ledger["dropped"] == {"action buy": sum(row[2] == "buy" for row in rows)}
        assert ledger["files"] == {path.name: sha256_file(path) for path in folder.iterdir()}


def test_duplicates_are_counted_and_the_first_stays(tmp_path: Path) -> None:
    rows = [(1, item, "view", 5) for item in (9, 8, 9, 7, 9, 8)]
    rows += [(1, 9, "save", 5), (1, 9, "view", 6), (1, 9, "save", 5)]
    events, ledger = outcome(log(write(tmp_path / "raw", rows, 1)), tmp_path / "data", Selection())
    assert [(item, code) for _, item, code, _ in events] == [
        (9, CLICK), (8, CLICK), (7, CLICK), (9, FAVOR), (9, CLICK),
    ]  # fmt: skip
    assert ledger["selected"]["duplicates"] == 4


class Killed(BaseException):
    """As a signal would end the process: nothing in the code catches it."""


@pytest.mark.usefixtures("small")
def test_a_reading_killed_after_any_step_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SPLIT_ROWS", 60)
    rows = rows_of(4, 150)
    folder = write(tmp_path / "raw", rows, 2)
    steps: list[str] = []
    monkeypatch.setattr(staging, "_step", steps.append)
    wanted = outcome(log(folder), tmp_path / "whole")
    assert {"begin", "block", "saved", "split", "bucket", "items"} <= set(steps)
    for number, name in enumerate(steps):
        left = iter(range(number + 1))

        def stop(_: str, left: Iterator[int] = left, last: int = number) -> None:
            if next(left, last) == last:
                raise Killed

        root = tmp_path / f"data{number}"
        monkeypatch.setattr(staging, "_step", stop)
        with pytest.raises(Killed):
            outcome(log(folder), root)
        assert len(list((root / ".staging").glob("made-*"))) >= 1
        seen: list[str] = []
        monkeypatch.setattr(staging, "_step", seen.append)
        assert outcome(log(folder), root) == wanted, (number, name)
        if name in ("bucket", "items"):
            assert "block" not in seen  # reading was not done again
        assert list(root.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_half_written_journals_and_lost_buckets_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "raw", rows_of(5))
    wanted = outcome(log(folder), tmp_path / "whole")
    for number, damage in enumerate(("journal.json", "bucket-000")):
        root = tmp_path / f"data{number}"
        with stage(log(folder), root, keep=True, show=False) as staged:
            place = staged.folder
        victim = next(path for path in sorted(place.iterdir()) if path.name.startswith(damage))
        victim.write_bytes(victim.read_bytes()[:10])
        seen: list[str] = []
        monkeypatch.setattr(staging, "_step", seen.append)
        assert outcome(log(folder), root) == wanted
        assert "begin" in seen


@pytest.mark.usefixtures("small")
def test_another_selection_reads_nothing_again_and_a_changed_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(6)
    folder = write(tmp_path / "raw", rows)
    with stage(log(folder), tmp_path / "data", keep=True, show=False) as staged:
        counts = staged.survey(list(SELECTIONS.values()))
    seen: list[str] = []
    monkeypatch.setattr(staging, "_step", seen.append)
    for one, wanted in zip(counts, SELECTIONS.values(), strict=True):
        with stage(log(folder), tmp_path / "data", keep=True, show=False) as staged:
            chosen = staged.select(wanted)
        events = reference(rows, wanted)
        assert one["interactions"] == len(events) == len(chosen.array("user"))
        assert one["items"] == len({event[1] for event in events}) == len(chosen.item_numbers)
        assert one["users"] == len({event[0] for event in events})
        assert one["favors_per_user"] * one["users"] == pytest.approx(
            sum(event[2] == FAVOR for event in events)
        )
    assert not {"begin", "block"} & set(seen)
    (folder / "log_1.txt").write_bytes(lines(rows[:50]))
    outcome(log(folder), tmp_path / "data")
    assert "begin" in seen
    with stage(log(folder, rules={"another": 1}), tmp_path / "data", show=False) as staged:
        assert staged.ledger["rows"] > 0


def test_the_outcome_does_not_depend_on_blocks_buckets_or_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(7)
    folder = write(tmp_path / "raw", rows)
    found = []
    for number, (block, bucket, split) in enumerate(
        ((50, 20, 25), (3_000, 70, 80), (10**6, 10**6, 10**7))
    ):
        monkeypatch.setattr(staging, "BLOCK", block)
        monkeypatch.setattr(staging, "BUCKET_ROWS", bucket)
        monkeypatch.setattr(staging, "SPLIT_ROWS", split)
        found.append(outcome(log(folder), tmp_path / f"data{number}"))
    assert found[0] == found[1] == found[2]


def test_a_log_in_the_order_of_its_users_is_cut_in_more_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an archive only the beginning can be sampled: here it knows two of the users."""
    rows = sorted(rows_of(8, 1_500, 200))
    folder = tmp_path / "raw"
    folder.mkdir()
    with gzip.open(folder / "log.txt.gz", "wb") as file:
        file.write(lines(rows))
    monkeypatch.setattr(Text, "head", lambda self, size=0: lines(rows[:60]))
    monkeypatch.setattr(staging, "BUCKET_ROWS", 100)
    monkeypatch.setattr(staging, "SPLIT_ROWS", 200)
    with stage(log(folder), tmp_path / "data", keep=True, show=False) as staged:
        sizes, width = staged.journal["sizes"], staged.log.record.itemsize
        assert len(sizes) > 8
        heaviest = max(sum(row[0] == user for row in rows) for user in {row[0] for row in rows})
        assert max(sizes) <= (200 + heaviest) * width
    assert outcome(log(folder), tmp_path / "data")[0] == reference(rows, BOTH)


def packed(kind: str, folder: Path, names: list[str], content: list[bytes]) -> None:
    """The same texts in an archive."""
    folder.mkdir()
    if kind == "gz":
        for name, one in zip(names, content, strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(one))
        return
    if kind.startswith("zip"):
        archives = ["Log.ZIP"] if kind == "zip" else [f"{name}.zip" for name in names]
        for number, archive in enumerate(archives):
            with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as file:
                mine = names if kind == "zip" else names[number : number + 1]
                for name in mine:
                    file.writestr(f"inner/{name}", content[names.index(name)])
                file.writestr(f"__MACOSX/._{names[0]}", b"\0junk")
        return
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, one in zip(names, content, strict=True):
            entry = tarfile.TarInfo(f"inner/{name}")
            entry.size = len(one)
            tar.addfile(entry, io.BytesIO(one))
    bits = whole.getvalue()
    if kind == "tar":
        (folder / "Rec_Log.tar.gz").write_bytes(bits)
        return
    third = len(bits) // 3 + 1
    for number in range(3):
        part = bits[number * third : (number + 1) * third]
        (folder / f"Rec_Log.tar.gz.{number + 1:03}").write_bytes(part)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["zip", "zip each", "gz", "tar", "tar in pieces"])
def test_archives_give_what_plain_files_give_and_go_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plain = write(tmp_path / "raw", rows_of(9))
    names = sorted(path.name for path in plain.iterdir())
    packed(kind, tmp_path / "packed", names, [(plain / name).read_bytes() for name in names])
    wanted, _ = outcome(log(plain), tmp_path / "one")
    left = iter(range(9))

    def stop(_: str) -> None:
        if next(left, None) is None:
            raise Killed

    monkeypatch.setattr(staging, "_step", stop)
    with pytest.raises(Killed):
        outcome(log(tmp_path / "packed"), tmp_path / "two")
    monkeypatch.setattr(staging, "_step", lambda _: None)
    events, ledger = outcome(log(tmp_path / "packed"), tmp_path / "two")
    assert events == wanted
    archives = list((tmp_path / "packed").iterdir())
    assert ledger["files"] == {path.name: sha256_file(path) for path in archives}
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {
        path.name for path in archives
    }


def test_a_plain_file_is_read_instead_of_its_archive(tmp_path: Path) -> None:
    folder = write(tmp_path / "raw", rows_of(10), 1)
    with zipfile.ZipFile(folder / "log_0.zip", "w") as file:
        file.write(folder / "log_0.txt", "log_0.txt")
    assert [text.kind for text in log(folder).texts] == ["plain"]


def test_a_last_line_without_an_end_and_lines_of_other_widths(tmp_path: Path) -> None:
    rows = [(1, item, "view", item) for item in range(6)]
    body = (
        lines(rows)
        + b"\n1\t2\tview\n1\t2\tview\t5\t6\n\t\tview\t\n1\t-4\tview\t7\n1\t4\tview\tnoon\n"
    )
    body += b"99999999999\t4\tview\t7\n1\t7\tsave\t8"
    (tmp_path / "log.txt").write_bytes(body)
    events, ledger = outcome(log(tmp_path, time_type="<i8"), tmp_path / "data", Selection())
    assert len(events) == 7
    assert ledger["rows"] == 14
    assert ledger["dropped"] == {
        "blank line": 1, "wrong number of fields": 2, "unreadable user": 1, "unreadable item": 1,
        "unreadable time": 1, "number out of range": 1,
    }  # fmt: skip


def refusal(one: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        one()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_rare_unknown_action_is_counted_and_a_common_one_is_an_error(tmp_path: Path) -> None:
    rows = [(1, item, "view", item) for item in range(300)] + [(1, 3, "save", 999)]
    folder = write(tmp_path / "raw", [*rows, (1, 4, "pv", 5)], 1)
    _, ledger = outcome(log(folder), tmp_path / "data", Selection())
    assert ledger["dropped"] == {"unknown action 'pv'": 1}
    write(folder, [*rows, *[(1, 4, "pv", 5)] * 9], 1)
    said = refusal(lambda: outcome(log(folder), tmp_path / "data", Selection()))
    assert "9 of the first 310 rows of 'made' have an unknown action 'pv'" in said
    assert not list((tmp_path / "data").rglob("journal.json"))


def test_quoted_reasons_do_not_grow_without_end(tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    staging._count(counts, {f"unknown action '{number}'": 1 for number in range(900)})
    assert len(counts) == 51
    assert sum(counts.values()) == 900


def test_too_little_disk_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "raw", rows_of(11))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))
    said = refusal(lambda: stage(log(folder), tmp_path / "data", show=False))
    assert "needs about 5." in said
    assert "where 100 bytes are free; choose another folder with --data-dir DIR" in said


def test_what_is_needed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stage(log(write(tmp_path / "raw", rows_of(11))), tmp_path / "data"):
        pass
    said = capsys.readouterr().err
    assert "about 416 events" in said
    assert "of disk in" in said


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "raw", rows_of(12))
    with stage(log(folder), tmp_path / "data", show=False):
        said = refusal(lambda: stage(log(folder), tmp_path / "data", show=False))
    assert "another process is reading 'made'" in said
    assert not list((tmp_path / "data").rglob("*"))


def test_what_stays_after_an_error_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "raw", rows_of(12))
    with pytest.raises(InputError), stage(log(folder), tmp_path / "data") as staged:
        staged.select(Selection(minimum_events=9_999))
    assert f"what was read stays in '{staged.folder}'" in capsys.readouterr().err
    with stage(log(folder, rules={"other": 1}), tmp_path / "data"):
        assert f"other readings of this source lie in {staged.folder};" in capsys.readouterr().err


def test_a_full_disk_gets_one_line_and_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(13)
    folder = write(tmp_path / "raw", rows)

    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    whole = staging.Staged._write
    monkeypatch.setattr(
        staging.Staged, "_write", lambda self, file, content: whole(self, Full(), content)
    )
    said = refusal(lambda: outcome(log(folder), tmp_path / "data"))
    assert "(No space left on device); make room and run the same command again" in said
    monkeypatch.setattr(staging.Staged, "_write", whole)
    assert outcome(log(folder), tmp_path / "data")[0] == reference(rows, BOTH)


def test_missing_and_damaged_files_get_one_line(tmp_path: Path) -> None:
    assert "no folder" in refusal(lambda: log(tmp_path / "nowhere"))
    (tmp_path / "readme.md").write_text("x")
    said = refusal(lambda: log(tmp_path))
    assert (
        "holds no log such as log.txt (plain or in .zip, .gz, .tar.gz); it holds readme.md" in said
    )
    (tmp_path / "log.zip").write_bytes(b"PK\3\4 cut off")
    assert "'log.zip' is damaged" in refusal(lambda: log(tmp_path))
    (tmp_path / "log.zip").unlink()
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(lines(rows_of(1)))[:-20])
    assert "'log.txt.gz' is damaged" in refusal(lambda: stage(log(tmp_path), tmp_path / "data"))
    (tmp_path / "log.txt.gz").unlink()
    (tmp_path / "log.zip.001").write_bytes(b"PK")
    (tmp_path / "log.zip.002").write_bytes(b"PK")
    assert "join it first: cat log.zip.* > log.zip" in refusal(lambda: log(tmp_path))


def test_nobody_left_names_the_rule(tmp_path: Path) -> None:
    folder = write(tmp_path / "raw", rows_of(14))
    said = refusal(
        lambda: outcome(log(folder), tmp_path / "data", replace(BOTH, favor_share=(0.98, 1.0)))
    )
    assert "none has at least 5 events" in said
    assert "a share of favors in [0.98, 1.0]" in said


def test_places_in_order_agree_with_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    for user_top, time_top in ((9, 5), (2**30, 2**31), (2**31, 2**62)):
        user = random.integers(0, user_top, 500)
        time = random.integers(0, time_top, 500)
        time[::3], user[::5] = 1, 3
        np.testing.assert_array_equal(places_in_order(user, time), np.lexsort((time, user)))


def test_distinct_numbers_are_found_among_small_and_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "MOST_MARKS", 50)
    random, touched = np.random.default_rng(1), ordering.Touched()
    parts = [random.integers(0, top, 20) for top in (9, 60, 2**40, 1, 45)]
    for part in [np.zeros(0, np.int64), *parts]:
        touched.add(part)
    distinct, places = np.unique(np.concatenate(parts), return_inverse=True)
    np.testing.assert_array_equal(touched.numbers(), distinct)
    np.testing.assert_array_equal(touched.places()(np.concatenate(parts)), places)


def test_options_become_ranges_of_the_logs_clock() -> None:
    may = selection(LogOptions(months=("2014-05",)))
    assert may.times == ((1_398_902_400, 1_401_580_800),)
    china = selection(LogOptions(begin="2017-11-25", end="2017-12-03"), second=1_000, zone=28_800)
    assert china.times == ((1_511_539_200_000, 1_512_316_800_000),)
    assert selection(LogOptions(), days=("1970-01-02", "1970-01-02")).times == ((86_400, 172_800),)
    rules = {"like": ((1,), (2,)), "play": ((1,), (4,))}
    assert selection(LogOptions(favor_rule="play"), rules=rules).favor == (4,)
    bad = {
        "'2014-13' is no month": LogOptions(months=("2014-13",)),
        "--from 2014-02-30: that is no day": LogOptions(begin="2014-02-30"),
        "--from 2014-03-01 lies behind --to 2014-02-01": LogOptions(
            begin="2014-03-01", end="2014-02-01"
        ),
        "--months and --from/--to say the same twice": LogOptions(
            months=("2014-01",), end="2014-02-01"
        ),
        "--minimum-events 4": LogOptions(minimum_events=4),
        "--favor-share 0.5,0.1": LogOptions(favor_share=(0.5, 0.1)),
        "no favor rule 'lik'; did you mean 'like'?": LogOptions(favor_rule="lik"),
    }
    for wanted, options in bad.items():
        assert wanted in refusal(lambda options=options: selection(options, rules=rules))


def test_labels_are_sequences_of_text() -> None:
    numbers = Numbered(np.array([5, 40, -1]), "u", digits=2)
    assert list(numbers) == ["u05", "u40", ""]
    assert (numbers[-2], numbers[:2], len(numbers)) == ("u40", ["u05", "u40"], 3)
    many = Numbered(np.arange(200_000))
    assert [many[place] for place in (0, 65_536, 199_999, 3, 70_000)] == [
        "0",
        "65536",
        "199999",
        "3",
        "70000",
    ]
    column = Column(pa.chunked_array([["a", None], ["c"]]), np.array([2, -1, 1, 0]))
    assert np.asarray(column, dtype=str).tolist() == ["c", "", "", "a"]
    assert Column(pa.chunked_array([["a", None]])) == ["a", ""]
    with pytest.raises(IndexError):
        numbers[3]
