"""What a daemon that was killed has left on its host: the one place that knows.

Every daemon removes it when it starts; `arrakis doctor --fix` does so by hand. Both hold the
lock of the state, so that nobody uses what is found. What was published is no leftover:
templates, snapshots, suspended VMs, and the layers that they stand on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
from attrs import evolve, frozen

from arrakis_rootfs.store import ImageStore
from arrakis_rpc.errors import AlreadyExistsError, UnsupportedError

from ..host.files import entries, remove_tree
from ..host.net.bridge_network import former_network
from ..host.processes import end_orphan, find_orphans
from ..machines.groups import sweep_groups
from ..settings.config import Config
from ..settings.paths import StatePaths
from ..storage.store import Store

log = structlog.get_logger()


@frozen
class Leftover:
    """One thing that nobody owns any more; ``remove`` blocks, and may raise `OSError`."""

    kind: str
    name: str
    remove: Callable[[], object]


def owner_of(paths: StatePaths) -> str:
    """Give the name that all processes and interfaces of a state directory's daemon carry."""
    return f"arrakisd {paths.root.resolve()}"


def left_in_the_way(paths: StatePaths) -> Iterator[Leftover]:
    """Find what every daemon has to remove before it does anything. Blocks.

    What cannot be removed is logged: it is no reason not to start.
    """
    for one in _in_the_way(paths):
        yield evolve(one, remove=partial(_try_to_remove, one))


def _in_the_way(paths: StatePaths) -> Iterator[Leftover]:
    owner = owner_of(paths)
    for pid in find_orphans(owner):
        yield Leftover("process", str(pid), partial(end_orphan, pid, owner))
    for directory in (*entries(paths.vms), *entries(paths.scratch)):
        yield Leftover("directory", str(directory), partial(_remove, directory))


def leftovers(config: Config, paths: StatePaths) -> Iterator[Leftover]:
    """Find everything, in the order in which it is to be removed. Blocks.

    What is found after the first is seen to at a start by the part that takes its place.
    """
    yield from _in_the_way(paths)
    if paths.groups.exists():
        yield Leftover("control groups", str(paths.groups), partial(sweep_groups, paths))
    if former := former_network(config.network, paths.network, owner_of(paths)):
        yield Leftover("network", *former)
    images = ImageStore(paths.images)
    for image in images.abandoned():
        yield Leftover("half-made image", str(image), images.remove_abandoned)
    for layer in Store(paths, None).find_unneeded():
        yield Leftover("layer", str(layer), partial(_remove, layer))
    path = Path(config.socket)
    if path.is_socket() and not _is_listened_at(path):
        yield Leftover("socket", str(path), partial(path.unlink, missing_ok=True))


def sweep(config: Config, *, remove: bool) -> list[Leftover]:
    """Find all leftovers of a daemon, and remove them if so asked; give them. Blocks.

    Raises `AlreadyExistsError` while a daemon runs on that state, and `UnsupportedError` for what
    cannot be removed, when all else is.
    """
    paths = StatePaths(Path(config.state_dir))
    if not paths.root.is_dir():
        return []
    with locked(paths):
        found = list(leftovers(config, paths))
        left = [reason for one in found if remove and (reason := _why_not_removed(one))]
    if left:
        raise UnsupportedError("; ".join(left), hint="remove it by hand")
    return found


def _why_not_removed(one: Leftover) -> str | None:
    """Remove a leftover; give why it is still there, if it is."""
    try:
        one.remove()
    except OSError as error:
        return f"{one.kind} {one.name} cannot be removed: {error.strerror or error}"
    return None


def _try_to_remove(one: Leftover) -> None:
    if reason := _why_not_removed(one):
        log.warning("something stays of what a daemon has left", reason=reason)


@contextmanager
def locked(paths: StatePaths) -> Iterator[None]:
    """Keep a state directory to oneself for the length of a block."""
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnsupportedError(
            f"cannot keep state in {paths.root}: {error.strerror}",
            hint="choose another place with --state, or run as root",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AlreadyExistsError(
            f"another arrakisd uses {paths.root}",
            hint="stop it, or give this one another state directory with --state",
        ) from None
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    if not remove_tree(path):
        raise OSError("something in it stays")


def _is_listened_at(path: Path) -> bool:
    # Not by connecting: systemd would start a daemon for it.
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.split()[-1] == str(path) for line in lines[1:])
