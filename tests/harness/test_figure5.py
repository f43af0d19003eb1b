"""Figure 5: its cells, and what it measures and says of made-up features with a planted truth."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from harness.compose import Budget, compose_cell
from harness.config import cell_key
from harness.errors import InputError
from harness.execution.plan import Plan
from harness.experiments import common, figure5, table2
from harness.report.document import Picture
from harness.report.embedding import (
    DENOISED,
    DISPERSION,
    FEATURES,
    MAP,
    OVERLAP,
    PURITY,
    RAW,
    SILHOUETTE,
    TWIN,
    TWIN_MAPPED,
    TWIN_RAW,
    Embedding,
    Views,
    build_embedding,
    t_sne,
)
from harness.report.embedding_figure import drawable, embedding_figure
from harness.report.embedding_page import (
    claim_lines,
    embedding_csv,
    embedding_json,
    embedding_page,
)
from harness.report.figures import write_figure
from harness.report.tables import build_table
from harness.report.text import markdown
from harness.reproduce import main
from harness.run import Places
from harness.stats import Judgement
from harness.store import Record, Store
from tests.harness.report_world import ranks, record, table_data

ITEMS, GROUPS, WIDTH = 120, 4, 8
DATA = ("demo_rec_tmall", "demo_kuaishou")


@pytest.fixture(scope="module", autouse=True)
def _composed_once():
    """Hydra takes most of the time of these tests; no data set is opened for the cells."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (common, figure5):
            patch.setattr(module, "compose_cell", cache(compose_cell))
        patch.setattr(common, "check_split", lambda *_: None)
        yield


def request(seeds: int = 1, overrides: tuple[str, ...] = (), data: tuple[str, ...] = ("tiny",),
            budget: Budget = Budget.quick, target: str = "figure5", word: str | None = None,
            places: Places | None = None) -> common.Request:  # fmt: skip
    choose = figure5.choose_methods if target == "figure5" else common.choose_methods
    return common.Request(
        target, ",".join(data), data, budget, seeds, choose(word), overrides,
        places or Places(Path("data"), Path("results")), "a command",
    )  # fmt: skip


def flat(x: np.ndarray) -> np.ndarray:
    """A map that needs no fit."""
    return np.asarray(x[:, :2])


def features(noise: dict[str, float], seed: int = 0, items: int = ITEMS) -> dict[str, np.ndarray]:
    """Views whose categories stand at corners, blurred by so much noise before and after."""
    random = np.random.default_rng(seed)
    number = np.arange(1, items + 1)
    centre = 3 * np.eye(WIDTH)[number % GROUPS]
    blur = random.standard_normal((2, items, WIDTH))
    made = {"item": random.permutation(number)}
    for mode, own in zip(("image", "text"), blur, strict=True):
        for view, size in noise.items():
            made[f"{mode}_{view}"] = (centre + size * own)[made["item"] - 1].astype(np.float32)
    return made


def views(ours: float = 1.0, twin: float = 1.0, raw: float = 1.0, **changes: Any) -> Views:
    """Noise after CDMD, after the MLP, and before either."""
    number = np.arange(ITEMS + 1)
    made = Views(
        data="tiny",
        arrays={
            "M3BSR": features({"raw": raw, "denoised": ours}),
            TWIN: features({"raw": raw, "denoised": twin}, 1),
        },
        keys={"M3BSR": "a" * 64, TWIN: "b" * 64},
        why={},
        present=dict.fromkeys(("image", "text"), number > 0),
        vectors=dict.fromkeys(
            ("image", "text"), np.random.default_rng(2).standard_normal((ITEMS + 1, 5))
        ),
        categories=[None, *(f"kind {value % GROUPS}" for value in number[1:])],
    )
    return replace(made, **changes)


def records_of(asked: common.Request, keep: Callable[[Any], bool] = lambda _: True) -> list[Record]:
    """Made-up runs: scores of users, a little lower without CDMD."""
    rows = figure5.rows(asked)
    made = []
    for number, cell in enumerate(figure5.cells(asked)):
        random = np.random.default_rng(number)
        score = random.standard_normal(200) + 0.5 * (rows[cell_key(cell)].label != TWIN)
        if keep(cell):
            made.append(record(cell, ranks(1 - ndtr(score))))
    return made


