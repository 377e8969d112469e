"""Page files: pages of a guest's memory that differ from what lies below.

A header of one page with magic and number of runs; then the pages; then for each run of
them, in the same order, its first page and its number of pages. No page is in it twice.

A stack of page files, on top of a template's memory file, is the memory of a snapshot: of
each page the topmost version counts.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

from arrakis_rpc.errors import IntegrityError

from .threads import checkpoint

PAGE = 4096
PIECE = 256 * PAGE

_MAGIC = b"ARKPAGE2"
_HEADER = struct.Struct("<8sQ")
_RUN = struct.Struct("<QQ")
_MARKED, _FREE = re.compile(b"\1+"), re.compile(b"\0+")

Run = tuple[int, int]


class Span(NamedTuple):
    """Successive pages, and where in which file of a stack they are."""

    source: int
    offset: int
    first: int
    pages: int


class PageWriter:
    """Writes a page file. It is one when `finish` has returned."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._runs: list[list[int]] = []
        out.write(bytes(PAGE))

    def add(self, first: int, content: memoryview) -> None:
        """Append successive pages; none that was added before."""
        count = len(content) // PAGE
        if self._runs and sum(self._runs[-1]) == first:
            self._runs[-1][1] += count
        else:
            self._runs.append([first, count])
        self._out.write(content)

    def finish(self) -> int:
        """Write down what was added; give the number of pages."""
        self._out.write(b"".join(_RUN.pack(*run) for run in self._runs))
        self._out.seek(0)
        self._out.write(_HEADER.pack(_MAGIC, len(self._runs)))
        self._out.flush()
        return sum(count for _, count in self._runs)


class PageStack:
    """Page files on top of each other, open for reading. Made by `open_stack`.

    ``spans`` are the topmost versions of all pages, in the order in which they lie in the
    files.
    """

    def __init__(self, paths: Sequence[Path], end: int, owner: ExitStack) -> None:
        self.paths = paths
        self.files = [owner.enter_context(_open(path)) for path in paths]
        self._contents = [owner.enter_context(_mapped(file)) for file in self.files]
        taken = bytearray(end)
        self.spans: list[Span] = []
        for source in reversed(range(len(paths))):
            runs = _read_table(self.files[source], paths[source], end)
            self.spans += _take(taken, runs, source)

    def content(self, span: Span) -> memoryview:
        """Give the pages of a span, for the kernel to read.

        To look at them oneself is a risk: where the file has been cut, the process gets a SIGBUS.
        """
        return self._contents[span.source][span.offset : span.offset + span.pages * PAGE]


@contextmanager
def open_stack(paths: Sequence[Path], end: int) -> Iterator[PageStack]:
    """Open page files, the lowest first, for a guest that has no page ``end`` or beyond.

    Raises `IntegrityError` for a file that is missing, not whole, or has other pages.
    """
    with ExitStack() as owner:
        yield PageStack(paths, end, owner)


def merge_page_files(paths: Sequence[Path], target: Path, end: int) -> None:
    """Make one page file of several on top of each other, the lowest first."""
    with open_stack(paths, end) as stack, target.open("wb") as out:
        writer = PageWriter(out)
        for span in cut(sorted(stack.spans, key=lambda span: span.first)):
            checkpoint()
            with stack.content(span) as content:
                writer.add(span.first, content)
        writer.finish()


def marked(flags: bytes | bytearray) -> Iterator[Run]:
    """Give as runs the pages whose flag is 1, of one 0 or 1 for each."""
    for match in _MARKED.finditer(flags):
        yield match.start(), match.end() - match.start()


def cut(spans: Iterable[Span]) -> Iterator[Span]:
    """Cut spans into such of at most `PIECE` bytes."""
    most = PIECE // PAGE
    for source, offset, first, count in spans:
        for done in range(0, count, most):
            rest = min(most, count - done)
            yield Span(source, offset + done * PAGE, first + done, rest)


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing") from error


@contextmanager
def _mapped(file: IO[bytes]) -> Iterator[memoryview]:
    if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
        yield memoryview(b"")
        return
    with (
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        yield view


def _read_table(file: IO[bytes], path: Path, end: int) -> list[Run]:
    fd = file.fileno()
    size = os.fstat(fd).st_size
    header = os.pread(fd, _HEADER.size, 0)
    magic, number = _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0)
    table = number * _RUN.size
    if magic != _MAGIC or PAGE + table > size:
        raise IntegrityError(f"{path} is not a page file")
    content = os.pread(fd, table, size - table)
    runs: list[Run] = list(_RUN.iter_unpack(content)) if len(content) == table else []
    if PAGE + sum(count for _, count in runs) * PAGE + table != size:
        raise IntegrityError(f"{path} is cut short")
    ordered = sorted(runs)
    apart = all(first + count <= following for (first, count), (following, _) in pairwise(ordered))
    if not apart or (ordered and sum(ordered[-1]) > end):
        raise IntegrityError(f"{path} has pages twice, or outside the guest's memory")
    return runs


def _take(taken: bytearray, runs: list[Run], source: int) -> Iterator[Span]:
    """Give what nobody has taken yet of a file's runs, and mark it."""
    offset = PAGE
    for first, count in runs:
        end = first + count
        if taken.find(1, first, end) < 0:
            yield Span(source, offset, first, count)
        else:
            for free in _FREE.finditer(taken, first, end):
                skipped = (free.start() - first) * PAGE
                yield Span(source, offset + skipped, free.start(), free.end() - free.start())
        taken[first:end] = b"\1" * count
        offset += count * PAGE
