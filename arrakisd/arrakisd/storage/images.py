"""Images for clients: the store and the builder, in the daemon's terms and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from arrakis_rootfs import errors as image_errors
from arrakis_rootfs.builder import ImageBuildProgress, build_image
from arrakis_rootfs.image import Image
from arrakis_rootfs.store import ImageStore
from arrakis_rpc import errors
from arrakis_rpc.connection import DataReceived, StreamEnded
from arrakis_rpc.daemon_api import ImageBuild, ImageInfo, ImageList

from ..host.files import temporary_directory
from ..wire.streams import Streams
from .build_context import unpack

_BACKLOG = 256
_HINT_NAMES = (
    "scripts/setup builds the 'base' image, with --with-desktop also 'desktop'; "
    "'arrakis image list' shows what there is"
)

_TRANSLATION: tuple[tuple[type[Exception], type[errors.ArrakisError], str | None], ...] = (
    (image_errors.ImageNotFoundError, errors.NotFoundError, _HINT_NAMES),
    (image_errors.ImageNameError, errors.InvalidParamsError, None),
    (image_errors.ImageDamagedError, errors.IntegrityError, "build the image again"),
    (image_errors.ImageSpaceError, errors.ExhaustedError, "make room, then build again"),
    (image_errors.ToolMissingError, errors.UnsupportedError, None),
    (image_errors.ImageError, errors.ImageBuildError, None),
)

Progress = Callable[[str, int, int], Awaitable[None]]


@contextmanager
def translated() -> Iterator[None]:
    """Turn the image package's errors into the daemon's."""
    try:
        yield
    except image_errors.ImageError as problem:
        for theirs, ours, hint in _TRANSLATION:
            if isinstance(problem, theirs):
                raise ours(str(problem), hint=hint) from problem
        raise


class ImageService:
    """Lists, builds and deletes images."""

    def __init__(self, store: ImageStore, scratch: Path, cache: Path) -> None:
        self._store = store
        self._scratch = scratch
        self._cache = cache

    async def list(self) -> ImageList:
        """List all images by name."""
        with translated():
            images = await trio.to_thread.run_sync(self._store.list)
        return ImageList(images=[_described(image) for image in images])

    async def delete(self, name: str) -> None:
        """Delete an image."""
        with translated():
            await self._store.delete(name)

    async def collect(self, in_use: set[str]) -> None:
        """Delete the files of images that have no name and are not in use."""
        with translated():
            await self._store.collect(in_use)

    async def prune(self, *, dry_run: bool) -> ImageList:
        """Delete the images that have no name and no user; list them."""
        with translated():
            images = await self._store.prune(dry_run=dry_run)
        return ImageList(images=[_described(image) for image in images])

    async def build(self, params: ImageBuild, streams: Streams, progress: Progress) -> ImageInfo:
        """Build an image from the context that comes as a tar stream."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        async with temporary_directory(self._scratch) as directory:
            context = directory / "context"
            await _receive_context(streams, directory / "context.tar", context)
            dockerfile = _inside(context, params.dockerfile)

            steps, reports = trio.open_memory_channel[ImageBuildProgress](_BACKLOG)

            def report(step: ImageBuildProgress) -> None:
                with suppress(trio.WouldBlock):  # a slow reader misses lines
                    steps.send_nowait(step)

            async def pass_on() -> None:
                async for step in reports:
                    await progress(step.text, step.step, step.total)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_on)
                with translated(), steps:
                    image = await build_image(
                        self._store,
                        name=params.name,
                        context=context,
                        dockerfile=dockerfile,
                        build_args=params.build_args,
                        progress=report,
                        cache=self._cache,
                    )
        return _described(image)


async def _receive_context(streams: Streams, archive: Path, target: Path) -> None:
    with archive.open("wb") as file:
        while not isinstance(event := await streams.receive(), StreamEnded):
            if isinstance(event, DataReceived):
                await trio.to_thread.run_sync(file.write, event.data)
                streams.consumed(event)
    await trio.to_thread.run_sync(unpack, archive, target)
    archive.unlink()


def _inside(context: Path, name: str) -> Path:
    path = (context / name).resolve()
    if not path.is_relative_to(context.resolve()) or not path.is_file():
        raise errors.NotFoundError(
            f"there is no {name} in the build context", hint="paths are relative to the context"
        )
    return path


def _described(image: Image) -> ImageInfo:
    return ImageInfo(
        name=image.name or image.digest,
        digest=image.digest,
        bytes=image.size,
        created=image.created,
        parent=image.details.parent,
    )
