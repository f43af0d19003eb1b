"""The Kuaishou reader at the size of the challenge's final round: time, peak memory, disk.

    python benchmarks/kuaishou_raw.py FOLDER [--scale 0.1] [--favor-rule finished_play]

writes made-up raw files of the release's form (52 million log rows, 7.56 million photos in the texts and in
the archive's directory), prepares them and prints one line a stage. The archive is a sparse file of 62 GB in which
only the vectors of photos that somebody clicks are written (618,529 of them, 5 GB), at their true 64-bit
places: a reader that looks at any other member finds zeros and counts it as damaged.

On two cores of a server that other work kept busy, at full scale: survey 85 s, preparing 419 s, the largest
peak of resident memory 0.86 GB, all 618,510 vectors of kept photos read and none damaged. `zipfile` alone would
hold 5 GB of directory (682 bytes a member, measured on 200,000).
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

ROWS, USERS, PHOTOS, CLICKED, WIDTH = 52_000_000, 37_820, 7_560_366, 618_529, 2048
FIRST_PHOTO = 1_000_001
"""So that all names have seven digits."""
CLOCK = (760_994_900_000, 761_124_900_000)
PART = 1_000_000
NAME = b"final_visual_train/%d"
LOCAL = "<4s5H3L2H"
ENTRY = "<4s6H3L5H2L"


def plain(table: pa.Table, file: io.BufferedWriter) -> None:
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    csv.write_csv(table, file, options)


def write_log(folder: Path, rows: int, users: int, photos: int, clicked: np.ndarray) -> None:
    random = np.random.default_rng(1)
    with (folder / "train_interaction.txt").open("wb") as file:
        for start in range(0, rows, PART):
            size = min(PART, rows - start)
            click = random.random(size) < 0.2024
            pool = clicked[(len(clicked) * random.random(size) ** 2).astype(np.int64)]
            photo = np.where(click, pool, FIRST_PHOTO + random.integers(0, photos, size))
            duration = random.integers(0, 40, size)
            playing = np.where(click, random.integers(0, 60, size), 0)
            flags = [
                (click & (random.random(size) < share)).astype(np.int8) for share in (0.015, 0.005)
            ]
            names = ("user", "photo", "click", "like", "follow", "time", "playing", "duration")
            values = (2 + random.integers(0, users, size), photo, click.astype(np.int8), *flags,
                      random.integers(*CLOCK, size), playing, duration)  # fmt: skip
            plain(pa.table(dict(zip(names, values, strict=True))), file)
    with (folder / "test_interaction.txt").open("wb") as file:
        size = max(1, rows * 8 // 52)
        values = (random.integers(2, users, size), random.integers(photos, 2 * photos, size),
                  random.integers(*CLOCK, size), random.integers(0, 40, size))  # fmt: skip
        plain(pa.table(dict(zip("abcd", values, strict=True))), file)


def write_texts(folder: Path, photos: int) -> None:
    random = np.random.default_rng(2)
    with (folder / "train_text.txt").open("wb") as file:
        for start in range(0, photos, PART):
            size = min(PART, photos - start)
            words = [pa.array((275_398 * random.random(size) ** 3).astype(np.int64)).cast(pa.string())
                     for _ in range(5)]  # fmt: skip
            texts = pc.if_else(pa.array(random.random(size) < 0.47), "0",
                               pc.binary_join_element_wise(*words, ","))  # fmt: skip
            photo = FIRST_PHOTO + np.arange(start, start + size)
            plain(pa.table({"photo": photo, "text": texts}), file)


def write_archive(folder: Path, photos: int, clicked: np.ndarray) -> None:
    random = np.random.default_rng(3)
    stream = io.BytesIO()
    np.save(stream, np.zeros((1, WIDTH), dtype=np.float32))
    content = stream.getvalue()
    head, size = content[: -4 * WIDTH], len(content)
    name = len(NAME % FIRST_PHOTO)
    step = 30 + name + size
    pool = random.standard_normal((256, WIDTH)).astype(np.float32)
    checks = np.zeros(photos, dtype=np.int64)
    folder_name = b"final_visual_train/"
    begin = 30 + len(folder_name)
    with (folder / "final_visual_train.zip").open("wb") as file:
        file.write(
            struct.pack(LOCAL, b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, len(folder_name), 0)
            + folder_name
        )
        for place in np.sort(clicked - FIRST_PHOTO).tolist():
            vector = pool[place % 256]
            vector[0] = place
            content = head + vector.tobytes()
            checks[place] = zlib.crc32(content)
            file.seek(begin + place * step)
            file.write(
                struct.pack(
                    LOCAL, b"PK\3\4", 20, 0, 0, 0, 33, int(checks[place]), size, size, name, 0
                )
            )
            file.write(NAME % (FIRST_PHOTO + place) + content)
        start = begin + photos * step
        file.seek(start)
        file.write(struct.pack(ENTRY, b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(folder_name), 0, 0, 0, 0, 0, 0)
                   + folder_name)  # fmt: skip
        fixed, extra = struct.Struct(ENTRY), struct.Struct("<2HQ")
        for first in range(0, photos, PART):
            part = bytearray()
            for place in range(first, min(photos, first + PART)):
                where = begin + place * step
                wide = where >= 0xFFFFFFFF
                part += fixed.pack(b"PK\1\2", 45, 45, 0, 0, 0, 33, int(checks[place]), size, size, name,
                                   12 * wide, 0, 0, 0, 0, 0xFFFFFFFF if wide else where)  # fmt: skip
                part += NAME % (FIRST_PHOTO + place)
                if wide:
                    part += extra.pack(1, 8, where)
            file.write(part)
        end = file.tell()
        file.write(
            b"PK\6\6"
            + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, photos + 1, photos + 1, end - start, start)
        )
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        file.write(
            b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--favor-rule", default="like")
    options = parser.parse_args()
    raw = options.folder / "raw"
    rows, users, photos, clicked = (
        max(400, int(options.scale * count)) for count in (ROWS, USERS, PHOTOS, CLICKED)
    )
    if not raw.exists():
        raw.mkdir(parents=True)
        begun = time.monotonic()
        chosen = FIRST_PHOTO + np.random.default_rng(0).permutation(photos)[:clicked]
        write_log(raw, rows, users, photos, chosen)
        write_texts(raw, photos)
        write_archive(raw, photos, chosen)
        print(f"made-up files: {time.monotonic() - begun:.0f} s")
    for path in sorted(raw.iterdir()):
        stat = path.stat()
        print(
            f"  {path.name}: {stat.st_size / 1e9:.2f} GB, on disk {stat.st_blocks * 512 / 1e9:.2f} GB"
        )
    for more in (["--survey"], ["--favor-rule", options.favor_rule]):
        begun = time.monotonic()
        command = [sys.executable, "-m", "harness.prepare", "kuaishou", "--raw", str(raw), "--data-dir",
                   str(options.folder / "data"), *more]  # fmt: skip
        code = subprocess.run(command, check=False).returncode
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"{' '.join(more)}: exit {code}, {time.monotonic() - begun:.0f} s, "
              f"largest peak memory so far {peak:.2f} GB", flush=True)  # fmt: skip
        if code:
            return code
    manifest = json.loads((options.folder / "data" / "kuaishou" / "manifest.json").read_text())
    for name in ("table1", "vectors", "item_files"):
        print(name, json.dumps(manifest[name]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
