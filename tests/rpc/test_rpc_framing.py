"""Frames: what goes in comes out, and nothing hostile costs more than an error."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rpc_strategies import (
    bodies,
    cuts,
    decode_all,
    frame,
    nested_lists,
    nested_maps,
    peak_memory,
    same,
    soups,
    texts,
    values,
)

import arrakis_rpc
from arrakis_rpc.errors import ProtocolError
from arrakis_rpc.framing import (
    MAX_FRAME,
    MAX_ITEMS,
    MAX_NESTING,
    FrameDecoder,
    decode_body,
    encode_frame,
)

MIB = 1024 * 1024


class TestRoundTrip:
    @given(st.lists(values, max_size=5), st.data())
    def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(
        self, messages: list[Any], data: st.DataObject
    ) -> None:
        """Chunk borders are invisible to whoever reads messages."""
        stream = b"".join(map(encode_frame, messages))

        received, error = decode_all(data.draw(cuts(stream)))

        assert error is None
        assert same(received, messages)

    @given(values, values)
    def test_messages_come_out_as_they_went_in_byte_by_byte(self, one: Any, other: Any) -> None:
        """A message appears with its last byte, not before and not after."""
        first, second = encode_frame(one), encode_frame(other)
        decoder = FrameDecoder()
        appeared: list[tuple[int, str]] = []
        for position, byte in enumerate(first + second, 1):
            appeared.extend((position, repr(message)) for message in decoder.feed(bytes([byte])))
            assert decoder.in_frame is (position not in (len(first), len(first + second)))

        assert appeared == [(len(first), repr(one)), (len(first + second), repr(other))]

    @given(st.binary())
    def test_names_that_are_not_utf8_survive(self, name: bytes) -> None:
        """Any bytes travel as text, as a value and as a key, and come back the same bytes."""
        text = name.decode("utf-8", "surrogateescape")

        (message,) = FrameDecoder().feed(encode_frame({text: text}))

        assert [
            (key.encode("utf-8", "surrogateescape"), value) for key, value in message.items()
        ] == [(name, text)]

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_every_kind_of_buffer_can_be_fed(self, kind: type) -> None:
        """What a socket fills is accepted as it is."""
        assert list(FrameDecoder().feed(kind(encode_frame([1])))) == [[1]]

    def test_a_reader_may_stop_after_a_message_and_go_on_later(self) -> None:
        """Messages that were not asked for yet are kept, not lost and not repeated."""
        decoder = FrameDecoder()
        messages = decoder.feed(encode_frame(1) + encode_frame(2) + encode_frame(3)[:-1])
        assert next(messages) == 1
        del messages

        assert list(decoder.feed(encode_frame(3)[-1:])) == [2, 3]


unpackable = st.builds(nested_lists, st.sampled_from([MAX_NESTING, 2000])) | st.sampled_from(
    [
        object(),
        {1, 2},
        msgpack.ExtType(5, b""),
        msgpack.ExtType(5, b"data"),
        msgpack.Timestamp(1, 2),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        2**64,
        -(2**63) - 1,
        "\ud800",
        {1: "a key that is not text"},
        {b"k": 1},
        {None: 1},
        {(1, 2): 1},
        nested_maps(MAX_NESTING),
    ]
)


_PURE_PYTHON = r"""
import msgpack.fallback
from arrakis_rpc import framing

assert framing.msgpack.Packer is msgpack.fallback.Packer
message = {"\udcff": [1.5, b""]}
assert framing.decode_body(framing.encode_frame(message)[4:]) == message
endless = []
endless.append(endless)
for action, value in [
    (framing.encode_frame, endless),
    (framing.decode_body, b"\x81\x90\xc0"),
    (framing.decode_body, b"\x91" * 9999),
    (framing.decode_body, b"\xc1"),
]:
    try:
        action(value)
    except framing.ProtocolError:
        print("refused")
