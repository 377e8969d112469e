"""Machines that go back to a snapshot of their own past."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest
from in_guest import ask, clock_error, counted, start_counter
from real_daemon import Daemon, wait_until

from arrakis import IntegrityError, NotFoundError, SandboxManager

pytestmark = pytest.mark.vm

OWN = "hostname; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; ip -o -4 addr show dev eth0"


def served(host_port: int) -> bytes:
    """What the server in the guest has to say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{host_port}/said", timeout=20) as answer:
        content: bytes = answer.read()
        return content


def answers(host_port: int) -> bool:
    """Whether there is a server yet."""
    try:
        return bool(served(host_port))
    except OSError:
        return False


def test_rollback(manager: SandboxManager, daemon: Daemon) -> None:
    """Processes, memory and files are those of then; name, address, ports and keys stay."""
    with manager.start_sandbox("box") as sandbox:
        sandbox.files.write("/root/said", b"then")
        sandbox.run_cmd("python3 -m http.server --directory /root 7000", blocking=False)
        forward = sandbox.ports.add(7000)
        start_counter(sandbox)
        wait_until(lambda: answers(forward.host_port), 20)
        before = {key: sandbox.info()[key] for key in ("ip", "port_forwards", "egress")}
        own, number = ask(sandbox, OWN), counted(sandbox)
        then = sandbox.snapshot("then")
        sandbox.files.write("/root/said", b"now")
        sandbox.files.write("/root/later", b"")
        ask(sandbox, "sync")
        pids = daemon.vmm_pids()

        sandbox.rollback(then)
        assert sandbox.files.read("/root/said") == b"then"
        assert not sandbox.files.exists("/root/later")
        assert counted(sandbox) >= number
        assert ask(sandbox, OWN) == own
        info = sandbox.info()
        assert {key: info[key] for key in before} == before
        assert info["snapshot"] == then
        assert served(forward.host_port) == b"then"
        assert clock_error(sandbox) < 2
        assert len(daemon.vmm_pids()) == 1
        assert daemon.vmm_pids() != pids


def test_randomness_is_not_repeated(manager: SandboxManager) -> None:
    """A guest that goes back twice does not get the same random bytes twice."""
    with manager.start_sandbox("box") as sandbox:
        then = sandbox.snapshot("then")
        seen = set()
        for _ in range(2):
            sandbox.rollback(then)
            seen.add(ask(sandbox, "head -c 16 /dev/urandom | od -An -tx1"))
        assert len(seen) == 2


def test_which_snapshots(manager: SandboxManager) -> None:
    """Any ancestor will do, also from a pause; a snapshot of another line is refused."""
    with manager.start_sandbox("box") as sandbox:
        for number in ("1", "2", "3"):
            sandbox.files.write("/root/number", number.encode())
            sandbox.snapshot(f"step{number}")
        sandbox.pause()
        sandbox.rollback("step2")
        assert sandbox.files.read("/root/number") == b"2"
        with pytest.raises(NotFoundError, match="step3") as refused:
            sandbox.rollback("step3")
        assert "step2, step1" in (refused.value.hint or "")
        side = sandbox.snapshot("side")
        sandbox.rollback("step1")
        assert sandbox.files.read("/root/number") == b"1"
        with pytest.raises(NotFoundError, match="side"):
            sandbox.rollback(side)


def test_failed_rollback(manager: SandboxManager, daemon: Daemon) -> None:
    """If the snapshot turns out to be damaged, the machine goes on as it was."""
    with manager.start_sandbox("box") as sandbox:
        snapshot = sandbox.snapshot("broken")
        state: Path = daemon.state / "snapshots" / snapshot / "device-state"
        state.chmod(0o600)
        state.write_bytes(b"\0" + state.read_bytes()[1:])
        sandbox.files.write("/root/kept", b"kept")
        with pytest.raises(IntegrityError):
            sandbox.rollback(snapshot)
        assert sandbox.files.read("/root/kept") == b"kept"
        assert len(daemon.vmm_pids()) == 1


def test_cancelled_rollback(manager: SandboxManager, daemon: Daemon) -> None:
    """Whenever its caller goes away: the machine is as it was, or is back; never between."""
    with manager.start_sandbox("box") as sandbox:
        sandbox.files.write("/root/state", b"then")
        then = sandbox.snapshot("then")
        outcomes = set()
        for delay in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, None):
            sandbox.files.write("/root/state", b"now")
            call = manager._client.open("vm.rollback", {"name": "box", "snapshot": then})
            if delay is None:  # only after all of it, however long that takes
                while call.take(60) is not None:
                    pass
            else:
                time.sleep(delay)
            call.close()
            wait_until(lambda: len(daemon.vmm_pids()) == 1, 10)
            outcomes.add(sandbox.files.read("/root/state"))
        assert outcomes == {b"then", b"now"}
