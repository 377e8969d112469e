# ruff: noqa: PTH103, PTH113, PTH114, PTH118, PTH120, PTH123
"""``identity.apply``: becoming another machine than those restored from the same snapshot.

It is in the path of every start, under emulation too: files are rewritten in place (a
machine that dies half-way is thrown away), no process is run unless a network is given, and
paths are plain text, for `pathlib` costs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.guest_api import Identity, Nothing

from .call import Call
from .kernel import Kernel
from .network import Networks

_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_OWN_ADDRESS = "127.0.1.1"
_SEED_SIZE = 512


class IdentityKeeper:
    """Applies identities to the file system under ``root`` and to ``kernel``."""

    def __init__(self, root: Path, kernel: Kernel, networks: Networks) -> None:
        self._root = str(root)
        self._kernel = kernel
        self._networks = networks

    async def apply(self, _call: Call, identity: Identity) -> Nothing:
        """Become the machine that ``identity`` describes; see the fork contract."""
        if not _HOSTNAME.fullmatch(identity.hostname):
            raise InvalidParamsError(f"hostname: {identity.hostname!r} is not a host name")
        if not _MACHINE_ID.fullmatch(identity.machine_id):
            raise InvalidParamsError("machine_id: expected 32 lower-case hexadecimal digits")
        self._kernel.add_entropy(identity.entropy)
        self._write("var/lib/systemd/random-seed", os.getrandom(_SEED_SIZE), 0o600)
        self._become_host(identity.hostname)
        self._become_machine(identity.machine_id)
        self._write("etc/ssh/ssh_host_ed25519_key", identity.ssh_host_key, 0o600)
        self._write("etc/ssh/ssh_host_ed25519_key.pub", identity.ssh_host_key_public, 0o644)
        if identity.network is not None:
            await self._networks.configure(identity.network)
        return Nothing()

    def _become_host(self, hostname: str) -> None:
        self._kernel.set_hostname(hostname)
        self._write("etc/hostname", f"{hostname}\n".encode(), 0o644)
        try:
            hosts = self._read("etc/hosts").splitlines()
        except FileNotFoundError:
            hosts = [b"127.0.0.1\tlocalhost"]
        own = _OWN_ADDRESS.encode()
        kept = [line for line in hosts if line.split()[:1] != [own]]
        kept.append(own + b"\t" + hostname.encode())
        self._write("etc/hosts", b"\n".join(kept) + b"\n", 0o644)

    def _become_machine(self, machine_id: str) -> None:
        text = f"{machine_id}\n".encode()
        self._write("etc/machine-id", text, 0o444)
        # Usually a link to the former, or missing; a file of its own would contradict it.
        for path in ("run/machine-id", "var/lib/dbus/machine-id"):
            full = os.path.join(self._root, path)
            if os.path.isfile(full) and not os.path.islink(full):
                self._write(path, text, 0o444)

    def _read(self, path: str) -> bytes:
        with open(os.path.join(self._root, path), "rb", buffering=0) as file:
            return file.readall()

    def _write(self, path: str, data: bytes, mode: int) -> None:
        full = os.path.join(self._root, path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            file = os.open(full, flags, mode)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(full), exist_ok=True)
            file = os.open(full, flags, mode)
        try:
            # Before the content: a file that was there may be open to more than its mode says.
            os.fchmod(file, mode)
            os.write(file, data)
            # Not O_TRUNC: ext4 then writes to the disk at once, which took 50 ms of a start.
            if os.fstat(file).st_size != len(data):
                os.ftruncate(file, len(data))
        finally:
            os.close(file)
