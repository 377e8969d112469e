"""What a daemon that was killed has left on its host: the one place that knows.

Every daemon removes it when it starts; `arrakis doctor --fix` does so by hand. Both hold the
lock of the state, so that nobody uses what is found. What was published is no leftover:
templates, snapshots, suspended VMs, and the layers that they stand on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attrs import frozen

from arrakis_rootfs.store import ImageStore
from arrakis_rpc.errors import AlreadyExistsError, UnsupportedError

from ..host.files import entries
from ..host.net.bridge_network import former_network
from ..host.processes import end_orphan, find_orphans
from ..machines.groups import sweep_groups
from ..settings.config import Config
from ..settings.paths import StatePaths
from ..storage.store import Store


@frozen
class Leftover:
    """One thing that nobody owns any more; ``remove`` blocks."""

    kind: str
    name: str
    remove: Callable[[], object]


def owner_of(paths: StatePaths) -> str:
    """Give the name that all processes and interfaces of a state directory's daemon carry."""
    return f"arrakisd {paths.root.resolve()}"


def left_in_the_way(paths: StatePaths) -> Iterator[Leftover]:
    """Find what every daemon has to remove before it does anything. Blocks."""
    owner = owner_of(paths)
    for pid in find_orphans(owner):
        yield Leftover("process", str(pid), partial(end_orphan, pid, owner))
    for directory in (*entries(paths.vms), *entries(paths.scratch)):
        yield Leftover("directory", str(directory), partial(_remove, directory))


def leftovers(config: Config, paths: StatePaths) -> Iterator[Leftover]:
    """Find everything, in the order in which it is to be removed. Blocks.

    What is found after the first is seen to at a start by the part that takes its place.
    """
    yield from left_in_the_way(paths)
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

    Raises `AlreadyExistsError` while a daemon runs on that state.
    """
    paths = StatePaths(Path(config.state_dir))
    if not paths.root.is_dir():
        return []
    with locked(paths):
        found = list(leftovers(config, paths))
        for one in found if remove else []:
            one.remove()
    return found


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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_listened_at(path: Path) -> bool:
    # Not by connecting: systemd would start a daemon for it.
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.split()[-1] == str(path) for line in lines[1:])
