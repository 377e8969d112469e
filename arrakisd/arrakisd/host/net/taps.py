"""Tap devices, and a few that are ready before somebody wants them.

They are not persistent: the kernel removes a tap when the last descriptor of it is closed, so
that even a killed daemon leaves none. But for those that a VMM opens by name: they are while it
does, and the next daemon removes what a killed one leaves.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio
from attrs import frozen

from .namespace import Namespace

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_FLAGS = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR

_DEVICE = "/dev/net/tun"
_READY = 4
_RETRY = 1.0

log = structlog.get_logger()


@frozen
class Tap:
    """A tap device that exists as long as its descriptor is open somewhere."""

    fd: int
    name: str

    def close(self) -> None:
        """Let go of the device; a VMM that inherited the descriptor keeps it."""
        os.close(self.fd)


def open_tap(pattern: str) -> Tap:
    """Make a tap device; ``%d`` in the pattern becomes the first number that is free."""
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", pattern.encode(), _FLAGS)
        answer = fcntl.ioctl(fd, _TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return Tap(fd, answer[:16].rstrip(b"\0").decode())


@contextmanager
def opened_by_name(fd: int, name: str, uid: int) -> Iterator[None]:
    """Let a process of a user open a tap by its name, during a block that is longer than its life.

    One descriptor at a time can be attached to a tap. So this one is attached to nothing in the
    block, and again afterwards.
    """
    fcntl.ioctl(fd, _TUNSETOWNER, uid)
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    try:
        _replace(fd, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        yield
    finally:
        try:
            again = open_tap(name)
        except OSError as error:  # the process would not end: the next daemon sweeps it
            log.warning("a tap is left behind", tap=name, reason=str(error))
        else:
            fcntl.ioctl(again.fd, _TUNSETPERSIST, 0)
            _replace(fd, again.fd)


def _replace(fd: int, other: int) -> None:
    os.dup2(other, fd, inheritable=False)
    os.close(other)


class TapPool:
    """Taps in store. `run` keeps it filled; closing it removes what is left."""

    def __init__(self, namespace: Namespace, pattern: str) -> None:
        self._namespace = namespace
        self._pattern = pattern
        self._ready: deque[Tap] = deque()
        self._wanted = trio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    async def take(self) -> Tap:
        """Give a tap; the caller closes it."""
        tap = self._ready.popleft() if self._ready else await self._make()
        self._wanted.set()
        return tap

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fill it, and refill it in the background, until cancelled."""
        try:
            await self._fill()
            task_status.started()
            while True:
                self._wanted = trio.Event()
                await self._wanted.wait()
                await self._refill()
        finally:
            while self._ready:
                self._ready.pop().close()

    async def _fill(self) -> None:
        while len(self._ready) < _READY:
            self._ready.append(await self._make())

    async def _refill(self) -> None:
        while True:
            try:
                await self._fill()
                return
            except OSError as error:  # who needs one meanwhile is told so himself
                log.warning("taps cannot be made ready", reason=str(error))
            await trio.sleep(_RETRY)

    async def _make(self) -> Tap:
        return await self._namespace.run(lambda: open_tap(self._pattern))
