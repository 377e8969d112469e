import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio
from image_helpers import DETAILS

from arrakis_rootfs import (
    Image,
    ImageDamagedError,
    ImageError,
    ImageNameError,
    ImageNotFoundError,
    ImageStore,
)
from arrakis_rootfs.store import ROOTFS


async def publish(store: ImageStore, name: str, content: bytes = b"file system") -> Image:
    async with store.workspace() as workspace:
        (workspace / ROOTFS).write_bytes(content)
        return await store.publish(workspace, name=name, details=DETAILS)


async def test_published_image_is_found_by_name_and_digest(store: ImageStore) -> None:
    """What was published comes back whole, under its name and under its digest."""
    image = await publish(store, "one")
    assert image.path.read_bytes() == b"file system"
    assert (image.name, image.size, image.details) == ("one", 11, DETAILS)
    assert store.resolve("one") == image
    assert store.resolve(image.digest).path == image.path
    assert store.list() == (image,)
    await store.verify(image)


@pytest.mark.parametrize(
    "name",
    ["", "-a", "A", "a_b", "g" * 64, "..", "../a", "a/b", "a\0", "a\n", ".new-a", "ä", "a b"],
)
async def test_hostile_names_are_refused(store: ImageStore, name: str) -> None:
    """Whatever is no plain name is refused before any path is made of it."""
    await publish(store, "one")
    with pytest.raises(ImageNameError) as raised:
        store.resolve(name)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, ImageError)
    with pytest.raises(ImageNameError):
        await publish(store, name)
    with pytest.raises(ImageNameError):
        await store.delete(name)


async def test_image_is_invisible_until_it_is_complete(store: ImageStore, tmp_path: Path) -> None:
    """Before it is published an image cannot be seen; given up, nothing of it stays."""
    async with store.workspace() as workspace:
        (workspace / ROOTFS).write_bytes(b"half")
        assert store.list() == ()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["names"]


async def test_cancelled_publication_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    """Cancelled before it is renamed into place, an image leaves nothing behind."""
    with trio.CancelScope() as scope:
        async with store.workspace() as workspace:
            (workspace / ROOTFS).write_bytes(b"whole")
            scope.cancel()
            await store.publish(workspace, name="one", details=DETAILS)
    assert scope.cancelled_caught
    assert store.list() == ()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["names"]


async def test_name_moves_to_a_new_image(store: ImageStore) -> None:
    """Publishing under a used name replaces it; the former image stays for its users."""
    former = await publish(store, "one", b"former")
    latter = await publish(store, "one", b"latter")
    assert store.resolve("one") == latter
    assert store.resolve(former.digest).path.read_bytes() == b"former"


async def test_same_content_is_one_image(store: ImageStore) -> None:
    """Two names for the same bytes share the files."""
    one, two = await publish(store, "one"), await publish(store, "two")
    assert one.path == two.path
    assert [image.name for image in store.list()] == ["one", "two"]


async def test_deleted_name_spares_images_in_use(store: ImageStore) -> None:
    """Only what has no name and no user is collected."""
    used, unused = await publish(store, "used", b"1"), await publish(store, "unused", b"2")
    named = await publish(store, "named", b"3")
    await store.delete("used")
    await store.delete("unused")
    with pytest.raises(ImageNotFoundError):
        store.resolve("used")
    assert await store.collect({used.digest}) == (unused.digest,)
    assert store.resolve(used.digest).path.exists()
    assert not unused.path.parent.exists()
    assert store.list() == (named,)


async def test_prune_spares_names_and_users(tmp_path: Path) -> None:
    """Of own and shared images those go that have neither a name nor a user that is still there."""
    shared = ImageStore(tmp_path / "shared")
    own = ImageStore(tmp_path / "own", tmp_path / "shared")
    images = {}
    for store in (own, shared):
        for text in ("needed", "of the dead", "unused", "named"):
            images[store, text] = await publish(store, "one", f"{text} {id(store)}".encode())
    for name in ("mine", "theirs", "dead"):
        (tmp_path / name).mkdir()
    needed = [images[own, "needed"].digest, images[shared, "needed"].digest]
    own.keep(tmp_path / "mine", [images[own, "of the dead"].digest])
    own.keep(tmp_path / "mine", needed[:1])
    own.keep(tmp_path / "theirs", needed[1:])
    own.keep(tmp_path / "dead", [images[store, "of the dead"].digest for store in (own, shared)])
    (tmp_path / "dead").rmdir()
    doomed = {images[s, text].digest for s in (own, shared) for text in ("of the dead", "unused")}
    assert {image.digest for image in await own.prune(dry_run=True)} == doomed
    assert await own.prune(older_than=60) == ()
    assert await own.prune(kind="base") == ()
    assert all(image.path.exists() for image in images.values())
    assert {image.digest for image in await own.prune()} == doomed
    assert await own.prune() == ()
    for (_, text), image in images.items():
        assert image.path.exists() == (text in ("needed", "named"))


