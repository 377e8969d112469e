"""QEMU's command line.

The same machine must come out for a boot and for a restore of it, so both are made here
from one spec. Options that take JSON are given JSON: it needs no escaping of commas.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from .interface import Boot, LaunchSpec

AGENT_PORT = "org.arrakis.agent"

# Devices that a q35 has by default and no guest of ours uses; each costs start-up time.
_MACHINE = "q35,memory-backend=ram,suppress-vmdesc=on,usb=off,vmport=off,smbus=off,sata=off"

_ACCELERATORS = {
    "tcg": "tcg,thread=multi,tb-size=512",
    "kvm": "kvm",
}

# A host without room is an I/O error in the guest. By default QEMU would halt it for good.
_ERRORS = {"werror": "report", "rerror": "report"}

# A VMM that a guest has taken over can neither start programs nor gain privileges.
_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@frozen
class Wires:
    """File descriptors that the child inherits: ends of socket pairs, and the saved state."""

    qmp: int
    agent: int
    console: int
    device_state: int | None = None


def _json(**options: Any) -> str:
    return json.dumps(options, separators=(",", ":"))


def disk_node(number: int) -> str:
    """Name of the block node of the n-th writable layer that this process has used."""
    return f"disk{number}"


def disk_blockdev(number: int, path: str) -> dict[str, Any]:
    """Describe a writable qcow2 layer.

    Flushes stay in the page cache: a running VM does not survive its host anyway, and a
    snapshot's layer is synced by the daemon when it is published.
    """
    return {
        "driver": "qcow2",
        "node-name": disk_node(number),
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": True},
        "file": {"driver": "file", "filename": path, "cache": {"direct": False, "no-flush": True}},
    }


def command_line(binary: str, spec: LaunchSpec, wires: Wires) -> list[str]:
    """Give the whole command line for a VM."""
    boot = spec.source if isinstance(spec.source, Boot) else None
    memory = {
        "qom-type": "memory-backend-file",
        "id": "ram",
        "size": spec.memory_mib * 2**20,
        "mem-path": str(spec.memory_file),
        "share": boot is not None,
    }
    root = {
        "driver": "raw",
        "node-name": "root",
        "read-only": True,
        "file": {"driver": "file", "filename": str(spec.root_image), "locking": "off"},
    }
    arguments = [
        *(binary, "-name", spec.name, "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-sandbox", _SECCOMP),
        *("-M", _MACHINE, "-accel", _ACCELERATORS[spec.accelerator], "-cpu", "max"),
        *("-m", f"{spec.memory_mib}M", "-smp", str(spec.vcpus)),
        *("-object", _json(**memory)),
        *("-chardev", f"socket,id=qmp,fd={wires.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={wires.console}", "-serial", "chardev:console"),
        *("-blockdev", _json(**root)),
        *("-device", _json(driver="virtio-blk-pci", id="root-disk", drive="root")),
        *("-blockdev", _json(**disk_blockdev(0, str(spec.disk)))),
        *("-device", _json(driver="virtio-blk-pci", id="disk", drive=disk_node(0), **_ERRORS)),
        *("-device", _json(driver="virtio-serial-pci", id="serial")),
        *("-chardev", f"socket,id=agent,fd={wires.agent}"),
        *("-device", _json(driver="virtserialport", id="port", chardev="agent", name=AGENT_PORT)),
        *("-device", _json(driver="virtio-rng-pci", id="rng")),
    ]
    if boot is None:
        # No kernel: it is in the guest's memory already, and loading it again takes time.
        arguments += ["-incoming", "defer", "-global", "migration.send-configuration=off"]
    else:
        arguments += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)]
        arguments += ["-append", boot.command_line]
    return arguments
