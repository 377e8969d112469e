"""A thin HTTP client for hypervisors that listen on a Unix socket.

Each call has a connection of its own: it costs a tenth of a millisecond, and a call that was
cut leaves nothing behind that could be taken for the next one's answer. What a VMM answers is
bounded, because a guest may have taken it over.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h11
import trio

from arrakis_rpc.errors import UnsupportedError, VmmError

_LARGEST_HEAD = 64 * 1024
_LARGEST_ANSWER = 4 * 1024 * 1024
_LONGEST_PATH = 107  # sockaddr_un, unix(7)
_LONGEST_MESSAGE = 2000
_FIRST_ERROR = 400


class ApiClosedError(VmmError):
    """The VMM hung up, or nobody listens."""


class ApiRefusedError(VmmError):
    """The VMM does not do what it was asked for; ``status`` is the one of its answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ApiClient:
    """Calls to the API of one VMM process. It has no deadlines; its callers do."""

    def __init__(self, vmm: str, socket_path: Path) -> None:
        self._vmm = vmm
        self._path = checked_socket_path(socket_path)

    async def call(
        self, method: str, target: str, body: object = None, *, fds: Sequence[int] = ()
    ) -> Any:
        """Make a call; give what the JSON of its answer stands for, None for an empty one.

        ``fds`` go with it as ancillary data (SCM_RIGHTS). Raises `ApiRefusedError` for an
        answer that is an error, `ApiClosedError` if there is none.
        """
        what = f"{method} {target}"
        content = b"" if body is None else json.dumps(body).encode()
        headers = [("Host", "localhost"), ("Accept", "application/json")]
        if content:
            headers.append(("Content-Type", "application/json"))
        headers.append(("Content-Length", str(len(content))))
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)
        request = h11.Request(method=method, target=target, headers=headers)
        message = (
            (http.send(request) or b"")
            + (http.send(h11.Data(content)) or b"")
            + (http.send(h11.EndOfMessage()) or b"")
        )
        try:
            with trio.socket.socket(socket.AF_UNIX) as connection:
                await connection.connect(self._path)
                await _send(connection, message, fds)
                status, answer = await _receive(connection, http)
        except OSError as error:
            raise ApiClosedError(f"{self._vmm} hung up at {what}: {error.strerror}") from error
        except h11.RemoteProtocolError as error:
            raise ApiClosedError(f"{self._vmm} gave no answer to {what}: {error}") from error
        if status >= _FIRST_ERROR:
            raise ApiRefusedError(f"{self._vmm} refused {what}: {_explanation(answer)}", status)
        return _parsed(answer)


def checked_socket_path(path: Path) -> str:
    """Give a socket's path if it is short enough to be one; else raise `UnsupportedError`."""
    if (excess := len(bytes(path)) - _LONGEST_PATH) > 0:
        raise UnsupportedError(
            f"the path {path} is too long for a socket, by {excess} bytes",
            hint="set a shorter state_dir, or give the machine a shorter name",
        )
    return str(path)


async def _send(connection: trio.socket.SocketType, message: bytes, fds: Sequence[int]) -> None:
    rest = memoryview(message)
    if fds:
        rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        rest = rest[await connection.sendmsg([rest], ancillary) :]
    while rest:
        rest = rest[await connection.send(rest) :]


async def _receive(connection: trio.socket.SocketType, http: h11.Connection) -> tuple[int, bytes]:
    status, answer = 0, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await connection.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > _LARGEST_ANSWER:
                raise h11.RemoteProtocolError("the answer does not end")
        elif isinstance(event, h11.EndOfMessage):
            return status, answer
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("it closed the connection")


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer) if answer else None
    except (ValueError, RecursionError):
        return answer.decode(errors="replace")


def _explanation(answer: bytes) -> str:
    """Find the words in an error: Firecracker has a field for them, the other a list."""
    match _parsed(answer):
        case {"fault_message": str(text)}:
            pass
        case [*causes]:
            text = ": ".join(map(str, causes))
        case parsed:
            text = str(parsed or "it does not say why")
    return text.strip()[:_LONGEST_MESSAGE]
