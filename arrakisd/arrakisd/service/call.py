"""One call, as the operations see it."""

from __future__ import annotations

from attrs import field, frozen

from arrakis_rpc import daemon_api as api
from arrakis_rpc.converter import unstructure

from ..logs.request_id import new_request_id
from ..wire.streams import Streams


@frozen
class Call:
    """One call as a transport sees it: its streams, and who makes it.

    ``is_local`` is whether the caller came by the Unix socket, where the host says who it is.
    ``request_id`` is in all log lines of the call, and in the ``detail`` of its error.
    """

    streams: Streams
    caller: str
    is_local: bool = False
    request_id: str = field(factory=new_request_id)

    async def progress(self, text: str, step: int = 0, total: int = 0) -> None:
        """Tell the caller how far a long call is."""
        note = api.Progress(text=text, step=step, total=total)
        await self.streams.note("call.progress", unstructure(note))
