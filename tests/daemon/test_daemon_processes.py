"""Children that have an owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from real_daemon import is_running, passable_directory, wait_until

from arrakisd.host.processes import is_child_alive, may_open, owned, spawn
from arrakisd.settings.config import Config

_GROUP = 424242

_WITHOUT_FIRST_THREAD = """
import ctypes
import os
import sys
import threading
import time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
threading.Thread(target=time.sleep, args=(100,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_end_of_block(tmp_path: Path) -> None:
    """A child that ignores signals is dead and reaped when its block ends."""
    async with owned(spawn(["sleep", "100"], output=tmp_path / "log")) as child:
        assert is_running(child.pid)
    assert not Path(f"/proc/{child.pid}").exists()
    assert await child.wait() == -signal.SIGKILL


async def test_end_before_block(tmp_path: Path) -> None:
    """A child may end by itself before its block does; its status and output are kept."""
    argv = ["sh", "-c", "echo word; exit 7"]
    async with owned(spawn(argv, output=tmp_path / "log")) as child:
        assert await child.wait() == 7
    assert await child.wait() == 7
    assert (tmp_path / "log").read_text() == "word\n"


async def test_cancelled_block(tmp_path: Path) -> None:
    """Cancelling whoever owns a child kills it, also when nobody waits."""
    with trio.CancelScope() as scope:
        async with owned(spawn(["sleep", "100"], output=tmp_path / "log")) as child:
            scope.cancel()
            await trio.sleep_forever()
    assert not Path(f"/proc/{child.pid}").exists()


async def test_end_of_the_first_thread(tmp_path: Path) -> None:
    """A child counts as ended once its first thread has, though it cannot be reaped yet."""
    signal_to_end = tmp_path / "end"
    argv = [sys.executable, "-c", _WITHOUT_FIRST_THREAD, str(signal_to_end)]
    async with owned(spawn(argv, output=tmp_path / "log")) as child:
        assert is_child_alive(child.pid)
        signal_to_end.touch()
        with trio.fail_after(60):
            while is_child_alive(child.pid):
                await trio.sleep(0.01)
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    assert not is_child_alive(child.pid)


async def test_several_wait(tmp_path: Path) -> None:
    """All who wait for a child learn its end."""
    ends = []

    async def wait() -> None:
        ends.append(await child.wait())

    async with (
        owned(spawn(["false"], output=tmp_path / "log")) as child,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(wait)
    assert ends == [1, 1, 1]


async def test_missing_program(tmp_path: Path) -> None:
    """A program that does not exist shows in status and output, not as a crash."""
    async with owned(spawn(["/no/such/program"], output=tmp_path / "log")) as child:
        assert await child.wait() == 127
    assert "/no/such/program" in (tmp_path / "log").read_text()


async def test_no_new_privileges(tmp_path: Path) -> None:
    """A child can gain no privileges, has no input, and is in a process group of its own."""
    argv = ["sh", "-c", "grep NoNewPrivs /proc/self/status; wc -c; ps -o pgid= -p $$; echo $$"]
    async with owned(spawn(argv, output=tmp_path / "log")) as child:
        await child.wait()
    words = (tmp_path / "log").read_text().split()
    assert words == ["NoNewPrivs:", "1", "0", str(child.pid), str(child.pid)]


needs_vmm_user = pytest.mark.skipif(
    Config().vmm_identity() is None, reason="needs root, and a user for VMMs"
)


@pytest.fixture
def many_groups() -> Iterator[None]:
    """Let the test be in other groups, as a root who has logged in is."""
    before = os.getgroups()
    os.setgroups([0, _GROUP, _GROUP + 1])
    yield
    os.setgroups(before)


@needs_vmm_user
@pytest.mark.usefixtures("many_groups")
@pytest.mark.parametrize(
    ("group", "mode", "kept", "opens"),
    [
        (_GROUP, 0o660, [_GROUP], True),
        (_GROUP, 0o666, [], True),
        (0, 0o660, [], False),
        (0, 0o600, [], False),
    ],
    ids=["group's", "everybody's", "root's group's", "root's"],
)
async def test_devices(group: int, mode: int, kept: list[int], opens: bool) -> None:
    """A child of another user has the groups that its devices need, but root's, and no other."""
    identity = Config().vmm_identity()
    assert identity is not None
    with passable_directory() as directory:
        device, log = directory / "device", directory / "log"
        device.touch()
        os.chown(device, 0, group)
        device.chmod(mode)
        argv = ["sh", "-c", 'id -G; : <>"$1"', "sh", str(device)]
        child = spawn(argv, output=log, identity=identity, devices=[device, directory / "missing"])
        async with owned(child):
            assert (await child.wait() == 0) is opens
        groups = log.read_text().splitlines()[0].split()
        assert groups == [str(gid) for gid in (identity[1], *kept)]
        assert may_open(device, identity) is opens
        assert may_open(device, None)


@needs_vmm_user
@pytest.mark.usefixtures("many_groups")
async def test_no_devices(tmp_path: Path) -> None:
    """A child of another user that has no devices to open has no other group than its own."""
    identity = Config().vmm_identity()
    assert identity is not None
    log = tmp_path / "log"
    async with owned(spawn(["id", "-G"], output=log, identity=identity)) as child:
        assert await child.wait() == 0
    assert log.read_text().split() == [str(identity[1])]


PARENT = """
import sys, trio
from pathlib import Path
from arrakisd.host.processes import spawn
identity = (int(sys.argv[2]),) * 2 if sys.argv[2:] else None
child = spawn(["sleep", "100"], output=Path(sys.argv[1]), identity=identity)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("identity", [[], ["65534"]], ids=["own user", "other user"])
def test_death_of_parent(tmp_path: Path, identity: list[str]) -> None:
    """A child dies with its parent even when that is killed, under whichever user it runs."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log"), *identity],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        cmdline = Path(f"/proc/{child}/cmdline")
        while cmdline.read_bytes().split(b"\0")[0] != b"sleep":  # setpriv comes before it
            time.sleep(0.01)
        assert is_running(child)
        parent.kill()
    wait_until(lambda: not is_running(child), 5)
