"""Failures: VMMs that are killed, agents that die, hang or lie, and requests that cannot be."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_guest import Background, ask, counted, start_counter, watching
from real_daemon import Daemon, is_running, shortest, wait_until

from arrakis import (
    AlreadyExistsError,
    ArrakisError,
    DeadlineError,
    ExhaustedError,
    FileOperationError,
    GuestError,
    InvalidStateError,
    NotFoundError,
    Sandbox,
    SandboxManager,
    VmmError,
)
from arrakis_rpc.errors import InternalError

pytestmark = pytest.mark.vm


def test_killed_vmm(manager: SandboxManager, daemon: Daemon) -> None:
    """A killed VMM is noticed at once: its VM has failed, with the reason; others go on."""
    with watching(manager) as watch:
        victim, sibling = manager.start_sandbox("victim"), manager.start_sandbox("sibling")
        start_counter(sibling)
        call = Background(lambda: victim.run("sleep 100"))
        wait_until(lambda: "sleep 100" in ask(victim, "ps -ef"), 10)
        os.kill(victim.info()["pid"], signal.SIGKILL)
        wait_until(lambda: victim.info()["status"] == "STOPPED", 5)
        with pytest.raises(GuestError, match="victim"):
            call.wait(5)
        assert "signal 9" in victim.info()["failure"]["reason"]
        wait_until(lambda: victim.info()["pid"] is None, 5)
        assert "signal 9" in watch.until("vm.failed", "victim")[-1]["data"]["reason"]
        assert len(list((daemon.state / "vms").iterdir())) == 1
        for attempt in (victim.pause, victim.snapshot, victim.fork, lambda: victim.run("true")):
            with pytest.raises(InvalidStateError, match="STOPPED"):
                attempt()
        with pytest.raises(AlreadyExistsError):
            manager.start_sandbox("victim")
        victim.destroy()
        with manager.start_sandbox("victim") as again:
            assert ask(again, "echo new") == "new"
        numbers = counted(sibling)
        assert numbers == list(range(len(numbers)))


def test_vmm_killed_at_work(manager: SandboxManager, daemon: Daemon) -> None:
    """A VMM killed in the middle of a start or a snapshot gives a clear error, and no remains."""
    for delay in (0.0, 0.05, 0.1, 0.2):
        before = daemon.vmm_pids()
        start = Background(lambda: manager.start_sandbox("started"))
        wait_until(lambda: daemon.vmm_pids() - before, 10)  # noqa: B023
        time.sleep(delay)
        for pid in daemon.vmm_pids() - before:
            os.kill(pid, signal.SIGKILL)
        start._thread.join()
        if start.error is None:
            start.result.destroy()
        else:
            assert isinstance(start.error, VmmError | GuestError), start.error
            assert "signal 9" in str(start.error) or isinstance(start.error, GuestError)
        assert manager.list_all() == []
    for number in range(4):
        sandbox = manager.start_sandbox("saved")
        sandbox.files.write("/dev/shm/data", b"x" * 8_000_000)
        pid = sandbox.info()["pid"]
        save = Background(lambda: sandbox.snapshot(f"cut-{number}"))  # noqa: B023
        time.sleep(number * 0.02)
        os.kill(pid, signal.SIGKILL)
        save._thread.join()
        if save.error is not None:
            assert not isinstance(save.error, InternalError), save.error
            assert isinstance(save.error, ArrakisError)
        sandbox.destroy()
    for snapshot in manager.snapshots.list():
        with manager.restore("woken", snapshot.id) as woken:
            assert woken.files.read("/dev/shm/data") == b"x" * 8_000_000


def test_hanging_vmm(manager: SandboxManager) -> None:
    """A VMM that hangs is destroyed at once all the same, and holds up nobody else."""
    sibling = manager.start_sandbox("sibling")

    def destroy() -> float:
        hung = manager.start_sandbox("hung")
        pid = hung.info()["pid"]
        os.kill(pid, signal.SIGSTOP)
        calls = [Background(hung.pause), Background(lambda: hung.run("true"))]
        time.sleep(0.1)
        assert ask(sibling, "echo fine") == "fine"
        assert hung.info()["status"] == "RUNNING"
        began = time.monotonic()
        hung.destroy()
        took = time.monotonic() - began
        assert not is_running(pid)
        for call in calls:
            with pytest.raises(ArrakisError):
                call.wait(5)
            assert not isinstance(call.error, InternalError), call.error
        return took

    assert shortest(destroy, 2) < 2


# A command that is cut off, and what a script waits with until it runs.
CUT_OFF = "touch /run/begun; sleep 100"
BEGUN = "until [ -e /run/begun ]; do sleep 0.1; done; rm /run/begun"


def kill_agent(
    sandbox: Sandbox, number: signal.Signals, then: str = "true", when: str = "sleep 0.2"
) -> None:
    """Send the agent a signal from inside, a moment later, and do something afterwards."""
    pid = ask(sandbox, "systemctl show -p MainPID --value arrakis-agent")
    script = f"{when}; kill -{number} {pid}; {then}"
    sandbox.run_cmd(script, blocking=False)


def answers(sandbox: Sandbox) -> bool:
    """Whether the agent is there; starting it takes seconds, many on a busy host."""
    try:
        return ask(sandbox, "echo back") == "back"
    except GuestError:
        return False


def test_killed_agent(manager: SandboxManager) -> None:
    """An agent that was killed is started again, and calls, streams and snapshots work again."""
    with manager.start_sandbox("agent") as sandbox:
        start_counter(sandbox)
        kill_agent(sandbox, signal.SIGKILL, when=BEGUN)
        with pytest.raises(GuestError, match="went away"):
            sandbox.run(CUT_OFF)
        wait_until(lambda: answers(sandbox), 60)
        sandbox.snapshot("survived")
        numbers = counted(sandbox)
        assert numbers == list(range(len(numbers)))
    with manager.restore("woken", "survived") as woken:
        kill_agent(woken, signal.SIGKILL, when=BEGUN)
        with pytest.raises(GuestError, match="went away"):
            woken.run(CUT_OFF)
        wait_until(lambda: answers(woken), 60)
        numbers = counted(woken)
        assert numbers == list(range(len(numbers)))


def test_agent_away_for_long(manager: SandboxManager) -> None:
    """An agent that stays away for longer than the daemon waits for it at first is met again."""
    with manager.start_sandbox("away") as sandbox:
        script = "systemctl stop arrakis-agent; sleep 12; systemctl start arrakis-agent"
        sandbox.run_cmd(f"{BEGUN}; {script}", blocking=False)
        with pytest.raises(GuestError, match="went away"):
            sandbox.run(CUT_OFF)
        wait_until(lambda: answers(sandbox), 60)


def test_hanging_agent(manager: SandboxManager) -> None:
    """An agent that hangs: what has a limit fails by a deadline, destroy works at once."""
    with manager.start_sandbox("hanging") as sandbox:
        kill_agent(sandbox, signal.SIGSTOP, "sleep 2; kill -CONT $(pgrep -f arrakis-agent)")
        time.sleep(0.5)
        assert ask(sandbox, "echo late") == "late"

    def destroy() -> float:
        sandbox = manager.start_sandbox("hanging")
        kill_agent(sandbox, signal.SIGSTOP)
        with pytest.raises(GuestError, match="hanging") as caught:
            health_until_it_hangs(sandbox)
        assert caught.value.hint
        unlimited = Background(lambda: sandbox.run("true"))
        limited = Background(lambda: sandbox.run("true", timeout=0.1))
        with pytest.raises((DeadlineError, GuestError)) as caught_too:
            limited.wait()
        assert caught_too.value.hint
        assert sandbox.info()["status"] == "RUNNING"
        began = time.monotonic()
        sandbox.destroy()
        took = time.monotonic() - began
        with pytest.raises(GuestError):
            unlimited.wait(5)
        return took

    assert shortest(destroy, 2) < 2
    manager.start_sandbox("hanging")


def health_until_it_hangs(sandbox: Sandbox) -> None:
    """Ask a guest how it is until it does not say."""
    for _ in range(1000):
        sandbox.health()
        time.sleep(0.05)


# Takes the agent's place and answers the daemon's greetings with whatever it is given.
IMPOSTOR = """
import glob, os, struct, subprocess, time
(device,) = glob.glob("/dev/vport*")
subprocess.run(["systemctl", "stop", "arrakis-agent"], check=True)
answers = [
    b"no nonce at all" * 1000,
    b"\\xff" * 4,
    struct.pack(">I", 40_000) + b"\\x91" * 40_000,
    struct.pack(">I", 5) + b"\\xdd\\xff\\xff\\xff\\xff",
    struct.pack(">I", 3) + b"abc",
    b"\\0" * 3_000_000,
]
with open("said", "w", buffering=1) as said:
    for number, answer in enumerate(answers):
        port = os.open(device, os.O_RDWR)
        data = b""
        while len(data) < 48:
            data += os.read(port, 4096)
        os.write(port, (data[32:48] if number else b"") + answer)
        said.write(f"{number}\\n")
        time.sleep(0.5)
        os.close(port)
        time.sleep(1.5)  # QEMU tells of changes once a second: this one, too
