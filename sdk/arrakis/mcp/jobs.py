"""Blocking calls for an event loop that wants to be able to give them up.

Each call of a tool is a job: it runs in a thread, and has a view of the daemon to itself
whose calls can be ended from outside. The connections are shared by all jobs.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import anyio
import anyio.from_thread
import anyio.to_thread
from attrs import frozen

from arrakis import SandboxManager
from arrakis._call import Call
from arrakis._client import Client
from arrakis_rpc.daemon_api import Progress
from arrakis_rpc.errors import ArrakisError, CancelledError, InternalError
from arrakis_rpc.text import as_unicode

Result = TypeVar("Result")
Notify = Callable[[float, float | None, str], Coroutine[Any, Any, None]]

MOST_JOBS = 64

_log = logging.getLogger(__name__)


class Request(Protocol):
    """What a job needs to know of the HTTP request that asked for it."""

    async def is_disconnected(self) -> bool:
        """Tell whether nobody waits for the answer any more."""


@frozen
class Job:
    """What a tool has to work with, in its thread."""

    manager: SandboxManager
    progress: Callable[[Progress], None]


class Jobs:
    """Runs jobs against one daemon, so many at a time as there are threads for."""

    def __init__(self, manager: SandboxManager) -> None:
        self._manager = manager
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(
        self,
        work: Callable[[Job], Result],
        *,
        notify: Notify | None = None,
        request: Request | None = None,
    ) -> Result:
        """Run ``work`` in a thread; give what it returns, raise the `ArrakisError` it raises.

        Anything else that it raises is a defect: it is logged, and `InternalError` says what.

        When this is cancelled, or whoever sent ``request`` goes away, the calls to the daemon
        that ``work`` is in are cancelled; the thread then ends by itself, soon.
        """
        client = _CancellableClient(self._manager._client)
        job = Job(_view(self._manager, client), partial(_tell, notify, _Counter()))
        outcome: Result | Exception = CancelledError("the client went away")
        try:
            async with anyio.create_task_group() as group:
                if request is not None:
                    group.start_soon(_cancel_when_gone, request, group.cancel_scope)
                outcome = await anyio.to_thread.run_sync(
                    _attempt, work, job, abandon_on_cancel=True, limiter=self._threads()
                )
                group.cancel_scope.cancel()
        finally:
            client.cancel()
        if isinstance(outcome, ArrakisError):
            raise outcome
        if isinstance(outcome, Exception):
            _log.error("a tool failed", exc_info=outcome)
            raise InternalError(
                f"{type(outcome).__name__}: {outcome}",
                hint="the stderr of the MCP server has the traceback",
            ) from outcome
        return outcome

    def _threads(self) -> anyio.CapacityLimiter:
        if self._limiter is None:  # it belongs to the event loop, so not any sooner
            self._limiter = anyio.CapacityLimiter(MOST_JOBS)
        return self._limiter


class _CancellableClient(Client):
    """The calls of one job, over the connections of another client."""

    def __init__(self, client: Client) -> None:
        # Client's own initialisation would make connections for this one alone.
        self._client = client
        self._lock = threading.Lock()
        self._calls: WeakSet[Call] = WeakSet()
        self._cancelled = False

    def open(self, method: str, params: dict[str, Any] | None = None) -> Call:
        """Begin a call, unless the job was cancelled."""
        if self._cancelled:
            raise CancelledError(f"{method} was not begun: the client cancelled it")
        call = self._client.open(method, params)
        with self._lock:
            self._calls.add(call)
            too_late = self._cancelled
        if too_late:
            call.close()
        return call

    def cancel(self) -> None:
        """End what runs, from any thread, and begin nothing else."""
        with self._lock:
            self._cancelled = True
            calls = [*self._calls]
        for call in calls:
            call.close()


class _Counter:
    """Counts up, for a protocol in which progress must do that."""

    def __init__(self) -> None:
        self.value = 0

    def next(self) -> int:
        self.value += 1
        return self.value


def _view(manager: SandboxManager, client: Client) -> SandboxManager:
    view = copy.copy(manager)
    for name, attribute in vars(type(manager)).items():
        if isinstance(attribute, cached_property):  # made on first use, for the other client
            vars(view).pop(name, None)
    view._client = client
    return view


def _attempt(work: Callable[[Job], Result], job: Job) -> Result | Exception:
    # As a value: a task group would wrap what is raised.
    try:
        return work(job)
    except Exception as error:  # noqa: BLE001 -- the caller, if it still waits, tells them apart
        return error


def _tell(notify: Notify | None, counter: _Counter, progress: Progress) -> None:
    if notify is not None:
        anyio.from_thread.run(notify, float(counter.next()), None, as_unicode(progress.text))


async def _cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    # Asked again and again: who waits for the message instead takes it from the transport.
    while not await request.is_disconnected():
        await anyio.sleep(0.25)
    scope.cancel()
