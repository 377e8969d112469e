"""One connection to the daemon: a socket, and the state of the protocol on it.

Nothing here blocks but `connect` and `wait_ready`. The greeting that opens a connection
is sent together with the first call, and its answer is looked at when it comes: so a
new connection costs no round trip of its own.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc.connection import CallFailed, CallSucceeded, Connection, Event, Role
from arrakis_rpc.converter import structure
from arrakis_rpc.daemon_api import SystemHelloResult
from arrakis_rpc.errors import (
    ConnectionLostError,
    InvalidParamsError,
    InvalidStateError,
    ProtocolError,
)

from . import __version__
from ._address import Address, UnixAddress

if TYPE_CHECKING:
    from ._remote import Carrier

CONNECT_SECONDS = 10.0
GREETING_SECONDS = 30.0
_RECEIVE = 256 * 1024
_START_HINT = (
    "start the daemon: 'sudo arrakisd', in another terminal; "
    "if its socket is elsewhere, set ARRAKIS_SOCKET"
)


def connect(path: str) -> socket.socket:
    """Connect to the daemon's socket; the errors say what to do about them."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _connect(sock, path)
    except OSError as error:
        sock.close()
        raise _explained(error, path) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: str) -> None:
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            # Its queue is full. There is no way to be told when it no longer is.
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _explained(error: OSError, path: str) -> ConnectionLostError:
    match error:
        case FileNotFoundError():
            message = f"no daemon: there is no socket at {path}"
        case ConnectionRefusedError():
            message = f"no daemon: nothing listens at {path}"
        case BlockingIOError():
            message = f"the daemon at {path} accepts no connections"
        case PermissionError():
            return ConnectionLostError(
                f"no permission to use {path}",
                hint="join its group: 'sudo usermod -aG arrakis $USER', then log in again",
            )
        case _:
            message = f"cannot connect to {path}: {error}"
    return ConnectionLostError(message, hint=_START_HINT)


def _connect_to(address: Address) -> tuple[socket.socket, Carrier | None]:
    if isinstance(address, UnixAddress):
        return connect(address.path), None
    from ._remote import connect as connect_by_http  # what it needs takes a while to load

    return connect_by_http(address, CONNECT_SECONDS)


def understand(value: object, kind: Any) -> Any:
    """Structure what the daemon said; a form that is not the agreed one is its fault."""
    try:
        return structure(value, kind)
    except InvalidParamsError as error:
        raise ProtocolError(
            f"the daemon's answer is not understood: {error}",
            hint="install the same version of both",
        ) from error


