"""Where images are kept.

    <root>/<digest>/{rootfs.erofs,manifest.json}     an image, named by the digest of its bytes
    <root>/names/<name>                              JSON: the digest that a name means
    <root>/users/<id>                                JSON: who needs which images without names
    <root>/.new-*                                    one that somebody is making

The first root is this store's own. Further ones are shared and only read: what `scripts/setup`
builds once for the machine, each daemon finds there. An image is complete or absent: everything
is written and synced in a temporary directory and renamed into place; the name comes last.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from arrakis_rootfs.errors import ImageDamagedError, ImageNotFoundError
from arrakis_rootfs.files import hash_file, lock, sync, try_lock, write_json
from arrakis_rootfs.image import (
    FORMAT_VERSION,
    Image,
    ImageDetails,
    Kind,
    Manifest,
    check_name,
    is_digest,
    is_name,
    structure,
    unstructure,
)

ROOTFS = "rootfs.erofs"

_MANIFEST = "manifest.json"
_NAMES = "names"
_USERS = "users"
_TEMPORARY = ".new-"
_CLEANUP_SECONDS = 30.0


@frozen
class _User:
    """The content of a file under `users`."""

    directory: str
    digests: list[str]


@frozen
class _Name:
    """The content of a file under `names`."""

    digest: str


class ImageStore:
    """Images in one directory of one's own and any number of shared ones.

    Reading is synchronous: a few small local files. Whatever takes long is async and runs in a
    thread. Two processes may use the same directories.
    """

    def __init__(self, *roots: Path) -> None:
        if not roots:
            raise ValueError("an image store needs at least one directory")
        self._root = roots[0].absolute()
        self._roots = tuple(dict.fromkeys(root.absolute() for root in roots))

    def list(self) -> tuple[Image, ...]:
        """Return all named images, sorted by name; a name in an earlier root hides later ones.

        Raises ImageDamagedError, as `resolve` does.
        """
        images = []
        for name in sorted({path.name for root in self._roots for path in self._names(root)}):
            # Somebody may delete a name between the two looks at the directory.
            with suppress(ImageNotFoundError):
                images.append(self.resolve(name))
        return tuple(images)

    def resolve(self, name_or_digest: str) -> Image:
        """Return the image with this name or digest.

        Raises ImageNameError, ImageNotFoundError, or ImageDamagedError when its files are not
        what was published (the size is checked here, the content by `verify`).
        """
        if is_digest(name_or_digest):
            return self._load(name_or_digest, name=None)
        name = check_name(name_or_digest)
        for root in self._roots:
            with suppress(FileNotFoundError):
                return self._load(_read_name(root / _NAMES / name), name=name)
        raise ImageNotFoundError(f"there is no image {name!r}")

    def contains(self, name_or_digest: str) -> bool:
        """Tell whether there is an image with this name or digest; raises ImageNameError."""
        try:
            self.resolve(name_or_digest)
        except ImageNotFoundError:
            return False
        return True

    async def verify(self, image: Image) -> None:
        """Raise ImageDamagedError when a byte of the image is not what was published."""
        if await trio.to_thread.run_sync(hash_file, image.path) != image.digest:
            raise ImageDamagedError(f"{image.path} is damaged: its content changed")

    @asynccontextmanager
    async def workspace(self) -> AsyncIterator[Path]:
        """Provide a temporary directory to make an image in; `publish` takes it away.

        It is removed at the end in any case, and by the next `sweep` if this process is killed.
        """
        with ExitStack() as stack:
            directory = await trio.to_thread.run_sync(self._new_directory, stack)
            try:
                yield directory
            finally:
                with trio.move_on_after(_CLEANUP_SECONDS, shield=True):
                    await trio.to_thread.run_sync(
                        partial(shutil.rmtree, directory, ignore_errors=True)
                    )

    async def publish(self, directory: Path, *, name: str, details: ImageDetails) -> Image:
        """Make an image of the `rootfs.erofs` in a workspace, under a name that may exist.

        An image of the same content is the same image: the older files and details stay.
        Either all of it happens or, when cancelled in time, nothing.
        """
        check_name(name)
        digest = await trio.to_thread.run_sync(hash_file, directory / ROOTFS)
        await trio.to_thread.run_sync(sync, directory / ROOTFS)
        await trio.lowlevel.checkpoint()
        # From here on it is one short piece of work that no cancellation can cut in two.
        await trio.to_thread.run_sync(self._publish, directory, digest, name, details)
        return self.resolve(name)

    async def delete(self, name: str) -> None:
        """Forget a name. Its files stay for those who use them by digest, until `collect`.

        Raises ImageNotFoundError, also when only a shared directory knows the name.
        """
        path = self._root / _NAMES / check_name(name)
        try:
            await trio.to_thread.run_sync(path.unlink)
        except FileNotFoundError:
            raise ImageNotFoundError(f"there is no image {name!r} in {self._root}") from None

    async def collect(self, in_use: Collection[str]) -> tuple[str, ...]:
        """Remove this store's own images that have no name and whose digest is not in use.

        Returns the digests removed.
        """
        return await trio.to_thread.run_sync(self._collect, frozenset(in_use))

    def keep(self, user: Path, digests: Collection[str]) -> None:
        """Say which images a user needs, in all directories that may be shared; blocks.

        The user is named by a directory of its own, for as long as which exists `prune` spares
        them. It replaces what the same user has said before. A directory that this process may
        not write into, nobody prunes but who may.
        """
        for root in self._roots:
            with suppress(PermissionError):
                (root / _USERS).mkdir(parents=True, exist_ok=True)
                name = hashlib.sha256(os.fsencode(user.absolute())).hexdigest()[:20]
                content = _User(os.fspath(user.absolute()), sorted(digests))
                temporary = root / _USERS / f"{_TEMPORARY}{name}"
                write_json(temporary, unstructure(content))
                temporary.rename(root / _USERS / name)

    async def prune(
        self, *, dry_run: bool = False, kind: Kind | None = None, older_than: float = 0.0
    ) -> tuple[Image, ...]:
        """Remove images that have no name and no user, from all directories that can be written.

        With `kind` only those of a kind, with `older_than` only those made so many seconds ago.
        Returns what was removed, or with `dry_run` what would be.
        """
        return await trio.to_thread.run_sync(self._prune, dry_run, kind, older_than)

    async def sweep(self) -> None:
        """Remove what killed processes left half made, sparing what living ones are making."""
        await trio.to_thread.run_sync(self.remove_abandoned)

    def abandoned(self) -> tuple[Path, ...]:
        """Return what killed processes left half made; blocks for a moment."""
        return tuple(path for path in self._root.glob(f"{_TEMPORARY}*") if _is_abandoned(path))

    def remove_abandoned(self) -> None:
        """Remove what killed processes left half made; blocks, and keeps makers waiting."""
        if not self._root.is_dir():
            return
        with self._exclusive() as names:
            for leftover in names.glob(f"{_TEMPORARY}*"):
                leftover.unlink()
            for leftover in self.abandoned():
                shutil.rmtree(leftover)

    def _names(self, root: Path) -> tuple[Path, ...]:
        try:
            entries = sorted((root / _NAMES).iterdir())
        except FileNotFoundError:
            return ()
        return tuple(path for path in entries if is_name(path.name))

    def _load(self, digest: str, *, name: str | None) -> Image:
        for root in self._roots:
            directory = root / digest
            if not is_digest(digest) or not directory.is_dir():
                continue
            try:
                data = json.loads((directory / _MANIFEST).read_bytes())
                size = (directory / ROOTFS).stat().st_size
            except (OSError, ValueError) as error:
                raise ImageDamagedError(f"{directory} is damaged: {error}") from error
            manifest = structure(data, Manifest, directory / _MANIFEST)
            if (manifest.format_version, manifest.digest) != (FORMAT_VERSION, digest):
                raise ImageDamagedError(f"{directory / _MANIFEST} describes another image")
            if manifest.size != size:
                raise ImageDamagedError(f"{directory / ROOTFS} is damaged: its size changed")
            return Image(
                name=name,
                digest=digest,
                path=directory / ROOTFS,
                size=size,
                created=manifest.created,
                details=manifest.details,
            )
        what = f"the name {name!r} means the image {digest}, which" if name else f"image {digest}"
        raise ImageNotFoundError(f"{what} is not in {', '.join(map(str, self._roots))}")

    def _new_directory(self, lifetime: ExitStack) -> Path:
        """Make a workspace and lock it, which tells every sweep that its owner is alive."""
        self._root.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._root))
            lifetime.enter_context(try_lock(directory))
        return directory

    def _publish(self, directory: Path, digest: str, name: str, details: ImageDetails) -> None:
        rootfs = directory / ROOTFS
        # Nobody has a reason to write into an image ever again.
        rootfs.chmod(0o444)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            digest=digest,
            size=rootfs.stat().st_size,
            created=time.time(),
            details=details,
        )
        write_json(directory / _MANIFEST, unstructure(manifest))
        sync(directory)
        directory.chmod(0o755)
        with self._exclusive() as names:
            if not (self._root / digest).exists():
                directory.rename(self._root / digest)
                sync(self._root)
            temporary = names / f"{_TEMPORARY}{name}"
            write_json(temporary, unstructure(_Name(digest)))
            temporary.rename(names / name)
            sync(names)

    def _prune(self, dry_run: bool, kind: Kind | None, older_than: float) -> tuple[Image, ...]:
        pruned = []
        for root in self._roots:
            if not root.is_dir() or not os.access(root, os.W_OK):
                continue
            with self._exclusive(root):
                for digest in self._superfluous(root, _needed(root / _USERS)):
                    with suppress(ImageDamagedError):  # it cannot be told what that was
                        image = ImageStore(root)._load(digest, name=None)
                        wanted = kind is None or image.details.kind == kind
                        if wanted and image.created <= time.time() - older_than:
                            pruned.append(image)
                            if not dry_run:
                                _remove(root / digest)
        return tuple(pruned)

    def _superfluous(self, root: Path, needed: Collection[str]) -> tuple[str, ...]:
        """Digests of the images in a directory that have no name, and are not needed."""
        named = {_read_name(path) for root in self._roots for path in self._names(root)}
        names = sorted(path.name for path in root.iterdir() if is_digest(path.name))
        return tuple(digest for digest in names if digest not in named and digest not in needed)

    def _collect(self, in_use: frozenset[str]) -> tuple[str, ...]:
        with self._exclusive():
            removed = self._superfluous(self._root, in_use)
            for digest in removed:
                _remove(self._root / digest)
        return removed

    @contextmanager
    def _exclusive(self, root: Path | None = None) -> Iterator[Path]:
        """Hold a directory's lock, for the short changes that must not meet another process's."""
        names = (root or self._root) / _NAMES
        names.mkdir(exist_ok=True)
        with lock(names):
            yield names


def _is_abandoned(directory: Path) -> bool:
    with try_lock(directory) as is_nobodys:
        return is_nobodys


def _remove(directory: Path) -> None:
    # Renamed first: an image that is half removed must not be found.
    shutil.rmtree(directory.rename(directory.with_name(f"{_TEMPORARY}{directory.name}")))


def _needed(users: Path) -> set[str]:
    """Return the digests that living users need; those that have gone are forgotten."""
    needed: set[str] = set()
    for path in users.iterdir() if users.is_dir() else ():
        if path.name.startswith(_TEMPORARY):
            continue
        try:
            user = structure(json.loads(path.read_bytes()), _User, path)
        except ValueError as error:
            raise ImageDamagedError(f"{path} is damaged: {error}") from error
        if Path(user.directory).is_dir():
            needed.update(user.digests)
        else:
            path.unlink()
    return needed


def _read_name(path: Path) -> str:
    """Return the digest that a file under `names` holds."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ImageDamagedError(f"{path} is damaged: {error}") from error
    return structure(data, _Name, path).digest
