"""Whole memories of guests in files, for hypervisors that read and write nothing less.

What is stored are page files on top of a template's memory file, see `page_files`. Here they
become one file that a guest can be woken from, and a page file is made of a dump of all memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from arrakis_rpc.errors import VmmError

from .page_files import PAGE, PIECE, PageStack, PageWriter, cut, open_stack
from .threads import checkpoint


def patch_memory(memory: Path, pages: Sequence[Path]) -> None:
    """Put page files, the lowest first, into a copy of the memory file they stand on. Blocks."""
    with _opened(memory, os.O_RDWR) as fd, open_stack(pages, _size(fd) // PAGE) as stack:
        for span in cut(stack.spans):
            checkpoint()
            position = 0
            with stack.content(span) as content:
                while position < len(content):
                    with content[position:] as rest:
                        position += os.pwrite(fd, rest, span.first * PAGE + position)


def save_difference(
    memory: Path,
    known: Sequence[Path],
    dump: Path,
    target: Path,
    changed: bytearray | None = None,
) -> int:
    """Make a page file of what a dump has and the stored files have not; give how many pages.

    Stored are the memory file and the page files ``known`` on top of it, the lowest first.
    ``changed`` has a 1 for each page that may differ: no other is looked at, nor need be in the
    dump. Raises `VmmError` for a dump that is not whole, or is cut while it is read. Blocks.
    """
    with _opened(memory, os.O_RDONLY) as base, _opened(dump, os.O_RDONLY) as now:
        size = _size(base)
        if _size(now) != size or (changed is not None and len(changed) * PAGE != size):
            raise VmmError(f"{dump} is not the whole memory of its guest")
        with open_stack(known, size // PAGE) as stack, target.open("wb", buffering=PIECE) as out:
            writer = PageWriter(out)
            for at, stored in _stored(base, size, stack, changed):
                checkpoint()
                present = _read(now, len(stored), at)
                if present != stored:
                    _add_differing(at // PAGE, stored, present, writer, changed)
            return writer.finish()


def _stored(
    base: int, size: int, stack: PageStack, changed: bytearray | None
) -> Iterator[tuple[int, bytes]]:
    """Give what is stored of the memory, piece by piece, each with where it begins.

    Pieces without a page that may differ are left out.
    """
    spans = sorted(stack.spans, key=lambda span: span.first)
    begun = 0
    for at in range(0, size, PIECE):
        if changed is not None and not any(changed[at // PAGE : (at + PIECE) // PAGE]):
            continue
        piece = _read(base, min(PIECE, size - at), at)
        first, end = at // PAGE, (at + len(piece)) // PAGE
        while begun < len(spans) and spans[begun].first + spans[begun].pages <= first:
            begun += 1
        topped = bytearray(piece) if begun < len(spans) and spans[begun].first < end else None
        for span in spans[begun:]:
            if span.first >= end or topped is None:
                break
            low, high = max(first, span.first), min(end, span.first + span.pages)
            offset = span.offset + (low - span.first) * PAGE
            pages = _read(stack.files[span.source].fileno(), (high - low) * PAGE, offset)
            topped[(low - first) * PAGE : (high - first) * PAGE] = pages
        yield at, piece if topped is None else bytes(topped)


def _add_differing(
    first: int, stored: bytes, present: bytes, writer: PageWriter, changed: bytearray | None
) -> None:
    with memoryview(present) as view:
        for at in range(0, len(stored), PAGE):
            if changed is not None and not changed[first + at // PAGE]:
                continue
            if stored[at : at + PAGE] != present[at : at + PAGE]:
                writer.add(first + at // PAGE, view[at : at + PAGE])


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


def _read(fd: int, size: int, at: int) -> bytes:
    """Read so many bytes and no fewer: what is put together of others would be wrong data."""
    content = os.pread(fd, size, at)
    while len(content) < size:
        more = os.pread(fd, size - len(content), at + len(content))
        if not more:
            raise VmmError(f"a guest's memory ends at byte {at + len(content)}, it was cut")
        content += more
    return content


@contextmanager
def _opened(path: Path, mode: int) -> Iterator[int]:
    """Open a file in a directory that a VMM may have put anything into."""
    fd = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise VmmError(f"{path} is no ordinary file")
        yield fd
    finally:
        os.close(fd)
