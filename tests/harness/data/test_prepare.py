"""Prepared sets: the demo against its published table, the format, damage, and two at once."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.config import ProtocolConfig
from harness.data.dataset import Dataset, Split, Targets, verify
from harness.data.demo import DEMO, ensure_demo, prepare_demo, worlds
from harness.data.prepare import prepare
from harness.errors import InputError
from tests.harness.data.logs import FAVOR, ITEMS, clicks, dataset, raw_log

PROTOCOL = ProtocolConfig()
both = pytest.mark.parametrize("name", DEMO)
USER = [*clicks(1, 2, 3, 4), (5, FAVOR)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in DEMO:
        ensure_demo(folder, name)
    return folder


TABLE = {
    "demo_rec_tmall": {
        "table1": (1_598, 400, 15_849, 7.12, 2.80),
        "length": (9, 15, 35),
        "touched": 400,
        "at_most_10": 0.65,
        "above_50": 0.0,
        "one_favor": 0.17,
        "two_favors": 0.33,
        "few_training_events": 0.067,
        "emptied": (28, 174, 229),
        "test": "9c9d7fcc3b96b80f",
        "negatives": [225, 171, 137],
        "fields": {"brand": 48, "seller": 80, "category": 24},
    },
    "demo_kuaishou": {
        "table1": (400, 700, 18_746, 39.68, 7.19),
        "length": (32, 102, 268),
        "touched": 689,
        "at_most_10": 0.11,
        "above_50": 0.32,
        "one_favor": 0.10,
        "two_favors": 0.15,
        "few_training_events": 0.185,
        "emptied": (5, 6, 7),
        "test": "888b74c869ce1503",
        "negatives": [536, 544, 217],
        "fields": {},
    },
}


@both
def test_the_demo_has_its_published_shape(root: Path, name: str) -> None:
    manifest, wanted = Dataset.open(root, name).manifest, TABLE[name]
    table1, shape = manifest["table1"], manifest["shape"]
    assert tuple(round(value, 2) for value in table1.values()) == wanted["table1"]
    lengths = shape["length_median"], shape["length_90"], shape["length_max"]
    assert tuple(round(length) for length in lengths) == wanted["length"]
    assert manifest["counts"]["items_touched"] == wanted["touched"]
    assert round(shape["share_length_at_most_10"], 2) == wanted["at_most_10"]
    assert round(shape["share_length_above_50"], 2) == wanted["above_50"]
    assert round(shape["share_one_favor"], 2) == pytest.approx(wanted["one_favor"], abs=0.0051)
    assert round(shape["share_two_favors"], 2) == wanted["two_favors"]
    assert manifest["demo"] is True
    assert manifest["fields"] == wanted["fields"]


@both
def test_the_demo_has_its_published_test_items_and_negatives(root: Path, name: str) -> None:
    data, wanted = Dataset.open(root, name), TABLE[name]
    split = data.split(PROTOCOL)
    number = data.array("user_number")[split.test.user.numpy()]
    lines = "".join(
        f"{user},{item - 1}\n" for user, item in zip(number, split.test.item.tolist(), strict=True)
    )
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == wanted["test"]
    assert (split.test.candidates[0, :3] - 1).tolist() == wanted["negatives"]
    counts = torch.bincount(split.train.item, minlength=data.items + 1)
    few = (counts[split.test.item] < 3).double().mean()
    assert float(few) == pytest.approx(wanted["few_training_events"], abs=5e-4)


def emptied(split: Split, targets: Targets, left_out: torch.Tensor) -> int:
    """How many histories have nothing left."""
    count = 0
    for user, place, gone in zip(targets.user, targets.position, left_out, strict=True):
        items = split.events.item[split.events.offsets[user] : place]
        count += not bool((items.unsqueeze(1) != gone).all(1).any())
    return count


@both
def test_histories_that_drop_empties_stay(root: Path, name: str) -> None:
    """The published counts leave out, from a validation history, its own item alone; by the protocol
    the test item's events leave it too (the third number)."""
    split = Dataset.open(root, name).split(PROTOCOL)
    found = (
        emptied(split, split.test, split.test.left_out),
        emptied(split, split.validation, split.validation.left_out[:, 1:]),
        emptied(split, split.validation, split.validation.left_out),
    )
    assert found == TABLE[name]["emptied"]


