"""Readers and command line on made-up files of the real formats, good and bad."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import fingerprint
from harness.config import ProtocolConfig
from harness.data.dataset import Dataset
from harness.data.demo import TWINS
from harness.data.files import DEMO
from harness.prepare import main
from tests.harness.data.logs import CLICK, FAVOR

PROTOCOL = ProtocolConfig()
ITEMS = 140


def log(
    click: str = "click", favor: str = "favor", ids: Callable[[int], object] = lambda item: item
) -> pd.DataFrame:
    """Six users of two favors each; the last user favors at once and is not kept."""
    rows = [
        (900 - user, ids((7 * user + 5 * step) % ITEMS + 1), favor if step in (3, 5) else click,
         1_458_000_000 + 100 * step + user)
        for step in range(6) for user in range(5)
    ]  # fmt: skip
    rows.append((1000, ids(1), favor, 1_458_000_000))
    return pd.DataFrame(rows, columns=["user", "item", "behavior", "timestamp"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table with items and vectors in parquet and csv."""
    frame = log()
    frame.to_parquet(tmp_path / "log.parquet")
    frame.to_csv(tmp_path / "log.csv", index=False)
    items = pd.DataFrame(
        {
            "item": range(1, ITEMS + 1),
            "title": [None if item == 3 else f"item {item}" for item in range(1, ITEMS + 1)],
            "poster": "http://pictures/x.jpg",
            "brand": [None if item % 10 == 0 else item % 3 for item in range(1, ITEMS + 1)],
        }
    )
    items.to_parquet(tmp_path / "items.parquet")
    items.to_csv(tmp_path / "items.csv", index=False)
    vectors = np.random.default_rng(0).standard_normal((ITEMS, 9)).astype(np.float16)
    vectors[1] = 0
    np.save(tmp_path / "image.npy", vectors)
    np.save(tmp_path / "text.npy", vectors[:, :4].astype(np.float64))
    return tmp_path


def prepared(folder: Path, *arguments: str) -> Dataset:
    """Run the command line in a folder and open what it made."""
    name = "made"
    if main([*arguments, "--name", name, "--data-dir", str(folder / "data")]):
        raise AssertionError(arguments)
    return Dataset.open(folder / "data", name)


def table(folder: Path, kind: str, *more: str) -> list[str]:
    return [
        "table", "--interactions", str(folder / f"log.{kind}"),
        "--items", str(folder / f"items.{kind}"), "--image", str(folder / "image.npy"),
        "--text", str(folder / "text.npy"), *more,
    ]  # fmt: skip


def test_parquet_and_csv_give_the_same_set(folder: Path) -> None:
    sets = [
        prepared(folder, *table(folder, kind, "--picture-column", "poster", "--fields", "brand"))
        for kind in ("parquet", "csv")
    ]
    assert sets[0].data_sha256 == sets[1].data_sha256
    data = sets[1]
    assert (data.users, data.items, data.demo) == (5, ITEMS, False)
    assert data.manifest["counts"]["raw_users"] == 6
    assert data.manifest["vectors"]["image"] == {"width": 9, "present": ITEMS - 1}
    assert data.manifest["vectors"]["text"] == {"width": 4, "present": ITEMS - 1}
    assert set(data.manifest["raw_files"]) == {"log.csv", "items.csv", "image.npy", "text.npy"}
    catalogue = data.catalogue(PROTOCOL)
    assert catalogue.fields["brand"][[0, 1, 2, 3, 10]].tolist() == [0, 2, 3, 1, 0]
    names = pd.read_parquet(data.folder / "items.parquet")
    assert names.loc[2, "title"] == ""
    assert names.loc[3, ["item", "title", "picture"]].tolist() == [
        "4", "item 4", "http://pictures/x.jpg",
    ]  # fmt: skip


def test_users_are_numbered_by_value_and_items_keep_the_order_of_their_file(folder: Path) -> None:
    data = prepared(folder, *table(folder, "csv"))
    users = pd.read_parquet(data.folder / "users.parquet")["user"].tolist()
    assert users == ["896", "897", "898", "899", "900"]
    split = data.split(PROTOCOL)
    assert split.test.item.tolist() == [(7 * user + 25) % ITEMS + 1 for user in (4, 3, 2, 1, 0)]
    assert split.events.behaviour[:6].tolist() == [CLICK, CLICK, CLICK, FAVOR, CLICK, FAVOR]


