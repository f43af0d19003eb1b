"""Figures: one look for all of them, and files that are the same bytes for the same numbers.

Colours are Okabe and Ito's, told apart by readers with colour-vision deficiencies and in grey print.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from harness.store import write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OURS = COLOURS[1]
"""Of M3BSR, in every figure."""
OTHERS = "#7F7F7F"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: searchable, and a page's own font
    "svg.hashsalt": "figures",
}
DOTS_PER_INCH = 160


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size (inches) in the house style, laid out without overlaps."""
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write NAME.svg and NAME.png into `folder`, each whole or not at all."""
    with mpl.rc_context(STYLE):
        for ending in ("svg", "png"):
            content = io.BytesIO()
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            figure.savefig(content, format=ending, dpi=DOTS_PER_INCH, metadata=metadata)
            write_bytes(folder / f"{name}.{ending}", content.getvalue())
