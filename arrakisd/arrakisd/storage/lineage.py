"""Which snapshot descends from which, when some of those between are deleted."""

from __future__ import annotations

from collections.abc import Mapping

from .manifest import Manifest


class Lineage:
    """The family of the ``snapshots`` that there are, and of those that there were."""

    def __init__(self, snapshots: Mapping[str, Manifest]) -> None:
        self._snapshots = snapshots
        self._gone: dict[str, str | None] = {}

    def note_gone(self, snapshot_id: str, parent: str | None) -> None:
        """Remember the parent of one that is deleted, or is in no list."""
        self._gone[snapshot_id] = parent

    def present(self, snapshot_id: str | None) -> str | None:
        """Id of the nearest snapshot that there is, from one upwards."""
        return snapshot_id if snapshot_id in self._snapshots else self.heir(snapshot_id)

    def heir(self, gone: str | None) -> str | None:
        """Id of the nearest snapshot above one that is gone."""
        heir = self._gone.get(gone) if gone else None
        while heir is not None and heir not in self._snapshots:
            heir = self._gone.get(heir)
        return heir

    def upwards(self, snapshot_id: str | None) -> list[Manifest]:
        """The snapshots from one upwards, to the oldest, or below one that is damaged or gone."""
        found = []
        while snapshot_id and (one := self._snapshots.get(snapshot_id)):
            found.append(one)
            snapshot_id = one.parent
        return found

    def children(self, snapshot_id: str) -> list[Manifest]:
        """The snapshots that were taken on top of one."""
        return [one for one in list(self._snapshots.values()) if one.parent == snapshot_id]
