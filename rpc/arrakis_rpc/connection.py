"""One end of a conversation, sans-IO.

The *caller* makes calls, the *callee* answers them; each call may carry byte streams in
both directions while it runs. What the other end sent comes out of `receive` as events;
what this end wants to say comes out of the other methods as bytes to be written, in order.

Streams are named channels of a call ("stdout", "stdin", "data"...). Each has a credit
window: a sender may have `WINDOW` bytes under way, and gets credit back when the receiver
has *consumed* them. So one slow reader holds up its own stream, never the others on the
same connection, and memory per stream is bounded at both ends. A peer that overdraws its
credit breaks the protocol.

Besides the data, notifications that belong to a call ("exec.resize", "call.progress")
pass through in both directions.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import Any, TypeAlias

from attrs import Factory, define, frozen

from .envelope import Failure, Notification, Request, Result, parse_envelope
from .errors import DATA_FIELDS, ArrakisError, ExhaustedError, ProtocolError, error_from_wire
from .framing import MAX_FRAME, FrameDecoder, encode_frame

WINDOW = 1024 * 1024
MAX_CHUNK = 128 * 1024
MAX_CALLS = 256
MAX_CHANNELS = 8
MAX_CHANNEL_NAME = 64

_LONGEST_TEXT = 4096

_CANCEL = "call.cancel"
_DATA = "stream.data"
_END = "stream.end"
_CREDIT = "stream.credit"


class Role(Enum):
    """Which end of the conversation this is."""

    CALLER = "caller"
    CALLEE = "callee"


@frozen
class CallReceived:
    """The caller wants ``method`` done."""

    call_id: int
    method: str
    params: dict[str, Any]


@frozen
class CallCancelled:
    """The caller no longer wants the answer."""

    call_id: int


@frozen
class CallSucceeded:
    """The callee answered; the call is over."""

    call_id: int
    result: Any


@frozen
class CallFailed:
    """The callee answered with an error; the call is over."""

    call_id: int
    error: ArrakisError


@frozen
class DataReceived:
    """Bytes of a channel. Give them back with `Connection.consumed` when used."""

    call_id: int
    channel: str
    data: bytes


@frozen
class StreamEnded:
    """The other end will send no more on this channel."""

    call_id: int
    channel: str


@frozen
class CreditReceived:
    """This end may send more on a channel."""

    call_id: int
    channel: str


@frozen
class CallNotified:
    """A notification that belongs to a running call."""

    call_id: int
    method: str
    params: dict[str, Any]


Event: TypeAlias = (
    CallReceived
    | CallCancelled
    | CallSucceeded
    | CallFailed
    | DataReceived
    | StreamEnded
    | CreditReceived
    | CallNotified
)


@define
class _Call:
    send_window: dict[str, int] = Factory(dict)
    receive_window: dict[str, int] = Factory(dict)
    to_credit: dict[str, int] = Factory(dict)
    ended: set[str] = Factory(set)


class Connection:
    """The state of one end: its running calls and their windows."""

    def __init__(self, role: Role, max_frame: int = MAX_FRAME) -> None:
        self.role = role
        self._max_frame = max_frame
        self._decoder = FrameDecoder(max_frame)
        self._calls: dict[int, _Call] = {}
        self._last_id = 0
        self.frames_received = 0

    @property
    def in_frame(self) -> bool:
        """Whether part of a frame has arrived and its rest has not."""
        return self._decoder.in_frame

    # Caller

    def start_call(self, method: str, params: dict[str, Any]) -> tuple[int, bytes]:
        """Begin a call; give its id and the bytes to send.

        Raises `ExhaustedError` when as many calls run as the other end allows: one more
        would end the connection, and with it all the others.
        """
        if len(self._calls) >= MAX_CALLS:
            raise ExhaustedError(f"{MAX_CALLS} calls are running on this connection already")
        frame = encode_frame(Request(self._last_id + 1, method, params).to_wire(), self._max_frame)
        self._last_id += 1
        self._calls[self._last_id] = _Call()
        return self._last_id, frame

    def cancel_call(self, call_id: int) -> bytes:
        """Ask that a call be given up. Its answer, usually an error, still comes."""
        return self.notify(call_id, _CANCEL, {})

    # Callee

    def send_result(self, call_id: int, result: Any) -> bytes:
        """Answer a call. Its streams end with it."""
        frame = encode_frame(Result(call_id, result).to_wire(), self._max_frame)
        self._calls.pop(call_id, None)
        return frame

    def send_error(self, call_id: int, error: ArrakisError) -> bytes:
        """Answer a call with an error. Its streams end with it.

        An error that cannot be sent as it is, for what its detail holds or for its size, is
        sent without detail and shortened: a call that failed must not go unanswered.
        """
        try:
            frame = encode_frame(Failure(call_id, error).to_wire(), self._max_frame)
        except ProtocolError:
            frame = encode_frame(Failure(call_id, _shortened(error)).to_wire(), self._max_frame)
        self._calls.pop(call_id, None)
        return frame

    # Both

    def is_running(self, call_id: int) -> bool:
        """Whether the call has been neither answered nor forgotten."""
        return call_id in self._calls

    def send_window(self, call_id: int, channel: str) -> int:
        """How many bytes may be sent on a channel now; 0 for a call that is over."""
        call = self._calls.get(call_id)
        return call.send_window.get(channel, WINDOW) if call else 0

    def send_data(self, call_id: int, channel: str, data: bytes) -> bytes:
        """Send bytes on a channel: at most `MAX_CHUNK`, and no more than its window."""
        window = self.send_window(call_id, channel)
        if len(data) > min(window, MAX_CHUNK):
            raise ValueError(f"{len(data)} bytes exceed the window of {window} or the chunk size")
        if not data:
            return b""
        frame = self.notify(call_id, _DATA, {"channel": channel, "data": data})
        self._calls[call_id].send_window[channel] = window - len(data)
        return frame

    def end_stream(self, call_id: int, channel: str) -> bytes:
        """Say that no more will be sent on a channel."""
        return self.notify(call_id, _END, {"channel": channel})

    def consumed(self, call_id: int, channel: str, size: int) -> bytes:
        """Note that received bytes are used up; give the credit to send, often nothing.

        Credit is saved up to half a window, so that it costs few frames.
        """
        call = self._calls.get(call_id)
        if call is None:
            return b""
        total = call.to_credit.get(channel, 0) + size
        if total < WINDOW // 2:
            call.to_credit[channel] = total
            return b""
        call.to_credit[channel] = 0
        call.receive_window[channel] = call.receive_window.get(channel, WINDOW) + total
        return self.notify(call_id, _CREDIT, {"channel": channel, "size": total})

    def notify(self, call_id: int, method: str, params: dict[str, Any]) -> bytes:
        """Send a notification that belongs to a running call."""
        if "id" in params:
            raise ValueError("'id' is not free for parameters of a notification: it names the call")
        message = Notification(method, {"id": call_id, **params})
        return encode_frame(message.to_wire(), self._max_frame)

    def receive(self, data: bytes | bytearray | memoryview) -> Generator[Event, None, None]:
        """Take received bytes; yield what they mean.

        Raises `ProtocolError` when the peer breaks the rules; the connection must then
        be closed. Who closes the generator in the middle finds the rest with `take_rest`.
        """
        for message in self._decoder.feed(data):
            self.frames_received += 1
            match parse_envelope(message):
                case Request(call_id, method, params):
                    yield self._receive_request(call_id, method, params)
                case Result(call_id, result):
                    self._finish(call_id)
                    yield CallSucceeded(call_id, result)
                case Failure(call_id, error):
                    self._finish(call_id)
                    yield CallFailed(call_id, error)
                case Notification(method, params):
                    event = self._receive_notification(method, params)
                    if event is not None:
                        yield event

    def take_rest(self) -> bytes:
        """Give back what was received and is not looked at yet, once `receive` was closed."""
        return self._decoder.take_rest()

    def _receive_request(self, call_id: int, method: str, params: dict[str, Any]) -> Event:
        if self.role is not Role.CALLEE:
            raise ProtocolError("this end answers no calls")
        if call_id <= self._last_id:
            raise ProtocolError(f"call id {call_id} does not count up")
        if len(self._calls) >= MAX_CALLS:
            raise ProtocolError(f"more than {MAX_CALLS} calls at once")
        self._last_id = call_id
        self._calls[call_id] = _Call()
        return CallReceived(call_id, method, params)

    def _finish(self, call_id: int) -> None:
        if self.role is not Role.CALLER or self._calls.pop(call_id, None) is None:
            raise ProtocolError(f"answer to call {call_id}, which is not running")

    def _receive_notification(self, method: str, params: dict[str, Any]) -> Event | None:
        call_id = params.pop("id", None)
        if type(call_id) is not int or not 0 < call_id <= self._last_id:
            raise ProtocolError(f"{method} names no call")
        call = self._calls.get(call_id)
        if call is None:
            return None  # it crossed the answer on the wire
        if method == _CANCEL:
            if self.role is not Role.CALLEE:
                raise ProtocolError("only the caller cancels")
            return CallCancelled(call_id)
        if method not in (_DATA, _END, _CREDIT):
            return CallNotified(call_id, method, params)
        channel = params.get("channel")
        if type(channel) is not str:
            raise ProtocolError(f"{method} names no channel")
        if len(channel) > MAX_CHANNEL_NAME:
            raise ProtocolError(f"channel name of {len(channel)} characters")
        if method == _CREDIT:
            return self._receive_credit(call, call_id, channel, params.get("size"))
        return self._receive_stream(call, call_id, channel, params.get("data"), method == _END)

    def _receive_credit(self, call: _Call, call_id: int, channel: str, size: object) -> Event:
        window = call.send_window.get(channel)
        if type(size) is not int or window is None or not 0 < size <= WINDOW - window:
            raise ProtocolError("credit for more than was sent")
        call.send_window[channel] = window + size
        return CreditReceived(call_id, channel)

    def _receive_stream(
        self, call: _Call, call_id: int, channel: str, data: object, end: bool
    ) -> Event | None:
        if channel in call.ended:
            raise ProtocolError(f"channel {channel!r} was ended before")
        if channel not in call.receive_window and len(call.receive_window) >= MAX_CHANNELS:
            raise ProtocolError(f"more than {MAX_CHANNELS} channels in one call")
        window = call.receive_window.setdefault(channel, WINDOW)
        if end:
            call.ended.add(channel)
            return StreamEnded(call_id, channel)
        if type(data) is not bytes:
            raise ProtocolError("stream data is not binary")
        if len(data) > window:
            raise ProtocolError(f"{len(data)} bytes overdraw the window of {window}")
        if not data:
            return None  # costs no credit, so nothing would bound the events of it
        call.receive_window[channel] = window - len(data)
        return DataReceived(call_id, channel, data)


def _shortened(error: ArrakisError) -> ArrakisError:
    def text(value: object) -> str:
        return str(value)[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()

    fields = {name: text(value) for name in DATA_FIELDS if (value := getattr(error, name))}
    return error_from_wire({"code": error.code, "message": text(error.message), "data": fields})
