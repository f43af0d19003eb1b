"""Taobao's reader on made-up rows in the exact raw bytes."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.data.dataset import Dataset
from harness.prepare import main

ROWS = [
    b"1,2268318,2520377,pv,1511544070\n",
    b"1,2333346,2520771,fav,1511561733\n",
    b"1,2576651,149192,cart,1511572885\n",
    b"1,3830808,4181361,buy,1511593493\n",
    b"1,230380,411153,pv,1505059205\n",  # 2017-09-11: before the stated days
    b"1,230380,411153,pv,-2134949234\n",
    b"1,230380,411153,pv,2037000000\n",
    b"1,230380,411153,pv,1512316799\n",  # the last second of 2017-12-03 in China
    b"1,230380,411153,pv,1512316800\n",
    b"1,230380,411153,pv,1511539200\n",  # the first second of 2017-11-25 there
]


def rows() -> list[bytes]:
    filler = []
    for user in range(2, 7):
        for step in range(25):
            item, what = 1_000 + 25 * user + step, "fav" if step % 5 == 4 else "pv"
            filler.append(f"{user},{item},{step % 4 + 9},{what},{1511600000 + step}\n".encode())
    return [*ROWS, b"1,1052,9,pv,1511600000\n", *filler]


def run(folder: Path, *more: str) -> int:
    arguments = [
        "taobao",
        "--raw",
        str(folder),
        "--data-dir",
        str(folder / "data"),
        "--name",
        "made",
    ]
    return main([*arguments, *more])


def test_rows_outside_the_nine_days_in_china_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "UserBehavior.csv").write_bytes(b"".join(rows()))
    assert run(tmp_path) == 0
    data = Dataset.open(tmp_path / "data", "made")
    ledger = data.manifest["ledger"]
    assert ledger["rows"] == len(rows())
    assert ledger["dropped"] == {"action cart": 1, "action buy": 1, "unreadable time": 1}
    assert ledger["selected"]["outside the time range"] == 3
    begin, end = data.array("offsets")[:2]
    assert data.array("event_time")[begin:end].tolist() == [
        1511539200, 1511544070, 1511561733, 1511600000, 1512316799,
    ]  # fmt: skip
    assert data.array("event_behaviour")[begin:end].tolist() == [1, 1, 2, 1, 1]
    names = pd.read_parquet(data.folder / "items.parquet")
    assert names.set_index("item").loc["230380", "category"] == "411153"
    codes = data.array("field_category")
    category = ["", *names["category"]]
    assert len(set(zip(codes.tolist(), category, strict=True))) == len(set(category))
    order = np.argsort(codes[1:], kind="stable")
    numbers = names["category"].astype(int).to_numpy()[order]
    assert (np.diff(numbers) >= 0).all()  # codes stand in the order of the numbers


def test_days_may_be_asked_for_and_the_archive_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "UserBehavior.csv.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("UserBehavior.csv", b"".join(rows()))
    assert run(tmp_path, "--from", "2017-09-11", "--to", "2017-12-03") == 0
    data = Dataset.open(tmp_path / "data", "made")
    assert data.array("event_time").min() == 1505059205
    assert set(data.manifest["raw_files"]) == {"UserBehavior.csv.zip"}


def test_another_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "UserBehavior.csv").write_bytes(b"1,2,3,click,4\n" * 9)
    assert run(tmp_path) == 2
    assert "have an unknown action 'click'" in capsys.readouterr().err
    (tmp_path / "UserBehavior.csv").write_bytes(b"1,2,3\n")
    assert run(tmp_path) == 2
    assert "has not the 5 fields user_id, item_id" in capsys.readouterr().err