def judged(*found: Views, asked: common.Request | None = None, records: list[Record] | None = None,
           embed: Callable[[np.ndarray], np.ndarray] = flat) -> Embedding:  # fmt: skip
    asked = asked or request()
    table = build_table(
        records_of(asked) if records is None else records, figure5.cells(asked),
        [table_data(name, demo=True) for name in asked.names], target="figure5",
        budget_name=asked.budget.name, methods=figure5.rows(asked), metrics=figure5.METRICS,
    )  # fmt: skip
    return build_embedding(table, found or (views(),), "compact clusters", embed)


# --- cells ---


@pytest.mark.parametrize("overrides", [(), ("model.hidden=16", "train.epochs=3")])
def test_the_full_model_is_trained_once_for_table2_and_figure5(overrides):
    full = [
        cell_key(cell)
        for cell in table2.cells(request(2, overrides, DATA, target="table2", word="m3bsr"))
        if cell.method == "m3bsr"
    ]
    asked = request(2, overrides, DATA)
    ours = figure5.cells(asked)
    assert [cell_key(cell) for cell in ours][: len(full)] == full
    assert len({cell_key(cell) for cell in ours}) == len(ours) == 2 * len(full)
    labels = [figure5.rows(asked)[cell_key(cell)].label for cell in ours]
    assert labels == ["M3BSR"] * len(full) + [TWIN] * len(full)
    for cell, twin in zip(ours[: len(full)], ours[len(full) :], strict=True):
        assert replace(twin, model=cell.model) == cell
        assert twin.model.parts.modality_denoiser.name == "mlp"


def test_choices_and_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="figure5 always has two rows, M3BSR and its MLP twin"):
        figure5.choose_methods("sasrec")
    with pytest.raises(InputError, match="modality_denoiser=mlp takes it out"):
        figure5.cells(request(overrides=("model.parts.modality_denoiser=mlp",)))
    with pytest.raises(InputError, match="M3BSR cannot be built"):
        figure5.cells(request(overrides=("model.heads=3", "model.hidden=8")))


# --- numbers ---


def test_measures_say_what_is_planted():
    scene = judged(views(ours=0.2, twin=2.0)).scenes[0]

    def value(name: str, measure: str, place: str = FEATURES) -> float:
        return scene.spaces[name].measures[place, measure].mean

    assert (
        value(DENOISED, SILHOUETTE) > 0.7 > value(RAW, SILHOUETTE) > value(TWIN_MAPPED, SILHOUETTE)
    )
    assert value(DENOISED, PURITY) == 1
    assert (
        value(DENOISED, DISPERSION)
        < value(RAW, DISPERSION)
        < value(TWIN_MAPPED, DISPERSION)
        <= 1.01
    )
    assert value(RAW, OVERLAP) == 1
    assert value(TWIN_RAW, OVERLAP) == 1
    assert 0 < value(DENOISED, OVERLAP) < 1
    assert (MAP, SILHOUETTE) in scene.spaces[RAW].measures
    assert scene.spaces[TWIN_RAW].map is None
    for space in scene.spaces.values():
        for found in space.measures.values():
            assert found.low <= found.mean <= found.high


def test_chance_is_the_purity_of_shuffled_categories():
    random = np.random.default_rng(0)
    names = [None, *random.choice(["a", "b", "c"], ITEMS, p=[0.6, 0.3, 0.1]).tolist()]
    found = [
        judged(views(raw=50.0, categories=[None, *random.permutation(names[1:]).tolist()])).scenes[
            0
        ]
        for _ in range(20)
    ]
    chance = found[0].chance
    assert all(scene.chance == pytest.approx(chance) for scene in found)
    mean = np.mean([scene.spaces[RAW].measures[FEATURES, PURITY].mean for scene in found])
    assert mean == pytest.approx(chance, abs=0.02)


def test_a_shift_is_told_from_other_movement():
    base = views()
    arrays = {row: dict(own) for row, own in base.arrays.items()}
    arrays["M3BSR"]["image_denoised"] = arrays["M3BSR"]["image_raw"]
    arrays[TWIN]["image_denoised"] = arrays[TWIN]["image_raw"] + np.float32(2.0)
    scene = judged(replace(base, arrays=arrays)).scenes[0]
    assert (scene.spaces[DENOISED].moved, scene.spaces[DENOISED].common) == (0.0, None)
    assert scene.spaces[TWIN_MAPPED].common == pytest.approx(1, abs=1e-5)
    assert scene.spaces[TWIN_MAPPED].measures[FEATURES, OVERLAP].mean == 1
    assert scene.differences[DENOISED, RAW, SILHOUETTE].mean == 0
    page = markdown(embedding_page(judged(replace(base, arrays=arrays))))
    assert "Of the MLP's movement one shift of all items is 100 % (image)" in page
    assert "tiny, image, after CDMD: these settings leave the features as they were." in page


