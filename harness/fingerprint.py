"""What a stored number must have been made by to count as current: code, data, candidates.

The code fingerprint covers the sources that `harness.run` and the method's module import, in this
repository, without the zoo (a new row there changes no old number) and without what times a model
(which counts for timings alone). Comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from harness.config import ProtocolConfig, Task
from harness.data.dataset import Dataset
from harness.store import Fingerprints

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "baselines", "models")
TIMING = "harness.training.timing"
LEFT_OUT = ("harness.zoo", TIMING)


def fingerprints(
    module: str, dataset: Dataset, protocol: ProtocolConfig, task: Task = Task.score
) -> Fingerprints:
    """Of a method (its module's name) on a data set, now."""
    return Fingerprints(
        code=code_fingerprint(module, task),
        data=dataset.data_sha256,
        candidates=dataset.candidates_sha256(protocol),
    )


@cache
def code_fingerprint(module: str, task: Task = Task.score) -> str:
    """SHA-256 over the syntax trees of everything that a run of this method imports from here."""
    digest = hashlib.sha256()
    timing = _closure(TIMING) if task is Task.time else frozenset()
    for name in sorted(_closure("harness.run") | _closure(module) | timing):
        digest.update(f"{name}\n{_tree(name)[0]}\n".encode())
    return digest.hexdigest()


@cache
def _closure(module: str) -> frozenset[str]:
    """The module and every module of this repository that it imports, directly or not."""
    found: set[str] = set()
    open_ends = [module]
    while open_ends:
        name = open_ends.pop()
        if name not in found and (name not in LEFT_OUT or name == module):
            found.add(name)
            open_ends.extend(_tree(name)[1])
    return frozenset(found)


@cache
def _tree(name: str) -> tuple[str, tuple[str, ...]]:
    """A module's syntax tree without docstrings, as text, and the modules of ours that it names."""
    tree = ast.parse(_source(name).read_text(encoding="utf8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.update([node.module, *(f"{node.module}.{a.name}" for a in node.names)])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    ours = (i for i in imported if i.split(".")[0] in PACKAGES and _source(i).is_file())
    return ast.dump(tree), tuple(sorted(ours))


def _source(name: str) -> Path:
    """The file of a module or package."""
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
