r"""Rec-Tmall, one of the paper's two sources: Tianchi data set 140281, https://tianchi.aliyun.com/dataset/140281.

What the files are, as public code that read them agrees (ERICH-VON-SHCULTZ/GRID, RUCAIBox/RecDatasets, the
titles in fanko79/BCDMM2025, and others):

    tianchi_2014001_rec_tmall_product.txt      8,133,507 rows, 1.6 GB
        item_id title pict_url category brand_id seller_id; \x01 between fields, no header, UTF-8;
        titles are words with blanks between and after; brand is b and digits, seller s and digits
    tianchi_2014002_rec_tmall_log_parta.txt    (partb, partc) 1,333,729,303 rows, 50 GB together
        item_id user_id action vtime; the same separator; user is u and digits; actions click, collect, cart,
        alipay; vtime YYYY-MM-DD HH:MM:SS

They come as tianchi_2014002_rec_tmall_log.parta.zip and so on, or, in an older packaging, as
Tianchi_2014002_Rec_Tmall_Log.tar.gz.001 to .003. Samples, and cuts that others pass on, are comma-separated
with a header; the sample's log has "i" before item ids and vtime as YYYY/M/D H:MM; its text is UTF-8 or GBK.
All are read, in any mixture, without unpacking to disk.

The paper's click is click, its favor is collect; cart and alipay are left out and counted. The clock is
local time without zone and is kept as written. A title that is the word null is missing. Exact duplicates of
(user, item, action, vtime) lose all but the first.

Rows, not users, are what the log's ledger counts; `Staged.ledger` and the manifest's `ledger` have it.

Axes: item = the items of the selection, ascending by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray

from harness.data.blocks import MISSING, Layout, layout_of, read_rows
from harness.data.choice import LogOptions, lookup, month_span, selection
from harness.data.features import read_features, read_manifest
from harness.data.labels import Column
from harness.data.ordering import Selection
from harness.data.raw import Raw
from harness.data.staging import (
    Bar,
    Decoded,
    Log,
    Selected,
    Staged,
    decoded,
    kinds_of,
    stage,
)
from harness.data.survey import survey_text
from harness.data.texts import Checksums, Text, find_texts
from harness.errors import InputError

LOG_COLUMNS = ("item_id", "user_id", "action", "vtime")
PRODUCT_COLUMNS = ("item_id", "title", "pict_url", "category", "brand_id", "seller_id")
KINDS = {"click": 1, "collect": 2, "cart": 0, "alipay": 0}
"""The paper's click and favor; 0 is left out."""
LOG_TYPES = {
    "item_id": pa.int32(), "user_id": pa.string(), "action": pa.dictionary(pa.int32(), pa.string()),
    "vtime": pa.timestamp("s"),
}  # fmt: skip
PRODUCT_TYPES = {name: pa.string() for name in PRODUCT_COLUMNS} | {"item_id": pa.int32()}
LINES = 20
"""Lines that may show a file's form: a short line, of which there are some, may be the first."""
LIVING = "item without a living picture"
"""Reason in the ledger."""
SHARES = (0.1, 0.2, 0.29)
"""Least shares of favors among a user's events that the survey tries; the last is the paper's own mean."""


def rec_tmall_log(folder: Path) -> Log:
    """The log's files, as `stage` takes them.

    Raises:
        InputError: there are none, or a first line is of no known form.
    """
    texts = _full_before_samples(
        find_texts(
            folder,
            r"(^|[^a-z])log([^a-z]|$)",
            "log",
            example="tianchi_2014002_rec_tmall_log_parta.txt",
        )
    )
    layouts = {text.name: layout_of(text, LOG_COLUMNS, lines=LINES) for text in texts}

    def decode(block: bytes, text: Text, first: bool) -> Decoded:
        rows = read_rows(block, layouts[text.name], LOG_TYPES, first=first)
        kind, left_out, unknown = kinds_of(rows, "action", KINDS)
        return decoded(
            rows, rows.numbers("user_id", "u"), rows.numbers("item_id", "i"), kind,
            rows.seconds("vtime"), left_out=left_out, unknown=unknown,
        )  # fmt: skip

    return Log("rec_tmall", texts, decode, rules={"kinds": KINDS})


