"""What the tests of the protocol draw: wire values, broken msgpack, cuts of a byte stream."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
from hypothesis import strategies as st

import arrakis_rpc.errors
from arrakis_rpc.errors import ArrakisError, ProtocolError
from arrakis_rpc.framing import FrameDecoder

# Text as it comes from the wire: any bytes, those that are not UTF-8 escaped.
texts = st.text(max_size=20) | st.binary(max_size=20).map(
    lambda name: name.decode("utf-8", "surrogateescape")
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts
    | st.binary(max_size=40)
)

values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)

maps = st.dictionaries(texts, values, max_size=4)


def _nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = None
    for _ in range(depth):
        value = wrap(value)
    return value


def nested_lists(depth: int) -> Any:
    """``depth`` lists in one another, the innermost not empty."""
    return _nested(depth, lambda value: [value])


def nested_maps(depth: int) -> Any:
    """``depth`` maps in one another, the innermost not empty."""
    return _nested(depth, lambda value: {"k": value})


def same(one: object, other: object) -> bool:
    """Equality that knows 1, 1.0 and True apart, and takes NaN for itself."""
    return repr(one) == repr(other)


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut data into chunks, some of them empty perhaps."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def _headers(codes: str, number: int, short: int = 0) -> st.SearchStrategy[bytes]:
    """Headers that announce a number: in the given codes for 8, 16 and 32 bits, or in one byte."""
    forms = [bytes([short + number])] if short and number < 16 else []
    for code, width in zip(bytes.fromhex(codes), (1, 2, 4)[-len(codes) // 2 :], strict=True):
        if number < 256**width:
            forms.append(bytes([code]) + number.to_bytes(width, "big"))
    return st.sampled_from(forms)


_numbers = st.integers(0, 3) | st.sampled_from([15, 16, 31, 255, 65535, 65536, 2**31, 2**32 - 1])

# Pieces of msgpack that may or may not fit together: every type, counts true and false.
tokens = st.one_of(
    st.binary(min_size=1, max_size=1),
    st.integers(0, 3).map(lambda count: bytes([0x80 + count])),
    st.integers(0, 3).map(lambda count: bytes([0x90 + count])),
    st.sampled_from([b"\xa0", b"\xa1k", b"\xa2\xff\xfe", b"\xd9\x01k", b"\xda\x00\x01k"]),
    st.sampled_from([b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x7f", b"\xff", b"\xc1"]),
    st.sampled_from([b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf0" + bytes(6), b"\xcf" + b"\xff" * 8]),
    st.sampled_from([b"\xc4\x01x", b"\xc5\x00\x01x", b"\xc6\x00\x00\x00\x01x"]),
    st.sampled_from([b"\xd4\x05x", b"\xd6\xff" + bytes(4), b"\xc7\x00\x05", b"\xc7\x0c\xff"]),
    _numbers.flatmap(lambda number: _headers("dcdd", number)),
    _numbers.flatmap(lambda number: _headers("dedf", number)),
    _numbers.flatmap(lambda number: _headers("c4c5c6", number)),
    _numbers.flatmap(lambda number: _headers("d9dadb", number)),
)

soups = st.lists(tokens, max_size=12).map(b"".join) | st.binary(max_size=60)


def _pack(value: object) -> bytes:
    body: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return body


_keys = st.sampled_from([b"\xa1a", b"\xa1b", b"\xd9\x00", b"\xda\x00\x01\xff", b"\xdb" + bytes(4)])


@st.composite
def _containers(draw: st.DrawFn, inner: st.SearchStrategy[bytes]) -> bytes:
    entries = draw(st.lists(inner, max_size=3))
    if draw(st.booleans()):
        return draw(_headers("dcdd", len(entries), 0x90)) + b"".join(entries)
    odd_key = draw(st.integers(0, 9)) == 0
    pairs = [draw(inner if odd_key else _keys) + entry for entry in entries]
    return draw(_headers("dedf", len(entries), 0x80)) + b"".join(pairs)


# Bodies that are well-formed in all but a few cases, their headers wider than they need be.
bodies = st.recursive(tokens | scalars.map(_pack), _containers, max_leaves=6)


ERRORS = [
    cls
    for cls in vars(arrakis_rpc.errors).values()
    if isinstance(cls, type) and issubclass(cls, ArrakisError)
]


def parts(error: ArrakisError) -> tuple[Any, ...]:
    """All that an error carries."""
    return (
        type(error),
        error.message,
        str(error),
        error.vm,
        error.state,
        error.required,
        error.hint,
        error.detail,
    )


def frame(body: bytes) -> bytes:
    """Put a length before a body, whatever it is."""
    return len(body).to_bytes(4, "big") + body


def decode_all(chunks: Iterator[bytes] | list[bytes]) -> tuple[list[Any], ProtocolError | None]:
    """Feed chunks to a decoder; give its messages, and the error that ended it."""
    decoder = FrameDecoder()
    messages: list[Any] = []
    try:
        for chunk in chunks:
            messages.extend(decoder.feed(chunk))
    except ProtocolError as error:
        return messages, error
    return messages, None


def peak_memory(action: Callable[[], object]) -> int:
    """Bytes of memory that an action needs at its peak."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
