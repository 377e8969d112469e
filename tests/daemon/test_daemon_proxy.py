"""A command with a time limit, between a guest and a client of which one holds things up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from arrakis_rpc.connection import (
    WINDOW,
    CallReceived,
    DataReceived,
    Role,
)
from arrakis_rpc.errors import DeadlineError
from arrakis_rpc.guest_api import ExecResult, ExecSpec
from arrakisd.guest.agent import GuestAgent
from arrakisd.guest.proxy import call_through
from arrakisd.host.vmm.channel import Channel
from arrakisd.wire.peer import CallerPeer, CallStreams, Peer, domain_error_in

RESULT = {"pid": 7, "exit_code": None, "signal": 9, "timed_out": True, "duration": 0.1}
Script = Callable[[Peer, CallStreams], Awaitable[None]]


class Callee(Peer):
    """An end that does with each call what a script says."""

    def __init__(self, stream: trio.abc.Stream, nursery: trio.Nursery, script: Script) -> None:
        super().__init__(stream, Role.CALLEE)
        self._nursery = nursery
        self._script = script

    def _on_call(self, event: CallReceived) -> None:
        self._nursery.start_soon(self._script, self, self.open_streams(event.call_id))


class Agent(GuestAgent):
    """A session that is open already, on a stream in memory."""

    def __init__(self, peer: CallerPeer) -> None:
        super().__init__("box", Channel, bytes(32))  # type: ignore[arg-type]
        self._peer = peer
        self._ready.set()


@asynccontextmanager
async def passage(guest: Script) -> AsyncIterator[tuple[CallStreams, list[object]]]:
    """Run a command with a limit of 0.1 s; give the client's end, and how the call went."""
    outcome: list[object] = []

    async def serve(peer: Peer, client: CallStreams) -> None:
        try:
            result = await call_through(agent, "exec.run", ExecSpec(["x"], timeout=0.1), client)
            outcome.append(result)
            peer.queue(peer.connection.send_result(client.call_id, RESULT))
        except* DeadlineError as group:
            outcome.append(domain_error_in(group))
            peer.queue(peer.connection.send_result(client.call_id, {}))

    async with trio.open_nursery() as nursery:
        near, far = trio.testing.memory_stream_pair()
        inner = CallerPeer(near)
        agent = Agent(inner)
        client_end, daemon_end = trio.testing.memory_stream_pair()
        caller = CallerPeer(client_end)
        for peer in (inner, Callee(far, nursery, guest), caller):
            nursery.start_soon(peer.run)
        nursery.start_soon(Callee(daemon_end, nursery, serve).run)
        async with caller.open_call("exec.run", {}) as streams:
            yield streams, outcome
        nursery.cancel_scope.cancel()


async def write_and_end(peer: Peer, streams: CallStreams) -> None:
    """Write four windows full, then end as a command does that its limit has killed."""
    await streams.send("stdout", bytes(4 * WINDOW))
    await streams.end("stdout")
    peer.queue(peer.connection.send_result(streams.call_id, RESULT))


async def read(streams: CallStreams, pause: float) -> int:
    """Take all that comes, slowly; give its size."""
    size = 0
    while True:
        event = await streams.receive()
        if isinstance(event, DataReceived):
            size += len(event.data)
            streams.consumed(event)
            await trio.sleep(pause)
        elif not hasattr(event, "channel"):
            return size


async def test_slow_reader(autojump_clock: trio.testing.MockClock) -> None:
    """A reader that pauses for minutes after the limit gets all that was written before it."""
    async with passage(write_and_end) as (streams, outcome):
        await trio.sleep(250)
        assert await read(streams, pause=12) == 4 * WINDOW
    assert outcome == [ExecResult(pid=7, signal=9, timed_out=True, duration=0.1)]
    assert trio.current_time() > 500


async def test_reader_that_never_reads(autojump_clock: trio.testing.MockClock) -> None:
    """A reader that takes nothing for five minutes after the limit is given up, not before."""
    async with passage(write_and_end) as (_, outcome):
        await trio.sleep(299)
        assert outcome == []
        await trio.sleep(3)
    (error,) = outcome
    assert "not taken" in str(error)


async def test_guest_that_never_ends(autojump_clock: trio.testing.MockClock) -> None:
    """A guest that does not end the command has ten seconds after the limit."""

    async def hang(peer: Peer, streams: CallStreams) -> None:
        await streams.send("stdout", b"begun")

    async with passage(hang) as (streams, outcome):
        await trio.sleep(9)
        assert outcome == []
        await trio.sleep(2)
        assert await read(streams, pause=0) == 5
    (error,) = outcome
    assert "longer than 10.1 s" in str(error)


@pytest.mark.parametrize("pause", [0, 0.4, 30])
async def test_guest_that_never_stops(autojump_clock: trio.testing.MockClock, pause: float) -> None:
    """A guest that goes on sending after the limit is given up, be it quick or slow."""

    async def go_on(peer: Peer, streams: CallStreams) -> None:
        while True:
            await streams.send("stdout", bytes(1 if pause else 100_000))
            await trio.sleep(pause or 0.001)

    async with passage(go_on) as (streams, outcome):
        size = await read(streams, pause=0)
    assert size < 2**27
    (error,) = outcome
    assert "longer than" in str(error)
    assert trio.current_time() < 50
