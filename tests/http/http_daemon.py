"""A real daemon that serves HTTP, and a client that sends what no library would."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from attrs import frozen
from real_daemon import SLACK, Daemon, free_port, running_daemon, write_config

from arrakis import SandboxManager
from arrakis_rpc.daemon_api import TokenCreated


@frozen
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@frozen
class Web:
    """The HTTP of a daemon."""

    daemon: Daemon
    port: int
    token: str

    @property
    def url(self) -> str:
        """A URL for clients that take nothing but one."""
        return f"http://x:{self.token}@127.0.0.1:{self.port}"

    def headers(self, **more: str) -> dict[str, str]:
        given = {name.replace("_", "-"): value for name, value in more.items()}
        return {"Authorization": f"Bearer {self.token}", **given}

    def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Make a request with a good token."""
        return self.ask_as(self.headers(**headers), verb, path, body)

    def ask_as(self, headers: dict[str, str], verb: str, path: str, body: Any = None) -> Answer:
        """Make a request with exactly these headers."""
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request(verb, path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())

    @contextlib.contextmanager
    def open(self, verb: str, path: str, body: Any = None) -> Iterator[HTTPResponse]:
        """Make a request, and leave its answer to be read."""
        text = None if body is None else json.dumps(body)
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(verb, path, text, self.headers())
        response = connection.getresponse()
        try:
            yield response
        finally:
            response.close()
            connection.close()

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Open a bare connection."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as one:
            yield one

    def head(self, line: str, *more: str) -> bytes:
        """Give the head of a request with a good token."""
        lines = [line, "Host: localhost", f"Authorization: Bearer {self.token}", *more, "", ""]
        return "\r\n".join(lines).encode()


@contextlib.contextmanager
def web_daemon(state: Path, settings: str = "", *, top: str = "") -> Iterator[Web]:
    """Run a daemon that serves HTTP on loopback, with a token."""
    port = free_port()
    file = write_config(state, top)
    with file.open("a") as stream:
        stream.write(f'[http]\naddress = "127.0.0.1:{port}"\n{settings}\n')
    with running_daemon(state, f"--config={file}") as daemon:
        with SandboxManager(socket=daemon.socket) as manager:
            made: TokenCreated = manager._client.call("token.create", {"name": "tests"})
        yield Web(daemon, port, made.token)


def read_all(one: socket.socket | ssl.SSLSocket, within: float) -> bytes:
    """Read until the other end ends the connection; longer on a busy machine, as `wait_until`."""
    found, end = b"", time.monotonic() + SLACK * within
    while (left := end - time.monotonic()) > 0:
        one.settimeout(left)
        try:
            piece = one.recv(65536)
        except TimeoutError:
            break
        except ConnectionResetError:
            return found
        if not piece:
            return found
        found += piece
    raise AssertionError(f"the connection is open still; {found[:300]!r}")


def events_of(response: HTTPResponse) -> Iterator[tuple[str, Any]]:
    """Read server-sent events."""
    kind = ""
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)
