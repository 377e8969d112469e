"""What is stored: published whole or not at all, found again, deleted without harm to others."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deep_tree import deep_tree
from stored_things import Shelf, flipped_bit, is_whole, qcow2_header

from arrakis_rpc.errors import IntegrityError, NotFoundError
from arrakisd.host.disks import FROZEN
from arrakisd.storage.manifest import DEVICE_STATE, EMPTY_LAYER, MANIFEST, PAGES, Manifest

FAR = 10_000


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """An empty store."""
    return Shelf(tmp_path / "state")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do work in a child, which is killed before its n-th step; whether it was.

    A step is anything that Python reports to audit hooks: opening, making, renaming,
    removing, changing the mode of files and directories.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event == "open" or event.startswith(("os.", "shutil.", "tempfile.")):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def every_step(work: Callable[[], object], check: Callable[[], bool]) -> list[bool]:
    """Kill work at each of its steps, and check after each; give what the checks gave."""
    results = []
    for step in range(1, FAR):
        killed = killed_at(step, work)
        results.append(check())
        if not killed:
            assert step > 20
            return results
    raise AssertionError("the work has no end")


def test_found_again(shelf: Shelf) -> None:
    """What was published is found by the next daemon, the same in every detail and whole."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    second = shelf.snapshot("second", first)
    again = shelf.reopened()
    assert again.store.templates == {"template": template}
    assert again.store.snapshots == {"first": first, "second": second}
    assert again.store.damaged == {}
    assert all(is_whole(again, manifest) for manifest in (template, first, second))
    assert len(again.layers()) == 3


def test_killed_while_publishing(shelf: Shelf) -> None:
    """A daemon killed at any step of publishing leaves a whole snapshot or nothing of it."""
    template = shelf.template()
    shelf.snapshot("old", template)

    def check() -> bool:
        again = shelf.reopened()
        snapshots, layers = again.store.snapshots, again.layers()
        assert again.store.damaged == {}
        assert list(again.paths.scratch.iterdir()) == []
        assert all(is_whole(again, manifest) for manifest in snapshots.values())
        assert len(layers) == 1 + len(snapshots)
        if "new" not in snapshots:
            assert snapshots.keys() == {"old"}
            assert not again.paths.snapshot("new").exists()
            return False
        again.store.delete(snapshots["new"])
        return True

    results = every_step(lambda: shelf.snapshot("new", template), check)
    assert results == sorted(results)  # once it is there it stays
    assert (results[0], results[-1]) == (False, True)


def test_killed_while_deleting(shelf: Shelf, tmp_path: Path) -> None:
    """A daemon killed at any step of a deletion loses nothing of what stands on it."""
    template = shelf.template()
    below = shelf.snapshot("below", template)
    shelf.snapshot("above", shelf.snapshot("middle", below))

    def check() -> bool:
        again = Shelf(copy)
        snapshots = again.store.snapshots
        assert again.store.damaged == {}
        assert snapshots.keys() | {"middle"} == {"below", "middle", "above"}
        assert all(is_whole(again, manifest) for manifest in snapshots.values())
        assert snapshots["above"].parent in snapshots
        assert len(again.layers()) == 4
        shutil.rmtree(copy)
        shutil.copytree(shelf.paths.root, copy)
        return "middle" not in snapshots

    def work() -> None:
        again = Shelf(copy)
        again.store.delete(again.store.snapshot("middle"))

    copy = tmp_path / "copy"
    shutil.copytree(shelf.paths.root, copy)
    results = every_step(work, check)
    assert results == sorted(results)
    assert (results[0], results[-1]) == (False, True)


def chain(shelf: Shelf, length: int) -> list[Manifest]:
    """Publish a template, and snapshots each on top of the one before."""
    manifests = [shelf.template()]
    for number in range(1, length + 1):
        manifests.append(shelf.snapshot(f"s{number}", manifests[-1]))
    return manifests


