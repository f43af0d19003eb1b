"""CLIP and Chinese-CLIP, tiny and randomly initialised, as folders like those of the hub."""

import json
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessorPil,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging

logging.disable_progress_bar()

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WIDTH = 8


def save_clip(folder: Path, seed: int = 0) -> Path:
    """OpenAI's architecture, tiny and randomly initialised, as a folder like those of the hub."""
    folder.mkdir(parents=True)
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=16
    )
    last = len(words) - 1
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": last,
                   "bos_token_id": last - 1, "pad_token_id": last}  # fmt: skip
    torch.manual_seed(seed)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def save_chinese_clip(folder: Path) -> Path:
    """Chinese-CLIP's architecture, likewise."""
    folder.mkdir(parents=True)
    words = list(
        dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红色杯子新款连衣裙男鞋"])
    )
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf8")
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 64}
    torch.manual_seed(1)
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH)
    ChineseCLIPModel(config).save_pretrained(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    ChineseCLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False
    ).save_pretrained(folder)
    return folder
