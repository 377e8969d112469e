"""What the daemon asks of guests by itself: how they are, and to start their entry point."""

from __future__ import annotations

import pytest
from in_guest import Background, ask
from real_daemon import Daemon, wait_until

from arrakis import DeadlineError, InvalidStateError, NotFoundError, SandboxManager

pytestmark = pytest.mark.vm

# Lets nobody execute bash until it is killed (fanotify(7)): FAN_CLASS_CONTENT, then
# FAN_MARK_ADD of FAN_OPEN_EXEC_PERM.
BARRIER = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.fanotify_init(4, os.O_RDONLY)
mask = ctypes.c_uint64(0x40000)
if fd < 0 or libc.fanotify_mark(fd, 1, mask, -100, b"/usr/bin/bash") < 0:
    raise OSError(ctypes.get_errno(), "fanotify")
open("barred", "w").close()
time.sleep(10_000)
"""


def test_health(manager: SandboxManager) -> None:
    """A guest that runs says how it is; of one that does not run a clear error does."""
    with manager.start_sandbox("well") as sandbox:
        given = sandbox.info()["memory_mib"]
        health = sandbox.health()
        assert health.booted
        assert 0 < health.uptime < 3600
        assert health.load >= 0
        assert 2**25 < health.memory_available < health.memory_total <= given * 2**20
        assert health.processes > 5
        sandbox.pause()
        with pytest.raises(InvalidStateError, match="PAUSED"):
            sandbox.health()
    with pytest.raises(NotFoundError):
        sandbox.health()


def test_entry_point_that_never_starts(manager: SandboxManager, daemon: Daemon) -> None:
    """A guest that does not start its entry point fails its start, and leaves no VM."""
    with manager.start_sandbox("source") as source:
        source.files.write("barrier.py", BARRIER)
        source.exec(["python3", "-S", "barrier.py"], background=True).wait()
        wait_until(lambda: source.files.exists("barred"), 20)
        source.snapshot("barred")
    with daemon.leaves_nothing():
        begin = {"name": "entered", "snapshot": "barred"}
        with manager.restore("sound", "barred") as sound:
            assert sound.run(["echo", "hi"]).text == "hi\n"
        start = Background(
            lambda: manager._client.call("vm.start", {**begin, "entry_point": "sleep 100"})
        )
        with pytest.raises(DeadlineError, match="entry point of VM 'entered'"):
            start.wait(60)
        assert manager.list_all() == []


def test_list_is_by_name(manager: SandboxManager) -> None:
    """Machines are listed by their names, whichever was started first, forks among them."""
    with manager.start_sandbox("m") as sandbox:
        manager.start_sandbox("z")
        manager.start_sandbox("a")
        sandbox.fork(4, names=["y", "b", "x", "c"])
        expected = ["a", "b", "c", "m", "x", "y", "z"]
        assert [one.name for one in manager.list_all()] == expected
        assert [one.name for one in manager.describe_all()] == expected
        assert ask(manager.get("x"), "hostname") == "x"
