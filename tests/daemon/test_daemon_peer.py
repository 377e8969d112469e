"""Protocol connections on trio streams."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from arrakis_rpc.connection import (
    WINDOW,
    CallNotified,
    CallReceived,
    CallSucceeded,
    DataReceived,
    Role,
    StreamEnded,
)
from arrakis_rpc.errors import ConnectionLostError, NotFoundError, ProtocolError
from arrakisd.wire.peer import CallerPeer, CallStreams, Peer, receive_answer


class Callee(Peer):
    """The end that answers: each call by a task that does what the method's name says."""

    def __init__(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        super().__init__(stream, Role.CALLEE)
        self._nursery = nursery
        self.cancelled: list[int] = []
        self.received: dict[int, bytearray] = {}
        self.gates: dict[int, trio.Event] = {}

    def _on_call(self, event: CallReceived) -> None:
        streams = self.open_streams(event.call_id)
        self._nursery.start_soon(getattr(self, event.method), event, streams)

    def _on_cancel(self, call_id: int) -> None:
        self.cancelled.append(call_id)

    async def _answer(self, event: CallReceived, result: object) -> None:
        self.close_streams(event.call_id)
        await self.room()
        self.queue(self.connection.send_result(event.call_id, result))

    async def echo(self, event: CallReceived, streams: CallStreams) -> None:
        """Answer with the parameters."""
        await self._answer(event, event.params)

    async def fail(self, event: CallReceived, streams: CallStreams) -> None:
        """Answer with an error."""
        error = NotFoundError("nothing there", hint="look elsewhere")
        self.queue(self.connection.send_error(event.call_id, error))

    async def hang(self, event: CallReceived, streams: CallStreams) -> None:
        """Never answer."""

    async def take(self, event: CallReceived, streams: CallStreams) -> None:
        """Take all of a stream, once the gate is open; answer with its length."""
        total = self.received[event.call_id] = bytearray()
        gate = self.gates.setdefault(event.call_id, trio.Event())
        if event.params.get("gated"):
            await gate.wait()
        while not isinstance(item := await streams.receive(), StreamEnded):
            if isinstance(item, DataReceived):
                total += item.data
                streams.consumed(item)
        await self._answer(event, len(total))

    async def give(self, event: CallReceived, streams: CallStreams) -> None:
        """Send a stream of a given length, then answer."""
        await streams.send("out", bytes(event.params["size"]))
        await streams.end("out")
        await self._answer(event, "given")

    async def notify(self, event: CallReceived, streams: CallStreams) -> None:
        """Send notes without an end, or a number of them."""
        for number in range(event.params["count"]):
            await streams.note("news", {"number": number})
        await self._answer(event, None)


class Pair:
    """Both ends of a connection, running."""

    def __init__(self, nursery: trio.Nursery, *, lockstep: bool = False) -> None:
        make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        self.near, self.far = make()
        self.caller = CallerPeer(self.near)
        self.callee = Callee(self.far, nursery)
        nursery.start_soon(self.caller.run)
        nursery.start_soon(self.callee.run)


async def test_calls(nursery: trio.Nursery) -> None:
    """Calls at once get each their own result or error."""
    caller = Pair(nursery).caller
    results = {}

    async def call(number: int) -> None:
        results[number] = await caller.call("echo", {"n": number})

    async with trio.open_nursery() as calls:
        for number in range(50):
            calls.start_soon(call, number)
    assert results == {number: {"n": number} for number in range(50)}
    with pytest.raises(NotFoundError, match="nothing there") as caught:
        await caller.call("fail", {})
    assert caught.value.hint == "look elsewhere"


@pytest.mark.parametrize("lockstep", [False, True], ids=["buffered", "lockstep"])
async def test_streams(nursery: trio.Nursery, lockstep: bool) -> None:
    """Streams longer than their window arrive whole, in both directions."""
    pair = Pair(nursery, lockstep=lockstep)
    data = bytes(range(256)) * 15_000
    async with pair.caller.open_call("take", {}) as streams:
        await streams.send("in", data)
        await streams.end("in")
        assert await receive_answer(streams) == len(data)
    assert bytes(pair.callee.received[streams.call_id]) == data
    async with pair.caller.open_call("give", {"size": 3 * WINDOW}) as streams:
        assert await receive_answer(streams) == "given"


async def test_slow_reader(nursery: trio.Nursery) -> None:
    """A call whose data nobody takes is held up at its window, and holds up no other call."""
    pair = Pair(nursery)
    sent = trio.Event()

    async def feed(streams: CallStreams) -> None:
        await streams.send("in", bytes(3 * WINDOW))
        await streams.end("in")
        sent.set()

    async with (
        pair.caller.open_call("take", {"gated": True}) as slow,
        pair.caller.open_call("give", {"size": 3 * WINDOW}) as unread,
    ):
        nursery.start_soon(feed, slow)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        for _ in range(3):
            assert await pair.caller.call("echo", {"still": "there"}) == {"still": "there"}
        async with pair.caller.open_call("take", {}) as quick:
            await quick.send("in", bytes(2 * WINDOW))
            await quick.end("in")
            assert await receive_answer(quick) == 2 * WINDOW
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        pair.callee.gates[slow.call_id].set()
        assert await receive_answer(slow) == 3 * WINDOW
        assert await receive_answer(unread) == "given"


async def test_two_senders_in_a_call(nursery: trio.Nursery) -> None:
    """Two channels of a call that both wait for credit both get on when it comes."""
    pair = Pair(nursery)
    done = []

    async def feed(channel: str) -> None:
        await streams.send(channel, bytes(3 * WINDOW))
        done.append(channel)

    async with pair.caller.open_call("take", {"gated": True}) as streams:
        async with trio.open_nursery() as feeders:
            for channel in ("in", "other"):
                feeders.start_soon(feed, channel)
            await trio.testing.wait_all_tasks_blocked()
            assert done == []
            pair.callee.gates[streams.call_id].set()
        await streams.end("in")
        assert await receive_answer(streams) == 6 * WINDOW
    assert sorted(done) == ["in", "other"]


async def test_cancelled_sender(nursery: trio.Nursery) -> None:
    """Cancelling a sender at any of its steps cuts no frame: the connection goes on working."""
    pair = Pair(nursery, lockstep=True)
    data = bytes(range(256)) * 8192
    cancelled = True
    steps = 0
    while cancelled:
        steps += 1
        scope = trio.CancelScope()
        with scope:
            async with pair.caller.open_call("take", {}) as streams:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                async with trio.open_nursery() as sending:
                    sending.start_soon(_cancel_after, steps, scope)
                    await streams.send("in", data)
                    await streams.end("in")
                    answer = await receive_answer(streams)
                    sending.cancel_scope.cancel()
        cancelled = scope.cancelled_caught
        received = bytes(pair.callee.received[streams.call_id])
        assert data.startswith(received)
        assert await pair.caller.call("echo", {"step": steps}) == {"step": steps}
    assert answer == len(data)
    assert steps > 20
    assert len(pair.callee.cancelled) > 10


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_leaving_early(nursery: trio.Nursery) -> None:
    """Leaving a call's block cancels it at the other end; leaving an answered one does not."""
    pair = Pair(nursery)
    async with pair.caller.open_call("hang", {}) as streams:
        pass
    await pair.caller.call("echo", {})
    assert pair.callee.cancelled == [streams.call_id]


async def test_notes(nursery: trio.Nursery) -> None:
    """Notes arrive in order; a call ignores those it does not want."""
    pair = Pair(nursery)
    numbers = []
    async with pair.caller.open_call("notify", {"count": 100}) as streams:
        while not isinstance(event := await streams.receive(), CallSucceeded):
            assert isinstance(event, CallNotified)
            numbers.append(event.params["number"])
    assert numbers == list(range(100))
    assert await pair.caller.call("notify", {"count": 100}) is None


async def test_endless_notes() -> None:
    """An end that sends notes nobody reads ends the connection, not the host's memory."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(ProtocolError, match="notifications"),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        async with trio.open_nursery() as nursery:
            pair = Pair(nursery)
            async with pair.caller.open_call("notify", {"count": 10**6}):
                await trio.sleep_forever()


@pytest.mark.parametrize("how", ["close", "garbage"])
async def test_end_of_connection(how: str) -> None:
    """When the connection ends, all who wait on it are told; whoever comes later is, too."""
    lost = []

    async def wait(peer: CallerPeer, method: str) -> None:
        try:
            async with peer.open_call(method, {"gated": True}) as streams:
                await streams.send("in", bytes(3 * WINDOW if method == "take" else 1))
                await streams.receive()
        except ConnectionLostError:
            lost.append(method)

    near, far = trio.testing.memory_stream_pair()
    peer = CallerPeer(near)

    async def run() -> None:
        if how == "close":
            await peer.run()
        else:
            with pytest.RaisesGroup(ProtocolError):
                await peer.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(wait, peer, "take")
        nursery.start_soon(wait, peer, "hang")
        await trio.testing.wait_all_tasks_blocked()
        if how == "close":
            await far.aclose()
        else:
            await far.send_all(b"\xff" * 100)
    assert sorted(lost) == ["hang", "take"]
    with pytest.raises(ConnectionLostError):
        await peer.call("echo", {})


async def test_writer_backs_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """While the other end reads nothing, senders wait for room and queue nothing more."""
    near, far = trio.testing.lockstep_stream_pair()
    peer = CallerPeer(near)
    nursery.start_soon(peer.run)
    begun = []

    async def call(number: int) -> None:
        async with peer.open_call("echo", {"data": bytes(1000)}):
            begun.append(number)
            await trio.sleep_forever()

    for number in range(100):
        nursery.start_soon(call, number)
    await trio.testing.wait_all_tasks_blocked()
    assert len(begun) < 20
    received = bytearray()
    with trio.move_on_after(1):
        while len(begun) < 100:
            received += await far.receive_some()
    assert len(begun) == 100
    nursery.cancel_scope.cancel()
