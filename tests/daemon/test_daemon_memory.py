"""Changed pages of a real process that maps a memory file as a VMM does."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from arrakis_rpc.errors import IntegrityError, VmmError
from arrakisd.host import memory, pagemap
from arrakisd.host.memory import Area, PageSaver, changed_flags, find_memory, load_pages
from arrakisd.host.page_files import PAGE, merge_page_files

PAGES = 512
_OTHER_USER = 65534

# Maps [file] privately in two pieces with a page of its own behind each, as a VMM's memory
# lies among its other memory; then does what it is told, and answers every line.
GUEST = """
import ctypes, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
PAGE, HALF = 4096, int(sys.argv[2]) // 2 * 4096
RW, PRIVATE, FIXED, ANONYMOUS = 3, mmap.MAP_PRIVATE, 0x10, mmap.MAP_ANONYMOUS
areas = []
for offset in (0, HALF):
    base = libc.mmap(None, HALF + PAGE, RW, PRIVATE | ANONYMOUS, -1, 0)
    assert libc.mmap(base, HALF, RW, PRIVATE | FIXED, file, offset) == base
    ctypes.memset(base + HALF, ord("s"), PAGE)
    areas.append(base)
def address(page):
    return areas[page * PAGE // HALF] + page * PAGE % HALF
print("ready", flush=True)
for line in sys.stdin:
    verb, *numbers = line.split()
    answer = []
    numbers = list(map(int, numbers))
    for number in numbers[verb == "fill":]:
        if verb == "fill":
            ctypes.memset(address(number), numbers[0], PAGE)
        elif verb == "clear":
            ctypes.memmove(address(number), os.pread(file, PAGE, number * PAGE), PAGE)
        elif verb == "write":
            ctypes.memset(address(number), number % 255 + 1, PAGE)
        elif verb == "read":
            answer.append(ctypes.string_at(address(number), PAGE).hex())
        elif verb == "map":
            assert libc.mmap(None, PAGE, RW, PRIVATE, file, number * PAGE) != -1
        elif verb == "beyond":
            answer.append(ctypes.string_at(areas[number] + HALF, PAGE).hex())
    print("".join(answer), flush=True)
"""


class Guest:
    """A process whose memory is a private mapping of a file."""

    def __init__(self, memory_file: Path, pages: int = PAGES) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUEST, str(memory_file), str(pages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Wait until it has its memory."""
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, verb: str, *numbers: int) -> str:
        """Have something done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {' '.join(map(str, numbers))}\n")
        self._process.stdin.flush()
        return self._answer()

    def write(self, *pages: int) -> None:
        """Fill pages, each with a byte that depends on its number."""
        self.tell("write", *pages)

    def contents(self) -> bytes:
        """Give the whole memory."""
        return bytes.fromhex(self.tell("read", *range(PAGES)))

    def surroundings(self) -> bytes:
        """Give the pages right behind both pieces of its memory."""
        return bytes.fromhex(self.tell("beyond", 0, 1))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def memory_file(tmp_path: Path) -> Path:
    """A template's memory: a few pages with data, holes between them."""
    file = tmp_path / "memory"
    with file.open("wb") as out:
        out.truncate(PAGES * PAGE)
        for page in (0, 7, 300, PAGES - 1):
            out.seek(page * PAGE)
            out.write(b"t" * PAGE)
    return file


@pytest.fixture
def guests(memory_file: Path) -> Iterator[list[Guest]]:
    """Two processes that map one memory file."""
    both = [Guest(memory_file), Guest(memory_file)]
    for guest in both:
        guest.wait_ready()
    yield both
    for guest in both:
        guest.end()


@contextmanager
def a_guest(memory_file: Path) -> Iterator[Guest]:
    """Run one more process for the length of a block."""
    guest = Guest(memory_file)
    try:
        guest.wait_ready()
        yield guest
    finally:
        guest.end()


