"""Retailrocket (kaggle.com/datasets/retailrocket/ecommerce-dataset): views, carts and purchases in a shop.

What the files are, by the publisher's description on that page; several public codes print the same headers:

    events.csv                  timestamp,visitorid,event,itemid,transactionid: milliseconds since 1970; event
                                is view, addtocart or transaction; 2,756,101 rows of 1,407,580 visitors over 4.5
                                months of 2015, most of them with one view. transactionid is empty otherwise
    item_properties_part1.csv   timestamp,itemid,property,value: 20,275,902 rows of weekly snapshots. All but
    item_properties_part2.csv   `categoryid` and `available` is hashed, words one by one: there is no title
    category_tree.csv           categoryid,parentid

Public codes report 460 exact duplicate rows. There are no pictures and no readable text.

Readings. Click = view; favor is a rule, `cart` (addtocart) by default; what is neither is left out and counted.
An item's category is its last one, its parent by the tree; both are id fields. Times stay in milliseconds.

Not confirmed here: whether a hashed value can hold a comma (such lines have more fields and are counted).

Axes: row, event, item.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray

from harness.data.blocks import MISSING, Layout, layout_of, read_rows
from harness.data.choice import LogOptions, selection
from harness.data.raw import Raw, sha256_file
from harness.data.staging import Decoded, Log, decoded, kinds_of, stage
from harness.data.texts import Text, find_texts

COLUMNS = ("timestamp", "visitorid", "event", "itemid")
VIEW, CART, PURCHASE = 1, 2, 3
KINDS = {"view": VIEW, "addtocart": CART, "transaction": PURCHASE}
RULES = {
    "cart": ((VIEW,), (CART,)),
    "purchase": ((VIEW,), (PURCHASE,)),
    "cart_or_purchase": ((VIEW,), (CART, PURCHASE)),
}
"""Kinds that are click and favor by the name of the favor rule, the default first."""
FAVORS = {
    "cart": "addtocart", "purchase": "transaction", "cart_or_purchase": "addtocart or transaction",
}  # fmt: skip


def decode(block: bytes, layout: Layout, first: bool) -> Decoded:
    """A block of events.csv."""
    types = {
        "timestamp": pa.int64(),
        "visitorid": pa.int64(),
        "event": pa.string(),
        "itemid": pa.int64(),
    }
    rows = read_rows(block, layout, types, first=first)
    kind, left_out, unknown = kinds_of(rows, "event", KINDS)
    return decoded(
        rows, rows.numbers("visitorid"), rows.numbers("itemid"), kind, rows.numbers("timestamp"),
        left_out=left_out, unknown=unknown,
    )  # fmt: skip


def events(folder: Path) -> Log:
    """events.csv, to be staged.

    Raises:
        InputError: it is not there.
    """
    texts = find_texts(folder, r"(^|/)events\.csv", "log", example="events.csv")
    layout = layout_of(texts[0], COLUMNS, (b",",))
    return Log("retailrocket", texts[:1], lambda block, _, first: decode(block, layout, first),
               rules={"kinds": KINDS}, time_type="<i8")  # fmt: skip


def last_categories(
    texts: list[Text], numbers: Int[ndarray, " item"]
) -> tuple[Int[ndarray, " item"], dict[str, int]]:
    """Each item's latest category, -1 where none is known, and rows by what became of them.

    Raises:
        InputError: a file cannot be read.
    """
    category = np.full(len(numbers), -1, dtype=np.int64)
    latest = np.full(len(numbers), MISSING, dtype=np.int64)
    counts = {"rows": 0, "of the items": 0, "wrong number of fields": 0, "unreadable": 0}
    names = ("timestamp", "itemid", "property", "value")
    for text in texts:
        layout = layout_of(text, names, (b",",))
        with text.open() as reading:
            for place, block in enumerate(reading.blocks()):
                rows = read_rows(block, layout, dict.fromkeys(names, pa.string()), first=place == 0)
                counts["rows"] += rows.lines
                counts["wrong number of fields"] += sum(rows.dropped.values())
                rows.table = rows.table.filter(pc.equal(rows.table["property"], "categoryid"))
                item, time = rows.numbers("itemid"), rows.numbers("timestamp")
                value = rows.numbers("value")
                at = np.minimum(np.searchsorted(numbers, item), len(numbers) - 1)
                ours = numbers[at] == item
                good = ours & (time != MISSING) & (value != MISSING)
                counts["unreadable"] += int((ours & ~good).sum())
                counts["of the items"] += int(good.sum())
                order = np.argsort(
                    time[good], kind="stable"
                )  # the last assignment of an item stays
                at, time, value = at[good][order], time[good][order], value[good][order]
                newer = time >= latest[at]
                latest[at[newer]], category[at[newer]] = time[newer], value[newer]
    return category, counts


def parents(text: Text) -> dict[int, int]:
    """Parent of each category that has one.

    Raises:
        InputError: the file cannot be read.
    """
    layout = layout_of(text, ("categoryid", "parentid"), (b",",))
    rows = read_rows(text.head(1 << 26), layout, dict.fromkeys(("categoryid", "parentid"), pa.string()),
                     first=True)  # fmt: skip
    pairs = zip(rows.numbers("categoryid").tolist(), rows.numbers("parentid").tolist(), strict=True)
    return {child: parent for child, parent in pairs if MISSING not in (child, parent)}


@contextmanager
def open_retailrocket(folder: Path, root: Path, options: LogOptions) -> Iterator[Raw]:
    """The release as a source; what it holds on disk goes when the block ends.

    Raises:
        InputError: a file is missing or is not what it should be, or nobody is left.
    """
    log = events(folder)
    rule = options.favor_rule or next(iter(RULES))
    wanted = selection(options, second=1_000, rules=RULES)
    with stage(log, root, keep=options.keep_staging) as staged:
        chosen = staged.select(wanted)
        facts: dict[str, Any] = {
            "favor_rule": {"name": rule, "favor": FAVORS[rule], "click": "view"},
            "clock": "milliseconds since 1970 UTC",
            "item_files": {},
        }
        fields: dict[str, list[str]] = {}
        properties = find_texts(folder, r"(^|/)item_properties.*\.csv", "properties",
                                example="item_properties_part1.csv", required=False)  # fmt: skip
        tree = find_texts(folder, r"(^|/)category_tree\.csv", "tree",
                          example="category_tree.csv", required=False)  # fmt: skip
        if properties:
            found, facts["item_files"]["item_properties"] = last_categories(
                properties, chosen.item_numbers
            )
            known = found.tolist()
            fields["category"] = ["" if one < 0 else str(one) for one in known]
            if tree:
                above = parents(tree[0])
                fields["parent"] = [str(above[one]) if one in above else "" for one in known]
        paths = {path for text in (*properties, *tree) for path in text.paths}
        yield chosen.raw(
            category=fields.get("category"), fields=fields, facts=facts,
            files={path.name: sha256_file(path) for path in sorted(paths)},
        )  # fmt: skip
