"""Whether KVM really runs a guest here.

On some clouds ``/dev/kvm`` opens and vCPUs can be made, yet a stock Linux kernel hangs. The
only honest probe is to boot the real kernel, with a deadline; what came of it is kept.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import trio

from arrakis_kernel import KernelFiles

from ..processes import Child, may_open, owned, spawn

PROBE_COMMAND_LINE = "console=ttyS0 panic=-1 loglevel=6 reboot=t arrakis.probe"
DEVICE = Path("/dev/kvm")

_DEADLINE = 10.0
# For a guest whose kernel speaks: it does run, if slowly, on a host that has much else to do.
_LONG_DEADLINE = 40.0
_POLL = 0.02
_SIGN_OF_LIFE = b"Linux version"
_MARK = b"ARRAKIS-PROBE-OK"
# Of what is tried: an earlier verdict says nothing of it.
_REVISION = 2


def device_problem(identity: tuple[int, int] | None) -> str | None:
    """Tell what is wrong with ``/dev/kvm``, as far as can be seen at once; None if nothing.

    ``identity`` are the uid and gid of who is to open it; None is the daemon's own user. Blocks.
    """
    if not DEVICE.exists():
        return "there is no /dev/kvm"
    if may_open(DEVICE, identity):
        return None
    if identity is None:
        return "/dev/kvm cannot be opened by this user"
    status = DEVICE.stat()
    return (
        f"/dev/kvm cannot be opened by VMMs, which run as user {identity[0]}: "
        f"its group is {status.st_gid}, its mode {stat.S_IMODE(status.st_mode):o}"
    )


async def kvm_problem(
    argv: Sequence[str],
    version: str,
    kernel: KernelFiles | None,
    memory: Path,
    identity: tuple[int, int] | None,
) -> str | None:
    """Tell why no guest runs under KVM; None if one does.

    ``argv`` boots the kernel, with `PROBE_COMMAND_LINE` and the console on its output, under the
    uid and gid of VMMs, ``identity``.
    ``memory`` is the file that remembers what came of it, for this boot of the host, this
    kernel, this version of the VMM and this user.
    """
    if problem := device_problem(identity):
        return problem
    if kernel is None:
        return "there is no kernel to try KVM with"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    user = "{}:{}".format(*identity or (os.geteuid(), os.getegid()))
    key = f"{boot_id} {kernel.digest} {version} {user} {_REVISION}"
    works = _recall(memory, key)
    if works is None:
        works = await _boots(argv, memory, identity)
        memory.write_text(json.dumps({"key": key, "works": works}))
    return None if works else "/dev/kvm is there, but a real guest does not boot under it"


def _recall(memory: Path, key: str) -> bool | None:
    try:
        content = json.loads(memory.read_text())
        if content["key"] == key:
            return bool(content["works"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no verdict, or not a readable one: probe
    return None


async def _boots(argv: Sequence[str], memory: Path, identity: tuple[int, int] | None) -> bool:
    memory.parent.mkdir(parents=True, exist_ok=True)
    console = memory.with_name(f"{memory.stem}-probe-{os.getpid()}.log")
    child = spawn(argv, output=console, identity=identity, devices=[DEVICE])
    try:
        async with owned(child), trio.open_nursery() as nursery:
            nursery.start_soon(_wait_end, child, nursery.cancel_scope)
            await _wait_mark(console)
            nursery.cancel_scope.cancel()
        return _MARK in console.read_bytes()
    finally:
        console.unlink(missing_ok=True)


async def _wait_end(child: Child, ended: trio.CancelScope) -> None:
    await child.wait()
    ended.cancel()


async def _wait_mark(console: Path) -> None:
    """Wait for a guest's word, or too long: not every hypervisor ends when its guest reboots."""
    began, longest = trio.current_time(), _DEADLINE
    while trio.current_time() - began < longest and _MARK not in (said := console.read_bytes()):
        if _SIGN_OF_LIFE in said:
            longest = _LONG_DEADLINE
        await trio.sleep(_POLL)
