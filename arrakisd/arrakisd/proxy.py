"""A client's call passed through to a guest agent, with its streams in both directions.

Credit is given back on one side only when the other side has taken the data, so a slow
client holds up the program in the guest, and not the daemon's memory.
"""

from __future__ import annotations

import math
from typing import Any

import trio

from arrakis_rpc.connection import (
    CallFailed,
    CallNotified,
    CallSucceeded,
    DataReceived,
    StreamEnded,
)
from arrakis_rpc.guest_api import ExecSpec

from .agent import GuestAgent
from .deadlines import deadline
from .peer import CallStreams

# A program has that long to end after its own time limit before the agent counts as hung.
_GRACE = 10.0


async def call_through(agent: GuestAgent, method: str, args: object, client: CallStreams) -> Any:
    """Make a guest operation on behalf of a client; give its typed result."""
    limit = args.timeout if isinstance(args, ExecSpec) else None
    with deadline(
        math.inf if limit is None else limit + _GRACE,
        "a command in the guest, with its time limit,",
        hint="the guest may hang or be out of memory; 'destroy' works all the same",
    ):
        async with agent.open_call(method, args) as guest, trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, client, guest)
            answer = await _pass_on(guest, client)
            nursery.cancel_scope.cancel()
    return agent.typed_result(method, answer)


async def _pass_on(source: CallStreams, target: CallStreams) -> Any:
    """Pass everything from one end to the other until the answer comes; give the answer."""
    while True:
        match await source.receive():
            case DataReceived(_, channel, data) as event:
                await target.send(channel, data)
                source.consumed(event)
            case StreamEnded(_, channel):
                await target.end(channel)
            case CallNotified(_, method, params):
                await target.note(method, params)
            case CallSucceeded(_, result):
                return result
            case CallFailed(_, error):
                raise error