async def test_prune_when_a_user_cannot_be_read(store: ImageStore, tmp_path: Path) -> None:
    """Nothing is removed while nobody can tell what is needed; the message names the file."""
    unused, _ = await publish(store, "one", b"1"), await publish(store, "one", b"2")
    store.keep(tmp_path, [])
    (user,) = (tmp_path / "images" / "users").iterdir()
    for content in ("{", "{}", '{"directory": "/", "digests": 3}'):
        user.write_text(content)
        with pytest.raises(ImageDamagedError, match=user.name):
            await store.prune()
    assert unused.path.exists()
    store.keep(tmp_path, [])
    (user.parent / ".new-half").write_text("{")
    assert await store.prune() == (store_image(unused),)


def store_image(image: Image) -> Image:
    """Give an image as it is without its name."""
    return attrs.evolve(image, name=None)


async def test_shared_images_are_found_but_never_changed(tmp_path: Path) -> None:
    """A shared directory is searched after the own one and cannot be deleted from."""
    shared = ImageStore(tmp_path / "shared")
    own = ImageStore(tmp_path / "own", tmp_path / "shared")
    theirs = await publish(shared, "base", b"theirs")
    assert own.resolve("base") == theirs
    with pytest.raises(ImageNotFoundError, match="own"):
        await own.delete("base")
    ours = await publish(own, "base", b"ours")
    assert own.list() == (ours,)
    assert shared.resolve("base") == theirs
    assert own.resolve(theirs.digest).path == theirs.path


async def test_sweep_removes_only_what_nobody_is_making(store: ImageStore, tmp_path: Path) -> None:
    """Leftovers of killed processes go; a workspace in use stays."""
    abandoned = tmp_path / "images" / ".new-abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / ROOTFS).write_bytes(b"half")
    (tmp_path / "images" / "names").mkdir()
    (tmp_path / "images" / "names" / ".new-name").write_text("{")
    async with store.workspace() as workspace:
        await store.sweep()
        assert workspace.is_dir()
    assert [path.name for path in (tmp_path / "images").rglob("*")] == ["names"]


async def test_sweep_of_a_new_store_does_nothing(tmp_path: Path) -> None:
    """A store that was never used can be swept."""
    await ImageStore(tmp_path / "nothing").sweep()
    assert not (tmp_path / "nothing").exists()


def damage_size(image: Image) -> None:
    image.path.chmod(0o644)
    image.path.write_bytes(b"cut")


def damage_manifest(image: Image) -> None:
    (image.path.parent / "manifest.json").write_text('{"format_version": 1')


def damage_fields(image: Image) -> None:
    path = image.path.parent / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))


def damage_digest(image: Image) -> None:
    path = image.path.parent / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 64}))


@pytest.mark.parametrize("damage", [damage_size, damage_manifest, damage_fields, damage_digest])
async def test_damaged_image_is_named(store: ImageStore, damage: Callable[[Image], None]) -> None:
    """An image whose files do not fit together is refused, naming the place."""
    image = await publish(store, "one")
    damage(image)
    with pytest.raises(ImageDamagedError, match=str(image.path.parent)):
        store.resolve("one")


async def test_one_changed_bit_is_found(store: ImageStore) -> None:
    """Verification finds a change that leaves the size as it was."""
    image = await publish(store, "one", b"file system")
    image.path.chmod(0o644)
    image.path.write_bytes(b"file sxstem")
    with pytest.raises(ImageDamagedError, match=str(image.path)):
        await store.verify(store.resolve("one"))


def publish_many(root: Path, worker: int) -> None:
    async def run() -> None:
        store = ImageStore(root)
        for number in range(10):
            await publish(store, f"image-{number}", f"{worker}-{number}".encode())
            await store.sweep()

    trio.run(run)


def test_processes_share_a_store(tmp_path: Path) -> None:
    """Publishing and sweeping from several processes at once loses no image."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=publish_many, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    store = ImageStore(tmp_path)
    assert [image.name for image in store.list()] == [f"image-{n}" for n in range(10)]
    assert len([path for path in tmp_path.iterdir() if len(path.name) == 64]) == 30
