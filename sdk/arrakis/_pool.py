"""Idle connections, shared by the threads of a process."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

from arrakis_rpc.errors import InvalidStateError

from ._address import Address
from ._wire import Wire

_MAX_IDLE = 16
_pools: WeakSet[Pool] = WeakSet()


class Pool:
    """Hands out connections to one daemon, and keeps those that come back."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._closed = False
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        _pools.add(self)

    def take(self) -> Wire:
        """Give a connection that nobody else uses; the caller gives it back or closes it."""
        while True:
            with self._lock:
                if self._closed:
                    raise InvalidStateError("this SandboxManager was closed")
                if not self._idle:
                    break
                wire = self._idle.pop()
            # The daemon may have been restarted since.
            if wire.is_reusable:
                return wire
            wire.close()
        return Wire(self.address)

    def give(self, wire: Wire) -> None:
        """Take back a connection, or close it when it cannot be used again."""
        if wire.is_reusable:
            with self._lock:
                if not self._closed and len(self._idle) < _MAX_IDLE:
                    self._idle.append(wire)
                    return
        wire.close()

    def close(self) -> None:
        """Close the idle connections, and keep no others."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()

    def forget(self) -> None:
        """Begin anew, in a child process.

        It must not speak on its parent's connections, and a lock that another thread held
        at the fork would never be released.
        """
        self._lock = threading.Lock()
        self._idle = []


def _after_fork() -> None:
    for pool in _pools:
        pool.forget()


os.register_at_fork(after_in_child=_after_fork)
