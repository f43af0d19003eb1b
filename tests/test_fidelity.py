"""docs/fidelity.md names a section for every method, and only tests that exist."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from harness.zoo import METHODS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf8")
TESTS = {
    name
    for path in (ROOT / "tests").rglob("*.py")
    for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf8"))
}


def test_every_method_has_a_section_in_the_order_of_the_table() -> None:
    headings = [line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")]
    known = [method.printed for method in METHODS]
    assert [heading for heading in headings if heading in known] == known


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"\btest_\w+\*?(?!\.py)\b\*?", PAGE))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    tests = {name for name in named if name.rstrip("*") not in files}
    missing = [
        name
        for name in sorted(tests)
        if not any(fnmatch(known, name) for known in TESTS)
        and not any(known.startswith(name) and name.endswith("_") for known in TESTS)
    ]
    assert len(tests) > 200
    assert not missing
