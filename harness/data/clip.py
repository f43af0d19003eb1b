"""CLIP's vectors of pictures and titles, through transformers' own classes: CLIP and Chinese-CLIP.

A model comes from a folder or from the Hugging Face hub (`NAME` or `NAME@REVISION`). What is stored is
the projection into the space that image and text share, as the model gives it; its length says nothing
(CLIP compares directions), so it may be set to one.

Axes: picture, title = rows of one call, width = of the shared space (512 for ViT-B).
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Bool, Float
from numpy import ndarray
from PIL import Image
from safetensors import SafetensorError

from harness.data.pictures import open_picture
from harness.data.raw import sha256_file
from harness.errors import InputError, unknown

SHORT = {
    "clip": "openai/clip-vit-base-patch32",
    "chinese-clip": "OFA-Sys/chinese-clip-vit-base-patch16",
}
"""Names for the models that the paper's data call for."""
CLASSES = {
    "clip": (transformers.CLIPModel, transformers.CLIPImageProcessorPil),
    "chinese_clip": (transformers.ChineseCLIPModel, transformers.ChineseCLIPImageProcessorPil),
}
"""Model and image processor (Pillow's, which needs no torchvision) by a config's model_type."""
TRAINED_TOKENS = {"chinese_clip": 52}
"""Tokens of a title in training, where the position table is longer (OFA-Sys/Chinese-CLIP's context_length)."""
FILES = ("*.json", "*.txt")
WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
)
"""Weight files, the first kind that is there."""
SETTINGS = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "vocab.txt", "special_tokens_map.json",
)  # fmt: skip
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
UNREADABLE = (
    OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError
)  # fmt: skip
"""What reading a model's files raises when they are cut or something else."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_chinese(title: str) -> bool:
    """Whether a title holds Chinese characters."""
    return HAN.search(title) is not None


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and what they are."""

    name: str
    """As it was asked for, the short name resolved."""
    folder: Path
    revision: str
    """The hub's commit; empty for a folder."""
    kind: str
    """clip or chinese_clip."""
    weights_sha256: str
    """Of the weight file; of the digests of all, where there are several."""
    settings_sha256: str
    """Of the digests of config, tokenizer and preparation of pictures."""

    def identity(self) -> dict[str, str]:
        """What the vectors depend on, wherever the files lie."""
        return {
            "class": CLASSES[self.kind][0].__name__,
            "weights_sha256": self.weights_sha256,
            "settings_sha256": self.settings_sha256,
        }

    def facts(self) -> dict[str, str]:
        """For a manifest."""
        return {"model": self.name, "revision": self.revision, **self.identity()}


def find_model(name: str) -> Source:
    """A model by folder, short name, or name on the hub; fetched from there when it is not here yet.

    Raises:
        InputError: it cannot be had, or is of another kind; with how to bring it over.
    """
    folder, revision = _folder(name)
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"'{folder}' holds no model: it has no config.json")
    try:
        kind = transformers.PretrainedConfig.get_config_dict(folder)[0].get("model_type", "")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{config}': {str(error).splitlines()[0]}") from error
    if kind not in CLASSES:
        raise unknown("kind of model", str(kind), CLASSES)
    files = _weight_files(folder)
    if not files:
        raise InputError(
            f"'{folder}' has no weights ({' or '.join(names[0] for names in WEIGHTS)})"
        )
    settings = [folder / file for file in SETTINGS if (folder / file).is_file()]
    return Source(SHORT.get(name, name), folder, revision, kind, _digest(files), _digest(settings))


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of the digests of several."""
    digests = [sha256_file(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    for names in WEIGHTS:
        if found := sorted(path for pattern in names for path in folder.glob(pattern)):
            return found
    return []


def _folder(name: str) -> tuple[Path, str]:
    """The folder of a model's files, and its commit on the hub (empty for a folder)."""
    if Path(name).is_dir():
        return Path(name), ""
    repository, _, revision = SHORT.get(name, name).partition("@")
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(
            f"no model '{name}': name a folder, a model of the hub such as {SHORT['clip']}, "
            f"or one of {', '.join(SHORT)}"
        )
    asked = revision or None
    local = repository.rpartition("/")[2]
    try:
        try:
            small = Path(
                snapshot_download(repository, revision=asked, allow_patterns=[*FILES, *WEIGHTS[0]])
            )
            if not _weight_files(small):
                small = Path(
                    snapshot_download(
                        repository, revision=asked, allow_patterns=[*FILES, *WEIGHTS[1]]
                    )
                )
        except HfHubHTTPError as error:
            said = str(error).splitlines()[0]
            raise InputError(f"the hub does not give '{repository}': {said}") from error
        except (LocalEntryNotFoundError, OSError):
            small = Path(snapshot_download(repository, revision=asked, local_files_only=True))
            if not _weight_files(small):
                raise
    except (LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"'{repository}' is not here and the hub cannot be reached; where it can: "
            f"`hf download {repository} --local-dir {local}`, bring the folder over, and name it "
            f"in place of '{name}'"
        ) from error
    return small, small.name if small.parent.name == "snapshots" else revision


