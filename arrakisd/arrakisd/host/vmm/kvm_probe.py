"""Whether KVM really runs a guest here.

On some clouds ``/dev/kvm`` opens and vCPUs can be made, yet a stock Linux kernel hangs. The
only honest probe is to boot the real kernel, with a deadline; what came of it is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import trio

from arrakis_kernel import KernelFiles

from ..processes import owned, spawn

PROBE_COMMAND_LINE = "console=ttyS0 panic=-1 quiet reboot=t arrakis.probe"

_DEVICE = Path("/dev/kvm")
_DEADLINE = 10.0
_POLL = 0.02
_MARK = b"ARRAKIS-PROBE-OK"


def device_problem() -> str | None:
    """Tell what is wrong with ``/dev/kvm``, as far as can be seen at once; None if nothing."""
    if not _DEVICE.exists():
        return "there is no /dev/kvm"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened by this user"
    return None


async def kvm_problem(
    argv: Sequence[str], version: str, kernel: KernelFiles | None, memory: Path
) -> str | None:
    """Tell why no guest runs under KVM; None if one does.

    ``argv`` boots the kernel, with `PROBE_COMMAND_LINE` and the console on its output.
    ``memory`` is the file that remembers what came of it, for this boot of the host, this
    kernel and this version of the VMM.
    """
    if problem := device_problem():
        return problem
    if kernel is None:
        return "there is no kernel to try KVM with"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = f"{boot_id} {kernel.digest} {version}"
    works = _recall(memory, key)
    if works is None:
        works = await _boots(argv, memory)
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


async def _boots(argv: Sequence[str], memory: Path) -> bool:
    memory.parent.mkdir(parents=True, exist_ok=True)
    console = memory.with_name(f"{memory.stem}-probe-{os.getpid()}.log")
    child = spawn(argv, output=console)
    try:
        async with owned(child), trio.open_nursery() as nursery:
            with trio.move_on_after(_DEADLINE):
                nursery.start_soon(_wait_mark, console, nursery.cancel_scope)
                await child.wait()
            nursery.cancel_scope.cancel()
        return _MARK in console.read_bytes()
    finally:
        console.unlink(missing_ok=True)


async def _wait_mark(console: Path, found: trio.CancelScope) -> None:
    """End a probe that has said its word: not every hypervisor ends when its guest reboots."""
    while _MARK not in console.read_bytes():  # noqa: ASYNC110 -- a file tells nobody
        await trio.sleep(_POLL)
    found.cancel()