def test_synonyms_are_named_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    frame = log(click="pv", favor="fav", ids=lambda item: f"i{item}")
    frame.loc[len(frame)] = [900, "i1", "cart", 1_458_000_050]
    frame.loc[len(frame)] = [900, "i77", "click", 1_458_000_050]
    wide = pd.DataFrame({"item": [f"i{item}" for item in range(1, ITEMS + 1)]})
    frame.to_csv(tmp_path / "log.tsv", index=False, sep="\t")
    wide.to_csv(tmp_path / "items.csv", index=False)
    data = prepared(
        tmp_path, "table", "--interactions", str(tmp_path / "log.tsv"), "--items",
        str(tmp_path / "items.csv"), "--click", "pv,view", "--favor", "fav", "--ignore", "cart",
    )  # fmt: skip
    assert data.manifest["counts"]["rows_ignored"] == {"cart": 1}
    assert data.manifest["counts"]["interactions"] == 31


DATES = {
    "text": lambda seconds: dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(),
    "plain text": lambda seconds: f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%F %T}",
    "float": float,
    "numbers as text": str,
    "date": lambda seconds: pd.Timestamp(seconds, unit="s"),
    "date with zone": lambda seconds: pd.Timestamp(seconds, unit="s", tz="Asia/Shanghai"),
}


@pytest.mark.parametrize("kind", DATES)
def test_dates_and_numbers_are_the_same_seconds(folder: Path, kind: str) -> None:
    wanted = prepared(folder, *table(folder, "parquet")).data_sha256
    frame = log()
    frame["timestamp"] = frame["timestamp"].map(DATES[kind])
    frame.to_parquet(folder / "log.parquet")
    assert prepared(folder, *table(folder, "parquet")).data_sha256 == wanted


def test_fractions_of_a_second_order_events(folder: Path) -> None:
    frame = log()
    frame["timestamp"] = 7.0 + (frame["timestamp"] % 1000) / 1000
    frame.to_parquet(folder / "log.parquet")
    data = prepared(folder, *table(folder, "parquet"))
    assert data.array("event_time").dtype == np.float64
    wanted = [(7 * user + 25) % ITEMS + 1 for user in (4, 3, 2, 1, 0)]
    assert data.split(PROTOCOL).test.item.tolist() == wanted


def deskdrop_log() -> pd.DataFrame:
    frame = log("VIEW", "LIKE", ids=lambda item: -4_029_704_725_707_465_084 + item)
    frame.columns = ["personId", "contentId", "eventType", "timestamp"]
    frame.loc[5, "eventType"] = "FOLLOW"
    frame.loc[6, "eventType"] = "COMMENT CREATED"
    frame.loc[len(frame) - 2, "eventType"] = "BOOKMARK"
    rows = [(7, -4_029_704_725_707_465_084 + item, "VIEW", item) for item in range(1, 12)]
    extra = pd.DataFrame(rows, columns=frame.columns)
    more = [extra.assign(personId=8 + n, contentId=extra["contentId"] + 11 * n) for n in range(12)]
    for part in more:
        part.loc[10, "eventType"] = "LIKE"
    return pd.concat([frame, *more])


def test_deskdrop_as_published_and_as_converted_agree(tmp_path: Path) -> None:
    published = deskdrop_log()
    published.to_csv(tmp_path / "users_interactions.csv", index=False)
    one = prepared(tmp_path, "deskdrop", "--raw", str(tmp_path))
    assert one.manifest["source"] == "deskdrop"
    assert one.manifest["counts"]["rows_ignored"] == {"FOLLOW": 1, "COMMENT CREATED": 1}
    behaviours = {
        "VIEW": "click", "LIKE": "favor", "BOOKMARK": "favor",
        "FOLLOW": "follow", "COMMENT CREATED": "comment",
    }  # fmt: skip
    converted = published.rename(columns={"personId": "user", "contentId": "item"})
    converted["behavior"] = converted.pop("eventType").map(behaviours)
    converted.astype({"user": str, "item": str}).to_parquet(tmp_path / "interactions.parquet")
    two = prepared(tmp_path, "deskdrop", "--raw", str(tmp_path))
    assert two.manifest["counts"]["rows_ignored"] == {"follow": 1, "comment": 1}
    assert one.data_sha256 == two.data_sha256
    assert one.candidates_sha256(PROTOCOL) == two.candidates_sha256(PROTOCOL)