def test_items_are_matched_by_their_ids_whatever_their_order():
    base = views(ours=0.3)
    order = np.random.default_rng(5).permutation(ITEMS)
    turned = {name: array[order] for name, array in base.arrays["M3BSR"].items()}
    other = replace(base, arrays={**base.arrays, "M3BSR": turned})
    one, two = judged(base).scenes[0], judged(other).scenes[0]
    for name in (DENOISED, TWIN_MAPPED):
        for key, found in one.spaces[name].measures.items():
            assert two.spaces[name].measures[key].mean == pytest.approx(found.mean)


# --- judgement ---


@pytest.mark.parametrize(
    ("raw", "ours", "twin", "expected"),
    [
        (1.0, 0.3, 1.0, Judgement.SUPPORTED),
        (1.0, 3.0, 1.0, Judgement.CONTRADICTED),
        (3.0, 1.5, 0.8, Judgement.CONTRADICTED),  # less compact than after the MLP
        (1.0, 1.0, 1.0, Judgement.UNDECIDED),
        (1.0, 1.0, 3.0, Judgement.UNDECIDED),  # better than the MLP, no better than raw
    ],
)
def test_the_judgement_follows_the_features(raw, ours, twin, expected):
    embedding = judged(views(ours, twin, raw))
    assert embedding.judgement is expected
    assert f"On the data here: {expected.value}." in claim_lines(embedding)[0]
    assert "our own reading" in claim_lines(embedding)[-1]


def test_one_modality_is_not_enough():
    good, bad = views(0.3), views(3.0)
    mixed = {
        name: (good if name.startswith("image") else bad).arrays["M3BSR"][name]
        for name in good.arrays["M3BSR"]
    }
    assert (
        judged(replace(good, arrays={**good.arrays, "M3BSR": mixed})).judgement
        is Judgement.UNDECIDED
    )


def test_a_smoke_run_is_not_judged():
    asked = request(budget=Budget.smoke)
    embedding = judged(views(0.3), asked=asked, records=[])
    assert embedding.judgement is Judgement.UNDECIDED
    assert "only the first 200 users" in claim_lines(embedding)[1]


# --- categories ---


def test_without_categories_clusters_of_the_frozen_vectors_are_named_as_such():
    embedding = judged(views(0.3, categories=None))
    scene = embedding.scenes[0]
    assert scene.labels.clusters
    assert len(scene.labels.names) == 8
    assert embedding.judgement is Judgement.UNDECIDED
    page = markdown(embedding_page(embedding))
    assert "8 k-means clusters of the frozen image vectors, no categories" in page
    assert "the claim is not judged" in page


def test_many_categories_are_shown_by_their_parents_and_colours_agree_over_modalities():
    number = np.arange(1, ITEMS + 1)
    names = [None, *(f"{value % GROUPS}-{value % 40}" for value in number)]
    there = {"image": np.arange(ITEMS + 1) > 0, "text": np.arange(ITEMS + 1) > 50}
    image, text = judged(views(categories=names, present=there)).scenes
    assert image.labels.names == text.labels.names == ("0", "1", "2", "3")
    assert len(text.items) == ITEMS - 50
    assert [image.labels.names[place] for place in image.labels.of_item] == [
        str(item % GROUPS) for item in image.items
    ]
    odd = [
        None,
        *(f"T-shirt {value % 20}" if value % 2 else f"hat {value % 20}" for value in number),
    ]
    assert len(judged(views(categories=odd)).scenes[0].labels.names) == 20
    genres = [None, *(f"g{value % 3}|x{value % 17}" if value % 5 else "g0" for value in number)]
    assert set(judged(views(categories=genres)).scenes[0].labels.names) == {"g0", "g1", "g2"}


def test_items_without_a_category_count_nowhere_and_others_are_grey(tmp_path):
    names: list[str | None] = [None, *(f"c{value % 15}" for value in range(ITEMS))]
    names[1:31] = [None] * 30
    embedding = judged(views(categories=names))
    scene = embedding.scenes[0]
    assert (scene.labels.of_item == -1).sum() == 30
    assert "the 8 largest of 15 have a colour" in markdown(embedding_page(embedding))
    write_figure(tmp_path, "drawn", embedding_figure(embedding))
    drawing = (tmp_path / "drawn.svg").read_text(encoding="utf8")
    assert "7 others" in drawing
    assert "no category" in drawing


