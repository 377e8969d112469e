"""The daemon's end of a session, with a guest at the other that answers whatever it likes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import pytest
import trio
import trio.testing

from arrakis_rpc import errors
from arrakis_rpc.connection import CallReceived, Connection, Role
from arrakis_rpc.errors import (
    ArrakisError,
    FileOperationError,
    GuestError,
    InvalidParamsError,
    InvalidStateError,
    NotFoundError,
)
from arrakis_rpc.guest_api import ExecSpec, FilePath, Nothing
from arrakis_rpc.operations import DAEMON, GUEST
from arrakis_rpc.resync import FIRST_TOKEN, NONCE_SIZE, TOKEN_SIZE
from arrakisd.guest.agent import GuestAgent
from arrakisd.guest.proxy import call_through
from arrakisd.host.vmm.channel import Channel
from arrakisd.wire.peer import CallerPeer, CallStreams, Peer, domain_error_in

CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ArrakisError)
]
ARGS = {
    "exec.run": ExecSpec(argv=["true"]),
    "file.stat": FilePath("/etc"),
    "agent.health": Nothing(),
}


class Guest:
    """Greets as an agent does, and answers every other call with one error."""

    def __init__(self, end: socket.socket, error: ArrakisError) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._error = error

    async def run(self) -> None:
        """Serve one session."""
        connection = Connection(Role.CALLEE)
        received = b""
        while len(received) < TOKEN_SIZE + NONCE_SIZE:
            received += await self._stream.receive_some()
        await self._stream.send_all(received[TOKEN_SIZE : TOKEN_SIZE + NONCE_SIZE])
        received = received[TOKEN_SIZE + NONCE_SIZE :]
        while True:
            for event in connection.receive(received):
                if isinstance(event, CallReceived):
                    await self._stream.send_all(await self._serve(connection, event))
            received = bytes(await self._stream.receive_some())

    async def _serve(self, connection: Connection, call: CallReceived) -> bytes:
        return self._answer(connection, call)

    def _answer(self, connection: Connection, call: CallReceived) -> bytes:
        if call.method == "agent.hello":
            greeting = {"version": 1, "agent": "liar", "python": "3"}
            return connection.send_result(call.call_id, greeting)
        return connection.send_error(call.call_id, self._error)


G = TypeVar("G", bound=Guest)


class SlowGuest(Guest):
    """Sets its clock, and needs a while for that as often as it is told."""

    def __init__(self, end: socket.socket, slow: int) -> None:
        super().__init__(end, GuestError("no"))
        self._slow = slow
        self.times_set = 0

    async def _serve(self, connection: Connection, call: CallReceived) -> bytes:
        if call.method != "clock.set":
            return self._answer(connection, call)
        self.times_set += 1
        if self.times_set <= self._slow:
            await trio.sleep(0.1)
        return connection.send_result(call.call_id, {})


@asynccontextmanager
async def session_with(error: ArrakisError) -> AsyncIterator[GuestAgent]:
    """Open a session with a guest whose calls all fail in one way."""
    async with session_of(lambda end: Guest(end, error)) as (agent, _):
        yield agent


@asynccontextmanager
async def session_of(make: Callable[[socket.socket], G]) -> AsyncIterator[tuple[GuestAgent, G]]:
    """Open a session with a guest."""
    ours, theirs = socket.socketpair()
    agent = GuestAgent("box", lambda: Channel(ours.dup()), FIRST_TOKEN)
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            guest = make(theirs)
            nursery.start_soon(guest.run)
            nursery.start_soon(agent.run)
            yield agent, guest
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("slow", "least", "most"), [(0, 1, 3), (1, 2, 3), (9, 3, 3)])
async def test_late_clock(slow: int, least: int, most: int) -> None:
    """A clock that was set late, because the guest took its time, is set again; not for ever."""
    async with session_of(partial(SlowGuest, slow=slow)) as (agent, guest):
        await agent.set_clock()
    assert least <= guest.times_set <= most


async def test_slow_greeting(autojump_clock: trio.testing.MockClock) -> None:
    """A guest that hardly gets a processor is met in the end, as it is given ever more time."""
    autojump_clock.autojump_threshold = 0.05  # for what is on its way through a socket
    with ExitStack() as sockets:
        async with trio.open_nursery() as nursery:

            async def serve(end: socket.socket) -> None:
                await trio.sleep(25)
                with suppress(trio.BrokenResourceError):
                    await Guest(end, GuestError("no")).run()

            def open_channel() -> Channel:
                ours, theirs = map(sockets.enter_context, socket.socketpair())
                nursery.start_soon(serve, theirs)
                return Channel(ours.dup())

            agent = GuestAgent("box", open_channel, FIRST_TOKEN)
            nursery.start_soon(agent.run)
            await agent.wait_ready(300)
            nursery.cancel_scope.cancel()


class Client(Peer):
    """The end of a client's connection at which a call of his is passed on to a guest."""

    def __init__(self, stream: trio.abc.Stream, agent: GuestAgent) -> None:
        super().__init__(stream, Role.CALLEE)
        self.agent = agent
        self.calls = trio.open_memory_channel[CallStreams](1)

    def _on_call(self, event: CallReceived) -> None:
        self.calls[0].send_nowait(self.open_streams(event.call_id))


async def error_of(agent: GuestAgent, method: str) -> ArrakisError:
    """Make a call that fails; through the proxy what clients can ask for."""
    call = (
        partial(through_proxy, agent) if method in DAEMON else partial(agent.call, args=Nothing())
    )
    with pytest.raises(Exception) as caught:
        await call(method)
    error = domain_error_in(caught.value)
    assert error is not None
    return error


async def through_proxy(agent: GuestAgent, method: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        caller, client = CallerPeer(near), Client(far, agent)
        nursery.start_soon(caller.run)
        nursery.start_soon(client.run)
        async with caller.open_call(method, {}):
            streams = await client.calls[1].receive()
            await call_through(agent, method, ARGS[method], streams)


@pytest.mark.parametrize("method", ARGS)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
async def test_error_of_any_class(kind: type[ArrakisError], method: str) -> None:
    """An error that the operation cannot have is the guest's failure, not one of the daemon."""
    async with session_with(kind("the text", state="CREATED", required="more")) as agent:
        error = await error_of(agent, method)
    assert type(error) is (kind if kind in GUEST[method].raises else GuestError)
    assert "the text" in error.message
    assert (error.vm, error.state, error.required) == ("box", None, None)


def test_what_a_guest_may_say() -> None:
    """The table names what a command and a file may fail with, and no failure of a connection."""
    assert set(GUEST["exec.run"].raises) == {
        InvalidStateError,
        GuestError,
        NotFoundError,
        InvalidParamsError,
    }
    assert set(GUEST["file.stat"].raises) == {InvalidStateError, GuestError, FileOperationError}


async def test_error_without_measure() -> None:
    """Of a long text the beginning is kept; of the detail only the number of a system's error."""
    error = FileOperationError("x" * 500_000, vm="other", hint="y" * 9000, errno=2, more="z" * 9000)
    async with session_with(error) as agent:
        kept = await error_of(agent, "file.stat")
    assert isinstance(kept, FileOperationError)
    assert kept.message == "x" * 4096
    assert kept.vm == "box"
    assert kept.hint == "y" * 200
    assert kept.detail == {"errno": 2}
