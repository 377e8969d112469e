"""Ports of the loopback that lead elsewhere: their bounds."""

from __future__ import annotations

import contextlib
import resource
import socket

import pytest
import trio
from real_daemon import SLACK

from arrakisd.host.net.forwards import LoopbackForward
from arrakisd.host.net.host_ports import LOOPBACK, PortTakenError, require_free

_MOST = 256


async def test_more_connections_than_are_led() -> None:
    """The 257th connection at once is refused by a reset, and led again when one has ended."""
    async with trio.open_nursery() as nursery:
        (echo,) = await nursery.start(
            lambda task_status: trio.serve_tcp(
                serve_echo, 0, host="127.0.0.1", task_status=task_status
            )
        )
        address = echo.socket.getsockname()
        forward = LoopbackForward(0, lambda: trio.open_tcp_stream(*address))
        port = forward._listener.socket.getsockname()[1]
        nursery.start_soon(forward.run)
        clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(_MOST)]
        for client in clients:
            await client.send_all(b"x")
            assert await client.receive_some(1) == b"x"
        with pytest.raises(trio.BrokenResourceError):
            await said_by(port)
        await clients.pop().aclose()
        with trio.fail_after(SLACK * 5):
            while await answer_of(port) != b"x":
                await trio.sleep(0.01)
        forward.close()
        for client in clients:
            await client.aclose()
        with pytest.raises(OSError, match=r"refused|attempts"):
            await trio.open_tcp_stream("127.0.0.1", port)
        nursery.cancel_scope.cancel()


async def serve_echo(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def said_by(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"x")
        return bytes(await client.receive_some(1))


async def answer_of(port: int) -> bytes:
    try:
        return await said_by(port)
    except trio.BrokenResourceError:
        return b""


async def test_taken() -> None:
    """A port that somebody else listens on is said to be taken."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortTakenError):
        LoopbackForward(other.getsockname()[1], lambda: trio.open_tcp_stream(LOOPBACK, 1))
    await trio.lowlevel.checkpoint()


def test_not_taken() -> None:
    """A port that cannot be had for want of descriptors is not passed over for another one."""
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, bounds[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            require_free(LOOPBACK, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)