"""


class TestSender:
    @given(
        st.recursive(
            values | unpackable,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
            max_leaves=8,
        )
    )
    def test_what_can_be_encoded_can_be_decoded(self, message: Any) -> None:
        """A sender learns of a bad message by an error of its own, not by a lost connection."""
        try:
            encoded = encode_frame(message)
        except ProtocolError:
            return
        received, error = decode_all([encoded])

        assert error is None
        assert same(received, [message])

    @given(unpackable)
    def test_what_msgpack_or_the_caps_exclude_is_refused(self, message: Any) -> None:
        """Every such value is a `ProtocolError`, also inside of something else."""
        for hidden in (message, [message], {"k": message}):
            with pytest.raises(ProtocolError):
                encode_frame(hidden)

    def test_a_value_that_contains_itself_is_refused(self) -> None:
        """Endless nesting ends in an error."""
        endless: list[Any] = []
        endless.append(endless)

        with pytest.raises(ProtocolError):
            encode_frame(endless)

    def test_msgpack_without_its_extension_module_refuses_the_same(self) -> None:
        """Where it is pure Python it runs into Python's own limits, and that is no exception."""
        environment = os.environ | {
            "MSGPACK_PUREPYTHON": "1",
            "PYTHONPATH": str(Path(arrakis_rpc.__file__).parent.parent),
        }
        run = subprocess.run(
            [sys.executable, "-c", _PURE_PYTHON], env=environment, capture_output=True, text=True
        )

        assert (run.stdout.split(), run.stderr) == (["refused"] * 4, "")

    @given(st.integers(0, 300))
    def test_the_limit_is_the_same_at_both_ends(self, limit: int) -> None:
        """The longest body that one end sends is the longest that the other takes."""
        body = b"x" * limit
        for size in range(max(limit - 4, 0), limit + 1):
            message = body[:size]
            packed = msgpack.packb(message)
            decoder = FrameDecoder(limit)
            if len(packed) <= limit:
                assert list(decoder.feed(encode_frame(message, limit))) == [message]
            else:
                with pytest.raises(ProtocolError, match="limit"):
                    encode_frame(message, limit)
                with pytest.raises(ProtocolError, match="limit"):
                    list(decoder.feed(frame(packed)))


def _allowed(body: bytes) -> tuple[bool, Any]:
    """Say whether a body is allowed, by unpacking all of it first: right, but not safe."""

    class Pairs(list[Any]):
        pass

    def refuse_extension(code: int, data: bytes) -> None:
        raise ValueError(code, data)

    def plain(value: Any, level: int = 1) -> Any:
        if level > MAX_NESTING or isinstance(value, msgpack.Timestamp):
            raise ValueError("nesting, or a timestamp")
        if type(value) is Pairs:
            if not all(type(key) is str for key, _ in value):
                raise ValueError("key")
            return {key: plain(inner, level + 1) for key, inner in value}
        if type(value) is list:
            return [plain(inner, level + 1) for inner in value]
        return value

    try:
        value = msgpack.unpackb(
            body,
            object_pairs_hook=Pairs,
            ext_hook=refuse_extension,
            timestamp=0,
            strict_map_key=False,
            unicode_errors="surrogateescape",
        )
        return True, plain(value)
    except (ValueError, TypeError, msgpack.UnpackException):
        return False, None