subprocess.run(["systemctl", "start", "arrakis-agent"], check=True)
"""


def test_lying_agent(manager: SandboxManager, daemon: Daemon) -> None:
    """Whatever a guest says in its agent's place, the daemon stays well and meets the agent."""
    with manager.start_sandbox("liar") as sandbox:
        before = daemon.memory_mib()
        sandbox.files.write("impostor.py", IMPOSTOR)
        sandbox.run_cmd("exec python3 -S impostor.py 2> failed", blocking=False)

        def has_said_all() -> bool:
            # For so long as it speaks, and no longer, the daemon may miss the agent.
            assert {one.vm for one in manager.health().reasons} <= {"liar"}
            try:
                return sandbox.files.read_text("said").endswith("5\n")
            except (GuestError, FileOperationError):  # it speaks, or has not begun
                return False

        wait_until(has_said_all, 60)
        assert ask(sandbox, "cat failed; echo honest") == "honest"
        sandbox.snapshot("reformed")
        with manager.restore("woken", "reformed") as woken:
            assert ask(woken, "echo honest") == "honest"
        assert daemon.memory_mib() - before < 32
        assert "Traceback" not in daemon.log_text()


def test_same_name_at_once(manager: SandboxManager, daemon: Daemon) -> None:
    """Of several starts under one name one wins; the others are told, without side effects."""
    tries = [Background(lambda: manager.start_sandbox("one")) for _ in range(6)]
    for one in tries:
        one._thread.join()
    errors = [one.error for one in tries if one.error]
    assert [type(error) for error in errors] == [AlreadyExistsError] * 5
    assert all(getattr(error, "hint", None) for error in errors)
    assert len(daemon.vmm_pids()) == 1
    assert ask(manager.get("one"), "echo fine") == "fine"


