"""Features folders, and the command that makes them: resumed, shared out, ready-made, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.data import extraction, features
from harness.data.clip import Encoder, find_model
from harness.data.features import read_features, write_features
from harness.data.pictures import Cache
from harness.errors import InputError
from harness.features import work as work_module
from harness.prepare import main
from tests.harness.data.picture_world import Server, closed_door, serving
from tests.harness.data.tiny_clip import WIDTH, save_chinese_clip, save_clip

COUNT = 23


@pytest.fixture(autouse=True)
def door(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return closed_door(monkeypatch)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "ROWS", 4)


@pytest.fixture(scope="module")
def web() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_chinese_clip(folder / "chinese")
    return folder


@dataclass
class Shop:
    """A table of items and the words of a command line that makes features of it."""

    folder: Path
    server: Server
    models: Path
    capsys: pytest.CaptureFixture[str]
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)

    def write(self) -> None:
        self.frame.to_parquet(self.folder / "items.parquet")

    def run(self, *extra: str, out: str = "out", code: int = 0, model: str = "clip") -> str:
        """Run the command; what it printed on both streams."""
        words = ["features", "--items", f"{self.folder}/items.parquet", "--out", f"{self.folder}/{out}",
                 "--private-hosts", "--rate", "1e9", "--tries", "1"]  # fmt: skip
        if model:
            words += ["--image-model", f"{self.models}/{model}"]
        found = main([*words, *extra])
        said = self.capsys.readouterr()
        assert found == code, said
        if code:
            lines = said.err.strip().splitlines()
            assert len([line for line in lines if not line.startswith("note: ")]) == 1, said.err
        return said.out + said.err

    def array(self, name: str, out: str = "out") -> np.ndarray:
        return np.load(self.folder / out / f"{name}.npy")

    def ledger(self, out: str = "out") -> pd.DataFrame:
        return pd.read_parquet(self.folder / out / "ledger.parquet").set_index("item")

    def manifest(self, out: str = "out") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / out / "manifest.json").read_text())
        return found


@pytest.fixture
def shop(web: Server, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    web.asked.clear()
    made = Shop(tmp_path, web, models, capsys)
    urls = [web.url(f"good/{number}") for number in range(COUNT)]
    urls[3], urls[5], urls[7], urls[8] = web.url("missing"), "", web.url("page"), urls[2]
    urls[9] = "  " + urls[9].removeprefix("http:") + " "  # //host/..., as shops write it
    titles = [f"red cup {number} " for number in range(COUNT)]
    titles[4], titles[6] = "", "   "
    titles[10] = "red " * 20
    made.frame = pd.DataFrame({"item": range(100, 100 + COUNT), "title": titles, "picture": urls})
    made.write()
    return made


# ------------------------------------------------------------------------------------- making


def test_pictures_and_titles_become_rows_in_the_order_of_the_items(shop: Shop) -> None:
    said = shop.run()
    image, text = shop.array("image"), shop.array("text")
    assert image.shape == text.shape == (COUNT, WIDTH)
    assert image.dtype == text.dtype == np.float32
    assert np.nonzero(~image.any(axis=1))[0].tolist() == [3, 5, 7]
    assert np.nonzero(~text.any(axis=1))[0].tolist() == [4, 6]
    assert (image[8] == image[2]).all()
    encoder = Encoder(find_model(f"{shop.models}/clip"))
    cache = Cache(shop.folder / "pictures")
    for row in (0, 9, 22):
        url = shop.server.url(f"good/{row}")
        np.testing.assert_allclose(image[row], encoder.images([cache.path(url)])[0], atol=1e-5)
    np.testing.assert_allclose(text[22], encoder.texts(["red cup 22 "])[0][0], atol=1e-5)
    ledger = shop.ledger()
    assert ledger.loc["103", ["status", "reason", "tries"]].tolist() == ["dead", "HTTP 404", 1]
    assert ledger.loc["105", ["status", "reason", "url"]].tolist() == ["none", "no address", ""]
    assert ledger.loc["107", ["status", "reason"]].tolist() == ["dead", "not a picture"]
    assert ledger.loc["100", "status"] == "ok"
    assert ledger.loc["100", "bytes"] > 500
    assert "2 dead, 1 without an address, 20 ok" in said
    assert "1 titles cut" in said
    assert not (shop.folder / "out.parts").exists()


def test_the_manifest_says_how_the_vectors_were_made(shop: Shop) -> None:
    shop.run("--unit-length")
    manifest = shop.manifest()
    source = find_model(f"{shop.models}/clip")
    assert manifest["image"] == {"source": "model", **source.facts(), "width": WIDTH, "present": 20}
    assert manifest["text"]["titles"] == 21
    assert manifest["text"]["truncated"] == 1
    assert manifest["plan"]["unit_length"] is True
    assert manifest["plan"]["dtype"] == "float32"
    (maker,) = manifest["made_by"]
    assert maker["device"] == "cpu"
    assert set(maker) == {"device", "torch", "transformers", "pillow", "numpy"}
    assert manifest["pictures"]["status"] == {"dead": 2, "none": 1, "ok": 20}
    lengths = np.linalg.norm(shop.array("image"), axis=1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-6)


def test_the_same_features_come_out_however_the_work_is_shared_and_stopped(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run(out="whole")
    for share in ("1/3", "3/3"):
        shop.run("--shard", share)
    said = shop.run("--merge", code=2)
    assert "2 of 6 parts are missing (the first is chunk-000001.npz)" in said
    assert not (shop.folder / "out").exists()
    real, made = work_module.encode_chunk, []

    def stopped(parts: Any, chunk: int, *rest: Any) -> None:
        if made:
            raise KeyboardInterrupt
        made.append(chunk)
        real(parts, chunk, *rest)

    monkeypatch.setattr(work_module, "encode_chunk", stopped)
    assert "the same command goes on" in shop.run(code=130)
    monkeypatch.setattr(work_module, "encode_chunk", real)
    asked = shop.server.asked.total()
    shop.run()
    assert shop.server.asked.total() == asked
    for name in ("image", "text"):
        assert shop.array(name).tobytes() == shop.array(name, "whole").tobytes()
    assert shop.manifest()["files"] == shop.manifest("whole")["files"]


def test_made_already_it_does_nothing_and_others_are_refused(shop: Shop) -> None:
    shop.run()
    asked = shop.server.asked.total()
    assert "made from the same; nothing to do" in shop.run()
    assert shop.server.asked.total() == asked
    said = shop.run("--text-model", f"{shop.models}/chinese", code=2)
    assert "holds other features (text class: CLIPModel there, ChineseCLIPModel now)" in said


def test_parts_begun_for_other_items_are_refused(shop: Shop) -> None:
    shop.run("--shard", "1/2")
    shop.frame.loc[0, "title"] = "blue cup"
    shop.write()
    assert "was begun for other features (input_sha256:" in shop.run(code=2)


def test_a_picture_that_comes_later_is_taken_up(shop: Shop) -> None:
    shop.frame.loc[1, "picture"] = shop.server.url("shaky/1")
    shop.write()
    said = shop.run()
    assert "1 failed" in said
    assert "the same command fetches it again" in said
    assert not shop.array("image")[1].any()
    before = shop.array("image")
    assert "failed" not in shop.run()
    after = shop.array("image")
    assert after[1].any()
    others = np.arange(COUNT) != 1
    np.testing.assert_allclose(before[others], after[others], atol=1e-6)
    assert shop.ledger().loc["101", ["status", "tries"]].tolist() == ["ok", 2]


def test_a_damaged_picture_in_the_cache_is_fetched_again(shop: Shop) -> None:
    shop.run("--stage", "fetch")
    path = Cache(shop.folder / "pictures").path(shop.server.url("good/0"))
    path.write_bytes(path.read_bytes()[:400])
    shop.run()
    assert shop.ledger().loc["100", ["status", "reason"]].tolist() == [
        "failed", "the kept picture was damaged",
    ]  # fmt: skip
    assert shop.array("image")[1].any()
    shop.run()
    assert shop.array("image")[0].any()


def test_fetching_and_encoding_can_happen_apart(shop: Shop) -> None:
    said = shop.run("--stage", "encode", code=2)
    assert "has none of these 21 pictures; fetch them first" in said
    assert "20 ok" not in shop.run("--stage", "fetch", "--shard", "1/2")
    assert "19 ok, 2 dead" in shop.run("--stage", "fetch", model="")  # one of 20 has two items
    asked = shop.server.asked.total()
    shop.run("--stage", "encode")
    assert shop.server.asked.total() == asked
    assert shop.manifest()["image"]["present"] == 20


def test_without_a_way_out_it_says_so(shop: Shop) -> None:
    shop.frame["picture"] = [
        f"http://img{number % 3}.example/{number}.jpg" for number in range(COUNT)
    ]
    shop.write()
    said = shop.run(code=2)
    assert "none of 23 pictures could be had (mostly: its host's name is not known)" in said
    assert "--stage fetch" in said
    assert not list((shop.folder / "out.parts").glob("chunk-*"))


def test_a_full_disk_is_said_in_one_line(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("harness.data.files.np.savez", full)
        assert "out.parts' (No space left on device); choose another --out" in shop.run(code=2)
    shop.run()


def test_one_picture_behind_many_addresses_is_pointed_out(shop: Shop) -> None:
    shop.frame["picture"] = [shop.server.url(f"same/{number}") for number in range(COUNT)]
    shop.write()
    said = shop.run()
    assert "23 addresses gave one and the same picture" in said


def test_chinese_titles_are_remarked_upon_unless_a_chinese_model_reads_them(shop: Shop) -> None:
    shop.frame["title"] = [f"红色 杯子 {number} " for number in range(COUNT)]
    shop.write()
    said = shop.run()
    assert "100% of the titles hold Chinese characters" in said
    assert "chinese-clip" in said
    said = shop.run("--text-model", f"{shop.models}/chinese", out="other")
    assert "hold Chinese characters" not in said
    assert "share no space" in said
    said = shop.run(out="both", model="chinese")
    assert "note:" not in said
    assert shop.manifest("both")["text"]["class"] == "ChineseCLIPModel"


def test_titles_alone_and_pictures_alone(shop: Shop) -> None:
    shop.run("--image-model", "none", "--text-model", f"{shop.models}/clip", model="")
    assert not (shop.folder / "out" / "image.npy").exists()
    assert not shop.server.asked
    assert set(shop.ledger()["status"]) == {"none"}
    found = read_features(shop.folder / "out", ["100"])
    assert found.image is None
    assert not found.living.any()
    shop.run("--text-model", "none", out="images")
    assert read_features(shop.folder / "images", ["100"]).text is None


def test_ready_made_vectors_are_taken_by_their_ids(shop: Shop) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((COUNT + 2, 5)).astype(np.float32)
    vectors[4] = 0
    np.save(shop.folder / "v.npy", vectors)
    order = rng.permutation(COUNT + 2)
    (shop.folder / "ids.txt").write_text("".join(f"{100 + number}\n" for number in order))
    words = ("--image", f"{shop.folder}/v.npy", "--ids", f"{shop.folder}/ids.txt")
    said = shop.run(*words, "--text-model", f"{shop.models}/clip", model="")
    assert "image: 5-d of" in said
    assert "by v.npy" in said
    place = {number: row for row, number in enumerate(order.tolist())}
    wanted = vectors[[place[number] for number in range(COUNT)]]
    assert (shop.array("image") == wanted).all()
    assert not shop.server.asked
    zero = str(100 + order[4])
    assert set(shop.ledger()["status"]) <= {"ready", "missing"}
    if zero in shop.ledger().index:
        assert shop.ledger().loc[zero, "status"] == "missing"
    assert main(["features", *words, "--out", f"{shop.folder}/alone"]) == 0
    assert (shop.array("image", "alone") == vectors).all()
    assert pd.read_parquet(shop.folder / "alone/items.parquet")["item"].tolist() == [
        str(100 + number) for number in order
    ]
    shop.capsys.readouterr()
    assert main(["features", *words, "--out", f"{shop.folder}/alone"]) == 0
    assert "nothing to do" in shop.capsys.readouterr().out


def test_a_prepared_set_is_a_source_of_items(shop: Shop) -> None:
    folder = shop.folder / "data" / "mine"
    folder.mkdir(parents=True)
    shop.frame.assign(item=shop.frame["item"].astype(str)).to_parquet(folder / "items.parquet")
    words = ["features", "--data", "mine", "--data-dir", f"{shop.folder}/data", "--out", f"{shop.folder}/out",
             "--image-model", f"{shop.models}/clip", "--private-hosts", "--rate", "1e9"]  # fmt: skip
    assert main(words) == 0
    assert shop.manifest()["image"]["present"] == 20


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(("words", "wanted"), [
    ([], "say where to: --out DIR"),
    (["--out", "{t}/o"], "say which items"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--data", "x"], "name one"),
    (["--out", "{t}/o", "--ids", "{t}/ids"], "name one of them"),
    (["--out", "{t}/o", "--data", "x", "--data-dir", "{t}"], "no prepared set 'x'"),
    (["--out", "{t}/o", "--items", "{t}/none.parquet"], "no file"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--title-column", "titel"], "has no column 'titel'"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--rate", "0"], "--rate 0.0: more than 0"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--shard", "4/3"], "'4/3' is no share such as 3/16"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--shard", "1/2", "--merge"], "leave it out"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "slurm.cpus=2"], "belongs to --on slurm"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--stage", "fetch", "--on", "slurm"], "runs here"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--image", "v", "--image-model", "clip"], "name one"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--image-model", "{t}/nowhere"], "no model"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--most-bytes", "much"], "'much' is no size such as 10MB"),
    (["--out", "{t}/o", "--items", "{t}/items.parquet", "--device", "cuda:7", "--image-model", "{m}/clip"],
     "--device cuda:7"),
])  # fmt: skip
def test_mistakes_are_said_in_one_line(
    shop: Shop, words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"t": str(shop.folder), "m": str(shop.models)}
    fetching = ["--private-hosts", "--rate", "1e9"] if "cuda:7" in words else []
    assert main(["features", *fetching, *(word.format(**places) for word in words)]) == 2
    said = capsys.readouterr().err.strip()
    assert wanted in said
    assert len(said.splitlines()) == 1


def test_nothing_heavy_is_imported_for_help() -> None:
    code = ("import sys; from harness.prepare import main\n"
            "try: main(['features', '--help'])\n"
            "except SystemExit: pass\n"
            "print({'torch', 'transformers', 'aiohttp', 'pandas'} & set(sys.modules))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


# ------------------------------------------------------------------------------------- reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features of items a, b, c, d; c's picture is dead."""
    image = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    image[2] = 0
    ledger = {"item": list("abcd"), "url": [""] * 4, "status": ["ok", "ready", "dead", "ok"],
              "reason": [""] * 4, "tries": [1] * 4, "bytes": [9] * 4}  # fmt: skip
    blocks: Callable[[], list[np.ndarray]] = lambda: [image[:3], image[3:]]  # noqa: E731
    write_features(tmp_path / "f", list("abcd"), {"image": (3, blocks)}, [ledger], dict)
    return tmp_path / "f"


