# ruff: noqa: PTH103, PTH108, PTH118, PTH120, PTH123
"""``identity.apply``: becoming another machine than those restored from the same snapshot.

It is in the path of every start, under emulation too: files are rewritten in place (a
machine that dies half-way is thrown away), no process is run, and paths are plain text, for
`pathlib` costs.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.guest_api import Identity, Nothing

from .call import Call
from .kernel import Kernel
from .network import Networks

# Not regular expressions: their machinery would be new to a machine that was just woken.
_WITHOUT_PUNCTUATION = str.maketrans("", "", "._-")
_WITHOUT_DIGITS = str.maketrans("", "", "0123456789abcdef")
_OWN_ADDRESS = "127.0.1.1"
_HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
_SEED = "var/lib/systemd/random-seed"
_FILES = ("etc/hostname", "etc/hosts", "etc/machine-id", _HOST_KEY, f"{_HOST_KEY}.pub", _SEED)
_MEMORY = "run/arrakis/identity"
_SEED_SIZE = 512
# Named in the image's configuration of sshd. Not elara's own file: that one is the guest's affair.
_AUTHORIZED_KEYS = "run/arrakis/ssh/elara"


class IdentityKeeper:
    """Applies identities to the file system under ``root`` and to ``kernel``."""

    def __init__(self, root: Path, kernel: Kernel, networks: Networks) -> None:
        self._root = str(root)
        self._kernel = kernel
        self._networks = networks

    def move_to_memory(self) -> None:
        """Turn the files of an identity into links to files in memory. Once, at boot.

        The first write to the disk of a machine that was just woken costs some 20 ms under
        emulation. Files that already are links stay what they are.
        """
        memory = Path(self._root, _MEMORY)
        memory.mkdir(parents=True, exist_ok=True)
        for path in (Path(self._root, name) for name in _FILES):
            if not path.is_symlink():
                with suppress(OSError):  # of a mount over it, say: then it stays on the disk
                    _move(path, memory / path.name)

    async def apply(self, _call: Call, identity: Identity) -> Nothing:
        """Become the machine that ``identity`` describes; see the fork contract."""
        name = identity.hostname
        if not (name.isascii() and name[0].isalnum() and _is_alphanumeric(name)):
            raise InvalidParamsError(f"hostname: {identity.hostname!r} is not a host name")
        if identity.machine_id.translate(_WITHOUT_DIGITS):
            raise InvalidParamsError("machine_id: expected 32 lower-case hexadecimal digits")
        self._kernel.add_entropy(identity.entropy)
        self._write(_SEED, os.getrandom(_SEED_SIZE), 0o600)
        self._become_host(identity.hostname)
        self._become_machine(identity.machine_id)
        self._write(_HOST_KEY, identity.ssh_host_key, 0o600)
        self._write(f"{_HOST_KEY}.pub", identity.ssh_host_key_public, 0o644)
        self._let_in(identity.ssh_authorized_keys)
        if identity.network is not None:
            self._networks.configure(identity.network)
        # Last, because systemd and its journal wake up at both: they may run while the answer
        # is on its way.
        self._kernel.set_hostname(identity.hostname)
        if identity.asleep:
            self._kernel.advance_realtime(identity.asleep)
        return Nothing()

    def _become_host(self, hostname: str) -> None:
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
            if self._is_own_file(path):
                self._write(path, text, 0o444)

    def _let_in(self, authorized_keys: bytes) -> None:
        if authorized_keys:
            self._write(_AUTHORIZED_KEYS, authorized_keys, 0o644)
            return
        # Whom the machine in the snapshot let in, its siblings do not.
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._root, _AUTHORIZED_KEYS))

    def _is_own_file(self, path: str) -> bool:
        try:
            found = os.lstat(os.path.join(self._root, path))
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode)

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
            before = os.fstat(file)
            # Before the content: a file that was there may be open to more than its mode says.
            if stat.S_IMODE(before.st_mode) != mode:
                os.fchmod(file, mode)
            os.write(file, data)
            # Not O_TRUNC: ext4 then writes to the disk at once, which took 50 ms of a start.
            if before.st_size > len(data):
                os.ftruncate(file, len(data))
        finally:
            os.close(file)


def _is_alphanumeric(name: str) -> bool:
    return name.translate(_WITHOUT_PUNCTUATION).isalnum()


def _move(path: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.copy2(path, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    link = path.with_name(f".{path.name}.arrakis")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    link.replace(path)
