"""A client's call passed through to a guest agent, with its streams in both directions.

Credit is given back on one side only when the other side has taken the data, so a slow
client holds up the program in the guest, and not the daemon's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from attrs import frozen

from arrakis_rpc.connection import (
    CallFailed,
    CallNotified,
    CallSucceeded,
    DataReceived,
    Event,
    StreamEnded,
)
from arrakis_rpc.errors import DeadlineError
from arrakis_rpc.guest_api import ExecSpec

from ..wire.streams import Streams
from .agent import GuestAgent

# For so long, all in all, a guest may be waited for after a command's own time limit.
_GRACE = 10.0
# What the command wrote before is kept for its reader, unless he takes nothing for so long.
_PATIENCE = 300.0
# More than pipes, windows and the channel can hold of what was written before the limit.
_MOST_LATE = 16 * 2**20
_POLL = 0.5


@frozen
class Traffic:
    """Is told how many bytes have passed into a guest, and out of one."""

    into: Callable[[int], None]
    out: Callable[[int], None]


_UNCOUNTED = Traffic(lambda _: None, lambda _: None)


async def call_through(
    agent: GuestAgent,
    method: str,
    args: object,
    client: Streams,
    traffic: Traffic = _UNCOUNTED,
) -> Any:
    """Make a guest operation on behalf of a client; give its typed result.

    Raises `DeadlineError` for a command that the guest does not end after its time limit, and
    for one whose output nobody takes.
    """
    limit = args.timeout if isinstance(args, ExecSpec) else None
    async with agent.open_call(method, args) as guest, trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, client, guest, traffic.into)
        if limit is None:
            answer = await _pass_on(guest, client, traffic.out)
        else:
            watched = _Watched(guest)
            nursery.start_soon(watched.enforce, limit)
            answer = await _pass_on(watched, client, traffic.out)
        nursery.cancel_scope.cancel()
    return agent.typed_result(method, answer)


class _Watched:
    """A guest's end of a call, and whether it is being waited for.

    Who asks for the next event has passed on the one before.
    """

    def __init__(self, guest: Streams) -> None:
        self._guest = guest
        self._awaited = False
        self._received = 0

    async def receive(self) -> Event:
        """Wait for what comes next from the guest."""
        self._awaited = True
        event = await self._guest.receive()
        self._awaited = False
        if isinstance(event, DataReceived):
            self._received += len(event.data)
        return event

    def consumed(self, event: DataReceived) -> None:
        """Give back credit."""
        self._guest.consumed(event)

    async def enforce(self, limit: float) -> None:
        """Raise `DeadlineError` when, after the limit, one end or the other holds things up."""
        await trio.sleep(limit)
        before, awaited, untaken = self._received, 0.0, 0.0
        while awaited < _GRACE and untaken < _PATIENCE and self._received - before < _MOST_LATE:
            received = self._received
            await trio.sleep(_POLL)
            awaited += _POLL * self._awaited
            untaken = 0.0 if self._awaited or self._received > received else untaken + _POLL
        if untaken >= _PATIENCE:
            raise DeadlineError(
                "the output of a command whose time limit has passed was not taken "
                f"for {_PATIENCE:g} s",
                hint="read output while the command runs",
            )
        raise DeadlineError(
            f"a command in the guest, with its time limit, took longer than {limit + _GRACE:g} s",
            hint="the guest may hang or be out of memory; 'destroy' works all the same",
        )


async def _pass_on(
    source: Streams | _Watched, target: Streams, count: Callable[[int], None]
) -> Any:
    """Pass everything from one end to the other until the answer comes; give the answer."""
    while True:
        match await source.receive():
            case DataReceived(_, channel, data) as event:
                await target.send(channel, data)
                source.consumed(event)
                count(len(data))
            case StreamEnded(_, channel):
                await target.end(channel)
            case CallNotified(_, method, params):
                await target.note(method, params)
            case CallSucceeded(_, result):
                return result
            case CallFailed(_, error):
                raise error