def ratings() -> list[tuple[int, int, int, int]]:
    return [
        (user, (11 * user + 3 * step) % ITEMS + 1, 1 + (user + step) % 5, 880_000_000 + step // 2)
        for user in range(1, 9)
        for step in range(8)
    ]


def films(item: int) -> str:
    flags = ["1" if genre in (1, item % 19) else "0" for genre in range(19)]
    return "|".join([str(item), f"Café {item} (1995)", "01-Jan-1995", "", "http://x", *flags])


def test_movielens_both_layouts_agree_and_a_favor_follows_its_click(tmp_path: Path) -> None:
    own, atomic = tmp_path / "own", tmp_path / "atomic"
    own.mkdir()
    atomic.mkdir()
    lines = ["\t".join(map(str, row)) for row in ratings()]
    (own / "u.data").write_text("\n".join(lines) + "\n")
    (own / "u.item").write_bytes(
        "".join(films(item) + "\n" for item in range(1, ITEMS + 1)).encode("latin-1")
    )
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (atomic / "ml-100k.inter").write_text("\n".join([header, *lines]) + "\n")
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    rows = [f"{item}\tCafé {item}\t1995\tAction Drama" for item in range(1, ITEMS + 1)]
    (atomic / "ml-100k.item").write_text("\n".join([header, *rows]) + "\n", encoding="utf8")
    one = prepared(tmp_path, "movielens", "--raw", str(own))
    two_raw = prepared(tmp_path, "movielens", "--raw", str(own))
    assert one.data_sha256 == two_raw.data_sha256
    titles = pd.read_parquet(one.folder / "items.parquet")
    assert titles.loc[2, "title"] == "Café 3 (1995)"
    assert titles.loc[2, "category"] == "Action Animation"
    assert "threshold" in one.manifest["favor_rule"]
    two = prepared(tmp_path, "movielens", "--raw", str(atomic))
    assert one.data_sha256 == two.data_sha256
    titles = pd.read_parquet(two.folder / "items.parquet")
    assert titles.loc[2, ["title", "category"]].tolist() == ["Café 3", "Action Drama"]

    liked = sum(rating >= 4 for _, _, rating, _ in ratings())
    assert two.manifest["counts"]["raw_events"] == len(ratings()) + liked
    events = two.split(PROTOCOL).events
    favor = (events.behaviour == FAVOR).nonzero().squeeze(1)
    assert events.item[favor].equal(events.item[favor - 1])
    assert set(events.behaviour[favor - 1].tolist()) == {CLICK}
    times = two.array("event_time")
    np.testing.assert_array_equal(times[favor], times[favor - 1])


def test_bad_ratings_and_films_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["\t".join(map(str, row)) for row in ratings()]
    movies = [films(item) for item in range(1, ITEMS + 1)]
    raw = ["movielens", "--raw", str(tmp_path)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    (tmp_path / "u.item").write_text("\n".join([*movies, movies[0]]), encoding="latin-1")
    assert "u.item lists item '1' twice" in refused(capsys, raw, tmp_path)
    (tmp_path / "u.item").write_text("\n".join(movies), encoding="latin-1")
    (tmp_path / "u.data").write_text("\n".join(["1\t2\tgood\t880000000", *lines]))
    assert "u.data has no rating in row 1" in refused(capsys, raw, tmp_path)
    (tmp_path / "u.data").unlink()
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n")
    (tmp_path / "a.item").write_text("item_id:token\n2\n")
    said = refused(capsys, raw, tmp_path)
    assert "a.inter has no column 'rating'. Its columns" in said  # no option could name another


def test_demo_knobs_reach_both_twins_and_the_manifest(tmp_path: Path) -> None:
    arguments = ["demo", "--name", "noisy", "--data-dir", str(tmp_path), "world.users=60"]
    knobs = ["world.accident=0.35", "world.nuisance=3", "world.seed=7", "kuaishou.cold=0.5"]
    assert main([*arguments, *knobs]) == 0
    seen = {}
    for twin in ("rec_tmall", "kuaishou"):
        manifest = Dataset.open(tmp_path, f"noisy_{twin}").manifest
        assert manifest["demo"] is True
        seen[twin] = manifest["world"]
        assert seen[twin]["accident"] == 0.35
        assert seen[twin]["nuisance"] == 3.0
        assert manifest["seed"] == seen[twin]["seed"]
        assert (tmp_path / f"noisy_{twin}.truth.npz").is_file()
    assert (seen["rec_tmall"]["seed"], seen["kuaishou"]["seed"]) == (7, 8)
    assert (seen["rec_tmall"]["cold"], seen["kuaishou"]["cold"]) == (0.22, 0.5)


def test_what_was_written_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(folder, *table(folder, "csv"))
    said = capsys.readouterr().out
    assert "5 users, 140 items, 30 interactions (4.00 clicks and 2.00 favors a user)" in said
    assert "image 9-d (139 items), text 4-d (139 items)" in said


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "missing column": (
        lambda frame: frame.rename(columns={"behavior": "behaviour"}),
        "no column 'behavior'; nearest is 'behaviour' (use it with --behavior-column behaviour)",
    ),
    "NaN time": (
        lambda frame: frame.assign(timestamp=frame["timestamp"].where(frame.index != 6)),
        "the timestamp of user '899' in row 7 is missing",
    ),
    "unreadable time": (
        lambda frame: frame.assign(timestamp=frame["timestamp"].astype(str).where(frame.index != 8, "noon")),
        "the timestamp of user '897' in row 9 is 'noon'",
    ),
    "infinite time": (
        lambda frame: frame.assign(timestamp=frame["timestamp"].astype(float).where(frame.index != 1, np.inf)),
        "the timestamp of user '899' in row 2 is 'inf'",
    ),
    "unknown behaviour": (
        lambda frame: frame.assign(behavior=frame["behavior"].where(frame.index != 4, "clik")),
        "'clik' in row 5 is not known; did you mean 'click'? Click is click; favor is favor. Add it",
    ),
    "no near column": (
        lambda frame: frame.drop(columns="timestamp"),
        "no column 'timestamp' (use it with --timestamp-column NAME)",  # never a column in use
    ),
    "foreign behaviour": (
        lambda frame: frame.assign(behavior=frame["behavior"].where(frame.index != 4, "buy")),
        "'buy' in row 5 is not known. Click is click; favor is favor. Add it with --click buy",
    ),
    "capitals": (
        lambda frame: frame.assign(behavior=frame["behavior"].str.upper()),
        "'CLICK' in row 1 is not known; did you mean 'click'?",
    ),
    "missing behaviour": (
        lambda frame: frame.assign(behavior=frame["behavior"].where(frame.index != 4)),
        "log.parquet has no behavior in row 5; leave such rows out",
    ),
    "blurred id": (
        lambda frame: frame.assign(user=frame["user"].astype(float) + 2.0**60),
        "in row 1 is a floating-point number that has lost digits; store ids as text",
    ),
    "missing user": (
        lambda frame: frame.assign(user=frame["user"].where(frame.index != 3)),
        "log.parquet has no user in row 4",
    ),
    "unlisted item": (
        lambda frame: frame.assign(item=frame["item"].where(frame.index != 3, 999)),
        "names item '999', which items.parquet (its first is '1') does not list (1 such rows)",
    ),
    "nobody left": (
        lambda frame: frame[frame["behavior"] == "click"],
        "no user of 'table' is left: of 5 users, 0 have at least 5 clicks and favors and 0 a last favor",
    ),
    "empty": (lambda frame: frame[:0], "no user of 'table' is left: of 0 users"),
}  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], folder: Path) -> str:
    """The one line on stderr; exit code 2, nothing written."""
    data = folder / "data"
    assert main([*arguments, "--data-dir", str(data)]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    assert not data.exists()
    return out.err


@pytest.mark.parametrize("case", BAD)
def test_bad_interactions_get_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, wanted = BAD[case]
    damage(log()).to_parquet(folder / "log.parquet")
    assert wanted in refused(capsys, table(folder, "parquet"), folder)


def test_rows_are_counted_in_the_file_even_after_rows_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = log()
    frame.loc[0, "behavior"] = "cart"
    frame = frame.assign(timestamp=frame["timestamp"].where(frame.index != 6))
    frame.to_parquet(folder / "log.parquet")
    said = refused(capsys, table(folder, "parquet", "--ignore", "cart"), folder)
    assert "the timestamp of user '899' in row 7 is missing" in said


def test_an_id_that_reads_na_is_an_id(folder: Path) -> None:
    text = (folder / "log.csv").read_text().replace("\n900,", "\nNA,")
    (folder / "log.csv").write_text(text)
    data = prepared(folder, *table(folder, "csv"))
    users = pd.read_parquet(data.folder / "users.parquet")["user"].tolist()
    assert users == ["896", "897", "898", "899", "NA"]


def test_bad_vectors_and_items_get_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = np.load(folder / "image.npy")
    cases = {
        "image.npy has 139 rows, but there are 140 items": vectors[1:],
        "does not hold a table of floating-point numbers": np.zeros(ITEMS),
        "image vectors hold NaN or infinity in row 5": np.where(
            np.arange(ITEMS)[:, None] == 5, np.nan, vectors
        ),
    }
    for wanted, array in cases.items():
        np.save(folder / "image.npy", array)
        assert wanted in refused(capsys, table(folder, "csv"), folder)
    (folder / "image.npy").write_bytes(b"not an array")
    assert "it is no .npy file" in refused(capsys, table(folder, "csv"), folder)
    (folder / "image.npy").unlink()
    assert "no file" in refused(capsys, table(folder, "csv"), folder)
    np.save(folder / "image.npy", vectors[:, :0])
    assert "have no numbers: its shape is (140, 0)" in refused(capsys, table(folder, "csv"), folder)
    pd.DataFrame({"item": [1, 2, 1]}).to_csv(folder / "items.csv", index=False)
    assert "items.csv lists item '1' twice" in refused(capsys, table(folder, "csv"), folder)
    lonely = [
        "table",
        "--interactions",
        str(folder / "log.csv"),
        "--text",
        str(folder / "text.npy"),
    ]
    assert "vectors need --items F" in refused(capsys, lonely, folder)
    few = ["table", "--interactions", str(folder / "log.csv")]
    assert "fewer than 99 possible negatives" in refused(capsys, few, folder)


def test_an_option_or_a_column_has_one_meaning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "behavior 'favor' is named as click and as favor": ("--click", "favor"),
        "behavior 'click' is named as click and as ignore": ("--ignore", "click"),
        "column 'item' is named as user and as item": ("--user-column", "item"),
    }
    for wanted, options in cases.items():
        assert wanted in refused(capsys, table(folder, "csv", *options), folder)
    fields = ["table", "--interactions", str(folder / "log.csv"), "--fields", "brand"]
    assert "--fields brand needs --items F" in refused(capsys, fields, folder)
    pd.DataFrame({"item": range(1, ITEMS + 1), "a/b": 1}).to_csv(folder / "items.csv", index=False)
    strange = table(folder, "csv", "--fields", "a/b")
    assert "column 'a/b' of items.csv cannot name" in refused(capsys, strange, folder)


