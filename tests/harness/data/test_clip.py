"""CLIP and Chinese-CLIP through transformers' own classes, tiny and randomly initialised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ChineseCLIPModel, CLIPModel

from harness.data import clip
from harness.data.clip import Encoder, find_model, is_chinese
from harness.data.pictures import NoPictureError
from harness.errors import InputError
from tests.harness.data.picture_world import closed_door, picture
from tests.harness.data.tiny_clip import WIDTH, save_chinese_clip, save_clip

TITLES = ["red cup", "A  Red shoe", "red"]
CHINESE = ["红色 杯子", "新款 连衣裙"]


@pytest.fixture(autouse=True)
def door(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return closed_door(monkeypatch)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("hub") / "clip")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chinese_clip(tmp_path_factory.mktemp("hub") / "chinese")


def encoder(folder: Path, **words: Any) -> Encoder:
    return Encoder(find_model(str(folder)), **words)


def by_hand(image: Image.Image, side: int = 32) -> torch.Tensor:
    """CLIP's published preparation: shortest side to `side` (bicubic, the other side rounded down as
    torchvision does), centre, mean and deviation."""
    scale = side / min(image.size)
    width, height = (int(length * scale) for length in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    top, left = (height - side) // 2, (width - side) // 2
    cut = resized[top : top + side, left : left + side] / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return torch.tensor(((cut - mean) / deviation).transpose(2, 0, 1), dtype=torch.float32)[None]


def test_a_picture_is_prepared_and_projected_as_clip_does(english: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(picture(1, (64, 48)))
    found = encoder(english).images([tmp_path / "a"])
    model = CLIPModel.from_pretrained(english).eval()
    with torch.inference_mode(), Image.open(tmp_path / "a") as image:
        inner = model.vision_model(pixel_values=by_hand(image)).pooler_output
        wanted = model.visual_projection(inner)
    assert found.shape == (1, WIDTH)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_title_is_read_and_projected_as_clip_does(english: Path) -> None:
    one = encoder(english)
    found, longer = one.texts(["red cup"])
    model = CLIPModel.from_pretrained(english).eval()
    last = model.config.text_config.vocab_size - 1
    ids = one.tokenizer("red cup")["input_ids"]
    assert (ids[0], ids[-1]) == (last - 1, last)
    with torch.inference_mode():
        states = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state
        wanted = model.text_projection(states[:, -1])  # the state at the end mark
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert not longer.any()


def test_chinese_clip_reads_its_first_token(chinese: Path) -> None:
    one = encoder(chinese)
    found, _ = one.texts(CHINESE)
    model = ChineseCLIPModel.from_pretrained(chinese).eval()
    with torch.inference_mode():
        for title, row in zip(CHINESE, found, strict=True):
            ids = torch.tensor([one.tokenizer(title)["input_ids"]])
            states = model.text_model(input_ids=ids).last_hidden_state
            np.testing.assert_allclose(
                row, model.text_projection(states[:, 0])[0].numpy(), atol=1e-5
            )
    assert one.images([Image.new("RGB", (50, 20), "red")]).shape == (1, WIDTH)


@pytest.mark.parametrize("which", ["english", "chinese"])
def test_company_in_a_batch_changes_nothing(which: str, request: pytest.FixtureRequest) -> None:
    one = encoder(request.getfixturevalue(which))
    titles = [*TITLES, *CHINESE, "red " * 12]
    together, _ = one.texts(titles)
    alone = np.concatenate([one.texts([title])[0] for title in titles])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    pictures = [Image.new("RGB", (30 + n, 40), (20 * n, 90, 200)) for n in range(5)]
    apart = np.concatenate([one.images([one_picture]) for one_picture in pictures])
    np.testing.assert_allclose(one.images(pictures), apart, atol=1e-5)


def test_the_same_input_gives_the_same_bytes(english: Path) -> None:
    pictures = [Image.new("RGB", (30, 40), (20 * n, 90, 200)) for n in range(5)]
    runs = [encoder(english, threads=threads) for threads in (1, 3)]
    assert runs[0].images(pictures).tobytes() == runs[1].images(pictures).tobytes()
    assert runs[0].texts(TITLES)[0].tobytes() == runs[1].texts(TITLES)[0].tobytes()


def test_long_titles_are_cut_and_counted(english: Path, chinese: Path) -> None:
    one = encoder(english)
    assert one.tokens == 16
    _, longer = one.texts(["red " * 14, "red " * 15])
    assert longer.tolist() == [False, True]
    two = encoder(chinese)
    assert two.tokens == 52  # its position table is longer; it was trained with 52
    _, longer = two.texts(["红" * 50, "红" * 51])
    assert longer.tolist() == [False, True]


def test_vectors_can_be_scaled_to_length_one(english: Path) -> None:
    raw, unit = (
        encoder(english).texts(TITLES)[0],
        encoder(english, unit_length=True).texts(TITLES)[0],
    )
    lengths = np.linalg.norm(raw, axis=1)
    assert not np.allclose(lengths, 1)
    np.testing.assert_allclose(unit, raw / lengths[:, None], atol=1e-6)


def test_half_precision_stays_close(english: Path) -> None:
    raw, half = (
        encoder(english).texts(TITLES)[0],
        encoder(english, dtype="bfloat16").texts(TITLES)[0],
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(raw - half).max() < 0.1


def test_a_damaged_picture_is_told_apart(english: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(picture(1)[:300])
    with pytest.raises(NoPictureError):
        encoder(english).images([tmp_path / "a"])


def test_a_model_is_named_by_the_digest_of_its_weights(english: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(english, tmp_path / "copy")
    first, second = find_model(str(english)), find_model(str(copy))
    assert first.identity() == second.identity()
    assert first.facts() == {"model": str(english), "revision": "", "class": "CLIPModel",
                             "weights_sha256": first.weights_sha256,
                             "settings_sha256": first.settings_sha256}  # fmt: skip
    preparation = copy / "preprocessor_config.json"
    preparation.write_text(preparation.read_text().replace("0.48145466", "0.5"))
    assert find_model(str(copy)).settings_sha256 != first.settings_sha256
    assert find_model(str(copy)).weights_sha256 == first.weights_sha256
    other = save_clip(tmp_path / "other", seed=3)
    assert find_model(str(other)).weights_sha256 != first.weights_sha256


def test_weights_as_pytorch_stored_them_are_read(english: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(english, tmp_path / "copy")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    wanted, _ = encoder(english).texts(TITLES)
    assert encoder(copy).texts(TITLES)[0].tobytes() == wanted.tobytes()


class Opened:
    """What a pickle that is loaded without care would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_refused(english: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(english, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Opened(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        encoder(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_a_tensor_are_refused(english: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(english, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"lack 1 of the model's tensors \(the first is visual_projection"
    ):
        encoder(copy)


def test_weights_that_are_cut_are_refused(english: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(english, tmp_path / "copy")
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read the model in"):
        encoder(copy)


def test_folders_that_hold_no_such_model_are_refused(english: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        find_model(str(tmp_path))
    copy = shutil.copytree(english, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        find_model(str(copy))
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="no kind of model 'bert'"):
        find_model(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        find_model(str(copy))
    for name in ("./nowhere", "/nowhere", "clipp", "a/b/c"):
        with pytest.raises(InputError, match=f"no model '{name}': name a folder"):
            find_model(name)


def test_without_a_way_out_it_says_how_to_bring_a_model_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def offline(name: str, **words: Any) -> str:
        asked.append((name, words["revision"], words.get("local_files_only", False)))
        raise LocalEntryNotFoundError("no way out")

    monkeypatch.setattr(clip, "snapshot_download", offline)
    with pytest.raises(InputError) as caught:
        find_model("chinese-clip")
    (line,) = str(caught.value).splitlines()
    assert (
        "hf download OFA-Sys/chinese-clip-vit-base-patch16 --local-dir chinese-clip-vit-base-patch16"
        in line
    )
    assert asked == [("OFA-Sys/chinese-clip-vit-base-patch16", None, False),
                     ("OFA-Sys/chinese-clip-vit-base-patch16", None, True)]  # fmt: skip


def test_the_hub_itself_is_not_reached_in_tests(
    door: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="is not here and the hub cannot be reached"):
        find_model("clip")


def test_a_model_of_the_hub_keeps_its_commit(
    english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    here = shutil.copytree(english, tmp_path / "models--openai--clip" / "snapshots" / commit)
    asked = []

    def hub(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(here)

    monkeypatch.setattr(clip, "snapshot_download", hub)
    found = find_model("openai/clip-vit-base-patch32@main")
    assert (found.name, found.revision) == ("openai/clip-vit-base-patch32@main", commit)
    assert [one[:2] for one in asked] == [("openai/clip-vit-base-patch32", "main")]
    assert "model.safetensors" in asked[0][2]
    assert "pytorch_model.bin" not in asked[0][2]  # one kind of weights is enough


def test_chinese_titles_are_recognised() -> None:
    assert is_chinese("Cup, 350 ML   马克 杯")
    assert not is_chinese("Cup, 350 ML")
    assert not is_chinese("カップ")
