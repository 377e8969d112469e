"""A child process: noticing its end, and killing all that it started.

Its zombie is kept until the call that wanted it is over: as long as it is there its id,
which also names its session and its process group, cannot belong to anybody else.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress

from .poller import Poller

_KILL_ROUNDS = 10


class Process:
    """A child that leads its own session. ``on_exit`` is called once when it has ended.

    Nothing is called before control is back in the event loop.
    """

    def __init__(self, pid: int, poller: Poller) -> None:
        self.pid = pid
        self.on_exit: Callable[[], None] = self._reap_quietly
        self.timed_out = False
        self._poller = poller
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        poller.watch(self._pidfd, select.EPOLLIN, self._exited)

    def kill_after(self, seconds: float) -> None:
        """Kill its session unless it has ended before, and set ``timed_out``."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._time_out)

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group; nothing happens if nobody is left in it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def reap(self) -> int:
        """Take the wait status of a process that ended."""
        self._poller.forget(self._pidfd)
        os.close(self._pidfd)
        return os.waitpid(self.pid, 0)[1]

    def abandon(self) -> None:
        """Kill its session, and reap it when that has had its effect."""
        kill_session(self.pid)
        if self._ended:
            self.reap()
        else:
            self.on_exit = self._reap_quietly

    def _exited(self, _events: int) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self.on_exit()

    def _time_out(self) -> None:
        self.timed_out = True
        kill_session(self.pid)

    def _reap_quietly(self) -> None:
        self.reap()


def kill_session(leader: int) -> None:
    """Kill every process of the session that ``leader`` began.

    Its process group goes at one blow; who has left the group is looked for until no new
    one is found, for it may just have made another.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    killed: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        found = set(_members(leader)) - killed
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        if not found:
            return


def _members(session: int) -> Iterator[int]:
    for name in os.listdir("/proc"):  # noqa: PTH208 -- a thousand paths are not needed
        if name.isdigit():
            pid = int(name)
            with suppress(ProcessLookupError):
                if os.getsid(pid) == session:
                    yield pid
