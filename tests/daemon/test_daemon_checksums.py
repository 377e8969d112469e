"""Checksums of stored files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrakis_rpc.errors import IntegrityError
from arrakisd.host.checksums import Verifier, file_digest

BLOCK = 256 * 1024
SIZE = 3 * BLOCK + 777


def bytes_read() -> int:
    """How many bytes this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A file with data at its beginning, in the middle and at its end, and holes between."""
    file = tmp_path / "stored"
    with file.open("wb") as out:
        for position in (0, BLOCK + 5, SIZE - 3):
            out.seek(position)
            out.write(b"abc")
    return file


@pytest.fixture
def verifier(stored: Path) -> Verifier:
    """A verifier that has found the file intact."""
    verifier = Verifier()
    verifier.verify(stored, SIZE, file_digest(stored))
    return verifier


def test_holes(stored: Path, tmp_path: Path) -> None:
    """A hole counts the same as zeros that are written out."""
    full = tmp_path / "full"
    full.write_bytes(stored.read_bytes())
    assert stored.stat().st_blocks < full.stat().st_blocks
    assert file_digest(stored) == file_digest(full)


def test_length_of_nothing(tmp_path: Path) -> None:
    """Files that are nothing but a hole differ by their size, and an empty one has a digest."""
    digests = set()
    for size in (0, 1, BLOCK, BLOCK + 1):
        with (tmp_path / "hole").open("wb") as out:
            out.truncate(size)
        digests.add(file_digest(tmp_path / "hole"))
    assert len(digests) == 4


def test_moved_block(tmp_path: Path) -> None:
    """The same data elsewhere in the file is another file."""
    digests = set()
    for position in (0, BLOCK, 2 * BLOCK):
        with (tmp_path / "moved").open("wb") as out:
            out.truncate(SIZE)
            out.seek(position)
            out.write(b"d" * BLOCK)
        digests.add(file_digest(tmp_path / "moved"))
    assert len(digests) == 3


@given(st.integers(0, SIZE - 1), st.integers(0, 7))
def test_one_bit(tmp_path_factory: pytest.TempPathFactory, position: int, bit: int) -> None:
    """One bit that is other than it was, anywhere, gives another digest."""
    path = tmp_path_factory.getbasetemp() / "flipped"
    content = bytearray(SIZE)
    content[100:200] = bytes(range(100))
    path.write_bytes(content)
    before = file_digest(path)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    assert file_digest(path) != before


def test_read_once(stored: Path, verifier: Verifier) -> None:
    """A file that was found intact is not read again while it is untouched."""
    before = bytes_read()
    verifier.verify(stored, SIZE, file_digest(stored))
    once = bytes_read() - before
    before = bytes_read()
    for _ in range(3):
        verifier.verify(stored, SIZE, "any digest")
    assert bytes_read() - before < once / 2


def test_trusted(stored: Path) -> None:
    """A file that this daemon has just written is not read at all."""
    verifier = Verifier()
    verifier.trust(stored)
    verifier.verify(stored, SIZE, "any digest")


def test_changed_later(stored: Path, verifier: Verifier) -> None:
    """A later change is found, even if size and modification time look the same."""
    times = stored.stat()
    digest = file_digest(stored)
    with stored.open("r+b") as out:
        out.write(b"b")
    while stored.stat().st_ctime_ns == times.st_ctime_ns:  # some kernels' clocks tick but slowly
        os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(IntegrityError, match=f"{stored} .*checksum"):
        verifier.verify(stored, SIZE, digest)
    with pytest.raises(IntegrityError):  # a refusal is not remembered as a success
        verifier.verify(stored, SIZE, digest)


def test_replaced(stored: Path, verifier: Verifier, tmp_path: Path) -> None:
    """Another file in its place is read, and passes if it holds the same."""
    digest = file_digest(stored)
    shutil.copyfile(stored, tmp_path / "copy")
    (tmp_path / "copy").replace(stored)
    with pytest.raises(IntegrityError):
        verifier.verify(stored, SIZE, "other digest")
    verifier.verify(stored, SIZE, digest)


def test_missing_or_cut(stored: Path, verifier: Verifier) -> None:
    """A file that is missing or has another size is refused by name, with a hint."""
    digest = file_digest(stored)
    os.truncate(stored, SIZE - 1)
    with pytest.raises(IntegrityError, match=f"{stored} .*size") as caught:
        verifier.verify(stored, SIZE, digest)
    assert caught.value.hint
    stored.unlink()
    with pytest.raises(IntegrityError, match=f"{stored} is missing") as caught:
        verifier.verify(stored, SIZE, digest)
    assert caught.value.hint
