"""Rec-Tmall's reader on made-up rows in the exact raw bytes; a test for each trap of the files."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.data import survey
from harness.data.dataset import Dataset
from harness.data.features import LEDGER_SCHEMA, write_features
from harness.data.raw import sha256_file
from harness.prepare import main

PRODUCT = "tianchi_2014001_rec_tmall_product.txt"
LOG = "tianchi_2014002_rec_tmall_log_parta.txt"
PRODUCTS = [
    (
        b"1\x01\xe5\xa5\xb3\xe8\xa3\x85   \xe6\x96\xb0\xe6\xac\xbe \xe8\xbf\x9e\xe8\xa1\xa3\xe8\xa3\x99 AB 12 "
        b"\x01http://img01.taobaocdn.com/bao/uploaded/i1/10000001/T1aaaaXXXX_!!0-item_pic.jpg"
        b"\x0116-1001\x01b11\x01s7\n"
    ),
    (
        b"25\x01\xe7\x94\xb7\xe9\x9e\x8b \xe9\x80\x8f\xe6\xb0\x94 "
        b"\x01http://img02.taobaocdn.com/bao/uploaded/i2/10000002/T1bbbbXXXX_!!0-item_pic.jpg"
        b"\x0153-2002\x01b205\x01s19\n"
    ),
    (
        b"4096\x01Cup, 350 ML   \xe9\xa9\xac\xe5\x85\x8b\xe6\x9d\xaf "
        b"\x01http://img03.taobaocdn.com/bao/uploaded/i3/10000003/T1ccccXXXX_!!0-item_pic.jpg"
        b"\x0165-303\x01b3\x01s4400\n"
    ),
    (
        b"700123\x01 \x01http://img04.taobaocdn.com/bao/uploaded/i4/10000004/T1ddddXXXX_!!0-item_pic.jpg"
        b"\x0125-4404\x01b90001\x01s52\n"
    ),
    (
        b"8133507\x01\xe7\xab\xa5\xe8\xbd\xa6 6.5 \xe5\xaf\xb8 "
        b"\x01http://img01.taobaocdn.com/bao/uploaded/i1/10000005/T1eeeeXXXX_!!0-item_pic.jpg"
        b"\x0178-5505\x01b42\x01s86799\n"
    ),
]
ROWS = [
    b"25\x01u1000007\x01click\x012014-05-03 08:15:59\n",
    b"25\x01u1000007\x01collect\x012014-05-03 08:16:40\n",
    b"4096\x01u42\x01cart\x012014-06-11 23:59:59\n",
    b"700123\x01u9999999\x01alipay\x012014-09-30 00:00:00\n",
    b"8133507\x01u42\x01click\x012014-09-30 00:00:00\n",
]
SAMPLE_LOG = [
    b"item_id,user_id,action,vtime\r\n",
    b"i12,u301,click,2014/9/1 7:05\r\n",
    b"i12,u301,collect,2014/9/1 7:06\r\n",
    b"i3,u8,cart,2014/9/12 22:40\r\n",
    b"i77,u8,alipay,2014/9/30 0:00\r\n",
    b"i77,u301,click,2014/9/30 23:59\r\n",
]
SAMPLE_PRODUCT = [
    b"item_id,title,pict_url,category,brand_id,seller_id\r\n",
    b"12,\xc5\xae\xd7\xb0 \xd0\xc2\xbf\xee ,http://img01.taobaocdn.com/a.jpg,16-1001,b11,s7\r\n",
    b"3,\xc4\xd0\xd0\xac ,http://img02.taobaocdn.com/b.jpg,53-2002,b205,s19\r\n",
    b"77,NULL,http://img03.taobaocdn.com/c.jpg,65-303,b3,s4400\r\n",
    b"78,Cup 350 ML ,http://img04.taobaocdn.com/d.jpg,25-4404,b90001,s52\r\n",
    b"79,\xcd\xaf\xb3\xb5 ,http://img01.taobaocdn.com/e.jpg,78-5505,b42,s86799\r\n",
]
FIRST = 200_000
"""First of the filler items, of which users 2,000 to 2,009 touch 30 each."""


def filler_log(
    item: str = "{}", clock: str = "2014-0{month}-{day:02} 08:15:{second}"
) -> list[bytes]:
    """Ten users with a collect after every nine clicks, half in May, half in June, \\x01-separated."""
    rows = []
    for user in range(10):
        for step in range(30):
            action = "collect" if step % 10 == 9 else "click"
            time = clock.format(month=5 + step // 15, day=1 + step % 15, second=10 + step)
            number = item.format(FIRST + 30 * user + step)
            rows.append(f"{number}\x01u{2_000 + user}\x01{action}\x01{time}\n".encode())
    return rows


def more_events(item: str, user: str, times: list[str]) -> list[bytes]:
    """Clicks of other filler items that make a user of the made-up rows long enough."""
    return [
        f"{item.format(FIRST + number)}\x01{user}\x01click\x01{time}\n".encode()
        for number, time in enumerate(times)
    ]


EARLY = [f"2014-05-0{day} 00:00:00" for day in (1, 1, 2)]


def filler_products(prefix: str = "") -> list[bytes]:
    words = "{}{}\x01thing {} \x01http://x/{}.jpg\x0116-{}\x01b{}\x01s{}\n"
    return [
        words.format(prefix, item, item, item, item % 9, item % 7, item % 5).encode()
        for item in range(FIRST, FIRST + 300)
    ]


def commas(rows: list[bytes]) -> list[bytes]:
    return [row.replace(b"\x01", b",") for row in rows]


def full(folder: Path, log: list[bytes] = ROWS, products: list[bytes] = PRODUCTS) -> Path:
    """The full files: made-up rows, users made long enough, filler."""
    folder.mkdir(exist_ok=True)
    more = more_events("{}", "u1000007", EARLY)
    (folder / LOG).write_bytes(b"".join([*log, *more, *filler_log()]))
    (folder / PRODUCT).write_bytes(b"".join([*products, *filler_products()]))
    return folder


def run(folder: Path, *more: str, data: str = "data") -> int:
    root = folder.parent / data
    return main(
        ["rec_tmall", "--raw", str(folder), "--data-dir", str(root), "--name", "made", *more]
    )


def prepared(folder: Path, *more: str, data: str = "data") -> Dataset:
    assert run(folder, *more, data=data) == 0
    assert sorted(path.name for path in (folder.parent / data).iterdir()) == ["made"]
    return Dataset.open(folder.parent / data, "made")


def events_of(data: Dataset, user: str) -> list[tuple[str, int, int]]:
    """(raw item, behaviour, time) of a user."""
    users = pd.read_parquet(data.folder / "users.parquet")["user"].tolist()
    items = pd.read_parquet(data.folder / "items.parquet")["item"].tolist()
    place = users.index(user)
    begin, end = data.array("offsets")[place : place + 2].tolist()
    columns = (
        data.array(f"event_{name}")[begin:end].tolist() for name in ("item", "behaviour", "time")
    )
    return [
        (items[item - 1], behaviour, time) for item, behaviour, time in zip(*columns, strict=True)
    ]


def items_of(data: Dataset) -> pd.DataFrame:
    return pd.read_parquet(data.folder / "items.parquet").set_index("item")


def ledger_of(data: Dataset) -> dict[str, Any]:
    return data.manifest["ledger"]


def seconds(text: str) -> int:
    return int(np.datetime64(text, "s").astype(np.int64))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    capsys.readouterr()
    assert run(folder, *more) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert not (folder.parent / "data" / "made").exists()
    return said


def test_full_files_become_a_set(tmp_path: Path) -> None:
    data = prepared(full(tmp_path / "raw"))
    assert events_of(data, "u1000007") == [
        (str(FIRST), 1, seconds("2014-05-01")), (str(FIRST + 1), 1, seconds("2014-05-01")),
        (str(FIRST + 2), 1, seconds("2014-05-02")),
        ("25", 1, seconds("2014-05-03T08:15:59")), ("25", 2, seconds("2014-05-03T08:16:40")),
    ]  # fmt: skip
    assert data.manifest["source"] == "rec_tmall"
    assert data.manifest["table1"]["users"] == 11
    assert data.manifest["counts"]["raw_users"] == 12  # u42 has a click
    names = items_of(data)
    assert names.loc["25"].tolist() == [
        "男鞋 透气",
        "http://img02.taobaocdn.com/bao/uploaded/i2/10000002/T1bbbbXXXX_!!0-item_pic.jpg",
        "53-2002",
    ]  # fmt: skip
    assert data.manifest["fields"] == {"category": 10, "brand": 8, "seller": 6}
    raw = tmp_path / "raw"
    assert data.manifest["raw_files"] == {path.name: sha256_file(path) for path in raw.iterdir()}


def test_cart_and_alipay_are_left_out_and_counted(tmp_path: Path) -> None:
    data = prepared(full(tmp_path / "raw"))
    assert data.manifest["counts"]["rows_ignored"] == {"cart": 1, "alipay": 1}
    ledger = ledger_of(data)
    assert ledger["rows"] == 308 == ledger["events"] + sum(ledger["dropped"].values())
    assert ledger["dropped"] == {"action cart": 1, "action alipay": 1}
    assert ledger["selected"]["kept_events"] == 305


def test_titles_keep_letters_that_look_like_line_ends_or_quotes(tmp_path: Path) -> None:
    r"""str.splitlines would cut at \x1c to \x1e and \x85; a parser that quotes would eat lines."""
    odd = 'say "cheese \x1c\x1d\x1e\x85 now '
    products = [f'{FIRST}\x01"{odd}\x01http://x\x0116-1\x01b1\x01s1\n'.encode(), *PRODUCTS]
    data = prepared(full(tmp_path / "raw", products=products))
    title = items_of(data).loc[str(FIRST), "title"]
    assert title.startswith('"say "cheese \x1c\x1d\x1e')
    assert title.endswith("now")
    counts = data.manifest["product_ledger"]
    assert counts["rows"] == 306
    assert counts["repeated item"] == 1  # the filler's line of the same item comes second
    assert counts["items without a product line"] == 0


@pytest.mark.parametrize("title", ["null", "NULL ", "Null", "  ", ""])
def test_a_title_that_is_the_word_null_or_blank_is_missing(tmp_path: Path, title: str) -> None:
    products = [f"25\x01{title}\x01http://x\x0116-1\x01b1\x01s1\n".encode()]
    data = prepared(full(tmp_path / "raw", products=products))
    names = items_of(data)
    assert names.loc["25", "title"] == ""
    assert (names["title"] == "").sum() == 1 == data.manifest["product_ledger"]["missing title"]


def test_blanks_between_and_after_words_become_one_and_none(tmp_path: Path) -> None:
    log = [*ROWS, b"1\x01u1000007\x01click\x012014-05-01 00:00:00\n"]
    assert (
        items_of(prepared(full(tmp_path / "raw", log=log))).loc["1", "title"]
        == "女装 新款 连衣裙 AB 12"
    )


def test_exact_duplicates_are_dropped_and_ties_keep_the_files_order(tmp_path: Path) -> None:
    same = b"\x01u1000007\x01click\x012014-05-03 08:15:59\n"
    log = [*ROWS, b"4096" + same, b"25" + same, b"1" + same, b"4096" + same]
    data = prepared(full(tmp_path / "raw", log=log))
    assert [event[0] for event in events_of(data, "u1000007")][3:] == ["25", "4096", "1", "25"]
    assert ledger_of(data)["selected"]["duplicates"] == 2


def test_short_and_long_lines_are_counted_in_both_files(tmp_path: Path) -> None:
    log = [
        b"25\x01u1\n",
        *ROWS,
        b"25\x01u1000007\x01click\n",
        b"\n",
        b"25\x01u1\x01click\x012014-05-03 08:15:59\x01x\n",
    ]
    products = [*PRODUCTS, b"77\x01short \x01http://x\n"]
    data = prepared(full(tmp_path / "raw", log=log, products=products))
    dropped = ledger_of(data)["dropped"]
    assert (dropped["wrong number of fields"], dropped["blank line"]) == (3, 1)
    assert data.manifest["product_ledger"]["wrong number of fields"] == 1


def test_vtime_is_its_first_nineteen_characters(tmp_path: Path) -> None:
    log = [ROWS[0].replace(b":59\n", b":59.25+08:00\n"), *ROWS[1:]]
    events = events_of(prepared(full(tmp_path / "raw", log=log)), "u1000007")
    assert events[3] == ("25", 1, seconds("2014-05-03T08:15:59"))


def test_a_time_that_no_calendar_has_is_counted(tmp_path: Path) -> None:
    bad = [b"25\x01u1000007\x01click\x01" + time + b"\n" for time in
           (b"2014-02-30 00:00:00", b"2014-05-03 24:00:00", b"noon", b"")]  # fmt: skip
    data = prepared(full(tmp_path / "raw", log=[*ROWS, *bad]))
    assert ledger_of(data)["dropped"]["unreadable time"] == 4
    assert len(events_of(data, "u1000007")) == 5


def test_actions_of_another_log_are_an_error_and_never_a_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code that mapped pv, fav, cart, buy once made every other action the default class."""
    folder = full(tmp_path / "raw")
    rows = (folder / LOG).read_bytes().replace(b"click", b"pv").replace(b"collect", b"fav")
    (folder / LOG).write_bytes(rows)
    said = refused(capsys, folder)
    assert "have an unknown action 'pv', an unknown action 'fav'" in said
    assert "nothing was guessed" in said


