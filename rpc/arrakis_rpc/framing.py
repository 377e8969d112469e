"""Length-prefixed msgpack frames: four bytes of length, big-endian, then the body.

The caps are what stands between a hostile peer and the host's memory: a frame's length
is refused before its body is read, and a body is measured before any of it is unpacked.
The unpacker's own caps do not suffice. They hold for each container by itself, and it
makes room for what a container announces: a few kilobytes of nested headers would cost
it hundreds of megabytes.

Text that is not UTF-8 (a file name in a guest may be any bytes) travels unharmed as
surrogate escapes, as in :func:`os.fsdecode`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgpack

from .errors import ProtocolError

MAX_FRAME = 1024 * 1024
MAX_ITEMS = 131_072
MAX_NESTING = 16
_HEADER = 4

# By a value's first byte: how many bytes follow it; or in how many bytes their number
# follows; or in how many bytes the number of a container's entries follows, and whether it
# is a map.
_FIXED = [-1] * 0x100
for _head in (*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)):
    _FIXED[_head] = 0
for _length in range(32):
    _FIXED[0xA0 + _length] = _length
for _width, _heads in {
    1: (0xCC, 0xD0),
    2: (0xCD, 0xD1),
    4: (0xCE, 0xD2, 0xCA),
    8: (0xCF, 0xD3, 0xCB),
}.items():
    for _head in _heads:
        _FIXED[_head] = _width
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_CONTAINERS = {0xDC: (2, False), 0xDD: (4, False), 0xDE: (2, True), 0xDF: (4, True)} | {
    **dict.fromkeys(range(0x80, 0x90), (0, True)),
    **dict.fromkeys(range(0x90, 0xA0), (0, False)),
}
_SIZED_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}


def encode_frame(message: object, max_frame: int = MAX_FRAME) -> bytes:
    """Pack one message into a frame.

    Raises `ProtocolError` for what the peer would refuse: a body above ``max_frame``
    bytes, a value that msgpack cannot carry, or one outside the caps.
    """
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="surrogateescape")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"message cannot be encoded: {error}") from error
    if len(body) > max_frame:
        raise ProtocolError(f"message of {len(body)} bytes is above the limit of {max_frame}")
    _measure(body)
    return len(body).to_bytes(_HEADER, "big") + body


def decode_body(body: bytes | memoryview) -> Any:
    """Unpack one frame's body, within the caps.

    Raises `ProtocolError` for anything but exactly one well-formed msgpack value without
    extension types, whose maps have text keys.
    """
    _measure(body)
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            unicode_errors="surrogateescape",
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"frame is not msgpack: {type(error).__name__}: {error}") from error


def _measure(body: bytes | memoryview) -> None:
    """Walk over a body without unpacking it; raise `ProtocolError` if it breaks a rule.

    Keys are text and nothing else: that is all JSON-RPC knows, and Python's hash of text is
    keyed, so that a peer cannot choose keys which collide.
    """
    position = items = 0
    entries, is_map = 1, False
    outer: list[tuple[int, bool]] = []
    try:
        while True:
            while entries:
                entries -= 1
                if is_map:
                    head = body[position]
                    if 0xA0 <= head < 0xC0:
                        position += head - 0x9F
                    else:
                        position = _after_long_key(body, position)
                head = body[position]
                position += 1
                length = _FIXED[head]
                if length >= 0:
                    position += length
                elif head in _SIZED:
                    width = _SIZED[head]
                    position += width + int.from_bytes(body[position : position + width], "big")
                elif head in _CONTAINERS:
                    outer.append((entries, is_map))
                    width, is_map = _CONTAINERS[head]
                    entries = head & 0x0F
                    if width:
                        entries = int.from_bytes(body[position : position + width], "big")
                        position += width
                    items += entries * (1 + is_map)
                    if items > MAX_ITEMS:
                        raise ProtocolError(f"frame has more than {MAX_ITEMS} values")
                    if entries and len(outer) >= MAX_NESTING:
                        raise ProtocolError(f"frame is nested deeper than {MAX_NESTING} levels")
                else:
                    raise ProtocolError(
                        f"frame has a value of type {head:#x}, which is not allowed"
                    )
            if not outer:
                break
            entries, is_map = outer.pop()
    except IndexError:
        raise ProtocolError("frame is not msgpack: it ends too early") from None
    if position != len(body):
        raise ProtocolError("frame is not msgpack: it does not end with its value")


def _after_long_key(body: bytes | memoryview, position: int) -> int:
    width = _SIZED_TEXT.get(body[position])
    if width is None:
        raise ProtocolError("frame has a map key that is not text")
    position += 1
    return position + width + int.from_bytes(body[position : position + width], "big")


class FrameDecoder:
    """Cuts a byte stream into frame bodies and decodes them."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()
        self._broken = False

    @property
    def in_frame(self) -> bool:
        """Whether part of a frame has arrived and its rest has not."""
        return bool(self._buffer)

    def take_rest(self) -> bytes:
        """Give back what was fed and is not decoded yet. Legal while no `feed` is under way."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def feed(self, data: bytes | bytearray | memoryview) -> Generator[Any, None, None]:
        """Take received bytes; yield each message that is now complete.

        Raises `ProtocolError` for an oversized or malformed frame. The stream is then
        beyond repair, its boundaries are lost: whatever else is fed is refused and not kept.
        """
        if self._broken:
            raise ProtocolError("this stream was given up after a malformed frame")
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
                message = decode_body(body)
                yield message
        except ProtocolError:
            self._broken = True
            start = len(self._buffer)
            raise
        finally:
            del self._buffer[:start]
