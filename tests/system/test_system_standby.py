"""VMM processes that were launched ahead of the guests that they take."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_guest import ask, counted, start_counter
from real_daemon import Daemon, is_running, running_daemon, wait_until, write_config

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

STANDBY = 2


@pytest.fixture
def prepared(template_state: Path) -> Iterator[Daemon]:
    """A daemon that has all its standbys ready."""
    config = write_config(template_state, standby=STANDBY)
    with running_daemon(template_state, f"--config={config}") as daemon:
        wait_until(lambda: is_full(daemon), 20)
        yield daemon


@pytest.fixture
def visitor(prepared: Daemon) -> Iterator[SandboxManager]:
    """A manager for that daemon."""
    with SandboxManager(socket=prepared.socket) as manager:
        yield manager
        manager.destroy_all()


def unused(daemon: Daemon, *used: int) -> set[int]:
    """Pids of the VMMs without a guest."""
    return daemon.vmm_pids() - set(used)


def is_full(daemon: Daemon, *used: int) -> bool:
    """Whether there are as many as there should be, beside those with a guest; all ready."""
    there = unused(daemon, *used)
    whole = daemon.log_text().split("\n")[:-1]
    lines = [line for line in whole if "launched ahead" in line]
    return len(there) == STANDBY and there <= {json.loads(line).get("pid") for line in lines}


def test_start_restore_and_fork(prepared: Daemon, visitor: SandboxManager) -> None:
    """Each takes one that waits, which then is a machine like any other; others take its place."""
    waiting = unused(prepared)
    first = visitor.start_sandbox("first")
    pids = [first.info()["pid"]]
    assert pids[0] in waiting
    assert ask(first, "hostname") == "first"
    start_counter(first)
    first.files.write("/root/kept", b"as it was")
    snapshot = first.snapshot("base")
    first.files.write("/root/kept", b"changed since")

    wait_until(lambda: is_full(prepared, *pids), 20)
    waiting = unused(prepared, *pids)
    second = visitor.restore("second", snapshot)
    pids.append(second.info()["pid"])
    assert pids[1] in waiting
    assert ask(second, "hostname") == "second"
    assert second.files.read("/root/kept") == b"as it was"
    before = counted(second)
    wait_until(lambda: counted(second) > before, 10)

    wait_until(lambda: is_full(prepared, *pids), 20)
    waiting = unused(prepared, *pids)
    siblings = first.fork(STANDBY)
    assert {sibling.info()["pid"] for sibling in siblings} == waiting
    assert [ask(sibling, "cat /root/kept") for sibling in siblings] == ["changed since"] * STANDBY
    addresses = {one.info()["ip"] for one in (first, second, *siblings)}
    assert len(addresses) == 2 + STANDBY


def test_more_at_once_than_there_are(prepared: Daemon, visitor: SandboxManager) -> None:
    """Who finds none waiting gets a new one."""
    source = visitor.start_sandbox("source")
    siblings = source.fork(STANDBY + 2)
    assert [ask(one, "hostname") for one in siblings] == [one.name for one in siblings]


def test_a_killed_one_is_replaced(prepared: Daemon, visitor: SandboxManager) -> None:
    """One that dies while it waits costs nobody a start, and another takes its place."""
    victim = min(unused(prepared))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not is_running(victim), 5)  # nobody may have noticed yet
    with visitor.start_sandbox("box") as sandbox:
        assert ask(sandbox, "echo fine") == "fine"
        pid = sandbox.info()["pid"]
        wait_until(lambda: is_full(prepared, pid), 30)


def test_cancelled_takers(prepared: Daemon, visitor: SandboxManager) -> None:
    """What a start had taken ends with it when its caller goes away, at whatever moment."""
    files = len(list((prepared.state / "vms").iterdir()))
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
        call = visitor._client.open("vm.start", {"name": f"gone-{delay}"})
        time.sleep(delay)
        call.close()
    wait_until(lambda: not visitor.list_all(), 10)
    wait_until(lambda: is_full(prepared), 20)
    wait_until(lambda: len(list((prepared.state / "vms").iterdir())) == files, 10)


def test_a_deleted_template(prepared: Daemon, visitor: SandboxManager) -> None:
    """Nothing waits for guests of a template that is deleted."""
    (template,) = visitor.templates.list()
    visitor.templates.delete(template.id)
    wait_until(lambda: not unused(prepared), 20)


def test_a_budget_of_nothing(template_state: Path) -> None:
    """Without memory for them there are none, and machines start all the same."""
    config = write_config(template_state, standby=STANDBY)
    config.write_text(config.read_text() + "memory_mib = 0\n")
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
        manager.start_sandbox("box") as sandbox,
    ):
        assert unused(daemon, sandbox.info()["pid"]) == set()
