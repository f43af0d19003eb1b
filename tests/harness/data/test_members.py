"""Archives of one .npy array an item: what `zipfile` writes is read without it."""

import io
import shutil
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy import ndarray

from harness.data import members
from harness.data.members import array_of, fill_vectors, find_members, number_of
from harness.errors import InputError


def npy(array: ndarray, **more: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def vector(number: int) -> ndarray:
    return np.arange(number, number + 6, dtype=np.float32)[None]


def archive(path: Path, numbers: list[int], **more: int) -> Path:
    with zipfile.ZipFile(path, "w", **more) as file:
        file.mkdir("vectors")
        for number in numbers:
            file.writestr(f"vectors/{number}", npy(vector(number)))
    return path


def read(path: Path, wanted: list[int], scratch: Path) -> tuple[ndarray | None, dict[str, int]]:
    numbers = np.array(sorted(wanted))
    row = np.array([wanted.index(number) for number in numbers])
    return fill_vectors(path, find_members(path, numbers), numbers, row, scratch)


def check(path: Path, scratch: Path) -> None:
    wanted = [30, 7, 999, 12]
    table, counts = read(path, wanted, scratch)
    assert table is not None
    for row, number in enumerate(wanted):
        assert (table[row] == (0 if number == 999 else vector(number)[0])).all()
    assert counts == {"read": 3, "damaged": 0, "not finite": 0}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "v.zip", [12, 7, 500, 30], compression=method)
    check(path, tmp_path)
    found = find_members(path, np.array([7]))
    assert found.counts == {"members": 4, "folder entries": 1, "other names": 0}
    assert found.number.tolist() == [7]
    assert len(found.sha256) == 64


def test_a_name_longer_than_what_is_read_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "NAMES", 3)
    check(archive(tmp_path / "v.zip", [12, 7, 30]), tmp_path)


def test_sizes_that_follow_the_data_a_comment_and_bytes_before_the_archive(tmp_path: Path) -> None:
    stream = io.BytesIO()

    class Pipe(io.RawIOBase):  # cannot seek, so sizes are written behind each member
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            return stream.write(data)

    with zipfile.ZipFile(Pipe(), "w") as file:
        for number in (30, 7, 12):
            file.writestr(f"vectors/{number}.npy", npy(vector(number)))
        file.comment = b"made by a tool " * 100
    path = tmp_path / "v.zip"
    path.write_bytes(b"a program that unpacks itself" + stream.getvalue())
    check(path, tmp_path)


def test_an_archive_with_64_bit_places(tmp_path: Path) -> None:
    path = archive(tmp_path / "v.zip", [12, 7, 30])
    content = path.read_bytes()
    start = content.index(members.ENTRY)
    end = content.index(members.END)
    directory = b""
    parts = content[start:end].split(members.ENTRY)[1:]
    for part in reversed(parts):  # sizes and places move to the extra field
        fields = bytearray(members.ENTRY + part)
        packed, unpacked = struct.unpack_from("<2L", fields, 20)
        (place,) = struct.unpack_from("<L", fields, 42)
        extra = struct.pack("<2H3Q", 1, 24, unpacked, packed, place)
        struct.pack_into("<2L", fields, 20, members.FULL, members.FULL)
        struct.pack_into("<L", fields, 42, members.FULL)
        struct.pack_into("<H", fields, 30, len(extra))
        directory += bytes(fields) + extra
    place = start + len(directory)
    record = members.END64 + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 4, 4, len(directory), start)
    locator = members.LOCATOR + struct.pack("<LQL", 0, place, 1)
    last = members.END + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, members.FULL, members.FULL, 0)
    path.write_bytes(content[:start] + directory + record + locator + last)
    with zipfile.ZipFile(path) as file:  # the made-up bytes are what another reader understands
        assert len(file.namelist()) == 4
    check(path, tmp_path)
    found = find_members(path, np.array([7, 12, 30]))
    assert found.number.tolist() == [12, 7, 30]  # as they lie in the file, not in the directory
    assert found.place.tolist() == sorted(found.place.tolist())


def test_a_directory_larger_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "v.zip", [12, 7, *range(1_000, 6_000), 30])
    monkeypatch.setattr(members, "PIECE", 1 << 18)
    check(path, tmp_path)
    assert find_members(path, np.array([1])).counts["members"] == 5_003


