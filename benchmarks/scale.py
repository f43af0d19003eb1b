"""Seconds, peak memory and disk of every stage at the size of the paper's data, and their growth.

    python benchmarks/scale.py prepare --folder DIR [--shape kuaishou] [--size 1/16,1/4,1]
    python benchmarks/scale.py methods --folder DIR [--shape ...] [--size ...] [--methods a,b]
    python benchmarks/scale.py page

`prepare` generates sets (users, items and events in proportion to the size; seeded), prepares and opens
them. `methods` builds every method on them with the settings of budget paper, trains some steps of each
of its stages, writes a checkpoint, and validates and ranks some users. Every process is measured from
inside, stage by stage, in seconds of the processor, so that other work counts less. Figures go to
docs/scale.json, row by row; an older row of the same name gives way. `page` draws docs/scale.svg from it
and puts the tables into docs/scale.md. One torch thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from filelock import FileLock

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES, PAGE, DRAWING = (DOCS / f"scale.{ending}" for ending in ("json", "md", "svg"))
SIZES = ("1/16", "1/4", "1")
SEED = 20250713
MOST_MEMORY = 12 * 1024
"""MiB of its own at which a process is ended."""
MANY_SECONDS = 5
"""Of a long update."""
SHORT = 0.2
"""Seconds below which nothing is said of their growth."""
ROWS = 8192
"""Vectors generated at once."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A data set's counts at full size (the paper's Table 1)."""

    users: int
    items: int
    events: int
    favors: int
    image: int
    """Width."""
    text: int
    fields: tuple[tuple[str, int], ...] = ()
    """Id fields and about how many values they have."""

    def part(self, size: Fraction) -> Shape:
        """The shape with this fraction of users, items, events and values."""
        users, items, events, favors = (
            round(count * size) for count in (self.users, self.items, self.events, self.favors)
        )
        fields = tuple((name, max(2, round(values * size))) for name, values in self.fields)
        return Shape(users, items, events, favors, self.image, self.text, fields)


SHAPES = {
    # 22,793 x (255.02 + 40.96) is 6.7 million: the published events are not the published means. The
    # events are kept, and the favors' share of the means.
    "kuaishou": Shape(22_793, 618_529, 5_852_725, 809_927, 2048, 512),
    # 328,387 events are 4.56 a user, below the least of 5; 72,051 x (4.16 + 1.73) are 424,380.
    "rec_tmall": Shape(
        72_051, 93_466, 424_380, 124_648, 512, 512,
        (("brand", 4000), ("seller", 6000), ("category", 1200)),
    ),
}  # fmt: skip


# Generating


