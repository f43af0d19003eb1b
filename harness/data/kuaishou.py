"""The Kuaishou User Interest Modeling Challenge (China MM 2018, "UIMC"), the paper's "Kuaishou".

What the files are, as public code that read them agrees (kitianFresh/kuaishou, zhixinma/kuaishou,
xlniu/yonghuxingqujianmo, qqgeogor/Kuaishou-benchmark, liyongqi67/ALPINE, tsinghua-fib-lab/SIGIR21-SURGE).
All text is tab-separated without header, one record a line:

    train_interaction.txt   user_id photo_id click like follow time playing_time duration_time: IMPRESSIONS,
                            four in five without a click, not in time order. time is an anonymous clock of
                            12 digits, good for an order alone; playing_time and duration_time are seconds
    test_interaction.txt    user_id photo_id time duration_time: no labels, so it is counted and not used
    train_text.txt          photo_id and comma-separated word ids of the cover; exactly `0` is no text,
                            a 0 among others is a word. Anonymous: there is NO readable title
    train_face.txt          photo_id and [[share of the cover, 1 male / 0 female, age, looks], ...];
                            photos without a face have no line
    final_visual_train.zip  a folder entry, then final_visual_train/PHOTO without extension, each the bytes
                            of numpy.save of a (1, 2048) array (the preliminary round: preliminary_visual_train)

The files may lie in the folder, or in its folder `train` (and `test`), as text, .gz or .zip; the vectors
as archive or unpacked. The width of the numbers (float32 or another) is not confirmed: all are accepted.

Readings. A row with click = 1 is a click. Favors are a rule (`SIGNALS`), `like` by default; follow concerns the
author. A row that is both gives two events at one time, the click first: a like is given to a photo that was
opened, so taking the click away would understate clicks (Table 1 counts clicks and favors apart, and all the other
sources have the click before the favor); reading P2 keeps the click from giving its own favor away. Rows
without click, like and follow are impressions and never become events. Exact duplicates go.

The vectors are the image modality. The text modality is a stand-in (`harness.data.word_ids`).

The paper's Table 1 cannot come from likes and follows of this release: 22,793 users x 40.96 favors = 933,601, but
at the rates printed for the preliminary round (0.304 % likes, 0.0991 % follows) the final round's 52 million rows hold
about 158,000 likes and 52,000 follows; and 22,793 x (255.02 + 40.96) = 6,746,272 is not the paper's own 5,852,725
interactions. `--survey` prints what each rule gives.

Axes: row = lines, event, item = photos of the kept users.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from harness.data.blocks import FIELDS, MISSING, Layout, layout_of, read_rows
from harness.data.choice import LogOptions, selection
from harness.data.flags import FavorRule, Signals, on
from harness.data.item_tables import vectors_of
from harness.data.labels import Numbered
from harness.data.members import Table, fill_vectors, find_members
from harness.data.raw import Raw, sha256_file
from harness.data.staging import Bar, Decoded, Log, decoded, stage
from harness.data.survey import published_row, survey_text
from harness.data.texts import Text
from harness.data.word_ids import METHOD, WIDTH, hashed, hasher
from harness.errors import InputError, unknown

COLUMNS = (
    "user_id", "photo_id", "click", "like", "follow", "time", "playing_time", "duration_time",
)  # fmt: skip
TEST_COLUMNS = ("user_id", "photo_id", "time", "duration_time")
SIGNALS = Signals(
    ("click", "like", "follow", "finished"),
    {
        "like": FavorRule(("like",), "like = 1"),
        "like_or_follow": FavorRule(("like", "follow"), "like = 1 or follow = 1"),
        "finished_play": FavorRule(
            ("finished",), "click = 1 and playing_time >= duration_time > 0"
        ),
    },
)
VISUAL = ("final_visual_train", "preliminary_visual_train", "visual_train")
"""Names of the vectors' archive or folder; the first that is there."""
DAY = 86_400
"""Seconds of playing time above which a value is absurd: it is kept, and counted in the ledger."""
IMPRESSION = "impression without click, like or follow"
"""Reason in the ledger."""
FACE_FIELDS = ("faces", "face_gender")
GENDERS: dict[frozenset[Any], str] = {
    frozenset({0}): "female", frozenset({1}): "male", frozenset({0, 1}): "both",
}  # fmt: skip
BAGS_AT_ONCE = 1 << 14
"""Texts hashed at once."""


