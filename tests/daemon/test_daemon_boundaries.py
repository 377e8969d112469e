"""What does not get out of a call, and not out of a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from small_service import small_service

from arrakis_rpc.connection import CallFailed
from arrakis_rpc.errors import CancelledError, GuestError, NotFoundError
from arrakisd.rpc_session import RpcSessions
from arrakisd.wire.peer import CallerPeer

HELLO = {"versions": [1], "client": "test"}


class FailingTokens:
    """Where a token is to be made there is a task that fails while it is cancelled."""

    def __init__(self, error: Exception) -> None:
        self.begun = trio.Event()
        self._error = error

    async def create(self, _: str) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail_at_the_end)
            self.begun.set()
            await trio.sleep_forever()
        raise AssertionError

    async def _fail_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise self._error


@asynccontextmanager
async def connected(root: Path, **changes: Any) -> AsyncIterator[CallerPeer]:
    """Give a local client's end of a connection to a small service, greeted."""
    near, far = trio.testing.memory_stream_pair()
    async with small_service(root, **changes) as (service, _), trio.open_nursery() as nursery:

        async def serve() -> None:
            await RpcSessions(service).serve(far, "test", is_local=True)

        nursery.start_soon(serve)
        client = CallerPeer(near)
        nursery.start_soon(client.run)
        await client.call("system.hello", HELLO)
        yield client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [OSError("no"), GuestError("no"), ZeroDivisionError()])
async def test_a_cancelled_call_that_fails_as_well(tmp_path: Path, error: Exception) -> None:
    """It was cancelled, as its caller wished; his other calls go on."""
    tokens = FailingTokens(error)
    async with connected(tmp_path, tokens=tokens) as client:
        call_id, frame = client.connection.start_call("token.create", {"name": "one"})
        streams = client.open_streams(call_id)
        client.queue(frame)
        await tokens.begun.wait()
        client.queue(client.connection.cancel_call(call_id))
        answer = await streams.receive()
        assert isinstance(answer, CallFailed)
        assert isinstance(answer.error, CancelledError)
        with pytest.raises(NotFoundError):
            await client.call("vm.info", {"name": "absent"})


async def test_a_client_that_leaves_a_failing_call(tmp_path: Path) -> None:
    """Of the call nothing comes out of the connection, which ends for all that."""
    tokens = FailingTokens(OSError("no"))
    near, far = trio.testing.memory_stream_pair()
    async with small_service(tmp_path, tokens=tokens) as (service, _), trio.open_nursery() as one:
        client = CallerPeer(near)
        one.start_soon(client.run)

        async def leave() -> None:
            await client.call("system.hello", HELLO)
            _, frame = client.connection.start_call("token.create", {"name": "one"})
            client.queue(frame)
            await tokens.begun.wait()
            one.cancel_scope.cancel()
            await near.aclose()

        one.start_soon(leave)
        with trio.CancelScope(shield=True), trio.fail_after(30):
            await RpcSessions(service).serve(far, "test", is_local=True)


async def test_a_defect_of_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the connection, and nobody else anything."""

    def fail(*_: object) -> bytes:
        raise ZeroDivisionError

    near, far = trio.testing.memory_stream_pair()
    monkeypatch.setattr("arrakisd.rpc_session._ClientPeer._encode", fail)
    async with small_service(tmp_path) as (service, _), trio.open_nursery() as nursery:
        client = CallerPeer(near)
        nursery.start_soon(client.run)
        client.queue(client.connection.start_call("system.hello", HELLO)[1])
        await RpcSessions(service).serve(far, "test", is_local=True)
        nursery.cancel_scope.cancel()
