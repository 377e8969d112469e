"""Files and layers that are to last: who may read them, their checksums, and that they are synced.

They come from VMMs, one of which a guest may have taken over.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from attrs import evolve

from arrakis_rpc.errors import IntegrityError

from ..host.checksums import Verifier, file_digest
from ..host.disks import FROZEN
from ..host.files import sync
from .manifest import EMPTY_LAYER, MEMORY, PAGES, SUSPENDED_VM, UNSEALED, Layer, StoredFile

_BLOCK = 512  # what st_blocks counts (stat(2))


class Sealer:
    """Grants files to the VMMs' ``group``, and seals them. What it makes is not verified again."""

    def __init__(self, verifier: Verifier, group: int | None) -> None:
        self._verifier = verifier
        self._group = group

    def grant(self, path: Path) -> StoredFile:
        """Let VMMs read a file, unless only the daemon needs it."""
        # The VMM's user must be able to open a memory file for writing although it only ever
        # maps it privately: QEMU before 9.0 insists.
        modes = {MEMORY: 0o660, SUSPENDED_VM: 0o400}
        self._set_mode(path, modes.get(path.name, 0o440))
        return StoredFile(path.stat().st_size, UNSEALED, 0)

    def grant_directory(self, path: Path) -> None:
        """Let VMMs into a directory."""
        self._set_mode(path, 0o750)

    def seal(self, path: Path, part: StoredFile) -> StoredFile:
        """Make a file durable, and give it its checksum. Blocks."""
        sync(path)
        return evolve(part, digest=file_digest(path), allocated=path.stat().st_blocks * _BLOCK)

    def grant_layer(self, directory: Path, layer_id: str, *, whole: bool, level: int = 0) -> Layer:
        """Let VMMs read a layer; of one that is not ``whole``, only its part of the disk."""
        # A layer whose snapshot failed may have pages, of which no later snapshot knows.
        names = [FROZEN]
        if whole:
            names += [name for name in (EMPTY_LAYER, PAGES) if (directory / name).exists()]
        files = {name: self.grant(directory / name) for name in names}
        self.grant_directory(directory)
        for name in files:
            self._verifier.trust(directory / name)
        return Layer(layer_id, files, level)

    def seal_layer(self, directory: Path, layer: Layer) -> Layer:
        """Make a layer durable and give it its checksums, unless it has them. Blocks.

        VMs that came of one moment may do this at once. Nothing of the files changes by it.
        """
        if layer.is_sealed:
            return layer
        files = {name: self.seal(directory / name, part) for name, part in layer.files.items()}
        sync(directory)
        return evolve(layer, files=files)

    def _set_mode(self, path: Path, mode: int) -> None:
        # Never through a link: a VMM that a guest has taken over could have put one there.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise IntegrityError(f"{path} is no ordinary file")
            if self._group is not None:
                os.fchown(fd, 0, self._group)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
