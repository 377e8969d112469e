"""A thin client for QMP, QEMU's JSON-lines control protocol."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import IO, Any

import trio

from arrakis_rpc.errors import VmmError

# Called with an event's name, its data, and when it happened, in Unix time.
OnEvent = Callable[[str, dict[str, Any], float], None]

_MAX_LINE = 1024 * 1024
_LONGEST_UNHEARD = 60


class QmpClosedError(VmmError):
    """QEMU hung up."""


class _Pending:
    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: dict[str, Any] | None = None


class QmpClient:
    """Commands with answers; events go to a callback. Made by `open_qmp`."""

    def __init__(self, stream: trio.SocketStream, on_event: OnEvent) -> None:
        self._stream = stream
        self._on_event = on_event
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self.closed = trio.Event()
        self._sending = trio.Lock()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; give its return value.

        Raises `VmmError` if QEMU refuses it, `QmpClosedError` if QEMU ends meanwhile. A
        caller that is cancelled may leave the command running.
        """
        return await self._execute(command, arguments, self._stream.send_all)

    async def give_file(self, file: IO[bytes], command: str, **arguments: Any) -> Any:
        """Run a command that takes an open file, as `execute` does others."""

        async def send(line: bytes) -> None:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))
            await self._stream.socket.sendmsg([line], [rights])

        return await self._execute(command, arguments, send)

    async def _execute(
        self, command: str, arguments: dict[str, Any], send: Callable[[bytes], Awaitable[None]]
    ) -> Any:
        if self.closed.is_set():
            raise QmpClosedError(f"QEMU had ended before {command}")
        self._last_id += 1
        number, pending = self._last_id, _Pending()
        self._pending[number] = pending
        line = json.dumps({"execute": command, "arguments": arguments, "id": number})
        try:
            # Commands are far smaller than a socket buffer, so this never sends half a line.
            async with self._sending:
                await send(line.encode() + b"\n")
            await pending.answered.wait()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise QmpClosedError(f"QEMU ended during {command}") from error
        finally:
            del self._pending[number]
        if pending.answer is None:
            raise QmpClosedError(f"QEMU ended during {command}")
        if "error" in pending.answer:
            raise VmmError(f"QEMU refused {command}: {pending.answer['error'].get('desc')}")
        return pending.answer.get("return")

    async def read_forever(self) -> None:
        """Take answers and events until QEMU hangs up."""
        buffer = bytearray()
        try:
            while data := await self._stream.receive_some(65536):
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    self._take(_parsed(bytes(buffer[:end])))
                    del buffer[: end + 1]
                if len(buffer) > _MAX_LINE:
                    raise VmmError("QEMU sent an endless line")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a hang-up in other words
        finally:
            self.closed.set()
            for pending in self._pending.values():
                pending.answered.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"], message.get("data", {}), _time_of(message))
        elif pending := self._pending.get(message.get("id", 0)):
            pending.answer = message
            pending.answered.set()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VmmError(f"QEMU sent what is not QMP: {line[:100]!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("id", 0), int):
        raise VmmError(f"QEMU sent what is not QMP: {line[:100]!r}")
    return message


def _time_of(event: dict[str, Any]) -> float:
    """When an event happened, as QEMU says, if that can be."""
    now = time.time()
    match event.get("timestamp"):
        case {"seconds": int(seconds), "microseconds": int(microseconds)} if (
            now - _LONGEST_UNHEARD < seconds <= now and 0 <= microseconds < 1_000_000
        ):
            return min(seconds + microseconds / 1e6, now)
    return now


@asynccontextmanager
async def open_qmp(stream: trio.SocketStream, on_event: OnEvent) -> AsyncIterator[QmpClient]:
    """Speak QMP on a stream for the length of a block."""
    client = QmpClient(stream, on_event)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(client.read_forever)
        yield client
        nursery.cancel_scope.cancel()
