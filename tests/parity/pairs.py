"""Fixtures of other people's code: arrays (`NAME.npz`) and a sidecar (`NAME.json`) that explains them.

Every pair in the folder PARITY_DIR is loaded (default: ../shared/parity beside the checkout where it
exists, then tests/parity/fixtures). Sizes, options and the comparison rule come from the sidecar.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


def folder() -> Path:
    """The folder whose pairs are run."""
    if "PARITY_DIR" in os.environ:
        return Path(os.environ["PARITY_DIR"])
    shared = HERE.parents[2] / "shared" / "parity"
    return shared if shared.is_dir() else HERE / "fixtures"


@dataclass
class Pair:
    """One fixture. `compare` notes what was compared, so that a test can ask what was left out."""

    name: str
    sidecar: dict[str, Any]
    arrays: dict[str, np.ndarray]
    compared: set[str] = field(default_factory=set)

    @property
    def model(self) -> str:
        """The method's label, without remarks in brackets."""
        return str(self.sidecar["model"]).split(" (")[0]

    def tensor(self, name: str) -> torch.Tensor:
        """An array as a tensor: float64 for numbers, int64 for ids, bool as it is."""
        array = self.arrays[name]
        kind = {"f": torch.float64, "i": torch.int64, "u": torch.int64, "b": torch.bool}
        return torch.as_tensor(array).to(kind[array.dtype.kind])

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """All arrays whose name starts with `prefix`, by the rest of their name."""
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self.arrays
            if name.startswith(prefix)
        }

    def compare(self, name: str, ours: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Assert that `ours` (float64) equals the fixture's array by the sidecar's rule.

        `mask`: the entries that carry meaning, broadcast over trailing axes; all without one.
        """
        theirs = self.tensor(name)
        ours = ours.detach().to(theirs.dtype)
        assert ours.shape == theirs.shape, f"{self.name}: {name}: {ours.shape} != {theirs.shape}"
        tolerance = self.sidecar["tolerance"]
        if isinstance(tolerance, dict):
            tolerance = tolerance["float64"]
        rule = self.sidecar.get("tolerance_rule", "absolute difference <= tolerance")
        own = bound_of_its_own(rule, name)
        if theirs.dtype in (torch.bool, torch.int64):
            allowed = torch.zeros_like(theirs, dtype=torch.float64)
        elif own:
            largest = float(theirs.abs().max())
            allowed = torch.full_like(theirs, own[0] * largest + own[1])
        elif "abs(b)" in rule:
            allowed = tolerance + tolerance * theirs.abs()
        elif "max(1, largest" in rule:
            allowed = torch.full_like(theirs, tolerance * max(1.0, float(theirs.abs().max())))
        elif rule == "absolute difference <= tolerance":
            allowed = torch.full_like(theirs, tolerance)
        else:
            raise AssertionError(f"{self.name}: no reading of the rule {rule!r}")
        difference = (ours.to(torch.float64) - theirs.to(torch.float64)).abs()
        bad = ~(difference <= allowed)  # also true for nan
        if mask is not None:
            bad &= mask.reshape(mask.shape + (1,) * (bad.ndim - mask.ndim))
        worst = float(torch.where(bad, difference, 0.0).max()) if bad.numel() else 0.0
        assert not bad.any(), (
            f"{self.name}: {name}: {int(bad.sum())} entries off, worst {worst:.3g}"
        )
        self.compared.add(name)

    def assert_all_compared(self, *prefixes: str) -> None:
        """Assert that no array below these prefixes was left out."""
        left = {n for n in self.arrays if n.startswith(prefixes)} - self.compared
        assert not left, f"{self.name}: never compared: {sorted(left)}"


def bound_of_its_own(rule: str, name: str) -> tuple[float, float] | None:
    """What a later clause of the rule allows for this array: (times its largest value, plus).

    `...; out/a/* and out/b/* instead: abs(a-b) <= 1e-3*max(abs(b)) + 1e-8 ...; out/c_*: abs(a-b) <= 1e-4`
    """
    for clause in rule.split(";")[1:]:
        names, found, bound = clause.partition(": abs(a-b) <= ")
        patterns = names.removesuffix(" instead").replace(" and ", " ").split()
        if found and any(fnmatchcase(name, pattern) for pattern in patterns):
            times = re.match(rf"({NUMBER})\*max\(abs\(b\)\) \+ ", bound)
            plus = re.match(NUMBER, bound[times.end() if times else 0 :])
            assert plus, f"no reading of {clause!r}"
            return float(times[1]) if times else 0.0, float(plus[0])
    return None


def pairs() -> list[str]:
    """Names of all pairs in the folder."""
    return sorted(path.stem for path in folder().glob("*.npz"))


def load(name: str) -> Pair:
    """One pair."""
    sidecar = json.loads((folder() / f"{name}.json").read_text(encoding="utf8"))
    with np.load(folder() / f"{name}.npz", allow_pickle=False) as arrays:
        return Pair(name, sidecar, {key: arrays[key] for key in arrays.files})
