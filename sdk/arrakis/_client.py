"""Calls to the daemon: checked on the way out, and on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from arrakis_rpc.connection import CallNotified
from arrakis_rpc.converter import structure
from arrakis_rpc.daemon_api import Progress
from arrakis_rpc.operations import DAEMON

from ._address import Address
from ._call import Call
from ._pool import Pool
from ._wire import understand

OnProgress = Callable[[Progress], None]


class Client:
    """All that the public classes need of a daemon."""

    def __init__(self, address: Address) -> None:
        self._pool = Pool(address)

    @property
    def address(self) -> Address:
        """Where the daemon is."""
        return self._pool.address

    def open(self, method: str, params: dict[str, Any] | None = None) -> Call:
        """Begin a call. Its parameters are checked here, where the mistake was made."""
        operation = DAEMON[method]
        params = params or {}
        structure(params, operation.params)
        return Call(self._pool, operation, params)

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        progress: OnProgress | None = None,
        body: tuple[str, Iterable[bytes]] | None = None,
    ) -> Any:
        """Make a call and wait for its result.

        ``progress`` is called with each `Progress` that the daemon sends. ``body`` is a
        channel and what to send on it; it is read no further once the daemon has answered.
        Whatever is raised here, the call does not go on in the daemon.
        """
        call = self.open(method, params)
        try:
            if body is not None:
                _send_body(call, *body, progress)
            while (item := call.take()) is not None:
                report(item, progress)
            return call.result()
        finally:
            call.close()

    def pages(self, method: str) -> Iterator[Any]:
        """Give the pages of a list, each asked for when the one before has been used."""
        after: str | None = None
        while True:
            page = self.call(method, without_none(after=after))
            yield page
            if (after := page.next) is None:
                return

    def close(self) -> None:
        """Close the idle connections. Calls that run go on, new ones are refused."""
        self._pool.close()


def _send_body(
    call: Call, channel: str, chunks: Iterable[bytes], progress: OnProgress | None
) -> None:
    for chunk in chunks:
        call.send(channel, chunk)
        while (item := call.take_nowait()) is not None:
            report(item, progress)
        if call.is_over:
            return
    call.end(channel)


def report(item: object, progress: OnProgress | None) -> None:
    """Tell a caller of something that the daemon sent, if it is progress."""
    if progress is not None and isinstance(item, CallNotified) and item.method == "call.progress":
        progress(understand(item.params, Progress))


def without_none(**fields: Any) -> dict[str, Any]:
    """Give the fields that are set: what is left out takes the daemon's default."""
    return {name: value for name, value in fields.items() if value is not None}
