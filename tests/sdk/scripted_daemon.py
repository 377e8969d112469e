"""A scripted daemon: what a real one cannot be made to do on cue.

It serves a Unix socket or WebSockets from a thread. A script is a function that is run once for
each connection and speaks to it through a `Peer`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from scripted_websocket import TOKEN, WebSocketEnd

from arrakis import Sandbox, SandboxManager
from arrakis_rpc.connection import (
    MAX_CHUNK,
    CallReceived,
    Connection,
    DataReceived,
    Event,
    Role,
    StreamEnded,
)
from arrakis_rpc.errors import ArrakisError, UnknownMethodError


class GoneError(Exception):
    """The client closed the connection."""


class Peer:
    """The daemon's end of one connection."""

    def __init__(self, sock: socket.socket | WebSocketEnd) -> None:
        self.sock = sock
        self.connection = Connection(Role.CALLEE)
        self.waiting: list[Event] = []

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise GoneError from error

    def event(self) -> Event:
        """Wait for the next event."""
        while not self.waiting:
            try:
                data = self.sock.recv(65536)
            except OSError as error:
                raise GoneError from error
            if not data:
                raise GoneError
            self.waiting += self.connection.receive(data)
        return self.waiting.pop(0)

    def call(self, *, greet: bool = True) -> CallReceived:
        """Wait for a call, having answered the greeting before it."""
        while True:
            event = self.event()
            if not isinstance(event, CallReceived):
                continue  # it belongs to the call before, whose answer it crossed
            if greet and event.method == "system.hello":
                self.answer(event, {"version": 1, "daemon": "peer"})
            else:
                return event

    def answer(self, call: CallReceived, result: Any) -> None:
        if isinstance(result, ArrakisError):
            self.send(self.connection.send_error(call.call_id, result))
        else:
            self.send(self.connection.send_result(call.call_id, result))

    def note(self, call: CallReceived, method: str, **params: Any) -> None:
        self.send(self.connection.notify(call.call_id, method, params))

    def data(self, call: CallReceived, channel: str, data: bytes) -> None:
        """Send data of any length, waiting for credit. Other events are kept for later."""
        view = memoryview(data)
        while view:
            size = min(self.connection.send_window(call.call_id, channel), MAX_CHUNK, len(view))
            if size:
                self.send(self.connection.send_data(call.call_id, channel, bytes(view[:size])))
                view = view[size:]
                continue
            kept, self.waiting = self.waiting, []
            event = self.event()
            self.waiting = [*kept, event, *self.waiting]

    def read_all(self, call: CallReceived) -> bytes:
        """Take what comes on a channel of the call, until it ends."""
        taken = bytearray()
        while True:
            match self.event():
                case DataReceived(_, channel, data):
                    taken += data
                    self.send(self.connection.consumed(call.call_id, channel, len(data)))
                case StreamEnded():
                    return bytes(taken)


Script = Callable[[Peer], object]


class Server:
    """A socket whose connections each run the script."""

    def __init__(self, path: Path, script: Script, transport: str) -> None:
        self.path = path
        self.is_http = transport == "http"
        self.connections = 0
        self.failures: list[BaseException] = []
        self._script = script
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._listening = True
        if self.is_http:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
        self._listener.listen(64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}" if self.is_http else ""
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(sock)
            thread = threading.Thread(target=self._run, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock:
                try:
                    self._script(Peer(WebSocketEnd(sock) if self.is_http else sock))
                finally:
                    if self.is_http:
                        _linger(sock)
        except (GoneError, ConnectionError):
            pass
        except BaseException as error:  # noqa: BLE001 -- told to the test in `close`
            self.failures.append(error)

    @property
    def manager(self) -> SandboxManager:
        if self.is_http:
            return SandboxManager(self.url, TOKEN)
        return SandboxManager(socket=self.path)

    @property
    def options(self) -> list[str]:
        """The options by which the command line finds it."""
        if self.is_http:
            return ["--url", self.url.replace("//", f"//x:{TOKEN}@")]
        return ["--socket", str(self.path)]

    @property
    def sandbox(self) -> Sandbox:
        return Sandbox(self.manager._client, "box")

    def stop_listening(self) -> None:
        self._listening = False
        self.path.unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()

    def hang_up(self) -> None:
        """Close all connections."""
        for sock in self._peers:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._listening:
            self.stop_listening()
        self.hang_up()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "the script hangs"
        assert not self.failures, self.failures


def _linger(sock: socket.socket) -> None:
    """Let the client have what it was sent: TCP takes that back from one whose data is refused."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(60)
        while sock.recv(65536):
            pass


@pytest.fixture
def start_scripted(tmp_path: Path) -> Iterator[Callable[[Script, str], Server]]:
    """Start a scripted daemon; its script must have ended without an error afterwards."""
    servers: list[Server] = []

    def start(script: Script, transport: str) -> Server:
        servers.append(Server(tmp_path / f"{len(servers)}.sock", script, transport))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def scripted(
    start_scripted: Callable[[Script, str], Server], transport: str
) -> Callable[[Script], Server]:
    """Start a scripted daemon that is reached by the transport of this run."""
    return lambda script: start_scripted(script, transport)


def answering(**results: Any) -> Script:
    """Make a script that answers calls by method, dots as underscores.

    A result may be an error, or a function of the peer and the call.
    """

    def script(peer: Peer) -> None:
        while True:
            call = peer.call()
            result = results.get(call.method.replace(".", "_"), UnknownMethodError(call.method))
            if callable(result):
                result = result(peer, call)
            if result is not None:
                peer.answer(call, result)

    return script


class Calls:
    """Keeps what was asked, and answers with one thing."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.seen: list[dict[str, Any]] = []

    def __call__(self, _: Peer, call: CallReceived) -> Any:
        self.seen.append(call.params)
        return self.result


HEALTH = {"status": "healthy", "timestamp": 1.0, "uptime": 2.0, "vms": {"RUNNING": 1}}
EXITED = {"pid": 7, "exit_code": 0, "signal": None, "timed_out": False, "duration": 0.5}

VM = {
    "name": "box",
    "status": "RUNNING",
    "image": "base",
    "vcpus": 1,
    "memory_mib": 512,
    "disk_mib": 1024,
    "created": 1.0,
    "ip": "10.20.1.2/24",
    "tap_device_name": "tap0",
}


def completed(**changes: Any) -> dict[str, Any]:
    """Make the result of a command that succeeded, but for the changes."""
    return {**EXITED, **changes}
