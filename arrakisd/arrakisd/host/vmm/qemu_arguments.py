"""QEMU's command line.

The same machine must come out for a boot and for a restore of it, so both are made here
from one spec. Options that take JSON are given JSON: it needs no escaping of commas.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from ..net.interface import Nic, TapNic
from .interface import LaunchSpec

AGENT_PORT = "org.arrakis.agent"

# Off are devices that a q35 has by default and no guest of ours uses; each costs start-up time.
# Merged by the host, memory would tell a guest what others have in theirs; and if QEMU crashes,
# a guest's memory has no place in a core file.
_MACHINE = (
    "q35,memory-backend=ram,suppress-vmdesc=on,usb=off,vmport=off,smbus=off,sata=off,"
    "mem-merge=off,dump-guest-core=off"
)

# Under KVM no virtualisation within the guest: it is a part of the host's kernel that many bugs
# were found in, and its state is one more that would have to be saved.
KVM_CPU = "max,vmx=off,svm=off"

_ACCELERATORS = {
    "tcg": ("tcg,thread=multi,tb-size=512", "max"),
    "kvm": ("kvm", KVM_CPU),
}

# The MAC address is the template's; each guest takes another before it is connected. No boot
# ROM: nothing boots from the network, and loading it takes time. No announcements: what a
# woken guest would announce is an address that it is about to give up.
_NIC = {
    "driver": "virtio-net-pci",
    "id": "nic",
    "netdev": "net",
    "mac": "02:a2:00:00:00:00",
    "romfile": "",
    "guest_announce": False,
}

# A host without room is an I/O error in the guest. By default QEMU would halt it for good.
_ERRORS = {"werror": "report", "rerror": "report"}

# A VMM that a guest has taken over can neither start programs nor gain privileges.
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


# What is in the place of the disk until a saved guest brings its own. It is not removed then: that
# would take milliseconds of each start.
BLANK_DISK = "blank"


@frozen
class Wires:
    """File descriptors that the child inherits: ends of socket pairs."""

    qmp: int
    agent: int
    console: int


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


def _blank_disk(size_mib: int) -> dict[str, Any]:
    return {"driver": "null-co", "node-name": BLANK_DISK, "size": size_mib * 2**20}


def _netdev(nic: Nic) -> str:
    if isinstance(nic, TapNic):
        return f"tap,id=net,fd={nic.fd}"
    return f"user,id=net,ipv6=off,restrict={'on' if nic.restricted else 'off'}"


def command_line(binary: str, spec: LaunchSpec, wires: Wires) -> list[str]:
    """Give the whole command line for a VM."""
    boot = spec.boot
    disk = disk_blockdev(0, str(boot.disk)) if boot else _blank_disk(spec.disk_mib)
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
    accelerator, cpu = _ACCELERATORS[spec.accelerator]
    arguments = [
        *(binary, "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-sandbox", SECCOMP),
        *("-M", _MACHINE, "-accel", accelerator, "-cpu", cpu),
        *("-m", f"{spec.memory_mib}M", "-smp", str(spec.vcpus)),
        *("-object", _json(**memory)),
        *("-chardev", f"socket,id=qmp,fd={wires.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={wires.console}", "-serial", "chardev:console"),
        *("-blockdev", _json(**root)),
        *("-device", _json(driver="virtio-blk-pci", id="root-disk", drive="root")),
        *("-blockdev", _json(**disk)),
        *("-device", _json(driver="virtio-blk-pci", id="disk", drive=disk["node-name"], **_ERRORS)),
        *("-device", _json(driver="virtio-serial-pci", id="serial")),
        *("-chardev", f"socket,id=agent,fd={wires.agent}"),
        *("-device", _json(driver="virtserialport", id="port", chardev="agent", name=AGENT_PORT)),
        *("-device", _json(driver="virtio-rng-pci", id="rng")),
    ]
    if spec.nic is not None:
        arguments += ["-netdev", _netdev(spec.nic), "-device", _json(**_NIC)]
    if boot is None:
        # No kernel: it is in the guest's memory already, and loading it again takes time.
        arguments += ["-incoming", "defer", "-global", "migration.send-configuration=off"]
        arguments += ["-global", "migration.announce-rounds=0"]
    else:
        arguments += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)]
        arguments += ["-append", boot.command_line]
    return arguments
