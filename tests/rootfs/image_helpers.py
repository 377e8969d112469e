import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from arrakis_kernel import cache_directory
from arrakis_rootfs import Image, ImageStore, build_image
from arrakis_rootfs.buildah import Buildah, ImageBuildProgress, Progress
from arrakis_rootfs.files import try_lock
from arrakis_rootfs.image import ImageDetails

TINY = """\
FROM scratch
COPY tree/ /
RUN ["/bin/sh", "-c", "chmod 4755 /bin/su"]
ENV GREETING=hello
"""
"""The least that passes for a machine's image, so that builds take a second."""

DETAILS = ImageDetails(
    kind="user", distribution="test 1", python="python3.11", dockerfile_digest="0" * 64
)


class Builder:
    """Builds Dockerfile texts in one context and keeps the progress reported."""

    def __init__(self, store: ImageStore, context: Path) -> None:
        self.store = store
        self.context = context
        self.steps: list[ImageBuildProgress] = []

    async def __call__(
        self, name: str, text: str = TINY, *, progress: Progress | None = None, **args: str
    ) -> Image:
        dockerfile = self.context / f"{name}.Dockerfile"
        dockerfile.write_text(text)
        return await build_image(
            self.store,
            name=name,
            context=self.context,
            dockerfile=dockerfile,
            build_args=args,
            progress=progress or self.steps.append,
        )


@asynccontextmanager
async def idle_buildah() -> AsyncIterator[Buildah]:
    """The machine's buildah storage as the last build left it: locked, but not cleaned."""
    directory = cache_directory() / "buildah"
    while True:
        with try_lock(directory) as locked:
            if locked:
                yield Buildah(directory)
                return
        await trio.sleep(0.05)


async def assert_nothing_left(store_root: Path, marker: str) -> None:
    """No container, mount, temporary file, or process whose command line holds the marker."""
    async with idle_buildah() as buildah:
        assert await buildah.run("containers", "--quiet", "--all") == []
        assert list(buildah.scratch.iterdir()) == []
        assert str(cache_directory() / "buildah") not in Path("/proc/self/mounts").read_text()
    assert list(store_root.glob(".new-*")) == []
    assert [line for line in running().values() if marker in line] == []


def running() -> dict[int, str]:
    """Command lines of all processes but this one."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
    found.pop(os.getpid())
    return found
