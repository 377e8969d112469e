"""The HTTP client for hypervisors, against a server that answers byte for byte what it is told."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from attrs import define, field

from arrakis_rpc.errors import UnsupportedError
from arrakisd.host.vmm.http_client import ApiClient, ApiClosedError, ApiRefusedError

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Some API\r\nConnection: keep-alive\r\n\r\n"


def answer(status: int, content: bytes) -> bytes:
    head = f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@define
class Server:
    """Takes one connection after the other; each gets the next of the answers."""

    path: Path
    requests: list[bytes] = field(factory=list)
    fds: list[int] = field(factory=list)

    async def serve(self, listener: trio.socket.SocketType, answers: Sequence[bytes]) -> None:
        for one in answers:
            connection, _ = await listener.accept()
            with connection:
                size = socket.CMSG_SPACE(16)
                data, ancillary, _, _ = await connection.recvmsg(65536, size)
                for _, _, rights in ancillary:
                    self.fds += array.array("i", rights)
                self.requests.append(data)
                with suppress(BrokenPipeError):  # the client has had enough
                    await send(connection, one)


async def send(connection: trio.socket.SocketType, content: bytes) -> None:
    """Send the beginning in small pieces, and all the rest."""
    rest = memoryview(content)
    for _ in range(20):
        rest = rest[await connection.send(rest[:7]) :]
    while rest:
        rest = rest[await connection.send(rest) :]


@asynccontextmanager
async def serving(directory: Path, *answers: bytes) -> AsyncIterator[tuple[ApiClient, Server]]:
    server = Server(directory / "api.sock")
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(server.path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener, answers)
            with trio.fail_after(10):
                yield ApiClient("testvmm", server.path), server
            nursery.cancel_scope.cancel()


async def test_calls(tmp_path: Path) -> None:
    """A call carries its body as JSON, and gives what the answer stands for, if anything."""
    content = json.dumps({"state": "Running"}).encode()
    async with serving(tmp_path, NO_CONTENT, answer(200, content)) as (client, server):
        assert await client.call("PUT", "/vm.create", {"cpus": 2}) is None
        assert await client.call("GET", "/vm.info") == {"state": "Running"}
    put, get = server.requests
    head, _, body = put.partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /vm.create HTTP/1.1\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body) == {"cpus": 2}
    assert get.startswith(b"GET /vm.info HTTP/1.1\r\n")
    assert get.endswith(b"Content-Length: 0\r\n\r\n")


async def test_descriptors(tmp_path: Path) -> None:
    """File descriptors go along with a call, and the VMM gets the same open files."""
    reading, writing = os.pipe()
    async with serving(tmp_path, NO_CONTENT) as (client, server):
        await client.call("PUT", "/vm.add-net", {"id": "nic"}, fds=[writing])
    [received] = server.fds
    assert os.fstat(received).st_ino == os.fstat(writing).st_ino
    for fd in (reading, writing, received):
        os.close(fd)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"fault_message": "no such drive"}', "no such drive"),
        (b'["Error from API", "VM is not created"]', "Error from API: VM is not created"),
        (b"plain words\n", "plain words"),
        (b"", "it does not say why"),
        (b"[" * 100_000, "[[["),
    ],
)
async def test_refusal(tmp_path: Path, content: bytes, words: str) -> None:
    """An error comes with the VMM's own words, in whichever form it has them, and shortened."""
    async with serving(tmp_path, answer(400, content)) as (client, _):
        with pytest.raises(ApiRefusedError) as caught:
            await client.call("PUT", "/drives/disk", {})
    assert caught.value.status == 400
    assert f"testvmm refused PUT /drives/disk: {words}" in caught.value.message
    assert len(caught.value.message) < 3000


@pytest.mark.parametrize(
    "said",
    [
        b"",
        NO_CONTENT[:20],
        answer(200, b"{}")[:-1],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 \r\nX: " + b"x" * 100_000,
        answer(200, b"x" * 5_000_000),
    ],
    ids=["nothing", "half a head", "half a body", "another protocol", "long head", "long body"],
)
async def test_no_answer(tmp_path: Path, said: bytes) -> None:
    """A VMM that hangs up, or talks nonsense or without end, has given no answer."""
    async with serving(tmp_path, said) as (client, _):
        with pytest.raises(ApiClosedError, match="PUT /vm"):
            await client.call("PUT", "/vm.boot")


async def test_nobody(tmp_path: Path) -> None:
    """Where nobody listens there is no answer."""
    with pytest.raises(ApiClosedError, match="No such file"):
        await ApiClient("testvmm", tmp_path / "none").call("GET", "/")


def test_long_path(tmp_path: Path) -> None:
    """A path that no socket can have is refused, with what can be done."""
    with pytest.raises(UnsupportedError, match="too long") as caught:
        ApiClient("testvmm", tmp_path / ("x" * 120))
    assert "state_dir" in (caught.value.hint or "")
