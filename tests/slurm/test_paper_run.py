"""docs/paper-run.md, typed: from raw files to the report, each command as it stands there.

The raw files are made up, in the exact form of the two releases; pictures come from a server on this
machine, and CLIP is a tiny one. What is added to a command so that it is small stands in MORE; nothing is
taken away from it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.harness.data import test_kuaishou as kuaishou
from tests.harness.data.picture_world import Server, serving
from tests.harness.data.tiny_clip import save_clip

pytestmark = pytest.mark.usefixtures("cluster")
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "paper-run.md"
USERS, ITEMS = 24, 160

JOB = "slurm.cpus=2 slurm.memory=2500M slurm.minutes=30"
SMALL = "--budget smoke train.epochs=1 train.samples=64"
CLIP = "--image-model models/clip"
MORE = (
    ("harness.doctor", JOB),
    ("--stage fetch", "--private-hosts --rate 1000 --tries 1"),
    ("--stage encode --on", f"{CLIP} --shards 2 {JOB}"),
    ("--stage encode", CLIP),
    ("reproduce tuning", f"{SMALL} --trials 1 --methods sasrec,m3bsr {JOB}"),
    ("reproduce", f"{SMALL} {JOB}"),
)
"""Words added to a command that holds a text; the first that fits."""


def commands() -> list[str]:
    """Every command of the page's bash blocks."""
    page = PAGE.read_text(encoding="utf8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def write_rec_tmall(folder: Path, server: Server) -> None:
    """Two users a picture's host knows nothing of; five dead links; months before and after September."""
    folder.mkdir(parents=True)
    dead = {3, 40, 41, 90, 159}
    products = [
        f"{1 + n}\x01\u7ea2\u8272   cup {n} \x01{server.url('missing' if n in dead else f'good/{n}')}"
        f"\x0116-{n % 7}\x01b{n % 5}\x01s{n % 11}\n"
        for n in range(ITEMS)
    ]
    (folder / "tianchi_2014001_rec_tmall_product.txt").write_text("".join(products), "utf8")
    random = np.random.default_rng(1)
    rows = []
    for user in range(USERS):
        for step in range(20):
            action = ("click", "click", "collect", "click", "cart")[step % 5]
            month = 8 if step < 3 else 9
            item, day = 1 + int(random.integers(ITEMS)), 1 + step
            rows.append(
                f"{item}\x01u{100 + user}\x01{action}\x012014-{month:02}-{day:02} 08:15:59\n"
            )
    for part, begin in (("a", 0), ("b", 1), ("c", 2)):
        text = "".join(rows[begin::3])
        (folder / f"tianchi_2014002_rec_tmall_log_part{part}.txt").write_text(text, "utf8")


def write_kuaishou(folder: Path) -> None:
    """Users in eight groups that see the same photos in the same order, so that some follow others."""
    rows = []
    for user in range(USERS):
        for step in range(20):
            number, time = 501 + (user % 8 * 20 + step) % ITEMS, kuaishou.CLOCK + 10 * step
            rows.append((11 + user, number, 1, int(step % 3 == 2), 0, time, 5 + step, 15))
            rows.append((11 + user, 501 + (number + 7 * step) % ITEMS, 0, 0, 0, time + 5, 0, 11))
    kuaishou.write(folder, rows)


@pytest.mark.slow
def test_every_command_of_the_page_runs_on_files_of_the_same_form(tmp_path: Path) -> None:
    save_clip(tmp_path / "models" / "clip")
    typed = commands()
    assert len(typed) > 12
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "HF_HUB_OFFLINE": "1"}
    said: dict[str, str] = {}
    with serving() as server:
        write_rec_tmall(tmp_path / "raw" / "rec_tmall", server)
        write_kuaishou(tmp_path / "raw" / "kuaishou")
        for command in typed:
            more = next((words for text, words in MORE if text in command), "")
            words = [sys.executable, *shlex.split(f"{command} {more}")[1:]]
            began = time.monotonic()
            done = subprocess.run(
                words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (
                f"{command} {more}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )
            said[command] = done.stdout
            print(f"{time.monotonic() - began:6.1f} s  {command}")
    sets = {
        name: json.loads((tmp_path / "data" / name / "manifest.json").read_text())
        for name in ("rec_tmall", "kuaishou")
    }
    assert sets["rec_tmall"]["counts"]["items"] <= ITEMS - 5  # none without a living picture
    assert sets["rec_tmall"]["vectors"]["image"]["present"] == sets["rec_tmall"]["counts"]["items"]
    assert sets["kuaishou"]["vectors"]["image"]["width"] == 2048
    tables = tmp_path / "results" / "tables"
    for target in (
        "table1",
        "table2",
        "table3",
        "table4",
        "figure3",
        "figure4",
        "figure5",
        "claims",
        "multiverse",
    ):
        (page,) = tables.glob(f"{target}/*/table.md")
        assert "What is missing" not in page.read_text(encoding="utf8"), target
    assert " 0 to run" not in next(text for command, text in said.items() if "--plan" in command)
    assert (tmp_path / "results" / "report.html").stat().st_size > 100_000