def test_features_are_aligned_to_the_items_asked_for(folder: Path) -> None:
    found = read_features(folder, ["d", "x", "c", "a"])
    assert found.image is not None
    assert found.image.tolist() == [[10, 11, 12], [0, 0, 0], [0, 0, 0], [1, 2, 3]]
    assert found.living.tolist() == [True, False, False, True]
    assert found.text is None
    assert found.manifest["image"] == {"width": 3, "present": 3}


def test_in_the_same_order_the_file_itself_is_mapped(folder: Path) -> None:
    found = read_features(folder, list("abcd"))
    assert isinstance(found.image, np.memmap)
    assert found.living.tolist() == [True, True, False, True]


def test_large_results_lie_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IN_MEMORY", 8)
    found = read_features(folder, ["d", "a"])
    assert isinstance(found.image, np.memmap)
    assert found.image.tolist() == [[10, 11, 12], [1, 2, 3]]


def test_features_of_other_items_are_refused(folder: Path) -> None:
    with pytest.raises(
        InputError,
        match="features of none of the 2 items: they are called like 'i1' here and like 'a'",
    ):
        read_features(folder, ["i1", "i2"])


def test_what_is_no_features_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no features folder"):
        read_features(tmp_path, ["a"])
    whole = (folder / "image.npy").read_bytes()
    (folder / "image.npy").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="bytes, not"):
        read_features(folder, ["a"])
    (folder / "image.npy").unlink()
    with pytest.raises(InputError, match="is missing: the folder is damaged"):
        read_features(folder, ["a"])
    (folder / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="holds no features of format 1"):
        read_features(folder, ["a"])