def test_one_strange_action_among_many_rows_is_counted(tmp_path: Path) -> None:
    log = [*ROWS, b"25\x01u1000007\x01Click\x012014-05-03 08:15:59\n"]
    ledger = ledger_of(prepared(full(tmp_path / "raw", log=log)))
    assert ledger["dropped"]["unknown action 'Click'"] == 1


SAMPLES = {
    "as handed out": ("(sample)sam_tianchi_2014002_rec_tmall_log.csv", "i", b"\r\n", ""),
    "line ends of one byte": ("sam_tianchi_2014002_rec_tmall_log.csv", "i", b"\n", ""),
    "products with an i": ("sam_tianchi_2014002_rec_tmall_log.csv", "i", b"\r\n", "i"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_sample_files_with_header_commas_prefix_short_times_and_gbk(
    tmp_path: Path, kind: str
) -> None:
    name, prefix, end, product_prefix = SAMPLES[kind]
    folder = tmp_path / "raw"
    folder.mkdir()
    more = more_events("i{}", "u301", ["2014/9/1 7:01", "2014/9/1 7:02", "2014/9/1 7:03"])
    rows = commas([*more, *filler_log(f"{prefix}{{}}", "2014/{month}/{day} 8:{second}")])
    log = [*SAMPLE_LOG, *(row.replace(b"\n", b"\r\n") for row in rows)]
    (folder / name).write_bytes(b"".join(log).replace(b"\r\n", end))
    gbk = [SAMPLE_PRODUCT[0], *(product_prefix.encode() + row for row in SAMPLE_PRODUCT[1:]),
           *commas(filler_products(product_prefix))]  # fmt: skip
    product = name.replace("2014002", "2014001").replace("log", "product")
    (folder / product).write_bytes(b"".join(gbk).replace(b"\r\n", end))
    data = prepared(folder)
    assert events_of(data, "u301") == [
        (str(FIRST), 1, seconds("2014-09-01T07:01")), (str(FIRST + 1), 1, seconds("2014-09-01T07:02")),
        (str(FIRST + 2), 1, seconds("2014-09-01T07:03")), ("12", 1, seconds("2014-09-01T07:05")),
        ("12", 2, seconds("2014-09-01T07:06")), ("77", 1, seconds("2014-09-30T23:59")),
    ]  # fmt: skip
    names = items_of(data)
    assert names.loc["12", "title"] == "女装 新款"
    assert names.loc["77", ["title", "category"]].tolist() == ["", "65-303"]
    assert data.manifest["counts"]["rows_ignored"] == {"cart": 1, "alipay": 1}
    assert ledger_of(data)["dropped"] == {"action cart": 1, "action alipay": 1}


def test_a_cut_with_columns_in_another_order_and_a_quoted_title(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = [
        row.decode().strip().split("\x01")
        for row in [*ROWS, *more_events("{}", "u1000007", EARLY), *filler_log()]
    ]
    log = pd.DataFrame(lines, columns=["item_id", "user_id", "action", "vtime"])
    log[["vtime", "item_id", "action", "user_id"]].to_csv(folder / "tmall_log_cut.csv", index=False)
    lines = [row.decode().rstrip("\n").split("\x01") for row in [*PRODUCTS, *filler_products()]]
    columns = ["item_id", "title", "pict_url", "category", "brand_id", "seller_id"]
    products = pd.DataFrame(lines, columns=columns)
    products.loc[1, "title"] = 'shoes, "light" '
    products.to_csv(folder / "product.csv", index=False)
    one, two = prepared(folder), prepared(full(tmp_path / "whole"), data="other")
    assert events_of(one, "u1000007") == events_of(two, "u1000007")
    assert items_of(one).loc["25", "title"] == 'shoes, "light"'


def test_samples_beside_the_full_files_are_not_counted_twice(tmp_path: Path) -> None:
    folder = full(tmp_path / "raw")
    (folder / "(sample)sam_tianchi_2014002_rec_tmall_log.csv").write_bytes(b"".join(SAMPLE_LOG))
    (folder / "(sample)sam_tianchi_2014001_rec_tmall_product.csv").write_bytes(
        b"".join(SAMPLE_PRODUCT)
    )
    (folder / "tianchi_2014003_rec_tmall_review.txt").write_bytes(b"another table\n")
    data = prepared(folder)
    assert set(data.manifest["raw_files"]) == {LOG, PRODUCT}
    assert ledger_of(data)["rows"] == 308


def test_archives_and_the_older_packaging_give_the_same_set(tmp_path: Path) -> None:
    """Archive .parta.zip with a dot against text _parta.txt with an underscore; and .tar.gz.001 to .003."""
    folder = full(tmp_path / "raw")
    plain = prepared(folder)
    rows = (folder / LOG).read_bytes().splitlines(keepends=True)
    third = len(rows) // 3
    parts = [b"".join(rows[:third]), b"".join(rows[third : 2 * third]), b"".join(rows[2 * third :])]
    zips, old = tmp_path / "zips", tmp_path / "old"
    zips.mkdir()
    old.mkdir()
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for part, content in zip("abc", parts, strict=True):
            name = f"tianchi_2014002_rec_tmall_log_part{part}.txt"
            archive = zips / f"tianchi_2014002_rec_tmall_log.part{part}.zip"
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr(name, content)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with zipfile.ZipFile(zips / "tianchi_2014001_rec_tmall_product.zip", "w") as file:
        file.write(folder / PRODUCT, PRODUCT)
    bits = whole.getvalue()
    for number in range(3):
        cut = bits[number * len(bits) // 3 : (number + 1) * len(bits) // 3]
        (old / f"Tianchi_2014002_Rec_Tmall_Log.tar.gz.{number + 1:03}").write_bytes(cut)
    (old / "Tianchi_2014001_Rec_Tmall_Product").write_bytes((folder / PRODUCT).read_bytes())
    for place in (zips, old):
        data = prepared(place, data=f"data_{place.name}")
        assert data.data_sha256 == plain.data_sha256
        assert data.manifest["raw_files"] == {
            path.name: sha256_file(path) for path in place.iterdir()
        }


def test_the_set_is_that_of_the_same_events_as_a_table(tmp_path: Path) -> None:
    data = prepared(full(tmp_path / "raw"))
    items = items_of(data).index.tolist()
    rows = [row.decode().strip().split("\x01") for row in
            [*ROWS, *more_events("{}", "u1000007", EARLY), *filler_log()]]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["item", "user", "behavior", "timestamp"])
    frame["behavior"] = frame["behavior"].replace("collect", "favor")
    frame["user"] = frame["user"].str[1:].str.zfill(7)  # texts in the order of the numbers
    frame = frame[frame["behavior"].isin(["click", "favor"])]
    frame = frame[frame["item"].isin(items) | (frame["user"] == "0000042")]
    frame.to_csv(tmp_path / "log.csv", index=False)
    listed = sorted({*items, "8133507"}, key=int)
    pd.DataFrame({"item": listed}).to_csv(tmp_path / "items.csv", index=False)
    table = [
        "table",
        "--interactions",
        str(tmp_path / "log.csv"),
        "--items",
        str(tmp_path / "items.csv"),
    ]
    assert main([*table, "--data-dir", str(tmp_path / "data"), "--name", "table"]) == 0
    other = Dataset.open(tmp_path / "data", "table")
    for name in ("event_item", "event_behaviour", "event_time", "offsets", "user_number"):
        np.testing.assert_array_equal(other.array(name), data.array(name))


def test_months_and_days_choose_events(tmp_path: Path) -> None:
    folder = full(tmp_path / "raw")
    june = prepared(folder, "--months", "2014-06")
    assert june.manifest["table1"] == {
        "users": 10, "items": 150, "interactions": 150, "clicks_per_user": 13.0, "favors_per_user": 2.0,
    }  # fmt: skip
    assert june.manifest["selection"]["times"] == [[seconds("2014-06-01"), seconds("2014-07-01")]]
    both = prepared(folder, "--from", "2014-05-01", "--to", "2014-06-30")
    assert both.manifest["table1"]["interactions"] == 305
    assert ledger_of(june)["selected"]["outside the time range"] == 150 + 5 + 1


def test_a_share_of_collect_chooses_users(tmp_path: Path) -> None:
    data = prepared(full(tmp_path / "raw"), "--favor-share", "0,0.15")
    assert data.manifest["table1"]["users"] == 10
    assert ledger_of(data)["selected"]["users with another share of favors"] == 1


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Vectors of all items; the pictures of every third filler item are gone."""
    ids = ["25", *map(str, range(FIRST, FIRST + 300))]
    alive = np.array([int(item) % 3 > 0 or item == "25" for item in ids])
    vectors = np.arange(len(ids) * 4, dtype=np.float32).reshape(-1, 4) + 1
    vectors[~alive] = 0
    columns: dict[str, list[Any]] = {
        "item": ids, "url": ["http://x"] * len(ids), "tries": [1] * len(ids), "bytes": [9] * len(ids),
        "status": ["ok" if one else "dead" for one in alive], "reason": [""] * len(ids),
    }  # fmt: skip
    ledger = {name: columns[name] for name in LEDGER_SCHEMA.names}
    folder = tmp_path / "features"
    write_features(
        folder, ids, {"image": (4, lambda: [vectors])}, [ledger], lambda: {"model": "made"}
    )
    return folder


def test_items_without_a_living_picture_are_left_out(tmp_path: Path, features: Path) -> None:
    log = [*ROWS, b"25\x01u1000007\x01click\x012014-05-04 00:00:00\n"]
    data = prepared(full(tmp_path / "raw", log=log), "--features", str(features))
    items = items_of(data).index
    assert all(int(item) % 3 > 0 or item == "25" for item in items)
    assert data.manifest["vectors"]["image"] == {"width": 4, "present": len(items)}
    image = data.array("image")
    place = items.get_loc("25")
    assert image[place + 1].tolist() == [1, 2, 3, 4]
    selected = ledger_of(data)["selected"]
    assert (
        selected["item without a living picture"] == 100 + 1 + 1
    )  # filler; u1000007's; u42's unknown item
    assert data.manifest["features"]["model"] == "made"


def test_a_survey_prints_table_1_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], features: Path
) -> None:
    folder = full(tmp_path / "raw")
    assert run(folder, "--survey", "--features", str(features)) == 0
    said = capsys.readouterr().out
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
            for cells in (line.split("|") for line in said.splitlines() if line.startswith("|"))}  # fmt: skip
    assert rows["the paper's Table 1"][:5] == ["72,051", "93,466", "328,387", "4.16", "1.73"]
    assert rows["all"][:5] == ["11", "301", "305", "24.91", "2.82"]
    assert rows["2014-06"][:5] == ["10", "150", "150", "13.00", "2.00"]
    assert rows["2014-09"][:3] == ["0", "0", "0"]
    assert rows["2014-09"][5] == "inf"
    assert rows["all, living pictures"][2] == "200"
    assert rows["all, collect share >= 0.2"][0] == "1"
    assert "nearest: all (distance " in said
    assert "contradicts itself: 72,051 users x (4.16 + 1.73) = 424,380, not 328,387" in said
    assert not (tmp_path / "data" / "made").exists()
    left = list((tmp_path / "data" / ".staging").iterdir())
    assert len(left) == 1  # for `prepare`, and named at the end
    assert str(left[0]) in said


def test_the_distance_is_the_one_that_is_stated() -> None:
    paper = survey.published_row("rec_tmall")
    assert paper is not None
    assert survey.distance(paper, paper) == 0
    assert survey.distance(
        {name: 2 * value for name, value in paper.items()}, paper
    ) == pytest.approx(np.log(2))
    assert survey.distance({**paper, "users": 2 * paper["users"]}, paper) == pytest.approx(
        np.log(2) / 5**0.5
    )
    assert survey.published_row("nothing") is None
    assert "no row" in survey.survey_text("nothing", [("all", paper)])
    assert survey.contradiction({**paper, "interactions": 424_380}) is None


def test_what_is_missing_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = full(tmp_path / "raw")
    (folder / PRODUCT).unlink()
    assert "holds no product file such as tianchi_2014001_rec_tmall_product.txt" in refused(
        capsys, folder
    )
    (folder / PRODUCT).write_bytes(b"a\x01b\n")
    full(tmp_path / "raw")
    (folder / LOG).write_bytes(b"1;2;3;4\n")
    assert "has not the 4 fields item_id, user_id, action, vtime" in refused(capsys, folder)
    (folder / LOG).write_bytes(b"item_id,user_id,action\n")
    assert "has no column 'vtime'" in refused(capsys, folder)
    (folder / LOG).unlink()
    assert "holds no log such as" in refused(capsys, folder)
    full(tmp_path / "raw")
    assert "none has at least 5000 events" in refused(capsys, folder, "--minimum-events", "5000")
    assert "--favor-rule belongs to" in refused(capsys, folder, "--favor-rule", "like")