def test_names_that_the_font_lacks_or_mathematics_would_read_are_drawn_all_the_same(tmp_path):
    names = [None, *(("女装", "$5 & less", "x" * 50)[value % 3] for value in range(ITEMS))]
    embedding = judged(views(categories=names))
    labels = embedding.scenes[0].labels
    assert {drawable(labels, number) for number in range(3)} == {
        "no. 3 by size", r"\$5 & less", "x" * 19 + "…",
    }  # fmt: skip
    write_figure(tmp_path, "drawn", embedding_figure(embedding))
    assert "no. 3 by size is 女装" in markdown(embedding_page(embedding))


def test_one_category_alone_gives_no_numbers_by_category():
    embedding = judged(views(categories=[None, *["all"] * ITEMS]))
    assert set(embedding.scenes[0].spaces[RAW].measures) == {(FEATURES, OVERLAP), (MAP, OVERLAP)}
    assert embedding.judgement is Judgement.UNDECIDED
    assert markdown(embedding_page(embedding))


# --- gaps ---


def test_items_without_vectors_are_left_out_and_without_any_nothing_is_drawn():
    nobody = dict.fromkeys(("image", "text"), np.zeros(ITEMS + 1, dtype=bool))
    embedding = judged(views(0.3, present=nobody))
    assert embedding.drawn == ()
    page = embedding_page(embedding)
    assert not any(isinstance(part, Picture) for part in page.parts)
    assert "no image vectors: all items share one learned vector" in markdown(page)
    few = dict.fromkeys(("image", "text"), np.arange(ITEMS + 1) > ITEMS - 5)
    assert "5 of the shown items have image vectors, and 10 are needed" in markdown(
        embedding_page(judged(views(present=few)))
    )


def test_missing_models_are_gaps_with_their_reasons(tmp_path):
    base = views(0.3)
    ours = replace(base, arrays={"M3BSR": base.arrays["M3BSR"]}, why={TWIN: "failed: NaN"})
    embedding = judged(ours)
    assert embedding.judgement is Judgement.UNDECIDED
    page = markdown(embedding_page(embedding))
    assert "tiny, image, after the MLP: missing; failed: NaN." in page
    write_figure(tmp_path, "drawn", embedding_figure(embedding))
    assert "failed: NaN" in (tmp_path / "drawn.svg").read_text(encoding="utf8")
    twin = replace(base, arrays={TWIN: base.arrays[TWIN]}, why={"M3BSR": "not run"})
    assert list(judged(twin).scenes[0].spaces) == [TWIN_RAW, TWIN_MAPPED]
    nothing = replace(base, arrays={}, why={"M3BSR": "not run", TWIN: "not run"})
    empty = judged(nothing, records=[])
    assert empty.drawn == ()
    assert "nothing is drawn; M3BSR: not run; MLP twin: not run." in markdown(embedding_page(empty))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_cannot_be_drawn_are_named(bad):
    base = views(0.3)
    arrays = {row: dict(own) for row, own in base.arrays.items()}
    arrays["M3BSR"]["image_denoised"] = np.full_like(arrays["M3BSR"]["image_raw"], bad)
    arrays["M3BSR"]["text_denoised"] = np.ones_like(arrays["M3BSR"]["text_raw"])
    image, text = judged(replace(base, arrays=arrays)).scenes
    assert image.gaps == {DENOISED: "its features are not finite"}
    assert text.gaps == {DENOISED: "all items have the same feature"}


@pytest.mark.parametrize("items", [10, 12, 29])
def test_few_items_are_mapped(items):
    number = np.arange(ITEMS + 1)
    there = dict.fromkeys(("image", "text"), (number > 0) & (number <= items))
    scene = judged(views(0.3, present=there), embed=t_sne).scenes[0]
    assert scene.spaces[RAW].map.shape == (items, 2)
    assert np.isfinite(scene.spaces[RAW].map).all()


# --- page and files ---


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_accuracies_are_tested_as_far_as_the_runs_allow(seeds):
    asked = request(seeds)
    page = markdown(embedding_page(judged(asked=asked)))
    assert page.startswith("DEMO DATA")
    assert page.index("Maps of items") < page.index("What the eye is to see, as numbers")
    assert "M3BSR minus the MLP twin" in page
    assert ("One run a method: no p." in page) == (seeds == 1)
    assert "One trained model of each row, that of seed 1" in page
    assert "Distances in a t-SNE map carry no meaning" in page


