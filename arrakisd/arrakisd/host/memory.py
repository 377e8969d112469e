"""Pages that a guest has changed: finding, saving and putting them back.

A restored guest's RAM is a private mapping of its template's memory file. Pages that the
guest has written since, or that were put there before it ran, are the process's own, and
`pagemap` tells which they are.

Which of them have changed since the snapshot that the guest was woken from, no kernel tells
without CONFIG_MEM_SOFT_DIRTY. So they are compared with what is stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from attrs import frozen

from arrakis_rpc.errors import IntegrityError, VmmError

from .page_files import PAGE, PIECE, PageWriter, Span, cut, marked, open_stack
from .pagemap import own_pages
from .processes import acting_as_user_of
from .threads import checkpoint

T = TypeVar("T")


@frozen
class Area:
    """A piece of a process's address space that maps guest RAM from ``first_page`` on."""

    address: int
    pages: int
    first_page: int


def find_memory(pid: int, memory_file: Path, pages: int) -> list[Area]:
    """Find where a process maps a memory file; in the order of the guest's ``pages``.

    Raises `VmmError` if it does not, or as no VMM would that is still itself: a page twice, or
    beyond those of the guest. The file's size would be no bound, a VMM may write to it.
    """
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
    areas.sort(key=lambda area: area.first_page)
    begins = [*(area.first_page for area in areas[1:]), pages]
    if any(area.first_page + area.pages > begin for area, begin in zip(areas, begins, strict=True)):
        raise VmmError(f"process {pid} maps {memory_file} in another way than a VMM does")
    return areas


def changed_flags(pid: int, areas: list[Area]) -> bytearray:
    """Give for each of the guest's pages 1 if it is no longer the memory file's, else 0."""
    flags = bytearray(_end(areas))
    with _open(pid, "pagemap", "rb") as pagemap:
        try:
            for area in areas:
                for first, count in own_pages(pagemap.fileno(), area.address, area.pages):
                    begin = area.first_page + first
                    flags[begin : begin + count] = b"\1" * count
        except (OSError, EOFError) as error:
            raise _ended(pid) from error
    return flags


def has_swapped(pid: int) -> bool:
    """Whether any memory of a process is swapped out."""
    with _open(pid, "status", "rb") as status:
        found = re.search(rb"^VmSwap:\s*(\d+) kB$", _transfer(pid, status.read), re.MULTILINE)
    return found is None or int(found[1]) > 0


class PageSaver:
    """Saves the pages of a halted guest that differ from what is stored of it already.

    That is a stack of page files on the memory file. All that takes long is done ahead, so
    that the guest, between its halt and the end of `save`, stands still no longer than needed.
    """

    def __init__(
        self, pid: int, memory_file: Path, pages: int, known: Sequence[Path], target: Path
    ) -> None:
        self._pid = pid
        self._areas = find_memory(pid, memory_file, pages)
        with ExitStack() as owner:
            stack = owner.enter_context(open_stack(known, _end(self._areas)))
            template = owner.enter_context(memory_file.open("rb", buffering=0))
            self._memory = owner.enter_context(_open(pid, "mem", "rb"))
            self._out = owner.enter_context(target.open("wb", buffering=PIECE))
            self._owner = owner.pop_all()
        self._paths = [*stack.paths, memory_file]
        self._files = [*stack.files, template]
        self._spans = stack.spans
        self._ours, self._theirs = bytearray(PIECE), bytearray(PIECE)
        for file in stack.files:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def __enter__(self) -> PageSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner.close()

    def save(self) -> int:
        """Write the page file; give the number of pages in it. Once."""
        writer = PageWriter(self._out)
        with memoryview(self._ours) as view:
            for batch in _batches(cut(self._to_compare())):
                size = self._read(batch, view)
                if self._ours[:size] != self._theirs[:size]:
                    self._write_differing(batch, writer, view)
        return writer.finish()

    def _to_compare(self) -> list[Span]:
        """All that is stored, and what has left the memory file and is not stored."""
        flags = changed_flags(self._pid, self._areas)
        for _, _, first, count in self._spans:
            flags[first : first + count] = bytes(count)
        fresh = len(self._files) - 1
        return self._spans + [
            Span(fresh, first * PAGE, first, count) for first, count in marked(flags)
        ]

    def _read(self, batch: list[Span], ours: memoryview) -> int:
        """Fill both buffers: with what the guest has, and with what is stored."""
        position = 0
        for span in batch:
            for address, count in _addresses(self._areas, span.first, span.pages):
                with ours[position : position + count * PAGE] as place:
                    _move(self._pid, os.preadv, self._memory, place, address)
                position += count * PAGE
        position = 0
        with memoryview(self._theirs) as theirs:
            for source, offset, size in _joined(batch):
                with theirs[position : position + size] as piece:
                    if os.preadv(self._files[source].fileno(), [piece], offset) != size:
                        raise IntegrityError(f"{self._paths[source]} is cut short")
                position += size
        return position

    def _write_differing(self, batch: list[Span], writer: PageWriter, ours: memoryview) -> None:
        end = 0
        for span in batch:
            begin, end = end, end + span.pages * PAGE
            if self._ours[begin:end] == self._theirs[begin:end]:
                continue
            differing = [
                number
                for number in range(span.pages)
                if self._ours[(at := begin + number * PAGE) : at + PAGE]
                != self._theirs[at : at + PAGE]
            ]
            for first, count in _runs(differing):
                at = begin + first * PAGE
                writer.add(span.first + first, ours[at : at + count * PAGE])


