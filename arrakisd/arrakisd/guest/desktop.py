"""What is done to the desktop of a guest, by a program of its image.

The program is asked on its input, so that nothing of it is seen in the list of processes. What it
answers is believed only as far as it was checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence

from arrakis_rpc.connection import CallFailed, CallSucceeded, DataReceived
from arrakis_rpc.desktop_api import MOST_PIXELS, ScreenSize
from arrakis_rpc.errors import (
    ArrakisError,
    GuestError,
    InvalidParamsError,
    NotFoundError,
    UnsupportedError,
)
from arrakis_rpc.guest_api import ExecResult, ExecSpec

from ..deadlines import deadline
from .agent import GuestAgent

_PROGRAM = "/usr/lib/arrakis-desktop/act"
_DEADLINE = 60.0
_SECONDS_PER_CHARACTER = 0.05
_LONGEST_COMPLAINT = 500

_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_RGB = b"\x08\x02\0\0\0"
_HEAD = len(_SIGNATURE) + 8 + len(_RGB) + 4
_MOST_BYTES = 64 * 2**20
_ROOM = 64 * 1024  # for what is in a PNG file besides its pixels

Take = Callable[[bytes], Awaitable[None]]


async def act(agent: GuestAgent, *words: str | int) -> None:
    """Do one thing. Raises `UnsupportedError` where there is no desktop.

    A drag is not cancelled halfway, which would leave the button down.
    """
    time_limit = _DEADLINE + _SECONDS_PER_CHARACTER * sum(len(str(word)) for word in words)
    with deadline(time_limit, f"desktop.{words[0]}", shield=words[0] == "drag"):
        await _ask(agent, words)


async def take_picture(agent: GuestAgent, take: Take) -> ScreenSize:
    """Pass on a picture of the screen, as it comes. Raises `GuestError` for what is none."""
    picture = _Picture(take)
    with deadline(_DEADLINE, "desktop.screenshot"):
        await _ask(agent, ["screenshot"], picture.add)
    return picture.size()


async def _ask(agent: GuestAgent, words: Sequence[str | int], take: Take | None = None) -> None:
    question = "\0".join(str(word) for word in words).encode()
    spec = ExecSpec(argv=[_PROGRAM], cwd="/", stdin=True)
    complaint = b""
    async with agent.open_call("exec.run", spec) as guest:
        await guest.send("stdin", question)
        await guest.end("stdin")
        while True:
            match await guest.receive():
                case DataReceived(_, "stdout", data) as event:
                    if take is not None:
                        await take(data)
                    guest.consumed(event)
                case DataReceived(_, _, data) as event:
                    complaint = (complaint + data)[-_LONGEST_COMPLAINT:]
                    guest.consumed(event)
                case CallSucceeded(_, result):
                    ended: ExecResult = agent.typed_result("exec.run", result)
                    if ended.exit_code != 0:
                        raise _refusal(agent.vm, complaint.decode(errors="replace"))
                    return
                case CallFailed(_, NotFoundError()):
                    raise UnsupportedError(
                        f"VM '{agent.vm}' has no desktop",
                        vm=agent.vm,
                        hint="start one with the image desktop (--image desktop); one of before "
                        "there were actions has none for them, either",
                    )
                case CallFailed(_, error):
                    raise error


def _refusal(vm: str, complaint: str) -> ArrakisError:
    match complaint.strip().split(" "):
        case ["outside", width, height]:
            return InvalidParamsError(
                f"that is outside of the screen, which is {width} x {height} pixels",
                vm=vm,
                hint="coordinates are those of a screenshot in its full size, from 0",
            )
        case ["key", name]:
            return InvalidParamsError(
                f"there is no key called {name}",
                vm=vm,
                hint="a key is called by its character, or as in X: Return, Page_Up, F4, ctrl",
            )
        case ["display", *reason]:
            return GuestError(
                f"the desktop in VM '{vm}' is not there: {' '.join(reason)}",
                vm=vm,
                hint="it may just be starting again; its log: 'journalctl -u desktop-server'",
            )
    return GuestError(f"the desktop in VM '{vm}' cannot be acted on: {complaint.strip()}", vm=vm)


class _Picture:
    """A PNG file on its way: that it is one, and how large, is known before any of it is passed."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._head = b""
        self._count = 0
        self._most = 0
        self._size: ScreenSize | None = None

    def size(self) -> ScreenSize:
        """Give its size, once all has come."""
        if self._size is None:
            raise _no_picture("it is cut short")
        return self._size

    async def add(self, data: bytes) -> None:
        """Pass on what comes next."""
        self._count += len(data)
        if self._size is None:
            self._head += data
            if len(self._head) < _HEAD:
                return
            self._size, data, self._head = _size_of(self._head), self._head, b""
            self._most = min(_MOST_BYTES, 3 * self._size.width * self._size.height + _ROOM)
        if self._count > self._most:
            raise _no_picture("it is larger than its pixels")
        await self._take(data)


def _size_of(data: bytes) -> ScreenSize:
    start = len(_SIGNATURE)
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (start, start + 4))
    checksum = zlib.crc32(data[12 : _HEAD - 4]).to_bytes(4, "big")
    if not data.startswith(_SIGNATURE) or data[start + 8 : _HEAD] != _RGB + checksum:
        raise _no_picture("it does not begin like one")
    if not (0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS):
        raise _no_picture(f"it says that it has {width} x {height} pixels")
    return ScreenSize(width, height)


def _no_picture(reason: str) -> GuestError:
    return GuestError(f"what the guest gave is no picture of its screen: {reason}")