def test_impossible_starts(manager: SandboxManager, daemon: Daemon, tmp_path: Path) -> None:
    """A start that cannot be is refused with what is wrong and what to do, and leaves nothing."""
    missing = str(tmp_path / "missing")
    before = manager.templates.list()
    with manager.start_sandbox("taken") as taken:
        taken.snapshot("there")
        for error, named, attempt in (
            (ExhaustedError, "memory", lambda: manager.start_sandbox("x", memory_mib=2**30)),
            (NotFoundError, missing, lambda: manager.start_sandbox("x", kernel=missing)),
            (NotFoundError, missing, lambda: manager.start_sandbox("x", initramfs=missing)),
            (NotFoundError, missing, lambda: manager.start_sandbox("x", rootfs=missing)),
            (
                NotFoundError,
                str(tmp_path),
                lambda: manager.start_sandbox("x", rootfs=str(tmp_path)),
            ),
            (NotFoundError, "ghost", lambda: manager.start_sandbox("x", image="ghost")),
            (NotFoundError, "0" * 64, lambda: manager.start_sandbox("x", image="0" * 64)),
            (NotFoundError, "ghost", lambda: manager.restore("x", "ghost")),
            (AlreadyExistsError, "taken", lambda: manager.start_sandbox("taken")),
            (AlreadyExistsError, "taken", lambda: manager.restore("taken", "there")),
        ):
            with pytest.raises(error) as caught:
                attempt()
            assert named in str(caught.value)
            assert caught.value.hint, caught.value
        assert [sandbox.name for sandbox in manager.list_all()] == ["taken"]
        assert len(daemon.vmm_pids()) == 1
        assert manager.templates.list() == before


