"""How long a whole boot takes with one kernel or another."""

from __future__ import annotations

from arrakis import SandboxManager
from arrakis_kernel import KernelFiles

DISK_MIB = 320  # a shape of its own, so that no other template is in the way


def boot_seconds(manager: SandboxManager, kernel: KernelFiles) -> float:
    """Boot a template with a kernel, delete it, and give how long the boot took."""
    files = {"kernel": str(kernel.vmlinux), "initramfs": str(kernel.initramfs)}
    with manager.start_sandbox("boot", disk_mib=DISK_MIB, **files) as sandbox:
        template_id = str(sandbox.info()["template"])
    [template] = [one for one in manager.templates.list() if one.id == template_id]
    manager.templates.delete(template_id)
    return template.boot
