"""One session: which calls run, and the boundary at which their failures become answers."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arrakis_rpc import PROTOCOL_VERSION
from arrakis_rpc.connection import (
    CallCancelled,
    CallNotified,
    CallReceived,
    Connection,
    CreditReceived,
    DataReceived,
    Event,
    Role,
    StreamEnded,
)
from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.errors import (
    ArrakisError,
    CancelledError,
    InternalError,
    InvalidStateError,
    ProtocolError,
    UnknownMethodError,
    UnsupportedError,
)
from arrakis_rpc.guest_api import Hello, HelloResult
from arrakis_rpc.operations import GUEST, Operation

from . import __version__
from .call import Call
from .port import Output

Handler = Callable[[Call, Any], Awaitable[Any]]
HELLO = "agent.hello"

_log = logging.getLogger(__name__)


class Session:
    """A conversation between two preambles. Each call is a task of ``tasks``."""

    def __init__(
        self,
        output: Output,
        tasks: asyncio.TaskGroup,
        handlers: Mapping[str, Handler],
        keep_token: Callable[[bytes], None],
    ) -> None:
        self._output = output
        self._tasks = tasks
        self._handlers = handlers
        self._keep_token = keep_token
        self._connection = Connection(Role.CALLEE)
        self._greeted = False
        self._token_is_new = False
        self._closed = False
        self._calls: dict[int, tuple[Call, asyncio.Task[None]]] = {}

    def close(self) -> None:
        """Cancel all calls and send nothing more."""
        if self._closed:
            return
        self._closed = True
        self._output.close()
        for _, task in self._calls.values():
            task.cancel()

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the host; give back what comes after a greeting, else nothing.

        In that another token has to be looked for. A peer that breaks the rules ends the
        session.
        """
        if self._closed:
            return b""
        try:
            events = self._connection.receive(data)
            for event in events:
                self._handle(event)
                if self._token_is_new:
                    self._token_is_new = False
                    events.close()
                    return self._connection.take_rest()
        except ProtocolError as error:
            _log.warning("session dropped: %s", error)
            self.close()
        except Exception:  # noqa: BLE001 -- a defect costs the session, not the agent
            _log.exception("session dropped")
            self.close()
        return b""

    def _handle(self, event: Event) -> None:
        if isinstance(event, CallReceived):
            self._begin(event)
            return
        running = self._calls.get(event.call_id)
        if running is None:
            return
        call, task = running
        match event:
            case DataReceived(_, channel, data):
                call.data_received(channel, data)
            case StreamEnded(_, channel):
                call.data_received(channel, None)
            case CreditReceived(_, channel):
                call.credit_received(channel)
            case CallNotified(_, method, params):
                call.note_received(method, params)
            case CallCancelled():
                task.cancel()

    def _begin(self, event: CallReceived) -> None:
        operation = GUEST.get(event.method)
        if operation is None:
            self._fail(event.call_id, UnknownMethodError(f"no operation {event.method[:100]!r}"))
        elif event.method == HELLO:
            self._greet(event)
        elif not self._greeted:
            self._fail(
                event.call_id,
                InvalidStateError(
                    "the session is not open", state="new", required="open", hint=f"call {HELLO}"
                ),
            )
        else:
            call = Call(event.call_id, self._connection, self._output, operation.takes)
            task = self._tasks.create_task(self._run(call, operation, event.params))
            self._calls[event.call_id] = (call, task)
            task.add_done_callback(lambda _: self._end(event.call_id))

    def _greet(self, event: CallReceived) -> None:
        try:
            hello = structure(event.params, Hello)
            if PROTOCOL_VERSION not in hello.versions:
                raise UnsupportedError(
                    f"this agent speaks version {PROTOCOL_VERSION} of the protocol only"
                )
            self._keep_token(hello.token)
        except ArrakisError as error:
            self._fail(event.call_id, error)
        else:
            self._greeted = self._token_is_new = True
            result = HelloResult(
                PROTOCOL_VERSION, f"arrakis-agent {__version__}", platform.python_version()
            )
            self._output.send(self._connection.send_result(event.call_id, unstructure(result)))

    async def _run(self, call: Call, operation: Operation, params: dict[str, Any]) -> None:
        try:
            handler = self._handlers[operation.method]
            result = await handler(call, structure(params, operation.params))
            frame = self._connection.send_result(call.id, unstructure(result))
        except ProtocolError as error:
            self._fail(call.id, InternalError(f"the result cannot be sent: {error}"))
        except ArrakisError as error:
            self._fail(call.id, error)
        except Exception as error:  # noqa: BLE001 -- a defect fails its call, not the agent
            _log.exception("%s failed", operation.method)
            self._fail(call.id, InternalError(f"{type(error).__name__}: {error}"))
        else:
            self._output.send(frame)

    def _end(self, call_id: int) -> None:
        del self._calls[call_id]
        # A cancelled task ends without an answer, perhaps before its first step.
        if self._connection.is_running(call_id):
            self._fail(call_id, CancelledError("the call was cancelled"))

    def _fail(self, call_id: int, error: ArrakisError) -> None:
        self._output.send(self._connection.send_error(call_id, error))
