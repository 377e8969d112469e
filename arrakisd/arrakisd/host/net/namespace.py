"""Work inside a network namespace.

Everything that touches the host's network goes through here, so that one setting moves all
of it into a namespace of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import trio
from pyroute2 import IPRoute, netns

from arrakis_rpc.errors import ArrakisError, UnsupportedError

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_HOME = "/proc/self/ns/net"
_MOUNTS = Path("/run/netns")
_LOOPBACK = 1
_CLEANUP_DEADLINE = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace by its name, or (None) the one that the daemon is in."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        # One at a time: netlink and nftables serialise in the kernel anyway, and each piece
        # of work takes about a millisecond.
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, work: Callable[[], T]) -> T:
        """Do short blocking work inside the namespace, in a thread."""
        return await trio.to_thread.run_sync(self.run_here, work, limiter=self._limiter)

    def run_here(self, work: Callable[[], T]) -> T:
        """Do blocking work inside the namespace, in this thread."""
        if self._name is None:
            return work()
        with _entered(_MOUNTS / self._name):
            return work()


@contextmanager
def _entered(path: Path) -> Iterator[None]:
    home = os.open(_HOME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(path)
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(home)


def _enter(path: Path) -> None:
    there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_namespace(there)
    finally:
        os.close(there)


def _set_namespace(fd: int) -> None:
    # Python has os.setns from 3.12 on.
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


@asynccontextmanager
async def provided(name: str | None, marker: Path) -> AsyncIterator[Namespace]:
    """Give a namespace for the length of a block; made first, and removed, if it is not there.

    ``marker`` is a file that says which one this daemon has made; it outlives a crash. Raises
    `UnsupportedError` without the right to make one.
    """
    if name is None or ((_MOUNTS / name).exists() and _read(marker) != name):
        yield Namespace(name)
        return
    await trio.to_thread.run_sync(_create, name, marker)
    try:
        yield Namespace(name)
    finally:
        with trio.move_on_after(_CLEANUP_DEADLINE, shield=True):
            await trio.to_thread.run_sync(remove_namespace, marker)


def _read(marker: Path) -> str | None:
    return marker.read_text() if marker.exists() else None


def remove_namespace(marker: Path) -> None:
    """Remove the namespace that a marker names, if it is there. Blocks."""
    name = marker.read_text()
    if (_MOUNTS / name).exists():
        netns.remove(name)
    marker.unlink()


def _create(name: str, marker: Path) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(name)
    try:
        if not (_MOUNTS / name).exists():
            netns.create(name)
    except OSError as error:
        raise UnsupportedError(
            f"the network namespace '{name}' cannot be made: {error.strerror}",
            hint="run as root",
        ) from error
    with _entered(_MOUNTS / name), IPRoute() as ip:
        ip.link("set", index=_LOOPBACK, state="up")


def translated(error: Exception, what: str) -> ArrakisError:
    """Make an error that says what of the host's network failed, and what to do."""
    hint = None
    if "not permitted" in str(error) or "Permission denied" in str(error):
        hint = 'CAP_NET_ADMIN is needed; without it, set mode = "user" in [network]'
    return UnsupportedError(f"{what}: {error}", hint=hint)
