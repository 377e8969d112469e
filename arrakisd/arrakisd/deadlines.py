"""Time limits whose excess is an error that a client understands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from arrakis_rpc.errors import DeadlineError

_SLOWEST_DISK = 32  # MiB that are read or written a second


def transfer_time(mib: int) -> float:
    """Give in how many seconds so much is certainly read or written."""
    return mib / _SLOWEST_DISK


@contextmanager
def deadline(
    seconds: float, what: str, *, shield: bool = False, hint: str | None = None
) -> Iterator[None]:
    """Give a block so many seconds; then raise `DeadlineError` saying ``what`` took too long."""
    with trio.move_on_after(seconds, shield=shield) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineError(f"{what} took longer than {seconds:g} s", hint=hint)