def load_pages(pid: int, memory_file: Path, pages: int, sources: Sequence[Path]) -> int:
    """Put a stack of page files, the lowest first, into a guest that does not run yet.

    ``pages`` are all that the guest has; gives how many were put into it. Files that are not
    whole, or have pages that the guest has not, are refused before anything is written.
    """
    areas = find_memory(pid, memory_file, pages)
    with open_stack(sources, _end(areas)) as stack, _open(pid, "mem", "r+b") as memory:
        pieces = [(span, _addresses(areas, span.first, span.pages)) for span in cut(stack.spans)]
        for span, places in pieces:
            checkpoint()
            with stack.content(span) as content:
                position = 0
                for address, count in places:
                    with content[position : position + count * PAGE] as piece:
                        _move(pid, os.pwritev, memory, piece, address)
                    position += count * PAGE
    return sum(span.pages for span, _ in pieces)


def _batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Put short spans together to such amounts as fit into the buffers."""
    batch: list[Span] = []
    size = 0
    for span in spans:
        if size + span.pages * PAGE > PIECE:
            yield batch
            batch, size = [], 0
        batch.append(span)
        size += span.pages * PAGE
    if batch:
        yield batch


def _joined(batch: list[Span]) -> Iterator[tuple[int, int, int]]:
    """Give (source, offset, size) of what spans have in files, each piece as long as possible."""
    source, begin, end = batch[0].source, batch[0].offset, batch[0].offset
    for span in batch:
        if span.source != source or span.offset != end:
            yield source, begin, end - begin
            source, begin = span.source, span.offset
        end = span.offset + span.pages * PAGE
    yield source, begin, end - begin


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Give ascending numbers as runs of (first, count)."""
    begin = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[begin], index - begin
            begin = index


def _open(pid: int, name: str, mode: str) -> IO[bytes]:
    try:
        with acting_as_user_of(pid):
            return Path(f"/proc/{pid}/{name}").open(mode, buffering=0)
    except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
        raise _ended(pid) from error  # the files of one without memory any more are root's


def _transfer(pid: int, call: Callable[..., T], *args: Any) -> T:
    """Read or write something of a process; nothing at all, or an error, is its end."""
    try:
        moved = call(*args)
    except OSError as error:
        raise _ended(pid) from error
    if not moved:
        raise _ended(pid)
    return moved


def _move(
    pid: int, call: Callable[..., int], memory: IO[bytes], piece: memoryview, address: int
) -> None:
    """Read a piece from a process's memory, or write it there, whole."""
    done = 0
    while done < len(piece):
        with piece[done:] as rest:
            done += _transfer(pid, call, memory.fileno(), [rest], address + done)


def _ended(pid: int) -> VmmError:
    return VmmError(f"the memory of process {pid} is not accessible; it has probably ended")


def _end(areas: list[Area]) -> int:
    """The number of the first page that the guest has not."""
    return max(area.first_page + area.pages for area in areas)


def _addresses(areas: list[Area], first: int, count: int) -> list[tuple[int, int]]:
    """Where pages lie, as (address, number of pages); other memory may follow each."""
    found = []
    end = first + count
    for area in areas:
        if area.first_page <= first < area.first_page + area.pages:
            here = min(end, area.first_page + area.pages) - first
            found.append((area.address + (first - area.first_page) * PAGE, here))
            first += here
    if first < end:
        raise IntegrityError(f"pages {first} to {end - 1} lie outside the guest's memory")
    return found
