"""Every path under the state directory is built here, and only here.

Names have been validated at the boundary; they are checked once more, because a path that
leaves the state directory is the one mistake that must not happen.
"""

from __future__ import annotations

from pathlib import Path

from arrakis_rpc.errors import InvalidParamsError


class StatePaths:
    """The layout of the state directory.

    ``vms/ID`` and ``layers/ID`` stand at the same depth, so that a disk layer can name the
    one below it by one relative path, wherever it stands and wherever the state is moved.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.templates = root / "templates"
        self.snapshots = root / "snapshots"
        self.suspended = root / "suspended"
        self.layers = root / "layers"
        self.vms = root / "vms"
        self.scratch = root / "scratch"
        self.network = root / "network"
        self.tokens = root / "tokens"
        self.groups = root / "groups"
        self.lock = root / "lock"

    def vm(self, name: str) -> Path:
        """Directory of a VM; gone when the VM is."""
        return _below(self.vms, name)

    def snapshot(self, snapshot_id: str) -> Path:
        """Directory of a published snapshot."""
        return _below(self.snapshots, snapshot_id)

    def suspension(self, suspension_id: str) -> Path:
        """Directory of a VM that is suspended."""
        return _below(self.suspended, suspension_id)

    def template(self, template_id: str) -> Path:
        """Directory of a published template."""
        return _below(self.templates, template_id)

    def layer(self, layer_id: str) -> Path:
        """Directory of a frozen disk layer."""
        return _below(self.layers, layer_id)


def _below(parent: Path, name: str) -> Path:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise InvalidParamsError(f"{name!r} cannot be a name")
    return parent / name
