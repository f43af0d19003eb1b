"""The files of a table, each written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.store import write_bytes, write_json


def write_table(
    folder: Path,
    markdown: str,
    csv: str,
    latex: str,
    content: dict[str, Any],
    page: dict[str, Any],
) -> None:
    """Write table.md, table.csv, table.tex, table.json and page.json (for the report) into `folder`."""
    for ending, text in (("md", markdown), ("csv", csv), ("tex", latex)):
        write_bytes(folder / f"table.{ending}", text.encode("utf8"))
    write_json(folder / "table.json", content)
    write_json(folder / "page.json", page)
