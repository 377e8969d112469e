"""Driving buildah, which turns Dockerfiles into trees without a daemon.

All of it happens in a storage of our own inside the cache directory, by one build at a time (they
would only share the same processors). Whoever holds the lock may therefore remove every
container in the storage: nobody else's work can be among them, only that of a killed process.
Images stay as what makes the next build quick; they can always be made again.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio
from attrs import frozen

from arrakis_rootfs.commands import PRIVATE_NAMESPACES, require_tools, run_command
from arrakis_rootfs.errors import CommandError, ImageBuildError, ImageError, ImageSpaceError
from arrakis_rootfs.files import try_lock

_POLL_SECONDS = 0.2
_CLEANUP_SECONDS = 30.0
_STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP (?P<step>\d+)/(?P<total>\d+): (?P<text>.*)")


@frozen
class ImageBuildProgress:
    """What a build is doing."""

    step: int
    """The running instruction of the Dockerfile, counted from 1; 0 before the first."""
    total: int
    """How many instructions there are; 0 while that is not known."""
    text: str
    """The instruction, a line of its output, or what is done around the instructions."""


Progress = Callable[[ImageBuildProgress], None]


class StepTracker:
    """Follows a build's output: which step is running, and what to tell about it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.step = 0
        self.total = 0
        self.instruction: str | None = None

    def line(self, line: str) -> None:
        """Take a line of the build's output."""
        if match := _STEP.fullmatch(line):
            self.step, self.total = int(match["step"]), int(match["total"])
            self.instruction = line = match["text"]
        self.tell(line)

    def tell(self, text: str) -> None:
        """Report something about the step that is running."""
        self._progress(ImageBuildProgress(self.step, self.total, text))


class Buildah:
    """Operations on the storage, for the holder of its lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._scratch = directory / "tmp"
        # Mounts do not survive a boot, so what buildah notes about them must not either.
        runtime = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
        self._command = (
            *("buildah", "--root", str(directory / "storage")),
            *("--runroot", f"/run/arrakis-buildah-{runtime}"),
        )

    @property
    def scratch(self) -> Path:
        """A directory for temporary files, emptied before and after each use of the storage."""
        return self._scratch

    async def run(self, *arguments: str, on_line: Callable[[str], None] | None = None) -> list[str]:
        """Run a buildah command and return its standard output."""
        return await run_command(
            [*self._command, *arguments], on_line=on_line, environment=self._environment()
        )

    async def build(
        self,
        *,
        context: Path,
        dockerfile: Path,
        build_args: Mapping[str, str],
        parents: Mapping[str, str],
        tracker: StepTracker,
    ) -> str:
        """Build a Dockerfile and return the id of the image.

        `parents` says which local image a name in a FROM line means. Raises ImageBuildError.
        """
        arguments = [f"--build-arg={key}={value}" for key, value in build_args.items()]
        result = self._scratch / "image-id"
        command = [
            *PRIVATE_NAMESPACES,
            *self._command,
            *("bud", "--isolation=chroot", "--network=host", "--layers", "--pull=false"),
            # A RUN line is root in a chroot, which this capability is the way out of.
            "--cap-drop=CAP_SYS_CHROOT",
            *(f"--iidfile={result}", *arguments, f"--file={dockerfile}", str(context.absolute())),
        ]
        try:
            async with self._named(parents):
                await run_command(command, on_line=tracker.line, environment=self._environment())
        except CommandError as error:
            raise ImageBuildError(
                tracker.instruction, error.reason, command, error.output
            ) from error
        return (await trio.Path(result).read_text()).strip().removeprefix("sha256:")

    @asynccontextmanager
    async def mounted(self, image: str, *options: str) -> AsyncIterator[tuple[str, Path]]:
        """Provide a container made from an image and the directory it is mounted on.

        The container is removed at the end, whatever happens.
        """
        (container,) = await self.run("from", "--quiet", *options, image)
        try:
            (directory,) = await self.run("mount", container)
            yield container, Path(directory)
        finally:
            with trio.move_on_after(_CLEANUP_SECONDS, shield=True):
                await self.run("rm", container)

    @asynccontextmanager
    async def _named(self, images: Mapping[str, str]) -> AsyncIterator[None]:
        """Let short names, as in FROM, mean certain local images for a while.

        `--build-context` would do it without tags, but buildah has it only since 1.26.
        """
        tags: list[str] = []
        try:
            for name, reference in images.items():
                tag = f"localhost/{name}:latest"
                await self.run("tag", reference, tag)
                tags.append(tag)
            yield
        finally:
            with trio.move_on_after(_CLEANUP_SECONDS, shield=True):
                for tag in tags:
                    await self.run("rmi", tag)

    async def has_image(self, reference: str) -> bool:
        """Tell whether the storage holds an image of this name."""
        try:
            await self.run("inspect", "--type=image", "--format={{.FromImageID}}", reference)
        except CommandError:
            return False
        return True

    async def clean(self) -> None:
        """Remove every container, with its mounts, and all temporary files."""
        await self.run("rm", "--all")
        await trio.to_thread.run_sync(_empty, self._scratch)

    def _environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self._scratch)}


@asynccontextmanager
async def open_buildah(cache: Path, on_wait: Callable[[str], None]) -> AsyncIterator[Buildah]:
    """Provide the storage of a cache directory, waiting for builds of other processes.

    Raises ToolMissingError without buildah, and ImageError for anybody but root.
    """
    require_tools("buildah", "mkfs.erofs", "unshare")
    if os.geteuid() != 0:
        raise ImageError("building images needs root: file owners and mounts are part of it")
    directory = cache / "buildah"
    directory.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(directory)
    told = False
    with ExitStack() as held:
        while not held.enter_context(try_lock(directory)):
            # A lock that blocks would need a thread that cannot be cancelled.
            held.close()
            if not told:
                on_wait("waiting for another build on this machine")
                told = True
            await trio.sleep(_POLL_SECONDS)
        await buildah.clean()
        try:
            yield buildah
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ImageSpaceError(f"the disk is full: {error}\n{_space(directory)}") from error
        except ImageSpaceError as error:
            raise ImageSpaceError(f"{error}\n{_space(directory)}") from error
        finally:
            # Should it fail, as on a full disk, the next holder of the lock does it again; the
            # error that matters is the one on its way.
            with trio.move_on_after(_CLEANUP_SECONDS, shield=True), suppress(CommandError):
                await buildah.clean()


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


def _space(directory: Path) -> str:
    usage = shutil.disk_usage(directory)
    return f"{directory}: {usage.free // 2**20} MiB of {usage.total // 2**20} MiB are free"
