"""What hostile clients send: too much, too slowly, or nonsense; and what they do not read."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_daemon import Web, read_all
from real_daemon import (
    end_daemon,
    free_port,
    passable_directory,
    shortest,
    started_daemon,
    wait_until,
    write_config,
)

MIB = 2**20


def send_chunks(web: Web, head: bytes, chunk: bytes, count: int) -> bytes:
    """Send a chunked body, and give what comes back, or what came before the other end left."""
    frame = b"%x\r\n%s\r\n" % (len(chunk), chunk)
    with web.connected() as one:
        one.sendall(head)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(count):
                one.sendall(frame)
            one.sendall(b"0\r\n\r\n")
        return read_all(one, 15)


@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/vms HTTP/1.1",
        "POST /v1/vms/nobody/files HTTP/1.1",
        "PUT /v1/vms/nobody/file?path=x HTTP/1.1",
        "GET /v1/vms HTTP/1.1",
        "DELETE /no/such/path HTTP/1.1",
    ],
)
def test_200_mib_of_chunks_take_no_memory(web: Web, line: str) -> None:
    """An endless body is answered or cut off, and the daemon holds no more than its bound."""
    before = web.daemon.memory_mib()
    peak = before
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, web.daemon.memory_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    head = web.head(line, "Transfer-Encoding: chunked")
    answer = send_chunks(web, head, b"x" * MIB, 200)
    over.set()
    watcher.join()
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert peak - before < 80
    assert web.ask("GET", "/v1/health").status == 200


def test_a_body_that_is_too_long_is_answered_with_413(web: Web) -> None:
    """And the connection ends, so that nobody waits for the rest."""
    head = web.head("POST /v1/vms HTTP/1.1", "Transfer-Encoding: chunked")
    answer = send_chunks(web, head, b" " * 65536, 16 * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_small_body_of_many_values_is_refused(web: Web) -> None:
    """What would take a hundred times its size in memory is not read."""
    before = web.daemon.memory_mib()
    body = b"[" + b"{}," * (5 * MIB) + b"{}]"
    answer = web.ask("POST", "/v1/vms", body)
    assert answer.status == 413
    assert web.daemon.memory_mib() - before < 80


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"vmName": "a", "vmName": NaN}',
        b'{"vmName": "\\ud800"}',
        b'{"vmName": 1}',
        b'{"vmName": "../../etc/passwd"}',
        b'{"vmName": "a/b"}',
        b'{"vmName": "a", "nothing": 1}',
        b'{"vmName": "a", "snapshotId": "../../etc/passwd"}',
        b'{"vmName": "a", "vcpus": "2"}',
        b'{"vmName": "a", "vcpus": true}',
        b'{"vmName": "a", "memoryMib": 1e999}',
        b'{"vmName": "a", "vcpus": ' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_request_are_refused(web: Web, body: bytes) -> None:
    """With 400 and a message, and nothing happens."""
    answer = web.ask("POST", "/v1/vms", body)
    assert answer.status == 400
    assert answer.json["error"]["message"]
    assert web.ask("GET", "/v1/vms").json == {"vms": []}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/vms/..%2f..%2fetc%2fpasswd",
        "/v1/vms/../../etc/passwd",
        "/v1/snapshots/%2e%2e",
        "/v1/snapshots/..",
        "/v1/vms/a%00b",
        "/v1/vms/" + "a" * 10_000,
        "//v1//vms",
        "/v1/vms/%ff%fe",
        "/v1/vms?unknown=1",
        "/v1/snapshots?limit=1&limit=2",
        "/v1/snapshots?limit=9999999999999999999999",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(web: Web, path: str) -> None:
    """With 400 or 404."""
    assert web.ask("GET", path).status in (400, 404)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/vms HTTP/1.1\r\n\r\n",
        b"GET /v1/vms HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/vms HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000,
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_heads_that_are_no_http_end_the_connection(web: Web, head: bytes) -> None:
    """With a status of 4xx or none, in a moment, and without a trace."""
    with web.connected() as one:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            one.sendall(head)
        answer = read_all(one, 10)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert web.ask("GET", "/v1/health").status == 200


def test_slow_heads_are_cut_off(web: Web) -> None:
    """A hundred clients that send a header a second each are gone after some seconds."""
    before = len(web.daemon.open_files())

    def are_gone() -> bool:
        nonlocal left
        for one in left:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.sendall(b"X: y\r\n")
        assert web.ask("GET", "/v1/health").status == 200
        time.sleep(0.5)
        left = [one for one in left if not has_ended(one)]
        return not left

    with contextlib.ExitStack() as stack:
        left = [stack.enter_context(web.connected()) for _ in range(100)]
        for one in left:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.sendall(b"GET /v1/vms HTTP/1.1\r\n")
            one.setblocking(False)
        wait_until(are_gone, 12)
        wait_until(lambda: len(web.daemon.open_files()) <= before + 5, 1)


def has_ended(one: socket.socket) -> bool:
    """Whether the other end has ended a connection; takes what it has said before."""
    try:
        while one.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_a_connection_that_asks_nothing_more_is_cut_off(web: Web) -> None:
    """Some seconds after its last answer."""

    def idle() -> float:
        with web.connected() as one:
            began = time.monotonic()  # before the daemon can have begun to count
            one.sendall(web.head("GET /v1/health HTTP/1.1"))
            assert read_all(one, 10).endswith(b"}")
            took = time.monotonic() - began
        assert took > 3
        return took

    assert shortest(idle, 8) < 8


def test_a_client_that_does_not_read_keeps_the_daemon_from_nothing() -> None:
    """It neither takes its memory, nor does it hold up its end."""
    with (
        passable_directory() as directory,
        web_daemon_without_token(directory) as web,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(20):
            one = stack.enter_context(web.connected())
            one.setsockopt(1, 8, 4096)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                one.settimeout(0.5)
                for _ in range(200):
                    one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        assert web.daemon.memory_mib() < 300
        assert end_daemon(web.daemon, signal.SIGTERM) < 30  # it would be for ever


@contextlib.contextmanager
def web_daemon_without_token(directory: Path) -> Iterator[Web]:
    port = free_port()
    file = write_config(directory / "state", network='mode = "none"')
    file.write_text(f'{file.read_text()}[http]\naddress = "127.0.0.1:{port}"\nauth = "none"\n')
    with started_daemon(directory / "state", f"--config={file}") as daemon:
        yield Web(daemon, port, "")


def test_connections_end_with_their_clients(web: Web) -> None:
    """Two hundred clients with one request each leave no open files."""
    before = len(web.daemon.open_files())
    for _ in range(200):
        assert web.ask("GET", "/v1/health").status == 200
    wait_until(lambda: len(web.daemon.open_files()) <= before + 1, 1.0)