def test_an_unpacked_folder(tmp_path: Path) -> None:
    archive(tmp_path / "v.zip", [12, 7, 30])
    with zipfile.ZipFile(tmp_path / "v.zip") as file:
        file.extractall(tmp_path)
    (tmp_path / "vectors" / ".DS_Store").write_bytes(b"x")
    check(tmp_path / "vectors", tmp_path)
    assert find_members(tmp_path / "vectors", np.array([7])).counts["other names"] == 1


def test_damaged_members_stay_zero_and_are_counted(tmp_path: Path) -> None:
    path = archive(tmp_path / "v.zip", [1, 2])
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("vectors/3", b"no array")
        file.writestr("vectors/4", npy(vector(4)[:, :5]))
        file.writestr("vectors/5", npy(np.array([[np.nan] * 6])))
        file.writestr("vectors/6", npy(vector(6).astype(np.float64)))
        file.writestr("vectors/7", npy(np.array([{"a": 1}], dtype=object), allow_pickle=True))
        file.writestr("vectors/8", npy(vector(8).repeat(2, axis=0)))
        file.writestr("vectors/readme", b"hello")
    content = bytearray(path.read_bytes())
    at = content.index(npy(vector(2)))
    content[at + 130] ^= 1  # inside the numbers: the checksum no longer fits
    path.write_bytes(bytes(content))
    table, counts = read(path, list(range(1, 9)), tmp_path)
    assert table is not None
    assert counts == {"read": 2, "damaged": 5, "not finite": 1}
    assert table.any(axis=1).tolist() == [True] + [False] * 4 + [True, False, False]
    assert find_members(path, np.array([1])).counts["other names"] == 1


def test_what_is_no_archive_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "v.zip"
    path.write_bytes(b"not a zip file at all, but long enough to look for its end")
    with pytest.raises(InputError, match=r"is no \.zip file, or is cut short"):
        find_members(path, np.array([1]))
    whole = archive(path, [1, 2, 3]).read_bytes()
    path.write_bytes(whole[40:])
    with pytest.raises(InputError, match="its directory is cut"):
        find_members(path, np.array([1]))
    with pytest.raises(InputError, match="cannot read"):
        find_members(tmp_path / "none.zip", np.array([1]))
    archive(path, [1], compression=zipfile.ZIP_BZIP2)
    with pytest.raises(InputError, match="compressed by method 12"):
        find_members(path, np.array([1]))
    locked = bytearray(archive(path, [1]).read_bytes())
    at = locked.rindex(members.ENTRY)
    locked[at + 8] |= 1
    path.write_bytes(bytes(locked))
    with pytest.raises(InputError, match="is encrypted"):
        find_members(path, np.array([1]))


def test_a_large_table_lies_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "v.zip", [12, 7, 30])
    monkeypatch.setattr(members, "IN_MEMORY", 0)
    scratch = tmp_path / "scratch"
    check(path, scratch)
    table, _ = read(path, [30], scratch)
    assert isinstance(table, np.memmap)
    assert not list(scratch.iterdir())


def test_a_disk_without_room_gets_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "v.zip", [12, 7, 30])
    scratch = tmp_path / "data" / ".staging"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 6 * 4 - 1))
    with pytest.raises(InputError, match=r"vectors of 4 items x 6 numbers need .* --data-dir DIR"):
        check(path, scratch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 6 * 4))
    check(path, scratch)
    monkeypatch.setattr(members, "IN_MEMORY", 0)  # in a file: once there, once in the prepared set
    with pytest.raises(InputError, match="twice"):
        check(path, scratch)
    assert not list(scratch.iterdir())


def test_names_and_arrays() -> None:
    assert [number_of(name) for name in (b"a/12", b"12.npy", b"a/x12", b"a/", b"9" * 19)] == [
        12, 12, None, None, None,
    ]  # fmt: skip
    assert array_of(npy(vector(1))[:100]) is None
    assert array_of(b"") is None
    column = array_of(npy(np.asfortranarray(np.arange(6.0).reshape(2, 3))))
    assert column is not None
    assert column.tolist() == [[0, 1, 2], [3, 4, 5]]
