"""Readiness of file descriptors, edge-triggered, in the event loop's own epoll.

asyncio's ``add_reader`` is level-triggered: on a virtio-serial port whose host end is
closed epoll reports a hang-up without end, and the loop would spin. Edges come only when
something changed. They also make back-pressure free: who cannot take data now just does
not read, without a system call to say so.

The poller is the loop's selector, and calls back from within ``select``. An epoll of its
own beneath the loop's would cost one more system call and a dozen more interpreted calls
for each event, which counts where the interpreter itself runs emulated.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

T = TypeVar("T")
Callback = Callable[[int], None]


class Poller(selectors.BaseSelector):
    """Calls back when something happened to a watched file descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        # What the loop itself waits for: the pipe that wakes it up.
        self._others = selectors.EpollSelector()
        self._epoll.register(self._others.fileno(), select.EPOLLIN)

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call ``callback`` with the epoll events at each edge, the present state included.

        The callback must use up what is there (until ``BlockingIOError``), or remember
        that it did not: there is no second call for the same edge.
        """
        self._callbacks[fd] = callback
        self._epoll.register(fd, events | select.EPOLLET)

    def change(self, fd: int, events: int) -> None:
        """Watch for other events; there is an edge if one of them is there already."""
        self._epoll.modify(fd, events | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, call back, and give the events that are the loop's own."""
        # Rounded up, or a timer that is due in less than a millisecond would be spun for.
        seconds = None if timeout is None else max(math.ceil(timeout * 1e3) * 1e-3, 0)
        of_the_loop = False
        for fd, events in self._epoll.poll(seconds):
            callback = self._callbacks.get(fd)
            if callback is None:  # the loop's, or forgotten by an earlier callback
                of_the_loop = True
                continue
            try:
                callback(events)
            except Exception as error:  # noqa: BLE001 -- the other edges must not be lost
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"callback of descriptor {fd} failed", "exception": error}
                )
        return self._others.select(0) if of_the_loop else []

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        """Add what the loop waits for."""
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Remove what the loop waits for."""
        return self._others.unregister(fileobj)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """Give what the loop waits for."""
        return self._others.get_map()

    def close(self) -> None:
        """End all watching."""
        self._others.close()
        self._epoll.close()


def run(main: Callable[[Poller], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` in a new event loop, with the poller that is at its heart."""
    poller = Poller()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(poller)) as runner:
        return runner.run(main(poller))


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Let the task go on that awaits ``waiter``, if there is one that still does."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