def find_text(folder: Path, name: str, below: str, *, required: bool = True) -> Text | None:
    """A text file of the folder or of its folder `below`, plain, .gz or .zip.

    The folder's other archives are not opened: the vectors' has millions of members.

    Raises:
        InputError: it is required and not there, or the folder is not.
    """
    if not folder.is_dir():
        raise InputError(f"no folder '{folder}'; name the folder of the raw files with --raw DIR")
    for place in (folder, folder / below):
        path = place / name
        if path.is_file():
            return Text(name, (path,), "plain", None, path.stat().st_size)
        if (packed := place / f"{name}.gz").is_file():
            return Text(packed.name, (packed,), "gz")
        if (packed := (place / name).with_suffix(".zip")).is_file():
            return Text(f"{packed.name}:{name}", (packed,), "zip", name)
    if required:
        raise InputError(
            f"'{folder}' holds no {name} (nor {below}/{name}, {name}.gz or "
            f"{Path(name).with_suffix('.zip')}); name the folder of the UIMC files with --raw DIR"
        )
    return None


def find_visual(folder: Path) -> Path | None:
    """The archive or folder of the photos' vectors; None without one."""
    for name in VISUAL:
        for place in (folder, folder / "train"):
            for path in (place / f"{name}.zip", place / name):
                if path.exists():
                    return path
    return None


def exactly(rows: Any, block: bytes, layout: Layout, text: Text) -> None:
    """InputError when a line of a block has another number of fields.

    A cut of the release with a ninth column is known; a reader that skipped such lines would read nothing.
    """
    if not rows.dropped.get(FIELDS):
        return
    fields = len(layout.columns)
    for line in block.split(b"\n"):
        if line.strip() and line.count(layout.separator) != fields - 1:
            raise InputError(
                f"'{text.name}' has a line of {line.count(layout.separator) + 1} fields where the "
                f"release has {fields} ({', '.join(layout.columns)}): {line[:80]!r}"
            )


def decode_interactions(block: bytes, text: Text, layout: Layout, first: bool) -> Decoded:
    """A block of train_interaction.txt.

    Raises:
        InputError: a line has not exactly 8 fields.
    """
    rows = read_rows(block, layout, dict.fromkeys(COLUMNS, pa.int64()), first=first)
    exactly(rows, block, layout, text)
    numbers = {name: rows.numbers(name) for name in COLUMNS}
    signals, good = on({name: numbers[name] for name in ("click", "like", "follow")})
    playing, duration = numbers["playing_time"], numbers["duration_time"]
    timed = (playing != MISSING) & (duration > 0)
    signals["finished"] = signals["click"] & timed & (playing >= duration)
    kind = SIGNALS.kind(signals)
    left_out = {
        IMPRESSION: int((good & (kind == 0)).sum()),
        "click, like or follow is neither 0 nor 1": int((~good).sum()),
    }
    told = decoded(rows, numbers["user_id"], numbers["photo_id"], kind, numbers["time"],
                   left_out=left_out)  # fmt: skip
    notes = {
        **{f"rows with {name} = 1": signals[name] for name in ("click", "like", "follow")},
        "rows of finished plays": signals["finished"],
        "like or follow without a click": (kind > 0) & ~signals["click"],
        "playing_time above a day": playing > DAY,
        "clicked, but no readable playing_time": signals["click"] & (playing == MISSING),
        "clicked, but duration_time is 0 or unreadable": signals["click"] & (duration <= 0),
    }
    counted = {name: int(found.sum()) for name, found in notes.items() if found.any()}
    return replace(told, notes={**told.notes, **counted})


def interactions(folder: Path) -> Log:
    """train_interaction.txt as a log to be staged.

    Raises:
        InputError: it is missing, or its first line has not exactly 8 fields.
    """
    text = find_text(folder, "train_interaction.txt", "train")
    assert text is not None
    layout = layout_of(text, COLUMNS, (b"\t",))

    def decode(block: bytes, text: Text, first: bool) -> Decoded:
        return decode_interactions(block, text, layout, first)

    return Log("kuaishou", [text], decode, rules={"signals": SIGNALS.names}, time_type="<i8")


def count_test_rows(folder: Path) -> int | None:
    """Lines of test_interaction.txt, each of exactly 4 fields; None without the file.

    Raises:
        InputError: a line has another number of fields.
    """
    text = find_text(folder, "test_interaction.txt", "test", required=False)
    if text is None:
        return None
    layout = layout_of(text, TEST_COLUMNS, (b"\t",))
    lines = 0
    with text.open() as reading:
        for block in reading.blocks():
            rows = read_rows(block, layout, {"user_id": pa.string()})
            exactly(rows, block, layout, text)
            lines += len(rows.table)
    return lines


