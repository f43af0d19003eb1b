"""KuaiRand (Gao et al., CIKM 2022, arXiv:2208.08696): the nearest open stand-in for the paper's Kuaishou.

What the files are, by the release's own description (github.com/chongminggao/KuaiRand, README), the order of
the columns confirmed by several public codes that print or declare the header:

    log_standard_4_08_to_4_21_VERSION[_partN].csv   the recommender's feed, 8 to 21 April 2022
    log_standard_4_22_to_5_08_VERSION[_partN].csv   the same, 22 April to 8 May
    log_random_4_22_to_5_08_VERSION.csv             videos that were put into the feed at random
        user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,
        long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab
    video_features_basic_VERSION.csv                video_id,author_id,video_type,...,music_id,music_type,tag
    kuairand_video_captions.csv                     final_video_id,caption,show_cover_text,duration: published
        later, for the numbers of all versions (zenodo.org/records/18159199), Chinese

VERSION is pure (7,583 videos; its users' sequences are incomplete), 1k (1,000 users, 11.7 million rows) or 27k
(27,285 users, 322 million rows, 23 GB); 27k's logs come in two parts. The logs may lie in the folder or
in its folder `data`, as text, .gz, .zip or .tar.gz. There are no pictures and no vectors.

Readings. Click = is_click = 1; in the feed of one column that flag means a valid play (7 seconds, or all of a
shorter video). Favor is a rule, is_like = 1 by default. A row that is both gives a click and then a favor at one
time, as for Kuaishou. The log of random videos is left out: its clicks answer another policy than the feed's.
Rows of one user that repeat exactly go. time_ms stays in milliseconds.

Rows of one request share a time_ms (seen in rows shown in public); they keep their order in the file.

Not confirmed here: whether the rows of a log are sorted (they are sorted anyway), and that a number names one
video in all three versions (the README draws nested ranges; public code that joined captions with Pure by number
found equal durations for all 7,583). A caption that is the word UNKNOWN counts as missing, as in KuaiRec.

Axes: row, event, item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.data.blocks import Layout, layout_of, read_rows
from harness.data.choice import LogOptions, selection
from harness.data.flags import FavorRule, Signals, on
from harness.data.item_tables import columns_of_items, vectors_of
from harness.data.labels import Column, Numbered
from harness.data.raw import Raw, sha256_file
from harness.data.staging import Decoded, Log, Selected, decoded, stage
from harness.data.texts import Text, find_texts
from harness.errors import InputError

FLAGS = {
    "click": "is_click", "like": "is_like", "follow": "is_follow", "comment": "is_comment",
    "forward": "is_forward", "long_view": "long_view",
}  # fmt: skip
"""Column of each signal."""
COLUMNS = ("user_id", "video_id", "time_ms", *FLAGS.values())
"""Columns that are read, wherever they stand."""
SIGNALS = Signals(
    tuple(FLAGS),
    {
        "like": FavorRule(("like",), "is_like = 1"),
        "like_or_follow": FavorRule(("like", "follow"), "is_like = 1 or is_follow = 1"),
        "any_act": FavorRule(
            ("like", "follow", "comment", "forward"),
            "is_like, is_follow, is_comment or is_forward = 1",
        ),
        "long_view": FavorRule(("long_view",), "long_view = 1"),
    },
)
LOGS = r"^log_.*\.csv|^kuairand-.*\.(zip|tar\.gz|tgz)$"
"""Names of files that show that a folder is the one with the release in it."""
VERSION = re.compile(r"_(pure|1k|27k)(?:_part\d+)?\.csv")
TABLES = (
    ("video_features_basic_1k.csv", "video_id", ["author_id", "tag"]),
    ("kuairand_video_captions.csv", "final_video_id", ["caption"]),
)
"""Tables of videos: a file's usual name, its column of video numbers, the columns that are read."""
CHINA = 8 * 3_600
"""Seconds that a day begins earlier in China than in UTC."""
IMPRESSION = "shown, and nothing done"
"""Reason in the ledger."""