@both
def test_nobody_reads_the_truth(root: Path, name: str, tmp_path: Path) -> None:
    twin = worlds([])[name.removeprefix("demo_")]
    prepare_demo(tmp_path, name, twin)
    truth = tmp_path / f"{name}.truth.npz"
    with np.load(truth) as arrays:
        assert arrays["accident"].sum() == Dataset.open(root, name).manifest["accidental_clicks"]
        assert arrays["click_utility"].shape == (twin.users, twin.items)
        assert len(arrays["leaf"]) == len(arrays["user"])
    truth.unlink()
    bare, whole = Dataset.open(tmp_path, name), Dataset.open(root, name)
    assert "truth" not in json.dumps(bare.manifest)
    assert bare.data_sha256 == whole.data_sha256
    one, two = bare.split(PROTOCOL), whole.split(PROTOCOL)
    assert one.train.item.equal(two.train.item)
    assert one.test.candidates.equal(two.test.candidates)
    assert bare.catalogue(PROTOCOL).image.equal(whole.catalogue(PROTOCOL).image)


@both
def test_missing_vectors_are_zero_and_said_to_be_missing(root: Path, name: str) -> None:
    catalogue = Dataset.open(root, name).catalogue(PROTOCOL)
    for vectors, present, share in (
        (catalogue.image, catalogue.image_present, 0.05),
        (catalogue.text, catalogue.text_present, 0.10),
    ):
        assert vectors.dtype == torch.float32
        assert not vectors[~present].any()
        norms = vectors[present].norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
        assert not present[0]
        assert float((~present[1:]).double().mean()) == pytest.approx(share, abs=0.03)


def test_ensure_demo_by_many_at_once_leaves_one_whole_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_demo(tmp_path, "demo_kuaishou"), range(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo_kuaishou",
        "demo_kuaishou.truth.npz",
    ]
    verify(Dataset.open(tmp_path, "demo_kuaishou"))


def test_ensure_demo_leaves_other_names_and_existing_sets_alone(tmp_path: Path) -> None:
    ensure_demo(tmp_path, "deskdrop")
    assert list(tmp_path.iterdir()) == []
    dataset(tmp_path, [USER])
    (tmp_path / "small").rename(tmp_path / "demo_kuaishou")
    ensure_demo(tmp_path, "demo_kuaishou")
    assert Dataset.open(tmp_path, "demo_kuaishou").users == 1


def test_preparing_again_by_many_at_once_leaves_one_whole_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare(raw_log([USER]), tmp_path, "small"), range(8)))
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    verify(Dataset.open(tmp_path, "small"))


def test_a_set_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", [USER]).manifest
    two = dataset(tmp_path / "two", [USER]).manifest
    assert one == two


def test_every_file_is_in_the_manifest_with_its_sha256(tmp_path: Path) -> None:
    data = dataset(tmp_path, [USER])
    for path in data.folder.iterdir():
        if path.name != "manifest.json":
            content = path.read_bytes()
            assert data.manifest["files"][path.name] == {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("event_item.npy", b"short", "it has 5 bytes, not"),
        ("negatives_test.npy", None, "it is missing"),
        ("manifest.json", b"{", "it cannot be read"),
        ("manifest.json", b'{"format": 0}', "it has format 0"),
        ("manifest.json", b"[1]", "it cannot be read"),
    ],
)
def test_a_damaged_set_names_the_file_and_the_command(
    tmp_path: Path, file: str, content: bytes | None, why: str
) -> None:
    path = dataset(tmp_path, [USER]).folder / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=why) as caught:
        Dataset.open(tmp_path, "small")
    assert str(path) in str(caught.value)
    assert "python -m harness.prepare" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verify_finds_one_changed_bit(tmp_path: Path) -> None:
    data = dataset(tmp_path, [USER])
    path = data.folder / "event_item.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"event_item.npy' is damaged: its SHA-256 differs"):
        verify(Dataset.open(tmp_path, "small"))


