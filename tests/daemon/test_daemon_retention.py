"""Which snapshots the settings keep."""

from __future__ import annotations

from stored_things import SHAPE

from arrakisd.settings.snapshots import SnapshotsConfig
from arrakisd.storage.manifest import Layer, Manifest, StoredFile
from arrakisd.storage.retention import expired

MIB = 2**20


def snapshot(number: int, vm: str = "box", label: str = "", mib: int = 10) -> Manifest:
    """Make the manifest of a snapshot of so many MiB, the older the smaller its number."""
    files = {"pages": StoredFile(mib * MIB, "", mib * MIB)}
    return Manifest(
        id=f"s{number}",
        template="t",
        parent=None,
        shape=SHAPE,
        created=float(number),
        halted=0.0,
        resync_token="",
        layers=[Layer("l", files)],
        vm=vm,
        label=label,
    )


def ids(
    snapshots: list[Manifest], spared: tuple[str, ...] = (), keep_last: int = 0, max_mib: int = 0
) -> list[str]:
    """Give what is to be deleted."""
    settings = SnapshotsConfig(keep_last, max_mib)
    return [one.manifest.id for one in expired(snapshots, settings, spared)]


LINE = [snapshot(number) for number in (3, 1, 4, 2, 5)]


def test_nothing_by_default() -> None:
    """Without limits all are kept."""
    assert ids(LINE) == []


def test_last_of_each_machine() -> None:
    """The oldest go, of each machine by itself; the newest never."""
    others = [snapshot(number, "other") for number in (6, 7, 8)]
    assert ids(LINE + others, keep_last=2) == ["s1", "s2", "s3", "s6"]
    assert ids(LINE, keep_last=5) == []


def test_what_is_never_deleted() -> None:
    """A label, or a machine that stands on it; what has a label does not count."""
    labelled = [snapshot(6, label="mine"), snapshot(0, label="mine")]
    assert ids(LINE + labelled, keep_last=2) == ["s1", "s2", "s3"]
    assert ids(LINE + labelled, keep_last=2, spared=("s1",)) == ["s2", "s3"]


def test_room() -> None:
    """The oldest go until the rest fits, those of all machines together, and no more of them."""
    others = [snapshot(0, "other"), snapshot(9, "other")]
    assert ids(LINE + others, max_mib=50) == ["s0", "s1"]
    assert ids(LINE, max_mib=1) == ["s1", "s2", "s3", "s4"]
    assert ids([*LINE, snapshot(0, label="large", mib=100)], max_mib=120) == ["s1", "s2", "s3"]


def test_both() -> None:
    """What one limit deletes makes room for the other."""
    assert ids(LINE, keep_last=3, max_mib=30) == ["s1", "s2"]
    assert ids(LINE, keep_last=3, max_mib=20) == ["s1", "s2", "s3"]