def decode(block: bytes, layout: Layout, first: bool) -> Decoded:
    """A block of a log."""
    rows = read_rows(block, layout, dict.fromkeys(COLUMNS, pa.int64()), first=first)
    signals, good = on({name: rows.numbers(column) for name, column in FLAGS.items()})
    kind = SIGNALS.kind(signals)
    told = decoded(
        rows, rows.numbers("user_id"), rows.numbers("video_id"), kind, rows.numbers("time_ms"),
        left_out={
            IMPRESSION: int((good & (kind == 0)).sum()),
            "a flag is neither 0 nor 1": int((~good).sum()),
        },
    )  # fmt: skip
    alone = int(((kind > 0) & ~signals["click"]).sum())
    return replace(
        told, notes={**told.notes, "a signal without a click": alone} if alone else told.notes
    )


def data_folder(folder: Path, pattern: str) -> Path:
    """The folder itself, or its folder `data`, where the releases put the files."""
    below = folder / "data"
    here = folder.is_dir() and any(
        re.search(pattern, path.name.lower()) for path in folder.iterdir()
    )
    return below if below.is_dir() and not here else folder


def logs(folder: Path) -> Log:
    """The feed's logs of one version, to be staged.

    Raises:
        InputError: none is there, or more than one version.
    """
    place = data_folder(folder, LOGS)
    texts = find_texts(
        place, r"(^|/)log_standard_.*\.csv", "log", example="log_standard_4_08_to_4_21_1k.csv"
    )
    versions = sorted({found[1] for text in texts if (found := VERSION.search(text.name.lower()))})
    if len(versions) > 1:
        raise InputError(
            f"'{place}' holds logs of the versions {', '.join(versions)}; keep one version in a folder"
        )
    layouts = {text.name: layout_of(text, COLUMNS, (b",",)) for text in texts}
    return Log(
        "kuairand", texts, lambda block, text, first: decode(block, layouts[text.name], first),
        rules={"signals": SIGNALS.names}, time_type="<i8",
    )  # fmt: skip


def known_of_videos(
    folder: Path, chosen: Selected
) -> tuple[dict[str, Column], dict[str, Any], list[Text]]:
    """What is known of videos: author and tag from the basic features, captions where they are there.

    Returns:
        Columns author_id, tag and caption, as far as their files are there; records of each file by what
        became of them; the files.
    """
    columns: dict[str, Column] = {}
    told: dict[str, Any] = {}
    used: list[Text] = []
    for example, item, names in TABLES:
        for where in dict.fromkeys((data_folder(folder, LOGS), folder)):
            pattern = rf"(^|/){example.removesuffix('.csv').removesuffix('1k')}.*\.csv"
            found = find_texts(where, pattern, "items", example=example, required=False)
            if found:
                more, told[found[0].name] = columns_of_items(
                    found[0], item, names, chosen.item_numbers, chosen.folder / f"{item}.arrow"
                )
                columns |= more
                used.append(found[0])
                break
    return columns, told, used


@contextmanager
def open_kuairand(folder: Path, root: Path, options: LogOptions) -> Iterator[Raw]:
    """The release as a source; what it holds on disk goes when the block ends.

    Raises:
        InputError: a file is missing or is not what it should be, or nobody is left.
    """
    log = logs(folder)
    rule = options.favor_rule or next(iter(SIGNALS.rules))
    wanted = selection(options, second=1_000, zone=CHINA, rules=SIGNALS.choices("click"))
    with stage(log, root, keep=options.keep_staging) as staged:
        chosen = staged.select(wanted)
        vectors, made_by = vectors_of(options.features, Numbered(chosen.item_numbers))
        columns, told, used = known_of_videos(folder, chosen)
        facts = {
            **made_by,
            "favor_rule": {
                "name": rule,
                "favor": SIGNALS.rules[rule].text,
                "click": "is_click = 1",
            },
            "click_and_favor": "a row that is both is a click and, at the same time, a favor after it",
            "clock": "milliseconds since 1970 UTC",
            "item_files": told,
        }
        fields = {"author": columns["author_id"]} if "author_id" in columns else {}
        yield chosen.raw(
            title=columns.get("caption"),
            category=columns.get("tag"),
            fields=fields,
            **vectors,
            facts=facts,
            files={path.name: sha256_file(path) for text in used for path in text.paths},
        )
