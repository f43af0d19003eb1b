"""MovieLens-100K: ml-100k's own u.data and u.item, or RecBole's atomic files ml-100k.inter and .item.

The two behaviours are a THRESHOLD, not two acts: every rating is a click, and a rating of 4 or 5 adds a
favor at the same second, after the click. Good for the path of three modalities and for speed, not for
claims about behaviours. MovieLens may be used for research and not be passed on.

Axes: event = clicks and favors in file order, rating = rows of the source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from harness.data.raw import CLICK, FAVOR, Raw, sha256_file
from harness.data.table import (
    ids,
    listed_once,
    numbered,
    optional_text,
    read_frame,
    require_columns,
    timestamps,
)
from harness.errors import InputError

LIKED = 4
"""A rating from here on is a favor."""
GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller",
    "War", "Western",
]  # fmt: skip
"""Flags of u.item, in the order of its columns."""


def read_movielens(folder: Path) -> Raw:
    """Ratings and films in a folder.

    Raises:
        InputError: no known file is there, or one cannot be read.
    """
    atomic = sorted(folder.glob("*.inter"))
    if (folder / "u.data").is_file():
        paths = [folder / "u.data", folder / "u.item"]
        names = ["user_id", "item_id", "rating", "timestamp"]
        ratings = _read_plain(paths[0], "\t", "utf8", names)
        films = _own_films(paths[1])
    elif atomic:
        paths = [atomic[0], atomic[0].with_suffix(".item")]
        ratings, films = (_read_atomic(path) for path in paths)
        films = films.rename(columns={"movie_title": "title", "class": "genres"})
    else:
        raise InputError(
            f"'{folder}' holds neither u.data (ml-100k) nor a .inter file (RecBole); "
            "name the folder with --raw DIR"
        )
    needed = {name: name for name in ("user_id", "item_id", "rating", "timestamp")}
    require_columns(ratings, paths[0], needed, options=False)
    require_columns(films, paths[1], {"item_id": "item_id"}, options=False)

    item_ids = listed_once(ids(films["item_id"], paths[1]), paths[1])
    place = pd.Index(item_ids).get_indexer(pd.Index(ids(ratings["item_id"], paths[0])))
    if (place < 0).any():
        row = int(np.argmax(place < 0))
        raise InputError(
            f"{paths[0].name} row {row + 1} rates an item that {paths[1].name} does not list"
        )
    user, user_ids = numbered(ids(ratings["user_id"], paths[0]))
    time = timestamps(ratings["timestamp"], ratings["user_id"], paths[0])
    rating = pd.to_numeric(ratings["rating"], errors="coerce").to_numpy()
    if np.isnan(rating).any():
        row = int(np.argmax(np.isnan(rating)))
        raise InputError(f"{paths[0].name} has no rating in row {row + 1}; leave such rows out")
    liked = rating >= LIKED
    event = np.repeat(np.arange(len(liked)), 1 + liked)
    second = np.zeros(len(event), dtype=bool)
    second[1:] = event[1:] == event[:-1]
    return Raw(
        source="movielens",
        user=user[event],
        item=place[event].astype(np.int64),
        behaviour=np.where(second, FAVOR, CLICK),
        timestamp=time[event],
        user_ids=user_ids,
        item_ids=item_ids,
        keep_items=True,
        title=optional_text(films, "title"),
        category=optional_text(films, "genres"),
        files={path.name: sha256_file(path) for path in paths},
        facts={"favor_rule": f"rating >= {LIKED}: a threshold, not a behaviour of its own"},
    )


def _read_plain(path: Path, separator: str, encoding: str, names: list[str]) -> pd.DataFrame:
    """One of ml-100k's files, which have no header."""
    if not path.is_file():
        raise InputError(f"no file '{path}'")
    try:
        return pd.read_csv(path, sep=separator, encoding=encoding, names=names, header=None)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{path}': {str(error).splitlines()[0]}") from error


def _own_films(path: Path) -> pd.DataFrame:
    """u.item: number, title with year, dates, address, 19 genre flags."""
    names = ["item_id", "title", "released", "video", "address", *GENRES]
    films = _read_plain(path, "|", "latin-1", names)
    flags = films[GENRES].to_numpy() == 1
    films["genres"] = [" ".join(np.array(GENRES)[row].tolist()) for row in flags]
    return films


def _read_atomic(path: Path) -> pd.DataFrame:
    """A RecBole atomic file: tab-separated, columns named NAME:TYPE."""
    frame = read_frame(path, separator="\t")
    return frame.rename(columns=lambda name: str(name).partition(":")[0])
