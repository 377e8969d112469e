"""Length-prefixed msgpack frames: four bytes of length, big-endian, then the body.

The caps are what stands between a hostile peer and the host's memory: a frame's length
is refused before its body is read, containers are capped while they are unpacked, and
nesting is capped after it (the unpacker itself stops at a fixed stack of its own).

Text that is not UTF-8 (a file name in a guest may be any bytes) travels unharmed as
surrogate escapes, as in :func:`os.fsdecode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from .errors import ProtocolError

MAX_FRAME = 1024 * 1024
MAX_ITEMS = 65_536
MAX_NESTING = 16
_HEADER = 4


def encode_frame(message: object, max_frame: int = MAX_FRAME) -> bytes:
    """Pack one message into a frame.

    Raises `ProtocolError` for what the peer would refuse: a body above ``max_frame``
    bytes, or a value that msgpack cannot carry.
    """
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="surrogateescape")
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"message cannot be encoded: {error}") from error
    if len(body) > max_frame:
        raise ProtocolError(f"message of {len(body)} bytes is above the limit of {max_frame}")
    return len(body).to_bytes(_HEADER, "big") + body


def decode_body(body: bytes | memoryview) -> Any:
    """Unpack one frame's body, within the caps.

    Raises `ProtocolError` for anything but exactly one well-formed msgpack value.
    """
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=False,
            unicode_errors="surrogateescape",
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"frame is not msgpack: {type(error).__name__}: {error}") from error
    _check_nesting(message)
    return message


def _check_nesting(message: object) -> None:
    level: list[object] = [message]
    for _ in range(MAX_NESTING):
        below: list[object] = []
        for value in level:
            if type(value) is dict:
                below.extend(value.values())
            elif type(value) is list:
                below.extend(value)
        if not below:
            return
        level = below
    raise ProtocolError(f"frame is nested deeper than {MAX_NESTING} levels")


class FrameDecoder:
    """Cuts a byte stream into frame bodies and decodes them."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()

    @property
    def in_frame(self) -> bool:
        """Whether part of a frame has arrived and its rest has not."""
        return bool(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Any]:
        """Take received bytes; yield each message that is now complete.

        Raises `ProtocolError` for an oversized or malformed frame. The stream is then
        beyond repair: its boundaries are lost.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER:
                length = int.from_bytes(self._buffer[start : start + _HEADER], "big")
                if length > self._max_frame:
                    raise ProtocolError(
                        f"frame of {length} bytes announced, the limit is {self._max_frame}"
                    )
                end = start + _HEADER + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[start + _HEADER : end])
                start = end
                yield decode_body(body)
        finally:
            del self._buffer[:start]