def test_merged(shelf: Shelf) -> None:
    """A snapshot whose layers were merged stands on few, those next on it too, others as before."""
    manifests = chain(shelf, 4)
    merged = shelf.merge(manifests[4], 3)
    above = shelf.snapshot("above", manifests[4])  # of a VM that knows the old manifest
    for one in (shelf, shelf.reopened()):
        stored = one.store.snapshots
        assert [layer.id for layer in stored["s4"].layers[2:]] == [merged]
        assert stored["above"].layers == [*stored["s4"].layers, above.layers[-1]]
        for manifest in manifests[1:4]:
            assert stored[manifest.id] == manifest
        assert all(is_whole(one, manifest) for manifest in stored.values())
    header = (shelf.paths.layer(above.layers[-1].id) / FROZEN).read_bytes()
    assert header.endswith(f"../../layers/{merged}/{FROZEN}".encode())
    for name in ("s2", "s3"):
        shelf.store.delete(shelf.store.snapshot(name))
    assert shelf.layers() == {layer.id for layer in (*above.layers, *manifests[1].layers)}
    for name in ("s4", "above", "s1"):
        shelf.store.delete(shelf.store.snapshot(name))
    assert shelf.layers() == {manifests[0].layers[0].id}


def test_merged_under_a_vm(shelf: Shelf) -> None:
    """A VM whose snapshot is gone uses the merged layer all the same, which goes with the VM."""
    manifests = chain(shelf, 3)
    held: list[str] = []
    with shelf.store.hold(held):
        source = shelf.store.current(manifests[3], held)
        shelf.store.delete(manifests[3])
        merged = shelf.merge(manifests[3], 3)
        assert merged in shelf.layers()
        assert [layer.id for layer in shelf.store.current(source, held).layers[1:]] == [merged]
        assert held[-1] == merged
    shelf.store.collect_layers()
    assert merged not in shelf.layers()
    assert is_whole(shelf, manifests[2])
    assert shelf.store.current(manifests[3], []) == manifests[3]


class _Watched(dict[str, Any]):
    """Entries that are made while a lock is held."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self._lock = lock

    def __setitem__(self, key: str, value: Any) -> None:
        assert self._lock.locked()
        super().__setitem__(key, value)


def test_merged_while_others_look(shelf: Shelf) -> None:
    """What takes the place of layers is noted while no thread looks through the notes."""
    manifests = chain(shelf, 3)
    shelf.store._merged = _Watched(shelf.store._referring)
    merged = shelf.merge(manifests[3], 3)
    assert [layer.id for layer in shelf.store.snapshot("s3").layers[1:]] == [merged]


def test_damaged_ancestor(shelf: Shelf) -> None:
    """The ancestors of a snapshot end before one that is damaged."""
    manifests = chain(shelf, 4)
    (shelf.store.directory(manifests[2]) / MANIFEST).write_text("{")
    again = shelf.reopened()
    assert [one.id for one in again.store.ancestors(manifests[4])] == ["s4", "s3"]


def test_killed_while_merging(shelf: Shelf, tmp_path: Path) -> None:
    """A daemon killed at any step of merging loses nothing, and leaves no layer without use."""
    manifests = chain(shelf, 3)
    sibling = shelf.snapshot("sibling", manifests[2])
    copy = tmp_path / "copy"
    shutil.copytree(shelf.paths.root, copy)

    def check() -> bool:
        again = Shelf(copy)
        snapshots = again.store.snapshots
        assert again.store.damaged == {}
        assert snapshots.keys() == {"s1", "s2", "s3", "sibling"}
        assert all(is_whole(again, manifest) for manifest in snapshots.values())
        assert snapshots["sibling"] == sibling
        is_merged = len(snapshots["s3"].layers) == 2
        assert len(again.layers()) == 5
        assert (manifests[3].layers[-1].id in again.layers()) is not is_merged
        shutil.rmtree(copy)
        shutil.copytree(shelf.paths.root, copy)
        return is_merged

    results = every_step(lambda: Shelf(copy).merge(manifests[3], 3), check)
    assert results == sorted(results)
    assert (results[0], results[-1]) == (False, True)


def test_after_a_failed_one(shelf: Shelf) -> None:
    """The layer of a snapshot that failed is kept without its pages, of which nobody knows."""
    template = shelf.template()
    manifests = [template, shelf.snapshot("first", template, failed_before=True)]
    assert [sorted(layer.files) for layer in manifests[1].layers[1:]] == [
        [FROZEN],
        [FROZEN, EMPTY_LAYER, PAGES],
    ]
    assert is_whole(shelf, manifests[1])


def test_a_moment(shelf: Shelf, tmp_path: Path) -> None:
    """A moment can be woken during its block, is in no list, and no daemon after finds it."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    with shelf.moment(first) as moment:
        assert shelf.store.has(moment)
        shelf.store.verify(moment)
        assert (shelf.store.directory(moment) / DEVICE_STATE).exists()
        assert len(shelf.store.page_files(moment.layers)) == 2
        assert shelf.store.present_parent(moment) == "first"
        assert shelf.store.snapshots == {"first": first}
        shutil.copytree(shelf.paths.root, tmp_path / "copy")
    after_a_crash = Shelf(tmp_path / "copy")
    assert after_a_crash.store.snapshots == {"first": first}
    assert after_a_crash.layers() == {layer.id for layer in first.layers}
    assert not list(after_a_crash.paths.scratch.iterdir())
    assert not shelf.store.has(moment)
    shelf.store.collect_layers()
    assert shelf.layers() == {layer.id for layer in first.layers}


