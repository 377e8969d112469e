"""The scanner for markers that both ends of a cut byte stream use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arrakis_rpc.resync import FIRST_TOKEN, MarkerScanner


def test_nothing_is_held_back() -> None:
    """Bytes that may begin a marker are given out at once, for they may end a message."""
    scanner = MarkerScanner(FIRST_TOKEN)
    assert scanner.feed(b"message " + FIRST_TOKEN[:5]) == (b"message " + FIRST_TOKEN[:5], None)


@given(
    marker=st.text("ab", min_size=1, max_size=5),
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_first_marker_is_found(marker: str, pieces: list[str]) -> None:
    """The first occurrence is found, however the stream is cut, with all that follows it."""
    scanner = MarkerScanner(marker.encode())
    stream, found = "", None
    for piece in pieces:
        stream += piece
        _, rest = scanner.feed(piece.encode())
        if rest is not None:
            found = len(stream) - len(rest)
            break
    position = stream.find(marker)
    assert found == (None if position < 0 else position + len(marker))
