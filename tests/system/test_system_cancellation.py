"""Callers that go away in the middle: their work is undone, and everything else goes on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from in_guest import Background, ask, counted, over_both, start_counter, watching
from real_daemon import Daemon, running_daemon, wait_until

from arrakis import (
    ArrakisError,
    CancelledError,
    InvalidStateError,
    NotFoundError,
    Pty,
    Sandbox,
    SandboxManager,
)
from arrakis._call import Call

pytestmark = pytest.mark.vm

NewClient = Callable[[], SandboxManager]


def begun(manager: SandboxManager, method: str, params: dict[str, Any]) -> Call:
    """Begin a call; closing it is what the end of its client's process is, too."""
    return manager._client.open(method, params)


def left(call: Call) -> bool:
    """Go away from a call, as its client's end does; give whether it was answered by then.

    Only one direction is closed at first: an answer that is on its way is not taken for none.
    """
    with socket.socket(fileno=os.dup(call.fileno())) as end:
        end.shutdown(socket.SHUT_WR)
    with suppress(ArrakisError):
        while call.take(20) is not None:
            pass
    call.close()
    with suppress(ArrakisError):
        call.result()
        return True
    return False


def delays(longest: float, number: int) -> list[float]:
    """From at once up to some time, evenly spaced."""
    return [longest * step / (number - 1) for step in range(number)]


def is_idle(manager: SandboxManager, daemon: Daemon) -> bool:
    """Whether no VM is there, nor coming up."""
    return not manager.list_all() and not daemon.vmm_pids()


@over_both
def test_start(manager: SandboxManager, daemon: Daemon, new_client: NewClient) -> None:
    """A client that goes away while its VM starts leaves nothing of it, and the name is free."""
    crossed = 0
    for number, delay in enumerate(delays(0.6, 13)):
        name = f"gone{number}"  # the one before may still end
        with new_client() as client:
            call = begun(client, "vm.start", {"name": name, "entry_point": "sleep 1000"})
            time.sleep(delay)
            answered = left(call)
        with suppress(AssertionError):
            wait_until(lambda: is_idle(manager, daemon), 0 if answered else 2)
        if not is_idle(manager, daemon):
            manager.get(name).destroy()
            crossed += not answered  # with the answer, which was on its way
        wait_until(lambda: is_idle(manager, daemon), 10)
    assert crossed <= 1
    wait_until(lambda: list((daemon.state / "vms").iterdir()) == [], 10)
    with manager.start_sandbox(name) as sandbox:
        assert ask(sandbox, "echo fine") == "fine"


def test_destroyed_while_starting(manager: SandboxManager, daemon: Daemon) -> None:
    """A VM that is destroyed while it starts never comes up; its starter is told why."""
    outcomes = []
    for delay in delays(0.3, 7):
        start = Background(lambda: manager.start_sandbox("doomed"))
        time.sleep(delay)
        for _ in range(200):
            try:
                manager.get("doomed").destroy()
                break
            except NotFoundError:
                time.sleep(0.005)
        start._thread.join()
        outcomes.append(start.error)
        assert start.error is None or isinstance(start.error, CancelledError)
        assert is_idle(manager, daemon)
    assert any(outcomes)


def running(sandbox: Sandbox, pattern: str) -> str:
    """Pids of processes in the guest whose command line matches."""
    return sandbox.run(["pgrep", "-f", pattern]).text


@pytest.mark.parametrize("how", ["close", "cancel"])
@pytest.mark.parametrize("pty", [None, Pty()], ids=["pipes", "terminal"])
def test_exec(manager: SandboxManager, how: str, pty: Pty | None) -> None:
    """A command whose client goes away, or cancels it, is killed with all that it started."""
    with manager.start_sandbox("exec") as sandbox:
        command = "trap '' TERM HUP; sleep 7771 & (sleep 7772; sleep 7773) & echo on; sleep 7774"
        process = sandbox.exec(command, pty=pty)
        _, data = next(iter(process))
        assert data.strip() == b"on"
        assert len(running(sandbox, "sleep 777").split()) >= 3
        if how == "close":
            process._call.close()
        else:
            process.cancel()
        wait_until(lambda: running(sandbox, "sleep 777") == "", 10)