class Wire:
    """A connection, used by one call at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._pid = os.getpid()
        self._connection = Connection(Role.CALLER)
        self._unsent = bytearray()
        self._peer_gone = False
        self._socket, self._carrier = _connect_to(address)
        self._greeting: int | None = self.start_call(
            "system.hello",
            {"versions": [PROTOCOL_VERSION], "client": f"arrakis-python/{__version__}"},
        )
        self._greeted_by = time.monotonic() + GREETING_SECONDS

    def __del__(self) -> None:
        # Programs written for py_arrakis never close their manager.
        if hasattr(self, "_socket"):
            self._socket.close()

    @property
    def connection(self) -> Connection:
        """The protocol's state. Bytes that its methods give go to `queue`."""
        return self._connection

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return bool(self._unsent)

    @property
    def is_reusable(self) -> bool:
        """Whether another call can be made: nothing is under way in either direction."""
        return (
            self._greeting is None
            and self._pid == os.getpid()
            and self._socket.fileno() >= 0
            and self._is_quiet()
            and not self._unsent
            and not self._peer_gone
        )

    def fileno(self) -> int:
        """Give the file descriptor, or -1 when closed."""
        return self._socket.fileno()

    def start_call(self, method: str, params: dict[str, Any]) -> int:
        """Queue a call; give its id."""
        call_id, frame = self._connection.start_call(method, params)
        self.queue(frame)
        return call_id

    def queue(self, data: bytes) -> None:
        """Put bytes behind those that wait to be sent."""
        self._unsent += self._carrier.wrap(data) if self._carrier else data

    def flush(self) -> None:
        """Send what the socket takes now. A peer that is gone is noticed in `receive`."""
        self._check_process()
        while self._unsent and not self._peer_gone:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                # What it said before it went away can still be read, and says why.
                self._peer_gone = True
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def wait_ready(self, seconds: float | None, *, reading: bool = True) -> None:
        """Wait until there is something to read, or room for what is unsent.

        A daemon that accepts a connection and then says nothing at all is given up.
        """
        self._check_process()
        if self._greeting is not None:
            patience = self._greeted_by - time.monotonic()
            if patience <= 0:
                raise ConnectionLostError(
                    f"what listens at {self._address} did not answer for {GREETING_SECONDS:g} s",
                    hint="look at the daemon's log",
                )
            seconds = patience if seconds is None else min(seconds, patience)
        events = (select.POLLIN if reading else 0) | (select.POLLOUT if self._unsent else 0)
        _poll(self._socket.fileno(), events, seconds)

    def receive(self) -> Iterator[Event]:
        """Read what is there; yield what it means.

        Raises `ConnectionLostError` when the daemon has gone away.
        """
        self._check_process()
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(str(error)) from error
        if not data:
            raise self._lost("it closed the connection")
        for event in self._connection.receive(self._unwrap(data)):
            if self._greeting is not None:
                self._check_greeting(event)
            else:
                yield event
        if self._carrier and self._carrier.ended:
            raise self._lost(self._carrier.ended)

    def wake(self) -> None:
        """Make a `wait_ready` in another thread return; the connection is then useless."""
        if self._pid == os.getpid():
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection: the daemon then cancels what runs on it.

        In a child of the process that opened it this closes a copy, and cancels nothing.
        """
        self._socket.close()

    def _unwrap(self, data: bytes) -> bytes:
        if self._carrier is None:
            return data
        data = self._carrier.unwrap(data)
        self._unsent += self._carrier.replies()
        return data

    def _is_quiet(self) -> bool:
        """Whether nothing has come since the last answer; answers what only asks for a sign."""
        has_come = _poll(self._socket.fileno(), select.POLLIN, 0.0)
        if self._carrier is None:
            return not has_come
        try:
            data = self._socket.recv(_RECEIVE) if has_come else None
            if data is not None and (not data or self._unwrap(data) or self._carrier.ended):
                return False
        except (OSError, ProtocolError):
            return False
        self.flush()
        return True

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise InvalidStateError(f"this call belongs to process {self._pid}, not to its child")
        if self._socket.fileno() < 0:
            raise InvalidStateError("this call was closed")

    def _check_greeting(self, event: Event) -> None:
        match event:
            case CallSucceeded(self._greeting, result):
                answer: SystemHelloResult = understand(result, SystemHelloResult)
                if answer.version != PROTOCOL_VERSION:
                    raise ProtocolError(
                        f"the daemon {answer.daemon} chose version {answer.version} of the "
                        f"protocol, this client speaks {PROTOCOL_VERSION}",
                        hint="install the same version of both",
                    )
                self._greeting = None
            case CallFailed(self._greeting, error):
                raise error
            case _:
                raise ProtocolError("the daemon answered a call before the greeting")

    def _lost(self, reason: str) -> ConnectionLostError:
        return ConnectionLostError(
            f"lost the daemon at {self._address}: {reason}",
            hint="its log says why; " + self._hint(),
        )

    def _hint(self) -> str:
        if isinstance(self._address, UnixAddress):
            return _START_HINT
        return "see whether arrakisd still runs there; a revoked token ends connections, too"


def _poll(descriptor: int, events: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, events)
    # Rounded up, or the last fraction of a millisecond would be spent spinning.
    return bool(poll.poll(None if seconds is None else int(seconds * 1000) + 1 if seconds else 0))
