"""`python -m arrakis_rootfs`: make the base image, or build one from a Dockerfile."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import trio

from arrakis_kernel import cache_directory
from arrakis_rootfs.base_image import ensure_base
from arrakis_rootfs.buildah import ImageBuildProgress
from arrakis_rootfs.builder import build_image
from arrakis_rootfs.distribution import DISTRIBUTIONS
from arrakis_rootfs.errors import ImageError
from arrakis_rootfs.image import Image
from arrakis_rootfs.store import ImageStore

_QUIET_SECONDS = 5.0


def main() -> int:
    """Run the command and return its exit status."""
    arguments = _parse()
    status = 0
    try:
        trio.run(partial(_run_and_tell, arguments))
    except* ImageError as group:
        for error in group.exceptions:
            sys.stderr.write(f"arrakis_rootfs: {error}\n")
        status = 1
    except* KeyboardInterrupt:
        # Grouped with whatever its arrival broke; everything is cleaned up by now.
        status = 130
    return status


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="arrakis_rootfs", description=__doc__)
    parser.add_argument("--cache", type=Path, default=cache_directory(), help="cache directory")
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("base", help="make sure that the base image is there")
    base.add_argument("--distribution", choices=DISTRIBUTIONS, help="default: the host's family")
    build = commands.add_parser("build", help="build an image from a Dockerfile")
    build.add_argument("name")
    build.add_argument("context", type=Path)
    build.add_argument("--file", type=Path, help="default: Dockerfile in the context")
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


async def _run_and_tell(arguments: argparse.Namespace) -> None:
    image = await _run(arguments)
    sys.stdout.write(
        f"image {image.name} ({image.details.distribution}, {image.size // 2**20} MiB)"
        f" in {image.path.parent}\n"
    )


async def _run(arguments: argparse.Namespace) -> Image:
    cache = arguments.cache.absolute()
    store = ImageStore(cache / "images")
    await store.sweep()
    if arguments.command == "base":
        return await ensure_base(store, cache, _Printer(), arguments.distribution)
    return await build_image(
        store,
        name=arguments.name,
        context=arguments.context,
        dockerfile=arguments.file or arguments.context / "Dockerfile",
        build_args=dict(entry.split("=", 1) for entry in arguments.build_arg),
        progress=_Printer(),
        cache=cache,
    )


class _Printer:
    """Prints one line for each step, and one every few seconds of what a step itself prints."""

    def __init__(self) -> None:
        self._step = -1
        self._next = 0.0

    def __call__(self, progress: ImageBuildProgress) -> None:
        now = time.monotonic()
        if progress.step == self._step and now < self._next:
            return
        self._step, self._next = progress.step, now + _QUIET_SECONDS
        place = f"[{progress.step}/{progress.total}] " if progress.total else ""
        sys.stderr.write(f"  {place}{progress.text[:100]}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