def test_snapshots_of_what_came_of_a_moment(shelf: Shelf) -> None:
    """The layers of a moment are sealed by whatever snapshot first stands on them."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    with shelf.moment(first) as moment, shelf.store.hold([moment.layers[-1].id]):
        assert not moment.layers[-1].is_sealed
        siblings = [shelf.snapshot(name, moment) for name in ("one", "other")]
        for sibling in siblings:
            assert sibling.parent == "first"
            assert [layer.id for layer in sibling.layers[:-1]] == [one.id for one in moment.layers]
            assert all(layer.is_sealed for layer in sibling.layers)
        assert siblings[0].layers[:-1] == siblings[1].layers[:-1]
    again = shelf.reopened()
    assert all(is_whole(again, sibling) for sibling in siblings)
    with flipped_bit(again.paths.layer(moment.layers[-1].id) / PAGES, 5):
        assert not is_whole(again.reopened(), siblings[0])


def test_a_merged_moment(shelf: Shelf) -> None:
    """What lies on top of merged layers stands on the one in their place, sealed or not."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    with shelf.moment(first) as moment:
        merged = shelf.merge(moment, 2)
        last = shelf.snapshot("last", moment)
    assert [layer.id for layer in last.layers[:-1]] == [template.layers[0].id, merged]
    assert is_whole(shelf.reopened(), last)


def test_foreign_header(shelf: Shelf) -> None:
    """A layer whose header does not name a layer is not published."""
    template = shelf.template()
    good = qcow2_header("0" * 32)
    for header in (b"", good[:20], b"QFI\xfa" + good[4:], good.replace(b"../", b"/x/"), good[:-1]):
        with pytest.raises(IntegrityError, match=FROZEN):
            shelf.snapshot("forged", template, header=header)
        assert shelf.store.snapshots == {}


