"""The last lines that a VMM, and the guest in it, say: to be told if they end."""

from __future__ import annotations

import trio

# Bytes that are kept of what is said, and lines that are told: a kernel's panic has up to 50.
_TAIL = 64 * 1024
_LAST_LINES = 80


class Console:
    """Keeps the end of what comes out of a stream; the rest is let go."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._closed = trio.Event()

    async def pump(self, stream: trio.abc.ReceiveStream) -> None:
        """Take what comes until the other end is closed, which says nothing of why."""
        try:
            while data := await stream.receive_some(65536):
                self._kept += data
                del self._kept[:-_TAIL]
        except trio.BrokenResourceError:
            pass  # the process is gone, which others notice
        finally:
            self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until all has been taken. A process is often gone before."""
        await self._closed.wait()

    def last_lines(self) -> list[str]:
        """Give the last lines that came, but empty ones."""
        lines = self._kept.decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_LAST_LINES:]
