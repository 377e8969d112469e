"""Connecting to a daemon by HTTP: TCP, TLS for https, and a WebSocket.

Once it stands, such a connection is a socket like that of a daemon on this host, but for the
bytes: `Carrier` wraps and unwraps them, without any input or output of its own. So everything
else, waiting, threads, forks, interrupts, is the same over both.
"""

from __future__ import annotations

import errno
import functools
import json
import socket
import ssl
import time
from typing import Protocol

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from arrakis_rpc.errors import (
    AccessDeniedError,
    ArrakisError,
    ConnectionLostError,
    ExhaustedError,
    ProtocolError,
)

from ._address import HttpAddress

# The daemon takes no longer messages.
MAX_MESSAGE = 256 * 1024
_RECEIVE = 256 * 1024
_MOST_BODY = 64 * 1024
_REACH_HINT = (
    "look whether the daemon runs there, with this address under [http] in its settings, "
    "and whether a firewall is between"
)
_SCHEME_HINT = "a daemon with TLS is reached by https://, one without by http://"
_TOKEN_HINT = (
    "set ARRAKIS_TOKEN, or give token=, to what 'arrakis token create NAME' printed "  # noqa: S105
    "on the daemon's host"
)


class _Layer(Protocol):
    def wrap(self, data: bytes) -> bytes: ...
    def unwrap(self, data: bytes) -> bytes: ...


class _Plain:
    """No TLS."""

    def wrap(self, data: bytes) -> bytes:
        return data

    def unwrap(self, data: bytes) -> bytes:
        return data


class _Tls:
    """TLS in memory, so that nothing of a connection is hidden in it from a poll."""

    def __init__(self, address: HttpAddress) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context(address.ca_file).wrap_bio(
            self._incoming, self._outgoing, server_hostname=address.host
        )

    def shake_hands(self, data: bytes) -> tuple[bytes, bool]:
        """Take what was received; give what is to be sent, and whether that is all."""
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read(), False
        return self._outgoing.read(), True

    def wrap(self, data: bytes) -> bytes:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        return self._outgoing.read()

    def unwrap(self, data: bytes) -> bytes:
        self._incoming.write(data)
        pieces = []
        try:
            while piece := self._tls.read(_RECEIVE):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            pass  # the end of the socket is told as such
        return b"".join(pieces)


class Carrier:
    """Wraps our frames in messages of a WebSocket, and those in TLS."""

    def __init__(self, layer: _Layer) -> None:
        self._layer = layer
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._replies = b""
        self.ended: str | None = None

    def wrap(self, data: bytes) -> bytes:
        """Give the bytes for the socket."""
        view = memoryview(data)
        try:
            pieces = [
                self._ws.send(BytesMessage(data=bytes(view[start : start + MAX_MESSAGE])))
                for start in range(0, len(view), MAX_MESSAGE)
            ]
        except LocalProtocolError:
            return b""  # it was closed from there; whoever reads finds out why
        return self._layer.wrap(b"".join(pieces))

    def unwrap(self, data: bytes) -> bytes:
        """Give the bytes that are for us. Raises `ProtocolError`; sets ``ended`` at the end."""
        pieces: list[bytes] = []
        try:
            plain = self._layer.unwrap(data)
            if plain:
                self._ws.receive_data(plain)
            for event in self._ws.events():
                self._take(event, pieces)
        except (RemoteProtocolError, LocalProtocolError, ssl.SSLError) as error:
            raise ProtocolError(f"the daemon broke the rules of WebSockets: {error}") from error
        return b"".join(pieces)

    def replies(self) -> bytes:
        """Give what is to be sent because of what was received."""
        replies, self._replies = self._replies, b""
        return self._layer.wrap(replies) if replies else b""

    def begin(self, address: HttpAddress) -> bytes:
        """Ask for a WebSocket; give the bytes for the socket."""
        headers = [(b"User-Agent", b"arrakis-python")]
        if address.token is not None:
            headers.append((b"Authorization", f"Bearer {address.token}".encode()))
        request = Request(host=address.authority, target=address.endpoint, extra_headers=headers)
        return self._layer.wrap(self._ws.send(request))

    def answer(self, data: bytes) -> list[Event]:
        """Take what was received of the answer to that; give the events in it."""
        plain = self._layer.unwrap(data)
        if plain:
            self._ws.receive_data(plain)
        return list(self._ws.events())

    def _take(self, event: Event, pieces: list[bytes]) -> None:
        match event:
            case BytesMessage(data=data):
                pieces.append(bytes(data))
            case Ping():
                self._replies += self._ws.send(event.response())
            case CloseConnection(reason=reason) if self._ws.state is ConnectionState.OPEN:
                # Not from there: this is how we are told of a mistake.
                raise ProtocolError(f"the daemon broke the rules of WebSockets: {reason}")
            case CloseConnection(code=code, reason=reason):
                self.ended = f"it closed the connection ({reason or f'code {code}'})"
            case _:
                pass


