"""JSON-RPC 2.0 envelopes: what a frame may hold.

Ids are positive integers, counted up by the caller. Batches are not part of this
protocol; frames are cheap.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from attrs import frozen

from .errors import ArrakisError, ProtocolError, error_from_wire

_MAX_ID = 2**53


@frozen
class Request:
    """A call that wants an answer."""

    id: int
    method: str
    params: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """Give the message as it is packed."""
        return {"jsonrpc": "2.0", "id": self.id, "method": self.method, "params": self.params}


@frozen
class Notification:
    """A message that wants no answer: stream data, credit, cancellation, progress."""

    method: str
    params: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """Give the message as it is packed."""
        return {"jsonrpc": "2.0", "method": self.method, "params": self.params}


@frozen
class Result:
    """The answer to a call that succeeded."""

    id: int
    result: Any

    def to_wire(self) -> dict[str, Any]:
        """Give the message as it is packed."""
        return {"jsonrpc": "2.0", "id": self.id, "result": self.result}


@frozen
class Failure:
    """The answer to a call that failed."""

    id: int
    error: ArrakisError

    def to_wire(self) -> dict[str, Any]:
        """Give the message as it is packed."""
        return {"jsonrpc": "2.0", "id": self.id, "error": self.error.to_wire()}


Envelope: TypeAlias = Request | Notification | Result | Failure


def parse_envelope(message: object) -> Envelope:
    """Recognise a decoded frame; raise `ProtocolError` for anything else than an envelope."""
    if type(message) is not dict or message.get("jsonrpc") != "2.0":
        raise ProtocolError("frame is not a JSON-RPC 2.0 message")
    keys = message.keys() - {"jsonrpc"}
    if keys == {"id", "method", "params"}:
        return Request(_id(message), _method(message), _params(message))
    if keys == {"method", "params"}:
        return Notification(_method(message), _params(message))
    if keys == {"id", "result"}:
        return Result(_id(message), message["result"])
    if keys == {"id", "error"}:
        error = message["error"]
        if type(error) is not dict:
            raise ProtocolError("error member is not a map")
        return Failure(_id(message), error_from_wire(error))
    raise ProtocolError(f"unexpected members: {', '.join(sorted(map(str, keys)))[:200]}")


def _id(message: dict[str, Any]) -> int:
    value = message["id"]
    if type(value) is not int or not 0 < value < _MAX_ID:
        raise ProtocolError("id is not a positive integer")
    return value


def _method(message: dict[str, Any]) -> str:
    value = message["method"]
    if type(value) is not str:
        raise ProtocolError("method is not text")
    return value


def _params(message: dict[str, Any]) -> dict[str, Any]:
    value = message["params"]
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise ProtocolError("params is not a map with text keys")
    return value
