"""Archives of stored guests: what may be in one, and clients that are slow with theirs."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import asdict, evolve
from small_service import small_service
from stored_things import Shelf, qcow2_header

from arrakis_rpc.connection import DataReceived, Event, StreamEnded
from arrakis_rpc.errors import DeadlineError, InvalidParamsError
from arrakis_rpc.network_api import Egress, PortRequest
from arrakisd.host.disks import FROZEN
from arrakisd.service import Call
from arrakisd.service import archive as module
from arrakisd.storage.archive import Unpacker, pack
from arrakisd.storage.archive_contents import Contents, understood
from arrakisd.storage.importing import Import
from arrakisd.storage.manifest import (
    DEVICE_STATE,
    EMPTY_LAYER,
    MANIFEST,
    MEMORY,
    Layer,
    Manifest,
    SavedNetwork,
)
from arrakisd.storage.store import Store

MIB = 2**20
BLANK = struct.pack(">4sIQI", b"QFI\xfb", 3, 0, 0).ljust(112, b"\0")
NETWORK = SavedNetwork("10.0.0.2", Egress("none"), [PortRequest(80, publish=True)], 100)


class _Shelf(Shelf):
    """A store whose files are such as archives may have."""

    def line(self, *names: str) -> list[Manifest]:
        """Publish a template and snapshots, each on top of the one before."""
        made = [self._made("template", None)]
        for name in names:
            made.append(self._made(name, made[-1]))
        return made

    def _made(self, new_id: str, source: Manifest | None) -> Manifest:
        header = qcow2_header(source.layers[-1].id) if source else BLANK
        with self._frozen(new_id, source, header, 1) as (parts, manifest, new):
            (parts / EMPTY_LAYER).write_bytes(qcow2_header(new[-1]))
            if source is None:
                os.truncate(parts / MEMORY, manifest.shape.memory_mib * MIB)
            else:
                manifest = evolve(manifest, network=NETWORK)
            return self.store.publish(parts, manifest, manifest.layers, new)

    def packed(self, contents: Contents) -> Unpacker:
        """Give an archive that is being read."""
        pieces: list[bytes] = []
        pack(contents, self.paths.root, pieces.append, lambda _: None)
        return Unpacker(iter([*pieces, b""]).__next__)


class _Counting(Store):
    """A store that knows how often it was looked through."""

    looks = 0

    def layers(self) -> dict[str, Layer]:
        self.looks += 1
        return super().layers()


@pytest.fixture
def shelf(tmp_path: Path) -> _Shelf:
    return _Shelf(tmp_path / "state")


def contents_of(shelf: _Shelf, *names: str) -> Contents:
    """Give what an archive of a line of snapshots has."""
    template, *snapshots = shelf.line(*names)
    return Contents("", template, snapshots)


def imported(shelf: _Shelf, unpacker: Unpacker, contents: Contents, image: str) -> None:
    """Take in an archive."""
    with shelf.scratch() as work:
        one = Import(shelf.store, contents)
        with shelf.store.hold(one.layer_ids):
            one.receive(unpacker, work, lambda _: None)
            one.publish(work, Path(image))


def test_there_and_back(shelf: _Shelf, tmp_path: Path) -> None:
    """What comes out is what went in, but for ports that were reachable from outside."""
    contents = contents_of(shelf, "one", "two")
    unpacker = shelf.packed(contents)
    received = unpacker.contents()
    assert received == contents
    other = _Shelf(tmp_path / "elsewhere")
    image = contents.template.shape.root_image
    imported(other, unpacker, received, image)
    assert other.store.snapshots.keys() == {"one", "two"}
    for one in (other, other.reopened()):
        for made in one.store.snapshots.values():
            one.store.verify(made)
            assert made.network == evolve(NETWORK, ports=[PortRequest(80)])


def test_many_layers(shelf: _Shelf) -> None:
    """However many layers an archive has, the store is looked through once."""
    contents = contents_of(shelf, "one", "two", "three")
    store = _Counting(shelf.paths, None)
    store.load()
    assert Import(store, contents).present == ["one", "two", "three"]
    assert store.looks == 1


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    """Make a change of one thing in an archive's contents."""

    def change(contents: Any) -> None:
        for key in path[:-1]:
            contents = contents[key]
        contents[path[-1]] = value

    return change


def shape(name: str, value: Any) -> Callable[[Any], None]:
    """Make a change of the shape that all manifests have."""

    def change(contents: Any) -> None:
        for manifest in (contents["template"], *contents["snapshots"]):
            manifest["shape"][name] = value

    return change


def port(**changes: Any) -> Callable[[Any], None]:
    """Make a change of a port that was forwarded."""
    one = {**asdict(PortRequest(80)), **changes}
    return put("snapshots", 0, "network", "ports", value=[one])


