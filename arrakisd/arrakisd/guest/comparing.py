"""What became of one guest in another: files, and processes.

Both are asked, since what is on their disks is ext4 that they wrote, and no host reads that. Each
tells what it has written on top of its image; then both describe all of these paths; and of
files that look the same in both, both give checksums.
"""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Iterable, Mapping, Sized
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import frozen

from arrakis_rpc.connection import CallFailed, CallSucceeded, DataReceived
from arrakis_rpc.converter import structure
from arrakis_rpc.daemon_api import Change, FileChange, ProcessChange, SnapshotDifference
from arrakis_rpc.errors import GuestError, InvalidParamsError
from arrakis_rpc.framing import MAX_FRAME
from arrakis_rpc.guest_api import ExecSpec, FileKind

from . import survey
from .agent import GuestAgent

_MOUNT = (
    f"mkdir -p {survey.DISK} && mount -t ext4 -o noatime /dev/vdb {survey.DISK} && "
    'exec python3 -I -S -c "$0"'
)
_VIRTUAL = ("proc", "sys", "dev", "run", "..")
_LONGEST_ANSWER = 32 * 2**20
_LONGEST_REASON = 500
_MOST_BYTES = MAX_FRAME // 2
_MOST_CHANGES = 5000
_ENTRY_BYTES = 64

Answer = TypeVar("Answer")


@frozen
class _Survey:
    """What a guest says of itself: what it wrote, what it hides, and what runs."""

    paths: list[str]
    holes: list[str]
    processes: list[tuple[int, int, str]]


# Mode, size, uid, gid, device number, target of a link.
_File = tuple[int, int, int, int, int, str]


async def compare(before: GuestAgent, after: GuestAgent) -> SnapshotDifference:
    """Tell what is different in ``after``. Raises `GuestError`."""
    async with _surveyor(before) as one, _surveyor(after) as other:
        surveys = await _both(one, other, None, _Survey)
        paths = _stored({path for survey in surveys for path in survey.paths})
        holes = _stored({path for survey in surveys for path in survey.holes})
        question = {"paths": paths, "holes": holes}
        old, new = await _both(one, other, question, dict[str, _File])
        alike = [path for path, file in old.items() if _may_be_equal(file, new.get(path))]
        digests: list[dict[str, str]] = [{}, {}]
        if alike:
            digests = await _both(one, other, {"hash": alike}, dict[str, str])
    unequal = {path for path in alike if digests[0].get(path) != digests[1].get(path)}
    files = await trio.to_thread.run_sync(_changes, old, new, unequal)
    return _cut(files, _comings_and_goings(*(survey.processes for survey in surveys)))


def _stored(paths: Iterable[str]) -> list[str]:
    """Leave out what one guest names and no disk holds, for the other would look there."""
    return sorted(
        path
        for path in paths
        if path.startswith("/") and path.split("/")[1] not in _VIRTUAL and "/../" not in path
    )


def _may_be_equal(file: _File, other: _File | None) -> bool:
    return file == other and stat.S_ISREG(file[0])


def _changes(
    old: Mapping[str, _File], new: Mapping[str, _File], unequal: set[str]
) -> list[FileChange]:
    found = []
    for path in sorted({*old, *new}):
        former, present = old.get(path), new.get(path)
        change: Change
        if former is None:
            change = "added"
        elif present is None:
            change = "removed"
        elif former != present or path in unequal:
            change = "changed"
        else:
            continue
        mode, size, *_ = present or former or (0, 0)
        found.append(FileChange(_printable(path), change, _kind(mode), size))
    return found


def _kind(mode: int) -> FileKind:
    kinds: dict[int, FileKind] = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
    }
    return kinds.get(stat.S_IFMT(mode & 0xFFFF), "other")


