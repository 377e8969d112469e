"""A built tree: what it says about itself, and packing it into the file system guests share."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import trio
from attrs import frozen

from arrakis_rootfs.commands import run_command
from arrakis_rootfs.errors import CommandError, ImageContentError, ImageSpaceError
from arrakis_rootfs.files import resolve_in, write_json
from arrakis_rootfs.payload import AGENT

AGENT_PATH = f"/usr/lib/arrakis/{AGENT}"
ENVIRONMENT_PATH = "/usr/lib/arrakis/environment.json"
"""Where the agent finds what a Dockerfile's ENV lines set."""

# Times are kept: Python takes a compiled module only for the source file of exactly the time
# noted in it, so one fixed time for all files would have every guest compile every import anew.
# Clusters of 16 KiB are a tenth smaller than the usual 4 KiB ones; a higher level packs 1 % better
# in half as much time again.
PACK_OPTIONS = ("-zlz4hc,3", "-C16384", "-U00000000-0000-0000-0000-000000000000")

_FULL_BYTES = 2**20
_RELEASE_BYTES = 64 * 1024

_MISSING_INIT = "the image has no /sbin/init, so no machine could start from it"
_MISSING_AGENT = "the image has no Arrakis agent, so nobody could talk to its machines"
_ADVICE = "; begin the Dockerfile with `FROM base`"


@frozen
class TreeFacts:
    """What a tree says about itself."""

    distribution: str
    python: str


async def inspect_tree(tree: Path) -> TreeFacts:
    """Return what a tree is, or raise ImageContentError when no machine could run on it."""
    return await trio.to_thread.run_sync(_inspect, tree)


async def write_environment(tree: Path, environment: Mapping[str, str]) -> None:
    """Leave in a tree what the agent gives to every command; raises ImageContentError.

    In the tree, and not beside it, so that images which differ in nothing else are two images,
    and that whatever is made from a machine has it too.
    """
    await trio.to_thread.run_sync(_write_environment, tree, environment)


def _write_environment(tree: Path, environment: Mapping[str, str]) -> None:
    try:
        directory = resolve_in(tree, str(PurePosixPath(ENVIRONMENT_PATH).parent))
        place = directory / PurePosixPath(ENVIRONMENT_PATH).name
        before = directory.stat()
        place.unlink(missing_ok=True)  # a Dockerfile may have put a link there
        write_json(place, dict(environment))
        place.chmod(0o644)
        # One time for all builds: the same content is to be the same image.
        os.utime(place, (0, 0))
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageSpaceError(f"the disk is full: {error}") from error
        message = f"{ENVIRONMENT_PATH} cannot be written: {error.strerror}"
        raise ImageContentError(message) from error


async def pack_tree(tree: Path, target: Path) -> None:
    """Write a tree into a new erofs file; raises ImageSpaceError when it does not fit."""
    try:
        await run_command(["mkfs.erofs", "--quiet", *PACK_OPTIONS, str(target), str(tree)])
    except CommandError as error:
        # mkfs.erofs calls a full disk a "numerical result out of range".
        free = shutil.disk_usage(target.parent).free
        if free < _FULL_BYTES:
            message = f"the disk is full: {free} bytes are left at {target.parent}"
            raise ImageSpaceError(message) from error
        raise


def _inspect(tree: Path) -> TreeFacts:
    for path, problem in (("/sbin/init", _MISSING_INIT), (AGENT_PATH, _MISSING_AGENT)):
        try:
            resolve_in(tree, path)
        except OSError:
            raise ImageContentError(problem + _ADVICE) from None
    return TreeFacts(_distribution(tree), _python(tree))


def _distribution(tree: Path) -> str:
    try:
        text = _read_start(resolve_in(tree, "/etc/os-release")).decode(errors="replace")
    except OSError:
        return "unknown"
    fields = dict(re.findall(r'^(ID|VERSION_ID)="?([\w.-]*)"?$', text, re.MULTILINE))
    return " ".join(fields[key] for key in ("ID", "VERSION_ID") if fields.get(key)) or "unknown"


def _read_start(path: Path) -> bytes:
    """Read as much as is sensible of what a Dockerfile may have made anything: a pipe, say."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 -- a descriptor
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read(_RELEASE_BYTES)


def _python(tree: Path) -> str:
    try:
        return resolve_in(tree, "/usr/bin/python3").name
    except OSError:
        return ""
