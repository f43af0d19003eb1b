"""UIMC 2018 from made-up raw bytes to a prepared set; each trap of the format has a test that names it."""

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.data import kuairand, kuairec, kuaishou, members, retailrocket
from harness.data.dataset import Dataset
from harness.data.kuaishou import impossible_favors, interactions, parsed_faces
from harness.data.word_ids import hashed, hasher
from harness.prepare import main
from tests.harness.data.logs import CLICK, FAVOR

USERS, PHOTOS, CLICKS = 12, 150, 14
CLOCK = 761_000_000_000
Row = tuple[int, int, int, int, int, int, int, int]


def photo(user: int, step: int) -> int:
    return 501 + (user * 13 + step) % PHOTOS


def impressions() -> list[Row]:
    """Twelve users: 14 clicks, a like on the 4th and the 10th, a follow on the 6th, 14 without a click."""
    rows: list[Row] = []
    for user in range(USERS):
        number = 11 + 3 * user
        for step in range(CLICKS):
            like, follow = int(step in (3, 9)), int(step == 5)
            playing = (15 if step % 4 == 1 else 30) if step % 2 else 4
            rows.extend([
                (number, photo(user, step), 1, like, follow, CLOCK + 10 * step, playing, 15),
                (number, photo(user, step + 60), 0, 0, 0, CLOCK + 10 * step + 5, 0, 11),
            ])  # fmt: skip
    return rows


def lines(rows: list[Any]) -> bytes:
    return b"".join("\t".join(map(str, row)).encode() + b"\n" for row in rows)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def cover(number: int) -> np.ndarray:
    return np.full((1, 2048), number / 1000, dtype=np.float32)


def write(folder: Path, rows: list[Row], shuffle: bool = True) -> Path:
    """A folder of the release's files in their exact form."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(0).permutation(len(rows)) if shuffle else range(len(rows))
    (folder / "train_interaction.txt").write_bytes(lines([rows[place] for place in order]))
    (folder / "test_interaction.txt").write_bytes(
        b"11\t7600001\t761120000001\t12\n11\t7600002\t761120000002\t8\n14\t7600001\t761121000000\t12\n"
    )
    photos = sorted({row[1] for row in rows})
    texts = {number: f"{number},7,7,275001" for number in photos}
    texts |= {502: "0", 503: "0,58,9", 504: "58,9"}
    (folder / "train_text.txt").write_bytes(lines(list(texts.items())))
    faces = {501: "[[0.0413, 1, 24, 61]]", 503: "[[0.2011, 0, 19, 70], [0.1002, 1, 33, 48]]", 504: "0",
             505: "[[0.12, 1, 41, 55], [0.11, 1, 39, 52], [0.1, 1, 40, 60]]"}  # fmt: skip
    (folder / "train_face.txt").write_bytes(lines(list(faces.items())))
    with zipfile.ZipFile(folder / "final_visual_train.zip", "w") as archive:
        archive.mkdir("final_visual_train")
        for number in photos:
            if number != 507:
                archive.writestr(f"final_visual_train/{number}", npy(cover(number)))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write(tmp_path / "raw", impressions())


def manifest(data: Dataset) -> dict[str, Any]:
    return dict(data.manifest)


def prepared(raw: Path, *more: str) -> Dataset:
    place = raw.parent / "data"
    command = ["kuaishou", "--raw", str(raw), "--data-dir", str(place), *more]
    assert main(command) == 0, command
    return Dataset.open(place, "kuaishou")


def refused(raw: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line for the user; nothing is prepared."""
    place = raw.parent / "data"
    assert main(["kuaishou", "--raw", str(raw), "--data-dir", str(place), *more]) == 2
    assert not (place / "kuaishou").exists()
    return capsys.readouterr().err.splitlines()[-1]


def item_rows(data: Dataset) -> dict[str, int]:
    """Row of each photo by its raw number; row 0 is padding."""
    names = pq.read_table(data.folder / "items.parquet")["item"].to_pylist()
    return {name: place for place, name in enumerate(names, 1)}