def connect(address: HttpAddress, seconds: float) -> tuple[socket.socket, Carrier]:
    """Connect, for at most so long; the errors say what to do about them."""
    until = time.monotonic() + seconds
    layer: _Layer = _Tls(address) if address.scheme == "https" else _Plain()
    try:
        sock = socket.create_connection((address.host, address.port), timeout=seconds)
    except OSError as error:
        raise _unreachable(address, error) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(layer, _Tls):
            _secure(sock, address, layer, until)
        carrier = Carrier(layer)
        _upgrade(sock, address, carrier, until)
        sock.setblocking(False)
    except ssl.SSLError as error:
        sock.close()
        raise _insecure(address, error) from error
    except OSError as error:
        sock.close()
        raise _unreachable(address, error) from error
    except BaseException:
        sock.close()
        raise
    return sock, carrier


def _secure(sock: socket.socket, address: HttpAddress, layer: _Tls, until: float) -> None:
    received = b""
    while True:
        to_send, done = layer.shake_hands(received)
        _send(sock, to_send, until)
        if done:
            return
        received = _receive(sock, address, until)


def _upgrade(sock: socket.socket, address: HttpAddress, carrier: Carrier, until: float) -> None:
    _send(sock, carrier.begin(address), until)
    refusal: RejectConnection | None = None
    body = b""
    while True:
        received = _receive(sock, address, until)
        try:
            events = carrier.answer(received)
        except RemoteProtocolError as error:
            raise ConnectionLostError(
                f"what listens at {address} is no Arrakis daemon: {error}",
                hint=_SCHEME_HINT,
            ) from error
        for event in events:
            match event:
                case AcceptConnection():
                    return
                case RejectConnection(has_body=has_body):
                    refusal = event
                    if not has_body:
                        raise _refused(address, refusal, body)
                case RejectData(data=data, body_finished=finished):
                    body += data
                    if refusal is not None and (finished or len(body) > _MOST_BODY):
                        raise _refused(address, refusal, body)


def _send(sock: socket.socket, data: bytes, until: float) -> None:
    sock.settimeout(max(0.001, until - time.monotonic()))
    sock.sendall(data)


def _receive(sock: socket.socket, address: HttpAddress, until: float) -> bytes:
    sock.settimeout(max(0.001, until - time.monotonic()))
    received = sock.recv(_RECEIVE)
    if not received:
        raise _hung_up(address)
    return received


@functools.lru_cache(maxsize=8)
def _context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConnectionLostError(
            f"{ca_file} cannot be read as certificates: {error}",
            hint="ca_file, or ARRAKIS_CA_FILE, names a file of certificates in PEM",
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _unreachable(address: HttpAddress, error: OSError) -> ConnectionLostError:
    match error:
        case ConnectionRefusedError():
            message = f"no daemon: nothing listens at {address}"
        case TimeoutError():
            message = f"the daemon at {address} does not answer"
        case socket.gaierror():
            message = f"there is no host '{address.host}'"
        case OSError(errno=errno.ECONNRESET | errno.EPIPE):
            return _hung_up(address)
        case _:
            message = f"cannot connect to {address}: {error.strerror or error}"
    return ConnectionLostError(message, hint=_REACH_HINT)


def _hung_up(address: HttpAddress) -> ConnectionLostError:
    return ConnectionLostError(f"what listens at {address} hung up", hint=_SCHEME_HINT)


def _insecure(address: HttpAddress, error: ssl.SSLError) -> ConnectionLostError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionLostError(
            f"the certificate of {address} is not to be trusted: {error.verify_message}",
            hint="if it is the daemon's own, name its CA: ca_file=PATH, or ARRAKIS_CA_FILE",
        )
    return ConnectionLostError(
        f"no TLS with {address}: {error.reason or error}",
        hint="a daemon without TLS is reached by http://, on its own host only",
    )


def _refused(address: HttpAddress, refusal: RejectConnection, body: bytes) -> ArrakisError:
    status = refusal.status_code
    said = _message_in(body)
    match status:
        case 401 if address.token is None:
            return AccessDeniedError(f"{address} wants a token", hint=_TOKEN_HINT)
        case 401:
            return AccessDeniedError(
                f"{address} does not know the token: it is wrong, or was revoked", hint=_TOKEN_HINT
            )
        case 403:
            return AccessDeniedError(
                f"{address} does not let us in: {said or 'forbidden'}",
                hint="the settings allowed_hosts and allowed_origins of the daemon decide it",
            )
        case 429:
            return AccessDeniedError(
                f"{address} lets nobody in for a while: {said or 'too many wrong tokens'}",
                hint=f"wait a minute, then {_TOKEN_HINT}",
            )
        case 503:
            return ExhaustedError(
                f"{address} is too busy: {said or 'try again'}", hint="try again in a while"
            )
    return ConnectionLostError(
        f"what listens at {address} is no Arrakis daemon, or an old one: HTTP status {status}",
        hint="the URL is that of the daemon, without a path of its API",
    )


def _message_in(body: bytes) -> str:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, TypeError, KeyError):
        return ""
    return message[:500] if isinstance(message, str) else ""