@dataclass(frozen=True)
class Photos:
    """The kept users' photos, for looking lines up."""

    number: Int[ndarray, " item"]
    """Ascending."""
    row: Int[ndarray, " item"]
    """The item's row in every table."""

    @classmethod
    def of(cls, numbers: Int[ndarray, " item"]) -> Photos:
        """Photos by their raw numbers, in the order of the rows."""
        order = np.argsort(numbers, kind="stable")
        return cls(numbers[order], order)

    def rows_of(
        self, numbers: Int[ndarray, " line"]
    ) -> tuple[Int[ndarray, " line"], Bool[ndarray, " line"]]:
        """The row of each, and whether it is one of these photos at all."""
        place = np.minimum(np.searchsorted(self.number, numbers), len(self.number) - 1)
        return self.row[place], self.number[place] == numbers


def lines_of(text: Text, photos: Photos) -> Iterator[tuple[Int[ndarray, " line"], list[str]]]:
    """Rows and second fields of the lines about these photos, a block at a time.

    Raises:
        InputError: a line has not exactly 2 fields.
    """
    layout = layout_of(text, ("photo_id", "value"), (b"\t",))
    with text.open() as reading:
        for block in reading.blocks():
            rows = read_rows(block, layout, {"photo_id": pa.int64(), "value": pa.string()})
            exactly(rows, block, layout, text)
            row, ours = photos.rows_of(rows.numbers("photo_id"))
            if ours.any():
                values = rows.table["value"].filter(pa.array(ours)).to_pylist()
                yield row[ours], values


def word_vectors(
    text: Text, photos: Photos, scratch: Path
) -> tuple[Float[ndarray, "item words"], dict[str, int]]:
    """The photos' hashed words; photos without text have zero rows.

    Returns:
        The vectors, and photos by what their line says: words, no text (exactly 0), no word ids, ...

    Raises:
        InputError: the file cannot be read, or a line has not exactly 2 fields.
    """
    counts = Counter({"words": 0, "no text": 0, "not word ids": 0, "listed twice": 0})
    table = Table(len(photos.number), WIDTH, scratch)
    vectorizer = hasher()
    seen = np.zeros(len(photos.number), dtype=bool)
    for rows, values in lines_of(text, photos):
        chosen, bags = [], []
        for row, value in zip(rows.tolist(), values, strict=True):
            words = value.strip()
            if seen[row]:
                counts["listed twice"] += 1
                continue
            seen[row] = True
            if words in ("", "0"):
                counts["no text"] += 1
            elif not words.replace(",", "").replace(" ", "").isdecimal():
                counts["not word ids"] += 1
            else:
                counts["words"] += 1
                chosen.append(row)
                bags.append(words.replace(",", " "))
        for start in range(0, len(bags), BAGS_AT_ONCE):
            end = start + BAGS_AT_ONCE
            for row, vector in zip(
                chosen[start:end], hashed(bags[start:end], vectorizer), strict=True
            ):
                table.put(row, vector)
    counts["no line"] = int((~seen).sum())
    return table.finished(), dict(counts)


