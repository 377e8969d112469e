"""From a Dockerfile to a published image."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import trio

from arrakis_kernel import cache_directory
from arrakis_rootfs.buildah import (
    Buildah,
    ImageBuildProgress,
    Progress,
    StepTracker,
    open_buildah,
)
from arrakis_rootfs.commands import require_tools, run_command
from arrakis_rootfs.dockerfile import NeededImages, find_needed_images
from arrakis_rootfs.errors import ImageContentError, ImageError
from arrakis_rootfs.image import Image, ImageDetails, Kind, check_name, is_name
from arrakis_rootfs.store import ROOTFS, ImageStore
from arrakis_rootfs.tree import inspect_tree, pack_tree, write_environment

__all__ = ["ImageBuildProgress", "Progress", "build_image", "build_in"]

_MEMORY_LABEL = "arrakis.memory"
_UMOUNT_SECONDS = 10.0


async def build_image(
    store: ImageStore,
    *,
    name: str,
    context: Path,
    dockerfile: Path,
    build_args: Mapping[str, str],
    progress: Progress,
    cache: Path | None = None,
) -> Image:
    """Build a Dockerfile and publish the result under a name, which may exist already.

    A FROM line may name any image of the store, as in `FROM base`. The result has to be able to
    run as a machine, which it is when it descends from one that is.

    Raises ImageError: ImageNameError, ImageBuildError with the failing step, ImageContentError
    when no machine could run on the result, ImageSpaceError, ToolMissingError. Whether it fails
    or is cancelled: no image, container, mount or process stays.
    """
    check_name(name)
    tracker = StepTracker(progress)
    async with open_buildah(cache or cache_directory(), tracker.tell) as buildah:
        return await build_in(
            buildah,
            store,
            name=name,
            kind="user",
            context=context,
            dockerfile=dockerfile,
            build_args=build_args,
            tracker=tracker,
        )


async def build_in(
    buildah: Buildah,
    store: ImageStore,
    *,
    name: str,
    kind: Kind,
    context: Path,
    dockerfile: Path,
    build_args: Mapping[str, str],
    tracker: StepTracker,
    inputs: str | None = None,
) -> Image:
    """Do the work of `build_image` for the holder of buildah's storage."""
    former = store.resolve(name) if store.contains(name) else None
    try:
        recipe = await trio.Path(dockerfile).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the Dockerfile {dockerfile}: {error.strerror}") from error
    needed = find_needed_images(recipe.decode(errors="replace"), build_args)
    parents = await _provide(buildah, store, needed, tracker)
    built = await buildah.build(
        context=context,
        dockerfile=dockerfile,
        build_args=build_args,
        parents={name: _reference(image) for name, image in parents.items()},
        tracker=tracker,
    )
    parent = parents.get(needed.parent or "")
    async with store.workspace() as workspace, buildah.mounted(built) as (_, tree):
        facts = await inspect_tree(tree)
        environment = await _environment(buildah, built)
        await write_environment(tree, environment)
        tracker.tell("packing the file system")
        await pack_tree(tree, workspace / ROOTFS)
        details = ImageDetails(
            kind=kind,
            distribution=facts.distribution,
            python=facts.python,
            parent=needed.parent,
            parent_digest=parent.digest if parent else None,
            dockerfile_digest=hashlib.sha256(recipe).hexdigest(),
            inputs=inputs,
            environment=environment,
            memory_mib=await _memory(buildah, built),
        )
        tracker.tell("publishing the image")
        image = await store.publish(workspace, name=name, details=details)
    # What keeps the layers of this image at hand for its descendants; everything that no such
    # reference leads to is left over from failed and replaced builds.
    await buildah.run("tag", built, _reference(image))
    if former and former.digest != image.digest:
        await _forget(buildah, former)
    await buildah.run("rmi", "--prune")
    return image


async def _provide(
    buildah: Buildah, store: ImageStore, needed: NeededImages, tracker: StepTracker
) -> dict[str, Image]:
    """Make sure that buildah holds those of the needed images that are the store's."""
    parents = {
        name: store.resolve(name) for name in needed.all if is_name(name) and store.contains(name)
    }
    for name, image in parents.items():
        if not await buildah.has_image(_reference(image)):
            tracker.tell(f"unpacking the image {name!r} for buildah")
            await _import(buildah, image)
    return parents


async def _forget(buildah: Buildah, image: Image) -> None:
    """Let buildah drop an image; should the store need it again, `_import` makes it anew."""
    if await buildah.has_image(_reference(image)):
        await buildah.run("rmi", _reference(image))


async def _import(buildah: Buildah, image: Image) -> None:
    """Give buildah an image that only the store has any more.

    Through a mount, because fsck.erofs 1.5 loses set-user-ID bits when it extracts. Without the
    devices, which a service may not be allowed to make, and the guest's kernel makes anyway.
    """
    require_tools("mount", "umount")
    mountpoint, left_out = buildah.scratch / "image", buildah.scratch / "left-out"
    mountpoint.mkdir()
    left_out.write_text("dev/*\n")
    without_devices = (f"--contextdir={mountpoint}", f"--ignorefile={left_out}")
    async with buildah.mounted("scratch") as (container, _):
        try:
            await run_command(
                ["mount", "-t", "erofs", "-o", "loop,ro", str(image.path), str(mountpoint)]
            )
            await buildah.run("add", "--quiet", *without_devices, container, str(mountpoint), "/")
        finally:
            with trio.move_on_after(_UMOUNT_SECONDS, shield=True):
                await run_command(["umount", "--lazy", str(mountpoint)])
        for key, value in image.details.environment.items():
            await buildah.run("config", f"--env={key}={value}", container)
        if memory := image.details.memory_mib:
            await buildah.run("config", f"--label={_MEMORY_LABEL}={memory}", container)
        await buildah.run("commit", "--quiet", container, _reference(image))


async def _environment(buildah: Buildah, built: str) -> dict[str, str]:
    template = "{{range .OCIv1.Config.Env}}{{println .}}{{end}}"
    lines = await buildah.run("inspect", "--type=image", f"--format={template}", built)
    return dict(line.split("=", 1) for line in lines if "=" in line)


async def _memory(buildah: Buildah, built: str) -> int | None:
    template = f'{{{{index .OCIv1.Config.Labels "{_MEMORY_LABEL}"}}}}'
    text = "".join(await buildah.run("inspect", "--type=image", f"--format={template}", built))
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise ImageContentError(f"LABEL {_MEMORY_LABEL} is {text!r}, and not a number of MiB")
    return int(text) if text else None


def _reference(image: Image) -> str:
    return f"localhost/arrakis:{image.digest}"
