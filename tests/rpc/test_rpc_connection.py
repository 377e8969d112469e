"""Connections against a peer that breaks the rules, and against their own careless user."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpc_strategies import frame, nested_lists, parts, peak_memory, scalars, soups, values

from arrakis_rpc.connection import (
    MAX_CALLS,
    MAX_CHANNEL_NAME,
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
from arrakis_rpc.envelope import Failure, Notification, Request, Result
from arrakis_rpc.errors import (
    ArrakisError,
    ExhaustedError,
    GuestError,
    InternalError,
    ProtocolError,
)
from arrakis_rpc.framing import MAX_FRAME, encode_frame

MIB = 1024 * 1024


def note(method: str, **params: Any) -> bytes:
    return encode_frame(Notification(method, params).to_wire())


def data(call_id: int, channel: str, content: Any) -> bytes:
    return note("stream.data", id=call_id, channel=channel, data=content)


def request(call_id: int) -> bytes:
    return encode_frame(Request(call_id, "m", {}).to_wire())


def feed(connection: Connection, *frames: bytes) -> list[Event]:
    return [event for frame in frames for event in connection.receive(frame)]


@pytest.fixture
def callee() -> Connection:
    """The answering end, with call 1 running."""
    connection = Connection(Role.CALLEE)
    feed(connection, request(1))
    return connection


@pytest.fixture
def caller() -> Connection:
    """The calling end, with call 1 running."""
    connection = Connection(Role.CALLER)
    connection.start_call("m", {})
    return connection


def state_of(connection: Connection) -> tuple[int, int, int]:
    """How much a connection remembers: calls, the most channels of one, the longest name."""
    calls = connection._calls.values()
    names = [
        {*call.send_window, *call.receive_window, *call.to_credit, *call.ended} for call in calls
    ]
    return (
        len(names),
        max(map(len, names), default=0),
        max((len(name) for channels in names for name in channels), default=0),
    )


def mostly(
    usual: st.SearchStrategy[Any], strange: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    """Be usual so often that a conversation gets somewhere before it breaks."""
    return st.integers(0, 30).flatmap(lambda number: usual if number else strange)


call_ids = mostly(st.just(1), scalars | st.sampled_from([0, -1, 2, 3, 2**53, True, "1"]))
channel_names = mostly(
    st.sampled_from(["stdout", "stdout", "stdin"]),
    scalars
    | st.integers(0, 20).map("channel {}".format)
    | st.sampled_from([0, MAX_CHANNEL_NAME, MAX_CHANNEL_NAME + 1, 100_000]).map("x".__mul__),
)
sizes = mostly(
    st.sampled_from([1, 100, MAX_CHUNK]), scalars | st.sampled_from([WINDOW, WINDOW + 1, 0, -1])
)
contents = mostly(st.sampled_from([0, 1, MAX_CHUNK, WINDOW // 2]).map(bytes), scalars)


def notes(method: str, **members: st.SearchStrategy[Any]) -> st.SearchStrategy[Notification]:
    params = {"id": call_ids, **members}
    return st.builds(
        Notification,
        st.just(method),
        mostly(st.fixed_dictionaries(params), st.fixed_dictionaries({}, optional=params)),
    )


hostile_frames = st.one_of(
    notes("stream.data", channel=channel_names, data=contents),
    notes("stream.data", channel=channel_names, data=contents),
    notes("stream.credit", channel=channel_names, size=sizes),
    notes("stream.end", channel=channel_names),
    notes("call.other", more=values),
    mostly(notes("call.other"), notes("call.cancel")),
    mostly(notes("call.other"), st.builds(Request, st.integers(1, 5), st.just("m"), st.just({}))),
    mostly(notes("call.other"), st.builds(Result, st.integers(1, 5), values)),
    mostly(
        notes("call.other"),
        st.builds(Failure, st.integers(1, 5), st.builds(ArrakisError, st.just("error"))),
    ),
).map(lambda envelope: encode_frame(envelope.to_wire()))

own_actions = st.sampled_from(["start", "answer", "fail", "send", "end", "consume", "cancel"])


def act(connection: Connection, action: str, events: list[Event]) -> None:
    """Do what an orderly user of a connection does, if it may be done now."""
    running = [call_id for call_id in range(1, 6) if connection.is_running(call_id)]
    caller = connection.role is Role.CALLER
    if action == "start" and caller:
        connection.start_call("m", {})
    if action == "consume":
        while events:
            event = events.pop()
            if isinstance(event, DataReceived):
                connection.consumed(event.call_id, event.channel, len(event.data))
    if not running:
        return
    if action == "answer" and not caller:
        connection.send_result(running[0], {})
    if action == "fail" and not caller:
        connection.send_error(running[0], InternalError("m"))
    if action == "cancel" and caller:
        connection.cancel_call(running[0])
    if action == "send":
        size = min(MAX_CHUNK, connection.send_window(running[0], "stdout"))
        connection.send_data(running[0], "stdout", bytes(size))
    if action == "end":
        connection.end_stream(running[0], "stdout")


class TestHostilePeer:
    @settings(max_examples=150)
    @given(st.sampled_from(Role), st.lists(hostile_frames | own_actions, max_size=30))
    def test_wrong_frames_give_events_or_a_protocol_error_and_bounded_state(
        self, role: Role, steps: list[bytes | str]
    ) -> None:
        """Whatever order well-formed frames come in, only two things can happen."""
        connection, seen = Connection(role), list[Event]()
        if role is Role.CALLEE:
            feed(connection, request(1))
        for step in ["start", "send", *steps]:
            if isinstance(step, str):
                act(connection, step, seen)
                continue
            running = {call_id for call_id in range(1, 6) if connection.is_running(call_id)}
            try:
                events = feed(connection, step)
            except ProtocolError:
                break
            for event in events:
                assert isinstance(event, CallReceived) or event.call_id in running
            seen += events
        calls, channels, longest = state_of(connection)

        assert calls <= len(steps) + 1
        assert channels <= MAX_CHANNELS + 1
        assert longest <= MAX_CHANNEL_NAME
        for call in connection._calls.values():
            for window in (*call.send_window.values(), *call.receive_window.values()):
                assert 0 <= window <= WINDOW

    @given(st.sampled_from(Role), soups)
    def test_random_bodies_give_nothing_but_a_protocol_error(self, role: Role, body: bytes) -> None:
        """No random body happens to be an envelope."""
        with pytest.raises(ProtocolError):
            feed(Connection(role), frame(body))

    @pytest.mark.parametrize("call_id", [1, 0, -5])
    def test_call_ids_count_up(self, callee: Connection, call_id: int) -> None:
        """An id is used once, also after its call was answered."""
        callee.send_result(1, None)

        with pytest.raises(ProtocolError):
            feed(callee, request(call_id))

    def test_more_calls_than_allowed_end_the_connection(self) -> None:
        """The callee bounds how many calls it holds."""
        callee = Connection(Role.CALLEE)
        feed(callee, *map(request, range(1, MAX_CALLS + 1)))

        with pytest.raises(ProtocolError, match="at once"):
            feed(callee, request(MAX_CALLS + 1))

    def test_an_answered_call_makes_room_for_another(self) -> None:
        """The bound holds for calls that run, not for calls altogether."""
        callee = Connection(Role.CALLEE)
        feed(callee, *map(request, range(1, MAX_CALLS + 1)))
        callee.send_error(7, InternalError("m"))

        assert feed(callee, request(MAX_CALLS + 1)) == [CallReceived(MAX_CALLS + 1, "m", {})]

    def test_a_callee_does_not_call(self, caller: Connection) -> None:
        """Calls go one way."""
        with pytest.raises(ProtocolError, match="no calls"):
            feed(caller, request(1))

    def test_a_callee_does_not_cancel(self, caller: Connection) -> None:
        """Cancellation goes the same way as calls."""
        with pytest.raises(ProtocolError, match="cancel"):
            feed(caller, note("call.cancel", id=1))

    @pytest.mark.parametrize("answer", [Result(1, 1), Failure(1, ArrakisError("m"))])
    def test_a_call_is_answered_once(self, caller: Connection, answer: Result | Failure) -> None:
        """A second answer, or one to a call never made, ends the connection."""
        wire = encode_frame(answer.to_wire())
        assert len(feed(caller, wire)) == 1

        with pytest.raises(ProtocolError, match="not running"):
            feed(caller, wire)
        with pytest.raises(ProtocolError, match="not running"):
            feed(Connection(Role.CALLER), wire)

    def test_a_caller_does_not_answer(self, callee: Connection) -> None:
        """The callee takes no answer to a call that it was asked."""
        with pytest.raises(ProtocolError, match="not running"):
            feed(callee, encode_frame(Result(1, 1).to_wire()))

    @pytest.mark.parametrize(
        "method", ["stream.data", "stream.end", "stream.credit", "call.cancel", "x"]
    )
    @pytest.mark.parametrize("call_id", [2, 0, -1, 2**60, True, 1.0, "1", None, [1]])
    def test_a_notification_names_a_call_that_was_made(
        self, callee: Connection, method: str, call_id: Any
    ) -> None:
        """A call of the future, or none, cannot be notified."""
        with pytest.raises(ProtocolError, match="names no call"):
            feed(callee, note(method, id=call_id, channel="c", data=b"x", size=1))

    @pytest.mark.parametrize("method", ["stream.data", "stream.end", "stream.credit"])
    @pytest.mark.parametrize("channel", [None, 1, b"c", ["c"], {}])
    def test_a_channel_has_a_name(self, callee: Connection, method: str, channel: Any) -> None:
        """Channels are text."""
        with pytest.raises(ProtocolError, match="channel"):
            feed(callee, note(method, id=1, channel=channel, data=b"x", size=1))

    @pytest.mark.parametrize("content", [None, "text", 1, [b"x"], {}])
    def test_stream_data_is_binary(self, callee: Connection, content: Any) -> None:
        """Nothing else is data, and nothing is converted to it."""
        with pytest.raises(ProtocolError, match="binary"):
            feed(callee, data(1, "c", content))

    def test_a_sender_may_use_its_window_to_the_last_byte_and_no_further(
        self, callee: Connection
    ) -> None:
        """One byte too many ends the connection."""
        chunks = [data(1, "c", bytes(MAX_CHUNK))] * (WINDOW // MAX_CHUNK)
        assert len(feed(callee, *chunks)) == len(chunks)

        with pytest.raises(ProtocolError, match="overdraw"):
            feed(callee, data(1, "c", b"x"))

    def test_windows_of_channels_and_calls_are_separate(self, callee: Connection) -> None:
        """A full channel holds up no other, and none of another call."""
        chunks = [data(1, "c", bytes(MAX_CHUNK))] * (WINDOW // MAX_CHUNK)
        feed(callee, *chunks, request(2))

        assert feed(callee, data(1, "d", b"x"), data(2, "c", b"x")) == [
            DataReceived(1, "d", b"x"),
            DataReceived(2, "c", b"x"),
        ]

    @pytest.mark.parametrize("late", [data(1, "c", b"x"), note("stream.end", id=1, channel="c")])
    def test_nothing_follows_the_end_of_a_stream(self, callee: Connection, late: bytes) -> None:
        """Data after the end, and a second end, end the connection."""
        assert feed(callee, note("stream.end", id=1, channel="c")) == [StreamEnded(1, "c")]
        assert feed(callee, data(1, "other", b"x")) == [DataReceived(1, "other", b"x")]

        with pytest.raises(ProtocolError, match="ended before"):
            feed(callee, late)

    @pytest.mark.parametrize("size", [101, WINDOW, 0, -1, 2**63, True, 1.0, "1", None, b"1"])
    def test_credit_is_at_most_what_was_sent(self, callee: Connection, size: Any) -> None:
        """No window grows beyond its size, shrinks by credit, or stops being a number."""
        callee.send_data(1, "c", bytes(100))

        with pytest.raises(ProtocolError, match="credit"):
            feed(callee, note("stream.credit", id=1, channel="c", size=size))
        assert callee.send_window(1, "c") == WINDOW - 100

    def test_credit_may_come_in_parts(self, callee: Connection) -> None:
        """What was sent can be given back bit by bit, and not twice."""
        callee.send_data(1, "c", bytes(100))
        credit = [note("stream.credit", id=1, channel="c", size=size) for size in (99, 1)]
        assert feed(callee, *credit) == [CreditReceived(1, "c")] * 2
        assert callee.send_window(1, "c") == WINDOW

        with pytest.raises(ProtocolError, match="credit"):
            feed(callee, credit[1])

    def test_credit_for_a_channel_never_used_is_refused(self, callee: Connection) -> None:
        """Nothing was sent, so nothing can be given back."""
        with pytest.raises(ProtocolError, match="credit"):
            feed(callee, note("stream.credit", id=1, channel="c", size=1))

    @pytest.mark.parametrize("method", ["stream.data", "stream.end"])
    def test_channels_of_a_call_are_bounded(self, callee: Connection, method: str) -> None:
        """A call has a few channels, ended ones included."""
        for number in range(MAX_CHANNELS):
            feed(callee, note(method, id=1, channel=f"c{number}", data=b"x"))

        with pytest.raises(ProtocolError, match="channels"):
            feed(callee, note(method, id=1, channel="one more", data=b"x"))

    def test_long_channel_names_do_not_pile_up(self, callee: Connection) -> None:
        """A name that is kept while its call runs is short."""
        longest = "n" * MAX_CHANNEL_NAME
        assert feed(callee, data(1, longest, b"x")) == [DataReceived(1, longest, b"x")]

        with pytest.raises(ProtocolError, match="channel name"):
            feed(callee, data(1, longest + "n", b"x"))

    def test_empty_data_gives_no_events(self, callee: Connection) -> None:
        """What costs the sender no credit costs the receiver no memory."""
        empties = data(1, "c", b"") * 1000

        assert feed(callee, empties, data(1, "c", b"x")) == [DataReceived(1, "c", b"x")]

    def test_frames_for_finished_calls_pass_without_a_trace(self, callee: Connection) -> None:
        """They crossed the answer on the wire; not even their channels are remembered."""
        callee.send_result(1, None)
        late = [data(1, f"c{number}", bytes(MAX_CHUNK)) for number in range(100)]

        assert feed(callee, *late, note("call.cancel", id=1), note("x", id=1)) == []
        assert state_of(callee) == (0, 0, 0)

    def test_all_that_a_hostile_peer_can_make_a_connection_keep_is_small(self) -> None:
        """The most calls, with the most channels, of the longest names."""
        callee = Connection(Role.CALLEE)

        def fill() -> None:
            for call_id in range(1, MAX_CALLS + 1):
                feed(callee, request(call_id))
                for number in range(MAX_CHANNELS):
                    name = f"{number:>{MAX_CHANNEL_NAME}}"
                    feed(callee, data(call_id, name, b"x"))
                    feed(callee, note("stream.end", id=call_id, channel=name))

        assert peak_memory(fill) < 2 * MIB
        assert state_of(callee) == (MAX_CALLS, MAX_CHANNELS, MAX_CHANNEL_NAME)


class TestCalls:
    def test_a_whole_conversation_is_seen_as_it_happened(self) -> None:
        """Both ends see the same story, each from its side."""
        caller, callee = Connection(Role.CALLER), Connection(Role.CALLEE)
        call_id, wire = caller.start_call("exec.run", {"argv": ["cat"]})
        story = [
            *feed(callee, wire),
            *feed(callee, caller.send_data(call_id, "stdin", b"hello")),
            *feed(callee, caller.end_stream(call_id, "stdin")),
            *feed(caller, callee.send_data(call_id, "stdout", b"hello")),
            *feed(caller, callee.notify(call_id, "call.progress", {"step": 1})),
            *feed(callee, caller.cancel_call(call_id)),
            *feed(caller, callee.send_result(call_id, {"exit_code": 0})),
        ]

        assert story == [
            CallReceived(1, "exec.run", {"argv": ["cat"]}),
            DataReceived(1, "stdin", b"hello"),
            StreamEnded(1, "stdin"),
            DataReceived(1, "stdout", b"hello"),
            CallNotified(1, "call.progress", {"step": 1}),
            CallCancelled(1),
            CallSucceeded(1, {"exit_code": 0}),
        ]
        assert not caller.is_running(call_id)
        assert not callee.is_running(call_id)

    def test_a_cancelled_call_runs_until_it_is_answered(self) -> None:
        """Cancelling asks; the answer decides, and may be late."""
        caller, callee = Connection(Role.CALLER), Connection(Role.CALLEE)
        call_id, wire = caller.start_call("m", {})
        feed(callee, wire, caller.cancel_call(call_id))
        assert callee.is_running(call_id)
        assert caller.is_running(call_id)

        (failed,) = feed(caller, callee.send_error(call_id, ExhaustedError("m", vm="v")))

        assert isinstance(failed, CallFailed)
        assert isinstance(failed.error, ExhaustedError)
        assert failed.error.vm == "v"

    def test_the_caller_refuses_a_call_that_would_end_the_connection(self) -> None:
        """One call too many is its own error, and the other calls go on."""
        caller, callee = Connection(Role.CALLER), Connection(Role.CALLEE)
        for _ in range(MAX_CALLS):
            feed(callee, caller.start_call("m", {})[1])
        with pytest.raises(ExhaustedError):
            caller.start_call("m", {})

        feed(caller, callee.send_result(1, None))
        call_id, wire = caller.start_call("m", {})

        assert feed(callee, wire) == [CallReceived(call_id, "m", {})]

    @pytest.mark.parametrize("params", [{"k": bytes(MAX_FRAME)}, {"k": object()}, {1: 1}])
    def test_a_call_that_cannot_be_sent_has_not_begun(self, params: dict[Any, Any]) -> None:
        """Its id stays free and nothing is kept of it."""
        caller = Connection(Role.CALLER)
        with pytest.raises(ProtocolError):
            caller.start_call("m", params)

        assert caller.start_call("m", {})[0] == 1
        assert state_of(caller) == (1, 0, 0)

    def test_an_answer_that_cannot_be_sent_can_be_replaced(self, callee: Connection) -> None:
        """A call stays unanswered until an answer was really made."""
        with pytest.raises(ProtocolError):
            callee.send_result(1, bytes(MAX_FRAME))
        assert callee.is_running(1)

        assert callee.send_error(1, InternalError("m"))
        assert not callee.is_running(1)

    @pytest.mark.parametrize(
        "detail",
        [object(), {1, 2}, {1: 1}, bytes(MAX_FRAME), [None] * 2**17, "\ud800", nested_lists(99)],
        ids=["object", "set", "bad key", "too long", "too many", "surrogate", "too deep"],
    )
    def test_an_error_whose_detail_cannot_be_sent_is_sent_without_it(
        self, caller: Connection, callee: Connection, detail: Any
    ) -> None:
        """A failed call is always answered, and the error keeps its class and its words."""
        error = GuestError("no such luck", vm="v", state="s", required="r", hint="h", more=detail)

        (failed,) = feed(caller, callee.send_error(1, error))

        assert isinstance(failed, CallFailed)
        assert parts(failed.error) == (
            GuestError,
            "no such luck",
            "no such luck",
            "v",
            "s",
            "r",
            "h",
            {},
        )
        assert not callee.is_running(1)

    @pytest.mark.parametrize("text", ["x" * 2 * MAX_FRAME, "\udcff" * MAX_FRAME, "\ud800"])
    def test_an_error_that_is_too_long_is_shortened(
        self, caller: Connection, callee: Connection, text: str
    ) -> None:
        """Neither the message nor a field is so long that no answer comes."""
        (failed,) = feed(caller, callee.send_error(1, GuestError(text, vm=text, hint=text)))

        assert isinstance(failed, CallFailed)
        assert isinstance(failed.error, GuestError)
        assert failed.error.message[:1] == text[:1].encode(errors="backslashreplace").decode()[:1]
        assert len(failed.error.message) < MAX_FRAME // 4

    def test_a_notification_cannot_be_diverted_to_another_call(self, caller: Connection) -> None:
        """The call is named by the connection and not by the parameters."""
        with pytest.raises(ValueError, match="id"):
            caller.notify(1, "x", {"id": 2})


class TestStreams:
    def test_no_bytes_make_no_frame(self, caller: Connection) -> None:
        """Sending nothing sends nothing, also when the call is over."""
        assert caller.send_data(1, "c", b"") == b""
        feed(caller, encode_frame(Result(1, None).to_wire()))

        assert caller.send_data(1, "c", b"") == b""

    def test_nothing_can_be_sent_when_the_call_is_over(self, caller: Connection) -> None:
        """The window of a finished call is shut."""
        feed(caller, encode_frame(Result(1, None).to_wire()))
        assert caller.send_window(1, "c") == 0

        with pytest.raises(ValueError, match="window of 0"):
            caller.send_data(1, "c", b"x")

    def test_data_that_could_not_be_sent_leaves_the_window_alone(self) -> None:
        """Credit is spent on frames, not on attempts."""
        caller = Connection(Role.CALLER, max_frame=1000)
        caller.start_call("m", {})
        with pytest.raises(ProtocolError):
            caller.send_data(1, "c", bytes(1000))

        assert caller.send_window(1, "c") == WINDOW

    def test_the_largest_chunk_fits_into_a_frame(self) -> None:
        """With the longest name there may be, and the largest id."""
        chunk = data(2**53 - 1, "\U0001f680" * MAX_CHANNEL_NAME, bytes(MAX_CHUNK))

        assert len(chunk) <= MAX_FRAME

    def test_credit_is_saved_up_to_half_a_window(self, callee: Connection) -> None:
        """Small reads cost no frames, and the sender never runs dry for them."""
        feed(callee, *[data(1, "c", bytes(MAX_CHUNK))] * (WINDOW // MAX_CHUNK))
        assert callee.consumed(1, "c", WINDOW // 2 - 1) == b""

        credit = callee.consumed(1, "c", 1)

        assert credit == note("stream.credit", id=1, channel="c", size=WINDOW // 2)
        assert callee.consumed(1, "c", 1) == b""

    def test_given_credit_can_be_drawn_on(self, callee: Connection) -> None:
        """The receiver lets in as much as it gave back, and no more."""
        chunk = data(1, "c", bytes(MAX_CHUNK))
        half = WINDOW // MAX_CHUNK // 2
        feed(callee, *[chunk] * 2 * half)
        callee.consumed(1, "c", WINDOW // 2)
        feed(callee, *[chunk] * half)

        with pytest.raises(ProtocolError, match="overdraw"):
            feed(callee, data(1, "c", b"x"))

    def test_a_finished_call_takes_no_credit(self, callee: Connection) -> None:
        """What is read after the answer costs no frame."""
        feed(callee, *[data(1, "c", bytes(MAX_CHUNK))] * (WINDOW // MAX_CHUNK))
        callee.send_result(1, None)

        assert callee.consumed(1, "c", WINDOW) == b""

    @given(st.integers(1, 3), st.data())
    def test_progress_of_the_wire_is_seen_in_frames(self, count: int, data: st.DataObject) -> None:
        """A slow peer is told from a silent one by whole frames, and by a part of one."""
        callee = Connection(Role.CALLEE)
        stream = b"".join(map(request, range(1, count + 1)))
        size = data.draw(st.integers(0, len(stream)))
        feed(callee, stream[:size])
        each = len(stream) // count

        assert callee.frames_received == size // each
        assert callee.in_frame is (size % each > 0)
