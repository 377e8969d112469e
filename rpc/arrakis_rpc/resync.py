"""How two ends find each other again on a byte stream that was cut.

A virtio-serial port is one byte stream without connections. When a snapshot is restored
the guest's end may stand in the middle of a frame whose rest will never come, and the
host's end may first receive the tail of a frame that was meant for somebody else. So the
host begins every session with a preamble, and both ends drop what came before it:

* host to guest: the guest's *resync token*, then a fresh nonce;
* guest to host: that nonce.

The token is secret and changes with each session (the host hands over the next one in
``agent.hello``), so that no file content that passes through a session can pose as a
preamble. A guest that has just booted has no secret yet and listens for `FIRST_TOKEN`.
"""

from __future__ import annotations

import secrets

TOKEN_SIZE = 32
NONCE_SIZE = 16
FIRST_TOKEN = b"arrakis-agent-first-session\0\0\0\0\0"


def new_token() -> bytes:
    """Make the secret for a next session."""
    return secrets.token_bytes(TOKEN_SIZE)


def make_preamble(token: bytes) -> tuple[bytes, bytes]:
    """Give the bytes that open a session, and the nonce that the guest will answer."""
    nonce = secrets.token_bytes(NONCE_SIZE)
    return token + nonce, nonce


class MarkerScanner:
    """Looks for a marker in a byte stream, across the borders of chunks.

    Nothing is held back: bytes that may be the beginning of the marker are given out like
    all others. Whoever reads the stream would otherwise wait for the last byte of a message
    that happens to be the marker's first, and what a found marker ends is dropped anyway.
    """

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._tail = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take received bytes; give what comes before the marker, and what follows it.

        The second is None while the marker has not been seen. Afterwards the scanner
        starts over with what is fed next.
        """
        border = len(self._marker) - 1
        across = (self._tail + data[:border]).find(self._marker)
        if across >= 0:
            rest = data[across + len(self._marker) - len(self._tail) :]
            self._tail = b""
            return b"", rest
        start = data.find(self._marker)
        if start >= 0:
            self._tail = b""
            return data[:start], data[start + len(self._marker) :]
        end = data if len(data) >= border else self._tail + data
        self._tail = end[max(len(end) - border, 0) :]
        return data, None
