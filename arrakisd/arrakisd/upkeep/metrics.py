"""Numbers for Prometheus: what the daemon did, and what there is.

No label takes its values from clients or guests, so that nobody can make the number of
series grow: no names of VMs, and a method that does not exist is ``unknown``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from arrakis_rpc.daemon_api import Part, Problem
from arrakis_rpc.errors import ArrakisError, CancelledError, InternalError
from arrakis_rpc.operations import DAEMON

from .. import __version__
from ..guest.proxy import Traffic
from ..machines.admission import Admission
from ..machines.states import VmState
from ..storage.store import Store

# What generate_latest writes. The library's constant names a later version, some scrapers' no.
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MIB = 2**20
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TIMED = {"vm.start": "start", "vm.fork": "fork", "snapshot.create": "snapshot", "exec.run": "exec"}


class Metrics:
    """All metrics of one daemon, in a registry of their own.

    ``states`` gives those of all VMs, ``spare_taps``, ``standbys`` and ``warm_guests`` how many
    of them are in store, ``problems`` what is wrong, ``free_bytes`` how much room there is; all
    are asked at each scrape, and must not wait.
    """

    def __init__(
        self,
        store: Store,
        states: Callable[[], Iterable[VmState]],
        spare_taps: Callable[[], int],
        standbys: Callable[[], int],
        warm_guests: Callable[[], int],
        problems: Callable[[], Iterable[Problem]] = lambda: (),
        free_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        Info("arrakis_daemon", "This daemon.", registry=registry).info({"version": __version__})
        self._calls = Counter("arrakis_calls", "Calls begun.", ["method"], registry=registry)
        self._errors = Counter(
            "arrakis_errors",
            "Calls that failed, by the error that their caller got.",
            ["method", "code", "error"],
            registry=registry,
        )
        self._seconds = Histogram(
            "arrakis_operation_seconds",
            "How long calls took that succeeded.",
            ["operation"],
            buckets=_BUCKETS,
            registry=registry,
        )
        passed = Counter(
            "arrakis_guest_bytes",
            "Bytes of files, and of commands' streams, into guests and out of them.",
            ["direction"],
            registry=registry,
        )
        self.traffic = Traffic(passed.labels("in").inc, passed.labels("out").inc)
        self._connections = Gauge(
            "arrakis_connections", "Connections that speak the protocol.", registry=registry
        )
        taps = Gauge("arrakis_spare_taps", "Tap devices in store.", registry=registry)
        taps.set_function(spare_taps)
        vmms = Gauge(
            "arrakis_standby_vmms",
            "VMM processes launched ahead that wait for a guest.",
            registry=registry,
        )
        vmms.set_function(standbys)
        guests = Gauge(
            "arrakis_warm_guests", "Guests woken ahead that wait for a name.", registry=registry
        )
        guests.set_function(warm_guests)
        free = Gauge(
            "arrakis_free_bytes", "Room on the file system of the state.", registry=registry
        )
        free.set_function(free_bytes)
        for operation in (*_TIMED.values(), "restore"):
            self._seconds.labels(operation)  # a rate needs the zero before the first call
        registry.register(_Inventory(store, states, problems))
        ProcessCollector(registry=registry)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Ask at each scrape how many connections there are."""
        self._connections.set_function(count)

    def watch_admission(self, admission: Admission, turns: Callable[[], int]) -> None:
        """Tell how many wait for room, how long that took, and how many for their turn."""
        waiting = Gauge(
            "arrakis_waiting_starts",
            "Starts, restores and forks that wait: for room, or for their turn.",
            ["for"],
            registry=self.registry,
        )
        waiting.labels("room").set_function(lambda: admission.waiting)
        waiting.labels("turn").set_function(turns)
        memory = Gauge(
            "arrakis_admitted_bytes",
            "Memory that VMs may come to use, and how much of it may be given out.",
            ["kind"],
            registry=self.registry,
        )
        memory.labels("taken").set_function(lambda: admission.taken.memory_mib * _MIB)
        memory.labels("total").set_function(lambda: admission.total.memory_mib * _MIB)
        admission.on_admitted = Histogram(
            "arrakis_room_wait_seconds",
            "How long those waited for room that got it.",
            buckets=_BUCKETS,
            registry=self.registry,
        ).observe

    @contextmanager
    def measured(self, method: str, params: Mapping[str, Any]) -> Iterator[None]:
        """Count and time a block that does one call."""
        label = method if method in DAEMON else "unknown"
        self._calls.labels(label).inc()
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            kind = _answered(error)
            self._errors.labels(label, kind.code, kind.__name__).inc()
            raise
        if operation := _TIMED.get(method):
            if method == "vm.start" and params.get("snapshot") is not None:
                operation = "restore"
            self._seconds.labels(operation).observe(time.perf_counter() - began)


class _Inventory(Collector):
    """What there is at the moment of a scrape."""

    def __init__(
        self,
        store: Store,
        states: Callable[[], Iterable[VmState]],
        problems: Callable[[], Iterable[Problem]],
    ) -> None:
        self._store = store
        self._states = states
        self._problems = problems

    def collect(self) -> Iterable[Metric]:
        """Look; from memory only."""
        vms = GaugeMetricFamily("arrakis_vms", "VMs by state.", labels=["state"])
        states = list(self._states())
        for state in VmState:
            vms.add_metric([state.value], states.count(state))
        stored = GaugeMetricFamily("arrakis_stored", "Stored guests.", labels=["kind"])
        size = GaugeMetricFamily(
            "arrakis_stored_bytes", "What stored guests take on disk.", labels=["kind"]
        )
        kinds = {
            "template": self._store.templates,
            "snapshot": self._store.snapshots,
            "suspended": self._store.suspended,
        }
        for kind, table in kinds.items():
            manifests = list(table.values())
            stored.add_metric([kind], len(manifests))
            size.add_metric([kind], sum(manifest.bytes for manifest in manifests))
        found = [problem.part for problem in self._problems()]
        wrong = GaugeMetricFamily("arrakis_problems", "What is wrong now.", labels=["part"])
        for part in get_args(Part):
            wrong.add_metric([part], found.count(part))
        return [vms, stored, size, wrong]

    def describe(self) -> Iterable[Metric]:
        """Name the same metrics."""
        return self.collect()


def _answered(error: BaseException) -> type[ArrakisError]:
    """Give the documented class of the error that a caller gets for an exception."""
    if isinstance(error, ArrakisError):
        return next(kind for kind in type(error).__mro__ if "code" in vars(kind))
    return InternalError if isinstance(error, Exception) else CancelledError


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Write all metrics as Prometheus reads them; give also the type of that content."""
    return generate_latest(registry), _CONTENT_TYPE
