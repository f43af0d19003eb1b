"""Reading raw logs: a generator of logs of Rec-Tmall's form, the engines compared, and the reader measured.

    python benchmarks/raw_readers.py generate scratch/raw --rows 1e7      (42 bytes a row)
    python benchmarks/raw_readers.py engines scratch/raw     each engine decodes the log to four columns
    python benchmarks/raw_readers.py prepare scratch/raw     the project's reader, from text to prepared set

Every measurement is a process of its own, with its peak of resident memory, and is printed as a ratio to
plain reading of the same file (`read`, what cat does) in the same run; the file is in the page cache, so
plain reading is faster than any disk. polars and duckdb are measured where they are installed; the project
needs neither. Two cores of a server, 65 million rows (2.7 GB) of a log, time in times of plain reading
(1.8 GB/s in that run) and peak memory:

    pyarrow, two blocks at a time    3.6 to 3.8    450 MiB    what the project does
    polars, scan_csv of the file     3.4 to 3.6    670 MiB    cannot stream a member of an archive
    polars, block by block           4.5           475 MiB
    duckdb, read_csv of the file     5.7           490 MiB    as polars

With 10 million rows pyarrow's own threads took 1.2 times as long as two blocks at a time, one block after
the other 1.5 times. pyarrow is within 7 % of the best, reads archives as they stream, and is needed for
parquet anyway; polars would bring 180 MB.

The project's reader on the same log: reading into buckets with SHA-256 2.1 times the parsing alone (218 MB/s,
479 MiB), ordering and selecting 0.4 times the reading (1,028 MiB).
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from harness.data.ordering import Selection
from harness.data.prepare import prepare
from harness.data.rec_tmall import product_texts, read_products, rec_tmall_log
from harness.data.staging import stage
from harness.data.texts import Reading

ROWS_AT_ONCE = 1_000_000
ITEMS, USERS = 8_133_507, 9_999_999
ROWS_A_USER = 130
FIRST, LAST = 1_375_315_200, 1_412_121_600  # 2013-08-01 and 2014-10-01
ACTIONS = {"click": 0.936, "cart": 0.030, "collect": 0.024, "alipay": 0.010}
FORMAT = "%Y-%m-%d %H:%M:%S"


def joined(first: Any, *columns: Any) -> memoryview:
    """Lines of \\x01-separated fields as bytes; the line end is put before the first field, then shifted."""
    lines = pc.binary_join_element_wise(words("\n", first), *columns, "\x01")
    _, offsets, text = lines.buffers()
    whole = bytearray(memoryview(text)[1 : np.frombuffer(offsets, np.int32)[len(lines)]])
    whole += b"\n"
    return memoryview(whole)


def words(prefix: str, numbers: Any, suffix: str = "") -> Any:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), suffix, "")


class Texts:
    """Users and items as text, made once: as many rows a user as the real log has, with a long tail."""

    def __init__(self, rows: int) -> None:
        users = max(1_000, rows // ROWS_A_USER)
        self.users = words("u", np.linspace(1, USERS, users).astype(np.int32))
        self.items = pa.array(np.arange(1, ITEMS + 1, dtype=np.int32)).cast(pa.string())
        self.actions = pa.array(list(ACTIONS))

    def log(self, rows: int, seed: int) -> memoryview:
        """Rows of a log, actions with the shares that were measured on the real log."""
        random = np.random.default_rng(seed)
        user = (len(self.users) * random.random(rows) ** 2).astype(np.int32)
        item = (len(self.items) * random.random(rows) ** 3).astype(np.int32)
        action = random.choice(len(ACTIONS), rows, p=list(ACTIONS.values())).astype(np.int8)
        clock = random.integers(FIRST, LAST, rows).astype("datetime64[s]")
        return joined(
            self.items.take(pa.array(item)), self.users.take(pa.array(user)),
            self.actions.take(pa.array(action)), pa.array(clock).cast(pa.string()),
        )  # fmt: skip


def product_text(first: int, rows: int) -> memoryview:
    item = np.arange(first, first + rows, dtype=np.int32)
    return joined(
        item, words("女装   新款 连衣裙 ", item, " "),
        words("http://img01.taobaocdn.com/bao/uploaded/i1/", item, "/T1_!!0-item_pic.jpg"),
        words("16-", item % 308), words("b", item % 90_001), words("s", item % 86_799),
    )  # fmt: skip


def generate(folder: Path, rows: int, products: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"tianchi_2014002_rec_tmall_log_part{part}.txt" for part in "abc"]
    each, texts = -(-rows // len(parts)), Texts(rows)
    for part, name in enumerate(parts):
        with (folder / name).open("wb") as file:
            for start in range(part * each, min(rows, (part + 1) * each), ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, rows - start, (part + 1) * each - start)
                file.write(texts.log(count, start))
    with (folder / "tianchi_2014001_rec_tmall_product.txt").open("wb") as file:
        for start in range(1, products + 1, ROWS_AT_ONCE):
            file.write(product_text(start, min(ROWS_AT_ONCE, products + 1 - start)))


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*log*"))


def blocks(folder: Path, size: int) -> Iterator[bytes]:
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            yield from Reading(file, file).blocks(size)


def in_threads(parse: Callable[[bytes], int], parts: Iterator[bytes], threads: int = 2) -> int:
    rows, pending = 0, deque()
    with ThreadPoolExecutor(threads) as pool:
        for part in parts:
            pending.append(pool.submit(parse, part))
            if len(pending) > threads:
                rows += pending.popleft().result()
        return rows + sum(one.result() for one in pending)


def plain(folder: Path) -> int:
    buffer = bytearray(1 << 23)
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return 0


def with_pyarrow(folder: Path, size: int = 1 << 23, threads: int = 2) -> int:
    """What the project does, without what it does later: `harness.data.rec_tmall`'s decoder."""
    pa.set_cpu_count(2 if threads == 1 else 1)
    log = rec_tmall_log(folder)
    text = log.texts[0]

    def parse(block: bytes) -> int:
        return log.decode(block, text, False).rows

    if threads > 1:
        return in_threads(parse, blocks(folder, size), threads)
    return sum(parse(block) for block in blocks(folder, size))


