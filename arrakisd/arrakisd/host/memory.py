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
from itertools import pairwise
from pathlib import Path

from attrs import frozen

from arrakis_rpc.errors import IntegrityError, VmmError

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
    """Find where a process maps a memory file."""
    status = memory_file.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    areas = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, offset, mapped_device, inode, *_ = line.split()
        if mapped_device == device and int(inode) == status.st_ino:
            begin, end = (int(part, 16) for part in span.split("-"))
            areas.append(Area(begin, (end - begin) // PAGE, int(offset, 16) // PAGE))
    if not areas:
        raise VmmError(f"process {pid} does not map {memory_file}")
    return areas


def changed_runs(pid: int, areas: list[Area]) -> list[tuple[int, int]]:
    """Give the changed pages as runs of (first page, number of pages), in guest order."""
    runs = []
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for area in areas:
            entries = os.pread(pagemap.fileno(), area.pages * 8, area.address // PAGE * 8)
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
    with (
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
        target.open("wb", buffering=_COPY) as out,
    ):
        out.write(_HEADER.pack(_MAGIC, len(runs)) + table)
        for first, count in runs:
            address, left = _address(areas, first), count * PAGE
            while left:
                piece = os.pread(memory.fileno(), min(left, _COPY), address)
                if not piece:
                    raise VmmError(f"guest memory of process {pid} cannot be read")
                out.write(piece)
                address += len(piece)
                left -= len(piece)
    return sum(count for _, count in runs)


def load_pages(pid: int, memory_file: Path, source: Path) -> int:
    """Put the pages of a page file into a guest that does not run yet; give their number."""
    areas = find_memory(pid, memory_file)
    total = 0
    with (
        Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory,
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        runs, position = _read_table(view, source)
        for first, count in runs:
            address, end = _address(areas, first), position + count * PAGE
            while position < end:
                with view[position:end] as piece:
                    written = os.pwrite(memory.fileno(), piece, address)
                address += written
                position += written
            total += count
    return total


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


def _address(areas: list[Area], page: int) -> int:
    for area in areas:
        if area.first_page <= page < area.first_page + area.pages:
            return area.address + (page - area.first_page) * PAGE
    raise IntegrityError(f"page {page} lies outside the guest's memory")
