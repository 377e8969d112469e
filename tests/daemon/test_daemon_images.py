"""Images that nobody needs, pruned through a real daemon with a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
from real_daemon import passable_directory, running_daemon
from stored_things import Shelf

from arrakis import SandboxManager
from arrakis_rootfs.image import Image, ImageDetails
from arrakis_rootfs.store import ROOTFS, ImageStore
from arrakisd.storage.manifest import write_manifest

_DETAILS = ImageDetails(
    kind="base", distribution="test 1", python="python3.11", dockerfile_digest="0" * 64
)


async def publish(store: ImageStore, name: str, content: bytes) -> Image:
    async with store.workspace() as workspace:
        (workspace / ROOTFS).write_bytes(content)
        return await store.publish(workspace, name=name, details=_DETAILS)


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a cache for the daemons of this test, that is not the machine's."""
    with passable_directory() as directory:
        (directory / "cache").mkdir(mode=0o755)
        monkeypatch.setenv("ARRAKIS_CACHE", str(directory / "cache"))
        yield directory


def with_template_of(state: Path, image: Image) -> None:
    """Make a state directory that holds a template of an image."""
    shelf = Shelf(state)
    template = shelf.template()
    shape = attrs.evolve(template.shape, image_digest=image.digest, root_image=str(image.path))
    write_manifest(shelf.store.directory(template), attrs.evolve(template, shape=shape))


def test_prune(directory: Path) -> None:
    """What a template of any daemon on this machine stands on is spared; then it goes as well."""
    cache = ImageStore(directory / "cache" / "images")
    ours, theirs, unused, _ = [
        trio.run(publish, cache, "base", content) for content in (b"1", b"2", b"3" * 1000, b"4")
    ]
    with_template_of(directory / "ours", ours)
    with_template_of(directory / "theirs", theirs)
    with running_daemon(directory / "theirs"):
        pass
    with (
        running_daemon(directory / "ours") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        for dry_run in (True, False):
            assert unused.path.exists()
            (pruned,) = manager.images.prune(dry_run=dry_run)
            assert (pruned.digest, pruned.bytes) == (unused.digest, 1000)
        assert not unused.path.parent.exists()
        assert manager.images.prune() == []
        manager.templates.delete("template")
        assert [one.digest for one in manager.images.prune()] == [ours.digest]
        assert theirs.path.exists()
        assert [one.name for one in manager.images.list()] == ["base"]
