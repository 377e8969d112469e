"""From a method's name to its handler, and to the wire form of what that gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import structlog
import trio

from arrakis_rootfs.store import ImageStore
from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.daemon_api import VmName
from arrakis_rpc.errors import ArrakisError, InternalError, UnknownMethodError
from arrakis_rpc.operations import DAEMON, Operation

from ..guest.proxy import call_through
from ..host.vmm.hypervisors import Hypervisors
from ..logs.request_id import request
from ..machines.events import Events
from ..machines.supervisor import Supervisor
from ..machines.surroundings import Surroundings
from ..machines.templates import Templates
from ..storage.images import ImageService
from ..storage.tokens import TokenStore
from ..upkeep.health import HealthWatch
from ..upkeep.metrics import Metrics
from ..wire.peer import domain_error_in
from .archive import ArchiveOperations
from .call import Call
from .desktop import DesktopOperations
from .difference import DifferenceOperations
from .event import EventOperations
from .image import ImageOperations
from .network import NetworkOperations
from .snapshot import SnapshotOperations
from .system import SystemOperations
from .token import TokenOperations
from .vm import VmOperations

_LONGEST_REASON = 500
_LOOKS = {"vm.info", "vm.health", "vm.set_limits", "port.list"}
_READS = (".list", ".info", ".health", ".read", ".stat")

Handler = Callable[[Any, Call], Awaitable[Any]]

log = structlog.get_logger()


class Service:
    """The operations. One instance serves all transports."""

    def __init__(
        self,
        surroundings: Surroundings,
        hypervisors: Hypervisors,
        supervisor: Supervisor,
        templates: Templates,
        images: ImageStore,
        events: Events,
        tokens: TokenStore,
        metrics: Metrics,
        health: HealthWatch,
    ) -> None:
        self._supervisor = supervisor
        self.metrics = metrics
        image_service = ImageService(
            images, surroundings.paths.scratch, Path(surroundings.config.cache_dir)
        )
        self._handlers = _handlers(
            SystemOperations(surroundings, hypervisors.usual, supervisor, health),
            VmOperations(surroundings.store, supervisor, templates, events),
            SnapshotOperations(surroundings, supervisor, events),
            ArchiveOperations(surroundings, templates, events),
            DifferenceOperations(surroundings.store, supervisor, templates),
            NetworkOperations(supervisor),
            DesktopOperations(supervisor),
            ImageOperations(surroundings, supervisor, templates, image_service),
            EventOperations(events),
            TokenOperations(tokens),
        )

    async def handle(self, method: str, params: dict[str, Any], call: Call) -> Any:
        """Do one operation; give the wire form of its result, or raise an `ArrakisError`."""
        with (
            request(call.request_id),
            self.metrics.measured(method, params),
            _own_lines(),
            _answerable(method, call.request_id),
        ):
            operation = DAEMON.get(method)
            if operation is None:
                raise UnknownMethodError(f"there is no operation '{method[:100]}'")
            typed = structure(params, operation.params)
            structlog.contextvars.bind_contextvars(**_concerned(method, typed))
            with self._in_use(method, typed):
                return unstructure(await self._perform(operation, params, typed, call))

    def _in_use(self, method: str, typed: Any) -> AbstractContextManager[None]:
        """Say that a VM is in use during a block, unless it is only looked at."""
        vm = _concerned(method, typed).get("vm")
        machine = self._supervisor.find(vm) if vm and method not in _LOOKS else None
        return machine.limits.in_use() if machine else nullcontext()

    async def _perform(
        self, operation: Operation, params: dict[str, Any], typed: Any, call: Call
    ) -> Any:
        method = operation.method
        level = log.debug if _is_read(method) else log.info
        level("call", method=method, caller=call.caller, **_loggable(params))
        if _is_in_guest(operation):
            agent, traffic = self._supervisor.get(typed.vm).agent, self.metrics.traffic
            return await call_through(agent, method, typed.args, call.streams, traffic)
        return await self._handlers[method](typed, call)


def _handlers(*groups: object) -> dict[str, Handler]:
    """Find the one handler of every operation that is not passed on to a guest."""
    found: dict[str, Handler] = {}
    for method, operation in DAEMON.items():
        if _is_in_guest(operation):
            continue
        name = method.replace(".", "_")
        (found[method],) = (getattr(group, name) for group in groups if hasattr(group, name))
    return found


@contextmanager
def _own_lines() -> Iterator[None]:
    """Forget after a block what its log lines were to name, and not before an error is logged."""
    before = structlog.contextvars.get_contextvars()
    try:
        yield
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**before)


@contextmanager
def _answerable(method: str, request_id: str) -> Iterator[None]:
    """Let out of a block only errors that can be sent, and that name the call."""
    try:
        with _cancelled_alone(method):
            yield
    except Exception as problem:
        error = domain_error_in(problem)
        _log_failure(method[:100], problem, error)
        error = error or InternalError(
            f"{method} failed by a defect of the daemon: {problem!r}",
            hint=f"the daemon's log has the traceback, with the request_id {request_id}",
        )
        error.detail["request_id"] = request_id
        if error is problem:
            raise
        raise error from problem


@contextmanager
def _cancelled_alone(method: str) -> Iterator[None]:
    """Let out of a block nothing beside its cancellation: its caller has gone."""
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is None or not isinstance(rest, ExceptionGroup):
            raise
        if domain_error_in(rest) is None:  # else it is mostly that the guest has gone as well
            log.warning("a cancelled call failed, too", method=method[:100], exc_info=rest)
        raise cancelled from None


def _log_failure(method: str, problem: Exception, error: ArrakisError | None) -> None:
    if error is None:
        log.error("call failed", method=method, exc_info=problem)
    else:
        reason = error.message[:_LONGEST_REASON]
        log.info("call refused", method=method, error=type(error).__name__, reason=reason)


def _concerned(method: str, typed: Any) -> dict[str, str]:
    """Give the VM that a call concerns, as a log line names it."""
    vm = getattr(typed, "vm", None)
    if method.startswith("vm.") or isinstance(typed, VmName):
        vm = getattr(typed, "name", None)
    return {"vm": vm} if vm else {}


def _is_read(method: str) -> bool:
    return method.startswith("system.") or method.endswith(_READS)


def _is_in_guest(operation: Operation) -> bool:
    return operation.method.startswith(("exec.", "file."))


def _loggable(params: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in params.items()
        if key in ("name", "id", "snapshot", "image", "count") and value is not None
    }
