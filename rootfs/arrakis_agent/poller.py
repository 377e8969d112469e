"""Readiness of file descriptors, edge-triggered, in one epoll under the event loop.

``loop.add_reader`` is level-triggered: on a virtio-serial port whose host end is closed
epoll reports a hang-up without end, and the loop would spin. Edges come only when
something changed. They also make back-pressure free: who cannot take data now just does
not read, without a system call to say so. And one registration here costs a third of
``add_reader``, which counts where the interpreter itself runs emulated.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from types import TracebackType
from typing import Self

Callback = Callable[[int], None]


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Let the task go on that awaits ``waiter``, if there is one that still does."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Poller:
    """Calls back when something happened to a watched file descriptor."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}

    def __enter__(self) -> Self:
        self._loop.add_reader(self._epoll.fileno(), self._dispatch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call ``callback`` with the epoll events at each edge, the present state included.

        The callback must use up what is there (until ``BlockingIOError``), or remember
        that it did not: there is no second call for the same edge.
        """
        self._callbacks[fd] = callback
        self._epoll.register(fd, events | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def _dispatch(self) -> None:
        for fd, events in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is None:
                continue  # forgotten by an earlier callback of this round
            try:
                callback(events)
            except Exception as error:  # noqa: BLE001 -- the other edges of this round must not be lost
                self._loop.call_exception_handler(
                    {"message": f"callback of descriptor {fd} failed", "exception": error}
                )