@pytest.mark.parametrize("what", ["kernel", "rootfs", "initramfs"])
def test_nonsense_to_boot(manager: SandboxManager, tmp_path: Path, what: str) -> None:
    """A file that is no kernel, initramfs or root file system fails with the last words said."""
    nonsense = Path("/var/tmp") / f"arrakis-test-nonsense-{os.getpid()}"
    nonsense.write_bytes(os.urandom(2**20))
    nonsense.chmod(0o644)
    before = manager.templates.list()
    try:
        with pytest.raises(VmmError) as caught:
            manager.start_sandbox("x", memory_mib=256, **{what: str(nonsense)})
    finally:
        nonsense.unlink()
    assert len(str(caught.value).splitlines()) > 1
    assert manager.list_all() == []
    assert manager.templates.list() == before


def test_bad_requests_in_a_vm(manager: SandboxManager) -> None:
    """What a guest has not, or refuses, is a clear error that names it; the VM goes on."""
    with manager.start_sandbox("strict") as sandbox:
        refusals: list[tuple[type[ArrakisError], str, Callable[[], object]]] = [
            (NotFoundError, "no-such-program", lambda: sandbox.run(["no-such-program"])),
            (NotFoundError, "no-such-user", lambda: sandbox.run(["id"], user="no-such-user")),
            (ArrakisError, "/no/such/dir", lambda: sandbox.run(["id"], cwd="/no/such/dir")),
            (FileOperationError, "/no/such", lambda: sandbox.files.read("/no/such")),
            (FileOperationError, "/no/such", lambda: sandbox.files.stat("/no/such")),
            (FileOperationError, "/no/such", lambda: sandbox.files.list("/no/such")),
            (FileOperationError, "/no/such", lambda: sandbox.files.remove("/no/such")),
            (FileOperationError, "/etc", lambda: sandbox.files.read("/etc")),
            (
                FileOperationError,
                "/etc/hostname/x",
                lambda: sandbox.files.write("/etc/hostname/x", ""),
            ),
            (FileOperationError, "/proc", lambda: sandbox.files.write("/proc/x", "")),
        ]
        for error, named, attempt in refusals:
            with pytest.raises(error) as caught:
                attempt()
            assert named in str(caught.value)
        with pytest.raises(FileOperationError) as caught:
            sandbox.files.read("/no/such")
        assert caught.value.detail["errno"] == errno.ENOENT
        assert sandbox.run_cmd("no-such-program")["error"] == "exit status 127"
        assert ask(sandbox, "echo fine") == "fine"


def test_any_bytes(manager: SandboxManager) -> None:
    """Output, file names and contents that are not UTF-8 come out as they are."""
    everything = bytes(range(256))
    with manager.start_sandbox("bytes") as sandbox:
        completed = sandbox.run("printf 'a\\377\\376b\\0c'; printf '\\200' >&2")
        assert (completed.stdout, completed.stderr) == (b"a\xff\xfeb\0c", b"\x80")
        assert sandbox.run_cmd("printf 'a\\377b'")["output"] == "a�b"
        sandbox.files.write("/root/any", everything)
        assert sandbox.files.read("/root/any") == everything
        assert sandbox.run(["cat"], input=everything).stdout == everything
        ask(sandbox, "mkdir /root/d && touch \"/root/d/$(printf 'n\\377')\"")
        (entry,) = sandbox.files.list("/root/d")
        assert os.fsencode(entry.name) == b"n\xff"
        assert sandbox.files.read(f"/root/d/{entry.name}") == b""