def pyarrow_alone(folder: Path) -> int:
    """pyarrow's own threads: its parser cuts a block of 64 MiB in pieces."""
    pa.set_cpu_count(2)
    rows = 0
    for block in blocks(folder, 1 << 26):
        table = csv.read_csv(
            pa.BufferReader(block),
            csv.ReadOptions(column_names=["item", "user", "action", "time"], block_size=1 << 23),
            csv.ParseOptions(delimiter="\x01", quote_char=False),
            csv.ConvertOptions(column_types={
                "item": pa.int32(), "user": pa.string(), "time": pa.timestamp("s"),
                "action": pa.dictionary(pa.int32(), pa.string()),
            }),
        )  # fmt: skip
        pc.utf8_slice_codeunits(table["user"], 1).cast(pa.int32()).to_numpy()
        table["time"].cast(pa.int64()).to_numpy()
        rows += len(table)
    return rows


def _polars_columns() -> list[Any]:
    pl: Any = importlib.import_module("polars")
    action = (
        pl.when(pl.col("action") == "click").then(1).when(pl.col("action") == "collect").then(2)
        .when(pl.col("action").is_in(["cart", "alipay"])).then(0).cast(pl.Int8)
    )  # fmt: skip
    clock = pl.col("time").str.slice(0, 19).str.to_datetime(FORMAT, strict=False, time_unit="ms")
    return [
        pl.col("item"), pl.col("user").str.slice(1).cast(pl.Int32, strict=False), action,
        clock.dt.timestamp("ms"),
    ]  # fmt: skip


def _polars_scan(source: Any) -> Any:
    pl: Any = importlib.import_module("polars")
    names = {"item": pl.Int32, "user": pl.String, "action": pl.String, "time": pl.String}
    return pl.scan_csv(
        source, separator="\x01", has_header=False, quote_char=None, schema=names,
        ignore_errors=True, truncate_ragged_lines=True,
    ).select(_polars_columns())  # fmt: skip


def with_polars(folder: Path) -> int:
    return sum(len(batch) for batch in _polars_scan(files_of(folder)).collect_batches())


def polars_by_block(folder: Path) -> int:
    return sum(
        len(_polars_scan(io.BytesIO(block)).collect(engine="streaming"))
        for block in blocks(folder, 1 << 24)
    )