def _full_before_samples(texts: Sequence[Text]) -> list[Text]:
    """Without the sample files where the full ones are there: their rows would count twice."""
    full = [text for text in texts if "sam_" not in text.name.lower()]
    return full or list(texts)


def product_texts(folder: Path) -> list[Text]:
    """The product file, or its pieces.

    Raises:
        InputError: there is none.
    """
    return _full_before_samples(
        find_texts(
            folder, "product", "product file", example="tianchi_2014001_rec_tmall_product.txt"
        )
    )


@contextmanager
def open_rec_tmall(folder: Path, root: Path, options: LogOptions) -> Iterator[Raw]:
    """The selected events and their items; what is on disk for them goes when the block ends well.

    Args:
        folder: The raw files.
        root: The data folder, whose .staging is used.
        options: months or days, minimum_events, favor_share (collect's), features, keep_staging.

    Raises:
        InputError: files are missing or of another form, an option cannot be used, or nobody is left.
    """
    products, log = product_texts(folder), rec_tmall_log(folder)
    wanted = _selection(options)
    with stage(log, root, keep=options.keep_staging) as staged:
        chosen = staged.select(wanted)
        catalogue = read_products(products, chosen)
        raw = chosen.raw(user_prefix="u", **catalogue)
        if options.features is not None:
            vectors = read_features(options.features, raw.item_ids)
            manifest = {"features": dict(read_manifest(options.features))}
            raw = replace(raw, image=vectors.image, text=vectors.text,
                          facts={**raw.facts, **manifest})  # fmt: skip
        yield raw


def _selection(options: LogOptions) -> Selection:
    """The options' selection, of items with a living picture where there is a features folder."""
    if options.features is None:
        return selection(options)
    return selection(options, items=lookup(living_items(options.features)), items_rule=LIVING)


def living_items(features: Path) -> Int[ndarray, " item"]:
    """Raw numbers of the items whose picture was there.

    Raises:
        InputError: the folder is not one of features, or its items are no Rec-Tmall items.
    """
    read_manifest(features)
    known = pq.read_table(features / "items.parquet", columns=["item"])["item"]
    living = read_features(features, Column(known)).living
    try:
        return np.asarray(known.cast(pa.int64()).to_numpy()[living])
    except pa.ArrowInvalid:
        raise InputError(
            f"'{features}' has items that are no whole numbers, so they are not Rec-Tmall's; "
            "make features of this source's items"
        ) from None


def read_products(texts: Sequence[Text], chosen: Selected) -> dict[str, Any]:
    """What the product file says of the selected items, kept on disk and mapped.

    An item's first line counts; lines of other items are passed over. Items without a line, and lines
    that cannot be used, are counted in the manifest's ledger.

    Returns:
        Fields of `Raw`: title, picture, category, fields (category, brand, seller), files, facts.
    """
    numbers = chosen.item_numbers
    order = np.full(len(numbers), -1, dtype=np.int64)
    counts: Counter[str] = Counter()
    kept = 0
    path = chosen.folder / "products.arrow"
    names = ("title", "picture", "category", "brand", "seller")
    schema = pa.schema([(name, pa.string()) for name in names])
    files: dict[str, str] = {}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        total = sum(text.stored for text in texts)
        with Bar("reading products", total, chosen.staged.show) as bar:
            done = 0
            for text in texts:
                layout = layout_of(text, PRODUCT_COLUMNS, quoted_csv=True, lines=LINES)
                with text.open() as reading:
                    first = True
                    for block in reading.blocks():
                        places, parts = _products(block, layout, first, numbers, order, counts)
                        first = False
                        order[places] = kept + np.arange(len(places))
                        kept += len(places)
                        writer.write_batch(pa.record_batch(parts, schema=schema))
                        bar.at(done + reading.disk_bytes())
                done += text.stored
        for paths in {text.paths for text in texts}:
            files.update(Checksums(paths).finished())
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    columns = {name: Column(table[name], order) for name in names}
    counts["items without a product line"] = int((order < 0).sum())
    return {
        "title": columns["title"],
        "picture": columns["picture"],
        "category": columns["category"],
        "fields": {name: columns[name] for name in ("category", "brand", "seller")},
        "files": files,
        "facts": {"product_ledger": dict(counts)},
    }


