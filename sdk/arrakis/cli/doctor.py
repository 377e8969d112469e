"""What can be told of this host, with the daemon's help or without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arrakis_rpc.daemon_api import Check
from arrakis_rpc.errors import (
    ArrakisError,
    ConnectionLostError,
    ProtocolError,
    UnsupportedError,
)

from .output import print_json, say

if TYPE_CHECKING:
    from arrakis import SandboxManager


def examine(manager: SandboxManager) -> list[Check]:
    """Give the daemon's findings, or our own when there is no daemon to ask."""
    try:
        found = manager.doctor().checks
    except (ConnectionLostError, ProtocolError) as error:
        return [_daemon_missing(error), *_without_daemon()]
    return [Check("daemon", ok=True, detail=f"answers at {manager.address}"), *found]


def sweep(yes: bool, as_json: bool, config: str | None, state: str | None) -> int:
    """Show what a daemon that was killed has left, and remove it; give the exit status."""
    flags = [
        *([f"--config={config}"] if config else []),
        *([f"--state={state}"] if state else []),
    ]
    found = _ask_program("--leftovers", *flags)
    if not as_json:
        for one in found:
            say(f"{one['kind']}: {one['name']}")
        if not found:
            say("nothing was left")
    confirmed = bool(found) and (yes or (not as_json and click.confirm("remove all of it?")))
    if confirmed:
        found = _ask_program("--sweep", *flags)
    if as_json:
        print_json({"leftovers": found, "removed": confirmed})
    elif confirmed:
        say("removed")
    return 0 if confirmed or not found else 1


def _ask_program(*flags: str) -> list[dict[str, str]]:
    # The daemon's program beside this one first: they belong together.
    beside = Path(sys.argv[0]).absolute().with_name("arrakisd")
    program = str(beside) if beside.exists() else "arrakisd"
    try:
        ended = subprocess.run([program, *flags], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnsupportedError(
            f"the daemon's program '{program}' cannot be run: {error.strerror}",
            hint="run this where the daemon is installed",
        ) from error
    if ended.returncode:
        message, _, hint = ended.stderr.strip().partition("\nhint: ")
        raise UnsupportedError(message.removeprefix("arrakisd: "), hint=hint or None)
    found: list[dict[str, str]] = json.loads(ended.stdout)
    return found


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
