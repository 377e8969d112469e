import subprocess

import pytest

from arrakis_kernel import KernelFiles

pytestmark = pytest.mark.vm


def boot(kernel: KernelFiles, image: str, append: str) -> str:
    """Start a machine without disks and return its console once it has ended by itself."""
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256M"),
            *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
            *("-kernel", image, "-initrd", str(kernel.initramfs)),
            *("-append", f"console=ttyS0 panic=-1 quiet reboot=t {append}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
        check=True,
    )
    return done.stdout.decode(errors="replace")


@pytest.mark.parametrize("image", ["vmlinux", "bzimage"])
def test_probe_answers_and_ends_the_machine(kernel: KernelFiles, image: str) -> None:
    """With `arrakis.probe` a guest says that it runs and is gone, with either boot image."""
    console = boot(kernel, str(getattr(kernel, image)), "arrakis.probe")
    assert "ARRAKIS-PROBE-OK" in console
    assert "arrakis-init" not in console


def test_missing_disk_ends_the_machine_with_a_reason(kernel: KernelFiles) -> None:
    """A guest without its disks says which one is missing and ends, it does not hang."""
    console = boot(kernel, str(kernel.vmlinux), "")
    assert "arrakis-init: no /dev/vda" in console
    assert "PROBE" not in console


def test_vsock_modules_are_loaded_where_they_are_asked_for(kernel: KernelFiles) -> None:
    """With `arrakis.vsock=PORT` a guest has the address family that its agent then listens on."""
    console = boot(kernel, str(kernel.vmlinux), "ignore_loglevel arrakis.vsock=5000")
    assert "NET: Registered PF_VSOCK protocol family" in console
    assert "cannot load" not in console