class Encoder:
    """One model, for pictures, titles or both.

    Raises:
        InputError: the files do not hold all weights of the model, or a part is missing.
    """

    def __init__(
        self,
        source: Source,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        unit_length: bool = False,
        threads: int = 1,
    ) -> None:
        self.source, self.device, self.unit_length = source, device, unit_length
        self.threads = threads
        model_class, processor_class = CLASSES[source.kind]
        with _quiet():
            try:
                model, info = model_class.from_pretrained(
                    source.folder,
                    dtype=DTYPES[dtype],
                    output_loading_info=True,
                    local_files_only=True,
                )
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                    source.folder, local_files_only=True
                )
                self.processor = processor_class.from_pretrained(
                    source.folder, local_files_only=True
                )
            except UNREADABLE as error:
                said = str(error).strip().splitlines()[0]
                raise InputError(f"cannot read the model in '{source.folder}': {said}") from error
        lacking = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
        if lacking:
            raise InputError(
                f"the weights in '{source.folder}' lack {len(lacking)} of the model's tensors "
                f"(the first is {lacking[0]}); it is another model's file, or cut"
            )
        self.model = model.eval().requires_grad_(requires_grad=False).to(device)
        config = model.config
        self.width = int(config.projection_dim)
        self.tokens = min(
            int(config.text_config.max_position_embeddings),
            TRAINED_TOKENS.get(source.kind, 10**9),
            int(self.tokenizer.model_max_length),
        )
        """Tokens of a title that are read, the marks at its ends included."""

    def images(self, pictures: Sequence[Path | Image.Image]) -> Float[ndarray, "picture width"]:
        """Vectors of pictures, given as files or opened."""
        with ThreadPoolExecutor(self.threads) as pool:
            pixels = np.stack(list(pool.map(self._pixels, pictures)))
        with torch.inference_mode():
            given = torch.from_numpy(pixels).to(self.device, self.model.dtype)
            return self._finished(self.model.get_image_features(given).pooler_output)

    def _pixels(self, picture: Path | Image.Image) -> Float[ndarray, "channel height side"]:
        opened = open_picture(picture) if isinstance(picture, Path) else picture
        found: ndarray = self.processor(images=opened, return_tensors="np")["pixel_values"][0]
        return found

    def texts(
        self, titles: Sequence[str]
    ) -> tuple[Float[ndarray, "title width"], Bool[ndarray, " title"]]:
        """Vectors of titles, and which of them were longer than the model reads."""
        with _quiet():
            lengths = [len(ids) for ids in self.tokenizer(list(titles))["input_ids"]]
            given = self.tokenizer(
                list(titles), padding=True, truncation=True, max_length=self.tokens,
                return_tensors="pt",
            ).to(self.device)  # fmt: skip
        with torch.inference_mode():
            vectors = self._finished(self.model.get_text_features(**given).pooler_output)
        return vectors, np.array(lengths) > self.tokens

    def _finished(self, vectors: torch.Tensor) -> Float[ndarray, "row width"]:
        made = vectors.float()
        if self.unit_length:
            made = torch.nn.functional.normalize(made, dim=1)
        return made.cpu().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bars and remarks; what matters is checked and said here."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def versions() -> dict[str, str]:
    """Of the libraries that a vector depends on."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }
