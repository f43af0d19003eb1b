"""Speed as ratios, each against a reference measured in the same run: `nox -s bench`.

Times are printed for the reader; what carries over to another machine is the ratio. One torch thread
unless said, also of each side of a race with a peer (benchmarks/peers; --threads changes it). A bar is what
the ratio should reach; a missed one is said, and is an error with --strict. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from floor import against_floor
from peers import sides
from peers.race import Row, report, table
from tabulate import tabulate

from harness.compose import Budget, compose_cell
from harness.data.batches import TrainingSamples
from harness.data.dataset import Dataset
from harness.data.demo import ensure_demo
from harness.evaluation.ranks import Validation, final_ranks
from harness.execution.here import worker_environment
from harness.seeding import torch_stream
from harness.training.loop import Trainer
from harness.zoo import METHODS, find
from models.interface import Batch, Catalogue, History
from models.softmax import catalogue_cross_entropy

PARTS = ("command", "softmax", "m3bsr", "methods", "workers", "training", "evaluation", "places")
MIB = 512
"""What the cross-entropy over 618,529 items may take above the tables."""
ROWS: list[Row] = []


def note(
    what: str, seconds: float, against: str, reference: float, bar: float | None = None
) -> None:
    """One line of the result: how many times faster ours is than the reference."""
    said = Row(
        what, reference / seconds, against, bar, f"{seconds:.3g} s against {reference:.3g} s"
    )
    ROWS.append(said)
    report(said)


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds after one warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def process(*words: str) -> Callable[[], object]:
    """A Python process, as a whole."""
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def command_line() -> None:
    """--help must not wait for torch."""
    help_seconds = timed(process("-m", "harness.reproduce", "--help"), 3)
    note(
        "reproduce --help",
        help_seconds,
        "python -c 'import torch'",
        timed(process("-c", "import torch"), 3),
    )


def softmax(items: int, batch: int = 1024, hidden: int = 64) -> None:
    """Exact cross-entropy over a catalogue, forward and backward, against the full logits."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(batch, hidden, generator=generator, requires_grad=True)
    weight = (0.1 * torch.randn(items + 1, hidden, generator=generator)).requires_grad_()
    target = torch.randint(1, items + 1, (batch,), generator=generator)

    def ours() -> None:
        catalogue_cross_entropy(query, weight, None, target).mean().backward()

    def full() -> None:
        torch.nn.functional.cross_entropy(query @ weight[1:].T, target - 1).backward()

    note(f"cross-entropy, {items:,} items", timed(ours, 3), "full logits", timed(full, 3), bar=1)


MEMORY = """
import sys, torch
from models.softmax import catalogue_cross_entropy
def peak():  # KiB, of this program alone: getrusage would count the one that started it
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
torch.set_num_threads(1)
items, batch, hidden = (int(word) for word in sys.argv[1:])
weight = torch.empty(items + 1, hidden).normal_(std=0.1).requires_grad_()  # nothing else was ever held
query = torch.empty(batch, hidden).normal_().requires_grad_()
target = torch.randint(1, items + 1, (batch,))
few = torch.empty(100, hidden).normal_().requires_grad_()
(query.detach() @ few.T).exp().sum().backward()  # libraries and their buffers
before = peak()
catalogue_cross_entropy(query, weight, None, target).mean().backward()
print((peak() - before) // 1024)
"""


def softmax_memory(items: int = 618_529, batch: int = 1024, hidden: int = 64) -> None:
    """Rise of the peak above the table, gradient of the table included, in a process of its own."""
    words = (str(number) for number in (items, batch, hidden))
    done = subprocess.run([sys.executable, "-c", MEMORY, *words], check=True, capture_output=True)
    rise = int(done.stdout)
    what = f"room for cross-entropy, {items:,} items x {hidden}, batch {batch}"
    took = f"peak {rise} MiB above the table, its gradient among them"
    said = Row(what, MIB / max(rise, 1), f"a peak of {MIB} MiB", 1.0, took)
    ROWS.append(said)
    report(said)


def m3bsr_floor(hidden: int, batch: int = 128, clicks: int = 20, favors: int = 6) -> None:
    """M3BSR's forward and backward against its counted FLOPs at the rate of a large product."""
    model_class, config_class = find("m3bsr").load()
    config = config_class(hidden=hidden)
    items, length = 700, clicks + favors
    generator = torch.Generator().manual_seed(1)
    present = torch.ones(items + 1, dtype=torch.bool)
    vectors = torch.randn(items + 1, 128, generator=generator)
    model = model_class(
        config, Catalogue(batch, items, 50, vectors, present, vectors, present, {}, True)
    )
    ids = torch.randint(1, items + 1, (batch, length), generator=generator)
    tags = torch.tensor([1] * clicks + [2] * favors).expand(batch, -1)
    target = torch.randint(1, items + 1, (batch, 1), generator=generator)
    ones = torch.ones(batch, 1)
    sample = Batch(History(torch.arange(batch), ids, tags), target, ones, 0 * ones, generator)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sum(model.loss(sample).values()).backward()

    d, steps, layers = hidden, 10, 2
    slots = 3 * clicks

    def layer(s: int, queries: int) -> int:
        """A full encoder layer of s slots (specification: 24 s d^2 + 4 s^2 d), or its last query."""
        return 4 * s * d * d + queries * (20 * d * d + 4 * s * d)

    chain = sum(steps * (4 * s * d * d + 4 * s * c * d) for s, c in
                [(clicks, clicks)] * 2 + [(favors, favors)] * 2 + [(clicks, favors)] * 3)  # fmt: skip
    keys = 4 * d * d * (2 * clicks + 2 * favors + 3 * favors)
    shared = 4 * slots * d * d + 4 * 3 * favors * d * d + 4 * slots * 3 * favors * d
    experts = (layers - 1) * (
        layer(slots, slots) + 3 * layer(clicks, clicks) + 3 * layer(favors, favors)
    )
    last = layer(slots, 1) + 3 * layer(clicks, 1) + 3 * layer(favors, 1)
    flops = 3 * batch * (chain + keys + shared + experts + last + 2 * items * d)
    floor, measured = against_floor(step, flops)
    note(
        f"M3BSR's forward + backward, d {hidden}, batch {batch}, {clicks} + {favors} events",
        measured,
        "its FLOPs at the rate of a large product",
        floor,
        bar=1 / 3,
    )


def methods(data: Path) -> None:
    """One epoch of every method on the larger twin, at budget quick, and both evaluations."""
    dataset = Dataset.open(data, "demo_kuaishou")
    lines = []
    for method in METHODS:
        cell = compose_cell(method, dataset.name, Budget.quick, ())
        split = dataset.split(cell.protocol)
        torch.manual_seed(1)
        model_class, _ = method.load()
        model = model_class(cell.model, replace(dataset.catalogue(cell.protocol)))
        model.prepare(split.train)
        samples = TrainingSamples(split, model.samples, cell.protocol, cell.train)
        batches = samples.epoch(*(torch_stream(1, name) for name in ("order", "draws")))
        targets = sum(float(batch.weights.sum()) for batch in batches)
        trainer = Trainer(model, samples, seed=1)
        start = time.perf_counter()
        trainer.epoch(0, lambda: False)
        seconds = time.perf_counter() - start
        validation = Validation(split, cell.protocol, 512)
        lines.append({
            "method": method.label, "epoch s": seconds, "targets": int(targets),
            "µs a target": 1e6 * seconds / targets,
            "99 negatives, µs a user": 1e6 * timed(partial(validation, model), 3) / len(validation),
            "all items, µs a user":
                1e6 * timed(partial(final_ranks, model, split, cell.protocol, 512), 3) / len(split.test.user),
        })  # fmt: skip
    print("\nOne epoch on demo_kuaishou, budget quick, one thread")
    print(tabulate(lines, headers="keys", floatfmt=".1f"))


def workers(data: Path) -> None:
    """Two one-thread workers against one two-thread process, on the same runs."""
    code = (
        "import sys, time, torch; torch.set_num_threads(int(sys.argv[1]));"
        "from pathlib import Path; from dataclasses import asdict, replace;"
        "from harness.compose import *; from harness.run import *; from harness.zoo import find;"
        "cell = compose_cell(find('m3bsr'), 'demo_rec_tmall', Budget.quick, ['train.epochs=3']);"
        "[run(replace(cell, seed=int(s)), Places(Path(sys.argv[2]), Path(sys.argv[3]))) for s in sys.argv[4:]]"
    )

    def start(threads: int, *seeds: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(threads), str(data),
                                 tempfile.mkdtemp(dir=data), *seeds])  # fmt: skip

    def both(*processes: subprocess.Popen[bytes]) -> None:
        if any(process.wait() for process in processes):
            raise RuntimeError("a run failed")

    with worker_environment():
        side = timed(lambda: both(start(1, "1", "2"), start(1, "3", "4")), 1)
    alone = timed(lambda: both(start(2, "1", "2", "3", "4")), 1)
    note("4 runs, 2 workers of 1 thread", side, "1 process of 2 threads", alone, bar=1)


def races(options: argparse.Namespace, part: str) -> None:
    """Races against the packages whose interpreters the command line names."""
    recbole, rectools, ours = options.recbole, options.rectools, sys.executable
    made = {
        "training": lambda: sides.training(recbole, ours, options.threads, more=not options.short),
        "evaluation": lambda: sides.evaluation(recbole, ours, options.threads),
        "places": lambda: sides.all_places(recbole, rectools, ours, options.threads),
    }
    ROWS.extend(made[part]())


def main() -> None:
    """Run everything, the small part with --short, or some parts with --only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="leave out the large catalogues and the workers"
    )
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="these parts alone")
    parser.add_argument("--recbole", metavar="PYTHON", help="interpreter of RecBole's environment")
    parser.add_argument("--rectools", metavar="PYTHON", help="interpreter of RecTools' environment")
    parser.add_argument("--threads", type=int, default=1, help="of each side of a race with a peer")
    parser.add_argument(
        "--strict", action="store_true", help="end with an error when a bar is missed"
    )
    parser.add_argument("--json", type=Path, help="where to keep the lines as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = set(options.only)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        if asked & {"methods", "workers"}:
            for name in ("demo_rec_tmall", "demo_kuaishou"):
                ensure_demo(data, name)
        if "command" in asked:
            command_line()
        if "softmax" in asked:
            softmax(20_000)
            if not options.short:
                softmax(618_529)
                softmax_memory()
        if "m3bsr" in asked:
            for hidden in (32, 64, 128):
                m3bsr_floor(hidden)
            m3bsr_floor(64, batch=1024)
            m3bsr_floor(64, clicks=38, favors=12)
        if "methods" in asked:
            methods(data)
        if "workers" in asked and not options.short:
            workers(data)
    for part in ("training", "evaluation", "places"):
        if part in asked and options.recbole and (options.rectools or part != "places"):
            races(options, part)
        elif part in asked:
            print(
                f"  {part}: not measured, as no peer was named (nox -s bench makes them)",
                file=sys.stderr,
            )
    if options.json:
        options.json.write_text(
            json.dumps([asdict(said) for said in ROWS], indent=1) + "\n", encoding="utf8"
        )
    print(f"\n{table(ROWS)}")
    raise SystemExit(1 if options.strict and any(said.missed for said in ROWS) else 0)


if __name__ == "__main__":
    main()
