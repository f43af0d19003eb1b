"""CI&T Deskdrop (Kaggle, "Articles sharing and reading"): what employees opened, liked and bookmarked.

Read from the log as published (users_interactions.csv) or from its conversion to interactions.parquet
with columns user, item, behavior, timestamp. Click = VIEW; favor = LIKE, BOOKMARK; FOLLOW and COMMENT
CREATED are left out and counted. There are no titles and no pictures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.data.raw import Raw
from harness.data.table import TableOptions, read_table
from harness.errors import InputError

PUBLISHED = "users_interactions.csv"
CONVERTED = "interactions.parquet"
READINGS = {
    CONVERTED: TableOptions(ignore=("follow", "comment")),
    PUBLISHED: TableOptions(
        click=("VIEW",),
        favor=("LIKE", "BOOKMARK"),
        ignore=("FOLLOW", "COMMENT CREATED"),
        user="personId",
        item="contentId",
        behavior="eventType",
    ),
}


def read_deskdrop(folder: Path) -> Raw:
    """The log in a folder.

    Raises:
        InputError: neither file is there, or one cannot be read.
    """
    for name, options in READINGS.items():
        if (folder / name).is_file():
            return replace(read_table(folder / name, options=options), source="deskdrop")
    raise InputError(
        f"'{folder}' holds neither {' nor '.join(READINGS)}; name the folder with --raw DIR"
    )
