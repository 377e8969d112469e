"""The base image: this project's own Dockerfile with the guest agent in it."""

import hashlib
import shutil
from importlib import resources
from pathlib import Path

import trio

from arrakis_rootfs.buildah import Progress, StepTracker, open_buildah
from arrakis_rootfs.builder import build_in
from arrakis_rootfs.distribution import default_distribution, provide_distribution
from arrakis_rootfs.errors import ImageNotFoundError
from arrakis_rootfs.files import hash_tree
from arrakis_rootfs.image import Image
from arrakis_rootfs.payload import assemble_payload, hash_payload
from arrakis_rootfs.store import ImageStore
from arrakis_rootfs.tree import PACK_OPTIONS

BASE = "base"
"""Name of the base image."""


async def ensure_base(
    store: ImageStore, cache: Path, progress: Progress, distribution: str | None = None
) -> Image:
    """Return the base image, building it first when any of its inputs has changed.

    `distribution` is one of `DISTRIBUTIONS`, by default the host's own family. Nothing but files
    is read when there is nothing to do. Raises ImageError.
    """
    if image := await find_base(store, distribution):
        return image
    distribution = distribution or default_distribution()
    inputs = await trio.to_thread.run_sync(_hash_inputs, distribution)
    tracker = StepTracker(progress)
    async with open_buildah(cache, tracker.tell) as buildah:
        # The build that we waited for may have been this very one.
        if image := current(store, BASE, inputs):
            return image
        reference = await provide_distribution(buildah, distribution, tracker)
        context = buildah.scratch / "context"
        await trio.to_thread.run_sync(shutil.copytree, _recipe(), context)
        await assemble_payload(context / "agent", cache / "downloads", tracker.tell)
        return await build_in(
            buildah,
            store,
            name=BASE,
            kind="base",
            context=context,
            dockerfile=context / "Dockerfile",
            build_args={"BASE": reference},
            tracker=tracker,
            inputs=inputs,
        )


async def find_base(store: ImageStore, distribution: str | None = None) -> Image | None:
    """Return the base image if it is made of what its inputs are now. Needs no rights."""
    inputs = await trio.to_thread.run_sync(_hash_inputs, distribution or default_distribution())
    return current(store, BASE, inputs)


def current(store: ImageStore, name: str, inputs: str) -> Image | None:
    """Return the image of a name if it was made of certain inputs."""
    try:
        image = store.resolve(name)
    except ImageNotFoundError:
        return None
    return image if image.details.inputs == inputs else None


def _recipe() -> Path:
    return Path(str(resources.files("arrakis_rootfs").joinpath("base")))


def _hash_inputs(distribution: str) -> str:
    parts = (distribution, *PACK_OPTIONS, hash_tree(_recipe()), hash_payload())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