def lengths(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Events of each user: 5 and a log-normal rest, in all as many as the shape says."""
    rest = shape.events - 5 * shape.users
    weight = random.lognormal(0, 1.2, shape.users)
    edges = np.floor(np.append(0, weight.cumsum()) / weight.sum() * rest + 1e-6).astype(np.int64)
    edges[-1] = rest
    return 5 + np.diff(edges)


def generate(shape: Shape, folder: Path) -> None:
    """Raw arrays: users in order, in time order; popularity by a power law, every item touched.

    Most favors are of the item that was clicked just before. Vectors are a group's centre and noise.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(SEED)
    count = lengths(shape, random)
    user = np.repeat(np.arange(shape.users, dtype=np.int32), count)
    weight = np.arange(1, shape.items + 1) ** -0.8
    edges = np.cumsum(weight) / weight.sum()
    drawn = np.searchsorted(edges, random.random(shape.events - shape.items)).clip(
        max=shape.items - 1
    )
    item = np.concatenate([drawn, np.arange(shape.items)])
    item = random.permutation(shape.items)[random.permutation(item)].astype(np.int32)
    last = count.cumsum() - 1
    favor = random.random(shape.events) < (shape.favors - shape.users) / (
        shape.events - shape.users
    )
    favor[last] = True
    favor[last - count + 1] = False
    again = np.flatnonzero(favor & (random.random(shape.events) < 0.7))
    item[again] = item[again - 1]
    when = np.sort(random.integers(0, 180 * 86_400, shape.events)).astype(np.int32)
    when = when[np.lexsort((random.permutation(when), user))]
    when = when[np.lexsort((when, user))]
    arrays = {
        "user": user,
        "item": item,
        "behaviour": np.where(favor, 2, 1).astype(np.int8),
        "time": when,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name, values in shape.fields:
        np.save(folder / f"field_{name}.npy", random.zipf(1.3, shape.items) % values)
    for mode, width in (("image", shape.image), ("text", shape.text)):
        centres = random.standard_normal((200, width), dtype=np.float32)
        vectors = np.lib.format.open_memmap(
            folder / f"{mode}.npy", "w+", np.float32, (shape.items, width)
        )
        for start in range(0, shape.items, ROWS):
            size = min(ROWS, shape.items - start)
            rows = random.standard_normal((size, width), dtype=np.float32)
            rows += centres[random.integers(0, 200, size)]
            rows[random.random(size) < 0.03] = 0
            vectors[start : start + size] = rows
        vectors.flush()


def source(shape: Shape, folder: Path, name: str) -> Any:
    """The generated arrays, memory-mapped, as a reader hands them over."""
    from harness.data.raw import Raw  # noqa: PLC0415

    def mapped(key: str) -> np.ndarray:
        found: np.ndarray = np.load(folder / f"{key}.npy", mmap_mode="r")
        return found

    return Raw(
        source="table",
        user=mapped("user"),
        item=mapped("item"),
        behaviour=mapped("behaviour"),
        timestamp=mapped("time"),
        user_ids=[f"u{number}" for number in range(shape.users)],
        item_ids=[f"i{number}" for number in range(shape.items)],
        keep_items=True,
        title=[f"title {number} of the generated set {name}" for number in range(shape.items)],
        fields={key: [str(code) for code in mapped(f"field_{key}")] for key, _ in shape.fields},
        image=mapped("image"),
        text=mapped("text"),
        facts={"generated": "benchmarks/scale.py"},
    )


# Measuring, inside the process that is measured


class Meter:
    """Measures stages and prints each as a line of JSON."""

    def __init__(self, common: Row) -> None:
        self.common = common
        self.memory: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Row]:
        """Seconds and peaks of what is done inside, printed unless it raises."""
        from harness.run import peak_memory_mib, reset_peak_memory  # noqa: PLC0415

        row: Row = {**self.common, "stage": name}
        reset_peak_memory()
        ended = threading.Event()
        own = [anonymous()]

        def watch() -> None:
            while not ended.wait(0.01):
                own.append(anonymous())
                if own[-1] > MOST_MEMORY:  # others live on this machine, too
                    print(json.dumps({**row, "stage": name, "over_mib": MOST_MEMORY}), flush=True)
                    os._exit(1)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        started, wall = time.process_time(), time.perf_counter()
        try:
            yield row
        finally:
            row |= {"seconds": time.process_time() - started, "wall": time.perf_counter() - wall}
            own.append(anonymous())
            ended.set()
            watcher.join()
        row |= {"peak_mib": round(peak_memory_mib()), "own_mib": round(max(own))}
        print(json.dumps(row), flush=True)


def anonymous() -> float:
    """MiB of this process that are not files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**10
    return 0.0


def bytes_of(folder: Path) -> int:
    """Of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def name_of(shape: str, size: str) -> str:
    """Of a set."""
    return f"{shape}_{size.replace('/', '_')}"


def generate_stages(task: Row) -> None:
    """The raw arrays, unless they are there."""
    shape = SHAPES[task["shape"]].part(Fraction(task["size"]))
    raw_folder = Path(task["folder"]) / "raw" / name_of(task["shape"], task["size"])
    if not raw_folder.exists():
        generate(shape, raw_folder)
        os.sync()


def prepare_stages(task: Row) -> None:
    """A generated set, prepared."""
    shape = SHAPES[task["shape"]].part(Fraction(task["size"]))
    folder, name = Path(task["folder"]), name_of(task["shape"], task["size"])
    meter = Meter({"data": task["shape"], "size": task["size"], "method": ""})
    from harness.data.prepare import prepare  # noqa: PLC0415

    raw_folder = folder / "raw" / name
    raw = source(shape, raw_folder, name)
    with meter.stage("prepare") as row:
        row["counts"] = prepare(raw, folder / "data", name)["table1"]
        row["disk"] = bytes_of(folder / "data" / name)
    shutil.rmtree(raw_folder)


def open_stages(task: Row) -> None:
    """A prepared set, opened as a worker does."""
    meter = Meter({"data": task["shape"], "size": task["size"], "method": ""})
    folder, name = Path(task["folder"]), name_of(task["shape"], task["size"])
    from harness.config import ProtocolConfig  # noqa: PLC0415
    from harness.run import open_dataset  # noqa: PLC0415

    with meter.stage("open") as row:
        dataset = open_dataset(folder / "data", name)
        split = dataset.split(ProtocolConfig())
        dataset.catalogue(ProtocolConfig())
        row["whole"] = time.time() - task["started"]  # the process, with Python and torch
    with meter.stage("redraw"):
        split.redrawn()


def method_stages(task: Row) -> None:
    """One method: built, prepared, trained for some steps of each stage, validated and ranked."""
    import torch  # noqa: PLC0415

    from harness.compose import Budget, compose_cell  # noqa: PLC0415
    from harness.data.batches import TrainingSamples  # noqa: PLC0415
    from harness.run import open_dataset  # noqa: PLC0415
    from harness.training.loop import Trainer  # noqa: PLC0415
    from harness.training.numerics import exact_numerics  # noqa: PLC0415
    from harness.zoo import find  # noqa: PLC0415

    torch.set_num_threads(1)
    exact_numerics()
    meter = Meter({"data": task["shape"], "size": task["size"], "method": task["method"]})
    method = find(task["method"])
    dataset = open_dataset(Path(task["folder"]) / "data", name_of(task["shape"], task["size"]))
    cell = compose_cell(method, dataset.name, Budget.paper, task["overrides"])
    split = dataset.split(cell.protocol)
    catalogue = dataset.catalogue(cell.protocol)
    torch.manual_seed(1)
    with meter.stage("build") as row:
        model = method.load()[0](cell.model, catalogue)
        row["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        row["hidden"] = cell.model.hidden
    with meter.stage("method prepares"):
        model.prepare(split.train)
    if model.trained:
        with meter.stage("samples") as row:
            samples = TrainingSamples(split, model.samples, cell.protocol, cell.train)
            row |= {"samples": len(samples), "steps": samples.batches, "kind": model.samples.name}
        trainer = Trainer(model, samples, seed=1)
        for stage in range(1, 2 if method.key == "sgdl" else 6):  # its phases end by its own rule
            train_some(meter, trainer, stage, task["seconds"])
            with meter.stage(f"stage {stage} ends"):
                model.stage_ended(1, trainer.draws)
                follows = model.next_stage()
            if not follows:
                break
            trainer.renew()
        with meter.stage("checkpoint") as row:
            row["disk"] = checkpoint_bytes(trainer, Path(task["folder"]))
    evaluate_some(meter, model, split, cell, task["seconds"])


def train_some(meter: Meter, trainer: Any, stage: int, seconds: float) -> None:
    """An update of warm-up, then updates for so many seconds, 3 (long ones: 2) at least: their median.

    Most methods make one update a batch; where there are more, one batch is made whole, or the method
    says how many there are. KMCLR's kinds of updates are measured and counted one by one.
    """
    from harness.training.loop import StoppedError  # noqa: PLC0415

    model, batches = trainer.model, trainer.samples.batches
    begins: list[float] = []  # seconds before the first batch of each epoch
    updates: dict[str, list[float]] = {}  # of each kind, the seconds of each
    last, kind = time.process_time(), "batch"
    expected = kmclr_updates(model) if meter.common["method"] == "kmclr" else {}
    a_batch = getattr(model.config, "samples_a_row", 0)
    new_epoch = True

    def mark() -> float:
        nonlocal last
        before, last = last, time.process_time()
        return last - before

    def batch_begins() -> bool:
        nonlocal a_batch, new_epoch
        if new_epoch:
            begins.append(mark())
            new_epoch = False
        a_batch = a_batch or sum(map(len, updates.values()))
        return bool(expected and updates)

    def update_ended(*_: Any) -> None:
        of_kind = updates.setdefault(kind, [])
        of_kind.append(mark())
        made = len(of_kind) - 1
        enough = made >= 3 or (made == 2 and of_kind[1] > MANY_SECONDS)
        if not expected and a_batch and enough and sum(of_kind[1:]) > seconds:
            raise StoppedError

    passes = model.passes

    def named(batch: Any) -> Iterator[Any]:
        nonlocal kind
        for losses in passes(batch):
            kind = next(iter(losses)) if expected else "batch"
            yield losses

    model.passes = named
    hook = trainer.optimiser.register_step_post_hook(update_ended)
    with meter.stage(f"epoch of stage {stage}") as row:
        with suppress(StoppedError):
            for epoch in range(1000):
                new_epoch = True
                mark()
                trainer.epoch(epoch, batch_begins)
                a_batch = a_batch or len(updates["batch"])
        counts = expected or {"batch": batches * a_batch}
        steps, whole = sum(counts.values()), begins[0]
        later = {name: of_kind[1:] or of_kind for name, of_kind in updates.items()}
        for name, of_kind in later.items():
            whole += counts[name] * median(of_kind)
            if expected:  # the first of a kind prepares the others (views)
                whole += max(0.0, updates[name][0] - median(of_kind))
        every = [value for of_kind in later.values() for value in of_kind]
        row |= {
            "begin": begins[0], "step": (whole - begins[0]) / steps,
            "steps_done": sum(map(len, updates.values())), "steps": steps, "whole": whole,
            "low": min(every), "high": max(every),
        }  # fmt: skip
    hook.remove()
    model.passes = passes


def kmclr_updates(model: Any) -> dict[str, int]:
    """How many updates of each kind an epoch has; some of each are made."""
    from baselines import kmclr  # noqa: PLC0415

    permutation = kmclr._permutation  # noqa: SLF001
    most = 3 * model.config.behaviour_batch
    kmclr._permutation = lambda count, *rest: permutation(count, *rest)[:most]  # noqa: SLF001
    heads = int((model.knowledge.graph.entity != model.knowledge.graph.entities).any(1).sum())
    favors, config = len(model.target.user), model.config
    triples = heads // min(config.triple_batch, max(heads, 1))
    return {
        "transr": triples, "tatec": triples,
        "knowledge_bpr": -(-favors // config.knowledge_batch),
        "bpr": -(-favors // config.behaviour_batch),
    }  # fmt: skip


def checkpoint_bytes(trainer: Any, folder: Path) -> int:
    """Size of what is written after each epoch."""
    from harness.training.loop import Checkpoint  # noqa: PLC0415

    checkpoint = Checkpoint(folder / f"checkpoint-{os.getpid()}.pt", {})
    checkpoint.save({"best": deepcopy(trainer.model.state_dict()), **trainer.state()})
    size = checkpoint.path.stat().st_size
    checkpoint.remove()
    return size


def evaluate_some(meter: Meter, model: Any, split: Any, cell: Any, seconds: float) -> None:
    """Validation and ranking of some users, drawn at random; what all users share is told apart."""
    import torch  # noqa: PLC0415

    from harness.evaluation.ranks import MOST_SCORES, Validation, final_ranks  # noqa: PLC0415

    def some(targets: Any, count: int) -> Any:
        chosen = torch.as_tensor(np.random.default_rng(2).permutation(len(targets.user))[:count])
        chosen = chosen.sort().values
        names = ("user", "item", "position", "left_out", "candidates")
        return replace(targets, **{name: getattr(targets, name)[chosen] for name in names})

    batch = cell.train.evaluation_batch

    def validate(count: int) -> None:
        part = replace(split, validation=some(split.validation, count))
        Validation(part, cell.protocol, batch)(model)

    def rank(count: int) -> None:
        part = replace(split, test=some(split.test, count), redrawn=lambda: None)
        final_ranks(model, part, cell.protocol, batch)

    together = max(1, min(batch, MOST_SCORES // (model.catalogue.items + 1)))
    jobs: dict[str, tuple[Callable[[int], None], int, int]] = {
        "validation": (validate, len(split.validation.user), batch),
        "ranking": (rank, len(split.test.user), together),
    }
    encode = model.encode
    for name, (job, users, portion) in jobs.items():
        if name == "validation" and not model.trained:
            continue
        with meter.stage(name) as row:
            done = min(users, 3 * portion)
            while True:
                marks: list[float] = []

                def marked(history: Any, marks: list[float] = marks) -> Any:
                    marks.append(time.process_time())
                    return encode(history)

                model.encode = marked
                began = time.process_time()
                job(done)
                marks.append(time.process_time())
                if done == users or marks[-1] - began > seconds / 4:
                    break
                done = min(users, 8 * done)
            took = np.diff(marks)
            later = took[1:] if len(took) > 1 else took
            each = float(later.sum()) / max(1, done - portion * (len(took) > 1))
            shared = marks[0] - began + max(0.0, float(took[0]) - portion * each)
            whole = marks[-1] - began if done == users else shared + users * each
            row |= {"users": users, "users_done": done, "each": each, "shared": shared,
                    "whole": whole}  # fmt: skip
        model.encode = encode


STAGES = {
    "generate": generate_stages,
    "prepare": prepare_stages,
    "open": open_stages,
    "method": method_stages,
}


# Driving


def child(task: Row, limit: float) -> list[Row]:
    """Run a task in a process of its own; its rows, and what ended it early."""
    from harness.execution.here import worker_environment  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with worker_environment():
        words = ["child", json.dumps({**task, "started": time.time()})]
        process = subprocess.Popen(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True
        )
    timer = threading.Timer(limit, process.kill)
    timer.start()
    rows = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            rows.append(json.loads(line))
            brief = {key: rows[-1].get(key) for key in ("data", "size", "method", "stage", "seconds",
                     "peak_mib", "own_mib", "step", "whole", "steps_done", "disk")}  # fmt: skip
            said = {key: round(value, 3) if isinstance(value, float) else value
                    for key, value in brief.items() if value is not None}  # fmt: skip
            print(
                " ".join(f"{key}={value}" for key, value in said.items()),
                file=sys.stderr,
                flush=True,
            )
    code = process.wait()
    timer.cancel()
    if code:
        print(f"ended with {code}: {task}", file=sys.stderr, flush=True)
    return rows


def keep(rows: Sequence[Row], path: Path = FIGURES) -> None:
    """Add rows to the file of figures; older ones of the same name give way."""

    def key(row: Row) -> tuple[str, ...]:
        return row["data"], row["size"], row["method"], row["stage"]

    with FileLock(Path(tempfile.gettempdir()) / f"{path.name}.lock"):
        stored = {key(row): row for row in read_rows(path)}
        stored |= {key(row): {name: rounded(value) for name, value in row.items()} for row in rows}
        lines = ",\n".join(json.dumps(row) for _, row in sorted(stored.items()))
        path.write_text(f"[\n{lines}\n]\n", encoding="utf8")


def rounded(value: Any) -> Any:
    """A figure with four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read_rows(path: Path = FIGURES) -> list[Row]:
    """The stored figures."""
    return list(json.loads(path.read_text(encoding="utf8"))) if path.exists() else []


def main() -> None:
    """Understand the command line."""
    if sys.argv[1:2] == ["child"]:
        task = json.loads(sys.argv[2])
        STAGES[task["stage"]](task)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("prepare", "methods", "page"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shape", default="kuaishou,rec_tmall")
    parser.add_argument("--size", default=",".join(SIZES))
    parser.add_argument("--methods", default="")
    parser.add_argument(
        "--seconds", type=float, default=8, help="of steps of a stage, at least 3 steps"
    )
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds after which a process ends"
    )
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("overrides", nargs="*", help="key=value, as harness.reproduce takes them")
    options = parser.parse_args()
    if options.verb == "page":
        page(options.figures)
        return
    from harness.zoo import METHODS, REFERENCES, select  # noqa: PLC0415

    named = select(options.methods.split(",")) if options.methods else METHODS + REFERENCES
    for shape in options.shape.split(","):
        for size in options.size.split(","):
            task = {"shape": shape, "size": size, "folder": str(options.folder)}
            if options.verb == "prepare":
                for stage in ("generate", "prepare", "open"):
                    keep(child({**task, "stage": stage}, options.limit), options.figures)
                continue
            for method in named:
                keep(child({**task, "stage": "method", "method": method.key, "seconds": options.seconds,
                            "overrides": options.overrides}, options.limit), options.figures)  # fmt: skip


# The page


class Figures:
    """The stored figures, looked up."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(row["data"], row["size"], row["method"], row["stage"]): row for row in rows}

    def row(self, data: str, size: str, method: str, stage: str) -> Row:
        """A row; empty where it was not measured."""
        return self.rows.get((data, size, method, stage), {})

    def epochs(self, data: str, size: str, method: str) -> list[Row]:
        """Of each stage of training."""
        stages = [
            self.row(data, size, method, f"epoch of stage {number}") for number in range(1, 6)
        ]
        return [row for row in stages if row]

    def seconds(self, data: str, size: str, method: str, stage: str) -> float | None:
        """Of a whole stage: measured, or extrapolated from its part; `step` is an update of training."""
        if stage in ("step", "epoch"):
            rows = self.epochs(data, size, method)
            if not rows:
                return None
            if stage == "step":
                return float(rows[-1]["step"])
            return sum(float(row["whole"]) for row in rows)
        row = self.row(data, size, method, stage)
        value = row.get("whole", row.get("seconds"))
        return None if value is None else float(value)

    def peak(self, data: str, size: str, method: str, name: str = "own_mib") -> float | None:
        """Largest of all stages of a method, if it was trained or ranked."""
        if not self.epochs(data, size, method) and not self.row(data, size, method, "ranking"):
            return None
        return max(row[name] for key, row in self.rows.items() if key[:3] == (data, size, method))

    def growth(self, data: str, method: str, stage: str) -> float | None:
        """Exponent up to the full size from the next smaller one: seconds ~ size ** exponent."""
        large = self.seconds(data, "1", method, stage)
        for size in ("1/4", "1/16"):
            small = self.seconds(data, size, method, stage)
            if large and small:
                # seconds too short to tell
                return None if large < SHORT else -math.log(large / small, Fraction(size))
        return None


def said(seconds: float | None) -> str:
    """A time for a person."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"


def number(value: float | None, form: str = ".1f") -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:{form}}"


def table(lines: Sequence[Row]) -> str:
    """Markdown."""
    from tabulate import tabulate  # noqa: PLC0415

    right = ["left", *["right"] * (len(lines[0]) - 1)]
    return tabulate(lines, headers="keys", tablefmt="github", colalign=right, disable_numparse=True)


TITLES = {"kuaishou": "Kuaishou's shape", "rec_tmall": "Rec-Tmall's shape"}


def data_lines(figures: Figures) -> list[Row]:
    """What is done once a data set, or once a worker."""
    lines = []
    for data in SHAPES:
        for size in SIZES:
            made = figures.row(data, size, "", "prepare")
            if not made:
                continue
            counts = made["counts"]
            opened = figures.row(data, size, "", "open")
            lines.append({
                "set": f"{TITLES[data]}, {size}", "users": f"{counts['users']:,}",
                "items": f"{counts['items']:,}", "events": f"{counts['interactions']:,}",
                "prepare": said(made["seconds"]), "its peak, MiB": f"{made['peak_mib']:,}",
                "disk, MB": f"{made['disk'] / 1e6:,.0f}",
                "open and split": said(opened["seconds"]), "its peak, MiB ": f"{opened['peak_mib']:,}",
                "a worker's start": said(opened["whole"]),
                "ten redraws": said(figures.seconds(data, size, "", "redraw")),
            })  # fmt: skip
    return lines


def share(row: Row, done: str, whole: str) -> str:
    """Which part was measured."""
    if not row or row[done] >= row[whole]:
        return "all" if row else ""
    return f"{row[done]:,} of {row[whole]:,}"


def method_lines(figures: Figures, data: str) -> tuple[list[Row], list[Row]]:
    """Training, and all else, at full size."""
    from harness.zoo import METHODS, REFERENCES  # noqa: PLC0415

    training, rest = [], []
    for method in METHODS + REFERENCES:
        rank = figures.row(data, "1", method.key, "ranking")
        for place, row in enumerate(figures.epochs(data, "1", method.key), 1):
            training.append({
                "method": method.label + (f", stage {place}" if place > 1 else ""),
                "updates measured": share(row, "steps_done", "steps"),
                "an update": said(row["step"]),
                "least to most": f"{said(row['low'])} to {said(row['high'])}",
                "before the first": said(row["begin"]), "an epoch": said(row["whole"]),
                "peak, MiB": f"{row['peak_mib']:,}", "of it no file": f"{row['own_mib']:,}",
            })  # fmt: skip
        if rank:
            check = figures.row(data, "1", method.key, "validation")
            kept = figures.row(data, "1", method.key, "checkpoint")
            rest.append({
                "method": method.label,
                "method prepares": said(figures.seconds(data, "1", method.key, "method prepares")),
                "checkpoint, MB": f"{kept['disk'] / 1e6:,.0f}" if kept else "",
                "validation": said(check.get("whole")), "users": share(check, "users_done", "users"),
                "final ranks": said(rank["whole"]), "users ": share(rank, "users_done", "users"),
                "largest peak, MiB": number(figures.peak(data, "1", method.key, "peak_mib"), ",.0f"),
                "of it no file": number(figures.peak(data, "1", method.key), ",.0f"),
            })  # fmt: skip
    return training, rest


GROWING = ("method prepares", "samples", "step", "epoch", "validation", "ranking")


def growth_lines(figures: Figures) -> list[Row]:
    """Exponents up to the full size."""
    from harness.zoo import METHODS, REFERENCES  # noqa: PLC0415

    lines = []
    for data in SHAPES:
        for stage in ("prepare", "open", "redraw"):
            value = figures.growth(data, "", stage)
            if value is not None:
                lines.append({"": f"{TITLES[data]}: {stage}", **dict.fromkeys(GROWING, ""),
                              "in all": number(value)})  # fmt: skip
    for data in SHAPES:
        for method in METHODS + REFERENCES:
            values = {stage: figures.growth(data, method.key, stage) for stage in GROWING}
            if any(value is not None for value in values.values()):
                lines.append({"": f"{TITLES[data]}: {method.label}",
                              **{stage: number(value) for stage, value in values.items()},
                              "in all": ""})  # fmt: skip
    return lines


def cost_lines(figures: Figures) -> list[Row]:
    """An epoch with its validation, in units of SASRec's."""
    from harness.zoo import METHODS, REFERENCES  # noqa: PLC0415

    def epoch(data: str, method: str) -> float | None:
        rows = figures.epochs(data, "1", method)
        check = figures.seconds(data, "1", method, "validation")
        return None if not rows or check is None else float(rows[-1]["whole"]) + check

    lines = []
    for method in METHODS + REFERENCES:
        line: Row = {"method": method.label}
        for data in SHAPES:
            own, unit = epoch(data, method.key), epoch(data, "sasrec")
            line[TITLES[data]] = said(own)
            line[f"SASRec's epochs, {data}"] = number(own / unit if own and unit else None, ",.1f")
        if method.trained and any(value for key, value in line.items() if key != "method"):
            lines.append(line)
    return lines


def page(path: Path) -> None:
    """Draw, and put the tables where docs/scale.md has its marks."""
    figures = Figures(read_rows(path))
    blocks = {"data": table(data_lines(figures)), "growth": table(growth_lines(figures)),
              "cost": table(cost_lines(figures))}  # fmt: skip
    for data in SHAPES:
        training, rest = method_lines(figures, data)
        if training:
            blocks[f"{data} training"], blocks[f"{data} rest"] = table(training), table(rest)
    text = PAGE.read_text(encoding="utf8") if PAGE.exists() else ""
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text:
            text += f"\n{begin}\n{end}\n"
        text = re.sub(
            re.escape(begin) + ".*?" + re.escape(end),
            lambda _, whole=f"{begin}\n{block}\n{end}": whole, text, flags=re.DOTALL,
        )  # fmt: skip
    PAGE.write_text(text, encoding="utf8")
    draw(figures)


Curve = tuple[str, list[float | None], str, str, str]
"""Label, a value a size, data set, colour, dash."""


def curves(figures: Figures, stage: str) -> list[Curve]:
    """Of one panel."""
    from harness.report.figures import COLOURS  # noqa: PLC0415
    from harness.zoo import METHODS, REFERENCES  # noqa: PLC0415

    found: list[Curve] = []
    if stage == "data":
        for data, short, dash in (("kuaishou", "Kuaishou", "-"), ("rec_tmall", "Rec-Tmall", "--")):
            for name, colour in zip(("prepare", "open", "redraw"), COLOURS, strict=False):
                values = [figures.row(data, size, "", name).get("seconds") for size in SIZES]
                found.append((f"{name}, {short}", values, data, colour, dash))
        return found
    for drawn, method in enumerate(METHODS + REFERENCES):
        values = [
            (figures.peak("kuaishou", size, method.key) or 0) / 1024 if stage == "memory"
            else figures.seconds("kuaishou", size, method.key, stage)
            for size in SIZES
        ]  # fmt: skip
        colour = COLOURS[drawn % len(COLOURS)]
        dash = ("-", "--", ":")[drawn // len(COLOURS) % 3]
        if sum(bool(value) for value in values) > 1:
            found.append((method.label, values, "kuaishou", colour, dash))
    return found


def label_ends(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names at the lines' ends, moved apart where they would lie on each other."""
    low, high = (math.log(end) for end in axes.get_ylim())
    places: list[float] = []
    before = 0.0
    for x, y, name, colour in sorted(ends, key=lambda end: (end[0], end[1])):
        place = (math.log(y) - low) / (high - low)
        if places and x == before:
            place = max(place, places[-1] + 0.042)
        before = x
        places.append(place)
        axes.annotate(name, (x, y), xytext=(x, math.exp(low + place * (high - low))),
                      textcoords="data", va="center", ha="left", color=colour, fontsize=7)  # fmt: skip


def draw(figures: Figures) -> None:
    """docs/scale.svg: seconds and memory against size, each on two logarithmic axes."""
    import matplotlib as mpl  # noqa: PLC0415

    from harness.report.figures import STYLE, canvas  # noqa: PLC0415

    panels = {
        "data": "Once a data set or a worker: seconds",
        "step": "Kuaishou's shape, one update of training: seconds",
        "epoch": "Kuaishou's shape, one epoch of each stage together: seconds",
        "memory": "Kuaishou's shape, peak memory but for mapped files: GiB",
    }
    with canvas(10, 8) as figure:
        for axes, (stage, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("events (users and items grow alike)")
            ends = []
            for name, values, data, colour, dash in curves(figures, stage):
                points = [(SHAPES[data].part(Fraction(size)).events, value)
                          for size, value in zip(SIZES, values, strict=True) if value]  # fmt: skip
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker="o", markersize=3, color=colour, linestyle=dash, linewidth=1)
                ends.append((x[-1] * 1.08, y[-1], name, colour))
            if not ends:
                continue
            if stage == "memory":
                axes.axhline(8, color="black", linewidth=0.8, linestyle="--")
                axes.annotate("8 GiB", (axes.get_xlim()[0], 8.2), fontsize=7)
            left, right = axes.get_xlim()
            right *= (right / left) ** 0.35
            low, high = axes.get_ylim()
            for power in range(-10, 10):  # what is proportional to events
                axes.plot([left, right], [10.0**power, 10.0**power * right / left], color="#CCCCCC",
                          linewidth=0.8, linestyle=":", zorder=0)  # fmt: skip
            axes.set_xlim(left, right)
            axes.set_ylim(low, high)
            label_ends(axes, ends)
        figure.supxlabel("Dotted lines rise in proportion to events.", fontsize=8)
        with mpl.rc_context(STYLE):
            figure.savefig(DRAWING, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
