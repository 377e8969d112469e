"""The daemon's end of the conversation with a guest agent.

A session begins with the preamble of `arrakis_rpc.resync`; everything that the guest says
is hostile until proven otherwise. A session that breaks is opened anew while the VM lives.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
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

from ..host.vmm.channel import Channel
from ..wire.peer import CallerPeer, CallStreams, domain_error_in, receive_answer

_HANDSHAKE_DEADLINE = 10.0
_LONGEST_HANDSHAKE = 60.0
_REOPEN_DELAY = 0.2
_LONGEST_TEXT = 4096
_CLOCK_TRIES = 3
_PROMPT = 0.05

log = structlog.get_logger()


class GuestAgent:
    """Calls into one guest. `run` keeps a session open as long as the VM lives.

    ``vm`` is the VM's name, for messages; it may be given another one.
    """

    def __init__(self, vm: str, open_channel: Callable[[], Channel], resync_token: bytes) -> None:
        self.vm = vm
        self._open_channel = open_channel
        self._token, self._offered = resync_token, new_token()
        self._channel: Channel | None = None
        self._peer: CallerPeer | None = None
        self._opening = trio.Event()
        self._ready = trio.Event()
        self._met = self._has_reached = False
        self.heard = trio.current_time()  # when anything last came from the guest

    @property
    def resync_token(self) -> bytes:
        """The token that opens the next session; a snapshot keeps it."""
        return self._token

    async def run(self, first_deadline: float = _HANDSHAKE_DEADLINE) -> None:
        """Keep a session with the agent; open the next when one breaks. Until cancelled.

        ``first_deadline`` is for the first handshake, in seconds: a guest that boots takes
        its time.
        """
        deadline = first_deadline
        while True:
            self._met = self._has_reached = False
            try:
                await self._run_session(deadline)
            except* (
                ArrakisError,
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.TooSlowError,
            ) as group:
                reason = domain_error_in(group) or "the channel broke, or nobody answered"
                log.warning("agent session broke", vm=self.vm, reason=str(reason))
            # The next one gets longer: a guest that hardly gets a processor would never be met.
            deadline = _HANDSHAKE_DEADLINE if self._met else min(2 * deadline, _LONGEST_HANDSHAKE)
            # A hello that was sent but not answered may have changed the token or not. Each of
            # the two offers the other, so that there never is a third to try; and not itself:
            # an agent would take its copy in the hello for the beginning of another session.
            if self._has_reached and not self._met:
                self._token, self._offered = self._offered, self._token
            await trio.sleep(_REOPEN_DELAY)

    async def _run_session(self, deadline: float) -> None:
        async with self._open_channel() as channel, trio.open_nursery() as nursery:
            self._channel = channel
            self._peer = peer = _SessionPeer(self, channel, self._token)
            hello = Hello(versions=[PROTOCOL_VERSION], token=self._offered)
            try:
                with trio.fail_after(deadline):
                    nursery.start_soon(peer.run)
                    async with peer.open_call("agent.hello", unstructure(hello)) as streams:
                        self._opening.set()
                        await receive_answer(streams)
                self._token, self._offered = self._offered, new_token()
                self._met = True
                self._ready.set()
                await trio.sleep_forever()
            finally:
                self._has_reached = channel.has_reached
                self._peer = self._channel = None
                # Not one that somebody waits for: the next session is to wake him.
                self._opening = trio.Event() if self._opening.is_set() else self._opening
                self._ready = trio.Event() if self._ready.is_set() else self._ready

    async def wait_ready(self, deadline: float) -> None:
        """Wait until a session is open; raise `GuestError` after ``deadline`` seconds."""
        with trio.move_on_after(deadline):
            while not self._ready.is_set():  # again, where the session has broken meanwhile
                await self._ready.wait()
        if not self._ready.is_set():
            raise self._silent()

    def _silent(self) -> GuestError:
        return GuestError(
            f"the agent in VM '{self.vm}' does not answer",
            vm=self.vm,
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
            streams.judge = partial(self._credible, method)
            streams.channels = GUEST[method].sends
            yield streams

    def _credible(self, method: str, error: ArrakisError) -> ArrakisError:
        """Take an error for what it says only where the operation can fail like that.

        A hostile guest may answer with any code and any text: what is the daemon's own to
        say, that the connection was lost for instance, must not come from it.
        """
        allowed = (GuestError, *GUEST[method].raises)
        text = error.message[:_LONGEST_TEXT]
        if type(error) in allowed:
            kept = type(error)(text, vm=self.vm, hint=(error.hint or "")[:200] or None)
            if type(number := error.detail.get("errno")) is int:
                kept.detail["errno"] = number
            return kept
        return GuestError(
            f"the agent in VM '{self.vm}' failed at {method}: {text}",
            vm=self.vm,
            hint="its log has more: 'journalctl -u arrakis-agent' in the guest",
        )

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
            while not self._opening.is_set():  # again, where the session has broken meanwhile
                await self._opening.wait()
            async with self._open_call(method, args) as streams:
                return self.typed_result(method, await receive_answer(streams))
        raise self._silent()

    async def set_clock(self) -> None:
        """Set the guest's wall clock to the host's; again if that took so long that it is late."""
        for _ in range(_CLOCK_TRIES):
            began = trio.current_time()
            await self.call("clock.set", Clock(realtime=time.time_ns()))
            if trio.current_time() - began < _PROMPT:
                return

    def typed_result(self, method: str, result: object) -> Any:
        """Structure what the guest answered; raise `GuestError` for nonsense."""
        try:
            return structure(result, GUEST[method].result)
        except InvalidParamsError as error:
            raise GuestError(
                f"the agent in VM '{self.vm}' answered nonsense to {method}: {error}",
                vm=self.vm,
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

    def __init__(self, agent: GuestAgent, channel: Channel, token: bytes) -> None:
        super().__init__(channel)
        self._agent = agent
        preamble, nonce = make_preamble(token)
        self._scanner = MarkerScanner(nonce)
        self.queue(preamble)

    async def run(self) -> None:
        await super().run()
        raise ProtocolError("the channel ended")

    def lost(self) -> GuestError:
        return GuestError(
            f"the agent in VM '{self._agent.vm}' went away in the middle of a call",
            vm=self._agent.vm,
            hint="the VM was ended, or its agent is being restarted: look at its state",
        )

    def _dispatch(self, data: bytes) -> None:
        self._agent.heard = trio.current_time()
        super()._dispatch(data)

    async def _find_beginning(self) -> bytes:
        while data := await self._stream.receive_some():
            _, rest = self._scanner.feed(bytes(data))
            if rest is not None:
                return rest
        raise ProtocolError("the channel ended")
