"""Who a VM is: what makes it another machine than its siblings."""

from __future__ import annotations

import glob
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import structlog
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from arrakis_rpc.guest_api import MAX_AUTHORIZED_KEYS, Identity, Network

_ENTROPY = 256

log = structlog.get_logger()


def make_identity(
    vm_name: str,
    network: Network | None = None,
    asleep: float = 0,
    ssh_authorized_keys: bytes = b"",
) -> Identity:
    """Make a fresh identity for a guest that has stood still for ``asleep`` seconds.

    ``network`` is what it is to configure, ``ssh_authorized_keys`` who may log in.

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
        network=network,
        ssh_authorized_keys=ssh_authorized_keys,
        asleep=round(asleep * 1e9),
    )


def woken_again(identity: Identity, asleep: float, network: Network | None) -> Identity:
    """Give the identity of a VM to an earlier state of it: the same, but for randomness.

    ``network`` is where it is connected now: a daemon that restarts may move it.
    """
    entropy = secrets.token_bytes(_ENTROPY)
    return evolve(identity, entropy=entropy, asleep=round(asleep * 1e9), network=network)


def renamed(identity: Identity, vm_name: str) -> Identity:
    """Give the identity of a VM that gets another name while it runs."""
    entropy = secrets.token_bytes(_ENTROPY)
    return evolve(identity, hostname=hostname_of(vm_name), entropy=entropy, asleep=0)


def read_authorized_keys(patterns: Iterable[str]) -> bytes:
    """Read the public keys in all files that match; what is not there or too much is left out."""
    keys = b""
    for pattern in patterns:
        for name in sorted(glob.glob(str(Path(pattern).expanduser()))):  # noqa: PTH207
            try:
                text = Path(name).read_bytes().strip() + b"\n"
            except OSError as error:
                log.warning("public keys cannot be read", file=name, reason=error.strerror)
                continue
            if len(keys) + len(text) <= MAX_AUTHORIZED_KEYS:
                keys += text
            else:
                log.warning("there are too many public keys", file=name)
    return keys


def hostname_of(vm_name: str) -> str:
    """Give the host name for a VM's name: only letters, digits and inner hyphens."""
    return re.sub(r"[^A-Za-z0-9-]", "-", vm_name).strip("-") or "sandbox"