def test_an_unknown_set_names_the_nearest_and_the_known_ones(tmp_path: Path) -> None:
    dataset(tmp_path, [USER])
    with pytest.raises(InputError, match="no data set 'smal'; did you mean 'small'") as caught:
        Dataset.open(tmp_path, "smal")
    assert "demo_kuaishou, demo_rec_tmall, small" in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, array: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("harness.data.prepare.write_array", full)
    with pytest.raises(InputError, match="No space left on device"):
        prepare(raw_log([USER]), tmp_path / "data", "small")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_keeps_the_older_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dataset(tmp_path, [USER]).manifest

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.data.prepare.write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw_log([USER, USER]), tmp_path, "small")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert Dataset.open(tmp_path, "small").manifest == before


def test_items_nobody_touched_leave_unless_there_is_a_list_of_items(tmp_path: Path) -> None:
    users = [[*clicks(*range(n, n + 10)), (n + 10, FAVOR)] for n in range(1, 111, 10)]
    listed = prepare(raw_log(users), tmp_path, "listed")
    raw = raw_log(users)
    object.__setattr__(raw, "keep_items", False)
    found = prepare(raw, tmp_path, "found")
    assert listed["counts"]["items"] == ITEMS
    assert found["counts"]["items"] == found["counts"]["items_touched"] == 111
    names = pd.read_parquet(tmp_path / "found" / "items.parquet")["item"].tolist()
    assert names == [f"i{item}" for item in range(1, 112)]


def test_fields_count_from_one_and_unknown_is_zero(tmp_path: Path) -> None:
    brands = ["", "beta", "alpha", *["beta"] * (ITEMS - 3)]
    data = dataset(tmp_path, [USER], fields={"brand": brands})
    brand = data.catalogue(PROTOCOL).fields["brand"]
    assert brand[:5].tolist() == [0, 0, 2, 1, 2]
    assert data.manifest["fields"] == {"brand": 2}


def test_nan_vectors_name_the_row_and_nothing_is_written(tmp_path: Path) -> None:
    vectors = np.ones((ITEMS, 3), np.float32)
    vectors[17, 1] = np.nan
    with pytest.raises(InputError, match="image vectors hold NaN or infinity in row 17"):
        dataset(tmp_path / "data", [USER], image=vectors)
    assert not (tmp_path / "data").exists()


def test_vectors_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"text vectors have shape \[5, 3\], but .* {ITEMS} items"
    ):
        dataset(tmp_path, [USER], text=np.ones((5, 3), np.float32))


def test_float16_vectors_become_float32_and_zero_rows_are_missing(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((ITEMS, 6)).astype(np.float16)
    vectors[4] = 0
    catalogue = dataset(tmp_path, [USER], image=vectors).catalogue(PROTOCOL)
    np.testing.assert_array_equal(catalogue.image[1:], vectors.astype(np.float32))
    assert torch.nonzero(~catalogue.image_present).squeeze(1).tolist() == [0, 5]
    assert catalogue.text.shape == (ITEMS + 1, 1)


def test_an_opened_set_cannot_be_changed_by_a_method(tmp_path: Path) -> None:
    data = dataset(tmp_path, [USER], image=np.ones((ITEMS, 2), np.float32))
    data.catalogue(PROTOCOL).image.zero_()
    assert data.catalogue(PROTOCOL).image[1:].all()
    verify(data)
