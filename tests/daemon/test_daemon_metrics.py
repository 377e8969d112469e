"""The numbers for Prometheus."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from stored_things import Shelf

from arrakis_rpc.errors import InvalidStateError, NotFoundError
from arrakisd.host.vmm.qmp import QmpClosedError
from arrakisd.machines.states import VmState
from arrakisd.upkeep.metrics import Metrics, render

Numbers = dict[tuple[str, ...], float]


def scraped(metrics: Metrics, name: str) -> Numbers:
    """Give the samples of one name by their labels' values, in the order of the labels' names."""
    body, content_type = render(metrics.registry)
    assert content_type.startswith("text/plain; version=0.0.4")
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def metrics(shelf: Shelf) -> Metrics:
    return Metrics(
        shelf.store, lambda: [VmState.RUNNING, VmState.PAUSED, VmState.RUNNING], int, int, int
    )


def test_vms_by_state(metrics: Metrics) -> None:
    """VMs are counted when they are asked for, and a state without VMs is a zero."""
    assert scraped(metrics, "arrakis_vms") == {
        ("CREATED",): 0,
        ("RUNNING",): 2,
        ("PAUSED",): 1,
        ("SUSPENDED",): 0,
        ("STOPPED",): 0,
    }


def test_stored_things(metrics: Metrics, shelf: Shelf) -> None:
    """Templates and snapshots, and what they take on disk, follow the store."""
    kinds = [("template",), ("snapshot",), ("suspended",)]
    assert scraped(metrics, "arrakis_stored") == dict.fromkeys(kinds, 0)
    template = shelf.template()
    first = shelf.snapshot("first", template)
    second = shelf.snapshot("second", first)
    assert list(scraped(metrics, "arrakis_stored").values()) == [1, 2, 0]
    assert scraped(metrics, "arrakis_stored_bytes") == {
        ("template",): template.bytes,
        ("snapshot",): first.bytes + second.bytes,
        ("suspended",): 0,
    }
    shelf.store.delete(second)
    assert scraped(metrics, "arrakis_stored")["snapshot",] == 1


def test_sizes_of_pools(shelf: Shelf) -> None:
    """Taps and connections are counted at the moment of the scrape."""
    taps, connections = [1, 2, 3], [1]
    metrics = Metrics(
        shelf.store, list, lambda: len(taps), lambda: 10 * len(taps), lambda: 20 * len(taps)
    )
    metrics.watch_connections(lambda: len(connections))
    assert scraped(metrics, "arrakis_spare_taps") == {(): 3}
    assert scraped(metrics, "arrakis_standby_vmms") == {(): 30}
    assert scraped(metrics, "arrakis_warm_guests") == {(): 60}
    assert scraped(metrics, "arrakis_connections") == {(): 1}
    taps.pop()
    connections.append(2)
    assert scraped(metrics, "arrakis_spare_taps") == {(): 2}
    assert scraped(metrics, "arrakis_standby_vmms") == {(): 20}
    assert scraped(metrics, "arrakis_connections") == {(): 2}


@pytest.mark.parametrize(
    ("method", "params", "operation"),
    [
        ("vm.start", {"name": "a"}, "start"),
        ("vm.start", {"name": "a", "snapshot": None}, "start"),
        ("vm.start", {"name": "a", "snapshot": "before"}, "restore"),
        ("vm.fork", {"name": "a"}, "fork"),
        ("snapshot.create", {"vm": "a"}, "snapshot"),
        ("exec.run", {"vm": "a"}, "exec"),
    ],
)
def test_latencies(metrics: Metrics, method: str, params: dict[str, str], operation: str) -> None:
    """What makes or runs something in a VM is timed, under what it is for the user."""
    with metrics.measured(method, params):
        pass
    counts = scraped(metrics, "arrakis_operation_seconds_count")
    assert counts.pop((operation,)) == 1
    assert set(counts.values()) == {0.0}  # the others are there, and nothing else was timed


def test_failures_are_no_latencies(metrics: Metrics) -> None:
    """A call that fails is counted as that, and does not make starts look quick."""
    with pytest.raises(NotFoundError), metrics.measured("vm.start", {}):
        raise NotFoundError("no")
    assert scraped(metrics, "arrakis_operation_seconds_count")["start",] == 0
    assert scraped(metrics, "arrakis_calls_total") == {("vm.start",): 1}
    assert scraped(metrics, "arrakis_errors_total") == {("-32001", "NotFoundError", "vm.start"): 1}


@pytest.mark.parametrize(
    ("problem", "code", "name"),
    [
        (InvalidStateError("no"), "-32003", "InvalidStateError"),
        (QmpClosedError("gone"), "-32011", "VmmError"),
        (ValueError("a defect"), "-32603", "InternalError"),
        (ExceptionGroup("", [ValueError("a defect")]), "-32603", "InternalError"),
    ],
    ids=["an error", "one of a class that no client knows", "a defect", "several"],
)
def test_errors(metrics: Metrics, problem: Exception, code: str, name: str) -> None:
    """Errors are counted by method and by the code that the caller gets."""
    with pytest.raises(type(problem)), metrics.measured("vm.pause", {}):
        raise problem
    assert scraped(metrics, "arrakis_errors_total") == {(code, name, "vm.pause"): 1}


async def test_cancelled_calls(metrics: Metrics) -> None:
    """A caller that goes away is counted as one that cancelled."""
    with trio.move_on_after(0), metrics.measured("exec.run", {}):
        await trio.sleep_forever()
    assert scraped(metrics, "arrakis_errors_total") == {("-32007", "CancelledError", "exec.run"): 1}


def test_clients_make_no_series(metrics: Metrics) -> None:
    """However many methods and VMs clients think of, the number of series stays."""
    for number in range(50):
        with pytest.raises(NotFoundError), metrics.measured(f"vm.m{number}", {"name": f"{number}"}):
            raise NotFoundError("no")
    before = render(metrics.registry)[0].count(b"\n")
    for number in range(50, 100):
        with pytest.raises(NotFoundError), metrics.measured(f"vm.m{number}", {"name": f"{number}"}):
            raise NotFoundError("no")
    assert render(metrics.registry)[0].count(b"\n") == before
    assert scraped(metrics, "arrakis_calls_total") == {("unknown",): 100}


def test_several_daemons(metrics: Metrics, shelf: Shelf) -> None:
    """Two of them in one process know nothing of each other."""
    other = Metrics(shelf.store, list, int, int, int)
    with metrics.measured("vm.list", {}):
        pass
    assert scraped(other, "arrakis_calls_total") == {}
