"""Pages that a guest has changed: finding, saving and putting them back.

A restored guest's RAM is a private mapping of its template's memory file. Pages that the
guest has written since are anonymous, and ``/proc/PID/pagemap`` tells which they are
(Documentation/admin-guide/mm/pagemap.rst): present or swapped out, and not file-backed.

A *page file* holds such pages: a header with magic and number of runs, then for each run
its first page and its number of pages, then the pages themselves in the same order.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar

from attrs import frozen

from arrakis_rpc.errors import IntegrityError, VmmError

T = TypeVar("T")

PAGE = 4096
_MAGIC = b"ARKPAGE1"
_HEADER = struct.Struct("<8sQ")
_RUN = struct.Struct("<QQ")
_COPY = 1024 * 1024

_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20
_CHANGED = bytes(
    1 if value & (_PRESENT | _SWAPPED) and not value & _FILE else 0 for value in range(256)
)
_RUNS = re.compile(b"\x01+")


@frozen
class Area:
    """A piece of a process's address space that maps guest RAM from ``first_page`` on."""

    address: int
    pages: int
    first_page: int


def find_memory(pid: int, memory_file: Path) -> list[Area]:
    """Find where a process maps a memory file; in the order of the guest's pages."""
    status = memory_file.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    areas = []
    with _open(pid, "maps", "rb") as maps:
        lines = _transfer(pid, maps.read).decode(errors="replace").splitlines()
    for line in lines:
        span, _, offset, mapped_device, inode, *_ = line.split()
        if mapped_device == device and int(inode) == status.st_ino:
            begin, end = (int(part, 16) for part in span.split("-"))
            areas.append(Area(begin, (end - begin) // PAGE, int(offset, 16) // PAGE))
    if not areas:
        raise VmmError(f"process {pid} does not map {memory_file}")
    return sorted(areas, key=lambda area: area.first_page)


def changed_runs(pid: int, areas: list[Area]) -> list[tuple[int, int]]:
    """Give the changed pages as runs of (first page, number of pages), in guest order.

    No run goes beyond the end of an area.
    """
    runs = []
    with _open(pid, "pagemap", "rb") as pagemap:
        for area in areas:
            size = area.pages * 8
            at = area.address // PAGE * 8
            entries = _transfer(pid, os.pread, pagemap.fileno(), size, at)
            if len(entries) != size:
                raise _ended(pid)
            # The flags are in the top byte of each little-endian entry.
            flags = entries[7::8].translate(_CHANGED)
            runs += [
                (area.first_page + match.start(), match.end() - match.start())
                for match in _RUNS.finditer(flags)
            ]
    return runs


def save_pages(pid: int, memory_file: Path, target: Path) -> int:
    """Copy the changed pages of a halted guest into a page file; give their number."""
    areas = find_memory(pid, memory_file)
    runs = changed_runs(pid, areas)
    table = b"".join(_RUN.pack(*run) for run in runs)
    with target.open("wb", buffering=_COPY) as out, _open(pid, "mem", "rb") as memory:
        out.write(_HEADER.pack(_MAGIC, len(runs)) + table)
        for first, count in runs:
            address, left = _address(areas, first, count), count * PAGE
            while left:
                size = min(left, _COPY)
                piece = _transfer(pid, os.pread, memory.fileno(), size, address)
                out.write(piece)
                address += len(piece)
                left -= len(piece)
    return sum(count for _, count in runs)


def load_pages(pid: int, memory_file: Path, source: Path) -> int:
    """Put the pages of a page file into a guest that does not run yet; give their number.

    A file that is not whole, or has pages that the guest has not, is refused unused.
    """
    areas = find_memory(pid, memory_file)
    with (
        source.open("rb") as file,
        _content(file) as view,
        _open(pid, "mem", "r+b") as memory,
    ):
        runs, position = _read_table(view, source)
        pieces = [(_address(areas, first, count), count * PAGE) for first, count in runs]
        for start, size in pieces:
            address, end = start, position + size
            while position < end:
                with view[position:end] as piece:
                    written = _transfer(pid, os.pwrite, memory.fileno(), piece, address)
                address += written
                position += written
    return sum(count for _, count in runs)


def _open(pid: int, name: str, mode: str) -> IO[bytes]:
    try:
        return Path(f"/proc/{pid}/{name}").open(mode, buffering=0)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _ended(pid) from error


def _transfer(pid: int, call: Callable[..., T], *args: Any) -> T:
    """Read or write something of a process; nothing at all, or an error, is its end."""
    try:
        moved = call(*args)
    except OSError as error:
        raise _ended(pid) from error
    if not moved:
        raise _ended(pid)
    return moved


def _ended(pid: int) -> VmmError:
    return VmmError(f"the memory of process {pid} is not accessible; it has probably ended")


@contextmanager
def _content(file: IO[bytes]) -> Iterator[memoryview]:
    if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
        yield memoryview(b"")
        return
    with (
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        yield view


def _read_table(view: memoryview, source: Path) -> tuple[list[tuple[int, int]], int]:
    magic, number = _HEADER.unpack_from(view) if len(view) >= _HEADER.size else (b"", 0)
    position = _HEADER.size + number * _RUN.size
    if magic != _MAGIC or position > len(view):
        raise IntegrityError(f"{source} is not a page file")
    runs = [(first, count) for first, count in _RUN.iter_unpack(view[_HEADER.size : position])]
    ordered = all(a + n <= b for (a, n), (b, _) in pairwise(runs))
    if not ordered or len(view) != position + sum(count for _, count in runs) * PAGE:
        raise IntegrityError(f"{source} is cut short or out of order")
    return runs, position


def _address(areas: list[Area], first: int, count: int) -> int:
    """Where a run lies, which must be within one area: other memory may follow it."""
    for area in areas:
        if area.first_page <= first and first + count <= area.first_page + area.pages:
            return area.address + (first - area.first_page) * PAGE
    raise IntegrityError(f"pages {first} to {first + count - 1} lie outside the guest's memory")