def events(data: Dataset, user: int) -> list[tuple[str, int, int]]:
    """Photo, behaviour, time of a user's events in order."""
    names = {row: name for name, row in item_rows(data).items()}
    begin, end = data.array("offsets")[[user, user + 1]].tolist()
    columns = (
        data.array(f"event_{name}")[begin:end].tolist() for name in ("item", "behaviour", "time")
    )
    return [(names[item], behaviour, time) for item, behaviour, time in zip(*columns, strict=True)]


def own_notes(data: Dataset) -> dict[str, int]:
    """The ledger's notes without the plain counts."""
    notes = manifest(data)["ledger"]["notes"]
    return {name: count for name, count in notes.items() if not name.startswith("rows ")}


def test_from_raw_bytes_to_a_prepared_set(raw: Path) -> None:
    data = prepared(raw)
    table1 = manifest(data)["table1"]
    assert (table1["users"], table1["clicks_per_user"], table1["favors_per_user"]) == (
        USERS,
        CLICKS,
        2,
    )
    assert manifest(data)["source"] == "kuaishou"
    users = pq.read_table(data.folder / "users.parquet")["user"].to_pylist()
    assert users == [str(11 + 3 * user) for user in range(USERS)]
    assert set(manifest(data)["raw_files"]) == {
        "train_interaction.txt", "train_text.txt", "directory of final_visual_train.zip",
    }  # fmt: skip
    assert not list((raw.parent / "data").glob(".*"))


def test_rows_are_not_sorted_by_time_and_the_clock_has_12_digits(raw: Path) -> None:
    own = events(prepared(raw), 2)
    times = [time for _, _, time in own]
    assert times == sorted(times)
    assert times[0] == CLOCK
    assert [name for name, behaviour, _ in own if behaviour == CLICK] == [
        str(photo(2, step)) for step in range(CLICKS)
    ]


def test_equal_times_keep_their_order_in_the_file(tmp_path: Path) -> None:
    rows = [(*row[:5], CLOCK, *row[6:]) for row in impressions() if row[0] == 11]
    rows += [row for row in impressions() if row[0] != 11]
    own = events(prepared(write(tmp_path / "raw", rows, shuffle=False)), 0)
    assert [name for name, behaviour, _ in own if behaviour == CLICK] == [
        str(photo(0, step)) for step in range(CLICKS)
    ]


def test_impressions_without_click_never_become_clicks(raw: Path) -> None:
    data = prepared(raw)
    shown_alone = {str(row[1]) for row in impressions() if row[0] == 11 and not row[2]}
    assert not shown_alone & {name for name, _, _ in events(data, 0)}
    ledger = manifest(data)["ledger"]
    assert ledger["rows"] == 2 * USERS * CLICKS
    assert ledger["dropped"] == {"impression without click, like or follow": USERS * CLICKS}


def test_a_row_that_is_click_and_like_is_a_click_and_then_a_favor(raw: Path) -> None:
    own = events(prepared(raw), 0)
    liked = str(photo(0, 3))
    assert own[3:6] == [
        (liked, CLICK, CLOCK + 30), (liked, FAVOR, CLOCK + 30), (str(photo(0, 4)), CLICK, CLOCK + 40),
    ]  # fmt: skip


