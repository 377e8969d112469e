"""Child processes that have an owner: they end with their scope, and with the daemon.

Where the kernel cannot see to the latter, the next daemon does: each child has its owner's name
in its environment.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import select
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

_KILL_DEADLINE = 5.0
_OWNER = "ARRAKIS_CHILD_OF"

_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A running child process. It needs an owner; see `owned`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = trio.Event()
        self.pid = popen.pid

    async def wait(self) -> int:
        """Wait for the end; give the exit status, negative for a signal."""
        await self._ended.wait()
        return int(self._popen.returncode)

    def kill(self) -> None:
        """Kill the process; one that has ended is left alone."""
        self._popen.send_signal(signal.SIGKILL)

    async def reap(self) -> None:
        """Wait for the end and take the exit status, on behalf of all who `wait`."""
        if self._popen.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                while self._popen.poll() is None:
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        self._ended.set()


def spawn(
    argv: Sequence[str],
    *,
    output: Path | int,
    pass_fds: Sequence[int] = (),
    directory: Path | None = None,
    identity: tuple[int, int] | None = None,
    devices: Sequence[Path] = (),
    groups: Sequence[Path] = (),
) -> Child:
    """Start a child that the kernel kills when the daemon dies.

    ``identity`` are the uid and gid it runs under, and ``devices`` what it has to open as such;
    see `as_user`. ``groups`` are the files by which a process joins
    control groups: it does so as its first act. Its output goes to a file, or to a
    descriptor. This blocks
    for the one or two milliseconds of a vfork, and must run in the main thread: the death
    signal is bound to the thread that starts the child, and a worker thread ends when it
    has been idle. ``setpriv`` sets identity and death signal, because doing it between fork
    and exec would cost a real fork of the daemon.
    """
    prefix = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs", *as_user(identity, devices)]
    if groups:
        joining = " && ".join(f"echo 0 > {shlex.quote(str(group))}" for group in groups)
        prefix = ["sh", "-c", f'{joining} && exec "$@"', "sh", *prefix]
    with ExitStack() as stack:
        log = output if isinstance(output, int) else stack.enter_context(output.open("ab"))
        popen = subprocess.Popen(
            [*prefix, "--", *argv],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=pass_fds,
            process_group=0,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "LC_ALL": "C.UTF-8",
                _OWNER: os.environ.get(_OWNER, ""),
            },
        )
    return Child(popen)


def as_user(identity: tuple[int, int] | None, devices: Sequence[Path] = ()) -> list[str]:
    """Give the arguments with which ``setpriv`` runs a program under a uid and a gid.

    Of other groups it keeps just those by which the ``devices`` are opened, and never root's. None
    is the daemon's own user, which keeps what it has.
    """
    if identity is None:
        return []
    uid, gid = identity
    kept = ",".join(map(str, _groups_of(devices)))
    return [f"--reuid={uid}", f"--regid={gid}", f"--groups={kept}" if kept else "--clear-groups"]


def may_open(device: Path, identity: tuple[int, int] | None) -> bool:
    """Whether a child that has to open a device, as such a user, can read and write it. Blocks.

    It is tried: besides its mode there are access lists, and what a control group may open.
    """
    if identity is None:
        return os.access(device, os.R_OK | os.W_OK)
    opening = ["sh", "-c", ': <>"$1"', "sh", str(device)]
    argv = ["setpriv", *as_user(identity, [device]), "--", *opening]
    try:
        tried = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:  # without setpriv there are no children at all
        return False
    return tried.returncode == 0


def _groups_of(devices: Sequence[Path]) -> list[int]:
    groups = set()
    for device in devices:
        with suppress(OSError):  # who opens it will say what is wrong
            status = device.stat()
            if status.st_gid != 0 and status.st_mode & 0o006 != 0o006:
                groups.add(status.st_gid)
    return sorted(groups)


def is_child_alive(pid: int) -> bool:
    """Whether a child still runs, be it that nobody has noticed its end yet.

    Its first thread tells. Waiting for the child does not, before its other threads have ended.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(") ")[2][0] not in "ZX"


def private_memory_mib(pid: int) -> int:
    """Memory of a process that it shares with none, in MiB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


@asynccontextmanager
async def owned(child: Child) -> AsyncIterator[Child]:
    """Keep a child for the length of a block; at its end the child is killed and reaped."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.reap)
            yield child
            nursery.cancel_scope.cancel()
    finally:
        child.kill()
        with trio.move_on_after(_KILL_DEADLINE, shield=True):
            await child.reap()


def mark_children(owner: str) -> None:
    """Let all children to come, and theirs, carry a name by which `end_orphans` finds them."""
    os.environ[_OWNER] = owner


def owner_mark() -> str:
    """Give what to name a child by, on its command line, whose environment will be emptied."""
    return _mark(os.environ.get(_OWNER, ""))


def _mark(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:12]


def find_orphans(owner: str) -> list[int]:
    """Give the pids of the children that a killed owner has left. Blocks.

    Most have been killed with it, by the kernel. Not so the programs of an image build, nor a
    VMM in the moment before it is bound to the daemon's life.
    """
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [int(entry.name) for entry in entries if _is_marked(entry, owner)]


def end_orphan(pid: int, owner: str) -> bool:
    """Kill a child that a killed owner has left; give whether it still was one. Blocks."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            if _is_marked(Path(f"/proc/{pid}"), owner):  # and not another of this number by now
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], _KILL_DEADLINE)
                return True
        finally:
            os.close(pidfd)
    return False


@contextmanager
def acting_as_user_of(pid: int) -> Iterator[None]:
    """Let this thread open files in a block as the user under which a process runs.

    So the daemon gets at the memory of its VMMs without CAP_SYS_PTRACE, by which it would get
    at everybody's. Raises `OSError` if there is no such process.
    """
    owner = Path(f"/proc/{pid}").stat()
    uid, gid = _libc.setfsuid(-1), _libc.setfsgid(-1)  # which gives, and changes nothing
    _libc.setfsgid(owner.st_gid)
    _libc.setfsuid(owner.st_uid)
    try:
        yield
    finally:
        _libc.setfsuid(uid)
        _libc.setfsgid(gid)


def _is_marked(entry: Path, owner: str) -> bool:
    in_environment, named = f"{_OWNER}={owner}".encode(), _mark(owner).encode()
    try:
        with acting_as_user_of(int(entry.name)):
            if in_environment in (entry / "environ").read_bytes().split(b"\0"):
                return True
        return named in (entry / "cmdline").read_bytes()
    except OSError:  # it is gone, or another user's
        return False
