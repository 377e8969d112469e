"""Which QEMU is here, and whether it runs guests under KVM or has to emulate them."""

from __future__ import annotations

from pathlib import Path

from arrakis_kernel import KernelFiles
from arrakis_rpc.errors import UnsupportedError

from .interface import Verdict
from .kvm_probe import PROBE_COMMAND_LINE, kvm_problem
from .qemu_arguments import KVM_CPU, SECCOMP
from .versions import installed_version

# The first that takes devices as JSON, and lets a device that is there have another disk.
_OLDEST = (6, 2)
_GET = "apt-get install --no-install-recommends qemu-system-x86 qemu-utils"


def find_version(binary: str) -> str:
    """Give the version of a QEMU; raise `UnsupportedError` if none that fits is installed."""
    version = installed_version(binary, r"\bversion (\d+(?:\.\d+)+)", _GET)
    if tuple(int(part) for part in version.split(".")) < _OLDEST:
        raise UnsupportedError(
            f"QEMU {version} is too old: it takes {'.'.join(map(str, _OLDEST))} or newer",
            hint="Debian 12 and Ubuntu 22.04 have one that is; 'qemu_binary' may name another",
        )
    return version


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
        *("-M", "q35", "-accel", "kvm", "-cpu", KVM_CPU, "-m", "256M", "-serial", "stdio"),
        *("-sandbox", SECCOMP),
    ]
    if kernel is not None:
        argv += ["-kernel", str(kernel.vmlinux), "-initrd", str(kernel.initramfs)]
        argv += ["-append", PROBE_COMMAND_LINE]
    if problem := await kvm_problem(argv, version, kernel, memory, identity):
        return Verdict("tcg", problem)
    return Verdict("kvm", "a real guest booted under KVM")
