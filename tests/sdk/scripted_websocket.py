"""The daemon's end of a WebSocket, as a socket of the bytes in it."""

from __future__ import annotations

import socket

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import RemoteProtocolError

TOKEN = "ark_scripted"


class WebSocketEnd:
    """Accepts who comes with the token, and then passes bytes on."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pongs = 0
        self._ws = WSConnection(ConnectionType.SERVER)
        self._closed = False
        self._received = bytearray()
        while not isinstance(event := next(self._ws.events(), None), Request):
            self._more()
        self.request = event
        headers = dict(event.extra_headers)
        if headers.get(b"authorization") != f"Bearer {TOKEN}".encode():
            self.refuse(401, b'{"error": {"message": "no such token"}}')
        if event.target != "/v1/rpc":
            self.refuse(404, b"")
        self.sock.sendall(self._ws.send(AcceptConnection()))

    def refuse(self, status: int, body: bytes) -> None:
        """Answer with a status in place of a WebSocket."""
        headers = [(b"content-length", str(len(body)).encode())]
        refusal = RejectConnection(status_code=status, headers=headers, has_body=True)
        self.sock.sendall(self._ws.send(refusal) + self._ws.send(RejectData(data=body)))
        raise ConnectionError(status)

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(self._ws.send(BytesMessage(data=data)))

    def ping(self) -> None:
        self.sock.sendall(self._ws.send(Ping()))

    def end(self, code: int, reason: str) -> None:
        self.sock.sendall(self._ws.send(CloseConnection(code=code, reason=reason)))

    def recv(self, size: int) -> bytes:
        while not self._received and not self._closed:
            for event in self._ws.events():
                match event:
                    case BytesMessage(data=data):
                        self._received += data
                    case Pong():
                        self.pongs += 1
                    case CloseConnection():
                        self._closed = True
            if not self._received and not self._closed:
                self._more()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the client hung up")
        try:
            self._ws.receive_data(data)
        except RemoteProtocolError as error:
            raise ConnectionError("the client speaks something else") from error