def with_duckdb(folder: Path) -> int:
    duckdb: Any = importlib.import_module("duckdb")
    connection = duckdb.connect()
    connection.execute("set memory_limit='3GB'; set threads=2")
    result = connection.sql(f"""
        select i, cast(u[2:] as integer), case a when 'click' then 1 when 'collect' then 2
            when 'cart' then 0 when 'alipay' then 0 end::tinyint, epoch(try_cast(t[:19] as timestamp))
        from read_csv({[str(path) for path in files_of(folder)]}, delim='\x01', header=false, quote='',
            escape='', auto_detect=false, store_rejects=true,
            columns={{'i': 'INTEGER', 'u': 'VARCHAR', 'a': 'VARCHAR', 't': 'VARCHAR'}})
    """)
    return sum(batch.num_rows for batch in result.to_arrow_reader(ROWS_AT_ONCE))


ENGINES: dict[str, Callable[[Path], int]] = {
    "read": plain,
    "pyarrow, two blocks at a time": with_pyarrow,
    "pyarrow, one block after the other": lambda folder: with_pyarrow(folder, threads=1),
    "pyarrow, its own threads": pyarrow_alone,
    "polars, scan_csv of the file": with_polars,
    "polars, block by block": polars_by_block,
    "duckdb, read_csv of the file": with_duckdb,
}


def stages(folder: Path, scratch: Path) -> dict[str, float]:
    """The project's own reader: seconds of reading, selecting and writing the prepared set."""
    pa.set_cpu_count(1)
    begun, busy = time.perf_counter(), time.process_time()
    seconds: dict[str, float] = {}
    facts: dict[str, float] = {}

    def lap(name: str) -> None:
        seconds[name] = time.perf_counter() - begun - sum(seconds.values())
        facts[f"{name}, CPU s until then"] = time.process_time() - busy
        facts[f"{name}, peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {seconds[name]:.1f} s; {facts}", file=sys.stderr, flush=True)

    with stage(rec_tmall_log(folder), scratch, show=False) as staged:
        lap("reading to buckets, with SHA-256")
        disk = sum(path.stat().st_size for path in staged.folder.iterdir() if path.is_file())
        chosen = staged.select(Selection())
        lap("ordering and selecting")
        raw = chosen.raw(user_prefix="u", **read_products(product_texts(folder), chosen))
        lap("products")
        manifest = prepare(raw, scratch, "bench")
        lap("prepare")
    shutil.rmtree(scratch)
    return {**seconds, **facts, "staging MB": disk / 1e6, **manifest["table1"]}


def measured(folder: Path, what: str) -> dict[str, Any]:
    """One measurement in a process of its own; empty where the engine is not installed."""
    done = subprocess.run(
        [sys.executable, __file__, "one", str(folder), "--engine", what], capture_output=True,
        text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"},
    )  # fmt: skip
    if done.returncode:
        print(f"{what}: not measured ({done.stderr.strip().splitlines()[-1]})")
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["generate", "engines", "prepare", "one"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=float, default=1e7)
    parser.add_argument("--products", type=float, default=1e5)
    parser.add_argument("--engine", default="")
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder
    if options.verb == "generate":
        generate(folder, int(options.rows), int(options.products))
        return
    size = sum(path.stat().st_size for path in files_of(folder))
    if options.verb == "one":
        begun = time.perf_counter()
        if options.engine == "stages":
            result: dict[str, Any] = stages(folder, folder / "scratch")
        else:
            result = {"rows": ENGINES[options.engine](folder)}
        result["seconds"] = time.perf_counter() - begun
        result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    plainly = measured(folder, "read")["seconds"]
    print(f"{size / 1e9:.2f} GB of log, read plainly at {size / plainly / 1e6:,.0f} MB/s")
    names = list(ENGINES)[1:] if options.verb == "engines" else ["stages"]
    for name in names * options.runs if options.verb == "engines" else names:
        if options.engine in name and (result := measured(folder, name)):
            print(
                f"{name:36} {result['seconds'] / plainly:6.1f} times plain reading "
                f"({size / result['seconds'] / 1e6:,.0f} MB/s), peak {result['peak_mib']:,.0f} MiB"
            )
            for key, value in result.items() if name == "stages" else ():
                print(f"    {key:40} {value:14,.2f}")


if __name__ == "__main__":
    main()