LONE = "\ud800"
TRAPS = {
    "pages": put("snapshots", 0, "changed_pages", value=2**70),
    "more pages than memory": put("snapshots", 0, "changed_pages", value=128 * 256 + 1),
    "fewer pages than none": put("snapshots", 0, "changed_pages", value=-1),
    "pages of a template": put("template", "changed_pages", value=2**64),
    "file on disk": put("snapshots", 0, "files", DEVICE_STATE, "allocated", value=2**64),
    "layer on disk": put("snapshots", 0, "layers", 1, "files", FROZEN, "allocated", value=2**50),
    "end of time": put("snapshots", 0, "created", value=1e300),
    "before all time": put("snapshots", 0, "halted", value=-1.0),
    "long pause": put("snapshots", 0, "pause", value=1e300),
    "label": put("snapshots", 0, "label", value=LONE),
    "label of a template": put("template", "label", value=LONE),
    "image": shape("image", LONE),
    "name of an image": shape("image", "no name"),
    "long text": shape("kernel_digest", "k" * 5000),
    "kernel": shape("kernel_digest", f"k{LONE}"),
    "unknown key": put(LONE, value=1),
    "description": port(description=LONE),
    "host's port": port(host_port=22),
    "ports": put("snapshots", 0, "network", "ports", value=[asdict(PortRequest(80))] * 65),
    "rate": put("snapshots", 0, "network", "mbit", value=2**62),
}


@pytest.mark.parametrize("change", TRAPS.values(), ids=TRAPS.keys())
def test_trap(shelf: _Shelf, change: Callable[[Any], None]) -> None:
    """What no daemon exports, and could not be told to a client, is refused in words that can."""
    content = json.loads(json.dumps(asdict(contents_of(shelf, "one"))))
    assert understood(content).snapshots[0].id == "one"
    change(content)
    with pytest.raises(InvalidParamsError) as caught:
        understood(content)
    assert caught.value.message.encode()


class _Client:
    """A client that sends nothing, and takes only so much."""

    def __init__(self, *pieces: bytes, takes: int = 0, is_told: bool = True) -> None:
        self._pieces = list(pieces)
        self._takes = takes
        self._is_told = is_told
        self.taken: list[bytes] = []
        self.asked = 0
        self.waiting = trio.Semaphore(0)

    async def receive(self) -> Event:
        if self._pieces:
            piece = self._pieces.pop(0)
            return DataReceived(1, "data", piece) if piece else StreamEnded(1, "data")
        await self._wait()
        raise AssertionError

    def consumed(self, event: DataReceived) -> None:
        pass

    async def send(self, channel: str, data: bytes) -> None:
        if len(self.taken) == self._takes:
            self.asked += 1
            await self._wait()
        self.taken.append(data)

    async def note(self, method: str, params: Mapping[str, Any]) -> None:
        if not self._is_told:
            await self._wait()

    async def end(self, channel: str) -> None:
        self.taken.append(b"")

    async def _wait(self) -> None:
        self.waiting.release()
        await trio.sleep_forever()


async def test_many_who_take_nothing(shelf: _Shelf, tmp_path: Path) -> None:
    """However many do not take what they export, nobody else waits for a thread."""
    shelf.line("one")
    client = _Client()
    with trio.fail_after(60):
        async with small_service(tmp_path) as (service, _), trio.open_nursery() as nursery:
            limiter = trio.to_thread.current_default_thread_limiter()
            before = limiter.borrowed_tokens
            for _ in range(50):
                call = Call(client, "test")
                nursery.start_soon(service.handle, "snapshot.export", {"id": "one"}, call)
            for _ in range(module._MOST_EXPORTS):
                await client.waiting.acquire()
            assert limiter.borrowed_tokens == before
            assert await trio.to_thread.run_sync(lambda: "done") == "done"
            nursery.cancel_scope.cancel()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client stall for a moment only."""
    monkeypatch.setattr(module, "_STALL_DEADLINE", 0.01)


STALLED = {
    "at first": {},
    "later": {"takes": 1},
    "in what is told": {"takes": 1000, "is_told": False},
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("manner", STALLED.values(), ids=STALLED.keys())
async def test_export_that_stalls(shelf: _Shelf, tmp_path: Path, manner: dict[str, Any]) -> None:
    """Who takes nothing any more is told so, and nothing more is sent."""
    shelf.line("one")
    client = _Client(**manner)
    with trio.fail_after(60):
        async with small_service(tmp_path) as (service, _):
            with pytest.raises(DeadlineError, match="taking the next piece"):
                await service.handle("snapshot.export", {"id": "one"}, Call(client, "test"))
    assert client.asked == ("is_told" not in manner)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [[], [b"arrakis-snapshot 1\n"]])
async def test_import_that_stalls(tmp_path: Path, sent: list[bytes]) -> None:
    """Who sends nothing any more does not keep others from importing."""
    stalled, other = _Client(*sent), _Client(b"nothing", b"")
    with trio.fail_after(60):
        async with small_service(tmp_path) as (service, _), trio.open_nursery() as nursery:

            async def stall() -> None:
                with pytest.raises(DeadlineError, match="sending the next piece"):
                    await service.handle("snapshot.import", {}, Call(stalled, "test"))

            nursery.start_soon(stall)
            await stalled.waiting.acquire()
            with pytest.raises(InvalidParamsError, match="no exported snapshot"):
                await service.handle("snapshot.import", {}, Call(other, "test"))


async def test_export_above_a_damaged_one(shelf: _Shelf, tmp_path: Path) -> None:
    """Of what stands on a damaged snapshot comes an archive that can be imported."""
    damaged = shelf.line("one", "two", "three")[1]
    (shelf.store.directory(damaged) / MANIFEST).write_text("{")
    client = _Client(takes=1000)
    async with small_service(tmp_path) as (service, _):
        await service.handle("snapshot.export", {"id": "three"}, Call(client, "test"))
    contents = Unpacker(iter(client.taken).__next__).contents()
    assert [(one.id, one.parent) for one in contents.snapshots] == [("two", None), ("three", "two")]