DAMAGE = {
    "empty": b"",
    "cut": b'{"id": "first", ',
    "binary": b"\xff\xfe\x00",
    "other type": b"[]",
    "null": b"null",
    "number": b"7",
    "nothing in it": b"{}",
    "deep": b"[" * 100_000,
    "other format": b'{"format_version": 999}',
    "strange format": b'{"format_version": [1]}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_manifest(shelf: Shelf, content: bytes) -> None:
    """A damaged manifest is reported by its path; all else is there, and no layer is lost."""
    template = shelf.template()
    first, second = shelf.snapshot("first", template), shelf.snapshot("second", template)
    directory = shelf.store.directory(first)
    intact = (directory / MANIFEST).read_bytes()
    (directory / MANIFEST).write_bytes(content)
    again = shelf.reopened()
    assert again.store.damaged.keys() == {directory}
    assert all(again.store.damaged.values())
    assert again.store.snapshots == {"second": second}
    again.store.delete(second)
    again.store.collect_layers()
    (directory / MANIFEST).write_bytes(intact)
    mended = shelf.reopened()
    assert mended.store.snapshots == {"first": first}
    assert is_whole(mended, first)


def test_damaged_one_deleted(shelf: Shelf) -> None:
    """What is damaged can be deleted; what stands on it stays whole, and its own layers go."""
    template = shelf.template()
    below = shelf.snapshot("below", template)
    above = shelf.snapshot("above", below)
    side = shelf.snapshot("side", template)
    for one in (below, side):
        (shelf.store.directory(one) / MANIFEST).write_text("{")
    (shelf.paths.snapshots / "a-file").write_text("x")
    again = shelf.reopened()
    for directory in list(again.store.damaged):
        assert len(again.layers()) == 4
        again.store.delete_damaged(directory)
        again.store.delete_damaged(directory)
    assert again.store.damaged == {}
    assert again.layers() == {layer.id for layer in above.layers}
    kept = again.store.snapshot("above")
    assert kept.parent is None
    assert is_whole(again, kept)
    assert again.reopened().store.snapshots == {"above": kept}
    assert sorted(path.name for path in shelf.paths.snapshots.iterdir()) == ["above"]
    assert list(shelf.paths.scratch.iterdir()) == []


def test_use_of_damaged(shelf: Shelf) -> None:
    """What is damaged is refused by its path when it is asked for, and with what to do."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    for manifest in (template, first):
        path = shelf.store.directory(manifest) / MANIFEST
        with flipped_bit(path, 100):
            store = shelf.reopened().store
            find = store.template if manifest is template else store.snapshot
            with pytest.raises(IntegrityError, match=str(path)) as caught:
                find(manifest.id)
            assert str(path.parent) in (caught.value.hint or "")


def test_manifest_of_another(shelf: Shelf) -> None:
    """A manifest that was copied under another name, or is missing, counts as damaged."""
    template = shelf.template()
    first = shelf.store.directory(shelf.snapshot("first", template))
    second = shelf.store.directory(shelf.snapshot("second", template))
    (second / MANIFEST).write_bytes((first / MANIFEST).read_bytes())
    (first / MANIFEST).unlink()
    (shelf.paths.snapshots / "file").write_text("no directory")
    again = shelf.reopened()
    assert again.store.damaged.keys() == {first, second, shelf.paths.snapshots / "file"}
    assert again.store.snapshots == {}


def test_every_bit_of_manifest(shelf: Shelf) -> None:
    """One flipped bit anywhere in a manifest is noticed, and its path is named."""
    first = shelf.snapshot("first", shelf.template())
    path = shelf.store.directory(first) / MANIFEST
    for position in range(0, path.stat().st_size, 3):
        with flipped_bit(path, position, position % 8):
            again = shelf.reopened()
            assert again.store.damaged.keys() == {path.parent}
            assert str(path.parent) in again.store.damaged[path.parent]


def test_every_file(shelf: Shelf) -> None:
    """One flipped bit, a missing byte, a missing file: each is refused by the file's name."""
    first = shelf.snapshot("first", shelf.template())
    second = shelf.snapshot("second", first)
    paths = [path for path in shelf.files_of(second) if path.name != MANIFEST]
    assert len(paths) == 11
    for path in paths:
        content, again = path.read_bytes(), shelf.reopened()
        path.chmod(0o600)
        for damage in (
            bytes([content[0] ^ 0x80]) + content[1:],
            content[:-1] + bytes([content[-1] ^ 1]),
            content[:-1],
            content + b"\0",
            None,
        ):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(IntegrityError, match=str(path)):
                again.store.verify(second)
            path.write_bytes(content)
        again.store.verify(second)


def test_exchanged_template(shelf: Shelf) -> None:
    """A snapshot is refused on a template that was booted anew: its memory is another one."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    shelf.store.delete(template)
    shelf.template()
    with pytest.raises(IntegrityError):
        shelf.store.verify(first)


def test_missing_template(shelf: Shelf) -> None:
    """A snapshot whose template is gone is refused, saying so."""
    template = shelf.template()
    first = shelf.snapshot("first", template)
    shelf.store.delete(template)
    with pytest.raises(NotFoundError, match="template"):
        shelf.store.verify(first)


def test_delete_in_the_middle(shelf: Shelf) -> None:
    """The children of a deleted snapshot stand on its parent, and keep all they need."""
    template = shelf.template()
    below = shelf.snapshot("below", template)
    middle = shelf.snapshot("middle", below)
    children = [shelf.snapshot(name, middle) for name in ("left", "right")]
    shelf.store.delete(middle)
    for store in (shelf, shelf.reopened()):
        assert store.store.snapshots.keys() == {"below", "left", "right"}
        assert {one.id for one in store.store.children("below")} == {"left", "right"}
        for child in children:
            kept = store.store.snapshot(child.id)
            assert kept.layers == child.layers
            assert is_whole(store, kept)
    assert list(shelf.paths.scratch.iterdir()) == []


def test_delete_from_both_ends(shelf: Shelf) -> None:
    """A layer goes with the last that stands on it, not before."""
    template = shelf.template()
    chain = [template]
    for number in range(4):
        chain.append(shelf.snapshot(f"s{number}", chain[-1]))
    assert len(shelf.layers()) == 5
    shelf.store.delete(chain[1])
    assert len(shelf.layers()) == 5
    shelf.store.delete(chain[4])
    assert len(shelf.layers()) == 4
    assert is_whole(shelf, shelf.store.snapshot("s2"))
    shelf.store.delete(shelf.store.snapshot("s2"))
    shelf.store.delete(shelf.store.snapshot("s1"))
    assert shelf.layers() == {template.layers[0].id}


def test_parent_of_a_running_vm(shelf: Shelf) -> None:
    """A VM whose snapshot was deleted stands on the nearest that still exists."""
    template = shelf.template()
    below = shelf.snapshot("below", template)
    middle = shelf.snapshot("middle", below)
    above = shelf.snapshot("above", middle)
    for doomed, nearest in ((above, "middle"), (middle, "below"), (below, None)):
        shelf.store.delete(shelf.store.snapshot(doomed.id))
        assert shelf.store.present_parent(above) == nearest
    assert shelf.store.present_parent(template) is None


def test_held_layers(shelf: Shelf) -> None:
    """A layer that a VM holds is never collected, be it added later; afterwards it is."""
    template = shelf.template()
    held = [layer.id for layer in template.layers]
    with shelf.store.hold(held):
        for number in range(3):
            held.append(f"late{number}")
            active = shelf.paths.root / "active"
            active.write_text("disk")
            shelf.store.freeze_layer(held[-1], active)
            shelf.store.collect_layers()
            assert shelf.layers() == set(held)
        with shelf.store.hold([]):
            pass
        shelf.store.delete(template)
        assert shelf.layers() == set(held)
    shelf.store.collect_layers()
    assert shelf.layers() == set()


def test_taken_id(shelf: Shelf) -> None:
    """An id whose directory is there, damaged, is not overwritten."""
    template = shelf.template()
    path = shelf.store.directory(shelf.snapshot("first", template)) / MANIFEST
    path.write_bytes(b"damaged")
    again = shelf.reopened()
    with pytest.raises(IntegrityError, match=str(path.parent)):
        again.snapshot("first", template)
    assert path.read_bytes() == b"damaged"


async def test_scratch(shelf: Shelf) -> None:
    """A scratch directory is gone after its block, with all that is in it."""
    async with shelf.store.scratch() as directory:
        (directory / "deep" / "er").mkdir(parents=True)
    assert not directory.exists()
    assert list(shelf.paths.scratch.iterdir()) == []


async def test_what_a_vmm_made_of_scratch(shelf: Shelf) -> None:
    """A scratch directory that was filled by a VMM is gone as well, after its block or a crash."""
    with ExitStack() as made:
        async with shelf.store.scratch() as directory:
            made.enter_context(deep_tree(directory / "deep"))
        assert list(shelf.paths.scratch.iterdir()) == []
    with deep_tree(shelf.paths.scratch / "left"):
        shelf.reopened()
        assert list(shelf.paths.scratch.iterdir()) == []


def test_unknown_ids(shelf: Shelf) -> None:
    """An unknown id is an error that lists what there is, or what bears that as its label."""
    for find in (shelf.store.snapshot, shelf.store.template):
        with pytest.raises(NotFoundError) as caught:
            find("x")
        assert "yet" in (caught.value.hint or "")
    shelf.snapshot("known", shelf.template())
    with pytest.raises(NotFoundError) as caught:
        shelf.store.snapshot("x")
    assert caught.value.hint == "there are: known"
    with pytest.raises(NotFoundError) as caught:
        shelf.store.snapshot("label of known")
    assert caught.value.hint == "so labelled is: known"