def face_fields(text: Text, photos: Photos) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Id fields from the faces on the covers: how many (0 to 2, 3 or more) and of whom.

    Returns:
        faces: "0", "1", "2", "3+"; face_gender: "male", "female", "both", or empty without a face;
        and lines by what they say.
    """
    count, gender = ["0"] * len(photos.number), [""] * len(photos.number)
    told = Counter({"faces": 0, "no face": 0, "not faces": 0})
    for rows, values in lines_of(text, photos):
        for row, value in zip(rows.tolist(), values, strict=True):
            faces = parsed_faces(value)
            if faces is None:
                told["not faces"] += 1
                continue
            told["faces" if faces else "no face"] += 1
            count[row] = str(len(faces)) if len(faces) < 3 else "3+"
            found = {face[1] for face in faces}
            gender[row] = GENDERS.get(frozenset(found), "")
    return {"faces": count, "face_gender": gender}, dict(told)


def parsed_faces(value: str) -> Sequence[Sequence[Any]] | None:
    """[[share, gender, age, looks], ...]; none for the value 0; None for anything else."""
    try:
        faces = json.loads(value)
    except ValueError:
        return None
    if faces == 0:
        return []
    if isinstance(faces, list) and all(isinstance(face, list) and len(face) == 4 for face in faces):
        return faces
    return None


@contextmanager
def open_kuaishou(
    folder: Path, root: Path, options: LogOptions, fields: Sequence[str] = ()
) -> Iterator[Raw]:
    """The release as a source; what it holds on disk goes when the block ends.

    Args:
        folder: The raw files.
        root: The data folder, for what is read on the way.
        options: Which events and users; what is a favor.
        fields: Id fields from the faces: faces, face_gender.

    Raises:
        InputError: a file is missing or is not what it should be, or nobody is left.
    """
    for name in fields:
        if name not in FACE_FIELDS:
            raise unknown("field", name, FACE_FIELDS)
    log = interactions(folder)
    rule = options.favor_rule or next(iter(SIGNALS.rules))
    wanted = selection(options, rules=SIGNALS.choices("click"))
    scratch = root / ".staging"
    with stage(log, root, keep=options.keep_staging) as staged:
        chosen = staged.select(wanted)
        photos = Photos.of(chosen.item_numbers)
        known: dict[str, Any] = {}
        facts: dict[str, Any] = {
            "favor_rule": {"name": rule, "favor": SIGNALS.rules[rule].text, "click": "click = 1"},
            "click_and_favor": (
                "a row that is both is a click and, at the same time, a favor after it: what is liked was opened"
            ),
            "clock": "an anonymous clock of the release; an order, not a date",
            "test_interaction.txt": {"rows": count_test_rows(folder), "used": False},
        }
        files: dict[str, str] = {}
        told: dict[str, Any] = {}
        words = find_text(folder, "train_text.txt", "train", required=False)
        if words is not None:
            known["text"], told[words.name] = word_vectors(words, photos, scratch)
            files |= {path.name: sha256_file(path) for path in words.paths}
            facts["text"] = METHOD
        visual = find_visual(folder)
        if visual is not None:
            known["image"], told[visual.name], directory = visual_vectors(visual, photos, scratch)
            facts["image"] = "the release's own vectors of the covers, as stored"
            if directory:
                files[f"directory of {visual.name}"] = directory
        if fields:
            faces = find_text(folder, "train_face.txt", "train")
            assert faces is not None
            found, told[faces.name] = face_fields(faces, photos)
            known["fields"] = {name: found[name] for name in fields}
            files |= {path.name: sha256_file(path) for path in faces.paths}
        for name, what in (("image", VISUAL[0] + ".zip"), ("text", "train_text.txt")):
            if known.get(name) is None:
                facts[name] = f"missing: '{folder.name}' holds no usable {what}"
        facts["item_files"] = told
        vectors, made_by = vectors_of(options.features, Numbered(chosen.item_numbers))
        known |= vectors
        facts |= made_by
        for mode in vectors:
            facts[mode] = "from the features folder"
        yield chosen.raw(facts=facts, files=files, **known)


def survey_kuaishou(folder: Path, root: Path, options: LogOptions) -> str:
    """Table 1 under each favor rule beside the paper's; the staging folder stays for `prepare`.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    log = interactions(folder)
    with stage(log, root, keep=True) as staged:
        selections = [
            replace(selection(replace(options, favor_rule=name), rules=SIGNALS.choices("click")),
                    name=f"{name}: {rule.text}")
            for name, rule in SIGNALS.rules.items()
            if options.favor_rule in (None, name)
        ] or [selection(options, rules=SIGNALS.choices("click"))]  # fmt: skip
        rows = staged.survey(selections)
        notes, place = staged.ledger["notes"], staged.folder
    named = [(one.name, row) for one, row in zip(selections, rows, strict=True)]
    return (
        survey_text("kuaishou", named)
        + impossible_favors(notes)
        + f"\nthe log as read stays in '{place}' for `prepare`; delete it when done"
    )


def impossible_favors(notes: Mapping[str, int]) -> str:
    """Lines that hold the paper's number of favors against the likes and follows of a log."""
    paper = published_row("kuaishou")
    if paper is None:
        return ""
    favors = paper["users"] * paper["favors_per_user"]
    likes, follows = (notes.get(f"rows with {name} = 1", 0) for name in ("like", "follow"))
    finished = notes.get("rows of finished plays", 0)
    lines = [
        "",
        (
            f"the paper's row needs {paper['users']:,.0f} x {paper['favors_per_user']:g} = {favors:,.0f} favors; "
            f"this log has {likes:,} likes, {follows:,} follows and {finished:,} finished plays in all"
        ),
    ]
    if likes + follows < favors:
        lines.append("so neither likes nor likes and follows together can be the paper's favors")
    return "\n".join(lines)


def visual_vectors(
    path: Path, photos: Photos, scratch: Path
) -> tuple[Float[ndarray, "item width"] | None, dict[str, int], str]:
    """The photos' vectors out of the archive or folder.

    Returns:
        The vectors (None when none could be read), entries and members by what became of them, and the
        SHA-256 of the archive's directory.
    """
    print(f"looking up {len(photos.number):,} photos in {path.name}", file=sys.stderr)
    members = find_members(path, photos.number)
    with Bar(f"reading {path.name}", int(members.packed.sum()), show=True) as bar:
        table, counts = fill_vectors(path, members, photos.number, photos.row, scratch, bar.at)
    missing = len(photos.number) - len(members.number)
    return table, {**members.counts, **counts, "photos without a member": missing}, members.sha256
