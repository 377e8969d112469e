"""What can be told of this host, with the daemon's help or without it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from arrakis_rpc.daemon_api import Check
from arrakis_rpc.errors import ArrakisError, ConnectionLostError, ProtocolError

if TYPE_CHECKING:
    from arrakis import SandboxManager


def examine(manager: SandboxManager) -> list[Check]:
    """Give the daemon's findings, or our own when there is no daemon to ask."""
    try:
        found = manager.doctor().checks
    except (ConnectionLostError, ProtocolError) as error:
        return [_daemon_missing(error), *_without_daemon()]
    return [Check("daemon", ok=True, detail=f"answers at {manager.socket}"), *found]


def _daemon_missing(error: ArrakisError) -> Check:
    return Check("daemon", ok=False, detail=str(error), fix=error.hint)


def _without_daemon() -> list[Check]:
    return [
        _program("arrakisd", required=True, fix="pip install 'arrakis[daemon]'"),
        _program(
            "qemu-system-x86_64",
            required=True,
            fix="sudo apt-get install --no-install-recommends qemu-system-x86 qemu-utils",
        ),
        _kvm(),
    ]


def _program(name: str, *, required: bool, fix: str) -> Check:
    # An administrator's programs are not on everybody's PATH.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    found = shutil.which(name, path=path)
    return Check(
        name, ok=found is not None, detail=found or "not found", required=required, fix=fix
    )


def _kvm() -> Check:
    device = "/dev/kvm"
    if not os.path.exists(device):  # noqa: PTH110 -- a device, not a path to work with
        detail = "no hardware virtualisation; machines run without it, more slowly"
        return Check("kvm", ok=False, detail=detail, required=False)
    usable = os.access(device, os.R_OK | os.W_OK)
    return Check(
        "kvm",
        ok=usable,
        detail=f"{device} is {'usable' if usable else 'not accessible to this user'}",
        required=False,
        fix="sudo usermod -aG kvm $USER",
    )
