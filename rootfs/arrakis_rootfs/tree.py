"""A built tree: what it says about itself, and packing it into the file system guests share."""

import re
import shutil
from pathlib import Path

import trio
from attrs import frozen

from arrakis_rootfs.commands import run_command
from arrakis_rootfs.errors import CommandError, ImageContentError, ImageSpaceError
from arrakis_rootfs.files import resolve_in
from arrakis_rootfs.payload import AGENT

AGENT_PATH = f"/usr/lib/arrakis/{AGENT}"

# Times are kept: Python takes a compiled module only for the source file of exactly the time
# noted in it, so one fixed time for all files would have every guest compile every import anew.
# Clusters of 16 KiB are a tenth smaller than the usual 4 KiB ones; a higher level packs 1 % better
# in half as much time again.
PACK_OPTIONS = ("-zlz4hc,3", "-C16384", "-U00000000-0000-0000-0000-000000000000")

_FULL_BYTES = 2**20

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
        text = resolve_in(tree, "/etc/os-release").read_text(errors="replace")
    except OSError:
        return "unknown"
    fields = dict(re.findall(r'^(ID|VERSION_ID)="?([\w.-]*)"?$', text, re.MULTILINE))
    return " ".join(fields[key] for key in ("ID", "VERSION_ID") if fields.get(key)) or "unknown"


def _python(tree: Path) -> str:
    try:
        return resolve_in(tree, "/usr/bin/python3").name
    except OSError:
        return ""
