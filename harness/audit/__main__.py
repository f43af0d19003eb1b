"""`python -m harness.audit [TABLE]`: published numbers judged by arithmetic alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from harness.audit.bounds import CANDIDATES
from harness.audit.grid import Scale
from harness.audit.published import DEFAULT
from harness.audit.read import FORMATS, Document, read
from harness.audit.show import Audit, as_json, page
from harness.errors import InputError, OneLineParser, unknown

EPILOG = """\
examples:
  python -m harness.audit                       the paper's own tables
  python -m harness.audit table.tex             somebody else's (yaml, json, csv, Markdown, LaTeX)
  python -m harness.audit results.csv --full    ranked against a whole catalogue

A table needs columns (or rows, or keys) like HR@10, Recall@20, Hit@5 and NDCG@10, in any number and
for any number of data sets, from a test with ONE relevant item a user.
exit code: 0 nothing impossible, 1 something impossible was found, 2 the input cannot be read."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = OneLineParser(
        prog="python -m harness.audit",
        description="Judge published HR@K and NDCG@K by arithmetic alone: can any ranking have them?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words.add_argument(
        "table", nargs="?", metavar="TABLE", help="a file (default: the paper's own)"
    )
    words.add_argument("--format", metavar="|".join(FORMATS), help="default: by the file's name")
    words.add_argument("--candidates", metavar="N",
                       help=f"items ranked a user, the relevant one among them (default {CANDIDATES})")  # fmt: skip
    words.add_argument("--full", action="store_true",
                       help="ranked against a whole catalogue: no limit of ranks, no chance level")  # fmt: skip
    words.add_argument("--scale", default="auto", metavar="|".join(scale.name for scale in Scale),
                       help="how numbers are printed (default: percent when any is above 1)")  # fmt: skip
    words.add_argument("--copied", action="store_true",
                       help="also name rows that look like one another; no verdict rests on it")  # fmt: skip
    words.add_argument("--json", action="store_true", help="print JSON, every bound included")
    return words


def _candidates(options: argparse.Namespace) -> int | None:
    """How many items are ranked; None for a whole catalogue."""
    if options.candidates is None:
        return None if options.full else CANDIDATES
    if options.full:
        raise InputError("--candidates and --full exclude each other; leave one out")
    if not options.candidates.isdecimal() or int(options.candidates) < 2:
        raise InputError(
            f"--candidates {options.candidates}: a whole number of at least 2 is needed"
        )
    return int(options.candidates)


def _document(options: argparse.Namespace) -> Document:
    """The tables that were asked for."""
    scales = {scale.name: scale for scale in Scale}
    if options.scale not in scales:
        raise unknown("scale", options.scale, scales)
    path = _shown(DEFAULT) if options.table is None else Path(options.table)
    return read(path, options.format, scales[options.scale])


def _shown(path: Path) -> Path:
    """A path as seen from here, where that is shorter."""
    relative = Path(os.path.relpath(path))
    return path if relative.parts[:1] == ("..",) else relative


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options = parser().parse_args(arguments)
        audit = Audit.of(_document(options), _candidates(options), copied=options.copied)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # argparse has printed its help
        return int(end.code or 0)
    print(json.dumps(as_json(audit), indent=1, ensure_ascii=False) if options.json else page(audit),
          end="\n" if options.json else "")  # fmt: skip
    return 0 if audit.clean else 1


if __name__ == "__main__":
    sys.exit(main())