@over_both
def test_exec_that_floods(manager: SandboxManager) -> None:
    """A command in the middle of endless output is killed when its reader goes away."""
    with manager.start_sandbox("flood") as sandbox:
        process = sandbox.exec(["yes"])
        taken = 0
        for _, data in process:
            taken += len(data)
            if taken > 3_000_000:
                break
        process._call.close()
        wait_until(lambda: sandbox.run(["pgrep", "-x", "yes"]).text == "", 10)
        assert ask(sandbox, "echo fine") == "fine"


def test_background_command(manager: SandboxManager) -> None:
    """A command in the background outlives the client that started it."""
    with manager.start_sandbox("background") as sandbox:
        with SandboxManager(socket=manager.socket) as other:
            other.get("background").run_cmd("exec sleep 8881", blocking=False)
        assert len(running(sandbox, "sleep 8881").split()) == 1


@over_both
def test_upload(manager: SandboxManager) -> None:
    """An upload that breaks off leaves the old file, and nothing beside it."""
    with manager.start_sandbox("upload") as sandbox:
        sandbox.files.write("/root/d/file", "old")
        for size in (0, 1, 500_000, 3_000_000):
            args = {"path": "/root/d/file"}
            call = begun(manager, "file.write", {"vm": "upload", "args": args})
            if size:
                call.send("data", bytes(size))
            call.close()
        wait_until(lambda: [entry.name for entry in sandbox.files.list("/root/d")] == ["file"], 10)
        assert sandbox.files.read_text("/root/d/file") == "old"


def test_snapshot(manager: SandboxManager, daemon: Daemon) -> None:
    """A snapshot whose client goes away is whole or does not exist; the VM goes on unharmed."""
    made = []
    with manager.start_sandbox("snapped") as sandbox:
        start_counter(sandbox)
        for number, delay in enumerate(delays(0.15, 12)):
            call = begun(manager, "snapshot.create", {"vm": "snapped", "id": f"cut-{number}"})
            time.sleep(delay)
            call.close()
            assert sandbox.info()["status"] == "RUNNING"
            if number % 4 == 0:
                assert ask(sandbox, "echo fine") == "fine"
        sandbox.snapshot("last")  # waits for those before it
        numbers = counted(sandbox)
        assert numbers == list(range(len(numbers)))
        made = [one.id for one in manager.snapshots.list()]
        on_disk = {path.name for path in (daemon.state / "snapshots").iterdir()}
        assert on_disk == set(made)
        assert list((daemon.state / "scratch").iterdir()) == []
    for snapshot in (made[0], made[-1]):
        with manager.restore("woken", snapshot) as woken:
            numbers = counted(woken)
            assert numbers == list(range(len(numbers)))


def test_destroyed_while_snapshotted(manager: SandboxManager, daemon: Daemon) -> None:
    """A snapshot whose VM is destroyed in the middle is whole, or refused with a clear error."""
    for number, delay in enumerate(delays(0.15, 6)):
        sandbox = manager.start_sandbox("victim")
        sandbox.files.write("/root/data", b"x" * 3_000_000)
        task = Background(lambda: sandbox.snapshot(f"victim-{number}"))  # noqa: B023
        time.sleep(delay)
        sandbox.destroy()
        task._thread.join()
        if task.error is None:
            with manager.restore("woken", f"victim-{number}") as woken:
                assert woken.files.read("/root/data") == b"x" * 3_000_000
        else:
            assert isinstance(task.error, ArrakisError)
            assert "defect" not in str(task.error), task.error
            assert f"victim-{number}" not in {one.id for one in manager.snapshots.list()}
    on_disk = {path.name for path in (daemon.state / "snapshots").iterdir()}
    assert on_disk == {one.id for one in manager.snapshots.list()}


