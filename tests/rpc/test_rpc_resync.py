"""Finding each other again on a stream that was cut: the marker, and nothing but the marker."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rpc_strategies import cuts, decode_all

from arrakis_rpc.framing import encode_frame
from arrakis_rpc.resync import (
    FIRST_TOKEN,
    NONCE_SIZE,
    TOKEN_SIZE,
    MarkerScanner,
    make_preamble,
    new_token,
)

# Two letters only: markers that overlap themselves, and near misses everywhere.
letters = st.lists(st.sampled_from([b"a", b"b"]), max_size=30).map(b"".join)
markers = letters.filter(bool) | st.binary(min_size=1, max_size=32)


def scan(marker: bytes, chunks: list[bytes]) -> tuple[bytes, bytes | None, list[bytes]]:
    """Feed chunks until the marker is found: what came before and after, and what is left."""
    scanner, before = MarkerScanner(marker), b""
    for number, chunk in enumerate(chunks):
        data, rest = scanner.feed(chunk)
        before += data
        if rest is not None:
            return before, rest, chunks[number + 1 :]
    return before, None, []


class TestScanner:
    @given(letters | st.binary(max_size=100), markers, letters | st.binary(max_size=50), st.data())
    def test_what_follows_a_marker_is_delivered_exactly_however_the_stream_is_cut(
        self, before: bytes, marker: bytes, after: bytes, data: st.DataObject
    ) -> None:
        """The first marker counts; what comes before it is complete and in order."""
        stream = before + marker + after
        place = stream.find(marker)

        came_before, rest, chunks = scan(marker, data.draw(cuts(stream)))

        assert rest is not None
        assert rest + b"".join(chunks) == stream[place + len(marker) :]
        assert came_before[:place] == stream[:place]
        beginning = came_before[place:]  # given out before it was known what it is
        assert len(beginning) < len(marker)
        assert marker.startswith(beginning)

    @given(letters | st.binary(max_size=100), markers, letters | st.binary(max_size=50))
    def test_a_marker_that_comes_in_one_piece_leaves_no_trace(
        self, before: bytes, marker: bytes, after: bytes
    ) -> None:
        """Nothing of it is taken for data."""
        stream = before + marker + after
        place = stream.find(marker)

        assert scan(marker, [stream]) == (stream[:place], stream[place + len(marker) :], [])

    @given(letters | st.binary(max_size=100), markers, st.data())
    def test_a_stream_without_a_marker_passes_at_once(
        self, stream: bytes, marker: bytes, data: st.DataObject
    ) -> None:
        """Each chunk comes out as it went in: nothing waits for what may never come."""
        scanner = MarkerScanner(marker)
        stream = stream.replace(marker, b"")
        if marker in stream:
            stream = b""
        for chunk in data.draw(cuts(stream)):
            assert scanner.feed(chunk) == (chunk, None)

    @pytest.mark.parametrize(
        ("marker", "stream", "place"),
        [
            (b"aab", b"aaab", 1),
            (b"aab", b"aaaaaab", 4),
            (b"aaa", b"aaaa", 0),
            (b"abab", b"abaabab", 3),
            (b"abab", b"ababab", 0),
            (b"abcab", b"abcabcab", 0),
            (b"a", b"ba", 1),
            (FIRST_TOKEN, FIRST_TOKEN[:-1] + FIRST_TOKEN, TOKEN_SIZE - 1),
            (FIRST_TOKEN, FIRST_TOKEN[:5] * 9 + FIRST_TOKEN, 45),
        ],
    )
    def test_a_marker_is_found_after_a_false_start(
        self, marker: bytes, stream: bytes, place: int
    ) -> None:
        """Cut at every place, and byte by byte, the same one is found."""
        stream += b"after"
        every_cut = [[stream[:cut], stream[cut:]] for cut in range(len(stream) + 1)]
        for chunks in [*every_cut, [bytes([byte]) for byte in stream]]:
            came_before, rest, left = scan(marker, chunks)

            assert rest is not None
            assert rest + b"".join(left) == stream[place + len(marker) :]
            assert came_before.startswith(stream[:place])

    @given(st.lists(letters, min_size=1, max_size=4), st.data())
    def test_a_scanner_begins_anew_after_each_marker(
        self, parts: list[bytes], data: st.DataObject
    ) -> None:
        """Nothing of one session can be part of the marker of the next."""
        scanner, marker = MarkerScanner(b"aabaab"), b"aabaab"
        for part in parts:
            stream = part.replace(marker, b"") + marker
            place = stream.find(marker)
            found, rests = b"", []
            for chunk in filter(None, data.draw(cuts(stream[: place + len(marker)]))):
                came, rest = scanner.feed(chunk)
                found += came
                rests.append(rest)
            assert found.startswith(stream[:place])
            assert rests == [None] * (len(rests) - 1) + [b""]

    @pytest.mark.parametrize("first", [[b"ab"], [b"a", b"b"], [b"a", b"-ab"]])
    def test_a_marker_that_was_found_is_over(self, first: list[bytes]) -> None:
        """Its bytes, whole or in parts, begin no other."""
        scanner = MarkerScanner(b"ab")
        assert [scanner.feed(chunk)[1] for chunk in first][-1] == b""

        assert scanner.feed(b"b") == (b"b", None)

    @given(st.binary(max_size=300), st.lists(st.integers()), st.data())
    @example(b"", [], None)
    def test_a_session_opens_in_the_middle_of_a_frame(
        self, stale: bytes, messages: list[int], data: st.DataObject | None
    ) -> None:
        """Whatever another session left on the wire, the messages of this one come through."""
        token = bytes(range(TOKEN_SIZE))
        preamble, nonce = make_preamble(token)
        frames = b"".join(encode_frame(message % 2**63) for message in messages)
        stream = stale + preamble + frames
        chunks = data.draw(cuts(stream)) if data else [stream]

        _, rest, left = scan(token, chunks)
        assert rest is not None
        opened = b"".join([rest, *left])
        received, error = decode_all([opened[NONCE_SIZE:]])

        assert opened[:NONCE_SIZE] == nonce
        assert error is None
        assert received == [message % 2**63 for message in messages]


class TestTokens:
    def test_the_first_token_has_the_size_of_all_others(self) -> None:
        """A guest listens for the same number of bytes in its first session as later."""
        assert len(FIRST_TOKEN) == TOKEN_SIZE == len(new_token())

    def test_a_preamble_is_the_token_and_a_fresh_nonce(self) -> None:
        """No answer to one preamble passes for the answer to another."""
        preamble, nonce = make_preamble(FIRST_TOKEN)
        _, other = make_preamble(FIRST_TOKEN)

        assert preamble == FIRST_TOKEN + nonce
        assert len(nonce) == NONCE_SIZE == len(other)
        assert nonce != other

    def test_tokens_are_not_repeated(self) -> None:
        """Each session has a secret of its own."""
        assert len({new_token() for _ in range(1000)}) == 1000