@pytest.mark.parametrize(("rows", "wanted"), [
    (np.full((2, 3), np.nan, np.float32), "hold NaN or infinity in row 0"),
    (np.ones((1, 3), np.float32), "has 1 rows, but there are 2 items"),
])  # fmt: skip
def test_bad_vectors_leave_nothing_behind(tmp_path: Path, rows: np.ndarray, wanted: str) -> None:
    ledger = {"item": ["a", "b"], "url": ["", ""], "status": ["ready"] * 2, "reason": ["", ""],
              "tries": [0, 0], "bytes": [0, 0]}  # fmt: skip
    with pytest.raises(InputError, match=wanted):
        write_features(tmp_path / "f", ["a", "b"], {"image": (3, lambda: [rows])}, [ledger], dict)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another --out"):
        write_features(tmp_path / "file" / "f", [], {}, [], dict)


def test_your_own_table_takes_a_features_folder(folder: Path, tmp_path: Path) -> None:
    rows = [(user, item, "favor" if step > 2 else "click", step)
            for user in range(3) for step, item in enumerate("dabab")]  # fmt: skip
    for user in range(10, 40):  # so that there are negatives to draw
        rows += [(user, f"other {4 * user + step}", "click", step) for step in range(4)]
        rows.append((user, "a", "favor", 9))
    frame = pd.DataFrame(rows, columns=["user", "item", "behavior", "timestamp"])
    frame.to_parquet(tmp_path / "log.parquet")
    words = ["table", "--interactions", f"{tmp_path}/log.parquet", "--name", "mine", "--data-dir",
             f"{tmp_path}/data", "--features", str(folder)]  # fmt: skip
    assert main(words) == 0
    made = tmp_path / "data" / "mine"
    ids = pd.read_parquet(made / "items.parquet")["item"].tolist()
    image = np.load(made / "image.npy")
    assert image[1 + ids.index("d")].tolist() == [10, 11, 12]
    assert not image[1 + ids.index("other 43")].any()
    assert np.load(made / "image_present.npy").sum() == 3
    assert json.loads((made / "manifest.json").read_text())["features"]["folder"] == "f"
    assert main([*words, "--image", f"{tmp_path}/x.npy"]) == 2
