"""What is in an archive of stored guests, and what may be.

It may come from anybody. Names become paths only if they are what the daemon itself would make
of them; sizes are bounded by the shape of the machine; and all manifests must fit together.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from attrs import frozen

from arrakis_rpc.converter import structure
from arrakis_rpc.daemon_api import SnapshotCreate
from arrakis_rpc.errors import InvalidParamsError, UnsupportedError
from arrakis_rpc.network_api import VmNetwork

from ..host.disks import FROZEN
from ..host.page_files import PAGE
from .manifest import (
    DEVICE_STATE,
    EMPTY_LAYER,
    FORMAT_VERSION,
    MEMORY,
    PAGES,
    Layer,
    Manifest,
    SavedNetwork,
    StoredFile,
)

_MIB = 2**20
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LAYER_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_VCPUS = 64
_MOST_MIB = 2**22
_MOST_SNAPSHOTS = 10_000
_HIGHEST_LEVEL = 100
_LONGEST_TEXT = 4096
_END_OF_TIME = 2.0**36  # the year 4147
_LAYER_FILES = {FROZEN, EMPTY_LAYER, PAGES}
# Of a disk, beside its data: the tables of qcow2. Of memory: the numbers of the pages.
_OVERHEAD = 1.1
_SMALL = 64 * _MIB


@frozen
class Part:
    """A file in an archive. ``owner`` is what it belongs to: the template, a layer, a snapshot."""

    owner: Manifest | Layer
    name: str
    file: StoredFile


@frozen
class Contents:
    """A template, and a line of snapshots on it, the oldest first. ``cpu`` is needed to wake them.

    It is empty where any will do.
    """

    cpu: str
    template: Manifest
    snapshots: list[Manifest]

    @property
    def layers(self) -> list[Layer]:
        """All layers, each once, none before the one below it."""
        found = {
            layer.id: layer for one in (self.template, *self.snapshots) for layer in one.layers
        }
        return list(found.values())

    @property
    def allocated(self) -> int:
        """How many bytes all files take on disk."""
        return sum(part.file.allocated for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """Give all files, in the order in which they are in the archive."""
        owners: list[Manifest | Layer] = [self.template, *self.layers, *self.snapshots]
        for owner in owners:
            for name in sorted(owner.files):
                yield Part(owner, name, owner.files[name])

    def path(self, part: Part) -> PurePath:
        """Where a file lies below a state directory."""
        if isinstance(part.owner, Layer):
            return PurePath("layers", part.owner.id, part.name)
        kind = "templates" if part.owner.is_template else "snapshots"
        return PurePath(kind, part.owner.id, part.name)


def understood(content: Any) -> Contents:
    """Make contents of what an archive says; raise `InvalidParamsError` for what cannot be."""
    try:
        _check_texts(content)
    except ValueError as error:
        raise InvalidParamsError(f"the archive cannot be: {error}") from error
    for one in _manifests_in(content):
        version = one.get("format_version") if isinstance(one, dict) else None
        if version != FORMAT_VERSION:
            raise UnsupportedError(
                f"the archive has snapshots of format {version!r}, this version reads "
                f"{FORMAT_VERSION}"
            )
    contents: Contents = structure(content, Contents)
    try:
        _check(contents)
    except (ValueError, IndexError) as error:
        raise InvalidParamsError(f"the archive cannot be: {error}") from error
    return contents


def _manifests_in(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        yield content.get("template")
        if isinstance(snapshots := content.get("snapshots"), list):
            yield from snapshots


def _check_texts(content: Any) -> None:
    """Refuse what could not be told to clients, of whom each is told of all snapshots."""
    todo = [content]
    while todo:
        match todo.pop():
            case str() as text:
                _require(len(text) <= _LONGEST_TEXT, "so long a text")
                text.encode()
            case list() as items:
                todo += items
            case dict() as table:
                todo += [*table, *table.values()]


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _check(contents: Contents) -> None:
    template, snapshots = contents.template, contents.snapshots
    shape = template.shape
    _require(template.is_template, "its template is none")
    _require(1 <= len(snapshots) <= _MOST_SNAPSHOTS, "it has no snapshot, or too many")
    _require(1 <= shape.vcpus <= _MOST_VCPUS, "so many vCPUs")
    _require(1 <= shape.memory_mib <= _MOST_MIB, "so much memory")
    _require(1 <= shape.disk_mib <= _MOST_MIB, "so large a disk")
    _require(_SHA256.fullmatch(shape.image_digest), "its image has no digest")
    _require(_ID.fullmatch(shape.image) or _SHA256.fullmatch(shape.image), "an image's name")
    _require(len(template.layers) == 1, "a template has one layer")
    _require(template.files.keys() == {MEMORY, DEVICE_STATE}, "a template has other files")
    _require(template.files[MEMORY].size == shape.memory_mib * _MIB, "the memory has another size")
    parent = None
    for one in snapshots:
        _require(one.shape == shape, "a snapshot has another shape")
        _require(one.template == template.id and not one.is_template, "another template")
        _require(one.parent == parent, "a snapshot has another parent")
        _require(one.layers[0] == template.layers[0], "a snapshot stands on another template")
        _require(one.files.keys() == {DEVICE_STATE}, "a snapshot has other files")
        parent = one.id
    ids = [one.id for one in snapshots]
    _require(len(set(ids)) == len(ids), "a snapshot is there twice")
    for one in (template, *snapshots):
        _check_manifest(one)
    _check_layers(contents)


def _check_manifest(one: Manifest) -> None:
    _require(_ID.fullmatch(one.id), "an id that is none")
    _require(not one.suspended, "a suspended machine is no snapshot")
    _require(len(bytes.fromhex(one.resync_token)) == 32, "a token that is none")
    for time in (one.created, one.halted, one.pause, one.boot):
        _require(0 <= time < _END_OF_TIME, "a time that is none")
    _require(0 <= one.changed_pages <= one.shape.memory_mib * _MIB // PAGE, "so many pages")
    _require(EMPTY_LAYER in one.layers[-1].files, "its topmost layer is not whole")
    _require(one.files[DEVICE_STATE].size <= _SMALL, "so large a device state")
    if not one.is_template:
        SnapshotCreate(vm=one.vm, id=one.id, label=one.label)  # as a client could have asked
    if one.network is not None:
        _check_network(one.network)
    for file in one.files.values():
        _check_file(file)


def _check_network(one: SavedNetwork) -> None:
    ipaddress.IPv4Address(one.ip)
    VmNetwork(one.egress, one.ports, one.mbit)  # as a client could have asked
    _require(all(port.host_port is None for port in one.ports), "a port of the host's")


def _check_layers(contents: Contents) -> None:
    shape, known = contents.template.shape, {layer.id: layer for layer in contents.layers}
    limits = {
        FROZEN: shape.disk_mib * _MIB * _OVERHEAD + _SMALL,
        PAGES: shape.memory_mib * _MIB * _OVERHEAD + _SMALL,
        EMPTY_LAYER: _SMALL,
    }
    below: dict[str, str | None] = {}
    for one in (contents.template, *contents.snapshots):
        for layer, lower in zip(one.layers, [None, *one.layers], strict=False):
            _require(layer == known[layer.id], "two layers with one id")
            place = None if lower is None else lower.id
            _require(below.setdefault(layer.id, place) == place, "a layer in two places")
    for layer in known.values():
        _require(_LAYER_ID.fullmatch(layer.id), "a layer's id that is none")
        _require(0 <= layer.level <= _HIGHEST_LEVEL, "a layer of such a level")
        names = layer.files.keys()
        _require(FROZEN in names and names <= _LAYER_FILES, "a layer has other files")
        for name, file in layer.files.items():
            _require(file.size <= limits[name], f"so large a file {name}")
            _check_file(file)


def _check_file(file: StoredFile) -> None:
    _require(file.size >= 0 and file.allocated >= 0, "a file of less than nothing")
    _require(file.allocated <= 2 * file.size + _SMALL, "a file that takes so much")
    _require(_SHA256.fullmatch(file.digest), "a checksum that is none")
