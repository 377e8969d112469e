"""Two ends that keep to the rules, joined by pipes that cut and delay as they like.

The model knows for each direction which events the frames under way will be, in order. A
frame is dropped in silence exactly if its call is over where it arrives.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from functools import lru_cache
from random import Random
from typing import Any

import pytest
from attrs import Factory, define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rpc_strategies import same, scalars, texts

from arrakis_rpc.connection import (
    MAX_CHANNELS,
    MAX_CHUNK,
    WINDOW,
    CallCancelled,
    CallFailed,
    CallNotified,
    CallReceived,
    CallSucceeded,
    Connection,
    CreditReceived,
    DataReceived,
    Event,
    Role,
    StreamEnded,
)
from arrakis_rpc.errors import NotFoundError

CHANNELS = [f"channel {number}" for number in range(MAX_CHANNELS)]
PERIOD = 251 * 4099  # no multiple of a chunk or a window: bytes out of place are seen

channels = st.sampled_from(CHANNELS[:2]) | st.sampled_from(CHANNELS)
numbers = st.integers(0, 5)
notes = st.dictionaries(texts.filter(lambda key: key != "id"), scalars, max_size=2)
sizes = st.sampled_from([1, MAX_CHUNK, MAX_CHUNK]) | st.integers(0, MAX_CHUNK)


@lru_cache(1)
def _noise() -> bytes:
    return Random(1).randbytes(PERIOD + MAX_CHUNK)


def content(offset: int, size: int) -> bytes:
    """The bytes that every stream carries from an offset on."""
    start = offset % PERIOD
    return _noise()[start : start + size]


@define
class Stream:
    """One channel of a call in one direction, counted in bytes from its beginning."""

    sent: int = 0
    received: int = 0
    consumed: int = 0
    credited: int = 0
    credit_arrived: int = 0
    ended: bool = False


@define(eq=False)
class End:
    """One of the two connections, and what is on its way to it."""

    connection: Connection
    pipe: bytearray = Factory(bytearray)
    expected: deque[tuple[int, Event, int]] = Factory(deque)
    read: int = 0
    written: int = 0
    running: set[int] = Factory(set)
    streams: dict[tuple[int, str], Stream] = Factory(lambda: defaultdict(Stream))

    def expect(self, frame: bytes, event: Event, credit: int = 0) -> None:
        """Put a frame into the pipe, and note what it means."""
        self.pipe += frame
        self.written += len(frame)
        self.expected.append((self.written, event, credit))


ends = st.sampled_from(["caller", "callee"])


class Conversation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.caller = End(Connection(Role.CALLER))
        self.callee = End(Connection(Role.CALLEE))
        self.ids: list[int] = []

    def other(self, end: End) -> End:
        return self.callee if end is self.caller else self.caller

    def pick(self, end: End, number: int) -> int:
        """Choose one of the running calls of an end, the last ones first."""
        if not end.running:
            self.start_call({})
            self.deliver("callee", 2**30)
        running = sorted(end.running, reverse=True)
        return running[number % len(running)]

    # What either end does

    @rule(params=notes)
    def start_call(self, params: dict[str, Any]) -> None:
        call_id, frame = self.caller.connection.start_call("method", params)

        assert call_id == len(self.ids) + 1
        self.ids.append(call_id)
        self.caller.running.add(call_id)
        self.callee.expect(frame, CallReceived(call_id, "method", params))

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        call_id = self.pick(self.caller, number)
        frame = self.caller.connection.cancel_call(call_id)
        self.callee.expect(frame, CallCancelled(call_id))

    @rule(number=numbers, failed=st.booleans(), payload=notes)
    def answer(self, number: int, failed: bool, payload: dict[str, Any]) -> None:
        call_id = self.pick(self.callee, number)
        event: Event
        if failed:
            error = NotFoundError("nothing there", vm="vm")
            error.detail = payload
            event = CallFailed(call_id, error)
            frame = self.callee.connection.send_error(call_id, error)
        else:
            event = CallSucceeded(call_id, payload)
            frame = self.callee.connection.send_result(call_id, payload)
        self.callee.running.remove(call_id)
        self.caller.expect(frame, event)

    @rule(which=ends, number=numbers, params=notes)
    def notify(self, which: str, number: int, params: dict[str, Any]) -> None:
        end: End = getattr(self, which)
        call_id = self.pick(end, number)
        frame = end.connection.notify(call_id, "a.note", params)
        self.other(end).expect(frame, CallNotified(call_id, "a.note", params))

    @rule(which=ends, number=numbers, channel=channels, size=sizes, times=st.integers(1, 20))
    def send(self, which: str, number: int, channel: str, size: int, times: int) -> None:
        end: End = getattr(self, which)
        call_id = self.pick(end, number)
        stream = end.streams[call_id, channel]
        window = end.connection.send_window(call_id, channel)
        for too_much in (window + 1, MAX_CHUNK + 1):
            with pytest.raises(ValueError, match="exceed"):
                end.connection.send_data(call_id, channel, bytes(too_much))

        for _ in range(0 if stream.ended else times):
            window = end.connection.send_window(call_id, channel)
            data = content(stream.sent, min(window, size))
            frame = end.connection.send_data(call_id, channel, data)

            assert end.connection.send_window(call_id, channel) == window - len(data)
            assert bool(frame) is bool(data)
            stream.sent += len(data)
            if data:
                self.other(end).expect(frame, DataReceived(call_id, channel, data))

    @rule(which=ends, number=numbers, channel=channels)
    def end_stream(self, which: str, number: int, channel: str) -> None:
        end: End = getattr(self, which)
        call_id = self.pick(end, number)
        if not end.streams[call_id, channel].ended:
            end.streams[call_id, channel].ended = True
            frame = end.connection.end_stream(call_id, channel)
            self.other(end).expect(frame, StreamEnded(call_id, channel))

    @rule(which=ends, share=st.sampled_from([1, 2, 3, 10]))
    def consume(self, which: str, share: int) -> None:
        end: End = getattr(self, which)
        for (call_id, channel), stream in self.other(end).streams.items():
            waiting = stream.received - stream.consumed
            self.give_back(end, call_id, channel, stream, -(-waiting // share))

    def give_back(self, end: End, call_id: int, channel: str, stream: Stream, size: int) -> None:
        frame = end.connection.consumed(call_id, channel, size)
        stream.consumed += size
        if call_id not in end.running:
            assert frame == b""
        elif frame:
            credit = stream.consumed - stream.credited
            stream.credited = stream.consumed
            self.other(end).expect(frame, CreditReceived(call_id, channel), credit)

    # What the pipes do

    @rule(which=ends, size=st.sampled_from([1, 3, 1000, 200_000, 2**30, 2**30]))
    def deliver(self, which: str, size: int) -> None:
        end: End = getattr(self, which)
        chunk = bytes(end.pipe[:size])
        del end.pipe[:size]
        end.read += len(chunk)

        received = list(end.connection.receive(chunk))

        self.compare(received, list(self.arrivals(end)))

    def arrivals(self, end: End) -> Iterable[Event]:
        """Events of the frames that are complete by now, and what they change."""
        while end.expected and end.expected[0][0] <= end.read:
            _, event, credit = end.expected.popleft()
            if isinstance(event, CallReceived):
                end.running.add(event.call_id)
            elif event.call_id not in end.running:
                continue
            elif isinstance(event, (CallSucceeded, CallFailed)):
                end.running.remove(event.call_id)
            elif isinstance(event, DataReceived):
                stream = self.other(end).streams[event.call_id, event.channel]
                stream.received += len(event.data)
            elif isinstance(event, CreditReceived):
                stream = end.streams[event.call_id, event.channel]
                stream.credit_arrived += credit
            yield event

    def compare(self, received: list[Event], expected: list[Event]) -> None:
        assert [type(event) for event in received] == [type(event) for event in expected]
        for event, wanted in zip(received, expected, strict=True):
            if isinstance(event, CallFailed) and isinstance(wanted, CallFailed):
                assert event.call_id == wanted.call_id
                assert type(event.error) is type(wanted.error)
                assert same(event.error.to_wire(), wanted.error.to_wire())
            elif isinstance(event, DataReceived):
                assert event == wanted
            else:
                assert same(event, wanted)

    # Where it all leads to

    @rule(
        which=ends,
        number=numbers,
        channel=channels,
        share=st.sampled_from([1, 2, 3]),
        back=st.sampled_from([7, 70, 2**30]),
    )
    def transfer(self, which: str, number: int, channel: str, share: int, back: int) -> None:
        """Send much, to a reader that keeps up more or less."""
        reader = "callee" if which == "caller" else "caller"
        for _ in range(6):
            self.send(which, number, channel, MAX_CHUNK - number, 4)
            self.deliver(reader, 2**30)
            self.consume(reader, share)
            self.deliver(which, back)

    @rule(answer_all=st.sampled_from([False, False, True]))
    def settle(self, answer_all: bool) -> None:
        """When all has arrived and is used up, every sender has credit to go on with.

        When all calls are answered besides, nothing of them is left at either end.
        """
        self.drain()
        for end in (self.caller, self.callee):
            for (call_id, channel), stream in end.streams.items():
                if call_id in end.running:
                    assert stream.received == stream.sent
                    assert end.connection.send_window(call_id, channel) > WINDOW // 2
        if answer_all:
            while self.callee.running:
                self.answer(0, False, {})
            self.drain()
            assert not self.caller.running

    def drain(self) -> None:
        for which in ("caller", "callee") * 3:
            self.deliver(which, 2**30)
            self.consume(which, 1)
        assert not self.caller.pipe
        assert not self.callee.pipe

    # What is always true

    @invariant()
    def only_running_calls_have_state(self) -> None:
        for end in (self.caller, self.callee):
            connection = end.connection
            assert {n for n in self.ids if connection.is_running(n)} == end.running
            assert len(connection._calls) == len(end.running)
            for finished in set(self.ids) - end.running:
                assert connection.send_window(finished, CHANNELS[0]) == 0

    @invariant()
    def windows_are_what_was_not_sent_or_was_given_back(self) -> None:
        for end in (self.caller, self.callee):
            for (call_id, channel), stream in end.streams.items():
                assert stream.credited <= stream.consumed <= stream.received <= stream.sent
                assert stream.consumed - stream.credited < WINDOW // 2 or (
                    call_id not in self.other(end).running
                )
                if call_id in end.running:
                    window = end.connection.send_window(call_id, channel)
                    assert window == WINDOW - stream.sent + stream.credit_arrived
                    assert 0 <= window <= WINDOW


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=30, stateful_step_count=40)
