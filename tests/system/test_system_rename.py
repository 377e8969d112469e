"""Machines that get another name while they run."""

from __future__ import annotations

import pytest
from in_guest import Background, ask, counted, over_both, start_counter, watching
from real_daemon import Daemon, wait_until

from arrakis import (
    AlreadyExistsError,
    DeadlineError,
    GuestError,
    InvalidStateError,
    NotFoundError,
    SandboxManager,
)

pytestmark = pytest.mark.vm

OWN = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key"


@over_both
def test_rename(manager: SandboxManager) -> None:
    """Name and host name are new; processes, address, ports, policy and keys stay."""
    with manager.start_sandbox("old", ports=[8000]) as sandbox, watching(manager) as watch:
        start_counter(sandbox)
        kept = ("ip", "port_forwards", "egress", "pid")
        before, own = {key: sandbox.info()[key] for key in kept}, ask(sandbox, OWN)
        sandbox.rename("new")
        assert watch.until("vm.renamed", "new")[-1]["data"] == {"former": "old"}
        assert [one.name for one in manager.list_all()] == [sandbox.name] == ["new"]
        assert ask(sandbox, "hostname; cat /etc/hostname; getent hosts new").split()[:2] == (
            ["new", "new"]
        )
        assert ask(sandbox, OWN) == own
        assert {key: sandbox.info()[key] for key in kept} == before
        numbers = counted(sandbox)
        wait_until(lambda: len(counted(sandbox)) > len(numbers), 10)
        with pytest.raises(NotFoundError):
            manager.get("old")
        with manager.start_sandbox("old") as other:  # the name is free
            taken = before["port_forwards"][0]["host_port"]
            with pytest.raises(AlreadyExistsError, match="that of VM 'new'"):
                other.ports.add(8000, host_port=int(taken))


def test_who_takes_its_place(manager: SandboxManager, daemon: Daemon) -> None:
    """With replace the machine of that name is destroyed, and the name is always somebody's."""
    source = manager.start_sandbox("source")
    (fork,) = source.fork(1)
    with watching(manager) as watch:
        fork.files.write("/root/mine", b"fork")
        with pytest.raises(AlreadyExistsError, match="source"):
            fork.rename("source")
        renaming = Background(lambda: fork.rename("source", replace=True))
        while renaming._thread.is_alive():
            assert "source" in [one.name for one in manager.list_all()]
        renaming.wait()
        assert watch.kinds("vm.renamed", "source") == ["vm.stopped", "vm.destroyed", "vm.renamed"]
    assert [one.name for one in manager.list_all()] == ["source"]
    assert source.files.read("/root/mine") == b"fork"
    assert len(daemon.vmm_pids()) == 1
    with pytest.raises(AlreadyExistsError):
        fork.rename("source", replace=True)
    assert ask(source, "hostname") == "source"


def test_renamed_in_a_pause(manager: SandboxManager) -> None:
    """A paused machine has its new name at once, and its guest when it goes on."""
    with manager.start_sandbox("old") as sandbox:
        then = sandbox.snapshot("then")
        sandbox.pause()
        sandbox.rename("new")
        assert sandbox.info()["status"] == "PAUSED"
        with pytest.raises(InvalidStateError, match="'new' is PAUSED"):
            ask(sandbox, "true")
        sandbox.resume()
        assert ask(sandbox, "hostname") == "new"
        sandbox.rename("newer")
        sandbox.rollback(then)
        assert ask(sandbox, "hostname") == "newer"


def test_guest_that_does_not_answer(manager: SandboxManager) -> None:
    """A machine whose guest cannot be told its new name keeps the one that it has."""
    sandbox = manager.start_sandbox("silent")
    unanswered = Background(lambda: sandbox.run("kill -STOP $PPID"))

    def rename_until_it_has_stopped() -> None:
        for number in range(1000):
            sandbox.rename(f"silent-{number}")

    with pytest.raises((GuestError, DeadlineError), match="silent"):
        rename_until_it_has_stopped()
    assert [one.name for one in manager.list_all()] == [sandbox.name]
    sandbox.destroy()
    with pytest.raises(GuestError, match=sandbox.name):
        unanswered.wait()