def _comings_and_goings(
    old: list[tuple[int, int, str]], new: list[tuple[int, int, str]]
) -> list[ProcessChange]:
    # A pid is used again; together with the start it is one process, whatever it runs.
    known, left = {one[:2] for one in old}, {one[:2] for one in new}
    came = [
        ProcessChange(pid, "added", text) for pid, start, text in new if (pid, start) not in known
    ]
    went = [
        ProcessChange(pid, "removed", text) for pid, start, text in old if (pid, start) not in left
    ]
    return sorted([*went, *came], key=lambda one: one.pid)


def _cut(files: list[FileChange], processes: list[ProcessChange]) -> SnapshotDifference:
    """Leave out what does not fit into one answer."""
    size, fitting = 0, 0
    for file in files[:_MOST_CHANGES]:
        size += len(file.path.encode()) + _ENTRY_BYTES
        if size > _MOST_BYTES:
            break
        fitting += 1
    shown = processes[:1000]
    complete = fitting == len(files) and len(shown) == len(processes)
    return SnapshotDifference(files[:fitting], shown, complete)


def _printable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


async def _both(
    one: _Surveyor, other: _Surveyor, question: object, kind: type[Answer]
) -> list[Answer]:
    answers: dict[_Surveyor, Answer] = {}

    async def ask(surveyor: _Surveyor) -> None:
        answers[surveyor] = await surveyor.ask(question, kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, one)
        nursery.start_soon(ask, other)
    return [answers[one], answers[other]]


@asynccontextmanager
async def _surveyor(agent: GuestAgent) -> AsyncIterator[_Surveyor]:
    """Run the survey in a guest, in a mount namespace of its own, for the length of a block."""
    program = await trio.to_thread.run_sync(Path(survey.__file__).read_text)
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, program]
    spec = ExecSpec(argv=argv, cwd="/", stdin=True)
    async with agent.open_call("exec.run", spec) as streams:
        yield _Surveyor(agent.vm, streams)


class _Surveyor:
    """The survey that runs in a guest: lines go in, and lines come out."""

    def __init__(self, vm: str, streams: Any) -> None:
        self._vm = vm
        self._streams = streams
        self._errors = b""

    async def ask(self, question: object, kind: type[Answer]) -> Answer:
        """Ask something, or (None) just listen; give the answer. Raises `GuestError`."""
        if question is not None:
            await self._streams.send("stdin", json.dumps(question).encode() + b"\n")
        line = await self._line()
        try:
            answer = await trio.to_thread.run_sync(_understood, line, kind)
        except (ValueError, RecursionError, InvalidParamsError) as error:
            raise self._failed(f"it answers nonsense: {error}") from error
        if _number(answer) > survey.MOST:  # which it was to see to itself
            raise self._failed("it names too much")
        return answer

    async def _line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            match await self._streams.receive():
                case DataReceived(_, "stdout", data) as event:
                    line += data
                    self._streams.consumed(event)
                case DataReceived(_, _, data) as event:
                    self._errors = (self._errors + data)[-_LONGEST_REASON:]
                    self._streams.consumed(event)
                case CallSucceeded():
                    raise self._failed(self._errors.decode(errors="replace").strip())
                case CallFailed(_, error):
                    raise error
            if len(line) > _LONGEST_ANSWER:
                raise self._failed("it has too much to say")
        return bytes(line)

    def _failed(self, reason: str) -> GuestError:
        return GuestError(
            f"what has changed in the guest cannot be found out: {reason[:_LONGEST_REASON]}",
            hint="it needs its python3, unshare and mount, and at most "
            f"{survey.MOST} files that are not of its image",
        )


def _number(answer: object) -> int:
    """Count what is in an answer."""
    if isinstance(answer, _Survey):
        return max(len(answer.paths) + len(answer.holes), len(answer.processes))
    return len(answer) if isinstance(answer, Sized) else 0


def _understood(line: bytes, kind: type[Answer]) -> Answer:
    understood: Answer = structure(json.loads(line), kind)
    return understood
