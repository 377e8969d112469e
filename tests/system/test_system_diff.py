"""What is different between two snapshots."""

from __future__ import annotations

import pytest
from in_guest import ask
from real_daemon import Daemon, wait_until

from arrakis import ArrakisError, GuestError, NotFoundError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

BEFORE = """
mkdir -p /root/old/deep /root/kept; cd /root
echo kept > kept/same; echo 1234 > same-size; echo short > longer; echo gone > old/deep/gone
echo mode > mode; ln -s nowhere link; echo was a file > kind; touch -d @1 touched
useradd --help > /dev/null; sync
"""
AFTER = r"""
cd /root; touch -r same-size reference
echo 4321 > same-size; touch -r reference same-size; rm reference
echo much longer >> longer; rm -r old; chmod 600 mode; ln -sfn elsewhere link
rm kind; mkdir kind; touch -d @2 touched
mkdir -p new; echo new > new/file; printf x > $'new/\xff'
rm /etc/issue; echo more >> /etc/profile
rm -r /etc/skel; mkdir /etc/skel; echo mine > /etc/skel/mine
echo > /run/not-stored; echo > /dev/shm/not-stored
kill $(cat /root/pid)
"""
CHANGES = {
    "/root/same-size": "changed file",
    "/root/longer": "changed file",
    "/root/mode": "changed file",
    "/root/link": "changed symlink",
    "/root/kind": "changed directory",
    "/root/old": "removed directory",
    "/root/old/deep": "removed directory",
    "/root/old/deep/gone": "removed file",
    "/root/new": "added directory",
    "/root/new/file": "added file",
    "/root/new/\\xff": "added file",
    "/etc/issue": "removed file",
    "/etc/profile": "changed file",
    "/etc/skel/mine": "added file",
    "/etc/skel/.bashrc": "removed file",
    "/etc/skel/.profile": "removed file",
    "/etc/skel/.bash_logout": "removed file",
}


def sleeping(sandbox: Sandbox) -> str:
    """The commands that sleep in a guest."""
    return sandbox.run("ps -C sleep -o args=").text.strip()


def test_diff(manager: SandboxManager, daemon: Daemon) -> None:
    """Files that came, went and changed, whatever hides it; and processes. Nobody sees it."""
    with manager.start_sandbox("box") as sandbox:
        ask(sandbox, BEFORE)
        sandbox.run_cmd("echo $$ > /root/pid; exec sleep 1001", blocking=False)
        wait_until(lambda: sleeping(sandbox) == "sleep 1001", 20)
        before = sandbox.snapshot("before")
        ask(sandbox, AFTER)
        sandbox.run_cmd("exec sleep 1002", blocking=False)
        wait_until(lambda: sleeping(sandbox) == "sleep 1002", 20)
        after = sandbox.snapshot("after")
        found = manager.snapshots.diff(before, after)
        assert {one.path: f"{one.change} {one.kind}" for one in found.files} == CHANGES
        sizes = {one.path: one.size for one in found.files}
        assert (sizes["/root/same-size"], sizes["/root/old/deep/gone"], sizes["/root/new"]) == (
            (5, 5, 0)
        )
        commands = [(one.change, one.command) for one in found.processes]
        assert commands == [("removed", "sleep 1001"), ("added", "sleep 1002")]
        assert found.complete
        back = manager.snapshots.diff(after, before)
        assert len(back.files) == len(CHANGES)
        assert [one.name for one in manager.list_all()] == ["box"]
        assert len(daemon.vmm_pids()) == 1


def test_nothing_is_different(manager: SandboxManager) -> None:
    """Two snapshots of one state, and one with itself, are equal; a template can be compared."""
    with manager.start_sandbox("box") as sandbox:
        first, second = sandbox.snapshot("first"), sandbox.snapshot("second")
        for one, other in ((first, first), (first, second)):
            found = manager.snapshots.diff(one, other)
            assert (found.files, found.processes) == ([], [])
        sandbox.files.write("/root/file", b"content")
        third = sandbox.snapshot("third")
        found = manager.snapshots.diff(sandbox.info()["template"], third)
        assert [(one.path, one.change) for one in found.files] == [("/root/file", "added")]


def test_more_than_fits(manager: SandboxManager) -> None:
    """Of more changes than an answer can have the first are told, and that there are more."""
    with manager.start_sandbox("box") as sandbox:
        before = sandbox.snapshot("before")
        ask(sandbox, "mkdir /root/many; cd /root/many; seq 6000 | xargs touch")
        found = manager.snapshots.diff(before, sandbox.snapshot("after"))
        assert not found.complete
        assert len(found.files) == 5000


def test_guest_that_cannot_tell(manager: SandboxManager) -> None:
    """A guest without what it takes is an error with a reason; a missing snapshot, too."""
    with manager.start_sandbox("box") as sandbox:
        before = sandbox.snapshot("before")
        ask(sandbox, "rm /usr/bin/unshare")
        after = sandbox.snapshot("after")
        with pytest.raises(ArrakisError, match="unshare") as refused:
            manager.snapshots.diff(before, after)
        assert isinstance(refused.value, (GuestError, NotFoundError))
        with pytest.raises(NotFoundError, match="nothing"):
            manager.snapshots.diff(before, "nothing")
