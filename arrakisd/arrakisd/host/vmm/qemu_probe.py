"""Whether KVM really runs a guest here.

On some clouds ``/dev/kvm`` opens and vCPUs can be made, yet a stock Linux kernel hangs. The
only honest probe is to boot the real kernel, with a deadline; the verdict is kept.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import trio
from attrs import asdict

from arrakis_kernel import KernelFiles

from ..processes import owned, spawn
from .interface import Verdict

_DEADLINE = 10.0
_MARK = b"ARRAKIS-PROBE-OK"


async def choose_accelerator(
    binary: str, version: str, kernel: KernelFiles | None, memory: Path
) -> Verdict:
    """Give ``kvm`` where a real guest boots under it, else ``tcg`` (emulation).

    ``memory`` is the file that remembers the verdict for this boot of the host, this kernel
    and this QEMU.
    """
    device = Path("/dev/kvm")
    if not device.exists():
        return Verdict("tcg", "there is no /dev/kvm")
    if not os.access(device, os.R_OK | os.W_OK):
        return Verdict("tcg", "/dev/kvm may not be opened by this user")
    if kernel is None:
        return Verdict("tcg", "there is no kernel to try KVM with")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = f"{boot_id} {kernel.digest} {version}"
    if remembered := _recall(memory, key):
        return remembered
    if await _boots_under_kvm(binary, kernel, memory.parent):
        verdict = Verdict("kvm", "a real guest booted under KVM")
    else:
        verdict = Verdict("tcg", "/dev/kvm is there, but a real guest does not boot under it")
    memory.write_text(json.dumps({"key": key, **asdict(verdict)}))
    return verdict


def _recall(memory: Path, key: str) -> Verdict | None:
    try:
        content = json.loads(memory.read_text())
        if content["key"] == key:
            return Verdict(str(content["accelerator"]), str(content["reason"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no verdict, or not a readable one: probe
    return None


async def _boots_under_kvm(binary: str, kernel: KernelFiles, directory: Path) -> bool:
    directory.mkdir(parents=True, exist_ok=True)
    console = directory / f"kvm-probe-{os.getpid()}.log"
    child = spawn(
        [
            *(binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-M", "q35", "-accel", "kvm", "-cpu", "max", "-m", "256M", "-serial", "stdio"),
            *("-kernel", str(kernel.vmlinux), "-initrd", str(kernel.initramfs)),
            *("-append", "console=ttyS0 panic=-1 quiet reboot=t arrakis.probe"),
        ],
        output=console,
    )
    try:
        async with owned(child):
            with trio.move_on_after(_DEADLINE):
                await child.wait()  # the probe powers off when it has said its word
            return _MARK in console.read_bytes()
    finally:
        console.unlink(missing_ok=True)
