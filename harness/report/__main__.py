"""`python -m harness.report`: everything that is published, as one HTML page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness.errors import InputError, OneLineParser, warnings_in_one_line

EPILOG = """\
examples:
  python -m harness.report                         results/report.html, from everything in results/
  python -m harness.report --data deskdrop         the pages of one data set
  python -m harness.report --results /tmp/r --output paper.html

The page is one file: it fetches nothing, and opens from disk. It has every table, figure and judgement
that `harness.reproduce` has published, the runs behind each number, the audit of the paper's own
numbers, and what is missing with the command for it. Nothing is trained and no number is computed anew.
exit code: 0 written, 2 something typed or supplied cannot be used."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = OneLineParser(
        prog="python -m harness.report",
        description="One self-contained HTML page of every table, figure, judgement and run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                       help="where records and tables are kept (default: results)")  # fmt: skip
    words.add_argument("--data", metavar="NAME[,NAME]",
                       help="only pages of these data sets (default: every page)")  # fmt: skip
    words.add_argument("--output", type=Path, metavar="FILE",
                       help="the page (default: report.html in the results folder)")  # fmt: skip
    return words


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options = parser().parse_args(arguments)
        print(write(options.results, options.data, options.output))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # argparse has printed its help
        return int(end.code or 0)
    return 0


def write(results: Path, data: str | None = None, output: Path | None = None) -> str:
    """Write the page; returns what is said of it.

    Raises InputError for folders, data or an output file that cannot be used.
    """
    from harness.report.audited import audit_page
    from harness.report.html import render
    from harness.report.pages import read_pages
    from harness.report.provenance import Runs
    from harness.store import Store, disk_full_is_said, write_bytes

    wanted = [name.strip() for name in (data or "").split(",") if name.strip()]
    if data is not None and not wanted:
        raise InputError(f"--data '{data}' names no data set; leave it out for every page")
    pages = read_pages(results, wanted)
    runs = Runs(Store(results))
    content = render(pages, runs, audit_page()).encode("utf8")
    path = output or results / "report.html"
    try:
        with disk_full_is_said(path.parent):
            write_bytes(path, content)
    except OSError as error:
        raise InputError(
            f"--output '{path}' cannot be written ({error.strerror}); choose another file"
        ) from error
    lost = f", {runs.missing} runs that pages name are not in this folder" if runs.missing else ""
    return (
        f"{len(pages.pages)} pages, {len(runs.found)} runs{lost}; "
        f"written to {path} ({len(content) / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    warnings_in_one_line()
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of what is said has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
