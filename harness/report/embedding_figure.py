"""The maps of Figure 5: a row a data set and modality, three columns, categories by colour and marker."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.embedding import (
    COLOURED,
    DENOISED,
    DRAWN,
    FEATURES,
    NO_CATEGORY,
    PURITY,
    SILHOUETTE,
    Embedding,
    Labels,
    Scene,
)
from harness.report.figures import COLOURS, OTHERS, OURS, canvas

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HUES = (*(colour for colour in COLOURS if colour != OURS), "#882255", "#999933")
"""Of categories; M3BSR's own colour is left to its panel's title."""
LOOKS = tuple(zip(HUES, MARKERS, strict=True))
UNKNOWN = "#C8C8C8"
LONGEST = 20
"""Characters of a category's name that are drawn."""
LAST_LETTER = 0x4FF
"""Of Latin, Greek and Cyrillic, which the figures' font has."""


def embedding_figure(embedding: Embedding) -> Figure:
    """Every scene that has a map."""
    scenes = embedding.drawn
    with canvas(9.2, 2.75 * len(scenes) + 0.35) as figure:
        grid = figure.add_gridspec(len(scenes), 4, width_ratios=[1, 1, 1, 0.42])
        for row, scene in enumerate(scenes):
            for column, name in enumerate(DRAWN):
                axes = figure.add_subplot(grid[row, column])
                _panel(axes, scene, name)
                if row == 0:
                    ours = name == DENOISED
                    axes.set_title(name, fontsize=10, color=OURS if ours else "black",
                                   fontweight="bold" if ours else "normal")  # fmt: skip
                if column == 0:
                    axes.set_ylabel(f"{scene.data}\n{scene.mode}", fontsize=9)
            _legend(figure.add_subplot(grid[row, 3]), scene)
        return figure


def _panel(axes: Axes, scene: Scene, name: str) -> None:
    """One map; its axes have no unit and no meaning, so they have no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#BBBBBB")
    space, labels = scene.spaces.get(name), scene.labels
    if space is None or space.map is None or labels is None:
        axes.text(0.5, 0.5, _wrapped(scene.gaps.get(name, "not run")), ha="center", va="center",
                  fontsize=8, color=OTHERS, transform=axes.transAxes)  # fmt: skip
        return
    size = 14 if len(space.map) < 300 else 7
    order = [NO_CATEGORY, *reversed(range(len(labels.names)))]  # the largest category on top
    for number in order:
        points = space.map[labels.of_item == number]
        colour, marker = _look(number)
        axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, marker=marker, linewidths=0,
                     alpha=0.85, rasterized=True)  # fmt: skip
    axes.set_xlabel(_numbers(scene, name), fontsize=7.5)


def _look(number: int) -> tuple[str, str]:
    if number == NO_CATEGORY:
        return UNKNOWN, "."
    return LOOKS[number] if number < COLOURED else (OTHERS, ".")


def _numbers(scene: Scene, name: str) -> str:
    """`features: silhouette 0.12, purity 0.41`."""
    measures = scene.spaces[name].measures
    said = [
        f"{measure} {measures[FEATURES, measure].mean:.2f}".replace("-0.00", "0.00")
        for measure in (SILHOUETTE, PURITY)
        if (FEATURES, measure) in measures
    ]
    return f"of the features: {', '.join(said)}" if said else ""


def _legend(axes: Axes, scene: Scene) -> None:
    axes.axis("off")
    labels = scene.labels
    if labels is None or not labels.names:
        return
    entries = [(_look(number), drawable(labels, number)) for number in range(len(labels.names))]
    shown = entries[:COLOURED]
    if len(entries) > COLOURED:
        shown.append(((OTHERS, "."), f"{len(entries) - COLOURED} others"))
    if (labels.of_item == NO_CATEGORY).any():
        shown.append(((UNKNOWN, "."), "no category"))
    for (colour, marker), name in shown:
        axes.scatter([], [], s=22, c=colour, marker=marker, linewidths=0, label=name)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(-0.15, 0.5),
                title="clusters of\nthe frozen vectors" if labels.clusters else "category",
                title_fontsize=7.5, alignment="left", handletextpad=0.3)  # fmt: skip


def drawable(labels: Labels, number: int) -> str:
    """A category's name as the figure has it; a number by size where the font has no such letters."""
    name = labels.names[number]
    if any(ord(letter) > LAST_LETTER for letter in name):
        return f"no. {number + 1} by size"
    short = name if len(name) <= LONGEST else name[: LONGEST - 1].rstrip() + "…"
    return short.replace("$", r"\$")


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text[:160].split():
        if line and len(line) + len(word) > 32:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line]).replace("$", r"\$")