def test_favor_rules(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    favors = {}
    for rule in ("like", "like_or_follow", "finished_play"):
        data = prepared(raw, "--favor-rule", rule)
        favors[rule] = manifest(data)["table1"]["favors_per_user"]
        assert manifest(data)["table1"]["clicks_per_user"] == CLICKS
        assert manifest(data)["favor_rule"]["name"] == rule
    assert favors == {"like": 2, "like_or_follow": 3, "finished_play": 7}
    assert main(["kuaishou", "--raw", str(raw), "--favor-rule", "likes"]) == 2
    assert "no favor rule 'likes'; did you mean 'like'?" in capsys.readouterr().err


def test_the_survey_prints_each_rule_beside_the_papers_row_and_what_is_impossible(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["kuaishou", "--raw", str(raw), "--data-dir", str(raw.parent / "data"), "--survey"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert not (raw.parent / "data" / "kuaishou").exists()
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:] for line in said.splitlines() if "|" in line
    }
    assert [cell.strip() for cell in rows["the paper's Table 1"][:5]] == [
        "22,793", "618,529", "5,852,725", "255.02", "40.96",
    ]  # fmt: skip
    wanted = {"like: like = 1": 2, "like_or_follow: like = 1 or follow = 1": 3,
              "finished_play: click = 1 and playing_time >= duration_time > 0": 7}  # fmt: skip
    for name, favors in wanted.items():
        cells = [cell.strip() for cell in rows[name][:5]]
        assert cells == ["12", "150", str(12 * (14 + favors)), "14.00", f"{favors}.00"]
    assert "nearest: finished_play" in said
    assert "22,793 users x (255.02 + 40.96) = 6,746,272, not 5,852,725" in said
    assert (
        "22,793 x 40.96 = 933,601 favors; this log has 24 likes, 12 follows and 84 finished" in said
    )
    assert "neither likes nor likes and follows together can be the paper's favors" in said
    assert main([*command, "--favor-rule", "like"]) == 0
    assert "finished_play" not in capsys.readouterr().out
    assert main([*command, "--favor-rule", "lik"]) == 2
    assert "no favor rule 'lik'; did you mean 'like'?" in capsys.readouterr().err


def test_help_names_the_favor_rules_of_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    signals = {name: source.SIGNALS.rules for name, source in
               (("kuaishou", kuaishou), ("kuairand", kuairand), ("kuairec", kuairec))}  # fmt: skip
    for source, rules in {**signals, "retailrocket": retailrocket.RULES}.items():
        assert f"{source} {', '.join(rules)} " in said


def test_enough_likes_are_not_called_impossible() -> None:
    said = impossible_favors({"rows with like = 1": 933_602})
    assert "this log has 933,602 likes" in said
    assert "neither" not in said


def test_absurd_playing_times_and_videos_without_duration(tmp_path: Path) -> None:
    rows = impressions()
    rows[0] = (*rows[0][:6], 1_912_441, 15)  # 22 days: finished, and noted
    rows[2] = (*rows[2][:6], 9, 0)  # no duration: cannot be finished
    rows[1] = (*rows[1][:6], 99, 11)  # played, but not clicked: an impression
    data = prepared(write(tmp_path / "raw", rows), "--favor-rule", "finished_play")
    own = {name for name, behaviour, _ in events(data, 0) if behaviour == FAVOR}
    assert str(rows[0][1]) in own
    assert not own & {str(rows[1][1]), str(rows[2][1])}
    assert own_notes(data) == {
        "playing_time above a day": 1, "clicked, but duration_time is 0 or unreadable": 1,
    }  # fmt: skip


def test_a_like_without_a_click_is_a_favor_alone_and_noted(tmp_path: Path) -> None:
    rows = impressions()
    rows[1] = (*rows[1][:2], 0, 1, 0, *rows[1][5:])
    data = prepared(write(tmp_path / "raw", rows))
    assert [one for one in events(data, 0) if one[0] == str(rows[1][1])] == [
        (str(rows[1][1]), FAVOR, rows[1][5])
    ]
    assert own_notes(data) == {"like or follow without a click": 1}


def test_exact_duplicates_and_unreadable_values_are_counted(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", impressions())
    bad = b"11\t501\tx\t0\t0\t761000000123\t0\t11\n11\t501\t2\t0\t0\t761000000123\t0\t11\n"
    bad += b"11\t501\t1\t0\t0\tsoon\t0\t11\n11\t\t1\t0\t0\t761000000123\t0\t11\n\n"
    again = lines([impressions()[0]])
    with (raw / "train_interaction.txt").open("ab") as file:
        file.write(bad + again)
    data = prepared(raw)
    ledger = manifest(data)["ledger"]
    assert ledger["dropped"] == {
        "impression without click, like or follow": USERS * CLICKS,
        "click, like or follow is neither 0 nor 1": 2,
        "unreadable time": 1, "unreadable item": 1, "blank line": 1,
    }  # fmt: skip
    assert ledger["selected"]["duplicates"] == 1
    assert manifest(data)["table1"]["clicks_per_user"] == CLICKS


@pytest.mark.parametrize(
    ("file", "fields"), [("train_interaction.txt", 8), ("test_interaction.txt", 4)]
)
@pytest.mark.parametrize("where", ["first", "later"])
@pytest.mark.parametrize("change", [1, -1])
def test_another_number_of_fields_fails_clearly(
    raw: Path, capsys: pytest.CaptureFixture[str], file: str, fields: int, where: str, change: int
) -> None:
    all_lines = (raw / file).read_bytes().splitlines(keepends=True)
    place = 0 if where == "first" else 2
    line = all_lines[place].rstrip(b"\n")
    all_lines[place] = (line + b"\t1" if change > 0 else line.rpartition(b"\t")[0]) + b"\n"
    (raw / file).write_bytes(b"".join(all_lines))
    said = refused(raw, capsys)
    assert f"'{file}'" in said
    assert f"{fields} fields" in said if where == "first" else f"{fields + change} fields" in said


def test_the_test_file_has_no_labels_and_is_reported_but_not_used(raw: Path) -> None:
    data = prepared(raw)
    assert manifest(data)["test_interaction.txt"] == {"rows": 3, "used": False}
    assert "7600001" not in item_rows(data)
    (raw / "test_interaction.txt").unlink()
    assert manifest(prepared(raw))["test_interaction.txt"] == {"rows": None, "used": False}


def test_a_lone_zero_is_no_text_and_a_zero_in_a_list_is_a_word(raw: Path) -> None:
    data = prepared(raw)
    text, row = data.array("text"), item_rows(data)
    assert not text[row["502"]].any()
    assert not data.array("text_present")[row["502"]]
    wanted = hashed(["0 58 9", "58 9"], hasher())
    np.testing.assert_array_equal(text[[row["503"], row["504"]]], wanted)
    assert (wanted[0] != wanted[1]).any()
    told = manifest(data)["item_files"]["train_text.txt"]
    assert (told["no text"], told["words"], told["no line"]) == (1, data.items - 1, 0)


def test_word_ids_are_a_named_stand_in_for_text_and_there_is_no_title(raw: Path) -> None:
    data = prepared(raw)
    row = item_rows(data)
    assert manifest(data)["vectors"]["text"]["width"] == 512
    assert "signed feature hashing of word-id counts" in manifest(data)["text"]
    assert "not CLIP" in manifest(data)["text"]
    length = np.linalg.norm(data.array("text")[1:], axis=1)
    np.testing.assert_allclose(length[data.array("text_present")[1:]], 1, rtol=1e-6)
    repeated = hashed(["505 7 7 275001"], hasher())[0]  # 7 stands twice: its weight is double
    np.testing.assert_array_equal(data.array("text")[row["505"]], repeated)
    assert sorted(np.abs(repeated[repeated != 0]) * 6**0.5) == pytest.approx([1, 1, 2])
    assert set(pq.read_table(data.folder / "items.parquet")["title"].to_pylist()) == {None}


def test_vectors_of_shape_1_2048_under_bare_names_with_a_folder_entry(raw: Path) -> None:
    data = prepared(raw)
    image, row = data.array("image"), item_rows(data)
    assert image.shape == (data.items + 1, 2048)
    for number in (501, 555, 640):
        np.testing.assert_array_equal(image[row[str(number)]], cover(number)[0])
    assert not image[row["507"]].any()  # has no member: missing, not an error
    told = manifest(data)["item_files"]["final_visual_train.zip"]
    assert (told["folder entries"], told["photos without a member"], told["damaged"]) == (1, 1, 0)
    assert told["read"] == data.items - 1


def test_the_archive_is_neither_opened_by_zipfile_nor_read_beyond_the_kept_photos(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    own = members._member

    def watched(file: int, place: int, *more: int) -> Any:
        asked.append(place)
        return own(file, place, *more)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("7.6 million members would take 5 GB")

    with zipfile.ZipFile(raw / "final_visual_train.zip", "a") as archive:
        for number in range(9000, 9050):  # nobody clicked these
            archive.writestr(f"final_visual_train/{number}", npy(cover(number)))
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    monkeypatch.setattr(members, "_member", watched)
    monkeypatch.setattr(members, "IN_MEMORY", 0)
    data = prepared(raw)
    assert len(asked) == data.items - 1
    assert asked == sorted(asked)
    np.testing.assert_array_equal(data.array("image")[item_rows(data)["555"]], cover(555)[0])


@pytest.mark.parametrize(
    "layout", ["train and test folders", "unpacked", "gz and zip", "preliminary"]
)
def test_where_the_files_may_lie(tmp_path: Path, layout: str, raw: Path) -> None:
    expected = prepared(raw).data_sha256
    if layout == "train and test folders":
        for name in ("train", "test"):
            (raw / name).mkdir()
        for path in list(raw.glob("*.*")):
            path.rename(raw / ("test" if path.name.startswith("test") else "train") / path.name)
    if layout == "unpacked":
        with zipfile.ZipFile(raw / "final_visual_train.zip") as archive:
            archive.extractall(raw)
        (raw / "final_visual_train.zip").unlink()
    if layout == "gz and zip":
        (raw / "train_text.txt.gz").write_bytes(
            gzip.compress((raw / "train_text.txt").read_bytes())
        )
        (raw / "train_text.txt").unlink()
        with zipfile.ZipFile(raw / "train_interaction.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(raw / "train_interaction.txt", "train_interaction.txt")
        (raw / "train_interaction.txt").unlink()
    if layout == "preliminary":
        (raw / "final_visual_train.zip").rename(raw / "preliminary_visual_train.zip")
    assert prepared(raw).data_sha256 == expected


def test_faces_are_id_fields_when_asked_for_and_only_photos_with_a_face_have_a_line(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert manifest(prepared(raw))["fields"] == {}
    data = prepared(raw, "--fields", "faces,face_gender")
    row = item_rows(data)
    faces, gender = data.array("field_faces"), data.array("field_face_gender")
    wanted = {"501": ("1", "male"), "502": ("0", ""), "503": ("2", "both"), "504": ("0", ""),
              "505": ("3+", "male")}  # fmt: skip
    counts, genders = ["0", "1", "2", "3+"], ["", "both", "male"]
    for name, (count, who) in wanted.items():
        assert faces[row[name]] == 1 + counts.index(count)
        assert gender[row[name]] == genders.index(who)
    assert main(["kuaishou", "--raw", str(raw), "--fields", "face"]) == 2
    assert "no field 'face'; did you mean 'faces'?" in capsys.readouterr().err


def test_faces_as_the_file_writes_them() -> None:
    assert parsed_faces("[[0.0413, 1, 24, 61]]") == [[0.0413, 1, 24, 61]]
    assert parsed_faces("0") == []
    for strange in ("[1, 2]", "[[1, 2]]", "face", "", "{}"):
        assert parsed_faces(strange) is None


def test_without_texts_and_vectors_the_set_says_so(raw: Path) -> None:
    (raw / "train_text.txt").unlink()
    (raw / "final_visual_train.zip").unlink()
    data = prepared(raw)
    assert manifest(data)["vectors"]["image"]["present"] == 0
    assert "holds no usable final_visual_train.zip" in manifest(data)["image"]
    assert "holds no usable train_text.txt" in manifest(data)["text"]


def test_a_folder_without_the_log_gets_one_line(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "train_interaction.txt").unlink()
    assert f"'{raw}' holds no train_interaction.txt" in refused(raw, capsys)
    assert "no folder" in refused(raw / "nowhere", capsys)


def test_options_that_mean_nothing_here(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--months belongs to" in refused(raw, capsys, "--months", "2018-05")


CARD = (
    b"11\t501\t0\t0\t0\t761000000123\t0\t11\n"
    b"11\t502\t1\t0\t0\t761000004123\t9\t17\n"
    b"11\t777\t1\t1\t0\t761000009999\t30\t15\n"
    b"29\t501\t1\t0\t1\t761100000000\t2\t11\n"
    b"29\t9000\t0\t0\t0\t761050000000\t0\t0\n"
)


def test_five_made_up_lines_as_events(raw: Path, make: Callable[[bytes], Any]) -> None:
    got = make(CARD)
    assert got.user.tolist() == [11, 11, 29]
    assert got.item.tolist() == [502, 777, 501]
    assert got.kind.tolist() == [1, 1 + 2 + 8, 1 + 4]
    assert got.time.tolist() == [761000004123, 761000009999, 761100000000]
    assert got.dropped == {"impression without click, like or follow": 2}


@pytest.fixture
def make(raw: Path) -> Callable[[bytes], Any]:
    log = interactions(raw)
    return lambda block: log.decode(block, log.texts[0], True)
