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

    Bytes that may be the beginning of the marker are held back until it is clear.
    """

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take received bytes; give what is ordinary data, and what follows the marker.

        The second is None while the marker has not been seen. Afterwards the scanner
        starts over with what is fed next.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        position = data.find(self._marker)
        if position >= 0:
            return data[:position], data[position + len(self._marker) :]
        keep = self._possible_beginning(data)
        if keep:
            self._held = data[-keep:]
            data = data[:-keep]
        return data, None

    def _possible_beginning(self, data: bytes) -> int:
        marker = self._marker
        tail = data[-(len(marker) - 1) :]
        position = tail.find(marker[0])
        while position >= 0:
            if marker.startswith(tail[position:]):
                return len(tail) - position
            position = tail.find(marker[0], position + 1)
        return 0
