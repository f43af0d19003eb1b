"""Figure 5: maps of item embeddings raw, after CDMD, and after an MLP in its place, with numbers.

The full model's runs are Table 2's (same keys). Records of seed 1 keep what is drawn; the others give
the accuracy of the two rows. The twin's records carry M3BSR's name; rows are told apart by their keys.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import sklearn
from numpy import ndarray

from harness.compose import check_overrides, compose_cell
from harness.config import Cell, cell_key
from harness.data.dataset import Dataset
from harness.errors import InputError
from harness.execution.plan import Plan
from harness.experiments.common import (
    Request,
    check_cells,
    failures,
    publish_page,
    table_data,
)
from harness.report.beside import Published
from harness.report.embedding import MODES, TWIN, Embedding, Views, build_embedding, t_sne
from harness.report.embedding_figure import embedding_figure
from harness.report.embedding_page import FIGURE, embedding_csv, embedding_json, embedding_page
from harness.report.tables import build_table
from harness.run import open_dataset
from harness.store import Store, write_bytes
from harness.zoo import Method, find
from models.m3bsr import M3BSRConfig, ModalityDenoiser
from models.variants import VARIANTS

FULL = find("m3bsr")
METRICS = ("HR@10",)
VIEWS = ("item", *(f"{mode}_{view}" for mode in MODES for view in ("raw", "denoised")))


def choose_methods(word: str | None) -> tuple[Method, ...]:
    """The two rows. Raises InputError for a choice."""
    if word is not None:
        raise InputError(
            f"--methods '{word}': figure5 always has two rows, {FULL.label} and its {TWIN}; "
            "leave --methods out"
        )
    return (FULL, replace(FULL, label=TWIN))


def cells(request: Request) -> Sequence[Cell]:
    """Rows x data sets x seeds, the full model first.

    Raises InputError for settings that do not fit each other, for readings that leave nothing to
    train on, and when the overrides have taken CDMD-M out.
    """
    check_overrides((FULL,), request.overrides)
    made = [cell for _, cell in _grid(request)]
    check_cells(made, request.places)
    return made


def rows(request: Request) -> dict[str, Method]:
    """The row of every cell, by key."""
    return {cell_key(cell): row for row, cell in _grid(request)}


def _grid(request: Request) -> list[tuple[Method, Cell]]:
    """Every cell with its row. Runs count from seed 1, as in Table 2."""
    made = []
    for row in choose_methods(None):
        for name in request.names:
            full = compose_cell(FULL, name, request.budget, request.overrides, request.tuned)
            model = full.model
            assert isinstance(model, M3BSRConfig)
            if model.parts.modality_denoiser is not ModalityDenoiser.diffusion:
                raise InputError(
                    f"figure5 shows what CDMD-M does, and model.parts.modality_denoiser="
                    f"{model.parts.modality_denoiser.name} takes it out; leave that override out"
                )
            cell = full if row.label == FULL.label else replace(full, model=VARIANTS[TWIN](model))
            made += [(row, replace(cell, seed=seed)) for seed in range(1, request.seeds + 1)]
    return made


def build(request: Request, planned: Plan, failed: dict[str, str]) -> Embedding:
    """What is shown and measured of the stored runs; t-SNE maps are remembered between calls."""
    reasons = failures(request) | failed
    table = build_table(
        planned.stored.values(), planned.wanted, table_data(request, planned), failed=reasons,
        target="figure5", budget_name=request.budget.name, overrides=request.overrides,
        methods=rows(request), metrics=METRICS,
    )  # fmt: skip
    return build_embedding(
        table,
        [_views(request, planned, name, reasons) for name in request.names],
        str(Published.read().paper.content["figure5"]["claim"]),
        _remembered(request),
    )


def publish(request: Request, planned: Plan, failed: dict[str, str]) -> str:
    """Write table.md, .csv, .tex, .json and the figure; returns what a terminal shows."""
    embedding = build(request, planned, failed)
    figures = {FIGURE: embedding_figure(embedding)} if embedding.drawn else None
    return publish_page(
        request, planned, embedding_page(embedding), embedding_csv(embedding), "tab:embeddings",
        embedding_json(embedding), figures=figures,
    )  # fmt: skip


def _views(request: Request, planned: Plan, name: str, reasons: Mapping[str, str]) -> Views:
    """What the records of seed 1 keep of one data set, and what is known of its items."""
    dataset = open_dataset(request.places.data, name)
    store = Store(request.places.results)
    arrays: dict[str, dict[str, ndarray]] = {}
    keys: dict[str, str] = {}
    why: dict[str, str] = {}
    for row, cell in _grid(request):
        if (cell.data, cell.seed) != (name, 1):
            continue
        key = cell_key(cell)
        if key not in planned.stored:
            why[row.label] = f"failed: {reasons[key]}" if key in reasons else "not run"
            continue
        found = store.arrays(key)
        if any(view not in found for view in VIEWS):
            why[row.label] = (
                f"the record keeps no features; remove results/cells/{key} to run it again"
            )
        elif len(found["item"]) and found["item"].max() > dataset.items:
            why[row.label] = f"the features of record {key[:12]} are of other items"
        else:
            arrays[row.label], keys[row.label] = found, key
    return Views(
        data=name,
        arrays=arrays,
        keys=keys,
        why=why,
        present={mode: np.asarray(dataset.array(f"{mode}_present")) for mode in MODES},
        vectors={mode: dataset.array(mode) for mode in MODES},
        categories=_categories(dataset),
    )


def _categories(dataset: Dataset) -> list[str | None] | None:
    """Every item row's category: as reports name it, else the id field; None where there is neither."""
    table = pq.read_table(dataset.folder / "items.parquet", columns=["category"])
    names = table.column("category").to_pylist()
    if any(names):
        return [None, *names]
    if "category" in dataset.manifest["fields"]:
        codes = dataset.array("field_category")
        return [f"category {code}" if code else None for code in codes.tolist()]
    return None


def _remembered(request: Request) -> Callable[[ndarray], ndarray]:
    """`t_sne`, with its maps kept among the tables: the same features are mapped once."""
    folder = request.places.results / "tables" / request.target / ".maps"

    def embed(x: ndarray) -> ndarray:
        said = hashlib.sha256(f"{sklearn.__version__} {x.dtype} {x.shape}".encode())
        said.update(np.ascontiguousarray(x).tobytes())
        path = folder / f"{said.hexdigest()}.npy"
        try:
            made: ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            made = np.empty(0)
        if made.shape == (len(x), 2):
            return made
        made = t_sne(x)
        content = io.BytesIO()
        np.save(content, made)
        write_bytes(path, content.getvalue())
        return made

    return embed
