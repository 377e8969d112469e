"""What shape a machine gets: what was asked for, and defaults for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from emulation import emulating

from arrakis_rootfs import Image, ImageDetails, ImageStore
from arrakis_rpc.daemon_api import VmStart
from arrakisd.host.net.interface import NoNetwork
from arrakisd.machines.surroundings import Surroundings
from arrakisd.machines.templates import Templates
from arrakisd.settings.config import Config
from arrakisd.settings.paths import StatePaths
from arrakisd.storage.merging import Merger
from arrakisd.storage.store import Store


async def stored(images: ImageStore, name: str, memory_mib: int | None) -> Image:
    details = ImageDetails(
        kind="user",
        distribution="test 1",
        python="",
        dockerfile_digest="0" * 64,
        memory_mib=memory_mib,
    )
    async with images.workspace() as workspace:
        await trio.Path(workspace / "rootfs.erofs").write_text(name)
        return await images.publish(workspace, name=name, details=details)


@pytest.fixture
async def templates(tmp_path: Path) -> Templates:
    """Templates of a daemon whose machines have 512 MiB, with images of different needs."""
    images = ImageStore(tmp_path / "images")
    for name, memory_mib in (("any", None), ("small", 256), ("large", 1024)):
        await stored(images, name, memory_mib)
    kernel = tmp_path / "kernel"
    kernel.write_text("a kernel")
    config = Config(memory_mib=512, kernel=str(kernel), initramfs=str(kernel))
    paths = StatePaths(tmp_path / "state")
    store = Store(paths, None)
    surroundings = Surroundings(config, paths, store, NoNetwork(), Merger(config, store))
    return Templates(surroundings, images, emulating(config))


@pytest.mark.parametrize(
    ("image", "asked", "given"),
    [
        ("any", None, 512),
        ("small", None, 512),
        ("large", None, 1024),
        ("large", 256, 256),
        ("small", 2048, 2048),
    ],
)
async def test_memory(templates: Templates, image: str, asked: int | None, given: int) -> None:
    """The default is the daemon's, or what the image needs if that is more; who asks decides."""
    plan = await templates.plan(VmStart(name="one", image=image, memory_mib=asked))
    assert plan.shape.memory_mib == given
