"""Retailrocket from made-up raw bytes to a prepared set."""

import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.data.dataset import Dataset
from harness.prepare import main
from tests.harness.data.logs import CLICK, FAVOR

USERS, ITEMS = 10, 120
FIRST = 1_433_221_332_117


def item(user: int, step: int) -> int:
    return (12 * user + step) % ITEMS


def rows() -> list[str]:
    """Twelve views a visitor; two put in the cart, one of them bought; others only once."""
    found = []
    for user in range(USERS):
        for step in reversed(range(12)):
            when = FIRST + 60_000 * step
            found.append(f"{when},{user},view,{item(user, step)},\n")
            if step in (4, 8):
                found.append(f"{when + 5},{user},addtocart,{item(user, step)},\n")
            if step == 8:
                found.append(f"{when + 9},{user},transaction,{item(user, step)},{7 + user}\n")
    return [*found, "1433224214164,992329,view,3,\n"]


def write(folder: Path, extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "events.csv").write_text(
        "timestamp,visitorid,event,itemid,transactionid\n" + "".join(rows()) + extra
    )
    head = "timestamp,itemid,property,value\n"
    snapshots = [f"1435460400000,{one},categoryid,{1000 + one % 4}\n" for one in range(1, ITEMS)]
    words = [f"1441508400000,{one},888,1116713 960601 n277.200\n" for one in range(ITEMS)]
    (folder / "item_properties_part1.csv").write_text(
        head + "1441508400000,7,categoryid,1338\n" + "".join(snapshots)
    )
    (folder / "item_properties_part2.csv").write_text(
        head + "1439694000000,8,categoryid,555\n" + "".join(words) + "1441508400000,9,6,a,b\n"
    )
    (folder / "category_tree.csv").write_text(
        "categoryid,parentid\n1000,40\n1001,40\n1002,\n1338,41\n555,42\n"
    )
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write(tmp_path / "raw")


def prepared(raw: Path, *more: str) -> Dataset:
    place = raw.parent / "data"
    assert main(["retailrocket", "--raw", str(raw), "--data-dir", str(place), *more]) == 0
    return Dataset.open(place, "retailrocket")


def test_from_raw_bytes_to_a_prepared_set(raw: Path) -> None:
    data = prepared(raw)
    table1 = data.manifest["table1"]
    assert (table1["users"], table1["items"]) == (USERS, ITEMS)
    assert (table1["clicks_per_user"], table1["favors_per_user"]) == (12, 2)
    begin, end = data.array("offsets")[[3, 4]].tolist()
    behaviours = data.array("event_behaviour")[begin:end].tolist()
    assert behaviours == [CLICK] * 5 + [FAVOR] + [CLICK] * 4 + [FAVOR] + [CLICK] * 3
    assert data.array("event_time")[begin] == FIRST
    selected = data.manifest["ledger"]["selected"]
    assert selected["users with too few events"] == 1
    assert {data.manifest["vectors"][mode]["present"] for mode in ("image", "text")} == {0}


def test_favor_rules(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule, favors in {"cart": 2, "purchase": 1, "cart_or_purchase": 3}.items():
        data = prepared(raw, "--favor-rule", rule)
        table1 = data.manifest["table1"]
        assert (table1["clicks_per_user"], table1["favors_per_user"]) == (12, favors)
    assert main(["retailrocket", "--raw", str(raw), "--favor-rule", "view"]) == 2
    assert "no favor rule 'view'" in capsys.readouterr().err


def test_an_item_has_its_last_category_and_the_parent_of_that(raw: Path) -> None:
    data = prepared(raw)
    table = pq.read_table(data.folder / "items.parquet").to_pydict()
    of = {name: place for place, name in enumerate(table["item"])}
    wanted = {"7": "1338", "8": "555", "9": "1001", "10": "1002", "0": None}
    found = {name: table["category"][of[name]] or None for name in wanted}
    assert found == wanted
    parent = data.array("field_parent")
    codes = [int(parent[1 + of[name]]) for name in ("9", "7", "8", "10", "0")]
    assert codes == [1, 2, 3, 0, 0]  # 40, 41, 42, none, none
    told = data.manifest["item_files"]["item_properties"]
    assert (told["wrong number of fields"], told["unreadable"]) == (1, 0)
    assert set(table["title"]) == {None}


def test_duplicates_and_unknown_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "raw", rows()[0] + "1433224214165,3,wish,4,\n")
    ledger = prepared(raw).manifest["ledger"]
    assert ledger["selected"]["duplicates"] == 1
    assert ledger["dropped"] == {"unknown action 'wish'": 1}
    other = write(tmp_path / "raw2", "".join(row.replace("view", "click") for row in rows()))
    assert main(["retailrocket", "--raw", str(other), "--data-dir", str(tmp_path / "data2")]) == 2
    assert "have an unknown action 'click'" in capsys.readouterr().err


def test_an_archive_and_no_properties(raw: Path) -> None:
    expected = prepared(raw).manifest["table1"]
    with zipfile.ZipFile(raw / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(raw / "events.csv", "events.csv")
    for path in raw.glob("*.csv"):
        path.unlink()
    data = prepared(raw)
    assert data.manifest["table1"] == expected
    assert data.manifest["fields"] == {}
