"""The desktop image: this project's second Dockerfile, on top of the base image."""

import hashlib
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import trio

from arrakis_rootfs.base_image import current, ensure_base, find_base
from arrakis_rootfs.buildah import Progress, StepTracker, open_buildah
from arrakis_rootfs.builder import build_in
from arrakis_rootfs.files import hash_tree
from arrakis_rootfs.image import Image
from arrakis_rootfs.store import ImageStore
from arrakis_rootfs.tree import PACK_OPTIONS

DESKTOP = "desktop"
"""Name of the desktop image."""

# Compiled by whoever imports the programs here, and no part of them.
_LEFT_OUT = shutil.ignore_patterns("__pycache__")


async def ensure_desktop(
    store: ImageStore,
    cache: Path,
    progress: Progress,
    distribution: str | None = None,
    build_args: Mapping[str, str] | None = None,
) -> Image:
    """Return the desktop image, building it and its base when an input of theirs has changed.

    `build_args` are those of its Dockerfile: DESKTOP, BROWSER, GEOMETRY. Raises ImageError.
    """
    build_args = build_args or {}
    base = await ensure_base(store, cache, progress, distribution)
    inputs = await trio.to_thread.run_sync(_hash_inputs, base, build_args)
    if image := current(store, DESKTOP, inputs):
        return image
    tracker = StepTracker(progress)
    async with open_buildah(cache, tracker.tell) as buildah:
        # The build that we waited for may have been this very one.
        if image := current(store, DESKTOP, inputs):
            return image
        context = buildah.scratch / "context"
        await trio.to_thread.run_sync(_copy_recipe, context)
        return await build_in(
            buildah,
            store,
            name=DESKTOP,
            kind="base",
            context=context,
            dockerfile=context / "Dockerfile",
            build_args=build_args,
            tracker=tracker,
            inputs=inputs,
        )


async def find_desktop(
    store: ImageStore, distribution: str | None, build_args: Mapping[str, str]
) -> Image | None:
    """Return the desktop image if it is made of what its inputs are now. Needs no rights."""
    base = await find_base(store, distribution)
    if base is None:
        return None
    inputs = await trio.to_thread.run_sync(_hash_inputs, base, build_args)
    return current(store, DESKTOP, inputs)


def _recipe() -> Path:
    return Path(str(resources.files("arrakis_rootfs").joinpath("desktop")))


def _copy_recipe(context: Path) -> None:
    shutil.copytree(_recipe(), context, ignore=_LEFT_OUT)


def _hash_inputs(base: Image, build_args: Mapping[str, str]) -> str:
    recipe = _recipe()
    contents = (
        hash_tree(recipe, pattern=one) for one in ("Dockerfile", "files/**/*", "programs/*")
    )
    arguments = (f"{name}={value}" for name, value in sorted(build_args.items()))
    parts = (base.details.inputs or base.digest, *PACK_OPTIONS, *contents, *arguments)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
