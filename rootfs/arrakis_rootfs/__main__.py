"""`python -m arrakis_rootfs`: make the stock images, or build one from a Dockerfile."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import trio

from arrakis_kernel import cache_directory
from arrakis_rootfs.base_image import ensure_base, find_base
from arrakis_rootfs.buildah import ImageBuildProgress
from arrakis_rootfs.builder import build_image
from arrakis_rootfs.desktop_image import ensure_desktop, find_desktop
from arrakis_rootfs.distribution import DISTRIBUTIONS
from arrakis_rootfs.errors import ImageError, ImageNotFoundError
from arrakis_rootfs.image import Image
from arrakis_rootfs.store import ImageStore

_QUIET_SECONDS = 5.0
# Somebody may be about to start a machine from the image that was current a moment ago.
_RECENT_SECONDS = 3600.0


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
    desktop = commands.add_parser("desktop", help="make sure that the desktop image is there")
    for stock in (base, desktop):
        stock.add_argument(
            "--check", action="store_true", help="make nothing; fail if the image is not there"
        )
        stock.add_argument(
            "--distribution", choices=DISTRIBUTIONS, help="default: the host's family"
        )
    build = commands.add_parser("build", help="build an image from a Dockerfile")
    build.add_argument("name")
    build.add_argument("context", type=Path)
    build.add_argument("--file", type=Path, help="default: Dockerfile in the context")
    for command in (desktop, build):
        command.add_argument(
            "--build-arg", action="append", default=[], type=_build_arg, metavar="NAME=VALUE"
        )
    return parser.parse_args()


def _build_arg(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


async def _run_and_tell(arguments: argparse.Namespace) -> None:
    image = await _run(arguments)
    if arguments.command != "build":
        store = ImageStore(arguments.cache.absolute() / "images")
        pruned = await store.prune(kind="base", older_than=_RECENT_SECONDS)
        if freed := sum(one.size for one in pruned):
            sys.stdout.write(f"removed {len(pruned)} superseded images, {freed // 2**20} MiB\n")
    sys.stdout.write(
        f"image {image.name} ({image.details.distribution}, {image.size // 2**20} MiB)"
        f" in {image.path.parent}\n"
    )


async def _run(arguments: argparse.Namespace) -> Image:
    cache = arguments.cache.absolute()
    store = ImageStore(cache / "images")
    if getattr(arguments, "check", False):
        return await _check(arguments, store)
    await store.sweep()
    if arguments.command == "base":
        return await ensure_base(store, cache, _Printer(), arguments.distribution)
    if arguments.command == "desktop":
        args = dict(arguments.build_arg)
        return await ensure_desktop(store, cache, _Printer(), arguments.distribution, args)
    return await build_image(
        store,
        name=arguments.name,
        context=arguments.context,
        dockerfile=arguments.file or arguments.context / "Dockerfile",
        build_args=dict(arguments.build_arg),
        progress=_Printer(),
        cache=cache,
    )


async def _check(arguments: argparse.Namespace, store: ImageStore) -> Image:
    """Give the image if it is current. Unlike making it, this needs no rights."""
    if arguments.command == "base":
        found = await find_base(store, arguments.distribution)
    else:
        found = await find_desktop(store, arguments.distribution, dict(arguments.build_arg))
    if found is None:
        raise ImageNotFoundError(f"the image '{arguments.command}' has to be made")
    return found


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