class TestHostileBytes:
    @settings(max_examples=200)
    @given(soups | bodies)
    def test_a_body_is_accepted_exactly_when_it_is_one_allowed_value(self, body: bytes) -> None:
        """Measuring before unpacking comes to the same verdict as unpacking everything."""
        allowed, expected = _allowed(body)
        if allowed:
            assert same(decode_body(body), expected)
        else:
            with pytest.raises(ProtocolError):
                decode_body(body)

    @pytest.mark.parametrize("filler", [b"\0", b"\1", b"\xa1\xff"])
    def test_every_first_byte_is_judged_right(self, filler: bytes) -> None:
        """All 256 of them, before every number of bytes that might belong to them."""
        for head in range(256):
            for length in range(40):
                body = bytes([head]) + (filler * length)[:length]
                allowed, expected = _allowed(body)
                if allowed:
                    assert same(decode_body(body), expected)
                else:
                    with pytest.raises(ProtocolError):
                        decode_body(body)

    @given(soups | st.lists(soups.map(frame), max_size=4).map(b"".join), st.data())
    def test_random_streams_raise_nothing_but_protocol_errors(
        self, stream: bytes, data: st.DataObject
    ) -> None:
        """Garbage ends a stream and nothing else, the same way however it is cut."""
        whole, error = decode_all([stream])
        pieces, piecewise_error = decode_all(data.draw(cuts(stream)))

        assert same(pieces, whole)
        assert (error is None) is (piecewise_error is None)

    @given(values, st.data())
    def test_a_body_that_is_cut_short_or_goes_on_is_refused(
        self, message: Any, data: st.DataObject
    ) -> None:
        """A frame holds exactly one value: no part of one, and not another byte."""
        body = encode_frame(message)[4:]
        shorter = body[: data.draw(st.integers(0, len(body) - 1))]
        longer = body + data.draw(st.binary(min_size=1, max_size=3))

        for broken in (shorter, longer):
            with pytest.raises(ProtocolError):
                decode_body(broken)

    @pytest.mark.parametrize(
        "body",
        [
            b"\x81\x90\x01",
            b"\x81\x80\x01",
            b"\x81\x91\x01\x01",
            b"\x81\x01\x01",
            b"\x81\xc0\x01",
            b"\x81\xc3\x01",
            b"\x81\xc4\x01k\x01",
            b"\x81\xcb\x7f\xf8" + bytes(6) + b"\x01",
            b"\x91\x82\xa1k\x01\x90\x01",
        ],
        ids=lambda body: body.hex(),
    )
    def test_a_map_key_that_is_not_text_is_refused(self, body: bytes) -> None:
        """Unhashable keys, and keys whose hash a peer could choose, do not get in."""
        with pytest.raises(ProtocolError, match="key"):
            decode_body(body)

    @pytest.mark.parametrize(
        "body",
        [
            b"\xd4\x05x",
            b"\xc7\x00\x05",
            b"\xc7\x00\xff",
            b"\xd6\xff" + bytes(4),
            b"\xd7\xff" + bytes(8),
            b"\xc7\x0c\xff" + bytes(12),
            b"\xc9\xff\xff\xff\xff\x05",
            b"\xc1",
        ],
        ids=lambda body: body.hex(),
    )
    def test_extension_types_and_timestamps_are_refused(self, body: bytes) -> None:
        """The protocol has no types but those of JSON, and binary."""
        with pytest.raises(ProtocolError, match="not allowed"):
            decode_body(body)

    @pytest.mark.parametrize(
        "opening", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\xdf\0\0\0\1\xa0"]
    )
    def test_nesting_is_capped_for_lists_and_maps_alike(self, opening: bytes) -> None:
        """The value at the cap is let in, one level more is not, and a thousand neither."""
        assert decode_body(opening * (MAX_NESTING - 1) + b"\x01")
        assert decode_body(opening * (MAX_NESTING - 1) + b"\x90")
        for depth in (MAX_NESTING, MAX_NESTING + 1, 1000, 100_000):
            with pytest.raises(ProtocolError, match="nested"):
                decode_body(opening * depth + b"\x01")

    def test_values_are_counted_over_the_whole_frame(self) -> None:
        """As many values as the cap are let in, spread over containers, and not one more."""
        half = MAX_ITEMS // 2
        fits = [[None] * (half - 1), [None] * (half - 1)]
        too_many = [[None] * half, [None] * (half - 1)]

        assert decode_body(encode_frame(fits)[4:]) == fits
        with pytest.raises(ProtocolError, match="values"):
            encode_frame(too_many)
        with pytest.raises(ProtocolError, match="values"):
            decode_body(msgpack.packb(too_many))

    def test_the_entries_of_a_map_count_twice(self) -> None:
        """A key is a value too."""
        entries = {str(number): None for number in range(MAX_ITEMS // 2)}
        assert decode_body(encode_frame(entries)[4:]) == entries
        entries["one more"] = None

        with pytest.raises(ProtocolError, match="values"):
            encode_frame(entries)


def _bombs() -> Iterator[tuple[str, bytes]]:
    wide_list, wide_map = b"\xdd\x00\x01\x00\x00", b"\xdf\x00\x00\x80\x00"
    yield "list of 2^32", b"\xdd\xff\xff\xff\xff"
    yield "map of 2^32", b"\xdf\xff\xff\xff\xff"
    yield "binary of 2^32", b"\xc6\xff\xff\xff\xff"
    yield "text of 2^32", b"\xdb\xff\xff\xff\xff"
    yield "extension of 2^32", b"\xc9\xff\xff\xff\xff\x05"
    yield "lists that announce", wide_list * 500
    yield "lists that announce, deep", wide_list * 200_000
    yield "maps that announce", (wide_map + b"\xa0") * 500
    yield "a million maps", b"\xdc\x00\x0f" + (wide_list + b"\x80" * 65536) * 15
    yield "as many maps as go", b"\xdd\x00\x01\xff\xff" + b"\x80" * 131_071
    yield "deep lists", b"\x91" * 1_000_000
    yield "one text", b"\xdb\x00\x0f\xff\xf0" + b"\xff" * 0xFFFF0


class TestMemory:
    @pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in _bombs()])
    def test_no_body_takes_more_than_a_few_megabytes(self, body: bytes) -> None:
        """Whatever a frame announces, its cost is bounded by what was really sent."""
        assert len(body) <= MAX_FRAME

        def decode() -> None:
            with suppress(ProtocolError):
                decode_body(body)

        assert peak_memory(decode) < 16 * MIB

    @pytest.mark.parametrize("size", [5, 500, 5_000])
    def test_a_small_bomb_takes_next_to_nothing(self, size: int) -> None:
        """Memory is in proportion to the bytes received, not to what they announce."""
        body = b"\xdd\x00\x01\x00\x00" * (size // 5)

        def decode() -> None:
            with pytest.raises(ProtocolError):
                decode_body(body)

        assert peak_memory(decode) < MIB // 4

    @given(st.integers(1025, 2**32 - 1), st.binary(max_size=100))
    @example(1025, b"")
    def test_an_announced_length_above_the_limit_is_refused_with_its_header(
        self, length: int, rest: bytes
    ) -> None:
        """The fourth byte decides; nothing of the body is waited for."""
        decoder = FrameDecoder(max_frame=1024)
        header = length.to_bytes(4, "big")
        assert list(decoder.feed(header[:3])) == []

        with pytest.raises(ProtocolError, match="1024"):
            list(decoder.feed(header[3:] + rest))

    def test_a_decoder_that_gave_up_keeps_nothing(self) -> None:
        """A peer that goes on sending after its error fills no memory."""
        decoder = FrameDecoder()
        chunk = bytes(64 * 1024)

        def flood() -> None:
            for data in (b"\xff\xff\xff\xff", *[chunk] * 200):
                with pytest.raises(ProtocolError):
                    list(decoder.feed(data))

        assert peak_memory(flood) < MIB
        assert not decoder.in_frame

    def test_a_dribbled_frame_takes_its_own_size(self) -> None:
        """A slow peer costs one frame and one chunk."""
        decoder = FrameDecoder()
        stream = encode_frame(bytes(MAX_FRAME - 5))
        chunks = [stream[start : start + 4096] for start in range(0, len(stream) - 1, 4096)]

        def dribble() -> None:
            for chunk in chunks[:-1]:
                assert list(decoder.feed(chunk)) == []

        assert peak_memory(dribble) < 1.5 * MIB


class TestAfterAnError:
    @given(st.lists(values, max_size=3), soups, st.lists(values, max_size=2), st.data())
    def test_messages_before_the_error_are_delivered_and_none_after_it(
        self, before: list[Any], garbage: bytes, after: list[Any], data: st.DataObject
    ) -> None:
        """The boundaries of frames are lost with the first bad one, so nothing follows it."""
        if _allowed(garbage)[0]:
            garbage = b"\xc1"
        good = b"".join(map(encode_frame, before))
        stream = good + frame(garbage) + b"".join(map(encode_frame, after))
        decoder, received, errors = FrameDecoder(), [], 0
        for chunk in [*data.draw(cuts(stream)), encode_frame("later"), b""]:
            try:
                for message in decoder.feed(chunk):
                    assert not errors
                    received.append(message)
            except ProtocolError:
                errors += 1

        assert same(received, before)
        assert errors >= 3
        assert not decoder.in_frame
