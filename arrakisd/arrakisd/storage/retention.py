"""Which snapshots have had their time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from attrs import frozen

from ..settings.snapshots import SnapshotsConfig
from .manifest import Manifest

_MIB = 2**20


@frozen
class Expired:
    """A snapshot that is to be deleted, and the setting that says so."""

    manifest: Manifest
    setting: str


def expired(
    snapshots: Iterable[Manifest], settings: SnapshotsConfig, spared: Collection[str]
) -> list[Expired]:
    """Find what the settings do not keep, the oldest first.

    Never one with a label, the newest of a VM, nor those whose ids are ``spared``. What was
    labelled does not count among the last of a VM, but takes its part of the room.
    """
    found: dict[str, Expired] = {}
    later: Counter[str] = Counter()
    ordinary = []
    by_age = sorted(snapshots, key=lambda one: one.created)
    for one in reversed(by_age):
        if one.label:
            continue
        later[one.vm] += 1
        if later[one.vm] == 1 or one.id in spared:
            continue
        ordinary.append(one)
        if settings.keep_last and later[one.vm] > settings.keep_last:
            found[one.id] = Expired(one, "keep_last")
    if settings.max_mib:
        room = settings.max_mib * _MIB - sum(one.bytes for one in by_age if one.id not in found)
        for one in reversed(ordinary):
            if room >= 0:
                break
            if one.id not in found:
                found[one.id] = Expired(one, "max_mib")
                room += one.bytes
    return sorted(found.values(), key=lambda one: one.manifest.created)
