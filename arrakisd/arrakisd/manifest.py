"""What a stored template or snapshot says of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from arrakis_rpc.converter import structure
from arrakis_rpc.errors import IntegrityError

from .host.files import sync

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MEMORY = "memory"
PAGES = "pages"
DEVICE_STATE = "device-state"
EMPTY_LAYER = "empty-layer.qcow2"

_DIGEST = "digest"


@frozen
class Shape:
    """What must be equal for a saved guest to wake: the machine and what it runs on."""

    image: str
    image_digest: str
    root_image: str
    kernel_digest: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    vmm: str
    vmm_version: str
    accelerator: str


@frozen
class StoredFile:
    """Size and checksum of one file, and how many bytes it takes on disk, without holes."""

    size: int
    digest: str
    allocated: int


@frozen
class Layer:
    """A frozen disk layer."""

    id: str
    file: StoredFile


@frozen
class Manifest:
    """What is known of a template or a snapshot.

    ``template`` is the id of the template at the root, for a template its own. ``parent`` is
    the snapshot before this one, or None. ``layers`` are in order from the bottom.
    ``resync_token`` (hexadecimal) opens the first session with the agent that sleeps in it.
    """

    id: str
    template: str
    parent: str | None
    shape: Shape
    created: float
    resync_token: str
    layers: list[Layer] = field(factory=list)
    vm: str = ""
    label: str = ""
    changed_pages: int = 0
    pause: float = 0.0
    boot: float = 0.0
    files: dict[str, StoredFile] = field(factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def is_template(self) -> bool:
        """Whether this is a template."""
        return self.id == self.template

    @property
    def bytes(self) -> int:
        """What its own parts and its topmost layer take on disk, in bytes."""
        parts = [*self.files.values(), self.layers[-1].file]
        return sum(part.allocated for part in parts)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write or replace a directory's manifest, durably and all at once. Blocks."""
    new = directory / f".{MANIFEST}"
    content = asdict(manifest)
    new.write_text(json.dumps({**content, _DIGEST: _digest(content)}, indent=1))
    sync(new)
    new.rename(directory / MANIFEST)
    sync(directory)


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest; raise `IntegrityError` naming what is damaged. Blocks."""
    path = directory / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        digest, version = content.pop(_DIGEST), content["format_version"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error!r}") from error
    if version != FORMAT_VERSION:
        raise IntegrityError(f"{path} has format {version}, this version reads {FORMAT_VERSION}")
    if digest != _digest(content):
        raise IntegrityError(f"{path} is not what was stored: its checksum differs")
    manifest = structure(content, Manifest)
    if manifest.id != directory.name:
        raise IntegrityError(f"{path} is that of '{manifest.id}'")
    return manifest


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