def changed(guest: Guest, memory_file: Path) -> list[int]:
    """Find the changed pages of a guest."""
    flags = changed_flags(guest.pid, find_memory(guest.pid, memory_file, PAGES))
    return [page for page, flag in enumerate(flags) if flag]


def save_pages(pid: int, memory_file: Path, target: Path, known: Sequence[Path] = ()) -> int:
    """Save what differs from what is known."""
    with PageSaver(pid, memory_file, PAGES, known, target) as saver:
        return saver.save()


def page_file(path: Path, runs: list[tuple[int, int]], data: bytes | None = None) -> Path:
    """Write a page file by hand."""
    table = b"".join(struct.pack("<QQ", *run) for run in runs)
    content = b"x" * PAGE * sum(count for _, count in runs) if data is None else data
    header = struct.pack("<8sQ", b"ARKPAGE2", len(runs)).ljust(PAGE, b"\0")
    path.write_bytes(header + content + table)
    return path


def pages_in(path: Path) -> set[int]:
    """Give which pages a page file has."""
    content = path.read_bytes()
    _, number = struct.unpack_from("<8sQ", content)
    runs = struct.iter_unpack("<QQ", content[len(content) - number * 16 :])
    return {page for first, count in runs for page in range(first, first + count)}


@pytest.fixture(params=["scanned", "read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a kernel is asked: one that is newer than 6.7, in several steps, or an older one."""
    monkeypatch.setattr(pagemap, "_REGIONS", 3)
    if request.param == "read":
        monkeypatch.setattr(pagemap.fcntl, "ioctl", unknown_to_the_kernel)


def unknown_to_the_kernel(*_: object) -> None:
    raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")


@pytest.mark.parametrize(
    "written",
    [[], [0], [PAGES - 1], [5, 6, 7, 9], [255, 256], list(range(PAGES)), list(range(1, PAGES, 2))],
    ids=["none", "first", "last", "run", "across areas", "all", "every other"],
)
@pytest.mark.usefixtures("way")
def test_found(guests: list[Guest], memory_file: Path, written: list[int]) -> None:
    """Exactly the written pages are found."""
    guests[0].contents()  # reading maps pages, and changes none
    guests[0].write(*written)
    assert changed(guests[0], memory_file) == written
    assert changed(guests[1], memory_file) == []


def test_round_trip(guests: list[Guest], memory_file: Path, tmp_path: Path) -> None:
    """What one process has written is in another after saving and loading, and nothing else."""
    source, target = guests
    chosen = sorted(random.Random(7).sample(range(PAGES), 200))
    source.write(*chosen)
    assert save_pages(source.pid, memory_file, tmp_path / "pages") == len(chosen)
    assert load_pages(target.pid, memory_file, PAGES, [tmp_path / "pages"]) == len(chosen)
    assert target.contents() == source.contents()
    assert target.surroundings() == b"s" * 2 * PAGE
    assert changed(target, memory_file) == chosen
    assert memory_file.read_bytes().count(b"t") == 4 * PAGE


def test_second_generation(guests: list[Guest], memory_file: Path, tmp_path: Path) -> None:
    """A process saved again has only what it has written since, be it what the template had."""
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = guests
    first.write(1, 2, 3, 255, 256)
    save_pages(first.pid, memory_file, one)
    load_pages(second.pid, memory_file, PAGES, [one])
    second.write(1, 400)  # the first as it was
    second.tell("clear", 3, 256)
    second.tell("clear", 9)  # which is a hole in the template
    assert save_pages(second.pid, memory_file, two, [one]) == 3
    assert pages_in(two) == {3, 256, 400}
    assert save_pages(second.pid, memory_file, tmp_path / "three", [one, two]) == 0


def test_equal_to_template(guests: list[Guest], memory_file: Path, tmp_path: Path) -> None:
    """Pages that were written, and hold what the template has, are not stored."""
    guests[0].tell("clear", *range(10, 200))
    guests[0].write(20)
    assert save_pages(guests[0].pid, memory_file, tmp_path / "pages") == 1
    assert pages_in(tmp_path / "pages") == {20}


def test_deep_stack(memory_file: Path, tmp_path: Path) -> None:
    """Any state of many generations comes back from its page files, merged or not."""
    chance = random.Random(11)
    stack: list[Path] = []
    states: list[bytes] = []
    with a_guest(memory_file) as guest:
        for number in range(12):
            pages = chance.sample(range(PAGES), 60)
            guest.tell("fill", number + 1, *pages[:50])
            guest.tell("clear", *pages[50:])
            states.append(guest.contents())
            stack.append(tmp_path / f"layer{number}")
            saved = save_pages(guest.pid, memory_file, stack[-1], stack[:-1])
            assert saved <= 60
    for depth in (1, 5, 12):
        merged = tmp_path / f"merged{depth}"
        merge_page_files(stack[1:depth], merged, PAGES)
        for sources in (stack[:depth], [stack[0], merged]):
            with a_guest(memory_file) as guest:
                load_pages(guest.pid, memory_file, PAGES, sources)
                assert guest.contents() == states[depth - 1]
                assert save_pages(guest.pid, memory_file, tmp_path / "none", sources) == 0


def test_merged_once(tmp_path: Path) -> None:
    """A merged page file has each page once, and is no longer than its pages need."""
    below = page_file(tmp_path / "below", [(1, 4), (9, 2)], b"b" * 6 * PAGE)
    above = page_file(tmp_path / "above", [(3, 1), (10, 3)], b"a" * 4 * PAGE)
    merge_page_files([below, above], tmp_path / "merged", PAGES)
    assert pages_in(tmp_path / "merged") == {1, 2, 3, 4, 9, 10, 11, 12}
    assert (tmp_path / "merged").read_bytes()[PAGE:-32] == b"".join(
        letter * PAGE for letter in (b"b", b"b", b"a", b"b", b"b", b"a", b"a", b"a")
    )


def test_nothing_changed(guests: list[Guest], memory_file: Path, tmp_path: Path) -> None:
    """A page file without pages is a page file."""
    assert save_pages(guests[0].pid, memory_file, tmp_path / "pages") == 0
    assert load_pages(guests[1].pid, memory_file, PAGES, [tmp_path / "pages"]) == 0


def test_every_cut(guests: list[Guest], memory_file: Path, tmp_path: Path) -> None:
    """A page file that was cut anywhere, or has something added, is refused by name."""
    guests[0].write(3, 4, 90)
    whole = tmp_path / "whole"
    save_pages(guests[0].pid, memory_file, whole)
    content = whole.read_bytes()
    lengths = {*range(60), *range(60, len(content), 997), len(content) - 1, len(content) + 1}
    for length in sorted(lengths):
        cut = tmp_path / "cut"
        cut.write_bytes((content + b"x")[:length])
        with pytest.raises(IntegrityError, match=str(cut)):
            load_pages(guests[1].pid, memory_file, PAGES, [cut])
    assert changed(guests[1], memory_file) == []


@pytest.mark.parametrize(
    "runs",
    [
        [(3, 2), (4, 1)],
        [(9, 1), (3, 2), (4, 1)],
        [(3, 1), (3, 1)],
        [(PAGES, 1)],
        [(PAGES - 1, 2)],
        [(1, 1), (2**40, 1)],
        [(2**64 - 1, 1)],
    ],
    ids=["overlap", "overlap out of order", "twice", "behind", "over the end", "far", "farthest"],
)
def test_forged_runs(
    guests: list[Guest], memory_file: Path, tmp_path: Path, runs: list[tuple[int, int]]
) -> None:
    """Pages that come twice, or lie outside of the guest's memory, are refused; none is written."""
    with pytest.raises(IntegrityError):
        load_pages(guests[0].pid, memory_file, PAGES, [page_file(tmp_path / "pages", runs)])
    assert guests[0].surroundings() == b"s" * 2 * PAGE
    assert changed(guests[0], memory_file) == []


def test_forged_header(guests: list[Guest], memory_file: Path, tmp_path: Path) -> None:
    """A wrong magic, or a number of runs or pages beyond all reason, is refused at once."""
    good = page_file(tmp_path / "good", [(1, 1)]).read_bytes()
    for forged in (
        b"ARKPAGE1" + good[8:],
        good[:8] + struct.pack("<Q", 2**63) + good[16:],
        good[:8] + struct.pack("<Q", 2**64 - 1) + good[16:],
        good[:-8] + struct.pack("<Q", 2**52),
        good[:-8] + struct.pack("<Q", 0),
    ):
        path = tmp_path / "forged"
        path.write_bytes(forged)
        with pytest.raises(IntegrityError, match=str(path)):
            load_pages(guests[0].pid, memory_file, PAGES, [path])


def test_other_process(memory_file: Path, tmp_path: Path) -> None:
    """A process that does not map the file, or has ended, is a VMM's failure."""
    with pytest.raises(VmmError, match="does not map"):
        find_memory(os.getpid(), memory_file, PAGES)
    guest = Guest(memory_file)
    guest.end()
    pages = page_file(tmp_path / "pages", [(1, 1)])
    for attempt in (
        lambda: save_pages(guest.pid, memory_file, tmp_path / "saved"),
        lambda: load_pages(guest.pid, memory_file, PAGES, [pages]),
    ):
        with pytest.raises(VmmError, match=str(guest.pid)):
            attempt()


@pytest.mark.parametrize("page", [PAGES, 2**30, 7], ids=["next", "far", "twice"])
def test_hostile_mapping(guests: list[Guest], memory_file: Path, tmp_path: Path, page: int) -> None:
    """A process that maps a page too many, or one twice, is refused before anything is made of it.

    That it has made the file larger is no excuse: a VMM may write to it.
    """
    pages = page_file(tmp_path / "pages", [(1, 1)])
    os.truncate(memory_file, 2**43)
    guests[0].tell("map", page)
    for attempt in (
        lambda: find_memory(guests[0].pid, memory_file, PAGES),
        lambda: save_pages(guests[0].pid, memory_file, tmp_path / "saved"),
        lambda: load_pages(guests[0].pid, memory_file, PAGES, [pages]),
    ):
        with pytest.raises(VmmError, match="in another way than a VMM does"):
            attempt()


@pytest.mark.usefixtures("way")
def test_end_of_another_users_process() -> None:
    """The files of a process that has ended, and that nobody has waited for, are root's."""
    with subprocess.Popen(["true"], user=_OTHER_USER) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(VmmError, match=str(ended.pid)):
            changed_flags(ended.pid, [Area(0, 1, 0)])


@pytest.mark.usefixtures("way")
def test_end_before_it_is_asked(memory_file: Path) -> None:
    """Of a process that has ended since its page map was opened, nothing is said to be known."""
    with a_guest(memory_file) as guest:
        (area, _) = find_memory(guest.pid, memory_file, PAGES)
        with Path(f"/proc/{guest.pid}/pagemap").open("rb") as opened:
            guest.end()
            with pytest.raises((OSError, EOFError)):
                list(pagemap.own_pages(opened.fileno(), area.address, area.pages))


def test_end_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while pages are put into it is a failure, and no endless loop."""
    pages = 2**17
    pieces = 0

    def end_in_the_middle() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 5:
            guest.end()

    memory_file, content = tmp_path / "memory", tmp_path / "pages"
    with memory_file.open("wb") as out:
        out.truncate(pages * PAGE)
    with content.open("wb") as out:
        out.write(struct.pack("<8sQ", b"ARKPAGE2", 1))
        out.seek((1 + pages) * PAGE)
        out.write(struct.pack("<QQ", 0, pages))
    guest = Guest(memory_file, pages)
    guest.wait_ready()
    monkeypatch.setattr(memory, "checkpoint", end_in_the_middle)
    with pytest.raises(VmmError, match=str(guest.pid)):
        load_pages(guest.pid, memory_file, pages, [content])
    assert pieces == 5
