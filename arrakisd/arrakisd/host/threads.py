"""Long work in threads, in short pieces."""

from __future__ import annotations

from contextlib import suppress

import trio


def checkpoint() -> None:
    """Let the cancellation of the task that waits for this thread end its work here.

    In a thread that trio did not start, it does nothing.
    """
    with suppress(RuntimeError):
        trio.from_thread.check_cancelled()
