"""What cloud-hypervisor is told of a machine, and what it says of one that it saved.

The configuration is always made here, for a boot and for a restore alike. That of a saved
guest is not kept: a VMM that a guest has taken over could have written its wishes into it.
All devices have ids of our own, because the saved state refers to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arrakis_rpc.errors import UnsupportedError

from .interface import LaunchSpec

FIRST_KNOWN = 50
LAST_KNOWN = 53

_FIRST_TO_ADVANCE_CLOCKS = 53
# Ways for a guest out of its machine, and the first version of each line that has them closed.
# Before 50.1 a disk's format is detected, whatever is said of it: a guest can write one that
# names files of the host. Before 51.2 it can make the process use memory that was freed.
_HOLES = {"CVE-2026-27211": (50, 1), "CVE-2026-45782": (51, 2)}
_PAGES_ID = "memory-manager"
_ZONE = "ram"
_NIC = "nic"
_GUEST_CID = 3


def major_version(version: str) -> int:
    """Give the number that decides on what it can do; raise `UnsupportedError` if too old."""
    major = int(version.split(".")[0])
    if major < FIRST_KNOWN:
        raise UnsupportedError(
            f"cloud-hypervisor {version} is too old",
            hint=f"versions {FIRST_KNOWN} to {LAST_KNOWN} are known to fit",
        )
    return major


def caveat(version: str) -> str | None:
    """Say why another version should be taken, and which; None if there is no reason."""
    numbers = tuple(int(part) for part in version.split("."))
    holes = [name for name, closed in _HOLES.items() if numbers < closed]
    if not holes:
        return None
    return f"its guests can get at the host ({', '.join(holes)}): take 51.2 or newer"


def maps_memory(version: str) -> bool:
    """Whether guests' RAM may be mapped from files.

    How a restore finds its memory is not part of the API. So a version that nobody has
    looked at gets it in the plain way, which is copied.
    """
    return major_version(version) <= LAST_KNOWN


def clocks_stand(version: str) -> bool:
    """Whether a woken guest's clocks go on from where they were when it was halted."""
    return major_version(version) < _FIRST_TO_ADVANCE_CLOCKS


def vm_config(
    spec: LaunchSpec,
    payload: dict[str, str],
    *,
    disk: Path,
    vsock: Path,
    memory: dict[str, Any],
    readable: Path | None = None,
) -> dict[str, Any]:
    """Give the configuration of a machine (VmConfig), but for its network card.

    It may touch nothing but the files named here: ``readable`` is one that is read only.
    """
    rules = [{"path": str(spec.directory), "access": "rw"}]
    if readable is not None:
        rules.append({"path": str(readable), "access": "r"})
    return {
        "payload": payload,
        "cpus": {"boot_vcpus": spec.vcpus, "max_vcpus": spec.vcpus},
        "memory": memory,
        "disks": [
            {
                "id": "root",
                "path": str(spec.root_image),
                "readonly": True,
                "image_type": "Raw",
            },
            {"id": "disk", "path": str(disk), "image_type": "Raw"},
        ],
        "vsock": {"id": "agent", "cid": _GUEST_CID, "socket": str(vsock)},
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "landlock_enable": True,
        "landlock_rules": rules,
    }


def plain_memory(memory_mib: int) -> dict[str, Any]:
    """RAM that belongs to the process (MemoryConfig)."""
    return {"size": memory_mib * 2**20}


def zoned_memory(memory_mib: int, file: Path | None, *, shared: bool) -> dict[str, Any]:
    """RAM that is a file, or a private copy-on-write mapping of it, or filled in later."""
    zone = {"id": _ZONE, "size": memory_mib * 2**20, "shared": shared, "prefault": False}
    if file is not None:
        zone["file"] = str(file)
    return {"size": 0, "zones": [zone]}


def new_nic() -> dict[str, Any]:
    """The network card of a machine that boots, whose tap is sent along (NetConfig)."""
    return {"id": _NIC, "mac": "02:a2:00:00:00:00"}


def saved_nic() -> dict[str, Any]:
    """The network card of a saved guest; -1 stands for the tap that is sent along."""
    return {**new_nic(), "fds": [-1]}


def sent_taps() -> list[dict[str, Any]]:
    """Which card the descriptors are for that are sent along with a restore."""
    return [{"id": _NIC, "num_fds": 1}]


def without_memory(state: bytes) -> bytes | None:
    """Make a restore from this state take its RAM as it is mapped, and fill nothing in.

    None for a state that does not look as it does in the known versions.
    """
    try:
        content = json.loads(state)
        data = content["snapshots"][_PAGES_ID]["snapshot_data"]
        memory = json.loads(data["state"])
        if memory["memory_ranges"]["data"]:
            memory["memory_ranges"] = {"data": []}
            offset = 0
            for mapping in sorted(memory["guest_ram_mappings"], key=lambda one: int(one["gpa"])):
                mapping["file_offset"] = offset
                offset += int(mapping["size"])
            data["state"] = json.dumps(memory)
        return json.dumps(content).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
