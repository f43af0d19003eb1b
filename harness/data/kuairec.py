"""KuaiRec (Gao et al., CIKM 2022, arXiv:2202.10842): videos shown to 7,176 people, with real captions.

What the files are, by the release's own description (github.com/chongminggao/KuaiRec, README; files also on
zenodo.org/records/18164998):

    big_matrix.csv     7,176 users, 10,728 videos, 12,530,806 rows
    small_matrix.csv   1,411 users who were shown nearly all of 3,327 videos; 4,676,570 rows
        user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio: durations in milliseconds,
        timestamp in seconds since 1970 with a fraction, watch_ratio = play_duration / video_duration
    kuairec_caption_category.csv
        video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,...

The files may lie in the folder or in its folder `data`, as text, .gz, .zip or .tar.gz. There are no pictures. Public
codes that looked at the data report: exact duplicate rows in big_matrix; 3.9 % of the rows of
small_matrix without a time (they are dropped here, and counted); watch ratios up to 571; a few
captions that break lines; the word UNKNOWN where there is no caption.

Readings. big_matrix is read where it is there, else small_matrix; never both: small_matrix is an
experiment in which everybody saw everything. Every row is a click: the app plays one video after the
other, and there is no click to be told. There is no like either ("you can create it yourself. E.g., like = 1 if
watch_ratio > 2.0", says the README), so a favor is a THRESHOLD, not an act: `watched_twice` (watch_ratio > 2.0) by
default. Good for the path with real text, not for claims about behaviours. A row that is both gives a click
and then a favor at one time. Times become milliseconds.

Axes: row, event, item.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float
from numpy import ndarray

from harness.data.blocks import MISSING, Layout, Rows, layout_of, read_rows
from harness.data.choice import LogOptions, selection
from harness.data.flags import FavorRule, Signals
from harness.data.item_tables import columns_of_items, vectors_of
from harness.data.kuairand import CHINA, data_folder
from harness.data.labels import Column, Numbered
from harness.data.raw import Raw, sha256_file
from harness.data.staging import Decoded, Log, decoded, stage
from harness.data.texts import find_texts

COLUMNS = ("user_id", "video_id", "timestamp", "watch_ratio")
"""Columns that are read, wherever they stand."""
SIGNALS = Signals(
    ("shown", "watched_twice", "watched_once"),
    {
        "watched_twice": FavorRule(("watched_twice",), "watch_ratio > 2"),
        "watched_once": FavorRule(("watched_once",), "watch_ratio >= 1"),
    },
)
FILES = r"(^|/)(big|small)_matrix\.csv|^kuairec.*\.(zip|tar\.gz|tgz)$"
"""Names of files that show that a folder is the one with the release in it."""
DECIMAL = r"^[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$"


def decimals(rows: Rows, name: str) -> Float[ndarray, " row"]:
    """A column of numbers from 0 on, which was read as text; NaN for anything else."""
    column = rows.table[name].combine_chunks()
    plain = pc.match_substring_regex(column, DECIMAL)
    numbers = pc.if_else(plain, column, pa.scalar(None, pa.string())).cast(pa.float64())
    result: ndarray = numbers.to_numpy(zero_copy_only=False)
    return result


def decode(block: bytes, layout: Layout, first: bool) -> Decoded:
    """A block of a matrix."""
    types = {"user_id": pa.int64(), "video_id": pa.int64(),
             "timestamp": pa.string(), "watch_ratio": pa.string()}  # fmt: skip
    rows = read_rows(block, layout, types, first=first)
    seconds, ratio = decimals(rows, "timestamp"), decimals(rows, "watch_ratio")
    timed = seconds < 1e12
    time = np.full(len(seconds), MISSING, dtype=np.int64)
    time[timed] = np.rint(seconds[timed] * 1_000).astype(np.int64)
    known = ~np.isnan(ratio)
    kind = SIGNALS.kind({"shown": known, "watched_twice": ratio > 2, "watched_once": ratio >= 1})
    unknown = int((~known).sum())
    told = decoded(rows, rows.numbers("user_id"), rows.numbers("video_id"), kind, time,
                   left_out={"unreadable watch_ratio": unknown})  # fmt: skip
    absurd = int((ratio > 10).sum())
    return replace(
        told, notes={**told.notes, "watch_ratio above 10": absurd} if absurd else told.notes
    )


def matrix(folder: Path) -> Log:
    """big_matrix.csv, or small_matrix.csv where it is alone, to be staged.

    Raises:
        InputError: neither is there.
    """
    place = data_folder(folder, FILES)
    texts = find_texts(place, r"(^|/)(big|small)_matrix\.csv", "matrix", example="big_matrix.csv")
    text = texts[0]  # by name: big before small
    layout = layout_of(text, COLUMNS, (b",",))
    return Log("kuairec", [text], lambda block, _, first: decode(block, layout, first),
               rules={"signals": SIGNALS.names}, time_type="<i8")  # fmt: skip


@contextmanager
def open_kuairec(folder: Path, root: Path, options: LogOptions) -> Iterator[Raw]:
    """The release as a source; what it holds on disk goes when the block ends.

    Raises:
        InputError: a file is missing or is not what it should be, or nobody is left.
    """
    log = matrix(folder)
    rule = options.favor_rule or next(iter(SIGNALS.rules))
    wanted = selection(options, second=1_000, zone=CHINA, rules=SIGNALS.choices("shown"))
    with stage(log, root, keep=options.keep_staging) as staged:
        chosen = staged.select(wanted)
        vectors, made_by = vectors_of(options.features, Numbered(chosen.item_numbers))
        columns: dict[str, Column] = {}
        facts: dict[str, Any] = {
            **made_by,
            "favor_rule": {"name": rule, "favor": SIGNALS.rules[rule].text, "click": "every row",
                           "note": "a threshold, not a behaviour of its own"},
            "click_and_favor": "a row that is both is a click and, at the same time, a favor after it",
            "clock": "milliseconds since 1970 UTC",
            "matrix": log.texts[0].name,
            "item_files": {},
        }  # fmt: skip
        files = {}
        for place in dict.fromkeys((data_folder(folder, FILES), folder)):
            found = find_texts(place, r"(^|/)kuairec_caption_category\.csv", "captions",
                               example="kuairec_caption_category.csv", required=False)  # fmt: skip
            if found:
                columns, facts["item_files"][found[0].name] = columns_of_items(
                    found[0], "video_id", ["caption"], chosen.item_numbers,
                    chosen.folder / "captions.arrow", ["first_level_category_name"],
                )  # fmt: skip
                files = {path.name: sha256_file(path) for path in found[0].paths}
                break
        category = columns.get("first_level_category_name")
        yield chosen.raw(
            title=columns.get("caption"), category=category,
            fields={"category": category} if category else {}, facts=facts, files=files,
            **vectors,
        )  # fmt: skip