def test_numbers_name_the_runs_that_they_rest_on():
    grid = next(
        part for part in embedding_page(judged()).parts if part.title.startswith("What the eye")
    )
    by_name = {line.name: line.entries for line in grid.lines if line.entries}
    assert by_name[DENOISED][0][0].runs == ("a" * 64,)
    assert by_name[TWIN_MAPPED][0][0].runs == ("b" * 64,)


def test_json_and_csv_hold_everything():
    embedding = judged(views(0.3))
    content = embedding_json(embedding)
    json.dumps(content, allow_nan=False)
    assert content["target"] == "figure5"
    assert {cell["method"] for cell in content["cells"]} == {"M3BSR", TWIN}
    assert content["claim"]["judgement"] == "supported"
    assert content["claim"]["data"] == [{"name": "tiny", "judgement": "supported", "why": ""}]
    assert [scene["drawn"] for scene in content["scenes"]] == [[RAW, DENOISED, TWIN_MAPPED]] * 2
    lines = list(csv.DictReader(io.StringIO(embedding_csv(embedding))))
    kinds = {line["kind"] for line in lines}
    assert kinds == {"method", "measure", "difference", "point"}
    assert sum(line["kind"] == "point" for line in lines) == 2 * 3 * ITEMS


def test_the_figure_is_the_same_bytes_each_time(tmp_path):
    for folder in ("one", "two"):
        write_figure(tmp_path / folder, "figure5", embedding_figure(judged(views(0.3))))
    for ending in ("svg", "png"):
        one, two = (
            (tmp_path / folder / f"figure5.{ending}").read_bytes() for folder in ("one", "two")
        )
        assert one == two


def test_publish_reads_records_and_maps_the_same_features_once(data, tmp_path, monkeypatch):
    asked = request(2, places=Places(data, tmp_path / "results"))
    dataset = figure5.open_dataset(data, "tiny")
    prints = {
        "data": dataset.data_sha256,
        "candidates": dataset.candidates_sha256(figure5.cells(asked)[0].protocol),
    }
    stored = {}
    for made in records_of(asked):
        own = replace(made, fingerprints=replace(made.fingerprints, **prints))
        kept = features({"raw": 1.0, "denoised": 0.5}, own.seed) if own.seed == 1 else {}
        Store(tmp_path / "results").save(own, kept)
        stored[own.key] = own
    counted = []
    monkeypatch.setattr(figure5, "t_sne", lambda x: counted.append(len(x)) or flat(x))
    planned = Plan(tuple(figure5.cells(asked)), stored, ())
    shown = figure5.publish(asked, planned, {})
    maps = len(counted)
    assert 0 < maps <= 6
    folder = tmp_path / "results" / "tables" / "figure5" / "tiny"
    assert shown.endswith(f"written to {folder}/table.md, .csv, .tex, .json, figure5.svg, .png")
    first = (folder / "figure5.svg").read_bytes()
    assert figure5.publish(asked, planned, {}) == shown
    assert len(counted) == maps
    assert (folder / "figure5.svg").read_bytes() == first
    gone = {key: own for key, own in stored.items() if own.seed != 1}
    shown = figure5.publish(asked, Plan(planned.wanted, gone, ()), {})
    assert "nothing is drawn; M3BSR: not run; MLP twin: not run." in shown.replace("\n  ", " ")


@pytest.mark.slow
def test_reproduce_figure5_trains_draws_and_prints_again(words, tmp_path, capsys):
    command = ["figure5", *words, "--budget", "smoke", "--workers", "1"]
    assert main(command) == 0
    folder = tmp_path / "results" / "tables" / "figure5" / "tiny"
    drawing = (folder / "figure5.svg").read_bytes()
    page = (folder / "table.md").read_text(encoding="utf8")
    assert page.startswith("DEMO DATA")
    assert "missing;" not in page
    assert "What is missing" not in page
    assert "colours: the data set's categories, by their parents" in page
    content = json.loads((folder / "table.json").read_text(encoding="utf8"))
    assert content["claim"]["judgement"] == "undecided"
    assert all(scene["drawn"] == [RAW, DENOISED, TWIN_MAPPED] for scene in content["scenes"])
    capsys.readouterr()
    assert main(command) == 0
    assert "to run" not in capsys.readouterr().err
    assert (folder / "figure5.svg").read_bytes() == drawing


@pytest.mark.slow
def test_a_map_does_not_depend_on_the_number_of_threads() -> None:
    code = (
        "import hashlib, numpy as np; from harness.report.embedding import t_sne; "
        "x = np.random.default_rng(0).standard_normal((600, 32)); "
        "print(hashlib.sha256(t_sne(x).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1
