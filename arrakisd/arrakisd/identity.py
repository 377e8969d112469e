"""Who a VM is: what makes it another machine than its siblings."""

from __future__ import annotations

import re
import secrets

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from arrakis_rpc.guest_api import Identity

_ENTROPY = 256


def make_identity(vm_name: str) -> Identity:
    """Make a fresh identity.

    The SSH host key is made here because under emulation the guest would take longer for it
    than for all the rest of its start.
    """
    key = Ed25519PrivateKey.generate()
    hostname = hostname_of(vm_name)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return Identity(
        hostname=hostname,
        machine_id=secrets.token_hex(16),
        entropy=secrets.token_bytes(_ENTROPY),
        ssh_host_key=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        ssh_host_key_public=public + f" root@{hostname}\n".encode(),
    )


def hostname_of(vm_name: str) -> str:
    """Give the host name for a VM's name: only letters, digits and inner hyphens."""
    return re.sub(r"[^A-Za-z0-9-]", "-", vm_name).strip("-") or "sandbox"
