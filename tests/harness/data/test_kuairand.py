"""KuaiRand from made-up raw bytes to a prepared set."""

import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.data.dataset import Dataset
from harness.prepare import main
from tests.harness.data.logs import CLICK, FAVOR

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
BASIC = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag\n"
)
USERS, VIDEOS = 12, 168
FIRST = 1_649_400_000_000


def video(user: int, step: int) -> int:
    return (14 * user + step) % VIDEOS


def row(user: int, step: int, seen: int, **flags: int) -> str:
    on = {"click": seen, "like": 0, "follow": 0, "comment": 0, "forward": 0, "long": 0} | flags
    return (
        f"{user},{video(user, step)},20220408,1600,{FIRST + 86_400_000 * step + user},{on['click']},{on['like']},"
        f"{on['follow']},{on['comment']},{on['forward']},0,{on['long']},5332,11450,0,0,0,0,1\n"
    )


def rows(user: int) -> list[str]:
    """14 clicks, likes on the 5th and 9th, a follow, a comment, four long views, 6 videos only shown."""
    found = [
        row(user, step, 1, like=int(step in (4, 8)), follow=int(step == 6), comment=int(step == 7),
            long=int(step > 9))
        for step in range(14)
    ]  # fmt: skip
    return found + [row(user, step, 0) for step in range(14, 20)]