def test_names_that_stand_for_other_data_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("demo", "paper", "demo_rec_tmall"):
        said = refused(capsys, [*table(folder, "csv"), "--name", name], folder)
        assert f"'{name}' stands for other data" in said
    for name in ("", "a\nb", "../x"):
        said = refused(capsys, [*table(folder, "csv"), "--name", name], folder)
        assert f"{name!r} cannot name a data set" in said


def test_a_folder_is_no_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("folder.parquet", "folder.csv"):
        (folder / name).mkdir()
        said = refused(capsys, ["table", "--interactions", str(folder / name)], folder)
        assert f"'{folder / name}' is a folder" in said


def test_times_beyond_whole_numbers_stay_in_order(folder: Path) -> None:
    frame = log().assign(timestamp=lambda log: log["timestamp"] * 1e20)
    frame.to_csv(folder / "log.csv", index=False)
    times = prepared(folder, *table(folder, "csv")).array("event_time")
    assert times.min() > 1e28


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_unreadable_files_get_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    kind = name.partition(".")[2]
    (folder / name).write_bytes(b"\xff\xfe\x00garbage\n\x81,")
    said = refused(capsys, table(folder, kind), folder)
    assert f"{folder / name}" in said
    (folder / name).unlink()
    assert f"no file '{folder / name}'" in refused(capsys, table(folder, kind), folder)


