"""The channel to a guest agent, and how it is kept quiet."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from arrakisd.host.vmm import channel
from arrakisd.host.vmm.channel import Channel


class Ends:
    """A channel, and the socket of the VMM at its other end."""

    def __init__(self) -> None:
        ours, self.vmm = socket.socketpair()
        self.channel = Channel(ours)
        self.vmm.setblocking(False)

    def taken(self) -> bytes:
        """Take what there is, as a VMM does."""
        try:
            return self.vmm.recv(1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
def ends() -> Ends:
    return Ends()


async def test_both_ways(ends: Ends) -> None:
    """Bytes pass in both directions, more of them than fit into a socket."""
    sent, received = b"abc" * 1_000_000, bytearray()
    async with ends.channel, trio.open_nursery() as nursery:
        nursery.start_soon(ends.channel.send_all, sent)
        while len(received) < len(sent):
            await trio.lowlevel.wait_readable(ends.vmm)
            received += ends.taken()
        ends.vmm.send(b"answer")
        assert await ends.channel.receive_some() == b"answer"
        ends.vmm.send(b"12345")
        assert await ends.channel.receive_some(2) == b"12"
        assert await ends.channel.receive_some() == b"345"
    assert bytes(received) == sent
    ends.vmm.close()


async def test_quiet(ends: Ends) -> None:
    """In a quiet block nothing is sent and nothing received, not even by who waited before."""
    got: list[bytes] = []

    async def read() -> None:
        got.append(await ends.channel.receive_some())

    async with ends.channel, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        async with ends.channel.quiet():
            ends.vmm.send(b"from the guest")
            nursery.start_soon(ends.channel.send_all, b"to the guest")
            nursery.start_soon(read)
            await trio.sleep(0.05)
            assert (got, ends.taken()) == ([], b"")
            ends.vmm.send(b", more")
        taken = b""
        with trio.fail_after(10):
            while not (got and taken):  # noqa: ASYNC110 -- the other end is no task
                await trio.sleep(0.001)
                taken += ends.taken()
        assert (got, taken) == ([b"from the guest, more"], b"to the guest")
        nursery.cancel_scope.cancel()
    ends.vmm.close()


async def test_quiet_waits(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet block begins when the VMM has taken what was under way."""
    monkeypatch.setattr(channel, "_DRAIN_DEADLINE", math.inf)
    async with ends.channel, trio.open_nursery() as nursery:
        await ends.channel.send_all(b"under way")

        taken = []

        async def take_late() -> None:
            await trio.sleep(0.05)
            taken.append(ends.taken())

        nursery.start_soon(take_late)
        async with ends.channel.quiet():
            assert taken == [b"under way"]
    ends.vmm.close()


async def test_quiet_does_not_wait_forever(ends: Ends) -> None:
    """A VMM that takes nothing delays a quiet block by a moment only."""
    async with ends.channel, trio.open_nursery() as nursery:
        nursery.start_soon(ends.channel.send_all, b"x" * 4_000_000)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            async with ends.channel.quiet():
                first = ends.taken()
                await trio.sleep(0.05)
                while more := ends.taken():
                    first += more
                assert len(first) < 4_000_000  # what was in the socket, and nothing since
        received = len(first)
        while received < 4_000_000:
            await trio.lowlevel.wait_readable(ends.vmm)
            received += len(ends.taken())
    ends.vmm.close()


async def test_cancelled_quiet(ends: Ends) -> None:
    """A quiet block that ends by cancellation or error lets traffic pass again."""
    async with ends.channel:
        with trio.move_on_after(0.01):
            async with ends.channel.quiet():
                await trio.sleep_forever()
        await ends.channel.send_all(b"stuck")
        with trio.move_on_after(0.01) as scope:  # in the middle of waiting for the VMM
            async with ends.channel.quiet():
                pass
        assert scope.cancelled_caught
        ends.vmm.send(b"answer")
        assert await ends.channel.receive_some() == b"answer"
    ends.vmm.close()


async def test_ends(ends: Ends) -> None:
    """The other end's end is an end of file; a send then breaks."""
    async with ends.channel:
        ends.vmm.close()
        assert await ends.channel.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await ends.channel.send_all(b"x")


async def test_hanging_up(ends: Ends) -> None:
    """Hanging up ends all who read, write, or keep quiet; another channel can follow."""
    duplicate = Channel(ends.channel._socket.dup())
    ended = []

    async def use(name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            ended.append(name)

    async def send() -> None:
        await ends.channel.send_all(b"x" * 4_000_000)

    async def keep_quiet() -> None:
        async with ends.channel.quiet():
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, "reader", ends.channel.receive_some)
        nursery.start_soon(use, "writer", send)
        await trio.testing.wait_all_tasks_blocked()
        ends.channel.hang_up()
        ends.channel.hang_up()
        nursery.start_soon(keep_quiet)
    assert sorted(ended) == ["reader", "writer"]
    while ends.taken():
        pass
    async with duplicate:
        await duplicate.send_all(b"again")
        assert ends.taken() == b"again"
    ends.vmm.close()


async def test_closing(ends: Ends) -> None:
    """Closing wakes who waits, may be done twice, and leaves duplicates of the socket alone."""
    duplicate = ends.channel._socket.dup()

    async def read() -> None:
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await ends.channel.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await ends.channel.aclose()
        await ends.channel.aclose()
    again = Channel(duplicate)
    ends.vmm.send(b"still there")
    async with again:
        assert await again.receive_some() == b"still there"
    ends.vmm.close()