def files() -> dict[str, str]:
    early = [line for user in range(USERS) for line in rows(user)[:8]]
    late = [line for user in reversed(range(USERS)) for line in rows(user)[8:]]
    basics = [
        f'{one},{one % 9},NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,98,4,"{one % 5},65"\n'
        for one in range(VIDEOS - 1)
    ]
    captions = [
        "3,UNKNOWN,UNKNOWN,9\n", "4,,,9\n", '5,"两行,\n标题",封面,9\n', "5,again,x,9\n", "rest of a caption\n",
        *(f"{one},视频 {one},封面,17200\n" for one in range(6, VIDEOS)),
    ]  # fmt: skip
    return {
        "log_standard_4_08_to_4_21_1k.csv": HEADER + "".join(early),
        "log_standard_4_22_to_5_08_1k.csv": HEADER + "".join(late),
        "log_random_4_22_to_5_08_1k.csv": HEADER + row(0, 99, 1, like=1),
        "video_features_basic_1k.csv": BASIC + "".join(basics),
        "kuairand_video_captions.csv": "final_video_id,caption,show_cover_text,duration\n"
        + "".join(captions),
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "KuaiRand-1K"
    (folder / "data").mkdir(parents=True)
    for name, text in files().items():
        place = folder if "captions" in name else folder / "data"
        (place / name).write_text(text, encoding="utf8")
    return folder


def prepared(raw: Path, *more: str) -> Dataset:
    place = raw.parent / "data"
    assert main(["kuairand", "--raw", str(raw), "--data-dir", str(place), *more]) == 0
    return Dataset.open(place, "kuairand")


def test_from_raw_bytes_to_a_prepared_set(raw: Path) -> None:
    data = prepared(raw)
    table1 = data.manifest["table1"]
    assert (table1["users"], table1["items"]) == (USERS, VIDEOS)
    assert (table1["clicks_per_user"], table1["favors_per_user"]) == (14, 2)
    ledger = data.manifest["ledger"]
    assert ledger["rows"] == 20 * USERS
    assert ledger["dropped"] == {"shown, and nothing done": 6 * USERS}
    begin, end = data.array("offsets")[[3, 4]].tolist()
    times = data.array("event_time")[begin:end]
    assert (times[1:] >= times[:-1]).all()
    assert times[0] == FIRST + 3
    behaviours = data.array("event_behaviour")[begin:end].tolist()
    assert behaviours[3:7] == [CLICK, CLICK, FAVOR, CLICK]
    assert data.manifest["vectors"]["image"]["present"] == 0
    assert set(data.manifest["raw_files"]) == set(files()) - {"log_random_4_22_to_5_08_1k.csv"}


def test_captions_authors_and_tags(raw: Path) -> None:
    data = prepared(raw)
    table = pq.read_table(data.folder / "items.parquet").to_pydict()
    of = {name: place for place, name in enumerate(table["item"])}
    titles = [table["title"][of[name]] for name in ("3", "4", "5", "20", "1")]
    assert [title or "" for title in titles] == ["", "", "两行, 标题", "视频 20", ""]
    assert table["category"][of["7"]] == "2,65"
    authors = data.array("field_author")
    assert authors[1 + of["2"]] == authors[1 + of["11"]] != authors[1 + of["3"]]
    assert authors[1 + of[str(VIDEOS - 1)]] == 0  # not in the features: unknown
    assert data.manifest["item_files"]["kuairand_video_captions.csv"] == {
        "records": VIDEOS - 1, "of the items": VIDEOS - 3, "listed twice": 1, "without an item number": 1,
    }  # fmt: skip


def test_favor_rules(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"like": 2, "like_or_follow": 3, "any_act": 4, "long_view": 4}
    for rule, favors in rules.items():
        data = prepared(raw, "--favor-rule", rule)
        assert data.manifest["table1"]["favors_per_user"] == favors
        assert data.manifest["favor_rule"]["name"] == rule
    assert main(["kuairand", "--raw", str(raw), "--favor-rule", "hate"]) == 2
    assert "no favor rule 'hate'" in capsys.readouterr().err


def test_days_are_those_of_china(raw: Path) -> None:
    # the first events are at 06:40 UTC of 8 April plus 16 h below: already the 9th in China
    for path in (raw / "data").glob("log_standard*"):
        lines = path.read_text().splitlines(keepends=True)
        later = [line.replace(found, str(int(found) + 16 * 3_600_000))
                 for line in lines[1:] for found in [line.split(",")[4]]]  # fmt: skip
        path.write_text("".join(lines[:1] + later))
    data = prepared(raw, "--from", "2022-04-09", "--to", "2022-04-18")
    assert data.manifest["table1"]["clicks_per_user"] == 10
    data = prepared(raw, "--from", "2022-04-08", "--to", "2022-04-18")
    assert data.manifest["table1"]["clicks_per_user"] == 10


def test_parts_an_archive_and_another_order_of_columns(raw: Path, tmp_path: Path) -> None:
    expected = prepared(raw).data_sha256
    folder = tmp_path / "other"
    folder.mkdir()
    with tarfile.open(folder / "KuaiRand-27K.tar.gz", "w:gz") as archive:
        for name, text in files().items():
            if "standard" in name:
                lines = text.splitlines(keepends=True)[1:]
                parts = [lines[: len(lines) // 2], lines[len(lines) // 2 :]]
                contents = {
                    name.replace("1k", f"27k_part{part + 1}"): HEADER + "".join(some)
                    for part, some in enumerate(parts)
                }
            else:
                contents = {name.replace("1k", "27k"): text}
            for member, content in contents.items():
                entry = tarfile.TarInfo(f"KuaiRand-27K/data/{member}")
                entry.size = len(content.encode())
                archive.addfile(entry, io.BytesIO(content.encode()))
    assert prepared(folder).data_sha256 == expected


def test_what_is_missing_or_mixed_gets_one_line(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        assert main(["kuairand", "--raw", str(raw), "--data-dir", str(raw.parent / "data")]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    log = raw / "data" / "log_standard_4_08_to_4_21_1k.csv"
    (raw / "data" / "log_standard_4_08_to_4_21_pure.csv").write_text(HEADER)
    assert "logs of the versions 1k, pure" in said()
    (raw / "data" / "log_standard_4_08_to_4_21_pure.csv").unlink()
    log.write_text(HEADER.replace("is_like", "is_liked"))
    assert "has no column 'is_like'" in said()
    for path in (raw / "data").glob("log_*"):
        path.unlink()
    assert "holds no log such as log_standard" in said()


def test_strange_flags_and_short_lines_are_counted(raw: Path) -> None:
    log = raw / "data" / "log_standard_4_08_to_4_21_1k.csv"
    log.write_text(log.read_text() + row(1, 50, 7) + "1,2,3\n")
    dropped = prepared(raw).manifest["ledger"]["dropped"]
    assert (dropped["a flag is neither 0 nor 1"], dropped["wrong number of fields"]) == (1, 1)
