"""Whether QEMU runs guests under KVM here, or has to emulate them."""

from __future__ import annotations

from pathlib import Path

from arrakis_kernel import KernelFiles

from .interface import Verdict
from .kvm_probe import PROBE_COMMAND_LINE, kvm_problem


async def choose_accelerator(
    binary: str,
    version: str,
    kernel: KernelFiles | None,
    memory: Path,
    identity: tuple[int, int] | None,
) -> Verdict:
    """Give ``kvm`` where a real guest boots under it as this user, else ``tcg`` (emulation)."""
    argv = [
        *(binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", "q35", "-accel", "kvm", "-cpu", "max", "-m", "256M", "-serial", "stdio"),
    ]
    if kernel is not None:
        argv += ["-kernel", str(kernel.vmlinux), "-initrd", str(kernel.initramfs)]
        argv += ["-append", PROBE_COMMAND_LINE]
    if problem := await kvm_problem(argv, version, kernel, memory, identity):
        return Verdict("tcg", problem)
    return Verdict("kvm", "a real guest booted under KVM")
