"""Taobao's user behaviour, Tianchi data set 649: a click and favor log that is still served.

UserBehavior.csv, comma-separated without header: user, item, category, behaviour (pv, buy, cart, fav), Unix
seconds; 100,150,807 rows of 987,994 users and 4,162,024 items. The stated nine days are 2017-11-25 to
2017-12-03 in China; some rows lie outside them and are left out unless --from, --to or --months ask for
others. The paper's click is pv, its favor is fav; cart and buy are left out and counted. The category is
a number and becomes the item's only id field, from its first event. There are no titles and no pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from harness.data.blocks import layout_of, read_rows
from harness.data.choice import LogOptions, selection
from harness.data.labels import Numbered
from harness.data.raw import Raw
from harness.data.staging import Decoded, Log, decoded, kinds_of, stage
from harness.data.texts import Text, find_texts

COLUMNS = ("user_id", "item_id", "category_id", "behavior_type", "timestamp")
KINDS = {"pv": 1, "fav": 2, "cart": 0, "buy": 0}
TYPES = {
    "user_id": pa.int32(), "item_id": pa.int32(), "category_id": pa.int32(),
    "behavior_type": pa.dictionary(pa.int32(), pa.string()), "timestamp": pa.int64(),
}  # fmt: skip
DAYS = ("2017-11-25", "2017-12-03")
"""First and last day that the data set is said to have."""
CHINA = 8 * 3_600
"""Seconds that clocks in China are ahead of UTC."""


def taobao_log(folder: Path) -> Log:
    """The log's file, as `stage` takes it.

    Raises:
        InputError: there is none, or its first line is of no known form.
    """
    texts = find_texts(folder, r"user_?behavior", "log", example="UserBehavior.csv")
    layouts = {text.name: layout_of(text, COLUMNS, (b",", b"\t")) for text in texts}

    def decode(block: bytes, text: Text, first: bool) -> Decoded:
        rows = read_rows(block, layouts[text.name], TYPES, first=first)
        kind, left_out, unknown = kinds_of(rows, "behavior_type", KINDS)
        return decoded(
            rows, rows.numbers("user_id"), rows.numbers("item_id"), kind, rows.numbers("timestamp"),
            left_out=left_out, unknown=unknown, extra=rows.numbers("category_id"),
        )  # fmt: skip

    return Log("taobao", texts, decode, rules={"kinds": KINDS}, time_type="<i8", has_extra=True)


@contextmanager
def open_taobao(folder: Path, root: Path, options: LogOptions) -> Iterator[Raw]:
    """The selected events; what is on disk for them goes when the block ends well.

    Raises:
        InputError: no file, one of another form, an option that cannot be used, or nobody is left.
    """
    wanted = selection(options, zone=CHINA, days=DAYS)
    with stage(taobao_log(folder), root, keep=options.keep_staging) as staged:
        chosen = staged.select(wanted)
        category = chosen.extra_of_items()
        width = len(str(int(category.max(initial=0))))
        labels = Numbered(category)
        padded = Numbered(np.asarray(category), digits=width)
        yield chosen.raw(category=labels, fields={"category": padded})
