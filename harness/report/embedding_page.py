"""What stands where on the page of Figure 5, in plain words, and the same for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.report.content import CHAMPION
from harness.report.document import (
    EMPTY,
    Band,
    Document,
    Entry,
    Grid,
    Line,
    Notes,
    Picture,
    Span,
    entry,
)
from harness.report.embedding import (
    BY_CATEGORY,
    COLOURED,
    DENOISED,
    DRAWN,
    DRAWS,
    FEATURES,
    MAP,
    MEASURES,
    NEIGHBOURS,
    OVERLAP,
    PAIRS,
    PERPLEXITY,
    RAW,
    SPACES,
    TWIN,
    TWIN_MAPPED,
    Embedding,
    Estimate,
    Reading,
    Scene,
)
from harness.report.embedding_figure import drawable
from harness.report.export import csv_lines, json_content, written
from harness.report.footers import power_notes
from harness.report.layout import against, bands, details, line_of, opening
from harness.stats import Judgement

FIGURE = "figure5"
TITLE = "Figure 5. Item embeddings before CDMD, after it, and after an MLP in its place"
CAPTION = (
    "t-SNE maps of the same items, coloured by category: features as the input layer makes them, "
    "after CDMD, and after an MLP of as many parameters in the place of CDMD-M. A row a data set and "
    "modality. Under each map: silhouette and purity of the features themselves, not of the map."
)
WARNING = (
    "Distances in a t-SNE map carry no meaning: neither how far apart clusters lie, nor how large or how "
    "dense they look, nor where they lie. The map keeps who is near whom, and can show clusters in pure "
    "noise. Axes have no unit, and two maps cannot be laid over each other. The numbers among the "
    "features, not those of the maps, are what the judgement rests on."
)
MEANINGS = (
    (
        "Silhouette: how much nearer an item is to its own category than to the next one (1 tight and apart, "
        "0 mixed, below 0 nearer to another)."
    ),
    (
        f"Purity: share of an item's {NEIGHBOURS} nearest neighbours that have its category; chance: what the "
        "same categories dealt out at random have on average (exact)."
    ),
    (
        "Dispersion: mean distance within a category over mean distance of all; 1 no clusters, smaller is "
        "more compact."
    ),
    f"Overlap: share of the {NEIGHBOURS} nearest neighbours that the same model's features had before.",
    (
        "Moved: mean squared distance to the features before, over their mean squared length. One shift: "
        "the share of this movement that is the same for all items; a mere translation has 1."
    ),
)
OWN_READING = (
    "How it is judged is our own reading of what the paper says about a picture, outside the family of "
    "tested claims and without a p value. Supported on a data set: silhouette and purity of the features "
    "are higher after CDMD than raw, and than after the MLP, on image and text, each beyond its interval. "
    "Contradicted: all of them are lower than raw, or lower than after the MLP. Undecided: anything else. "
    "A change beyond its interval can still be too small for any eye."
)


def embedding_page(embedding: Embedding) -> Document:
    """The whole page."""
    table = embedding.table
    parts: list[Grid | Notes | Picture] = [
        Notes("What was found", (*claim_lines(embedding), WARNING))
    ]
    if embedding.drawn:
        parts.append(Picture("Maps of items", FIGURE, CAPTION))
    measured = [scene for scene in embedding.scenes if scene.spaces]
    if measured:
        parts.append(_measures_grid(measured))
    if any(scene.differences for scene in measured):
        parts.append(_differences_grid(measured))
    notes: list[str] = []
    lines = tuple(line_of(row, table, notes) for row in table.rows)
    below = [
        (
            "Mean over runs ± standard deviation of the runs. Bold: the better row. The paper prints no "
            "accuracy of the MLP."
        ),
        *power_notes(table.columns),
        *(f"[{number}] {note}" for number, note in enumerate(notes, 1)),
    ]
    parts.append(Grid("Accuracy of the two models", "Row", bands(table), lines, tuple(below)))
    appendix: list[Grid] = []
    if any(cell.comparison for row in table.rows for cell in row.cells):
        title = f"{CHAMPION} minus the {TWIN}"
        parts.append(replace(against(table), title=title, corner="Row"))
        appendix.append(replace(details(table), title=f"{title}, in full", corner="Row"))
    parts += [
        Notes("What is drawn", drawn_lines(embedding)),
        Notes("What these numbers rest on", table.notes),
    ]
    return Document(opening(table), TITLE, tuple(parts), tuple(appendix))


def claim_lines(embedding: Embedding) -> tuple[str, ...]:
    """The judgement, whole and by data set, with what it rests on."""
    return (
        f"The paper: {embedding.claim}. On the data here: {embedding.judgement.value}.",
        *(
            _reading_line(reading, [s for s in embedding.scenes if s.data == reading.data])
            for reading in embedding.readings
        ),
        OWN_READING,
    )


def _reading_line(reading: Reading, scenes: list[Scene]) -> str:
    why = f" ({reading.why})" if reading.why else ""
    said = [f"{reading.data}: {reading.judgement.value}{why}."]
    if reading.judgement is not Judgement.UNDECIDED or not reading.why:
        for scene in scenes:
            changes = [
                f"{measure} {_interval(scene.differences[DENOISED, rival, measure])} against {name}"
                for rival, name in ((RAW, "raw"), (TWIN_MAPPED, "the MLP"))
                for measure in BY_CATEGORY[:2]
                if (DENOISED, rival, measure) in scene.differences
            ]
            if changes:
                said.append(f"After CDMD, {scene.mode}: {'; '.join(changes)}.")
    twins = [(s.mode, s.spaces[TWIN_MAPPED].common) for s in scenes if TWIN_MAPPED in s.spaces]
    shifts = [f"{100 * share:.0f} % ({mode})" for mode, share in twins if share is not None]
    if shifts:
        said.append(f"Of the MLP's movement one shift of all items is {', '.join(shifts)}.")
    return " ".join(said)


def drawn_lines(embedding: Embedding) -> tuple[str, ...]:
    """Which items, which colours, which settings, and what is not there."""
    said = [
        (
            "One trained model of each row, that of seed 1: another training run may look different, and no "
            "number above the accuracies covers that. Intervals are bootstraps over items (95 %, "
            f"{DRAWS} draws, the same draws on both sides of a difference); items share neighbours, so they "
            "are too short rather than too long."
        ),
        (
            "Items: the most frequent in the test users' histories, at most 2,000, that have a vector. "
            "A feature after CDMD is the mean over the item's clicks and favors there, after CDMD-M and before "
            "CDMD-B (which changes clicks alone; its features are kept with the record), as in evaluation."
        ),
        (
            f"Maps: scikit-learn's TSNE, init pca, perplexity {PERPLEXITY:.0f} (a third of the items where "
            "there are few), random_state 0, the same for all panels."
        ),
    ]
    for scene in embedding.scenes:
        where = f"{scene.data}, {scene.mode}"
        if scene.why:
            said.append(f"{where}: nothing is drawn; {scene.why.rstrip('.')}.")
            continue
        assert scene.labels is not None
        said.append(f"{where}: {len(scene.items):,} items; colours: {_colours(scene)}.")
        said += [
            f"{where}, {name}: missing; {why.rstrip('.')}." for name, why in scene.gaps.items()
        ]
        for name in (DENOISED, TWIN_MAPPED):
            if name in scene.spaces and scene.spaces[name].moved == 0:
                said.append(f"{where}, {name}: these settings leave the features as they were.")
    return tuple(said)


def _colours(scene: Scene) -> str:
    labels = scene.labels
    assert labels is not None
    said = labels.said
    if len(labels.names) > COLOURED:
        said += (
            f"; the {COLOURED} largest of {len(labels.names)} have a colour, the others are grey"
        )
    if labels.clusters:
        said += "; the colours say nothing that the raw vectors do not, so the claim is not judged"
    renamed = [
        f"{drawable(labels, number)} is {labels.names[number]}"
        for number in range(min(COLOURED, len(labels.names)))
        if drawable(labels, number).startswith("no. ")
    ]
    return f"{said} ({', '.join(renamed)})" if renamed else said


# --- grids ---


def _measures_grid(scenes: list[Scene]) -> Grid:
    columns = {FEATURES: (*MEASURES, "moved", "one shift"), MAP: MEASURES}
    places = [(place, measure) for place, measures in columns.items() for measure in measures]
    made = []
    for scene in scenes:
        chance = "" if scene.chance is None else f" (purity by chance {scene.chance:.3f})"
        made.append(Line(f"{scene.data}, {scene.mode}{chance}"))
        made += [
            Line(name, tuple(_number(scene, name, *place) for place in places)) for name in SPACES
        ]
    named = tuple(Band(place, place, columns[place]) for place in columns)
    return Grid("What the eye is to see, as numbers", "Items", named, tuple(made), MEANINGS)


def _number(scene: Scene, name: str, place: str, measure: str) -> Entry:
    space = scene.spaces.get(name)
    if space is None:
        return entry("missing") if (place, measure) == (FEATURES, MEASURES[0]) else EMPTY
    if measure in {"moved", "one shift"}:
        value = space.moved if measure == "moved" else space.common
    elif measure == OVERLAP and place == FEATURES and SPACES[name][1] == "raw":
        value = None  # itself
    else:
        found = space.measures.get((place, measure))
        value = found.mean if found else None
    return EMPTY if value is None else (Span(f"{value:.3f}", runs=(space.run,)),)


def _differences_grid(scenes: list[Scene]) -> Grid:
    made = []
    for scene in scenes:
        made.append(Line(f"{scene.data}, {scene.mode}"))
        for a, b in PAIRS:
            found = [scene.differences.get((a, b, measure)) for measure in BY_CATEGORY]
            if any(found):
                runs = tuple(dict.fromkeys(scene.spaces[name].run for name in (a, b)))
                made.append(Line(f"{a} minus {b}", tuple(_change(one, runs) for one in found)))
    below = (
        (
            "Of the features. In brackets: 95 % interval, paired bootstrap over items, for these trained "
            "models; bold: it leaves zero out. More compact: silhouette and purity up, dispersion down."
        ),
    )
    return Grid("Changes", "Items", (Band("", "", BY_CATEGORY),), tuple(made), below)


def _change(change: Estimate | None, runs: tuple[str, ...]) -> Entry:
    if change is None or change.low is None or change.high is None:
        return EMPTY
    beyond = change.low > 0 or change.high < 0
    return (
        Span(f"{change.mean:+.3f}", bold=beyond, runs=runs),
        Span(f" [{change.low:+.3f}, {change.high:+.3f}]"),
    )


def _interval(change: Estimate) -> str:
    if change.low is None or change.high is None:
        return f"{change.mean:+.3f}"
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


# --- for programs ---


def measure_lines(embedding: Embedding) -> list[dict[str, Any]]:
    """A line a number: kind is measure or difference."""
    made: list[dict[str, Any]] = []
    for scene in embedding.scenes:
        where = {"dataset": scene.data, "mode": scene.mode, "items": len(scene.items)}
        for name, space in scene.spaces.items():
            start = {"kind": "measure", **where, "space": name, "run": space.run}
            for (place, measure), found in space.measures.items():
                chance = scene.chance if measure == "purity" else None
                made.append(
                    {
                        **start,
                        "place": place,
                        "measure": measure,
                        **_values(found),
                        "chance": chance,
                    }
                )
            for measure, value in (("moved", space.moved), ("one shift", space.common)):
                if value is not None:
                    made.append(
                        {**start, "place": FEATURES, "measure": measure, **_values(Estimate(value))}
                    )
        made += [
            {"kind": "difference", **where, "space": a, "minus": b, "place": FEATURES,
             "measure": measure, **_values(found)}
            for (a, b, measure), found in scene.differences.items()
        ]  # fmt: skip
    return made


def _values(found: Estimate) -> dict[str, float | None]:
    return {"value": found.mean, "low": found.low, "high": found.high}


def point_lines(embedding: Embedding) -> list[dict[str, Any]]:
    """A line a point of a map."""
    made: list[dict[str, Any]] = []
    for scene in embedding.drawn:
        labels = scene.labels
        assert labels is not None
        for name in DRAWN:
            space = scene.spaces.get(name)
            if space is None or space.map is None:
                continue
            for item, label, (x, y) in zip(scene.items, labels.of_item, space.map, strict=True):
                made.append({
                    "kind": "point", "dataset": scene.data, "mode": scene.mode, "space": name,
                    "item": int(item), "category": labels.names[label] if label >= 0 else None,
                    "x": float(x), "y": float(y),
                })  # fmt: skip
    return made


def embedding_csv(embedding: Embedding) -> str:
    """Everything: accuracies (kind method), measures, differences, points."""
    return written(
        [*csv_lines(embedding.table), *measure_lines(embedding), *point_lines(embedding)]
    )


def embedding_json(embedding: Embedding) -> dict[str, Any]:
    """Table 2's schema, and `scenes`, `measures`, `claim`; every number finite or null."""
    return {
        **json_content(embedding.table),
        "scenes": [_scene(scene) for scene in embedding.scenes],
        "measures": measure_lines(embedding),
        "claim": {
            "text": embedding.claim,
            "judgement": embedding.judgement.value,
            "rule": OWN_READING,
            "data": [
                {"name": r.data, "judgement": r.judgement.value, "why": r.why}
                for r in embedding.readings
            ],
        },
    }


def _scene(scene: Scene) -> Mapping[str, Any]:
    labels = scene.labels
    return {
        "dataset": scene.data,
        "mode": scene.mode,
        "items": len(scene.items),
        "labels": labels.said if labels else None,
        "clusters": labels.clusters if labels else None,
        "categories": list(labels.names) if labels else [],
        "drawn": [name for name in DRAWN if name in scene.spaces],
        "gaps": dict(scene.gaps),
        "why": scene.why,
    }