def _products(
    block: bytes, layout: Layout, first: bool, numbers: Int[ndarray, " item"],
    order: Int[ndarray, " item"], counts: Counter[str],
) -> tuple[Int[ndarray, " row"], list[Any]]:  # fmt: skip
    """The block's first lines of selected items: their places among these, and their columns."""
    rows = read_rows(block, layout, PRODUCT_TYPES, first=first)
    number = rows.numbers("item_id", "i")
    counts["rows"] += rows.lines
    counts.update(rows.dropped)
    if rows.replaced:
        counts["characters replaced"] += rows.replaced
    counts["unreadable item"] += int((number == MISSING).sum())
    place = np.searchsorted(numbers, number)
    wanted = numbers[np.minimum(place, len(numbers) - 1)] == number
    line = np.nonzero(wanted)[0]
    place = place[line]
    distinct, earliest = np.unique(place, return_index=True)
    new = order[distinct] < 0
    counts["repeated item"] += len(place) - int(new.sum())
    earliest = np.sort(earliest[new])
    place, taken = place[earliest], pa.array(line[earliest])
    got = rows.table.combine_chunks().take(taken)
    title = clean_title(_text(got["title"]))
    counts["missing title"] += pc.sum(pc.equal(title, "")).as_py() or 0
    rest = [pc.utf8_trim_whitespace(_text(got[name])) for name in PRODUCT_COLUMNS[2:]]
    return place, [title, *rest]


def _text(column: Any) -> Any:
    """A column as one array of strings."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def clean_title(title: Any) -> Any:
    """Words with one blank between; empty text for a title that is missing: blank, or the word null."""
    title = pc.utf8_trim_whitespace(pc.replace_substring_regex(title, r"[ \t\x{3000}]+", " "))
    return pc.if_else(pc.equal(pc.utf8_lower(title), "null"), "", title)


def survey_rec_tmall(folder: Path, root: Path, options: LogOptions) -> str:
    """Table 1 of the plausible selections beside the paper's; the staging folder stays for `prepare`."""
    log = rec_tmall_log(folder)
    with stage(log, root, keep=True) as staged:
        selections = survey_selections(staged, options)
        rows = staged.survey(selections)
        place = staged.folder
    named = [(one.name, row) for one, row in zip(selections, rows, strict=True)]
    return (
        survey_text("rec_tmall", named)
        + f"\nthe log as read stays in '{place}' for `prepare`; delete it when done"
    )


def survey_selections(staged: Staged, options: LogOptions) -> list[Selection]:
    """All events and each month; each with users of any and of at least some shares of collect.

    With a features folder all of them also for items with a living picture. `minimum_events` and the
    other options hold for each.
    """
    base = _selection(options)
    bases = [(base, "")]
    if base.items is not None:
        bases = [(replace(base, items=None, items_rule=""), ""), (base, ", living pictures")]
    first, last = (np.datetime64(int(time), "s").astype("datetime64[M]") for time in staged.span)
    months = [str(month) for month in np.arange(first, last + 1)][:60]
    if options.months:
        months = list(options.months)
    spans: list[tuple[str, tuple[tuple[int, int], ...], Sequence[float]]] = [
        ("all", base.times, SHARES)
    ]
    for month in months if len(months) > 1 else ():
        begin, end = month_span(month)
        spans.append((month, ((begin * 86_400, end * 86_400),), SHARES[:1]))
    found = []
    for one, more in bases:
        for name, times, shares in spans:
            found.append(replace(one, times=times, name=name + more))
            found.extend(
                replace(one, times=times, favor_share=(share, 1.0),
                        name=f"{name}{more}, collect share >= {share:g}")
                for share in shares
            )  # fmt: skip
    return found
