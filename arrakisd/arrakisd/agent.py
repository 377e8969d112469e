"""The daemon's end of the conversation with a guest agent.

A session begins with the preamble of `arrakis_rpc.resync`; everything that the guest says
is hostile until proven otherwise. A session that breaks is opened anew while the VM lives.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.errors import (
    ArrakisError,
    GuestError,
    InvalidParamsError,
    ProtocolError,
)
from arrakis_rpc.guest_api import Clock, Hello
from arrakis_rpc.operations import GUEST
from arrakis_rpc.resync import MarkerScanner, make_preamble, new_token

from .host.vmm.channel import Channel
from .peer import CallerPeer, CallStreams, domain_error_in, receive_answer

_HANDSHAKE_DEADLINE = 10.0
_REOPEN_DELAY = 0.2

log = structlog.get_logger()


class GuestAgent:
    """Calls into one guest. `run` keeps a session open as long as the VM lives."""

    def __init__(self, vm: str, open_channel: Callable[[], Channel], resync_token: bytes) -> None:
        self._vm = vm
        self._open_channel = open_channel
        self._tokens = [resync_token]
        self._offered = new_token()
        self._channel: Channel | None = None
        self._peer: CallerPeer | None = None
        self._opening = trio.Event()
        self._ready = trio.Event()

    @property
    def resync_token(self) -> bytes:
        """The token that opens the next session; a snapshot keeps it."""
        return self._tokens[0]

    async def run(self, first_deadline: float = _HANDSHAKE_DEADLINE) -> None:
        """Keep a session with the agent; open the next when one breaks. Until cancelled.

        ``first_deadline`` is for the first handshake, in seconds: a guest that boots takes
        its time.
        """
        deadline = first_deadline
        while True:
            try:
                await self._run_session(deadline)
            except* (
                ArrakisError,
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.TooSlowError,
            ) as group:
                reason = domain_error_in(group) or "the channel broke, or nobody answered"
                log.warning("agent session broke", vm=self._vm, reason=str(reason))
            deadline = _HANDSHAKE_DEADLINE
            # A hello that was sent but not answered may have changed the token or not. All
            # of them offer the same one, so that there are never more than two to try.
            self._tokens.append(self._tokens.pop(0))
            await trio.sleep(_REOPEN_DELAY)

    async def _run_session(self, deadline: float) -> None:
        async with self._open_channel() as channel, trio.open_nursery() as nursery:
            self._channel = channel
            self._peer = peer = _SessionPeer(self._vm, channel, self._tokens[0])
            if self._offered not in self._tokens:
                self._tokens.append(self._offered)
            hello = Hello(versions=[PROTOCOL_VERSION], token=self._offered)
            try:
                with trio.fail_after(deadline):
                    nursery.start_soon(peer.run)
                    async with peer.open_call("agent.hello", unstructure(hello)) as streams:
                        self._opening.set()
                        await receive_answer(streams)
                self._tokens, self._offered = [self._offered], new_token()
                self._ready.set()
                await trio.sleep_forever()
            finally:
                self._peer = self._channel = None
                # Not one that somebody waits for: the next session is to wake him.
                self._opening = trio.Event() if self._opening.is_set() else self._opening
                self._ready = trio.Event() if self._ready.is_set() else self._ready

    async def wait_ready(self, deadline: float) -> None:
        """Wait until a session is open; raise `GuestError` after ``deadline`` seconds."""
        with trio.move_on_after(deadline):
            await self._ready.wait()
        if not self._ready.is_set():
            raise self._silent()

    def _silent(self) -> GuestError:
        return GuestError(
            f"the agent in VM '{self._vm}' does not answer",
            vm=self._vm,
            hint="the guest may hang or be out of memory; 'destroy' works all the same",
        )

    @asynccontextmanager
    async def open_call(self, method: str, args: object) -> AsyncIterator[CallStreams]:
        """Make a streaming call; leaving the block early cancels it in the guest."""
        await self.wait_ready(_HANDSHAKE_DEADLINE)
        async with self._open_call(method, args) as streams:
            yield streams

    @asynccontextmanager
    async def _open_call(self, method: str, args: object) -> AsyncIterator[CallStreams]:
        assert self._peer is not None
        async with self._peer.open_call(method, unstructure(args)) as streams:
            yield streams

    async def call(self, method: str, args: object) -> Any:
        """Make a call without streams; give its typed result."""
        async with self.open_call(method, args) as streams:
            return self.typed_result(method, await receive_answer(streams))

    async def call_first(self, method: str, args: object, deadline: float) -> Any:
        """Make the first call of the first session.

        It is sent together with the preamble and the greeting: under emulation each time
        that the guest has to wake up counts. Raises `GuestError` after ``deadline`` seconds.
        """
        with trio.move_on_after(deadline):
            await self._opening.wait()
            async with self._open_call(method, args) as streams:
                return self.typed_result(method, await receive_answer(streams))
        raise self._silent()

    async def set_clock(self) -> None:
        """Set the guest's wall clock to the host's."""
        await self.call("clock.set", Clock(realtime=time.time_ns()))

    def typed_result(self, method: str, result: object) -> Any:
        """Structure what the guest answered; raise `GuestError` for nonsense."""
        try:
            return structure(result, GUEST[method].result)
        except InvalidParamsError as error:
            raise GuestError(
                f"the agent in VM '{self._vm}' answered nonsense to {method}: {error}",
                vm=self._vm,
            ) from error

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Let nothing pass between host and guest for the length of a block.

        Legal while a session is open, which it stays: what is held back cannot break it.
        """
        if self._channel is None or not self._ready.is_set():
            raise self._silent()
        async with self._channel.quiet():
            yield


class _SessionPeer(CallerPeer):
    """A session: opened by a preamble, begun where the guest answers it."""

    def __init__(self, vm: str, channel: Channel, token: bytes) -> None:
        super().__init__(channel)
        self._vm = vm
        preamble, nonce = make_preamble(token)
        self._scanner = MarkerScanner(nonce)
        self.queue(preamble)

    async def run(self) -> None:
        await super().run()
        raise ProtocolError("the channel ended")

    def lost(self) -> GuestError:
        return GuestError(
            f"the agent in VM '{self._vm}' went away in the middle of a call",
            vm=self._vm,
            hint="the VM was ended, or its agent is being restarted: look at its state",
        )

    async def _find_beginning(self) -> bytes:
        while data := await self._stream.receive_some():
            _, rest = self._scanner.feed(bytes(data))
            if rest is not None:
                return rest
        raise ProtocolError("the channel ended")