COMMANDS = {
    "no source 'dmo'; did you mean 'demo'? Choose from: demo, deskdrop,": ["dmo"],
    "name a source: demo, deskdrop,": [],
    "no option '--interacions'; did you mean '--interactions'?": ["table", "--interacions=x"],
    "no knob 'acident'; did you mean 'accident'?": ["demo", "world.acident=0.2"],
    "world.accident=much: 'much' is not a number": ["demo", "world.accident=much"],
    "world.users=2.5: '2.5' is not a whole number": ["demo", "world.users=2.5"],
    "world.id_fields=maybe: 'maybe' is not true or false": ["demo", "world.id_fields=maybe"],
    "world.accident=1.5 must lie between 0 and 1": ["demo", "world.accident=1.5"],
    "world.zipf=nan must be a finite number": ["demo", "world.zipf=nan"],
    "world.leaves=20 must be a multiple of 8": ["demo", "world.leaves=20"],
    "'world.accident=0.2' makes another world than the standard twins; give it a name of its own": [
        "demo", "world.accident=0.2",
    ],
    "no world 'wrld'; did you mean 'world'?": ["demo", "wrld.accident=0.2"],
    "'accident=0.2' is not a knob; write world.KNOB=VALUE": ["demo", "accident=0.2"],
    "'world.accident=1' is a knob of source 'demo'": ["deskdrop", "--raw", ".", "world.accident=1"],
    "source 'deskdrop' needs --raw DIR": ["deskdrop"],
    "source 'table' needs --interactions F": ["table"],
    "--raw belongs to sources 'deskdrop', 'kuairand', ": ["demo", "--raw", "."],
    "--click belongs to source 'table', not to 'demo'": ["demo", "--click", "view"],
    "'nowhere' holds neither interactions.parquet nor users_interactions.csv": [
        "deskdrop", "--raw", "nowhere",
    ],
    "'nowhere' holds neither u.data (ml-100k) nor a .inter file": ["movielens", "--raw", "nowhere"],
    "'log.json' is neither parquet nor csv": ["table", "--interactions", "log.json"],
    "'../up' cannot name a data set": ["demo", "--name", "../up"],
    "argument --name: expected one argument": ["demo", "--name"],
}  # fmt: skip


@pytest.mark.parametrize("wanted", COMMANDS)
def test_bad_commands_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    arguments = COMMANDS[wanted]
    if arguments[-1:] == ["--name"]:
        assert main(arguments) == 2
        assert wanted in capsys.readouterr().err
    else:
        assert wanted in refused(capsys, arguments, tmp_path)


def test_a_data_folder_that_cannot_be_written_gets_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("in the way")
    for place in (folder / "file", folder / "file" / "below"):
        assert main([*table(folder, "csv"), "--data-dir", str(place)]) == 2
        said = capsys.readouterr().err
        assert f"cannot write data set 'table' in '{place}'" in said
        assert said.endswith("choose another folder with --data-dir DIR\n")


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "world.accident=0.35" in capsys.readouterr().out


def test_the_names_of_the_demo_sets_are_those_of_the_worlds() -> None:
    assert tuple(f"demo_{twin}" for twin in TWINS) == DEMO


def test_a_run_does_not_depend_on_the_generator_or_the_readers() -> None:
    used = fingerprint._closure("harness.run")
    assert "harness.data.dataset" in used
    assert not used & {f"harness.data.{name}" for name in ("demo", "synthetic", "prepare", "table")}
