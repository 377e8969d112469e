"""What is kept of a VM while it is suspended, beside its saved guest: who it is, and its network.

It lies with the saved guest, in one directory that is published all at once. So after a crash
a VM is suspended, or it is not.
"""

from __future__ import annotations

from pathlib import Path

import msgpack
from attrs import frozen

from arrakis_rpc.converter import structure, unstructure
from arrakis_rpc.daemon_api import VmLimits
from arrakis_rpc.errors import ArrakisError, IntegrityError
from arrakis_rpc.guest_api import Identity

from ..host.checksums import file_digest
from ..host.net.interface import PlugRequest
from .manifest import SUSPENDED_VM, Manifest


@frozen
class SuspendedVm:
    """A VM without its guest. ``resumes`` is whether it goes on as soon as the daemon does."""

    name: str
    created: float
    identity: Identity
    connection: PlugRequest
    limits: VmLimits
    resumes: bool


def write_suspended(directory: Path, vm: SuspendedVm) -> None:
    """Write it into a directory that is published later. Blocks."""
    (directory / SUSPENDED_VM).write_bytes(msgpack.packb(unstructure(vm)))


def read_suspended(directory: Path, manifest: Manifest) -> SuspendedVm:
    """Read it; raise `IntegrityError` where it is not what was stored. Blocks."""
    path = directory / SUSPENDED_VM
    stored = manifest.files.get(SUSPENDED_VM)
    try:
        if stored is None or file_digest(path) != stored.digest:
            raise IntegrityError(f"{path} is not what was stored: its checksum differs")
        return structure(msgpack.unpackb(path.read_bytes()), SuspendedVm)
    except IntegrityError:
        raise
    except (OSError, ValueError, ArrakisError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
