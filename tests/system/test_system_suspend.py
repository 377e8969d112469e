"""Machines that are put aside on disk, and come back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from in_guest import Background, ask, clock_error, counted, start_counter, watching
from real_daemon import (
    Daemon,
    end_daemon,
    files_below,
    is_running,
    running_daemon,
    started_daemon,
    wait_until,
    write_config,
)

from arrakis import (
    AlreadyExistsError,
    ArrakisError,
    IntegrityError,
    InvalidStateError,
    NotFoundError,
    SandboxManager,
)

pytestmark = pytest.mark.vm

OWN = "hostname; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; ip -o -4 addr show dev eth0"
KEPT = ("name", "ip", "port_forwards", "egress", "created", "snapshot")


def test_suspend(manager: SandboxManager, daemon: Daemon) -> None:
    """A suspended machine has no process, and comes back as it was: all of it, but for the time."""
    stored = daemon.stored_files()
    with watching(manager) as watch, manager.start_sandbox("box", ports=[7000]) as sandbox:
        sandbox.ports.add(7001, description="more")
        sandbox.set_egress(["192.0.2.1:80"])
        start_counter(sandbox)
        own, before = ask(sandbox, OWN), sandbox.info()
        sandbox.suspend()
        assert daemon.vmm_pids() == set()
        info = sandbox.info()
        assert (info["status"], info["pid"]) == ("SUSPENDED", None)
        assert {key: info[key] for key in KEPT} == {key: before[key] for key in KEPT}
        assert manager.health().vms["SUSPENDED"] == 1
        assert manager.snapshots.list() == []
        with pytest.raises(InvalidStateError, match="SUSPENDED") as refused:
            sandbox.run("true")
        assert "resume" in (refused.value.hint or "")
        with pytest.raises(AlreadyExistsError) as taken:
            manager.start_sandbox("box")
        assert "resume or destroy" in (taken.value.hint or "")

        sandbox.resume()
        numbers = counted(sandbox)
        assert numbers == list(range(len(numbers)))
        wait_until(lambda: len(counted(sandbox)) > len(numbers), 10)
        assert ask(sandbox, OWN) == own
        assert clock_error(sandbox) < 2
        info = sandbox.info()
        assert {key: info[key] for key in KEPT} == {key: before[key] for key in KEPT}
        assert files_below(daemon.state, "suspended") == set()
        kinds = [kind for kind in watch.kinds("vm.resumed", "box") if kind != "vm.started"]
        assert kinds == ["vm.suspended", "vm.resumed"]
    wait_until(lambda: daemon.stored_files() == stored, 5)


def test_again_and_again(manager: SandboxManager, daemon: Daemon) -> None:
    """It can be suspended many times, from a pause too, and snapshots keep their places."""
    with manager.start_sandbox("box") as sandbox:
        sandbox.files.write("/root/number", b"1")
        first = sandbox.snapshot("first")
        start_counter(sandbox)
        for number in ("2", "3"):
            sandbox.files.write("/root/number", number.encode())
            sandbox.pause()
            sandbox.suspend()
            assert sandbox.info()["snapshot"] == first
            sandbox.resume()
            assert sandbox.info()["snapshot"] == first
            assert sandbox.files.read("/root/number").decode() == number
        second = sandbox.snapshot("second")
        parents = {one.id: one.parent for one in manager.snapshots.list()}
        assert parents == {first: None, second: first}
        sandbox.suspend()
        manager.snapshots.delete(first)
        assert sandbox.info()["snapshot"] == second
        sandbox.resume()
        (fork,) = sandbox.fork()
        assert fork.files.read("/root/number") == b"3"
        numbers = counted(sandbox)
        assert numbers == list(range(len(numbers)))
        sandbox.rollback(second)
        assert sandbox.files.read("/root/number") == b"3"


def test_destroy(manager: SandboxManager, daemon: Daemon) -> None:
    """To destroy a suspended machine frees all that it took; its name can be used again."""
    stored = daemon.stored_files()
    for _ in range(2):
        sandbox = manager.start_sandbox("box")
        sandbox.suspend()
        assert daemon.stored_files() != stored
        sandbox.destroy()
        with pytest.raises(NotFoundError):
            sandbox.info()
        assert files_below(daemon.state, "suspended") == set()
        wait_until(lambda: daemon.stored_files() == stored, 5)


def test_who_waits(manager: SandboxManager) -> None:
    """A command that somebody waits for is cut off with an error, not left hanging."""
    with manager.start_sandbox("box") as sandbox:
        call = Background(lambda: sandbox.run("sleep 1000"))
        wait_until(lambda: "sleep 1000" in ask(sandbox, "ps -ef"), 10)
        sandbox.suspend()
        with pytest.raises(ArrakisError):
            call.wait(10)
        sandbox.resume()
        assert ask(sandbox, "echo fine") == "fine"


def test_failed_resume(manager: SandboxManager, daemon: Daemon) -> None:
    """Where what is stored is damaged, resume says so, and the machine stays as it is."""
    with manager.start_sandbox("box") as sandbox:
        sandbox.suspend()
        (state,) = (daemon.state / "suspended").glob("*/device-state")
        whole = state.read_bytes()
        state.chmod(0o600)
        state.write_bytes(b"\0" + whole[1:])
        with pytest.raises(IntegrityError, match="device-state"):
            sandbox.resume()
        assert sandbox.info()["status"] == "SUSPENDED"
        assert daemon.vmm_pids() == set()
        state.write_bytes(whole)
        sandbox.resume()
        assert ask(sandbox, "echo fine") == "fine"


def test_cancelled(manager: SandboxManager, daemon: Daemon) -> None:
    """Whenever its caller goes away, the machine runs or is suspended, and nothing between."""
    with manager.start_sandbox("box") as sandbox:
        outcomes = set()
        for delay in (0.0, 0.05, 0.1, 0.2, 0.4, None):
            call = manager._client.open("vm.suspend", {"name": "box"})
            if delay is None:  # only after all of it, however long that takes
                while call.take(60) is not None:
                    pass
            else:
                time.sleep(delay)
            call.close()
            wait_until(lambda: sandbox.info()["status"] != "PAUSED", 10)
            if sandbox.info()["status"] == "SUSPENDED":
                sandbox.resume()
                outcomes.add("suspended")
            else:
                outcomes.add("running")
            assert ask(sandbox, "echo fine") == "fine"
            assert len(daemon.vmm_pids()) == 1
        assert outcomes == {"running", "suspended"}


def test_destroyed_meanwhile(manager: SandboxManager, daemon: Daemon) -> None:
    """A machine that is destroyed while it is being suspended does not come back."""
    for delay in (0.05, 0.15, 0.3):
        sandbox = manager.start_sandbox("box")
        call = Background(sandbox.suspend)
        time.sleep(delay)
        sandbox.destroy()
        call._thread.join()  # be it with an error, or that it was quicker
        assert manager.list_all() == []
        wait_until(lambda: files_below(daemon.state, "suspended") == set(), 5)


def test_killed(template_state: Path) -> None:
    """A suspended machine survives the sudden death of its daemon, and keeps its name."""
    with (
        started_daemon(template_state) as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        sandbox = manager.start_sandbox("box", ports=[7000])
        start_counter(sandbox)
        own, before = ask(sandbox, OWN), sandbox.info()
        sandbox.suspend()
        manager.start_sandbox("other")
        daemon.process.kill()
        daemon.process.wait()
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        (sandbox,) = manager.list_all()
        info = sandbox.info()
        assert info["status"] == "SUSPENDED"
        assert (info["ip"], info["created"]) == (before["ip"], before["created"])
        sandbox.resume()
        numbers = counted(sandbox)
        assert numbers == list(range(len(numbers)))
        assert ask(sandbox, OWN) == own
        info = sandbox.info()
        assert {key: info[key] for key in KEPT} == {key: before[key] for key in KEPT}
        sandbox.suspend()
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        sandbox = manager.get("box")
        sandbox.destroy()
        assert files_below(template_state, "suspended") == set()


def test_killed_at_work(template_state: Path) -> None:
    """Killed while it suspends, a daemon leaves a machine that is suspended as a whole, or none."""
    for delay in (0.15, 0.4):
        with (
            started_daemon(template_state) as daemon,
            SandboxManager(socket=daemon.socket) as manager,
        ):
            sandbox = manager.start_sandbox("box")
            start_counter(sandbox)
            pids = daemon.vmm_pids()
            call = Background(sandbox.suspend)
            time.sleep(delay)
            daemon.process.kill()
            daemon.process.wait()
            call._thread.join()
            wait_until(lambda pids=pids: not any(is_running(pid) for pid in pids), 5)
        with (
            running_daemon(template_state) as daemon,
            SandboxManager(socket=daemon.socket) as manager,
        ):
            for sandbox in manager.list_all():
                sandbox.resume()
                numbers = counted(sandbox)
                assert numbers == list(range(len(numbers)))
                sandbox.destroy()
            assert files_below(template_state, "suspended") == set()


@contextmanager
def careful(state: Path) -> Iterator[tuple[Daemon, SandboxManager]]:
    """A daemon that suspends its machines when it ends."""
    config = write_config(state, 'on_shutdown = "suspend"')
    with (
        started_daemon(state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        yield daemon, manager


def test_shutdown(template_state: Path) -> None:
    """A daemon that ends in order suspends all; the next goes on with those that ran, no others."""
    with careful(template_state) as (daemon, manager):
        running, paused, aside = (manager.start_sandbox(one) for one in ("run", "pause", "aside"))
        start_counter(running)
        own = ask(running, OWN)
        paused.pause()
        aside.suspend()
        call = Background(lambda: running.run("sleep 1000"))
        wait_until(lambda: "sleep 1000" in ask(running, "ps -ef"), 10)
        end_daemon(daemon, signal.SIGTERM)
        with pytest.raises(ArrakisError):
            call.wait(5)
    with careful(template_state) as (daemon, manager):
        running = manager.get("run")
        wait_until(lambda: running.info()["status"] == "RUNNING", 20)
        numbers = counted(running)
        assert numbers == list(range(len(numbers)))
        assert ask(running, OWN) == own
        for name in ("pause", "aside"):
            assert manager.get(name).info()["status"] == "SUSPENDED"
        manager.destroy_all()
        assert files_below(template_state, "suspended") == set()
        end_daemon(daemon, signal.SIGINT)


def test_shutdown_in_a_resume(template_state: Path) -> None:
    """A machine whose resume outlasts its daemon is there for the next one, whole."""
    with careful(template_state) as (daemon, manager):
        sandbox = manager.start_sandbox("box")
        sandbox.files.write("/root/kept", b"kept")
        sandbox.suspend()
        call = manager._client.open("vm.resume", {"name": "box"})
        wait_until(daemon.vmm_pids, 10)
        (vmm,) = daemon.vmm_pids()
        os.kill(vmm, signal.SIGSTOP)
        ending = Background(lambda: end_daemon(daemon, signal.SIGTERM))
        time.sleep(2)  # until it no longer waits for calls to finish
        with suppress(ProcessLookupError):
            os.kill(vmm, signal.SIGCONT)
        ending.wait(60)
        call.close()
    with careful(template_state) as (daemon, manager):
        sandbox = manager.get("box")
        with suppress(InvalidStateError):  # it may go on by itself
            sandbox.resume()
        wait_until(lambda: sandbox.info()["status"] == "RUNNING", 20)
        assert sandbox.files.read("/root/kept") == b"kept"
        manager.destroy_all()
        end_daemon(daemon, signal.SIGTERM)


def test_next_daemon_meets_damage(template_state: Path) -> None:
    """A machine that cannot go on by itself costs neither the daemon nor its siblings anything."""
    with careful(template_state) as (daemon, manager):
        for name in ("whole", "damaged"):
            manager.start_sandbox(name)
        end_daemon(daemon, signal.SIGTERM)
    (state,) = (
        manifest.with_name("device-state")
        for manifest in (template_state / "suspended").glob("*/manifest.json")
        if json.loads(manifest.read_text())["vm"] == "damaged"
    )
    state.chmod(0o600)
    state.write_bytes(b"\0" + state.read_bytes()[1:])
    with careful(template_state) as (daemon, manager):
        wait_until(lambda: manager.get("whole").info()["status"] == "RUNNING", 20)
        wait_until(lambda: "VM stays suspended" in daemon.log_text(), 20)
        assert manager.get("damaged").info()["status"] == "SUSPENDED"
        assert ask(manager.get("whole"), "echo fine") == "fine"
        manager.destroy_all()
        end_daemon(daemon, signal.SIGTERM)


def test_next_daemon_has_another_network(template_state: Path) -> None:
    """A machine that finds no place in it is told of and kept, and the daemon begins."""
    with careful(template_state) as (daemon, manager):
        manager.start_sandbox("box")
        end_daemon(daemon, signal.SIGTERM)
    bridged = template_state.parent / f"{template_state.name}.toml"
    without = bridged.with_name("without.toml")
    without.write_text('[network]\nmode = "none"\n[pool]\nstandby = 0\nwarm = 0\n')
    with (
        started_daemon(template_state, f"--config={without}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        assert manager.list_all() == []
        assert "box" in str(manager.health().reasons)
        end_daemon(daemon, signal.SIGTERM)
    with careful(template_state) as (daemon, manager):
        wait_until(lambda: manager.get("box").info()["status"] == "RUNNING", 20)
        manager.destroy_all()
        end_daemon(daemon, signal.SIGTERM)


def test_shutdown_without_success(template_state: Path) -> None:
    """A machine that cannot be suspended is ended with the daemon, which says so in its log."""
    with careful(template_state) as (daemon, manager):
        manager.start_sandbox("box")
        scratch = template_state / "scratch"
        scratch.rmdir()
        scratch.touch()
        end_daemon(daemon, signal.SIGTERM)
        scratch.unlink()
        assert "VM cannot be suspended" in daemon.log_text()
    with careful(template_state) as (daemon, manager):
        assert manager.list_all() == []
        end_daemon(daemon, signal.SIGTERM)