def test_deleted_while_restored(manager: SandboxManager) -> None:
    """A snapshot deleted while it is restored gives a whole VM, or a clear error."""
    with manager.start_sandbox("source") as source:
        source.files.write("/root/data", "data")
        for number, delay in enumerate(delays(0.2, 6)):
            source.snapshot(f"brief-{number}")
            task = Background(lambda: manager.restore("woken", f"brief-{number}"))  # noqa: B023
            time.sleep(delay)
            manager.snapshots.delete(f"brief-{number}")
            task._thread.join()
            if task.error is None:
                look = "echo 3 > /proc/sys/vm/drop_caches; cat /root/data"
                assert ask(task.result, look) == "data"
                task.result.destroy()
            else:
                assert isinstance(task.error, ArrakisError)
                assert "could not be started" not in str(task.error), task.error


@over_both
def test_fork(manager: SandboxManager, daemon: Daemon, new_client: NewClient) -> None:
    """A fork whose client goes away leaves no sibling, and the source goes on."""

    def is_alone() -> bool:
        return len(daemon.vmm_pids()) == 1 and len(manager.list_all()) == 1

    crossed = 0
    with manager.start_sandbox("parent") as parent:
        for delay in delays(1.0, 6):
            with new_client() as client:
                call = begun(client, "vm.fork", {"name": "parent", "count": 2})
                time.sleep(delay)
                answered = left(call)
            with suppress(AssertionError):
                wait_until(is_alone, 0 if answered else 2)
            if not is_alone():
                siblings = manager.list_all()[1:]
                assert len(siblings) == 2
                for sandbox in siblings:
                    sandbox.destroy()
                crossed += not answered  # with the answer, which was on its way
            wait_until(is_alone, 10)
            wait_until(lambda: manager.snapshots.list() == [], 10)
        assert crossed <= 1
        assert ask(parent, "echo fine") == "fine"


def test_pause_and_resume(manager: SandboxManager) -> None:
    """Whoever goes away while he pauses or resumes: the VM's state is what the daemon says."""
    with manager.start_sandbox("halting") as sandbox:
        paused = 0
        for number in range(40):
            method = "vm.resume" if sandbox.info()["status"] == "PAUSED" else "vm.pause"
            call = begun(manager, method, {"name": "halting"})
            time.sleep(0.0005 * (2 ** (number % 8) - 1))  # on a busy host it takes long to begin
            call.close()
            time.sleep(0.02)
            paused += resumed_until_it_answers(sandbox)
        assert paused > 0


def resumed_until_it_answers(sandbox: Sandbox) -> int:
    """Ask the guest something, and resume it whenever it is said to be paused; give how often."""
    resumed = 0

    def answered() -> bool:
        nonlocal resumed
        if sandbox.info()["status"] == "PAUSED":  # what was begun may end in this very moment
            with suppress(InvalidStateError):
                sandbox.resume()
                resumed += 1
        return not asking._thread.is_alive()

    asking = Background(lambda: sandbox.files.exists("/etc/hostname"))
    wait_until(answered, 10)
    if isinstance(asking.error, InvalidStateError):  # it was paused when it was asked
        return resumed + resumed_until_it_answers(sandbox)
    assert asking.wait()
    return resumed


@contextmanager
def booting(daemon: Daemon, manager: SandboxManager) -> Iterator[Call]:
    """Begin the boot of a template of another shape, which takes a while."""
    call = begun(manager, "template.build", {"memory_mib": 256})
    try:
        wait_until(lambda: daemon.vmm_pids(), 10)
        yield call
    finally:
        call.close()


def test_template(template_state: Path) -> None:
    """A template's boot ends with its last client; who else waits for it goes on with it."""
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        before = manager.templates.list()  # and the connection that the manager keeps is no leak
        with daemon.leaves_nothing():
            with booting(daemon, manager):
                (first,) = daemon.vmm_pids()
                waiting = begun(manager, "vm.start", {"name": "waits", "memory_mib": 256})
                time.sleep(0.3)
                assert daemon.vmm_pids() == {first}
            wait_until(lambda: daemon.vmm_pids() - {first}, 10)
            waiting.close()
            wait_until(lambda: is_idle(manager, daemon), 10)
        assert manager.templates.list() == before


def test_subscription(manager: SandboxManager, daemon: Daemon) -> None:
    """A subscriber that goes away is forgotten."""
    before = len(daemon.open_files())
    for _ in range(5):
        with watching(manager):
            pass
    wait_until(lambda: len(daemon.open_files()) <= before, 5)
