"""The daemon calls itself, as a client: the only proof that it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc.errors import ArrakisError

from ..wire.peer import CallerPeer, domain_error_in
from .service_manager import tell

log = structlog.get_logger()


async def wait_answering(path: Path) -> None:
    """Wait until the socket at a path gives a true answer."""
    async with _connected(path) as peer:
        await peer.call("system.health", {})


async def feed_watchdog(path: Path, every: float) -> None:
    """Tell the service manager that the daemon is alive for as long as it answers itself.

    ``every`` is what the service manager asks for, in seconds: it ends a daemon that has not
    answered for that long. One connection for all calls: a daemon that refuses one more client,
    or has no descriptor left for it, is busy and not dead.
    """
    while True:
        try:
            async with _connected(path) as peer:
                while True:
                    with trio.fail_after(every / 2):
                        await peer.call("system.health", {})
                    tell(WATCHDOG=1)
                    await trio.sleep(every / 4)
        except* (ArrakisError, OSError, trio.BrokenResourceError, trio.TooSlowError) as group:
            reason = str(domain_error_in(group) or group.exceptions[0])
            log.warning("the daemon does not answer itself", reason=reason)
        await trio.sleep(every / 4)


@asynccontextmanager
async def _connected(path: Path) -> AsyncIterator[CallerPeer]:
    async with await trio.open_unix_socket(path) as stream, trio.open_nursery() as nursery:
        peer = CallerPeer(stream)
        nursery.start_soon(peer.run)
        hello = {"client": "self-check", "versions": [PROTOCOL_VERSION]}
        with trio.fail_after(10):
            await peer.call("system.hello", hello)
        yield peer
        nursery.cancel_scope.cancel()
